//! One node's part in one tree: its parent, its children, and what passes between them.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use super::super::api::Event;
use super::super::core::{Core, Outcome, Tag};
use super::super::message::{
    Body, Contact, Cursor, Load, Message, Need, Reply, TreeAct, TreeId, TreeMessage,
};
use super::delivery::{Delivery, Ready, Room};
use super::flow::{Flows, Order};
use super::limits::*;
use super::ring::{Entry, Place, Ring};
use super::root::{Held, Root};
use super::{Ask, Node, Rootward};
use crate::id::{EndpointId, Key, LinkId, SubscriptionId};
use crate::limits::{CONTACTS_PER_MESSAGE_MAX, TTL_HOPS};
use crate::pubsub::Topic;
use crate::time::Time;
use crate::wire::batch;
use crate::wire::message::Publish;

/// What everything in a tree needs.
pub(super) struct Context<'a> {
    pub(super) core: &'a mut Core,
    pub(super) node: &'a mut Node,
    pub(super) now: Time,
    pub(super) id: &'a TreeId,
}

impl Context<'_> {
    pub(super) fn send(&mut self, link: LinkId, act: TreeAct) {
        let message = TreeMessage { tree: self.id.clone(), act };
        self.core.send(link, Message::Tree(Box::new(message)));
    }
}

/// One node's part in one tree.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) key: Key,
    pub(super) place: Place,
    /// Hops from the root.
    pub(super) depth: u8,
    parent: Option<Parent>,
    /// Without a parent: when to look for one.
    retry: Option<Time>,
    failures: u8,
    redirects: u8,
    /// Of the `Join` that made this node look for a parent.
    hops: u8,
    avoid: Vec<(EndpointId, Time)>,
    pub(super) children: BTreeMap<LinkId, Child>,
    pub(super) ring: Ring,
    pub(super) retained: Option<Publish>,
    /// Of an index: the topics that live, and until when.
    pub(super) topics: BTreeMap<Bytes, Time>,
    /// When to look whether one of these lives no more.
    expiry: Option<Time>,
    local: Option<Box<Local>>,
    pub(super) root: Option<Box<Root>>,
    pub(super) held: Option<Box<Held>>,
    /// When all children were sent something last.
    pub(super) sent: Time,
    /// When something was carried, or a relation began.
    pub(super) active: Time,
    gap: Option<Gap>,
    /// Something is missing because a child lacks it that came later than it should know.
    is_lowered: bool,
    /// Since when nobody needs this node here.
    pub(super) idle: Option<Time>,
    audit: Option<Time>,
    audit_pause: Duration,
    /// An audit has found the root ahead: where this node must be by then.
    doubt: Option<(Cursor, Time)>,
    /// A topic that has just begun: everything is wanted that its root has.
    from_start: bool,
    /// When the topic, or this node's part in it, began.
    pub(super) began: Time,
    /// Rooted here: this node is the publisher of a source tree.
    pub(super) is_source: bool,
    /// A source tree that this node's member of the shared tree wants.
    pub(super) is_tapped: bool,
    pub(super) flows: Flows,
    /// Where this tree stands in the node's timers and sums.
    pub(super) due: Option<Time>,
    pub(super) counted: (usize, usize),
}

#[derive(Debug)]
struct Parent {
    peer: EndpointId,
    /// None: still connecting.
    link: Option<LinkId>,
    is_joined: bool,
    is_redirected: bool,
    /// It was asked for what this node lacks.
    asked_repair: bool,
    since: Time,
    heard: Time,
    /// When it carried something last, or became the parent: it beats fast for a while then.
    carried: Time,
    refresh: Time,
    /// What it has brought, and what it has given up, since it is the parent.
    brought: u64,
    given_up: u64,
}

#[derive(Debug)]
pub(super) struct Child {
    /// What it had when it came; none: it has been told all and gets everything that comes.
    pub(super) waits: Option<Cursor>,
    pub(super) peer: Contact,
    refreshed: Time,
    wanted: Option<Time>,
    /// Publishers of whose batches it wants heads only, and until when.
    pub(super) pruned: Vec<(EndpointId, Time)>,
}

/// Something is missing.
#[derive(Clone, Copy, Debug)]
struct Gap {
    since: Time,
    asked: Option<Time>,
}

/// The application's interest.
#[derive(Debug, Default)]
struct Local {
    /// Subscriptions and whether they want acknowledged messages replayed.
    subscriptions: BTreeMap<SubscriptionId, bool>,
    delivery: Delivery,
}

/// What a child asks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) hops: u8,
    pub(super) have: Cursor,
    pub(super) redirected: bool,
}

impl Tree {
    pub(super) fn new(core: &mut Core, now: Time, id: &TreeId) -> Self {
        let is_source = id.source == Some(core.id);
        let place = match is_source {
            true => Place::begin(core.draw().max(1), 0),
            false => Place::default(),
        };
        Self {
            key: super::key_of(core, id),
            place,
            depth: 0,
            parent: None,
            retry: None,
            failures: 0,
            redirects: 0,
            hops: 0,
            avoid: Vec::new(),
            children: BTreeMap::new(),
            ring: Ring::default(),
            retained: None,
            topics: BTreeMap::new(),
            expiry: None,
            local: None,
            root: None,
            held: None,
            sent: now,
            active: now,
            gap: None,
            is_lowered: false,
            idle: None,
            audit: None,
            audit_pause: AUDIT,
            doubt: None,
            from_start: false,
            began: now,
            is_source,
            is_tapped: false,
            flows: Flows::default(),
            due: None,
            counted: (0, 0),
        }
    }

    /// Bytes in rings, and of the retained message.
    pub(super) fn bytes(&self) -> (usize, usize) {
        let held = self.held.as_ref();
        let cost = |publish: &Publish| publish.body.len() + publish.topic.len() + 192;
        let retained = self.retained.as_ref().map_or(0, cost)
            + held.and_then(|held| held.retained.as_ref()).map_or(0, cost);
        let ring = self.ring.bytes() + self.flows.bytes();
        (ring + held.map_or(0, |held| held.ring.bytes()), retained)
    }

