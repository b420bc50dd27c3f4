//! From frames to messages. Spec: docs/protocol §4.

use std::time::Duration;

use bytes::{Buf, Bytes};

use super::codec::{DecodeError, Reader};
use super::frame::{Channel, RawFrame};
use super::kind;
use super::message::{
    Call, CallFailure, CloseCode, ErrorClass, Hello, Message, ProviderPolicy, Prune, Publish,
    PublishAck, RealmOffer, RealmStatus, RefusalCode, Register, SlowPolicy, Subscribe,
};
use crate::id::{EndpointId, RealmId, RealmTag};
use crate::limits;

type Result<T> = std::result::Result<T, DecodeError>;

/// Reads what a frame means. The message's body, topic and traceparent share the frame's memory.
///
/// Checks everything that can be checked without state: types, sizes, numbers, the channel. It
/// does not look into the body of a batch ([`super::batch::validate`]).
///
/// # Errors
/// The peer broke the protocol; the frame is lost, and so is the trust in this peer.
pub fn decode(frame: RawFrame, channel: Channel) -> Result<Message> {
    let RawFrame { kind, payload } = frame;
    if !kind::allowed(kind, channel) {
        return Err(DecodeError::WrongChannel { kind });
    }
    match kind {
        kind::PUBLISH | kind::RETAINED | kind::BULK_PUBLISH => publish(kind, payload, channel),
        kind::CALL..=kind::ITEMS_END | kind::SYNC | kind::PRUNED => {
            call_frame(kind, payload, channel)
        }
        _ => control(kind, &payload),
    }
}

fn control(kind: u8, payload: &[u8]) -> Result<Message> {
    let Some(read) = control_reader(kind) else { return Ok(Message::Unknown { kind }) };
    let mut reader = Reader::new(payload);
    let mut fields = Fields::open(&mut reader)?;
    let message = read(&mut fields)?;
    fields.end()?;
    reader.end()?;
    Ok(message)
}

type ReadFields = fn(&mut Fields<'_, '_>) -> Result<Message>;

fn control_reader(kind: u8) -> Option<ReadFields> {
    Some(match kind {
        kind::HELLO => |f| hello(f).map(Message::Hello),
        kind::REALMS => |f| Ok(Message::Realms(f.list(limits::REALMS_PER_LINK_MAX, realm_status)?)),
        kind::JOIN => |f| Ok(Message::Join(f.list(limits::REALMS_PER_LINK_MAX, realm_offer)?)),
        kind::GOODBYE => |f| {
            Ok(Message::Goodbye {
                code: close_code(f.field()?.u64()?),
                reason: f.text(limits::REASON_BYTES_MAX)?,
                reconnect_in: f.duration()?,
            })
        },
        kind::PING => |f| Ok(Message::Ping { id: f.field()?.u64()? }),
        kind::PONG => |f| Ok(Message::Pong { id: f.field()?.u64()? }),
        kind::SUBSCRIBE => |f| subscribe(f).map(Message::Subscribe),
        kind::SUBSCRIBE_RESULT => |f| {
            Ok(Message::SubscribeResult {
                realm: f.realm_tag()?,
                subscription: f.field()?.uint()?,
                refusal: f.refusal()?,
            })
        },
        kind::UNSUBSCRIBE => {
            |f| Ok(Message::Unsubscribe { realm: f.realm_tag()?, subscription: f.field()?.uint()? })
        }
        kind::DROPPED => {
            |f| Ok(Message::Dropped { realm: f.realm_tag()?, messages: f.field()?.u64()? })
        }
        kind::PUBLISH_ACK => |f| publish_ack(f).map(Message::PublishAck),
        kind::PUBLISH_REFUSED => |f| {
            Ok(Message::PublishRefused {
                realm: f.realm_tag()?,
                topic: f.name()?,
                first: f.field()?.u64()?,
                count: f.field()?.uint()?,
                code: refusal_code(f.field()?.u64()?),
                reason: f.text(limits::REASON_BYTES_MAX)?,
            })
        },
        kind::DELIVER_ACK => {
            |f| Ok(Message::DeliverAck { lane: f.publish_lane()?, frames: f.field()?.u64()? })
        }
        kind::BULK_ACK => |f| Ok(Message::BulkAck { id: f.field()?.u64()? }),
        kind::SYNC_DONE => |f| Ok(Message::SyncDone { id: f.field()?.u64()? }),
        kind::REGISTER => |f| register(f).map(Message::Register),
        kind::REGISTER_RESULT => |f| {
            Ok(Message::RegisterResult {
                realm: f.realm_tag()?,
                registration: f.field()?.uint()?,
                refusal: f.refusal()?,
            })
        },
        kind::EXPECT => |f| {
            Ok(Message::Expect {
                realm: f.realm_tag()?,
                topic: f.name()?,
                receivers: f.field()?.uint()?,
            })
        },
        kind::PRUNE => |f| {
            Ok(Message::Prune(Prune {
                realm: f.realm_tag()?,
                publisher: EndpointId::from_bytes(f.field()?.bin_array()?),
                epoch: f.field()?.u64()?,
                topic: f.name()?,
                id: f.field()?.u64()?,
                from: f.field()?.u64()?,
                taken: f.field()?.u64()?,
            }))
        },
        kind::QUIET => |f| {
            Ok(Message::Quiet {
                realm: f.realm_tag()?,
                topic: f.name()?,
                receivers: f.field()?.uint()?,
            })
        },
        kind::UNPRUNE => |f| {
            Ok(Message::Unprune {
                realm: f.realm_tag()?,
                publisher: EndpointId::from_bytes(f.field()?.bin_array()?),
                epoch: f.field()?.u64()?,
                topic: f.name()?,
            })
        },
        kind::UNREGISTER => {
            |f| Ok(Message::Unregister { realm: f.realm_tag()?, registration: f.field()?.uint()? })
        }
        _ => return None,
    })
}

