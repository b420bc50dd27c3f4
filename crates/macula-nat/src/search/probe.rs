//! Probes: STUN Binding messages (RFC 8489) with an attribute of our own, which only who knows the
//! search's token can make.

use ring::hmac;
use stun_types::attribute::{AttributeType, RawAttribute};
use stun_types::message::{
    BINDING, Message, MessageClass, MessageType, MessageWriteVec, TransactionId,
};

use super::{Role, Token};
use crate::stun::{add, finish, parse};

/// Bytes of the secret of a search.
pub const TOKEN_BYTES: usize = 16;

/// Comprehension-optional, of the range without assignments.
const SEARCH: AttributeType = AttributeType::new(0xc0e7);
const TAG_BYTES: usize = 16;

/// What a probe says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Probe {
    /// Which side sent it.
    pub(super) from: Role,
    /// It answers one.
    pub(super) is_answer: bool,
    /// The way that it takes is the one that stays.
    pub(super) is_chosen: bool,
}

impl Probe {
    fn byte(self) -> u8 {
        let from = u8::from(self.from == Role::Many);
        from | u8::from(self.is_answer) << 1 | u8::from(self.is_chosen) << 2
    }

    fn read(byte: u8) -> Option<Self> {
        let from = if byte & 1 == 0 { Role::One } else { Role::Many };
        (byte < 8).then_some(Self { from, is_answer: byte & 2 != 0, is_chosen: byte & 4 != 0 })
    }
}

/// Writes and reads the probes of one search.
#[derive(Debug)]
pub(super) struct Codec {
    key: hmac::Key,
}

impl Codec {
    pub(super) fn new(token: &Token) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, token) }
    }

    /// `id`: 96 bits.
    pub(super) fn write(&self, probe: Probe, id: u128) -> Vec<u8> {
        let class = if probe.is_answer { MessageClass::Success } else { MessageClass::Request };
        let kind = MessageType::from_class_method(class, BINDING);
        let id = TransactionId::from(id);
        let mut message = Message::builder(kind, id, MessageWriteVec::new());
        let mut value = vec![probe.byte(), 0, 0, 0];
        value.extend_from_slice(&self.tag(probe, id));
        add(&mut message, &RawAttribute::new_owned(SEARCH, value.into()));
        finish(message)
    }

    /// The probe and its id, if it is one of this search.
    pub(super) fn read(&self, packet: &[u8]) -> Option<(Probe, u128)> {
        let message = parse(packet)?;
        let raw = message.raw_attribute(SEARCH)?;
        let (byte, rest) = raw.value.split_first()?;
        let probe = Probe::read(*byte)?;
        let class = if probe.is_answer { MessageClass::Success } else { MessageClass::Request };
        let id = message.transaction_id();
        let tag = rest.get(3..)?;
        let expected = self.tag(probe, id);
        let differs = tag.iter().zip(expected).fold(0, |sum, (one, other)| sum | (one ^ other));
        let is_ours = message.has_method(BINDING)
            && message.has_class(class)
            && tag.len() == TAG_BYTES
            && differs == 0;
        is_ours.then(|| (probe, id.into()))
    }

    fn tag(&self, probe: Probe, id: TransactionId) -> [u8; TAG_BYTES] {
        let id: u128 = id.into();
        let mut said = vec![probe.byte()];
        said.extend_from_slice(&id.to_be_bytes());
        let mut tag = [0; TAG_BYTES];
        let whole = hmac::sign(&self.key, &said);
        tag.iter_mut().zip(whole.as_ref()).for_each(|(to, from)| *to = *from);
        tag
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_who_knows_the_token_can_make_a_probe() {
        let (codec, other) = (Codec::new(&[7; 16]), Codec::new(&[8; 16]));
        for byte in 0..8 {
            let probe = Probe::read(byte).unwrap();
            let packet = codec.write(probe, 0xabc);
            assert_eq!(codec.read(&packet), Some((probe, 0xabc)));
            assert_eq!(other.read(&packet), None);
            // neither a packet of QUIC nor ChannelData
            assert!(packet[0] < 0x40, "{packet:x?}");
            // all but FINGERPRINT, without which it is one as well
            for index in 0..packet.len() - 8 {
                let mut changed = packet.clone();
                changed[index] ^= 0x10;
                assert_eq!(codec.read(&changed), None, "byte {index}");
            }
        }
    }

    #[test]
    fn an_answer_is_not_longer_than_what_it_answers() {
        let codec = Codec::new(&[7; 16]);
        let lens = (0..8).map(|byte| codec.write(Probe::read(byte).unwrap(), 1).len());
        assert_eq!(lens.collect::<Vec<_>>(), [52; 8]);
    }

    proptest! {
        #[test]
        fn junk_is_no_probe(packet in proptest::collection::vec(any::<u8>(), 0..120)) {
            prop_assert_eq!(Codec::new(&[0; 16]).read(&packet), None);
        }
    }
}
