//! The root of a tree: numbers what it gives out, and has a replica hold it before it says that it
//! has accepted a message.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;

use super::super::core::{Arrival, Core, Tag};
use super::super::message::{Body, Contact, Cursor, Load, Need, Reply, StoreRefusal, TreeAct};
use super::limits::*;
use super::member::{Context, Tree, is_sound};
use super::ring::{Entry, Place, Ring};
use super::{Ask, Rootward};
use crate::id::{EndpointId, Key, KeyKind, LinkId};
use crate::pubsub::{NewMessages, NewRange, Seen, Topic};
use crate::time::Time;
use crate::wire::batch::{BatchBuilder, BatchIter};
use crate::wire::message::Publish;

/// What a root keeps beside what every member does.
#[derive(Debug)]
pub(super) struct Root {
    streams: BTreeMap<(EndpointId, u64), Stream>,
    replica: Option<Replica>,
    /// Routers that did not answer lately.
    resting: Vec<(EndpointId, Time)>,
    /// Accepted as soon as the replica holds up to an offset.
    waiting: VecDeque<(u64, Arrival)>,
    check: Time,
    /// When the overlay is asked whether somebody is closer who is no neighbour.
    search: Time,
    announce: Option<Time>,
    used: Time,
}

/// What has come of one publisher's epoch.
#[derive(Debug)]
struct Stream {
    seen: Seen,
    used: Time,
    /// Batches that came before their predecessors.
    early: BTreeMap<u64, Early>,
}

#[derive(Debug)]
struct Early {
    publish: Publish,
    arrival: Arrival,
    due: Time,
}

/// The router next to the root.
#[derive(Debug)]
struct Replica {
    link: LinkId,
    peer: EndpointId,
    sent: u64,
    held: u64,
    due: Time,
}

/// What this node holds for a root, to step in for it.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) ring: Ring,
    pub(super) retained: Option<Publish>,
    pub(super) topics: BTreeMap<Bytes, Time>,
    /// The roots that it is held for; more than one only until these have found each other.
    from: Vec<LinkId>,
    until: Time,
    /// When it is handed over once more, and how often it was: whoever was given it may have passed
    /// it on to a root that was dead already.
    again: Option<Time>,
    repeats: u8,
}

impl Root {
    pub(super) fn due(&self, tree: &Tree, now: Time) -> Option<Time> {
        let is_empty = !tree.is_wanted() && tree.retained.is_none() && tree.topics.is_empty();
        let idle = (is_empty && tree.ring.is_empty()).then_some(self.used + ROOT_IDLE);
        let early = self
            .streams
            .values()
            .filter_map(|stream| stream.early.first_key_value().map(|(_, early)| early.due));
        let replica = self.replica.as_ref().filter(|replica| replica.held < replica.sent);
        early
            .chain([self.check.max(now), self.search.max(now)])
            .chain(self.announce)
            .chain(idle)
            .chain(replica.map(|replica| replica.due))
            .min()
    }
}

impl Held {
    fn new(now: Time) -> Self {
        Self {
            ring: Ring::default(),
            retained: None,
            topics: BTreeMap::new(),
            from: Vec::new(),
            until: now + ANNOUNCED_FOR,
            again: None,
            repeats: 0,
        }
    }

    pub(super) fn keep(&mut self, entry: Entry) {
        if !self.ring.contains(entry.at) {
            self.ring.push(entry);
        }
    }

    /// Forgets a root; whether it was one.
    fn forget_root(&mut self, link: LinkId) -> bool {
        let count = self.from.len();
        self.from.retain(|of| *of != link);
        self.from.len() < count
    }

    pub(super) fn due(&self, age: Duration) -> Time {
        let due = self.ring.due(age).into_iter().chain(self.again).chain([self.until]);
        due.min().unwrap_or(self.until)
    }
}

