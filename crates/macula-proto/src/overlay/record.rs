//! Records of the overlay's store: what they are and when one replaces another.

use std::time::Duration;

use bytes::Bytes;

use super::coordinate::Coordinate;
use crate::id::{EndpointId, Key, KeyKind, RealmId};

/// Kinds of records. Others may be stored too: whoever fetches names the kind.
pub mod kind {
    /// A provider of a procedure, at the procedure's key.
    pub const PROVIDER: u8 = 1;
    /// The retained message of a topic, at the topic's key.
    pub const RETAINED: u8 = 2;
    /// What an application stores, at a key of its choice.
    pub const USER: u8 = 3;
}

/// A signed piece of data at a key, kept by the routers closest to it until it expires.
///
/// Of one key, kind and author only the record with the highest sequence is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Where it is kept.
    pub key: Key,
    /// What it is, see [`kind`].
    pub kind: u8,
    /// Who signed it.
    pub author: EndpointId,
    /// Newer ones of the author are higher.
    pub sequence: u64,
    /// How long it lives after it was signed; on the wire and between routers: what remains of it.
    pub ttl: Duration,
    /// The lifetime that the author signed, seconds; the remaining one never exceeds it.
    pub lifetime: u32,
    /// The content; empty takes the record back.
    pub value: Bytes,
    /// By the author, over [`Record::signed_bytes`].
    pub signature: [u8; 64],
}

/// What stands before the fields of a record when it is signed.
const DOMAIN: &[u8] = b"macula record 1\0";

impl Record {
    /// The bytes that the author signs: domain, realm, key, kind, author, sequence, lifetime, value.
    pub fn signed_bytes(&self, realm: &RealmId) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(DOMAIN.len() + 32 + 20 + 1 + 32 + 12 + self.value.len());
        bytes.extend_from_slice(DOMAIN);
        bytes.extend_from_slice(realm.as_bytes());
        bytes.extend_from_slice(self.key.as_bytes());
        bytes.push(self.kind);
        bytes.extend_from_slice(self.author.as_bytes());
        bytes.extend_from_slice(&self.sequence.to_be_bytes());
        bytes.extend_from_slice(&self.lifetime.to_be_bytes());
        bytes.extend_from_slice(&self.value);
        bytes
    }
}

/// The value of a provider's record: where it is, and which procedure it offers.
pub(super) fn provider_value(at: Coordinate, procedure: &str) -> Bytes {
    let mut value = Vec::with_capacity(6 + procedure.len());
    value.extend_from_slice(&at.x.to_be_bytes());
    value.extend_from_slice(&at.y.to_be_bytes());
    value.extend_from_slice(&at.height.to_be_bytes());
    value.extend_from_slice(procedure.as_bytes());
    value.into()
}

/// Reads what [`provider_value`] wrote.
pub(super) fn read_provider(value: &[u8]) -> Option<(Coordinate, &[u8])> {
    let ([a, b, c, d, e, f], procedure) = value.split_first_chunk::<6>()?;
    let at = Coordinate {
        x: i16::from_be_bytes([*a, *b]),
        y: i16::from_be_bytes([*c, *d]),
        height: u16::from_be_bytes([*e, *f]),
    };
    Some((at, procedure))
}

/// Whether a record is at the key that its content belongs to, as far as its kind says. One that
/// was taken back has no content to ask.
pub(super) fn is_key_right(realm: &RealmId, record: &Record) -> bool {
    record.kind != kind::PROVIDER
        || record.value.is_empty()
        || read_provider(&record.value).is_some_and(|(_, procedure)| {
            Key::derive(realm, KeyKind::Procedure, procedure) == record.key
        })
}

/// Signs this endpoint's records and checks those of others. The secret key stays with whoever
/// implements it; the overlay never holds one.
pub trait Notary: Send + Sync {
    /// The Ed25519 signature of `message` by this endpoint.
    fn sign(&self, author: &EndpointId, message: &[u8]) -> [u8; 64];

    /// Whether `signature` is `author`'s over `message`.
    fn verify(&self, author: &EndpointId, message: &[u8], signature: &[u8; 64]) -> bool;
}
