//! Peers that lie, flood, or send garbage.

use bytes::Bytes;
use macula_proto::id::{LinkId, StreamId};
use macula_proto::limits;
use macula_proto::node::{Action, Command, Config, Input, Node, Qos, Role};
use macula_proto::wire::message::*;
use macula_proto::wire::{self, Channel, RawFrame};
use macula_proto::{EndpointId, RealmId, RealmTag, Time};
use proptest::prelude::*;

use crate::world::{World, raw, realm};

const PEER: EndpointId = EndpointId::from_bytes([1; 32]);
const LINK: LinkId = LinkId(1);

/// A router with one peer whose handshake is done.
fn router() -> Node {
    router_with(|_| {})
}

fn router_with(change: impl FnOnce(&mut Config)) -> Node {
    let now = Time::from_micros(1);
    let mut config = Config::new(Role::Router, 1);
    change(&mut config);
    let mut node = Node::new(EndpointId::from_bytes([9; 32]), config, [0; 32]);
    node.handle_input(now, Input::Command(Command::Join { realm: realm(), grant: Bytes::new() }));
    let remote = "192.0.2.7:1".parse().unwrap();
    node.handle_input(now, Input::LinkUp { link: LINK, peer: PEER, dialled: false, remote });
    let hello = Message::Hello(Hello {
        version_min: 1,
        version_max: 1,
        capabilities: 0,
        is_router: false,
        instance: 7,
        resumes: 0,
        observed: String::new(),
        agent: String::new(),
        realms: vec![RealmOffer { realm: realm(), grant: Bytes::new() }],
    });
    hears(&mut node, Channel::Control, &hello);
    drain(&mut node);
    node
}

fn hears(node: &mut Node, channel: Channel, message: &Message) {
    let frame = raw(&wire::encode(message));
    node.handle_input(Time::from_micros(2), Input::Frame { link: LINK, channel, frame });
}

fn drain(node: &mut Node) -> (Vec<Message>, Vec<Action>) {
    let mut messages = Vec::new();
    while let Some(transmit) = node.poll_transmit() {
        let frame = raw(&transmit.frame);
        messages.push(wire::decode(frame, transmit.channel).expect("our own frames are good"));
    }
    let actions = std::iter::from_fn(|| node.poll_action()).collect();
    while node.poll_event().is_some() {}
    (messages, actions)
}

fn is_closed(actions: &[Action], wanted: CloseCode) -> bool {
    actions.iter().any(|action| matches!(action, Action::CloseLink { code, .. } if *code == wanted))
}

fn publish(publisher: EndpointId, realm: RealmTag, topic: &str) -> Publish {
    Publish {
        realm,
        publisher,
        epoch: 1,
        first: 1,
        count: 1,
        ttl: 20,
        qos1: false,
        retain: false,
        start: true,
        topic: Bytes::copy_from_slice(topic.as_bytes()),
        body: Bytes::from_static(b"x"),
    }
}

#[test]
fn a_peer_cannot_publish_in_another_name() {
    let mut node = router();
    let forged = publish(EndpointId::from_bytes([2; 32]), realm().tag(), "a");
    hears(&mut node, Channel::Lane(wire::lane_of(b"a")), &Message::Publish(forged));
    assert!(is_closed(&drain(&mut node).1, CloseCode::Protocol));
}

