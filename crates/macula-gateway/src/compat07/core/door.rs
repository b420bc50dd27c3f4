//! The door: connections of v0.7 clients, what they say, and what is to be done about it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use macula_proto::Time;
use sha2::{Digest, Sha256};

use super::dialect::Value;
pub use super::realm::{ConnectionId, StreamId};
use super::realm::{Node, Realm};
use super::topics;
use super::wire::{
    self, Call, Connect, Fault, FrameReader, Key, Message, Next, Outcome, Publish, Reply, Route,
    kind,
};

/// A client whose first subscription is not followed by the mark of old receivers within this has a
/// receiver that takes messages.
pub const MARK_WAIT: Duration = Duration::from_secs(1);
/// A message that comes again within this is a retransmission: v0.7 repeats after 5 s and 10 s.
pub const REPEAT_WINDOW: Duration = Duration::from_secs(15);
/// Messages of one connection that are remembered for it.
const REPEATS_MAX: usize = 1_024;
/// A connection that is in no realm is closed after this.
pub const STRANGER_TIMEOUT: Duration = Duration::from_secs(60);
/// What a v0.7 client gives a call.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Calls of clients at once, over all of them.
const CALLS_MAX: usize = 16_384;
/// A provider that left so many calls in a row without an answer is asked no more.
const UNANSWERED_MAX: u32 = 2;
/// Longest id of a node and longest URL, bytes.
const NAME_BYTES_MAX: usize = 256;
/// Longest number of a call or a message, bytes.
const NUMBER_BYTES_MAX: usize = 64;
/// Longest name of a realm, bytes.
const REALM_BYTES_MAX: usize = 128;

/// Whether clients whose receiver is known to crash on PUBLISH get any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LegacyDelivery {
    /// Only those that do not bear the mark of such receivers: a STORE under the SHA-256 of a topic
    /// that they subscribed to.
    #[default]
    Auto,
    /// All.
    Always,
    /// Nobody.
    Never,
}

/// Settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// Realms by name.
    pub realms: Vec<String>,
    /// Further realms that clients may name; 0: none.
    pub other_realms_max: usize,
    /// See [`LegacyDelivery`].
    pub legacy_delivery: LegacyDelivery,
    /// Names of procedures that v0.7 clients provide: on the wire they have only a hash.
    pub procedures: Vec<String>,
    /// Largest payload of a frame, bytes.
    pub payload_bytes_max: usize,
    /// What all clients together may have in frames that are not complete, bytes.
    pub partial_bytes_max: usize,
    /// Subscriptions of a client.
    pub subscriptions_per_client_max: usize,
    /// Different patterns with wildcards in a realm.
    pub wildcards_per_realm_max: usize,
    /// Different topics of a realm on which clients may publish to native peers, since the start.
    pub topics_per_realm_max: usize,
    /// Stored values of a client.
    pub values_per_client_max: usize,
    /// Largest stored value, bytes.
    pub value_bytes_max: usize,
    /// Calls of a client, and calls given to it, at once; each.
    pub calls_per_client_max: usize,
    /// Messages that wait until it is known whether the client can take them, bytes.
    pub held_bytes_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            realms: Vec::new(),
            other_realms_max: 0,
            legacy_delivery: LegacyDelivery::Auto,
            procedures: Vec::new(),
            payload_bytes_max: 1 << 20,
            partial_bytes_max: 64 << 20,
            subscriptions_per_client_max: 256,
            wildcards_per_realm_max: 4_096,
            topics_per_realm_max: 131_072,
            values_per_client_max: 512,
            value_bytes_max: 4 << 10,
            calls_per_client_max: 64,
            held_bytes_max: 256 << 10,
        }
    }
}

/// The time, by both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// For durations.
    pub time: Time,
    /// Unix time, milliseconds.
    pub unix_ms: u64,
}

/// Name of a realm.
pub type RealmName = Arc<str>;

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Send a frame.
    Send {
        /// On this stream.
        stream: StreamId,
        /// A whole frame.
        frame: Bytes,
        /// May be dropped when the client is slow.
        is_publish: bool,
    },
    /// End our half of a stream.
    Finish {
        /// Which.
        stream: StreamId,
    },
    /// Close a connection.
    Close {
        /// Which.
        connection: ConnectionId,
        /// Why, in words.
        reason: &'static str,
    },
    /// Ask native peers for the messages of a pattern. Answered by [`Door::subscribed`].
    Subscribe {
        /// Realm.
        realm: RealmName,
        /// Pattern.
        pattern: Arc<str>,
    },
    /// End that.
    Unsubscribe {
        /// Realm.
        realm: RealmName,
        /// Pattern.
        pattern: Arc<str>,
    },
    /// Publish for native peers.
    Publish {
        /// Realm.
        realm: RealmName,
        /// Topic, not checked.
        topic: Bytes,
        /// Message.
        payload: Bytes,
        /// With acknowledgement.
        at_least_once: bool,
        /// As the topic's retained message.
        retain: bool,
    },
    /// Call a native provider. Answered by [`Door::called`].
    Call {
        /// Realm.
        realm: RealmName,
        /// The door's number for it.
        call: u64,
        /// Name, not checked.
        procedure: Bytes,
        /// Argument.
        args: Bytes,
    },
    /// Offer a procedure to native peers: its calls come in by [`Door::request`].
    Serve {
        /// Realm.
        realm: RealmName,
        /// Name, not checked.
        procedure: String,
    },
    /// End that.
    Unserve {
        /// Realm.
        realm: RealmName,
        /// Name.
        procedure: String,
    },
    /// The answer to a native peer's call.
    Answer {
        /// As given to [`Door::request`].
        request: u64,
        /// Result or fault.
        outcome: Outcome,
    },
}

