//! Which messages of a stream are new.

use crate::id::EndpointId;
use crate::seeded::{SeededMap, SeededState};

use super::topic::Topic;

/// Ranges that a [`Seen`] remembers ahead of the lowest gap.
pub const SEEN_RANGES_MAX: usize = 32;

/// What a node has seen of one stream: the messages of one publisher, epoch and topic.
///
/// Everything below [`Seen::next`] is settled: seen, given up, or from before the first contact.
/// Above it at most [`SEEN_RANGES_MAX`] ranges are remembered; one more makes the lowest gap be
/// given up, so that memory stays bounded and a message is never taken twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// `None` before the first contact.
    next: Option<u64>,
    /// Sorted, apart from each other and from `next`; `end` is not part of a range.
    ahead: Vec<Span>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    start: u64,
    end: u64,
}

impl Span {
    const fn of(first: u64, count: u32) -> Self {
        Self { start: first, end: first.saturating_add(count as u64) }
    }

    const fn messages(self) -> u64 {
        self.end - self.start
    }
}

/// What a batch brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Which of its messages were never seen before.
    pub new: NewMessages,
    /// Messages just below the batch that are missing and were not known to be: the gap that it
    /// tore. They may still come.
    pub missing: u64,
    /// Missing messages that were given up to stay within [`SEEN_RANGES_MAX`]; should they come
    /// after all, they count as seen.
    pub given_up: u64,
}

/// Which messages of a batch are new.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NewMessages {
    /// None: a duplicate.
    None,
    /// All of them.
    All,
    /// All but so many at its beginning: the overlap of a resumption.
    AllAfter(u32),
    /// These, in ascending order: the batch fills holes. At most [`SEEN_RANGES_MAX`] + 1.
    Parts(Vec<NewRange>),
}

/// Consecutive messages of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewRange {
    /// Sequence of the first.
    pub first: u64,
    /// How many, at least 1.
    pub count: u32,
}

impl Accepted {
    const fn only(new: NewMessages) -> Self {
        Self { new, missing: 0, given_up: 0 }
    }
}

impl NewMessages {
    /// How many of the `count` messages of the batch are new.
    pub fn messages(&self, count: u32) -> u32 {
        match self {
            Self::None => 0,
            Self::All => count,
            Self::AllAfter(skip) => count.saturating_sub(*skip),
            Self::Parts(parts) => parts.iter().map(|part| part.count).sum(),
        }
    }
}

impl Seen {
    /// Takes note of the messages `first .. first + count` and tells which of them are new.
    ///
    /// `start`: no message of the epoch precedes `first` on this topic, so what lies below is no
    /// gap. On the first contact without `start`, what precedes is unknown; it counts as settled
    /// and not as missing. Sequences at the very end of `u64` (from a broken publisher) count as
    /// seen.
    pub fn accept(&mut self, first: u64, count: u32, start: bool) -> Accepted {
        let batch = Span::of(first, count);
        if batch.messages() == 0 {
            return Accepted::only(NewMessages::None);
        }
        let next = *self.next.get_or_insert(first);
        if self.ahead.is_empty() {
            if first == next {
                self.next = Some(batch.end);
                return Accepted::only(NewMessages::of_one(NewRange::of(batch), first, count));
            }
            if batch.end <= next {
                return Accepted::only(NewMessages::None);
            }
        }
        if start && first > next {
            self.settle_below(first);
        }
        self.accept_out_of_order(first, count)
    }

    /// The lowest sequence that is neither seen nor given up; `None` before the first contact.
    pub const fn next(&self) -> Option<u64> {
        self.next
    }

    /// The last sequence before the lowest gap; 0 when there is none. Publishers count from 1.
    pub fn contiguous(&self) -> u64 {
        self.next.map_or(0, |next| next.saturating_sub(1))
    }

    /// Messages that are missing now, in all gaps together.
    pub fn missing(&self) -> u64 {
        let (Some(next), Some(last)) = (self.next, self.ahead.last()) else { return 0 };
        last.end - next - self.ahead.iter().map(|span| span.messages()).sum::<u64>()
    }

