//! Frames and messages of v0.7: an 8-byte header and a map.

use bytes::{Buf, Bytes, BytesMut};

use super::dialect::Value;

/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = 8;
/// The only version of frames.
const VERSION: u8 = 1;
/// Topics in one SUBSCRIBE or UNSUBSCRIBE.
pub const TOPICS_PER_FRAME_MAX: usize = 256;
/// What a route may pass at most, as v0.7 sends it.
pub const HOPS_MAX: i128 = 10;

/// Ids of types of messages.
pub mod kind {
    #![allow(missing_docs, reason = "the names of the protocol's messages")]
    pub const CONNECT: u8 = 0x01;
    pub const DISCONNECT: u8 = 0x02;
    pub const PING: u8 = 0x03;
    pub const PONG: u8 = 0x04;
    pub const PUBLISH: u8 = 0x10;
    pub const SUBSCRIBE: u8 = 0x11;
    pub const UNSUBSCRIBE: u8 = 0x12;
    pub const PUBSUB_ROUTE: u8 = 0x13;
    pub const CALL: u8 = 0x20;
    pub const REPLY: u8 = 0x21;
    pub const CAST: u8 = 0x22;
    pub const RPC_ROUTE: u8 = 0x23;
    pub const SWIM_PING: u8 = 0x30;
    pub const SWIM_ACK: u8 = 0x31;
    pub const SWIM_PING_REQ: u8 = 0x32;
    pub const FIND_NODE: u8 = 0x40;
    pub const FIND_NODE_REPLY: u8 = 0x41;
    pub const STORE: u8 = 0x42;
    pub const FIND_VALUE: u8 = 0x43;
    pub const FIND_VALUE_REPLY: u8 = 0x44;

    /// Whether v0.7 has such a type.
    pub const fn is_known(id: u8) -> bool {
        matches!(id, 0x01..=0x04 | 0x10..=0x13 | 0x20..=0x23 | 0x30..=0x32 | 0x40..=0x44)
    }
}

/// A frame that was understood as far as its payload is a value.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    /// Id of the type.
    pub kind: u8,
    /// Payload.
    pub value: Value,
}

/// What a [`FrameReader`] finds next.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// A frame.
    Frame(Frame),
    /// A frame that is left out, as v0.7 programs do: another version, an unknown type, or a payload
    /// that is not one value.
    Skipped,
    /// A frame larger than allowed; left out as well.
    TooLarge,
}

/// Cuts the bytes of one stream into frames, however they come.
#[derive(Debug)]
pub struct FrameReader {
    payload_bytes_max: usize,
    buffer: BytesMut,
    /// Bytes still to come of a frame that is left out.
    skip: usize,
}

impl FrameReader {
    /// For frames with payloads of at most `payload_bytes_max`.
    pub fn new(payload_bytes_max: usize) -> Self {
        Self { payload_bytes_max, buffer: BytesMut::new(), skip: 0 }
    }

    /// Takes bytes. Take all frames out before the next call: what waits is bounded by a frame and
    /// what is given at once.
    pub fn push(&mut self, bytes: &[u8]) {
        let skipped = self.skip.min(bytes.len());
        self.skip -= skipped;
        self.buffer.extend_from_slice(bytes.get(skipped..).unwrap_or_default());
    }

    /// The next frame; `None`: more bytes are needed.
    pub fn take(&mut self) -> Option<Next> {
        let header = self.buffer.first_chunk::<HEADER_BYTES>()?;
        let [version, kind, _flags, _reserved, a, b, c, d] = *header;
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        let is_usable = version == VERSION && kind::is_known(kind);
        if !is_usable || length > self.payload_bytes_max {
            self.buffer.advance(HEADER_BYTES);
            let here = length.min(self.buffer.len());
            self.buffer.advance(here);
            self.skip = length - here;
            return Some(if is_usable { Next::TooLarge } else { Next::Skipped });
        }
        if self.buffer.len() < HEADER_BYTES + length {
            return None;
        }
        self.buffer.advance(HEADER_BYTES);
        let payload = self.buffer.split_to(length).freeze();
        let value = Value::decode(&payload).filter(|value| matches!(value, Value::Map(_)));
        // An idle stream shall not keep what a large frame needed.
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
        Some(value.map_or(Next::Skipped, |value| Next::Frame(Frame { kind, value })))
    }

