//! What all searches of an endpoint may use together, and how often one peer is searched for.

use std::collections::BTreeMap;
use std::time::Duration;

use macula_proto::Time;
use macula_proto::id::EndpointId;

use crate::rate::{Bucket, Rate};

/// Entries in NAT tables, of all searches: two thousand a minute. Home routers have tables of some
/// thousands, and forget unanswered entries within half a minute or so.
const TUPLES: Rate = Rate { per_second: 33, burst: 2_000 };
/// Peers that are remembered; beyond them the one that may be searched for soonest is forgotten.
const PEERS_MAX: usize = 1024;
/// The pause after a search that failed; four times as long after each further one.
const PAUSE_FIRST: Duration = Duration::from_secs(60);
const PAUSE_MAX: Duration = Duration::from_secs(6 * 3600);
/// The pause after one that found a way, which may be lost soon.
const PAUSE_FOUND: Duration = Duration::from_secs(10);
/// The pause after one that the peer had no budget for.
const PAUSE_PUT_OFF: Duration = Duration::from_secs(5);
/// A way that was lost so soon is as good as none.
const SOON: Duration = Duration::from_secs(60);

/// Why there is no search now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotNow {
    /// Another one runs.
    Busy,
    /// As many entries in NAT tables were made lately as may be.
    Spent,
    /// The peer was searched for lately; again after this.
    Pause(Duration),
}

/// How a search ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With a way to the peer.
    Found,
    /// Without one, or the peer does not search.
    Failed,
    /// The peer's budget did not allow it, or it was not needed any more.
    PutOff,
}

/// What searches have done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Searches begun.
    pub begun: u64,
    /// Searches that found a way.
    pub found: u64,
    /// Searches that did not happen for want of budget.
    pub put_off: u64,
    /// Entries in NAT tables that they made: sockets opened, ports probed.
    pub tuples: u64,
}

#[derive(Clone, Copy, Debug)]
struct Past {
    not_before: Time,
    failures: u32,
    began: Time,
}

/// The budget of an endpoint. One search runs at a time.
#[derive(Debug)]
pub struct Budget {
    tuples: Bucket,
    running: Option<(EndpointId, u16)>,
    past: BTreeMap<EndpointId, Past>,
    stats: Stats,
}

impl Budget {
    /// An unused one.
    pub fn new(now: Time) -> Self {
        let (past, stats) = (BTreeMap::new(), Stats::default());
        Self { tuples: Bucket::new(now), running: None, past, stats }
    }

    /// Counts.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// How long `peer` must not be searched for.
    pub fn pause(&self, now: Time, peer: &EndpointId) -> Duration {
        self.past.get(peer).map_or(Duration::ZERO, |past| past.not_before - now)
    }

    /// Begins a search that makes at most so many entries, if it may be; [`Self::end`] must follow.
    ///
    /// # Errors
    /// See [`NotNow`].
    pub fn begin(&mut self, now: Time, peer: EndpointId, tuples: u16) -> Result<(), NotNow> {
        let may = self.may_begin(now, &peer, tuples);
        if may.is_err() {
            self.stats.put_off += 1;
            return may;
        }
        self.stats.begun += 1;
        self.running = Some((peer, tuples));
        self.remember(now, peer);
        Ok(())
    }

    fn may_begin(&mut self, now: Time, peer: &EndpointId, tuples: u16) -> Result<(), NotNow> {
        let pause = self.pause(now, peer);
        if !pause.is_zero() {
            return Err(NotNow::Pause(pause));
        }
        if self.running.is_some() {
            return Err(NotNow::Busy);
        }
        let fits = self.tuples.take(now, u64::from(tuples), TUPLES);
        if fits { Ok(()) } else { Err(NotNow::Spent) }
    }

    /// The search has ended, after `used` entries; what was reserved beyond them is free again.
    pub fn end(&mut self, now: Time, used: u16, how: End) {
        let Some((peer, reserved)) = self.running.take() else { return };
        self.tuples.give_back(u64::from(reserved.saturating_sub(used)));
        self.stats.tuples += u64::from(used);
        let Some(past) = self.past.get_mut(&peer) else { return };
        match how {
            End::Found => {
                self.stats.found += 1;
                past.not_before = now + PAUSE_FOUND;
            }
            End::Failed => past.fail(now),
            End::PutOff => past.not_before = now + PAUSE_PUT_OFF,
        }
    }

