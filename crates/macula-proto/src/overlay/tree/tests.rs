//! Trees in a small world of nodes in virtual time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand_core::{Rng, SeedableRng};
use rand_pcg::Pcg32;

use super::super::Overlay;
use super::super::api::{Command, Config, Event, Input, Output, PublishFailure};
use super::super::message::{Cursor, Load, Message, TreeAct, TreeId, TreeMessage};
use super::super::record::Notary;
use super::TreeSizes;
use crate::id::{EndpointId, Key, KeyKind, LinkId, RealmId, SubscriptionId};
use crate::pubsub::{Pattern, Topic};
use crate::time::Time;
use crate::wire::batch::BatchIter;
use crate::wire::message::Publish;

struct Trusting;

impl Notary for Trusting {
    fn sign(&self, _: &EndpointId, _: &[u8]) -> [u8; 64] {
        [0; 64]
    }

    fn verify(&self, _: &EndpointId, _: &[u8], _: &[u8; 64]) -> bool {
        true
    }
}

enum Happening {
    Input(Input),
    Dial(EndpointId),
}

struct Node {
    overlay: Option<Overlay>,
    id: EndpointId,
    timer: Option<Time>,
    group: u8,
    /// Accepts children and sends them nothing.
    is_black_hole: bool,
    /// Dead, but nobody has noticed yet.
    is_mute: bool,
    /// Bodies of batches that it has sent to children, bytes.
    forwarded: u64,
    links: BTreeMap<LinkId, usize>,
    events: Vec<(Time, Event)>,
}

struct World {
    now: Time,
    nodes: Vec<Node>,
    by_id: BTreeMap<EndpointId, usize>,
    queue: BTreeMap<(Time, u64), (usize, Happening)>,
    timers: BTreeSet<(Time, usize)>,
    sequence: u64,
    next_link: u64,
    rng: Pcg32,
    config: Arc<Config>,
    realm: RealmId,
    tree_messages: u64,
}

fn config() -> Config {
    Config { links_per_net: None, ..Config::new(Arc::new(Trusting)) }
}

fn topic(name: &str) -> Topic {
    Topic::parse(name).unwrap()
}

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

const fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

impl World {
    /// A converged world of `count` nodes.
    fn new(count: usize, seed: u64) -> Self {
        Self::with(count, seed, config())
    }

    fn with(count: usize, seed: u64, config: Config) -> Self {
        let mut world = Self {
            now: Time::START,
            nodes: Vec::new(),
            by_id: BTreeMap::new(),
            queue: BTreeMap::new(),
            timers: BTreeSet::new(),
            sequence: 0,
            next_link: 1,
            rng: Pcg32::seed_from_u64(seed),
            config: Arc::new(config),
            realm: RealmId::of_name("test"),
            tree_messages: 0,
        };
        for _ in 0..count {
            world.add();
            world.run(millis(50));
        }
        world.run(seconds(30));
        world
    }

    /// Adds a node that joins by way of any other.
    fn add(&mut self) -> usize {
        let mut bytes = [0; 32];
        self.rng.fill_bytes(&mut bytes);
        let id = EndpointId::from_bytes(bytes);
        let index = self.nodes.len();
        let seed = self.rng.next_u64();
        let overlay = Overlay::new(id, self.realm, self.config.clone(), seed);
        self.by_id.insert(id, index);
        self.nodes.push(Node {
            overlay: Some(overlay),
            id,
            timer: None,
            group: 0,
            is_black_hole: false,
            is_mute: false,
            forwarded: 0,
            links: BTreeMap::new(),
            events: Vec::new(),
        });
        let answers =
            |node: &usize| self.nodes[*node].overlay.is_some() && !self.nodes[*node].is_mute;
        let alive: Vec<usize> = (0..index).filter(answers).collect();
        if !alive.is_empty() {
            let other = alive[self.rng.next_u64() as usize % alive.len()];
            self.link(index, other);
            self.run(millis(200));
        }
        self.command(index, Command::Join);
        index
    }

    /// Nodes without any link find somebody again, as their driver would; returns them.
    fn reconnect(&mut self) -> Vec<usize> {
        let answers: Vec<usize> =
            self.alive().into_iter().filter(|node| !self.nodes[*node].is_mute).collect();
        let alone: Vec<usize> =
            answers.iter().copied().filter(|node| self.nodes[*node].links.is_empty()).collect();
        for node in &alone {
            let other = answers[self.rng.next_u64() as usize % answers.len()];
            if other != *node {
                self.link(*node, other);
            }
        }
        alone
    }

    fn latency(&self, a: usize, b: usize) -> Duration {
        let (a, b) = (a.min(b) as u64, a.max(b) as u64);
        millis(5 + (a * 7919 + b * 104_729) % 40)
    }

    fn link(&mut self, a: usize, b: usize) {
        if self.nodes[a].links.values().any(|peer| *peer == b) {
            return;
        }
        let link = LinkId(self.next_link);
        self.next_link += 1;
        let rtt = self.latency(a, b) * 2;
        for (one, other) in [(a, b), (b, a)] {
            self.nodes[one].links.insert(link, other);
            let peer = self.nodes[other].id;
            let net = other as u32;
            self.at(rtt, one, Happening::Input(Input::LinkUp { link, peer, rtt, net }));
        }
    }

    fn unlink(&mut self, link: LinkId, a: usize) {
        if let Some(b) = self.nodes[a].links.remove(&link) {
            self.nodes[b].links.remove(&link);
            let after = self.latency(a, b);
            self.at(after, b, Happening::Input(Input::LinkDown { link }));
        }
    }

    fn at(&mut self, after: Duration, node: usize, what: Happening) {
        self.sequence += 1;
        self.queue.insert((self.now + after, self.sequence), (node, what));
    }

    fn command(&mut self, node: usize, command: Command) {
        self.input(node, Input::Command(command));
    }

    fn input(&mut self, node: usize, input: Input) {
        let now = self.now;
        let Some(overlay) = &mut self.nodes[node].overlay else { return };
        overlay.handle(now, input);
        self.drain(node);
    }

    fn drain(&mut self, index: usize) {
        loop {
            let Some(overlay) = &mut self.nodes[index].overlay else { return };
            let Some(output) = overlay.poll_output() else { break };
            match output {
                Output::Send { link, message } => self.send(index, link, message),
                Output::Dial { peer } | Output::Redial { peer } => {
                    let other = self.by_id[&peer];
                    let after = self.latency(index, other);
                    self.at(after, index, Happening::Dial(peer));
                }
                Output::Close { link } => self.unlink(link, index),
                Output::Event(event) => self.nodes[index].events.push((self.now, event)),
            }
        }
        let Some(overlay) = &self.nodes[index].overlay else { return };
        let timer = overlay.poll_timeout();
        let old = std::mem::replace(&mut self.nodes[index].timer, timer);
        if old != timer {
            old.into_iter().for_each(|old| {
                self.timers.remove(&(old, index));
            });
            timer.into_iter().for_each(|timer| {
                self.timers.insert((timer, index));
            });
        }
    }

    fn send(&mut self, from: usize, link: LinkId, message: Message) {
        let Some(to) = self.nodes[from].links.get(&link).copied() else { return };
        if self.nodes[from].is_mute || self.nodes[to].is_mute {
            return;
        }
        if let Message::Tree(tree) = &message {
            self.tree_messages += 1;
            if let TreeAct::Data { load: Load::Batch(batch), .. } = &tree.act {
                self.nodes[from].forwarded += batch.body.len() as u64;
            }
            if self.nodes[from].is_black_hole && matches!(tree.act, TreeAct::Data { .. }) {
                return;
            }
        }
        let after = self.latency(from, to);
        self.at(after, to, Happening::Input(Input::Received { link, message }));
    }

    fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        loop {
            let event = self.queue.first_key_value().map(|((at, _), _)| *at);
            let timer = self.timers.first().map(|(at, _)| *at);
            let Some(next) = [event, timer].into_iter().flatten().min() else { break };
            if next > end {
                break;
            }
            self.now = self.now.max(next);
            if event == Some(next) {
                let (_, (node, what)) = self.queue.pop_first().unwrap();
                self.happen(node, what);
            } else {
                let (_, node) = self.timers.pop_first().unwrap();
                self.nodes[node].timer = None;
                self.input(node, Input::Timeout);
            }
        }
        self.now = end;
    }

    fn happen(&mut self, node: usize, what: Happening) {
        match what {
            Happening::Input(input) => {
                let gone = match &input {
                    Input::Received { link, .. } | Input::LinkUp { link, .. } => {
                        !self.nodes[node].links.contains_key(link)
                    }
                    _ => false,
                };
                if !gone {
                    self.input(node, input);
                }
            }
            Happening::Dial(peer) => {
                let other = self.by_id[&peer];
                let can = self.nodes[other].overlay.is_some()
                    && !self.nodes[other].is_mute
                    && self.nodes[other].group == self.nodes[node].group;
                if can {
                    self.link(node, other);
                } else {
                    self.input(node, Input::DialFailed { peer });
                }
            }
        }
    }

    fn kill(&mut self, node: usize) {
        let links: Vec<LinkId> = self.nodes[node].links.keys().copied().collect();
        links.into_iter().for_each(|link| self.unlink(link, node));
        self.nodes[node].overlay = None;
        if let Some(timer) = self.nodes[node].timer.take() {
            self.timers.remove(&(timer, node));
        }
    }

    fn part(&mut self, group: impl Fn(usize) -> u8) {
        for node in 0..self.nodes.len() {
            self.nodes[node].group = group(node);
        }
        for node in 0..self.nodes.len() {
            let links: Vec<LinkId> = self.nodes[node]
                .links
                .iter()
                .filter(|(_, peer)| self.nodes[**peer].group != self.nodes[node].group)
                .map(|(link, _)| *link)
                .collect();
            for link in links {
                self.unlink(link, node);
                self.input(node, Input::LinkDown { link });
            }
        }
    }

    fn alive(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|node| self.nodes[*node].overlay.is_some()).collect()
    }

    fn subscribe(&mut self, node: usize, number: u64, pattern: &str) {
        let pattern = Pattern::parse(pattern).unwrap();
        let subscription = SubscriptionId(number);
        self.command(node, Command::Subscribe { subscription, pattern, qos1: true });
    }

    fn publish(&mut self, node: usize, name: &str, payload: &str, qos1: bool, retain: bool) {
        let payload = Bytes::copy_from_slice(payload.as_bytes());
        self.command(node, Command::Publish { topic: topic(name), payload, qos1, retain });
    }

    /// Payloads that a subscription got, in order.
    fn got(&self, node: usize, number: u64) -> Vec<String> {
        let mut got = Vec::new();
        for (_, event) in &self.nodes[node].events {
            if let Event::Deliver { subscriptions, publish, .. } = event
                && subscriptions.contains(&SubscriptionId(number))
            {
                for payload in BatchIter::new(publish.count, publish.body.clone()) {
                    got.push(String::from_utf8(payload.to_vec()).unwrap());
                }
            }
        }
        got
    }

    /// Outcomes of QoS 1 messages.
    fn published(&self, node: usize) -> Vec<(u64, Result<u32, PublishFailure>)> {
        let outcome = |event: &(Time, Event)| match event.1 {
            Event::Published { sequence, result, .. } => Some((sequence, result)),
            _ => None,
        };
        self.nodes[node].events.iter().filter_map(outcome).collect()
    }

    fn lost(&self, node: usize) -> u64 {
        let count = |event: &(Time, Event)| match event.1 {
            Event::Lost { count, .. } => Some(count),
            _ => None,
        };
        self.nodes[node].events.iter().filter_map(count).sum()
    }

    /// Whether an application was told that messages of a topic came too late or never.
    fn has_lost(&self, node: usize, name: &str) -> bool {
        let is_it = |(_, event): &(Time, Event)| matches!(event, Event::Lost { topic, .. } if topic.as_str() == name);
        self.nodes[node].events.iter().any(is_it)
    }

    fn sizes(&self, node: usize) -> TreeSizes {
        self.nodes[node].overlay.as_ref().unwrap().trees.sizes()
    }

    fn tree(&self, node: usize, name: &str) -> Option<&super::Tree> {
        let id = id(name);
        self.nodes[node].overlay.as_ref()?.trees.trees.get(&id)
    }

    /// Who is root of a topic.
    fn roots(&self, name: &str) -> Vec<usize> {
        let is_root = |node: &usize| self.tree(*node, name).is_some_and(|tree| tree.root.is_some());
        (0..self.nodes.len()).filter(is_root).collect()
    }

    /// Who has children in a topic's tree.
    fn forwarders(&self, name: &str) -> Vec<usize> {
        let has =
            |node: &usize| self.tree(*node, name).is_some_and(|tree| !tree.children.is_empty());
        (0..self.nodes.len()).filter(has).collect()
    }

    fn node_key(&self, node: usize) -> Key {
        Key::derive(&self.realm, KeyKind::Node, self.nodes[node].id.as_bytes())
    }

    /// The router closest to a topic's key.
    fn closest(&self, name: &str) -> usize {
        let key = Key::derive(&self.realm, KeyKind::Topic, name.as_bytes());
        self.alive().into_iter().min_by_key(|node| self.node_key(*node).distance(&key)).unwrap()
    }

    /// A world of `count` nodes in which one is still joining, and closer to a topic's key than all.
    fn with_newcomer(count: usize, seed: u64, name: &str) -> (Self, usize) {
        let mut world = Self::new(count, seed);
        loop {
            let newcomer = world.add();
            let is_joining = world.nodes[newcomer].overlay.is_some() && !world.is_joined(newcomer);
            if is_joining && world.closest(name) == newcomer {
                return (world, newcomer);
            }
            world.run(seconds(5));
        }
    }

    fn is_joined(&self, node: usize) -> bool {
        self.nodes[node].events.iter().any(|(_, event)| matches!(event, Event::Joined))
    }

    fn check_children_cap(&self) {
        for node in self.alive() {
            let max = self.sizes(node).children_max;
            assert!(max <= self.config.children_max, "{node} has {max} children");
        }
    }

    /// Nobody publishes steadily any more.
    fn check_no_sources(&self) -> Result<(), String> {
        let trees =
            |node: usize| self.nodes[node].overlay.iter().flat_map(|o| o.trees.trees.values());
        let wants =
            |node: &usize| !self.nodes[*node].is_mute && trees(*node).any(|tree| tree.is_tapped);
        match self.alive().into_iter().find(wants) {
            Some(node) => Err(format!("{node} wants a source tree")),
            None => Ok(()),
        }
    }

    /// The source tree of a publisher.
    fn source_tree(&self, node: usize, name: &str, publisher: usize) -> Option<&super::Tree> {
        let id = TreeId { source: Some(self.nodes[publisher].id), ..id(name) };
        self.nodes[node].overlay.as_ref()?.trees.trees.get(&id)
    }

    /// Who passes on what comes down a source tree.
    fn source_forwarders(&self, name: &str, publisher: usize) -> Vec<usize> {
        let has = |node: &usize| {
            self.source_tree(*node, name, publisher).is_some_and(|tree| !tree.children.is_empty())
        };
        (0..self.nodes.len()).filter(has).collect()
    }

    fn stat(&self, pick: impl Fn(&super::super::Stats) -> u64) -> u64 {
        let overlays = self.nodes.iter().filter_map(|node| node.overlay.as_ref());
        overlays.map(|overlay| pick(overlay.stats())).sum()
    }
}

