//! URIs of STUN and TURN servers (RFC 7064, RFC 7065).

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

/// Default port of `stun:` and `turn:`.
const PORT: u16 = 3478;
/// Default port of `turns:`.
const TLS_PORT: u16 = 5349;
/// Longest URI that is read, bytes: a name has 253 at most.
const URI_BYTES_MAX: usize = 320;

/// How to talk to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// Datagrams.
    Udp,
    /// A TCP connection.
    Tcp,
    /// TLS over TCP.
    Tls,
}

/// Where a STUN server is: `stun:HOST[:PORT]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StunUri {
    /// Name or address; IPv6 without brackets.
    pub host: String,
    /// UDP port.
    pub port: u16,
}

/// Where a TURN server is: `turn:HOST[:PORT][?transport=udp|tcp]` or
/// `turns:HOST[:PORT][?transport=tcp]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TurnUri {
    /// Name or address; IPv6 without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
    /// How to talk to it.
    pub transport: Transport,
}

/// A text is no URI of such a server.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` {what}")]
pub struct UriError {
    text: String,
    what: &'static str,
}

impl StunUri {
    fn read(text: &str) -> Result<Self, &'static str> {
        let rest = strip_scheme(text, "stun:")
            .ok_or("is not a STUN server; write stun:HOST or stun:HOST:PORT")?;
        if rest.contains('?') {
            return Err("has a query, which stun: does not have; remove what follows the `?`");
        }
        let (host, port) = host_port(rest, PORT)?;
        Ok(Self { host, port })
    }
}

impl TurnUri {
    fn read(text: &str) -> Result<Self, &'static str> {
        let (rest, is_tls) = match (strip_scheme(text, "turn:"), strip_scheme(text, "turns:")) {
            (Some(rest), _) => (rest, false),
            (None, Some(rest)) => (rest, true),
            (None, None) => {
                return Err(
                    "is not a TURN server; write turn:HOST:PORT?transport=udp, or tcp, or \
                            turns:HOST:PORT for TLS",
                );
            }
        };
        let (authority, query) = match rest.split_once('?') {
            Some((authority, query)) => (authority, Some(query)),
            None => (rest, None),
        };
        let transport = match (query, is_tls) {
            (None | Some("transport=udp"), false) => Transport::Udp,
            (Some("transport=tcp"), false) => Transport::Tcp,
            (None | Some("transport=tcp"), true) => Transport::Tls,
            (Some("transport=udp"), true) => {
                return Err("asks for DTLS, which is not supported; use ?transport=tcp");
            }
            (Some(_), _) => return Err("has another query than ?transport=udp or ?transport=tcp"),
        };
        let (host, port) = host_port(authority, if is_tls { TLS_PORT } else { PORT })?;
        Ok(Self { host, port, transport })
    }
}

/// Schemes are case-insensitive (RFC 3986 §3.1).
fn strip_scheme<'a>(text: &'a str, scheme: &str) -> Option<&'a str> {
    let (head, rest) = text.split_at_checked(scheme.len())?;
    head.eq_ignore_ascii_case(scheme).then_some(rest)
}

fn host_port(text: &str, default: u16) -> Result<(String, u16), &'static str> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or("has a `[` without its `]`")?;
        let is_v6 = host.parse::<Ipv6Addr>().is_ok();
        let port = rest.strip_prefix(':');
        if !is_v6 || (port.is_none() && !rest.is_empty()) {
            return Err("has no IPv6 address between the brackets, or no port behind them");
        }
        (host, port)
    } else {
        match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    let port = match port {
        None => default,
        Some(text) => {
            text.parse().ok().filter(|port| *port != 0).ok_or("has no port 1 to 65535")?
        }
    };
    // What a name, an IPv4 address or (in brackets) an IPv6 address is made of.
    let is_host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    if host.is_empty() || !host.chars().all(is_host) {
        return Err("has no host that could be one");
    }
    Ok((host.to_owned(), port))
}

impl FromStr for StunUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        read(text, Self::read)
    }
}

impl FromStr for TurnUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        read(text, Self::read)
    }
}

fn read<T>(text: &str, read: fn(&str) -> Result<T, &'static str>) -> Result<T, UriError> {
    if text.len() > URI_BYTES_MAX {
        let text = text.chars().take(40).collect();
        return Err(UriError { text, what: "and so on is too long for a server's URI" });
    }
    read(text).map_err(|what| UriError { text: text.to_owned(), what })
}

/// An address of IPv6 stands in brackets.
struct Host<'a>(&'a str);

impl fmt::Display for Host<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.contains(':') { write!(f, "[{}]", self.0) } else { f.write_str(self.0) }
    }
}

impl fmt::Display for StunUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stun:{}:{}", Host(&self.host), self.port)
    }
}

impl fmt::Display for TurnUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, transport) = match self.transport {
            Transport::Udp => ("turn", "udp"),
            Transport::Tcp => ("turn", "tcp"),
            Transport::Tls => ("turns", "tcp"),
        };
        write!(f, "{scheme}:{}:{}?transport={transport}", Host(&self.host), self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read_and_written_in_full() {
        let turn = |text: &str| text.parse::<TurnUri>().unwrap().to_string();
        assert_eq!(turn("turn:gw.example.com"), "turn:gw.example.com:3478?transport=udp");
        assert_eq!(turn("TURN:192.0.2.1:1?transport=tcp"), "turn:192.0.2.1:1?transport=tcp");
        assert_eq!(turn("turns:gw.example.com"), "turns:gw.example.com:5349?transport=tcp");
        assert_eq!(turn("turn:[2001:db8::1]:7"), "turn:[2001:db8::1]:7?transport=udp");
        assert_eq!(turn("turns:[2001:db8::1]"), "turns:[2001:db8::1]:5349?transport=tcp");
        assert_eq!("stun:a".parse::<StunUri>().unwrap().to_string(), "stun:a:3478");
    }

    #[test]
    fn what_is_none_is_refused() {
        let long = format!("turn:{}", "a".repeat(400));
        for text in [
            "",
            "turn",
            "turn:",
            "turn::1",
            "turn:a:0",
            "turn:a:70000",
            "turn:a:b",
            "turn:[::1",
            "turn:[a]",
            "turn:[::1]9",
            "turn:a?transport=sctp",
            "turns:a?transport=udp",
            "turn:a/b",
            "turn://a",
            "stun:a",
            "http:a",
            "turn:ä",
            &long,
        ] {
            assert!(text.parse::<TurnUri>().is_err(), "{text}");
        }
        for text in ["stun:", "stun:a?transport=udp", "turn:a", "stun:a:x", "é"] {
            assert!(text.parse::<StunUri>().is_err(), "{text}");
        }
    }
}
