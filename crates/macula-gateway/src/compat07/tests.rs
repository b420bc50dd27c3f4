//! Vectors recorded from v0.7 programs, properties, and scripts of the door.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use macula_proto::Time;
use proptest::prelude::*;
use serde_json::Value as Json;

use super::core::dialect::Value;
use super::core::door::{
    Called, Config, Door, LegacyDelivery, MARK_WAIT, Now, Output, STRANGER_TIMEOUT, key_of,
};
use super::core::topics;
use super::core::wire::{self, Fault, Frame, FrameReader, Message, Next, kind};

// --- vectors -----------------------------------------------------------------------------------

fn vectors() -> Vec<Json> {
    let text = include_str!("../../../../vectors/v07.json");
    serde_json::from_str(text).unwrap()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

fn read_all(bytes: &[u8]) -> Vec<Next> {
    let mut reader = FrameReader::new(1 << 20);
    reader.push(bytes);
    std::iter::from_fn(|| reader.take()).collect()
}

/// Whether a value is what a vector says, whatever the order of its maps.
fn is(value: &Value, json: &Json) -> bool {
    match json {
        Json::Null => *value == Value::Nil,
        Json::Bool(truth) => *value == Value::Bool(*truth),
        Json::Number(number) => match number.as_i64() {
            Some(number) => *value == Value::Int(number.into()),
            None => *value == Value::Float(number.as_f64().unwrap()),
        },
        Json::String(text) => *value == Value::text(text),
        Json::Array(items) => value.list().is_some_and(|list| {
            list.len() == items.len() && list.iter().zip(items).all(|(value, json)| is(value, json))
        }),
        Json::Object(fields) if fields.len() == 1 && fields.contains_key("$bin") => {
            *value == Value::Bin(unhex(fields["$bin"].as_str().unwrap()).into())
        }
        Json::Object(fields) if fields.len() == 1 && fields.contains_key("$str") => {
            let text = fields["$str"].as_str().unwrap();
            *value == Value::Str(Bytes::copy_from_slice(text.as_bytes()))
        }
        Json::Object(fields) => {
            let Value::Map(entries) = value else { return false };
            entries.len() == fields.len()
                && fields.iter().all(|(name, json)| {
                    let is_str = name.strip_prefix("$str:");
                    let key = match is_str {
                        Some(name) => Value::Str(Bytes::copy_from_slice(name.as_bytes())),
                        None => Value::text(name),
                    };
                    entries.iter().any(|(found, value)| *found == key && is(value, json))
                })
        }
    }
}

#[test]
fn every_vector_decodes_as_it_says_and_comes_back_the_same() {
    let (mut valid, mut same_bytes) = (0, 0);
    for vector in vectors() {
        let (name, bytes) = (&vector["name"], unhex(vector["hex"].as_str().unwrap()));
        let frames: Vec<Frame> = read_all(&bytes)
            .into_iter()
            .filter_map(|next| match next {
                Next::Frame(frame) => Some(frame),
                _ => None,
            })
            .collect();
        if vector["valid"] == false {
            assert!(frames.is_empty(), "{name}: {frames:?}");
            continue;
        }
        valid += 1;
        let expected = match &vector["decoded"] {
            Json::Array(list) => list.clone(),
            one => vec![one.clone()],
        };
        assert_eq!(frames.len(), expected.len(), "{name}");
        let mut again = Vec::new();
        for (frame, json) in frames.iter().zip(&expected) {
            assert!(is(&frame.value, json), "{name}: {frame:?} is not {json}");
            let bytes = wire::frame(frame.kind, &frame.value);
            assert_eq!(read_all(&bytes), [Next::Frame(frame.clone())], "{name}");
            again.extend_from_slice(&bytes);
        }
        assert_eq!(u64::from(frames[0].kind), vector["type_id"], "{name}");
        same_bytes += usize::from(again == bytes);
    }
    // The rest has flags that are ignored.
    assert_eq!((valid, same_bytes), (67, 66));
}

#[test]
fn what_is_not_a_frame_is_left_out_and_the_stream_goes_on() {
    let ping = wire::frame(kind::PING, &Value::map([("timestamp", Value::Int(7))]));
    for vector in vectors().iter().filter(|vector| vector["valid"] == false) {
        let name = vector["name"].as_str().unwrap();
        let mut bytes = unhex(vector["hex"].as_str().unwrap());
        if name.starts_with("partial") {
            assert!(read_all(&bytes).is_empty(), "{name}");
            continue;
        }
        bytes.extend_from_slice(&ping);
        let found = read_all(&bytes);
        assert!(matches!(found.as_slice(), [Next::Skipped, Next::Frame(_)]), "{name}: {found:?}");
    }
}

#[test]
fn what_we_send_is_what_v07_sends_byte_by_byte() {
    let find = |name: &str| {
        let vectors = vectors();
        let vector = vectors.iter().find(|vector| vector["name"] == name).unwrap();
        unhex(vector["hex"].as_str().unwrap())
    };
    let message = |name: &str| {
        let frames = read_all(&find(name));
        let [Next::Frame(frame)] = frames.as_slice() else { panic!("{name}") };
        Message::parse(frame).unwrap()
    };
    assert_eq!(wire::pong(1_763_245_540_000, 1_763_245_540_000), find("pong_connect_ack"));
    assert_eq!(wire::pong(1_763_245_570_000, 1_763_245_570_003), find("pong_reply_v075"));
    for name in [
        "publish_qos0",
        "publish_qos1_retain",
        "publish_binary_payload_300",
        "publish_empty_payload",
    ] {
        let Message::Publish(publish) = message(name) else { panic!("{name}") };
        assert_eq!(publish.frame(), find(name), "{name}");
    }
    for name in ["reply_result", "reply_error_no_such_procedure", "reply_error_handler_error"] {
        let Message::Reply(reply) = message(name) else { panic!("{name}") };
        assert_eq!(reply.frame(), find(name), "{name}");
    }
    let Message::Call(call) = message("call") else { panic!() };
    assert_eq!(call.frame("com.example.realm"), find("call"));
    let Message::RpcRoute(route) = message("rpc_route_call") else { panic!() };
    assert!(route.call().is_some() && !route.is_spent());
    let fault = Fault::new("no_handler", "No handler registered for math.add");
    let reply = wire::Reply { call_id: route.call().unwrap().call_id, outcome: Err(fault) };
    let routed = read_all(&reply.routed(route.source, route.destination));
    let [Next::Frame(routed)] = routed.as_slice() else { panic!() };
    let recorded = read_all(&find("rpc_route_reply_error"));
    let [Next::Frame(recorded)] = recorded.as_slice() else { panic!() };
    for field in ["payload_type", "max_hops", "hop_count"] {
        assert_eq!(routed.value.get(field), recorded.value.get(field), "{field}");
    }
    assert_eq!(wire::no_value(&[]), find("find_value_reply_nodes_empty"));
    assert_eq!(wire::found_nodes(&[]), find("find_node_reply_empty"));
    let node = wire::Contact {
        node_id: (0..32).collect::<Vec<u8>>().into(),
        address: None,
        last_seen: 1_763_245_540_000,
    };
    assert_eq!(wire::found_nodes(&[node]), find("find_node_reply_no_endpoint"));
}

#[test]
fn deep_and_wide_values_are_refused() {
    let deep = [vec![0x91; 40], vec![0xc0]].concat();
    assert_eq!(Value::decode(&deep.into()), None);
    // A list that says four thousand million items.
    assert_eq!(Value::decode(&Bytes::from_static(&[0xdd, 0xff, 0xff, 0xff, 0xff, 0xc0])), None);
    let wide = [vec![0xdc, 0x20, 0x00], vec![0xc0; 0x2000]].concat();
    assert_eq!(Value::decode(&wide.into()), None);
    assert_eq!(Value::decode(&Bytes::from_static(&[0xa1, 0xff])), None, "not UTF-8");
    for extension in [0xc1, 0xc7, 0xd4] {
        assert_eq!(Value::decode(&Bytes::copy_from_slice(&[extension, 0, 0, 0])), None);
    }
}

#[test]
fn too_large_frames_are_left_out_without_keeping_them() {
    let mut reader = FrameReader::new(100);
    reader.push(&[1, 3, 0, 0, 0, 0, 1, 0]);
    assert_eq!(reader.take(), Some(Next::TooLarge));
    reader.push(&[7; 255]);
    assert_eq!((reader.take(), reader.waiting()), (None, 0));
    reader.push(&[&[7][..], &wire::pong(1, 1)[..]].concat());
    assert!(matches!(reader.take(), Some(Next::Frame(_))));
}

// --- topics ------------------------------------------------------------------------------------

#[test]
fn wildcards_are_those_of_v07() {
    let check = |pattern: &str, topic: &str, expected: bool| {
        let found = topics::matches(pattern.as_bytes(), topic.as_bytes());
        assert_eq!(found, expected, "{pattern} {topic}");
    };
    for (pattern, topic) in [
        ("a.b", "a.b"),
        ("*", "a"),
        ("a.*", "a.b"),
        ("**", "a"),
        ("**", "a.b"),
        ("a.**", "a"),
        ("a.**", "a.b.c"),
        ("a.**.z", "a.z"),
        ("a.**.z", "a.b.c.z"),
        ("**.z", "z"),
        ("a.**.b.**.c", "a.b.b.x.c"),
        ("a*", "a*"),
        ("*.*", "a."),
    ] {
        check(pattern, topic, true);
    }
    for (pattern, topic) in [
        ("a.b", "a.c"),
        ("*", "a.b"),
        ("a.*", "a"),
        ("a.**.z", "a.z.y"),
        ("a*", "ab"),
        ("A", "a"),
        ("a.**", "b.a"),
        ("a.*.**", "a"),
    ] {
        check(pattern, topic, false);
    }
    let native = |pattern: &str| topics::native(pattern.as_bytes());
    assert_eq!(native("a.**.z").as_deref(), Some("a.**"));
    assert_eq!(native("a.*.b").as_deref(), Some("a.*.b"));
    assert_eq!((native("a*"), native("a..b"), native("")), (None, None, None));
}

fn slow_matches(pattern: &[&str], topic: &[&str]) -> bool {
    match (pattern.split_first(), topic.split_first()) {
        (None, None) => true,
        (Some((&"**", rest)), _) => {
            (0..=topic.len()).any(|taken| slow_matches(rest, &topic[taken..]))
        }
        (Some((wanted, rest)), Some((found, behind))) if *wanted == "*" || wanted == found => {
            slow_matches(rest, behind)
        }
        _ => false,
    }
}

proptest! {
    #[test]
    fn matching_is_what_its_definition_says(
        pattern in proptest::collection::vec(prop_oneof!["a", "b", "\\*", "\\*\\*"], 1..7),
        topic in proptest::collection::vec("[ab]", 1..7),
    ) {
        let pattern: Vec<&str> = pattern.iter().map(String::as_str).collect();
        let topic: Vec<&str> = topic.iter().map(String::as_str).collect();
        let found = topics::matches(pattern.join(".").as_bytes(), topic.join(".").as_bytes());
        prop_assert_eq!(found, slow_matches(&pattern, &topic));
        // What native peers are asked for is enough.
        if found && let Some(native) = topics::native(pattern.join(".").as_bytes()) {
            let native: Vec<&str> = native.split('.').collect();
            prop_assert!(slow_matches(&native, &topic));
        }
    }

    #[test]
    fn values_come_back(value in any_value()) {
        let mut bytes = BytesMut::new();
        value.encode(&mut bytes);
        prop_assert_eq!(Value::decode(&bytes.freeze()), Some(value));
    }

    #[test]
    fn any_cut_gives_the_same_frames(
        frames in proptest::collection::vec((0u8..0x50, any_value()), 0..6),
        cuts in proptest::collection::vec(1usize..40, 1..20),
    ) {
        let bytes: Vec<u8> = frames
            .iter()
            .flat_map(|(kind, value)| wire::frame(*kind, value))
            .collect();
        let whole = read_all(&bytes);
        let mut reader = FrameReader::new(1 << 20);
        let (mut found, mut rest) = (Vec::new(), bytes.as_slice());
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, behind) = rest.split_at((*cut).min(rest.len()));
            reader.push(piece);
            found.extend(std::iter::from_fn(|| reader.take()));
            rest = behind;
        }
        prop_assert_eq!(whole, found);
        prop_assert_eq!(reader.waiting(), 0);
    }
}