    /// Bytes that wait for the rest of their frame.
    pub fn waiting(&self) -> usize {
        self.buffer.len()
    }
}

/// A whole frame.
pub fn frame(kind: u8, value: &Value) -> Bytes {
    let mut out = BytesMut::with_capacity(64);
    out.extend_from_slice(&[VERSION, kind, 0, 0, 0, 0, 0, 0]);
    value.encode(&mut out);
    let length = u32::try_from(out.len() - HEADER_BYTES).unwrap_or(u32::MAX);
    if let Some(field) = out.get_mut(4..HEADER_BYTES) {
        field.copy_from_slice(&length.to_be_bytes());
    }
    out.freeze()
}

/// What a client can say that has an effect.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// Who it is.
    Connect(Connect),
    /// Asks for a PONG with the same value.
    Ping(i128),
    /// A message for subscribers.
    Publish(Publish),
    /// Wants what is published on topics.
    Subscribe(Vec<Bytes>),
    /// Wants it no more.
    Unsubscribe(Vec<Bytes>),
    /// Keeps a value under a key.
    Store(Key, Value),
    /// Asks for it.
    FindValue(Key),
    /// Asks who is near a key.
    FindNode(Bytes),
    /// Calls a procedure.
    Call(Call),
    /// Answers a call.
    Reply(Reply),
    /// A call or its answer for a node that is named.
    RpcRoute(Route),
    /// A message for a node that is named.
    PubsubRoute(Route),
    /// Of a known type, and without effect.
    Other(u8),
}

/// SHA-256 of a topic or a procedure's name.
pub type Key = [u8; 32];

/// CONNECT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connect {
    /// Whatever the client calls itself.
    pub node_id: Bytes,
    /// Name of the realm.
    pub realm: Bytes,
    /// A URL, mostly without use.
    pub endpoint: Option<Bytes>,
}

/// PUBLISH.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    /// Topic.
    pub topic: Bytes,
    /// Whatever it is.
    pub payload: Bytes,
    /// 0, 1 or 2.
    pub qos: u8,
    /// Asked to be kept.
    pub retain: bool,
    /// Differs between messages of one connection; repeated by retransmissions.
    pub message_id: Bytes,
}

/// CALL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The caller's number.
    pub call_id: Bytes,
    /// Name.
    pub procedure: Bytes,
    /// Argument.
    pub args: Bytes,
}

/// REPLY.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The caller's number.
    pub call_id: Bytes,
    /// What came of it.
    pub outcome: Outcome,
}

/// What a handler says: a result, or a fault.
pub type Outcome = Result<Bytes, Fault>;

/// Why a call has no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// For programs.
    pub code: Bytes,
    /// For people.
    pub message: Bytes,
}

impl Fault {
    /// A fault with `code` and `message`.
    pub fn new(code: &'static str, message: &str) -> Self {
        let message = Bytes::copy_from_slice(message.as_bytes());
        Self { code: Bytes::from_static(code.as_bytes()), message }
    }
}

/// RPC_ROUTE and PUBSUB_ROUTE.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// For whom.
    pub destination: Bytes,
    /// From whom, by its word.
    pub source: Bytes,
    /// Nodes passed so far.
    pub hop_count: i128,
    /// Nodes that it may pass.
    pub max_hops: i128,
    /// All fields, to pass on.
    pub fields: Value,
}

