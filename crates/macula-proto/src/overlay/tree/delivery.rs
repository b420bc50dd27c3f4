//! Brings the messages of each publisher to the application once and in order.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::limits::{ORDER_WAIT_QOS0, ORDER_WAIT_QOS1};
use crate::id::EndpointId;
use crate::time::Time;
use crate::wire::batch::{self, BatchBuilder, BatchIter};
use crate::wire::message::Publish;

/// Streams of one publisher on one topic that are told apart.
const EPOCHS_PER_PUBLISHER_MAX: usize = 4;

/// What comes out.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ready {
    /// Messages, in order; whether they are from before the subscription.
    Messages(Publish, bool),
    /// So many will not come.
    Lost(u64),
}

/// Room that is left to a topic.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    pub(super) streams_max: usize,
    pub(super) early_bytes_max: usize,
}

/// What has come of one topic.
#[derive(Debug, Default)]
pub(super) struct Delivery {
    streams: BTreeMap<(EndpointId, u64), Stream>,
    early_bytes: usize,
    /// Streams forgotten and early batches given up to make room.
    pub(super) crowded_out: u64,
}

/// One publisher's epoch.
#[derive(Debug)]
struct Stream {
    /// The next sequence to deliver.
    next: u64,
    /// `next` is a guess: what is missing before the next message is no loss.
    is_loose: bool,
    early: BTreeMap<u64, Early>,
    used: Time,
}

/// A batch that waits for the ones before it.
#[derive(Debug)]
struct Early {
    publish: Publish,
    due: Time,
}

impl Delivery {
    /// Takes a batch; `is_replay`: it was kept for others before it was sent here; `has_gap`: earlier
    /// ones may still be on their way.
    pub(super) fn take(
        &mut self,
        now: Time,
        publish: Publish,
        is_replay: bool,
        has_gap: bool,
        room: Room,
        out: &mut Vec<Ready>,
    ) {
        let key = (publish.publisher, publish.epoch);
        let is_first = !self.streams.contains_key(&key);
        if is_first {
            self.make_room(&key, room.streams_max);
        }
        let stream = self.streams.entry(key).or_insert_with(|| Stream {
            next: if has_gap { 1 } else { publish.first },
            is_loose: has_gap,
            early: BTreeMap::new(),
            used: now,
        });
        stream.used = now;
        if publish.first.saturating_add(publish.count.into()) <= stream.next {
            return;
        }
        let is_old = is_first && is_replay && publish.first > 1;
        if publish.first > stream.next && stream.is_loose && !has_gap && stream.early.is_empty() {
            stream.next = publish.first;
        }
        if publish.first > stream.next {
            let wait = if publish.qos1 { ORDER_WAIT_QOS1 } else { ORDER_WAIT_QOS0 };
            let bytes = cost(&publish);
            if self.early_bytes + bytes > room.early_bytes_max {
                // no room to wait: what is missing is given up
                self.crowded_out += 1;
                let first = publish.first;
                self.early_bytes -= stream.skip(first, out);
                stream.deliver(publish, is_old, out);
            } else if let Entry::Vacant(place) = stream.early.entry(publish.first) {
                self.early_bytes += bytes;
                place.insert(Early { publish, due: now + wait });
            }
            return;
        }
        stream.is_loose = false;
        stream.deliver(publish, is_old, out);
        self.early_bytes -= stream.drain(out);
    }

    /// Whether a batch is the next of what was delivered.
    pub(super) fn continues(&self, publish: &Publish) -> bool {
        let stream = self.streams.get(&(publish.publisher, publish.epoch));
        stream.is_some_and(|stream| !stream.is_loose && publish.first <= stream.next)
    }

