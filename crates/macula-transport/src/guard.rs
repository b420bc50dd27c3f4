//! Who may start a handshake, decided without I/O and with the time passed in.
//!
//! A handshake costs a signature, a key exchange and memory, and whoever sends one packet with an
//! invented address can ask for one. So they have budgets apart from those of links:
//!
//! 1. Addresses that are not proved may use a quarter of the slots and of the rate. Beyond that they
//!    are asked to prove themselves (QUIC Retry: stateless, smaller than what provoked it, a
//!    fiftieth of a handshake's work). Nothing is counted against them, so that nobody can use up
//!    a victim's share by writing its address on packets.
//! 2. Proved ones are held to a rate per source (an IPv4 address or an IPv6 /64) while there is
//!    load, and to the rate and the slots of all. Above the source's rate they are *ignored*: an
//!    answer to each packet is what a flooder would like, and who waits for one slows down by
//!    itself. Above the limits of all they are *refused*, as the peer is not to blame, its address
//!    is real, and it can turn elsewhere at once.
//! 3. When every slot is taken, they are shared: who has none yet gets one from the source that has
//!    the most. Among equals the oldest makes room, once it has taken longer than honest ones do.
//! 4. A key is known when the handshake is done. One that comes back too often is turned away until
//!    it has paused.
//!
//! Even Retries have a budget. When it is used up, nobody is listened to for a moment, and QUIC drops
//! first packets before it decrypts anything.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasher, Hash, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use macula_proto::id::EndpointId;
use tokio_util::sync::CancellationToken;

/// Share of slots and rate that addresses may use without proof.
const UNPROVED_SHARE: usize = 4;
/// What the limits let through at once: so many seconds' worth.
const BURST_SECONDS: u32 = 1;
const SOURCE_BURST_SECONDS: u32 = 2;
const KEY_BURST_SECONDS: u32 = 5;
/// Requests for proof, at most: a tenth of a core.
const RETRIES_PER_SECOND_MAX: u32 = 20_000;
/// When that is used up, so long nobody is listened to.
const PAUSE: Duration = Duration::from_millis(5);
/// A handshake may be given up for another one after this. Honest ones take two round trips. What is
/// given up lingers in QUIC for some 3 s, so this also bounds memory.
const STALLED_AFTER: Duration = Duration::from_secs(2);
/// Sources and keys that are remembered, each: `SETS × WAYS`.
const SETS: usize = 1024;
const WAYS: usize = 4;

/// What handshakes of peers may use, apart from links. Zeros count as ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HandshakeLimits {
    /// At once. When all are taken, a source (see [`Self::per_source_max`]) gets one from that which
    /// has the most, or the oldest is given up if it has stalled for two seconds; more are refused.
    /// From a quarter of it on peers must show first that they receive what is sent to them, which
    /// costs a round trip. Default 512.
    pub running_max: usize,
    /// Per second, all together; as many may come at once. More are refused. Above a quarter of it
    /// peers must show first that they receive what is sent to them. Default 2,000.
    pub per_second_max: u32,
    /// Per second and source, which is an IPv4 address or an IPv6 /64; twice as many may come at
    /// once. Holds under load only, for addresses that are proved: more are not answered.
    /// Default 200.
    pub per_source_max: u32,
    /// Per second and key; five times as many may come at once. A key that comes back faster is
    /// turned away until half of that is free again. Default 20.
    pub per_key_max: u32,
}

impl Default for HandshakeLimits {
    fn default() -> Self {
        Self { running_max: 512, per_second_max: 2_000, per_source_max: 200, per_key_max: 20 }
    }
}