    /// Calls everything below `sequence` settled, for example because its publisher gave it up;
    /// returns how many missing messages that writes off. Without effect before the first contact.
    pub fn settle_below(&mut self, sequence: u64) -> u64 {
        let Some(next) = self.next else { return 0 };
        if sequence <= next {
            return 0;
        }
        let whole = self.ahead.partition_point(|span| span.end <= sequence);
        let seen: u64 = self.ahead.drain(..whole).map(Span::messages).sum();
        let cut = self.ahead.first().map_or(0, |span| sequence.saturating_sub(span.start));
        self.next = Some(sequence);
        self.absorb();
        sequence - next - seen - cut
    }

    fn accept_out_of_order(&mut self, first: u64, count: u32) -> Accepted {
        let batch = Span::of(first, count);
        let next = self.next.unwrap_or(batch.start);
        let highest = self.ahead.last().map_or(next, |span| span.end);
        let missing = batch.start.saturating_sub(highest);
        let parts = self.holes_within(Span { start: batch.start.max(next), end: batch.end });
        let given_up = if parts.is_empty() { 0 } else { self.remember(batch) };
        Accepted { new: NewMessages::of(parts, first, count), missing, given_up }
    }

    /// The parts of `batch` that no range covers.
    fn holes_within(&self, batch: Span) -> Vec<NewRange> {
        let mut parts = Vec::new();
        let mut start = batch.start;
        let from = self.ahead.partition_point(|span| span.end <= batch.start);
        for span in self.ahead.iter().skip(from).take_while(|span| span.start < batch.end) {
            if span.start > start {
                parts.push(NewRange::of(Span { start, end: span.start }));
            }
            start = span.end;
        }
        if start < batch.end {
            parts.push(NewRange::of(Span { start, end: batch.end }));
        }
        parts
    }

    /// Adds a range and returns how many missing messages had to be given up for it.
    fn remember(&mut self, batch: Span) -> u64 {
        // The ranges that overlap or touch `batch` become one with it.
        let from = self.ahead.partition_point(|span| span.end < batch.start);
        let to = self.ahead.partition_point(|span| span.start <= batch.end);
        let merged = self.ahead.drain(from..to).fold(batch, |merged, span| Span {
            start: merged.start.min(span.start),
            end: merged.end.max(span.end),
        });
        self.ahead.insert(from, merged);
        self.absorb();
        match self.ahead.first() {
            Some(lowest) if self.ahead.len() > SEEN_RANGES_MAX => {
                let start = lowest.start;
                self.settle_below(start)
            }
            _ => 0,
        }
    }

    /// Moves `next` over the range that it has reached; ranges are apart, so it is only one.
    fn absorb(&mut self) {
        if let (Some(next), Some(lowest)) = (self.next, self.ahead.first().copied())
            && lowest.start <= next
        {
            self.next = Some(next.max(lowest.end));
            self.ahead.remove(0);
        }
    }
}

impl NewRange {
    fn of(span: Span) -> Self {
        // A part of a batch, and batches count their messages in 32 bits.
        let count = u32::try_from(span.messages()).unwrap_or(u32::MAX);
        Self { first: span.start, count }
    }
}

impl NewMessages {
    fn of(parts: Vec<NewRange>, first: u64, count: u32) -> Self {
        match *parts.as_slice() {
            [] => Self::None,
            [part] => Self::of_one(part, first, count),
            _ => Self::Parts(parts),
        }
    }

    fn of_one(part: NewRange, first: u64, count: u32) -> Self {
        match count.checked_sub(part.count) {
            Some(0) => Self::All,
            Some(skip) if part.first.checked_sub(first) == Some(skip.into()) => {
                Self::AllAfter(skip)
            }
            _ => Self::Parts(vec![part]),
        }
    }
}

/// Names a stream: sequence numbers belong to one publisher, epoch and topic.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamKey {
    /// Who published.
    pub publisher: EndpointId,
    /// The publisher's instance.
    pub epoch: u64,
    /// Topic.
    pub topic: Topic,
}

/// What a node has seen of many streams; the one used longest ago makes room for a new one.
///
/// A forgotten stream that goes on is a first contact again: nothing of it is lost, but a
/// duplicate from before is not recognised. Whoever opens more streams than one publisher may pushes
/// out its own.
pub struct SeenTable {
    index: SeededMap<StreamKey, u32>,
    /// Never shrinks; two lists by last use run through it.
    slots: Vec<Slot>,
    /// The list of all.
    all: Ends,
    /// The list of each publisher, and how long it is.
    own: SeededMap<EndpointId, (Ends, usize)>,
    capacity: usize,
    per_publisher: usize,
    evicted: u64,
}

