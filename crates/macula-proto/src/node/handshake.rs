//! Links come, say hello, are probed, say goodbye and go.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;

use super::guard::refusal;
use super::link::{Cargo, Link, PauseReason, PeerHello, Stage};
use super::quota::SHORT;
use super::realm::{Realm, Target};
use super::session::{Session, SessionId};
use super::timers::Timer;
use super::{Action, Admission, Event, Node, Role};
use crate::auth::{Denial, Request, Verb};
use crate::id::{EndpointId, LinkId, RealmId, RealmTag};
use crate::limits;
use crate::time::Time;
use crate::wire::message::{
    CallFailure, CloseCode, ErrorClass, Hello, Message, RealmOffer, RealmStatus, RefusalCode,
};
use crate::wire::{self, Channel};

/// A link that has not said hello by then is closed.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Probes that may go unanswered before the link is closed.
const PROBE_MISSES_MAX: u8 = 2;
/// A link on which a call waits is probed when nothing was heard for so long.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);
/// Silence after which a link on which a call waits is given up.
const WATCH_TIMEOUT: Duration = Duration::from_secs(3);
/// The same of a link between leaves: where a router is gone another may do, but a cable that was out for
/// a few seconds is back soon, and with the link the calls on it would end.
const WATCH_PEER_TIMEOUT: Duration = Duration::from_secs(8);
/// Offers in one frame, bytes; the rest of a hello is small.
const OFFERS_BYTES_MAX: usize = limits::CONTROL_FRAME_BYTES_MAX - 2 * limits::FRAME_HEAD_BYTES_MAX;
/// What an offer takes beside its grant, bytes; at least as much as it does.
const OFFER_OVERHEAD_BYTES: usize = 48;

impl Node {
    pub(super) fn on_link_up(
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
        let full = self.links.len() >= self.config.links_max || self.is_short(now);
        self.links.insert(link, Link::new(now, peer, dialled, remote));
        if full || self.draining {
            let (code, reason) = if full {
                self.stats.over_limit += 1;
                match self.links.len() > self.config.links_max {
                    true => (CloseCode::Limit, "this gateway has as many links as it may have"),
                    false => (CloseCode::Limit, SHORT),
                }
            } else {
                (CloseCode::Restarting, "this gateway is going down")
            };
            return self.close_link(now, link, code, reason);
        }
        self.say_hello(now, link, remote, dialled);
    }

    pub(super) fn say_hello(&mut self, now: Time, link: LinkId, remote: SocketAddr, dialled: bool) {
        self.timers.set(Timer::Handshake(link), now + HANDSHAKE_TIMEOUT);
        let is_upstream = self.links.get(&link).is_some_and(Link::is_upstream);
        let realms = if dialled { self.next_offers(link) } else { Vec::new() };
        let hello = Hello {
            version_min: wire::VERSION_MIN,
            version_max: wire::VERSION_MAX,
            capabilities: self.capabilities(),
            is_router: self.config.role == Role::Router,
            instance: self.config.epoch,
            resumes: if is_upstream { self.upstream_instance } else { 0 },
            observed: remote.to_string(),
            agent: self.config.agent.clone(),
            realms,
        };
        self.send_control(now, link, &Message::Hello(hello));
    }

    /// Realms that a router was not asked for yet: as many as fit into one frame. Empty: all were.
    fn next_offers(&mut self, link: LinkId) -> Vec<RealmOffer> {
        let Some(link) = self.links.get_mut(&link) else { return Vec::new() };
        let mut room = OFFERS_BYTES_MAX;
        let mut offers = Vec::new();
        for (tag, realm) in &self.realms {
            if !realm.joined || link.offered.contains(tag) {
                continue;
            }
            let bytes = realm.grant.len() + OFFER_OVERHEAD_BYTES;
            if bytes > room || offers.len() >= limits::REALMS_PER_LINK_MAX {
                break;
            }
            room -= bytes;
            link.offered.insert(*tag);
            offers.push(RealmOffer { realm: realm.id, grant: realm.grant.clone() });
        }
        offers
    }

