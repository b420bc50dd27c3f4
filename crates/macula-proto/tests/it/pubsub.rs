//! Messages go where they should, in order, once.

use std::time::Duration;

use bytes::Bytes;
use macula_proto::id::RealmId;
use macula_proto::node::{Command, DeliveryMode, Event, Qos, Role, SubscribeOptions};
use macula_proto::wire::message::RefusalCode;

use crate::world::{World, realm, topic};

#[test]
fn subscribers_get_what_matches_and_nobody_else_does() {
    let mut world = World::new();
    let router = world.router();
    let (publisher, exact, star, rest, other) = (
        world.leaf(router),
        world.leaf(router),
        world.leaf(router),
        world.leaf(router),
        world.leaf(router),
    );
    world.subscribe(exact, "house.kitchen.temperature");
    world.subscribe(star, "house.*.temperature");
    world.subscribe(rest, "house.**");
    world.subscribe(other, "garden.**");
    world.settle();
    world.publish(publisher, "house.kitchen.temperature", Qos::AtMostOnce, "21");
    world.publish(publisher, "house.attic.temperature", Qos::AtMostOnce, "25");
    world.settle();
    assert_eq!(world.texts(exact), ["21"]);
    let mut both = world.texts(star);
    both.sort();
    assert_eq!(both, ["21", "25"]);
    assert_eq!(world.texts(rest).len(), 2);
    assert!(world.texts(other).is_empty());
    assert!(world.texts(publisher).is_empty());
}

#[test]
fn order_and_batches_survive_the_router() {
    let mut world = World::new();
    let router = world.router();
    let (publisher, subscriber) = (world.leaf(router), world.leaf(router));
    world.subscribe(subscriber, "log");
    world.settle();
    let all: Vec<String> = (0..1000).map(|number| format!("line {number}")).collect();
    for chunk in all.chunks(37) {
        world.publish_batch(publisher, "log", Qos::AtMostOnce, chunk);
    }
    world.settle();
    assert_eq!(world.texts(subscriber), all);
}

#[test]
fn a_message_comes_once_per_handle_even_when_patterns_overlap() {
    let mut world = World::new();
    let router = world.router();
    let (publisher, subscriber) = (world.leaf(router), world.leaf(router));
    let one = world.subscribe(subscriber, "a.*");
    let two = world.subscribe(subscriber, "a.**");
    world.settle();
    world.publish(publisher, "a.b", Qos::AtMostOnce, "x");
    world.settle();
    let mut got: Vec<_> =
        world.messages(subscriber).into_iter().map(|(subscription, _)| subscription).collect();
    got.sort();
    assert_eq!(got, [one, two]);
}

#[test]
fn a_publisher_hears_itself_once_if_it_subscribed() {
    let mut world = World::new();
    let router = world.router();
    let leaf = world.leaf(router);
    world.subscribe(leaf, "me");
    world.settle();
    world.publish(leaf, "me", Qos::AtLeastOnce, "x");
    world.settle();
    assert_eq!(world.texts(leaf), ["x"]);
}

#[test]
fn the_router_itself_can_publish_and_subscribe() {
    let mut world = World::new();
    let router = world.router();
    let leaf = world.leaf(router);
    world.subscribe(router, "up");
    world.subscribe(leaf, "down");
    world.settle();
    world.publish(leaf, "up", Qos::AtLeastOnce, "from leaf");
    world.publish(router, "down", Qos::AtLeastOnce, "from router");
    world.settle();
    assert_eq!(world.texts(router), ["from leaf"]);
    assert_eq!(world.texts(leaf), ["from router"]);
    assert_eq!(world.progress(router, "down"), Some((1, 1, 1)));
}

