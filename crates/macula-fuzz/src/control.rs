//! One node and peers that say anything.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use macula_proto::id::{
    CallId, LinkId, RealmId, RealmTag, RegistrationId, RequestId, StreamId, SubscriptionId,
};
use macula_proto::limits;
use macula_proto::node::{
    Action, Admission, Command, Config, Event, Input, Node, Qos, Role, StreamEnd, SubscribeOptions,
};
use macula_proto::pubsub::{Pattern, ProcedureName, Topic};
use macula_proto::wire::frame::HEADER_BYTES;
use macula_proto::wire::message::{
    Call, CallFailure, CloseCode, ErrorClass, Hello, Message, ProviderPolicy, Prune, Publish,
    PublishAck, RealmOffer, RealmStatus, RefusalCode, Register, SlowPolicy, Subscribe,
};
use macula_proto::wire::{Channel, Frame, RawFrame, decode, encode, kind, lane_of};
use macula_proto::{EndpointId, Time};

use crate::script::{self, Script, Step, filler, pick};

/// The input is a choice of the node, then steps of four bytes: links come and go, peers say things
/// that make sense, or do not, or are no messages at all, the application has wishes, time passes.
///
/// Whatever happens: what the node says is well-formed and within the windows; a link whose peer
/// breaks the protocol is closed; queues stay within their limits; timers do not spin; every call of
/// the application ends once; and when all links are gone, nothing waits any more.
pub fn control(data: &[u8]) {
    let mut script = Script::new(data);
    let mut bench = Bench::new(script.byte());
    while let Some(step) = script.step() {
        bench.step(step, &mut script);
    }
    bench.finish();
}

/// The node and everything around it.
struct Bench {
    node: Node,
    role: Role,
    now: Time,
    links: BTreeMap<LinkId, Peer>,
    next_number: u64,
    /// What a step can name: links by their place, the rest by any number.
    places: [LinkId; 8],
    subscriptions: Vec<u64>,
    registrations: Vec<u64>,
    requests: Vec<u64>,
    calls: Vec<u64>,
    /// Calls that have not ended.
    open: BTreeSet<CallId>,
    /// Ends of streaming calls that shall wait.
    full: BTreeSet<StreamEnd>,
}

/// What the other end of a link knows.
struct Peer {
    id: EndpointId,
    is_ready: bool,
    is_closing: bool,
    /// Channels that the node does not read.
    paused: BTreeSet<Channel>,
    /// Bytes that were not told as sent, per channel.
    unsent: BTreeMap<Channel, VecDeque<usize>>,
}

impl Bench {
    fn new(choice: u8) -> Self {
        let role = if choice & 1 == 0 { Role::Router } else { Role::Leaf };
        let mut config = Config::new(role, 7);
        if choice & 2 == 0 {
            config.admission = Admission::AnyOpen;
        }
        config.links_max = LINKS_MAX;
        config.realms_max = 3;
        config.subscriptions_per_link_max = 8;
        config.registrations_per_link_max = 8;
        config.calls_per_link_max = 12;
        config.calls_max = 20;
        config.call_bytes_per_link_max = 200_000;
        config.call_queue_bytes_max = CALL_QUEUE_BYTES_MAX;
        config.lane_queue_bytes_max = LANE_QUEUE_BYTES_MAX;
        config.control_queue_bytes_max = CONTROL_QUEUE_BYTES_MAX;
        config.ring_bytes_max = 200_000;
        config.unconfirmed_bytes_max = 200_000;
        config.retained_bytes_max = 100_000;
        config.streams_max = 8;
        let mut bench = Self {
            node: Node::new(ids()[0], config, [choice; 32]),
            role,
            now: Time::from_micros(1_000_000),
            links: BTreeMap::new(),
            next_number: 1,
            places: [LinkId(0); 8],
            subscriptions: Vec::new(),
            registrations: Vec::new(),
            requests: Vec::new(),
            calls: Vec::new(),
            open: BTreeSet::new(),
            full: BTreeSet::new(),
        };
        for realm in realms().into_iter().take(2) {
            bench.command(Command::Join { realm, grant: Bytes::new() });
        }
        for peer in [0, 1].into_iter().take(usize::from(choice >> 2 & 3)) {
            let link = bench.link_up(peer, role == Role::Leaf);
            bench.hear(link, Channel::Control, &hello(0));
            if role == Role::Leaf {
                bench.hear(link, Channel::Control, &message(kind::REALMS, 0, 0, ids()[1]));
            }
        }
        bench
    }

