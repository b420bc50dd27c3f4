//! Guarded realms: who shows no good grant is not let in, and whoever is in does only what the
//! grant allows, for as long as it holds.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use macula_proto::auth::{BlockId, Denial, Layer, Permit, Revocations, Rule, UnixTime, Verifier};
use macula_proto::id::LinkId;
use macula_proto::node::{Action, Command, Config, Event, Input, Node, Qos, Role};
use macula_proto::pubsub::Pattern;
use macula_proto::wire::message::{CloseCode, ErrorClass, Hello, Message, RealmOffer, RefusalCode};
use macula_proto::wire::{self, Channel};
use macula_proto::{EndpointId, RealmId, Time};

use crate::world::{Who, World, raw};

/// When the worlds begin, by the calendar.
pub const NOON: UnixTime = UnixTime::from_secs(1_795_348_800);

pub fn guarded() -> RealmId {
    RealmId::guarded(&[7; 32], "com.example.guarded")
}

/// Takes grants that are lines of plain text: what is signed is not the subject here.
#[derive(Debug)]
pub struct PlainText;

impl Verifier for PlainText {
    fn permit(&self, realm: &RealmId, grant: &[u8]) -> Result<Permit, Denial> {
        if *realm != guarded() {
            return Err(Denial::Forged("another root".to_owned()));
        }
        let text = std::str::from_utf8(grant).map_err(|e| Denial::Malformed(e.to_string()))?;
        let mut lines = text.lines();
        if lines.next() != Some("grant") {
            return Err(Denial::Malformed("not a grant".to_owned()));
        }
        let mut number = || lines.next().and_then(|line| line.parse::<u64>().ok()).unwrap();
        let (peer, expires, block) = (number() as u8, number(), number() as u8);
        let mut layer = Layer { allow: Some(Vec::new()), deny: Vec::new() };
        for line in lines {
            let words: Vec<&str> = line.split(' ').collect();
            let [kind, verb, pattern] = words[..] else { panic!("{line}") };
            let rule =
                Rule { verb: verb.parse().unwrap(), pattern: Pattern::parse(pattern).unwrap() };
            match kind {
                "allow" => layer.allow.as_mut().unwrap().push(rule),
                _ => layer.deny.push(rule),
            }
        }
        Ok(Permit {
            endpoint: EndpointId::from_bytes([peer; 32]),
            contact: "ops@example.com".to_owned(),
            epoch: 1,
            not_before: NOON,
            expires: UnixTime(expires),
            layers: vec![layer],
            blocks: vec![BlockId::from_bytes([block; 16])],
        })
    }

    fn realm_of(&self, signed: &[u8]) -> Result<RealmId, Denial> {
        if signed.starts_with(b"record") {
            Ok(guarded())
        } else {
            Err(Denial::Malformed("not a record".to_owned()))
        }
    }

    fn revocations(&self, _: &RealmId, record: &[u8]) -> Result<Revocations, Denial> {
        let text = std::str::from_utf8(record).unwrap();
        let mut revocations = Revocations::default();
        for line in text.lines().skip(1) {
            let (key, value) = line.split_once(' ').unwrap();
            let value: u64 = value.parse().unwrap();
            match key {
                "sequence" => revocations.sequence = value,
                "epoch" => revocations.epoch_min = value,
                "block" => {
                    revocations.blocks.insert(BlockId::from_bytes([value as u8; 16]));
                }
                _ => {
                    revocations.endpoints.insert(EndpointId::from_bytes([value as u8; 32]));
                }
            }
        }
        Ok(revocations)
    }
}

/// A grant for the node `who` that ends `seconds` after noon.
pub fn grant(who: Who, seconds: u64, rules: &[&str]) -> Bytes {
    let (peer, expires) = (who + 1, NOON.0 + seconds * 1_000);
    Bytes::from(format!("grant\n{peer}\n{expires}\n{peer}\n{}", rules.join("\n")))
}

pub const ALL: [&str; 5] =
    ["allow publish **", "allow subscribe **", "allow call **", "allow serve **", "allow store **"];

/// A router that guards a realm.
pub fn world() -> (World, Who) {
    world_with(verified)
}

/// As [`world`] of nodes that are tuned; [`verified`] should be part of it.
pub fn world_with(tune: fn(&mut Config)) -> (World, Who) {
    let mut world = World::new().tuned(tune);
    world.realm = guarded();
    let router = world.router();
    world.input(router, Input::WallClock { unix: NOON });
    (world, router)
}

