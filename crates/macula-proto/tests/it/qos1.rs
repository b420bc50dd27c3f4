//! Nothing acknowledged is lost, nothing comes twice, whoever breaks.

use std::time::Duration;

use bytes::Bytes;
use macula_proto::id::LinkId;
use macula_proto::node::{Command, Config, Event, Input, Node, Qos, Role};
use macula_proto::wire::message::{Hello, Message, Publish};
use macula_proto::wire::{self, Channel};
use macula_proto::{EndpointId, Time};

use crate::world::{Who, World, raw, realm};

fn lines(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("line {number}")).collect()
}

fn publish_lines(world: &mut World, who: Who, lines: &[String]) {
    for chunk in lines.chunks(10) {
        world.publish_batch(who, "log", Qos::AtLeastOnce, chunk);
    }
}

#[test]
fn accepted_and_delivered_are_told_apart() {
    let mut world = World::new();
    let router = world.router();
    let (publisher, subscriber) = (world.leaf(router), world.leaf(router));
    world.subscribe(subscriber, "log");
    world.settle();
    world.deaf(subscriber, router, true);
    world.publish(publisher, "log", Qos::AtLeastOnce, "x");
    world.settle();
    assert_eq!(world.progress(publisher, "log"), Some((1, 0, 1)), "accepted, not delivered");
    world.deaf(subscriber, router, false);
    world.settle();
    assert_eq!(world.progress(publisher, "log"), Some((1, 1, 1)));
}

#[test]
fn a_broken_subscriber_link_loses_nothing() {
    let mut world = World::new();
    let router = world.router();
    let (publisher, subscriber) = (world.leaf(router), world.leaf(router));
    world.subscribe(subscriber, "log");
    world.settle();
    let all = lines(300);
    publish_lines(&mut world, publisher, &all[..100]);
    world.cut(subscriber, router);
    publish_lines(&mut world, publisher, &all[100..200]);
    world.run_for(Duration::from_secs(5));
    let delivered = world.progress(publisher, "log").unwrap().1;
    assert!(delivered < 200, "not called delivered while the subscriber is away: {delivered}");
    world.connect(subscriber, router);
    publish_lines(&mut world, publisher, &all[200..]);
    world.settle();
    assert_eq!(world.texts(subscriber), all);
    assert_eq!(world.progress(publisher, "log"), Some((300, 300, 1)));
}

#[test]
fn a_broken_publisher_link_loses_nothing() {
    let mut world = World::new();
    let router = world.router();
    let (publisher, subscriber) = (world.leaf(router), world.leaf(router));
    world.subscribe(subscriber, "log");
    world.settle();
    let all = lines(300);
    publish_lines(&mut world, publisher, &all[..100]);
    world.cut(publisher, router);
    assert!(world.room(publisher, "log", Qos::AtLeastOnce), "it may go on without a router");
    publish_lines(&mut world, publisher, &all[100..200]);
    world.settle();
    world.connect(publisher, router);
    publish_lines(&mut world, publisher, &all[200..]);
    world.settle();
    assert_eq!(world.texts(subscriber), all);
    assert_eq!(world.progress(publisher, "log"), Some((300, 300, 1)));
}

/// The router forgets everything in the middle; the order of return differs.
fn router_restart(publisher_first: bool) {
    let mut world = World::new();
    let router = world.router();
    let publisher = world.leaf(router);
    let subscribers = [world.leaf(router), world.leaf(router)];
    for subscriber in subscribers {
        world.subscribe(subscriber, "log");
    }
    world.settle();
    let all = lines(3000);
    publish_lines(&mut world, publisher, &all[..1000]);
    // some are with the subscribers, some only in the router, some under way
    world.run_for(Duration::from_millis(7));
    publish_lines(&mut world, publisher, &all[1000..1500]);
    world.run_for(Duration::from_millis(6));
    world.restart(router);
    world.join(router, realm());
    publish_lines(&mut world, publisher, &all[1500..2000]);
    if publisher_first {
        world.connect(publisher, router);
        world.run_for(Duration::from_secs(2));
        publish_lines(&mut world, publisher, &all[2000..2500]);
        world.run_for(Duration::from_secs(2));
        let (accepted, delivered, _) = world.progress(publisher, "log").unwrap();
        assert_eq!(accepted, 2500);
        assert!(delivered < 1600, "the subscribers are not back: {delivered}");
    }
    for subscriber in subscribers {
        world.connect(subscriber, router);
    }
    if !publisher_first {
        world.settle();
        world.connect(publisher, router);
        publish_lines(&mut world, publisher, &all[2000..2500]);
    }
    publish_lines(&mut world, publisher, &all[2500..]);
    world.run_for(Duration::from_secs(15));
    for subscriber in subscribers {
        assert_eq!(world.texts(subscriber), all);
    }
    assert_eq!(world.progress(publisher, "log"), Some((3000, 3000, 2)));
}

