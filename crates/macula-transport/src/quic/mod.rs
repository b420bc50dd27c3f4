//! Everything that knows which QUIC stack this is. Nothing outside this module names it.

pub(crate) mod anonymous;
mod config;
mod magic;
mod members;
mod pace;
mod paths;
#[cfg(feature = "portmap")]
mod portmap;
mod runtime;
mod search;
mod sieve;
mod stun;
mod tls;
mod tunnel;
mod turn;

use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use macula_nat::path::{Candidate, Candidates, Kind, Side, Strategy};
use macula_nat::report::StunServer;
use macula_nat::search::Stats as SearchStats;
use macula_proto::id::EndpointId;
use macula_proto::limits;
use macula_proto::wire::frame::Class;
use macula_proto::wire::offer;
use macula_proto::wire::relay::{Datagram, Unreachable};
use macula_proto::wire::via;
use noq::{AsyncUdpSocket, ConnectionError, PathId, Runtime, UdpSender, VarInt};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::{oneshot, watch};

use crate::crew::Crew;
use crate::endpoint::EndpointConfig;
use crate::event::DownReason;
use crate::sync::lock;
use magic::Magic;
pub use members::CarrierWanted;
use paths::PathState;
pub(crate) use paths::Selected;
pub use paths::{PathInfo, PathKind, Traffic};
#[cfg(feature = "portmap")]
pub use portmap::{MappedBy, probe_port_mapping};
use tunnel::Tunnels;
pub(crate) use tunnel::{Outlet, Tunnel};
pub use turn::{TurnServer, TurnStatus, TurnUse};

/// Addresses of interfaces are looked up so often while they matter.
const INTERFACES_INTERVAL: Duration = Duration::from_millis(500);
/// Close code of a peer that is not who it says; the protocol's `Denied`.
const CODE_DENIED: u16 = 8;

/// A QUIC endpoint with its identity.
#[derive(Debug)]
pub(crate) struct Endpoint {
    endpoint: noq::Endpoint,
    tls: tls::Tls,
    client_transport: Arc<noq::TransportConfig>,
    /// Of connections that run in tunnels, dialled and accepted.
    tunnelled: Option<Tunnelled>,
    /// Kept over dials: lets servers that are flooded skip the extra round trip.
    tokens: Arc<noq::TokenMemoryCache>,
    junk: Arc<AtomicU64>,
    accepts_all: bool,
    peers: Option<Arc<Peers>>,
    crew: Crew,
}

/// What connections in tunnels share.
#[derive(Debug)]
struct Tunnelled {
    magic: Arc<Magic>,
    tunnels: Arc<Tunnels>,
    server: Arc<noq::ServerConfig>,
    client_transport: Arc<noq::TransportConfig>,
}

/// What links between peers share.
pub(crate) struct Peers {
    magic: Arc<Magic>,
    /// Sends beside QUIC.
    sender: Mutex<Pin<Box<dyn UdpSender>>>,
    server: Arc<noq::ServerConfig>,
    client_transport: Arc<noq::TransportConfig>,
    strategy: Strategy,
    /// The port that host candidates have.
    port: u16,
    known: Mutex<Candidates>,
    /// What is offered to peers.
    candidates: watch::Sender<Vec<Candidate>>,
    /// By the word of the gateway, and of STUN servers.
    reflexive: Mutex<[Vec<SocketAddr>; 2]>,
    stun: stun::Stun,
    turns: turn::Turns,
    members: Arc<members::Members>,
    crew: Crew,
    /// Whether packets of others are wanted, to be carried.
    carries: bool,
    /// Whether there is a gateway that relays.
    relay: watch::Sender<bool>,
    /// Somebody looks at the interfaces.
    watches: AtomicBool,
    searches: search::Searches,
    /// Somebody keeps the port mapped, or nobody shall.
    #[cfg(feature = "portmap")]
    maps: AtomicBool,
    #[cfg(feature = "portmap")]
    mapped: tokio::sync::Mutex<Vec<portmap::Lease>>,
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peers").field("strategy", &self.strategy).finish_non_exhaustive()
    }
}

impl Peers {
    /// Says what is known of one kind of candidates now.
    fn set_candidates(&self, kind: Kind, addrs: &[SocketAddr], near: bool) {
        let mut known = lock(&self.known);
        if known.set(kind, addrs, near) {
            let list = known.list();
            tracing::debug!(?kind, addrs = ?known.addrs(), "candidates");
            self.candidates.send_replace(list);
        }
    }

    /// Says where somebody outside sees us.
    fn set_reflexive(&self, source: Reflexive, addrs: &[SocketAddr], near: bool) {
        let mut reflexive = lock(&self.reflexive);
        if let Some(known) = reflexive.get_mut(source as usize) {
            *known = addrs.to_vec();
        }
        let near = near || reflexive.iter().flatten().any(|addr| addr.ip().is_loopback());
        self.set_candidates(Kind::ServerReflexive, &reflexive.concat(), near);
    }
}

/// Who says where we are.
#[derive(Clone, Copy, Debug)]
enum Reflexive {
    Gateway,
    Stun,
}

