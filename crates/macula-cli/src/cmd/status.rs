//! `macula status`.

use std::time::Duration;

use macula::{CallError, Node, RealmId, Status};
use serde_json::{Value, json};

use super::{netcheck, ping};
use crate::args::{GatewayOrLocalArg, StatusArgs};
use crate::connect::Asker;
use crate::failure::{Exit, Failure};
use crate::out::{self, Paint};

/// Built-in procedure of every endpoint that tells who it is and what it does, as JSON.
const STATS_PROCEDURE: &str = "macula.stats";

/// Built-in procedure of every router that tells its links, as JSON.
const LINKS_PROCEDURE: &str = "macula.links";

/// Shows the links of this end, and what a gateway is connected to.
pub(crate) async fn run(args: StatusArgs) -> Result<(), Failure> {
    let GatewayOrLocalArg { gateway, connect } = &args.gateway;
    let peers =
        args.peer.iter().map(|peer| ping::parse_peer(peer)).collect::<Result<Vec<_>, _>>()?;
    if !peers.is_empty() && args.realm.is_none() && args.grant.grant.is_none() {
        return Err(ping::no_realm());
    }
    let asker =
        Asker::connect(gateway, connect, (args.realm.as_deref(), args.grant.grant.as_deref()))
            .await?;
    let mut held = Vec::new();
    if let Asker::Member(node, _) = &asker {
        for peer in peers {
            match link(node, peer, args.timeout).await {
                Ok(link) => held.push(link),
                Err(failure) => out::failure(&failure),
            }
        }
    }
    let answer = asker.builtin(STATS_PROCEDURE).deadline(args.timeout).send().await;
    let links = asker.builtin(LINKS_PROCEDURE).deadline(args.timeout).send().await;
    let own = asker.status().await;
    asker.close().await;
    let is_tunnelled = own.as_ref().is_some_and(|own| own.is_tunnelled);
    let text = answer.map_err(|e| Failure::from(e).context("ask the gateway for its status"))?;
    let mut status: Value = serde_json::from_slice(&text).map_err(|e| {
        Failure::new(
            Exit::Failure,
            format!("the gateway's answer is not JSON: {e}"),
            "update this program or the gateway: their versions do not go together",
        )
    })?;
    if let Some(status) = status.as_object_mut() {
        status.insert("via".to_owned(), if is_tunnelled { "tls" } else { "udp" }.into());
        status.insert("own_links".to_owned(), own.as_ref().map(own_links).into());
        status.insert("gateway_links".to_owned(), gateway_links(links));
        status.insert("nat".to_owned(), netcheck::remembered().into());
    }
    if let Some(name) = &args.realm {
        name_realm(&mut status, name);
    }
    if args.json {
        return out::json(&status);
    }
    human(&status).iter().try_for_each(out::line)
}

/// A link to a peer that is direct, if it gets so in time.
async fn link(
    node: &Node,
    peer: macula::EndpointId,
    patience: Duration,
) -> Result<macula::Peer, Failure> {
    let linked = tokio::time::timeout(patience, node.peer(peer)).await;
    let late = || Failure::new(Exit::Timeout, "it does not answer", "wait longer with --timeout");
    let linked = linked.map_err(|_elapsed| late()).and_then(|link| link.map_err(Failure::from));
    let link = linked.map_err(|e| e.context(format_args!("peer {}", peer.short())))?;
    // One that stays relayed is shown as such.
    drop(tokio::time::timeout(patience, link.direct()).await);
    Ok(link)
}

/// The links of this command itself.
fn own_links(own: &Status) -> Vec<Value> {
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let line = own.links.iter().map(|link| {
        let path = own.paths.iter().find(|(peer, _)| *peer == link.peer).map(|(_, path)| path);
        let mut line = json!({
            "peer": link.peer.to_string(),
            "agent": link.agent,
            "role": if link.is_router { "router" } else { "leaf" },
            "path": if link.is_tunnelled { "tls" } else { "udp" },
            "remote": link.remote.to_string(),
            "rtt_us": link.rtt.map(micros),
            "sent_bytes": link.sent_bytes,
            "received_bytes": link.received_bytes,
        });
        if let (Some(path), true) = (path, link.is_peer_link) {
            let all = [path.relayed, path.member, path.turn, path.direct];
            line["path"] = path.kind.as_str().into();
            line["remote"] = path.remote.map(|it| it.to_string()).into();
            line["carrier"] = path.carrier.map(|it| it.to_string()).into();
            line["rtt_us"] = path.rtt.map(micros).into();
            // Of packets, on whichever path.
            line["sent_bytes"] = all.iter().map(|it| it.sent).sum::<u64>().into();
            line["received_bytes"] = all.iter().map(|it| it.received).sum::<u64>().into();
        }
        line
    });
    line.collect()
}

/// What the gateway tells of its links; null if it is too old to do so.
fn gateway_links(answer: Result<bytes::Bytes, CallError>) -> Value {
    let answer = answer.ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
    answer.unwrap_or(Value::Null)
}

