//! Publishes over links between leaves, and how a router stops sending what comes that way.
//!
//! A publisher sends to its router all the same; a subscriber that gets a stream over a link to its
//! publisher tells the router, which sends no more of it but holds what is QoS 1 until the
//! subscriber says that it has it. So nothing depends on that link. Spec: docs/protocol §9.9.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::link::{Cargo, Link, PauseReason};
use super::realm::{Realm, Route, Source};
use super::session::SessionId;
use super::subscribe::stream_key;
use super::timers::Timer;
use super::{Node, Role};
use crate::auth::{Request, Verb};
use crate::id::{EndpointId, LinkId, RealmTag, SubscriptionId};
use crate::pubsub::Topic;
use crate::pubsub::seen::{Seen, StreamKey};
use crate::time::Time;
use crate::wire::message::{
    CAPABILITY_CARRY, CAPABILITY_PEER_PUBLISH, CloseCode, Message, Prune, Publish, SlowPolicy,
    Subscribe,
};
use crate::wire::{self, Channel};

/// Streams of a realm that come over links to their publishers; others come by the router only.
const INFLOWS_MAX: usize = 4_096;
/// Streams that a router leaves out of what it sends to one peer; of more it sends all.
const PRUNES_PER_LINK_MAX: usize = 4_096;
/// Topics of a realm that a router does not want from their publishers; it takes all others.
const QUIETS_MAX: usize = 4_096;
/// What is missing is waited for so long at the most, while the router could bring it.
const ORDER_WAIT: Duration = Duration::from_secs(10);
/// What a message that waits costs beside its body.
const WAITING_OVERHEAD_BYTES: usize = 256;

/// A subscriber: a stream that comes over a link to its publisher, and by the router too until
/// that has stopped.
#[derive(Debug)]
pub(super) struct Inflow {
    /// Names it to the router.
    id: u64,
    /// The link; `None`: it is gone, and the router fills the gap before what waits here.
    link: Option<LinkId>,
    /// First sequence that came over it.
    from: u64,
    /// Last sequence that came over it, and by the router.
    direct_to: u64,
    router_to: u64,
    /// The router sends no more.
    is_pruned: bool,
    /// What came by one way and waits for what is under way on the other, by first sequence.
    waiting: BTreeMap<u64, (Source, Publish)>,
    /// When something last moved, while something waits.
    since: Time,
}

impl Inflow {
    /// What is missing up to here will not come: each way keeps order.
    fn passed(&self) -> u64 {
        match (self.link.is_some(), self.is_pruned) {
            (false, _) => self.router_to,
            (true, true) => self.direct_to,
            (true, false) => self.direct_to.min(self.router_to),
        }
    }

    fn is_due(&self, next: Option<u64>, publish: &Publish) -> bool {
        publish.start
            || next.is_some_and(|next| publish.first <= next)
            || publish.first.saturating_sub(1) <= self.passed()
    }
}

/// A router: a stream that a subscriber gets elsewhere.
#[derive(Debug)]
pub(super) struct Pruned {
    id: u64,
    from: u64,
    /// What it said to have: the other way may be the faster one.
    taken: u64,
    /// The subscriber was told that nothing before `from` comes any more.
    is_said: bool,
    /// Ring entries that it has not said to have, with their last sequences; the session's
    /// `undelivered` has them too.
    owed: VecDeque<(u64, u64)>,
}

fn cost(publish: &Publish) -> usize {
    publish.body.len() + WAITING_OVERHEAD_BYTES
}

impl Realm {
    /// What of a stream is expected next.
    fn next_of(&self, key: &StreamKey) -> Option<u64> {
        self.seen.peek(key).and_then(Seen::next)
    }
}

impl Link {
    /// Whether publishes may pass between the two leaves.
    fn carries_publishes(&self) -> bool {
        self.peer_link.is_some()
            && self.is_ready()
            && self.hello.capabilities & CAPABILITY_PEER_PUBLISH != 0
    }

