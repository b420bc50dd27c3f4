//! Dialling, identity, and how links end.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use macula_proto::wire::frame::Channel;
use macula_transport::{
    BindError, DialError, DownReason, Endpoint, EndpointConfig, SecretKey, Target,
};

use crate::support::*;

#[tokio::test]
async fn both_sides_know_who_the_other_is() {
    let (one, two) = (endpoint(1), endpoint(2));
    let (dialled, accepted) = connect(&one, &two, 2).await;
    assert_eq!(dialled.peer(), SecretKey::from_seed([2; 32]).id());
    assert_eq!(accepted.peer(), SecretKey::from_seed([1; 32]).id());
    assert!(dialled.dialled() && !accepted.dialled());
    assert_eq!(dialled.remote(), two.local_addr());
    assert_eq!(accepted.remote(), one.local_addr());
}

#[tokio::test]
async fn another_key_than_the_expected_one_is_refused_and_both_are_named() {
    let (one, two) = (endpoint(1), endpoint(2));
    let [expected, found] = [9, 2].map(|seed| SecretKey::from_seed([seed; 32]).id());
    let error = soon("a dial", one.dial(&target(&two, 9))).await.unwrap_err();
    assert_eq!(error, DialError::WrongKey { addr: two.local_addr(), expected, found });
}

#[tokio::test]
async fn without_an_expected_key_the_peer_says_who_it_is() {
    let (one, two) = (endpoint(1), endpoint(2));
    let target = Target { expect: None, addrs: vec![two.local_addr()] };
    let connected = soon("a dial", one.dial(&target)).await.unwrap();
    assert_eq!(connected.peer(), SecretKey::from_seed([2; 32]).id());
}

#[tokio::test]
async fn every_address_is_tried() {
    let (one, two) = (endpoint(1), endpoint(2));
    let (_silent, dead) = silent_socket();
    let stranger = endpoint(3);
    let mut target = target(&two, 2);
    target.addrs = vec![dead, stranger.local_addr(), two.local_addr()];
    let started = Instant::now();
    let connected = soon("a dial", one.dial(&target)).await.unwrap();
    assert_eq!(connected.remote(), two.local_addr());
    assert!(started.elapsed() < Duration::from_secs(3), "did not wait for the dead address");
}

#[tokio::test]
async fn an_address_that_does_not_answer_is_a_timeout() {
    let mut config = config(1);
    config.handshake_timeout = Duration::from_millis(200);
    let one = Endpoint::bind(&config).unwrap();
    let (_silent, dead) = silent_socket();
    let target = Target { expect: None, addrs: vec![dead] };
    let error = soon("a dial", one.dial(&target)).await.unwrap_err();
    assert_eq!(error, DialError::Timeout { after: config.handshake_timeout, addrs: vec![dead] });
    let none = Target { expect: None, addrs: vec![] };
    assert_eq!(one.dial(&none).await.unwrap_err(), DialError::NoAddress);
}

#[tokio::test]
async fn an_endpoint_that_does_not_accept_is_not_reached() {
    let (mut quiet, mut caller) = (config(2), config(1));
    quiet.accept = false;
    caller.handshake_timeout = Duration::from_millis(300);
    let (one, two) = (Endpoint::bind(&caller).unwrap(), Endpoint::bind(&quiet).unwrap());
    assert!(soon("a dial", one.dial(&target(&two, 2))).await.is_err());
    assert!(two.accept().await.is_none());
}

#[tokio::test]
async fn a_port_in_use_is_told() {
    let first = endpoint(1);
    let mut config = config(2);
    config.listen = Some(first.local_addr());
    let error = Endpoint::bind(&config).unwrap_err();
    assert!(matches!(error, BindError::InUse { addr } if addr == first.local_addr()));
}

#[tokio::test]
async fn keep_alives_that_come_too_late_are_refused() {
    let mut config = config(1);
    config.keep_alive = Duration::from_secs(5);
    assert!(matches!(Endpoint::bind(&config).unwrap_err(), BindError::Timing { .. }));
}

