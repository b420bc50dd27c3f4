//! Who serves a procedure, and who of them gets the next call.

use std::time::Duration;

use rand_core::Rng;

use crate::time::Time;
use crate::wire::message::ProviderPolicy;

/// How long a provider is avoided after its first failure; doubles with each further one.
pub const BACKOFF_MIN: Duration = Duration::from_millis(250);
/// The longest that a provider is avoided before it is tried again.
pub const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// Providers that one choice by [`ProviderPolicy::Nearest`] compares.
pub const COMPARED_MAX: usize = 64;

/// What a call asks for.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'a, T> {
    /// How to choose.
    pub policy: ProviderPolicy,
    /// Providers that this call must not go to: it tried them already.
    pub exclude: &'a [T],
}

/// The providers of one procedure.
///
/// A provider that fails is avoided for a while ([`BACKOFF_MIN`] doubling to [`BACKOFF_MAX`]).
/// Then one call goes there; until it is reported as a success, the others go on avoiding it for
/// another while. When all are avoided, the one that is due first is chosen: a call that may fail
/// is better than one that surely does.
///
/// A choice costs a look at one provider, and at one more for each that is avoided or excluded;
/// `Nearest` compares up to [`COMPARED_MAX`].
#[derive(Clone, Debug)]
pub struct Providers<T> {
    /// In order of registration, which is ascending order of `number`.
    entries: Vec<Entry<T>>,
    /// Numbers by provider, sorted.
    numbers: Vec<(T, u64)>,
    next_number: u64,
    /// Round robin goes on behind this number.
    last_in_turn: Option<u64>,
    /// The nearest found so far; takes part in every comparison when there are too many to
    /// compare all.
    favourite: Option<T>,
}

#[derive(Clone, Copy, Debug)]
struct Entry<T> {
    provider: T,
    number: u64,
    in_flight: u32,
    health: Health,
}

/// A circuit breaker.
#[derive(Clone, Copy, Debug)]
enum Health {
    Good,
    /// Failed so often in a row.
    Avoided {
        failures: u32,
        until: Time,
    },
    /// As `Avoided`, and one call went there to see whether it works again.
    OnTrial {
        failures: u32,
        until: Time,
    },
}

impl Health {
    const fn avoided_until(self) -> Option<Time> {
        match self {
            Self::Good => None,
            Self::Avoided { until, .. } | Self::OnTrial { until, .. } => Some(until),
        }
    }

    fn after_choice(self, now: Time) -> Self {
        match self {
            Self::Good => Self::Good,
            Self::Avoided { failures, .. } | Self::OnTrial { failures, .. } => {
                Self::OnTrial { failures, until: now + back_off(failures) }
            }
        }
    }

    fn after_failure(self, now: Time) -> Self {
        let failures = match self {
            // Of many calls in flight when a provider goes away each one fails.
            Self::Avoided { until, .. } if now < until => return self,
            Self::Good => 1,
            Self::Avoided { failures, .. } | Self::OnTrial { failures, .. } => {
                failures.saturating_add(1)
            }
        };
        Self::Avoided { failures, until: now + back_off(failures) }
    }
}

impl<T: Copy + Ord> Providers<T> {
    /// Nobody.
    pub const fn new() -> Self {
        Self {
            entries: Vec::new(),
            numbers: Vec::new(),
            next_number: 0,
            last_in_turn: None,
            favourite: None,
        }
    }

    /// Adds a provider behind all others; `false`, and no change, when it is there already.
    pub fn add(&mut self, provider: T) -> bool {
        let Err(index) = self.numbers.binary_search_by_key(&provider, |(known, _)| *known) else {
            return false;
        };
        let number = self.next_number;
        self.next_number += 1;
        self.numbers.insert(index, (provider, number));
        self.entries.push(Entry { provider, number, in_flight: 0, health: Health::Good });
        true
    }

    /// Takes a provider out; `false` when it was not there.
    pub fn remove(&mut self, provider: T) -> bool {
        let Ok(index) = self.numbers.binary_search_by_key(&provider, |(known, _)| *known) else {
            return false;
        };
        let (_, number) = self.numbers.remove(index);
        if let Ok(index) = self.entries.binary_search_by_key(&number, |entry| entry.number) {
            self.entries.remove(index);
        }
        if self.favourite == Some(provider) {
            self.favourite = None;
        }
        true
    }

