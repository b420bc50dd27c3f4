//! From the root to a member.

use macula_proto::auth::{Layer, Request, Revocations, Verb, decide};

use super::*;
use crate::{BLOCKS_MAX, CONTACT_BYTES_MAX, MakeError, RULES_PER_BLOCK_MAX};

fn use_at(grant: &Grant, verb: Verb, name: &str, now: UnixTime) -> Result<(), Denial> {
    let revocations = Revocations::default();
    decide(&grant.permit(), &revocations, &ME, now, Request::Use(verb, name))
}

#[test]
fn a_grant_says_what_every_block_said() {
    let grant = narrowed();
    let permit = Grant::from_bytes(grant.as_bytes()).unwrap().permit();
    assert_eq!(permit.endpoint, ME);
    assert_eq!(permit.contact, "ops@example.com");
    assert_eq!((permit.epoch, permit.not_before, permit.expires), (3, UnixTime(0), TOMORROW));
    let all = rules("publish:** subscribe:** call:**");
    let some = rules("publish:site.7.** call:**");
    assert_eq!(
        permit.layers,
        [
            Layer { allow: Some(all), deny: Vec::new() },
            Layer { allow: Some(some), deny: Vec::new() },
            Layer { allow: None, deny: rules("call:admin.**") },
        ]
    );
    assert_eq!(use_at(&grant, Verb::Publish, "site.7.t", NOON), Ok(()));
    for (verb, name) in
        [(Verb::Publish, "site.8"), (Verb::Subscribe, "site.7"), (Verb::Call, "admin.x")]
    {
        assert!(matches!(use_at(&grant, verb, name, NOON), Err(Denial::NotAllowed { .. })));
    }
    assert!(matches!(use_at(&grant, Verb::Call, "x", TOMORROW), Err(Denial::Expired { .. })));
}

#[test]
fn each_block_has_its_own_name_for_revocation() {
    let (first, second) = (issuer(), issuer());
    let (grant, other) =
        (first.grant(ME, &Terms::default()).unwrap(), first.grant(ME, &Terms::default()).unwrap());
    assert_ne!(first.blocks()[0].id, second.blocks()[0].id);
    assert_eq!(grant.blocks()[0].id, first.blocks()[0].id);
    assert_ne!(grant.blocks()[1].id, other.blocks()[1].id);
    let ids: Vec<_> = grant.blocks().iter().map(|block| block.id).collect();
    assert_eq!(grant.permit().blocks, ids);
}

#[test]
fn nobody_widens_what_an_issuer_gave() {
    let wide = terms("publish:** relay:** store:**", NEXT_YEAR);
    let grant = grant().attenuate(&wide).unwrap();
    assert_eq!(grant.expires(), TOMORROW);
    for (verb, name) in [(Verb::Relay, "x"), (Verb::Store, "x"), (Verb::Publish, "site.8")] {
        assert!(use_at(&grant, verb, name, NOON).is_err());
    }
    assert_eq!(use_at(&grant, Verb::Publish, "site.7.t", NOON), Ok(()));

    let sub_issuer = issuer().attenuate(&terms("call:a.*", TOMORROW)).unwrap();
    let grant = sub_issuer.grant(ME, &terms("call:**", NEXT_YEAR)).unwrap();
    assert_eq!(grant.expires(), TOMORROW);
    assert_eq!(use_at(&grant, Verb::Call, "a.b", NOON), Ok(()));
    assert!(use_at(&grant, Verb::Call, "b", NOON).is_err());
}

#[test]
fn allowing_nothing_is_not_the_same_as_not_narrowing() {
    let nothing = Terms { allow: Some(Vec::new()), ..Terms::default() };
    let grant = issuer().grant(ME, &nothing).unwrap();
    assert_eq!(grant.permit().layers[1].allow, Some(Vec::new()));
    assert!(use_at(&grant, Verb::Call, "x", NOON).is_err());
    let same = issuer().grant(ME, &Terms::default()).unwrap();
    assert_eq!(same.permit().layers[1].allow, None);
    assert_eq!(use_at(&same, Verb::Call, "x", NOON), Ok(()));
}