pub fn verified(config: &mut Config) {
    config.verifier = Some(Arc::new(PlainText));
}

pub fn leaf(world: &mut World, router: Who, grant: impl FnOnce(Who) -> Bytes) -> Who {
    let who = world.add(Role::Leaf);
    let command = Command::Join { realm: guarded(), grant: grant(who) };
    world.command(who, command);
    world.connect(who, router);
    world.settle();
    who
}

/// A member that may do everything for an hour.
pub fn member(world: &mut World, router: Who) -> Who {
    leaf(world, router, |who| grant(who, 3_600, &ALL))
}

pub fn denial(world: &World, who: Who) -> Option<String> {
    world.sims[who].events.iter().rev().find_map(|(_, event)| match event {
        Event::RealmAnswered { refusal: Some((RefusalCode::Denied, text)), .. } => {
            Some(text.clone())
        }
        _ => None,
    })
}

pub fn peers(world: &World, router: Who) -> usize {
    let status = world.sims[router].node.as_ref().unwrap().status();
    status.realms.iter().map(|realm| realm.peers).sum()
}

fn renew(world: &mut World, who: Who, grant: Bytes) {
    world.command(who, Command::Join { realm: guarded(), grant });
    world.settle();
}

fn refused_publishes(world: &World, who: Who) -> Vec<String> {
    let texts = world.sims[who].events.iter().filter_map(|(_, event)| match event {
        Event::PublishRefused { code: RefusalCode::Denied, reason, .. } => Some(reason.clone()),
        _ => None,
    });
    texts.collect()
}

#[test]
fn members_talk_and_others_are_told_what_is_missing() {
    let (mut world, router) = world();
    let (alice, bob) = (member(&mut world, router), member(&mut world, router));
    world.subscribe(bob, "a.*");
    world.serve_echo(bob, "echo");
    world.settle();
    world.publish(alice, "a.b", Qos::AtLeastOnce, "hello");
    let call = world.call(alice, "echo", "x");
    world.settle();
    assert_eq!(world.texts(bob), ["hello"]);
    assert_eq!(world.result(alice, call).unwrap().unwrap(), "x");

    for (shown, expected) in [
        ("nothing", "no grant was shown"),
        ("rubbish", "cannot be read: not a grant"),
        ("expired", "expired at 2026-11-22T12:00:00Z; renew it with ops@example.com"),
    ] {
        let stranger = leaf(&mut world, router, |who| match shown {
            "nothing" => Bytes::new(),
            "rubbish" => Bytes::from_static(b"rubbish"),
            _ => grant(who, 0, &ALL),
        });
        let text = denial(&world, stranger).unwrap();
        assert!(text.contains(expected), "{text}");
    }
    assert_eq!(peers(&world, router), 2);
}

#[test]
fn a_grant_is_for_one_endpoint() {
    let (mut world, router) = world();
    let alice = member(&mut world, router);
    let thief = leaf(&mut world, router, |_| grant(alice, 3_600, &ALL));
    assert!(denial(&world, thief).unwrap().contains("bound to the key"));
    assert_eq!(peers(&world, router), 1);
}