#[test]
fn a_router_restart_loses_nothing_when_the_publisher_returns_first() {
    router_restart(true);
}

#[test]
fn a_router_restart_loses_nothing_when_the_subscribers_return_first() {
    router_restart(false);
}

#[test]
fn after_a_restart_nobody_waits_longer_than_for_the_last_subscriber() {
    let mut world = World::new();
    let router = world.router();
    let (publisher, one, two) = (world.leaf(router), world.leaf(router), world.leaf(router));
    world.subscribe(one, "log");
    world.subscribe(two, "log");
    world.settle();
    world.deaf(two, router, true);
    publish_lines(&mut world, publisher, &lines(100));
    world.settle();
    world.restart(router);
    world.join(router, realm());
    world.connect(publisher, router);
    world.connect(one, router);
    world.settle();
    let (accepted, delivered, _) = world.progress(publisher, "log").unwrap();
    assert_eq!((accepted, delivered), (100, 0), "one of two is back");
    world.connect(two, router);
    world.settle();
    assert_eq!(world.progress(publisher, "log"), Some((100, 100, 2)));
    assert_eq!(world.texts(two), lines(100));
}

#[test]
fn after_a_restart_a_subscriber_that_came_back_and_left_is_not_waited_for() {
    let mut world = World::new();
    let router = world.router();
    let (publisher, one, two) = (world.leaf(router), world.leaf(router), world.leaf(router));
    world.subscribe(one, "log");
    world.subscribe(two, "log");
    world.settle();
    publish_lines(&mut world, publisher, &lines(10));
    world.settle();
    world.restart(router);
    world.join(router, realm());
    publish_lines(&mut world, publisher, &lines(10));
    for leaf in [publisher, one, two] {
        world.connect(leaf, router);
    }
    world.deaf(two, router, true);
    world.settle();
    let done = wire::message::CloseCode::Done;
    let reason = "has all it wanted".to_owned();
    let reconnect_window = Duration::ZERO;
    world.command(one, Command::Shutdown { code: done, reason, reconnect_window });
    world.settle();
    assert_eq!(world.progress(publisher, "log").unwrap().1, 10, "one has not taken them");
    world.deaf(two, router, false);
    world.settle();
    assert_eq!(world.progress(publisher, "log").unwrap().1, 20);
}

#[test]
fn after_a_restart_subscribers_need_not_be_back_at_the_same_time() {
    let mut world = World::new();
    let router = world.router();
    let (publisher, one, two) = (world.leaf(router), world.leaf(router), world.leaf(router));
    let subscription = world.subscribe(one, "log");
    world.subscribe(two, "log");
    world.settle();
    publish_lines(&mut world, publisher, &lines(10));
    world.settle();
    world.restart(router);
    world.join(router, realm());
    publish_lines(&mut world, publisher, &lines(10));
    world.connect(publisher, router);
    world.connect(one, router);
    world.settle();
    assert_eq!(world.progress(publisher, "log").unwrap().1, 10, "the other is not back");
    // as a program does that has seen enough
    world.command(one, Command::Unsubscribe { subscription });
    let done = wire::message::CloseCode::Done;
    let reason = "has all it wanted".to_owned();
    let reconnect_window = Duration::ZERO;
    world.command(one, Command::Shutdown { code: done, reason, reconnect_window });
    world.settle();
    // one that is new does not count, however often it comes and goes
    let new = world.leaf(router);
    for _ in 0..5 {
        let subscription = world.subscribe(new, "log");
        world.settle();
        world.command(new, Command::Unsubscribe { subscription });
        world.settle();
    }
    assert_eq!(world.progress(publisher, "log").unwrap().1, 10, "the other is not back");
    world.connect(two, router);
    world.settle();
    assert_eq!(world.progress(publisher, "log").unwrap().1, 20);
}

