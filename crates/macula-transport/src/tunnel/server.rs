//! Takes tunnels.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use macula_proto::limits::TUNNEL_HEAD_BYTES_MAX;
use macula_proto::wire::tunnel::{Request, accepted, read_request};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::seats::Seat;
use super::{End, Seats, TunnelError, run, tls, tune};
use crate::quic::{self, canonical};

/// Connections that the kernel keeps for us.
const BACKLOG: i32 = 512;
/// After an error of the listener, for example too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A tunnel gets so many times the time of a handshake until the connection in it stands.
const UNUSED_FACTOR: u32 = 2;

/// What a browser is shown.
const PAGE: &str = "<!doctype html><title>Macula gateway</title><p>This is a Macula gateway. Programs \
                    reach it by QUIC on UDP, and where that does not pass, by this address. There is \
                    nothing to see here for a browser.\n";

/// Waits for tunnels at one address.
#[derive(Debug)]
pub(crate) struct Listener {
    listener: TcpListener,
    desk: Arc<Desk>,
}

/// What all listeners of an endpoint have in common.
pub(crate) struct Desk {
    acceptor: TlsAcceptor,
    quic: Arc<quic::Endpoint>,
    seats: Arc<Seats>,
    open_timeout: Duration,
    closed: CancellationToken,
    tasks: TaskTracker,
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desk").field("seats", &self.seats).finish_non_exhaustive()
    }
}

impl Desk {
    pub(crate) fn new(
        certificate: Option<(&Path, &Path)>,
        quic: Arc<quic::Endpoint>,
        seats: Arc<Seats>,
        open_timeout: Duration,
        closed: CancellationToken,
        tasks: TaskTracker,
    ) -> Result<Arc<Self>, TunnelError> {
        let acceptor = tls::acceptor(certificate);
        let acceptor = acceptor.map_err(|source| TunnelError::Certificate { source })?;
        Ok(Arc::new(Self { acceptor, quic, seats, open_timeout, closed, tasks }))
    }
}

impl Listener {
    /// Listens; nothing is accepted before [`Self::run`].
    pub(crate) fn bind(address: SocketAddr, desk: &Arc<Desk>) -> Result<Self, TunnelError> {
        let bind = || {
            let socket =
                Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
            if address.is_ipv6() {
                socket.set_only_v6(false)?;
            }
            #[cfg(unix)]
            socket.set_reuse_address(true)?;
            socket.bind(&address.into())?;
            socket.listen(BACKLOG)?;
            socket.set_nonblocking(true)?;
            TcpListener::from_std(socket.into())
        };
        let listener = bind().map_err(|source| TunnelError::Listen { address, source })?;
        Ok(Self { listener, desk: Arc::clone(desk) })
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Accepts until the endpoint closes.
    pub(crate) async fn run(self) {
        let closed = self.desk.closed.clone();
        closed
            .run_until_cancelled(async {
                loop {
                    let Ok((stream, remote)) = self.listener.accept().await else {
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                        continue;
                    };
                    // Dropping the stream closes it.
                    if let Some(seat) = self.desk.seats.take(remote.ip()) {
                        let served = serve(Arc::clone(&self.desk), stream, canonical(remote), seat);
                        tokio::spawn(self.desk.tasks.track_future(served));
                    }
                }
            })
            .await;
    }
}

async fn serve(desk: Arc<Desk>, stream: TcpStream, remote: SocketAddr, mut seat: Seat) {
    tune(&stream);
    let opened = timeout(desk.open_timeout, open(&desk, stream)).await;
    let (stream, came) = match opened {
        Ok(Ok(Some(opened))) => opened,
        Ok(Ok(None)) => return seat.ends(End::Page),
        Ok(Err(error)) => return tracing::debug!(%error, %remote, "no tunnel"),
        Err(_elapsed) => return seat.ends(End::TimedOut),
    };
    let Some(tunnel) = desk.quic.tunnel(remote) else {
        return tracing::debug!(%remote, "too many tunnels");
    };
    seat.open();
    let unused = desk.open_timeout * UNUSED_FACTOR;
    // A tunnel does not keep the endpoint.
    drop(desk);
    let end = run(Box::new(stream), came, tunnel, unused).await;
    seat.ends(end);
}

type Opened = (TlsStream<TcpStream>, BytesMut);

/// TLS, and the request; `None`: it was for a page.
async fn open(desk: &Desk, stream: TcpStream) -> io::Result<Option<Opened>> {
    let mut stream = desk.acceptor.accept(stream).await?;
    let mut came = BytesMut::with_capacity(TUNNEL_HEAD_BYTES_MAX);
    let request = loop {
        if let Some(request) = read_request(&mut came).map_err(io::Error::other)? {
            break request;
        }
        if stream.read_buf(&mut came).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    };
    let answer = match request {
        Request::Tunnel => accepted(),
        Request::Page => format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n{PAGE}",
            PAGE.len()
        ),
        Request::Other => "HTTP/1.1 405 Method Not Allowed\r\nAllow: GET\r\nContent-Length: 0\r\n\
                           Connection: close\r\n\r\n"
            .to_owned(),
    };
    stream.write_all(answer.as_bytes()).await?;
    stream.flush().await?;
    if request == Request::Tunnel {
        return Ok(Some((stream, came)));
    }
    stream.shutdown().await?;
    Ok(None)
}