#[test]
fn every_use_is_checked_on_its_effective_target() {
    let (mut world, router) = world();
    let all = member(&mut world, router);
    let some = leaf(&mut world, router, |who| {
        let rules = [
            "allow publish site.*",
            "allow subscribe **",
            "deny subscribe secret.**",
            "allow call echo",
            "allow serve own.*",
        ];
        grant(who, 3_600, &rules)
    });
    // publish
    world.subscribe(all, "**");
    world.settle();
    world.publish(some, "site.7", Qos::AtMostOnce, "yes");
    world.publish(some, "other", Qos::AtMostOnce, "no");
    world.publish(some, "site.7.8", Qos::AtLeastOnce, "no");
    // retaining takes the right to store, too
    world.publish_bytes(some, "site.8", Qos::AtMostOnce, true, b"no".to_vec());
    world.settle();
    assert_eq!(world.texts(all), ["yes"]);
    let refused = refused_publishes(&world, some);
    assert_eq!(refused.len(), 3, "{refused:?}");
    for expected in [
        "publish on `other`: it allows publish on `site.*`; ask ops@example.com for a grant",
        "store on `site.8`: it allows no store at all",
    ] {
        assert!(refused.iter().any(|text| text.contains(expected)), "{refused:?}");
    }

    // subscribe: what is denied inside a wide pattern does not come, retained or new
    world.publish_bytes(all, "secret.old", Qos::AtMostOnce, true, b"old secret".to_vec());
    world.publish_bytes(all, "open.old", Qos::AtMostOnce, true, b"old".to_vec());
    world.settle();
    world.subscribe(some, "**");
    let narrow = world.subscribe(some, "secret.*");
    world.settle();
    world.publish(all, "secret.new", Qos::AtLeastOnce, "new secret");
    world.publish(all, "open.new", Qos::AtLeastOnce, "new");
    world.settle();
    let received = world.texts(some);
    assert_eq!(received, ["old", "new"]);
    let is_refused = world.sims[some].events.iter().any(|(_, event)| {
        matches!(event, Event::SubscribeRefused { subscription, code: RefusalCode::Denied, .. }
            if *subscription == narrow)
    });
    assert!(is_refused);

    // serve and call
    world.serve_echo(all, "echo");
    world.serve_echo(all, "other");
    world.register(some, "own.x", 1);
    world.register(some, "echo", 1);
    world.settle();
    let good = world.call(some, "echo", "x");
    let bad = world.call(some, "other", "x");
    world.settle();
    assert_eq!(world.result(some, good).unwrap().unwrap(), "x");
    let failure = world.result(some, bad).unwrap().unwrap_err();
    assert_eq!(failure.class, ErrorClass::Denied);
    assert!(failure.message.contains("call on `other`"), "{}", failure.message);
    let refused = world.sims[some]
        .events
        .iter()
        .filter(|(_, event)| matches!(event, Event::RegisterRefused { .. }))
        .count();
    assert_eq!(refused, 1);
}

#[test]
fn a_permit_that_ends_closes_the_link_within_a_second() {
    let (mut world, router) = world();
    let alice = member(&mut world, router);
    let bob = leaf(&mut world, router, |who| grant(who, 10, &ALL));
    world.subscribe(bob, "a");
    world.run_for(Duration::from_millis(9_000));
    assert_eq!(peers(&world, router), 2);
    world.publish(alice, "a", Qos::AtMostOnce, "before");
    world.run_for(Duration::from_millis(1_100));
    assert_eq!(world.texts(bob), ["before"]);
    assert_eq!(peers(&world, router), 1);
    let told = world.sims[router].events.iter().any(
        |(_, event)| matches!(event, Event::Expelled { reason, .. } if reason.contains("expired")),
    );
    assert!(told);
    // it comes back, and is told again
    world.connect(bob, router);
    world.settle();
    assert!(denial(&world, bob).unwrap().contains("expired"));
    world.publish(alice, "a", Qos::AtMostOnce, "after");
    world.settle();
    assert_eq!(world.texts(bob), ["before"]);
}

#[test]
fn a_grant_is_renewed_on_the_standing_link() {
    let (mut world, router) = world();
    let alice = member(&mut world, router);
    let bob = leaf(&mut world, router, |who| grant(who, 10, &ALL));
    world.subscribe(bob, "a");
    world.run_for(Duration::from_secs(8));
    renew(&mut world, bob, grant(bob, 30, &ALL));
    world.run_for(Duration::from_secs(8));
    world.publish(alice, "a", Qos::AtMostOnce, "after");
    world.settle();
    assert_eq!(world.texts(bob), ["after"]);
    // one that is not good changes nothing for as long as the last one holds
    renew(&mut world, bob, grant(alice, 60, &ALL));
    let kept = world.sims[bob].events.iter().any(|(_, event)| {
        matches!(event, Event::RealmAnswered { refusal: Some(_), is_member: true, .. })
    });
    assert!(kept);
    world.publish(alice, "a", Qos::AtMostOnce, "still");
    world.settle();
    assert_eq!(world.texts(bob), ["after", "still"]);
    // nor is it shown again after a reconnection
    world.cut(bob, router);
    world.connect(bob, router);
    world.settle();
    world.publish(alice, "a", Qos::AtMostOnce, "even now");
    world.settle();
    assert_eq!(world.texts(bob), ["after", "still", "even now"]);
    world.run_for(Duration::from_secs(15));
    assert_eq!(peers(&world, router), 1);
}