#[test]
fn a_publisher_with_nothing_under_way_does_not_wait_either() {
    let mut world = World::new();
    let router = world.router();
    let (publisher, subscriber) = (world.leaf(router), world.leaf(router));
    world.subscribe(subscriber, "log");
    world.settle();
    world.publish(publisher, "log", Qos::AtLeastOnce, "before");
    world.settle();
    world.restart(router);
    world.join(router, realm());
    world.connect(publisher, router);
    world.connect(subscriber, router);
    world.settle();
    world.publish(publisher, "log", Qos::AtLeastOnce, "after");
    world.settle();
    assert_eq!(world.progress(publisher, "log"), Some((2, 2, 1)));
    assert_eq!(world.texts(subscriber), ["before", "after"]);
}

#[test]
fn a_subscriber_that_does_not_return_is_given_up() {
    let mut world = World::new();
    let router = world.router();
    let (publisher, gone) = (world.leaf(router), world.leaf(router));
    world.subscribe(gone, "log");
    world.settle();
    world.publish(publisher, "log", Qos::AtLeastOnce, "a");
    world.cut(gone, router);
    world.publish(publisher, "log", Qos::AtLeastOnce, "b");
    world.run_for(Duration::from_secs(9));
    assert_eq!(world.progress(publisher, "log"), Some((2, 0, 1)));
    world.run_for(Duration::from_secs(3));
    assert_eq!(world.progress(publisher, "log").unwrap().1, 2, "nobody is waited for");
    assert_eq!(world.node(router).stats().abandoned, 2);
    assert_eq!(world.node(router).status().realms[0].subscriptions, 0);
}

#[test]
fn the_ring_empties_itself() {
    let mut world = World::new();
    let router = world.router();
    let publisher = world.leaf(router);
    publish_lines(&mut world, publisher, &lines(1000));
    world.settle();
    assert!(world.node(router).status().realms[0].ring_bytes > 0);
    world.run_for(Duration::from_secs(61));
    assert_eq!(world.node(router).status().realms[0].ring_bytes, 0);
}

#[test]
fn the_ring_stays_within_its_limit_and_the_publisher_waits() {
    let mut world = World::new().tuned(|config| {
        config.ring_bytes_max = 200_000;
        config.unconfirmed_bytes_max = 100_000;
    });
    let router = world.router();
    let (publisher, slow) = (world.leaf(router), world.leaf(router));
    world.subscribe(slow, "log");
    world.settle();
    world.deaf(slow, router, true);
    let mut published = 0;
    while world.room(publisher, "log", Qos::AtLeastOnce) && published < 100_000 {
        world.publish(publisher, "log", Qos::AtLeastOnce, &"x".repeat(1000));
        published += 1;
    }
    world.settle();
    assert!((75..=110).contains(&published), "the publisher waits: {published}");
    assert!(world.node(router).status().realms[0].ring_bytes <= 2 * 200_000);
    world.deaf(slow, router, false);
    world.settle();
    assert!(world.room(publisher, "log", Qos::AtLeastOnce));
    assert_eq!(world.texts(slow).len(), published);
}

#[test]
fn a_restarted_subscriber_starts_afresh() {
    let mut world = World::new();
    let router = world.router();
    let (publisher, subscriber) = (world.leaf(router), world.leaf(router));
    world.subscribe(subscriber, "log");
    world.settle();
    world.publish(publisher, "log", Qos::AtLeastOnce, "before");
    world.settle();
    world.restart(subscriber);
    world.take_events(subscriber);
    world.join(subscriber, realm());
    world.connect(subscriber, router);
    world.settle();
    world.subscribe(subscriber, "log");
    world.settle();
    world.publish(publisher, "log", Qos::AtLeastOnce, "after");
    world.settle();
    assert_eq!(world.texts(subscriber), ["after"]);
    assert_eq!(world.progress(publisher, "log"), Some((2, 2, 1)));
}

#[test]
fn a_restarted_publisher_counts_from_its_new_epoch() {
    let mut world = World::new();
    let router = world.router();
    let (publisher, subscriber) = (world.leaf(router), world.leaf(router));
    world.subscribe(subscriber, "log");
    world.settle();
    world.publish(publisher, "log", Qos::AtLeastOnce, "one");
    world.settle();
    world.restart(publisher);
    world.join(publisher, realm());
    world.connect(publisher, router);
    world.publish(publisher, "log", Qos::AtLeastOnce, "two");
    world.settle();
    assert_eq!(world.texts(subscriber), ["one", "two"]);
    assert!(!world.has(subscriber, |event| matches!(event, Event::Lost { .. })));
}

