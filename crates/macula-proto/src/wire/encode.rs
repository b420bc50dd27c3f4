//! From messages to frames. Spec: docs/protocol §4.

use std::time::Duration;

use bytes::Bytes;

use super::codec::Writer;
use super::frame::{self, Frame, HEADER_BYTES};
use super::kind;
use super::message::{
    Call, CallFailure, Hello, Message, Publish, PublishAck, RealmOffer, RealmStatus, RefusalCode,
    Register, Subscribe,
};
use crate::id::EndpointId;
use crate::limits;

/// Bytes that say how long the head of a hot message is.
const HEAD_LEN_BYTES: usize = 2;
/// What header and head of a call take beside its texts, at most.
const CALL_FIXED_BYTES_MAX: usize = 116;
/// The fixed part of a publish head, in front of the topic.
const PUBLISH_FIXED_BYTES: usize = 63;

/// Makes the frame of a message. Its body shares memory with the message's.
///
/// Texts for people (reasons, agent, observed address) are cut to their limits, a `traceparent`
/// over its limit is left out. All other sizes are the caller's business: a frame that breaks a
/// limit is well-formed, but its receiver refuses it.
///
/// # Panics
/// In debug builds when a topic is longer than [`limits::TOPIC_BYTES_MAX`] or a payload does not
/// fit the frame header.
pub fn encode(message: &Message) -> Frame {
    let kind = message.kind();
    match message {
        Message::Publish(publish) => self::publish(kind, &[], publish),
        Message::Retained { subscription, publish } => {
            self::publish(kind, &subscription.to_be_bytes(), publish)
        }
        Message::BulkPublish { id, publish } => self::publish(kind, &id.to_be_bytes(), publish),

        Message::Call(call) => encode_call(call, call.call, call.deadline),
        Message::Reply { call, body } | Message::Item { call, body } => {
            hot(kind, 1, 16, body, |w| w.uint(*call))
        }
        Message::CallError { call, failure } => {
            let capacity = 48_usize.saturating_add(failure.message.len());
            hot(kind, 6, capacity, &Bytes::new(), |w| call_error(w, *call, failure))
        }
        Message::Cancel { call: id }
        | Message::ItemsEnd { call: id }
        | Message::Sync { id }
        | Message::Pruned { id } => hot(kind, 1, 16, &Bytes::new(), |w| w.uint(*id)),

        Message::Ping { id }
        | Message::Pong { id }
        | Message::BulkAck { id }
        | Message::SyncDone { id } => control(kind, 1, |w| w.uint(*id)),
        Message::Hello(hello) => control(kind, 9, |w| self::hello(w, hello)),
        Message::Realms(realms) => control(kind, 1, |w| self::realms(w, realms)),
        Message::Join(offers) => control(kind, 1, |w| realm_offers(w, offers)),
        Message::Goodbye { code, reason, reconnect_in } => control(kind, 3, |w| {
            w.uint(*code as u16);
            w.str(cut(reason, limits::REASON_BYTES_MAX));
            duration(w, *reconnect_in);
        }),
        Message::Subscribe(subscribe) => control(kind, 6, |w| self::subscribe(w, subscribe)),
        Message::SubscribeResult { realm, subscription: number, refusal }
        | Message::RegisterResult { realm, registration: number, refusal } => {
            control(kind, 3, |w| {
                w.uint(realm.0);
                w.uint(*number);
                self::refusal(w, refusal.as_ref(), limits::REASON_BYTES_MAX);
            })
        }
        Message::Unsubscribe { realm, subscription: number }
        | Message::Unregister { realm, registration: number } => control(kind, 2, |w| {
            w.uint(realm.0);
            w.uint(*number);
        }),
        Message::Dropped { realm, messages } => control(kind, 2, |w| {
            w.uint(realm.0);
            w.uint(*messages);
        }),
        Message::Expect { realm, topic, receivers }
        | Message::Quiet { realm, topic, receivers } => control(kind, 3, |w| {
            w.uint(realm.0);
            w.str(topic);
            w.uint(*receivers);
        }),
        Message::Prune(prune) => control(kind, 7, |w| {
            w.uint(prune.realm.0);
            w.bin(prune.publisher.as_bytes());
            w.uint(prune.epoch);
            w.str(&prune.topic);
            w.uint(prune.id);
            w.uint(prune.from);
            w.uint(prune.taken);
        }),
        Message::Unprune { realm, publisher, epoch, topic } => control(kind, 4, |w| {
            w.uint(realm.0);
            w.bin(publisher.as_bytes());
            w.uint(*epoch);
            w.str(topic);
        }),
        Message::PublishAck(ack) => control(kind, 7, |w| publish_ack(w, ack)),
        Message::PublishRefused { realm, topic, first, count, code, reason } => {
            control(kind, 6, |w| {
                w.uint(realm.0);
                w.str(topic);
                w.uint(*first);
                w.uint(*count);
                w.uint(*code as u16);
                w.str(cut(reason, limits::REASON_BYTES_MAX));
            })
        }
        Message::DeliverAck { lane, frames } => control(kind, 2, |w| {
            w.uint(*lane);
            w.uint(*frames);
        }),
        Message::Register(register) => control(kind, 4, |w| self::register(w, register)),
        Message::Unknown { .. } => Frame {
            head: Bytes::copy_from_slice(&frame::encode_header(kind, 0)),
            body: Bytes::new(),
        },
    }
}

