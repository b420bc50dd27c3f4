//! Links come up, are admitted or refused, are probed and go.

use std::time::Duration;

use bytes::Bytes;
use macula_proto::id::{LinkId, RealmId};
use macula_proto::node::{Action, Command, Config, Event, Input, Node, Qos, Role};
use macula_proto::wire::message::{CloseCode, Hello, Message, RealmOffer, RefusalCode};
use macula_proto::wire::{self, Channel};
use macula_proto::{EndpointId, Time};

use crate::world::{World, raw, realm};

fn hello(version_min: u16, version_max: u16) -> Hello {
    Hello {
        version_min,
        version_max,
        capabilities: 0,
        is_router: false,
        instance: 7,
        resumes: 0,
        observed: String::new(),
        agent: "test".to_owned(),
        realms: vec![RealmOffer { realm: realm(), grant: Bytes::new() }],
    }
}

/// What a router does when a stranger says these things on the control stream.
fn router_hears(messages: &[Message]) -> (Vec<Action>, Node) {
    let now = Time::from_micros(1);
    let mut node =
        Node::new(EndpointId::from_bytes([9; 32]), Config::new(Role::Router, 1), [0; 32]);
    node.handle_input(now, Input::Command(Command::Join { realm: realm(), grant: Bytes::new() }));
    let link = LinkId(1);
    let remote = "192.0.2.7:1".parse().unwrap();
    let peer = EndpointId::from_bytes([1; 32]);
    node.handle_input(now, Input::LinkUp { link, peer, dialled: false, remote });
    for message in messages {
        let frame = raw(&wire::encode(message));
        node.handle_input(now, Input::Frame { link, channel: Channel::Control, frame });
    }
    let mut actions = Vec::new();
    while node.poll_transmit().is_some() {}
    while let Some(action) = node.poll_action() {
        actions.push(action);
    }
    (actions, node)
}

fn close_code(actions: &[Action]) -> Option<CloseCode> {
    actions.iter().find_map(|action| match action {
        Action::CloseLink { code, .. } => Some(*code),
        _ => None,
    })
}

#[test]
fn a_hello_opens_the_lanes() {
    let (actions, _) = router_hears(&[Message::Hello(hello(1, 1))]);
    assert_eq!(actions, [Action::OpenLanes { link: LinkId(1) }]);
}

#[test]
fn a_second_hello_closes_the_link() {
    let twice = [Message::Hello(hello(1, 1)), Message::Hello(hello(1, 1))];
    assert_eq!(close_code(&router_hears(&twice).0), Some(CloseCode::Protocol));
}

#[test]
fn anything_before_the_hello_closes_the_link() {
    let (actions, node) = router_hears(&[Message::Ping { id: 1 }]);
    assert_eq!(close_code(&actions), Some(CloseCode::Protocol));
    assert_eq!(node.stats().protocol_errors, 1);
}

#[test]
fn versions_that_do_not_overlap_are_told_apart_from_errors() {
    let (actions, _) = router_hears(&[Message::Hello(hello(2, 9))]);
    let Some(Action::CloseLink { code, reason, .. }) = actions.first() else {
        panic!("not closed: {actions:?}")
    };
    assert_eq!(*code, CloseCode::Version);
    assert!(reason.contains("2 to 9"), "{reason}");
    // a peer that also speaks a newer version is welcome
    let (actions, _) = router_hears(&[Message::Hello(hello(1, 9))]);
    assert_eq!(close_code(&actions), None);
}

#[test]
fn a_silent_peer_is_closed_after_the_handshake_timeout() {
    let (_, mut node) = router_hears(&[]);
    let (at, _) = node.poll_timeout().expect("a handshake timer");
    node.handle_timeout(at);
    let closed = std::iter::from_fn(|| node.poll_action()).collect::<Vec<_>>();
    assert_eq!(close_code(&closed), Some(CloseCode::Unresponsive));
}