fn id(name: &str) -> TreeId {
    TreeId::of(Bytes::copy_from_slice(name.as_bytes()))
}

fn names(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|n| n.to_string()).collect()
}

#[test]
fn all_subscribers_get_all_messages_once_and_in_order() {
    let mut world = World::new(40, 1);
    (1..30).for_each(|node| world.subscribe(node, 1, "a.b"));
    world.run(seconds(10));
    for n in 0..100 {
        world.publish(35, "a.b", &n.to_string(), n % 2 == 0, false);
        world.run(millis(20));
    }
    world.run(seconds(5));
    assert_eq!(world.roots("a.b"), [world.closest("a.b")]);
    world.check_children_cap();
    for node in 1..30 {
        assert_eq!(world.got(node, 1), names(0..100), "node {node}");
        assert_eq!(world.lost(node), 0);
    }
    assert!(world.published(35).iter().all(|(_, result)| result.is_ok()));
    assert_eq!(world.published(35).len(), 50);
    assert_eq!(world.got(30, 1).len(), 0);
    let (unexpected, gaps) =
        (world.stat(|stats| stats.messages_unexpected), world.stat(|stats| stats.tree_gaps));
    assert_eq!((unexpected, gaps), (0, 0));
}

/// Publishes numbers from one node, one each 50 ms, and does something before each 20th.
fn publish_while(
    world: &mut World,
    publisher: usize,
    count: u32,
    mut every_second: impl FnMut(&mut World),
) {
    for n in 0..count {
        if n % 20 == 10 {
            every_second(world);
        }
        world.publish(publisher, "a.b", &n.to_string(), true, false);
        world.run(millis(50));
    }
}

fn check_all_got(world: &World, subscribers: &[usize], publisher: usize, count: u32) {
    let outcomes = world.published(publisher);
    assert_eq!(outcomes.len() as u32, count);
    assert!(outcomes.iter().all(|(_, result)| result.is_ok()), "{outcomes:?}");
    for node in subscribers {
        let got = world.got(*node, 1);
        let missing: Vec<String> =
            names(0..count).into_iter().filter(|name| !got.contains(name)).collect();
        assert!(missing.is_empty(), "node {node} misses {} {missing:.4?}", missing.len());
        assert_eq!(got, names(0..count), "node {node}");
    }
}

#[test]
fn nothing_is_lost_when_a_forwarder_dies_every_second() {
    for seed in 1..4 {
        let mut world = World::new(60, seed);
        let subscribers: Vec<usize> = (0..60).step_by(3).collect();
        subscribers.iter().for_each(|node| world.subscribe(*node, 1, "a.b"));
        world.run(seconds(10));
        let mut killed = 0;
        publish_while(&mut world, 1, 300, |world| {
            let root = world.closest("a.b");
            let victim = world
                .forwarders("a.b")
                .into_iter()
                .find(|node| *node != root && *node != 1 && node % 3 != 0);
            if let Some(victim) = victim {
                world.kill(victim);
                killed += 1;
            }
        });
        world.run(seconds(20));
        assert!(killed > 0, "seed {seed}");
        world.check_children_cap();
        check_all_got(&world, &subscribers, 1, 300);
    }
}

#[test]
fn nothing_acknowledged_is_lost_when_roots_die() {
    for seed in 1..6 {
        let mut world = World::new(50, seed);
        let mut subscribers: Vec<usize> = (0..50).step_by(2).collect();
        subscribers.iter().for_each(|node| world.subscribe(*node, 1, "a.b"));
        world.run(seconds(10));
        let publisher = (1..50).step_by(2).rfind(|node| *node != world.closest("a.b")).unwrap();
        let mut seconds_passed = 0;
        publish_while(&mut world, publisher, 300, |world| {
            seconds_passed += 1;
            let root = world.closest("a.b");
            if seconds_passed % 4 == 1 && root != publisher {
                world.kill(root);
            }
        });
        world.run(seconds(20));
        subscribers.retain(|node| world.nodes[*node].overlay.is_some());
        assert_eq!(world.roots("a.b"), [world.closest("a.b")]);
        check_all_got(&world, &subscribers, publisher, 300);
    }
}

#[test]
fn a_forwarder_that_falls_silent_is_left() {
    let mut world = World::new(40, 5);
    let subscribers: Vec<usize> = (0..40).step_by(3).collect();
    subscribers.iter().for_each(|node| world.subscribe(*node, 1, "a.b"));
    world.run(seconds(10));
    let root = world.closest("a.b");
    let others = |node: &usize| *node != root && !node.is_multiple_of(3) && *node != 1;
    let Some(victim) = world.forwarders("a.b").into_iter().find(others) else {
        panic!("no forwarder that does not subscribe; choose another seed");
    };
    world.nodes[victim].is_mute = true;
    publish_while(&mut world, 1, 300, |_| {});
    world.run(seconds(20));
    check_all_got(&world, &subscribers, 1, 300);
}

#[test]
fn a_parent_that_delivers_nothing_is_left() {
    let mut world = World::new(40, 6);
    let subscribers: Vec<usize> = (0..40).step_by(3).collect();
    subscribers.iter().for_each(|node| world.subscribe(*node, 1, "a.b"));
    world.run(seconds(10));
    let root = world.closest("a.b");
    let victim =
        world.forwarders("a.b").into_iter().find(|node| *node != root && *node != 1).unwrap();
    world.nodes[victim].is_black_hole = true;
    publish_while(&mut world, 1, 300, |_| {});
    world.run(seconds(20));
    assert!(world.stat(|stats| stats.tree_parents_silent) > 0);
    let honest: Vec<usize> = subscribers.into_iter().filter(|node| *node != victim).collect();
    check_all_got(&world, &honest, 1, 300);
}

#[test]
fn many_subscribers_are_pushed_down() {
    let mut world = World::with(120, 7, Config { children_max: 3, ..config() });
    (0..120).for_each(|node| world.subscribe(node, 1, "a.b"));
    world.run(seconds(20));
    publish_while(&mut world, 17, 40, |_| {});
    world.run(seconds(5));
    world.check_children_cap();
    assert!(world.stat(|stats| stats.tree_redirects) > 0);
    let all: Vec<usize> = (0..120).collect();
    check_all_got(&world, &all, 17, 40);
    let depth = (0..120).map(|node| world.tree(node, "a.b").unwrap().depth).max().unwrap();
    assert!(depth <= 16, "depth {depth}");
}

