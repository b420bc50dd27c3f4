//! One realm at one node.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use rand_core::Rng;

use super::api::{Config, Qos, Role, SubscribeOptions};
use super::bucket::Bucket;
use super::calls::Callee;
use super::direct::Inflow;
use super::session::{Session, SessionId};
use crate::SeededMap;
use crate::auth::{Denial, Permit, Request, Revocations, Rule, UnixTime, Verb, decide};
use crate::id::{EndpointId, LinkId, RealmId, SubscriptionId};
use crate::pubsub::retained::Retained;
use crate::pubsub::ring::Ring;
use crate::pubsub::seen::{SeenTable, StreamKey};
use crate::pubsub::trie::Trie;
use crate::pubsub::{Pattern, ProcedureName, Topic};
use crate::rpc::Providers;
use crate::seeded::SeededState;
use crate::time::Time;
use crate::wire::message::{Publish, SlowPolicy};

/// Why a router that was not told the time admits nobody to a guarded realm.
pub(super) const NO_CLOCK: &str = "it does not know what time it is";
/// Topics whose route is remembered; the memory is emptied when it is full.
const ROUTES_MAX: usize = 16_384;
/// Topics that the local application publishes on at once; beyond, sequences restart higher.
const OUT_STREAMS_MAX: usize = 65_536;

/// Who gets what matches a pattern.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Target {
    Local(SubscriptionId),
    Peer { session: SessionId, subscription: u32, policy: SlowPolicy },
}

/// Where messages of one topic go.
#[derive(Debug, Default)]
pub(super) struct Route {
    pub(super) locals: Vec<SubscriptionId>,
    pub(super) peers: Vec<(SessionId, SlowPolicy)>,
    /// Somebody may come to belong here just because time passes.
    pub(super) may_grow: bool,
}

/// A subscription of the local application.
#[derive(Debug)]
pub(super) struct LocalSubscription {
    pub(super) pattern: Pattern,
    pub(super) options: SubscribeOptions,
    /// The router had it once: what comes on a new link is a resumption.
    pub(super) confirmed: bool,
    pub(super) full: bool,
    /// `LatestOnly`: newest sequence handed out per stream.
    pub(super) latest: BTreeMap<StreamKey, u64>,
}

/// Where a publisher's batches come from and where its acknowledgements go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    Local,
    Lane(LinkId, u8),
    Bulk(LinkId, u64),
}

impl Source {
    pub(super) const fn link(self) -> Option<LinkId> {
        match self {
            Self::Local => None,
            Self::Lane(link, _) | Self::Bulk(link, _) => Some(link),
        }
    }
}

/// A router's account of one QoS 1 stream.
#[derive(Debug)]
pub(super) struct AckStream {
    /// The publisher's link; `None`: the local application.
    pub(super) link: Option<LinkId>,
    pub(super) accepted: u64,
    pub(super) delivered: u64,
    /// Ring entries not settled yet: number and last sequence.
    pub(super) outstanding: VecDeque<(u64, u64)>,
    pub(super) receivers: u32,
    /// Receivers that the publisher knows of from the router that this one replaces.
    pub(super) expected: Option<u32>,
    /// Subscribers of this stream may still be on their way back.
    pub(super) is_waiting: bool,
}

/// A QoS 1 batch of the local application that is not known to be delivered.
#[derive(Debug)]
pub(super) struct Unconfirmed {
    pub(super) publish: Publish,
}

impl Unconfirmed {
    /// What it counts for, so that very many empty ones are bounded too.
    pub(super) fn bytes(&self) -> usize {
        self.publish.body.len() + UNCONFIRMED_OVERHEAD_BYTES
    }
}

/// What an unconfirmed batch costs beside its body.
const UNCONFIRMED_OVERHEAD_BYTES: usize = 256;