#[test]
fn a_leaf_that_calls_itself_a_router_gets_no_more_rights() {
    let greet = |node: &mut Node| {
        let remote = "192.0.2.8:1".parse().unwrap();
        let (link, peer) = (LinkId(2), EndpointId::from_bytes([2; 32]));
        let up = Input::LinkUp { link, peer, dialled: false, remote };
        node.handle_input(Time::from_micros(2), up);
        let hello = Message::Hello(Hello {
            version_min: 1,
            version_max: 1,
            capabilities: 0,
            is_router: true,
            instance: 7,
            resumes: 0,
            observed: String::new(),
            agent: String::new(),
            realms: vec![RealmOffer { realm: RealmId::of_name("elsewhere"), grant: Bytes::new() }],
        });
        says(node, Channel::Control, &hello);
        drain(node);
    };
    fn says(node: &mut Node, channel: Channel, message: &Message) {
        let frame = raw(&wire::encode(message));
        node.handle_input(Time::from_micros(3), Input::Frame { link: LinkId(2), channel, frame });
    }
    let mut node = router_with(|config| config.admission = macula_proto::node::Admission::AnyOpen);
    greet(&mut node);
    let elsewhere = RealmId::of_name("elsewhere").tag();
    let forged = publish(PEER, elsewhere, "a");
    says(&mut node, Channel::Lane(wire::lane_of(b"a")), &Message::Publish(forged));
    assert!(is_closed(&drain(&mut node).1, CloseCode::Protocol), "in another's name");

    let mut node = router_with(|config| config.admission = macula_proto::node::Admission::AnyOpen);
    let register = Message::Register(Register {
        realm: realm().tag(),
        registration: 1,
        procedure: "secret".to_owned(),
        concurrency: 1,
    });
    hears(&mut node, Channel::Control, &register);
    greet(&mut node);
    let call = Message::Call(Call {
        call: 1,
        realm: realm().tag(),
        procedure: "secret".to_owned(),
        deadline: std::time::Duration::from_secs(1),
        policy: ProviderPolicy::Nearest,
        idempotent: false,
        streaming: false,
        target: None,
        caller: Some(PEER),
        traceparent: Bytes::new(),
        body: Bytes::new(),
    });
    says(&mut node, Channel::CALLS, &call);
    let (messages, _) = drain(&mut node);
    assert!(
        matches!(&messages[..], [Message::CallError { failure, .. }]
            if failure.class == ErrorClass::Denied),
        "into another's realm: {messages:?}"
    );
}

#[test]
fn a_malformed_topic_is_refused_and_the_link_lives() {
    for name in ["a..b", ".", "a b", "a.*"] {
        let mut node = router();
        let bad = publish(PEER, realm().tag(), name);
        hears(&mut node, Channel::Lane(wire::lane_of(name.as_bytes())), &Message::Publish(bad));
        let (messages, actions) = drain(&mut node);
        assert!(actions.is_empty(), "{name}: {actions:?}");
        assert!(
            matches!(messages[..], [Message::PublishRefused { code: RefusalCode::BadName, .. }]),
            "{name}: {messages:?}"
        );
    }
}

#[test]
fn a_realm_one_was_not_admitted_to_is_refused() {
    let mut node = router();
    let elsewhere = RealmId::of_name("elsewhere").tag();
    let foreign = publish(PEER, elsewhere, "a");
    hears(&mut node, Channel::Lane(wire::lane_of(b"a")), &Message::Publish(foreign));
    hears(
        &mut node,
        Channel::Control,
        &Message::Subscribe(Subscribe {
            realm: elsewhere,
            subscription: 1,
            pattern: "**".to_owned(),
            policy: SlowPolicy::Block,
            resume: true,
            retained: true,
        }),
    );
    hears(
        &mut node,
        Channel::Control,
        &Message::Register(Register {
            realm: elsewhere,
            registration: 1,
            procedure: "p".to_owned(),
            concurrency: 1,
        }),
    );
    let call = Call {
        call: 1,
        realm: elsewhere,
        procedure: "p".to_owned(),
        deadline: std::time::Duration::from_secs(1),
        policy: ProviderPolicy::Nearest,
        idempotent: false,
        streaming: false,
        target: None,
        caller: None,
        traceparent: Bytes::new(),
        body: Bytes::new(),
    };
    hears(&mut node, Channel::CALLS, &Message::Call(call));
    let (messages, actions) = drain(&mut node);
    assert!(actions.is_empty());
    let refused = |message: &Message| match message {
        Message::PublishRefused { code, .. } => *code == RefusalCode::UnknownRealm,
        Message::SubscribeResult { refusal, .. } | Message::RegisterResult { refusal, .. } => {
            matches!(refusal, Some((RefusalCode::UnknownRealm, _)))
        }
        Message::CallError { failure, .. } => failure.class == ErrorClass::Denied,
        _ => false,
    };
    assert_eq!(messages.len(), 4);
    assert!(messages.iter().all(refused), "{messages:?}");
}