    /// Takes note that a retained message was delivered. Whether it is new.
    pub(super) fn take_retained(&mut self, now: Time, publish: &Publish, room: Room) -> bool {
        let key = (publish.publisher, publish.epoch);
        if self.streams.contains_key(&key) {
            // it came, or comes, in its turn
            return false;
        }
        self.make_room(&key, room.streams_max);
        let next = publish.first.saturating_add(1);
        let stream = Stream { next, is_loose: true, early: BTreeMap::new(), used: now };
        self.streams.insert(key, stream);
        true
    }

    /// The part of a batch that was delivered before.
    pub(super) fn delivered_of(&self, publish: &Publish) -> Option<Publish> {
        let stream = self.streams.get(&(publish.publisher, publish.epoch))?;
        before(publish.clone(), stream.next)
    }

    /// Gives up waiting where it is time.
    pub(super) fn tick(&mut self, now: Time, out: &mut Vec<Ready>) {
        for stream in self.streams.values_mut() {
            while let Some(first) = stream
                .early
                .first_key_value()
                .filter(|(_, early)| early.due <= now)
                .map(|(first, _)| *first)
            {
                self.early_bytes -= stream.skip(first, out);
            }
        }
    }

    /// When the wait for something is over.
    pub(super) fn due(&self) -> Option<Time> {
        if self.early_bytes == 0 {
            return None;
        }
        let first = |stream: &Stream| stream.early.first_key_value().map(|(_, early)| early.due);
        self.streams.values().filter_map(first).min()
    }

    fn make_room(&mut self, key: &(EndpointId, u64), streams_max: usize) {
        let range = (key.0, 0)..=(key.0, u64::MAX);
        let oldest = |(key, stream): (&(EndpointId, u64), &Stream)| (stream.used, *key);
        let victim = if self.streams.range(range.clone()).count() >= EPOCHS_PER_PUBLISHER_MAX {
            self.streams.range(range).map(oldest).min()
        } else if self.streams.len() >= streams_max.max(1) {
            self.streams.iter().map(oldest).min()
        } else {
            None
        };
        if let Some((_, victim)) = victim
            && let Some(stream) = self.streams.remove(&victim)
        {
            self.crowded_out += 1;
            let early: usize = stream.early.values().map(|early| cost(&early.publish)).sum();
            self.early_bytes -= early;
        }
    }
}

impl Stream {
    /// Delivers what of a batch is not before `next`.
    fn deliver(&mut self, publish: Publish, is_old: bool, out: &mut Vec<Ready>) {
        let end = publish.first.saturating_add(publish.count.into());
        if let Some(publish) = after(publish, self.next) {
            self.next = end;
            out.push(Ready::Messages(publish, is_old));
        }
    }

    /// Delivers what waited for what has come now; returns the bytes that this frees.
    fn drain(&mut self, out: &mut Vec<Ready>) -> usize {
        let mut freed = 0;
        while let Some(entry) = self.early.first_entry() {
            if *entry.key() > self.next {
                break;
            }
            let early = entry.remove();
            freed += cost(&early.publish);
            self.deliver(early.publish, false, out);
        }
        freed
    }

    /// Gives up what is missing before `first`; returns the bytes that this frees.
    fn skip(&mut self, first: u64, out: &mut Vec<Ready>) -> usize {
        let mut freed = self.drain(out);
        while self.next < first {
            let to = self.early.first_key_value().map_or(first, |(early, _)| (*early).min(first));
            if !std::mem::take(&mut self.is_loose) && to > self.next {
                out.push(Ready::Lost(to - self.next));
            }
            self.next = self.next.max(to);
            freed += self.drain(out);
        }
        freed + self.drain(out)
    }
}

/// The messages of a batch from sequence `from` on.
pub(super) fn after(mut publish: Publish, from: u64) -> Option<Publish> {
    let skip = u32::try_from(from.saturating_sub(publish.first)).unwrap_or(u32::MAX);
    if skip == 0 {
        return Some(publish);
    }
    let (count, body) = batch::skip(publish.count, &publish.body, skip)?;
    publish.first = publish.first.saturating_add(skip.into());
    publish.count = count;
    publish.body = body;
    publish.start = false;
    Some(publish)
}

