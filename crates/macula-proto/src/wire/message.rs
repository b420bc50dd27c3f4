//! Messages: what frames mean.

use std::time::Duration;

use bytes::Bytes;

use crate::id::{EndpointId, RealmId, RealmTag};

/// Why a link is closed; also the QUIC application error code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u16)]
#[non_exhaustive]
pub enum CloseCode {
    /// The application said goodbye.
    Done = 0,
    /// The peer broke the protocol.
    Protocol = 1,
    /// No common protocol version.
    Version = 2,
    /// The other of two simultaneous links stays.
    Duplicate = 3,
    /// The application probe went unanswered.
    Unresponsive = 4,
    /// The endpoint goes down or restarts.
    Restarting = 5,
    /// A limit of this endpoint is reached.
    Limit = 6,
    /// The peer did not read what it had asked for.
    SlowConsumer = 7,
    /// The peer may not be here.
    Denied = 8,
    /// A code that this version does not know.
    Unknown = 0xffff,
}

/// Why a request of any sort was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u16)]
#[non_exhaustive]
pub enum RefusalCode {
    /// The endpoint does not host this realm.
    UnknownRealm = 1,
    /// The grant does not allow it.
    Denied = 2,
    /// The topic, pattern or procedure name is malformed.
    BadName = 3,
    /// A limit is reached; the text says which.
    Limit = 4,
    /// The message is larger than allowed.
    TooLarge = 5,
    /// The endpoint is going down.
    Draining = 6,
    /// A code that this version does not know.
    Unknown = 0xffff,
}

/// Why a call failed. Whether a retry is safe travels beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
#[non_exhaustive]
pub enum ErrorClass {
    /// Nobody serves the procedure.
    NoProvider = 1,
    /// The provider was lost; the call may or may not have run.
    Unreachable = 2,
    /// The deadline passed.
    Deadline = 3,
    /// The caller gave up.
    Cancelled = 4,
    /// The handler said no; code and message are its own.
    Refused = 5,
    /// The provider has no room; retry after the given time.
    Busy = 6,
    /// The handler failed (panicked).
    Internal = 7,
    /// The caller may not call this.
    Denied = 8,
    /// A class that this version does not know.
    Unknown = 0xff,
}

/// One realm in the handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RealmOffer {
    /// Which realm.
    pub realm: RealmId,
    /// The grant that admits the sender; empty for open realms.
    pub grant: Bytes,
}

/// On a link between leaves: the sender takes part in publishes over such links.
pub const CAPABILITY_PEER_PUBLISH: u64 = 1;
/// The sender is a leaf that carries packets between other members of its realms (docs/protocol §9.3.1).
pub const CAPABILITY_CARRY: u64 = 2;

/// First message of each side on the control stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Oldest version spoken.
    pub version_min: u16,
    /// Newest version spoken.
    pub version_max: u16,
    /// Bit set of optional abilities: [`CAPABILITY_PEER_PUBLISH`], [`CAPABILITY_CARRY`].
    pub capabilities: u64,
    /// Whether the sender routes for others.
    pub is_router: bool,
    /// Differs at every start of the sender: a changed instance has lost its memory.
    pub instance: u64,
    /// What the sender was connected to before this link, if this is a resumption: the other
    /// side's instance then. Zero when there was none.
    pub resumes: u64,
    /// The address that the sender sees the other side at, as text; empty when unknown.
    pub observed: String,
    /// Program and version, for people.
    pub agent: String,
    /// Realms that the sender wants to take part in.
    pub realms: Vec<RealmOffer>,
}

/// How a realm offer was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RealmStatus {
    /// Which realm.
    pub realm: RealmId,
    /// `None`: admitted.
    pub refusal: Option<(RefusalCode, String)>,
}

/// What happens to a subscriber's messages when it does not keep up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum SlowPolicy {
    /// QoS 0 messages are dropped, oldest first, and counted; QoS 1 as with `Block`.
    #[default]
    DropOldest = 0,
    /// The publishers wait.
    Block = 1,
    /// The subscriber's link is closed.
    Disconnect = 2,
}

/// Asks for the messages that match a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscribe {
    /// Realm.
    pub realm: RealmTag,
    /// The subscriber's own number for it.
    pub subscription: u32,
    /// Pattern (docs/protocol §5.1).
    pub pattern: String,
    /// Policy when the subscriber is slow.
    pub policy: SlowPolicy,
    /// The subscription existed before this link: send what the rings still hold.
    pub resume: bool,
    /// Send the retained messages that match.
    pub retained: bool,
}

/// Offers a procedure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Register {
    /// Realm.
    pub realm: RealmTag,
    /// The provider's own number for it.
    pub registration: u32,
    /// Procedure name.
    pub procedure: String,
    /// Requests that the provider works on at once.
    pub concurrency: u32,
}

