//! The procedures that every node answers without the application: `macula.ping`, `macula.info`,
//! `macula.stats`, `macula.links`, `macula.carriers` (docs/protocol §6.6).

use std::fmt;
use std::net::SocketAddr;

use bytes::Bytes;

use super::{Node, Role};
use crate::id::{EndpointId, LinkId, RealmTag};
use crate::limits;

/// Who asks a built-in procedure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asker {
    /// The endpoint; `None` for the local application.
    pub endpoint: Option<EndpointId>,
    /// Whether it is in a realm here in which it may have packets carried to everybody.
    pub may_relay: bool,
}

/// Built-in procedures and counters of the program around a node, beside those of every node.
///
/// Called for whatever peers send: it must be quick, and never panic.
pub trait Extension: fmt::Debug + Send + Sync {
    /// The answer to a procedure whose name begins with `macula.`; `None`: there is no such one.
    fn answer(&self, procedure: &str, asker: Asker) -> Option<Bytes>;

    /// Counters that `macula.stats` tells everybody, by names of lower-case letters and `_`.
    fn counters(&self) -> Vec<(String, u64)>;
}

impl Node {
    /// Runs a built-in procedure; `None`: there is no such one. `asker` is the link that asks, or
    /// `None` for the local application. A peer sees totals of this endpoint, and details only of
    /// the realms that it is in itself. A leaf, asked through its router, cannot know which those
    /// are: there, details are given of the realm alone in which the call came.
    pub(super) fn builtin(
        &self,
        procedure: &str,
        body: &Bytes,
        asker: Option<LinkId>,
        realm: RealmTag,
    ) -> Option<Bytes> {
        match procedure {
            "macula.ping" => Some(body.clone()),
            "macula.info" => Some(self.info().into()),
            "macula.stats" => Some(self.stats_json(asker, realm).into()),
            "macula.links" => Some(self.links_json(asker)?.into()),
            "macula.carriers" if self.config.role == Role::Router => {
                Some(self.carriers_json(asker?, body).into())
            }
            _ => self.config.extension.as_ref()?.answer(procedure, self.asker(asker)),
        }
    }