#[test]
fn a_message_that_overtakes_the_admission_is_taken() {
    let now = Time::from_micros(1);
    let mut leaf = Node::new(EndpointId::from_bytes([1; 32]), Config::new(Role::Leaf, 1), [0; 32]);
    leaf.handle_input(now, Input::Command(Command::Join { realm: realm(), grant: Bytes::new() }));
    let subscribe = Command::Subscribe {
        subscription: macula_proto::id::SubscriptionId(1),
        realm: realm(),
        pattern: macula_proto::pubsub::Pattern::parse("log").unwrap(),
        options: Default::default(),
    };
    leaf.handle_input(now, Input::Command(subscribe));
    let remote = "192.0.2.1:4433".parse().unwrap();
    let (link, peer) = (LinkId(1), EndpointId::from_bytes([9; 32]));
    leaf.handle_input(now, Input::LinkUp { link, peer, dialled: true, remote });
    let hello = Message::Hello(Hello {
        version_min: 1,
        version_max: 1,
        capabilities: 0,
        is_router: true,
        instance: 7,
        resumes: 0,
        observed: String::new(),
        agent: String::new(),
        realms: Vec::new(),
    });
    let publish = Message::Publish(Publish {
        realm: realm().tag(),
        publisher: EndpointId::from_bytes([2; 32]),
        epoch: 1,
        first: 1,
        count: 1,
        ttl: 19,
        qos1: true,
        retain: false,
        start: true,
        topic: Bytes::from_static(b"log"),
        body: Bytes::from_static(b"x"),
    });
    // the answer to the realms that the leaf asked for is lost and comes again later
    let lane = Channel::Lane(wire::lane_of(b"log"));
    for (channel, message) in [(Channel::Control, hello), (lane, publish)] {
        let frame = raw(&wire::encode(&message));
        leaf.handle_input(now, Input::Frame { link, channel, frame });
    }
    let events: Vec<Event> = std::iter::from_fn(|| leaf.poll_event()).collect();
    assert!(events.iter().any(|event| matches!(event, Event::Deliver(_))), "{events:?}");
}

#[test]
fn a_message_that_two_resumed_subscriptions_brought_twice_is_owed_once_on_the_next_link() {
    let mut world = World::new();
    let router = world.router();
    let (publisher, subscriber) = (world.leaf(router), world.leaf(router));
    let (one, _) = (world.subscribe(subscriber, "log"), world.subscribe(subscriber, "**"));
    world.settle();
    world.restart(router);
    world.join(router, realm());
    world.connect(publisher, router);
    world.settle();
    publish_lines(&mut world, publisher, &lines(10));
    world.settle();
    world.connect(subscriber, router);
    world.deaf(subscriber, router, true);
    world.settle();
    world.cut(subscriber, router);
    world.connect(subscriber, router);
    world.run_for(Duration::from_secs(15));
    let got =
        world.messages(subscriber).into_iter().filter(|(subscription, _)| *subscription == one);
    assert_eq!(got.map(|(_, text)| text).collect::<Vec<_>>(), lines(10));
    assert_eq!(world.progress(publisher, "log"), Some((10, 10, 1)));
}

#[test]
fn what_comes_while_a_link_is_being_closed_waits_for_the_next_one() {
    let mut world = World::new();
    let router = world.router();
    let (publisher, subscriber) = (world.leaf(router), world.leaf(router));
    world.subscribe(subscriber, "log");
    world.settle();
    world.closes_hang(true);
    // the subscriber breaks the protocol: its link is to be closed, which takes a while
    let peer = world.sims[subscriber].id;
    let status = world.node(router).status();
    let link = status.links.iter().find(|link| link.peer == peer).unwrap().link;
    let frame = raw(&wire::encode(&Message::BulkAck { id: 99 }));
    world.input(router, Input::Frame { link, channel: Channel::Control, frame });
    publish_lines(&mut world, publisher, &lines(10));
    world.settle();
    world.cut(subscriber, router);
    world.connect(subscriber, router);
    world.settle();
    assert_eq!(world.texts(subscriber), lines(10));
    assert_eq!(world.progress(publisher, "log"), Some((10, 10, 1)));
}

#[test]
fn empty_messages_use_up_the_publishers_memory_too() {
    let mut world = World::new().tuned(|config| config.unconfirmed_bytes_max = 100_000);
    let router = world.router();
    let publisher = world.leaf(router);
    world.cut(publisher, router);
    let mut published = 0;
    while published < 10_000 && world.room(publisher, "log", Qos::AtLeastOnce) {
        world.publish(publisher, "log", Qos::AtLeastOnce, "");
        published += 1;
    }
    assert!(published < 1_000, "{published}");
    world.connect(publisher, router);
    world.settle();
    assert!(world.room(publisher, "log", Qos::AtLeastOnce));
}