#[test]
fn realms_with_the_same_topics_never_mix() {
    let mut world = World::new();
    let router = world.add(Role::Router);
    let realms = [RealmId::of_name("com.example.red"), RealmId::of_name("com.example.blue")];
    let mut leaves = Vec::new();
    for realm in realms {
        world.join(router, realm);
    }
    for realm in realms {
        let leaf = world.add(Role::Leaf);
        world.join(leaf, realm);
        world.connect(leaf, router);
        world.settle();
        let subscription = macula_proto::id::SubscriptionId(world.number());
        let pattern = macula_proto::pubsub::Pattern::parse("**").unwrap();
        let options = SubscribeOptions::default();
        world.command(leaf, Command::Subscribe { subscription, realm, pattern, options });
        leaves.push(leaf);
    }
    world.settle();
    for (leaf, realm) in leaves.iter().zip(realms) {
        let body = Bytes::from(format!("{realm:?}"));
        world.command(
            *leaf,
            Command::Publish {
                realm,
                topic: topic("same.name"),
                qos: Qos::AtLeastOnce,
                retain: true,
                count: 1,
                body,
            },
        );
    }
    world.settle();
    for (leaf, realm) in leaves.iter().zip(realms) {
        assert_eq!(world.texts(*leaf), [format!("{realm:?}")]);
    }
}

#[test]
fn publishing_into_a_realm_one_is_not_in_is_refused() {
    let mut world = World::new();
    let router = world.router();
    let leaf = world.leaf(router);
    let elsewhere = RealmId::of_name("com.example.elsewhere");
    let publish = Command::Publish {
        realm: elsewhere,
        topic: topic("a"),
        qos: Qos::AtMostOnce,
        retain: false,
        count: 1,
        body: Bytes::from_static(b"x"),
    };
    world.command(leaf, publish);
    assert!(world.has(leaf, |event| matches!(
        event,
        Event::PublishRefused { code: RefusalCode::UnknownRealm, .. }
    )));
}

#[test]
fn a_retained_message_greets_those_who_come_later() {
    let mut world = World::new();
    let router = world.router();
    let (publisher, late) = (world.leaf(router), world.leaf(router));
    world.publish_bytes(publisher, "state", Qos::AtMostOnce, true, b"old".to_vec());
    world.publish_bytes(publisher, "state", Qos::AtMostOnce, true, b"on".to_vec());
    world.settle();
    let first = world.subscribe(late, "state");
    world.settle();
    assert_eq!(world.messages(late), [(first, "on".to_owned())]);
    assert!(world.deliveries(late).all(|delivery| delivery.retained));
    // a second handle of the same node gets it too, the first one not again
    let second = world.subscribe(late, "*");
    world.settle();
    assert_eq!(world.messages(late).last(), Some(&(second, "on".to_owned())));
    assert_eq!(world.messages(late).len(), 2);
    // an empty message takes it away
    world.publish_bytes(publisher, "state", Qos::AtMostOnce, true, Vec::new());
    world.settle();
    let before = world.messages(late).len();
    world.subscribe(late, "state");
    world.settle();
    assert_eq!(world.messages(late).len(), before);
}

#[test]
fn a_restarted_router_learns_retained_messages_from_their_publishers() {
    let mut world = World::new();
    let router = world.router();
    let publisher = world.leaf(router);
    world.publish_bytes(publisher, "state", Qos::AtLeastOnce, true, b"on".to_vec());
    world.settle();
    world.restart(router);
    world.join(router, realm());
    world.connect(publisher, router);
    world.settle();
    let late = world.leaf(router);
    world.subscribe(late, "state");
    world.settle();
    assert_eq!(world.texts(late), ["on"]);
}

#[test]
fn large_messages_keep_their_place() {
    let mut world = World::new();
    let router = world.router();
    let (publisher, subscriber) = (world.leaf(router), world.leaf(router));
    world.subscribe(subscriber, "mixed");
    world.settle();
    let mut sent = Vec::new();
    for round in 0..20 {
        let size = [10, 200_000, 20, 3_000_000, 70_000][round % 5];
        let payload = format!("{round:06}").repeat(size / 6 + 1);
        let qos = if round % 2 == 0 { Qos::AtMostOnce } else { Qos::AtLeastOnce };
        world.publish(publisher, "mixed", qos, &payload);
        sent.push(payload);
    }
    world.run_for(Duration::from_secs(2));
    let got = world.texts(subscriber);
    assert_eq!(got.len(), sent.len());
    assert!(got == sent, "order or content differs");
    assert_eq!(world.progress(publisher, "mixed"), Some((20, 20, 1)));
}

