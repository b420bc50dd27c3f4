//! Everything that knows which QUIC stack this is. Nothing outside this module names it.

mod config;
mod runtime;
mod sieve;
mod tls;

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use macula_proto::id::EndpointId;
use macula_proto::limits;
use macula_proto::wire::frame::Class;
use noq::{ConnectionError, PathId, Runtime, VarInt};

use crate::crew::Crew;
use crate::endpoint::EndpointConfig;
use crate::event::DownReason;

/// A QUIC endpoint with its identity.
#[derive(Debug)]
pub(crate) struct Endpoint {
    endpoint: noq::Endpoint,
    tls: tls::Tls,
    client_transport: Arc<noq::TransportConfig>,
    /// Kept over dials: lets servers that are flooded skip the extra round trip.
    tokens: Arc<noq::TokenMemoryCache>,
    junk: Arc<AtomicU64>,
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
        let server = if settings.accept {
            let server = config::server(tls.server(), &settings.key, settings);
            Some(server.map_err(io::Error::other)?)
        } else {
            None
        };
        let runtime = Arc::new(runtime::Runtime(crew.clone()));
        let (socket, junk) = sieve::Sieve::around(runtime.wrap_udp_socket(socket)?);
        let endpoint = noq::Endpoint::new_with_abstract_socket(
            config::endpoint(&settings.key, port, settings.mtu_max),
            server,
            Box::new(socket),
            runtime,
        )?;
        let client_transport = Arc::new(config::client(settings));
        Ok(Self { endpoint, tls, client_transport, tokens: Arc::default(), junk })
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
        let server_key = self.tls.server_key(expected);
        let crypto = self.tls.client(&server_key);
        let crypto = noq::crypto::rustls::QuicClientConfig::try_from(crypto)
            .map_err(|error| HandshakeError::Failed { reason: error.to_string() })?;
        let mut config = noq::ClientConfig::new(Arc::new(crypto));
        config.transport_config(Arc::clone(&self.client_transport));
        config.token_store(Arc::clone(&self.tokens) as Arc<dyn noq::TokenStore>);
        // Never sent (SNI is off); it only keeps the address tokens of different servers apart.
        let name = match expected {
            Some(id) => format!("{id}.macula"),
            None => match addr.ip() {
                IpAddr::V4(ip) => format!("{:08x}.any.macula", u32::from(ip)),
                IpAddr::V6(ip) => format!("{:032x}.any.macula", u128::from(ip)),
            },
        };
        let connecting = self.endpoint.connect_with(config, addr, &name);
        let connecting = connecting.map_err(|error| match error {
            noq::ConnectError::EndpointStopping => HandshakeError::Closed,
            other => HandshakeError::Unusable { reason: other.to_string() },
        })?;
        match tokio::time::timeout(timeout, connecting).await {
            Err(_elapsed) => Err(HandshakeError::Timeout),
            Ok(Ok(connection)) => Connection::new(connection),
            Ok(Err(error)) => Err(match server_key.mismatch() {
                Some((expected, found)) => HandshakeError::WrongKey { expected, found },
                None => HandshakeError::from(error),
            }),
        }
    }

    /// The next connection attempt; `None` once the endpoint is closed. Cancel-safe.
    pub(crate) async fn incoming(&self) -> Option<Incoming> {
        self.endpoint.accept().await.map(Incoming)
    }

    /// Closes all connections and takes no more.
    pub(crate) fn close(&self, code: u16, reason: &str) {
        self.endpoint.close(VarInt::from(code), cut(reason).as_bytes());
    }

    /// Ends when every connection has told its peer that it is closed.
    pub(crate) async fn closed(&self) {
        self.endpoint.wait_all_draining().await;
    }
}

/// A connection attempt of a peer.
#[derive(Debug)]
pub(crate) struct Incoming(noq::Incoming);

impl Incoming {
    /// Whether the peer has shown that it receives packets at its address.
    pub(crate) fn is_validated(&self) -> bool {
        self.0.remote_address_validated()
    }

    /// Where it comes from, or says so.
    pub(crate) fn remote(&self) -> SocketAddr {
        canonical(self.0.remote_address())
    }

    /// Says no.
    pub(crate) fn refuse(self) {
        self.0.refuse();
    }

    /// Says nothing.
    pub(crate) fn ignore(self) {
        self.0.ignore();
    }

    /// Makes the peer show that; costs it a round trip and us nothing.
    pub(crate) fn validate(self) {
        if let Err(error) = self.0.retry() {
            error.into_incoming().ignore();
        }
    }

    /// Completes the handshake. Dropping the future abandons it.
    pub(crate) async fn accept(self, timeout: Duration) -> Result<Connection, HandshakeError> {
        match tokio::time::timeout(timeout, self.0.accept()?).await {
            Err(_elapsed) => Err(HandshakeError::Timeout),
            Ok(connection) => Connection::new(connection?),
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
            Some(peer) => Ok(Self { connection, peer }),
            None => Err(HandshakeError::Failed { reason: "the peer has shown no key".into() }),
        }
    }

    pub(crate) fn peer(&self) -> EndpointId {
        self.peer
    }

    /// Where the peer's packets come from, as far as one address says it.
    pub(crate) fn remote(&self) -> Option<SocketAddr> {
        self.connection.path(PathId::ZERO)?.remote_address().ok().map(canonical)
    }

    pub(crate) fn rtt(&self) -> Option<Duration> {
        self.connection.rtt(PathId::ZERO)
    }

    /// Lets the peer open other streams than the first.
    pub(crate) fn admit(&self) {
        config::admit(&self.connection);
    }

    /// Sends a packet now, with the acknowledgements that wait for one.
    pub(crate) fn ping(&self) {
        if let Some(path) = self.connection.path(PathId::ZERO) {
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
            ConnectionError::LocallyClosed => return None,
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