    pub(super) fn on_handshake_timeout(&mut self, now: Time, link: LinkId) {
        if self.links.get(&link).is_some_and(|link| link.stage == Stage::Handshake) {
            self.close_link(now, link, CloseCode::Unresponsive, "no hello came");
        }
    }

    pub(super) fn on_hello(&mut self, now: Time, link_id: LinkId, hello: Hello) {
        if hello.version_max < wire::VERSION_MIN || hello.version_min > wire::VERSION_MAX {
            let reason = format!(
                "this side speaks protocol versions {} to {}, yours are {} to {}",
                wire::VERSION_MIN,
                wire::VERSION_MAX,
                hello.version_min,
                hello.version_max
            );
            return self.close_link(now, link_id, CloseCode::Version, &reason);
        }
        let Some(link) = self.links.get_mut(&link_id) else { return };
        let (peer, dialled) = (link.peer, link.dialled);
        let is_peer_link = link.peer_link.is_some();
        if is_peer_link && hello.is_router {
            let reason = "a gateway takes no link of a peer";
            return self.close_link(now, link_id, CloseCode::Denied, reason);
        }
        if self.config.role == Role::Leaf && dialled && !is_peer_link && !hello.is_router {
            return self.close_link(now, link_id, CloseCode::Denied, "this endpoint is no gateway");
        }
        link.stage = Stage::Ready;
        link.hello = PeerHello {
            is_router: hello.is_router,
            instance: hello.instance,
            capabilities: hello.capabilities,
            agent: hello.agent.clone(),
        };
        self.timers.clear(Timer::Handshake(link_id));
        self.timers.set(Timer::Probe(link_id), now + self.config.probe_interval);
        if self.config.role == Role::Router {
            if link.carries() {
                self.carrier_links.insert(link_id);
            }
            self.attach_session(now, link_id, peer, hello.instance);
            let answers = self.answer_offers(now, link_id, hello.realms.clone());
            self.leave_unshown(now, link_id);
            self.note_succession(now, link_id, &hello);
            if !answers.is_empty() {
                self.send_control(now, link_id, &Message::Realms(answers));
            }
            self.resend_undelivered(now, link_id);
        }
        if is_peer_link {
            self.greet_peer(now, link_id, hello.realms);
        }
        if self.links.get(&link_id).is_none_or(|link| !link.is_ready()) {
            return;
        }
        self.actions.push_back(Action::OpenLanes { link: link_id });
        self.events.push_back(Event::LinkReady {
            link: link_id,
            peer,
            agent: hello.agent,
            is_router: hello.is_router,
            instance: hello.instance,
            observed: hello.observed,
        });
        if self.config.role == Role::Leaf && dialled && !is_peer_link {
            self.attach_upstream(now, link_id, hello.instance);
        }
    }

    /// A peer that was attached to another instance of this router tells us that we replace it:
    /// its subscribers are on their way, so nothing counts as delivered to all before they had
    /// time to return. That counts in the realms that it was let into.
    fn note_succession(&mut self, now: Time, link_id: LinkId, hello: &Hello) {
        if hello.resumes == 0 || hello.resumes == self.config.epoch {
            return;
        }
        let until = self.started.unwrap_or(now) + self.config.successor_grace;
        if until <= now {
            return;
        }
        let Some(link) = self.links.get(&link_id) else { return };
        for tag in &link.realms {
            if let Some(realm) = self.realms.get_mut(tag) {
                realm.grace_until = Some(until);
                self.timers.set(Timer::Grace(*tag), until);
            }
        }
    }

    /// Admits the peer to what it asked for, or says why not.
    pub(super) fn answer_offers(
        &mut self,
        now: Time,
        link_id: LinkId,
        offers: Vec<RealmOffer>,
    ) -> Vec<RealmStatus> {
        let mut answers = Vec::with_capacity(offers.len());
        for offer in offers {
            let refusal = self.admit(now, link_id, &offer).err();
            if let Some((RefusalCode::Denied, _)) = &refusal {
                self.stats.denied += 1;
            }
            answers.push(RealmStatus { realm: offer.realm, refusal });
        }
        answers
    }

