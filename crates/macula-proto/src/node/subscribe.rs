//! Subscriptions, of the local application and of peers, and what is handed to them.

use super::link::{Cargo, PauseReason, Queued};
use super::realm::{LocalSubscription, Source, Target};
use super::{Delivery, DeliveryMode, Event, LossReason, Node, Qos, Role, SubscribeOptions};
use crate::auth::{Request, Verb};
use crate::id::{LinkId, RealmId, RealmTag, SubscriptionId};
use crate::limits;
use crate::pubsub::seen::{NewMessages, StreamKey};
use crate::pubsub::{Pattern, Topic};
use crate::time::Time;
use crate::wire::message::{
    CloseCode, Message, Publish, RefusalCode, Register, SlowPolicy, Subscribe,
};
use crate::wire::{self, Channel};

/// Streams that a `LatestOnly` subscription remembers; beyond, it starts afresh.
const LATEST_STREAMS_MAX: usize = 65_536;

impl Node {
    /// Subscribes the local application.
    pub(super) fn subscribe(
        &mut self,
        now: Time,
        subscription: SubscriptionId,
        realm_id: &RealmId,
        pattern: Pattern,
        options: SubscribeOptions,
    ) {
        let tag = realm_id.tag();
        if self.subscriptions.contains_key(&subscription) {
            return;
        }
        if let Some(reason) = self.denied(realm_id) {
            let code = RefusalCode::Denied;
            return self.events.push_back(Event::SubscribeRefused { subscription, code, reason });
        }
        let Some(realm) = self.realm_mut(realm_id) else {
            return self.events.push_back(Event::SubscribeRefused {
                subscription,
                code: RefusalCode::UnknownRealm,
                reason: "this node did not join the realm".to_owned(),
            });
        };
        realm.trie.insert(&pattern, Target::Local(subscription));
        realm.forget_routes();
        let local = LocalSubscription {
            pattern: pattern.clone(),
            options,
            confirmed: false,
            full: false,
            latest: Default::default(),
        };
        realm.locals.insert(subscription, local);
        self.subscriptions.insert(subscription, tag);
        match self.config.role {
            Role::Router => {
                self.wake_matching(now, tag, |topic| pattern.matches(topic));
                let realm = self.realms.get(&tag);
                let retained: Vec<(Topic, Publish)> = realm
                    .filter(|_| !options.skip_retained)
                    .map(|realm| {
                        let found = realm.retained.matching(&pattern);
                        found.map(|(topic, publish)| (topic.clone(), publish.clone())).collect()
                    })
                    .unwrap_or_default();
                self.events.push_back(Event::Subscribed { subscription });
                for (topic, publish) in retained {
                    self.hand_over(now, subscription, &topic, &publish, None, true);
                }
            }
            Role::Leaf => {
                let admitted = self.upstream.filter(|link| {
                    self.links.get(link).is_some_and(|link| link.realms.contains(&tag))
                });
                if let Some(link) = admitted {
                    self.ask_subscription(now, link, tag, subscription);
                }
                self.subscribe_at_peers(now, tag, subscription);
            }
        }
    }

    fn ask_subscription(
        &mut self,
        now: Time,
        link: LinkId,
        tag: RealmTag,
        subscription: SubscriptionId,
    ) {
        let Some(local) = self.realms.get(&tag).and_then(|realm| realm.locals.get(&subscription))
        else {
            return;
        };
        let subscribe = Subscribe {
            realm: tag,
            subscription: subscription.0 as u32,
            pattern: local.pattern.as_str().to_owned(),
            policy: local.options.policy,
            resume: local.confirmed,
            retained: !local.options.skip_retained && !local.confirmed,
        };
        self.send_control(now, link, &Message::Subscribe(subscribe));
    }

    /// Ends a subscription of the local application.
    pub(super) fn unsubscribe(&mut self, now: Time, subscription: SubscriptionId) {
        let Some(tag) = self.subscriptions.get(&subscription).copied() else { return };
        self.end_subscription(tag, subscription);
        if self.config.role == Role::Leaf {
            let number = subscription.0 as u32;
            self.unsubscribe_at_peers(now, tag, subscription);
            match self.upstream {
                Some(link) => self.tell_unsubscribed(now, link, tag, number),
                // a router that still holds our session is told when we are back
                None if self.unsubscribed.len() < self.config.subscriptions_per_link_max => {
                    self.unsubscribed.insert((tag, number));
                }
                None => {}
            }
        }
    }