#[test]
fn times_and_contact_come_from_the_narrowest() {
    let later = UnixTime(NOON.0 + 1);
    let terms = Terms {
        valid_from: Some(later),
        expires: Some(UnixTime(TOMORROW.0 + 999)),
        contact: Some("me".to_owned()),
        ..Terms::default()
    };
    let permit = issuer().grant(ME, &terms).unwrap().permit();
    assert_eq!(permit.not_before, UnixTime(NOON.0 + 1_000), "rounded up");
    assert_eq!(permit.expires, TOMORROW, "rounded down");
    assert_eq!(permit.contact, "me");
}

#[test]
fn the_root_may_grant_by_itself() {
    let grant = Grant::new(&key(), ME, &terms("call:**", TOMORROW)).unwrap();
    assert_eq!(grant.blocks().len(), 1);
    assert_eq!(use_at(&grant, Verb::Call, "x", NOON), Ok(()));
}

#[test]
fn what_would_be_refused_is_not_made() {
    let good = terms("call:**", TOMORROW);
    let without = |change: fn(&mut Terms)| {
        let mut terms = good.clone();
        change(&mut terms);
        IssuerToken::new(&key(), &terms).unwrap_err()
    };
    assert_eq!(without(|terms| terms.allow = None), MakeError::NoAllow);
    assert_eq!(without(|terms| terms.expires = None), MakeError::NoExpiry);
    assert_eq!(without(|terms| terms.valid_from = Some(TOMORROW)), MakeError::NeverValid);
    for contact in ["", "a\nb", "a\u{202e}b", &"x".repeat(CONTACT_BYTES_MAX + 1)] {
        let terms = Terms { contact: Some(contact.to_owned()), ..good.clone() };
        assert_eq!(IssuerToken::new(&key(), &terms), Err(MakeError::Contact), "{contact:?}");
    }
    let rule = rules("call:a").remove(0);
    let many = Terms { allow: Some(vec![rule; RULES_PER_BLOCK_MAX + 1]), ..good.clone() };
    assert_eq!(IssuerToken::new(&key(), &many), Err(MakeError::TooManyRules(257)));
    let long = (0..200).map(|index| format!("call:{}.{index}", "x".repeat(100)));
    let large = terms(&long.collect::<Vec<_>>().join(" "), TOMORROW);
    assert!(matches!(IssuerToken::new(&key(), &large), Err(MakeError::TooLarge(_))));
}

#[test]
fn a_chain_has_an_end() {
    let mut issuer = issuer();
    for _ in 2..BLOCKS_MAX {
        issuer = issuer.attenuate(&Terms::default()).unwrap();
    }
    let grant = issuer.grant(ME, &Terms::default()).unwrap();
    assert_eq!(grant.blocks().len(), BLOCKS_MAX);
    assert_eq!(use_at(&grant, Verb::Call, "x", NOON), Ok(()));
    assert_eq!(grant.attenuate(&Terms::default()), Err(MakeError::TooManyBlocks));
}

#[test]
fn the_most_rules_fit() {
    let allow: Vec<String> = (0..RULES_PER_BLOCK_MAX).map(|i| format!("call:{i}")).collect();
    let grant = Grant::new(&key(), ME, &terms(&allow.join(" "), TOMORROW)).unwrap();
    assert_eq!(grant.permit().layers[0].allow.as_ref().unwrap().len(), RULES_PER_BLOCK_MAX);
}

#[test]
fn secrets_are_not_shown() {
    let (key, issuer) = (key(), issuer());
    let seed = "1, 1, 1, 1";
    assert!(!format!("{key:?}").contains(seed), "{key:?}");
    assert!(!format!("{:?}", key.root).contains("01"), "{:?}", key.root);
    assert!(format!("{issuer:?}").contains("com.example"));
    assert!(!format!("{issuer:?}").contains("bytes"), "{issuer:?}");
}