    fn step(&mut self, [what, a, b, c]: Step, script: &mut Script<'_>) {
        let link = self.places[usize::from(a >> 5)];
        match what % 16 {
            // a message that makes sense, on a channel where it may come
            0..=4 => {
                let kind = pick(&KINDS, a);
                let link = self.places[usize::from(what >> 5)];
                let peer = self.links.get(&link).map_or(ids()[0], |peer| peer.id);
                let message = message(kind, b, c, peer);
                self.hear(link, home(&message, c), &message);
            }
            // a frame of any bytes, anywhere
            5 => {
                let payload = Bytes::copy_from_slice(script.take(usize::from(c)));
                self.frame(link, script::channel(a), RawFrame { kind: b, payload });
            }
            6 => {
                self.link_up(a, c & 1 == 1);
            }
            7 => self.link_down(link),
            8 => self.hear(link, Channel::Control, &hello(b)),
            9 => self.pass(Duration::from_millis(1 << (a % 16))),
            10 => self.sent(link, script::channel(b), usize::from(c) + 1),
            11 => self.hear_of(a, b, c),
            _ => self.want(a, b, c),
        }
        self.check();
    }

    // --- links ---------------------------------------------------------------------------------

    fn link_up(&mut self, peer: u8, dialled: bool) -> LinkId {
        let link = LinkId(self.number());
        let gone = |place: &&mut LinkId| !self.links.contains_key(*place);
        let Some(place) = self.places.iter_mut().find(gone) else { return link };
        *place = link;
        let peer = pick(&ids()[1..], peer);
        let remote = "192.0.2.7:1".parse().expect("an address");
        let new = Peer {
            id: peer,
            is_ready: false,
            is_closing: false,
            paused: BTreeSet::new(),
            unsent: BTreeMap::new(),
        };
        self.links.insert(link, new);
        self.input(Input::LinkUp { link, peer, dialled, remote });
        link
    }

    fn link_down(&mut self, link: LinkId) {
        if self.links.remove(&link).is_some() {
            self.input(Input::LinkDown { link, reason: "cut".to_owned() });
        }
    }

    fn hear(&mut self, link: LinkId, channel: Channel, message: &Message) {
        self.frame(link, channel, raw(&encode(message)));
    }

    fn frame(&mut self, link: LinkId, channel: Channel, frame: RawFrame) {
        let Some(peer) = self.links.get(&link) else { return };
        let opens = peer.is_ready || channel == Channel::Control;
        if peer.paused.contains(&channel) || !opens || !exists(channel) {
            return; // nobody reads it
        }
        if frame.payload.len() > channel.frame_bytes_max() {
            return;
        }
        let decoded = decode(frame.clone(), channel);
        let is_hello = matches!(decoded, Ok(Message::Hello(_)));
        let must_close = decoded.is_err() || is_hello == peer.is_ready;
        let said = must_close.then(|| format!("{decoded:?}"));
        self.input(Input::Frame { link, channel, frame });
        if said.is_some() {
            assert!(self.links[&link].is_closing, "{link:?} goes on after {said:?} on {channel:?}");
        }
    }

