//! Nodes, their network and virtual time: the engine, without any opinion on what shall happen.
//!
//! Windows of virtual time are handled by one or two threads with the same result. Between calls of
//! [`World::advance`] the director may change anything.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use macula_proto::overlay::{Command, Overlay};

use crate::dice::{Dice, mix};
use crate::hosts::{Hosts, NewHost, micros};
use crate::queue::window_of;
use crate::shard::{DIRECTOR, Happening, Node, Report, Shard, Tally, What};

/// Says that there is nothing more to do.
const NOTHING: u64 = u64::MAX;
/// When less happens in one [`World::advance`], threads cost more than they save.
const BUSY_MIN: u64 = 300;
/// Parts that a window is worked on in. The result does not depend on it.
const SHARDS: usize = 8;

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) hosts: Hosts,
    shards: Vec<Mutex<Shard>>,
    /// Microseconds; everything before has happened.
    now: u64,
    /// Happenings that the director has caused.
    number: u32,
    dice: Dice,
    /// Starts of each node so far.
    starts: Vec<u32>,
    /// What happened in the last [`World::advance`].
    busy: u64,
    threads: usize,
}

impl World {
    pub(crate) fn new(hosts: Hosts, threads: usize) -> Self {
        let threads = threads.max(1);
        let shards = if threads == 1 { 1 } else { SHARDS };
        Self {
            dice: Dice::new(hosts.seed, 0x0077_6f72_6c64),
            hosts,
            shards: (0..shards).map(|index| Mutex::new(Shard::new(index, shards))).collect(),
            now: 0,
            number: 0,
            starts: Vec::new(),
            busy: 0,
            threads,
        }
    }

    pub(crate) const fn now(&self) -> u64 {
        self.now
    }

    /// Puts a node into the world, not yet running.
    pub(crate) fn add(&mut self, new: NewHost) -> u32 {
        let index = self.hosts.add(new);
        let network = &self.hosts.network;
        let uplink =
            if new.is_gateway { network.gateway_uplink_bytes } else { network.uplink_bytes };
        let node = Node::new(self.hosts.seed, index, uplink);
        let shard = index as usize % self.shards.len();
        self.shard(shard).nodes.push(node);
        self.starts.push(0);
        index
    }

    /// Switches a node on and has it join by way of these peers; without any, it is the first.
    pub(crate) fn start(&mut self, node: u32, peers: &[u32], at: u64) {
        self.starts[node as usize] += 1;
        let host = self.hosts.get(node);
        let seed = mix(self.hosts.seed ^ mix(u64::from(node) << 16))
            ^ mix(u64::from(self.starts[node as usize]));
        let realm = self.hosts.realms[usize::from(host.realm)];
        let overlay = Overlay::new(host.id, realm, self.hosts.config.clone(), seed);
        self.node(node).overlay = Some(Box::new(overlay));
        self.hosts.set_alive(node, true);
        self.cause(node, at, What::Bootstrap(peers.into()));
    }

    /// Tells a running node's application part to do something.
    pub(crate) fn command(&mut self, node: u32, at: u64, command: Command) {
        self.cause(node, at, What::Command(Box::new(command)));
    }

    pub(crate) fn bootstrap(&mut self, node: u32, peers: &[u32], at: u64) {
        self.cause(node, at, What::Bootstrap(peers.into()));
    }

    /// Switches a node off without warning. Its neighbours notice when their transports do.
    pub(crate) fn kill(&mut self, node: u32) {
        self.hosts.set_alive(node, false);
        self.silence(node);
        self.node(node).stop();
        if self.hosts.get(node).relays.load(Ordering::Relaxed) {
            self.break_links(|_, _, _, relay| relay == Some(node));
        }
    }

    /// A node that has said good-bye: its links are closed.
    pub(crate) fn stop(&mut self, node: u32) {
        self.hosts.set_alive(node, false);
        let now = self.now;
        let state = self.node(node);
        let links: Vec<_> =
            state.links.iter().zip(&state.ends).map(|(link, end)| (end.peer, *link)).collect();
        state.stop();
        for (peer, link) in links {
            let latency = u64::from(self.hosts.latency(node, peer));
            self.cause(peer, now + latency, What::Down { link });
        }
        if self.hosts.get(node).relays.load(Ordering::Relaxed) {
            self.break_links(|_, _, _, relay| relay == Some(node));
        }
    }