/// How far a publisher's QoS 1 messages on one topic have come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishAck {
    /// Realm.
    pub realm: RealmTag,
    /// Topic.
    pub topic: String,
    /// The publisher's epoch.
    pub epoch: u64,
    /// Every message up to this sequence is in the ring.
    pub accepted: u64,
    /// Every message up to this sequence was taken by all subscribers known.
    pub delivered: u64,
    /// To how many links the newest accepted message went.
    pub receivers: u32,
    /// Those are all: `false` while a router that replaces another waits for subscribers to return.
    pub is_complete: bool,
}

/// A subscriber gets a stream over a link to its publisher; sent again, how far it has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prune {
    /// Realm.
    pub realm: RealmTag,
    /// Who publishes.
    pub publisher: EndpointId,
    /// The publisher's epoch.
    pub epoch: u64,
    /// Topic.
    pub topic: String,
    /// Returned in `Pruned`.
    pub id: u64,
    /// Messages from this sequence on come over the other link.
    pub from: u64,
    /// Every message up to this sequence was taken, or will not come any more.
    pub taken: u64,
}

/// A batch of consecutive messages of one publisher on one topic. Fixed layout (docs/protocol §5.3).
#[derive(Clone, PartialEq, Eq)]
pub struct Publish {
    /// Realm.
    pub realm: RealmTag,
    /// Who published.
    pub publisher: EndpointId,
    /// The publisher's instance; sequences of different epochs are unrelated.
    pub epoch: u64,
    /// Sequence number of the first message; the others follow without gaps.
    pub first: u64,
    /// Messages in the batch, at least 1.
    pub count: u32,
    /// Hops that the batch may still travel.
    pub ttl: u8,
    /// The messages are acknowledged and held in the topic's ring.
    pub qos1: bool,
    /// The last message of the batch becomes the topic's retained message.
    pub retain: bool,
    /// No message of this epoch came before on this topic, so a gap below `first` is none.
    pub start: bool,
    /// Topic name.
    pub topic: Bytes,
    /// `count == 1`: the payload itself. Otherwise each payload behind its length (docs/protocol §5.3).
    pub body: Bytes,
}

impl std::fmt::Debug for Publish {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Publish")
            .field("topic", &String::from_utf8_lossy(&self.topic))
            .field("publisher", &self.publisher)
            .field("epoch", &self.epoch)
            .field("first", &self.first)
            .field("count", &self.count)
            .field("qos1", &self.qos1)
            .field("bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

/// How one of several providers is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum ProviderPolicy {
    /// The one with the lowest round-trip time.
    #[default]
    Nearest = 0,
    /// Each in turn.
    RoundRobin = 1,
    /// Any.
    Random = 2,
    /// The one that registered first.
    First = 3,
}

/// Calls a procedure; the argument is the frame's body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Unique among the sender's open calls on this link.
    pub call: u64,
    /// Realm; [`RealmTag::ENDPOINT`] for built-in procedures of the endpoint itself.
    pub realm: RealmTag,
    /// Procedure name.
    pub procedure: String,
    /// Time that remains, counted from arrival.
    pub deadline: Duration,
    /// How to choose among providers.
    pub policy: ProviderPolicy,
    /// Running it twice does no harm, so it may be retried elsewhere at any time.
    pub idempotent: bool,
    /// A streaming call: this frame opens a stream of its own.
    pub streaming: bool,
    /// The one endpoint that shall run it, if the caller chose.
    pub target: Option<EndpointId>,
    /// Who calls; set by the first router, which knows it from the link.
    pub caller: Option<EndpointId>,
    /// W3C trace context, at most 64 bytes; empty when there is none.
    pub traceparent: Bytes,
    /// The argument.
    pub body: Bytes,
}

/// A failed call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallFailure {
    /// What went wrong.
    pub class: ErrorClass,
    /// The handler's code (`Refused`); otherwise 0.
    pub code: u16,
    /// The handler's or router's words.
    pub message: String,
    /// When to try again (`Busy`).
    pub retry_after: Duration,
    /// The call surely did not run, so that a retry is safe.
    pub retry_safe: bool,
}

