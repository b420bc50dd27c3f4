//! Guarded realms at a router: grants are shown, renewed, run out and are taken back.
//!
//! A member's permit lives in its realm (`Realm::members`). It is looked at when the member joins
//! and at every use: publish, retain, subscribe, delivery, register, call. Spec: docs/protocol §7.

use bytes::Bytes;

use super::bucket::Rate;
use super::realm::{Member, NO_CLOCK, Realm, Target};
use super::session::SessionId;
use super::timers::Timer;
use super::{Event, Node};
use crate::auth::{Denial, Permit, Request, UnixTime, Verb, decide};
use crate::id::{LinkId, RealmId, RealmTag};
use crate::limits;
use crate::pubsub::{Pattern, ProcedureName};
use crate::time::Time;
use crate::wire::message::{CloseCode, Message, RealmOffer, RefusalCode};

/// Checks of signatures that one link may cause: so many at once, and one more each second.
const CHECKS: Rate = Rate { per_second: 1, burst: 2 * limits::REALMS_PER_LINK_MAX as u64 };
/// The same before the link has shown a good grant: a handshake costs a stranger little, and shall
/// not buy much of our time.
const CHECKS_OF_STRANGERS: Rate = Rate { per_second: 1, burst: 4 };
/// A record of revocations counts as one check for each so many bytes begun.
const RECORD_BYTES_PER_CHECK: usize = 64 * 1024;
/// Of the realms that a router may host, so many that nobody named may have records, and stay
/// hosted for that.
const RECORDS_SHARE: usize = 4;
/// Why a router without a verifier admits nobody to a guarded realm.
const NO_VERIFIER: &str = "it was started without a verifier";

impl Node {
    /// The time by the calendar; `None` before the driver told it.
    pub(super) fn unix(&self) -> Option<UnixTime> {
        let (at, unix) = self.wall_clock?;
        let since = u64::try_from((self.now - at).as_millis()).unwrap_or(u64::MAX);
        Some(UnixTime(unix.0.saturating_add(since)))
    }

    /// The driver says what time it is; clocks may jump.
    pub(super) fn on_wall_clock(&mut self, now: Time, unix: UnixTime) {
        self.wall_clock = Some((now, unix));
        self.on_permits_due(now);
    }

    /// Sets the timer of the permit that ends first.
    fn arm_permits(&mut self, now: Time) {
        let (Some((expires, ..)), Some(unix)) = (self.expiries.first(), self.unix()) else {
            return self.timers.clear(Timer::Permits);
        };
        let left = std::time::Duration::from_millis(expires.0.saturating_sub(unix.0));
        self.timers.set(Timer::Permits, now + left);
    }

    /// Cuts off everybody whose permit has ended.
    pub(super) fn on_permits_due(&mut self, now: Time) {
        let Some(unix) = self.unix() else { return };
        while let Some((expires, session, tag)) = self.expiries.first().copied() {
            if expires > unix {
                break;
            }
            let verdict =
                self.realms.get(&tag).map(|realm| realm.check(session, Some(unix), Request::Join));
            self.expiries.pop_first();
            if let Some(Err(denial)) = verdict {
                self.expel(now, session, tag, &denial);
            }
        }
        self.arm_permits(now);
    }

    /// Whether the peer of a link may do something in a realm.
    pub(super) fn check(
        &mut self,
        link: LinkId,
        tag: RealmTag,
        request: Request<'_>,
    ) -> Result<(), Denial> {
        let Some(realm) = self.realms.get(&tag) else { return Ok(()) };
        if !realm.id.is_guarded() {
            return Ok(());
        }
        let session = self.links.get(&link).and_then(|link| link.session);
        let verdict = match session {
            Some(session) => realm.check(session, self.unix(), request),
            None => Err(Denial::NoGrant),
        };
        self.stats.denied += u64::from(verdict.is_err());
        verdict
    }

