//! The golden grants in `vectors/grants.json`. Signing draws randomness, so they are read by every
//! test run and written only when the format changes.

use std::fmt::Write as _;

use macula_proto::auth::Verifier;
use serde_json::{Value, json};

use super::*;
use crate::{GrantVerifier, Record, RevocationList};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../vectors/grants.json");

#[test]
fn golden_grants_say_what_is_expected() {
    let file: Value = serde_json::from_str(&std::fs::read_to_string(FILE).unwrap()).unwrap();
    let verifier = GrantVerifier::new();
    let (mut grants, mut records) = (0, 0);
    for golden in file["grants"].as_array().unwrap() {
        let grant = Grant::from_bytes(&bytes(&golden["hex"])).unwrap();
        assert_eq!(describe(&grant), golden["says"], "{}", golden["name"]);
        assert_eq!(hex(grant.realm().id().as_bytes()), golden["realm_id"].as_str().unwrap());
        verifier.permit(&grant.realm().id(), grant.as_bytes()).unwrap();
        grants += 1;
    }
    for golden in file["records"].as_array().unwrap() {
        let record = Record::from_bytes(&bytes(&golden["hex"])).unwrap();
        assert_eq!(describe_record(&record), golden["says"], "{}", golden["name"]);
        records += 1;
    }
    for golden in file["refused"].as_array().unwrap() {
        let denial = Grant::from_bytes(&bytes(&golden["hex"])).unwrap_err();
        let kind = match denial {
            Denial::Malformed(_) => "malformed",
            Denial::Forged(_) => "forged",
            _ => "other",
        };
        assert_eq!(kind, golden["because"], "{}: {denial}", golden["name"]);
    }
    assert_eq!((grants, records), (2, 1));
}

#[test]
#[ignore = "rewrites the golden grants; run by hand when the format changes"]
fn write_golden_grants() {
    let golden = |name: &str, grant: &Grant| {
        json!({
            "name": name,
            "realm_id": hex(grant.realm().id().as_bytes()),
            "hex": hex(grant.as_bytes()),
            "says": describe(grant),
        })
    };
    let root_only = Grant::new(&key(), ME, &terms("publish:** call:**", NEXT_YEAR)).unwrap();
    let list = RevocationList {
        sequence: 5,
        epoch_min: 2,
        endpoints: [EndpointId::from_bytes([9; 32])].into(),
        blocks: [(narrowed().blocks()[1].id, TOMORROW)].into(),
    };
    let record = Record::sign(&key(), &list).unwrap();
    let mut forged = narrowed().as_bytes().to_vec();
    let middle = forged.len() / 2;
    forged[middle] ^= 1;
    let rule = wrapped(&signed(HEAD).append(block("check if epoch($x), $x > 2")).unwrap());
    let unbound = wrapped(&signed(HEAD.split("endpoint").next().unwrap()));
    let refused = |name: &str, bytes: &[u8]| {
        let because = match Grant::from_bytes(bytes) {
            Err(Denial::Forged(_)) => "forged",
            _ => "malformed",
        };
        json!({ "name": name, "hex": hex(bytes), "because": because })
    };
    let file = json!({
        "specification": "docs/protocol/07-grants.md",
        "root_seed": hex(&*key().root.seed()),
        "grants": [
            golden("one block, signed by the root", &root_only),
            golden("three blocks: root, issuer, and narrowed by its owner", &narrowed()),
        ],
        "records": [{
            "name": "an endpoint and a block",
            "hex": hex(record.as_bytes()),
            "says": describe_record(&record),
        }],
        "refused": [
            refused("a bit of the second block is flipped", &forged),
            refused("a block has a check", &rule),
            refused("bound to no endpoint", &unbound),
        ],
    });
    std::fs::write(FILE, format!("{file:#}\n")).unwrap();
}

fn describe(grant: &Grant) -> Value {
    let permit = grant.permit();
    let list = |rules: &[Rule]| -> Vec<String> {
        rules.iter().map(|rule| format!("{}:{}", rule.verb, rule.pattern)).collect()
    };
    let layer = |layer: &macula_proto::auth::Layer| json!({ "allow": layer.allow.as_deref().map(list), "deny": list(&layer.deny) });
    json!({
        "realm": grant.realm().to_string(),
        "endpoint": permit.endpoint.to_string(),
        "contact": permit.contact,
        "epoch": permit.epoch,
        "not_before": permit.not_before.as_secs(),
        "expires": permit.expires.as_secs(),
        "layers": permit.layers.iter().map(layer).collect::<Vec<_>>(),
        "blocks": permit.blocks.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}

fn describe_record(record: &Record) -> Value {
    let list = record.list();
    let block = |(id, expires): (&macula_proto::auth::BlockId, &UnixTime)| json!({ "block": id.to_string(), "expires": expires.as_secs() });
    json!({
        "realm": record.realm().to_string(),
        "sequence": list.sequence,
        "epoch_min": list.epoch_min,
        "endpoints": list.endpoints.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "blocks": list.blocks.iter().map(block).collect::<Vec<_>>(),
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn bytes(hex: &Value) -> Vec<u8> {
    let hex = hex.as_str().unwrap();
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}
