//! Candidates (RFC 8445 §5.1).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// How a candidate was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// An address of an interface of this machine.
    Host,
    /// A port of the router's outer address that it has mapped to us when asked.
    PortMapped,
    /// Our address as a server outside sees it.
    ServerReflexive,
    /// An address that a TURN server relays to us.
    Relayed,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Host, Self::PortMapped, Self::ServerReflexive, Self::Relayed];

    /// How many candidates of this kind one endpoint offers at most.
    pub const fn max(self) -> usize {
        match self {
            Self::Host => 8,
            Self::PortMapped | Self::ServerReflexive => 4,
            Self::Relayed => 2,
        }
    }

    /// RFC 8445 §5.1.2.1; a mapped port is as a reflexive one, but lets anybody in.
    const fn type_preference(self) -> u32 {
        match self {
            Self::Host => 126,
            Self::PortMapped => 105,
            Self::ServerReflexive => 100,
            Self::Relayed => 0,
        }
    }
}

/// An address at which this endpoint may be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// How it was found.
    pub kind: Kind,
    /// The address; IPv4 is never written as mapped IPv6.
    pub addr: SocketAddr,
    /// Candidates of one kind and one base share it (RFC 8445 §5.1.1.3).
    pub foundation: u32,
    /// Higher is better (RFC 8445 §5.1.2.1). There is one component.
    pub priority: u32,
}

/// What an endpoint offers to its peers: a bounded set.
#[derive(Clone, Debug, Default)]
pub struct Candidates {
    by_kind: BTreeMap<Kind, Vec<SocketAddr>>,
}

impl Candidates {
    /// Says what is known of one kind now, best first; what does not fit [`Kind::max`], or cannot
    /// be the address of a peer, is left out. Returns whether that changed anything.
    ///
    /// `near` lets loopback addresses in: they lead somewhere only if the peer is on this machine.
    pub fn set(&mut self, kind: Kind, addrs: &[SocketAddr], near: bool) -> bool {
        let mut usable: Vec<SocketAddr> = Vec::new();
        for addr in addrs.iter().map(|addr| canonical(*addr)) {
            let is_usable = is_usable(addr, near) && !usable.contains(&addr);
            if is_usable && usable.len() < kind.max() {
                usable.push(addr);
            }
        }
        let known = self.by_kind.entry(kind).or_default();
        let (mut old, mut new) = (known.clone(), usable.clone());
        old.sort_unstable();
        new.sort_unstable();
        *known = usable;
        old != new
    }

    /// All of them, best first, each address once.
    pub fn list(&self) -> Vec<Candidate> {
        let mut list: Vec<Candidate> = Vec::new();
        for (kind, addrs) in &self.by_kind {
            for (index, addr) in addrs.iter().enumerate() {
                let local_preference = 65_535 - u32::try_from(index).unwrap_or(65_535).min(65_535);
                let family = u32::from(addr.is_ipv6());
                let candidate = Candidate {
                    kind: *kind,
                    addr: *addr,
                    foundation: kind.type_preference() * 2 + family,
                    priority: (kind.type_preference() << 24) + (local_preference << 8) + 255,
                };
                if list.iter().all(|known| known.addr != *addr) {
                    list.push(candidate);
                }
            }
        }
        list.sort_by_key(|candidate| std::cmp::Reverse(candidate.priority));
        list
    }

    /// What was said of one kind, best first, also where another kind has the same address.
    pub fn of(&self, kind: Kind) -> &[SocketAddr] {
        self.by_kind.get(&kind).map_or(&[], Vec::as_slice)
    }

    /// The addresses of [`Self::list`].
    pub fn addrs(&self) -> Vec<SocketAddr> {
        self.list().into_iter().map(|candidate| candidate.addr).collect()
    }
}

/// Whether an address is of a network that ends at some router: private, shared, local to a link or
/// to a machine. Between two of one network no NAT stands.
pub fn is_private(addr: SocketAddr) -> bool {
    match canonical(addr).ip() {
        IpAddr::V4(ip) => {
            ip.is_private() || ip.is_loopback() || ip.is_link_local() || is_shared(ip)
        }
        IpAddr::V6(ip) => ip.is_loopback() || is_unique_local(ip) || is_link_local(ip),
    }
}

fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// Whether packets can be sent to an address, and without knowing an interface.
fn is_usable(addr: SocketAddr, near: bool) -> bool {
    if addr.port() == 0 || addr.ip().is_unspecified() || addr.ip().is_multicast() {
        return false;
    }
    match addr.ip() {
        IpAddr::V4(ip) if ip.is_loopback() => near,
        IpAddr::V6(ip) if ip.is_loopback() => near,
        IpAddr::V4(ip) => !ip.is_broadcast() && !ip.is_link_local(),
        IpAddr::V6(ip) => !is_link_local(ip),
    }
}

/// Carriers' own, RFC 6598.
fn is_shared(ip: Ipv4Addr) -> bool {
    let [a, b, ..] = ip.octets();
    a == 100 && b & 0xc0 == 64
}

fn is_link_local(ip: Ipv6Addr) -> bool {
    let [first, ..] = ip.segments();
    first & 0xffc0 == 0xfe80
}

fn is_unique_local(ip: Ipv6Addr) -> bool {
    let [first, ..] = ip.segments();
    first & 0xfe00 == 0xfc00
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addrs(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn what_cannot_be_a_peers_address_is_left_out() {
        let mut candidates = Candidates::default();
        let given = addrs(&[
            "0.0.0.0:1",
            "10.0.0.1:0",
            "224.0.0.1:1",
            "255.255.255.255:1",
            "169.254.0.1:1",
            "[fe80::1]:1",
            "127.0.0.1:1",
            "[::1]:1",
            "[::ffff:10.0.0.1]:1",
            "10.0.0.1:1",
        ]);
        assert!(candidates.set(Kind::Host, &given, false));
        assert_eq!(candidates.addrs(), addrs(&["10.0.0.1:1"]));
        assert!(!candidates.set(Kind::Host, &addrs(&["10.0.0.1:1"]), false));
        assert!(candidates.set(Kind::Host, &given, true));
        assert_eq!(candidates.addrs(), addrs(&["127.0.0.1:1", "[::1]:1", "10.0.0.1:1"]));
    }

    #[test]
    fn ten_thousand_candidates_are_as_many_as_may_be() {
        let mut candidates = Candidates::default();
        let many: Vec<SocketAddr> =
            (1..=10_000).map(|port| ([192, 0, 2, 1], port).into()).collect();
        for kind in Kind::ALL {
            candidates.set(kind, &many, false);
        }
        assert_eq!(candidates.list().len(), 8, "each address once, and no kind has more");
        let max: usize = Kind::ALL.into_iter().map(Kind::max).sum();
        assert_eq!(max, 18);
    }

    #[test]
    fn priorities_are_those_of_the_standard() {
        let mut candidates = Candidates::default();
        candidates.set(Kind::ServerReflexive, &addrs(&["192.0.2.1:1"]), false);
        candidates.set(Kind::Host, &addrs(&["10.0.0.1:1", "[2001:db8::1]:1"]), false);
        let list = candidates.list();
        assert_eq!(list[0].priority, 2_130_706_431);
        assert_eq!(list[2].priority, 1_694_498_815);
        let kinds: Vec<Kind> = list.iter().map(|candidate| candidate.kind).collect();
        assert_eq!(kinds, [Kind::Host, Kind::Host, Kind::ServerReflexive]);
        assert_ne!(list[0].foundation, list[1].foundation);
    }

    #[test]
    fn an_address_found_twice_counts_as_the_better_kind() {
        let mut candidates = Candidates::default();
        candidates.set(Kind::ServerReflexive, &addrs(&["192.0.2.1:1"]), false);
        candidates.set(Kind::Host, &addrs(&["192.0.2.1:1"]), false);
        assert_eq!(candidates.list().len(), 1);
        assert_eq!(candidates.list()[0].kind, Kind::Host);
        assert_eq!(candidates.of(Kind::ServerReflexive), addrs(&["192.0.2.1:1"]));
    }

    #[test]
    fn private_networks_are_told_from_public_ones() {
        for text in ["10.1.2.3:1", "192.168.0.1:1", "100.64.0.1:1", "[fd00::1]:1", "[::1]:1"] {
            assert!(is_private(text.parse().unwrap()), "{text}");
        }
        for text in ["198.18.0.1:1", "100.128.0.1:1", "[2001:db8::1]:1"] {
            assert!(!is_private(text.parse().unwrap()), "{text}");
        }
    }
}
