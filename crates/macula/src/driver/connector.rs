//! Links to gateways come from here: dialling, failing over, dialling again; and, on a router,
//! accepting.
//!
//! By UDP if it can be had: where it does not pass, a gateway is reached by a tunnel, over TLS and TCP,
//! and left for UDP as soon as that passes again.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use macula_proto::EndpointId;
use macula_proto::wire::message::CloseCode;
use macula_transport::{Backoff, Connected, DialError, Endpoint, Target};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};

use super::{LinkEnd, NewLink, Origin};
use crate::error::WrongKey;
use crate::event::Event;
use crate::gateway::{GatewayAddress, KnownGateways, Via};
use crate::shared::Shared;

/// What the first attempt at a gateway may take; doubles with every failure. Short, because a
/// gateway that restarts does not hear what was sent before it was back.
const ATTEMPT_TIMEOUT_FIRST: Duration = Duration::from_secs(1);
/// No attempt takes longer than this.
const ATTEMPT_TIMEOUT_MAX: Duration = Duration::from_secs(10);
/// A tunnel is tried as well when UDP has brought no answer for so long.
const TUNNEL_AFTER: Duration = Duration::from_millis(600);
/// A tunnel takes some round trips more than UDP, so an attempt gets this at least.
const TUNNEL_TIMEOUT_MIN: Duration = Duration::from_secs(4);
/// Where a tunnel was needed, it is tried at once for so long.
const UDP_BLOCKED_FOR: Duration = Duration::from_secs(600);
/// On a tunnel, UDP is tried again after this; the pause doubles.
const UDP_RETRY_FIRST: Duration = Duration::from_secs(5);
const UDP_RETRY_MAX: Duration = Duration::from_secs(600);
/// What such an attempt may take.
const UDP_RETRY_TIMEOUT: Duration = Duration::from_secs(3);
/// Beside the gateway's own port number: the one that firewalls pass.
const WEB_PORT: u16 = 443;
/// A link that lived so long has proved to work.
const PROVEN_AFTER: Duration = Duration::from_secs(2);

/// How the first connection goes, for whoever waits for the start.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress {
    /// What the last failed attempt said.
    pub(crate) last_failure: Option<String>,
    /// No gateway is left to try.
    pub(crate) is_hopeless: Option<WrongKey>,
}

/// Keeps one link to one of several gateways alive.
#[derive(Debug)]
pub(crate) struct Connector {
    pub(crate) shared: Arc<Shared>,
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) gateways: Vec<GatewayAddress>,
    pub(crate) known: KnownGateways,
    pub(crate) links: mpsc::Sender<NewLink>,
    pub(crate) progress: watch::Sender<Progress>,
    pub(crate) seed: u64,
    pub(crate) via: Via,
}

/// A gateway in the list.
#[derive(Debug)]
struct Candidate {
    address: GatewayAddress,
    /// It asked not to be dialled before this.
    not_before: Option<Instant>,
    /// It has shown a wrong key: never again.
    is_barred: bool,
    /// It was reached by a tunnel only; holds until then.
    udp_blocked_until: Option<Instant>,
    /// The next pause before UDP is tried again.
    udp_pause: Duration,
}

/// Why an attempt failed.
enum AttemptError {
    WrongKey(WrongKey),
    Failed(String),
}

impl Connector {
    /// Runs until the endpoint closes or every gateway has shown a wrong key.
    pub(crate) async fn run(self) {
        let stopping = self.shared.stopping.clone();
        stopping.run_until_cancelled(self.keep_connected()).await;
    }

