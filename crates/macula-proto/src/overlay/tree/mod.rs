//! Trees of topics, after Scribe (Castro and others, 2002).
//!
//! Whoever wants a topic's messages joins on the way to the topic's key; nodes on the way become
//! forwarders. The router closest to the key is the root: it numbers what it gives out, so that
//! members see what they miss, and has the next router hold every QoS 1 batch before it says that
//! the batch is accepted. Every member keeps the last 30 s of these in a ring, for children that
//! have lost their parent. No node has more than a few children: the others are pushed down.
//!
//! Wildcards: the root of a topic announces it to the index of each of its prefixes, which is a tree
//! of its own that carries names of topics. Spec: docs/protocol §8.

mod delivery;
mod flow;
mod limits;
mod member;
mod publisher;
mod ring;
mod root;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

pub use self::limits::TreeLimits;

use self::flow::Order;
use self::member::{Context, Tree, is_prefix};
use self::publisher::Publisher;
use super::api::{Event, PublishFailure};
use super::core::{Arrival, Core, Outcome};
use super::message::{Body, Contact, Message, Reply, StoreRefusal, TreeAct, TreeId, TreeMessage};
use crate::id::{EndpointId, Key, KeyKind, LinkId, SubscriptionId};
use crate::pubsub::{Pattern, Topic};
use crate::time::Time;

/// A node's part in all trees.
#[derive(Debug)]
pub(super) struct Trees {
    trees: BTreeMap<TreeId, Tree>,
    due: BTreeSet<(Time, TreeId)>,
    subscriptions: BTreeMap<SubscriptionId, Subscription>,
    publishers: BTreeMap<Topic, Publisher>,
    publishers_due: BTreeSet<(Time, Topic)>,
    node: Node,
    is_leaving: bool,
}

/// What the trees of a node share.
#[derive(Debug, Default)]
pub(super) struct Node {
    ring_bytes: usize,
    retained_bytes: usize,
    publish_bytes: usize,
    /// Trees in which the other end of a link is a child.
    of_link: BTreeMap<LinkId, u32>,
    /// Links that trees wait for.
    connecting: BTreeSet<(EndpointId, TreeId)>,
    asked: BTreeMap<u64, Ask>,
    next_ask: u64,
    /// Topics that an index has brought up, and whether they have just begun.
    found: Vec<(Topic, bool)>,
    /// Topics that an index has not heard of for long, and its prefix.
    expired: Vec<(Bytes, Topic)>,
    /// What trees ask of each other.
    orders: Vec<Order>,
    is_following: bool,
    /// Source trees.
    sources: u32,
}

/// A request that is under way.
#[derive(Debug)]
enum Ask {
    Publish { topic: Topic, first: u64 },
    Announce(TreeId),
    Audit(TreeId),
    Closer(TreeId),
}

/// What the application wants to receive.
#[derive(Debug)]
struct Subscription {
    pattern: Pattern,
    qos1: bool,
    since: Time,
    /// With wildcards: the topics found.
    topics: BTreeSet<Topic>,
}

/// Where the root of a tree is to be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rootward {
    /// By way of this neighbour.
    Next(LinkId),
    /// Here.
    Here,
    /// Nobody is known who could know.
    Nowhere,
}

/// How much the trees of a node take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TreeSizes {
    /// Trees.
    pub trees: usize,
    /// Source trees among them.
    pub sources: usize,
    /// Trees of which the node is the root.
    pub roots: usize,
    /// Children in all trees.
    pub children: usize,
    /// The most children in one tree.
    pub children_max: usize,
    /// Batches that are kept, bytes.
    pub ring_bytes: usize,
    /// Retained messages, bytes.
    pub retained_bytes: usize,
}

impl Core {
    /// Which way the root of a tree lies. A node that is not ready is no candidate: its neighbours
    /// send nobody there, so what it gave out as root would reach hardly anybody. It turns to the
    /// ready neighbour closest to the key, however close it is itself.
    fn rootward(&self, key: &Key, avoid: &[EndpointId]) -> Rootward {
        if self.upkeep.is_joined() {
            return self.next_hop_avoiding(key, avoid).map_or(Rootward::Here, Rootward::Next);
        }
        self.links
            .iter()
            .filter(|link| link.is_ready && !avoid.contains(&link.peer.id))
            .map(|link| (link.missed > 0, link.peer.key.distance(key), link.id))
            .min()
            .map_or(Rootward::Nowhere, |(_, _, link)| Rootward::Next(link))
    }
}

