//! What goes into a [`Node`](super::Node) and what comes out.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::builtin::Extension;
use crate::auth::{UnixTime, Verifier};
use crate::id::{
    CallId, EndpointId, LinkId, RealmId, RegistrationId, RequestId, StreamId, SubscriptionId,
};
use crate::limits;
use crate::pubsub::{Pattern, ProcedureName, Topic};
use crate::time::Time;
use crate::wire::message::{CallFailure, CloseCode, ProviderPolicy, RefusalCode, SlowPolicy};
use crate::wire::{Channel, Frame, RawFrame};

/// Whether a node forwards for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Keeps others' subscriptions and registrations and forwards (a gateway).
    Router,
    /// Attaches to a router; sends and receives only for itself.
    Leaf,
}

/// Which realms a node takes part in for others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Only the realms that the local side joined.
    Joined,
    /// Any open realm that a peer asks for, and any guarded one that it shows a good grant for, up
    /// to [`Config::realms_max`].
    AnyOpen,
}

/// Settings of a node. All sizes in bytes unless their name says otherwise.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// Router or leaf.
    pub role: Role,
    /// Which realms peers may use here.
    pub admission: Admission,
    /// Differs at every start and grows: the driver passes Unix time in microseconds.
    pub epoch: u64,
    /// Program and version told to peers.
    pub agent: String,
    /// Links at once. Default 16,384.
    pub links_max: usize,
    /// Realms at once. Default 1,024.
    pub realms_max: usize,
    /// Subscriptions of one link, over all realms. Default 10,000.
    pub subscriptions_per_link_max: usize,
    /// Registrations of one link, over all realms. Default 10,000.
    pub registrations_per_link_max: usize,
    /// Calls that one link may have open at once. Default 16,384.
    pub calls_per_link_max: usize,
    /// Calls that the whole node keeps open. Default 262,144.
    pub calls_max: usize,
    /// Arguments of the calls that one link has open at a router; beyond it callers hear `Busy`.
    /// Default 64 MiB.
    pub call_bytes_per_link_max: usize,
    /// Calls and answers that may wait at a router for one link to read them. Beyond it calls go
    /// elsewhere and large answers become `Busy`; beyond twice of it the link is closed. Default
    /// 64 MiB.
    pub call_queue_bytes_max: usize,
    /// Longest deadline of a call; longer ones are cut. Default 1 h.
    pub call_deadline_max: Duration,
    /// What may wait for one lane of one link. Above half of it publishers with QoS 1 or a
    /// blocking subscriber wait; at the limit QoS 0 is dropped. Default 8 MiB.
    pub lane_queue_bytes_max: usize,
    /// What may wait on the control stream; beyond it the link is closed. Default 4 MiB.
    pub control_queue_bytes_max: usize,
    /// Rings of one realm (QoS 1), at a router. Default 64 MiB.
    pub ring_bytes_max: usize,
    /// Unconfirmed QoS 1 messages of the local publishers. Default 16 MiB.
    pub unconfirmed_bytes_max: usize,
    /// Retained messages of one realm. Default 64 MiB.
    pub retained_bytes_max: usize,
    /// Publisher streams remembered for deduplication, and QoS 1 streams under way, per realm.
    /// Default 65,536.
    pub streams_max: usize,
    /// A subscriber that takes nothing for so long while QoS 1 messages wait for it is cut off.
    /// Default 10 s.
    pub stall_timeout: Duration,
    /// Time between application probes on a silent link; two misses close it. Default 10 s.
    pub probe_interval: Duration,
    /// How long a router that replaces another (restart) waits for subscribers to return before it
    /// calls replayed messages delivered. Default 12 s.
    pub successor_grace: Duration,
    /// Largest message that a router takes, at most
    /// [`MESSAGE_BYTES_MAX`](limits::MESSAGE_BYTES_MAX), which is the default.
    pub message_bytes_max: usize,
    /// What one peer may send to a router a second, apart from control; who sends faster is read
    /// later. 0, the default: no limit.
    pub bytes_per_second_per_peer: u64,
    /// What all peers may publish in one realm a second; as above. 0, the default: no limit.
    pub bytes_per_second_per_realm: u64,
    /// Changes of subscriptions and registrations by one peer a second, and realms that it asks for,
    /// beyond a burst of twice all that it may have. Searches among retained messages and rings
    /// that its subscriptions cause are bounded by the same number. Default 1,000.
    pub changes_per_second: u64,
    /// Peers in one realm. Default 16,384.
    pub peers_per_realm_max: usize,
    /// Subscriptions of all peers in one realm. Default 1,000,000.
    pub subscriptions_per_realm_max: usize,
    /// Registrations of all peers in one realm. Default 100,000.
    pub registrations_per_realm_max: usize,
    /// Calls open at once in one realm; beyond it callers hear `Busy`. Default 131,072.
    pub calls_per_realm_max: usize,
    /// Retained messages of one publisher in one realm. Default 16 MiB.
    pub retained_bytes_per_peer_max: usize,
    /// As `streams_max`, for one publisher, at a router. Default 32,768.
    pub streams_per_peer_max: usize,
    /// Peers without a link whose sessions wait for their return; of more the oldest ends. Default
    /// 16,384.
    pub sessions_detached_max: usize,
    /// What a router may hold for its peers in queues, rings, retained messages and open calls.
    /// Beyond it the link that holds the most is closed, and publishes, calls and links are
    /// refused. Default 1 GiB.
    pub memory_bytes_max: usize,
    /// Links to other leaves at once, at a leaf. Default 256.
    pub peer_links_max: usize,
    /// A link to another leaf on which nothing but control went for so long is closed. Default
    /// 5 min.
    pub peer_link_idle: Duration,
    /// Whether publishes pass over links to other leaves, at a leaf. Default: they do.
    pub peer_publishes: bool,
    /// Whether a leaf carries packets between other members of its realms, to each of which it has a
    /// direct link. Default: it does not.
    pub carries: bool,
    /// What is relayed for one peer a second, bytes; what comes faster is dropped. 0: no
    /// limit. Default 8 MiB.
    pub relay_bytes_per_second_per_peer: u64,
    /// What is relayed for all a second, bytes; as above. Default 128 MiB.
    pub relay_bytes_per_second: u64,
    /// Checks the signatures of grants; without one nobody is admitted to a guarded realm.
    pub verifier: Option<Arc<dyn Verifier>>,
    /// Answers further built-in procedures (docs/protocol §6.6).
    pub extension: Option<Arc<dyn Extension>>,
}