/// Makes the frame of a call with another number and the time that remains now.
pub(crate) fn encode_call(call: &Call, number: u64, remaining: Duration) -> Frame {
    let capacity = CALL_FIXED_BYTES_MAX
        .saturating_add(call.procedure.len())
        .saturating_add(call.traceparent.len());
    hot(kind::CALL, 10, capacity, &call.body, |w| {
        w.uint(number);
        w.uint(call.realm.0);
        w.str(&call.procedure);
        duration(w, remaining);
        w.uint(call.policy as u8);
        w.bool(call.idempotent);
        w.bool(call.streaming);
        endpoint(w, call.target.as_ref());
        endpoint(w, call.caller.as_ref());
        let fits = call.traceparent.len() <= limits::TRACEPARENT_BYTES_MAX;
        w.bin(if fits { &call.traceparent } else { &[] });
    })
}

/// A control message: the whole payload is one array.
fn control(kind: u8, fields: u32, write: impl FnOnce(&mut Writer)) -> Frame {
    let mut writer = Writer::with_capacity(64);
    writer.raw(&[0; HEADER_BYTES]);
    writer.array(fields);
    write(&mut writer);
    let payload_bytes = writer.len().saturating_sub(HEADER_BYTES);
    writer.overwrite(0, &frame::encode_header(kind, payload_bytes));
    Frame { head: writer.into_bytes().into(), body: Bytes::new() }
}

/// A hot message whose head is an array: head length, head, body.
fn hot(
    kind: u8,
    fields: u32,
    capacity: usize,
    body: &Bytes,
    write: impl FnOnce(&mut Writer),
) -> Frame {
    let mut writer = Writer::with_capacity(capacity);
    writer.raw(&[0; HEADER_BYTES]);
    writer.raw(&[0; HEAD_LEN_BYTES]);
    writer.array(fields);
    write(&mut writer);
    let payload_bytes = writer.len().saturating_sub(HEADER_BYTES);
    let head_len = u16::try_from(payload_bytes.saturating_sub(HEAD_LEN_BYTES));
    debug_assert!(head_len.is_ok(), "every field of a head is bounded");
    let header = frame::encode_header(kind, payload_bytes.saturating_add(body.len()));
    writer.overwrite(0, &header);
    writer.overwrite(HEADER_BYTES, &head_len.unwrap_or(u16::MAX).to_be_bytes());
    Frame { head: writer.into_bytes().into(), body: body.clone() }
}

