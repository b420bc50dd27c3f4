//! Joining, and keeping the links that a node ought to have.
//!
//! Every look at the table asks for what is missing: links to the closest routers known, and a few in
//! each bucket in which there is anybody, near ones first; and gives up what nobody needs.

use std::collections::BTreeMap;
use std::time::Duration;

use super::api::Event;
use super::coordinate::Coordinate;
use super::core::{Core, Tag};
use super::message::{Body, Contact, Message, Need};
use crate::id::{Distance, Key, KeyKind, LinkId};
use crate::limits::CONTACTS_PER_MESSAGE_MAX;
use crate::time::Time;

/// From a change to the look at the table that it causes: others may follow.
const SETTLE: Duration = Duration::from_millis(200);
/// A link that nobody needs is closed after this.
const SURPLUS_AFTER: Duration = Duration::from_secs(10);
/// Requests to connect that one look at the table begins.
const CONNECTS_PER_LOOK: usize = 6;
/// Lookups in buckets that one look at the table begins.
const FILLS_PER_LOOK: usize = 3;
/// A bucket that turned out to have nobody new is looked at again after this; doubles.
const FILL_PAUSE: Duration = Duration::from_secs(5);
/// The longest pause while the bucket has no link at all.
const FILL_EMPTY_PAUSE: Duration = Duration::from_secs(30);
/// Neighbours that a node with few links asks for more at once.
const ASKED_MAX: usize = 3;
/// The first buckets, which get one link more.
const CROWDED_BUCKETS: u8 = 2;
/// The pause between looks doubles so often, at most, while nothing changes.
const QUIET_MAX: u8 = 2;
/// A coordinate that has moved so far is told again.
const MOVED: Duration = Duration::from_millis(25);

/// With fewer links than siblings are wanted the application is told; first pause before it is told
/// again, and longest.
const LONELY_PAUSE: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(240));
/// After this a newcomer whose search was answered is joined, whatever is still lacking: somebody may name
/// routers without end that do not exist.
const JOIN_PATIENCE: Duration = Duration::from_secs(120);
/// Ways on which a newcomer asks for itself at once.
const JOIN_PATHS: u8 = 2;

/// When a bucket may be looked up again.
#[derive(Clone, Copy, Debug)]
struct Fill {
    due: Time,
    pause: Duration,
}

/// What is due.
#[derive(Debug, Default)]
pub(super) struct Upkeep {
    look: Option<Time>,
    probe: Option<Time>,
    refresh: Option<Time>,
    /// Siblings to exchange contacts with at the next look.
    exchange: Vec<LinkId>,
    is_exchange_with_all: bool,
    fills: BTreeMap<u8, Fill>,
    /// Looks in a row that found nothing to do.
    quiet: u8,
    /// When the application may be told again how few neighbours there are, and the pause after that.
    lonely: Option<(Time, Duration)>,
    /// Since when the node tries to become part of the overlay.
    joining: Option<Time>,
    /// Somebody has said who is close to this node.
    is_answered: bool,
    /// A search for the routers around the own key was not answered: the closest of them may be one
    /// that drops, so others that know them may answer too.
    is_unanswered: bool,
    is_joined: bool,
    is_leaving: bool,
}

impl Upkeep {
    /// Whether the node has been part of the overlay.
    pub(super) const fn is_joined(&self) -> bool {
        self.is_joined
    }

    /// Something has changed: look at the table soon.
    pub(super) fn soon(&mut self, now: Time) {
        self.by(now + SETTLE);
    }

    /// Look at the table at `at`, or before.
    pub(super) fn by(&mut self, at: Time) {
        self.look = Some(self.look.map_or(at, |look| look.min(at)));
    }

    pub(super) fn probe_by(&mut self, at: Time) {
        self.probe = Some(self.probe.map_or(at, |probe| probe.min(at)));
    }

    /// `link` may be to one of the closest now.
    pub(super) fn siblings_changed(&mut self, now: Time, link: LinkId) {
        self.quiet = 0;
        self.exchange.push(link);
        self.soon(now);
    }

    pub(super) fn link_gone(&mut self, now: Time, was_sibling: bool) {
        self.is_exchange_with_all |= was_sibling;
        if was_sibling {
            self.quiet = 0;
        }
        self.soon(now);
    }
}