    /// The transport passes on up to `frames` frames.
    fn sent(&mut self, link: LinkId, channel: Channel, frames: usize) {
        let Some(peer) = self.links.get_mut(&link) else { return };
        let Some(unsent) = peer.unsent.get_mut(&channel) else { return };
        for bytes in unsent.drain(..frames.min(unsent.len())).collect::<Vec<_>>() {
            self.input(Input::Sent { link, channel, bytes });
        }
    }

    fn pass(&mut self, duration: Duration) {
        self.now = self.now + duration;
        self.node.handle_timeout(self.now);
        let next = self.node.poll_timeout();
        assert!(next.is_none_or(|(at, _)| at > self.now), "spins: {next:?} at {:?}", self.now);
        self.drain();
    }

    /// The transport or the application tells something.
    fn hear_of(&mut self, a: u8, b: u8, c: u8) {
        let link = self.places[usize::from(b >> 5)];
        match a % 5 {
            0 => {
                let stream = StreamId(u64::from(b % 8));
                if let Some(peer) = self.links.get_mut(&link) {
                    peer.unsent.remove(&Channel::Stream(stream));
                    peer.paused.remove(&Channel::Stream(stream));
                    self.input(Input::StreamClosed { link, stream });
                }
            }
            1 => self.input(Input::Rtt { link, rtt: Duration::from_millis(u64::from(c)) }),
            2 | 3 => {
                let subscription = SubscriptionId(any_of(&self.subscriptions, b));
                self.input(if a % 5 == 2 {
                    Input::HandleFull { subscription }
                } else {
                    Input::HandleReady { subscription }
                });
            }
            _ => {
                let end = self.stream_end(b);
                self.input(Input::StreamHandle { end, full: c & 1 == 1 });
            }
        }
    }

    // --- the application -----------------------------------------------------------------------

    fn want(&mut self, a: u8, b: u8, c: u8) {
        let realm = pick(&realms(), b);
        let name = pick(&GOOD_NAMES, b >> 3);
        let body = filler(size(c));
        match a % 16 {
            0 => self.command(Command::Join { realm, grant: Bytes::new() }),
            1..=3 => {
                let topic = Topic::parse(name).expect("a good name");
                let qos = if a & 16 == 0 { Qos::AtMostOnce } else { Qos::AtLeastOnce };
                if self.node.publish_room(&realm, &topic, qos) {
                    let retain = a & 32 != 0;
                    self.command(Command::Publish { realm, topic, qos, retain, count: 1, body });
                }
            }
            4 | 5 => {
                let number = self.number();
                self.subscriptions.push(number);
                let subscription = SubscriptionId(number);
                let pattern = Pattern::parse(pick(&PATTERNS, c)).expect("a good pattern");
                let mut options = SubscribeOptions::default();
                options.policy = policy(c >> 4);
                self.command(Command::Subscribe { subscription, realm, pattern, options });
            }
            6 => {
                let subscription = SubscriptionId(any_of(&self.subscriptions, b));
                self.command(Command::Unsubscribe { subscription });
            }
            7 => {
                let number = self.number();
                self.registrations.push(number);
                let registration = RegistrationId(number);
                let procedure = ProcedureName::parse(name).expect("a good name");
                let concurrency = u32::from(c % 3);
                self.command(Command::Register { registration, realm, procedure, concurrency });
            }
            8 => {
                let registration = RegistrationId(any_of(&self.registrations, b));
                self.command(Command::Unregister { registration });
            }
            9 | 10 => {
                let number = self.number();
                self.calls.push(number);
                let call = CallId(number);
                self.open.insert(call);
                self.command(Command::Call {
                    call,
                    realm: (b & 128 == 0).then_some(realm),
                    procedure: ProcedureName::parse(name).expect("a good name"),
                    deadline: Duration::from_millis(1 << (c % 16)),
                    policy: provider_policy(c >> 2),
                    idempotent: c & 1 == 0,
                    streaming: a & 16 != 0,
                    target: (a & 32 != 0).then(|| pick(&ids(), c)),
                    traceparent: Bytes::new(),
                    body,
                });
            }
            11 => self.command(Command::CancelCall { call: CallId(any_of(&self.calls, b)) }),
            12 => {
                let request = RequestId(any_of(&self.requests, b));
                let result = if c & 1 == 0 { Ok(filler(size(c))) } else { Err(failure(c)) };
                self.command(Command::Reply { request, result });
            }
            13 => {
                let end = self.stream_end(b);
                if !self.full.contains(&end) {
                    let body = filler(size(c).min(limits::LANE_MESSAGE_BYTES_MAX));
                    self.command(Command::StreamItem { end, body });
                }
            }
            14 => self.command(Command::StreamItemsEnd { call: CallId(any_of(&self.calls, b)) }),
            _ if c == 255 => self.command(Command::Shutdown {
                code: CloseCode::Restarting,
                reason: "enough".to_owned(),
                reconnect_window: Duration::from_millis(u64::from(b)),
            }),
            _ => self.command(Command::Flush { id: u64::from(b) }),
        }
    }

