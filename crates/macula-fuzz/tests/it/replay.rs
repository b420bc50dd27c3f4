//! Committed inputs: the corpus, and what fuzzers found before.

use std::path::{Path, PathBuf};

use macula_fuzz::TARGETS;

/// The directory of the cargo-fuzz package.
pub fn fuzz_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}

/// The committed inputs of one target, by file.
pub fn inputs(kind: &str, target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let directory = fuzz_dir().join(kind).join(target);
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
        .into_iter()
        .map(|path| {
            let data = std::fs::read(&path).unwrap();
            (path, data)
        })
        .collect()
}

#[test]
fn committed_inputs_violate_nothing() {
    for (target, body) in TARGETS {
        let corpus = inputs("corpus", target);
        assert!(!corpus.is_empty(), "no seeds for {target}");
        for (path, data) in corpus.into_iter().chain(inputs("regressions", target)) {
            if let Err(panic) = std::panic::catch_unwind(|| body(&data)) {
                eprintln!("the input is {}", path.display());
                std::panic::resume_unwind(panic);
            }
        }
    }
}

#[test]
fn every_body_has_its_target_and_every_target_its_body() {
    let manifest = std::fs::read_to_string(fuzz_dir().join("Cargo.toml")).unwrap();
    let names: Vec<&str> = manifest
        .split("[[bin]]")
        .skip(1)
        .map(|bin| bin.split('"').nth(1).expect("a name"))
        .collect();
    assert_eq!(names, TARGETS.map(|(name, _)| name), "fuzz/Cargo.toml and TARGETS");
    for name in names {
        let program = fuzz_dir().join(format!("fuzz_targets/{name}.rs"));
        let program = std::fs::read_to_string(program).unwrap();
        assert!(program.contains(&format!("macula_fuzz::{name}(data)")), "{name}");
    }
    for kind in ["corpus", "regressions"] {
        let Ok(entries) = std::fs::read_dir(fuzz_dir().join(kind)) else { continue };
        for entry in entries {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(TARGETS.iter().any(|(target, _)| *target == name), "fuzz/{kind}/{name}");
        }
    }
}
