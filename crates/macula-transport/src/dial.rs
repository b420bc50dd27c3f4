//! Dialling one peer at several addresses.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use macula_proto::id::EndpointId;
use macula_proto::wire::relay::Unreachable;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::quic;
use crate::quic::{Connection, HandshakeError, canonical};

/// The next address is tried after this when the one before has not answered (RFC 8305 §5).
const STAGGER: Duration = Duration::from_millis(250);

/// Whom to dial, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Who must answer; `None` trusts whoever does: look at `Connected::peer` then.
    pub expect: Option<EndpointId>,
    /// Where to try, best first; families take turns.
    pub addrs: Vec<SocketAddr>,
}

/// A peer could not be dialled at any of its addresses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// There was no address to dial.
    #[error("no address to dial")]
    NoAddress,
    /// Somebody else answers there. Either the expected id is wrong or the address is.
    #[error("{addr} is {found}, not the expected {expected}")]
    WrongKey {
        /// Where.
        addr: SocketAddr,
        /// Who should have answered.
        expected: EndpointId,
        /// Who did.
        found: EndpointId,
    },
    /// The peer answered and said no.
    #[error("{addr} refused with code {code}: {reason}")]
    Refused {
        /// Where.
        addr: SocketAddr,
        /// The peer's close code; 65535 when the handshake itself was refused.
        code: u16,
        /// The peer's words.
        reason: String,
    },
    /// No address answered at all.
    #[error("no answer within {after:?} from {}", list(addrs))]
    Timeout {
        /// The time that each address was given.
        after: Duration,
        /// What was tried.
        addrs: Vec<SocketAddr>,
    },
    /// Every address failed, for different reasons.
    #[error("unreachable: {}", causes(attempts))]
    Unreachable {
        /// What happened where.
        attempts: Vec<(SocketAddr, AttemptError)>,
    },
    /// The local endpoint is closed.
    #[error("the endpoint is closed")]
    Closed,
}

/// A peer could not be reached through the gateway.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerError {
    /// This endpoint was not set up for links to peers.
    #[error("links to peers are not enabled")]
    Disabled,
    /// No gateway is connected, or something else is missing here.
    #[error("{reason}")]
    Unusable {
        /// What.
        reason: String,
    },
    /// The gateway knows no such endpoint in a realm of this one.
    #[error("no such endpoint at this gateway and in a realm of yours; is it running?")]
    NotHere,
    /// The grant does not allow `relay`.
    #[error("your grant does not allow to relay to this peer; ask for one that allows `relay:*`")]
    Denied,
    /// The peer answered and said no.
    #[error("the peer refused with code {code}: {reason}")]
    Refused {
        /// The peer's close code; 65535 when the handshake itself was refused.
        code: u16,
        /// The peer's words.
        reason: String,
    },
    /// The peer did not answer.
    #[error("the peer did not answer within {after:?}")]
    Timeout {
        /// How long it was waited for.
        after: Duration,
    },
    /// There was no direct path in time, and no other may be used.
    #[error("no direct path within {after:?}, and the strategy is direct_only")]
    NoDirectPath {
        /// How long it was looked for.
        after: Duration,
    },
    /// The handshake broke down.
    #[error("{reason}")]
    Failed {
        /// Why.
        reason: String,
    },
    /// The local endpoint is closed.
    #[error("the endpoint is closed")]
    Closed,
}

impl PeerError {
    pub(crate) fn unreachable(reason: Unreachable) -> Self {
        match reason {
            Unreachable::Denied => Self::Denied,
            _ => Self::NotHere,
        }
    }

    pub(crate) fn of_handshake(error: HandshakeError, after: Duration) -> Self {
        match error {
            HandshakeError::Refused { code, reason } => Self::Refused { code, reason },
            HandshakeError::Timeout => Self::Timeout { after },
            HandshakeError::Unusable { reason } => Self::Unusable { reason },
            HandshakeError::Closed => Self::Closed,
            HandshakeError::Failed { reason } => Self::Failed { reason },
            HandshakeError::WrongKey { found, .. } => {
                Self::Failed { reason: format!("another endpoint answered: {found}") }
            }
        }
    }
}

/// What happened at one address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AttemptError {
    /// No answer.
    #[error("no answer")]
    Timeout,
    /// Another peer answered.
    #[error("another peer is there: {found}")]
    WrongKey {
        /// Which.
        found: EndpointId,
    },
    /// The peer said no.
    #[error("refused with code {code}: {reason}")]
    Refused {
        /// Close code; 65535 when the handshake itself was refused.
        code: u16,
        /// The peer's words.
        reason: String,
    },
    /// This socket cannot reach such an address, or the handshake broke down.
    #[error("{reason}")]
    Failed {
        /// Why.
        reason: String,
    },
}

fn list(addrs: &[SocketAddr]) -> String {
    let addrs: Vec<String> = addrs.iter().map(ToString::to_string).collect();
    addrs.join(", ")
}

fn causes(attempts: &[(SocketAddr, AttemptError)]) -> String {
    let causes: Vec<String> =
        attempts.iter().map(|(addr, error)| format!("{addr}: {error}")).collect();
    causes.join("; ")
}

/// Happy Eyeballs (RFC 8305): addresses start 250 ms apart, or as soon as one fails; the first
/// finished handshake wins and the other attempts are dropped.
pub(crate) async fn dial(
    endpoint: &Arc<quic::Endpoint>,
    target: &Target,
    timeout: Duration,
) -> Result<Connection, DialError> {
    let attempt = |addr| {
        let (endpoint, expect) = (Arc::clone(endpoint), target.expect);
        async move { endpoint.dial(expect, addr, timeout).await }
    };
    race(target, timeout, attempt).await
}

