//! The v0.7 door: whatever clients send on however many streams, and whatever comes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use macula_proto::Time;

use crate::compat07::dialect::Value;
use crate::compat07::door::{Called, Config, Door, LegacyDelivery, Now, Output, key_of};
use crate::compat07::wire::{FrameReader, Next, frame, kind};
use crate::script::{Script, pick};

const CONNECTIONS: u8 = 4;
const STREAMS: u8 = 3;
const REALMS: [&str; 3] = ["lab", "plant", "elsewhere"];
const TOPICS: [&str; 9] = ["a", "a.b", "*", "**", "a.**", "a.**.b", "a*", "", "b.c"];
const PAYLOAD_BYTES_MAX: usize = 2_048;
const SUBSCRIPTIONS_MAX: usize = 4;
const CALLS_MAX: usize = 3;

/// The input is steps of four bytes, some with bytes of a stream behind.
///
/// Nothing panics. Each frame that is sent is one that v0.7 reads, on a stream that is open. What is
/// asked of native peers is asked once and ended once; each call of theirs hears one end; nobody has
/// more than allowed; and when all are gone nothing is left.
pub fn door(data: &[u8]) {
    let mut script = Script::new(data);
    let mut world = World::new(script.byte());
    while let Some([action, who, what, which]) = script.step() {
        let (connection, stream) = (u64::from(who % CONNECTIONS), u64::from(who / 16 % STREAMS));
        let number = connection * 16 + stream;
        match action % 14 {
            0 => world.open(connection, number),
            1 => world.bytes(number, script.take(usize::from(what))),
            2 => world.message(number, what, which),
            3 => {
                let raw = script.take(usize::from(what));
                let header = [1, which, 0, 0, 0, 0, 0, raw.len() as u8];
                world.bytes(number, &[&header[..], raw].concat());
            }
            4 => world.end_stream(number),
            5 => world.close(connection),
            6 => world.pass(Duration::from_millis(u64::from(what) * u64::from(which) * 4)),
            7 | 8 => world.subscribed(what, action % 2 == 0),
            9 => world.native_message(what, which),
            10 => world.called(what, which),
            11 => world.request(what),
            12 => world.request_gone(what, which % 2 == 0),
            _ => world.door.not_native(),
        }
        world.settle();
    }
    (0..u64::from(CONNECTIONS)).for_each(|connection| world.close(connection));
    world.pass(Duration::from_secs(100));
    assert!(world.door.is_empty(), "something is left: {:?}", world.door);
    assert!(world.asked.is_empty(), "still asked of native peers: {:?}", world.asked);
    assert!(world.offered.is_empty(), "still offered: {:?}", world.offered);
    assert!(world.requests.is_empty(), "calls that never end: {:?}", world.requests);
}

struct World {
    door: Door,
    time: Duration,
    open: BTreeSet<u64>,
    streams: BTreeMap<u64, u64>,
    asked: BTreeSet<(String, String)>,
    offered: BTreeSet<(String, String)>,
    calls: Vec<u64>,
    requests: BTreeSet<u64>,
    next_request: u64,
    last_call: Option<Value>,
}

impl World {
    fn new(choice: u8) -> Self {
        let policies = [LegacyDelivery::Auto, LegacyDelivery::Always, LegacyDelivery::Never];
        let config = Config {
            realms: REALMS
                .iter()
                .take(1 + usize::from(choice & 1))
                .map(|it| (*it).to_owned())
                .collect(),
            other_realms_max: usize::from(choice >> 1 & 1),
            legacy_delivery: pick(&policies, choice >> 2),
            procedures: vec!["a".to_owned(), "b.c".to_owned()],
            payload_bytes_max: PAYLOAD_BYTES_MAX,
            partial_bytes_max: 2 * PAYLOAD_BYTES_MAX,
            subscriptions_per_client_max: SUBSCRIPTIONS_MAX,
            wildcards_per_realm_max: 3,
            topics_per_realm_max: 4,
            values_per_client_max: 2,
            value_bytes_max: 64,
            calls_per_client_max: CALLS_MAX,
            held_bytes_max: 256,
        };
        Self {
            door: Door::new(config),
            time: Duration::ZERO,
            open: BTreeSet::new(),
            streams: BTreeMap::new(),
            asked: BTreeSet::new(),
            offered: BTreeSet::new(),
            calls: Vec::new(),
            requests: BTreeSet::new(),
            next_request: 1,
            last_call: None,
        }
    }

