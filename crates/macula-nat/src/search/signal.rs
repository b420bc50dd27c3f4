//! What the two sides say to each other over the relayed link, as QUIC datagrams of it.

use std::net::{Ipv4Addr, SocketAddrV4};

use super::{Behaviour, Facts, Token};

/// No signal is longer.
pub const SIGNAL_BYTES_MAX: usize = 64;

/// First byte; 1 to 3 are datagrams between an endpoint and its gateway, 4 the sorts of candidates.
const KIND: u8 = 5;
const OFFER: u8 = 1;
const ANSWER: u8 = 2;
const NO: u8 = 3;

/// Why a side does not search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum No {
    /// It does not know how its NAT maps, or has no IPv4 address.
    Unknown,
    /// It never searches.
    Never,
    /// Its budget, or what it has spent on this peer, does not allow it now.
    NotNow,
    /// A search would bring nothing: both sides map alike.
    Useless,
}

/// One signal. The dialler of the link offers; an offer that gets no answer is repeated as it was,
/// and its answer then too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Let us search, with this secret.
    Offer(Token, Facts),
    /// Yes: begin.
    Answer(Token, Facts),
    /// No.
    No(Token, No),
}

impl Signal {
    /// The bytes of this signal.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, token) = match self {
            Self::Offer(token, _) => (OFFER, token),
            Self::Answer(token, _) => (ANSWER, token),
            Self::No(token, _) => (NO, token),
        };
        let mut bytes = vec![KIND, kind];
        bytes.extend_from_slice(token);
        match self {
            Self::Offer(_, facts) | Self::Answer(_, facts) => {
                bytes.push(match facts.behaviour {
                    Behaviour::Independent => 0,
                    Behaviour::Random => 1,
                    Behaviour::Sequential { up: true } => 2,
                    Behaviour::Sequential { up: false } => 3,
                });
                bytes.extend_from_slice(&facts.addr.ip().octets());
                bytes.extend_from_slice(&facts.addr.port().to_be_bytes());
            }
            Self::No(_, why) => bytes.push(match why {
                No::Unknown => 1,
                No::Never => 2,
                No::NotNow => 3,
                No::Useless => 4,
            }),
        }
        bytes
    }

    /// Reads a signal; bytes behind it are for later versions.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > SIGNAL_BYTES_MAX {
            return None;
        }
        let [KIND, kind, rest @ ..] = bytes else { return None };
        let (token, rest) = rest.split_first_chunk::<16>()?;
        match *kind {
            OFFER => Some(Self::Offer(*token, facts(rest)?)),
            ANSWER => Some(Self::Answer(*token, facts(rest)?)),
            NO => {
                let why = match rest.first()? {
                    2 => No::Never,
                    3 => No::NotNow,
                    4 => No::Useless,
                    _ => No::Unknown,
                };
                Some(Self::No(*token, why))
            }
            _ => None,
        }
    }
}

fn facts(bytes: &[u8]) -> Option<Facts> {
    let &[behaviour, a, b, c, d, high, low, ..] = bytes else { return None };
    let behaviour = match behaviour {
        0 => Behaviour::Independent,
        1 => Behaviour::Random,
        2 => Behaviour::Sequential { up: true },
        3 => Behaviour::Sequential { up: false },
        _ => return None,
    };
    let port = u16::from_be_bytes([high, low]);
    Some(Facts { behaviour, addr: SocketAddrV4::new(Ipv4Addr::new(a, b, c, d), port) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn signals_are_read_as_they_were_written() {
        let behaviours = [
            Behaviour::Independent,
            Behaviour::Random,
            Behaviour::Sequential { up: true },
            Behaviour::Sequential { up: false },
        ];
        for behaviour in behaviours {
            let facts = Facts { behaviour, addr: "198.51.100.1:54321".parse().unwrap() };
            for signal in [Signal::Offer([9; 16], facts), Signal::Answer([8; 16], facts)] {
                let mut bytes = signal.encode();
                assert_eq!(Signal::decode(&bytes), Some(signal));
                for short in 0..bytes.len() {
                    assert_eq!(Signal::decode(&bytes[..short]), None);
                }
                bytes.push(1);
                assert_eq!(Signal::decode(&bytes), Some(signal), "later versions may say more");
                bytes.resize(SIGNAL_BYTES_MAX + 1, 0);
                assert_eq!(Signal::decode(&bytes), None);
            }
        }
        for why in [No::Unknown, No::Never, No::NotNow, No::Useless] {
            let signal = Signal::No([1; 16], why);
            assert_eq!(Signal::decode(&signal.encode()), Some(signal));
        }
    }

    #[test]
    fn an_offer_has_these_bytes() {
        let addr = "198.51.100.1:54321".parse().unwrap();
        let facts = Facts { behaviour: Behaviour::Random, addr };
        let bytes = Signal::Offer(*b"0123456789abcdef", facts).encode();
        assert_eq!(bytes, b"\x05\x010123456789abcdef\x01\xc6\x33\x64\x01\xd4\x31");
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Some(signal) = Signal::decode(&bytes) {
                prop_assert_eq!(Signal::decode(&signal.encode()), Some(signal));
            }
        }
    }
}
