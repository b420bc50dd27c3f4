//! The gateway as an operator sees it.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::harness::{Gateway, Running, run, wait_for};

#[test]
fn it_says_who_it_is_and_what_to_try() {
    let home = tempfile::tempdir().unwrap();
    let gateway = Running::start(home.path(), &["gateway", "--listen", "127.0.0.1:0"]);
    wait_for("the announcement", || gateway.stderr().contains("macula pub -g"));
    let text = gateway.stderr();
    assert!(text.contains("ANY open realm"), "{text}");
    assert_eq!(gateway.stdout(), "");
    // The commands that it shows work as they stand.
    let line = text.lines().find(|line| line.contains("macula pub")).unwrap();
    let line = line.replace('\'', "");
    let mut arguments: Vec<&str> = line.split_whitespace().skip(1).collect();
    arguments.pop();
    run(home.path(), &arguments).expect_code(0);
}

#[test]
fn a_port_in_use_is_said_so() {
    let gateway = Gateway::start();
    let home = tempfile::tempdir().unwrap();
    let done = run(home.path(), &["gateway", "--listen", &gateway.addr]).expect_code(1);
    let expected = format!("address in use: another program listens on UDP {}", gateway.addr);
    assert!(done.stderr.contains(&expected), "{}", done.stderr);
}

#[test]
fn flags_win_over_environment_and_that_over_the_file() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("gateway.toml");
    std::fs::write(&file, "listen = \"127.0.0.1:0\"\nrealms = [\"file\"]\n").unwrap();
    let path = file.to_str().unwrap();
    let realms_of = |environment: Option<&str>, flags: &[&str]| {
        let mut command = crate::harness::macula(home.path(), &["gateway", "--json"]);
        command.args(["--config", path]).args(flags);
        if let Some(realm) = environment {
            command.env("MACULA_REALM", realm);
        }
        let gateway = Running::spawn(command.stdin(std::process::Stdio::null()));
        wait_for("the announcement", || gateway.stdout().contains('\n'));
        let told: serde_json::Value = serde_json::from_str(gateway.stdout().trim()).unwrap();
        told["realms"].to_string()
    };
    assert_eq!(realms_of(None, &[]), "[\"file\"]");
    assert_eq!(realms_of(Some("env,env2"), &[]), "[\"env\",\"env2\"]");
    assert_eq!(realms_of(Some("env"), &["--realm", "flag"]), "[\"flag\"]");
    std::fs::write(&file, "[limits]\nlinks = 1\n").unwrap();
    let done = run(home.path(), &["gateway", "--config", path]).expect_code(1);
    assert!(done.stderr.contains("line 2"), "{}", done.stderr);
}

#[test]
fn sigterm_drains_and_peers_come_back() {
    let mut gateway = Gateway::start();
    let mut sub = gateway.ready("lab", "sub", &["t", "-C", "1"]);
    let began = Instant::now();
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.wait(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(gateway.events().contains("draining"), "{}", gateway.events());
    wait_for("the news", || sub.stderr().contains("lost gateway"));
    gateway.restart();
    wait_for("the subscriber", || sub.stderr().contains("is back"));
    // The subscription is resumed a moment after the link, and then gets what came before it from
    // the ring, although its publisher was told that nobody subscribes.
    wait_for("a message", || {
        let done = gateway.run("lab", "pub", &["t", "again", "--qos", "1"]);
        assert!(matches!(done.code, Some(0 | 6)), "{}", done.stderr);
        !sub.is_running()
    });
    assert_eq!(sub.finish().expect_code(0).text(), "again\n");
}

#[test]
fn an_ipv6_literal_works() {
    let Ok(socket) = std::net::UdpSocket::bind("[::1]:0") else { return };
    drop(socket);
    let home = tempfile::tempdir().unwrap();
    let gateway = Running::start(home.path(), &["gateway", "--json", "--listen", "[::1]:0"]);
    wait_for("the announcement", || gateway.stdout().contains('\n'));
    let told: serde_json::Value = serde_json::from_str(gateway.stdout().trim()).unwrap();
    let addr = told["addr"].as_str().unwrap();
    assert!(addr.starts_with("[::1]:"), "{addr}");
    run(home.path(), &["pub", "-g", addr, "-r", "lab", "t", "x"]).expect_code(0);
}
