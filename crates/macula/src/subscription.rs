//! Subscriptions: the queue between driver and application, and the stream that reads it.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use futures_core::Stream;
use macula_proto::id::SubscriptionId;
use macula_proto::node::{Delivery, DeliveryMode, Qos, SubscribeOptions};
use macula_proto::pubsub::{Pattern, Topic};
use macula_proto::wire::batch::BatchIter;
use macula_proto::wire::message::SlowPolicy;
use macula_proto::{EndpointId, RealmId};

use crate::doorbell::Dropped;
use crate::error::SubscribeError;
use crate::lock;
use crate::shared::{Command, Owner};

/// Default of what may wait in a subscription's queue, bytes.
const DEFAULT_QUEUE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Default of what may wait in a subscription's queue, batches (one or many messages each).
const DEFAULT_QUEUE_BATCHES_MAX: usize = 65_536;
/// What a batch costs beside its body, bytes.
const BATCH_OVERHEAD_BYTES: usize = 128;

/// A message that came in.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Message {
    topic: Topic,
    /// What was published.
    pub payload: Bytes,
    /// The endpoint that published it.
    pub publisher: EndpointId,
    /// Number of the message among that publisher's on the topic; starts again when the publisher
    /// does.
    pub sequence: u64,
    /// Quality of service that it was published with.
    pub qos: Qos,
    /// It is the topic's retained message from before the subscription.
    pub retained: bool,
}

impl Message {
    /// The topic that it was published on.
    pub fn topic(&self) -> &str {
        self.topic.as_str()
    }
}

/// Consecutive messages of one publisher on one topic; an iterator over what is left of them.
#[derive(Clone, Debug)]
pub struct Batch {
    topic: Topic,
    publisher: EndpointId,
    qos: Qos,
    retained: bool,
    sequence: u64,
    payloads: BatchIter,
}

impl Batch {
    fn new(delivery: Delivery) -> Self {
        Self {
            topic: delivery.topic,
            publisher: delivery.publisher,
            qos: delivery.qos,
            retained: delivery.retained,
            sequence: delivery.first,
            payloads: BatchIter::new(delivery.count, delivery.body),
        }
    }

    /// The topic of all messages.
    pub fn topic(&self) -> &str {
        self.topic.as_str()
    }

    /// Who published them.
    pub fn publisher(&self) -> EndpointId {
        self.publisher
    }

    /// Only the payloads that are left, for the fastest way through them.
    pub fn into_payloads(self) -> impl Iterator<Item = Bytes> + Send {
        self.payloads
    }
}

impl Iterator for Batch {
    type Item = Message;

