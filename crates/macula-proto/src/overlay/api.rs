//! What goes into an [`Overlay`](super::Overlay) and what comes out.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::message::{Contact, Message, StoreRefusal};
use super::record::{Notary, Record};
use crate::id::{EndpointId, Key, LinkId, QueryId, SubscriptionId};
use crate::pubsub::{Pattern, ProcedureName, Topic};
use crate::wire::message::{CallFailure, ProviderPolicy, Publish};

/// What an operator may tune. The defaults are those of docs/protocol §8.
#[derive(Clone)]
pub struct Config {
    /// Contacts that a bucket holds (Kademlia's k).
    pub contacts_per_bucket: usize,
    /// Closest routers that each keeps links to (S).
    pub siblings: usize,
    /// Links wanted in each bucket that has anybody.
    pub links_per_bucket: usize,
    /// Below so many links a node looks for more.
    pub links_min: usize,
    /// Above so many links a node asks for none but siblings, and sheds those that nobody needs.
    pub links_max: usize,
    /// A node never holds more links than this for the overlay.
    pub links_cap: usize,
    /// Beside those, links for trees and calls.
    pub traffic_links_max: usize,
    /// Beside those, links of newcomers that come here first, until they have found their places.
    pub newcomers_max: usize,
    /// Links to one network (a /24 or /48); `None`: no limit.
    pub links_per_net: Option<usize>,
    /// Prefer near routers in a bucket.
    pub proximity: bool,
    /// Between two looks at siblings and buckets, with jitter.
    pub upkeep_interval: Duration,
    /// Between two refreshes of buckets, with jitter.
    pub refresh_interval: Duration,
    /// How long the origin waits for an answer before it takes another way.
    pub attempt_timeout: Duration,
    /// Ways that a lookup tries before it fails.
    pub attempts_max: u8,
    /// Children of one node in one tree.
    pub children_max: usize,
    /// Limits of the store.
    pub store: super::store::StoreLimits,
    /// Limits of trees.
    pub trees: super::tree::TreeLimits,
    /// Signs and checks records.
    pub notary: Arc<dyn Notary>,
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("siblings", &self.siblings)
            .field("links_max", &self.links_max)
            .finish_non_exhaustive()
    }
}

impl Config {
    /// The defaults, with who signs and checks records.
    pub fn new(notary: Arc<dyn Notary>) -> Self {
        Self {
            contacts_per_bucket: 20,
            siblings: 8,
            links_per_bucket: 2,
            links_min: 20,
            links_max: 46,
            links_cap: 50,
            traffic_links_max: 32,
            newcomers_max: 256,
            links_per_net: Some(6),
            proximity: true,
            upkeep_interval: Duration::from_secs(10),
            refresh_interval: Duration::from_secs(3600),
            attempt_timeout: Duration::from_secs(2),
            attempts_max: 8,
            children_max: 8,
            store: super::store::StoreLimits::default(),
            trees: super::tree::TreeLimits::default(),
            notary,
        }
    }
}

/// Something happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// The time that [`Overlay::poll_timeout`](super::Overlay::poll_timeout) named has come.
    Timeout,
    /// A link to a router of the realm is up; its key was proved in the handshake.
    LinkUp {
        /// The link; numbers are never reused.
        link: LinkId,
        /// Who is there.
        peer: EndpointId,
        /// Round-trip time of the handshake.
        rtt: Duration,
        /// The network that it is in: a hash of its /24 or /48, the same for all of one network.
        net: u32,
    },
    /// A link is gone.
    LinkDown {
        /// The link.
        link: LinkId,
    },
    /// [`Output::Dial`] came to nothing.
    DialFailed {
        /// Who was dialled.
        peer: EndpointId,
    },
    /// A message came.
    Received {
        /// On which link.
        link: LinkId,
        /// What.
        message: Message,
    },
    /// The application wants something.
    Command(Command),
}