/// What became of the handshakes of peers that dialled this endpoint, since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct HandshakeStats {
    /// Under way now.
    pub running: u64,
    /// Completed; those of [`Self::refused_key`] included.
    pub completed: u64,
    /// First packets that were answered with the request to prove the address.
    pub retried: u64,
    /// Times that even such requests were too many and first packets were dropped for a moment.
    pub pauses: u64,
    /// Refused because as many were under way as may be.
    pub refused_full: u64,
    /// Refused because all together came too fast.
    pub refused_rate: u64,
    /// First packets ignored because their source sent too many.
    pub ignored_source: u64,
    /// Completed and then turned away because their key came back too often.
    pub refused_key: u64,
    /// Given up after the time for a handshake.
    pub timed_out: u64,
    /// Given up early, because another one needed the slot.
    pub displaced: u64,
    /// Broken off, by the peer or for a fault of it.
    pub failed: u64,
    /// Datagrams dropped before QUIC saw them, as nothing that a peer would send.
    pub junk: u64,
}

/// Names a handshake under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct HandshakeId(u64);

/// What to do with a first packet.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// Go on; give it up when the token is cancelled.
    Start(HandshakeId, CancellationToken),
    /// Ask for proof of the address.
    Retry,
    /// Say no.
    Refuse,
    /// Say nothing.
    Ignore,
}

/// How a handshake ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Completed,
    TimedOut,
    Failed,
}

/// Decides about first packets and finished handshakes.
#[derive(Debug)]
pub(crate) struct Guard {
    running_max: usize,
    /// Ids ascend, so the first is the oldest.
    running: BTreeMap<HandshakeId, Running>,
    /// The same by who has them.
    holders: HashMap<Holder, BTreeSet<HandshakeId>>,
    next_id: u64,
    all: Bucket,
    unproved: Bucket,
    retries: Bucket,
    source_pace: Pace,
    sources: Table<Source>,
    key_pace: Pace,
    keys: Table<EndpointId>,
    stats: HandshakeStats,
}

#[derive(Debug)]
struct Running {
    since: Instant,
    holder: Holder,
    give_up: CancellationToken,
}

/// Who has a slot: a proved source, or all the others together.
type Holder = Option<Source>;

impl Guard {
    pub(crate) fn new(limits: &HandshakeLimits, now: Instant) -> Self {
        let unproved = limits.per_second_max.div_ceil(UNPROVED_SHARE as u32);
        let bucket = |per_second, seconds| Bucket::new(Pace::new(per_second, seconds), now);
        Self {
            running_max: limits.running_max.max(1),
            running: BTreeMap::new(),
            holders: HashMap::new(),
            next_id: 0,
            all: bucket(limits.per_second_max, BURST_SECONDS),
            unproved: bucket(unproved, BURST_SECONDS),
            retries: bucket(RETRIES_PER_SECOND_MAX, BURST_SECONDS),
            source_pace: Pace::new(limits.per_source_max, SOURCE_BURST_SECONDS),
            sources: Table::new(),
            key_pace: Pace::new(limits.per_key_max, KEY_BURST_SECONDS),
            keys: Table::new(),
            stats: HandshakeStats::default(),
        }
    }

    /// How long not to take the next first packet; `None`: take it.
    pub(crate) fn pause(&mut self, now: Instant) -> Option<Duration> {
        if self.retries.has_room(now) {
            return None;
        }
        self.stats.pauses += 1;
        Some(PAUSE)
    }

    /// What to do with a first packet from `ip`, whose sender has proved to be there or not.
    pub(crate) fn decide(&mut self, now: Instant, ip: IpAddr, is_proved: bool) -> Verdict {
        if !is_proved {
            let is_calm = self.running.len() * UNPROVED_SHARE < self.running_max;
            if is_calm && self.unproved.has_room(now) && self.all.take(now) {
                self.unproved.take(now);
                return self.start(now, None);
            }
            self.stats.retried += 1;
            // Without room there was a pause that the caller did not make: it costs, nothing breaks.
            self.retries.take(now);
            return Verdict::Retry;
        }
        let (is_loaded, pace) = (self.is_loaded(now), self.source_pace);
        let source = Source::of(ip);
        let is_within = pace.take(&mut self.sources.entry(source, now).due, now);
        if is_loaded && !is_within {
            self.stats.ignored_source += 1;
            return Verdict::Ignore;
        }
        if !self.all.has_room(now) {
            self.stats.refused_rate += 1;
            return Verdict::Refuse;
        }
        if self.running.len() >= self.running_max && !self.displace(now, source) {
            self.stats.refused_full += 1;
            return Verdict::Refuse;
        }
        self.all.take(now);
        self.start(now, Some(source))
    }