    /// Whether there is anybody here or below to receive.
    pub(super) fn is_wanted(&self) -> bool {
        self.local.is_some() || !self.children.is_empty() || self.is_tapped
    }

    pub(super) fn is_attached(&self) -> bool {
        self.root.is_some()
            || self.is_source
            || self.parent.as_ref().is_some_and(|parent| parent.is_joined)
    }

    /// Whether nothing is left of it.
    pub(super) fn is_over(&self) -> bool {
        !self.is_wanted() && self.root.is_none() && self.held.is_none() && self.parent.is_none()
    }

    pub(super) fn has_local(&self) -> bool {
        self.local.is_some()
    }

    /// Whether a message on this link is its parent's.
    fn is_parent(&self, link: LinkId) -> bool {
        self.parent.as_ref().is_some_and(|parent| parent.link == Some(link))
    }

    // --- the application

    pub(super) fn subscribe(
        &mut self,
        cx: &mut Context<'_>,
        subscription: SubscriptionId,
        qos1: bool,
        from_start: bool,
    ) {
        self.from_start |= from_start && self.place.stream == 0;
        let local = self.local.get_or_insert_default();
        if local.subscriptions.insert(subscription, qos1).is_none()
            && let Some(retained) = self.retained.clone()
        {
            let is_new = local.delivery.take_retained(cx.now, &retained, room(cx.core));
            if is_new || local.subscriptions.len() > 1 {
                cx.core.event(Event::Deliver {
                    subscriptions: vec![subscription],
                    publish: retained,
                    replay: true,
                });
            }
        }
        if from_start && self.place.stream != 0 {
            if self.root.is_none() {
                self.lower(0);
                self.check_gap(cx);
            }
            let entries: Vec<Entry> = self.ring.iter().cloned().collect();
            for entry in entries {
                self.tell_again(cx, subscription, &entry.publish);
                self.deliver(cx, entry.publish, true);
            }
            for publish in self.copies() {
                self.tell_again(cx, subscription, &publish);
            }
        }
        self.want(cx);
    }

    /// Hands a new subscription what others here have been given already.
    fn tell_again(
        &mut self,
        cx: &mut Context<'_>,
        subscription: SubscriptionId,
        publish: &Publish,
    ) {
        let Some(local) = &self.local else { return };
        if local.subscriptions.len() > 1
            && let Some(publish) = local.delivery.delivered_of(publish)
        {
            let subscriptions = vec![subscription];
            cx.core.event(Event::Deliver { subscriptions, publish, replay: true });
        }
    }

    /// Whether it has carried nothing for so long that nothing is left of it in any ring.
    pub(super) fn is_quiet(&self, now: Time) -> bool {
        now.saturating_since(self.active) >= FOUND_QUIET
    }

    pub(super) fn unsubscribe(&mut self, subscription: SubscriptionId) {
        if let Some(local) = &mut self.local {
            local.subscriptions.remove(&subscription);
            if local.subscriptions.is_empty() {
                self.local = None;
            }
        }
    }

    /// Hands a batch to the application.
    pub(super) fn deliver(&mut self, cx: &mut Context<'_>, publish: Publish, is_replay: bool) {
        let has_gap = self.place.missing().is_some();
        let Some(local) = &mut self.local else { return };
        let mut ready = Vec::new();
        let room = room(cx.core);
        local.delivery.take(cx.now, publish, is_replay, has_gap, room, &mut ready);
        local.hand_over(cx, ready);
    }

    /// Hands what has no place yet to the application, if it is what comes next: what has gaps before
    /// it waits for its place, so that the gaps are filled in time.
    pub(super) fn deliver_early(&mut self, cx: &mut Context<'_>, publish: Publish) {
        let Some(local) = &mut self.local else { return };
        if local.delivery.continues(&publish) {
            let (mut ready, room) = (Vec::new(), room(cx.core));
            local.delivery.take(cx.now, publish, false, true, room, &mut ready);
            local.hand_over(cx, ready);
        }
    }

    // --- looking for a parent

    /// Sees to it that this node has a parent, or is the root.
    pub(super) fn want(&mut self, cx: &mut Context<'_>) {
        let has_root = self.root.is_some() || self.is_source;
        if !has_root && self.parent.is_none() && self.retry.is_none() {
            self.look_for_parent(cx);
        }
    }

    /// The parent, if it is one already.
    pub(super) fn joined_link(&self) -> Option<LinkId> {
        self.parent.as_ref().filter(|parent| parent.is_joined)?.link
    }

    pub(super) fn joined_since(&self) -> Option<Time> {
        self.parent.as_ref().filter(|parent| parent.is_joined).map(|parent| parent.since)
    }

    /// Leaves the parent for good.
    pub(super) fn forget_parent(&mut self, cx: &mut Context<'_>) {
        self.drop_parent(cx);
        self.retry = None;
        self.failures = 0;
        self.redirects = 0;
        self.idle = None;
    }

    fn look_for_parent(&mut self, cx: &mut Context<'_>) {
        self.retry = None;
        let now = cx.now;
        self.avoid.retain(|(_, until)| *until > now);
        let avoid: Vec<EndpointId> = self.avoid.iter().map(|(peer, _)| *peer).collect();
        match cx.core.rootward(&self.key, &avoid) {
            Rootward::Next(link) => self.ask(cx, link, false),
            Rootward::Here if self.avoid.is_empty() && cx.id.source.is_some() => {
                // the publisher is gone, or was never there
                self.end_source(cx);
            }
            Rootward::Here
                if cx.id.source.is_none() && cx.core.rootward(&self.key, &[]) == Rootward::Here =>
            {
                self.become_root(cx);
            }
            Rootward::Here | Rootward::Nowhere => {
                // everybody closer has failed lately
                self.avoid.clear();
                self.start_over(cx);
            }
        }
    }

