//! Links to other leaves: dialled on request, told to whoever asked.

use macula_proto::EndpointId;
use macula_proto::id::LinkId;
use macula_transport::PathKind;
use tokio::sync::{oneshot, watch};

use super::{Driver, Link, NewLink, Origin, PeerEntry};
use crate::peer::{PeerError, PeerLink};
use crate::shared::Command;

/// Peers whose last link is remembered for those who hold a handle.
const PEERS_MAX: usize = 4096;

impl Driver {
    /// Somebody wants a link to a peer.
    pub(super) fn want_peer(
        &mut self,
        peer: EndpointId,
        answer: oneshot::Sender<Result<PeerLink, PeerError>>,
    ) {
        if peer == self.shared.id {
            // Fails when whoever asked has given up.
            answer.send(Err(PeerError::Itself)).ok();
            return;
        }
        let Some(entry) = self.peer_entry(peer) else {
            answer.send(Err(PeerError::TooMany)).ok();
            return;
        };
        if entry.link.borrow().is_some() {
            answer.send(Ok(entry.link.subscribe())).ok();
            return;
        }
        entry.waiters.retain(|waiter| !waiter.is_closed());
        entry.waiters.push(answer);
        if !std::mem::replace(&mut entry.is_dialling, true) {
            self.dial_peer(peer);
        }
    }

    /// The entry of a peer; makes one, if there is room or another one is not needed any more.
    fn peer_entry(&mut self, peer: EndpointId) -> Option<&mut PeerEntry> {
        if !self.peers.contains_key(&peer) && self.peers.len() >= PEERS_MAX {
            self.peers.retain(|_, entry| {
                let is_linked = entry.link.borrow().is_some();
                is_linked || entry.is_dialling || entry.link.receiver_count() > 0
            });
        }
        if !self.peers.contains_key(&peer) && self.peers.len() >= PEERS_MAX {
            return None;
        }
        Some(self.peers.entry(peer).or_insert_with(|| PeerEntry {
            link: watch::Sender::default(),
            waiters: Vec::new(),
            is_dialling: false,
        }))
    }

    fn dial_peer(&self, peer: EndpointId) {
        let (endpoint, links) = (self.endpoint.clone(), self.new_links.clone());
        let shared = self.shared.clone();
        let dial = async move {
            match endpoint.dial_peer(peer).await {
                Ok(connected) => {
                    // Fails when the driver has ended, and with it the endpoint.
                    links.send(NewLink { connected, origin: Origin::Peer }).await.ok();
                }
                Err(error) => {
                    let error = PeerError::from(error);
                    shared.command(Command::PeerFailed { peer, error }).await.ok();
                }
            }
        };
        let stopping = self.shared.stopping.clone();
        self.endpoint.spawn(async move {
            stopping.run_until_cancelled(dial).await;
        });
    }

    /// A dial came to nothing. The peer may have dialled meanwhile.
    pub(super) fn on_peer_failed(&mut self, peer: EndpointId, error: &PeerError) {
        let Some(entry) = self.peers.get_mut(&peer) else { return };
        entry.is_dialling = false;
        for waiter in entry.waiters.drain(..) {
            waiter.send(Err(error.clone())).ok();
        }
    }

    /// Has a member carry packets of links to a peer, if it does that and is reached directly.
    pub(super) fn carry(&self, peer: EndpointId, carrier: EndpointId) -> bool {
        let is_direct =
            |link: &Link| link.transport.path().is_some_and(|path| path.kind == PathKind::Direct);
        let mut links = self.links.iter();
        let found = links.find(|(id, link)| {
            link.peer == carrier && self.node.is_carrier(**id) && is_direct(link)
        });
        let Some((_, carrier)) = found else { return false };
        for link in self.links.values().filter(|link| link.peer == peer) {
            link.transport.offer_carrier(&carrier.transport);
        }
        true
    }

    /// The core uses this link to a peer from now on.
    pub(super) fn on_peer_link(&mut self, peer: EndpointId, link: Option<LinkId>) {
        let transport =
            link.and_then(|link| self.links.get(&link)).map(|link| link.transport.clone());
        let Some(entry) = self.peer_entry(peer) else { return };
        entry.link.send_replace(transport);
        if link.is_some() {
            entry.is_dialling = false;
            for waiter in entry.waiters.drain(..) {
                waiter.send(Ok(entry.link.subscribe())).ok();
            }
        }
    }

    /// A link to a peer is gone, perhaps before it was of use.
    pub(super) fn on_peer_link_down(&mut self, peer: EndpointId, reason: &str) {
        let is_linked = self.peers.get(&peer).is_some_and(|entry| entry.link.borrow().is_some());
        let is_coming = self.links.values().any(|link| link.peer == peer);
        if !is_linked && !is_coming {
            self.on_peer_failed(peer, &PeerError::Lost { reason: reason.to_owned() });
        }
    }
}