    fn admit(
        &mut self,
        now: Time,
        link_id: LinkId,
        offer: &RealmOffer,
    ) -> Result<(), (RefusalCode, String)> {
        let tag = offer.realm.tag();
        let Some(link) = self.links.get(&link_id) else { return Ok(()) };
        if !link.realms.contains(&tag) && link.realms.len() >= limits::REALMS_PER_LINK_MAX {
            return Err((RefusalCode::Limit, "too many realms on one link".to_owned()));
        }
        if tag == RealmTag::ENDPOINT {
            let text = "no realm has this id: its first 8 bytes stand for the endpoint itself";
            return Err((RefusalCode::UnknownRealm, text.to_owned()));
        }
        // a realm that is not here costs no check of signatures
        if self.config.admission == Admission::Joined {
            self.host(now, offer.realm)?;
        }
        // before anything is set up for it
        let permit = if offer.realm.is_guarded() {
            Some(self.verify_offer(now, link_id, offer).map_err(refusal)?)
        } else {
            None
        };
        self.host(now, offer.realm)?;
        let members_max = self.config.peers_per_realm_max;
        let is_full = self.realms.get(&tag).is_some_and(|realm| realm.members.len() >= members_max);
        if is_full && !self.is_member(link_id, tag) {
            self.stats.over_limit += 1;
            return Err((RefusalCode::Limit, "the realm has as many peers as it may".to_owned()));
        }
        self.enter(now, link_id, tag, permit);
        Ok(())
    }

    fn is_member(&self, link: LinkId, tag: RealmTag) -> bool {
        let session = self.links.get(&link).and_then(|link| link.session);
        let realm = self.realms.get(&tag);
        realm.zip(session).is_some_and(|(realm, session)| realm.members.contains_key(&session))
    }

    /// Makes sure that a realm which a peer may enter is here.
    fn host(&mut self, now: Time, id: RealmId) -> Result<(), (RefusalCode, String)> {
        let tag = id.tag();
        match self.realms.get(&tag) {
            Some(realm) if realm.id == id => return Ok(()),
            // An open realm may call itself by any id. One that took the tag of a guarded realm,
            // by chance or not, goes.
            Some(realm) if id.is_guarded() && !realm.id.is_guarded() && !realm.joined => {
                let text = "a guarded realm has the same first 8 bytes of its id";
                self.evict_realm(now, tag, &Denial::CannotCheck(text));
            }
            Some(_) => {
                let text = "another realm here has the same first 8 bytes of its id";
                return Err((RefusalCode::UnknownRealm, text.to_owned()));
            }
            None => {}
        }
        if self.config.admission != Admission::AnyOpen {
            let text = "this gateway does not host the realm; its operator can add it with --realm";
            return Err((RefusalCode::UnknownRealm, text.to_owned()));
        }
        if self.realms.len() >= self.config.realms_max && !self.forget_idle_realm() {
            let text = "this gateway hosts as many realms as it may";
            return Err((RefusalCode::Limit, text.to_owned()));
        }
        let realm = Realm::new(id, &self.config, &mut self.rng);
        self.realms.insert(tag, realm);
        Ok(())
    }

    /// Makes room for a realm by forgetting one that nobody is in and nobody here asked for. What
    /// it retained is lost; one with revocations stays.
    fn forget_idle_realm(&mut self) -> bool {
        let idle = self.realms.iter().find(|(_, realm)| {
            !realm.joined && realm.members.is_empty() && realm.revocations.sequence == 0
        });
        let Some(tag) = idle.map(|(tag, _)| *tag) else { return false };
        self.forget_realm(tag);
        true
    }

    pub(super) fn forget_realm(&mut self, tag: RealmTag) {
        self.realms.remove(&tag);
        self.timers.clear(Timer::Ring(tag));
        self.timers.clear(Timer::Grace(tag));
        self.dirty_realms.remove(&tag);
    }