    /// Asks a neighbour to be the parent.
    fn ask(&mut self, cx: &mut Context<'_>, link: LinkId, is_redirected: bool) {
        let Some(peer) = cx.core.peer(link) else { return self.start_over(cx) };
        if self.children.contains_key(&link) {
            // it was redirected to here, but is closer
            self.remove_child(cx, link);
            cx.send(link, TreeAct::Part);
        }
        cx.core.hold(link);
        let refresh = cx.now + cx.core.jittered(REFRESH);
        self.parent = Some(Parent {
            peer,
            link: Some(link),
            is_joined: false,
            is_redirected,
            asked_repair: false,
            since: cx.now,
            heard: cx.now,
            carried: cx.now,
            refresh,
            brought: 0,
            given_up: 0,
        });
        self.send_join(cx, link, is_redirected);
    }

    fn send_join(&mut self, cx: &mut Context<'_>, link: LinkId, redirected: bool) {
        let wants_repair = !self.children.is_empty()
            || self.local.as_ref().is_some_and(|local| local.subscriptions.values().any(|q| *q));
        let have = match self.place.at() {
            Cursor { stream: 0, .. } if self.from_start => NOTHING,
            at if wants_repair && cx.id.source.is_none() => at,
            _ => Cursor::default(),
        };
        if let Some(parent) = self.parent.as_mut().filter(|parent| !parent.is_joined) {
            parent.asked_repair = have.stream != 0;
        }
        cx.send(link, TreeAct::Join { hops: self.hops, have, redirected });
    }

    /// Tries again after a pause.
    fn start_over(&mut self, cx: &mut Context<'_>) {
        self.redirects = 0;
        self.failures = self.failures.saturating_add(1).min(8);
        if cx.id.source.is_some() && self.failures > SOURCE_FAILURES_MAX {
            return self.end_source(cx);
        }
        let pause = Duration::from_millis(100) * (1 << self.failures.min(7));
        self.retry = Some(cx.now + cx.core.jittered(pause));
    }

    /// Ends the relation to the parent, without looking for another.
    fn drop_parent(&mut self, cx: &mut Context<'_>) -> Option<EndpointId> {
        let parent = self.parent.take()?;
        if let Some(link) = parent.link {
            cx.core.release(link);
            cx.send(link, TreeAct::Part);
        } else {
            cx.node.connecting.remove(&(parent.peer, cx.id.clone()));
        }
        self.gap = None;
        self.doubt = None;
        Some(parent.peer)
    }

    /// Leaves the parent for another, and keeps away from it for a while.
    pub(super) fn leave_parent(&mut self, cx: &mut Context<'_>, avoid: Duration) {
        let Some(peer) = self.drop_parent(cx) else { return };
        if self.avoid.len() >= AVOID_MAX {
            self.avoid.remove(0);
        }
        self.avoid.push((peer, cx.now + avoid));
        cx.core.stats.tree_rejoins += 1;
        if self.is_wanted() {
            self.look_for_parent(cx);
        }
    }

    /// The parent told of some of its children instead.
    fn redirected(&mut self, cx: &mut Context<'_>, contacts: &[Contact]) {
        let is_asked = self.parent.as_ref().is_some_and(|parent| !parent.is_joined);
        if !is_asked || contacts.len() > CONTACTS_PER_MESSAGE_MAX {
            cx.core.stats.messages_unexpected += 1;
            return;
        }
        self.drop_asked(cx);
        self.redirects += 1;
        if self.redirects > REDIRECTS_MAX {
            return self.start_over(cx);
        }
        let choices: Vec<Contact> = contacts
            .iter()
            .take(REDIRECT_CONTACTS)
            .filter(|contact| {
                contact.id != cx.core.id
                    && !self.avoid.iter().any(|(peer, _)| *peer == contact.id)
                    && !self.children.values().any(|child| child.peer.id == contact.id)
            })
            .copied()
            .collect();
        // of two at random the nearer one
        let here = cx.core.me().at;
        let count = choices.len().max(1) as u64;
        let (first, second) = (cx.core.draw() % count, cx.core.draw() % count);
        let pick = [first, second]
            .into_iter()
            .filter_map(|index| choices.get(index as usize))
            .min_by_key(|contact| here.rtt(&contact.at));
        let Some(contact) = pick else { return self.start_over(cx) };
        if let Some(link) = cx.core.link_to(&contact.id) {
            return self.ask(cx, link, true);
        }
        self.parent = Some(Parent {
            peer: contact.id,
            link: None,
            is_joined: false,
            is_redirected: true,
            asked_repair: false,
            since: cx.now,
            heard: cx.now,
            carried: cx.now,
            refresh: cx.now,
            brought: 0,
            given_up: 0,
        });
        cx.node.connecting.insert((contact.id, cx.id.clone()));
        cx.core.connect(cx.now, &contact.id, Need::Traffic);
    }

    /// Gives up a parent that was only asked, without a word.
    fn drop_asked(&mut self, cx: &mut Context<'_>) {
        self.gap = None;
        self.doubt = None;
        if let Some(parent) = self.parent.take() {
            match parent.link {
                Some(link) => cx.core.release(link),
                None => {
                    cx.node.connecting.remove(&(parent.peer, cx.id.clone()));
                }
            }
        }
    }

    /// A link that was asked for has come, or not.
    pub(super) fn connected(
        &mut self,
        cx: &mut Context<'_>,
        peer: &EndpointId,
        link: Option<LinkId>,
    ) {
        let is_waiting = self
            .parent
            .as_ref()
            .is_some_and(|parent| parent.link.is_none() && parent.peer == *peer);
        if !is_waiting {
            return;
        }
        self.parent = None;
        match link {
            Some(link) => self.ask(cx, link, true),
            None => self.start_over(cx),
        }
    }