/// Why a handshake did not work out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HandshakeError {
    /// The peer has another key than the expected one.
    WrongKey { expected: EndpointId, found: EndpointId },
    /// The peer said no.
    Refused { code: u16, reason: String },
    /// No answer in time.
    Timeout,
    /// This socket cannot reach that address at all.
    Unusable { reason: String },
    /// The local endpoint is closed.
    Closed,
    /// Something else.
    Failed { reason: String },
}

impl Endpoint {
    /// Starts QUIC on a bound, non-blocking socket. Needs a tokio runtime.
    pub(crate) fn new(
        settings: &EndpointConfig,
        socket: std::net::UdpSocket,
        crew: &Crew,
    ) -> io::Result<Self> {
        let tls = tls::Tls::new(&settings.key).map_err(io::Error::other)?;
        let port = socket.local_addr()?.port();
        let server = if settings.accept || settings.peers {
            let server = config::server(tls.server(), &settings.key, settings);
            Some(server.map_err(io::Error::other)?)
        } else {
            None
        };
        let runtime = Arc::new(runtime::Runtime(crew.clone()));
        let (stun, answers) = stun::Stun::new(settings.stun_servers.clone());
        let answers = (settings.peers && stun.has_servers()).then_some(answers);
        let tap = Arc::new(search::Tap::default());
        let taps = sieve::Taps { answers, probes: Arc::clone(&tap) };
        let socket = runtime.wrap_udp_socket(socket)?;
        let (socket, junk) = sieve::Sieve::around(socket, taps);
        let mut socket: Box<dyn AsyncUdpSocket> = Box::new(socket);
        let (mut peers, mut tunnelled) = (None, None);
        if settings.peers || settings.tunnels {
            let mut random = [0; 5];
            let filled = SystemRandom::new().fill(&mut random);
            filled.map_err(|_| io::Error::other("the system gives no random bytes"))?;
            let (magic, relayed) = Magic::new(random);
            let mut magical = magic::MagicSocket::around(socket, Arc::clone(&magic), relayed)?;
            if settings.tunnels {
                let server = config::tunnel_server(tls.server(), &settings.key, settings);
                tunnelled = Some(Tunnelled {
                    magic: Arc::clone(&magic),
                    tunnels: Arc::default(),
                    server: Arc::new(server.map_err(io::Error::other)?),
                    client_transport: Arc::new(config::tunnel_client(settings)),
                });
            }
            if settings.peers {
                let server = config::peer_server(tls.server(), &settings.key, settings);
                peers = Some(Arc::new(Peers {
                    magic,
                    sender: Mutex::new(magical.sender()),
                    server: Arc::new(server.map_err(io::Error::other)?),
                    client_transport: Arc::new(config::peer_client(settings)),
                    strategy: settings.strategy,
                    port,
                    known: Mutex::default(),
                    candidates: watch::Sender::default(),
                    reflexive: Mutex::default(),
                    stun,
                    turns: turn::Turns::new(
                        settings.turn_servers.clone(),
                        settings.turn_use,
                        crew.clone(),
                    ),
                    members: Arc::default(),
                    crew: crew.clone(),
                    carries: settings.carries,
                    relay: watch::Sender::default(),
                    watches: AtomicBool::new(false),
                    searches: search::Searches::new(settings.port_search, tap),
                    #[cfg(feature = "portmap")]
                    maps: AtomicBool::new(!settings.port_mapping),
                    #[cfg(feature = "portmap")]
                    mapped: tokio::sync::Mutex::default(),
                }));
            } else {
                magical = magical.keeping_local();
            }
            socket = Box::new(magical);
        }
        let endpoint = noq::Endpoint::new_with_abstract_socket(
            config::endpoint(&settings.key, port, settings.mtu_max),
            server,
            socket,
            runtime,
        )?;
        let client_transport = Arc::new(config::client(settings));
        Ok(Self {
            endpoint,
            tls,
            client_transport,
            tunnelled,
            tokens: Arc::default(),
            junk,
            accepts_all: settings.accept,
            peers,
            crew: crew.clone(),
        })
    }

    /// What links between peers share; `None`: this endpoint has none.
    pub(crate) fn peers(&self) -> Option<&Arc<Peers>> {
        self.peers.as_ref()
    }

    /// Datagrams that were dropped unseen.
    pub(crate) fn junk(&self) -> u64 {
        self.junk.load(Ordering::Relaxed)
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.endpoint.local_addr().map(canonical)
    }

    /// Dials one address. Dropping the future abandons the attempt.
    pub(crate) async fn dial(
        &self,
        expected: Option<EndpointId>,
        addr: SocketAddr,
        timeout: Duration,
    ) -> Result<Connection, HandshakeError> {
        let name = server_name(expected, addr);
        let transport = Arc::clone(&self.client_transport);
        let connection = self.connect(expected, addr, &name, transport, timeout).await?;
        Connection::new(connection)
    }