/// Links as a table, a line each.
fn table(links: &Value, paint: Paint) -> Vec<String> {
    let mut lines = Vec::new();
    for link in links.as_array().into_iter().flatten() {
        if lines.is_empty() {
            let (peer, path, address, rtt) = ("peer", "path", "address", "rtt");
            let header =
                format!("  {peer:<19}{path:<9}{address:<24}{rtt:>9}  {:>10}{:>10}", "out", "in");
            lines.push(paint.dim(header));
        }
        let text = |name: &str| link[name].as_str().unwrap_or("-").to_owned();
        let peer: String = text("peer").chars().take(10).collect();
        let role = if link["role"] == "router" { "gateway" } else { "peer" };
        let rtt = link["rtt_us"].as_u64().map(Duration::from_micros).map(out::human_duration);
        let bytes = |name: &str| out::human_bytes(link[name].as_u64().unwrap_or(0));
        lines.push(format!(
            "  {peer:<11}{role:<8}{:<9}{:<24}{:>9}  {:>10}{:>10}",
            text("path"),
            text("remote"),
            rtt.as_deref().unwrap_or("-"),
            bytes("sent_bytes"),
            bytes("received_bytes"),
        ));
    }
    lines
}

/// Adds the name of the realm that was asked about; gateways tell only ids.
fn name_realm(status: &mut Value, name: &str) {
    let id: String =
        RealmId::of_name(name).as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    let realms = status.get_mut("realms").and_then(Value::as_array_mut);
    for realm in realms.into_iter().flatten() {
        if realm["realm"] == id.as_str()
            && let Some(realm) = realm.as_object_mut()
        {
            realm.insert("name".to_owned(), name.into());
        }
    }
}

/// The status for people: the fields that are known, one a line, then links and realms.
fn human(status: &Value) -> Vec<String> {
    let paint = Paint::stdout();
    let mut lines = Vec::new();
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    };
    let mut field = |name: &str, value: String| {
        lines.push(format!("{} {value}", paint.dim(format_args!("{name:<9}"))));
    };
    field("gateway", text(&status["id"]));
    if status["via"] == "tls" {
        field("reached", "by TLS over TCP".to_owned());
    }
    for name in ["agent", "role"] {
        if !status[name].is_null() {
            field(name, text(&status[name]));
        }
    }
    if let Some(seconds) = status["uptime_s"].as_u64() {
        field("uptime", human_uptime(Duration::from_secs(seconds)));
    }
    if let Some(verdict) = status["nat"]["verdict"].as_str() {
        let age = status["nat"]["age_s"].as_u64().map(Duration::from_secs);
        let age = age.map_or_else(String::new, |age| format!(" ({} ago)", human_uptime(age)));
        field("nat", format!("{verdict}{age}"));
    }
    let own = status["own_links"].as_array().map_or(0, Vec::len);
    field("own links", own.to_string());
    lines.extend(table(&status["own_links"], paint));
    let mut field = |name: &str, value: String| {
        lines.push(format!("{} {value}", paint.dim(format_args!("{name:<9}"))));
    };
    // The gateway's side of our own link says nothing new.
    let told = status["gateway_links"]["links"].as_array().map_or(0, Vec::len);
    field("links", text(&status["links"]));
    if told > 1 {
        lines.extend(table(&status["gateway_links"]["links"], paint));
        if let Some(more @ 1..) = status["gateway_links"]["more"].as_u64() {
            lines.push(format!("  and {more} more"));
        }
    }
    let mut field = |name: &str, value: String| {
        lines.push(format!("{} {value}", paint.dim(format_args!("{name:<9}"))));
    };
    if let Some(realms) = status["realms"].as_array().filter(|realms| !realms.is_empty()) {
        field("realms", realms.len().to_string());
        for realm in realms {
            lines.push(format!(
                "  {}  {} peers, {} subscriptions, {} procedures, {} retained",
                paint.cyan(text(if realm["name"].is_null() {
                    &realm["realm"]
                } else {
                    &realm["name"]
                })),
                text(&realm["peers"]),
                text(&realm["subscriptions"]),
                text(&realm["registrations"]),
                text(&realm["retained"]),
            ));
        }
    }
    let shown = [
        "via",
        "id",
        "agent",
        "role",
        "uptime_s",
        "links",
        "realms",
        "own_links",
        "gateway_links",
        "nat",
    ];
    let counters = status.as_object().into_iter().flatten();
    for (name, value) in counters.filter(|(name, _)| !shown.contains(&name.as_str())) {
        lines.push(format!("{} {}", paint.dim(format_args!("{name:<18}")), text(value)));
    }
    lines
}

/// `3d 4h`, `2h 5m`, `7m 12s`, `42s`.
fn human_uptime(uptime: Duration) -> String {
    let seconds = uptime.as_secs();
    let (days, hours) = (seconds / 86_400, seconds / 3_600 % 24);
    let (minutes, rest) = (seconds / 60 % 60, seconds % 60);
    match seconds {
        0..60 => format!("{rest}s"),
        60..3_600 => format!("{minutes}m {rest}s"),
        3_600..86_400 => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn uptimes_read_well() {
        let check = |seconds, text| assert_eq!(human_uptime(Duration::from_secs(seconds)), text);
        check(42, "42s");
        check(432, "7m 12s");
        check(7_500, "2h 5m");
        check(273_600, "3d 4h");
    }

    #[test]
    fn an_answer_with_other_fields_is_shown_all_the_same() {
        let status = json!({"id": "abc", "realms": [{"realm": "lab", "peers": 2}], "new": 1});
        let text = human(&status).join("\n");
        assert!(text.contains("abc") && text.contains("lab") && text.contains("2 peers"), "{text}");
        assert!(!human(&json!([1])).is_empty());
    }
}