#[test]
fn retained_messages_come_to_new_subscribers_even_after_the_root_died() {
    let mut world = World::new(30, 8);
    world.publish(3, "a.b", "old", true, true);
    world.publish(3, "a.b", "kept", true, true);
    world.publish(3, "a.b", "not kept", true, false);
    world.run(seconds(40));
    let (early, late) = if world.closest("a.b") == 4 { (5, 6) } else { (4, 7) };
    world.subscribe(early, 1, "a.b");
    world.run(seconds(5));
    assert_eq!(world.got(early, 1), ["kept"]);
    world.subscribe(early, 2, "a.b");
    assert_eq!(world.got(early, 2), ["kept"], "a second subscription gets it at once");
    world.kill(world.closest("a.b"));
    world.run(seconds(90));
    world.kill(world.closest("a.b"));
    world.run(seconds(10));
    world.subscribe(late, 1, "a.b");
    world.run(seconds(5));
    assert_eq!(world.got(late, 1), ["kept"]);
    let publisher = world.alive().into_iter().find(|n| ![early, late].contains(n)).unwrap();
    world.publish(publisher, "a.b", "next", true, false);
    world.run(seconds(5));
    assert_eq!(world.got(early, 1), ["kept", "next"]);
    assert_eq!(world.got(late, 1), ["kept", "next"]);
    world.publish(publisher, "a.b", "", true, true);
    world.run(seconds(5));
    let last = world.alive().into_iter().find(|n| ![early, late].contains(n)).unwrap();
    world.subscribe(last, 1, "a.b");
    world.run(seconds(5));
    assert!(world.got(last, 1).is_empty());
}

#[test]
fn wildcards_find_old_and_new_topics() {
    let mut world = World::new(40, 9);
    for n in 0..5 {
        world.publish(n, &format!("site.{n}.old"), "before", true, n == 0);
    }
    world.run(seconds(5));
    world.subscribe(20, 1, "site.*.old");
    world.subscribe(21, 2, "site.**");
    world.subscribe(22, 3, "**");
    world.subscribe(23, 4, "other.**");
    world.run(seconds(10));
    for (node, number) in [(20, 1), (21, 2), (22, 3)] {
        assert_eq!(world.got(node, number), ["before"], "the retained one");
    }
    for n in 0..5 {
        world.publish(n, &format!("site.{n}.old"), "after", true, false);
        world.publish(n, &format!("site.{n}.new"), "first", n % 2 == 0, false);
    }
    world.run(seconds(5));
    for n in 0..5 {
        world.publish(n, &format!("site.{n}.new"), "second", true, false);
    }
    world.run(seconds(5));
    let count = |node, number, what: &str| {
        world.got(node, number).iter().filter(|payload| *payload == what).count()
    };
    assert_eq!((count(20, 1, "after"), count(20, 1, "first")), (5, 0));
    for (node, number) in [(21, 2), (22, 3)] {
        assert_eq!(count(node, number, "after"), 5);
        assert_eq!(count(node, number, "first"), 5, "{node}");
        assert_eq!(count(node, number, "second"), 5);
    }
    assert!(world.got(23, 4).is_empty());
    world.command(21, Command::Unsubscribe { subscription: SubscriptionId(2) });
    world.publish(1, "site.1.new", "third", true, false);
    world.run(seconds(20));
    assert_eq!(world.got(21, 2).iter().filter(|payload| *payload == "third").count(), 0);
}

#[test]
fn a_pattern_gets_what_was_accepted_while_its_index_was_lost() {
    for seed in 40..50 {
        let mut world = World::new(40, seed);
        let root = world.closest("site.a");
        let key = Key::derive(&world.realm, KeyKind::TopicPrefix, b"site");
        let mut order: Vec<usize> = world.alive();
        order.sort_by_key(|node| world.node_key(*node).distance(&key));
        // at once the index, whoever holds it too, and all that may have done so before
        let dying: Vec<usize> =
            order.iter().copied().filter(|node| *node != root).take(8).collect();
        let others: Vec<usize> =
            order.into_iter().filter(|node| !dying.contains(node) && *node != root).collect();
        let (early, publisher, late, unlucky) = (others[0], others[1], others[2], others[3]);
        world.subscribe(early, 1, "site.**");
        world.run(seconds(5));
        world.publish(publisher, "site.b", "known", true, false);
        world.run(seconds(5));
        assert_eq!(world.got(early, 1), ["known"], "seed {seed}");
        dying.iter().for_each(|node| world.kill(*node));
        world.publish(publisher, "site.a", "lost index", true, false);
        world.subscribe(unlucky, 1, "*.b");
        world.subscribe(unlucky, 3, "site.*");
        world.run(seconds(4));
        world.publish(publisher, "site.a", "still", true, false);
        world.publish(publisher, "site.b", "settled", true, false);
        world.run(seconds(28));
        assert!(world.published(publisher).iter().all(|(_, result)| result.is_ok()));
        let got = world.got(early, 1);
        assert_eq!(got.len(), 4, "seed {seed}: {got:?}");
        for number in [1, 3] {
            let got = world.got(unlucky, number);
            assert!(got.iter().any(|one| one == "settled"), "seed {seed}, {number}: {got:?}");
        }
        // the second one of a node gets what the first has had
        world.subscribe(late, 1, "site.a");
        world.subscribe(late, 2, "**");
        world.run(seconds(5));
        world.publish(publisher, "site.a", "next", true, false);
        world.run(seconds(5));
        assert_eq!(world.got(late, 1), ["next"], "seed {seed}");
        assert_eq!(world.got(late, 2), ["next"], "seed {seed}");
    }
}

#[test]
fn a_topic_that_lives_no_more_is_left_and_found_again() {
    let mut world = World::new(20, 51);
    world.subscribe(3, 1, "site.**");
    world.run(seconds(5));
    world.publish(4, "site.a", "one", true, false);
    world.run(seconds(5));
    assert!(world.tree(3, "site.a").is_some());
    world.run(seconds(600));
    assert!(world.stat(|stats| stats.tree_topics_expired) > 0);
    assert!(world.tree(3, "site.a").is_none());
    world.publish(4, "site.a", "two", true, false);
    world.run(seconds(10));
    assert_eq!(world.got(3, 1), ["one", "two"]);
    // while it carries something it stays, announced or not
    for n in 0..40 {
        world.publish(4, "site.a", &n.to_string(), true, false);
        world.run(seconds(20));
    }
    assert_eq!(world.got(3, 1).len(), 42);
    assert_eq!(world.stat(|stats| stats.tree_topics_expired), 1);
}

#[test]
fn halves_of_a_parted_world_become_one_again() {
    for seed in 10..13 {
        let mut world = World::new(40, seed);
        let subscribers: Vec<usize> = (0..40).step_by(2).collect();
        subscribers.iter().for_each(|node| world.subscribe(*node, 1, "a.b"));
        world.run(seconds(10));
        world.part(|node| u8::from(node >= 20));
        world.run(seconds(15));
        assert_eq!(world.roots("a.b").len(), 2);
        world.publish(1, "a.b", "left", true, false);
        world.publish(39, "a.b", "right", true, false);
        world.run(seconds(2));
        for node in &subscribers {
            let expected = if *node < 20 { "left" } else { "right" };
            assert_eq!(world.got(*node, 1), [expected], "node {node}");
        }
        world.part(|_| 0);
        world.run(seconds(25));
        assert_eq!(world.roots("a.b"), [world.closest("a.b")], "seed {seed}");
        for node in &subscribers {
            let mut got = world.got(*node, 1);
            got.sort();
            assert_eq!(got, ["left", "right"], "node {node}");
        }
    }
}

#[test]
fn two_topics_do_not_mix_and_a_late_subscriber_gets_what_comes_later() {
    let mut world = World::new(30, 14);
    world.subscribe(2, 1, "a.b");
    world.subscribe(3, 1, "a.c");
    world.run(seconds(5));
    (0..10).for_each(|n| world.publish(4, "a.b", &n.to_string(), true, false));
    world.run(seconds(3));
    world.subscribe(5, 1, "a.b");
    world.run(seconds(3));
    (10..20).for_each(|n| world.publish(4, "a.b", &n.to_string(), true, false));
    world.run(seconds(3));
    assert_eq!(world.got(2, 1), names(0..20));
    assert_eq!(world.got(5, 1), names(10..20));
    assert!(world.got(3, 1).is_empty());
}

