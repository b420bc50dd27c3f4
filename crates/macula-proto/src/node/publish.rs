//! Messages on their way: from the local application, through a router, and their
//! acknowledgements.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::guard::refusal;
use super::link::{BulkInFlight, Cargo, Held, PauseReason, Queued};
use super::quota::SHORT;
use super::realm::{Source, Unconfirmed};
use super::session::Session;
use super::subscribe::{last_of, pieces, stream_key};
use super::timers::Timer;
use super::{Event, Node, Qos, Role};
use crate::auth::{Request, Verb};
use crate::id::{EndpointId, LinkId, RealmId, RealmTag};
use crate::limits;
use crate::pubsub::retained::RetainedRoom;
use crate::pubsub::ring::Entry;
use crate::pubsub::seen::StreamKey;
use crate::pubsub::{Pattern, Topic};
use crate::time::Time;
use crate::wire::message::{CloseCode, Message, Publish, PublishAck, RefusalCode, SlowPolicy};
use crate::wire::{self, Channel, Frame};

impl Node {
    /// Publishes a batch of the local application.
    #[expect(clippy::too_many_arguments, reason = "the fields of one command")]
    pub(super) fn publish(
        &mut self,
        now: Time,
        realm_id: &RealmId,
        topic: &Topic,
        qos: Qos,
        retain: bool,
        count: u32,
        body: Bytes,
    ) {
        let (id, epoch, role, upstream) =
            (self.id, self.config.epoch, self.config.role, self.upstream);
        let tag = realm_id.tag();
        let (denied, unix) = (self.denied(realm_id), self.unix());
        let refusal = if self.draining {
            Some((RefusalCode::Draining, "this node is closing"))
        } else if self.realm_mut(realm_id).is_none() {
            Some((RefusalCode::UnknownRealm, "this node did not join the realm"))
        } else if let Some(reason) = &denied {
            Some((RefusalCode::Denied, reason.as_str()))
        } else if count == 0 || (count == 1 && body.len() > limits::MESSAGE_BYTES_MAX) {
            Some((RefusalCode::TooLarge, "a message may have 8 MiB; larger things need a stream"))
        } else {
            None
        };
        if let Some((code, reason)) = refusal {
            self.stats.refused += u64::from(count);
            return self.events.push_back(Event::PublishRefused {
                realm: *realm_id,
                topic: topic.clone(),
                first: 0,
                count,
                code,
                reason: reason.to_owned(),
            });
        }
        self.stats.messages_in += u64::from(count);
        self.stats.message_bytes_in += body.len() as u64;
        let Some(realm) = self.realms.get_mut(&tag) else { return };
        let (stream, start) = realm.out_stream(topic);
        let first = stream.last + 1;
        stream.last += u64::from(count);
        let publish = Publish {
            realm: tag,
            publisher: id,
            epoch,
            first,
            count,
            ttl: limits::TTL_HOPS,
            qos1: qos == Qos::AtLeastOnce,
            retain,
            start,
            topic: Bytes::copy_from_slice(topic.as_str().as_bytes()),
            body,
        };
        match role {
            Role::Router => self.route_publish(now, Source::Local, topic, publish),
            Role::Leaf => {
                if retain {
                    stream.retained = Some(last_of(&publish));
                }
                if publish.qos1 {
                    let held = Unconfirmed { publish: publish.clone() };
                    let bytes = held.bytes();
                    stream.unconfirmed.push_back(held);
                    realm.unconfirmed_bytes += bytes;
                }
                let route = realm.route(topic, unix);
                for subscription in &route.locals {
                    self.hand_over(now, *subscription, topic, &publish, None, false);
                }
                let links = self.publish_to_peers(now, &route, topic, &publish);
                if self.is_served(&publish, topic, &links) {
                    return;
                }
                let admitted = upstream
                    .and_then(|link| self.links.get(&link))
                    .is_some_and(|link| link.realms.contains(&tag));
                if let (Some(link), true) = (upstream, admitted) {
                    self.tell_expectation(now, link, tag, topic, qos);
                    // never dropped here: publish_room makes the application wait instead
                    let publisher = id.into();
                    let cargo = Cargo::AtMostOnce { messages: count, droppable: false, publisher };
                    self.send_publish(now, link, topic, &publish, None, cargo);
                }
            }
        }
    }

    /// Tells a router that replaces another how many receivers the topic had, once.
    fn tell_expectation(
        &mut self,
        now: Time,
        link: LinkId,
        tag: RealmTag,
        topic: &Topic,
        qos: Qos,
    ) {
        let stream = self.realms.get_mut(&tag).and_then(|realm| realm.out.get_mut(topic));
        let receivers =
            stream.filter(|_| qos == Qos::AtLeastOnce).and_then(|stream| stream.take_expectation());
        if let Some(receivers) = receivers {
            let topic = topic.as_str().to_owned();
            self.send_control(now, link, &Message::Expect { realm: tag, topic, receivers });
        }
    }