    /// Since when the peer owes word of what it gets elsewhere; `None`: it does not.
    pub(super) fn owed_since(&self) -> Option<Time> {
        (self.pruned_owed > 0).then_some(self.pruned_progress)
    }
}

// --- publisher ---------------------------------------------------------------------------------

impl Node {
    /// Sends a publish of the local application to the peers that subscribed over their links.
    pub(super) fn publish_to_peers(
        &mut self,
        now: Time,
        route: &Route,
        topic: &Topic,
        publish: &Publish,
    ) -> Vec<LinkId> {
        let mut links = Vec::new();
        for (session, policy) in &route.peers {
            if let Some(link) = self.direct_link(*session, route)
                && self.publish_to_peer(now, link, topic, publish, *policy)
            {
                links.push(link);
            }
        }
        links
    }

    /// Whether all who want a message of the local application got it over `links`. The router keeps
    /// what is QoS 1 or retained, and gets it in any case.
    pub(super) fn is_served(&mut self, publish: &Publish, topic: &Topic, links: &[LinkId]) -> bool {
        if publish.qos1 || publish.retain || links.is_empty() {
            return false;
        }
        let stream = self.realms.get(&publish.realm).and_then(|realm| realm.out.get(topic));
        let quiet = stream.map_or(0, |stream| stream.quiet);
        let peers = links.iter().filter_map(|link| Some(self.links.get(link)?.peer));
        let peers: BTreeSet<EndpointId> = peers.collect();
        if quiet == 0 || peers.len() < quiet as usize {
            return false;
        }
        for link in links {
            if let Some(link) = self.links.get_mut(link) {
                link.is_relied_on = true;
            }
        }
        true
    }

    /// The router says that so many get a topic elsewhere, and nobody else wants it.
    pub(super) fn on_quiet(&mut self, link: LinkId, tag: RealmTag, topic: &str, receivers: u32) {
        if self.upstream != Some(link) {
            return;
        }
        let Some(realm) = self.realms.get_mut(&tag) else { return };
        if let Some(stream) = realm.topic(topic.as_bytes()).and_then(|it| realm.out.get_mut(&it)) {
            stream.quiet = receivers;
        }
    }

    /// The link of a peer's subscription, unless another one to the same peer serves it.
    fn direct_link(&self, session: SessionId, route: &Route) -> Option<LinkId> {
        let session = self.sessions.get(&session)?;
        let link = session.link?;
        let used = self.peers.get(&session.peer).copied();
        let used_session = used.and_then(|used| self.links.get(&used)?.session);
        let is_served = route.peers.iter().any(|(other, _)| Some(*other) == used_session);
        (used == Some(link) || !is_served).then_some(link)
    }

    fn publish_to_peer(
        &mut self,
        now: Time,
        link_id: LinkId,
        topic: &Topic,
        publish: &Publish,
        policy: SlowPolicy,
    ) -> bool {
        let max = self.config.lane_queue_bytes_max;
        let lane = wire::lane_of(&publish.topic);
        let Some(link) = self.links.get_mut(&link_id).filter(|link| link.is_ready()) else {
            return false;
        };
        let waiting = link.lane_bytes(lane);
        // the router has it too and takes over
        let is_too_slow = waiting > max.saturating_mul(2)
            || (policy == SlowPolicy::Disconnect && waiting > max / 2);
        if is_too_slow {
            let reason = "does not keep up; the gateway's way stays";
            self.close_link(now, link_id, CloseCode::SlowConsumer, reason);
            return false;
        }
        if !publish.qos1 && policy == SlowPolicy::Block && waiting > max {
            self.count_dropped(link_id, publish.realm, u64::from(publish.count));
            return false;
        }
        link.published += u64::from(publish.count);
        let droppable = !publish.qos1 && policy == SlowPolicy::DropOldest;
        let (messages, publisher) = (publish.count, publish.publisher.into());
        let cargo = Cargo::AtMostOnce { messages, droppable, publisher };
        self.send_publish(now, link_id, topic, publish, None, cargo);
        let Some(link) = self.links.get_mut(&link_id) else { return false };
        if !droppable || link.lane_bytes(lane) <= max {
            return true;
        }
        let goal = max - max / 4;
        let keep = goal.saturating_sub(link.held_bytes);
        let of_lane =
            link.lanes.get_mut(usize::from(lane)).map_or(0, |queue| queue.drop_oldest(keep));
        let rest = link.lane_bytes(lane).saturating_sub(link.held_bytes);
        let dropped = of_lane + link.drop_held(goal.saturating_sub(rest));
        self.count_dropped(link_id, publish.realm, dropped);
        true
    }