impl Config {
    /// The defaults for `role`.
    pub fn new(role: Role, epoch: u64) -> Self {
        Self {
            role,
            admission: Admission::Joined,
            epoch,
            agent: concat!("macula/", env!("CARGO_PKG_VERSION")).to_owned(),
            links_max: 16_384,
            realms_max: 1_024,
            subscriptions_per_link_max: 10_000,
            registrations_per_link_max: 10_000,
            calls_per_link_max: 16_384,
            calls_max: 262_144,
            call_bytes_per_link_max: 64 << 20,
            call_queue_bytes_max: 64 << 20,
            call_deadline_max: Duration::from_secs(3600),
            lane_queue_bytes_max: 8 << 20,
            control_queue_bytes_max: 4 << 20,
            ring_bytes_max: 64 << 20,
            unconfirmed_bytes_max: 16 << 20,
            retained_bytes_max: 64 << 20,
            streams_max: 65_536,
            stall_timeout: Duration::from_secs(10),
            probe_interval: Duration::from_secs(10),
            successor_grace: limits::RESUME_WINDOW + Duration::from_secs(2),
            message_bytes_max: limits::MESSAGE_BYTES_MAX,
            bytes_per_second_per_peer: 0,
            bytes_per_second_per_realm: 0,
            changes_per_second: 1_000,
            peers_per_realm_max: 16_384,
            subscriptions_per_realm_max: 1_000_000,
            registrations_per_realm_max: 100_000,
            calls_per_realm_max: 131_072,
            retained_bytes_per_peer_max: 16 << 20,
            streams_per_peer_max: 32_768,
            sessions_detached_max: 16_384,
            memory_bytes_max: 1 << 30,
            peer_links_max: 256,
            peer_link_idle: Duration::from_secs(300),
            peer_publishes: true,
            carries: false,
            relay_bytes_per_second_per_peer: 8 << 20,
            relay_bytes_per_second: 128 << 20,
            verifier: None,
            extension: None,
        }
    }
}

