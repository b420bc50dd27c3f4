//! `macula status`.

use std::time::Duration;

use macula::RealmId;
use serde_json::Value;

use crate::args::{GatewayOrLocalArg, StatusArgs};
use crate::connect::Asker;
use crate::failure::{Exit, Failure};
use crate::out::{self, Paint};

/// Built-in procedure of every endpoint that tells who it is and what it does, as JSON.
const STATS_PROCEDURE: &str = "macula.stats";

/// Shows what a gateway is connected to.
pub(crate) async fn run(args: StatusArgs) -> Result<(), Failure> {
    let GatewayOrLocalArg { gateway, connect } = &args.gateway;
    let asker =
        Asker::connect(gateway, connect, (args.realm.as_deref(), args.grant.grant.as_deref()))
            .await?;
    let answer = asker.builtin(STATS_PROCEDURE).deadline(args.timeout).send().await;
    let is_tunnelled = asker.is_tunnelled().await;
    asker.close().await;
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
    }
    if let Some(name) = &args.realm {
        name_realm(&mut status, name);
    }
    if args.json {
        return out::json(&status);
    }
    human(&status).iter().try_for_each(out::line)
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
    field("links", text(&status["links"]));
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
    let shown = ["via", "id", "agent", "role", "uptime_s", "links", "realms"];
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
