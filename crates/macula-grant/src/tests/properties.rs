//! Whatever is put in comes out; whatever is appended does not widen; nothing panics.

use macula_proto::auth::{Layer, Request, Revocations, Verb, Verifier, decide};
use macula_proto::limits::GRANT_BYTES_MAX;
use proptest::prelude::*;

use super::*;
use crate::{GrantVerifier, Record};

const PATTERN: &str = "[ab*](\\.[ab*]){0,2}(\\.\\*\\*)?";

fn any_rules() -> impl Strategy<Value = Vec<Rule>> {
    let rule = (prop::sample::select(&Verb::ALL[..]), PATTERN)
        .prop_map(|(verb, pattern)| Rule { verb, pattern: Pattern::parse(&pattern).unwrap() });
    prop::collection::vec(rule, 0..4)
}

fn any_terms() -> impl Strategy<Value = Terms> {
    let times = (prop::option::of(0..1_000u64), prop::option::of(1_000..2_000u64));
    let contact = prop::option::of("[a-zA-Z\"();,\\\\ é]{1,20}");
    (prop::option::of(any_rules()), any_rules(), times, contact).prop_map(
        |(allow, deny, (from, expires), contact)| Terms {
            allow,
            deny,
            valid_from: from.map(UnixTime::from_secs),
            expires: expires.map(UnixTime::from_secs),
            contact,
        },
    )
}

fn first_terms() -> impl Strategy<Value = Terms> {
    any_terms().prop_map(|terms| Terms {
        allow: Some(terms.allow.unwrap_or_default()),
        expires: Some(terms.expires.unwrap_or(UnixTime::from_secs(1_500))),
        ..terms
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_put_in_comes_out(
        first in first_terms(),
        further in prop::collection::vec(any_terms(), 0..4),
        bind_at in 0usize..4,
        epoch in 0..=i64::MAX as u64,
    ) {
        let key = RealmKey { epoch, ..key() };
        let bind_at = bind_at.min(further.len());
        let mut issuer = IssuerToken::new(&key, &first).unwrap();
        for terms in further.iter().take(bind_at) {
            issuer = issuer.attenuate(terms).unwrap();
        }
        let mut grant = issuer.grant(ME, &Terms::default()).unwrap();
        for terms in further.iter().skip(bind_at) {
            grant = grant.attenuate(terms).unwrap();
        }
        let verifier = GrantVerifier::new();
        let read = verifier.permit(&key.realm().id(), grant.as_bytes()).unwrap();
        prop_assert_eq!(&verifier.permit(&key.realm().id(), grant.as_bytes()).unwrap(), &read);
        prop_assert_eq!(&Grant::from_text(&grant.to_text()).unwrap(), &grant);
        prop_assert_eq!(&grant.permit(), &read);

        let mut all: Vec<Terms> = std::iter::once(first).chain(further).collect();
        all.insert(1 + bind_at, Terms::default());
        let layers: Vec<Layer> = all.iter().map(Terms::layer).collect();
        prop_assert_eq!(read.layers, layers);
        prop_assert_eq!(read.blocks.len(), all.len());
        prop_assert_eq!(read.epoch, epoch);
        prop_assert_eq!(Some(read.expires), all.iter().filter_map(|terms| terms.expires).min());
        let from = all.iter().filter_map(|terms| terms.valid_from).max();
        prop_assert_eq!(read.not_before, from.unwrap_or_default());
        let contact = all.iter().rev().find_map(|terms| terms.contact.clone());
        prop_assert_eq!(read.contact, contact.unwrap_or_default());
    }

    #[test]
    fn appending_never_widens(
        first in first_terms(),
        second in any_terms(),
        name in "[ab](\\.[ab]){0,2}",
        pattern in PATTERN,
        now in 0..2_200u64,
    ) {
        let before = Grant::new(&key(), ME, &first).unwrap();
        let after = before.attenuate(&second).unwrap();
        let (before, after) = (before.permit(), after.permit());
        let (now, none) = (UnixTime::from_secs(now), Revocations::default());
        let pattern = Pattern::parse(&pattern).unwrap();
        for verb in Verb::ALL {
            for request in [Request::Join, Request::Use(verb, &name), Request::Cover(verb, &pattern)] {
                let before = decide(&before, &none, &ME, now, request);
                let after = decide(&after, &none, &ME, now, request);
                prop_assert!(after.is_err() || before.is_ok());
            }
        }
    }
}

proptest! {
    #[test]
    fn random_bytes_are_refused(kind in 0u8..6, bytes: Vec<u8>) {
        let bytes = [&[kind], &*bytes].concat();
        prop_assert!(Grant::from_bytes(&bytes).is_err());
        prop_assert!(Record::from_bytes(&bytes).is_err());
    }

    #[test]
    fn random_tokens_are_refused(bytes: Vec<u8>) {
        let bytes = Envelope::write(Kind::Grant, &key().realm(), &bytes);
        prop_assert!(Grant::from_bytes(&bytes).is_err());
    }

    #[test]
    fn damaged_grants_are_refused(
        at in any::<prop::sample::Index>(),
        cut in 0usize..20,
        put in prop::collection::vec(any::<u8>(), 0..20),
    ) {
        let grant = narrowed();
        let mut bytes = grant.as_bytes().to_vec();
        let at = at.index(bytes.len());
        let end = (at + cut).min(bytes.len());
        bytes.splice(at..end, put);
        prop_assert!(bytes == grant.as_bytes() || Grant::from_bytes(&bytes).is_err());
    }

    /// What a root signs is under its control only: the reader still must not panic.
    #[test]
    fn signed_nonsense_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        use biscuit_auth::format::schema;
        use prost::Message;
        let Ok(content) = schema::Block::decode(&*bytes) else { return Ok(()) };
        let content = content.encode_to_vec();
        let next = biscuit_auth::KeyPair::new();
        let mut payload = content.clone();
        payload.extend_from_slice(&0i32.to_le_bytes());
        payload.extend_from_slice(&next.public().to_bytes());
        let signature = key().root.pair().sign(&payload).unwrap().to_bytes().to_vec();
        let next_key = schema::PublicKey { algorithm: 0, key: next.public().to_bytes() };
        let container = schema::Biscuit {
            root_key_id: None,
            authority: schema::SignedBlock {
                block: content,
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
        let bytes = Envelope::write(Kind::Grant, &key().realm(), &container.encode_to_vec());
        prop_assert!(bytes.len() <= GRANT_BYTES_MAX);
        prop_assert!(matches!(Grant::from_bytes(&bytes), Err(Denial::Malformed(_))));
    }
}