fn hello(f: &mut Fields<'_, '_>) -> Result<Hello> {
    Ok(Hello {
        version_min: f.field()?.uint()?,
        version_max: f.field()?.uint()?,
        capabilities: f.field()?.u64()?,
        is_router: f.field()?.bool()?,
        instance: f.field()?.u64()?,
        resumes: f.field()?.u64()?,
        observed: f.text(limits::OBSERVED_BYTES_MAX)?,
        agent: f.text(limits::AGENT_BYTES_MAX)?,
        realms: f.list(limits::REALMS_PER_LINK_MAX, realm_offer)?,
    })
}

fn realm_offer(f: &mut Fields<'_, '_>) -> Result<RealmOffer> {
    Ok(RealmOffer {
        realm: RealmId::from_bytes(f.field()?.bin_array()?),
        // Copied, because grants live as long as the link and should not pin the whole frame.
        grant: Bytes::copy_from_slice(f.field()?.bin(limits::GRANT_BYTES_MAX)?),
    })
}

fn realm_status(f: &mut Fields<'_, '_>) -> Result<RealmStatus> {
    Ok(RealmStatus { realm: RealmId::from_bytes(f.field()?.bin_array()?), refusal: f.refusal()? })
}

fn subscribe(f: &mut Fields<'_, '_>) -> Result<Subscribe> {
    Ok(Subscribe {
        realm: f.realm_tag()?,
        subscription: f.field()?.uint()?,
        pattern: f.name()?,
        policy: f.known(slow_policy)?,
        resume: f.field()?.bool()?,
        retained: f.field()?.bool()?,
    })
}

fn publish_ack(f: &mut Fields<'_, '_>) -> Result<PublishAck> {
    Ok(PublishAck {
        realm: f.realm_tag()?,
        topic: f.name()?,
        epoch: f.field()?.u64()?,
        accepted: f.field()?.u64()?,
        delivered: f.field()?.u64()?,
        receivers: f.field()?.uint()?,
        is_complete: f.field()?.bool()?,
    })
}

fn register(f: &mut Fields<'_, '_>) -> Result<Register> {
    Ok(Register {
        realm: f.realm_tag()?,
        registration: f.field()?.uint()?,
        procedure: f.name()?,
        concurrency: f.field()?.uint()?,
    })
}

/// Frames of calls, `Sync` and `Pruned`: the head is an array, the body is opaque.
fn call_frame(kind: u8, mut payload: Bytes, channel: Channel) -> Result<Message> {
    let shared = payload.clone();
    let (mut reader, body_at) = open_hot(&shared, channel)?;
    payload.advance(body_at);
    let body = payload;

    let mut f = Fields::open(&mut reader)?;
    let message = match kind {
        kind::CALL => Message::Call(Call {
            call: f.field()?.u64()?,
            realm: f.realm_tag()?,
            procedure: f.name()?,
            deadline: f.duration()?,
            policy: f.known(provider_policy)?,
            idempotent: f.field()?.bool()?,
            streaming: f.field()?.bool()?,
            target: f.endpoint()?,
            caller: f.endpoint()?,
            traceparent: shared.slice_ref(f.field()?.bin(limits::TRACEPARENT_BYTES_MAX)?),
            body,
        }),
        kind::REPLY => Message::Reply { call: f.field()?.u64()?, body },
        kind::CALL_ERROR => Message::CallError {
            call: f.field()?.u64()?,
            failure: CallFailure {
                class: error_class(f.field()?.u64()?),
                code: f.field()?.uint()?,
                message: f.text(limits::REASON_BYTES_MAX)?,
                retry_after: f.duration()?,
                retry_safe: f.field()?.bool()?,
            },
        },
        kind::CANCEL => Message::Cancel { call: f.field()?.u64()? },
        kind::ITEM => Message::Item { call: f.field()?.u64()?, body },
        kind::ITEMS_END => Message::ItemsEnd { call: f.field()?.u64()? },
        kind::SYNC => Message::Sync { id: f.field()?.u64()? },
        kind::PRUNED => Message::Pruned { id: f.field()?.u64()? },
        _ => return Ok(Message::Unknown { kind }),
    };
    f.end()?;
    reader.end()?;
    Ok(message)
}

