//! What routers of one realm say to each other to keep the overlay. Spec: docs/protocol §8.

use std::time::Duration;

use bytes::Bytes;

use super::coordinate::Coordinate;
use super::record::Record;
use crate::id::{Distance, EndpointId, Key, RealmId};
use crate::wire::message::{CallFailure, Publish};

/// What one router knows of another before they have a link: who it is and about where.
///
/// How to reach it is not part of it: a request to connect is routed to its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contact {
    /// Its public key.
    pub id: EndpointId,
    /// Its place in the overlay, which follows from the realm and `id`. Not on the wire.
    pub key: Key,
    /// Where it is in terms of round-trip times, as far as it said.
    pub at: Coordinate,
}

impl Contact {
    /// The contact of `id` in `realm`.
    pub fn new(realm: &RealmId, id: EndpointId, at: Coordinate) -> Self {
        Self { id, key: Key::derive(realm, crate::id::KeyKind::Node, id.as_bytes()), at }
    }
}

/// A message on its way to the router closest to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Drawn by the origin for each attempt; answers and acknowledgements name it.
    pub id: u64,
    /// Where it goes.
    pub target: Key,
    /// Hops that it may still travel.
    pub ttl: u8,
    /// Hops that it has travelled.
    pub hops: u8,
    /// How close to the target the closest router was that it has passed: each hop must do better.
    pub floor: Distance,
    /// 0: each hop takes the closest next hop. Otherwise each hop chooses among the best, by this
    /// number, so that attempts with different numbers take different ways.
    pub salt: u16,
    /// What to do there.
    pub body: Body,
}

/// What a routed message asks of the router that it reaches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// Who is closest to the target?
    Find {
        /// Leave this one out: who asks for its own key wants to know the others.
        except: Option<EndpointId>,
        /// Whoever knows all routers around the target may answer, not only the closest itself: so
        /// that one that drops or lies cannot stand between.
        early: bool,
    },
    /// Who is closest to another key? Only the router whose key is the target answers.
    Near {
        /// The key.
        to: Key,
    },
    /// The origin asks for a link; only the router whose key is the target answers.
    Connect {
        /// Who asks.
        from: Contact,
        /// What the link is for.
        need: Need,
    },
    /// Keep this record.
    Put(Record),
    /// The records of this kind at the target key.
    Fetch {
        /// [`Record::kind`].
        kind: u8,
    },
    /// A batch for the tree of its topic, whose root is the router closest to the topic's key. Here
    /// [`Publish::start`] says that nothing before the batch is on its way any more.
    Publish(Publish),
    /// A topic lives, told by its root to the index of one of its prefixes, whose root is the router
    /// closest to the prefix's key. Answered with `Accepted`.
    Announce {
        /// Some whole segments at the beginning of `topic`, or none.
        prefix: Bytes,
        /// Topic name.
        topic: Bytes,
    },
    /// How far the tree of a topic has come, asked by a member that doubts its parent.
    Audit {
        /// Topic name.
        topic: Bytes,
    },
    /// A call for the provider whose node key is the target.
    Call(RoutedCall),
}

/// A call on its way to a provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoutedCall {
    /// Drawn by the caller; the provider runs a number of one caller once.
    pub call: u64,
    /// Who calls.
    pub caller: EndpointId,
    /// Procedure name.
    pub procedure: Bytes,
    /// Time that remains.
    pub deadline: Duration,
    /// The argument.
    pub body: Bytes,
}

/// What a link is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Need {
    /// For nothing: it may be closed when the other side does not need it either.
    None = 0,
    /// The other is one of several in a bucket.
    Bucket = 1,
    /// To be parent or child in a topic's tree, or for calls that go on.
    Traffic = 2,
    /// The other would be the only one in its bucket.
    Sole = 3,
    /// The other is among the closest: refused only when the table is full of closer ones.
    Sibling = 4,
}

