//! What two endpoints must know of each other's NATs.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

use crate::address::canonical;
use crate::path::is_private;
use crate::report::{Mapping, Report};

/// Ports of two mappings made one after the other are at most so far apart if the NAT counts.
const STEP_MAX: u16 = 8;
/// Ports below it are no NAT's mappings, but perhaps somebody's service.
pub(super) const PORT_MIN: u16 = 1024;

/// How an endpoint's NAT maps its sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// One mapped address for all destinations, or no NAT.
    Independent,
    /// Another port for each destination, which nobody can guess.
    Random,
    /// Another port for each destination, one after the other.
    Sequential {
        /// Upwards.
        up: bool,
    },
}

/// What an endpoint says of itself before a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// How its NAT maps.
    pub behaviour: Behaviour,
    /// Where its main socket is seen, if that is the same for all; else the NAT's address with the
    /// port that it gave last.
    pub addr: SocketAddrV4,
}

/// Who does what in a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Sends from one socket to many ports.
    One,
    /// Sends from many sockets to one port.
    Many,
}

impl Behaviour {
    /// What it means for searches, in reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Independent => "easy",
            Self::Random => "random",
            Self::Sequential { .. } => "sequential",
        }
    }
}

impl Facts {
    /// Draws them from a report; `reflexive` is where the main socket is seen.
    pub fn new(report: &Report, reflexive: Option<SocketAddr>) -> Option<Self> {
        let v4 = |addr: SocketAddr| match canonical(addr) {
            SocketAddr::V4(v4) => Some(v4),
            SocketAddr::V6(_) => None,
        };
        match report.mapping? {
            Mapping::None | Mapping::EndpointIndependent => {
                Some(Self { behaviour: Behaviour::Independent, addr: reflexive.and_then(v4)? })
            }
            Mapping::AddressDependent | Mapping::AddressAndPortDependent => {
                let mapped = report.mapped.and_then(v4)?;
                let (behaviour, port) = match report.mapped_ports.as_slice() {
                    [.., old, new] if (1..=STEP_MAX).contains(&old.abs_diff(*new)) => {
                        (Behaviour::Sequential { up: new > old }, *new)
                    }
                    [.., new] => (Behaviour::Random, *new),
                    [] => (Behaviour::Random, mapped.port()),
                };
                Some(Self { behaviour, addr: SocketAddrV4::new(*mapped.ip(), port) })
            }
        }
    }

    /// Whether packets may be sent there on a peer's word: a public address, and no port of a
    /// well-known service.
    pub fn is_fit(&self) -> bool {
        is_public(*self.addr.ip()) && self.addr.port() >= PORT_MIN
    }
}

fn is_public(ip: Ipv4Addr) -> bool {
    let is_none = ip.is_unspecified() || ip.is_broadcast() || ip.is_multicast();
    let [first, ..] = ip.octets();
    !is_none && first != 0 && first < 240 && !is_private(SocketAddr::new(IpAddr::V4(ip), PORT_MIN))
}

/// Our role, or `None`: a search would bring nothing, as plain punching does or nothing can.
pub fn roles(own: &Facts, peer: &Facts) -> Option<Role> {
    let is_one = |facts: &Facts| facts.behaviour == Behaviour::Independent;
    match (is_one(own), is_one(peer)) {
        (true, false) => Some(Role::One),
        (false, true) => Some(Role::Many),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Check, CheckConfig, Patience};
    use macula_proto::Time;

    fn facts(behaviour: Behaviour, addr: &str) -> Facts {
        Facts { behaviour, addr: addr.parse().unwrap() }
    }

    fn report(mapping: Option<Mapping>, ports: &[u16]) -> Report {
        let config = CheckConfig {
            servers: Vec::new(),
            main: None,
            quiet: None,
            v6: None,
            patience: Patience::default(),
            seed: [0; 32],
        };
        let mut report = Check::new(Time::START, config).report();
        report.mapping = mapping;
        report.mapped = Some("198.51.100.1:5000".parse().unwrap());
        report.mapped_ports = ports.to_vec();
        report
    }

    #[test]
    fn one_side_has_the_sockets_and_both_agree_which() {
        let easy = facts(Behaviour::Independent, "198.51.100.1:5000");
        let hard = facts(Behaviour::Random, "198.51.100.2:5000");
        let counts = facts(Behaviour::Sequential { up: true }, "198.51.100.2:5000");
        for hard in [hard, counts] {
            assert_eq!(roles(&easy, &hard), Some(Role::One));
            assert_eq!(roles(&hard, &easy), Some(Role::Many));
        }
        assert_eq!((roles(&easy, &easy), roles(&hard, &counts)), (None, None));
    }

    #[test]
    fn a_nat_that_counts_is_told_from_one_that_draws() {
        let seen = Some("[::ffff:203.0.113.9]:7000".parse().unwrap());
        let of = |mapping, ports: &[u16]| Facts::new(&report(mapping, ports), seen);
        let cone = of(Some(Mapping::EndpointIndependent), &[]).unwrap();
        assert_eq!(cone, facts(Behaviour::Independent, "203.0.113.9:7000"));
        let hard = Some(Mapping::AddressAndPortDependent);
        let up = of(hard, &[5000, 5001]).unwrap();
        assert_eq!(up, facts(Behaviour::Sequential { up: true }, "198.51.100.1:5001"));
        let down = of(hard, &[5000, 4992]).unwrap();
        assert_eq!(down.behaviour, Behaviour::Sequential { up: false });
        let random = of(hard, &[5000, 61_000]).unwrap();
        assert_eq!(random, facts(Behaviour::Random, "198.51.100.1:61000"));
        assert_eq!(of(None, &[]), None);
    }

    #[test]
    fn nobody_is_probed_at_an_inner_address_or_a_known_port() {
        let fit = |addr| facts(Behaviour::Random, addr).is_fit();
        assert!(fit("198.51.100.1:1024"));
        for addr in [
            "198.51.100.1:53",
            "198.51.100.1:0",
            "0.1.2.3:5000",
            "10.0.0.1:5000",
            "192.168.1.1:5000",
            "100.64.0.1:5000",
            "127.0.0.1:5000",
            "169.254.0.1:5000",
            "224.0.0.1:5000",
            "240.0.0.1:5000",
            "255.255.255.255:5000",
        ] {
            assert!(!fit(addr), "{addr}");
        }
    }
}
