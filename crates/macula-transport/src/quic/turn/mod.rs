//! TURN servers as ways to peers: allocations (RFC 8656) that exist while links need them.
//!
//! A peer sees our relayed address, which is a candidate like others. We see the peer, as the server
//! does, at a synthetic address: a detour that stands for the allocation and the peer's address.

mod serve;
mod wire;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use macula_nat::path::{Class, Kind, Strategy};
use macula_nat::uri::TurnUri;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Peers;
use crate::crew::Crew;
use crate::sync::lock;

/// Servers with an allocation at once: as many as there may be relayed candidates.
const SLOTS: usize = Kind::Relayed.max();
/// A link that is not direct for so long wants an allocation.
const NEEDED_AFTER: Duration = Duration::from_secs(1);

/// A TURN server, and who we are there.
#[derive(Clone, PartialEq, Eq)]
pub struct TurnServer {
    /// Where.
    pub uri: TurnUri,
    /// Username of the long-term credentials (RFC 8489 §9.2).
    pub username: String,
    /// Their password.
    pub password: String,
}

impl fmt::Debug for TurnServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} as {:?}", self.uri, self.username)
    }
}

/// When TURN servers are asked for allocations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TurnUse {
    /// When a link to a peer has had no direct path for a second.
    #[default]
    WhenRelayed,
    /// With the first link to a peer.
    AtOnce,
}

/// What is known of one TURN server.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TurnStatus {
    /// Which.
    pub server: TurnUri,
    /// What it relays to us; `None`: nothing now.
    pub relayed: Option<SocketAddr>,
    /// Why the last attempt failed; `None`: it did not.
    pub error: Option<String>,
}

/// What the links of an endpoint share of TURN.
pub(super) struct Turns {
    servers: Mutex<Vec<TurnServer>>,
    policy: TurnUse,
    crew: Crew,
    /// How many links want an allocation.
    demand: watch::Sender<usize>,
    /// IP addresses that links want let in, and how many do.
    guests: watch::Sender<BTreeMap<IpAddr, usize>>,
    slots: [Slot; SLOTS],
    /// Synthetic addresses: the peer that each stands for, and the server.
    remotes: Mutex<HashMap<SocketAddr, Remote>>,
    closing: CancellationToken,
    running: TaskTracker,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct Slot {
    runs: AtomicBool,
    status: Mutex<Option<TurnStatus>>,
    is_near: AtomicBool,
}

/// A peer by way of a TURN server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Remote {
    pub(super) peer: SocketAddr,
    pub(super) server: SocketAddr,
}

impl Turns {
    pub(super) fn new(servers: Vec<TurnServer>, policy: TurnUse, crew: Crew) -> Self {
        Self {
            servers: Mutex::new(servers),
            policy,
            crew,
            demand: watch::Sender::default(),
            guests: watch::Sender::default(),
            slots: Default::default(),
            remotes: Mutex::default(),
            closing: CancellationToken::new(),
            running: TaskTracker::new(),
            dropped: AtomicU64::new(0),
        }
    }

    /// Allocations that begin later are at these servers.
    pub(super) fn set_servers(&self, servers: Vec<TurnServer>) {
        *lock(&self.servers) = servers;
        // Whoever waits for one looks again.
        self.demand.send_modify(|_| {});
    }

    /// Begins to give all allocations back.
    pub(super) fn close(&self) {
        self.closing.cancel();
        self.running.close();
    }

    /// After [`Self::close`]: ends when that is done.
    pub(super) async fn closed(&self) {
        self.running.wait().await;
    }

    /// The peer behind a synthetic address, if that is one of an allocation.
    pub(super) fn remote(&self, addr: &SocketAddr) -> Option<Remote> {
        lock(&self.remotes).get(addr).copied()
    }

    pub(super) fn status(&self) -> Vec<TurnStatus> {
        self.slots.iter().filter_map(|slot| lock(&slot.status).clone()).collect()
    }

    /// Packets that were dropped between us and a TURN server.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn note(&self, slot: usize, status: TurnStatus) {
        if let Some(slot) = self.slots.get(slot) {
            *lock(&slot.status) = Some(status);
        }
    }
}

