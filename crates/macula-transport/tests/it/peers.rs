//! Links between peers: relayed, direct, and from one to the other.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use macula_proto::id::LinkId;
use macula_proto::wire::frame::Channel;
use macula_proto::wire::relay::{Datagram, Part, Unreachable};
use macula_transport::{
    Endpoint, EndpointConfig, Link, LinkEvent, LinkEventKind, PathKind, PeerError, SecretKey,
    Strategy,
};
use tokio::sync::mpsc;

use crate::support::{Side, config, endpoint, frame, soon, target};

const LANE: Channel = Channel::Lane(1);

/// What the relay does to packets, all counted from 1; 0: never.
#[derive(Debug, Default)]
struct Weather {
    drop_every: AtomicU64,
    double_every: AtomicU64,
    delay_every: AtomicU64,
    passed: AtomicU64,
}

/// A gateway that does nothing but relay, and two peers.
pub(crate) struct Hub {
    weather: Arc<Weather>,
    pub(crate) alice: Endpoint,
    pub(crate) bob: Endpoint,
    /// Of no use to most.
    pub(crate) carol: Endpoint,
    _gateway: Endpoint,
    _links: Vec<Side>,
}

fn peer(seed: u8, change: impl FnOnce(&mut EndpointConfig)) -> Endpoint {
    let mut config = EndpointConfig::new(SecretKey::from_seed([seed; 32]));
    config.listen = Some((Ipv4Addr::LOCALHOST, 0).into());
    config.peers = true;
    change(&mut config);
    Endpoint::bind(&config).unwrap()
}

pub(crate) fn id(seed: u8) -> macula_proto::EndpointId {
    SecretKey::from_seed([seed; 32]).id()
}

async fn hub(change: impl Fn(&mut EndpointConfig)) -> Hub {
    hub_with(|_, config| change(config)).await
}

/// With settings by seed: 2 for alice, 3 for bob, 4 for carol.
pub(crate) async fn hub_with(change: impl Fn(u8, &mut EndpointConfig)) -> Hub {
    let mut config = config(1);
    config.listen = Some((Ipv6Addr::UNSPECIFIED, 0).into());
    let gateway = Endpoint::bind(&config).unwrap();
    let weather = Arc::new(Weather::default());
    let [alice, bob, carol] = [2, 3, 4].map(|seed| peer(seed, |it| change(seed, it)));
    let (sender, events) = mpsc::channel(1024);
    let mut at_gateway = Vec::new();
    let mut links = Vec::new();
    for (number, peer) in [(2, &alice), (3, &bob), (4, &carol)] {
        let is_ipv6 = peer.local_addr().is_ipv6();
        let host = if is_ipv6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() };
        let mut gateway_at = target(&gateway, 1);
        gateway_at.addrs = vec![SocketAddr::new(host, gateway.local_addr().port())];
        let (dialled, accepted) = tokio::join!(peer.dial(&gateway_at), gateway.accept());
        let link = accepted.unwrap().start(LinkId(number), sender.clone());
        link.open_lanes();
        at_gateway.push(link);
        let side = Side::start(dialled.unwrap());
        side.link.open_lanes();
        peer.relay_through(&side.link);
        links.push(side);
    }
    tokio::spawn(relay(events, at_gateway, Arc::clone(&weather)));
    Hub { weather, alice, bob, carol, _gateway: gateway, _links: links }
}

