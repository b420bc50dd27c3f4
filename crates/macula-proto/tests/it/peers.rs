//! Links between leaves, and the packets that a router carries between them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use macula_proto::id::LinkId;
use macula_proto::node::{Asker, Event, Extension, Input, Role};
use macula_proto::wire::message::{ErrorClass, Message, Publish};
use macula_proto::wire::relay::{Datagram, Part, Unreachable};
use macula_proto::wire::{self, Channel};
use macula_proto::{EndpointId, RealmId};

use crate::grants::{self, ALL, NOON, grant};
use crate::world::{CallSpec, Who, World, raw};

/// A router and two leaves.
fn hub() -> (World, Who, Who, Who) {
    let mut world = World::new();
    let router = world.router();
    let (alice, bob) = (world.leaf(router), world.leaf(router));
    (world, router, alice, bob)
}

fn is_peer_ready(world: &World, who: Who) -> bool {
    world.has(who, |event| matches!(event, Event::PeerLink { link: Some(_), .. }))
}

/// Links whose handshake is done, with those of peers.
fn links(world: &World, who: Who) -> (usize, usize) {
    let links = world.node(who).status().links;
    (links.len(), links.iter().filter(|link| link.is_peer_link).count())
}

fn target(world: &World, who: Who) -> Option<EndpointId> {
    Some(world.sims[who].id)
}

#[test]
fn calls_to_a_peer_take_the_link_to_it_and_others_the_router() {
    let (mut world, router, alice, bob) = hub();
    world.serve_echo(bob, "echo");
    world.connect_peers(alice, bob);
    world.settle();
    assert!(is_peer_ready(&world, alice) && is_peer_ready(&world, bob));
    let before = world.node(router).stats().calls;
    let to_bob = target(&world, bob);
    let direct = world.call_with(alice, "echo", "direct", |spec| spec.target = to_bob);
    let ping = world.call_with(alice, "macula.ping", "ping", |spec| {
        (spec.target, spec.endpoint_scope) = (to_bob, true);
    });
    world.settle();
    assert_eq!(world.result(alice, direct), Some(Ok("direct".to_owned())));
    assert_eq!(world.result(alice, ping), Some(Ok("ping".to_owned())));
    assert_eq!(world.node(router).stats().calls, before, "the router saw them");
    let routed = world.call(alice, "echo", "routed");
    world.settle();
    assert_eq!(world.result(alice, routed), Some(Ok("routed".to_owned())));
    assert_eq!(world.node(router).stats().calls, before + 1);
}

#[test]
fn a_peer_link_that_carries_nothing_ends_and_calls_go_on_by_the_router() {
    let (mut world, router, alice, bob) = hub();
    world.serve_echo(bob, "echo");
    world.connect_peers(alice, bob);
    world.settle();
    let to_bob = target(&world, bob);
    // Used every two minutes it stays.
    for _ in 0..5 {
        world.run_for(Duration::from_secs(120));
        let call = world.call_with(alice, "echo", "still", |spec| spec.target = to_bob);
        world.settle();
        assert_eq!(world.result(alice, call), Some(Ok("still".to_owned())));
    }
    assert_eq!((links(&world, alice), links(&world, bob)), ((2, 1), (2, 1)));
    world.run_for(Duration::from_secs(290));
    assert_eq!(links(&world, alice), (2, 1), "not yet");
    world.run_for(Duration::from_secs(30));
    assert_eq!((links(&world, alice), links(&world, bob)), ((1, 0), (1, 0)));
    let before = world.node(router).stats().calls;
    let call = world.call_with(alice, "echo", "routed", |spec| spec.target = to_bob);
    world.settle();
    assert_eq!(world.result(alice, call), Some(Ok("routed".to_owned())));
    assert_eq!(world.node(router).stats().calls, before + 1);
    world.connect_peers(alice, bob);
    world.settle();
    assert_eq!(links(&world, alice), (2, 1), "opened again");
}

#[test]
fn without_the_router_calls_to_a_peer_go_on() {
    let (mut world, router, alice, bob) = hub();
    world.serve_echo(alice, "echo");
    world.connect_peers(alice, bob);
    world.settle();
    world.cut(alice, router);
    world.cut(bob, router);
    let to_alice = target(&world, alice);
    let call = world.call_with(bob, "echo", "hello", |spec| spec.target = to_alice);
    world.settle();
    assert_eq!(world.result(bob, call), Some(Ok("hello".to_owned())));
}