    fn stream_end(&self, choice: u8) -> StreamEnd {
        if choice & 1 == 0 {
            StreamEnd::Caller(CallId(any_of(&self.calls, choice >> 1)))
        } else {
            StreamEnd::Handler(RequestId(any_of(&self.requests, choice >> 1)))
        }
    }

    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    // --- the node ------------------------------------------------------------------------------

    fn command(&mut self, command: Command) {
        self.input(Input::Command(command));
    }

    fn input(&mut self, input: Input) {
        self.node.handle_input(self.now, input);
        self.drain();
    }

    fn drain(&mut self) {
        let mut used = BTreeSet::new();
        while let Some(transmit) = self.node.poll_transmit() {
            let (link, channel) = (transmit.link, transmit.channel);
            let bytes = transmit.frame.wire_bytes();
            assert!(bytes <= HEADER_BYTES + channel.frame_bytes_max(), "{bytes} on {channel:?}");
            let said = decode(raw(&transmit.frame), channel);
            let kind = transmit.frame.kind();
            assert!(
                said.as_ref().is_ok_and(|said| !matches!(said, Message::Unknown { .. })),
                "{bytes} bytes of kind {kind:#04x} on {channel:?}: {:?}",
                said.err()
            );
            let peer = self.links.get_mut(&link);
            let peer = peer.unwrap_or_else(|| panic!("{kind:#04x} on {link:?}, which is gone"));
            if channel != Channel::Control {
                used.insert(link);
            }
            let unsent = peer.unsent.entry(channel).or_default();
            unsent.push_back(bytes);
            let waiting: usize = unsent.iter().sum();
            let window = match channel {
                Channel::Bulk => limits::BULK_WINDOW_BYTES,
                _ => limits::TRANSPORT_WINDOW_BYTES,
            };
            assert!(waiting <= window.max(bytes), "{waiting} bytes in transport on {channel:?}");
        }
        while let Some(action) = self.node.poll_action() {
            self.act(action);
        }
        let opened = |link: &LinkId| self.links[link].is_ready;
        assert!(used.iter().all(opened), "something beside control before the handshake");
        while let Some(event) = self.node.poll_event() {
            match event {
                Event::CallDone { call, .. } => {
                    assert!(self.open.remove(&call), "{call:?} ends twice or never began");
                }
                Event::Request { request, .. } => self.requests.push(request.0),
                Event::StreamRoom { end, full: true } => drop(self.full.insert(end)),
                Event::StreamRoom { end, full: false } => drop(self.full.remove(&end)),
                _ => {}
            }
        }
    }