    /// Checks a grant that a peer shows for a guarded realm.
    pub(super) fn verify_offer(
        &mut self,
        now: Time,
        link_id: LinkId,
        offer: &RealmOffer,
    ) -> Result<Permit, Denial> {
        if offer.grant.is_empty() {
            return Err(Denial::NoGrant);
        }
        let unix = self.unix().ok_or(Denial::CannotCheck(NO_CLOCK))?;
        let verifier = self.config.verifier.clone().ok_or(Denial::CannotCheck(NO_VERIFIER))?;
        let peer = self.take_checks(now, link_id, 1)?;
        let permit = verifier.permit(&offer.realm, &offer.grant)?;
        let known = self.realms.get(&offer.realm.tag()).filter(|realm| realm.id == offer.realm);
        let nothing = Default::default();
        let revocations = known.map_or(&nothing, |realm| &realm.revocations);
        decide(&permit, revocations, &peer, unix, Request::Join)?;
        if let Some(link) = self.links.get_mut(&link_id) {
            link.is_known = true;
        }
        Ok(permit)
    }

    /// Signatures are checked for a link as often as it may ask for that.
    fn take_checks(
        &mut self,
        now: Time,
        link: LinkId,
        count: u64,
    ) -> Result<crate::EndpointId, Denial> {
        let link = self.links.get_mut(&link).ok_or(Denial::NoGrant)?;
        let rate = if link.is_known { CHECKS } else { CHECKS_OF_STRANGERS };
        if link.checks.take(now, count, rate) {
            Ok(link.peer)
        } else {
            let seconds = link.checks.wait(now, count, rate).as_secs() + 1;
            Err(Denial::TooOften { seconds })
        }
    }

    /// Enters a peer into a realm, or replaces its permit by a renewed one.
    pub(super) fn enter(
        &mut self,
        now: Time,
        link_id: LinkId,
        tag: RealmTag,
        permit: Option<Permit>,
    ) {
        let Some(link) = self.links.get_mut(&link_id) else { return };
        link.realms.insert(tag);
        let (peer, Some(session)) = (link.peer, link.session) else { return };
        let Some(realm) = self.realms.get_mut(&tag) else { return };
        let expires = permit.as_ref().map(|permit| permit.expires);
        let old = realm.members.insert(session, Member { peer, permit });
        let Some(expires) = expires else { return };
        if let Some(Member { permit: Some(old), .. }) = &old {
            self.expiries.remove(&(old.expires, session, tag));
        }
        self.expiries.insert((expires, session, tag));
        self.arm_permits(now);
        if old.is_some() {
            self.recheck(now, link_id, session, tag);
        }
    }

    /// A permit was replaced: what it does not cover any more ends.
    fn recheck(&mut self, now: Time, link_id: LinkId, session: SessionId, tag: RealmTag) {
        let unix = self.unix();
        let Some(realm) = self.realms.get_mut(&tag) else { return };
        realm.forget_routes();
        self.wake_matching(now, tag, |_| true);
        let (Some(link), Some(realm)) = (self.links.get(&link_id), self.realms.get_mut(&tag))
        else {
            return;
        };
        let Some(entry) = self.sessions.get(&session) else { return };
        let lost: Vec<(u32, Denial)> = entry
            .subscriptions
            .range((tag, 0)..=(tag, u32::MAX))
            .filter_map(|((_, number), (pattern, _))| {
                let request = Request::Cover(Verb::Subscribe, pattern);
                Some((*number, realm.check(session, unix, request).err()?))
            })
            .collect();
        let unserved: Vec<(u32, Denial)> = link
            .registrations
            .range((tag, 0)..=(tag, u32::MAX))
            .filter_map(|((_, number), procedure)| {
                let request = Request::Use(Verb::Serve, procedure.as_str());
                Some((*number, realm.check(session, unix, request).err()?))
            })
            .collect();
        self.stats.denied += (lost.len() + unserved.len()) as u64;
        for (subscription, denial) in lost {
            self.on_unsubscribe(now, link_id, tag, subscription);
            let refusal = Some((RefusalCode::Denied, denial.to_string()));
            let answer = Message::SubscribeResult { realm: tag, subscription, refusal };
            self.send_control(now, link_id, &answer);
        }
        for (registration, denial) in unserved {
            self.on_unregister(link_id, tag, registration);
            let refusal = Some((RefusalCode::Denied, denial.to_string()));
            let answer = Message::RegisterResult { realm: tag, registration, refusal };
            self.send_control(now, link_id, &answer);
        }
    }

