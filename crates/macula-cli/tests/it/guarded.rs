//! A guarded realm with real programs: founded, served, used, and taken back.

use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::harness::{Done, Gateway, Running, run, wait_for};

/// A realm with an issuer, a gateway that hosts it, and members' files.
struct Realm {
    files: TempDir,
    gateway: Gateway,
}

impl Realm {
    fn new() -> Self {
        let files = tempfile::tempdir().unwrap();
        let path = |name: &str| files.path().join(name).to_str().unwrap().to_owned();
        let new = ["realm", "new", "com.example.plant", "--out", &path("root")];
        run(files.path(), &new).expect_code(0);
        let (root, issuer) = (path("root"), path("issuer"));
        let contact = ["--contact", "ops@example.com"];
        let make = ["realm", "issuer", "--root", &root, "--out", &issuer];
        run(files.path(), &[&make[..], &contact].concat()).expect_code(0);
        let shown = run(files.path(), &["realm", "show", "--json", &path("root")]).expect_code(0);
        let shown: serde_json::Value = serde_json::from_str(&shown.text()).unwrap();
        let realm = shown["realm"].as_str().unwrap().to_owned();
        Self { gateway: Gateway::with(&["--realm", &realm]), files }
    }

    fn path(&self, name: &str) -> String {
        self.files.path().join(name).to_str().unwrap().to_owned()
    }

    /// Makes a key, and a grant for it.
    fn member(&self, name: &str, terms: &[&str]) {
        run(self.files.path(), &["keygen", "--out", &self.path(name)]).expect_code(0);
        self.grant(name, terms);
    }

    fn grant(&self, name: &str, terms: &[&str]) {
        let (issuer, key) = (self.path("issuer"), self.path(name));
        let out = self.path(&format!("{name}.grant"));
        let grant = ["realm", "grant", "--issuer", &issuer, "--for", &key, "--out", &out];
        run(self.files.path(), &[&grant[..], terms].concat()).expect_code(0);
    }

    fn arguments(&self, name: &str, command: &str, arguments: &[&str]) -> Vec<String> {
        let grant = self.path(&format!("{name}.grant"));
        let (gateway, key) = (self.gateway.pinned(), self.path(name));
        let first = [command, "-g", &gateway, "--key", &key, "--grant", &grant];
        first.iter().chain(arguments).map(|it| (*it).to_owned()).collect()
    }

    fn run(&self, name: &str, command: &str, arguments: &[&str]) -> Done {
        let all = self.arguments(name, command, arguments);
        run(self.files.path(), &all.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn start(&self, name: &str, command: &str, arguments: &[&str]) -> Running {
        let all = self.arguments(name, command, arguments);
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        Running::start(self.files.path(), &all).ready()
    }
}

#[test]
fn members_talk_and_others_learn_what_is_missing_and_who_can_give_it() {
    let realm = Realm::new();
    realm.member("alice", &[]);
    realm.member("bob", &["--allow", "subscribe:site.**", "--allow", "call:echo"]);
    let sub = realm.start("bob", "sub", &["site.*", "--count", "1"]);
    realm.run("alice", "pub", &["site.7", "hello"]).expect_code(0);
    assert!(sub.finish().expect_code(0).text().contains("hello"));

    // no grant, somebody else's grant, one that does not allow it
    let gateway = realm.gateway.pinned();
    let stranger = ["pub", "-g", &gateway, "-r", "com.example.plant", "site.7", "x"];
    run(realm.files.path(), &stranger).expect_code(4);
    std::fs::copy(realm.path("alice.grant"), realm.path("bob.stolen.grant")).unwrap();
    std::fs::copy(realm.path("bob"), realm.path("bob.stolen")).unwrap();
    let done = realm.run("bob.stolen", "pub", &["site.7", "x"]).expect_code(4);
    assert!(done.stderr.contains("the grant is for endpoint"), "{}", done.stderr);
    let done = realm.run("bob", "pub", &["--qos", "1", "site.7", "x"]).expect_code(4);
    let expected = "it allows no publish at all; ask ops@example.com for a grant that does";
    assert!(done.stderr.contains(expected), "{}", done.stderr);
    let done = realm.run("bob", "sub", &["**"]).expect_code(4);
    assert!(done.stderr.contains("it allows subscribe on `site.**`"), "{}", done.stderr);
}

#[test]
fn members_are_relayed_as_their_grants_say() {
    let realm = Realm::new();
    realm.member("alice", &[]);
    realm.member("bob", &["--allow", "call:**"]);
    realm.member("carol", &[]);
    let serve = realm.start("carol", "serve", &["echo", "--echo"]);
    let id = run(realm.files.path(), &["keygen", "--show", &realm.path("carol")]);
    let id = id.expect_code(0).text().trim().to_owned();
    let ping = [id.as_str(), "--until-direct", "--count", "20"];
    realm.run("alice", "ping", &ping).expect_code(0);
    let text = realm.run("alice", "turn-credentials", &[]).expect_code(0).text();
    assert!(text.contains("username"), "{text}");
    let done = realm.run("bob", "turn-credentials", &[]).expect_code(4);
    assert!(done.stderr.contains("gives this member no TURN credentials"), "{}", done.stderr);
    drop(serve);
}

#[test]
fn a_grant_that_ends_or_is_revoked_ends_the_command_with_code_4() {
    let realm = Realm::new();
    realm.member("brief", &["--valid", "4s"]);
    realm.member("bad", &[]);
    realm.member("good", &[]);
    realm.member("other", &[]);
    let began = Instant::now();
    let brief = realm.start("brief", "sub", &["**"]);
    let bad = realm.start("bad", "sub", &["**"]);
    let good = realm.start("good", "sub", &["**"]);
    let done = brief.finish().expect_code(4);
    assert!(done.stderr.contains("the grant expired at"), "{}", done.stderr);
    assert!(began.elapsed() < Duration::from_secs(20));

    let (root, records) = (realm.path("root"), realm.path("records"));
    let shown = run(realm.files.path(), &["keygen", "--show", &realm.path("bad")]);
    let id = shown.expect_code(0).text().trim().to_owned();
    let gateway = realm.gateway.pinned();
    let revoke = ["realm", "revoke", "--root", &root, "--revocations", &records, &id];
    let revoke = [&revoke[..], &["-g", &gateway]].concat();
    run(realm.files.path(), &revoke).expect_code(0);
    let done = bad.finish().expect_code(4);
    assert!(done.stderr.contains("has revoked this endpoint"), "{}", done.stderr);
    realm.run("other", "pub", &["t", "still here"]).expect_code(0);
    wait_for("the message", || good.stdout().contains("still here"));
    assert!(realm.gateway.events().contains("\"expelled\""));
}