    /// The peer asks for more realms on a standing link.
    pub(super) fn on_join(&mut self, now: Time, link: LinkId, offers: Vec<RealmOffer>) {
        let is_peer_link = self.links.get(&link).is_some_and(|link| link.peer_link.is_some());
        if self.config.role != Role::Router && !is_peer_link {
            return;
        }
        let answers = match self.charge_changes(now, link, offers.len()) {
            Ok(()) => self.answer_offers(now, link, offers),
            Err(refusal) => offers
                .into_iter()
                .map(|offer| RealmStatus { realm: offer.realm, refusal: Some(refusal.clone()) })
                .collect(),
        };
        if is_peer_link {
            self.offer_back(now, link, &answers);
        }
        self.send_control(now, link, &Message::Realms(answers));
    }

    /// Joins a realm; on a router, hosts it.
    pub(super) fn join(&mut self, now: Time, id: RealmId, grant: Bytes) {
        let tag = id.tag();
        if !self.realms.contains_key(&tag) {
            let realm = Realm::new(id, &self.config, &mut self.rng);
            self.realms.insert(tag, realm);
        }
        let Some(realm) = self.realms.get_mut(&tag) else { return };
        let is_news = !realm.joined || realm.grant != grant;
        realm.joined = true;
        realm.grant = grant;
        if !is_news {
            return;
        }
        realm.refused_grant = Bytes::new();
        realm.denied = None;
        let of_peers = self.peers.values().copied();
        let asked: Vec<LinkId> = self.upstream.into_iter().chain(of_peers).collect();
        for link_id in asked {
            let Some(link) = self.links.get_mut(&link_id) else { continue };
            let was_offered = link.offered.remove(&tag);
            // who was dialled shows only what both have
            if link.dialled || was_offered {
                self.ask_for_realms(now, link_id);
            }
        }
    }

    /// Asks a router for the realms that it was not asked for yet.
    pub(super) fn ask_for_realms(&mut self, now: Time, link: LinkId) {
        loop {
            let offers = self.next_offers(link);
            if offers.is_empty() {
                return;
            }
            self.send_control(now, link, &Message::Join(offers));
        }
    }

    /// Why the router does not let this leaf into a guarded realm, if so.
    pub(super) fn denied(&self, id: &RealmId) -> Option<String> {
        let realm = self.realms.get(&id.tag()).filter(|realm| realm.id == *id);
        realm.and_then(|realm| realm.denied.clone())
    }

    fn has_refused_grant(&self, tag: RealmTag) -> bool {
        self.realms.get(&tag).is_some_and(|realm| !realm.refused_grant.is_empty())
    }

    /// The router answers which realms it lets us take part in.
    pub(super) fn on_realms(&mut self, now: Time, link_id: LinkId, answers: Vec<RealmStatus>) {
        if self.links.get(&link_id).is_some_and(|link| link.peer_link.is_some()) {
            return self.on_peer_realms(now, link_id, &answers);
        }
        if self.upstream != Some(link_id) {
            return;
        }
        for answer in answers {
            let tag = answer.realm.tag();
            let known = self.realms.get(&tag).is_some_and(|realm| realm.id == answer.realm);
            if !known {
                continue;
            }
            let Some(link) = self.links.get_mut(&link_id) else { return };
            match &answer.refusal {
                None => {
                    if let Some(realm) = self.realms.get_mut(&tag) {
                        realm.denied = None;
                        realm.good_grant = realm.grant.clone();
                    }
                    if link.realms.insert(tag) {
                        self.resume_realm(now, link_id, tag);
                    }
                }
                // a renewed grant was refused, and the one before still holds
                Some(_) if link.realms.contains(&tag) => {
                    if let Some(realm) = self.realms.get_mut(&tag)
                        && realm.grant != realm.good_grant
                    {
                        realm.refused_grant =
                            std::mem::replace(&mut realm.grant, realm.good_grant.clone());
                    }
                }
                // what spoke against the renewed one may be over: clocks are set right
                Some((RefusalCode::Denied, _)) if self.has_refused_grant(tag) => {
                    if let Some(realm) = self.realms.get_mut(&tag) {
                        realm.grant = std::mem::take(&mut realm.refused_grant);
                    }
                    if let Some(link) = self.links.get_mut(&link_id) {
                        link.offered.remove(&tag);
                    }
                    continue;
                }
                Some((RefusalCode::Denied, reason)) => self.on_denied(tag, reason),
                Some(_) => {}
            }
            let link = self.links.get(&link_id);
            self.events.push_back(Event::RealmAnswered {
                link: link_id,
                realm: answer.realm,
                refusal: answer.refusal,
                is_member: link.is_some_and(|link| link.realms.contains(&tag)),
            });
        }
        self.ask_for_realms(now, link_id);
        self.dispatch_parked(now);
    }

