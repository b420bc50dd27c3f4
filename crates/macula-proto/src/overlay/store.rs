//! What a node keeps for others: signed records, bounded in every direction that a peer could push.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::api::Stats;
use super::message::StoreRefusal;
use super::record::{Notary, Record, is_key_right};
use crate::id::{EndpointId, Key, RealmId};
use crate::limits::{RECORD_LIFETIME_MAX, RECORD_VALUE_BYTES_MAX};
use crate::time::Time;

/// How much a node keeps in one realm. Each record counts with its value and 320 bytes.
#[derive(Clone, Copy, Debug)]
pub struct StoreLimits {
    /// Of all authors, bytes.
    pub bytes_max: usize,
    /// Of one author, bytes.
    pub bytes_per_author_max: usize,
    /// At one key, bytes.
    pub bytes_per_key_max: usize,
}

impl Default for StoreLimits {
    fn default() -> Self {
        Self {
            bytes_max: 8 * 1024 * 1024,
            bytes_per_author_max: 256 * 1024,
            bytes_per_key_max: 64 * 1024,
        }
    }
}

/// What a record costs beside its value, bytes.
const RECORD_COST: usize = 320;

/// Of one key, kind and author there is one record.
type Place = (Key, u8, EndpointId);

#[derive(Debug)]
struct Held {
    record: Record,
    expires: Time,
}

/// The records, and what they cost.
#[derive(Debug, Default)]
pub(super) struct Store {
    records: BTreeMap<Place, Held>,
    due: BTreeSet<(Time, Place)>,
    of_author: BTreeMap<EndpointId, usize>,
    of_key: BTreeMap<Key, usize>,
    bytes: usize,
}

const fn cost(record: &Record) -> usize {
    record.value.len() + RECORD_COST
}

/// Who judges records, and by what.
#[derive(Clone, Copy)]
pub(super) struct Judge<'a> {
    pub(super) realm: &'a RealmId,
    pub(super) notary: &'a dyn Notary,
    pub(super) limits: &'a StoreLimits,
}

impl Store {
    /// Keeps a record, if it is right, newer than what is held of it, and fits. What is already
    /// here is never pushed out: who floods a key after others gets no place at it.
    ///
    /// A record with the sequence that is held changes nothing and counts as kept: a copy that comes
    /// again cannot prolong its own life. One without value (the author takes it back) replaces, and
    /// is held for its lifetime so that old copies do not return; where nothing is held it is not kept.
    ///
    /// # Errors
    /// Why it is not kept. Cheap checks come first, the signature last.
    pub(super) fn put(
        &mut self,
        now: Time,
        record: Record,
        judge: Judge<'_>,
        stats: &mut Stats,
    ) -> Result<(), StoreRefusal> {
        let result = self.judge_and_keep(now, record, judge);
        match result {
            Err(StoreRefusal::Signature) => stats.records_refused_signature += 1,
            Err(StoreRefusal::Lifetime) => stats.records_refused_lifetime += 1,
            Err(StoreRefusal::AuthorFull | StoreRefusal::KeyFull | StoreRefusal::RealmFull) => {
                stats.records_refused_full += 1
            }
            Err(_) => stats.records_refused_other += 1,
            Ok(()) => {}
        }
        result
    }

    fn judge_and_keep(
        &mut self,
        now: Time,
        record: Record,
        judge: Judge<'_>,
    ) -> Result<(), StoreRefusal> {
        if record.value.len() > RECORD_VALUE_BYTES_MAX {
            return Err(StoreRefusal::TooLarge);
        }
        let lifetime = Duration::from_secs(record.lifetime.into());
        if lifetime > RECORD_LIFETIME_MAX || record.ttl > lifetime || record.ttl.is_zero() {
            return Err(StoreRefusal::Lifetime);
        }
        if !is_key_right(judge.realm, &record) {
            return Err(StoreRefusal::WrongKey);
        }
        let place = (record.key, record.kind, record.author);
        let old_cost = match self.records.get(&place) {
            Some(held) if held.record.sequence > record.sequence => {
                return Err(StoreRefusal::Stale);
            }
            Some(held) if held.record.sequence == record.sequence => {
                let is_same =
                    held.record.value == record.value && held.record.signature == record.signature;
                return if is_same { Ok(()) } else { Err(StoreRefusal::Stale) };
            }
            Some(held) => cost(&held.record),
            None if record.value.is_empty() => return Ok(()),
            None => 0,
        };
        self.has_room(&record, old_cost, judge.limits)?;
        let signed = record.signed_bytes(judge.realm);
        if !judge.notary.verify(&record.author, &signed, &record.signature) {
            return Err(StoreRefusal::Signature);
        }
        self.remove(&place);
        let (expires, bytes) = (now + record.ttl, cost(&record));
        self.bytes += bytes;
        *self.of_author.entry(record.author).or_default() += bytes;
        *self.of_key.entry(record.key).or_default() += bytes;
        self.due.insert((expires, place));
        self.records.insert(place, Held { record, expires });
        Ok(())
    }

