//! Random operations on small worlds, compared with a plain model of who should have received what.
//!
//! The model knows no trees, routes or links: a message that was acknowledged reaches, once and in
//! its publisher's order, every subscription that was there from well before until well after,
//! with wildcards or without, whoever dies, unless the network was cut in between.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use macula_proto::RealmId;
use macula_proto::id::SubscriptionId;
use macula_proto::overlay::{Command, Config, Event};
use macula_proto::pubsub::{Pattern, Topic};
use macula_proto::wire::batch::BatchIter;
use proptest::prelude::*;

use crate::hosts::{Hosts, NewHost, Partition};
use crate::notary::SimNotary;
use crate::scenario::Network;
use crate::shard::Heard;
use crate::world::World;

const SECOND: u64 = 1_000_000;
/// A subscription is sure to get what is published this long after it was made.
const SETTLED: u64 = 15 * SECOND;
/// An acknowledged message has arrived after this.
const WITHIN: u64 = 45 * SECOND;
/// Between two deaths; what dies faster than neighbours can notice may take both copies along.
const BETWEEN_DEATHS: u64 = 30 * SECOND;
const TOPICS: [&str; 3] = ["a.x", "a.y", "b"];
const PATTERNS: [&str; 5] = ["a.x", "a.y", "b", "a.*", "**"];

#[derive(Clone, Debug)]
enum Operation {
    Subscribe { node: usize, pattern: usize },
    Unsubscribe { which: usize },
    Publish { node: usize, topic: usize, count: u8 },
    Kill { node: usize },
    Restart { which: usize },
    Cut { share: f64, seconds: u64 },
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        5 => (any::<usize>(), 0..PATTERNS.len())
            .prop_map(|(node, pattern)| Operation::Subscribe { node, pattern }),
        1 => any::<usize>().prop_map(|which| Operation::Unsubscribe { which }),
        8 => (any::<usize>(), 0..TOPICS.len(), 1..5u8)
            .prop_map(|(node, topic, count)| Operation::Publish { node, topic, count }),
        2 => any::<usize>().prop_map(|node| Operation::Kill { node }),
        2 => any::<usize>().prop_map(|which| Operation::Restart { which }),
        1 => (0.1..0.6f64, 2..40u64).prop_map(|(share, seconds)| Operation::Cut { share, seconds }),
    ]
}

#[derive(Debug)]
struct Subscribed {
    node: u32,
    pattern: Pattern,
    from: u64,
    until: u64,
    got: Vec<u32>,
}

#[derive(Debug)]
struct Sent {
    topic: Topic,
    node: u32,
    at: u64,
    accepted: bool,
}

/// A small world and what should be true of it.
struct Model {
    world: World,
    live: Vec<u32>,
    dead: Vec<u32>,
    joined: BTreeSet<u32>,
    subscriptions: Vec<Subscribed>,
    sent: Vec<Sent>,
    /// Numbers of messages by publisher, its start and topic, in order.
    streams: BTreeMap<(u32, u32, String), Vec<u32>>,
    starts: BTreeMap<u32, u32>,
    cuts: Vec<(u64, u64)>,
    died_at: u64,
    wrong: Vec<String>,
}

impl Model {
    fn new(nodes: u32, seed: u64) -> Self {
        let config = Arc::new(Config::new(Arc::new(SimNotary::new(seed))));
        let network = Network { nodes_hint: nodes, ..Network::default() };
        let hosts = Hosts::new(network, vec![RealmId::of_name("model")], config, seed);
        let mut model = Self {
            world: World::new(hosts, 1),
            live: Vec::new(),
            dead: Vec::new(),
            joined: BTreeSet::new(),
            subscriptions: Vec::new(),
            sent: Vec::new(),
            streams: BTreeMap::new(),
            starts: BTreeMap::new(),
            cuts: Vec::new(),
            died_at: 0,
            wrong: Vec::new(),
        };
        for index in 0..nodes {
            let new = NewHost { is_gateway: index < 2, ..NewHost::default() };
            let node = model.world.add(new);
            model.start(node);
            model.pass(SECOND / 2);
        }
        model.pass(20 * SECOND);
        model
    }

    fn start(&mut self, node: u32) {
        *self.starts.entry(node).or_default() += 1;
        let peers: Vec<u32> = self.joined.iter().copied().take(2).collect();
        let at = self.world.now();
        self.world.start(node, &peers, at);
        self.live.push(node);
    }