struct Slot {
    key: StreamKey,
    seen: Seen,
    /// Neighbours among all, and among those of the publisher.
    all: Neighbours,
    own: Neighbours,
}

/// Ends a list by last use.
const NOWHERE: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Neighbours {
    newer: u32,
    older: u32,
}

#[derive(Clone, Copy)]
struct Ends {
    newest: u32,
    oldest: u32,
}

impl Ends {
    const EMPTY: Self = Self { newest: NOWHERE, oldest: NOWHERE };

    /// Takes a slot out of the list that `of` names.
    fn unlink(&mut self, slots: &mut [Slot], of: fn(&mut Slot) -> &mut Neighbours, slot: u32) {
        let Some(&mut Neighbours { newer, older }) = slots.get_mut(slot as usize).map(of) else {
            return;
        };
        match slots.get_mut(newer as usize).map(of) {
            Some(neighbour) => neighbour.older = older,
            None => self.newest = older,
        }
        match slots.get_mut(older as usize).map(of) {
            Some(neighbour) => neighbour.newer = newer,
            None => self.oldest = newer,
        }
    }

    /// Puts a slot at the new end of the list that `of` names.
    fn link_newest(&mut self, slots: &mut [Slot], of: fn(&mut Slot) -> &mut Neighbours, slot: u32) {
        let older = self.newest;
        if let Some(place) = slots.get_mut(slot as usize).map(of) {
            *place = Neighbours { newer: NOWHERE, older };
        }
        match slots.get_mut(older as usize).map(of) {
            Some(neighbour) => neighbour.newer = slot,
            None => self.oldest = slot,
        }
        self.newest = slot;
    }
}

impl SeenTable {
    /// Remembers up to `capacity` streams (at least 1), about 200 bytes each, and of one publisher
    /// up to `per_publisher` (at least 1).
    pub fn new(capacity: usize, per_publisher: usize, hasher: SeededState) -> Self {
        Self {
            index: SeededMap::with_hasher(hasher),
            slots: Vec::new(),
            all: Ends::EMPTY,
            own: SeededMap::with_hasher(hasher),
            capacity: capacity.clamp(1, NOWHERE as usize),
            per_publisher: per_publisher.max(1),
            evicted: 0,
        }
    }

    /// [`Seen::accept`] for the stream `key`, which becomes the one used last.
    pub fn accept(&mut self, key: &StreamKey, first: u64, count: u32, start: bool) -> Accepted {
        self.touch(key).accept(first, count, start)
    }

    /// What was seen of the stream `key`; new streams begin empty. It becomes the one used last.
    pub fn touch(&mut self, key: &StreamKey) -> &mut Seen {
        let slot = match self.index.get(key) {
            Some(&slot) => {
                if slot != self.all.newest {
                    self.all.unlink(&mut self.slots, |slot| &mut slot.all, slot);
                    self.all.link_newest(&mut self.slots, |slot| &mut slot.all, slot);
                    if let Some((own, _)) = self.own.get_mut(&key.publisher) {
                        own.unlink(&mut self.slots, |slot| &mut slot.own, slot);
                        own.link_newest(&mut self.slots, |slot| &mut slot.own, slot);
                    }
                }
                slot
            }
            None => self.insert(key),
        };
        &mut self.slots.get_mut(slot as usize).expect("the index names slots that exist").seen
    }

    /// What was seen of the stream `key`, without counting as use.
    pub fn peek(&self, key: &StreamKey) -> Option<&Seen> {
        let slot = self.slots.get(*self.index.get(key)? as usize)?;
        Some(&slot.seen)
    }

    /// Streams remembered.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Streams forgotten to make room, so far.
    pub const fn evicted(&self) -> u64 {
        self.evicted
    }

    fn insert(&mut self, key: &StreamKey) -> u32 {
        let own = self.own.get(&key.publisher);
        let victim = match own {
            Some((own, count)) if *count >= self.per_publisher => Some(own.oldest),
            _ if self.slots.len() >= self.capacity => Some(self.all.oldest),
            _ => None,
        };
        let neighbours = Neighbours { newer: NOWHERE, older: NOWHERE };
        let fresh =
            Slot { key: key.clone(), seen: Seen::default(), all: neighbours, own: neighbours };
        let slot = match victim {
            Some(slot) => {
                self.forget(slot);
                if let Some(place) = self.slots.get_mut(slot as usize) {
                    *place = fresh;
                }
                slot
            }
            None => {
                self.slots.push(fresh);
                (self.slots.len() - 1) as u32
            }
        };
        self.all.link_newest(&mut self.slots, |slot| &mut slot.all, slot);
        let (own, count) = self.own.entry(key.publisher).or_insert((Ends::EMPTY, 0));
        own.link_newest(&mut self.slots, |slot| &mut slot.own, slot);
        *count += 1;
        self.index.insert(key.clone(), slot);
        slot
    }

