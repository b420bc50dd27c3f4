//! What sort each candidate of a peer is, as a QUIC datagram of a link between peers.
//!
//! QUIC carries bare addresses; which of them a TURN server relays, and whom to let in at a TURN
//! server of one's own, needs more. Spec: docs/protocol §9.4.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::{BufMut, Bytes, BytesMut};

/// Candidates in one offer at most; more are left out, by who sends and who reads.
pub const OFFER_MAX: usize = 18;

/// First byte; those of relayed packets (§9.3) are lower.
const OFFER: u8 = 0x04;
const ENTRY_BYTES_MAX: usize = 1 + 1 + 16 + 2;

/// Sort of a candidate (RFC 8445 §5.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// Of an interface.
    Host,
    /// As a server sees it.
    ServerReflexive,
    /// Relayed by a TURN server.
    Relayed,
}

impl Sort {
    const fn code(self) -> u8 {
        match self {
            Self::Host => 1,
            Self::ServerReflexive => 2,
            Self::Relayed => 3,
        }
    }
}

/// Writes an offer: all candidates of this side, which replace those of the last offer.
pub fn encode(candidates: &[(Sort, SocketAddr)]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(2 + OFFER_MAX * ENTRY_BYTES_MAX);
    let count = candidates.len().min(OFFER_MAX);
    bytes.put_u8(OFFER);
    bytes.put_u8(count as u8);
    for (sort, addr) in candidates.iter().take(count) {
        bytes.put_u8(sort.code());
        match addr.ip() {
            IpAddr::V4(ip) => {
                bytes.put_u8(4);
                bytes.put_slice(&ip.octets());
            }
            IpAddr::V6(ip) => {
                bytes.put_u8(6);
                bytes.put_slice(&ip.octets());
            }
        }
        bytes.put_u16(addr.port());
    }
    bytes.freeze()
}

/// Reads an offer; sorts that are not known are left out. `None`: it is none.
pub fn decode(bytes: &[u8]) -> Option<Vec<(Sort, SocketAddr)>> {
    let (&[OFFER, count], mut rest) = bytes.split_first_chunk::<2>()? else { return None };
    let mut candidates = Vec::new();
    for _ in 0..usize::from(count).min(OFFER_MAX) {
        let (&[code, family], after) = rest.split_first_chunk::<2>()?;
        let (ip, after): (IpAddr, _) = match family {
            4 => after
                .split_first_chunk::<4>()
                .map(|(ip, rest)| (Ipv4Addr::from(*ip).into(), rest))?,
            6 => after
                .split_first_chunk::<16>()
                .map(|(ip, rest)| (Ipv6Addr::from(*ip).into(), rest))?,
            _ => return None,
        };
        let (port, after) = after.split_first_chunk::<2>()?;
        rest = after;
        let sort = match code {
            1 => Sort::Host,
            2 => Sort::ServerReflexive,
            3 => Sort::Relayed,
            _ => continue,
        };
        let addr = SocketAddr::new(ip.to_canonical(), u16::from_be_bytes(*port));
        candidates.push((sort, addr));
    }
    Some(candidates)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_offer_has_fixed_bytes() {
        let candidates = [
            (Sort::Host, "10.0.0.1:4433".parse().unwrap()),
            (Sort::Relayed, "[2001:db8::1]:1".parse().unwrap()),
        ];
        let bytes = encode(&candidates);
        let expected = [
            &[4, 2, 1, 4, 10, 0, 0, 1, 0x11, 0x51, 3, 6, 0x20, 1, 0x0d, 0xb8][..],
            &[0; 11],
            &[1, 0, 1],
        ];
        assert_eq!(bytes, expected.concat());
        assert_eq!(decode(&bytes).unwrap(), candidates);
    }

    #[test]
    fn unknown_sorts_are_left_out_and_other_forms_refused() {
        let unknown = [4, 2, 9, 4, 1, 2, 3, 4, 0, 5, 2, 4, 1, 2, 3, 4, 0, 6];
        let expected = [(Sort::ServerReflexive, "1.2.3.4:6".parse().unwrap())];
        assert_eq!(decode(&unknown).unwrap(), expected);
        for bytes in [&[][..], &[4], &[3, 0], &[4, 1], &[4, 1, 1, 5, 0, 0], &unknown[..17]] {
            assert_eq!(decode(bytes), None, "{bytes:?}");
        }
    }

    #[test]
    fn ten_thousand_candidates_are_as_many_as_may_be() {
        let many: Vec<_> =
            (1..=10_000).map(|port| (Sort::Host, SocketAddr::from(([1, 2, 3, 4], port)))).collect();
        assert_eq!(decode(&encode(&many)).unwrap(), many[..OFFER_MAX]);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_fall_over(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
            let head = [&[4u8][..], &bytes].concat();
            for bytes in [&bytes, &head] {
                if let Some(candidates) = decode(bytes) {
                    prop_assert!(candidates.len() <= OFFER_MAX);
                }
            }
        }
    }
}
