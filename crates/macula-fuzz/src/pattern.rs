//! Names and matching, against the specification's text.

use std::collections::BTreeSet;

use macula_proto::limits::{TOPIC_BYTES_MAX, TOPIC_SEGMENTS_MAX};
use macula_proto::pubsub::{Pattern, ProcedureName, Topic, Trie};

/// The input is lines. `+` and a digit subscribe to the pattern behind them, `-` and a digit take
/// that back; any other line is a topic to match.
///
/// Names are good exactly if the specification says so (docs/protocol §5.1), and match what it says,
/// one by one and in a [`Trie`].
pub fn pattern(data: &[u8]) {
    let mut trie = Trie::new();
    let mut model = BTreeSet::new();
    for line in data.split(|byte| *byte == b'\n').take(LINES_MAX) {
        match line {
            [sign @ (b'+' | b'-'), item, text @ ..] => {
                let Ok(text) = std::str::from_utf8(text) else { continue };
                let parsed = Pattern::parse(text);
                assert_eq!(parsed.is_ok(), is_pattern(text), "pattern {text:?}: {parsed:?}");
                let Ok(parsed) = parsed else { continue };
                assert_eq!(parsed.as_str(), text);
                assert_eq!(parsed.is_literal(), Topic::parse(text).is_ok());
                let (pair, item) = ((text.to_owned(), *item), *item);
                if *sign == b'+' {
                    assert_eq!(trie.insert(&parsed, item), model.insert(pair), "add {text:?}");
                } else {
                    assert_eq!(trie.remove(&parsed, &item), model.remove(&pair), "drop {text:?}");
                }
            }
            topic => ask(topic, &trie, &model),
        }
        assert_eq!((trie.len(), trie.is_empty()), (model.len(), model.is_empty()));
    }
    let mut listed = BTreeSet::new();
    trie.for_each(|pattern, item| {
        assert!(listed.insert((pattern.as_str().to_owned(), *item)), "{pattern} twice");
    });
    assert_eq!(listed, model);
}

/// Keeps one input within milliseconds.
const LINES_MAX: usize = 400;

fn ask(topic: &[u8], trie: &Trie<u8>, model: &BTreeSet<(String, u8)>) {
    let parsed = Topic::from_bytes(topic);
    let text = std::str::from_utf8(topic);
    let is_topic = text.is_ok_and(|text| is_name(text) && !text.contains('*'));
    assert_eq!(parsed.is_ok(), is_topic, "topic {topic:?}: {parsed:?}");
    let Ok(text) = text else { return };
    assert_eq!(Topic::parse(text), parsed);
    assert_eq!(Topic::check_bytes(topic).ok(), is_topic.then_some(text));
    assert_eq!(ProcedureName::parse(text).is_ok(), is_topic);
    let Ok(parsed) = parsed else { return };

    let segments: Vec<&str> = text.split('.').collect();
    let mut expected = BTreeSet::new();
    for (pattern, item) in model {
        let wanted = matches(&pattern.split('.').collect::<Vec<_>>(), &segments);
        let known = Pattern::parse(pattern).expect("it was parsed before");
        assert_eq!(known.matches(&parsed), wanted, "{pattern} on {text}");
        if wanted {
            expected.insert(*item);
        }
    }
    let mut found = vec![0xff];
    trie.matches(text, &mut found);
    assert_eq!(found, expected.into_iter().collect::<Vec<_>>(), "{text} among {model:?}");
    assert!(Pattern::from(parsed.clone()).matches(&parsed));
}

/// "A name consists of segments with dots between them … segments are not empty and contain neither
/// white space nor control characters."
fn is_name(text: &str) -> bool {
    let bad = |character: char| character.is_whitespace() || character.is_control();
    text.len() <= TOPIC_BYTES_MAX
        && text.split('.').count() <= TOPIC_SEGMENTS_MAX
        && text.split('.').all(|segment| !segment.is_empty())
        && !text.chars().any(bad)
}

/// "A whole segment may be a wildcard": `*`, and `**` as the last one.
fn is_pattern(text: &str) -> bool {
    let segments: Vec<&str> = text.split('.').collect();
    let last = segments.len() - 1;
    is_name(text)
        && segments.iter().enumerate().all(|(at, segment)| match *segment {
            "*" => true,
            "**" => at == last,
            segment => !segment.contains('*'),
        })
}

fn matches(pattern: &[&str], topic: &[&str]) -> bool {
    match (pattern, topic) {
        (["**"], _) | ([], []) => true,
        (["*", pattern @ ..], [_, topic @ ..]) => matches(pattern, topic),
        ([wanted, pattern @ ..], [segment, topic @ ..]) => {
            wanted == segment && matches(pattern, topic)
        }
        _ => false,
    }
}
