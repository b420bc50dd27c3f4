//! What hostile peers try against guarded realms and quotas.

use std::time::Duration;

use bytes::Bytes;
use macula_proto::auth::UnixTime;
use macula_proto::id::LinkId;
use macula_proto::node::{Admission, Command, Input, Qos, Role};
use macula_proto::wire::message::{Message, RealmOffer, RefusalCode, SlowPolicy, Subscribe};

use crate::grants::{ALL, Alone, NOON, grant, guarded, member, offer, world};

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
fn a_grant_for_a_realm_that_is_not_here_is_not_looked_at() {
    let mut router = Alone::new(|_| {});
    router.node.handle_input(router.now, Input::WallClock { unix: NOON });
    let refusal =
        router.offer(1, vec![RealmOffer { realm: guarded(), grant: grant(9, 3_600, &ALL) }]);
    let (code, text) = refusal[0].clone().unwrap();
    assert_eq!(code, RefusalCode::UnknownRealm, "{text}");
}
