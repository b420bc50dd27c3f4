//! QUIC for clients that show no key, of a protocol that is not ours: a socket of its own.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use noq::{TokioRuntime, VarInt};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, crypto::ring as provider, version};

use super::{HandshakeError, Incoming, canonical, config};
use crate::anonymous::AnonymousConfig;
use crate::key::SecretKey;

/// The packet size that QUIC is promised everywhere to begin with; old clients are asked for no more.
const MTU_MAX: u16 = 1_452;

/// The socket.
#[derive(Debug)]
pub(crate) struct Listener(noq::Endpoint);

impl Listener {
    pub(crate) fn new(settings: &AnonymousConfig, socket: std::net::UdpSocket) -> io::Result<Self> {
        let provider = Arc::new(provider::default_provider());
        let key = PrivateKeyDer::try_from(settings.key.clone()).map_err(io::Error::other)?;
        let mut tls = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13])
            .map_err(io::Error::other)?
            .with_no_client_auth()
            .with_single_cert(vec![CertificateDer::from(settings.certificate.clone())], key)
            .map_err(io::Error::other)?;
        tls.alpn_protocols = vec![settings.alpn.clone()];
        tls.send_tls13_tickets = 0;
        // Of this run only: nobody recognises this socket after a restart.
        let seal = SecretKey::generate().map_err(io::Error::other)?;
        let server = config::anonymous(Arc::new(tls), &seal, settings).map_err(io::Error::other)?;
        let port = socket.local_addr()?.port();
        let endpoint = config::endpoint(&seal, port, MTU_MAX);
        noq::Endpoint::new(endpoint, Some(server), socket, Arc::new(TokioRuntime)).map(Self)
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr().map(canonical)
    }

    /// The next attempt; `None` once closed. Cancel-safe.
    pub(crate) async fn incoming(&self) -> Option<Incoming> {
        self.0.accept().await.map(|incoming| Incoming { incoming, peer: None, tunnel: None })
    }

    pub(crate) fn close(&self, code: u16, reason: &str) {
        self.0.close(VarInt::from(code), super::cut(reason).as_bytes());
    }

    pub(crate) async fn closed(&self) {
        self.0.wait_all_draining().await;
    }
}

/// Completes a handshake. Dropping the future abandons it.
pub(crate) async fn accept(
    incoming: Incoming,
    timeout: std::time::Duration,
) -> Result<Connection, HandshakeError> {
    let accepting = tokio::time::timeout(timeout, incoming.incoming.accept()?).await;
    Ok(Connection(accepting.map_err(|_elapsed| HandshakeError::Timeout)??))
}

/// A connection of a client without a key.
#[derive(Clone, Debug)]
pub(crate) struct Connection(noq::Connection);

impl Connection {
    /// The next stream that the client opens; `None` when the connection is gone. Cancel-safe.
    pub(crate) async fn accept_bi(&self) -> Option<(SendStream, RecvStream)> {
        let (send, recv) = self.0.accept_bi().await.ok()?;
        Some((SendStream(send), RecvStream(recv)))
    }

    pub(crate) fn close(&self, code: u16, reason: &str) {
        self.0.close(VarInt::from(code), super::cut(reason).as_bytes());
    }

    /// Ends when the connection does, with the reason. Cancel-safe.
    pub(crate) async fn closed(&self) -> String {
        self.0.closed().await.to_string()
    }
}

/// The sending half.
#[derive(Debug)]
pub(crate) struct SendStream(noq::SendStream);

impl SendStream {
    /// Hands all pieces to QUIC; `false`: nobody will read them. Not cancel-safe.
    pub(crate) async fn write_all(&mut self, pieces: &mut [Bytes]) -> bool {
        self.0.write_all_chunks(pieces).await.is_ok()
    }

    pub(crate) fn finish(&mut self) {
        // Fails when the stream has ended already, which is what we want.
        let _ended = self.0.finish();
    }

    pub(crate) fn reset(&mut self) {
        // As above.
        let _ended = self.0.reset(VarInt::from_u32(0));
    }

    /// After [`Self::finish`]: ends when the client has everything, or will not have it. Cancel-safe.
    pub(crate) async fn delivered(&self) {
        // Either outcome means that waiting is over.
        let _outcome = self.0.stopped().await;
    }
}

/// The receiving half. Dropping it tells the client to stop.
#[derive(Debug)]
pub(crate) struct RecvStream(noq::RecvStream);

impl RecvStream {
    /// The next bytes; `None` at the end, in whatever way it came. Cancel-safe.
    pub(crate) async fn read(&mut self, bytes_max: usize) -> Option<Bytes> {
        self.0.read_chunk(bytes_max).await.ok().flatten()
    }
}