    /// Whether links to peers have room for a message that must not be dropped.
    pub(super) fn peers_have_room(&self, route: &Route, lane: u8, is_qos1: bool) -> bool {
        let high = self.config.lane_queue_bytes_max / 2;
        route.peers.iter().all(|(session, policy)| {
            let waits = is_qos1 || *policy == SlowPolicy::Block;
            let link = self.direct_link(*session, route).and_then(|link| self.links.get(&link));
            !waits || link.is_none_or(|link| link.lane_bytes(lane) < high)
        })
    }
}

// --- subscriber --------------------------------------------------------------------------------

impl Node {
    /// What this side says of itself to a peer or router.
    pub(super) fn capabilities(&self) -> u64 {
        let is_leaf = self.config.role == Role::Leaf;
        let publishes = if self.config.peer_publishes { CAPABILITY_PEER_PUBLISH } else { 0 };
        let carries = if self.config.carries { CAPABILITY_CARRY } else { 0 };
        if is_leaf { publishes | carries } else { 0 }
    }

    /// A peer let us into a realm: it hears what we subscribe to there.
    pub(super) fn tell_peer_subscriptions(&mut self, now: Time, link_id: LinkId, tag: RealmTag) {
        let Some(realm) = self.realms.get(&tag) else { return };
        let subscriptions: Vec<SubscriptionId> = realm.locals.keys().copied().collect();
        for subscription in subscriptions {
            self.tell_peer_subscription(now, link_id, tag, subscription);
        }
    }

    fn tell_peer_subscription(
        &mut self,
        now: Time,
        link_id: LinkId,
        tag: RealmTag,
        subscription: SubscriptionId,
    ) {
        let takes_part = self.config.peer_publishes
            && self.links.get(&link_id).is_some_and(Link::carries_publishes);
        let local = self.realms.get(&tag).and_then(|realm| realm.locals.get(&subscription));
        let Some(local) = local.filter(|_| takes_part) else { return };
        let subscribe = Subscribe {
            realm: tag,
            subscription: subscription.0 as u32,
            pattern: local.pattern.as_str().to_owned(),
            policy: local.options.policy,
            resume: false,
            retained: false,
        };
        self.send_control(now, link_id, &Message::Subscribe(subscribe));
    }

    /// Links to peers that let us into a realm.
    fn peers_in(&self, tag: RealmTag) -> Vec<LinkId> {
        let mut links: Vec<LinkId> = self
            .links
            .iter()
            .filter(|(_, link)| {
                link.carries_publishes()
                    && link.peer_link.as_ref().is_some_and(|it| it.granted.contains(&tag))
            })
            .map(|(id, _)| *id)
            .collect();
        links.sort();
        links
    }

    pub(super) fn subscribe_at_peers(
        &mut self,
        now: Time,
        tag: RealmTag,
        subscription: SubscriptionId,
    ) {
        for link in self.peers_in(tag) {
            self.tell_peer_subscription(now, link, tag, subscription);
        }
    }

    pub(super) fn unsubscribe_at_peers(
        &mut self,
        now: Time,
        tag: RealmTag,
        subscription: SubscriptionId,
    ) {
        if !self.config.peer_publishes {
            return;
        }
        let message = Message::Unsubscribe { realm: tag, subscription: subscription.0 as u32 };
        for link in self.peers_in(tag) {
            self.send_control(now, link, &message);
        }
    }

