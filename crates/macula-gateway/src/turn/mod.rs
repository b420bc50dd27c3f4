//! The STUN and TURN server beside the gateway: sockets around `macula_nat::stun` and
//! `macula_nat::turn`.

mod config;
mod hub;
mod stream;
mod tls;

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use macula_nat::stun::{Binding, Listener};
use macula_nat::turn::{Issuer, Limits, PeerPolicy, Server, ServerConfig};
use macula_proto::node::{Asker, Extension};
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::json;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

pub use config::{DEFAULT_PORT, DEFAULT_TLS_PORT, TurnConfig};
use hub::{DATAGRAM_BYTES_MAX, Hub};
use stream::Connections;

/// Built-in procedure that tells members how to use the server (docs/protocol §6.6).
pub const CREDENTIALS_PROCEDURE: &str = "macula.turn";
/// How often expired allocations are looked for.
const TICK: Duration = Duration::from_secs(1);

/// The server cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen for STUN and TURN on {address}: {source}")]
pub struct TurnError {
    /// Where.
    pub address: SocketAddr,
    /// Why.
    pub source: io::Error,
}

/// A running STUN and TURN server. Dropping it closes everything.
#[derive(Debug)]
pub struct Turn {
    hub: Arc<Hub>,
    issuer: Issuer,
    tcp: Option<SocketAddr>,
    tls: Option<SocketAddr>,
    /// Of all streams together.
    connections: Arc<Connections>,
    tasks: JoinSet<()>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.hub.close();
    }
}

impl Turn {
    /// Starts the server; it listens when this returns. `gateway` is the gateway's own address.
    /// `Ok(None)`: it is off, or its default port is taken, which was logged.
    ///
    /// # Errors
    /// When an address that was configured cannot be had.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O and time.
    pub fn start(config: &TurnConfig, gateway: SocketAddr) -> Result<Option<Self>, TurnError> {
        if !config.enabled {
            return Ok(None);
        }
        match Self::listen(config, gateway) {
            Ok(turn) => Ok(Some(turn)),
            Err(error) if config.listen.is_none() => {
                tracing::warn!(%error, "no STUN and TURN here; `turn.listen` takes another address");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn listen(config: &TurnConfig, gateway: SocketAddr) -> Result<Self, TurnError> {
        let port = if gateway.port() == 0 { 0 } else { DEFAULT_PORT };
        let listen = config.listen.unwrap_or(SocketAddr::new(gateway.ip(), port));
        let sockets = Sockets::bind(config, listen)?;
        let addresses = sockets.addresses();
        let random = SystemRandom::new();
        let mut seed = [0; 32];
        let mut secret = vec![0; 32];
        for bytes in [&mut seed[..], &mut secret[..]] {
            let filled = random.fill(bytes).map_err(|_| io::Error::other("no randomness"));
            filled.map_err(|source| TurnError { address: listen, source })?;
        }
        if let Some(configured) = &config.secret {
            secret = configured.as_bytes().to_vec();
        }
        let issuer = Issuer::new(&secret, config.credentials_lifetime);
        let server = server_config(config, issuer.clone(), seed, listen.ip());
        let made = |now| Server::new(now, server);
        let hub =
            Arc::new(Hub::new(config.clone(), made, Binding { addresses }, sockets.0.clone()));
        let connections = Arc::new(Connections::new(config.connections_max));
        let tasks = JoinSet::new();
        let mut turn = Self { hub, issuer, tcp: None, tls: None, connections, tasks };
        turn.read(sockets).map_err(|source| TurnError { address: listen, source })?;
        let address = addresses[0].unwrap_or(listen);
        let fault = |address| move |source| TurnError { address, source };
        if config.tcp {
            turn.tcp = Some(turn.accept(address, None).map_err(fault(address))?);
        }
        if let (Some(cert), Some(key)) = (&config.tls_cert, &config.tls_key) {
            let port = if listen.port() == 0 { 0 } else { config.tls_port };
            let address = SocketAddr::new(address.ip(), port);
            let acceptor = tls::acceptor(cert, key).map_err(fault(address))?;
            turn.tls = Some(turn.accept(address, Some(acceptor)).map_err(fault(address))?);
        }
        Ok(turn)
    }

    fn read(&mut self, sockets: Sockets) -> io::Result<()> {
        for (listener, socket) in Listener::ALL.into_iter().zip(sockets.0) {
            let Some(socket) = socket else { continue };
            let socket = tokio::net::UdpSocket::from_std(socket.try_clone()?)?;
            self.tasks.spawn(read(Arc::clone(&self.hub), listener, socket));
        }
        let hub = Arc::clone(&self.hub);
        self.tasks.spawn(async move {
            let mut ticks = tokio::time::interval(TICK);
            loop {
                ticks.tick().await;
                hub.tick();
            }
        });
        Ok(())
    }

    fn accept(&mut self, address: SocketAddr, tls: Option<TlsAcceptor>) -> io::Result<SocketAddr> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let (hub, connections) = (Arc::clone(&self.hub), Arc::clone(&self.connections));
        self.tasks.spawn(stream::accept(hub, listener, connections, tls));
        Ok(address)
    }

    /// Where it listens by UDP.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.hub.binding.addresses[0]
    }

    /// What the gateway's node tells and answers for it.
    pub fn extension(&self) -> Arc<dyn Extension> {
        Arc::new(Desk {
            hub: Arc::clone(&self.hub),
            issuer: self.issuer.clone(),
            tcp: self.tcp,
            tls: self.tls,
        })
    }
}

/// UDP sockets by [`Listener::index`].
struct Sockets([Option<Arc<UdpSocket>>; 4]);

impl Sockets {
    fn bind(config: &TurnConfig, listen: SocketAddr) -> Result<Self, TurnError> {
        let open = |address: SocketAddr| {
            let bound = UdpSocket::bind(address).and_then(|socket| {
                socket.set_nonblocking(true)?;
                Ok(Arc::new(socket))
            });
            bound.map_err(|source| TurnError { address, source })
        };
        let first = match open(listen) {
            // A machine without IPv6.
            Err(_) if listen.ip() == IpAddr::from([0u16; 8]) => {
                open(SocketAddr::new([0u8; 4].into(), listen.port()))?
            }
            other => other?,
        };
        let local = first.local_addr().unwrap_or(listen);
        let mut sockets = [Some(first), None, None, None];
        if config.other_port == 0 {
            return Ok(Self(sockets));
        }
        let other_port = if listen.port() == 0 { 0 } else { config.other_port };
        let second = open(SocketAddr::new(local.ip(), other_port));
        let Some(other_ip) = config.other_ip else {
            sockets[1] = second.inspect_err(|error| tracing::warn!(%error, "only one port")).ok();
            return Ok(Self(sockets));
        };
        let second = second?;
        let other_port = second.local_addr().map_or(other_port, |address| address.port());
        sockets[1] = Some(second);
        sockets[2] = Some(open(SocketAddr::new(other_ip, local.port()))?);
        sockets[3] = Some(open(SocketAddr::new(other_ip, other_port))?);
        Ok(Self(sockets))
    }