/// Everything that a frame can mean.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Message {
    /// 0x01, control.
    Hello(Hello),
    /// 0x02, control: answers to the realms of a `Hello`.
    Realms(Vec<RealmStatus>),
    /// 0x03, control: the sender will close; peers may come back after the given time.
    Goodbye {
        /// Why.
        code: CloseCode,
        /// For people.
        reason: String,
        /// When to come back; zero: at once.
        reconnect_in: Duration,
    },
    /// 0x04, control: application-level probe.
    Ping {
        /// Returned in the pong.
        id: u64,
    },
    /// 0x05, control.
    Pong {
        /// From the ping.
        id: u64,
    },
    /// 0x06, control: more realms that the sender wants to take part in; answered by `Realms`.
    Join(Vec<RealmOffer>),
    /// 0x10, control.
    Subscribe(Subscribe),
    /// 0x11, control.
    SubscribeResult {
        /// Realm.
        realm: RealmTag,
        /// From the `Subscribe`.
        subscription: u32,
        /// `None`: done.
        refusal: Option<(RefusalCode, String)>,
    },
    /// 0x12, control.
    Unsubscribe {
        /// Realm.
        realm: RealmTag,
        /// From the `Subscribe`.
        subscription: u32,
    },
    /// 0x13, control: messages for this link were dropped because it was slow.
    Dropped {
        /// Realm.
        realm: RealmTag,
        /// Messages dropped on this link since it came up.
        messages: u64,
    },
    /// 0x14, control.
    PublishAck(PublishAck),
    /// 0x15, control: a batch was not taken.
    PublishRefused {
        /// Realm.
        realm: RealmTag,
        /// Topic.
        topic: String,
        /// First sequence that was refused.
        first: u64,
        /// How many.
        count: u32,
        /// Why.
        code: RefusalCode,
        /// For people.
        reason: String,
    },
    /// 0x16, control: QoS 1 frames that came on a lane and were taken, counted from link start.
    DeliverAck {
        /// Lane, from 1.
        lane: u8,
        /// Frames.
        frames: u64,
    },
    /// 0x17, control: a large message that came on a stream of its own was taken.
    BulkAck {
        /// From the `BulkPublish`.
        id: u64,
    },
    /// 0x18, control: the `Sync` of this lane was reached.
    SyncDone {
        /// From the `Sync`.
        id: u64,
    },
    /// 0x19, control: from a publisher that replays to a router which replaced another: so many
    /// receivers the topic had. When as many are back, the router need not wait for more.
    Expect {
        /// Realm.
        realm: RealmTag,
        /// Topic.
        topic: String,
        /// Receivers that the former router counted.
        receivers: u32,
    },
    /// 0x1a, control: a subscriber gets a stream from its publisher itself.
    Prune(Prune),
    /// 0x1b, control: not any more; the router sends what the subscriber has not said to have.
    Unprune {
        /// Realm.
        realm: RealmTag,
        /// Who publishes.
        publisher: EndpointId,
        /// The publisher's epoch.
        epoch: u64,
        /// Topic.
        topic: String,
    },
    /// 0x1c, control: from a router to a publisher: everybody who wants this topic from it gets it
    /// elsewhere, so it may keep back what is QoS 0.
    Quiet {
        /// Realm.
        realm: RealmTag,
        /// Topic.
        topic: String,
        /// How many they are; 0: it is not so any more.
        receivers: u32,
    },
    /// 0x20, control.
    Register(Register),
    /// 0x21, control.
    RegisterResult {
        /// Realm.
        realm: RealmTag,
        /// From the `Register`.
        registration: u32,
        /// `None`: done.
        refusal: Option<(RefusalCode, String)>,
    },
    /// 0x22, control.
    Unregister {
        /// Realm.
        realm: RealmTag,
        /// From the `Register`.
        registration: u32,
    },
    /// 0x40, lanes 1...
    Publish(Publish),
    /// 0x43, own streams: a message too large for a lane. Until `BulkAck`, the sender holds back
    /// what follows on the same topic.
    BulkPublish {
        /// Unique on this link and side.
        id: u64,
        /// The message; `count` is 1.
        publish: Publish,
    },
    /// 0x41, lanes 1.. and own streams: a retained message for one subscription.
    Retained {
        /// The receiver's subscription.
        subscription: u32,
        /// The message.
        publish: Publish,
    },
    /// 0x42, lanes: answer with `SyncDone` once everything before it was handled.
    Sync {
        /// Returned in the answer.
        id: u64,
    },
    /// 0x44, lanes 1..: everything before the `from` of a `Prune` was sent before this.
    Pruned {
        /// From the `Prune`.
        id: u64,
    },
    /// 0x50, lane 0, own streams.
    Call(Call),
    /// 0x51, lane 0, own streams: the result; for streaming calls, the good end.
    Reply {
        /// From the call.
        call: u64,
        /// The result.
        body: Bytes,
    },
    /// 0x52, lane 0, own streams.
    CallError {
        /// From the call.
        call: u64,
        /// What went wrong.
        failure: CallFailure,
    },
    /// 0x53, lane 0: the caller gave up.
    Cancel {
        /// From the call.
        call: u64,
    },
    /// 0x54, streams of streaming calls: one item.
    Item {
        /// From the call.
        call: u64,
        /// The item.
        body: Bytes,
    },
    /// 0x55, streams of streaming calls: the caller sends no more items.
    ItemsEnd {
        /// From the call.
        call: u64,
    },
    /// A kind that this version does not know; ignored.
    Unknown {
        /// The frame's kind.
        kind: u8,
    },
}