#[test]
fn subscriptions_and_registrations_have_a_limit() {
    let mut node = router_with(|config| {
        config.subscriptions_per_link_max = 10;
        config.registrations_per_link_max = 10;
    });
    for number in 0..20 {
        let subscribe = Subscribe {
            realm: realm().tag(),
            subscription: number,
            pattern: format!("t{number}"),
            policy: SlowPolicy::DropOldest,
            resume: false,
            retained: false,
        };
        hears(&mut node, Channel::Control, &Message::Subscribe(subscribe));
        let register = Register {
            realm: realm().tag(),
            registration: number,
            procedure: format!("p{number}"),
            concurrency: 1,
        };
        hears(&mut node, Channel::Control, &Message::Register(register));
    }
    let (messages, _) = drain(&mut node);
    let limited = messages
        .iter()
        .filter(|message| {
            matches!(
                message,
                Message::SubscribeResult { refusal: Some((RefusalCode::Limit, _)), .. }
                    | Message::RegisterResult { refusal: Some((RefusalCode::Limit, _)), .. }
            )
        })
        .count();
    assert_eq!(limited, 20);
    assert_eq!(node.status().realms[0].subscriptions, 10);
    assert_eq!(node.status().realms[0].registrations, 10);
}

#[test]
fn a_registration_with_a_used_number_replaces_the_one_before() {
    let mut node = router();
    for number in 0..20 {
        let register = Register {
            realm: realm().tag(),
            registration: 1,
            procedure: format!("p{number}"),
            concurrency: 1,
        };
        hears(&mut node, Channel::Control, &Message::Register(register));
    }
    assert_eq!(node.status().realms[0].registrations, 1);
    let realm = realm().tag();
    hears(&mut node, Channel::Control, &Message::Unregister { realm, registration: 1 });
    assert_eq!(node.status().realms[0].registrations, 0);
}

#[test]
fn acknowledging_what_was_never_sent_closes_the_link() {
    for message in [
        Message::DeliverAck { lane: 1, frames: 1 },
        Message::DeliverAck { lane: 4, frames: u64::MAX },
        Message::BulkAck { id: 1 },
    ] {
        let mut node = router();
        hears(&mut node, Channel::Control, &message);
        assert!(is_closed(&drain(&mut node).1, CloseCode::Protocol), "{message:?}");
    }
}

#[test]
fn two_calls_with_one_number_close_the_link() {
    let mut node = router();
    let call = Call {
        call: 5,
        realm: realm().tag(),
        procedure: "slow".to_owned(),
        deadline: std::time::Duration::from_secs(9),
        policy: ProviderPolicy::Nearest,
        idempotent: false,
        streaming: false,
        target: None,
        caller: None,
        traceparent: Bytes::new(),
        body: Bytes::new(),
    };
    let now = Time::from_micros(2);
    node.handle_input(
        now,
        Input::Command(Command::Register {
            registration: macula_proto::id::RegistrationId(1),
            realm: realm(),
            procedure: macula_proto::pubsub::ProcedureName::parse("slow").unwrap(),
            concurrency: 8,
        }),
    );
    hears(&mut node, Channel::CALLS, &Message::Call(call.clone()));
    assert!(drain(&mut node).1.is_empty());
    hears(&mut node, Channel::CALLS, &Message::Call(call));
    assert!(is_closed(&drain(&mut node).1, CloseCode::Protocol));
}

#[test]
fn answers_to_calls_of_others_are_ignored() {
    let mut world = World::new();
    let router = world.router();
    let (caller, provider, liar) = (world.leaf(router), world.leaf(router), world.leaf(router));
    world.register(provider, "slow", 8);
    world.settle();
    let call = world.call(caller, "slow", "");
    world.settle();
    // the liar answers every number there could be, on its own link
    let link = world
        .node(router)
        .status()
        .links
        .iter()
        .find(|l| l.peer == world.sims[liar].id)
        .unwrap()
        .link;
    for number in 0..100 {
        let forged = Message::Reply { call: number, body: Bytes::from_static(b"forged") };
        let frame = raw(&wire::encode(&forged));
        world.input(router, Input::Frame { link, channel: Channel::CALLS, frame });
    }
    world.settle();
    assert_eq!(world.result(caller, call), None);
}

