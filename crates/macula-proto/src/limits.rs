//! Every hard limit of the wire and of the tables that a peer can make grow.
//!
//! Limits of the wire are constants because both ends must agree on them (docs/protocol §2).
//! Limits of memory that an operator may want to tune have their default here and a field in
//! [`crate::Config`].

use std::time::Duration;

/// Payload of a single message or call, bytes. Larger things belong in a streaming call.
pub const MESSAGE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Largest payload that rides a lane; beyond it a message gets a QUIC stream of its own.
pub const LANE_MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// A batch is closed when its body reaches this, bytes.
pub const BATCH_BODY_BYTES_MAX: usize = 32 * 1024;
/// Messages in one batch.
pub const BATCH_MESSAGES_MAX: usize = 8 * 1024;
/// Room for the head of a frame beside its body, bytes.
pub const FRAME_HEAD_BYTES_MAX: usize = 2 * 1024;
/// Payload of a frame on the control stream, bytes.
pub const CONTROL_FRAME_BYTES_MAX: usize = 64 * 1024;
/// Payload of a frame on a lane, bytes.
pub const LANE_FRAME_BYTES_MAX: usize = LANE_MESSAGE_BYTES_MAX + FRAME_HEAD_BYTES_MAX;
/// Payload of a frame on a stream of its own, bytes.
pub const STREAM_FRAME_BYTES_MAX: usize = MESSAGE_BYTES_MAX + FRAME_HEAD_BYTES_MAX;

/// Length of a topic, a pattern or a procedure name, bytes.
pub const TOPIC_BYTES_MAX: usize = 255;
/// Segments of a topic or pattern.
pub const TOPIC_SEGMENTS_MAX: usize = 32;
/// Length of a realm name, bytes.
pub const REALM_NAME_BYTES_MAX: usize = 128;
/// Length of a human-readable reason on the wire, bytes; longer ones are cut.
pub const REASON_BYTES_MAX: usize = 1024;
/// Length of the program and version in the handshake, bytes; longer ones are cut.
pub const AGENT_BYTES_MAX: usize = 128;
/// Length of an observed address in the handshake, bytes.
pub const OBSERVED_BYTES_MAX: usize = 64;
/// Length of a call's W3C trace context, bytes; longer ones are left out.
pub const TRACEPARENT_BYTES_MAX: usize = 64;
/// Realms in one handshake.
pub const REALMS_PER_LINK_MAX: usize = 64;
/// Length of a realm grant in the handshake, bytes.
pub const GRANT_BYTES_MAX: usize = 8 * 1024;
/// Length of a record of revocations, bytes.
pub const REVOCATIONS_BYTES_MAX: usize = 1024 * 1024;
/// How far an issuer's clock may be ahead of the one that judges its grants. It delays no expiry.
pub const GRANT_CLOCK_SKEW: Duration = Duration::from_secs(120);

/// Ordered unidirectional streams per direction and link. Lane 0 carries calls, the others publishes.
pub const LANE_COUNT: u8 = 5;
/// Bytes that a node hands to the transport per channel before it waits for `Input::Sent`.
pub const TRANSPORT_WINDOW_BYTES: usize = 256 * 1024;
/// The same for frames on streams of their own: two of the largest.
pub const BULK_WINDOW_BYTES: usize = 2 * STREAM_FRAME_BYTES_MAX;
/// Streaming calls open at once on one link.
pub const STREAMS_PER_LINK_MAX: usize = 64;
/// Links that `macula.links` tells of: what fits a result on a lane.
pub const LINKS_TOLD_MAX: usize = 100;
/// Large messages in flight at once on one link, per direction.
pub const BULK_PER_LINK_MAX: usize = 8;

/// Length of a packet that a gateway relays, bytes.
pub const RELAYED_PACKET_BYTES_MAX: usize = 8 * 1024;
/// Length of a packet that may travel in two datagrams, bytes: what any path of QUIC must carry,
/// and some more. Longer ones pass whole or not at all, so that path MTU discovery finds out.
pub const SPLIT_PACKET_BYTES_MAX: usize = 1280;
/// Relayed packets that may wait for one link, bytes; beyond it the oldest are dropped.
pub const RELAY_QUEUE_BYTES_MAX: usize = 256 * 1024;

/// Length of a packet in a tunnel (docs/protocol §10), bytes: the QUIC packets of a link that runs in
/// one are never longer, so that they and the packets relayed inside need no discovery.
pub const TUNNEL_PACKET_BYTES_MAX: usize = 1452;
/// Length of the request that opens a tunnel and of its answer, bytes, the empty line included.
pub const TUNNEL_HEAD_BYTES_MAX: usize = 4 * 1024;
/// What may wait to be sent into a tunnel, bytes; packets beyond it are dropped.
pub const TUNNEL_QUEUE_BYTES_MAX: usize = 256 * 1024;

/// How often a message may be forwarded.
pub const TTL_HOPS: u8 = 20;
/// QoS 1: how long a realm's ring holds messages that everybody known has.
pub const RING_AGE_MAX: Duration = Duration::from_secs(30);
/// QoS 1: how long a broken subscriber's messages are held for its return.
pub const RESUME_WINDOW: Duration = Duration::from_secs(10);

/// Contacts in one message of the overlay.
pub const CONTACTS_PER_MESSAGE_MAX: usize = 20;
/// Records in one message of the overlay.
pub const RECORDS_PER_MESSAGE_MAX: usize = 16;
/// Length of a record's value, bytes.
pub const RECORD_VALUE_BYTES_MAX: usize = 8 * 1024;
/// The longest that a record may live without being announced again.
pub const RECORD_LIFETIME_MAX: Duration = Duration::from_secs(48 * 3600);
/// Routes that a node watches over at once, for all links.
pub const ROUTES_WATCHED_MAX: usize = 4096;
/// Routes of one link that a node watches over at once.
pub const ROUTES_PER_LINK_MAX: usize = 512;
/// Routers that one iterative lookup keeps in view.
pub const WALK_KNOWN_MAX: usize = 64;
/// Routers that one iterative lookup asks.
pub const WALK_ASKED_MAX: usize = 64;
/// Payload of a message that is routed instead of published in a hub, bytes; larger ones need a
/// link of their own.
pub const ROUTED_BYTES_MAX: usize = LANE_MESSAGE_BYTES_MAX;