#[tokio::test]
async fn without_a_listen_address_both_families_are_reached() {
    let one = Endpoint::bind(&EndpointConfig::new(SecretKey::from_seed([1; 32]))).unwrap();
    let two = endpoint(2);
    let (dialled, accepted) = connect(&one, &two, 2).await;
    // IPv4 is shown as such although the socket is IPv6.
    assert_eq!(dialled.remote(), two.local_addr());
    assert_eq!(accepted.remote().ip(), Ipv4Addr::LOCALHOST);
}

#[tokio::test]
async fn last_words_code_and_reason_reach_the_peer() {
    let mut pair = Pair::new().await;
    pair.acceptor.link.send(Channel::Control, frame(1, "first"));
    pair.dialler.frames(Channel::Control, 1).await;
    pair.acceptor.link.send(Channel::Control, frame(2, "goodbye"));
    pair.acceptor.link.close(6, "full");
    pair.acceptor.link.close(7, "too late");
    assert_eq!(pair.dialler.frames(Channel::Control, 1).await[0].payload, "goodbye");
    let reason = "full".to_owned();
    assert_eq!(pair.dialler.down().await, DownReason::Peer { code: 6, reason: reason.clone() });
    assert_eq!(pair.acceptor.down().await, DownReason::Local { code: 6, reason });
}

#[tokio::test]
async fn a_link_closed_right_after_its_start_still_says_why() {
    let mut pair = Pair::new().await;
    pair.dialler.link.send(Channel::Control, frame(1, "no"));
    pair.dialler.link.close(8, "denied");
    assert_eq!(pair.acceptor.frames(Channel::Control, 1).await[0].payload, "no");
    let reason = "denied".to_owned();
    assert_eq!(pair.acceptor.down().await, DownReason::Peer { code: 8, reason });
    pair.dialler.down().await;
}

#[tokio::test]
async fn a_refused_peer_hears_why() {
    let (one, two) = (endpoint(1), endpoint(2));
    let (dialled, accepted) = connect(&one, &two, 2).await;
    accepted.refuse(8, "denied");
    let reason = "denied".to_owned();
    assert_eq!(Side::start(dialled).down().await, DownReason::Peer { code: 8, reason });
}

#[tokio::test]
async fn dropping_the_handle_closes_the_link() {
    let mut pair = Pair::new().await;
    drop(pair.dialler.link.clone());
    pair.dialler.link.send(Channel::Control, frame(1, "still here"));
    pair.acceptor.frames(Channel::Control, 1).await;
    drop(pair.dialler);
    assert!(matches!(pair.acceptor.down().await, DownReason::Peer { code: 0, .. }));
}

#[tokio::test]
async fn closing_an_endpoint_closes_its_links() {
    let mut pair = Pair::new().await;
    let [one, two] = &pair.endpoints;
    soon("closing", one.close(5, "restarting")).await;
    let reason = "restarting".to_owned();
    assert_eq!(pair.acceptor.down().await, DownReason::Peer { code: 5, reason });
    pair.dialler.down().await;
    assert_eq!(one.dial(&target(two, 2)).await.unwrap_err(), DialError::Closed);
    assert!(one.accept().await.is_none());
}

#[tokio::test]
async fn a_vanished_peer_is_noticed_by_its_silence() {
    let mut config = config(1);
    config.keep_alive = Duration::from_millis(100);
    config.idle_timeout = Duration::from_millis(500);
    let one = Endpoint::bind(&config).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut dialler = vanish(&one, runtime).await.0;
    assert_eq!(dialler.down().await, DownReason::TimedOut);
}

/// Links `one` to an endpoint with key 2 in `runtime`, then kills that without a goodbye.
async fn vanish(one: &Endpoint, runtime: tokio::runtime::Runtime) -> (Side, std::net::SocketAddr) {
    let two = runtime.spawn(async { endpoint(2) }).await.unwrap();
    let addr = two.local_addr();
    let to = target(&two, 2);
    let accepting = runtime.spawn(async move {
        let connected = two.accept().await.unwrap();
        (two, Side::start(connected))
    });
    let mut dialler = Side::start(soon("a dial", one.dial(&to)).await.unwrap());
    let (two, acceptor) = soon("accepting", accepting).await.unwrap();
    acceptor.link.send(Channel::Control, frame(1, "hello"));
    dialler.frames(Channel::Control, 1).await;
    // With the runtime go all of the endpoint's tasks: nothing more is sent, as after a kill.
    runtime.shutdown_background();
    drop((two, acceptor));
    (dialler, addr)
}