    /// A tunnel between here and `remote`; `None`: there are too many, or this endpoint has none.
    pub(crate) fn tunnel(&self, remote: SocketAddr) -> Option<Tunnel> {
        let Tunnelled { magic, tunnels, .. } = self.tunnelled.as_ref()?;
        tunnels.add(magic, remote)
    }

    /// Whether there can be tunnels.
    pub(crate) fn has_tunnels(&self) -> bool {
        self.tunnelled.is_some()
    }

    /// Packets that found the queue of their tunnel full.
    pub(crate) fn tunnel_drops(&self) -> u64 {
        self.tunnelled.as_ref().map_or(0, |it| it.tunnels.dropped())
    }

    /// Dials through a tunnel to a gateway at `addr` (TCP), which is called `host`. Dropping the future
    /// abandons the attempt.
    pub(crate) async fn dial_tunnel(
        &self,
        expected: Option<EndpointId>,
        addr: SocketAddr,
        host: &str,
        timeout: Duration,
    ) -> Result<Connection, HandshakeError> {
        let unusable = |reason: &str| HandshakeError::Unusable { reason: reason.to_owned() };
        let Some(tunnelled) = &self.tunnelled else { return Err(unusable("no tunnels here")) };
        let opened = tokio::time::timeout(timeout, crate::tunnel::open(addr, host)).await;
        let opened = opened.map_err(|_elapsed| HandshakeError::Timeout)?;
        let (stream, came) = opened.map_err(|error| unusable(&error.to_string()))?;
        let tunnel = self.tunnel(addr).ok_or_else(|| unusable("too many tunnels at once"))?;
        let (inner, state) = (tunnel.addr(), Arc::clone(tunnel.state()));
        // Ends the tunnel unless a connection takes it.
        let abandoned = state.done.clone().drop_guard();
        tokio::spawn(crate::tunnel::run(stream, came, tunnel, timeout * 2));
        let transport = Arc::clone(&tunnelled.client_transport);
        let name = server_name(expected, addr);
        let connecting = self.connect(expected, inner, &name, transport, timeout);
        let connection = tokio::select! {
            biased;
            connection = connecting => connection?,
            () = state.broken.cancelled() => return Err(unusable("the tunnel broke")),
        };
        abandoned.disarm();
        self.settle(connection, state)
    }

    /// Ties a new connection and its tunnel together: each ends with the other.
    fn settle(
        &self,
        connection: noq::Connection,
        state: Arc<tunnel::State>,
    ) -> Result<Connection, HandshakeError> {
        state.in_use.cancel();
        let (closed, weak) = (connection.on_closed(), connection.weak_handle());
        let watched = Arc::clone(&state);
        self.crew.spawn(async move {
            tokio::select! {
                biased;
                _ended = closed => {}
                () = watched.broken.cancelled() => {
                    if let Some(connection) = weak.upgrade() {
                        connection.close(VarInt::from_u32(0), b"");
                    }
                }
            }
            watched.done.cancel();
        });
        Ok(Connection { tunnel: Some(state), ..Connection::new(connection)? })
    }

    /// Dials a peer through the gateway. Dropping the future abandons the attempt.
    pub(crate) async fn dial_peer(
        &self,
        id: EndpointId,
        timeout: Duration,
    ) -> Result<Connection, HandshakeError> {
        let unusable = |reason: &str| HandshakeError::Unusable { reason: reason.to_owned() };
        let peers = self.peers.as_ref().ok_or_else(|| unusable("this endpoint has no peers"))?;
        if !peers.magic.has_relay() {
            return Err(unusable("no gateway is connected that could relay"));
        }
        let berth = peers.magic.pin(id).ok_or_else(|| unusable("too many peers at once"))?;
        let transport = Arc::clone(&peers.client_transport);
        let name = format!("{id}.macula");
        let connection = self.connect(Some(id), berth.addr, &name, transport, timeout).await?;
        self.manage(connection, berth, Side::Client)
    }

    /// Hears when the gateway cannot reach a peer that is dialled.
    pub(crate) fn on_unreachable(&self, id: EndpointId) -> Option<oneshot::Receiver<Unreachable>> {
        self.peers.as_ref().map(|peers| peers.magic.on_unreachable(id))
    }

    /// Runs the paths of a new link between peers.
    fn manage(
        &self,
        connection: noq::Connection,
        berth: magic::Berth,
        side: Side,
    ) -> Result<Connection, HandshakeError> {
        let mut connection = Connection::new(connection)?;
        if let Some(peers) = &self.peers {
            let (state, signals, vias) = PathState::new(berth, Arc::clone(peers));
            let (strategy, peers) = (peers.strategy, Arc::clone(peers));
            let (quic, peer) = (&connection.connection, connection.peer);
            let (ours, shared) = (Arc::clone(&state), Arc::clone(&peers));
            self.crew.spawn(paths::manage(quic, peer, side, ours, shared, vias));
            let (ours, shared) = (Arc::clone(&state), Arc::clone(&peers));
            self.crew.spawn(search::run(quic, peer, side, ours, shared, signals));
            #[cfg(feature = "portmap")]
            if strategy != Strategy::AlwaysRelay && !peers.maps.swap(true, Ordering::AcqRel) {
                self.crew.spawn(portmap::keep(Arc::clone(&peers)));
            }
            if !peers.watches.swap(true, Ordering::AcqRel) {
                if peers.stun.has_servers() && peers.strategy != Strategy::AlwaysRelay {
                    self.crew.spawn(stun::run(Arc::clone(&peers)));
                }
                self.crew.spawn(watch_interfaces(peers));
            }
            connection.paths = Some(state);
        }
        Ok(connection)
    }

