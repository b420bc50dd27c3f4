//! What the commands are for.

use crate::harness::{Gateway, Running, macula, run, run_with, wait_for};
use rustix::process::Signal;
use std::process::Stdio;

fn json_lines(text: &str) -> Vec<serde_json::Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_message_reaches_its_subscriber() {
    let gateway = Gateway::start();
    let sub = gateway.ready("lab", "sub", &["a.*", "b.**", "-C", "3", "-v"]);
    gateway.run("lab", "pub", &["a.x", "one"]).expect_code(0);
    gateway.run("lab", "pub", &["b.x.y", "-2"]).expect_code(0);
    gateway.run("lab", "pub", &["c", "not for me"]).expect_code(0);
    gateway.run("lab", "pub", &["a.z", "three", "--qos", "1"]).expect_code(0);
    let done = sub.finish().expect_code(0);
    assert_eq!(done.text(), "a.x one\nb.x.y -2\na.z three\n");
}

#[test]
fn json_has_text_or_base64() {
    let gateway = Gateway::start();
    let sub = gateway.ready("lab", "sub", &["t", "-C", "2", "--json"]);
    let pinned = gateway.pinned();
    let arguments = ["pub", "-g", &pinned, "-r", "lab", "t", "-"];
    run_with(gateway.home(), &arguments, b"text \"quoted\"\n").expect_code(0);
    run_with(gateway.home(), &arguments, b"\xff\x00").expect_code(0);
    let found = json_lines(&sub.finish().expect_code(0).text());
    assert_eq!(found[0]["topic"], "t");
    assert_eq!(found[0]["payload"], "text \"quoted\"\n");
    assert_eq!(found[0]["sequence"], 1);
    assert_eq!(found[0]["retained"], false);
    assert_eq!(found[0]["publisher"].as_str().unwrap().len(), 52);
    assert_eq!(found[1]["payload_base64"], "/wA=");
    assert!(found[1].get("payload").is_none());
}

#[test]
fn a_retained_message_waits_for_its_subscriber() {
    let gateway = Gateway::start();
    gateway.run("lab", "pub", &["state", "old", "--retain"]).expect_code(0);
    gateway.run("lab", "pub", &["state", "new", "--retain"]).expect_code(0);
    let done = gateway.run("lab", "sub", &["state", "-C", "1", "-W", "10", "--json"]);
    let found = json_lines(&done.expect_code(0).text());
    assert_eq!((&found[0]["payload"], &found[0]["retained"]), (&"new".into(), &true.into()));
    let skipped = ["state", "-C", "1", "-W", "0.4", "--no-retained"];
    gateway.run("lab", "sub", &skipped).expect_code(5);
}

#[test]
fn calls_get_their_answers() {
    let gateway = Gateway::start();
    let _echo = gateway.ready("lab", "serve", &["echo", "--echo"]);
    let _shout = gateway.ready("lab", "serve", &["shout", "--command", "tr a-z A-Z"]);
    assert_eq!(gateway.run("lab", "call", &["echo", "hi"]).expect_code(0).text(), "hi\n");
    assert_eq!(gateway.run("lab", "call", &["shout", "hi"]).expect_code(0).text(), "HI\n");
    let pinned = gateway.pinned();
    let large = vec![b'x'; 1 << 20];
    let arguments = ["call", "-g", &pinned, "-r", "lab", "shout", "-"];
    let done = run_with(gateway.home(), &arguments, &large).expect_code(0);
    assert_eq!(done.stdout.len(), large.len() + 1);
    let done = gateway.run("lab", "call", &["echo", "hi", "--json"]).expect_code(0);
    assert_eq!(done.text(), "{\"ok\":true,\"result\":\"hi\"}\n");
}

