//! Recursive routing: each hop takes a message over from the one before, watches over it until the
//! next hop has taken it over in turn, and remembers the way back for the answer.
//!
//! A hop acknowledges at once. Without that within a few round trips the hop before chooses another
//! next hop. The `floor` of a route falls with every hop, so routes cannot loop; a hop that knows of
//! somebody closer but has no link there may pass the route to a sibling, which takes it only if it
//! can do better. The origin watches over the whole: without an answer it takes another way, which
//! differs by first hop and by `salt`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::api::Event;
use super::core::{Arrival, Core, Outcome, Tag, Upcall};
use super::links::Link;
use super::message::{Answer, Body, Contact, Message, Need, Reply, Route};
use super::walk::Purpose;
use crate::id::{Distance, EndpointId, Key, LinkId};
use crate::limits::{
    CONTACTS_PER_MESSAGE_MAX, ROUTES_PER_LINK_MAX, ROUTES_WATCHED_MAX, TTL_HOPS, WALK_KNOWN_MAX,
};
use crate::time::Time;

/// How long the way back is remembered after the next hop took the route over.
const ANSWER_WITHIN: Duration = Duration::from_secs(12);
/// The shortest and longest time that a hop waits for the next one to take over.
const HOP_WAIT: (Duration, Duration) = (Duration::from_millis(150), Duration::from_secs(1));
/// Beside twice the round-trip time, what the next hop may take.
const HOP_SLACK: Duration = Duration::from_millis(100);
/// Acknowledgements missed in a row after which a link is probed for its life.
const MISSED_MAX: u8 = 2;
/// Links that a route is tried on at one hop.
const TRIES_MAX: usize = 8;
/// Siblings that are asked when a closer router is known without a link to it.
const DETOURS_MAX: usize = 3;
/// Contacts in the answer to a lookup.
const CLOSEST_COUNT: usize = 8;
/// Ways among which a salted route chooses.
const SALTED_CHOICES: usize = 3;

/// A route that this node watches over.
#[derive(Debug)]
struct Watch {
    /// Where answers go; none: it began here, as an attempt of this request.
    from: Result<LinkId, u64>,
    /// The message, until the next hop has taken it over.
    route: Option<Box<Route>>,
    /// The next hop; none: it ended here.
    next: Option<LinkId>,
    /// Hops that did not take it.
    tried: Vec<LinkId>,
    /// Siblings asked to help out.
    detours: u8,
    /// Whoever it comes to answers at once.
    is_lookup: bool,
    sent: Time,
    /// When something is due: the acknowledgement, or forgetting.
    due: Time,
}

/// Something that this node has asked for.
#[derive(Debug)]
struct Request {
    tag: Tag,
    target: Key,
    body: Body,
    /// Ways that shall answer before the best answer is taken.
    paths: u8,
    attempts: u8,
    /// Attempts under way.
    open: Vec<u64>,
    first_hops: Vec<LinkId>,
    /// Answers to a lookup over several ways, merged.
    closest: Vec<Contact>,
    answers: u8,
    hops: u8,
    may_have_run: bool,
    /// When the next attempt begins, and when it ends altogether.
    due: Time,
    deadline: Time,
    timeout: Duration,
}

impl Request {
    /// Of several ways half must have answered: one alone may be a liar's.
    const fn answers_wanted(&self) -> u8 {
        self.paths.div_ceil(2)
    }
}

/// Routes under way and requests of this node.
#[derive(Debug, Default)]
pub(super) struct Routes {
    watched: BTreeMap<u64, Watch>,
    due: BTreeSet<(Time, u64)>,
    requests: BTreeMap<u64, Request>,
    requests_due: BTreeSet<(Time, u64)>,
    next_request: u64,
}

/// What a hop does with a route.
enum Choice {
    Next(LinkId),
    Detour(LinkId),
    Here,
    Refuse,
}

impl Routes {
    pub(super) fn poll_timeout(&self) -> Option<Time> {
        let first = |set: &BTreeSet<(Time, u64)>| set.first().map(|(at, _)| *at);
        [first(&self.due), first(&self.requests_due)].into_iter().flatten().min()
    }

    /// Routes that are watched over, and requests of this node.
    pub(super) fn sizes(&self) -> (usize, usize) {
        (self.watched.len(), self.requests.len())
    }

    fn watch(&mut self, id: u64, watch: Watch) {
        self.due.insert((watch.due, id));
        if let Some(old) = self.watched.insert(id, watch) {
            self.due.remove(&(old.due, id));
        }
    }

    fn unwatch(&mut self, id: u64) -> Option<Watch> {
        let watch = self.watched.remove(&id)?;
        self.due.remove(&(watch.due, id));
        Some(watch)
    }

    fn set_due(&mut self, id: u64, due: Time) {
        if let Some(watch) = self.watched.get_mut(&id) {
            self.due.remove(&(watch.due, id));
            watch.due = due;
            self.due.insert((due, id));
        }
    }
}

impl Core {
    /// Asks the router closest to `target`. [`Upcall::Replied`] follows exactly once. `paths` ways
    /// at once; more are tried when they fail.
    pub(super) fn request(&mut self, now: Time, target: Key, body: Body, paths: u8, tag: Tag) {
        let all = self.config.attempt_timeout * u32::from(self.config.attempts_max);
        self.request_by(now, target, body, paths, tag, now + all);
    }