    /// A returning peer did not show a grant for these realms again, so it has left them.
    pub(super) fn leave_unshown(&mut self, now: Time, link_id: LinkId) {
        let Some(link) = self.links.get(&link_id) else { return };
        let Some(session) = link.session else { return };
        let unshown: Vec<RealmTag> = self
            .realms
            .iter()
            .filter(|(tag, realm)| {
                realm.id.is_guarded()
                    && !link.realms.contains(tag)
                    && realm.members.contains_key(&session)
            })
            .map(|(tag, _)| *tag)
            .collect();
        for tag in unshown {
            self.leave_realm(now, session, tag);
        }
    }

    /// Puts a peer out of a realm: its link is closed with the reason, so that nothing that is
    /// queued or open goes on. It may come back for its other realms, where its session waits.
    fn expel(&mut self, now: Time, session: SessionId, tag: RealmTag, denial: &Denial) {
        let Some(realm) = self.realms.get(&tag) else { return };
        let (id, reason) = (realm.id, denial.to_string());
        let Some(entry) = self.sessions.get(&session) else { return };
        let (peer, link) = (entry.peer, entry.link);
        self.stats.expelled += 1;
        if let Some(link) = link {
            self.detach_link(now, link);
            self.remove_providers(link);
            self.close_link(now, link, CloseCode::Denied, &reason);
        }
        self.leave_realm(now, session, tag);
        if !self.realms.values().any(|realm| realm.members.contains_key(&session)) {
            self.end_session(now, session);
        }
        self.events.push_back(Event::Expelled { peer, realm: id, reason });
    }

