//! Tests of the wire as a whole: every message, every channel, any bytes.

mod messages;
mod properties;
mod specification;
mod vectors;

use bytes::{Bytes, BytesMut};

use super::frame::{HEADER_BYTES, decode_header};
use super::{Channel, DecodeError, Frame, Message, RawFrame, decode};
use crate::id::StreamId;

/// One of each sort of channel.
const CHANNELS: [Channel; 5] = [
    Channel::Control,
    Channel::Lane(0),
    Channel::Lane(1),
    Channel::Bulk,
    Channel::Stream(StreamId(7)),
];

/// The kinds from docs/protocol §4.4.
const KINDS: [u8; 33] = [
    0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0x19,
    0x1a, 0x1b, 0x1c, 0x20, 0x21, 0x22, 0x40, 0x41, 0x42, 0x43, 0x44, 0x50, 0x51, 0x52, 0x53, 0x54,
    0x55,
];

/// A channel that the message may travel on.
fn home(message: &Message) -> Channel {
    CHANNELS
        .into_iter()
        .find(|channel| super::allowed(message.kind(), *channel))
        .expect("every kind has a channel")
}

/// All bytes of a frame.
fn bytes_of(frame: &Frame) -> Bytes {
    let mut all = BytesMut::from(frame.head.as_ref());
    all.extend_from_slice(&frame.body);
    all.freeze()
}

/// What a receiver makes of the bytes of one frame.
fn raw(bytes: &Bytes, channel: Channel) -> RawFrame {
    let header = bytes.first_chunk::<HEADER_BYTES>().expect("a header");
    let (kind, length) = decode_header(*header, channel).expect("within the channel's limit");
    assert_eq!(bytes.len(), HEADER_BYTES + length, "the header tells the length");
    RawFrame { kind, payload: bytes.slice(HEADER_BYTES..) }
}

fn decode_payload(kind: u8, payload: &[u8], channel: Channel) -> Result<Message, DecodeError> {
    decode(RawFrame { kind, payload: Bytes::copy_from_slice(payload) }, channel)
}