/// What came of a native call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Called {
    /// The result.
    Result(Bytes),
    /// No native peer provides it.
    NoProvider,
    /// Something else went wrong.
    Fault(Fault),
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Counters since the start; the first five say how it is now.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Stats {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Stats {
            /// All, by name.
            pub fn named(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name)),*]
            }
        }
    };
}

counters! {
    /// Connections.
    connections,
    /// Clients: connections with a node id in a realm.
    clients,
    /// Clients with a receiver that is known to crash on PUBLISH.
    clients_legacy,
    /// Subscriptions.
    subscriptions,
    /// Procedures that native peers are offered.
    procedures,
    /// Connections that took a node id over from another one.
    replaced,
    /// CONNECTs refused because of the realm.
    refused_realm,
    /// Frames understood.
    frames,
    /// Frames left out: unknown version or type, or a payload that is not one value.
    frames_skipped,
    /// Frames left out because they were too large.
    frames_too_large,
    /// Messages without a field that they need, or with one that cannot be.
    malformed,
    /// Messages without effect because their connection is in no realm.
    strangers,
    /// Things refused because a limit was reached.
    over_limit,
    /// Messages published by clients.
    published,
    /// Of them, repetitions left out.
    repeated,
    /// Of them, those that native peers cannot get because of their topic.
    not_native,
    /// Messages of native peers that came for clients.
    native_in,
    /// Messages put into queues of clients.
    delivered,
    /// Messages not sent to clients because of `legacy_delivery`.
    held_back,
    /// Messages dropped while it was unknown whether the client can take them.
    held_dropped,
    /// Calls of clients.
    calls,
    /// Calls given to clients.
    calls_given,
    /// Of them, those without an answer in time.
    calls_unanswered,
    /// Routes dropped: too many hops, or nobody there.
    routes_dropped,
}

/// All state of the door. It does nothing by itself: what is to be done lies in
/// [`Door::take_outputs`] after each call.
#[derive(Debug)]
pub struct Door {
    config: Config,
    /// By key, as on the wire.
    procedures: BTreeMap<Key, String>,
    connections: BTreeMap<ConnectionId, Connection>,
    streams: BTreeMap<StreamId, Stream>,
    realms: BTreeMap<RealmName, Realm>,
    others: usize,
    /// Calls of clients.
    asked: BTreeMap<u64, Asked>,
    /// Calls given to clients.
    given: BTreeMap<u64, Given>,
    next_call: u64,
    partial_bytes: usize,
    /// Connections whose mark is waited for, by the time that it ends.
    waiting: BTreeSet<(Time, ConnectionId)>,
    /// Connections in no realm, by the time of their end.
    unbound: BTreeSet<(Time, ConnectionId)>,
    /// Calls given to clients by their deadlines.
    deadlines: BTreeSet<(Time, u64)>,
    stats: Stats,
    out: Vec<Output>,
}

#[derive(Debug)]
struct Connection {
    realm: Option<RealmName>,
    node_id: Option<Bytes>,
    /// The stream of its CONNECT: the one that a v0.7 client reads.
    main: Option<StreamId>,
    streams: BTreeSet<StreamId>,
    subscriptions: usize,
    partial_bytes: usize,
    mark: Mark,
    held: VecDeque<(StreamId, Bytes)>,
    held_bytes: usize,
    repeats: Repeats,
    calls: usize,
    given: usize,
    unanswered: u32,
    stranger_until: Time,
}

/// What is known of a client's receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    /// It takes messages, as far as known.
    None,
    /// It has just subscribed; what follows on this stream, or nothing until then, tells.
    Awaited(StreamId, Time),
    /// It crashes on PUBLISH.
    Legacy,
}

#[derive(Debug)]
struct Stream {
    connection: ConnectionId,
    reader: FrameReader,
    /// In order of subscribing.
    patterns: Vec<Pattern>,
}

#[derive(Clone, Debug)]
struct Pattern {
    text: Bytes,
    native: Option<Arc<str>>,
    key: Key,
}

/// Messages seen lately.
#[derive(Debug, Default)]
struct Repeats {
    order: VecDeque<(Time, u128)>,
    seen: BTreeSet<u128>,
}

impl Repeats {
    /// Whether a message is new.
    fn is_new(&mut self, now: Time, publish: &Publish) -> bool {
        if publish.message_id.is_empty() {
            return true;
        }
        while let Some((at, digest)) = self.order.front().copied()
            && (now - at >= REPEAT_WINDOW || self.order.len() >= REPEATS_MAX)
        {
            self.order.pop_front();
            self.seen.remove(&digest);
        }
        let mut hash = Sha256::new();
        for part in [&publish.message_id, &publish.topic, &publish.payload] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        let digest = hash.finalize();
        let digest = digest.first_chunk().map_or(0, |bytes| u128::from_be_bytes(*bytes));
        let is_new = self.seen.insert(digest);
        if is_new {
            self.order.push_back((now, digest));
        }
        is_new
    }
}

/// A call of a client.
#[derive(Debug)]
struct Asked {
    stream: StreamId,
    realm: RealmName,
    call: Call,
    /// Destination and source, if it came by RPC_ROUTE.
    route: Option<(Bytes, Bytes)>,
}

/// A call that a client shall answer.
#[derive(Debug)]
struct Given {
    connection: ConnectionId,
    realm: RealmName,
    key: Key,
    whose: Whose,
    deadline: Time,
}

#[derive(Clone, Copy, Debug)]
enum Whose {
    /// Of a native peer.
    Request(u64),
    /// Of a client.
    Asked(u64),
}