impl Tree {
    /// Begins a stream with all that is kept here.
    pub(super) fn start_as_root(&mut self, cx: &mut Context<'_>) {
        let now = cx.now;
        let stream = cx.core.draw().max(1);
        let announce = (!cx.id.is_index && self.retained.is_some()).then_some(now);
        self.place = Place::begin(stream, 0);
        self.root = Some(Box::new(Root {
            streams: BTreeMap::new(),
            replica: None,
            resting: Vec::new(),
            waiting: VecDeque::new(),
            check: now + ROOT_CHECK,
            search: now + ROOT_CHECK,
            announce,
            used: now,
        }));
        let mut entries: Vec<Entry> = self.ring.take().into();
        if let Some(held) = self.held.take() {
            entries.extend(held.ring.iter().cloned());
            entries.sort_by_key(|entry| entry.came);
            if held.retained.is_some() {
                self.retained = held.retained;
            }
            for (topic, _) in held.topics {
                self.topic_came(cx, Cursor { stream, offset: 0 }, topic, false);
            }
        }
        for entry in entries {
            self.take_in(cx, entry.publish, true);
        }
        self.replicate(cx);
    }

    /// A batch has been routed to here.
    pub(super) fn publish_arrived(
        &mut self,
        cx: &mut Context<'_>,
        arrival: Arrival,
        publish: Publish,
    ) {
        let load = Load::Batch(publish);
        if !is_sound(cx, &load) {
            return cx.core.answer(cx.now, &arrival, Reply::Refused(StoreRefusal::TooLarge));
        }
        let Load::Batch(mut publish) = load else { return };
        if publish.qos1 && self.ring_room(cx) < super::ring::cost(&publish) {
            // it would be given out, but nobody could be given it again
            cx.core.stats.tree_publishes_refused += 1;
            return cx.core.answer(cx.now, &arrival, Reply::Refused(StoreRefusal::Busy));
        }
        let Some(root) = &mut self.root else { return };
        root.used = cx.now;
        let stream = root.stream(cx.core, cx.now, &publish);
        let is_settled = publish.start || stream.has_before(publish.first);
        publish.start = publish.first == 1;
        if is_settled {
            self.accept(cx, arrival, publish);
            return self.replicate(cx);
        }
        // its predecessor is on another way
        if stream.early.len() >= EARLY_MAX {
            return cx.core.answer(cx.now, &arrival, Reply::Refused(StoreRefusal::Busy));
        }
        let first = publish.first;
        let early = Early { publish, arrival, due: cx.now + EARLY_TIMEOUT };
        if let Some(twice) = stream.early.insert(first, early) {
            cx.core.answer(cx.now, &twice.arrival, Reply::Refused(StoreRefusal::Busy));
        }
    }

    /// Gives out a batch and all that waited for it.
    fn accept(&mut self, cx: &mut Context<'_>, arrival: Arrival, publish: Publish) {
        let key = (publish.publisher, publish.epoch);
        let mut next = Some((arrival, publish));
        while let Some((arrival, publish)) = next {
            let (qos1, first) = (publish.qos1, publish.first);
            let (publisher, epoch) = key;
            let given = self.take_in(cx, publish, false);
            let at = given
                .or_else(|| self.ring.find(&publisher, epoch, first).map(|at| at.offset))
                .unwrap_or_default();
            let Some(root) = &mut self.root else { return };
            if qos1 && at > 0 {
                root.waiting.push_back((at, arrival));
            } else {
                self.say_accepted(cx, &arrival, at);
            }
            next = self.root.as_mut().and_then(|root| {
                let stream = root.streams.get_mut(&key)?;
                let first = *stream.early.first_key_value()?.0;
                let early = match stream.has_before(first) {
                    true => stream.early.remove(&first)?,
                    false => return None,
                };
                Some((early.arrival, early.publish))
            });
        }
    }

    /// Gives out what of a batch is new; returns the offset of the last.
    pub(super) fn take_in(
        &mut self,
        cx: &mut Context<'_>,
        publish: Publish,
        replay: bool,
    ) -> Option<u64> {
        let root = self.root.as_mut()?;
        let stream = root.stream(cx.core, cx.now, &publish);
        let accepted = stream.seen.accept(publish.first, publish.count, false);
        let mut last = None;
        for part in parts(publish, &accepted.new) {
            let at = Cursor { stream: self.place.stream, offset: self.place.at().offset + 1 };
            self.place.accept(at.offset);
            last = Some(at.offset);
            self.pass_on(cx, at, part, replay);
        }
        if let Some(root) = &mut self.root
            && last.is_some()
        {
            let soon = cx.now + ANNOUNCE_ACTIVE;
            root.announce = Some(root.announce.map_or(cx.now, |due| due.min(soon)));
            self.active = cx.now;
        }
        last
    }

