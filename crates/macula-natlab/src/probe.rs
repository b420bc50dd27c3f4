//! The lab's own witness: what each NAT really does, seen from outside, by nobody's words.
//!
//! Two observers on two addresses and two ports each answer with what they see, also from another port
//! or another address when asked, as RFC 5780 does. Independent of the program under test, and of `nft`.

use std::collections::BTreeSet;
use std::fmt;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::error::LabError;
use crate::kind::{Behaviour, Filtering, Mapping};
use crate::lab::{RELAYS_V4, RELAYS_V6};
use crate::netns::Netns;
use crate::rules::ECHO_PORT;

/// Both ports of each observer; those of STUN are the gateway's.
const PORTS: [u16; 2] = [23478, 23479];
/// TCP of the observers, for hosts without UDP; 443 is the gateway's.
const WEB_PORT: u16 = 80;
/// An answer that has not come by then does not come, beyond the longest delay.
const WAIT: Duration = Duration::from_millis(250);
/// Questions are repeated so often before silence counts.
const TRIES: usize = 3;
/// How often threads look whether they should end.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Of the next question.
static NUMBER: AtomicU32 = AtomicU32::new(0);

const MAGIC: [u8; 4] = *b"mlab";
/// Who should answer: the socket that was asked, its other port, or the other address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum From {
    Same = 0,
    OtherPort = 1,
    OtherAddress = 2,
}

/// Threads that answer until dropped.
#[derive(Debug)]
pub(crate) struct Observers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Observers {
    pub(crate) fn start(netns: &Netns) -> Result<Self, LabError> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        let families = [RELAYS_V4.map(IpAddr::V4), RELAYS_V6.map(IpAddr::V6)];
        for addresses in families {
            let places = addresses.map(|ip| PORTS.map(|port| SocketAddr::new(ip, port)));
            let sockets = netns.within(|| {
                let [one, other] = places;
                let bound: std::io::Result<Vec<UdpSocket>> =
                    one.into_iter().chain(other).map(bind).collect();
                bound
            })?;
            let sockets = sockets.map_err(|error| LabError::new("observers", error))?;
            let sockets: Arc<[UdpSocket]> = sockets.into();
            for own in 0..sockets.len() {
                let (sockets, stop) = (Arc::clone(&sockets), Arc::clone(&stop));
                threads.push(std::thread::spawn(move || observe(&sockets, own, &stop)));
            }
            let listener = netns.within(|| TcpListener::bind((addresses[0], WEB_PORT)))?;
            let listener = listener.map_err(|error| LabError::new("observers", error))?;
            listener.set_nonblocking(true).map_err(|error| LabError::new("observers", error))?;
            drop_later(&mut threads, listener, Arc::clone(&stop));
        }
        Ok(Self { stop, threads })
    }
}

impl Drop for Observers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Threads that only echo have nothing to tell.
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

/// Accepts connections and closes them: a handshake is all that is measured.
fn drop_later(threads: &mut Vec<JoinHandle<()>>, listener: TcpListener, stop: Arc<AtomicBool>) {
    threads.push(std::thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            if listener.accept().is_err() {
                std::thread::sleep(LOOK_EVERY);
            }
        }
    }));
}

fn bind(place: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = UdpSocket::bind(place)?;
    socket.set_read_timeout(Some(LOOK_EVERY))?;
    Ok(socket)
}

/// Sockets are address 0 port 0, address 0 port 1, address 1 port 0, address 1 port 1.
fn observe(sockets: &[UdpSocket], own: usize, stop: &AtomicBool) {
    let mut packet = [0u8; 64];
    while !stop.load(Ordering::Relaxed) {
        let Some(socket) = sockets.get(own) else { return };
        let Ok((length, from)) = socket.recv_from(&mut packet) else { continue };
        let Some((number, who)) = packet.get(..length).and_then(read_question) else { continue };
        let answering = match who {
            From::Same => own,
            From::OtherPort => own ^ 1,
            From::OtherAddress => own ^ 2,
        };
        if let Some(socket) = sockets.get(answering) {
            // Whoever asked asks again.
            socket.send_to(&answer(number, from), from).ok();
        }
    }
}

fn question(number: u32, who: From) -> [u8; 9] {
    let mut packet = [0; 9];
    packet[..4].copy_from_slice(&MAGIC);
    packet[4..8].copy_from_slice(&number.to_be_bytes());
    packet[8] = who as u8;
    packet
}

fn read_question(packet: &[u8]) -> Option<(u32, From)> {
    let (number, rest) = packet.strip_prefix(&MAGIC)?.split_first_chunk::<4>()?;
    let who = match rest {
        [0] => From::Same,
        [1] => From::OtherPort,
        [2] => From::OtherAddress,
        _ => return None,
    };
    Some((u32::from_be_bytes(*number), who))
}

fn answer(number: u32, seen: SocketAddr) -> Vec<u8> {
    let mut packet = MAGIC.to_vec();
    packet.extend_from_slice(&number.to_be_bytes());
    packet.extend_from_slice(seen.to_string().as_bytes());
    packet
}

