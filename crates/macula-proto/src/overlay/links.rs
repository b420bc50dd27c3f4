//! The live links of a node, who of them is close, and what each is needed for.

use std::time::Duration;

use super::api::Output;
use super::coordinate::Coordinate;
use super::core::{Core, Tag, Upcall};
use super::message::{Body, Contact, Message, Need, Reply};
use super::table::Known;
use crate::id::{Distance, EndpointId, Key, LinkId};
use crate::time::Time;

/// Requests to connect that are under way at once.
const CONNECTING_MAX: usize = 24;
/// How long a router that agreed is expected to dial.
const EXPECTED_FOR: Duration = Duration::from_secs(5);
/// Routers that are expected at once; more are told that there is no room.
const EXPECTED_MAX: usize = 64;
/// How long a router that is full is left alone.
const REST: Duration = Duration::from_secs(30);
/// After this a neighbour has said what it needs the link for.
const UNSAID_FOR: Duration = Duration::from_secs(2);
/// A link that goes down so soon was refused.
const REFUSED_WITHIN: Duration = Duration::from_secs(1);
/// After so many own lookups in a row that it took over and that were not answered, a neighbour may be one
/// that drops them. Of an honest one four tenths may fail when a tenth of all routers drop what they get.
const UNANSWERED_MAX: u8 = 4;
/// Former neighbours that are tried again.
const LOST_MAX: usize = 8;
/// First pause before a former neighbour is tried again; it doubles each time.
const REDIAL_FIRST: Duration = Duration::from_secs(10);
/// Tries, after which a former neighbour is forgotten.
const REDIALS_MAX: u8 = 6;

/// A link to another router of the realm.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) id: LinkId,
    pub(super) peer: Contact,
    /// Leading bits that both keys share.
    pub(super) bucket: u8,
    /// Smoothed round-trip time, microseconds.
    pub(super) rtt: u32,
    /// What this node needs it for, and what the other said.
    pub(super) mine: Need,
    pub(super) theirs: Need,
    /// Trees and calls that use it.
    pub(super) users: u16,
    /// Acknowledgements missed in a row.
    pub(super) missed: u8,
    /// Own lookups given there in a row that it took over and that were never answered.
    pub(super) unanswered: u8,
    /// When the outstanding probe counts as lost.
    pub(super) probe_due: Option<Time>,
    /// The other can pass routes on.
    pub(super) is_ready: bool,
    /// Since when it is up.
    since: Time,
    /// Since when nobody needs it.
    pub(super) idle_since: Time,
    /// The network of the other.
    pub(super) net: u32,
    /// Routes from there that this node watches over.
    pub(super) watched: u16,
    /// The coordinate that this node has told there.
    pub(super) told: Coordinate,
}

impl Link {
    /// Whether neither side needs it.
    pub(super) fn is_surplus(&self) -> bool {
        self.mine == Need::None && self.theirs == Need::None && self.users == 0
    }

    /// Whether it may drop what it takes over.
    pub(super) fn is_suspect(&self) -> bool {
        self.unanswered >= UNANSWERED_MAX
    }
}

/// A request to connect that is under way.
#[derive(Debug)]
struct Connecting {
    peer: EndpointId,
    key: Key,
    need: Need,
    /// It did not answer the last time.
    is_doubtful: bool,
    /// A part of this node wants to hear of a failure.
    is_watched: bool,
}

/// A former neighbour.
#[derive(Debug)]
struct Lost {
    contact: Contact,
    tries: u8,
    due: Time,
}

/// All links.
#[derive(Debug, Default)]
pub(super) struct Links {
    links: Vec<Link>,
    /// Their numbers, in the same order: what is looked through for every message.
    numbers: Vec<LinkId>,
    /// The closest, closest first.
    siblings: Vec<LinkId>,
    connecting: Vec<Connecting>,
    /// Who was welcomed and has not come yet.
    expected: Vec<(EndpointId, Time)>,
    lost: Vec<Lost>,
}

impl Links {
    pub(super) fn get(&self, link: LinkId) -> Option<&Link> {
        self.links.get(self.place(link)?)
    }

    fn place(&self, link: LinkId) -> Option<usize> {
        self.numbers.iter().position(|number| *number == link)
    }