    /// The same, given up at `deadline`.
    pub(super) fn request_by(
        &mut self,
        now: Time,
        target: Key,
        body: Body,
        paths: u8,
        tag: Tag,
        deadline: Time,
    ) {
        self.request_via(now, target, body, paths, tag, deadline, None);
    }

    #[expect(clippy::too_many_arguments, reason = "the general form of the two above")]
    pub(super) fn request_via(
        &mut self,
        now: Time,
        target: Key,
        body: Body,
        paths: u8,
        tag: Tag,
        deadline: Time,
        first: Option<LinkId>,
    ) {
        let number = self.routes.next_request;
        self.routes.next_request += 1;
        let timeout = self.config.attempt_timeout;
        let due = (now + timeout).min(deadline);
        let request = Request {
            tag,
            target,
            body,
            paths: paths.max(1),
            attempts: 0,
            open: Vec::new(),
            first_hops: Vec::new(),
            closest: Vec::new(),
            answers: 0,
            hops: 0,
            may_have_run: false,
            due,
            deadline,
            timeout,
        };
        self.routes.requests_due.insert((due, number));
        self.routes.requests.insert(number, request);
        for _ in 0..paths.max(1) {
            self.attempt(now, number, first);
        }
    }

    /// Sends a request on another way.
    fn attempt(&mut self, now: Time, number: u64, first: Option<LinkId>) {
        let id = self.draw();
        let salt_drawn = (self.draw() as u16).max(1);
        let me = self.key;
        let Some(request) = self.routes.requests.get_mut(&number) else { return };
        let salt = if request.attempts == 0 && request.paths == 1 { 0 } else { salt_drawn };
        request.attempts = request.attempts.saturating_add(1);
        request.open.push(id);
        let floor = match first.is_some() || is_for_another(&request.body, &self.id) {
            true => Distance::MAX,
            false => me.distance(&request.target),
        };
        let mut body = request.body.clone();
        if let Body::Call(call) = &mut body {
            // of later ways less time remains
            call.deadline = request.deadline.saturating_since(now);
        }
        let mut route = Box::new(Route {
            id,
            target: request.target,
            ttl: TTL_HOPS,
            hops: 0,
            floor,
            salt,
            body,
        });
        // other ways begin with other first hops
        let mut tried = request.first_hops.clone();
        let is_further = request.attempts > 1;
        self.stats.routes_originated += 1;
        if let Some(link) = first {
            return self.give(now, link, route, Err(number), Vec::new(), 0);
        }
        if is_further && let Some((link, is_closer)) = self.other_first_hop(&route, &tried) {
            if !is_closer {
                route.floor = Distance::MAX;
            }
            let tried = if tried.len() >= TRIES_MAX { Vec::new() } else { tried };
            return self.give(now, link, route, Err(number), tried, 0);
        }
        if tried.len() >= TRIES_MAX {
            tried.clear();
        }
        if !tried.is_empty() && matches!(self.choose(&route, &tried, None, 0), Choice::Here) {
            // no other way makes progress: the same once more
            tried.clear();
            route.salt = 0;
        }
        self.pass_on(now, route, Err(number), tried, 0);
    }

    /// The first hop of a further way, and whether it is closer to the target: any that is and that no way
    /// of the request began with. The closest would be the same for all that is asked there, and all that
    /// in vain if they drop what they are given. A lookup may also begin with those that are farther,
    /// unless this node itself is the closest that it knows.
    fn other_first_hop(&mut self, route: &Route, tried: &[LinkId]) -> Option<(LinkId, bool)> {
        let except = match &route.body {
            Body::Find { except, .. } => *except,
            Body::Connect { from, .. } => Some(from.id),
            _ => None,
        };
        let may_stray = is_lookup(&route.body) && !tried.is_empty();
        // closer ones, farther ones, and then closer ones that may drop it
        let mut among: [Vec<LinkId>; 3] = Default::default();
        for link in self.links.iter() {
            let distance = link.peer.key.distance(&route.target);
            if Some(link.peer.id) == except || link.missed > 0 || tried.contains(&link.id) {
                continue;
            }
            if distance == Distance::ZERO {
                return Some((link.id, true));
            }
            let class = match (link.is_suspect(), distance < route.floor) {
                (false, true) => 0,
                (false, false) if may_stray => 1,
                (true, true) => 2,
                _ => continue,
            };
            if link.is_ready
                && let Some(class) = among.get_mut(class)
            {
                class.push(link.id);
            }
        }
        let (class, among) = among.iter().enumerate().find(|(_, class)| !class.is_empty())?;
        let place = (self.draw() as usize).checked_rem(among.len())?;
        among.get(place).map(|link| (*link, class != 1))
    }

