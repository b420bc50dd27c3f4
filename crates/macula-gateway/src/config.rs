//! The gateway's configuration: one commented TOML file, checked once.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use macula::GuardedRealm;

use crate::compat07::V07Config;
use crate::human;
use crate::turn::TurnConfig;

/// The UDP port that gateways listen on unless told otherwise.
pub const DEFAULT_PORT: u16 = 4433;

/// The commented default file; a test holds it equal to [`GatewayConfig::default`].
pub const DEFAULT_FILE: &str = include_str!("default.toml");

/// Everything that an operator can set. Unknown keys in a file are errors.
///
/// Read with [`GatewayConfig::from_toml`] or [`GatewayConfig::load`]; both return a checked value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct GatewayConfig {
    /// UDP address to listen on, `ADDR:PORT`. Default `[::]:4433`, which also takes IPv4; where
    /// the machine has no IPv6 that default falls back to `0.0.0.0:4433`. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Key file, created with mode 0600 when it does not exist. Default: `gateway.key` in the
    /// Macula directory (`$MACULA_HOME`, `$XDG_CONFIG_HOME/macula` or `~/.config/macula`). A
    /// relative path counts from the working directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// Realms that are admitted: open ones by name, guarded ones as `NAME@ROOTKEY`. Default: none
    /// named, and then *any* open realm that a peer asks for is admitted, and any guarded one that it
    /// has a grant for, up to [`Limits::realms_max`].
    pub realms: Vec<String>,
    /// Folder for the latest record of revocations of each guarded realm. Default: `revocations`
    /// beside the key file. Without the records of before, whoever was revoked gets in again until
    /// its grant expires: keep them, back them up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revocations: Option<PathBuf>,
    /// Limits of memory and patience.
    pub limits: Limits,
    /// What one peer and one realm may take, and all together.
    pub quotas: Quotas,
    /// The STUN and TURN server.
    pub turn: TurnConfig,
    /// The door for v0.7 clients.
    pub v07: V07Config,
    /// The way in for peers whose networks let no UDP pass.
    pub tunnel: Tunnel,
    /// What happens on SIGTERM.
    pub drain: Drain,
}