    /// Forgets a subscription of the local application; nobody waits for it any more.
    pub(super) fn end_subscription(&mut self, tag: RealmTag, subscription: SubscriptionId) {
        self.subscriptions.remove(&subscription);
        if let Some(realm) = self.realms.get_mut(&tag)
            && let Some(local) = realm.locals.remove(&subscription)
        {
            realm.trie.remove(&local.pattern, &Target::Local(subscription));
            realm.forget_routes();
        }
        self.release(self.now, PauseReason::Handle(subscription));
        self.end_inflows(self.now, tag);
    }

    /// Tells the router that a subscription ended, and remembers it until it surely knows.
    pub(super) fn tell_unsubscribed(
        &mut self,
        now: Time,
        link: LinkId,
        tag: RealmTag,
        number: u32,
    ) {
        if self.unsubscribed_unsure.len() >= self.config.subscriptions_per_link_max {
            self.unsubscribed_unsure.pop_front();
        }
        self.unsubscribed_unsure.push_back((tag, number, self.next_probe));
        let message = Message::Unsubscribe { realm: tag, subscription: number };
        self.send_control(now, link, &message);
    }

    /// The router let us into a realm: everything that was asked for before is asked for again.
    pub(super) fn resume_realm(&mut self, now: Time, link: LinkId, tag: RealmTag) {
        let Some(realm) = self.realms.get(&tag) else { return };
        let subscriptions: Vec<SubscriptionId> = realm.locals.keys().copied().collect();
        for subscription in subscriptions {
            self.ask_subscription(now, link, tag, subscription);
        }
        let registrations: Vec<Register> = self
            .registrations
            .iter()
            .filter(|(_, local)| local.realm == tag)
            .map(|(id, local)| Register {
                realm: tag,
                registration: id.0 as u32,
                procedure: local.procedure.as_str().to_owned(),
                concurrency: local.concurrency,
            })
            .collect();
        for register in registrations {
            self.send_control(now, link, &Message::Register(register));
        }
        self.resume_prunes(now, tag);
        self.replay_unconfirmed(now, link, tag);
    }

    /// A peer subscribes.
    pub(super) fn on_subscribe(&mut self, now: Time, link_id: LinkId, subscribe: Subscribe) {
        let tag = subscribe.realm;
        let number = subscribe.subscription;
        let result = self
            .charge_change(now, link_id)
            .and_then(|()| match subscribe.retained || subscribe.resume {
                true => self.may_search(now, link_id),
                false => Ok(()),
            })
            .and_then(|()| self.admit_subscription(link_id, &subscribe));
        let (refusal, pattern, was_known) = match result {
            Ok((pattern, was_known)) => (None, Some(pattern), was_known),
            Err(refusal) => (Some(refusal), None, false),
        };
        let answer = Message::SubscribeResult { realm: tag, subscription: number, refusal };
        self.send_control(now, link_id, &answer);
        let Some(pattern) = pattern else { return };
        if subscribe.resume && !was_known {
            let session = self.links.get(&link_id).and_then(|link| link.session);
            if let Some(session) = session.and_then(|session| self.sessions.get_mut(&session)) {
                session.resumed.insert((tag, number));
            }
            self.replay_ring(now, link_id, tag, &pattern);
        }
        self.recount_receivers(tag, &pattern);
        self.wake_matching(now, tag, |topic| pattern.matches(topic));
        if subscribe.retained {
            self.send_retained(now, link_id, tag, number, &pattern);
        }
    }