    /// Chooses what to do with a route at this hop.
    fn choose(&self, route: &Route, tried: &[LinkId], from: Option<LinkId>, detours: u8) -> Choice {
        let own = match is_for_another(&route.body, &self.id) {
            true => Distance::MAX,
            false => self.key.distance(&route.target),
        };
        let floor = route.floor.min(own);
        let except = match &route.body {
            Body::Find { except, .. } => *except,
            Body::Connect { from, .. } => Some(from.id),
            _ => None,
        };
        if from.is_some()
            && matches!(route.body, Body::Find { early: true, .. })
            && self.knows_all_around(&route.target)
        {
            return Choice::Here;
        }
        let usable = |link: &Link| {
            Some(link.id) != from && Some(link.peer.id) != except && !tried.contains(&link.id)
        };
        // those that do not answer lately only when there is nobody else
        let mut best: [Option<(bool, Distance, LinkId)>; SALTED_CHOICES] = [None; SALTED_CHOICES];
        let is_suspect = |link: &Link, distance: Distance| {
            route.salt != 0 && distance != Distance::ZERO && link.is_suspect()
        };
        for link in self.links.iter() {
            let distance = link.peer.key.distance(&route.target);
            if distance >= floor
                || !usable(link)
                || !(link.is_ready || distance == Distance::ZERO || self.is_alone())
            {
                continue;
            }
            let is_doubtful = link.missed > 0 || is_suspect(link, distance);
            let mut entry = Some((is_doubtful, distance, link.id));
            for place in &mut best {
                if place.is_none() || entry < *place {
                    std::mem::swap(place, &mut entry);
                }
                if entry.is_none() {
                    break;
                }
            }
        }
        let count = best.iter().flatten().filter(|(is_doubtful, ..)| !is_doubtful).count().max(1);
        let pick = match (route.salt, &best) {
            (0, _) => 0,
            // the target itself is never passed by
            (_, [Some((_, Distance::ZERO, _)), ..]) => 0,
            (salt, _) => usize::from(salt.rotate_left(u32::from(route.hops) * 5)) % count,
        };
        if let Some((_, distance, link)) = best.get(pick).copied().flatten() {
            // of a lookup it is enough to name somebody who may drop it
            let may_end = matches!(route.body, Body::Find { .. }) && from.is_some();
            let is_dropped = self.links.get(link).is_some_and(|link| is_suspect(link, distance));
            let ends = may_end && is_dropped && own <= route.floor;
            return if ends { Choice::Here } else { Choice::Next(link) };
        }
        let bucket = self.key.distance(&route.target).shared_bits();
        if own > route.floor {
            return Choice::Refuse;
        }
        if usize::from(detours) < DETOURS_MAX
            && self.table.has_closer(bucket, &route.target, own, except)
        {
            let helper = self.links.siblings().iter().filter_map(|link| self.links.get(*link));
            if let Some(link) = helper.filter(|link| link.missed == 0).find(|link| usable(link)) {
                return Choice::Detour(link.id);
            }
        }
        Choice::Here
    }

    /// Whether no neighbour can pass routes on.
    fn is_alone(&self) -> bool {
        !self.links.iter().any(|link| link.is_ready)
    }

    /// Whether all routers that share as many bits with `key` as this node does are its siblings, so
    /// that it knows the closest one.
    fn knows_all_around(&self, key: &Key) -> bool {
        let siblings = self.links.siblings();
        let last = siblings.last().and_then(|link| self.links.get(*link));
        last.is_some_and(|link| {
            siblings.len() >= self.config.siblings
                && self.key.distance(key).shared_bits() > link.bucket
        })
    }

    /// The next hop towards `key` that is none of `avoid`; none: this node is the closest that it
    /// knows.
    pub(super) fn next_hop_avoiding(&self, key: &Key, avoid: &[EndpointId]) -> Option<LinkId> {
        let own = self.key.distance(key);
        self.links
            .iter()
            .filter(|link| link.is_ready && !avoid.contains(&link.peer.id))
            .map(|link| (link.missed > 0, link.peer.key.distance(key), link.id))
            .filter(|(_, distance, _)| *distance < own)
            .min()
            .map(|(_, _, link)| link)
    }

    /// Passes a route on, or ends it here. `from`: the hop before, or the request that it belongs to.
    fn pass_on(
        &mut self,
        now: Time,
        mut route: Box<Route>,
        from: Result<LinkId, u64>,
        tried: Vec<LinkId>,
        detours: u8,
    ) {
        let choice = match route.ttl > 0 && tried.len() < TRIES_MAX + DETOURS_MAX {
            true => self.choose(&route, &tried, from.ok(), detours),
            false => Choice::Here,
        };
        let own = self.key.distance(&route.target);
        match choice {
            Choice::Next(link) => {
                if !is_for_another(&route.body, &self.id) {
                    route.floor = route.floor.min(own);
                }
                self.give(now, link, route, from, tried, detours);
            }
            Choice::Detour(link) => {
                self.stats.routes_stuck += 1;
                route.floor = route.floor.min(own);
                self.give(now, link, route, from, tried, detours + 1);
            }
            Choice::Here | Choice::Refuse => self.arrive(now, *route, from),
        }
    }