/// Limits: what peers can make the gateway hold, and how long it is patient.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Limits {
    /// Links (connected peers) at once. Default 16,384; 1 to 1,000,000. An idle link costs about
    /// 100 KiB.
    pub links_max: usize,
    /// What a peer's handshake may take. Default 5 s; 500 ms to 1 min.
    #[serde(with = "human::duration")]
    pub handshake_timeout: Duration,
    /// Handshakes at once; links do not count. Default 512; 4 to 100,000. From a quarter of it on
    /// peers must prove their address first; at the limit sources share them, one that has stalled
    /// for 2 s makes room, and the rest is refused. Too small: many peers at once have to try again.
    pub handshakes_max: usize,
    /// Handshakes per second. Default 2,000; 1 to 1,000,000. Above a quarter of it peers must prove
    /// their address first; at the limit they are refused. Too small: peers come back slowly
    /// after a restart. Too large: who has many addresses can keep a core busy.
    pub handshakes_per_second_max: u32,
    /// Handshakes per second of one IPv4 address or IPv6 /64, while there is load; more are not
    /// answered. Default 200; 1 to 1,000,000. Too small: many peers behind one NAT come back slowly.
    pub handshakes_per_source_max: u32,
    /// Handshakes per second of one key, five times as many at once; a key that comes back faster
    /// is turned away for a while. Default 20; 1 to 1,000,000.
    pub handshakes_per_key_max: u32,
    /// Realms at once. Default 1,024; 1 to 1,000,000.
    pub realms_max: usize,
    /// Subscriptions of one link, over all realms. Default 10,000; 1 to 10,000,000.
    pub subscriptions_per_link_max: usize,
    /// Registered procedures of one link, over all realms. Default 10,000; 1 to 10,000,000.
    pub registrations_per_link_max: usize,
    /// Calls that one link may have open at once. Default 16,384; 1 to 10,000,000.
    pub calls_per_link_max: usize,
    /// Calls open at once, over all links. Default 262,144; 1 to 100,000,000.
    pub calls_max: usize,
    /// Longest deadline of a call; longer ones are cut. Default 1 h; 1 s to 24 h.
    #[serde(with = "human::duration")]
    pub call_deadline_max: Duration,
    /// What may wait for one lane of one link, bytes. Above half of it, publishers with QoS 1 or a
    /// blocking subscriber wait; at the limit QoS 0 is dropped. Default 8 MiB; 64 KiB to 1 GiB. Too
    /// small: bursts are dropped. Too large: slow peers cost memory, lanes × this × slow links.
    #[serde(with = "human::size")]
    pub lane_queue_bytes_max: usize,
    /// What may wait on one link's control stream, bytes; beyond it the link is closed.
    /// Default 4 MiB; 64 KiB to 1 GiB.
    #[serde(with = "human::size")]
    pub control_queue_bytes_max: usize,
    /// Rings of one realm (QoS 1), bytes. Default 64 MiB; 1 MiB to 64 GiB.
    #[serde(with = "human::size")]
    pub ring_bytes_max: usize,
    /// Retained messages of one realm, bytes. Default 64 MiB; 1 MiB to 64 GiB.
    #[serde(with = "human::size")]
    pub retained_bytes_max: usize,
    /// Publishers × topics remembered for deduplication, and with QoS 1 under way, per realm.
    /// Default 65,536; 1,024 to 100,000,000. Too small: a publisher that returns after long may be
    /// delivered twice, and new ones with QoS 1 are refused.
    pub streams_max: usize,
    /// A subscriber that takes nothing for so long while QoS 1 messages wait for it is cut off.
    /// Default 10 s; 1 s to 10 min.
    #[serde(with = "human::duration")]
    pub stall_timeout: Duration,
    /// Time between application probes on a silent link; two misses close it. Default 10 s; 1 s to
    /// 10 min.
    #[serde(with = "human::duration")]
    pub probe_interval: Duration,
    /// After a restart: how long to wait for subscribers to return before replayed messages count
    /// as delivered. Default 12 s; 0 to 10 min. Shorter than peers need to reconnect: they may miss
    /// messages. Longer: publishers linger.
    #[serde(with = "human::duration")]
    pub successor_grace: Duration,
}

/// Quotas: what one peer and one realm may take from others, and what all may take together. Who
/// sends faster than it may is read later; who wants more than it may is refused with the reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Quotas {
    /// What the gateway may hold for its peers in queues, rings, retained messages and open calls,
    /// bytes. Beyond it the link that holds the most is closed, and publishes, calls and links are
    /// refused. Not counted: about 100 KiB a link, and what QUIC buffers. Default 1 GiB; 1 MiB to
    /// 1 TiB.
    #[serde(with = "human::size")]
    pub memory_max: usize,
    /// Largest message. Default 8 MiB; 1 KiB to 8 MiB.
    #[serde(with = "human::size")]
    pub message_bytes_max: usize,
    /// What one peer may send a second, bytes, its control messages apart. Default 0: no limit.
    #[serde(with = "human::size")]
    pub bytes_per_second_per_peer: usize,
    /// What all peers may publish in one realm a second, bytes. Default 0: no limit.
    #[serde(with = "human::size")]
    pub bytes_per_second_per_realm: usize,
    /// What is relayed for one peer a second, bytes; what comes faster is dropped. 0: no limit.
    /// Default 8 MiB.
    #[serde(with = "human::size")]
    pub relay_bytes_per_second_per_peer: usize,
    /// What is relayed for all peers a second, bytes, likewise. Default 128 MiB.
    #[serde(with = "human::size")]
    pub relay_bytes_per_second: usize,
    /// Changes of subscriptions and registrations by one peer a second, beyond a burst of twice all
    /// that it may have. Default 1,000; 1 to 1,000,000.
    pub changes_per_second: u64,
    /// Retained messages of one peer in one realm, bytes. Default 16 MiB; 1 KiB to 64 GiB.
    #[serde(with = "human::size")]
    pub retained_bytes_per_peer_max: usize,
    /// As `limits.streams_max`, for one peer. Default 32,768; 16 to 100,000,000.
    pub streams_per_peer_max: usize,
    /// Peers in one realm. Default 16,384; 1 to 1,000,000.
    pub peers_per_realm_max: usize,
    /// Subscriptions of all peers in one realm. Default 1,000,000; 1 to 100,000,000.
    pub subscriptions_per_realm_max: usize,
    /// Registered procedures of all peers in one realm. Default 100,000; 1 to 100,000,000.
    pub registrations_per_realm_max: usize,
    /// Calls open at once in one realm. Default 131,072; 1 to 100,000,000.
    pub calls_per_realm_max: usize,
    /// Peers without a link whose sessions wait for them. Default 16,384; 0 to 1,000,000.
    pub sessions_detached_max: usize,
}

