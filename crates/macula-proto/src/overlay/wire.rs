//! Messages of the overlay as bytes: MessagePack arrays, the first element says which message, and
//! fields that are not known at the end are skipped. Spec: docs/protocol §8.9.
//!
//! Decoding is for bytes from strangers: every length, count and number is checked against its limit
//! before it is used, and nothing is allocated that did not come. A contact carries no key: it is
//! derived from realm and id here, so nobody can claim a place that is not its own.

use std::time::Duration;

use bytes::Bytes;

use super::coordinate::Coordinate;
use super::message::{
    Answer, Body, Contact, Cursor, Load, Message, Need, Reply, Route, RoutedCall, StoreRefusal,
    TreeAct, TreeId, TreeMessage,
};
use super::record::Record;
use crate::id::{Distance, EndpointId, Key, RealmId, RealmTag};
use crate::limits::{
    BATCH_MESSAGES_MAX, CONTACTS_PER_MESSAGE_MAX, LANE_FRAME_BYTES_MAX, REASON_BYTES_MAX,
    RECORD_VALUE_BYTES_MAX, RECORDS_PER_MESSAGE_MAX, ROUTED_BYTES_MAX, TOPIC_BYTES_MAX, TTL_HOPS,
};
use crate::wire::codec::{DecodeError, Reader, Writer};
use crate::wire::message::{CallFailure, ErrorClass, Publish};

type Result<T> = std::result::Result<T, DecodeError>;

/// Writes a message.
pub fn encode(message: &Message) -> Vec<u8> {
    let mut w = Writer::with_capacity(256);
    match message {
        Message::Route(route) => {
            head(&mut w, 1, 8);
            w.uint(route.id);
            w.bin(route.target.as_bytes());
            w.uint(route.ttl);
            w.uint(route.hops);
            w.bin(&route.floor.to_bytes());
            w.uint(route.salt);
            body(&mut w, &route.body);
        }
        Message::Ack { id } => number(&mut w, 2, *id),
        Message::Nack { id } => number(&mut w, 3, *id),
        Message::Answer(answer) => {
            head(&mut w, 4, 4);
            w.uint(answer.id);
            w.uint(answer.hops);
            reply(&mut w, &answer.reply);
        }
        Message::Siblings { at, ask, contacts } => {
            head(&mut w, 5, 4);
            coordinate(&mut w, at);
            w.bool(*ask);
            self::contacts(&mut w, contacts);
        }
        Message::Keep { need, at, ready } => {
            head(&mut w, 6, 4);
            w.uint(*need as u8);
            coordinate(&mut w, at);
            w.bool(*ready);
        }
        Message::Leave => head(&mut w, 7, 1),
        Message::Probe { token } => number(&mut w, 8, *token),
        Message::Alive { token } => number(&mut w, 9, *token),
        Message::Replicate { token, records } => {
            head(&mut w, 10, 3);
            w.uint(*token);
            self::records(&mut w, records);
        }
        Message::Kept { token } => number(&mut w, 11, *token),
        Message::Tree(tree) => {
            match &tree.tree.source {
                None => {
                    head(&mut w, 12, 4);
                    w.bin(&tree.tree.topic);
                    w.bool(tree.tree.is_index);
                }
                Some(source) => {
                    head(&mut w, 13, 4);
                    w.bin(&tree.tree.topic);
                    w.bin(source.as_bytes());
                }
            }
            act(&mut w, &tree.act);
        }
    }
    w.into_bytes()
}

fn head(w: &mut Writer, kind: u8, fields: u32) {
    w.array(fields);
    w.uint(kind);
}

fn number(w: &mut Writer, kind: u8, value: u64) {
    head(w, kind, 2);
    w.uint(value);
}

fn coordinate(w: &mut Writer, at: &Coordinate) {
    let [a, b] = at.x.to_be_bytes();
    let [c, d] = at.y.to_be_bytes();
    let [e, f] = at.height.to_be_bytes();
    w.bin(&[a, b, c, d, e, f]);
}

fn contact(w: &mut Writer, contact: &Contact) {
    w.array(2);
    w.bin(contact.id.as_bytes());
    coordinate(w, &contact.at);
}