    /// Hands a route to a neighbour and waits for it to take over.
    fn give(
        &mut self,
        now: Time,
        link: LinkId,
        route: Box<Route>,
        from: Result<LinkId, u64>,
        tried: Vec<LinkId>,
        detours: u8,
    ) {
        let id = route.id;
        let mut onward = route.clone();
        onward.ttl = onward.ttl.saturating_sub(1);
        onward.hops = onward.hops.saturating_add(1);
        if let Err(number) = from
            && let Some(request) = self.routes.requests.get_mut(&number)
        {
            request.first_hops.push(link);
            request.may_have_run = true;
        }
        let due = now + self.hop_wait(link);
        let is_lookup = is_lookup(&route.body);
        let watch = Watch {
            from,
            route: Some(route),
            next: Some(link),
            tried,
            detours,
            is_lookup,
            sent: now,
            due,
        };
        self.routes.watch(id, watch);
        self.send(link, Message::Route(onward));
    }

    fn hop_wait(&self, link: LinkId) -> Duration {
        (self.rtt(link) * 2 + HOP_SLACK).clamp(HOP_WAIT.0, HOP_WAIT.1)
    }

    /// The route ends at this node.
    fn arrive(&mut self, now: Time, route: Route, from: Result<LinkId, u64>) {
        let due = now + ANSWER_WITHIN;
        let watch = Watch {
            from,
            route: None,
            next: None,
            tried: Vec::new(),
            detours: 0,
            is_lookup: false,
            sent: now,
            due,
        };
        self.routes.watch(route.id, watch);
        self.upcall(Upcall::Arrived(Arrival {
            id: route.id,
            target: route.target,
            hops: route.hops,
            body: route.body,
        }));
    }

    /// Answers an arrival. Nothing happens when the way back is forgotten.
    pub(super) fn answer(&mut self, now: Time, arrival: &Arrival, reply: Reply) {
        let Some(watch) = self.forget_route(arrival.id) else { return };
        let answer = Answer { id: arrival.id, hops: arrival.hops, reply };
        match watch.from {
            Ok(link) => {
                self.stats.routes_answered += 1;
                self.send(link, Message::Answer(Box::new(answer)));
            }
            Err(number) => self.request_answered(now, number, answer),
        }
    }

    fn forget_route(&mut self, id: u64) -> Option<Watch> {
        let watch = self.routes.unwatch(id)?;
        if let Ok(link) = watch.from
            && let Some(link) = self.links.get_mut(link)
        {
            link.watched = link.watched.saturating_sub(1);
        }
        Some(watch)
    }

    /// A message of the core itself came.
    pub(super) fn received(&mut self, now: Time, from: LinkId, message: Message) {
        let Some(link) = self.links.get_mut(from) else { return };
        link.missed = 0;
        link.probe_due = None;
        match message {
            Message::Route(route) => self.route_received(now, from, route),
            Message::Ack { id } => self.acked(now, from, id),
            Message::Nack { id } => self.nacked(now, from, id),
            Message::Answer(answer) => self.answered(now, from, *answer),
            Message::Siblings { at, ask, contacts } => {
                self.siblings_received(now, from, at, ask, contacts);
            }
            Message::Keep { need, at, ready } => {
                link.theirs = need;
                link.is_ready = ready;
                link.peer.at = at;
                if need == Need::None {
                    link.idle_since = now;
                }
                let (contact, rtt) = (link.peer, Duration::from_micros(link.rtt.into()));
                self.place.sample(&at, rtt);
                self.table.learn(&self.key, contact, self.config.contacts_per_bucket);
            }
            Message::Leave => self.link_left(now, from),
            Message::Probe { token } => self.send(from, Message::Alive { token }),
            Message::Alive { .. } => {}
            Message::Replicate { .. } | Message::Kept { .. } | Message::Tree(_) => {
                self.stats.messages_unexpected += 1;
            }
        }
    }

    fn route_received(&mut self, now: Time, from: LinkId, route: Box<Route>) {
        let id = route.id;
        if self.routes.watched.contains_key(&id) {
            // another hop gave up waiting for this one too early; its answer is under way
            self.stats.routes_looped += 1;
            self.send(from, Message::Ack { id });
            return;
        }
        if route.ttl > TTL_HOPS {
            self.stats.messages_unexpected += 1;
            return self.send(from, Message::Nack { id });
        }
        let of_link = self.links.get(from).map_or(0, |link| usize::from(link.watched));
        if of_link >= ROUTES_PER_LINK_MAX || self.routes.watched.len() >= ROUTES_WATCHED_MAX {
            self.stats.routes_refused_full += 1;
            return self.send(from, Message::Nack { id });
        }
        let own = self.key.distance(&route.target);
        let choice = self.choose(&route, &[], Some(from), u8::MAX);
        if matches!(choice, Choice::Refuse) || (own > route.floor && matches!(choice, Choice::Here))
        {
            return self.send(from, Message::Nack { id });
        }
        if route.ttl == 0 && !matches!(choice, Choice::Here) {
            self.stats.routes_ttl_exceeded += 1;
            return self.send(from, Message::Nack { id });
        }
        self.send(from, Message::Ack { id });
        if let Some(link) = self.links.get_mut(from) {
            link.watched = link.watched.saturating_add(1);
        }
        self.stats.routes_forwarded += 1;
        self.pass_on(now, route, Ok(from), Vec::new(), 0);
    }