impl Node {
    fn ask(&mut self, ask: Ask) -> u64 {
        self.next_ask += 1;
        self.asked.insert(self.next_ask, ask);
        self.next_ask
    }

    fn forget_child(&mut self, link: LinkId) {
        if let Some(count) = self.of_link.get_mut(&link) {
            *count -= 1;
            if *count == 0 {
                self.of_link.remove(&link);
            }
        }
    }
}

impl Trees {
    pub(super) fn new(_core: &mut Core) -> Self {
        Self {
            trees: BTreeMap::new(),
            due: BTreeSet::new(),
            subscriptions: BTreeMap::new(),
            publishers: BTreeMap::new(),
            publishers_due: BTreeSet::new(),
            node: Node::default(),
            is_leaving: false,
        }
    }

    /// How much they take.
    pub(super) fn sizes(&self) -> TreeSizes {
        let children = self.trees.values().map(|tree| tree.children.len());
        TreeSizes {
            trees: self.trees.len(),
            sources: self.node.sources as usize,
            roots: self.trees.values().filter(|tree| tree.root.is_some()).count(),
            children: children.clone().sum(),
            children_max: children.max().unwrap_or_default(),
            ring_bytes: self.node.ring_bytes,
            retained_bytes: self.node.retained_bytes,
        }
    }

    // --- the application

    pub(super) fn subscribe(
        &mut self,
        core: &mut Core,
        now: Time,
        subscription: SubscriptionId,
        pattern: Pattern,
        qos1: bool,
    ) {
        if self.subscriptions.len() >= core.config.trees.subscriptions_max
            || self.subscriptions.contains_key(&subscription)
        {
            core.stats.tree_subscriptions_refused += 1;
            return;
        }
        let id = tree_of(&pattern);
        let is_index = id.is_index;
        let entry = Subscription { pattern, qos1, since: now, topics: BTreeSet::new() };
        self.subscriptions.insert(subscription, entry);
        self.with(core, now, &id, true, |tree, cx| tree.subscribe(cx, subscription, qos1, false));
        if is_index {
            let known = self.trees.get(&id).into_iter().flat_map(|tree| tree.topics.keys());
            let known: Vec<Topic> =
                known.filter_map(|topic| Topic::from_bytes(topic).ok()).collect();
            known.into_iter().for_each(|topic| self.node.found.push((topic, false)));
            self.follow_found(core, now);
        }
    }

    pub(super) fn unsubscribe(&mut self, core: &mut Core, now: Time, subscription: SubscriptionId) {
        let Some(entry) = self.subscriptions.remove(&subscription) else { return };
        let topics = entry.topics.into_iter().map(|topic| tree_of(&Pattern::from(topic)));
        for id in topics.chain([tree_of(&entry.pattern)]) {
            self.with(core, now, &id, false, |tree, _| tree.unsubscribe(subscription));
        }
    }

    pub(super) fn publish(
        &mut self,
        core: &mut Core,
        now: Time,
        topic: Topic,
        payload: Bytes,
        qos1: bool,
        retain: bool,
    ) {
        if !self.publishers.contains_key(&topic) {
            if self.publishers.len() >= core.config.trees.publishers_max && !self.forget_publisher()
            {
                core.stats.tree_publishes_refused += 1;
                if qos1 {
                    let result = Err(PublishFailure::WouldBlock);
                    core.event(Event::Published { topic, sequence: 1, result });
                }
                return;
            }
            self.publishers.insert(topic.clone(), Publisher::new(core, now, &topic));
        }
        self.with_publisher(&topic, |publisher, node| {
            publisher.publish(core, node, now, &topic, (payload, qos1, retain));
        });
        self.follow_orders(core, now);
    }

    /// Does something to a publisher, and sees to its timer afterwards.
    fn with_publisher(&mut self, topic: &Topic, act: impl FnOnce(&mut Publisher, &mut Node)) {
        let Some(publisher) = self.publishers.get_mut(topic) else { return };
        act(publisher, &mut self.node);
        let due = publisher.due();
        let old = std::mem::replace(&mut publisher.armed, due);
        if old != due {
            if let Some(old) = old {
                self.publishers_due.remove(&(old, topic.clone()));
            }
            if let Some(due) = due {
                self.publishers_due.insert((due, topic.clone()));
            }
        }
    }

