//! How long a NAT keeps a mapping that nothing goes over (RFC 5780 §4.6).
//!
//! All times are tried at once: each on a socket of its own, which is mapped and then silent. When its
//! time is over, another socket has the server answer to the mapped port; what arrives came over a
//! mapping that still was.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use macula_proto::Time;
use ring::hmac;
use stun_types::attribute::{RawAttribute, XorMappedAddress};
use stun_types::message::{
    BINDING, Message, MessageClass, MessageType, MessageWriteVec, TransactionId,
};

use crate::address::canonical;
use crate::stun::{RESPONSE_PORT, add, finish, parse};

/// What is tried, seconds: around the timers of known NATs.
const STEPS: [u64; 9] = [5, 10, 15, 20, 30, 45, 60, 90, 120];
/// Longest time that is tried.
pub const LIFETIME_MAX: Duration = Duration::from_secs(120);
/// A request is sent so often, with so much time between two, and after the last.
const REQUESTS: u32 = 4;
const RTO: Duration = Duration::from_millis(400);

/// What was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LifetimeReport {
    /// A mapping was still there after this.
    pub at_least: Option<Duration>,
    /// One was gone after this; `None`: none was in the time that was tried.
    pub below: Option<Duration>,
    /// Whether the server can tell at all: it answers, and to another port (RESPONSE-PORT).
    pub is_supported: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Asks for its mapped port.
    Opening,
    /// Nothing is sent until its time is over.
    Silent {
        port: u16,
    },
    /// The server was asked to answer there.
    Asked,
    Alive,
    Gone,
    /// No answer, or of no use any more.
    Skipped,
}

#[derive(Debug)]
struct Step {
    after: Duration,
    stage: Stage,
    id: TransactionId,
    packet: Vec<u8>,
    sent: u32,
    due: Time,
}

impl Step {
    const fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Opening | Stage::Silent { .. } | Stage::Asked)
    }
}

/// The trial under way. The driver has a socket for each of [`Self::sockets`]; number 0 only asks.
#[derive(Debug)]
pub struct Lifetime {
    server: SocketAddr,
    key: hmac::Key,
    drawn: u64,
    steps: Vec<Step>,
    out: VecDeque<(usize, Vec<u8>)>,
    is_refused: bool,
}

