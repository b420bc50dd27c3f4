//! Limits of trees.

use std::time::Duration;

/// How much trees may take. Each limit that bites has its counter in [`Stats`](super::super::Stats).
#[derive(Clone, Copy, Debug)]
pub struct TreeLimits {
    /// Trees that a node is part of.
    pub trees_max: usize,
    /// Trees in which one neighbour is a child.
    pub trees_per_link_max: usize,
    /// QoS 1 batches that a node keeps of one topic, bytes.
    pub ring_bytes_per_topic_max: usize,
    /// QoS 1 batches that a node keeps of all topics, bytes.
    pub ring_bytes_max: usize,
    /// Retained messages of all topics, bytes.
    pub retained_bytes_max: usize,
    /// Streams (publisher and epoch) that are told apart in one topic; the one used longest ago makes
    /// room.
    pub streams_per_topic_max: usize,
    /// Batches of one topic that wait for earlier ones, bytes.
    pub early_bytes_per_topic_max: usize,
    /// Messages of the application that wait for their root, bytes.
    pub publish_bytes_max: usize,
    /// Topics that the application has published on lately.
    pub publishers_max: usize,
    /// Topics that the index of one prefix knows.
    pub announced_max: usize,
    /// Subscriptions of the application.
    pub subscriptions_max: usize,
    /// Topics that one pattern leads to.
    pub topics_per_pattern_max: usize,
    /// Source trees that a node is part of.
    pub sources_max: usize,
    /// Source trees that a node joins for one topic, and publishers that a child may prune.
    pub sources_per_topic_max: usize,
    /// How long QoS 1 batches are kept for those who come back.
    pub ring_age_max: Duration,
}

impl Default for TreeLimits {
    fn default() -> Self {
        Self {
            trees_max: 4096,
            trees_per_link_max: 1024,
            ring_bytes_per_topic_max: 1024 * 1024,
            ring_bytes_max: 16 * 1024 * 1024,
            retained_bytes_max: 4 * 1024 * 1024,
            streams_per_topic_max: 256,
            early_bytes_per_topic_max: 1024 * 1024,
            publish_bytes_max: 4 * 1024 * 1024,
            publishers_max: 4096,
            announced_max: 10_000,
            subscriptions_max: 4096,
            topics_per_pattern_max: 1024,
            sources_max: 512,
            sources_per_topic_max: 8,
            ring_age_max: crate::limits::RING_AGE_MAX,
        }
    }
}

/// Payload of a retained message, bytes.
pub(super) const RETAINED_PAYLOAD_BYTES_MAX: usize = 64 * 1024;
/// Redirections that a node follows before it starts over.
pub(super) const REDIRECTS_MAX: u8 = 16;
/// Contacts in a redirection.
pub(super) const REDIRECT_CONTACTS: usize = 4;
/// A deeper tree has a loop in it.
pub(super) const DEPTH_MAX: u8 = 40;
/// How long a parent may take to answer a `Join`.
pub(super) const JOIN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a link to a parent may take to come.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(8);
/// A child refreshes its relation after this, with jitter.
pub(super) const REFRESH: Duration = Duration::from_secs(30);
/// A child that was not refreshed for so long is gone.
pub(super) const CHILD_TIMEOUT: Duration = Duration::from_secs(100);
/// Between two beats in a tree that carries something, with jitter.
pub(super) const BEAT: Duration = Duration::from_millis(1_500);
/// Between two beats in an idle tree, with jitter.
pub(super) const BEAT_IDLE: Duration = Duration::from_secs(10);
/// A tree counts as idle so long after it carried something.
pub(super) const IDLE_AFTER: Duration = Duration::from_secs(10);
/// A parent that was silent for so long in a tree that carries something is left.
pub(super) const SILENCE: Duration = Duration::from_secs(6);
/// The same in an idle tree.
pub(super) const SILENCE_IDLE: Duration = Duration::from_secs(38);
/// A parent that failed is not asked again for so long.
pub(super) const AVOID: Duration = Duration::from_secs(60);
/// Peers that are avoided in one tree at a time.
pub(super) const AVOID_MAX: usize = 8;
/// Between two requests for what is missing.
pub(super) const WANT_PAUSE: Duration = Duration::from_millis(500);
/// Between two answers to such requests of one child.
pub(super) const WANT_ANSWER_PAUSE: Duration = Duration::from_millis(100);
/// A parent that does not fill a gap within this is left.
pub(super) const GAP_TIMEOUT: Duration = Duration::from_secs(2);
/// A tree that nobody needs is left after this.
pub(super) const LINGER: Duration = Duration::from_secs(5);
/// A root without anything is forgotten after this.
pub(super) const ROOT_IDLE: Duration = Duration::from_secs(60);
/// Between two checks whether somebody else should be root.
pub(super) const ROOT_CHECK: Duration = Duration::from_secs(2);
/// Beside twice the round-trip time, what a replica may take.
pub(super) const HELD_SLACK: Duration = Duration::from_millis(300);
/// Roots of one tree that a replica tells apart.
pub(super) const ROOTS_HELD_MAX: usize = 4;
/// A replica that did not answer is not asked again for so long.
pub(super) const REPLICA_REST: Duration = Duration::from_secs(10);
/// How long a root keeps a batch back that came before its predecessor.
pub(super) const EARLY_TIMEOUT: Duration = Duration::from_secs(1);
/// Batches of one stream that a root keeps back.
pub(super) const EARLY_MAX: usize = 32;
/// How long a member waits for missing QoS 0 messages before it delivers the ones behind.
pub(super) const ORDER_WAIT_QOS0: Duration = Duration::from_millis(250);
/// The same for QoS 1, which are asked for again meanwhile.
pub(super) const ORDER_WAIT_QOS1: Duration = Duration::from_secs(4);
/// Between two announcements of a topic, with jitter; between two of a retained message to the replica.
pub(super) const ANNOUNCE: Duration = Duration::from_secs(60);
/// The same while the topic carries something: an index that has lost it knows it again while the
/// ring still holds what was accepted meanwhile.
pub(super) const ANNOUNCE_ACTIVE: Duration = Duration::from_secs(10);
/// Before an announcement that nobody has answered is made again, with jitter.
pub(super) const ANNOUNCE_AGAIN: Duration = Duration::from_secs(2);
/// An index passes on that a known topic still lives when its members have not heard so for this
/// long.
pub(super) const ANNOUNCED_AGAIN: Duration = Duration::from_secs(30);
/// A topic that a pattern finds later than this after it was subscribed is joined with all that is
/// kept of it.
pub(super) const FOUND_LATE: Duration = Duration::from_secs(3);
/// A topic that is not announced any more is left when it has been quiet for so long: nothing that
/// was delivered can come again when it is found once more.
pub(super) const FOUND_QUIET: Duration = Duration::from_secs(60);
/// An announcement holds for so long.
pub(super) const ANNOUNCED_FOR: Duration = Duration::from_secs(150);
/// First pause between two audits of a parent; it doubles as long as all is well.
pub(super) const AUDIT: Duration = Duration::from_secs(30);
/// The longest such pause.
pub(super) const AUDIT_MAX: Duration = Duration::from_secs(600);
/// How far a parent may lag behind the root.
pub(super) const AUDIT_LAG: Duration = Duration::from_secs(2);
/// A root keeps QoS 0 messages, too, in the first moments of a topic: subscriptions with wildcards
/// learn of it only now.
pub(super) const YOUNG: Duration = Duration::from_secs(3);
/// Batches of one topic on the way to its root.
pub(super) const WINDOW: usize = 8;
/// A QoS 1 message that is not confirmed within this never will be.
pub(super) const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);
/// How long one request to the root may take, QoS 0 and QoS 1.
pub(super) const PUBLISH_TIMEOUT: (Duration, Duration) =
    (Duration::from_secs(2), Duration::from_secs(5));
