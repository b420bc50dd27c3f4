//! Runs one allocation after another while links want one.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use macula_nat::path::is_private;
use macula_nat::turn::{Allocation, AllocationConfig, Event};
use macula_nat::uri::TurnUri;
use macula_proto::Time;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::super::Peers;
use super::super::magic::detour::{Detour, Way};
use super::wire::Wire;
use super::{Remote, TurnServer, TurnStatus, offer};
use crate::sync::lock;

/// An allocation that nobody wants is given back after this.
const LINGER: Duration = Duration::from_secs(30);
/// The next attempt after one that failed; doubles each time.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// Packets that may wait to be wrapped; those beyond are dropped.
const OUT_MAX: usize = 512;
/// Packets wrapped before anything else is looked at.
const BURST_MAX: usize = 32;
/// Peer addresses that one allocation knows; packets of more are dropped.
const REMOTES_MAX: usize = 256;
/// An address that sent nothing for so long is forgotten: longer than a path lives in silence.
const REMOTE_IDLE: Duration = Duration::from_secs(60);
/// Longest packet that is sent this way, so that it fits a common MTU with TURN's header; path MTU
/// discovery finds it.
const PACKET_BYTES_MAX: usize = 1_400;
/// Largest datagram of a server that is read whole.
const BUFFER_BYTES: usize = 65_536;
/// Timers are not looked at more often.
const STEP_MIN: Duration = Duration::from_millis(1);
/// The server's last answer is waited for so long at most; requests leave with some space between
/// them.
const GIVE_BACK_TIMEOUT: Duration = Duration::from_millis(500);
const GIVE_BACK_STEP: Duration = Duration::from_millis(10);
/// RFC 8656 §7.3: address family not supported.
const NO_SUCH_FAMILY: u16 = 440;

/// Keeps an allocation at one of the servers as long as links want one.
pub(super) async fn run(peers: Arc<Peers>, slot: usize) {
    let turns = &peers.turns;
    let Some(state) = turns.slots.get(slot) else { return };
    loop {
        serve_links(&peers, slot).await;
        state.runs.store(false, Ordering::Release);
        // A link that wanted one meanwhile may have seen that somebody runs.
        let is_wanted = *turns.demand.borrow() > 0 && slot < lock(&turns.servers).len();
        let ends = turns.closing.is_cancelled() || !is_wanted;
        if ends || state.runs.swap(true, Ordering::AcqRel) {
            return;
        }
    }
}

async fn serve_links(peers: &Arc<Peers>, slot: usize) {
    let turns = &peers.turns;
    let mut demand = turns.demand.subscribe();
    let mut attempt = 0;
    let mut wait = RETRY_FIRST;
    while !turns.closing.is_cancelled() {
        let coming = tokio::time::timeout(LINGER, demand.wait_for(|demand| *demand > 0));
        let is_wanted = coming.await.is_ok_and(|demand| demand.is_ok());
        let servers = lock(&turns.servers).clone();
        let server = servers.get((slot + attempt) % servers.len().max(1));
        let Some(server) = server.filter(|_| is_wanted && slot < servers.len()) else { break };
        let began = Instant::now();
        let mut served = serve(peers, slot, server, false).await;
        if served == Err(Failure::Refused(NO_SUCH_FAMILY)) {
            served = serve(peers, slot, server, true).await;
        }
        let error = served.err().map(|failure| failure.to_string());
        let is_lost = error.is_some();
        if let Some(error) = &error {
            tracing::debug!(?server, error, "TURN server");
        }
        turns.note(slot, TurnStatus { server: server.uri.clone(), relayed: None, error });
        offer(peers);
        if !is_lost {
            break;
        }
        if began.elapsed() > RETRY_MAX {
            wait = RETRY_FIRST;
        }
        attempt += super::SLOTS;
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = turns.closing.cancelled() => {}
        }
        wait = (wait * 2).min(RETRY_MAX);
    }
}

/// Why there is no allocation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Failure {
    #[error("cannot connect to {uri}: {reason}")]
    Connect { uri: TurnUri, reason: String },
    #[error("{}", refusal(*.0))]
    Refused(u16),
    #[error("no answer, or the allocation was lost")]
    Lost,
    #[error("the server closed the connection: {0}")]
    Closed(String),
}