    /// A leaf has a router: what was asked for before is asked for again once realms are admitted.
    fn attach_upstream(&mut self, now: Time, link_id: LinkId, instance: u64) {
        if let Some(old) = self.upstream.replace(link_id)
            && old != link_id
        {
            self.close_link(now, old, CloseCode::Duplicate, "attached to another gateway");
        }
        self.upstream_is_new = self.upstream_instance != 0 && self.upstream_instance != instance;
        self.upstream_instance = instance;
        for (realm, subscription) in std::mem::take(&mut self.unsubscribed) {
            self.tell_unsubscribed(now, link_id, realm, subscription);
        }
        // realms joined while the hello was under way were not part of it, or did not fit
        self.ask_for_realms(now, link_id);
        self.dispatch_parked(now);
    }

    fn attach_session(&mut self, now: Time, link_id: LinkId, peer: EndpointId, instance: u64) {
        let known = self.sessions_by_peer.get(&peer).copied();
        if let Some(id) = known {
            let old = self.sessions.get(&id).and_then(|session| session.link);
            if let Some(old) = old {
                self.detach_link(now, old);
                self.close_link(now, old, CloseCode::Duplicate, "the same peer has a newer link");
            }
            // asked now: when too many are away, the session ended with its link
            let same = self.sessions.get(&id).is_some_and(|session| session.instance == instance);
            if same {
                self.timers.clear(Timer::Session(id));
                if let Some(session) = self.sessions.get_mut(&id) {
                    session.link = Some(link_id);
                }
                if let Some(link) = self.links.get_mut(&link_id) {
                    link.session = Some(id);
                }
                return;
            }
            self.end_session(now, id);
        }
        let id = SessionId(self.next_session);
        self.next_session += 1;
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
        self.sessions_by_peer.insert(peer, id);
        if let Some(link) = self.links.get_mut(&link_id) {
            link.session = Some(id);
        }
    }

    /// Takes a link out of its session: what it had not delivered waits for the next link.
    pub(super) fn detach_link(&mut self, now: Time, link_id: LinkId) {
        let Some(link) = self.links.get_mut(&link_id) else { return };
        let Some(session_id) = link.session.take() else { return };
        // a ring entry may be here twice: once more for each subscription that resumed
        let mut left: Vec<(RealmTag, u64)> = Vec::new();
        // lane 0 carries calls: what becomes of them is decided when the link is gone
        for lane in link.lanes.iter_mut().skip(1) {
            left.extend(lane.unacked.drain(..));
            for queued in lane.queue.drain(..) {
                if let Cargo::AtLeastOnce { realm, entry } = queued.cargo {
                    left.push((realm, entry));
                }
            }
            lane.bytes = 0;
        }
        let bulk = std::mem::take(&mut link.bulk).into_values().map(|bulk| bulk.cargo);
        let held = std::mem::take(&mut link.held).into_values().flatten().map(|held| held.cargo);
        for cargo in bulk.chain(held) {
            if let Cargo::AtLeastOnce { realm, entry } = cargo {
                left.push((realm, entry));
            }
        }
        link.held_bytes = 0;
        // the session has what is owed of them
        let pruned = std::mem::take(&mut link.pruned);
        link.pruned_owed = 0;
        if let Some(session) = self.sessions.get_mut(&session_id) {
            session.link = None;
            self.timers.set(Timer::Session(session_id), now + limits::RESUME_WINDOW);
        }
        self.bound_detached(now);
        for (tag, key) in pruned.into_keys() {
            self.wake_topic(now, tag, &key.topic);
        }
        for (realm, entry) in left {
            self.keep_undelivered(now, Some(session_id), realm, entry);
        }
    }