/// What an application wants.
#[derive(Clone, Debug)]
pub enum Command {
    /// Become part of the overlay by way of the links that are up (gateways, persisted peers).
    Join,
    /// Hand over what is held and say good-bye; links may be closed afterwards.
    Leave,
    /// Find the routers closest to a key. Ends in one [`Event::LookupDone`].
    Lookup {
        /// Names the query.
        query: QueryId,
        /// The key.
        target: Key,
        /// Ways to try at once, at least 1, over different first hops. More than one is protection
        /// from routers that drop or lie: the closest of those that several answers name are then
        /// asked themselves, like in `Walk`.
        paths: u8,
    },
    /// Find the routers closest to a key step by step, asking each on the way: slower and dearer than
    /// `Lookup`, for audits. Ends in one [`Event::WalkDone`].
    Walk {
        /// Names the query.
        query: QueryId,
        /// The key.
        target: Key,
    },
    /// Receive a topic's messages, or those of all topics that a pattern matches.
    Subscribe {
        /// Names the subscription.
        subscription: SubscriptionId,
        /// Topic or pattern.
        pattern: Pattern,
        /// Acknowledged messages are replayed after every repair.
        qos1: bool,
    },
    /// No more of these.
    Unsubscribe {
        /// The subscription.
        subscription: SubscriptionId,
    },
    /// Publish one message. With `qos1`, ends in one [`Event::Published`].
    Publish {
        /// Topic.
        topic: Topic,
        /// Payload.
        payload: Bytes,
        /// Wait until root and one more hold it.
        qos1: bool,
        /// Becomes the topic's retained message.
        retain: bool,
    },
    /// Offer a procedure.
    Provide {
        /// Its name.
        procedure: ProcedureName,
    },
    /// Offer it no more.
    Withdraw {
        /// Its name.
        procedure: ProcedureName,
    },
    /// Call a procedure. Ends in one [`Event::CallDone`].
    Call {
        /// Names the call.
        query: QueryId,
        /// Procedure.
        procedure: ProcedureName,
        /// Argument.
        body: Bytes,
        /// Time that it may take.
        deadline: Duration,
        /// How to choose among providers.
        policy: ProviderPolicy,
        /// Running it twice does no harm.
        idempotent: bool,
    },
    /// Answer an [`Event::Request`].
    Respond {
        /// The request.
        request: u64,
        /// Its outcome.
        result: Result<Bytes, CallFailure>,
    },
    /// Store a value of this endpoint. Ends in one [`Event::PutDone`].
    Put {
        /// Names the query.
        query: QueryId,
        /// Where.
        key: Key,
        /// The content; empty takes it back.
        value: Bytes,
        /// How long it shall live; the store re-announces it until `Put` with an empty value.
        lifetime: Duration,
    },
    /// Fetch the records of a kind at a key. Ends in one [`Event::FetchDone`].
    Fetch {
        /// Names the query.
        query: QueryId,
        /// Where.
        key: Key,
        /// [`Record::kind`].
        kind: u8,
    },
}

/// What the driver shall do.
#[derive(Clone, Debug)]
pub enum Output {
    /// Send a message. Messages on one link arrive in order.
    Send {
        /// On which link.
        link: LinkId,
        /// What.
        message: Message,
    },
    /// Open a link to this router, which has agreed. Ends in `LinkUp` or `DialFailed`.
    Dial {
        /// Who.
        peer: EndpointId,
    },
    /// Try to reach a former neighbour that was lost, by what the driver remembers of it (its last
    /// candidates, the gateway it was at). Nobody agreed to it. Ends in `LinkUp` or `DialFailed`.
    Redial {
        /// Who.
        peer: EndpointId,
    },
    /// Close a link.
    Close {
        /// Which; no `LinkDown` is expected for it.
        link: LinkId,
    },
    /// Tell the application.
    Event(Event),
}

