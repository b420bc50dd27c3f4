//! Grants and records of guarded realms: what strangers show, and what holders append.

use std::sync::OnceLock;

use biscuit_auth::format::schema;
use biscuit_auth::{Algorithm, KeyPair, PrivateKey};
use macula_grant::{Grant, GrantVerifier, IssuerToken, RealmKey, Record, RootKey, Rule, Terms};
use macula_proto::auth::{Denial, Permit, Request, Revocations, UnixTime, Verb, Verifier, decide};
use macula_proto::pubsub::Pattern;
use macula_proto::{EndpointId, RealmId};
use prost::Message;

use crate::script::{Script, pick};

/// Not the root of the golden grants, which are inputs.
const ROOT: [u8; 32] = [3; 32];
const NAME: &str = "com.example";
const MEMBER: EndpointId = EndpointId::from_bytes([7; 32]);
const NOON: UnixTime = UnixTime::from_secs(1_795_348_800);
const KINDS: [u8; 3] = [1, 2, 3];

/// The first byte says what is tried.
///
/// - Bytes behind a good head: they are no grant, and nothing panics.
/// - A good grant that was changed: it is none any more, whatever was changed.
/// - A block of any bytes with a good signature: if it is taken, it says whose, what and until when.
/// - Terms, appended one after the other: none allows what those before it did not.
pub fn grant(data: &[u8]) {
    let mut script = Script::new(data);
    match script.byte() % 4 {
        0 => behind_a_head(&mut script),
        1 => changed(&mut script),
        2 => signed(&mut script),
        _ => appended(&mut script),
    }
}

fn key() -> RealmKey {
    let name = NAME.parse().expect("a name");
    RealmKey { root: RootKey::from_seed(&ROOT), name, epoch: 3, sequence: 0 }
}

fn realm() -> RealmId {
    static REALM: OnceLock<RealmId> = OnceLock::new();
    *REALM.get_or_init(|| key().realm().id())
}

/// `token` as the realm's grant (kind 1), record (2) or issuer token (3).
fn with_head(kind: u8, token: &[u8]) -> Vec<u8> {
    let root = key().realm().root;
    [&[kind], &root[..], &[NAME.len() as u8], NAME.as_bytes(), token].concat()
}

fn show(bytes: &[u8]) -> Result<Permit, Denial> {
    // claimed or not, nothing here panics
    drop(GrantVerifier::new().realm_of(bytes));
    drop(GrantVerifier::new().revocations(&realm(), bytes));
    GrantVerifier::new().permit(&realm(), bytes)
}

fn behind_a_head(script: &mut Script<'_>) {
    let kind = pick(&KINDS, script.byte());
    let body = script.rest();
    assert!(show(&with_head(kind, body)).is_err(), "nobody signed this");
    assert!(show(body).is_err(), "nobody signed this");
}

fn changed(script: &mut Script<'_>) {
    static GOOD: OnceLock<Vec<u8>> = OnceLock::new();
    let good = GOOD.get_or_init(|| {
        let year = terms("publish", "**", 31_536_000);
        let issuer = IssuerToken::new(&key(), &year).expect("an issuer");
        let grant = issuer.grant(MEMBER, &terms("publish", "site.**", 86_400)).expect("a grant");
        let narrowed = grant.attenuate(&terms("publish", "site.7.*", 3_600));
        narrowed.expect("a narrower one").as_bytes().to_vec()
    });
    let mut bytes = good.clone();
    while let Some([what, high, low, value]) = script.step() {
        let at = usize::from(u16::from_be_bytes([high, low])) % bytes.len().max(1);
        match what % 4 {
            0 if !bytes.is_empty() => bytes[at] ^= value,
            1 => bytes.insert(at, value),
            2 if !bytes.is_empty() => drop(bytes.remove(at)),
            3 => bytes.truncate(at),
            _ => {}
        }
    }
    assert_eq!(show(&bytes).is_ok(), bytes == *good, "it was changed and is still good");
}

