//! One side of one search.

use std::collections::VecDeque;
use std::net::{SocketAddr, SocketAddrV4};
use std::time::Duration;

use macula_proto::Time;
use ring::hmac;

use super::facts::PORT_MIN;
use super::probe::{Codec, Probe};
use super::{Behaviour, Facts, PROBES_MAX, Role, SOCKETS_MAX, Token};
use crate::address::canonical;

/// Probes come in groups at this interval, ...
const TICK: Duration = Duration::from_millis(10);
/// ... so many in each: 400 a second.
const PER_TICK: u16 = 4;
/// Ports that follow the last known one and are tried first at a NAT that counts.
const PREDICTED: u16 = 400;
/// Sockets opened at once, towards a NAT that lets packets in when its host has sent first; the rest
/// comes one by one, so that most are opened after the other side's probe to their port.
const FIRST_SOCKETS: u16 = 64;
/// The same where the other side knows the ports.
const FIRST_PREDICTED: u16 = 8;
/// All sockets where it does.
const PREDICTED_SOCKETS: u16 = 64;
/// The other sockets are opened within this.
const SPREAD: Duration = Duration::from_secs(4);
/// A socket repeats its probe so often: it is what gets in once the other side has found its port.
const REPEAT: Duration = Duration::from_millis(750);
/// A search takes no longer.
const LASTS: Duration = Duration::from_secs(5);
/// The choice of a way is repeated so often, ...
const CHOOSE_EVERY: Duration = Duration::from_millis(60);
/// ... and so many times before others are looked for again.
const CHOICES: u32 = 10;
/// Ports that probes go to: all but those of services.
const PORTS: u32 = 65_536 - PORT_MIN as u32;
/// Has no divisor in common with [`PORTS`], so that its multiples meet all of them.
const STRIDE: u32 = 25_033;

/// What a search is about.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// What this side does.
    pub role: Role,
    /// Known to both sides only.
    pub token: Token,
    /// Whose NAT counts or does not: for [`Role::One`] the peer's, for [`Role::Many`] our own.
    pub behaviour: Behaviour,
    /// For [`Role::Many`] where the peer's main socket is; for [`Role::One`] the peer's NAT with the
    /// port that it gave last.
    pub peer: SocketAddrV4,
    /// Before anything is sent.
    pub wait: Duration,
    /// Random; ids and the order of ports come from it.
    pub seed: [u8; 32],
}

impl Config {
    /// Of two sides that know each other's facts.
    pub fn new(role: Role, token: Token, own: &Facts, peer: &Facts, seed: [u8; 32]) -> Self {
        let behaviour = match role {
            Role::One => peer.behaviour,
            Role::Many => own.behaviour,
        };
        Self { role, token, behaviour, peer: peer.addr, wait: Duration::ZERO, seed }
    }
}

/// Entries in NAT tables that a search needs at most on the side whose NAT maps so.
pub fn tuples_max(own: Behaviour) -> u16 {
    match own {
        Behaviour::Independent => PROBES_MAX,
        Behaviour::Sequential { .. } => PREDICTED_SOCKETS,
        Behaviour::Random => SOCKETS_MAX,
    }
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Open another socket of this number; [`Role::One`] has one that is open, number 0.
    Open(u16),
    /// Send a packet.
    Send {
        /// From which socket.
        socket: u16,
        /// To where.
        to: SocketAddr,
        /// The packet.
        data: Vec<u8>,
    },
    /// There is a way: packets pass between this socket and the peer at `remote`. Other sockets are
    /// of no use any more. The search still answers probes that come there.
    Found {
        /// Which socket.
        socket: u16,
        /// The peer, as this socket sees it.
        remote: SocketAddr,
    },
    /// There is none, and the search is over.
    Failed,
}

/// [`Role::One`]: a way that is confirmed.
#[derive(Clone, Copy, Debug)]
struct Choice {
    remote: SocketAddrV4,
    said: u32,
    due: Time,
}