    /// A batch came over a link.
    pub(super) fn on_publish(&mut self, now: Time, source: Source, publish: Publish) {
        let Some(link_id) = source.link() else { return };
        let Some(link) = self.links.get_mut(&link_id) else { return };
        let from_router = self.config.role == Role::Leaf && link.is_upstream();
        let peer = link.peer;
        // A router sends what it was asked for. Its lanes may overtake its control stream, and with
        // it the answer that lets us into the realm again.
        let admitted = from_router || link.realms.contains(&publish.realm);
        if let Source::Lane(_, lane) = source
            && publish.qos1
            && from_router
        {
            if let Some(lane_in) = link.lanes_in.get_mut(usize::from(lane)) {
                lane_in.taken += 1;
            }
            link.acks_dirty = true;
            self.acks_dirty.insert(link_id);
        }
        if !from_router && publish.publisher != peer {
            return self.protocol_error(now, link_id, "published in another endpoint's name");
        }
        let topic = admitted
            .then(|| self.realms.get(&publish.realm))
            .flatten()
            .map(|realm| realm.topic(&publish.topic));
        let refusal = match &topic {
            None => Some((RefusalCode::UnknownRealm, "not admitted to the realm".to_owned())),
            Some(None) => Some((RefusalCode::BadName, "the topic name is malformed".to_owned())),
            Some(Some(_)) if self.draining => {
                Some((RefusalCode::Draining, "going down".to_owned()))
            }
            Some(Some(_)) if from_router => None,
            Some(Some(topic)) => self.check_publish(link_id, topic, &publish),
        };
        if let Some((code, reason)) = refusal {
            self.refuse_publish(now, link_id, &publish, code, &reason);
        } else if let Some(Some(topic)) = topic {
            self.stats.messages_in += u64::from(publish.count);
            self.stats.message_bytes_in += publish.body.len() as u64;
            if let Some(link) = self.links.get_mut(&link_id).filter(|it| it.peer_link.is_some()) {
                link.published_by_peer += u64::from(publish.count);
            }
            match self.config.role {
                Role::Router => self.route_publish(now, source, &topic, publish),
                Role::Leaf => self.take_publish(now, source, &topic, publish),
            }
        }
        if let Source::Bulk(link, id) = source {
            if self.links.get(&link).is_some_and(|link| link.is_slowed) {
                self.hold(source, PauseReason::Rate(link));
            }
            // what waits for room is acknowledged when there is some
            let all = Source::Bulk(link, 0)..=Source::Bulk(link, u64::MAX);
            let waiting: BTreeSet<Source> = self
                .waiters
                .values()
                .flat_map(|waiting| waiting.range(all.clone()))
                .copied()
                .collect();
            if !waiting.contains(&source) {
                self.send_control(now, link, &Message::BulkAck { id });
            } else if waiting.len() > limits::BULK_PER_LINK_MAX {
                let reason = "more large messages without acknowledgement than may be";
                self.protocol_error(now, link, reason);
            }
        }
    }

    /// Why a peer may not publish this, if so. A retained message stays behind, so it takes two
    /// rights.
    fn check_publish(
        &mut self,
        link: LinkId,
        topic: &Topic,
        publish: &Publish,
    ) -> Option<(RefusalCode, String)> {
        let mut check = |verb| self.check(link, publish.realm, Request::Use(verb, topic.as_str()));
        let verdict = check(Verb::Publish);
        let verdict =
            verdict.and_then(|()| if publish.retain { check(Verb::Store) } else { Ok(()) });
        verdict.err().map(refusal)
    }

    fn refuse_publish(
        &mut self,
        now: Time,
        link: LinkId,
        publish: &Publish,
        code: RefusalCode,
        reason: &str,
    ) {
        self.stats.refused += u64::from(publish.count);
        let refused = Message::PublishRefused {
            realm: publish.realm,
            topic: String::from_utf8_lossy(&publish.topic).into_owned(),
            first: publish.first,
            count: publish.count,
            code,
            reason: reason.to_owned(),
        };
        self.send_control(now, link, &refused);
    }

    /// As [`Node::refuse_publish`], also for the local application.
    fn refuse(
        &mut self,
        now: Time,
        source: Source,
        topic: &Topic,
        publish: &Publish,
        code: RefusalCode,
        reason: &str,
    ) {
        if let Some(link) = source.link() {
            return self.refuse_publish(now, link, publish, code, reason);
        }
        self.stats.refused += u64::from(publish.count);
        let Some(realm) = self.realms.get(&publish.realm) else { return };
        self.events.push_back(Event::PublishRefused {
            realm: realm.id,
            topic: topic.clone(),
            first: publish.first,
            count: publish.count,
            code,
            reason: reason.to_owned(),
        });
    }