    async fn keep_connected(mut self) {
        let mut candidates: Vec<Candidate> =
            std::mem::take(&mut self.gateways).into_iter().map(Candidate::new).collect();
        let mut backoff = Backoff::new(self.seed);
        let mut attempt_timeout = ATTEMPT_TIMEOUT_FIRST;
        let mut next = 0;
        loop {
            let Some(index) = choose(&candidates, next) else { return };
            let Some(candidate) = candidates.get_mut(index) else { return };
            if let Some(not_before) = candidate.not_before.take() {
                tokio::time::sleep_until(not_before).await;
            }
            match self.connect(candidate, attempt_timeout).await {
                Ok(connected) => {
                    let Some(end) = self.hold(connected, candidate).await else {
                        return;
                    };
                    if end.was_ready && end.lived >= PROVEN_AFTER {
                        backoff.reset();
                        attempt_timeout = ATTEMPT_TIMEOUT_FIRST;
                    }
                    // One that goes down on purpose is left alone; another is tried at once.
                    candidate.not_before = end
                        .reconnect_in
                        .filter(|reconnect_in| !reconnect_in.is_zero())
                        .map(|reconnect_in| Instant::now() + reconnect_in);
                    let is_leaving = candidate.not_before.is_some();
                    let gateway = candidate.address.to_string();
                    next =
                        if end.was_ready && end.reconnect_in.is_none() { index } else { index + 1 };
                    let retry_in = if is_leaving { Duration::ZERO } else { backoff.next_delay() };
                    if !end.was_ready {
                        self.fail(gateway, end.reason, retry_in);
                    }
                    tokio::time::sleep(retry_in).await;
                }
                Err(AttemptError::WrongKey(wrong)) => {
                    tracing::error!(%wrong, "a gateway is not who it should be");
                    candidate.is_barred = true;
                    self.shared.emit(Event::WrongKey(wrong.clone()));
                    self.note_failure(wrong.to_string());
                    if candidates.iter().all(|candidate| candidate.is_barred) {
                        self.progress.send_modify(|progress| progress.is_hopeless = Some(wrong));
                        return;
                    }
                    next = index + 1;
                }
                Err(AttemptError::Failed(reason)) => {
                    next = index + 1;
                    // Pauses come between rounds; within one the next gateway is tried at once.
                    let is_round_over = next >= candidates.len();
                    let retry_in =
                        if is_round_over { backoff.next_delay() } else { Duration::ZERO };
                    if is_round_over {
                        attempt_timeout = (attempt_timeout * 2).min(ATTEMPT_TIMEOUT_MAX);
                    }
                    let gateway = candidates.get(index).map(|one| one.address.to_string());
                    self.fail(gateway.unwrap_or_default(), reason, retry_in);
                    tokio::time::sleep(retry_in).await;
                }
            }
        }
    }

    /// Keeps a link, and moves from a tunnel to UDP when that passes; returns the end of the last.
    /// `None` when the driver has ended.
    async fn hold(&mut self, first: Connected, candidate: &mut Candidate) -> Option<LinkEnd> {
        let mut is_tunnelled = first.is_tunnelled();
        candidate.reached(is_tunnelled);
        let mut end = self.hand_over(first, &candidate.address).await?;
        loop {
            if !is_tunnelled || self.via != Via::Auto {
                return end.await.ok();
            }
            let by_udp = tokio::select! {
                biased;
                ended = &mut end => return ended.ok(),
                by_udp = self.retry_udp(candidate) => by_udp,
            };
            let mut new_end = self.hand_over(by_udp, &candidate.address).await?;
            // The node attaches to the new link when its handshake is done, and closes the old one.
            tokio::select! {
                biased;
                _failed = &mut new_end => {}
                _replaced = &mut end => {
                    candidate.reached(false);
                    (end, is_tunnelled) = (new_end, false);
                }
            }
        }
    }

    /// Gives a link to the driver, which will tell its end; `None` when the driver has ended.
    async fn hand_over(
        &self,
        connected: Connected,
        address: &GatewayAddress,
    ) -> Option<oneshot::Receiver<LinkEnd>> {
        let (ended, end) = oneshot::channel();
        let origin = Origin::Dialled { gateway: address.to_string(), ended };
        self.links.send(NewLink { connected, origin }).await.ok()?;
        Some(end)
    }

    /// Tries UDP again and again until a gateway that a tunnel reaches answers.
    async fn retry_udp(&mut self, candidate: &mut Candidate) -> Connected {
        loop {
            tokio::time::sleep(candidate.udp_pause).await;
            candidate.udp_pause = (candidate.udp_pause * 2).min(UDP_RETRY_MAX);
            let Ok(addrs) = resolve(&candidate.address, UDP_RETRY_TIMEOUT).await else { continue };
            let expect = self.known.expected(&candidate.address);
            let dialled = by_udp(&self.endpoint, Target { expect, addrs }, UDP_RETRY_TIMEOUT).await;
            let Ok(Ok(connected)) = dialled else { continue };
            match self.check_key(&candidate.address, connected) {
                Ok(connected) => return connected,
                Err(_) => tracing::warn!(gateway = %candidate.address, "another key by UDP"),
            }
        }
    }

