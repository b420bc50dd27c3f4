//! Links between two leaves, beside their links to the gateway.
//!
//! Such a link carries calls that are addressed to the peer, and publishes (`direct`). Each side admits the other to realms as
//! a router does: by name, or by a grant that it checks itself. The dialler shows all its realms, the
//! other side only those that both have. Spec: docs/protocol §9.2.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use super::link::{Link, PeerLink};
use super::session::{Session, SessionId};
use super::timers::Timer;
use super::{Event, Node, Role};
use crate::id::{EndpointId, LinkId, RealmTag};
use crate::time::Time;
use crate::wire::message::{CloseCode, Message, RealmOffer, RealmStatus};

/// A link that another one replaced is looked at so often: it ends when it carries no call.
const RETIRE_INTERVAL: Duration = Duration::from_secs(1);

impl Node {
    pub(super) fn on_peer_link_up(
        &mut self,
        now: Time,
        link: LinkId,
        peer: EndpointId,
        dialled: bool,
        remote: SocketAddr,
    ) {
        if self.links.contains_key(&link) {
            return;
        }
        self.stats.links_up += 1;
        let peer_links = self.links.values().filter(|link| link.peer_link.is_some()).count();
        let mut entry = Link::new(now, peer, dialled, remote);
        entry.peer_link = Some(PeerLink { used: Some(now), ..PeerLink::default() });
        self.links.insert(link, entry);
        self.timers.set(Timer::Idle(link), now + self.config.peer_link_idle);
        let refusal = if self.config.role != Role::Leaf || peer == self.id {
            Some((CloseCode::Denied, "this endpoint takes no links of peers"))
        } else if self.draining {
            Some((CloseCode::Restarting, "this endpoint is going down"))
        } else if peer_links >= self.config.peer_links_max {
            self.stats.over_limit += 1;
            Some((CloseCode::Limit, "this endpoint has as many peers as it may"))
        } else {
            None
        };
        match refusal {
            Some((code, reason)) => self.close_link(now, link, code, reason),
            None => self.say_hello(now, link, remote, dialled),
        }
    }

    /// Whether a peer sends what only a router and its leaf say to each other.
    pub(super) fn is_out_of_place(&self, link: LinkId, message: &Message) -> bool {
        let is_peer_link = self.links.get(&link).is_some_and(|link| link.peer_link.is_some());
        let is_publish = matches!(
            message,
            Message::Subscribe(_)
                | Message::SubscribeResult { .. }
                | Message::Unsubscribe { .. }
                | Message::Dropped { .. }
                | Message::Publish(_)
                | Message::PublishRefused { .. }
                | Message::BulkPublish { .. }
                | Message::BulkAck { .. }
                | Message::Sync { .. }
                | Message::SyncDone { .. }
        );
        is_peer_link
            && !(is_publish && self.config.peer_publishes)
            && !matches!(
                message,
                Message::Join(_)
                    | Message::Realms(_)
                    | Message::Goodbye { .. }
                    | Message::Ping { .. }
                    | Message::Pong { .. }
                    | Message::Call(_)
                    | Message::Reply { .. }
                    | Message::CallError { .. }
                    | Message::Cancel { .. }
                    | Message::Item { .. }
                    | Message::ItemsEnd { .. }
                    | Message::Unknown { .. }
            )
    }

    /// The peer has said hello, and, if it dialled, in which realms it wants to meet.
    pub(super) fn greet_peer(&mut self, now: Time, link_id: LinkId, offers: Vec<RealmOffer>) {
        let Some(link) = self.links.get_mut(&link_id) else { return };
        let id = SessionId(self.next_session);
        self.next_session += 1;
        link.session = Some(id);
        let (peer, instance, dialled) = (link.peer, link.hello.instance, link.dialled);
        self.sessions.insert(
            id,
            Session {
                peer,
                instance,
                link: Some(link_id),
                subscriptions: Default::default(),
                resumed: BTreeSet::new(),
                undelivered: BTreeSet::new(),
            },
        );
        if dialled {
            return self.ask_for_realms(now, link_id);
        }
        let answers = self.answer_offers(now, link_id, offers);
        let has_common = answers.iter().any(|answer| answer.refusal.is_none());
        self.offer_back(now, link_id, &answers);
        self.send_control(now, link_id, &Message::Realms(answers));
        if !has_common {
            let reason = "no realm in common, or no grant for it";
            self.close_link(now, link_id, CloseCode::Denied, reason);
        }
    }

    /// Asks to be let into the realms that the peer was just let into.
    pub(super) fn offer_back(&mut self, now: Time, link_id: LinkId, answers: &[RealmStatus]) {
        let Some(link) = self.links.get_mut(&link_id) else { return };
        let mut offers = Vec::new();
        for answer in answers.iter().filter(|answer| answer.refusal.is_none()) {
            let tag = answer.realm.tag();
            let Some(realm) = self.realms.get(&tag).filter(|realm| realm.joined) else { continue };
            if link.offered.insert(tag) {
                offers.push(RealmOffer { realm: realm.id, grant: realm.grant.clone() });
            }
        }
        // one each, as several grants may be more than a frame holds
        for offer in offers {
            self.send_control(now, link_id, &Message::Join(vec![offer]));
        }
    }