fn any_value() -> impl Strategy<Value = Value> {
    let bytes = || proptest::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from);
    let leaf = prop_oneof![
        Just(Value::Nil),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(|number| Value::Int(number.into())),
        any::<u64>().prop_map(|number| Value::Int(number.into())),
        (-40i128..300).prop_map(Value::Int),
        (-1e300..1e300f64).prop_map(Value::Float),
        bytes().prop_map(Value::Bin),
        ".{1,40}".prop_map(|text| Value::Str(text.into())),
        proptest::collection::vec(any::<u8>(), 250..270).prop_map(|it| Value::Bin(it.into())),
    ];
    leaf.prop_recursive(4, 40, 5, |inner| {
        let key = proptest::collection::vec(any::<u8>(), 0..9).prop_map(|it| Value::Bin(it.into()));
        prop_oneof![
            proptest::collection::vec(inner.clone(), 1..20).prop_map(Value::List),
            proptest::collection::vec((key, inner), 0..20).prop_map(Value::Map),
        ]
    })
}

// --- the door ----------------------------------------------------------------------------------

const REALM: &str = "com.example.lab";

struct World {
    door: Door,
    now: Duration,
}

impl World {
    fn new(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config { realms: vec![REALM.to_owned()], ..Config::default() };
        change(&mut config);
        Self { door: Door::new(config), now: Duration::ZERO }
    }