    /// A handshake ended by itself; nothing happens if it was displaced.
    pub(crate) fn ended(&mut self, id: HandshakeId, outcome: Outcome) {
        if self.remove(id).is_none() {
            return;
        }
        match outcome {
            Outcome::Completed => self.stats.completed += 1,
            Outcome::TimedOut => self.stats.timed_out += 1,
            Outcome::Failed => self.stats.failed += 1,
        }
    }

    /// Whether a key that completed a handshake may stay; if not, when it may come back.
    pub(crate) fn admit(&mut self, now: Instant, key: EndpointId) -> Result<(), Duration> {
        let pace = self.key_pace;
        let entry = self.keys.entry(key, now);
        // Once over the limit it has to pause until half of its burst is there again: a loop is
        // then mostly turned away instead of mostly let in.
        let still = entry.due.saturating_duration_since(now + pace.tolerance / 2);
        if entry.is_barred && still > Duration::ZERO {
            self.stats.refused_key += 1;
            return Err(still);
        }
        entry.is_barred = !pace.take(&mut entry.due, now);
        if entry.is_barred {
            self.stats.refused_key += 1;
            return Err(entry.due.saturating_duration_since(now + pace.tolerance / 2));
        }
        Ok(())
    }

    pub(crate) fn stats(&self) -> HandshakeStats {
        HandshakeStats { running: self.running.len() as u64, ..self.stats }
    }

    fn is_loaded(&self, now: Instant) -> bool {
        self.running.len() * UNPROVED_SHARE >= self.running_max
            || !self.unproved.has_room(now)
            || self.all.is_half_used(now)
    }

    fn start(&mut self, now: Instant, holder: Holder) -> Verdict {
        let id = HandshakeId(self.next_id);
        self.next_id += 1;
        let give_up = CancellationToken::new();
        self.running.insert(id, Running { since: now, holder, give_up: give_up.clone() });
        self.holders.entry(holder).or_default().insert(id);
        Verdict::Start(id, give_up)
    }

    fn remove(&mut self, id: HandshakeId) -> Option<Running> {
        let running = self.running.remove(&id)?;
        if let Some(held) = self.holders.get_mut(&running.holder) {
            held.remove(&id);
            if held.is_empty() {
                self.holders.remove(&running.holder);
            }
        }
        Some(running)
    }

    /// Makes room for `source` at the expense of one that has more, or of the oldest handshake, if
    /// that has stalled.
    fn displace(&mut self, now: Instant, source: Source) -> bool {
        let own = self.holders.get(&Some(source)).map_or(0, BTreeSet::len);
        let most = self.holders.values().max_by_key(|held| held.len());
        let victim = match most {
            Some(held) if held.len() > own + 1 => held.first().copied(),
            Some(_) | None => {
                let oldest = self.running.iter().next();
                let stalled = oldest.filter(|(_, running)| {
                    now.saturating_duration_since(running.since) >= STALLED_AFTER
                });
                stalled.map(|(id, _)| *id)
            }
        };
        let Some(victim) = victim.and_then(|victim| self.remove(victim)) else { return false };
        victim.give_up.cancel();
        self.stats.displaced += 1;
        true
    }
}

/// A rate with a burst. What it limits is kept as one point in time: when the next one would be due
/// if all had come evenly.
#[derive(Clone, Copy, Debug)]
struct Pace {
    interval: Duration,
    /// How far ahead of evenness they may come.
    tolerance: Duration,
}