    /// Takes a slot out of everything, so that it can be used again.
    fn forget(&mut self, slot: u32) {
        self.all.unlink(&mut self.slots, |slot| &mut slot.all, slot);
        let Some(key) = self.slots.get(slot as usize).map(|slot| slot.key.clone()) else { return };
        if let Some((own, count)) = self.own.get_mut(&key.publisher) {
            own.unlink(&mut self.slots, |slot| &mut slot.own, slot);
            *count -= 1;
            if *count == 0 {
                self.own.remove(&key.publisher);
            }
        }
        self.index.remove(&key);
        self.evicted += 1;
    }
}

impl std::fmt::Debug for SeenTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SeenTable")
            .field("len", &self.len())
            .field("capacity", &self.capacity)
            .field("evicted", &self.evicted)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, VecDeque};

    use proptest::prelude::*;
    use rand_core::SeedableRng;

    use super::*;

    /// Runs batches written `first+count` or `start:first+count` and compares what comes out:
    /// `all`, `none`, `after N` or parts, then `missing N`, `given up N`.
    fn check(script: &str) {
        let mut seen = Seen::default();
        for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let (batch, expected) = line.split_once(" -> ").unwrap();
            let (start, batch) = match batch.strip_prefix("start:") {
                Some(batch) => (true, batch),
                None => (false, batch),
            };
            let (first, count) = batch.split_once('+').unwrap();
            let accepted = seen.accept(first.parse().unwrap(), count.parse().unwrap(), start);
            let mut told = match accepted.new {
                NewMessages::None => "none".to_owned(),
                NewMessages::All => "all".to_owned(),
                NewMessages::AllAfter(skip) => format!("after {skip}"),
                NewMessages::Parts(parts) => parts
                    .iter()
                    .map(|part| format!("{}+{}", part.first, part.count))
                    .collect::<Vec<_>>()
                    .join(" "),
            };
            if accepted.missing > 0 {
                told += &format!(", missing {}", accepted.missing);
            }
            if accepted.given_up > 0 {
                told += &format!(", given up {}", accepted.given_up);
            }
            assert_eq!(told, expected, "{line} in {script}");
        }
    }

    #[test]
    fn batches_in_order_are_new_and_their_copies_are_not() {
        check(
            "start:1+10 -> all
             11+5 -> all
             1+10 -> none
             11+5 -> none
             3+1 -> none
             16+1 -> all",
        );
    }

    #[test]
    fn an_overlap_is_skipped() {
        check(
            "1+10 -> all
             6+10 -> after 5
             16+1 -> all",
        );
    }

    #[test]
    fn what_precedes_the_first_contact_is_neither_missing_nor_new() {
        check(
            "100+5 -> all
             90+10 -> none
             98+10 -> after 7",
        );
    }

    #[test]
    fn a_start_leaves_no_gap_below_it() {
        check(
            "1+2 -> all
             start:10+2 -> all
             12+1 -> all
             5+1 -> none",
        );
    }

    #[test]
    fn a_batch_ahead_tears_a_gap_that_is_told_once() {
        check(
            "1+2 -> all
             6+2 -> all, missing 3
             6+2 -> none
             10+1 -> all, missing 2
             3+3 -> all
             8+2 -> all
             11+1 -> all",
        );
    }

    #[test]
    fn a_batch_over_holes_brings_its_parts() {
        check(
            "1+2 -> all
             5+2 -> all, missing 2
             9+2 -> all, missing 2
             2+10 -> 3+2 7+2 11+1
             2+10 -> none
             12+1 -> all",
        );
        check(
            "1+2 -> all
             5+2 -> all, missing 2
             3+3 -> 3+2
             7+1 -> all",
        );
    }

    #[test]
    fn too_many_gaps_make_the_lowest_be_given_up() {
        let mut seen = Seen::default();
        seen.accept(1, 1, true);
        for range in 1..=SEEN_RANGES_MAX as u64 {
            assert_eq!(seen.accept(1 + range * 3, 1, false).given_up, 0);
        }
        assert_eq!(seen.missing(), 2 * SEEN_RANGES_MAX as u64);
        assert_eq!(seen.contiguous(), 1);
        let accepted = seen.accept(1000, 1, false);
        assert_eq!((accepted.new, accepted.given_up), (NewMessages::All, 2));
        assert_eq!(seen.contiguous(), 4);
        assert_eq!(seen.ahead.len(), SEEN_RANGES_MAX);
        assert_eq!(seen.accept(2, 2, false).new, NewMessages::None);
    }

    #[test]
    fn settling_counts_what_was_missing() {
        let mut seen = Seen::default();
        assert_eq!(seen.settle_below(7), 0);
        assert_eq!((seen.next(), seen.contiguous()), (None, 0));
        seen.accept(1, 1, true);
        seen.accept(5, 5, false);
        seen.accept(20, 5, false);
        assert_eq!(seen.settle_below(1), 0);
        assert_eq!(seen.clone().settle_below(4), 2);
        assert_eq!(seen.clone().settle_below(7), 3);
        assert_eq!(seen.clone().settle_below(15), 3 + 5);
        assert_eq!(seen.settle_below(30), 3 + 10 + 5);
        assert_eq!((seen.contiguous(), seen.missing()), (29, 0));
    }

    #[test]
    fn sequences_at_the_end_of_their_range_do_no_harm() {
        let last = u64::MAX - 1;
        check(&format!(
            "1+1 -> all
             {last}+1 -> all, missing {}
             {last}+9 -> none
             {}+9 -> none
             3+0 -> none",
            last - 2,
            u64::MAX,
        ));
        check(&format!("{last}+9 -> {last}+1\n{last}+9 -> none"));
        check(&format!("1+1 -> all\n{last}+9 -> {last}+1, missing {}", last - 2));
    }

    /// Every sequence by itself; `floor` is the lowest that is not settled.
    #[derive(Default)]
    struct Model {
        floor: Option<u64>,
        seen: BTreeSet<u64>,
    }

    impl Model {
        /// New sequences, missing ones told, given up.
        fn accept(&mut self, first: u64, count: u32, start: bool) -> (Vec<u64>, u64, u64) {
            let floor = self.floor.get_or_insert(first);
            if start {
                *floor = first.max(*floor);
            }
            self.advance();
            let floor = self.floor.unwrap();
            let above = self.seen.range(floor..).next_back().map_or(floor, |last| last + 1);
            let missing = first.saturating_sub(above);
            let new = (first..first + u64::from(count))
                .filter(|sequence| *sequence >= floor && self.seen.insert(*sequence))
                .collect();
            self.advance();
            let mut given_up = 0;
            while self.runs() > SEEN_RANGES_MAX {
                let floor = self.floor.unwrap();
                let lowest = *self.seen.range(floor..).next().unwrap();
                given_up += lowest - floor;
                self.floor = Some(lowest);
                self.advance();
            }
            (new, missing, given_up)
        }

        fn advance(&mut self) {
            while self.seen.contains(&self.floor.unwrap()) {
                self.floor = self.floor.map(|floor| floor + 1);
            }
        }

        fn runs(&self) -> usize {
            self.seen
                .range(self.floor.unwrap()..)
                .filter(|sequence| !self.seen.contains(&(*sequence - 1)))
                .count()
        }

        fn missing(&self) -> u64 {
            let floor = self.floor.unwrap();
            let last = self.seen.range(floor..).next_back().map_or(floor, |last| last + 1);
            (floor..last).filter(|sequence| !self.seen.contains(sequence)).count() as u64
        }
    }

    /// Batches below sequence `last` of fewer than `count` messages; few starts.
    fn batches(last: u64, count: u32) -> impl Strategy<Value = Vec<(u64, u32, bool)>> {
        prop::collection::vec((1..last, 0..count, prop::bool::weighted(0.01)), 1..200)
    }

    proptest! {
        #[test]
        fn accepts_what_a_set_of_sequences_accepts(
            batches in prop_oneof![batches(300, 12), batches(600, 3)],
        ) {
            let (mut seen, mut model) = (Seen::default(), Model::default());
            for (first, count, start) in batches {
                if count == 0 {
                    prop_assert_eq!(seen.accept(first, 0, start), Accepted::only(NewMessages::None));
                    continue;
                }
                let accepted = seen.accept(first, count, start);
                let new: Vec<u64> = match &accepted.new {
                    NewMessages::None => vec![],
                    NewMessages::All => (first..first + u64::from(count)).collect(),
                    NewMessages::AllAfter(skip) => {
                        (first + u64::from(*skip)..first + u64::from(count)).collect()
                    }
                    NewMessages::Parts(parts) => parts
                        .iter()
                        .flat_map(|part| part.first..part.first + u64::from(part.count))
                        .collect(),
                };
                prop_assert_eq!(accepted.new.messages(count) as usize, new.len());
                prop_assert_eq!(
                    (new, accepted.missing, accepted.given_up),
                    model.accept(first, count, start)
                );
                prop_assert_eq!(seen.next(), model.floor);
                prop_assert_eq!(seen.missing(), model.missing());
                prop_assert!(seen.ahead.len() <= SEEN_RANGES_MAX);
            }
        }
    }

    fn key(number: u8) -> StreamKey {
        StreamKey {
            publisher: EndpointId::from_bytes([number; 32]),
            epoch: 1,
            topic: Topic::parse("a.b").unwrap(),
        }
    }

    fn table(capacity: usize) -> SeenTable {
        table_for(capacity, capacity)
    }

    fn table_for(capacity: usize, per_publisher: usize) -> SeenTable {
        let mut rng = rand_pcg::Pcg64::seed_from_u64(7);
        SeenTable::new(capacity, per_publisher, SeededState::from_rng(&mut rng))
    }

    #[test]
    fn who_opens_too_many_streams_pushes_out_its_own() {
        let mut table = table_for(4, 2);
        let stream = |publisher, epoch| StreamKey { epoch, ..key(publisher) };
        table.touch(&stream(1, 1));
        table.touch(&stream(1, 2));
        for epoch in 1..=5 {
            table.touch(&stream(2, epoch));
        }
        table.touch(&stream(1, 1));
        let known = |publisher, epoch| table.peek(&stream(publisher, epoch)).is_some();
        assert!(known(1, 1) && known(1, 2) && known(2, 4) && known(2, 5));
        assert_eq!((table.len(), table.evicted()), (4, 3));
        table.touch(&stream(1, 3));
        assert!(table.peek(&stream(1, 2)).is_none() && table.peek(&stream(1, 1)).is_some());
    }

    #[test]
    fn streams_are_apart_by_publisher_epoch_and_topic() {
        let mut table = table(10);
        let base = key(1);
        let others = [
            key(2),
            StreamKey { epoch: 2, ..base.clone() },
            StreamKey { topic: Topic::parse("a.c").unwrap(), ..base.clone() },
        ];
        assert_eq!(table.accept(&base, 1, 5, true).new, NewMessages::All);
        for other in others {
            assert_eq!(table.accept(&other, 1, 5, true).new, NewMessages::All);
        }
        assert_eq!(table.accept(&base, 1, 5, true).new, NewMessages::None);
        assert_eq!(table.len(), 4);
    }

    #[test]
    fn the_stream_used_longest_ago_is_forgotten() {
        let mut table = table(2);
        table.touch(&key(1));
        table.touch(&key(2));
        table.touch(&key(1));
        assert!(table.peek(&key(2)).is_some());
        table.touch(&key(3));
        assert!(table.peek(&key(2)).is_none());
        assert!(table.peek(&key(1)).is_some());
        assert_eq!((table.len(), table.evicted()), (2, 1));
    }

    proptest! {
        #[test]
        fn the_table_keeps_the_streams_used_last(
            capacity in 1usize..6,
            uses in prop::collection::vec(0u8..10, 0..100),
        ) {
            let mut table = table(capacity);
            let mut model = VecDeque::new();
            for (count, number) in uses.into_iter().enumerate() {
                let known = model.contains(&number);
                prop_assert_eq!(table.peek(&key(number)).is_some(), known);
                prop_assert_eq!(
                    table.accept(&key(number), 1, 1, true).new,
                    if known { NewMessages::None } else { NewMessages::All }
                );
                model.retain(|other| *other != number);
                model.push_back(number);
                if model.len() > capacity {
                    model.pop_front();
                }
                prop_assert!(table.len() <= capacity && table.index.len() == table.len());
                prop_assert!(table.evicted() <= count as u64);
            }
            for number in 0..10 {
                prop_assert_eq!(table.peek(&key(number)).is_some(), model.contains(&number));
            }
        }
    }
}