    fn remove_publisher(&mut self, topic: &Topic) -> bool {
        let Some(publisher) = self.publishers.remove(topic) else { return false };
        if let Some(due) = publisher.armed {
            self.publishers_due.remove(&(due, topic.clone()));
        }
        true
    }

    /// Forgets the idle publisher that was used longest ago.
    fn forget_publisher(&mut self) -> bool {
        let idle = self.publishers.iter().filter(|(_, publisher)| publisher.is_idle());
        let oldest = idle.map(|(topic, publisher)| (publisher.used(), topic)).min();
        let Some(topic) = oldest.map(|(_, topic)| topic.clone()) else { return false };
        self.remove_publisher(&topic)
    }

    /// The node leaves: neighbours notice by their links.
    pub(super) fn leave(&mut self, _core: &mut Core, _now: Time) {
        self.is_leaving = true;
    }

    // --- what comes from others

    pub(super) fn received(
        &mut self,
        core: &mut Core,
        now: Time,
        link: LinkId,
        message: TreeMessage,
    ) {
        let TreeMessage { tree: id, act } = message;
        let is_name = (id.is_index && id.topic.is_empty()) || root::is_topic(&id.topic);
        let belongs = id.source.is_none() || (!id.is_index && is_of_source_tree(&act));
        if !is_name || !belongs || core.peer(link).is_none() {
            core.stats.messages_unexpected += 1;
            return;
        }
        let may_begin = match &act {
            TreeAct::Join { .. } | TreeAct::Hold { .. } => !self.is_leaving,
            _ => false,
        };
        if !self.trees.contains_key(&id) && !may_begin {
            let answer = match act {
                TreeAct::Join { .. } => Some(TreeAct::Refuse),
                TreeAct::Data { .. } | TreeAct::Beat { .. } | TreeAct::Joined { .. } => {
                    Some(TreeAct::Part)
                }
                _ => None,
            };
            if let Some(act) = answer {
                core.send(link, Message::Tree(Box::new(TreeMessage { tree: id, act })));
            }
            return;
        }
        if let TreeAct::Join { .. } = act
            && let Some(act) = self.turns_away(core, now, &id, link)
        {
            core.stats.tree_joins_refused += 1;
            core.send(link, Message::Tree(Box::new(TreeMessage { tree: id, act })));
            return;
        }
        if !self.trees.contains_key(&id) && self.trees.len() >= core.config.trees.trees_max {
            core.stats.tree_joins_refused += 1;
            let act = TreeAct::Refuse;
            core.send(link, Message::Tree(Box::new(TreeMessage { tree: id, act })));
            return;
        }
        self.with(core, now, &id, true, |tree, cx| tree.received(cx, link, act));
        self.follow_found(core, now);
    }

    pub(super) fn arrived(&mut self, core: &mut Core, now: Time, mut arrival: Arrival) {
        let body = std::mem::replace(&mut arrival.body, Body::Audit { topic: Bytes::new() });
        let (id, topic) = match &body {
            Body::Publish(publish) => (TreeId::of(publish.topic.clone()), &publish.topic),
            Body::Announce { prefix, topic } if is_prefix(prefix, topic) => {
                (TreeId::index(prefix.clone()), topic)
            }
            Body::Audit { topic } => (TreeId::of(topic.clone()), topic),
            _ => return core.answer(now, &arrival, Reply::Refused(StoreRefusal::WrongKey)),
        };
        if !root::is_topic(topic) || key_of(core, &id) != arrival.target {
            return core.answer(now, &arrival, Reply::Refused(StoreRefusal::WrongKey));
        }
        if let Body::Audit { .. } = body {
            let at = match self.trees.get(&id) {
                Some(tree) if tree.root.is_some() => tree.place.at(),
                _ => Default::default(),
            };
            let reply = Reply::Reached { stream: at.stream, offset: at.offset };
            return core.answer(now, &arrival, reply);
        }
        let is_root = self.trees.get(&id).is_some_and(|tree| tree.root.is_some());
        let is_full =
            !self.trees.contains_key(&id) && self.trees.len() >= core.config.trees.trees_max;
        let may_be_root = is_root || core.rootward(&arrival.target, &[]) == Rootward::Here;
        if self.is_leaving || is_full || !may_be_root {
            core.stats.tree_publishes_refused += u64::from(is_full);
            return core.answer(now, &arrival, Reply::Refused(StoreRefusal::Busy));
        }
        self.with(core, now, &id, true, |tree, cx| {
            if tree.root.is_none() {
                tree.become_root(cx);
            }
            match body {
                Body::Publish(publish) => tree.publish_arrived(cx, arrival, publish),
                Body::Announce { topic, .. } => tree.announced(cx, &arrival, topic),
                _ => {}
            }
        });
        self.follow_found(core, now);
    }

