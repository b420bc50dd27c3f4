//! To whom a relay may send: not into the network of the one who runs it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::address;

/// Which peers may be reached through a relay. Whatever is not a plain unicast address of the
/// internet must be allowed by name, after all wrappings of IPv4 in IPv6 are undone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerPolicy {
    /// Private networks may be reached: RFC 1918, RFC 6598 (CGN), RFC 4193, link-local, and
    /// those for documentation and tests. For laboratories and closed networks.
    pub allow_private: bool,
    /// This machine may be reached by its loopback addresses. For tests.
    pub allow_loopback: bool,
    /// Addresses of the machine that relays: its other services are nobody's peers. Other
    /// allocations at them are, which the server sees to.
    pub own: Vec<IpAddr>,
}

/// Why a peer may not be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Forbidden {
    /// `0.0.0.0/8`, `::`, port 0.
    #[error("unspecified address")]
    Unspecified,
    /// `127.0.0.0/8`, `::1`.
    #[error("loopback address")]
    Loopback,
    /// Multicast or broadcast.
    #[error("address of many")]
    Multicast,
    /// A private or link-local network.
    #[error("private address")]
    Private,
    /// Reserved, or of a kind that leads elsewhere than it says.
    #[error("reserved address")]
    Reserved,
    /// The relay's own machine.
    #[error("the relay's own address")]
    Own,
}

impl PeerPolicy {
    /// Checks an address without its port, as permissions have it.
    ///
    /// # Errors
    /// [`Forbidden`], but not [`Forbidden::Own`]: other allocations are behind own addresses.
    pub fn check_ip(&self, ip: IpAddr) -> Result<(), Forbidden> {
        match ip.to_canonical() {
            IpAddr::V4(v4) => self.check_v4(v4),
            IpAddr::V6(v6) => self.check_v6(v6),
        }
    }

    /// Checks where a packet is about to go, when it is not for another allocation here.
    ///
    /// # Errors
    /// [`Forbidden`].
    pub fn check(&self, peer: SocketAddr) -> Result<(), Forbidden> {
        self.check_ip(peer.ip())?;
        if peer.port() == 0 {
            return Err(Forbidden::Unspecified);
        }
        let ip = peer.ip().to_canonical();
        let is_own = self.own.iter().any(|own| own.to_canonical() == ip);
        if is_own && !(self.allow_loopback && ip.is_loopback()) {
            return Err(Forbidden::Own);
        }
        Ok(())
    }

    fn check_v4(&self, ip: Ipv4Addr) -> Result<(), Forbidden> {
        let [a, b, c, _] = ip.octets();
        let is_private = ip.is_private()
            || ip.is_link_local()
            || ip.is_documentation()
            || (a, b & 0xc0) == (100, 64)
            || (a, b & 0xfe) == (198, 18)
            || (a, b, c) == (192, 0, 0);
        match () {
            () if a == 0 => Err(Forbidden::Unspecified),
            () if ip.is_loopback() && !self.allow_loopback => Err(Forbidden::Loopback),
            () if ip.is_multicast() || ip.is_broadcast() => Err(Forbidden::Multicast),
            () if is_private && !self.allow_private => Err(Forbidden::Private),
            // The anycast address of 6to4 relays, and what nobody may use.
            () if a >= 240 || (a, b, c) == (192, 88, 99) => Err(Forbidden::Reserved),
            () => Ok(()),
        }
    }