    /// Distributes a batch to everybody who subscribed: the heart of a router.
    fn route_publish(&mut self, now: Time, source: Source, topic: &Topic, mut publish: Publish) {
        let tag = publish.realm;
        if publish.count == 1 && publish.body.len() > self.config.message_bytes_max {
            let reason = format!("a message may have {} bytes here", self.config.message_bytes_max);
            return self.refuse(now, source, topic, &publish, RefusalCode::TooLarge, &reason);
        }
        if self.is_short(now) {
            self.stats.over_limit += 1;
            return self.refuse(now, source, topic, &publish, RefusalCode::Limit, SHORT);
        }
        self.charge_realm(now, source, tag, publish.body.len());
        let Some(realm) = self.realms.get_mut(&tag) else { return };
        let key = stream_key(&publish, topic);
        if publish.qos1 && realm.ring.bytes() > self.config.ring_bytes_max.saturating_mul(2) {
            // the pause did not reach the publisher in time; nothing was promised yet
            let reason = "the realm's ring is full of messages that subscribers did not take";
            return self.refuse(now, source, topic, &publish, RefusalCode::Limit, reason);
        }
        let room = RetainedRoom {
            bytes_max: self.config.retained_bytes_max,
            bytes_per_author_max: self.config.retained_bytes_per_peer_max,
        };
        if publish.retain
            && let Err(full) = realm.retained.fits(topic, &publish, room)
        {
            self.stats.over_limit += 1;
            let reason = full.to_string();
            return self.refuse(now, source, topic, &publish, RefusalCode::Limit, &reason);
        }
        if publish.qos1 && realm.ack_stream(&key, &self.config).is_none() {
            self.stats.over_limit += 1;
            let reason = "as many streams of messages with QoS 1 are under way as may be";
            return self.refuse(now, source, topic, &publish, RefusalCode::Limit, reason);
        }
        if publish.qos1 {
            self.timers.set_if_unset(Timer::Ring(tag), now + limits::RING_AGE_MAX);
        }
        let accepted = realm.seen.accept(&key, publish.first, publish.count, publish.start);
        let new = accepted.new.messages(publish.count);
        self.stats.duplicates += u64::from(publish.count - new);
        let qos1 = publish.qos1;
        if qos1 {
            let last = publish.first + u64::from(publish.count) - 1;
            let Some(stream) = realm.ack_stream(&key, &self.config) else { return };
            stream.link = source.link();
            stream.accepted = stream.accepted.max(last);
            realm.dirty.insert(key.clone());
            self.dirty_realms.insert(tag);
        }
        if publish.ttl == 0 {
            return;
        }
        publish.ttl -= 1;
        for piece in pieces(publish, &accepted.new) {
            self.distribute(now, source, topic, &key, piece);
        }
        if qos1 {
            self.advance_stream(tag, &key);
            self.bound_ring(now, source, tag);
        }
    }

    fn distribute(
        &mut self,
        now: Time,
        source: Source,
        topic: &Topic,
        key: &StreamKey,
        publish: Publish,
    ) {
        let (tag, unix) = (publish.realm, self.unix());
        let Some(realm) = self.realms.get_mut(&tag) else { return };
        if publish.retain {
            let kept = last_of(&publish);
            // there is room: that was checked before anything was promised
            realm.retained.set(topic, kept);
        }
        let route = realm.route(topic, unix);
        let own =
            source.link().and_then(|link| self.links.get(&link)).and_then(|link| link.session);
        let receivers = route.peers.iter().filter(|(session, _)| Some(*session) != own).count();
        let mut entry = None;
        if publish.qos1 {
            let pending = receivers as u32;
            let id = realm.ring.insert(Entry {
                publish: publish.clone(),
                topic: topic.clone(),
                stream: key.clone(),
                at: now,
                pending,
            });
            entry = Some(id);
            if let Some(stream) = realm.acks.get_mut(key) {
                stream.outstanding.push_back((id, publish.first + u64::from(publish.count) - 1));
                stream.receivers = pending + route.locals.len() as u32;
            }
        }
        let frame = (receivers > 0 && publish.body.len() <= limits::LANE_MESSAGE_BYTES_MAX)
            .then(|| wire::encode(&Message::Publish(publish.clone())));
        let mut pruned = 0;
        for (session_id, policy) in &route.peers {
            if Some(*session_id) == own {
                continue;
            }
            let Some(session) = self.sessions.get_mut(session_id) else { continue };
            let Some(link) = session.link else {
                if let Some(entry) = entry {
                    session.undelivered.insert((tag, entry));
                }
                continue;
            };
            if self.is_pruned(now, link, key, &publish, entry) {
                pruned += 1;
                continue;
            }
            self.forward(now, source, link, topic, &publish, frame.as_ref(), entry, *policy);
        }
        let is_quiet = pruned == receivers && route.locals.is_empty() && !route.may_grow;
        if let Some(publisher) = source.link().filter(|_| is_quiet && pruned > 0) {
            self.tell_quiet(now, publisher, tag, topic, pruned as u32);
        }
        for subscription in &route.locals {
            self.hand_over(now, *subscription, topic, &publish, Some(source), false);
        }
    }

