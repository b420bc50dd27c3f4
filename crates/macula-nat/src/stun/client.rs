//! Asks STUN servers where they see a socket, again and again.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use macula_proto::Time;
use ring::hmac;
use stun_types::attribute::XorMappedAddress;
use stun_types::message::{
    BINDING, Message, MessageClass, MessageType, MessageWriteVec, TransactionId,
};

use super::{finish, parse};
use crate::address::canonical;

/// Servers that are asked; more are ignored.
pub const SERVERS_MAX: usize = 8;
/// After an answer the next request follows: below the 30 s after which some NATs forget (RFC 4787
/// REQ-5 wants 2 minutes), which also keeps the mapping.
const REFRESH: Duration = Duration::from_secs(25);
/// A server that did not answer is asked again after this.
const RETRY: Duration = Duration::from_secs(60);
/// RFC 8489 §6.2.1: RTO, Rc and Rm, with less patience than its 39.5 s, as candidates are of use soon
/// or not at all.
const RTO: Duration = Duration::from_millis(500);
const REQUESTS: u32 = 5;
const LAST: u32 = 8;

#[derive(Debug)]
struct Server {
    address: SocketAddr,
    mapped: Option<SocketAddr>,
    open: Option<Open>,
    /// When something is due: a repetition, giving up, or the next request.
    due: Time,
}

#[derive(Debug)]
struct Open {
    id: TransactionId,
    packet: Vec<u8>,
    sent: u32,
}

/// Keeps asking a few servers from one socket.
#[derive(Debug)]
pub struct Asker {
    key: hmac::Key,
    drawn: u64,
    servers: Vec<Server>,
    out: VecDeque<(SocketAddr, Vec<u8>)>,
    ignored: u64,
}