    fn act(&mut self, action: Action) {
        let (Action::OpenLanes { link }
        | Action::Pause { link, .. }
        | Action::Resume { link, .. }
        | Action::FinishStream { link, .. }
        | Action::ResetStream { link, .. }
        | Action::CloseLink { link, .. }) = action;
        let Some(peer) = self.links.get_mut(&link) else {
            // a stream went with its link
            let is_late =
                matches!(action, Action::FinishStream { .. } | Action::ResetStream { .. });
            assert!(is_late, "{action:?}: it is gone");
            return;
        };
        match action {
            Action::OpenLanes { .. } => peer.is_ready = true,
            Action::Pause { channel, .. } => drop(peer.paused.insert(channel)),
            Action::Resume { channel, .. } => drop(peer.paused.remove(&channel)),
            Action::CloseLink { .. } => peer.is_closing = true,
            Action::FinishStream { .. } | Action::ResetStream { .. } => {}
        }
    }

    fn check(&self) {
        let status = self.node.status();
        assert!(status.links.len() <= LINKS_MAX, "{} links", status.links.len());
        for link in status.links {
            assert!(link.queued_bytes <= QUEUED_BYTES_MAX, "{} bytes wait", link.queued_bytes);
        }
        for realm in status.realms {
            assert!(realm.ring_bytes <= RING_BYTES_BOUND, "{} bytes of ring", realm.ring_bytes);
        }
    }

    /// All links break, the application ends what would never end, and time passes.
    fn finish(mut self) {
        for link in self.links.keys().copied().collect::<Vec<_>>() {
            self.link_down(link);
        }
        for number in self.subscriptions.clone() {
            self.command(Command::Unsubscribe { subscription: SubscriptionId(number) });
        }
        for number in self.registrations.clone() {
            self.command(Command::Unregister { registration: RegistrationId(number) });
        }
        let mut wakes = 0;
        while let Some((at, kind)) = self.node.poll_timeout() {
            self.now = self.now.max(at);
            self.pass(Duration::ZERO);
            wakes += 1;
            assert!(wakes < WAKES_MAX, "a node without links is never at rest: {kind:?}");
        }
        assert!(self.open.is_empty(), "calls without end at a {:?}: {:?}", self.role, self.open);
        let status = self.node.status();
        assert!(status.links.is_empty());
        for realm in status.realms {
            let left = (realm.peers, realm.subscriptions, realm.registrations);
            assert_eq!(left, (0, 0, 0), "peers, subscriptions, registrations");
        }
    }
}

const LINKS_MAX: usize = 4;
const CONTROL_QUEUE_BYTES_MAX: usize = 200_000;
const LANE_QUEUE_BYTES_MAX: usize = 300_000;
const CALL_QUEUE_BYTES_MAX: usize = 200_000;
/// What may wait for one link: each limit, twice where a source may be one batch beyond it.
const QUEUED_BYTES_MAX: usize = CONTROL_QUEUE_BYTES_MAX
    + 2 * 4 * LANE_QUEUE_BYTES_MAX
    + 2 * CALL_QUEUE_BYTES_MAX
    + 12 * 2 * limits::TRANSPORT_WINDOW_BYTES;
/// Twice the configured limit, beyond which messages are refused, and one message of each link.
const RING_BYTES_BOUND: usize = 2 * 200_000 + 8 * 100_000;
/// More than one timer per call, session, realm and link.
const WAKES_MAX: usize = 10_000;

/// The node, and three peers.
fn ids() -> [EndpointId; 4] {
    [9, 1, 2, 3].map(|byte| EndpointId::from_bytes([byte; 32]))
}

/// Two that the node joins, one that it may host, one whose id is special, and a stranger that has
/// the tag of the first.
fn realms() -> [RealmId; 5] {
    let named = ["a", "b", "c"].map(RealmId::of_name);
    let mut endpoint = [1; 32];
    endpoint[..8].fill(0);
    let mut twin = *named[0].as_bytes();
    twin[31] ^= 1;
    let [a, b, c] = named;
    [a, b, c, RealmId::from_bytes(endpoint), RealmId::from_bytes(twin)]
}

