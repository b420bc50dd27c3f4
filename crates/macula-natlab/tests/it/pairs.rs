//! The harness with a stand-in program that really punches: verdicts of the kernel's counters.

use std::path::PathBuf;
use std::time::Duration;

use macula_natlab::matrix::{self, Plan, Subject, Verdict};
use macula_natlab::scenario::{self, Scenario};
use macula_natlab::{Lab, NatKind, Settings, Shared, Stop, Weather};

use crate::check::is_able;

/// The stand-in; `None`, said aloud, where there is no Python.
fn stand_in(test: &str) -> Option<Subject> {
    let found = ["/usr/bin/python3", "/usr/local/bin/python3"].map(PathBuf::from);
    let Some(program) = found.into_iter().find(|path| path.is_file()) else {
        eprintln!("SKIPPED {test}: no python3 for the stand-in");
        return None;
    };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/standin.py").to_owned();
    Some(Subject { program, leading: vec![script], realm: "lab".to_owned() })
}

fn lab() -> Lab {
    let weather = Weather { delay: Duration::from_millis(20), jitter: Duration::ZERO, loss: 0.0 };
    Lab::build(Settings { weather: Some(weather), seed: 1 }).unwrap()
}

#[test]
fn verdicts_of_pairs_are_what_the_nats_allow() {
    const NAME: &str = "verdicts_of_pairs_are_what_the_nats_allow";
    let Some(subject) = is_able(NAME).then(|| stand_in(NAME)).flatten() else { return };
    let plan = Plan {
        kinds: vec![NatKind::FullCone, NatKind::PortRestricted, NatKind::Symmetric],
        shared: vec![Shared::NoHairpin, Shared::SameCgn],
        pair_time: Duration::from_secs(5),
        interval: Duration::from_millis(100),
        parallel: 3,
        jitter: Duration::ZERO,
    };
    let mut lab = lab();
    let outcome = matrix::run(&mut lab, &subject, &plan, &Stop::new(), &|_, _, _| {}).unwrap();
    let summary = outcome.summary();
    for pair in &summary.results {
        eprintln!("{pair:?}");
    }
    assert_eq!(summary.pairs, 11);
    assert!((39.0..80.0).contains(&summary.host_relay_ms), "{}", summary.host_relay_ms);
    for pair in &summary.results {
        let names = [pair.initiator.as_str(), pair.responder.as_str()];
        let direct = match names {
            ["symmetric", other] | [other, "symmetric"] => other == "fullcone",
            ["nohairpin", _] => false,
            _ => true,
        };
        let wanted = if direct { Verdict::Direct } else { Verdict::Relayed };
        assert_eq!(pair.verdict, wanted, "{pair:?}");
        assert_eq!(pair.note, None);
    }
}

/// The stand-in never looks for another path, so what it suffers is what the laboratory did.
#[test]
fn trouble_really_troubles() {
    const NAME: &str = "trouble_really_troubles";
    let Some(subject) = is_able(NAME).then(|| stand_in(NAME)).flatten() else { return };
    let suffer = |scenario| {
        let every = Duration::from_millis(100);
        scenario::run(&mut lab(), &subject, scenario, every, &Stop::new()).unwrap()
    };
    std::thread::scope(|scope| {
        let cut = scope.spawn(|| suffer(Scenario::LinkDown));
        let moved = scope.spawn(|| suffer(Scenario::Roam));
        let cut = cut.join().unwrap();
        assert!((2_900.0..8_000.0).contains(&cut.longest_silence_ms), "{cut:?}");
        let moved = moved.join().unwrap();
        assert!(moved.longest_silence_ms > 15_000.0, "{moved:?}");
    });
}

#[test]
fn a_program_that_fails_is_told_of() {
    if !is_able("a_program_that_fails_is_told_of") {
        return;
    }
    let subject = Subject {
        program: PathBuf::from("/bin/sh"),
        leading: vec!["-c".to_owned(), "echo no such thing >&2; exit 3".to_owned()],
        realm: "lab".to_owned(),
    };
    let mut lab = Lab::build(Settings { weather: None, seed: 1 }).unwrap();
    let error = scenario::run(
        &mut lab,
        &subject,
        Scenario::Reboot,
        Duration::from_millis(100),
        &Stop::new(),
    )
    .unwrap_err()
    .to_string();
    assert!(error.contains("the gateway") && error.contains("no such thing"), "{error}");
}

#[test]
fn a_stopped_laboratory_ends_soon() {
    if !is_able("a_stopped_laboratory_ends_soon") {
        return;
    }
    let stop = Stop::new();
    stop.ask();
    let mut lab = Lab::build(Settings { weather: None, seed: 1 }).unwrap();
    let asked = macula_natlab::check::run(&mut lab, &NatKind::ALL, &[], &stop, &mut |_| {});
    assert_eq!(asked.unwrap_err().kind(), macula_natlab::LabErrorKind::Stopped);
}
