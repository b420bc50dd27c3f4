//! Rules about who may depend on whom. They live here because this crate has the most to lose.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// Each crate may use those before it.
const LINE: [&str; 7] = [
    "macula-proto",
    "macula-grant",
    "macula-nat",
    "macula-transport",
    "macula",
    "macula-gateway",
    "macula-cli",
];
/// Tools beside the line, and the last crate of the line that each may use.
const TOOLS: [(&str, &str); 3] =
    [("macula-fuzz", "macula-nat"), ("macula-sim", "macula-nat"), ("macula-natlab", "macula")];
/// A tool that a crate of the line may use, as an exception.
const USED_TOOLS: [(&str, &str); 2] =
    [("macula-cli", "macula-sim"), ("macula-cli", "macula-natlab")];

/// Sockets, runtimes, TLS, and generators of random numbers that nobody seeded.
const IMPURE: [&str; 9] =
    ["tokio", "mio", "socket2", "noq", "noq-proto", "noq-udp", "rustls", "ring", "rand"];

#[test]
fn nothing_that_proto_depends_on_does_io_or_draws_global_randomness() {
    let workspace = Workspace::load();
    let closure = workspace.closure("macula-proto");
    assert!(closure.contains("bytes"), "the closure is not read right: {closure:?}");
    for name in IMPURE {
        assert!(!closure.contains(name), "macula-proto depends on {name}: keep it pure");
    }
}

#[test]
fn crates_use_only_what_is_before_them_in_the_line() {
    let workspace = Workspace::load();
    let mut broken = Vec::new();
    for (user, used) in workspace.own_arrows() {
        if !is_allowed(&user, &used) {
            broken.push(format!("{user} -> {used}"));
        }
    }
    assert!(broken.is_empty(), "arrows against the line (see ARCHITECTURE.md): {broken:?}");
}

#[test]
fn every_crate_has_its_place() {
    for name in Workspace::load().own {
        assert!(last_usable(&name).is_some(), "give {name} a place in LINE or TOOLS");
    }
}

#[test]
fn the_line_runs_one_way() {
    assert!(is_allowed("macula", "macula-proto"));
    assert!(is_allowed("macula-sim", "macula-nat"));
    assert!(is_allowed("macula-cli", "macula-sim"));
    assert!(!is_allowed("macula-proto", "macula"));
    assert!(!is_allowed("macula-proto", "macula-proto"));
    assert!(!is_allowed("macula-sim", "macula-transport"));
    assert!(!is_allowed("macula", "macula-sim"));
    assert!(is_allowed("macula-fuzz", "macula-proto"));
    assert!(is_allowed("macula-fuzz", "macula-nat"));
    assert!(!is_allowed("macula-fuzz", "macula-transport"));
    assert!(!is_allowed("macula-cli", "macula-fuzz"));
}

fn is_allowed(user: &str, used: &str) -> bool {
    let place = |name| LINE.iter().position(|other| *other == name);
    match (last_usable(user), place(used)) {
        (Some(last), Some(used)) => used < last,
        _ => USED_TOOLS.contains(&(user, used)),
    }
}

/// How many crates of the line `name` may use; `None` for a crate without a place.
fn last_usable(name: &str) -> Option<usize> {
    let place = |name: &str| LINE.iter().position(|other| *other == name);
    let tool = TOOLS.iter().find(|(tool, _)| *tool == name);
    place(name).or_else(|| tool.and_then(|(_, last)| place(last)).map(|last| last + 1))
}

/// What `cargo metadata` says.
struct Workspace {
    /// Names by package id.
    names: BTreeMap<String, String>,
    /// Our crates.
    own: BTreeSet<String>,
    /// What each package id depends on, with whether it is more than a dev-dependency.
    arrows: BTreeMap<String, Vec<(String, bool)>>,
}

impl Workspace {
    fn load() -> Self {
        // Only this platform: the others' crates need not be here.
        let version = cargo(&["-vV"]);
        let host = version.lines().find_map(|line| line.strip_prefix("host: ")).expect("a host");
        let metadata: Value = serde_json::from_str(&cargo(&[
            "metadata",
            "--format-version=1",
            "--locked",
            "--filter-platform",
            host,
        ]))
        .expect("JSON");

        let names: BTreeMap<String, String> =
            list(&metadata["packages"]).map(|p| (text(&p["id"]), text(&p["name"]))).collect();
        let own = list(&metadata["workspace_members"]).map(|id| names[&text(id)].clone()).collect();
        let arrows = list(&metadata["resolve"]["nodes"])
            .map(|node| {
                let deps = list(&node["deps"]).map(|dep| {
                    let is_needed = list(&dep["dep_kinds"]).any(|kind| kind["kind"] != "dev");
                    (text(&dep["pkg"]), is_needed)
                });
                (text(&node["id"]), deps.collect())
            })
            .collect();
        Self { names, own, arrows }
    }

    /// Names of everything that `root` needs, dev-dependencies left out.
    fn closure(&self, root: &str) -> BTreeSet<&str> {
        let (root, _) = self.names.iter().find(|(_, name)| *name == root).expect("our crate");
        let (mut seen, mut open) = (BTreeSet::new(), vec![root]);
        while let Some(id) = open.pop() {
            for (dep, is_needed) in &self.arrows[id] {
                if *is_needed && seen.insert(dep) {
                    open.push(dep);
                }
            }
        }
        seen.into_iter().map(|id| self.names[id].as_str()).collect()
    }

    /// Which of our crates uses which, dev-dependencies included.
    fn own_arrows(&self) -> Vec<(String, String)> {
        let mut arrows = Vec::new();
        for (user, deps) in &self.arrows {
            for (used, _) in deps {
                let (user, used) = (&self.names[user], &self.names[used]);
                if self.own.contains(user) && self.own.contains(used) {
                    arrows.push((user.clone(), used.clone()));
                }
            }
        }
        assert!(!arrows.is_empty(), "no crate uses another: the metadata is not read right");
        arrows
    }
}

fn cargo(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO"))
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cargo {arguments:?}: {complaint}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().expect("an array").iter()
}

fn text(value: &Value) -> String {
    value.as_str().expect("a string").to_owned()
}