/// What comes back to the origin of a [`Route`], the same way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// [`Route::id`].
    pub id: u64,
    /// How many hops the route had travelled when it was answered.
    pub hops: u8,
    /// The answer.
    pub reply: Reply,
}

/// Answers to [`Body`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// To `Find`, and to whatever cannot be done here: the closest routers that the answering one
    /// knows, itself included, closest first.
    Closest(Vec<Contact>),
    /// To `Near`: the closest routers that the one asked knows, closest first, and itself in any case.
    Near(Vec<Contact>),
    /// To `Connect`: dial.
    Welcome(Contact),
    /// To `Connect`: no room; some others of the same region.
    Full(Vec<Contact>),
    /// To `Put`: kept by so many routers, the root included.
    Stored {
        /// Copies that are known to be held.
        copies: u8,
    },
    /// To `Put` and `Publish`: not kept, and why.
    Refused(StoreRefusal),
    /// To `Fetch`: the records, possibly none.
    Records(Vec<Record>),
    /// To `Publish`: root and one more hold it (QoS 1), or the root has passed it on.
    Accepted {
        /// Instance of the tree's root.
        stream: u64,
        /// Where in that stream the batch stands.
        offset: u64,
        /// Direct children of the root, for the publisher to know whether anybody listens.
        receivers: u32,
    },
    /// To `Audit`.
    Reached {
        /// Instance of the tree's root.
        stream: u64,
        /// The last offset that it gave out; 0: none.
        offset: u64,
    },
    /// To `Call`: the result.
    Result(Bytes),
    /// To `Call`: it failed.
    Failed(CallFailure),
}

/// Why a record or message was not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
#[repr(u8)]
pub enum StoreRefusal {
    /// The signature does not fit author and content.
    #[error("the signature is wrong")]
    Signature = 1,
    /// The value is longer than allowed.
    #[error("the value is too long")]
    TooLarge = 2,
    /// The lifetime is zero or above the ceiling.
    #[error("the lifetime is out of range")]
    Lifetime = 3,
    /// A newer record of the author is held.
    #[error("a newer record is held")]
    Stale = 4,
    /// The author has as much as it may.
    #[error("the author has as much as it may")]
    AuthorFull = 5,
    /// The key has as much as it may.
    #[error("the key has as much as it may")]
    KeyFull = 6,
    /// The realm has as much as it may.
    #[error("the realm has as much as it may")]
    RealmFull = 7,
    /// The key does not belong to what the record says.
    #[error("the key does not belong to the record")]
    WrongKey = 8,
    /// The router has too much to do; try later.
    #[error("too much to do")]
    Busy = 9,
}

/// Everything that routers of a realm send each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// On the way to a key.
    Route(Box<Route>),
    /// This hop has taken over the route.
    Ack {
        /// [`Route::id`].
        id: u64,
    },
    /// This hop cannot take the route; choose another.
    Nack {
        /// [`Route::id`].
        id: u64,
    },
    /// On the way back to the origin.
    Answer(Box<Answer>),
    /// The sender's closest routers, and where it is. Asks for the receiver's when `ask`.
    Siblings {
        /// The sender's coordinate.
        at: Coordinate,
        /// Whether the receiver shall answer with its own.
        ask: bool,
        /// At most [`crate::limits::CONTACTS_PER_MESSAGE_MAX`].
        contacts: Vec<Contact>,
    },
    /// What the sender now needs the link for, and where it is.
    Keep {
        /// Its need.
        need: Need,
        /// Its coordinate.
        at: Coordinate,
        /// It has all links that it needs to pass routes on. Until then only routes to itself.
        ready: bool,
    },
    /// The sender leaves the realm.
    Leave,
    /// Is the overlay there alive?
    Probe {
        /// Comes back in the answer.
        token: u64,
    },
    /// It is.
    Alive {
        /// Of the probe.
        token: u64,
    },
    /// Copies for a sibling to keep.
    Replicate {
        /// Comes back in `Kept`; 0: no answer wanted.
        token: u64,
        /// At most [`crate::limits::RECORDS_PER_MESSAGE_MAX`].
        records: Vec<Record>,
    },
    /// The copies are kept.
    Kept {
        /// Of `Replicate`.
        token: u64,
    },
    /// Of a topic's tree.
    Tree(Box<TreeMessage>),
}

