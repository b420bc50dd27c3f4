//! Links between peers through TURN servers, and addresses told by STUN servers.

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use macula_nat::stun::{Binding, Listener};
use macula_nat::turn::{
    Client, Issuer, Limits, ListenerId, Now, Output, PeerPolicy, RelayId, Server, ServerConfig,
};
use macula_proto::Time;
use macula_transport::{EndpointConfig, PathKind, TurnServer, TurnUse};

use crate::peers::{Hub, exchange, hub_with, until};
use crate::support::soon;

/// A TURN server on IPv6 loopback that relays IPv4. Threads that read end with the test.
struct Turn {
    server: Mutex<Server>,
    issuer: Issuer,
    socket: UdpSocket,
    relays: Mutex<BTreeMap<RelayId, Arc<UdpSocket>>>,
    started: Instant,
    /// Takes nothing any more.
    is_down: AtomicBool,
    relayed: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap()
}

impl Turn {
    fn start() -> Arc<Self> {
        let issuer = Issuer::new(b"secret", Duration::from_secs(3_600));
        let config = ServerConfig {
            realm: "test".to_owned(),
            issuer: issuer.clone(),
            policy: PeerPolicy { allow_loopback: true, allow_private: true, own: Vec::new() },
            limits: Limits::default(),
            has_ipv4: true,
            has_ipv6: false,
            seed: [1; 32],
        };
        let started = Instant::now();
        let turn = Arc::new(Self {
            server: Mutex::new(Server::new(now(started), config)),
            issuer,
            socket: UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).unwrap(),
            relays: Mutex::default(),
            started,
            is_down: AtomicBool::new(false),
            relayed: AtomicU64::new(0),
        });
        let server = Arc::clone(&turn);
        std::thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            while let Ok((length, from)) = server.socket.recv_from(&mut buffer) {
                let client = Client { listener: ListenerId(0), remote: from };
                let mut out = Vec::new();
                if !server.is_down.load(Ordering::Relaxed) {
                    let now = now(server.started);
                    lock(&server.server).client_packet(now, client, &buffer[..length], &mut out);
                    server.perform(out);
                }
            }
        });
        turn
    }

    fn perform(self: &Arc<Self>, out: Vec<Output<'_>>) {
        for output in out {
            match output {
                Output::ToClient { client, data } => {
                    self.socket.send_to(&data, client.remote).ok();
                }
                Output::ToPeer { relay, peer, data } => {
                    self.relayed.fetch_add(1, Ordering::Relaxed);
                    let socket = lock(&self.relays).get(&relay).cloned();
                    socket.unwrap().send_to(data, peer).ok();
                }
                Output::Bind { relay, .. } => {
                    let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").unwrap());
                    let address = socket.local_addr().unwrap();
                    lock(&self.relays).insert(relay, Arc::clone(&socket));
                    let server = Arc::clone(self);
                    std::thread::spawn(move || server.read(relay, &socket));
                    let mut more = Vec::new();
                    let now = now(self.started);
                    lock(&self.server).bound(now, relay, Some(address), &mut more);
                    self.perform(more);
                }
                Output::Close { relay } => drop(lock(&self.relays).remove(&relay)),
                other => panic!("{other:?}"),
            }
        }
    }

    fn read(self: &Arc<Self>, relay: RelayId, socket: &UdpSocket) {
        let mut buffer = vec![0; 65_536];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let mut out = Vec::new();
            let now = now(self.started);
            if !self.is_down.load(Ordering::Relaxed) {
                lock(&self.server).peer_packet(now, relay, from, &buffer[..length], &mut out);
                self.perform(out);
            }
        }
    }

    fn allocations(&self) -> u64 {
        lock(&self.server).stats().allocations
    }

    /// As a client has it in its configuration.
    fn server(&self) -> TurnServer {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let credentials = self.issuer.issue("alice", unix);
        let port = self.socket.local_addr().unwrap().port();
        TurnServer {
            uri: format!("turn:[::1]:{port}?transport=udp").parse().unwrap(),
            username: credentials.username,
            password: credentials.password,
        }
    }
}

fn now(started: Instant) -> Now {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    Now { time: Time::START + started.elapsed(), unix }
}