#[test]
fn a_batch_that_lies_about_its_count_hurts_nobody() {
    let mut world = World::new();
    let router = world.router();
    let (liar, subscriber) = (world.leaf(router), world.leaf(router));
    world.subscribe(subscriber, "a");
    world.settle();
    let status = world.node(router).status();
    let link = status.links.iter().find(|l| l.peer == world.sims[liar].id).unwrap().link;
    let mut lie = publish(world.sims[liar].id, realm().tag(), "a");
    lie.count = 2;
    lie.body = Bytes::from_static(b"\x05ab");
    let channel = Channel::Lane(wire::lane_of(b"a"));
    let frame = raw(&wire::encode(&Message::Publish(lie)));
    world.input(router, Input::Frame { link, channel, frame });
    world.settle();
    assert!(world.texts(subscriber).is_empty());
    assert_eq!(world.node(subscriber).stats().protocol_errors, 1);
    world.publish(router, "a", Qos::AtMostOnce, "good");
    world.settle();
    assert_eq!(world.texts(subscriber), ["good"]);
}

#[test]
fn streaming_calls_per_link_have_a_limit() {
    let mut world = World::new();
    let router = world.router();
    let (caller, provider) = (world.leaf(router), world.leaf(router));
    world.register(provider, "s", 1000);
    world.settle();
    let calls: Vec<_> = (0..limits::STREAMS_PER_LINK_MAX + 5)
        .map(|_| world.call_with(caller, "s", "", |spec| spec.streaming = true))
        .collect();
    world.settle();
    let busy = calls
        .iter()
        .filter(|call| {
            matches!(world.result(caller, **call), Some(Err(failure)) if failure.class == ErrorClass::Busy)
        })
        .count();
    assert_eq!(busy, 5);
}

fn any_channel() -> impl Strategy<Value = Channel> {
    prop_oneof![
        Just(Channel::Control),
        (0..limits::LANE_COUNT).prop_map(Channel::Lane),
        Just(Channel::Bulk),
        (0..4u64).prop_map(|id| Channel::Stream(StreamId(id))),
    ]
}

proptest! {
    #[test]
    fn no_sequence_of_frames_panics_a_router(
        frames in prop::collection::vec(
            (any_channel(), any::<u8>(), prop::collection::vec(any::<u8>(), 0..80)), 0..40)
    ) {
        let mut node = router();
        for (channel, kind, payload) in frames {
            let frame = RawFrame { kind, payload: payload.into() };
            node.handle_input(Time::from_micros(3), Input::Frame { link: LINK, channel, frame });
            drain(&mut node);
        }
        node.handle_timeout(Time::from_micros(100_000_000));
        drain(&mut node);
    }
}

#[test]
fn expectations_and_duplicates_do_not_use_up_the_accounts_of_streams() {
    let mut node = router_with(|config| config.streams_max = 4);
    let lane = |name: &str| Channel::Lane(wire::lane_of(name.as_bytes()));
    for number in 0..10 {
        let topic = format!("expected.{number}");
        hears(
            &mut node,
            Channel::Control,
            &Message::Expect { realm: realm().tag(), topic, receivers: 3 },
        );
    }
    // these go no further, but open accounts
    for number in 0..4 {
        let name = format!("t{number}");
        let mut last_hop = publish(PEER, realm().tag(), &name);
        (last_hop.qos1, last_hop.ttl) = (true, 0);
        hears(&mut node, lane(&name), &Message::Publish(last_hop));
    }
    let refused = |node: &mut Node| {
        let mut good = publish(PEER, realm().tag(), "good");
        good.qos1 = true;
        hears(node, lane("good"), &Message::Publish(good));
        let (messages, _) = drain(node);
        messages.iter().any(|message| matches!(message, Message::PublishRefused { .. }))
    };
    drain(&mut node);
    assert!(refused(&mut node), "the limit is reached");
    for _ in 0..4 {
        let now = Time::from_micros(2) + limits::RING_AGE_MAX * 2;
        node.handle_timeout(now);
    }
    assert!(!refused(&mut node), "accounts are given up in time");
}