    /// Keeps a ring entry for the next link of a session. It comes once there, however often it
    /// was on its way on the last one, so that it is owed once from now on.
    pub(super) fn keep_undelivered(
        &mut self,
        now: Time,
        session: Option<SessionId>,
        realm: RealmTag,
        entry: u64,
    ) {
        let session = session.and_then(|session| self.sessions.get_mut(&session));
        if session.is_none_or(|session| !session.undelivered.insert((realm, entry))) {
            self.settle(now, realm, entry);
        }
    }

    /// A returning peer gets what its last link did not deliver, in the order of arrival here.
    fn resend_undelivered(&mut self, now: Time, link_id: LinkId) {
        let unix = self.unix();
        let Some(id) = self.links.get(&link_id).and_then(|link| link.session) else { return };
        let Some(session) = self.sessions.get_mut(&id) else { return };
        for (realm, entry) in std::mem::take(&mut session.undelivered) {
            let Some(hosted) = self.realms.get(&realm) else { continue };
            let Some(held) = hosted.ring.entry(entry) else { continue };
            let publish = held.publish.clone();
            let topic = held.topic.clone();
            let receive = Request::Use(Verb::Subscribe, topic.as_str());
            if hosted.check(id, unix, receive).is_err() {
                // its permit was replaced by a narrower one
                self.give_up(now, realm, entry);
                continue;
            }
            let cargo = Cargo::AtLeastOnce { realm, entry };
            self.send_publish(now, link_id, &topic, &publish, None, cargo);
        }
    }

    pub(super) fn on_session_expired(&mut self, now: Time, id: SessionId) {
        if self.sessions.get(&id).is_some_and(|session| session.link.is_none()) {
            self.end_session(now, id);
        }
    }

    /// Forgets a peer: its subscriptions end and its messages are given up.
    pub(super) fn end_session(&mut self, now: Time, id: SessionId) {
        self.timers.clear(Timer::Session(id));
        let Some(session) = self.sessions.remove(&id) else { return };
        if self.sessions_by_peer.get(&session.peer) == Some(&id) {
            self.sessions_by_peer.remove(&session.peer);
        }
        let tags: BTreeSet<RealmTag> = session.resumed.iter().map(|(tag, _)| *tag).collect();
        for tag in tags {
            self.expect_fewer(tag, session.peer, &session.resumed_patterns(tag), &[]);
        }
        for ((tag, subscription), (pattern, policy)) in session.subscriptions {
            if let Some(realm) = self.realms.get_mut(&tag) {
                realm.trie.remove(&pattern, &Target::Peer { session: id, subscription, policy });
                realm.peer_subscriptions -= 1;
                realm.forget_routes();
            }
        }
        for (tag, entry) in session.undelivered {
            self.give_up(now, tag, entry);
        }
        let mut idle = Vec::new();
        for (tag, realm) in &mut self.realms {
            let Some(member) = realm.members.remove(&id) else { continue };
            if let Some(permit) = member.permit {
                self.expiries.remove(&(permit.expires, id, *tag));
            }
            if realm.is_idle() {
                idle.push(*tag);
            }
        }
        for tag in idle {
            self.realms.remove(&tag);
        }
    }

