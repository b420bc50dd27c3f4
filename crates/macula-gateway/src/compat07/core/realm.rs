//! What the clients of one realm want and keep: subscriptions, stored values, nodes.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::BuildHasher;
use std::sync::Arc;

use bytes::Bytes;

use super::topics;
use super::wire::{Contact, Key};

/// The door's number of a connection.
pub type ConnectionId = u64;
/// The door's number of a stream, over all connections.
pub type StreamId = u64;
/// Contacts in one answer.
pub const CONTACTS_MAX: usize = 20;

/// A realm.
#[derive(Debug, Default)]
pub struct Realm {
    /// Who answers to a node id now.
    pub nodes: BTreeMap<Bytes, Node>,
    /// Subscriptions.
    pub topics: Topics,
    /// Stored values.
    pub store: Store,
    /// Procedures that native peers are offered, by key.
    pub serving: BTreeMap<Key, String>,
    /// Topics on which clients have published, by hash: native nodes number the messages of each, and
    /// never forget how far they came.
    published: HashSet<u64>,
    hasher: RandomState,
}

/// A node that is connected.
#[derive(Debug)]
pub struct Node {
    /// By which connection.
    pub connection: ConnectionId,
    /// The URL that it told.
    pub endpoint: Option<Bytes>,
    /// Unix time of its last frame, milliseconds.
    pub last_seen: i128,
}

impl Realm {
    /// Whether clients may publish on a topic: it is known, or there is room for one more.
    pub fn admit_topic(&mut self, topic: &[u8], topics_max: usize) -> bool {
        let hash = self.hasher.hash_one(topic);
        if !self.published.contains(&hash) && self.published.len() >= topics_max {
            return false;
        }
        self.published.insert(hash);
        true
    }

    /// The nodes closest to a key.
    pub fn closest(&self, key: &[u8]) -> Vec<Contact> {
        let mut found: Vec<([u8; 32], &Bytes, &Node)> =
            self.nodes.iter().map(|(id, node)| (distance(id, key), id, node)).collect();
        if found.len() > CONTACTS_MAX {
            found.select_nth_unstable_by_key(CONTACTS_MAX, |(distance, ..)| *distance);
            found.truncate(CONTACTS_MAX);
        }
        found.sort_unstable_by_key(|(distance, ..)| *distance);
        let contact = |(_, id, node): ([u8; 32], &Bytes, &Node)| Contact {
            node_id: id.clone(),
            address: node.endpoint.clone(),
            last_seen: node.last_seen,
        };
        found.into_iter().map(contact).collect()
    }
}

/// XOR of the first 32 bytes; ids may have any length.
fn distance(id: &[u8], key: &[u8]) -> [u8; 32] {
    let mut distance = [0; 32];
    for (index, byte) in distance.iter_mut().enumerate() {
        let at = |bytes: &[u8]| bytes.get(index).copied().unwrap_or_default();
        *byte = at(id) ^ at(key);
    }
    distance
}

/// Who subscribed to what, and what native peers are asked for in return.
#[derive(Debug, Default)]
pub struct Topics {
    literals: BTreeMap<Bytes, BTreeSet<StreamId>>,
    wildcards: BTreeMap<Bytes, BTreeSet<StreamId>>,
    natives: BTreeMap<Arc<str>, Native>,
}

#[derive(Debug, Default)]
struct Native {
    /// What asks for it.
    patterns: BTreeSet<Bytes>,
    /// Messages come.
    is_active: bool,
}

impl Topics {
    /// Different patterns with wildcards.
    pub fn wildcards(&self) -> usize {
        self.wildcards.len()
    }

    /// Whether nobody has a subscription.
    pub fn is_empty(&self) -> bool {
        self.literals.is_empty() && self.wildcards.is_empty() && self.natives.is_empty()
    }

    /// Whether somebody has the pattern.
    pub fn has(&self, pattern: &[u8]) -> bool {
        self.literals.contains_key(pattern) || self.wildcards.contains_key(pattern)
    }

    /// Adds a subscription; returns whether the native pattern is to be asked for.
    pub fn add(&mut self, stream: StreamId, pattern: &Bytes, native: Option<&Arc<str>>) -> bool {
        self.table(pattern).entry(pattern.clone()).or_default().insert(stream);
        let Some(native) = native else { return false };
        let entry = self.natives.entry(native.clone()).or_default();
        let is_new = entry.patterns.is_empty();
        entry.patterns.insert(pattern.clone());
        is_new
    }