/// The local application's messages on one topic.
#[derive(Debug, Default)]
pub(super) struct OutStream {
    /// Sequence of the last message.
    pub(super) last: u64,
    pub(super) accepted: u64,
    pub(super) delivered: u64,
    pub(super) receivers: u32,
    /// Receivers that a router counted last when all were there.
    pub(super) expects: Option<u32>,
    /// The present router need not be told that number: it counted itself, or was told.
    pub(super) expects_told: bool,
    /// So many get this topic over links between leaves, says the router, and nobody else wants it.
    pub(super) quiet: u32,
    pub(super) unconfirmed: VecDeque<Unconfirmed>,
    /// The retained message that this application set; told again to a router that forgot it.
    pub(super) retained: Option<Publish>,
}

impl OutStream {
    /// The number of receivers that a new router must be told, once.
    pub(super) fn take_expectation(&mut self) -> Option<u32> {
        self.expects.filter(|_| !std::mem::replace(&mut self.expects_told, true))
    }
}

/// A peer in a realm of a router.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) peer: EndpointId,
    /// What it may do; `None` in an open realm: everything.
    pub(super) permit: Option<Permit>,
}

/// One realm.
#[derive(Debug)]
pub(super) struct Realm {
    pub(super) id: RealmId,
    /// The local side joined it (as opposed to: a peer asked for it).
    pub(super) joined: bool,
    pub(super) grant: Bytes,
    /// The last grant that a router took; what is shown again when a renewed one was refused.
    pub(super) good_grant: Bytes,
    /// A renewed one that was refused; shown when the good one is not good any more.
    pub(super) refused_grant: Bytes,
    /// A leaf: why the router does not admit it, by its last answer.
    pub(super) denied: Option<String>,
    /// A router: who is in.
    pub(super) members: BTreeMap<SessionId, Member>,
    /// A router: what the root of a guarded realm took back.
    pub(super) revocations: Revocations,
    pub(super) trie: Trie<Target>,
    routes: SeededMap<Topic, Arc<Route>>,
    pub(super) seen: SeenTable,
    pub(super) ring: Ring,
    pub(super) acks: BTreeMap<StreamKey, AckStream>,
    pub(super) dirty: BTreeSet<StreamKey>,
    pub(super) retained: Retained,
    pub(super) grace_until: Option<Time>,
    pub(super) out: SeededMap<Topic, OutStream>,
    out_floor: u64,
    pub(super) unconfirmed_bytes: usize,
    pub(super) locals: BTreeMap<SubscriptionId, LocalSubscription>,
    /// A router: topics that publishers need not send, by their links, and for how many.
    pub(super) quiets: BTreeMap<(Topic, LinkId), u32>,
    /// A leaf: streams that come over links to their publishers, and bytes that wait in them.
    pub(super) inflows: BTreeMap<StreamKey, Inflow>,
    pub(super) inflow_bytes: usize,
    pub(super) providers: BTreeMap<ProcedureName, Providers<Callee>>,
    /// A router: subscriptions and registrations of peers, open calls, and what came in.
    pub(super) peer_subscriptions: usize,
    pub(super) peer_registrations: usize,
    pub(super) open_calls: usize,
    pub(super) received: Bucket,
    /// How many `acks` each publisher has.
    ack_counts: BTreeMap<EndpointId, usize>,
}

