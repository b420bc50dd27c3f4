//! Who may do what in a guarded realm: permits, revocations, and the one function that decides.
//!
//! A *grant* is signed bytes that a member shows. A [`Verifier`] (crate `macula-grant`) checks its
//! signatures and reads it into a [`Permit`]; from there on everything is plain data, and
//! [`decide`] is the only judge, at the handshake and at every use. Nothing here does
//! cryptography.
//!
//! A permit consists of [`Layer`]s, one for each signed block of the grant: what the root gave an
//! issuer, what that one passed on, and so on. A use is allowed if *every* layer allows it and none
//! denies it, so that no layer can widen what an earlier one left. Spec: docs/protocol §7.

mod denial;
mod permit;

use std::collections::BTreeSet;
use std::fmt;

pub use denial::Denial;
pub use permit::{Layer, Permit, Rule, Verb};

use crate::id::{EndpointId, RealmId};
use crate::pubsub::Pattern;

/// A moment by the calendar, in milliseconds since 1970 (UTC).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixTime(pub u64);

impl UnixTime {
    /// From whole seconds since 1970.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(seconds.saturating_mul(1_000))
    }

    /// Whole seconds since 1970.
    pub const fn as_secs(self) -> u64 {
        self.0 / 1_000
    }
}

/// Names one signed block of a grant, and with it every grant that was derived from it: the first
/// 16 bytes of the SHA-256 of the block's signature.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId([u8; 16]);

impl BlockId {
    /// Takes the 16 bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// Reads 32 hexadecimal digits, as [`BlockId`] prints itself.
    pub fn from_hex(text: &str) -> Option<Self> {
        if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        u128::from_str_radix(text, 16).ok().map(|number| Self(number.to_be_bytes()))
    }
}

impl fmt::Display for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockId({self})")
    }
}

/// What the root of a guarded realm took back; replaced as a whole by one with a higher sequence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revocations {
    /// Grows with every change; an older one than the known is ignored.
    pub sequence: u64,
    /// Grants of earlier epochs are void.
    pub epoch_min: u64,
    /// Endpoints that no grant helps.
    pub endpoints: BTreeSet<EndpointId>,
    /// Blocks that void every grant that contains them.
    pub blocks: BTreeSet<BlockId>,
}

/// Checks signatures and reads what was signed; keeps the core free of cryptography.
///
/// Called by a router for whatever peers send, so it must never panic, and bounds its work by the
/// size of its input, at most [`GRANT_BYTES_MAX`](crate::limits::GRANT_BYTES_MAX) for a grant.
pub trait Verifier: fmt::Debug + Send + Sync {
    /// Reads a grant of `realm`.
    ///
    /// # Errors
    /// [`Denial::Malformed`] or [`Denial::Forged`] with what is wrong. Time, endpoint and
    /// revocations are not looked at: [`decide`] does that.
    fn permit(&self, realm: &RealmId, grant: &[u8]) -> Result<Permit, Denial>;

    /// The realm that a grant or a record claims to belong to; its signature is not looked at.
    ///
    /// # Errors
    /// [`Denial::Malformed`].
    fn realm_of(&self, signed: &[u8]) -> Result<RealmId, Denial>;

    /// Reads a record of revocations of `realm`, signed by the realm's root key.
    ///
    /// # Errors
    /// As [`Verifier::permit`].
    fn revocations(&self, realm: &RealmId, record: &[u8]) -> Result<Revocations, Denial>;
}

/// What somebody wants to do.
#[derive(Clone, Copy, Debug)]
pub enum Request<'a> {
    /// Be a member.
    Join,
    /// Use a topic or a procedure, given by its full name.
    Use(Verb, &'a str),
    /// Ask for everything that matches a pattern: the permit must cover all of it, apart from what
    /// it denies, which is left out at delivery.
    Cover(Verb, &'a Pattern),
}

/// Decides whether `peer`, who shows `permit`, may do what it asks for at the moment `now`.
///
/// Deny wins. Names are matched as topics are (docs/protocol §5.1).
///
/// # Errors
/// The first reason found, revocations first.
pub fn decide(
    permit: &Permit,
    revocations: &Revocations,
    peer: &EndpointId,
    now: UnixTime,
    request: Request<'_>,
) -> Result<(), Denial> {
    if permit.endpoint != *peer {
        return Err(Denial::OtherEndpoint { bound: permit.endpoint });
    }
    if revocations.endpoints.contains(peer) {
        return Err(Denial::EndpointRevoked);
    }
    if let Some(block) = permit.blocks.iter().find(|block| revocations.blocks.contains(block)) {
        return Err(Denial::GrantRevoked { block: *block });
    }
    if permit.epoch < revocations.epoch_min {
        return Err(Denial::OldEpoch { epoch: permit.epoch, epoch_min: revocations.epoch_min });
    }
    permit.check_time(now)?;
    match request {
        Request::Join => Ok(()),
        Request::Use(verb, name) => permit.check_use(verb, name),
        Request::Cover(verb, pattern) => permit.check_cover(verb, pattern),
    }
}

#[cfg(test)]
mod tests;
