//! Every NAT is what it says, every delay is there, nothing is left behind.

use std::time::Duration;

use macula_natlab::{Lab, NatKind, Settings, Shared, Stop, Weather, check, check_ability};

/// Whether the laboratory can run; says so when it cannot.
pub(crate) fn is_able(test: &str) -> bool {
    match check_ability() {
        Ok(()) => true,
        Err(why) => {
            eprintln!("SKIPPED {test}: {why}");
            false
        }
    }
}

#[test]
fn every_nat_is_what_it_says() {
    if !is_able("every_nat_is_what_it_says") {
        return;
    }
    let weather = Weather { delay: Duration::from_millis(20), jitter: Duration::ZERO, loss: 0.0 };
    let mut lab = Lab::build(Settings { weather: Some(weather), seed: 1 }).unwrap();
    let stop = Stop::new();
    let findings = check::run(&mut lab, &NatKind::ALL, &Shared::ALL, &stop, &mut |_| {}).unwrap();
    for finding in &findings {
        eprintln!("{finding:?}");
    }
    let wrong: Vec<_> = findings.iter().filter(|finding| !finding.is_right).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(findings.len(), NatKind::ALL.len() + Shared::ALL.len());

    let made: Vec<String> = lab.namespaces().into_iter().map(str::to_owned).collect();
    assert!(made.len() >= findings.len());
    drop(lab);
    let left: Vec<_> =
        made.iter().filter(|name| std::path::Path::new("/run/netns").join(name).exists()).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}