const GOOD_NAMES: [&str; 5] = ["a.b", "a.c", "d", "macula.ping", "macula.stats"];
const NAMES: [&str; 8] =
    ["a.b", "a.c", "d", "macula.ping", "macula.info", "macula.none", "a..b", "a b"];
const PATTERNS: [&str; 4] = ["a.b", "a.*", "**", "*.c"];
const ANY_PATTERNS: [&str; 6] = ["a.b", "a.*", "**", "*.c", "d", "**.a"];

const KINDS: [u8; 33] = [
    kind::SUBSCRIBE,
    kind::PUBLISH,
    kind::CALL,
    kind::REGISTER,
    kind::REPLY,
    kind::ITEM,
    kind::JOIN,
    kind::REALMS,
    kind::GOODBYE,
    kind::PING,
    kind::PONG,
    kind::SUBSCRIBE_RESULT,
    kind::UNSUBSCRIBE,
    kind::DROPPED,
    kind::PUBLISH_ACK,
    kind::PUBLISH_REFUSED,
    kind::DELIVER_ACK,
    kind::BULK_ACK,
    kind::SYNC_DONE,
    kind::EXPECT,
    kind::PRUNE,
    kind::UNPRUNE,
    kind::QUIET,
    kind::REGISTER_RESULT,
    kind::UNREGISTER,
    kind::RETAINED,
    kind::SYNC,
    kind::PRUNED,
    kind::BULK_PUBLISH,
    kind::CALL_ERROR,
    kind::CANCEL,
    kind::ITEMS_END,
    0x7f,
];

fn hello(choice: u8) -> Message {
    let realm = |index: u8| RealmOffer {
        realm: realms()[usize::from(index)],
        grant: filler(usize::from(index)),
    };
    Message::Hello(Hello {
        version_min: if choice == 255 { 2 } else { 1 },
        version_max: 3,
        capabilities: 1,
        is_router: choice & 1 == 0,
        instance: u64::from(choice >> 1 & 1) + 1,
        resumes: [0, 0, 7, 6][usize::from(choice >> 2 & 3)],
        observed: String::new(),
        agent: "fuzz".to_owned(),
        realms: match choice >> 4 & 3 {
            0 => vec![realm(0), realm(1)],
            1 => vec![realm(0), realm(2), realm(3)],
            2 => vec![realm(4), realm(0)],
            _ => Vec::new(),
        },
    })
}

