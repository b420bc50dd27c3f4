//! The paths of a link between peers: runs [`Selector`] on a connection.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use macula_nat::path::{
    Action, Candidate, Class, Input, Kind, PathKey, Sample, Selector, Side, Strategy,
};
use macula_proto::Time;
use macula_proto::id::EndpointId;
use macula_proto::wire::offer::{self, Sort};
use noq::udp::Transmit;
use noq::{PathEvent, PathId, PathStats, PathStatus, VarInt};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::magic::Berth;
use super::members::{Carrier, Errand, VIAS_MAX, Via};
use super::search::SIGNALS_MAX;
use super::turn::Seat;
use super::{Peers, canonical};
use crate::sync::lock;

/// A first packet is held back for so long at least: rather late than early.
const GATE_MIN: Duration = Duration::from_millis(2);
/// ... and not for longer, whatever the relay's round trip seems to be.
const GATE_MAX: Duration = Duration::from_millis(500);
/// The sorts of candidates are told again so long after they were told, as that may get lost.
const TELL_AGAIN: [Duration; 3] =
    [Duration::from_millis(250), Duration::from_secs(1), Duration::from_secs(4)];
/// Paths that are looked for beyond the newest known when events were lost.
const SCAN: u32 = 64;
/// Close code when a link may not use what paths are left; the protocol's `Denied`.
const CODE_NO_PATH: u16 = 8;

/// What sort of path a link's packets take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PathKind {
    /// Through the gateway.
    Relayed,
    /// Through another member, which carries packets between this endpoint and the peer.
    Member,
    /// Through a TURN server, of this endpoint or of the peer.
    Turn,
    /// From endpoint to endpoint.
    Direct,
}

impl PathKind {
    /// Its name in output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Relayed => "relayed",
            Self::Member => "member",
            Self::Turn => "turn",
            Self::Direct => "direct",
        }
    }
}

/// UDP payload bytes, QUIC's own included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Traffic {
    /// Sent.
    pub sent: u64,
    /// Received.
    pub received: u64,
}

impl Traffic {
    fn add(&mut self, stats: &PathStats) {
        self.sent += stats.udp_tx.bytes;
        self.received += stats.udp_rx.bytes;
    }
}

/// The path of a link now, and what its paths have carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PathInfo {
    /// Which sort.
    pub kind: PathKind,
    /// The peer's address; `None` when relayed by the gateway or by a member. By the peer's TURN server: its
    /// relayed address there.
    pub remote: Option<SocketAddr>,
    /// This endpoint's own TURN server, if the path goes through it.
    pub server: Option<SocketAddr>,
    /// The member that carries the packets, if one does.
    pub carrier: Option<EndpointId>,
    /// Smoothed round-trip time of the path; `None` once the link is down.
    pub rtt: Option<Duration>,
    /// What went through the gateway.
    pub relayed: Traffic,
    /// What went through other members.
    pub member: Traffic,
    /// What went through TURN servers.
    pub turn: Traffic,
    /// What went directly.
    pub direct: Traffic,
}

/// Which path is in use: what changes of it are worth telling.
pub(crate) type Selected = (PathKind, Option<SocketAddr>);

/// What a connection knows of its paths.
#[derive(Debug)]
pub(crate) struct PathState {
    /// The peer's synthetic address is its own as long as this lives.
    berth: Berth,
    selected: watch::Sender<(PathKey, Selected)>,
    ledger: Mutex<Ledger>,
    /// The peer's candidates and their sorts, as far as it told.
    theirs: watch::Sender<Vec<(Sort, SocketAddr)>>,
    peers: Arc<Peers>,
    /// Where what the peer says of port searches goes.
    signals: mpsc::Sender<Bytes>,
    /// Where what it says of carriers goes, and what is found here.
    vias: mpsc::Sender<Via>,
    /// Passages of other links that lead through this one.
    pub(super) carries: AtomicUsize,
}

#[derive(Debug, Default)]
struct Ledger {
    live: BTreeMap<PathKey, PathKind>,
    relayed: Traffic,
    member: Traffic,
    turn: Traffic,
    direct: Traffic,
}

impl Ledger {
    fn add(&mut self, kind: PathKind, stats: &PathStats) {
        match kind {
            PathKind::Relayed => self.relayed.add(stats),
            PathKind::Member => self.member.add(stats),
            PathKind::Turn => self.turn.add(stats),
            PathKind::Direct => self.direct.add(stats),
        }
    }
}

