//! What must hold for topics: nothing twice, in order, nothing lost after acknowledgement, nothing
//! from another realm.
//!
//! The oracle hears what applications ask for and what they get, and knows which message is which
//! because payloads carry numbers. What this module does *not* do: look into nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use macula_proto::RealmTag;
use macula_proto::wire::batch::BatchIter;
use macula_proto::wire::message::Publish;

use crate::histogram::Histogram;
use crate::hosts::micros;

/// A message with QoS 1 must have arrived so long after it was accepted.
pub(crate) const DELIVERY_WITHIN: Duration = Duration::from_secs(45);
/// A subscription counts as settled after this.
pub(crate) const SETTLED_AFTER: Duration = Duration::from_secs(10);
/// Violations that are spelt out; the others are only counted.
const SPELT_MAX: usize = 50;
/// The shortest payload that carries what the oracle needs.
pub(crate) const PAYLOAD_MIN: usize = 24;
/// Sequences of a stream begin with this.
const SEQUENCE_FIRST: u64 = 1;
const MAGIC: [u8; 4] = *b"sim1";

/// A subscription of a node.
#[derive(Clone, Debug)]
struct Subscription {
    node: u32,
    topic: u32,
    since: u64,
    /// When it ended, with its node or without.
    until: Option<u64>,
    is_pattern: bool,
}

/// A message that somebody published.
#[derive(Clone, Debug)]
struct Published {
    topic: u32,
    publisher: u32,
    at: u64,
    qos1: bool,
    /// Set when it was acknowledged.
    accepted: Option<u64>,
    failed: bool,
    /// By place in the topic's list of subscriptions.
    got: Vec<u64>,
    receivers: u32,
}

#[derive(Clone, Debug)]
struct TopicState {
    realm: u8,
    phase: usize,
    subscriptions: Vec<u32>,
    messages: Vec<u32>,
}

/// Figures of one phase of traffic.
#[derive(Clone, Debug, Default)]
pub struct TrafficFigures {
    /// Name.
    pub phase: String,
    /// Messages published.
    pub published: u64,
    /// Of them acknowledged.
    pub accepted: u64,
    /// Deliveries to subscribers that were there all the time.
    pub delivered: u64,
    /// Deliveries that such a subscriber should have had and did not.
    pub lost: u64,
    /// Milliseconds from publishing to delivery.
    pub millis: Histogram,
    /// For each message the milliseconds until 99 % had it, the largest.
    pub t99_millis: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    subscriptions: Vec<Subscription>,
    topics: Vec<TopicState>,
    messages: Vec<Published>,
    /// What each publisher (with its start) has published on a topic, in order.
    streams: BTreeMap<(u32, u32, u32), Vec<u32>>,
    /// The last sequence that a subscription had of a stream.
    last: BTreeMap<(u32, u32, u64, u32), u64>,
    phases: Vec<TrafficFigures>,
    arrivals: Vec<Vec<u32>>,
    /// Subscribers could not hear everybody within these times.
    disturbed: Vec<(u64, u64)>,
    pub(crate) duplicated: u64,
    pub(crate) replayed: u64,
    /// Nodes that have died or left at least once.
    gone: BTreeSet<u32>,
    violations: u64,
    spelt: Vec<String>,
    /// Deliveries by second: expected when published, got.
    pub(crate) digest: u64,
}

impl Oracle {
    pub(crate) fn phase(&mut self, name: &str) -> usize {
        self.phases.push(TrafficFigures { phase: name.into(), ..TrafficFigures::default() });
        self.phases.len() - 1
    }

    pub(crate) fn topic(&mut self, realm: u8, phase: usize) -> u32 {
        let state = TopicState { realm, phase, subscriptions: Vec::new(), messages: Vec::new() };
        self.topics.push(state);
        (self.topics.len() - 1) as u32
    }

    /// A node subscribes; returns the number of its subscription.
    pub(crate) fn subscribed(&mut self, node: u32, topic: u32, is_pattern: bool, at: u64) -> u32 {
        let number = self.subscriptions.len() as u32;
        self.subscriptions.push(Subscription { node, topic, since: at, until: None, is_pattern });
        self.topics[topic as usize].subscriptions.push(number);
        number
    }

    /// A node is gone, with all its subscriptions.
    pub(crate) fn gone(&mut self, node: u32, at: u64) {
        self.gone.insert(node);
        for subscription in &mut self.subscriptions {
            if subscription.node == node {
                subscription.until = subscription.until.or(Some(at));
            }
        }
    }

    /// Between two moments not everybody could be reached.
    pub(crate) fn disturbed(&mut self, from: u64, to: u64) {
        self.disturbed.push((from, to));
    }