    fn acked(&mut self, now: Time, from: LinkId, id: u64) {
        let Some(watch) = self.routes.watched.get_mut(&id) else { return };
        if watch.next != Some(from) || watch.route.is_none() {
            return;
        }
        watch.route = None;
        let sample = now.saturating_since(watch.sent);
        let is_first = watch.tried.is_empty();
        self.routes.set_due(id, now + ANSWER_WITHIN);
        if is_first && let Some(link) = self.links.get_mut(from) {
            let micros = u32::try_from(sample.as_micros()).unwrap_or(u32::MAX);
            link.rtt = link.rtt - link.rtt / 8 + micros / 8;
            let (at, rtt) = (link.peer.at, Duration::from_micros(link.rtt.into()));
            self.place.sample(&at, rtt);
        }
    }

    fn nacked(&mut self, now: Time, from: LinkId, id: u64) {
        let is_mine = self
            .routes
            .watched
            .get(&id)
            .is_some_and(|watch| watch.next == Some(from) && watch.route.is_some());
        if is_mine {
            self.reroute(now, id);
        }
    }

    /// Gives a route that its next hop did not take to another one.
    fn reroute(&mut self, now: Time, id: u64) {
        let Some(mut watch) = self.routes.unwatch(id) else { return };
        let Some(route) = watch.route.take() else { return };
        watch.tried.extend(watch.next);
        self.stats.routes_rerouted += 1;
        self.pass_on(now, route, watch.from, watch.tried, watch.detours);
    }

    /// A link is gone: what its other end had not taken over goes another way.
    pub(super) fn reroute_from(&mut self, now: Time, link: LinkId) {
        let waiting = |watch: &Watch| watch.next == Some(link) && watch.route.is_some();
        let ids: Vec<u64> = self
            .routes
            .watched
            .iter()
            .filter(|(_, watch)| waiting(watch))
            .map(|(id, _)| *id)
            .collect();
        ids.into_iter().for_each(|id| self.reroute(now, id));
    }

    fn answered(&mut self, now: Time, from: LinkId, answer: Answer) {
        let is_expected = self.routes.watched.get(&answer.id).is_some_and(|watch| {
            watch.next.is_some() && (watch.next == Some(from) || watch.tried.contains(&from))
        });
        if !is_expected {
            self.stats.answers_unknown += 1;
            return;
        }
        let Some(watch) = self.forget_route(answer.id) else { return };
        match watch.from {
            Ok(back) => self.send(back, Message::Answer(Box::new(answer))),
            Err(number) => {
                if let Some(link) = self.links.get_mut(from) {
                    link.unanswered = 0;
                }
                self.request_answered(now, number, answer);
            }
        }
    }

    fn request_answered(&mut self, now: Time, number: u64, answer: Answer) {
        let Some(request) = self.routes.requests.get_mut(&number) else { return };
        request.open.retain(|id| *id != answer.id);
        request.answers = request.answers.saturating_add(1);
        match answer.reply {
            Reply::Near(ref contacts)
                if contacts.len() <= CONTACTS_PER_MESSAGE_MAX
                    && contacts.iter().any(|contact| contact.key == request.target) =>
            {
                request.hops = answer.hops;
                self.finish(now, number, Some(answer.reply));
            }
            _ if matches!(request.body, Body::Near { .. }) => {
                // not from the one that was asked: another way may still reach it
                self.stats.answers_implausible += 1;
                if request.open.is_empty() {
                    self.finish(now, number, None);
                }
            }
            Reply::Closest(contacts) if matches!(request.body, Body::Find { .. }) => {
                if contacts.len() > CONTACTS_PER_MESSAGE_MAX || contacts.is_empty() {
                    self.stats.answers_implausible += 1;
                    return;
                }
                let target = request.target;
                if request.closest.is_empty() {
                    request.hops = answer.hops;
                }
                // one answer shall not crowd out the others
                for contact in contacts.into_iter().take(CLOSEST_COUNT) {
                    if !request.closest.iter().any(|known| known.id == contact.id) {
                        request.closest.push(contact);
                    }
                }
                request.closest.sort_unstable_by_key(|contact| contact.key.distance(&target));
                request.closest.truncate(WALK_KNOWN_MAX);
                if request.answers >= request.answers_wanted() {
                    self.finish(now, number, None);
                }
            }
            reply => {
                request.hops = answer.hops;
                self.finish(now, number, Some(reply));
            }
        }
    }

    /// Ends a request: with a reply, or with what was gathered.
    fn finish(&mut self, now: Time, number: u64, reply: Option<Reply>) {
        let Some(request) = self.routes.requests.remove(&number) else { return };
        self.routes.requests_due.remove(&(request.due, number));
        let reply = reply
            .or_else(|| (!request.closest.is_empty()).then_some(Reply::Closest(request.closest)));
        for id in request.open {
            let is_taken = |watch: &Watch| watch.is_lookup && watch.route.is_none();
            if reply.is_some() && self.routes.watched.get(&id).is_some_and(is_taken) {
                // whether it is answered says something about its first hop
                continue;
            }
            let watch = self.routes.unwatch(id);
            self.unanswered(watch);
        }
        let outcome = Outcome {
            target: request.target,
            reply,
            hops: request.hops,
            attempts: request.attempts,
            may_have_run: request.may_have_run,
        };
        match request.tag {
            // nothing but the core is concerned: no detour through the queue
            Tag::Connect => self.connect_replied(now, &outcome.target, outcome.reply),
            tag => self.upcall(Upcall::Replied { tag, outcome }),
        }
    }

