//! Relayed packets: what a gateway carries between two endpoints, as QUIC datagrams of its links.
//!
//! A packet is opaque: it belongs to a QUIC connection of the two endpoints, whose keys no gateway
//! has. Spec: docs/protocol §9.3.

use bytes::{BufMut, Bytes, BytesMut};

use crate::id::EndpointId;
use crate::limits;

/// Bytes in front of a packet that travels whole.
pub const HEAD_BYTES: usize = 2 + EndpointId::BYTES;
/// Bytes in front of one half of a packet.
pub const PART_HEAD_BYTES: usize = HEAD_BYTES + 2;

const RELAY: u8 = 0x01;
const RELAYED: u8 = 0x02;
const UNREACHABLE: u8 = 0x03;

/// Which piece of a packet a datagram carries.
///
/// A packet that does not fit a datagram of the link travels in two, so that QUIC's smallest packet
/// passes where the link's own packets are not larger. The number tells packets of one flow apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// The first half of the packet of this number.
    First(u16),
    /// The second half.
    Second(u16),
}

/// Why a gateway does not carry packets to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[non_exhaustive]
pub enum Unreachable {
    /// No endpoint of that id is attached here and in a realm of the sender.
    NotHere = 1,
    /// The sender's grant does not allow `relay`.
    Denied = 2,
    /// A reason that this version does not know.
    Unknown = 0xff,
}

/// A datagram on a link between an endpoint and its gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Datagram {
    /// To the gateway: carry `packet` to `to`.
    Relay {
        /// For whom.
        to: EndpointId,
        /// Which piece.
        part: Part,
        /// The packet, or a half of it.
        packet: Bytes,
    },
    /// From the gateway: `from` sent `packet`.
    Relayed {
        /// Who sent it; the gateway knows it from the link.
        from: EndpointId,
        /// Which piece.
        part: Part,
        /// The packet, or a half of it.
        packet: Bytes,
    },
    /// From the gateway: a packet was not carried, nor will the next ones be.
    Unreachable {
        /// For whom it was.
        to: EndpointId,
        /// Why.
        reason: Unreachable,
    },
}

impl Datagram {
    /// The bytes of this datagram.
    pub fn encode(&self) -> Bytes {
        let (kind, id, part, packet) = match self {
            Self::Relay { to, part, packet } => (RELAY, to, *part, packet.as_ref()),
            Self::Relayed { from, part, packet } => (RELAYED, from, *part, packet.as_ref()),
            Self::Unreachable { to, reason } => {
                let mut bytes = BytesMut::with_capacity(HEAD_BYTES);
                bytes.put_u8(UNREACHABLE);
                bytes.put_u8(*reason as u8);
                bytes.put_slice(to.as_bytes());
                return bytes.freeze();
            }
        };
        let (code, number) = match part {
            Part::Whole => (0, None),
            Part::First(number) => (1, Some(number)),
            Part::Second(number) => (2, Some(number)),
        };
        let mut bytes = BytesMut::with_capacity(packet.len().saturating_add(PART_HEAD_BYTES));
        bytes.put_u8(kind);
        bytes.put_u8(code);
        bytes.put_slice(id.as_bytes());
        if let Some(number) = number {
            bytes.put_u16(number);
        }
        bytes.put_slice(packet);
        bytes.freeze()
    }

    /// Reads a datagram; `None`: it is none that this version knows, or an empty packet.
    pub fn decode(bytes: &Bytes) -> Option<Self> {
        let (head, rest) = bytes.split_at_checked(HEAD_BYTES)?;
        let (&[kind, code], id) = head.split_first_chunk::<2>()?;
        let id = EndpointId::from_bytes(id.try_into().ok()?);
        if kind == UNREACHABLE {
            let reason = match code {
                1 => Unreachable::NotHere,
                2 => Unreachable::Denied,
                _ => Unreachable::Unknown,
            };
            return Some(Self::Unreachable { to: id, reason });
        }
        let (part, packet) = match (code, rest.split_first_chunk::<2>()) {
            (0, _) => (Part::Whole, rest),
            (1, Some((number, packet))) => (Part::First(u16::from_be_bytes(*number)), packet),
            (2, Some((number, packet))) => (Part::Second(u16::from_be_bytes(*number)), packet),
            _ => return None,
        };
        if packet.is_empty() || packet.len() > limits::RELAYED_PACKET_BYTES_MAX {
            return None;
        }
        let packet = bytes.slice_ref(packet);
        match kind {
            RELAY => Some(Self::Relay { to: id, part, packet }),
            RELAYED => Some(Self::Relayed { from: id, part, packet }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(byte: u8) -> EndpointId {
        EndpointId::from_bytes([byte; 32])
    }

    #[test]
    fn every_form_comes_back_as_it_was() {
        let packet = Bytes::from_static(b"ciphertext");
        for part in [Part::Whole, Part::First(0xfffe), Part::Second(1)] {
            for datagram in [
                Datagram::Relay { to: id(1), part, packet: packet.clone() },
                Datagram::Relayed { from: id(2), part, packet: packet.clone() },
            ] {
                assert_eq!(Datagram::decode(&datagram.encode()), Some(datagram));
            }
        }
        for reason in [Unreachable::NotHere, Unreachable::Denied, Unreachable::Unknown] {
            let datagram = Datagram::Unreachable { to: id(3), reason };
            assert_eq!(Datagram::decode(&datagram.encode()), Some(datagram));
        }
    }

    #[test]
    fn golden_bytes() {
        let packet = Bytes::from_static(&[0xaa, 0xbb]);
        let whole = Datagram::Relay { to: id(7), part: Part::Whole, packet: packet.clone() };
        assert_eq!(whole.encode(), [&[1, 0][..], &[7; 32], &[0xaa, 0xbb]].concat());
        let half = Datagram::Relayed { from: id(8), part: Part::Second(0x0102), packet };
        assert_eq!(half.encode(), [&[2, 2][..], &[8; 32], &[1, 2, 0xaa, 0xbb]].concat());
        let gone = Datagram::Unreachable { to: id(9), reason: Unreachable::Denied };
        assert_eq!(gone.encode(), [&[3, 2][..], &[9; 32]].concat());
    }

    #[test]
    fn packets_without_bytes_or_with_too_many_are_none() {
        let empty = Datagram::Relay { to: id(1), part: Part::Whole, packet: Bytes::new() };
        assert_eq!(Datagram::decode(&empty.encode()), None);
        let packet = Bytes::from(vec![0; limits::RELAYED_PACKET_BYTES_MAX + 1]);
        let long = Datagram::Relay { to: id(1), part: Part::Whole, packet };
        assert_eq!(Datagram::decode(&long.encode()), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let bytes = Bytes::from(bytes);
            if let Some(datagram) = Datagram::decode(&bytes) {
                let again = Datagram::decode(&datagram.encode());
                prop_assert_eq!(again, Some(datagram));
            }
        }
    }
}