    pub(super) fn on_link_down(&mut self, now: Time, link_id: LinkId, reason: &str) {
        let session = self.links.get(&link_id).and_then(|link| link.session);
        self.detach_link(now, link_id);
        self.remove_providers(link_id);
        let Some(link) = self.links.remove(&link_id) else { return };
        self.carrier_links.remove(&link_id);
        for timer in [
            Timer::Handshake(link_id),
            Timer::Probe(link_id),
            Timer::Watch(link_id),
            Timer::Stall(link_id),
            Timer::Rate(link_id),
            Timer::Retire(link_id),
            Timer::Idle(link_id),
        ] {
            self.timers.clear(timer);
        }
        self.acks_dirty.remove(&link_id);
        // it waits for nobody any more
        self.waiters.retain(|_, waiting| {
            waiting.retain(|source| source.link() != Some(link_id));
            !waiting.is_empty()
        });
        self.release(now, PauseReason::Target(link_id));
        for sync in &link.syncs {
            self.sync_over(*sync);
        }
        if self.upstream == Some(link_id) {
            self.upstream = None;
            self.forget_prunes();
            let unsure = std::mem::take(&mut self.unsubscribed_unsure).into_iter();
            self.unsubscribed.extend(unsure.map(|(realm, number, _)| (realm, number)));
            // large messages that a flush waited for cannot arrive any more
            self.finish_flushes();
        }
        for tag in &link.realms {
            if let Some(realm) = self.realms.get_mut(tag) {
                realm.quiets.retain(|(_, publisher), _| *publisher != link_id);
            }
        }
        self.forget_peer_link(now, link_id, link.peer);
        if link.peer_link.is_some() {
            self.lose_inflows(now, link_id);
            self.finish_flushes();
        }
        if let Some(session) = session
            && (link.said_goodbye || link.peer_link.is_some())
        {
            self.end_session(now, session);
        }
        self.calls_of_lost_link(now, link_id, &link);
        if link.hello.instance != 0 {
            self.events.push_back(Event::LinkLost {
                link: link_id,
                peer: link.peer,
                reason: reason.to_owned(),
            });
        }
    }

    pub(super) fn close_link(
        &mut self,
        _now: Time,
        link_id: LinkId,
        code: CloseCode,
        reason: &str,
    ) {
        let Some(link) = self.links.get_mut(&link_id) else { return };
        if link.stage == Stage::Closing {
            return;
        }
        link.stage = Stage::Closing;
        self.actions.push_back(Action::CloseLink {
            link: link_id,
            code,
            reason: reason.to_owned(),
        });
    }

    /// The peer broke the protocol: it is told and cut off, nobody else notices.
    pub(super) fn protocol_error(&mut self, now: Time, link: LinkId, reason: &str) {
        self.stats.protocol_errors += 1;
        self.close_link(now, link, CloseCode::Protocol, reason);
    }

    pub(super) fn on_goodbye(
        &mut self,
        link_id: LinkId,
        code: CloseCode,
        reason: String,
        reconnect_in: Duration,
    ) {
        let Some(link) = self.links.get_mut(&link_id) else { return };
        link.said_goodbye = code == CloseCode::Done;
        self.events.push_back(Event::PeerLeaving { link: link_id, code, reason, reconnect_in });
    }

    /// Tells every peer and closes every link; new ones are turned away.
    pub(super) fn shutdown(
        &mut self,
        now: Time,
        code: CloseCode,
        reason: &str,
        reconnect_window: Duration,
    ) {
        self.draining = true;
        let mut links: Vec<LinkId> = self.links.keys().copied().collect();
        links.sort();
        let window = u64::try_from(reconnect_window.as_micros()).unwrap_or(u64::MAX);
        for link in links {
            // spread over the window, so that they do not all come back at once
            let share = match window {
                0 => 0,
                _ => rand_core::Rng::next_u64(&mut self.rng) % window,
            };
            let goodbye = Message::Goodbye {
                code,
                reason: reason.to_owned(),
                reconnect_in: Duration::from_micros(share),
            };
            self.send_control(now, link, &goodbye);
            self.close_link(now, link, code, reason);
        }
    }

    /// The application probe: a stack can go on acknowledging for a program that hangs.
    pub(super) fn on_probe_due(&mut self, now: Time, link_id: LinkId) {
        let interval = self.config.probe_interval;
        let Some(link) = self.links.get_mut(&link_id) else { return };
        if !link.is_ready() {
            return;
        }
        let quiet = now - link.heard;
        if quiet < interval {
            let next = link.heard + interval;
            link.probe_misses = 0;
            return self.timers.set(Timer::Probe(link_id), next);
        }
        if link.probe_sent.is_some() {
            link.probe_misses += 1;
            if link.probe_misses >= PROBE_MISSES_MAX {
                let reason = "did not answer two probes";
                return self.close_link(now, link_id, CloseCode::Unresponsive, reason);
            }
        }
        self.probe(now, link_id);
        self.timers.set(Timer::Probe(link_id), now + interval);
    }

