//! What a router carries between two of its peers: packets whose contents it cannot read.
//!
//! A packet is for an endpoint that is attached here and in a realm of the sender. In a guarded
//! realm the sender's grant must allow `relay` to that endpoint. Packets pass in the order in which
//! they came and wait nowhere in the node: QUIC between the two ends repairs what is lost, so that
//! whatever is too fast is dropped. Spec: docs/protocol §9.3.

use bytes::Bytes;

use super::bucket::{Bucket, Rate};
use super::link::Link;
use super::{Node, Role};
use crate::auth::{Request, Verb};
use crate::id::{EndpointId, LinkId};
use crate::time::Time;
use crate::wire::relay::{Datagram, Unreachable};

impl Node {
    /// A datagram came over a link.
    pub(super) fn on_datagram(&mut self, now: Time, link_id: LinkId, bytes: &Bytes) {
        if self.config.role != Role::Router {
            return;
        }
        let Some(link) = self.links.get_mut(&link_id).filter(|link| link.is_ready()) else {
            return;
        };
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
        let session = self.sessions_by_peer.get(&to).and_then(|id| self.sessions.get(id));
        let target_id = session.and_then(|session| session.link).ok_or(Unreachable::NotHere)?;
        let (Some(link), Some(target)) = (self.links.get(&from), self.links.get(&target_id)) else {
            return Err(Unreachable::NotHere);
        };
        if !target.is_ready() || target_id == from {
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