    fn now(&self) -> Now {
        Now { time: Time::START + self.now, unix_ms: 1_000 }
    }

    /// Stream and connection have one number.
    fn client(&mut self, number: u64) {
        self.door.opened(self.now(), number);
        self.door.stream_opened(number, number);
        self.send(number, kind::CONNECT, connect(number, REALM));
        let out = self.out();
        assert_eq!(frames_to(&out, number).len(), 1, "a PONG: {out:?}");
    }

    fn send(&mut self, stream: u64, kind: u8, value: Value) {
        self.door.bytes(self.now(), stream, &wire::frame(kind, &value));
    }

    fn subscribe(&mut self, stream: u64, topic: &str) {
        self.send(stream, kind::SUBSCRIBE, topic_list(&[topic]));
    }

    fn publish(&mut self, stream: u64, topic: &str, payload: &str, number: u8) {
        self.send(stream, kind::PUBLISH, message(topic, payload, number));
    }

    fn store(&mut self, stream: u64, name: &str, value: Value) {
        let key = Value::Bin(Bytes::copy_from_slice(&key_of(name.as_bytes())));
        self.send(
            stream,
            kind::STORE,
            Value::map([("type", Value::text("store")), ("key", key), ("value", value)]),
        );
    }

    fn call(&mut self, stream: u64, procedure: &str) {
        let call = [
            ("call_id", Value::text("17")),
            ("procedure", Value::text(procedure)),
            ("args", Value::text("[1]")),
        ];
        self.send(stream, kind::CALL, Value::map(call));
    }

