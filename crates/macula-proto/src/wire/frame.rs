//! Frames: the unit that a channel carries.

use bytes::Bytes;

use crate::id::StreamId;
use crate::limits;

/// Bytes of a frame header: kind, then the payload's length as a 24-bit big-endian number.
pub const HEADER_BYTES: usize = 4;

/// An ordered byte stream of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Channel {
    /// The first bidirectional stream: handshake, subscriptions, acknowledgements, probes.
    Control,
    /// One of the [`limits::LANE_COUNT`] ordered lanes. Lane 0 carries calls, the rest publishes.
    Lane(u8),
    /// A unidirectional stream that carries exactly one large frame.
    Bulk,
    /// The bidirectional stream of one streaming call.
    Stream(StreamId),
}

/// How urgent a channel's frames are; larger goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Large messages.
    Bulk,
    /// Publishes and the items of streaming calls.
    Publish,
    /// Unary calls and their answers.
    Call,
    /// Everything on the control stream.
    Control,
}

impl Channel {
    /// The lane of unary calls.
    pub const CALLS: Self = Self::Lane(0);

    /// The class of every frame on this channel.
    pub const fn class(self) -> Class {
        match self {
            Self::Control => Class::Control,
            Self::Lane(0) => Class::Call,
            Self::Lane(_) | Self::Stream(_) => Class::Publish,
            Self::Bulk => Class::Bulk,
        }
    }

    /// The largest payload that a frame on this channel may have, bytes.
    pub const fn frame_bytes_max(self) -> usize {
        match self {
            Self::Control => limits::CONTROL_FRAME_BYTES_MAX,
            Self::Lane(_) | Self::Stream(_) => limits::LANE_FRAME_BYTES_MAX,
            Self::Bulk => limits::STREAM_FRAME_BYTES_MAX,
        }
    }
}

/// An encoded frame on its way out: the header and head of the message, then opaque bytes.
///
/// Cloning is cheap, so that one encoding serves every subscriber; the body is never copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Frame header and message head.
    pub head: Bytes,
    /// Opaque bytes behind the head; may be empty.
    pub body: Bytes,
}

impl Frame {
    /// Bytes of the whole frame on the wire.
    pub fn wire_bytes(&self) -> usize {
        self.head.len().saturating_add(self.body.len())
    }

    /// The first byte: what kind of frame this is.
    pub fn kind(&self) -> u8 {
        self.head.first().copied().unwrap_or(0)
    }
}

/// A frame as it came in: its payload is one contiguous piece, not yet understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawFrame {
    /// The first byte of the header.
    pub kind: u8,
    /// Everything behind the header.
    pub payload: Bytes,
}

impl RawFrame {
    /// Length with its header, bytes.
    pub fn wire_bytes(&self) -> usize {
        HEADER_BYTES.saturating_add(self.payload.len())
    }
}

/// What is wrong with a frame header; the channel cannot be read any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// The announced payload is longer than the channel allows.
    #[error("a frame of {bytes} bytes is over the channel's limit of {max}")]
    TooLong {
        /// Announced payload, bytes.
        bytes: usize,
        /// What the channel allows, bytes.
        max: usize,
    },
}

/// Writes a frame header.
///
/// # Panics
/// In debug builds when `payload_bytes` does not fit 24 bits; senders check sizes first.
pub fn encode_header(kind: u8, payload_bytes: usize) -> [u8; HEADER_BYTES] {
    debug_assert!(payload_bytes < 1 << 24, "payload fits the 24-bit length");
    let [_, high, middle, low] = (payload_bytes as u32).to_be_bytes();
    [kind, high, middle, low]
}

/// Reads a frame header: its kind and how many payload bytes follow.
pub fn decode_header(
    header: [u8; HEADER_BYTES],
    channel: Channel,
) -> Result<(u8, usize), HeaderError> {
    let [kind, high, middle, low] = header;
    let bytes = u32::from_be_bytes([0, high, middle, low]) as usize;
    let max = channel.frame_bytes_max();
    if bytes > max { Err(HeaderError::TooLong { bytes, max }) } else { Ok((kind, bytes)) }
}
