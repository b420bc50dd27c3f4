//! Settings of the STUN and TURN server.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::{ConfigError, check_count, check_size, check_span};
use crate::human;

/// The UDP and TCP port of STUN and TURN (RFC 8656 §18.1).
pub const DEFAULT_PORT: u16 = 3478;

/// The TCP port of STUN and TURN over TLS (RFC 8656 §18.1).
pub const DEFAULT_TLS_PORT: u16 = 5349;

/// The STUN and TURN server beside the gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct TurnConfig {
    /// Whether there is one. Default: yes; if its default port is taken, the gateway goes on
    /// without, with a warning.
    pub enabled: bool,
    /// Address to listen on, UDP and TCP; never the gateway's own UDP port. Default: the gateway's
    /// IP address, port 3478; any free port if the gateway's is 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    /// A second UDP port, by which peers find out how their NAT filters and maps (RFC 5780).
    /// Default 3479; 0: none.
    pub other_port: u16,
    /// A second IP address of this machine, for all tests of RFC 5780; then `listen` must name one
    /// address, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub other_ip: Option<IpAddr>,
    /// Whether clients may come by TCP. Default: yes.
    pub tcp: bool,
    /// Certificate chain (PEM) of a name that clients can check; with it and its key they may come
    /// by TLS. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_cert: Option<PathBuf>,
    /// Private key (PEM) of that certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<PathBuf>,
    /// TCP port for TLS, at the IP address of `listen`. Default 5349.
    pub tls_port: u16,
    /// Addresses at which others see this machine if a NAT in front of it maps them one to one
    /// (clouds do): at most one IPv4 and one IPv6 address. Default: this machine's own.
    pub external: Vec<IpAddr>,
    /// Name or address for the URIs that members are told. Default: what they dialled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Realm of the credentials. Default `macula`.
    pub realm: String,
    /// Key of the credentials, for other servers that shall take the same (coturn's
    /// `static-auth-secret`). Default: a new random one at each start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// How long credentials hold. Default 24 h; 1 min to 30 days.
    #[serde(with = "human::duration")]
    pub credentials_lifetime: Duration,
    /// Relays may reach private networks (RFC 1918, CGN, unique-local, link-local): for
    /// laboratories. Default: no.
    pub allow_private: bool,
    /// Relays may reach this machine by loopback: for tests. Default: no.
    pub allow_loopback: bool,
    /// UDP ports of relays, from. Default 49152; 1024 to 65535.
    pub relay_port_min: u16,
    /// UDP ports of relays, to. Default 65535.
    pub relay_port_max: u16,
    /// Allocations at once. Default 4,096; 1 to 1,000,000. Each has a socket and a port.
    pub allocations_max: usize,
    /// Allocations of one peer. Default 16; 1 to 10,000.
    pub allocations_per_peer_max: usize,
    /// Allocations from one IPv4 address or IPv6 /64. Default 256; 1 to 1,000,000.
    pub allocations_per_address_max: usize,
    /// Permissions, and channels, of one allocation at once. Default 64; 1 to 4,096.
    pub peers_per_allocation_max: usize,
    /// What the allocations of one peer may carry a second, both directions together; more is
    /// dropped. Default 4 MiB; 0: no limit.
    #[serde(with = "human::size")]
    pub bytes_per_second_per_peer: usize,
    /// The same for all. Default 64 MiB; 0: no limit.
    #[serde(with = "human::size")]
    pub bytes_per_second: usize,
    /// Connections by TCP and TLS at once. Default 1,024; 1 to 1,000,000.
    pub connections_max: usize,
    /// Answers a second to an IPv4 address or IPv6 /64 without credentials. Default 100; 1 to
    /// 1,000,000.
    pub answers_per_source: usize,
}

impl Default for TurnConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            listen: None,
            other_port: DEFAULT_PORT + 1,
            other_ip: None,
            tcp: true,
            tls_cert: None,
            tls_key: None,
            tls_port: DEFAULT_TLS_PORT,
            external: Vec::new(),
            host: None,
            realm: "macula".to_owned(),
            secret: None,
            credentials_lifetime: Duration::from_secs(24 * 3600),
            allow_private: false,
            allow_loopback: false,
            relay_port_min: 49_152,
            relay_port_max: 65_535,
            allocations_max: 4_096,
            allocations_per_peer_max: 16,
            allocations_per_address_max: 256,
            peers_per_allocation_max: 64,
            bytes_per_second_per_peer: 4 << 20,
            bytes_per_second: 64 << 20,
            connections_max: 1_024,
            answers_per_source: 100,
        }
    }
}