/// Everything that can happen to a node.
#[derive(Clone, Debug)]
pub enum Input {
    /// The transport has a new, authenticated link.
    LinkUp {
        /// The driver's number for it.
        link: LinkId,
        /// Who is at the other end.
        peer: EndpointId,
        /// Whether this side dialled; a leaf attaches to the routers that it dialled.
        dialled: bool,
        /// Where the peer's packets come from.
        remote: SocketAddr,
    },
    /// The transport has a new, authenticated link between two leaves. It carries calls that are
    /// addressed to the peer, both ways, in the realms that both let each other into.
    PeerLinkUp {
        /// The driver's number for it.
        link: LinkId,
        /// Who is at the other end.
        peer: EndpointId,
        /// Whether this side dialled.
        dialled: bool,
        /// Where the peer's packets come from.
        remote: SocketAddr,
    },
    /// The path of a link between two leaves is direct now, or is not any more. It is not at first.
    PeerPath {
        /// Link.
        link: LinkId,
        /// Whether it is.
        direct: bool,
    },
    /// Packets of other links go over a link between two leaves, or may have to: that is no idle one.
    LinkUsed {
        /// Link.
        link: LinkId,
    },
    /// A datagram came, at a router or a leaf that [carries](Config::carries): a packet to relay. Answered by what
    /// [`Node::poll_datagram`](super::Node::poll_datagram) gives.
    Datagram {
        /// Link.
        link: LinkId,
        /// As in [`wire::relay`](crate::wire::relay), not checked.
        datagram: Bytes,
    },
    /// Datagrams were dropped because a link's queue was full.
    DatagramsDropped {
        /// How many.
        count: u64,
    },
    /// The link is gone; nothing more will come from it.
    LinkDown {
        /// Which.
        link: LinkId,
        /// For events and logs.
        reason: String,
    },
    /// A frame arrived. Frames of one channel come in order; control comes first.
    Frame {
        /// Link.
        link: LinkId,
        /// Channel.
        channel: Channel,
        /// Frame, checked against the channel's size limit only.
        frame: RawFrame,
    },
    /// The transport passed so many bytes of earlier transmits on to QUIC.
    Sent {
        /// Link.
        link: LinkId,
        /// Channel.
        channel: Channel,
        /// Bytes, as of [`Frame::wire_bytes`].
        bytes: usize,
    },
    /// The stream of a streaming call ended, in both directions.
    StreamClosed {
        /// Link.
        link: LinkId,
        /// Stream.
        stream: StreamId,
    },
    /// A link runs over TLS and TCP; told after it is up, for status pages.
    Tunnelled {
        /// Link.
        link: LinkId,
    },
    /// The smoothed round-trip time of a link; told now and then.
    Rtt {
        /// Link.
        link: LinkId,
        /// RTT.
        rtt: Duration,
    },
    /// The application took messages out: its queue for this subscription has room again.
    HandleReady {
        /// Subscription.
        subscription: SubscriptionId,
    },
    /// The application's queue for this subscription is full: stop reading what feeds it.
    HandleFull {
        /// Subscription.
        subscription: SubscriptionId,
    },
    /// The application's queue for this streaming call is full (`true`) or has room again.
    StreamHandle {
        /// Whose queue.
        end: StreamEnd,
        /// Whether it is full.
        full: bool,
    },
    /// The time by the calendar; told at the start, now and then, and after jumps. Needed by
    /// routers of guarded realms, whose grants end by it.
    WallClock {
        /// Now.
        unix: UnixTime,
    },
    /// The local application wants something.
    Command(Command),
}

/// One end of a streaming call at the local application.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StreamEnd {
    /// The caller's end.
    Caller(CallId),
    /// The handler's end.
    Handler(RequestId),
}

