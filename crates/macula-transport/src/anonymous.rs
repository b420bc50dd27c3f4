//! A socket for clients that prove nothing: QUIC with TLS, but without client keys, for another
//! protocol than ours.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::guard::{Guard, HandshakeId, HandshakeLimits, HandshakeStats, Outcome, Verdict};
use crate::quic::anonymous::{self as quic, Listener};
use crate::quic::{HandshakeError, Incoming};
use crate::socket::{self, BindError};
use crate::sync::lock;

/// Connections that may wait for [`AnonymousListener::accept`].
const ACCEPTED_MAX: usize = 64;
/// Kernel buffers of the socket, bytes.
const SOCKET_BUFFER_BYTES: usize = 1024 * 1024;
/// What [`AnonymousListener::close`] gives the goodbyes to go out.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Settings of an [`AnonymousListener`].
#[derive(Clone)]
#[non_exhaustive]
pub struct AnonymousConfig {
    /// Where to listen, UDP. `[::]:port` takes IPv4 too.
    pub listen: SocketAddr,
    /// The protocol, as TLS names it; clients that offer another one are refused.
    pub alpn: Vec<u8>,
    /// X.509 certificate, DER.
    pub certificate: Vec<u8>,
    /// Its private key, DER (PKCS#8, PKCS#1 or SEC1).
    pub key: Vec<u8>,
    /// Bidirectional streams that a client may have open. Default 100.
    pub streams_max: u32,
    /// What a client may send on one stream before it is read, and what is kept of what was sent
    /// to it, bytes; four times of it on all its streams. Default 256 KiB.
    pub stream_window_bytes: u32,
    /// After so much silence a packet is sent that the client must acknowledge. Default 10 s.
    pub keep_alive: Duration,
    /// After so much silence a connection is down, if the client does not ask for less. Default 60 s.
    pub idle_timeout: Duration,
    /// What a handshake may take. Default 5 s.
    pub handshake_timeout: Duration,
    /// What handshakes may use, by source among others. Keys do not matter here.
    pub handshakes: HandshakeLimits,
    /// Connections at once. Default 4,096.
    pub connections_max: usize,
    /// Connections at once from one IPv4 address or IPv6 /64. Default 256.
    pub connections_per_address_max: usize,
}

impl AnonymousConfig {
    /// The defaults.
    pub fn new(listen: SocketAddr, alpn: &[u8], certificate: Vec<u8>, key: Vec<u8>) -> Self {
        Self {
            listen,
            alpn: alpn.to_vec(),
            certificate,
            key,
            streams_max: 100,
            stream_window_bytes: 256 * 1024,
            keep_alive: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            handshake_timeout: Duration::from_secs(5),
            handshakes: HandshakeLimits::default(),
            connections_max: 4_096,
            connections_per_address_max: 256,
        }
    }
}

impl std::fmt::Debug for AnonymousConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AnonymousConfig").field("listen", &self.listen).finish_non_exhaustive()
    }
}

/// A UDP socket for clients that prove nothing. What they say of themselves is their word only.
///
/// Dropping it stops accepting; connections go on.
#[derive(Debug)]
pub struct AnonymousListener {
    quic: Arc<Listener>,
    local_addr: SocketAddr,
    guard: Arc<Mutex<Guard>>,
    places: Arc<Places>,
    accepted: tokio::sync::Mutex<mpsc::Receiver<AnonymousConnection>>,
    closed: CancellationToken,
}

impl AnonymousListener {
    /// Binds the socket and starts.
    ///
    /// # Errors
    /// See [`BindError`]; a certificate or key that cannot be used is [`BindError::Quic`].
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O and time.
    pub fn bind(config: &AnonymousConfig) -> Result<Self, BindError> {
        let socket = socket::bind(Some(config.listen), SOCKET_BUFFER_BYTES)?;
        let quic = Listener::new(config, socket).map_err(|source| BindError::Quic { source })?;
        let quic = Arc::new(quic);
        let local_addr = quic.local_addr().map_err(|source| BindError::Quic { source })?;
        let guard = Arc::new(Mutex::new(Guard::new(&config.handshakes, Instant::now())));
        let places = Arc::new(Places {
            all_max: config.connections_max,
            per_source_max: config.connections_per_address_max,
            taken: Mutex::default(),
        });
        let (accepted, receiver) = mpsc::channel(ACCEPTED_MAX);
        let closed = CancellationToken::new();
        let acceptor = Acceptor {
            quic: Arc::clone(&quic),
            guard: Arc::clone(&guard),
            places: Arc::clone(&places),
            timeout: config.handshake_timeout,
            accepted,
            tasks: TaskTracker::new(),
            closed: closed.clone(),
        };
        tokio::spawn(closed.clone().run_until_cancelled_owned(acceptor.run()));
        let accepted = tokio::sync::Mutex::new(receiver);
        Ok(Self { quic, local_addr, guard, places, accepted, closed })
    }

