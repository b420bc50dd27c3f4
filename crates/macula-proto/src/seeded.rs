//! Hash maps whose order depends on the node's seed, or on their keys, alone.

use std::hash::{BuildHasher, BuildHasherDefault, Hasher};

use rand_core::Rng;
use siphasher::sip::SipHasher13;

/// A hash map keyed from the node's seed: fixed in a simulation, unpredictable in production.
///
/// A constant hasher would invite flooding, the standard one would make runs differ.
#[expect(clippy::disallowed_types, reason = "this is the one place that gives it a seeded hasher")]
pub type SeededMap<K, V> = std::collections::HashMap<K, V, SeededState>;

/// The hasher factory of a [`SeededMap`].
#[derive(Clone, Copy)]
pub struct SeededState {
    keys: (u64, u64),
}

impl SeededState {
    /// Draws the keys of a new map from `rng`.
    pub fn from_rng(rng: &mut impl Rng) -> Self {
        Self { keys: (rng.next_u64(), rng.next_u64()) }
    }
}

impl std::fmt::Debug for SeededState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SeededState")
    }
}

impl BuildHasher for SeededState {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_keys(self.keys.0, self.keys.1)
    }
}

/// A hash map for keys that this node, or who drives it, counts up: no peer chooses them, so that
/// hashing need not resist anybody.
#[expect(clippy::disallowed_types, reason = "as above; this hasher has no seed at all")]
pub(crate) type CountedMap<K, V> = std::collections::HashMap<K, V, BuildHasherDefault<CountHasher>>;

/// Spreads numbers that follow each other. Only for keys that are one `u64`.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CountHasher(u64);

impl Hasher for CountHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, number: u64) {
        // An odd factor keeps low bits distinct and fills the high ones.
        self.0 = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}