fn read_answer(packet: &[u8]) -> Option<(u32, SocketAddr)> {
    let (number, text) = packet.strip_prefix(&MAGIC)?.split_first_chunk::<4>()?;
    Some((u32::from_be_bytes(*number), std::str::from_utf8(text).ok()?.parse().ok()?))
}

/// What was seen of one host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Of the same socket, by the four observer sockets, in the order in which they were asked.
    pub ports: Vec<u16>,
    /// What follows from them and from who got in.
    pub behaviour: Behaviour,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Behaviour { mapping, filtering, preserves_ports, sequential } = self.behaviour;
        write!(f, "{mapping} {filtering}")?;
        let ports = if preserves_ports == Some(true) { "preserved" } else { "changed" };
        write!(f, ", ports {ports}")?;
        if sequential { f.write_str(", deltas [1, 1, 1]") } else { Ok(()) }
    }
}

/// What a host sees of itself.
pub(crate) struct Prober<'a> {
    netns: &'a Netns,
    v6: bool,
    /// Round trip that an answer needs.
    patience: Duration,
}

impl<'a> Prober<'a> {
    /// `round_trip` is that to the observers.
    pub(crate) fn new(netns: &'a Netns, v6: bool, round_trip: Duration) -> Self {
        Self { netns, v6, patience: WAIT + 2 * round_trip }
    }

    fn observer(&self, address: usize, port: usize) -> SocketAddr {
        let ip =
            if self.v6 { IpAddr::V6(RELAYS_V6[address]) } else { IpAddr::V4(RELAYS_V4[address]) };
        SocketAddr::new(ip, PORTS[port])
    }

    fn socket(&self) -> Result<UdpSocket, LabError> {
        let any = if self.v6 {
            IpAddr::V6(Ipv6Addr::UNSPECIFIED)
        } else {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED)
        };
        let socket = self.netns.within(|| UdpSocket::bind((any, 0)))?;
        socket.map_err(|error| LabError::new("a probe's socket", error))
    }

    /// Asks until there is an answer from whom it should come from.
    fn ask(&self, socket: &UdpSocket, observer: SocketAddr, who: From) -> Option<SocketAddr> {
        let mut packet = [0u8; 128];
        let first = NUMBER.fetch_add(TRIES as u32, Ordering::Relaxed);
        for number in (0..TRIES as u32).map(|tried| first.wrapping_add(tried)) {
            // What cannot be sent is silence; hosts without a way out are of that kind.
            socket.send_to(&question(number, who), observer).ok()?;
            let until = Instant::now() + self.patience;
            while let Some(left) =
                until.checked_duration_since(Instant::now()).filter(|d| !d.is_zero())
            {
                socket.set_read_timeout(Some(left)).ok()?;
                match socket.recv_from(&mut packet) {
                    Ok((length, _)) => {
                        // An answer to an earlier question may be late.
                        match packet.get(..length).and_then(read_answer) {
                            Some((answered, seen))
                                if answered.wrapping_sub(first) < TRIES as u32 =>
                            {
                                return Some(seen);
                            }
                            _ => {}
                        }
                    }
                    Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
                    Err(_) => break,
                }
            }
        }
        None
    }

    /// How the access behaves; `None` when no UDP gets out.
    pub(crate) fn behaviour(&self) -> Result<Option<Seen>, LabError> {
        let socket = self.socket()?;
        let local = socket.local_addr().map_err(|error| LabError::new("a probe", error))?.port();
        let mut ports = Vec::new();
        for (address, port) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            match self.ask(&socket, self.observer(address, port), From::Same) {
                Some(seen) => ports.push(seen.port()),
                None if ports.is_empty() => return Ok(None),
                None => return Err(LabError::new("a probe", "an observer fell silent")),
            }
        }
        // A socket of its own for each question: who was sent to may answer.
        let gets_in = |who| {
            let socket = self.socket()?;
            if self.ask(&socket, self.observer(0, 0), From::Same).is_none() {
                return Err(LabError::new("a probe", "an observer fell silent"));
            }
            Ok(self.ask(&socket, self.observer(0, 0), who).is_some())
        };
        let filtering = if gets_in(From::OtherAddress)? {
            Filtering::EndpointIndependent
        } else if gets_in(From::OtherPort)? {
            Filtering::AddressDependent
        } else {
            Filtering::AddressAndPortDependent
        };
        let mut behaviour = judge_ports(local, &ports);
        behaviour.filtering = filtering;
        Ok(Some(Seen { ports, behaviour }))
    }

    /// The shortest of some round trips to the first observer, by TCP's handshake where there is no UDP.
    pub(crate) fn round_trip(&self, udp: bool) -> Result<Duration, LabError> {
        let silent = || LabError::new("measuring the delay", "no answer from the observer");
        if !udp {
            let place = SocketAddr::new(self.observer(0, 0).ip(), WEB_PORT);
            let best = self.netns.within(|| {
                (0..TRIES)
                    .filter_map(|_| {
                        let begun = Instant::now();
                        let _stream =
                            TcpStream::connect_timeout(&place, Duration::from_secs(2)).ok()?;
                        let taken = begun.elapsed();
                        Some(taken)
                    })
                    .min()
            })?;
            return best.ok_or_else(silent);
        }
        let socket = self.socket()?;
        let observer = self.observer(0, 0);
        let times = (0..TRIES + 2).filter_map(|_| {
            let begun = Instant::now();
            self.ask(&socket, observer, From::Same).map(|_| begun.elapsed())
        });
        times.min().ok_or_else(silent)
    }

    /// The shortest of some round trips to an [`Echo`].
    pub(crate) fn echo_round_trip(&self, place: IpAddr) -> Result<Duration, LabError> {
        let socket = self.socket()?;
        let place = SocketAddr::new(place, ECHO_PORT);
        let times = (0..TRIES + 2).filter_map(|_| {
            let begun = Instant::now();
            self.ask(&socket, place, From::Same).map(|_| begun.elapsed())
        });
        times.min().ok_or_else(|| LabError::new("measuring the delay", "no echo"))
    }
}