impl Pace {
    fn new(per_second: u32, burst_seconds: u32) -> Self {
        let per_second = per_second.max(1);
        let interval = Duration::from_secs(1) / per_second;
        Self { interval, tolerance: interval * per_second.saturating_mul(burst_seconds) - interval }
    }

    fn has_room(&self, due: Instant, now: Instant) -> bool {
        due.saturating_duration_since(now) <= self.tolerance
    }

    fn take(&self, due: &mut Instant, now: Instant) -> bool {
        let has_room = self.has_room(*due, now);
        if has_room {
            *due = (*due).max(now) + self.interval;
        }
        has_room
    }
}

/// One [`Pace`] and its state.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    pace: Pace,
    due: Instant,
}

impl Bucket {
    fn new(pace: Pace, now: Instant) -> Self {
        Self { pace, due: now }
    }

    fn take(&mut self, now: Instant) -> bool {
        self.pace.take(&mut self.due, now)
    }

    fn has_room(&self, now: Instant) -> bool {
        self.pace.has_room(self.due, now)
    }

    fn is_half_used(&self, now: Instant) -> bool {
        self.due.saturating_duration_since(now) > self.pace.tolerance / 2
    }
}

/// What counts as one source: who has an IPv6 address mostly has its whole /64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Source(Ipv6Addr);

impl Source {
    pub(crate) fn of(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Self(ip.to_ipv6_mapped()),
            IpAddr::V6(ip) => {
                let [a, b, c, d, ..] = ip.segments();
                Self(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
            }
        }
    }
}

/// A table of fixed size. A newcomer takes the place of the one that is limited least among a few
/// that chance has put together: whoever exceeds a limit stays remembered, and who brings thousands
/// of sources or keys makes the table forget the innocent, which harms nobody.
#[derive(Debug)]
struct Table<K> {
    hasher: RandomState,
    sets: Vec<[Option<Entry<K>>; WAYS]>,
}

#[derive(Clone, Copy, Debug)]
struct Entry<K> {
    key: K,
    due: Instant,
    is_barred: bool,
}

impl<K: Copy + Eq + Hash> Table<K> {
    fn new() -> Self {
        Self { hasher: RandomState::new(), sets: vec![[None; WAYS]; SETS] }
    }