#[test]
fn a_tree_that_nobody_needs_goes_away() {
    let mut world = World::new(30, 15);
    (0..10).for_each(|node| world.subscribe(node, 1, "a.b"));
    world.run(seconds(10));
    world.publish(11, "a.b", "x", true, false);
    world.run(seconds(5));
    let subscription = SubscriptionId(1);
    (0..10).for_each(|node| world.command(node, Command::Unsubscribe { subscription }));
    world.run(seconds(900));
    for node in 0..30 {
        let sizes = world.sizes(node);
        assert_eq!((sizes.trees, sizes.ring_bytes), (0, 0), "node {node}: {sizes:?}");
    }
}

#[test]
fn a_flood_of_joins_is_bounded() {
    let mut config = config();
    config.trees.trees_max = 100;
    config.trees.trees_per_link_max = 30;
    let mut world = World::with(10, 16, config);
    let (link, flooder) = world.nodes[0].links.iter().next().map(|(l, n)| (*l, *n)).unwrap();
    for n in 0..1000 {
        let act = TreeAct::Join { hops: 0, have: Cursor::default(), redirected: false };
        let message = Message::Tree(Box::new(TreeMessage { tree: id(&format!("t.{n}")), act }));
        world.send(flooder, link, message);
        let act = TreeAct::Data {
            at: Cursor { stream: 1, offset: 1 },
            replay: false,
            load: Load::Topic(Bytes::from_static(b"x")),
        };
        let message = Message::Tree(Box::new(TreeMessage { tree: id(&format!("d.{n}")), act }));
        world.send(flooder, link, message);
    }
    world.run(seconds(5));
    let sizes = world.sizes(0);
    assert!(sizes.children <= 30 && sizes.trees <= 100, "{sizes:?}");
    let refused = world.nodes[0].overlay.as_ref().unwrap().stats().tree_joins_refused;
    assert!(refused >= 970, "{refused}");
    world.run(seconds(300));
    assert_eq!(world.sizes(0).children, 0, "who does not refresh is dropped");
}

#[test]
fn rings_are_bounded_in_bytes() {
    let mut config = config();
    config.trees.ring_bytes_per_topic_max = 20_000;
    config.trees.ring_bytes_max = 50_000;
    let mut world = World::with(12, 17, config);
    world.subscribe(3, 1, "t.0");
    world.run(seconds(5));
    let payload = "x".repeat(2_000);
    for n in 0..300 {
        world.publish(1, &format!("t.{}", n % 10), &payload, true, false);
        world.run(millis(20));
        for node in 0..12 {
            assert!(world.sizes(node).ring_bytes <= 60_000, "{:?}", world.sizes(node));
        }
    }
    assert!(world.stat(|stats| stats.tree_rings_full) > 0);
    assert_eq!(world.got(3, 1).len(), 30);
}

#[test]
fn without_anybody_else_a_node_is_its_own_root() {
    let mut world = World::new(1, 18);
    world.subscribe(0, 1, "a.*");
    world.run(seconds(1));
    world.publish(0, "a.b", "x", true, false);
    world.run(seconds(1));
    assert_eq!(world.got(0, 1), ["x"]);
    assert_eq!(world.published(0).len(), 1);
    assert!(world.published(0)[0].1.is_ok());
}

#[test]
fn a_publisher_without_a_root_learns_so_and_is_bounded() {
    let mut config = config();
    config.trees.publish_bytes_max = 10_000;
    let mut world = World::with(10, 19, config);
    let publisher = if world.closest("a.b") == 1 { 2 } else { 1 };
    let root = world.closest("a.b");
    world.nodes[root].is_mute = true;
    world.nodes[publisher].is_mute = true;
    (0..200).for_each(|_| world.publish(publisher, "a.b", &"x".repeat(100), true, false));
    world.run(seconds(1));
    let blocked = |(_, result): &(u64, Result<u32, PublishFailure>)| {
        *result == Err(PublishFailure::WouldBlock)
    };
    assert!(world.published(publisher).iter().filter(|outcome| blocked(outcome)).count() > 100);
    world.run(seconds(300));
    assert_eq!(world.published(publisher).len(), 200, "each has ended");
}

#[test]
fn a_router_that_is_still_joining_is_no_root() {
    let (mut world, newcomer) = World::with_newcomer(20, 52, "a.b");
    let other = (newcomer + 1) % 20;
    world.subscribe(newcomer, 1, "a.b");
    world.subscribe(other, 1, "a.b");
    while !world.is_joined(newcomer) {
        assert!(!world.roots("a.b").contains(&newcomer));
        world.run(millis(10));
    }
    world.run(seconds(5));
    assert_eq!(world.roots("a.b"), [newcomer]);
    publish_while(&mut world, 2, 20, |_| {});
    world.run(seconds(5));
    check_all_got(&world, &[newcomer, other], 2, 20);
}