    pub(super) fn get_mut(&mut self, link: LinkId) -> Option<&mut Link> {
        let place = self.place(link)?;
        self.links.get_mut(place)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Link> {
        self.links.iter()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Link> {
        self.links.iter_mut()
    }

    pub(super) fn len(&self) -> usize {
        self.links.len()
    }

    /// Links that the overlay itself uses, in contrast to those for traffic only.
    pub(super) fn of_overlay(&self) -> usize {
        self.links.iter().filter(|link| link.mine.max(link.theirs) != Need::Traffic).count()
    }

    pub(super) fn is_connecting(&self, peer: &EndpointId) -> bool {
        self.connecting.iter().any(|entry| entry.peer == *peer)
    }

    pub(super) fn connecting(&self) -> usize {
        self.connecting.len()
    }

    /// Links that are being made to those that have answered so far: not to wait for others, which may
    /// never answer.
    pub(super) fn awaited(&self) -> usize {
        self.connecting.iter().filter(|entry| !entry.is_doubtful).count()
    }

    /// Whether one of them is to one of the closest.
    pub(super) fn is_awaiting_sibling(&self) -> bool {
        self.connecting.iter().any(|entry| entry.need == Need::Sibling && !entry.is_doubtful)
    }

    pub(super) fn to(&self, peer: &EndpointId) -> Option<&Link> {
        self.links.iter().find(|link| link.peer.id == *peer)
    }

    /// The closest routers, closest first.
    pub(super) fn siblings(&self) -> &[LinkId] {
        &self.siblings
    }

    /// Gives back room that a rush of newcomers has left.
    pub(super) fn shrink(&mut self) {
        self.links.shrink_to(self.links.len() + 2);
        self.numbers.shrink_to(self.links.len() + 2);
        self.connecting.shrink_to_fit();
        self.expected.shrink_to_fit();
    }

    /// How far the farthest sibling is; [`Distance::MAX`] while there are fewer than wanted.
    pub(super) fn reach(&self, me: &Key, wanted: usize) -> Distance {
        if self.siblings.len() < wanted {
            return Distance::MAX;
        }
        let last = self.siblings.last().and_then(|link| self.get(*link));
        last.map_or(Distance::MAX, |link| link.peer.key.distance(me))
    }

    /// Sorts out who is closest; says whether that has changed.
    fn choose_siblings(&mut self, me: &Key, count: usize) -> bool {
        let mut by_distance: Vec<(Distance, LinkId)> =
            self.links.iter().map(|link| (link.peer.key.distance(me), link.id)).collect();
        by_distance.sort_unstable();
        by_distance.truncate(count);
        let same = by_distance.iter().map(|(_, link)| link).eq(self.siblings.iter());
        if !same {
            self.siblings = by_distance.into_iter().map(|(_, link)| link).collect();
        }
        !same
    }
}

impl Core {
    pub(super) fn peer(&self, link: LinkId) -> Option<EndpointId> {
        self.links.get(link).map(|link| link.peer.id)
    }

    pub(super) fn link_to(&self, peer: &EndpointId) -> Option<LinkId> {
        self.links.to(peer).map(|link| link.id)
    }

    /// Smoothed round-trip time of a link.
    pub(super) fn rtt(&self, link: LinkId) -> Duration {
        let micros = self.links.get(link).map_or(0, |link| link.rtt);
        Duration::from_micros(micros.into())
    }

    /// The closest routers, closest first.
    pub(super) fn siblings(&self) -> Vec<(LinkId, Contact)> {
        let links = self.links.siblings().iter().filter_map(|link| self.links.get(*link));
        links.map(|link| (link.id, link.peer)).collect()
    }

    /// Of this node and its neighbours the `count` closest to `key`, closest first.
    pub(super) fn closest_to(&self, key: &Key, count: usize) -> Vec<Contact> {
        self.closest_except(key, count, None)
    }

    pub(super) fn closest_except(
        &self,
        key: &Key,
        count: usize,
        except: Option<EndpointId>,
    ) -> Vec<Contact> {
        let mut all: Vec<(Distance, Contact)> = self
            .links
            .iter()
            .filter(|link| link.missed == 0)
            .map(|link| link.peer)
            .chain([self.me()])
            .filter(|contact| Some(contact.id) != except)
            .map(|contact| (contact.key.distance(key), contact))
            .collect();
        if all.len() > count && count > 0 {
            all.select_nth_unstable_by_key(count - 1, |(distance, _)| *distance);
            all.truncate(count);
        }
        all.sort_unstable_by_key(|(distance, _)| *distance);
        all.into_iter().map(|(_, contact)| contact).collect()
    }

    /// One more user of a link: it is not closed as surplus.
    pub(super) fn hold(&mut self, link: LinkId) {
        if let Some(link) = self.links.get_mut(link) {
            link.users = link.users.saturating_add(1);
        }
    }

    /// One user less.
    pub(super) fn release(&mut self, link: LinkId) {
        if let Some(link) = self.links.get_mut(link) {
            link.users = link.users.saturating_sub(1);
        }
    }

    /// Asks a router for a link, if there is none; [`Upcall::LinkUp`] or [`Upcall::ConnectFailed`]
    /// follows, the former at once when there is one.
    pub(super) fn connect(&mut self, now: Time, peer: &EndpointId, need: Need) {
        if let Some(link) = self.link_to(peer) {
            self.upcall(Upcall::LinkUp { link, peer: *peer });
            return;
        }
        let contact = Contact::new(&self.realm, *peer, Coordinate::default());
        if !self.start_connecting(now, contact, need, true, None) {
            self.upcall(Upcall::ConnectFailed { peer: *peer });
        }
    }

    /// Asks for a link, by way of the neighbour that told of the peer if there is one; says whether the
    /// request is under way.
    pub(super) fn start_connecting(
        &mut self,
        now: Time,
        peer: Contact,
        need: Need,
        is_watched: bool,
        via: Option<LinkId>,
    ) -> bool {
        if peer.id == self.id {
            return false;
        }
        if let Some(entry) = self.links.connecting.iter_mut().find(|entry| entry.peer == peer.id) {
            entry.is_watched |= is_watched;
            entry.need = entry.need.max(need);
            return true;
        }
        if self.links.connecting.len() >= CONNECTING_MAX {
            return false;
        }
        let known = self.table.find(&self.key, &peer.key);
        let is_doubtful = known.is_some_and(Known::is_doubtful);
        let entry = Connecting { peer: peer.id, key: peer.key, need, is_doubtful, is_watched };
        self.links.connecting.push(entry);
        self.stats.connects_sent += 1;
        let body = Body::Connect { from: self.me(), need };
        let deadline = now + self.config.attempt_timeout * 4;
        self.request_via(now, peer.key, body, 1, Tag::Connect, deadline, via);
        true
    }

    /// What a request to connect has led to.
    pub(super) fn connect_replied(&mut self, now: Time, key: &Key, reply: Option<Reply>) {
        let Some(place) = self.links.connecting.iter().position(|entry| entry.key == *key) else {
            return;
        };
        let k = self.config.contacts_per_bucket;
        let peer = self.links.connecting.get(place).map(|entry| entry.peer);
        match reply {
            Some(Reply::Welcome(contact)) if Some(contact.id) == peer => {
                self.table.learn(&self.key, contact, k);
                self.output(Output::Dial { peer: contact.id });
            }
            Some(Reply::Full(others)) => {
                self.stats.connects_refused += 1;
                self.learn_all(&others);
                let entry = self.links.connecting.swap_remove(place);
                self.table.rest(&self.key, &entry.peer, &entry.key, now + REST);
                self.connecting_ended(now, &entry);
            }
            other => {
                if let Some(Reply::Closest(others)) = other {
                    self.learn_all(&others);
                }
                let entry = self.links.connecting.swap_remove(place);
                self.table.fail(&self.key, &entry.peer, &entry.key, now);
                self.connecting_ended(now, &entry);
            }
        }
    }

    fn connecting_ended(&mut self, now: Time, entry: &Connecting) {
        if entry.is_watched {
            self.upcall(Upcall::ConnectFailed { peer: entry.peer });
        }
        self.upkeep.soon(now);
    }

    /// A router asks for a link: is there room?
    pub(super) fn welcomes(&mut self, now: Time, from: Contact, need: Need) -> bool {
        self.links.expected.retain(|(_, until)| *until > now);
        if self.links.to(&from.id).is_some()
            || self.links.expected.iter().any(|(peer, _)| *peer == from.id)
        {
            return true;
        }
        let mut overlay = self.links.of_overlay() + self.links.expected.len();
        if overlay >= self.config.links_max {
            // a newcomer has not said yet what it needs its link for
            let surplus = self.links.iter().find(|link| {
                link.is_surplus() && now.saturating_since(link.idle_since) >= UNSAID_FOR
            });
            if let Some(link) = surplus.map(|link| link.id) {
                self.drop_surplus(now, link);
                overlay -= 1;
            }
        }
        let is_rush = self.links.expected.len() >= EXPECTED_MAX;
        let has_room = !is_rush
            && match need {
                Need::Sibling => {
                    let reach = self.links.reach(&self.key, self.config.siblings);
                    overlay < self.config.links_cap || from.key.distance(&self.key) < reach
                }
                Need::Sole => overlay < self.config.links_cap,
                Need::Bucket | Need::None => overlay < self.config.links_max,
                Need::Traffic => {
                    self.links.len() + self.links.expected.len()
                        < self.config.links_cap + self.config.traffic_links_max
                }
            };
        if has_room {
            self.links.expected.push((from.id, now + EXPECTED_FOR));
        }
        has_room
    }

    pub(super) fn dial_failed(&mut self, now: Time, peer: &EndpointId) {
        let Some(place) = self.links.connecting.iter().position(|entry| entry.peer == *peer) else {
            return;
        };
        let entry = self.links.connecting.swap_remove(place);
        self.table.fail(&self.key, &entry.peer, &entry.key, now);
        self.connecting_ended(now, &entry);
    }

    pub(super) fn link_up(
        &mut self,
        now: Time,
        link: LinkId,
        peer: EndpointId,
        rtt: Duration,
        net: u32,
    ) {
        if peer == self.id || self.links.to(&peer).is_some() || self.links.get(link).is_some() {
            // the transport keeps one link of a pair; a second one is its mistake
            self.stats.messages_unexpected += 1;
            self.output(Output::Close { link });
            return;
        }
        let of_net = self.links.iter().filter(|other| other.net == net).count();
        if self.config.links_per_net.is_some_and(|max| of_net >= max) {
            self.stats.links_refused_net += 1;
            self.output(Output::Close { link });
            self.dial_failed(now, &peer);
            return;
        }
        let links_max =
            self.config.links_cap + self.config.traffic_links_max + self.config.newcomers_max;
        if self.links.len() >= links_max {
            // somebody to whom nobody has said anything yet makes room, or the newcomer goes
            let surplus = self.links.iter().filter(|link| link.is_surplus());
            let longest = surplus.min_by_key(|link| link.idle_since).map(|link| link.id);
            self.stats.links_refused_full += 1;
            match longest {
                Some(other) => self.drop_surplus(now, other),
                None => {
                    self.output(Output::Close { link });
                    return self.dial_failed(now, &peer);
                }
            }
        }
        let mut contact = Contact::new(&self.realm, peer, Coordinate::default());
        if let Some(known) = self.table.find(&self.key, &contact.key) {
            contact.at = known.contact.at;
        }
        self.place.sample(&contact.at, rtt);
        self.table.prove(&self.key, contact, self.config.contacts_per_bucket);
        self.links.expected.retain(|(expected, _)| *expected != peer);
        let mut mine = Need::None;
        if let Some(place) = self.links.connecting.iter().position(|entry| entry.peer == peer) {
            mine = self.links.connecting.swap_remove(place).need;
        }
        if self.links.links.len() == self.links.links.capacity() {
            self.links.links.reserve_exact(8);
            self.links.numbers.reserve_exact(8);
        }
        self.links.numbers.push(link);
        let was_lost = self.links.lost.iter().position(|lost| lost.contact.id == peer);
        self.links.links.push(Link {
            id: link,
            peer: contact,
            bucket: contact.key.distance(&self.key).shared_bits(),
            rtt: u32::try_from(rtt.as_micros()).unwrap_or(u32::MAX),
            mine,
            theirs: Need::None,
            users: 0,
            missed: 0,
            unanswered: 0,
            probe_due: None,
            is_ready: false,
            since: now,
            idle_since: now,
            net,
            watched: 0,
            told: Coordinate::default(),
        });
        self.tell_need(link, mine);
        if self.choose_siblings() {
            self.upkeep.siblings_changed(now, link);
        }
        self.upcall(Upcall::LinkUp { link, peer });
        if let Some(place) = was_lost {
            self.links.lost.swap_remove(place);
            // it may have been on the other side of a rift: ask there who is close
            self.ask_for_self(now, Some(link));
        }
        self.upkeep.soon(now);
    }

    /// Tells the other side what the link is needed for.
    pub(super) fn tell_need(&mut self, link: LinkId, need: Need) {
        let at = self.place.coordinate();
        if let Some(entry) = self.links.get_mut(link) {
            entry.mine = need;
            entry.told = at;
        }
        let ready = self.upkeep.is_joined();
        self.send(link, Message::Keep { need, at, ready });
    }

    fn choose_siblings(&mut self) -> bool {
        let changed = self.links.choose_siblings(&self.key, self.config.siblings);
        if changed {
            self.upcall(Upcall::SiblingsChanged);
        }
        changed
    }

    /// The transport has lost a link.
    pub(super) fn link_down(&mut self, now: Time, link: LinkId) {
        let Some(entry) = self.links.get(link) else { return };
        let was_needed = entry.mine != Need::None;
        let is_refused = now.saturating_since(entry.since) < REFUSED_WITHIN;
        let Some(gone) = self.remove_link(now, link) else { return };
        if is_refused {
            // it agreed, and thought better of it when it saw the link
            return self.table.fail(&self.key, &gone.id, &gone.key, now);
        }
        // what nobody needed was closed, not lost
        if was_needed && self.links.lost.len() < LOST_MAX {
            let due = now + self.jittered(REDIAL_FIRST);
            self.links.lost.push(Lost { contact: gone, tries: 0, due });
            self.upkeep.by(due);
        }
    }

    /// The other side said good-bye.
    pub(super) fn link_left(&mut self, now: Time, link: LinkId) {
        if let Some(gone) = self.remove_link(now, link) {
            self.table.forget(&self.key, &gone.id, &gone.key);
            self.output(Output::Close { link });
        }
    }

    /// Closes a link that does not answer.
    pub(super) fn drop_dead(&mut self, now: Time, link: LinkId) {
        self.stats.links_dropped_dead += 1;
        self.output(Output::Close { link });
        self.link_down(now, link);
    }

    /// Closes a link that nobody needs.
    pub(super) fn drop_surplus(&mut self, now: Time, link: LinkId) {
        self.stats.links_dropped_surplus += 1;
        self.output(Output::Close { link });
        self.remove_link(now, link);
    }

    fn remove_link(&mut self, now: Time, link: LinkId) -> Option<Contact> {
        let place = self.links.place(link)?;
        self.links.numbers.swap_remove(place);
        let gone = self.links.links.swap_remove(place);
        let was_sibling = self.choose_siblings();
        self.upkeep.link_gone(now, was_sibling);
        self.reroute_from(now, link);
        self.upcall(Upcall::LinkDown { link, peer: gone.peer.id });
        Some(gone.peer)
    }

    /// Tries former neighbours again that are due; returns when the next one is.
    pub(super) fn redial_lost(&mut self, now: Time) -> Option<Time> {
        let mut index = 0;
        while let Some(lost) = self.links.lost.get_mut(index) {
            if lost.due > now {
                index += 1;
                continue;
            }
            lost.tries += 1;
            let (peer, tries) = (lost.contact.id, lost.tries);
            if tries > REDIALS_MAX {
                self.links.lost.swap_remove(index);
                continue;
            }
            let pause = self.jittered(REDIAL_FIRST * (1 << (tries - 1).min(3)));
            if let Some(lost) = self.links.lost.get_mut(index) {
                lost.due = now + pause;
            }
            if self.links.to(&peer).is_none() && !self.links.is_connecting(&peer) {
                self.output(Output::Redial { peer });
            }
            index += 1;
        }
        self.links.lost.iter().map(|lost| lost.due).min()
    }
}