    /// The peer answers which realms it lets us into.
    pub(super) fn on_peer_realms(&mut self, now: Time, link_id: LinkId, answers: &[RealmStatus]) {
        let Some(link) = self.links.get_mut(&link_id) else { return };
        let (peer, offered) = (link.peer, &link.offered);
        let Some(peer_link) = link.peer_link.as_mut() else { return };
        let was_of_use = !peer_link.granted.is_empty();
        let mut new = Vec::new();
        for answer in answers {
            let tag = answer.realm.tag();
            let is_ours = self.realms.get(&tag).is_some_and(|realm| realm.id == answer.realm);
            let is_good = is_ours && answer.refusal.is_none() && offered.contains(&tag);
            if is_good && peer_link.granted.insert(tag) {
                new.push(tag);
            }
        }
        let is_of_use = !peer_link.granted.is_empty();
        for tag in new {
            self.tell_peer_subscriptions(now, link_id, tag);
        }
        if was_of_use || !is_of_use {
            return;
        }
        let before = self.peers.get(&peer).copied();
        self.choose_peer_link(now, link_id, peer);
        let link = self.peers.get(&peer).copied();
        if link != before {
            self.events.push_back(Event::PeerLink { peer, link });
        }
    }

    /// A link to a peer is of use: of several one is used, the same at both ends, and the others
    /// end once their calls have.
    fn choose_peer_link(&mut self, now: Time, new_id: LinkId, peer: EndpointId) {
        let Some(old_id) = self.peers.insert(peer, new_id) else { return };
        let (Some(old), Some(new)) = (self.links.get(&old_id), self.links.get(&new_id)) else {
            return;
        };
        if old.hello.instance != new.hello.instance {
            let reason = "the same peer has a newer link";
            return self.close_link(now, old_id, CloseCode::Duplicate, reason);
        }
        // dialled at the same time: the link that the smaller id dialled stays
        let old_stays = old.dialled != new.dialled && (old.dialled == (self.id < peer));
        let loser = if old_stays { new_id } else { old_id };
        if old_stays {
            self.peers.insert(peer, old_id);
        }
        if let Some(peer_link) = self.links.get_mut(&loser).and_then(|it| it.peer_link.as_mut()) {
            peer_link.is_retiring = true;
        }
        self.timers.set(Timer::Retire(loser), now + RETIRE_INTERVAL);
    }

    /// Ends a link that another one replaced, unless calls are open on it.
    pub(super) fn on_retire_due(&mut self, now: Time, link_id: LinkId) {
        let Some(link) = self.links.get(&link_id) else { return };
        if !link.peer_link.as_ref().is_some_and(|peer_link| peer_link.is_retiring) {
            return;
        }
        if link.calls_in.is_empty() && link.calls_out.is_empty() {
            let reason = "another link to the same peer stays";
            return self.close_link(now, link_id, CloseCode::Duplicate, reason);
        }
        self.timers.set(Timer::Retire(link_id), now + RETIRE_INTERVAL);
    }

    /// Ends a link that nothing but control went over for long, unless calls are open on it.
    pub(super) fn on_idle_due(&mut self, now: Time, link_id: LinkId) {
        let Some(link) = self.links.get(&link_id) else { return };
        let Some(peer_link) = &link.peer_link else { return };
        let is_busy = !link.calls_in.is_empty() || !link.calls_out.is_empty();
        let since = if is_busy { now } else { peer_link.used.unwrap_or(now) };
        let end = since + self.config.peer_link_idle;
        if end <= now {
            let reason = "nothing went over this link for long";
            return self.close_link(now, link_id, CloseCode::Done, reason);
        }
        self.timers.set(Timer::Idle(link_id), end);
    }

    /// A link is gone; another one to the same peer may take its place.
    pub(super) fn forget_peer_link(&mut self, _now: Time, link_id: LinkId, peer: EndpointId) {
        if self.peers.get(&peer) != Some(&link_id) {
            return;
        }
        self.peers.remove(&peer);
        let other = self.links.iter_mut().find(|(_, link)| {
            let granted = link.peer_link.as_ref().map(|peer_link| !peer_link.granted.is_empty());
            link.peer == peer && link.is_ready() && granted == Some(true)
        });
        if let Some((other, link)) = other {
            if let Some(peer_link) = &mut link.peer_link {
                peer_link.is_retiring = false;
            }
            self.peers.insert(peer, *other);
        }
        let link = self.peers.get(&peer).copied();
        self.events.push_back(Event::PeerLink { peer, link });
    }

    pub(super) fn peer_link_mut(&mut self, link: LinkId) -> Option<&mut PeerLink> {
        self.links.get_mut(&link)?.peer_link.as_mut()
    }

    /// Whether the peer of a link between leaves carries packets for others.
    pub fn is_carrier(&self, link: LinkId) -> bool {
        self.links.get(&link).is_some_and(|link| link.peer_link.is_some() && link.carries())
    }

    /// The link over which a call to `peer` in a realm can go at once.
    pub(super) fn peer_link(&self, peer: EndpointId, tag: RealmTag) -> Option<LinkId> {
        let id = *self.peers.get(&peer)?;
        let link = self.links.get(&id).filter(|link| link.is_ready())?;
        let granted = &link.peer_link.as_ref()?.granted;
        (tag == RealmTag::ENDPOINT || granted.contains(&tag)).then_some(id)
    }
}