    fn now(&self) -> Now {
        Now { time: Time::START + self.time, unix_ms: self.time.as_millis() as u64 }
    }

    fn open(&mut self, connection: u64, stream: u64) {
        if self.open.insert(connection) {
            self.door.opened(self.now(), connection);
        }
        if !self.streams.contains_key(&stream) {
            self.door.stream_opened(connection, stream);
            self.streams.insert(stream, connection);
        }
    }

    fn bytes(&mut self, stream: u64, bytes: &[u8]) {
        self.door.bytes(self.now(), stream, bytes);
    }

    fn end_stream(&mut self, stream: u64) {
        self.door.stream_ended(stream);
        // Our half has ended with it: what is said of it now is checked as well.
        self.settle();
        self.streams.remove(&stream);
    }

    fn close(&mut self, connection: u64) {
        self.door.closed(connection);
        self.settle();
        self.open.remove(&connection);
        self.streams.retain(|_, of| *of != connection);
    }

    fn pass(&mut self, time: Duration) {
        self.time += time;
        self.door.tick(self.now());
        self.settle();
    }

    /// A message of any sort, its fields from few choices so that they meet.
    fn message(&mut self, stream: u64, what: u8, which: u8) {
        let name = pick(&TOPICS, which);
        let topic = || Value::text(name);
        let node = || Value::text(pick(&["one", "two", "three"], which));
        let key = || Value::Bin(Bytes::copy_from_slice(&key_of(name.as_bytes())));
        let call_id = || Value::text("1");
        let route = |payload_kind: &str, payload: Value| {
            Value::map([
                ("destination_node_id", node()),
                ("source_node_id", Value::text("one")),
                ("hop_count", Value::Int(i128::from(which) - 3)),
                ("max_hops", Value::Int(10)),
                ("payload_type", Value::text(payload_kind)),
                ("topic", topic()),
                ("payload", payload),
            ])
        };
        let publish = || {
            Value::map([
                ("topic", topic()),
                ("payload", Value::Bin(Bytes::from(vec![which; 100]))),
                ("qos", Value::Int(i128::from(which & 1))),
                ("message_id", Value::Bin(Bytes::from(vec![which; usize::from(which % 20)]))),
            ])
        };
        let call = || {
            Value::map([("call_id", call_id()), ("procedure", topic()), ("args", Value::text("1"))])
        };
        let store = |metadata: Option<Value>| {
            let value = match metadata {
                Some(metadata) => Value::map([("metadata", metadata)]),
                None => Value::map([("ttl", Value::Int(300))]),
            };
            Value::map([("key", key()), ("value", value)])
        };
        let topics = || Value::map([("topics", Value::List(vec![topic(), Value::text("a.b")]))]);
        let (kind, value) = match what % 16 {
            0 => {
                let realm = Value::text(pick(&REALMS, which / 4));
                let fields = [("node_id", node()), ("realm_id", realm), ("endpoint", topic())];
                (kind::CONNECT, Value::map(fields))
            }
            1 => (kind::SUBSCRIBE, topics()),
            2 => (kind::UNSUBSCRIBE, topics()),
            3 => (kind::PUBLISH, publish()),
            4 => (kind::STORE, store(None)),
            5 => (kind::STORE, store(Some(Value::Map(Vec::new())))),
            6 => (kind::STORE, store(Some(Value::map([("name", topic())])))),
            7 => (kind::CALL, call()),
            8 => {
                let call_id = self.last_call.clone().unwrap_or_else(call_id);
                (kind::REPLY, Value::map([("call_id", call_id), ("result", topic())]))
            }
            9 => (kind::PING, Value::map([("timestamp", Value::Int(i128::from(which)))])),
            10 => (kind::FIND_VALUE, Value::map([("key", key())])),
            11 => (kind::FIND_NODE, Value::map([("target", topic())])),
            12 => (kind::RPC_ROUTE, route("call", call())),
            13 => (kind::RPC_ROUTE, route("reply", call())),
            14 => (kind::PUBSUB_ROUTE, route("", publish())),
            _ => (kind::DISCONNECT, Value::Map(Vec::new())),
        };
        let bytes = frame(kind, &value);
        let (head, tail) = bytes.split_at(usize::from(which) % bytes.len());
        self.bytes(stream, head);
        self.bytes(stream, tail);
    }

