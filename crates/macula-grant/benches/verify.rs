//! What checking a grant costs, for good ones and for the worst:
//! `cargo bench -p macula-grant --bench verify`.

#![expect(clippy::unwrap_used, reason = "a benchmark that fails may panic")]

use biscuit_auth::builder::BiscuitBuilder;
use divan::Bencher;
use macula_grant::{
    BlockId, Grant, GrantVerifier, IssuerToken, RealmKey, Record, RevocationList, RootKey, Rule,
    Terms, Verb,
};
use macula_proto::EndpointId;
use macula_proto::auth::{UnixTime, Verifier};
use macula_proto::limits::{GRANT_BYTES_MAX, REVOCATIONS_BYTES_MAX};
use macula_proto::pubsub::Pattern;

const ME: EndpointId = EndpointId::from_bytes([7; 32]);

fn main() {
    divan::main();
}

fn key() -> RealmKey {
    let root = RootKey::from_seed(&[1; 32]);
    RealmKey { root, name: "com.example".parse().unwrap(), epoch: 1, sequence: 0 }
}

fn terms(patterns: impl Iterator<Item = String>) -> Terms {
    let rule = |text: String| Rule { verb: Verb::Call, pattern: Pattern::parse(&text).unwrap() };
    Terms {
        allow: Some(patterns.map(rule).collect()),
        expires: Some(UnixTime::from_secs(1_826_884_800)),
        ..Terms::default()
    }
}

/// Root, issuer, member; a few rules each.
fn typical() -> Grant {
    let few = || terms((0..4).map(|index| format!("site.{index}.**")));
    let issuer = IssuerToken::new(&key(), &few()).unwrap();
    issuer.attenuate(&few()).unwrap().grant(ME, &few()).unwrap()
}

/// As many blocks as there may be, full of rules.
fn longest() -> Grant {
    let rules = |count: u32| terms((0..count).map(|index| format!("{index}")));
    let mut issuer = IssuerToken::new(&key(), &rules(200)).unwrap();
    for _ in 0..14 {
        issuer = issuer.attenuate(&rules(3)).unwrap();
    }
    let grant = issuer.grant(ME, &rules(3)).unwrap();
    assert!(grant.as_bytes().len() > 7_000, "{}", grant.as_bytes().len());
    grant
}

/// Everything holds but the last signature.
fn forged() -> Vec<u8> {
    let mut bytes = longest().as_bytes().to_vec();
    let at = bytes.len() - 60;
    bytes[at] ^= 1;
    assert!(Grant::from_bytes(&bytes).is_err());
    bytes
}

/// Signed by a root that wants to make others work: rules that are refused only when read.
fn hostile() -> Vec<u8> {
    let rules = |count| hostile_of("a($a) <- a($a), [[[[1]]]] == [[[[1]]]];".repeat(count));
    let sizes = (1..).map(rules).take_while(|bytes| bytes.len() <= GRANT_BYTES_MAX);
    sizes.last().unwrap()
}

fn hostile_of(rules: String) -> Vec<u8> {
    let token = BiscuitBuilder::new().code(rules).unwrap();
    let key = key();
    let seed = key.root.seed();
    let secret = biscuit_auth::PrivateKey::from_bytes(&*seed, biscuit_auth::Algorithm::Ed25519);
    let token = token.build(&biscuit_auth::KeyPair::from(&secret.unwrap())).unwrap();
    let mut bytes = vec![1];
    bytes.extend_from_slice(&key.realm().root);
    bytes.push(11);
    bytes.extend_from_slice(b"com.example");
    bytes.extend_from_slice(&token.to_vec().unwrap());
    bytes
}

/// Strings that are needed nowhere.
fn wordy() -> Vec<u8> {
    hostile_of((0..465).map(|index| format!("a(\"{index:x}\");")).collect())
}

fn check(bencher: Bencher<'_, '_>, bytes: &[u8]) {
    bencher.bench(|| Grant::from_bytes(divan::black_box(bytes)).map(|grant| grant.permit()));
}

#[divan::bench]
fn typical_grant_of_three_blocks(bencher: Bencher<'_, '_>) {
    check(bencher, typical().as_bytes());
}

#[divan::bench]
fn typical_grant_seen_before(bencher: Bencher<'_, '_>) {
    let (verifier, grant) = (GrantVerifier::new(), typical());
    let realm = grant.realm().id();
    bencher.bench(|| verifier.permit(&realm, divan::black_box(grant.as_bytes())));
}

#[divan::bench]
fn longest_grant(bencher: Bencher<'_, '_>) {
    check(bencher, longest().as_bytes());
}

#[divan::bench]
fn longest_grant_with_a_forged_signature(bencher: Bencher<'_, '_>) {
    check(bencher, &forged());
}

#[divan::bench]
fn rules_from_a_hostile_root(bencher: Bencher<'_, '_>) {
    check(bencher, &hostile());
}

#[divan::bench]
fn strings_from_a_hostile_root(bencher: Bencher<'_, '_>) {
    let bytes = wordy();
    assert!((7_000..=GRANT_BYTES_MAX).contains(&bytes.len()), "{}", bytes.len());
    check(bencher, &bytes);
}

/// A record of a mebibyte.
#[divan::bench(sample_count = 10)]
fn longest_record(bencher: Bencher<'_, '_>) {
    let id = |index: u128| (BlockId::from_bytes(index.to_be_bytes()), UnixTime::from_secs(1));
    let blocks = (0..30_000).map(id).collect();
    let list = RevocationList { blocks, ..RevocationList::default() };
    let record = Record::sign(&key(), &list).unwrap();
    assert!(record.as_bytes().len() > REVOCATIONS_BYTES_MAX / 2);
    bencher.bench(|| Record::from_bytes(divan::black_box(record.as_bytes())));
}

#[divan::bench]
fn noise(bencher: Bencher<'_, '_>) {
    check(bencher, &[1; 8_192]);
}