    fn do_one(&mut self, operation: &Operation) {
        let now = self.world.now();
        match *operation {
            Operation::Subscribe { node, pattern } => {
                let node = self.live[node % self.live.len()];
                let pattern = Pattern::parse(PATTERNS[pattern]).unwrap();
                let subscription = SubscriptionId(self.subscriptions.len() as u64);
                self.subscriptions.push(Subscribed {
                    node,
                    pattern: pattern.clone(),
                    from: now,
                    until: u64::MAX,
                    got: Vec::new(),
                });
                let command = Command::Subscribe { subscription, pattern, qos1: true };
                self.world.command(node, now, command);
            }
            Operation::Unsubscribe { which } => {
                let count = self.subscriptions.len().max(1);
                if let Some(state) = self.subscriptions.get_mut(which % count)
                    && state.until == u64::MAX
                {
                    state.until = now;
                    let subscription = SubscriptionId((which % count) as u64);
                    let command = Command::Unsubscribe { subscription };
                    self.world.command(state.node, now, command);
                }
            }
            Operation::Publish { node, topic, count } => {
                let node = self.live[node % self.live.len()];
                let topic = Topic::parse(TOPICS[topic]).unwrap();
                let start = self.starts[&node];
                for _ in 0..count {
                    let number = self.sent.len() as u32;
                    let sent = Sent { topic: topic.clone(), node, at: now, accepted: false };
                    self.sent.push(sent);
                    let stream = (node, start, topic.as_str().to_owned());
                    self.streams.entry(stream).or_default().push(number);
                    let command = Command::Publish {
                        topic: topic.clone(),
                        payload: Bytes::copy_from_slice(&number.to_be_bytes()),
                        qos1: true,
                        retain: false,
                    };
                    self.world.command(node, now, command);
                }
            }
            Operation::Kill { node } => {
                if now < self.died_at + BETWEEN_DEATHS || self.live.len() <= 4 {
                    return;
                }
                self.died_at = now;
                let node = self.live.swap_remove(node % self.live.len());
                self.dead.push(node);
                self.joined.remove(&node);
                self.world.kill(node);
                for state in self.subscriptions.iter_mut().filter(|state| state.node == node) {
                    state.until = state.until.min(now);
                }
            }
            Operation::Restart { which } => {
                if !self.dead.is_empty() {
                    let node = self.dead.swap_remove(which % self.dead.len());
                    self.start(node);
                }
            }
            Operation::Cut { share, seconds } => {
                let partition = Partition { regions: None, share, seed: now };
                self.world.hosts.partition = Some(partition);
                self.world.break_links(|own, peer, hosts, relay| {
                    hosts.is_cut(own, peer)
                        || relay.is_some_and(|r| hosts.is_cut(own, r) || hosts.is_cut(r, peer))
                });
                self.pass(seconds * SECOND);
                self.world.hosts.partition = None;
                // both sides find each other again
                self.pass(60 * SECOND);
                self.cuts.push((now, self.world.now()));
            }
        }
    }

    fn pass(&mut self, micros: u64) {
        let until = self.world.now() + micros;
        while self.world.now() < until {
            let next = (self.world.now() + 10_000).min(until);
            for report in self.world.advance(next) {
                let Heard::Event(event) = report.what else { continue };
                self.hear(report.time, report.node, event);
            }
        }
    }

    fn hear(&mut self, at: u64, node: u32, event: Event) {
        match event {
            Event::Joined => {
                self.joined.insert(node);
            }
            Event::Published { topic, sequence, result } if result.is_ok() => {
                let stream = (node, self.starts[&node], topic.as_str().to_owned());
                let number = self.streams.get(&stream).and_then(|all| {
                    all.get(usize::try_from(sequence.checked_sub(1)?).ok()?).copied()
                });
                match number {
                    Some(number) => self.sent[number as usize].accepted = true,
                    None => self.wrong.push(format!("{node} heard of {sequence} on {topic}")),
                }
            }
            Event::Deliver { subscriptions, publish, .. } => {
                for payload in BatchIter::new(publish.count, publish.body) {
                    let number = u32::from_be_bytes(payload[..].try_into().unwrap());
                    let sent = &self.sent[number as usize];
                    for subscription in &subscriptions {
                        let state = &mut self.subscriptions[subscription.0 as usize];
                        let (pattern, until) = (&state.pattern, state.until);
                        if state.node != node || !pattern.matches(&sent.topic) || until < at {
                            self.wrong.push(format!("{at}: {number} went to {state:?}"));
                        }
                        state.got.push(number);
                    }
                }
            }
            _ => {}
        }
    }

    /// What is not as it should be.
    fn judge(mut self) -> Vec<String> {
        self.pass(WITHIN + SECOND);
        let now = self.world.now();
        let is_calm = self.cuts.is_empty() && self.died_at == 0;
        let mut wrong = self.wrong;
        for (place, state) in self.subscriptions.iter().enumerate() {
            let got: BTreeSet<u32> = state.got.iter().copied().collect();
            if got.len() != state.got.len() {
                wrong.push(format!("subscription {place} got something twice: {:?}", state.got));
            }
            let mut last: BTreeMap<(u32, &str), u32> = BTreeMap::new();
            for number in &state.got {
                let sent = &self.sent[*number as usize];
                let last = last.entry((sent.node, sent.topic.as_str())).or_insert(*number);
                if *last > *number {
                    wrong.push(format!("subscription {place} got {number} after {last}"));
                }
                *last = *number;
            }
            for (number, sent) in self.sent.iter().enumerate() {
                let is_due = sent.accepted
                    && state.pattern.matches(&sent.topic)
                    && state.from + SETTLED <= sent.at
                    && state.until.min(now) >= sent.at + WITHIN
                    && !self
                        .cuts
                        .iter()
                        .any(|(from, to)| sent.at + WITHIN > *from && sent.at < *to);
                if is_due && !got.contains(&(number as u32)) {
                    wrong.push(format!(
                        "subscription {place} {state:?} never got {number} {sent:?}"
                    ));
                }
            }
        }
        // nobody may escape by accepting nothing
        let refused = |sent: &&Sent| is_calm && !sent.accepted && sent.at + WITHIN < now;
        if let Some(sent) = self.sent.iter().find(refused) {
            wrong.push(format!("nothing went wrong, and still this was not accepted: {sent:?}"));
        }
        wrong
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn random_operations_give_everybody_what_the_model_says(
        nodes in 10u32..30,
        seed: u64,
        operations in prop::collection::vec((operation(), 0u64..6_000), 10..60),
    ) {
        let mut model = Model::new(nodes, seed);
        prop_assert_eq!(model.joined.len(), nodes as usize);
        for (operation, pause) in &operations {
            model.do_one(operation);
            model.pass(Duration::from_millis(*pause).as_micros() as u64);
        }
        let wrong = model.judge();
        prop_assert!(wrong.is_empty(), "{:#?}", wrong);
    }
}
