//! Calls: found, answered, refused, cancelled, moved.

use std::time::Duration;

use bytes::Bytes;
use macula_proto::id::{CallId, RequestId};
use macula_proto::node::{Command, Event, Input, StreamEnd};
use macula_proto::wire::Channel;
use macula_proto::wire::message::{CallFailure, ErrorClass, Message, ProviderPolicy};

use crate::world::{Who, World, raw, realm};

fn failure_of(world: &World, who: Who, call: CallId) -> CallFailure {
    world.result(who, call).expect("the call is done").expect_err("it failed")
}

/// Requests that reached a handler at `who` and were not cancelled.
fn requests(world: &World, who: Who) -> Vec<(RequestId, String)> {
    world.sims[who]
        .events
        .iter()
        .filter_map(|(_, event)| match event {
            Event::Request { request, body, .. } => {
                Some((*request, String::from_utf8_lossy(body).into_owned()))
            }
            _ => None,
        })
        .collect()
}

fn cancelled(world: &World, who: Who) -> usize {
    world.sims[who]
        .events
        .iter()
        .filter(|(_, event)| matches!(event, Event::RequestCancelled { .. }))
        .count()
}

#[test]
fn a_call_reaches_a_provider_and_its_answer_the_caller() {
    let mut world = World::new();
    let router = world.router();
    let (caller, provider) = (world.leaf(router), world.leaf(router));
    world.serve_echo(provider, "echo");
    world.settle();
    let small = world.call(caller, "echo", "hello");
    let large = world.call(caller, "echo", &"x".repeat(1_000_000));
    world.settle();
    assert_eq!(world.result(caller, small), Some(Ok("hello".to_owned())));
    assert_eq!(world.result(caller, large).unwrap().unwrap().len(), 1_000_000);
    let caller_id = world.sims[caller].id;
    assert!(world.has(provider, |event| matches!(
        event,
        Event::Request { caller, .. } if *caller == caller_id
    )));
}

#[test]
fn a_router_calls_and_serves_like_anybody() {
    let mut world = World::new();
    let router = world.router();
    let leaf = world.leaf(router);
    world.serve_echo(router, "up");
    world.serve_echo(leaf, "down");
    world.settle();
    let (up, down) = (world.call(leaf, "up", "1"), world.call(router, "down", "2"));
    world.settle();
    assert_eq!(world.result(leaf, up), Some(Ok("1".to_owned())));
    assert_eq!(world.result(router, down), Some(Ok("2".to_owned())));
}

#[test]
fn a_local_handler_is_asked_first() {
    let mut world = World::new();
    let router = world.router();
    let (near, far) = (world.leaf(router), world.leaf(router));
    world.serve_echo(far, "echo");
    world.serve_echo(near, "echo");
    world.settle();
    let call = world.call(near, "echo", "x");
    assert_eq!(world.result(near, call), Some(Ok("x".to_owned())), "without a hop");
    assert!(requests(&world, far).is_empty());
}

#[test]
fn a_call_to_nobody_says_so_at_once() {
    let mut world = World::new();
    let router = world.router();
    let caller = world.leaf(router);
    let call = world.call(caller, "nobody", "");
    world.settle();
    let failure = failure_of(&world, caller, call);
    assert_eq!(failure.class, ErrorClass::NoProvider);
    assert!(failure.retry_safe);
}

#[test]
fn the_deadline_ends_a_call_at_every_end() {
    let mut world = World::new();
    let router = world.router();
    let (caller, provider) = (world.leaf(router), world.leaf(router));
    world.register(provider, "sleepy", 4);
    world.settle();
    let call = world.call_with(caller, "sleepy", "", |spec| spec.deadline = Duration::from_secs(1));
    world.run_for(Duration::from_millis(900));
    assert_eq!(world.result(caller, call), None);
    world.run_for(Duration::from_millis(200));
    let failure = failure_of(&world, caller, call);
    assert_eq!((failure.class, failure.retry_safe), (ErrorClass::Deadline, false));
    assert_eq!(cancelled(&world, provider), 1);
    // a late answer changes nothing
    let (request, _) = requests(&world, provider)[0];
    let result = Ok(Bytes::from_static(b"late"));
    world.command(provider, Command::Reply { request, result });
    world.settle();
    assert!(world.result(caller, call).unwrap().is_err());
}