/// Names a tree: that of a topic, or of the index of a prefix.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TreeId {
    /// Topic name; for the index of wildcards a prefix, see [`TreeId::is_index`].
    pub topic: Bytes,
    /// The tree carries announcements of topics below a prefix instead of messages of a topic.
    pub is_index: bool,
    /// The source tree of this publisher: rooted there instead of at the topic's key, it carries
    /// nothing but what the publisher publishes on the topic.
    pub source: Option<EndpointId>,
}

impl TreeId {
    /// The tree of a topic.
    pub const fn of(topic: Bytes) -> Self {
        Self { topic, is_index: false, source: None }
    }

    /// The tree that leads to the topics below a prefix.
    pub const fn index(prefix: Bytes) -> Self {
        Self { topic: prefix, is_index: true, source: None }
    }
}

/// How far a member has come in what a root gave out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// Instance of the root; drawn when it became root. 0: none yet.
    pub stream: u64,
    /// The last offset taken without a gap before it.
    pub offset: u64,
}

/// What a tree carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Load {
    /// A batch of messages.
    Batch(Publish),
    /// A topic lives below the prefix (index trees).
    Topic(Bytes),
    /// A batch without its body, for a child that has pruned the publisher: the body comes down the
    /// source tree.
    Head(Publish),
}

/// Messages between parent and child of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeMessage {
    /// The tree.
    pub tree: TreeId,
    /// What about it.
    pub act: TreeAct,
}

/// What parent and child say to each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TreeAct {
    /// Child to parent: let me be your child. Refreshes an existing one.
    Join {
        /// Hops from the first member that joined; the parent refuses beyond the TTL.
        hops: u8,
        /// What the child has, so that the parent replays the rest.
        have: Cursor,
        /// The child was sent here by a full parent: do not send it up.
        redirected: bool,
    },
    /// Parent to child: you are. Comes behind what the child lacked; what it still lacks up to `at`
    /// is not to be had here.
    Joined {
        /// Hops from the root to the parent.
        depth: u8,
        /// How far the parent has come without a gap.
        at: Cursor,
    },
    /// Parent to child: no room; ask one of these.
    Redirect(Vec<Contact>),
    /// Parent to child: not here, and not to be asked again soon (limits).
    Refuse,
    /// Child to parent, or parent to child: the relation is over.
    Part,
    /// Parent to child.
    Data {
        /// Where it stands; offset 0: nowhere, because it is the retained message, or a topic that
        /// was announced before.
        at: Cursor,
        /// It was held already when the child joined.
        replay: bool,
        /// What it is.
        load: Load,
    },
    /// Parent to child when nothing else was sent for a while, or the depth has changed: what the
    /// child should have.
    Beat {
        /// How far the parent has come without a gap.
        at: Cursor,
        /// Hops from the root to the parent.
        depth: u8,
    },
    /// Child to parent: send again what is missing. Ends in `Joined`.
    Want {
        /// The stream, and the last offset that the child has without a gap.
        have: Cursor,
        /// The last offset that may be missing.
        until: u64,
    },
    /// Root to its replica: hold this. From a router that was root to one closer to the key: give
    /// this out.
    Hold {
        /// Where it stands; offset 0: the retained message, or a topic that lives.
        at: Cursor,
        /// What it is.
        load: Load,
    },
    /// Replica to root: held up to here.
    Held {
        /// Where.
        at: Cursor,
    },
    /// Child to parent: of this publisher send [`Load::Head`] from now on. Holds for 35 s.
    Prune {
        /// The publisher.
        source: EndpointId,
    },
    /// Child to parent: send whole batches of this publisher again.
    Graft {
        /// The publisher.
        source: EndpointId,
    },
}