impl Asker {
    /// Asks nobody yet. `seed`: random bytes that nobody else knows; transaction ids come from them.
    pub fn new(seed: &[u8; 32]) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, seed);
        Self { key, drawn: 0, servers: Vec::new(), out: VecDeque::new(), ignored: 0 }
    }

    /// Asks these from now on, the first [`SERVERS_MAX`] of them. What is known of those that were
    /// asked before stays.
    pub fn set_servers(&mut self, now: Time, addresses: &[SocketAddr]) {
        let mut servers = Vec::new();
        for address in addresses.iter().map(|address| canonical(*address)).take(SERVERS_MAX) {
            let known = self.servers.iter().position(|server| server.address == address);
            let known = known.map(|index| self.servers.swap_remove(index));
            let fresh = || Server { address, mapped: None, open: None, due: now };
            servers.push(known.unwrap_or_else(fresh));
        }
        self.servers = servers;
        self.handle_timeout(now);
    }

    /// The next packet to send, and to whom.
    pub fn poll_transmit(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        self.out.pop_front()
    }

    /// When [`Self::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.servers.iter().map(|server| server.due).min()
    }

    /// Sends what is due.
    pub fn handle_timeout(&mut self, now: Time) {
        for server in &mut self.servers {
            if server.due > now {
                continue;
            }
            match &mut server.open {
                Some(open) if open.sent >= REQUESTS => {
                    (server.open, server.mapped) = (None, None);
                    server.due = now + RETRY;
                }
                Some(open) => {
                    open.sent += 1;
                    let is_last = open.sent >= REQUESTS;
                    let wait = if is_last { RTO * LAST } else { RTO * (1 << (open.sent - 1)) };
                    server.due = now + wait;
                    self.out.push_back((server.address, open.packet.clone()));
                }
                None => {
                    self.drawn += 1;
                    let tag = hmac::sign(&self.key, &self.drawn.to_be_bytes());
                    let bytes = tag.as_ref().iter().take(12);
                    let id = bytes.fold(0u128, |id, byte| id << 8 | u128::from(*byte));
                    let id = TransactionId::from(id);
                    let kind = MessageType::from_class_method(MessageClass::Request, BINDING);
                    let packet = finish(Message::builder(kind, id, MessageWriteVec::new()));
                    self.out.push_back((server.address, packet.clone()));
                    server.open = Some(Open { id, packet, sent: 1 });
                    server.due = now + RTO;
                }
            }
        }
    }

    /// A STUN packet came in. One that answers no open request, or comes from elsewhere than the
    /// request went to, is ignored and counted. Returns whether [`Self::mapped`] has changed.
    pub fn handle_packet(&mut self, now: Time, from: SocketAddr, packet: &[u8]) -> bool {
        let taken = parse(packet).and_then(|message| self.take(now, canonical(from), &message));
        if taken.is_none() {
            self.ignored += 1;
        }
        taken.unwrap_or(false)
    }

    fn take(&mut self, now: Time, from: SocketAddr, message: &Message<'_>) -> Option<bool> {
        let id = message.transaction_id();
        let is_asked = |server: &&mut Server| {
            server.address == from && server.open.as_ref().is_some_and(|open| open.id == id)
        };
        let server = self.servers.iter_mut().find(is_asked)?;
        let mapped = match (message.has_class(MessageClass::Success), message.has_method(BINDING)) {
            (true, true) => message.attribute::<XorMappedAddress>().ok(),
            _ if message.has_class(MessageClass::Error) => None,
            _ => return None,
        };
        let mapped = mapped.map(|mapped| canonical(mapped.addr(id)));
        server.open = None;
        server.due = now + if mapped.is_some() { REFRESH } else { RETRY };
        Some(std::mem::replace(&mut server.mapped, mapped) != mapped)
    }

    /// Where the servers see the socket, in their order, each address once.
    pub fn mapped(&self) -> Vec<SocketAddr> {
        let mut all: Vec<SocketAddr> = Vec::new();
        for mapped in self.servers.iter().filter_map(|server| server.mapped) {
            if !all.contains(&mapped) {
                all.push(mapped);
            }
        }
        all
    }

    /// Packets that were no answers to anything: late, repeated or forged.
    pub fn ignored(&self) -> u64 {
        self.ignored
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stun::{Binding, Listener};

    fn at(ms: u64) -> Time {
        Time::from_micros(ms * 1_000)
    }

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    const US: &str = "203.0.113.5:4000";

    fn asker(now: Time, servers: &[&str]) -> Asker {
        let mut asker = Asker::new(&[7; 32]);
        let servers: Vec<SocketAddr> = servers.iter().map(|text| addr(text)).collect();
        asker.set_servers(now, &servers);
        asker
    }

    fn answer(request: &[u8], server: &str, seen: &str) -> Vec<u8> {
        let mut binding = Binding::default();
        binding.addresses[0] = Some(addr(server));
        binding.answer(request, addr(seen), Listener::PRIMARY).unwrap().data
    }

    #[test]
    fn an_answer_tells_where_we_are_and_is_asked_for_again() {
        let server = "192.0.2.1:3478";
        let mut asker = asker(at(0), &[server]);
        let (to, request) = asker.poll_transmit().unwrap();
        assert_eq!(to, addr(server));
        assert!(asker.handle_packet(at(20), addr(server), &answer(&request, server, US)));
        assert_eq!((asker.mapped(), asker.ignored()), (vec![addr(US)], 0));
        assert_eq!(asker.poll_timeout(), Some(at(25_020)));
        asker.handle_timeout(at(25_020));
        let (_, again) = asker.poll_transmit().unwrap();
        assert_ne!(again, request, "a new transaction");
        let moved = answer(&again, server, "203.0.113.5:5000");
        assert!(asker.handle_packet(at(25_040), addr(server), &moved));
        assert_eq!(asker.mapped(), [addr("203.0.113.5:5000")]);
    }

    #[test]
    fn forged_repeated_and_stray_answers_are_ignored_and_counted() {
        let server = "192.0.2.1:3478";
        let mut asker = asker(at(0), &[server]);
        let (_, request) = asker.poll_transmit().unwrap();
        let right = answer(&request, server, US);
        assert!(!asker.handle_packet(at(1), addr("192.0.2.66:3478"), &right), "from elsewhere");
        let other = finish(Message::builder_request(BINDING, MessageWriteVec::new()));
        let guessed = answer(&other, server, "198.51.100.1:1");
        assert!(!asker.handle_packet(at(2), addr(server), &guessed), "of another transaction");
        assert!(!asker.handle_packet(at(3), addr(server), &request), "a request");
        assert!(!asker.handle_packet(at(3), addr(server), b"\x00\x01junk"));
        assert_eq!((asker.mapped(), asker.ignored()), (vec![], 4));
        assert!(asker.handle_packet(at(4), addr(server), &right));
        assert!(!asker.handle_packet(at(5), addr(server), &right), "repeated");
        assert_eq!((asker.mapped(), asker.ignored()), (vec![addr(US)], 5));
    }

    #[test]
    fn silence_is_borne_for_a_while_and_the_address_then_forgotten() {
        let mut asker = asker(at(0), &["192.0.2.1:3478"]);
        let mut sent = Vec::new();
        while let Some(due) = asker.poll_timeout().filter(|due| *due < at(20_000)) {
            while asker.poll_transmit().is_some() {
                sent.push(due.as_micros() / 1_000);
            }
            asker.handle_timeout(due);
        }
        assert_eq!(sent.len(), 5);
        assert_eq!(asker.poll_timeout(), Some(at(0) + Duration::from_millis(11_500) + RETRY));
    }

    #[test]
    fn a_hundred_servers_are_as_many_as_may_be() {
        let many: Vec<String> = (1..=100).map(|host| format!("192.0.2.{host}:3478")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let mut asker = asker(at(0), &many);
        assert_eq!(std::iter::from_fn(|| asker.poll_transmit()).count(), SERVERS_MAX);
        asker.set_servers(at(1), &[]);
        assert_eq!(asker.poll_timeout(), None);
    }
}
