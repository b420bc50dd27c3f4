//! A gateway in this process: start, run, drain.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use macula::{
    CoreConfig, EndpointId, Event, Events, HandshakeLimits, HandshakeStats, KeyFileError, Router,
    StartError, TunnelConfig, TunnelError,
};
use macula_proto::node::{Asker, Extension};

use crate::compat07::{V07, V07Error};
use crate::config::{ConfigError, GatewayConfig};
use crate::home;
use crate::signal::StopSignal;
use crate::turn::{Turn, TurnError};

/// Name of the gateway's key file in the Macula directory.
const KEY_FILE_NAME: &str = "gateway.key";
/// How often the counters of handshakes are looked at.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// First packets of unknown addresses in that time that are worth a warning.
const FLOOD: u64 = 1_000;

/// Why a gateway did not start; nothing of it is left behind.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GatewayError {
    /// A value of the configuration is out of range.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Another program has the port.
    #[error("address in use: another program listens on UDP {0}")]
    AddressInUse(SocketAddr),
    /// The system does not let this program listen there.
    #[error("cannot listen on UDP {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// There is nowhere to keep the key: neither `MACULA_HOME` nor `HOME` is set.
    #[error("there is no directory for the gateway's key: MACULA_HOME and HOME are not set")]
    NoHome,
    /// The directory of the key cannot be created.
    #[error("cannot create {}: {source}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The key file cannot be used.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// The STUN and TURN server cannot listen where it was told to.
    #[error(transparent)]
    Turn(#[from] TurnError),
    /// The door for v0.7 clients does not open.
    #[error(transparent)]
    V07(#[from] V07Error),
    /// Tunnels cannot be taken where they shall.
    #[error(transparent)]
    Tunnel(#[from] TunnelError),
    /// Anything else that the library says.
    #[error(transparent)]
    Start(StartError),
}

impl GatewayError {
    /// What an operator can do about it, one sentence.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::Config(_) => "`macula gateway --print-config` shows every key with its range",
            Self::AddressInUse(_) => {
                "stop that program (`ss -ulpn` names it), or choose another port with --listen"
            }
            Self::Listen { .. } => {
                "choose an address of this machine with --listen; ports below 1024 need privileges"
            }
            Self::NoHome | Self::Directory { .. } => {
                "set MACULA_HOME to a directory that can be written, or name a file with --key"
            }
            Self::Key(_) => {
                "correct the file, restore it from a backup, or remove it to get a new identity \
                 (peers that pinned the old one will refuse the gateway)"
            }
            Self::Turn(_) => "choose another address with `turn.listen`, or start with --no-turn",
            Self::V07(_) => "choose another address with `v07.listen`, or leave it out",
            Self::Tunnel(_) => {
                "choose other addresses with --tunnel-listen, or start with --no-tunnel; ports below \
                 1024 need privileges"
            }
            Self::Start(_) => "--log debug tells more",
        }
    }
}

/// A running gateway. Dropping it stops it at once; [`Gateway::drain`] ends it in order.
#[derive(Debug)]
pub struct Gateway {
    router: Router,
    turn: Option<Turn>,
    v07: Option<V07>,
    tunnels: Vec<SocketAddr>,
    config: GatewayConfig,
    key_path: PathBuf,
}