impl Lifetime {
    /// Begins with a server that answers to other ports, for times up to `max`. `seed`: random
    /// bytes that nobody else knows.
    pub fn new(now: Time, server: SocketAddr, max: Duration, seed: &[u8; 32]) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, seed);
        let (steps, out) = (Vec::new(), VecDeque::new());
        let mut trial = Self { server, key, drawn: 0, steps, out, is_refused: false };
        let times = STEPS.into_iter().map(Duration::from_secs);
        for after in times.filter(|after| *after <= max.min(LIFETIME_MAX)) {
            let (id, packet) = trial.request(None);
            trial.out.push_back((trial.steps.len() + 1, packet.clone()));
            let due = now + RTO;
            trial.steps.push(Step { after, stage: Stage::Opening, id, packet, sent: 1, due });
        }
        trial
    }

    /// Sockets that are needed, all of the server's family.
    pub fn sockets(&self) -> usize {
        self.steps.len() + 1
    }

    /// The next packet for the server, and from which socket.
    pub fn poll_transmit(&mut self) -> Option<(usize, Vec<u8>)> {
        self.out.pop_front()
    }

    /// When [`Self::handle_timeout`] is due; `None`: everything is known.
    pub fn poll_timeout(&self) -> Option<Time> {
        if self.is_refused {
            return None;
        }
        self.steps.iter().filter(|step| step.is_open()).map(|step| step.due).min()
    }

    /// Sends what is due, and gives up what was not answered.
    pub fn handle_timeout(&mut self, now: Time) {
        for index in 0..self.steps.len() {
            let Some(step) = self.steps.get_mut(index).filter(|step| step.due <= now) else {
                continue;
            };
            let is_last = step.sent >= REQUESTS;
            match step.stage {
                Stage::Opening if is_last => step.stage = Stage::Skipped,
                Stage::Asked if is_last => step.stage = Stage::Gone,
                Stage::Opening | Stage::Asked => {
                    let socket = if step.stage == Stage::Asked { 0 } else { index + 1 };
                    step.sent += 1;
                    step.due = now + RTO;
                    self.out.push_back((socket, step.packet.clone()));
                }
                Stage::Silent { port } => {
                    let (id, packet) = self.request(Some(port));
                    self.out.push_back((0, packet.clone()));
                    if let Some(step) = self.steps.get_mut(index) {
                        (step.id, step.packet, step.sent) = (id, packet, 1);
                        (step.stage, step.due) = (Stage::Asked, now + RTO);
                    }
                }
                Stage::Alive | Stage::Gone | Stage::Skipped => {}
            }
        }
        self.skip();
    }

    /// A packet came to a socket. What answers nothing is ignored.
    pub fn handle_packet(&mut self, now: Time, socket: usize, from: SocketAddr, packet: &[u8]) {
        let Some(message) = parse(packet).filter(|_| canonical(from) == self.server) else {
            return;
        };
        let id = message.transaction_id();
        let is_asked = |step: &Step| step.id == id && step.is_open();
        let Some(index) = self.steps.iter().position(is_asked) else { return };
        if message.has_class(MessageClass::Error) && socket == 0 {
            self.is_refused = true;
        }
        let Some(step) = self.steps.get_mut(index).filter(|_| socket == index + 1) else { return };
        if !message.has_class(MessageClass::Success) {
            return;
        }
        match step.stage {
            Stage::Opening => {
                let Ok(mapped) = message.attribute::<XorMappedAddress>() else { return };
                step.stage = Stage::Silent { port: mapped.addr(id).port() };
                step.due = now + step.after;
            }
            Stage::Asked => step.stage = Stage::Alive,
            _ => {}
        }
        self.skip();
    }

    /// Longer times than one after which a mapping was gone need not be waited for.
    fn skip(&mut self) {
        let gone = self.steps.iter().position(|step| step.stage == Stage::Gone);
        for step in self.steps.iter_mut().skip(gone.map_or(usize::MAX, |gone| gone + 1)) {
            if step.stage != Stage::Alive {
                step.stage = Stage::Skipped;
            }
        }
    }

    /// What is known so far.
    pub fn report(&self) -> LifetimeReport {
        let at = |wanted| self.steps.iter().filter(move |step| step.stage == wanted);
        let at_least = at(Stage::Alive).map(|step| step.after).max();
        let below = at(Stage::Gone).map(|step| step.after).min();
        // One that was gone although a longer one was not was an accident, such as a lost packet.
        let below = below.filter(|below| at_least.is_none_or(|at_least| at_least < *below));
        let is_supported = !self.is_refused && (at_least.is_some() || below.is_some());
        LifetimeReport { at_least, below, is_supported }
    }

    fn request(&mut self, port: Option<u16>) -> (TransactionId, Vec<u8>) {
        self.drawn += 1;
        let tag = hmac::sign(&self.key, &self.drawn.to_be_bytes());
        let id = tag.as_ref().iter().take(12).fold(0u128, |id, byte| id << 8 | u128::from(*byte));
        let id = TransactionId::from(id);
        let kind = MessageType::from_class_method(MessageClass::Request, BINDING);
        let mut message = Message::builder(kind, id, MessageWriteVec::new());
        if let Some(port) = port {
            let [high, low] = port.to_be_bytes();
            add(&mut message, &RawAttribute::new(RESPONSE_PORT, &[high, low, 0, 0]));
        }
        (id, finish(message))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::stun::{Binding, Listener};

    const SERVER: &str = "192.0.2.1:3478";

    /// A NAT whose mappings last so long, in front of our server.
    struct Nat {
        lasts: Duration,
        /// By port: the socket, and when it was used.
        mappings: BTreeMap<u16, (usize, Time)>,
        loses: u32,
    }

    impl Nat {
        fn run(&mut self) -> (LifetimeReport, Duration) {
            let server: SocketAddr = SERVER.parse().unwrap();
            let mut binding = Binding::default();
            binding.addresses[0] = Some(server);
            let mut now = Time::START;
            let mut trial = Lifetime::new(now, server, LIFETIME_MAX, &[5; 32]);
            loop {
                while let Some((socket, packet)) = trial.poll_transmit() {
                    if self.loses > 0 {
                        self.loses -= 1;
                        continue;
                    }
                    let port = 20_000 + u16::try_from(socket).unwrap();
                    self.mappings.insert(port, (socket, now));
                    let from = SocketAddr::from(([203, 0, 113, 5], port));
                    let answer = binding.answer(&packet, from, Listener::PRIMARY).unwrap();
                    let mapping = self.mappings.get(&answer.to.port());
                    if let Some((socket, _)) = mapping.filter(|(_, used)| now - *used < self.lasts)
                    {
                        trial.handle_packet(now, *socket, server, &answer.data);
                    }
                }
                let Some(due) = trial.poll_timeout() else { break };
                now = now.max(due);
                trial.handle_timeout(now);
            }
            (trial.report(), now - Time::START)
        }
    }

    fn nat(seconds: u64) -> Nat {
        Nat { lasts: Duration::from_secs(seconds), mappings: BTreeMap::new(), loses: 0 }
    }

    #[test]
    fn the_lifetime_is_between_two_times_and_longer_ones_are_not_waited_for() {
        let (report, took) = nat(31).run();
        let expected = LifetimeReport {
            at_least: Some(Duration::from_secs(30)),
            below: Some(Duration::from_secs(45)),
            is_supported: true,
        };
        assert_eq!(report, expected);
        assert!(took < Duration::from_secs(50), "{took:?}");
    }

    #[test]
    fn mappings_that_outlast_the_trial_are_told_as_such_and_lost_packets_do_no_harm() {
        let mut nat = nat(1_000);
        nat.loses = 7;
        let (report, took) = nat.run();
        assert_eq!((report.at_least, report.below), (Some(LIFETIME_MAX), None));
        assert!(took < Duration::from_secs(125), "{took:?}");
        let (report, _) = self::nat(1).run();
        assert_eq!((report.at_least, report.below), (None, Some(Duration::from_secs(5))));
    }

    #[test]
    fn a_server_that_cannot_is_noticed_and_strangers_are_not_heard() {
        let server: SocketAddr = SERVER.parse().unwrap();
        let mut trial = Lifetime::new(Time::START, server, LIFETIME_MAX, &[5; 32]);
        let (_, packet) = trial.poll_transmit().unwrap();
        let mut binding = Binding::default();
        binding.addresses[0] = Some(server);
        let from = "203.0.113.5:1".parse().unwrap();
        let answer = binding.answer(&packet, from, Listener::PRIMARY).unwrap().data;
        trial.handle_packet(Time::START, 1, "192.0.2.9:3478".parse().unwrap(), &answer);
        trial.handle_packet(Time::START, 2, server, &answer);
        assert_eq!(trial.steps[0].stage, Stage::Opening);
        trial.handle_packet(Time::START, 1, server, &answer);
        assert_eq!(trial.steps[0].stage, Stage::Silent { port: 1 });
        // The others are never answered.
        while let Some(due) =
            trial.poll_timeout().filter(|due| *due < Time::START + Duration::from_secs(4))
        {
            trial.handle_timeout(due);
        }
        assert_eq!(trial.poll_timeout(), Some(Time::START + Duration::from_secs(5)));
        assert!(!trial.report().is_supported);
    }
}
