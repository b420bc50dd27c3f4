//! Nodes with links of their own, beside those to their gateway.

use std::time::{Duration, Instant};

use macula::{
    Node, PathKind, Peer, PeerError, Qos, Refusal, Request, Router, SecretKey, SlowPolicy, Strategy,
};

use crate::support::{bound, builder, dual_router, next, node, router, within};

async fn echo(request: Request) -> Result<macula::Bytes, Refusal> {
    Ok(request.payload)
}

/// Two nodes, and the first one's view of the second.
async fn linked(router: &Router, strategy: Strategy) -> (Node, Node, Peer) {
    let alice = within(builder(router).strategy(strategy).start()).await.unwrap();
    let bob = within(builder(router).strategy(strategy).start()).await.unwrap();
    let peer = within(alice.peer(bob.id())).await.unwrap();
    (alice, bob, peer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_is_called_directly_and_without_the_gateway() {
    let router = router().await;
    let (alice, bob, peer) = linked(&router, Strategy::Opportunistic).await;
    let _service = within(bob.serve("echo", echo)).await.unwrap();
    assert_eq!(within(peer.call("echo").arg("early").send()).await.unwrap(), "early");
    let path = within(peer.direct()).await.expect("the link lives");
    assert_eq!(path.kind, PathKind::Direct);
    assert!(path.remote.is_some() && path.relayed.sent > 0);
    // the other side sees the same, without having asked
    let back = within(bob.peer(alice.id())).await.unwrap();
    within(back.direct()).await.expect("the link lives");
    within(router.close()).await;
    assert_eq!(within(peer.call("echo").arg("late").send()).await.unwrap(), "late");
    within(peer.ping()).await.unwrap();
    within(back.ping()).await.unwrap();
    let status = within(alice.status()).await.unwrap();
    assert_eq!(status.paths.len(), 1);
    assert_eq!((status.paths[0].0, status.paths[0].1.kind), (bob.id(), PathKind::Direct));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_always_relays_does() {
    let router = router().await;
    let (_alice, _bob, peer) = linked(&router, Strategy::AlwaysRelay).await;
    let before = router.stats().await.unwrap().relayed;
    for _ in 0..20 {
        within(peer.ping()).await.unwrap();
    }
    let path = peer.path().expect("the link lives");
    assert_eq!((path.kind, path.remote, path.direct.sent), (PathKind::Relayed, None, 0));
    let stats = router.stats().await.unwrap();
    assert!(stats.relayed > before + 20, "{stats:?}");
    assert_eq!(stats.relay_refused, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn direct_only_is_direct_when_it_is_there() {
    let router = router().await;
    let (_alice, _bob, peer) = linked(&router, Strategy::DirectOnly).await;
    assert_eq!(peer.path().expect("the link lives").kind, PathKind::Direct);
    within(peer.ping()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_in_turn_lose_nothing_while_the_path_changes() {
    let router = router().await;
    let (_alice, bob, peer) = linked(&router, Strategy::Opportunistic).await;
    let _service = within(bob.serve("echo", echo)).await.unwrap();
    for number in 0..500u32 {
        let arg = number.to_string();
        let answer = within(peer.call("echo").arg(arg.clone()).send()).await.unwrap();
        assert_eq!(answer, arg);
    }
    assert_eq!(within(peer.direct()).await.map(|path| path.kind), Some(PathKind::Direct));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_may_dial_at_once() {
    let router = router().await;
    let (alice, bob) = (node(&router).await, node(&router).await);
    let (one, other) =
        within(async { tokio::join!(alice.peer(bob.id()), bob.peer(alice.id())) }).await;
    let (one, other) = (one.unwrap(), other.unwrap());
    let _service = within(bob.serve("echo", echo)).await.unwrap();
    // longer than the link that the other one replaces is kept for calls under way
    let begun = Instant::now();
    let mut number = 0u32;
    while begun.elapsed() < Duration::from_secs(2) {
        number += 1;
        let arg = number.to_string();
        let answer = within(one.call("echo").arg(arg.clone()).send()).await.unwrap();
        assert_eq!(answer, arg);
        within(other.ping()).await.unwrap();
    }
    within(one.direct()).await.expect("one link stays");
    within(other.direct()).await.expect("one link stays");
    for node in [&alice, &bob] {
        assert_eq!(within(node.status()).await.unwrap().paths.len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_there_is_named() {
    let router = router().await;
    let alice = node(&router).await;
    let nobody = SecretKey::from_seed([77; 32]).id();
    let error = within(alice.peer(nobody)).await.unwrap_err();
    assert!(error.to_string().contains("no such endpoint"), "{error}");
    assert_eq!(within(alice.peer(alice.id())).await.unwrap_err(), PeerError::Itself);
    // a peer of another realm is not there either
    let stranger =
        within(Node::builder().realm("other").gateway(crate::support::address(&router)).start());
    let stranger = stranger.await.unwrap();
    let error = within(alice.peer(stranger.id())).await.unwrap_err();
    assert!(error.to_string().contains("no such endpoint"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_goes_is_lost_and_can_come_back() {
    let router = router().await;
    let alice = node(&router).await;
    let key = SecretKey::generate().unwrap();
    let bob = within(builder(&router).key(key.clone()).start()).await.unwrap();
    let mut peer = within(alice.peer(bob.id())).await.unwrap();
    within(peer.direct()).await.expect("the link lives");
    within(bob.close()).await;
    while within(peer.changed()).await.is_some() {}
    assert_eq!(peer.path(), None);
    let bob = within(builder(&router).key(key).start()).await.unwrap();
    let again = within(alice.peer(bob.id())).await.unwrap();
    within(again.direct()).await.expect("the link lives");
    // the old handle knows it, too
    assert_eq!(peer.path().map(|path| path.kind), Some(PathKind::Direct));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streaming_calls_take_the_link_as_well() {
    let router = router().await;
    let (_alice, bob, peer) = linked(&router, Strategy::Opportunistic).await;
    let handler = |_: Request, mut items: macula::ItemReceiver, out: macula::ItemSender| async move {
        let mut count = 0_u32;
        while let Some(item) = items.next().await {
            out.send(item).await.ok();
            count += 1;
        }
        Ok::<_, Refusal>(count.to_string())
    };
    let _service = within(bob.serve_streaming("items", handler)).await.unwrap();
    let stream = within(peer.call("items").open()).await.unwrap();
    let (send, mut items, result) = stream.split();
    let sender = send.unwrap();
    let sending = tokio::spawn(async move {
        for number in 0..300u32 {
            sender.send(number.to_string()).await.unwrap();
        }
        drop(sender);
    });
    for number in 0..300u32 {
        assert_eq!(within(items.next()).await.unwrap(), number.to_string());
    }
    sending.await.unwrap();
    assert_eq!(within(result.wait()).await.unwrap(), "300");
}

/// A node publishes numbers, another one takes them; after a quarter of them they get a link.
async fn flow(qos: Qos) {
    const MESSAGES: u64 = 20_000;
    let router = router().await;
    let alice = within(builder(&router).start()).await.unwrap();
    let bob = within(builder(&router).start()).await.unwrap();
    let mut messages =
        within(bob.subscription("flow").policy(SlowPolicy::Block).open()).await.unwrap();
    let publisher = alice.publisher("flow").qos(qos).open().unwrap();
    let publishing = tokio::spawn(async move {
        for number in 0..MESSAGES {
            publisher.publish(number.to_be_bytes().to_vec()).await.unwrap();
        }
        publisher.flush().await.unwrap();
        publisher
    });
    for number in 0..MESSAGES {
        if number == MESSAGES / 4 {
            within(alice.peer(bob.id())).await.unwrap();
        }
        let message = next(&mut messages).await;
        assert_eq!(message.payload[..], number.to_be_bytes());
        assert_eq!(message.sequence, number + 1);
    }
    // from some moment on, nothing comes by the gateway, and QoS 0 does not go there
    let publisher = within(publishing).await.unwrap();
    let mut sequence = MESSAGES;
    let seen = async || {
        let stats = router.stats().await.unwrap();
        (stats.messages_out, if qos == Qos::AtMostOnce { stats.messages_in } else { 0 })
    };
    within(async {
        loop {
            let before = seen().await;
            publisher.publish("more").await.unwrap();
            sequence += 1;
            assert_eq!(next(&mut messages).await.sequence, sequence);
            publisher.flush().await.unwrap();
            if seen().await == before {
                break;
            }
        }
    })
    .await;
    let before = seen().await;
    let mut last = sequence;
    for _ in 0..1_000 {
        publisher.publish(vec![7; 1_000]).await.unwrap();
        last += 1;
    }
    while sequence < last {
        sequence += 1;
        assert_eq!(next(&mut messages).await.sequence, sequence);
    }
    assert_eq!(seen().await, before);
    assert_eq!(messages.lost(), 0);
    let link_of = async |node: &Node| {
        let links = within(node.status()).await.unwrap().links;
        links.into_iter().find(|link| link.is_peer_link).expect("a link of their own")
    };
    let (sent, received) = (link_of(&alice).await.published, link_of(&bob).await.received);
    assert!(received > 0 && received <= sent, "{received} of {sent}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishes_move_to_the_link() {
    flow(Qos::AtMostOnce).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_publishes_move_to_the_link() {
    flow(Qos::AtLeastOnce).await;
}

/// Two nodes that cannot reach each other directly, one with IPv4 only and one with IPv6 only, and a third
/// with both that carries for others.
async fn apart(router: &Router) -> [Node; 3] {
    let start = |at: &str, carries: bool| within(bound(router, at).carries(carries).start());
    [
        start("127.0.0.1:0", false).await.unwrap(),
        start("[::1]:0", false).await.unwrap(),
        start("[::]:0", true).await.unwrap(),
    ]
}

async fn until(peer: &Peer, wanted: PathKind) {
    let mut peer = peer.clone();
    while peer.path().expect("the link lives").kind != wanted {
        within(peer.changed()).await.expect("the link lives");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_carries_for_two_without_a_direct_path_also_when_the_gateway_is_gone() {
    let router = dual_router().await;
    let [alice, bob, carol] = apart(&router).await;
    let _service = within(bob.serve("echo", echo)).await.unwrap();
    let peer = within(alice.peer(bob.id())).await.unwrap();
    assert_eq!(peer.path().expect("the link lives").kind, PathKind::Relayed);
    until(&peer, PathKind::Member).await;
    let path = peer.path().expect("the link lives");
    assert_eq!((path.carrier, path.remote, path.server), (Some(carol.id()), None, None));
    let back = within(bob.peer(alice.id())).await.unwrap();
    until(&back, PathKind::Member).await;
    let before = router.stats().await.unwrap().relayed_bytes;
    let large = vec![7; 200_000];
    for _ in 0..5 {
        let answer = within(peer.call("echo").arg(large.clone()).send()).await.unwrap();
        assert_eq!(answer, large);
    }
    let relayed = router.stats().await.unwrap().relayed_bytes - before;
    assert!(relayed < 100_000, "{relayed} bytes went by the gateway");
    assert!(within(carol.status()).await.unwrap().stats.relayed_bytes > 2_000_000);
    within(router.close()).await;
    for number in 0..50_u32 {
        let arg = number.to_string();
        let answer = within(peer.call("echo").arg(arg.clone()).send()).await.unwrap();
        assert_eq!(answer, arg);
    }
    within(back.ping()).await.unwrap();
    assert_eq!(peer.path().expect("the link lives").carrier, Some(carol.id()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_member_that_carries_goes_the_gateway_takes_over_and_then_another_member() {
    let router = dual_router().await;
    let [alice, bob, carol] = apart(&router).await;
    let _service = within(bob.serve("echo", echo)).await.unwrap();
    let peer = within(alice.peer(bob.id())).await.unwrap();
    until(&peer, PathKind::Member).await;
    within(carol.close()).await;
    until(&peer, PathKind::Relayed).await;
    assert_eq!(within(peer.call("echo").arg("still").send()).await.unwrap(), "still");
    let dave = within(bound(&router, "[::]:0").carries(true).start()).await.unwrap();
    // it is asked for every 30 s
    let patience = Duration::from_secs(60);
    tokio::time::timeout(patience, until_long(&peer, PathKind::Member)).await.expect("in time");
    assert_eq!(peer.path().expect("the link lives").carrier, Some(dave.id()));
}

async fn until_long(peer: &Peer, wanted: PathKind) {
    let mut peer = peer.clone();
    while peer.path().expect("the link lives").kind != wanted {
        peer.changed().await.expect("the link lives");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_offer_to_carry_is_not_made_to() {
    let router = dual_router().await;
    let mut nodes = Vec::new();
    for at in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
        nodes.push(within(bound(&router, at).start()).await.unwrap());
    }
    let peer = within(nodes[0].peer(nodes[1].id())).await.unwrap();
    // longer than it takes to ask for one
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(4) {
        within(peer.ping()).await.unwrap();
        assert_eq!(peer.path().expect("the link lives").kind, PathKind::Relayed);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(within(nodes[2].status()).await.unwrap().stats.relayed, 0);
}
