//! Links between peers, as the program shows them.

use serde_json::Value;

use crate::harness::{Gateway, Running, run, wait_for};

fn responder(gateway: &Gateway) -> (Running, String) {
    let pinned = gateway.pinned();
    let arguments = ["lab", "responder", "-g", &pinned, "-r", "lab", "--json"];
    let responder = Running::start(gateway.home(), &arguments);
    wait_for("the responder", || responder.stdout().contains('\n'));
    let ready: Value = serde_json::from_str(responder.stdout().lines().next().unwrap()).unwrap();
    assert_eq!(ready["event"], "ready");
    let id = ready["id"].as_str().unwrap().to_owned();
    (responder, id)
}

#[test]
fn many_beats_at_a_time_all_come_back_and_are_not_told_of() {
    let gateway = Gateway::start();
    let (responder, id) = responder(&gateway);
    let pinned = gateway.pinned();
    let mut arguments = vec!["lab", "initiator", "-g", &pinned, "-r", "lab", "--peer", &id];
    // more than may be out at a time
    arguments.extend(["--count", "6000", "--batch", "1000", "--interval", "1ms"]);
    arguments.extend(["--quiet", "--json"]);
    let done = run(gateway.home(), &arguments).expect_code(0);
    assert!(!done.text().contains("\"beat\""), "{}", done.text());
    let last: Value = serde_json::from_str(done.text().lines().last().unwrap()).unwrap();
    for (name, value) in
        [("sent", 6000), ("received", 6000), ("lost", 0), ("duplicated", 0), ("reordered", 0)]
    {
        assert_eq!(last[name], value, "{name}: {last}");
    }
    drop(responder);
}

#[test]
fn beats_come_back_and_every_event_is_a_line() {
    let gateway = Gateway::start();
    let (responder, id) = responder(&gateway);
    let pinned = gateway.pinned();
    for found in [&["--peer", id.as_str()][..], &[]] {
        let mut arguments =
            vec!["lab", "initiator", "-g", &pinned, "-r", "lab", "--interval", "10ms"];
        arguments.extend(["--count", "30", "--bytes", "1000", "--json"]);
        arguments.extend(found);
        let done = run(gateway.home(), &arguments).expect_code(0);
        let events: Vec<Value> =
            done.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(events[0]["event"], "ready");
        assert_eq!(events[1]["event"], "connected");
        let beats: Vec<&Value> = events.iter().filter(|event| event["event"] == "beat").collect();
        assert_eq!(beats.len(), 30);
        assert!(beats.iter().all(|beat| beat["ms"].is_u64() && beat["path"].is_string()));
        let last = events.last().unwrap();
        assert_eq!(last["event"], "done");
        for (name, value) in
            [("sent", 30), ("received", 30), ("lost", 0), ("duplicated", 0), ("reordered", 0)]
        {
            assert_eq!(last[name], value, "{last}");
        }
    }
    assert!(responder.stdout().contains(r#""event":"connected""#));
}

#[test]
fn ping_until_direct_says_by_its_exit_code_whether_it_is() {
    let gateway = Gateway::start();
    let (_responder, id) = responder(&gateway);
    let arguments = [id.as_str(), "--until-direct", "-i", "100ms", "-n", "50"];
    let done = gateway.run("lab", "ping", &arguments).expect_code(0);
    assert!(done.text().lines().last().unwrap().contains("direct"), "{}", done.text());

    let done = gateway.run("lab", "status", &["--peer", &id, "--json"]).expect_code(0);
    let status: Value = serde_json::from_str(&done.text()).unwrap();
    let own = status["own_links"].as_array().unwrap();
    let to_peer = own.iter().find(|link| link["peer"] == id.as_str()).unwrap();
    assert_eq!(to_peer["path"], "direct", "{status}");
    assert!(to_peer["received_bytes"].as_u64() > Some(0), "{status}");
    let key = gateway.home().join("nobody.key");
    let key = key.to_str().unwrap();
    run(gateway.home(), &["keygen", "--out", key]).expect_code(0);
    let nobody = run(gateway.home(), &["keygen", "--show", key]).expect_code(0).text();
    let nobody = gateway.run("lab", "status", &["--peer", nobody.trim()]);
    assert!(nobody.stderr.contains("error: peer"), "{}", nobody.stderr);

    let pinned = gateway.pinned();
    let relayed = ["lab", "responder", "-g", &pinned, "-r", "hidden", "--strategy", "always_relay"];
    let relayed = Running::start(gateway.home(), &relayed);
    wait_for("the responder", || relayed.stdout().contains('\n'));
    let id = relayed.stdout().lines().next().unwrap().to_owned();
    let id = id.split([' ', ',']).nth(2).unwrap().to_owned();
    let arguments = [id.as_str(), "--until-direct", "-i", "10ms", "-n", "5", "--json"];
    let done = gateway.run("hidden", "ping", &arguments).expect_code(5);
    assert_eq!(done.text().lines().count(), 5);
    assert!(done.text().lines().all(|line| line.contains(r#""path":"relayed""#)));
}

#[test]
fn a_peer_that_is_not_there_is_unreachable() {
    let gateway = Gateway::start();
    let nobody = "y".repeat(52);
    let done = gateway.run("lab", "ping", &[&nobody, "--until-direct"]).expect_code(3);
    assert!(done.stderr.contains("no such endpoint"), "{}", done.stderr);
}