impl Core {
    /// Becomes part of the overlay by way of the links that are up.
    pub(super) fn join(&mut self, now: Time) {
        self.upkeep.is_leaving = false;
        if self.links.len() == 0 {
            // the first of its realm
            self.upkeep.is_joined = true;
            return self.event(Event::Joined);
        }
        if !self.upkeep.is_joined {
            self.upkeep.joining.get_or_insert(now);
        }
        self.ask_for_self(now, None);
        self.upkeep.by(now + self.config.attempt_timeout);
    }

    /// Looks for the routers closest to this one, by way of a neighbour or of any.
    pub(super) fn ask_for_self(&mut self, now: Time, first: Option<LinkId>) {
        let early = self.upkeep.is_unanswered;
        let body = Body::Find { except: Some(self.id), early };
        let deadline = now + self.config.attempt_timeout * 4;
        // a newcomer's first neighbour may drop what it is given
        let paths = if self.upkeep.joining.is_some() && first.is_none() { JOIN_PATHS } else { 1 };
        self.request_via(now, self.key, body, paths, Tag::Join, deadline, first);
    }

    /// Says good-bye to all neighbours.
    pub(super) fn leave(&mut self, _now: Time) {
        self.upkeep.is_leaving = true;
        let links: Vec<LinkId> = self.links.iter().map(|link| link.id).collect();
        links.into_iter().for_each(|link| self.send(link, Message::Leave));
    }

    pub(super) fn poll_timeout(&self) -> Option<Time> {
        [self.upkeep.look, self.upkeep.probe, self.upkeep.refresh, self.routes.poll_timeout()]
            .into_iter()
            .flatten()
            .min()
    }

    pub(super) fn tick(&mut self, now: Time) {
        self.routes_tick(now);
        if self.upkeep.probe.is_some_and(|due| due <= now) {
            self.judge_probes(now);
        }
        if self.upkeep.refresh.is_some_and(|due| due <= now) {
            self.upkeep.fills.clear();
            self.upkeep.refresh = None;
            self.ask_for_self(now, None);
            self.upkeep.look = Some(now);
        }
        if self.upkeep.look.is_some_and(|due| due <= now) {
            self.upkeep.look = None;
            self.look(now);
        }
    }

    fn judge_probes(&mut self, now: Time) {
        self.upkeep.probe = None;
        let dead: Vec<LinkId> = self
            .links
            .iter()
            .filter(|link| link.probe_due.is_some_and(|due| due <= now))
            .map(|link| link.id)
            .collect();
        dead.into_iter().for_each(|link| self.drop_dead(now, link));
        if let Some(due) = self.links.iter().filter_map(|link| link.probe_due).min() {
            self.upkeep.probe_by(due);
        }
    }

    /// The closest routers to this node's own key were found.
    pub(super) fn found_self(&mut self, now: Time, closest: &[Contact]) {
        self.upkeep.is_unanswered = closest.is_empty();
        if closest.is_empty() && self.upkeep.joining.is_some() && self.links.len() > 0 {
            self.ask_for_self(now, None);
        }
        self.upkeep.is_answered |= !closest.is_empty();
        self.learn_all(closest);
        self.upkeep.by(now);
    }

    /// Contacts of a bucket were found.
    pub(super) fn filled(&mut self, now: Time, contacts: &[Contact]) {
        self.learn_all(contacts);
        self.upkeep.soon(now);
    }

    /// Contacts close to a neighbour came.
    pub(super) fn siblings_received(
        &mut self,
        now: Time,
        from: LinkId,
        at: Coordinate,
        ask: bool,
        contacts: Vec<Contact>,
    ) {
        if contacts.len() > CONTACTS_PER_MESSAGE_MAX {
            self.stats.messages_unexpected += 1;
            return;
        }
        let Some(link) = self.links.get_mut(from) else { return };
        link.peer.at = at;
        if ask {
            self.send_siblings(from, false);
        }
        let reach = self.links.reach(&self.key, self.config.siblings);
        let mut close: Vec<(Distance, Contact)> = contacts
            .into_iter()
            .map(|contact| (contact.key.distance(&self.key), contact))
            .filter(|(distance, contact)| *distance < reach && contact.id != self.id)
            .filter(|(_, contact)| self.links.to(&contact.id).is_none())
            .collect();
        close.sort_unstable_by_key(|(distance, _)| *distance);
        close.truncate(self.config.siblings);
        for (_, contact) in close {
            self.table.learn(&self.key, contact, self.config.contacts_per_bucket);
            let is_ready =
                self.table.find(&self.key, &contact.key).is_some_and(|known| known.is_ready(now));
            if is_ready && !self.upkeep.is_leaving {
                self.start_connecting(now, contact, Need::Sibling, false, Some(from));
            }
        }
    }

