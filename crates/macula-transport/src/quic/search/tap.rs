//! Takes STUN packets from the main socket, which QUIC has no use for.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use macula_nat::stun::{Kind, classify};
use tokio::sync::mpsc;

use crate::quic::canonical;
use crate::sync::lock;

/// Packets longer than this are of no search.
const BYTES_MAX: usize = 128;

/// A packet, the number of the socket that it came to, and who sent it.
pub(super) type Packet = (u16, SocketAddr, Bytes);

/// Gives STUN packets from addresses that somebody listens to to who does.
#[derive(Debug, Default)]
pub(in crate::quic) struct Tap {
    any: AtomicBool,
    ears: Mutex<Vec<(IpAddr, mpsc::Sender<Packet>)>>,
}

/// Listens as long as it lives.
#[derive(Debug)]
pub(super) struct Ear {
    tap: Arc<Tap>,
    sender: mpsc::Sender<Packet>,
}

impl Drop for Ear {
    fn drop(&mut self) {
        let mut ears = lock(&self.tap.ears);
        ears.retain(|(_, sender)| !sender.same_channel(&self.sender));
        self.tap.any.store(!ears.is_empty(), Ordering::Release);
    }
}

impl Tap {
    /// Packets of `ip` go to `sender`, as of socket 0; those that it has no room for are dropped.
    pub(super) fn listen(self: &Arc<Self>, ip: IpAddr, sender: mpsc::Sender<Packet>) -> Ear {
        lock(&self.ears).push((ip, sender.clone()));
        self.any.store(true, Ordering::Release);
        Ear { tap: Arc::clone(self), sender }
    }

    /// Whether somebody listens for this packet.
    pub(in crate::quic) fn take(&self, from: SocketAddr, packet: &[u8]) -> bool {
        if !self.any.load(Ordering::Acquire)
            || packet.len() > BYTES_MAX
            || classify(packet) != Kind::Stun
        {
            return false;
        }
        let from = canonical(from);
        let ears = lock(&self.ears);
        let Some((_, ear)) = ears.iter().find(|(ip, _)| *ip == from.ip()) else { return false };
        ear.try_send((0, from, Bytes::copy_from_slice(packet))).ok();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_stun_of_whom_somebody_listens_to_is_taken() {
        let (tap, (sender, mut inbox)) = (Arc::new(Tap::default()), mpsc::channel(1));
        let from: SocketAddr = "[::ffff:198.51.100.1]:5000".parse().unwrap();
        let mut stun = vec![0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42];
        stun.resize(20, 7);
        assert!(!tap.take(from, &stun));
        let ear = tap.listen("198.51.100.1".parse().unwrap(), sender);
        assert!(!tap.take("198.51.100.2:5000".parse().unwrap(), &stun));
        assert!(!tap.take(from, &[0x41; 60]));
        assert!(tap.take(from, &stun));
        // no room: dropped, but nobody else's
        assert!(tap.take(from, &stun));
        assert_eq!(inbox.try_recv().unwrap(), (0, canonical(from), Bytes::from(stun.clone())));
        drop(ear);
        assert!(!tap.take(from, &stun) && inbox.try_recv().is_err());
    }
}
