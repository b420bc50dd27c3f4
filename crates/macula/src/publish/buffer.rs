//! What was published on one topic and not yet taken by the core.

use std::collections::VecDeque;
use std::sync::Mutex;

use bytes::Bytes;
use macula_proto::RealmId;
use macula_proto::node::Qos;
use macula_proto::pubsub::Topic;
use macula_proto::wire::batch::BatchBuilder;
use macula_proto::wire::message::RefusalCode;
use tokio::sync::Notify;

use super::publisher::Kind;
use crate::error::PublishError;
use crate::lock;

/// A buffer takes so many bytes, or one message of any size.
const BUFFER_BYTES_MAX: usize = 256 * 1024;
/// What a message costs beside its payload, so that empty ones are bounded too, bytes.
const MESSAGE_OVERHEAD_BYTES: usize = 8;
/// From this size on a payload is a batch of its own and is not copied, bytes.
const WHOLE_BYTES_MIN: usize = 4 * 1024;
/// Refusals kept for those who wait for their messages; older ones are forgotten.
const REFUSALS_MAX: usize = 64;

/// The messages of this endpoint on one topic, on their way to the core.
#[derive(Debug)]
pub(crate) struct TopicBuffer {
    pub(crate) realm: RealmId,
    pub(crate) topic: Topic,
    state: Mutex<State>,
    /// Rings when there is room again.
    room: Notify,
    /// Rings when messages were taken, accepted, delivered or refused.
    progress: Notify,
}

#[derive(Debug, Default)]
struct State {
    open: BatchBuilder,
    open_kind: Kind,
    sealed: VecDeque<Batch>,
    bytes: usize,
    /// The driver knows that there is something to take.
    is_dirty: bool,
    /// Takes no more messages; what it has still goes out.
    is_sealed: bool,
    /// Nothing goes out any more.
    is_closed: bool,
    marks: Marks,
    /// What to add to the core's sequence numbers to get ours: it forgets topics that were quiet for
    /// long when there are very many, and numbers them from higher on afterwards.
    offset: i64,
    refusals: VecDeque<Refusal>,
}

/// Sequence numbers on this topic; the first message has 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Marks {
    /// The last message appended.
    pub(crate) published: u64,
    /// The last message with QoS 1 appended.
    pub(crate) published_qos1: u64,
    /// The last message that the core has taken.
    pub(crate) handed: u64,
    /// Every message up to here is in the router's ring.
    pub(crate) accepted: u64,
    /// Every message up to here was taken by all subscribers known.
    pub(crate) delivered: u64,
    /// Links that the newest accepted batch went to.
    pub(crate) receivers: u32,
    /// How many messages were refused.
    pub(crate) refused: u64,
}

/// A batch for the core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    pub(crate) kind: Kind,
    pub(crate) count: u32,
    pub(crate) body: Bytes,
    /// What it counts for in the buffer.
    bytes: usize,
}

/// What the driver got.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    Batch(Batch),
    /// The core has no room for the next batch; the buffer stays with the driver.
    NoRoom,
    /// Nothing is left; the next append tells the driver again.
    Empty,
}

/// A message was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Appended {
    pub(crate) sequence: u64,
    /// The caller shall put the buffer on the driver's list.
    pub(crate) must_ring: bool,
}

/// A message was not appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotAppended {
    Full,
    Closed,
}

#[derive(Clone, Debug)]
struct Refusal {
    first: u64,
    count: u32,
    code: RefusalCode,
    reason: String,
}

/// Which wait ends when a message has come how far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Handed,
    Accepted,
    Delivered,
}

impl TopicBuffer {
    /// A buffer whose next message follows `published`.
    pub(crate) fn new(realm: RealmId, topic: Topic, published: u64) -> Self {
        let marks = Marks { published, handed: published, ..Marks::default() };
        Self {
            realm,
            topic,
            state: Mutex::new(State { marks, ..State::default() }),
            room: Notify::new(),
            progress: Notify::new(),
        }
    }