/// The messages of a batch before sequence `end`.
fn before(mut publish: Publish, end: u64) -> Option<Publish> {
    let keep = u32::try_from(end.saturating_sub(publish.first)).unwrap_or(u32::MAX);
    if keep >= publish.count {
        return Some(publish);
    }
    let mut builder = BatchBuilder::new();
    let payloads = BatchIter::new(publish.count, publish.body.clone());
    payloads.take(keep as usize).for_each(|payload| builder.push_bytes(payload));
    (publish.count, publish.body) = builder.finish();
    publish.retain = false;
    (publish.count > 0).then_some(publish)
}

fn cost(publish: &Publish) -> usize {
    publish.body.len() + publish.topic.len() + 256
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::RealmTag;
    use bytes::Bytes;
    use proptest::prelude::*;
    use std::time::Duration;

    const ROOM: Room = Room { streams_max: 8, early_bytes_max: 10_000 };

    fn message(sequence: u64) -> Publish {
        Publish {
            realm: RealmTag(1),
            publisher: EndpointId::from_bytes([1; 32]),
            epoch: 1,
            first: sequence,
            count: 1,
            ttl: 1,
            qos1: false,
            retain: false,
            start: sequence == 1,
            topic: Bytes::from_static(b"a"),
            body: Bytes::from(sequence.to_string()),
        }
    }

    fn sequences(out: &[Ready]) -> Vec<u64> {
        let sequence = |ready: &Ready| match ready {
            Ready::Messages(publish, _) => Some(publish.first),
            Ready::Lost(_) => None,
        };
        out.iter().filter_map(sequence).collect()
    }

    #[test]
    fn a_gap_is_waited_for_and_given_up() {
        let mut delivery = Delivery::default();
        let mut out = Vec::new();
        for sequence in [3, 6, 7, 5] {
            delivery.take(Time::START, message(sequence), false, false, ROOM, &mut out);
        }
        assert_eq!(sequences(&out), [3]);
        delivery.tick(delivery.due().unwrap(), &mut out);
        assert_eq!(sequences(&out), [3, 5, 6, 7]);
        assert!(out.contains(&Ready::Lost(1)));
        delivery.take(Time::START, message(4), false, false, ROOM, &mut out);
        assert_eq!(sequences(&out), [3, 5, 6, 7], "what was given up does not come later");
        assert_eq!((delivery.early_bytes, delivery.due()), (0, None));
    }

    #[test]
    fn after_a_retained_message_there_is_no_gap() {
        let mut delivery = Delivery::default();
        let mut out = Vec::new();
        assert!(delivery.take_retained(Time::START, &message(3), ROOM));
        assert!(!delivery.take_retained(Time::START, &message(3), ROOM));
        for sequence in [3, 9, 10] {
            delivery.take(Time::START, message(sequence), false, false, ROOM, &mut out);
        }
        assert_eq!(sequences(&out), [9, 10]);
    }

    proptest! {
        #[test]
        fn any_order_comes_out_in_order_and_once(
            sequences_in in proptest::collection::vec((1u64..40, 0u64..400), 1..200),
            early_bytes_max in 0usize..5000,
        ) {
            let mut delivery = Delivery::default();
            let (mut out, mut now) = (Vec::new(), Time::START);
            let room = Room { streams_max: 2, early_bytes_max };
            for (sequence, wait) in sequences_in {
                now = now + Duration::from_millis(wait);
                delivery.tick(now, &mut out);
                delivery.take(now, message(sequence), false, sequence % 3 == 0, room, &mut out);
                prop_assert!(delivery.early_bytes <= early_bytes_max);
            }
            delivery.tick(now + Duration::from_secs(60), &mut out);
            prop_assert_eq!(delivery.early_bytes, 0);
            let all = sequences(&out);
            prop_assert!(all.windows(2).all(|pair| pair[0] < pair[1]), "{:?}", all);
        }
    }
}
