//! Drops datagrams that no peer would send, before QUIC copies, parses or answers them.
//!
//! Above all those that QUIC would answer although they may be small: it offers its versions to any
//! packet of another version, so that a few bytes with an invented address brought the victim
//! several times as many. RFC 9000 §6.1 lets a server leave packets unanswered that are too small
//! to open a connection.

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use noq::udp::RecvMeta;
use noq::{AsyncUdpSocket, UdpSender};

use super::{search, stun};

/// The least that opens a connection (RFC 9000 §14.1).
const OPENING_BYTES_MIN: usize = 1200;
/// The least that QUIC can take for a packet: a short header, an id of ours, and what header
/// protection needs.
const PACKET_BYTES_MIN: usize = 21;
/// First byte: a long header.
const LONG: u8 = 0x80;
/// First byte: set in all packets, as we do not take the extension that lets it vary (RFC 9287).
const FIXED: u8 = 0x40;
/// QUIC version 1; 0 stands for the offer of versions.
const VERSIONS: [[u8; 4]; 2] = [[0, 0, 0, 1], [0, 0, 0, 0]];

/// Whether a datagram is worth QUIC's time.
pub(super) fn is_plausible(datagram: &[u8]) -> bool {
    match datagram {
        [first, version @ ..] if first & LONG != 0 => {
            // The offer of versions leaves the fixed bit to chance.
            let is_known = VERSIONS.iter().any(|known| version.starts_with(known));
            is_known || datagram.len() >= OPENING_BYTES_MIN
        }
        [first, ..] => first & FIXED != 0 && datagram.len() >= PACKET_BYTES_MIN,
        [] => false,
    }
}

/// Who gets what is not QUIC's.
#[derive(Debug, Default)]
pub(super) struct Taps {
    /// Answers of STUN servers, if any are asked.
    pub(super) answers: Option<stun::Tap>,
    /// Probes of port searches.
    pub(super) probes: Arc<search::Tap>,
}

impl Taps {
    /// Whether somebody listens for this packet.
    fn take(&self, from: SocketAddr, packet: &[u8]) -> bool {
        self.probes.take(from, packet)
            || self.answers.as_ref().is_some_and(|answers| answers.take(from, packet))
    }
}

/// A socket that passes on what is plausible.
#[derive(Debug)]
pub(super) struct Sieve {
    inner: Box<dyn AsyncUdpSocket>,
    junk: Arc<AtomicU64>,
    taps: Taps,
}

impl Sieve {
    /// The socket, and the count of what it drops.
    pub(super) fn around(inner: Box<dyn AsyncUdpSocket>, taps: Taps) -> (Self, Arc<AtomicU64>) {
        let junk = Arc::new(AtomicU64::new(0));
        (Self { inner, junk: Arc::clone(&junk), taps }, junk)
    }
}

impl AsyncUdpSocket for Sieve {
    fn create_sender(&self) -> Pin<Box<dyn UdpSender>> {
        self.inner.create_sender()
    }

    fn poll_recv(
        &mut self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let received = std::task::ready!(self.inner.poll_recv(cx, buffers, metas))?;
        for (meta, buffer) in metas.iter_mut().zip(buffers).take(received) {
            let junk = sift(meta, buffer, &self.taps);
            if junk > 0 {
                self.junk.fetch_add(junk, Ordering::Relaxed);
            }
        }
        Poll::Ready(Ok(received))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_receive_segments(&self) -> NonZeroUsize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

/// Takes the implausible out of a receive buffer, which may hold several datagrams of one sender: all
/// of one length but the last. Returns how many there were.
fn sift(meta: &mut RecvMeta, buffer: &mut [u8], taps: &Taps) -> u64 {
    let (mut junk, mut kept, mut at) = (0, 0, 0);
    while at < meta.len {
        let end = meta.len.min(at + meta.stride.max(1));
        let packet = buffer.get(at..end).unwrap_or_default();
        if !is_plausible(packet) {
            junk += u64::from(!taps.take(meta.addr, packet));
        } else {
            if kept < at {
                buffer.copy_within(at..end, kept);
            }
            kept += end - at;
        }
        at = end;
    }
    meta.len = kept;
    junk
}

#[cfg(test)]
mod tests {
    use super::*;

    fn padded(head: &[u8], bytes: usize) -> Vec<u8> {
        let mut datagram = head.to_vec();
        datagram.resize(bytes, 0x55);
        datagram
    }

    #[test]
    fn what_peers_send_passes() {
        for (head, bytes) in [
            (&[0xc0, 0, 0, 0, 1][..], 1200),
            (&[0xe0, 0, 0, 0, 1], 40),
            (&[0xf0, 0, 0, 0, 1], 60),
            (&[0x80, 0, 0, 0, 0], 20),
            (&[0x40], 21),
            (&[0x7f], 1400),
            (&[0xc0, 0x1a, 0x2a, 0x3a, 0x4a], 1200),
        ] {
            assert!(is_plausible(&padded(head, bytes)), "{head:x?} {bytes}");
        }
    }

    #[test]
    fn what_would_be_answered_with_more_or_ignored_late_does_not() {
        for (head, bytes) in [
            (&[][..], 0),
            (&[0xc0], 1),
            (&[0xc0, 0x1a, 0x2a, 0x3a, 0x4a], 1199),
            (&[0xff, 0, 0, 0, 2, 0, 0], 7),
            (&[0x00], 1200),
            (&[0x40], 20),
        ] {
            assert!(!is_plausible(&padded(head, bytes)), "{head:x?} {bytes}");
        }
    }

    #[test]
    fn junk_is_taken_out_of_the_middle() {
        let mut buffer = [[0x40; 25], [0x00; 25], [0x41; 25], [0x01; 25]].concat();
        buffer.extend([0x42; 22]);
        let mut meta = RecvMeta::default();
        (meta.len, meta.stride) = (buffer.len(), 25);
        assert_eq!(sift(&mut meta, &mut buffer, &Taps::default()), 2);
        let kept = [&[0x40; 25][..], &[0x41; 25], &[0x42; 22]].concat();
        assert_eq!(buffer[..meta.len], kept);
        (meta.len, meta.stride) = (100, 25);
        assert_eq!((sift(&mut meta, &mut [0; 100], &Taps::default()), meta.len), (4, 0));
    }
}