    fn send_siblings(&mut self, to: LinkId, ask: bool) {
        let Some(link) = self.links.get(to) else { return };
        let (key, id) = (link.peer.key, link.peer.id);
        let mut contacts = self.closest_except(&key, self.config.siblings, Some(id));
        contacts.retain(|contact| contact.id != self.id);
        let at = self.place.coordinate();
        if let Some(link) = self.links.get_mut(to) {
            link.told = at;
        }
        self.send(to, Message::Siblings { at, ask, contacts });
    }

    /// Looks at the table: what is missing, what is too much?
    fn look(&mut self, now: Time) {
        if self.upkeep.is_leaving || self.links.len() == 0 {
            if let Some(due) = self.redial_lost(now) {
                self.upkeep.by(due);
            }
            if !self.upkeep.is_leaving && self.upkeep.is_joined {
                self.tell_lonely(now);
            }
            return;
        }
        let mut room = CONNECTS_PER_LOOK;
        let (missing_siblings, rested) = self.want_siblings(now, &mut room);
        self.exchange_siblings();
        let is_settled = missing_siblings == 0 && !self.links.is_awaiting_sibling();
        let wants_more = if is_settled { self.want_buckets(now, &mut room) } else { false };
        let is_complete = is_settled && !wants_more && self.links.awaited() == 0;
        let is_found = self.upkeep.is_answered || self.links.len() >= self.config.siblings;
        let since = self.upkeep.joining;
        let is_late = since.is_some_and(|at| now.saturating_since(at) >= JOIN_PATIENCE);
        if since.is_some() && is_found && (is_complete || is_late) {
            self.stats.joins_incomplete += u64::from(!is_complete);
            self.upkeep.joining = None;
            self.upkeep.is_joined = true;
            self.event(Event::Joined);
            let all: Vec<(LinkId, Need)> =
                self.links.iter().map(|link| (link.id, link.mine)).collect();
            all.into_iter().for_each(|(link, need)| self.tell_need(link, need));
        }
        let is_quiet = room == CONNECTS_PER_LOOK && !wants_more && is_settled;
        self.sort_needs(now, is_quiet);
        if is_complete && self.links.len() < self.config.siblings {
            self.tell_lonely(now);
        }
        let interval = if is_quiet {
            // one sibling after the other is asked whether it knows somebody closer
            let turn = self.draw() as usize % self.links.siblings().len().max(1);
            if let Some(link) = self.links.siblings().get(turn).copied() {
                self.send_siblings(link, true);
            }
            // the longer nothing has changed, the more rarely
            self.upkeep.quiet = self.upkeep.quiet.saturating_add(1);
            self.links.shrink();
            self.config.upkeep_interval * (1 << (self.upkeep.quiet / 2).min(QUIET_MAX))
        } else {
            self.upkeep.quiet = 0;
            SETTLE * 4
        };
        let next = now + self.jittered(interval);
        self.upkeep.by(next);
        for due in self.redial_lost(now).into_iter().chain(rested) {
            self.upkeep.by(due);
        }
        if self.upkeep.refresh.is_none() {
            let after = self.jittered(self.config.refresh_interval);
            self.upkeep.refresh = Some(now + after);
        }
    }

    /// Tells the application that there are suspiciously few neighbours, from time to time: the realm
    /// is small, or those that this node has met hide the rest.
    fn tell_lonely(&mut self, now: Time) {
        let (due, pause) = self.upkeep.lonely.unwrap_or((now, LONELY_PAUSE.0));
        if due <= now {
            self.stats.lonely += 1;
            self.event(Event::Lonely { links: self.links.len() });
            let next = now + self.jittered(pause);
            self.upkeep.lonely = Some((next, (pause * 2).min(LONELY_PAUSE.1)));
            self.upkeep.by(next);
        } else {
            self.upkeep.by(due);
        }
    }

