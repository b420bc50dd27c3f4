//! The tests: STUN transactions and what follows from their answers.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use macula_proto::Time;
use ring::hmac;
use stun_types::attribute::{RawAttribute, XorMappedAddress};
use stun_types::message::{
    BINDING, Message, MessageClass, MessageType, MessageWriteVec, TransactionId,
};

use super::verdict::{self, Found, Report, ServerReport};
use crate::address::canonical;
use crate::stun::{
    CHANGE_IP, CHANGE_PORT, CHANGE_REQUEST, OTHER_ADDRESS, add, finish, parse, read_address,
};

/// Servers that are looked at; more are ignored.
const SERVERS_MAX: usize = 16;

/// One of the sockets that the driver has open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Socket {
    /// IPv4; talks to all servers.
    Main,
    /// IPv4; talks to one server only, so that the NAT knows no other.
    Quiet,
    /// IPv6; talks to all servers.
    V6,
}

/// A STUN server to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StunServer {
    /// For the report: as the user wrote it.
    pub name: String,
    /// Where, in canonical form.
    pub address: SocketAddr,
    /// A second port of the same server, if one is known.
    pub other_port: Option<u16>,
}

/// When a request is sent again, and when it is given up (RFC 8489 §6.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// RTO: time to the first repetition; doubles with each.
    pub rto: Duration,
    /// Rc: how often a request is sent at most.
    pub requests: u32,
    /// Rm: how many RTO to wait after the last.
    pub last: u32,
}

impl Default for Patience {
    /// RFC 8489's values: gives up after 39.5 s.
    fn default() -> Self {
        Self { rto: Duration::from_millis(500), requests: 7, last: 16 }
    }
}

/// What to test with.
#[derive(Clone, Debug)]
pub struct CheckConfig {
    /// Servers, nearest or most trusted first; those of both families together.
    pub servers: Vec<StunServer>,
    /// Local addresses of the sockets that there are, as bound and routed, not unspecified.
    pub main: Option<SocketAddr>,
    /// See above.
    pub quiet: Option<SocketAddr>,
    /// See above.
    pub v6: Option<SocketAddr>,
    /// How patient.
    pub patience: Patience,
    /// Random bytes that nobody else knows: transaction ids come from them.
    pub seed: [u8; 32],
}

/// A packet to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// From which socket.
    pub socket: Socket,
    /// To where.
    pub to: SocketAddr,
    /// The packet.
    pub data: Vec<u8>,
}

/// What an answer will tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// Where a server sees the socket.
    Base { server: usize },
    /// Where the same server sees it at another of its addresses.
    Other,
    /// Opens the quiet socket's way to the first server.
    Opening { server: usize },
    /// Whether an answer from another port gets in.
    FilterPort,
    /// Whether an answer from another address and port gets in.
    FilterBoth,
    /// Whether a packet to our own mapped address comes back.
    Hairpin,
}

#[derive(Debug)]
struct Transaction {
    id: TransactionId,
    purpose: Purpose,
    packet: Transmit,
    first_sent: Time,
    sent: u32,
    due: Time,
}

/// The tests under way.
#[derive(Debug)]
pub struct Check {
    config: CheckConfig,
    key: hmac::Key,
    drawn: u64,
    open: Vec<Transaction>,
    out: VecDeque<Transmit>,
    found: Found,
    has_hairpin_test: bool,
    ignored: u64,
}

impl Check {
    /// Begins all tests.
    pub fn new(now: Time, mut config: CheckConfig) -> Self {
        config.servers.truncate(SERVERS_MAX);
        let servers = config.servers.iter().map(ServerReport::new);
        let found = Found {
            local: config.main,
            local_v6: config.v6,
            servers: servers.collect(),
            ..Found::default()
        };
        let key = hmac::Key::new(hmac::HMAC_SHA256, &config.seed);
        let mut check = Self {
            config,
            key,
            drawn: 0,
            open: Vec::new(),
            out: VecDeque::new(),
            found,
            has_hairpin_test: false,
            ignored: 0,
        };
        check.begin(now);
        check
    }

