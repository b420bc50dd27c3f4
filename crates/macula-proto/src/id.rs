//! Identifiers: endpoints, realms, overlay keys, links.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};

/// Alphabet of z-base-32: lower case, no characters that are easily confused.
const ALPHABET: &[u8; 32] = b"ybndrfg8ejkmcpqxot1uwisza345h769";

/// The Ed25519 public key of an endpoint: its identity on the wire and in TLS.
///
/// Printed in z-base-32 (52 lower-case characters).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointId([u8; 32]);

impl EndpointId {
    /// Length of an id in text form, characters.
    pub const TEXT_LEN: usize = 52;

    /// Takes the 32 bytes of an Ed25519 public key; whether it is a valid point is TLS's business.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes of the public key.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first ten characters, for logs and tables.
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(10);
        text
    }
}

impl fmt::Display for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut bits, mut held) = (0u32, 0u32);
        let mut text = String::with_capacity(Self::TEXT_LEN);
        for byte in self.0 {
            bits = (bits << 8) | u32::from(byte);
            held += 8;
            while held >= 5 {
                held -= 5;
                text.push(char::from(ALPHABET[(bits >> held) as usize & 31]));
            }
        }
        if held > 0 {
            text.push(char::from(ALPHABET[(bits << (5 - held)) as usize & 31]));
        }
        f.write_str(&text)
    }
}

impl fmt::Debug for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EndpointId({})", self.short())
    }
}

/// A text is not an [`EndpointId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseIdError {
    /// The text does not have 52 characters.
    #[error("an endpoint id has 52 characters, this has {0}")]
    Length(usize),
    /// A character is outside the z-base-32 alphabet.
    #[error("character {0} is not part of an endpoint id")]
    Character(usize),
    /// The last character carries bits beyond the 256 of the key.
    #[error("the endpoint id has bits beyond its end")]
    Trailing,
}

impl FromStr for EndpointId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        if text.len() != Self::TEXT_LEN {
            return Err(ParseIdError::Length(text.chars().count()));
        }
        let mut bytes = [0u8; 32];
        let (mut bits, mut held, mut filled) = (0u32, 0u32, 0usize);
        for (index, character) in text.bytes().enumerate() {
            let value = ALPHABET
                .iter()
                .position(|known| *known == character)
                .ok_or(ParseIdError::Character(index + 1))?;
            bits = (bits << 5) | value as u32;
            held += 5;
            if held >= 8 {
                held -= 8;
                if let Some(slot) = bytes.get_mut(filled) {
                    *slot = (bits >> held) as u8;
                }
                filled += 1;
            }
        }
        if bits & ((1 << held) - 1) != 0 {
            return Err(ParseIdError::Trailing);
        }
        Ok(Self(bytes))
    }
}

/// The tenant. An open realm's id is made of its name, a guarded realm's of its root key and name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RealmId([u8; 32]);

/// How the id of a guarded realm ends.
const GUARDED_MARK: [u8; 4] = *b"grdd";
/// What is hashed before the root key and the name of a guarded realm.
const GUARDED_DOMAIN: &[u8] = b"macula guarded realm\0";

impl RealmId {
    /// The id of the guarded realm that `root` (an Ed25519 public key) rules under `name`: whoever
    /// shows root and name proves that they belong to the id, and no open realm has such an id
    /// that anybody could join.
    pub fn guarded(root: &[u8; 32], name: &str) -> Self {
        let digest = Sha256::new()
            .chain_update(GUARDED_DOMAIN)
            .chain_update(root)
            .chain_update(name.as_bytes())
            .finalize();
        let mut id: [u8; 32] = digest.into();
        let [.., a, b, c, d] = &mut id;
        [*a, *b, *c, *d] = GUARDED_MARK;
        Self(id)
    }

    /// Whether members must show a grant.
    pub fn is_guarded(&self) -> bool {
        self.0.ends_with(&GUARDED_MARK)
    }

    /// The id of the open realm called `name` (reverse DNS, for example `com.example.energy`).
    pub fn of_name(name: &str) -> Self {
        Self(Sha256::digest(name.as_bytes()).into())
    }

    /// Takes an id that came over the wire.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes of the id.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The short form that frames carry.
    pub fn tag(&self) -> RealmTag {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        RealmTag(u64::from_be_bytes([a, b, c, d, e, f, g, h]))
    }
}