    /// Who would carry packets between who asks and the endpoint whose id as text is the body.
    fn carriers_json(&self, asker: LinkId, body: &Bytes) -> String {
        let id = std::str::from_utf8(body).ok().and_then(|text| text.parse().ok());
        let carriers = id.map(|id| self.carriers(asker, id)).unwrap_or_default();
        let carriers: Vec<String> = carriers.iter().map(|id| format!("\"{id}\"")).collect();
        format!(r#"{{"carriers":[{}]}}"#, carriers.join(","))
    }

    fn asker(&self, link: Option<LinkId>) -> Asker {
        match link {
            None => Asker { endpoint: None, may_relay: true },
            Some(link) => {
                let link = self.links.get(&link);
                Asker {
                    endpoint: link.map(|link| link.peer),
                    may_relay: link.is_some_and(|link| self.may_relay_to_all(link)),
                }
            }
        }
    }

    fn info(&self) -> String {
        let role = match self.config.role {
            Role::Router => "router",
            Role::Leaf => "leaf",
        };
        format!(
            r#"{{"id":"{}","agent":"{}","role":"{role}","uptime_s":{}}}"#,
            self.id,
            escape(&self.config.agent),
            self.uptime().as_secs()
        )
    }

    /// The links of a router, the oldest first. Who talks from where is nobody's business: a peer is told
    /// of its own link alone, unless it is on the router's own machine. Leaves do not answer peers,
    /// who may ask through a router.
    fn links_json(&self, asker: Option<LinkId>) -> Option<String> {
        if asker.is_some() && self.config.role == Role::Leaf {
            return None;
        }
        let is_local = match asker {
            None => true,
            Some(link) => self.links.get(&link)?.remote.ip().to_canonical().is_loopback(),
        };
        let all = self.status().links;
        let mut told = all.iter().filter(|link| is_local || Some(link.link) == asker);
        let links: Vec<String> = told
            .by_ref()
            .take(limits::LINKS_TOLD_MAX)
            .map(|link| {
                let role = if link.is_router { "router" } else { "leaf" };
                let path = if link.is_tunnelled { "tls" } else { "udp" };
                let rtt = link.rtt.map_or_else(|| "null".to_owned(), |it| it.as_micros().to_string());
                format!(
                    r#"{{"peer":"{}","agent":"{}","role":"{role}","path":"{path}","remote":"{}","rtt_us":{rtt},"sent_bytes":{},"received_bytes":{},"queued_bytes":{},"dropped":{}}}"#,
                    link.peer,
                    escape(&link.agent),
                    SocketAddr::new(link.remote.ip().to_canonical(), link.remote.port()),
                    link.sent_bytes,
                    link.received_bytes,
                    link.queued_bytes,
                    link.dropped,
                )
            })
            .collect();
        let more = told.count();
        Some(format!(r#"{{"links":[{}],"more":{more}}}"#, links.join(",")))
    }

    fn stats_json(&self, asker: Option<LinkId>, realm: RealmTag) -> String {
        let asker = asker.and_then(|link| self.links.get(&link));
        let stats = &self.stats;
        let links = self.links.values().filter(|link| link.is_ready()).count();
        // to count it anew for whoever asks often would cost more than the asking
        let held_bytes = match self.config.role {
            Role::Router if asker.is_some() => self.held.bytes,
            Role::Router | Role::Leaf => self.count_held(),
        };
        let mut text = self.info();
        text.pop();
        let totals = [
            ("links", links as u64),
            ("messages_in", stats.messages_in),
            ("messages_out", stats.messages_out),
            ("message_bytes_in", stats.message_bytes_in),
            ("duplicates", stats.duplicates),
            ("dropped_slow", stats.dropped_slow),
            ("abandoned", stats.abandoned),
            ("refused", stats.refused),
            ("calls", stats.calls),
            ("calls_open", self.calls.len() as u64),
            ("calls_failed", stats.calls_failed),
            ("failovers", stats.failovers),
            ("protocol_errors", stats.protocol_errors),
            ("stalled_links", stats.stalled_links),
            ("held_bytes", held_bytes as u64),
            ("slowed", stats.slowed),
            ("over_limit", stats.over_limit),
            ("shed", stats.shed),
            ("denied", stats.denied),
            ("expelled", stats.expelled),
            ("relayed", stats.relayed),
            ("relayed_bytes", stats.relayed_bytes),
            ("relay_dropped", stats.relay_dropped),
            ("relay_refused", stats.relay_refused),
        ];
        for (name, value) in totals {
            text.push_str(&format!(r#","{name}":{value}"#));
        }
        for (name, value) in self.config.extension.iter().flat_map(|it| it.counters()) {
            text.push_str(&format!(r#","{}":{value}"#, escape(&name)));
        }
        let is_leaf = self.config.role == Role::Leaf;
        let seen = |tag: &RealmTag| {
            asker.is_none_or(|link| link.realms.contains(tag) && (!is_leaf || *tag == realm))
        };
        let realms: Vec<String> = self
            .realms
            .iter()
            .filter(|(tag, _)| seen(tag))
            .map(|(_, realm)| {
                let id: String = realm.id.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
                let registrations: usize =
                    realm.providers.values().map(|providers| providers.len()).sum();
                format!(
                    r#"{{"realm":"{id}","peers":{},"subscriptions":{},"registrations":{registrations},"retained":{},"ring_bytes":{}}}"#,
                    realm.members.len(),
                    realm.trie.len(),
                    realm.retained.len(),
                    realm.ring.bytes(),
                )
            })
            .collect();
        text.push_str(&format!(r#","realms":[{}]}}"#, realms.join(",")));
        text
    }
}

/// Makes a text fit for a JSON string.
fn escape(text: &str) -> String {
    text.chars()
        .filter(|character| !character.is_control())
        .flat_map(|character| match character {
            '"' | '\\' => vec!['\\', character],
            _ => vec![character],
        })
        .collect()
}