impl Message {
    /// What a frame says; `None`: fields are missing or of the wrong sort.
    pub fn parse(frame: &Frame) -> Option<Self> {
        let value = &frame.value;
        Some(match frame.kind {
            kind::CONNECT => Self::Connect(Connect {
                node_id: bytes(value, "node_id")?,
                realm: bytes(value, "realm_id")?,
                endpoint: bytes(value, "endpoint"),
            }),
            kind::PING => Self::Ping(value.get("timestamp")?.int()?),
            kind::PUBLISH => Self::Publish(Publish::parse(value)?),
            kind::SUBSCRIBE => Self::Subscribe(topics(value)?),
            kind::UNSUBSCRIBE => Self::Unsubscribe(topics(value)?),
            kind::STORE => Self::Store(key(value)?, value.get("value")?.clone()),
            kind::FIND_VALUE => Self::FindValue(key(value)?),
            kind::FIND_NODE => Self::FindNode(bytes(value, "target")?),
            kind::CALL => Self::Call(Call::parse(value)?),
            kind::REPLY => Self::Reply(Reply::parse(value)?),
            kind::RPC_ROUTE => Self::RpcRoute(Route::parse(value)?),
            kind::PUBSUB_ROUTE => Self::PubsubRoute(Route::parse(value)?),
            other => Self::Other(other),
        })
    }
}

impl Publish {
    fn parse(value: &Value) -> Option<Self> {
        Some(Self {
            topic: bytes(value, "topic")?,
            payload: bytes(value, "payload")?,
            qos: value.get("qos").and_then(Value::int).map_or(0, |qos| qos.clamp(0, 2) as u8),
            retain: value.get("retain") == Some(&Value::Bool(true)),
            message_id: bytes(value, "message_id").unwrap_or_default(),
        })
    }

    /// The frame that subscribers get.
    pub fn frame(&self) -> Bytes {
        let fields = [
            ("message_id", Value::Bin(self.message_id.clone())),
            ("payload", Value::Bin(self.payload.clone())),
            ("qos", Value::Int(i128::from(self.qos))),
            ("retain", Value::Bool(self.retain)),
            ("topic", Value::Bin(self.topic.clone())),
        ];
        frame(kind::PUBLISH, &Value::map(fields))
    }
}

impl Call {
    fn parse(value: &Value) -> Option<Self> {
        Some(Self {
            call_id: bytes(value, "call_id")?,
            procedure: bytes(value, "procedure")?,
            args: bytes(value, "args").unwrap_or_default(),
        })
    }

    /// The frame for a provider.
    pub fn frame(&self, realm: &str) -> Bytes {
        let fields = [
            ("args", Value::Bin(self.args.clone())),
            ("call_id", Value::Bin(self.call_id.clone())),
            ("procedure", Value::Bin(self.procedure.clone())),
            ("realm", Value::text(realm)),
        ];
        frame(kind::CALL, &Value::map(fields))
    }
}

impl Reply {
    fn parse(value: &Value) -> Option<Self> {
        let call_id = bytes(value, "call_id")?;
        let outcome = match bytes(value, "result") {
            Some(result) => Ok(result),
            None => {
                let error = value.get("error")?;
                let part = |name| bytes(error, name).unwrap_or_default();
                Err(Fault { code: part("code"), message: part("message") })
            }
        };
        Some(Self { call_id, outcome })
    }

    fn fields(&self) -> Value {
        let call_id = ("call_id", Value::Bin(self.call_id.clone()));
        match &self.outcome {
            Ok(result) => Value::map([call_id, ("result", Value::Bin(result.clone()))]),
            Err(Fault { code, message }) => {
                let parts =
                    [("code", Value::Bin(code.clone())), ("message", Value::Bin(message.clone()))];
                Value::map([call_id, ("error", Value::map(parts))])
            }
        }
    }

    /// The frame for a caller.
    pub fn frame(&self) -> Bytes {
        frame(kind::REPLY, &self.fields())
    }

    /// The frame for a caller that sent its call by RPC_ROUTE from `destination` to `source`.
    pub fn routed(&self, destination: Bytes, source: Bytes) -> Bytes {
        let fields = [
            ("destination_node_id", Value::Bin(destination)),
            ("source_node_id", Value::Bin(source)),
            ("hop_count", Value::Int(0)),
            ("max_hops", Value::Int(HOPS_MAX)),
            ("payload_type", Value::text("reply")),
            ("payload", self.fields()),
        ];
        frame(kind::RPC_ROUTE, &Value::map(fields))
    }
}