impl PathState {
    /// A link's, and what the peer says of port searches and of carriers.
    pub(super) fn new(
        berth: Berth,
        peers: Arc<Peers>,
    ) -> (Arc<Self>, mpsc::Receiver<Bytes>, mpsc::Receiver<Via>) {
        let live = [(0, PathKind::Relayed)].into();
        let (signals, heard) = mpsc::channel(SIGNALS_MAX);
        let (vias, told) = mpsc::channel(VIAS_MAX);
        let state = Arc::new(Self {
            berth,
            selected: watch::Sender::new((0, (PathKind::Relayed, None))),
            ledger: Mutex::new(Ledger { live, ..Ledger::default() }),
            theirs: watch::Sender::default(),
            peers,
            signals,
            vias,
            carries: AtomicUsize::new(0),
        });
        (state, heard, told)
    }

    /// QUIC's number of the path in use.
    pub(super) fn path_id(&self) -> PathId {
        PathId::from(self.selected.borrow().0)
    }

    /// Takes a datagram of the peer; one too many is dropped, and comes again.
    pub(super) fn signal(&self, datagram: Bytes) {
        self.signals.try_send(datagram).ok();
    }

    /// Takes what is known of a carrier; one too many is dropped, and comes again.
    pub(super) fn via(&self, via: Via) {
        self.vias.try_send(via).ok();
    }

    /// This link as one that passages may lead through.
    pub(super) fn as_carrier(self: &Arc<Self>, id: EndpointId, quic: &noq::Connection) -> Carrier {
        Carrier { id, connection: quic.weak_handle(), paths: Arc::clone(self) }
    }

    pub(super) fn peers(&self) -> &Arc<Peers> {
        &self.peers
    }

    /// The path in use.
    pub(super) fn selected(&self) -> Selected {
        self.selected.borrow().1
    }

    /// Tells of every change of the path in use.
    pub(crate) fn watch(&self) -> watch::Receiver<(PathKey, Selected)> {
        self.selected.subscribe()
    }

    pub(super) fn info(&self, connection: &noq::Connection) -> PathInfo {
        let (path, (kind, remote)) = *self.selected.borrow();
        let ledger = lock(&self.ledger);
        let mut sum = Ledger { live: BTreeMap::new(), ..*ledger };
        for (path, kind) in &ledger.live {
            if let Some(stats) = connection.path_stats(PathId::from(*path)) {
                sum.add(*kind, &stats);
            }
        }
        let Ledger { relayed, member, turn, direct, .. } = sum;
        let rtt = connection.rtt(PathId::from(path));
        let seen = connection.path(PathId::from(path)).and_then(|path| path.remote_address().ok());
        let server = seen.and_then(|seen| self.peers.turns.remote(&seen)).map(|it| it.server);
        let carrier = seen.and_then(|seen| self.peers.members.remote(&seen)).map(|it| it.carrier);
        PathInfo { kind, remote, server, carrier, rtt, relayed, member, turn, direct }
    }

    /// The peer says which candidates it has.
    pub(super) fn take_offer(&self, offer: Vec<(Sort, SocketAddr)>) {
        self.theirs.send_if_modified(|known| std::mem::replace(known, offer.clone()) != offer);
    }
}

/// Runs the paths of a connection until it ends. Does not keep the connection alive.
pub(super) fn manage(
    connection: &noq::Connection,
    peer: EndpointId,
    side: Side,
    state: Arc<PathState>,
    peers: Arc<Peers>,
    vias: mpsc::Receiver<Via>,
) -> impl Future<Output = ()> + Send + 'static {
    let strategy = peers.strategy;
    let manager = Manager {
        weak: connection.weak_handle(),
        selector: Selector::new(side, strategy, 0),
        side,
        strategy,
        offered: Vec::new(),
        tell: None,
        theirs: state.theirs.subscribe(),
        seat: Seat::new(Arc::clone(&peers), strategy),
        errand: Errand::new(Arc::clone(&peers), peer, side, strategy),
        vias,
        candidates: peers.candidates.subscribe(),
        relay: peers.relay.subscribe(),
        gate: None,
        holds: true,
        started: Instant::now(),
        state,
        peers,
    };
    let (events, updates) = (connection.path_events(), connection.nat_traversal_updates());
    let closed = connection.on_closed();
    async move {
        tokio::select! {
            biased;
            _ended = closed => {}
            () = manager.run(events, updates) => {}
        }
    }
}