    /// Enters a peer's subscription; says whether this router knew it already.
    fn admit_subscription(
        &mut self,
        link_id: LinkId,
        subscribe: &Subscribe,
    ) -> Result<(Pattern, bool), (RefusalCode, String)> {
        let tag = subscribe.realm;
        let max = self.config.subscriptions_per_link_max;
        let link = self.links.get(&link_id);
        let admitted = link.is_some_and(|link| link.realms.contains(&tag));
        let session_id = link.and_then(|link| link.session).filter(|_| admitted);
        let Some(session_id) = session_id.filter(|_| self.realms.contains_key(&tag)) else {
            return Err(not_admitted());
        };
        let pattern = Pattern::parse(&subscribe.pattern)
            .map_err(|error| (RefusalCode::BadName, error.to_string()))?;
        self.check_pattern(link_id, tag, &pattern)?;
        let Some(realm) = self.realms.get_mut(&tag) else { return Err(not_admitted()) };
        let Some(session) = self.sessions.get_mut(&session_id) else {
            return Err((RefusalCode::UnknownRealm, "no session".to_owned()));
        };
        let key = (tag, subscribe.subscription);
        let known = session.subscriptions.get(&key).cloned();
        let is_new = known.is_none();
        if known.is_none() && session.subscriptions.len() >= max {
            let text = format!("a link may have {max} subscriptions");
            return Err((RefusalCode::Limit, text));
        }
        if known.is_none() && realm.peer_subscriptions >= self.config.subscriptions_per_realm_max {
            self.stats.over_limit += 1;
            let text = "the realm has as many subscriptions as it may".to_owned();
            return Err((RefusalCode::Limit, text));
        }
        let same = known.as_ref() == Some(&(pattern.clone(), subscribe.policy));
        if let Some((old, policy)) = known.filter(|_| !same) {
            let subscription = subscribe.subscription;
            realm.trie.remove(&old, &Target::Peer { session: session_id, subscription, policy });
        }
        if !same {
            let target = Target::Peer {
                session: session_id,
                subscription: subscribe.subscription,
                policy: subscribe.policy,
            };
            realm.trie.insert(&pattern, target);
            realm.forget_routes();
            realm.peer_subscriptions += usize::from(is_new);
            session.subscriptions.insert(key, (pattern.clone(), subscribe.policy));
        }
        Ok((pattern, same))
    }

    /// A subscriber that outlived a router gets what the ring holds; it discards what it has.
    fn replay_ring(&mut self, now: Time, link_id: LinkId, tag: RealmTag, pattern: &Pattern) {
        let unix = self.unix();
        let Some(link) = self.links.get(&link_id) else { return };
        let (peer, Some(session)) = (link.peer, link.session) else { return };
        let Some(realm) = self.realms.get_mut(&tag) else { return };
        let mut replay = Vec::new();
        for id in realm.ring.matching(|topic| pattern.matches(topic)) {
            let Some(entry) = realm.ring.entry(id) else { continue };
            let receive = Request::Use(Verb::Subscribe, entry.topic.as_str());
            if entry.publish.publisher == peer || realm.check(session, unix, receive).is_err() {
                continue;
            }
            replay.push((id, entry.topic.clone(), entry.publish.clone(), entry.stream.clone()));
            realm.ring.reopen(id);
        }
        let looked_at = realm.ring.len();
        for (_, topic, publish, stream) in &replay {
            let receivers =
                realm.receivers(topic, unix, &self.sessions, publish.publisher, |_| true);
            if let Some(stream) = realm.acks.get_mut(stream) {
                stream.receivers = receivers;
            }
        }
        self.charge_search(now, link_id, looked_at, replay.len());
        for (entry, topic, publish, _) in replay {
            let cargo = Cargo::AtLeastOnce { realm: tag, entry };
            self.send_publish(now, link_id, &topic, &publish, None, cargo);
        }
    }

