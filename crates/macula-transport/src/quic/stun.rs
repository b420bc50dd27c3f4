//! STUN servers beside the gateway: asked from the socket that QUIC uses, so that the answer is true
//! of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use macula_nat::stun::{Asker, HEADER_BYTES, Kind, SERVERS_MAX, classify};
use macula_nat::uri::StunUri;
use macula_proto::Time;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::{Peers, Reflexive, canonical, paths};

/// Answers that may wait; those beyond are dropped as junk.
const ANSWERS_MAX: usize = 64;
/// Larger ones are no answers of STUN servers.
const ANSWER_BYTES_MAX: usize = 1_500;
/// Names are looked up again after this.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(600);
/// Whether there are links still is looked at so often.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// Takes STUN out of what comes in by the socket while somebody asks.
#[derive(Debug)]
pub(super) struct Tap {
    is_open: Arc<AtomicBool>,
    answers: mpsc::Sender<(SocketAddr, Bytes)>,
}

impl Tap {
    /// Whether a datagram that QUIC does not want was taken.
    pub(super) fn take(&self, from: SocketAddr, datagram: &[u8]) -> bool {
        let fits = (HEADER_BYTES..=ANSWER_BYTES_MAX).contains(&datagram.len());
        fits && self.is_open.load(Ordering::Relaxed)
            && classify(datagram) == Kind::Stun
            && self.answers.try_send((from, Bytes::copy_from_slice(datagram))).is_ok()
    }
}

/// What is asked, and the other end of the tap.
#[derive(Debug)]
pub(super) struct Stun {
    servers: Vec<StunUri>,
    is_open: Arc<AtomicBool>,
    answers: tokio::sync::Mutex<mpsc::Receiver<(SocketAddr, Bytes)>>,
    ignored: AtomicU64,
}

impl Stun {
    pub(super) fn new(servers: Vec<StunUri>) -> (Self, Tap) {
        let (sender, receiver) = mpsc::channel(ANSWERS_MAX);
        let is_open = Arc::new(AtomicBool::new(false));
        let tap = Tap { is_open: Arc::clone(&is_open), answers: sender };
        let answers = tokio::sync::Mutex::new(receiver);
        (Self { servers, is_open, answers, ignored: AtomicU64::new(0) }, tap)
    }

    /// STUN packets that answered nothing.
    pub(super) fn ignored(&self) -> u64 {
        self.ignored.load(Ordering::Relaxed)
    }

    pub(super) fn has_servers(&self) -> bool {
        !self.servers.is_empty()
    }

    async fn resolve(&self) -> Vec<SocketAddr> {
        let mut all = Vec::new();
        for StunUri { host, port } in &self.servers {
            match tokio::net::lookup_host((host.as_str(), *port)).await {
                // One of each family.
                Ok(found) => {
                    let found: Vec<SocketAddr> = found.map(canonical).collect();
                    for is_v6 in [false, true] {
                        all.extend(found.iter().find(|addr| addr.is_ipv6() == is_v6));
                    }
                }
                Err(error) => tracing::debug!(%error, host, "STUN server"),
            }
        }
        all.truncate(SERVERS_MAX);
        all
    }
}

/// Asks while there are links to peers.
pub(super) async fn run(peers: Arc<Peers>) {
    let stun = &peers.stun;
    // One at a time: the one before has not seen yet that it has ended.
    let mut answers = stun.answers.lock().await;
    while answers.try_recv().is_ok() {}
    stun.is_open.store(true, Ordering::Relaxed);
    ask(&peers, &mut answers).await;
    stun.is_open.store(false, Ordering::Relaxed);
    peers.set_reflexive(Reflexive::Stun, &[], false);
}

async fn ask(peers: &Peers, answers: &mut mpsc::Receiver<(SocketAddr, Bytes)>) {
    let mut seed = [0; 32];
    if SystemRandom::new().fill(&mut seed).is_err() {
        return;
    }
    let mut asker = Asker::new(&seed);
    let started = Instant::now();
    let now = || Time::START + started.elapsed();
    let mut resolve_at = started;
    let mut is_near = false;
    while peers.candidates.receiver_count() > 0 {
        if resolve_at <= Instant::now() {
            let servers = peers.stun.resolve().await;
            is_near = servers.iter().any(|server| server.ip().is_loopback());
            asker.set_servers(now(), &servers);
            resolve_at = Instant::now() + RESOLVE_INTERVAL;
        }
        while let Some((to, packet)) = asker.poll_transmit() {
            paths::send(peers, to, &packet.into()).await;
        }
        let due = asker.poll_timeout().map(|at| started + (at - Time::START));
        let look = Instant::now() + LOOK_INTERVAL;
        let wake = due.map_or(look, |due| due.min(look));
        let before = asker.mapped();
        tokio::select! {
            answer = answers.recv() => {
                let Some((from, packet)) = answer else { return };
                asker.handle_packet(now(), from, &packet);
                peers.stun.ignored.store(asker.ignored(), Ordering::Relaxed);
            }
            () = sleep_until(wake) => asker.handle_timeout(now()),
        }
        let mapped = asker.mapped();
        if mapped != before {
            peers.set_reflexive(Reflexive::Stun, &mapped, is_near);
        }
    }
}
