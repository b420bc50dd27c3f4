//! What an endpoint tells about itself.

use std::net::SocketAddr;
use std::time::Duration;

use macula_proto::EndpointId;
use macula_proto::wire::message::RefusalCode;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use crate::error::WrongKey;

/// Events that may wait for one reader; beyond that the oldest are dropped and counted.
pub(crate) const EVENTS_MAX: usize = 256;

/// Something that an operator or a user may want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The first link to a gateway is ready.
    Connected {
        /// The gateway's id.
        peer: EndpointId,
        /// The gateway as configured.
        gateway: String,
        /// Our address as the gateway sees it; empty when it did not say.
        observed: String,
    },
    /// The link to the gateway is lost; the node dials again by itself.
    Disconnected {
        /// The gateway's id.
        peer: EndpointId,
        /// The gateway as configured.
        gateway: String,
        /// Why.
        reason: String,
    },
    /// A link to a gateway is ready again; subscriptions and registrations are being resumed.
    Reconnected {
        /// The gateway's id.
        peer: EndpointId,
        /// The gateway as configured.
        gateway: String,
        /// Our address as the gateway sees it; empty when it did not say.
        observed: String,
    },
    /// The link to the gateway was replaced by a better one, without a pause.
    Moved {
        /// The gateway's id.
        peer: EndpointId,
        /// The gateway as configured.
        gateway: String,
        /// Whether the link runs over TLS and TCP now.
        is_tunnelled: bool,
    },
    /// A gateway was not reached; the next attempt comes by itself.
    ConnectFailed {
        /// The gateway as configured.
        gateway: String,
        /// Why.
        reason: String,
        /// Pause before the next attempt.
        retry_in: Duration,
    },
    /// A gateway showed another key than expected; it is not tried again.
    WrongKey(WrongKey),
    /// A peer says that it goes away.
    PeerLeaving {
        /// The peer.
        peer: EndpointId,
        /// Why.
        reason: String,
        /// It asked not to come back before this.
        reconnect_in: Duration,
    },
    /// A peer dialled this router and its handshake is done; or, between two nodes of a gateway,
    /// either dialled the other.
    PeerConnected {
        /// The peer.
        peer: EndpointId,
        /// Its program and version.
        agent: String,
        /// Where its packets come from.
        remote: SocketAddr,
    },
    /// A peer that had dialled this router is gone.
    PeerDisconnected {
        /// The peer.
        peer: EndpointId,
        /// Why.
        reason: String,
    },
    /// A gateway does not admit this node to a realm.
    RealmDenied {
        /// The realm.
        realm: String,
        /// Why.
        reason: String,
    },
    /// A gateway does not take a renewed grant, or the file with it cannot be used; the grant before
    /// still holds.
    RenewalRefused {
        /// The realm.
        realm: String,
        /// Why.
        reason: String,
    },
    /// This router has put a peer out of a guarded realm: its grant ended or was revoked.
    Expelled {
        /// The peer.
        peer: EndpointId,
        /// The realm's name, or its id in hexadecimal.
        realm: String,
        /// Why.
        reason: String,
    },
    /// This router has a new record of revocations.
    Revoked {
        /// The realm's name, or its id in hexadecimal.
        realm: String,
        /// The record's sequence.
        sequence: u64,
        /// How many peers were put out by it.
        expelled: usize,
    },
    /// The router does not keep a subscription (any more); its stream has ended.
    SubscriptionRefused {
        /// The pattern.
        pattern: String,
        /// Why.
        code: RefusalCode,
        /// Why, in words.
        reason: String,
    },
    /// The router does not keep a registration (any more); nobody will call it.
    RegistrationRefused {
        /// The procedure.
        procedure: String,
        /// Why.
        code: RefusalCode,
        /// Why, in words.
        reason: String,
    },
    /// The router did not take published messages; they are lost.
    PublishRefused {
        /// The topic.
        topic: String,
        /// How many messages.
        messages: u32,
        /// Why.
        code: RefusalCode,
        /// Why, in words.
        reason: String,
    },
    /// Messages for this node's subscriptions were lost on the way.
    Lost {
        /// The pattern, where it is known which subscription was hit.
        pattern: Option<String>,
        /// How many messages.
        messages: u64,
        /// Why, in words.
        reason: &'static str,
    },
    /// The endpoint has ended; nothing follows.
    Closed {
        /// `None` when it was closed on purpose, otherwise what went wrong.
        failure: Option<String>,
    },
}

/// Reads an endpoint's [`Event`]s from the moment it was made.
#[derive(Debug)]
pub struct Events {
    receiver: broadcast::Receiver<Event>,
    missed: u64,
    /// The last event has been sent.
    closed: CancellationToken,
}

impl Events {
    pub(crate) fn new(receiver: broadcast::Receiver<Event>, closed: CancellationToken) -> Self {
        Self { receiver, missed: 0, closed }
    }

    /// The next event; `None` after [`Event::Closed`].
    ///
    /// At most 256 events wait for a reader; a slower one misses the oldest, see
    /// [`Events::missed`].
    ///
    /// # Cancel safety
    /// Dropping the future loses no event.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            let received = tokio::select! {
                biased;
                received = self.receiver.recv() => received,
                () = self.closed.cancelled() => return None,
            };
            match received {
                Ok(event) => return Some(event),
                Err(broadcast::error::RecvError::Lagged(count)) => self.missed += count,
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }

    /// Events that this reader missed because it was too slow.
    pub fn missed(&self) -> u64 {
        self.missed
    }
}
