//! Publishes over links between leaves.

use std::time::Duration;

use bytes::Bytes;
use macula_proto::RealmId;
use macula_proto::node::{Event, Input, LinkStatus, Qos, SubscribeOptions};
use macula_proto::wire::message::{Message, Prune, Publish, SlowPolicy};
use macula_proto::wire::{self, Channel};

use proptest::prelude::*;

use crate::grants::{self, NOON, grant};
use crate::world::{Who, World, raw, realm};

const QOS: [Qos; 2] = [Qos::AtMostOnce, Qos::AtLeastOnce];

/// A router and two leaves; the second one subscribes to everything.
fn hub() -> (World, Who, Who, Who) {
    let mut world = World::new();
    let router = world.router();
    let (alice, bob) = (world.leaf(router), world.leaf(router));
    world.subscribe(bob, "**");
    world.settle();
    (world, router, alice, bob)
}

/// Publishes numbers, one each millisecond.
fn flow(world: &mut World, from: Who, qos: Qos, numbers: std::ops::Range<u32>) {
    for number in numbers {
        world.publish(from, "a", qos, &number.to_string());
        world.run_for(Duration::from_millis(1));
    }
}

fn texts(numbers: std::ops::Range<u32>) -> Vec<String> {
    numbers.map(|number| number.to_string()).collect()
}

fn peer_link(world: &World, who: Who) -> LinkStatus {
    let links = world.node(who).status().links;
    links.into_iter().find(|link| link.is_peer_link).expect("a link to a peer")
}

/// How many messages the router has sent to links.
fn forwarded(world: &World, router: Who) -> u64 {
    world.node(router).stats().messages_out
}

fn has_lost(world: &World, who: Who) -> bool {
    world.has(who, |event| matches!(event, Event::Lost { .. }))
}

#[test]
fn a_flow_moves_to_a_link_between_the_leaves_and_back() {
    for qos in QOS {
        let (mut world, router, alice, bob) = hub();
        flow(&mut world, alice, qos, 0..50);
        world.connect_peers(alice, bob);
        flow(&mut world, alice, qos, 50..150);
        world.settle();
        let before = forwarded(&world, router);
        flow(&mut world, alice, qos, 150..250);
        world.settle();
        assert_eq!(forwarded(&world, router), before, "the router forwards {qos:?}");
        let status = peer_link(&world, bob);
        assert!(status.received > 150, "{status:?}");
        assert_eq!(peer_link(&world, alice).published, status.received);
        world.cut(alice, bob);
        world.settle();
        flow(&mut world, alice, qos, 250..300);
        world.settle();
        assert_eq!(world.texts(bob), texts(0..300), "{qos:?}");
        assert!(!has_lost(&world, bob));
        assert_eq!(forwarded(&world, router), before + 50);
        if qos == Qos::AtLeastOnce {
            assert_eq!(world.progress(alice, "a"), Some((300, 300, 1)));
        }
    }
}

#[test]
fn what_overtakes_waits_for_what_is_under_way_by_the_router() {
    for qos in QOS {
        let (mut world, router, alice, bob) = hub();
        flow(&mut world, alice, qos, 0..5);
        world.settle();
        world.deaf(bob, router, true);
        flow(&mut world, alice, qos, 5..10);
        world.connect_peers(alice, bob);
        world.settle();
        flow(&mut world, alice, qos, 10..20);
        world.settle();
        assert_eq!(world.texts(bob), texts(0..5));
        world.deaf(bob, router, false);
        world.settle();
        assert_eq!(world.texts(bob), texts(0..20), "{qos:?}");
        assert!(!has_lost(&world, bob));
    }
}

#[test]
fn either_way_may_be_the_faster_one() {
    for (of_router, of_peer) in [(80, 1), (1, 80)] {
        for qos in QOS {
            let (mut world, router, alice, bob) = hub();
            world.slow(alice, router, Duration::from_millis(of_router));
            flow(&mut world, alice, qos, 0..20);
            world.connect_peers(alice, bob);
            world.slow(alice, bob, Duration::from_millis(of_peer));
            flow(&mut world, alice, qos, 20..400);
            world.run_for(Duration::from_millis(500));
            assert!(world.texts(bob) == texts(0..400), "{qos:?}");
            if qos == Qos::AtLeastOnce {
                assert_eq!(world.progress(alice, "a"), Some((400, 400, 1)));
            }
            let before = forwarded(&world, router);
            flow(&mut world, alice, qos, 400..420);
            world.settle();
            assert_eq!(forwarded(&world, router), before);
        }
    }
}