    /// A batch came to a leaf for which there are two ways.
    pub(super) fn take_of_two_ways(
        &mut self,
        now: Time,
        source: Source,
        topic: &Topic,
        publish: Publish,
        from_peer: Option<LinkId>,
    ) {
        let (tag, key) = (publish.realm, stream_key(&publish, topic));
        if let Some(link) = from_peer
            && !self.note_inflow(now, link, tag, &key, publish.first)
        {
            return;
        }
        let max = self.config.lane_queue_bytes_max;
        let Some(realm) = self.realms.get_mut(&tag) else { return };
        let next = realm.next_of(&key);
        let Some(inflow) = realm.inflows.get_mut(&key) else { return };
        let last = publish.first.saturating_add(u64::from(publish.count)) - 1;
        match from_peer {
            Some(link) if inflow.link == Some(link) => {
                inflow.direct_to = inflow.direct_to.max(last)
            }
            Some(_) => {}
            None => inflow.router_to = inflow.router_to.max(last),
        }
        if inflow.waiting.is_empty() && inflow.is_due(next, &publish) {
            return self.take_of_inflow(now, source, topic, publish);
        }
        if inflow.waiting.is_empty() {
            inflow.since = now;
        }
        let is_more = |(_, known): &(Source, Publish)| known.count < publish.count;
        if inflow.waiting.get(&publish.first).is_none_or(is_more) {
            realm.inflow_bytes += cost(&publish);
            let old = inflow.waiting.insert(publish.first, (source, publish));
            realm.inflow_bytes -= old.map_or(0, |(_, old)| cost(&old));
        }
        let is_full = realm.inflow_bytes > max;
        self.timers.set_if_unset(Timer::Order, now + ORDER_WAIT);
        // the router resends what is QoS 1 without gaps; a peer can wait
        self.pump_inflow(now, tag, &key, is_full && from_peer.is_none());
        let bytes = self.realms.get(&tag).map_or(0, |realm| realm.inflow_bytes);
        if from_peer.is_some() && bytes > max {
            self.hold(source, PauseReason::Order(tag));
        }
    }

    /// Takes note that a stream comes over a link to its publisher, and tells the router; `false`:
    /// nobody wants it, or there are too many.
    fn note_inflow(
        &mut self,
        now: Time,
        link: LinkId,
        tag: RealmTag,
        key: &StreamKey,
        first: u64,
    ) -> bool {
        let (unix, is_used) = (self.unix(), self.peers.get(&key.publisher) == Some(&link));
        let Some(realm) = self.realms.get_mut(&tag) else { return false };
        let is_new = match realm.inflows.get(key) {
            Some(inflow) if inflow.link == Some(link) => return true,
            Some(inflow) if inflow.link.is_some() && !is_used => return true,
            Some(_) => false,
            None => true,
        };
        if is_new && realm.route(&key.topic, unix).locals.is_empty() {
            return false;
        }
        if is_new && realm.inflows.len() >= INFLOWS_MAX {
            self.stats.over_limit += 1;
            return false;
        }
        let id = self.next_prune;
        self.next_prune += 1;
        let inflow = realm.inflows.entry(key.clone()).or_insert_with(|| Inflow {
            id,
            link: None,
            from: first,
            direct_to: 0,
            router_to: 0,
            is_pruned: false,
            waiting: BTreeMap::new(),
            since: now,
        });
        // another link takes its place: begin anew, with the router at hand
        let was_linked = inflow.link.replace(link).is_some();
        self.prunes.remove(&inflow.id);
        (inflow.id, inflow.from, inflow.direct_to, inflow.is_pruned) = (id, first, 0, false);
        self.prunes.insert(id, (tag, key.clone()));
        if was_linked {
            self.send_unprune(now, tag, key);
        }
        self.send_prune(now, tag, key);
        true
    }