#[test]
fn a_large_message_does_not_hold_back_other_topics() {
    let mut world = World::new();
    let router = world.router();
    let (publisher, subscriber) = (world.leaf(router), world.leaf(router));
    world.subscribe(subscriber, "**");
    world.settle();
    world.publish(publisher, "big", Qos::AtMostOnce, &"x".repeat(8_000_000));
    world.publish(publisher, "small", Qos::AtMostOnce, "first");
    world.publish(publisher, "big", Qos::AtMostOnce, "after");
    world.settle();
    let lengths: Vec<usize> = world.texts(subscriber).iter().map(String::len).collect();
    assert_eq!(lengths, [5, 8_000_000, 5]);
}

#[test]
fn a_message_over_the_limit_is_refused() {
    let mut world = World::new();
    let router = world.router();
    let leaf = world.leaf(router);
    world.publish_bytes(leaf, "big", Qos::AtMostOnce, false, vec![0; 8 * 1024 * 1024 + 1]);
    assert!(world.has(leaf, |event| matches!(
        event,
        Event::PublishRefused { code: RefusalCode::TooLarge, .. }
    )));
}

#[test]
fn latest_only_never_goes_back() {
    let mut world = World::new();
    let router = world.router();
    let (publisher, subscriber) = (world.leaf(router), world.leaf(router));
    let mut options = SubscribeOptions::default();
    options.mode = DeliveryMode::LatestOnly;
    world.subscribe_with(subscriber, "v", options);
    world.settle();
    for value in 0..50 {
        world.publish(publisher, "v", Qos::AtMostOnce, &value.to_string());
    }
    world.settle();
    let firsts: Vec<u64> = world.deliveries(subscriber).map(|delivery| delivery.first).collect();
    assert!(firsts.is_sorted());
    assert_eq!(world.texts(subscriber).last().map(String::as_str), Some("49"));
}

#[test]
fn unsubscribing_ends_it_at_the_router_too() {
    let mut world = World::new();
    let router = world.router();
    let (publisher, subscriber) = (world.leaf(router), world.leaf(router));
    let subscription = world.subscribe(subscriber, "a");
    world.settle();
    world.command(subscriber, Command::Unsubscribe { subscription });
    world.settle();
    world.publish(publisher, "a", Qos::AtLeastOnce, "x");
    world.settle();
    assert!(world.texts(subscriber).is_empty());
    assert_eq!(world.progress(publisher, "a"), Some((1, 1, 0)), "nobody is subscribed");
    assert_eq!(world.node(router).status().realms[0].subscriptions, 0);
}

#[test]
fn a_flush_ends_when_the_router_has_everything() {
    let mut world = World::new();
    let router = world.router();
    let leaf = world.leaf(router);
    for number in 0..100 {
        world.publish(leaf, &format!("t{number}"), Qos::AtMostOnce, "x");
    }
    world.publish(leaf, "big", Qos::AtMostOnce, &"x".repeat(1_000_000));
    world.command(leaf, Command::Flush { id: 4 });
    assert!(!world.has(leaf, |event| matches!(event, Event::Flushed { .. })));
    world.settle();
    assert!(world.has(leaf, |event| *event == Event::Flushed { id: 4 }));
    assert_eq!(world.node(router).stats().messages_in, 101);
}

#[test]
fn names_with_many_segments_are_refused() {
    let name = vec!["s"; 10_000].join(".");
    assert!(macula_proto::pubsub::Topic::parse(&name).is_err());
    assert!(macula_proto::pubsub::Pattern::parse(&name).is_err());
}

