//! The golden frames in `vectors/frames.json`: written by hand from here, read by every test run
//! and by other implementations.

use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;

use super::{CHANNELS, KINDS, bytes_of, home, raw};
use crate::id::{EndpointId, RealmId, RealmTag};
use crate::limits;
use crate::wire::frame::encode_header;
use crate::wire::message::*;
use crate::wire::{BatchBuilder, Channel, Writer, decode, encode, kind};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../vectors/frames.json");

/// A frame that every implementation writes like this.
struct Valid {
    name: &'static str,
    description: &'static str,
    message: Message,
}

/// A frame that nobody should write, but everybody must read: it means the same as `same_as`.
struct Tolerated {
    name: &'static str,
    description: &'static str,
    same_as: &'static str,
    frame: Vec<u8>,
}

/// A frame that must be refused.
struct Invalid {
    name: &'static str,
    description: &'static str,
    channel: Channel,
    error: &'static str,
    frame: Vec<u8>,
}

#[test]
fn golden_frames_are_what_is_written_and_read() {
    let file = std::fs::read_to_string(FILE).expect("vectors/frames.json");
    let file: Value = serde_json::from_str(&file).expect("JSON");

    let examples = valid();
    let listed = entries(&file, "valid");
    assert_eq!(listed.len(), examples.len());
    for (entry, example) in listed.iter().zip(&examples) {
        assert_eq!(entry.name, example.name);
        let channel = home(&example.message);
        assert_eq!(entry.channel, channel_name(channel), "{}", entry.name);
        assert_eq!(bytes_of(&encode(&example.message)), entry.frame, "{}", entry.name);
        let read = decode(raw(&entry.frame, channel), channel);
        assert_eq!(read.as_ref(), Ok(&example.message), "{}", entry.name);
        assert_eq!(read.map(|read| bytes_of(&encode(&read))), Ok(entry.frame.clone()));
    }
    for kind in KINDS {
        assert!(examples.iter().any(|example| example.message.kind() == kind), "{kind:#04x}");
    }

    let listed = entries(&file, "tolerated");
    assert_eq!(listed.len(), tolerated().len());
    for (entry, example) in listed.iter().zip(tolerated()) {
        assert_eq!((entry.name.as_str(), &entry.frame[..]), (example.name, &example.frame[..]));
        let same = examples.iter().find(|other| other.name == example.same_as).expect("same_as");
        let channel = home(&same.message);
        let read = decode(raw(&entry.frame, channel), channel);
        assert_eq!(read.as_ref(), Ok(&same.message), "{}", entry.name);
    }

    let listed = entries(&file, "invalid");
    assert_eq!(listed.len(), invalid().len());
    for (entry, example) in listed.iter().zip(invalid()) {
        assert_eq!((entry.name.as_str(), &entry.frame[..]), (example.name, &example.frame[..]));
        assert_eq!(entry.channel, channel_name(example.channel), "{}", entry.name);
        assert_eq!(entry.error, example.error, "{}", entry.name);
        let error = decode(raw(&entry.frame, example.channel), example.channel).unwrap_err();
        let error_name = format!("{error:?}");
        let error_name = error_name.split(['(', ' ']).next().expect("a name");
        assert_eq!(error_name, example.error, "{}: {error}", entry.name);
    }
}

#[test]
#[ignore = "rewrites the golden vectors; run by hand when the wire changes"]
fn write_golden_frames() {
    let mut out = String::from("{\n  \"specification\": \"docs/protocol/04-frames.md\",\n");
    let quoted = |text: &str| Value::from(text).to_string();
    let entry = |fields: &[(&str, &str)]| {
        let fields: Vec<String> = fields
            .iter()
            .map(|(key, value)| format!("      {}: {}", quoted(key), quoted(value)))
            .collect();
        format!("    {{\n{}\n    }}", fields.join(",\n"))
    };
    let list = |entries: Vec<String>| entries.join(",\n");

    let valid = valid().into_iter().map(|v| {
        entry(&[
            ("name", v.name),
            ("description", v.description),
            ("channel", channel_name(home(&v.message))),
            ("hex", &hex(&bytes_of(&encode(&v.message)))),
        ])
    });
    writeln!(out, "  \"valid\": [\n{}\n  ],", list(valid.collect())).expect("a string");
    let tolerated = tolerated().into_iter().map(|t| {
        entry(&[
            ("name", t.name),
            ("description", t.description),
            ("same_as", t.same_as),
            ("hex", &hex(&t.frame)),
        ])
    });
    writeln!(out, "  \"tolerated\": [\n{}\n  ],", list(tolerated.collect())).expect("a string");
    let invalid = invalid().into_iter().map(|i| {
        entry(&[
            ("name", i.name),
            ("description", i.description),
            ("channel", channel_name(i.channel)),
            ("error", i.error),
            ("hex", &hex(&i.frame)),
        ])
    });
    writeln!(out, "  \"invalid\": [\n{}\n  ]\n}}", list(invalid.collect())).expect("a string");
    std::fs::write(FILE, out).expect("vectors/frames.json");
}

