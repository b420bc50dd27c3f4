//! Tunnels: QUIC inside TLS on TCP, for networks that let no UDP pass.
//!
//! A tunnel carries the packets of one QUIC connection between an endpoint and its gateway
//! (`macula_proto::wire::tunnel`). Nothing changes for what is above QUIC, nor for who proves what to
//! whom: the handshake of QUIC runs inside and checks the keys of both ends. The outer TLS is a way
//! through firewalls that pass the web only. Its certificate is not checked, and need not be: whoever
//! terminates the outer TLS sees what whoever is on the way of UDP sees, packets of QUIC, and can do
//! with them what that one can: delay and drop them.

mod pipe;
mod seats;
mod server;
#[cfg(test)]
mod tests;
mod tls;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use bytes::BytesMut;
use macula_proto::limits::TUNNEL_HEAD_BYTES_MAX;
use macula_proto::wire::tunnel::{read_answer, request};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub(crate) use pipe::{Stream, run};
pub(crate) use seats::{End, Seats};
pub(crate) use server::{Desk, Listener};

/// Where a gateway takes tunnels, and how many.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TunnelConfig {
    /// TCP addresses to listen on. `[::]:443` takes IPv4 too; port 0 takes any.
    pub listen: Vec<SocketAddr>,
    /// PEM files of a certificate chain and its key, for firewalls that look at certificates.
    /// Default: a certificate that is made at the start. Clients of this crate do not look at it.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// Tunnels at once. Default 4,096, which is the most.
    pub tunnels_max: usize,
    /// Tunnels at once from one IPv4 address or IPv6 /64. Default 256.
    pub per_source_max: usize,
}

impl TunnelConfig {
    /// The defaults.
    pub fn new(listen: Vec<SocketAddr>) -> Self {
        Self { listen, certificate: None, tunnels_max: 4096, per_source_max: 256 }
    }
}

/// Tunnels cannot be taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TunnelError {
    /// The address cannot be had.
    #[error("cannot listen on TCP {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The certificate or its key cannot be used.
    #[error("certificate for tunnels: {source}")]
    Certificate {
        /// Why.
        source: io::Error,
    },
    /// The endpoint was set up without tunnels, or takes them already.
    #[error("this endpoint cannot take tunnels, or takes them already")]
    Unusable,
}

/// What became of those who came by TCP, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TunnelStats {
    /// Tunnels now.
    pub open: u64,
    /// Connections by TCP that are not yet tunnels, now.
    pub opening: u64,
    /// Tunnels that were opened.
    pub opened: u64,
    /// Times that a browser was shown a page.
    pub pages: u64,
    /// Closed at once because there were as many as may be.
    pub refused_full: u64,
    /// Closed at once because their source had as many as it may have.
    pub refused_source: u64,
    /// TLS or the request failed.
    pub failed: u64,
    /// Were not opened in time.
    pub timed_out: u64,
    /// Tunnels without a connection of QUIC in time.
    pub unused: u64,
    /// Tunnels closed because what came was no frame.
    pub malformed: u64,
    /// Packets dropped because what waited for their tunnel was full.
    pub dropped: u64,
}

impl TunnelStats {
    /// All counters with their names.
    pub fn named(&self) -> [(&'static str, u64); 11] {
        [
            ("tunnels_open", self.open),
            ("tunnels_opening", self.opening),
            ("tunnels_opened", self.opened),
            ("tunnel_pages", self.pages),
            ("tunnels_refused_full", self.refused_full),
            ("tunnels_refused_source", self.refused_source),
            ("tunnels_failed", self.failed),
            ("tunnels_timed_out", self.timed_out),
            ("tunnels_unused", self.unused),
            ("tunnels_malformed", self.malformed),
            ("tunnel_packets_dropped", self.dropped),
        ]
    }
}

/// Bytes that the kernel may hold unsent for a tunnel: beyond them they wait in the tunnel's queue, where
/// QUIC hears of it when that is full.
#[cfg(any(target_os = "linux", target_os = "android"))]
const UNSENT_BYTES_MAX: u32 = 64 * 1024;

/// Bytes read at once.
const READ_BYTES: usize = 16 * 1024;

/// Sets a stream up for packets that are in a hurry.
fn tune(stream: &TcpStream) {
    // Slower without, and no less right.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY");
    }
    #[cfg(any(target_os = "linux", target_os = "android"))]
    if let Err(error) = socket2::SockRef::from(stream).set_tcp_notsent_lowat(UNSENT_BYTES_MAX) {
        tracing::debug!(%error, "TCP_NOTSENT_LOWAT");
    }
}

/// Opens the stream of a tunnel to a gateway; `host` is what the gateway is called. Returns what came
/// after the answer, too. Cancel-safe: nothing is left.
pub(crate) async fn open(addr: SocketAddr, host: &str) -> io::Result<(Box<dyn Stream>, BytesMut)> {
    let stream = TcpStream::connect(addr).await?;
    tune(&stream);
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let name = ServerName::try_from(bare.to_owned());
    // A name that cannot be one is not told.
    let name = name.unwrap_or_else(|_| ServerName::IpAddress(addr.ip().into()));
    let mut stream = tls::connector()?.connect(name, stream).await?;
    stream.write_all(request(host).as_bytes()).await?;
    stream.flush().await?;
    let mut came = BytesMut::with_capacity(TUNNEL_HEAD_BYTES_MAX);
    loop {
        match read_answer(&mut came).map_err(io::Error::other)? {
            Some((_, true)) => return Ok((Box::new(stream), came)),
            Some((status, false)) => {
                return Err(io::Error::other(format!("no tunnel there: HTTP status {status}")));
            }
            None => {}
        }
        if stream.read_buf(&mut came).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}