    /// What is due: acknowledgements that did not come, attempts that were not answered.
    pub(super) fn routes_tick(&mut self, now: Time) {
        while let Some((due, id)) = self.routes.due.first().copied() {
            if due > now {
                break;
            }
            let watch = self.routes.watched.get(&id);
            match watch.and_then(|watch| watch.next.filter(|_| watch.route.is_some())) {
                Some(link) => {
                    self.stats.hop_timeouts += 1;
                    self.missed(now, link);
                    // doubt about the link may have rerouted it already
                    if self.routes.due.contains(&(due, id)) {
                        self.reroute(now, id);
                    }
                }
                None => {
                    let watch = self.forget_route(id);
                    self.unanswered(watch);
                    self.routes.due.remove(&(due, id));
                }
            }
        }
        while let Some((due, number)) = self.routes.requests_due.first().copied() {
            if due > now {
                break;
            }
            self.routes.requests_due.remove(&(due, number));
            self.attempt_over(now, number);
        }
    }

    /// A lookup that the next hop has taken over was not answered in time. Only this node's own count:
    /// with theirs others could bring its neighbours into disrepute.
    fn unanswered(&mut self, watch: Option<Watch>) {
        let is_own =
            |watch: &Watch| watch.from.is_err() && watch.is_lookup && watch.route.is_none();
        let Some(watch) = watch.filter(is_own) else { return };
        if let Some(link) = watch.next.and_then(|link| self.links.get_mut(link)) {
            let was_suspect = link.is_suspect();
            link.unanswered = link.unanswered.saturating_add(1);
            self.stats.first_hops_suspect += u64::from(link.is_suspect() && !was_suspect);
        }
    }

    fn attempt_over(&mut self, now: Time, number: u64) {
        let attempts_max = self.config.attempts_max;
        let Some(request) = self.routes.requests.get_mut(&number) else { return };
        let is_over = now >= request.deadline || request.attempts >= attempts_max;
        let has_enough = request.answers >= request.answers_wanted();
        if is_over || has_enough {
            self.stats.attempts_failed += u64::from(!has_enough);
            return self.finish(now, number, None);
        }
        self.stats.attempts_failed += 1;
        request.timeout = request.timeout.mul_f32(1.5);
        request.due = (now + request.timeout).min(request.deadline);
        let (due, paths) = (request.due, request.paths);
        self.routes.requests_due.insert((due, number));
        for _ in 0..paths {
            self.attempt(now, number, None);
        }
    }

    /// A neighbour did not take a route over in time.
    fn missed(&mut self, now: Time, link: LinkId) {
        let token = self.draw();
        let wait = self.hop_wait(link) * 2;
        let Some(entry) = self.links.get_mut(link) else { return };
        entry.missed = entry.missed.saturating_add(1);
        if entry.missed >= MISSED_MAX || entry.mine == Need::Sibling {
            self.probe(now, link, token, wait);
        }
    }

    pub(super) fn probe(&mut self, now: Time, link: LinkId, token: u64, wait: Duration) {
        let Some(entry) = self.links.get_mut(link) else { return };
        if entry.probe_due.is_none() {
            entry.probe_due = Some(now + wait);
            self.send(link, Message::Probe { token });
            self.upkeep.probe_by(now + wait);
        }
    }

    /// A route for the core itself has arrived: a lookup, or a request to connect.
    pub(super) fn arrived(&mut self, now: Time, arrival: Arrival) {
        let reply = match &arrival.body {
            Body::Find { except, .. } => {
                Reply::Closest(self.closest_except(&arrival.target, CLOSEST_COUNT, *except))
            }
            Body::Connect { from, need } if arrival.target == self.key => {
                let from =
                    Contact { key: Contact::new(&self.realm, from.id, from.at).key, ..*from };
                self.table.learn(&self.key, from, self.config.contacts_per_bucket);
                if self.welcomes(now, from, *need) {
                    Reply::Welcome(self.me())
                } else {
                    self.stats.connects_refused_here += 1;
                    Reply::Full(self.others_near(&from))
                }
            }
            Body::Near { to } if arrival.target == self.key => {
                let mut closest = self.closest_to(to, CLOSEST_COUNT);
                if !closest.iter().any(|contact| contact.id == self.id) {
                    closest.push(self.me());
                }
                Reply::Near(closest)
            }
            Body::Near { .. } | Body::Connect { .. } => {
                Reply::Closest(self.closest_to(&arrival.target, CLOSEST_COUNT))
            }
            _ => return,
        };
        self.answer(now, &arrival, reply);
    }