    /// The way to `peer` that a search had found is gone.
    pub fn lost(&mut self, now: Time, peer: &EndpointId) {
        let Some(past) = self.past.get_mut(peer) else { return };
        if now - past.began < SOON {
            past.fail(now);
        } else {
            past.failures = 0;
        }
    }

    fn remember(&mut self, now: Time, peer: EndpointId) {
        if self.past.len() >= PEERS_MAX && !self.past.contains_key(&peer) {
            let soonest = self.past.iter().min_by_key(|(_, past)| past.not_before);
            if let Some(id) = soonest.map(|(id, _)| *id) {
                self.past.remove(&id);
            }
        }
        let fresh = Past { not_before: now, failures: 0, began: now };
        self.past.entry(peer).or_insert(fresh).began = now;
    }
}

impl Past {
    fn fail(&mut self, now: Time) {
        let pause = PAUSE_FIRST.saturating_mul(1 << (2 * self.failures).min(20));
        self.not_before = now + pause.min(PAUSE_MAX);
        self.failures = self.failures.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::search::{PROBES_MAX, SOCKETS_MAX};

    fn at(seconds: u64) -> Time {
        Time::from_micros(seconds * 1_000_000)
    }

    fn id(number: u32) -> EndpointId {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        EndpointId::from_bytes(bytes)
    }

    const ONE: u16 = PROBES_MAX;
    const MANY: u16 = SOCKETS_MAX;

    #[test]
    fn all_searches_share_one_allowance() {
        let mut budget = Budget::new(at(0));
        assert_eq!(budget.begin(at(0), id(1), ONE), Ok(()));
        assert_eq!(budget.begin(at(0), id(2), MANY), Err(NotNow::Busy));
        budget.end(at(5), 1_800, End::Failed);
        assert_eq!(budget.begin(at(5), id(2), MANY), Ok(()), "165 came back meanwhile");
        budget.end(at(5), 10, End::Found);
        assert_eq!(budget.begin(at(6), id(3), ONE), Err(NotNow::Spent));
        assert_eq!(budget.begin(at(60), id(3), ONE), Ok(()));
        let stats = Stats { begun: 3, found: 1, put_off: 2, tuples: 1_810 };
        assert_eq!(budget.stats(), stats);
    }

    #[test]
    fn a_peer_that_is_not_found_is_looked_for_ever_more_rarely() {
        let mut budget = Budget::new(at(0));
        let mut now = 0;
        let mut pauses = Vec::new();
        for _ in 0..8 {
            now += budget.pause(at(now), &id(1)).as_secs();
            assert_eq!(budget.begin(at(now), id(1), MANY), Ok(()));
            budget.end(at(now), 256, End::Failed);
            pauses.push(budget.pause(at(now), &id(1)).as_secs());
        }
        assert_eq!(pauses, [60, 240, 960, 3_840, 15_360, 21_600, 21_600, 21_600]);
        assert_eq!(budget.pause(at(now), &id(2)), Duration::ZERO);
        budget.begin(at(now), id(2), MANY).unwrap();
        budget.end(at(now), 0, End::PutOff);
        assert_eq!(budget.pause(at(now), &id(2)), PAUSE_PUT_OFF);
    }

    #[test]
    fn a_way_that_does_not_last_counts_as_none() {
        let mut budget = Budget::new(at(0));
        let mut found = |now: u64, lost: u64| {
            assert_eq!(budget.begin(at(now), id(1), MANY), Ok(()));
            budget.end(at(now), 20, End::Found);
            assert_eq!(budget.pause(at(now), &id(1)), PAUSE_FOUND);
            budget.lost(at(lost), &id(1));
            budget.pause(at(lost), &id(1)).as_secs()
        };
        assert_eq!(found(0, 30), 60);
        assert_eq!(found(100, 101), 240);
        assert_eq!(found(1_000, 2_000), 0);
        assert_eq!(found(3_000, 3_001), 60);
    }

    #[test]
    fn ten_thousand_peers_take_bounded_memory() {
        let mut budget = Budget::new(at(0));
        for number in 0..10_000 {
            let now = at(u64::from(number) * 100);
            budget.begin(now, id(number), MANY).unwrap();
            budget.end(now, 1, End::Failed);
        }
        assert_eq!(budget.past.len(), PEERS_MAX);
    }
}