/// What a router does, with the weather.
async fn relay(mut events: mpsc::Receiver<LinkEvent>, links: Vec<Link>, weather: Arc<Weather>) {
    let mut late = None;
    while let Some(LinkEvent { link, kind }) = events.recv().await {
        let LinkEventKind::Datagrams(datagrams) = kind else { continue };
        let from = id(link.0 as u8);
        for bytes in datagrams {
            let Some(Datagram::Relay { to, part, packet }) = Datagram::decode(&bytes) else {
                panic!("peers send packets only");
            };
            let Some(to_link) = links.iter().find(|link| link.peer() == to) else {
                let back = links.iter().find(|link| link.peer() == from).unwrap();
                back.send_datagram(Datagram::Unreachable { to, reason: Unreachable::NotHere });
                continue;
            };
            let number = weather.passed.fetch_add(1, Ordering::Relaxed) + 1;
            let is_due = |every: &AtomicU64| {
                let every = every.load(Ordering::Relaxed);
                every != 0 && number.is_multiple_of(every)
            };
            let datagram = Datagram::Relayed { from, part, packet };
            if is_due(&weather.drop_every) {
                continue;
            }
            if is_due(&weather.double_every) {
                to_link.send_datagram(datagram.clone());
            }
            if is_due(&weather.delay_every) && late.is_none() {
                late = Some((to_link.clone(), datagram));
                continue;
            }
            to_link.send_datagram(datagram);
            if let Some((to_link, datagram)) = late.take() {
                to_link.send_datagram(datagram);
            }
        }
    }
}

impl Hub {
    /// Packets that the gateway was given.
    pub(crate) fn passed(&self) -> u64 {
        self.weather.passed.load(Ordering::Relaxed)
    }

    /// Both ends of a link that alice dialled.
    pub(crate) async fn link(&self) -> (Side, Side) {
        let (dialled, accepted) =
            soon("a link", async { tokio::join!(self.alice.dial_peer(id(3)), self.bob.accept()) })
                .await;
        let (dialled, accepted) = (dialled.unwrap(), accepted.unwrap());
        assert_eq!((dialled.peer(), accepted.peer()), (id(3), id(2)));
        assert!(dialled.is_peer_link() && accepted.is_peer_link());
        let sides = (Side::start(dialled), Side::start(accepted));
        sides.0.link.open_lanes();
        sides.1.link.open_lanes();
        sides
    }
}

pub(crate) async fn until(side: &Side, wanted: PathKind) {
    let mut watch = side.link.watch_path().unwrap();
    let changed = async {
        while watch.now().0 != wanted {
            watch.changed().await.expect("the link lives");
        }
    };
    soon("a path", changed).await;
}