struct Entry {
    name: String,
    channel: String,
    error: String,
    frame: Bytes,
}

fn entries(file: &Value, list: &str) -> Vec<Entry> {
    let text = |entry: &Value, key: &str| entry[key].as_str().unwrap_or_default().to_owned();
    let entry = |entry: &Value| Entry {
        name: text(entry, "name"),
        channel: text(entry, "channel"),
        error: text(entry, "error"),
        frame: unhex(&text(entry, "hex")),
    };
    file[list].as_array().expect("a list").iter().map(entry).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Bytes {
    let digit = |digit: &u8| char::from(*digit).to_digit(16).expect("a hex digit") as u8;
    assert!(text.len().is_multiple_of(2) && !text.is_empty(), "whole bytes");
    text.as_bytes().chunks(2).map(|pair| (digit(&pair[0]) << 4) | digit(&pair[1])).collect()
}

fn channel_name(channel: Channel) -> &'static str {
    match channel {
        Channel::Control => "control",
        Channel::Lane(0) => "lane 0",
        Channel::Lane(_) => "lane 1",
        Channel::Bulk => "bulk",
        Channel::Stream(_) => "stream",
    }
}

fn alice() -> EndpointId {
    EndpointId::from_bytes(std::array::from_fn(|index| index as u8))
}

fn energy() -> RealmId {
    RealmId::of_name("com.example.energy")
}

fn publish() -> Publish {
    Publish {
        realm: energy().tag(),
        publisher: alice(),
        epoch: 1_790_000_000_000_000,
        first: 41,
        count: 1,
        ttl: limits::TTL_HOPS,
        qos1: false,
        retain: false,
        start: false,
        topic: Bytes::from_static(b"sensors.1.temperature"),
        body: Bytes::from_static(b"21.5"),
    }
}

fn call() -> Call {
    Call {
        call: 300,
        realm: energy().tag(),
        procedure: "boiler.set".to_owned(),
        deadline: Duration::from_secs(5),
        policy: ProviderPolicy::Nearest,
        idempotent: false,
        streaming: false,
        target: None,
        caller: None,
        traceparent: Bytes::new(),
        body: Bytes::from_static(b"55"),
    }
}