impl Realm {
    pub(super) fn new(id: RealmId, config: &Config, rng: &mut impl Rng) -> Self {
        Self {
            id,
            joined: false,
            grant: Bytes::new(),
            good_grant: Bytes::new(),
            refused_grant: Bytes::new(),
            denied: None,
            members: BTreeMap::new(),
            revocations: Revocations::default(),
            trie: Trie::default(),
            routes: SeededMap::with_hasher(SeededState::from_rng(rng)),
            seen: SeenTable::new(
                config.streams_max,
                match config.role {
                    Role::Router => config.streams_per_peer_max,
                    Role::Leaf => config.streams_max,
                },
                SeededState::from_rng(rng),
            ),
            ring: Ring::default(),
            acks: BTreeMap::new(),
            dirty: BTreeSet::new(),
            retained: Retained::default(),
            grace_until: None,
            out: SeededMap::with_hasher(SeededState::from_rng(rng)),
            out_floor: 0,
            unconfirmed_bytes: 0,
            locals: BTreeMap::new(),
            quiets: BTreeMap::new(),
            inflows: BTreeMap::new(),
            inflow_bytes: 0,
            providers: BTreeMap::new(),
            peer_subscriptions: 0,
            peer_registrations: 0,
            open_calls: 0,
            received: Bucket::new(Time::START),
            ack_counts: BTreeMap::new(),
        }
    }

    /// Counts again whose QoS 1 streams are under way, after some were forgotten.
    pub(super) fn count_acks(&mut self) {
        self.ack_counts.clear();
        for key in self.acks.keys() {
            *self.ack_counts.entry(key.publisher).or_default() += 1;
        }
    }

    /// The checked topic of this name; cheap when it was used before.
    pub(super) fn topic(&self, name: &[u8]) -> Option<Topic> {
        let text = std::str::from_utf8(name).ok()?;
        match self.routes.get_key_value(text) {
            Some((topic, _)) => Some(topic.clone()),
            None => Topic::parse(text).ok(),
        }
    }