impl Door {
    /// Nobody is there yet.
    pub fn new(config: Config) -> Self {
        let realms = config.realms.iter().map(|name| (Arc::from(name.as_str()), Realm::default()));
        let procedures =
            config.procedures.iter().map(|name| (key_of(name.as_bytes()), name.clone()));
        Self {
            procedures: procedures.collect(),
            realms: realms.collect(),
            config,
            connections: BTreeMap::new(),
            streams: BTreeMap::new(),
            others: 0,
            asked: BTreeMap::new(),
            given: BTreeMap::new(),
            next_call: 1,
            partial_bytes: 0,
            waiting: BTreeSet::new(),
            unbound: BTreeSet::new(),
            deadlines: BTreeSet::new(),
            stats: Stats::default(),
            out: Vec::new(),
        }
    }

    /// What is to be done since the last time, in order.
    pub fn take_outputs(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.out)
    }

    /// Counters.
    pub fn stats(&self) -> Stats {
        Stats {
            connections: self.connections.len() as u64,
            clients: self.realms.values().map(|realm| realm.nodes.len() as u64).sum(),
            procedures: self.realms.values().map(|realm| realm.serving.len() as u64).sum(),
            ..self.stats
        }
    }

    /// Whose a stream is.
    pub fn connection_of(&self, stream: StreamId) -> Option<ConnectionId> {
        self.streams.get(&stream).map(|stream| stream.connection)
    }

    /// Whether nothing is left of anybody: for tests.
    pub fn is_empty(&self) -> bool {
        let is_empty = |realm: &Realm| {
            realm.nodes.is_empty()
                && realm.topics.is_empty()
                && realm.store.is_empty()
                && realm.serving.is_empty()
        };
        self.connections.is_empty()
            && self.streams.is_empty()
            && self.given.is_empty()
            && self.partial_bytes == 0
            && self.waiting.is_empty()
            && self.unbound.is_empty()
            && self.deadlines.is_empty()
            && self.stats.subscriptions == 0
            && self.stats.clients_legacy == 0
            && self.realms.values().all(is_empty)
    }

    // --- connections -------------------------------------------------------------------------

    /// A client is there.
    pub fn opened(&mut self, now: Now, connection: ConnectionId) {
        let stranger_until = now.time + STRANGER_TIMEOUT;
        self.unbound.insert((stranger_until, connection));
        let new = Connection {
            realm: None,
            node_id: None,
            main: None,
            streams: BTreeSet::new(),
            subscriptions: 0,
            partial_bytes: 0,
            mark: Mark::None,
            held: VecDeque::new(),
            held_bytes: 0,
            repeats: Repeats::default(),
            calls: 0,
            given: 0,
            unanswered: 0,
            stranger_until,
        };
        self.connections.insert(connection, new);
    }

    /// It opened a stream.
    pub fn stream_opened(&mut self, connection: ConnectionId, stream: StreamId) {
        let Some(entry) = self.connections.get_mut(&connection) else { return };
        entry.streams.insert(stream);
        let reader = FrameReader::new(self.config.payload_bytes_max);
        self.streams.insert(stream, Stream { connection, reader, patterns: Vec::new() });
    }

    /// Bytes came on a stream.
    pub fn bytes(&mut self, now: Now, stream: StreamId, bytes: &[u8]) {
        let Some(entry) = self.streams.get_mut(&stream) else { return };
        let before = entry.reader.waiting();
        let id = entry.connection;
        entry.reader.push(bytes);
        // The stream may end while its frames are handled.
        while let Some(next) = self.streams.get_mut(&stream).and_then(|it| it.reader.take()) {
            match next {
                Next::Skipped => self.stats.frames_skipped += 1,
                Next::TooLarge => self.stats.frames_too_large += 1,
                Next::Frame(frame) => {
                    self.stats.frames += 1;
                    match Message::parse(&frame) {
                        Some(message) => self.message(now, id, stream, message),
                        None => self.stats.malformed += 1,
                    }
                }
            }
        }
        let after = self.streams.get(&stream).map(|it| it.reader.waiting());
        let Some(after) = after else { return };
        self.partial_bytes = self.partial_bytes + after - before;
        let Some(entry) = self.connections.get_mut(&id) else { return };
        entry.partial_bytes = entry.partial_bytes + after - before;
        let is_too_much = entry.partial_bytes
            > 2 * (self.config.payload_bytes_max + wire::HEADER_BYTES)
            || self.partial_bytes > self.config.partial_bytes_max;
        if after > before && is_too_much {
            self.stats.over_limit += 1;
            self.out.push(Output::Close {
                connection: id,
                reason: "too much of frames that do not end",
            });
        }
    }

    /// The client ended a stream, or it broke off. Our half ends at once: a v0.7 client waits for that.
    pub fn stream_ended(&mut self, stream: StreamId) {
        self.end_subscriptions(stream);
        let Some(ended) = self.streams.remove(&stream) else { return };
        self.out.push(Output::Finish { stream });
        let waiting = ended.reader.waiting();
        self.partial_bytes -= waiting;
        let Some(connection) = self.connections.get_mut(&ended.connection) else { return };
        connection.partial_bytes -= waiting;
        connection.streams.remove(&stream);
        connection.held.retain(|(held, _)| *held != stream);
        connection.held_bytes = connection.held.iter().map(|(_, frame)| frame.len()).sum();
        if connection.main == Some(stream) {
            connection.main = None;
        }
    }

    /// A connection is gone.
    pub fn closed(&mut self, connection: ConnectionId) {
        let streams = self.connections.get(&connection).map(|it| it.streams.clone());
        for stream in streams.into_iter().flatten() {
            self.stream_ended(stream);
        }
        self.fail_given(connection);
        self.settle_mark(connection, Mark::None);
        let Some(gone) = self.connections.remove(&connection) else { return };
        self.unbound.remove(&(gone.stranger_until, connection));
        self.stats.clients_legacy -= u64::from(gone.mark == Mark::Legacy);
        if let (Some(realm), Some(node_id)) = (gone.realm, gone.node_id) {
            self.node_left(&realm, &node_id, connection);
        }
    }

    /// A node is no longer there by `connection`; if another one has taken over, all stays.
    fn node_left(&mut self, name: &RealmName, node_id: &Bytes, connection: ConnectionId) {
        let Some(realm) = self.realms.get_mut(name) else { return };
        if realm.nodes.get(node_id).is_none_or(|node| node.connection != connection) {
            return;
        }
        realm.nodes.remove(node_id);
        for key in realm.store.remove(node_id) {
            self.offer(name, key, None);
        }
    }

    /// What is due.
    pub fn tick(&mut self, now: Now) {
        while let Some((at, connection)) = self.waiting.first().copied()
            && at <= now.time
        {
            self.settle_mark(connection, Mark::None);
            self.waiting.remove(&(at, connection));
        }
        while let Some((at, connection)) = self.unbound.first().copied()
            && at <= now.time
        {
            self.unbound.remove(&(at, connection));
            self.out.push(Output::Close { connection, reason: "in no realm" });
        }
        while let Some((at, call)) = self.deadlines.first().copied()
            && at <= now.time
        {
            self.deadlines.remove(&(at, call));
            self.unanswered(call, true);
        }
    }

    // --- messages of clients -----------------------------------------------------------------

    fn message(&mut self, now: Now, id: ConnectionId, stream: StreamId, message: Message) {
        let is_mark = matches!(message, Message::Store(..) | Message::Subscribe(_));
        let Some(connection) = self.connections.get(&id) else { return };
        if matches!(connection.mark, Mark::Awaited(on, _) if on == stream && !is_mark) {
            self.settle_mark(id, Mark::None);
        }
        match message {
            Message::Connect(connect) => return self.connect(now, id, stream, connect),
            Message::Ping(timestamp) => {
                self.touch(now, id);
                let frame = wire::pong(timestamp, i128::from(now.unix_ms));
                return self.out.push(Output::Send { stream, frame, is_publish: false });
            }
            Message::Other(_) => return,
            _ => {}
        }
        let Some(realm) = self.realm_of(id) else {
            self.stats.strangers += 1;
            return;
        };
        self.touch(now, id);
        match message {
            Message::Subscribe(topics) => self.subscribe(now, id, stream, &realm, topics),
            Message::Unsubscribe(topics) => self.unsubscribe(id, stream, &realm, &topics),
            Message::Publish(publish) => self.publish(now, id, &realm, publish, None),
            Message::Store(key, value) => self.store(id, &realm, key, &value),
            Message::FindValue(key) => self.find_value(stream, &realm, &key),
            Message::FindNode(target) => {
                let nodes = self.realms.get(&realm).map(|it| it.closest(&target));
                let frame = wire::found_nodes(&nodes.unwrap_or_default());
                self.out.push(Output::Send { stream, frame, is_publish: false });
            }
            Message::Call(call) => self.call(id, stream, &realm, call, None),
            Message::Reply(reply) => self.reply(id, reply),
            Message::RpcRoute(route) => self.rpc_route(id, stream, &realm, &route),
            Message::PubsubRoute(route) => self.pubsub_route(now, id, &realm, &route),
            Message::Connect(_) | Message::Ping(_) | Message::Other(_) => {}
        }
    }

    /// The realm of a connection. One that has not said CONNECT is in the realm of the door, if that
    /// has one only: nodes of v0.7 send single messages so.
    fn realm_of(&mut self, id: ConnectionId) -> Option<RealmName> {
        let connection = self.connections.get_mut(&id)?;
        if connection.realm.is_none() && self.config.other_realms_max == 0 && self.realms.len() == 1
        {
            connection.realm = self.realms.keys().next().cloned();
            self.unbound.remove(&(connection.stranger_until, id));
        }
        connection.realm.clone()
    }

    fn touch(&mut self, now: Now, id: ConnectionId) {
        let Some(connection) = self.connections.get(&id) else { return };
        let (Some(realm), Some(node_id)) = (&connection.realm, &connection.node_id) else { return };
        let node = self.realms.get_mut(realm).and_then(|realm| realm.nodes.get_mut(node_id));
        if let Some(node) = node.filter(|node| node.connection == id) {
            node.last_seen = i128::from(now.unix_ms);
        }
    }

    fn connect(&mut self, now: Now, id: ConnectionId, stream: StreamId, connect: Connect) {
        if !(1..=NAME_BYTES_MAX).contains(&connect.node_id.len()) {
            self.stats.malformed += 1;
            return;
        }
        let known = self.connections.get(&id).and_then(|it| it.realm.clone());
        let name =
            self.admit(&connect.realm).filter(|name| known.is_none_or(|known| known == *name));
        let Some(name) = name else {
            // As the original: the stream ends, nothing is said.
            self.stats.refused_realm += 1;
            return self.out.push(Output::Finish { stream });
        };
        let node_id = copy(&connect.node_id);
        let before = self.connections.get(&id).and_then(|it| it.node_id.clone());
        if let Some(before) = before.filter(|before| *before != node_id) {
            self.node_left(&name, &before, id);
        }
        let Some(realm) = self.realms.get_mut(&name) else { return };
        let endpoint = connect.endpoint.filter(|it| it.len() <= NAME_BYTES_MAX).map(|it| copy(&it));
        let node = Node { connection: id, endpoint, last_seen: i128::from(now.unix_ms) };
        let replaced = realm.nodes.insert(node_id.clone(), node).map(|node| node.connection);
        if let Some(connection) = self.connections.get_mut(&id) {
            self.unbound.remove(&(connection.stranger_until, id));
            connection.realm = Some(name);
            connection.node_id = Some(node_id);
            connection.main = Some(stream);
        }
        if let Some(old) = replaced.filter(|old| *old != id) {
            self.replace(old);
        }
        let time = i128::from(now.unix_ms);
        let frame = wire::pong(time, time);
        self.out.push(Output::Send { stream, frame, is_publish: false });
    }

    /// The realm that is named, if it is there or may be.
    fn admit(&mut self, name: &[u8]) -> Option<RealmName> {
        let name = std::str::from_utf8(name).ok()?;
        if let Some((name, _)) = self.realms.get_key_value(name) {
            return Some(name.clone());
        }
        let is_name = !name.is_empty()
            && name.len() <= REALM_BYTES_MAX
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte));
        if !is_name || self.others >= self.config.other_realms_max {
            return None;
        }
        self.others += 1;
        let name: RealmName = name.into();
        self.realms.insert(name.clone(), Realm::default());
        Some(name)
    }

    /// Another connection has the node id now: the old one wants nothing any more.
    fn replace(&mut self, old: ConnectionId) {
        self.stats.replaced += 1;
        self.fail_given(old);
        if let Some(connection) = self.connections.get_mut(&old) {
            // What it still says before it is closed is said by nobody.
            connection.node_id = None;
        }
        let streams = self.connections.get(&old).map(|it| it.streams.clone());
        for stream in streams.into_iter().flatten() {
            self.end_subscriptions(stream);
        }
        self.out
            .push(Output::Close { connection: old, reason: "another connection has this node id" });
    }

    // --- publish and subscribe ---------------------------------------------------------------

    fn subscribe(
        &mut self,
        now: Now,
        id: ConnectionId,
        stream: StreamId,
        name: &RealmName,
        topics: Vec<Bytes>,
    ) {
        for topic in topics {
            let Some(realm) = self.realms.get_mut(name) else { return };
            let Some(connection) = self.connections.get_mut(&id) else { return };
            let Some(entry) = self.streams.get_mut(&stream) else { return };
            if topic.is_empty() || topic.len() > topics::TOPIC_BYTES_MAX {
                self.stats.malformed += 1;
                continue;
            }
            if entry.patterns.iter().any(|pattern| pattern.text == topic) {
                continue;
            }
            let is_one_too_many = topics::has_wildcards(&topic)
                && !realm.topics.has(&topic)
                && realm.topics.wildcards() >= self.config.wildcards_per_realm_max;
            let subscriptions_max = self.config.subscriptions_per_client_max;
            if is_one_too_many || connection.subscriptions >= subscriptions_max {
                self.stats.over_limit += 1;
                continue;
            }
            connection.subscriptions += 1;
            self.stats.subscriptions += 1;
            let native: Option<Arc<str>> = topics::native(&topic).map(Into::into);
            let pattern = Pattern { text: copy(&topic), key: key_of(&topic), native };
            if realm.topics.add(stream, &pattern.text, pattern.native.as_ref())
                && let Some(native) = &pattern.native
            {
                let (realm, pattern) = (name.clone(), native.clone());
                self.out.push(Output::Subscribe { realm, pattern });
            }
            entry.patterns.push(pattern);
        }
        let is_auto = self.config.legacy_delivery == LegacyDelivery::Auto;
        let connection = self.connections.get_mut(&id);
        if let Some(connection) = connection.filter(|it| is_auto && it.mark == Mark::None) {
            let until = now.time + MARK_WAIT;
            connection.mark = Mark::Awaited(stream, until);
            self.waiting.insert((until, id));
        }
    }

    fn unsubscribe(
        &mut self,
        id: ConnectionId,
        stream: StreamId,
        name: &RealmName,
        topics: &[Bytes],
    ) {
        let Some(entry) = self.streams.get_mut(&stream) else { return };
        let (gone, kept) = std::mem::take(&mut entry.patterns)
            .into_iter()
            .partition(|it| topics.contains(&it.text));
        entry.patterns = kept;
        self.drop_patterns(id, stream, name, gone);
    }

    fn end_subscriptions(&mut self, stream: StreamId) {
        let Some(entry) = self.streams.get_mut(&stream) else { return };
        let (id, gone) = (entry.connection, std::mem::take(&mut entry.patterns));
        let name = self.connections.get(&id).and_then(|it| it.realm.clone());
        if let Some(name) = name {
            self.drop_patterns(id, stream, &name, gone);
        }
    }

    fn drop_patterns(
        &mut self,
        id: ConnectionId,
        stream: StreamId,
        name: &RealmName,
        gone: Vec<Pattern>,
    ) {
        let Some(realm) = self.realms.get_mut(name) else { return };
        let Some(connection) = self.connections.get_mut(&id) else { return };
        for Pattern { text, native, .. } in gone {
            connection.subscriptions -= 1;
            self.stats.subscriptions -= 1;
            if realm.topics.remove(stream, &text, native.as_ref())
                && let Some(pattern) = native
            {
                self.out.push(Output::Unsubscribe { realm: name.clone(), pattern });
            }
        }
    }

    /// A client publishes; with `only`, for that connection alone.
    fn publish(
        &mut self,
        now: Now,
        id: ConnectionId,
        name: &RealmName,
        publish: Publish,
        only: Option<ConnectionId>,
    ) {
        self.stats.published += 1;
        let is_bad = publish.topic.len() > topics::TOPIC_BYTES_MAX
            || publish.message_id.len() > NUMBER_BYTES_MAX;
        if is_bad {
            self.stats.malformed += 1;
            return;
        }
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if !connection.repeats.is_new(now.time, &publish) {
            self.stats.repeated += 1;
            return;
        }
        let Some(realm) = self.realms.get_mut(name) else { return };
        let topics_max = self.config.topics_per_realm_max;
        let is_admitted = only.is_none() && realm.admit_topic(&publish.topic, topics_max);
        let streams = realm.topics.subscribers(&publish.topic);
        if !streams.is_empty() {
            let frame = publish.frame();
            for stream in streams {
                let owner = self.streams.get(&stream).map(|it| it.connection);
                if only.is_none_or(|only| owner == Some(only)) {
                    self.deliver(stream, &frame);
                }
            }
        }
        if !is_admitted {
            self.stats.over_limit += u64::from(only.is_none());
            return;
        }
        self.out.push(Output::Publish {
            realm: name.clone(),
            topic: publish.topic,
            payload: publish.payload,
            at_least_once: publish.qos > 0,
            retain: publish.retain,
        });
    }

    /// The topic of an [`Output::Publish`] is none that native peers can have.
    pub fn not_native(&mut self) {
        self.stats.not_native += 1;
    }

    /// Native peers' messages of a pattern come from now on, or (`false`) will not come.
    pub fn subscribed(&mut self, realm: &str, pattern: &str, is_active: bool) {
        if let Some(realm) = self.realms.get_mut(realm) {
            realm.topics.set_active(pattern, is_active);
        }
    }

    /// A message of a native peer came by the subscription to `pattern`.
    pub fn native_message(
        &mut self,
        realm: &str,
        pattern: &str,
        topic: &str,
        payload: Bytes,
        at_least_once: bool,
    ) {
        let Some(entry) = self.realms.get(realm) else { return };
        let streams = entry.topics.subscribers_by(pattern, topic.as_bytes());
        let chosen: Vec<StreamId> = streams
            .into_iter()
            .filter(|stream| self.is_for(entry, *stream, pattern, topic))
            .collect();
        if chosen.is_empty() {
            return;
        }
        self.stats.native_in += 1;
        let number = self.next_number();
        let publish = Publish {
            topic: copy(topic.as_bytes()),
            payload,
            qos: u8::from(at_least_once),
            retain: false,
            message_id: number,
        };
        let frame = publish.frame();
        for stream in chosen {
            self.deliver(stream, &frame);
        }
    }

    /// Whether a stream gets a message by this native pattern: it comes by each one that matches, and
    /// the first of the stream's own counts.
    fn is_for(&self, realm: &Realm, stream: StreamId, native: &str, topic: &str) -> bool {
        let Some(entry) = self.streams.get(&stream) else { return false };
        if entry.patterns.len() == 1 {
            return true;
        }
        let mut matching = entry.patterns.iter().filter(|pattern| {
            pattern.native.as_deref().is_some_and(|it| it == native || realm.topics.is_active(it))
                && topics::matches(&pattern.text, topic.as_bytes())
        });
        matching.next().is_some_and(|first| first.native.as_deref() == Some(native))
    }

    /// A number that no other message or call of this door has.
    fn next_number(&mut self) -> Bytes {
        let number = u128::from(self.next_call);
        self.next_call += 1;
        copy(&number.to_be_bytes())
    }

    fn deliver(&mut self, stream: StreamId, frame: &Bytes) {
        let Some(id) = self.streams.get(&stream).map(|it| it.connection) else { return };
        let Some(connection) = self.connections.get_mut(&id) else { return };
        match (self.config.legacy_delivery, connection.mark) {
            (LegacyDelivery::Never, _) | (LegacyDelivery::Auto, Mark::Legacy) => {
                self.stats.held_back += 1;
            }
            (LegacyDelivery::Auto, Mark::Awaited(..)) => {
                connection.held_bytes += frame.len();
                connection.held.push_back((stream, frame.clone()));
                while connection.held_bytes > self.config.held_bytes_max
                    && let Some((_, dropped)) = connection.held.pop_front()
                {
                    connection.held_bytes -= dropped.len();
                    self.stats.held_dropped += 1;
                }
            }
            (LegacyDelivery::Always, _) | (LegacyDelivery::Auto, Mark::None) => {
                self.stats.delivered += 1;
                self.out.push(Output::Send { stream, frame: frame.clone(), is_publish: true });
            }
        }
    }

    /// It is known now what a client's receiver does: what was held goes out or is dropped.
    fn settle_mark(&mut self, id: ConnectionId, mark: Mark) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if connection.mark == Mark::Legacy {
            return;
        }
        if let Mark::Awaited(_, until) = connection.mark {
            self.waiting.remove(&(until, id));
        }
        connection.mark = mark;
        self.stats.clients_legacy += u64::from(mark == Mark::Legacy);
        connection.held_bytes = 0;
        for (stream, frame) in std::mem::take(&mut connection.held) {
            if mark == Mark::Legacy {
                self.stats.held_back += 1;
            } else {
                self.stats.delivered += 1;
                self.out.push(Output::Send { stream, frame, is_publish: true });
            }
        }
    }

    // --- stored values -----------------------------------------------------------------------

    fn store(&mut self, id: ConnectionId, name: &RealmName, key: Key, value: &Value) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let metadata = value.get("metadata");
        let streams = connection.streams.iter().filter_map(|stream| self.streams.get(stream));
        let is_subscribed = streams.flat_map(|it| &it.patterns).any(|pattern| pattern.key == key);
        if metadata.is_none() && is_subscribed {
            if self.config.legacy_delivery == LegacyDelivery::Auto {
                self.settle_mark(id, Mark::Legacy);
            }
        } else if matches!(connection.mark, Mark::Awaited(..)) {
            self.settle_mark(id, Mark::None);
        }
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let Some(owner) = connection.node_id.clone() else {
            self.stats.strangers += 1;
            return;
        };
        if metadata.is_some() {
            // It offers again: perhaps it answers now.
            connection.unanswered = 0;
        }
        let Some(realm) = self.realms.get_mut(name) else { return };
        let mut encoded = BytesMut::new();
        value.encode(&mut encoded);
        let is_one_too_many = realm.store.owned(&owner) >= self.config.values_per_client_max
            && !realm.store.has(&owner, &key);
        if is_one_too_many || encoded.len() > self.config.value_bytes_max {
            self.stats.over_limit += 1;
            return;
        }
        realm.store.put(&owner, key, copy(&encoded), metadata.is_some());
        self.offer(name, key, metadata.and_then(|metadata| name_in(metadata, &key)));
    }

    fn find_value(&mut self, stream: StreamId, name: &RealmName, key: &Key) {
        let Some(realm) = self.realms.get(name) else { return };
        let frame = match realm.store.last(key).and_then(Value::decode) {
            Some(value) => wire::found_value(value),
            None => wire::no_value(&realm.closest(key)),
        };
        self.out.push(Output::Send { stream, frame, is_publish: false });
    }

    /// Offers a procedure to native peers while a client provides it and its name is known; `learnt`
    /// is a name that has just been found for the key.
    fn offer(&mut self, name: &RealmName, key: Key, learnt: Option<String>) {
        let is_provided = self.provider(name, &key).is_some();
        let Some(realm) = self.realms.get_mut(name) else { return };
        let known = learnt.or_else(|| self.procedures.get(&key).cloned());
        if !is_provided {
            if let Some(procedure) = realm.serving.remove(&key) {
                self.out.push(Output::Unserve { realm: name.clone(), procedure });
            }
        } else if let Some(procedure) = known.filter(|_| !realm.serving.contains_key(&key)) {
            realm.serving.insert(key, procedure.clone());
            self.out.push(Output::Serve { realm: name.clone(), procedure });
        }
    }

    // --- calls -------------------------------------------------------------------------------

    /// A client that provides a procedure and answers; the one with the fewest calls.
    fn provider(&self, name: &str, key: &Key) -> Option<ConnectionId> {
        let realm = self.realms.get(name)?;
        let nodes = realm.store.providers(key).filter_map(|owner| realm.nodes.get(owner));
        let able = nodes.filter_map(|node| {
            let connection = self.connections.get(&node.connection)?;
            let answers = connection.unanswered < UNANSWERED_MAX && connection.main.is_some();
            answers.then_some((connection.given, node.connection))
        });
        able.min().map(|(_, id)| id)
    }

    fn call(
        &mut self,
        id: ConnectionId,
        stream: StreamId,
        name: &RealmName,
        call: Call,
        route: Option<(Bytes, Bytes)>,
    ) {
        self.stats.calls += 1;
        let calls_max = self.config.calls_per_client_max;
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if call.call_id.len() > NUMBER_BYTES_MAX || call.procedure.len() > topics::TOPIC_BYTES_MAX {
            self.stats.malformed += 1;
            return;
        }
        connection.calls += 1;
        let is_full = connection.calls > calls_max || self.asked.len() >= CALLS_MAX;
        let number = self.next_call;
        self.next_call += 1;
        let asked = Asked { stream, realm: name.clone(), call: call.clone(), route };
        self.asked.insert(number, asked);
        if is_full {
            self.stats.over_limit += 1;
            return self.finish_call(number, Err(Fault::new("busy", "too many calls at once")));
        }
        let key = key_of(&call.procedure);
        if let Ok(procedure) = std::str::from_utf8(&call.procedure) {
            self.offer(name, key, Some(procedure.to_owned()));
        }
        let Call { procedure, args, .. } = call;
        self.out.push(Output::Call { realm: name.clone(), call: number, procedure, args });
    }

    /// What came of an [`Output::Call`].
    pub fn called(&mut self, now: Now, call: u64, called: Called) {
        match called {
            Called::Result(result) => self.finish_call(call, Ok(result)),
            Called::Fault(fault) => self.finish_call(call, Err(fault)),
            Called::NoProvider => {
                let Some(asked) = self.asked.get(&call) else { return };
                let (realm, theirs) = (asked.realm.clone(), asked.call.clone());
                let key = key_of(&theirs.procedure);
                if !self.give(now, &realm, key, &theirs, Whose::Asked(call)) {
                    let name = String::from_utf8_lossy(&theirs.procedure).into_owned();
                    let code = if asked_by_route(self.asked.get(&call)) {
                        "no_handler"
                    } else {
                        "no_such_procedure"
                    };
                    let message = format!("No handler registered for {name}");
                    self.finish_call(call, Err(Fault::new(code, &message)));
                }
            }
        }
    }

    fn finish_call(&mut self, call: u64, outcome: Outcome) {
        let Some(asked) = self.asked.remove(&call) else { return };
        let Some(stream) = self.streams.get(&asked.stream) else { return };
        if let Some(connection) = self.connections.get_mut(&stream.connection) {
            connection.calls = connection.calls.saturating_sub(1);
        }
        let reply = Reply { call_id: asked.call.call_id, outcome };
        let frame = match asked.route {
            // Back to where it came from.
            Some((destination, source)) => reply.routed(source, destination),
            None => reply.frame(),
        };
        self.out.push(Output::Send { stream: asked.stream, frame, is_publish: false });
    }

    /// A native peer calls a procedure that is offered. Answered by [`Output::Answer`], unless
    /// [`Door::request_gone`] comes first.
    pub fn request(&mut self, now: Now, realm: &str, request: u64, procedure: &str, args: Bytes) {
        let key = key_of(procedure.as_bytes());
        let call = Call { call_id: Bytes::new(), procedure: copy(procedure.as_bytes()), args };
        let realm: RealmName = realm.into();
        if !self.give(now, &realm, key, &call, Whose::Request(request)) {
            let outcome = Err(Fault::new("unavailable", "no v0.7 client can take the call now"));
            self.out.push(Output::Answer { request, outcome });
        }
    }

    /// A native peer's call has ended without an answer: given up, or its deadline has passed.
    pub fn request_gone(&mut self, request: u64, is_late: bool) {
        let found = self
            .given
            .iter()
            .find(|(_, given)| matches!(given.whose, Whose::Request(number) if number == request));
        if let Some((call, _)) = found {
            let call = *call;
            if is_late {
                self.unanswered(call, false);
            } else {
                self.take_given(call);
            }
        }
    }

    /// Gives a call to a client; `false`: there is none for it.
    fn give(&mut self, now: Now, realm: &RealmName, key: Key, call: &Call, whose: Whose) -> bool {
        let Some(id) = self.provider(realm, &key) else { return false };
        let Some(connection) = self.connections.get_mut(&id) else { return false };
        let Some(stream) = connection.main else { return false };
        if connection.given >= self.config.calls_per_client_max {
            self.stats.over_limit += 1;
            return false;
        }
        connection.given += 1;
        self.stats.calls_given += 1;
        let number = self.next_call;
        self.next_call += 1;
        let call_id = copy(&u128::from(number).to_be_bytes());
        let frame = Call { call_id, ..call.clone() }.frame(realm);
        // Native peers have deadlines of their own.
        let deadline = now.time + CALL_TIMEOUT;
        if matches!(whose, Whose::Asked(_)) {
            self.deadlines.insert((deadline, number));
        }
        let given = Given { connection: id, realm: realm.clone(), key, whose, deadline };
        self.given.insert(number, given);
        self.out.push(Output::Send { stream, frame, is_publish: false });
        true
    }

    fn take_given(&mut self, call: u64) -> Option<Given> {
        let given = self.given.remove(&call)?;
        self.deadlines.remove(&(given.deadline, call));
        if let Some(connection) = self.connections.get_mut(&given.connection) {
            connection.given = connection.given.saturating_sub(1);
        }
        Some(given)
    }

    fn reply(&mut self, id: ConnectionId, reply: Reply) {
        let number = reply.call_id.as_ref().try_into().map(u128::from_be_bytes).ok();
        let call = number.and_then(|number| u64::try_from(number).ok());
        // Numbers can be guessed: only who was asked may answer.
        let call =
            call.filter(|call| self.given.get(call).is_some_and(|given| given.connection == id));
        let Some(given) = call.and_then(|call| self.take_given(call)) else { return };
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.unanswered = 0;
        }
        self.hand_back(given.whose, reply.outcome);
    }

    fn hand_back(&mut self, whose: Whose, outcome: Outcome) {
        match whose {
            Whose::Request(request) => self.out.push(Output::Answer { request, outcome }),
            Whose::Asked(call) => self.finish_call(call, outcome),
        }
    }

    /// A client has not answered: original v0.7 clients never do.
    fn unanswered(&mut self, call: u64, tell: bool) {
        let Some(given) = self.take_given(call) else { return };
        self.stats.calls_unanswered += 1;
        if let Some(connection) = self.connections.get_mut(&given.connection) {
            connection.unanswered += 1;
        }
        if tell {
            self.hand_back(given.whose, Err(Fault::new("timeout", "the provider did not answer")));
        }
        self.offer(&given.realm, given.key, None);
    }

    /// The calls that a connection was given end.
    fn fail_given(&mut self, id: ConnectionId) {
        let calls: Vec<u64> = self
            .given
            .iter()
            .filter(|(_, given)| given.connection == id)
            .map(|(call, _)| *call)
            .collect();
        for call in calls {
            if let Some(given) = self.take_given(call) {
                self.hand_back(given.whose, Err(Fault::new("unavailable", "the provider is gone")));
            }
        }
    }

    // --- routes ------------------------------------------------------------------------------

    /// The connection of another node that a route names.
    fn destination(&self, id: ConnectionId, name: &str, route: &Route) -> Option<ConnectionId> {
        let node = self.realms.get(name)?.nodes.get(&route.destination)?;
        Some(node.connection).filter(|connection| *connection != id)
    }

    fn rpc_route(&mut self, id: ConnectionId, stream: StreamId, name: &RealmName, route: &Route) {
        if route.is_spent() {
            self.stats.routes_dropped += 1;
            return;
        }
        let there = self.destination(id, name, route).and_then(|it| self.connections.get(&it));
        if let Some(main) = there.and_then(|it| it.main) {
            let frame = route.forwarded(kind::RPC_ROUTE);
            return self.out.push(Output::Send { stream: main, frame, is_publish: false });
        }
        let ends = [&route.destination, &route.source];
        match route.call().filter(|_| ends.iter().all(|end| end.len() <= NAME_BYTES_MAX)) {
            Some(call) => {
                let ends = (copy(&route.destination), copy(&route.source));
                self.call(id, stream, name, call, Some(ends));
            }
            None => self.stats.routes_dropped += 1,
        }
    }

    fn pubsub_route(&mut self, now: Now, id: ConnectionId, name: &RealmName, route: &Route) {
        match route.publish().filter(|_| !route.is_spent()) {
            Some(publish) => {
                let only = self.destination(id, name, route);
                self.publish(now, id, name, publish, only);
            }
            None => self.stats.routes_dropped += 1,
        }
    }
}

fn asked_by_route(asked: Option<&Asked>) -> bool {
    asked.is_some_and(|asked| asked.route.is_some())
}

/// A text in a service's metadata that is the name behind the key.
fn name_in(metadata: &Value, key: &Key) -> Option<String> {
    let Value::Map(entries) = metadata else { return None };
    let texts = entries.iter().filter_map(|(_, value)| value.bytes());
    let mut short = texts.filter(|text| text.len() <= topics::TOPIC_BYTES_MAX);
    let name = short.find(|text| key_of(text) == *key)?;
    String::from_utf8(name.to_vec()).ok()
}

/// SHA-256.
pub fn key_of(text: &[u8]) -> Key {
    Sha256::digest(text).into()
}

/// A copy that does not keep a whole frame in memory.
fn copy(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}