#[test]
fn a_narrower_renewal_ends_what_it_does_not_cover() {
    let (mut world, router) = world();
    let alice = member(&mut world, router);
    let bob = member(&mut world, router);
    let lost = world.subscribe(bob, "a");
    world.subscribe(bob, "b");
    world.serve_echo(bob, "echo");
    world.settle();
    renew(&mut world, bob, grant(bob, 3_600, &["allow subscribe b"]));
    let is_told = world.sims[bob].events.iter().any(|(_, event)| {
        matches!(event, Event::SubscribeRefused { subscription, .. } if *subscription == lost)
    });
    assert!(is_told);
    world.publish(alice, "a", Qos::AtLeastOnce, "a");
    world.publish(alice, "b", Qos::AtLeastOnce, "b");
    let call = world.call(alice, "echo", "x");
    world.settle();
    assert_eq!(world.texts(bob), ["b"]);
    assert_eq!(world.result(alice, call).unwrap().unwrap_err().class, ErrorClass::NoProvider);
}

#[test]
fn what_a_narrowed_member_missed_while_away_is_not_sent_to_it() {
    let (mut world, router) = world();
    let alice = member(&mut world, router);
    let bob = member(&mut world, router);
    world.subscribe(bob, "**");
    world.settle();
    world.cut(bob, router);
    world.publish(alice, "a", Qos::AtLeastOnce, "a");
    world.publish(alice, "b", Qos::AtLeastOnce, "b");
    world.settle();
    let narrow = grant(bob, 3_600, &["allow subscribe **", "deny subscribe a"]);
    world.command(bob, Command::Join { realm: guarded(), grant: narrow });
    world.connect(bob, router);
    world.settle();
    assert_eq!(world.texts(bob), ["b"]);
}

#[test]
fn a_revoked_member_is_cut_off_with_its_calls_and_streams() {
    for record in ["block 3", "endpoint 3", "epoch 2"] {
        let (mut world, router) = world();
        let alice = member(&mut world, router);
        let bob = member(&mut world, router);
        assert_eq!((alice, bob), (1, 2));
        world.subscribe(bob, "a");
        world.register(alice, "slow", 4);
        world.settle();
        let call = world.call_with(bob, "slow", "x", |spec| spec.streaming = true);
        world.settle();
        assert!(world.result(bob, call).is_none());
        let record = Bytes::from(format!("record\nsequence 1\n{record}"));
        world.command(router, Command::Revoke { record: record.clone() });
        world.run_for(Duration::from_secs(1));
        assert!(world.has(bob, |event| matches!(event, Event::LinkLost { .. })));
        let kept = world.sims[router].events.iter().any(|(_, event)| {
            matches!(event, Event::Revoked { sequence: 1, record: kept, .. } if *kept == record)
        });
        assert!(kept);
        assert!(peers(&world, router) <= 1);
        // the provider of the open stream hears of it
        let cancelled = world.sims[alice]
            .events
            .iter()
            .any(|(_, event)| matches!(event, Event::RequestCancelled { .. }));
        // with a new epoch alice is cut off, too
        assert!(cancelled || !record.ends_with(b"3"));
        world.connect(bob, router);
        world.settle();
        assert!(denial(&world, bob).is_some());
        // an older record brings nobody back
        let old = Bytes::from_static(b"record\nsequence 1\n");
        world.command(router, Command::Revoke { record: old });
        world.cut(bob, router);
        world.connect(bob, router);
        world.settle();
        assert!(peers(&world, router) <= 1);
    }
}

