//! Kinds of access to the Internet, and what an outside observer must see of each.

use std::fmt;
use std::str::FromStr;

/// How a host is connected. `docs/nat.md` says how each is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NatKind {
    /// A public IPv4 address.
    Public,
    /// A public IPv4 address behind a stateful firewall.
    Fw,
    /// Endpoint-independent mapping and filtering, ports not preserved.
    FullCone,
    /// Endpoint-independent mapping, address-dependent filtering, ports not preserved.
    AddrRestricted,
    /// Endpoint-independent mapping, address and port-dependent filtering, ports not preserved.
    PortRestricted,
    /// `masquerade` with INPUT drop: the usual home router.
    Linux,
    /// The same without INPUT drop.
    LinuxOpen,
    /// A random port for each destination.
    Symmetric,
    /// The next port for each destination.
    SymSeq,
    /// A home router behind a carrier's port-restricted NAT.
    Cgnat,
    /// A home router behind a carrier's symmetric NAT.
    CgnatSym,
    /// Only TCP to ports 80 and 443 gets out.
    UdpBlock,
    /// IPv6 only, behind a stateful firewall.
    V6Fw,
    /// [`Self::V6Fw`] and symmetric IPv4.
    Dual,
    /// [`Self::Linux`] that forgets UDP after 5 s.
    ShortTimeout,
    /// [`Self::Symmetric`] that maps ports when asked by PCP or NAT-PMP.
    PortMap,
}

/// RFC 4787 §4.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// The same external port for every destination.
    EndpointIndependent,
    /// Another one for each destination address.
    AddressDependent,
    /// Another one for each destination address and port.
    AddressAndPortDependent,
}

/// RFC 4787 §5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filtering {
    /// Everybody gets in once the port is open.
    EndpointIndependent,
    /// Only addresses that were sent to.
    AddressDependent,
    /// Only addresses and ports that were sent to.
    AddressAndPortDependent,
}

impl fmt::Display for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EndpointIndependent => "EIM",
            Self::AddressDependent => "ADM",
            Self::AddressAndPortDependent => "APDM",
        })
    }
}

impl fmt::Display for Filtering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EndpointIndependent => "EIF",
            Self::AddressDependent => "ADF",
            Self::AddressAndPortDependent => "APDF",
        })
    }
}

/// What an observer outside must see; IPv4 where the host has it, else IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Behaviour {
    /// Which mapping.
    pub mapping: Mapping,
    /// Which filtering.
    pub filtering: Filtering,
    /// Whether the external port is the local one; `None` where either may be.
    pub preserves_ports: Option<bool>,
    /// Whether ports for successive destinations rise by one.
    pub sequential: bool,
}

impl NatKind {
    /// All kinds, in the order of tables.
    pub const ALL: [Self; 16] = [
        Self::Public,
        Self::Fw,
        Self::FullCone,
        Self::AddrRestricted,
        Self::PortRestricted,
        Self::Linux,
        Self::LinuxOpen,
        Self::Symmetric,
        Self::SymSeq,
        Self::Cgnat,
        Self::CgnatSym,
        Self::UdpBlock,
        Self::V6Fw,
        Self::Dual,
        Self::PortMap,
        Self::ShortTimeout,
    ];
    /// The kinds of the full matrix: all but [`Self::ShortTimeout`].
    pub const MATRIX: &'static [Self] = Self::ALL.split_at(15).0;
    /// The few kinds of `--small`: a cone without preserved ports, the home router that is
    /// sensitive to order, a sequential symmetric NAT, no UDP at all, and IPv6 beside bad IPv4.
    pub const SMALL: [Self; 5] =
        [Self::PortRestricted, Self::LinuxOpen, Self::SymSeq, Self::UdpBlock, Self::Dual];