#[test]
fn acknowledged_messages_survive_a_link_that_breaks_with_them() {
    let (mut world, _, alice, bob) = hub();
    world.connect_peers(alice, bob);
    world.settle();
    flow(&mut world, alice, Qos::AtLeastOnce, 0..20);
    world.settle();
    world.black_hole(alice, bob);
    flow(&mut world, alice, Qos::AtLeastOnce, 20..40);
    world.settle();
    assert_eq!(world.texts(bob), texts(0..20));
    assert_eq!(world.progress(alice, "a"), Some((40, 20, 1)), "not delivered");
    world.cut(alice, bob);
    world.settle();
    assert_eq!(world.texts(bob), texts(0..40));
    assert_eq!(world.progress(alice, "a"), Some((40, 40, 1)));
}

#[test]
fn the_router_takes_over_when_the_link_carries_nothing() {
    let mut world = World::new().tuned(|config| config.probe_interval = Duration::from_secs(60));
    let router = world.router();
    let (alice, bob) = (world.leaf(router), world.leaf(router));
    world.subscribe(bob, "**");
    world.connect_peers(alice, bob);
    world.settle();
    flow(&mut world, alice, Qos::AtLeastOnce, 0..20);
    world.settle();
    world.black_hole(alice, bob);
    flow(&mut world, alice, Qos::AtLeastOnce, 20..40);
    world.run_for(Duration::from_secs(25));
    flow(&mut world, alice, Qos::AtLeastOnce, 40..60);
    world.run_for(Duration::from_secs(25));
    assert_eq!(world.texts(bob), texts(0..60));
    assert_eq!(world.progress(alice, "a"), Some((60, 60, 1)));
    assert!(!world.has(bob, |event| matches!(event, Event::LinkLost { .. })));
}

#[test]
fn the_router_restarts_under_a_flow() {
    let (mut world, router, alice, bob) = hub();
    world.connect_peers(alice, bob);
    flow(&mut world, alice, Qos::AtLeastOnce, 0..50);
    world.restart(router);
    flow(&mut world, alice, Qos::AtLeastOnce, 50..80);
    world.settle();
    assert_eq!(world.texts(bob), texts(0..80), "without a router");
    world.join(router, realm());
    world.connect(alice, router);
    flow(&mut world, alice, Qos::AtLeastOnce, 80..100);
    world.connect(bob, router);
    flow(&mut world, alice, Qos::AtLeastOnce, 100..120);
    world.settle();
    let before = forwarded(&world, router);
    flow(&mut world, alice, Qos::AtLeastOnce, 120..140);
    world.settle();
    assert_eq!(forwarded(&world, router), before, "it was told again");
    assert_eq!(world.texts(bob), texts(0..140));
    world.run_for(Duration::from_secs(15));
    assert_eq!(world.progress(alice, "a"), Some((140, 140, 1)));
}

#[test]
fn subscribers_without_a_link_are_served_by_the_router() {
    for qos in QOS {
        let (mut world, router, alice, bob) = hub();
        let carol = world.leaf(router);
        world.subscribe(carol, "a");
        world.connect_peers(bob, alice);
        world.settle();
        flow(&mut world, alice, qos, 0..30);
        let late = world.leaf(router);
        world.subscribe(late, "a");
        world.settle();
        flow(&mut world, alice, qos, 30..60);
        world.settle();
        assert_eq!(world.texts(bob), texts(0..60));
        assert_eq!(world.texts(carol), texts(0..60));
        assert_eq!(world.texts(late), texts(30..60));
        if qos == Qos::AtLeastOnce {
            assert_eq!(world.progress(alice, "a"), Some((60, 60, 3)));
        }
    }
}