impl Gateway {
    /// Starts a gateway; resolves when it listens.
    ///
    /// Creates the key file, and the Macula directory for it, if need be.
    ///
    /// # Errors
    /// See [`GatewayError`].
    ///
    /// # Cancel safety
    /// Dropping the future stops everything; a key file may have been created.
    pub async fn start(config: GatewayConfig) -> Result<Self, GatewayError> {
        config.check()?;
        let key_path = key_path(config.key.as_deref())?;
        let key = macula::load_or_create_key(&key_path)?;
        let listen = usable_address(config.listen)?;
        let turn = Turn::start(&config.turn, listen)?;
        let v07 = V07::bind(&config.v07, &config.realms)?;
        let extensions = turn.iter().map(Turn::extension).chain(v07.iter().map(V07::extension));
        let extension: Arc<dyn Extension> = Arc::new(Extensions(extensions.collect()));
        let agent = concat!("macula-gateway/", env!("CARGO_PKG_VERSION"));
        let mut builder = Router::builder().listen(listen).key(key).agent(agent);
        builder = builder.tunnels(config.tunnel.enabled);
        if config.realms.is_empty() {
            builder = builder.any_open_realm();
        }
        for realm in &config.realms {
            builder = match realm.parse() {
                Ok(guarded) => builder.guarded_realm(guarded),
                Err(_) => builder.realm(realm),
            };
        }
        builder = builder.revocations_dir(revocations_dir(&config, &key_path));
        let builder = builder
            .limits(|core| set_limits(core, &config))
            .limits(|core| core.extension = Some(extension))
            .handshake_timeout(config.limits.handshake_timeout)
            .handshakes(|handshakes| set_handshakes(handshakes, &config));
        let router = builder.start().await.map_err(GatewayError::Start)?;
        let tunnels = listen_for_tunnels(&router, &config)?;
        if let Some(v07) = &v07 {
            v07.run(&router);
        }
        Ok(Self { router, turn, v07, tunnels, config, key_path })
    }

    /// The gateway's id, which peers pin.
    pub fn id(&self) -> EndpointId {
        self.router.id()
    }

    /// Where it listens: the real port, also when port 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.router.local_addr()
    }

    /// The STUN and TURN server, if it runs.
    pub fn turn(&self) -> Option<&Turn> {
        self.turn.as_ref()
    }

    /// The door for v0.7 clients, if it is open.
    pub fn v07(&self) -> Option<&V07> {
        self.v07.as_ref()
    }

    /// Where it listens for peers that come over TLS and TCP.
    pub fn tunnels(&self) -> &[SocketAddr] {
        &self.tunnels
    }

    /// Addresses that peers can dial: the one listened at, or, when that is "all", loopback and
    /// those of this machine that its routing table prefers.
    pub fn dial_addrs(&self) -> Vec<SocketAddr> {
        dial_addrs(self.local_addr())
    }

    /// The configuration in force.
    pub fn config(&self) -> &GatewayConfig {
        &self.config
    }

    /// The key file.
    pub fn key_path(&self) -> &Path {
        &self.key_path
    }

    /// The router behind it.
    pub fn router(&self) -> &Router {
        &self.router
    }

    /// What happens from now on.
    pub fn events(&self) -> Events {
        self.router.events()
    }

    /// Runs until a signal, then drains. `told` hears what happens.
    ///
    /// The first SIGINT or SIGTERM drains; a second one while draining ends at once.
    ///
    /// # Cancel safety
    /// Dropping the future stops the gateway at once.
    pub async fn run_until(self, stop: &mut StopSignal, mut told: impl FnMut(Told)) -> End {
        let mut events = self.events();
        let mut watch = tokio::time::interval(WATCH_INTERVAL);
        let mut turned_away = TurnedAway::default();
        let signal = loop {
            tokio::select! {
                signal = stop.received() => break signal,
                _ = watch.tick() => {
                    let now = self.router.handshakes();
                    if turned_away.has_grown(&now) {
                        told(Told::Handshakes(now));
                    }
                }
                event = events.next() => match event {
                    Some(Event::PeerConnected { peer, agent, remote }) => {
                        tracing::info!(%peer, agent, %remote, "peer connected");
                        told(Told::PeerConnected(peer));
                    }
                    Some(Event::PeerDisconnected { peer, reason }) => {
                        tracing::info!(%peer, reason, "peer disconnected");
                        told(Told::PeerDisconnected(peer));
                    }
                    Some(Event::Expelled { peer, realm, reason }) => {
                        tracing::info!(%peer, realm, reason, "peer put out of a guarded realm");
                        told(Told::Expelled { peer, realm, reason });
                    }
                    Some(Event::Revoked { realm, sequence, expelled }) => {
                        tracing::info!(realm, sequence, expelled, "new record of revocations");
                        told(Told::Revoked { realm, sequence, expelled });
                    }
                    Some(Event::Closed { failure }) => return End::Failed(failure),
                    Some(event) => tracing::debug!(?event, "event"),
                    None => return End::Failed(None),
                }
            }
        };
        told(Told::Draining { signal, reconnect_window: self.config.drain.reconnect_window });
        tokio::select! {
            () = self.drain() => End::Drained,
            _ = stop.received() => End::Forced,
        }
    }

    /// Goes down in order: refuses new work, tells all peers to come back within
    /// [`crate::config::Drain::reconnect_window`], closes. Ends after
    /// [`crate::config::Drain::timeout`] even if not all was sent.
    ///
    /// # Cancel safety
    /// Dropping the future stops the gateway at once.
    pub async fn drain(mut self) {
        if let Some(v07) = self.v07.take() {
            v07.close().await;
        }
        let drained = self.router.drain(self.config.drain.reconnect_window);
        if tokio::time::timeout(self.config.drain.timeout, drained).await.is_err() {
            tracing::warn!("not all peers took their leave in time");
        }
    }
}

