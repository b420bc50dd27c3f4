//! A large text, line by line, to two subscribers: every byte, in order, also across a SIGKILL of
//! the gateway.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::process::Signal;

use crate::harness::{Gateway, Running, macula, wait_for};

/// Lines of the text.
const LINES: usize = 200_000;

/// Real lines: the machine's dictionary if it has one, else this repository's own source, numbered
/// so that no two are the same.
fn real_lines() -> Vec<u8> {
    let mut text = Vec::new();
    let sources = sources();
    let mut count = 0;
    while count < LINES {
        for source in &sources {
            for line in source.split(|byte| *byte == b'\n') {
                if count == LINES {
                    return text;
                }
                count += 1;
                text.extend_from_slice(format!("{count} ").as_bytes());
                text.extend_from_slice(line);
                text.push(b'\n');
            }
        }
    }
    text
}

fn sources() -> Vec<Vec<u8>> {
    if let Ok(words) = std::fs::read("/usr/share/dict/words") {
        return vec![words];
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut found = vec![root.join("Cargo.lock")];
    let mut folders = vec![root.join("crates")];
    while let Some(folder) = folders.pop() {
        let mut entries: Vec<PathBuf> =
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

fn check(kill: bool) {
    let mut gateway = Gateway::start();
    let text = real_lines();
    let file = gateway.home().join("lines");
    std::fs::write(&file, &text).unwrap();
    let count = LINES.to_string();
    let subs: Vec<Running> = (0..2)
        .map(|_| gateway.ready("lab", "sub", &["text.lines", "-C", &count, "-W", "120"]))
        .collect();
    let pinned = gateway.pinned();
    let arguments = ["pub", "-g", &pinned, "-r", "lab", "text.lines", "--lines", "--qos", "1"];
    let publisher = Running::spawn(
        macula(gateway.home(), &arguments).stdin(Stdio::from(std::fs::File::open(&file).unwrap())),
    );
    if kill {
        wait_for("a third of the text", || subs[0].stdout_bytes() > text.len() / 3);
        gateway.signal(Signal::KILL);
        gateway.wait();
        assert!(subs[0].stdout_bytes() < text.len(), "killed in the middle");
        gateway.restart();
    }
    publisher.finish().expect_code(0);
    for sub in subs {
        let done = sub.finish().expect_code(0);
        // Not assert_eq: nobody wants to see megabytes.
        assert!(done.stdout == text, "{} of {} bytes", done.stdout.len(), text.len());
    }
}

#[test]
fn a_large_text_arrives_byte_identical_and_in_order() {
    check(false);
}

#[test]
fn a_large_text_survives_a_killed_gateway() {
    check(true);
}
