//! Every exit code, by a failure that users meet.

use crate::harness::{Gateway, run, wait_for};

#[test]
fn wrong_arguments_end_with_2() {
    let home = tempfile::tempdir().unwrap();
    run(home.path(), &["pub"]).expect_code(2);
    run(home.path(), &["frobnicate"]).expect_code(2);
    run(home.path(), &["pub", "-g", "a:b:c", "-r", "lab", "t", "x"]).expect_code(2);
    run(home.path(), &["sub", "-g", "localhost", "t"]).expect_code(2);
    let done = run(home.path(), &["--log", "a=b=c", "completion", "bash"]).expect_code(2);
    assert!(done.stderr.contains("log filter"), "{}", done.stderr);
}

#[test]
fn a_malformed_name_ends_with_2() {
    let gateway = Gateway::start();
    gateway.run("lab", "pub", &["a..b", "x"]).expect_code(2);
    gateway.run("lab", "pub", &["a.*", "x"]).expect_code(2);
    gateway.run("lab", "sub", &["**.b"]).expect_code(2);
    gateway.run("lab", "call", &["a..b"]).expect_code(2);
    gateway.run("lab", "serve", &["a..b", "--echo"]).expect_code(2);
    let long = vec!["x"; 10_000].join(".");
    gateway.run("lab", "pub", &[&long, "x"]).expect_code(2);
}

#[test]
fn a_gateway_that_is_not_there_ends_with_3() {
    let home = tempfile::tempdir().unwrap();
    let gone = Gateway::start().addr.clone();
    for command in ["pub", "call"] {
        let arguments = [command, "-g", &gone, "-r", "lab", "--connect-timeout", "700ms", "t", "x"];
        let done = run(home.path(), &arguments).expect_code(3);
        assert!(done.stderr.contains(&gone), "{}", done.stderr);
    }
    run(home.path(), &["status", "-g", &gone, "--connect-timeout", "700ms"]).expect_code(3);
    let nowhere = ["ping", "-g", "no-such-host.invalid", "--connect-timeout", "700ms"];
    run(home.path(), &nowhere).expect_code(3);
}

#[test]
fn a_realm_that_is_not_admitted_ends_with_4() {
    let gateway = Gateway::with(&["--realm", "red"]);
    let done = gateway.run("blue", "pub", &["t", "x"]).expect_code(4);
    assert!(done.stderr.contains("blue"), "{}", done.stderr);
    gateway.run("red", "pub", &["t", "x"]).expect_code(0);
}

#[test]
fn too_late_ends_with_5() {
    let gateway = Gateway::start();
    let done = gateway.run("lab", "sub", &["t", "-C", "1", "-W", "0.3"]).expect_code(5);
    assert!(done.stderr.contains("0 of 1"), "{}", done.stderr);
    gateway.run("lab", "sub", &["t", "-W", "0.3"]).expect_code(0);
    let _serve = gateway.ready("lab", "serve", &["slow", "--command", "sleep 20"]);
    gateway.run("lab", "call", &["slow", "--timeout", "300ms"]).expect_code(5);
}

#[test]
fn nobody_there_ends_with_6() {
    let gateway = Gateway::start();
    let done = gateway.run("lab", "pub", &["t", "x", "--qos", "1"]).expect_code(6);
    assert!(done.stderr.contains("nobody subscribes"), "{}", done.stderr);
    gateway.run("lab", "pub", &["t", "x", "--qos", "1", "--retain"]).expect_code(0);
    gateway.run("lab", "pub", &["t", "x"]).expect_code(0);
    gateway.run("lab", "call", &["nothing"]).expect_code(6);
}

#[test]
fn a_handlers_no_ends_with_7_and_keeps_code_and_words() {
    let gateway = Gateway::start();
    let command = "echo too warm >&2; exit 42";
    let _serve = gateway.ready("lab", "serve", &["heat", "--command", command]);
    let done = gateway.run("lab", "call", &["heat"]).expect_code(7);
    assert!(done.stderr.contains("42") && done.stderr.contains("too warm"), "{}", done.stderr);
    let done = gateway.run("lab", "call", &["heat", "--json"]).expect_code(7);
    let json: serde_json::Value = serde_json::from_str(&done.text()).unwrap();
    assert_eq!((&json["class"], &json["code"]), (&"refused".into(), &42.into()));
    assert_eq!(json["message"], "too warm");
}

#[test]
fn a_busy_provider_ends_with_8() {
    let gateway = Gateway::start();
    let home = tempfile::tempdir().unwrap();
    let began = home.path().join("began");
    let command = format!("echo >> {}; sleep 20", began.display());
    let arguments = ["slow", "--concurrency", "1", "--command", &command];
    let _serve = gateway.ready("lab", "serve", &arguments);
    let pinned = gateway.pinned();
    let call = ["call", "-g", &pinned, "-r", "lab", "slow", "--timeout", "20s"];
    // One is worked on, one waits, and then there is no room.
    let _first = crate::harness::Running::start(home.path(), &call);
    wait_for("the first call", || began.exists());
    let mut others: Vec<_> =
        (0..2).map(|_| crate::harness::Running::start(home.path(), &call)).collect();
    wait_for("a refused call", || others.iter_mut().any(|call| !call.is_running()));
    let index = others.iter_mut().position(|call| !call.is_running()).unwrap();
    others.swap_remove(index).finish().expect_code(8);
}
