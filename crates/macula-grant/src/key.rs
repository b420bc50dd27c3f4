//! Root keys.

use std::fmt;

use biscuit_auth::{Algorithm, KeyPair, PrivateKey};
use macula_proto::auth::Denial;
use zeroize::Zeroizing;

use crate::envelope::{Envelope, malformed};
use crate::error::TextError;
use crate::realm::{Realm, RealmName};
use crate::text::{self, Kind};

/// An Ed25519 key that rules realms. Use it for nothing else.
pub struct RootKey(KeyPair);

impl RootKey {
    /// A new one, from the operating system's randomness.
    ///
    /// # Panics
    /// When the operating system has none.
    pub fn generate() -> Self {
        Self(KeyPair::new())
    }

    /// The one that grows from the 32 bytes of `seed`.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        let key = PrivateKey::from_bytes(seed, Algorithm::Ed25519);
        Self(KeyPair::from(&key.expect("every 32 bytes are a seed")))
    }

    /// The secret that the key grows from.
    pub fn seed(&self) -> Zeroizing<[u8; 32]> {
        let mut seed = Zeroizing::new([0; 32]);
        let bytes = self.0.private().to_bytes();
        seed.iter_mut().zip(bytes.iter()).for_each(|(slot, byte)| *slot = *byte);
        seed
    }

    /// The public key.
    pub fn public(&self) -> [u8; 32] {
        let mut public = [0; 32];
        let bytes = self.0.public().to_bytes();
        public.iter_mut().zip(bytes).for_each(|(slot, byte)| *slot = byte);
        public
    }

    pub(crate) fn pair(&self) -> &KeyPair {
        &self.0
    }
}

impl fmt::Debug for RootKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RootKey(secret)")
    }
}

/// The root key of one realm, with what its owner must not lose count of.
#[derive(Debug)]
pub struct RealmKey {
    /// The secret.
    pub root: RootKey,
    /// Of the realm.
    pub name: RealmName,
    /// What new issuer tokens carry; grows when all earlier grants are to be void.
    pub epoch: u64,
    /// Of the latest record of revocations; 0 before the first.
    pub sequence: u64,
}

impl RealmKey {
    /// A new realm called `name`, in epoch 1, without revocations.
    ///
    /// # Panics
    /// As [`RootKey::generate`].
    pub fn generate(name: RealmName) -> Self {
        Self { root: RootKey::generate(), name, epoch: 1, sequence: 0 }
    }

    /// The realm.
    pub fn realm(&self) -> Realm {
        Realm { name: self.name.clone(), root: self.root.public() }
    }

    /// As text, for a file that only its owner may read.
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut body = Zeroizing::new(Vec::with_capacity(BODY_BYTES));
        body.extend_from_slice(&*self.root.seed());
        body.extend_from_slice(&self.epoch.to_be_bytes());
        body.extend_from_slice(&self.sequence.to_be_bytes());
        let bytes = Zeroizing::new(Envelope::write(Kind::RealmKey, &self.realm(), &body));
        let comments = [
            "Root key of a Macula realm. Keep it secret and keep a copy: whoever has it owns the"
                .to_owned(),
            "realm, and nobody can replace it.".to_owned(),
            format!("realm: {}", self.realm()),
            format!("epoch: {}", self.epoch),
        ];
        Zeroizing::new(text::write(Kind::RealmKey, &comments, &bytes))
    }

    /// Reads what [`RealmKey::to_text`] wrote.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn from_text(text: &str) -> Result<Self, TextError> {
        let bytes = Zeroizing::new(text::read(Kind::RealmKey, text)?);
        Self::from_bytes(&bytes).map_err(TextError::Content)
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, Denial> {
        let envelope = Envelope::read(Kind::RealmKey, bytes, BYTES_MAX)?;
        let wrong_length = || malformed("the key has a wrong length");
        let (seed, rest) = envelope.body.split_first_chunk::<32>().ok_or_else(wrong_length)?;
        let (epoch, rest) = rest.split_first_chunk::<8>().ok_or_else(wrong_length)?;
        let sequence: &[u8; 8] = rest.try_into().map_err(|_| wrong_length())?;
        let root = RootKey::from_seed(seed);
        if root.public() != envelope.realm.root {
            return Err(malformed("the secret does not belong to the realm"));
        }
        Ok(Self {
            root,
            name: envelope.realm.name,
            epoch: u64::from_be_bytes(*epoch),
            sequence: u64::from_be_bytes(*sequence),
        })
    }
}

const BODY_BYTES: usize = 32 + 8 + 8;
/// A key in its envelope is not longer than this, bytes.
const BYTES_MAX: usize = 512;
