//! The secret half of an endpoint's identity.

use std::fmt;

use macula_proto::id::EndpointId;
use ring::hkdf;
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{Ed25519KeyPair, KeyPair};

/// DER in front of a 32-byte seed: PKCS#8 v1 with the algorithm Ed25519 (RFC 8410 §7).
const PKCS8_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// An Ed25519 secret key: what proves that an endpoint is who its [`EndpointId`] says.
///
/// `Debug` shows the public id only.
#[derive(Clone)]
pub struct SecretKey {
    seed: [u8; 32],
    id: EndpointId,
}

/// The operating system gave no random bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the operating system gave no random bytes")]
pub struct RandomnessError;

impl SecretKey {
    /// Makes a new key from the operating system's randomness.
    ///
    /// # Errors
    /// [`RandomnessError`] when the system has none to give.
    pub fn generate() -> Result<Self, RandomnessError> {
        let mut seed = [0u8; 32];
        SystemRandom::new().fill(&mut seed).map_err(|_| RandomnessError)?;
        Ok(Self::from_seed(seed))
    }

    /// The key of a 32-byte seed, as RFC 8032 §5.1.5 derives it; every seed is valid.
    pub fn from_seed(seed: [u8; 32]) -> Self {
        let mut public = [0u8; 32];
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).expect("a seed has 32 bytes");
        public.copy_from_slice(pair.public_key().as_ref());
        Self { seed, id: EndpointId::from_bytes(public) }
    }

    /// The seed, for storing. Treat it as the secret that it is.
    pub fn seed(&self) -> &[u8; 32] {
        &self.seed
    }

    /// The public key.
    pub fn id(&self) -> EndpointId {
        self.id
    }

    /// Derives 32 secret bytes for one purpose: HKDF-SHA256 with `label` as the info.
    ///
    /// Different labels give independent secrets, none of which tells anything about the key.
    pub fn derive(&self, label: &str) -> [u8; 32] {
        let mut secret = [0u8; 32];
        hkdf::Salt::new(hkdf::HKDF_SHA256, b"macula/1 derive")
            .extract(&self.seed)
            .expand(&[label.as_bytes()], hkdf::HKDF_SHA256)
            .and_then(|okm| okm.fill(&mut secret))
            .expect("one hash length is within what HKDF gives");
        secret
    }

    /// The key as PKCS#8 DER.
    pub(crate) fn pkcs8(&self) -> Vec<u8> {
        [PKCS8_PREFIX.as_slice(), self.seed.as_slice()].concat()
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretKey").field("id", &self.id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_is_the_public_key_of_the_seed() {
        // RFC 8032 §7.1, test 1.
        let seed = [
            0x9d, 0x61, 0xb1, 0x9d, 0xef, 0xfd, 0x5a, 0x60, 0xba, 0x84, 0x4a, 0xf4, 0x92, 0xec,
            0x2c, 0xc4, 0x44, 0x49, 0xc5, 0x69, 0x7b, 0x32, 0x69, 0x19, 0x70, 0x3b, 0xac, 0x03,
            0x1c, 0xae, 0x7f, 0x60,
        ];
        let id = SecretKey::from_seed(seed).id();
        assert_eq!(id.as_bytes()[..4], [0xd7, 0x5a, 0x98, 0x01]);
        assert_eq!(id.as_bytes()[28..], [0xf7, 0x07, 0x51, 0x1a]);
    }

    #[test]
    fn derived_secrets_depend_on_key_and_label() {
        let key = SecretKey::from_seed([1; 32]);
        assert_eq!(key.derive("a"), SecretKey::from_seed([1; 32]).derive("a"));
        assert_ne!(key.derive("a"), key.derive("b"));
        assert_ne!(key.derive("a"), SecretKey::from_seed([2; 32]).derive("a"));
    }

    #[test]
    fn debug_does_not_show_the_seed() {
        let text = format!("{:?}", SecretKey::from_seed([0xab; 32]));
        assert!(text.contains("EndpointId(") && !text.contains("ab, ") && !text.contains("171"));
    }

    #[test]
    fn two_generated_keys_differ() {
        let (one, other) = (SecretKey::generate().unwrap(), SecretKey::generate().unwrap());
        assert_ne!(one.id(), other.id());
    }
}