    /// Asks for links to the closest routers known; returns how many of those that may well answer are
    /// missing, and when the first that rests may be asked again.
    fn want_siblings(&mut self, now: Time, room: &mut usize) -> (usize, Option<Time>) {
        let wanted = self.config.siblings;
        // the deepest buckets hold the closest; within a bucket order by distance
        let reach = self.links.reach(&self.key, wanted);
        let mut close: Vec<(Distance, bool, Contact)> = Vec::new();
        let mut last_bucket = None;
        let mut rested: Option<Time> = None;
        for (bucket, known) in self.table.iter().rev() {
            if close.len() >= wanted && last_bucket != Some(bucket) {
                break;
            }
            last_bucket = Some(bucket);
            let distance = known.contact.key.distance(&self.key);
            if distance > reach {
                continue;
            }
            if known.is_ready(now) {
                close.push((distance, known.is_doubtful(), known.contact));
            } else if self.links.to(&known.contact.id).is_none() {
                rested = rested.into_iter().chain([known.ready_at()]).min();
            }
        }
        close.sort_unstable_by_key(|(distance, ..)| *distance);
        close.truncate(wanted);
        let mut missing = 0;
        for (_, is_doubtful, contact) in close {
            if self.links.to(&contact.id).is_some() {
                continue;
            }
            // who did not answer is asked again, but others shall not have to wait for that
            let counts = usize::from(!is_doubtful);
            if self.links.is_connecting(&contact.id) {
                missing += counts;
            } else if *room > 0 && self.start_connecting(now, contact, Need::Sibling, false, None) {
                *room -= 1;
                missing += counts;
            }
        }
        (missing, rested)
    }

    fn exchange_siblings(&mut self) {
        let mut to = std::mem::take(&mut self.upkeep.exchange);
        if std::mem::take(&mut self.upkeep.is_exchange_with_all) {
            to.extend(self.links.siblings().iter().take(ASKED_MAX).copied());
        }
        to.sort_unstable();
        to.dedup();
        let close: Vec<LinkId> =
            to.into_iter().filter(|link| self.links.siblings().contains(link)).collect();
        close.into_iter().for_each(|link| self.send_siblings(link, true));
    }

    /// Asks for links in buckets that have too few; says whether something is still to be done.
    fn want_buckets(&mut self, now: Time, room: &mut usize) -> bool {
        let Some(depth) = self.depth() else { return false };
        let mut fills = FILLS_PER_LOOK;
        let mut is_lacking = false;
        for bucket in (0..=depth).rev() {
            let total = self.links.of_overlay() + self.links.connecting();
            // one in every bucket is what makes routing right; the others make it fast
            let wanted =
                if total >= self.config.links_max { 1 } else { self.per_bucket(bucket, depth) };
            let have = self.links.iter().filter(|link| link.bucket == bucket).count();
            let coming = self
                .table
                .bucket(bucket)
                .iter()
                .filter(|known| self.links.is_connecting(&known.contact.id))
                .count();
            if have + coming >= wanted {
                continue;
            }
            if *room > 0 {
                if let Some(contact) = self.best_in(now, bucket) {
                    is_lacking = true;
                    let need = if have == 0 { Need::Sole } else { Need::Bucket };
                    if self.start_connecting(now, contact, need, false, None) {
                        *room -= 1;
                    }
                    continue;
                }
            } else {
                is_lacking = true;
                continue;
            }
            if coming == 0 && fills > 0 && self.may_fill(now, bucket, have == 0) {
                fills -= 1;
                is_lacking = true;
                let drawn = self.draw().to_be_bytes();
                let filler = Key::derive(&self.realm, KeyKind::Record, &drawn);
                let target = self.key.sibling_at(bucket, &filler);
                let body = Body::Find { except: Some(self.id), early: false };
                self.request(now, target, body, 1, Tag::Fill);
            }
        }
        is_lacking
    }

