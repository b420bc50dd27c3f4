//! The overlay of one realm at one router: who its neighbours are, how a message finds the router
//! closest to a key, and what is kept there.
//!
//! R/Kademlia (Heep, 2010): Kademlia's space and buckets, but messages are forwarded recursively over
//! links that stay, because behind NATs a new link costs much and an old one nothing. On top of it the
//! store, trees of topics (after Scribe, Castro and others, 2002) and calls.
//!
//! [`Overlay`] is fed [`Input`]s with the [`Time`] at which they happen and drained by
//! [`Overlay::poll_output`]. What this module does *not* do: reach anybody, sign anything (see
//! [`Notary`]), or know about realms other than its own. Spec: docs/protocol §8.
#![cfg_attr(
    not(test),
    deny(
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::string_slice,
        clippy::unreachable,
        clippy::unwrap_used
    )
)]

mod api;
mod calls;
mod coordinate;
mod core;
mod links;
mod message;
mod record;
mod records;
mod route;
mod store;
mod table;
mod tree;
mod upkeep;
mod walk;
pub mod wire;

use std::sync::Arc;
use std::time::Duration;

pub use api::{Command, Config, Event, Input, Output, PublishFailure, Stats};
pub use coordinate::Coordinate;
pub use message::{
    Answer, Body, Contact, Cursor, Load, Message, Need, Reply, Route, RoutedCall, StoreRefusal,
    TreeAct, TreeId, TreeMessage,
};
pub use record::{Notary, Record, kind};
pub use store::StoreLimits;
pub use tree::{TreeLimits, TreeSizes};

use self::calls::Calls;
use self::core::{Core, Tag, Upcall};
use self::records::Records;
use self::tree::Trees;
use self::walk::Purpose;
use crate::id::{EndpointId, LinkId, RealmId};
use crate::time::Time;

/// A router's part in the overlay of one realm.
#[derive(Debug)]
pub struct Overlay {
    core: Core,
    records: Records,
    trees: Trees,
    calls: Calls,
}

/// A neighbour, as [`Overlay::neighbours`] shows it.
#[derive(Clone, Copy, Debug)]
pub struct Neighbour {
    /// The link.
    pub link: LinkId,
    /// Who is there.
    pub contact: Contact,
    /// What this node needs the link for.
    pub mine: Need,
    /// What the other said.
    pub theirs: Need,
    /// Smoothed round-trip time.
    pub rtt: Duration,
}

/// How full a node's tables are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Live links.
    pub links: usize,
    /// Contacts in the buckets.
    pub contacts: usize,
    /// Routes that are watched over.
    pub routes: usize,
    /// Requests of this node that have not ended.
    pub requests: usize,
    /// Iterative lookups of this node that have not ended.
    pub walks: usize,
    /// Records held for others.
    pub records: usize,
    /// What those cost, bytes.
    pub record_bytes: usize,
    /// Keys whose records are cached.
    pub cached: usize,
    /// Calls of this node that have not ended.
    pub calls: usize,
    /// Requests that the application works on.
    pub running: usize,
}

impl Overlay {
    /// A node without any link. `seed` decides all that it draws.
    pub fn new(me: EndpointId, realm: RealmId, config: Arc<Config>, seed: u64) -> Self {
        let mut core = Core::new(me, realm, config, seed);
        let trees = Trees::new(&mut core);
        Self { records: Records::default(), calls: Calls::default(), trees, core }
    }

    /// Takes one input. Drain [`Overlay::poll_output`] afterwards.
    pub fn handle(&mut self, now: Time, input: Input) {
        match input {
            Input::Timeout => {
                self.core.tick(now);
                self.records.tick(&mut self.core, now);
                self.trees.tick(&mut self.core, now);
                self.calls.tick(&mut self.core, now);
            }
            Input::LinkUp { link, peer, rtt, net } => self.core.link_up(now, link, peer, rtt, net),
            Input::LinkDown { link } => self.core.link_down(now, link),
            Input::DialFailed { peer } => self.core.dial_failed(now, &peer),
            Input::Received { link, message } => self.received(now, link, message),
            Input::Command(command) => self.command(now, command),
        }
        self.upcalls(now);
    }