#[test]
fn a_message_that_cannot_be_retained_is_refused_as_a_whole() {
    let mut world = World::new().tuned(|config| config.retained_bytes_max = 1000);
    let router = world.router();
    let (publisher, subscriber) = (world.leaf(router), world.leaf(router));
    world.subscribe(subscriber, "**");
    world.settle();
    for (publisher, name) in [(publisher, "a"), (router, "b")] {
        world.publish_bytes(publisher, name, Qos::AtLeastOnce, true, vec![b'x'; 2000]);
        world.settle();
        assert!(world.texts(subscriber).is_empty());
        assert!(world.has(publisher, |event| {
            matches!(event, macula_proto::node::Event::PublishRefused { first: 1, count: 1, .. })
        }));
    }
}

/// A ping of the router itself, with so long an argument.
fn ping(number: u64, bytes: usize) -> Message {
    Message::Call(Call {
        call: number,
        realm: RealmTag::ENDPOINT,
        procedure: "macula.ping".to_owned(),
        deadline: std::time::Duration::from_secs(1),
        policy: ProviderPolicy::Nearest,
        idempotent: false,
        streaming: false,
        target: None,
        caller: Some(PEER),
        traceparent: Bytes::new(),
        body: Bytes::from(vec![b'x'; bytes]),
    })
}

#[test]
fn a_caller_that_reads_no_answers_is_cut_off_in_the_end() {
    for (bytes, calls) in [(60_000, 100_000), (1_000_000, 200)] {
        let mut node = router_with(|config| config.call_queue_bytes_max = 4_000_000);
        let channel = if bytes > 100_000 { Channel::Bulk } else { Channel::CALLS };
        for number in 0..calls {
            hears(&mut node, channel, &ping(number, bytes));
            if node.status().links.is_empty() {
                break;
            }
        }
        let waiting = node.status().links.first().map_or(0, |link| link.queued_bytes);
        assert!(waiting <= 8_000_000, "{waiting}");
        let mut told = 0;
        let mut sent = 0;
        while let Some(transmit) = node.poll_transmit() {
            sent += transmit.frame.wire_bytes();
            told += 1;
        }
        assert!(told > 2, "it was answered as long as there was room");
        assert!(sent <= limits::BULK_WINDOW_BYTES + limits::TRANSPORT_WINDOW_BYTES, "{sent}");
        let (_, actions) = drain(&mut node);
        assert_eq!(is_closed(&actions, CloseCode::SlowConsumer), calls == 100_000);
    }
}

#[test]
fn the_arguments_of_open_calls_are_bounded() {
    let mut world = World::new().tuned(|config| config.call_bytes_per_link_max = 1_000_000);
    let router = world.router();
    let (caller, provider) = (world.leaf(router), world.leaf(router));
    world.register(provider, "slow", 100);
    world.settle();
    let argument = "x".repeat(150_000);
    let calls: Vec<_> = (0..10).map(|_| world.call(caller, "slow", &argument)).collect();
    world.settle();
    let busy = |world: &World| {
        let results = calls.iter().filter_map(|call| world.result(caller, *call));
        results.filter(|result| result.as_ref().is_err_and(|e| e.class == ErrorClass::Busy)).count()
    };
    assert_eq!(busy(&world), 4);
    world.run_for(std::time::Duration::from_secs(6));
    world.serve_echo(provider, "echo");
    world.settle();
    let again = world.call(caller, "echo", &argument);
    world.settle();
    assert!(world.result(caller, again).unwrap().is_ok(), "calls that ended make room");
}

#[test]
fn nobody_can_open_the_realm_that_stands_for_the_endpoint() {
    let mut node = router_with(|config| config.admission = macula_proto::node::Admission::AnyOpen);
    let mut id = [7; 32];
    id[..8].fill(0);
    let offer = RealmOffer { realm: RealmId::from_bytes(id), grant: Bytes::new() };
    hears(&mut node, Channel::Control, &Message::Join(vec![offer]));
    let (messages, _) = drain(&mut node);
    let [Message::Realms(answers)] = &messages[..] else { panic!("{messages:?}") };
    assert!(answers[0].refusal.is_some());
}