    async fn connect(
        &self,
        expected: Option<EndpointId>,
        addr: SocketAddr,
        name: &str,
        transport: Arc<noq::TransportConfig>,
        timeout: Duration,
    ) -> Result<noq::Connection, HandshakeError> {
        let server_key = self.tls.server_key(expected);
        let crypto = self.tls.client(&server_key);
        let crypto = noq::crypto::rustls::QuicClientConfig::try_from(crypto)
            .map_err(|error| HandshakeError::Failed { reason: error.to_string() })?;
        let mut config = noq::ClientConfig::new(Arc::new(crypto));
        config.transport_config(transport);
        config.token_store(Arc::clone(&self.tokens) as Arc<dyn noq::TokenStore>);
        let connecting = self.endpoint.connect_with(config, addr, name);
        let connecting = connecting.map_err(|error| match error {
            noq::ConnectError::EndpointStopping => HandshakeError::Closed,
            other => HandshakeError::Unusable { reason: other.to_string() },
        })?;
        match tokio::time::timeout(timeout, connecting).await {
            Err(_elapsed) => Err(HandshakeError::Timeout),
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(match server_key.mismatch() {
                Some((expected, found)) => HandshakeError::WrongKey { expected, found },
                None => HandshakeError::from(error),
            }),
        }
    }

    /// The next connection attempt; `None` once the endpoint is closed. Cancel-safe.
    pub(crate) async fn incoming(&self) -> Option<Incoming> {
        loop {
            let incoming = self.endpoint.accept().await?;
            let remote = incoming.remote_address();
            let peers = self.peers.as_ref().filter(|peers| peers.magic.owns(&remote));
            let peer = peers.and_then(|peers| peers.magic.peer(&remote));
            let tunnelled = self.tunnelled.as_ref().filter(|it| it.magic.owns(&remote));
            let tunnel = tunnelled.and_then(|it| it.tunnels.find(&remote));
            if (peers.is_some() || tunnelled.is_some()) && peer.is_none() && tunnel.is_none() {
                // It waited here for longer than its tunnel lasted: no answer would arrive, and the
                // address stands for nobody who could be counted.
                incoming.ignore();
                continue;
            }
            return Some(Incoming { incoming, peer, tunnel });
        }
    }

    /// Whether an attempt may be looked at: an endpoint that only has peers takes them only.
    pub(crate) fn wants(&self, incoming: &Incoming) -> bool {
        self.accepts_all || incoming.peer.is_some()
    }

    /// Completes the handshake of an attempt. Dropping the future abandons it.
    pub(crate) async fn accept(
        &self,
        incoming: Incoming,
        timeout: Duration,
    ) -> Result<Connection, HandshakeError> {
        let Incoming { incoming, peer, tunnel } = incoming;
        if let (Some(tunnelled), Some(state)) = (&self.tunnelled, tunnel) {
            let accepting = incoming.accept_with(Arc::clone(&tunnelled.server))?;
            let accepting = tokio::time::timeout(timeout, accepting).await;
            let connection = accepting.map_err(|_elapsed| HandshakeError::Timeout)??;
            return self.settle(connection, state);
        }
        let (Some(peers), Some(id)) = (&self.peers, peer) else {
            let accepting = tokio::time::timeout(timeout, incoming.accept()?).await;
            return Connection::new(accepting.map_err(|_elapsed| HandshakeError::Timeout)??);
        };
        let unusable = || HandshakeError::Unusable { reason: "too many peers at once".into() };
        let berth = peers.magic.pin(id).ok_or_else(unusable)?;
        let accepting = incoming.accept_with(Arc::clone(&peers.server))?;
        let accepting = tokio::time::timeout(timeout, accepting).await;
        let connection = accepting.map_err(|_elapsed| HandshakeError::Timeout)??;
        let connection = self.manage(connection, berth, Side::Server)?;
        if connection.peer != id {
            // The gateway lies, or somebody relays through another endpoint's link.
            connection.close(CODE_DENIED, "packets came in another endpoint's name");
            return Err(HandshakeError::WrongKey { expected: id, found: connection.peer });
        }
        Ok(connection)
    }

    /// Packets for peers go out over `gateway` from now on, and those that come from there are
    /// taken for theirs. Tells what address the gateway sees us at.
    pub(crate) fn relay_through(&self, gateway: &Connection) {
        let Some(peers) = &self.peers else { return };
        peers.magic.relay_through(&gateway.connection);
        peers.relay.send_replace(true);
        // They are of another gateway.
        peers.searches.servers.send_replace(None);
        let follow = follow_gateway(&gateway.connection, Arc::clone(peers));
        self.crew.spawn(follow);
    }

