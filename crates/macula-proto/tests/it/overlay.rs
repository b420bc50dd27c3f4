//! Routing, records and calls of the overlay, in small worlds of the production code.

use std::time::Duration;

use bytes::Bytes;
use macula_proto::id::QueryId;
use macula_proto::overlay::{
    Body, Command, Contact, Coordinate, Event, Input, Message, Need, Record, Reply, Route,
    StoreRefusal, kind,
};
use macula_proto::pubsub::ProcedureName;
use macula_proto::wire::message::{CallFailure, ErrorClass, ProviderPolicy};
use macula_proto::{Distance, Key, KeyKind, LinkId};

use crate::overlay_world::{World, id, key, realm};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn every_lookup_ends_at_the_closest_node() {
    let mut world = World::of(60);
    for number in 0..60 {
        let target = key(&format!("key {number}"));
        let truth = world.ids[world.closest(&target)];
        assert_eq!(world.lookup(number % 60, target, 1), Some(truth), "lookup {number}");
    }
}

#[test]
fn a_node_has_few_links_and_knows_its_closest() {
    let world = World::of(120);
    for node in world.live() {
        let me = world.node(node).me();
        let links: Vec<Key> = world.node(node).neighbours().map(|n| n.contact.key).collect();
        assert!(links.len() <= 50, "{} links", links.len());
        let mut others: Vec<Key> =
            world.live().iter().map(|other| world.node(*other).me().key).collect();
        others.retain(|key| *key != me.key);
        others.sort_by_key(|key| key.distance(&me.key));
        for near in &others[..8] {
            assert!(links.contains(near), "a node misses one of its eight closest");
        }
    }
}

#[test]
fn lookups_survive_a_fifth_of_all_dying_at_once() {
    let mut world = World::of(60);
    (0..60).step_by(5).for_each(|node| world.kill(node));
    let asked = world.live();
    for number in 0..20 {
        let target = key(&format!("key {number}"));
        let truth = world.ids[world.closest(&target)];
        let found = world.lookup(asked[number % asked.len()], target, 1);
        assert_eq!(found, Some(truth), "lookup {number}");
    }
}

#[test]
fn several_ways_get_around_nodes_that_take_over_and_drop() {
    let mut world = World::of(60);
    // they acknowledge every route, and that is all
    for node in (0..60).step_by(7) {
        world.swallow[node] = |message| matches!(message, Message::Answer(_));
    }
    let mut right = 0;
    for number in 0..30 {
        let target = key(&format!("key {number}"));
        let truth = world.ids[world.closest(&target)];
        let from = world.live().into_iter().find(|n| n % 7 != 0 && n % 11 == number % 11).unwrap();
        right += u32::from(world.lookup(from, target, 4) == Some(truth));
    }
    assert!(right >= 29, "{right} of 30");
}

#[test]
fn who_claims_to_be_the_closest_does_not_win_against_the_truth() {
    let mut world = World::of(60);
    let liars: Vec<usize> = (0..60).step_by(9).collect();
    for liar in &liars {
        // whatever is asked on a way through here: nobody is closer than I
        world.tamper[*liar] = |message, me| {
            if let Message::Answer(answer) = message
                && let Reply::Closest(contacts) = &mut answer.reply
            {
                *contacts = vec![me];
            }
        };
    }
    let mut right = [0, 0];
    for number in 0..30 {
        let target = key(&format!("key {number}"));
        let truth = world.ids[world.closest(&target)];
        let from = (0..60).find(|node| !liars.contains(node) && node % 13 == number % 13).unwrap();
        for (paths, right) in [1, 4].into_iter().zip(&mut right) {
            *right += u32::from(world.lookup(from, target, paths) == Some(truth));
        }
    }
    assert!(right[0] < 30, "the liars stood on some ways");
    assert!(right[1] >= 29, "{} of 30 over four ways", right[1]);
}

/// The result of an iterative lookup: whom it found, and how many were asked.
fn walk(world: &mut World, from: usize, target: Key) -> (Vec<Contact>, u16) {
    let query = QueryId(u64::from(from as u32) + 1_000_000);
    world.command(from, Command::Walk { query, target });
    world.run(30 * SECOND);
    let mut done =
        std::mem::take(&mut world.events[from]).into_iter().filter_map(|event| match event {
            Event::WalkDone { query: of, closest, asked, .. } if of == query => {
                Some((closest, asked))
            }
            _ => None,
        });
    let result = done.next().expect("a walk ends");
    assert!(done.next().is_none(), "once");
    result
}