    /// Sends a batch on to one subscriber and deals with it being slow.
    #[expect(clippy::too_many_arguments, reason = "one batch, where it comes from and goes to")]
    fn forward(
        &mut self,
        now: Time,
        source: Source,
        link_id: LinkId,
        topic: &Topic,
        publish: &Publish,
        frame: Option<&Frame>,
        entry: Option<u64>,
        policy: SlowPolicy,
    ) {
        let lane = wire::lane_of(&publish.topic);
        let max = self.config.lane_queue_bytes_max;
        let waiting = self.links.get(&link_id).map_or(0, |link| link.lane_bytes(lane));
        if entry.is_none() && policy == SlowPolicy::Block && waiting > max {
            // its publishers were told to wait; what still comes cannot be kept
            return self.count_dropped(link_id, publish.realm, u64::from(publish.count));
        }
        let cargo = match entry {
            Some(entry) => Cargo::AtLeastOnce { realm: publish.realm, entry },
            None => Cargo::AtMostOnce {
                messages: publish.count,
                droppable: policy == SlowPolicy::DropOldest,
                publisher: publish.publisher.into(),
            },
        };
        self.stats.messages_out += u64::from(publish.count);
        self.send_publish(now, link_id, topic, publish, frame, cargo);
        let Some(link) = self.links.get_mut(&link_id) else { return };
        let waiting = link.lane_bytes(lane);
        if waiting <= max / 2 {
            return;
        }
        match (entry, policy) {
            (None, SlowPolicy::DropOldest) if waiting > max => {
                let goal = max - max / 4;
                let keep = goal.saturating_sub(link.held_bytes);
                let of_lane = link
                    .lanes
                    .get_mut(usize::from(lane))
                    .map_or(0, |queue| queue.drop_oldest(keep));
                let rest = link.lane_bytes(lane).saturating_sub(link.held_bytes);
                let dropped = of_lane + link.drop_held(goal.saturating_sub(rest));
                self.count_dropped(link_id, publish.realm, dropped);
            }
            (None, SlowPolicy::DropOldest) => {}
            (_, SlowPolicy::Disconnect) => {
                self.stats.stalled_links += 1;
                let reason = "does not keep up and asked to be disconnected then";
                self.close_link(now, link_id, CloseCode::SlowConsumer, reason);
            }
            (_, SlowPolicy::Block | SlowPolicy::DropOldest) => {
                self.hold(source, PauseReason::Target(link_id));
            }
        }
    }

    pub(super) fn count_dropped(&mut self, link_id: LinkId, realm: RealmTag, messages: u64) {
        if messages == 0 {
            return;
        }
        self.stats.dropped_slow += messages;
        if let Some(link) = self.links.get_mut(&link_id) {
            *link.dropped.entry(realm).or_default() += messages;
            link.dropped_unsaid = true;
            self.acks_dirty.insert(link_id);
        }
    }

    /// Queues a batch for a link: on its topic's lane, or on a stream of its own when it is large.
    /// Behind a large message, everything on the same topic waits until that has arrived.
    pub(super) fn send_publish(
        &mut self,
        now: Time,
        link_id: LinkId,
        topic: &Topic,
        publish: &Publish,
        frame: Option<&Frame>,
        cargo: Cargo,
    ) {
        let lane = wire::lane_of(&publish.topic);
        let Some(link) = self.links.get_mut(&link_id) else { return };
        let is_waited_for = !matches!(cargo, Cargo::AtMostOnce { droppable: true, .. });
        let key = (publish.realm, topic.clone());
        let is_large = publish.body.len() > limits::LANE_MESSAGE_BYTES_MAX;
        // a topic is in `held` as long as a large message of it is prepared or under way
        let is_held = link.held.contains_key(&key);
        if is_large || is_held {
            if link.bulk.is_empty() && link.held.is_empty() {
                link.bulk_progress = now;
            }
            let held = Held { publish: publish.clone(), cargo };
            link.held_bytes += held.bytes();
            link.held.entry(key.clone()).or_default().push_back(held);
            if !is_held {
                self.prepare_bulk(now, link_id, key);
            }
        } else {
            let frame = match frame {
                Some(frame) => frame.clone(),
                None => wire::encode(&Message::Publish(publish.clone())),
            };
            self.push(now, link_id, Channel::Lane(lane), Queued { frame, cargo });
        }
        // a router may well let a leaf wait, but a peer that makes others wait must move
        let has_others = self.config.role == Role::Router
            || self.links.get(&link_id).is_some_and(|link| link.peer_link.is_some());
        if is_waited_for && has_others {
            self.timers.set_if_unset(Timer::Stall(link_id), now + self.config.stall_timeout);
        }
    }

    /// A large message is next on its topic. Its stream must not overtake what is still on the
    /// topic's lane, so the peer is asked first whether it has that.
    fn prepare_bulk(&mut self, now: Time, link_id: LinkId, key: (RealmTag, Topic)) {
        let sync = self.next_sync;
        let Some(link) = self.links.get_mut(&link_id) else { return };
        let lane = wire::lane_of(key.1.as_str().as_bytes());
        let Some(queue) = link.lanes.get(usize::from(lane)) else { return };
        if queue.published == queue.synced {
            link.bulk_waiting.push_back(key);
            return self.start_bulk(now, link_id);
        }
        self.next_sync += 1;
        link.bulk_syncs.insert(sync, (key, queue.published));
        let frame = wire::encode(&Message::Sync { id: sync });
        self.push_plain(now, link_id, Channel::Lane(lane), frame);
    }