    fn say_accepted(&self, cx: &mut Context<'_>, arrival: &Arrival, offset: u64) {
        let receivers = self.children.len() + usize::from(self.has_local());
        let receivers = u32::try_from(receivers).unwrap_or(u32::MAX);
        let stream = self.place.stream;
        cx.core.answer(cx.now, arrival, Reply::Accepted { stream, offset, receivers });
    }

    /// A topic has been announced to this index.
    pub(super) fn announced(&mut self, cx: &mut Context<'_>, arrival: &Arrival, topic: Bytes) {
        let is_known = self.topics.contains_key(&topic);
        if !is_known && self.topics.len() >= cx.core.config.trees.announced_max {
            cx.core.stats.tree_announcements_refused += 1;
            return cx.core.answer(cx.now, arrival, Reply::Refused(StoreRefusal::KeyFull));
        }
        if let Some(root) = &mut self.root {
            root.used = cx.now;
        }
        if is_known {
            let at = Cursor { stream: self.place.stream, offset: 0 };
            self.topic_came(cx, at, topic, true);
        } else {
            let at = Cursor { stream: self.place.stream, offset: self.place.at().offset + 1 };
            self.place.accept(at.offset);
            if let Some(replica) = self.root.as_ref().and_then(|root| root.replica.as_ref()) {
                let (link, load) = (replica.link, Load::Topic(topic.clone()));
                cx.send(link, TreeAct::Hold { at: Cursor { offset: 0, ..at }, load });
            }
            self.topic_came(cx, at, topic, false);
        }
        self.say_accepted(cx, arrival, self.place.at().offset);
        self.replicate(cx);
    }

    // --- the replica

    /// Sends the replica what it lacks; chooses one if there is none.
    fn replicate(&mut self, cx: &mut Context<'_>) {
        let stream = self.place.stream;
        let Some(root) = &mut self.root else { return };
        if root.replica.is_none() {
            root.resting.retain(|(_, until)| *until > cx.now);
            if let Some((link, peer)) = choose_replica(cx.core, &self.key, &root.resting) {
                root.replica = Some(Replica { link, peer, sent: 0, held: 0, due: cx.now });
                let zero = Cursor { stream, offset: 0 };
                if let Some(retained) = self.retained.clone() {
                    cx.send(link, TreeAct::Hold { at: zero, load: Load::Batch(retained) });
                }
                for topic in self.topics.keys() {
                    cx.send(link, TreeAct::Hold { at: zero, load: Load::Topic(topic.clone()) });
                }
            }
        }
        let Some(replica) = &mut root.replica else {
            // nobody else is there to hold anything
            return self.answer_up_to(cx, u64::MAX);
        };
        let (link, was_waiting) = (replica.link, replica.held < replica.sent);
        for entry in self.ring.newest(stream, replica.sent) {
            replica.sent = entry.at.offset;
            let load = Load::Batch(entry.publish.clone());
            cx.send(link, TreeAct::Hold { at: entry.at, load });
        }
        if !was_waiting {
            replica.due = cx.now + cx.core.rtt(link) * 2 + HELD_SLACK;
        }
        let (sent, held) = (replica.sent, replica.held);
        // what is not in the ring any more cannot be sent
        self.answer_up_to(cx, if held >= sent { u64::MAX } else { held });
    }

    /// Tells publishers that what stands up to here is accepted.
    fn answer_up_to(&mut self, cx: &mut Context<'_>, offset: u64) {
        loop {
            let Some(root) = &mut self.root else { return };
            let Some((at, arrival)) = root.waiting.pop_front_if(|(at, _)| *at <= offset) else {
                return;
            };
            self.say_accepted(cx, &arrival, at);
        }
    }

    /// The replica holds something.
    pub(super) fn held(&mut self, cx: &mut Context<'_>, link: LinkId, at: Cursor) {
        let stream = self.place.stream;
        let Some(replica) = self.root.as_mut().and_then(|root| root.replica.as_mut()) else {
            return;
        };
        if replica.link != link || at.stream != stream || at.offset > replica.sent {
            return;
        }
        replica.held = replica.held.max(at.offset);
        replica.due = cx.now + cx.core.rtt(link) * 2 + HELD_SLACK;
        let offset = if replica.held >= replica.sent { u64::MAX } else { replica.held };
        self.answer_up_to(cx, offset);
    }