/// Before a refused batch is sent again, with jitter.
pub(super) const PUBLISH_PAUSE: Duration = Duration::from_millis(200);
/// A topic that was not published on for so long is forgotten; a new epoch begins then.
pub(super) const PUBLISHER_IDLE: Duration = Duration::from_secs(300);
/// How often what is held is handed over again after its root is gone.
pub(super) const HANDOVERS_MAX: u8 = 3;
/// Before the first of these; it doubles.
pub(super) const HANDOVER_PAUSE: Duration = Duration::from_secs(1);
/// Between two lookups by which a root makes sure that nobody is closer, with jitter.
pub(super) const ROOT_SEARCH: Duration = Duration::from_secs(10);
/// Ways that such a lookup takes at once: neighbours near the key may have missed it, too.
pub(super) const SEARCH_PATHS: u8 = 3;
/// A flow is measured over this, with jitter.
pub(super) const FLOW_WINDOW: Duration = Duration::from_secs(5);
/// A flow moves to its source tree after windows in a row with at least so many messages...
pub(super) const FLOW_START: u32 = 25;
/// ... and back after windows in a row with fewer than these.
pub(super) const FLOW_STOP: u32 = 5;
/// So many windows in a row.
pub(super) const FLOW_WINDOWS: u8 = 2;
/// A flow whose source tree could not be joined does not move for so long.
pub(super) const FLOW_REST: Duration = Duration::from_secs(60);
/// It doubles this often.
pub(super) const FLOW_FAILURES_MAX: u8 = 4;
/// Publishers whose rate a member watches in one topic.
pub(super) const FLOWS_MAX: usize = 64;
/// Failures in a row after which a source tree is given up.
pub(super) const SOURCE_FAILURES_MAX: u8 = 4;
/// A publisher that was not used for so long takes no children.
pub(super) const SOURCE_IDLE: Duration = Duration::from_secs(15);
/// How much later than the shared tree the source tree may bring something to count as in time.
pub(super) const COPY_LATE: Duration = Duration::from_millis(250);
/// How long what the source tree brought waits for its head.
pub(super) const COPY_KEPT: Duration = Duration::from_secs(5);
/// Batches that the source tree must bring in time, in a row, before the shared tree is pruned; it
/// doubles each time that it failed afterwards.
pub(super) const PRUNE_AFTER: u32 = 8;
/// The most of these.
pub(super) const PRUNE_AFTER_MAX: u32 = 512;
/// Batches that came whole and may still come by the source tree.
pub(super) const LATE_MAX: usize = 64;
/// Between two times that a child says so.
pub(super) const PRUNE_AGAIN: Duration = Duration::from_secs(10);
/// How long a parent remembers.
pub(super) const PRUNE_FOR: Duration = Duration::from_secs(35);
/// Heads whose bodies are still to come.
pub(super) const HEADS_MAX: usize = 1024;
/// How long a head waits for its body before it is asked for.
pub(super) const HEAD_WAIT: Duration = Duration::from_millis(500);
/// A parent in a source tree has so long before heads without bodies count against it.
pub(super) const DOUBT_AFTER: Duration = Duration::from_secs(2);
