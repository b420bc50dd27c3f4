//! What QUIC runs on: tasks, timers and the socket.

use std::fmt;
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use noq::udp::{RecvMeta, Transmit, UdpSocketState};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use crate::crew::Crew;

/// Where one call takes all that waits, so that fewer datagrams than it has room for were the last.
const TAKES_ALL: bool = cfg!(any(target_os = "linux", target_os = "android"));

/// Lets QUIC's tasks join a crew.
#[derive(Debug)]
pub(super) struct Runtime(pub(super) Crew);

impl noq::Runtime for Runtime {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn noq::AsyncTimer>> {
        Box::pin(tokio::time::sleep_until(at.into()))
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        self.0.spawn_boxed(future);
    }

    fn wrap_udp_socket(
        &self,
        socket: std::net::UdpSocket,
    ) -> io::Result<Box<dyn noq::AsyncUdpSocket>> {
        let state = UdpSocketState::new((&socket).into())?;
        let socket = UdpSocket::from_std(socket)?;
        Ok(Box::new(Socket { inner: Arc::new(Inner { socket, state }) }))
    }

    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }
}

/// A socket that asks the kernel for datagrams only when there are some.
#[derive(Debug)]
struct Socket {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    socket: UdpSocket,
    state: UdpSocketState,
}

impl noq::AsyncUdpSocket for Socket {
    fn create_sender(&self) -> Pin<Box<dyn noq::UdpSender>> {
        Box::pin(Sender { inner: Arc::clone(&self.inner), writable: None })
    }

    fn poll_recv(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let Inner { socket, state } = &*self.inner;
        loop {
            ready!(socket.poll_recv_ready(cx))?;
            let mut last = None;
            let received = socket.try_io(Interest::READABLE, || {
                let count = state.recv(socket.into(), bufs, meta)?;
                if TAKES_ALL && count < bufs.len() {
                    // Spares the call that would only say that there is no more.
                    last = Some(count);
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                Ok(count)
            });
            match (last, received) {
                (Some(count), _) | (None, Ok(count)) => return Poll::Ready(Ok(count)),
                (None, Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
                (None, Err(error)) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.socket.local_addr()
    }

    fn may_fragment(&self) -> bool {
        self.inner.state.may_fragment()
    }

    fn max_receive_segments(&self) -> NonZeroUsize {
        self.inner.state.gro_segments()
    }
}

/// Sends for one connection.
struct Sender {
    inner: Arc<Inner>,
    /// Set while the kernel's buffer is full.
    writable: Option<Pin<Box<dyn Future<Output = io::Result<()>> + Send + Sync>>>,
}

impl noq::UdpSender for Sender {
    fn poll_send(
        mut self: Pin<&mut Self>,
        transmit: &Transmit<'_>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if let Some(writable) = &mut self.writable {
                ready!(writable.as_mut().poll(cx))?;
                self.writable = None;
            }
            let Inner { socket, state } = &*self.inner;
            let send = || state.try_send(socket.into(), transmit);
            match socket.try_io(Interest::WRITABLE, send) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let inner = Arc::clone(&self.inner);
                    self.writable = Some(Box::pin(async move { inner.socket.writable().await }));
                }
                sent => {
                    if let Err(error) = sent {
                        // For QUIC a packet lost on the way; probes for larger packets end so.
                        tracing::trace!(%error, to = %transmit.destination, "packet not sent");
                    }
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }

    fn max_transmit_segments(&self) -> NonZeroUsize {
        self.inner.state.max_gso_segments()
    }
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").finish_non_exhaustive()
    }
}