    fn has_room(
        &self,
        record: &Record,
        old_cost: usize,
        limits: &StoreLimits,
    ) -> Result<(), StoreRefusal> {
        let more = cost(record);
        let after = |held: usize| held.saturating_sub(old_cost) + more;
        let of_author = self.of_author.get(&record.author).copied().unwrap_or_default();
        let of_key = self.of_key.get(&record.key).copied().unwrap_or_default();
        if after(of_key) > limits.bytes_per_key_max {
            return Err(StoreRefusal::KeyFull);
        }
        if after(of_author) > limits.bytes_per_author_max {
            return Err(StoreRefusal::AuthorFull);
        }
        if after(self.bytes) > limits.bytes_max {
            return Err(StoreRefusal::RealmFull);
        }
        Ok(())
    }

    fn remove(&mut self, place: &Place) -> bool {
        let Some(held) = self.records.remove(place) else { return false };
        self.due.remove(&(held.expires, *place));
        let bytes = cost(&held.record);
        self.bytes -= bytes;
        take_from(&mut self.of_author, &held.record.author, bytes);
        take_from(&mut self.of_key, &held.record.key, bytes);
        true
    }

    /// Drops what has expired; returns how many.
    pub(super) fn expire(&mut self, now: Time) -> u64 {
        let mut count = 0;
        while let Some((due, place)) = self.due.first().copied() {
            if due > now {
                break;
            }
            count += u64::from(self.remove(&place));
        }
        count
    }

    /// When the next record expires.
    pub(super) fn next_expiry(&self) -> Option<Time> {
        self.due.first().map(|(due, _)| *due)
    }

    /// The records of a kind at a key, with what remains of their lives. Those that were taken back
    /// are not among them.
    pub(super) fn get(&self, now: Time, key: Key, kind: u8) -> impl Iterator<Item = Record> {
        let from = (key, kind, EndpointId::from_bytes([0; 32]));
        let to = (key, kind, EndpointId::from_bytes([0xff; 32]));
        let range = self.records.range(from..=to);
        range.filter(|(_, held)| !held.record.value.is_empty()).map(move |(_, held)| held.at(now))
    }

    /// All records, those that were taken back included, with what remains of their lives.
    pub(super) fn iter(&self, now: Time) -> impl Iterator<Item = Record> {
        self.records.values().map(move |held| held.at(now))
    }

    /// How many records there are.
    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    /// What they cost together.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Held {
    fn at(&self, now: Time) -> Record {
        Record { ttl: self.expires.saturating_since(now), ..self.record.clone() }
    }
}

