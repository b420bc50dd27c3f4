//! Gateways reached over TLS and TCP.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use macula::{
    Event, Node, PathKind, Qos, Refusal, Request, Router, SecretKey, SlowPolicy, Strategy,
    TunnelConfig, Via,
};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use crate::support::{REALM, builder, event, loopback, next, next_text, within};

async fn router_at(listen: SocketAddr, key: &SecretKey) -> Router {
    within(async {
        loop {
            let builder = Router::builder().listen(listen).any_open_realm().key(key.clone());
            let Ok(router) = builder.tunnels(true).start().await else {
                tokio::time::sleep(Duration::from_millis(5)).await;
                continue;
            };
            // By TCP at the number that it has by UDP: if that is free.
            if router.listen_for_tunnels(&TunnelConfig::new(vec![router.local_addr()])).is_ok() {
                return router;
            }
            router.close().await;
        }
    })
    .await
}

async fn router() -> Router {
    router_at(loopback(), &SecretKey::generate().unwrap()).await
}

async fn echo(request: Request) -> Result<macula::Bytes, Refusal> {
    Ok(request.payload)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_meet_however_they_reach_the_gateway() {
    let router = router().await;
    for via in [[Via::Tls, Via::Udp], [Via::Udp, Via::Tls], [Via::Tls, Via::Tls]] {
        let [alice, bob] = via.map(|via| builder(&router).via(via).strategy(Strategy::AlwaysRelay));
        let (alice, bob) =
            (within(alice.start()).await.unwrap(), within(bob.start()).await.unwrap());
        for (node, via) in [(&alice, via[0]), (&bob, via[1])] {
            let status = within(node.status()).await.unwrap();
            assert_eq!(status.is_tunnelled, via == Via::Tls);
        }
        for (from, to) in [(&alice, &bob), (&bob, &alice)] {
            let mut messages = within(to.subscribe("news")).await.unwrap();
            within(from.publish("news", "it works")).await.unwrap();
            assert_eq!(next_text(&mut messages).await, "it works");
        }
        let _service = within(bob.serve("echo", echo)).await.unwrap();
        let peer = within(alice.peer(bob.id())).await.unwrap();
        let large = vec![7; 200_000];
        assert_eq!(within(peer.call("echo").arg(large.clone()).send()).await.unwrap(), large);
        assert_eq!(peer.path().expect("the link lives").kind, PathKind::Relayed);
        within(alice.close()).await;
        within(bob.close()).await;
    }
    assert_eq!(router.tunnels().opened, 4);
    within(router.close()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_is_killed_is_found_again_over_tcp() {
    let key = SecretKey::generate().unwrap();
    let router = router_at(loopback(), &key).await;
    let listen = router.local_addr();
    let node = within(builder(&router).via(Via::Tls).start()).await.unwrap();
    let mut messages = within(node.subscribe("a")).await.unwrap();
    let mut events = node.events();
    drop(router);
    event(&mut events, |it| matches!(it, Event::Disconnected { .. }).then_some(())).await;
    let _router = router_at(listen, &key).await;
    event(&mut events, |it| matches!(it, Event::Reconnected { .. }).then_some(())).await;
    assert!(within(node.status()).await.unwrap().is_tunnelled);
    within(node.publish("a", "again")).await.unwrap();
    assert_eq!(next_text(&mut messages).await, "again");
}

/// Passes TCP on.
async fn pass_tcp(listener: TcpListener, to: SocketAddr) {
    while let Ok((mut from, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut to = TcpStream::connect(to).await.unwrap();
            tokio::io::copy_bidirectional(&mut from, &mut to).await.ok();
        });
    }
}

/// Passes UDP of one client on.
async fn pass_udp(near: Arc<UdpSocket>, to: SocketAddr) {
    let far = UdpSocket::bind(loopback()).await.unwrap();
    let mut client = None;
    let (mut one, mut other) = (vec![0; 65_536], vec![0; 65_536]);
    loop {
        tokio::select! {
            Ok((bytes, from)) = near.recv_from(&mut one) => {
                client = Some(from);
                far.send_to(&one[..bytes], to).await.ok();
            }
            Ok((bytes, _)) = far.recv_from(&mut other) => {
                if let Some(client) = client {
                    near.send_to(&other[..bytes], client).await.ok();
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_udp_is_blocked_tcp_is_used_until_udp_passes_and_nothing_is_lost() {
    let router = router().await;
    // A firewall that takes UDP and says nothing, at a port that it also has by TCP.
    let (udp, tcp) = within(async {
        loop {
            let udp = UdpSocket::bind(loopback()).await.unwrap();
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
                return (Arc::new(udp), tcp);
            }
        }
    })
    .await;
    let firewall = udp.local_addr().unwrap();
    tokio::spawn(pass_tcp(tcp, router.local_addr()));
    let gateway = format!("{}@{firewall}", router.id());
    let behind = within(Node::builder().realm(REALM).gateway(gateway).start()).await.unwrap();
    assert!(within(behind.status()).await.unwrap().is_tunnelled);
    let subscriber = within(builder(&router).start()).await.unwrap();
    let mut messages =
        within(subscriber.subscription("steady").policy(SlowPolicy::Block).open()).await.unwrap();
    let publisher = behind.publisher("steady").qos(Qos::AtLeastOnce).open().unwrap();
    let mut events = behind.events();
    let moved = event(&mut events, |it| match it {
        Event::Moved { is_tunnelled, .. } => Some(Ok(*is_tunnelled)),
        Event::Disconnected { reason, .. } => Some(Err(reason.clone())),
        _ => None,
    });
    tokio::pin!(moved);
    tokio::spawn(pass_udp(udp, router.local_addr()));
    let mut published = 0u64;
    // On and on, over the move.
    let outcome = loop {
        tokio::select! {
            biased;
            outcome = &mut moved => break outcome,
            () = tokio::time::sleep(Duration::from_millis(1)) => {
                published += 1;
                within(publisher.publish(published.to_string())).await.unwrap();
            }
        }
    };
    assert_eq!(outcome, Ok(false));
    assert!(!within(behind.status()).await.unwrap().is_tunnelled);
    published += 1;
    within(publisher.publish(published.to_string())).await.unwrap();
    for number in 1..=published {
        assert_eq!(next(&mut messages).await.payload, number.to_string());
    }
    let report = within(publisher.flush()).await.unwrap();
    assert_eq!(report.delivered, published);
    assert_eq!(messages.lost(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_firewall_that_swallows_tcp_does_not_hold_udp_up() {
    let (udp, tcp) = within(async {
        loop {
            let udp = UdpSocket::bind(loopback()).await.unwrap();
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
                return (udp, tcp);
            }
        }
    })
    .await;
    let gateway = udp.local_addr().unwrap().to_string();
    let starting = tokio::spawn(Node::builder().realm(REALM).gateway(gateway).start());
    let (mut dials, mut swallowed) = (std::collections::BTreeSet::new(), Vec::new());
    let mut packet = vec![0; 65_536];
    // Each dial has a connection id of its own (RFC 9000 §17.2). A second attempt as a whole would
    // come by TCP again before its second dial by UDP.
    while dials.len() < 3 {
        tokio::select! {
            stream = within(tcp.accept()) => swallowed.push(stream.unwrap()),
            received = within(udp.recv_from(&mut packet)) => {
                received.unwrap();
                let length = usize::from(packet[5]);
                dials.insert(packet[6..6 + length].to_vec());
            }
        }
    }
    assert_eq!(swallowed.len(), 1);
    starting.abort();
}