    /// Removes a subscription; returns whether the native pattern is asked for no more.
    pub fn remove(&mut self, stream: StreamId, pattern: &Bytes, native: Option<&Arc<str>>) -> bool {
        let table = self.table(pattern);
        let Some(streams) = table.get_mut(pattern) else { return false };
        streams.remove(&stream);
        if !streams.is_empty() {
            return false;
        }
        table.remove(pattern);
        let Some(native) = native else { return false };
        let Some(entry) = self.natives.get_mut(native) else { return false };
        entry.patterns.remove(pattern);
        let is_last = entry.patterns.is_empty();
        if is_last {
            self.natives.remove(native);
        }
        is_last
    }

    fn table(&mut self, pattern: &[u8]) -> &mut BTreeMap<Bytes, BTreeSet<StreamId>> {
        if topics::has_wildcards(pattern) { &mut self.wildcards } else { &mut self.literals }
    }

    /// The streams with a pattern that matches.
    pub fn subscribers(&self, topic: &[u8]) -> BTreeSet<StreamId> {
        let mut found = self.literals.get(topic).cloned().unwrap_or_default();
        for (pattern, streams) in &self.wildcards {
            if topics::matches(pattern, topic) {
                found.extend(streams);
            }
        }
        found
    }

    /// The streams with a pattern that matches and for which `native` is asked.
    pub fn subscribers_by(&self, native: &str, topic: &[u8]) -> BTreeSet<StreamId> {
        let mut found = BTreeSet::new();
        let patterns = self.natives.get(native).map(|native| &native.patterns);
        for pattern in patterns.into_iter().flatten() {
            if topics::matches(pattern, topic) {
                let streams = self.literals.get(pattern).or_else(|| self.wildcards.get(pattern));
                found.extend(streams.into_iter().flatten());
            }
        }
        found
    }

    /// Messages of native peers come, or not any more.
    pub fn set_active(&mut self, native: &str, is_active: bool) {
        if let Some(native) = self.natives.get_mut(native) {
            native.is_active = is_active;
        }
    }

    /// Whether messages of native peers come.
    pub fn is_active(&self, native: &str) -> bool {
        self.natives.get(native).is_some_and(|native| native.is_active)
    }
}

/// What clients keep: nothing of it outlives its owner's connection.
#[derive(Debug, Default)]
pub struct Store {
    values: BTreeMap<Key, Vec<Stored>>,
    owned: BTreeMap<Bytes, BTreeSet<Key>>,
    next: u64,
}

#[derive(Debug)]
struct Stored {
    owner: Bytes,
    /// Encoded.
    value: Bytes,
    /// Offers a procedure.
    is_service: bool,
    order: u64,
}

impl Store {
    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty() && self.owned.is_empty()
    }

    /// Keys of an owner.
    pub fn owned(&self, owner: &[u8]) -> usize {
        self.owned.get(owner).map_or(0, BTreeSet::len)
    }

    /// Whether an owner has something under a key.
    pub fn has(&self, owner: &[u8], key: &Key) -> bool {
        self.owned.get(owner).is_some_and(|keys| keys.contains(key))
    }

    /// Keeps a value; an owner has one per key.
    pub fn put(&mut self, owner: &Bytes, key: Key, value: Bytes, is_service: bool) {
        let order = self.next;
        self.next += 1;
        let values = self.values.entry(key).or_default();
        values.retain(|stored| stored.owner != *owner);
        values.push(Stored { owner: owner.clone(), value, is_service, order });
        self.owned.entry(owner.clone()).or_default().insert(key);
    }

    /// The value that was stored last.
    pub fn last(&self, key: &Key) -> Option<&Bytes> {
        let values = self.values.get(key)?;
        values.iter().max_by_key(|stored| stored.order).map(|stored| &stored.value)
    }

    /// Who offers the procedure, in order of offering.
    pub fn providers(&self, key: &Key) -> impl Iterator<Item = &Bytes> {
        let values = self.values.get(key).into_iter().flatten();
        values.filter(|stored| stored.is_service).map(|stored| &stored.owner)
    }

    /// Forgets all of an owner; returns the keys.
    pub fn remove(&mut self, owner: &[u8]) -> BTreeSet<Key> {
        let keys = self.owned.remove(owner).unwrap_or_default();
        for key in &keys {
            if let Some(values) = self.values.get_mut(key) {
                values.retain(|stored| stored.owner != owner);
                if values.is_empty() {
                    self.values.remove(key);
                }
            }
        }
        keys
    }
}