    fn reply(&mut self, stream: u64, call_id: Value, result: &str) {
        self.send(
            stream,
            kind::REPLY,
            Value::map([("call_id", call_id), ("result", Value::text(result))]),
        );
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.door.tick(self.now());
    }

    fn out(&mut self) -> Vec<Output> {
        self.door.take_outputs()
    }
}

fn connect(number: u64, realm: &str) -> Value {
    Value::map([
        ("node_id", Value::text(&format!("node {number}"))),
        ("realm_id", Value::text(realm)),
        ("endpoint", Value::text("https://localhost:9443")),
    ])
}

fn topic_list(topics: &[&str]) -> Value {
    let topics = topics.iter().map(|topic| Value::text(topic)).collect();
    Value::map([("topics", Value::List(topics)), ("qos", Value::Int(0))])
}

fn message(topic: &str, payload: &str, number: u8) -> Value {
    Value::map([
        ("topic", Value::text(topic)),
        ("payload", Value::text(payload)),
        ("qos", Value::Int(1)),
        ("retain", Value::Bool(false)),
        ("message_id", Value::Bin(vec![number; 16].into())),
    ])
}

fn service() -> Value {
    Value::map([
        ("endpoint", Value::text("https://gw:9443")),
        ("metadata", Value::Map(vec![])),
        ("ttl", Value::Int(300)),
    ])
}

fn frames_to(out: &[Output], to: u64) -> Vec<Frame> {
    let frames = out.iter().filter_map(|output| match output {
        Output::Send { stream, frame, .. } if *stream == to => Some(read_all(frame)),
        _ => None,
    });
    frames
        .flatten()
        .map(|next| match next {
            Next::Frame(frame) => frame,
            other => panic!("{other:?}"),
        })
        .collect()
}

fn publishes_to(out: &[Output], to: u64) -> usize {
    frames_to(out, to).iter().filter(|frame| frame.kind == kind::PUBLISH).count()
}

