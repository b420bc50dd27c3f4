//! Links: between the core's numbers and the transport's handles.

use std::time::Duration;

use macula_proto::id::LinkId;
use macula_proto::node::{Action, Input, Transmit};
use macula_proto::wire::message::CloseCode;
use macula_proto::wire::relay::Datagram;
use macula_proto::{EndpointId, Time};
use macula_transport::{Connected, DownReason, LinkEvent, LinkEventKind, PathKind};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Driver;

/// A peer whose key has been checked, on its way to the core.
#[derive(Debug)]
pub(crate) struct NewLink {
    pub(crate) connected: Connected,
    pub(crate) origin: Origin,
}

/// How a link came about.
#[derive(Debug)]
pub(crate) enum Origin {
    /// This side dialled a gateway; whoever did wants to know how the link ended.
    Dialled { gateway: String, ended: oneshot::Sender<LinkEnd> },
    /// The peer dialled.
    Accepted,
    /// Both ends are leaves.
    Peer,
}

/// How a dialled link ended.
#[derive(Clone, Debug)]
pub(crate) struct LinkEnd {
    /// The handshake had been completed.
    pub(crate) was_ready: bool,
    /// How long the link lived.
    pub(crate) lived: Duration,
    /// Why it ended.
    pub(crate) reason: String,
    /// The gateway asked not to come back before this.
    pub(crate) reconnect_in: Option<Duration>,
}

/// A living link.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) transport: macula_transport::Link,
    pub(super) peer: EndpointId,
    pub(super) remote: std::net::SocketAddr,
    pub(super) origin: Origin,
    pub(super) is_ready: bool,
    /// Why the peer said that it goes.
    pub(super) leaving: Option<(Duration, String)>,
    since: Instant,
}

impl Driver {
    pub(super) fn on_new_link(&mut self, now: Time, new: NewLink) {
        let NewLink { connected, origin } = new;
        if self.closing.is_some() {
            return connected.refuse(CloseCode::Restarting as u16, "going down");
        }
        let id = LinkId(self.next_link);
        self.next_link += 1;
        let (peer, remote) = (connected.peer(), connected.remote());
        let dialled = connected.dialled();
        // Told to the core before the transport starts, so that no frame comes first.
        let up = match origin {
            Origin::Peer => Input::PeerLinkUp { link: id, peer, dialled, remote },
            Origin::Dialled { .. } | Origin::Accepted => {
                Input::LinkUp { link: id, peer, dialled, remote }
            }
        };
        self.node.handle_input(now, up);
        if connected.is_tunnelled() {
            self.node.handle_input(now, Input::Tunnelled { link: id });
        }
        let transport = connected.start(id, self.link_events.clone());
        let link = Link {
            transport,
            peer,
            remote,
            origin,
            is_ready: false,
            leaving: None,
            since: Instant::now(),
        };
        self.links.insert(id, link);
    }

    pub(super) fn on_link_event(&mut self, now: Time, event: LinkEvent) {
        let link = event.link;
        match event.kind {
            LinkEventKind::Frames { channel, frames, permit } => {
                for frame in frames {
                    self.node.handle_input(now, Input::Frame { link, channel, frame });
                }
                drop(permit);
            }
            LinkEventKind::Sent { channel, bytes } => {
                self.node.handle_input(now, Input::Sent { link, channel, bytes });
            }
            LinkEventKind::StreamClosed { stream } => {
                self.node.handle_input(now, Input::StreamClosed { link, stream });
            }
            LinkEventKind::Datagrams(datagrams) => {
                for datagram in datagrams {
                    self.node.handle_input(now, Input::Datagram { link, datagram });
                }
            }
            LinkEventKind::Path(kind) => {
                let direct = kind == PathKind::Direct;
                self.node.handle_input(now, Input::PeerPath { link, direct });
            }
            LinkEventKind::Carrying => self.node.handle_input(now, Input::LinkUsed { link }),
            LinkEventKind::Rtt(rtt) => self.node.handle_input(now, Input::Rtt { link, rtt }),
            LinkEventKind::Down { reason } => self.on_link_down(now, link, &reason),
            other => tracing::debug!(?other, "an event of the transport that is not known here"),
        }
    }

    fn on_link_down(&mut self, now: Time, id: LinkId, reason: &DownReason) {
        let reason = reason.to_string();
        tracing::debug!(link = id.0, reason, "link down");
        self.node.handle_input(now, Input::LinkDown { link: id, reason: reason.clone() });
        // The core's events about this link still want to know whose it was.
        self.settle(now);
        let Some(link) = self.links.remove(&id) else { return };
        if matches!(link.origin, Origin::Peer) {
            return self.on_peer_link_down(link.peer, &reason);
        }
        if let Origin::Dialled { ended, .. } = link.origin {
            let end = LinkEnd {
                was_ready: link.is_ready,
                lived: link.since.elapsed(),
                reason: link.leaving.as_ref().map_or(reason, |(_, words)| words.clone()),
                reconnect_in: link.leaving.map(|(reconnect_in, _)| reconnect_in),
            };
            // Fails when the dialler has stopped, which is fine.
            ended.send(end).ok();
        }
    }

    pub(super) fn send(&self, transmit: Transmit) {
        // Without the link, its end is on its way to the core.
        if let Some(link) = self.links.get(&transmit.link) {
            link.transport.send(transmit.channel, transmit.frame);
        }
    }

    /// Sends a relayed packet, or says that it was dropped.
    pub(super) fn relay(&mut self, link: LinkId, datagram: Datagram) {
        let link = self.links.get(&link);
        let count = link.map_or(1, |link| link.transport.send_datagram(datagram));
        if count > 0 {
            self.followups.push(Input::DatagramsDropped { count });
        }
    }

    pub(super) fn act(&self, action: Action) {
        let id = match &action {
            Action::OpenLanes { link }
            | Action::Pause { link, .. }
            | Action::Resume { link, .. }
            | Action::FinishStream { link, .. }
            | Action::ResetStream { link, .. }
            | Action::CloseLink { link, .. } => *link,
        };
        let Some(link) = self.links.get(&id) else { return };
        match action {
            Action::OpenLanes { .. } => link.transport.open_lanes(),
            Action::Pause { channel, .. } => link.transport.pause(channel),
            Action::Resume { channel, .. } => link.transport.resume(channel),
            Action::FinishStream { stream, .. } => link.transport.finish_stream(stream),
            Action::ResetStream { stream, .. } => link.transport.reset_stream(stream),
            Action::CloseLink { code, reason, .. } => link.transport.close(code as u16, &reason),
        }
    }
}