fn contacts(w: &mut Writer, contacts: &[Contact]) {
    w.array(contacts.len() as u32);
    contacts.iter().for_each(|entry| contact(w, entry));
}

fn records(w: &mut Writer, records: &[Record]) {
    w.array(records.len() as u32);
    records.iter().for_each(|entry| record(w, entry));
}

fn record(w: &mut Writer, record: &Record) {
    w.array(8);
    w.bin(record.key.as_bytes());
    w.uint(record.kind);
    w.bin(record.author.as_bytes());
    w.uint(record.sequence);
    w.uint(micros(record.ttl));
    w.uint(record.lifetime);
    w.bin(&record.value);
    w.bin(&record.signature);
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

fn publish(w: &mut Writer, publish: &Publish) {
    w.array(11);
    w.uint(publish.realm.0);
    w.bin(publish.publisher.as_bytes());
    w.uint(publish.epoch);
    w.uint(publish.first);
    w.uint(publish.count);
    w.uint(publish.ttl);
    w.bool(publish.qos1);
    w.bool(publish.retain);
    w.bool(publish.start);
    w.bin(&publish.topic);
    w.bin(&publish.body);
}

fn body(w: &mut Writer, body: &Body) {
    match body {
        Body::Find { except, early } => {
            head(w, 1, 3);
            match except {
                Some(id) => w.bin(id.as_bytes()),
                None => w.nil(),
            }
            w.bool(*early);
        }
        Body::Connect { from, need } => {
            head(w, 2, 3);
            contact(w, from);
            w.uint(*need as u8);
        }
        Body::Put(stored) => {
            head(w, 3, 2);
            record(w, stored);
        }
        Body::Fetch { kind } => {
            head(w, 4, 2);
            w.uint(*kind);
        }
        Body::Publish(batch) => {
            head(w, 5, 2);
            publish(w, batch);
        }
        Body::Announce { prefix, topic } => {
            head(w, 6, 3);
            w.bin(prefix);
            w.bin(topic);
        }
        Body::Audit { topic } => {
            head(w, 7, 2);
            w.bin(topic);
        }
        Body::Near { to } => {
            head(w, 9, 2);
            w.bin(to.as_bytes());
        }
        Body::Call(call) => {
            head(w, 8, 6);
            w.uint(call.call);
            w.bin(call.caller.as_bytes());
            w.bin(&call.procedure);
            w.uint(micros(call.deadline));
            w.bin(&call.body);
        }
    }
}

fn reply(w: &mut Writer, reply: &Reply) {
    match reply {
        Reply::Closest(list) => {
            head(w, 1, 2);
            contacts(w, list);
        }
        Reply::Welcome(welcome) => {
            head(w, 2, 2);
            contact(w, welcome);
        }
        Reply::Full(list) => {
            head(w, 3, 2);
            contacts(w, list);
        }
        Reply::Stored { copies } => {
            head(w, 4, 2);
            w.uint(*copies);
        }
        Reply::Refused(refusal) => {
            head(w, 5, 2);
            w.uint(*refusal as u8);
        }
        Reply::Records(list) => {
            head(w, 6, 2);
            records(w, list);
        }
        Reply::Accepted { stream, offset, receivers } => {
            head(w, 7, 4);
            w.uint(*stream);
            w.uint(*offset);
            w.uint(*receivers);
        }
        Reply::Reached { stream, offset } => {
            head(w, 8, 3);
            w.uint(*stream);
            w.uint(*offset);
        }
        Reply::Result(result) => {
            head(w, 9, 2);
            w.bin(result);
        }
        Reply::Near(list) => {
            head(w, 11, 2);
            contacts(w, list);
        }
        Reply::Failed(failure) => {
            head(w, 10, 6);
            w.uint(failure.class as u8);
            w.uint(failure.code);
            w.str(cut(&failure.message));
            w.uint(micros(failure.retry_after));
            w.bool(failure.retry_safe);
        }
    }
}

/// A text for people, not longer than allowed.
fn cut(text: &str) -> &str {
    let mut end = text.len().min(REASON_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end = end.saturating_sub(1);
    }
    text.get(..end).unwrap_or_default()
}

fn cursor(w: &mut Writer, at: &Cursor) {
    w.array(2);
    w.uint(at.stream);
    w.uint(at.offset);
}

fn load(w: &mut Writer, load: &Load) {
    match load {
        Load::Batch(batch) => {
            head(w, 1, 2);
            publish(w, batch);
        }
        Load::Topic(topic) => {
            head(w, 2, 2);
            w.bin(topic);
        }
        Load::Head(batch) => {
            head(w, 3, 2);
            publish(w, batch);
        }
    }
}

fn act(w: &mut Writer, act: &TreeAct) {
    match act {
        TreeAct::Join { hops, have, redirected } => {
            head(w, 1, 4);
            w.uint(*hops);
            cursor(w, have);
            w.bool(*redirected);
        }
        TreeAct::Joined { depth, at } => {
            head(w, 2, 3);
            w.uint(*depth);
            cursor(w, at);
        }
        TreeAct::Redirect(list) => {
            head(w, 3, 2);
            contacts(w, list);
        }
        TreeAct::Refuse => head(w, 4, 1),
        TreeAct::Part => head(w, 5, 1),
        TreeAct::Data { at, replay, load: content } => {
            head(w, 6, 4);
            cursor(w, at);
            w.bool(*replay);
            load(w, content);
        }
        TreeAct::Beat { at, depth } => {
            head(w, 7, 3);
            cursor(w, at);
            w.uint(*depth);
        }
        TreeAct::Want { have, until } => {
            head(w, 8, 3);
            cursor(w, have);
            w.uint(*until);
        }
        TreeAct::Hold { at, load: content } => {
            head(w, 9, 3);
            cursor(w, at);
            load(w, content);
        }
        TreeAct::Held { at } => {
            head(w, 10, 2);
            cursor(w, at);
        }
        TreeAct::Prune { source } => {
            head(w, 11, 2);
            w.bin(source.as_bytes());
        }
        TreeAct::Graft { source } => {
            head(w, 12, 2);
            w.bin(source.as_bytes());
        }
    }
}

/// Reads a message.
///
/// # Errors
/// What is wrong with the bytes, and where.
pub fn decode(realm: &RealmId, bytes: &[u8]) -> Result<Message> {
    let mut d = Decoder { r: Reader::new(bytes), realm };
    let (kind, fields) = d.head()?;
    let message = match kind {
        1 => {
            let id = d.r.u64()?;
            let target = Key::from_bytes(d.r.bin_array()?);
            let at = d.r.offset();
            let ttl = d.r.uint()?;
            if ttl > TTL_HOPS {
                return Err(DecodeError::Range(at));
            }
            let hops = d.r.uint()?;
            let floor = Distance::from_bytes(d.r.bin_array()?);
            let salt = d.r.uint()?;
            let body = d.body()?;
            Message::Route(Box::new(Route { id, target, ttl, hops, floor, salt, body }))
        }
        2 => Message::Ack { id: d.r.u64()? },
        3 => Message::Nack { id: d.r.u64()? },
        4 => {
            let (id, hops) = (d.r.u64()?, d.r.uint()?);
            Message::Answer(Box::new(Answer { id, hops, reply: d.reply()? }))
        }
        5 => {
            let (at, ask) = (d.coordinate()?, d.r.bool()?);
            Message::Siblings { at, ask, contacts: d.contacts()? }
        }
        6 => {
            let (need, at) = (d.need()?, d.coordinate()?);
            Message::Keep { need, at, ready: d.r.bool()? }
        }
        7 => Message::Leave,
        8 => Message::Probe { token: d.r.u64()? },
        9 => Message::Alive { token: d.r.u64()? },
        10 => {
            let token = d.r.u64()?;
            Message::Replicate { token, records: d.records()? }
        }
        11 => Message::Kept { token: d.r.u64()? },
        12 => {
            let topic = d.bytes(TOPIC_BYTES_MAX)?;
            let tree = TreeId { topic, is_index: d.r.bool()?, source: None };
            Message::Tree(Box::new(TreeMessage { tree, act: d.act()? }))
        }
        13 => {
            let topic = d.bytes(TOPIC_BYTES_MAX)?;
            let tree = TreeId { topic, is_index: false, source: Some(d.id()?) };
            Message::Tree(Box::new(TreeMessage { tree, act: d.act()? }))
        }
        _ => return Err(DecodeError::Range(0)),
    };
    d.skip_rest(fields, known_fields(kind))?;
    d.r.end()?;
    Ok(message)
}

/// How many elements, its number included, this version knows of a message.
const fn known_fields(kind: u8) -> u32 {
    match kind {
        1 => 8,
        4..=6 | 12 | 13 => 4,
        7 => 1,
        10 => 3,
        _ => 2,
    }
}

struct Decoder<'a> {
    r: Reader<'a>,
    realm: &'a RealmId,
}