#[test]
fn a_realm_that_is_not_hosted_is_refused_with_words() {
    let mut world = World::new();
    let router = world.router();
    let leaf = world.add(Role::Leaf);
    world.join(leaf, RealmId::of_name("com.example.elsewhere"));
    world.connect(leaf, router);
    world.settle();
    assert!(world.has(leaf, |event| matches!(
        event,
        Event::RealmAnswered { refusal: Some((RefusalCode::UnknownRealm, text)), .. }
            if text.contains("--realm")
    )));
}

#[test]
fn a_realm_can_be_joined_on_a_standing_link() {
    let mut world = World::new().tuned(|config| {
        config.admission = macula_proto::node::Admission::AnyOpen;
    });
    let router = world.add(Role::Router);
    let leaf = world.leaf(router);
    let late = RealmId::of_name("com.example.late");
    world.take_events(leaf);
    world.join(leaf, late);
    world.settle();
    assert!(world.has(leaf, |event| matches!(
        event,
        Event::RealmAnswered { realm, refusal: None, .. } if *realm == late
    )));
}

#[test]
fn a_peer_that_hangs_is_found_by_the_probe() {
    let mut world = World::new();
    let router = world.router();
    let leaf = world.leaf(router);
    world.black_hole(leaf, router);
    world.run_for(Duration::from_secs(25));
    assert_eq!(world.node(router).status().links.len(), 1, "not before two misses");
    world.run_for(Duration::from_secs(10));
    assert_eq!(world.node(router).status().links.len(), 0);
    assert!(world.has(leaf, |event| matches!(event, Event::LinkLost { .. })));
}

#[test]
fn an_idle_link_stays() {
    let mut world = World::new();
    let router = world.router();
    let leaf = world.leaf(router);
    world.run_for(Duration::from_secs(3600));
    assert_eq!(world.node(router).status().links.len(), 1);
    assert!(!world.has(leaf, |event| matches!(event, Event::LinkLost { .. })));
}

#[test]
fn a_newer_link_of_the_same_peer_replaces_the_old_one() {
    let mut world = World::new();
    let router = world.router();
    let (subscriber, publisher) = (world.leaf(router), world.leaf(router));
    world.subscribe(subscriber, "a");
    world.settle();
    world.connect(subscriber, router);
    world.settle();
    world.publish(publisher, "a", Qos::AtMostOnce, "once");
    world.settle();
    assert_eq!(world.texts(subscriber), ["once"]);
    assert_eq!(world.node(router).status().links.len(), 2);
}

#[test]
fn links_beyond_the_limit_are_turned_away() {
    let mut world = World::new().tuned(|config| config.links_max = 2);
    let router = world.router();
    let (first, second) = (world.leaf(router), world.leaf(router));
    let third = world.leaf(router);
    assert!(world.has(first, |event| matches!(event, Event::LinkReady { .. })));
    assert!(world.has(second, |event| matches!(event, Event::LinkReady { .. })));
    assert_eq!(world.node(router).status().links.len(), 2);
    assert_eq!(world.node(third).status().links.len(), 0);
}

#[test]
fn a_router_that_goes_down_says_so_and_spreads_the_return() {
    let mut world = World::new();
    let router = world.router();
    let leaves: Vec<_> = (0..8).map(|_| world.leaf(router)).collect();
    let window = Duration::from_secs(4);
    world.command(
        router,
        Command::Shutdown {
            code: CloseCode::Restarting,
            reason: "new version".to_owned(),
            reconnect_window: window,
        },
    );
    world.settle();
    let mut waits = Vec::new();
    for leaf in leaves {
        for event in world.take_events(leaf) {
            if let Event::PeerLeaving { code, reconnect_in, .. } = event {
                assert_eq!(code, CloseCode::Restarting);
                assert!(reconnect_in < window);
                waits.push(reconnect_in);
            }
        }
    }
    assert_eq!(waits.len(), 8);
    waits.dedup();
    assert!(waits.len() > 4, "they come back spread: {waits:?}");
}