    /// Somebody publishes; returns the payload that says so.
    pub(crate) fn publishes(
        &mut self,
        (publisher, start): (u32, u32),
        topic: u32,
        qos1: bool,
        at: u64,
        length: usize,
    ) -> Vec<u8> {
        let number = self.messages.len() as u32;
        self.messages.push(Published {
            topic,
            publisher,
            at,
            qos1,
            accepted: None,
            failed: false,
            got: Vec::new(),
            receivers: 0,
        });
        self.arrivals.push(Vec::new());
        let state = &mut self.topics[topic as usize];
        state.messages.push(number);
        self.phases[state.phase].published += 1;
        self.streams.entry((publisher, start, topic)).or_default().push(number);
        let mut payload = vec![0x5a; length.max(PAYLOAD_MIN)];
        payload[..4].copy_from_slice(&MAGIC);
        payload[4..8].copy_from_slice(&number.to_be_bytes());
        payload[8..12].copy_from_slice(&publisher.to_be_bytes());
        payload[12..16].copy_from_slice(&topic.to_be_bytes());
        payload[16] = state.realm;
        payload
    }

    /// A publisher heard what became of the message with a sequence of its stream.
    pub(crate) fn published(
        &mut self,
        (publisher, start): (u32, u32),
        topic: u32,
        (sequence, is_accepted): (u64, bool),
        at: u64,
    ) {
        let place = sequence.wrapping_sub(SEQUENCE_FIRST) as usize;
        let stream = self.streams.get(&(publisher, start, topic));
        let Some(number) = stream.and_then(|stream| stream.get(place)).copied() else {
            self.violation(at, format!("node {publisher} heard of message {place} of topic {topic}, which it never published"));
            return;
        };
        let message = &mut self.messages[number as usize];
        if message.accepted.is_some() || message.failed {
            self.violation(at, format!("node {publisher} heard twice of message {number}"));
        } else if is_accepted {
            message.accepted = Some(at);
            let phase = self.topics[topic as usize].phase;
            self.phases[phase].accepted += 1;
        } else {
            message.failed = true;
        }
    }

    /// A node's application was given messages for these subscriptions.
    pub(crate) fn delivered(
        &mut self,
        node: u32,
        subscriptions: &[u64],
        publish: &Publish,
        replay: bool,
        expected_realm: RealmTag,
        at: u64,
    ) {
        if publish.realm != expected_realm {
            self.violation(at, format!("node {node} was given a message of another realm"));
        }
        let payloads = BatchIter::new(publish.count, publish.body.clone());
        for (place, payload) in payloads.enumerate() {
            let sequence = publish.first + place as u64;
            let Some(number) = self.number_of(node, &payload, at) else { continue };
            for subscription in subscriptions {
                let subscription = *subscription as u32;
                self.delivered_one(
                    node,
                    subscription,
                    number,
                    (publish.epoch, sequence),
                    replay,
                    at,
                );
            }
        }
    }

    fn number_of(&mut self, node: u32, payload: &[u8], at: u64) -> Option<u32> {
        let word = |from: usize| {
            let bytes: [u8; 4] = payload.get(from..from + 4)?.try_into().ok()?;
            Some(u32::from_be_bytes(bytes))
        };
        let words = word(4).zip(word(8)).zip(word(12)).filter(|_| payload.starts_with(&MAGIC));
        let ((number, publisher), topic) = words.unwrap_or(((u32::MAX, 0), 0));
        match self.messages.get(number as usize) {
            Some(message) if message.publisher == publisher && message.topic == topic => {
                if payload.get(16) != Some(&self.topics[topic as usize].realm) {
                    self.violation(at, format!("message {number} has crossed realms"));
                }
                Some(number)
            }
            _ => {
                self.violation(at, format!("node {node} was given what nobody published"));
                None
            }
        }
    }

    fn delivered_one(
        &mut self,
        node: u32,
        subscription: u32,
        number: u32,
        (epoch, sequence): (u64, u64),
        replay: bool,
        at: u64,
    ) {
        let Some(state) = self.subscriptions.get(subscription as usize) else {
            return self.violation(at, format!("node {node} has no subscription {subscription}"));
        };
        let message = &mut self.messages[number as usize];
        if state.node != node || (state.topic != message.topic && !state.is_pattern) {
            return self.violation(
                at,
                format!("message {number} was given to subscription {subscription} of node {node}"),
            );
        }
        self.digest = crate::dice::mix(
            self.digest ^ at ^ (u64::from(number) << 32) ^ u64::from(subscription),
        );
        let (word, bit) = (subscription as usize / 64, 1u64 << (subscription % 64));
        if message.got.len() <= word {
            message.got.resize(word + 1, 0);
        }
        if message.got[word] & bit != 0 {
            self.duplicated += 1;
            return self.violation(
                at,
                format!(
                    "node {node} was given message {number} twice (subscription {subscription})"
                ),
            );
        }
        message.got[word] |= bit;
        message.receivers += 1;
        let publisher = message.publisher;
        let topic = message.topic;
        if replay {
            self.replayed += 1;
        } else {
            let millis = (at.saturating_sub(message.at)) / 1000;
            let phase = self.topics[topic as usize].phase;
            self.phases[phase].millis.add(millis);
            self.arrivals[number as usize].push(millis as u32);
        }
        let last = self.last.entry((subscription, publisher, epoch, topic)).or_insert(0);
        let before = std::mem::replace(last, (*last).max(sequence + 1));
        if before > sequence {
            self.violation(
                at,
                format!(
                    "node {node} was given sequence {sequence} of node {publisher} after {}",
                    before - 1
                ),
            );
        }
    }