/// What runs beside the node, as one.
#[derive(Debug)]
struct Extensions(Vec<Arc<dyn Extension>>);

impl Extension for Extensions {
    fn answer(&self, procedure: &str, asker: Asker) -> Option<Bytes> {
        self.0.iter().find_map(|extension| extension.answer(procedure, asker))
    }

    fn counters(&self) -> Vec<(String, u64)> {
        self.0.iter().flat_map(|extension| extension.counters()).collect()
    }
}

/// Takes peers over TLS and TCP; without addresses of its own in the configuration, if that can be.
fn listen_for_tunnels(
    router: &Router,
    config: &GatewayConfig,
) -> Result<Vec<SocketAddr>, GatewayError> {
    let tunnel = &config.tunnel;
    if !tunnel.enabled {
        return Ok(Vec::new());
    }
    let is_default = tunnel.listen.is_empty();
    let listen = if is_default { vec![router.local_addr()] } else { tunnel.listen.clone() };
    let mut settings = TunnelConfig::new(listen);
    settings.certificate = tunnel.tls_cert.clone().zip(tunnel.tls_key.clone());
    settings.tunnels_max = tunnel.tunnels_max;
    settings.per_source_max = tunnel.tunnels_per_source_max;
    match router.listen_for_tunnels(&settings) {
        Err(error @ TunnelError::Listen { .. }) if is_default => {
            tracing::warn!(%error, "no way in over TCP; `tunnel.listen` takes another address");
            Ok(Vec::new())
        }
        listens => Ok(listens?),
    }
}

/// Where records of revocations are.
fn revocations_dir(config: &GatewayConfig, key: &Path) -> PathBuf {
    let beside = || key.parent().unwrap_or(Path::new("")).join("revocations");
    config.revocations.clone().unwrap_or_else(beside)
}

/// Handshakes that did not come about, so far.
#[derive(Debug, Default)]
struct TurnedAway {
    told: HandshakeStats,
    /// Whether the operator has been warned of what goes on.
    is_warned: bool,
}

impl TurnedAway {
    /// Whether more than before was kept out; warns when that begins, and says when it is over.
    fn has_grown(&mut self, now: &HandshakeStats) -> bool {
        let silent = |stats: &HandshakeStats| {
            let mut stats = *stats;
            (stats.running, stats.completed) = (0, 0);
            stats
        };
        if silent(now) == silent(&self.told) {
            if self.is_warned {
                tracing::info!("handshakes are as usual again");
                self.is_warned = false;
            }
            return false;
        }
        let limited = |stats: &HandshakeStats| {
            stats.refused_full + stats.refused_rate + stats.ignored_source + stats.displaced
        };
        let (many, before) = (now.retried + now.junk, self.told.retried + self.told.junk);
        if !self.is_warned && (limited(now) > limited(&self.told) || many > before + FLOOD) {
            tracing::warn!(stats = ?now, "more handshakes than usual, or more than allowed");
            self.is_warned = true;
        }
        self.told = *now;
        true
    }
}

