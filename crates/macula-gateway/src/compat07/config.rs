//! Settings of the v0.7 door.

use std::net::SocketAddr;
use std::time::Duration;

use macula::GuardedRealm;
use serde::{Deserialize, Serialize};

use super::core::door;
use crate::config::{ConfigError, check_count, check_realm, check_size};
use crate::human;

/// The UDP port that v0.7 clients are mostly configured for.
pub const DEFAULT_PORT: u16 = 9443;

/// Who is sent messages although its program may be one that crashes on them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum LegacyDelivery {
    /// Not to clients that show the mark of v0.7.4 to v0.7.14: a STORE under the SHA-256 of a topic
    /// that they subscribed to. The default.
    #[default]
    Auto,
    /// To everybody.
    Always,
    /// To nobody.
    Never,
}

/// The door for v0.7 clients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct V07Config {
    /// UDP address to listen on; v0.7 clients are mostly configured for port 9443. Not the gateway's
    /// own. Default: none, the door is closed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    /// Realms that v0.7 clients get into: open ones by name, guarded ones as `NAME@ROOTKEY`, all among
    /// the gateway's if that names any. Clients write the name only. Default: the open ones that the
    /// gateway names; if it names none, any that a client asks for, up to `other_realms_max`.
    pub realms: Vec<String>,
    /// See [`LegacyDelivery`].
    pub legacy_delivery: LegacyDelivery,
    /// Names of procedures that v0.7 clients provide for native peers. On the wire of v0.7 a
    /// provider says only the hash of a name.
    pub procedures: Vec<String>,
    /// Realms that clients may name where none is configured. Default 16; 0 to 1,024.
    pub other_realms_max: usize,
    /// Connections at once. Default 4,096; 1 to 1,000,000.
    pub connections_max: usize,
    /// Connections at once from one IPv4 address or IPv6 /64. Default 256; 1 to 1,000,000.
    pub connections_per_address_max: usize,
    /// Handshakes a second of all. Default 500; 1 to 1,000,000.
    pub handshakes_per_second_max: u32,
    /// Handshakes a second of one IPv4 address or IPv6 /64, under load. Default 50; 1 to 1,000,000.
    pub handshakes_per_source_max: u32,
    /// Largest frame. Default 1 MiB; 1 KiB to 8 MiB.
    #[serde(with = "human::size")]
    pub message_bytes_max: usize,
    /// What all clients may have begun to send in frames that are not complete. Default 64 MiB; 1 MiB
    /// to 64 GiB.
    #[serde(with = "human::size")]
    pub partial_bytes_max: usize,
    /// What may wait for a stream of a client, and twice that for all its streams; above it the oldest
    /// messages are dropped. Default 256 KiB; 4 KiB to 64 MiB.
    #[serde(with = "human::size")]
    pub queue_bytes_max: usize,
    /// What may wait for all clients together; above it messages are dropped. Default 256 MiB; 1 MiB to
    /// 64 GiB.
    #[serde(with = "human::size")]
    pub queued_bytes_max: usize,
    /// What a client may send a second; who sends faster is read later. Default 4 MiB; 0: no limit.
    #[serde(with = "human::size")]
    pub bytes_per_second_per_client: usize,
    /// Subscriptions of a client. Default 256; 1 to 65,536.
    pub subscriptions_per_client_max: usize,
    /// Different patterns with wildcards in a realm. Default 4,096; 1 to 1,000,000.
    pub wildcards_per_realm_max: usize,
    /// Different topics on which clients publish in a realm, since the start; messages on more do not
    /// reach native peers. Default 131,072; 1 to 100,000,000.
    pub topics_per_realm_max: usize,
    /// Values that a client stores: one for each subscription and each procedure. Default 512; 1 to
    /// 65,536.
    pub values_per_client_max: usize,
    /// Calls of a client, and calls given to it, at once. Default 64; 1 to 65,536.
    pub calls_per_client_max: usize,
}

