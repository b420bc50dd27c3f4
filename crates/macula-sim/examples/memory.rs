//! What a node of the overlay really costs: lets nodes join and counts allocations.
//!
//! `cargo run --release -p macula-sim --example memory -- 10000 [SEED]`
//!
//! `macula sim` shows the growth of the process instead, with all of the simulator in it.
#![expect(clippy::print_stdout, reason = "it is a program")]

use std::alloc::System;

use cap::Cap;
use macula_sim::{Run, Scenario};

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

fn main() {
    let mut args = std::env::args().skip(1);
    let mut number = |default: u64| {
        let given = args.next();
        given.map_or(default, |text| text.parse().expect("a number of nodes, then a seed"))
    };
    let (nodes, seed) = (number(1000), number(1));
    let mut scenario = Scenario::built_in("converged").expect("a scenario that is always there");
    scenario.steps.clear();
    let options = Run {
        nodes: Some(u32::try_from(nodes).expect("fewer than 2^32 nodes")),
        seed,
        allocated: Some(|| ALLOCATOR.allocated() as u64),
        ..Run::default()
    };
    let summary = macula_sim::run(&scenario, &options, &mut |_| {});
    let kib = |bytes: Option<u64>| bytes.unwrap_or(0) as f64 / 1024.0;
    println!(
        "{nodes} nodes, seed {seed}: {:.1} KiB allocated by a node's overlay, {:.1} KiB with all of the simulator; {:.1} KiB resident; {:.1} links a node",
        kib(summary.overlay_bytes_per_node),
        kib(summary.allocated_bytes_per_node),
        kib(summary.bytes_per_node),
        summary.links.mean(),
    );
}