    /// Reaches a gateway at any of its addresses and checks its key.
    async fn connect(
        &mut self,
        candidate: &Candidate,
        time: Duration,
    ) -> Result<Connected, AttemptError> {
        let address = &candidate.address;
        let failed = |text: String| AttemptError::Failed(text);
        let addrs = resolve(address, time).await.map_err(failed)?;
        // Every dial expects the key that is known; only the first ever trusts what it finds.
        let target = Target { expect: self.known.expected(address), addrs };
        let endpoint = &self.endpoint;
        let dialled = match self.via {
            Via::Udp => by_udp(endpoint, target, time).await,
            Via::Tls => by_tunnel(endpoint, address, target, time).await,
            Via::Auto => by_either(endpoint, candidate, target, time).await,
        };
        match dialled.map_err(failed)? {
            Ok(connected) => self.check_key(address, connected),
            Err((expected, found)) => {
                Err(AttemptError::WrongKey(self.known.wrong_key(address, expected, Some(found))))
            }
        }
    }

    /// Checked before anything is said on the link.
    fn check_key(
        &mut self,
        address: &GatewayAddress,
        connected: Connected,
    ) -> Result<Connected, AttemptError> {
        let found: EndpointId = connected.peer();
        match self.known.check(address, found) {
            Ok(()) => Ok(connected),
            Err(wrong) => {
                connected.refuse(CloseCode::Denied as u16, "not the gateway expected here");
                Err(AttemptError::WrongKey(wrong))
            }
        }
    }

    /// Tells of a gateway that was not reached or did not want this node.
    fn fail(&self, gateway: String, reason: String, retry_in: Duration) {
        tracing::debug!(gateway, reason, ?retry_in, "gateway not reached");
        self.note_failure(format!("{gateway}: {reason}"));
        self.shared.emit(Event::ConnectFailed { gateway, reason, retry_in });
    }

    fn note_failure(&self, reason: String) {
        self.progress.send_modify(|progress| progress.last_failure = Some(reason));
    }
}

impl Candidate {
    fn new(address: GatewayAddress) -> Self {
        Self {
            address,
            not_before: None,
            is_barred: false,
            udp_blocked_until: None,
            udp_pause: UDP_RETRY_FIRST,
        }
    }

    /// Remembers whether UDP passes.
    fn reached(&mut self, is_tunnelled: bool) {
        self.udp_blocked_until = is_tunnelled.then(|| Instant::now() + UDP_BLOCKED_FOR);
    }

    fn is_udp_blocked(&self) -> bool {
        self.udp_blocked_until.is_some_and(|until| Instant::now() < until)
    }
}

/// A link, or the key that was expected and the one found; or what else went wrong.
type Dialled = Result<Result<Connected, (EndpointId, EndpointId)>, String>;

async fn resolve(address: &GatewayAddress, time: Duration) -> Result<Vec<SocketAddr>, String> {
    let found = timeout(time, tokio::net::lookup_host(&address.host_port)).await;
    let found = found.map_err(|_| "the name was not resolved in time".to_owned())?;
    Ok(found.map_err(|error| format!("the name is not resolved: {error}"))?.collect())
}

async fn by_udp(endpoint: &Endpoint, target: Target, time: Duration) -> Dialled {
    let dialled = timeout(time, endpoint.dial(&target)).await;
    read(dialled.map_err(|_elapsed| format!("no answer within {time:?}"))?)
}

/// By TLS over TCP: at the port of the web first, as a firewall that stops UDP mostly stops all others.
async fn by_tunnel(
    endpoint: &Endpoint,
    address: &GatewayAddress,
    target: Target,
    time: Duration,
) -> Dialled {
    let time = time.max(TUNNEL_TIMEOUT_MIN);
    let host = address.host_port.rsplit_once(':').map_or("", |(host, _)| host);
    let web = target.addrs.iter().map(|addr| SocketAddr::new(addr.ip(), WEB_PORT));
    let addrs = web.chain(target.addrs.iter().copied()).collect();
    let target = Target { addrs, ..target };
    let dialled = timeout(time, endpoint.dial_tunnel(&target, host)).await;
    read(dialled.map_err(|_elapsed| format!("no answer within {time:?}"))?)
}

fn read(dialled: Result<Connected, DialError>) -> Dialled {
    match dialled {
        Ok(connected) => Ok(Ok(connected)),
        Err(DialError::WrongKey { expected, found, .. }) => Ok(Err((expected, found))),
        Err(error) => Err(error.to_string()),
    }
}

