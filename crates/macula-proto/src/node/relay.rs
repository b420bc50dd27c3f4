//! What a router, or a leaf that offers it, carries between two of its peers: packets whose contents
//! it cannot read.
//!
//! A packet is for an endpoint that is linked here and in a realm of the sender. In a guarded
//! realm the sender's grant must allow `relay` to that endpoint. A leaf only carries between links
//! whose paths are direct: otherwise packets could go in circles, each time in one more wrapping. Packets pass in the order in which
//! they came and wait nowhere in the node: QUIC between the two ends repairs what is lost, so that
//! whatever is too fast is dropped. Spec: docs/protocol §9.3 and §9.3.1.

use std::time::Duration;

use bytes::Bytes;

use super::bucket::{Bucket, Rate};
use super::link::Link;
use super::{Node, Role};
use crate::auth::{Request, Verb};
use crate::id::{EndpointId, LinkId, RealmTag};
use crate::time::Time;
use crate::wire::message::CAPABILITY_CARRY;
use crate::wire::relay::{Datagram, Unreachable};

/// Carriers that one is told of.
const CARRIERS_TOLD_MAX: usize = 4;
/// Links of carriers that are looked at for it.
const CARRIERS_SEEN_MAX: usize = 4_096;

impl Link {
    /// Whether the peer carries packets for others.
    pub(super) fn carries(&self) -> bool {
        self.is_ready() && self.hello.capabilities & CAPABILITY_CARRY != 0
    }

    /// Whether packets may pass between here and the peer on behalf of a third.
    fn is_passage(&self, role: Role) -> bool {
        let is_direct = self.peer_link.as_ref().is_some_and(|it| it.is_direct);
        self.is_ready() && (role == Role::Router || is_direct)
    }
}

impl Node {
    /// A datagram came over a link.
    pub(super) fn on_datagram(&mut self, now: Time, link_id: LinkId, bytes: &Bytes) {
        let role = self.config.role;
        if role == Role::Leaf && !self.config.carries {
            return;
        }
        let Some(link) = self.links.get_mut(&link_id).filter(|link| link.is_passage(role)) else {
            return;
        };
        if let Some(peer_link) = &mut link.peer_link {
            peer_link.used = Some(now);
        }
        let Some(Datagram::Relay { to, part, packet }) = Datagram::decode(bytes) else { return };
        let amount = bytes.len() as u64;
        let per_peer = self.config.relay_bytes_per_second_per_peer;
        let is_within = take(&mut link.relayed, now, amount, per_peer)
            && take(&mut self.relayed, now, amount, self.config.relay_bytes_per_second);
        if !is_within {
            self.stats.relay_dropped += 1;
            return;
        }
        let from = link.peer;
        match self.relay_target(link_id, to) {
            Ok(target) => {
                if let Some(peer_link) = self.peer_link_mut(target) {
                    peer_link.used = Some(now);
                }
                self.stats.relayed += 1;
                self.stats.relayed_bytes += packet.len() as u64;
                self.datagrams.push_back((target, Datagram::Relayed { from, part, packet }));
            }
            Err(reason) => {
                self.stats.relay_refused += 1;
                self.datagrams.push_back((link_id, Datagram::Unreachable { to, reason }));
            }
        }
    }

    /// The link of `to`, if it shares a realm with the peer of `from` in which that may relay.
    fn relay_target(&mut self, from: LinkId, to: EndpointId) -> Result<LinkId, Unreachable> {
        let role = self.config.role;
        let attached = || {
            let session = self.sessions_by_peer.get(&to).and_then(|id| self.sessions.get(id));
            session.and_then(|session| session.link)
        };
        let target_id = match role {
            Role::Router => attached(),
            Role::Leaf => self.peers.get(&to).copied(),
        };
        let target_id = target_id.ok_or(Unreachable::NotHere)?;
        let (Some(link), Some(target)) = (self.links.get(&from), self.links.get(&target_id)) else {
            return Err(Unreachable::NotHere);
        };
        if !target.is_passage(role) || target_id == from {
            return Err(Unreachable::NotHere);
        }
        let unix = self.unix();
        let mut verdict = Err(Unreachable::NotHere);
        for tag in link.realms.intersection(&target.realms) {
            let Some(realm) = self.realms.get(tag) else { continue };
            if !realm.id.is_guarded() {
                return Ok(target_id);
            }
            let (Some(sender), Some(receiver)) = (link.session, target.session) else { continue };
            if realm.check(receiver, unix, Request::Join).is_err() {
                continue;
            }
            let name = to.to_string();
            match realm.check(sender, unix, Request::Use(Verb::Relay, &name)) {
                Ok(()) => return Ok(target_id),
                Err(_) => verdict = Err(Unreachable::Denied),
            }
        }
        self.stats.denied += u64::from(verdict == Err(Unreachable::Denied));
        verdict
    }
}

impl Node {
    /// At a router, the members that offer to carry packets between the peer of a link and `to`: those
    /// of a realm that all three are in, the nearest first.
    pub(super) fn carriers(&self, asker: LinkId, to: EndpointId) -> Vec<EndpointId> {
        let attached = self.sessions_by_peer.get(&to).and_then(|id| self.sessions.get(id));
        let to_link = attached.and_then(|session| session.link);
        let ends = self.links.get(&asker).zip(to_link.and_then(|link| self.links.get(&link)));
        let Some((asker, to_link)) = ends else { return Vec::new() };
        let both: Vec<RealmTag> = asker.realms.intersection(&to_link.realms).copied().collect();
        let links = self.carrier_links.iter().filter_map(|link| self.links.get(link));
        let mut found: Vec<(Option<Duration>, EndpointId)> = links
            .take(CARRIERS_SEEN_MAX)
            .filter(|link| link.carries() && link.peer != asker.peer && link.peer != to)
            .filter(|link| both.iter().any(|tag| link.realms.contains(tag)))
            .map(|link| (link.rtt, link.peer))
            .collect();
        found.sort_by_key(|(rtt, id)| (rtt.is_none(), *rtt, *id));
        found.into_iter().take(CARRIERS_TOLD_MAX).map(|(_, id)| id).collect()
    }

    /// Whether the peer of a link may have packets carried to everybody, in some realm.
    pub(super) fn may_relay_to_all(&self, link: &Link) -> bool {
        let unix = self.unix();
        let mut realms = link.realms.iter().filter_map(|tag| self.realms.get(tag));
        realms.any(|realm| match link.session {
            Some(session) => realm.may_relay_to_all(session, unix),
            None => !realm.id.is_guarded(),
        })
    }
}

/// Takes from a bucket that holds what flows in a second; 0: without limit.
fn take(bucket: &mut Bucket, now: Time, bytes: u64, per_second: u64) -> bool {
    per_second == 0 || bucket.take(now, bytes, Rate { per_second, burst: per_second })
}
