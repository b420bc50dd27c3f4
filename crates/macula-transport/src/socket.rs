//! The UDP socket under an endpoint.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

/// An endpoint could not be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// Another socket has the port.
    #[error(
        "UDP address {addr} is in use: stop the other program (`ss -ulpn` names it) or choose \
         another port"
    )]
    InUse {
        /// What was asked for.
        addr: SocketAddr,
    },
    /// The system refuses for another reason.
    #[error("UDP address {addr} cannot be used")]
    Io {
        /// What was asked for.
        addr: SocketAddr,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// Keep-alives would come too late: three of them must fit in the idle timeout.
    #[error("a keep-alive of {keep_alive:?} is not below a third of the idle timeout {idle:?}")]
    Timing {
        /// As configured.
        keep_alive: Duration,
        /// As configured.
        idle: Duration,
    },
    /// QUIC does not start.
    #[error("QUIC does not start")]
    Quic {
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Binds `listen`, or an ephemeral port for both address families.
///
/// `[::]` takes IPv4 as well; where IPv6 does not exist, `0.0.0.0` is bound in its place.
pub(crate) fn bind(
    listen: Option<SocketAddr>,
    buffer_bytes: usize,
) -> Result<UdpSocket, BindError> {
    let addr = listen.unwrap_or_else(|| (Ipv6Addr::UNSPECIFIED, 0).into());
    let bound = match bind_one(addr, buffer_bytes) {
        Err(error) if addr.ip() == Ipv6Addr::UNSPECIFIED && has_no_ipv6(&error) => {
            bind_one((Ipv4Addr::UNSPECIFIED, addr.port()).into(), buffer_bytes)
        }
        bound => bound,
    };
    bound.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => BindError::InUse { addr },
        _ => BindError::Io { addr, source },
    })
}

fn bind_one(addr: SocketAddr, buffer_bytes: usize) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // Systems cap these at limits of their own; smaller buffers cost speed, not correctness.
    for set in
        [socket.set_recv_buffer_size(buffer_bytes), socket.set_send_buffer_size(buffer_bytes)]
    {
        if let Err(error) = set {
            tracing::debug!(%error, buffer_bytes, "socket buffer left as it is");
        }
    }
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    Ok(socket.into())
}

/// Whether the system has no IPv6: EAFNOSUPPORT (no such family; "Unsupported" in Rust) or
/// EADDRNOTAVAIL (switched off).
fn has_no_ipv6(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported)
        || error.raw_os_error() == Some(EAFNOSUPPORT)
}

#[cfg(target_os = "linux")]
const EAFNOSUPPORT: i32 = 97;
#[cfg(windows)]
const EAFNOSUPPORT: i32 = 10047;
#[cfg(not(any(target_os = "linux", windows)))]
const EAFNOSUPPORT: i32 = 47;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_in_use_is_named_with_advice() {
        let first = bind(Some((Ipv4Addr::LOCALHOST, 0).into()), 4096).unwrap();
        let addr = first.local_addr().unwrap();
        let error = bind(Some(addr), 4096).unwrap_err();
        assert!(matches!(error, BindError::InUse { addr: told } if told == addr));
        assert!(error.to_string().contains("choose another port"));
    }

    #[test]
    fn without_an_address_some_port_is_bound() {
        assert_ne!(bind(None, 4096).unwrap().local_addr().unwrap().port(), 0);
    }
}