/// Publishes: a head of fixed layout, which may grow at its end, and the body.
fn publish(kind: u8, mut payload: Bytes, channel: Channel) -> Result<Message> {
    let (mut head, body_at) = open_hot(&payload, channel)?;
    let (subscription, id) = match kind {
        kind::RETAINED => (head.be_u32()?, 0),
        kind::BULK_PUBLISH => (0, head.be_u64()?),
        _ => (0, 0),
    };
    let realm = RealmTag(head.be_u64()?);
    let publisher = EndpointId::from_bytes(head.take_array()?);
    let epoch = head.be_u64()?;

    let first_at = head.offset();
    let first = head.be_u64()?;
    let count_at = head.offset();
    let count = head.be_u32()?;
    let count_max = if kind == kind::PUBLISH { BATCH_MESSAGES_MAX } else { 1 };
    if count == 0 || count > count_max {
        return Err(DecodeError::Range(count_at));
    }
    if first == 0 || first.checked_add(u64::from(count)).is_none() {
        return Err(DecodeError::Range(first_at));
    }
    let ttl_at = head.offset();
    let ttl = head.be_u8()?;
    if ttl > limits::TTL_HOPS {
        return Err(DecodeError::Range(ttl_at));
    }
    let flags = head.be_u8()?;

    let topic_at = head.offset();
    let topic_len = head.be_u8()?;
    let topic = head.take(usize::from(topic_len))?;
    if topic.is_empty() {
        return Err(DecodeError::Empty(topic_at));
    }
    if std::str::from_utf8(topic).is_err() {
        return Err(DecodeError::Utf8(topic_at));
    }
    let topic = payload.slice_ref(topic);
    payload.advance(body_at);
    let body = payload;
    // Each message of a batch has at least its length.
    if count > 1 && body.len() < count as usize {
        return Err(DecodeError::Truncated(body_at.saturating_add(body.len())));
    }

    let publish = Publish {
        realm,
        publisher,
        epoch,
        first,
        count,
        ttl,
        qos1: flags & 1 != 0,
        retain: flags & 2 != 0,
        start: flags & 4 != 0,
        topic,
        body,
    };
    Ok(match kind {
        kind::RETAINED => Message::Retained { subscription, publish },
        kind::BULK_PUBLISH => Message::BulkPublish { id, publish },
        _ => Message::Publish(publish),
    })
}

const BATCH_MESSAGES_MAX: u32 = limits::BATCH_MESSAGES_MAX as u32;

/// Finds the head of a hot message, and where its body begins.
///
/// Both have limits of their own, so that whoever forwards the message with a larger head still
/// gets it into a frame.
#[inline]
fn open_hot(payload: &[u8], channel: Channel) -> Result<(Reader<'_>, usize)> {
    let mut whole = Reader::new(payload);
    let head_len = usize::from(whole.be_u16()?);
    let head_at = whole.offset();
    let body_at = head_at.saturating_add(head_len);
    if body_at > limits::FRAME_HEAD_BYTES_MAX {
        return Err(DecodeError::TooLong(0));
    }
    whole.take(head_len)?;
    if whole.rest().len() > body_bytes_max(channel) {
        return Err(DecodeError::TooLong(body_at));
    }
    let mut head = Reader::new(payload.get(..body_at).unwrap_or_default());
    head.take(head_at)?;
    Ok((head, body_at))
}

const fn body_bytes_max(channel: Channel) -> usize {
    match channel {
        Channel::Bulk => limits::MESSAGE_BYTES_MAX,
        Channel::Control | Channel::Lane(_) | Channel::Stream(_) => limits::LANE_MESSAGE_BYTES_MAX,
    }
}

/// The elements of one array that are still to be read.
struct Fields<'r, 'a> {
    reader: &'r mut Reader<'a>,
    left: u32,
}

impl<'r, 'a> Fields<'r, 'a> {
    fn open(reader: &'r mut Reader<'a>) -> Result<Self> {
        let left = reader.array()?;
        Ok(Self { reader, left })
    }

    /// Passes over elements that this version does not know.
    fn end(self) -> Result<()> {
        for _ in 0..self.left {
            self.reader.skip()?;
        }
        Ok(())
    }

