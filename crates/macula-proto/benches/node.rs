//! What one step of a router costs: a batch in, its frames out.

use bytes::Bytes;
use divan::Bencher;
use divan::counter::ItemsCount;
use macula_proto::id::LinkId;
use macula_proto::node::{Command, Config, Input, Node, Role};
use macula_proto::wire::message::{Hello, Message, Publish, RealmOffer, SlowPolicy, Subscribe};
use macula_proto::wire::{self, BatchBuilder, Channel, RawFrame};
use macula_proto::{EndpointId, RealmId, Time};

fn main() {
    divan::main();
}

const TOPIC: &str = "bench.topic";

fn raw(message: &Message) -> RawFrame {
    let frame = wire::encode(message);
    let mut all = frame.head.to_vec();
    all.extend_from_slice(&frame.body);
    RawFrame { kind: frame.kind(), payload: Bytes::from(all).slice(4..) }
}

fn realm() -> RealmId {
    RealmId::of_name("bench")
}

fn drain(node: &mut Node) -> Vec<(LinkId, Channel, usize)> {
    let mut sent = Vec::new();
    while let Some(transmit) = node.poll_transmit() {
        sent.push((transmit.link, transmit.channel, transmit.frame.wire_bytes()));
    }
    while node.poll_action().is_some() {}
    while node.poll_event().is_some() {}
    sent
}

/// A router with one publisher (link 1) and some subscribers.
fn router(subscribers: u64) -> Node {
    let now = Time::from_micros(1);
    let mut node =
        Node::new(EndpointId::from_bytes([9; 32]), Config::new(Role::Router, 1), [0; 32]);
    node.handle_input(now, Input::Command(Command::Join { realm: realm(), grant: Bytes::new() }));
    for number in 1..=subscribers + 1 {
        let link = LinkId(number);
        let mut id = [1; 32];
        id[..8].copy_from_slice(&number.to_be_bytes());
        let peer = EndpointId::from_bytes(id);
        let remote = "192.0.2.7:1".parse().expect("an address");
        node.handle_input(now, Input::LinkUp { link, peer, dialled: false, remote });
        let hello = Message::Hello(Hello {
            version_min: 1,
            version_max: 1,
            capabilities: 0,
            is_router: false,
            instance: 7,
            resumes: 0,
            observed: String::new(),
            agent: String::new(),
            realms: vec![RealmOffer { realm: realm(), grant: Bytes::new() }],
        });
        let channel = Channel::Control;
        node.handle_input(now, Input::Frame { link, channel, frame: raw(&hello) });
        if number > 1 {
            let subscribe = Message::Subscribe(Subscribe {
                realm: realm().tag(),
                subscription: 1,
                pattern: TOPIC.to_owned(),
                policy: SlowPolicy::Block,
                resume: false,
                retained: false,
            });
            node.handle_input(now, Input::Frame { link, channel, frame: raw(&subscribe) });
        }
    }
    drain(&mut node);
    node
}

fn batch(first: u64, count: u32, size: usize, qos1: bool) -> RawFrame {
    let mut batch = BatchBuilder::new();
    for _ in 0..count {
        batch.push(&vec![7; size]);
    }
    let (count, body) = batch.finish();
    let mut id = [1; 32];
    id[..8].copy_from_slice(&1u64.to_be_bytes());
    raw(&Message::Publish(Publish {
        realm: realm().tag(),
        publisher: EndpointId::from_bytes(id),
        epoch: 1,
        first,
        count,
        ttl: 20,
        qos1,
        retain: false,
        start: first == 1,
        topic: Bytes::from_static(TOPIC.as_bytes()),
        body,
    }))
}

/// Forwards batches; `args` are subscribers, messages a batch, bytes a message.
#[divan::bench(args = [(1, 1, 16), (1, 1000, 16), (1, 1, 1024), (1, 30, 1024), (100, 1, 1024)])]
fn forward(bencher: Bencher<'_, '_>, (subscribers, count, size): (u64, u32, usize)) {
    step(bencher, subscribers, count, size, false);
}

/// The same with acknowledgements.
#[divan::bench(args = [(1, 1, 16), (1, 30, 1024), (100, 1, 1024)])]
fn forward_qos1(bencher: Bencher<'_, '_>, (subscribers, count, size): (u64, u32, usize)) {
    step(bencher, subscribers, count, size, true);
}

fn step(bencher: Bencher<'_, '_>, subscribers: u64, count: u32, size: usize, qos1: bool) {
    let mut node = router(subscribers);
    let lane = wire::lane_of(TOPIC.as_bytes());
    let channel = Channel::Lane(lane);
    let mut first = 1;
    let mut frames = vec![0u64; subscribers as usize + 2];
    bencher
        .counter(ItemsCount::new(count as usize))
        .with_inputs(|| {
            let frame = batch(first, count, size, qos1);
            first += u64::from(count);
            frame
        })
        .bench_local_values(|frame| {
            let now = Time::from_micros(3);
            node.handle_input(now, Input::Frame { link: LinkId(1), channel, frame });
            for (link, channel, bytes) in drain(&mut node) {
                node.handle_input(now, Input::Sent { link, channel, bytes });
                if qos1 && channel != Channel::Control {
                    frames[link.0 as usize] += 1;
                    let frames = frames[link.0 as usize];
                    let ack = raw(&Message::DeliverAck { lane, frames });
                    node.handle_input(
                        now,
                        Input::Frame { link, channel: Channel::Control, frame: ack },
                    );
                }
            }
            drain(&mut node);
        });
}
