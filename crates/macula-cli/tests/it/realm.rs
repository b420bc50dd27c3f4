//! Guarded realms from their founding on, all of it offline.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{Done, run};

/// A directory, in which `macula realm` is run with names of files in it.
struct Desk {
    home: TempDir,
}

impl Desk {
    fn new() -> Self {
        Self { home: tempfile::tempdir().unwrap() }
    }

    /// With a root key `root`, an issuer token `issuer` and an endpoint's key `key`.
    fn with_issuer() -> Self {
        let desk = Self::new();
        desk.realm(&["new", "com.example", "--out", "@root"]).expect_code(0);
        let issuer = ["issuer", "--root", "@root", "--contact", "ops", "--out", "@issuer"];
        desk.realm(&issuer).expect_code(0);
        run(desk.home.path(), &["keygen", "--out", &desk.path("key")]).expect_code(0);
        desk
    }

    fn path(&self, name: &str) -> String {
        self.home.path().join(name).to_str().unwrap().to_owned()
    }

    /// Runs it; what begins with `@` is a file of this desk.
    fn realm(&self, arguments: &[&str]) -> Done {
        let path = |argument: &&str| match argument.strip_prefix('@') {
            Some(name) => self.path(name),
            None => (*argument).to_owned(),
        };
        let arguments: Vec<String> = arguments.iter().map(path).collect();
        let mut all = vec!["realm"];
        all.extend(arguments.iter().map(String::as_str));
        run(self.home.path(), &all)
    }