    /// Neighbours in the same bucket of somebody for whom there is no room here.
    fn others_near(&mut self, from: &Contact) -> Vec<Contact> {
        let skip = self.draw() as usize;
        let bucket = from.key.distance(&self.key).shared_bits();
        // seen from there, all that share more bits with this node are in one bucket
        let near: Vec<Contact> = self
            .links
            .iter()
            .filter(|link| link.bucket > bucket && link.peer.id != from.id)
            .map(|link| link.peer)
            .collect();
        let count = near.len().max(1);
        near.into_iter().cycle().skip(skip % count).take(CLOSEST_COUNT.min(count)).collect()
    }

    /// A request of the core itself, or the application's lookup, has ended.
    pub(super) fn replied(&mut self, now: Time, tag: Tag, outcome: Outcome) {
        if let Tag::Walk(number) = tag {
            return self.walk_replied(now, number, outcome);
        }
        let closest = match outcome.reply {
            Some(Reply::Closest(contacts)) => contacts,
            _ => Vec::new(),
        };
        match tag {
            Tag::Lookup(query) => self.event(Event::LookupDone {
                query,
                closest,
                hops: outcome.hops,
                attempts: outcome.attempts,
            }),
            Tag::Ways(query) => {
                let (hops, attempts) = (outcome.hops, outcome.attempts);
                let purpose = Purpose::Lookup { query, hops, attempts };
                self.walk(now, outcome.target, &closest, purpose);
            }
            Tag::Join => self.found_self(now, &closest),
            Tag::Fill => self.filled(now, &closest),
            Tag::Walk(_) | Tag::Connect | Tag::Records(_) | Tag::Tree(_) | Tag::Call(_) => {}
        }
    }

    /// Takes what somebody who was asked has told.
    pub(super) fn learn_all(&mut self, contacts: &[Contact]) {
        let k = self.config.contacts_per_bucket;
        for contact in contacts.iter().take(CONTACTS_PER_MESSAGE_MAX) {
            if !self.table.learn(&self.key, *contact, k) {
                self.stats.contacts_refused += 1;
            }
        }
    }
}

/// Whether it is answered at once, wherever it comes to.
const fn is_lookup(body: &Body) -> bool {
    matches!(body, Body::Find { .. } | Body::Connect { .. } | Body::Near { .. })
}

