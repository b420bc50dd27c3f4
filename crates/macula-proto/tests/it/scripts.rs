//! Random scripts on a small world, checked against a model of what must arrive.

use std::collections::BTreeMap;
use std::time::Duration;

use macula_proto::id::SubscriptionId;
use macula_proto::node::{Command, Qos, SubscribeOptions};
use proptest::prelude::*;

use crate::world::{Who, World, realm, topic};

#[derive(Clone, Copy, Debug)]
enum Op {
    /// A leaf publishes so many messages.
    Publish { leaf: usize, topic: usize, count: usize },
    /// A leaf publishes one message of so many KiB.
    PublishLarge { leaf: usize, topic: usize, kib: usize },
    /// A leaf reads nothing for some milliseconds.
    Deaf { leaf: usize, millis: u64 },
    /// Time passes, milliseconds.
    Wait(u64),
    /// A leaf's link breaks and comes back after some milliseconds.
    Reconnect { leaf: usize, after: u64 },
    /// The router dies and starts again without memory; leaves return in this order.
    Restart { first: usize },
    /// It does so twice, the second time when so many leaves are back.
    RestartTwice { first: usize, back: usize },
    /// A leaf subscribes once more to something that it gets already, or gives that up again.
    Overlap { leaf: usize },
    /// A leaf subscribes to retained messages beside, or gives that up again.
    Retained { leaf: usize },
    /// Two leaves get a link of their own.
    Peers { a: usize, b: usize },
    /// The link of a leaf to the router takes so many milliseconds.
    Slow { leaf: usize, millis: u64 },
    /// The link between two leaves does.
    SlowPeers { a: usize, b: usize, millis: u64 },
    /// It breaks.
    PeersPart { a: usize, b: usize },
    /// One of them reads nothing that comes over it for some milliseconds.
    DeafPeer { a: usize, b: usize, millis: u64 },
    /// A leaf publishes a message that is retained.
    PublishRetained { leaf: usize, topic: usize, kib: usize },
}

const LEAVES: usize = 4;
const TOPICS: [&str; 3] = ["a.b", "a.c", "d"];
const PATTERNS: [&str; LEAVES] = ["**", "a.*", "a.b", "d"];

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0..LEAVES, 0..TOPICS.len(), 1..40usize)
            .prop_map(|(leaf, topic, count)| Op::Publish { leaf, topic, count }),
        2 => (0..LEAVES, 0..TOPICS.len(), 60..400usize)
            .prop_map(|(leaf, topic, kib)| Op::PublishLarge { leaf, topic, kib }),
        1 => (0..LEAVES, 1..4000u64).prop_map(|(leaf, millis)| Op::Deaf { leaf, millis }),
        4 => (1..30u64).prop_map(Op::Wait),
        2 => (0..LEAVES, 0..400u64).prop_map(|(leaf, after)| Op::Reconnect { leaf, after }),
        1 => (0..LEAVES).prop_map(|first| Op::Restart { first }),
        1 => (0..LEAVES, 0..LEAVES)
            .prop_map(|(first, back)| Op::RestartTwice { first, back }),
        1 => (0..LEAVES).prop_map(|leaf| Op::Overlap { leaf }),
        1 => (0..LEAVES).prop_map(|leaf| Op::Retained { leaf }),
        3 => (0..LEAVES, 1..LEAVES).prop_map(|(a, by)| Op::Peers { a, b: (a + by) % LEAVES }),
        1 => (0..LEAVES, 1..100u64).prop_map(|(leaf, millis)| Op::Slow { leaf, millis }),
        1 => (0..LEAVES, 1..LEAVES, 1..100u64)
            .prop_map(|(a, by, millis)| Op::SlowPeers { a, b: (a + by) % LEAVES, millis }),
        1 => (0..LEAVES, 1..LEAVES).prop_map(|(a, by)| Op::PeersPart { a, b: (a + by) % LEAVES }),
        1 => (0..LEAVES, 1..LEAVES, 1..4000u64)
            .prop_map(|(a, by, millis)| Op::DeafPeer { a, b: (a + by) % LEAVES, millis }),
        1 => (0..LEAVES, 0..TOPICS.len(), prop_oneof![0..2usize, 60..200usize])
            .prop_map(|(leaf, topic, kib)| Op::PublishRetained { leaf, topic, kib }),
    ]
}