    /// The reader, standing before the next element, of which exactly one value must be read.
    fn field(&mut self) -> Result<&mut Reader<'a>> {
        let Some(left) = self.left.checked_sub(1) else {
            return Err(DecodeError::Missing(self.reader.offset()));
        };
        self.left = left;
        Ok(self.reader)
    }

    fn text(&mut self, bytes_max: usize) -> Result<String> {
        self.field()?.str(bytes_max).map(str::to_owned)
    }

    /// A topic, a pattern or a procedure; whether it is well-formed is for others to say.
    fn name(&mut self) -> Result<String> {
        let at = self.reader.offset();
        let name = self.text(limits::TOPIC_BYTES_MAX)?;
        if name.is_empty() { Err(DecodeError::Empty(at)) } else { Ok(name) }
    }

    fn realm_tag(&mut self) -> Result<RealmTag> {
        self.field()?.u64().map(RealmTag)
    }

    fn duration(&mut self) -> Result<Duration> {
        self.field()?.u64().map(Duration::from_micros)
    }

    fn publish_lane(&mut self) -> Result<u8> {
        self.known(|value| {
            u8::try_from(value).ok().filter(|lane| (1..limits::LANE_COUNT).contains(lane))
        })
    }

    /// A number that means something, or the message means nothing.
    fn known<T>(&mut self, meaning: fn(u64) -> Option<T>) -> Result<T> {
        let at = self.reader.offset();
        meaning(self.field()?.u64()?).ok_or(DecodeError::Range(at))
    }

    fn endpoint(&mut self) -> Result<Option<EndpointId>> {
        let reader = self.field()?;
        if reader.nil() {
            Ok(None)
        } else {
            reader.bin_array().map(EndpointId::from_bytes).map(Some)
        }
    }

    fn refusal(&mut self) -> Result<Option<(RefusalCode, String)>> {
        let reader = self.field()?;
        if reader.nil() {
            return Ok(None);
        }
        let mut inner = Fields::open(reader)?;
        let code = refusal_code(inner.field()?.u64()?);
        let reason = inner.text(limits::REASON_BYTES_MAX)?;
        inner.end()?;
        Ok(Some((code, reason)))
    }

    /// A list of at most `count_max` arrays. Grows as elements are really read.
    fn list<T>(
        &mut self,
        count_max: usize,
        read: fn(&mut Fields<'_, '_>) -> Result<T>,
    ) -> Result<Vec<T>> {
        let at = self.reader.offset();
        let reader = self.field()?;
        let count = reader.array()?;
        if count as usize > count_max {
            return Err(DecodeError::TooLong(at));
        }
        let mut list = Vec::new();
        for _ in 0..count {
            let mut inner = Fields::open(reader)?;
            list.push(read(&mut inner)?);
            inner.end()?;
        }
        Ok(list)
    }
}

fn close_code(code: u64) -> CloseCode {
    match code {
        0 => CloseCode::Done,
        1 => CloseCode::Protocol,
        2 => CloseCode::Version,
        3 => CloseCode::Duplicate,
        4 => CloseCode::Unresponsive,
        5 => CloseCode::Restarting,
        6 => CloseCode::Limit,
        7 => CloseCode::SlowConsumer,
        8 => CloseCode::Denied,
        _ => CloseCode::Unknown,
    }
}

fn refusal_code(code: u64) -> RefusalCode {
    match code {
        1 => RefusalCode::UnknownRealm,
        2 => RefusalCode::Denied,
        3 => RefusalCode::BadName,
        4 => RefusalCode::Limit,
        5 => RefusalCode::TooLarge,
        6 => RefusalCode::Draining,
        _ => RefusalCode::Unknown,
    }
}

fn error_class(class: u64) -> ErrorClass {
    match class {
        1 => ErrorClass::NoProvider,
        2 => ErrorClass::Unreachable,
        3 => ErrorClass::Deadline,
        4 => ErrorClass::Cancelled,
        5 => ErrorClass::Refused,
        6 => ErrorClass::Busy,
        7 => ErrorClass::Internal,
        8 => ErrorClass::Denied,
        _ => ErrorClass::Unknown,
    }
}

const fn slow_policy(policy: u64) -> Option<SlowPolicy> {
    match policy {
        0 => Some(SlowPolicy::DropOldest),
        1 => Some(SlowPolicy::Block),
        2 => Some(SlowPolicy::Disconnect),
        _ => None,
    }
}

const fn provider_policy(policy: u64) -> Option<ProviderPolicy> {
    match policy {
        0 => Some(ProviderPolicy::Nearest),
        1 => Some(ProviderPolicy::RoundRobin),
        2 => Some(ProviderPolicy::Random),
        3 => Some(ProviderPolicy::First),
        _ => None,
    }
}
