//! The batches of a tree that are kept for those who miss them.

use std::collections::VecDeque;
use std::time::Duration;

use super::super::message::Cursor;
use crate::id::EndpointId;
use crate::pubsub::Seen;
use crate::time::Time;
use crate::wire::message::Publish;

/// A batch that is kept.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) at: Cursor,
    pub(super) publish: Publish,
    pub(super) came: Time,
}

impl Entry {
    fn bytes(&self) -> usize {
        cost(&self.publish)
    }
}

/// What a batch takes in a ring, bytes: beside the body topic and bookkeeping.
pub(super) fn cost(publish: &Publish) -> usize {
    publish.body.len() + publish.topic.len() + 256
}

/// Batches in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Ring {
    entries: VecDeque<Entry>,
    bytes: usize,
}

impl Ring {
    pub(super) fn push(&mut self, entry: Entry) {
        self.bytes += entry.bytes();
        self.entries.push_back(entry);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    /// Takes everything out.
    pub(super) fn take(&mut self) -> VecDeque<Entry> {
        self.bytes = 0;
        std::mem::take(&mut self.entries)
    }

    /// What somebody lacks who has come to `have`: of the same stream what lies behind, of others
    /// all.
    pub(super) fn lacking(&self, have: Cursor) -> impl Iterator<Item = &Entry> {
        self.entries
            .iter()
            .filter(move |entry| entry.at.stream != have.stream || entry.at.offset > have.offset)
    }

    /// The newest entries, back to the first of this stream behind `offset`.
    pub(super) fn newest(&self, stream: u64, offset: u64) -> impl Iterator<Item = &Entry> {
        let is_new = |entry: &&Entry| entry.at.stream == stream && entry.at.offset > offset;
        let count = self.entries.iter().rev().take_while(is_new).count();
        self.entries.iter().skip(self.entries.len() - count)
    }

    pub(super) fn contains(&self, at: Cursor) -> bool {
        self.entries.iter().rev().any(|entry| entry.at == at)
    }

    /// Where the message `sequence` of a publisher stands.
    pub(super) fn find(&self, publisher: &EndpointId, epoch: u64, sequence: u64) -> Option<Cursor> {
        let holds = |publish: &Publish| {
            publish.publisher == *publisher
                && publish.epoch == epoch
                && publish.first <= sequence
                && sequence - publish.first < u64::from(publish.count)
        };
        self.entries.iter().rev().find(|entry| holds(&entry.publish)).map(|entry| entry.at)
    }

    /// The batch of a publisher that begins with `first`.
    pub(super) fn get(&self, publisher: &EndpointId, epoch: u64, first: u64) -> Option<&Publish> {
        let publishes = self.entries.iter().rev().map(|entry| &entry.publish);
        publishes
            .filter(|publish| publish.publisher == *publisher)
            .find(|publish| publish.epoch == epoch && publish.first == first)
    }

    /// Drops what is older than `age`, and the oldest until no more than `bytes_max` are left.
    /// Returns how many had to go for want of room.
    pub(super) fn trim(&mut self, now: Time, age: Duration, bytes_max: usize) -> u64 {
        let mut crowded_out = 0;
        while let Some(oldest) = self.entries.front() {
            let is_old = now.saturating_since(oldest.came) >= age;
            if !is_old && self.bytes <= bytes_max {
                break;
            }
            crowded_out += u64::from(!is_old);
            self.bytes -= oldest.bytes();
            self.entries.pop_front();
        }
        if self.entries.is_empty() && self.entries.capacity() > 16 {
            self.entries = VecDeque::new();
        }
        crowded_out
    }

    /// When the oldest is too old.
    pub(super) fn due(&self, age: Duration) -> Option<Time> {
        self.entries.front().map(|entry| entry.came + age)
    }
}

/// How far a member has come in a root's stream.
#[derive(Clone, Debug, Default)]
pub(super) struct Place {
    /// 0: nowhere yet.
    pub(super) stream: u64,
    seen: Seen,
    /// Nothing up to here is expected.
    floor: u64,
    /// The highest offset that is known to exist.
    highest: u64,
}

impl Place {
    /// In a stream of which everything up to `floor` is settled.
    pub(super) fn begin(stream: u64, floor: u64) -> Self {
        let mut seen = Seen::default();
        seen.accept(floor, 1, false);
        Self { stream, seen, floor, highest: floor }
    }

    /// Takes note of an offset; whether it is new.
    pub(super) fn accept(&mut self, offset: u64) -> bool {
        self.highest = self.highest.max(offset);
        self.seen.accept(offset, 1, false).new.messages(1) > 0
    }

    /// Everything up to here is there, or will not come.
    pub(super) fn at(&self) -> Cursor {
        Cursor { stream: self.stream, offset: self.seen.contiguous() }
    }

    /// The highest offset that is known to exist.
    pub(super) const fn highest(&self) -> u64 {
        self.highest
    }

    /// An offset exists, somebody says.
    pub(super) fn hear(&mut self, offset: u64) {
        self.highest = self.highest.max(offset);
    }

    /// Whether something is missing, and up to where at most.
    pub(super) fn missing(&self) -> Option<u64> {
        (self.highest > self.seen.contiguous()).then_some(self.highest)
    }

    /// What is missing up to `offset` will not come; returns how many were.
    pub(super) fn settle(&mut self, offset: u64) -> u64 {
        self.highest = self.highest.max(offset);
        self.seen.settle_below(offset.saturating_add(1))
    }

    /// Somebody needs what lies behind `floor`; whether that is more than was expected.
    pub(super) fn lower(&mut self, floor: u64) -> bool {
        if floor >= self.floor || self.stream == 0 {
            return false;
        }
        let had = self.seen.contiguous();
        let count = u32::try_from(had.saturating_sub(self.floor)).unwrap_or(u32::MAX);
        let mut seen = Seen::default();
        seen.accept(floor, 1, false);
        if count > 0 {
            seen.accept(self.floor + 1, count, false);
        }
        self.highest = self.highest.max(had);
        self.seen = seen;
        self.floor = floor;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lowered_place_wants_what_lies_before() {
        let mut place = Place::begin(7, 10);
        assert!(place.accept(11) && place.accept(12) && !place.accept(12));
        assert_eq!((place.at().offset, place.missing()), (12, None));
        assert!(place.lower(8) && !place.lower(9));
        assert_eq!((place.at().offset, place.missing()), (8, Some(12)));
        assert!(place.accept(9) && !place.accept(12) && place.accept(10));
        assert_eq!((place.at().offset, place.missing()), (12, None));
    }

    #[test]
    fn a_gap_is_there_until_it_is_filled_or_settled() {
        let mut place = Place::begin(7, 0);
        assert!(place.accept(1) && place.accept(4));
        assert_eq!((place.at().offset, place.missing()), (1, Some(4)));
        assert_eq!(place.settle(3), 2);
        assert_eq!((place.at().offset, place.missing()), (4, None));
        place.hear(6);
        assert_eq!(place.missing(), Some(6));
    }
}