    pub(super) fn replied(
        &mut self,
        core: &mut Core,
        now: Time,
        tag: super::core::Tag,
        outcome: Outcome,
    ) {
        let super::core::Tag::Tree(number) = tag else { return };
        match self.node.asked.remove(&number) {
            Some(Ask::Publish { topic, first }) => {
                self.with_publisher(&topic, |publisher, node| {
                    publisher.replied(core, node, now, &topic, first, outcome.reply);
                });
                self.follow_orders(core, now);
            }
            Some(Ask::Audit(id)) => {
                self.with(core, now, &id, false, |tree, cx| tree.audited(cx, &outcome));
            }
            Some(Ask::Closer(id)) => {
                if let Some(Reply::Closest(contacts)) = &outcome.reply {
                    self.with(core, now, &id, false, |tree, cx| tree.found_closer(cx, contacts));
                }
            }
            Some(Ask::Announce(id)) => {
                let is_lost =
                    matches!(outcome.reply, None | Some(Reply::Refused(StoreRefusal::Busy)));
                if is_lost {
                    self.with(core, now, &id, false, |tree, cx| tree.announce_again(cx));
                }
            }
            None => {}
        }
    }

    // --- links

    pub(super) fn link_up(&mut self, core: &mut Core, now: Time, link: LinkId, peer: EndpointId) {
        self.connected(core, now, &peer, Some(link));
    }

    pub(super) fn connect_failed(&mut self, core: &mut Core, now: Time, peer: &EndpointId) {
        self.connected(core, now, peer, None);
    }

    fn connected(&mut self, core: &mut Core, now: Time, peer: &EndpointId, link: Option<LinkId>) {
        let first = TreeId::of(Bytes::new());
        let waiting: Vec<TreeId> = self
            .node
            .connecting
            .range((*peer, first)..)
            .take_while(|(of, _)| of == peer)
            .map(|(_, id)| id.clone())
            .collect();
        for id in waiting {
            self.node.connecting.remove(&(*peer, id.clone()));
            self.with(core, now, &id, false, |tree, cx| tree.connected(cx, peer, link));
        }
    }

    pub(super) fn link_down(
        &mut self,
        core: &mut Core,
        now: Time,
        link: LinkId,
        _peer: EndpointId,
    ) {
        let ids: Vec<TreeId> = self.trees.keys().cloned().collect();
        for id in ids {
            self.with(core, now, &id, false, |tree, cx| tree.link_down(cx, link));
        }
        self.follow_found(core, now);
    }

    pub(super) fn siblings_changed(&mut self, core: &mut Core, now: Time) {
        let roots = self.trees.iter().filter(|(_, tree)| tree.root.is_some());
        let ids: Vec<TreeId> = roots.map(|(id, _)| id.clone()).collect();
        for id in ids {
            self.with(core, now, &id, false, |tree, cx| tree.siblings_changed(cx));
        }
    }

    // --- time

    pub(super) fn poll_timeout(&self) -> Option<Time> {
        let publishers = self.publishers_due.first().map(|(due, _)| *due);
        let trees = self.due.first().map(|(due, _)| *due);
        [publishers, trees].into_iter().flatten().min()
    }

    pub(super) fn tick(&mut self, core: &mut Core, now: Time) {
        while let Some((due, id)) = self.due.first().cloned() {
            if due > now {
                break;
            }
            self.due.remove(&(due, id.clone()));
            if let Some(tree) = self.trees.get_mut(&id) {
                tree.due = None;
            }
            self.with(core, now, &id, false, |tree, cx| tree.tick(cx));
        }
        self.follow_found(core, now);
        while let Some((due, topic)) = self.publishers_due.first().cloned() {
            if due > now {
                break;
            }
            if self.publishers.get(&topic).is_none_or(Publisher::is_idle) {
                self.publishers_due.remove(&(due, topic.clone()));
                self.publishers.remove(&topic);
            } else {
                self.with_publisher(&topic, |publisher, node| {
                    publisher.tick(core, node, now, &topic);
                });
            }
        }
        self.follow_orders(core, now);
    }

