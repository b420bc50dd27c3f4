//! The node: joins links, pub/sub and RPC into the one public state machine.
//!
//! [`Node`] is the entry type; `api` holds what goes in and comes out. Inside: `link` (queues and
//! credits of one link), `peer` (links between leaves), `direct` (publishes over them), `relay` (packets between other nodes), `handshake` (hello, goodbye, probes, sessions), `realm` (the tables of one
//! tenant), `guard` (grants and what they allow), `publish` and `subscribe` (messages out and in), `calls` (RPC), `quota` (what one may
//! take), `builtin` (procedures
//! that every node answers), `timers`.
//!
//! A router keeps other nodes' subscriptions and registrations and forwards; a leaf attaches to a
//! router. Both run this code: what differs is whether a link's peer is asked or answered.

mod api;
mod bucket;
mod builtin;
mod calls;
mod direct;
mod guard;
mod handshake;
mod link;
mod peer;
mod publish;
mod quota;
mod realm;
mod relay;
mod session;
mod subscribe;
mod timers;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use rand_core::SeedableRng;
use rand_pcg::Pcg64;

pub use api::*;
pub use builtin::{Asker, Extension};
use calls::Calls;
use link::{Cargo, Link, PauseReason, Queued, Stage};
use realm::{Realm, Source};
use session::{Session, SessionId};
use timers::{Timer, Timers};

use crate::SeededMap;
use crate::auth::UnixTime;
use crate::id::{EndpointId, LinkId, RealmId, RealmTag, RegistrationId, SubscriptionId};
use crate::limits;
use crate::pubsub::Topic;
use crate::pubsub::seen::StreamKey;
use crate::seeded::{CountedMap, SeededState};
use crate::time::Time;
use crate::wire::message::{CloseCode, Message, SlowPolicy};
use crate::wire::relay::Datagram;
use crate::wire::{self, Channel, Class, Frame, RawFrame};

/// One endpoint in all its realms: the state machine behind gateways, clients and simulations.
///
/// Feed it with [`Node::handle_input`], wake it with [`Node::handle_timeout`] no later than
/// [`Node::poll_timeout`] says, and after either drain [`Node::poll_transmit`],
/// [`Node::poll_action`] and [`Node::poll_event`] until they return `None`. Draining late costs
/// latency, never correctness. The same inputs at the same times with the same seed give the same
/// outputs.
#[derive(Debug)]
pub struct Node {
    id: EndpointId,
    config: Config,
    rng: Pcg64,
    now: Time,
    started: Option<Time>,
    links: CountedMap<LinkId, Link>,
    sessions: SeededMap<SessionId, Session>,
    sessions_by_peer: BTreeMap<EndpointId, SessionId>,
    next_session: u64,
    realms: BTreeMap<RealmTag, Realm>,
    subscriptions: BTreeMap<SubscriptionId, RealmTag>,
    registrations: BTreeMap<RegistrationId, calls::LocalRegistration>,
    calls: Calls,
    /// The router that a leaf is attached to.
    upstream: Option<LinkId>,
    /// Instance of the router that this leaf was attached to last; 0: none yet.
    upstream_instance: u64,
    /// The router on the present link replaces another: it knows nothing of us.
    upstream_is_new: bool,
    /// Subscriptions ended while no router was there to hear it.
    unsubscribed: BTreeSet<(RealmTag, u32)>,
    /// Those that a router was told of, and the first probe after it: until that is answered, a
    /// breaking link may take the news with it.
    unsubscribed_unsure: VecDeque<(RealmTag, u32, u64)>,
    /// Links between leaves: the one of each peer that is used.
    peers: BTreeMap<EndpointId, LinkId>,
    /// Streams that come over such links, by the number that the router knows them by.
    prunes: BTreeMap<u64, (RealmTag, StreamKey)>,
    next_prune: u64,
    /// Those of which the router must hear how far they came.
    inflows_dirty: BTreeSet<(RealmTag, StreamKey)>,
    /// At a router, links of leaves that carry packets for others.
    carrier_links: BTreeSet<LinkId>,
    /// Datagrams to send.
    datagrams: VecDeque<(LinkId, Datagram)>,
    relayed: bucket::Bucket,
    /// Who waits for what to have room.
    waiters: BTreeMap<PauseReason, BTreeSet<Source>>,
    /// Links with acknowledgements to send.
    acks_dirty: BTreeSet<LinkId>,
    /// Realms with publishers to be told how far their messages are.
    dirty_realms: BTreeSet<RealmTag>,
    flushes: BTreeMap<u64, BTreeSet<u64>>,
    next_sync: u64,
    next_probe: u64,
    draining: bool,
    held: quota::Held,
    /// What time it was by the calendar, when last told.
    wall_clock: Option<(Time, UnixTime)>,
    /// When permits end.
    expiries: BTreeSet<(UnixTime, SessionId, RealmTag)>,
    timers: Timers,
    transmits: VecDeque<Transmit>,
    actions: VecDeque<Action>,
    events: VecDeque<Event>,
    stats: Stats,
}