    /// Whether a peer may do something here; in an open realm every member may do everything.
    /// `now`: the time by the calendar, where it is known.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn check(
        &self,
        session: SessionId,
        now: Option<UnixTime>,
        request: Request<'_>,
    ) -> Result<(), Denial> {
        if !self.id.is_guarded() {
            return Ok(());
        }
        let Some(Member { peer, permit: Some(permit) }) = self.members.get(&session) else {
            return Err(Denial::NoGrant);
        };
        let now = now.ok_or(Denial::CannotCheck(NO_CLOCK))?;
        decide(permit, &self.revocations, peer, now, request)
    }

    /// Whether a member may have packets carried to whomever it likes. `now`: as for [`Realm::check`].
    pub(super) fn may_relay_to_all(&self, session: SessionId, now: Option<UnixTime>) -> bool {
        if !self.id.is_guarded() {
            return true;
        }
        let Ok(all) = Pattern::parse("*") else { return false };
        let denies = |rule: &Rule| rule.verb == Verb::Relay;
        let is_denied = match self.members.get(&session) {
            Some(Member { permit: Some(permit), .. }) => {
                permit.layers.iter().flat_map(|layer| &layer.deny).any(denies)
            }
            _ => true,
        };
        !is_denied && self.check(session, now, Request::Cover(Verb::Relay, &all)).is_ok()
    }

    /// Where messages of `topic` go. `now`: as for [`Realm::check`].
    pub(super) fn route(&mut self, topic: &Topic, now: Option<UnixTime>) -> Arc<Route> {
        if let Some(route) = self.routes.get(topic) {
            return Arc::clone(route);
        }
        let mut targets = Vec::new();
        self.trie.matches(topic.as_str(), &mut targets);
        let mut may_keep = true;
        if self.id.is_guarded() {
            // A pattern may match more than a member may receive. Whose permit ends is cut off and
            // forgets its routes, so what is found here may be remembered; but not who is left out
            // only because the clock was set back.
            let receive = Request::Use(Verb::Subscribe, topic.as_str());
            targets.retain(|target| match target {
                Target::Local(_) => true,
                Target::Peer { session, .. } => {
                    let verdict = self.check(*session, now, receive);
                    may_keep &= !matches!(verdict, Err(Denial::NotYet { .. }));
                    verdict.is_ok()
                }
            });
        }
        let mut route = Route { may_grow: !may_keep, ..Route::default() };
        for target in targets {
            match target {
                Target::Local(subscription) => route.locals.push(subscription),
                Target::Peer { session, policy, .. } => match route.peers.last_mut() {
                    Some((last, known)) if *last == session => *known = stricter(*known, policy),
                    _ => route.peers.push((session, policy)),
                },
            }
        }
        let route = Arc::new(route);
        if !may_keep {
            return route;
        }
        if self.routes.len() >= ROUTES_MAX {
            self.routes.clear();
        }
        self.routes.insert(topic.clone(), Arc::clone(&route));
        route
    }

    /// How many others `publisher`'s messages on `topic` go to, links and local subscriptions,
    /// counting those whose session satisfies `counts`.
    pub(super) fn receivers(
        &mut self,
        topic: &Topic,
        now: Option<UnixTime>,
        sessions: &SeededMap<SessionId, Session>,
        publisher: EndpointId,
        counts: impl Fn(&Session) -> bool,
    ) -> u32 {
        let route = self.route(topic, now);
        let counts = |session: &Session| counts(session) && session.peer != publisher;
        let peers = route.peers.iter().filter(|(id, _)| sessions.get(id).is_some_and(counts));
        (peers.count() + route.locals.len()) as u32
    }

    /// The account of a QoS 1 stream; `None` when the realm or the publisher has as many as it may.
    pub(super) fn ack_stream(
        &mut self,
        key: &StreamKey,
        config: &Config,
    ) -> Option<&mut AckStream> {
        if !self.acks.contains_key(key) {
            let of_publisher = self.ack_counts.entry(key.publisher).or_default();
            if self.acks.len() >= config.streams_max || *of_publisher >= config.streams_per_peer_max
            {
                return None;
            }
            *of_publisher += 1;
        }
        Some(self.acks.entry(key.clone()).or_insert_with(|| AckStream {
            link: None,
            accepted: 0,
            delivered: 0,
            outstanding: VecDeque::new(),
            receivers: 0,
            expected: None,
            is_waiting: false,
        }))
    }

    /// The subscriptions changed: routes must be worked out again.
    pub(super) fn forget_routes(&mut self) {
        self.routes.clear();
    }

    /// The local application's stream on `topic`; says whether it is new.
    pub(super) fn out_stream(&mut self, topic: &Topic) -> (&mut OutStream, bool) {
        if self.out.len() >= OUT_STREAMS_MAX && !self.out.contains_key(topic) {
            let victim = self
                .out
                .iter()
                .find(|(_, stream)| stream.unconfirmed.is_empty() && stream.retained.is_none())
                .map(|(topic, _)| topic.clone());
            if let Some(stream) = victim.and_then(|topic| self.out.remove(&topic)) {
                self.out_floor = self.out_floor.max(stream.last);
            }
        }
        let floor = self.out_floor;
        let mut is_new = false;
        let stream = self.out.entry(topic.clone()).or_insert_with(|| {
            is_new = true;
            OutStream { last: floor, accepted: floor, delivered: floor, ..OutStream::default() }
        });
        (stream, is_new)
    }

    /// Whether nobody needs this realm any more. One with revocations is needed: whoever was
    /// revoked must not come back when all others have left.
    pub(super) fn is_idle(&self) -> bool {
        !self.joined
            && self.members.is_empty()
            && self.ring.is_empty()
            && self.retained.is_empty()
            && self.revocations.sequence == 0
    }
}

/// Of two policies of one peer, the one that loses less.
fn stricter(left: SlowPolicy, right: SlowPolicy) -> SlowPolicy {
    use SlowPolicy::{Block, Disconnect, DropOldest};
    match (left, right) {
        (Block, _) | (_, Block) => Block,
        (Disconnect, _) | (_, Disconnect) => Disconnect,
        (DropOldest, DropOldest) => DropOldest,
    }
}

impl From<bool> for Qos {
    /// From the flag on the wire.
    fn from(qos1: bool) -> Self {
        if qos1 { Self::AtLeastOnce } else { Self::AtMostOnce }
    }
}
