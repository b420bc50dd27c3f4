//! What the tasks of the server share: its state, its sockets, and doing what it says.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use macula_nat::address::canonical;
use macula_nat::stun::{Binding, Listener};
use macula_nat::turn::{Client, ListenerId, Now, Output, Port, RelayId, Server};
use macula_proto::Time;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::TurnConfig;

/// Largest datagram.
pub(super) const DATAGRAM_BYTES_MAX: usize = 65_535;
/// How many ports are tried for a relay.
const PORT_TRIES: usize = 64;

/// A relay's socket and the task that reads it.
#[derive(Debug)]
struct Relay {
    socket: Arc<UdpSocket>,
    reader: AbortHandle,
}

/// State, sockets and counters.
#[derive(Debug)]
pub(super) struct Hub {
    pub(super) config: TurnConfig,
    server: Mutex<Server>,
    pub(super) binding: Binding,
    /// By [`Listener::index`]; sending never waits.
    pub(super) sockets: [Option<Arc<UdpSocket>>; 4],
    relays: Mutex<BTreeMap<RelayId, Relay>>,
    streams: Mutex<BTreeMap<Client, mpsc::Sender<Vec<u8>>>>,
    start: Instant,
    random: SystemRandom,
    pub(super) bindings: AtomicU64,
    /// Packets that the system did not take, or a stream had no room for.
    pub(super) unsent: AtomicU64,
}

impl Hub {
    pub(super) fn new(
        config: TurnConfig,
        make: impl FnOnce(Now) -> Server,
        binding: Binding,
        sockets: [Option<Arc<UdpSocket>>; 4],
    ) -> Self {
        let start = Instant::now();
        Self {
            config,
            server: Mutex::new(make(now_since(start))),
            binding,
            sockets,
            relays: Mutex::default(),
            streams: Mutex::default(),
            start,
            random: SystemRandom::new(),
            bindings: AtomicU64::new(0),
            unsent: AtomicU64::new(0),
        }
    }

    pub(super) fn now(&self) -> Now {
        now_since(self.start)
    }

