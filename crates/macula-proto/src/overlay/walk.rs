//! Iterative lookups: the node itself asks one router after the other who is close to a key.
//!
//! A recursive lookup takes the word of whoever ends it. Here the closest that are known are asked in
//! turn, each by a route to its own key, until the closest of all have answered for themselves
//! (Kademlia's node lookup, Maymounkov and Mazières 2002; over several ways at once as in S/Kademlia,
//! Baumgart and Mies 2007). It costs more and takes longer: it is for audits, and for what several
//! ways have found in a lookup that shall not trust any single router.

use std::collections::BTreeMap;

use super::api::Event;
use super::core::{Core, Outcome, Tag};
use super::message::{Body, Contact, Reply};
use crate::id::{Key, QueryId};
use crate::limits::{WALK_ASKED_MAX, WALK_KNOWN_MAX};
use crate::time::Time;

/// Routers that are asked at the same time (Kademlia's alpha).
const ALPHA: usize = 3;
/// Ways on which each is asked at once; one more with every time that it is asked again.
const WAYS: u8 = 2;
/// An answer is waited for by so many parts of the usual time as there are ways.
const WAIT_SHARE: u32 = 4;
/// So many of the closest are asked again when they do not answer.
const SURE: usize = 2;
/// How often those are asked, and those that only one other has named.
const TRIES_MAX: (u8, u8) = (3, 2);
/// A walk goes on until so many of the closest have been asked.
const WIDTH_WALK: usize = 8;
/// The same for what a lookup over several ways has found.
const WIDTH_LOOKUP: usize = 4;
/// A router that does not answer is believed to be there when so many others have named it.
const WITNESSES: u8 = 2;
/// Contacts in a result.
const CLOSEST_COUNT: usize = 8;

/// Iterative lookups under way.
#[derive(Debug, Default)]
pub(super) struct Walks {
    walks: BTreeMap<u64, Walk>,
    next: u64,
}

impl Walks {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.walks.len()
    }
}

#[derive(Debug)]
struct Walk {
    purpose: Purpose,
    target: Key,
    /// By distance to the target, closest first.
    known: Vec<Known>,
    asked: u16,
}

/// Who gets the result.
#[derive(Clone, Copy, Debug)]
pub(super) enum Purpose {
    /// [`super::api::Command::Walk`].
    Walk(QueryId),
    /// [`super::api::Command::Lookup`] over several ways, with what those took.
    Lookup { query: QueryId, hops: u8, attempts: u8 },
}

impl Purpose {
    const fn width(self) -> usize {
        match self {
            Self::Walk(_) => WIDTH_WALK,
            Self::Lookup { .. } => WIDTH_LOOKUP,
        }
    }
}

#[derive(Debug)]
struct Known {
    contact: Contact,
    state: State,
    /// How often it has been asked.
    tries: u8,
    /// Who was asked and named it.
    named_by: u8,
    /// Questions that led to it.
    depth: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    New,
    Asked,
    Answered,
    Silent,
}

impl Known {
    /// Whether nothing but one router's word says that it exists.
    const fn is_hearsay(&self) -> bool {
        matches!(self.state, State::Silent) && !self.shall_answer() && self.named_by < WITNESSES
    }

    /// Whether it did not answer and is worth another question.
    const fn shall_answer(&self) -> bool {
        let tries_max = if self.named_by < WITNESSES { TRIES_MAX.1 } else { TRIES_MAX.0 };
        matches!(self.state, State::Silent) && self.tries < tries_max
    }
}

impl Walk {
    /// Takes what somebody has named. Bounded: forgotten are those that nobody believes in, then the
    /// farthest that are not being asked.
    fn learn(&mut self, contacts: &[Contact], depth: u8) {
        for contact in contacts.iter().take(CLOSEST_COUNT) {
            if let Some(known) = self.known.iter_mut().find(|known| known.contact.id == contact.id)
            {
                known.named_by = known.named_by.saturating_add(1);
                continue;
            }
            let known =
                Known { contact: *contact, state: State::New, tries: 0, named_by: 1, depth };
            self.known.push(known);
        }
        let target = self.target;
        self.known.sort_unstable_by_key(|known| known.contact.key.distance(&target));
        while self.known.len() > WALK_KNOWN_MAX {
            let hearsay = self.known.iter().rposition(Known::is_hearsay);
            let idle = || self.known.iter().rposition(|known| known.state != State::Asked);
            let Some(place) = hearsay.or_else(idle) else { return };
            self.known.remove(place);
        }
    }