#[test]
fn a_wrong_realm_hears_nothing_and_its_stream_ends() {
    let mut world = World::new(|_| {});
    world.door.opened(world.now(), 1);
    world.door.stream_opened(1, 1);
    world.send(1, kind::CONNECT, connect(1, "com.example.other"));
    assert_eq!(world.out(), [Output::Finish { stream: 1 }]);
    world.client(2);
    world.pass(STRANGER_TIMEOUT);
    assert_eq!(world.out(), [Output::Close { connection: 1, reason: "in no realm" }]);
    world.door.closed(1);
    world.door.closed(2);
    world.out();
    assert!(world.door.is_empty(), "{:?}", world.door);
}

#[test]
fn publishes_reach_other_clients_and_native_peers_once() {
    let mut world = World::new(|_| {});
    (1..=3).for_each(|number| world.client(number));
    world.subscribe(1, "a.*");
    world.subscribe(1, "a.**");
    world.subscribe(2, "b");
    world.pass(MARK_WAIT);
    let out = world.out();
    let asked = |pattern: &str| {
        out.contains(&Output::Subscribe { realm: REALM.into(), pattern: pattern.into() })
    };
    assert!(asked("a.*") && asked("a.**") && asked("b"), "{out:?}");
    for _retransmission in 0..3 {
        world.publish(3, "a.x", "hello", 1);
        world.pass(Duration::from_secs(5));
    }
    let out = world.out();
    assert_eq!((publishes_to(&out, 1), publishes_to(&out, 2), publishes_to(&out, 3)), (1, 0, 0));
    let sent = frames_to(&out, 1);
    assert!(message("a.x", "hello", 1) == sent[0].value, "the same five fields: {sent:?}");
    let native = out.iter().filter(|it| matches!(it, Output::Publish { at_least_once: true, .. }));
    assert_eq!(native.count(), 1);
    // After the window the number may come again.
    world.publish(3, "a.x", "hello", 1);
    assert_eq!(publishes_to(&world.out(), 1), 1);
}

#[test]
fn native_peers_are_asked_once_for_what_many_clients_want() {
    let mut world = World::new(|_| {});
    (1..=3).for_each(|number| {
        world.client(number);
        world.subscribe(number, "a.b");
    });
    let out = world.out();
    assert!(!out.iter().any(|it| matches!(it, Output::Subscribe { .. })), "{out:?}");
    (1..=3).for_each(|number| world.send(number, kind::UNSUBSCRIBE, topic_list(&["a.b"])));
    let gone = Output::Unsubscribe { realm: REALM.into(), pattern: "a.b".into() };
    assert_eq!(world.out(), [gone]);
}

#[test]
fn native_messages_come_once_by_whichever_pattern_is_there() {
    let mut world = World::new(|_| {});
    world.client(1);
    world.subscribe(1, "a.**.z");
    world.subscribe(1, "a.*");
    world.pass(MARK_WAIT);
    world.out();
    let come = |world: &mut World, pattern: &str, topic: &str| {
        world.door.native_message(REALM, pattern, topic, Bytes::from_static(b"x"), false);
        publishes_to(&world.out(), 1)
    };
    // The first is not there yet, so the second counts.
    world.door.subscribed(REALM, "a.*", true);
    assert_eq!(come(&mut world, "a.*", "a.z"), 1);
    world.door.subscribed(REALM, "a.**", true);
    assert_eq!((come(&mut world, "a.**", "a.z"), come(&mut world, "a.*", "a.z")), (1, 0));
    assert_eq!((come(&mut world, "a.**", "a.b.c"), come(&mut world, "a.*", "a.b")), (0, 1));
    world.send(1, kind::UNSUBSCRIBE, topic_list(&["a.**.z"]));
    let gone = Output::Unsubscribe { realm: REALM.into(), pattern: "a.**".into() };
    assert_eq!(world.out(), [gone]);
    assert_eq!(come(&mut world, "a.*", "a.z"), 1);
}

#[test]
fn receivers_that_crash_are_spared_and_others_are_not() {
    for (policy, legacy, modern) in [
        (LegacyDelivery::Auto, 0, 1),
        (LegacyDelivery::Always, 1, 1),
        (LegacyDelivery::Never, 0, 0),
    ] {
        let mut world = World::new(|config| config.legacy_delivery = policy);
        (1..=3).for_each(|number| world.client(number));
        world.subscribe(1, "a");
        world.subscribe(2, "a");
        // Published before it is known which they are.
        world.publish(3, "a", "held", 1);
        let subscription =
            Value::map([("endpoint", Value::text("https://gw:9443")), ("ttl", Value::Int(300))]);
        world.store(1, "a", subscription);
        world.pass(MARK_WAIT);
        world.publish(3, "a", "later", 2);
        let out = world.out();
        assert_eq!(publishes_to(&out, 1), 2 * legacy, "{policy:?}");
        assert_eq!(publishes_to(&out, 2), 2 * modern, "{policy:?}");
        let stats = world.door.stats();
        assert_eq!(stats.clients_legacy, u64::from(policy == LegacyDelivery::Auto));
        assert_eq!(stats.held_back as usize, 4 - 2 * (legacy + modern));
    }
}