    /// So many packets from or to peers were dropped here, and so many from the wire that claimed
    /// to be of a peer.
    pub(crate) fn relay_drops(&self) -> (u64, u64) {
        let Some(peers) = &self.peers else { return (0, 0) };
        let (dropped, spoofed) = peers.magic.drops();
        (dropped + peers.members.dropped(), spoofed)
    }

    /// Waits until a link wants a carrier. Cancel-safe; for one that waits.
    pub(crate) async fn carrier_wanted(&self) -> CarrierWanted {
        match &self.peers {
            Some(peers) => peers.members.wanted().await,
            None => std::future::pending().await,
        }
    }

    /// TURN servers for allocations that begin later.
    pub(crate) fn set_turn_servers(&self, servers: Vec<TurnServer>) {
        if let Some(peers) = &self.peers {
            peers.turns.set_servers(servers);
        }
    }

    /// What is offered to peers.
    pub(crate) fn candidates(&self) -> Vec<SocketAddr> {
        let candidates = |peers: &Arc<Peers>| lock(&peers.known).addrs();
        self.peers.as_ref().map(candidates).unwrap_or_default()
    }

    /// What is known of TURN servers that were asked for an allocation.
    pub(crate) fn turn_status(&self) -> Vec<TurnStatus> {
        self.peers.as_ref().map(|peers| peers.turns.status()).unwrap_or_default()
    }

    /// STUN packets that answered nothing, and packets dropped between us and TURN servers.
    pub(crate) fn nat_drops(&self) -> (u64, u64) {
        let drops = |peers: &Arc<Peers>| (peers.stun.ignored(), peers.turns.dropped());
        self.peers.as_ref().map(drops).unwrap_or_default()
    }

    /// What port searches have done.
    pub(crate) fn searches(&self) -> SearchStats {
        self.peers.as_ref().map(|peers| peers.searches.stats()).unwrap_or_default()
    }

    /// Waits until a search wants to know the gateway's STUN servers. Cancel-safe.
    pub(crate) async fn stun_wanted(&self) {
        match &self.peers {
            Some(peers) => peers.searches.wanted.notified().await,
            None => std::future::pending().await,
        }
    }

    /// Tells them.
    pub(crate) fn set_stun_servers(&self, servers: Vec<StunServer>) {
        if let Some(peers) = &self.peers {
            peers.searches.servers.send_replace(Some(servers));
        }
    }

    /// Closes all connections and takes no more.
    pub(crate) fn close(&self, code: u16, reason: &str) {
        if let Some(peers) = &self.peers {
            peers.turns.close();
        }
        self.endpoint.close(VarInt::from(code), cut(reason).as_bytes());
    }

    /// Ends when every connection has told its peer that it is closed, and no port is mapped.
    pub(crate) async fn closed(&self) {
        let told = self.endpoint.wait_all_draining();
        let Some(peers) = &self.peers else { return told.await };
        #[cfg(feature = "portmap")]
        tokio::join!(told, peers.turns.closed(), portmap::withdraw(peers));
        #[cfg(not(feature = "portmap"))]
        tokio::join!(told, peers.turns.closed());
    }
}

/// Follows what a gateway says of our address until its link ends.
fn follow_gateway(
    gateway: &noq::Connection,
    peers: Arc<Peers>,
) -> impl Future<Output = ()> + Send + 'static {
    let (weak, closed) = (gateway.weak_handle(), gateway.on_closed());
    let mut observed = gateway.observed_external_addr();
    let remote = gateway.path(PathId::ZERO).and_then(|path| path.remote_address().ok());
    let is_near = remote.is_some_and(|remote| canonical(remote).ip().is_loopback());
    async move {
        let follow = async {
            while let Some(addr) = paths::next(&mut observed).await {
                if magic::is_real(&addr) {
                    peers.set_reflexive(Reflexive::Gateway, &[addr], is_near);
                }
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            biased;
            _ended = closed => {}
            () = follow => {}
        }
        if peers.magic.forget_relay(&weak) {
            peers.relay.send_replace(false);
        }
    }
}

/// Keeps host candidates up to date as long as there are links to peers, and probes the gateway when the
/// network is back.
async fn watch_interfaces(peers: Arc<Peers>) {
    let mut known: Option<Vec<SocketAddr>> = None;
    loop {
        let interfaces = tokio::task::spawn_blocking(if_addrs::get_if_addrs).await;
        match interfaces {
            Ok(Ok(interfaces)) => {
                let usable = interfaces.iter().filter(|it| !it.is_loopback() && it.is_oper_up());
                let mut addrs: Vec<SocketAddr> =
                    usable.map(|it| SocketAddr::new(it.ip(), peers.port)).collect();
                // Public ones first, as only so many are offered.
                addrs.sort_by_key(|addr| (macula_nat::path::is_private(*addr), *addr));
                peers.set_candidates(Kind::Host, &addrs, false);
                if known.is_some_and(|known| addrs.iter().any(|addr| !known.contains(addr))) {
                    peers.magic.probe_gateway();
                }
                known = Some(addrs);
            }
            Ok(Err(error)) => tracing::debug!(%error, "interfaces are not known"),
            Err(_ended) => return,
        }
        tokio::time::sleep(INTERFACES_INTERVAL).await;
        if peers.candidates.receiver_count() == 0 {
            peers.watches.store(false, Ordering::Release);
            // A link that came meanwhile may have seen that somebody looks.
            let is_needed = peers.candidates.receiver_count() > 0;
            if !is_needed || peers.watches.swap(true, Ordering::AcqRel) {
                return;
            }
        }
    }
}