    /// The closest, up to the last of so many that have answered or may still.
    fn front(&self) -> impl Iterator<Item = &Known> {
        let mut left = self.purpose.width();
        self.known.iter().filter(|known| !known.is_hearsay()).take_while(move |known| {
            let is_within = left > 0;
            left = left.saturating_sub(usize::from(known.state != State::Silent));
            is_within
        })
    }

    /// Whom to ask now, if anybody.
    fn next(&self) -> Option<Contact> {
        let under_way = self.known.iter().filter(|known| known.state == State::Asked).count();
        if under_way >= ALPHA || usize::from(self.asked) >= WALK_ASKED_MAX {
            return None;
        }
        let new = self.front().find(|known| known.state == State::New);
        // what stands between may have dropped the question to one of the very closest
        let again = || self.front().take(SURE).find(|known| known.shall_answer());
        new.or_else(again).map(|known| known.contact)
    }

    fn is_over(&self) -> bool {
        let is_spent = usize::from(self.asked) >= WALK_ASKED_MAX;
        self.front().enumerate().all(|(place, known)| match known.state {
            State::New => is_spent,
            State::Asked => false,
            State::Silent => is_spent || place >= SURE || !known.shall_answer(),
            State::Answered => true,
        })
    }

    /// Notes that it is asked now; returns on how many ways.
    fn ask(&mut self, key: &Key) -> u8 {
        self.asked += 1;
        let known = self.known.iter_mut().find(|known| known.contact.key == *key);
        known.map_or(WAYS, |known| {
            known.state = State::Asked;
            known.tries += 1;
            WAYS + known.tries - 1
        })
    }

    fn set(&mut self, key: &Key, state: State) -> Option<u8> {
        let known = self.known.iter_mut().find(|known| known.contact.key == *key)?;
        known.state = state;
        Some(known.depth)
    }
}

impl Core {
    /// Begins an iterative lookup with `start` beside what this node knows itself. Its event follows
    /// exactly once.
    pub(super) fn walk(&mut self, now: Time, target: Key, start: &[Contact], purpose: Purpose) {
        let number = self.walks.next;
        self.walks.next += 1;
        let mut walk = Walk { purpose, target, known: Vec::new(), asked: 0 };
        walk.learn(&self.closest_to(&target, CLOSEST_COUNT), 0);
        start.chunks(CLOSEST_COUNT).for_each(|some| walk.learn(some, 0));
        walk.set(&self.key, State::Answered);
        self.walks.walks.insert(number, walk);
        self.walk_on(now, number);
    }

    /// Asks whoever is next, or ends it.
    fn walk_on(&mut self, now: Time, number: u64) {
        let Some(walk) = self.walks.walks.get_mut(&number) else { return };
        let target = walk.target;
        let mut asked = Vec::new();
        while let Some(contact) = walk.next() {
            let ways = walk.ask(&contact.key);
            asked.push((contact, ways));
        }
        if asked.is_empty() && walk.is_over() {
            return self.walk_ended(number);
        }
        for (contact, ways) in asked {
            let body = Body::Near { to: target };
            let deadline = now + self.config.attempt_timeout * u32::from(ways) / WAIT_SHARE;
            self.stats.walk_questions += 1;
            self.request_by(now, contact.key, body, ways, Tag::Walk(number), deadline);
        }
    }

    /// A router that was asked has answered, or has not.
    pub(super) fn walk_replied(&mut self, now: Time, number: u64, outcome: Outcome) {
        let Some(walk) = self.walks.walks.get_mut(&number) else { return };
        match outcome.reply {
            Some(Reply::Near(contacts)) => {
                let depth = walk.set(&outcome.target, State::Answered).unwrap_or_default();
                // nobody is a witness for itself
                let others: Vec<Contact> =
                    contacts.into_iter().filter(|contact| contact.key != outcome.target).collect();
                walk.learn(&others, depth.saturating_add(1));
            }
            _ => {
                self.stats.walk_silent += 1;
                walk.set(&outcome.target, State::Silent);
            }
        }
        self.walk_on(now, number);
    }

