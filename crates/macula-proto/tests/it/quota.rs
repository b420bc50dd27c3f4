//! Limits: who takes more than its share waits or is told, and others do not notice.

use std::time::Duration;

use macula_proto::node::{Event, Qos, SubscribeOptions};
use macula_proto::wire::message::{ErrorClass, RefusalCode, SlowPolicy};

use crate::world::{Who, World};

fn block() -> SubscribeOptions {
    let mut options = SubscribeOptions::default();
    options.policy = SlowPolicy::Block;
    options
}

fn refusals(world: &World, who: Who, code: RefusalCode) -> usize {
    let is_refusal = |event: &Event| match event {
        Event::PublishRefused { code: found, .. }
        | Event::SubscribeRefused { code: found, .. }
        | Event::RegisterRefused { code: found, .. } => *found == code,
        _ => false,
    };
    world.sims[who].events.iter().filter(|(_, event)| is_refusal(event)).count()
}

#[test]
fn a_peer_that_sends_too_fast_waits_and_loses_nothing() {
    let mut world = World::new().tuned(|config| config.bytes_per_second_per_peer = 100_000);
    let router = world.router();
    let (fast, other, subscriber) = (world.leaf(router), world.leaf(router), world.leaf(router));
    world.subscribe_with(subscriber, "**", block());
    world.settle();
    let payload = "x".repeat(10_000);
    for _ in 0..50 {
        world.publish(fast, "fast", Qos::AtMostOnce, &payload);
    }
    world.run_for(Duration::from_secs(1));
    let early = world.texts(subscriber).len();
    assert!((15..=25).contains(&early), "a second's burst and a second's worth: {early}");
    world.publish(other, "other", Qos::AtMostOnce, "quick");
    world.settle();
    assert!(world.texts(subscriber).contains(&"quick".to_owned()));
    world.run_for(Duration::from_secs(4));
    assert_eq!(world.texts(subscriber).len(), 51);
    assert!(world.node(router).stats().slowed > 0);
}

#[test]
fn large_messages_and_items_count_too() {
    let mut world = World::new().tuned(|config| config.bytes_per_second_per_peer = 200_000);
    let router = world.router();
    let (fast, subscriber) = (world.leaf(router), world.leaf(router));
    world.subscribe(subscriber, "large");
    world.register(subscriber, "stream", 1);
    world.settle();
    for _ in 0..5 {
        world.publish(fast, "large", Qos::AtMostOnce, &"x".repeat(200_000));
    }
    world.run_for(Duration::from_secs(2));
    let early = world.texts(subscriber).len();
    assert!((1..=4).contains(&early), "{early}");
    world.run_for(Duration::from_secs(4));
    assert_eq!(world.texts(subscriber).len(), 5);

    let call = world.call_with(fast, "stream", "", |spec| spec.streaming = true);
    world.settle();
    let end = macula_proto::node::StreamEnd::Caller(call);
    for _ in 0..20 {
        let body = bytes::Bytes::from(vec![1; 50_000]);
        world.command(fast, macula_proto::node::Command::StreamItem { end, body });
    }
    let items = |world: &World| {
        let is_item = |event: &Event| matches!(event, Event::StreamItem { .. });
        world.sims[subscriber].events.iter().filter(|(_, event)| is_item(event)).count()
    };
    world.run_for(Duration::from_millis(1_500));
    assert!((5..=15).contains(&items(&world)), "{}", items(&world));
    world.run_for(Duration::from_secs(3));
    assert_eq!(items(&world), 20);
}

#[test]
fn a_message_larger_than_a_second_s_worth_is_waited_for_in_full() {
    let mut world = World::new().tuned(|config| config.bytes_per_second_per_peer = 20_000);
    let router = world.router();
    let (fast, subscriber) = (world.leaf(router), world.leaf(router));
    world.subscribe_with(subscriber, "**", block());
    world.settle();
    for _ in 0..20 {
        world.publish(fast, "t", Qos::AtMostOnce, &"x".repeat(60_000));
        world.run_for(Duration::from_secs(1));
    }
    // 20 s at 20 kB/s and a burst are seven such messages, and one on its way
    let came = world.texts(subscriber).len();
    assert!((6..=9).contains(&came), "{came}");
}

#[test]
fn a_realm_that_is_too_fast_waits_and_another_does_not() {
    let mut world = World::new().tuned(|config| config.bytes_per_second_per_realm = 100_000);
    let router = world.router();
    let (one, two, subscriber) = (world.leaf(router), world.leaf(router), world.leaf(router));
    world.subscribe_with(subscriber, "**", block());
    world.settle();
    let payload = "x".repeat(10_000);
    for _ in 0..20 {
        world.publish(one, "one", Qos::AtLeastOnce, &payload);
        world.publish(two, "two", Qos::AtMostOnce, &payload);
    }
    world.run_for(Duration::from_secs(1));
    let early = world.texts(subscriber).len();
    assert!((15..=30).contains(&early), "{early}");
    world.run_for(Duration::from_secs(4));
    assert_eq!(world.texts(subscriber).len(), 40);
}