    fn send_retained(
        &mut self,
        now: Time,
        link_id: LinkId,
        tag: RealmTag,
        subscription: u32,
        pattern: &Pattern,
    ) {
        let (max, unix) = (self.config.lane_queue_bytes_max, self.unix());
        let Some(realm) = self.realms.get(&tag) else { return };
        let Some(session) = self.links.get(&link_id).and_then(|link| link.session) else { return };
        let may_receive = |topic: &Topic| {
            let receive = Request::Use(Verb::Subscribe, topic.as_str());
            realm.check(session, unix, receive).is_ok()
        };
        let (mut looked_at, mut found) = (0, 0);
        let retained: Vec<Publish> = realm
            .retained
            .candidates(pattern)
            .inspect(|_| looked_at += 1)
            .filter(|(topic, _)| pattern.matches(topic))
            .inspect(|_| found += 1)
            .filter(|(topic, _)| may_receive(topic))
            .map(|(_, publish)| publish.clone())
            .collect();
        self.charge_search(now, link_id, looked_at, found);
        let mut left_out = 0;
        for publish in retained {
            let lane = wire::lane_of(&publish.topic);
            let is_large = publish.body.len() > limits::LANE_MESSAGE_BYTES_MAX;
            let waiting = self.links.get(&link_id).map_or(0, |link| {
                if is_large { link.bulk_out.bytes } else { link.lane_bytes(lane) }
            });
            if waiting > max {
                left_out += 1;
                continue;
            }
            let author = publish.publisher;
            let frame = wire::encode(&Message::Retained { subscription, publish });
            if is_large {
                self.push_plain(now, link_id, Channel::Bulk, frame);
            } else {
                let (messages, publisher) = (1, author.into());
                let cargo = Cargo::AtMostOnce { messages, droppable: true, publisher };
                self.push(now, link_id, Channel::Lane(lane), Queued { frame, cargo });
            }
        }
        self.count_dropped(link_id, tag, left_out);
    }

    pub(super) fn on_unsubscribe(
        &mut self,
        now: Time,
        link_id: LinkId,
        tag: RealmTag,
        subscription: u32,
    ) {
        let Some(session_id) = self.links.get(&link_id).and_then(|link| link.session) else {
            return;
        };
        let Some(session) = self.sessions.get_mut(&session_id) else { return };
        let key = (tag, subscription);
        let Some((pattern, policy)) = session.subscriptions.remove(&key) else { return };
        if self.charge_change(now, link_id).is_err() {
            let reason = "changes its subscriptions too fast";
            self.close_link(now, link_id, CloseCode::Limit, reason);
        }
        let Some(session) = self.sessions.get_mut(&session_id) else { return };
        if session.resumed.remove(&key) {
            let (peer, left) = (session.peer, session.resumed_patterns(tag));
            self.expect_fewer(tag, peer, std::slice::from_ref(&pattern), &left);
        }
        if let Some(realm) = self.realms.get_mut(&tag) {
            realm
                .trie
                .remove(&pattern, &Target::Peer { session: session_id, subscription, policy });
            realm.peer_subscriptions -= 1;
            realm.forget_routes();
        }
    }

    pub(super) fn on_subscribe_result(
        &mut self,
        link_id: LinkId,
        tag: RealmTag,
        subscription: u32,
        refusal: Option<(RefusalCode, String)>,
    ) {
        if self.upstream != Some(link_id) {
            return;
        }
        let subscription = SubscriptionId(u64::from(subscription));
        let Some(local) =
            self.realms.get_mut(&tag).and_then(|realm| realm.locals.get_mut(&subscription))
        else {
            return;
        };
        match refusal {
            None => {
                local.confirmed = true;
                self.events.push_back(Event::Subscribed { subscription });
            }
            Some((code, reason)) => {
                self.end_subscription(tag, subscription);
                self.events.push_back(Event::SubscribeRefused { subscription, code, reason });
            }
        }
    }

    /// A batch came to a leaf: hands over what is new.
    pub(super) fn take_publish(
        &mut self,
        now: Time,
        source: Source,
        topic: &Topic,
        publish: Publish,
    ) {
        if wire::batch::validate(publish.count, &publish.body).is_err() {
            // not the router's fault: it does not look into batches
            self.stats.protocol_errors += 1;
            return;
        }
        let from_peer = source
            .link()
            .filter(|link| self.links.get(link).is_some_and(|link| link.peer_link.is_some()));
        let Some(realm) = self.realms.get(&publish.realm) else { return };
        let has_two_ways =
            !realm.inflows.is_empty() && realm.inflows.contains_key(&stream_key(&publish, topic));
        if from_peer.is_some() || has_two_ways {
            self.take_of_two_ways(now, source, topic, publish, from_peer);
        } else {
            self.take_in_order(now, source, topic, publish);
        }
    }