#[test]
fn anybody_may_bring_a_signed_record() {
    let (mut world, router) = world();
    let alice = member(&mut world, router);
    let bob = member(&mut world, router);
    let body = format!("record\nsequence 4\nendpoint {}", bob + 1);
    let call = world.call_with(alice, "macula.revoke", &body, |spec| spec.endpoint_scope = true);
    world.run_for(Duration::from_secs(1));
    assert_eq!(world.result(alice, call).unwrap().unwrap(), r#"{"sequence":4}"#);
    assert_eq!(peers(&world, router), 1);
    let call =
        world.call_with(alice, "macula.revoke", "rubbish", |spec| spec.endpoint_scope = true);
    world.settle();
    assert_eq!(world.result(alice, call).unwrap().unwrap_err().class, ErrorClass::Denied);
}

#[test]
fn what_a_denied_leaf_asks_for_is_answered_at_once() {
    let (mut world, router) = world();
    let stranger = leaf(&mut world, router, |_| Bytes::new());
    let subscription = world.subscribe(stranger, "a");
    world.publish(stranger, "a", Qos::AtLeastOnce, "x");
    world.register(stranger, "p", 1);
    let call = world.call(stranger, "p2", "x");
    world.settle();
    assert!(world.room(stranger, "a", Qos::AtMostOnce), "a refusal needs no room");
    let events: Vec<&Event> = world.sims[stranger].events.iter().map(|(_, event)| event).collect();
    assert!(events.iter().any(|event| matches!(event,
        Event::SubscribeRefused { subscription: it, code: RefusalCode::Denied, .. }
            if *it == subscription)));
    assert!(events.iter().any(|event| matches!(event, Event::RegisterRefused { .. })));
    assert_eq!(refused_publishes(&world, stranger).len(), 1);
    let failure = world.result(stranger, call).unwrap().unwrap_err();
    assert_eq!(failure.class, ErrorClass::Denied);
    // with a grant the same node gets in
    renew(&mut world, stranger, grant(stranger, 3_600, &ALL));
    world.subscribe(stranger, "a");
    let other = member(&mut world, router);
    world.publish(other, "a", Qos::AtMostOnce, "welcome");
    world.settle();
    assert_eq!(world.texts(stranger), ["welcome"]);
}

#[test]
fn a_jump_of_the_clock_ends_permits() {
    let (mut world, router) = world();
    member(&mut world, router);
    world.input(router, Input::WallClock { unix: UnixTime(NOON.0 + 3_600_000) });
    world.settle();
    assert_eq!(peers(&world, router), 0);
}

// --- a router by itself --------------------------------------------------------------------

pub struct Alone {
    pub node: Node,
    pub now: Time,
}

impl Alone {
    pub fn new(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::new(Role::Router, 1);
        config.verifier = Some(Arc::new(PlainText));
        change(&mut config);
        let node = Node::new(EndpointId::from_bytes([99; 32]), config, [0; 32]);
        Self { node, now: Time::from_micros(1) }
    }

    pub fn join(&mut self, realm: RealmId) {
        let join = Command::Join { realm, grant: Bytes::new() };
        self.node.handle_input(self.now, Input::Command(join));
    }

    /// A peer dials in and offers; what it is told of each realm.
    pub fn offer(
        &mut self,
        peer: u8,
        offers: Vec<RealmOffer>,
    ) -> Vec<Option<(RefusalCode, String)>> {
        self.offer_on(LinkId(u64::from(peer)), peer, offers)
    }

    pub fn offer_on(
        &mut self,
        link: LinkId,
        peer: u8,
        offers: Vec<RealmOffer>,
    ) -> Vec<Option<(RefusalCode, String)>> {
        let id = EndpointId::from_bytes([peer; 32]);
        let remote = "192.0.2.7:1".parse().unwrap();
        self.node.handle_input(self.now, Input::LinkUp { link, peer: id, dialled: false, remote });
        let hello = Hello {
            version_min: 1,
            version_max: 1,
            capabilities: 0,
            is_router: false,
            instance: 7,
            resumes: 0,
            observed: String::new(),
            agent: "test".to_owned(),
            realms: offers,
        };
        self.say(link, &Message::Hello(hello))
    }

    pub fn say(&mut self, link: LinkId, message: &Message) -> Vec<Option<(RefusalCode, String)>> {
        let frame = raw(&wire::encode(message));
        self.node.handle_input(self.now, Input::Frame { link, channel: Channel::Control, frame });
        let mut answers = Vec::new();
        while let Some(transmit) = self.node.poll_transmit() {
            let frame = raw(&transmit.frame);
            if let Ok(Message::Realms(realms)) = wire::decode(frame, transmit.channel) {
                answers.extend(realms.into_iter().map(|status| status.refusal));
            }
        }
        answers
    }
}

pub fn offer(who: Who) -> RealmOffer {
    RealmOffer { realm: guarded(), grant: grant(who, 3_600, &ALL) }
}

#[test]
fn without_clock_or_verifier_nobody_gets_in() {
    let mut router = Alone::new(|_| {});
    router.join(guarded());
    let refusal = router.offer(1, vec![offer(0)]).remove(0).unwrap();
    assert!(refusal.1.contains("does not know what time it is"), "{refusal:?}");
    let mut router = Alone::new(|config| config.verifier = None);
    router.join(guarded());
    router.node.handle_input(router.now, Input::WallClock { unix: NOON });
    let refusal = router.offer(1, vec![offer(0)]).remove(0).unwrap();
    assert!(refusal.1.contains("without a verifier"), "{refusal:?}");
}

#[test]
fn a_guarded_realm_needs_no_setting_where_any_realm_is_admitted() {
    use macula_proto::node::Admission;
    let mut router = Alone::new(|config| {
        config.admission = Admission::AnyOpen;
        config.realms_max = 1;
    });
    router.node.handle_input(router.now, Input::WallClock { unix: NOON });
    // who shows nothing makes no realm: neither a guarded nor an open one under its id
    let stranger = RealmOffer { realm: guarded(), grant: Bytes::new() };
    assert!(router.offer(1, vec![stranger])[0].is_some());
    assert!(router.node.status().realms.is_empty());
    assert_eq!(router.offer(2, vec![offer(1)]), [None]);
    // full of realms with members, it takes no other one
    let other = RealmOffer { realm: RealmId::of_name("other"), grant: Bytes::new() };
    let refusal = router.offer(3, vec![other]).remove(0).unwrap();
    assert_eq!(refusal.0, RefusalCode::Limit);
}

#[test]
fn an_open_realm_does_not_squat_on_the_tag_of_a_guarded_one() {
    use macula_proto::node::Admission;
    let mut router = Alone::new(|config| config.admission = Admission::AnyOpen);
    router.node.handle_input(router.now, Input::WallClock { unix: NOON });
    let mut squat = *guarded().as_bytes();
    squat[31] ^= 1;
    let squat = RealmOffer { realm: RealmId::from_bytes(squat), grant: Bytes::new() };
    assert_eq!(router.offer(1, vec![squat]), [None]);
    assert_eq!(router.offer(2, vec![offer(1)]), [None]);
    let mut closed = Vec::new();
    while let Some(action) = router.node.poll_action() {
        if let Action::CloseLink { link, code, .. } = action {
            closed.push((link, code));
        }
    }
    assert_eq!(closed, [(LinkId(1), CloseCode::Denied)]);
    let status = router.node.status();
    assert_eq!(status.realms.iter().map(|realm| realm.realm).collect::<Vec<_>>(), [guarded()]);
}

#[test]
fn signatures_are_checked_so_often_and_not_more() {
    let mut router = Alone::new(|_| {});
    router.join(guarded());
    router.node.handle_input(router.now, Input::WallClock { unix: NOON });
    assert_eq!(router.offer(1, vec![offer(0)]), [None]);
    let mut limited = 0;
    for _ in 0..10 {
        let join = Message::Join(vec![offer(0); 64]);
        let answers = router.say(LinkId(1), &join);
        let is_limit = |answer: &Option<(RefusalCode, String)>| {
            answer.as_ref().is_some_and(|(_, text)| text.contains("too many grants"))
        };
        limited += answers.iter().filter(|answer| is_limit(answer)).count();
    }
    assert_eq!(limited, 1 + 640 - 128);
    // a stranger gets less
    let rubbish = RealmOffer { grant: Bytes::from_static(b"rubbish"), ..offer(1) };
    let answers = router.offer(2, vec![rubbish; 64]);
    let looked_at = answers.iter().flatten().filter(|(_, text)| text.contains("cannot be read"));
    assert_eq!(looked_at.count(), 4);
}

#[test]
fn a_session_that_comes_back_without_its_grant_is_in_the_realm_no_more() {
    let mut router = Alone::new(|_| {});
    router.join(guarded());
    router.node.handle_input(router.now, Input::WallClock { unix: NOON });
    assert_eq!(router.offer(1, vec![offer(0)]), [None]);
    assert_eq!(router.node.status().realms[0].peers, 1);
    let down = Input::LinkDown { link: LinkId(1), reason: "cut".to_owned() };
    router.node.handle_input(router.now, down);
    assert_eq!(router.node.status().realms[0].peers, 1, "its session waits");
    assert!(router.offer(1, Vec::new()).is_empty());
    assert_eq!(router.node.status().realms[0].peers, 0);
}