#[tokio::test]
async fn a_restarted_peer_is_noticed_within_a_keep_alive() {
    let mut first = config(1);
    first.keep_alive = Duration::from_millis(300);
    let one = Endpoint::bind(&first).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (mut dialler, addr) = vanish(&one, runtime).await;
    let mut again = config(2);
    again.listen = Some(addr);
    // The killed endpoint's socket goes away with its runtime's threads, a moment later.
    let started = Instant::now();
    let _two = loop {
        match Endpoint::bind(&again) {
            Ok(two) => break two,
            Err(BindError::InUse { .. }) if started.elapsed() < PATIENCE => {
                tokio::task::yield_now().await;
            }
            Err(error) => panic!("{error}"),
        }
    };
    let restarted = Instant::now();
    assert_eq!(dialler.down().await, DownReason::Reset);
    assert!(restarted.elapsed() < Duration::from_secs(2), "took {:?}", restarted.elapsed());
}

#[tokio::test]
async fn a_flood_of_garbage_does_not_stop_a_good_dial() {
    let mut config = config(2);
    config.handshakes.running_max = 4;
    let two = Endpoint::bind(&config).unwrap();
    let one = endpoint(1);
    let addr = two.local_addr();
    let flood = tokio::task::spawn_blocking(move || {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut random = 1u64;
        for round in 0..20_000u64 {
            let mut packet = [0u8; 1200];
            for byte in &mut packet {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(round | 1);
                *byte = (random >> 56) as u8;
            }
            if round % 2 == 0 {
                // The start of a QUIC v1 Initial: long header, version, two 8-byte ids.
                packet[..6].copy_from_slice(&[0xc0, 0, 0, 0, 1, 8]);
                packet[14] = 8;
            }
            let _full = socket.send_to(&packet, addr);
        }
    });
    for _ in 0..5 {
        drop(connect(&one, &two, 2).await);
    }
    flood.await.unwrap();
    drop(connect(&one, &two, 2).await);
}

#[tokio::test]
async fn a_key_that_connects_in_a_loop_hears_why_it_is_turned_away() {
    let mut config = config(2);
    config.handshakes.per_key_max = 1;
    let (one, two, three) = (endpoint(1), Endpoint::bind(&config).unwrap(), endpoint(3));
    // Five are let in at once.
    for _ in 0..5 {
        drop(connect(&one, &two, 2).await);
    }
    let dialled = soon("a dial", one.dial(&target(&two, 2))).await.unwrap();
    match Side::start(dialled).down().await {
        DownReason::Peer { code: 6, reason } => {
            assert!(reason.starts_with("this key connects too often; wait "), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    drop(connect(&three, &two, 2).await);
    let stats = two.handshakes();
    assert_eq!((stats.completed, stats.refused_key), (7, 1));
    assert_eq!(one.handshakes().completed, 0, "who dials does not count");
}

#[tokio::test]
async fn only_what_could_open_a_connection_gets_an_offer_of_versions() {
    let two = endpoint(2);
    let socket = tokio::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    socket.connect(two.local_addr()).await.unwrap();
    let mut packet = [0x55u8; 1200];
    packet[..7].copy_from_slice(&[0xc0, 0x0a, 0x1a, 0x2a, 0x3a, 0, 0]);
    for bytes in [7, 1199, 1200] {
        socket.send(&packet[..bytes]).await.unwrap();
    }
    let mut answer = [0u8; 1500];
    let bytes = soon("an offer", socket.recv(&mut answer)).await.unwrap();
    assert_eq!(answer[1..5], [0; 4], "not an offer of versions");
    assert!(bytes < 32, "{bytes} bytes");
    assert!(socket.try_recv(&mut answer).is_err(), "an answer to a small packet");
    assert_eq!(two.handshakes().junk, 2);
}