/// Whether `me` asks for somebody else, so that it does not count as close to the target itself.
fn is_for_another(body: &Body, me: &EndpointId) -> bool {
    match body {
        Body::Find { except, .. } => *except == Some(*me),
        Body::Connect { from, .. } => from.id == *me,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::QueryId;
    use crate::overlay::Coordinate;
    use crate::overlay::api::Output;
    use crate::overlay::core::testing::lone_node;

    const RTT: Duration = Duration::from_millis(20);

    /// A node with so many neighbours that pass routes on; their links are 1, 2, 3 and so on.
    fn node(neighbours: u8) -> Core {
        let mut node = lone_node();
        for number in 1..=neighbours {
            let link = LinkId(number.into());
            node.link_up(Time::START, link, EndpointId::from_bytes([number; 32]), RTT, 0);
            let at = Coordinate::default();
            let keep = Message::Keep { need: Need::Bucket, at, ready: true };
            node.received(Time::START, link, keep);
        }
        while node.poll_output().is_some() {}
        node
    }

    /// Routes that it has sent, and on which links.
    fn sent(node: &mut Core) -> Vec<(LinkId, Route)> {
        let route = |output| match output {
            Output::Send { link, message: Message::Route(route) } => Some((link, *route)),
            _ => None,
        };
        std::iter::from_fn(|| node.poll_output()).filter_map(route).collect()
    }

    /// A key that nobody has, in the node's bucket 0, and a neighbour that is close to it.
    fn far(node: &Core) -> (Key, LinkId) {
        let link = node.links.iter().find(|link| link.bucket == 0).expect("half of them are there");
        (link.peer.key.sibling_at(100, &node.key), link.id)
    }

    fn find(node: &mut Core, now: Time, target: Key, paths: u8) -> Vec<(LinkId, Route)> {
        let body = Body::Find { except: None, early: false };
        node.request(now, target, body, paths, Tag::Ways(QueryId(1)));
        sent(node)
    }

    /// All that were given a route take it over, and all but one answer. Returns when others forget.
    fn answer_all(
        node: &mut Core,
        now: Time,
        ways: Vec<(LinkId, Route)>,
        silent: Option<LinkId>,
    ) -> Time {
        for (link, route) in ways {
            node.received(now, link, Message::Ack { id: route.id });
            if Some(link) != silent {
                let reply = Reply::Closest(vec![node.me()]);
                let answer = Answer { id: route.id, hops: 3, reply };
                node.received(now, link, Message::Answer(Box::new(answer)));
            }
        }
        node.routes_tick(now + ANSWER_WITHIN);
        now + ANSWER_WITHIN
    }

    fn closer(node: &Core, target: &Key) -> usize {
        let own = node.key.distance(target);
        node.links.iter().filter(|link| link.peer.key.distance(target) < own).count()
    }

    #[test]
    fn further_ways_begin_with_any_neighbours_that_are_closer() {
        let mut node = node(40);
        let (target, _) = far(&node);
        let all = closer(&node, &target);
        let mut used = BTreeSet::new();
        for _ in 0..60 {
            let ways = find(&mut node, Time::START, target, 4);
            let own: BTreeSet<LinkId> = ways.iter().map(|(link, _)| *link).collect();
            assert_eq!((ways.len(), own.len()), (4, 4));
            let floor = node.key.distance(&target);
            assert!(ways.iter().all(|(_, route)| route.floor == floor));
            used.extend(own);
        }
        assert!(all >= 10);
        assert_eq!(used.len(), all);
    }

    #[test]
    fn a_lookup_without_closer_first_hops_begins_with_others() {
        let mut node = node(40);
        let own = node.key;
        // the node is closer to this key than all its neighbours but one
        let by_distance = |link: &Link| link.peer.key.distance(&own);
        let nearest = node.links.iter().min_by_key(|link| by_distance(link)).expect("some");
        let (first, target) = (nearest.id, nearest.peer.key.sibling_at(100, &own));
        assert_eq!(closer(&node, &target), 1);
        let ways = find(&mut node, Time::START, target, 4);
        assert_eq!(ways.len(), 4);
        for (link, route) in ways {
            let floor = if link == first { own.distance(&target) } else { Distance::MAX };
            assert_eq!(route.floor, floor);
        }
        // what is kept or published must not come to an end with one of those
        let body = Body::Fetch { kind: 1 };
        node.request(Time::START, target, body, 4, Tag::Records(1));
        let ways = sent(&mut node);
        assert_eq!(ways.len(), 4);
        assert!(ways.iter().all(|(_, route)| route.floor == own.distance(&target)));
    }

    #[test]
    fn the_closest_of_all_answers_itself_on_every_way() {
        let mut node = node(40);
        let target = node.key.sibling_at(150, &Key::from_bytes([0; 20]));
        assert_eq!(closer(&node, &target), 0);
        assert_eq!(find(&mut node, Time::START, target, 4).len(), 0);
    }

    #[test]
    fn who_never_answers_is_a_first_hop_only_when_there_is_nobody_else() {
        let mut node = node(12);
        let (target, bad) = far(&node);
        let mut now = Time::START;
        for _ in 0..40 {
            let ways = find(&mut node, now, target, 4);
            now = answer_all(&mut node, now, ways, Some(bad));
        }
        assert!(node.links.get(bad).is_some_and(Link::is_suspect));
        assert_eq!(node.links.iter().filter(|link| link.is_suspect()).count(), 1);
        assert_eq!(node.stats.first_hops_suspect, 1);
        let others = u8::try_from(closer(&node, &target)).expect("few") - 1;
        for _ in 0..20 {
            let ways = find(&mut node, now, target, others);
            assert!(ways.iter().all(|(link, _)| *link != bad));
            now = answer_all(&mut node, now, ways, Some(bad));
        }
        // it answers after all
        let key = node.links.get(bad).expect("it is there").peer.key;
        node.request(now, key, Body::Near { to: target }, 1, Tag::Walk(1));
        let ways = sent(&mut node);
        assert!(ways.iter().all(|(link, _)| *link == bad));
        answer_all(&mut node, now, ways, None);
        assert!(!node.links.get(bad).is_some_and(Link::is_suspect));
    }

    #[test]
    fn what_others_lose_brings_nobody_into_disrepute() {
        let mut node = node(12);
        let (target, close) = far(&node);
        let from = node.links.iter().map(|link| link.id).find(|link| *link != close);
        let from = from.expect("others");
        for id in 0..40 {
            let body = Body::Find { except: None, early: false };
            let (floor, hops) = (Distance::MAX, 1);
            let route = Route { id, target, ttl: TTL_HOPS - 1, hops, floor, salt: 0, body };
            node.received(Time::START, from, Message::Route(Box::new(route)));
            for (link, route) in sent(&mut node) {
                node.received(Time::START, link, Message::Ack { id: route.id });
            }
        }
        node.routes_tick(Time::START + ANSWER_WITHIN);
        assert_eq!(node.routes.sizes().0, 0);
        assert!(node.links.iter().all(|link| link.unanswered == 0));
    }

    #[test]
    fn a_salted_lookup_ends_before_a_neighbour_that_may_drop_it() {
        let mut node = node(40);
        let own = node.key;
        let by_distance = |link: &Link| link.peer.key.distance(&own);
        let nearest = node.links.iter().min_by_key(|link| by_distance(link)).expect("some");
        let (bad, target) = (nearest.id, nearest.peer.key.sibling_at(100, &own));
        assert_eq!(closer(&node, &target), 1);
        let from = node.links.iter().map(|link| link.id).find(|link| *link != bad).expect("others");
        let arrives = |node: &mut Core, id, salt| {
            let body = Body::Find { except: None, early: false };
            let (floor, hops) = (Distance::MAX, 1);
            let route = Route { id, target, ttl: TTL_HOPS - 1, hops, floor, salt, body };
            node.received(Time::START, from, Message::Route(Box::new(route)));
            sent(node).is_empty()
        };
        assert!(!arrives(&mut node, 1, 1));
        let link = node.links.get_mut(bad).expect("it is there");
        link.unanswered = u8::MAX;
        assert!(arrives(&mut node, 2, 1));
        assert!(!arrives(&mut node, 3, 0));
    }
}
