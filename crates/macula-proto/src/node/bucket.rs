//! Rates: a bucket that fills by the second and is emptied by use.

use std::time::Duration;

use crate::time::Time;

/// A token bucket. It begins full.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    /// What is missing to full, in millionths of a token.
    spent: u64,
    at: Time,
}

/// How fast a bucket fills and how much it holds, in tokens.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rate {
    pub(super) per_second: u64,
    pub(super) burst: u64,
}

const MICRO: u64 = 1_000_000;

impl Bucket {
    pub(super) const fn new(now: Time) -> Self {
        Self { spent: 0, at: now }
    }

    /// Takes `tokens` if there are as many. A larger amount than the bucket can hold is taken when
    /// it is full.
    pub(super) fn take(&mut self, now: Time, tokens: u64, rate: Rate) -> bool {
        self.fill(now, rate);
        let room = rate.burst.saturating_mul(MICRO).saturating_sub(self.spent);
        let wanted = tokens.min(rate.burst).saturating_mul(MICRO);
        if wanted > room {
            return false;
        }
        self.spent += wanted;
        true
    }

    /// Takes all of `tokens` even if they are not there, and says whether they were: what is missing
    /// must be waited for.
    pub(super) fn spend(&mut self, now: Time, tokens: u64, rate: Rate) -> bool {
        self.fill(now, rate);
        self.spent = self.spent.saturating_add(tokens.saturating_mul(MICRO));
        self.spent <= rate.burst.saturating_mul(MICRO)
    }

    /// How long until `tokens` can be taken.
    pub(super) fn wait(&mut self, now: Time, tokens: u64, rate: Rate) -> Duration {
        self.fill(now, rate);
        let wanted = self.spent.saturating_add(tokens.min(rate.burst).saturating_mul(MICRO));
        let missing = wanted.saturating_sub(rate.burst.saturating_mul(MICRO));
        Duration::from_micros(missing.div_ceil(rate.per_second.max(1)))
    }

    fn fill(&mut self, now: Time, rate: Rate) {
        let micros = u64::try_from((now - self.at).as_micros()).unwrap_or(u64::MAX);
        self.spent = self.spent.saturating_sub(micros.saturating_mul(rate.per_second));
        self.at = self.at.max(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { per_second: 10, burst: 20 };

    fn at(millis: u64) -> Time {
        Time::from_micros(millis * 1_000)
    }

    #[test]
    fn a_bucket_begins_full_and_fills_by_the_second() {
        let mut bucket = Bucket::new(at(0));
        assert!(bucket.take(at(0), 20, RATE));
        assert!(!bucket.take(at(99), 1, RATE));
        assert_eq!(bucket.wait(at(99), 1, RATE), Duration::from_millis(1));
        assert!(bucket.take(at(100), 1, RATE));
        assert!(!bucket.take(at(1_000), 10, RATE));
        assert!(bucket.take(at(60_000), 20, RATE));
        assert!(!bucket.take(at(60_000), 1, RATE));
    }

    #[test]
    fn what_is_owed_must_be_waited_for() {
        let mut bucket = Bucket::new(at(0));
        assert!(!bucket.spend(at(0), 50, RATE), "all of it counts, though it never held so much");
        assert_eq!(bucket.wait(at(0), 1, RATE), Duration::from_millis(3_100));
        assert!(!bucket.take(at(3_099), 1, RATE));
        assert!(bucket.take(at(3_100), 1, RATE));
        assert!(bucket.spend(at(9_000), 20, RATE));
    }

    #[test]
    fn time_that_runs_backwards_gives_nothing() {
        let mut bucket = Bucket::new(at(1_000));
        assert!(bucket.take(at(1_000), 20, RATE));
        assert!(!bucket.take(at(0), 1, RATE));
        assert!(!bucket.take(at(1_050), 1, RATE));
        assert!(bucket.take(at(1_100), 1, RATE));
    }

    #[test]
    fn more_than_it_holds_is_taken_when_it_is_full() {
        let mut bucket = Bucket::new(at(0));
        assert!(bucket.take(at(0), u64::MAX, RATE));
        assert!(!bucket.take(at(1_999), u64::MAX, RATE));
        assert_eq!(bucket.wait(at(1_999), u64::MAX, RATE), Duration::from_millis(1));
        assert!(bucket.take(at(2_000), u64::MAX, RATE));
    }
}