fn signed(script: &mut Script<'_>) {
    let kind = pick(&KINDS, script.byte());
    let block = script.rest().to_vec();
    let pair = |seed: &[u8; 32]| {
        let key = PrivateKey::from_bytes(seed, Algorithm::Ed25519);
        KeyPair::from(&key.expect("every 32 bytes are a seed"))
    };
    let (root, next) = (pair(&ROOT), pair(&[2; 32]));
    let next_key = schema::PublicKey {
        algorithm: schema::public_key::Algorithm::Ed25519 as i32,
        key: next.public().to_bytes(),
    };
    let payload = [&block[..], &next_key.algorithm.to_le_bytes(), &next_key.key].concat();
    let signature = root.sign(&payload).expect("a signature").to_bytes().to_vec();
    let token = schema::Biscuit {
        root_key_id: None,
        authority: schema::SignedBlock {
            block,
            next_key,
            signature,
            external_signature: None,
            version: None,
        },
        blocks: Vec::new(),
        proof: schema::Proof {
            content: Some(schema::proof::Content::NextSecret(next.private().to_bytes().to_vec())),
        },
    };
    let bytes = with_head(kind, &token.encode_to_vec());
    if let Ok(permit) = show(&bytes) {
        assert_eq!(kind, 1, "only a grant is a grant");
        assert!(permit.layers.len() == 1 && permit.blocks.len() == 1);
        assert!(permit.layers.iter().all(|layer| layer.allow.is_some()), "the root says what");
        assert!(GrantVerifier::new().revocations(&realm(), &bytes).is_err());
        let everything = Pattern::parse("**").expect("a pattern");
        for verb in Verb::ALL {
            drop(judge(&permit, Request::Use(verb, "site.7.temperature")));
            drop(judge(&permit, Request::Cover(verb, &everything)));
        }
    }
    if let Ok(record) = Record::from_bytes(&bytes) {
        assert_eq!(kind, 2, "only a record is a record");
        let again = GrantVerifier::new().revocations(&realm(), &bytes);
        assert_eq!(again, Ok(record.list().revocations()));
    }
}

fn appended(script: &mut Script<'_>) {
    let first = terms(verb(script.byte()), pattern(script.byte()), 86_400);
    let mut grant = Grant::new(&key(), MEMBER, &first).expect("a grant");
    for _ in 0..BLOCKS_TRIED_MAX {
        let Some([what, verbs, patterns, seconds]) = script.step() else { return };
        let rule = || rule(verb(verbs), pattern(patterns));
        let more = Terms {
            allow: match what % 4 {
                0 => None,
                1 => Some(Vec::new()),
                _ => Some(vec![rule()]),
            },
            deny: if what & 8 == 0 { Vec::new() } else { vec![rule()] },
            expires: (what & 16 != 0)
                .then_some(UnixTime::from_secs(NOON.as_secs() + 1 + u64::from(seconds) * 1_000)),
            ..Terms::default()
        };
        let narrowed = grant.attenuate(&more).expect("there is room");
        let (before, after) = (grant.permit(), narrowed.permit());
        assert_eq!(show(narrowed.as_bytes()), Ok(after.clone()), "it is read as it was made");
        assert!(after.expires <= before.expires && after.blocks.starts_with(&before.blocks));
        for choice in 0..=u8::MAX {
            let (verb, wanted) = (pick(&Verb::ALL, choice), pattern(choice / 6));
            let wanted = Pattern::parse(wanted).expect("a pattern");
            let mut requests = vec![Request::Cover(verb, &wanted)];
            if wanted.is_literal() {
                requests.push(Request::Use(verb, wanted.as_str()));
            }
            for request in requests {
                let is_wider = judge(&after, request).is_ok() && judge(&before, request).is_err();
                assert!(!is_wider, "{request:?}: {before:?} {after:?}");
            }
        }
        grant = narrowed;
    }
}

/// Keeps one input within milliseconds.
const BLOCKS_TRIED_MAX: usize = 4;

fn judge(permit: &Permit, request: Request<'_>) -> Result<(), Denial> {
    decide(permit, &Revocations::default(), &permit.endpoint, NOON, request)
}

fn terms(verb: &str, pattern: &str, seconds: u64) -> Terms {
    let expires = Some(UnixTime::from_secs(NOON.as_secs() + seconds));
    Terms { allow: Some(vec![rule(verb, pattern)]), expires, ..Terms::default() }
}

fn rule(verb: &str, pattern: &str) -> Rule {
    Rule {
        verb: verb.parse().expect("a verb"),
        pattern: Pattern::parse(pattern).expect("a pattern"),
    }
}

fn verb(choice: u8) -> &'static str {
    pick(&Verb::ALL, choice).as_str()
}

fn pattern(choice: u8) -> &'static str {
    pick(&["**", "a", "a.b", "a.*", "a.**", "*.b", "*.**", "b.a", "a.b.c", "*"], choice)
}
