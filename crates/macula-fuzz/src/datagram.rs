//! QUIC datagrams of links: relayed packets, and what peers say of candidates, port searches and carriers.

use bytes::Bytes;
use macula_nat::search::Signal;
use macula_proto::wire::offer::{self, OFFER_MAX};
use macula_proto::wire::relay::{Datagram, HEAD_BYTES};
use macula_proto::wire::via;

/// The input is one datagram.
///
/// It is at most one of the four; what was read and is written again is read as the same; a relayed
/// packet is not longer than what came, and an offer not longer than allowed.
pub fn datagram(data: &[u8]) {
    let bytes = Bytes::copy_from_slice(data);
    let relayed = Datagram::decode(&bytes);
    let offered = offer::decode(data);
    let signal = Signal::decode(data);
    let carrier = via::decode(data);
    let read = [relayed.is_some(), offered.is_some(), signal.is_some(), carrier.is_some()];
    assert!(read.iter().filter(|is_read| **is_read).count() <= 1, "{read:?}");
    if let Some(relayed) = relayed {
        if let Datagram::Relay { packet, .. } | Datagram::Relayed { packet, .. } = &relayed {
            assert!(!packet.is_empty() && packet.len() + HEAD_BYTES <= data.len());
        }
        assert_eq!(Datagram::decode(&relayed.encode()), Some(relayed));
    }
    if let Some(offered) = offered {
        assert!(offered.len() <= OFFER_MAX);
        assert_eq!(offer::decode(&offer::encode(&offered)), Some(offered));
    }
    if let Some(signal) = signal {
        assert_eq!(Signal::decode(&signal.encode()), Some(signal));
    }
    if let Some(carrier) = carrier {
        assert_eq!(via::decode(&via::encode(carrier)), Some(carrier));
    }
}