    fn probe(&mut self, now: Time, link_id: LinkId) {
        let id = self.next_probe;
        self.next_probe += 1;
        if let Some(link) = self.links.get_mut(&link_id) {
            link.probe_sent = Some(id);
        }
        self.send_control(now, link_id, &Message::Ping { id });
    }

    pub(super) fn on_pong(&mut self, link_id: LinkId, id: u64) {
        if let Some(link) = self.links.get_mut(&link_id)
            && link.probe_sent == Some(id)
        {
            link.probe_sent = None;
            link.probe_misses = 0;
            if self.upstream == Some(link_id) {
                // control keeps order: what went before the probe has arrived
                self.unsubscribed_unsure.retain(|(_, _, probe)| *probe > id);
            }
        }
    }

    /// A call waits for this peer: look soon whether it is still there.
    pub(super) fn watch(&mut self, now: Time, link_id: LinkId) {
        self.timers.set_if_unset(Timer::Watch(link_id), now + WATCH_INTERVAL);
    }

    pub(super) fn on_watch_due(&mut self, now: Time, link_id: LinkId) {
        let Some(link) = self.links.get_mut(&link_id) else { return };
        if !link.is_ready() || link.calls_out.is_empty() {
            return;
        }
        let quiet = now - link.heard;
        let is_peer = link.peer_link.is_some();
        let timeout = if is_peer { WATCH_PEER_TIMEOUT } else { WATCH_TIMEOUT };
        if quiet >= timeout && link.probe_sent.is_some() {
            let reason = "is silent while calls wait for it";
            return self.close_link(now, link_id, CloseCode::Unresponsive, reason);
        }
        if quiet >= WATCH_INTERVAL {
            if link.probe_sent.is_none() {
                self.probe(now, link_id);
            } else if !link.suspect {
                link.suspect = true;
                self.fail_over_from(now, link_id);
            }
        }
        self.timers.set(Timer::Watch(link_id), now + WATCH_INTERVAL);
    }

    /// Cuts off a subscriber that takes nothing while others wait for it.
    pub(super) fn on_stall_due(&mut self, now: Time, link_id: LinkId) {
        let patience = self.config.stall_timeout;
        let Some(link) = self.links.get(&link_id) else { return };
        if link.owed_since().is_some_and(|since| now - since >= patience) {
            self.unprune_owed(now, link_id);
        }
        let Some(link) = self.links.get(&link_id) else { return };
        let since = link.stalled_since().into_iter().chain(link.owed_since()).min();
        let Some(since) = since else { return };
        if now - since < patience {
            return self.timers.set(Timer::Stall(link_id), since + patience);
        }
        self.stats.stalled_links += 1;
        let reason = format!("took nothing for {} s while messages waited", patience.as_secs());
        // what it did not take is given up at once: it is here, it just does not read
        let session = self.links.get(&link_id).and_then(|link| link.session);
        self.detach_link(now, link_id);
        if let Some(session) = session {
            self.end_session(now, session);
        }
        self.remove_providers(link_id);
        self.close_link(now, link_id, CloseCode::SlowConsumer, &reason);
    }

    /// An answer to a call that cannot be carried out here.
    pub(super) fn failure(class: ErrorClass, message: &str, retry_safe: bool) -> CallFailure {
        CallFailure {
            class,
            code: 0,
            message: message.to_owned(),
            retry_after: Duration::ZERO,
            retry_safe,
        }
    }

    /// Sends a message on the lane of calls.
    pub(super) fn send_call_lane(&mut self, now: Time, link: LinkId, message: &Message) {
        self.push_plain(now, link, Channel::CALLS, wire::encode(message));
    }
}