/// Quality of service of a publish.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Qos {
    /// At most once, not acknowledged.
    #[default]
    AtMostOnce,
    /// Acknowledged; held in the realm's ring; delivered once to every live subscriber.
    AtLeastOnce,
}

/// In which order a subscription's messages are handed out.
///
/// A leaf has one router, whose lanes keep order: nothing overtakes, and what is missing will not
/// come. So today the modes differ little: all of them keep the order of publishing, and none waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DeliveryMode {
    /// Per publisher and topic in the order of publishing; what is missing is counted, not waited
    /// for.
    #[default]
    Ordered,
    /// As they come. The same as `Ordered` until a node can have several ways to a publisher.
    AsArrives,
    /// Nothing older than what was handed out already. It does not thin out: messages that came in
    /// order are all handed out.
    LatestOnly,
}

/// How a local subscription behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SubscribeOptions {
    /// Order.
    pub mode: DeliveryMode,
    /// What happens when the application does not keep up.
    pub policy: SlowPolicy,
    /// Leave out the retained messages that match at subscribe time.
    pub skip_retained: bool,
}

/// What the local application can ask for.
#[derive(Clone, Debug)]
pub enum Command {
    /// Take part in a realm; on a router, host it.
    Join {
        /// Realm.
        realm: RealmId,
        /// Grant for guarded realms; empty for open ones, and on a router. Joining again with
        /// another one renews it.
        grant: Bytes,
    },
    /// Take back grants of a guarded realm that this router hosts.
    Revoke {
        /// Record of revocations, signed by the realm's root.
        record: Bytes,
    },
    /// Publish a batch. Check [`Node::publish_room`](super::Node::publish_room) first; without
    /// room the batch is still taken, so at most one batch goes beyond the limit.
    Publish {
        /// Realm, joined before.
        realm: RealmId,
        /// Topic.
        topic: Topic,
        /// Quality of service.
        qos: Qos,
        /// Keep the last message as the topic's retained one.
        retain: bool,
        /// Messages in `body`.
        count: u32,
        /// Encoded as in [`Publish::body`](crate::wire::message::Publish::body).
        body: Bytes,
    },
    /// Subscribe.
    Subscribe {
        /// The driver's number; unique within a run.
        subscription: SubscriptionId,
        /// Realm, joined before.
        realm: RealmId,
        /// Pattern.
        pattern: Pattern,
        /// Behaviour.
        options: SubscribeOptions,
    },
    /// End a subscription.
    Unsubscribe {
        /// Which.
        subscription: SubscriptionId,
    },
    /// Offer a procedure.
    Register {
        /// The driver's number; unique within a run.
        registration: RegistrationId,
        /// Realm, joined before.
        realm: RealmId,
        /// Name.
        procedure: ProcedureName,
        /// Requests worked on at once; as many again may wait, beyond that callers hear `Busy`.
        concurrency: u32,
    },
    /// Stop offering it; requests already running go on.
    Unregister {
        /// Which.
        registration: RegistrationId,
    },
    /// Call a procedure. Ends with exactly one [`Event::CallDone`].
    Call {
        /// The driver's number; unique within a run.
        call: CallId,
        /// Realm; `None` for the built-in procedures of an endpoint.
        realm: Option<RealmId>,
        /// Name.
        procedure: ProcedureName,
        /// Give up after this.
        deadline: Duration,
        /// Choice among providers.
        policy: ProviderPolicy,
        /// May run twice.
        idempotent: bool,
        /// A streaming call.
        streaming: bool,
        /// This endpoint and no other; for built-ins `None` means the router.
        target: Option<EndpointId>,
        /// W3C trace context, at most 64 bytes.
        traceparent: Bytes,
        /// Argument.
        body: Bytes,
    },
    /// Give a call up; its `CallDone` says `Cancelled`.
    CancelCall {
        /// Which.
        call: CallId,
    },
    /// End a request with a result or an error.
    Reply {
        /// Which.
        request: RequestId,
        /// What the handler says.
        result: Result<Bytes, CallFailure>,
    },
    /// Send an item on a streaming call.
    StreamItem {
        /// From which end.
        end: StreamEnd,
        /// The item.
        body: Bytes,
    },
    /// The caller sends no more items.
    StreamItemsEnd {
        /// Which call.
        call: CallId,
    },
    /// Tell when everything published before has reached the next hop.
    Flush {
        /// Returned in [`Event::Flushed`].
        id: u64,
    },
    /// Refuse new work, tell all peers, then close all links.
    Shutdown {
        /// What peers are told.
        code: CloseCode,
        /// For people.
        reason: String,
        /// Peers come back somewhere within this window; zero: at once.
        reconnect_window: Duration,
    },
}

