//! Signatures without curves: a keyed hash that only the simulator can compute.
//!
//! Within a world nobody can forge one, because nodes never see the secret; that is all that the
//! overlay asks of a [`Notary`]. What this module does *not* do: resist anybody outside.

use std::hash::Hasher;
use std::sync::atomic::{AtomicU64, Ordering};

use macula_proto::EndpointId;
use macula_proto::overlay::Notary;
use siphasher::sip128::{Hasher128, SipHasher24};

/// Signs and checks for all nodes of a world, and counts.
#[derive(Debug)]
pub struct SimNotary {
    secret: (u64, u64),
    signed: AtomicU64,
    verified: AtomicU64,
}

impl SimNotary {
    /// The notary of the world with this seed.
    pub fn new(seed: u64) -> Self {
        let secret = (crate::dice::mix(seed ^ 0x6e6f_7461), crate::dice::mix(!seed));
        Self { secret, signed: AtomicU64::new(0), verified: AtomicU64::new(0) }
    }

    /// Signatures made and checked so far.
    pub fn counts(&self) -> (u64, u64) {
        (self.signed.load(Ordering::Relaxed), self.verified.load(Ordering::Relaxed))
    }

    fn seal(&self, author: &EndpointId, message: &[u8]) -> [u8; 64] {
        let mut hasher = SipHasher24::new_with_keys(self.secret.0, self.secret.1);
        hasher.write(author.as_bytes());
        hasher.write(message);
        let hash = hasher.finish128().as_bytes();
        let mut seal = [0; 64];
        seal.iter_mut().zip(hash.iter().cycle()).for_each(|(slot, byte)| *slot = *byte);
        seal
    }
}

impl Notary for SimNotary {
    fn sign(&self, author: &EndpointId, message: &[u8]) -> [u8; 64] {
        self.signed.fetch_add(1, Ordering::Relaxed);
        self.seal(author, message)
    }

    fn verify(&self, author: &EndpointId, message: &[u8], signature: &[u8; 64]) -> bool {
        self.verified.fetch_add(1, Ordering::Relaxed);
        self.seal(author, message) == *signature
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_of_one_author_one_message_and_one_world() {
        let (a, b) = (EndpointId::from_bytes([1; 32]), EndpointId::from_bytes([2; 32]));
        let notary = SimNotary::new(1);
        let signature = notary.sign(&a, b"m");
        assert!(notary.verify(&a, b"m", &signature));
        assert!(!notary.verify(&b, b"m", &signature));
        assert!(!notary.verify(&a, b"n", &signature));
        assert!(!SimNotary::new(2).verify(&a, b"m", &signature));
        assert_eq!(notary.counts(), (1, 3));
    }
}