    fn check_v6(&self, ip: Ipv6Addr) -> Result<(), Forbidden> {
        if let Some(v4) = address::embedded_v4(ip) {
            return self.check_v4(v4);
        }
        let [a, b, ..] = ip.segments();
        let is_private = ip.is_unique_local()
            || ip.is_unicast_link_local()
            || (a, b) == (0x2001, 0xdb8)
            // NAT64 of a site (RFC 8215); site-local of old
            || (a, b) == (0x64, 0xff9b)
            || a & 0xffc0 == 0xfec0;
        match () {
            () if ip.is_unspecified() => Err(Forbidden::Unspecified),
            () if ip.is_loopback() && !self.allow_loopback => Err(Forbidden::Loopback),
            () if ip.is_multicast() => Err(Forbidden::Multicast),
            () if is_private && !self.allow_private => Err(Forbidden::Private),
            () if is_private || ip.is_loopback() => Ok(()),
            // Nothing else is unicast of the internet (RFC 4291 §2.4).
            () if a & 0xe000 != 0x2000 => Err(Forbidden::Reserved),
            () => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(policy: &PeerPolicy, text: &str) -> Result<(), Forbidden> {
        policy.check_ip(text.parse().unwrap())
    }

    #[test]
    fn by_default_only_the_internet_is_reached() {
        let policy = PeerPolicy::default();
        for text in ["8.8.8.8", "192.88.98.1", "2606:4700::1", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"]
        {
            assert_eq!(check(&policy, text), Ok(()), "{text}");
        }
        let forbidden = [
            ("0.0.0.0 0.1.2.3 :: ::ffff:0.0.0.0 64:ff9b::0.0.0.1", Forbidden::Unspecified),
            (
                "127.0.0.1 127.255.0.3 ::1 ::ffff:127.0.0.1 ::127.0.0.1 64:ff9b::127.0.0.1 2002:7f00:1::1",
                Forbidden::Loopback,
            ),
            ("224.0.0.1 239.1.1.1 255.255.255.255 ff02::1 ::ffff:224.0.0.1", Forbidden::Multicast),
            (
                "10.0.0.1 172.16.0.1 172.31.255.255 192.168.0.1 169.254.169.254 100.64.0.1 100.127.255.255 198.18.0.1 192.0.2.1 203.0.113.1",
                Forbidden::Private,
            ),
            (
                "fc00::1 fd12::1 fe80::1 fec0::1 2001:db8::1 64:ff9b:1::1 ::ffff:10.0.0.1 2002:a00:1:: 64:ff9b::169.254.169.254",
                Forbidden::Private,
            ),
            (
                "240.0.0.1 192.88.99.1 100::1 4000::1 64:ff9a::1 ::ffff:240.0.0.1",
                Forbidden::Reserved,
            ),
        ];
        for (texts, expected) in forbidden {
            for text in texts.split(' ') {
                assert_eq!(check(&policy, text), Err(expected), "{text}");
            }
        }
    }

    #[test]
    fn a_laboratory_allows_private_networks_and_nothing_more() {
        let policy = PeerPolicy { allow_private: true, ..PeerPolicy::default() };
        for text in ["10.0.0.1", "fd00::1", "fe80::1", "100.64.3.3", "::ffff:192.168.1.1"] {
            assert_eq!(check(&policy, text), Ok(()), "{text}");
        }
        assert_eq!(check(&policy, "127.0.0.1"), Err(Forbidden::Loopback));
        assert_eq!(check(&policy, "255.255.255.255"), Err(Forbidden::Multicast));
        let policy = PeerPolicy { allow_loopback: true, ..policy };
        assert_eq!(check(&policy, "::ffff:127.0.0.1"), Ok(()));
        assert_eq!(check(&policy, "::1"), Ok(()));
    }

    #[test]
    fn own_services_are_no_peers_in_whatever_form() {
        let own = vec!["198.51.200.7".parse().unwrap()];
        let policy = PeerPolicy { own, ..PeerPolicy::default() };
        let check = |text: &str| policy.check(text.parse().unwrap());
        assert_eq!(check("198.51.200.7:22"), Err(Forbidden::Own));
        assert_eq!(check("[::ffff:198.51.200.7]:22"), Err(Forbidden::Own));
        assert_eq!(check("198.51.200.8:22"), Ok(()));
        assert_eq!(check("198.51.200.8:0"), Err(Forbidden::Unspecified));
    }
}
