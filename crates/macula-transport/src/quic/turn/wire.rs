//! What goes to a TURN server and back: datagrams, or a stream over TCP or TLS.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use macula_nat::uri::{Transport, TurnUri};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;

use crate::crew::Crew;

/// What connecting may take, name and TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Pieces that may wait for a stream to take them; those beyond are dropped.
const QUEUE_MAX: usize = 256;
/// So many of them are kept free for requests to the server, which are not repeated on streams.
const QUEUE_RESERVE: usize = 16;

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection to a server.
pub(super) struct Wire {
    pub(super) local: SocketAddr,
    pub(super) server: SocketAddr,
    kind: Kind,
}

enum Kind {
    Udp(UdpSocket),
    Stream { read: ReadHalf<Box<dyn Io>>, out: mpsc::Sender<Vec<u8>> },
}

impl Wire {
    /// Finds the server's address and connects.
    pub(super) async fn connect(uri: &TurnUri, crew: &Crew) -> io::Result<Self> {
        let connecting = tokio::time::timeout(CONNECT_TIMEOUT, Self::open(uri, crew)).await;
        connecting.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into()))
    }

    async fn open(uri: &TurnUri, crew: &Crew) -> io::Result<Self> {
        let mut found = tokio::net::lookup_host((uri.host.as_str(), uri.port)).await?;
        let none = || io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        let server = found.next().ok_or_else(none)?;
        if uri.transport == Transport::Udp {
            let any = match server {
                SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
                SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
            };
            let socket = UdpSocket::bind(any).await?;
            socket.connect(server).await?;
            return Ok(Self { local: socket.local_addr()?, server, kind: Kind::Udp(socket) });
        }
        let tcp = TcpStream::connect(server).await?;
        tcp.set_nodelay(true)?;
        let local = tcp.local_addr()?;
        let stream: Box<dyn Io> = if uri.transport == Transport::Tls {
            Box::new(tls(uri, tcp).await?)
        } else {
            Box::new(tcp)
        };
        let (read, write) = tokio::io::split(stream);
        let (out, pieces) = mpsc::channel(QUEUE_MAX);
        crew.spawn(write_all(write, pieces));
        Ok(Self { local, server, kind: Kind::Stream { read, out } })
    }

    pub(super) fn is_stream(&self) -> bool {
        matches!(self.kind, Kind::Stream { .. })
    }

    /// Sends without waiting; `false`: it was dropped. Data of peers gives way to requests.
    pub(super) fn send(&self, bytes: Vec<u8>, is_data: bool) -> bool {
        match &self.kind {
            Kind::Udp(socket) => socket.try_send(&bytes).is_ok(),
            Kind::Stream { out, .. } => {
                let has_room = !is_data || out.capacity() > QUEUE_RESERVE;
                has_room && out.try_send(bytes).is_ok()
            }
        }
    }

    /// The next datagram, or piece of the stream. Cancel-safe.
    ///
    /// # Errors
    /// The stream has ended. On UDP errors are news of packets sent before, and not the end.
    pub(super) async fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.kind {
            Kind::Udp(socket) => loop {
                if let Ok(length) = socket.recv(buffer).await {
                    return Ok(length);
                }
            },
            Kind::Stream { read, .. } => match read.read(buffer).await? {
                0 => Err(io::ErrorKind::UnexpectedEof.into()),
                length => Ok(length),
            },
        }
    }
}

/// Ends when the connection does, or nothing more will be sent.
async fn write_all(mut write: WriteHalf<Box<dyn Io>>, mut pieces: mpsc::Receiver<Vec<u8>>) {
    while let Some(piece) = pieces.recv().await {
        if write.write_all(&piece).await.is_err() {
            return;
        }
    }
    // The end of the connection is what is wanted.
    write.shutdown().await.ok();
}

/// TLS to a server whose certificate the system trusts.
async fn tls(
    uri: &TurnUri,
    tcp: TcpStream,
) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let found = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs).await;
    let found = found.map_err(io::Error::other)?;
    let mut roots = rustls::RootCertStore::empty();
    let (usable, _) = roots.add_parsable_certificates(found.certs);
    if usable == 0 {
        return Err(io::Error::other(
            "no certificates of authorities are installed here; install ca-certificates, or name a \
             file in SSL_CERT_FILE",
        ));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(uri.host.clone()).map_err(io::Error::other)?;
    TlsConnector::from(Arc::new(config)).connect(name, tcp).await
}