/// What [`Gateway::run_until`] tells.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Told {
    /// A peer's handshake is done.
    PeerConnected(EndpointId),
    /// A peer is gone.
    PeerDisconnected(EndpointId),
    /// A peer was put out of a guarded realm: its grant ended or was revoked.
    Expelled {
        /// The peer.
        peer: EndpointId,
        /// The realm.
        realm: String,
        /// Why.
        reason: String,
    },
    /// A newer record of revocations holds.
    Revoked {
        /// The realm.
        realm: String,
        /// The record's number.
        sequence: u64,
        /// How many peers it put out.
        expelled: usize,
    },
    /// Handshakes were kept out, or broke off, since this was told last; at most once a second.
    Handshakes(HandshakeStats),
    /// A signal came; peers are being told.
    Draining {
        /// Its name.
        signal: &'static str,
        /// Peers come back within this.
        reconnect_window: Duration,
    },
}

/// How [`Gateway::run_until`] ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum End {
    /// In order.
    Drained,
    /// By a second signal.
    Forced,
    /// On its own, with what is known of the cause.
    Failed(Option<String>),
}

fn set_limits(core: &mut CoreConfig, config: &GatewayConfig) {
    let limits = &config.limits;
    core.links_max = limits.links_max;
    core.realms_max = limits.realms_max;
    core.subscriptions_per_link_max = limits.subscriptions_per_link_max;
    core.registrations_per_link_max = limits.registrations_per_link_max;
    core.calls_per_link_max = limits.calls_per_link_max;
    core.calls_max = limits.calls_max;
    core.call_deadline_max = limits.call_deadline_max;
    core.lane_queue_bytes_max = limits.lane_queue_bytes_max;
    core.control_queue_bytes_max = limits.control_queue_bytes_max;
    core.ring_bytes_max = limits.ring_bytes_max;
    core.retained_bytes_max = limits.retained_bytes_max;
    core.streams_max = limits.streams_max;
    core.stall_timeout = limits.stall_timeout;
    core.probe_interval = limits.probe_interval;
    core.successor_grace = limits.successor_grace;
    let quotas = &config.quotas;
    core.memory_bytes_max = quotas.memory_max;
    core.message_bytes_max = quotas.message_bytes_max;
    core.bytes_per_second_per_peer = quotas.bytes_per_second_per_peer as u64;
    core.bytes_per_second_per_realm = quotas.bytes_per_second_per_realm as u64;
    core.relay_bytes_per_second_per_peer = quotas.relay_bytes_per_second_per_peer as u64;
    core.relay_bytes_per_second = quotas.relay_bytes_per_second as u64;
    core.changes_per_second = quotas.changes_per_second;
    core.retained_bytes_per_peer_max = quotas.retained_bytes_per_peer_max;
    core.streams_per_peer_max = quotas.streams_per_peer_max;
    core.peers_per_realm_max = quotas.peers_per_realm_max;
    core.subscriptions_per_realm_max = quotas.subscriptions_per_realm_max;
    core.registrations_per_realm_max = quotas.registrations_per_realm_max;
    core.calls_per_realm_max = quotas.calls_per_realm_max;
    core.sessions_detached_max = quotas.sessions_detached_max;
}

fn set_handshakes(handshakes: &mut HandshakeLimits, config: &GatewayConfig) {
    let limits = &config.limits;
    handshakes.running_max = limits.handshakes_max;
    handshakes.per_second_max = limits.handshakes_per_second_max;
    handshakes.per_source_max = limits.handshakes_per_source_max;
    handshakes.per_key_max = limits.handshakes_per_key_max;
}

/// The key file; the Macula directory exists afterwards if it is the default one.
fn key_path(configured: Option<&Path>) -> Result<PathBuf, GatewayError> {
    if let Some(path) = configured {
        return Ok(path.to_owned());
    }
    let directory = home::directory().ok_or(GatewayError::NoHome)?;
    home::create(&directory)
        .map_err(|source| GatewayError::Directory { path: directory.clone(), source })?;
    Ok(directory.join(KEY_FILE_NAME))
}

