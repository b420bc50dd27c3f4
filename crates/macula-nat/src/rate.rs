//! Rates: what may be used a second, of one thing or by many sources.

use std::net::IpAddr;
use std::time::Duration;

use macula_proto::Time;

use crate::address;

const MICRO: u64 = 1_000_000;

/// How much may be used: so much a second, and so much at once after a rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Tokens a second; 0: without limit.
    pub per_second: u64,
    /// Tokens at once.
    pub burst: u64,
}

/// A token bucket. It begins full.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    /// What is missing to full, in millionths of a token.
    spent: u64,
    at: Time,
}

impl Bucket {
    /// A full bucket.
    pub const fn new(now: Time) -> Self {
        Self { spent: 0, at: now }
    }

    /// Takes `tokens` if there are as many.
    pub fn take(&mut self, now: Time, tokens: u64, rate: Rate) -> bool {
        if rate.per_second == 0 {
            return true;
        }
        self.fill(now, rate);
        let wanted = self.spent.saturating_add(tokens.saturating_mul(MICRO));
        let fits = wanted <= rate.burst.saturating_mul(MICRO);
        if fits {
            self.spent = wanted;
        }
        fits
    }

    /// Returns tokens that were taken and not used.
    pub fn give_back(&mut self, tokens: u64) {
        self.spent = self.spent.saturating_sub(tokens.saturating_mul(MICRO));
    }

    fn fill(&mut self, now: Time, rate: Rate) {
        let elapsed: Duration = now - self.at;
        let micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        self.spent = self.spent.saturating_sub(micros.saturating_mul(rate.per_second));
        self.at = self.at.max(now);
    }
}

/// Buckets for sources that nobody has checked: a table of fixed size in which a source has its
/// place by a keyed hash, so that inventing sources neither fills memory nor chooses whose bucket
/// is shared.
#[derive(Debug)]
pub struct Sources {
    buckets: Vec<Bucket>,
    key: ring::hmac::Key,
    rate: Rate,
}

impl Sources {
    /// `slots` buckets, at least one; `key` must be unknown to the sources.
    pub fn new(key: &[u8; 32], slots: usize, rate: Rate) -> Self {
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, key);
        Self { buckets: vec![Bucket::new(Time::START); slots.max(1)], key, rate }
    }

    /// Takes one token for `source` (an IPv4 address or an IPv6 /64), if there is one.
    pub fn take(&mut self, now: Time, source: IpAddr) -> bool {
        let tag = match address::place(source) {
            IpAddr::V4(v4) => ring::hmac::sign(&self.key, &v4.octets()),
            IpAddr::V6(v6) => ring::hmac::sign(&self.key, &v6.octets()),
        };
        let hash =
            tag.as_ref().iter().take(8).fold(0u64, |hash, byte| hash << 8 | u64::from(*byte));
        let slots = self.buckets.len() as u64;
        let slot = usize::try_from(hash % slots).unwrap_or(0);
        self.buckets.get_mut(slot).is_some_and(|bucket| bucket.take(now, 1, self.rate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(micros: u64) -> Time {
        Time::from_micros(micros)
    }

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let rate = Rate { per_second: 10, burst: 3 };
        let mut bucket = Bucket::new(at(0));
        let mut taken = |micros, tokens| bucket.take(at(micros), tokens, rate);
        assert!(taken(0, 2) && taken(0, 1) && !taken(0, 1));
        assert!(!taken(99_999, 1) && taken(100_000, 1) && !taken(100_000, 1));
        assert!(!taken(60_000_000, 4) && taken(60_000_000, 3));
        bucket.give_back(2);
        let mut taken = |tokens| bucket.take(at(60_000_000), tokens, rate);
        assert!(!taken(3) && taken(2) && !taken(1));
    }

    #[test]
    fn no_rate_is_no_limit_and_time_may_stand_still() {
        let mut bucket = Bucket::new(at(5));
        assert!(bucket.take(at(5), u64::MAX, Rate { per_second: 0, burst: 0 }));
        let rate = Rate { per_second: u64::MAX, burst: u64::MAX };
        assert!(bucket.take(at(1), 1, rate));
    }

    #[test]
    fn sources_have_buckets_of_their_own_in_bounded_memory() {
        let mut sources = Sources::new(&[7; 32], 1024, Rate { per_second: 1, burst: 2 });
        let flooder: IpAddr = "192.0.2.1".parse().unwrap();
        assert_eq!((0..10).filter(|_| sources.take(at(0), flooder)).count(), 2);
        assert!(sources.take(at(0), "192.0.2.2".parse().unwrap()));
        let taken = (0..100_000u32).filter(|n| sources.take(at(0), IpAddr::from(n.to_be_bytes())));
        assert!(taken.count() <= 2 * 1024);
    }
}
