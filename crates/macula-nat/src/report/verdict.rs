//! What the answers mean.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::check::StunServer;

/// How a NAT chooses the mapped address (RFC 4787 §4.1, RFC 5780 §4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mapping {
    /// The address is not mapped at all.
    None,
    /// One mapped address for all destinations: others can be told it.
    EndpointIndependent,
    /// One for each destination address.
    AddressDependent,
    /// One for each destination address and port: "symmetric".
    AddressAndPortDependent,
}

/// What a NAT or firewall lets in (RFC 4787 §5, RFC 5780 §4.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Filtering {
    /// Everything that comes to a mapped address.
    EndpointIndependent,
    /// What comes from an address that was sent to.
    AddressDependent,
    /// What comes from an address and port that was sent to.
    AddressAndPortDependent,
    /// Not by port: whether by address, a server with one IP address cannot tell.
    NotPortDependent,
}

impl Mapping {
    /// Its name in reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::EndpointIndependent => "endpoint-independent",
            Self::AddressDependent => "address-dependent",
            Self::AddressAndPortDependent => "address-and-port-dependent",
        }
    }
}

impl Filtering {
    /// Its name in reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::EndpointIndependent => "endpoint-independent",
            Self::AddressDependent => "address-dependent",
            Self::AddressAndPortDependent => "address-and-port-dependent",
            Self::NotPortDependent => "not-port-dependent",
        }
    }
}

impl fmt::Display for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Filtering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What one server said.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerReport {
    /// As the user wrote it.
    pub name: String,
    /// Where it was asked.
    pub address: SocketAddr,
    /// Whether it answered.
    pub is_alive: bool,
    /// Where it sees us.
    pub mapped: Option<SocketAddr>,
    /// Round-trip time, if the first request was answered.
    pub rtt: Option<Duration>,
}

impl ServerReport {
    pub(super) fn new(server: &StunServer) -> Self {
        let StunServer { name, address, .. } = server.clone();
        Self { name, address, is_alive: false, mapped: None, rtt: None }
    }
}

/// What was found out. `None` everywhere: not known, for lack of answers or of servers that can tell.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// The servers, nearest first, those without an answer last.
    pub servers: Vec<ServerReport>,
    /// Whether no server answered by UDP; `None` if none was asked.
    pub udp_blocked: Option<bool>,
    /// Whether TLS over TCP reaches a gateway; for whoever tried to fill in.
    pub tls_works: Option<bool>,
    /// Own IPv4 address.
    pub local: Option<SocketAddr>,
    /// Where the nearest server sees it.
    pub mapped: Option<SocketAddr>,
    /// How it is mapped; needs two destinations.
    pub mapping: Option<Mapping>,
    /// Ports that destinations saw, in the order of their answers, when they differ.
    pub mapped_ports: Vec<u16>,
    /// What is let in.
    pub filtering: Option<Filtering>,
    /// Whether two programs behind this NAT reach each other by its outer address.
    pub hairpin: Option<bool>,
    /// Whether the mapped port is the local one.
    pub preserves_port: Option<bool>,
    /// Own IPv6 address and where a server sees it.
    pub v6: Option<(SocketAddr, SocketAddr)>,
    /// Whether the provider's NAT is before the own one (RFC 6598 addresses were seen).
    pub cgnat_suspected: bool,
}

/// Raw findings.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) local: Option<SocketAddr>,
    pub(super) local_v6: Option<SocketAddr>,
    pub(super) servers: Vec<ServerReport>,
    /// Destinations and where they see the main socket.
    pub(super) mappings: Vec<(SocketAddr, SocketAddr)>,
    pub(super) mapped_v6: Option<SocketAddr>,
    /// OTHER-ADDRESS of the server that filtering is tested with.
    pub(super) other: Option<SocketAddr>,
    pub(super) can_filter_port: bool,
    pub(super) can_filter_both: bool,
    pub(super) port_got_in: bool,
    pub(super) both_got_in: bool,
    pub(super) hairpin: Option<bool>,
}

