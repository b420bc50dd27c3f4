//! Random inputs: any bytes, and committed ones that were changed.

use macula_fuzz::{Body, TARGETS};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};

use crate::replay::inputs;

/// Few, because every check runs them; `PROPTEST_CASES` asks for more.
const CASES: u32 = 64;

/// Shortest and longest input of any bytes.
const BYTES: std::ops::Range<usize> = 0..1200;

/// One change to an input.
#[derive(Clone, Debug)]
enum Change {
    Set(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    /// Another seed's tail behind this one's beginning.
    Join(Index, Index, Index),
    Repeat(Index, usize, usize),
}

fn any_change() -> impl Strategy<Value = Change> {
    let index = any::<Index>;
    prop_oneof![
        4 => (index(), any::<u8>()).prop_map(|(at, byte)| Change::Set(at, byte)),
        2 => (index(), prop::collection::vec(any::<u8>(), 1..9))
            .prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        2 => (index(), 1..9usize).prop_map(|(at, count)| Change::Remove(at, count)),
        2 => (index(), index(), index()).prop_map(|(at, seed, from)| Change::Join(at, seed, from)),
        1 => (index(), 1..20usize, 1..20usize)
            .prop_map(|(at, bytes, times)| Change::Repeat(at, bytes, times)),
    ]
}

fn change(data: &mut Vec<u8>, change: &Change, seeds: &[Vec<u8>]) {
    let len = data.len();
    match change {
        Change::Set(..) | Change::Repeat(..) if len == 0 => {}
        Change::Set(at, byte) => data[at.index(len)] = *byte,
        Change::Insert(at, bytes) => {
            let at = at.index(len + 1);
            data.splice(at..at, bytes.iter().copied());
        }
        Change::Remove(at, count) => {
            let at = at.index(len + 1);
            data.drain(at..len.min(at + count));
        }
        Change::Join(at, seed, from) => {
            let other = seed.get(seeds);
            data.truncate(at.index(len + 1));
            data.extend_from_slice(&other[from.index(other.len() + 1)..]);
        }
        Change::Repeat(at, bytes, times) => {
            let at = at.index(len);
            let piece = data[at..len.min(at + bytes)].repeat(*times);
            data.splice(at..at, piece);
        }
    }
}

fn check(target: &str) {
    let body: Body = TARGETS.iter().find(|(name, _)| *name == target).expect("a target").1;
    let seeds: Vec<Vec<u8>> = inputs("corpus", target).into_iter().map(|(_, data)| data).collect();
    let mut config = Config { failure_persistence: None, ..Config::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = CASES;
    }
    TestRunner::new(config.clone())
        .run(&prop::collection::vec(any::<u8>(), BYTES), |data| {
            body(&data);
            Ok(())
        })
        .unwrap();
    let changed =
        (any::<Index>(), prop::collection::vec(any_change(), 1..12)).prop_map(|(seed, changes)| {
            let mut data = seed.get(&seeds).clone();
            for step in &changes {
                change(&mut data, step, &seeds);
            }
            data
        });
    TestRunner::new(config)
        .run(&changed, |data| {
            body(&data);
            Ok(())
        })
        .unwrap();
}

#[test]
fn frames_out_of_any_bytes() {
    check("frame");
}

#[test]
fn messages_out_of_any_bytes() {
    check("message");
}

#[test]
fn a_node_whose_peers_say_anything() {
    check("control");
}

#[test]
fn patterns_out_of_any_bytes() {
    check("pattern");
}

#[test]
fn stun_and_turn_of_any_bytes() {
    check("stun");
}

#[test]
fn tunnels_of_any_bytes() {
    check("tunnel");
}

#[test]
fn worlds_in_which_anything_happens() {
    check("node");
}

#[test]
fn a_router_among_neighbours_that_say_anything() {
    check("overlay");
}

#[test]
fn a_door_for_any_bytes() {
    check("door");
}