    /// The link to the router, if it let us into the realm.
    fn router_of(&self, tag: RealmTag) -> Option<LinkId> {
        self.upstream
            .filter(|link| self.links.get(link).is_some_and(|link| link.realms.contains(&tag)))
    }

    /// Tells the router that a stream comes elsewhere, and how far it came.
    fn send_prune(&mut self, now: Time, tag: RealmTag, key: &StreamKey) {
        let Some(router) = self.router_of(tag) else { return };
        let Some(realm) = self.realms.get(&tag) else { return };
        let Some(inflow) = realm.inflows.get(key).filter(|inflow| inflow.link.is_some()) else {
            return;
        };
        let prune = Prune {
            realm: tag,
            publisher: key.publisher,
            epoch: key.epoch,
            topic: key.topic.as_str().to_owned(),
            id: inflow.id,
            from: inflow.from,
            taken: realm.seen.peek(key).map_or(0, Seen::contiguous),
        };
        self.send_control(now, router, &Message::Prune(prune));
    }

    fn send_unprune(&mut self, now: Time, tag: RealmTag, key: &StreamKey) {
        let Some(router) = self.router_of(tag) else { return };
        let topic = key.topic.as_str().to_owned();
        let (publisher, epoch) = (key.publisher, key.epoch);
        self.send_control(now, router, &Message::Unprune { realm: tag, publisher, epoch, topic });
    }

    /// The router let us into a realm: what comes elsewhere, it need not send.
    pub(super) fn resume_prunes(&mut self, now: Time, tag: RealmTag) {
        let Some(realm) = self.realms.get_mut(&tag) else { return };
        let mut keys = Vec::new();
        for (key, inflow) in &mut realm.inflows {
            inflow.from = inflow.from.max(inflow.direct_to.saturating_add(1));
            inflow.since = now;
            keys.push(key.clone());
        }
        for key in keys {
            self.send_prune(now, tag, &key);
        }
    }

    /// The router is gone, and with it what it was told.
    pub(super) fn forget_prunes(&mut self) {
        for realm in self.realms.values_mut() {
            realm.inflows.values_mut().for_each(|inflow| inflow.is_pruned = false);
            realm.out.values_mut().for_each(|stream| stream.quiet = 0);
        }
    }

    /// The router sends no more of a stream; nothing before is under way.
    pub(super) fn on_pruned(&mut self, now: Time, link: LinkId, id: u64) {
        if self.upstream != Some(link) {
            return;
        }
        let Some((tag, key)) = self.prunes.get(&id).cloned() else { return };
        let inflow = self.realms.get_mut(&tag).and_then(|realm| realm.inflows.get_mut(&key));
        if let Some(inflow) = inflow {
            inflow.is_pruned = inflow.link.is_some();
            self.pump_inflow(now, tag, &key, false);
        }
    }

    /// Hands over a batch of a stream with two ways, and remembers to tell the router.
    fn take_of_inflow(&mut self, now: Time, source: Source, topic: &Topic, publish: Publish) {
        if publish.qos1 {
            self.inflows_dirty.insert((publish.realm, stream_key(&publish, topic)));
        }
        self.take_in_order(now, source, topic, publish);
    }

    /// Hands over what waits and is next, or follows what will not come. `is_forced`: all of it.
    fn pump_inflow(&mut self, now: Time, tag: RealmTag, key: &StreamKey, is_forced: bool) {
        loop {
            let Some(realm) = self.realms.get_mut(&tag) else { return };
            let next = realm.next_of(key);
            let Some(inflow) = realm.inflows.get_mut(key) else { return };
            let Some(first) = inflow.waiting.first_entry() else { break };
            let publish = &first.get().1;
            let is_next =
                publish.start || next.is_some_and(|next| publish.first <= next) || is_forced;
            if !is_next && publish.first.saturating_sub(1) > inflow.passed() {
                break;
            }
            let Some((_, (source, publish))) = inflow.waiting.pop_first() else { break };
            inflow.since = now;
            realm.inflow_bytes = realm.inflow_bytes.saturating_sub(cost(&publish));
            self.take_of_inflow(now, source, &key.topic, publish);
        }
        let low = self.config.lane_queue_bytes_max / 2;
        let Some(realm) = self.realms.get_mut(&tag) else { return };
        let is_over = |inflow: &Inflow| inflow.link.is_none() && inflow.waiting.is_empty();
        if realm.inflows.get(key).is_some_and(is_over)
            && let Some(inflow) = realm.inflows.remove(key)
        {
            self.prunes.remove(&inflow.id);
        }
        if realm.inflow_bytes <= low {
            self.release(now, PauseReason::Order(tag));
        }
    }