/// The same through tunnels, to TCP addresses of a gateway that is called `host`.
pub(crate) async fn dial_tunnel(
    endpoint: &Arc<quic::Endpoint>,
    target: &Target,
    host: &str,
    timeout: Duration,
) -> Result<Connection, DialError> {
    let host: Arc<str> = host.into();
    let attempt = |addr| {
        let (endpoint, expect, host) = (Arc::clone(endpoint), target.expect, Arc::clone(&host));
        async move { endpoint.dial_tunnel(expect, addr, &host, timeout).await }
    };
    race(target, timeout, attempt).await
}

async fn race<F>(
    target: &Target,
    timeout: Duration,
    attempt: impl Fn(SocketAddr) -> F,
) -> Result<Connection, DialError>
where
    F: Future<Output = Result<Connection, HandshakeError>> + Send + 'static,
{
    let mut waiting = VecDeque::from(interleave(&target.addrs));
    if waiting.is_empty() {
        return Err(DialError::NoAddress);
    }
    // Dropping the set, also with this future, aborts what still runs.
    let mut attempts = JoinSet::new();
    let mut failures = Vec::new();
    let mut next_start = Instant::now();
    loop {
        if next_start <= Instant::now()
            && let Some(addr) = waiting.pop_front()
        {
            let dialled = attempt(addr);
            attempts.spawn(async move { (addr, dialled.await) });
            next_start = Instant::now() + STAGGER;
        }
        tokio::select! {
            biased;
            ended = attempts.join_next(), if !attempts.is_empty() => match ended {
                Some(Ok((_, Ok(connection)))) => return Ok(connection),
                Some(Ok((addr, Err(error)))) => {
                    failures.push((addr, error));
                    next_start = Instant::now();
                }
                // The attempt panicked; the others may still work.
                Some(Err(_)) => next_start = Instant::now(),
                None => {}
            },
            () = sleep_until(next_start), if !waiting.is_empty() => {}
            else => return Err(verdict(failures, timeout)),
        }
    }
}

/// The most telling of all failures.
fn verdict(failures: Vec<(SocketAddr, HandshakeError)>, after: Duration) -> DialError {
    let (mut wrong, mut refused, mut attempts) = (None, None, Vec::new());
    for (addr, error) in failures {
        attempts.push((
            addr,
            match error {
                HandshakeError::WrongKey { expected, found } => {
                    wrong.get_or_insert(DialError::WrongKey { addr, expected, found });
                    AttemptError::WrongKey { found }
                }
                HandshakeError::Refused { code, reason } => {
                    refused.get_or_insert(DialError::Refused {
                        addr,
                        code,
                        reason: reason.clone(),
                    });
                    AttemptError::Refused { code, reason }
                }
                HandshakeError::Closed => return DialError::Closed,
                HandshakeError::Timeout => AttemptError::Timeout,
                HandshakeError::Unusable { reason } | HandshakeError::Failed { reason } => {
                    AttemptError::Failed { reason }
                }
            },
        ));
    }
    if let Some(told) = wrong.or(refused) {
        return told;
    }
    if attempts.iter().all(|(_, error)| *error == AttemptError::Timeout) {
        let addrs = attempts.into_iter().map(|(addr, _)| addr).collect();
        return DialError::Timeout { after, addrs };
    }
    DialError::Unreachable { attempts }
}

/// The addresses without doubles, families in turn, starting with that of the first.
fn interleave(addrs: &[SocketAddr]) -> Vec<SocketAddr> {
    let mut unique: Vec<SocketAddr> = Vec::with_capacity(addrs.len());
    for addr in addrs.iter().copied().map(canonical) {
        if !unique.contains(&addr) {
            unique.push(addr);
        }
    }
    let Some(first) = unique.first().copied() else { return unique };
    let (one, other): (VecDeque<_>, VecDeque<_>) =
        unique.into_iter().partition(|addr| addr.is_ipv4() == first.is_ipv4());
    let (mut one, mut other) = (one, other);
    let mut order = Vec::with_capacity(one.len() + other.len());
    while !one.is_empty() || !other.is_empty() {
        order.extend(one.pop_front());
        order.extend(other.pop_front());
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addrs(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn families_take_turns_and_doubles_go() {
        let given = addrs(&["[::1]:1", "[::2]:1", "10.0.0.1:1", "[::ffff:10.0.0.1]:1", "[::3]:1"]);
        let expected = addrs(&["[::1]:1", "10.0.0.1:1", "[::2]:1", "[::3]:1"]);
        assert_eq!(interleave(&given), expected);
    }

    #[test]
    fn a_wrong_key_says_more_than_a_timeout() {
        let [one, other] = [1, 2].map(|byte| EndpointId::from_bytes([byte; 32]));
        let addrs = addrs(&["10.0.0.1:1", "10.0.0.2:1"]);
        let wrong = HandshakeError::WrongKey { expected: one, found: other };
        let error = verdict(
            vec![(addrs[0], HandshakeError::Timeout), (addrs[1], wrong)],
            Duration::from_secs(1),
        );
        assert_eq!(error, DialError::WrongKey { addr: addrs[1], expected: one, found: other });
        assert!(error.to_string().contains(&one.to_string()));
        assert!(error.to_string().contains(&other.to_string()));
    }

    #[test]
    fn only_silence_is_a_timeout() {
        let addrs = addrs(&["10.0.0.1:1"]);
        let error = verdict(vec![(addrs[0], HandshakeError::Timeout)], Duration::from_secs(1));
        assert_eq!(error, DialError::Timeout { after: Duration::from_secs(1), addrs });
    }
}