#[test]
fn a_late_subscriber_begins_where_the_router_or_the_peer_does() {
    for qos in QOS {
        let mut world = World::new();
        let router = world.router();
        let (alice, bob) = (world.leaf(router), world.leaf(router));
        world.connect_peers(alice, bob);
        world.settle();
        world.publish_bytes(alice, "a", qos, true, b"kept".to_vec());
        flow(&mut world, alice, qos, 0..20);
        world.subscribe(bob, "*");
        flow(&mut world, alice, qos, 20..60);
        world.settle();
        let got = world.texts(bob);
        assert!(got.contains(&"kept".to_owned()));
        let rest: Vec<String> = got.into_iter().filter(|text| text != "kept").collect();
        let first: u32 = rest[0].parse().unwrap();
        assert!((20..35).contains(&first), "{first}");
        assert_eq!(rest, texts(first..60), "{qos:?}");
    }
}

#[test]
fn subscriptions_end_at_peers_too() {
    let (mut world, router, alice, bob) = hub();
    let second = world.subscribe(bob, "b");
    world.connect_peers(alice, bob);
    world.settle();
    world.publish(alice, "b", Qos::AtLeastOnce, "both");
    world.settle();
    for subscription in [macula_proto::id::SubscriptionId(second.0 - 1), second] {
        let command = macula_proto::node::Command::Unsubscribe { subscription };
        world.command(bob, command);
    }
    world.settle();
    let published = peer_link(&world, alice).published;
    let before = forwarded(&world, router);
    world.publish(alice, "b", Qos::AtLeastOnce, "nobody");
    world.settle();
    assert_eq!(peer_link(&world, alice).published, published);
    assert_eq!(forwarded(&world, router), before);
    assert_eq!(world.texts(bob), ["both", "both"]);
    assert_eq!(world.progress(alice, "b"), Some((2, 2, 0)));
}

#[test]
fn large_messages_keep_their_place() {
    for qos in QOS {
        let (mut world, _, alice, bob) = hub();
        let big = |number: u32| format!("{number} {}", "x".repeat(200_000));
        let mut expected = Vec::new();
        for number in 0..30 {
            if number == 10 {
                world.connect_peers(alice, bob);
            }
            if number == 25 {
                world.settle();
                world.cut(alice, bob);
            }
            let text = if number % 3 == 0 { big(number) } else { number.to_string() };
            world.publish(alice, "a", qos, &text);
            expected.push(text);
            world.run_for(Duration::from_millis(2));
        }
        world.run_for(Duration::from_secs(1));
        assert!(world.texts(bob) == expected, "{qos:?}");
    }
}

#[test]
fn a_peer_that_reads_nothing_makes_publishers_wait_and_is_cut_off() {
    let mut world = World::new().tuned(|config| config.lane_queue_bytes_max = 100_000);
    let router = world.router();
    let (alice, bob) = (world.leaf(router), world.leaf(router));
    world.subscribe(bob, "a");
    world.connect_peers(alice, bob);
    world.settle();
    world.deaf(bob, alice, true);
    let mut sent = 0;
    while world.room(alice, "a", Qos::AtLeastOnce) && sent < 10_000 {
        world.publish(alice, "a", Qos::AtLeastOnce, &"x".repeat(1000));
        world.run_for(Duration::from_micros(100));
        sent += 1;
    }
    assert!(sent < 10_000, "the publisher waits");
    world.run_for(Duration::from_secs(25));
    assert!(world.room(alice, "a", Qos::AtLeastOnce));
    assert_eq!(world.texts(bob).len(), sent);
}