    /// Gives large messages streams of their own, as many as may be open.
    fn start_bulk(&mut self, now: Time, link_id: LinkId) {
        let Some(link) = self.links.get_mut(&link_id) else { return };
        while link.bulk.len() < limits::BULK_PER_LINK_MAX {
            let Some(key) = link.bulk_waiting.pop_front() else { return };
            let waiting = link.held.get_mut(&key);
            let is_large =
                |held: &mut Held| held.publish.body.len() > limits::LANE_MESSAGE_BYTES_MAX;
            let Some(held) = waiting.and_then(|waiting| waiting.pop_front_if(is_large)) else {
                // it was dropped meanwhile
                self.release_held(now, link_id, key);
                return self.start_bulk(now, link_id);
            };
            // the topic stays in `held`, so that what follows waits for the acknowledgement
            let id = link.next_bulk;
            link.next_bulk += 1;
            let bytes = held.bytes();
            let frame = wire::encode(&Message::BulkPublish { id, publish: held.publish });
            link.bulk.insert(id, BulkInFlight { topic: key, cargo: held.cargo, bytes });
            link.bulk_out.push(now, Queued { frame, cargo: Cargo::Plain });
            link.bulk_out.pump(link_id, Channel::Bulk, &mut self.transmits);
        }
    }

    /// A large message has arrived: what it held back goes on.
    pub(super) fn on_bulk_ack(&mut self, now: Time, link_id: LinkId, id: u64) {
        let Some(link) = self.links.get_mut(&link_id) else { return };
        let Some(bulk) = link.bulk.remove(&id) else {
            return self.protocol_error(now, link_id, "acknowledged a large message never sent");
        };
        link.bulk_progress = now;
        link.held_bytes = link.held_bytes.saturating_sub(bulk.bytes);
        self.release_held(now, link_id, bulk.topic);
        if let Cargo::AtLeastOnce { realm, entry } = bulk.cargo {
            self.settle(now, realm, entry);
        }
        self.start_bulk(now, link_id);
        self.on_lane_drained(now, link_id);
        self.check_flushes(link_id);
    }

    /// Nothing large of a topic is under way: what it held back goes on, up to the next large one.
    fn release_held(&mut self, now: Time, link_id: LinkId, key: (RealmTag, Topic)) {
        let Some(link) = self.links.get_mut(&link_id) else { return };
        let Some(waiting) = link.held.get_mut(&key) else { return };
        let is_small = |held: &mut Held| held.publish.body.len() <= limits::LANE_MESSAGE_BYTES_MAX;
        let ready: Vec<Held> = std::iter::from_fn(|| waiting.pop_front_if(is_small)).collect();
        let has_large = !waiting.is_empty();
        if !has_large {
            link.held.remove(&key);
        }
        let bytes: usize = ready.iter().map(Held::bytes).sum();
        link.held_bytes = link.held_bytes.saturating_sub(bytes);
        let lane = wire::lane_of(key.1.as_str().as_bytes());
        for held in ready {
            let frame = wire::encode(&Message::Publish(held.publish));
            self.push(now, link_id, Channel::Lane(lane), Queued { frame, cargo: held.cargo });
        }
        if has_large {
            self.prepare_bulk(now, link_id, key);
        }
    }

    /// A subscriber has taken so many QoS 1 batches of a lane.
    pub(super) fn on_deliver_ack(&mut self, now: Time, link_id: LinkId, lane: u8, frames: u64) {
        let Some(link) = self.links.get_mut(&link_id) else { return };
        let Some(queue) = link.lanes.get_mut(usize::from(lane)) else { return };
        let new = frames.saturating_sub(queue.acked);
        if new > queue.unacked.len() as u64 {
            return self.protocol_error(now, link_id, "acknowledged messages never sent");
        }
        queue.acked += new;
        queue.progress = now;
        let settled: Vec<_> = queue.unacked.drain(..new as usize).collect();
        for (realm, entry) in settled {
            self.settle(now, realm, entry);
        }
    }

    /// One subscriber will not get a ring entry.
    pub(super) fn give_up(&mut self, now: Time, tag: RealmTag, entry: u64) {
        let held = self.realms.get(&tag).and_then(|realm| realm.ring.entry(entry));
        self.stats.abandoned += held.map_or(0, |entry| u64::from(entry.publish.count));
        self.settle(now, tag, entry);
    }

    /// One subscriber has a ring entry, or will never have it.
    pub(super) fn settle(&mut self, now: Time, tag: RealmTag, entry: u64) {
        let Some(realm) = self.realms.get_mut(&tag) else { return };
        let Some(key) = realm.ring.acknowledge(entry) else { return };
        self.advance_stream(tag, &key);
        self.release_ring(now, tag);
    }

