//! Hash maps whose order depends on the node's seed alone.

use std::hash::BuildHasher;

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