#[test]
fn a_call_that_may_run_twice_moves_to_the_router_when_the_peer_link_breaks() {
    let (mut world, _, alice, bob) = hub();
    world.serve_echo(bob, "echo");
    world.connect_peers(alice, bob);
    world.settle();
    world.black_hole(alice, bob);
    let to_bob = target(&world, bob);
    let call = world.call_with(alice, "echo", "hello", |spec| {
        (spec.target, spec.idempotent) = (to_bob, true);
    });
    world.settle();
    assert_eq!(world.result(alice, call), None);
    world.cut(alice, bob);
    world.settle();
    assert_eq!(world.result(alice, call), Some(Ok("hello".to_owned())));
}

#[test]
fn a_peer_link_outlives_silence_of_seconds_while_a_call_waits() {
    let (mut world, _, alice, bob) = hub();
    world.serve_echo(bob, "echo");
    world.connect_peers(alice, bob);
    world.settle();
    let to_bob = target(&world, bob);
    world.slow(alice, bob, Duration::from_secs(3));
    let patient = |spec: &mut CallSpec| {
        (spec.target, spec.deadline) = (to_bob, Duration::from_secs(60));
    };
    let call = world.call_with(alice, "echo", "late", patient);
    world.run_for(Duration::from_millis(6_100));
    assert_eq!(world.result(alice, call), Some(Ok("late".to_owned())), "after 6 s of silence");
    world.black_hole(alice, bob);
    world.call_with(alice, "echo", "never", patient);
    world.run_for(Duration::from_secs(7));
    assert_eq!(links(&world, alice), (2, 1));
    world.run_for(Duration::from_secs(3));
    assert_eq!(links(&world, alice), (1, 0), "given up");
}

#[test]
fn a_stranger_without_a_common_realm_is_turned_away() {
    let (mut world, _, alice, _) = hub();
    let stranger = world.add(Role::Leaf);
    world.join(stranger, RealmId::of_name("com.example.other"));
    world.connect_peers(stranger, alice);
    world.settle();
    assert!(!is_peer_ready(&world, alice) && !is_peer_ready(&world, stranger));
    assert_eq!(links(&world, alice), (1, 0));
    assert_eq!(links(&world, stranger), (0, 0));
}

#[test]
fn who_was_dialled_shows_only_the_realms_that_both_have() {
    let (mut world, _, alice, bob) = hub();
    let secret = RealmId::of_name("com.example.secret");
    world.join(bob, secret);
    world.connect_peers(alice, bob);
    world.settle();
    assert!(is_peer_ready(&world, bob));
    // had bob shown it, alice would have admitted him there once she joins
    world.join(alice, secret);
    world.settle();
    assert!(is_peer_ready(&world, alice));
    let to_bob = target(&world, bob);
    world.realm = secret;
    world.serve_echo(bob, "echo");
    let call = world.call_with(alice, "echo", "joined later", |spec| spec.target = to_bob);
    world.settle();
    assert_eq!(world.result(alice, call), Some(Ok("joined later".to_owned())));
}

#[test]
fn of_two_links_dialled_at_once_the_one_of_the_smaller_id_stays() {
    let (mut world, _, alice, bob) = hub();
    world.serve_echo(bob, "echo");
    world.serve_echo(alice, "echo");
    world.settle();
    let kept = world.connect_peers(alice, bob);
    world.connect_peers(bob, alice);
    let (to_alice, to_bob) = (target(&world, alice), target(&world, bob));
    let mut calls = Vec::new();
    for round in 0..40 {
        let text = round.to_string();
        let call = world.call_with(alice, "echo", &text, |spec| spec.target = to_bob);
        calls.push((alice, call, text.clone()));
        let call = world.call_with(bob, "echo", &text, |spec| spec.target = to_alice);
        calls.push((bob, call, text));
        world.run_for(Duration::from_millis(1));
    }
    world.run_for(Duration::from_secs(3));
    for (who, call, text) in calls {
        assert_eq!(world.result(who, call), Some(Ok(text)));
    }
    assert_eq!((links(&world, alice), links(&world, bob)), ((2, 1), (2, 1)));
    let left = world.node(alice).status().links;
    assert!(left.iter().any(|link| link.link == kept));
}