    pub(crate) fn violation(&mut self, at: u64, what: String) {
        self.violations += 1;
        if self.spelt.len() < SPELT_MAX {
            self.spelt.push(format!("{:.3} s: {what}", at as f64 / 1e6));
        }
    }

    /// Whether everything that was acknowledged has arrived at everybody who is there.
    pub(crate) fn is_complete(&self, now: u64) -> bool {
        let settled = micros(SETTLED_AFTER);
        self.messages.iter().all(|message| {
            let is_open = message.qos1 && message.accepted.is_none() && !message.failed;
            let topic = &self.topics[message.topic as usize];
            let lacks = |subscription: &u32| {
                let state = &self.subscriptions[*subscription as usize];
                let word = message.got.get(*subscription as usize / 64).copied().unwrap_or(0);
                state.until.is_none()
                    && state.since + settled <= message.at
                    && word & (1 << (subscription % 64)) == 0
            };
            let is_late = now > message.at + micros(DELIVERY_WITHIN);
            is_late || !is_open && !topic.subscriptions.iter().any(lacks)
        })
    }

    pub(crate) const fn violations(&self) -> u64 {
        self.violations
    }

    pub(crate) fn spelt(&self) -> &[String] {
        &self.spelt
    }

    /// Counts what should have arrived by `now` and did not. Call it once, at the end. Also returns
    /// deliveries by second of publishing: (second, got, missing).
    pub(crate) fn settle(&mut self, now: u64) -> Vec<(u64, u64, u64)> {
        let settled = micros(SETTLED_AFTER);
        let within = micros(DELIVERY_WITHIN);
        let mut by_second: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        let mut violations = Vec::new();
        for (number, message) in self.messages.iter().enumerate() {
            let has_ended = message.accepted.is_some() || message.failed || !message.qos1;
            if !has_ended && message.at + within < now && !self.gone.contains(&message.publisher) {
                violations.push((
                    message.at,
                    format!(
                        "node {} never heard what became of message {number}",
                        message.publisher
                    ),
                ));
            }
            let (first, last) = (message.at, message.accepted.unwrap_or(message.at) + within);
            if self.disturbed.iter().any(|(from, to)| first < *to && last > *from) {
                continue;
            }
            let topic = &self.topics[message.topic as usize];
            let (mut got, mut missing) = (0, 0);
            for subscription in &topic.subscriptions {
                let state = &self.subscriptions[*subscription as usize];
                let was_there = state.since + settled <= message.at
                    && state.until.is_none_or(|until| until > last.min(now));
                if !was_there {
                    continue;
                }
                let word = message.got.get(*subscription as usize / 64).copied().unwrap_or(0);
                if word & (1 << (subscription % 64)) != 0 {
                    got += 1;
                } else {
                    missing += 1;
                    if message.qos1 && message.accepted.is_some() {
                        violations.push((
                            message.at,
                            format!(
                                "node {} never had message {number}, which was accepted",
                                state.node
                            ),
                        ));
                    }
                }
            }
            let phase = &mut self.phases[topic.phase];
            phase.delivered += got;
            // what was not accepted may be lost
            if !message.qos1 || message.accepted.is_some() {
                phase.lost += missing;
            }
            let arrivals = &mut self.arrivals[number];
            arrivals.sort_unstable();
            let place = (arrivals.len() * 99).div_ceil(100).saturating_sub(1);
            let t99 = arrivals.get(place).copied().unwrap_or(0);
            phase.t99_millis = phase.t99_millis.max(u64::from(t99));
            let second = by_second.entry(message.at / 1_000_000).or_default();
            second.0 += got;
            second.1 += missing;
        }
        violations.into_iter().for_each(|(at, what)| self.violation(at, what));
        by_second.into_iter().map(|(second, (got, missing))| (second, got, missing)).collect()
    }

    /// Milliseconds that messages took that were published between two moments and have arrived.
    pub(crate) fn delays(&self, from: u64, to: u64) -> Histogram {
        let mut millis = Histogram::default();
        let published = self.messages.iter().zip(&self.arrivals);
        let within = published.filter(|(message, _)| (from..to).contains(&message.at));
        within.flat_map(|(_, arrivals)| arrivals).for_each(|delay| millis.add((*delay).into()));
        millis
    }