#[test]
fn a_cancel_reaches_the_handler() {
    let mut world = World::new();
    let router = world.router();
    let (caller, provider) = (world.leaf(router), world.leaf(router));
    world.register(provider, "sleepy", 4);
    world.settle();
    let call = world.call(caller, "sleepy", "");
    world.settle();
    world.command(caller, Command::CancelCall { call });
    world.settle();
    assert_eq!(failure_of(&world, caller, call).class, ErrorClass::Cancelled);
    assert_eq!(cancelled(&world, provider), 1);
}

#[test]
fn a_refusal_comes_back_word_for_word() {
    let mut world = World::new();
    let router = world.router();
    let (caller, provider) = (world.leaf(router), world.leaf(router));
    world.register(provider, "picky", 4);
    world.settle();
    let call = world.call(caller, "picky", "");
    world.settle();
    let (request, _) = requests(&world, provider)[0];
    let refusal = CallFailure {
        class: ErrorClass::Refused,
        code: 418,
        message: "I'm a teapot: \u{fc}".to_owned(),
        retry_after: Duration::ZERO,
        retry_safe: false,
    };
    world.command(provider, Command::Reply { request, result: Err(refusal.clone()) });
    world.settle();
    assert_eq!(failure_of(&world, caller, call), refusal);
}

#[test]
fn a_provider_with_no_room_sheds() {
    let mut world = World::new();
    let router = world.router();
    let (caller, provider) = (world.leaf(router), world.leaf(router));
    world.register(provider, "narrow", 2);
    world.settle();
    let calls: Vec<CallId> = (0..5).map(|_| world.call(caller, "narrow", "")).collect();
    world.settle();
    assert_eq!(requests(&world, provider).len(), 2, "two run, two wait, one is shed");
    let busy = failure_of(&world, caller, calls[4]);
    assert_eq!((busy.class, busy.retry_safe), (ErrorClass::Busy, true));
    assert!(busy.retry_after > Duration::ZERO);
    let (request, _) = requests(&world, provider)[0];
    world.command(provider, Command::Reply { request, result: Ok(Bytes::new()) });
    assert_eq!(requests(&world, provider).len(), 3, "a waiting one starts");
}

#[test]
fn a_busy_provider_is_passed_over() {
    let mut world = World::new();
    let router = world.router();
    let (caller, full, free) = (world.leaf(router), world.leaf(router), world.leaf(router));
    world.register(full, "work", 1);
    world.settle();
    world.call(caller, "work", "runs");
    world.call(caller, "work", "waits");
    world.settle();
    world.register(free, "work", 8);
    world.settle();
    for _ in 0..4 {
        world.call_with(caller, "work", "x", |spec| spec.policy = ProviderPolicy::First);
    }
    world.settle();
    assert_eq!(requests(&world, free).len(), 4);
    assert_eq!(world.node(router).stats().failovers, 4);
}

#[test]
fn round_robin_takes_turns() {
    let mut world = World::new();
    let router = world.router();
    let caller = world.leaf(router);
    let providers: Vec<Who> = (0..3).map(|_| world.leaf(router)).collect();
    for provider in &providers {
        world.serve_echo(*provider, "echo");
    }
    world.settle();
    for _ in 0..9 {
        world.call_with(caller, "echo", "", |spec| spec.policy = ProviderPolicy::RoundRobin);
    }
    world.settle();
    for provider in providers {
        assert_eq!(requests(&world, provider).len(), 3);
    }
}

#[test]
fn an_explicit_endpoint_is_the_only_one_asked() {
    let mut world = World::new();
    let router = world.router();
    let (caller, one, two) = (world.leaf(router), world.leaf(router), world.leaf(router));
    world.serve_echo(one, "echo");
    world.serve_echo(two, "echo");
    world.settle();
    let target = world.sims[two].id;
    for _ in 0..5 {
        world.call_with(caller, "echo", "", |spec| spec.target = Some(target));
    }
    world.settle();
    assert_eq!((requests(&world, one).len(), requests(&world, two).len()), (0, 5));
}