    // --- source trees

    /// Why a node may not be a child here in a source tree.
    fn turns_away(&self, core: &mut Core, now: Time, id: &TreeId, link: LinkId) -> Option<TreeAct> {
        let source = id.source?;
        if self.trees.get(id).is_some_and(|tree| tree.children.contains_key(&link)) {
            return None;
        }
        let shared = TreeId::of(id.topic.clone());
        let is_root = self.trees.get(&shared).is_some_and(|tree| tree.root.is_some());
        if source == core.id {
            let topic = Topic::from_bytes(&id.topic).ok()?;
            let is_steady = self
                .publishers
                .get(&topic)
                .is_some_and(|publisher| now < publisher.used() + limits::SOURCE_IDLE);
            return (is_root || !is_steady).then_some(TreeAct::Refuse);
        }
        if is_root {
            // the flow is to go past the root
            let contact = Contact::new(&core.realm, source, Default::default());
            return Some(TreeAct::Redirect(vec![contact]));
        }
        let is_full = !self.trees.contains_key(id) && self.is_full_of_sources(core);
        is_full.then_some(TreeAct::Refuse)
    }

    fn is_full_of_sources(&self, core: &mut Core) -> bool {
        let limits = &core.config.trees;
        let is_full = self.node.sources as usize >= limits.sources_max
            || self.trees.len() >= limits.trees_max;
        core.stats.tree_sources_refused += u64::from(is_full);
        is_full
    }

    /// Does what trees asked of each other.
    fn follow_orders(&mut self, core: &mut Core, now: Time) {
        if std::mem::replace(&mut self.node.is_following, true) {
            return;
        }
        while !self.node.orders.is_empty() {
            for order in std::mem::take(&mut self.node.orders) {
                self.follow_order(core, now, order);
            }
        }
        self.node.is_following = false;
    }

    fn follow_order(&mut self, core: &mut Core, now: Time, order: Order) {
        let shared = |id: &TreeId| TreeId::of(id.topic.clone());
        match order {
            Order::Tap(id, true) => {
                if !self.trees.contains_key(&id)
                    && (self.is_leaving || self.is_full_of_sources(core))
                {
                    return self.node.orders.push(Order::Failed(id));
                }
                self.with(core, now, &id, true, |tree, cx| tree.tap(cx, true));
            }
            Order::Tap(id, false) => {
                self.with(core, now, &id, false, |tree, cx| tree.tap(cx, false));
            }
            Order::Doubt(id) => self.with(core, now, &id, false, |tree, cx| tree.doubted(cx)),
            Order::Give(id, publish) => {
                self.with(core, now, &id, false, |tree, cx| tree.give(cx, publish));
            }
            Order::End(id) => self.with(core, now, &id, false, |tree, cx| tree.end_source(cx)),
            Order::Came(id, publish) => {
                self.with(core, now, &shared(&id), false, |tree, cx| tree.copy_came(cx, publish));
            }
            Order::Lost(id) => {
                if let Some(source) = id.source {
                    self.with(core, now, &shared(&id), false, |tree, cx| {
                        tree.flow_lost(cx, source)
                    });
                }
            }
            Order::Failed(id) => {
                if let Some(source) = id.source {
                    let id = shared(&id);
                    self.with(core, now, &id, false, |tree, cx| tree.flow_failed(cx, source));
                }
            }
        }
    }

    /// Subscribes to the topics that an index has brought up.
    fn follow_found(&mut self, core: &mut Core, now: Time) {
        while let Some((topic, is_new)) = self.node.found.pop() {
            let max = core.config.trees.topics_per_pattern_max;
            let mut wanted = Vec::new();
            for (subscription, entry) in &mut self.subscriptions {
                if entry.pattern.is_literal()
                    || !entry.pattern.matches(&topic)
                    || entry.topics.contains(&topic)
                {
                    continue;
                }
                if entry.topics.len() >= max {
                    core.stats.tree_subscriptions_refused += 1;
                    continue;
                }
                entry.topics.insert(topic.clone());
                let is_late = entry.qos1 && now.saturating_since(entry.since) >= limits::FOUND_LATE;
                wanted.push((*subscription, entry.qos1, is_new || is_late));
            }
            let id = tree_of(&Pattern::from(topic));
            for (subscription, qos1, from_start) in wanted {
                self.with(core, now, &id, true, |tree, cx| {
                    tree.subscribe(cx, subscription, qos1, from_start);
                });
            }
        }
        self.leave_expired(core, now);
    }