/// Payloads in order of delivery, by publisher and topic.
type Streams = BTreeMap<(Who, String), Vec<String>>;

/// Runs a script and returns, per leaf, publisher and topic, the payloads in order of delivery.
fn run(ops: &[Op], lazy: bool) -> (Vec<Streams>, Vec<Sent>) {
    let world = World::new().tuned(|config| {
        // small, so that publishers wait for subscribers, and rings forget
        config.lane_queue_bytes_max = 600_000;
        config.ring_bytes_max = 2_000_000;
    });
    let mut world = if lazy { world.lazy() } else { world };
    let router = world.router();
    let leaves: Vec<Who> = (0..LEAVES).map(|_| world.leaf(router)).collect();
    let counted: Vec<_> = leaves
        .iter()
        .enumerate()
        .map(|(index, leaf)| world.subscribe(*leaf, PATTERNS[index]))
        .collect();
    let mut beside: [[Option<SubscriptionId>; 2]; LEAVES] = Default::default();
    world.settle();
    let mut sent = Vec::new();
    let mut number = 0;
    for op in ops {
        match *op {
            Op::Publish { leaf, topic, count } => {
                let payloads: Vec<String> = (0..count)
                    .map(|_| {
                        number += 1;
                        format!("{number}")
                    })
                    .collect();
                world.publish_batch(leaves[leaf], TOPICS[topic], Qos::AtLeastOnce, &payloads);
                sent.extend(payloads.into_iter().map(|text| Sent { leaf, topic, text }));
            }
            Op::PublishLarge { leaf, topic, kib } => {
                number += 1;
                let text = format!("{number} {}", "x".repeat(kib * 1024));
                world.publish(leaves[leaf], TOPICS[topic], Qos::AtLeastOnce, &text);
                sent.push(Sent { leaf, topic, text });
            }
            Op::Deaf { leaf, millis } => {
                world.deaf(leaves[leaf], router, true);
                world.run_for(Duration::from_millis(millis));
                world.deaf(leaves[leaf], router, false);
            }
            Op::Wait(millis) => world.run_for(Duration::from_millis(millis)),
            Op::Reconnect { leaf, after } => {
                world.cut(leaves[leaf], router);
                world.run_for(Duration::from_millis(after));
                world.connect(leaves[leaf], router);
            }
            Op::Restart { first } => {
                world.restart(router);
                world.join(router, realm());
                for step in 0..LEAVES {
                    world.connect(leaves[(first + step) % LEAVES], router);
                    world.run_for(Duration::from_millis(17));
                }
            }
            Op::RestartTwice { first, back } => {
                for back in [back, LEAVES] {
                    world.restart(router);
                    world.join(router, realm());
                    for step in 0..back {
                        world.connect(leaves[(first + step) % LEAVES], router);
                        world.run_for(Duration::from_millis(17));
                    }
                }
            }
            Op::Peers { a, b } => {
                world.connect_peers(leaves[a], leaves[b]);
            }
            Op::Slow { leaf, millis } => {
                if world.wire_between(leaves[leaf], router).is_some() {
                    world.slow(leaves[leaf], router, Duration::from_millis(millis));
                }
            }
            Op::SlowPeers { a, b, millis } => {
                if world.wire_between(leaves[a], leaves[b]).is_some() {
                    world.slow(leaves[a], leaves[b], Duration::from_millis(millis));
                }
            }
            Op::PeersPart { a, b } => {
                if world.wire_between(leaves[a], leaves[b]).is_some() {
                    world.cut(leaves[a], leaves[b]);
                }
            }
            Op::DeafPeer { a, b, millis } => {
                if let Some(wire) = world.wire_between(leaves[a], leaves[b]) {
                    world.deaf(leaves[a], leaves[b], true);
                    world.run_for(Duration::from_millis(millis));
                    if world.wire_between(leaves[a], leaves[b]) == Some(wire) {
                        world.deaf(leaves[a], leaves[b], false);
                    }
                }
            }
            Op::Overlap { leaf } => match beside[leaf][0].take() {
                Some(subscription) => {
                    world.command(leaves[leaf], Command::Unsubscribe { subscription });
                }
                None => {
                    let mut options = SubscribeOptions::default();
                    options.skip_retained = true;
                    let new = world.subscribe_with(leaves[leaf], PATTERNS[leaf], options);
                    beside[leaf][0] = Some(new);
                }
            },
            Op::Retained { leaf } => match beside[leaf][1].take() {
                Some(subscription) => {
                    world.command(leaves[leaf], Command::Unsubscribe { subscription });
                }
                None => beside[leaf][1] = Some(world.subscribe(leaves[leaf], PATTERNS[leaf])),
            },
            Op::PublishRetained { leaf, topic, kib } => {
                number += 1;
                let text = format!("{number} {}", "x".repeat(kib * 1024));
                let bytes = text.clone().into_bytes();
                world.publish_bytes(leaves[leaf], TOPICS[topic], Qos::AtLeastOnce, true, bytes);
                sent.push(Sent { leaf, topic, text });
            }
        }
    }
    world.run_for(Duration::from_secs(30));
    for leaf in &leaves {
        for topic in TOPICS {
            if let Some((accepted, delivered, _)) = world.progress(*leaf, topic) {
                let last = world.node(*leaf).last_sequence(&realm(), &self::topic(topic));
                assert_eq!((accepted, delivered), (last, last), "leaf {leaf} on {topic}");
            }
        }
    }
    let ids: BTreeMap<_, _> =
        leaves.iter().enumerate().map(|(index, who)| (world.sims[*who].id, index)).collect();
    let got = leaves
        .iter()
        .zip(&counted)
        .map(|(leaf, counted)| {
            let mut streams = Streams::new();
            let deliveries = world.deliveries(*leaf);
            for delivery in deliveries.filter(|delivery| delivery.subscription == *counted) {
                let key = (ids[&delivery.publisher], delivery.topic.as_str().to_owned());
                let bodies =
                    macula_proto::wire::BatchIter::new(delivery.count, delivery.body.clone());
                streams
                    .entry(key)
                    .or_default()
                    .extend(bodies.map(|body| String::from_utf8_lossy(&body).into_owned()));
            }
            streams
        })
        .collect();
    (got, sent)
}

