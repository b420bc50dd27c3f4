//! Gateway addresses as typed: `HOST`, `HOST:PORT`, `[IPV6]:PORT`, with or without `ENDPOINTID@`.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use macula::EndpointId;
use macula_gateway::config::DEFAULT_PORT;

/// Where a gateway is, and who it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GatewayAddress {
    /// The key it must have; `None`: the one pinned at first use.
    pub(crate) id: Option<EndpointId>,
    /// Name or literal address, without brackets.
    pub(crate) host: String,
    /// UDP port.
    pub(crate) port: u16,
}

impl GatewayAddress {
    /// `HOST:PORT`, IPv6 literals in brackets: what resolvers and the known-gateways file take.
    pub(crate) fn host_port(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for GatewayAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(id) = &self.id {
            write!(f, "{id}@")?;
        }
        f.write_str(&self.host_port())
    }
}

impl FromStr for GatewayAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (id, rest) = match text.split_once('@') {
            Some((id, rest)) => {
                let id = id.parse().map_err(|e| format!("`{id}` is not an endpoint id: {e}"))?;
                (Some(id), rest)
            }
            None => (None, text),
        };
        let (host, port) = split_port(rest)?;
        let well_formed = !host.is_empty()
            && host.len() <= 253
            && host.chars().all(|c| c.is_alphanumeric() || "-._:%".contains(c));
        if !well_formed {
            return Err(format!("`{host}` is not a host; write HOST:PORT or ENDPOINTID@HOST:PORT"));
        }
        // Names are compared in the known-gateways file, so one spelling each.
        Ok(Self { id, host: host.to_lowercase(), port })
    }
}

/// Splits the port off; a bare IPv6 literal needs no brackets when there is no port.
fn split_port(text: &str) -> Result<(&str, u16), String> {
    if let Some(bracketed) = text.strip_prefix('[') {
        let (host, rest) = bracketed
            .split_once(']')
            .ok_or_else(|| format!("`{text}` lacks the closing bracket of an IPv6 address"))?;
        let plain = host.split('%').next().unwrap_or(host);
        if plain.parse::<Ipv6Addr>().is_err() {
            return Err(format!("`{host}` is not an IPv6 address"));
        }
        return match rest.strip_prefix(':') {
            Some(port) => Ok((host, parse_port(port)?)),
            None if rest.is_empty() => Ok((host, DEFAULT_PORT)),
            None => Err(format!("`{rest}` after the bracket is not :PORT")),
        };
    }
    match text.split_once(':') {
        None => Ok((text, DEFAULT_PORT)),
        Some((_, port)) if port.contains(':') => match text.parse::<Ipv6Addr>() {
            Ok(_) => Ok((text, DEFAULT_PORT)),
            Err(_) => Err(format!("`{text}` is not HOST:PORT; write IPv6 as [ADDRESS]:PORT")),
        },
        Some((host, port)) => Ok((host, parse_port(port)?)),
    }
}

fn parse_port(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err(format!("`{text}` is not a port; use 1 to 65535")),
        Ok(port) => Ok(port),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, host: &str, port: u16) {
        let address: GatewayAddress = text.parse().unwrap();
        assert_eq!((address.host.as_str(), address.port), (host, port), "{text}");
        assert_eq!(address.to_string().parse::<GatewayAddress>().unwrap(), address);
    }

    #[test]
    fn every_form_parses() {
        check("localhost", "localhost", 4433);
        check("Gateway.Example.COM:5000", "gateway.example.com", 5000);
        check("127.0.0.1:1", "127.0.0.1", 1);
        check("[::1]:5000", "::1", 5000);
        check("[::1]", "::1", 4433);
        check("::1", "::1", 4433);
        check("[fe80::1%eth0]:7", "fe80::1%eth0", 7);
    }

    #[test]
    fn an_id_pins_the_gateway() {
        let id = EndpointId::from_bytes([7; 32]);
        let address: GatewayAddress = format!("{id}@[::1]:9").parse().unwrap();
        assert_eq!(address.id, Some(id));
        assert_eq!(address.host_port(), "[::1]:9");
        assert_eq!(address.to_string(), format!("{id}@[::1]:9"));
    }

    #[test]
    fn wrong_forms_say_what_is_wrong() {
        for text in [
            "",
            ":4433",
            "host:",
            "host:0",
            "host:65536",
            "host:http",
            "[::1",
            "[::1]4433",
            "[nothing]:1",
            "a:b:c",
            "not-an-id@host",
            "two words",
            "host:1:2",
            "a/b",
            "@host",
        ] {
            assert!(text.parse::<GatewayAddress>().is_err(), "{text}");
        }
    }
}
