//! What the application publishes, until the root of its topic has it.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::super::api::{Event, PublishFailure};
use super::super::core::{Core, Tag};
use super::super::message::{Body, Reply, StoreRefusal, TreeId};
use super::Node;
use super::flow::Order;
use super::limits::{CONFIRM_TIMEOUT, PUBLISH_PAUSE, PUBLISH_TIMEOUT, PUBLISHER_IDLE, WINDOW};
use crate::id::{Key, KeyKind};
use crate::limits::{ROUTED_BYTES_MAX, TTL_HOPS};
use crate::pubsub::Topic;
use crate::time::Time;
use crate::wire::batch::BatchBuilder;
use crate::wire::message::Publish;

/// What is published here on one topic.
#[derive(Debug)]
pub(super) struct Publisher {
    key: Key,
    epoch: u64,
    /// Sequence of the next message that leaves the queue.
    next: u64,
    queue: VecDeque<Message>,
    /// Batches on their way, by first sequence.
    flights: BTreeMap<u64, Flight>,
    used: Time,
    /// When its timer is set to.
    pub(super) armed: Option<Time>,
}

#[derive(Debug)]
struct Message {
    payload: Bytes,
    qos1: bool,
    retain: bool,
}

/// A batch on its way.
#[derive(Debug)]
struct Flight {
    publish: Publish,
    since: Time,
    /// When it is sent again; none: an answer is awaited.
    again: Option<Time>,
}

/// What a message takes beside its payload, bytes.
const MESSAGE_COST: usize = 64;

impl Publisher {
    pub(super) fn new(core: &mut Core, now: Time, topic: &Topic) -> Self {
        Self {
            key: Key::derive(&core.realm, KeyKind::Topic, topic.as_str().as_bytes()),
            epoch: core.draw().max(1),
            next: 1,
            queue: VecDeque::new(),
            flights: BTreeMap::new(),
            used: now,
            armed: None,
        }
    }