    /// Works out how far a stream is delivered, and remembers to say so.
    fn advance_stream(&mut self, tag: RealmTag, key: &StreamKey) {
        let (now, unix) = (self.now, self.unix());
        let Some(realm) = self.realms.get_mut(&tag) else { return };
        if realm.grace_until.is_some_and(|until| now < until) {
            let is_back = |session: &Session| {
                let resumed = session.resumed_patterns(tag);
                session.link.is_some() && resumed.iter().any(|it| it.matches(&key.topic))
            };
            let receivers =
                realm.receivers(&key.topic, unix, &self.sessions, key.publisher, is_back);
            let Some(stream) = realm.acks.get_mut(key) else { return };
            stream.is_waiting = stream.expected.is_none_or(|expected| receivers < expected);
            if stream.is_waiting {
                return;
            }
            // all were back once; who leaves now leaves for good
            stream.expected = Some(0);
        }
        let Some(stream) = realm.acks.get_mut(key) else { return };
        stream.is_waiting = false;
        while let Some((id, last)) = stream.outstanding.front().copied() {
            if !realm.ring.is_settled(id) {
                break;
            }
            stream.outstanding.pop_front();
            stream.delivered = stream.delivered.max(last);
        }
        if stream.outstanding.is_empty() {
            // also what was accepted again after its account was closed
            stream.delivered = stream.accepted;
        }
        realm.dirty.insert(key.clone());
        self.dirty_realms.insert(tag);
    }

    /// Keeps the ring within its limit: forgets what everybody has, else makes publishers wait.
    fn bound_ring(&mut self, now: Time, source: Source, tag: RealmTag) {
        let max = self.config.ring_bytes_max;
        let Some(realm) = self.realms.get_mut(&tag) else { return };
        if realm.ring.bytes() <= max {
            return;
        }
        if realm.grace_until.is_none_or(|until| now >= until) {
            realm.ring.evict(max);
        }
        if realm.ring.bytes() > max {
            self.hold(source, PauseReason::Ring(tag));
        }
    }

    fn release_ring(&mut self, now: Time, tag: RealmTag) {
        if !self.waiters.contains_key(&PauseReason::Ring(tag)) {
            return;
        }
        let low = self.config.ring_bytes_max / 4 * 3;
        let Some(realm) = self.realms.get_mut(&tag) else { return };
        if realm.grace_until.is_none_or(|until| now >= until) {
            realm.ring.evict(low);
        }
        if realm.ring.bytes() <= low {
            self.release(now, PauseReason::Ring(tag));
        }
    }

    pub(super) fn on_ring_due(&mut self, now: Time, tag: RealmTag) {
        let Some(realm) = self.realms.get_mut(&tag) else { return };
        if let Some(next) = realm.ring.expire(now, limits::RING_AGE_MAX) {
            self.timers.set(Timer::Ring(tag), next);
        } else if !realm.ring.is_empty() {
            self.timers.set(Timer::Ring(tag), now + limits::RING_AGE_MAX);
        }
        let dirty = &realm.dirty;
        realm.acks.retain(|key, stream| !stream.outstanding.is_empty() || dirty.contains(key));
        realm.count_acks();
        if !realm.acks.is_empty() {
            self.timers.set_if_unset(Timer::Ring(tag), now + limits::RING_AGE_MAX);
        }
        let is_idle = realm.is_idle();
        self.release_ring(now, tag);
        if is_idle {
            self.realms.remove(&tag);
            self.timers.clear(Timer::Ring(tag));
        }
    }

    /// Those who were to come back are back: deliveries count again.
    pub(super) fn on_grace_over(&mut self, now: Time, tag: RealmTag) {
        let Some(realm) = self.realms.get_mut(&tag) else { return };
        realm.grace_until = None;
        let keys: Vec<StreamKey> = realm.acks.keys().cloned().collect();
        for key in keys {
            self.advance_stream(tag, &key);
        }
        self.release_ring(now, tag);
    }

    /// Says what was acknowledged since the last time; called when nothing else is to be sent.
    pub(super) fn flush_acks(&mut self) {
        let now = self.now;
        self.flush_inflows();
        for link_id in std::mem::take(&mut self.acks_dirty) {
            let Some(link) = self.links.get_mut(&link_id) else { continue };
            link.acks_dirty = false;
            let mut messages = Vec::new();
            for (lane, lane_in) in link.lanes_in.iter_mut().enumerate() {
                if lane_in.taken != lane_in.acked {
                    lane_in.acked = lane_in.taken;
                    messages.push(Message::DeliverAck { lane: lane as u8, frames: lane_in.taken });
                }
            }
            if std::mem::take(&mut link.dropped_unsaid) {
                for (realm, dropped) in &link.dropped {
                    messages.push(Message::Dropped { realm: *realm, messages: *dropped });
                }
            }
            for message in messages {
                self.send_control(now, link_id, &message);
            }
        }
        let mut acks = Vec::new();
        for tag in std::mem::take(&mut self.dirty_realms) {
            let Some(realm) = self.realms.get_mut(&tag) else { continue };
            for key in std::mem::take(&mut realm.dirty) {
                let Some(stream) = realm.acks.get(&key) else { continue };
                let ack = PublishAck {
                    realm: tag,
                    topic: key.topic.as_str().to_owned(),
                    epoch: key.epoch,
                    accepted: stream.accepted,
                    delivered: stream.delivered,
                    receivers: stream.receivers,
                    is_complete: !stream.is_waiting,
                };
                acks.push((stream.link, ack));
            }
        }
        for (link, ack) in acks {
            match link {
                Some(link) => self.send_control(now, link, &Message::PublishAck(ack)),
                None => self.take_publish_ack(&ack),
            }
        }
    }

