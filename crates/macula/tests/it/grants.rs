//! Guarded realms over real links.

use std::time::{Duration, Instant, SystemTime};

use macula::{
    Event, GuardedRealm, JoinError, Node, NodeBuilder, PublishError, Router, SecretKey, StartError,
};
use macula_grant::{Grant, IssuerToken, RealmKey, Record, RevocationList, Terms};
use macula_proto::auth::{Rule, UnixTime, Verb};
use macula_proto::pubsub::Pattern;

use crate::support::{TestDir, address, event, loopback, next_text, within};

const EVERYTHING: [Verb; 5] =
    [Verb::Publish, Verb::Subscribe, Verb::Call, Verb::Serve, Verb::Store];

fn now() -> UnixTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    UnixTime(since.as_millis() as u64)
}

fn terms(verbs: &[Verb], pattern: &str, valid: Duration) -> Terms {
    let pattern = Pattern::parse(pattern).unwrap();
    let rules = verbs.iter().map(|verb| Rule { verb: *verb, pattern: pattern.clone() });
    Terms {
        allow: Some(rules.collect()),
        expires: Some(UnixTime(now().0 + valid.as_millis() as u64)),
        ..Terms::default()
    }
}

/// A realm with its owner.
struct Owner {
    key: RealmKey,
    issuer: IssuerToken,
}

impl Owner {
    fn new() -> Self {
        let key = RealmKey::generate("com.example.guarded".parse().unwrap());
        let day = Duration::from_secs(86_400);
        let issuer = IssuerToken::new(&key, &terms(&EVERYTHING, "**", day)).unwrap();
        Self { key, issuer }
    }

    fn realm(&self) -> GuardedRealm {
        self.key.realm()
    }

    /// For everything, one hour.
    fn grant(&self, key: &SecretKey) -> Grant {
        self.grant_for(key, Duration::from_secs(3_600))
    }

    fn grant_for(&self, key: &SecretKey, valid: Duration) -> Grant {
        self.issuer.grant(key.id(), &terms(&EVERYTHING, "**", valid)).unwrap()
    }

    fn revoke(&mut self, key: &SecretKey) -> Record {
        self.key.sequence += 1;
        let list = RevocationList {
            sequence: self.key.sequence,
            epoch_min: self.key.epoch,
            endpoints: [key.id()].into(),
            ..RevocationList::default()
        };
        Record::sign(&self.key, &list).unwrap()
    }
}

async fn router(owner: &Owner) -> Router {
    let builder = Router::builder().listen(loopback()).guarded_realm(owner.realm());
    within(builder.start()).await.unwrap()
}

fn builder(router: &Router, key: &SecretKey) -> NodeBuilder {
    Node::builder().gateway(address(router)).key(key.clone())
}

async fn member(owner: &Owner, router: &Router) -> (Node, SecretKey) {
    let key = SecretKey::generate().unwrap();
    let node = within(builder(router, &key).grant(owner.grant(&key)).start()).await.unwrap();
    (node, key)
}

#[tokio::test]
async fn members_talk_and_strangers_are_told_why_not() {
    let owner = Owner::new();
    let router = router(&owner).await;
    let ((alice, _), (bob, _)) = (member(&owner, &router).await, member(&owner, &router).await);
    let mut messages = within(bob.subscribe("a.*")).await.unwrap();
    within(alice.publish("a.b", "hello")).await.unwrap();
    assert_eq!(next_text(&mut messages).await, "hello");

    let key = SecretKey::generate().unwrap();
    // an open realm of the same name is another realm
    let open = within(builder(&router, &key).realm("com.example.guarded").start()).await;
    assert!(matches!(open, Err(StartError::Denied { .. })), "{open:?}");
    // somebody else's grant is refused here already
    let stolen = owner.grant(&SecretKey::generate().unwrap());
    let error = within(builder(&router, &key).grant(stolen).start()).await.unwrap_err();
    assert!(error.to_string().contains("the grant is for endpoint"), "{error}");
    // one that another root signed, at the router
    let foreign = Owner::new().grant(&key);
    let error = within(builder(&router, &key).grant(foreign).start()).await.unwrap_err();
    assert!(matches!(error, StartError::Denied { .. }), "{error:?}");
    let expired = owner.grant_for(&key, Duration::ZERO);
    let error = within(builder(&router, &key).grant(expired).start()).await.unwrap_err();
    assert!(error.to_string().contains("the grant expired at"), "{error}");
}

#[tokio::test]
async fn what_a_grant_does_not_allow_is_refused_with_what_is_missing() {
    let owner = Owner::new();
    let router = router(&owner).await;
    let key = SecretKey::generate().unwrap();
    let hour = Duration::from_secs(3_600);
    let mut narrow = terms(&[Verb::Publish, Verb::Subscribe], "site.**", hour);
    narrow.contact = Some("ops@example.com".to_owned());
    let grant = owner.issuer.grant(key.id(), &narrow).unwrap();
    let node = within(builder(&router, &key).grant(grant).start()).await.unwrap();
    within(node.subscribe("site.*")).await.unwrap();
    let error = within(node.subscribe("**")).await.unwrap_err().to_string();
    assert!(error.contains("it allows subscribe on `site.**`; ask ops@example.com"), "{error}");
    let options = macula::PublishOptions::default().qos(macula::Qos::AtLeastOnce);
    within(node.publish_with("site.7", "x", options)).await.unwrap();
    let error = within(node.publish_with("plant", "x", options)).await.unwrap_err();
    assert!(matches!(error, PublishError::Refused { .. }), "{error:?}");
    let error = within(node.call("echo", "x")).await.unwrap_err();
    assert!(matches!(error, macula::CallError::Denied { .. }), "{error:?}");
}

