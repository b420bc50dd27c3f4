//! What a gateway offers against NATs: STUN, and TURN with credentials.

use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use macula_transport::{Endpoint, StunServer, TurnServer};
use serde_json::Value;

use crate::call::CallBuilder;
use crate::error::CallError;
use crate::shared::{Command, Owner};

/// Built-in procedure of gateways (docs/protocol §6.6).
const PROCEDURE: &str = "macula.turn";
/// Credentials that were not given are asked for again after this.
const RETRY: Duration = Duration::from_secs(30);
/// ... and those that were are asked for anew no more often.
const RENEWAL_MIN: Duration = Duration::from_secs(10);

/// Has the endpoint use the gateway's TURN server, with credentials that are always good, after
/// `others`. Ends with the owner.
pub(crate) async fn follow(owner: Weak<Owner>, endpoint: Arc<Endpoint>, others: Vec<TurnServer>) {
    loop {
        let Some(asker) = owner.upgrade() else { return };
        let stopping = asker.shared.stopping.clone();
        let asked = stopping.run_until_cancelled(NatServices::ask(&asker)).await;
        drop(asker);
        let wait = match asked {
            None => return,
            Some(Ok(NatServices { turn: Some(turn), .. })) => {
                let servers = others.iter().cloned().chain(turn.servers());
                endpoint.set_turn_servers(servers.collect());
                (turn.lifetime / 2).max(RENEWAL_MIN)
            }
            Some(Ok(_)) => RETRY,
            Some(Err(error)) => {
                tracing::debug!(%error, "the gateway's TURN server");
                RETRY
            }
        };
        if stopping.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
            return;
        }
    }
}

/// Credentials of a TURN server (RFC 8656), good until they expire. Any TURN client can use them.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TurnCredentials {
    /// Where (RFC 7065), for example `turn:gw.example.com:3478?transport=udp`.
    pub uris: Vec<String>,
    /// Username; says when it expires.
    pub username: String,
    /// Password.
    pub password: String,
    /// Realm of the server.
    pub realm: String,
    /// How long they hold, from the moment of the answer. Ask again before.
    pub lifetime: Duration,
}

impl TurnCredentials {
    /// The servers, each with these credentials; those of kinds that are not known are left out.
    pub fn servers(&self) -> impl Iterator<Item = TurnServer> + '_ {
        let uris = self.uris.iter().filter_map(|uri| uri.parse().ok());
        uris.map(|uri| TurnServer {
            uri,
            username: self.username.clone(),
            password: self.password.clone(),
        })
    }
}

impl std::fmt::Debug for TurnCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TurnCredentials")
            .field("uris", &self.uris)
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// What a gateway offers against NATs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NatServices {
    /// Name or address of the servers: what the gateway says, or what was dialled.
    pub host: String,
    /// UDP port of the STUN server.
    pub stun_port: u16,
    /// A second UDP port of the STUN server at the same address, to tell how NATs map and filter.
    pub stun_other_port: Option<u16>,
    /// How to be relayed; only for members of a realm.
    pub turn: Option<TurnCredentials>,
}

impl NatServices {
    /// Asks the gateway that the endpoint is attached to.
    pub(crate) async fn ask(owner: &Arc<Owner>) -> Result<Self, CallError> {
        let answer =
            CallBuilder::new(owner.clone(), None, PROCEDURE).idempotent(true).send().await?;
        let status = owner.shared.ask(|answer| Command::Status { answer }).await;
        let gateway = status.ok().and_then(|status| status.gateway).unwrap_or_default();
        let host = gateway.rsplit_once(':').map_or("", |(host, _)| host);
        Self::read(&answer, host).ok_or_else(|| CallError::Internal {
            message: "the gateway's answer about STUN and TURN is not understood".to_owned(),
            retry_safe: false,
        })
    }