    /// The deepest bucket that is not all siblings.
    fn depth(&self) -> Option<u8> {
        let last = self.links.siblings().last().and_then(|link| self.links.get(*link));
        last.map(|link| link.bucket)
    }

    /// Links wanted in a bucket: one more in the first ones, with which every way begins, and when
    /// there are few buckets.
    fn per_bucket(&self, bucket: u8, depth: u8) -> usize {
        let usual = self.config.links_per_bucket;
        let total = usual * (usize::from(depth) + 1) + self.config.siblings;
        if bucket < CROWDED_BUCKETS || total < self.config.links_min { usual + 1 } else { usual }
    }

    fn may_fill(&mut self, now: Time, bucket: u8, is_empty: bool) -> bool {
        let first = Fill { due: now, pause: FILL_PAUSE };
        let fill = *self.upkeep.fills.entry(bucket).or_insert(first);
        if fill.due > now {
            return false;
        }
        // a newcomer alone in a bucket makes this node a dead end until it knows of it
        let longest = if is_empty { FILL_EMPTY_PAUSE } else { self.config.refresh_interval };
        let pause = (fill.pause * 2).min(longest);
        self.upkeep.fills.insert(bucket, Fill { due: now + fill.pause, pause });
        true
    }

    /// The contact of a bucket to ask next: where there is no link yet, the nearest.
    fn best_in(&mut self, now: Time, bucket: u8) -> Option<Contact> {
        let here = self.place.coordinate();
        let linked: Vec<Key> = self
            .links
            .iter()
            .filter(|link| link.bucket == bucket)
            .map(|link| link.peer.key)
            .collect();
        let proximity = self.config.proximity;
        let mut best: Option<(u8, Duration, Contact)> = None;
        for known in self.table.bucket(bucket) {
            let contact = known.contact;
            let is_taken =
                self.links.to(&contact.id).is_some() || self.links.is_connecting(&contact.id);
            if is_taken || !known.is_ready(now) {
                continue;
            }
            let crowd = crowding(bucket, &contact.key, &linked);
            let rtt = match proximity && !contact.at.is_unknown() {
                true => here.rtt(&contact.at),
                false => Duration::from_secs(1),
            };
            if best.as_ref().is_none_or(|(c, r, _)| (crowd, rtt) < (*c, *r)) {
                best = Some((crowd, rtt, contact));
            }
        }
        best.map(|(_, _, contact)| contact)
    }

    /// Says what each link is needed for now, tells neighbours when that has changed, and closes what
    /// neither side needs.
    fn sort_needs(&mut self, now: Time, is_quiet: bool) {
        let depth = self.depth().unwrap_or_default();
        let here = self.place.coordinate();
        let siblings = self.links.siblings().to_vec();
        let needed = self.needed_in_buckets(depth);
        let mut told = Vec::new();
        for link in self.links.iter_mut() {
            let need = if siblings.contains(&link.id) {
                Need::Sibling
            } else if needed.contains(&link.id) {
                Need::Bucket
            } else if link.users > 0 {
                Need::Traffic
            } else {
                Need::None
            };
            let has_moved = is_quiet && (link.told.is_unknown() || link.told.moved(&here) > MOVED);
            if need == Need::None && link.mine != Need::None {
                link.idle_since = now;
            }
            if need != link.mine || has_moved {
                told.push((link.id, need));
            }
        }
        for (id, need) in told {
            self.tell_need(id, need);
        }
        let surplus: Vec<LinkId> = self
            .links
            .iter()
            .filter(|link| link.is_surplus())
            .filter(|link| now.saturating_since(link.idle_since) >= SURPLUS_AFTER)
            .map(|link| link.id)
            .collect();
        surplus.into_iter().for_each(|link| self.drop_surplus(now, link));
    }

