//! A router's server of PCP (RFC 6887) and NAT-PMP (RFC 6886): as much of both as maps UDP ports and
//! takes them back.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::error::LabError;
use crate::netns::{self, Netns};

/// Both protocols'.
const PORT: u16 = 5351;
/// How often the thread looks whether it should end.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Mapped ports begin here, so that none is the inner one.
const FIRST: u16 = 10_000;
const COUNT: u16 = 10_000;

/// Answers until dropped.
#[derive(Debug)]
pub(crate) struct Mapper {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Mapper {
    /// Serves `router`, whose inner address is `inside` and whose rules have the maps.
    pub(crate) fn start(router: &Netns, inside: Ipv4Addr, wan: Ipv4Addr) -> Result<Self, LabError> {
        let failed = |error| LabError::new("the server of port mappings", error);
        let socket = router.within(|| {
            let socket = UdpSocket::bind((inside, PORT))?;
            socket.set_read_timeout(Some(LOOK_EVERY))?;
            std::io::Result::Ok(socket)
        })?;
        let socket = socket.map_err(failed)?;
        let (stop, name) = (Arc::new(AtomicBool::new(false)), router.name().to_owned());
        let asked = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut packet = [0; 1_100];
            while !asked.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut packet) else { continue };
                let SocketAddr::V4(from_v4) = from else { continue };
                let request = packet.get(..length).unwrap_or_default();
                let Some((answer, change)) = answer(request, *from_v4.ip(), wan) else { continue };
                if change.is_none_or(|change| change.apply(&name).is_ok()) {
                    socket.send_to(&answer, from).ok();
                }
            }
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Mapper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// A mapping that comes or goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Change {
    inner: (Ipv4Addr, u16),
    outer: (Ipv4Addr, u16),
    is_new: bool,
}

impl Change {
    fn apply(self, netns: &str) -> Result<(), LabError> {
        let Self { inner: (host, inner), outer: (wan, outer), is_new } = self;
        let verb = if is_new { "add" } else { "destroy" };
        let rules = format!(
            "{verb} element ip lab_nat mapped {{ {outer} : {host} . {inner} }}\n\
             {verb} element ip lab_nat outward {{ {host} . {inner} : {wan} . {outer} }}\n"
        );
        netns::run("ip", &["netns", "exec", netns, "nft", "-f", "-"], Some(&rules)).map(drop)
    }
}

fn outer_port(inner: u16) -> u16 {
    FIRST + inner % COUNT
}

/// What goes back, and what changes first.
fn answer(request: &[u8], from: Ipv4Addr, wan: Ipv4Addr) -> Option<(Vec<u8>, Option<Change>)> {
    let word = |at: usize| Some(u16::from_be_bytes(*request.get(at..)?.first_chunk()?));
    let long = |at: usize| Some(u32::from_be_bytes(*request.get(at..)?.first_chunk()?));
    let change = |inner: u16, lifetime: u32| Change {
        inner: (from, inner),
        outer: (wan, outer_port(inner)),
        is_new: lifetime > 0,
    };
    match request {
        // NAT-PMP: the outer address
        [0, 0] => Some(([&[0, 128, 0, 0, 0, 0, 0, 1][..], &wan.octets()].concat(), None)),
        // NAT-PMP: UDP
        [0, 1, ..] => {
            let (inner, lifetime) = (word(4)?, long(8)?);
            let outer = if lifetime > 0 { outer_port(inner) } else { 0 };
            let mut bytes = vec![0, 129, 0, 0, 0, 0, 0, 1];
            bytes.extend_from_slice(&inner.to_be_bytes());
            bytes.extend_from_slice(&outer.to_be_bytes());
            bytes.extend_from_slice(&lifetime.to_be_bytes());
            Some((bytes, Some(change(inner, lifetime))))
        }
        // PCP: MAP of UDP (17)
        [2, 1, ..] if request.len() >= 60 && request.get(36) == Some(&17) => {
            let (lifetime, inner) = (long(4)?, word(40)?);
            let mut bytes = vec![2, 0x81, 0, 0];
            bytes.extend_from_slice(&lifetime.to_be_bytes());
            bytes.extend_from_slice(&[0, 0, 0, 1]);
            bytes.extend_from_slice(&[0; 12]);
            bytes.extend_from_slice(request.get(24..42)?);
            bytes.extend_from_slice(&outer_port(inner).to_be_bytes());
            let IpAddr::V6(outer) = IpAddr::V6(wan.to_ipv6_mapped()) else { return None };
            bytes.extend_from_slice(&outer.octets());
            Some((bytes, Some(change(inner, lifetime))))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 10);
    const WAN: Ipv4Addr = Ipv4Addr::new(198, 18, 7, 2);

    #[test]
    fn both_protocols_map_the_same_port() {
        let pmp = [0, 1, 0, 0, 0x11, 0x51, 0, 0, 0, 0, 2, 88];
        let (bytes, change) = answer(&pmp, HOST, WAN).unwrap();
        let (inner, outer) = ((HOST, 4433), (WAN, 14_433));
        assert_eq!(change, Some(Change { inner, outer, is_new: true }));
        assert_eq!(bytes, [0, 129, 0, 0, 0, 0, 0, 1, 0x11, 0x51, 0x38, 0x61, 0, 0, 2, 88]);
        let mut pcp = [0; 60];
        (pcp[0], pcp[1], pcp[7], pcp[36]) = (2, 1, 100, 17);
        pcp[40..42].copy_from_slice(&[0x11, 0x51]);
        let (bytes, change) = answer(&pcp, HOST, WAN).unwrap();
        assert_eq!(change, Some(Change { inner, outer, is_new: true }));
        assert_eq!((bytes.len(), &bytes[42..44]), (60, &[0x38, 0x61][..]));
        pcp[7] = 0;
        let (_, change) = answer(&pcp, HOST, WAN).unwrap();
        assert!(change.is_some_and(|change| !change.is_new));
        for short in 0..60 {
            answer(&pcp[..short], HOST, WAN);
        }
        assert!(answer(&[9; 60], HOST, WAN).is_none());
    }
}
