//! Runs a built-in scenario and prints its summary: `run SCENARIO NODES SEED THREADS`.
#![expect(clippy::print_stdout, reason = "that is what it is for")]

use macula_sim::{Run, Scenario, run};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().unwrap_or_else(|| "converged".to_owned());
    let mut number =
        |default: u64| arguments.next().and_then(|text| text.parse().ok()).unwrap_or(default);
    let scenario = Scenario::built_in(&name).expect("a built-in scenario");
    let options = Run {
        nodes: Some(number(200) as u32),
        seed: number(1),
        threads: number(1) as usize,
        ..Run::default()
    };
    let summary = run(&scenario, &options, &mut |progress| eprintln!("{progress:?}"));
    println!("{}", summary.to_json());
}