#[test]
fn a_peer_that_was_restarted_replaces_its_old_link() {
    let (mut world, router, alice, bob) = hub();
    world.connect_peers(alice, bob);
    world.settle();
    world.black_hole(alice, bob);
    world.cut(bob, router);
    world.restart(bob);
    let realm = world.realm;
    world.join(bob, realm);
    world.connect_peers(bob, alice);
    world.settle();
    assert_eq!(links(&world, alice), (2, 1));
}

#[test]
fn a_peer_may_not_speak_as_a_router() {
    let (mut world, _, alice, bob) = hub();
    let link = world.connect_peers(alice, bob);
    world.settle();
    let publish = Publish {
        realm: world.realm.tag(),
        publisher: world.sims[bob].id,
        epoch: 1,
        first: 1,
        count: 1,
        ttl: 1,
        qos1: false,
        retain: false,
        start: true,
        topic: Bytes::from_static(b"a"),
        body: Bytes::new(),
    };
    let frame = raw(&wire::encode(&Message::Retained { subscription: 1, publish }));
    world.input(alice, Input::Frame { link, channel: Channel::Lane(1), frame });
    world.settle();
    assert_eq!(links(&world, alice), (1, 0));
    assert_eq!(world.node(alice).stats().protocol_errors, 1);
}

#[test]
fn more_peers_than_may_be_are_turned_away() {
    let mut world = World::new().tuned(|config| config.peer_links_max = 2);
    let router = world.router();
    let alice = world.leaf(router);
    for _ in 0..3 {
        let other = world.leaf(router);
        world.connect_peers(other, alice);
        world.settle();
    }
    assert_eq!(links(&world, alice), (3, 2));
    assert_eq!(world.node(alice).stats().over_limit, 1);
}

// --- relay ---------------------------------------------------------------------------------

/// The link of a router to a peer.
fn link_to(world: &World, router: Who, who: Who) -> LinkId {
    let id = world.sims[who].id;
    let links = world.node(router).status().links;
    links.iter().find(|link| link.peer == id).expect("a link").link
}

fn packet(to: EndpointId, bytes: usize) -> Bytes {
    Datagram::Relay { to, part: Part::Whole, packet: Bytes::from(vec![7; bytes]) }.encode()
}

/// What a router sends when `link` brings a datagram.
fn relayed(
    world: &mut World,
    router: Who,
    link: LinkId,
    datagram: Bytes,
) -> Vec<(LinkId, Datagram)> {
    world.input(router, Input::Datagram { link, datagram });
    let node = world.sims[router].node.as_mut().unwrap();
    std::iter::from_fn(|| node.poll_datagram()).collect()
}

#[test]
fn packets_go_to_the_peer_with_the_senders_name() {
    let (mut world, router, alice, bob) = hub();
    let (from, to) = (link_to(&world, router, alice), link_to(&world, router, bob));
    let (alice, bob) = (world.sims[alice].id, world.sims[bob].id);
    let sent = relayed(&mut world, router, from, packet(bob, 1200));
    let packet = Bytes::from(vec![7; 1200]);
    let expected = Datagram::Relayed { from: alice, part: Part::Whole, packet };
    assert_eq!(sent, [(to, expected)]);
    let stats = world.node(router).stats();
    assert_eq!((stats.relayed, stats.relayed_bytes), (1, 1200));
}

#[test]
fn who_is_not_there_or_not_in_a_common_realm_is_unreachable_alike() {
    let (mut world, router, alice, _) = hub();
    let stranger = world.add(Role::Leaf);
    world.join(stranger, RealmId::of_name("com.example.other"));
    world.join(router, RealmId::of_name("com.example.other"));
    world.connect(stranger, router);
    world.settle();
    let from = link_to(&world, router, alice);
    let (own, stranger) = (world.sims[alice].id, world.sims[stranger].id);
    for to in [EndpointId::from_bytes([99; 32]), stranger, own] {
        let sent = relayed(&mut world, router, from, packet(to, 50));
        let reason = Unreachable::NotHere;
        assert_eq!(sent, [(from, Datagram::Unreachable { to, reason })]);
    }
    assert_eq!(world.node(router).stats().relay_refused, 3);
}