#[tokio::test]
async fn a_grant_that_ends_cuts_the_link_within_a_second_and_a_renewed_one_does_not() {
    let owner = Owner::new();
    let router = router(&owner).await;
    let valid = Duration::from_secs(3);
    let mut members = Vec::new();
    for _ in 0..2 {
        let key = SecretKey::generate().unwrap();
        let grant = owner.grant_for(&key, valid);
        let expires = grant.expires();
        let node = within(builder(&router, &key).grant(grant).start()).await.unwrap();
        members.push((node, key, expires));
    }
    let [(ends, _, expires), (stays, key, _)] = &members[..] else { panic!() };
    let mut events = ends.events();
    let mut ending = within(ends.subscribe("a")).await.unwrap();
    let mut staying = within(stays.subscribe("a")).await.unwrap();
    within(stays.renew(&owner.grant(key))).await.unwrap();

    let reason = event(&mut events, |event| match event {
        Event::Disconnected { reason, .. } => Some(reason.clone()),
        _ => None,
    })
    .await;
    let late = now().0.saturating_sub(expires.0);
    assert!(reason.contains("the grant expired at"), "{reason}");
    assert!(late < 1_000, "{late} ms after its end");
    // its subscription ends with the reason
    let end = within(ending.next()).await;
    assert!(end.is_none(), "the subscription goes on");
    let publisher = within(router_member(&owner, &router)).await;
    within(publisher.publish("a", "after")).await.unwrap();
    assert_eq!(next_text(&mut staying).await, "after");
}

async fn router_member(owner: &Owner, router: &Router) -> Node {
    member(owner, router).await.0
}

#[tokio::test]
async fn a_refused_renewal_leaves_the_grant_before() {
    let owner = Owner::new();
    let router = router(&owner).await;
    let (node, key) = member(&owner, &router).await;
    let expired = owner.grant_for(&key, Duration::ZERO);
    let error = within(node.renew(&expired)).await.unwrap_err();
    assert!(matches!(error, JoinError::Denied { .. }), "{error:?}");
    let mut messages = within(node.subscribe("a")).await.unwrap();
    let other = router_member(&owner, &router).await;
    within(other.publish("a", "still here")).await.unwrap();
    assert_eq!(next_text(&mut messages).await, "still here");
}

#[tokio::test]
async fn a_grant_file_that_is_replaced_renews_the_grant() {
    let owner = Owner::new();
    let router = router(&owner).await;
    let folder = TestDir::new("grant");
    let path = folder.file("grant");
    let key = SecretKey::generate().unwrap();
    let short = owner.grant_for(&key, Duration::from_secs(4));
    let expires = short.expires();
    std::fs::write(&path, short.to_text()).unwrap();
    let node = within(builder(&router, &key).grant_file(&path).start()).await.unwrap();
    let mut messages = within(node.subscribe("a")).await.unwrap();
    std::fs::write(&path, owner.grant(&key).to_text()).unwrap();
    let other = router_member(&owner, &router).await;
    // beyond the end of the first grant everything still arrives
    let mut sent = 0;
    while now().0 < expires.0 + 1_000 {
        within(other.publish("a", "x")).await.unwrap();
        sent += 1;
        next_text(&mut messages).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(sent > 50, "{sent}");
}

fn is_record(entry: &std::fs::DirEntry) -> bool {
    entry.path().extension().is_some_and(|extension| extension == "revocations")
}

#[tokio::test]
async fn a_revoked_member_is_out_at_once_and_after_a_restart() {
    let mut owner = Owner::new();
    let folder = TestDir::new("revocations");
    let records = folder.file("records");
    let start = |listen| {
        let builder = Router::builder().listen(listen).key(SecretKey::from_seed([9; 32]));
        builder.guarded_realm(owner.realm()).revocations_dir(&records).start()
    };
    let first = within(start(loopback())).await.unwrap();
    let listen = first.local_addr();
    let (alice, _) = member(&owner, &first).await;
    let (bob, bobs_key) = member(&owner, &first).await;
    let mut told = first.events();
    let mut lost = bob.events();

    // anybody may bring the record
    let record = owner.revoke(&bobs_key);
    let began = Instant::now();
    let call = alice.call_with("macula.revoke");
    let answer = within(call.arg(record.as_bytes().to_vec()).send()).await.unwrap();
    assert_eq!(answer, r#"{"sequence":1}"#);
    let reason = event(&mut lost, |event| match event {
        Event::Disconnected { reason, .. } => Some(reason.clone()),
        _ => None,
    })
    .await;
    assert!(reason.contains("has revoked this endpoint"), "{reason}");
    assert!(began.elapsed() < Duration::from_secs(1));
    event(&mut told, |event| match event {
        Event::Revoked { expelled: 1, sequence: 1, .. } => Some(()),
        _ => None,
    })
    .await;
    // the record is kept, so a restart does not bring bob back
    within(async {
        while !std::fs::read_dir(&records).unwrap().any(|entry| is_record(&entry.unwrap())) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    drop((alice, bob));
    let began = Instant::now();
    within(first.close()).await;
    assert!(began.elapsed() < Duration::from_secs(4), "closing waits for nothing");
    let owner_realm = owner.realm();
    let second = within(async {
        loop {
            let builder = Router::builder().listen(listen).key(SecretKey::from_seed([9; 32]));
            let builder = builder.guarded_realm(owner_realm.clone());
            match builder.revocations_dir(&records).start().await {
                Ok(router) => return router,
                Err(StartError::Bind(_)) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
    })
    .await;
    let again = builder(&second, &bobs_key).grant(owner.grant(&bobs_key)).start();
    let error = within(again).await.unwrap_err();
    assert!(error.to_string().contains("has revoked this endpoint"), "{error}");
}