    /// The links to keep for the buckets: spread over each bucket, and rather those that the other
    /// side needs too, so that both need fewer; then what is in use; then near ones.
    fn needed_in_buckets(&self, depth: u8) -> Vec<LinkId> {
        let mut order: Vec<(u8, [bool; 2], u32, LinkId, Key)> = self
            .links
            .iter()
            .map(|link| {
                let is_unneeded = [link.theirs == Need::None, link.mine == Need::None];
                (link.bucket, is_unneeded, link.rtt, link.id, link.peer.key)
            })
            .collect();
        order.sort_unstable();
        let mut needed = Vec::with_capacity(order.len());
        let mut chosen: Vec<Key> = Vec::new();
        for group in order.chunk_by(|a, b| a.0 == b.0) {
            let bucket = group.first().map_or(0, |entry| entry.0);
            chosen.clear();
            for _ in 0..self.per_bucket(bucket, depth).min(group.len()) {
                let left = group.iter().filter(|entry| !chosen.contains(&entry.4));
                let best = left.min_by_key(|entry| crowding(bucket, &entry.4, &chosen));
                if let Some(entry) = best {
                    chosen.push(entry.4);
                    needed.push(entry.3);
                }
            }
        }
        needed
    }
}

/// How near a key is to those that a bucket has links to already: 0 for the other half of the bucket,
/// 1 for the other quarter, 2 for less.
fn crowding(bucket: u8, key: &Key, linked: &[Key]) -> u8 {
    let shared = linked.iter().map(|other| key.distance(other).shared_bits()).max();
    shared.map_or(0, |bits| bits.saturating_sub(bucket.saturating_add(1)).min(2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::EndpointId;
    use crate::overlay::api::Output;
    use crate::overlay::core::{Upcall, testing::lone_node};
    use crate::overlay::message::{Answer, Reply};

    /// Lets a newcomer join by way of one neighbour that names routers which never answer, and says
    /// after how many seconds it has joined. `names` tells whom it names in each second.
    fn seconds_to_join(node: &mut Core, names: impl Fn(u64) -> Option<u64>) -> Option<u64> {
        let (link, rtt) = (LinkId(1), Duration::from_millis(20));
        let only =
            Contact::new(&node.realm, EndpointId::from_bytes([1; 32]), Coordinate::default());
        let mut now = Time::START;
        node.link_up(now, link, only.id, rtt, 0);
        node.join(now);
        for second in 0..300 {
            let until = Time::START + Duration::from_secs(second);
            if let Some(number) = names(second) {
                let mut id = [0; 32];
                id[..8].copy_from_slice(&number.to_be_bytes());
                let id = EndpointId::from_bytes(id);
                let contacts = vec![Contact::new(&node.realm, id, Coordinate::default())];
                let at = Coordinate::default();
                node.received(now, link, Message::Siblings { at, ask: false, contacts });
            }
            loop {
                while let Some(output) = node.poll_output() {
                    match output {
                        Output::Event(Event::Joined) => return Some(second),
                        Output::Send { message: Message::Route(route), .. } => {
                            let id = route.id;
                            node.received(now, link, Message::Ack { id });
                            if let Body::Find { .. } = route.body {
                                let reply = Reply::Closest(vec![only]);
                                let answer = Answer { id, hops: 1, reply };
                                node.received(now, link, Message::Answer(Box::new(answer)));
                            }
                        }
                        Output::Send { message: Message::Probe { token }, .. } => {
                            node.received(now, link, Message::Alive { token });
                        }
                        _ => {}
                    }
                }
                while let Some(upcall) = node.poll_upcall() {
                    if let Upcall::Replied { tag, outcome } = upcall {
                        node.replied(now, tag, outcome);
                    }
                }
                match node.poll_timeout().filter(|due| *due <= until) {
                    Some(due) => now = now.max(due),
                    None => break,
                }
                node.tick(now);
            }
            now = until;
        }
        None
    }

    #[test]
    fn a_newcomer_does_not_wait_for_those_that_do_not_answer() {
        let mut node = lone_node();
        // forty of them, each named every 40 s
        let seconds = seconds_to_join(&mut node, |second| Some(second % 40));
        assert!(seconds.is_some_and(|seconds| seconds < 60), "{seconds:?}");
        assert_eq!(node.stats.joins_incomplete, 0);
    }

    #[test]
    fn a_newcomer_is_joined_at_last_whoever_is_named_to_it() {
        let mut node = lone_node();
        let seconds = seconds_to_join(&mut node, Some).expect("it joins");
        assert!((120..125).contains(&seconds), "{seconds}");
        assert_eq!(node.stats.joins_incomplete, 1);
    }
}