    /// As on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Fw => "fw",
            Self::FullCone => "fullcone",
            Self::AddrRestricted => "addrrestricted",
            Self::PortRestricted => "portrestricted",
            Self::Linux => "linux",
            Self::LinuxOpen => "linuxopen",
            Self::Symmetric => "symmetric",
            Self::SymSeq => "symseq",
            Self::Cgnat => "cgnat",
            Self::CgnatSym => "cgnatsym",
            Self::UdpBlock => "udpblock",
            Self::V6Fw => "v6fw",
            Self::Dual => "dual",
            Self::ShortTimeout => "shorttimeout",
            Self::PortMap => "portmap",
        }
    }

    /// Whether hosts have IPv4.
    #[must_use]
    pub fn has_v4(self) -> bool {
        self != Self::V6Fw
    }

    /// Whether hosts have IPv6.
    #[must_use]
    pub fn has_v6(self) -> bool {
        matches!(self, Self::V6Fw | Self::Dual)
    }

    /// Whether UDP gets out.
    #[must_use]
    pub fn has_udp(self) -> bool {
        self != Self::UdpBlock
    }

    /// Whether a second NAT, the carrier's, is before the router.
    #[must_use]
    pub fn is_behind_carrier(self) -> bool {
        matches!(self, Self::Cgnat | Self::CgnatSym)
    }

    /// NATs with endpoint-independent mapping: what hole punching was made for.
    #[must_use]
    pub fn is_cone(self) -> bool {
        matches!(
            self,
            Self::FullCone
                | Self::AddrRestricted
                | Self::PortRestricted
                | Self::Linux
                | Self::LinuxOpen
                | Self::Cgnat
                | Self::ShortTimeout
        )
    }

    /// What a probe from inside must find; `None` where no UDP gets out.
    #[must_use]
    pub fn behaviour(self) -> Option<Behaviour> {
        use Filtering as F;
        let cone = |filtering, preserves_ports| Behaviour {
            mapping: Mapping::EndpointIndependent,
            filtering,
            preserves_ports,
            sequential: false,
        };
        let symmetric = |sequential| Behaviour {
            mapping: Mapping::AddressAndPortDependent,
            filtering: F::AddressAndPortDependent,
            preserves_ports: Some(false),
            sequential,
        };
        Some(match self {
            Self::UdpBlock => return None,
            Self::Public => cone(F::EndpointIndependent, Some(true)),
            Self::Fw | Self::Linux | Self::LinuxOpen | Self::V6Fw | Self::ShortTimeout => {
                cone(F::AddressAndPortDependent, Some(true))
            }
            Self::FullCone => cone(F::EndpointIndependent, Some(false)),
            Self::AddrRestricted => cone(F::AddressDependent, Some(false)),
            Self::PortRestricted | Self::Cgnat => cone(F::AddressAndPortDependent, Some(false)),
            Self::Symmetric | Self::CgnatSym | Self::Dual | Self::PortMap => symmetric(false),
            Self::SymSeq => symmetric(true),
        })
    }
}

impl fmt::Display for NatKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// No kind has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no NAT type `{0}`; there are: {known}", known = names())]
pub struct UnknownKind(String);

fn names() -> String {
    NatKind::ALL.map(NatKind::name).join(", ")
}

impl FromStr for NatKind {
    type Err = UnknownKind;

    fn from_str(text: &str) -> Result<Self, UnknownKind> {
        let found = Self::ALL.into_iter().find(|kind| kind.name() == text);
        found.ok_or_else(|| UnknownKind(text.to_owned()))
    }
}

/// Two hosts that share more than the Internet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Shared {
    /// Two hosts on one LAN.
    SameLan,
    /// Two LANs that cannot see each other behind one NAT that hairpins.
    Hairpin,
    /// The same without hairpinning.
    NoHairpin,
    /// Two home routers behind one carrier's NAT that hairpins.
    SameCgn,
    /// The same without hairpinning.
    SameCgnNoHairpin,
}

impl Shared {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::SameLan, Self::Hairpin, Self::NoHairpin, Self::SameCgn, Self::SameCgnNoHairpin];

    /// As in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::SameLan => "samelan",
            Self::Hairpin => "hairpin",
            Self::NoHairpin => "nohairpin",
            Self::SameCgn => "samecgn",
            Self::SameCgnNoHairpin => "samecgn-nohairpin",
        }
    }

    /// Whether packets to the other's external address come back in.
    #[must_use]
    pub fn hairpins(self) -> bool {
        matches!(self, Self::Hairpin | Self::SameCgn)
    }
}

impl fmt::Display for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// One of [`Shared::ALL`] by name.
impl FromStr for Shared {
    type Err = UnknownKind;

    fn from_str(text: &str) -> Result<Self, UnknownKind> {
        let found = Self::ALL.into_iter().find(|shared| shared.name() == text);
        found.ok_or_else(|| UnknownKind(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_read_back() {
        for kind in NatKind::ALL {
            assert_eq!(kind.name().parse(), Ok(kind));
        }
        for shared in Shared::ALL {
            assert_eq!(shared.name().parse(), Ok(shared));
        }
        assert!("conical".parse::<NatKind>().unwrap_err().to_string().contains("symseq"));
    }

    #[test]
    fn the_matrix_has_all_that_the_mixes_weigh() {
        assert_eq!(NatKind::MATRIX.len(), 15);
        assert!(!NatKind::MATRIX.contains(&NatKind::ShortTimeout));
    }
}