    /// Whether nothing is under way and the last use is so long ago that it may be forgotten.
    pub(super) fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.flights.is_empty()
    }

    pub(super) const fn used(&self) -> Time {
        self.used
    }

    /// Takes a message of the application.
    pub(super) fn publish(
        &mut self,
        core: &mut Core,
        node: &mut Node,
        now: Time,
        topic: &Topic,
        message: (Bytes, bool, bool),
    ) {
        let (payload, qos1, retain) = message;
        let cost = payload.len() + MESSAGE_COST;
        let failure = if payload.len() > ROUTED_BYTES_MAX {
            Some(PublishFailure::Refused(StoreRefusal::TooLarge))
        } else if node.publish_bytes + cost > core.config.trees.publish_bytes_max {
            Some(PublishFailure::WouldBlock)
        } else {
            None
        };
        if let Some(failure) = failure {
            core.stats.tree_publishes_refused += 1;
            if qos1 {
                let sequence = self.next + self.queue.len() as u64;
                let result = Err(failure);
                core.event(Event::Published { topic: topic.clone(), sequence, result });
            }
            return;
        }
        node.publish_bytes += cost;
        self.used = now;
        self.queue.push_back(Message { payload, qos1, retain });
        self.pump(core, node, now, topic);
    }

    /// Sends what the window allows; waiting messages go together.
    fn pump(&mut self, core: &mut Core, node: &mut Node, now: Time, topic: &Topic) {
        while self.flights.len() < WINDOW {
            let Some(first) = self.queue.front() else { break };
            let qos1 = first.qos1;
            let mut builder = BatchBuilder::new();
            let mut retain = false;
            while let Some(message) = self.queue.pop_front_if(|message| {
                message.qos1 == qos1 && !retain && builder.fits(message.payload.len())
            }) {
                retain = message.retain;
                builder.push_bytes(message.payload);
            }
            let (count, body) = builder.finish();
            if count == 0 {
                break;
            }
            let publish = Publish {
                realm: core.realm.tag(),
                publisher: core.id,
                epoch: self.epoch,
                first: self.next,
                count,
                ttl: TTL_HOPS,
                qos1,
                retain,
                start: false,
                topic: Bytes::copy_from_slice(topic.as_str().as_bytes()),
                body,
            };
            let source = TreeId { source: Some(core.id), ..TreeId::of(publish.topic.clone()) };
            let given = Publish { start: self.next == 1, ..publish.clone() };
            node.orders.push(Order::Give(source, given));
            let sequence = self.next;
            self.next += u64::from(count);
            self.flights.insert(sequence, Flight { publish, since: now, again: None });
            self.send(core, node, now, topic, sequence);
        }
        if self.queue.is_empty() && self.queue.capacity() > 16 {
            self.queue = VecDeque::new();
        }
    }

    fn send(&mut self, core: &mut Core, node: &mut Node, now: Time, topic: &Topic, first: u64) {
        let is_lowest = self.flights.first_key_value().is_some_and(|(lowest, _)| *lowest == first);
        let Some(flight) = self.flights.get_mut(&first) else { return };
        flight.again = None;
        // all before has come to an end: the root need not wait for any of it
        flight.publish.start = is_lowest;
        let end = flight.since + CONFIRM_TIMEOUT;
        let timeout = if flight.publish.qos1 { PUBLISH_TIMEOUT.1 } else { PUBLISH_TIMEOUT.0 };
        let body = Body::Publish(flight.publish.clone());
        let tag = node.ask(super::Ask::Publish { topic: topic.clone(), first });
        core.request_by(now, self.key, body, 1, Tag::Tree(tag), (now + timeout).min(end));
    }

    /// The root has answered, or nobody has.
    pub(super) fn replied(
        &mut self,
        core: &mut Core,
        node: &mut Node,
        now: Time,
        topic: &Topic,
        first: u64,
        reply: Option<Reply>,
    ) {
        let Some(flight) = self.flights.get_mut(&first) else { return };
        let is_over = now >= flight.since + CONFIRM_TIMEOUT;
        let result = match reply {
            Some(Reply::Accepted { receivers, .. }) => Ok(receivers),
            Some(Reply::Refused(refusal)) if refusal != StoreRefusal::Busy => {
                Err(PublishFailure::Refused(refusal))
            }
            _ if flight.publish.qos1 && !is_over => {
                flight.again = Some(now + core.jittered(PUBLISH_PAUSE));
                return;
            }
            _ => Err(PublishFailure::Unconfirmed),
        };
        self.end(core, node, topic, first, result);
        self.pump(core, node, now, topic);
    }

    fn end(
        &mut self,
        core: &mut Core,
        node: &mut Node,
        topic: &Topic,
        first: u64,
        result: Result<u32, PublishFailure>,
    ) {
        let Some(flight) = self.flights.remove(&first) else { return };
        let publish = flight.publish;
        let payloads = crate::wire::batch::BatchIter::new(publish.count, publish.body);
        let bytes: usize = payloads.map(|payload| payload.len() + MESSAGE_COST).sum();
        node.publish_bytes = node.publish_bytes.saturating_sub(bytes);
        if publish.qos1 {
            for sequence in first..first + u64::from(publish.count) {
                core.event(Event::Published { topic: topic.clone(), sequence, result });
            }
        }
    }

    pub(super) fn due(&self) -> Option<Time> {
        if self.is_idle() {
            return Some(self.used + PUBLISHER_IDLE);
        }
        self.flights.values().filter_map(|flight| flight.again).min()
    }

    pub(super) fn tick(&mut self, core: &mut Core, node: &mut Node, now: Time, topic: &Topic) {
        let due: Vec<u64> = self
            .flights
            .iter()
            .filter(|(_, flight)| flight.again.is_some_and(|again| again <= now))
            .map(|(first, _)| *first)
            .collect();
        for first in due {
            let is_over = self
                .flights
                .get(&first)
                .is_some_and(|flight| now >= flight.since + CONFIRM_TIMEOUT);
            if is_over {
                self.end(core, node, topic, first, Err(PublishFailure::Unconfirmed));
            } else {
                self.send(core, node, now, topic, first);
            }
        }
        self.pump(core, node, now, topic);
    }
}