    /// Hands over a batch with nothing before it under way.
    pub(super) fn take_in_order(
        &mut self,
        now: Time,
        source: Source,
        topic: &Topic,
        publish: Publish,
    ) {
        let unix = self.unix();
        let Some(realm) = self.realms.get_mut(&publish.realm) else { return };
        let key = stream_key(&publish, topic);
        let accepted = realm.seen.accept(&key, publish.first, publish.count, publish.start);
        // every way keeps order, and was waited for: what is missing now will not come
        if accepted.missing > 0 {
            realm.seen.touch(&key).settle_below(publish.first);
        }
        let route = realm.route(topic, unix);
        let realm_id = realm.id;
        let new = accepted.new.messages(publish.count);
        self.stats.duplicates += u64::from(publish.count - new);
        if accepted.missing > 0 {
            self.stats.gaps += accepted.missing;
            for subscription in &route.locals {
                self.events.push_back(Event::Lost {
                    subscription: Some(*subscription),
                    realm: realm_id,
                    messages: accepted.missing,
                    reason: LossReason::Gap,
                });
            }
        }
        for piece in pieces(publish, &accepted.new) {
            for subscription in &route.locals {
                self.hand_over(now, *subscription, topic, &piece, Some(source), false);
            }
        }
    }

    /// A retained message came for one subscription.
    pub(super) fn on_retained(
        &mut self,
        now: Time,
        link_id: LinkId,
        channel: Channel,
        subscription: u32,
        publish: Publish,
    ) {
        let subscription = SubscriptionId(u64::from(subscription));
        let tag = publish.realm;
        if self.upstream != Some(link_id) || publish.count != 1 {
            return;
        }
        let Some(realm) = self.realms.get_mut(&tag) else { return };
        let Some(topic) = realm.topic(&publish.topic) else { return };
        let matches =
            realm.locals.get(&subscription).is_some_and(|local| local.pattern.matches(&topic));
        let key = stream_key(&publish, &topic);
        let newer = realm.seen.peek(&key).is_some_and(|seen| seen.contiguous() > publish.first);
        if !matches || newer {
            return;
        }
        // not noted as seen: what leads up to it, and the message itself, may still be under way
        let source = match channel {
            Channel::Lane(lane) => Some(Source::Lane(link_id, lane)),
            Channel::Control | Channel::Bulk | Channel::Stream(_) => None,
        };
        self.hand_over(now, subscription, &topic, &publish, source, true);
    }

    /// Hands a batch to one local subscription.
    pub(super) fn hand_over(
        &mut self,
        _now: Time,
        subscription: SubscriptionId,
        topic: &Topic,
        publish: &Publish,
        source: Option<Source>,
        retained: bool,
    ) {
        let Some(realm) = self.realms.get_mut(&publish.realm) else { return };
        let Some(local) = realm.locals.get_mut(&subscription) else { return };
        if local.options.mode == DeliveryMode::LatestOnly && !retained {
            let last = publish.first + u64::from(publish.count) - 1;
            if local.latest.len() >= LATEST_STREAMS_MAX {
                local.latest.clear();
            }
            let newest = local.latest.entry(stream_key(publish, topic)).or_default();
            if *newest >= last {
                return;
            }
            *newest = last;
        }
        let waits = local.full && (publish.qos1 || local.options.policy != SlowPolicy::DropOldest);
        self.stats.messages_out += u64::from(publish.count);
        self.events.push_back(Event::Deliver(Delivery {
            subscription,
            topic: topic.clone(),
            publisher: publish.publisher,
            first: publish.first,
            count: publish.count,
            qos: Qos::from(publish.qos1),
            retained,
            body: publish.body.clone(),
        }));
        if let (true, Some(source)) = (waits, source) {
            self.hold(source, PauseReason::Handle(subscription));
        }
    }

    pub(super) fn on_handle_full(&mut self, subscription: SubscriptionId) {
        if let Some(local) = self.local_mut(subscription) {
            local.full = true;
        }
    }

    pub(super) fn on_handle_ready(&mut self, now: Time, subscription: SubscriptionId) {
        if let Some(local) = self.local_mut(subscription) {
            local.full = false;
        }
        self.release(now, PauseReason::Handle(subscription));
    }

    fn local_mut(&mut self, subscription: SubscriptionId) -> Option<&mut LocalSubscription> {
        let tag = self.subscriptions.get(&subscription)?;
        self.realms.get_mut(tag)?.locals.get_mut(&subscription)
    }