/// Tunnels: peers whose networks let no UDP pass come over TLS and TCP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Tunnel {
    /// Whether they may. Default: yes.
    pub enabled: bool,
    /// TCP addresses to listen on. Peers try port 443, which firewalls mostly let pass, and the
    /// port number that the gateway has by UDP: others are not found. Default: none is named, and
    /// then it is the gateway's own address and port by TCP; if another program has it, the gateway
    /// goes on without.
    pub listen: Vec<SocketAddr>,
    /// PEM file of the certificate that is shown to firewalls that look at it. Default: one that is
    /// made at the start. Peers do not look at it: the gateway's key is proved inside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_cert: Option<PathBuf>,
    /// PEM file of its key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<PathBuf>,
    /// Tunnels at once. Default 4,096; 1 to 4,096. Each may hold some 300 KiB when its peer is slow.
    pub tunnels_max: usize,
    /// Tunnels from one IPv4 address or IPv6 /64 at once. Default 256; 1 to 4,096. Too small: not all
    /// peers of one office come in.
    pub tunnels_per_source_max: usize,
}

impl Default for Tunnel {
    fn default() -> Self {
        Self {
            enabled: true,
            listen: Vec::new(),
            tls_cert: None,
            tls_key: None,
            tunnels_max: 4_096,
            tunnels_per_source_max: 256,
        }
    }
}

/// Draining: on SIGTERM the gateway refuses new work, tells its peers, and ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Drain {
    /// Peers are told to come back at a random moment within this. Default 2 s; 0 to 10 min. For
    /// thousands of peers more, or they all come at once.
    #[serde(with = "human::duration")]
    pub reconnect_window: Duration,
    /// The gateway ends after this even if not all was sent. Default 3 s; 100 ms to 10 min.
    #[serde(with = "human::duration")]
    pub timeout: Duration,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), DEFAULT_PORT),
            key: None,
            realms: Vec::new(),
            revocations: None,
            limits: Limits::default(),
            quotas: Quotas::default(),
            turn: TurnConfig::default(),
            v07: V07Config::default(),
            tunnel: Tunnel::default(),
            drain: Drain::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            links_max: 16_384,
            handshake_timeout: Duration::from_secs(5),
            handshakes_max: 512,
            handshakes_per_second_max: 2_000,
            handshakes_per_source_max: 200,
            handshakes_per_key_max: 20,
            realms_max: 1_024,
            subscriptions_per_link_max: 10_000,
            registrations_per_link_max: 10_000,
            calls_per_link_max: 16_384,
            calls_max: 262_144,
            call_deadline_max: Duration::from_secs(3600),
            lane_queue_bytes_max: 8 << 20,
            control_queue_bytes_max: 4 << 20,
            ring_bytes_max: 64 << 20,
            retained_bytes_max: 64 << 20,
            streams_max: 65_536,
            stall_timeout: Duration::from_secs(10),
            probe_interval: Duration::from_secs(10),
            successor_grace: Duration::from_secs(12),
        }
    }
}