    /// The next thing for the driver to do; `None` when there is nothing left.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.core.poll_output()
    }

    /// When [`Input::Timeout`] is wanted.
    pub fn poll_timeout(&self) -> Option<Time> {
        [
            self.core.poll_timeout(),
            self.records.poll_timeout(),
            self.trees.poll_timeout(),
            self.calls.poll_timeout(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// This node.
    pub fn me(&self) -> Contact {
        self.core.me()
    }

    /// How much the trees take that this node is part of.
    pub fn tree_sizes(&self) -> TreeSizes {
        self.trees.sizes()
    }

    /// Counters since the beginning.
    pub fn stats(&self) -> &Stats {
        &self.core.stats
    }

    /// The neighbours: who they are, what the link is needed for on either side, its smoothed
    /// round-trip time.
    pub fn neighbours(&self) -> impl Iterator<Item = Neighbour> {
        self.core.links.iter().map(|link| Neighbour {
            link: link.id,
            contact: link.peer,
            mine: link.mine,
            theirs: link.theirs,
            rtt: Duration::from_micros(link.rtt.into()),
        })
    }

    /// How full the tables are that a peer can make grow.
    pub fn sizes(&self) -> Sizes {
        let (routes, requests) = self.core.routes.sizes();
        let (records, cached, record_bytes) = self.records.sizes();
        let (calls, running, _) = self.calls.sizes();
        Sizes {
            links: self.core.links.len(),
            contacts: self.core.table.len(),
            routes,
            requests,
            walks: self.core.walks.len(),
            records,
            record_bytes,
            cached,
            calls,
            running,
        }
    }

    fn received(&mut self, now: Time, link: LinkId, message: Message) {
        match message {
            Message::Replicate { token, records } => {
                self.records.replicated(&mut self.core, now, link, token, records);
            }
            Message::Kept { token } => self.records.kept(&mut self.core, now, link, token),
            Message::Tree(message) => self.trees.received(&mut self.core, now, link, *message),
            other => self.core.received(now, link, other),
        }
    }

    fn command(&mut self, now: Time, command: Command) {
        let core = &mut self.core;
        match command {
            Command::Join => core.join(now),
            Command::Leave => {
                self.records.leave(core, now);
                self.trees.leave(core, now);
                core.leave(now);
            }
            Command::Lookup { query, target, paths } => {
                let body = Body::Find { except: None, early: paths > 1 };
                let tag = if paths > 1 { Tag::Ways(query) } else { Tag::Lookup(query) };
                core.request(now, target, body, paths, tag);
            }
            Command::Walk { query, target } => {
                core.walk(now, target, &[], Purpose::Walk(query));
            }
            Command::Subscribe { subscription, pattern, qos1 } => {
                self.trees.subscribe(core, now, subscription, pattern, qos1);
            }
            Command::Unsubscribe { subscription } => {
                self.trees.unsubscribe(core, now, subscription)
            }
            Command::Publish { topic, payload, qos1, retain } => {
                self.trees.publish(core, now, topic, payload, qos1, retain);
            }
            Command::Provide { procedure } => {
                self.calls.provide(core, &mut self.records, now, procedure);
            }
            Command::Withdraw { procedure } => {
                self.calls.withdraw(core, &mut self.records, now, &procedure);
            }
            Command::Call { query, procedure, body, deadline, policy, idempotent } => {
                let call = calls::NewCall { query, procedure, body, deadline, policy, idempotent };
                self.calls.call(core, &mut self.records, now, call);
            }
            Command::Respond { request, result } => self.calls.respond(core, now, request, result),
            Command::Put { query, key, value, lifetime } => {
                self.records.put(core, now, query, key, value, lifetime);
            }
            Command::Fetch { query, key, kind } => self.records.fetch(core, now, query, key, kind),
        }
    }

    /// Hands what the core found out to the part that it concerns, until nothing is left.
    fn upcalls(&mut self, now: Time) {
        while let Some(upcall) = self.core.poll_upcall() {
            let core = &mut self.core;
            match upcall {
                Upcall::Arrived(arrival) => match arrival.body {
                    Body::Put(_) | Body::Fetch { .. } => self.records.arrived(core, now, arrival),
                    Body::Publish(_) | Body::Announce { .. } | Body::Audit { .. } => {
                        self.trees.arrived(core, now, arrival)
                    }
                    Body::Call(_) => self.calls.arrived(core, now, arrival),
                    Body::Find { .. } | Body::Near { .. } | Body::Connect { .. } => {
                        core.arrived(now, arrival)
                    }
                },
                Upcall::Replied { tag, outcome } => match tag {
                    Tag::Records(_) => self.records.replied(core, now, tag, outcome),
                    Tag::Tree(_) => self.trees.replied(core, now, tag, outcome),
                    Tag::Call(_) => self.calls.replied(core, &mut self.records, now, tag, outcome),
                    Tag::Lookup(_)
                    | Tag::Ways(_)
                    | Tag::Walk(_)
                    | Tag::Join
                    | Tag::Fill
                    | Tag::Connect => {
                        core.replied(now, tag, outcome);
                    }
                },
                Upcall::Fetched { call, records } => {
                    self.calls.fetched(core, now, call, records);
                }
                Upcall::LinkUp { link, peer } => self.trees.link_up(core, now, link, peer),
                Upcall::LinkDown { link, peer } => self.trees.link_down(core, now, link, peer),
                Upcall::ConnectFailed { peer } => self.trees.connect_failed(core, now, &peer),
                Upcall::SiblingsChanged => {
                    self.records.siblings_changed(core, now);
                    self.trees.siblings_changed(core, now);
                }
            }
        }
    }
}