/// A connection attempt of a peer.
#[derive(Debug)]
pub(crate) struct Incoming {
    incoming: noq::Incoming,
    /// Who it is by the word of the gateway, if it was relayed.
    peer: Option<EndpointId>,
    /// The tunnel that it came by.
    tunnel: Option<Arc<tunnel::State>>,
}

impl Incoming {
    /// Whether the peer has shown that it receives packets at its address. Where a relayed one is
    /// the gateway knows; who has a tunnel has shown it by TCP.
    pub(crate) fn is_validated(&self) -> bool {
        self.peer.is_some() || self.tunnel.is_some() || self.incoming.remote_address_validated()
    }

    /// Where it comes from, or says so.
    pub(crate) fn remote(&self) -> SocketAddr {
        let tunnel = self.tunnel.as_ref().map(|tunnel| tunnel.remote);
        tunnel.unwrap_or_else(|| canonical(self.incoming.remote_address()))
    }

    /// Says no.
    pub(crate) fn refuse(self) {
        self.incoming.refuse();
    }

    /// Says nothing.
    pub(crate) fn ignore(self) {
        self.incoming.ignore();
    }

    /// Makes the peer show that; costs it a round trip and us nothing.
    pub(crate) fn validate(self) {
        if let Err(error) = self.incoming.retry() {
            error.into_incoming().ignore();
        }
    }
}

impl From<ConnectionError> for HandshakeError {
    fn from(error: ConnectionError) -> Self {
        match error {
            ConnectionError::TimedOut => Self::Timeout,
            ConnectionError::ApplicationClosed(close) => {
                Self::Refused { code: code(close.error_code), reason: text(&close.reason) }
            }
            ConnectionError::ConnectionClosed(close) => {
                Self::Refused { code: u16::MAX, reason: close.to_string() }
            }
            ConnectionError::LocallyClosed => Self::Closed,
            other => Self::Failed { reason: other.to_string() },
        }
    }
}

/// An authenticated QUIC connection. Dropping the last handle closes it with code 0.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    connection: noq::Connection,
    peer: EndpointId,
    /// Of a link between peers.
    paths: Option<Arc<PathState>>,
    /// What it runs in.
    tunnel: Option<Arc<tunnel::State>>,
}

/// The connection is gone; [`Connection::closed`] says why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lost;

impl Connection {
    fn new(connection: noq::Connection) -> Result<Self, HandshakeError> {
        let peer = connection
            .peer_identity()
            .and_then(|identity| {
                identity.downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>().ok()
            })
            .and_then(|keys| tls::id_of_spki(keys.first()?));
        match peer {
            Some(peer) => Ok(Self { connection, peer, paths: None, tunnel: None }),
            None => Err(HandshakeError::Failed { reason: "the peer has shown no key".into() }),
        }
    }

    pub(crate) fn peer(&self) -> EndpointId {
        self.peer
    }

    /// Where the peer's packets come from, as far as one address says it.
    pub(crate) fn remote(&self) -> Option<SocketAddr> {
        if let Some(tunnel) = &self.tunnel {
            return Some(tunnel.remote);
        }
        self.connection.path(self.path_id())?.remote_address().ok().map(canonical)
    }

    /// Whether it runs in a tunnel.
    pub(crate) fn is_tunnelled(&self) -> bool {
        self.tunnel.is_some()
    }

    pub(crate) fn rtt(&self) -> Option<Duration> {
        self.connection.rtt(self.path_id())
    }

    fn path_id(&self) -> PathId {
        self.paths.as_ref().map_or(PathId::ZERO, |paths| paths.path_id())
    }

    /// Which path the packets take, and what all have carried; `None`: not a link between peers.
    pub(crate) fn path_info(&self) -> Option<PathInfo> {
        self.paths.as_ref().map(|paths| paths.info(&self.connection))
    }

    /// Waits until the path is direct. Cancel-safe.
    pub(crate) async fn direct(&self) -> Result<(), Lost> {
        let Some(mut watch) = self.watch_path() else { return Ok(()) };
        tokio::select! {
            biased;
            _down = self.connection.closed() => Err(Lost),
            lost = self.skip_signals() => Err(lost),
            direct = watch.wait_for(|(_, (kind, _))| *kind == PathKind::Direct) => {
                direct.map(|_| ()).map_err(|_| Lost)
            }
        }
    }

    /// As [`Self::read_signals`] before there is somebody who carries.
    async fn skip_signals(&self) -> Lost {
        while self.read_signals().await.is_ok() {}
        Lost
    }

