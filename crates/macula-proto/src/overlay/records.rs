//! Records between routers: stored at the router closest to their key and its siblings, handed over
//! when those change, announced again by their authors, fetched and cached by who asks.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;

use super::api::Event;
use super::core::{Arrival, Core, Outcome, Tag, Upcall};
use super::message::{Body, Message, Reply, StoreRefusal};
use super::record::{Record, kind};
use super::store::{Judge, Store};
use crate::id::{Key, LinkId, QueryId};
use crate::limits::{RECORD_LIFETIME_MAX, RECORD_VALUE_BYTES_MAX, RECORDS_PER_MESSAGE_MAX};
use crate::time::Time;

/// How long the root waits for its siblings to say that they have a copy.
const COPIES_WITHIN: Duration = Duration::from_millis(500);
/// How long fetched records are used without asking again.
const CACHE_FOR: Duration = Duration::from_secs(60);
/// Keys and kinds in the cache; the oldest makes room.
const CACHED_MAX: usize = 1024;
/// Puts that wait for copies at one root.
const WAITING_MAX: usize = 1024;
/// Records in one answer, bytes of their values.
const ANSWER_BYTES_MAX: usize = 40 * 1024;
/// From a change of siblings to the hand-over that it causes.
const HAND_OVER_AFTER: Duration = Duration::from_millis(300);
/// Records that this node announces at once, its own.
const ANNOUNCED_MAX: usize = 4096;

/// Lifetimes are signed in whole seconds.
const LIFETIME_MIN: Duration = Duration::from_secs(1);

/// What a request was for.
#[derive(Debug)]
enum Purpose {
    /// The application's put, or (none) an announcement again.
    Put(Option<QueryId>),
    Fetch {
        key: Key,
        kind: u8,
    },
}

/// Who waits for records.
#[derive(Clone, Copy, Debug)]
enum Waiter {
    Query(QueryId),
    Call(u64),
}

/// Something that this node keeps announcing.
#[derive(Debug)]
struct Announced {
    value: Bytes,
    lifetime: Duration,
    due: Time,
}

/// A put that waits for copies.
#[derive(Debug)]
struct Waiting {
    arrival: Arrival,
    missing: u8,
    copies: u8,
    due: Time,
}

/// The records part of a node.
#[derive(Debug, Default)]
pub(super) struct Records {
    store: Store,
    purposes: BTreeMap<u64, Purpose>,
    next: u64,
    announced: BTreeMap<(Key, u8), Announced>,
    waiting: BTreeMap<u64, Waiting>,
    fetching: BTreeMap<(Key, u8), Vec<Waiter>>,
    cache: BTreeMap<(Key, u8), (Time, Vec<Record>)>,
    sequence: u64,
    hand_over: Option<Time>,
    /// Siblings that have got what belongs to them.
    supplied: BTreeSet<LinkId>,
}

impl Records {
    /// Records held for others and cached ones, and the bytes of the former.
    pub(super) fn sizes(&self) -> (usize, usize, usize) {
        (self.store.len(), self.cache.len(), self.store.bytes())
    }

    /// The application stores a value, or takes it back.
    pub(super) fn put(
        &mut self,
        core: &mut Core,
        now: Time,
        query: QueryId,
        key: Key,
        value: Bytes,
        lifetime: Duration,
    ) {
        // what nobody would keep is not announced
        let refusal = if value.len() > RECORD_VALUE_BYTES_MAX {
            Some(StoreRefusal::TooLarge)
        } else if lifetime > RECORD_LIFETIME_MAX || lifetime < LIFETIME_MIN {
            Some(StoreRefusal::Lifetime)
        } else {
            None
        };
        if let Some(refusal) = refusal {
            return core.event(Event::PutDone { query, result: Err(Some(refusal)) });
        }
        if value.is_empty() {
            self.announced.remove(&(key, kind::USER));
            return self.send_put(core, now, key, kind::USER, value, lifetime, Some(query));
        }
        if !self.announce_with(core, now, key, kind::USER, value, lifetime, Some(query)) {
            let result = Err(Some(StoreRefusal::AuthorFull));
            core.event(Event::PutDone { query, result });
        }
    }

