//! What the parts of a node share: links, contacts, routing, outputs, random numbers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use rand_core::SeedableRng;
use rand_pcg::Pcg32;

use super::api::{Config, Event, Output, Stats};
use super::coordinate::{Coordinate, Place};
use super::links::Links;
use super::message::{Body, Contact, Message, Reply};
use super::record::Record;
use super::route::Routes;
use super::table::Table;
use super::upkeep::Upkeep;
use super::walk::Walks;
use crate::id::{EndpointId, Key, LinkId, QueryId, RealmId};

/// Room that an empty queue keeps: of 100,000 nodes in a process few have anything to do at a time.
const SPARE: usize = 4;

/// Everything but records, trees and calls, which use it.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) realm: RealmId,
    pub(super) config: Arc<Config>,
    pub(super) rng: Pcg32,
    pub(super) stats: Stats,
    pub(super) id: EndpointId,
    pub(super) key: Key,
    pub(super) place: Place,
    pub(super) table: Table,
    pub(super) links: Links,
    pub(super) routes: Routes,
    pub(super) walks: Walks,
    pub(super) upkeep: Upkeep,
    outputs: VecDeque<Output>,
    upcalls: VecDeque<Upcall>,
}

/// What the core tells the other parts.
#[derive(Debug)]
pub(super) enum Upcall {
    /// A routed message has come to its end here (this node is the closest that it knows of, or the
    /// one that was meant). Give it to [`Core::answer`] with a reply.
    Arrived(Arrival),
    /// A request of this node has come to its end.
    Replied { tag: Tag, outcome: Outcome },
    /// Provider records for a call, from the cache or the store.
    Fetched { call: u64, records: Option<Vec<Record>> },
    /// A link is up.
    LinkUp { link: LinkId, peer: EndpointId },
    /// A link is gone; nothing can be sent on it any more.
    LinkDown { link: LinkId, peer: EndpointId },
    /// A link that [`Core::connect`] asked for does not come.
    ConnectFailed { peer: EndpointId },
    /// Other routers are the closest now.
    SiblingsChanged,
}

/// Who asked; comes back with the outcome of [`Core::request`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tag {
    /// The application's lookup.
    Lookup(QueryId),
    /// The same over several ways, whose answers are then examined.
    Ways(QueryId),
    /// The own key, to join.
    Join,
    /// A key in a bucket, to learn contacts there.
    Fill,
    /// A request to connect; its peer is the target.
    Connect,
    /// A question of an iterative lookup, by its number.
    Walk(u64),
    /// Of the records part, which numbers its requests.
    Records(u64),
    /// Of the trees part.
    Tree(u64),
    /// Of the calls part.
    Call(u64),
}

/// A routed message that has arrived.
#[derive(Debug)]
pub(super) struct Arrival {
    /// Its number.
    pub(super) id: u64,
    /// Where it was going.
    pub(super) target: Key,
    /// Hops that it has travelled.
    pub(super) hops: u8,
    /// What it asks.
    pub(super) body: Body,
}

/// How a request ended.
#[derive(Debug)]
pub(super) struct Outcome {
    /// The target of the request.
    pub(super) target: Key,
    /// The reply; none: every way has failed.
    pub(super) reply: Option<Reply>,
    /// Hops of the way that was answered.
    pub(super) hops: u8,
    /// Ways that were tried.
    pub(super) attempts: u8,
    /// At least one way may have arrived without an answer: the request may have been carried out.
    pub(super) may_have_run: bool,
}

impl Core {
    pub(super) fn new(id: EndpointId, realm: RealmId, config: Arc<Config>, seed: u64) -> Self {
        let key = Contact::new(&realm, id, Coordinate::default()).key;
        let mut rng = Pcg32::seed_from_u64(seed);
        let draw = rand_core::Rng::next_u64(&mut rng);
        Self {
            realm,
            rng,
            stats: Stats::default(),
            id,
            key,
            place: Place::new(draw),
            table: Table::default(),
            links: Links::default(),
            routes: Routes::default(),
            walks: Walks::default(),
            upkeep: Upkeep::default(),
            outputs: VecDeque::new(),
            upcalls: VecDeque::new(),
            config,
        }
    }

    /// This node as others see it.
    pub(super) fn me(&self) -> Contact {
        Contact { id: self.id, key: self.key, at: self.place.coordinate() }
    }

    /// Sends on a link. Nothing happens when the link is not up.
    pub(super) fn send(&mut self, link: LinkId, message: Message) {
        if self.links.get(link).is_some() {
            self.outputs.push_back(Output::Send { link, message });
        }
    }

    /// Tells the application.
    pub(super) fn event(&mut self, event: Event) {
        self.outputs.push_back(Output::Event(event));
    }

    pub(super) fn output(&mut self, output: Output) {
        self.outputs.push_back(output);
    }

    pub(super) fn upcall(&mut self, upcall: Upcall) {
        self.upcalls.push_back(upcall);
    }

    pub(super) fn poll_output(&mut self) -> Option<Output> {
        let output = self.outputs.pop_front();
        if self.outputs.is_empty() && self.outputs.capacity() > SPARE {
            self.outputs = VecDeque::new();
        }
        output
    }

    pub(super) fn poll_upcall(&mut self) -> Option<Upcall> {
        let upcall = self.upcalls.pop_front();
        if self.upcalls.is_empty() && self.upcalls.capacity() > 0 {
            self.upcalls = VecDeque::new();
        }
        upcall
    }

    /// A random number.
    pub(super) fn draw(&mut self) -> u64 {
        rand_core::Rng::next_u64(&mut self.rng)
    }

    /// `around`, give or take a quarter: so that nodes which began together do not stay together.
    pub(super) fn jittered(&mut self, around: Duration) -> Duration {
        let share = 0.75 + (self.draw() >> 40) as f64 / f64::from(1u32 << 24) / 2.0;
        around.mul_f64(share)
    }
}

/// What tests of the parts need.
#[cfg(test)]
pub(super) mod testing {
    use super::*;
    use crate::overlay::Notary;

    struct Trusting;

    impl Notary for Trusting {
        fn sign(&self, _: &EndpointId, _: &[u8]) -> [u8; 64] {
            [0; 64]
        }

        fn verify(&self, _: &EndpointId, _: &[u8], _: &[u8; 64]) -> bool {
            true
        }
    }

    /// A node that knows nobody.
    pub(in super::super) fn lone_node() -> Core {
        let config = Config { links_per_net: None, ..Config::new(Arc::new(Trusting)) };
        let (id, realm) = (EndpointId::from_bytes([255; 32]), RealmId::from_bytes([1; 32]));
        Core::new(id, realm, Arc::new(config), 1)
    }
}