#[test]
fn another_frame_shows_at_once_that_a_receiver_is_good() {
    let mut world = World::new(|_| {});
    (1..=2).for_each(|number| world.client(number));
    world.subscribe(1, "a");
    world.publish(2, "a", "held", 1);
    assert_eq!(publishes_to(&world.out(), 1), 0);
    world.send(1, kind::PING, Value::map([("timestamp", Value::Int(5))]));
    assert_eq!(publishes_to(&world.out(), 1), 1);
}

#[test]
fn the_newest_connection_of_a_node_wins_and_the_end_of_the_old_one_changes_nothing() {
    let mut world = World::new(|_| {});
    world.client(1);
    world.subscribe(1, "a");
    world.store(1, "math.add", service());
    world.door.stream_ended(1);
    assert!(world.out().contains(&Output::Finish { stream: 1 }), "our half ends at once");
    world.door.opened(world.now(), 11);
    world.door.stream_opened(11, 11);
    world.send(11, kind::CONNECT, connect(1, REALM));
    let out = world.out();
    assert!(
        matches!(out.as_slice(), [Output::Close { connection: 1, .. }, Output::Send { .. }]),
        "{out:?}"
    );
    world.door.closed(1);
    assert_eq!(world.door.stats().clients, 1);
    // What it offered is still offered, on the new connection.
    world.client(2);
    world.call(2, "math.add");
    let [.., Output::Call { call, .. }] = world.out()[..] else { panic!() };
    world.door.called(world.now(), call, Called::NoProvider);
    assert_eq!(frames_to(&world.out(), 11)[0].kind, kind::CALL);
    world.door.closed(11);
    world.door.closed(2);
    world.out();
    assert!(world.door.is_empty(), "{:?}", world.door);
}

#[test]
fn calls_go_to_native_providers_first_and_then_to_clients() {
    let mut world = World::new(|_| {});
    (1..=2).for_each(|number| world.client(number));
    world.call(1, "math.add");
    let out = world.out();
    let [Output::Call { call, procedure, .. }] = out.as_slice() else { panic!("{out:?}") };
    assert_eq!(procedure, "math.add");
    world.door.called(world.now(), *call, Called::Result(Bytes::from_static(b"3")));
    let answer = frames_to(&world.out(), 1);
    assert_eq!(answer[0].value.get("result"), Some(&Value::text("3")));

    world.call(1, "math.add");
    let [Output::Call { call, .. }] = world.out()[..] else { panic!() };
    world.door.called(world.now(), call, Called::NoProvider);
    let answer = frames_to(&world.out(), 1);
    let error = answer[0].value.get("error").unwrap();
    assert_eq!(error.get("code"), Some(&Value::text("no_such_procedure")));
    assert_eq!(error.get("message"), Some(&Value::text("No handler registered for math.add")));

    world.store(2, "math.add", service());
    world.call(1, "math.add");
    let out = world.out();
    // By the call its name is known now, so native peers can call it as well.
    let [Output::Serve { procedure, .. }, Output::Call { call, .. }] = out.as_slice() else {
        panic!("{out:?}")
    };
    assert_eq!(procedure, "math.add");
    world.door.called(world.now(), *call, Called::NoProvider);
    let asked = frames_to(&world.out(), 2);
    let call_id = asked[0].value.get("call_id").unwrap().clone();
    // Nobody else may answer.
    world.reply(1, call_id.clone(), "wrong");
    assert!(world.out().is_empty());
    world.reply(2, call_id, "5");
    let answer = frames_to(&world.out(), 1);
    assert_eq!(answer[0].value.get("result"), Some(&Value::text("5")));
    assert_eq!(answer[0].value.get("call_id"), Some(&Value::text("17")));
}