impl Default for Quotas {
    fn default() -> Self {
        Self {
            memory_max: 1 << 30,
            message_bytes_max: 8 << 20,
            bytes_per_second_per_peer: 0,
            bytes_per_second_per_realm: 0,
            relay_bytes_per_second_per_peer: 8 << 20,
            relay_bytes_per_second: 128 << 20,
            changes_per_second: 1_000,
            retained_bytes_per_peer_max: 16 << 20,
            streams_per_peer_max: 32_768,
            peers_per_realm_max: 16_384,
            subscriptions_per_realm_max: 1_000_000,
            registrations_per_realm_max: 100_000,
            calls_per_realm_max: 131_072,
            sessions_detached_max: 16_384,
        }
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self { reconnect_window: Duration::from_secs(2), timeout: Duration::from_secs(3) }
    }
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not TOML, an unknown key, or a value of the wrong kind; the text names line and column.
    #[error("{0}")]
    Syntax(String),
    /// A value outside its range.
    #[error("{field} = {value} is out of range: {range}")]
    Range {
        /// Which value.
        field: &'static str,
        /// What was given.
        value: String,
        /// What is allowed.
        range: String,
    },
    /// A realm's name cannot be used.
    #[error("realm name `{name}`: {reason}")]
    Realm {
        /// The name.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A guarded realm is not written as it should be.
    #[error("realm `{realm}`: {reason}")]
    GuardedRealm {
        /// What was given.
        realm: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl GatewayConfig {
    /// Reads and checks a TOML text.
    ///
    /// # Errors
    /// [`ConfigError::Syntax`] with line and column, [`ConfigError::Range`], [`ConfigError::Realm`].
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text)
            .map_err(|e| ConfigError::Syntax(e.to_string().trim_end().into()))?;
        config.check()?;
        Ok(config)
    }

    /// Reads and checks a file.
    ///
    /// # Errors
    /// As [`GatewayConfig::from_toml`], and [`ConfigError::Read`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::from_toml(&text)
    }

