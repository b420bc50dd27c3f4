//! Subscribers that do not keep up, and what that does to others.

use std::time::Duration;

use macula_proto::node::{Event, Input, LossReason, Qos, SubscribeOptions};
use macula_proto::wire::message::SlowPolicy;

use crate::world::{Who, World};

fn with_policy(policy: SlowPolicy) -> SubscribeOptions {
    let mut options = SubscribeOptions::default();
    options.policy = policy;
    options
}

fn small() -> World {
    World::new().tuned(|config| config.lane_queue_bytes_max = 400_000)
}

fn flood(world: &mut World, publisher: Who, messages: usize) {
    let payload = "x".repeat(10_000);
    for number in 0..messages {
        world.publish(publisher, "flood", Qos::AtMostOnce, &payload);
        if number % 10 == 9 {
            world.run_for(Duration::from_millis(11));
        }
    }
    world.settle();
}

#[test]
fn drop_oldest_drops_for_the_slow_one_alone_and_both_ends_know() {
    let mut world = small();
    let router = world.router();
    let (publisher, slow, quick) = (world.leaf(router), world.leaf(router), world.leaf(router));
    world.subscribe(slow, "flood");
    world.subscribe(quick, "flood");
    world.settle();
    world.deaf(slow, router, true);
    flood(&mut world, publisher, 500);
    assert_eq!(world.texts(quick).len(), 500);
    let dropped = world.node(router).stats().dropped_slow;
    assert!(dropped > 300, "{dropped}");
    assert_eq!(world.node(router).status().links[1].dropped, dropped);
    assert!(world.node(router).status().links[1].queued_bytes <= 400_000);
    world.deaf(slow, router, false);
    world.settle();
    assert_eq!(world.texts(slow).len() as u64, 500 - dropped);
    let told: u64 = world.sims[slow]
        .events
        .iter()
        .filter_map(|(_, event)| match event {
            Event::Lost { messages, reason: LossReason::SlowHere, .. } => Some(*messages),
            _ => None,
        })
        .sum();
    assert_eq!(told, dropped);
}

#[test]
fn block_makes_the_publisher_wait_and_loses_nothing() {
    let mut world = small();
    let router = world.router();
    let (publisher, slow) = (world.leaf(router), world.leaf(router));
    world.subscribe_with(slow, "flood", with_policy(SlowPolicy::Block));
    world.settle();
    world.deaf(slow, router, true);
    let payload = "x".repeat(10_000);
    let mut published = 0;
    while published < 5_000 {
        if !world.room(publisher, "flood", Qos::AtMostOnce) {
            break;
        }
        world.publish(publisher, "flood", Qos::AtMostOnce, &payload);
        published += 1;
        if published % 10 == 0 {
            world.run_for(Duration::from_millis(11));
        }
    }
    assert!(published < 500, "the publisher never waited");
    world.deaf(slow, router, false);
    world.settle();
    assert!(world.room(publisher, "flood", Qos::AtMostOnce));
    assert_eq!(world.texts(slow).len(), published);
    assert_eq!(world.node(router).stats().dropped_slow, 0);
}

#[test]
fn a_blocking_subscriber_that_hangs_is_cut_off_after_its_patience() {
    let mut world = small();
    let router = world.router();
    let (publisher, hung) = (world.leaf(router), world.leaf(router));
    world.subscribe(hung, "log");
    world.settle();
    world.deaf(hung, router, true);
    world.publish(publisher, "log", Qos::AtLeastOnce, "x");
    world.run_for(Duration::from_secs(9));
    assert_eq!(world.progress(publisher, "log"), Some((1, 0, 1)));
    world.run_for(Duration::from_secs(3));
    assert_eq!(world.progress(publisher, "log").unwrap().1, 1);
    assert_eq!(world.node(router).stats().stalled_links, 1);
    assert!(world.has(hung, |event| matches!(event, Event::LinkLost { .. })));
}