    /// Appends a message if there is room. The payload's size was checked.
    pub(crate) fn append(&self, kind: Kind, payload: &Bytes) -> Result<Appended, NotAppended> {
        let cost = payload.len() + MESSAGE_OVERHEAD_BYTES;
        let mut state = lock(&self.state);
        if state.is_sealed || state.is_closed {
            return Err(NotAppended::Closed);
        }
        if state.bytes > 0 && state.bytes + cost > BUFFER_BYTES_MAX {
            return Err(NotAppended::Full);
        }
        if state.open_kind != kind || !state.open.fits(payload.len()) {
            state.seal();
            state.open_kind = kind;
        }
        if payload.len() >= WHOLE_BYTES_MIN {
            state.seal();
            state.open.push_bytes(payload.clone());
            state.seal();
        } else {
            state.open.push(payload);
        }
        state.bytes += cost;
        state.marks.published += 1;
        if kind.qos == Qos::AtLeastOnce {
            state.marks.published_qos1 = state.marks.published;
        }
        let must_ring = !std::mem::replace(&mut state.is_dirty, true);
        Ok(Appended { sequence: state.marks.published, must_ring })
    }

    /// Appends a message, waiting for room.
    ///
    /// Cancel safe: a dropped future has appended nothing.
    pub(crate) async fn append_when_room(
        &self,
        kind: Kind,
        payload: &Bytes,
    ) -> Result<Appended, PublishError> {
        loop {
            // Registered before the check, so that no ring between the two is missed.
            let room = self.room.notified();
            match self.append(kind, payload) {
                Ok(appended) => return Ok(appended),
                Err(NotAppended::Closed) => return Err(PublishError::Closed),
                Err(NotAppended::Full) => room.await,
            }
        }
    }

    /// Takes the next batch, if `has_room` says that the core has room for its QoS.
    pub(crate) fn take(&self, has_room: impl FnOnce(Qos) -> bool) -> Taken {
        let mut state = lock(&self.state);
        let next = state.sealed.front().map(|batch| batch.kind);
        let Some(kind) = next.or((!state.open.is_empty()).then_some(state.open_kind)) else {
            state.is_dirty = false;
            return Taken::Empty;
        };
        if !has_room(kind.qos) {
            return Taken::NoRoom;
        }
        if state.sealed.is_empty() {
            state.seal();
        }
        let Some(batch) = state.sealed.pop_front() else { return Taken::Empty };
        state.bytes = state.bytes.saturating_sub(batch.bytes);
        state.marks.handed += u64::from(batch.count);
        drop(state);
        self.room.notify_waiters();
        self.progress.notify_waiters();
        Taken::Batch(batch)
    }

    /// Takes in the core's number for the last message that it has taken.
    ///
    /// The core forgets a topic only when all its messages are accounted for, so a number that
    /// has changed is about those that follow.
    pub(crate) fn on_handed(&self, last_of_core: u64) {
        let mut state = lock(&self.state);
        state.offset = state.marks.handed.wrapping_sub(last_of_core) as i64;
    }

    /// Takes in how far the router has come.
    pub(crate) fn on_progress(&self, accepted: u64, delivered: u64, receivers: u32) {
        let mut state = lock(&self.state);
        let (accepted, delivered) = (
            accepted.saturating_add_signed(state.offset),
            delivered.saturating_add_signed(state.offset),
        );
        let marks = &mut state.marks;
        debug_assert!(accepted <= marks.handed, "only what was handed over can be accepted");
        marks.accepted = marks.accepted.max(accepted);
        marks.delivered = marks.delivered.max(delivered);
        marks.receivers = receivers;
        drop(state);
        self.progress.notify_waiters();
    }