#[test]
fn what_is_faster_than_the_quota_is_dropped_and_counted() {
    let mut world = World::new().tuned(|config| {
        (config.relay_bytes_per_second_per_peer, config.relay_bytes_per_second) = (12_340, 20_000);
    });
    let router = world.router();
    let (alice, bob) = (world.leaf(router), world.leaf(router));
    let [from, back] = [alice, bob].map(|who| link_to(&world, router, who));
    let (alice, bob) = (world.sims[alice].id, world.sims[bob].id);
    let count = |world: &mut World, link, to| {
        (0..20).map(|_| relayed(world, router, link, packet(to, 1200)).len()).sum::<usize>()
    };
    assert_eq!(count(&mut world, from, bob), 10, "of one peer");
    assert_eq!(count(&mut world, back, alice), 6, "of all");
    assert_eq!(world.node(router).stats().relay_dropped, 24);
    world.run_for(Duration::from_secs(1));
    let count = |world: &mut World, link, to| {
        (0..20).map(|_| relayed(world, router, link, packet(to, 1200)).len()).sum::<usize>()
    };
    assert_eq!(count(&mut world, from, bob), 10, "a second later");
}

#[test]
fn datagrams_that_make_no_sense_are_ignored() {
    let (mut world, router, alice, bob) = hub();
    let from = link_to(&world, router, alice);
    let (alice, bob) = (world.sims[alice].id, world.sims[bob].id);
    let packet = Bytes::from_static(b"x");
    for datagram in [
        Bytes::new(),
        Bytes::from(vec![1; 33]),
        Bytes::from(vec![0xff; 100]),
        Datagram::Relayed { from: alice, part: Part::Whole, packet }.encode(),
        Datagram::Unreachable { to: bob, reason: Unreachable::Denied }.encode(),
    ] {
        assert_eq!(relayed(&mut world, router, from, datagram), []);
    }
    assert_eq!(relayed(&mut world, router, LinkId(4711), Bytes::new()), []);
}

#[test]
fn an_unknown_peer_is_not_called_over_a_link() {
    let (mut world, _, alice, _) = hub();
    let nobody = Some(EndpointId::from_bytes([99; 32]));
    let call = world.call_with(alice, "echo", "", |spec| spec.target = nobody);
    world.settle();
    let failure = world.result(alice, call).expect("done").expect_err("nobody is there");
    assert_eq!(failure.class, ErrorClass::NoProvider);
}

// --- carriers ------------------------------------------------------------------------------

/// A router, two leaves, and a third that carries for them and has direct links to both.
fn carried() -> (World, Who, [Who; 3]) {
    let mut world = World::new().tuned(|config| config.carries = true);
    let router = world.router();
    let all = [world.leaf(router), world.leaf(router), world.leaf(router)];
    link_carrier(&mut world, all);
    (world, router, all)
}

fn link_carrier(world: &mut World, [alice, bob, carol]: [Who; 3]) {
    world.connect_peers(alice, carol);
    world.connect_peers(bob, carol);
    world.settle();
    for who in [alice, bob] {
        say_direct(world, carol, who, true);
    }
}

fn say_direct(world: &mut World, carol: Who, who: Who, direct: bool) {
    let link = link_of_peer(world, carol, who);
    world.input(carol, Input::PeerPath { link, direct });
}

/// The link of a leaf to another.
fn link_of_peer(world: &World, who: Who, peer: Who) -> LinkId {
    let id = world.sims[peer].id;
    let links = world.node(who).status().links;
    links.iter().find(|link| link.is_peer_link && link.peer == id).expect("a link").link
}

#[test]
fn a_member_that_offers_it_carries_packets_between_two_others() {
    let (mut world, _, [alice, bob, carol]) = carried();
    let [from, to] = [alice, bob].map(|who| link_of_peer(&world, carol, who));
    assert!(world.node(alice).is_carrier(link_of_peer(&world, alice, carol)));
    let (alice_id, bob_id) = (world.sims[alice].id, world.sims[bob].id);
    let sent = relayed(&mut world, carol, from, packet(bob_id, 1200));
    let whole = Bytes::from(vec![7; 1200]);
    let expected = Datagram::Relayed { from: alice_id, part: Part::Whole, packet: whole };
    assert_eq!(sent, [(to, expected)]);
    assert_eq!(world.node(carol).stats().relayed, 1);
    // neither from nor to somebody whom it does not reach directly: packets could go in circles
    say_direct(&mut world, carol, bob, false);
    let sent = relayed(&mut world, carol, from, packet(bob_id, 50));
    let reason = Unreachable::NotHere;
    assert_eq!(sent, [(from, Datagram::Unreachable { to: bob_id, reason })]);
    say_direct(&mut world, carol, alice, false);
    assert_eq!(relayed(&mut world, carol, from, packet(bob_id, 50)), []);
}