struct Manager {
    weak: noq::WeakConnectionHandle,
    selector: Selector,
    side: Side,
    strategy: Strategy,
    state: Arc<PathState>,
    /// Candidates that QUIC was told.
    offered: Vec<Candidate>,
    /// When the peer is told their sorts again, which may get lost, and how often it was.
    tell: Option<(Instant, u32)>,
    theirs: watch::Receiver<Vec<(Sort, SocketAddr)>>,
    /// At the TURN servers.
    seat: Seat,
    /// To other members.
    errand: Errand,
    vias: mpsc::Receiver<Via>,
    candidates: watch::Receiver<Vec<Candidate>>,
    relay: watch::Receiver<bool>,
    /// First packets that are held back, and until when.
    gate: Option<(u64, Instant)>,
    /// Whether the next round holds them back.
    holds: bool,
    started: Instant,
    peers: Arc<Peers>,
}

impl Manager {
    async fn run(mut self, mut events: noq::PathEvents, mut updates: noq::NatTraversalUpdates) {
        let Some(connection) = self.weak.upgrade() else { return };
        self.candidates.mark_changed();
        self.relay.mark_changed();
        self.rescan(&connection);
        drop(connection);
        loop {
            let Some(connection) = self.weak.upgrade() else { return };
            if self.act(&connection) {
                self.offer();
                self.act(&connection);
            }
            self.seat.act();
            self.errand.act(&connection);
            self.tell(&connection);
            drop(connection);
            let (wake, look) = (self.selector.poll_timeout(), self.selector.poll_look());
            let wake = wake.map(|at| self.instant(at));
            let look_at = look.map(|(at, _)| self.instant(at));
            let gate = self.gate.map(|(_, at)| at);
            let tell = self.tell.map(|(at, _)| at);
            let wakes = [wake, look_at, gate, tell, self.seat.due(), self.errand.due()];
            let wake_at = wakes.into_iter().flatten().min();
            tokio::select! {
                biased;
                event = next(&mut events) => match event {
                    Some(event) => self.on_event(event),
                    None => return,
                },
                update = next(&mut updates) => match update {
                    Some(_) => self.count_candidates(),
                    None => return,
                },
                changed = self.candidates.changed(), if self.strategy != Strategy::AlwaysRelay => {
                    if changed.is_err() {
                        return;
                    }
                    self.offer();
                }
                changed = self.theirs.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.on_theirs();
                }
                changed = self.relay.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let up = *self.relay.borrow_and_update();
                    self.feed(Input::Relay { up });
                }
                Some(via) = self.vias.recv() => self.errand.on_via(via),
                for_good = self.errand.broken() => self.on_broken(for_good),
                () = sleep(wake_at) => self.on_timer(look),
            }
            if self.gate.is_some_and(|(_, at)| at <= Instant::now()) {
                self.open_gate().await;
            }
        }
    }

    fn now(&self) -> Time {
        Time::START + self.started.elapsed()
    }

    fn instant(&self, at: Time) -> Instant {
        self.started + (at - Time::START)
    }

    fn feed(&mut self, input: Input) {
        let now = self.now();
        self.selector.handle_input(now, input);
    }

    fn on_timer(&mut self, look: Option<(Time, PathKey)>) {
        let now = self.now();
        self.selector.handle_timeout(now);
        let due = look.filter(|(at, _)| *at <= now).map(|(_, path)| path);
        let Some((connection, path)) = self.weak.upgrade().zip(due) else { return };
        if let Some(stats) = connection.path_stats(PathId::from(path)) {
            let sample = Sample {
                received: stats.udp_rx.datagrams,
                eliciting: eliciting(&stats),
                rtt: stats.rtt,
            };
            self.feed(Input::Looked(sample));
        } else {
            self.feed(Input::Closed { path });
        }
    }

    fn on_event(&mut self, event: Result<PathEvent, noq::Lagged>) {
        let Some(connection) = self.weak.upgrade() else { return };
        match event {
            Ok(PathEvent::Established { id, .. }) => self.on_open(&connection, id),
            Ok(PathEvent::Abandoned { id, reason, .. }) => {
                tracing::debug!(%id, ?reason, "path abandoned");
                self.on_closed(key(id));
            }
            Ok(PathEvent::Discarded { id, path_stats, .. }) => {
                let mut ledger = lock(&self.state.ledger);
                if let Some(kind) = ledger.live.remove(&key(id)) {
                    ledger.add(kind, &path_stats);
                }
            }
            Ok(_) => {}
            Err(_lagged) => self.rescan(&connection),
        }
    }

    /// Events were lost, or came before they were listened for.
    fn rescan(&mut self, connection: &noq::Connection) {
        let known: Vec<PathKey> = lock(&self.state.ledger).live.keys().copied().collect();
        let newest = known.last().copied().unwrap_or(0);
        for path in known.iter().filter(|path| connection.path(PathId::from(**path)).is_none()) {
            self.on_closed(*path);
        }
        for path in (newest + 1)..=newest.saturating_add(SCAN) {
            self.on_open(connection, PathId::from(path));
        }
    }

    fn on_closed(&mut self, path: PathKey) {
        if lock(&self.state.ledger).live.get(&path) == Some(&PathKind::Member) {
            self.errand.on_path(false);
        }
        self.feed(Input::Closed { path });
    }

    /// Paths through another member lead nowhere.
    fn on_broken(&mut self, for_good: bool) {
        let Some(addr) = self.errand.on_broken(for_good) else { return };
        tracing::debug!(for_good, "no way through another member");
        let Some(connection) = self.weak.upgrade() else { return };
        let live = lock(&self.state.ledger).live.clone();
        for (path, _) in live.into_iter().filter(|(_, kind)| *kind == PathKind::Member) {
            let Some(open) = connection.path(PathId::from(path)) else { continue };
            if open.remote_address().is_ok_and(|remote| remote == addr) {
                let _last = open.close();
                self.on_closed(path);
            }
        }
    }

    fn on_open(&mut self, connection: &noq::Connection, id: PathId) {
        let Some(path) = connection.path(id) else { return };
        let Ok(remote) = path.remote_address() else { return };
        let class = self.class(&remote);
        let kind = kind_of(class);
        let rtt = path.stats().rtt;
        if kind == PathKind::Direct {
            // What worked is what to begin with next time.
            self.holds = !self.holds;
        }
        tracing::debug!(%id, ?class, ?rtt, "path open");
        lock(&self.state.ledger).live.insert(key(id), kind);
        if kind == PathKind::Member {
            self.errand.on_path(true);
        }
        self.feed(Input::Opened { path: key(id), class, rtt });
    }

    fn class(&self, remote: &SocketAddr) -> Class {
        if let Some(by_turn) = self.peers.turns.remote(remote) {
            return Class::Turn(by_turn.peer);
        }
        if let Some(by_member) = self.peers.members.remote(remote) {
            return Class::Member(by_member.carrier);
        }
        if self.peers.magic.owns(remote) {
            return Class::Relay;
        }
        let remote = canonical(*remote);
        let is_relayed = self.theirs.borrow().contains(&(Sort::Relayed, remote));
        if is_relayed { Class::Turn(remote) } else { Class::Direct(remote) }
    }

    /// Tells QUIC, and through it the peer, which candidates we have. Relayed ones are of use only
    /// while there is no better path than the gateway's.
    fn offer(&mut self) {
        let Some(connection) = self.weak.upgrade() else { return };
        if self.strategy == Strategy::AlwaysRelay {
            return;
        }
        let mut wanted = self.candidates.borrow_and_update().clone();
        wanted.retain(|it| it.kind != Kind::Relayed || self.seat.is_open());
        let has = |list: &[Candidate], addr| list.iter().any(|it| it.addr == addr);
        let mut is_lost = false;
        for Candidate { addr, kind, .. } in self.offered.iter().filter(|it| !has(&wanted, it.addr))
        {
            is_lost |= *kind != Kind::Relayed;
            // Fails when the peer speaks no multipath: then there is the relay only.
            let _failed = connection.remove_nat_traversal_address(*addr);
        }
        for Candidate { addr, .. } in wanted.iter().filter(|it| !has(&self.offered, it.addr)) {
            if let Err(error) = connection.add_nat_traversal_address(*addr) {
                tracing::debug!(%error, %addr, "candidate not offered");
            }
        }
        self.offered = wanted;
        self.tell = Some((Instant::now(), 0));
        if is_lost {
            self.feed(Input::AddressLost);
        }
        self.close_lost_turns(&connection);
        self.count_candidates();
    }

    /// Tells the peer what sorts our candidates are of.
    fn tell(&mut self, connection: &noq::Connection) {
        let Some((_, told)) = self.tell.filter(|(at, _)| *at <= Instant::now()) else { return };
        let sort = |kind| match kind {
            Kind::Host => Sort::Host,
            // To the peer both are an outer address of a NAT.
            Kind::PortMapped | Kind::ServerReflexive => Sort::ServerReflexive,
            Kind::Relayed => Sort::Relayed,
        };
        // Also those that are not checked now: a path to them may be there.
        let all = self.candidates.borrow().clone();
        let sorts: Vec<_> = all.iter().map(|it| (sort(it.kind), it.addr)).collect();
        // Fails with a peer that takes none.
        let sent = connection.send_datagram(offer::encode(&sorts));
        let next = TELL_AGAIN.get(told as usize).filter(|_| sent.is_ok());
        self.tell = next.map(|wait| (Instant::now() + *wait, told + 1));
    }

    /// The peer told which candidates it has.
    fn on_theirs(&mut self) {
        self.theirs.mark_unchanged();
        let Some(connection) = self.weak.upgrade() else { return };
        let live: Vec<_> = lock(&self.state.ledger).live.clone().into_iter().collect();
        for (path, kind) in live {
            let open = connection.path(PathId::from(path));
            let Some(remote) = open.and_then(|path| path.remote_address().ok()) else { continue };
            if kind_of(self.class(&remote)) != kind {
                self.on_open(&connection, PathId::from(path));
            }
        }
        self.count_candidates();
    }

    /// Paths through an allocation that is gone lead nowhere.
    fn close_lost_turns(&mut self, connection: &noq::Connection) {
        let live = lock(&self.state.ledger).live.clone();
        for (path, _) in live.into_iter().filter(|(_, kind)| *kind == PathKind::Turn) {
            let Some(open) = connection.path(PathId::from(path)) else { continue };
            let Ok(remote) = open.remote_address() else { continue };
            if self.peers.magic.owns(&remote) && self.peers.turns.remote(&remote).is_none() {
                let _last = open.close();
                self.feed(Input::Closed { path });
            }
        }
    }

    fn count_candidates(&mut self) {
        let Some(connection) = self.weak.upgrade() else { return };
        let remote = match self.side {
            Side::Client => connection.get_remote_nat_traversal_addresses(),
            Side::Server => Ok(Vec::new()),
        };
        let remote = remote.unwrap_or_default();
        let told: Vec<SocketAddr> = self.theirs.borrow().iter().map(|(_, addr)| *addr).collect();
        self.seat.invite(remote.iter().copied().chain(told));
        self.feed(Input::Candidates { local: self.offered.len(), remote: remote.len() });
    }

    /// Does what the selector wants; returns whether other candidates are to be offered.
    fn act(&mut self, connection: &noq::Connection) -> bool {
        while let Some(action) = self.selector.poll_action() {
            match action {
                Action::Use { path, on } => {
                    let status = if on { PathStatus::Available } else { PathStatus::Backup };
                    if let Some(path) = connection.path(PathId::from(path)) {
                        // Fails on a path that was just closed, of which an event tells.
                        let _closed = path.set_status(status);
                    }
                }
                Action::Ping { path } => {
                    if let Some(path) = connection.path(PathId::from(path)) {
                        let _closed = path.ping();
                    }
                }
                Action::Close { path } => {
                    tracing::debug!(path, "path closed here");
                    if let Some(path) = connection.path(PathId::from(path)) {
                        // The last path stays; QUIC ends the connection when it is silent.
                        let _last = path.close();
                    }
                }
                Action::Check => self.check(connection),
                Action::OpenRelay => {
                    // The path tells by an event when it is there.
                    drop(connection.open_path_ensure(self.state.berth.addr, PathStatus::Backup));
                }
                Action::GiveUp => {
                    let reason = b"the direct path is lost, and no other may be used";
                    connection.close(VarInt::from(CODE_NO_PATH), reason);
                }
            }
        }
        let Some((path, class)) = self.selector.selected() else { return false };
        let remote = match class {
            Class::Relay | Class::Member(_) => None,
            Class::Turn(addr) | Class::Direct(addr) => Some(addr),
        };
        let selected = (path, (kind_of(class), remote));
        self.state.selected.send_if_modified(|old| std::mem::replace(old, selected) != selected);
        self.errand.on_selected(class);
        self.seat.on_selected(class)
    }

    /// Begins a round. Our first packets wait until the peer, which hears of the round over the
    /// relay, sends its own: some NATs take the address for good that an early one comes from. If it
    /// is ours that minds, that is wrong, so the next round does not wait.
    fn check(&mut self, connection: &noq::Connection) {
        let live = lock(&self.state.ledger).live.clone();
        let relay = live.into_iter().find(|(_, kind)| *kind == PathKind::Relayed);
        let relay_rtt = relay.and_then(|(path, _)| connection.rtt(PathId::from(path)));
        let relay_rtt = relay_rtt.unwrap_or_default();
        let wait = (relay_rtt / 2).clamp(GATE_MIN, GATE_MAX);
        let holds = self.holds;
        self.holds = !holds;
        if holds && self.gate.is_none() {
            let mut addrs = connection.get_remote_nat_traversal_addresses().unwrap_or_default();
            let in_use = match self.selector.selected() {
                Some((_, Class::Direct(addr))) => Some(addr),
                _ => None,
            };
            addrs.retain(|addr| Some(canonical(*addr)) != in_use);
            let gate = self.peers.magic.close_gate(addrs);
            self.gate = gate.map(|gate| (gate, Instant::now() + wait));
        }
        match connection.initiate_nat_traversal_round() {
            Ok(probed) => tracing::debug!(?probed, ?wait, "round of checks"),
            Err(error) => tracing::debug!(%error, "no round of checks"),
        }
    }

    async fn open_gate(&mut self) {
        let Some((gate, _)) = self.gate.take() else { return };
        for (to, packet) in self.peers.magic.open_gate(gate) {
            send(&self.peers, to, &packet).await;
        }
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        if let Some((gate, _)) = self.gate.take() {
            drop(self.peers.magic.open_gate(gate));
        }
    }
}

