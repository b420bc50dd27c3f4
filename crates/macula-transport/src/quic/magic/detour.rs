//! Detours: addresses that the UDP socket of the endpoint does not serve itself.
//!
//! A detour sends to one address, real or synthetic, by a way of its own (another socket, a stream,
//! an allocation at a TURN server); what comes back by that way is given to QUIC as coming from
//! that address.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::{Magic, canonical};
use crate::sync::lock;

/// Detours at once.
const DETOURS_MAX: usize = 4096;

/// A way to an address.
pub(in crate::quic) trait Way: fmt::Debug + Send + Sync {
    /// Sends packets to `to`, each `segment` bytes long but the last. Does not wait: returns how
    /// many had to be dropped.
    fn send(&self, to: SocketAddr, contents: &[u8], segment: usize) -> u64;
}

/// The detours of an endpoint.
#[derive(Debug, Default)]
pub(super) struct Detours {
    ways: Mutex<HashMap<SocketAddr, Arc<dyn Way>>>,
    /// Numbers the synthetic addresses of detours.
    next: Mutex<u64>,
    any: AtomicBool,
}

impl Detours {
    /// The way to an address that has one.
    pub(super) fn way(&self, to: &SocketAddr) -> Option<Arc<dyn Way>> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        lock(&self.ways).get(&canonical(*to)).map(Arc::clone)
    }

    fn number(&self) -> u64 {
        let mut next = lock(&self.next);
        *next += 1;
        *next
    }
}

/// Keeps a detour while it lives, and takes what comes back.
#[derive(Debug)]
pub(in crate::quic) struct Detour {
    magic: Arc<Magic>,
    addr: SocketAddr,
}

impl Detour {
    /// The address that QUIC sees.
    pub(in crate::quic) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// A packet came by this way. One that QUIC has no room for is dropped and counted.
    pub(in crate::quic) fn receive(&self, packet: Bytes) {
        self.magic.deliver(super::mapped(self.addr), packet);
    }

    /// The same, but waits for room. Cancel-safe.
    pub(in crate::quic) async fn receive_in_turn(&self, packet: Bytes) {
        if super::is_plausible(&packet) {
            // Fails when QUIC has ended.
            self.magic.inbox.send((super::mapped(self.addr), packet)).await.ok();
        } else {
            self.magic.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Detour {
    fn drop(&mut self) {
        let mut ways = lock(&self.magic.detours.ways);
        ways.remove(&self.addr);
        self.magic.detours.any.store(!ways.is_empty(), Ordering::Release);
    }
}

impl Magic {
    /// The way to an address that has one.
    #[cfg(test)]
    pub(in crate::quic) fn way(&self, to: &SocketAddr) -> Option<Arc<dyn Way>> {
        self.detours.way(to)
    }

    /// Sends what is for `to` by `way` from now on; with no address, for a synthetic one that is
    /// drawn for it. `None`: there are too many, or the address has a detour.
    pub(in crate::quic) fn detour(
        self: &Arc<Self>,
        to: Option<SocketAddr>,
        way: Arc<dyn Way>,
    ) -> Option<Detour> {
        let addr = match to {
            Some(addr) => canonical(addr),
            None => self.addr(usize::from(u16::MAX), self.detours.number()),
        };
        let mut ways = lock(&self.detours.ways);
        if ways.len() >= DETOURS_MAX || ways.contains_key(&addr) {
            return None;
        }
        ways.insert(addr, way);
        self.detours.any.store(true, Ordering::Release);
        drop(ways);
        Some(Detour { magic: Arc::clone(self), addr })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default)]
    struct Log(Mutex<Vec<(SocketAddr, Vec<u8>)>>);

    impl Way for Log {
        fn send(&self, to: SocketAddr, contents: &[u8], segment: usize) -> u64 {
            let packets = contents.chunks(segment).map(|packet| (to, packet.to_vec()));
            lock(&self.0).extend(packets);
            0
        }
    }

    #[test]
    fn a_detour_serves_its_address_both_ways_and_no_other() {
        let (magic, mut inbox) = Magic::new([1; 5]);
        let log = Arc::new(Log::default());
        let real: SocketAddr = "192.0.2.1:7".parse().unwrap();
        let one = magic.detour(Some(real), Arc::clone(&log) as _).unwrap();
        assert!(magic.detour(Some(super::super::mapped(real)), Arc::clone(&log) as _).is_none());
        let two = magic.detour(None, Arc::clone(&log) as _).unwrap();
        assert!(magic.owns(&two.addr()) && magic.peer(&two.addr()).is_none());
        let way = magic.detours.way(&super::super::mapped(real)).unwrap();
        assert_eq!(way.send(real, &[1, 2, 3], 2), 0);
        assert_eq!(*lock(&log.0), [(real, vec![1, 2]), (real, vec![3])]);
        assert!(magic.detours.way(&"192.0.2.1:8".parse().unwrap()).is_none());
        let packet = Bytes::from(vec![0x41; 60]);
        one.receive(packet.clone());
        assert_eq!(inbox.try_recv().unwrap(), (super::super::mapped(real), packet));
        drop(one);
        assert!(magic.detours.way(&real).is_none());
        assert!(magic.detours.way(&two.addr()).is_some());
    }

    #[test]
    fn there_is_an_end_to_detours() {
        let (magic, _) = Magic::new([1; 5]);
        let log = Arc::new(Log::default());
        let all: Vec<_> =
            (0..DETOURS_MAX).map(|_| magic.detour(None, Arc::clone(&log) as _)).collect();
        assert!(all.iter().all(Option::is_some));
        assert!(magic.detour(None, Arc::clone(&log) as _).is_none());
        drop(all);
        assert!(magic.detour(None, log).is_some());
    }
}