    /// A link to a peer is gone: what came over it comes by the router again.
    pub(super) fn lose_inflows(&mut self, now: Time, link: LinkId) {
        let mut lost = Vec::new();
        for (tag, realm) in &mut self.realms {
            for (key, inflow) in &mut realm.inflows {
                if inflow.link == Some(link) {
                    (inflow.link, inflow.is_pruned) = (None, false);
                    lost.push((*tag, key.clone()));
                }
            }
        }
        for (tag, key) in lost {
            self.send_unprune(now, tag, &key);
            self.pump_inflow(now, tag, &key, false);
        }
    }

    /// A subscription ended: streams that nobody wants any more are forgotten.
    pub(super) fn end_inflows(&mut self, now: Time, tag: RealmTag) {
        let unix = self.unix();
        let Some(realm) = self.realms.get_mut(&tag) else { return };
        let keys: Vec<StreamKey> = realm.inflows.keys().cloned().collect();
        for key in keys {
            let Some(realm) = self.realms.get_mut(&tag) else { return };
            if !realm.route(&key.topic, unix).locals.is_empty() {
                continue;
            }
            if let Some(inflow) = realm.inflows.remove(&key) {
                let bytes: usize = inflow.waiting.values().map(|(_, it)| cost(it)).sum();
                realm.inflow_bytes = realm.inflow_bytes.saturating_sub(bytes);
                self.prunes.remove(&inflow.id);
                self.send_unprune(now, tag, &key);
            }
        }
        if self.realms.get(&tag).is_some_and(|realm| realm.inflow_bytes == 0) {
            self.release(now, PauseReason::Order(tag));
        }
    }

    /// Something has waited long for what the router could bring.
    pub(super) fn on_order_due(&mut self, now: Time) {
        let mut late = Vec::new();
        let mut waits = false;
        let tags: Vec<RealmTag> = self.realms.keys().copied().collect();
        for tag in tags {
            let router = self.router_of(tag).and_then(|link| self.links.get(&link));
            let is_read = |lane: u8| {
                router
                    .and_then(|link| link.lanes_in.get(usize::from(lane)))
                    .is_some_and(|lane| lane.pauses.is_empty())
            };
            let Some(realm) = self.realms.get(&tag) else { continue };
            for (key, inflow) in &realm.inflows {
                if inflow.waiting.is_empty() {
                    continue;
                }
                let lane = wire::lane_of(key.topic.as_str().as_bytes());
                let is_late = now - inflow.since >= ORDER_WAIT && is_read(lane);
                waits |= !is_late;
                if is_late {
                    late.push((tag, key.clone()));
                }
            }
        }
        for (tag, key) in late {
            self.pump_inflow(now, tag, &key, true);
        }
        if waits {
            self.timers.set(Timer::Order, now + ORDER_WAIT);
        }
    }

    /// Tells the router how far streams came that do not come by it.
    pub(super) fn flush_inflows(&mut self) {
        let now = self.now;
        for (tag, key) in std::mem::take(&mut self.inflows_dirty) {
            self.send_prune(now, tag, &key);
        }
    }
}

// --- router ------------------------------------------------------------------------------------

