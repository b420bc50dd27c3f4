//! One link as the node sees it: its queues, credits and what it waits for.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use super::api::Transmit;
use super::bucket::Bucket;
use super::direct::Pruned;
use super::session::SessionId;
use crate::id::{EndpointId, LinkId, RealmTag, StreamId};
use crate::limits;
use crate::pubsub::Topic;
use crate::pubsub::seen::StreamKey;
use crate::time::Time;
use crate::wire::{Channel, Frame};

/// What a queued frame is, for whoever has to drop it, count it or move it to another link.
#[derive(Clone, Debug)]
pub(super) enum Cargo {
    /// Control messages, results, items.
    Plain,
    /// A publish that may be dropped, and how many messages it holds.
    AtMostOnce { messages: u32, droppable: bool, publisher: Publisher },
    /// A publish that lives in the ring under this id until it is acknowledged.
    AtLeastOnce { realm: RealmTag, entry: u64 },
    /// A call, by its relay number.
    Call { relay: u64 },
}

/// Whose messages they are: the first 8 bytes of the publisher's key, which nobody can choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Publisher(u64);

impl From<EndpointId> for Publisher {
    fn from(id: EndpointId) -> Self {
        let [a, b, c, d, e, f, g, h, ..] = *id.as_bytes();
        Self(u64::from_be_bytes([a, b, c, d, e, f, g, h]))
    }
}

/// A frame that waits for the transport.
#[derive(Clone, Debug)]
pub(super) struct Queued {
    pub(super) frame: Frame,
    pub(super) cargo: Cargo,
}

/// The outgoing half of one channel.
#[derive(Debug)]
pub(super) struct OutQueue {
    pub(super) queue: VecDeque<Queued>,
    /// Bytes in `queue`.
    pub(super) bytes: usize,
    /// Bytes that the transport holds.
    pub(super) in_transport: usize,
    /// QoS 1 publishes sent and not yet acknowledged, in order.
    pub(super) unacked: VecDeque<(RealmTag, u64)>,
    /// How many of them were acknowledged since the link came up.
    pub(super) acked: u64,
    /// When something last moved.
    pub(super) progress: Time,
    /// Publishes queued here so far, and how many of them the peer surely has handled.
    pub(super) published: u64,
    pub(super) synced: u64,
    /// The stream ends when the queue is empty.
    pub(super) finishes: bool,
}

impl OutQueue {
    pub(super) fn new(now: Time) -> Self {
        Self {
            queue: VecDeque::new(),
            bytes: 0,
            in_transport: 0,
            unacked: VecDeque::new(),
            acked: 0,
            progress: now,
            published: 0,
            synced: 0,
            finishes: false,
        }
    }

    /// Appends a frame; [`OutQueue::pump`] sends it when its turn comes.
    pub(super) fn push(&mut self, now: Time, queued: Queued) {
        if self.queue.is_empty() && self.in_transport == 0 && self.unacked.is_empty() {
            self.progress = now;
        }
        if matches!(queued.cargo, Cargo::AtMostOnce { .. } | Cargo::AtLeastOnce { .. }) {
            self.published += 1;
        }
        self.bytes += queued.frame.wire_bytes();
        self.queue.push_back(queued);
    }

    /// Moves what the transport has room for.
    pub(super) fn pump(&mut self, link: LinkId, channel: Channel, out: &mut VecDeque<Transmit>) {
        let window = match channel {
            Channel::Bulk => limits::BULK_WINDOW_BYTES,
            Channel::Control | Channel::Lane(_) | Channel::Stream(_) => {
                limits::TRANSPORT_WINDOW_BYTES
            }
        };
        while let Some(front) = self.queue.front() {
            let bytes = front.frame.wire_bytes();
            if self.in_transport > 0 && self.in_transport + bytes > window {
                return;
            }
            let Some(queued) = self.queue.pop_front() else { return };
            self.bytes -= bytes;
            self.in_transport += bytes;
            if let Cargo::AtLeastOnce { realm, entry } = queued.cargo {
                self.unacked.push_back((realm, entry));
            }
            out.push_back(Transmit { link, channel, frame: queued.frame });
        }
    }

    /// The transport passed `bytes` on.
    pub(super) fn sent(&mut self, now: Time, bytes: usize) {
        self.in_transport = self.in_transport.saturating_sub(bytes);
        self.progress = now;
    }