/// A frame for the transport to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// On which link.
    pub link: LinkId,
    /// On which channel; a [`Channel::Stream`] that is not open yet is opened by this.
    pub channel: Channel,
    /// What.
    pub frame: Frame,
}

/// What the transport shall do apart from sending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start reading lanes and accepting streams: the handshake is done.
    OpenLanes {
        /// Link.
        link: LinkId,
    },
    /// Read no more from a channel until `Resume`. Frames already read still come.
    Pause {
        /// Link.
        link: LinkId,
        /// Channel.
        channel: Channel,
    },
    /// Read on.
    Resume {
        /// Link.
        link: LinkId,
        /// Channel.
        channel: Channel,
    },
    /// Send what is queued on this stream, then end our direction and stop reading.
    FinishStream {
        /// Link.
        link: LinkId,
        /// Stream.
        stream: StreamId,
    },
    /// Drop the stream at once, in both directions.
    ResetStream {
        /// Link.
        link: LinkId,
        /// Stream.
        stream: StreamId,
    },
    /// Close the link after what is queued on control was sent. `LinkDown` must follow.
    CloseLink {
        /// Link.
        link: LinkId,
        /// Told to the peer.
        code: CloseCode,
        /// Told to the peer.
        reason: String,
    },
}

/// A batch for one local subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// For whom.
    pub subscription: SubscriptionId,
    /// Topic.
    pub topic: Topic,
    /// Who published.
    pub publisher: EndpointId,
    /// Sequence of the first message, within the publisher's epoch and this topic.
    pub first: u64,
    /// Messages in `body`.
    pub count: u32,
    /// QoS of the messages.
    pub qos: Qos,
    /// A retained message from before the subscription.
    pub retained: bool,
    /// As in [`Publish::body`](crate::wire::message::Publish::body); well-formed.
    pub body: Bytes,
}