fn valid() -> Vec<Valid> {
    let mut list = Vec::new();
    let mut add = |name, description, message| list.push(Valid { name, description, message });
    let realm = energy().tag();
    let denied = || Some((RefusalCode::Denied, "no grant for this realm".to_owned()));

    add(
        "hello_leaf",
        "A leaf's first hello: version 1, one open realm.",
        Message::Hello(Hello {
            version_min: 1,
            version_max: 1,
            capabilities: 0,
            is_router: false,
            instance: 0x0102_0304_0506_0708,
            resumes: 0,
            observed: "192.0.2.7:4433".to_owned(),
            agent: "macula/0.1.0".to_owned(),
            realms: vec![RealmOffer { realm: energy(), grant: Bytes::new() }],
        }),
    );
    add(
        "hello_router_resumes",
        "A router's hello after a lost link, with two realms, one with a grant.",
        Message::Hello(Hello {
            version_min: 1,
            version_max: 3,
            capabilities: 0x8000_0000_0000_0001,
            is_router: true,
            instance: 7,
            resumes: u64::MAX,
            observed: String::new(),
            agent: "other/2".to_owned(),
            realms: vec![
                RealmOffer { realm: energy(), grant: Bytes::from_static(b"\x01\x02\x03") },
                RealmOffer { realm: RealmId::of_name("lab"), grant: Bytes::new() },
            ],
        }),
    );
    add(
        "realms_one_admitted_one_refused",
        "The first realm is admitted, the second is refused with a reason.",
        Message::Realms(vec![
            RealmStatus { realm: energy(), refusal: None },
            RealmStatus { realm: RealmId::of_name("lab"), refusal: denied() },
        ]),
    );
    add("realms_none", "The hello asked for no realm.", Message::Realms(Vec::new()));
    add(
        "goodbye_restarting",
        "The gateway restarts; come back in 1.5 s.",
        Message::Goodbye {
            code: CloseCode::Restarting,
            reason: "upgrade".to_owned(),
            reconnect_in: Duration::from_millis(1500),
        },
    );
    add(
        "goodbye_unknown_code",
        "A code that this version does not know is read as 65535.",
        Message::Goodbye {
            code: CloseCode::Unknown,
            reason: "grün".to_owned(),
            reconnect_in: Duration::ZERO,
        },
    );
    add("ping", "A probe.", Message::Ping { id: 5 });
    add("pong", "Its answer, with a 64-bit id.", Message::Pong { id: u64::MAX });
    add(
        "join",
        "One more realm on a standing link, with a grant.",
        Message::Join(vec![RealmOffer {
            realm: RealmId::of_name("lab"),
            grant: Bytes::from_static(b"\x01\x02\x03"),
        }]),
    );
    add(
        "subscribe_pattern",
        "A pattern, with retained messages; QoS 0 drops the oldest.",
        Message::Subscribe(Subscribe {
            realm,
            subscription: 1,
            pattern: "sensors.*.temperature".to_owned(),
            policy: SlowPolicy::DropOldest,
            resume: false,
            retained: true,
        }),
    );
    add(
        "subscribe_resume",
        "The subscription existed on an earlier link; publishers wait when it is slow.",
        Message::Subscribe(Subscribe {
            realm,
            subscription: u32::MAX,
            pattern: "alerts.**".to_owned(),
            policy: SlowPolicy::Block,
            resume: true,
            retained: false,
        }),
    );
    add(
        "subscribe_result_done",
        "Subscribed.",
        Message::SubscribeResult { realm, subscription: 1, refusal: None },
    );
    add(
        "subscribe_result_refused",
        "Refused, with a reason.",
        Message::SubscribeResult { realm, subscription: 2, refusal: denied() },
    );
    add("unsubscribe", "Unsubscribe.", Message::Unsubscribe { realm, subscription: 1 });
    add(
        "dropped",
        "70,000 messages were dropped on this link so far.",
        Message::Dropped { realm, messages: 70_000 },
    );
    add(
        "publish_ack",
        "Accepted up to 41, delivered up to 40, the newest went to 3 links.",
        Message::PublishAck(PublishAck {
            realm,
            topic: "sensors.1.temperature".to_owned(),
            epoch: 1_790_000_000_000_000,
            accepted: 41,
            delivered: 40,
            receivers: 3,
            is_complete: true,
        }),
    );
    add(
        "publish_refused",
        "Messages 42 and 43 were not taken.",
        Message::PublishRefused {
            realm,
            topic: "sensors.1.temperature".to_owned(),
            first: 42,
            count: 2,
            code: RefusalCode::Limit,
            reason: "ring_bytes_max".to_owned(),
        },
    );
    add(
        "deliver_ack",
        "500 QoS 1 frames of lane 4 were taken.",
        Message::DeliverAck { lane: 4, frames: 500 },
    );
    add("bulk_ack", "Large message 9 was taken.", Message::BulkAck { id: 9 });
    add("sync_done", "Everything before sync 3 was handled.", Message::SyncDone { id: 3 });
    add(
        "register",
        "Offers a procedure, 16 requests at once.",
        Message::Register(Register {
            realm,
            registration: 1,
            procedure: "boiler.set".to_owned(),
            concurrency: 16,
        }),
    );
    add(
        "register_result_done",
        "Registered.",
        Message::RegisterResult { realm, registration: 1, refusal: None },
    );
    add(
        "register_result_refused",
        "Refused with a code that this version does not know, read as 65535.",
        Message::RegisterResult {
            realm,
            registration: 1,
            refusal: Some((RefusalCode::Unknown, String::new())),
        },
    );
    let topic = "house.kitchen".to_owned();
    let expect = Message::Expect { realm, topic, receivers: 2 };
    add("expect", "Two subscribers had the topic before the router restarted.", expect);
    let (publisher, topic) = (EndpointId::from_bytes([7; 32]), "house.kitchen".to_owned());
    let prune =
        Prune { realm, publisher, epoch: 5, topic: topic.clone(), id: 1, from: 8, taken: 6 };
    add("prune", "From 8 on the stream comes over a link to its publisher.", Message::Prune(prune));
    let unprune = Message::Unprune { realm, publisher, epoch: 5, topic };
    add("unprune", "The stream does not come over that link any more.", unprune);
    let topic = "house.kitchen".to_owned();
    let quiet = Message::Quiet { realm, topic, receivers: 2 };
    add("quiet", "The two subscribers of the topic get it elsewhere.", quiet);
    add("unregister", "Unregister.", Message::Unregister { realm, registration: 1 });

    add("publish_one", "One QoS 0 message.", Message::Publish(publish()));
    let mut batch = BatchBuilder::new();
    batch.push(b"21.5");
    batch.push(b"");
    batch.push(&[b'x'; 130]);
    let (count, body) = batch.finish();
    add(
        "publish_batch",
        "Three QoS 1 messages, of 4, 0 and 130 bytes; the first of their epoch; the last is \
         retained.",
        Message::Publish(Publish {
            first: 1,
            count,
            qos1: true,
            retain: true,
            start: true,
            body,
            ..publish()
        }),
    );
    add(
        "publish_last_hop",
        "An empty payload, a topic beyond ASCII, no hops left.",
        Message::Publish(Publish {
            ttl: 0,
            topic: Bytes::from_static("räume.küche".as_bytes()),
            body: Bytes::new(),
            ..publish()
        }),
    );
    add(
        "retained",
        "The retained message of a topic, for subscription 1.",
        Message::Retained { subscription: 1, publish: Publish { retain: true, ..publish() } },
    );
    add(
        "bulk_publish",
        "A large message (here a small one) on a stream of its own.",
        Message::BulkPublish { id: 9, publish: Publish { qos1: true, ..publish() } },
    );
    let pruned = Message::Pruned { id: 1 };
    add("pruned", "Everything before the from of prune 1 was sent before.", pruned);
    add("sync", "Asks for an answer on the control stream.", Message::Sync { id: 3 });

    add("call", "A unary call, 5 s to go.", Message::Call(call()));
    add(
        "call_every_field",
        "A streaming call to one endpoint, forwarded by a router, with a trace context.",
        Message::Call(Call {
            policy: ProviderPolicy::First,
            idempotent: true,
            streaming: true,
            target: Some(EndpointId::from_bytes([0xaa; 32])),
            caller: Some(alice()),
            traceparent: Bytes::from_static(
                b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            ),
            ..call()
        }),
    );
    add(
        "call_built_in",
        "A built-in procedure of the router itself, without argument.",
        Message::Call(Call {
            call: 1,
            realm: RealmTag::ENDPOINT,
            procedure: "macula.ping".to_owned(),
            body: Bytes::new(),
            ..call()
        }),
    );
    add("reply", "The result.", Message::Reply { call: 300, body: Bytes::from_static(b"ok") });
    add(
        "call_error_refused",
        "The handler's own code and words.",
        Message::CallError {
            call: 300,
            failure: CallFailure {
                class: ErrorClass::Refused,
                code: 422,
                message: "too hot".to_owned(),
                retry_after: Duration::ZERO,
                retry_safe: false,
            },
        },
    );
    add(
        "call_error_busy",
        "No room; it did not run; try again in 250 ms.",
        Message::CallError {
            call: 301,
            failure: CallFailure {
                class: ErrorClass::Busy,
                code: 0,
                message: String::new(),
                retry_after: Duration::from_millis(250),
                retry_safe: true,
            },
        },
    );
    add("cancel", "The caller gave up.", Message::Cancel { call: 300 });
    add(
        "item",
        "An item of a streaming call.",
        Message::Item { call: 300, body: Bytes::from_static(b"next") },
    );
    add("items_end", "The caller sends no more items.", Message::ItemsEnd { call: 300 });
    add(
        "unknown_kind",
        "A kind that this version does not know is ignored.",
        Message::Unknown { kind: 0x7e },
    );
    list
}

fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    [&encode_header(kind, payload.len())[..], payload].concat()
}

fn array_frame(kind: u8, write: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let mut writer = Writer::default();
    write(&mut writer);
    frame(kind, &writer.into_bytes())
}

fn tolerated() -> Vec<Tolerated> {
    let mut list = Vec::new();
    let mut add = |name, description, same_as, frame| {
        list.push(Tolerated { name, description, same_as, frame });
    };
    add(
        "ping_trailing_fields",
        "Fields that a later version added: a map, a float and an extension.",
        "ping",
        frame(
            kind::PING,
            &[0x94, 5, 0x81, 0xa1, b'k', 0x91, 0xc0, 0xca, 0x3f, 0x80, 0, 0, 0xd4, 1, 0xff],
        ),
    );
    add(
        "ping_wide",
        "The array and the number are written wider than necessary.",
        "ping",
        frame(kind::PING, &[0xdd, 0, 0, 0, 1, 0xcf, 0, 0, 0, 0, 0, 0, 0, 5]),
    );
    add(
        "goodbye_code_99",
        "A code that this version does not know.",
        "goodbye_unknown_code",
        array_frame(kind::GOODBYE, |w| {
            w.array(3);
            w.uint(99u8);
            w.str("grün");
            w.uint(0u8);
        }),
    );
    let encoded = encode(&Message::Publish(publish()));
    let mut longer = encoded.head[4..].to_vec();
    longer[1] += 3;
    longer.extend_from_slice(&[1, 2, 3]);
    longer[2 + 8 + 32 + 8 + 8 + 4 + 1] |= 0xf8;
    longer.extend_from_slice(&encoded.body);
    add(
        "publish_longer_head",
        "Three bytes behind the topic and five flags that this version does not know.",
        "publish_one",
        frame(kind::PUBLISH, &longer),
    );
    add(
        "cancel_with_body",
        "A body where none is defined.",
        "cancel",
        frame(kind::CANCEL, &[0, 4, 0x91, 0xcd, 0x01, 0x2c, b'x']),
    );
    add(
        "unknown_kind_with_payload",
        "The payload of an unknown kind is not looked at.",
        "unknown_kind",
        frame(0x7e, &[0xc1, 0xc1]),
    );
    list
}