#[test]
fn a_large_message_does_not_overtake_what_its_lane_still_holds() {
    let mut world = World::new();
    let router = world.router();
    let (publisher, subscriber) = (world.leaf(router), world.leaf(router));
    world.subscribe(subscriber, "mixed");
    world.settle();
    // the lanes stand still, streams of their own do not
    world.deaf(subscriber, router, true);
    world.publish(publisher, "mixed", Qos::AtMostOnce, "small");
    world.publish(publisher, "mixed", Qos::AtMostOnce, &"x".repeat(100_000));
    world.settle();
    assert!(world.texts(subscriber).is_empty());
    world.deaf(subscriber, router, false);
    world.settle();
    let lengths: Vec<usize> = world.texts(subscriber).iter().map(String::len).collect();
    assert_eq!(lengths, [5, 100_000]);
}

#[test]
fn large_messages_of_several_publishers_on_one_topic_all_arrive() {
    let mut world = World::new();
    let router = world.router();
    let (one, two, subscriber) = (world.leaf(router), world.leaf(router), world.leaf(router));
    world.subscribe(subscriber, "mixed");
    world.settle();
    for _ in 0..5 {
        for publisher in [one, two] {
            world.publish(publisher, "mixed", Qos::AtLeastOnce, &"x".repeat(100_000));
            world.publish(publisher, "mixed", Qos::AtLeastOnce, "small");
        }
        world.run_for(Duration::from_millis(3));
    }
    // one after the other, each with a round trip or two
    world.run_for(Duration::from_secs(1));
    assert_eq!(world.texts(subscriber).len(), 20);
    for publisher in [one, two] {
        assert_eq!(world.progress(publisher, "mixed"), Some((10, 10, 1)));
    }
}

#[test]
fn a_retained_message_does_not_push_out_what_leads_up_to_it() {
    let mut world = World::new();
    let router = world.router();
    let (publisher, subscriber) = (world.leaf(router), world.leaf(router));
    world.subscribe(subscriber, "log");
    world.settle();
    // its lanes stand still, but a large retained message comes on a stream of its own
    world.deaf(subscriber, router, true);
    for text in ["one", "two"] {
        world.publish(publisher, "log", Qos::AtLeastOnce, text);
    }
    let large = vec![b'x'; 100_000];
    world.publish_bytes(publisher, "log", Qos::AtLeastOnce, true, large.clone());
    world.settle();
    let late = world.subscribe(subscriber, "**");
    world.settle();
    world.deaf(subscriber, router, false);
    world.settle();
    let large = String::from_utf8(large).unwrap();
    let got = world.messages(subscriber).into_iter();
    let got: Vec<String> =
        got.filter(|(number, _)| *number != late).map(|(_, text)| text).collect();
    assert!(got == ["one", "two", &large], "{} messages came", got.len());
}

#[test]
fn a_flush_that_waits_for_a_large_message_ends_when_the_link_breaks() {
    let mut world = World::new();
    let router = world.router();
    let (publisher, subscriber) = (world.leaf(router), world.leaf(router));
    world.subscribe(subscriber, "log");
    world.settle();
    world.bulk_deaf(router, publisher, true);
    world.publish(publisher, "log", Qos::AtMostOnce, &"x".repeat(100_000));
    world.command(publisher, Command::Flush { id: 7 });
    world.settle();
    assert!(!world.has(publisher, |event| matches!(event, Event::Flushed { id: 7 })));
    world.cut(publisher, router);
    assert!(world.has(publisher, |event| matches!(event, Event::Flushed { id: 7 })));
}

#[test]
fn a_subscription_that_ended_when_the_link_broke_is_forgotten_on_the_next_one() {
    let mut world = World::new();
    let router = world.router();
    let subscriber = world.leaf(router);
    let subscription = world.subscribe(subscriber, "log");
    world.settle();
    world.command(subscriber, Command::Unsubscribe { subscription });
    world.cut(subscriber, router);
    assert_eq!(world.node(router).status().realms[0].subscriptions, 1);
    world.connect(subscriber, router);
    world.settle();
    assert_eq!(world.node(router).status().realms[0].subscriptions, 0);
}