#[test]
fn who_does_not_offer_it_carries_nothing_and_a_leaf_nothing_of_its_router() {
    let mut world = World::new();
    let router = world.router();
    let all = [world.leaf(router), world.leaf(router), world.leaf(router)];
    link_carrier(&mut world, all);
    let [alice, bob, carol] = all;
    let from = link_of_peer(&world, carol, alice);
    let bob_id = world.sims[bob].id;
    assert!(!world.node(alice).is_carrier(link_of_peer(&world, alice, carol)));
    assert_eq!(relayed(&mut world, carol, from, packet(bob_id, 50)), []);
    let (mut world, router, [_, bob, carol]) = carried();
    let (up, bob_id) = (link_to(&world, carol, router), world.sims[bob].id);
    assert_eq!(relayed(&mut world, carol, up, packet(bob_id, 50)), []);
}

#[test]
fn a_link_that_carries_is_not_idle() {
    let (mut world, _, [alice, bob, carol]) = carried();
    let from = link_of_peer(&world, carol, alice);
    let bob_id = world.sims[bob].id;
    for _ in 0..10 {
        world.run_for(Duration::from_secs(100));
        assert_eq!(relayed(&mut world, carol, from, packet(bob_id, 50)).len(), 1);
        for who in [alice, bob] {
            let link = link_of_peer(&world, who, carol);
            world.input(who, Input::LinkUsed { link });
        }
    }
    world.run_for(Duration::from_secs(400));
    assert_eq!(links(&world, carol), (1, 0), "and ends when it is");
}

/// What the router says of carriers between `who` and an endpoint.
fn carriers(world: &mut World, router: Who, who: Who, to: EndpointId) -> Vec<String> {
    let router = target(world, router);
    let call = world.call_with(who, "macula.carriers", &to.to_string(), |spec| {
        (spec.target, spec.endpoint_scope) = (router, true);
    });
    world.settle();
    let answer = world.result(who, call).expect("answered").expect("an answer");
    let ids = answer.strip_prefix("{\"carriers\":[").and_then(|it| it.strip_suffix("]}"));
    let ids = ids.expect("JSON").split(',').filter(|id| !id.is_empty());
    ids.map(|id| id.trim_matches('"').to_owned()).collect()
}

#[test]
fn a_router_names_carriers_of_a_realm_that_all_are_in_and_few_of_them() {
    let mut world = World::new().tuned(|config| config.carries = true);
    let router = world.router();
    let (alice, bob) = (world.leaf(router), world.leaf(router));
    let stranger = world.add(Role::Leaf);
    world.join(stranger, RealmId::of_name("com.example.other"));
    world.join(router, RealmId::of_name("com.example.other"));
    world.connect(stranger, router);
    world.settle();
    let bob_id = world.sims[bob].id;
    assert_eq!(carriers(&mut world, router, alice, bob_id), [""; 0], "only the two themselves");
    let carol = world.leaf(router);
    let carol_id = world.sims[carol].id;
    assert_eq!(carriers(&mut world, router, alice, bob_id), [carol_id.to_string()]);
    let stranger = world.sims[stranger].id;
    assert_eq!(carriers(&mut world, router, alice, stranger), [""; 0], "in no common realm");
    assert_eq!(carriers(&mut world, router, alice, EndpointId::from_bytes([9; 32])), [""; 0]);
    for _ in 0..6 {
        world.leaf(router);
    }
    assert_eq!(carriers(&mut world, router, alice, bob_id).len(), 4);
    world.cut(carol, router);
    world.settle();
    let named = carriers(&mut world, router, alice, bob_id);
    assert!(named.len() == 4 && !named.contains(&carol_id.to_string()));
}

// --- guarded realms ------------------------------------------------------------------------

/// Two members of a guarded realm whose grants allow `rules`, with clocks and a verifier.
fn members(rules: &[&str]) -> (World, Who, Who, Who) {
    let (mut world, router) = grants::world();
    let member = |world: &mut World| {
        let who = grants::leaf(world, router, |who| grant(who, 3_600, rules));
        world.input(who, Input::WallClock { unix: NOON });
        who
    };
    let (alice, bob) = (member(&mut world), member(&mut world));
    (world, router, alice, bob)
}

