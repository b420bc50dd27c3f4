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
    /// Length of an id, bytes.
    pub const BYTES: usize = 32;
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

    /// Takes a key that came over the wire.
    pub const fn from_bytes(bytes: [u8; 20]) -> Self {
        Self(bytes)
    }

    /// The 20 bytes of the key.
    pub const fn as_bytes(&self) -> &[u8; 20] {
        &self.0
    }

    /// How far apart two keys are: their exclusive or, as a number of 160 bits.
    #[inline]
    pub const fn distance(&self, other: &Self) -> Distance {
        let (a, b) = (self.words(), other.words());
        Distance { high: a.0 ^ b.0, low: a.1 ^ b.1 }
    }

    /// This key with the bit at `index` (0 is the most significant) turned over, and the bits after
    /// it taken from `filler`: a key of the other half of the tree at that depth.
    pub fn sibling_at(&self, index: u8, filler: &Self) -> Self {
        let mut bytes = self.0;
        for (place, (byte, fill)) in bytes.iter_mut().zip(filler.0).enumerate() {
            let first_bit = place * 8;
            let keep = usize::from(index).saturating_sub(first_bit).min(8);
            let mask = if keep == 8 { 0xff } else { !(0xff_u8 >> keep) };
            *byte = (*byte & mask) | (fill & !mask);
        }
        let (place, bit) = (usize::from(index / 8), 0x80_u8 >> (index % 8));
        if let (Some(byte), Some(own)) = (bytes.get_mut(place), self.0.get(place)) {
            *byte = (*byte & !bit) | (!own & bit);
        }
        Self(bytes)
    }

    const fn words(&self) -> (u128, u32) {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t] = self.0;
        (
            u128::from_be_bytes([a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]),
            u32::from_be_bytes([q, r, s, t]),
        )
    }
}

/// The distance of two [`Key`]s in Kademlia's metric; smaller is closer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Distance {
    high: u128,
    low: u32,
}

impl Distance {
    /// Of a key to itself.
    pub const ZERO: Self = Self { high: 0, low: 0 };
    /// More than between any two keys that agree in their first bit.
    pub const MAX: Self = Self { high: u128::MAX, low: u32::MAX };

    /// How many leading bits the keys share, 0 to 160. Two keys that share `n` are in each other's
    /// bucket `n`.
    #[inline]
    pub const fn shared_bits(self) -> u8 {
        if self.high != 0 {
            self.high.leading_zeros() as u8
        } else {
            128 + self.low.leading_zeros() as u8
        }
    }

    /// The distance as a share of the whole key space, 0 to 1, for estimates.
    pub fn as_share(self) -> f64 {
        (self.high as f64) / (u128::MAX as f64)
    }

    /// The 20 bytes of the distance, most significant first.
    pub const fn to_bytes(self) -> [u8; 20] {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = self.high.to_be_bytes();
        let [q, r, s, t] = self.low.to_be_bytes();
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t]
    }

    /// Takes a distance that came over the wire.
    pub const fn from_bytes(bytes: [u8; 20]) -> Self {
        Key(bytes).distance(&Key([0; 20]))
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
    /// One question of the local application to the overlay, numbered by the driver.
    QueryId;
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

    proptest! {
        #[test]
        fn distance_is_symmetric_and_tells_keys_apart(a: [u8; 20], b: [u8; 20]) {
            let (a, b) = (Key::from_bytes(a), Key::from_bytes(b));
            prop_assert_eq!(a.distance(&b), b.distance(&a));
            prop_assert_eq!(a.distance(&b) == Distance::ZERO, a == b);
            prop_assert_eq!(Distance::from_bytes(a.distance(&b).to_bytes()), a.distance(&b));
        }

        #[test]
        fn a_sibling_key_shares_as_many_bits_as_asked(
            own: [u8; 20], fill: [u8; 20], index in 0u8..160,
        ) {
            let (own, fill) = (Key::from_bytes(own), Key::from_bytes(fill));
            prop_assert_eq!(own.sibling_at(index, &fill).distance(&own).shared_bits(), index);
        }
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