impl Node {
    /// A subscriber gets a stream elsewhere, or has so much of it.
    pub(super) fn on_prune(&mut self, now: Time, link_id: LinkId, prune: Prune) {
        let tag = prune.realm;
        let Some((session, key)) =
            self.pruning(link_id, tag, prune.publisher, prune.epoch, &prune.topic)
        else {
            return;
        };
        let Some(link) = self.links.get(&link_id) else { return };
        let known = (tag, key);
        if !link.pruned.contains_key(&known) {
            let is_full = link.pruned.len() >= PRUNES_PER_LINK_MAX;
            // whoever asks for too much gets everything from here
            if is_full || self.charge_change(now, link_id).is_err() {
                self.stats.over_limit += u64::from(is_full);
                return;
            }
        }
        let Some(link) = self.links.get_mut(&link_id) else { return };
        let new = || Pruned { id: 0, from: 0, taken: 0, is_said: false, owed: VecDeque::new() };
        let pruned = link.pruned.entry(known).or_insert_with(new);
        if pruned.id != prune.id || pruned.from != prune.from {
            (pruned.id, pruned.from, pruned.is_said) = (prune.id, prune.from, false);
        }
        pruned.taken = pruned.taken.max(prune.taken);
        let is_taken = |(_, last): &mut (u64, u64)| *last <= prune.taken;
        let mut taken = Vec::new();
        while let Some((entry, _)) = pruned.owed.pop_front_if(is_taken) {
            taken.push(entry);
        }
        if !taken.is_empty() {
            link.pruned_progress = now;
            link.pruned_owed -= taken.len();
        }
        for entry in taken {
            let session = self.sessions.get_mut(&session);
            if session.is_some_and(|session| session.undelivered.remove(&(tag, entry))) {
                self.settle(now, tag, entry);
            }
        }
    }

    /// It does not any more.
    pub(super) fn on_unprune(
        &mut self,
        now: Time,
        link_id: LinkId,
        tag: RealmTag,
        stream: (EndpointId, u64, &str),
    ) {
        let (publisher, epoch, topic) = stream;
        let Some((_, key)) = self.pruning(link_id, tag, publisher, epoch, topic) else { return };
        self.unprune(now, link_id, (tag, key));
    }

    /// Whose stream a peer speaks of, if it may.
    fn pruning(
        &self,
        link_id: LinkId,
        tag: RealmTag,
        publisher: EndpointId,
        epoch: u64,
        topic: &str,
    ) -> Option<(SessionId, StreamKey)> {
        let link = self.links.get(&link_id)?;
        let is_admitted = self.config.role == Role::Router && link.realms.contains(&tag);
        let realm = self.realms.get(&tag).filter(|_| is_admitted)?;
        let topic = realm.topic(topic.as_bytes())?;
        Some((link.session?, StreamKey { publisher, epoch, topic }))
    }

    /// Sends what a peer has not said to have of a stream, and goes on sending it.
    fn unprune(&mut self, now: Time, link_id: LinkId, stream: (RealmTag, StreamKey)) {
        let unix = self.unix();
        let Some(link) = self.links.get_mut(&link_id) else { return };
        let Some(session_id) = link.session else { return };
        let Some(pruned) = link.pruned.remove(&stream) else { return };
        link.pruned_owed -= pruned.owed.len();
        let tag = stream.0;
        self.wake_topic(now, tag, &stream.1.topic);
        for (entry, _) in pruned.owed {
            let session = self.sessions.get_mut(&session_id);
            if !session.is_some_and(|session| session.undelivered.remove(&(tag, entry))) {
                continue;
            }
            let Some(realm) = self.realms.get(&tag) else { return };
            let Some(held) = realm.ring.entry(entry) else { continue };
            let (topic, publish) = (held.topic.clone(), held.publish.clone());
            let receive = Request::Use(Verb::Subscribe, topic.as_str());
            if realm.check(session_id, unix, receive).is_err() {
                self.give_up(now, tag, entry);
                continue;
            }
            let cargo = Cargo::AtLeastOnce { realm: tag, entry };
            self.send_publish(now, link_id, &topic, &publish, None, cargo);
        }
    }