/// What follows from the ports that four observers saw of one socket.
fn judge_ports(local: u16, ports: &[u16]) -> Behaviour {
    let distinct: BTreeSet<u16> = ports.iter().copied().collect();
    let mapping = match (distinct.len(), ports) {
        (1, _) => Mapping::EndpointIndependent,
        (2, [a, b, c, d]) if a == b && c == d => Mapping::AddressDependent,
        _ => Mapping::AddressAndPortDependent,
    };
    let deltas: Vec<u16> = ports.windows(2).map(|pair| pair[1].wrapping_sub(pair[0])).collect();
    Behaviour {
        mapping,
        filtering: Filtering::AddressAndPortDependent,
        preserves_ports: Some(ports.iter().all(|port| *port == local)),
        sequential: !deltas.is_empty() && deltas.iter().all(|delta| *delta == 1),
    }
}

/// Whether two hosts that send to each other's observed port get through: (one, other).
pub(crate) fn punches(one: &Prober<'_>, other: &Prober<'_>) -> Result<(bool, bool), LabError> {
    let (a, b) = (one.socket()?, other.socket()?);
    let silent = || LabError::new("a probe", "no answer from the observer");
    let at_a = one.ask(&a, one.observer(0, 0), From::Same).ok_or_else(silent)?;
    let at_b = other.ask(&b, other.observer(0, 0), From::Same).ok_or_else(silent)?;
    let mut got = (false, false);
    let failed = |error: std::io::Error| LabError::new("a probe", error);
    a.set_nonblocking(true).map_err(failed)?;
    b.set_nonblocking(true).map_err(failed)?;
    let until = Instant::now() + 2 * one.patience;
    while Instant::now() < until && got != (true, true) {
        for (socket, place) in [(&a, at_b), (&b, at_a)] {
            // Refusals are answers of a router that is not there yet.
            socket.send_to(b"mlab punch", place).ok();
        }
        std::thread::sleep(Duration::from_millis(20));
        got.0 |= has_punch(&a);
        got.1 |= has_punch(&b);
    }
    Ok(got)
}

fn has_punch(socket: &UdpSocket) -> bool {
    let mut packet = [0u8; 64];
    (0..64).any(|_| {
        socket
            .recv_from(&mut packet)
            .is_ok_and(|(length, _)| packet.get(..length) == Some(b"mlab punch"))
    })
}

/// Answers as an observer does, at a router's outer address.
#[derive(Debug)]
pub(crate) struct Echo {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    pub(crate) fn start(netns: &Netns, ip: IpAddr) -> Result<Self, LabError> {
        let socket = netns.within(|| bind(SocketAddr::new(ip, ECHO_PORT)))?;
        let socket = socket.map_err(|error| LabError::new("echo", error))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || observe(&[socket], 0, &stopped));
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_and_answers_are_read_back() {
        for who in [From::Same, From::OtherPort, From::OtherAddress] {
            assert_eq!(read_question(&question(7, who)), Some((7, who)));
        }
        let seen: SocketAddr = "[2001:db8::7]:4242".parse().unwrap();
        assert_eq!(read_answer(&answer(9, seen)), Some((9, seen)));
        for nonsense in [&b""[..], b"mlab", b"mlab\0\0\0\0\x09", b"xlab\0\0\0\0\0"] {
            assert_eq!(read_question(nonsense), None);
            assert_eq!(read_answer(nonsense), None);
        }
    }

    #[test]
    fn ports_tell_the_mapping() {
        let mapping = |ports: [u16; 4]| judge_ports(5000, &ports).mapping;
        assert_eq!(mapping([9, 9, 9, 9]), Mapping::EndpointIndependent);
        assert_eq!(mapping([9, 9, 8, 8]), Mapping::AddressDependent);
        assert_eq!(mapping([9, 8, 9, 8]), Mapping::AddressAndPortDependent);
        assert_eq!(mapping([1, 4, 2, 8]), Mapping::AddressAndPortDependent);
        assert!(judge_ports(5000, &[30_000, 30_001, 30_002, 30_003]).sequential);
        assert_eq!(judge_ports(5000, &[5000; 4]).preserves_ports, Some(true));
        assert_eq!(judge_ports(5000, &[5001; 4]).preserves_ports, Some(false));
    }
}