    /// Chooses the provider of a call; `None` when there is none that is not excluded.
    ///
    /// - `Nearest`: the lowest round-trip time by `rtt`; what is within 20 % or 1 ms of it counts
    ///   as equally near, and then the one with the fewest calls in flight wins, then the one that
    ///   registered first. Without a known time a provider counts as farthest. Of more than
    ///   [`COMPARED_MAX`] it compares a random run of these and the best that was found before.
    /// - `RoundRobin`: the next in order of registration.
    /// - `Random`: any with the same chance.
    /// - `First`: the one that registered first.
    ///
    /// Tell about the call with [`Providers::call_started`].
    pub fn choose(
        &mut self,
        now: Time,
        choice: &Choice<'_, T>,
        rtt: impl Fn(T) -> Option<Duration>,
        rng: &mut impl Rng,
    ) -> Option<T> {
        let usable = |entry: &&Entry<T>| {
            entry.health.avoided_until().is_none_or(|until| until <= now)
                && !choice.exclude.contains(&entry.provider)
        };
        let chosen = match choice.policy {
            ProviderPolicy::First => self.entries.iter().find(usable),
            ProviderPolicy::RoundRobin => {
                let start = self
                    .last_in_turn
                    .map_or(0, |last| self.entries.partition_point(|entry| entry.number <= last));
                self.from(start).find(usable)
            }
            ProviderPolicy::Random => self.random(usable, rng),
            ProviderPolicy::Nearest => self.nearest(usable, rtt, rng),
        };
        let number = chosen.or_else(|| self.least_bad(choice.exclude))?.number;

        if choice.policy == ProviderPolicy::RoundRobin {
            self.last_in_turn = Some(number);
        }
        let index = self.entries.binary_search_by_key(&number, |entry| entry.number).ok()?;
        let entry = self.entries.get_mut(index)?;
        entry.health = entry.health.after_choice(now);
        if choice.policy == ProviderPolicy::Nearest {
            self.favourite = Some(entry.provider);
        }
        Some(entry.provider)
    }

    /// A call went to `provider`, chosen here or by its caller.
    pub fn call_started(&mut self, provider: T) {
        if let Some(entry) = self.entry_mut(provider) {
            entry.in_flight = entry.in_flight.saturating_add(1);
        }
    }

    /// A call at `provider` has ended, whatever way.
    pub fn call_ended(&mut self, provider: T) {
        if let Some(entry) = self.entry_mut(provider) {
            entry.in_flight = entry.in_flight.saturating_sub(1);
        }
    }

    /// `provider` did not do its work: avoid it for a while. What is reported while it is avoided
    /// belongs to the same outage and changes nothing.
    pub fn report_failure(&mut self, provider: T, now: Time) {
        if let Some(entry) = self.entry_mut(provider) {
            entry.health = entry.health.after_failure(now);
        }
    }

    /// `provider` did its work: avoid it no longer.
    pub fn report_success(&mut self, provider: T) {
        if let Some(entry) = self.entry_mut(provider) {
            entry.health = Health::Good;
        }
    }

    /// Calls at `provider` that have not ended.
    pub fn in_flight(&self, provider: T) -> u32 {
        self.entry(provider).map_or(0, |entry| entry.in_flight)
    }

    /// Whether `provider` is one.
    pub fn contains(&self, provider: T) -> bool {
        self.entry(provider).is_some()
    }

    /// All, in order of registration.
    pub fn iter(&self) -> impl Iterator<Item = T> {
        self.entries.iter().map(|entry| entry.provider)
    }

    /// How many.
    pub const fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All entries once, from `start` on and around.
    fn from(&self, start: usize) -> impl Iterator<Item = &Entry<T>> {
        self.entries.iter().skip(start).chain(self.entries.iter().take(start))
    }

    fn random(&self, usable: impl Fn(&&Entry<T>) -> bool, rng: &mut impl Rng) -> Option<&Entry<T>> {
        const DRAWS: usize = 8;
        for _ in 0..DRAWS {
            let drawn = self.entries.get(below(rng, self.entries.len()));
            if drawn.as_ref().is_some_and(&usable) {
                return drawn;
            }
        }
        // Most are avoided: the first usable one behind a random place.
        self.from(below(rng, self.entries.len())).find(usable)
    }