/// What an application hears.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// The node is part of the overlay: it has links to the closest routers it could learn of.
    Joined,
    /// The node has fewer links than it wants siblings, and knows nobody else: the realm is small, or
    /// the routers that it has met hide the others. Give it links to further ones (gateways, peers of
    /// earlier times) and [`Command::Join`]. Comes again, ever more rarely, while it is so.
    Lonely {
        /// Links that it has.
        links: usize,
    },
    /// A lookup has ended.
    LookupDone {
        /// The query.
        query: QueryId,
        /// The closest routers, closest first; empty when every way failed.
        closest: Vec<Contact>,
        /// Hops of the route whose answer counted.
        hops: u8,
        /// Ways that were tried.
        attempts: u8,
    },
    /// An iterative lookup has ended.
    WalkDone {
        /// The query.
        query: QueryId,
        /// The closest routers, closest first: those that answered, and those that did not but that
        /// two others have named.
        closest: Vec<Contact>,
        /// Routers that were asked.
        asked: u16,
        /// Answers that led to the closest, one after the other.
        steps: u8,
    },
    /// New messages of a subscribed topic, in their publisher's order.
    Deliver {
        /// Subscriptions that match.
        subscriptions: Vec<SubscriptionId>,
        /// The messages; of the batch, only what is new.
        publish: Publish,
        /// They were retained or held before the subscription began.
        replay: bool,
    },
    /// Messages of a subscribed topic are missing and will not come.
    Lost {
        /// Topic.
        topic: Topic,
        /// How many, as far as known.
        count: u64,
    },
    /// A message with QoS 1 has come to an end.
    Published {
        /// Topic.
        topic: Topic,
        /// Its sequence (this publisher's, on the topic).
        sequence: u64,
        /// Direct receivers at the root, or why it was not accepted.
        result: Result<u32, PublishFailure>,
    },
    /// A call for a procedure that is provided here. Answer with [`Command::Respond`].
    Request {
        /// Names the request.
        request: u64,
        /// Who calls.
        caller: EndpointId,
        /// Procedure.
        procedure: ProcedureName,
        /// Argument.
        body: Bytes,
        /// Time that remains.
        deadline: Duration,
    },
    /// A call has ended.
    CallDone {
        /// The query.
        query: QueryId,
        /// Who answered, if anybody did.
        provider: Option<EndpointId>,
        /// Hops to the provider.
        hops: u8,
        /// The outcome.
        result: Result<Bytes, CallFailure>,
    },
    /// A value was stored, or not.
    PutDone {
        /// The query.
        query: QueryId,
        /// Copies, or why there is none; `None`: nobody answered.
        result: Result<u8, Option<StoreRefusal>>,
    },
    /// Records were fetched.
    FetchDone {
        /// The query.
        query: QueryId,
        /// The records, with signatures checked; `None`: nobody answered.
        records: Option<Vec<Record>>,
    },
}

/// A message with QoS 1 was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishFailure {
    /// No root answered within the deadline. It may have been delivered.
    #[error("nobody has confirmed the message in time")]
    Unconfirmed,
    /// The root refuses it.
    #[error("the root of the topic refuses it: {0}")]
    Refused(StoreRefusal),
    /// Too many of this node's messages wait for confirmation.
    #[error("too many messages wait for confirmation")]
    WouldBlock,
}

/// What a node has counted since it began. Every limit that bites has its counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each name says it; docs/operate lists them")]
pub struct Stats {
    pub routes_originated: u64,
    pub routes_forwarded: u64,
    pub routes_answered: u64,
    pub routes_rerouted: u64,
    pub routes_stuck: u64,
    pub routes_ttl_exceeded: u64,
    pub routes_looped: u64,
    pub routes_refused_full: u64,
    pub hop_timeouts: u64,
    pub attempts_failed: u64,
    pub answers_unknown: u64,
    pub answers_implausible: u64,
    pub lonely: u64,
    pub walk_questions: u64,
    pub walk_silent: u64,
    pub walks_cut_short: u64,
    pub first_hops_suspect: u64,
    pub joins_incomplete: u64,
    pub connects_sent: u64,
    pub connects_refused: u64,
    pub connects_refused_here: u64,
    pub links_dropped_dead: u64,
    pub links_dropped_surplus: u64,
    pub links_refused_net: u64,
    pub links_refused_full: u64,
    pub contacts_refused: u64,
    pub messages_unexpected: u64,
    pub records_refused_signature: u64,
    pub records_refused_lifetime: u64,
    pub records_refused_full: u64,
    pub records_refused_other: u64,
    pub records_refused_place: u64,
    pub records_expired: u64,
    pub tree_joins_refused: u64,
    pub tree_redirects: u64,
    pub tree_parents_silent: u64,
    pub tree_rejoins: u64,
    pub tree_replayed: u64,
    pub tree_gaps: u64,
    pub tree_wants: u64,
    pub tree_loops: u64,
    pub tree_rings_full: u64,
    pub tree_order_given_up: u64,
    pub tree_retained_refused: u64,
    pub tree_announcements_refused: u64,
    pub tree_topics_expired: u64,
    pub tree_subscriptions_refused: u64,
    pub tree_publishes_refused: u64,
    pub tree_handovers: u64,
    pub tree_flows_moved: u64,
    pub tree_flows_moved_back: u64,
    pub tree_sources_refused: u64,
    pub tree_prunes: u64,
    pub tree_grafts: u64,
    pub tree_heads_late: u64,
    pub tree_copies_dropped: u64,
    pub calls_refused_busy: u64,
    pub calls_duplicate: u64,
}