#[test]
fn native_peers_call_clients_whose_procedures_have_a_known_name() {
    let mut world = World::new(|config| config.procedures = vec!["math.add".to_owned()]);
    world.client(1);
    world.store(1, "math.add", service());
    let named = Value::Map(vec![(Value::text("name"), Value::text("math.sub"))]);
    world.store(1, "math.sub", Value::map([("metadata", named)]));
    let out = world.out();
    let serves = |out: &[Output], name: &str| {
        out.contains(&Output::Serve { realm: REALM.into(), procedure: name.to_owned() })
    };
    assert!(serves(&out, "math.add") && serves(&out, "math.sub"), "{out:?}");
    world.door.request(world.now(), REALM, 7, "math.add", Bytes::from_static(b"[1,2]"));
    let asked = frames_to(&world.out(), 1);
    assert_eq!(asked[0].value.get("args"), Some(&Value::text("[1,2]")));
    world.reply(1, asked[0].value.get("call_id").unwrap().clone(), "3");
    let result = Output::Answer { request: 7, outcome: Ok(Bytes::from_static(b"3")) };
    assert_eq!(world.out(), [result]);
    // One that never answers, as original clients, is offered no more.
    for request in 8..10 {
        world.door.request(world.now(), REALM, request, "math.add", Bytes::new());
        world.door.request_gone(request, true);
    }
    let gone = Output::Unserve { realm: REALM.into(), procedure: "math.add".to_owned() };
    assert!(world.out().contains(&gone));
    assert_eq!(world.door.stats().calls_unanswered, 2);
    world.door.closed(1);
    world.out();
    assert!(world.door.is_empty(), "{:?}", world.door);
}

#[test]
fn a_provider_that_leaves_fails_its_calls() {
    let mut world = World::new(|config| config.procedures = vec!["p".to_owned()]);
    world.client(1);
    world.store(1, "p", service());
    world.door.request(world.now(), REALM, 7, "p", Bytes::new());
    world.out();
    world.door.closed(1);
    let out = world.out();
    let failed = |it: &Output| matches!(it, Output::Answer { request: 7, outcome: Err(_) });
    assert!(out.iter().any(failed), "{out:?}");
    assert!(world.door.is_empty());
}

#[test]
fn values_are_found_and_leave_with_their_owner() {
    let mut world = World::new(|_| {});
    (1..=2).for_each(|number| world.client(number));
    let find = |world: &mut World| {
        let key = Value::Bin(Bytes::copy_from_slice(&key_of(b"p")));
        world.send(
            2,
            kind::FIND_VALUE,
            Value::map([("type", Value::text("find_value")), ("key", key)]),
        );
        frames_to(&world.out(), 2).remove(0).value
    };
    assert_eq!(find(&mut world).get("result"), Some(&Value::text("nodes")));
    world.store(1, "p", service());
    assert_eq!(find(&mut world).get("value"), Some(&service()));
    world.door.closed(1);
    let nodes = find(&mut world);
    assert_eq!(nodes.get("nodes").unwrap().list().unwrap().len(), 1, "the one who asks is left");
}

#[test]
fn routed_calls_are_answered_by_route_and_forwarded_to_nodes_that_are_here() {
    let mut world = World::new(|_| {});
    (1..=2).for_each(|number| world.client(number));
    let route = |destination: &str, hops: i128| {
        Value::map([
            ("destination_node_id", Value::text(destination)),
            ("source_node_id", Value::text("node 1")),
            ("hop_count", Value::Int(hops)),
            ("max_hops", Value::Int(10)),
            ("payload_type", Value::text("call")),
            (
                "payload",
                Value::map([("call_id", Value::text("9")), ("procedure", Value::text("p"))]),
            ),
        ])
    };
    world.send(1, kind::RPC_ROUTE, route("node 2", 3));
    let forwarded = frames_to(&world.out(), 2);
    assert_eq!(forwarded[0].value.get("hop_count"), Some(&Value::Int(4)));
    world.send(1, kind::RPC_ROUTE, route("the gateway", 0));
    let [Output::Call { call, .. }] = world.out()[..] else { panic!() };
    world.door.called(world.now(), call, Called::NoProvider);
    let answer = frames_to(&world.out(), 1);
    assert_eq!(answer[0].kind, kind::RPC_ROUTE);
    assert_eq!(answer[0].value.get("destination_node_id"), Some(&Value::text("node 1")));
    let code = answer[0].value.get("payload").unwrap().get("error").unwrap().get("code");
    assert_eq!(code, Some(&Value::text("no_handler")));
    world.send(1, kind::RPC_ROUTE, route("node 2", 10));
    assert!(world.out().is_empty());
    assert_eq!(world.door.stats().routes_dropped, 1);
}