/// One side of one search; sans-IO.
#[derive(Debug)]
pub struct Search {
    config: Config,
    codec: Codec,
    ids: hmac::Key,
    drawn: u64,
    begin: Time,
    end: Time,
    /// [`Role::One`]: the next group of probes. [`Role::Many`]: the next socket.
    next: Option<Time>,
    /// [`Role::One`]: probes sent. [`Role::Many`]: sockets opened.
    count: u16,
    /// [`Role::Many`]: when each socket repeats its probe.
    repeats: Vec<Time>,
    choice: Option<Choice>,
    found: Option<(u16, SocketAddrV4)>,
    is_over: bool,
    out: VecDeque<Output>,
}

impl Search {
    /// Begins `config.wait` from now.
    pub fn new(now: Time, config: Config) -> Self {
        let begin = now + config.wait;
        Self {
            codec: Codec::new(&config.token),
            ids: hmac::Key::new(hmac::HMAC_SHA256, &config.seed),
            drawn: 0,
            begin,
            end: begin + LASTS,
            next: Some(begin),
            count: 0,
            repeats: Vec::new(),
            choice: None,
            found: None,
            is_over: false,
            out: VecDeque::new(),
            config,
        }
    }

    /// What to do next.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    /// When [`Self::handle_timeout`] is due; `None`: the search has ended.
    pub fn poll_timeout(&self) -> Option<Time> {
        if self.is_over {
            return None;
        }
        let repeat = self.repeats.iter().copied().min();
        let choice = self.choice.map(|choice| choice.due);
        // One whose way is not confirmed yet looks for no other.
        let next = self.next.filter(|_| choice.is_none());
        [next, repeat, choice, Some(self.end)].into_iter().flatten().min()
    }

    /// Entries in NAT tables that the search has made.
    pub fn tuples(&self) -> u16 {
        self.count
    }

    /// Does what is due; safe to call early or late.
    pub fn handle_timeout(&mut self, now: Time) {
        if self.is_over || now < self.begin {
            return;
        }
        if now >= self.end {
            self.is_over = true;
            return self.out.push_back(Output::Failed);
        }
        match self.config.role {
            Role::One => self.probe(now),
            Role::Many => self.open(now),
        }
    }

    /// A packet came to a socket; what is not of this search is ignored.
    pub fn handle_packet(&mut self, now: Time, socket: u16, from: SocketAddr, packet: &[u8]) {
        let SocketAddr::V4(from) = canonical(from) else { return };
        let Some((probe, id)) = self.codec.read(packet) else { return };
        match (self.config.role, probe.from) {
            (Role::One, Role::Many) if from.ip() == self.config.peer.ip() => {
                self.on_hit(now, from, probe);
            }
            (Role::Many, Role::One) if from == self.config.peer && !probe.is_answer => {
                self.on_probe(socket, from, probe, id);
            }
            _ => {}
        }
    }

    /// [`Role::One`].
    fn on_hit(&mut self, now: Time, from: SocketAddrV4, probe: Probe) {
        if self.is_over {
            return;
        }
        if probe.is_answer && probe.is_chosen {
            // The other side keeps the first that it hears chosen, whichever that is.
            self.is_over = true;
            self.found = Some((0, from));
            return self.out.push_back(Output::Found { socket: 0, remote: from.into() });
        }
        if self.choice.is_none() && now >= self.begin {
            self.choice = Some(Choice { remote: from, said: 0, due: now });
            self.choose(now);
        }
    }

    /// [`Role::Many`].
    fn on_probe(&mut self, socket: u16, from: SocketAddrV4, probe: Probe, id: u128) {
        let is_other = self.found.is_some_and(|(found, _)| found != socket);
        if is_other || (self.is_over && self.found.is_none()) {
            return;
        }
        let answer = Probe { from: Role::Many, is_answer: true, is_chosen: probe.is_chosen };
        let data = self.codec.write(answer, id);
        self.out.push_back(Output::Send { socket, to: from.into(), data });
        if probe.is_chosen && self.found.is_none() {
            (self.found, self.is_over) = (Some((socket, from)), true);
            self.out.push_back(Output::Found { socket, remote: from.into() });
        }
    }

    fn probe(&mut self, now: Time) {
        if self.choice.is_some() {
            return self.choose(now);
        }
        let Some(due) = self.next.filter(|at| *at <= now) else { return };
        for _ in 0..PER_TICK.min(PROBES_MAX - self.count) {
            let to = SocketAddrV4::new(*self.config.peer.ip(), self.port(self.count));
            self.count += 1;
            self.send(0, to, false);
        }
        // One group that was late is made up for, or timers that are a little late each time would cost a
        // search a tenth of its probes. More is not: it might be a burst.
        let next = if now - due > TICK { now } else { due + TICK };
        self.next = (self.count < PROBES_MAX).then_some(next);
    }