    fn joined(&mut self, cx: &mut Context<'_>, depth: u8, at: Cursor) {
        let now = cx.now;
        let Some(parent) = &mut self.parent else { return };
        parent.heard = now;
        let is_new = !std::mem::replace(&mut parent.is_joined, true);
        let asked_repair = parent.asked_repair;
        if is_new {
            parent.since = now;
            parent.carried = now;
            self.active = now;
            self.failures = 0;
            self.redirects = 0;
            self.hops = 0;
            self.unpruned();
            self.audit_pause = AUDIT;
            self.audit = Some(now + cx.core.jittered(AUDIT));
        }
        // what this node did not ask for may still be had, when a child comes that lacks it
        let is_skipped = is_new && !asked_repair && self.place.at().offset < at.offset;
        if at.stream != 0 && (at.stream != self.place.stream || is_skipped) {
            self.place = Place::begin(at.stream, at.offset);
        }
        let from_start = std::mem::take(&mut self.from_start);
        self.settle(cx, at, is_new);
        if from_start {
            // nobody may have known when this node asked
            self.lower(0);
            self.check_gap(cx);
        }
        self.set_depth(cx, depth);
        if is_new && self.is_attached() {
            let waiting: Vec<LinkId> = self
                .children
                .iter()
                .filter(|(_, child)| child.waits.is_some())
                .map(|(link, _)| *link)
                .collect();
            waiting.into_iter().for_each(|link| self.welcome(cx, link));
        }
    }

    /// Somebody here or below needs what lies behind `floor`.
    fn lower(&mut self, floor: u64) {
        self.is_lowered |= self.place.lower(floor);
    }

    /// What is missing up to `at` will not come.
    fn settle(&mut self, cx: &mut Context<'_>, mut at: Cursor, is_new: bool) {
        if cx.id.source.is_some() {
            return;
        }
        if at.stream == self.place.stream {
            at.offset = self.flows.settled(at, is_new);
            let before = self.place.at().offset;
            let mut place = self.place.clone();
            let lost = place.settle(at.offset);
            if !is_new
                && !self.is_lowered
                && let Some(parent) = &mut self.parent
            {
                parent.given_up = parent.given_up.saturating_add(lost);
                if parent.given_up > parent.brought {
                    // it says that there is something, and has hardly any of it
                    cx.core.stats.tree_parents_silent += 1;
                    return self.leave_parent(cx, AVOID);
                }
            }
            self.place = place;
            // a liar may claim any number
            cx.core.stats.tree_gaps = cx.core.stats.tree_gaps.saturating_add(lost);
            if self.place.at().offset > before && (lost > 0 || is_new) {
                let joined = TreeAct::Joined { depth: self.depth, at: self.place.at() };
                self.send_all(cx, &joined);
            }
        }
        self.check_gap(cx);
    }

    fn set_depth(&mut self, cx: &mut Context<'_>, of_parent: u8) {
        let depth = of_parent.saturating_add(1);
        if depth > DEPTH_MAX {
            cx.core.stats.tree_loops += 1;
            return self.leave_parent(cx, AVOID / 4);
        }
        if depth != self.depth {
            self.depth = depth;
            self.beat(cx);
        }
    }

    // --- children

    /// A neighbour wants to be a child.
    pub(super) fn join(&mut self, cx: &mut Context<'_>, link: LinkId, asked: Asked) {
        if let Some(child) = self.children.get_mut(&link) {
            child.refreshed = cx.now;
            if child.waits.is_none() {
                let beat = TreeAct::Beat { at: self.place.at(), depth: self.depth };
                cx.send(link, beat);
            }
            return;
        }
        let Some(contact) = cx.core.links.get(link).map(|link| link.peer) else { return };
        if self.is_parent(link) {
            if contact.key.distance(&self.key) < cx.core.key.distance(&self.key) {
                return self.refuse(cx, link);
            }
            // this node is closer: it is the other way round
            self.drop_asked(cx);
        }
        let is_member = self.is_attached() || self.parent.is_some() || self.retry.is_some();
        if asked.hops > TTL_HOPS || (asked.redirected && !is_member) {
            return self.refuse(cx, link);
        }
        if self.children.len() >= cx.core.config.children_max {
            cx.core.stats.tree_redirects += 1;
            let contacts = self.some_children(cx);
            return cx.send(link, TreeAct::Redirect(contacts));
        }
        let of_link = cx.node.of_link.entry(link).or_default();
        if *of_link as usize >= cx.core.config.trees.trees_per_link_max {
            return self.refuse(cx, link);
        }
        *of_link += 1;
        cx.core.hold(link);
        let child = Child {
            waits: Some(asked.have),
            peer: contact,
            refreshed: cx.now,
            wanted: None,
            pruned: Vec::new(),
        };
        self.children.insert(link, child);
        self.idle = None;
        self.active = cx.now;
        if self.is_attached() {
            self.welcome(cx, link);
        } else {
            let has_not_asked = self.place.stream == 0 && self.parent.is_none();
            if has_not_asked && asked.have.stream != 0 && asked.have != NOTHING {
                // stand in for it: what it lacks must come this way
                self.place = Place::begin(asked.have.stream, asked.have.offset);
            }
            self.from_start |= asked.have == NOTHING && has_not_asked;
            self.hops = self.hops.max(asked.hops.saturating_add(1));
            self.want(cx);
        }
    }

    fn refuse(&mut self, cx: &mut Context<'_>, link: LinkId) {
        cx.core.stats.tree_joins_refused += 1;
        cx.send(link, TreeAct::Refuse);
    }

    /// Some children, each in its turn, for one that finds no room here.
    fn some_children(&mut self, cx: &mut Context<'_>) -> Vec<Contact> {
        let count = self.children.len().max(1);
        let skip = cx.core.draw() as usize % count;
        let children = self.children.values().map(|child| child.peer);
        let both = children.clone().chain(children);
        both.skip(skip).take(REDIRECT_CONTACTS.min(count)).collect()
    }

    /// Brings a child to where this node is.
    fn welcome(&mut self, cx: &mut Context<'_>, link: LinkId) {
        let Some(child) = self.children.get_mut(&link) else { return };
        let Some(have) = child.waits.take() else { return };
        let stream = self.place.stream;
        if have.stream != 0 {
            let floor = if have.stream == stream { have.offset } else { 0 };
            self.lower(floor);
            self.replay(cx, link, have, u64::MAX);
        } else if let Some(retained) = self.retained.clone() {
            let load = Load::Batch(retained);
            cx.send(link, TreeAct::Data { at: Cursor { stream, offset: 0 }, replay: true, load });
        }
        for topic in self.topics.keys() {
            let load = Load::Topic(topic.clone());
            let act = TreeAct::Data { at: Cursor { stream, offset: 0 }, replay: true, load };
            cx.send(link, act);
        }
        let mut at = self.place.at();
        if have.stream == 0 {
            // it does not care for what this node lacks itself
            at.offset = at.offset.max(self.place.highest());
        }
        cx.send(link, TreeAct::Joined { depth: self.depth, at });
        self.check_gap(cx);
    }