    /// The node hears and says nothing for a while.
    pub(crate) fn sleep(&mut self, node: u32, length: Duration) {
        let until = self.now + micros(length);
        let (_, latest) = self.detection();
        let state = self.node(node);
        state.asleep_until = until;
        let links = state.links.clone();
        if micros(length) > latest {
            // both sides' transports give up
            self.silence(node);
            for link in links {
                self.cause(node, until + 1000, What::Down { link });
            }
        }
        self.cause(node, until, What::Thaw);
    }

    /// Its clock jumps ahead.
    pub(crate) fn jump_clock(&mut self, node: u32, by: Duration) {
        self.node(node).clock_ahead += micros(by);
        let now = self.now;
        self.cause(node, now, What::Thaw);
    }

    pub(crate) fn slow_down(&mut self, node: u32, delay: Duration) {
        self.node(node).slow = micros(delay) as u32;
    }

    /// Every neighbour of a node that says nothing any more notices in its own time.
    fn silence(&mut self, node: u32) {
        let state = self.node(node);
        let mut links: Vec<_> =
            state.links.iter().zip(&state.ends).map(|(link, end)| (end.peer, *link)).collect();
        links.extend(state.open_dials());
        for (peer, link) in links {
            let at = self.noticed();
            self.cause(peer, at, What::Down { link });
        }
    }

    /// When somebody notices that a link is dead which died now.
    fn noticed(&mut self) -> u64 {
        let (soonest, latest) = self.detection();
        self.now + soonest + (self.dice.unit() * (latest - soonest) as f64) as u64
    }

    fn detection(&self) -> (u64, u64) {
        let network = &self.hosts.network;
        (micros(network.detect_min), micros(network.detect_max.max(network.detect_min)))
    }

    /// Breaks all links that `is_broken` says: (own, peer, hosts, relay).
    pub(crate) fn break_links(
        &mut self,
        is_broken: impl Fn(u32, u32, &Hosts, Option<u32>) -> bool,
    ) {
        let mut broken = Vec::new();
        for own in 0..self.hosts.list.len() as u32 {
            let shard = own as usize % self.shards.len();
            let place = own as usize / self.shards.len();
            let hosts = &self.hosts;
            let guard = self.shards[shard].get_mut().unwrap_or_else(PoisonError::into_inner);
            let node = &guard.nodes[place];
            for (link, end) in node.links.iter().zip(&node.ends) {
                if is_broken(own, end.peer, hosts, end.relay) {
                    broken.push((own, *link));
                }
            }
        }
        for (own, link) in broken {
            let at = self.noticed();
            self.cause(own, at, What::Down { link });
        }
    }

    /// Lets things happen until `until`, microseconds. Returns what the director must hear of, in
    /// order.
    pub(crate) fn advance(&mut self, until: u64) -> Vec<Report> {
        let end = window_of(until);
        let before = self.happened();
        let (shards, hosts) = (&self.shards[..], &self.hosts);
        let gang = Gang::new(shards, hosts);
        if self.threads == 1 || self.busy < BUSY_MIN {
            gang.lead(end);
        } else {
            std::thread::scope(|scope| {
                for _ in 1..self.threads {
                    scope.spawn(|| gang.help());
                }
                gang.lead(end);
            });
        }
        self.busy = self.happened() - before;
        self.now = until;
        let mut reports = Vec::new();
        for index in 0..self.shards.len() {
            reports.append(&mut self.shard(index).air.reports);
        }
        // stable: what one node says at one moment keeps its order
        reports.sort_by_key(|report: &Report| (report.time, report.node));
        reports
    }

    fn cause(&mut self, to: u32, time: u64, what: What) {
        self.number = self.number.wrapping_add(1);
        let time = time.max(self.now);
        let happening = Happening { time, to, from: DIRECTOR, number: self.number, what };
        let shard = to as usize % self.shards.len();
        self.shard(shard).push(happening);
    }

    pub(crate) fn node(&mut self, node: u32) -> &mut Node {
        let shards = self.shards.len();
        &mut self.shard(node as usize % shards).nodes[node as usize / shards]
    }

