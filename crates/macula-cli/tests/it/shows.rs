//! The demo and the benchmarks. That the demo holds is what CI sees by running it.

use std::path::Path;

use rustix::process::Signal;

use crate::harness::{Running, run, wait_for};

fn process_ids(text: &str) -> Vec<String> {
    let words = text.lines().filter_map(|line| {
        let what: serde_json::Value = serde_json::from_str(line).ok()?;
        let what = what["what"].as_str()?.to_owned();
        Some(what.split_once("process ")?.1.to_owned())
    });
    words.collect()
}

#[test]
fn an_interrupted_demo_leaves_nothing_behind() {
    for signal in [Signal::INT, Signal::KILL] {
        let home = tempfile::tempdir().unwrap();
        let demo = Running::start(home.path(), &["demo", "--json", "--keep"]);
        wait_for("five processes", || process_ids(&demo.stdout()).len() == 5);
        let ids = process_ids(&demo.stdout());
        demo.signal(signal);
        let done = demo.finish();
        assert_eq!(done.code, (signal == Signal::INT).then_some(1), "{}", done.stderr);
        let is_gone = |id: &String| {
            let status = std::fs::read_to_string(format!("/proc/{id}/status"));
            status.is_err() || status.is_ok_and(|status| status.contains("State:\tZ"))
        };
        assert!(Path::new("/proc").exists());
        wait_for("the end of all processes", || ids.iter().all(is_gone));
    }
}

#[test]
fn benchmarks_give_their_figures() {
    let home = tempfile::tempdir().unwrap();
    for bench in [
        &["pubsub", "--subscribers", "2", "--policy", "block"][..],
        &["pubsub", "--rate", "500", "--qos", "1"],
        &["rpc", "--in-flight", "8"],
    ] {
        let mut arguments = vec!["bench"];
        arguments.extend(bench);
        arguments.extend(["--seconds", "0.4", "--json"]);
        let done = run(home.path(), &arguments).expect_code(0);
        let figures: serde_json::Value = serde_json::from_str(&done.text()).unwrap();
        assert_eq!((&figures["bench"], &figures["lost"]), (&bench[0].into(), &0.into()));
        for name in ["per_second", "p50_us", "p99_us", "gateway_resident_bytes"] {
            assert!(figures[name].as_f64().unwrap() > 0.0, "{name}: {figures}");
        }
        assert!(figures["cpu_us_per_message"]["gateway"].is_number(), "{figures}");
    }
}

#[test]
fn a_soak_run_finds_nothing_and_says_what_it_checked() {
    let home = tempfile::tempdir().unwrap();
    let arguments = ["bench", "soak", "--minutes", "0.1", "--seed", "7", "--json"];
    let done = run(home.path(), &arguments).expect_code(0);
    let figures: serde_json::Value = serde_json::from_str(&done.text()).unwrap();
    assert_eq!((&figures["bench"], &figures["seed"]), (&"soak".into(), &7.into()));
    assert_eq!((&figures["violations"], &figures["restarts"]), (&0.into(), &2.into()));
    for name in ["operations", "published", "received", "deliveries_checked", "calls"] {
        assert!(figures[name].as_u64().unwrap() > 0, "{name}: {figures}");
    }
}