    /// A publisher tells how many receivers a topic had at the router that this one replaces.
    pub(super) fn on_expect(
        &mut self,
        now: Time,
        link_id: LinkId,
        tag: RealmTag,
        topic: &str,
        receivers: u32,
    ) {
        let Some(link) = self.links.get(&link_id) else { return };
        let is_admitted = self.config.role == Role::Router && link.realms.contains(&tag);
        let Some(realm) = self.realms.get_mut(&tag).filter(|_| is_admitted) else { return };
        if realm.grace_until.is_none_or(|until| now >= until) {
            return; // nothing waits
        }
        let Some(topic) = realm.topic(topic.as_bytes()) else { return };
        let key = StreamKey { publisher: link.peer, epoch: link.hello.instance, topic };
        let Some(stream) = realm.ack_stream(&key, &self.config) else { return };
        stream.link = Some(link_id);
        stream.expected = Some(receivers);
        self.timers.set_if_unset(Timer::Ring(tag), now + limits::RING_AGE_MAX);
        self.advance_stream(tag, &key);
    }

    /// A subscriber that came back after this router replaced another has ended the subscriptions
    /// `gone` and keeps `left`: streams that wait for their subscribers wait for one fewer.
    pub(super) fn expect_fewer(
        &mut self,
        tag: RealmTag,
        subscriber: EndpointId,
        gone: &[Pattern],
        left: &[Pattern],
    ) {
        let now = self.now;
        let Some(realm) = self.realms.get_mut(&tag) else { return };
        if gone.is_empty() || realm.grace_until.is_none_or(|until| now >= until) {
            return;
        }
        for (key, stream) in &mut realm.acks {
            let matches = |patterns: &[Pattern]| patterns.iter().any(|it| it.matches(&key.topic));
            if key.publisher != subscriber && matches(gone) && !matches(left) {
                stream.expected = stream.expected.map(|expected| expected.saturating_sub(1));
            }
        }
    }

    /// Another subscriber is back: streams that waited only for it count as delivered again.
    pub(super) fn recount_receivers(&mut self, tag: RealmTag, pattern: &Pattern) {
        let Some(realm) = self.realms.get(&tag) else { return };
        if realm.grace_until.is_none() {
            return;
        }
        let waiting: Vec<StreamKey> = realm
            .acks
            .iter()
            .filter(|(key, stream)| stream.expected.is_some() && pattern.matches(&key.topic))
            .map(|(key, _)| key.clone())
            .collect();
        for key in waiting {
            self.advance_stream(tag, &key);
        }
    }

    pub(super) fn on_publish_ack(&mut self, link: LinkId, ack: &PublishAck) {
        if self.upstream == Some(link) && ack.epoch == self.config.epoch {
            self.take_publish_ack(ack);
        }
    }