/// Tries the address before the library does, to tell a port in use from other faults. `[::]` where
/// there is no IPv6 becomes `0.0.0.0`.
fn usable_address(listen: SocketAddr) -> Result<SocketAddr, GatewayError> {
    let Err(error) = UdpSocket::bind(listen) else { return Ok(listen) };
    match error.kind() {
        io::ErrorKind::AddrInUse => Err(GatewayError::AddressInUse(listen)),
        _ if listen.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) => {
            usable_address(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), listen.port()))
        }
        _ => Err(GatewayError::Listen { address: listen, source: error }),
    }
}

fn dial_addrs(local: SocketAddr) -> Vec<SocketAddr> {
    if !local.ip().is_unspecified() {
        return vec![local];
    }
    let mut addrs: Vec<SocketAddr> =
        vec![SocketAddr::new(Ipv4Addr::LOCALHOST.into(), local.port())];
    // No packet is sent: connecting a UDP socket only asks the routing table which of this
    // machine's addresses would be used towards these documentation addresses.
    let far: [SocketAddr; 2] = [
        SocketAddr::new(Ipv4Addr::new(192, 0, 2, 1).into(), 9),
        SocketAddr::new(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(), 9),
    ];
    for far in far {
        let any: IpAddr = match far {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) if local.is_ipv4() => continue,
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let found = UdpSocket::bind((any, 0))
            .and_then(|socket| socket.connect(far).and_then(|()| socket.local_addr()));
        if let Ok(found) = found
            && !found.ip().is_loopback()
            && !found.ip().is_unspecified()
        {
            addrs.push(SocketAddr::new(found.ip(), local.port()));
        }
    }
    addrs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_the_file_reach_the_core_and_defaults_agree() {
        let mut core = CoreConfig::new(macula::Role::Router, 0);
        let untouched = format!("{core:?}");
        set_limits(&mut core, &GatewayConfig::default());
        assert_eq!(format!("{core:?}"), untouched, "the file's defaults are the core's");
        let mut config = GatewayConfig::default();
        config.limits.links_max = 7;
        set_limits(&mut core, &config);
        assert_eq!(core.links_max, 7);
        let mut handshakes = HandshakeLimits::default();
        set_handshakes(&mut handshakes, &config);
        assert_eq!(handshakes, HandshakeLimits::default(), "the file's defaults are the library's");
        config.limits.handshakes_per_key_max = 7;
        set_handshakes(&mut handshakes, &config);
        assert_eq!(handshakes.per_key_max, 7);
    }

    #[test]
    fn only_what_is_kept_out_is_told() {
        let mut turned_away = TurnedAway::default();
        let mut stats = HandshakeStats::default();
        stats.completed = 5;
        assert!(!turned_away.has_grown(&stats));
        stats.retried = 1;
        assert!(turned_away.has_grown(&stats) && !turned_away.is_warned);
        assert!(!turned_away.has_grown(&stats));
        stats.refused_full = 1;
        assert!(turned_away.has_grown(&stats) && turned_away.is_warned);
        assert!(!turned_away.has_grown(&stats) && !turned_away.is_warned);
    }

    #[test]
    fn a_port_in_use_is_told_apart() {
        let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let error = usable_address(address).unwrap_err();
        assert!(matches!(error, GatewayError::AddressInUse(found) if found == address));
        assert!(error.to_string().starts_with("address in use: another program listens on UDP"));
        drop(taken);
        assert_eq!(usable_address(address).unwrap(), address);
    }

    #[test]
    fn an_address_of_another_machine_is_no_port_in_use() {
        let error = usable_address("192.0.2.1:4433".parse().unwrap()).unwrap_err();
        assert!(matches!(error, GatewayError::Listen { .. }));
    }

    #[test]
    fn peers_are_told_addresses_that_they_can_dial() {
        let one: SocketAddr = "127.0.0.1:5".parse().unwrap();
        assert_eq!(dial_addrs(one), [one]);
        let all = dial_addrs("[::]:5".parse().unwrap());
        assert!(all.contains(&one) && all.iter().all(|addr| !addr.ip().is_unspecified()));
    }
}