/// Sends numbered frames one way and checks that all come, in order.
pub(crate) async fn exchange(from: &mut Side, to: &mut Side, count: u32, bytes: usize) {
    for number in 0..count {
        let mut body = number.to_be_bytes().to_vec();
        body.resize(bytes.max(4), 7);
        from.link.send(LANE, frame(9, body));
        from.absorb();
    }
    let mut expected = 0;
    while expected < count {
        from.absorb();
        let (frames, _permit) = to.batch(LANE).await;
        for frame in frames {
            assert_eq!(frame.payload[..4], expected.to_be_bytes());
            expected += 1;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_begins_relayed_and_becomes_direct() {
    let hub = hub(|_| {}).await;
    let (mut alice, mut bob) = hub.link().await;
    exchange(&mut alice, &mut bob, 100, 100).await;
    until(&alice, PathKind::Direct).await;
    until(&bob, PathKind::Direct).await;
    let info = alice.link.path().unwrap();
    assert_eq!(info.remote, Some(hub.bob.local_addr()));
    assert!(info.relayed.sent > 1_200 && info.relayed.received > 1_200);
    // what follows does not burden the gateway
    let before = hub.weather.passed.load(Ordering::Relaxed);
    exchange(&mut alice, &mut bob, 500, 2_000).await;
    exchange(&mut bob, &mut alice, 500, 2_000).await;
    let relayed = hub.weather.passed.load(Ordering::Relaxed) - before;
    assert!(relayed < 100, "{relayed} packets were relayed");
    let info = alice.link.path().unwrap();
    assert!(info.direct.sent > 1_000_000 && info.direct.received > 1_000_000, "{info:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_address_families_at_once_work_as_well() {
    let hub = hub(|config| config.listen = None).await;
    let (mut alice, mut bob) = hub.link().await;
    exchange(&mut alice, &mut bob, 100, 100).await;
    until(&alice, PathKind::Direct).await;
    until(&bob, PathKind::Direct).await;
    exchange(&mut bob, &mut alice, 100, 100).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_always_relays_never_shows_its_address() {
    let hub = hub(|config| config.strategy = Strategy::AlwaysRelay).await;
    let (mut alice, mut bob) = hub.link().await;
    for _ in 0..5 {
        exchange(&mut alice, &mut bob, 200, 1_000).await;
        exchange(&mut bob, &mut alice, 200, 1_000).await;
    }
    for side in [&alice, &bob] {
        let info = side.link.path().unwrap();
        assert_eq!((info.kind, info.remote, info.direct.sent), (PathKind::Relayed, None, 0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_direct_means_direct_from_the_first_frame() {
    let hub = hub(|config| config.strategy = Strategy::DirectOnly).await;
    let (mut alice, mut bob) = hub.link().await;
    assert_eq!(alice.link.path().unwrap().kind, PathKind::Direct);
    exchange(&mut alice, &mut bob, 10, 100).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_drops_doubles_and_reorders_costs_nothing_but_time() {
    let hub = hub(|config| config.strategy = Strategy::AlwaysRelay).await;
    let (mut alice, mut bob) = hub.link().await;
    hub.weather.drop_every.store(13, Ordering::Relaxed);
    hub.weather.double_every.store(7, Ordering::Relaxed);
    hub.weather.delay_every.store(5, Ordering::Relaxed);
    exchange(&mut alice, &mut bob, 2_000, 500).await;
    exchange(&mut bob, &mut alice, 2_000, 500).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_is_not_there_is_known_at_once() {
    let hub = hub(|_| {}).await;
    let started = Instant::now();
    let error = soon("an error", hub.alice.dial_peer(id(77))).await.unwrap_err();
    assert_eq!(error, PeerError::NotHere);
    assert!(started.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn without_a_gateway_there_is_no_relay() {
    let alice = peer(2, |_| {});
    let error = alice.dial_peer(id(3)).await.unwrap_err();
    assert!(matches!(error, PeerError::Unusable { .. }), "{error:?}");
    let other = endpoint(9);
    assert_eq!(other.dial_peer(id(3)).await.unwrap_err(), PeerError::Disabled);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_has_peers_only_takes_no_strangers() {
    let hub = hub(|_| {}).await;
    let stranger = endpoint(9);
    let mut at_alice = target(&hub.alice, 2);
    at_alice.expect = None;
    let dialled = tokio::time::timeout(Duration::from_millis(700), stranger.dial(&at_alice)).await;
    assert!(dialled.is_err(), "{dialled:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unsolicited_packets_change_nothing() {
    let hub = hub(|_| {}).await;
    let (mut alice, mut bob) = hub.link().await;
    until(&alice, PathKind::Direct).await;
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    for round in 0..2_000_u32 {
        // short headers, initials and probes of nobody
        let mut packet = vec![0x40 | (round % 64) as u8; 1_250];
        packet[1..5].copy_from_slice(&round.to_be_bytes());
        if round % 3 == 0 {
            packet[..5].copy_from_slice(&[0xc0, 0, 0, 0, 1]);
        }
        socket.send_to(&packet, hub.alice.local_addr()).unwrap();
        // and datagrams of a gateway that lies
        if round % 100 == 0 {
            exchange(&mut alice, &mut bob, 10, 100).await;
        }
    }
    until(&alice, PathKind::Direct).await;
    assert_eq!(alice.link.path().unwrap().remote, Some(hub.bob.local_addr()));
    exchange(&mut bob, &mut alice, 100, 100).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_relayed_garbage_is_dropped_and_counted() {
    let hub = hub(|_| {}).await;
    let (mut alice, mut bob) = hub.link().await;
    // bob's link to the gateway carries what claims to come from 10,000 endpoints
    let gateway = &hub._links[1];
    for number in 0..10_000_u32 {
        let to = id(2);
        let packet = Bytes::from(number.to_be_bytes().repeat(10));
        gateway.link.send_datagram(Datagram::Relay { to, part: Part::Whole, packet });
        if number % 500 == 0 {
            exchange(&mut alice, &mut bob, 10, 100).await;
        }
    }
    exchange(&mut alice, &mut bob, 100, 100).await;
    exchange(&mut bob, &mut alice, 100, 100).await;
    assert!(hub.alice.relay_drops().0 > 0);
}