#[test]
fn a_blocking_subscriber_that_hangs_without_acknowledgements_is_cut_off_too() {
    let mut world = small();
    let router = world.router();
    let (publisher, hung) = (world.leaf(router), world.leaf(router));
    world.subscribe_with(hung, "flood", with_policy(SlowPolicy::Block));
    world.settle();
    world.deaf(hung, router, true);
    let payload = "x".repeat(10_000);
    while world.room(publisher, "flood", Qos::AtMostOnce) {
        world.publish(publisher, "flood", Qos::AtMostOnce, &payload);
        world.run_for(Duration::from_millis(1));
    }
    world.run_for(Duration::from_secs(12));
    assert_eq!(world.node(router).stats().stalled_links, 1);
    assert!(world.room(publisher, "flood", Qos::AtMostOnce));
}

#[test]
fn what_waits_behind_a_large_message_is_bounded_and_goes_on() {
    let mut world = small();
    let router = world.router();
    let (publisher, slow) = (world.leaf(router), world.leaf(router));
    world.subscribe(slow, "**");
    world.settle();
    world.bulk_deaf(slow, router, true);
    let large = "x".repeat(100_000);
    for number in 0..30 {
        world.publish(publisher, "flood", Qos::AtMostOnce, &large);
        world.publish(publisher, &format!("flood.{number}"), Qos::AtMostOnce, &large);
        world.settle();
    }
    let small = "x".repeat(1000);
    for number in 0..2_000 {
        world.publish(publisher, "flood", Qos::AtMostOnce, &small);
        if number % 100 == 0 {
            world.settle();
        }
    }
    let waiting = world.node(router).status().links[1].queued_bytes;
    // eight large ones may be under way beside
    assert!(waiting <= 400_000 + 8 * 101_000, "{waiting}");
    world.bulk_deaf(slow, router, false);
    world.settle();
    let dropped = world.node(router).stats().dropped_slow;
    assert_eq!(world.texts(slow).len() as u64 + dropped, 2_060);
    for name in (0..30).map(|number| format!("flood.{number}")).chain(["flood".to_owned()]) {
        world.publish(publisher, &name, Qos::AtMostOnce, "last");
        world.settle();
        assert_eq!(world.texts(slow).last().unwrap(), "last", "{name}");
        world.take_events(slow);
    }
}

#[test]
fn disconnect_closes_the_link_of_the_slow_one() {
    let mut world = small();
    let router = world.router();
    let (publisher, slow) = (world.leaf(router), world.leaf(router));
    world.subscribe_with(slow, "flood", with_policy(SlowPolicy::Disconnect));
    world.settle();
    world.deaf(slow, router, true);
    flood(&mut world, publisher, 200);
    assert!(world.has(slow, |event| matches!(event, Event::LinkLost { .. })));
    assert_eq!(world.node(router).stats().stalled_links, 1);
}

#[test]
fn a_slow_application_stops_what_feeds_it_and_nothing_else() {
    let mut world = small();
    let router = world.router();
    let (publisher, subscriber) = (world.leaf(router), world.leaf(router));
    let slow = world.subscribe_with(subscriber, "flood", with_policy(SlowPolicy::Block));
    world.serve_echo(subscriber, "echo");
    world.settle();
    world.input(subscriber, Input::HandleFull { subscription: slow });
    let payload = "x".repeat(10_000);
    let mut published = 0;
    while published < 5_000 && world.room(publisher, "flood", Qos::AtMostOnce) {
        world.publish(publisher, "flood", Qos::AtMostOnce, &payload);
        published += 1;
        world.run_for(Duration::from_millis(1));
    }
    assert!(published < 1_000, "the publisher never waited");
    let call = world.call(publisher, "echo", "still there?");
    world.settle();
    assert_eq!(world.result(publisher, call), Some(Ok("still there?".to_owned())));
    world.input(subscriber, Input::HandleReady { subscription: slow });
    world.settle();
    assert_eq!(world.texts(subscriber).len(), published);
}