    /// Sends a child what it lacks, as far as it is kept here.
    fn replay(&mut self, cx: &mut Context<'_>, link: LinkId, have: Cursor, until: u64) {
        let have = if have == NOTHING { Cursor::default() } else { have };
        let lacking: Vec<Entry> = self
            .ring
            .lacking(have)
            .filter(|entry| entry.at.stream != have.stream || entry.at.offset <= until)
            // what was given out by an earlier root has been given out again by this one
            .filter(|entry| entry.at.stream == self.place.stream)
            .cloned()
            .collect();
        cx.core.stats.tree_replayed += lacking.len() as u64;
        for entry in lacking {
            let load = Load::Batch(entry.publish);
            cx.send(link, TreeAct::Data { at: entry.at, replay: true, load });
        }
    }

    pub(super) fn remove_child(&mut self, cx: &mut Context<'_>, link: LinkId) {
        if self.children.remove(&link).is_some() {
            cx.core.release(link);
            cx.node.forget_child(link);
        }
    }

    fn send_all(&mut self, cx: &mut Context<'_>, act: &TreeAct) {
        for (link, _) in self.children.iter().filter(|(_, child)| child.waits.is_none()) {
            cx.send(*link, act.clone());
        }
        self.sent = cx.now;
    }

    fn beat(&mut self, cx: &mut Context<'_>) {
        if self.is_attached() {
            self.send_all(cx, &TreeAct::Beat { at: self.place.at(), depth: self.depth });
        }
    }

    // --- messages

    pub(super) fn received(&mut self, cx: &mut Context<'_>, link: LinkId, act: TreeAct) {
        match act {
            TreeAct::Join { hops, have, redirected } => {
                self.join(cx, link, Asked { hops, have, redirected });
            }
            TreeAct::Hold { at, load } => self.hold(cx, link, at, load),
            TreeAct::Held { at } => self.held(cx, link, at),
            TreeAct::Prune { source } => self.pruned(cx, link, source),
            TreeAct::Graft { source } => self.grafted(cx, link, source),
            TreeAct::Want { have, until } => self.wanted(cx, link, have, until),
            TreeAct::Part if self.children.contains_key(&link) => self.remove_child(cx, link),
            _ if !self.is_parent(link) => {
                cx.core.stats.messages_unexpected += 1;
                if matches!(
                    act,
                    TreeAct::Data { .. } | TreeAct::Beat { .. } | TreeAct::Joined { .. }
                ) {
                    // it takes this node for its child
                    cx.send(link, TreeAct::Part);
                }
            }
            TreeAct::Joined { depth, at } => self.joined(cx, depth, at),
            TreeAct::Redirect(contacts) => self.redirected(cx, &contacts),
            TreeAct::Refuse => {
                if let Some(peer) = self.parent.as_ref().map(|parent| parent.peer) {
                    self.drop_asked(cx);
                    self.avoid.truncate(AVOID_MAX - 1);
                    self.avoid.push((peer, cx.now + AVOID / 4));
                    self.start_over(cx);
                }
            }
            TreeAct::Part => {
                self.drop_asked(cx);
                if self.is_wanted() {
                    self.start_over(cx);
                }
            }
            TreeAct::Data { at, replay, load } => self.data(cx, at, replay, load),
            TreeAct::Beat { at, depth } => self.beaten(cx, at, depth),
        }
    }

    fn data(&mut self, cx: &mut Context<'_>, at: Cursor, replay: bool, load: Load) {
        if let Some(parent) = &mut self.parent {
            parent.heard = cx.now;
            parent.carried = cx.now;
        }
        if !is_sound(cx, &load) || at.stream == 0 {
            cx.core.stats.messages_unexpected += 1;
            return;
        }
        self.active = cx.now;
        if cx.id.source.is_some() {
            return match load {
                Load::Batch(publish) if at.offset > 0 => self.source_data(cx, at, publish),
                _ => cx.core.stats.messages_unexpected += 1,
            };
        }
        if at.offset == 0 {
            return match load {
                Load::Batch(publish) => self.retained_came(cx, at, publish),
                Load::Topic(topic) => self.topic_came(cx, at, topic, true),
                Load::Head(_) => cx.core.stats.messages_unexpected += 1,
            };
        }
        if at.stream != self.place.stream {
            // another root: what it kept of the ones before comes first, or was lost before
            let has_place = self.place.stream != 0 || self.from_start;
            let floor = if has_place { 0 } else { at.offset.saturating_sub(1) };
            self.place = Place::begin(at.stream, floor);
            self.gap = None;
        }
        match load {
            Load::Batch(publish) => {
                self.flows.filled(at.offset);
                if !replay {
                    self.count_flow(cx, &publish);
                    self.whole_came(cx, &publish);
                }
                self.filled(cx, at, publish, replay);
            }
            Load::Head(head) => {
                self.count_flow(cx, &head);
                if at.offset > self.place.at().offset {
                    self.head_came(cx, at, head, replay);
                }
            }
            Load::Topic(topic) => {
                if self.place.accept(at.offset) {
                    self.note_brought();
                    self.topic_came(cx, at, topic, replay);
                    self.check_gap(cx);
                }
            }
        }
    }

    fn note_brought(&mut self) {
        if let Some(parent) = &mut self.parent {
            parent.brought += 1;
        }
    }

    /// A place and its batch are there.
    pub(super) fn filled(
        &mut self,
        cx: &mut Context<'_>,
        at: Cursor,
        publish: Publish,
        replay: bool,
    ) {
        if self.place.accept(at.offset) {
            self.note_brought();
            self.pass_on(cx, at, publish, replay);
            self.check_gap(cx);
        }
    }