#[test]
fn a_peer_that_drops_says_so() {
    let mut world = World::new().tuned(|config| config.lane_queue_bytes_max = 100_000);
    let router = world.router();
    let (alice, bob) = (world.leaf(router), world.leaf(router));
    let mut options = SubscribeOptions::default();
    options.policy = SlowPolicy::DropOldest;
    world.subscribe_with(bob, "a", options);
    world.connect_peers(alice, bob);
    world.settle();
    flow(&mut world, alice, Qos::AtMostOnce, 0..10);
    world.settle();
    world.deaf(bob, alice, true);
    for _ in 0..3_000 {
        world.publish(alice, "a", Qos::AtMostOnce, &"x".repeat(1000));
    }
    world.deaf(bob, alice, false);
    world.run_for(Duration::from_secs(1));
    assert!(world.node(alice).stats().dropped_slow > 0);
    let got = world.texts(bob).len() as u64;
    assert_eq!(got + world.node(alice).stats().dropped_slow, 3_010);
    assert!(has_lost(&world, bob));
}

#[test]
fn a_node_that_takes_no_part_uses_the_router() {
    let mut world = World::new();
    let router = world.router();
    let alice = world.leaf(router);
    world.tune = |config| config.peer_publishes = false;
    let bob = world.leaf(router);
    world.subscribe(bob, "**");
    world.subscribe(alice, "**");
    world.connect_peers(alice, bob);
    world.settle();
    flow(&mut world, alice, Qos::AtMostOnce, 0..20);
    world.settle();
    assert_eq!(world.texts(bob), texts(0..20));
    assert_eq!((peer_link(&world, alice).published, peer_link(&world, bob).received), (0, 0));
}

// --- without the router ------------------------------------------------------------------------

/// How many messages the router got.
fn taken(world: &World, router: Who) -> u64 {
    world.node(router).stats().messages_in
}

/// A flow that the router does not see any more, of so many messages.
fn quiet() -> (World, Who, Who, Who, u32) {
    let (mut world, router, alice, bob) = hub();
    world.connect_peers(alice, bob);
    flow(&mut world, alice, Qos::AtMostOnce, 0..50);
    world.settle();
    let before = taken(&world, router);
    flow(&mut world, alice, Qos::AtMostOnce, 50..100);
    world.settle();
    assert_eq!(taken(&world, router), before, "the router gets them");
    assert_eq!(world.texts(bob), texts(0..100));
    (world, router, alice, bob, 100)
}

#[test]
fn what_must_be_kept_still_goes_to_the_router() {
    let (mut world, router, alice, bob, _) = quiet();
    let before = taken(&world, router);
    world.publish(alice, "a", Qos::AtLeastOnce, "acknowledged");
    world.publish_bytes(alice, "a", Qos::AtMostOnce, true, b"retained".to_vec());
    world.publish(alice, "a", Qos::AtMostOnce, "neither");
    world.settle();
    assert_eq!(taken(&world, router), before + 2);
    assert_eq!(world.progress(alice, "a"), Some((101, 101, 1)));
    assert_eq!(world.texts(bob)[100..], ["acknowledged", "retained", "neither"]);
    assert!(!has_lost(&world, bob));
}

#[test]
fn who_subscribes_later_is_served_at_once() {
    let (mut world, router, alice, bob, sent) = quiet();
    let carol = world.leaf(router);
    world.subscribe(carol, "*");
    world.settle();
    flow(&mut world, alice, Qos::AtMostOnce, sent..sent + 50);
    world.settle();
    assert_eq!(world.texts(carol), texts(sent..sent + 50));
    // and may get a link, too
    world.connect_peers(carol, alice);
    flow(&mut world, alice, Qos::AtMostOnce, sent + 50..sent + 150);
    world.settle();
    let before = taken(&world, router);
    flow(&mut world, alice, Qos::AtMostOnce, sent + 150..sent + 200);
    world.settle();
    assert_eq!(taken(&world, router), before);
    // and lose it
    world.cut(carol, alice);
    world.settle();
    flow(&mut world, alice, Qos::AtMostOnce, sent + 200..sent + 250);
    world.settle();
    assert_eq!(world.texts(carol), texts(sent..sent + 250));
    assert_eq!(world.texts(bob), texts(0..sent + 250));
    assert!(!has_lost(&world, carol) && !has_lost(&world, bob));
}

