//! What hostile peers try against guarded realms and quotas.

use std::time::Duration;

use bytes::Bytes;
use macula_proto::auth::UnixTime;
use macula_proto::id::{LinkId, RealmId};
use macula_proto::node::{Action, Admission, Command, Event, Input, Qos, Role, StreamEnd};
use macula_proto::wire::Channel;
use macula_proto::wire::message::{
    Message, Publish, RealmOffer, RefusalCode, SlowPolicy, Subscribe,
};
use macula_proto::{EndpointId, wire};

use crate::grants::{ALL, Alone, NOON, grant, guarded, leaf, member, offer, world};
use crate::world::{World, raw};

/// A record that revokes the endpoint of the node `who`.
fn record(sequence: u64, who: usize) -> Bytes {
    Bytes::from(format!("record\nsequence {sequence}\nendpoint {}", who + 1))
}

#[test]
fn what_was_revoked_stays_so_when_everybody_has_left() {
    let mut router = Alone::new(|config| config.admission = Admission::AnyOpen);
    router.node.handle_input(router.now, Input::WallClock { unix: NOON });
    assert_eq!(router.offer(1, vec![offer(0)]), [None]);
    assert_eq!(router.offer(2, vec![offer(1)]), [None]);
    router.node.handle_input(router.now, Input::Command(Command::Revoke { record: record(1, 1) }));
    let down = |link| Input::LinkDown { link: LinkId(link), reason: "gone".to_owned() };
    router.node.handle_input(router.now, down(2));
    router.node.handle_input(router.now, down(1));
    // the last member's session ends
    router.now = router.now + Duration::from_secs(60);
    router.node.handle_timeout(router.now);
    let refusal = router.offer(2, vec![offer(1)]).remove(0);
    assert!(refusal.is_some_and(|(_, text)| text.contains("revoked")));
}

#[test]
fn a_member_hears_again_after_the_clock_was_wrong_for_a_while() {
    let (mut world, router) = world();
    let (alice, bob) = (member(&mut world, router), member(&mut world, router));
    world.subscribe(bob, "a");
    world.settle();
    world.input(router, Input::WallClock { unix: UnixTime(NOON.0 - 3_600_000) });
    world.settle();
    world.publish(router, "a", Qos::AtMostOnce, "while it was wrong");
    world.settle();
    world.input(router, Input::WallClock { unix: UnixTime(NOON.0 + 1_000) });
    world.settle();
    world.publish(alice, "a", Qos::AtMostOnce, "hello");
    world.settle();
    assert_eq!(world.texts(bob), ["hello"]);
}

#[test]
fn a_renewed_grant_that_was_refused_is_shown_again_when_the_old_one_has_ended() {
    let (mut world, router) = world();
    let alice = member(&mut world, router);
    let bob = leaf(&mut world, router, |who| grant(who, 10, &ALL));
    world.subscribe(bob, "a");
    world.settle();
    // the router's clock is behind, so that new grants do not hold yet
    world.input(router, Input::WallClock { unix: UnixTime(NOON.0 - 3_600_000) });
    let renewed = grant(bob, 3_600, &ALL);
    world.command(bob, Command::Join { realm: guarded(), grant: renewed });
    world.settle();
    assert!(world.has(bob, |event| matches!(
        event,
        Event::RealmAnswered { refusal: Some(_), is_member: true, .. }
    )));
    world.input(router, Input::WallClock { unix: UnixTime(NOON.0 + 11_000) });
    world.settle();
    assert!(world.has(bob, |event| matches!(event, Event::LinkLost { .. })));
    world.connect(bob, router);
    world.settle();
    world.publish(alice, "a", Qos::AtMostOnce, "hello");
    world.settle();
    assert_eq!(world.texts(bob), ["hello"]);
}

#[test]
fn a_peer_that_comes_back_needs_no_place_among_those_who_are_away() {
    let mut router = Alone::new(|config| config.sessions_detached_max = 0);
    router.join(guarded());
    router.node.handle_input(router.now, Input::WallClock { unix: NOON });
    assert_eq!(router.offer(1, vec![offer(0)]), [None]);
    // the new link is there before the old one is known to be broken
    let link = LinkId(100);
    assert_eq!(router.offer_on(link, 1, vec![offer(0)]), [None]);
    let subscribe = Message::Subscribe(Subscribe {
        realm: guarded().tag(),
        subscription: 1,
        pattern: "a".to_owned(),
        policy: SlowPolicy::Block,
        resume: false,
        retained: false,
    });
    router.say(link, &subscribe);
    assert_eq!(router.node.status().realms[0].subscriptions, 1);
    router.node.handle_input(router.now, Input::LinkDown { link, reason: "gone".to_owned() });
    assert_eq!(router.node.status().realms[0].peers, 0);
}