pub(super) fn report(found: &Found) -> Report {
    let mut servers = found.servers.clone();
    servers.sort_by_key(|server| (!server.is_alive, server.rtt.unwrap_or(Duration::MAX)));
    let first = found.mappings.first().map(|(_, mapped)| *mapped);
    let is_alive = servers.iter().any(|server| server.is_alive);
    let mut mapped_ports: Vec<u16> = found.mappings.iter().map(|(_, it)| it.port()).collect();
    if mapped_ports.iter().collect::<BTreeSet<_>>().len() < 2 {
        mapped_ports.clear();
    }
    let seen = found.local.iter().chain(found.mappings.iter().map(|(_, mapped)| mapped));
    let is_mapped = first.is_some() && first != found.local;
    Report {
        tls_works: None,
        udp_blocked: (!servers.is_empty()).then_some(!is_alive),
        servers,
        local: found.local,
        mapped: first,
        mapping: mapping(found),
        mapped_ports,
        filtering: filtering(found),
        hairpin: found.hairpin.filter(|_| is_mapped),
        preserves_port: first
            .zip(found.local)
            .filter(|_| is_mapped)
            .map(|(mapped, local)| mapped.port() == local.port()),
        v6: found.local_v6.zip(found.mapped_v6),
        cgnat_suspected: seen.into_iter().any(|address| is_shared(address.ip())),
    }
}

fn mapping(found: &Found) -> Option<Mapping> {
    let (first_to, first) = found.mappings.first()?;
    if Some(*first) == found.local {
        return Some(Mapping::None);
    }
    let destinations: BTreeSet<_> = found.mappings.iter().map(|(to, _)| to).collect();
    if destinations.len() < 2 {
        return None;
    }
    let differs = |same_ip: bool| {
        found.mappings.iter().enumerate().any(|(index, (to, mapped))| {
            let later = found.mappings.iter().skip(index + 1);
            later.into_iter().any(|(other_to, other)| {
                (to.ip() == other_to.ip()) == same_ip && to != other_to && mapped != other
            })
        })
    };
    let has_ports = found.mappings.iter().any(|(to, _)| to.ip() == first_to.ip() && to != first_to);
    match (differs(true), differs(false)) {
        (true, _) => Some(Mapping::AddressAndPortDependent),
        (false, true) if has_ports => Some(Mapping::AddressDependent),
        // One port at each address was asked: the worse is assumed.
        (false, true) => Some(Mapping::AddressAndPortDependent),
        (false, false) => Some(Mapping::EndpointIndependent),
    }
}

fn filtering(found: &Found) -> Option<Filtering> {
    match found {
        Found { can_filter_both: true, both_got_in: true, .. } => {
            Some(Filtering::EndpointIndependent)
        }
        Found { can_filter_port: true, port_got_in: true, can_filter_both, .. } => {
            let by_address = Filtering::AddressDependent;
            Some(if *can_filter_both { by_address } else { Filtering::NotPortDependent })
        }
        Found { can_filter_port: true, .. } => Some(Filtering::AddressAndPortDependent),
        _ => None,
    }
}

/// RFC 6598: between the NATs of providers and of their customers.
fn is_shared(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V4(v4) if v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64)
}

impl Report {
    /// How others can reach this machine, in one line.
    pub fn verdict(&self) -> String {
        let v6 = match self.v6 {
            Some((local, mapped)) if local.ip() == mapped.ip() => " and by IPv6",
            _ => "",
        };
        if self.udp_blocked == Some(true) && self.tls_works == Some(true) {
            return "UDP is blocked; TLS over TCP works: you can be reached through a gateway"
                .to_owned();
        }
        match (self.udp_blocked, self.mapping, self.filtering) {
            (None, ..) => "no STUN server was asked, so nothing is known".to_owned(),
            (Some(true), ..) => {
                "UDP does not get through: you can be reached by a relay over TCP or TLS only"
                    .to_owned()
            }
            (_, None, _) if self.mapped.is_none() && !v6.is_empty() => {
                "you can be reached directly by IPv6".to_owned()
            }
            (_, None, _) => "UDP works, but how addresses are mapped is not known: ask a second \
                             server, or one with a second port"
                .to_owned(),
            (_, Some(Mapping::None), Some(Filtering::AddressAndPortDependent)) => {
                format!("no NAT, but a firewall: you can be reached directly by hole punching{v6}")
            }
            (_, Some(Mapping::None), _) => format!("no NAT: you can be reached directly{v6}"),
            (_, Some(Mapping::EndpointIndependent), Some(Filtering::EndpointIndependent)) => {
                format!("you can be reached directly by your mapped address{v6}")
            }
            (_, Some(Mapping::EndpointIndependent), _) => {
                format!("you can be reached directly by hole punching{v6}")
            }
            (_, Some(_), _) => format!(
                "each destination sees another port: peers with easier NATs reach you directly{v6}, \
                 some after a search of seconds; others reach you through a relay"
            ),
        }
    }
}