    fn choose(&mut self, now: Time) {
        let Some(choice) = &mut self.choice else { return };
        if choice.due > now {
            return;
        }
        if choice.said >= CHOICES {
            self.choice = None;
            return;
        }
        choice.said += 1;
        choice.due = now + CHOOSE_EVERY;
        let remote = choice.remote;
        self.send(0, remote, true);
    }

    fn open(&mut self, now: Time) {
        let all = tuples_max(self.config.behaviour);
        let is_predicted = matches!(self.config.behaviour, Behaviour::Sequential { .. });
        let first = if is_predicted { FIRST_PREDICTED } else { FIRST_SOCKETS };
        let spacing = SPREAD / u32::from(all - first);
        while let Some(at) = self.next.filter(|at| *at <= now) {
            let so_many = if self.count == 0 { first } else { 1 };
            for socket in self.count..self.count + so_many {
                self.out.push_back(Output::Open(socket));
                self.send(socket, self.config.peer, false);
                self.repeats.push(now + REPEAT);
            }
            self.count += so_many;
            self.next = (self.count < all).then_some(at + spacing);
        }
        for socket in 0..self.count {
            let Some(at) = self.repeats.get_mut(usize::from(socket)) else { break };
            if *at <= now {
                *at = now + REPEAT;
                self.send(socket, self.config.peer, false);
            }
        }
    }

    fn send(&mut self, socket: u16, to: SocketAddrV4, is_chosen: bool) {
        self.drawn += 1;
        let tag = hmac::sign(&self.ids, &self.drawn.to_be_bytes());
        let id = tag.as_ref().iter().take(12).fold(0u128, |id, byte| id << 8 | u128::from(*byte));
        let probe = Probe { from: self.config.role, is_answer: false, is_chosen };
        let data = self.codec.write(probe, id);
        self.out.push_back(Output::Send { socket, to: to.into(), data });
    }