#[test]
fn a_stranger_does_not_make_a_guarded_realm_wait_for_subscribers() {
    let (mut world, router) = world();
    let (alice, bob) = (member(&mut world, router), member(&mut world, router));
    world.subscribe(bob, "a");
    world.settle();
    // it was at another router before, and shows no grant here
    let (other, stranger) = (world.add(Role::Router), world.add(Role::Leaf));
    world.restart(other);
    world.join(stranger, guarded());
    world.connect(stranger, other);
    world.settle();
    world.cut(stranger, other);
    world.connect(stranger, router);
    world.settle();
    world.publish(alice, "a", Qos::AtLeastOnce, "hello");
    world.settle();
    assert_eq!(world.progress(alice, "a"), Some((1, 1, 1)));
}

#[test]
fn large_messages_of_a_peer_that_is_too_fast_are_not_read() {
    let mut router = Alone::new(|config| config.bytes_per_second_per_peer = 100_000);
    let realm = RealmId::of_name("a");
    router.join(realm);
    let open = RealmOffer { realm, grant: Bytes::new() };
    assert_eq!(router.offer(1, vec![open]), [None]);
    let publish = Publish {
        realm: realm.tag(),
        publisher: EndpointId::from_bytes([1; 32]),
        epoch: 7,
        first: 1,
        count: 1,
        ttl: 3,
        qos1: false,
        retain: false,
        start: true,
        topic: Bytes::from_static(b"a"),
        body: Bytes::from(vec![1; 100_000]),
    };
    let (link, channel) = (LinkId(1), Channel::Bulk);
    for id in 1..=3 {
        let mut publish = publish.clone();
        publish.first = id;
        let frame = raw(&wire::encode(&Message::BulkPublish { id, publish }));
        router.node.handle_input(router.now, Input::Frame { link, channel, frame });
    }
    let actions: Vec<Action> = std::iter::from_fn(|| router.node.poll_action()).collect();
    assert!(actions.contains(&Action::Pause { link, channel }), "{actions:?}");
    router.now = router.now + Duration::from_secs(10);
    router.node.handle_timeout(router.now);
    let actions: Vec<Action> = std::iter::from_fn(|| router.node.poll_action()).collect();
    assert!(actions.contains(&Action::Resume { link, channel }), "{actions:?}");
}

#[test]
fn who_does_not_wait_for_acknowledgements_of_large_messages_is_cut_off() {
    let mut router = Alone::new(|config| config.bytes_per_second_per_realm = 1_000);
    let realm = RealmId::of_name("a");
    router.join(realm);
    assert_eq!(router.offer(1, vec![RealmOffer { realm, grant: Bytes::new() }]), [None]);
    let (link, channel) = (LinkId(1), Channel::Bulk);
    for id in 1..=9 {
        let publish = Publish {
            realm: realm.tag(),
            publisher: EndpointId::from_bytes([1; 32]),
            epoch: 7,
            first: id,
            count: 1,
            ttl: 3,
            qos1: false,
            retain: false,
            start: id == 1,
            topic: Bytes::from_static(b"a"),
            body: Bytes::from(vec![1; 100_000]),
        };
        assert_eq!(router.node.stats().protocol_errors, 0, "{id}");
        let frame = raw(&wire::encode(&Message::BulkPublish { id, publish }));
        router.node.handle_input(router.now, Input::Frame { link, channel, frame });
    }
    // each is more than a second's worth and waits; eight may
    assert_eq!(router.node.stats().protocol_errors, 1);
}

#[test]
fn new_streams_do_not_help_a_peer_that_is_too_fast() {
    let mut world = World::new().tuned(|config| config.bytes_per_second_per_peer = 50_000);
    let router = world.router();
    let (fast, provider) = (world.leaf(router), world.leaf(router));
    world.register(provider, "stream", 100);
    world.settle();
    let mut ends = Vec::new();
    // a stream for every item, opened while the ones before are not read
    for _ in 0..40 {
        let call = world.call_with(fast, "stream", "", |spec| spec.streaming = true);
        let end = StreamEnd::Caller(call);
        world.run_for(Duration::from_millis(11));
        let body = Bytes::from(vec![1; 50_000]);
        world.command(fast, Command::StreamItem { end, body });
        ends.push(end);
        world.run_for(Duration::from_millis(11));
    }
    let is_item = |event: &Event| matches!(event, Event::StreamItem { .. });
    let items = world.sims[provider].events.iter().filter(|(_, event)| is_item(event)).count();
    assert!(items <= 5, "{items}");
}

#[test]
fn who_is_being_closed_for_its_memory_takes_nobody_along() {
    let mut world = World::new().tuned(|config| config.memory_bytes_max = 4_000_000);
    world.closes_hang(true);
    let router = world.router();
    let (caller, publisher) = (world.leaf(router), world.leaf(router));
    let (provider, modest) = (world.leaf(router), world.leaf(router));
    world.register(provider, "never", 1_000);
    world.subscribe(modest, "a");
    world.settle();
    world.deaf(modest, router, true);
    for _ in 0..150 {
        world.publish(publisher, "a", Qos::AtMostOnce, &"x".repeat(10_000));
        world.run_for(Duration::from_millis(1));
    }
    for _ in 0..80 {
        world.call(caller, "never", &"x".repeat(60_000));
        world.run_for(Duration::from_millis(21));
    }
    // what the caller holds goes when its link is down, which takes a moment
    for _ in 0..20 {
        world.publish(publisher, "b", Qos::AtMostOnce, "x");
        world.run_for(Duration::from_millis(21));
    }
    assert_eq!(world.node(router).stats().shed, 1);
}