#[test]
fn who_floods_a_slow_subscriber_pushes_out_its_own() {
    let mut world = World::new().tuned(|config| config.lane_queue_bytes_max = 400_000);
    let router = world.router();
    let (flooder, modest, slow) = (world.leaf(router), world.leaf(router), world.leaf(router));
    world.subscribe(slow, "t");
    world.settle();
    world.deaf(slow, router, true);
    let payload = "x".repeat(10_000);
    for round in 0..30 {
        world.publish(modest, "t", Qos::AtMostOnce, &format!("modest {round}"));
        for _ in 0..20 {
            world.publish(flooder, "t", Qos::AtMostOnce, &payload);
        }
        world.run_for(Duration::from_millis(11));
    }
    assert!(world.node(router).stats().dropped_slow > 400);
    world.deaf(slow, router, false);
    world.settle();
    let texts = world.texts(slow);
    let modest = texts.iter().filter(|text| text.starts_with("modest")).count();
    assert_eq!(modest, 30, "nothing of who sends little is lost");
    assert!(texts.len() > 40, "and something of who floods comes, too");
}

#[test]
fn memory_is_kept_by_closing_who_holds_it() {
    let mut world = World::new().tuned(|config| {
        config.memory_bytes_max = 3_000_000;
        config.lane_queue_bytes_max = 8 << 20;
    });
    let router = world.router();
    let (publisher, hoarder, good) = (world.leaf(router), world.leaf(router), world.leaf(router));
    world.subscribe(hoarder, "**");
    world.subscribe(good, "**");
    world.settle();
    world.deaf(hoarder, router, true);
    let payload = "x".repeat(10_000);
    let mut most = 0;
    for round in 0..1_000 {
        world.publish(publisher, &format!("t.{}", round % 50), Qos::AtMostOnce, &payload);
        world.run_for(Duration::from_millis(1));
        most = most.max(world.node(router).status().held_bytes);
    }
    assert!(most < 3_300_000, "{most}");
    assert_eq!(world.node(router).stats().shed, 1);
    assert!(
        world.has(hoarder, |event| matches!(
            event,
            Event::LinkLost { .. } | Event::PeerLeaving { .. }
        ))
    );
    assert!(world.node(router).status().held_bytes < 100_000);
    // the others hardly noticed
    world.settle();
    let lost = refusals(&world, publisher, RefusalCode::Limit);
    assert_eq!(world.texts(good).len() + lost, 1_000);
    assert!(lost <= 25, "{lost}");
}

#[test]
fn a_publisher_retains_so_much_and_not_more() {
    let mut world = World::new().tuned(|config| config.retained_bytes_per_peer_max = 10_000);
    let router = world.router();
    let (greedy, modest) = (world.leaf(router), world.leaf(router));
    for number in 0..5 {
        let topic = format!("greedy.{number}");
        world.publish_bytes(greedy, &topic, Qos::AtLeastOnce, true, vec![b'x'; 3_000]);
        world.settle();
    }
    world.publish_bytes(modest, "modest", Qos::AtLeastOnce, true, b"kept".to_vec());
    world.settle();
    assert_eq!(refusals(&world, greedy, RefusalCode::Limit), 2);
    assert_eq!(world.node(router).status().realms[0].retained, 4);
    // what is taken back makes room
    world.publish_bytes(greedy, "greedy.0", Qos::AtLeastOnce, true, Vec::new());
    world.settle();
    world.publish_bytes(greedy, "greedy.4", Qos::AtLeastOnce, true, vec![b'x'; 3_000]);
    world.settle();
    assert_eq!(refusals(&world, greedy, RefusalCode::Limit), 2);
    assert_eq!(world.node(router).status().realms[0].retained, 4);
}

#[test]
fn retained_messages_are_found_by_every_pattern() {
    let mut world = World::new();
    let router = world.router();
    let (publisher, subscriber) = (world.leaf(router), world.leaf(router));
    for topic in ["a", "a.b", "a.b.c", "a-b", "ab", "b.a.b"] {
        world.publish_bytes(publisher, topic, Qos::AtMostOnce, true, topic.as_bytes().to_vec());
    }
    world.settle();
    for (pattern, expected) in [
        ("a", vec!["a"]),
        ("a.**", vec!["a", "a.b", "a.b.c"]),
        ("a.*", vec!["a.b"]),
        ("a.*.c", vec!["a.b.c"]),
        ("*.a.**", vec!["b.a.b"]),
        ("**", vec!["a", "a-b", "a.b", "a.b.c", "ab", "b.a.b"]),
    ] {
        let subscription = world.subscribe(subscriber, pattern);
        world.settle();
        let mut found: Vec<String> = world
            .messages(subscriber)
            .into_iter()
            .filter(|(to, _)| *to == subscription)
            .map(|(_, text)| text)
            .collect();
        found.sort();
        assert_eq!(found, expected, "{pattern}");
    }
}