    /// Keeps a batch, gives it to the children and to the application.
    pub(super) fn pass_on(
        &mut self,
        cx: &mut Context<'_>,
        at: Cursor,
        publish: Publish,
        replay: bool,
    ) {
        // whoever is told of a new topic only now wants its first messages, too
        let is_young = replay || cx.now.saturating_since(self.began) < YOUNG;
        if publish.retain {
            self.retain(cx, &publish);
        }
        if publish.qos1 || is_young {
            self.keep(cx, at, publish.clone());
        }
        if !self.children.is_empty() {
            self.send_batch(cx, at, &publish, replay);
        }
        self.deliver(cx, publish, replay);
    }

    fn keep(&mut self, cx: &mut Context<'_>, at: Cursor, publish: Publish) {
        if self.ring.contains(at) {
            return;
        }
        self.ring.push(Entry { at, publish, came: cx.now });
        let room = self.ring_room(cx);
        let age = cx.core.config.trees.ring_age_max;
        cx.core.stats.tree_rings_full += self.ring.trim(cx.now, age, room);
    }

    /// Bytes that the ring may have.
    pub(super) fn ring_room(&self, cx: &Context<'_>) -> usize {
        let limits = &cx.core.config.trees;
        let others = cx.node.ring_bytes.saturating_sub(self.counted.0);
        limits.ring_bytes_per_topic_max.min(limits.ring_bytes_max.saturating_sub(others))
    }

    /// The last message of the batch is the one to retain.
    fn retain(&mut self, cx: &mut Context<'_>, publish: &Publish) {
        let skip = publish.count.saturating_sub(1);
        let from = publish.first.saturating_add(skip.into());
        let Some(last) = super::delivery::after(publish.clone(), from) else { return };
        self.set_retained(cx, last);
    }

    pub(super) fn set_retained(&mut self, cx: &mut Context<'_>, publish: Publish) {
        self.retained = None;
        let others = cx.node.retained_bytes.saturating_sub(self.counted.1);
        if publish.body.is_empty() {
            return;
        }
        if publish.body.len() > RETAINED_PAYLOAD_BYTES_MAX
            || others + publish.body.len() > cx.core.config.trees.retained_bytes_max
        {
            cx.core.stats.tree_retained_refused += 1;
            return;
        }
        self.retained = Some(publish);
    }

    /// The retained message came, because this node or one below is new.
    fn retained_came(&mut self, cx: &mut Context<'_>, at: Cursor, publish: Publish) {
        let name = |publish: &Publish| (publish.publisher, publish.epoch);
        let is_known = self
            .retained
            .as_ref()
            .is_some_and(|known| name(known) == name(&publish) && known.first >= publish.first);
        if is_known || publish.count != 1 || publish.body.is_empty() {
            return;
        }
        self.set_retained(cx, publish.clone());
        let load = Load::Batch(publish.clone());
        self.send_all(cx, &TreeAct::Data { at, replay: true, load });
        if let Some(local) = &mut self.local
            && local.delivery.take_retained(cx.now, &publish, room(cx.core))
        {
            let subscriptions = local.subscriptions.keys().copied().collect();
            cx.core.event(Event::Deliver { subscriptions, publish, replay: true });
        }
    }

    /// A topic lives below the prefix.
    pub(super) fn topic_came(
        &mut self,
        cx: &mut Context<'_>,
        at: Cursor,
        topic: Bytes,
        replay: bool,
    ) {
        let until = cx.now + ANNOUNCED_FOR;
        if let Some(known) = self.topics.get_mut(&topic) {
            let is_news = *known + ANNOUNCED_AGAIN <= until;
            if is_news {
                *known = until;
            }
            if at.offset == 0 && !is_news {
                return;
            }
        } else {
            if self.topics.len() >= cx.core.config.trees.announced_max {
                cx.core.stats.tree_announcements_refused += 1;
                return;
            }
            self.topics.insert(topic.clone(), until);
            self.expiry.get_or_insert(until);
            if self.local.is_some()
                && let Ok(topic) = Topic::from_bytes(&topic)
            {
                cx.node.found.push((topic, !replay));
            }
        }
        self.send_all(cx, &TreeAct::Data { at, replay, load: Load::Topic(topic) });
    }

    /// Forgets topics that have not been announced for long.
    fn expire_topics(&mut self, cx: &mut Context<'_>) {
        let now = cx.now;
        let node = &mut cx.node;
        let has_local = self.local.is_some();
        self.topics.retain(|topic, until| {
            if *until <= now
                && has_local
                && let Ok(name) = Topic::from_bytes(topic)
            {
                node.expired.push((cx.id.topic.clone(), name));
            }
            *until > now
        });
        self.expiry = self.topics.values().min().copied();
    }

    /// A topic that was about to be forgotten still carries something.
    pub(super) fn still_lives(&mut self, cx: &mut Context<'_>, topic: &Bytes) {
        self.topics.entry(topic.clone()).or_insert(cx.now + FOUND_QUIET);
        self.expiry = self.topics.values().min().copied();
    }

    fn beaten(&mut self, cx: &mut Context<'_>, at: Cursor, depth: u8) {
        if let Some(parent) = &mut self.parent {
            parent.heard = cx.now;
            if !parent.is_joined {
                return;
            }
        }
        if cx.id.source.is_some() {
            return self.set_depth(cx, depth);
        }
        if at.stream == self.place.stream {
            self.place.hear(at.offset);
        } else if at.stream != 0 {
            self.place = Place::begin(at.stream, 0);
            self.place.hear(at.offset);
        }
        self.set_depth(cx, depth);
        self.check_gap(cx);
    }

    /// A child lacks something.
    fn wanted(&mut self, cx: &mut Context<'_>, link: LinkId, have: Cursor, until: u64) {
        let now = cx.now;
        let Some(child) = self.children.get_mut(&link) else {
            cx.core.stats.messages_unexpected += 1;
            return;
        };
        let is_soon =
            child.wanted.is_some_and(|last| now.saturating_since(last) < WANT_ANSWER_PAUSE);
        if child.waits.is_some() || is_soon {
            return;
        }
        child.wanted = Some(now);
        self.lower(if have.stream == self.place.stream { have.offset } else { 0 });
        self.replay(cx, link, have, until);
        if cx.id.is_index {
            for topic in self.topics.keys() {
                let at = Cursor { stream: self.place.stream, offset: 0 };
                let load = Load::Topic(topic.clone());
                cx.send(link, TreeAct::Data { at, replay: true, load });
            }
        }
        cx.send(link, TreeAct::Joined { depth: self.depth, at: self.place.at() });
        self.check_gap(cx);
    }