    /// Checks all ranges and names; call it again after changing fields.
    ///
    /// # Errors
    /// [`ConfigError::Range`], [`ConfigError::Realm`].
    pub fn check(&self) -> Result<(), ConfigError> {
        let l = &self.limits;
        check_count("limits.links_max", l.links_max, 1, 1_000_000)?;
        check_count("limits.handshakes_max", l.handshakes_max, 4, 100_000)?;
        for (field, rate) in [
            ("limits.handshakes_per_second_max", l.handshakes_per_second_max),
            ("limits.handshakes_per_source_max", l.handshakes_per_source_max),
            ("limits.handshakes_per_key_max", l.handshakes_per_key_max),
        ] {
            check_count(field, rate as usize, 1, 1_000_000)?;
        }
        check_count("limits.realms_max", l.realms_max, 1, 1_000_000)?;
        let per_link = l.subscriptions_per_link_max;
        check_count("limits.subscriptions_per_link_max", per_link, 1, 10_000_000)?;
        let per_link = l.registrations_per_link_max;
        check_count("limits.registrations_per_link_max", per_link, 1, 10_000_000)?;
        check_count("limits.calls_per_link_max", l.calls_per_link_max, 1, 10_000_000)?;
        check_count("limits.calls_max", l.calls_max, 1, 100_000_000)?;
        check_count("limits.streams_max", l.streams_max, 1_024, 100_000_000)?;
        let (lane, control) = (l.lane_queue_bytes_max, l.control_queue_bytes_max);
        check_size("limits.lane_queue_bytes_max", lane, 64 << 10, 1 << 30)?;
        check_size("limits.control_queue_bytes_max", control, 64 << 10, 1 << 30)?;
        check_size("limits.ring_bytes_max", l.ring_bytes_max, 1 << 20, 64 << 30)?;
        check_size("limits.retained_bytes_max", l.retained_bytes_max, 1 << 20, 64 << 30)?;
        let (second, minutes) = (Duration::from_secs(1), Duration::from_secs(600));
        let day = Duration::from_secs(24 * 3600);
        check_span("limits.call_deadline_max", l.call_deadline_max, second, day)?;
        let half_second = Duration::from_millis(500);
        check_span("limits.handshake_timeout", l.handshake_timeout, half_second, second * 60)?;
        check_span("limits.stall_timeout", l.stall_timeout, second, minutes)?;
        check_span("limits.probe_interval", l.probe_interval, second, minutes)?;
        check_span("limits.successor_grace", l.successor_grace, Duration::ZERO, minutes)?;
        let q = &self.quotas;
        check_size("quotas.memory_max", q.memory_max, 1 << 20, 1 << 40)?;
        check_size("quotas.message_bytes_max", q.message_bytes_max, 1 << 10, 8 << 20)?;
        let changes = usize::try_from(q.changes_per_second).unwrap_or(usize::MAX);
        check_count("quotas.changes_per_second", changes, 1, 1_000_000)?;
        let retained = q.retained_bytes_per_peer_max;
        check_size("quotas.retained_bytes_per_peer_max", retained, 1 << 10, 64 << 30)?;
        for (field, value, min, max) in [
            ("quotas.streams_per_peer_max", q.streams_per_peer_max, 16, 100_000_000),
            ("quotas.peers_per_realm_max", q.peers_per_realm_max, 1, 1_000_000),
            ("quotas.subscriptions_per_realm_max", q.subscriptions_per_realm_max, 1, 100_000_000),
            ("quotas.registrations_per_realm_max", q.registrations_per_realm_max, 1, 100_000_000),
            ("quotas.calls_per_realm_max", q.calls_per_realm_max, 1, 100_000_000),
            ("quotas.sessions_detached_max", q.sessions_detached_max, 0, 1_000_000),
        ] {
            check_count(field, value, min, max)?;
        }
        self.turn.check()?;
        self.v07.check(&self.realms)?;
        let tunnel = &self.tunnel;
        check_count("tunnel.tunnels_max", tunnel.tunnels_max, 1, 4_096)?;
        check_count("tunnel.tunnels_per_source_max", tunnel.tunnels_per_source_max, 1, 4_096)?;
        if tunnel.tls_cert.is_some() != tunnel.tls_key.is_some() {
            return Err(ConfigError::Range {
                field: "tunnel.tls_cert",
                value: "one of two files".to_owned(),
                range: "tunnel.tls_cert and tunnel.tls_key go together".to_owned(),
            });
        }
        let drain = &self.drain;
        check_span("drain.reconnect_window", drain.reconnect_window, Duration::ZERO, minutes)?;
        check_span("drain.timeout", drain.timeout, Duration::from_millis(100), minutes)?;
        if self.realms.len() > l.realms_max {
            return Err(ConfigError::Range {
                field: "realms",
                value: format!("{} names", self.realms.len()),
                range: format!("at most limits.realms_max = {}", l.realms_max),
            });
        }
        self.realms.iter().try_for_each(|realm| check_realm(realm))
    }

    /// The configuration as TOML, every value spelt out.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).unwrap_or_else(|e| format!("# cannot be written as TOML: {e}\n"))
    }
}

impl fmt::Display for GatewayConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_toml())
    }
}

/// Checks a realm that a gateway shall admit: the name of an open one, or `NAME@ROOTKEY`.
///
/// # Errors
/// [`ConfigError::Realm`] and [`ConfigError::GuardedRealm`].
pub fn check_realm(realm: &str) -> Result<(), ConfigError> {
    if !realm.contains('@') {
        return check_realm_name(realm);
    }
    let parsed: Result<GuardedRealm, _> = realm.parse();
    parsed.map(|_| ()).map_err(|error| ConfigError::GuardedRealm {
        realm: realm.to_owned(),
        reason: error.to_string(),
    })
}

/// Checks a realm's name: 1 to 128 ASCII letters, digits, `.`, `-` and `_`.
///
/// # Errors
/// [`ConfigError::Realm`].
pub fn check_realm_name(name: &str) -> Result<(), ConfigError> {
    let wrong = |reason| Err(ConfigError::Realm { name: name.to_owned(), reason });
    match name {
        "" => wrong("it is empty"),
        _ if name.len() > REALM_NAME_BYTES_MAX => wrong("it is longer than 128 bytes"),
        _ if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte)) => {
            wrong("only ASCII letters, digits, `.`, `-` and `_` are allowed")
        }
        _ => Ok(()),
    }
}

/// Length of a realm's name, bytes (docs/protocol §2).
const REALM_NAME_BYTES_MAX: usize = 128;