#[test]
fn a_dead_provider_costs_idempotent_calls_a_moment_and_others_an_honest_error() {
    let mut world = World::new();
    let router = world.router();
    let (caller, dying, alive) = (world.leaf(router), world.leaf(router), world.leaf(router));
    world.serve_echo(dying, "echo");
    world.settle();
    world.serve_echo(alive, "echo");
    world.settle();
    world.black_hole(dying, router);
    let first = |spec: &mut crate::world::CallSpec| spec.policy = ProviderPolicy::First;
    let twice = world.call_with(caller, "echo", "again", |spec| {
        first(spec);
        spec.idempotent = true;
    });
    let once = world.call_with(caller, "echo", "once", first);
    world.run_for(Duration::from_secs(2));
    assert_eq!(world.result(caller, twice), Some(Ok("again".to_owned())));
    assert_eq!(world.result(caller, once), None);
    // new calls go to the live one
    let new = world.call(caller, "echo", "new");
    world.settle();
    assert_eq!(world.result(caller, new), Some(Ok("new".to_owned())));
    world.run_for(Duration::from_secs(3));
    let failure = failure_of(&world, caller, once);
    assert_eq!((failure.class, failure.retry_safe), (ErrorClass::Unreachable, false));
}

#[test]
fn a_provider_whose_link_breaks_is_replaced() {
    let mut world = World::new();
    let router = world.router();
    let (caller, one, two) = (world.leaf(router), world.leaf(router), world.leaf(router));
    world.register(one, "work", 8);
    world.settle();
    let call = world.call_with(caller, "work", "x", |spec| spec.idempotent = true);
    world.settle();
    world.serve_echo(two, "work");
    world.settle();
    world.cut(one, router);
    world.settle();
    assert_eq!(world.result(caller, call), Some(Ok("x".to_owned())));
}

#[test]
fn registrations_survive_a_broken_link_and_a_router_restart() {
    let mut world = World::new();
    let router = world.router();
    let (caller, provider) = (world.leaf(router), world.leaf(router));
    world.serve_echo(provider, "echo");
    world.settle();
    world.cut(provider, router);
    world.connect(provider, router);
    world.settle();
    let call = world.call(caller, "echo", "1");
    world.settle();
    assert_eq!(world.result(caller, call), Some(Ok("1".to_owned())));
    world.restart(router);
    world.join(router, realm());
    let early = world.call(caller, "echo", "2");
    world.settle();
    assert_eq!(world.result(caller, early), None, "it waits for a router");
    world.connect(provider, router);
    world.settle();
    world.connect(caller, router);
    world.settle();
    assert_eq!(world.result(caller, early), Some(Ok("2".to_owned())));
}

#[test]
fn without_a_router_a_call_ends_at_its_deadline() {
    let mut world = World::new();
    let router = world.router();
    let caller = world.leaf(router);
    world.cut(caller, router);
    let call = world.call_with(caller, "x", "", |spec| spec.deadline = Duration::from_secs(1));
    world.run_for(Duration::from_secs(2));
    let failure = failure_of(&world, caller, call);
    assert_eq!((failure.class, failure.retry_safe), (ErrorClass::Deadline, true));
}

#[test]
fn a_caller_that_goes_away_frees_the_handler() {
    let mut world = World::new();
    let router = world.router();
    let (caller, provider) = (world.leaf(router), world.leaf(router));
    world.register(provider, "sleepy", 1);
    world.settle();
    world.call(caller, "sleepy", "");
    world.settle();
    world.cut(caller, router);
    world.settle();
    assert_eq!(cancelled(&world, provider), 1);
}