fn refusal(code: u16) -> String {
    let what = match code {
        401 => "username or password are wrong",
        403 => "forbidden",
        420 => "the server does not understand the request",
        437 | 438 => "the allocation does not fit",
        440 => "no relayed address of this family",
        441 => "wrong credentials for this allocation",
        486 => "the user's quota of allocations is reached",
        508 => "the server has no more room",
        _ => "refused",
    };
    format!("the TURN server answered {code}: {what}")
}

/// To a peer by way of an allocation.
#[derive(Debug)]
struct Via {
    peer: SocketAddr,
    out: mpsc::Sender<(SocketAddr, Bytes)>,
}

impl Way for Via {
    fn send(&self, _: SocketAddr, contents: &[u8], segment: usize) -> u64 {
        let mut dropped = 0;
        for packet in contents.chunks(segment.max(1)) {
            let fits = packet.len() <= PACKET_BYTES_MAX;
            let packet = || (self.peer, Bytes::copy_from_slice(packet));
            if !fits || self.out.try_send(packet()).is_err() {
                dropped += 1;
            }
        }
        dropped
    }
}

/// A peer's address that packets came from.
struct Known {
    detour: Detour,
    heard: Instant,
}

/// An allocation, and whom it knows.
struct Session {
    peers: Arc<Peers>,
    slot: usize,
    uri: TurnUri,
    wire: Wire,
    allocation: Allocation,
    started: Instant,
    known: BTreeMap<SocketAddr, Known>,
    out: mpsc::Sender<(SocketAddr, Bytes)>,
}

/// Allocates and serves until nobody wants it any more.
async fn serve(
    peers: &Arc<Peers>,
    slot: usize,
    server: &TurnServer,
    is_ipv6: bool,
) -> Result<(), Failure> {
    let uri = server.uri.clone();
    let failed = |error: std::io::Error| Failure::Connect { uri, reason: error.to_string() };
    let wire = Wire::connect(&server.uri, &peers.turns.crew).await.map_err(failed)?;
    if let Some(state) = peers.turns.slots.get(slot) {
        state.is_near.store(wire.server.ip().is_loopback(), Ordering::Relaxed);
    }
    let config = AllocationConfig {
        is_stream: wire.is_stream(),
        local: wire.local,
        server: wire.server,
        username: server.username.clone(),
        password: server.password.clone(),
        is_ipv6,
    };
    let (out, mut outgoing) = mpsc::channel(OUT_MAX);
    let mut session = Session {
        allocation: Allocation::new(Time::START, config),
        peers: Arc::clone(peers),
        slot,
        uri: server.uri.clone(),
        wire,
        started: Instant::now(),
        known: BTreeMap::new(),
        out,
    };
    let ended = session.run(&mut outgoing).await;
    session.forget(|_| false);
    ended
}

