//! `macula realm show`.

use macula_grant::{Block, Grant, IssuerToken, Kind, RealmKey, Record, Rule, UnixTime};
use serde_json::{Value, json};

use super::args::ShowArgs;
use super::{file, now, words};
use crate::failure::Failure;
use crate::out::{self, Paint};

/// Shows what files say.
pub(super) fn run(args: &ShowArgs) -> Result<(), Failure> {
    for (index, path) in args.files.iter().enumerate() {
        let text = file::text(path)?;
        let said = read(&text).map_err(|error| file::wrong(path, error))?;
        if args.json {
            let mut said = said;
            if let Some(object) = said.as_object_mut() {
                object.insert("file".to_owned(), path.display().to_string().into());
            }
            out::json(&said)?;
            continue;
        }
        if index > 0 {
            out::line("")?;
        }
        out::line(Paint::stdout().bold(path.display()))?;
        human(&said).iter().try_for_each(out::line)?;
    }
    Ok(())
}

/// What a text says, without its secrets. Times are seconds since 1970.
fn read(text: &str) -> Result<Value, macula_grant::TextError> {
    Ok(match Kind::of_text(text)? {
        Kind::Grant => {
            let grant = Grant::from_text(text)?;
            let permit = grant.permit();
            json!({
                "kind": "grant",
                "realm": grant.realm().to_string(),
                "endpoint": grant.endpoint().to_string(),
                "contact": permit.contact,
                "epoch": permit.epoch,
                "valid_from": permit.not_before.as_secs(),
                "expires": permit.expires.as_secs(),
                "valid_now": is_valid(permit.not_before, permit.expires),
                "blocks": blocks(grant.blocks()),
            })
        }
        Kind::Issuer => {
            let issuer = IssuerToken::from_text(text)?;
            json!({
                "kind": "issuer",
                "realm": issuer.realm().to_string(),
                "contact": issuer.contact(),
                "epoch": issuer.epoch(),
                "valid_from": issuer.valid_from().as_secs(),
                "expires": issuer.expires().as_secs(),
                "valid_now": is_valid(issuer.valid_from(), issuer.expires()),
                "blocks": blocks(issuer.blocks()),
            })
        }
        Kind::RealmKey => {
            let key = RealmKey::from_text(text)?;
            json!({
                "kind": "root key",
                "realm": key.realm().to_string(),
                "epoch": key.epoch,
                "sequence": key.sequence,
            })
        }
        Kind::Revocations => {
            let record = Record::from_text(text)?;
            let list = record.list();
            let block = |(id, expires): (&macula_grant::BlockId, &UnixTime)| json!({ "id": id.to_string(), "expires": expires.as_secs() });
            json!({
                "kind": "revocations",
                "realm": record.realm().to_string(),
                "sequence": list.sequence,
                "epoch_min": list.epoch_min,
                "revoked_endpoints": list.endpoints.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "revoked_blocks": list.blocks.iter().map(block).collect::<Vec<_>>(),
            })
        }
    })
}

fn is_valid(from: UnixTime, expires: UnixTime) -> bool {
    (from..expires).contains(&now())
}

fn blocks(blocks: &[Block]) -> Vec<Value> {
    let list = |rules: &[Rule]| -> Vec<String> {
        rules.iter().map(|rule| format!("{}:{}", rule.verb, rule.pattern)).collect()
    };
    let block = |block: &Block| {
        let terms = &block.terms;
        json!({
            "id": block.id.to_string(),
            "endpoint": block.endpoint.map(|endpoint| endpoint.to_string()),
            "allow": terms.allow.as_deref().map(list),
            "deny": list(&terms.deny),
            "valid_from": terms.valid_from.map(UnixTime::as_secs),
            "expires": terms.expires.map(UnixTime::as_secs),
            "contact": terms.contact,
        })
    };
    blocks.iter().map(block).collect()
}

/// The same for people.
fn human(said: &Value) -> Vec<String> {
    let paint = Paint::stdout();
    let mut lines = Vec::new();
    let mut field = |name: &str, value: String| {
        lines.push(format!("{} {value}", paint.dim(format_args!("{name:<10}"))));
    };
    let time = |value: &Value| value.as_u64().map(UnixTime::from_secs);
    field("kind", words_of(&said["kind"]));
    field("realm", words_of(&said["realm"]));
    for name in ["endpoint", "contact", "epoch", "sequence", "epoch_min"] {
        if !said[name].is_null() && said[name] != "" {
            field(name, words_of(&said[name]));
        }
    }
    if let Some(from) = time(&said["valid_from"]).filter(|from| from.0 > 0) {
        field("valid from", words::moment(from, now()));
    }
    if let Some(expires) = time(&said["expires"]) {
        let name = if expires > now() { "expires" } else { "expired" };
        field(name, words::moment(expires, now()));
        let verdict = match said["valid_now"].as_bool() {
            Some(true) => paint.green("yes, unless it is revoked"),
            _ => paint.red("no"),
        };
        field("valid now", verdict);
    }
    for (index, block) in said["blocks"].as_array().into_iter().flatten().enumerate() {
        field("block", format!("{index}: {}", paint.cyan(words_of(&block["id"]))));
        let rights = match block["allow"].as_array() {
            Some(rules) if rules.is_empty() => "nothing".to_owned(),
            Some(rules) => rules.iter().map(words_of).collect::<Vec<_>>().join(", "),
            None => "as before".to_owned(),
        };
        field("  allow", rights);
        let deny: Vec<String> =
            block["deny"].as_array().into_iter().flatten().map(words_of).collect();
        if !deny.is_empty() {
            field("  deny", deny.join(", "));
        }
        if !block["endpoint"].is_null() {
            field("  for", words_of(&block["endpoint"]));
        }
        if let Some(expires) = time(&block["expires"]) {
            field("  expires", words::moment(expires, now()));
        }
        if !block["contact"].is_null() {
            field("  contact", words_of(&block["contact"]));
        }
    }
    for endpoint in said["revoked_endpoints"].as_array().into_iter().flatten() {
        field("endpoint", words_of(endpoint));
    }
    for block in said["revoked_blocks"].as_array().into_iter().flatten() {
        let until = time(&block["expires"]).unwrap_or_default();
        let until = words::moment(until, now());
        field("block", format!("{}, whose grants expire {until}", words_of(&block["id"])));
    }
    lines
}

fn words_of(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