#[test]
fn routed_messages_are_unwrapped_for_whom_they_are() {
    let mut world = World::new(|config| config.legacy_delivery = LegacyDelivery::Always);
    (1..=3).for_each(|number| world.client(number));
    (2..=3).for_each(|number| world.subscribe(number, "t"));
    world.out();
    let route = |destination: &str, number| {
        Value::map([
            ("destination_node_id", Value::text(destination)),
            ("source_node_id", Value::text("node 9")),
            ("hop_count", Value::Int(0)),
            ("max_hops", Value::Int(10)),
            ("topic", Value::text("t")),
            ("payload", message("t", "x", number)),
        ])
    };
    world.send(1, kind::PUBSUB_ROUTE, route("node 2", 1));
    let out = world.out();
    assert_eq!((publishes_to(&out, 2), publishes_to(&out, 3), out.len()), (1, 0, 1));
    world.send(1, kind::PUBSUB_ROUTE, route("the gateway", 2));
    let out = world.out();
    assert_eq!((publishes_to(&out, 2), publishes_to(&out, 3)), (1, 1));
    assert!(matches!(out.last(), Some(Output::Publish { .. })));
}

#[test]
fn limits_are_counted() {
    let mut world = World::new(|config| {
        config.subscriptions_per_client_max = 2;
        config.wildcards_per_realm_max = 1;
        config.values_per_client_max = 1;
        config.calls_per_client_max = 1;
        config.payload_bytes_max = 4_096;
    });
    world.client(1);
    for topic in ["a.*", "b.*", "c", "d"] {
        world.subscribe(1, topic);
    }
    assert_eq!((world.door.stats().subscriptions, world.door.stats().over_limit), (2, 2));
    world.store(1, "p", service());
    world.store(1, "q", service());
    world.store(1, "p", service());
    assert_eq!(world.door.stats().over_limit, 3);
    world.call(1, "p");
    world.call(1, "p");
    assert_eq!(world.door.stats().over_limit, 4);
    world.out();
    // Streams that each keep a part of a frame are closed together.
    for stream in 100..110 {
        world.door.stream_opened(1, stream);
        world.door.bytes(
            world.now(),
            stream,
            &[&[1, 16, 0, 0, 0, 0, 0x10, 0][..], &[0; 4_000][..]].concat(),
        );
    }
    assert!(world.out().iter().any(|it| matches!(it, Output::Close { connection: 1, .. })));
}

#[test]
fn without_connect_a_single_realm_takes_messages_and_several_do_not() {
    let mut world = World::new(|_| {});
    world.door.opened(world.now(), 1);
    world.door.stream_opened(1, 1);
    world.publish(1, "a", "x", 1);
    assert!(matches!(world.out().as_slice(), [Output::Publish { .. }]));
    let mut world = World::new(|config| config.realms.push("com.example.second".to_owned()));
    world.door.opened(world.now(), 1);
    world.door.stream_opened(1, 1);
    world.publish(1, "a", "x", 1);
    assert!(world.out().is_empty());
    assert_eq!(world.door.stats().strangers, 1);
    world.send(1, kind::PING, Value::map([("timestamp", Value::Int(5))]));
    assert_eq!(frames_to(&world.out(), 1)[0].value.get("timestamp"), Some(&Value::Int(5)));
}

#[test]
fn vectors_in_any_state_do_not_panic() {
    let mut world = World::new(|_| {});
    (1..=3).for_each(|number| world.client(number));
    let mut kinds = BTreeMap::new();
    for round in 0..3u64 {
        for vector in vectors() {
            let bytes = unhex(vector["hex"].as_str().unwrap());
            world.door.stream_opened(1 + round, 1_000);
            world.door.bytes(world.now(), 1_000, &bytes);
            world.door.stream_ended(1_000);
            for output in world.out() {
                if let Output::Call { call, .. } = output {
                    world.door.called(world.now(), call, Called::NoProvider);
                }
            }
            *kinds.entry(vector["type"].to_string()).or_insert(0) += 1;
            world.pass(Duration::from_millis(300));
        }
    }
    assert!(kinds.len() > 15);
    (1..=3).for_each(|number| world.door.closed(number));
    world.out();
    assert!(world.door.is_empty(), "{:?}", world.door);
}
