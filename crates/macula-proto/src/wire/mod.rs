//! The wire: frames, bounded decoding, messages.
//!
//! A *frame* is what the transport moves: a 4-byte header (kind, length) and a payload. A
//! *message* is what a frame means: [`encode`] makes the frame of a [`Message`], [`decode`] reads
//! one. Control messages are MessagePack arrays that ignore unknown trailing fields; hot messages
//! have a small head and opaque bytes behind it, which are never copied. Publishes carry batches
//! ([`batch`]).
//!
//! What this module does *not* do: keep state, or judge whether a message makes sense now.
//! Decoding is for bytes from strangers: it never panics, and never allocates more than a small
//! multiple of what really came in. Spec: docs/protocol §2-§6, golden bytes in `vectors/`.
#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::string_slice,
        clippy::unreachable,
        clippy::unwrap_used
    )
)]

pub mod batch;
pub mod codec;
mod decode;
mod encode;
pub mod frame;
pub mod kind;
pub mod message;
pub mod offer;
pub mod relay;
pub mod tunnel;
pub mod via;

#[cfg(test)]
mod tests;

pub use batch::{BatchBuilder, BatchIter};
pub use codec::{DecodeError, Reader, Writer};
pub use decode::decode;
pub use encode::encode;
pub(crate) use encode::encode_call;
pub use frame::{Channel, Class, Frame, RawFrame};
pub use kind::allowed;
pub use message::Message;

use crate::limits;

/// The oldest protocol version that this code speaks.
pub const VERSION_MIN: u16 = 1;
/// The newest protocol version that this code speaks.
pub const VERSION_MAX: u16 = 1;

/// The lane of a topic's publishes: from 1, below [`limits::LANE_COUNT`].
///
/// The same on every node and in every version, because the order of a topic's messages hangs on
/// it: FNV-1a of 32 bits, mixed so that every bit counts, modulo the number of publish lanes.
/// Spec: docs/protocol §4.6.
pub fn lane_of(topic: &[u8]) -> u8 {
    const PUBLISH_LANES: u32 = limits::LANE_COUNT as u32 - 1;
    let hash = topic
        .iter()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    let hash = (hash ^ (hash >> 16)).wrapping_mul(0x85eb_ca6b);
    let hash = hash ^ (hash >> 13);
    1_u8.saturating_add((hash % PUBLISH_LANES) as u8)
}
