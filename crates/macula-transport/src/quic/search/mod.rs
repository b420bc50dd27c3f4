//! Port search on links between peers (docs/protocol §9.8): when one is made, and what becomes of
//! the way that it finds.
//!
//! A search stands beside [`super::paths`]: it only brings packets of the peer's address through,
//! and lets the client open a path to that address. From there on it is a direct path as any other.

mod facts;
mod sockets;
mod tap;

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use macula_nat::path::{Side, Strategy};
use macula_nat::report::StunServer;
use macula_nat::search::{
    Budget, Config, End, Facts, No, NotNow, Role, Signal, Stats, Token, roles, tuples_max,
};
use macula_proto::Time;
use macula_proto::id::EndpointId;
use noq::PathStatus;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep, timeout};

use self::sockets::Won;
pub(super) use self::tap::Tap;
use super::Peers;
use super::magic::mapped;
use super::paths::{PathKind, PathState, Selected};
use crate::sync::lock;

/// Signals of one link that may wait.
pub(super) const SIGNALS_MAX: usize = 8;
/// Plain hole punching has so long before a search is thought of, ...
const PLAIN_FIRST: Duration = Duration::from_millis(800);
/// ... and when a direct path was lost, which may come back.
const PLAIN_AGAIN: Duration = Duration::from_secs(3);
/// An offer that gets no answer is repeated so often, at this interval.
const OFFERS: u32 = 5;
const OFFER_EVERY: Duration = Duration::from_millis(400);
/// Where nothing is known of the own NAT it is asked again after this.
const UNKNOWN_PAUSE: Duration = Duration::from_secs(60);
/// After [`NotNow::Busy`] and [`NotNow::Spent`], and as much again at random.
const BUSY_PAUSE: Duration = Duration::from_secs(3);
/// The side with many sockets begins so much later than the other, which some NATs need.
const LATER: Duration = Duration::from_millis(50);
/// QUIC has so long to use a way that was found.
const USE_TIMEOUT: Duration = Duration::from_secs(4);
/// A way that is not used any more is kept for what is still under way.
const LINGER: Duration = Duration::from_secs(2);

/// What the searches of an endpoint share.
#[derive(Debug)]
pub(super) struct Searches {
    /// Whether there are any.
    enabled: bool,
    started: Instant,
    budget: Mutex<Budget>,
    pub(super) tap: Arc<Tap>,
    /// STUN servers of the gateway; `None`: nobody has told yet.
    pub(super) servers: watch::Sender<Option<Vec<StunServer>>>,
    /// Somebody wants to know them.
    pub(super) wanted: Notify,
    known: tokio::sync::Mutex<Option<facts::Known>>,
}

impl Searches {
    pub(super) fn new(enabled: bool, tap: Arc<Tap>) -> Self {
        Self {
            enabled,
            started: Instant::now(),
            budget: Mutex::new(Budget::new(Time::START)),
            tap,
            servers: watch::Sender::default(),
            wanted: Notify::new(),
            known: tokio::sync::Mutex::default(),
        }
    }

    pub(super) fn stats(&self) -> Stats {
        lock(&self.budget).stats()
    }

    fn now(&self) -> Time {
        Time::START + self.started.elapsed()
    }
}

/// The right to search; ends the search in the books when dropped.
#[derive(Debug)]
struct Permit {
    peers: Arc<Peers>,
    used: u16,
    end: End,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let searches = &self.peers.searches;
        lock(&searches.budget).end(searches.now(), self.used, self.end);
    }
}

/// Runs the searches of a link until it ends. Does not keep the connection alive.
pub(super) fn run(
    connection: &noq::Connection,
    peer: EndpointId,
    side: Side,
    state: Arc<PathState>,
    peers: Arc<Peers>,
    signals: mpsc::Receiver<Bytes>,
) -> impl Future<Output = ()> + Send + 'static {
    let (weak, closed) = (connection.weak_handle(), connection.on_closed());
    let scout = Scout { weak, peer, state, peers, signals };
    async move {
        let scouting = async {
            match side {
                Side::Client => scout.lead().await,
                Side::Server => scout.follow().await,
            }
        };
        tokio::select! {
            biased;
            _ended = closed => {}
            () = scouting => {}
        }
    }
}