    /// Drops droppable publishes until `bytes` fits `max`; returns how many messages. Those give
    /// who have the most here, each its oldest: who sends little loses nothing to who floods.
    pub(super) fn drop_oldest(&mut self, max: usize) -> u64 {
        let mut dropped = 0;
        if self.bytes <= max {
            return dropped;
        }
        let mut over: BTreeMap<Publisher, usize> = BTreeMap::new();
        let mut droppable_bytes = 0;
        for queued in &self.queue {
            if let Cargo::AtMostOnce { droppable: true, publisher, .. } = queued.cargo {
                let bytes = queued.frame.wire_bytes();
                *over.entry(publisher).or_default() += bytes;
                droppable_bytes += bytes;
            }
        }
        let room = max.saturating_sub(self.bytes - droppable_bytes);
        let level = fair_share(over.values().copied().collect(), room);
        over.values_mut().for_each(|bytes| *bytes = bytes.saturating_sub(level));
        self.queue.retain(|queued| {
            let Cargo::AtMostOnce { messages, droppable: true, publisher } = queued.cargo else {
                return true;
            };
            let Some(over) = over.get_mut(&publisher).filter(|over| **over > 0) else {
                return true;
            };
            *over = over.saturating_sub(queued.frame.wire_bytes());
            dropped += u64::from(messages);
            false
        });
        self.bytes = self.queue.iter().map(|queued| queued.frame.wire_bytes()).sum();
        dropped
    }
}

/// The most that each may keep so that all keep at most `room` together and nobody gives more than
/// another who has more (max-min fairness).
fn fair_share(mut amounts: Vec<usize>, mut room: usize) -> usize {
    amounts.sort_unstable();
    for (index, amount) in amounts.iter().enumerate() {
        let share = room / (amounts.len() - index);
        if *amount > share {
            return share;
        }
        room -= amount;
    }
    usize::MAX
}

/// A large message on its way on a stream of its own.
#[derive(Debug)]
pub(super) struct BulkInFlight {
    pub(super) topic: (RealmTag, Topic),
    pub(super) cargo: Cargo,
    pub(super) bytes: usize,
}

/// One publish that waits behind a large one on the same topic, or for a stream of its own.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) publish: crate::wire::message::Publish,
    pub(super) cargo: Cargo,
}

impl Held {
    /// What it counts for, so that very many small ones are bounded too.
    pub(super) fn bytes(&self) -> usize {
        self.publish.body.len() + HELD_OVERHEAD_BYTES
    }
}

/// What a held publish costs beside its body.
const HELD_OVERHEAD_BYTES: usize = 256;

/// Why a channel is not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum PauseReason {
    /// A subscriber's link has no room.
    Target(LinkId),
    /// The realm's rings are full.
    Ring(RealmTag),
    /// The peer sends faster than it may.
    Rate(LinkId),
    /// The realm's publishers together send faster than they may.
    RealmRate(RealmTag),
    /// Too much waits for what another way brings.
    Order(RealmTag),
    /// A local subscription's queue is full.
    Handle(crate::id::SubscriptionId),
}

/// The incoming half of one lane.
#[derive(Debug, Default)]
pub(super) struct LaneIn {
    /// QoS 1 publishes taken since the link came up.
    pub(super) taken: u64,
    /// What was acknowledged last.
    pub(super) acked: u64,
    /// Why it is not read; empty: it is.
    pub(super) pauses: BTreeSet<PauseReason>,
}

/// How far the handshake is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The peer has not said hello.
    Handshake,
    /// Everything may flow.
    Ready,
    /// Being closed; whatever still comes is ignored.
    Closing,
}

/// What the peer said of itself.
#[derive(Clone, Debug, Default)]
pub(super) struct PeerHello {
    pub(super) is_router: bool,
    pub(super) instance: u64,
    pub(super) capabilities: u64,
    pub(super) agent: String,
}

/// What a link between two leaves has beside the rest.
#[derive(Debug, Default)]
pub(super) struct PeerLink {
    /// Realms that the peer admitted us to.
    pub(super) granted: BTreeSet<RealmTag>,
    /// Another link to the same peer is used instead: this one ends when its calls have.
    pub(super) is_retiring: bool,
    /// When something but control went over it last.
    pub(super) used: Option<Time>,
    /// Its path is direct now.
    pub(super) is_direct: bool,
}