    /// Leaves topics that an index does not name any more.
    fn leave_expired(&mut self, core: &mut Core, now: Time) {
        while let Some((prefix, topic)) = self.node.expired.pop() {
            let index = TreeId::index(prefix);
            let id = tree_of(&Pattern::from(topic.clone()));
            if self.trees.get(&id).is_some_and(|tree| !tree.is_quiet(now)) {
                // the index may be the one that is out of order
                self.with(core, now, &index, false, |tree, cx| tree.still_lives(cx, &id.topic));
                continue;
            }
            let mut gone = Vec::new();
            for (subscription, entry) in &mut self.subscriptions {
                if tree_of(&entry.pattern) == index && entry.topics.remove(&topic) {
                    gone.push(*subscription);
                }
            }
            core.stats.tree_topics_expired += u64::from(!gone.is_empty());
            for subscription in gone {
                self.with(core, now, &id, false, |tree, _| tree.unsubscribe(subscription));
            }
        }
    }

    /// Does something to a tree, and sees to its timer and sums afterwards.
    fn with(
        &mut self,
        core: &mut Core,
        now: Time,
        id: &TreeId,
        may_begin: bool,
        act: impl FnOnce(&mut Tree, &mut Context<'_>),
    ) {
        if !self.trees.contains_key(id) {
            if !may_begin {
                return;
            }
            self.node.sources += u32::from(id.source.is_some());
            self.trees.insert(id.clone(), Tree::new(core, now, id));
        }
        let Some(tree) = self.trees.get_mut(id) else { return };
        let was_attached = tree.is_attached();
        let cx = &mut Context { core, node: &mut self.node, now, id };
        act(tree, cx);
        if tree.is_tapped && was_attached && !tree.is_attached() {
            cx.node.orders.push(Order::Lost(id.clone()));
        }
        if tree.is_over() {
            tree.end_flows(cx);
        }
        tree.notice_idle(now);
        let bytes = tree.bytes();
        let (ring, retained) = std::mem::replace(&mut tree.counted, bytes);
        self.node.ring_bytes = self.node.ring_bytes + bytes.0 - ring;
        self.node.retained_bytes = self.node.retained_bytes + bytes.1 - retained;
        // never at once again: a tick has done all that was due
        let pause = std::time::Duration::from_millis(1);
        let due = tree.next_due(core, now).map(|due| due.max(now + pause));
        let old = std::mem::replace(&mut tree.due, due);
        let is_over = tree.is_over();
        if old != due || is_over {
            if let Some(old) = old {
                self.due.remove(&(old, id.clone()));
            }
            if let Some(due) = due.filter(|_| !is_over) {
                self.due.insert((due, id.clone()));
            }
        }
        if is_over {
            self.node.ring_bytes -= bytes.0;
            self.node.retained_bytes -= bytes.1;
            self.node.sources -= u32::from(id.source.is_some());
            self.trees.remove(id);
        }
        self.follow_orders(core, now);
    }
}

/// The tree that leads to what a pattern matches.
fn tree_of(pattern: &Pattern) -> TreeId {
    let is_index = !pattern.is_literal();
    let topic = Bytes::copy_from_slice(pattern.literal_prefix().as_bytes());
    TreeId { topic, is_index, source: None }
}

/// Whether the members of a source tree say this.
const fn is_of_source_tree(act: &TreeAct) -> bool {
    matches!(
        act,
        TreeAct::Join { .. }
            | TreeAct::Joined { .. }
            | TreeAct::Redirect(_)
            | TreeAct::Refuse
            | TreeAct::Part
            | TreeAct::Data { .. }
            | TreeAct::Beat { .. }
    )
}

fn key_of(core: &Core, id: &TreeId) -> Key {
    match &id.source {
        Some(source) => Key::derive(&core.realm, KeyKind::Node, source.as_bytes()),
        None if id.is_index => Key::derive(&core.realm, KeyKind::TopicPrefix, &id.topic),
        None => Key::derive(&core.realm, KeyKind::Topic, &id.topic),
    }
}