#[test]
fn the_router_gets_the_flow_again_when_a_link_breaks() {
    let (mut world, router, alice, bob, sent) = quiet();
    world.cut(alice, bob);
    flow(&mut world, alice, Qos::AtMostOnce, sent..sent + 50);
    world.settle();
    let got = world.texts(bob);
    let first: u32 = got[sent as usize].parse().unwrap();
    assert!(first < sent + 20, "{first}");
    assert_eq!(got[sent as usize..], texts(first..sent + 50));
    let before = taken(&world, router);
    world.connect_peers(bob, alice);
    flow(&mut world, alice, Qos::AtMostOnce, sent + 50..sent + 100);
    assert!(taken(&world, router) > before);
    // the subscriber's link to the router
    world.settle();
    world.cut(bob, router);
    flow(&mut world, alice, Qos::AtMostOnce, sent + 100..sent + 120);
    world.connect(bob, router);
    flow(&mut world, alice, Qos::AtMostOnce, sent + 120..sent + 150);
    world.settle();
    // and the router itself
    world.restart(router);
    world.join(router, realm());
    world.connect(alice, router);
    world.connect(bob, router);
    world.settle();
    flow(&mut world, alice, Qos::AtMostOnce, sent + 150..sent + 200);
    world.settle();
    assert_eq!(world.texts(bob), [texts(0..sent), texts(first..sent + 200)].concat());
}

#[test]
fn a_subscriber_that_leaves_out_what_it_does_not_get_harms_nobody_else() {
    let (mut world, router, alice, bob, sent) = quiet();
    let carol = world.leaf(router);
    world.subscribe(carol, "a");
    world.settle();
    let id = world.sims[carol].id;
    let status = world.node(router).status().links;
    let link = status.iter().find(|link| link.peer == id).expect("a link").link;
    let prune = Prune {
        realm: realm().tag(),
        publisher: world.sims[alice].id,
        epoch: 1,
        topic: "a".to_owned(),
        id: 1,
        from: 0,
        taken: 0,
    };
    let frame = raw(&wire::encode(&Message::Prune(prune)));
    world.input(router, Input::Frame { link, channel: Channel::Control, frame });
    flow(&mut world, alice, Qos::AtMostOnce, sent..sent + 20);
    world.settle();
    // two do without, says the router, but only one has a link
    let before = taken(&world, router);
    flow(&mut world, alice, Qos::AtMostOnce, sent + 20..sent + 40);
    world.settle();
    assert_eq!(taken(&world, router), before + 20);
    assert_eq!(world.texts(bob), texts(0..sent + 40));
}

#[test]
fn flushed_means_that_peers_have_it_too() {
    let (mut world, _, alice, bob, _) = quiet();
    world.deaf(bob, alice, true);
    world.publish(alice, "a", Qos::AtMostOnce, "last");
    world.command(alice, macula_proto::node::Command::Flush { id: 7 });
    world.settle();
    let is_flushed =
        |world: &World| world.has(alice, |event| matches!(event, Event::Flushed { id: 7 }));
    assert!(!is_flushed(&world));
    world.deaf(bob, alice, false);
    world.settle();
    assert!(is_flushed(&world));
    assert_eq!(world.texts(bob).last().map(String::as_str), Some("last"));
}

#[derive(Clone, Debug)]
enum Op {
    Publish { leaf: usize, count: usize, qos1: bool, kib: usize },
    Peers { a: usize, by: usize },
    Wait { millis: u64 },
    Slow { leaf: usize, millis: u64 },
    Late { leaf: usize },
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0..3usize, 1..20usize, any::<bool>(), prop_oneof![4 => Just(0), 1 => 1..150usize])
            .prop_map(|(leaf, count, qos1, kib)| Op::Publish { leaf, count, qos1, kib }),
        2 => (0..3usize, 1..3usize).prop_map(|(a, by)| Op::Peers { a, by }),
        5 => (1..40u64).prop_map(|millis| Op::Wait { millis }),
        1 => (0..3usize, 1..50u64).prop_map(|(leaf, millis)| Op::Slow { leaf, millis }),
        1 => (0..3usize).prop_map(|leaf| Op::Late { leaf }),
    ]
}