    fn subscribed(&mut self, what: u8, is_active: bool) {
        self.door.subscribed(REALMS[0], pick(&TOPICS, what), is_active);
    }

    fn native_message(&mut self, what: u8, which: u8) {
        let payload = Bytes::from(vec![which; usize::from(which)]);
        let (pattern, topic) = (pick(&TOPICS, what), pick(&["a", "a.b", "b.c"], which));
        self.door.native_message(REALMS[0], pattern, topic, payload, which.is_multiple_of(2));
    }

    fn called(&mut self, what: u8, which: u8) {
        if self.calls.is_empty() {
            // Of a call that nobody made.
            return self.door.called(self.now(), u64::from(what), Called::NoProvider);
        }
        let call = self.calls.swap_remove(usize::from(what) % self.calls.len());
        let called = match which % 2 {
            0 => Called::NoProvider,
            _ => Called::Result(Bytes::from_static(b"1")),
        };
        self.door.called(self.now(), call, called);
    }

    fn request(&mut self, what: u8) {
        let request = self.next_request;
        self.next_request += 1;
        self.requests.insert(request);
        let procedure = pick(&TOPICS, what);
        self.door.request(self.now(), REALMS[0], request, procedure, Bytes::new());
    }

    fn request_gone(&mut self, what: u8, is_late: bool) {
        let request = u64::from(what) % self.next_request;
        self.requests.remove(&request);
        self.door.request_gone(request, is_late);
    }

    /// Looks at all that the door wants.
    fn settle(&mut self) {
        for output in self.door.take_outputs() {
            match output {
                Output::Send { stream, frame, .. } => {
                    assert!(self.streams.contains_key(&stream), "sent on a stream that is gone");
                    let mut reader = FrameReader::new(16 << 10);
                    reader.push(&frame);
                    let Some(Next::Frame(sent)) = reader.take() else { panic!("sent {frame:?}") };
                    assert_eq!(reader.waiting(), 0, "more than a frame");
                    if sent.kind == kind::CALL {
                        self.last_call = sent.value.get("call_id").cloned();
                    }
                }
                Output::Finish { stream } => assert!(self.streams.contains_key(&stream)),
                Output::Close { connection, .. } => assert!(self.open.contains(&connection)),
                Output::Subscribe { realm, pattern } => {
                    assert!(
                        self.asked.insert((realm.to_string(), pattern.to_string())),
                        "asked twice"
                    );
                }
                Output::Unsubscribe { realm, pattern } => {
                    assert!(
                        self.asked.remove(&(realm.to_string(), pattern.to_string())),
                        "not asked"
                    );
                }
                Output::Serve { realm, procedure } => {
                    assert!(self.offered.insert((realm.to_string(), procedure)), "offered twice");
                }
                Output::Unserve { realm, procedure } => {
                    assert!(self.offered.remove(&(realm.to_string(), procedure)), "not offered");
                }
                Output::Answer { request, .. } => {
                    assert!(self.requests.remove(&request), "a call ends twice, or nobody made it");
                }
                Output::Call { call, .. } => self.calls.push(call),
                Output::Publish { .. } => {}
            }
        }
        let stats = self.door.stats();
        assert!(stats.subscriptions as usize <= SUBSCRIPTIONS_MAX * usize::from(CONNECTIONS));
        assert!(stats.clients <= stats.connections && stats.clients_legacy <= stats.connections);
    }
}