    /// The port that the probe of this number goes to.
    fn port(&self, number: u16) -> u16 {
        let last = u32::from(self.config.peer.port().max(PORT_MIN) - PORT_MIN);
        let seed = self.config.seed.iter().take(4);
        let first = seed.fold(0u32, |sum, byte| sum << 8 | u32::from(*byte)) % PORTS;
        let step = u32::from(number) + 1;
        let place = match self.config.behaviour {
            Behaviour::Sequential { up: true } if number < PREDICTED => last + step,
            Behaviour::Sequential { up: false } if number < PREDICTED => last + PORTS - step,
            _ => first + (u32::from(number) * STRIDE) % PORTS,
        };
        u16::try_from(place % PORTS).unwrap_or(0).saturating_add(PORT_MIN)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    const ONE: &str = "198.51.100.1:5000";
    const NAT: &str = "203.0.113.2:7000";

    fn at(ms: u64) -> Time {
        Time::from_micros(1_000_000 + ms * 1_000)
    }

    fn facts(behaviour: Behaviour, addr: &str) -> Facts {
        Facts { behaviour, addr: addr.parse().unwrap() }
    }

    fn pair(behaviour: Behaviour, wait: u64) -> [Search; 2] {
        let (easy, hard) = (facts(Behaviour::Independent, ONE), facts(behaviour, NAT));
        let one = Config::new(Role::One, [7; 16], &easy, &hard, [1; 32]);
        let mut many = Config::new(Role::Many, [7; 16], &hard, &easy, [2; 32]);
        many.wait = Duration::from_millis(wait);
        [Search::new(at(0), one), Search::new(at(0), many)]
    }

    /// Two NATs that let in only what was sent to, 40 ms apart. The second side's draws ports or
    /// counts them.
    struct World {
        sides: [Search; 2],
        /// External port of each socket of the many.
        ports: BTreeMap<u16, u16>,
        /// Ports to which the one has sent.
        opened: BTreeSet<u16>,
        /// What is under way, by its time: to which side, socket or port, and the packet.
        way: Vec<(u64, usize, u16, Vec<u8>)>,
        next_port: Box<dyn FnMut() -> u16>,
        found: [Option<(u64, u16, SocketAddr)>; 2],
        sent: [usize; 2],
    }

    impl World {
        fn run(&mut self, ms: u64) {
            for now in 0..ms {
                for side in 0..2 {
                    self.sides[side].handle_timeout(at(now));
                }
                let mut way = std::mem::take(&mut self.way);
                way.retain(|(due, side, port, data)| {
                    if *due > now {
                        return true;
                    }
                    if *side == 0 && self.opened.contains(port) {
                        let from = SocketAddrV4::new(*self.sides[0].config.peer.ip(), *port);
                        self.sides[0].handle_packet(at(now), 0, from.into(), data);
                    }
                    if *side == 1
                        && let Some((socket, _)) = self.ports.iter().find(|(_, it)| *it == port)
                    {
                        let from = ONE.parse().unwrap();
                        self.sides[1].handle_packet(at(now), *socket, from, data);
                    }
                    false
                });
                self.way = way;
                for side in 0..2 {
                    while let Some(output) = self.sides[side].poll_output() {
                        self.take(now, side, output);
                    }
                }
            }
        }

        fn take(&mut self, now: u64, side: usize, output: Output) {
            match output {
                Output::Open(socket) => {
                    let port = (self.next_port)();
                    self.ports.insert(socket, port);
                }
                Output::Send { socket, to, data } => {
                    self.sent[side] += 1;
                    if side == 0 {
                        self.opened.insert(to.port());
                        self.way.push((now + 40, 1, to.port(), data));
                    } else {
                        assert_eq!(to, ONE.parse().unwrap());
                        self.way.push((now + 40, 0, self.ports[&socket], data));
                    }
                }
                Output::Found { socket, remote } => {
                    assert_eq!(self.found[side].replace((now, socket, remote)), None);
                }
                Output::Failed => {}
            }
        }
    }

    fn world(behaviour: Behaviour, wait: u64, next_port: impl FnMut() -> u16 + 'static) -> World {
        World {
            sides: pair(behaviour, wait),
            ports: BTreeMap::new(),
            opened: BTreeSet::new(),
            way: Vec::new(),
            next_port: Box::new(next_port),
            found: [None; 2],
            sent: [0; 2],
        }
    }

    fn random(seed: u64) -> impl FnMut() -> u16 {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &seed.to_be_bytes());
        let mut drawn = 0u64;
        move || {
            drawn += 1;
            let tag = hmac::sign(&key, &drawn.to_be_bytes());
            let number = u32::from_be_bytes(*tag.as_ref().first_chunk().unwrap());
            (u32::from(PORT_MIN) + number % PORTS) as u16
        }
    }

    #[test]
    fn both_sides_find_the_same_way_through_a_nat_that_draws() {
        let mut found = 0;
        for seed in 0..40 {
            let mut world = world(Behaviour::Random, 60, random(seed));
            world.run(6_000);
            let [one, many] = world.found;
            assert_eq!(one.is_some(), many.is_some(), "{one:?} {many:?}");
            let (Some((at_one, 0, nat)), Some((at_many, socket, remote))) = (one, many) else {
                continue;
            };
            found += 1;
            assert_eq!((nat.port(), remote), (world.ports[&socket], ONE.parse().unwrap()));
            assert!(at_many < at_one && at_one < 5_000, "{at_many} {at_one}");
        }
        assert!(found >= 38, "{found} of 40");
    }

    #[test]
    fn a_nat_that_counts_is_found_within_a_few_probes() {
        for (up, step) in [(true, 1), (false, 1), (true, 3)] {
            // others have used some ports since
            let mut port = if up { 7_020u16 } else { 6_980 };
            let next = move || {
                port = if up { port + step } else { port - step };
                port
            };
            let mut world = world(Behaviour::Sequential { up }, 60, next);
            world.run(6_000);
            let [Some((ms, ..)), Some(_)] = world.found else { panic!("{:?}", world.found) };
            assert!(ms < 400, "{ms} ms");
            assert!(world.ports.len() < 24, "{} sockets", world.ports.len());
        }
    }