#[test]
fn a_guarded_realm_relays_for_those_whose_grant_says_so() {
    let (mut world, router, alice, bob) = members(&ALL);
    let from = link_to(&world, router, alice);
    let to = world.sims[bob].id;
    let sent = relayed(&mut world, router, from, packet(to, 50));
    let reason = Unreachable::Denied;
    assert_eq!(sent, [(from, Datagram::Unreachable { to, reason })]);
    let (mut world, router, alice, bob) = members(&["allow relay *"]);
    let from = link_to(&world, router, alice);
    let to = world.sims[bob].id;
    let sent = relayed(&mut world, router, from, packet(to, 50));
    assert!(matches!(sent[..], [(_, Datagram::Relayed { .. })]));
}

#[test]
fn a_carrier_checks_grants_as_a_router_does() {
    for (rules, is_carried) in [(&["allow relay *"][..], true), (&ALL[..], false)] {
        let (mut world, router) = grants::world_with(|config| {
            grants::verified(config);
            config.carries = true;
        });
        let mut member = || {
            let who = grants::leaf(&mut world, router, |who| grant(who, 3_600, rules));
            world.input(who, Input::WallClock { unix: NOON });
            who
        };
        let all = [member(), member(), member()];
        link_carrier(&mut world, all);
        let [alice, bob, carol] = all;
        let (from, to) = (link_of_peer(&world, carol, alice), world.sims[bob].id);
        let sent = relayed(&mut world, carol, from, packet(to, 50));
        if is_carried {
            assert!(matches!(sent[..], [(_, Datagram::Relayed { .. })]), "{sent:?}");
        } else {
            let reason = Unreachable::Denied;
            assert_eq!(sent, [(from, Datagram::Unreachable { to, reason })]);
        }
    }
}

#[test]
fn peers_check_each_others_grants() {
    let (mut world, router, alice, bob) = members(&["allow call a", "allow serve **"]);
    world.serve_echo(bob, "a");
    world.register(bob, "b", 1);
    world.connect_peers(alice, bob);
    world.settle();
    world.cut(alice, router);
    assert!(is_peer_ready(&world, alice));
    let to_bob = target(&world, bob);
    let allowed = world.call_with(alice, "a", "hello", |spec| spec.target = to_bob);
    let denied = world.call_with(alice, "b", "hello", |spec| spec.target = to_bob);
    world.settle();
    assert_eq!(world.result(alice, allowed), Some(Ok("hello".to_owned())));
    let failure = world.result(alice, denied).expect("done").expect_err("it is not allowed");
    assert_eq!(failure.class, ErrorClass::Denied);
    // and the link, which is in use, ends with the grants
    for _ in 0..37 {
        world.run_for(Duration::from_secs(100));
        world.call_with(alice, "a", "hello", |spec| spec.target = to_bob);
    }
    world.settle();
    let has_expelled = |who| world.has(who, |event| matches!(event, Event::Expelled { .. }));
    assert!(has_expelled(alice) || has_expelled(bob));
    assert_eq!(links(&world, alice), (0, 0));
}

#[test]
fn a_peer_without_a_grant_is_turned_away() {
    let (mut world, router, alice, _) = members(&ALL);
    let thief = grants::leaf(&mut world, router, |_| grant(alice, 3_600, &ALL));
    world.connect_peers(thief, alice);
    world.settle();
    assert!(!is_peer_ready(&world, thief) && !is_peer_ready(&world, alice));
    assert_eq!(links(&world, alice), (1, 0));
}

#[derive(Debug)]
struct MayRelay;

impl Extension for MayRelay {
    fn answer(&self, _procedure: &str, asker: Asker) -> Option<Bytes> {
        Some(asker.may_relay.to_string().into())
    }

    fn counters(&self) -> Vec<(String, u64)> {
        Vec::new()
    }
}

#[test]
fn extensions_hear_who_may_relay_to_everybody() {
    let cases: [(&[&str], &str); 5] = [
        (&ALL, "false"),
        (&["allow relay *"], "true"),
        (&["allow relay **"], "true"),
        (&["allow relay someone"], "false"),
        (&["allow relay **", "deny relay someone"], "false"),
    ];
    for (rules, expected) in cases {
        let (mut world, router) = grants::world_with(|config| {
            grants::verified(config);
            config.extension = Some(Arc::new(MayRelay));
        });
        let alice = grants::leaf(&mut world, router, |who| grant(who, 3_600, rules));
        let router = target(&world, router);
        let call = world.call_with(alice, "macula.may", "", |spec| {
            (spec.target, spec.endpoint_scope) = (router, true);
        });
        world.settle();
        assert_eq!(world.result(alice, call), Some(Ok(expected.to_owned())), "{rules:?}");
    }
}