    fn shard(&mut self, index: usize) -> &mut Shard {
        self.shards[index].get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    /// Things that have happened so far.
    pub(crate) fn happened(&mut self) -> u64 {
        (0..self.shards.len()).map(|index| self.shard(index).air.tally.happenings).sum()
    }

    /// What all shards have counted.
    pub(crate) fn tally(&mut self) -> Tally {
        let mut sum = Tally::default();
        for index in 0..self.shards.len() {
            sum.merge(&self.shard(index).air.tally);
        }
        sum
    }
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The threads of one [`World::advance`].
///
/// One leads from window to window; within a window each takes the next shard that nobody has taken
/// yet. Nobody waits for a thread that the system does not let run, unless it holds a shard.
#[derive(Debug)]
struct Gang<'a> {
    shards: &'a [Mutex<Shard>],
    hosts: &'a Hosts,
    /// The window that is worked on.
    window: AtomicU64,
    /// Number of the round, and in the lower half the next shard that nobody has taken.
    ticket: AtomicU64,
    /// Shards that are done with the window.
    done: AtomicUsize,
    is_over: AtomicBool,
    is_broken: AtomicBool,
}

impl<'a> Gang<'a> {
    fn new(shards: &'a [Mutex<Shard>], hosts: &'a Hosts) -> Self {
        Self {
            shards,
            hosts,
            window: AtomicU64::new(0),
            // nothing to take before the first round
            ticket: AtomicU64::new(shards.len() as u64),
            done: AtomicUsize::new(0),
            is_over: AtomicBool::new(false),
            is_broken: AtomicBool::new(false),
        }
    }

    /// Goes from window to window up to `end`.
    fn lead(&self, end: u64) {
        let _over = Raise(&self.is_over, false);
        let mut round = 0;
        let mut window = self.next();
        while window < end {
            self.window.store(window, Ordering::Relaxed);
            self.done.store(0, Ordering::Relaxed);
            round += 1;
            self.ticket.store(round << 32, Ordering::Release);
            while self.work() {}
            let mut spins = 0u32;
            while self.done.load(Ordering::Acquire) < self.shards.len() {
                if self.is_broken.load(Ordering::Relaxed) {
                    return;
                }
                spin(&mut spins);
            }
            window = self.exchange();
        }
    }

    /// Helps until it is over.
    fn help(&self) {
        let _alarm = Raise(&self.is_broken, true);
        let mut spins = 0;
        while !self.is_over.load(Ordering::Relaxed) {
            if self.work() {
                spins = 0;
            } else {
                spin(&mut spins);
            }
        }
    }

    /// Does the work of one shard; `false` when all are taken.
    fn work(&self) -> bool {
        let ticket = self.ticket.load(Ordering::Acquire);
        let place = (ticket & 0xffff_ffff) as usize;
        if place >= self.shards.len() {
            return false;
        }
        let window = self.window.load(Ordering::Relaxed);
        let (yes, no) = (Ordering::AcqRel, Ordering::Relaxed);
        if self.ticket.compare_exchange(ticket, ticket + 1, yes, no).is_ok() {
            lock(&self.shards[place]).run(self.hosts, window);
            self.done.fetch_add(1, Ordering::Release);
        }
        true
    }

    /// Hands over what was sent between shards; returns the next window in which anything happens.
    fn exchange(&self) -> u64 {
        let mut shards: Vec<_> = self.shards.iter().map(lock).collect();
        for from in 0..shards.len() {
            for to in 0..shards.len() {
                if !shards[from].air.outboxes[to].is_empty() {
                    let mail = std::mem::take(&mut shards[from].air.outboxes[to]);
                    shards[to].air.inbox.push(mail);
                }
            }
        }
        shards.iter().map(|shard| shard.next()).min().unwrap_or(NOTHING)
    }

    fn next(&self) -> u64 {
        self.shards.iter().map(|shard| lock(shard).next()).min().unwrap_or(NOTHING)
    }
}

fn spin(spins: &mut u32) {
    *spins += 1;
    if *spins < 2000 {
        std::hint::spin_loop();
    } else {
        std::thread::yield_now();
    }
}

/// Raises a flag at the end: in any case, or only when this thread panics.
struct Raise<'a>(&'a AtomicBool, bool);

impl Drop for Raise<'_> {
    fn drop(&mut self) {
        if !self.1 || std::thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}