    pub(super) fn replica_down(&mut self, cx: &mut Context<'_>, link: LinkId) {
        if let Some(root) = &mut self.root
            && root.replica.as_ref().is_some_and(|replica| replica.link == link)
        {
            root.replica = None;
            self.replicate(cx);
        }
        if self.held.as_mut().is_some_and(|held| held.forget_root(link)) {
            self.step_in(cx);
        }
    }

    /// Other routers are close now: perhaps one of them is the root, or the better replica.
    pub(super) fn siblings_changed(&mut self, cx: &mut Context<'_>) {
        if self.root.is_none() {
            return;
        }
        if let Rootward::Next(link) = cx.core.rootward(&self.key, &[]) {
            return self.step_down(cx, link);
        }
        let Some(root) = &mut self.root else { return };
        let best = choose_replica(cx.core, &self.key, &root.resting);
        if root.replica.as_ref().map(|replica| replica.link) != best.map(|(link, _)| link) {
            root.replica = None;
            self.replicate(cx);
        }
    }

    /// Hands over to a router that is closer, and joins there.
    fn step_down(&mut self, cx: &mut Context<'_>, link: LinkId) {
        let Some(root) = self.root.take() else { return };
        cx.core.stats.tree_handovers += 1;
        let early = root.streams.into_values().flat_map(|stream| stream.early.into_values());
        let unanswered = early.map(|early| early.arrival);
        for arrival in unanswered.chain(root.waiting.into_iter().map(|(_, arrival)| arrival)) {
            // the publisher sends it again, to the new root
            cx.core.answer(cx.now, &arrival, Reply::Refused(StoreRefusal::Busy));
        }
        let held = self.held.get_or_insert_with(|| Box::new(Held::new(cx.now)));
        for entry in self.ring.iter() {
            held.keep(entry.clone());
        }
        held.retained = self.retained.clone();
        held.topics.extend(self.topics.clone());
        held.until = cx.now + ANNOUNCED_FOR;
        held.repeats = 0;
        self.step_in_at(cx, link);
        self.join_below(cx);
    }

    fn hand_over(
        &self,
        cx: &mut Context<'_>,
        link: LinkId,
        retained: Option<Publish>,
        topics: Vec<Bytes>,
        entries: Vec<Entry>,
    ) {
        let zero = Cursor { stream: self.place.stream.max(1), offset: 0 };
        if let Some(retained) = retained {
            cx.send(link, TreeAct::Hold { at: zero, load: Load::Batch(retained) });
        }
        for topic in topics {
            cx.send(link, TreeAct::Hold { at: zero, load: Load::Topic(topic) });
        }
        for entry in entries {
            cx.send(link, TreeAct::Hold { at: entry.at, load: Load::Batch(entry.publish) });
        }
    }

    /// The root that this node stands behind is gone.
    fn step_in(&mut self, cx: &mut Context<'_>) {
        match cx.core.rootward(&self.key, &[]) {
            Rootward::Here => self.become_root(cx),
            Rootward::Next(link) => self.step_in_at(cx, link),
            Rootward::Nowhere => {
                if let Some(held) = &mut self.held {
                    held.again = Some(cx.now + HANDOVER_PAUSE);
                }
            }
        }
    }

    /// Hands what is held to a router that is closer.
    fn step_in_at(&mut self, cx: &mut Context<'_>, link: LinkId) {
        let Some(held) = &mut self.held else { return };
        held.again = (held.repeats < HANDOVERS_MAX)
            .then_some(cx.now + HANDOVER_PAUSE * (1 << held.repeats.min(4)));
        held.repeats += 1;
        let Some(held) = &self.held else { return };
        cx.core.stats.tree_handovers += 1;
        let entries = held.ring.iter().cloned().collect();
        let topics = held.topics.keys().cloned().collect();
        self.hand_over(cx, link, held.retained.clone(), topics, entries);
    }