impl Node {
    /// A node that calls itself `id`. `seed` feeds every random choice and every hash map.
    pub fn new(id: EndpointId, config: Config, seed: [u8; 32]) -> Self {
        let mut rng = Pcg64::from_seed(seed);
        let sessions = SeededMap::with_hasher(SeededState::from_rng(&mut rng));
        let calls = Calls::new();
        Self {
            id,
            config,
            rng,
            now: Time::START,
            started: None,
            links: CountedMap::default(),
            sessions,
            sessions_by_peer: BTreeMap::new(),
            next_session: 1,
            realms: BTreeMap::new(),
            subscriptions: BTreeMap::new(),
            registrations: BTreeMap::new(),
            calls,
            upstream: None,
            upstream_instance: 0,
            upstream_is_new: false,
            unsubscribed: BTreeSet::new(),
            unsubscribed_unsure: VecDeque::new(),
            peers: BTreeMap::new(),
            prunes: BTreeMap::new(),
            next_prune: 1,
            inflows_dirty: BTreeSet::new(),
            carrier_links: BTreeSet::new(),
            datagrams: VecDeque::new(),
            relayed: bucket::Bucket::new(Time::START),
            waiters: BTreeMap::new(),
            acks_dirty: BTreeSet::new(),
            dirty_realms: BTreeSet::new(),
            flushes: BTreeMap::new(),
            next_sync: 1,
            next_probe: 1,
            draining: false,
            held: quota::Held::default(),
            wall_clock: None,
            expiries: BTreeSet::new(),
            timers: Timers::default(),
            transmits: VecDeque::new(),
            actions: VecDeque::new(),
            events: VecDeque::new(),
            stats: Stats::default(),
        }
    }

    /// Takes one input. `now` must not run backwards; if it does, the latest known moment counts.
    pub fn handle_input(&mut self, now: Time, input: Input) {
        let now = self.advance(now);
        match input {
            Input::LinkUp { link, peer, dialled, remote } => {
                self.on_link_up(now, link, peer, dialled, remote);
            }
            Input::PeerLinkUp { link, peer, dialled, remote } => {
                self.on_peer_link_up(now, link, peer, dialled, remote);
            }
            Input::PeerPath { link, direct } => {
                if let Some(peer_link) = self.peer_link_mut(link) {
                    peer_link.is_direct = direct;
                }
            }
            Input::LinkUsed { link } => {
                if let Some(peer_link) = self.peer_link_mut(link) {
                    peer_link.used = Some(now);
                }
            }
            Input::Datagram { link, datagram } => self.on_datagram(now, link, &datagram),
            Input::DatagramsDropped { count } => self.stats.relay_dropped += count,
            Input::LinkDown { link, reason } => self.on_link_down(now, link, &reason),
            Input::Frame { link, channel, frame } => self.on_frame(now, link, channel, frame),
            Input::Sent { link, channel, bytes } => self.on_sent(now, link, channel, bytes),
            Input::StreamClosed { link, stream } => self.on_stream_closed(now, link, stream),
            Input::Tunnelled { link } => {
                if let Some(link) = self.links.get_mut(&link) {
                    link.is_tunnelled = true;
                }
            }
            Input::Rtt { link, rtt } => {
                if let Some(link) = self.links.get_mut(&link) {
                    link.rtt = Some(rtt);
                }
            }
            Input::HandleReady { subscription } => self.on_handle_ready(now, subscription),
            Input::HandleFull { subscription } => self.on_handle_full(subscription),
            Input::StreamHandle { end, full } => self.on_stream_handle(now, end, full),
            Input::WallClock { unix } => self.on_wall_clock(now, unix),
            Input::Command(command) => self.on_command(now, command),
        }
    }

