//! Which gateways to dial, and which keys they must have.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use macula_proto::EndpointId;

use crate::error::WrongKey;

/// How gateways are reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Via {
    /// By UDP, and where that does not pass by TLS over TCP. Goes back to UDP by itself.
    #[default]
    Auto,
    /// By UDP only.
    Udp,
    /// By TLS over TCP only, at port 443 or the gateway's own.
    Tls,
}

/// Where a gateway is: `HOST:PORT` or `ENDPOINTID@HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GatewayAddress {
    /// The key that it must have; without it, the one seen first is pinned.
    pub(crate) id: Option<EndpointId>,
    /// Name or address, and port.
    pub(crate) host_port: String,
}

impl FromStr for GatewayAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let malformed = || format!("gateway {text:?} is not HOST:PORT or ENDPOINTID@HOST:PORT");
        let (id, host_port) = match text.split_once('@') {
            Some((id, host_port)) => {
                let id = id.parse().map_err(|error| format!("{}: {error}", malformed()))?;
                (Some(id), host_port)
            }
            None => (None, text),
        };
        let (host, port) = host_port.rsplit_once(':').ok_or_else(malformed)?;
        let is_bare_v6 = host.contains(':') && !(host.starts_with('[') && host.ends_with(']'));
        let has_space = host_port.contains(|c: char| c.is_whitespace() || c.is_control());
        if host.is_empty() || is_bare_v6 || has_space || port.parse::<u16>().is_err() {
            return Err(malformed());
        }
        Ok(Self { id, host_port: host_port.to_owned() })
    }
}

impl fmt::Display for GatewayAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.host_port)
    }
}

/// The keys of gateways that are configured without one: pinned at first use.
#[derive(Debug, Default)]
pub(crate) struct KnownGateways {
    file: Option<PathBuf>,
    pins: BTreeMap<String, EndpointId>,
}

impl KnownGateways {
    /// Reads a pin file, one `HOST:PORT ENDPOINTID` a line; one that does not exist is empty.
    /// Without a file the pins last as long as this value.
    pub(crate) fn load(file: Option<&Path>) -> Result<Self, String> {
        let Some(path) = file else { return Ok(Self::default()) };
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            Err(error) => {
                return Err(format!("known gateways {}: cannot be read: {error}", path.display()));
            }
        };
        let mut pins = BTreeMap::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let pin = line.split_once(char::is_whitespace).and_then(|(host_port, id)| {
                id.trim().parse::<EndpointId>().ok().map(|id| (host_port.to_owned(), id))
            });
            let Some((host_port, id)) = pin else {
                let (path, number) = (path.display(), index + 1);
                return Err(format!(
                    "known gateways {path}: line {number} is not HOST:PORT ENDPOINTID"
                ));
            };
            pins.insert(host_port, id);
        }
        Ok(Self { file: Some(path.to_owned()), pins })
    }

    /// The key that a gateway must have, as far as known.
    pub(crate) fn expected(&self, gateway: &GatewayAddress) -> Option<EndpointId> {
        gateway.id.or_else(|| self.pins.get(&gateway.host_port).copied())
    }

    /// Checks the key that a gateway has shown; pins it at first use. A pin that cannot be written
    /// holds as long as this value, with a warning.
    pub(crate) fn check(
        &mut self,
        gateway: &GatewayAddress,
        found: EndpointId,
    ) -> Result<(), WrongKey> {
        match self.expected(gateway) {
            Some(expected) if expected == found => Ok(()),
            Some(expected) => Err(self.wrong_key(gateway, expected, Some(found))),
            None => {
                self.pins.insert(gateway.host_port.clone(), found);
                if let Err(error) = self.append(&gateway.host_port, found) {
                    tracing::warn!(%error, "the key of a gateway cannot be stored");
                }
                Ok(())
            }
        }
    }

    /// The error for a gateway that has another key than expected.
    pub(crate) fn wrong_key(
        &self,
        gateway: &GatewayAddress,
        expected: EndpointId,
        found: Option<EndpointId>,
    ) -> WrongKey {
        let pin_file = if gateway.id.is_some() { None } else { self.file.clone() };
        WrongKey { gateway: gateway.to_string(), expected, found, pin_file }
    }

    fn append(&self, host_port: &str, id: EndpointId) -> io::Result<()> {
        let Some(path) = &self.file else { return Ok(()) };
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        // One write, so that two processes cannot mix their lines.
        file.write_all(format!("{host_port} {id}\n").as_bytes())?;
        file.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_dir::TestDir;

    fn id(byte: u8) -> EndpointId {
        EndpointId::from_bytes([byte; 32])
    }

    #[test]
    fn addresses_are_checked() {
        for text in ["gw.example.com:4433", "10.0.0.1:1", "[::1]:4433"] {
            let gateway: GatewayAddress = text.parse().unwrap();
            assert_eq!((gateway.id, gateway.host_port.as_str()), (None, text));
        }
        let with_id: GatewayAddress = format!("{}@gw:1", id(7)).parse().unwrap();
        assert_eq!(with_id.id, Some(id(7)));
        for text in ["", "gw", ":1", "gw:", "gw:x", "gw:70000", "::1:4433", "x@gw:1", "g w:1"] {
            assert!(text.parse::<GatewayAddress>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_first_key_is_pinned_and_survives_in_the_file() {
        let dir = TestDir::new("pins");
        let (gateway, path) = ("gw:1".parse().unwrap(), dir.file("known"));
        let mut pins = KnownGateways::load(Some(&path)).unwrap();
        pins.check(&gateway, id(1)).unwrap();
        let mut pins = KnownGateways::load(Some(&path)).unwrap();
        pins.check(&gateway, id(1)).unwrap();
        let wrong = pins.check(&gateway, id(2)).unwrap_err();
        assert_eq!((wrong.expected, wrong.found), (id(1), Some(id(2))));
        assert_eq!(wrong.pin_file, Some(path));
    }

    #[test]
    fn a_configured_key_needs_no_pin() {
        let mut pins = KnownGateways::default();
        let gateway = format!("{}@gw:1", id(1)).parse().unwrap();
        assert!(pins.check(&gateway, id(2)).is_err());
        pins.check(&gateway, id(1)).unwrap();
        assert!(pins.pins.is_empty());
    }

    #[test]
    fn a_malformed_pin_file_names_the_line() {
        let dir = TestDir::new("pins-bad");
        dir.write("known", "# gateways\n\ngw:1 nonsense\n");
        let error = KnownGateways::load(Some(&dir.file("known"))).unwrap_err();
        assert!(error.contains("line 3"), "{error}");
    }
}
