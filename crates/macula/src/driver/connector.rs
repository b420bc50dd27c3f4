//! Links to gateways come from here: dialling, failing over, dialling again; and, on a router,
//! accepting.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use macula_proto::EndpointId;
use macula_proto::wire::message::CloseCode;
use macula_transport::{Backoff, Connected, DialError, Endpoint, Target};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};

use super::{LinkEnd, NewLink, Origin};
use crate::error::WrongKey;
use crate::event::Event;
use crate::gateway::{GatewayAddress, KnownGateways};
use crate::shared::Shared;

/// What the first attempt at a gateway may take; doubles with every failure. Short, because a
/// gateway that restarts does not hear what was sent before it was back.
const ATTEMPT_TIMEOUT_FIRST: Duration = Duration::from_secs(1);
/// No attempt takes longer than this.
const ATTEMPT_TIMEOUT_MAX: Duration = Duration::from_secs(10);
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
}

/// A gateway in the list.
#[derive(Debug)]
struct Candidate {
    address: GatewayAddress,
    /// It asked not to be dialled before this.
    not_before: Option<Instant>,
    /// It has shown a wrong key: never again.
    is_barred: bool,
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
        let mut candidates: Vec<Candidate> = std::mem::take(&mut self.gateways)
            .into_iter()
            .map(|address| Candidate { address, not_before: None, is_barred: false })
            .collect();
        let mut backoff = Backoff::new(self.seed);
        let mut attempt_timeout = ATTEMPT_TIMEOUT_FIRST;
        let mut next = 0;
        loop {
            let Some(index) = choose(&candidates, next) else { return };
            let Some(candidate) = candidates.get_mut(index) else { return };
            if let Some(not_before) = candidate.not_before.take() {
                tokio::time::sleep_until(not_before).await;
            }
            match self.connect(&candidate.address, attempt_timeout).await {
                Ok(connected) => {
                    let Some(end) = self.hand_over(connected, &candidate.address).await else {
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

    /// Gives a link to the driver and waits for its end; `None` when the driver has ended.
    async fn hand_over(&self, connected: Connected, address: &GatewayAddress) -> Option<LinkEnd> {
        let (ended, end) = oneshot::channel();
        let origin = Origin::Dialled { gateway: address.to_string(), ended };
        self.links.send(NewLink { connected, origin }).await.ok()?;
        end.await.ok()
    }

    /// Reaches a gateway at any of its addresses and checks its key.
    async fn connect(
        &mut self,
        address: &GatewayAddress,
        time: Duration,
    ) -> Result<Connected, AttemptError> {
        let failed = |text: String| AttemptError::Failed(text);
        let addrs: Vec<SocketAddr> = timeout(time, tokio::net::lookup_host(&address.host_port))
            .await
            .map_err(|_| failed("the name was not resolved in time".to_owned()))?
            .map_err(|error| failed(format!("the name is not resolved: {error}")))?
            .collect();
        // Every dial expects the key that is known; only the first ever trusts what it finds.
        let expect = self.known.expected(address);
        let target = Target { expect, addrs };
        let dialled = timeout(time, self.endpoint.dial(&target))
            .await
            .map_err(|_| failed(format!("no answer within {time:?}")))?;
        match dialled {
            Ok(connected) => self.check_key(address, connected),
            Err(DialError::WrongKey { expected, found, .. }) => {
                Err(AttemptError::WrongKey(self.known.wrong_key(address, expected, Some(found))))
            }
            Err(error) => Err(failed(error.to_string())),
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
                address: "gw:1".parse().unwrap(),
                not_before: seconds.map(|seconds| now + Duration::from_secs(seconds)),
                is_barred: *is_barred,
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
