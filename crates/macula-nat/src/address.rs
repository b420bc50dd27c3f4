//! Addresses as they really are, whatever form they come in.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The address that packets really go to: IPv4 where IPv6 only wraps it (`::ffff:a.b.c.d`), without
/// flow label and scope.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The IPv4 address that an IPv6 address leads to by some way of transition: IPv4-mapped and
/// -compatible (RFC 4291 §2.5.5), NAT64 (RFC 6052 §2.1), 6to4 (RFC 3056 §2), Teredo (RFC 4380 §4,
/// whose client is stored inverted).
pub fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let [a, b, c, d, e, f, g, h] = address.segments();
    let v4 = |high: u16, low: u16| Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low));
    match (a, b, c, d, e, f) {
        (0, 0, 0, 0, 0, 0 | 0xffff) if address > Ipv6Addr::LOCALHOST => Some(v4(g, h)),
        (0x64, 0xff9b, 0, 0, 0, 0) => Some(v4(g, h)),
        (0x2002, ..) => Some(v4(b, c)),
        (0x2001, 0, ..) => Some(v4(!g, !h)),
        _ => None,
    }
}

/// What counts as one place when places are counted: an IPv4 address, an IPv6 /64.
pub fn place(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrapped_addresses_are_unwrapped() {
        let check = |text: &str, v4: Option<&str>| {
            let expected = v4.map(|v4| v4.parse().unwrap());
            assert_eq!(embedded_v4(text.parse().unwrap()), expected, "{text}");
        };
        check("::ffff:127.0.0.1", Some("127.0.0.1"));
        check("::10.0.0.1", Some("10.0.0.1"));
        check("64:ff9b::192.168.1.1", Some("192.168.1.1"));
        check("2002:7f00:1::", Some("127.0.0.1"));
        check("2001:0:4136:e378:8000:63bf:80ff:fffe", Some("127.0.0.1"));
        check("::1", None);
        check("::", None);
        check("2001:db8::1", None);
        let mapped = "[::ffff:192.0.2.1]:7".parse().unwrap();
        assert_eq!(canonical(mapped), "192.0.2.1:7".parse().unwrap());
    }

    #[test]
    fn a_place_is_a_v4_address_or_a_v6_network() {
        let place = |text: &str| place(text.parse().unwrap()).to_string();
        assert_eq!(place("::ffff:192.0.2.1"), "192.0.2.1");
        assert_eq!(place("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
    }
}