struct Scout {
    weak: noq::WeakConnectionHandle,
    peer: EndpointId,
    state: Arc<PathState>,
    peers: Arc<Peers>,
    signals: mpsc::Receiver<Bytes>,
}

type Watch = watch::Receiver<(u32, Selected)>;

impl Scout {
    fn may_search(&self) -> bool {
        self.peers.searches.enabled && self.peers.strategy != Strategy::AlwaysRelay
    }

    /// The client's side: searches whenever plain punching has brought nothing for a while.
    async fn lead(mut self) {
        if !self.may_search() {
            return;
        }
        let mut watch = self.state.watch();
        let mut patience = PLAIN_FIRST;
        loop {
            if watch.wait_for(|(_, (kind, _))| *kind != PathKind::Direct).await.is_err() {
                return;
            }
            if timeout(patience, wait_for(&mut watch, PathKind::Direct)).await.is_ok() {
                patience = PLAIN_AGAIN;
                continue;
            }
            let won = tokio::select! {
                biased;
                _direct = wait_for(&mut watch, PathKind::Direct) => None,
                won = self.attempt() => won,
            };
            if let Some(won) = won {
                if let Some(connection) = self.weak.upgrade() {
                    // An event tells when it is open.
                    let path = mapped(won.remote);
                    drop(connection.open_path_ensure(path, PathStatus::Backup));
                }
                self.keep(won).await;
                patience = PLAIN_AGAIN;
            }
        }
    }

    /// One attempt; takes as long as it has to wait for.
    async fn attempt(&mut self) -> Option<Won> {
        let searches = &self.peers.searches;
        let pause = lock(&searches.budget).pause(searches.now(), &self.peer);
        sleep(pause).await;
        let Some(own) = facts::facts(&self.peers).await else {
            sleep(UNKNOWN_PAUSE).await;
            return None;
        };
        let (Some(token), Some(seed)) = (random(), random()) else { return None };
        let mut permit = match self.begin(&own) {
            Ok(permit) => permit,
            Err(NotNow::Pause(_)) => return None,
            Err(NotNow::Busy | NotNow::Spent) => {
                sleep(BUSY_PAUSE + jitter(&token)).await;
                return None;
            }
        };
        let config = match self.ask(token, own).await {
            Some(Signal::Answer(_, theirs)) => config(token, seed, &own, &theirs),
            Some(Signal::No(_, No::NotNow)) => {
                permit.end = End::PutOff;
                None
            }
            _ => None,
        };
        let mut config = config?;
        config.wait = if config.role == Role::Many { LATER } else { Duration::ZERO };
        search(&self.peers, config, permit).await
    }

    fn begin(&self, own: &Facts) -> Result<Permit, NotNow> {
        let searches = &self.peers.searches;
        let tuples = tuples_max(own.behaviour);
        lock(&searches.budget).begin(searches.now(), self.peer, tuples)?;
        Ok(Permit { peers: Arc::clone(&self.peers), used: 0, end: End::Failed })
    }

    /// Offers a search until there is an answer.
    async fn ask(&mut self, token: Token, own: Facts) -> Option<Signal> {
        for _ in 0..OFFERS {
            self.say(&Signal::Offer(token, own));
            let answer = timeout(OFFER_EVERY, async {
                loop {
                    match self.hear().await {
                        Some(Signal::Answer(of, _) | Signal::No(of, _)) if of != token => {}
                        Some(Signal::Offer(..)) => {}
                        answer => return answer,
                    }
                }
            });
            if let Ok(answer) = answer.await {
                return answer;
            }
        }
        None
    }