impl Decoder<'_> {
    /// The number that an array begins with, and how many elements it has.
    fn head(&mut self) -> Result<(u8, u32)> {
        let at = self.r.offset();
        let fields = self.r.array()?;
        if fields == 0 {
            return Err(DecodeError::Missing(at));
        }
        Ok((self.r.uint()?, fields))
    }

    /// Skips elements beyond those that are known. Fewer than those are an error.
    fn skip_rest(&mut self, fields: u32, known: u32) -> Result<()> {
        let Some(unknown) = fields.checked_sub(known) else {
            return Err(DecodeError::Missing(self.r.offset()));
        };
        // each takes a byte at least: no more turns than bytes
        for _ in 0..unknown {
            self.r.skip()?;
        }
        Ok(())
    }

    fn list<T>(&mut self, max: usize, read: fn(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        let at = self.r.offset();
        let count = self.r.array()? as usize;
        if count > max {
            return Err(DecodeError::TooLong(at));
        }
        // grows with what really comes
        let mut list = Vec::new();
        for _ in 0..count {
            list.push(read(self)?);
        }
        Ok(list)
    }

    fn bytes(&mut self, max: usize) -> Result<Bytes> {
        Ok(Bytes::copy_from_slice(self.r.bin(max)?))
    }

    fn id(&mut self) -> Result<EndpointId> {
        Ok(EndpointId::from_bytes(self.r.bin_array()?))
    }

    fn coordinate(&mut self) -> Result<Coordinate> {
        let [a, b, c, d, e, f] = self.r.bin_array()?;
        Ok(Coordinate {
            x: i16::from_be_bytes([a, b]),
            y: i16::from_be_bytes([c, d]),
            height: u16::from_be_bytes([e, f]),
        })
    }

    fn need(&mut self) -> Result<Need> {
        let at = self.r.offset();
        match self.r.u64()? {
            0 => Ok(Need::None),
            1 => Ok(Need::Bucket),
            2 => Ok(Need::Traffic),
            3 => Ok(Need::Sole),
            4 => Ok(Need::Sibling),
            _ => Err(DecodeError::Range(at)),
        }
    }

    fn contact(&mut self) -> Result<Contact> {
        let fields = self.r.array()?;
        let (id, at) = (self.id()?, self.coordinate()?);
        self.skip_rest(fields, 2)?;
        Ok(Contact::new(self.realm, id, at))
    }

    fn contacts(&mut self) -> Result<Vec<Contact>> {
        self.list(CONTACTS_PER_MESSAGE_MAX, Self::contact)
    }

    fn records(&mut self) -> Result<Vec<Record>> {
        self.list(RECORDS_PER_MESSAGE_MAX, Self::record)
    }

    fn record(&mut self) -> Result<Record> {
        let fields = self.r.array()?;
        let record = Record {
            key: Key::from_bytes(self.r.bin_array()?),
            kind: self.r.uint()?,
            author: self.id()?,
            sequence: self.r.u64()?,
            ttl: Duration::from_micros(self.r.u64()?),
            lifetime: self.r.uint()?,
            value: self.bytes(RECORD_VALUE_BYTES_MAX)?,
            signature: self.r.bin_array()?,
        };
        self.skip_rest(fields, 8)?;
        Ok(record)
    }

    fn publish(&mut self) -> Result<Publish> {
        self.batch(false)
    }

    /// A batch, or its head: what stands before its body.
    fn batch(&mut self, is_head: bool) -> Result<Publish> {
        let fields = self.r.array()?;
        let realm = RealmTag(self.r.u64()?);
        let (publisher, epoch) = (self.id()?, self.r.u64()?);
        let at = self.r.offset();
        let (first, count): (u64, u32) = (self.r.u64()?, self.r.uint()?);
        let is_long = count == 0 || count as usize > BATCH_MESSAGES_MAX;
        if is_long || first == 0 || first.checked_add(count.into()).is_none() {
            return Err(DecodeError::Range(at));
        }
        let at = self.r.offset();
        let ttl = self.r.uint()?;
        if ttl > TTL_HOPS {
            return Err(DecodeError::Range(at));
        }
        let (qos1, retain, start) = (self.r.bool()?, self.r.bool()?, self.r.bool()?);
        let topic = self.bytes(TOPIC_BYTES_MAX)?;
        let at = self.r.offset();
        let body = self.bytes(LANE_FRAME_BYTES_MAX)?;
        if is_head && !body.is_empty() {
            return Err(DecodeError::Range(at));
        }
        if count > 1 && !is_head {
            crate::wire::batch::validate(count, &body).map_err(|_| DecodeError::Range(at))?;
        }
        self.skip_rest(fields, 11)?;
        Ok(Publish { realm, publisher, epoch, first, count, ttl, qos1, retain, start, topic, body })
    }

    fn body(&mut self) -> Result<Body> {
        let at = self.r.offset();
        let (kind, fields) = self.head()?;
        let (body, known) = match kind {
            1 => {
                let except = if self.r.nil() { None } else { Some(self.id()?) };
                (Body::Find { except, early: self.r.bool()? }, 3)
            }
            2 => {
                let from = self.contact()?;
                (Body::Connect { from, need: self.need()? }, 3)
            }
            3 => (Body::Put(self.record()?), 2),
            4 => (Body::Fetch { kind: self.r.uint()? }, 2),
            5 => (Body::Publish(self.publish()?), 2),
            6 => {
                let prefix = self.bytes(TOPIC_BYTES_MAX)?;
                (Body::Announce { prefix, topic: self.bytes(TOPIC_BYTES_MAX)? }, 3)
            }
            7 => (Body::Audit { topic: self.bytes(TOPIC_BYTES_MAX)? }, 2),
            8 => {
                let call = RoutedCall {
                    call: self.r.u64()?,
                    caller: self.id()?,
                    procedure: self.bytes(TOPIC_BYTES_MAX)?,
                    deadline: Duration::from_micros(self.r.u64()?),
                    body: self.bytes(ROUTED_BYTES_MAX)?,
                };
                (Body::Call(call), 6)
            }
            9 => (Body::Near { to: Key::from_bytes(self.r.bin_array()?) }, 2),
            _ => return Err(DecodeError::Range(at)),
        };
        self.skip_rest(fields, known)?;
        Ok(body)
    }

    fn reply(&mut self) -> Result<Reply> {
        let at = self.r.offset();
        let (kind, fields) = self.head()?;
        let (reply, known) = match kind {
            1 => (Reply::Closest(self.contacts()?), 2),
            2 => (Reply::Welcome(self.contact()?), 2),
            3 => (Reply::Full(self.contacts()?), 2),
            4 => (Reply::Stored { copies: self.r.uint()? }, 2),
            5 => (Reply::Refused(self.refusal()?), 2),
            6 => (Reply::Records(self.records()?), 2),
            7 => {
                let (stream, offset) = (self.r.u64()?, self.r.u64()?);
                (Reply::Accepted { stream, offset, receivers: self.r.uint()? }, 4)
            }
            8 => (Reply::Reached { stream: self.r.u64()?, offset: self.r.u64()? }, 3),
            9 => (Reply::Result(self.bytes(ROUTED_BYTES_MAX)?), 2),
            10 => (Reply::Failed(self.failure()?), 6),
            11 => (Reply::Near(self.contacts()?), 2),
            _ => return Err(DecodeError::Range(at)),
        };
        self.skip_rest(fields, known)?;
        Ok(reply)
    }

    fn refusal(&mut self) -> Result<StoreRefusal> {
        let at = self.r.offset();
        Ok(match self.r.u64()? {
            1 => StoreRefusal::Signature,
            2 => StoreRefusal::TooLarge,
            3 => StoreRefusal::Lifetime,
            4 => StoreRefusal::Stale,
            5 => StoreRefusal::AuthorFull,
            6 => StoreRefusal::KeyFull,
            7 => StoreRefusal::RealmFull,
            8 => StoreRefusal::WrongKey,
            9 => StoreRefusal::Busy,
            _ => return Err(DecodeError::Range(at)),
        })
    }

    fn failure(&mut self) -> Result<CallFailure> {
        let class = match self.r.u64()? {
            1 => ErrorClass::NoProvider,
            2 => ErrorClass::Unreachable,
            3 => ErrorClass::Deadline,
            4 => ErrorClass::Cancelled,
            5 => ErrorClass::Refused,
            6 => ErrorClass::Busy,
            7 => ErrorClass::Internal,
            8 => ErrorClass::Denied,
            _ => ErrorClass::Unknown,
        };
        Ok(CallFailure {
            class,
            code: self.r.uint()?,
            message: self.r.str(REASON_BYTES_MAX)?.to_owned(),
            retry_after: Duration::from_micros(self.r.u64()?),
            retry_safe: self.r.bool()?,
        })
    }

    fn cursor(&mut self) -> Result<Cursor> {
        let fields = self.r.array()?;
        let cursor = Cursor { stream: self.r.u64()?, offset: self.r.u64()? };
        self.skip_rest(fields, 2)?;
        Ok(cursor)
    }

    fn load(&mut self) -> Result<Load> {
        let at = self.r.offset();
        let (kind, fields) = self.head()?;
        let load = match kind {
            1 => Load::Batch(self.publish()?),
            2 => Load::Topic(self.bytes(TOPIC_BYTES_MAX)?),
            3 => Load::Head(self.batch(true)?),
            _ => return Err(DecodeError::Range(at)),
        };
        self.skip_rest(fields, 2)?;
        Ok(load)
    }

    fn act(&mut self) -> Result<TreeAct> {
        let at = self.r.offset();
        let (kind, fields) = self.head()?;
        let (act, known) = match kind {
            1 => {
                let (hops, have) = (self.r.uint()?, self.cursor()?);
                (TreeAct::Join { hops, have, redirected: self.r.bool()? }, 4)
            }
            2 => (TreeAct::Joined { depth: self.r.uint()?, at: self.cursor()? }, 3),
            3 => (TreeAct::Redirect(self.contacts()?), 2),
            4 => (TreeAct::Refuse, 1),
            5 => (TreeAct::Part, 1),
            6 => {
                let (at, replay) = (self.cursor()?, self.r.bool()?);
                (TreeAct::Data { at, replay, load: self.load()? }, 4)
            }
            7 => (TreeAct::Beat { at: self.cursor()?, depth: self.r.uint()? }, 3),
            8 => (TreeAct::Want { have: self.cursor()?, until: self.r.u64()? }, 3),
            9 => (TreeAct::Hold { at: self.cursor()?, load: self.load()? }, 3),
            10 => (TreeAct::Held { at: self.cursor()? }, 2),
            11 => (TreeAct::Prune { source: self.id()? }, 2),
            12 => (TreeAct::Graft { source: self.id()? }, 2),
            _ => return Err(DecodeError::Range(at)),
        };
        self.skip_rest(fields, known)?;
        Ok(act)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn realm() -> RealmId {
        RealmId::of_name("r")
    }

    fn contact(byte: u8) -> Contact {
        let at = Coordinate { x: -5, y: 300, height: byte.into() };
        Contact::new(&realm(), EndpointId::from_bytes([byte; 32]), at)
    }

    fn batch(count: u32, body: &[u8]) -> Publish {
        Publish {
            realm: realm().tag(),
            publisher: EndpointId::from_bytes([3; 32]),
            epoch: u64::MAX,
            first: 7,
            count,
            ttl: 20,
            qos1: true,
            retain: false,
            start: true,
            topic: Bytes::from_static(b"a.b"),
            body: Bytes::copy_from_slice(body),
        }
    }

    fn record() -> Record {
        Record {
            key: Key::from_bytes([9; 20]),
            kind: 1,
            author: EndpointId::from_bytes([8; 32]),
            sequence: 1 << 40,
            ttl: Duration::from_micros(123_456_789),
            lifetime: 300,
            value: Bytes::from_static(b"value"),
            signature: [5; 64],
        }
    }

    /// One of everything.
    fn messages() -> Vec<Message> {
        let at = Cursor { stream: u64::MAX, offset: 3 };
        let topic = || Bytes::from_static(b"a.b");
        let failure = CallFailure {
            class: ErrorClass::Busy,
            code: 4,
            message: "später".to_owned(),
            retry_after: Duration::from_millis(200),
            retry_safe: true,
        };
        let call = RoutedCall {
            call: 77,
            caller: EndpointId::from_bytes([1; 32]),
            procedure: Bytes::from_static(b"p.q"),
            deadline: Duration::from_secs(3),
            body: Bytes::from_static(b"argument"),
        };
        let bodies = vec![
            Body::Find { except: Some(EndpointId::from_bytes([2; 32])), early: true },
            Body::Find { except: None, early: false },
            Body::Connect { from: contact(1), need: Need::Sole },
            Body::Put(record()),
            Body::Fetch { kind: 3 },
            Body::Publish(batch(1, b"payload")),
            Body::Announce { prefix: Bytes::new(), topic: topic() },
            Body::Audit { topic: topic() },
            Body::Near { to: contact(6).key },
            Body::Call(call),
        ];
        let replies = vec![
            Reply::Closest(vec![contact(1), contact(2)]),
            Reply::Near(vec![contact(8)]),
            Reply::Welcome(contact(3)),
            Reply::Full(vec![]),
            Reply::Stored { copies: 9 },
            Reply::Refused(StoreRefusal::Busy),
            Reply::Records(vec![record(), record()]),
            Reply::Accepted { stream: 1, offset: 2, receivers: 3 },
            Reply::Reached { stream: 1, offset: 0 },
            Reply::Result(Bytes::from_static(b"result")),
            Reply::Failed(failure),
        ];
        let acts = vec![
            TreeAct::Join { hops: 3, have: Cursor::default(), redirected: true },
            TreeAct::Joined { depth: 2, at },
            TreeAct::Redirect(vec![contact(4)]),
            TreeAct::Refuse,
            TreeAct::Part,
            TreeAct::Data { at, replay: true, load: Load::Batch(batch(1, b"x")) },
            TreeAct::Beat { at, depth: 1 },
            TreeAct::Want { have: at, until: 9 },
            TreeAct::Hold { at, load: Load::Topic(topic()) },
            TreeAct::Held { at },
            TreeAct::Data { at, replay: false, load: Load::Head(batch(2, b"")) },
            TreeAct::Prune { source: contact(4).id },
            TreeAct::Graft { source: contact(5).id },
        ];
        let mut all = vec![
            Message::Ack { id: 1 },
            Message::Nack { id: u64::MAX },
            Message::Siblings { at: contact(1).at, ask: true, contacts: vec![contact(5)] },
            Message::Keep { need: Need::Sibling, at: contact(2).at, ready: true },
            Message::Leave,
            Message::Probe { token: 5 },
            Message::Alive { token: 5 },
            Message::Replicate { token: 0, records: vec![record()] },
            Message::Kept { token: 8 },
        ];
        all.extend(bodies.into_iter().map(|body| {
            let (target, floor) = (Key::from_bytes([6; 20]), Distance::MAX);
            Message::Route(Box::new(Route {
                id: 4,
                target,
                ttl: 20,
                hops: 1,
                floor,
                salt: 7,
                body,
            }))
        }));
        all.extend(
            replies
                .into_iter()
                .map(|reply| Message::Answer(Box::new(Answer { id: 4, hops: 3, reply }))),
        );
        all.extend(acts.into_iter().flat_map(|act| {
            let shared = TreeId::of(topic());
            let trees = [TreeId { source: Some(contact(7).id), ..shared.clone() }, shared];
            trees.map(|tree| Message::Tree(Box::new(TreeMessage { tree, act: act.clone() })))
        }));
        all
    }

    #[test]
    fn every_message_comes_back_as_it_was() {
        for message in messages() {
            assert_eq!(decode(&realm(), &encode(&message)), Ok(message));
        }
    }

    #[test]
    fn what_a_later_version_adds_at_the_end_is_skipped() {
        for message in messages() {
            let mut bytes = encode(&message);
            bytes[0] += 1;
            bytes.push(0x2a);
            assert_eq!(decode(&realm(), &bytes), Ok(message));
        }
    }

    #[test]
    fn golden_bytes_do_not_change() {
        let bytes = encode(&Message::Keep {
            need: Need::Sole,
            at: Coordinate { x: -1, y: 2, height: 3 },
            ready: true,
        });
        assert_eq!(bytes, [0x94, 6, 3, 0xc4, 6, 0xff, 0xff, 0, 2, 0, 3, 0xc3]);
        assert_eq!(encode(&Message::Ack { id: 0x1234 }), [0x92, 2, 0xcd, 0x12, 0x34]);
        let find = Body::Find { except: None, early: true };
        let (target, floor) = (Key::from_bytes([1; 20]), Distance::ZERO);
        let route = Route { id: 1, target, ttl: 20, hops: 0, floor, salt: 0, body: find };
        let mut expected = vec![0x98, 1, 1, 0xc4, 20];
        expected.extend([1; 20]);
        expected.extend([20, 0, 0xc4, 20]);
        expected.extend([0; 20]);
        expected.extend([0, 0x93, 1, 0xc0, 0xc3]);
        assert_eq!(encode(&Message::Route(Box::new(route))), expected);
        let source = EndpointId::from_bytes([2; 32]);
        let topic = Bytes::from_static(b"a");
        let tree = TreeId { source: Some(source), ..TreeId::of(topic.clone()) };
        let mut expected = vec![0x94, 13, 0xc4, 1, b'a', 0xc4, 32];
        expected.extend([2; 32]);
        expected.extend([0x91, 5]);
        let part = TreeMessage { tree, act: TreeAct::Part };
        assert_eq!(encode(&Message::Tree(Box::new(part))), expected);
        let mut expected = vec![0x94, 12, 0xc4, 1, b'a', 0xc2, 0x92, 11, 0xc4, 32];
        expected.extend([2; 32]);
        let prune = TreeMessage { tree: TreeId::of(topic), act: TreeAct::Prune { source } };
        assert_eq!(encode(&Message::Tree(Box::new(prune))), expected);
    }

    #[test]
    fn a_head_has_no_body() {
        let message = |body: &[u8]| {
            let at = Cursor { stream: 1, offset: 2 };
            let act = TreeAct::Data { at, replay: false, load: Load::Head(batch(1, body)) };
            let tree = TreeId::of(Bytes::from_static(b"a.b"));
            encode(&Message::Tree(Box::new(TreeMessage { tree, act })))
        };
        assert!(decode(&realm(), &message(b"")).is_ok());
        assert!(matches!(decode(&realm(), &message(b"x")), Err(DecodeError::Range(_))));
    }

    #[test]
    fn a_contact_cannot_claim_a_place() {
        let mut claimed = contact(1);
        claimed.key = Key::from_bytes([0; 20]);
        let bytes = encode(&Message::Answer(Box::new(Answer {
            id: 1,
            hops: 0,
            reply: Reply::Welcome(claimed),
        })));
        let Ok(Message::Answer(answer)) = decode(&realm(), &bytes) else { panic!("an answer") };
        assert_eq!(answer.reply, Reply::Welcome(contact(1)));
    }

    #[test]
    fn lists_beyond_their_limits_are_refused() {
        let contacts = vec![contact(1); CONTACTS_PER_MESSAGE_MAX + 1];
        let siblings = Message::Siblings { at: contact(1).at, ask: false, contacts };
        assert!(matches!(decode(&realm(), &encode(&siblings)), Err(DecodeError::TooLong(_))));
        let records = vec![record(); RECORDS_PER_MESSAGE_MAX + 1];
        let replicate = Message::Replicate { token: 1, records };
        assert!(matches!(decode(&realm(), &encode(&replicate)), Err(DecodeError::TooLong(_))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(message) = decode(&realm(), &bytes) {
                prop_assert_eq!(decode(&realm(), &encode(&message)), Ok(message));
            }
        }

        #[test]
        fn damaged_messages_are_survived(
            which in 0usize..1000, place in any::<prop::sample::Index>(), byte: u8, cut: bool,
        ) {
            let all = messages();
            let mut bytes = encode(&all[which % all.len()]);
            let place = place.index(bytes.len());
            if cut { bytes.truncate(place) } else { bytes[place] = byte }
            if let Ok(message) = decode(&realm(), &bytes) {
                prop_assert_eq!(decode(&realm(), &encode(&message)), Ok(message));
            }
        }
    }
}