    #[inline]
    fn next(&mut self) -> Option<Message> {
        let payload = self.payloads.next()?;
        let sequence = self.sequence;
        self.sequence += 1;
        Some(Message {
            topic: self.topic.clone(),
            payload,
            publisher: self.publisher,
            sequence,
            qos: self.qos,
            retained: self.retained,
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.payloads.size_hint()
    }
}

/// Settings of a [`Subscription`]; made by [`crate::Node::subscription`].
#[derive(Clone, Debug)]
#[must_use = "nothing is subscribed before `open`"]
pub struct SubscriptionBuilder {
    owner: Arc<Owner>,
    realm: RealmId,
    pattern: String,
    options: SubscribeOptions,
    bounds: QueueBounds,
}

impl SubscriptionBuilder {
    pub(crate) fn new(owner: Arc<Owner>, realm: RealmId, pattern: &str) -> Self {
        Self {
            owner,
            realm,
            pattern: pattern.to_owned(),
            options: SubscribeOptions::default(),
            bounds: QueueBounds::default(),
        }
    }

    /// In which order messages are handed out. Default: [`DeliveryMode::Ordered`].
    pub fn mode(mut self, mode: DeliveryMode) -> Self {
        self.options.mode = mode;
        self
    }

    /// What happens when the application does not keep up. Default: [`SlowPolicy::DropOldest`].
    pub fn policy(mut self, policy: SlowPolicy) -> Self {
        self.options.policy = policy;
        self
    }

    /// Whether to get the retained messages that match at subscribe time. Default: yes.
    pub fn retained(mut self, retained: bool) -> Self {
        self.options.skip_retained = !retained;
        self
    }

    /// What may wait for the application: bytes and batches (one or many messages each). Default:
    /// 16 MiB and 65,536; at least one batch always fits. Above either, the policy decides.
    pub fn queue(mut self, bytes_max: usize, batches_max: usize) -> Self {
        self.bounds = QueueBounds { bytes_max, batches_max: batches_max.max(1) };
        self
    }

    /// Subscribes; resolves once the gateway has the subscription.
    ///
    /// While there is no connection it waits for the next one.
    ///
    /// # Errors
    /// See [`SubscribeError`].
    ///
    /// # Cancel safety
    /// Dropping the future ends the subscription.
    pub async fn open(self) -> Result<Subscription, SubscribeError> {
        let pattern = Pattern::parse(&self.pattern)?;
        let shared = &self.owner.shared;
        let id = SubscriptionId(shared.next_handle());
        let queue = Arc::new(Queue::new(self.options.policy, self.bounds));
        // Made before anything is sent, so that dropping this future unsubscribes too.
        let subscription = Subscription {
            owner: self.owner.clone(),
            id,
            pattern: pattern.clone(),
            queue: queue.clone(),
            current: None,
        };
        let (realm, options) = (self.realm, self.options);
        shared
            .ask(|answer| Command::Subscribe {
                subscription: id,
                realm,
                pattern,
                options,
                queue,
                answer,
            })
            .await??;
        Ok(subscription)
    }
}

/// The messages that match a pattern, as a stream; dropping it unsubscribes.
///
/// It outlives reconnections: messages with QoS 1 are not lost, those with QoS 0 that were
/// published meanwhile are.
#[derive(Debug)]
pub struct Subscription {
    owner: Arc<Owner>,
    id: SubscriptionId,
    pattern: Pattern,
    queue: Arc<Queue>,
    current: Option<Batch>,
}

impl Subscription {
    /// The pattern.
    pub fn pattern(&self) -> &str {
        self.pattern.as_str()
    }

    /// The next message; `None` when the subscription has ended, see
    /// [`Subscription::end_reason`].
    ///
    /// # Cancel safety
    /// Dropping the future loses no message.
    pub async fn next(&mut self) -> Option<Message> {
        std::future::poll_fn(|context| self.poll_message(context)).await
    }

    /// All messages that came together and are left; `None` when the subscription has ended.
    ///
    /// # Cancel safety
    /// Dropping the future loses no message.
    pub async fn next_batch(&mut self) -> Option<Batch> {
        if let Some(current) = self.current.take()
            && current.payloads.left() > 0
        {
            return Some(current);
        }
        std::future::poll_fn(|context| self.poll_batch(context)).await
    }

    /// A message, if one waits already.
    pub fn try_next(&mut self) -> Option<Message> {
        let mut context = Context::from_waker(Waker::noop());
        match self.poll_message(&mut context) {
            Poll::Ready(message) => message,
            Poll::Pending => None,
        }
    }

    /// Messages of this subscription that were lost, as far as known: dropped here because the
    /// application was slow, or missing in a publisher's numbers.
    pub fn lost(&self) -> u64 {
        lock(&self.queue.state).lost
    }

    /// Why the subscription has ended; `None` while it lives.
    pub fn end_reason(&self) -> Option<SubscribeError> {
        lock(&self.queue.state).end.clone()
    }

    fn poll_message(&mut self, context: &mut Context<'_>) -> Poll<Option<Message>> {
        loop {
            if let Some(message) = self.current.as_mut().and_then(Iterator::next) {
                return Poll::Ready(Some(message));
            }
            self.current = None;
            match self.poll_batch(context) {
                Poll::Ready(Some(batch)) => self.current = Some(batch),
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn poll_batch(&mut self, context: &mut Context<'_>) -> Poll<Option<Batch>> {
        let Some(popped) = self.queue.pop(context) else { return Poll::Pending };
        if popped.has_room_again {
            let id = self.id;
            self.owner.shared.doorbell.leave(|notes| notes.subscriptions_ready.push(id)).ok();
        }
        Poll::Ready(popped.delivery.map(Batch::new))
    }
}

impl Stream for Subscription {
    type Item = Message;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Message>> {
        self.poll_message(context)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.queue.abandon();
        self.owner.shared.doorbell.leave_dropped(Dropped::Subscription(self.id));
    }
}

/// How much may wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueueBounds {
    bytes_max: usize,
    batches_max: usize,
}

impl Default for QueueBounds {
    fn default() -> Self {
        Self { bytes_max: DEFAULT_QUEUE_BYTES_MAX, batches_max: DEFAULT_QUEUE_BATCHES_MAX }
    }
}

/// Deliveries between driver and application. Neither side waits for the other.
#[derive(Debug)]
pub(crate) struct Queue {
    policy: SlowPolicy,
    bounds: QueueBounds,
    state: Mutex<QueueState>,
}

#[derive(Debug, Default)]
struct QueueState {
    deliveries: VecDeque<Delivery>,
    bytes: usize,
    /// The core was told that the queue is full.
    is_full: bool,
    lost: u64,
    end: Option<SubscribeError>,
    /// The application has let go.
    is_abandoned: bool,
    reader: Option<Waker>,
}

/// What a reader got.
#[derive(Debug)]
struct Popped {
    /// `None` at the end.
    delivery: Option<Delivery>,
    /// The core shall hear that there is room.
    has_room_again: bool,
}

impl Queue {
    fn new(policy: SlowPolicy, bounds: QueueBounds) -> Self {
        Self { policy, bounds, state: Mutex::default() }
    }

    /// Adds a delivery. Returns whether the core shall hear that the queue is full now; what it
    /// had read already still comes and is still taken.
    #[must_use]
    pub(crate) fn push(&self, delivery: Delivery) -> bool {
        let mut state = lock(&self.state);
        if state.is_abandoned || state.end.is_some() {
            return false;
        }
        state.bytes += cost(&delivery);
        state.deliveries.push_back(delivery);
        if self.policy == SlowPolicy::DropOldest {
            while self.is_over(&state) && state.drop_oldest() {}
        }
        let became_full = self.is_over(&state) && !state.is_full;
        state.is_full |= became_full;
        let reader = state.reader.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
        became_full
    }

    /// Counts messages that will not come.
    pub(crate) fn add_lost(&self, messages: u64) {
        lock(&self.state).lost += messages;
    }

    /// Lets the reader see the end behind what is queued; the first reason stays.
    pub(crate) fn end(&self, reason: SubscribeError) {
        let mut state = lock(&self.state);
        state.end.get_or_insert(reason);
        if let Some(reader) = state.reader.take() {
            drop(state);
            reader.wake();
        }
    }

    /// Whether the application has let go.
    pub(crate) fn is_abandoned(&self) -> bool {
        lock(&self.state).is_abandoned
    }

    fn abandon(&self) {
        let mut state = lock(&self.state);
        *state = QueueState { is_abandoned: true, ..QueueState::default() };
    }

    /// The oldest delivery or the end; `None` registers the reader.
    fn pop(&self, context: &Context<'_>) -> Option<Popped> {
        let mut state = lock(&self.state);
        if let Some(delivery) = state.deliveries.pop_front() {
            state.bytes -= cost(&delivery);
            let has_room_again = state.is_full && self.is_below_low_mark(&state);
            state.is_full &= !has_room_again;
            return Some(Popped { delivery: Some(delivery), has_room_again });
        }
        if state.end.is_some() {
            return Some(Popped { delivery: None, has_room_again: false });
        }
        match &mut state.reader {
            Some(reader) => reader.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        None
    }

    fn is_over(&self, state: &QueueState) -> bool {
        let count = state.deliveries.len();
        count > 1 && (state.bytes > self.bounds.bytes_max || count > self.bounds.batches_max)
    }

    fn is_below_low_mark(&self, state: &QueueState) -> bool {
        let count = state.deliveries.len();
        count == 0
            || (state.bytes <= self.bounds.bytes_max / 2 && count <= self.bounds.batches_max / 2)
    }
}

impl QueueState {
    /// Drops the oldest batch if that is allowed: one with QoS 1 stays, and so does what is behind
    /// it, as messages must not overtake each other's loss.
    fn drop_oldest(&mut self) -> bool {
        let Some(dropped) = self.deliveries.pop_front_if(|oldest| oldest.qos == Qos::AtMostOnce)
        else {
            return false;
        };
        self.bytes -= cost(&dropped);
        self.lost += u64::from(dropped.count);
        true
    }
}

fn cost(delivery: &Delivery) -> usize {
    delivery.body.len() + BATCH_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivery(qos: Qos, first: u64, count: u32) -> Delivery {
        Delivery {
            subscription: SubscriptionId(1),
            topic: Topic::parse("t").unwrap(),
            publisher: EndpointId::from_bytes([1; 32]),
            first,
            count,
            qos,
            retained: false,
            body: Bytes::from(vec![0; count as usize]),
        }
    }

    fn queue(policy: SlowPolicy, batches_max: usize) -> Queue {
        Queue::new(policy, QueueBounds { batches_max, ..QueueBounds::default() })
    }

    fn pop(queue: &Queue) -> Option<Popped> {
        queue.pop(&Context::from_waker(Waker::noop()))
    }

    #[test]
    fn drop_oldest_drops_qos_0_and_counts_messages() {
        let queue = queue(SlowPolicy::DropOldest, 2);
        for first in [1, 11, 21, 31] {
            assert!(!queue.push(delivery(Qos::AtMostOnce, first, 10)));
        }
        assert_eq!(lock(&queue.state).lost, 20);
        assert_eq!(pop(&queue).unwrap().delivery.unwrap().first, 21);
    }

    #[test]
    fn qos_1_is_never_dropped_but_fills_the_queue() {
        let queue = queue(SlowPolicy::DropOldest, 2);
        let full: Vec<bool> =
            (0..4).map(|first| queue.push(delivery(Qos::AtLeastOnce, first, 1))).collect();
        assert_eq!(full, [false, false, true, false], "told once");
        let ready: Vec<bool> = (0..4).map(|_| pop(&queue).unwrap().has_room_again).collect();
        assert_eq!(ready, [false, false, true, false], "told once, at half");
        assert_eq!(lock(&queue.state).lost, 0);
        assert!(pop(&queue).is_none());
    }

    #[test]
    fn block_drops_nothing() {
        let queue = queue(SlowPolicy::Block, 1);
        assert!(!queue.push(delivery(Qos::AtMostOnce, 1, 1)));
        assert!(queue.push(delivery(Qos::AtMostOnce, 2, 1)));
        assert!(!queue.push(delivery(Qos::AtMostOnce, 3, 1)));
        assert_eq!(lock(&queue.state).deliveries.len(), 3);
    }

    #[test]
    fn what_is_queued_comes_before_the_end() {
        let queue = queue(SlowPolicy::Block, 8);
        assert!(!queue.push(delivery(Qos::AtMostOnce, 1, 1)));
        queue.end(SubscribeError::Closed);
        assert!(pop(&queue).unwrap().delivery.is_some());
        assert!(pop(&queue).unwrap().delivery.is_none());
    }
}