impl fmt::Debug for RealmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RealmId({:016x})", self.tag().0)
    }
}

/// The first 8 bytes of a [`RealmId`], big-endian: names a realm inside a link's frames.
///
/// Two realms with one tag on one link are refused in the handshake (docs/protocol §3).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RealmTag(pub u64);

impl RealmTag {
    /// The scope of the endpoint itself: only built-in procedures live there.
    pub const ENDPOINT: Self = Self(0);
}

impl fmt::Debug for RealmTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RealmTag({:016x})", self.0)
    }
}

/// What a [`Key`] names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum KeyKind {
    /// A node; the value is its public key.
    Node = 1,
    /// A topic.
    Topic = 2,
    /// A topic prefix, for wildcard subscriptions.
    TopicPrefix = 3,
    /// A procedure.
    Procedure = 4,
    /// Any other record.
    Record = 5,
}

/// A 160-bit key of the overlay: the first 20 bytes of SHA-256(`RealmId` ‖ kind ‖ value).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key([u8; 20]);

impl Key {
    /// Derives the key of `value` in `realm`.
    pub fn derive(realm: &RealmId, kind: KeyKind, value: &[u8]) -> Self {
        let digest = Sha256::new()
            .chain_update(realm.as_bytes())
            .chain_update([kind as u8])
            .chain_update(value)
            .finalize();
        let mut key = [0u8; 20];
        for (slot, byte) in key.iter_mut().zip(digest) {
            *slot = byte;
        }
        Self(key)
    }

    /// The 20 bytes of the key.
    pub const fn as_bytes(&self) -> &[u8; 20] {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({self})")
    }
}

macro_rules! local_ids {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);
    )*};
}

local_ids! {
    /// One link of this endpoint, numbered by the driver; never reused within a run.
    LinkId;
    /// One subscription of the local application, numbered by the driver; below 2^32.
    SubscriptionId;
    /// One procedure served by the local application, numbered by the driver; below 2^32.
    RegistrationId;
    /// One call made by the local application, numbered by the driver.
    CallId;
    /// One request that a local handler works on, numbered by the node.
    RequestId;
    /// One QUIC stream of a streaming call, unique within a link; even when this side opened it.
    StreamId;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn endpoint_id_text_round_trips(bytes: [u8; 32]) {
            let id = EndpointId::from_bytes(bytes);
            prop_assert_eq!(id.to_string().len(), EndpointId::TEXT_LEN);
            prop_assert_eq!(id.to_string().parse::<EndpointId>().unwrap(), id);
        }

        #[test]
        fn parsing_any_text_never_panics(text in ".{0,60}") {
            if let Ok(id) = text.parse::<EndpointId>() {
                prop_assert_eq!(id.to_string(), text);
            }
        }
    }

    #[test]
    fn realm_id_is_the_hash_of_the_name() {
        // printf com.example.energy | sha256sum
        assert_eq!(RealmId::of_name("").tag().0, 0xe3b0_c442_98fc_1c14);
        assert_ne!(RealmId::of_name("a"), RealmId::of_name("b"));
        assert!(!RealmId::of_name("a").is_guarded());
    }

    #[test]
    fn a_guarded_realm_is_made_of_root_and_name() {
        let id = RealmId::guarded(&[7; 32], "a");
        assert!(id.is_guarded());
        assert_eq!(id, RealmId::guarded(&[7; 32], "a"));
        assert_ne!(id, RealmId::guarded(&[7; 32], "b"));
        assert_ne!(id, RealmId::guarded(&[8; 32], "a"));
        // (printf 'macula guarded realm\0'; head -c 32 /dev/zero | tr '\0' '\7'; printf a) | sha256sum
        assert_eq!(id.tag().0, 0xbdac_4b1a_12f4_b257);
    }

    #[test]
    fn keys_of_different_kinds_differ() {
        let realm = RealmId::of_name("r");
        let keys: Vec<Key> = [KeyKind::Node, KeyKind::Topic, KeyKind::Procedure]
            .iter()
            .map(|kind| Key::derive(&realm, *kind, b"x"))
            .collect();
        assert!(keys[0] != keys[1] && keys[1] != keys[2] && keys[0] != keys[2]);
    }
}