    /// Runs what is due; safe to call early, late or twice.
    pub fn handle_timeout(&mut self, now: Time) {
        let now = self.advance(now);
        while let Some(timer) = self.timers.pop_due(now) {
            match timer {
                Timer::Handshake(link) => self.on_handshake_timeout(now, link),
                Timer::Probe(link) => self.on_probe_due(now, link),
                Timer::Watch(link) => self.on_watch_due(now, link),
                Timer::Stall(link) => self.on_stall_due(now, link),
                Timer::Deadline(relay) => self.on_deadline(now, relay),
                Timer::Session(session) => self.on_session_expired(now, session),
                Timer::Ring(realm) => self.on_ring_due(now, realm),
                Timer::Grace(realm) => self.on_grace_over(now, realm),
                Timer::Rate(link) => self.on_rate_due(now, link),
                Timer::RealmRate(tag) => self.release(now, PauseReason::RealmRate(tag)),
                Timer::Permits => self.on_permits_due(now),
                Timer::Retire(link) => self.on_retire_due(now, link),
                Timer::Idle(link) => self.on_idle_due(now, link),
                Timer::Order => self.on_order_due(now),
            }
        }
    }

    /// The next frame to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        if self.transmits.is_empty() {
            self.flush_acks();
        }
        self.transmits.pop_front()
    }

    /// The next datagram to send, and on which link: at once or never, in this order.
    pub fn poll_datagram(&mut self) -> Option<(LinkId, Datagram)> {
        self.datagrams.pop_front()
    }

    /// The next thing that the transport shall do. Drain transmits first.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// The next thing that the application hears.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When to call `handle_timeout`, and for what.
    pub fn poll_timeout(&self) -> Option<(Time, TimerKind)> {
        self.timers.next()
    }

    /// Counters since the start.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Who this is.
    pub fn id(&self) -> EndpointId {
        self.id
    }

    /// What the node is connected to and serves right now.
    pub fn status(&self) -> NodeStatus {
        let mut links: Vec<LinkStatus> = self
            .links
            .iter()
            .filter(|(_, link)| link.is_ready())
            .map(|(id, link)| LinkStatus {
                link: *id,
                peer: link.peer,
                agent: link.hello.agent.clone(),
                is_router: link.hello.is_router,
                is_peer_link: link.peer_link.is_some(),
                remote: link.remote,
                is_tunnelled: link.is_tunnelled,
                rtt: link.rtt,
                sent_bytes: link.sent_bytes,
                received_bytes: link.received_bytes,
                queued_bytes: link.queued_bytes(),
                dropped: link.dropped.values().sum(),
                published: link.published,
                received: link.published_by_peer,
            })
            .collect();
        links.sort_by_key(|link| link.link);
        let realms = self
            .realms
            .values()
            .map(|realm| RealmSummary {
                realm: realm.id,
                peers: realm.members.len(),
                subscriptions: realm.trie.len(),
                registrations: realm.providers.values().map(|providers| providers.len()).sum(),
                retained: realm.retained.len(),
                ring_bytes: realm.ring.bytes(),
            })
            .collect();
        NodeStatus { links, realms, held_bytes: self.count_held() }
    }

    fn advance(&mut self, now: Time) -> Time {
        self.now = self.now.max(now);
        self.started.get_or_insert(self.now);
        self.now
    }

    fn uptime(&self) -> Duration {
        self.started.map_or(Duration::ZERO, |started| self.now - started)
    }

    fn on_command(&mut self, now: Time, command: Command) {
        match command {
            Command::Join { realm, grant } => self.join(now, realm, grant),
            Command::Revoke { record } => {
                if let Err(denial) = self.revoke(now, &record) {
                    let reason = denial.to_string();
                    self.events.push_back(Event::RevokeRefused { reason });
                }
            }
            Command::Publish { realm, topic, qos, retain, count, body } => {
                self.publish(now, &realm, &topic, qos, retain, count, body);
            }
            Command::Subscribe { subscription, realm, pattern, options } => {
                self.subscribe(now, subscription, &realm, pattern, options);
            }
            Command::Unsubscribe { subscription } => self.unsubscribe(now, subscription),
            Command::Register { registration, realm, procedure, concurrency } => {
                self.register(now, registration, &realm, procedure, concurrency);
            }
            Command::Unregister { registration } => self.unregister(now, registration),
            Command::Call {
                call,
                realm,
                procedure,
                deadline,
                policy,
                idempotent,
                streaming,
                target,
                traceparent,
                body,
            } => self.call(
                now,
                call,
                calls::NewCall {
                    realm: realm.map_or(RealmTag::ENDPOINT, |realm| realm.tag()),
                    procedure,
                    deadline,
                    policy,
                    idempotent,
                    streaming,
                    target,
                    traceparent,
                    body,
                },
            ),
            Command::CancelCall { call } => self.cancel_call(now, call),
            Command::Reply { request, result } => self.reply(now, request, result),
            Command::StreamItem { end, body } => self.send_item(now, end, body),
            Command::StreamItemsEnd { call } => self.send_items_end(now, call),
            Command::Flush { id } => self.flush(now, id),
            Command::Shutdown { code, reason, reconnect_window } => {
                self.shutdown(now, code, &reason, reconnect_window);
            }
        }
    }

    fn on_frame(&mut self, now: Time, link_id: LinkId, channel: Channel, frame: RawFrame) {
        let Some(link) = self.links.get_mut(&link_id) else { return };
        if link.stage == Stage::Closing {
            return;
        }
        link.heard = now;
        link.suspect = false;
        link.note_use(now, channel);
        link.received_bytes += frame.wire_bytes() as u64;
        let stage = link.stage;
        let (kind, bytes) = (frame.kind, frame.payload.len());
        let message = match wire::decode(frame, channel) {
            Ok(message) => message,
            Err(error) => {
                let reason = format!("frame kind {:#04x} on {channel:?}: {error}", kind);
                return self.protocol_error(now, link_id, &reason);
            }
        };
        self.charge(now, link_id, channel, bytes);
        match (stage, message) {
            (Stage::Handshake, Message::Hello(hello)) => self.on_hello(now, link_id, hello),
            (Stage::Handshake, _) => {
                self.protocol_error(now, link_id, "something came before the hello");
            }
            (_, message) if self.is_out_of_place(link_id, &message) => {
                self.protocol_error(now, link_id, "a message that leaves do not send each other");
            }
            (_, message) => self.on_message(now, link_id, channel, message),
        }
    }

    fn on_message(&mut self, now: Time, link: LinkId, channel: Channel, message: Message) {
        match message {
            Message::Hello(_) => self.protocol_error(now, link, "a second hello"),
            Message::Join(realms) => self.on_join(now, link, realms),
            Message::Realms(answers) => self.on_realms(now, link, answers),
            Message::Goodbye { code, reason, reconnect_in } => {
                self.on_goodbye(link, code, reason, reconnect_in);
            }
            Message::Ping { id } => self.send_control(now, link, &Message::Pong { id }),
            Message::Pong { id } => self.on_pong(link, id),
            Message::Subscribe(subscribe) => self.on_subscribe(now, link, subscribe),
            Message::SubscribeResult { realm, subscription, refusal } => {
                self.on_subscribe_result(link, realm, subscription, refusal);
            }
            Message::Unsubscribe { realm, subscription } => {
                self.on_unsubscribe(now, link, realm, subscription);
            }
            Message::Dropped { realm, messages } => self.on_dropped(link, realm, messages),
            Message::PublishAck(ack) => self.on_publish_ack(link, &ack),
            Message::PublishRefused { realm, topic, first, count, code, reason } => {
                self.on_publish_refused(link, realm, &topic, first, count, code, reason);
            }
            Message::DeliverAck { lane, frames } => self.on_deliver_ack(now, link, lane, frames),
            Message::BulkAck { id } => self.on_bulk_ack(now, link, id),
            Message::Expect { realm, topic, receivers } => {
                self.on_expect(now, link, realm, &topic, receivers);
            }
            Message::Prune(prune) => self.on_prune(now, link, prune),
            Message::Unprune { realm, publisher, epoch, topic } => {
                self.on_unprune(now, link, realm, (publisher, epoch, &topic));
            }
            Message::Quiet { realm, topic, receivers } => {
                self.on_quiet(link, realm, &topic, receivers);
            }
            Message::Pruned { id } => self.on_pruned(now, link, id),
            Message::SyncDone { id } => self.on_sync_done(now, link, id),
            Message::Register(register) => self.on_register(now, link, register),
            Message::RegisterResult { registration, refusal, .. } => {
                self.on_register_result(link, registration, refusal);
            }
            Message::Unregister { realm, registration } => {
                self.on_unregister(link, realm, registration);
            }
            Message::Publish(publish) => {
                let Channel::Lane(lane) = channel else { return };
                self.on_publish(now, Source::Lane(link, lane), publish);
            }
            Message::BulkPublish { id, publish } => {
                self.on_publish(now, Source::Bulk(link, id), publish);
            }
            Message::Retained { subscription, publish } => {
                self.on_retained(now, link, channel, subscription, publish);
            }
            Message::Sync { id } => self.send_control(now, link, &Message::SyncDone { id }),
            Message::Call(call) => self.on_call(now, link, channel, call),
            Message::Reply { call, body } => self.on_reply(now, link, call, Ok(body)),
            Message::CallError { call, failure } => self.on_reply(now, link, call, Err(failure)),
            Message::Cancel { call } => self.on_cancel(now, link, call),
            Message::Item { call, body } => self.on_item(now, link, channel, call, body),
            Message::ItemsEnd { call } => self.on_items_end(now, link, channel, call),
            Message::Unknown { .. } => {}
        }
    }

    /// Queues a frame on a channel and sends what there is room for.
    fn push(&mut self, now: Time, link_id: LinkId, channel: Channel, queued: Queued) {
        let Some(link) = self.links.get_mut(&link_id) else { return };
        if link.stage == Stage::Closing {
            // what must not be lost waits for the peer's next link
            if let Cargo::AtLeastOnce { realm, entry } = queued.cargo {
                let session = link.session;
                self.keep_undelivered(now, session, realm, entry);
            }
            return;
        }
        link.note_use(now, channel);
        let Some(queue) = link.queue_mut(now, channel) else { return };
        queue.push(now, queued);
        queue.pump(link_id, channel, &mut self.transmits);
        if channel.class() == Class::Control
            && link.control.bytes > self.config.control_queue_bytes_max
        {
            self.close_link(
                now,
                link_id,
                CloseCode::SlowConsumer,
                "does not read its control stream",
            );
        }
    }

    fn push_plain(&mut self, now: Time, link: LinkId, channel: Channel, frame: Frame) {
        self.push(now, link, channel, Queued { frame, cargo: Cargo::Plain });
    }

    fn send_control(&mut self, now: Time, link: LinkId, message: &Message) {
        self.push_plain(now, link, Channel::Control, wire::encode(message));
    }

    fn on_sent(&mut self, now: Time, link_id: LinkId, channel: Channel, bytes: usize) {
        let Some(link) = self.links.get_mut(&link_id) else { return };
        link.sent_bytes += bytes as u64;
        match channel {
            Channel::Bulk => {
                link.bulk_progress = now;
                link.bulk_out.sent(now, bytes);
                link.bulk_out.pump(link_id, channel, &mut self.transmits);
            }
            Channel::Stream(stream) => {
                let Some(queue) = link.streams.get_mut(&stream) else { return };
                queue.sent(now, bytes);
                queue.pump(link_id, channel, &mut self.transmits);
                if queue.queue.is_empty() && std::mem::take(&mut queue.finishes) {
                    self.actions.push_back(Action::FinishStream { link: link_id, stream });
                }
                self.on_stream_drained(now, link_id, stream);
            }
            Channel::Control | Channel::Lane(_) => {
                let Some(queue) = link.queue_mut(now, channel) else { return };
                queue.sent(now, bytes);
                queue.pump(link_id, channel, &mut self.transmits);
                self.on_lane_drained(now, link_id);
            }
        }
    }

    /// A link's lanes moved: whoever waits for it may go on.
    fn on_lane_drained(&mut self, now: Time, link_id: LinkId) {
        let reason = PauseReason::Target(link_id);
        if !self.waiters.contains_key(&reason) {
            return;
        }
        let low = self.config.lane_queue_bytes_max / 4;
        let has_room = self
            .links
            .get(&link_id)
            .is_none_or(|link| (1..limits::LANE_COUNT).all(|lane| link.lane_bytes(lane) <= low));
        if has_room {
            self.release(now, reason);
        }
    }

    /// Stops reading from `source` until `reason` is gone.
    fn hold(&mut self, source: Source, reason: PauseReason) {
        if let Source::Lane(link_id, lane) = source {
            let Some(link) = self.links.get_mut(&link_id) else { return };
            let Some(lane_in) = link.lanes_in.get_mut(usize::from(lane)) else { return };
            if lane_in.pauses.is_empty() {
                self.actions
                    .push_back(Action::Pause { link: link_id, channel: Channel::Lane(lane) });
            }
            lane_in.pauses.insert(reason);
        }
        self.waiters.entry(reason).or_default().insert(source);
    }

    /// `reason` is gone: reads on from everybody who waited for it.
    fn release(&mut self, now: Time, reason: PauseReason) {
        for source in self.waiters.remove(&reason).unwrap_or_default() {
            match source {
                Source::Local => {}
                Source::Lane(link_id, lane) => {
                    let Some(link) = self.links.get_mut(&link_id) else { continue };
                    let Some(lane_in) = link.lanes_in.get_mut(usize::from(lane)) else { continue };
                    if lane_in.pauses.remove(&reason) && lane_in.pauses.is_empty() {
                        self.actions.push_back(Action::Resume {
                            link: link_id,
                            channel: Channel::Lane(lane),
                        });
                    }
                }
                Source::Bulk(link_id, id) => {
                    let waits = self.waiters.values().any(|waiting| waiting.contains(&source));
                    if !waits {
                        self.send_control(now, link_id, &Message::BulkAck { id });
                    }
                }
            }
        }
    }

    fn realm_mut(&mut self, realm: &RealmId) -> Option<&mut Realm> {
        self.realms.get_mut(&realm.tag()).filter(|known| known.id == *realm)
    }

    /// Whether a batch on this topic can go on its way now, or should wait (back-pressure).
    ///
    /// A leaf without a router has room for QoS 1 until
    /// [`Config::unconfirmed_bytes_max`] and none for QoS 0.
    pub fn publish_room(&mut self, realm: &RealmId, topic: &Topic, qos: Qos) -> bool {
        let high = self.config.lane_queue_bytes_max / 2;
        let unconfirmed_max = self.config.unconfirmed_bytes_max;
        let ring_max = self.config.ring_bytes_max;
        let upstream = self.upstream;
        let (role, now, unix) = (self.config.role, self.now, self.unix());
        let tag = realm.tag();
        // an unknown realm is answered with an error, which needs no room
        let Some(realm) = self.realm_mut(realm) else { return true };
        match role {
            // so is one that does not let us in
            Role::Leaf if realm.denied.is_some() => true,
            Role::Leaf => {
                if qos == Qos::AtLeastOnce && realm.unconfirmed_bytes >= unconfirmed_max {
                    return false;
                }
                let lane = wire::lane_of(topic.as_str().as_bytes());
                let route = realm.route(topic, unix);
                if !self.peers_have_room(&route, lane, qos == Qos::AtLeastOnce) {
                    return false;
                }
                match upstream.and_then(|link| self.links.get(&link)) {
                    Some(link) if link.realms.contains(&tag) => link.lane_bytes(lane) < high,
                    Some(_) => qos == Qos::AtLeastOnce,
                    None => qos == Qos::AtLeastOnce,
                }
            }
            Role::Router => {
                if qos == Qos::AtLeastOnce && realm.ring.bytes() >= ring_max {
                    if realm.grace_until.is_none_or(|until| now >= until) {
                        realm.ring.evict(ring_max);
                    }
                    if realm.ring.bytes() >= ring_max {
                        return false;
                    }
                }
                let route = realm.route(topic, unix);
                let lane = wire::lane_of(topic.as_str().as_bytes());
                route.peers.iter().all(|(session, policy)| {
                    let waits = qos == Qos::AtLeastOnce || *policy == SlowPolicy::Block;
                    let link = self.sessions.get(session).and_then(|session| session.link);
                    let link = link.and_then(|link| self.links.get(&link));
                    !waits || link.is_none_or(|link| link.lane_bytes(lane) < high)
                })
            }
        }
    }

    /// Sequence of the last message that the local application published on `topic`; 0: none.
    pub fn last_sequence(&self, realm: &RealmId, topic: &Topic) -> u64 {
        self.realms
            .get(&realm.tag())
            .and_then(|realm| realm.out.get(topic))
            .map_or(0, |stream| stream.last)
    }
}