    fn nearest(
        &self,
        usable: impl Fn(&&Entry<T>) -> bool,
        rtt: impl Fn(T) -> Option<Duration>,
        rng: &mut impl Rng,
    ) -> Option<&Entry<T>> {
        if let [only] = self.entries.as_slice() {
            return usable(&only).then_some(only);
        }
        let start = match self.entries.len() {
            0..=COMPARED_MAX => 0,
            len => below(rng, len),
        };
        let favourite = self.favourite.and_then(|provider| self.entry(provider));
        // On the stack: this runs for every call.
        let mut compared: [Option<(&Entry<T>, Duration)>; COMPARED_MAX + 1] =
            [None; COMPARED_MAX + 1];
        let candidates = self.from(start).filter(&usable).take(COMPARED_MAX);
        let mut lowest = Duration::MAX;
        for (slot, entry) in
            compared.iter_mut().zip(candidates.chain(favourite.into_iter().filter(&usable)))
        {
            let rtt = rtt(entry.provider).unwrap_or(Duration::MAX);
            lowest = lowest.min(rtt);
            *slot = Some((entry, rtt));
        }
        let equal = lowest.saturating_add((lowest / 5).max(Duration::from_millis(1)));
        compared
            .iter()
            .flatten()
            .filter(|(_, rtt)| *rtt <= equal)
            .map(|(entry, _)| *entry)
            .min_by_key(|entry| (entry.in_flight, entry.number))
    }

    fn least_bad(&self, exclude: &[T]) -> Option<&Entry<T>> {
        self.entries
            .iter()
            .filter(|entry| !exclude.contains(&entry.provider))
            .min_by_key(|entry| (entry.health.avoided_until(), entry.number))
    }

    fn entry(&self, provider: T) -> Option<&Entry<T>> {
        self.entries.get(self.index(provider)?)
    }

    fn entry_mut(&mut self, provider: T) -> Option<&mut Entry<T>> {
        let index = self.index(provider)?;
        self.entries.get_mut(index)
    }

    fn index(&self, provider: T) -> Option<usize> {
        let index = self.numbers.binary_search_by_key(&provider, |(known, _)| *known).ok()?;
        let (_, number) = self.numbers.get(index)?;
        self.entries.binary_search_by_key(number, |entry| entry.number).ok()
    }
}

impl<T: Copy + Ord> Default for Providers<T> {
    fn default() -> Self {
        Self::new()
    }
}

fn back_off(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    BACKOFF_MIN.saturating_mul(1 << doublings).min(BACKOFF_MAX)
}

