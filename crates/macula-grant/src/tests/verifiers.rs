//! What verifiers remember.

use macula_proto::auth::Verifier;

use super::*;
use crate::{CACHED_GRANTS_MAX, GrantVerifier, Record, RevocationList};

#[test]
fn good_grants_are_remembered_and_bad_ones_are_not() {
    let verifier = GrantVerifier::new();
    let (grant, realm) = (grant(), key().realm().id());
    let mut bad = grant.as_bytes().to_vec();
    *bad.last_mut().unwrap() ^= 1;
    assert!(verifier.permit(&realm, &bad).is_err());
    assert_eq!(verifier.cached_grants(), 0);
    for _ in 0..2 {
        assert_eq!(verifier.permit(&realm, grant.as_bytes()), Ok(grant.permit()));
        assert_eq!(verifier.cached_grants(), 1);
    }
    // for this realm only
    let other = key_from(2, "com.example").realm().id();
    assert!(verifier.permit(&other, grant.as_bytes()).is_err());
}

#[test]
fn the_realm_that_something_claims_is_read_from_its_head() {
    let (verifier, realm) = (GrantVerifier::new(), key().realm().id());
    let record = Record::sign(&key(), &RevocationList::default()).unwrap();
    assert_eq!(verifier.realm_of(grant().as_bytes()), Ok(realm));
    assert_eq!(verifier.realm_of(record.as_bytes()), Ok(realm));
    for wrong in [&b""[..], b"\x03", b"\x01\x02", &record.as_bytes()[..40]] {
        assert!(verifier.realm_of(wrong).is_err());
    }
}

#[test]
fn what_is_remembered_has_a_limit() {
    let verifier = GrantVerifier::new();
    let realm = key().realm().id();
    let keep = grant();
    verifier.permit(&realm, keep.as_bytes()).unwrap();
    for index in 0..2 * CACHED_GRANTS_MAX as u32 {
        let mut id = [0; 32];
        id[..4].copy_from_slice(&index.to_be_bytes());
        let terms = terms("call:**", TOMORROW);
        let grant = Grant::new(&key(), EndpointId::from_bytes(id), &terms).unwrap();
        verifier.permit(&realm, grant.as_bytes()).unwrap();
        assert!(verifier.cached_grants() <= CACHED_GRANTS_MAX);
    }
    assert!(verifier.cached_grants() >= CACHED_GRANTS_MAX / 2);
    assert_eq!(verifier.permit(&realm, keep.as_bytes()), Ok(keep.permit()));
}