    /// A root wants this held; or one that is none any more hands it over.
    pub(super) fn hold(&mut self, cx: &mut Context<'_>, link: LinkId, at: Cursor, load: Load) {
        let Some(peer) = cx.core.links.get(link).map(|link| link.peer) else { return };
        if !is_sound(cx, &load) || at.stream == 0 {
            cx.core.stats.messages_unexpected += 1;
            return;
        }
        let is_closer = peer.key.distance(&self.key) < cx.core.key.distance(&self.key);
        if is_closer || !cx.core.upkeep.is_joined() {
            return self.hold_for(cx, link, at, load);
        }
        match cx.core.rootward(&self.key, &[]) {
            Rootward::Next(next) if next != link => cx.send(next, TreeAct::Hold { at, load }),
            Rootward::Next(_) | Rootward::Nowhere => {}
            Rootward::Here => {
                if self.root.is_none() {
                    self.become_root(cx);
                }
                match load {
                    Load::Batch(publish) if at.offset == 0 => self.take_retained(cx, publish),
                    Load::Batch(publish) => {
                        self.take_in(cx, publish, true);
                    }
                    Load::Topic(topic) if !self.topics.contains_key(&topic) => {
                        let stream = self.place.stream;
                        let offset = self.place.at().offset + 1;
                        self.place.accept(offset);
                        self.topic_came(cx, Cursor { stream, offset }, topic, false);
                    }
                    Load::Topic(_) | Load::Head(_) => {}
                }
                self.replicate(cx);
            }
        }
    }

    /// The retained message of an earlier root.
    fn take_retained(&mut self, cx: &mut Context<'_>, publish: Publish) {
        if self.retained.is_some() || publish.count != 1 || publish.body.is_empty() {
            return;
        }
        self.set_retained(cx, publish);
        if let Some(root) = &mut self.root {
            root.announce.get_or_insert(cx.now);
            // so that it is sent along
            root.replica = None;
        }
    }

    fn hold_for(&mut self, cx: &mut Context<'_>, link: LinkId, at: Cursor, load: Load) {
        let now = cx.now;
        if let Rootward::Next(closer) = cx.core.rootward(&self.key, &[])
            && closer != link
        {
            // there is a better root, which has to give this out as well
            cx.send(closer, TreeAct::Hold { at, load: load.clone() });
        }
        let held = self.held.get_or_insert_with(|| Box::new(Held::new(now)));
        held.until = now + ANNOUNCED_FOR;
        if !held.from.contains(&link) && held.from.len() < ROOTS_HELD_MAX {
            held.from.push(link);
            // what others have accepted may be news to this root
            let entries = held.ring.iter().filter(|entry| entry.at.stream != at.stream);
            let entries: Vec<Entry> = entries.cloned().collect();
            self.hand_over(cx, link, None, Vec::new(), entries);
        }
        let room = self.ring_room(cx);
        let limits = &cx.core.config.trees;
        let others_retained = cx.node.retained_bytes.saturating_sub(self.counted.1);
        let Some(held) = &mut self.held else { return };
        match load {
            Load::Batch(publish) => {
                if publish.retain {
                    let skip = publish.count.saturating_sub(1);
                    let from = publish.first.saturating_add(skip.into());
                    let last = super::delivery::after(publish.clone(), from);
                    held.retained = last.filter(|last| {
                        !last.body.is_empty()
                            && last.body.len() <= RETAINED_PAYLOAD_BYTES_MAX
                            && others_retained + last.body.len() <= limits.retained_bytes_max
                    });
                }
                if at.offset > 0 {
                    held.keep(Entry { at, publish, came: now });
                    cx.core.stats.tree_rings_full += held.ring.trim(now, limits.ring_age_max, room);
                    if held.ring.contains(at) {
                        cx.send(link, TreeAct::Held { at });
                    }
                }
            }
            Load::Topic(topic) => {
                if held.topics.len() < limits.announced_max {
                    held.topics.insert(topic, now + ANNOUNCED_FOR);
                }
            }
            Load::Head(_) => cx.core.stats.messages_unexpected += 1,
        }
    }

    pub(super) fn held_tick(&mut self, cx: &mut Context<'_>) {
        let age = cx.core.config.trees.ring_age_max;
        if let Some(held) = &mut self.held {
            held.ring.trim(cx.now, age, usize::MAX);
            if cx.now >= held.until {
                self.held = None;
            } else if held.again.is_some_and(|again| again <= cx.now) {
                self.step_in(cx);
            }
        }
    }

    // --- time