    /// Asks for what is missing.
    pub(super) fn check_gap(&mut self, cx: &mut Context<'_>) {
        if cx.id.source.is_some() {
            return;
        }
        let Some(until) = self.place.missing() else {
            self.gap = None;
            self.is_lowered = false;
            return;
        };
        let at = self.place.at();
        if self.flows.is_awaited(Cursor { offset: at.offset + 1, ..at }) {
            self.gap = None;
            return;
        }
        let Some(link) = self.joined_link() else { return };
        let gap = self.gap.get_or_insert(Gap { since: cx.now, asked: None });
        if gap.asked.is_some_and(|asked| cx.now.saturating_since(asked) < WANT_PAUSE) {
            return;
        }
        gap.asked = Some(cx.now);
        cx.core.stats.tree_wants += 1;
        self.flows.asked(until);
        cx.send(link, TreeAct::Want { have: self.place.at(), until });
    }

    // --- links and time

    pub(super) fn link_down(&mut self, cx: &mut Context<'_>, link: LinkId) {
        if self.children.remove(&link).is_some() {
            cx.node.forget_child(link);
        }
        if self.is_parent(link) {
            self.parent = None;
            self.gap = None;
            self.doubt = None;
            cx.core.stats.tree_rejoins += 1;
            if self.is_wanted() {
                self.look_for_parent(cx);
            }
        }
        self.replica_down(cx, link);
    }

    /// The outcome of an audit.
    pub(super) fn audited(&mut self, cx: &mut Context<'_>, outcome: &Outcome) {
        let Some(Reply::Reached { stream, offset }) = outcome.reply else { return };
        if self.root.is_some() || stream == 0 {
            return;
        }
        if stream != self.place.stream || offset > self.place.at().offset {
            self.doubt = Some((Cursor { stream, offset }, cx.now + AUDIT_LAG));
        } else {
            self.audit_pause = (self.audit_pause * 2).min(AUDIT_MAX);
        }
    }

    /// Becomes the root, as nobody closer is known.
    pub(super) fn become_root(&mut self, cx: &mut Context<'_>) {
        self.end_flows(cx);
        cx.node.orders.push(Order::End(TreeId { source: Some(cx.core.id), ..cx.id.clone() }));
        self.forget_parent(cx);
        self.hops = 0;
        self.depth = 0;
        self.from_start = false;
        self.start_as_root(cx);
        let links: Vec<LinkId> = self.children.keys().copied().collect();
        for link in links {
            if self.children.get(&link).is_some_and(|child| child.waits.is_some()) {
                self.welcome(cx, link);
            }
        }
        self.beat(cx);
    }

    /// After it was root: finds its place below somebody else.
    pub(super) fn join_below(&mut self, cx: &mut Context<'_>) {
        if self.is_wanted() {
            self.look_for_parent(cx);
        }
    }

    fn beat_interval(&self, now: Time) -> Duration {
        match now.saturating_since(self.active) < IDLE_AFTER {
            true => BEAT,
            false => BEAT_IDLE,
        }
    }

    /// When [`Tree::tick`] has something to do.
    pub(super) fn next_due(&self, core: &Core, now: Time) -> Option<Time> {
        let beat = self.beat_interval(now);
        let mut due = self.retry;
        let mut at = |time: Time| due = Some(due.map_or(time, |due| due.min(time)));
        if let Some(parent) = &self.parent {
            match (parent.link, parent.is_joined) {
                (None, _) => at(parent.since + CONNECT_TIMEOUT),
                (_, false) => at(parent.since + JOIN_TIMEOUT),
                _ => {
                    at(parent.heard + parent.patience(now));
                    at(parent.refresh);
                    self.audit.into_iter().for_each(&mut at);
                    self.doubt.iter().for_each(|(_, by)| at(*by));
                }
            }
        }
        if let Some(gap) = &self.gap {
            at(gap.since + GAP_TIMEOUT);
            at(gap.asked.unwrap_or(gap.since) + WANT_PAUSE);
        }
        if !self.children.is_empty() {
            at(self.sent + beat);
            self.children.values().for_each(|child| at(child.refreshed + CHILD_TIMEOUT));
        }
        self.ring.due(core.config.trees.ring_age_max).into_iter().for_each(&mut at);
        self.expiry.into_iter().for_each(&mut at);
        self.idle.iter().for_each(|since| at(*since + LINGER));
        self.flows.due().into_iter().for_each(&mut at);
        if let Some(local) = &self.local {
            local.delivery.due().into_iter().for_each(&mut at);
        }
        if let Some(root) = &self.root {
            root.due(self, now).into_iter().for_each(&mut at);
        }
        if let Some(held) = &self.held {
            at(held.due(core.config.trees.ring_age_max));
        }
        due
    }

    pub(super) fn tick(&mut self, cx: &mut Context<'_>) {
        let now = cx.now;
        let age = cx.core.config.trees.ring_age_max;
        self.ring.trim(now, age, usize::MAX);
        if let Some(local) = &mut self.local {
            let mut ready = Vec::new();
            local.delivery.tick(now, &mut ready);
            local.hand_over(cx, ready);
        }
        if self.expiry.is_some_and(|expiry| expiry <= now) {
            self.expire_topics(cx);
        }
        if self.flows.due().is_some_and(|due| due <= now) {
            self.flow_tick(cx);
        }
        self.root_tick(cx);
        self.held_tick(cx);
        if self.retry.is_some_and(|retry| retry <= now) {
            self.retry = None;
            if self.is_wanted() && self.root.is_none() && self.parent.is_none() {
                self.look_for_parent(cx);
            }
        }
        self.parent_tick(cx);
        self.children_tick(cx);
        self.idle_tick(cx);
    }

