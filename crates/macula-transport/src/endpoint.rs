//! A socket with an identity.

use std::future::Future;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use macula_nat::path::Strategy;
use macula_nat::report::StunServer;
use macula_nat::search::Stats as SearchStats;
use macula_nat::uri::StunUri;
use macula_proto::id::EndpointId;
use tokio::runtime::Handle;
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::crew::Crew;
use crate::dial::{self, DialError, PeerError, Target};
use crate::guard::{Guard, HandshakeId, HandshakeLimits, HandshakeStats, Outcome, Verdict};
use crate::key::SecretKey;
use crate::link::{Connected, Link};
use crate::loading::Loading;
use crate::quic::{self, CarrierWanted, HandshakeError, TurnServer, TurnStatus, TurnUse};
use crate::socket::{self, BindError};
use crate::sync::lock;
use crate::tunnel::{Desk, Listener, Seats, TunnelConfig, TunnelError, TunnelStats};

/// Upper bound of [`EndpointConfig::mtu_max`], bytes.
///
/// QUIC hands the kernel up to ten packets in one call, which must not exceed 65,507 bytes
/// together. Beyond that such calls fail, the packets count as lost, and throughput collapses.
pub const MTU_MAX: u16 = 6_500;

/// Accepted peers that may wait for [`Endpoint::accept`].
const ACCEPTED_MAX: usize = 64;
/// What [`Endpoint::close`] gives the goodbyes to go out.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// More tasks than this would mostly wait for the one that routes.
const HANDS_MAX: usize = 8;
/// A peer that comes back too often hears this; the protocol's `Limit`.
const CODE_LIMIT: u16 = 6;
/// A peer for which there is no path that may be used hears this; the protocol's `Denied`.
const CODE_DENIED: u16 = 8;
/// With [`Strategy::DirectOnly`], what finding a direct path may take.
const DIRECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Settings of an [`Endpoint`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct EndpointConfig {
    /// Who this endpoint is.
    pub key: SecretKey,
    /// Where to listen; `None`, the default, takes an ephemeral port of both address families.
    /// `[::]:port` takes IPv4 too.
    pub listen: Option<SocketAddr>,
    /// Whether peers may dial this endpoint. Default `false`.
    pub accept: bool,
    /// After so much silence a packet is sent that the peer must acknowledge. Bounds how long it
    /// takes to notice that a peer was restarted, and keeps NAT mappings; costs a packet each way.
    /// Must be below a third of `idle_timeout`. Default 4 s.
    pub keep_alive: Duration,
    /// After so much silence a link is down. The smaller value of both sides counts. Default 15 s.
    pub idle_timeout: Duration,
    /// What a handshake may take, dialled (each address) or accepted. Default 5 s.
    pub handshake_timeout: Duration,
    /// What handshakes of peers may use.
    pub handshakes: HandshakeLimits,
    /// Largest UDP payload to send and to take, bytes, 1,200 to [`MTU_MAX`]; values outside are
    /// moved to the nearest bound. Discovery finds what a path really carries. Default [`MTU_MAX`].
    pub mtu_max: u16,
    /// Kernel buffers of the socket, bytes, each; the system's own limits are lower as a rule
    /// (`net.core.rmem_max`). Small ones lose packets in bursts. Default 8 MiB.
    pub socket_buffer_bytes: usize,
    /// What frames on streams of their own may hold before they are complete, over all links, bytes.
    /// Beyond it they become complete one at a time. Default 256 MiB.
    pub loading_bytes_max: usize,
    /// Whether this endpoint has links to peers of its gateway: it dials and accepts them over the
    /// gateway's relay, and moves them to direct paths. Default `false`.
    pub peers: bool,
    /// Whether this endpoint has tunnels: it can dial gateways over TLS and TCP, and, if it accepts,
    /// take such dials (see [`Endpoint::listen_for_tunnels`]). Default `false`.
    pub tunnels: bool,
    /// Whether packets that peers want carried to others are told, by [`LinkEventKind::Datagrams`]. Default
    /// `false`.
    ///
    /// [`LinkEventKind::Datagrams`]: crate::LinkEventKind::Datagrams
    pub carries: bool,
    /// Which paths links to peers may use. Default: the relay at once, a direct path when there is one.
    pub strategy: Strategy,
    /// STUN servers to ask where this endpoint is seen, beside its gateway; at most 8 are. Default
    /// none.
    pub stun_servers: Vec<StunUri>,
    /// TURN servers through which peers may be reached that cannot be directly; at most 2 are used
    /// at once, and the next when one fails. Default none.
    pub turn_servers: Vec<TurnServer>,
    /// When they are asked for an allocation. Default: when a link stays without a direct path.
    pub turn_use: TurnUse,
    /// Whether such links look for a direct path through NATs that plain hole punching does not pass,
    /// with many sockets or probes of many ports, see [`macula_nat::search`]. Needs
    /// [`Endpoint::set_stun_servers`]. Default `true`.
    pub port_search: bool,
    /// Whether the router is asked, by PCP, NAT-PMP and UPnP, to map the endpoint's port while there
    /// are such links. Only with the feature `portmap`. Default `true`.
    pub port_mapping: bool,
}

impl EndpointConfig {
    /// The defaults, for an endpoint that only dials.
    pub fn new(key: SecretKey) -> Self {
        Self {
            key,
            listen: None,
            accept: false,
            keep_alive: Duration::from_secs(4),
            idle_timeout: Duration::from_secs(15),
            handshake_timeout: Duration::from_secs(5),
            handshakes: HandshakeLimits::default(),
            mtu_max: MTU_MAX,
            socket_buffer_bytes: 8 * 1024 * 1024,
            loading_bytes_max: 256 * 1024 * 1024,
            peers: false,
            carries: false,
            tunnels: false,
            strategy: Strategy::Opportunistic,
            stun_servers: Vec::new(),
            turn_servers: Vec::new(),
            turn_use: TurnUse::default(),
            port_search: true,
            port_mapping: true,
        }
    }
}

/// A UDP socket with an identity, which dials peers and accepts them.
///
/// Dropping it stops accepting; links go on until they are closed. [`Self::close`] ends them all.
#[derive(Debug)]
pub struct Endpoint {
    quic: Arc<quic::Endpoint>,
    local_addr: SocketAddr,
    handshake_timeout: Duration,
    strategy: Strategy,
    crew: Crew,
    accepted: Mutex<mpsc::Receiver<Connected>>,
    guard: Option<SharedGuard>,
    loading: Arc<Loading>,
    /// Of those that come by TCP.
    seats: OnceLock<Arc<Seats>>,
    tasks: TaskTracker,
    closed: CancellationToken,
}

/// Held for the time of a decision only.
type SharedGuard = Arc<std::sync::Mutex<Guard>>;

impl Endpoint {
    /// Binds the socket and starts.
    ///
    /// # Errors
    /// See [`BindError`]; nothing runs then.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O and time.
    pub fn bind(config: &EndpointConfig) -> Result<Self, BindError> {
        if config.keep_alive * 3 >= config.idle_timeout {
            let (keep_alive, idle) = (config.keep_alive, config.idle_timeout);
            return Err(BindError::Timing { keep_alive, idle });
        }
        let socket = socket::bind(config.listen, config.socket_buffer_bytes)?;
        let mut config = config.clone();
        config.mtu_max = config.mtu_max.clamp(1200, MTU_MAX);
        let crew = Crew::new(Handle::current(), hands_max());
        let quic = quic::Endpoint::new(&config, socket, &crew);
        let quic = Arc::new(quic.map_err(|source| BindError::Quic { source })?);
        let local_addr = quic.local_addr().map_err(|source| BindError::Quic { source })?;
        let (sender, receiver) = mpsc::channel(ACCEPTED_MAX);
        let guard = (config.accept || config.peers).then(|| {
            Arc::new(std::sync::Mutex::new(Guard::new(&config.handshakes, Instant::now())))
        });
        let endpoint = Self {
            local_addr,
            handshake_timeout: config.handshake_timeout,
            strategy: config.strategy,
            crew,
            accepted: Mutex::new(receiver),
            guard,
            loading: Loading::new(config.loading_bytes_max),
            seats: OnceLock::new(),
            tasks: TaskTracker::new(),
            closed: CancellationToken::new(),
            quic,
        };
        if let Some(guard) = &endpoint.guard {
            let acceptor = Acceptor {
                quic: Arc::clone(&endpoint.quic),
                timeout: config.handshake_timeout,
                strategy: config.strategy,
                guard: Arc::clone(guard),
                loading: Arc::clone(&endpoint.loading),
                accepted: sender,
                crew: endpoint.crew.clone(),
                tasks: endpoint.tasks.clone(),
                closed: endpoint.closed.clone(),
            };
            endpoint.crew.spawn(endpoint.tasks.track_future(acceptor.run()));
        }
        Ok(endpoint)
    }

    /// The address that the socket is bound to.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Runs `task` together with what the endpoint itself does, so that they wake each other
    /// without a switch of tasks. Meant for whoever owns the endpoint's links; it must never block.
    /// If it panics, it ends and nothing else.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.crew.spawn(task);
    }

    /// Dials a peer at all its addresses: they start 250 ms apart, at once when one fails, and the
    /// first finished handshake wins.
    ///
    /// An address where another peer answers does not keep the others from being tried.
    ///
    /// # Errors
    /// See [`DialError`]; `WrongKey` and `Refused` are told in preference to silence elsewhere.
    ///
    /// # Cancel safety
    /// Dropping the future abandons all attempts.
    pub async fn dial(&self, target: &Target) -> Result<Connected, DialError> {
        let connection = dial::dial(&self.quic, target, self.handshake_timeout).await?;
        Ok(self.connected(connection))
    }

    /// Dials a gateway over TLS and TCP, for networks that let no UDP pass: the addresses of `target`
    /// are TCP addresses, and `host` is what TLS calls the gateway. The link is the same as by UDP,
    /// and so is what is proved to whom.
    ///
    /// # Errors
    /// As [`Self::dial`].
    ///
    /// # Cancel safety
    /// Dropping the future abandons all attempts.
    pub async fn dial_tunnel(&self, target: &Target, host: &str) -> Result<Connected, DialError> {
        let dialled = dial::dial_tunnel(&self.quic, target, host, self.handshake_timeout);
        Ok(self.connected(dialled.await?))
    }

    /// Takes those who come by TCP from now on, until the endpoint closes; possible once. They arrive
    /// at [`Self::accept`] as all do, and the limits of handshakes hold for them, too. Returns the
    /// addresses.
    ///
    /// # Errors
    /// See [`TunnelError`]; none is taken then.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O and time.
    pub fn listen_for_tunnels(
        &self,
        config: &TunnelConfig,
    ) -> Result<Vec<SocketAddr>, TunnelError> {
        if !self.quic.has_tunnels() || self.seats.get().is_some() {
            return Err(TunnelError::Unusable);
        }
        let certificate = config.certificate.as_ref();
        let certificate = certificate.map(|(chain, key)| (chain.as_path(), key.as_path()));
        let seats = Seats::new(config.tunnels_max, config.per_source_max);
        let desk = Desk::new(
            certificate,
            Arc::clone(&self.quic),
            Arc::clone(&seats),
            self.handshake_timeout,
            self.closed.clone(),
            self.tasks.clone(),
        )?;
        let bound = config.listen.iter().map(|address| Listener::bind(*address, &desk));
        let listeners = bound.collect::<Result<Vec<_>, _>>()?;
        let addresses = listeners.iter().filter_map(|it| it.local_addr().ok()).collect();
        for listener in listeners {
            tokio::spawn(self.tasks.track_future(listener.run()));
        }
        self.seats.get_or_init(|| seats);
        Ok(addresses)
    }

    /// What became of those who came by TCP.
    pub fn tunnels(&self) -> TunnelStats {
        let stats = self.seats.get().map(|seats| seats.stats()).unwrap_or_default();
        TunnelStats { dropped: self.quic.tunnel_drops(), ..stats }
    }

    /// Dials a peer that is attached to the same gateway, through that gateway. The link is
    /// encrypted from end to end, of use at once, and moves to a direct path by itself; with
    /// [`Strategy::DirectOnly`] this waits until it has.
    ///
    /// # Errors
    /// See [`PeerError`].
    ///
    /// # Cancel safety
    /// Dropping the future abandons the attempt.
    pub async fn dial_peer(&self, peer: EndpointId) -> Result<Connected, PeerError> {
        let Some(unreachable) = self.quic.on_unreachable(peer) else {
            return Err(PeerError::Disabled);
        };
        let timeout = self.handshake_timeout;
        let dialled = tokio::select! {
            biased;
            dialled = self.quic.dial_peer(peer, timeout) => dialled,
            // It only ends with an answer: there may also be none.
            Ok(reason) = unreachable => return Err(PeerError::unreachable(reason)),
        };
        let connection = dialled.map_err(|error| PeerError::of_handshake(error, timeout))?;
        if self.strategy == Strategy::DirectOnly && !is_direct_in_time(&connection).await {
            return Err(PeerError::NoDirectPath { after: DIRECT_TIMEOUT });
        }
        Ok(self.connected(connection))
    }

    /// From now on `gateway` relays packets from and to peers. Its end ends that.
    pub fn relay_through(&self, gateway: &Link) {
        self.quic.relay_through(gateway.connection());
    }

    /// So many packets from or to peers were dropped here (no gateway, too large, or QUIC did not
    /// take them in time), and so many came from the wire and claimed to be of a peer.
    pub fn relay_drops(&self) -> (u64, u64) {
        self.quic.relay_drops()
    }

    /// Waits until a link to a peer wants packets to be carried by another member: answered by
    /// [`Link::offer_carrier`] once there is a direct link to one.
    ///
    /// # Cancel safety
    /// Safe: no wish is lost. Only one may wait at a time.
    pub async fn carrier_wanted(&self) -> CarrierWanted {
        self.quic.carrier_wanted().await
    }

    /// Uses these TURN servers from now on; allocations that exist stay as long as they are good.
    pub fn set_turn_servers(&self, servers: Vec<TurnServer>) {
        self.quic.set_turn_servers(servers);
    }

    /// The addresses that are offered to peers, best first.
    pub fn candidates(&self) -> Vec<SocketAddr> {
        self.quic.candidates()
    }

    /// What became of the TURN servers that were asked for an allocation.
    pub fn turn_status(&self) -> Vec<TurnStatus> {
        self.quic.turn_status()
    }

    /// So many STUN packets answered no request of this endpoint (late, repeated or forged), and so
    /// many packets were dropped on their way to or from a TURN server.
    pub fn nat_drops(&self) -> (u64, u64) {
        self.quic.nat_drops()
    }

    /// What port searches of this endpoint have done.
    pub fn searches(&self) -> SearchStats {
        self.quic.searches()
    }

    /// Waits until a port search wants to know the STUN servers of the gateway that relays;
    /// [`Self::set_stun_servers`] is the answer. For one waiter.
    ///
    /// # Cancel safety
    /// Safe: a wish is not lost.
    pub async fn stun_wanted(&self) {
        self.quic.stun_wanted().await;
    }

    /// The STUN servers of the gateway that relays now: one with two ports or two addresses tells
    /// how this endpoint's NAT maps. With an empty list there are no searches
    /// for now, and [`Self::stun_wanted`] comes again.
    pub fn set_stun_servers(&self, servers: Vec<StunServer>) {
        self.quic.set_stun_servers(servers);
    }

    fn connected(&self, connection: quic::Connection) -> Connected {
        let (crew, peers) = (self.crew.clone(), self.quic.peers().cloned());
        Connected::new(connection, true, crew, Arc::clone(&self.loading), peers)
    }

    /// The next peer that completed its handshake; `None` once the endpoint is closed, or at once
    /// when it does not accept. At most 64 wait here; beyond that handshakes wait.
    ///
    /// # Cancel safety
    /// Safe: no peer is lost.
    pub async fn accept(&self) -> Option<Connected> {
        let mut accepted = self.accepted.lock().await;
        tokio::select! {
            biased;
            () = self.closed.cancelled() => None,
            connected = accepted.recv() => connected,
        }
    }

    /// What became of the handshakes of peers; all zero when this endpoint does not accept.
    pub fn handshakes(&self) -> HandshakeStats {
        let stats = self.guard.as_ref().map(|guard| lock(guard).stats()).unwrap_or_default();
        HandshakeStats { junk: self.quic.junk(), ..stats }
    }

    /// Closes every link at once with `code` and `reason`, accepts no more, and waits (1 s at most)
    /// until the peers were told. Close links with [`Link::close`](crate::Link::close) first where
    /// what is queued shall still go out.
    ///
    /// # Cancel safety
    /// Everything is closed at the first poll; only the waiting is lost.
    pub async fn close(&self, code: u16, reason: &str) {
        self.closed.cancel();
        self.quic.close(code, reason);
        let told = tokio::time::timeout(CLOSE_TIMEOUT, self.quic.closed()).await;
        if told.is_err() {
            tracing::debug!("some peers were not told that the endpoint closed");
        }
    }
}