#[test]
fn what_nobody_is_there_for_makes_room() {
    let mut router = Alone::new(|config| {
        config.admission = Admission::AnyOpen;
        config.memory_bytes_max = 100_000;
    });
    let mut link = 0;
    let mut publish_in = |router: &mut Alone, name: &str| {
        link += 1;
        let realm = RealmId::of_name(name);
        let open = RealmOffer { realm, grant: Bytes::new() };
        let answers = router.offer(link, vec![open]);
        if answers != [None] {
            return false;
        }
        let publish = Publish {
            realm: realm.tag(),
            publisher: EndpointId::from_bytes([link; 32]),
            epoch: 7,
            first: 1,
            count: 1,
            ttl: 3,
            qos1: false,
            retain: true,
            start: true,
            topic: Bytes::from_static(b"a"),
            body: Bytes::from(vec![1; 60_000]),
        };
        let frame = raw(&wire::encode(&Message::Publish(publish)));
        let (id, channel) = (LinkId(link.into()), Channel::Lane(wire::lane_of(b"a")));
        router.node.handle_input(router.now, Input::Frame { link: id, channel, frame });
        let down = Input::LinkDown { link: id, reason: "gone".to_owned() };
        router.node.handle_input(router.now, down);
        router.now = router.now + Duration::from_secs(60);
        router.node.handle_timeout(router.now);
        true
    };
    assert!(publish_in(&mut router, "a"));
    assert!(publish_in(&mut router, "b"));
    assert!(publish_in(&mut router, "c"), "of what is left behind some goes");
    assert!(router.node.status().held_bytes <= 130_000);
}

#[test]
fn looking_through_what_is_retained_costs_the_asker() {
    let mut world = World::new().tuned(|config| {
        config.changes_per_second = 10;
        config.subscriptions_per_link_max = 100;
        config.registrations_per_link_max = 100;
    });
    let router = world.router();
    let publisher = world.leaf(router);
    for number in 0..1_000 {
        let topic = format!("a.{number}");
        world.publish_bytes(publisher, &topic, Qos::AtMostOnce, true, b"x".to_vec());
    }
    world.settle();
    assert_eq!(world.node(router).status().realms[0].retained, 1_000);
    // 410 changes are allowed at once
    let mut rounds_of = |pattern: &str| {
        let greedy = world.leaf(router);
        for round in 0..200 {
            let subscription = world.subscribe(greedy, &pattern.replace('#', &round.to_string()));
            world.run_for(Duration::from_millis(11));
            if world.has(greedy, |event| matches!(event, Event::SubscribeRefused { .. })) {
                return round;
            }
            world.command(greedy, Command::Unsubscribe { subscription });
        }
        200
    };
    assert_eq!(rounds_of("a.#"), 200, "what is found at once costs nothing");
    let rounds = rounds_of("*.none.#");
    assert!((10..50).contains(&rounds), "{rounds}");
    assert!(rounds_of("**") < 20);
}

#[test]
fn a_grant_for_a_realm_that_is_not_here_is_not_looked_at() {
    let mut router = Alone::new(|_| {});
    router.node.handle_input(router.now, Input::WallClock { unix: NOON });
    let refusal =
        router.offer(1, vec![RealmOffer { realm: guarded(), grant: grant(9, 3_600, &ALL) }]);
    let (code, text) = refusal[0].clone().unwrap();
    assert_eq!(code, RefusalCode::UnknownRealm, "{text}");
}

#[test]
fn a_peer_asks_for_so_many_realms_and_not_more() {
    let mut router = Alone::new(|config| {
        config.admission = Admission::AnyOpen;
        config.realms_max = 1;
        config.subscriptions_per_link_max = 50;
        config.registrations_per_link_max = 49;
        config.changes_per_second = 2;
    });
    assert_eq!(router.offer(1, Vec::new()), []);
    let offers = |from: u32| {
        let names = (from..from + 50).map(|number| format!("realm.{number}"));
        let realms = names.map(|name| RealmId::of_name(&name));
        Message::Join(realms.map(|realm| RealmOffer { realm, grant: Bytes::new() }).collect())
    };
    let mut told = Vec::new();
    for from in [0, 50, 100, 150, 200] {
        let answers = router.say(LinkId(1), &offers(from));
        told.push(answers[49].clone().unwrap().1);
    }
    // 200 changes are allowed at once
    assert!(told[..4].iter().all(|text| text.contains("as many realms as it may")), "{told:?}");
    assert!(told[4].contains("a second"), "{told:?}");
    router.now = router.now + Duration::from_secs(30);
    let answers = router.say(LinkId(1), &offers(0));
    assert_eq!(answers[0], None, "it may go on later");
}