/// A message of this kind: `b` says about whom and what, `c` how much.
fn message(kind: u8, b: u8, c: u8, peer: EndpointId) -> Message {
    let realm = [&realms()[..], &realms()[..3]].concat()[usize::from(b & 7)].tag();
    let name = NAMES[usize::from(b >> 3 & 7)].to_owned();
    let number = u64::from(c >> 4);
    let small = u32::from(c & 15);
    let refusal = (b & 64 != 0).then(|| (RefusalCode::Limit, "no".to_owned()));
    let id = number;
    match kind {
        kind::REALMS => Message::Realms(
            realms()
                .into_iter()
                .take(1 + usize::from(b & 7))
                .map(|realm| RealmStatus { realm, refusal: refusal.clone() })
                .collect(),
        ),
        kind::JOIN => {
            let realm = pick(&realms(), b);
            Message::Join(vec![RealmOffer { realm, grant: Bytes::new() }; usize::from(c % 3)])
        }
        kind::GOODBYE => Message::Goodbye {
            code: if b & 1 == 0 { CloseCode::Done } else { CloseCode::Restarting },
            reason: "bye".to_owned(),
            reconnect_in: Duration::from_millis(number),
        },
        kind::PING => Message::Ping { id },
        kind::PONG => Message::Pong { id },
        kind::SUBSCRIBE => Message::Subscribe(Subscribe {
            realm,
            subscription: small,
            pattern: pick(&ANY_PATTERNS, b >> 3).to_owned(),
            policy: policy(c >> 4),
            resume: b & 128 != 0,
            retained: c & 128 != 0,
        }),
        kind::SUBSCRIBE_RESULT => Message::SubscribeResult { realm, subscription: small, refusal },
        kind::UNSUBSCRIBE => Message::Unsubscribe { realm, subscription: small },
        kind::DROPPED => Message::Dropped { realm, messages: number },
        kind::PUBLISH_ACK => Message::PublishAck(PublishAck {
            realm,
            topic: name,
            epoch: if b & 128 == 0 { 7 } else { 1 },
            accepted: number,
            delivered: u64::from(small),
            receivers: small,
            is_complete: b & 64 != 0,
        }),
        kind::PUBLISH_REFUSED => Message::PublishRefused {
            realm,
            topic: name,
            first: number,
            count: small,
            code: RefusalCode::Limit,
            reason: String::new(),
        },
        kind::DELIVER_ACK => Message::DeliverAck {
            lane: 1 + b % 4,
            frames: if c == 255 { u64::MAX } else { number },
        },
        kind::BULK_ACK => Message::BulkAck { id },
        kind::SYNC_DONE => Message::SyncDone { id },
        kind::EXPECT => Message::Expect { realm, topic: name, receivers: small },
        kind::PRUNE => Message::Prune(Prune {
            realm,
            publisher: pick(&ids(), c),
            epoch: 1,
            topic: name,
            id,
            from: u64::from(b >> 4),
            taken: if c == 255 { u64::MAX } else { number },
        }),
        kind::QUIET => Message::Quiet { realm, topic: name, receivers: small },
        kind::UNPRUNE => {
            Message::Unprune { realm, publisher: pick(&ids(), c), epoch: 1, topic: name }
        }
        kind::REGISTER => Message::Register(Register {
            realm,
            registration: small,
            procedure: name,
            concurrency: u32::from(c >> 6),
        }),
        kind::REGISTER_RESULT => Message::RegisterResult { realm, registration: small, refusal },
        kind::UNREGISTER => Message::Unregister { realm, registration: small },
        kind::PUBLISH => Message::Publish(publish(realm, &name, b, c, peer, Size::Lane)),
        kind::BULK_PUBLISH => {
            Message::BulkPublish { id, publish: publish(realm, &name, b, c, peer, Size::Bulk) }
        }
        kind::RETAINED => Message::Retained {
            subscription: small,
            publish: publish(realm, &name, b, c & 0xfc, peer, Size::Lane),
        },
        kind::SYNC => Message::Sync { id },
        kind::PRUNED => Message::Pruned { id },
        kind::CALL => Message::Call(Call {
            call: number,
            realm: if b == 255 { RealmTag::ENDPOINT } else { realm },
            procedure: name,
            deadline: Duration::from_millis(1 << small),
            policy: provider_policy(c >> 2),
            idempotent: c & 1 == 0,
            streaming: b & 64 != 0,
            target: (b & 128 != 0).then(|| pick(&ids(), c)),
            caller: (c & 2 == 0).then_some(peer),
            traceparent: Bytes::new(),
            body: filler(size(c << 2)),
        }),
        kind::REPLY => Message::Reply { call: number, body: filler(size(b)) },
        kind::CALL_ERROR => Message::CallError { call: number, failure: failure(b) },
        kind::CANCEL => Message::Cancel { call: number },
        kind::ITEM => Message::Item {
            call: number,
            body: filler(size(b).min(limits::LANE_MESSAGE_BYTES_MAX)),
        },
        kind::ITEMS_END => Message::ItemsEnd { call: number },
        kind => Message::Unknown { kind },
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Size {
    Lane,
    Bulk,
}

fn publish(realm: RealmTag, topic: &str, b: u8, c: u8, peer: EndpointId, size_of: Size) -> Publish {
    let (count, body) = match (size_of, c & 3) {
        (Size::Lane, 1) => (3, Bytes::from_static(b"\x01a\x00\x02bc")),
        (Size::Lane, 2) => (3, Bytes::from_static(b"\x01a\x00\x7fbc")),
        (Size::Lane, _) => (1, filler(size(c).min(limits::LANE_MESSAGE_BYTES_MAX))),
        (Size::Bulk, _) => (1, filler(size(c | 0x80))),
    };
    Publish {
        realm,
        publisher: if b & 128 == 0 { peer } else { pick(&ids(), c) },
        epoch: 1 + u64::from(b >> 6 & 1),
        first: 1 + u64::from(c >> 4) * u64::from(count),
        count,
        ttl: [0, 1, 20, 20][usize::from(b & 3)],
        qos1: c & 4 != 0,
        retain: c & 8 != 0,
        start: c >> 4 == 0,
        topic: Bytes::copy_from_slice(topic.as_bytes()),
        body,
    }
}

fn failure(choice: u8) -> CallFailure {
    let classes = [ErrorClass::Refused, ErrorClass::Busy, ErrorClass::Unreachable];
    CallFailure {
        class: pick(&classes, choice),
        code: u16::from(choice),
        message: String::new(),
        retry_after: Duration::from_millis(u64::from(choice)),
        retry_safe: choice & 4 == 0,
    }
}

fn policy(choice: u8) -> SlowPolicy {
    pick(&[SlowPolicy::DropOldest, SlowPolicy::Block, SlowPolicy::Disconnect], choice)
}

fn provider_policy(choice: u8) -> ProviderPolicy {
    use ProviderPolicy::{First, Nearest, Random, RoundRobin};
    pick(&[Nearest, RoundRobin, Random, First], choice)
}

/// Mostly small; sometimes as much as a lane takes, and more.
fn size(choice: u8) -> usize {
    match choice {
        0..=127 => usize::from(choice),
        128..=239 => usize::from(choice - 127) * 300,
        _ => limits::LANE_MESSAGE_BYTES_MAX - 2000 + usize::from(choice - 240) * 600,
    }
}

/// Where such a message belongs.
fn home(message: &Message, choice: u8) -> Channel {
    match message {
        Message::Publish(publish) | Message::Retained { publish, .. } => {
            Channel::Lane(lane_of(&publish.topic))
        }
        Message::BulkPublish { .. } => Channel::Bulk,
        Message::Call(Call { streaming: true, .. })
        | Message::Item { .. }
        | Message::ItemsEnd { .. } => Channel::Stream(StreamId(u64::from(choice & 7))),
        Message::Call(Call { body, .. }) | Message::Reply { body, .. } => {
            if choice & 8 == 0 && matches!(message, Message::Reply { .. }) {
                Channel::Stream(StreamId(u64::from(choice & 7)))
            } else if body.len() > limits::LANE_MESSAGE_BYTES_MAX {
                Channel::Bulk
            } else {
                Channel::CALLS
            }
        }
        Message::CallError { .. } | Message::Cancel { .. } => Channel::CALLS,
        Message::Sync { .. } => Channel::Lane(choice % 5),
        _ => Channel::Control,
    }
}

/// The transport reads no lane beyond the last one.
fn exists(channel: Channel) -> bool {
    !matches!(channel, Channel::Lane(limits::LANE_COUNT..))
}

/// One of those that there were, or one that never was.
fn any_of(known: &[u64], choice: u8) -> u64 {
    known.iter().rev().nth(usize::from(choice) % (known.len() + 1)).copied().unwrap_or(u64::MAX)
}

fn raw(frame: &Frame) -> RawFrame {
    let mut payload = BytesMut::from(&frame.head[HEADER_BYTES..]);
    payload.extend_from_slice(&frame.body);
    RawFrame { kind: frame.kind(), payload: payload.freeze() }
}
