//! What a router does for every batch: check the topic, look for duplicates, find subscribers.
//!
//! `cargo bench -p macula-proto --bench core`

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use macula_proto::pubsub::{Pattern, SeenTable, StreamKey, Topic, Trie};
use macula_proto::seeded::SeededState;
use macula_proto::{EndpointId, SeededMap};
use rand_core::SeedableRng;

fn main() {
    divan::main();
}

const PATTERNS: u32 = 10_000;
/// Iterations within one sample, as a single one is too short for the clock.
const ROUNDS: usize = 1024;

fn topic(site: u32, sensor: u32) -> String {
    format!("plant.site{site}.sensor{sensor}.temperature")
}

/// Six in ten patterns are literal, the others of every form, a few match everything.
fn mixed_trie() -> Trie<u32> {
    let mut trie = Trie::new();
    for number in 0..PATTERNS {
        let (site, sensor) = (number % 100, number / 100);
        let pattern = match number % 10 {
            0..=5 => topic(site, sensor),
            6 => format!("plant.site{site}.*.temperature"),
            7 => format!("plant.*.sensor{sensor}.temperature"),
            8 => format!("plant.site{site}.sensor{sensor}.**"),
            _ => format!("plant.site{site}.sensor{sensor}.*"),
        };
        trie.insert(&Pattern::parse(&pattern).expect("a good pattern"), number);
    }
    trie.insert(&Pattern::parse("**").expect("a good pattern"), PATTERNS);
    trie
}

fn trie_match(bencher: Bencher<'_, '_>, topics: Vec<String>) {
    let trie = mixed_trie();
    let mut out = Vec::new();
    bencher.counter(ItemsCount::new(ROUNDS)).bench_local(|| {
        for topic in topics.iter().cycle().take(ROUNDS) {
            trie.matches(black_box(topic), &mut out);
            black_box(&out);
        }
    });
}

/// Every topic matches its own pattern, if it has one, and some with wildcards.
#[divan::bench]
fn trie_match_10k_mixed(bencher: Bencher<'_, '_>) {
    trie_match(bencher, (0..ROUNDS as u32).map(|n| topic(n % 100, n * 7 % 100)).collect());
}

/// Only the pattern for everything matches.
#[divan::bench]
fn trie_match_10k_mixed_unknown_topic(bencher: Bencher<'_, '_>) {
    trie_match(bencher, (0..ROUNDS).map(|n| format!("office.room{n}.light")).collect());
}

#[divan::bench]
fn trie_match_10k_literal(bencher: Bencher<'_, '_>) {
    let mut trie = Trie::new();
    let topics: Vec<String> = (0..PATTERNS).map(|n| topic(n % 100, n / 100)).collect();
    for (topic, number) in topics.iter().zip(0u32..) {
        trie.insert(&Pattern::parse(topic).expect("a good pattern"), number);
    }
    let mut out = Vec::new();
    bencher.counter(ItemsCount::new(ROUNDS)).bench_local(|| {
        for topic in topics.iter().step_by(9).take(ROUNDS) {
            trie.matches(black_box(topic), &mut out);
            black_box(&out);
        }
    });
}

/// What a cache of results by topic would cost, for comparison.
#[divan::bench]
fn seeded_map_10k_topics(bencher: Bencher<'_, '_>) {
    let mut map = SeededMap::with_hasher(hasher());
    let topics: Vec<String> = (0..PATTERNS).map(|n| topic(n % 100, n / 100)).collect();
    for (topic, number) in topics.iter().zip(0u32..) {
        map.insert(Topic::parse(topic).expect("a good topic"), number);
    }
    bencher.counter(ItemsCount::new(ROUNDS)).bench_local(|| {
        for topic in topics.iter().step_by(9).take(ROUNDS) {
            black_box(map.get(black_box(topic.as_str())));
        }
    });
}

/// Batches in order, from as many streams in turn.
#[divan::bench(args = [1, 100, 10_000])]
fn seen_table_accept_in_order(bencher: Bencher<'_, '_>, streams: u32) {
    let mut table = SeenTable::new(65_536, 65_536, hasher());
    let mut streams: Vec<(StreamKey, u64)> = (0..streams).map(|n| (stream(n), 1)).collect();
    let count = streams.len();
    let mut turn = 0;
    bencher.counter(ItemsCount::new(ROUNDS)).bench_local(|| {
        for _ in 0..ROUNDS {
            let (key, first) = &mut streams[turn];
            black_box(table.accept(black_box(key), *first, 1, false));
            *first += 1;
            turn = (turn + 1) % count;
        }
    });
}

/// Every batch begins a stream and makes another one be forgotten.
#[divan::bench]
fn seen_table_evict(bencher: Bencher<'_, '_>) {
    let mut table = SeenTable::new(4096, 4096, hasher());
    let keys: Vec<StreamKey> = (0..8192).map(stream).collect();
    let mut turn = keys.iter().cycle();
    bencher.counter(ItemsCount::new(ROUNDS)).bench_local(|| {
        for key in turn.by_ref().take(ROUNDS) {
            black_box(table.accept(black_box(key), 1, 1, true));
        }
    });
}

#[divan::bench]
fn topic_parse(bencher: Bencher<'_, '_>) {
    let text = topic(42, 4711);
    bencher.bench(|| Topic::parse(black_box(&text)));
}

#[divan::bench]
fn topic_check_bytes(bencher: Bencher<'_, '_>) {
    let text = topic(42, 4711);
    bencher.bench(|| Topic::check_bytes(black_box(text.as_bytes())).is_ok());
}

fn hasher() -> SeededState {
    SeededState::from_rng(&mut rand_pcg::Pcg64::seed_from_u64(7))
}

fn stream(number: u32) -> StreamKey {
    let mut publisher = [0; 32];
    publisher[..4].copy_from_slice(&number.to_be_bytes());
    StreamKey {
        publisher: EndpointId::from_bytes(publisher),
        epoch: 1_700_000_000_000_000,
        topic: Topic::parse(&topic(number % 100, number / 100)).expect("a good topic"),
    }
}