/// Who should have received what, over random commands and deaths.
#[derive(Default)]
struct Model {
    /// Node and topic to when it subscribed.
    subscribed: BTreeMap<(usize, &'static str), (Time, u64)>,
    published: Vec<(Time, usize, &'static str, String)>,
    /// When a topic had more than one root.
    torn: Vec<(&'static str, Time, Time)>,
}

/// What is accepted is kept for 30 s, and passed on within some seconds once there is one root.
const REPAIRED_WITHIN: Duration = seconds(24);

const TOPICS: [&str; 3] = ["a", "a.b", "c"];

/// Whether the first that somebody got of a publisher was behind this message: with that its order
/// began, and what another root had accepted before cannot come any more.
fn begins_later(got: &[String], payload: &str) -> bool {
    let (publisher, sequence) = payload.split_once(':').unwrap();
    let sequence: u64 = sequence.parse().unwrap();
    let of_publisher = |got: &String| {
        got.split_once(':').filter(|(of, _)| *of == publisher).map(|(_, n)| n.parse())
    };
    let first = got.iter().find_map(of_publisher);
    first.is_some_and(|first: Result<u64, _>| first.unwrap() > sequence)
}

impl Model {
    fn look(&mut self, world: &World) {
        for name in TOPICS {
            if world.roots(name).len() < 2 {
                continue;
            }
            let last = self.torn.iter_mut().rev().find(|(of, ..)| *of == name);
            match last {
                Some((_, _, until)) if world.now.saturating_since(*until) < seconds(1) => {
                    *until = world.now;
                }
                _ => self.torn.push((name, world.now, world.now)),
            }
        }
    }

    /// Whether a topic had several roots for so long that what one of them accepted about then may
    /// not have come to the others.
    fn was_torn(&self, name: &str, at: Time) -> bool {
        self.torn.iter().any(|(of, from, until)| {
            *of == name
                && until.saturating_since(*from) > REPAIRED_WITHIN
                && at < *until
                && at + seconds(30) > *from
        })
    }

    fn check(&self, world: &World, faults: Faults) -> Result<(), String> {
        let (settle, in_parts) = (faults.settle(), faults == Faults::Parts);
        let accepted = |node: usize, name: &str, payload: &str| {
            world.nodes[node].events.iter().any(|(_, event)| {
                // the payload ends with the sequence
                matches!(event, Event::Published { topic, sequence, result: Ok(_) }
                    if topic.as_str() == name
                        && payload.ends_with(&format!(":{sequence}")))
            })
        };
        for (&(node, name), (since, number)) in &self.subscribed {
            if world.nodes[node].overlay.is_none() || world.nodes[node].is_mute {
                continue;
            }
            let got = world.got(node, *number);
            for (at, publisher, of, payload) in &self.published {
                if *of == name
                    && *at > *since + settle
                    && !got.contains(payload)
                    && !(in_parts
                        && (self.was_torn(name, *at)
                            || world.has_lost(node, name)
                            || begins_later(&got, payload)))
                    && accepted(*publisher, name, payload)
                {
                    return Err(format!("{node} lacks {payload} of {name}, published {at:?}"));
                }
            }
        }
        for node in 0..world.nodes.len() {
            for number in 0..400 {
                let got = world.got(node, number);
                let mut last: BTreeMap<&str, u64> = BTreeMap::new();
                for payload in &got {
                    let (from, sequence) = payload.split_once(':').unwrap();
                    let sequence: u64 = sequence.parse().unwrap();
                    let before = last.insert(from, sequence);
                    if before.is_some_and(|before| before >= sequence) {
                        return Err(format!("{node}: {payload} after {before:?} in {got:?}"));
                    }
                }
            }
        }
        Ok(())
    }
}

/// What goes wrong during random operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Faults {
    /// Nodes die; their links with them.
    Deaths,
    /// Some die without their links.
    Silence,
    /// Nodes die, and for some seconds at a time the world is in two parts.
    Parts,
}

impl Faults {
    /// How long before a message somebody must have subscribed to be sure to get it.
    const fn settle(self) -> Duration {
        match self {
            Self::Deaths => seconds(3),
            Self::Silence | Self::Parts => seconds(20),
        }
    }
}

fn random_operations(seed: u64, faults: Faults) -> Result<(), String> {
    random_operations_with(seed, faults, false).map(|_| ())
}

/// With `is_steady` one publisher publishes all the time, so that its flow moves; returns how many
/// nodes moved it.
fn random_operations_with(seed: u64, faults: Faults, is_steady: bool) -> Result<u64, String> {
    let mut world = World::new(25, seed);
    let mut model = Model::default();
    let mut sequences: BTreeMap<(usize, &str), u64> = BTreeMap::new();
    let mut last_death = world.now;
    let (mut last_part, mut whole_at) = (world.now, None);
    let draw = |world: &mut World, n: usize| world.rng.next_u64() as usize % n;
    for step in 0..400 {
        let alive: Vec<usize> =
            world.alive().into_iter().filter(|node| !world.nodes[*node].is_mute).collect();
        let node = alive[draw(&mut world, alive.len())];
        let number = draw(&mut world, TOPICS.len());
        let name = TOPICS[number];
        match draw(&mut world, 20) {
            0..=2 if !model.subscribed.contains_key(&(node, name)) => {
                world.subscribe(node, step, name);
                model.subscribed.insert((node, name), (world.now, step));
            }
            3 => {
                if let Some((_, number)) = model.subscribed.remove(&(node, name)) {
                    let subscription = SubscriptionId(number);
                    world.command(node, Command::Unsubscribe { subscription });
                }
            }
            // the first nodes publish and live
            4..=15 => {
                let publisher = node % 5;
                let sequence = sequences.entry((publisher, name)).or_default();
                *sequence += 1;
                let payload = format!("{publisher}:{sequence}");
                world.publish(publisher, name, &payload, true, false);
                model.published.push((world.now, publisher, name, payload));
            }
            16 if world.now.saturating_since(last_death) > seconds(4)
                && alive.len() > 12
                && node >= 5 =>
            {
                last_death = world.now;
                if faults == Faults::Silence && draw(&mut world, 3) == 0 {
                    last_death = world.now + seconds(15);
                    world.nodes[node].is_mute = true;
                } else {
                    world.kill(node);
                }
            }
            17 if world.nodes.len() < 40 => {
                world.add();
            }
            18 if faults == Faults::Parts
                && whole_at.is_none()
                && world.now.saturating_since(last_part) > seconds(40) =>
            {
                let (modulus, length) = (2 + draw(&mut world, 4), draw(&mut world, 8_000) as u64);
                world.part(|node| u8::from(node % modulus == 0));
                whole_at = Some(world.now + millis(length));
            }
            _ => {}
        }
        if is_steady && step % 200 > 10 && step % 200 < 180 {
            let (publisher, name) = (seed as usize % 5, TOPICS[seed as usize / 5 % TOPICS.len()]);
            let sequence = sequences.entry((publisher, name)).or_default();
            for _ in 0..2 {
                *sequence += 1;
                let payload = format!("{publisher}:{sequence}");
                world.publish(publisher, name, &payload, true, false);
                model.published.push((world.now, publisher, name, payload));
            }
        }
        for alone in world.reconnect() {
            for ((node, _), (since, _)) in &mut model.subscribed {
                if *node == alone {
                    *since = world.now;
                }
            }
        }
        if whole_at.is_some_and(|at| at <= world.now) {
            world.part(|_| 0);
            (whole_at, last_part) = (None, world.now);
        }
        model.look(&world);
        let pause = draw(&mut world, 300) as u64;
        world.run(millis(pause));
    }
    world.part(|_| 0);
    for _ in 0..120 {
        world.run(millis(500));
        world.reconnect();
        model.look(&world);
    }
    model
        .check(&world, faults)
        .map_err(|error| format!("{faults:?}, seed {seed}, steady {is_steady}: {error}"))?;
    world.check_no_sources()?;
    Ok(world.stat(|stats| stats.tree_prunes))
}

#[test]
fn random_operations_lose_and_double_nothing() {
    let mut failures = Vec::new();
    for seed in 100..120 {
        failures.extend(random_operations(seed, Faults::Deaths).err());
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

/// `MACULA_SEEDS=0..300 cargo test -p macula-proto --profile simfast --lib -- --ignored sweep`
#[test]
#[ignore = "minutes; takes its seeds from the environment"]
#[expect(clippy::disallowed_methods, clippy::print_stdout, reason = "run by hand")]
fn sweep_of_random_operations() {
    let seeds = std::env::var("MACULA_SEEDS").unwrap_or_else(|_| "0..20".into());
    let (from, to) = seeds.split_once("..").unwrap();
    let mut failures = Vec::new();
    let (mut steady, mut moved) = (0, 0);
    for seed in from.parse::<u64>().unwrap()..to.parse().unwrap() {
        for faults in [Faults::Deaths, Faults::Silence, Faults::Parts] {
            for is_steady in [false, true] {
                match random_operations_with(seed, faults, is_steady) {
                    Ok(prunes) => {
                        steady += u64::from(is_steady);
                        moved += u64::from(is_steady && prunes > 0);
                    }
                    Err(error) => {
                        println!("{error}");
                        failures.push(error);
                    }
                }
            }
        }
    }
    println!("{moved} of {steady} steady flows moved");
    assert!(failures.is_empty(), "{} failures", failures.len());
    // where the publisher is the root, or roots and nodes change all the time, it does not
    assert!(moved * 4 > steady * 3, "{moved} of {steady} steady flows moved");
}

#[test]
fn random_operations_around_a_flow_that_moves_lose_and_double_nothing() {
    let mut failures = Vec::new();
    let mut moved = 0;
    for seed in 400..408 {
        for faults in [Faults::Deaths, Faults::Silence, Faults::Parts] {
            match random_operations_with(seed, faults, true) {
                Ok(prunes) => moved += u32::from(prunes > 0),
                Err(error) => failures.push(error),
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
    assert!(moved >= 20, "{moved}");
}

#[test]
fn random_operations_in_a_world_in_parts_lose_and_double_nothing() {
    let mut failures = Vec::new();
    for seed in 300..312 {
        failures.extend(random_operations(seed, Faults::Parts).err());
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn random_operations_with_silent_deaths_lose_and_double_nothing() {
    let mut failures = Vec::new();
    for seed in 200..212 {
        failures.extend(random_operations(seed, Faults::Silence).err());
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn a_loop_of_parents_is_found_and_broken() {
    let mut world = World::new(30, 20);
    (0..30).step_by(2).for_each(|node| world.subscribe(node, 1, "a.b"));
    world.run(seconds(10));
    // somebody claims to be ever deeper
    let (root, child) = {
        let root = world.closest("a.b");
        let link = world.tree(root, "a.b").unwrap().children.keys().next().copied().unwrap();
        (root, (world.nodes[root].links[&link], link))
    };
    let act = TreeAct::Beat { at: world.tree(root, "a.b").unwrap().place.at(), depth: 40 };
    let message = Message::Tree(Box::new(TreeMessage { tree: id("a.b"), act }));
    world.send(root, child.1, message);
    world.run(seconds(1));
    assert!(world.stat(|stats| stats.tree_loops) > 0);
    world.run(seconds(30));
    publish_while(&mut world, 1, 20, |_| {});
    world.run(seconds(5));
    let subscribers: Vec<usize> = (0..30).step_by(2).collect();
    check_all_got(&world, &subscribers, 1, 20);
}

#[test]
fn a_node_without_trees_costs_little() {
    assert!(size_of::<super::Trees>() < 320, "{}", size_of::<super::Trees>());
}

#[test]
fn any_message_of_a_neighbour_is_survived() {
    (21..24).for_each(survive_any_message);
}

fn survive_any_message(seed: u64) {
    let mut world = World::new(12, seed);
    (0..12).for_each(|node| world.subscribe(node, 1, "a.b"));
    world.subscribe(3, 2, "**");
    world.publish(1, "a.b", "x", true, true);
    world.run(seconds(5));
    let good = world.tree(world.closest("a.b"), "a.b").unwrap().retained.clone().unwrap();
    for step in 0..20_000u64 {
        let node = world.rng.next_u64() as usize % 12;
        let links: Vec<LinkId> = world.nodes[node].links.keys().copied().collect();
        let link = links[world.rng.next_u64() as usize % links.len()];
        let draw = |world: &mut World, values: &[u64]| {
            values[world.rng.next_u64() as usize % values.len()]
        };
        let stream = match world.tree(node, "a.b") {
            Some(tree) => tree.place.stream,
            None => 1,
        };
        let at = Cursor {
            stream: draw(&mut world, &[0, 1, stream, stream, stream, u64::MAX]),
            offset: draw(&mut world, &[0, 1, 2, step, u64::MAX - 1, u64::MAX]),
        };
        let mut publish = good.clone();
        publish.first = draw(&mut world, &[0, 1, 2, step, u64::MAX - 1, u64::MAX]);
        publish.count = draw(&mut world, &[0, 1, 1, 1, 2, u64::from(u32::MAX)]) as u32;
        publish.epoch = draw(&mut world, &[1, step, publish.epoch]);
        let load = match draw(&mut world, &[0, 1, 2]) {
            0 => Load::Topic(Bytes::from_static(b"a.b")),
            1 => Load::Head(Publish { body: Bytes::new(), ..publish }),
            _ => Load::Batch(publish),
        };
        let number = draw(&mut world, &[0, 1, 20, 39, 255]) as u8;
        let contact =
            super::super::Contact::new(&world.realm, world.nodes[node].id, Default::default());
        let act = match draw(&mut world, &[0, 1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10, 11, 12]) {
            0 => TreeAct::Join { hops: number, have: at, redirected: number == 1 },
            1 => TreeAct::Joined { depth: number, at },
            2 => TreeAct::Redirect(vec![contact; usize::from(number)]),
            3 => TreeAct::Refuse,
            4 => TreeAct::Part,
            5 => TreeAct::Data { at, replay: number == 1, load },
            6 => TreeAct::Beat { at, depth: number },
            7 => TreeAct::Want { have: at, until: u64::MAX },
            8 => TreeAct::Hold { at, load },
            9 => TreeAct::Held { at },
            10 => TreeAct::Prune { source: contact.id },
            11 => TreeAct::Graft { source: good.publisher },
            _ => TreeAct::Prune { source: good.publisher },
        };
        let name = ["a.b", "c", "", "a..b"][draw(&mut world, &[0, 0, 0, 1, 2, 3]) as usize];
        let is_index = draw(&mut world, &[0, 0, 1]) == 1;
        let sources = [None, None, Some(good.publisher), Some(contact.id)];
        let source = sources[draw(&mut world, &[0, 1, 2, 3]) as usize];
        let tree = TreeId { is_index, source, ..id(name) };
        world.send(node, link, Message::Tree(Box::new(TreeMessage { tree, act })));
        if step % 50 == 0 {
            world.run(millis(500));
            world.check_children_cap();
        }
    }
    world.run(seconds(120));
    // it ends well for those who subscribe afresh
    world.subscribe(5, 7, "z");
    world.run(seconds(5));
    world.publish(2, "z", "works", true, false);
    world.run(seconds(5));
    assert_eq!(world.got(5, 7), ["works"]);
}

#[test]
fn hundreds_of_subscribers_make_a_shallow_tree_that_outlives_its_root() {
    let mut world = World::new(400, 22);
    (0..400).for_each(|node| world.subscribe(node, 1, "a.b"));
    world.run(seconds(20));
    let depth = (0..400).map(|node| world.tree(node, "a.b").unwrap().depth).max().unwrap();
    assert!(depth <= 10, "depth {depth}");
    publish_while(&mut world, 17, 20, |_| {});
    world.run(seconds(60));
    let root = world.closest("a.b");
    world.kill(root);
    world.run(seconds(10));
    publish_while(&mut world, 17, 20, |_| {});
    world.run(seconds(10));
    let complete = |node: &usize| world.got(*node, 1).len() == 40;
    assert_eq!(world.alive().iter().filter(|node| complete(node)).count(), 399);
    world.check_children_cap();
}

/// A world of which a third subscribes `a.b`, and a publisher that is neither one of these nor the root.
fn world_with_a_steady_publisher(nodes: usize, seed: u64) -> (World, Vec<usize>, usize) {
    let mut world = World::new(nodes, seed);
    let subscribers: Vec<usize> = (0..nodes).step_by(3).collect();
    subscribers.iter().for_each(|node| world.subscribe(*node, 1, "a.b"));
    world.run(seconds(10));
    let root = world.closest("a.b");
    let publisher = (1..nodes).find(|node| node % 3 != 0 && *node != root).unwrap();
    (world, subscribers, publisher)
}

/// Publishes 20 messages a second; returns the bytes that the root forwarded meanwhile.
fn publish_range(
    world: &mut World,
    publisher: usize,
    range: std::ops::Range<u32>,
    qos1: bool,
) -> u64 {
    let root = world.closest("a.b");
    let before = world.nodes[root].forwarded;
    for n in range {
        world.publish(publisher, "a.b", &n.to_string(), qos1, false);
        world.run(millis(50));
    }
    world.nodes[root].forwarded - before
}

#[test]
fn a_steady_flow_moves_past_the_root_and_back() {
    for (seed, qos1) in [(60, true), (61, false), (62, true)] {
        let (mut world, subscribers, publisher) = world_with_a_steady_publisher(60, seed);
        let at_first = publish_range(&mut world, publisher, 0..200, qos1);
        publish_range(&mut world, publisher, 200..400, qos1);
        let moved = publish_range(&mut world, publisher, 400..600, qos1);
        assert!(at_first > 1_000, "seed {seed}: {at_first}");
        assert_eq!(moved, 0, "seed {seed}: the root forwards heads only");
        assert!(!world.source_forwarders("a.b", publisher).is_empty());
        world.check_children_cap();
        world.run(seconds(60));
        assert_eq!(world.check_no_sources(), Ok(()), "a quiet flow needs no tree of its own");
        (0..60).for_each(|node| assert_eq!(world.sizes(node).sources, 0, "node {node}"));
        let back = publish_range(&mut world, publisher, 600..610, qos1);
        assert!(back > 0);
        world.run(seconds(5));
        for node in &subscribers {
            assert_eq!(world.got(*node, 1), names(0..610), "seed {seed}, node {node}");
            assert_eq!(world.lost(*node), 0);
        }
        assert_eq!(world.stat(|stats| stats.tree_heads_late), 0, "seed {seed}");
    }
}

#[test]
fn a_flow_whose_forwarders_die_loses_nothing() {
    for seed in 63..67 {
        let (mut world, subscribers, publisher) = world_with_a_steady_publisher(60, seed);
        let mut killed = 0;
        for n in 0..1_000 {
            world.publish(publisher, "a.b", &n.to_string(), true, false);
            world.run(millis(50));
            let root = world.closest("a.b");
            let victim = world
                .source_forwarders("a.b", publisher)
                .into_iter()
                .find(|node| ![root, publisher].contains(node) && node % 3 != 0);
            if n % 20 == 0
                && n > 400
                && killed < 12
                && let Some(victim) = victim
            {
                // in turn with its links, and without
                if killed % 2 == 0 {
                    world.kill(victim);
                } else {
                    world.nodes[victim].is_mute = true;
                }
                killed += 1;
            }
        }
        world.run(seconds(20));
        assert!(killed > 1, "seed {seed}: {killed}");
        check_all_got(&world, &subscribers, publisher, 1_000);
    }
}

#[test]
fn a_flow_outlives_roots_of_its_topic() {
    for seed in 67..70 {
        let (mut world, subscribers, publisher) = world_with_a_steady_publisher(60, seed);
        for n in 0..1_000 {
            world.publish(publisher, "a.b", &n.to_string(), true, false);
            world.run(millis(50));
            let root = world.closest("a.b");
            if n % 150 == 149 && root != publisher {
                world.kill(root);
            }
        }
        world.run(seconds(20));
        let alive = |node: &usize| world.nodes[*node].overlay.is_some();
        let subscribers: Vec<usize> = subscribers.into_iter().filter(alive).collect();
        assert!(world.stat(|stats| stats.tree_prunes) > 0);
        check_all_got(&world, &subscribers, publisher, 1_000);
    }
}

#[test]
fn a_source_tree_that_brings_nothing_is_made_up_for() {
    let (mut world, subscribers, publisher) = world_with_a_steady_publisher(60, 70);
    publish_range(&mut world, publisher, 0..400, true);
    let shared = world.forwarders("a.b");
    let victim = world
        .source_forwarders("a.b", publisher)
        .into_iter()
        .find(|node| *node != publisher && node % 3 != 0 && !shared.contains(node));
    let victim = victim.expect("some forwarder of the source tree only; choose another seed");
    world.nodes[victim].is_black_hole = true;
    publish_range(&mut world, publisher, 400..600, true);
    world.run(seconds(5));
    assert!(world.stat(|stats| stats.tree_grafts) > 0);
    assert!(world.stat(|stats| stats.tree_heads_late) > 0);
    check_all_got(&world, &subscribers, publisher, 600);
}

#[test]
fn a_publisher_that_dies_leaves_no_source_tree() {
    let (mut world, _, publisher) = world_with_a_steady_publisher(60, 71);
    publish_range(&mut world, publisher, 0..400, true);
    assert!(world.stat(|stats| stats.tree_prunes) > 0);
    world.kill(publisher);
    world.run(seconds(60));
    assert_eq!(world.check_no_sources(), Ok(()));
    let next = if world.closest("a.b") == 4 { 5 } else { 4 };
    publish_range(&mut world, next, 400..800, true);
    world.run(seconds(5));
    assert_eq!(world.got(0, 1), names(0..800));
    assert!(world.source_tree(0, "a.b", next).is_some());
}

#[test]
fn a_publisher_that_is_the_root_has_no_source_tree() {
    let mut world = World::new(30, 72);
    (0..30).for_each(|node| world.subscribe(node, 1, "a.b"));
    world.run(seconds(5));
    let root = world.closest("a.b");
    publish_range(&mut world, root, 0..600, true);
    assert_eq!(world.stat(|stats| stats.tree_prunes), 0);
    assert!(world.stat(|stats| stats.tree_sources_refused) > 0);
    world.run(seconds(60));
    assert_eq!(world.check_no_sources(), Ok(()));
    check_all_got(&world, &(0..30).collect::<Vec<_>>(), root, 600);
}

#[test]
fn source_trees_that_somebody_makes_up_are_bounded() {
    let mut config = config();
    config.trees.sources_max = 20;
    let mut world = World::with(20, 73, config);
    (0..20).for_each(|node| world.subscribe(node, 1, "a.b"));
    world.publish(1, "a.b", "x", true, true);
    world.run(seconds(10));
    let root = world.closest("a.b");
    let good = world.tree(root, "a.b").unwrap().retained.clone().unwrap();
    let (link, child) = {
        let link = *world.tree(root, "a.b").unwrap().children.keys().next().unwrap();
        (link, world.nodes[root].links[&link])
    };
    let stream = world.tree(root, "a.b").unwrap().place.stream;
    // a parent makes up a hundred busy publishers, half of them nodes that publish nothing
    let publishers: Vec<EndpointId> = (0..100u8)
        .map(|n| match usize::from(n) {
            n if n < 20 => world.nodes[n].id,
            n => EndpointId::from_bytes([n as u8; 32]),
        })
        .collect();
    for step in 0..60u64 {
        for (n, publisher) in (0u64..).zip(&publishers) {
            let first = step * 10 + 1;
            let publish = Publish {
                publisher: *publisher,
                epoch: 5,
                first,
                qos1: false,
                retain: false,
                ..good.clone()
            };
            let at = Cursor { stream, offset: 2 + step * 100 + n };
            let act = TreeAct::Data { at, replay: false, load: Load::Batch(publish) };
            world.send(root, link, Message::Tree(Box::new(TreeMessage { tree: id("a.b"), act })));
            // and asks to be a child in trees of publishers that there are not
            let tree = TreeId { source: Some(*publisher), ..id(&format!("t.{step}")) };
            let act = TreeAct::Join { hops: 0, have: Cursor::default(), redirected: false };
            world.send(root, link, Message::Tree(Box::new(TreeMessage { tree, act })));
        }
        world.run(millis(150));
        (0..20).for_each(|node| assert!(world.sizes(node).sources <= 20));
    }
    let refused = world.nodes[child].overlay.as_ref().unwrap().stats().tree_sources_refused;
    assert!(refused > 0);
    world.run(seconds(120));
    assert_eq!(world.check_no_sources(), Ok(()));
    world.subscribe(child, 2, "z");
    world.run(seconds(5));
    world.publish(2, "z", "good", true, false);
    world.run(seconds(5));
    assert_eq!(world.got(child, 2), ["good"]);
}