proptest! {
    /// As long as no link breaks, QoS 0 loses nothing, doubles nothing and keeps the order.
    #[test]
    fn nothing_is_lost_while_ways_change(ops in prop::collection::vec(any_op(), 1..40)) {
        let mut world = World::new();
        let router = world.router();
        let leaves: Vec<Who> = (0..3).map(|_| world.leaf(router)).collect();
        // the third one comes later, if at all
        for leaf in &leaves[..2] {
            world.subscribe(*leaf, "a");
        }
        world.settle();
        let (mut number, mut is_late) = (0, false);
        // what each had published when everybody had heard of the late one
        let mut since = Vec::new();
        let mut sent: [Vec<String>; 3] = Default::default();
        for op in ops {
            match op {
                Op::Publish { leaf, count, qos1, kib } => for _ in 0..count.min(100 / (kib + 1) + 1) {
                    number += 1;
                    let text = format!("{number}{}", " ".repeat(kib * 1024));
                    world.publish(leaves[leaf], "a", Qos::from(qos1), &text);
                    sent[leaf].push(number.to_string());
                },
                Op::Peers { a, by } => {
                    let b = (a + by) % 3;
                    if world.wire_between(leaves[a], leaves[b]).is_none() {
                        world.connect_peers(leaves[a], leaves[b]);
                    }
                }
                Op::Wait { millis } => world.run_for(Duration::from_millis(millis)),
                Op::Slow { leaf, millis } => {
                    world.slow(leaves[leaf], router, Duration::from_millis(millis));
                }
                Op::Late { leaf } => {
                    if leaf == 2 && !std::mem::replace(&mut is_late, true) {
                        world.subscribe(leaves[2], "a");
                        world.run_for(Duration::from_millis(500));
                        since = sent.iter().map(Vec::len).collect();
                    }
                }
            }
        }
        world.run_for(Duration::from_secs(3));
        for (index, leaf) in leaves.iter().enumerate() {
            for (author, sent) in sent.iter().enumerate() {
                let id = world.sims[leaves[author]].id;
                let got: Vec<String> = world
                    .deliveries(*leaf)
                    .filter(|delivery| delivery.publisher == id)
                    .map(|it| String::from_utf8_lossy(&it.body).trim().to_owned())
                    .collect();
                if index < 2 {
                    prop_assert_eq!(&got, sent, "{} of {}", index, author);
                } else {
                    // what is published just when it comes may miss it, but nothing is turned round
                    let mut rest = sent.iter();
                    let in_order = got.iter().all(|text| rest.any(|other| other == text));
                    prop_assert!(in_order, "{:?} of {:?}", got, sent);
                    let since = since.get(author).copied().unwrap_or(sent.len());
                    let settled = sent.get(since..).unwrap_or_default();
                    prop_assert!(got.ends_with(settled), "{:?} of {:?}", got, settled);
                }
            }
        }
    }
}

// --- hostile ---------------------------------------------------------------------------------------

fn forged(world: &World, publisher: Who, topic: &'static str, first: u64) -> Publish {
    Publish {
        realm: world.realm.tag(),
        publisher: world.sims[publisher].id,
        epoch: 1,
        first,
        count: 1,
        ttl: 1,
        qos1: false,
        retain: false,
        start: false,
        topic: Bytes::from_static(topic.as_bytes()),
        body: Bytes::new(),
    }
}

#[test]
fn a_peer_publishes_in_no_other_name() {
    let (mut world, router, alice, bob) = hub();
    let link = world.connect_peers(bob, alice);
    world.settle();
    let frame = raw(&wire::encode(&Message::Publish(forged(&world, router, "a", 1))));
    world.input(bob, Input::Frame { link, channel: Channel::Lane(4), frame });
    world.settle();
    assert_eq!(world.node(bob).stats().protocol_errors, 1);
    assert_eq!(world.texts(bob), [""; 0]);
    assert!(world.node(bob).status().links.iter().all(|link| !link.is_peer_link));
}