#[test]
fn every_node_answers_the_built_in_procedures() {
    let mut world = World::new();
    let router = world.router();
    let (asker, other) = (world.leaf(router), world.leaf(router));
    let other_id = world.sims[other].id;
    let ping = world.call_with(asker, "macula.ping", "x", |spec| spec.endpoint_scope = true);
    let info = world.call_with(asker, "macula.info", "", |spec| {
        spec.endpoint_scope = true;
        spec.target = Some(other_id);
    });
    let stats = world.call_with(asker, "macula.stats", "", |spec| spec.endpoint_scope = true);
    let wrong = world.call_with(asker, "macula.nothing", "", |spec| spec.endpoint_scope = true);
    world.settle();
    assert_eq!(world.result(asker, ping), Some(Ok("x".to_owned())));
    let info = world.result(asker, info).unwrap().unwrap();
    assert!(info.contains(&other_id.to_string()) && info.contains(r#""role":"leaf""#), "{info}");
    let stats: serde_json::Value =
        serde_json::from_str(&world.result(asker, stats).unwrap().unwrap()).unwrap();
    assert_eq!(stats["links"], 2);
    assert_eq!(stats["realms"].as_array().map(Vec::len), Some(1));
    assert_eq!(failure_of(&world, asker, wrong).class, ErrorClass::NoProvider);
}

#[test]
fn a_router_tells_a_peer_of_its_own_link_and_a_leaf_of_none() {
    let mut world = World::new();
    let router = world.router();
    let (asker, other) = (world.leaf(router), world.leaf(router));
    let (asker_id, other_id) = (world.sims[asker].id, world.sims[other].id);
    let ask = |world: &mut World, target| {
        let call = world.call_with(asker, "macula.links", "", |spec| {
            (spec.endpoint_scope, spec.target) = (true, target);
        });
        world.settle();
        call
    };
    let told = ask(&mut world, None);
    let told = world.result(asker, told).unwrap().unwrap();
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    let links = told["links"].as_array().unwrap();
    assert_eq!(links.len(), 1, "{told}");
    assert_eq!(links[0]["peer"], asker_id.to_string());
    assert_eq!(links[0]["remote"], "192.0.2.1:4433");
    assert!(links[0]["received_bytes"].as_u64() > Some(0), "{told}");
    assert_eq!(told["more"], 0);
    let refused = ask(&mut world, Some(other_id));
    assert_eq!(failure_of(&world, asker, refused).class, ErrorClass::NoProvider);
}

#[test]
fn tenants_cannot_ping_each_other() {
    let mut world = World::new();
    let router = world.router();
    let other_realm = macula_proto::RealmId::of_name("com.example.other");
    world.join(router, other_realm);
    let asker = world.leaf(router);
    let stranger = world.add(macula_proto::Role::Leaf);
    world.join(stranger, other_realm);
    world.connect(stranger, router);
    world.settle();
    let target = world.sims[stranger].id;
    let call = world.call_with(asker, "macula.ping", "", |spec| {
        spec.endpoint_scope = true;
        spec.target = Some(target);
    });
    world.settle();
    assert_eq!(failure_of(&world, asker, call).class, ErrorClass::NoProvider);
}

#[test]
fn a_leaf_does_not_tell_of_its_other_realms() {
    let mut world = World::new();
    let router = world.router();
    let other_realm = macula_proto::RealmId::of_name("com.example.other");
    world.join(router, other_realm);
    let (asker, both) = (world.leaf(router), world.leaf(router));
    world.join(both, other_realm);
    world.settle();
    let target = Some(world.sims[both].id);
    let ask = |world: &mut World, endpoint_scope| {
        let call = world.call_with(asker, "macula.stats", "", |spec| {
            (spec.endpoint_scope, spec.target) = (endpoint_scope, target);
        });
        world.settle();
        let stats = world.result(asker, call).unwrap().unwrap();
        let stats: serde_json::Value = serde_json::from_str(&stats).unwrap();
        stats["realms"].as_array().unwrap().len()
    };
    assert_eq!(ask(&mut world, true), 0);
    assert_eq!(ask(&mut world, false), 1);
}

#[test]
fn items_flow_both_ways_in_order_and_the_result_comes_last() {
    let mut world = World::new();
    let router = world.router();
    let (caller, provider) = (world.leaf(router), world.leaf(router));
    world.register(provider, "chat", 4);
    world.settle();
    let call = world.call_with(caller, "chat", "open", |spec| spec.streaming = true);
    world.settle();
    let (request, argument) = requests(&world, provider)[0].clone();
    assert_eq!(argument, "open");
    for number in 0..50 {
        let body = Bytes::from(format!("up {number}"));
        world.command(caller, Command::StreamItem { end: StreamEnd::Caller(call), body });
        let body = Bytes::from(format!("down {number}"));
        world.command(provider, Command::StreamItem { end: StreamEnd::Handler(request), body });
    }
    world.command(caller, Command::StreamItemsEnd { call });
    world.settle();
    let items = |who: Who| -> Vec<String> {
        world.sims[who]
            .events
            .iter()
            .filter_map(|(_, event)| match event {
                Event::StreamItem { body, .. } => Some(String::from_utf8_lossy(body).into_owned()),
                _ => None,
            })
            .collect()
    };
    let expected = |way: &str| (0..50).map(|n| format!("{way} {n}")).collect::<Vec<_>>();
    assert_eq!(items(provider), expected("up"));
    assert_eq!(items(caller), expected("down"));
    assert!(world.has(provider, |event| matches!(event, Event::StreamItemsEnd { .. })));
    let result = Ok(Bytes::from_static(b"done"));
    world.command(provider, Command::Reply { request, result });
    world.settle();
    assert_eq!(world.result(caller, call), Some(Ok("done".to_owned())));
}

#[test]
fn a_provider_whose_link_broke_is_forgotten() {
    let mut world = World::new();
    let router = world.router();
    let (caller, provider) = (world.leaf(router), world.leaf(router));
    world.register(provider, "echo", 4);
    world.settle();
    // more often than a call is tried
    for _ in 0..20 {
        world.cut(provider, router);
        world.settle();
        assert_eq!(world.node(router).status().realms[0].registrations, 0);
        let call = world.call(caller, "echo", "");
        world.settle();
        assert_eq!(failure_of(&world, caller, call).class, ErrorClass::NoProvider);
        world.connect(provider, router);
        world.settle();
    }
    assert_eq!(world.node(router).status().realms[0].registrations, 1);
}

#[test]
fn arguments_and_results_that_no_stream_can_carry_end_the_call_and_no_link() {
    let mut world = World::new();
    let router = world.router();
    let (caller, provider) = (world.leaf(router), world.leaf(router));
    world.register(provider, "s", 4);
    world.settle();
    let large = "x".repeat(macula_proto::limits::LANE_MESSAGE_BYTES_MAX + 1);
    let call = world.call_with(caller, "s", &large, |spec| spec.streaming = true);
    assert_eq!(failure_of(&world, caller, call).class, ErrorClass::Refused);

    let call = world.call_with(caller, "s", "", |spec| spec.streaming = true);
    world.settle();
    let (request, _) = requests(&world, provider)[0];
    world.command(provider, Command::Reply { request, result: Ok(Bytes::from(large.clone())) });
    world.settle();
    assert_eq!(failure_of(&world, caller, call).class, ErrorClass::Internal);

    // a provider can send the result on a stream of its own, where it fits
    let call = world.call_with(caller, "s", "", |spec| spec.streaming = true);
    world.settle();
    let links = world.node(router).status().links;
    let link = links.iter().find(|link| link.peer == world.sims[provider].id).unwrap().link;
    for number in 0..10 {
        let forged = Message::Reply { call: number, body: Bytes::from(large.clone()) };
        let frame = raw(&macula_proto::wire::encode(&forged));
        world.input(router, Input::Frame { link, channel: Channel::Bulk, frame });
    }
    world.settle();
    assert_eq!(failure_of(&world, caller, call).class, ErrorClass::Internal);
    assert_eq!(world.node(router).status().links.len(), 2);
}

#[test]
fn a_streaming_sender_is_told_to_wait() {
    let mut world = World::new();
    let router = world.router();
    let (caller, provider) = (world.leaf(router), world.leaf(router));
    world.register(provider, "sink", 4);
    world.settle();
    let call = world.call_with(caller, "sink", "", |spec| {
        spec.streaming = true;
        spec.deadline = Duration::from_secs(60);
    });
    world.settle();
    let (request, _) = requests(&world, provider)[0];
    let end = StreamEnd::Handler(request);
    world.input(provider, Input::StreamHandle { end, full: true });
    let body = Bytes::from(vec![b'x'; 60_000]);
    let end_here = StreamEnd::Caller(call);
    let mut sent = 0;
    let waits = Event::StreamRoom { end: end_here, full: true };
    while !world.has(caller, |event| *event == waits) {
        world.command(caller, Command::StreamItem { end: end_here, body: body.clone() });
        sent += 1;
        world.run_for(Duration::from_millis(1));
        assert!(sent < 500, "nobody says stop");
    }
    world.input(provider, Input::StreamHandle { end, full: false });
    world.settle();
    assert!(world.has(caller, |event| *event == Event::StreamRoom { end: end_here, full: false }));
    let got = world.sims[provider]
        .events
        .iter()
        .filter(|(_, event)| matches!(event, Event::StreamItem { .. }))
        .count();
    assert_eq!(got, sent);
}

#[test]
fn a_cancelled_stream_reaches_the_handler() {
    let mut world = World::new();
    let router = world.router();
    let (caller, provider) = (world.leaf(router), world.leaf(router));
    world.register(provider, "chat", 4);
    world.settle();
    let call = world.call_with(caller, "chat", "", |spec| spec.streaming = true);
    world.settle();
    world.command(caller, Command::CancelCall { call });
    world.settle();
    assert_eq!(cancelled(&world, provider), 1);
}

#[test]
fn a_provider_that_has_just_unregistered_is_passed_over() {
    let mut world = World::new();
    let router = world.router();
    let (caller, leaving, staying) = (world.leaf(router), world.leaf(router), world.leaf(router));
    let registration = macula_proto::id::RegistrationId(world.number());
    let procedure = macula_proto::pubsub::ProcedureName::parse("work").unwrap();
    world.command(
        leaving,
        Command::Register { registration, realm: realm(), procedure, concurrency: 8 },
    );
    world.settle();
    world.serve_echo(staying, "work");
    world.settle();
    // the call is on its way to the first provider when that stops serving
    let call = world.call_with(caller, "work", "x", |spec| spec.policy = ProviderPolicy::First);
    world.run_for(Duration::from_millis(7));
    world.command(leaving, Command::Unregister { registration });
    world.settle();
    assert_eq!(world.result(caller, call), Some(Ok("x".to_owned())));
}

#[test]
fn items_that_come_before_anybody_runs_the_call_are_kept() {
    let mut world = World::new();
    let router = world.router();
    let (caller, provider) = (world.leaf(router), world.leaf(router));
    world.register(provider, "chat", 1);
    world.settle();
    let items = |world: &mut World, call| {
        for number in 0..3 {
            let body = Bytes::from(format!("up {number}"));
            world.command(caller, Command::StreamItem { end: StreamEnd::Caller(call), body });
        }
        world.command(caller, Command::StreamItemsEnd { call });
    };
    // the only handler is busy, then free
    let first = world.call_with(caller, "chat", "", |spec| spec.streaming = true);
    let second = world.call_with(caller, "chat", "", |spec| spec.streaming = true);
    items(&mut world, second);
    world.settle();
    world.command(caller, Command::CancelCall { call: first });
    world.settle();
    // and one more while there is no router
    let (request, _) = requests(&world, provider)[1].clone();
    let result = Ok(Bytes::new());
    world.command(provider, Command::Reply { request, result });
    world.settle();
    assert_eq!(world.result(caller, second), Some(Ok(String::new())));
    world.cut(caller, router);
    let third = world.call_with(caller, "chat", "", |spec| spec.streaming = true);
    items(&mut world, third);
    world.connect(caller, router);
    world.settle();
    let events: Vec<Event> = world.take_events(provider);
    let ups = events.iter().filter(|event| matches!(event, Event::StreamItem { .. })).count();
    let ends = events.iter().filter(|event| matches!(event, Event::StreamItemsEnd { .. })).count();
    assert_eq!((ups, ends), (6, 2));
}