    /// Stores a value of this node and keeps it alive.
    pub(super) fn announce(
        &mut self,
        core: &mut Core,
        now: Time,
        key: Key,
        kind: u8,
        value: Bytes,
        lifetime: Duration,
    ) -> bool {
        self.announce_with(core, now, key, kind, value, lifetime, None)
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one record")]
    fn announce_with(
        &mut self,
        core: &mut Core,
        now: Time,
        key: Key,
        kind: u8,
        value: Bytes,
        lifetime: Duration,
        query: Option<QueryId>,
    ) -> bool {
        if self.announced.len() >= ANNOUNCED_MAX && !self.announced.contains_key(&(key, kind)) {
            return false;
        }
        let due = now + core.jittered(lifetime / 4);
        self.announced.insert((key, kind), Announced { value: value.clone(), lifetime, due });
        self.send_put(core, now, key, kind, value, lifetime, query);
        true
    }

    /// Takes a value of this node back.
    pub(super) fn retract(&mut self, core: &mut Core, now: Time, key: Key, kind: u8) {
        if let Some(announced) = self.announced.remove(&(key, kind)) {
            self.send_put(core, now, key, kind, Bytes::new(), announced.lifetime, None);
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one record")]
    fn send_put(
        &mut self,
        core: &mut Core,
        now: Time,
        key: Key,
        kind: u8,
        value: Bytes,
        lifetime: Duration,
        query: Option<QueryId>,
    ) {
        // higher than before, also after a restart, as long as clocks run forward
        self.sequence = (self.sequence + 1).max(now.as_micros());
        let lifetime = u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX);
        let mut record = Record {
            key,
            kind,
            author: core.id,
            sequence: self.sequence,
            ttl: Duration::from_secs(lifetime.into()),
            lifetime,
            value,
            signature: [0; 64],
        };
        record.signature = core.config.notary.sign(&core.id, &record.signed_bytes(&core.realm));
        self.cache.remove(&(key, kind));
        let number = self.remember(Purpose::Put(query));
        core.request(now, key, Body::Put(record), 1, Tag::Records(number));
    }

    fn remember(&mut self, purpose: Purpose) -> u64 {
        self.next += 1;
        self.purposes.insert(self.next, purpose);
        self.next
    }

    /// The application fetches records.
    pub(super) fn fetch(&mut self, core: &mut Core, now: Time, query: QueryId, key: Key, kind: u8) {
        self.fetch_for(core, now, Waiter::Query(query), key, kind);
    }

    /// A call wants the providers at a procedure's key.
    pub(super) fn fetch_for_call(&mut self, core: &mut Core, now: Time, call: u64, key: Key) {
        self.fetch_for(core, now, Waiter::Call(call), key, kind::PROVIDER);
    }

    /// What was fetched has proved wrong: ask again next time.
    pub(super) fn forget_cached(&mut self, key: Key, kind: u8) {
        self.cache.remove(&(key, kind));
    }

    fn fetch_for(&mut self, core: &mut Core, now: Time, waiter: Waiter, key: Key, kind: u8) {
        if let Some((until, records)) = self.cache.get(&(key, kind))
            && *until > now
        {
            let records = records.clone();
            return tell(core, waiter, Some(records));
        }
        let waiters = self.fetching.entry((key, kind)).or_default();
        waiters.push(waiter);
        if waiters.len() == 1 {
            let number = self.remember(Purpose::Fetch { key, kind });
            core.request(now, key, Body::Fetch { kind }, 1, Tag::Records(number));
        }
    }

    /// A put or a fetch has arrived at this node, which is the closest to the key that it knows.
    pub(super) fn arrived(&mut self, core: &mut Core, now: Time, arrival: Arrival) {
        match &arrival.body {
            Body::Put(record) => {
                let record = record.clone();
                self.store_as_root(core, now, arrival, record);
            }
            Body::Fetch { kind } => {
                let mut room = ANSWER_BYTES_MAX;
                let mut records: Vec<Record> = self
                    .store
                    .get(now, arrival.target, *kind)
                    .take(RECORDS_PER_MESSAGE_MAX)
                    .collect();
                records.retain(|record| match room.checked_sub(record.value.len()) {
                    Some(rest) => {
                        room = rest;
                        true
                    }
                    None => false,
                });
                core.answer(now, &arrival, Reply::Records(records));
            }
            _ => {}
        }
    }

    fn store_as_root(&mut self, core: &mut Core, now: Time, arrival: Arrival, record: Record) {
        if record.key != arrival.target {
            return core.answer(now, &arrival, Reply::Refused(StoreRefusal::WrongKey));
        }
        if self.waiting.len() >= WAITING_MAX {
            return core.answer(now, &arrival, Reply::Refused(StoreRefusal::Busy));
        }
        if let Err(refusal) = self.keep(core, now, record.clone()) {
            return core.answer(now, &arrival, Reply::Refused(refusal));
        }
        let holders = self.other_holders(core, &record.key);
        if holders.is_empty() {
            return core.answer(now, &arrival, Reply::Stored { copies: 1 });
        }
        let token = core.draw().max(1);
        let missing = u8::try_from(holders.len()).unwrap_or(u8::MAX);
        for link in holders {
            core.send(link, Message::Replicate { token, records: vec![record.clone()] });
        }
        let due = now + COPIES_WITHIN;
        self.waiting.insert(token, Waiting { arrival, missing, copies: 1, due });
    }

    fn keep(&mut self, core: &mut Core, now: Time, record: Record) -> Result<(), StoreRefusal> {
        let config = core.config.clone();
        let judge = Judge { realm: &core.realm, notary: &*config.notary, limits: &config.store };
        self.store.put(now, record, judge, &mut core.stats)
    }

    /// Links to those who hold a key beside this node: among the closest that it knows.
    fn other_holders(&self, core: &Core, key: &Key) -> Vec<LinkId> {
        let count = core.config.siblings + 1;
        let closest = core.closest_to(key, count);
        closest.iter().filter_map(|contact| core.link_to(&contact.id)).collect()
    }

    /// Copies came from somebody who holds them.
    pub(super) fn replicated(
        &mut self,
        core: &mut Core,
        now: Time,
        from: LinkId,
        token: u64,
        records: Vec<Record>,
    ) {
        if core.peer(from).is_none() || records.len() > RECORDS_PER_MESSAGE_MAX {
            core.stats.messages_unexpected += 1;
            return;
        }
        let count = 2 * (core.config.siblings + 1);
        let mut are_all_kept = true;
        for record in records {
            let closest = core.closest_to(&record.key, count);
            if !closest.iter().any(|contact| contact.id == core.id) {
                core.stats.records_refused_place += 1;
                are_all_kept = false;
                continue;
            }
            are_all_kept &= self.keep(core, now, record).is_ok();
        }
        if token != 0 && are_all_kept {
            core.send(from, Message::Kept { token });
        }
    }

    /// A sibling has a copy.
    pub(super) fn kept(&mut self, core: &mut Core, now: Time, from: LinkId, token: u64) {
        let Some(waiting) = self.waiting.get_mut(&token) else { return };
        if core.peer(from).is_none() {
            return;
        }
        waiting.copies = waiting.copies.saturating_add(1);
        waiting.missing = waiting.missing.saturating_sub(1);
        if waiting.missing == 0
            && let Some(waiting) = self.waiting.remove(&token)
        {
            core.answer(now, &waiting.arrival, Reply::Stored { copies: waiting.copies });
        }
    }

    /// A request of this part has ended.
    pub(super) fn replied(&mut self, core: &mut Core, now: Time, tag: Tag, outcome: Outcome) {
        let Tag::Records(number) = tag else { return };
        match self.purposes.remove(&number) {
            Some(Purpose::Put(Some(query))) => {
                let result = match outcome.reply {
                    Some(Reply::Stored { copies }) => Ok(copies),
                    Some(Reply::Refused(refusal)) => Err(Some(refusal)),
                    _ => Err(None),
                };
                core.event(Event::PutDone { query, result });
            }
            Some(Purpose::Fetch { key, kind }) => {
                let records = match outcome.reply {
                    Some(Reply::Records(records)) => Some(check(core, key, kind, records)),
                    _ => None,
                };
                // nothing found is not worth remembering: it may come any moment
                if let Some(records) = records.as_ref().filter(|records| !records.is_empty()) {
                    self.cache_until(now, key, kind, records.clone());
                }
                for waiter in self.fetching.remove(&(key, kind)).unwrap_or_default() {
                    tell(core, waiter, records.clone());
                }
            }
            Some(Purpose::Put(None)) | None => {}
        }
    }

    fn cache_until(&mut self, now: Time, key: Key, kind: u8, records: Vec<Record>) {
        if self.cache.len() >= CACHED_MAX {
            self.cache.retain(|_, (until, _)| *until > now);
            let oldest = self.cache.iter().min_by_key(|(_, (until, _))| *until);
            if let Some(place) =
                oldest.map(|(place, _)| *place).filter(|_| self.cache.len() >= CACHED_MAX)
            {
                self.cache.remove(&place);
            }
        }
        let shortest = records.iter().map(|record| record.ttl).min().unwrap_or(CACHE_FOR);
        self.cache.insert((key, kind), (now + shortest.min(CACHE_FOR), records));
    }

    /// Others are the closest now: they shall have what belongs to them.
    pub(super) fn siblings_changed(&mut self, core: &mut Core, now: Time) {
        if self.store.len() > 0 && self.hand_over.is_none() {
            self.hand_over = Some(now + core.jittered(HAND_OVER_AFTER));
        }
    }

    fn hand_over(&mut self, core: &mut Core, now: Time) {
        let current: BTreeSet<LinkId> = core.siblings().iter().map(|(link, _)| *link).collect();
        let new: Vec<LinkId> = current.difference(&self.supplied).copied().collect();
        self.supplied = current;
        if new.is_empty() {
            return;
        }
        let mut loads: BTreeMap<LinkId, Vec<Record>> = BTreeMap::new();
        for record in self.store.iter(now) {
            let holders = self.other_holders(core, &record.key);
            for link in new.iter().filter(|link| holders.contains(link)) {
                loads.entry(*link).or_default().push(record.clone());
            }
        }
        for (link, records) in loads {
            send_in_parts(core, link, records);
        }
    }

    /// Hands everything to the two closest routers.
    pub(super) fn leave(&mut self, core: &mut Core, now: Time) {
        let records: Vec<Record> = self.store.iter(now).collect();
        for (link, _) in core.siblings().into_iter().take(2) {
            send_in_parts(core, link, records.clone());
        }
        self.announced.clear();
    }

    pub(super) fn poll_timeout(&self) -> Option<Time> {
        [
            self.hand_over,
            self.store.next_expiry(),
            self.waiting.values().map(|waiting| waiting.due).min(),
            self.announced.values().map(|announced| announced.due).min(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    pub(super) fn tick(&mut self, core: &mut Core, now: Time) {
        core.stats.records_expired += self.store.expire(now);
        if self.hand_over.is_some_and(|due| due <= now) {
            self.hand_over = None;
            self.hand_over(core, now);
        }
        let late = self.waiting.extract_if(.., |_, waiting| waiting.due <= now);
        let late: Vec<Waiting> = late.map(|(_, waiting)| waiting).collect();
        for waiting in late {
            core.answer(now, &waiting.arrival, Reply::Stored { copies: waiting.copies });
        }
        let due: Vec<(Key, u8)> = self
            .announced
            .iter()
            .filter(|(_, announced)| announced.due <= now)
            .map(|(place, _)| *place)
            .collect();
        for (key, kind) in due {
            let Some(announced) = self.announced.get_mut(&(key, kind)) else { continue };
            let lifetime = announced.lifetime;
            let value = announced.value.clone();
            announced.due = now + core.jittered(lifetime / 4);
            self.send_put(core, now, key, kind, value, lifetime, None);
        }
    }
}

fn send_in_parts(core: &mut Core, link: LinkId, records: Vec<Record>) {
    let mut part = Vec::new();
    let mut room = ANSWER_BYTES_MAX;
    for record in records {
        if part.len() >= RECORDS_PER_MESSAGE_MAX || record.value.len() > room {
            core.send(link, Message::Replicate { token: 0, records: std::mem::take(&mut part) });
            room = ANSWER_BYTES_MAX;
        }
        room = room.saturating_sub(record.value.len());
        part.push(record);
    }
    if !part.is_empty() {
        core.send(link, Message::Replicate { token: 0, records: part });
    }
}

/// Leaves only what was asked for and is rightly signed, one of each author.
fn check(core: &mut Core, key: Key, kind: u8, records: Vec<Record>) -> Vec<Record> {
    let mut checked: Vec<Record> = Vec::new();
    for record in records.into_iter().take(RECORDS_PER_MESSAGE_MAX) {
        let is_asked_for = record.key == key && record.kind == kind && !record.value.is_empty();
        let is_new = !checked.iter().any(|other| other.author == record.author);
        let signed = record.signed_bytes(&core.realm);
        if is_asked_for
            && is_new
            && super::record::is_key_right(&core.realm, &record)
            && core.config.notary.verify(&record.author, &signed, &record.signature)
        {
            checked.push(record);
        } else {
            core.stats.records_refused_signature += 1;
        }
    }
    checked
}

fn tell(core: &mut Core, waiter: Waiter, records: Option<Vec<Record>>) {
    match waiter {
        Waiter::Query(query) => core.event(Event::FetchDone { query, records }),
        Waiter::Call(call) => core.upcall(Upcall::Fetched { call, records }),
    }
}