fn take_from<K: Ord>(sums: &mut BTreeMap<K, usize>, key: &K, bytes: usize) {
    if let Some(sum) = sums.get_mut(key) {
        *sum -= bytes;
        if *sum == 0 {
            sums.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::super::record::{kind, provider_value};
    use super::*;
    use crate::id::KeyKind;
    use crate::overlay::Coordinate;

    /// Signs with the author's first byte.
    struct Simple;

    impl Notary for Simple {
        fn sign(&self, author: &EndpointId, message: &[u8]) -> [u8; 64] {
            [author.as_bytes()[0] ^ message.len() as u8; 64]
        }

        fn verify(&self, author: &EndpointId, message: &[u8], signature: &[u8; 64]) -> bool {
            self.sign(author, message) == *signature
        }
    }

    fn realm() -> RealmId {
        RealmId::of_name("r")
    }

    fn record(key: u8, author: u32, sequence: u64, value: usize, lifetime: u32) -> Record {
        let mut id = [0; 32];
        id[..4].copy_from_slice(&author.to_le_bytes());
        let mut record = Record {
            key: Key::from_bytes([key; 20]),
            kind: kind::USER,
            author: EndpointId::from_bytes(id),
            sequence,
            ttl: Duration::from_secs(lifetime.into()),
            lifetime,
            value: Bytes::from(vec![7; value]),
            signature: [0; 64],
        };
        record.signature = Simple.sign(&record.author, &record.signed_bytes(&realm()));
        record
    }

    fn put(store: &mut Store, now: Time, record: Record) -> Result<(), StoreRefusal> {
        let limits = StoreLimits::default();
        let judge = Judge { realm: &realm(), notary: &Simple, limits: &limits };
        store.put(now, record, judge, &mut Stats::default())
    }

    #[test]
    fn what_is_wrong_is_refused_and_says_why() {
        let mut store = Store::default();
        let now = Time::START;
        let mut forged = record(1, 1, 1, 4, 60);
        forged.signature[0] ^= 1;
        assert_eq!(put(&mut store, now, forged), Err(StoreRefusal::Signature));
        let huge = record(1, 1, 1, RECORD_VALUE_BYTES_MAX + 1, 60);
        assert_eq!(put(&mut store, now, huge), Err(StoreRefusal::TooLarge));
        let eternal = record(1, 1, 1, 4, 49 * 3600);
        assert_eq!(put(&mut store, now, eternal), Err(StoreRefusal::Lifetime));
        let mut prolonged = record(1, 1, 1, 4, 60);
        prolonged.ttl = Duration::from_secs(61);
        assert_eq!(put(&mut store, now, prolonged), Err(StoreRefusal::Lifetime));
        let mut elsewhere = record(1, 1, 1, 4, 60);
        elsewhere.kind = kind::PROVIDER;
        elsewhere.value = provider_value(Coordinate::default(), "some.procedure");
        assert_eq!(put(&mut store, now, elsewhere), Err(StoreRefusal::WrongKey));
        assert_eq!((store.len(), store.bytes()), (0, 0));
    }

    #[test]
    fn a_provider_record_belongs_at_the_key_of_its_procedure() {
        let mut store = Store::default();
        let mut right = record(1, 1, 1, 4, 60);
        right.kind = kind::PROVIDER;
        right.key = Key::derive(&realm(), KeyKind::Procedure, b"some.procedure");
        right.value = provider_value(Coordinate::default(), "some.procedure");
        right.signature = Simple.sign(&right.author, &right.signed_bytes(&realm()));
        assert_eq!(put(&mut store, Time::START, right), Ok(()));
    }

    #[test]
    fn ten_thousand_authors_cannot_push_out_who_was_there() {
        let mut store = Store::default();
        put(&mut store, Time::START, record(1, 0, 1, 100, 60)).unwrap();
        let mut refused = 0;
        for author in 1..=10_000 {
            let result = put(&mut store, Time::START, record(1, author, 1, 100, 60));
            refused += u32::from(result == Err(StoreRefusal::KeyFull));
        }
        assert!(refused > 9_000);
        assert!(store.bytes() <= StoreLimits::default().bytes_per_key_max);
        let there = store.get(Time::START, Key::from_bytes([1; 20]), kind::USER);
        assert!(there.into_iter().any(|kept| kept.author == record(1, 0, 1, 1, 1).author));
        // and may renew what it has
        assert_eq!(put(&mut store, Time::START, record(1, 0, 2, 100, 60)), Ok(()));
        assert_eq!(
            put(&mut store, Time::START, record(1, 0, 1, 100, 60)),
            Err(StoreRefusal::Stale)
        );
    }

    #[test]
    fn one_author_cannot_fill_the_realm() {
        let mut store = Store::default();
        let mut kept = 0;
        for key in 0..200 {
            kept += u32::from(put(&mut store, Time::START, record(key, 1, 1, 4000, 60)).is_ok());
        }
        assert!(kept < 100 && store.bytes() <= StoreLimits::default().bytes_per_author_max);
        assert_eq!(put(&mut store, Time::START, record(201, 2, 1, 4000, 60)), Ok(()));
    }

    #[test]
    fn what_was_taken_back_stays_away() {
        let mut store = Store::default();
        let key = Key::from_bytes([1; 20]);
        put(&mut store, Time::START, record(1, 1, 1, 10, 60)).unwrap();
        put(&mut store, Time::START, record(1, 1, 2, 0, 60)).unwrap();
        assert_eq!(store.get(Time::START, key, kind::USER).count(), 0);
        assert_eq!(put(&mut store, Time::START, record(1, 1, 1, 10, 60)), Err(StoreRefusal::Stale));
        assert_eq!(store.expire(Time::START + Duration::from_secs(61)), 1);
        assert_eq!((store.len(), store.bytes(), store.next_expiry()), (0, 0, None));
    }

    proptest! {
        #[test]
        fn accounts_stay_exact(ops in prop::collection::vec(
            (0u8..4, 0u32..6, 0u64..5, 0usize..50_000, 1u32..30, 0u64..10), 0..200,
        )) {
            let mut store = Store::default();
            let mut now = Time::START;
            for (key, author, sequence, value, lifetime, wait) in ops {
                now = now + Duration::from_secs(wait);
                store.expire(now);
                put(&mut store, now, record(key, author, sequence, value % 9_000, lifetime)).ok();
                let sum: usize = store.iter(now).map(|record| cost(&record)).sum();
                prop_assert_eq!(store.bytes(), sum);
                prop_assert_eq!(store.of_author.values().sum::<usize>(), sum);
                prop_assert_eq!(store.of_key.values().sum::<usize>(), sum);
                prop_assert_eq!(store.due.len(), store.len());
                prop_assert!(store.iter(now).all(|record| !record.ttl.is_zero()));
            }
        }
    }
}