/// By UDP, and when that does not answer soon by a tunnel as well; the first answer counts. While a
/// firewall swallows what is for the tunnel UDP is dialled anew: the gateway may be back.
async fn by_either(
    endpoint: &Endpoint,
    candidate: &Candidate,
    target: Target,
    time: Duration,
) -> Dialled {
    let udp_failed = Notify::new();
    let udp = by_udp(endpoint, target.clone(), time);
    let to_tunnel = target.clone();
    let tunnel = async {
        if !candidate.is_udp_blocked() {
            // Not awaited longer when it is clear before.
            timeout(TUNNEL_AFTER, udp_failed.notified()).await.ok();
        }
        by_tunnel(endpoint, &candidate.address, to_tunnel, time).await
    };
    tokio::pin!(udp, tunnel);
    let (mut udp_error, mut tunnel_error) = (None, None);
    let (mut is_dialling, mut since) = (true, Instant::now());
    loop {
        tokio::select! {
            biased;
            dialled = &mut udp, if is_dialling => match dialled {
                Err(error) => {
                    udp_error = Some(error);
                    udp_failed.notify_one();
                    // What fails sooner fails for good.
                    is_dialling = since.elapsed() >= time / 2;
                    if is_dialling {
                        since = Instant::now();
                        udp.set(by_udp(endpoint, target.clone(), time));
                    }
                }
                dialled => return dialled,
            },
            dialled = &mut tunnel, if tunnel_error.is_none() => match dialled {
                Err(error) => tunnel_error = Some(error),
                dialled => return dialled,
            },
        }
        if let (Some(udp), Some(tunnel)) = (&udp_error, &tunnel_error) {
            return Err(format!("{udp}; by TLS over TCP: {tunnel}"));
        }
    }
}

/// The next gateway from `next` on, in turn: one that may be dialled now, else the one that may be
/// dialled first. `None` when all are barred.
fn choose(candidates: &[Candidate], next: usize) -> Option<usize> {
    let count = candidates.len();
    let in_turn = (0..count).map(|offset| (next + offset) % count);
    let usable = in_turn
        .filter_map(|index| candidates.get(index).map(|candidate| (index, candidate)))
        .filter(|(_, candidate)| !candidate.is_barred);
    let now = Instant::now();
    // Of equals the first in turn is taken.
    usable
        .min_by_key(|(_, candidate)| candidate.not_before.map_or(now, |at| at.max(now)))
        .map(|(index, _)| index)
}

/// Takes what dials this endpoint until the endpoint closes.
pub(crate) async fn accept(
    shared: Arc<Shared>,
    endpoint: Arc<Endpoint>,
    links: mpsc::Sender<NewLink>,
) {
    let stopping = shared.stopping.clone();
    let accepting = async {
        while let Some(connected) = endpoint.accept().await {
            let origin = if connected.is_peer_link() { Origin::Peer } else { Origin::Accepted };
            let new = NewLink { connected, origin };
            if links.send(new).await.is_err() {
                return;
            }
        }
    };
    stopping.run_until_cancelled(accepting).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(specs: &[(bool, Option<u64>)]) -> Vec<Candidate> {
        let now = Instant::now();
        specs
            .iter()
            .map(|(is_barred, seconds)| Candidate {
                not_before: seconds.map(|seconds| now + Duration::from_secs(seconds)),
                is_barred: *is_barred,
                ..Candidate::new("gw:1".parse().unwrap())
            })
            .collect()
    }

    #[tokio::test(start_paused = true)]
    async fn gateways_take_turns_and_barred_ones_are_left_out() {
        let all = candidates(&[(false, None), (true, None), (false, None)]);
        assert_eq!([0, 1, 2, 3].map(|next| choose(&all, next)), [0, 2, 2, 0].map(Some));
        assert_eq!(choose(&candidates(&[(true, None)]), 0), None);
        assert_eq!(choose(&[], 0), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_gateway_that_asked_for_time_comes_last() {
        let all = candidates(&[(false, Some(60)), (false, None)]);
        assert_eq!(choose(&all, 0), Some(1));
        let waiting = candidates(&[(false, Some(60)), (false, Some(9))]);
        assert_eq!(choose(&waiting, 0), Some(1));
    }
}
