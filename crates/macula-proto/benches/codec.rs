//! What encoding and decoding cost: `cargo bench -p macula-proto --bench codec`.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use macula_proto::wire::frame::HEADER_BYTES;
use macula_proto::wire::message::{Call, ProviderPolicy, Publish, PublishAck, Subscribe};
use macula_proto::wire::{
    BatchBuilder, BatchIter, Channel, Frame, Message, RawFrame, batch, decode, encode, lane_of,
};
use macula_proto::{EndpointId, RealmTag};

/// Payloads: small readings, and documents.
const PAYLOAD_BYTES: [usize; 2] = [16, 1024];
const TOPIC: &str = "sensors.building-7.floor-2.temperature";

fn main() {
    divan::main();
}

#[divan::bench]
fn lane_of_topic(bencher: Bencher<'_, '_>) {
    bencher.bench(|| lane_of(black_box(TOPIC.as_bytes())));
}

#[divan::bench(args = PAYLOAD_BYTES)]
fn publish_encode(bencher: Bencher<'_, '_>, payload_bytes: usize) {
    let message = publish(1, vec![7; payload_bytes].into());
    bencher.bench(|| encode(black_box(&message)));
}

#[divan::bench(args = PAYLOAD_BYTES)]
fn publish_decode(bencher: Bencher<'_, '_>, payload_bytes: usize) {
    check_decode(bencher, &publish(1, vec![7; payload_bytes].into()), Channel::Lane(1));
}

#[divan::bench]
fn call_encode(bencher: Bencher<'_, '_>) {
    let message = call();
    bencher.bench(|| encode(black_box(&message)));
}

#[divan::bench]
fn call_decode(bencher: Bencher<'_, '_>) {
    check_decode(bencher, &call(), Channel::CALLS);
}

#[divan::bench]
fn reply_encode(bencher: Bencher<'_, '_>) {
    let message = Message::Reply { call: 70_000, body: vec![7; 16].into() };
    bencher.bench(|| encode(black_box(&message)));
}

#[divan::bench]
fn reply_decode(bencher: Bencher<'_, '_>) {
    let message = Message::Reply { call: 70_000, body: vec![7; 16].into() };
    check_decode(bencher, &message, Channel::CALLS);
}

#[divan::bench]
fn publish_ack_encode(bencher: Bencher<'_, '_>) {
    let message = publish_ack();
    bencher.bench(|| encode(black_box(&message)));
}

#[divan::bench]
fn publish_ack_decode(bencher: Bencher<'_, '_>) {
    check_decode(bencher, &publish_ack(), Channel::Control);
}

#[divan::bench]
fn subscribe_decode(bencher: Bencher<'_, '_>) {
    let message = Message::Subscribe(Subscribe {
        realm: RealmTag(u64::MAX),
        subscription: 1,
        pattern: "sensors.*.temperature".to_owned(),
        policy: Default::default(),
        resume: false,
        retained: true,
    });
    check_decode(bencher, &message, Channel::Control);
}

#[divan::bench(args = PAYLOAD_BYTES)]
fn batch_build(bencher: Bencher<'_, '_>, payload_bytes: usize) {
    let payload = vec![7; payload_bytes];
    let (count, _) = full_batch(payload_bytes);
    let mut builder = BatchBuilder::new();
    bencher
        .counter(ItemsCount::new(count))
        .counter(BytesCount::new(count as usize * payload_bytes))
        .bench_local(|| {
            while builder.fits(payload_bytes) {
                builder.push(black_box(&payload));
                if builder.count() == count {
                    break;
                }
            }
            builder.finish()
        });
}

#[divan::bench]
fn batch_of_one_whole_payload(bencher: Bencher<'_, '_>) {
    let payload = Bytes::from(vec![7; 1024]);
    let mut builder = BatchBuilder::new();
    bencher.counter(ItemsCount::new(1u32)).bench_local(|| {
        builder.push_bytes(black_box(&payload).clone());
        builder.finish()
    });
}

#[divan::bench(args = PAYLOAD_BYTES)]
fn batch_iterate(bencher: Bencher<'_, '_>, payload_bytes: usize) {
    let (count, body) = full_batch(payload_bytes);
    bencher
        .counter(ItemsCount::new(count))
        .bench(|| BatchIter::new(count, black_box(&body).clone()).for_each(|p| drop(black_box(p))));
}

#[divan::bench(args = PAYLOAD_BYTES)]
fn batch_validate(bencher: Bencher<'_, '_>, payload_bytes: usize) {
    let (count, body) = full_batch(payload_bytes);
    bencher
        .counter(ItemsCount::new(count))
        .bench(|| batch::validate(black_box(count), black_box(&body)));
}

#[divan::bench(args = PAYLOAD_BYTES)]
fn batch_skip_half(bencher: Bencher<'_, '_>, payload_bytes: usize) {
    let (count, body) = full_batch(payload_bytes);
    bencher
        .counter(ItemsCount::new(count / 2))
        .bench(|| batch::skip(black_box(count), black_box(&body), count / 2));
}

fn full_batch(payload_bytes: usize) -> (u32, Bytes) {
    let mut builder = BatchBuilder::new();
    while builder.fits(payload_bytes) {
        builder.push(&vec![7; payload_bytes]);
    }
    builder.finish()
}

/// Decodes frames that lie in shared memory, as the transport's read buffers do.
fn check_decode(bencher: Bencher<'_, '_>, message: &Message, channel: Channel) {
    let Frame { head, body } = encode(message);
    let mut all = BytesMut::from(head.as_ref());
    all.extend_from_slice(&body);
    let mut payload = all.freeze();
    let kind = payload.split_to(HEADER_BYTES).first().copied().unwrap_or_default();
    bencher
        .with_inputs(|| RawFrame { kind, payload: payload.clone() })
        .bench_values(|frame| decode(black_box(frame), channel));
}

fn publish(count: u32, body: Bytes) -> Message {
    Message::Publish(Publish {
        realm: RealmTag(0x0123_4567_89ab_cdef),
        publisher: EndpointId::from_bytes([7; 32]),
        epoch: 1_790_000_000_000_000,
        first: 123_456,
        count,
        ttl: 20,
        qos1: true,
        retain: false,
        start: false,
        topic: Bytes::from_static(TOPIC.as_bytes()),
        body,
    })
}

fn call() -> Message {
    Message::Call(Call {
        call: 70_000,
        realm: RealmTag(0x0123_4567_89ab_cdef),
        procedure: "heating.boiler.set".to_owned(),
        deadline: Duration::from_secs(5),
        policy: ProviderPolicy::Nearest,
        idempotent: false,
        streaming: false,
        target: None,
        caller: Some(EndpointId::from_bytes([7; 32])),
        traceparent: Bytes::new(),
        body: vec![7; 16].into(),
    })
}

fn publish_ack() -> Message {
    Message::PublishAck(PublishAck {
        realm: RealmTag(0x0123_4567_89ab_cdef),
        topic: TOPIC.to_owned(),
        epoch: 1_790_000_000_000_000,
        accepted: 123_456,
        delivered: 123_400,
        receivers: 3,
        is_complete: true,
    })
}
