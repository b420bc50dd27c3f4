//! Other members of a realm as ways to peers: those who carry packets between two who have no direct
//! path to each other (docs/protocol §9.3.1).
//!
//! Both have a direct link to the carrier. What is for the peer leaves as datagrams of that link, in
//! the form in which packets go by a gateway. To QUIC the peer behind the carrier has a synthetic
//! address: a detour. A passage never leads through another one: what it carries is dropped while the
//! link to the carrier is not direct.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use bytes::Bytes;
use macula_nat::path::{Class, Side, Strategy};
use macula_proto::id::EndpointId;
use macula_proto::wire::relay::{Datagram, Part};
use macula_proto::wire::via;
use noq::{PathStatus, WeakConnectionHandle};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Peers;
use super::magic::detour::{Detour, Way};
use super::magic::{self, Sent, join};
use super::paths::{PathKind, PathState};
use crate::sync::lock;

/// A link that has had no direct path for so long wants a carrier.
const WANTED_AFTER: Duration = Duration::from_secs(3);
/// ... and asks again after this.
const WANTED_AGAIN: Duration = Duration::from_secs(30);
/// What the peer proposes is passed on no more often.
const PROPOSALS_INTERVAL: Duration = Duration::from_secs(5);
/// Wishes that may wait; those beyond come again.
const WANTED_MAX: usize = 64;
/// What one link may be told of carriers before it has looked.
pub(super) const VIAS_MAX: usize = 8;
/// Packets that may wait to be wrapped; those beyond are dropped.
const OUT_MAX: usize = 512;
/// The peer is told of a carrier again so long after it was told, as that may get lost.
const TELL_AGAIN: [Duration; 4] = [
    Duration::from_millis(250),
    Duration::from_secs(1),
    Duration::from_secs(4),
    Duration::from_secs(15),
];
/// A path that does not open is tried again after this; doubles each time.
const OPEN_AGAIN: Duration = Duration::from_secs(1);
/// One that lasted no longer than this was of no use: the next one waits for twice as long as the last.
const PROVEN_AFTER: Duration = Duration::from_secs(60);
const LOSSES_MAX: u32 = 6;
/// A passage without a path is given up after this.
const UNUSED_MAX: Duration = Duration::from_secs(60);

/// A link to `peer` would like packets to be carried by another member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CarrierWanted {
    /// The other end of the link.
    pub peer: EndpointId,
    /// Whom that end proposes, to whom it has a direct link; `None`: anybody.
    pub proposed: Option<EndpointId>,
}

/// Who is behind a synthetic address, and who carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Remote {
    pub(super) peer: EndpointId,
    pub(super) carrier: EndpointId,
}

/// What the links of an endpoint share of carriers.
pub(super) struct Members {
    passages: Mutex<HashMap<Remote, Weak<Passage>>>,
    remotes: Mutex<HashMap<SocketAddr, Remote>>,
    wanted: mpsc::Sender<CarrierWanted>,
    wishes: tokio::sync::Mutex<mpsc::Receiver<CarrierWanted>>,
    /// Packets of carriers that nobody waits for, and to them that found no room.
    dropped: AtomicU64,
}

impl fmt::Debug for Members {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Members").finish_non_exhaustive()
    }
}

impl Default for Members {
    fn default() -> Self {
        let (wanted, wishes) = mpsc::channel(WANTED_MAX);
        Self {
            passages: Mutex::default(),
            remotes: Mutex::default(),
            wanted,
            wishes: tokio::sync::Mutex::new(wishes),
            dropped: AtomicU64::new(0),
        }
    }
}

impl Members {
    /// Who is behind an address, if that is one of a passage.
    pub(super) fn remote(&self, addr: &SocketAddr) -> Option<Remote> {
        lock(&self.remotes).get(addr).copied()
    }

