//! `macula sim`: the same run in every process, and what is said about scenarios that are none.

use crate::harness::run;

const SMALL: &str = "name = 'small'\nabout = 'A test.'\nnodes = 60\n[join]\nsettle = '60s'\n\
    [[step]]\ndo = 'measure'\n[[step]]\ndo = 'lookups'\nphase = 'all'\ncount = 100\nover = '2s'\n";

#[test]
fn two_processes_find_the_same() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("small.toml");
    std::fs::write(&file, SMALL).unwrap();
    let file = file.to_str().unwrap();
    let digest = |seed: &str, threads: &str| {
        let arguments = ["sim", "run", file, "--seed", seed, "--threads", threads, "--json"];
        let done = run(home.path(), &arguments).expect_code(0);
        let text = done.text();
        let last = text.lines().last().expect("a line");
        let summary: serde_json::Value = serde_json::from_str(last).expect("JSON");
        assert_eq!(summary["lookups"], 100);
        assert_eq!(summary["lookups_ok"], 100, "{summary}");
        summary["digest"].as_str().expect("a digest").to_owned()
    };
    let first = digest("5", "1");
    assert_eq!(first, digest("5", "1"));
    assert_eq!(first, digest("5", "2"));
    assert_ne!(first, digest("6", "1"));
}

#[test]
fn pictures_are_drawn() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("small.toml");
    std::fs::write(&file, SMALL).unwrap();
    let plots = home.path().join("plots");
    let arguments = ["sim", "run", file.to_str().unwrap(), "--plots", plots.to_str().unwrap()];
    let done = run(home.path(), &arguments).expect_code(0);
    assert!(done.text().contains("links per node, mean"), "{}", done.text());
    for name in ["hops.svg", "links.svg", "timeline.svg"] {
        let text = std::fs::read_to_string(plots.join(name)).expect(name);
        assert!(text.starts_with("<svg"), "{name}");
    }
}

#[test]
fn a_scenario_that_is_none_ends_with_2() {
    let home = tempfile::tempdir().unwrap();
    run(home.path(), &["sim", "run", "no-such-scenario"]).expect_code(2);
    run(home.path(), &["sim", "show", "no-such-scenario"]).expect_code(2);
    run(home.path(), &["sim", "run", "converged", "--set", "overlay.colour=1"]).expect_code(2);
    let list = run(home.path(), &["sim", "list"]).expect_code(0).text();
    for name in ["converged", "kill20", "fanout"] {
        assert!(list.contains(name), "{list}");
        let shown = run(home.path(), &["sim", "show", name]).expect_code(0).text();
        assert!(shown.contains("[[step]]"), "{shown}");
    }
}