impl Session {
    async fn run(
        &mut self,
        outgoing: &mut mpsc::Receiver<(SocketAddr, Bytes)>,
    ) -> Result<(), Failure> {
        let peers = Arc::clone(&self.peers);
        let (mut demand, mut guests) =
            (peers.turns.demand.subscribe(), peers.turns.guests.subscribe());
        let mut idle_since = None;
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            self.handle_events()?;
            self.flush();
            let is_wanted = *demand.borrow_and_update() > 0;
            idle_since = if is_wanted { None } else { idle_since.or_else(|| Some(Instant::now())) };
            let idle_end = idle_since.map(|since| since + LINGER);
            let due = self.allocation.poll_timeout().map(|at| self.started + (at - Time::START));
            let next_look = Instant::now() + REMOTE_IDLE;
            let wake = [due, idle_end].into_iter().flatten().fold(next_look, Instant::min);
            let wake = wake.max(Instant::now() + STEP_MIN);
            tokio::select! {
                biased;
                () = peers.turns.closing.cancelled() => {
                    self.give_back().await;
                    return Ok(());
                }
                received = self.wire.receive(&mut buffer) => {
                    let length = received.map_err(|error| Failure::Closed(error.to_string()))?;
                    let bytes = buffer.get(..length).unwrap_or_default();
                    let server = self.wire.server;
                    self.allocation.handle_input(self.now(), server, bytes);
                }
                Some(packet) = outgoing.recv() => {
                    self.send(packet);
                    for _ in 1..BURST_MAX {
                        let Ok(packet) = outgoing.try_recv() else { break };
                        self.send(packet);
                    }
                }
                _ = demand.changed() => {}
                _ = guests.changed() => {
                    guests.mark_unchanged();
                    self.permit();
                }
                () = sleep_until(wake) => {
                    if idle_end.is_some_and(|end| end <= Instant::now()) {
                        self.give_back().await;
                        return Ok(());
                    }
                    self.allocation.handle_timeout(self.now());
                    let now = Instant::now();
                    self.forget(|known| now < known.heard + REMOTE_IDLE);
                }
            }
        }
    }

    fn now(&self) -> Time {
        Time::START + self.started.elapsed()
    }

    fn handle_events(&mut self) -> Result<(), Failure> {
        while let Some(event) = self.allocation.poll_event() {
            match event {
                Event::Allocated(relayed) => {
                    tracing::debug!(server = %self.uri, %relayed, "TURN allocation");
                    self.permit();
                    let server = self.uri.clone();
                    let status = TurnStatus { server, relayed: Some(relayed), error: None };
                    self.peers.turns.note(self.slot, status);
                    offer(&self.peers);
                }
                Event::Failed => {
                    return Err(self.allocation.refusal().map_or(Failure::Lost, Failure::Refused));
                }
                Event::Forbidden(ip) => {
                    tracing::debug!(server = %self.uri, %ip, "the TURN server does not let it in");
                }
                Event::Permitted(_) => {}
                Event::Data { peer, packet } => self.receive(peer, packet.into()),
            }
        }
        Ok(())
    }

    /// Sends the requests that wait.
    fn flush(&mut self) {
        while let Some(bytes) = self.allocation.poll_transmit(self.now()) {
            // Repeated by the library on UDP; on a stream there is room kept for them.
            self.wire.send(bytes, false);
        }
    }

    fn send(&mut self, (peer, packet): (SocketAddr, Bytes)) {
        let wrapped = self.allocation.send(self.now(), peer, &packet);
        if !wrapped.is_some_and(|bytes| self.wire.send(bytes, true)) {
            self.peers.turns.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A packet of a peer; at its first from an address that becomes a detour.
    fn receive(&mut self, peer: SocketAddr, packet: Bytes) {
        if let Some(known) = self.known.get_mut(&peer) {
            known.heard = Instant::now();
            return known.detour.receive(packet);
        }
        let dropped: &AtomicU64 = &self.peers.turns.dropped;
        let way = Arc::new(Via { peer, out: self.out.clone() });
        let has_room = self.known.len() < REMOTES_MAX;
        let detour = has_room.then(|| self.peers.magic.detour(None, way)).flatten();
        let Some(detour) = detour else {
            dropped.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let remote = Remote { peer, server: self.wire.server };
        lock(&self.peers.turns.remotes).insert(detour.addr(), remote);
        detour.receive(packet);
        self.known.insert(peer, Known { detour, heard: Instant::now() });
    }

    /// Lets in whom links want let in. Addresses of private networks mean something to a server in
    /// one only.
    fn permit(&mut self) {
        let guests: Vec<_> = self.peers.turns.guests.borrow().keys().copied().collect();
        let is_inside = is_private(self.wire.server);
        for ip in guests {
            if is_inside || !is_private(SocketAddr::new(ip, 0)) {
                let now = self.now();
                self.allocation.permit(now, ip);
            }
        }
    }

    fn forget(&mut self, keep: impl Fn(&Known) -> bool) {
        let mut remotes = lock(&self.peers.turns.remotes);
        self.known.retain(|_, known| {
            let keeps = keep(known);
            if !keeps {
                remotes.remove(&known.detour.addr());
            }
            keeps
        });
    }

    /// Tells the server that it is over; what was asked before goes first, and not all at once.
    async fn give_back(&mut self) {
        self.allocation.close(self.now());
        let end = Instant::now() + GIVE_BACK_TIMEOUT;
        let mut buffer = vec![0; BUFFER_BYTES];
        while Instant::now() < end && self.allocation.poll_event() != Some(Event::Failed) {
            self.flush();
            let receiving = self.wire.receive(&mut buffer);
            match tokio::time::timeout(GIVE_BACK_STEP, receiving).await {
                Ok(Ok(length)) => {
                    let bytes = buffer.get(..length).unwrap_or_default();
                    self.allocation.handle_input(self.now(), self.wire.server, bytes);
                }
                Ok(Err(_closed)) => return,
                Err(_elapsed) => self.allocation.handle_timeout(self.now()),
            }
        }
    }
}