    /// The address that the socket is bound to.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// The next client that completed its handshake; `None` once the listener is closed. At most 64
    /// wait here; beyond that handshakes wait.
    ///
    /// # Cancel safety
    /// Safe: no client is lost.
    pub async fn accept(&self) -> Option<AnonymousConnection> {
        let mut accepted = self.accepted.lock().await;
        tokio::select! {
            biased;
            () = self.closed.cancelled() => None,
            connection = accepted.recv() => connection,
        }
    }

    /// What became of handshakes. Those refused as there were too many connections, of all or of
    /// one address, are in [`AnonymousListener::turned_away`].
    pub fn handshakes(&self) -> HandshakeStats {
        lock(&self.guard).stats()
    }

    /// Clients refused before the handshake as there were too many connections.
    pub fn turned_away(&self) -> u64 {
        lock(&self.places.taken).turned_away
    }

    /// Closes every connection with `code` and `reason`, accepts no more, and waits (1 s at most)
    /// until the clients were told.
    ///
    /// # Cancel safety
    /// Everything is closed at the first poll; only the waiting is lost.
    pub async fn close(&self, code: u16, reason: &str) {
        self.closed.cancel();
        self.quic.close(code, reason);
        // Those that were not told find out by their own timeouts.
        let _told = tokio::time::timeout(CLOSE_TIMEOUT, self.quic.closed()).await;
    }
}

impl Drop for AnonymousListener {
    fn drop(&mut self) {
        self.closed.cancel();
    }
}

/// Runs handshakes.
struct Acceptor {
    quic: Arc<Listener>,
    guard: Arc<Mutex<Guard>>,
    places: Arc<Places>,
    timeout: Duration,
    accepted: mpsc::Sender<AnonymousConnection>,
    tasks: TaskTracker,
    closed: CancellationToken,
}

impl Acceptor {
    async fn run(self) {
        loop {
            let pause = lock(&self.guard).pause(Instant::now());
            if let Some(pause) = pause {
                tokio::time::sleep(pause).await;
            }
            let Some(incoming) = self.quic.incoming().await else { return };
            let (ip, is_proved) = (incoming.remote().ip(), incoming.is_validated());
            let verdict = lock(&self.guard).decide(Instant::now(), ip, is_proved);
            match verdict {
                Verdict::Start(id, give_up) => self.start(incoming, id, give_up),
                Verdict::Retry => incoming.validate(),
                Verdict::Refuse => incoming.refuse(),
                Verdict::Ignore => incoming.ignore(),
            }
        }
    }

    fn start(&self, incoming: Incoming, id: HandshakeId, give_up: CancellationToken) {
        let slot = Slot { guard: Arc::clone(&self.guard), id, outcome: Outcome::Failed };
        let remote = incoming.remote();
        let Some(place) = Place::take(&self.places, remote.ip()) else {
            return incoming.refuse();
        };
        let (timeout, accepted) = (self.timeout, self.accepted.clone());
        let closed = self.closed.clone();
        self.tasks.spawn(async move {
            // All of it: the future would take a copy of the outcome alone.
            let mut slot = slot;
            let handshake = async {
                match quic::accept(incoming, timeout).await {
                    Ok(quic) => {
                        slot.outcome = Outcome::Completed;
                        let place = Arc::new(place);
                        let connection = AnonymousConnection { quic, remote, _place: place };
                        // Fails when the listener is gone; the client is closed by that.
                        accepted.send(connection).await.ok();
                    }
                    Err(error) => {
                        tracing::debug!(?error, %remote, "handshake of a client failed");
                        if error == HandshakeError::Timeout {
                            slot.outcome = Outcome::TimedOut;
                        }
                    }
                }
            };
            tokio::select! {
                biased;
                () = closed.cancelled() => {}
                () = give_up.cancelled() => {}
                () = handshake => {}
            }
        });
    }
}

/// The place of a handshake under way, free again when dropped.
struct Slot {
    guard: Arc<Mutex<Guard>>,
    id: HandshakeId,
    outcome: Outcome,
}

impl Drop for Slot {
    fn drop(&mut self) {
        lock(&self.guard).ended(self.id, self.outcome);
    }
}

/// Connections and handshakes at once, by source.
#[derive(Debug)]
struct Places {
    all_max: usize,
    per_source_max: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_source: HashMap<IpAddr, usize>,
    turned_away: u64,
}