/// Whether a link becomes direct in time; if not, it is closed.
async fn is_direct_in_time(connection: &quic::Connection) -> bool {
    let direct = tokio::time::timeout(DIRECT_TIMEOUT, connection.direct()).await;
    let is_direct = direct == Ok(Ok(()));
    if !is_direct {
        connection.close(CODE_DENIED, "no direct path, and no other may be used");
    }
    is_direct
}

/// Tasks that an endpoint under load keeps busy.
fn hands_max() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get).min(HANDS_MAX)
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.closed.cancel();
    }
}

/// Runs the handshakes of peers that dial.
struct Acceptor {
    quic: Arc<quic::Endpoint>,
    timeout: Duration,
    strategy: Strategy,
    guard: SharedGuard,
    loading: Arc<Loading>,
    accepted: mpsc::Sender<Connected>,
    crew: Crew,
    tasks: TaskTracker,
    closed: CancellationToken,
}

impl Acceptor {
    async fn run(self) {
        let closed = self.closed.clone();
        closed
            .run_until_cancelled(async {
                loop {
                    let pause = lock(&self.guard).pause(Instant::now());
                    if let Some(pause) = pause {
                        tokio::time::sleep(pause).await;
                    }
                    let Some(incoming) = self.quic.incoming().await else { return };
                    if !self.quic.wants(&incoming) {
                        incoming.ignore();
                        continue;
                    }
                    let (ip, is_proved) = (incoming.remote().ip(), incoming.is_validated());
                    let verdict = lock(&self.guard).decide(Instant::now(), ip, is_proved);
                    match verdict {
                        Verdict::Start(id, give_up) => self.start(incoming, id, give_up),
                        Verdict::Retry => incoming.validate(),
                        Verdict::Refuse => incoming.refuse(),
                        Verdict::Ignore => incoming.ignore(),
                    }
                }
            })
            .await;
    }