/// One link.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) peer: EndpointId,
    pub(super) dialled: bool,
    pub(super) remote: SocketAddr,
    pub(super) stage: Stage,
    pub(super) hello: PeerHello,
    pub(super) session: Option<SessionId>,
    /// Realms that we admitted the peer to (or, on a dialled link, that it admitted us to).
    pub(super) realms: BTreeSet<RealmTag>,
    pub(super) control: OutQueue,
    pub(super) lanes: [OutQueue; limits::LANE_COUNT as usize],
    pub(super) streams: BTreeMap<StreamId, OutQueue>,
    pub(super) next_stream: u64,
    /// Frames with streams of their own. Of large publishes, `held_bytes` keeps account.
    pub(super) bulk_out: OutQueue,
    pub(super) lanes_in: [LaneIn; limits::LANE_COUNT as usize],
    pub(super) bulk: BTreeMap<u64, BulkInFlight>,
    pub(super) next_bulk: u64,
    /// Topics that wait for a large message, and what waits.
    pub(super) held: BTreeMap<(RealmTag, Topic), VecDeque<Held>>,
    pub(super) held_bytes: usize,
    /// Topics in `held` whose first message needs a stream of its own and has none yet.
    pub(super) bulk_waiting: VecDeque<(RealmTag, Topic)>,
    /// Topics whose large message waits until the peer has handled what went before on their
    /// lane: sync number -> topic, and the lane's count of publishes then.
    pub(super) bulk_syncs: BTreeMap<u64, ((RealmTag, Topic), u64)>,
    pub(super) bulk_progress: Time,
    pub(super) is_tunnelled: bool,
    pub(super) rtt: Option<Duration>,
    /// Bytes of frames that went out and came in.
    pub(super) sent_bytes: u64,
    pub(super) received_bytes: u64,
    /// Messages dropped because this peer was slow, per realm.
    pub(super) dropped: BTreeMap<RealmTag, u64>,
    pub(super) dropped_unsaid: bool,
    pub(super) acks_dirty: bool,
    /// Calls that came from the peer: its number -> relay.
    pub(super) calls_in: BTreeMap<u64, u64>,
    /// Bytes of their arguments.
    pub(super) calls_in_bytes: usize,
    /// Relays whose callee is the peer.
    pub(super) calls_out: BTreeSet<u64>,
    pub(super) registrations: super::calls::LinkRegistrations,
    /// Relays of streaming calls by their stream.
    pub(super) stream_relays: BTreeMap<StreamId, u64>,
    pub(super) heard: Time,
    pub(super) probe_sent: Option<u64>,
    pub(super) probe_misses: u8,
    /// The peer does not answer a probe that a waiting call asked for.
    pub(super) suspect: bool,
    pub(super) syncs: BTreeSet<u64>,
    pub(super) said_goodbye: bool,
    /// Realms that we asked the peer to admit us to.
    pub(super) offered: BTreeSet<RealmTag>,
    /// How often signatures were checked for the peer, and whether a grant of it was good.
    pub(super) checks: Bucket,
    pub(super) is_known: bool,
    /// How often it changed its subscriptions and registrations.
    pub(super) changes: Bucket,
    /// How much was looked through for its subscriptions.
    pub(super) searches: Bucket,
    /// What came from it, apart from control; and it waits because that was too fast.
    pub(super) received: Bucket,
    pub(super) is_slowed: bool,
    /// What was relayed for it.
    pub(super) relayed: Bucket,
    /// Set when both ends are leaves.
    pub(super) peer_link: Option<PeerLink>,
    /// Messages published over a link between leaves, by us and by the peer.
    pub(super) published: u64,
    pub(super) published_by_peer: u64,
    /// Some of ours went nowhere else.
    pub(super) is_relied_on: bool,
    /// Streams that the peer gets elsewhere, how many batches of them it has not said to have, and
    /// when it last said so of some.
    pub(super) pruned: BTreeMap<(RealmTag, StreamKey), Pruned>,
    pub(super) pruned_owed: usize,
    pub(super) pruned_progress: Time,
}

impl Link {
    /// Something goes over the link; control alone does not keep a link between leaves.
    pub(super) fn note_use(&mut self, now: Time, channel: Channel) {
        if let Some(peer_link) = self.peer_link.as_mut().filter(|_| channel != Channel::Control) {
            peer_link.used = Some(now);
        }
    }

    pub(super) fn new(now: Time, peer: EndpointId, dialled: bool, remote: SocketAddr) -> Self {
        Self {
            peer,
            dialled,
            remote,
            stage: Stage::Handshake,
            hello: PeerHello::default(),
            session: None,
            realms: BTreeSet::new(),
            control: OutQueue::new(now),
            lanes: std::array::from_fn(|_| OutQueue::new(now)),
            streams: BTreeMap::new(),
            next_stream: 0,
            bulk_out: OutQueue::new(now),
            lanes_in: Default::default(),
            bulk: BTreeMap::new(),
            next_bulk: 1,
            held: BTreeMap::new(),
            held_bytes: 0,
            bulk_waiting: VecDeque::new(),
            bulk_syncs: BTreeMap::new(),
            bulk_progress: now,
            is_tunnelled: false,
            rtt: None,
            sent_bytes: 0,
            received_bytes: 0,
            dropped: BTreeMap::new(),
            dropped_unsaid: false,
            acks_dirty: false,
            calls_in: BTreeMap::new(),
            calls_in_bytes: 0,
            calls_out: BTreeSet::new(),
            registrations: BTreeMap::new(),
            stream_relays: BTreeMap::new(),
            heard: now,
            probe_sent: None,
            probe_misses: 0,
            suspect: false,
            syncs: BTreeSet::new(),
            said_goodbye: false,
            offered: BTreeSet::new(),
            checks: Bucket::new(now),
            is_known: false,
            changes: Bucket::new(now),
            searches: Bucket::new(now),
            received: Bucket::new(now),
            is_slowed: false,
            relayed: Bucket::new(now),
            peer_link: None,
            published: 0,
            published_by_peer: 0,
            is_relied_on: false,
            pruned: BTreeMap::new(),
            pruned_owed: 0,
            pruned_progress: now,
        }
    }