    /// The next packet to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.out.pop_front()
    }

    /// When [`Check::handle_timeout`] is due; `None`: all tests are done.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.open.iter().map(|transaction| transaction.due).min()
    }

    /// Sends again what was not answered, and gives up what was asked often enough.
    pub fn handle_timeout(&mut self, now: Time) {
        let Patience { rto, requests, last } = self.config.patience;
        let out = &mut self.out;
        self.open.retain_mut(|transaction| {
            if transaction.due > now {
                return true;
            }
            if transaction.sent >= requests.max(1) {
                return false;
            }
            out.push_back(transaction.packet.clone());
            transaction.sent += 1;
            transaction.due = now
                + if transaction.sent >= requests {
                    rto * last
                } else {
                    rto * (1 << (transaction.sent - 1).min(16))
                };
            true
        });
    }

    /// A packet came in. Whatever answers no open request of this socket, or comes from where no
    /// answer to it may come from, is ignored.
    pub fn handle_packet(&mut self, now: Time, socket: Socket, from: SocketAddr, packet: &[u8]) {
        let from = canonical(from);
        let taken = parse(packet).and_then(|message| self.take(now, socket, from, &message));
        if taken.is_none() {
            self.ignored += 1;
        }
    }

    /// Packets that were no answers to anything.
    pub fn ignored(&self) -> u64 {
        self.ignored
    }

    /// What is known; complete once [`Check::poll_timeout`] is `None`.
    pub fn report(&self) -> Report {
        verdict::report(&self.found)
    }

    fn begin(&mut self, now: Time) {
        let servers = self.config.servers.clone();
        for (server, StunServer { address, .. }) in servers.iter().enumerate() {
            let socket = if address.is_ipv4() { Socket::Main } else { Socket::V6 };
            self.ask(now, socket, *address, Purpose::Base { server }, 0);
        }
        // The best one to test filtering with is one that has another port.
        let v4 = || servers.iter().enumerate().filter(|(_, server)| server.address.is_ipv4());
        let chosen = v4().find(|(_, server)| server.other_port.is_some()).or_else(|| v4().next());
        if let Some((server, StunServer { address, .. })) = chosen {
            self.ask(now, Socket::Quiet, *address, Purpose::Opening { server }, 0);
        }
    }

    fn ask(&mut self, now: Time, socket: Socket, to: SocketAddr, purpose: Purpose, change: u32) {
        let is_there = match socket {
            Socket::Main => self.config.main.is_some(),
            Socket::Quiet => self.config.quiet.is_some(),
            Socket::V6 => self.config.v6.is_some(),
        };
        if !is_there {
            return;
        }
        self.drawn += 1;
        let tag = hmac::sign(&self.key, &self.drawn.to_be_bytes());
        let id = tag.as_ref().iter().take(12).fold(0u128, |id, byte| id << 8 | u128::from(*byte));
        let id = TransactionId::from(id);
        let kind = MessageType::from_class_method(MessageClass::Request, BINDING);
        let mut message = Message::builder(kind, id, MessageWriteVec::new());
        if change != 0 {
            add(&mut message, &RawAttribute::new(CHANGE_REQUEST, &change.to_be_bytes()));
        }
        let packet = Transmit { socket, to, data: finish(message) };
        self.out.push_back(packet.clone());
        let due = now + self.config.patience.rto;
        self.open.push(Transaction { id, purpose, packet, first_sent: now, sent: 1, due });
    }

    fn take(
        &mut self,
        now: Time,
        socket: Socket,
        from: SocketAddr,
        message: &Message<'_>,
    ) -> Option<()> {
        let id = message.transaction_id();
        let position = self.open.iter().position(|open| open.id == id)?;
        let open = self.open.get(position)?;
        if open.purpose == Purpose::Hairpin {
            // Our own request, at the socket that it was sent to.
            if socket != Socket::Main || !message.has_class(MessageClass::Request) {
                return None;
            }
            self.found.hairpin = Some(true);
            self.open.remove(position);
            return Some(());
        }
        let asked = open.packet.to;
        let may_come_from = match open.purpose {
            Purpose::FilterPort => from.ip() == asked.ip() && from.port() != asked.port(),
            Purpose::FilterBoth => self.found.other == Some(from),
            _ => from == asked,
        };
        // A server that cannot do what was asked says so from where it was asked.
        let is_refusal = message.has_class(MessageClass::Error) && from == asked;
        let is_answer = message.has_class(MessageClass::Success) && may_come_from;
        if socket != open.packet.socket || !(is_refusal || is_answer) {
            return None;
        }
        let open = self.open.remove(position);
        if is_refusal {
            self.refused(open.purpose);
            return Some(());
        }
        let mapped = message.attribute::<XorMappedAddress>().ok();
        let mapped = mapped.map(|mapped| canonical(mapped.addr(id)));
        // Only the first answer to the only request tells the time that it took.
        let rtt = (open.sent == 1).then(|| now - open.first_sent);
        self.answered(now, &open, mapped, rtt, read_address(message, OTHER_ADDRESS));
        Some(())
    }

    fn refused(&mut self, purpose: Purpose) {
        match purpose {
            Purpose::FilterPort => self.found.can_filter_port = false,
            Purpose::FilterBoth => self.found.can_filter_both = false,
            _ => {}
        }
    }

    fn answered(
        &mut self,
        now: Time,
        open: &Transaction,
        mapped: Option<SocketAddr>,
        rtt: Option<Duration>,
        other: Option<SocketAddr>,
    ) {
        let to = open.packet.to;
        let other = other.map(canonical).filter(|other| is_usable(other.ip(), to.ip()));
        match open.purpose {
            Purpose::Base { server } => {
                let known = self.config.servers.get(server).and_then(|server| server.other_port);
                if let Some(report) = self.found.servers.get_mut(server) {
                    (report.mapped, report.rtt) = (mapped, rtt);
                    report.is_alive = true;
                }
                let Some(mapped) = mapped else { return };
                if to.is_ipv6() {
                    self.found.mapped_v6.get_or_insert(mapped);
                    return;
                }
                self.found.mappings.push((to, mapped));
                let others = [
                    known.map(|port| SocketAddr::new(to.ip(), port)),
                    other.map(|other| SocketAddr::new(other.ip(), to.port())),
                    other,
                ];
                for to in others.into_iter().flatten() {
                    self.ask(now, Socket::Main, to, Purpose::Other, 0);
                }
                if !self.has_hairpin_test && self.config.quiet.is_some() {
                    self.has_hairpin_test = true;
                    self.found.hairpin = Some(false);
                    self.ask(now, Socket::Quiet, mapped, Purpose::Hairpin, 0);
                }
            }
            Purpose::Other => self.found.mappings.extend(mapped.map(|mapped| (to, mapped))),
            Purpose::Opening { server } => {
                let known = self.config.servers.get(server).and_then(|server| server.other_port);
                if known.is_some() || other.is_some() {
                    self.found.can_filter_port = true;
                    self.ask(now, Socket::Quiet, to, Purpose::FilterPort, CHANGE_PORT);
                }
                if let Some(other) = other {
                    (self.found.can_filter_both, self.found.other) = (true, Some(other));
                    let change = CHANGE_IP | CHANGE_PORT;
                    self.ask(now, Socket::Quiet, to, Purpose::FilterBoth, change);
                }
            }
            Purpose::FilterPort => self.found.port_got_in = true,
            Purpose::FilterBoth => self.found.both_got_in = true,
            Purpose::Hairpin => {}
        }
    }
}

/// Whether a server may send us to `other`: another address of its own kind, so that a forged answer
/// cannot make us knock at loopback or at many.
fn is_usable(other: IpAddr, server: IpAddr) -> bool {
    let is_inner = |ip: IpAddr| ip.is_loopback();
    other.is_ipv4() == server.is_ipv4()
        && other != server
        && !other.is_unspecified()
        && !other.is_multicast()
        && is_inner(other) == is_inner(server)
}