    /// Waits until a link wants a carrier. Cancel-safe; for one that waits.
    pub(super) async fn wanted(&self) -> CarrierWanted {
        match self.wishes.lock().await.recv().await {
            Some(wanted) => wanted,
            // Does not happen: `self` keeps a sender.
            None => std::future::pending().await,
        }
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn passage(&self, remote: Remote) -> Option<Arc<Passage>> {
        lock(&self.passages).get(&remote).and_then(Weak::upgrade)
    }

    /// A datagram of a link between peers that is one of relayed packets, for this endpoint.
    pub(super) fn receive(&self, carrier: EndpointId, datagram: Datagram) {
        match datagram {
            Datagram::Relayed { from, part, packet } => {
                match self.passage(Remote { peer: from, carrier }) {
                    Some(passage) => passage.receive(part, packet),
                    None => drop(self.dropped.fetch_add(1, Ordering::Relaxed)),
                }
            }
            Datagram::Unreachable { to, .. } => {
                if let Some(passage) = self.passage(Remote { peer: to, carrier }) {
                    passage.refused.notify_one();
                }
            }
            Datagram::Relay { .. } => drop(self.dropped.fetch_add(1, Ordering::Relaxed)),
        }
    }
}

/// A link to a carrier, as far as it is needed to use it.
#[derive(Clone, Debug)]
pub(super) struct Carrier {
    pub(super) id: EndpointId,
    pub(super) connection: WeakConnectionHandle,
    pub(super) paths: Arc<PathState>,
}

/// What a link hears of carriers.
#[derive(Debug)]
pub(super) enum Via {
    /// The peer has a direct link to this one.
    Proposed(EndpointId),
    /// So have we.
    Ready(Carrier),
}

/// A way to a peer through a carrier, while somebody holds it.
pub(super) struct Passage {
    remote: Remote,
    detour: Detour,
    half: Mutex<Option<(Part, Bytes)>>,
    /// The link to the carrier has ended.
    gone: CancellationToken,
    /// The carrier does not reach the peer.
    refused: Notify,
    carrier: Arc<PathState>,
    members: Arc<Members>,
}

impl Passage {
    /// The passage there is, or a new one; `None`: there are too many detours.
    fn open(peers: &Arc<Peers>, peer: EndpointId, carrier: &Carrier) -> Option<Arc<Self>> {
        let members = Arc::clone(&peers.members);
        let remote = Remote { peer, carrier: carrier.id };
        if let Some(known) = members.passage(remote).filter(|known| !known.gone.is_cancelled()) {
            return Some(known);
        }
        let (queue, waiting) = mpsc::channel(OUT_MAX);
        let detour = peers.magic.detour(None, Arc::new(Outlet { queue }))?;
        let gone = CancellationToken::new();
        carrier.paths.carries.fetch_add(1, Ordering::Relaxed);
        let passage = Arc::new(Self {
            remote,
            half: Mutex::default(),
            gone: gone.clone(),
            refused: Notify::new(),
            carrier: Arc::clone(&carrier.paths),
            members: Arc::clone(&members),
            detour,
        });
        lock(&members.remotes).insert(passage.addr(), remote);
        lock(&members.passages).insert(remote, Arc::downgrade(&passage));
        let sending = send(carrier.clone(), peer, waiting, gone, members);
        peers.crew.spawn(sending);
        Some(passage)
    }

    fn addr(&self) -> SocketAddr {
        self.detour.addr()
    }