    /// The STUN server, once for each address of its name.
    async fn stun_servers(&self) -> Vec<StunServer> {
        let host = self.host.trim_matches(['[', ']']);
        let found = tokio::net::lookup_host((host, self.stun_port)).await;
        let addresses: Vec<SocketAddr> = found.map(Iterator::collect).unwrap_or_default();
        let server = |address| StunServer {
            name: self.host.clone(),
            address,
            other_port: self.stun_other_port,
        };
        addresses.into_iter().map(server).collect()
    }

    /// Reads an answer; `dialled` is the host in it unless the gateway names another.
    fn read(answer: &[u8], dialled: &str) -> Option<Self> {
        let answer: Value = serde_json::from_slice(answer).ok()?;
        let port = |value: &Value| u16::try_from(value.as_u64()?).ok().filter(|port| *port != 0);
        let host = answer["host"].as_str().unwrap_or(dialled);
        // Addresses of IPv6 stand in brackets in URIs.
        let host = if host.contains(':') && !host.starts_with('[') {
            format!("[{host}]")
        } else {
            host.to_owned()
        };
        let turn = match &answer["turn"] {
            Value::Null => None,
            turn => {
                let text = |name: &str| turn[name].as_str().map(str::to_owned);
                let servers = turn["servers"].as_array()?.iter();
                let uris = servers.filter_map(|server| {
                    let scheme = server["scheme"].as_str()?;
                    let transport = server["transport"].as_str()?;
                    let port = port(&server["port"])?;
                    Some(format!("{scheme}:{host}:{port}?transport={transport}"))
                });
                Some(TurnCredentials {
                    uris: uris.collect(),
                    username: text("username")?,
                    password: text("password")?,
                    realm: text("realm")?,
                    lifetime: Duration::from_secs(turn["lifetime_s"].as_u64()?),
                })
            }
        };
        Some(Self {
            stun_port: port(&answer["stun_port"])?,
            stun_other_port: port(&answer["stun_other_port"]),
            host,
            turn,
        })
    }
}

/// Tells port searches where the gateway's STUN server is, whenever one wants to know, until the
/// endpoint closes.
pub(crate) async fn tell_stun_servers(owner: Weak<Owner>, endpoint: Arc<Endpoint>) {
    let Some(stopping) = owner.upgrade().map(|owner| owner.shared.stopping.clone()) else { return };
    let telling = async {
        loop {
            endpoint.stun_wanted().await;
            let Some(owner) = owner.upgrade() else { return };
            let services = NatServices::ask(&owner).await;
            drop(owner);
            let servers = match services {
                Ok(services) => services.stun_servers().await,
                Err(error) => {
                    tracing::debug!(%error, "the gateway's STUN server is not known");
                    Vec::new()
                }
            };
            endpoint.set_stun_servers(servers);
        }
    };
    stopping.run_until_cancelled(telling).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_and_unknown_fields_ignored() {
        let answer = br#"{"host":null,"stun_port":3478,"new":[1],"turn":{"servers":[
            {"scheme":"turn","transport":"udp","port":3478},{"scheme":"later"}],
            "username":"9:a","password":"p","realm":"r","lifetime_s":60}}"#;
        let services = NatServices::read(answer, "gw.example.com").unwrap();
        assert_eq!((services.stun_port, services.stun_other_port), (3478, None));
        let turn = services.turn.unwrap();
        assert_eq!(turn.uris, ["turn:gw.example.com:3478?transport=udp"]);
        assert_eq!(turn.lifetime, Duration::from_secs(60));
        assert!(!format!("{turn:?}").contains("\"p\""));
    }

    #[test]
    fn strangers_hear_of_stun_only_and_nonsense_is_refused() {
        let answer = br#"{"host":"2001:db8::1","stun_port":1,"stun_other_port":2}"#;
        let services = NatServices::read(answer, "x").unwrap();
        assert_eq!((services.host.as_str(), services.turn), ("[2001:db8::1]", None));
        assert_eq!(services.stun_other_port, Some(2));
        for answer in ["", "[]", "{}", r#"{"stun_port":70000}"#, r#"{"stun_port":1,"turn":{}}"#] {
            assert_eq!(NatServices::read(answer.as_bytes(), "x"), None, "{answer}");
        }
    }
}