    /// Tells of changes of the path; `None`: not a link between peers.
    pub(crate) fn watch_path(&self) -> Option<watch::Receiver<(u32, Selected)>> {
        self.paths.as_ref().map(|paths| paths.watch())
    }

    /// Whether both ends are peers, and no end a gateway.
    pub(crate) fn is_peer_link(&self) -> bool {
        self.paths.is_some()
    }

    /// Queues a datagram; returns how many had to be dropped.
    pub(crate) fn send_datagram(&self, datagram: Datagram, number: u16) -> u64 {
        u64::from(magic::send(&self.connection, datagram, number) != magic::Sent::Queued)
    }

    /// Takes what a peer says of its candidates, of port searches and of carriers, and what it carries, until
    /// there is a packet that this endpoint is to carry: returns that. Cancel-safe.
    pub(crate) async fn read_signals(&self) -> Result<Bytes, Lost> {
        let Some(paths) = &self.paths else { return std::future::pending().await };
        let peers = paths.peers();
        loop {
            let datagram = self.connection.read_datagram().await.map_err(|_| Lost)?;
            if let Some(offer) = offer::decode(&datagram) {
                paths.take_offer(offer);
            } else if let Some(carrier) = via::decode(&datagram) {
                paths.via(members::Via::Proposed(carrier));
            } else if let Some(relayed) = Datagram::decode(&datagram) {
                if peers.carries && matches!(relayed, Datagram::Relay { .. }) {
                    return Ok(datagram);
                }
                peers.members.receive(self.peer, relayed);
            } else {
                paths.signal(datagram);
            }
        }
    }

    /// Has `other`, a link to another member, carry packets of this link too, if the peer has such a link as
    /// well.
    pub(crate) fn offer_carrier(&self, other: &Self) {
        let (Some(paths), Some(others)) = (&self.paths, &other.paths) else { return };
        let carrier = others.as_carrier(other.peer, &other.connection);
        paths.via(members::Via::Ready(carrier));
    }

    /// Whether packets of other links go over this one, or may have to.
    pub(crate) fn is_carrying(&self) -> bool {
        self.paths.as_ref().is_some_and(|paths| members::is_used(&paths.carries))
    }

    /// Takes datagrams of the peer. Cancel-safe.
    pub(crate) async fn read_datagrams(&self, out: &mut [Bytes]) -> Result<usize, Lost> {
        self.connection.read_many_datagrams(out).await.map_err(|_| Lost)
    }

    /// Takes a datagram to be of the gateway, if this is the link to it.
    pub(crate) fn take_relayed(&self, peers: &Peers, datagram: &Bytes) {
        if peers.magic.is_relay(&self.connection)
            && let Some(datagram) = Datagram::decode(datagram)
        {
            peers.magic.on_datagram(datagram);
        }
    }

    /// Lets the peer open other streams than the first.
    pub(crate) fn admit(&self) {
        config::admit(&self.connection);
    }

    /// Sends a packet now, with the acknowledgements that wait for one.
    pub(crate) fn ping(&self) {
        if let Some(path) = self.connection.path(self.path_id()) {
            // A closed path needs none.
            let _closed = path.ping();
        }
    }

    /// Opens a stream; waits for the peer's permission. Cancel-safe.
    pub(crate) async fn open_uni(&self, class: Class) -> Result<SendStream, Lost> {
        let send = self.connection.open_uni().await.map_err(|_| Lost)?;
        Ok(SendStream::new(send, class))
    }

    /// Opens a stream; waits for the peer's permission. Cancel-safe.
    pub(crate) async fn open_bi(&self, class: Class) -> Result<(SendStream, RecvStream), Lost> {
        let (send, recv) = self.connection.open_bi().await.map_err(|_| Lost)?;
        Ok((SendStream::new(send, class), RecvStream(recv)))
    }

    /// The next stream of the peer. Cancel-safe.
    pub(crate) async fn accept_uni(&self) -> Result<RecvStream, Lost> {
        self.connection.accept_uni().await.map(RecvStream).map_err(|_| Lost)
    }

    /// The next stream of the peer. Cancel-safe.
    pub(crate) async fn accept_bi(&self) -> Result<(SendStream, RecvStream), Lost> {
        let (send, recv) = self.connection.accept_bi().await.map_err(|_| Lost)?;
        Ok((SendStream::new(send, Class::Publish), RecvStream(recv)))
    }

    /// Closes at once; data on its way is dropped.
    pub(crate) fn close(&self, code: u16, reason: &str) {
        self.connection.close(VarInt::from(code), cut(reason).as_bytes());
    }

    /// Ends when the connection does; `None` when this side closed it. Cancel-safe.
    pub(crate) async fn closed(&self) -> Option<DownReason> {
        Some(match self.connection.closed().await {
            ConnectionError::LocallyClosed => {
                let is_broken = self.tunnel.as_ref().is_some_and(|it| it.broken.is_cancelled());
                return is_broken.then(|| DownReason::Transport {
                    reason: "the tunnel by TCP broke".to_owned(),
                });
            }
            ConnectionError::TimedOut => DownReason::TimedOut,
            ConnectionError::Reset => DownReason::Reset,
            ConnectionError::ApplicationClosed(close) => {
                DownReason::Peer { code: code(close.error_code), reason: text(&close.reason) }
            }
            other => DownReason::Transport { reason: other.to_string() },
        })
    }
}