    pub(crate) fn phases(&self) -> &[TrafficFigures] {
        &self.phases
    }

    /// Nodes that publish or subscribe.
    pub(crate) fn takes_part(&self, node: u32) -> bool {
        self.subscriptions.iter().any(|s| s.node == node && s.until.is_none())
    }
}

#[cfg(test)]
mod tests {
    use macula_proto::{EndpointId, RealmId};

    use super::*;

    const NODE: u32 = 7;

    fn realm() -> RealmTag {
        RealmId::of_name("sim.0").tag()
    }

    fn batch(first: u64, payload: Vec<u8>) -> Publish {
        Publish {
            realm: realm(),
            publisher: EndpointId::from_bytes([1; 32]),
            epoch: 5,
            first,
            count: 1,
            ttl: 20,
            qos1: true,
            retain: false,
            start: first == 1,
            topic: "t".into(),
            body: payload.into(),
        }
    }

    /// A topic with one subscription of `NODE`, and the payloads of some messages of node 1.
    fn world(messages: usize) -> (Oracle, u64, Vec<Vec<u8>>) {
        let mut oracle = Oracle::default();
        let phase = oracle.phase("p");
        let topic = oracle.topic(0, phase);
        let subscription = oracle.subscribed(NODE, topic, false, 0);
        let at = 20_000_000;
        let payloads =
            (0..messages).map(|_| oracle.publishes((1, 1), topic, true, at, 0)).collect();
        for place in 0..messages as u64 {
            oracle.published((1, 1), topic, (SEQUENCE_FIRST + place, true), at + 1000);
        }
        (oracle, subscription.into(), payloads)
    }

    fn deliver(oracle: &mut Oracle, subscription: u64, sequence: u64, payload: &[u8]) {
        let publish = batch(sequence, payload.to_vec());
        oracle.delivered(NODE, &[subscription], &publish, false, realm(), 21_000_000);
    }

    const END: u64 = 1_000_000_000;

    #[test]
    fn all_messages_once_and_in_order_are_fine() {
        let (mut oracle, subscription, payloads) = world(3);
        for (place, payload) in payloads.iter().enumerate() {
            deliver(&mut oracle, subscription, 1 + place as u64, payload);
        }
        assert!(oracle.is_complete(22_000_000));
        oracle.settle(END);
        assert_eq!(oracle.violations(), 0, "{:?}", oracle.spelt());
        assert_eq!((oracle.phases()[0].delivered, oracle.phases()[0].lost), (3, 0));
    }

    #[test]
    fn a_message_given_twice_is_seen() {
        let (mut oracle, subscription, payloads) = world(1);
        deliver(&mut oracle, subscription, 1, &payloads[0]);
        deliver(&mut oracle, subscription, 1, &payloads[0]);
        assert_eq!((oracle.duplicated, oracle.violations()), (1, 1));
    }

    #[test]
    fn a_message_out_of_order_is_seen() {
        let (mut oracle, subscription, payloads) = world(2);
        deliver(&mut oracle, subscription, 2, &payloads[1]);
        deliver(&mut oracle, subscription, 1, &payloads[0]);
        assert_eq!(oracle.violations(), 1);
    }

    #[test]
    fn an_accepted_message_that_never_came_is_seen() {
        let (mut oracle, subscription, payloads) = world(2);
        deliver(&mut oracle, subscription, 1, &payloads[0]);
        assert!(!oracle.is_complete(22_000_000));
        oracle.settle(END);
        assert_eq!((oracle.violations(), oracle.phases()[0].lost), (1, 1));
    }

    #[test]
    fn who_was_not_there_all_the_time_misses_nothing() {
        let (mut oracle, ..) = world(2);
        oracle.gone(NODE, 20_500_000);
        oracle.settle(END);
        assert_eq!(oracle.violations(), 0, "{:?}", oracle.spelt());
    }

    #[test]
    fn a_message_of_another_realm_or_of_nobody_is_seen() {
        let (mut oracle, subscription, payloads) = world(1);
        let mut publish = batch(1, payloads[0].clone());
        publish.realm = RealmId::of_name("sim.1").tag();
        oracle.delivered(NODE, &[subscription], &publish, false, realm(), 21_000_000);
        assert_eq!(oracle.violations(), 1);
        deliver(&mut oracle, subscription, 2, b"made up");
        assert_eq!(oracle.violations(), 2);
    }

    #[test]
    fn a_publisher_that_is_never_told_is_seen() {
        let mut oracle = Oracle::default();
        let phase = oracle.phase("p");
        let topic = oracle.topic(0, phase);
        oracle.publishes((1, 1), topic, true, 0, 0);
        oracle.settle(END);
        assert_eq!(oracle.violations(), 1);
    }
}