    /// The router dropped messages because this side was slow.
    pub(super) fn on_dropped(&mut self, link_id: LinkId, tag: RealmTag, total: u64) {
        let Some(realm) = self.realms.get(&tag) else { return };
        let Some(link) = self.links.get_mut(&link_id) else { return };
        if self.upstream != Some(link_id) && link.peer_link.is_none() {
            return;
        }
        let known = link.dropped.entry(tag).or_default();
        let new = total.saturating_sub(*known);
        *known = total.max(*known);
        if new > 0 {
            self.events.push_back(Event::Lost {
                subscription: None,
                realm: realm.id,
                messages: new,
                reason: LossReason::SlowHere,
            });
        }
    }
}

fn not_admitted() -> (RefusalCode, String) {
    (RefusalCode::UnknownRealm, "not admitted to the realm".to_owned())
}

pub(super) fn stream_key(publish: &Publish, topic: &Topic) -> StreamKey {
    StreamKey { publisher: publish.publisher, epoch: publish.epoch, topic: topic.clone() }
}

/// The parts of a batch that are new. Empty when the body does not hold what the head says.
pub(super) fn pieces(publish: Publish, new: &NewMessages) -> Vec<Publish> {
    match new {
        NewMessages::None => Vec::new(),
        NewMessages::All => vec![publish],
        NewMessages::AllAfter(skip) => wire::batch::skip(publish.count, &publish.body, *skip)
            .map(|(count, body)| {
                let first = publish.first + u64::from(*skip);
                Publish { first, count, body, start: false, ..publish }
            })
            .into_iter()
            .collect(),
        NewMessages::Parts(parts) => {
            parts.iter().filter_map(|part| piece(&publish, part.first, part.count)).collect()
        }
    }
}

/// The messages `first .. first + count` of a batch.
fn piece(publish: &Publish, first: u64, count: u32) -> Option<Publish> {
    let skip = u32::try_from(first.checked_sub(publish.first)?).ok()?;
    let mut batch = wire::batch::BatchBuilder::new();
    let messages = wire::batch::BatchIter::new(publish.count, publish.body.clone());
    for message in messages.skip(skip as usize).take(count as usize) {
        batch.push_bytes(message);
    }
    let (built, body) = batch.finish();
    // the flag holds for the last message of the whole batch
    let retain = publish.retain && skip.checked_add(count) == Some(publish.count);
    (built == count).then(|| Publish {
        first,
        count,
        retain,
        body,
        start: false,
        ..publish.clone()
    })
}

/// The last message of a batch on its own, in memory of its own.
pub(super) fn last_of(publish: &Publish) -> Publish {
    let last = wire::batch::BatchIter::new(publish.count, publish.body.clone()).last();
    let body = last.map(|body| bytes::Bytes::copy_from_slice(&body)).unwrap_or_default();
    let skipped = publish.count.saturating_sub(1);
    Publish {
        first: publish.first + u64::from(skipped),
        count: 1,
        start: publish.start && skipped == 0,
        body,
        ..publish.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::EndpointId;
    use crate::pubsub::seen::NewRange;

    #[test]
    fn only_the_part_with_the_last_message_is_retained() {
        let mut batch = wire::batch::BatchBuilder::new();
        for text in ["one", "two", "three"] {
            batch.push(text.as_bytes());
        }
        let (count, body) = batch.finish();
        let whole = Publish {
            realm: RealmTag::ENDPOINT,
            publisher: EndpointId::from_bytes([1; 32]),
            epoch: 1,
            first: 10,
            count,
            ttl: 1,
            qos1: true,
            retain: true,
            start: false,
            topic: bytes::Bytes::from_static(b"a"),
            body,
        };
        let parts = [NewRange { first: 10, count: 1 }, NewRange { first: 12, count: 1 }];
        let found: Vec<_> = pieces(whole, &NewMessages::Parts(parts.to_vec()))
            .into_iter()
            .map(|piece| (piece.first, piece.retain, piece.body))
            .collect();
        let (one, three) = (bytes::Bytes::from_static(b"one"), bytes::Bytes::from_static(b"three"));
        assert_eq!(found, [(10, false, one), (12, true, three)]);
    }
}
