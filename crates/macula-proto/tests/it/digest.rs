//! The same seed gives the same run, in one process and in two.

use std::time::Duration;

use macula_proto::node::Qos;

use crate::world::World;

/// A busy little world: everything happens, links break, the router restarts.
fn run() -> String {
    let mut world = World::new().digested();
    let router = world.router();
    let leaves: Vec<_> = (0..6).map(|_| world.leaf(router)).collect();
    for (index, leaf) in leaves.iter().enumerate() {
        world.subscribe(*leaf, ["a.*", "**", "a.b"][index % 3]);
        world.serve_echo(*leaf, "echo");
    }
    world.settle();
    for round in 0..20 {
        for leaf in &leaves {
            let qos = if round % 2 == 0 { Qos::AtMostOnce } else { Qos::AtLeastOnce };
            world.publish(*leaf, ["a.b", "a.c", "d"][round % 3], qos, &format!("{round}"));
            world.call_with(*leaf, "echo", "x", |spec| {
                spec.policy = macula_proto::wire::message::ProviderPolicy::Random;
            });
        }
        world.run_for(Duration::from_millis(13));
        if round % 5 == 4 {
            world.cut(leaves[round % 6], router);
            world.connect(leaves[round % 6], router);
        }
        if round == 12 {
            world.restart(router);
            world.join(router, crate::world::realm());
            for leaf in &leaves {
                world.connect(*leaf, router);
            }
        }
    }
    world.run_for(Duration::from_secs(40));
    world.digest()
}

#[test]
fn the_same_seed_gives_the_same_run() {
    assert_eq!(run(), run());
}

/// Run by [`two_processes_agree`] in another process; on its own it only prints.
#[test]
fn print_digest() {
    println!("digest={}", run());
}

#[test]
fn two_processes_agree() {
    let other = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "digest::print_digest", "--nocapture"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&other.stdout).into_owned();
    assert!(text.contains(&format!("digest={}", run())), "{text}");
}