#[test]
fn a_walk_names_the_eight_closest_in_order() {
    let mut world = World::of(60);
    for number in 0..10 {
        let target = key(&format!("key {number}"));
        let mut all: Vec<Key> = world.live().iter().map(|n| world.node(*n).me().key).collect();
        all.sort_by_key(|key| key.distance(&target));
        let (closest, asked) = walk(&mut world, number * 5, target);
        let found: Vec<Key> = closest.iter().map(|contact| contact.key).collect();
        assert_eq!(found, all[..8], "walk {number}");
        assert!(asked < 20, "{asked} asked");
    }
}

#[test]
fn a_walk_does_not_believe_in_routers_that_one_liar_has_invented() {
    let mut world = World::of(40);
    let liar = 7;
    // names itself, and others that are nowhere
    world.tamper[liar] = |message, me| {
        if let Message::Answer(answer) = message
            && let Reply::Near(contacts) = &mut answer.reply
        {
            *contacts = (0..7).map(|n| Contact::new(&realm(), id(9_000 + n), me.at)).collect();
            contacts.push(me);
        }
    };
    let target = world.node(liar).me().key;
    let (closest, _) = walk(&mut world, 20, target);
    assert_eq!(closest.first().map(|contact| contact.id), Some(world.ids[liar]));
    let is_real = |contact: &Contact| world.ids.contains(&contact.id);
    assert!(closest.iter().all(is_real), "{closest:?}");
}

#[test]
fn a_newcomer_whose_only_neighbour_drops_says_so_and_is_saved_by_another() {
    let mut world = World::of(40);
    let dropper = 39;
    world.swallow[dropper] = |message| matches!(message, Message::Answer(_));
    world.tamper[dropper] = |message, _| {
        if let Message::Siblings { contacts, .. } = message {
            contacts.clear();
        }
    };
    let newcomer = world.add();
    world.run(120 * SECOND);
    let events = std::mem::take(&mut world.events[newcomer]);
    assert!(!events.iter().any(|event| matches!(event, Event::Joined)), "nobody has answered it");
    let told = events.iter().filter(|event| matches!(event, Event::Lonely { links: 1 })).count();
    assert!((2..=6).contains(&told), "told {told} times");
    world.link(newcomer, 3);
    world.command(newcomer, Command::Join);
    world.run(60 * SECOND);
    assert!(world.events[newcomer].iter().any(|event| matches!(event, Event::Joined)));
    assert!(world.node(newcomer).neighbours().count() >= 8);
}

#[test]
fn a_route_without_ttl_or_progress_is_refused_and_counted() {
    let mut world = World::of(20);
    let node = 5;
    let neighbour = world.node(node).neighbours().next().unwrap();
    let route = |id: u64, ttl: u8, floor: Distance| {
        let target = key("anywhere");
        let body = Body::Find { except: None, early: false };
        Message::Route(Box::new(Route { id, target, ttl, hops: 0, floor, salt: 0, body }))
    };
    let before = *world.node(node).stats();
    // nobody can be closer than nothing
    let message = route(1, 20, Distance::ZERO);
    world.feed(node, Input::Received { link: neighbour.link, message });
    assert_eq!(world.node(node).stats().routes_forwarded, before.routes_forwarded);
    let message = route(2, 200, Distance::MAX);
    world.feed(node, Input::Received { link: neighbour.link, message });
    assert_eq!(world.node(node).stats().messages_unexpected, before.messages_unexpected + 1);
    // the same twice: taken over once
    for _ in 0..2 {
        let message = route(3, 20, Distance::MAX);
        world.feed(node, Input::Received { link: neighbour.link, message });
    }
    assert_eq!(world.node(node).stats().routes_forwarded, before.routes_forwarded + 1);
    assert_eq!(world.node(node).stats().routes_looped, before.routes_looped + 1);
}

#[test]
fn a_flood_of_routes_and_requests_to_connect_is_bounded() {
    let mut world = World::of(20);
    let node = 5;
    let link = world.node(node).neighbours().next().unwrap().link;
    for number in 0..5_000u64 {
        let from = Contact::new(&realm(), id(number + 1_000), Coordinate::default());
        let body = Body::Connect { from, need: Need::Sibling };
        let route = Route {
            id: number + 10,
            target: world.node(node).me().key,
            ttl: 20,
            hops: 0,
            floor: Distance::MAX,
            salt: 0,
            body,
        };
        let message = Message::Route(Box::new(route));
        world.feed(node, Input::Received { link, message });
    }
    let sizes = world.node(node).sizes();
    assert!(sizes.routes <= 4096 && sizes.contacts <= 160 * 20, "{sizes:?}");
    let stats = world.node(node).stats();
    assert!(stats.connects_refused_here > 4_000, "{stats:?} {sizes:?}");
}

#[test]
fn surplus_links_of_one_network_are_refused() {
    let mut world = World::of(10);
    for number in 0..20u64 {
        let input = Input::LinkUp {
            link: LinkId(9_000_000 + number),
            peer: id(5_000 + number),
            rtt: Duration::from_millis(5),
            net: 4_242,
        };
        world.feed(3, input);
    }
    assert!(world.node(3).stats().links_refused_net >= 14);
}

