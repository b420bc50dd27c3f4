mod chains;
mod properties;
mod records;
mod refused;
mod texts;
mod vectors;
mod verifiers;

use biscuit_auth::builder::{BiscuitBuilder, BlockBuilder};
use macula_proto::EndpointId;
use macula_proto::auth::{Denial, Rule, UnixTime};
use macula_proto::pubsub::Pattern;

use crate::envelope::Envelope;
use crate::{Grant, IssuerToken, Kind, RealmKey, RootKey, Terms};

const ME: EndpointId = EndpointId::from_bytes([7; 32]);
const NOON: UnixTime = UnixTime::from_secs(1_795_348_800);
const TOMORROW: UnixTime = UnixTime::from_secs(1_795_435_200);
const NEXT_YEAR: UnixTime = UnixTime::from_secs(1_826_884_800);

/// What the root's block must say, as Datalog, and a binding to [`ME`].
const HEAD: &str = "macula(1); realm(\"com.example\"); epoch(3); \
    expires(2027-11-22T12:00:00Z); allow(\"call\", \"**\"); \
    endpoint(hex:0707070707070707070707070707070707070707070707070707070707070707);";

fn key() -> RealmKey {
    key_from(1, "com.example")
}

fn key_from(seed: u8, name: &str) -> RealmKey {
    let root = RootKey::from_seed(&[seed; 32]);
    RealmKey { root, name: name.parse().unwrap(), epoch: 3, sequence: 0 }
}

/// Rules from `verb:pattern verb:pattern`.
fn rules(text: &str) -> Vec<Rule> {
    let rule = |text: &str| {
        let (verb, pattern) = text.split_once(':').unwrap();
        Rule { verb: verb.parse().unwrap(), pattern: Pattern::parse(pattern).unwrap() }
    };
    text.split_whitespace().map(rule).collect()
}

fn terms(allow: &str, expires: UnixTime) -> Terms {
    Terms { allow: Some(rules(allow)), expires: Some(expires), ..Terms::default() }
}

fn issuer() -> IssuerToken {
    let mut terms = terms("publish:** subscribe:** call:**", NEXT_YEAR);
    terms.contact = Some("ops@example.com".to_owned());
    IssuerToken::new(&key(), &terms).unwrap()
}

fn grant() -> Grant {
    issuer().grant(ME, &terms("publish:site.7.** call:**", TOMORROW)).unwrap()
}

/// A grant that its owner narrowed once more.
fn narrowed() -> Grant {
    let deny = Terms { deny: rules("call:admin.**"), ..Terms::default() };
    grant().attenuate(&deny).unwrap()
}

/// A token of the realm's root with whatever `code` says.
fn signed(code: &str) -> biscuit_auth::Biscuit {
    BiscuitBuilder::new().code(code).unwrap().build(key().root.pair()).unwrap()
}

fn block(code: &str) -> BlockBuilder {
    BlockBuilder::new().code(code).unwrap()
}

/// `token` as a grant of the realm.
fn wrapped(token: &biscuit_auth::Biscuit) -> Vec<u8> {
    Envelope::write(Kind::Grant, &key().realm(), &token.to_vec().unwrap())
}

fn read(token: &biscuit_auth::Biscuit) -> Result<Grant, Denial> {
    Grant::from_bytes(&wrapped(token))
}

/// Why `bytes` are no grant.
fn why(result: Result<Grant, Denial>) -> String {
    result.expect_err("it should be refused").to_string()
}
