//! nftables rules: what makes a router the NAT that it stands for, and what counts bytes in hosts.
//!
//! Interface names are fixed: `wan` towards the Internet, `lan` (a bridge) and `lan2` towards hosts.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::kind::NatKind;

/// Mappings and permissions of the rule sets with maps live so long after their last packet, seconds.
const MAPPING_SECONDS: u32 = 120;
/// Ports of a sequential NAT: this many from [`SEQUENTIAL_FIRST`] on.
const SEQUENTIAL_PORTS: u32 = 8192;
const SEQUENTIAL_FIRST: u32 = 30_000;
/// Where a router answers the lab's own delay measurement (RFC 862 echo).
pub(crate) const ECHO_PORT: u16 = 7;

/// How UDP leaves a router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nat {
    /// As it is.
    None,
    /// Port by a hash of the source, the same for every destination, kept in a map.
    Hashed(Inbound),
    /// Linux's own: the local port while it is free.
    Masquerade { drop_input: bool },
    /// A random port for each destination.
    Random,
    /// The next port for each destination.
    Sequential,
    /// As [`Self::Random`], but for what is in two maps, which the server of port mappings fills.
    Mapped,
}

/// Who may use a hashed mapping from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Inbound {
    Anybody,
    ContactedAddress,
    ContactedPort,
}

/// Everything that the rules of one router depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Router {
    pub(crate) nat: Nat,
    pub(crate) wan: Ipv4Addr,
    /// New flows from outside get in (to hosts with public addresses).
    pub(crate) open: bool,
    /// Only TCP 80 and 443 get out.
    pub(crate) web_only: bool,
    /// Packets to the router's own external address come back in.
    pub(crate) hairpin: bool,
}

impl Router {
    /// The router (or the carrier's NAT) that makes `kind` what it is.
    pub(crate) fn of(kind: NatKind, wan: Ipv4Addr) -> Self {
        let nat = match kind {
            NatKind::Public | NatKind::Fw | NatKind::V6Fw => Nat::None,
            NatKind::FullCone => Nat::Hashed(Inbound::Anybody),
            NatKind::AddrRestricted => Nat::Hashed(Inbound::ContactedAddress),
            NatKind::PortRestricted | NatKind::Cgnat => Nat::Hashed(Inbound::ContactedPort),
            NatKind::Linux | NatKind::UdpBlock | NatKind::ShortTimeout => {
                Nat::Masquerade { drop_input: true }
            }
            NatKind::LinuxOpen => Nat::Masquerade { drop_input: false },
            NatKind::Symmetric | NatKind::CgnatSym | NatKind::Dual => Nat::Random,
            NatKind::SymSeq => Nat::Sequential,
            NatKind::PortMap => Nat::Mapped,
        };
        Self {
            nat,
            wan,
            open: kind == NatKind::Public,
            web_only: kind == NatKind::UdpBlock,
            hairpin: false,
        }
    }

    /// A home router as in [`NatKind::Linux`].
    pub(crate) fn home(wan: Ipv4Addr) -> Self {
        Self::of(NatKind::Linux, wan)
    }

    /// The whole rule set, for `nft -f -`; it replaces what was there. Another `seed` hashes to other ports, as
    /// after a reboot; without one each rule would have its own, and a hairpin another port than the way out.
    pub(crate) fn rules(&self, seed: u32) -> String {
        let mut text = String::from("flush ruleset\n");
        text.push_str(&self.filter_table());
        if self.nat != Nat::None {
            text.push_str(&self.nat_table(seed));
        }
        text
    }

    fn filter_table(&self) -> String {
        let mut text = String::from("table inet lab_filter {\n");
        let contacted = self.nat == Nat::Hashed(Inbound::ContactedAddress);
        if contacted {
            text += &format!(
                " set contacted {{\n  type ipv4_addr . inet_service . ipv4_addr\n  \
                 flags dynamic,timeout\n  timeout {MAPPING_SECONDS}s\n  size 65535\n }}\n"
            );
        }
        let input = match self.nat {
            Nat::Masquerade { drop_input: false } => "accept",
            _ => "drop",
        };
        text += &format!(
            " chain in {{\n  type filter hook input priority filter; policy accept;\n  \
             iifname \"wan\" udp dport {ECHO_PORT} accept\n  \
             iifname \"wan\" meta l4proto ipv6-icmp accept\n  \
             iifname \"wan\" ct state established,related accept\n  \
             iifname \"wan\" {input}\n }}\n \
             chain through {{\n  type filter hook forward priority filter; policy drop;\n"
        );
        if contacted {
            // This hook sees the host's own address in both directions.
            text.push_str(
                "  iifname \"lan*\" meta l4proto udp \
                 update @contacted { ip saddr . udp sport . ip daddr }\n",
            );
        }
        let outward = if self.web_only { "tcp dport { 80, 443 } " } else { "" };
        text += &format!("  iifname \"lan*\" oifname \"wan\" {outward}accept\n");
        text.push_str("  ct state established,related accept\n");
        match self.nat {
            Nat::Hashed(Inbound::Anybody) | Nat::Mapped => {
                text.push_str("  ct status dnat accept\n")
            }
            Nat::Hashed(Inbound::ContactedAddress) => text
                .push_str("  ct status dnat ip daddr . udp dport . ip saddr @contacted accept\n"),
            _ => {}
        }
        if self.open {
            text.push_str("  iifname \"wan\" accept\n");
        }
        if self.hairpin {
            text.push_str("  iifname \"lan*\" oifname \"lan*\" ct status dnat accept\n");
        }
        text.push_str(" }\n}\n");
        text
    }