    /// The server's side: searches when asked.
    async fn follow(mut self) {
        while let Some(signal) = self.hear().await {
            let Signal::Offer(token, theirs) = signal else { continue };
            let (config, permit, own) = match self.consider(token, &theirs).await {
                Ok(agreed) => agreed,
                Err(no) => {
                    self.say(&Signal::No(token, no));
                    continue;
                }
            };
            let answer = Signal::Answer(token, own);
            self.say(&answer);
            let peers = Arc::clone(&self.peers);
            let won = tokio::select! {
                won = search(&peers, config, permit) => won,
                () = self.repeat(&answer) => return,
            };
            if let Some(won) = won {
                self.keep(won).await;
            }
        }
    }

    async fn consider(&self, token: Token, it: &Facts) -> Result<(Config, Permit, Facts), No> {
        if !self.may_search() {
            return Err(No::Never);
        }
        let own = facts::facts(&self.peers).await.ok_or(No::Unknown)?;
        let seed = random().ok_or(No::NotNow)?;
        let mut config = config(token, seed, &own, it).ok_or(No::Useless)?;
        if config.role == Role::Many {
            config.wait = self.relay_rtt() + LATER;
        }
        let permit = self.begin(&own).map_err(|_| No::NotNow)?;
        Ok((config, permit, own))
    }

    /// Gives the same answer to the same offer until the link ends.
    async fn repeat(&mut self, answer: &Signal) {
        let Signal::Answer(token, _) = answer else { return };
        while let Some(signal) = self.hear().await {
            if matches!(&signal, Signal::Offer(of, _) if of == token) {
                self.say(answer);
            }
        }
    }

    /// Keeps a way as long as it is used.
    async fn keep(&self, won: Won) {
        let mut watch = self.state.watch();
        let is_used = |selected: &(u32, Selected)| selected.1.1 == Some(won.remote);
        let used = timeout(USE_TIMEOUT, watch.wait_for(is_used)).await.is_ok();
        if used {
            // An error means that the link has ended.
            watch.wait_for(|selected| !is_used(selected)).await.ok();
        }
        let searches = &self.peers.searches;
        lock(&searches.budget).lost(searches.now(), &self.peer);
        sleep(LINGER).await;
    }

    fn relay_rtt(&self) -> Duration {
        let connection = self.weak.upgrade();
        connection.and_then(|it| it.rtt(self.state.path_id())).unwrap_or_default()
    }

    fn say(&self, signal: &Signal) {
        let Some(connection) = self.weak.upgrade() else { return };
        // Fails where the peer takes none: then there is no search.
        if let Err(error) = connection.send_datagram(signal.encode().into()) {
            tracing::debug!(%error, "no signal to the peer");
        }
    }

    /// The next signal; `None`: the link has ended.
    async fn hear(&mut self) -> Option<Signal> {
        loop {
            let bytes = self.signals.recv().await?;
            if let Some(signal) = Signal::decode(&bytes) {
                return Some(signal);
            }
        }
    }
}

/// Runs one search.
async fn search(peers: &Arc<Peers>, config: Config, mut permit: Permit) -> Option<Won> {
    tracing::debug!(role = ?config.role, peer = %config.peer, "port search");
    // One that is dropped on its way is not needed any more.
    permit.end = End::PutOff;
    let won = sockets::search(peers, config, &mut permit).await;
    permit.end = if won.is_some() { End::Found } else { End::Failed };
    tracing::debug!(?won, used = permit.used, "port search ended");
    won
}

/// What to search for, if that may bring something and the peer names a place that may be probed.
fn config(token: Token, seed: [u8; 32], own: &Facts, theirs: &Facts) -> Option<Config> {
    let role = roles(own, theirs)?;
    theirs.is_fit().then(|| Config::new(role, token, own, theirs, seed))
}

/// `None`: the link has ended.
async fn wait_for(watch: &mut Watch, wanted: PathKind) -> Option<()> {
    watch.wait_for(|(_, (kind, _))| *kind == wanted).await.ok().map(|_| ())
}

fn random<const N: usize>() -> Option<[u8; N]> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).ok().map(|()| bytes)
}

/// Up to [`BUSY_PAUSE`].
fn jitter(random: &Token) -> Duration {
    let [first, ..] = random;
    BUSY_PAUSE * u32::from(*first) / 256
}