#[test]
fn what_a_peer_leaves_out_is_bounded() {
    let mut world = World::new().tuned(|config| config.lane_queue_bytes_max = 100_000);
    let router = world.router();
    let (alice, bob) = (world.leaf(router), world.leaf(router));
    world.subscribe(bob, "a");
    let link = world.connect_peers(bob, alice);
    world.settle();
    for step in 0..1_000 {
        let mut publish = forged(&world, alice, "a", 10 + 2 * step);
        publish.body = Bytes::from(vec![0; 1000]);
        let frame = raw(&wire::encode(&Message::Publish(publish)));
        world.input(bob, Input::Frame { link, channel: Channel::Lane(4), frame });
    }
    // it knows no beginning and waits for the router's word; the peer waits too
    assert_eq!(world.texts(bob).len(), 0);
    world.run_for(Duration::from_secs(15));
    assert_eq!(world.texts(bob).len(), 1_000);
}

#[test]
fn prunes_are_bounded_and_cost_only_who_sends_them() {
    let (mut world, router, alice, bob) = hub();
    let carol = world.leaf(router);
    world.subscribe(carol, "**");
    world.settle();
    let status = world.node(router).status().links;
    let of = |who: Who| {
        let id = world.sims[who].id;
        status.iter().find(|link| link.peer == id).expect("a link").link
    };
    let link = of(carol);
    for number in 0..5_000 {
        let prune = Prune {
            realm: realm().tag(),
            publisher: world.sims[alice].id,
            epoch: 1,
            topic: if number == 0 { "a".to_owned() } else { format!("t.{number}") },
            id: number,
            from: 0,
            taken: 0,
        };
        let frame = raw(&wire::encode(&Message::Prune(prune)));
        world.input(router, Input::Frame { link, channel: Channel::Control, frame });
    }
    assert!(world.node(router).stats().over_limit >= 904);
    flow(&mut world, alice, Qos::AtLeastOnce, 0..10);
    world.settle();
    assert_eq!(world.texts(bob), texts(0..10));
    assert_eq!(world.texts(carol), [""; 0]);
    assert_eq!(world.progress(alice, "a"), Some((10, 0, 2)));
    // it never says that it has them, so it gets them here
    world.run_for(Duration::from_secs(15));
    assert_eq!(world.texts(carol), texts(0..10));
    assert_eq!(world.progress(alice, "a"), Some((10, 10, 2)));
}

// --- guarded realms --------------------------------------------------------------------------------

#[test]
fn peers_check_what_each_may_publish_and_receive() {
    let (mut world, router) = grants::world();
    let member = |world: &mut World, rules: &'static [&'static str]| {
        let who = grants::leaf(world, router, |who| grant(who, 3_600, rules));
        world.input(who, Input::WallClock { unix: NOON });
        who
    };
    let alice = member(&mut world, &["allow publish a.*", "allow store a.*"]);
    let bob = member(&mut world, &["allow subscribe a.b"]);
    world.subscribe(bob, "a.b");
    world.subscribe(bob, "a.*");
    world.connect_peers(alice, bob);
    world.settle();
    world.publish(alice, "a.b", Qos::AtLeastOnce, "good");
    world.publish(alice, "a.c", Qos::AtLeastOnce, "not for bob");
    world.publish(alice, "d", Qos::AtLeastOnce, "not by alice");
    world.settle();
    assert_eq!(world.texts(bob), ["good"]);
    assert_eq!(peer_link(&world, alice).published, 1);
    // whoever sends all the same is refused
    let link = peer_link(&world, bob).link;
    let frame = raw(&wire::encode(&Message::Publish(forged(&world, alice, "d", 1))));
    let refused = world.node(bob).stats().refused;
    world.input(bob, Input::Frame { link, channel: Channel::Lane(wire::lane_of(b"d")), frame });
    world.settle();
    assert_eq!(world.node(bob).stats().refused, refused + 1);
}

#[test]
fn in_a_realm_that_only_one_has_nothing_passes() {
    let (mut world, router, alice, bob) = hub();
    let secret = RealmId::of_name("com.example.secret");
    world.connect_peers(alice, bob);
    world.join(router, secret);
    world.join(alice, secret);
    world.settle();
    world.realm = secret;
    world.publish(alice, "a", Qos::AtMostOnce, "hidden");
    world.settle();
    assert_eq!(world.texts(bob), [""; 0]);
}