#[test]
fn churning_subscriptions_are_slowed_down() {
    let mut world = World::new().tuned(|config| {
        config.subscriptions_per_link_max = 50;
        config.registrations_per_link_max = 50;
        config.changes_per_second = 10;
    });
    let router = world.router();
    let churner = world.leaf(router);
    for _ in 0..300 {
        world.subscribe(churner, "a");
    }
    world.settle();
    let limited = refusals(&world, churner, RefusalCode::Limit);
    assert!(limited >= 250, "{limited}");
    assert!(world.node(router).stats().over_limit > 0);
}

#[test]
fn a_realm_has_so_many_subscriptions_registrations_and_calls() {
    let mut world = World::new().tuned(|config| {
        config.subscriptions_per_realm_max = 5;
        config.registrations_per_realm_max = 2;
        config.calls_per_realm_max = 3;
    });
    let router = world.router();
    let (one, two) = (world.leaf(router), world.leaf(router));
    let mut kept = Vec::new();
    for number in 0..4 {
        kept.push(world.subscribe(one, &format!("a.{number}")));
        world.subscribe(two, &format!("b.{number}"));
    }
    for name in ["p.1", "p.2", "p.3"] {
        world.register(one, name, 100);
    }
    world.settle();
    assert_eq!(
        refusals(&world, one, RefusalCode::Limit) + refusals(&world, two, RefusalCode::Limit),
        4
    );
    let calls: Vec<_> = (0..5).map(|_| world.call(two, "p.1", "x")).collect();
    world.settle();
    let busy = calls.iter().filter(|call| {
        let result = world.result(two, **call);
        matches!(result, Some(Err(failure)) if failure.class == ErrorClass::Busy)
    });
    assert_eq!(busy.count(), 2);
    // what ends makes room
    world.command(one, macula_proto::node::Command::Unsubscribe { subscription: kept[0] });
    world.settle();
    let before = refusals(&world, two, RefusalCode::Limit);
    world.subscribe(two, "again");
    world.settle();
    assert_eq!(refusals(&world, two, RefusalCode::Limit), before);
    world.cut(one, router);
    world.run_for(Duration::from_secs(11));
    for number in 0..3 {
        world.subscribe(two, &format!("more.{number}"));
    }
    world.settle();
    assert_eq!(refusals(&world, two, RefusalCode::Limit), before);
}

#[test]
fn a_realm_has_so_many_peers() {
    let mut world = World::new().tuned(|config| config.peers_per_realm_max = 2);
    let router = world.router();
    let (_, _, third) = (world.leaf(router), world.leaf(router), world.leaf(router));
    assert!(world.has(third, |event| matches!(event,
        Event::RealmAnswered { refusal: Some((RefusalCode::Limit, text)), .. }
            if text.contains("as many peers"))));
}

#[test]
fn one_publisher_cannot_use_up_the_streams_of_a_realm() {
    let mut world = World::new().tuned(|config| config.streams_per_peer_max = 3);
    let router = world.router();
    let (greedy, modest, slow) = (world.leaf(router), world.leaf(router), world.leaf(router));
    world.subscribe(slow, "**");
    world.settle();
    world.deaf(slow, router, true);
    for number in 0..10 {
        world.publish(greedy, &format!("greedy.{number}"), Qos::AtLeastOnce, "x");
    }
    world.publish(modest, "modest", Qos::AtLeastOnce, "modest");
    world.settle();
    assert_eq!(refusals(&world, greedy, RefusalCode::Limit), 7);
    world.deaf(slow, router, false);
    world.settle();
    assert_eq!(world.texts(slow).len(), 4);
    // in time, what is delivered counts no more
    world.run_for(Duration::from_secs(61));
    world.publish(greedy, "greedy.9", Qos::AtLeastOnce, "x");
    world.settle();
    assert_eq!(world.texts(slow).len(), 5);
}

#[test]
fn a_router_may_take_smaller_messages_only() {
    let mut world = World::new().tuned(|config| config.message_bytes_max = 1_000);
    let router = world.router();
    let (one, two) = (world.leaf(router), world.leaf(router));
    world.subscribe(two, "a");
    world.serve_echo(two, "echo");
    world.settle();
    world.publish(one, "a", Qos::AtMostOnce, &"x".repeat(1_000));
    world.publish(one, "a", Qos::AtMostOnce, &"x".repeat(1_001));
    let call = world.call(one, "echo", &"x".repeat(1_001));
    world.settle();
    assert_eq!(world.texts(two).len(), 1);
    assert_eq!(refusals(&world, one, RefusalCode::TooLarge), 1);
    assert_eq!(world.result(one, call).unwrap().unwrap_err().class, ErrorClass::Refused);
}

#[test]
fn of_too_many_peers_that_are_away_the_first_is_forgotten() {
    let mut world = World::new().tuned(|config| config.sessions_detached_max = 2);
    let router = world.router();
    let leaves: Vec<Who> = (0..4).map(|_| world.leaf(router)).collect();
    for leaf in &leaves {
        world.cut(*leaf, router);
        world.settle();
    }
    assert_eq!(world.node(router).status().realms[0].peers, 2);
}