pub(crate) fn check_count(
    field: &'static str,
    value: usize,
    min: usize,
    max: usize,
) -> Result<(), ConfigError> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(ConfigError::Range { field, value: value.to_string(), range: format!("{min} to {max}") })
}

pub(crate) fn check_size(
    field: &'static str,
    value: usize,
    min: usize,
    max: usize,
) -> Result<(), ConfigError> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    let range = format!("{} to {}", human::format_size(min), human::format_size(max));
    Err(ConfigError::Range { field, value: human::format_size(value), range })
}

pub(crate) fn check_span(
    field: &'static str,
    value: Duration,
    min: Duration,
    max: Duration,
) -> Result<(), ConfigError> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    let range = format!("{} to {}", human::format_duration(min), human::format_duration(max));
    Err(ConfigError::Range { field, value: human::format_duration(value), range })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commented_default_file_equals_the_defaults() {
        assert_eq!(GatewayConfig::from_toml(DEFAULT_FILE).unwrap(), GatewayConfig::default());
    }

    #[test]
    fn the_operators_guide_shows_the_default_file() {
        let guide = include_str!("../../../docs/operate/README.md");
        assert!(guide.contains(DEFAULT_FILE), "docs/operate/README.md shows another default.toml");
    }

    #[test]
    fn the_default_file_names_every_key() {
        let spelt_out: toml::Table = GatewayConfig::default().to_toml().parse().unwrap();
        let file: toml::Table = DEFAULT_FILE.parse().unwrap();
        assert_eq!(file, spelt_out);
    }

    #[test]
    fn every_value_round_trips() {
        let mut config = GatewayConfig {
            realms: vec!["com.example".to_owned()],
            key: Some(PathBuf::from("/tmp/gateway.key")),
            ..GatewayConfig::default()
        };
        config.limits.stall_timeout = Duration::from_millis(2_500);
        config.limits.ring_bytes_max = (1 << 20) + 1;
        assert_eq!(GatewayConfig::from_toml(&config.to_toml()).unwrap(), config);
    }

    fn error_of(text: &str) -> String {
        GatewayConfig::from_toml(text).unwrap_err().to_string()
    }

    #[test]
    fn an_unknown_key_is_an_error_with_its_line() {
        let error = error_of("listen = \"[::]:1\"\n\n[limits]\nlinks_maximum = 3\n");
        assert!(error.contains("line 4") && error.contains("links_maximum"), "{error}");
    }

    #[test]
    fn a_value_of_the_wrong_kind_is_an_error_with_its_line() {
        let error = error_of("\n[drain]\ntimeout = \"soon\"\n");
        assert!(error.contains("line 3") && error.contains("soon"), "{error}");
        assert!(error_of("listen = \"nowhere\"").contains("line 1"));
    }

    #[test]
    fn ranges_are_checked() {
        let error = error_of("[limits]\nlinks_max = 0\n");
        assert_eq!(error, "limits.links_max = 0 is out of range: 1 to 1000000");
        let error = error_of("[limits]\nring_bytes_max = \"1KiB\"\n");
        assert_eq!(error, "limits.ring_bytes_max = 1KiB is out of range: 1MiB to 64GiB");
        let error = error_of("[limits]\nhandshakes_per_key_max = 0\n");
        assert_eq!(error, "limits.handshakes_per_key_max = 0 is out of range: 1 to 1000000");
        let error = error_of("[drain]\ntimeout = \"1ms\"\n");
        assert_eq!(error, "drain.timeout = 1ms is out of range: 100ms to 10m");
    }

    #[test]
    fn realm_names_are_checked() {
        assert!(error_of("realms = [\"\"]").contains("empty"));
        assert!(error_of("realms = [\"two words\"]").contains("only ASCII"));
        assert!(error_of("realms = [\"a@b\"]").contains("root key"));
        let guarded = format!("com.example.plant@{}", "y".repeat(52));
        check_realm(&guarded).unwrap();
        assert!(check_realm_name(&"x".repeat(129)).is_err());
        assert!(check_realm_name("com.example.energy").is_ok());
    }
}