#[test]
fn what_is_stored_is_found_also_after_its_root_died_and_others_joined() {
    let mut world = World::of(40);
    let place = key("place");
    let put = |value: &'static str, query| Command::Put {
        query: QueryId(query),
        key: place,
        value: Bytes::from_static(value.as_bytes()),
        lifetime: Duration::from_secs(3600),
    };
    world.command(7, put("here", 1));
    world.run(5 * SECOND);
    let copies = world.take(7).into_iter().find_map(|event| match event {
        Event::PutDone { result, .. } => Some(result),
        _ => None,
    });
    assert!(matches!(copies, Some(Ok(5..))), "{copies:?}");

    let fetched = |world: &mut World, from: usize| {
        let query = QueryId(77);
        world.command(from, Command::Fetch { query, key: place, kind: kind::USER });
        world.run(20 * SECOND);
        world.take(from).into_iter().find_map(|event| match event {
            Event::FetchDone { records: Some(records), .. } => {
                Some(records.iter().map(|record| record.value.clone()).collect::<Vec<_>>())
            }
            _ => None,
        })
    };
    let root = world.closest(&place);
    if root != 7 {
        world.kill(root);
    }
    assert_eq!(fetched(&mut world, 11), Some(vec![Bytes::from_static(b"here")]));
    // newcomers may be closer: they are given what belongs to them
    world.run(30 * SECOND);
    for _ in 0..20 {
        world.add();
        world.run(SECOND);
    }
    world.run(30 * SECOND);
    assert_eq!(fetched(&mut world, 12), Some(vec![Bytes::from_static(b"here")]));
    world.command(7, put("", 2));
    world.run(100 * SECOND);
    assert_eq!(fetched(&mut world, 13), Some(vec![]));
}

#[test]
fn what_nobody_would_keep_is_refused_at_once() {
    let mut world = World::of(10);
    let put = |value: usize, lifetime: Duration| Command::Put {
        query: QueryId(1),
        key: key("place"),
        value: Bytes::from(vec![1; value]),
        lifetime,
    };
    for (value, lifetime, why) in [
        (9_000, 60 * SECOND, StoreRefusal::TooLarge),
        (1, Duration::from_millis(10), StoreRefusal::Lifetime),
        (1, 49 * 3600 * SECOND, StoreRefusal::Lifetime),
    ] {
        world.command(3, put(value, lifetime));
        let done = world.take(3).into_iter().find_map(|event| match event {
            Event::PutDone { result, .. } => Some(result),
            _ => None,
        });
        assert_eq!(done, Some(Err(Some(why))));
    }
}

#[test]
fn records_that_are_not_ours_to_hold_or_badly_signed_are_refused() {
    let mut world = World::of(120);
    let node = 3;
    let link = world.node(node).neighbours().next().unwrap().link;
    let me = world.node(node).me().key;
    // nobody is farther from there than this node
    let far = Key::from_bytes(me.as_bytes().map(|byte| !byte));
    let record = |at: Key| Record {
        key: at,
        kind: kind::USER,
        author: id(1),
        sequence: 1,
        ttl: SECOND,
        lifetime: 60,
        value: Bytes::from_static(b"x"),
        signature: [0; 64],
    };
    let records = vec![record(far), record(me)];
    world.feed(node, Input::Received { link, message: Message::Replicate { token: 1, records } });
    let stats = world.node(node).stats();
    assert!(stats.records_refused_place >= 1 && stats.records_refused_signature >= 1, "{stats:?}");
    assert_eq!(world.node(node).sizes().records, 0);
}

fn procedure() -> ProcedureName {
    ProcedureName::parse("org.example.add").unwrap()
}

fn call(query: u64, idempotent: bool) -> Command {
    Command::Call {
        query: QueryId(query),
        procedure: procedure(),
        body: Bytes::from_static(b"1+1"),
        deadline: Duration::from_secs(20),
        policy: ProviderPolicy::Nearest,
        idempotent,
    }
}

/// Answers what has been asked of a node; returns how much that was.
fn serve(world: &mut World, node: usize) -> usize {
    let requests: Vec<u64> = world
        .take(node)
        .into_iter()
        .filter_map(|event| match event {
            Event::Request { request, .. } => Some(request),
            _ => None,
        })
        .collect();
    for request in &requests {
        let result = Ok(Bytes::from_static(b"2"));
        world.command(node, Command::Respond { request: *request, result });
    }
    requests.len()
}

fn outcome(world: &mut World, node: usize) -> Vec<Result<Bytes, CallFailure>> {
    let events = world.take(node).into_iter();
    let done = events.filter_map(|event| match event {
        Event::CallDone { result, .. } => Some(result),
        _ => None,
    });
    done.collect()
}