#[test]
fn a_cancelled_call_kills_its_command() {
    let gateway = Gateway::start();
    let directory = tempfile::tempdir().unwrap();
    let (began, ended) = (directory.path().join("began"), directory.path().join("ended"));
    let command =
        format!("echo $$ > {}; (sleep 3; touch {}) & wait", began.display(), ended.display());
    let _serve = gateway.ready("lab", "serve", &["slow", "--command", &command]);
    gateway.run("lab", "call", &["slow", "--timeout", "300ms"]).expect_code(5);
    let pid = std::fs::read_to_string(&began).unwrap();
    let process = format!("/proc/{}", pid.trim());
    wait_for("the end of the command", || !std::path::Path::new(&process).exists());
    assert!(!ended.exists());
}

#[test]
fn realm_and_gateway_come_from_the_environment_too() {
    let gateway = Gateway::start();
    let sub = gateway.ready("lab", "sub", &["t", "-C", "1"]);
    let status = macula(gateway.home(), &["pub", "t", "from the environment"])
        .env("MACULA_GATEWAY", gateway.pinned())
        .env("MACULA_REALM", "lab")
        .status()
        .unwrap();
    assert!(status.success());
    assert_eq!(sub.finish().expect_code(0).text(), "from the environment\n");
}

#[test]
fn sub_and_serve_end_well_when_told_to() {
    let gateway = Gateway::start();
    for (command, more) in [("sub", &["t"][..]), ("serve", &["p", "--echo"])] {
        for signal in [Signal::INT, Signal::TERM] {
            let running = gateway.ready("lab", command, more);
            running.signal(signal);
            running.finish().expect_code(0);
        }
    }
}

#[test]
fn a_reader_that_has_seen_enough_ends_sub_quietly() {
    let gateway = Gateway::start();
    let pinned = gateway.pinned();
    let script = format!("{} sub -g {pinned} -r lab t | head -n 1", env!("CARGO_BIN_EXE_macula"));
    let mut shell = macula(gateway.home(), &[]);
    let mut shell = std::process::Command::new("sh")
        .args(["-c", &script])
        .envs(shell.stdin(Stdio::null()).get_envs().filter_map(|(k, v)| Some((k, v?))))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Publishing goes on until the reader has had its line and `sub` has noticed.
    wait_for("the end of the pipe", || {
        gateway.run("lab", "pub", &["t", "x"]).expect_code(0);
        shell.try_wait().unwrap().is_some()
    });
    let output = shell.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "x\n");
    assert_eq!(String::from_utf8_lossy(&output.stderr).trim(), "ready");
}

#[test]
fn a_trickle_is_printed_at_once() {
    let gateway = Gateway::start();
    let sub = gateway.ready("lab", "sub", &["t"]);
    let mut publisher = Running::spawn(
        macula(gateway.home(), &["pub", "-g", &gateway.pinned(), "-r", "lab", "t", "--lines"])
            .stdin(Stdio::piped()),
    );
    let mut stdin = publisher.stdin();
    for line in ["one\n", "two\n", "three without newline"] {
        std::io::Write::write_all(&mut stdin, line.as_bytes()).unwrap();
        let line = line.trim_end();
        if line.len() > 5 {
            break;
        }
        wait_for("a line", || sub.stdout().lines().any(|found| found == line));
    }
    drop(stdin);
    publisher.finish().expect_code(0);
    wait_for("the last line", || sub.stdout().ends_with("three without newline\n"));
}

#[test]
fn two_realms_with_the_same_topics_never_mix() {
    let gateway = Gateway::with(&["--realm", "red", "--realm", "blue"]);
    let subs: Vec<Running> = ["red", "blue"]
        .iter()
        .map(|realm| gateway.ready(realm, "sub", &["**", "-C", "500"]))
        .collect();
    let pinned = gateway.pinned();
    for realm in ["red", "blue"] {
        let input: String = (0..500).map(|index| format!("{realm} {index}\n")).collect();
        let arguments = ["pub", "-g", &pinned, "-r", realm, "news.today", "--lines"];
        run_with(gateway.home(), &arguments, input.as_bytes()).expect_code(0);
    }
    for (realm, sub) in ["red", "blue"].iter().zip(subs) {
        let text = sub.finish().expect_code(0).text();
        assert_eq!(text.lines().count(), 500);
        assert!(text.lines().all(|line| line.starts_with(realm)), "{realm}");
    }
    let _red = gateway.ready("red", "serve", &["echo", "--echo"]);
    gateway.run("blue", "call", &["echo", "x"]).expect_code(6);
    gateway.run("red", "call", &["echo", "x"]).expect_code(0);
}