impl TurnConfig {
    /// Checks all ranges.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        for (field, value, min, max) in [
            ("turn.relay_port_min", usize::from(self.relay_port_min), 1_024, 65_535),
            (
                "turn.relay_port_max",
                usize::from(self.relay_port_max),
                usize::from(self.relay_port_min),
                65_535,
            ),
            ("turn.allocations_max", self.allocations_max, 1, 1_000_000),
            ("turn.allocations_per_peer_max", self.allocations_per_peer_max, 1, 10_000),
            ("turn.allocations_per_address_max", self.allocations_per_address_max, 1, 1_000_000),
            ("turn.peers_per_allocation_max", self.peers_per_allocation_max, 1, 4_096),
            ("turn.connections_max", self.connections_max, 1, 1_000_000),
            ("turn.answers_per_source", self.answers_per_source, 1, 1_000_000),
        ] {
            check_count(field, value, min, max)?;
        }
        let rates = [
            ("turn.bytes_per_second_per_peer", self.bytes_per_second_per_peer),
            ("turn.bytes_per_second", self.bytes_per_second),
        ];
        for (field, rate) in rates {
            if rate != 0 {
                check_size(field, rate, 1 << 10, 1 << 40)?;
            }
        }
        let (minute, month) = (Duration::from_secs(60), Duration::from_secs(30 * 24 * 3600));
        check_span("turn.credentials_lifetime", self.credentials_lifetime, minute, month)?;
        let wrong = |field, value: String, range: &str| {
            Err(ConfigError::Range { field, value, range: range.to_owned() })
        };
        let is_name = |text: &str| {
            !text.is_empty()
                && text.len() <= 128
                && text.bytes().all(|byte| byte.is_ascii_graphic())
        };
        if self.tls_cert.is_some() != self.tls_key.is_some() {
            return wrong("turn.tls_cert", "alone".to_owned(), "with turn.tls_key, or neither");
        }
        if !is_name(&self.realm) {
            let range = "1 to 128 visible ASCII characters";
            return wrong("turn.realm", self.realm.clone(), range);
        }
        if let Some(host) = self.host.as_deref().filter(|host| !is_name(host)) {
            return wrong("turn.host", host.to_owned(), "a name or an address");
        }
        if self.secret.as_deref().is_some_and(|secret| secret.len() < 16) {
            return wrong("turn.secret", "too short".to_owned(), "at least 16 characters");
        }
        let families =
            |is_v4: bool| self.external.iter().filter(|ip| ip.is_ipv4() == is_v4).count();
        if families(true) > 1 || families(false) > 1 {
            let value = format!("{} addresses", self.external.len());
            return wrong("turn.external", value, "one of IPv4 and one of IPv6");
        }
        let listen = self.listen.map(|listen| listen.ip());
        let is_one = listen.is_some_and(|ip| !ip.is_unspecified());
        let goes =
            |other: &IpAddr| is_one && listen.is_some_and(|ip| ip.is_ipv4() == other.is_ipv4());
        match self.other_ip {
            Some(other) if !goes(&other) || self.other_port == 0 => {
                let range = "with turn.listen at one address of the same family, and an other_port";
                wrong("turn.other_ip", other.to_string(), range)
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::GatewayConfig;

    #[test]
    fn ranges_are_checked() {
        let error = |text: &str| {
            GatewayConfig::from_toml(&format!("[turn]\n{text}")).unwrap_err().to_string()
        };
        assert!(error("realm = \"\"").starts_with("turn.realm"));
        assert!(error("tls_key = \"a.pem\"").starts_with("turn.tls_cert"));
        assert!(error("secret = \"short\"").starts_with("turn.secret"));
        assert!(error("relay_port_min = 80").starts_with("turn.relay_port_min"));
        assert!(error("relay_port_min = 50000\nrelay_port_max = 49999").contains("relay_port_max"));
        assert!(error("external = [\"192.0.2.1\", \"192.0.2.2\"]").contains("one of IPv4"));
        assert!(error("other_ip = \"192.0.2.1\"").starts_with("turn.other_ip"));
        assert!(error("bytes_per_second = \"12\"").starts_with("turn.bytes_per_second"));
        let good = "[turn]\nlisten = \"192.0.2.1:3478\"\nother_ip = \"192.0.2.2\"\n";
        GatewayConfig::from_toml(good).unwrap();
    }
}