/// One of them, free again when dropped.
#[derive(Debug)]
struct Place {
    places: Arc<Places>,
    source: IpAddr,
}

impl Place {
    fn take(places: &Arc<Places>, ip: IpAddr) -> Option<Self> {
        let source = source_of(ip);
        let mut taken = lock(&places.taken);
        let here = taken.by_source.get(&source).copied().unwrap_or_default();
        if taken.all >= places.all_max || here >= places.per_source_max {
            taken.turned_away += 1;
            return None;
        }
        taken.all += 1;
        taken.by_source.insert(source, here + 1);
        Some(Self { places: Arc::clone(places), source })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = lock(&self.places.taken);
        taken.all -= 1;
        if let Some(here) = taken.by_source.get_mut(&self.source) {
            *here -= 1;
            if *here == 0 {
                taken.by_source.remove(&self.source);
            }
        }
    }
}

/// Who may have many addresses without effort counts as one: an IPv6 /64.
fn source_of(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !0 << 64)),
    }
}

/// A connection of a client that has proved nothing. Dropping the last clone closes it with code 0.
#[derive(Clone, Debug)]
pub struct AnonymousConnection {
    quic: quic::Connection,
    remote: SocketAddr,
    _place: Arc<Place>,
}

impl AnonymousConnection {
    /// Where its packets came from when it was made.
    pub fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// The next stream that the client opens; `None` when the connection is gone.
    ///
    /// # Cancel safety
    /// Safe: no stream is lost.
    pub async fn accept_stream(&self) -> Option<(AnonymousSender, AnonymousReceiver)> {
        let (send, recv) = self.quic.accept_bi().await?;
        Some((AnonymousSender { quic: send, is_finished: false }, AnonymousReceiver(recv)))
    }

    /// Closes it at once; what is on its way is dropped.
    pub fn close(&self, code: u16, reason: &str) {
        self.quic.close(code, reason);
    }

    /// Ends when the connection does, with the reason in words.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub async fn closed(&self) -> String {
        self.quic.closed().await
    }
}

/// The sending half of a stream. Dropping it resets the stream if it was not finished.
#[derive(Debug)]
pub struct AnonymousSender {
    quic: quic::SendStream,
    is_finished: bool,
}

impl AnonymousSender {
    /// Hands all pieces to QUIC, waiting while the client does not read; `false`: nobody will.
    ///
    /// # Cancel safety
    /// None: some may have been written.
    pub async fn write_all(&mut self, pieces: &mut [Bytes]) -> bool {
        self.quic.write_all(pieces).await
    }

    /// Ends this half, and waits until the client has all of it. If that takes longer than `patience` the
    /// stream is reset, so that the client hears of its end even if it does not read.
    ///
    /// # Cancel safety
    /// Dropped before its end it leaves the stream finished.
    pub async fn finish(&mut self, patience: Duration) {
        self.is_finished = true;
        self.quic.finish();
        if tokio::time::timeout(patience, self.quic.delivered()).await.is_err() {
            self.quic.reset();
        }
    }
}

impl Drop for AnonymousSender {
    fn drop(&mut self) {
        if !self.is_finished {
            self.quic.reset();
        }
    }
}

/// The receiving half of a stream. Dropping it tells the client to stop.
#[derive(Debug)]
pub struct AnonymousReceiver(quic::RecvStream);

impl AnonymousReceiver {
    /// The next bytes, at most `bytes_max`; `None` at the end, in whatever way it came.
    ///
    /// # Cancel safety
    /// Safe: no byte is lost.
    pub async fn read(&mut self, bytes_max: usize) -> Option<Bytes> {
        self.0.read(bytes_max).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_by_source_and_given_back() {
        let places = Arc::new(Places { all_max: 3, per_source_max: 2, taken: Mutex::default() });
        let ip = |text: &str| text.parse().unwrap();
        let first = Place::take(&places, ip("2001:db8::1")).unwrap();
        let _second = Place::take(&places, ip("2001:db8::2")).unwrap();
        assert!(Place::take(&places, ip("2001:db8::3")).is_none(), "one /64 is one source");
        let third = Place::take(&places, ip("192.0.2.1")).unwrap();
        assert!(Place::take(&places, ip("192.0.2.2")).is_none(), "all are taken");
        drop(third);
        drop(first);
        assert!(Place::take(&places, ip("2001:db8::3")).is_some());
        assert_eq!(lock(&places.taken).turned_away, 2);
        assert!(!lock(&places.taken).by_source.contains_key(&ip("192.0.2.1")));
    }
}