#[test]
fn status_and_ping_need_no_realm() {
    let gateway = Gateway::with(&["--realm", "red"]);
    let pinned = gateway.pinned();
    let done = run(gateway.home(), &["status", "-g", &pinned, "--json"]).expect_code(0);
    let status: serde_json::Value = serde_json::from_str(&done.text()).unwrap();
    assert_eq!(status["id"], gateway.id.as_str());
    assert!(status["uptime_s"].is_u64() && status["links"].is_u64());
    let done = run(gateway.home(), &["status", "-g", &pinned]).expect_code(0);
    assert!(done.text().contains(&gateway.id));
    let own = &status["own_links"][0];
    assert_eq!((&own["role"], &own["path"]), (&"router".into(), &"udp".into()), "{own}");
    assert!(own["sent_bytes"].as_u64() > Some(0) && own["remote"].is_string(), "{own}");
    // Asked from its own machine a gateway tells all of its links.
    assert_eq!(status["gateway_links"]["links"][0]["role"], "leaf");
    let member = ["status", "-g", &pinned, "-r", "red", "--json"];
    let done = run(gateway.home(), &member).expect_code(0);
    let status: serde_json::Value = serde_json::from_str(&done.text()).unwrap();
    assert_eq!(
        (&status["realms"][0]["name"], &status["realms"][0]["peers"]),
        (&"red".into(), &1.into())
    );
    let arguments = ["ping", "-g", &pinned, "-c", "2", "-i", "10ms", "--json"];
    let found = json_lines(&run(gateway.home(), &arguments).expect_code(0).text());
    assert!(found.len() == 2 && found.iter().all(|line| line["ok"] == true), "{found:?}");
}

#[test]
fn completion_and_config_need_no_gateway() {
    let home = tempfile::tempdir().unwrap();
    let done = run(home.path(), &["completion", "bash"]).expect_code(0);
    assert!(done.text().contains("macula"));
    let default = run(home.path(), &["gateway", "--print-config"]).expect_code(0).text();
    let file = home.path().join("gateway.toml");
    std::fs::write(&file, &default).unwrap();
    let path = file.to_str().unwrap();
    let done = run(home.path(), &["config", "check", path]).expect_code(0);
    assert!(done.text().contains("links_max = 16384"), "{}", done.text());
    std::fs::write(&file, "listen = \"[::]:1\"\nspeed = 9\n").unwrap();
    let done = run(home.path(), &["config", "check", path]).expect_code(1);
    assert!(done.stderr.contains("line 2") && done.stderr.contains("speed"), "{}", done.stderr);
    run(home.path(), &["config", "check", "/no/such/file"]).expect_code(1);
}

#[test]
fn a_peer_in_the_realm_answers_to_ping() {
    let gateway = Gateway::start();
    let file = gateway.home().join("key");
    let path = file.to_str().unwrap();
    let id = run(gateway.home(), &["keygen", "--out", path]).expect_code(0).text();
    let _serve = gateway.ready("lab", "serve", &["p", "--echo", "--key", path]);
    gateway.run("lab", "ping", &[id.trim(), "-c", "1"]).expect_code(0);
    gateway.run("other", "ping", &[id.trim(), "-c", "1"]).expect_code(3);
    let nobody = "y".repeat(52);
    gateway.run("lab", "ping", &[&nobody, "-c", "1"]).expect_code(3);
    gateway.run("lab", "ping", &["nonsense", "-c", "1"]).expect_code(2);
}