    fn addresses(&self) -> [Option<SocketAddr>; 4] {
        [0, 1, 2, 3].map(|index: usize| self.0.get(index)?.as_ref()?.local_addr().ok())
    }
}

async fn read(hub: Arc<Hub>, listener: Listener, socket: tokio::net::UdpSocket) {
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        // An error is news of an answer sent before.
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else { continue };
        hub.datagram(listener, from, buffer.get(..length).unwrap_or_default());
    }
}

fn server_config(
    config: &TurnConfig,
    issuer: Issuer,
    seed: [u8; 32],
    listen: IpAddr,
) -> ServerConfig {
    let has = |is_ipv6: bool| {
        let is_here = listen.is_ipv6() == is_ipv6 && !listen.is_unspecified();
        is_here || hub::own_ip(is_ipv6).is_some()
    };
    let mut own: Vec<IpAddr> = config.external.clone();
    own.extend([hub::own_ip(false), hub::own_ip(true), config.other_ip].into_iter().flatten());
    own.push(listen);
    ServerConfig {
        realm: config.realm.clone(),
        issuer,
        policy: PeerPolicy {
            allow_private: config.allow_private,
            allow_loopback: config.allow_loopback,
            own,
        },
        limits: Limits {
            allocations_max: config.allocations_max,
            allocations_per_user_max: config.allocations_per_peer_max,
            allocations_per_address_max: config.allocations_per_address_max,
            peers_per_allocation_max: config.peers_per_allocation_max,
            bytes_per_second_per_user: config.bytes_per_second_per_peer as u64,
            bytes_per_second: config.bytes_per_second as u64,
            answers_per_source: config.answers_per_source as u64,
            ..Limits::default()
        },
        has_ipv4: has(false),
        has_ipv6: has(true),
        seed,
    }
}

/// Hands out credentials and tells counters.
#[derive(Debug)]
struct Desk {
    hub: Arc<Hub>,
    issuer: Issuer,
    tcp: Option<SocketAddr>,
    tls: Option<SocketAddr>,
}

impl Extension for Desk {
    fn answer(&self, procedure: &str, asker: Asker) -> Option<Bytes> {
        if procedure != CREDENTIALS_PROCEDURE {
            return None;
        }
        let [port, other_port, ..] = self.hub.binding.addresses.map(|it| it.map(|it| it.port()));
        let mut answer = json!({
            "host": self.hub.config.host,
            "stun_port": port,
            "stun_other_port": other_port,
        });
        // Strangers may ask where they are; to be relayed to whomever they like they must be allowed to.
        if let (true, Some(endpoint)) = (asker.may_relay, asker.endpoint) {
            let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            let credentials = self.issuer.issue(&endpoint.to_string(), unix);
            let mut servers = vec![json!({"scheme": "turn", "transport": "udp", "port": port})];
            for (scheme, listens) in [("turn", self.tcp), ("turns", self.tls)] {
                servers.extend(listens.map(
                    |address| json!({"scheme": scheme, "transport": "tcp", "port": address.port()}),
                ));
            }
            answer["turn"] = json!({
                "servers": servers,
                "realm": self.hub.config.realm,
                "username": credentials.username,
                "password": credentials.password,
                "lifetime_s": credentials.lifetime.as_secs(),
            });
        }
        Some(answer.to_string().into())
    }

    fn counters(&self) -> Vec<(String, u64)> {
        let mut counters = vec![
            ("stun_bindings".to_owned(), self.hub.bindings.load(Ordering::Relaxed)),
            ("turn_unsent".to_owned(), self.hub.unsent.load(Ordering::Relaxed)),
        ];
        let stats = self.hub.server().stats();
        counters.extend(stats.named().map(|(name, value)| (format!("turn_{name}"), value)));
        counters
    }
}