    pub(super) fn root_tick(&mut self, cx: &mut Context<'_>) {
        let now = cx.now;
        let Some(root) = &mut self.root else { return };
        if root.check <= now {
            root.check = now + cx.core.jittered(ROOT_CHECK);
            if let Rootward::Next(link) = cx.core.rootward(&self.key, &[]) {
                return self.step_down(cx, link);
            }
        }
        if root.search <= now {
            root.search = now + cx.core.jittered(ROOT_SEARCH);
            let body = Body::Find { except: Some(cx.core.id), early: false };
            let tag = Tag::Tree(cx.node.ask(Ask::Closer(cx.id.clone())));
            cx.core.request(now, self.key, body, SEARCH_PATHS, tag);
        }
        self.release_early(cx);
        let Some(root) = &mut self.root else { return };
        if let Some(replica) = &root.replica
            && replica.held < replica.sent
            && now >= replica.due
        {
            root.resting.truncate(AVOID_MAX - 1);
            root.resting.push((replica.peer, now + REPLICA_REST));
            root.replica = None;
            self.replicate(cx);
        }
        self.announce(cx);
        let Some(root) = &self.root else { return };
        let is_empty = !self.is_wanted()
            && self.retained.is_none()
            && self.topics.is_empty()
            && self.ring.is_empty();
        if is_empty && now >= root.used + ROOT_IDLE {
            self.root = None;
            self.place = Place::default();
        }
    }

    /// The routers closest to the key, as the overlay knows them. If this node has missed that one
    /// came who is closer, a link there lets [`ROOT_CHECK`] find it. If it is the closest itself, the
    /// next one may have missed that, and hold itself for the root.
    pub(super) fn found_closer(&self, cx: &mut Context<'_>, contacts: &[Contact]) {
        let others = contacts.iter().filter(|contact| contact.id != cx.core.id);
        let closest = others.min_by_key(|contact| contact.key.distance(&self.key));
        if self.root.is_some()
            && let Some(contact) = closest
            && cx.core.link_to(&contact.id).is_none()
        {
            cx.core.connect(cx.now, &contact.id, Need::Traffic);
        }
    }

    /// Gives up waiting for the predecessors of batches.
    fn release_early(&mut self, cx: &mut Context<'_>) {
        let mut over = Vec::new();
        if let Some(root) = &mut self.root {
            for stream in root.streams.values_mut() {
                let due: Vec<u64> = stream
                    .early
                    .iter()
                    .filter(|(_, early)| early.due <= cx.now)
                    .map(|(first, _)| *first)
                    .collect();
                over.extend(due.iter().filter_map(|first| stream.early.remove(first)));
            }
        }
        for early in over {
            if early.publish.qos1 {
                // its publisher still tries to bring the one before
                cx.core.answer(cx.now, &early.arrival, Reply::Refused(StoreRefusal::Busy));
            } else {
                self.accept(cx, early.arrival, early.publish);
            }
        }
        self.replicate_if_behind(cx);
    }

    fn replicate_if_behind(&mut self, cx: &mut Context<'_>) {
        if self.root.as_ref().is_some_and(|root| !root.waiting.is_empty()) {
            self.replicate(cx);
        }
    }

    /// An index has not answered.
    pub(super) fn announce_again(&mut self, cx: &mut Context<'_>) {
        let due = cx.now + cx.core.jittered(ANNOUNCE_AGAIN);
        if let Some(announce) = self.root.as_mut().and_then(|root| root.announce.as_mut()) {
            *announce = due.min(*announce);
        }
    }