impl Route {
    fn parse(value: &Value) -> Option<Self> {
        value.get("payload")?;
        Some(Self {
            destination: bytes(value, "destination_node_id")?,
            source: bytes(value, "source_node_id")?,
            hop_count: value.get("hop_count")?.int()?,
            max_hops: value.get("max_hops").and_then(Value::int).unwrap_or(HOPS_MAX),
            fields: value.clone(),
        })
    }

    /// Whether it has passed as many nodes as it may.
    pub fn is_spent(&self) -> bool {
        self.hop_count < 0 || self.hop_count >= self.max_hops.min(HOPS_MAX)
    }

    /// The call in an RPC_ROUTE, if it is one.
    pub fn call(&self) -> Option<Call> {
        let is_call = self.fields.get("payload_type")?.bytes()?.as_ref() == b"call";
        is_call.then(|| Call::parse(self.fields.get("payload")?)).flatten()
    }

    /// The message in a PUBSUB_ROUTE.
    pub fn publish(&self) -> Option<Publish> {
        Publish::parse(self.fields.get("payload")?)
    }

    /// The frame for the next node.
    pub fn forwarded(&self, kind: u8) -> Bytes {
        let mut fields = self.fields.clone();
        if let Value::Map(entries) = &mut fields {
            entries.retain(|(key, _)| key.bytes().is_none_or(|key| key != "hop_count"));
            entries.push((Value::text("hop_count"), Value::Int(self.hop_count + 1)));
        }
        frame(kind, &fields)
    }
}

/// PONG.
pub fn pong(timestamp: i128, server_time: i128) -> Bytes {
    let fields = [("timestamp", Value::Int(timestamp)), ("server_time", Value::Int(server_time))];
    frame(kind::PONG, &Value::map(fields))
}

/// A node that others can ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contact {
    /// What it calls itself.
    pub node_id: Bytes,
    /// The endpoint that it told.
    pub address: Option<Bytes>,
    /// Unix time, milliseconds.
    pub last_seen: i128,
}

fn contacts(nodes: &[Contact]) -> Value {
    let contact = |node: &Contact| {
        let address = node.address.clone().unwrap_or(Bytes::from_static(b"undefined"));
        Value::map([
            ("node_id", Value::Bin(node.node_id.clone())),
            ("address", Value::Bin(address)),
            ("last_seen", Value::Int(node.last_seen)),
        ])
    };
    Value::List(nodes.iter().map(contact).collect())
}

/// FIND_VALUE_REPLY with a value.
pub fn found_value(value: Value) -> Bytes {
    let fields = [
        ("type", Value::text("find_value_reply")),
        ("result", Value::text("value")),
        ("value", value),
    ];
    frame(kind::FIND_VALUE_REPLY, &Value::map(fields))
}

/// FIND_VALUE_REPLY without one.
pub fn no_value(nodes: &[Contact]) -> Bytes {
    let fields = [
        ("type", Value::text("find_value_reply")),
        ("result", Value::text("nodes")),
        ("nodes", contacts(nodes)),
    ];
    frame(kind::FIND_VALUE_REPLY, &Value::map(fields))
}

/// FIND_NODE_REPLY.
pub fn found_nodes(nodes: &[Contact]) -> Bytes {
    let fields = [("type", Value::text("find_node_reply")), ("nodes", contacts(nodes))];
    frame(kind::FIND_NODE_REPLY, &Value::map(fields))
}

fn bytes(value: &Value, name: &str) -> Option<Bytes> {
    value.get(name)?.bytes().cloned()
}

fn key(value: &Value) -> Option<Key> {
    value.get("key")?.bytes()?.as_ref().try_into().ok()
}

fn topics(value: &Value) -> Option<Vec<Bytes>> {
    let topics = value.get("topics")?.list()?;
    let topics: Option<Vec<Bytes>> = topics.iter().map(|topic| topic.bytes().cloned()).collect();
    topics.filter(|topics| topics.len() <= TOPICS_PER_FRAME_MAX)
}