impl Default for V07Config {
    fn default() -> Self {
        Self {
            listen: None,
            realms: Vec::new(),
            legacy_delivery: LegacyDelivery::Auto,
            procedures: Vec::new(),
            other_realms_max: 16,
            connections_max: 4_096,
            connections_per_address_max: 256,
            handshakes_per_second_max: 500,
            handshakes_per_source_max: 50,
            message_bytes_max: 1 << 20,
            partial_bytes_max: 64 << 20,
            queue_bytes_max: 256 << 10,
            queued_bytes_max: 256 << 20,
            bytes_per_second_per_client: 4 << 20,
            subscriptions_per_client_max: 256,
            wildcards_per_realm_max: 4_096,
            topics_per_realm_max: 131_072,
            values_per_client_max: 512,
            calls_per_client_max: 64,
        }
    }
}

/// A realm that the door leads into.
#[derive(Clone, Debug)]
pub(super) enum DoorRealm {
    Open(String),
    Guarded(GuardedRealm),
}

impl DoorRealm {
    /// What clients call it.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Open(name) => name,
            Self::Guarded(realm) => realm.name.as_str(),
        }
    }
}

impl V07Config {
    /// The realms that the door leads into, given those that the gateway names; none: any open one.
    pub(super) fn door_realms(&self, gateway: &[String]) -> Vec<DoorRealm> {
        let is_open = |realm: &&String| !realm.contains('@');
        // A guarded realm has to be named for the door as well: v0.7 cannot show who somebody is.
        let named: Vec<&String> = match self.realms.as_slice() {
            [] => gateway.iter().filter(is_open).collect(),
            named => named.iter().collect(),
        };
        let parsed = |realm: &String| match realm.parse() {
            Ok(guarded) => DoorRealm::Guarded(guarded),
            Err(_) => DoorRealm::Open(realm.clone()),
        };
        named.into_iter().map(parsed).collect()
    }

    /// Whether clients may name realms that are not configured.
    pub(super) fn takes_any_realm(&self, gateway: &[String]) -> bool {
        self.realms.is_empty() && gateway.is_empty()
    }

    /// The settings of what is behind the sockets.
    pub(super) fn door(&self, gateway: &[String]) -> door::Config {
        let takes_any = self.takes_any_realm(gateway);
        let realms = self.door_realms(gateway);
        door::Config {
            realms: realms.iter().map(|realm| realm.name().to_owned()).collect(),
            other_realms_max: if takes_any { self.other_realms_max } else { 0 },
            legacy_delivery: match self.legacy_delivery {
                LegacyDelivery::Auto => door::LegacyDelivery::Auto,
                LegacyDelivery::Always => door::LegacyDelivery::Always,
                LegacyDelivery::Never => door::LegacyDelivery::Never,
            },
            procedures: self.procedures.clone(),
            payload_bytes_max: self.message_bytes_max,
            partial_bytes_max: self.partial_bytes_max,
            subscriptions_per_client_max: self.subscriptions_per_client_max,
            wildcards_per_realm_max: self.wildcards_per_realm_max,
            topics_per_realm_max: self.topics_per_realm_max,
            values_per_client_max: self.values_per_client_max,
            calls_per_client_max: self.calls_per_client_max,
            held_bytes_max: self.queue_bytes_max,
            ..door::Config::default()
        }
    }

