//! Which other member could carry packets of a link between two, as a QUIC datagram of that link.
//!
//! Each side says it when it has a direct link to that member. Spec: docs/protocol §9.3.1.

use bytes::{BufMut, Bytes, BytesMut};

use crate::id::EndpointId;

/// First byte; those of relayed packets (§9.3), offers (§9.4) and port searches (§9.8) are lower.
const VIA: u8 = 0x06;

/// Writes it.
pub fn encode(carrier: EndpointId) -> Bytes {
    let mut bytes = BytesMut::with_capacity(1 + EndpointId::BYTES);
    bytes.put_u8(VIA);
    bytes.put_slice(carrier.as_bytes());
    bytes.freeze()
}

/// Reads it; what may follow one day is ignored. `None`: it is none.
pub fn decode(bytes: &[u8]) -> Option<EndpointId> {
    let (&VIA, rest) = bytes.split_first()? else { return None };
    rest.first_chunk::<{ EndpointId::BYTES }>().map(|id| EndpointId::from_bytes(*id))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn it_has_fixed_bytes_and_may_grow() {
        let id = EndpointId::from_bytes([7; 32]);
        let bytes = encode(id);
        assert_eq!(bytes, [&[6][..], &[7; 32]].concat());
        assert_eq!(decode(&bytes), Some(id));
        assert_eq!(decode(&[&bytes[..], b"more"].concat()), Some(id));
        assert_eq!((decode(&bytes[..32]), decode(b""), decode(&[5; 40])), (None, None, None));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..50)) {
            if let Some(id) = decode(&bytes) {
                prop_assert_eq!(&encode(id)[..], &bytes[..33]);
            }
        }
    }
}
