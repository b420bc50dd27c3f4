//! Tunnels as QUIC sees them: a synthetic address each, to which packets leave by a stream.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use macula_proto::limits::TUNNEL_QUEUE_BYTES_MAX;
use macula_proto::wire::tunnel::push;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::magic::Magic;
use super::magic::detour::{Detour, Way};
use crate::sync::lock;

/// The tunnels of an endpoint.
#[derive(Debug, Default)]
pub(super) struct Tunnels {
    states: Mutex<HashMap<SocketAddr, Arc<State>>>,
    /// Packets that found a queue full.
    dropped: Arc<AtomicU64>,
}

impl Tunnels {
    /// The tunnel with this synthetic address.
    pub(super) fn find(&self, addr: &SocketAddr) -> Option<Arc<State>> {
        lock(&self.states).get(addr).cloned()
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// A tunnel from or to `remote`; `None`: there are too many.
    pub(super) fn add(self: &Arc<Self>, magic: &Arc<Magic>, remote: SocketAddr) -> Option<Tunnel> {
        let outlet = Arc::new(Outlet {
            waiting: Mutex::default(),
            filled: Notify::new(),
            dropped: Arc::clone(&self.dropped),
        });
        let detour = magic.detour(None, Arc::clone(&outlet) as Arc<dyn Way>)?;
        let state = Arc::new(State {
            remote,
            in_use: CancellationToken::new(),
            done: CancellationToken::new(),
            broken: CancellationToken::new(),
        });
        lock(&self.states).insert(detour.addr(), Arc::clone(&state));
        Some(Tunnel { detour, outlet, state, tunnels: Arc::clone(self) })
    }
}

/// What a tunnel, the connection in it and the stream around it tell each other.
#[derive(Debug)]
pub(crate) struct State {
    /// The other end of the stream.
    pub(crate) remote: SocketAddr,
    /// A connection runs in it, its handshake is complete.
    pub(crate) in_use: CancellationToken,
    /// That connection is over, or will not come.
    pub(crate) done: CancellationToken,
    /// The stream is gone.
    pub(crate) broken: CancellationToken,
}

/// One tunnel. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Tunnel {
    detour: Detour,
    outlet: Arc<Outlet>,
    state: Arc<State>,
    tunnels: Arc<Tunnels>,
}

impl Tunnel {
    pub(crate) fn state(&self) -> &Arc<State> {
        &self.state
    }

    /// Where what is to be sent comes out.
    pub(crate) fn outlet(&self) -> &Outlet {
        &self.outlet
    }

    /// The address that QUIC sees.
    pub(super) fn addr(&self) -> SocketAddr {
        self.detour.addr()
    }

    /// Gives QUIC a packet that came; waits while QUIC has no room, so that the stream stands still
    /// and the sender finds out. Cancel-safe.
    pub(crate) async fn receive(&self, packet: &[u8]) {
        // A copy: the packet shall not keep the whole buffer that it came in.
        self.detour.receive_in_turn(Bytes::copy_from_slice(packet)).await;
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        lock(&self.tunnels.states).remove(&self.detour.addr());
        self.state.broken.cancel();
    }
}

/// Frames that wait for a stream. One that does not fit is dropped, as by the queue of a router:
/// QUIC's congestion control hears of it.
#[derive(Debug)]
pub(crate) struct Outlet {
    waiting: Mutex<BytesMut>,
    filled: Notify,
    dropped: Arc<AtomicU64>,
}

impl Outlet {
    /// The next frames, whole or cut, `bytes_max` at most. Cancel-safe.
    pub(crate) async fn next(&self, bytes_max: usize) -> Bytes {
        loop {
            if let Some(piece) = self.try_next(bytes_max) {
                return piece;
            }
            self.filled.notified().await;
        }
    }

    /// The same, if there are any now.
    pub(crate) fn try_next(&self, bytes_max: usize) -> Option<Bytes> {
        let mut waiting = lock(&self.waiting);
        let bytes = waiting.len().min(bytes_max);
        (bytes > 0).then(|| waiting.split_to(bytes).freeze())
    }
}

impl Way for Outlet {
    fn send(&self, _: SocketAddr, contents: &[u8], segment: usize) -> u64 {
        let mut dropped = 0;
        let mut waiting = lock(&self.waiting);
        for packet in contents.chunks(segment.max(1)) {
            let has_room = waiting.len() + packet.len() <= TUNNEL_QUEUE_BYTES_MAX;
            if !(has_room && push(&mut waiting, packet)) {
                dropped += 1;
            }
        }
        drop(waiting);
        self.filled.notify_one();
        self.dropped.fetch_add(dropped, Ordering::Relaxed);
        dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use macula_proto::limits::TUNNEL_PACKET_BYTES_MAX;

    fn tunnels() -> (Arc<Tunnels>, Arc<Magic>) {
        (Arc::default(), Magic::new([7; 5]).0)
    }

    #[test]
    fn a_full_queue_drops_what_comes_last_and_counts_it() {
        let (tunnels, magic) = tunnels();
        let tunnel = tunnels.add(&magic, "192.0.2.1:443".parse().unwrap()).unwrap();
        let packet = [0x40; 1200];
        let fit = TUNNEL_QUEUE_BYTES_MAX / 1202;
        for _ in 0..fit {
            assert_eq!(tunnel.outlet.send(tunnel.addr(), &packet, 1200), 0);
        }
        assert_eq!(tunnel.outlet.send(tunnel.addr(), &[0x41; 2400], 1200), 2);
        assert_eq!(tunnels.dropped(), 2);
        let mut came = BytesMut::new();
        while let Some(piece) = tunnel.outlet.try_next(16 << 10) {
            came.extend_from_slice(&piece);
        }
        assert_eq!(came.len(), fit * 1202);
        assert!(!came.contains(&0x41));
        assert_eq!(
            tunnel.outlet.send(tunnel.addr(), &[0x41; 2400], 1200),
            0,
            "there is room again"
        );
    }

    #[test]
    fn what_no_frame_carries_is_dropped() {
        let (tunnels, magic) = tunnels();
        let tunnel = tunnels.add(&magic, "192.0.2.1:443".parse().unwrap()).unwrap();
        let long = [0x40; TUNNEL_PACKET_BYTES_MAX + 1];
        assert_eq!(tunnel.outlet.send(tunnel.addr(), &long, long.len()), 1);
        assert_eq!(tunnel.outlet.try_next(1), None);
    }

    #[test]
    fn a_tunnel_is_known_while_it_lives() {
        let (tunnels, magic) = tunnels();
        let tunnel = tunnels.add(&magic, "192.0.2.1:443".parse().unwrap()).unwrap();
        let (addr, state) = (tunnel.addr(), Arc::clone(tunnel.state()));
        assert_eq!(tunnels.find(&addr).unwrap().remote, "192.0.2.1:443".parse().unwrap());
        drop(tunnel);
        assert!(tunnels.find(&addr).is_none() && state.broken.is_cancelled());
    }
}