    /// One task per handshake: a panic in it is contained there.
    fn start(&self, incoming: quic::Incoming, id: HandshakeId, give_up: CancellationToken) {
        let mut slot = Slot { guard: Arc::clone(&self.guard), id, outcome: Outcome::Failed };
        let (timeout, accepted) = (self.timeout, self.accepted.clone());
        let (crew, closed) = (self.crew.clone(), self.closed.clone());
        let (loading, quic) = (Arc::clone(&self.loading), Arc::clone(&self.quic));
        let strategy = self.strategy;
        let running = self.tasks.track_future(async move {
            let handshake = async {
                let connection = match quic.accept(incoming, timeout).await {
                    Ok(connection) => connection,
                    Err(error) => {
                        tracing::debug!(?error, "handshake of a peer failed");
                        if error == HandshakeError::Timeout {
                            slot.outcome = Outcome::TimedOut;
                        }
                        return;
                    }
                };
                slot.outcome = Outcome::Completed;
                let peer = connection.peer();
                if let Err(wait) = lock(&slot.guard).admit(Instant::now(), peer) {
                    tracing::debug!(%peer, ?wait, "a key comes back too often");
                    let seconds = wait.as_secs() + 1;
                    let reason = format!("this key connects too often; wait {seconds} s");
                    connection.close(CODE_LIMIT, &reason);
                    return;
                }
                let must_be_direct = connection.is_peer_link() && strategy == Strategy::DirectOnly;
                let (direct, peers) = (connection.clone(), quic.peers().cloned());
                let connected = Connected::new(connection, false, crew.clone(), loading, peers);
                if must_be_direct {
                    crew.spawn(async move {
                        if is_direct_in_time(&direct).await {
                            accepted.send(connected).await.ok();
                        }
                    });
                    return;
                }
                // Fails when the endpoint is gone; the peer is closed by that.
                accepted.send(connected).await.ok();
            };
            tokio::select! {
                biased;
                () = closed.cancelled() => {}
                () = give_up.cancelled() => {}
                () = handshake => {}
            }
        });
        self.crew.spawn(running);
    }
}

/// The place of a handshake under way, free again when dropped.
struct Slot {
    guard: SharedGuard,
    id: HandshakeId,
    outcome: Outcome,
}

impl Drop for Slot {
    fn drop(&mut self) {
        lock(&self.guard).ended(self.id, self.outcome);
    }
}