    pub(super) fn server(&self) -> MutexGuard<'_, Server> {
        lock(&self.server)
    }

    /// A datagram at one of the listeners.
    pub(super) fn datagram(self: &Arc<Self>, at: Listener, from: SocketAddr, packet: &[u8]) {
        let from = canonical(from);
        if is_binding_request(packet) {
            if !self.server().may_answer(self.now(), from.ip()) {
                return;
            }
            if let Some(answer) = self.binding.answer(packet, from, at) {
                self.bindings.fetch_add(1, Ordering::Relaxed);
                self.send(answer.from, answer.to, &answer.data);
            }
        } else if at == Listener::PRIMARY {
            self.packet(Client { listener: UDP, remote: from }, packet);
        }
    }

    /// A packet of a client.
    pub(super) fn packet(self: &Arc<Self>, client: Client, packet: &[u8]) {
        let mut out = Vec::new();
        self.server().client_packet(self.now(), client, packet, &mut out);
        self.perform(out);
    }

    /// A frame of a client that came by a stream.
    pub(super) fn frame(self: &Arc<Self>, client: Client, frame: &[u8]) {
        if !is_binding_request(frame) {
            return self.packet(client, frame);
        }
        if !self.server().may_answer(self.now(), client.remote.ip()) {
            return;
        }
        if let Some(answer) = self.binding.answer(frame, client.remote, Listener::PRIMARY) {
            self.bindings.fetch_add(1, Ordering::Relaxed);
            self.send_to_stream(client, answer.data);
        }
    }

    /// Lets a stream take what is for `client`.
    pub(super) fn add_stream(&self, client: Client, sender: mpsc::Sender<Vec<u8>>) {
        lock(&self.streams).insert(client, sender);
    }

    /// The stream of `client` has ended.
    pub(super) fn remove_stream(self: &Arc<Self>, client: Client) {
        lock(&self.streams).remove(&client);
        let mut out = Vec::new();
        self.server().client_gone(client, &mut out);
        self.perform(out);
    }

    /// Ends what has expired.
    pub(super) fn tick(self: &Arc<Self>) {
        let mut out = Vec::new();
        self.server().handle_timeout(self.now(), &mut out);
        self.perform(out);
    }

    /// Closes all relays; nothing is told to clients, whose gateway is gone.
    pub(super) fn close(&self) {
        for (_, relay) in std::mem::take(&mut *lock(&self.relays)) {
            relay.reader.abort();
        }
    }

    fn perform(self: &Arc<Self>, out: Vec<Output<'_>>) {
        for output in out {
            match output {
                Output::ToClient { client, data } if client.listener == UDP => {
                    self.send(Listener::PRIMARY, client.remote, &data);
                }
                Output::ToClient { client, data } => self.send_to_stream(client, data),
                Output::ToPeer { relay, peer, data } => {
                    let socket = lock(&self.relays).get(&relay).map(|it| Arc::clone(&it.socket));
                    self.send_from(socket.as_deref(), peer, data);
                }
                Output::Bind { relay, client, is_ipv6, port } => {
                    let relayed = self.open(relay, client, is_ipv6, port);
                    if let Err(error) = &relayed {
                        tracing::warn!(%error, "no socket for a relay");
                    }
                    let mut more = Vec::new();
                    self.server().bound(self.now(), relay, relayed.ok(), &mut more);
                    self.perform(more);
                }
                Output::Close { relay } => {
                    if let Some(relay) = lock(&self.relays).remove(&relay) {
                        relay.reader.abort();
                    }
                }
                _ => {}
            }
        }
    }

    fn send(&self, from: Listener, to: SocketAddr, data: &[u8]) {
        let socket = self.sockets.get(from.index()).and_then(Option::as_deref);
        self.send_from(socket, to, data);
    }

    fn send_from(&self, socket: Option<&UdpSocket>, to: SocketAddr, data: &[u8]) {
        let sent = socket.is_some_and(|socket| {
            let is_v6 = socket.local_addr().is_ok_and(|local| local.is_ipv6());
            socket.send_to(data, for_socket(to, is_v6)).is_ok()
        });
        if !sent {
            self.unsent.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn send_to_stream(&self, client: Client, mut data: Vec<u8>) {
        data.resize(data.len().next_multiple_of(4), 0);
        let sender = lock(&self.streams).get(&client).cloned();
        // Data is dropped when the client does not read; so are answers, which it asks for again.
        if sender.is_none_or(|sender| sender.try_send(data).is_err()) {
            self.unsent.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Opens a relay's socket where the client's packets come in; returns the address that others
    /// see it at.
    fn open(
        self: &Arc<Self>,
        relay: RelayId,
        client: Client,
        is_ipv6: bool,
        port: Port,
    ) -> io::Result<SocketAddr> {
        let ip = if is_ipv6 == client.remote.is_ipv6() {
            source_towards(client.remote)
        } else {
            own_ip(is_ipv6)
        };
        let ip = ip.ok_or(io::ErrorKind::AddrNotAvailable)?;
        let socket = self.bind_in_range(ip, port)?;
        socket.set_nonblocking(true)?;
        let port = socket.local_addr()?.port();
        let external = self.config.external.iter().find(|it| it.is_ipv6() == is_ipv6);
        let relayed = SocketAddr::new(external.copied().unwrap_or(ip), port);
        let reading = tokio::net::UdpSocket::from_std(socket.try_clone()?)?;
        let reader = tokio::spawn(read_relay(Arc::clone(self), relay, reading)).abort_handle();
        lock(&self.relays).insert(relay, Relay { socket: Arc::new(socket), reader });
        Ok(relayed)
    }

    /// RFC 8656 §7.2: a port that nobody can guess.
    fn bind_in_range(&self, ip: IpAddr, port: Port) -> io::Result<UdpSocket> {
        let (min, max) = (self.config.relay_port_min, self.config.relay_port_max);
        let mut last = io::Error::from(io::ErrorKind::AddrInUse);
        for _ in 0..PORT_TRIES {
            let mut random = [0; 4];
            self.random.fill(&mut random).map_err(|_| io::ErrorKind::Other)?;
            let span = u32::from(max - min) + 1;
            let offset = u16::try_from(u32::from_be_bytes(random) % span).unwrap_or(0);
            let number = match port {
                Port::Any => min + offset,
                Port::Even => (min + offset) & !1,
            };
            match UdpSocket::bind((ip, number)) {
                Ok(socket) => return Ok(socket),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

/// Clients by UDP.
pub(super) const UDP: ListenerId = ListenerId(0);

async fn read_relay(hub: Arc<Hub>, relay: RelayId, socket: tokio::net::UdpSocket) {
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        // An error is news of a packet sent before: its peer cannot be reached.
        let Ok((length, peer)) = socket.recv_from(&mut buffer).await else { continue };
        let mut out = Vec::new();
        let data = buffer.get(..length).unwrap_or_default();
        hub.server().peer_packet(hub.now(), relay, canonical(peer), data, &mut out);
        hub.perform(out);
    }
}

/// The state behind a lock. A panic while it was held is no reason to stop serving: every call
/// leaves the tables whole or loses one allocation.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn now_since(start: Instant) -> Now {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    Now { time: Time::START + start.elapsed(), unix }
}

/// The method and class of a Binding request (RFC 8489 §5).
fn is_binding_request(packet: &[u8]) -> bool {
    packet.starts_with(&[0, 1])
}

/// An IPv6 socket takes IPv4 addresses in their mapped form.
fn for_socket(address: SocketAddr, is_v6: bool) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) if is_v6 => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
        other => other,
    }
}

/// The address of this machine that packets to `to` come from. Nothing is sent: connecting a UDP
/// socket only asks the routing table.
pub(super) fn source_towards(to: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(to).ok()?;
    socket.local_addr().ok().map(|local| local.ip()).filter(|ip| !ip.is_unspecified())
}

/// This machine's address towards the internet, if it has one of the family.
pub(super) fn own_ip(is_ipv6: bool) -> Option<IpAddr> {
    // Addresses for documentation: they are nowhere, so the default route is asked.
    let far: IpAddr = match is_ipv6 {
        false => Ipv4Addr::new(192, 0, 2, 1).into(),
        true => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
    };
    source_towards(SocketAddr::new(far, 9)).filter(|ip| !ip.is_loopback())
}
