//! How nodes check what peers show.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use macula_proto::RealmId;
use macula_proto::auth::{Denial, Permit, Revocations, Verifier};
use macula_proto::limits::{GRANT_BYTES_MAX, REVOCATIONS_BYTES_MAX};
use sha2::{Digest, Sha256};

use crate::chain::Chain;
use crate::envelope::{Envelope, malformed};
use crate::grant::Grant;
use crate::record::Record;
use crate::text::Kind;

/// Grants that a [`GrantVerifier`] remembers.
pub const CACHED_GRANTS_MAX: usize = 4_096;
/// Bytes of the grants that it remembers, together.
pub const CACHED_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Checks grants and records by their signatures. Remembers grants that it found good, so that a
/// peer that comes back costs a hash.
#[derive(Default)]
pub struct GrantVerifier {
    seen: Mutex<Seen>,
}

impl GrantVerifier {
    /// One that has seen nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Grants remembered now.
    pub fn cached_grants(&self) -> usize {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.new.len() + seen.old.len()
    }
}

impl Verifier for GrantVerifier {
    fn permit(&self, realm: &RealmId, grant: &[u8]) -> Result<Permit, Denial> {
        if grant.len() > GRANT_BYTES_MAX {
            let length = grant.len();
            return Err(malformed(format!("{length} bytes, and {GRANT_BYTES_MAX} are allowed")));
        }
        let digest = Sha256::new().chain_update(realm.as_bytes()).chain_update(grant);
        let digest: [u8; 32] = digest.finalize().into();
        let seen = || self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(permit) = seen().find(&digest) {
            return Ok(permit);
        }
        let chain = Chain::read(Kind::Grant, grant, Some(realm))?;
        let permit = Grant::from_chain(chain)?.permit();
        seen().insert(digest, permit.clone(), grant.len());
        Ok(permit)
    }

    fn realm_of(&self, signed: &[u8]) -> Result<RealmId, Denial> {
        let kinds = [(Kind::Grant, GRANT_BYTES_MAX), (Kind::Revocations, REVOCATIONS_BYTES_MAX)];
        let kind = kinds.into_iter().find(|(kind, _)| signed.first() == Some(&(*kind as u8)));
        let (kind, bytes_max) = kind.ok_or_else(|| malformed("neither a grant nor a record"))?;
        Envelope::read(kind, signed, bytes_max).map(|envelope| envelope.realm.id())
    }

    fn revocations(&self, realm: &RealmId, record: &[u8]) -> Result<Revocations, Denial> {
        Record::read(record, Some(realm)).map(|record| record.list().revocations())
    }
}

impl fmt::Debug for GrantVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrantVerifier").field("cached_grants", &self.cached_grants()).finish()
    }
}

/// Two generations: when the new one is full it becomes the old one, which is forgotten.
#[derive(Default)]
struct Seen {
    new: BTreeMap<[u8; 32], (Permit, usize)>,
    new_bytes: usize,
    old: BTreeMap<[u8; 32], (Permit, usize)>,
}

impl Seen {
    fn find(&mut self, digest: &[u8; 32]) -> Option<Permit> {
        if let Some((permit, _)) = self.new.get(digest) {
            return Some(permit.clone());
        }
        let (permit, bytes) = self.old.remove(digest)?;
        self.insert(*digest, permit.clone(), bytes);
        Some(permit)
    }

    fn insert(&mut self, digest: [u8; 32], permit: Permit, bytes: usize) {
        let is_full = self.new.len() >= CACHED_GRANTS_MAX / 2
            || self.new_bytes + bytes > CACHED_BYTES_MAX / 2;
        if is_full {
            self.old = std::mem::take(&mut self.new);
            self.new_bytes = 0;
        }
        if self.new.insert(digest, (permit, bytes)).is_none() {
            self.new_bytes += bytes;
        }
    }
}