    /// The entry of `key`, a new one if need be.
    fn entry(&mut self, key: K, now: Instant) -> &mut Entry<K> {
        let index = self.hasher.hash_one(key) as usize % SETS;
        let set = self.sets.get_mut(index).expect("the remainder is below the number of sets");
        let is_of_key = |entry: &Option<Entry<K>>| entry.is_some_and(|entry| entry.key == key);
        let way = set.iter().position(is_of_key).unwrap_or_else(|| {
            // `None` is the least: free places are taken first.
            let way = (0..WAYS).min_by_key(|way| set.get(*way).and_then(|e| e.map(|e| e.due)));
            let way = way.unwrap_or_default();
            if let Some(place) = set.get_mut(way) {
                *place = Some(Entry { key, due: now, is_barred: false });
            }
            way
        });
        let entry = set.get_mut(way).and_then(Option::as_mut);
        entry.expect("the place was found with this key or has just been filled")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    const LIMITS: HandshakeLimits =
        HandshakeLimits { running_max: 8, per_second_max: 40, per_source_max: 5, per_key_max: 2 };

    struct Clock(Instant);

    impl Clock {
        fn pass(&mut self, millis: u64) -> Instant {
            self.0 += Duration::from_millis(millis);
            self.0
        }
    }

    fn guard(limits: HandshakeLimits) -> (Guard, Clock) {
        let now = Instant::now();
        (Guard::new(&limits, now), Clock(now))
    }

    fn ip(last: u8) -> IpAddr {
        Ipv4Addr::new(192, 0, 2, last).into()
    }

    fn started(verdict: Verdict) -> (HandshakeId, CancellationToken) {
        match verdict {
            Verdict::Start(id, give_up) => (id, give_up),
            other => panic!("not started: {other:?}"),
        }
    }

    #[test]
    fn unproved_addresses_get_a_quarter_of_the_slots() {
        let (mut guard, clock) = guard(LIMITS);
        let now = clock.0;
        for _ in 0..2 {
            started(guard.decide(now, ip(1), false));
        }
        assert!(matches!(guard.decide(now, ip(1), false), Verdict::Retry));
        assert!(matches!(guard.decide(now, ip(2), false), Verdict::Retry));
        for last in 0..6 {
            started(guard.decide(now, ip(last), true));
        }
        let stats = guard.stats();
        assert_eq!((stats.running, stats.retried), (8, 2));
        // All of these together count as one, which has more than a source that has none.
        started(guard.decide(now, ip(9), true));
        assert!(matches!(guard.decide(now, ip(10), true), Verdict::Refuse));
        let stats = guard.stats();
        assert_eq!((stats.running, stats.displaced, stats.refused_full), (8, 1, 1));
    }

    #[test]
    fn slots_are_shared_among_sources() {
        let (mut guard, clock) = guard(LIMITS);
        let mut greedy = Vec::new();
        for _ in 0..8 {
            greedy.push(started(guard.decide(clock.0, ip(1), true)));
        }
        assert!(matches!(guard.decide(clock.0, ip(1), true), Verdict::Refuse));
        let taken = (0..8).filter(|_| {
            let verdict = guard.decide(clock.0, ip(2), true);
            matches!(verdict, Verdict::Start(..))
        });
        assert_eq!(taken.count(), 4, "half of them");
        let given_up = greedy.iter().filter(|(_, give_up)| give_up.is_cancelled()).count();
        assert_eq!((given_up, guard.stats().displaced), (4, 4));
        for (id, _) in greedy {
            guard.ended(id, Outcome::Failed);
        }
        assert_eq!((guard.stats().running, guard.holders.len()), (4, 1));
    }

    #[test]
    fn unproved_addresses_get_a_quarter_of_the_rate() {
        let (mut guard, mut clock) = guard(LIMITS);
        let count_of = |guard: &mut Guard, now| {
            (0..100)
                .filter(|_| match guard.decide(now, ip(1), false) {
                    Verdict::Start(id, _) => {
                        guard.ended(id, Outcome::Failed);
                        true
                    }
                    _ => false,
                })
                .count()
        };
        assert_eq!(count_of(&mut guard, clock.0), 10);
        assert_eq!(count_of(&mut guard, clock.pass(500)), 5);
        assert_eq!(guard.stats().failed, 15);
    }

    #[test]
    fn a_source_is_held_to_its_rate_under_load_only() {
        let (mut guard, mut clock) = guard(HandshakeLimits { running_max: 100, ..LIMITS });
        let begin = |guard: &mut Guard, now, from| match guard.decide(now, from, true) {
            Verdict::Start(id, _) => {
                guard.ended(id, Outcome::Completed);
                true
            }
            Verdict::Ignore => false,
            other => panic!("{other:?}"),
        };
        // Half of what all may do at once is calm, whoever it is.
        let calm = (0..20).filter(|_| begin(&mut guard, clock.0, ip(1))).count();
        assert_eq!(calm, 20);
        assert!(
            !begin(&mut guard, clock.0, ip(1)),
            "its burst of ten is used up, and now there is load"
        );
        assert!(begin(&mut guard, clock.0, ip(2)), "others are not its business");
        assert_eq!(guard.stats().ignored_source, 1);
        assert!(begin(&mut guard, clock.pass(1000), ip(1)));
    }

    #[test]
    fn packets_with_a_victims_address_use_up_nothing_of_it() {
        let (mut guard, clock) = guard(LIMITS);
        for _ in 0..1000 {
            guard.decide(clock.0, ip(1), false);
        }
        started(guard.decide(clock.0, ip(1), true));
    }

    #[test]
    fn all_together_are_held_to_a_rate() {
        let (mut guard, mut clock) = guard(HandshakeLimits { per_source_max: 1_000, ..LIMITS });
        let burst = |guard: &mut Guard, now| {
            let mut count = 0;
            while let Verdict::Start(id, _) = guard.decide(now, ip(1), true) {
                guard.ended(id, Outcome::Completed);
                count += 1;
            }
            count
        };
        assert_eq!(burst(&mut guard, clock.0), 40);
        assert_eq!(burst(&mut guard, clock.pass(250)), 10);
        let stats = guard.stats();
        assert_eq!((stats.completed, stats.refused_rate), (50, 2));
    }

    #[test]
    fn a_stalled_handshake_makes_room_when_all_slots_are_taken() {
        let (mut guard, mut clock) = guard(LIMITS);
        let (first, give_up) = started(guard.decide(clock.0, ip(0), true));
        for last in 1..8 {
            started(guard.decide(clock.pass(10), ip(last), true));
        }
        assert!(matches!(guard.decide(clock.0, ip(9), true), Verdict::Refuse), "none has stalled");
        started(guard.decide(clock.pass(1930), ip(9), true));
        assert!(give_up.is_cancelled());
        guard.ended(first, Outcome::TimedOut);
        let stats = guard.stats();
        assert_eq!((stats.running, stats.displaced, stats.timed_out), (8, 1, 0));
    }

    #[test]
    fn a_key_in_a_loop_is_turned_away_until_it_has_paused() {
        let (mut guard, mut clock) = guard(LIMITS);
        let [one, other] = [1, 2].map(|byte| EndpointId::from_bytes([byte; 32]));
        for _ in 0..10 {
            guard.admit(clock.0, one).unwrap();
        }
        let wait = guard.admit(clock.0, one).unwrap_err();
        assert!((2..3).contains(&wait.as_secs()), "half of ten at two a second: {wait:?}");
        guard.admit(clock.0, other).unwrap();
        // One place is free again, but it has not paused.
        guard.admit(clock.pass(600), one).unwrap_err();
        let wait = guard.admit(clock.0, one).unwrap_err();
        guard.admit(clock.0 + wait, one).unwrap();
        assert_eq!(guard.stats().refused_key, 3);
    }

    #[test]
    fn even_requests_for_proof_have_a_budget() {
        let (mut guard, mut clock) = guard(LIMITS);
        let now = clock.0;
        let mut asked = 0;
        while guard.pause(now).is_none() {
            guard.decide(now, ip(1), false);
            asked += 1;
        }
        let free = guard.stats().retried;
        assert_eq!(free, u64::from(RETRIES_PER_SECOND_MAX * BURST_SECONDS));
        assert!(asked >= free);
        assert!(guard.pause(clock.pass(PAUSE.as_millis() as u64)).is_none());
    }

    #[test]
    fn tables_stay_small_and_remember_the_worst() {
        let now = Instant::now();
        let mut table = Table::new();
        table.entry(u32::MAX, now).due = now + Duration::from_secs(60);
        for key in 0..100_000u32 {
            table.entry(key, now).due = now + Duration::from_secs(1);
        }
        assert!(table.entry(u32::MAX, now).due > now + Duration::from_secs(1));
        assert_eq!(table.sets.len() * WAYS, 4096);
    }

    #[test]
    fn an_ipv6_source_is_its_first_half() {
        let of = |text: &str| Source::of(text.parse().unwrap());
        assert_eq!(of("2001:db8:0:1::5"), of("2001:db8:0:1:ffff::"));
        assert_ne!(of("2001:db8:0:1::5"), of("2001:db8:0:2::5"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.2"), of("192.0.2.1"));
    }
}