    fn take_publish_ack(&mut self, ack: &PublishAck) {
        let Some(realm) = self.realms.get_mut(&ack.realm) else { return };
        let Some(topic) = realm.topic(ack.topic.as_bytes()) else { return };
        let Some(stream) = realm.out.get_mut(&topic) else { return };
        // a router cannot acknowledge what was not published
        let delivered = ack.delivered.min(stream.last);
        stream.accepted = stream.accepted.max(ack.accepted.min(stream.last));
        stream.delivered = stream.delivered.max(delivered);
        stream.receivers = ack.receivers;
        if ack.is_complete {
            stream.expects = Some(ack.receivers);
            stream.expects_told = true;
        }
        while let Some(front) = stream.unconfirmed.front() {
            if front.publish.first + u64::from(front.publish.count) - 1 > delivered {
                break;
            }
            realm.unconfirmed_bytes = realm.unconfirmed_bytes.saturating_sub(front.bytes());
            stream.unconfirmed.pop_front();
        }
        self.events.push_back(Event::Progress {
            realm: realm.id,
            published: stream.last,
            accepted: stream.accepted,
            delivered: stream.delivered,
            receivers: stream.receivers,
            topic,
        });
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one message")]
    pub(super) fn on_publish_refused(
        &mut self,
        link: LinkId,
        tag: RealmTag,
        topic: &str,
        first: u64,
        count: u32,
        code: RefusalCode,
        reason: String,
    ) {
        if self.upstream != Some(link) {
            return;
        }
        let Some(realm) = self.realms.get_mut(&tag) else { return };
        let Some(topic) = realm.topic(topic.as_bytes()) else { return };
        if let Some(stream) = realm.out.get_mut(&topic) {
            let freed: usize = stream
                .unconfirmed
                .iter()
                .filter(|held| held.publish.first == first)
                .map(Unconfirmed::bytes)
                .sum();
            stream.unconfirmed.retain(|held| held.publish.first != first);
            realm.unconfirmed_bytes = realm.unconfirmed_bytes.saturating_sub(freed);
        }
        self.stats.refused += u64::from(count);
        let realm = realm.id;
        self.events.push_back(Event::PublishRefused { realm, topic, first, count, code, reason });
    }

    /// After a new link: publishes again what the router may lack. It discards what it has.
    pub(super) fn replay_unconfirmed(&mut self, now: Time, link: LinkId, tag: RealmTag) {
        let router_is_new = self.upstream_is_new;
        let Some(realm) = self.realms.get_mut(&tag) else { return };
        let mut replay: Vec<(Topic, Publish)> = Vec::new();
        let mut expects: Vec<(Topic, u32)> = Vec::new();
        for (topic, stream) in &mut realm.out {
            stream.expects_told &= !router_is_new;
            if !stream.unconfirmed.is_empty() {
                expects.extend(stream.take_expectation().map(|count| (topic.clone(), count)));
            }
            if let Some(retained) = stream.retained.as_ref().filter(|_| router_is_new) {
                replay.push((topic.clone(), retained.clone()));
            }
            for held in &stream.unconfirmed {
                replay.push((topic.clone(), held.publish.clone()));
            }
        }
        replay.sort_by(|a, b| (&a.0, a.1.first).cmp(&(&b.0, b.1.first)));
        expects.sort();
        for (topic, receivers) in expects {
            let topic = topic.as_str().to_owned();
            self.send_control(now, link, &Message::Expect { realm: tag, topic, receivers });
        }
        for (topic, publish) in replay {
            let (messages, publisher) = (publish.count, publish.publisher.into());
            let cargo = Cargo::AtMostOnce { messages, droppable: false, publisher };
            self.send_publish(now, link, &topic, &publish, None, cargo);
        }
    }

    /// Asks the router to say when everything published so far has reached it.
    pub(super) fn flush(&mut self, now: Time, id: u64) {
        let mut syncs = BTreeSet::new();
        let relied_on = self.links.iter().filter(|(_, link)| link.is_relied_on);
        let mut links: Vec<LinkId> = relied_on.map(|(id, _)| *id).chain(self.upstream).collect();
        links.sort();
        for link_id in links {
            let Some(link) = self.links.get_mut(&link_id) else { continue };
            let first = self.next_sync;
            self.next_sync += u64::from(limits::LANE_COUNT);
            let new = (1..limits::LANE_COUNT).map(|lane| first + u64::from(lane));
            syncs.extend(new.clone());
            link.syncs.extend(new);
            for lane in 1..limits::LANE_COUNT {
                let frame = wire::encode(&Message::Sync { id: first + u64::from(lane) });
                self.push_plain(now, link_id, Channel::Lane(lane), frame);
            }
        }
        self.flushes.insert(id, syncs);
        self.finish_flushes();
    }

    pub(super) fn on_sync_done(&mut self, now: Time, link_id: LinkId, sync: u64) {
        let Some(link) = self.links.get_mut(&link_id) else { return };
        if link.syncs.remove(&sync) {
            self.sync_over(sync);
        } else if let Some((key, published)) = link.bulk_syncs.remove(&sync) {
            let lane = wire::lane_of(key.1.as_str().as_bytes());
            if let Some(queue) = link.lanes.get_mut(usize::from(lane)) {
                queue.synced = queue.synced.max(published);
                queue.progress = now;
            }
            link.bulk_waiting.push_back(key);
            self.start_bulk(now, link_id);
        }
    }

    pub(super) fn sync_over(&mut self, sync: u64) {
        for syncs in self.flushes.values_mut() {
            syncs.remove(&sync);
        }
        self.finish_flushes();
    }

    fn check_flushes(&mut self, link_id: LinkId) {
        let is_relied_on = self.links.get(&link_id).is_some_and(|link| link.is_relied_on);
        if self.upstream == Some(link_id) || is_relied_on {
            self.finish_flushes();
        }
    }

    pub(super) fn finish_flushes(&mut self) {
        let bulk_waits = self.links.iter().any(|(id, link)| {
            (self.upstream == Some(*id) || link.is_relied_on)
                && !(link.bulk.is_empty() && link.held.is_empty())
        });
        if bulk_waits {
            return;
        }
        let done: Vec<u64> =
            self.flushes.iter().filter(|(_, syncs)| syncs.is_empty()).map(|(id, _)| *id).collect();
        for id in done {
            self.flushes.remove(&id);
            self.events.push_back(Event::Flushed { id });
        }
    }
}