/// Two peers that cannot reach each other directly: alice (2) has only IPv6, bob (3) only IPv4.
async fn apart(change: impl Fn(u8, &mut EndpointConfig)) -> Hub {
    hub_with(|seed, config| {
        let host = if seed == 2 { "[::1]:0" } else { "127.0.0.1:0" };
        config.listen = Some(host.parse().unwrap());
        change(seed, config);
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_dials_uses_its_turn_server() {
    let turn = Turn::start();
    let hub = apart(|seed, config| {
        if seed == 2 {
            config.turn_servers = vec![turn.server()];
        }
    })
    .await;
    let (mut alice, mut bob) = hub.link().await;
    exchange(&mut alice, &mut bob, 100, 100).await;
    assert_eq!(alice.link.path().unwrap().kind, PathKind::Relayed);
    until(&alice, PathKind::Turn).await;
    until(&bob, PathKind::Turn).await;
    let before = hub.passed();
    exchange(&mut alice, &mut bob, 300, 1_000).await;
    exchange(&mut bob, &mut alice, 300, 1_000).await;
    assert!(hub.passed() - before < 100, "{} packets went by the gateway", hub.passed() - before);
    let (here, there) = (alice.link.path().unwrap(), bob.link.path().unwrap());
    assert_eq!(here.remote, Some(hub.bob.local_addr()));
    assert_eq!(here.server, Some(turn.socket.local_addr().unwrap()));
    let relayed = hub.alice.turn_status()[0].relayed;
    assert_eq!((there.remote, there.server), (relayed, None));
    assert!(here.turn.sent > 300_000 && there.turn.sent > 300_000, "{here:?} {there:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_dialled_does_so_too() {
    let turn = Turn::start();
    let hub = hub_with(|seed, config| {
        // The other way round: who is dialled has IPv6 and the server.
        let host = if seed == 3 { "[::1]:0" } else { "127.0.0.1:0" };
        config.listen = Some(host.parse().unwrap());
        if seed == 3 {
            config.turn_servers = vec![turn.server()];
            config.turn_use = TurnUse::AtOnce;
        }
    })
    .await;
    let (mut alice, mut bob) = hub.link().await;
    until(&alice, PathKind::Turn).await;
    until(&bob, PathKind::Turn).await;
    exchange(&mut alice, &mut bob, 300, 1_000).await;
    exchange(&mut bob, &mut alice, 300, 1_000).await;
    assert!(bob.link.path().unwrap().turn.received > 300_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_server_that_dies_gives_way_to_the_gateway_and_nothing_is_lost() {
    let turn = Turn::start();
    let hub = apart(|seed, config| {
        if seed == 2 {
            config.turn_servers = vec![turn.server()];
        }
    })
    .await;
    let (mut alice, mut bob) = hub.link().await;
    until(&alice, PathKind::Turn).await;
    until(&bob, PathKind::Turn).await;
    turn.is_down.store(true, Ordering::Relaxed);
    exchange(&mut alice, &mut bob, 300, 1_000).await;
    assert_eq!(alice.link.path().unwrap().kind, PathKind::Relayed);
    turn.is_down.store(false, Ordering::Relaxed);
    until(&alice, PathKind::Turn).await;
    exchange(&mut bob, &mut alice, 300, 1_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_allocation_is_made_where_a_direct_path_is() {
    let turn = Turn::start();
    let hub = hub_with(|_, config| config.turn_servers = vec![turn.server()]).await;
    let (mut alice, mut bob) = hub.link().await;
    until(&alice, PathKind::Direct).await;
    until(&bob, PathKind::Direct).await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    exchange(&mut alice, &mut bob, 10, 100).await;
    assert_eq!((turn.allocations(), hub.alice.turn_status()), (0, vec![]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_closes_gives_its_allocation_back() {
    let turn = Turn::start();
    let hub = apart(|seed, config| {
        if seed == 2 {
            (config.turn_servers, config.turn_use) = (vec![turn.server()], TurnUse::AtOnce);
        }
    })
    .await;
    let (alice, _bob) = hub.link().await;
    until(&alice, PathKind::Turn).await;
    assert_eq!(turn.allocations(), 1);
    hub.alice.close(0, "").await;
    soon("the end of the allocation", async {
        while turn.allocations() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_is_told() {
    let turn = Turn::start();
    let hub = apart(|seed, config| {
        if seed == 2 {
            let server = TurnServer { password: "wrong".to_owned(), ..turn.server() };
            (config.turn_servers, config.turn_use) = (vec![server], TurnUse::AtOnce);
        }
    })
    .await;
    let (mut alice, mut bob) = hub.link().await;
    soon("a refusal", async {
        while hub.alice.turn_status().iter().all(|status| status.error.is_none()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let error = hub.alice.turn_status()[0].error.clone().unwrap();
    assert!(error.contains("401") && error.contains("password"), "{error}");
    exchange(&mut alice, &mut bob, 10, 100).await;
}

/// Answers with an address of its own choice, after forged answers of others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stun_server_tells_candidates_and_forgers_do_not() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let other = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let hub = hub_with(|seed, config| {
        if seed == 2 {
            config.stun_servers = vec![format!("stun:127.0.0.1:{port}").parse().unwrap()];
        }
    })
    .await;
    let (alice, _bob) = hub.link().await;
    let asked = tokio::task::spawn_blocking(move || {
        let mut buffer = [0; 2_000];
        let (length, from) = server.recv_from(&mut buffer).unwrap();
        let mut binding = Binding::default();
        binding.addresses[0] = Some(server.local_addr().unwrap());
        let answer = |seen: &str| {
            let seen: SocketAddr = seen.parse().unwrap();
            binding.answer(&buffer[..length], seen, Listener::PRIMARY).unwrap().data
        };
        other.send_to(&answer("127.0.0.1:666"), from).unwrap();
        let mut stray = answer("127.0.0.1:667");
        // Another transaction.
        stray[10] ^= 1;
        server.send_to(&stray, from).unwrap();
        server.send_to(&answer("127.0.0.1:777"), from).unwrap();
        from
    });
    let from = soon("a request", asked).await.unwrap();
    assert_eq!(from, hub.alice.local_addr(), "from the socket that QUIC uses");
    soon("the address", async {
        while !hub.alice.candidates().contains(&"127.0.0.1:777".parse().unwrap()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let forged = ["127.0.0.1:666".parse().unwrap(), "127.0.0.1:667".parse().unwrap()];
    assert!(!hub.alice.candidates().iter().any(|it| forged.contains(it)));
    // One of them fails the fingerprint and is junk.
    assert!(hub.alice.nat_drops().0 >= 1);
    until(&alice, PathKind::Direct).await;
}