    /// Takes in that the router did not want some messages.
    pub(crate) fn on_refused(&self, first: u64, count: u32, code: RefusalCode, reason: &str) {
        let mut state = lock(&self.state);
        state.marks.refused += u64::from(count);
        let first = first.saturating_add_signed(state.offset);
        if state.refusals.len() >= REFUSALS_MAX {
            state.refusals.pop_front();
        }
        state.refusals.push_back(Refusal { first, count, code, reason: reason.to_owned() });
        drop(state);
        self.progress.notify_waiters();
    }

    /// Waits until message `sequence` has come to `stage`.
    ///
    /// Cancel safe.
    pub(crate) async fn reached(&self, stage: Stage, sequence: u64) -> Result<Marks, PublishError> {
        loop {
            let progress = self.progress.notified();
            if let Some(result) = self.check(stage, sequence) {
                return result;
            }
            progress.await;
        }
    }

    /// How far the messages have come.
    pub(crate) fn marks(&self) -> Marks {
        lock(&self.state).marks
    }

    /// Whether everything published was handed over, and everything acknowledged that will be.
    pub(crate) fn is_settled(&self) -> bool {
        let state = lock(&self.state);
        state.is_closed || (state.marks.handed == state.marks.published && state.is_accepted())
    }

    /// Takes no more messages; what was appended goes its way.
    pub(crate) fn refuse_appends(&self) {
        lock(&self.state).is_sealed = true;
        self.room.notify_waiters();
    }

    /// Ends the buffer: every present and future wait fails.
    pub(crate) fn close(&self) {
        let mut state = lock(&self.state);
        state.is_closed = true;
        state.sealed.clear();
        drop(state);
        self.room.notify_waiters();
        self.progress.notify_waiters();
    }

    fn check(&self, stage: Stage, sequence: u64) -> Option<Result<Marks, PublishError>> {
        let state = lock(&self.state);
        let marks = state.marks;
        if let Some(refusal) = state.refusals.iter().find(|refusal| refusal.covers(sequence)) {
            let (code, reason) = (refusal.code, refusal.reason.clone());
            return Some(Err(PublishError::Refused { code, reason }));
        }
        let reached = match stage {
            Stage::Handed => marks.handed,
            Stage::Accepted => marks.accepted,
            Stage::Delivered => marks.delivered,
        };
        if reached >= sequence {
            Some(Ok(marks))
        } else if state.is_closed {
            Some(Err(PublishError::Closed))
        } else {
            None
        }
    }
}

impl State {
    /// Moves what is open behind the sealed batches.
    fn seal(&mut self) {
        if self.open.is_empty() {
            return;
        }
        let messages = self.open.count() as usize;
        let bytes = self.open.payload_bytes() + messages * MESSAGE_OVERHEAD_BYTES;
        let (count, body) = self.open.finish();
        self.sealed.push_back(Batch { kind: self.open_kind, count, body, bytes });
    }

    fn is_accepted(&self) -> bool {
        let last = self.marks.published_qos1;
        self.marks.accepted >= last || self.refusals.iter().any(|refusal| refusal.covers(last))
    }
}