    fn receive(&self, part: Part, packet: Bytes) {
        let packet = match part {
            Part::Whole => Some(packet),
            Part::First(_) | Part::Second(_) => join(&mut lock(&self.half), part, packet),
        };
        if let Some(packet) = packet {
            self.detour.receive(packet);
        }
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        self.carrier.carries.fetch_sub(1, Ordering::Relaxed);
        lock(&self.members.remotes).remove(&self.detour.addr());
        let mut passages = lock(&self.members.passages);
        // A newer one may have taken its place.
        if passages.get(&self.remote).is_some_and(|it| it.strong_count() == 0) {
            passages.remove(&self.remote);
        }
    }
}

/// Where QUIC sends. The packets go on in a task of their own: one connection must not wait for
/// another, which may be waiting for it.
#[derive(Debug)]
struct Outlet {
    queue: mpsc::Sender<Bytes>,
}

impl Way for Outlet {
    fn send(&self, _to: SocketAddr, contents: &[u8], segment: usize) -> u64 {
        let packets = contents.chunks(segment.max(1)).map(Bytes::copy_from_slice);
        packets.map(|packet| u64::from(self.queue.try_send(packet).is_err())).sum()
    }
}

/// Wraps what a passage sends, until nobody holds it or the link to the carrier ends.
async fn send(
    carrier: Carrier,
    to: EndpointId,
    mut waiting: mpsc::Receiver<Bytes>,
    gone: CancellationToken,
    members: Arc<Members>,
) {
    let _gone = gone.drop_guard();
    let Some(closed) = carrier.connection.upgrade().map(|it| it.on_closed()) else { return };
    let mut number = 0_u16;
    let sending = async {
        while let Some(packet) = waiting.recv().await {
            let Some(connection) = carrier.connection.upgrade() else { return };
            number = number.wrapping_add(1);
            let datagram = Datagram::Relay { to, part: Part::Whole, packet };
            let is_sent = carrier.paths.is_direct()
                && magic::send(&connection, datagram, number) == Sent::Queued;
            if !is_sent {
                members.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    };
    tokio::select! {
        biased;
        _ended = closed => {}
        () = sending => {}
    }
}

/// What one link wants of carriers.
pub(super) struct Errand {
    peers: Arc<Peers>,
    peer: EndpointId,
    side: Side,
    may: bool,
    passage: Option<Arc<Passage>>,
    has_path: bool,
    /// When the path opened, and how many in turn were of no use.
    opened: Instant,
    losses: u32,
    /// Whom the peer has a direct link to, by its own word.
    theirs: Option<EndpointId>,
    /// When a carrier is asked for.
    ask: Option<Instant>,
    /// What the peer proposes is not passed on before this.
    next_proposal: Instant,
    /// When the peer is told again, and how often it was.
    tell: Option<(Instant, usize)>,
    /// When the path is opened, and the pause after that.
    open: Option<(Instant, Duration)>,
    /// When a passage without a path is given up.
    end: Option<Instant>,
}

impl Errand {
    pub(super) fn new(peers: Arc<Peers>, peer: EndpointId, side: Side, strategy: Strategy) -> Self {
        let now = Instant::now();
        let may = strategy == Strategy::Opportunistic;
        let ask = (may && side == Side::Client).then(|| now + WANTED_AFTER);
        Self {
            peers,
            peer,
            side,
            may,
            passage: None,
            has_path: false,
            opened: now,
            losses: 0,
            theirs: None,
            ask,
            next_proposal: now,
            tell: None,
            open: None,
            end: None,
        }
    }

    /// Which path is in use.
    pub(super) fn on_selected(&mut self, class: Class) {
        let is_direct = matches!(class, Class::Direct(_));
        let may_ask = self.may && self.side == Side::Client && self.passage.is_none();
        if is_direct {
            self.ask = None;
        } else if may_ask && self.ask.is_none() {
            self.ask = Some(Instant::now() + WANTED_AFTER);
        }
    }

    /// When [`Self::act`] is due.
    pub(super) fn due(&self) -> Option<Instant> {
        let tell = self.tell.map(|(at, _)| at);
        let open = self.open.map(|(at, _)| at);
        [self.ask, tell, open, self.end].into_iter().flatten().min()
    }

    /// Does what is due.
    pub(super) fn act(&mut self, connection: &noq::Connection) {
        let now = Instant::now();
        if self.ask.is_some_and(|at| at <= now) {
            self.ask = Some(now + WANTED_AGAIN);
            self.want(None);
        }
        if self.end.is_some_and(|at| at <= now) {
            self.leave();
        }
        let Some(passage) = &self.passage else { return };
        if let Some((_, told)) = self.tell.filter(|(at, _)| *at <= now) {
            // Fails with a peer that takes none.
            let sent = connection.send_datagram(via::encode(passage.remote.carrier));
            let next = TELL_AGAIN.get(told).filter(|_| sent.is_ok());
            self.tell = next.map(|wait| (now + *wait, told + 1));
        }
        if let Some((_, pause)) = self.open.filter(|(at, _)| *at <= now) {
            tracing::debug!(carrier = %passage.remote.carrier, "path through another member");
            // The path tells by an event when it is there.
            drop(connection.open_path_ensure(passage.addr(), PathStatus::Backup));
            self.open = Some((now + pause, pause * 2));
        }
    }

    /// Waits until the passage is of no use for now; returns whether it is for good. Cancel-safe.
    pub(super) async fn broken(&self) -> bool {
        let Some(passage) = &self.passage else { return std::future::pending().await };
        tokio::select! {
            biased;
            () = passage.gone.cancelled() => true,
            () = passage.refused.notified() => false,
        }
    }

    /// After [`Self::broken`]; returns the address that leads nowhere.
    pub(super) fn on_broken(&mut self, for_good: bool) -> Option<SocketAddr> {
        let addr = self.passage.as_ref().map(|passage| passage.addr());
        if for_good {
            self.leave();
        }
        addr
    }

    fn leave(&mut self) {
        let passage = self.passage.take();
        (self.tell, self.open, self.end, self.has_path) = (None, None, None, false);
        if passage.is_some() && self.may && self.side == Side::Client {
            // Ends with the next look at the path in use if that is direct.
            self.ask = Some(Instant::now() + WANTED_AFTER);
        }
    }

    /// A path through the passage opened, or the last has closed.
    pub(super) fn on_path(&mut self, is_open: bool) {
        let now = Instant::now();
        if is_open {
            self.opened = now;
        } else if self.has_path {
            let was_proven = now - self.opened >= PROVEN_AFTER;
            self.losses = if was_proven { 0 } else { (self.losses + 1).min(LOSSES_MAX) };
        }
        self.has_path = is_open;
        let pause = self.pause();
        self.end = (!is_open && self.passage.is_some()).then(|| now + pause + UNUSED_MAX);
        self.plan(pause);
    }

    /// What lies before the next try. A carrier that lets little through would otherwise take the link's
    /// packets again and again.
    fn pause(&self) -> Duration {
        if self.losses == 0 { Duration::ZERO } else { OPEN_AGAIN * (1 << self.losses) }
    }

    pub(super) fn on_via(&mut self, via: Via) {
        match via {
            _ if !self.may => {}
            Via::Proposed(carrier) => {
                self.theirs = Some(carrier);
                let is_ours = self.passage.as_ref().is_some_and(|it| it.remote.carrier == carrier);
                let now = Instant::now();
                if is_ours {
                    self.plan(self.pause());
                } else if self.side == Side::Server && self.next_proposal <= now {
                    // Only who dialled chooses.
                    self.next_proposal = now + PROPOSALS_INTERVAL;
                    self.want(Some(carrier));
                }
            }
            Via::Ready(carrier) => {
                let is_known = self
                    .passage
                    .as_ref()
                    .is_some_and(|it| it.remote.carrier == carrier.id && !it.gone.is_cancelled());
                // One that works stays.
                if is_known || self.has_path || carrier.id == self.peer {
                    return;
                }
                self.passage = Passage::open(&self.peers, self.peer, &carrier);
                let now = Instant::now();
                self.ask = None;
                self.tell = Some((now, 0));
                self.end = Some(now + self.pause() + UNUSED_MAX);
                self.plan(self.pause());
            }
        }
    }

    /// Opens the path after this, if both ends reach the carrier and it is for this side to do.
    fn plan(&mut self, wait: Duration) {
        let carrier = self.passage.as_ref().map(|passage| passage.remote.carrier);
        let is_shared = carrier.is_some() && carrier == self.theirs;
        let is_due = self.side == Side::Client && is_shared && !self.has_path;
        let planned = self.open.filter(|(at, _)| *at <= Instant::now() + wait);
        let open = planned.unwrap_or_else(|| (Instant::now() + wait, OPEN_AGAIN));
        self.open = is_due.then_some(open);
    }

    fn want(&self, proposed: Option<EndpointId>) {
        let wanted = CarrierWanted { peer: self.peer, proposed };
        // One too many comes again.
        self.peers.members.wanted.try_send(wanted).ok();
    }
}

/// Whether a link is one that passages go through.
pub(super) fn is_used(carries: &AtomicUsize) -> bool {
    carries.load(Ordering::Relaxed) > 0
}

impl PathState {
    /// Whether the path in use is direct.
    pub(super) fn is_direct(&self) -> bool {
        self.selected().0 == PathKind::Direct
    }
}
