//! Bytes by remote address, as the kernel of a host counts them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::Value;

use crate::error::LabError;
use crate::netns::Netns;

/// Bytes that a host has exchanged over UDP and TCP, by remote address, IP headers included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    sent: BTreeMap<IpAddr, u64>,
    received: BTreeMap<IpAddr, u64>,
}

impl Counters {
    /// What the host has counted so far.
    pub(crate) fn read(host: &Netns) -> Result<Self, LabError> {
        Self::parse(&host.command("nft", &["-j", "list", "table", "inet", "lab_count"])?)
            .ok_or_else(|| LabError::new("nft -j list table", "counters that nobody understands"))
    }

    fn parse(text: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(text).ok()?;
        let mut counters = Self::default();
        for object in value.get("nftables")?.as_array()? {
            let Some(set) = object.get("set") else { continue };
            let counted = match set.get("name")?.as_str()? {
                "to4" | "to6" => &mut counters.sent,
                "from4" | "from6" => &mut counters.received,
                _ => continue,
            };
            let Some(elements) = set.get("elem").and_then(Value::as_array) else { continue };
            for element in elements {
                let element = element.get("elem")?;
                let address = element.get("val")?.as_str()?.parse().ok()?;
                counted.insert(address, element.get("counter")?.get("bytes")?.as_u64()?);
            }
        }
        Some(counters)
    }

    /// Bytes since `earlier` with remote addresses that `is_relay` knows, and with all others.
    pub(crate) fn since(&self, earlier: &Self, is_relay: impl Fn(IpAddr) -> bool) -> Traffic {
        let mut traffic = Traffic::default();
        for (now, before, direct) in [
            (&self.sent, &earlier.sent, &mut traffic.sent),
            (&self.received, &earlier.received, &mut traffic.received),
        ] {
            for (address, bytes) in now.iter().filter(|(address, _)| !address.is_loopback()) {
                let more = bytes.saturating_sub(before.get(address).copied().unwrap_or(0));
                if is_relay(*address) {
                    traffic.relayed += more;
                } else {
                    *direct += more;
                }
            }
        }
        traffic
    }
}

/// What a host has exchanged in a window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    /// Bytes to addresses that are no gateway's.
    pub(crate) sent: u64,
    /// Bytes from them.
    pub(crate) received: u64,
    /// Bytes to and from gateways.
    pub(crate) relayed: u64,
}

impl Traffic {
    /// Whether payload goes host to host: both ways, and more than with gateways, where some goes on to keep
    /// the relay warm.
    pub(crate) fn is_direct(self) -> bool {
        self.sent > 0 && self.received > 0 && self.sent + self.received > self.relayed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(name: &str, address: &str, bytes: u64) -> String {
        format!(
            r#"{{"nftables": [{{"metainfo": {{"version": "1.0.6"}}}},
            {{"chain": {{"name": "sent"}}}},
            {{"set": {{"family": "inet", "name": "from6", "type": "ipv6_addr"}}}},
            {{"set": {{"family": "inet", "name": "{name}", "elem":
              [{{"elem": {{"val": "{address}", "counter": {{"packets": 1, "bytes": {bytes}}}}}}}]}}}}]}}"#
        )
    }

    #[test]
    fn what_nft_lists_is_read() {
        let counters = Counters::parse(&listing("to4", "198.18.3.2", 31)).unwrap();
        assert_eq!(counters.sent, BTreeMap::from([("198.18.3.2".parse().unwrap(), 31)]));
        assert!(counters.received.is_empty());
        assert_eq!(Counters::parse("{}"), None);
        assert_eq!(Counters::parse(&listing("to4", "nonsense", 1)), None);
    }

    #[test]
    fn a_window_tells_direct_from_relayed() {
        let relay: IpAddr = "198.18.0.2".parse().unwrap();
        let peer: IpAddr = "198.18.3.2".parse().unwrap();
        let earlier = Counters {
            sent: BTreeMap::from([(peer, 100), (relay, 5_000)]),
            received: BTreeMap::new(),
        };
        let later = Counters {
            sent: BTreeMap::from([(peer, 400), (relay, 5_100)]),
            received: BTreeMap::from([(peer, 300)]),
        };
        let traffic = later.since(&earlier, |address| address == relay);
        assert_eq!(traffic, Traffic { sent: 300, received: 300, relayed: 100 });
        assert!(traffic.is_direct());
        assert!(!Traffic { received: 0, ..traffic }.is_direct());
        assert!(!Traffic { relayed: 1_000, ..traffic }.is_direct());
    }
}