#[test]
fn a_call_finds_its_provider_and_fails_over_when_that_dies() {
    let mut world = World::of(40);
    for provider in [4, 9] {
        world.command(provider, Command::Provide { procedure: procedure() });
    }
    world.run(5 * SECOND);
    let mut served = Vec::new();
    for _ in 0..2 {
        world.command(20, call(1, true));
        world.run(2 * SECOND);
        served.push([serve(&mut world, 4), serve(&mut world, 9)]);
        world.run(2 * SECOND);
        assert_eq!(outcome(&mut world, 20), [Ok(Bytes::from_static(b"2"))]);
    }
    assert_eq!(served[0].iter().sum::<usize>(), 1, "one provider ran it, once");
    let nearest = if served[0][0] == 1 { 4 } else { 9 };
    world.kill(nearest);
    world.command(20, call(2, true));
    for _ in 0..20 {
        world.run(SECOND);
        for provider in [4, 9] {
            if world.is_alive(provider) {
                serve(&mut world, provider);
            }
        }
    }
    assert_eq!(outcome(&mut world, 20), [Ok(Bytes::from_static(b"2"))]);
}

#[test]
fn a_slow_call_runs_once_though_it_is_asked_again_on_other_ways() {
    let mut world = World::of(40);
    world.command(4, Command::Provide { procedure: procedure() });
    world.run(5 * SECOND);
    world.command(20, call(1, false));
    // long enough for several ways
    world.run(9 * SECOND);
    assert_eq!(serve(&mut world, 4), 1, "asked on several ways, run once");
    assert!(world.node(4).stats().calls_duplicate >= 1);
    world.run(2 * SECOND);
    assert_eq!(outcome(&mut world, 20), [Ok(Bytes::from_static(b"2"))]);
}

#[test]
fn a_call_nobody_answers_ends_once_by_its_deadline() {
    let mut world = World::of(30);
    world.command(20, call(1, false));
    world.run(25 * SECOND);
    let done = outcome(&mut world, 20);
    assert!(matches!(&done[..], [Err(failure)] if failure.class == ErrorClass::NoProvider));
    world.command(4, Command::Provide { procedure: procedure() });
    world.run(5 * SECOND);
    world.command(20, call(2, false));
    world.run(25 * SECOND);
    let done = outcome(&mut world, 20);
    assert!(matches!(&done[..], [Err(failure)] if failure.class == ErrorClass::Deadline));
}

#[test]
fn a_node_that_leaves_is_gone_at_once_and_its_records_are_not() {
    let mut world = World::of(40);
    let place = key("place");
    let command = Command::Put {
        query: QueryId(1),
        key: place,
        value: Bytes::from_static(b"stays"),
        lifetime: Duration::from_secs(3600),
    };
    let author = (0..40).find(|node| *node != world.closest(&place)).unwrap();
    world.command(author, command);
    world.run(3 * SECOND);
    let root = world.closest(&place);
    world.command(root, Command::Leave);
    world.run(SECOND);
    world.kill(root);
    let from = (0..40).find(|node| ![author, root].contains(node)).unwrap();
    let truth = world.ids[world.closest(&place)];
    assert_eq!(world.lookup(from, place, 1), Some(truth));
    assert!(world.live().iter().all(|node| {
        world.node(*node).neighbours().all(|neighbour| neighbour.contact.id != world.ids[root])
    }));
    let query = QueryId(2);
    world.command(from, Command::Fetch { query, key: place, kind: kind::USER });
    world.run(5 * SECOND);
    let found = world.take(from).into_iter().any(|event| {
        matches!(event, Event::FetchDone { records: Some(records), .. } if records.len() == 1)
    });
    assert!(found);
}

#[test]
fn two_parts_that_lost_each_other_become_one_again() {
    let mut world = World::of(40);
    world.split(|node| node % 2 == 0);
    world.run(60 * SECOND);
    world.heal();
    world.run(180 * SECOND);
    for number in 0..20 {
        let target = key(&format!("key {number}"));
        let truth = world.ids[world.closest(&target)];
        assert_eq!(world.lookup(number, target, 1), Some(truth), "lookup {number}");
    }
}

#[test]
fn the_same_seed_gives_the_same_world() {
    let picture = || {
        let world = World::of(40);
        let of_node = |node: &usize| {
            let mut links: Vec<Key> =
                world.node(*node).neighbours().map(|n| n.contact.key).collect();
            links.sort();
            (links, *world.node(*node).stats())
        };
        world.live().iter().map(of_node).collect::<Vec<_>>()
    };
    assert_eq!(picture(), picture());
    assert_ne!(Key::derive(&realm(), KeyKind::Node, &[1]), key("1"));
}