    fn nat_table(&self, seed: u32) -> String {
        let wan = self.wan;
        let udp = match self.nat {
            Nat::None | Nat::Masquerade { .. } => None,
            Nat::Hashed(_) => Some(format!(
                "snat to {wan} : jhash ip saddr . udp sport mod 60000 seed {seed} offset 2000"
            )),
            Nat::Random | Nat::Mapped => Some("masquerade fully-random".to_owned()),
            Nat::Sequential => Some(format!(
                "snat to {wan} : numgen inc mod {SEQUENTIAL_PORTS} map {{ {} }}",
                sequential_ports()
            )),
        };
        // With hairpinning the source is translated as if the packet came from outside.
        let flows: &[&str] = if self.hairpin {
            &["oifname \"wan\"", "iifname \"lan*\" oifname \"lan*\" ct status dnat"]
        } else {
            &["oifname \"wan\""]
        };
        let mut text = String::from("table ip lab_nat {\n");
        let filter = match self.nat {
            Nat::Hashed(filter) => Some(filter),
            _ => None,
        };
        // Established flows need no map; it is for who comes first from outside or hairpins.
        let is_mapped =
            self.hairpin || filter.is_some_and(|filter| filter != Inbound::ContactedPort);
        if is_mapped {
            text.push_str(&self.reverse_map(flows));
        }
        if self.nat == Nat::Mapped {
            text += &format!(
                " map mapped {{\n  type inet_service : ipv4_addr . inet_service\n }}\n \
                 map outward {{\n  type ipv4_addr . inet_service : ipv4_addr . inet_service\n }}\n \
                 chain back {{\n  type nat hook prerouting priority dstnat;\n  \
                 ip daddr {wan} meta l4proto udp dnat to udp dport map @mapped\n }}\n"
            );
        }
        text.push_str(" chain out {\n  type nat hook postrouting priority srcnat;\n");
        if self.nat == Nat::Mapped {
            // As miniupnpd does: what is mapped is so on the way out, too.
            text.push_str(
                "  oifname \"wan\" meta l4proto udp snat to ip saddr . udp sport map @outward\n",
            );
        }
        for flow in flows {
            if let Some(udp) = &udp {
                text += &format!("  {flow} meta l4proto udp {udp}\n");
            }
            text += &format!("  {flow} snat to {wan}\n");
        }
        text.push_str(" }\n}\n");
        text
    }

    /// Remembers who is behind each external port, and lets packets to it in that far.
    fn reverse_map(&self, flows: &[&str]) -> String {
        let wan = self.wan;
        let mut text = format!(
            " map rev {{\n  type inet_service : ipv4_addr . inet_service\n  \
             flags dynamic,timeout\n  timeout {MAPPING_SECONDS}s\n  size 65535\n }}\n \
             chain keep {{\n  type filter hook postrouting priority 150;\n"
        );
        for flow in flows {
            text += &format!(
                "  {flow} meta l4proto udp ct direction original \
                 update @rev {{ udp sport : ct original ip saddr . ct original proto-src }}\n"
            );
        }
        text += &format!(
            " }}\n chain back {{\n  type nat hook prerouting priority dstnat;\n  \
             ip daddr {wan} meta l4proto udp dnat to udp dport map @rev\n }}\n"
        );
        text
    }
}

fn sequential_ports() -> String {
    let ports =
        (0..SEQUENTIAL_PORTS).map(|index| format!("{index} : {}", SEQUENTIAL_FIRST + index));
    ports.collect::<Vec<_>>().join(", ")
}

/// Takes away what [`cut`] adds, if it is there.
pub(crate) const UNCUT: &str = "table inet lab_cut\ndelete table inet lab_cut\n";