    fn walk_ended(&mut self, number: u64) {
        let Some(walk) = self.walks.walks.remove(&number) else { return };
        self.stats.walks_cut_short += u64::from(usize::from(walk.asked) >= WALK_ASKED_MAX);
        let is_there = |known: &&Known| match known.state {
            State::New | State::Asked => false,
            State::Answered => true,
            State::Silent => known.named_by >= WITNESSES,
        };
        let found: Vec<&Known> = walk.known.iter().filter(is_there).take(CLOSEST_COUNT).collect();
        let steps = found.first().map_or(0, |known| known.depth);
        let closest = found.into_iter().map(|known| known.contact).collect();
        self.event(match walk.purpose {
            Purpose::Walk(query) => Event::WalkDone { query, closest, asked: walk.asked, steps },
            Purpose::Lookup { query, hops, attempts } => {
                Event::LookupDone { query, closest, hops, attempts }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{EndpointId, RealmId};
    use crate::overlay::Coordinate;

    fn contact(number: u8) -> Contact {
        let realm = RealmId::from_bytes([0; 32]);
        Contact::new(&realm, EndpointId::from_bytes([number; 32]), Coordinate::default())
    }

    fn walk() -> Walk {
        let purpose = Purpose::Walk(QueryId(1));
        Walk { purpose, target: Key::from_bytes([0; 20]), known: Vec::new(), asked: 0 }
    }

    #[test]
    fn a_flood_of_contacts_leaves_the_closest_and_those_being_asked() {
        let mut walk = walk();
        let all: Vec<Contact> = (0..=255).map(contact).collect();
        let farthest = all.iter().max_by_key(|one| one.key.distance(&walk.target)).copied();
        let farthest = farthest.expect("there are some");
        walk.learn(&[farthest], 0);
        walk.set(&farthest.key, State::Asked);
        all.chunks(8).for_each(|some| walk.learn(some, 1));
        assert_eq!(walk.known.len(), WALK_KNOWN_MAX);
        let mut sorted = all.clone();
        sorted.sort_by_key(|one| one.key.distance(&walk.target));
        let kept: Vec<EndpointId> = walk.known.iter().map(|known| known.contact.id).collect();
        let (last, first) = kept.split_last().expect("some are kept");
        assert!(first.iter().eq(sorted.iter().take(first.len()).map(|one| &one.id)));
        assert_eq!(*last, farthest.id);
    }

    #[test]
    fn whom_only_one_has_named_and_who_does_not_answer_is_not_believed_in() {
        let mut walk = walk();
        walk.learn(&[contact(1), contact(2)], 0);
        walk.learn(&[contact(2)], 0);
        for one in [contact(1), contact(2)] {
            (0..TRIES_MAX.0).for_each(|_| _ = walk.ask(&one.key));
            walk.set(&one.key, State::Silent);
        }
        let front: Vec<EndpointId> = walk.front().map(|known| known.contact.id).collect();
        assert_eq!(front, [contact(2).id]);
        assert!(walk.is_over());
    }

    #[test]
    fn a_walk_ends_when_enough_have_answered_not_when_enough_are_silent() {
        let purpose = Purpose::Lookup { query: QueryId(1), hops: 1, attempts: 1 };
        let mut walk = Walk { purpose, ..walk() };
        let all: Vec<Contact> = (0..WIDTH_LOOKUP as u8 * 3).map(contact).collect();
        all.chunks(8).for_each(|some| walk.learn(some, 0));
        let mut answers = 0;
        while let Some(next) = walk.next() {
            walk.ask(&next.key);
            // every other one says nothing, however often it is asked
            let place = walk.known.iter().position(|known| known.contact.id == next.id);
            let answered = place.is_some_and(|place| place % 2 == 1);
            walk.set(&next.key, if answered { State::Answered } else { State::Silent });
            answers += usize::from(answered);
        }
        assert!(walk.is_over());
        assert_eq!(answers, WIDTH_LOOKUP);
    }

    #[test]
    fn no_more_than_so_many_are_asked() {
        let mut walk = walk();
        let mut number = 0u8;
        while let Some(next) = walk.next().or_else(|| {
            number = number.checked_add(8)?;
            walk.learn(&(number..number.saturating_add(8)).map(contact).collect::<Vec<_>>(), 0);
            walk.next()
        }) {
            walk.ask(&next.key);
            walk.set(&next.key, State::Answered);
        }
        assert!(usize::from(walk.asked) <= WALK_ASKED_MAX);
        assert!(walk.is_over());
    }
}