    /// Tells the indices of all prefixes that the topic lives.
    fn announce(&mut self, cx: &mut Context<'_>) {
        let Some(root) = &mut self.root else { return };
        if root.announce.is_none_or(|due| due > cx.now) {
            return;
        }
        let is_alive = self.retained.is_some()
            || !self.ring.is_empty()
            || cx.now.saturating_since(root.used) < ANNOUNCED_FOR;
        if cx.id.is_index || !is_alive {
            root.announce = None;
            return;
        }
        let pause = match self.ring.is_empty() {
            true => ANNOUNCE,
            false => ANNOUNCE_ACTIVE,
        };
        root.announce = Some(cx.now + cx.core.jittered(pause));
        if let (Some(retained), Some(replica)) = (self.retained.clone(), &root.replica) {
            let at = Cursor { stream: self.place.stream, offset: 0 };
            let link = replica.link;
            cx.send(link, TreeAct::Hold { at, load: Load::Batch(retained) });
        }
        let topic = cx.id.topic.clone();
        let dots = topic.iter().enumerate().filter(|(_, byte)| **byte == b'.').map(|(at, _)| at);
        let ends: Vec<usize> = [0].into_iter().chain(dots).chain([topic.len()]).collect();
        for end in ends {
            let prefix = topic.slice(..end);
            let key = Key::derive(&cx.core.realm, KeyKind::TopicPrefix, &prefix);
            let tag = Tag::Tree(cx.node.ask(Ask::Announce(cx.id.clone())));
            let body = Body::Announce { prefix, topic: topic.clone() };
            cx.core.request(cx.now, key, body, 1, tag);
        }
    }
}

impl Root {
    fn stream(&mut self, core: &mut Core, now: Time, publish: &Publish) -> &mut Stream {
        let key = (publish.publisher, publish.epoch);
        let max = core.config.trees.streams_per_topic_max.max(1);
        if !self.streams.contains_key(&key) && self.streams.len() >= max {
            let idle = self.streams.iter().filter(|(_, stream)| stream.early.is_empty());
            // whoever has more than one makes room first
            let victim = idle
                .map(|(of, stream)| (of.0 != publish.publisher, stream.used, *of))
                .min()
                .map(|(_, _, of)| of);
            if let Some(victim) = victim {
                self.streams.remove(&victim);
                core.stats.tree_order_given_up += 1;
            }
        }
        let stream = self.streams.entry(key).or_insert_with(|| {
            let mut seen = Seen::default();
            // what an earlier root has accepted may still be handed over
            seen.accept(0, 1, false);
            Stream { seen, used: now, early: BTreeMap::new() }
        });
        stream.used = now;
        stream
    }
}

impl Stream {
    /// Whether the message before `first` has come.
    fn has_before(&self, first: u64) -> bool {
        let next = self.seen.next().unwrap_or_default();
        first <= next || {
            let mut seen = self.seen.clone();
            seen.accept(first.saturating_sub(1), 1, false).new == NewMessages::None
        }
    }
}

/// The router to hold what this root accepts: of those linked the closest to the key.
fn choose_replica(
    core: &Core,
    key: &Key,
    resting: &[(EndpointId, Time)],
) -> Option<(LinkId, EndpointId)> {
    // whoever is not ready would not step in as root itself; one that did not answer is better than
    // nobody: what is held once only must not be accepted
    let is_resting = |peer: &EndpointId| resting.iter().any(|(of, _)| of == peer);
    core.links
        .iter()
        .map(|link| {
            let rank = (is_resting(&link.peer.id), !link.is_ready, link.missed > 0);
            (rank, link.peer.key.distance(key), link.id, link.peer.id)
        })
        .min()
        .map(|(_, _, link, peer)| (link, peer))
}

/// The new parts of a batch.
fn parts(publish: Publish, new: &NewMessages) -> Vec<Publish> {
    let part = |range: &NewRange| {
        let skip = range.first.checked_sub(publish.first)?;
        let payloads = BatchIter::new(publish.count, publish.body.clone());
        let mut builder = BatchBuilder::new();
        payloads
            .skip(usize::try_from(skip).ok()?)
            .take(range.count as usize)
            .for_each(|payload| builder.push_bytes(payload));
        let (count, body) = builder.finish();
        let is_last =
            range.first + u64::from(range.count) == publish.first + u64::from(publish.count);
        Some(Publish {
            first: range.first,
            count,
            body,
            start: range.first == 1,
            retain: publish.retain && is_last,
            ..publish.clone()
        })
    };
    match new {
        NewMessages::None => Vec::new(),
        NewMessages::All => vec![publish],
        NewMessages::AllAfter(skip) => {
            let from = publish.first.saturating_add((*skip).into());
            super::delivery::after(publish, from).into_iter().collect()
        }
        NewMessages::Parts(ranges) => ranges.iter().filter_map(part).collect(),
    }
}

/// Whether a topic name is one.
pub(super) fn is_topic(topic: &[u8]) -> bool {
    Topic::check_bytes(topic).is_ok()
}