/// Rules of a router beside its others: UDP passes to and from `relays` only. Not in hosts, where a drop
/// would be an error of the program's socket.
pub(crate) fn cut(relays_v4: &[Ipv4Addr], relays_v6: &[Ipv6Addr]) -> String {
    fn list(relays: &[impl ToString]) -> String {
        relays.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }
    let (v4, v6) = (list(relays_v4), list(relays_v6));
    format!(
        "{UNCUT}table inet lab_cut {{\n \
         chain through {{\n  type filter hook forward priority filter - 10;\n  \
         meta l4proto udp ip saddr != {{ {v4} }} ip daddr != {{ {v4} }} drop\n  \
         meta l4proto udp ip6 saddr != {{ {v6} }} ip6 daddr != {{ {v6} }} drop\n }}\n}}\n"
    )
}

/// Rules of a host: bytes by remote address, which [`crate::counters`] reads.
pub(crate) const HOST_RULES: &str = "\
flush ruleset
table inet lab_count {
 set to4 {
  type ipv4_addr
  flags dynamic
  size 4096
  counter
 }
 set from4 {
  type ipv4_addr
  flags dynamic
  size 4096
  counter
 }
 set to6 {
  type ipv6_addr
  flags dynamic
  size 4096
  counter
 }
 set from6 {
  type ipv6_addr
  flags dynamic
  size 4096
  counter
 }
 chain sent {
  type filter hook output priority filter;
  meta l4proto { tcp, udp } update @to4 { ip daddr counter }
  meta l4proto { tcp, udp } update @to6 { ip6 daddr counter }
 }
 chain received {
  type filter hook input priority filter;
  meta l4proto { tcp, udp } update @from4 { ip saddr counter }
  meta l4proto { tcp, udp } update @from6 { ip6 saddr counter }
 }
}
";

#[cfg(test)]
mod tests {
    use super::*;

    const WAN: Ipv4Addr = Ipv4Addr::new(198, 18, 7, 2);

    fn rules(kind: NatKind) -> String {
        Router::of(kind, WAN).rules(7)
    }

    #[test]
    fn routers_without_nat_have_no_nat_table() {
        for kind in [NatKind::Public, NatKind::Fw, NatKind::V6Fw] {
            assert!(!rules(kind).contains("lab_nat"), "{kind}");
        }
        assert!(rules(NatKind::Public).contains("iifname \"wan\" accept"));
        assert!(!rules(NatKind::Fw).contains("  iifname \"wan\" accept"));
    }

    #[test]
    fn only_the_open_router_answers_what_comes_from_outside() {
        let input = |kind| rules(kind).contains("iifname \"wan\" accept\n }");
        let open = NatKind::ALL.into_iter().filter(|kind| input(*kind));
        // The public host's rule is in the chain that forwards.
        assert_eq!(open.collect::<Vec<_>>(), [NatKind::Public, NatKind::LinuxOpen]);
        assert!(rules(NatKind::Linux).contains("iifname \"wan\" drop"));
    }

    #[test]
    fn cones_differ_only_in_who_gets_in() {
        for kind in [NatKind::FullCone, NatKind::AddrRestricted, NatKind::PortRestricted] {
            assert!(rules(kind).contains("198.18.7.2 : jhash ip saddr . udp sport"), "{kind}");
        }
        assert!(rules(NatKind::FullCone).contains("  ct status dnat accept"));
        assert!(rules(NatKind::AddrRestricted).contains("@contacted accept"));
        assert!(!rules(NatKind::PortRestricted).contains("dnat"));
    }

    #[test]
    fn endpoint_dependent_ports_are_random_or_the_next() {
        assert!(rules(NatKind::Symmetric).contains("udp masquerade fully-random"));
        let sequential = rules(NatKind::SymSeq);
        assert!(sequential.contains("numgen inc mod 8192 map { 0 : 30000, 1 : 30001, "));
        assert!(sequential.contains("8191 : 38191 }"));
    }

    #[test]
    fn a_blocked_host_gets_out_to_the_web_only() {
        let text = rules(NatKind::UdpBlock);
        assert!(text.contains("oifname \"wan\" tcp dport { 80, 443 } accept"));
        assert!(!text.contains("oifname \"wan\" accept"));
    }

    #[test]
    fn a_cut_spares_gateways_and_can_be_made_and_taken_away_twice() {
        let text = cut(&[WAN], &[Ipv6Addr::LOCALHOST]);
        assert!(text.starts_with(UNCUT));
        assert!(text.contains("ip saddr != { 198.18.7.2 } ip daddr != { 198.18.7.2 } drop"));
        assert!(text.contains("ip6 saddr != { ::1 } ip6 daddr != { ::1 } drop"));
    }

    #[test]
    fn hairpins_go_through_the_map_and_out_again() {
        let mut router = Router::of(NatKind::PortRestricted, WAN);
        assert!(!router.rules(7).contains("oifname \"lan*\""));
        router.hairpin = true;
        let text = router.rules(7);
        assert!(text.contains("dnat to udp dport map @rev"));
        assert!(text.contains("iifname \"lan*\" oifname \"lan*\" ct status dnat accept"));
    }
}
