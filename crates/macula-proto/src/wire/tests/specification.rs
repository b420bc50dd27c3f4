//! The tables of docs/protocol and the code say the same.

use std::collections::BTreeMap;

use super::{CHANNELS, KINDS};
use crate::limits::*;
use crate::wire::codec::NESTING_DEPTH_MAX;
use crate::wire::{allowed, lane_of};

const TABLE: &str = include_str!("../../../../../docs/protocol/02-limits.md");
const FRAMES: &str = include_str!("../../../../../docs/protocol/04-frames.md");
const SOURCE: &str = include_str!("../../limits.rs");

macro_rules! constants {
    ($($name:ident),* $(,)?) => {
        [$((stringify!($name), $name as u64)),*]
    };
}

#[test]
fn the_table_of_limits_matches_the_constants() {
    let mut constants: BTreeMap<&str, u64> = constants![
        MESSAGE_BYTES_MAX,
        LANE_MESSAGE_BYTES_MAX,
        BATCH_BODY_BYTES_MAX,
        BATCH_MESSAGES_MAX,
        FRAME_HEAD_BYTES_MAX,
        CONTROL_FRAME_BYTES_MAX,
        LANE_FRAME_BYTES_MAX,
        STREAM_FRAME_BYTES_MAX,
        TOPIC_BYTES_MAX,
        TOPIC_SEGMENTS_MAX,
        REALM_NAME_BYTES_MAX,
        REASON_BYTES_MAX,
        AGENT_BYTES_MAX,
        OBSERVED_BYTES_MAX,
        TRACEPARENT_BYTES_MAX,
        REALMS_PER_LINK_MAX,
        GRANT_BYTES_MAX,
        REVOCATIONS_BYTES_MAX,
        LANE_COUNT,
        TRANSPORT_WINDOW_BYTES,
        BULK_WINDOW_BYTES,
        STREAMS_PER_LINK_MAX,
        LINKS_TOLD_MAX,
        BULK_PER_LINK_MAX,
        RELAYED_PACKET_BYTES_MAX,
        SPLIT_PACKET_BYTES_MAX,
        RELAY_QUEUE_BYTES_MAX,
        TUNNEL_PACKET_BYTES_MAX,
        TUNNEL_HEAD_BYTES_MAX,
        TUNNEL_QUEUE_BYTES_MAX,
        TTL_HOPS,
        NESTING_DEPTH_MAX,
        CONTACTS_PER_MESSAGE_MAX,
        RECORDS_PER_MESSAGE_MAX,
        RECORD_VALUE_BYTES_MAX,
        ROUTES_WATCHED_MAX,
        ROUTES_PER_LINK_MAX,
        WALK_KNOWN_MAX,
        WALK_ASKED_MAX,
        ROUTED_BYTES_MAX,
    ]
    .into();
    constants.insert("RECORD_LIFETIME_MAX", RECORD_LIFETIME_MAX.as_secs());
    constants.insert("RING_AGE_MAX", RING_AGE_MAX.as_secs());
    constants.insert("RESUME_WINDOW", RESUME_WINDOW.as_secs());
    constants.insert("GRANT_CLOCK_SKEW", GRANT_CLOCK_SKEW.as_secs());
    assert_eq!(table(), constants);
}

#[test]
fn the_table_of_limits_is_complete() {
    let table = table();
    for line in SOURCE.lines().filter_map(|line| line.strip_prefix("pub const ")) {
        let name = line.split(':').next().unwrap_or_default();
        assert!(table.contains_key(name), "{name} is missing in docs/protocol §2");
    }
}

#[test]
fn the_table_of_kinds_matches_the_code() {
    let rows: Vec<(u8, &str)> = rows(FRAMES)
        .filter_map(|(kind, mut cells)| {
            let kind = u8::from_str_radix(kind.strip_prefix("0x")?, 16).ok()?;
            cells.next()?;
            Some((kind, cells.next()?))
        })
        .collect();
    assert!(rows.iter().map(|(kind, _)| *kind).eq(KINDS));
    for (kind, home) in rows {
        let wanted = CHANNELS.map(|channel| allowed(kind, channel));
        let named = home.split(", ").fold([false; 5], |mut named, home| {
            let places: &[usize] = match home {
                "control" => &[0],
                "lane 0" => &[1],
                "lanes 1+" => &[2],
                "lanes" => &[1, 2],
                "bulk" => &[3],
                "stream" => &[4],
                other => panic!("no channel is called {other}"),
            };
            places.iter().for_each(|place| named[*place] = true);
            named
        });
        assert_eq!(named, wanted, "{kind:#04x}");
    }
}

#[test]
fn the_examples_of_lanes_match_the_code() {
    let section = FRAMES.split("## 4.6").nth(1).and_then(|rest| rest.split("## 4.7").next());
    let examples: Vec<_> = rows(section.expect("a section on lanes"))
        .filter_map(|(topic, mut cells)| Some((topic, cells.next()?.parse::<u8>().ok()?)))
        .collect();
    assert_eq!(examples.len(), 5);
    for (topic, lane) in examples {
        assert_eq!(lane_of(topic.as_bytes()), lane, "{topic}");
    }
}

/// The limits: constants and their values.
fn table() -> BTreeMap<&'static str, u64> {
    rows(TABLE)
        .map(|(name, mut cells)| {
            let value = cells.next().and_then(|value| value.parse().ok());
            (name, value.expect("a plain number"))
        })
        .collect()
}

/// The table rows whose first cell stands in backquotes: that cell, and the others.
fn rows(text: &str) -> impl Iterator<Item = (&str, impl Iterator<Item = &str>)> {
    text.lines().filter_map(|line| {
        let mut cells = line.split('|').map(str::trim);
        let name = cells.nth(1)?.strip_prefix('`')?.strip_suffix('`')?;
        Some((name, cells))
    })
}