    pub(crate) fn check(&self, gateway: &[String]) -> Result<(), ConfigError> {
        for (field, value, min, max) in [
            ("v07.other_realms_max", self.other_realms_max, 0, 1_024),
            ("v07.connections_max", self.connections_max, 1, 1_000_000),
            ("v07.connections_per_address_max", self.connections_per_address_max, 1, 1_000_000),
            (
                "v07.handshakes_per_second_max",
                self.handshakes_per_second_max as usize,
                1,
                1_000_000,
            ),
            (
                "v07.handshakes_per_source_max",
                self.handshakes_per_source_max as usize,
                1,
                1_000_000,
            ),
            ("v07.subscriptions_per_client_max", self.subscriptions_per_client_max, 1, 65_536),
            ("v07.wildcards_per_realm_max", self.wildcards_per_realm_max, 1, 1_000_000),
            ("v07.topics_per_realm_max", self.topics_per_realm_max, 1, 100_000_000),
            ("v07.values_per_client_max", self.values_per_client_max, 1, 65_536),
            ("v07.calls_per_client_max", self.calls_per_client_max, 1, 65_536),
        ] {
            check_count(field, value, min, max)?;
        }
        check_size("v07.message_bytes_max", self.message_bytes_max, 1 << 10, 8 << 20)?;
        check_size("v07.partial_bytes_max", self.partial_bytes_max, 1 << 20, 64 << 30)?;
        check_size("v07.queue_bytes_max", self.queue_bytes_max, 4 << 10, 64 << 20)?;
        check_size("v07.queued_bytes_max", self.queued_bytes_max, 1 << 20, 64 << 30)?;
        let rate = self.bytes_per_second_per_client;
        if rate != 0 {
            check_size("v07.bytes_per_second_per_client", rate, 1 << 10, 1 << 40)?;
        }
        self.realms.iter().try_for_each(|realm| check_realm(realm))?;
        let wrong = |value: &str, range: &str| ConfigError::Range {
            field: "v07.realms",
            value: value.to_owned(),
            range: range.to_owned(),
        };
        if let Some(foreign) =
            self.realms.iter().find(|it| !gateway.is_empty() && !gateway.contains(it))
        {
            return Err(wrong(foreign, "among the gateway's `realms`, written the same way"));
        }
        let mut names: Vec<String> =
            self.door_realms(gateway).iter().map(|realm| realm.name().to_owned()).collect();
        names.sort();
        if let Some([twice, _]) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(wrong(twice, "each name once: v0.7 clients know no root keys"));
        }
        Ok(())
    }
}

/// What a v0.7 client gives a call.
pub(super) const CALL_TIMEOUT: Duration = door::CALL_TIMEOUT;

#[cfg(test)]
mod tests {
    use crate::GatewayConfig;

    fn read(text: &str) -> Result<GatewayConfig, String> {
        GatewayConfig::from_toml(text).map_err(|error| error.to_string())
    }

    #[test]
    fn guarded_realms_have_to_be_named_for_the_door() {
        let guarded = format!("com.example.plant@{}", "y".repeat(52));
        let names = |config: &GatewayConfig| {
            let realms = config.v07.door_realms(&config.realms);
            realms.iter().map(|realm| realm.name().to_owned()).collect::<Vec<_>>()
        };
        let config = read(&format!("realms = [\"lab\", \"{guarded}\"]")).unwrap();
        assert_eq!(names(&config), ["lab"]);
        assert!(!config.v07.takes_any_realm(&config.realms));
        let named = format!("realms = [\"lab\", \"{guarded}\"]\n[v07]\nrealms = [\"{guarded}\"]");
        assert_eq!(names(&read(&named).unwrap()), ["com.example.plant"]);
        assert!(read("").unwrap().v07.takes_any_realm(&[]));
    }

    #[test]
    fn faults_are_told() {
        let error = |text: &str| read(text).unwrap_err();
        assert!(error("realms = [\"a\"]\n[v07]\nrealms = [\"b\"]").starts_with("v07.realms = b"));
        assert!(error("[v07]\nrealms = [\"a\", \"a\"]").contains("each name once"));
        assert!(error("[v07]\nlegacy_delivery = \"perhaps\"").contains("auto"));
        assert!(error("[v07]\nqueue_bytes_max = \"1\"").starts_with("v07.queue_bytes_max"));
        read("[v07]\nlegacy_delivery = \"never\"\nlisten = \"[::]:9443\"").unwrap();
    }
}
