//! How long to wait before dialling again.

use std::time::Duration;

/// Ceiling of the first delay.
pub const DEFAULT_BACKOFF_FIRST: Duration = Duration::from_millis(50);
/// No delay is longer than this.
pub const DEFAULT_BACKOFF_MAX: Duration = Duration::from_secs(5);

/// Delays between attempts: each lies at random between half of a ceiling and the ceiling, and the
/// ceiling doubles with every attempt up to a maximum.
///
/// The random half spreads the clients of a gateway that restarts; the other half guarantees that
/// a dead one is asked ever less often. Pure and seeded: the same seed gives the same delays.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    ceiling: Duration,
    random: u64,
}

impl Backoff {
    /// Delays from [`DEFAULT_BACKOFF_FIRST`] to [`DEFAULT_BACKOFF_MAX`].
    pub fn new(seed: u64) -> Self {
        Self::with_bounds(seed, DEFAULT_BACKOFF_FIRST, DEFAULT_BACKOFF_MAX)
    }

    /// Delays whose ceiling starts at `first` and stops growing at `max`.
    pub fn with_bounds(seed: u64, first: Duration, max: Duration) -> Self {
        let first = first.min(max);
        Self { first, max, ceiling: first, random: seed }
    }

    /// The next delay.
    pub fn next_delay(&mut self) -> Duration {
        let ceiling = self.ceiling;
        self.ceiling = (ceiling * 2).min(self.max);
        // 53 bits fit an f64 exactly.
        let share = (self.next_random() >> 11) as f64 / (1u64 << 53) as f64;
        ceiling.mul_f64(0.5 + share / 2.0)
    }

    /// Starts over: call it once a link has proved to work, not as soon as it is up.
    pub fn reset(&mut self) {
        self.ceiling = self.first;
    }

    /// SplitMix64: any seed will do, and delays need no better.
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_delay_lies_between_half_the_ceiling_and_the_ceiling(seed: u64) {
            let mut backoff = Backoff::new(seed);
            let mut ceiling = DEFAULT_BACKOFF_FIRST;
            for _ in 0..20 {
                let delay = backoff.next_delay();
                prop_assert!(delay >= ceiling / 2 && delay <= ceiling, "{delay:?} of {ceiling:?}");
                ceiling = (ceiling * 2).min(DEFAULT_BACKOFF_MAX);
            }
        }
    }

    #[test]
    fn reset_starts_over() {
        let mut backoff = Backoff::new(7);
        for _ in 0..10 {
            backoff.next_delay();
        }
        assert!(backoff.next_delay() > Duration::from_secs(2));
        backoff.reset();
        assert!(backoff.next_delay() <= DEFAULT_BACKOFF_FIRST);
    }

    #[test]
    fn one_seed_gives_one_sequence_and_two_seeds_differ() {
        let delays = |seed| {
            let mut backoff = Backoff::new(seed);
            (0..8).map(|_| backoff.next_delay()).collect::<Vec<_>>()
        };
        assert_eq!(delays(1), delays(1));
        assert_ne!(delays(1), delays(2));
    }

    #[test]
    fn a_first_delay_over_the_maximum_is_cut() {
        let second = Duration::from_secs(1);
        let mut backoff = Backoff::with_bounds(1, second * 9, second);
        assert!(backoff.next_delay() <= second);
    }
}