impl Refusal {
    fn covers(&self, sequence: u64) -> bool {
        sequence >= self.first && sequence - self.first < u64::from(self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use macula_proto::wire::batch::BatchIter;

    const QOS0: Kind = Kind { qos: Qos::AtMostOnce, retain: false };
    const QOS1: Kind = Kind { qos: Qos::AtLeastOnce, retain: false };

    fn buffer() -> TopicBuffer {
        TopicBuffer::new(RealmId::of_name("r"), Topic::parse("t").unwrap(), 0)
    }

    fn take_all(buffer: &TopicBuffer) -> Vec<(Kind, u32, Vec<Bytes>)> {
        let mut batches = Vec::new();
        while let Taken::Batch(batch) = buffer.take(|_| true) {
            let payloads = BatchIter::new(batch.count, batch.body.clone()).collect();
            batches.push((batch.kind, batch.count, payloads));
        }
        batches
    }

    #[test]
    fn only_the_first_message_rings_until_the_buffer_is_empty() {
        let buffer = buffer();
        let text = Bytes::from_static(b"x");
        assert!(buffer.append(QOS0, &text).unwrap().must_ring);
        assert!(!buffer.append(QOS0, &text).unwrap().must_ring);
        assert_eq!(take_all(&buffer), [(QOS0, 2, vec![text.clone(), text.clone()])]);
        assert!(buffer.append(QOS0, &text).unwrap().must_ring);
    }

    #[test]
    fn order_holds_across_kinds_and_sizes() {
        let buffer = buffer();
        let (small, large) = (Bytes::from_static(b"s"), Bytes::from(vec![7; WHOLE_BYTES_MIN]));
        for (kind, payload) in [(QOS0, &small), (QOS0, &large), (QOS0, &small), (QOS1, &small)] {
            buffer.append(kind, payload).unwrap();
        }
        let batches = take_all(&buffer);
        let expected = [(QOS0, &small), (QOS0, &large), (QOS0, &small), (QOS1, &small)]
            .map(|(kind, payload)| (kind, 1, vec![payload.clone()]));
        assert_eq!(batches, expected);
        assert_eq!(batches[1].2[0].as_ptr(), large.as_ptr(), "large payloads are not copied");
    }

    #[test]
    fn a_full_buffer_takes_nothing_but_an_empty_one_takes_any_message() {
        let buffer = buffer();
        let huge = Bytes::from(vec![0; BUFFER_BYTES_MAX * 2]);
        buffer.append(QOS0, &huge).unwrap();
        assert_eq!(buffer.append(QOS0, &Bytes::new()), Err(NotAppended::Full));
        assert!(matches!(buffer.take(|_| false), Taken::NoRoom));
        assert!(matches!(buffer.take(|_| true), Taken::Batch(_)));
        buffer.append(QOS0, &Bytes::new()).unwrap();
    }

    #[tokio::test]
    async fn a_core_that_numbers_from_higher_on_acknowledges_nothing_too_early() {
        let buffer = buffer();
        let text = Bytes::from_static(b"x");
        for _ in 0..2 {
            buffer.append(QOS1, &text).unwrap();
        }
        take_all(&buffer);
        buffer.on_handed(1002);
        buffer.on_progress(1001, 0, 1);
        assert_eq!(buffer.marks().accepted, 1);
        buffer.on_refused(1002, 1, RefusalCode::Limit, "full");
        assert!(buffer.reached(Stage::Accepted, 1).await.is_ok());
        assert!(buffer.reached(Stage::Accepted, 2).await.is_err());
    }

    #[test]
    fn empty_messages_fill_a_buffer_too() {
        let buffer = buffer();
        let count = (0..).take_while(|_| buffer.append(QOS0, &Bytes::new()).is_ok()).count();
        assert_eq!(count, BUFFER_BYTES_MAX / MESSAGE_OVERHEAD_BYTES);
        let taken: u32 = take_all(&buffer).iter().map(|(_, count, _)| count).sum();
        assert_eq!(taken as usize, count);
    }

    #[tokio::test]
    async fn waits_end_with_acceptance_refusal_or_closing() {
        let buffer = buffer();
        let text = Bytes::from_static(b"x");
        for _ in 0..3 {
            buffer.append(QOS1, &text).unwrap();
        }
        take_all(&buffer);
        buffer.on_progress(1, 0, 2);
        assert_eq!(buffer.reached(Stage::Accepted, 1).await.unwrap().receivers, 2);
        buffer.on_refused(2, 1, RefusalCode::Limit, "full");
        let refused = buffer.reached(Stage::Accepted, 2).await.unwrap_err();
        assert!(matches!(refused, PublishError::Refused { code: RefusalCode::Limit, .. }));
        assert!(!buffer.is_settled());
        buffer.close();
        assert_eq!(buffer.reached(Stage::Accepted, 3).await, Err(PublishError::Closed));
        assert_eq!(buffer.append(QOS1, &text), Err(NotAppended::Closed));
    }
}