/// What the application hears.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// Messages.
    Deliver(Delivery),
    /// The router (or, without one, this node) has the subscription. Comes again after a resume.
    Subscribed {
        /// Which.
        subscription: SubscriptionId,
    },
    /// The router refuses the subscription.
    SubscribeRefused {
        /// Which.
        subscription: SubscriptionId,
        /// Why.
        code: RefusalCode,
        /// Why, in words.
        reason: String,
    },
    /// Messages of a subscription were lost, and why.
    Lost {
        /// Which subscription; `None`: any of the realm's.
        subscription: Option<SubscriptionId>,
        /// Realm.
        realm: RealmId,
        /// How many messages.
        messages: u64,
        /// Why.
        reason: LossReason,
    },
    /// Progress of the local publisher's QoS 1 messages on a topic.
    Progress {
        /// Realm.
        realm: RealmId,
        /// Topic.
        topic: Topic,
        /// Sequence of the last message handed to the node on this topic.
        published: u64,
        /// Up to here in the router's ring.
        accepted: u64,
        /// Up to here taken by every subscriber known.
        delivered: u64,
        /// Peers, and subscriptions of the router itself, that the newest accepted batch went to.
        receivers: u32,
    },
    /// The router did not take published messages; they are lost.
    PublishRefused {
        /// Realm.
        realm: RealmId,
        /// Topic.
        topic: Topic,
        /// First sequence refused.
        first: u64,
        /// How many.
        count: u32,
        /// Why.
        code: RefusalCode,
        /// Why, in words.
        reason: String,
    },
    /// Everything published before the `Flush` has reached the router, or cannot any more.
    Flushed {
        /// From the command.
        id: u64,
    },
    /// The router knows the procedure. Comes again after a resume.
    Registered {
        /// Which.
        registration: RegistrationId,
    },
    /// The router refuses the registration.
    RegisterRefused {
        /// Which.
        registration: RegistrationId,
        /// Why.
        code: RefusalCode,
        /// Why, in words.
        reason: String,
    },
    /// Work for a handler. Answer with [`Command::Reply`].
    Request {
        /// Number for the answer.
        request: RequestId,
        /// Which procedure.
        registration: RegistrationId,
        /// Who calls.
        caller: EndpointId,
        /// When the caller gives up.
        deadline: Time,
        /// Whether items will follow and may be sent.
        streaming: bool,
        /// W3C trace context; may be empty.
        traceparent: Bytes,
        /// Argument.
        body: Bytes,
    },
    /// The caller gave up, its deadline passed, or it is gone: stop working.
    RequestCancelled {
        /// Which.
        request: RequestId,
    },
    /// An item of a streaming call.
    StreamItem {
        /// At which end.
        end: StreamEnd,
        /// The item.
        body: Bytes,
    },
    /// The caller sends no more items.
    StreamItemsEnd {
        /// Which request.
        request: RequestId,
    },
    /// Room or not for more items from this end.
    StreamRoom {
        /// Which end.
        end: StreamEnd,
        /// Whether [`Command::StreamItem`] should wait.
        full: bool,
    },
    /// The end of a call.
    CallDone {
        /// Which.
        call: CallId,
        /// The result.
        result: Result<Bytes, CallFailure>,
    },
    /// The handshake with a peer is done.
    LinkReady {
        /// Link.
        link: LinkId,
        /// Peer.
        peer: EndpointId,
        /// The peer's program.
        agent: String,
        /// Whether the peer routes.
        is_router: bool,
        /// The peer's instance; a changed one has lost its memory.
        instance: u64,
        /// Our address as the peer sees it; empty when it did not say.
        observed: String,
    },
    /// Which link to another leaf is used from now on. The peer has let this node into a realm
    /// there, so that calls addressed to it take that link.
    PeerLink {
        /// Peer.
        peer: EndpointId,
        /// Link; `None`: none any more.
        link: Option<LinkId>,
    },
    /// A router put a peer out of a realm.
    Expelled {
        /// The peer.
        peer: EndpointId,
        /// The realm.
        realm: RealmId,
        /// Why, in words.
        reason: String,
    },
    /// A router took a newer record of revocations; keep it for the next start.
    Revoked {
        /// The realm.
        realm: RealmId,
        /// The record's sequence.
        sequence: u64,
        /// How many peers were put out by it.
        expelled: usize,
        /// The record as it was signed.
        record: Bytes,
    },
    /// A record of revocations from the local side cannot be used.
    RevokeRefused {
        /// Why, in words.
        reason: String,
    },
    /// A peer answered our wish to take part in a realm.
    RealmAnswered {
        /// Link.
        link: LinkId,
        /// Realm.
        realm: RealmId,
        /// `None`: admitted.
        refusal: Option<(RefusalCode, String)>,
        /// Whether we are in. With a refusal: a renewed grant is not taken, but the one before
        /// still holds.
        is_member: bool,
    },
    /// A peer says it will go away.
    PeerLeaving {
        /// Link.
        link: LinkId,
        /// Why.
        code: CloseCode,
        /// In words.
        reason: String,
        /// Do not come back before this.
        reconnect_in: Duration,
    },
    /// A link that was ready is gone.
    LinkLost {
        /// Link.
        link: LinkId,
        /// Peer.
        peer: EndpointId,
        /// Why.
        reason: String,
    },
}

/// Why messages were lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LossReason {
    /// The router dropped them because this side was slow.
    SlowHere,
    /// They never came: dropped upstream, or lost with a link.
    Gap,
}