/// The sending half of a stream. Dropping it finishes the stream.
#[derive(Debug)]
pub(crate) struct SendStream(noq::SendStream);

/// Why a write did not work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WriteError {
    /// The peer does not read this stream any more.
    Stopped,
    /// The connection is gone.
    Lost,
}

impl SendStream {
    fn new(send: noq::SendStream, class: Class) -> Self {
        let stream = Self(send);
        stream.set_class(class);
        stream
    }

    pub(crate) fn set_class(&self, class: Class) {
        let priority = match class {
            Class::Bulk => 0,
            Class::Publish => 1,
            Class::Call => 2,
            Class::Control => 3,
        };
        // Fails on a stopped stream only, where it does not matter.
        let _stopped = self.0.set_priority(priority);
    }

    /// Hands all pieces to QUIC. Not cancel-safe: some may have been written.
    pub(crate) async fn write_all(&mut self, pieces: &mut [Bytes]) -> Result<(), WriteError> {
        self.0.write_all_chunks(pieces).await.map_err(|error| match error {
            noq::WriteError::Stopped(_) | noq::WriteError::ClosedStream => WriteError::Stopped,
            noq::WriteError::ConnectionLost(_) | noq::WriteError::ZeroRttRejected => {
                WriteError::Lost
            }
        })
    }

    /// Marks the end of the stream.
    pub(crate) fn finish(&mut self) {
        // Fails when the stream has ended already, which is what we want.
        let _ended = self.0.finish();
    }

    /// Abandons the stream.
    pub(crate) fn reset(&mut self) {
        // As above.
        let _ended = self.0.reset(VarInt::from_u32(0));
    }

    /// After [`Self::finish`]: ends when the peer's QUIC has everything, or will not have it.
    pub(crate) async fn delivered(&self) {
        // Either outcome means that waiting is over.
        let _outcome = self.0.stopped().await;
    }
}

/// The receiving half of a stream. Dropping it tells the peer to stop.
#[derive(Debug)]
pub(crate) struct RecvStream(noq::RecvStream);

/// What a read gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Read {
    /// So many pieces.
    Pieces(usize),
    /// The peer finished the stream.
    Finished,
    /// The peer abandoned the stream.
    Reset,
    /// The connection is gone.
    Lost,
}

impl RecvStream {
    /// Reads the first byte; `None` when there is none. Cancel-safe.
    pub(crate) async fn read_type(&mut self) -> Option<u8> {
        let piece = self.0.read_chunk(1).await.ok().flatten()?;
        piece.first().copied()
    }

    /// Reads into `pieces`. Cancel-safe.
    pub(crate) async fn read(&mut self, pieces: &mut [Bytes]) -> Read {
        match self.0.read_many_chunks(pieces).await {
            Ok(Some(count)) => Read::Pieces(count),
            Ok(None) => Read::Finished,
            Err(noq::ReadError::Reset(_)) => Read::Reset,
            Err(noq::ReadError::ClosedStream) => Read::Finished,
            Err(noq::ReadError::ConnectionLost(_) | noq::ReadError::ZeroRttRejected) => Read::Lost,
        }
    }

    /// Tells the peer to send no more.
    pub(crate) fn stop(&mut self) {
        // Fails when the stream has ended already, which is what we want.
        let _ended = self.0.stop(VarInt::from_u32(0));
    }
}

/// The address as people write it: IPv4 is not shown in its IPv6 clothes.
pub(crate) fn canonical(addr: SocketAddr) -> SocketAddr {
    match addr {
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => SocketAddr::new(IpAddr::V4(v4), v6.port()),
            None => SocketAddr::V6(SocketAddrV6::new(*v6.ip(), v6.port(), 0, v6.scope_id())),
        },
        SocketAddr::V4(_) => addr,
    }
}

/// Never sent (SNI is off); it only keeps the address tokens of different servers apart.
fn server_name(expected: Option<EndpointId>, addr: SocketAddr) -> String {
    match expected {
        Some(id) => format!("{id}.macula"),
        None => match addr.ip() {
            IpAddr::V4(ip) => format!("{:08x}.any.macula", u32::from(ip)),
            IpAddr::V6(ip) => format!("{:032x}.any.macula", u128::from(ip)),
        },
    }
}

/// At most [`limits::REASON_BYTES_MAX`] bytes of `reason`, cut between characters.
fn cut(reason: &str) -> &str {
    reason.get(..reason.floor_char_boundary(limits::REASON_BYTES_MAX)).unwrap_or(reason)
}

fn code(code: VarInt) -> u16 {
    u16::try_from(code.into_inner()).unwrap_or(u16::MAX)
}

fn text(reason: &[u8]) -> String {
    let reason = reason.get(..limits::REASON_BYTES_MAX).unwrap_or(reason);
    String::from_utf8_lossy(reason).into_owned()
}