    pub(super) fn is_ready(&self) -> bool {
        self.stage == Stage::Ready
    }

    /// Whether the other end is the router of this leaf.
    pub(super) fn is_upstream(&self) -> bool {
        self.dialled && self.peer_link.is_none()
    }

    /// The outgoing queue of a channel; opens the queue of a stream.
    pub(super) fn queue_mut(&mut self, now: Time, channel: Channel) -> Option<&mut OutQueue> {
        match channel {
            Channel::Control => Some(&mut self.control),
            Channel::Lane(lane) => self.lanes.get_mut(usize::from(lane)),
            Channel::Stream(stream) => {
                Some(self.streams.entry(stream).or_insert_with(|| OutQueue::new(now)))
            }
            Channel::Bulk => Some(&mut self.bulk_out),
        }
    }

    /// Bytes that wait for `lane`, large messages and what they hold back included.
    pub(super) fn lane_bytes(&self, lane: u8) -> usize {
        self.lanes.get(usize::from(lane)).map_or(0, |queue| queue.bytes) + self.held_bytes
    }

    /// Bytes of calls and answers that wait.
    pub(super) fn call_bytes(&self) -> usize {
        self.lanes.first().map_or(0, |queue| queue.bytes) + self.bulk_out.bytes
    }

    /// Bytes that wait in any queue.
    pub(super) fn queued_bytes(&self) -> usize {
        let streams: usize = self.streams.values().map(|queue| queue.bytes).sum();
        let lanes: usize = self.lanes.iter().map(|queue| queue.bytes).sum();
        self.control.bytes + lanes + streams + self.held_bytes
    }

    /// Everything that is held for this peer, bytes: what waits for it, what the transport has not
    /// passed on, and the arguments of its calls.
    pub(super) fn held_bytes_all(&self) -> usize {
        let queues = self.lanes.iter().chain(self.streams.values());
        let queues = queues.chain([&self.control, &self.bulk_out]);
        let waiting: usize = queues.map(|queue| queue.bytes + queue.in_transport).sum();
        waiting + self.held_bytes + self.calls_in_bytes
    }

    /// Drops droppable publishes that are held back, until `held_bytes` fits `max`; returns how
    /// many messages. Oldest first within a topic.
    pub(super) fn drop_held(&mut self, max: usize) -> u64 {
        let mut dropped = 0;
        if self.held_bytes <= max {
            return dropped;
        }
        let held_bytes = &mut self.held_bytes;
        for waiting in self.held.values_mut() {
            if *held_bytes <= max {
                break;
            }
            waiting.retain(|held| {
                let Cargo::AtMostOnce { messages, droppable: true, .. } = held.cargo else {
                    return true;
                };
                if *held_bytes <= max {
                    return true;
                }
                *held_bytes = held_bytes.saturating_sub(held.bytes());
                dropped += u64::from(messages);
                false
            });
        }
        // topics of which nothing is left or under way are forgotten
        let under_way: BTreeSet<_> = self.bulk.values().map(|bulk| &bulk.topic).collect();
        self.held.retain(|topic, waiting| !waiting.is_empty() || under_way.contains(topic));
        let held = &self.held;
        self.bulk_waiting.retain(|topic| held.contains_key(topic));
        self.bulk_syncs.retain(|_, (topic, _)| held.contains_key(topic));
        dropped
    }

    /// When the slowest channel with acknowledged or blocking traffic last moved; `None`: nothing
    /// waits.
    pub(super) fn stalled_since(&self) -> Option<Time> {
        let lanes = self
            .lanes
            .iter()
            .skip(1)
            .filter(|queue| {
                !queue.unacked.is_empty()
                    || queue.queue.iter().any(|queued| {
                        !matches!(queued.cargo, Cargo::AtMostOnce { droppable: true, .. })
                    })
            })
            .map(|queue| queue.progress);
        let bulk = (!self.bulk.is_empty()).then_some(self.bulk_progress);
        lanes.chain(bulk).min()
    }

    /// A number for a stream that this side opens.
    pub(super) fn open_stream(&mut self) -> StreamId {
        let id = StreamId(self.next_stream);
        self.next_stream += 2;
        id
    }
}