/// What a timer is for; makes idle spins visible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum TimerKind {
    /// A link's application probe.
    Probe,
    /// A call's or request's deadline.
    Deadline,
    /// A slow subscriber's patience.
    Stall,
    /// Rings, detached subscribers, grace after a restart.
    Ring,
    /// A peer that has not said hello.
    Handshake,
    /// The end of a permit in a guarded realm.
    Permit,
    /// A peer or a realm that sends faster than it may.
    Rate,
}

/// Counters of a node, since its start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Messages that came in (from links and from the application).
    pub messages_in: u64,
    /// Messages sent to links or delivered to local subscriptions.
    pub messages_out: u64,
    /// Payload bytes that came in with messages.
    pub message_bytes_in: u64,
    /// Duplicates discarded.
    pub duplicates: u64,
    /// QoS 0 messages dropped because a subscriber was slow.
    pub dropped_slow: u64,
    /// QoS 1 messages given up because their subscriber did not return or did not read.
    pub abandoned: u64,
    /// Messages that never came (gaps seen by local subscriptions).
    pub gaps: u64,
    /// Messages refused.
    pub refused: u64,
    /// Calls that came in from links and from the application.
    pub calls: u64,
    /// Calls that ended in an error.
    pub calls_failed: u64,
    /// Calls moved to another provider.
    pub failovers: u64,
    /// Frames or messages that broke the protocol.
    pub protocol_errors: u64,
    /// Links that came up.
    pub links_up: u64,
    /// Slow subscribers cut off.
    pub stalled_links: u64,
    /// Times that a peer or a realm was read later because it sent faster than it may.
    pub slowed: u64,
    /// Things refused because a limit of amount or memory was reached.
    pub over_limit: u64,
    /// Links closed because they held most of the memory while it was short.
    pub shed: u64,
    /// Uses that a permit in a guarded realm did not allow.
    pub denied: u64,
    /// Peers put out of a guarded realm: their permit ended or was taken back.
    pub expelled: u64,
    /// Packets relayed between peers.
    pub relayed: u64,
    /// Bytes of them.
    pub relayed_bytes: u64,
    /// Packets not relayed because their sender or all together sent faster than they may, or
    /// because they waited too long for their receiver's link.
    pub relay_dropped: u64,
    /// Packets not relayed because nobody was there for them, or the sender may not.
    pub relay_refused: u64,
}

/// What a node is connected to and serves, for status pages.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct NodeStatus {
    /// Links whose handshake is done.
    pub links: Vec<LinkStatus>,
    /// Realms joined or hosted.
    pub realms: Vec<RealmSummary>,
    /// What is held for peers in queues, rings, retained messages and calls, bytes.
    pub held_bytes: usize,
}

/// One link in a [`NodeStatus`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LinkStatus {
    /// Link.
    pub link: LinkId,
    /// Peer.
    pub peer: EndpointId,
    /// The peer's program.
    pub agent: String,
    /// Whether the peer routes.
    pub is_router: bool,
    /// Whether both ends are leaves.
    pub is_peer_link: bool,
    /// Where the peer's packets come from.
    pub remote: SocketAddr,
    /// Whether it runs over TLS and TCP.
    pub is_tunnelled: bool,
    /// Smoothed round-trip time, once known.
    pub rtt: Option<Duration>,
    /// Frames sent since the link came up, bytes; packets that are relayed are not counted.
    pub sent_bytes: u64,
    /// Frames received, likewise.
    pub received_bytes: u64,
    /// Bytes that wait in the node's queues for this link.
    pub queued_bytes: usize,
    /// Messages dropped for this link since it came up.
    pub dropped: u64,
    /// Messages that this side published over a link between leaves.
    pub published: u64,
    /// Messages that the other side published over it.
    pub received: u64,
}

/// One realm in a [`NodeStatus`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RealmSummary {
    /// Realm.
    pub realm: RealmId,
    /// Peers admitted to it.
    pub peers: usize,
    /// Subscriptions, of peers and local.
    pub subscriptions: usize,
    /// Registrations, of peers and local.
    pub registrations: usize,
    /// Retained messages.
    pub retained: usize,
    /// Bytes in QoS 1 rings.
    pub ring_bytes: usize,
}