    fn show(&self, name: &str) -> Value {
        let file = format!("@{name}");
        let done = self.realm(&["show", "--json", &file]).expect_code(0);
        serde_json::from_str(&done.text()).unwrap()
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    fn mode(&self, name: &str) -> u32 {
        std::fs::metadata(self.path(name)).unwrap().permissions().mode() & 0o777
    }

    fn key_id(&self) -> String {
        let shown = run(self.home.path(), &["keygen", "--show", &self.path("key")]);
        shown.expect_code(0).text().trim().to_owned()
    }

    fn leftovers(&self) -> Vec<String> {
        let files = std::fs::read_dir(self.home.path()).unwrap();
        let names = files.map(|file| file.unwrap().file_name().to_str().unwrap().to_owned());
        names.filter(|name| name.contains(".new-")).collect()
    }
}

fn layers(said: &Value) -> Vec<(Value, Value)> {
    let blocks = said["blocks"].as_array().unwrap().iter();
    blocks.map(|block| (block["allow"].clone(), block["deny"].clone())).collect()
}

#[track_caller]
fn expect_words(done: &Done, words: &[&str]) {
    for word in words {
        assert!(done.stderr.contains(word), "`{word}` is not in: {}", done.stderr);
    }
}

#[test]
fn a_realm_is_founded_once() {
    let desk = Desk::new();
    let done = desk.realm(&["new", "com.example", "--out", "@root"]).expect_code(0);
    let realm = done.text().trim().to_owned();
    assert!(realm.starts_with("com.example@") && realm.len() == 12 + 52, "{realm}");
    expect_words(&done, &["keep a copy", "macula realm issuer --root"]);
    assert_eq!(desk.mode("root"), 0o600);
    let before = desk.read("root");
    let done = desk.realm(&["new", "other", "--out", "@root"]).expect_code(1);
    expect_words(&done, &["not overwritten", "--out"]);
    assert_eq!(desk.read("root"), before);
    let said = desk.show("root");
    assert_eq!((&said["kind"], &said["realm"]), (&"root key".into(), &realm.into()));
    assert_eq!((&said["epoch"], &said["sequence"]), (&1.into(), &0.into()));
    // without --out it goes to the Macula directory
    desk.realm(&["new", "lab"]).expect_code(0);
    assert_eq!(desk.mode("lab.realm-key"), 0o600);
    desk.realm(&["new", "a/b"]).expect_code(2);
}

#[test]
fn an_issuer_lets_endpoints_in() {
    let desk = Desk::with_issuer();
    assert_eq!(desk.mode("issuer"), 0o600);
    let by_file = ["grant", "--issuer", "@issuer", "--for", "@key", "--out", "@grant"];
    expect_words(&desk.realm(&by_file).expect_code(0), &["expires in "]);
    let said = desk.show("grant");
    assert_eq!(said["endpoint"], desk.key_id().as_str());
    assert_eq!((&said["contact"], &said["valid_now"]), (&"ops".into(), &true.into()));
    let all = ["publish:**", "subscribe:**", "call:**", "serve:**", "store:**", "relay:**"];
    assert_eq!(layers(&said)[0].0, serde_json::json!(all));
    assert_eq!(layers(&said)[1].0, Value::Null, "as before");

    // by id, to stdout, with rights
    let id = desk.key_id();
    let grant = ["grant", "--issuer", "@issuer", "--for", &id, "--valid", "1h"];
    let rights = ["--allow", "publish:site.7.**", "--allow", "call:x", "--deny", "call:admin.**"];
    let text = desk.realm(&[&grant[..], &rights].concat()).expect_code(0).text();
    std::fs::write(desk.path("grant2"), text).unwrap();
    let said = desk.show("grant2");
    let expected =
        (serde_json::json!(["publish:site.7.**", "call:x"]), serde_json::json!(["call:admin.**"]));
    assert_eq!(layers(&said)[1], expected);
    let human = desk.realm(&["show", "@grant2", "@issuer"]).expect_code(0).text();
    for part in ["valid now", "yes", "publish:site.7.**", "admin", "kind       issuer"] {
        assert!(human.contains(part), "{part} is not in {human}");
    }
    let done = desk.realm(&by_file).expect_code(1);
    expect_words(&done, &["not overwritten"]);
}

#[test]
fn a_sub_issuer_gives_no_more_and_no_longer_than_it_has() {
    let desk = Desk::with_issuer();
    let sub = ["issuer", "--issuer", "@issuer", "--allow", "call:a.**", "--valid", "2h"];
    desk.realm(&[&sub[..], &["--out", "@sub"]].concat()).expect_code(0);
    let grant = ["grant", "--issuer", "@sub", "--for", "@key", "--valid", "7d", "--out", "@grant"];
    let done = desk.realm(&grant).expect_code(0);
    expect_words(&done, &["warning: the issuer token ends earlier than asked for"]);
    let (grant, sub) = (desk.show("grant"), desk.show("sub"));
    assert_eq!(grant["expires"], sub["expires"]);
    assert_eq!(layers(&grant)[1].0, serde_json::json!(["call:a.**"]));

    // a sub-issuer lasts as long as its issuer unless told otherwise
    let done = desk.realm(&["issuer", "--issuer", "@issuer", "--out", "@same"]).expect_code(0);
    assert!(!done.stderr.contains("warning"), "{}", done.stderr);
    assert_eq!(desk.show("same")["expires"], desk.show("issuer")["expires"]);
}

#[test]
fn a_grant_is_narrowed_by_its_owner() {
    let desk = Desk::with_issuer();
    desk.realm(&["grant", "--root", "@root", "--for", "@key", "--out", "@grant"]).expect_code(0);
    let narrow = ["grant", "--from", "@grant", "--allow", "call:x", "--valid", "1h"];
    desk.realm(&[&narrow[..], &["--out", "@less"]].concat()).expect_code(0);
    let (grant, less) = (desk.show("grant"), desk.show("less"));
    assert_eq!(less["endpoint"], grant["endpoint"]);
    assert!(less["expires"].as_u64() < grant["expires"].as_u64());
    assert_eq!(layers(&less)[1].0, serde_json::json!(["call:x"]));
    assert_eq!(less["blocks"][0]["id"], grant["blocks"][0]["id"]);
    let longer = ["grant", "--from", "@grant", "--valid", "9d", "--out", "@longer"];
    expect_words(&desk.realm(&longer).expect_code(0), &["warning", "ends earlier"]);
}

#[test]
fn a_grant_is_renewed_with_the_same_rights() {
    let desk = Desk::with_issuer();
    let grant = ["grant", "--issuer", "@issuer", "--for", "@key", "--valid", "1h"];
    let rights = ["--allow", "call:x", "--deny", "call:y", "--out", "@grant"];
    desk.realm(&[&grant[..], &rights].concat()).expect_code(0);
    let old = desk.show("grant");
    for _ in 0..3 {
        desk.realm(&["renew", "--issuer", "@issuer", "@grant", "--valid", "2h"]).expect_code(0);
        let new = desk.show("grant");
        assert_eq!((&new["endpoint"], layers(&new)), (&old["endpoint"], layers(&old)));
        assert!(new["expires"].as_u64() > old["expires"].as_u64());
        assert_ne!(new["blocks"][1]["id"], old["blocks"][1]["id"]);
    }
    // by the root, all that narrowed it stays
    desk.realm(&["renew", "--root", "@root", "@grant"]).expect_code(0);
    assert_eq!(layers(&desk.show("grant")), layers(&old));
    assert_eq!(desk.leftovers(), Vec::<String>::new());

    desk.realm(&["new", "com.example", "--out", "@other"]).expect_code(0);
    let done = desk.realm(&["renew", "--root", "@other", "@grant"]).expect_code(4);
    expect_words(&done, &["is of realm com.example@"]);
    assert_eq!(layers(&desk.show("grant")), layers(&old));
}

#[test]
fn what_was_given_is_taken_back() {
    let desk = Desk::with_issuer();
    desk.realm(&["grant", "--issuer", "@issuer", "--for", "@key", "--out", "@grant"])
        .expect_code(0);
    let revoke = ["revoke", "--root", "@root", "--revocations", "@record"];
    let done = desk.realm(&revoke).expect_code(2);
    expect_words(&done, &["nothing to revoke"]);
    assert!(!Path::new(&desk.path("record")).exists());

    let done = desk.realm(&[&revoke[..], &["--grant", "@grant"]].concat()).expect_code(0);
    expect_words(&done, &["record 1", "0 endpoints and 1 blocks", "-g GATEWAY"]);
    let (record, grant) = (desk.show("record"), desk.show("grant"));
    assert_eq!(record["revoked_blocks"][0]["id"], grant["blocks"][1]["id"]);
    assert_eq!(record["revoked_blocks"][0]["expires"], grant["expires"]);

    let id = desk.key_id();
    let hex = "00112233445566778899aabbccddeeff";
    let more = ["--grant", "@issuer", "--block", hex, id.as_str()];
    expect_words(
        &desk.realm(&[&revoke[..], &more].concat()).expect_code(0),
        &["record 2", "stays"],
    );
    let record = desk.show("record");
    assert_eq!((&record["sequence"], &record["epoch_min"]), (&2.into(), &1.into()));
    assert_eq!(record["revoked_endpoints"], serde_json::json!([id]));
    assert_eq!(record["revoked_blocks"].as_array().unwrap().len(), 3);
    let ids = record["revoked_blocks"].to_string();
    assert!(ids.contains(grant["blocks"][0]["id"].as_str().unwrap()) && ids.contains(hex));
    assert_eq!((desk.mode("root"), desk.leftovers().len()), (0o600, 0));

    desk.realm(&["new", "com.example", "--out", "@other"]).expect_code(0);
    let foreign = ["revoke", "--root", "@other", "--revocations", "@other-record"];
    desk.realm(&[&foreign[..], &["--grant", "@grant"]].concat()).expect_code(4);
    let foreign = ["revoke", "--root", "@other", "--revocations", "@record", &id];
    desk.realm(&foreign).expect_code(4);
}

#[test]
fn a_record_that_cannot_be_handed_over_is_written_all_the_same() {
    let desk = Desk::with_issuer();
    let nowhere = ["-g", "127.0.0.1:1", "--connect-timeout", "300ms"];
    let revoke = ["revoke", "--root", "@root", "--revocations", "@record"];
    let id = desk.key_id();
    let done = desk.realm(&[&revoke[..], &[&id], &nowhere].concat()).expect_code(3);
    expect_words(&done, &["record is written, but handing it over failed"]);
    assert_eq!(desk.show("record")["revoked_endpoints"], serde_json::json!([id]));
    // without anything to revoke it is handed over as it is
    desk.realm(&[&revoke[..], &nowhere].concat()).expect_code(3);
    assert_eq!(desk.show("record")["sequence"], 1);
}

#[test]
fn a_record_is_not_forgotten_by_mistake() {
    let desk = Desk::with_issuer();
    let id = desk.key_id();
    let revoke = ["revoke", "--root", "@root", "--revocations", "@record", &id];
    desk.realm(&revoke).expect_code(0);
    std::fs::copy(desk.path("record"), desk.path("old")).unwrap();
    desk.realm(&revoke).expect_code(0);
    let with = |file: &str, more: &[&str]| {
        desk.realm(&[&["revoke", "--root", "@root", "--revocations", file, &id], more].concat())
    };
    expect_words(&with("@old", &[]).expect_code(1), &["is record 1, and the latest is 2"]);
    let done = with("@gone", &[]).expect_code(1);
    expect_words(&done, &["does not exist, and record 2 was signed", "--begin-anew"]);
    with("@gone", &["--begin-anew"]).expect_code(0);
    assert_eq!(desk.show("gone")["sequence"], 3);
}

#[test]
fn a_new_epoch_voids_what_was_made_before() {
    let desk = Desk::with_issuer();
    desk.realm(&["grant", "--issuer", "@issuer", "--for", "@key", "--out", "@grant"])
        .expect_code(0);
    let record = ["--root", "@root", "--revocations", "@record"];
    let id = desk.key_id();
    let revoke = [&["revoke"], &record[..], &["--grant", "@grant", &id]].concat();
    desk.realm(&revoke).expect_code(0);
    let done = desk.realm(&[&["rotate"], &record[..]].concat()).expect_code(0);
    expect_words(&done, &["epoch 2 begins", "macula realm issuer --root"]);
    let said = desk.show("record");
    assert_eq!((&said["sequence"], &said["epoch_min"]), (&2.into(), &2.into()));
    assert_eq!(said["revoked_blocks"], serde_json::json!([]), "the epoch voids them");
    assert_eq!(said["revoked_endpoints"], serde_json::json!([id]), "they stay out");
    assert_eq!(desk.show("root")["epoch"], 2);
    assert_eq!(desk.show("issuer")["epoch"], 1);
    desk.realm(&["issuer", "--root", "@root", "--out", "@issuer2"]).expect_code(0);
    assert_eq!(desk.show("issuer2")["epoch"], 2);
    desk.realm(&["renew", "--issuer", "@issuer2", "@grant"]).expect_code(0);
    assert_eq!(desk.show("grant")["epoch"], 2);
    desk.realm(&[&["rotate"], &record[..]].concat()).expect_code(0);
    assert_eq!(desk.show("root")["epoch"], 3);
}

#[test]
fn the_wrong_file_is_named_with_what_to_do() {
    let desk = Desk::with_issuer();
    desk.realm(&["grant", "--issuer", "@issuer", "--for", "@key", "--out", "@grant"])
        .expect_code(0);
    for (arguments, code, words) in [
        (&["grant", "--issuer", "@root", "--for", "@key"][..], 2, &["root key", "--root"][..]),
        (&["grant", "--root", "@issuer", "--for", "@key"], 2, &["issuer token", "--issuer"]),
        (&["grant", "--issuer", "@grant", "--for", "@key"], 2, &["--from FILE"]),
        (&["grant", "--from", "@issuer"], 2, &["--issuer FILE --for ENDPOINTID"]),
        (&["renew", "--issuer", "@issuer", "@key"], 2, &["no line that begins with"]),
        (&["grant", "--issuer", "@issuer", "--for", "nobody"], 2, &["keygen --show"]),
        (&["grant", "--issuer", "@issuer", "--for", "@gone"], 2, &["nor a file"]),
        (&["grant", "--issuer", "@issuer", "--for", "@key", "--valid", "0s"], 2, &["at once"]),
        (&["show", "@key"], 2, &["no file of a realm"]),
        (&["show", "@gone"], 1, &["cannot be opened"]),
        (
            &["revoke", "--root", "@root", "--revocations", "@grant", "--grant", "@grant"],
            2,
            &["a record of revocations is needed"],
        ),
    ] {
        expect_words(&desk.realm(arguments).expect_code(code), words);
    }
    // damaged and forged
    let text = desk.read("grant");
    let forged = match text.trim_end().strip_suffix('A') {
        Some(rest) => format!("{rest}B"),
        None => format!("{}A", &text.trim_end()[..text.trim_end().len() - 1]),
    };
    std::fs::write(desk.path("grant"), forged).unwrap();
    let done = desk.realm(&["show", "@grant"]);
    assert!(matches!(done.code, Some(1 | 4)), "{done:?}");
    // secrets that others may read are not used
    let open = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(desk.path("issuer"), open).unwrap();
    let done = desk.realm(&["grant", "--issuer", "@issuer", "--for", "@key"]).expect_code(1);
    expect_words(&done, &["chmod 600"]);
}

#[test]
fn an_expired_issuer_issues_nothing() {
    let desk = Desk::with_issuer();
    let brief = ["issuer", "--root", "@root", "--valid", "1s", "--contact", "ops", "--out"];
    desk.realm(&[&brief[..], &["@brief"]].concat()).expect_code(0);
    crate::harness::wait_for("the expiry", || desk.show("brief")["valid_now"] == false);
    let done = desk.realm(&["grant", "--issuer", "@brief", "--for", "@key"]).expect_code(4);
    expect_words(&done, &["the issuer token expired", "ask ops"]);
    desk.realm(&["issuer", "--issuer", "@brief"]).expect_code(4);
    let brief = ["grant", "--root", "@root", "--for", "@key", "--valid", "1s", "--out", "@grant"];
    desk.realm(&brief).expect_code(0);
    crate::harness::wait_for("the expiry", || desk.show("grant")["valid_now"] == false);
    let done = desk.realm(&["grant", "--from", "@grant"]).expect_code(4);
    expect_words(&done, &["the grant expired", "the realm's owner"]);
    desk.realm(&["renew", "--root", "@root", "@grant"]).expect_code(0);
    assert_eq!(desk.show("grant")["valid_now"], true);
}