#[derive(Clone, Debug)]
struct Sent {
    leaf: usize,
    topic: usize,
    text: String,
}

/// Which leaves subscribe to a topic.
fn wants(leaf: usize, topic: usize) -> bool {
    match leaf {
        0 => true,
        1 => topic < 2,
        2 => topic == 0,
        _ => topic == 2,
    }
}

fn check(ops: &[Op], lazy: bool) {
    let (got, sent) = run(ops, lazy);
    for (leaf, got) in got.iter().enumerate() {
        let mut expected = Streams::new();
        for message in sent.iter().filter(|message| wants(leaf, message.topic)) {
            expected
                .entry((message.leaf, TOPICS[message.topic].to_owned()))
                .or_default()
                .push(message.text.clone());
        }
        let short = |streams: &Streams| -> Vec<String> {
            let cut = |text: &String| text.chars().take(8).collect::<String>();
            streams
                .iter()
                .map(|(key, texts)| {
                    format!("{key:?}: {:?}", texts.iter().map(cut).collect::<Vec<_>>())
                })
                .collect()
        };
        assert!(
            *got == expected,
            "leaf {leaf}: {:#?} instead of {:#?}",
            short(got),
            short(&expected)
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: std::env::var_os("PROPTEST_CASES").and_then(|text| text.to_str()?.parse().ok()).unwrap_or(48), ..ProptestConfig::default() })]

    #[test]
    fn acknowledged_messages_arrive_once_and_in_order(
        ops in prop::collection::vec(any_op(), 1..25)
    ) {
        check(&ops, false);
    }

    #[test]
    fn draining_late_changes_nothing_that_matters(
        ops in prop::collection::vec(any_op(), 1..15)
    ) {
        check(&ops, true);
    }
}