/// Tells links which relayed addresses there are.
fn offer(peers: &Peers) {
    let statuses = || peers.turns.slots.iter().map(|slot| lock(&slot.status).clone());
    let relayed: Vec<SocketAddr> = statuses().flatten().filter_map(|it| it.relayed).collect();
    let is_near = peers.turns.slots.iter().any(|slot| slot.is_near.load(Ordering::Relaxed));
    peers.set_candidates(Kind::Relayed, &relayed, is_near);
}

/// What one link wants of TURN servers.
pub(super) struct Seat {
    peers: Arc<Peers>,
    may: bool,
    wants: bool,
    /// Since when it has had no direct path.
    since: Option<Instant>,
    /// Whether only the gateway's path is left, or another member's.
    is_open: bool,
    guests: Vec<IpAddr>,
}

impl Seat {
    pub(super) fn new(peers: Arc<Peers>, strategy: Strategy) -> Self {
        let may = strategy == Strategy::Opportunistic;
        let at_once = peers.turns.policy == TurnUse::AtOnce;
        let now = Instant::now();
        let since = if at_once { now.checked_sub(NEEDED_AFTER).or(Some(now)) } else { Some(now) };
        Self { peers, may, wants: false, since, is_open: true, guests: Vec::new() }
    }

    /// Whether relayed addresses are of use to the link: while only the gateway's path is left, or another
    /// member's.
    /// Checked again, they would bring one path after another in place of that in use.
    pub(super) fn is_open(&self) -> bool {
        self.may && self.is_open
    }

    /// Which path is in use; returns whether [`Self::is_open`] has changed.
    pub(super) fn on_selected(&mut self, class: Class) -> bool {
        let is_direct = matches!(class, Class::Direct(_));
        if is_direct == self.since.is_some() {
            self.since = (!is_direct).then(Instant::now);
        }
        if is_direct && self.peers.turns.policy != TurnUse::AtOnce {
            self.want(false);
        }
        let is_open = matches!(class, Class::Relay | Class::Member(_));
        std::mem::replace(&mut self.is_open, is_open) != is_open
    }

    /// When [`Self::act`] is due.
    pub(super) fn due(&self) -> Option<Instant> {
        let is_waiting = self.may && !self.wants && !lock(&self.peers.turns.servers).is_empty();
        self.since.filter(|_| is_waiting).map(|since| since + NEEDED_AFTER)
    }

    /// Asks for an allocation if it is time.
    pub(super) fn act(&mut self) {
        if self.due().is_some_and(|due| due <= Instant::now()) {
            self.want(true);
        }
    }

    /// Has the peer let in, as the servers may see it.
    pub(super) fn invite(&mut self, addrs: impl Iterator<Item = SocketAddr>) {
        let mut guests: Vec<IpAddr> = addrs.map(|addr| addr.ip().to_canonical()).collect();
        guests.sort_unstable();
        guests.dedup();
        if guests != self.guests {
            let old = std::mem::replace(&mut self.guests, guests);
            if self.may {
                self.peers.turns.guests.send_modify(|all| {
                    self.guests.iter().for_each(|ip| *all.entry(*ip).or_default() += 1);
                    leave(all, &old);
                });
            }
        }
    }

    fn want(&mut self, wants: bool) {
        if wants == self.wants {
            return;
        }
        self.wants = wants;
        let turns = &self.peers.turns;
        turns.demand.send_modify(|demand| {
            *demand = if wants { *demand + 1 } else { demand.saturating_sub(1) };
        });
        for slot in 0..SLOTS {
            let Some(state) = turns.slots.get(slot).filter(|_| wants) else { continue };
            if !state.runs.swap(true, Ordering::AcqRel) {
                let running = serve::run(Arc::clone(&self.peers), slot);
                turns.crew.spawn(turns.running.track_future(running));
            }
        }
    }
}

fn leave(all: &mut BTreeMap<IpAddr, usize>, guests: &[IpAddr]) {
    for ip in guests {
        if let Some(count) = all.get_mut(ip) {
            *count -= 1;
            if *count == 0 {
                all.remove(ip);
            }
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.want(false);
        if self.may && !self.guests.is_empty() {
            self.peers.turns.guests.send_modify(|all| leave(all, &self.guests));
        }
    }
}