/// Publishes have a head of fixed layout. The one allocation here has exactly the right size, so
/// that the vector becomes `Bytes` as it is.
fn publish(kind: u8, prefix: &[u8], publish: &Publish) -> Frame {
    debug_assert!(publish.topic.len() <= limits::TOPIC_BYTES_MAX, "topics are checked names");
    let topic_len = u8::try_from(publish.topic.len()).unwrap_or(u8::MAX);
    let topic = publish.topic.get(..usize::from(topic_len)).unwrap_or_default();

    let head_bytes =
        prefix.len().saturating_add(PUBLISH_FIXED_BYTES).saturating_add(usize::from(topic_len));
    let payload_bytes =
        HEAD_LEN_BYTES.saturating_add(head_bytes).saturating_add(publish.body.len());
    let flags =
        u8::from(publish.qos1) | (u8::from(publish.retain) << 1) | (u8::from(publish.start) << 2);

    let mut writer = Writer::with_capacity(
        HEADER_BYTES.saturating_add(HEAD_LEN_BYTES).saturating_add(head_bytes),
    );
    writer.raw(&frame::encode_header(kind, payload_bytes));
    writer.raw(&(head_bytes as u16).to_be_bytes());
    writer.raw(prefix);
    writer.raw(&publish.realm.0.to_be_bytes());
    writer.raw(publish.publisher.as_bytes());
    writer.raw(&publish.epoch.to_be_bytes());
    writer.raw(&publish.first.to_be_bytes());
    writer.raw(&publish.count.to_be_bytes());
    writer.raw(&[publish.ttl, flags, topic_len]);
    writer.raw(topic);
    Frame { head: writer.into_bytes().into(), body: publish.body.clone() }
}

fn call_error(w: &mut Writer, call: u64, failure: &CallFailure) {
    w.uint(call);
    w.uint(failure.class as u8);
    w.uint(failure.code);
    w.str(cut(&failure.message, limits::REASON_BYTES_MAX));
    duration(w, failure.retry_after);
    w.bool(failure.retry_safe);
}

fn hello(w: &mut Writer, hello: &Hello) {
    w.uint(hello.version_min);
    w.uint(hello.version_max);
    w.uint(hello.capabilities);
    w.bool(hello.is_router);
    w.uint(hello.instance);
    w.uint(hello.resumes);
    w.str(cut(&hello.observed, limits::OBSERVED_BYTES_MAX));
    w.str(cut(&hello.agent, limits::AGENT_BYTES_MAX));
    realm_offers(w, &hello.realms);
}

fn realm_offers(w: &mut Writer, offers: &[RealmOffer]) {
    w.array(list_len(offers.len()));
    for offer in offers {
        w.array(2);
        w.bin(offer.realm.as_bytes());
        w.bin(&offer.grant);
    }
}

fn realms(w: &mut Writer, realms: &[RealmStatus]) {
    // Many refusals share one frame, so that each gets its part of it.
    let reason_bytes_max = (limits::CONTROL_FRAME_BYTES_MAX >> 1)
        .checked_div(realms.len())
        .unwrap_or_default()
        .min(limits::REASON_BYTES_MAX);
    w.array(list_len(realms.len()));
    for status in realms {
        w.array(2);
        w.bin(status.realm.as_bytes());
        refusal(w, status.refusal.as_ref(), reason_bytes_max);
    }
}

fn subscribe(w: &mut Writer, subscribe: &Subscribe) {
    w.uint(subscribe.realm.0);
    w.uint(subscribe.subscription);
    w.str(&subscribe.pattern);
    w.uint(subscribe.policy as u8);
    w.bool(subscribe.resume);
    w.bool(subscribe.retained);
}

fn publish_ack(w: &mut Writer, ack: &PublishAck) {
    w.uint(ack.realm.0);
    w.str(&ack.topic);
    w.uint(ack.epoch);
    w.uint(ack.accepted);
    w.uint(ack.delivered);
    w.uint(ack.receivers);
    w.bool(ack.is_complete);
}

fn register(w: &mut Writer, register: &Register) {
    w.uint(register.realm.0);
    w.uint(register.registration);
    w.str(&register.procedure);
    w.uint(register.concurrency);
}

fn refusal(w: &mut Writer, refusal: Option<&(RefusalCode, String)>, reason_bytes_max: usize) {
    let Some((code, reason)) = refusal else { return w.nil() };
    w.array(2);
    w.uint(*code as u16);
    w.str(cut(reason, reason_bytes_max));
}

fn endpoint(w: &mut Writer, endpoint: Option<&EndpointId>) {
    match endpoint {
        Some(endpoint) => w.bin(endpoint.as_bytes()),
        None => w.nil(),
    }
}

/// Microseconds; what does not fit is as good as for ever.
fn duration(w: &mut Writer, duration: Duration) {
    w.uint(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX));
}

fn list_len(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// The longest beginning of `text` that has at most `bytes_max` bytes and ends between characters.
fn cut(text: &str, bytes_max: usize) -> &str {
    text.get(..text.floor_char_boundary(bytes_max)).unwrap_or_default()
}