    /// Everybody who wants a topic from a publisher gets it elsewhere: it hears so once.
    pub(super) fn tell_quiet(
        &mut self,
        now: Time,
        publisher: LinkId,
        tag: RealmTag,
        topic: &Topic,
        receivers: u32,
    ) {
        let Some(realm) = self.realms.get_mut(&tag) else { return };
        let key = (topic.clone(), publisher);
        let known = realm.quiets.get(&key).copied();
        if known == Some(receivers) || (known.is_none() && realm.quiets.len() >= QUIETS_MAX) {
            return;
        }
        realm.quiets.insert(key, receivers);
        let topic = topic.as_str().to_owned();
        self.send_control(now, publisher, &Message::Quiet { realm: tag, topic, receivers });
    }

    /// Publishers must send topics again.
    pub(super) fn wake_matching(
        &mut self,
        now: Time,
        tag: RealmTag,
        matches: impl Fn(&Topic) -> bool,
    ) {
        let Some(realm) = self.realms.get_mut(&tag) else { return };
        let mut woken = Vec::new();
        realm.quiets.retain(|(topic, publisher), _| {
            let is_over = matches(topic);
            if is_over {
                woken.push((*publisher, topic.as_str().to_owned()));
            }
            !is_over
        });
        for (publisher, topic) in woken {
            let again = Message::Quiet { realm: tag, topic, receivers: 0 };
            self.send_control(now, publisher, &again);
        }
    }

    pub(super) fn wake_topic(&mut self, now: Time, tag: RealmTag, topic: &Topic) {
        self.wake_matching(now, tag, |other| other == topic);
    }

    /// A peer does not say that it has what it gets elsewhere: it gets it from here.
    pub(super) fn unprune_owed(&mut self, now: Time, link_id: LinkId) {
        let Some(link) = self.links.get(&link_id) else { return };
        let owed: Vec<_> = link
            .pruned
            .iter()
            .filter(|(_, pruned)| !pruned.owed.is_empty())
            .map(|(stream, _)| stream.clone())
            .collect();
        for stream in owed {
            self.unprune(now, link_id, stream);
        }
    }

    /// Whether a subscriber gets a batch elsewhere. What is QoS 1 is held for it all the same.
    pub(super) fn is_pruned(
        &mut self,
        now: Time,
        link_id: LinkId,
        key: &StreamKey,
        publish: &Publish,
        entry: Option<u64>,
    ) -> bool {
        let tag = publish.realm;
        let Some(link) = self.links.get_mut(&link_id) else { return false };
        if link.pruned.is_empty() || link.stage == super::Stage::Closing {
            return false;
        }
        let Some(session) = link.session else { return false };
        let Some(pruned) = link.pruned.get_mut(&(tag, key.clone())) else { return false };
        if publish.first < pruned.from {
            return false;
        }
        if !pruned.is_said && link.held.contains_key(&(tag, key.topic.clone())) {
            // the word must not overtake a large message
            return false;
        }
        let said = (!std::mem::replace(&mut pruned.is_said, true)).then_some(pruned.id);
        let last = publish.first + u64::from(publish.count) - 1;
        let is_taken = last <= pruned.taken;
        if let Some(entry) = entry
            && !is_taken
            && let Some(session) = self.sessions.get_mut(&session)
        {
            pruned.owed.push_back((entry, last));
            session.undelivered.insert((tag, entry));
            if link.pruned_owed == 0 {
                link.pruned_progress = now;
            }
            link.pruned_owed += 1;
            self.timers.set_if_unset(Timer::Stall(link_id), now + self.config.stall_timeout);
        }
        if let Some(entry) = entry.filter(|_| is_taken) {
            self.settle(now, tag, entry);
        }
        if let Some(id) = said {
            let lane = wire::lane_of(&publish.topic);
            let frame = wire::encode(&Message::Pruned { id });
            self.push_plain(now, link_id, Channel::Lane(lane), frame);
        }
        true
    }
}
