//! Records of revocations.

use macula_proto::auth::{BlockId, Request, Verifier, decide};
use macula_proto::limits::REVOCATIONS_BYTES_MAX;

use super::*;
use crate::{GrantVerifier, MakeError, Record, RevocationList};

fn list() -> RevocationList {
    RevocationList {
        sequence: 5,
        epoch_min: 2,
        endpoints: [EndpointId::from_bytes([9; 32])].into(),
        blocks: [(grant().blocks()[1].id, TOMORROW)].into(),
    }
}

#[test]
fn a_record_says_what_was_signed() {
    let list = list();
    let record = Record::sign(&key(), &list).unwrap();
    assert_eq!(record.list(), &list);
    assert_eq!(Record::from_bytes(record.as_bytes()).unwrap(), record);
    assert_eq!(Record::from_text(&record.to_text()).unwrap(), record);
    let verifier = GrantVerifier::new();
    let read = verifier.revocations(&key().realm().id(), record.as_bytes()).unwrap();
    assert_eq!(read, list.revocations());
    let other = key_from(2, "com.example").realm().id();
    assert!(matches!(verifier.revocations(&other, record.as_bytes()), Err(Denial::Forged(_))));
}

#[test]
fn revoking_an_issuer_voids_its_grants() {
    let issuer = issuer();
    let grant = issuer.grant(ME, &Terms::default()).unwrap();
    let block = issuer.blocks()[0].id;
    let list = RevocationList { blocks: [(block, NEXT_YEAR)].into(), ..RevocationList::default() };
    let record = Record::sign(&key(), &list).unwrap();
    let verdict = decide(&grant.permit(), &record.list().revocations(), &ME, NOON, Request::Join);
    assert_eq!(verdict, Err(Denial::GrantRevoked { block }));
}

#[test]
fn what_expired_long_ago_is_forgotten() {
    let mut list = list();
    assert_eq!(list.prune(TOMORROW), 0, "clocks may be late");
    assert_eq!(list.prune(UnixTime(TOMORROW.0 + 24 * 3_600_000)), 1);
    assert!(list.blocks.is_empty() && !list.endpoints.is_empty());
}

#[test]
fn every_flipped_bit_is_noticed_and_blocks_cannot_be_added() {
    let record = Record::sign(&key(), &list()).unwrap();
    let mut bytes = record.as_bytes().to_vec();
    for index in 0..bytes.len() {
        for bit in 0..8 {
            bytes[index] ^= 1 << bit;
            assert!(Record::from_bytes(&bytes).is_err(), "byte {index}, bit {bit}");
            bytes[index] ^= 1 << bit;
        }
    }
    let envelope = Envelope::read(Kind::Revocations, &bytes, REVOCATIONS_BYTES_MAX).unwrap();
    let root = key().realm().root;
    let longer = crate::token::append(envelope.body, &root, Vec::new()).unwrap();
    let longer = Envelope::write(Kind::Revocations, &key().realm(), &longer);
    let why = Record::from_bytes(&longer).unwrap_err().to_string();
    assert!(why.contains("2 blocks, and 1 are allowed"), "{why}");
}

#[test]
fn a_record_has_a_limit() {
    let id = |index: u32| {
        let mut id = [0; 16];
        id[..4].copy_from_slice(&index.to_be_bytes());
        BlockId::from_bytes(id)
    };
    let with = |count: u32| RevocationList {
        blocks: (0..count).map(|index| (id(index), TOMORROW)).collect(),
        ..RevocationList::default()
    };
    assert_eq!(Record::sign(&key(), &with(20_000)).unwrap().list().blocks.len(), 20_000);
    let refused = Record::sign(&key(), &with(40_000));
    assert!(matches!(refused, Err(MakeError::RecordTooLarge(_))));
}