    fn parent_tick(&mut self, cx: &mut Context<'_>) {
        let now = cx.now;
        let Some(parent) = &mut self.parent else { return };
        let Some(link) = parent.link else {
            if now >= parent.since + CONNECT_TIMEOUT {
                self.drop_asked(cx);
                self.start_over(cx);
            }
            return;
        };
        if !parent.is_joined {
            if now >= parent.since + JOIN_TIMEOUT {
                self.leave_parent(cx, AVOID / 4);
            }
            return;
        }
        if now >= parent.heard + parent.patience(now) {
            cx.core.stats.tree_parents_silent += 1;
            return self.leave_parent(cx, AVOID);
        }
        if now >= parent.refresh {
            let redirected = parent.is_redirected;
            parent.refresh = now + cx.core.jittered(REFRESH);
            self.send_join(cx, link, redirected);
        }
        if self.gap.is_some_and(|gap| now >= gap.since + GAP_TIMEOUT) {
            cx.core.stats.tree_parents_silent += 1;
            return self.leave_parent(cx, AVOID);
        }
        if self.gap.is_some() {
            self.check_gap(cx);
        }
        if let Some((expected, by)) = self.doubt
            && now >= by
        {
            self.doubt = None;
            let at = self.place.at();
            if at.stream != expected.stream || at.offset < expected.offset {
                cx.core.stats.tree_parents_silent += 1;
                return self.leave_parent(cx, AVOID);
            }
        }
        if self.audit.is_some_and(|due| due <= now) {
            self.audit = Some(now + cx.core.jittered(self.audit_pause));
            let is_quiet = now.saturating_since(self.active) >= AUDIT_LAG;
            if is_quiet && !cx.id.is_index && cx.id.source.is_none() {
                let tag = cx.node.ask(Ask::Audit(cx.id.clone()));
                let body = Body::Audit { topic: cx.id.topic.clone() };
                cx.core.request(now, self.key, body, 1, Tag::Tree(tag));
            }
        }
    }

    fn children_tick(&mut self, cx: &mut Context<'_>) {
        let now = cx.now;
        let gone: Vec<LinkId> = self
            .children
            .iter()
            .filter(|(_, child)| now >= child.refreshed + CHILD_TIMEOUT)
            .map(|(link, _)| *link)
            .collect();
        for link in gone {
            self.remove_child(cx, link);
            cx.send(link, TreeAct::Part);
        }
        let interval = self.beat_interval(now);
        if !self.children.is_empty() && now >= self.sent + interval {
            self.sent = now;
            self.beat(cx);
        }
    }

    fn idle_tick(&mut self, cx: &mut Context<'_>) {
        if self.is_wanted() || self.root.is_some() {
            self.idle = None;
            return;
        }
        let since = *self.idle.get_or_insert(cx.now);
        if cx.now >= since + LINGER {
            self.end_flows(cx);
            self.drop_parent(cx);
            self.retry = None;
            self.idle = None;
            self.place = Place::default();
            self.retained = None;
            self.topics.clear();
            self.expiry = None;
            if let Some(held) = &mut self.held {
                // the ring may still be wanted
                self.ring.take().into_iter().for_each(|entry| held.keep(entry));
            }
        }
    }

    /// Whether somebody began to wait for the end of this node's membership.
    pub(super) fn notice_idle(&mut self, now: Time) {
        if !self.is_wanted() && self.root.is_none() && self.parent.is_some() && self.idle.is_none()
        {
            self.idle = Some(now);
        }
    }
}

impl Parent {
    /// How long it may be silent.
    fn patience(&self, now: Time) -> Duration {
        match now.saturating_since(self.carried) < IDLE_AFTER {
            true => SILENCE,
            false => SILENCE_IDLE,
        }
    }
}

impl Local {
    /// Tells the application.
    fn hand_over(&mut self, cx: &mut Context<'_>, ready: Vec<Ready>) {
        cx.core.stats.tree_order_given_up += std::mem::take(&mut self.delivery.crowded_out);
        for ready in ready {
            match ready {
                Ready::Messages(publish, replay) => {
                    let subscriptions = self.subscriptions.keys().copied().collect();
                    cx.core.event(Event::Deliver { subscriptions, publish, replay });
                }
                Ready::Lost(count) => {
                    if let Ok(topic) = Topic::from_bytes(&cx.id.topic) {
                        cx.core.event(Event::Lost { topic, count });
                    }
                }
            }
        }
    }
}

/// What somebody has who wants all that is kept.
pub(super) const NOTHING: Cursor = Cursor { stream: u64::MAX, offset: 0 };

pub(super) fn room(core: &Core) -> Room {
    let limits = &core.config.trees;
    Room {
        streams_max: limits.streams_per_topic_max,
        early_bytes_max: limits.early_bytes_per_topic_max,
    }
}

/// Whether a load belongs to its tree and is well made.
pub(super) fn is_sound(cx: &Context<'_>, load: &Load) -> bool {
    let is_of_topic = |publish: &Publish| {
        !cx.id.is_index
            && publish.topic == cx.id.topic
            && publish.realm == cx.core.realm.tag()
            && publish.first > 0
            && publish.first.checked_add(publish.count.into()).is_some()
    };
    match load {
        Load::Batch(publish) => {
            is_of_topic(publish)
                && publish.body.len() <= crate::limits::ROUTED_BYTES_MAX
                && batch::validate(publish.count, &publish.body).is_ok()
        }
        Load::Head(head) => is_of_topic(head) && head.count > 0 && head.body.is_empty(),
        Load::Topic(topic) => {
            cx.id.is_index && Topic::check_bytes(topic).is_ok() && is_prefix(&cx.id.topic, topic)
        }
    }
}

/// Whether `prefix` is some whole segments at the beginning of `topic`.
pub(super) fn is_prefix(prefix: &[u8], topic: &[u8]) -> bool {
    match topic.strip_prefix(prefix) {
        Some(rest) => prefix.is_empty() || rest.is_empty() || rest.first() == Some(&b'.'),
        None => false,
    }
}
