//! The ring of a realm: QoS 1 messages until everybody known has them, and a while longer.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Topic;
use super::seen::StreamKey;
use crate::time::Time;
use crate::wire::message::Publish;

/// One batch in the ring.
#[derive(Debug)]
pub struct Entry {
    /// The batch.
    pub publish: Publish,
    /// Its topic.
    pub topic: Topic,
    /// Its publisher's stream.
    pub stream: StreamKey,
    /// When it came.
    pub at: Time,
    /// Subscribers that have not acknowledged it.
    pub pending: u32,
}

impl Entry {
    fn bytes(&self) -> usize {
        // what a frame costs beside its body: head, tree nodes, bookkeeping
        self.publish.body.len() + self.publish.topic.len() + 256
    }
}

/// All QoS 1 batches that a router holds for one realm, in order of arrival.
///
/// Settled entries (acknowledged by all) leave by age or when room is needed, oldest first.
/// Unsettled ones stay until [`Ring::acknowledge`]; the caller stops its publishers instead.
#[derive(Debug, Default)]
pub struct Ring {
    entries: BTreeMap<u64, Entry>,
    settled: BTreeSet<u64>,
    by_topic: BTreeMap<Topic, BTreeSet<u64>>,
    bytes: usize,
    next: u64,
}

impl Ring {
    /// Adds a batch that `pending` subscribers shall acknowledge; returns its number.
    pub fn insert(&mut self, entry: Entry) -> u64 {
        let id = self.next;
        self.next += 1;
        self.bytes += entry.bytes();
        if entry.pending == 0 {
            self.settled.insert(id);
        }
        self.by_topic.entry(entry.topic.clone()).or_default().insert(id);
        self.entries.insert(id, entry);
        id
    }

    /// The batch with this number, if it is still here.
    pub fn entry(&self, id: u64) -> Option<&Entry> {
        self.entries.get(&id)
    }

    /// One subscriber has it (or is gone). Returns its stream when that settles the entry.
    pub fn acknowledge(&mut self, id: u64) -> Option<StreamKey> {
        let entry = self.entries.get_mut(&id)?;
        entry.pending = entry.pending.saturating_sub(1);
        if entry.pending > 0 {
            return None;
        }
        self.settled.insert(id);
        Some(entry.stream.clone())
    }

    /// One more subscriber shall acknowledge it.
    pub fn reopen(&mut self, id: u64) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.pending += 1;
            self.settled.remove(&id);
        }
    }

    /// Whether everybody known has the entry, or it is gone.
    pub fn is_settled(&self, id: u64) -> bool {
        self.entries.get(&id).is_none_or(|entry| entry.pending == 0)
    }

    /// Makes room by forgetting the oldest settled entries until at most `bytes_max` are held.
    pub fn evict(&mut self, bytes_max: usize) {
        while self.bytes > bytes_max {
            let Some(id) = self.settled.pop_first() else { return };
            self.remove(id);
        }
    }

    /// Forgets settled entries older than `age`; returns when the next one is due.
    pub fn expire(&mut self, now: Time, age: Duration) -> Option<Time> {
        while let Some(id) = self.settled.first().copied() {
            let due = self.entries.get(&id).map_or(Time::START, |entry| entry.at + age);
            if due > now {
                return Some(due);
            }
            self.settled.pop_first();
            self.remove(id);
        }
        None
    }

    /// Numbers of the entries whose topics satisfy `matches`, oldest first.
    pub fn matching(&self, matches: impl Fn(&Topic) -> bool) -> BTreeSet<u64> {
        self.by_topic
            .iter()
            .filter(|(topic, _)| matches(topic))
            .flat_map(|(_, ids)| ids.iter().copied())
            .collect()
    }

    /// Bytes held, bookkeeping included.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Batches held.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn remove(&mut self, id: u64) {
        let Some(entry) = self.entries.remove(&id) else { return };
        self.bytes -= entry.bytes();
        if let Some(ids) = self.by_topic.get_mut(&entry.topic) {
            ids.remove(&id);
            if ids.is_empty() {
                self.by_topic.remove(&entry.topic);
            }
        }
    }
}
