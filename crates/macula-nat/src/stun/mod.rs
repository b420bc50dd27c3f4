//! STUN: what packets are, and Binding requests.

mod client;
mod server;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;

use stun_types::attribute::{AttributeType, MappedSocketAddr, RawAttribute};
use stun_types::message::Message;

pub use client::{Asker, SERVERS_MAX};
pub use server::{Answer, Binding, Listener};
pub(crate) use server::{add, finish};

/// Largest STUN message that is read; those of TURN with data are as long as a datagram.
pub const MESSAGE_BYTES_MAX: usize = HEADER_BYTES + 0xffff;
/// Header of a STUN message (RFC 8489 §5).
pub const HEADER_BYTES: usize = 20;
/// Header of ChannelData (RFC 8656 §12.4).
pub const CHANNEL_HEADER_BYTES: usize = 4;

const MAGIC_COOKIE: [u8; 4] = 0x2112_a442_u32.to_be_bytes();

/// CHANGE-REQUEST (RFC 5780 §7.2).
pub(crate) const CHANGE_REQUEST: AttributeType = AttributeType::new(0x0003);
/// PADDING (RFC 5780 §7.6).
pub(crate) const PADDING: AttributeType = AttributeType::new(0x0026);
/// RESPONSE-PORT (RFC 5780 §7.5).
pub(crate) const RESPONSE_PORT: AttributeType = AttributeType::new(0x0027);
/// RESPONSE-ORIGIN (RFC 5780 §7.3).
pub(crate) const RESPONSE_ORIGIN: AttributeType = AttributeType::new(0x802b);
/// OTHER-ADDRESS (RFC 5780 §7.4).
pub(crate) const OTHER_ADDRESS: AttributeType = AttributeType::new(0x802c);
/// Flag of CHANGE-REQUEST: answer from the other address.
pub(crate) const CHANGE_IP: u32 = 0x4;
/// Flag of CHANGE-REQUEST: answer from the other port.
pub(crate) const CHANGE_PORT: u32 = 0x2;

/// What a packet on a STUN port is, by its first bytes (RFC 8489 §5, RFC 8656 §12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A STUN message of exactly this packet's length.
    Stun,
    /// ChannelData: its channel number and the bytes of its data, which the packet holds.
    Channel {
        /// 0x4000 to 0x7fff.
        number: u16,
        /// Bytes of data behind the header.
        length: usize,
    },
    /// Anything else.
    Other,
}

/// Tells what a packet is. On a datagram ChannelData may be followed by padding.
pub fn classify(packet: &[u8]) -> Kind {
    let &[a, b, c, d, ref rest @ ..] = packet else { return Kind::Other };
    let length = usize::from(u16::from_be_bytes([c, d]));
    match a >> 6 {
        0 if rest.starts_with(&MAGIC_COOKIE)
            && length % 4 == 0
            && packet.len() == HEADER_BYTES + length =>
        {
            Kind::Stun
        }
        1 if length <= rest.len() => Kind::Channel { number: u16::from_be_bytes([a, b]), length },
        _ => Kind::Other,
    }
}

/// How long the message at the start of a stream is, padding included, as soon as that is known
/// (RFC 8656 §12.5: ChannelData is padded on streams).
///
/// # Errors
/// [`NotStun`]: no STUN or ChannelData begins here; the stream cannot be read on.
pub fn frame_length(stream: &[u8]) -> Result<Option<usize>, NotStun> {
    let &[a, _, c, d, ref rest @ ..] = stream else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes([c, d]));
    match a >> 6 {
        0 if length % 4 == 0 => match rest.first_chunk() {
            Some(cookie) if *cookie == MAGIC_COOKIE => Ok(Some(HEADER_BYTES + length)),
            Some(_) => Err(NotStun),
            None => Ok(None),
        },
        1 => Ok(Some(CHANNEL_HEADER_BYTES + length.next_multiple_of(4))),
        _ => Err(NotStun),
    }
}

/// A stream does not carry STUN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("neither STUN nor ChannelData")]
pub struct NotStun;

/// Reads a STUN message that [`classify`] took for one.
pub(crate) fn parse(packet: &[u8]) -> Option<Message<'_>> {
    if classify(packet) != Kind::Stun {
        return None;
    }
    Message::from_bytes(packet).ok()
}

/// A plain address as RFC 5780's attributes have it.
pub(crate) fn address_attribute(kind: AttributeType, address: SocketAddr) -> RawAttribute<'static> {
    MappedSocketAddr::new(address).to_raw(kind).into_owned()
}

/// Reads what [`address_attribute`] writes.
pub(crate) fn read_address(message: &Message<'_>, kind: AttributeType) -> Option<SocketAddr> {
    let raw = message.raw_attribute(kind)?;
    MappedSocketAddr::from_raw(&raw).ok().map(|address| address.addr())
}

/// A number of 32 bits.
pub(crate) fn read_u32(message: &Message<'_>, kind: AttributeType) -> Option<Option<u32>> {
    let raw = message.raw_attribute(kind)?;
    Some(<[u8; 4]>::try_from(&*raw.value).ok().map(u32::from_be_bytes))
}