    /// Ends what a peer has in a realm.
    fn leave_realm(&mut self, now: Time, id: SessionId, tag: RealmTag) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let (peer, resumed) = (session.peer, session.resumed_patterns(tag));
        let of_realm = (tag, 0)..=(tag, u32::MAX);
        let gone: Vec<_> = session
            .subscriptions
            .range(of_realm)
            .map(|(key, (pattern, policy))| (*key, pattern.clone(), *policy))
            .collect();
        for (key, ..) in &gone {
            session.subscriptions.remove(key);
            session.resumed.remove(key);
        }
        let of_realm = (tag, 0)..=(tag, u64::MAX);
        let undelivered: Vec<u64> =
            session.undelivered.range(of_realm).map(|(_, entry)| *entry).collect();
        for entry in &undelivered {
            session.undelivered.remove(&(tag, *entry));
        }
        self.expect_fewer(tag, peer, &resumed, &[]);
        let Some(realm) = self.realms.get_mut(&tag) else { return };
        for ((_, subscription), pattern, policy) in gone {
            let target = Target::Peer { session: id, subscription, policy };
            realm.trie.remove(&pattern, &target);
            realm.peer_subscriptions -= 1;
        }
        realm.forget_routes();
        if let Some(Member { permit: Some(permit), .. }) = realm.members.remove(&id) {
            self.expiries.remove(&(permit.expires, id, tag));
        }
        for entry in undelivered {
            self.give_up(now, tag, entry);
        }
        if self.realms.get(&tag).is_some_and(|realm| realm.is_idle()) {
            self.realms.remove(&tag);
        }
    }

    /// Puts everybody out of an open realm that nobody here asked for.
    pub(super) fn evict_realm(&mut self, now: Time, tag: RealmTag, denial: &Denial) {
        let Some(realm) = self.realms.get(&tag) else { return };
        let sessions: Vec<SessionId> = realm.members.keys().copied().collect();
        for session in sessions {
            self.expel(now, session, tag, denial);
        }
        self.realms.remove(&tag);
    }

    /// The router does not let this leaf into a realm, or not any more: whatever the application
    /// has or wants there is told why. What it asks for later is told at once, until it joins
    /// again with another grant.
    pub(super) fn on_denied(&mut self, tag: RealmTag, reason: &str) {
        let Some(realm) = self.realms.get_mut(&tag) else { return };
        realm.denied = Some(reason.to_owned());
        let (id, code) = (realm.id, RefusalCode::Denied);
        realm.unconfirmed_bytes = 0;
        for (topic, stream) in &mut realm.out {
            stream.retained = None;
            for held in std::mem::take(&mut stream.unconfirmed) {
                self.events.push_back(Event::PublishRefused {
                    realm: id,
                    topic: topic.clone(),
                    first: held.publish.first,
                    count: held.publish.count,
                    code,
                    reason: reason.to_owned(),
                });
            }
        }
        let ended: Vec<_> = realm.locals.keys().copied().collect();
        for subscription in ended {
            self.end_subscription(tag, subscription);
            let reason = reason.to_owned();
            self.events.push_back(Event::SubscribeRefused { subscription, code, reason });
        }
        let unserved: Vec<_> = self
            .registrations
            .iter()
            .filter(|(_, local)| local.realm == tag)
            .map(|(registration, _)| *registration)
            .collect();
        for registration in unserved {
            self.end_registration(registration);
            let reason = reason.to_owned();
            self.events.push_back(Event::RegisterRefused { registration, code, reason });
        }
    }

    /// Takes a record of revocations, from the local side or from a peer: what counts is its
    /// signature. Returns the sequence that holds from now on; one that is not newer changes
    /// nothing.
    pub(super) fn revoke(&mut self, now: Time, record: &Bytes) -> Result<(RealmId, u64), Denial> {
        if record.len() > limits::REVOCATIONS_BYTES_MAX {
            return Err(Denial::Malformed("the record is larger than 1 MiB".to_owned()));
        }
        let verifier = self.config.verifier.clone().ok_or(Denial::CannotCheck(NO_VERIFIER))?;
        let id = verifier.realm_of(record)?;
        let tag = id.tag();
        let hosted = self.realms.get(&tag).filter(|realm| realm.id == id);
        let Some(known) = hosted.map(|realm| realm.revocations.sequence) else {
            return Err(Denial::CannotCheck("it does not host the realm of this record"));
        };
        let is_unnamed = |realm: &&Realm| !realm.joined && realm.revocations.sequence > 0;
        let unnamed = self.realms.values().filter(is_unnamed).count();
        let is_news = self.realms.get(&tag).is_some_and(|realm| !realm.joined) && known == 0;
        if is_news && unnamed >= self.config.realms_max / RECORDS_SHARE {
            return Err(Denial::CannotCheck("it keeps as many records of such realms as it may"));
        }
        let revocations = verifier.revocations(&id, record)?;
        if revocations.sequence <= known {
            return Ok((id, known));
        }
        let sequence = revocations.sequence;
        let unix = self.unix();
        let Some(realm) = self.realms.get_mut(&tag) else { return Ok((id, known)) };
        realm.revocations = revocations;
        let out: Vec<(SessionId, Denial)> = realm
            .members
            .keys()
            .filter_map(|id| Some((*id, realm.check(*id, unix, Request::Join).err()?)))
            .collect();
        let expelled = out.len();
        for (session, denial) in out {
            self.expel(now, session, tag, &denial);
        }
        self.events.push_back(Event::Revoked {
            realm: id,
            sequence,
            expelled,
            record: record.clone(),
        });
        Ok((id, sequence))
    }

    /// The same from a peer, which may ask for it as often as it may show grants.
    pub(super) fn revoke_for(
        &mut self,
        now: Time,
        asker: Option<LinkId>,
        record: &Bytes,
    ) -> Result<Bytes, Denial> {
        if let Some(link) = asker {
            let count = record.len().div_ceil(RECORD_BYTES_PER_CHECK).max(1);
            self.take_checks(now, link, count as u64)?;
        }
        let (_, sequence) = self.revoke(now, record)?;
        Ok(format!(r#"{{"sequence":{sequence}}}"#).into())
    }

    /// Whether a peer may subscribe to all of a pattern.
    pub(super) fn check_pattern(
        &mut self,
        link: LinkId,
        tag: RealmTag,
        pattern: &Pattern,
    ) -> Result<(), (RefusalCode, String)> {
        self.check(link, tag, Request::Cover(Verb::Subscribe, pattern)).map_err(refusal)
    }

    /// Whether a peer may serve a procedure.
    pub(super) fn check_serve(
        &mut self,
        link: LinkId,
        tag: RealmTag,
        procedure: &ProcedureName,
    ) -> Result<(), (RefusalCode, String)> {
        self.check(link, tag, Request::Use(Verb::Serve, procedure.as_str())).map_err(refusal)
    }
}

/// A denial as an answer on the wire.
pub(super) fn refusal(denial: Denial) -> (RefusalCode, String) {
    (RefusalCode::Denied, denial.to_string())
}