fn invalid() -> Vec<Invalid> {
    let mut list = Vec::new();
    let mut add = |name, description, channel, error, frame| {
        list.push(Invalid { name, description, channel, error, frame });
    };
    let [control, calls, lane, bulk, stream] = CHANNELS;

    let ping = frame(kind::PING, &[0x91, 5]);
    add("ping_on_a_lane", "Control frames come on control only.", lane, "WrongChannel", ping);
    let published = |change: fn(&mut Publish)| {
        let mut publish = publish();
        change(&mut publish);
        bytes_of(&encode(&Message::Publish(publish))).to_vec()
    };
    let good = published(|_| {});
    add("publish_on_control", "Publishes come on lanes.", control, "WrongChannel", good.clone());
    add("publish_on_lane_0", "Lane 0 is for calls.", calls, "WrongChannel", good.clone());
    let item = frame(kind::ITEM, &[0, 2, 0x91, 1]);
    add("item_on_lane_0", "Items have a stream of their own.", calls, "WrongChannel", item);
    let cancel = frame(kind::CANCEL, &[0, 2, 0x91, 1]);
    add("cancel_on_stream", "Cancel rides lane 0.", stream, "WrongChannel", cancel);

    add("ping_empty", "No payload.", control, "Truncated", frame(kind::PING, &[]));
    add("ping_cut", "The id is cut.", control, "Truncated", frame(kind::PING, &[0x91, 0xcd, 1]));
    add("ping_without_id", "A missing field.", control, "Missing", frame(kind::PING, &[0x90]));
    add("ping_is_a_map", "Not an array.", control, "Type", frame(kind::PING, &[0x80]));
    let text = frame(kind::PING, &[0x91, 0xa1, b'5']);
    add("ping_id_is_a_text", "Not a number.", control, "Type", text);
    let negative = frame(kind::PING, &[0x91, 0xff]);
    add("ping_id_below_zero", "A negative number.", control, "Range", negative);
    let reserved = frame(kind::PING, &[0x92, 5, 0xc1]);
    add("ping_reserved_byte", "0xc1 begins no value.", control, "Invalid", reserved);
    let trailing = frame(kind::PING, &[0x91, 5, 0]);
    add("ping_trailing_byte", "A byte behind the array.", control, "Trailing", trailing);
    let mut deep = vec![0x92, 5];
    deep.extend_from_slice(&[0x91; 9]);
    deep.push(0xc0);
    let deep = frame(kind::PING, &deep);
    add("ping_nested_9_deep", "Unknown fields nest at most 8 deep.", control, "Depth", deep);
    let announced = frame(kind::PING, &[0xdd, 0xff, 0xff, 0xff, 0xff, 5]);
    add("ping_4_billion_fields", "Announced, but not there.", control, "Truncated", announced);

    let subscribe = |pattern: &[u8], policy: u8| {
        array_frame(kind::SUBSCRIBE, |w| {
            w.array(6);
            w.uint(1u8);
            w.uint(1u8);
            w.raw(pattern);
            w.uint(policy);
            w.bool(false);
            w.bool(false);
        })
    };
    let unknown = subscribe(&[0xa1, b'a'], 3);
    add("subscribe_policy_3", "Policies have no unknown value.", control, "Range", unknown);
    let empty = subscribe(&[0xa0], 0);
    add("subscribe_empty_pattern", "A name is never empty.", control, "Empty", empty);
    let not_utf8 = subscribe(&[0xa1, 0xff], 0);
    add("subscribe_not_utf8", "A name is UTF-8.", control, "Utf8", not_utf8);
    let mut pattern = vec![0xda, 1, 0];
    pattern.extend_from_slice(&[b'a'; 256]);
    let long = subscribe(&pattern, 0);
    add("subscribe_pattern_of_256_bytes", "Names have at most 255.", control, "TooLong", long);
    let lane_0 = frame(kind::DELIVER_ACK, &[0x92, 0, 1]);
    add("deliver_ack_of_lane_0", "Lane 0 carries no publishes.", control, "Range", lane_0);

    add("publish_head_cut", "The head is shorter than announced.", lane, "Truncated", {
        frame(kind::PUBLISH, &good[4..60])
    });
    add("publish_head_short", "The topic is not within the head.", lane, "Truncated", {
        let mut short = good[4..].to_vec();
        short[1] -= 1;
        frame(kind::PUBLISH, &short)
    });
    add("publish_head_long", "A head has at most 2046 bytes.", lane, "TooLong", {
        let mut long = vec![0x07, 0xff];
        long.resize(2 + 0x7ff, 0);
        frame(kind::PUBLISH, &long)
    });
    add("publish_count_0", "No message.", lane, "Range", published(|p| p.count = 0));
    add("publish_count_8193", "Too many messages.", lane, "Range", published(|p| p.count = 8193));
    let short = published(|p| p.count = 5);
    add("publish_count_over_body", "5 messages in 4 bytes.", lane, "Truncated", short);
    add("publish_first_0", "Sequences begin at 1.", lane, "Range", published(|p| p.first = 0));
    let overflow = published(|p| p.first = u64::MAX);
    add("publish_sequence_overflow", "The sequence would wrap.", lane, "Range", overflow);
    add("publish_ttl_21", "At most 20 hops.", lane, "Range", published(|p| p.ttl = 21));
    let empty = published(|p| p.topic = Bytes::new());
    add("publish_empty_topic", "A topic is never empty.", lane, "Empty", empty);
    let not_utf8 = published(|p| p.topic = Bytes::from_static(b"a\xff"));
    add("publish_topic_not_utf8", "A topic is UTF-8.", lane, "Utf8", not_utf8);
    let two = Publish { count: 2, ..publish() };
    let two = bytes_of(&encode(&Message::BulkPublish { id: 1, publish: two })).to_vec();
    add("bulk_publish_of_two", "Large messages stand alone.", bulk, "Range", two);
    list
}