/// Sends a packet beside QUIC.
pub(super) async fn send(peers: &Peers, to: SocketAddr, packet: &Bytes) {
    let destination = super::magic::mapped(to);
    let transmit =
        Transmit { destination, ecn: None, contents: packet, segment_size: None, src_ip: None };
    let sent = poll_fn(|cx| lock(&peers.sender).as_mut().poll_send(&transmit, cx)).await;
    if let Err(error) = sent {
        tracing::trace!(%error, %to, "packet not sent");
    }
}

const fn kind_of(class: Class) -> PathKind {
    match class {
        Class::Relay => PathKind::Relayed,
        Class::Member(_) => PathKind::Member,
        Class::Turn(_) => PathKind::Turn,
        Class::Direct(_) => PathKind::Direct,
    }
}

fn key(id: PathId) -> PathKey {
    // QUIC keeps path ids in 32 bits, and shows them as text only.
    id.to_string().parse().unwrap_or(PathKey::MAX)
}

/// Frames that the peer must acknowledge. Probes after a timeout are `IMMEDIATE_ACK`s: they tell of something
/// that was sent just before the last sign of life and is under way still.
fn eliciting(stats: &PathStats) -> u64 {
    let frames = &stats.frame_tx;
    frames.stream
        + frames.datagram
        + frames.ping
        + frames.immediate_ack
        + frames.crypto
        + frames.max_data
        + frames.max_stream_data
        + frames.max_streams_bidi
        + frames.max_streams_uni
        + frames.new_connection_id
        + frames.path_new_connection_id
        + frames.retire_connection_id
        + frames.path_retire_connection_id
        + frames.reset_stream
        + frames.stop_sending
        + frames.stream_data_blocked
        + frames.data_blocked
        + frames.path_abandon
        + frames.path_status_available
        + frames.path_status_backup
        + frames.observed_addr
        + frames.add_address
        + frames.remove_address
        + frames.reach_out
}

pub(super) async fn next<S: Stream + Unpin>(stream: &mut S) -> Option<S::Item> {
    poll_fn(|cx| Pin::new(&mut *stream).poll_next(cx)).await
}

/// Sleeps until then; for ever without a moment.
async fn sleep(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