    #[test]
    fn a_search_without_luck_ends_and_stays_within_its_bounds() {
        let mut world = world(Behaviour::Random, 60, || 80);
        world.run(8_000);
        assert_eq!(world.found, [None; 2]);
        assert_eq!(world.opened.len(), usize::from(PROBES_MAX), "each port once");
        assert_eq!(world.ports.len(), usize::from(SOCKETS_MAX));
        assert!(world.sent[0] <= usize::from(PROBES_MAX));
        assert!(world.sent[1] <= 6 * usize::from(SOCKETS_MAX), "{}", world.sent[1]);
        assert!(world.opened.iter().all(|port| *port >= PORT_MIN));
        for side in &world.sides {
            assert_eq!(side.poll_timeout(), None);
        }
    }

    #[test]
    fn probes_come_no_faster_than_they_may() {
        let [mut one, _] = pair(Behaviour::Random, 0);
        let mut sent = Vec::new();
        for ms in 0..3_000 {
            // the driver comes late sometimes
            if ms % 700 > 100 {
                one.handle_timeout(at(ms));
            }
            sent.extend(std::iter::from_fn(|| one.poll_output()).map(|_| ms));
        }
        let most =
            (0..2_000).map(|ms| sent.iter().filter(move |it| (ms..ms + 1_000).contains(*it)));
        assert!(most.map(Iterator::count).max().unwrap() <= 408);
        assert!(sent.len() > 800, "{}", sent.len());
    }

    #[test]
    fn a_driver_that_is_a_little_late_costs_no_probes() {
        let [mut one, _] = pair(Behaviour::Random, 0);
        let mut sent = 0;
        for ms in (0..4_900).filter(|ms| ms % 7 == 0) {
            one.handle_timeout(at(ms));
            sent += std::iter::from_fn(|| one.poll_output()).count();
        }
        assert!((1_940..=1_968).contains(&sent), "{sent}");
    }

    #[test]
    fn strangers_choose_nothing() {
        let [mut one, mut many] = pair(Behaviour::Random, 0);
        one.handle_timeout(at(0));
        many.handle_timeout(at(0));
        let probe = |search: &mut Search| loop {
            if let Some(Output::Send { data, .. }) = search.poll_output() {
                return data;
            }
        };
        let (of_one, of_many) = (probe(&mut one), probe(&mut many));
        let drain = |search: &mut Search| std::iter::from_fn(|| search.poll_output()).count();
        assert!(drain(&mut one) < 10 && drain(&mut many) > 100);
        // another address, our own probe sent back, a packet for another search
        one.handle_packet(at(1), 0, "192.0.2.1:9".parse().unwrap(), &of_many);
        one.handle_packet(at(1), 0, NAT.parse().unwrap(), &of_one);
        many.handle_packet(at(1), 3, "198.51.100.1:5001".parse().unwrap(), &of_one);
        many.handle_packet(at(1), 3, ONE.parse().unwrap(), &of_many);
        let other = Codec::new(&[8; 16]);
        let chosen = Probe { from: Role::One, is_answer: false, is_chosen: true };
        many.handle_packet(at(1), 3, ONE.parse().unwrap(), &other.write(chosen, 1));
        assert_eq!((drain(&mut one), drain(&mut many)), (0, 0));
        // the same from where it should come
        one.handle_packet(at(1), 0, NAT.parse().unwrap(), &of_many);
        many.handle_packet(at(1), 3, ONE.parse().unwrap(), &of_one);
        assert_eq!((drain(&mut one), drain(&mut many)), (1, 1));
    }

    #[test]
    fn the_first_chosen_way_stays_and_its_probes_are_answered_on() {
        let [_, mut many] = pair(Behaviour::Random, 0);
        many.handle_timeout(at(0));
        while many.poll_output().is_some() {}
        let codec = Codec::new(&[7; 16]);
        let chosen = Probe { from: Role::One, is_answer: false, is_chosen: true };
        let one: SocketAddr = ONE.parse().unwrap();
        let mut outputs = |socket, id| {
            many.handle_packet(at(1), socket, one, &codec.write(chosen, id));
            std::iter::from_fn(|| many.poll_output()).collect::<Vec<_>>()
        };
        let first = outputs(5, 1);
        assert_eq!(first.last(), Some(&Output::Found { socket: 5, remote: one }));
        assert_eq!((first.len(), outputs(6, 2).len(), outputs(5, 3).len()), (2, 0, 1));
        assert_eq!(many.poll_timeout(), None);
    }
}