/// A number below `len`, each as likely; 0 when `len` is 0.
fn below(rng: &mut impl Rng, len: usize) -> usize {
    ((u128::from(rng.next_u64()) * len as u128) >> 64) as usize
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use rand_core::SeedableRng;

    use super::*;

    struct World {
        providers: Providers<u32>,
        rtts_ms: BTreeMap<u32, u64>,
        rng: rand_pcg::Pcg64,
        now: Time,
    }

    impl World {
        fn new(count: u32) -> Self {
            let mut providers = Providers::new();
            for provider in 0..count {
                assert!(providers.add(provider));
            }
            let rng = rand_pcg::Pcg64::seed_from_u64(7);
            Self { providers, rtts_ms: BTreeMap::new(), rng, now: Time::START }
        }

        fn rtts(mut self, rtts_ms: &[(u32, u64)]) -> Self {
            self.rtts_ms = rtts_ms.iter().copied().collect();
            self
        }

        fn choose_but(&mut self, policy: ProviderPolicy, exclude: &[u32]) -> Option<u32> {
            let rtt = |provider| self.rtts_ms.get(&provider).copied().map(Duration::from_millis);
            self.providers.choose(self.now, &Choice { policy, exclude }, rtt, &mut self.rng)
        }

        fn choose(&mut self, policy: ProviderPolicy) -> Option<u32> {
            self.choose_but(policy, &[])
        }

        fn many(&mut self, policy: ProviderPolicy, count: usize) -> Vec<u32> {
            (0..count).map(|_| self.choose(policy).unwrap()).collect()
        }

        fn fail(&mut self, provider: u32) {
            self.providers.report_failure(provider, self.now);
        }

        fn pass(&mut self, millis: u64) {
            self.now = self.now + Duration::from_millis(millis);
        }
    }

    const POLICIES: [ProviderPolicy; 4] = [
        ProviderPolicy::Nearest,
        ProviderPolicy::RoundRobin,
        ProviderPolicy::Random,
        ProviderPolicy::First,
    ];

    #[test]
    fn nobody_is_chosen_from_nobody() {
        for policy in POLICIES {
            assert_eq!(World::new(0).choose(policy), None);
            assert_eq!(World::new(2).choose_but(policy, &[0, 1]), None);
            assert_eq!(World::new(2).choose_but(policy, &[0]), Some(1));
        }
    }

    #[test]
    fn providers_are_kept_in_order_of_registration() {
        let mut providers = Providers::new();
        assert!(providers.add(5) && providers.add(3) && providers.add(4));
        assert!(!providers.add(3));
        assert!(providers.remove(5) && !providers.remove(5));
        assert!(providers.add(5));
        assert_eq!(providers.iter().collect::<Vec<_>>(), [3, 4, 5]);
        assert!(providers.contains(4) && !providers.contains(6));
        assert_eq!(providers.len(), 3);
    }

    #[test]
    fn first_takes_the_one_that_registered_first() {
        let mut world = World::new(3);
        assert_eq!(world.many(ProviderPolicy::First, 3), [0, 0, 0]);
        world.providers.remove(0);
        assert_eq!(world.choose(ProviderPolicy::First), Some(1));
    }

    #[test]
    fn round_robin_takes_each_in_turn_whoever_comes_and_goes() {
        let mut world = World::new(3);
        assert_eq!(world.many(ProviderPolicy::RoundRobin, 4), [0, 1, 2, 0]);
        world.providers.remove(1);
        assert_eq!(world.choose(ProviderPolicy::RoundRobin), Some(2));
        world.providers.add(9);
        assert_eq!(world.many(ProviderPolicy::RoundRobin, 3), [9, 0, 2]);
    }

    #[test]
    fn random_takes_each_about_as_often() {
        let mut world = World::new(4);
        let mut counts = [0; 4];
        for provider in world.many(ProviderPolicy::Random, 4000) {
            counts[provider as usize] += 1;
        }
        assert!(counts.iter().all(|count| (900..1100).contains(count)), "{counts:?}");
    }

    #[test]
    fn nearest_takes_the_lowest_round_trip_time() {
        let mut world = World::new(4).rtts(&[(0, 50), (1, 20), (2, 80)]);
        assert_eq!(world.many(ProviderPolicy::Nearest, 2), [1, 1]);
        world.providers.call_started(1);
        assert_eq!(world.choose(ProviderPolicy::Nearest), Some(1));
        assert_eq!(world.choose_but(ProviderPolicy::Nearest, &[1, 0, 2]), Some(3));
    }

    #[test]
    fn nearest_shares_the_load_among_those_about_as_near() {
        // 23 ms is within 20 % of 20 ms, 25 ms is not.
        let mut world = World::new(3).rtts(&[(0, 25), (1, 20), (2, 23)]);
        let mut taken = Vec::new();
        for _ in 0..4 {
            let provider = world.choose(ProviderPolicy::Nearest).unwrap();
            world.providers.call_started(provider);
            taken.push(provider);
        }
        assert_eq!(taken, [1, 2, 1, 2]);
        world.providers.call_ended(2);
        assert_eq!(world.providers.in_flight(2), 1);
        assert_eq!(world.choose(ProviderPolicy::Nearest), Some(2));
        // Within 1 ms everything is near.
        let mut world = World::new(2).rtts(&[(0, 1), (1, 0)]);
        assert_eq!(world.choose(ProviderPolicy::Nearest), Some(0));
    }

    #[test]
    fn nearest_finds_the_best_of_very_many_in_the_end() {
        let count = 20 * COMPARED_MAX as u32;
        let rtts: Vec<(u32, u64)> =
            (0..count).map(|n| (n, if n == 777 { 5 } else { 50 })).collect();
        let mut world = World::new(count).rtts(&rtts);
        world.many(ProviderPolicy::Nearest, 400);
        assert_eq!(world.many(ProviderPolicy::Nearest, 3), [777, 777, 777]);
        world.providers.remove(777);
        assert!(world.choose(ProviderPolicy::Nearest).is_some());
    }

    #[test]
    fn a_failed_provider_is_avoided_for_twice_as_long_each_time() {
        let mut world = World::new(2);
        let mut expected_ms = 250;
        for _ in 0..8 {
            assert_eq!(world.choose(ProviderPolicy::First), Some(0));
            world.fail(0);
            world.pass(expected_ms - 1);
            assert_eq!(world.choose(ProviderPolicy::First), Some(1), "{expected_ms} ms");
            world.pass(1);
            expected_ms = (expected_ms * 2).min(10_000);
        }
        assert_eq!(world.choose(ProviderPolicy::First), Some(0));
        world.providers.report_success(0);
        assert_eq!(world.many(ProviderPolicy::First, 2), [0, 0]);
        world.fail(0);
        world.pass(250);
        assert_eq!(world.choose(ProviderPolicy::First), Some(0));
    }

    #[test]
    fn many_failures_of_one_outage_count_once() {
        let mut world = World::new(2);
        (0..64).for_each(|_| world.fail(0));
        world.pass(250);
        assert_eq!(world.choose(ProviderPolicy::First), Some(0));
    }

    #[test]
    fn after_an_outage_one_call_goes_ahead() {
        let mut world = World::new(2);
        world.fail(0);
        world.pass(250);
        assert_eq!(world.many(ProviderPolicy::First, 3), [0, 1, 1]);
        // The trial says nothing: the next one goes after another while.
        world.pass(250);
        assert_eq!(world.many(ProviderPolicy::First, 2), [0, 1]);
        world.providers.report_success(0);
        assert_eq!(world.choose(ProviderPolicy::First), Some(0));
    }

    #[test]
    fn when_all_are_broken_the_one_due_first_is_chosen() {
        for policy in POLICIES {
            let mut world = World::new(3);
            for provider in [1, 0, 2] {
                world.fail(provider);
                world.pass(10);
            }
            assert_eq!(world.choose(policy), Some(1), "{policy:?}");
            assert_eq!(world.choose_but(policy, &[1]), Some(0), "{policy:?}");
        }
    }

    #[test]
    fn random_and_round_robin_go_around_the_broken_ones() {
        let mut world = World::new(100);
        (0..100).filter(|provider| *provider != 42).for_each(|provider| world.fail(provider));
        assert_eq!(world.many(ProviderPolicy::Random, 20), [42; 20]);
        assert_eq!(world.many(ProviderPolicy::RoundRobin, 3), [42; 3]);
        assert_eq!(world.many(ProviderPolicy::Nearest, 3), [42; 3]);
    }

    proptest! {
        #[test]
        fn a_choice_is_usable_whenever_one_is(
            ops in prop::collection::vec((0u8..7, 0u32..6, 0u64..400), 0..200),
        ) {
            let mut world = World::new(0).rtts(&[(0, 3), (1, 30), (2, 33), (3, 4)]);
            let mut model: Vec<u32> = Vec::new();
            for (op, provider, millis) in ops {
                match op {
                    0 => {
                        prop_assert_eq!(world.providers.add(provider), !model.contains(&provider));
                        if !model.contains(&provider) {
                            model.push(provider);
                        }
                    }
                    1 => {
                        prop_assert_eq!(world.providers.remove(provider), model.contains(&provider));
                        model.retain(|other| *other != provider);
                    }
                    2 => world.fail(provider),
                    3 => world.providers.report_success(provider),
                    4 => world.providers.call_started(provider),
                    5 => world.providers.call_ended(provider),
                    _ => world.pass(millis),
                }
                prop_assert_eq!(world.providers.iter().collect::<Vec<_>>(), model.clone());
                for policy in POLICIES {
                    let avoided = |world: &World, provider| {
                        let health = world.providers.entry(provider).unwrap().health;
                        health.avoided_until().is_some_and(|until| until > world.now)
                    };
                    let candidates: Vec<u32> =
                        model.iter().copied().filter(|other| *other != provider).collect();
                    let any_good = candidates.iter().any(|other| !avoided(&world, *other));
                    let mut asked = World { providers: world.providers.clone(), ..World::new(0) };
                    asked.now = world.now;
                    match asked.choose_but(policy, &[provider]) {
                        None => prop_assert!(candidates.is_empty()),
                        Some(chosen) => {
                            prop_assert!(candidates.contains(&chosen));
                            prop_assert!(!any_good || !avoided(&world, chosen));
                        }
                    }
                }
            }
        }
    }
}
