//! Names: topics, patterns, procedures.
//!
//! A name is UTF-8 text of at most [`TOPIC_BYTES_MAX`] bytes in at most [`TOPIC_SEGMENTS_MAX`]
//! segments with dots between them: `site.7.temperature`. Segments are not empty and contain
//! neither white space nor control characters; case matters. Once parsed, a name is known to be
//! good and is never checked again; cloning one costs a counter.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::limits::{TOPIC_BYTES_MAX, TOPIC_SEGMENTS_MAX};

/// The name that messages are published under. Contains no `*`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Topic(Arc<str>);

impl Topic {
    /// Checks `text` and keeps a copy.
    ///
    /// # Errors
    /// [`NameError`] names the first mistake found and where it is.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        check(text, Stars::Forbidden)?;
        Ok(Self(text.into()))
    }

    /// Checks a name that came over the wire and keeps a copy.
    ///
    /// # Errors
    /// As [`Topic::parse`], and [`NameError::NotUtf8`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, NameError> {
        Self::check_bytes(bytes).map(|text| Self(text.into()))
    }

    /// Checks a name that came over the wire without keeping it.
    ///
    /// Maps that are keyed by [`Topic`] can be asked with the `&str`, so that a topic that is
    /// known already costs no allocation.
    ///
    /// # Errors
    /// As [`Topic::from_bytes`].
    pub fn check_bytes(bytes: &[u8]) -> Result<&str, NameError> {
        // Length first, so that a peer cannot make us read much.
        if bytes.len() > TOPIC_BYTES_MAX {
            return Err(NameError::TooLong(bytes.len()));
        }
        let text = std::str::from_utf8(bytes)
            .map_err(|mistake| NameError::NotUtf8(mistake.valid_up_to()))?;
        check(text, Stars::Forbidden)?;
        Ok(text)
    }
}

/// What a subscription asks for: a topic in which whole segments may be wildcards.
///
/// - `*` stands for exactly one segment: `site.*.temperature`.
/// - `**` stands for the rest, which may be nothing: `site.**` matches `site`, `site.7` and
///   `site.7.temperature`; `**` alone matches every topic. That it matches zero segments is what
///   v0.7 clients expect. Unlike there, it is allowed only as the last segment, and a `*` inside
///   a longer segment (`a*`, a literal in v0.7) is a mistake.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pattern(Arc<str>);

impl Pattern {
    /// Checks `text` and keeps a copy.
    ///
    /// # Errors
    /// [`NameError`] names the first mistake found and where it is.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        check(text, Stars::Wildcards)?;
        Ok(Self(text.into()))
    }

    /// Whether a message on `topic` is asked for.
    pub fn matches(&self, topic: &Topic) -> bool {
        self.matches_name(&topic.0)
    }

    /// As [`Pattern::matches`], for the text of a topic or a procedure that was checked before.
    pub fn matches_name(&self, name: &str) -> bool {
        let mut segments = name.split('.');
        for wanted in self.0.split('.') {
            if wanted == REST {
                return true;
            }
            match segments.next() {
                Some(segment) if wanted == ANY || wanted == segment => {}
                _ => return false,
            }
        }
        segments.next().is_none()
    }

    /// Whether every topic that `other` matches is matched by this pattern, too.
    ///
    /// Never says yes wrongly; says no for the one oddity that `*.**` and `**` mean the same.
    pub fn covers(&self, other: &Self) -> bool {
        let mut segments = other.0.split('.');
        for mine in self.0.split('.') {
            if mine == REST {
                return true;
            }
            match segments.next() {
                Some(segment) if segment == mine => {}
                Some(segment) if mine == ANY && segment != REST => {}
                _ => return false,
            }
        }
        segments.next().is_none()
    }

    /// What every topic that it matches begins with: the text before the first wildcard, without
    /// the dot.
    pub fn literal_prefix(&self) -> &str {
        let prefix = self.0.split('*').next().unwrap_or_default();
        prefix.strip_suffix('.').unwrap_or(prefix)
    }

    /// Whether it has no wildcard and so matches one topic only.
    pub fn is_literal(&self) -> bool {
        !self.0.as_bytes().contains(&b'*')
    }
}

impl From<Topic> for Pattern {
    /// The pattern that matches `topic` and nothing else.
    fn from(topic: Topic) -> Self {
        Self(topic.0)
    }
}

/// The name of something that can be called. Contains no `*`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProcedureName(Arc<str>);

impl ProcedureName {
    /// Checks `text` and keeps a copy.
    ///
    /// # Errors
    /// [`NameError`] names the first mistake found and where it is.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        check(text, Stars::Forbidden)?;
        Ok(Self(text.into()))
    }

    /// Whether every endpoint answers it by itself (`macula.ping` and its like); applications
    /// cannot register such a name.
    pub fn is_builtin(&self) -> bool {
        self.0.starts_with(BUILTIN_PREFIX)
    }
}

macro_rules! names {
    ($($name:ident),*) => {$(
        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        // Equality, order and hash of a name are those of its text, as `Borrow` demands.
        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::parse(text)
            }
        }
    )*};
}

names!(Topic, Pattern, ProcedureName);

/// What is wrong with a name. Offsets count bytes from the start of the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// There is no text at all.
    #[error("the name is empty; write at least one segment, as in `site.temperature`")]
    Empty,
    /// The name has this many bytes.
    #[error("the name has {0} bytes; shorten it to at most {max}", max = TOPIC_BYTES_MAX)]
    TooLong(usize),
    /// Here begins the first segment beyond the limit.
    #[error(
        "segment {nth} begins at byte {0}; use at most {max} segments",
        nth = TOPIC_SEGMENTS_MAX + 1,
        max = TOPIC_SEGMENTS_MAX
    )]
    TooManySegments(usize),
    /// Here a segment should begin, but none does.
    #[error("the segment at byte {0} is empty; remove the dot too many")]
    EmptySegment(usize),
    /// Here is a space, a line break or other white space.
    #[error("white space at byte {0}; use a hyphen or an underscore instead")]
    Whitespace(usize),
    /// Here is a character that cannot be seen.
    #[error("control character at byte {0}; remove it")]
    Control(usize),
    /// Here the bytes stop being UTF-8.
    #[error("not UTF-8 from byte {0} on; encode names in UTF-8")]
    NotUtf8(usize),
    /// A topic or procedure has a `*` here.
    #[error("`*` at byte {0}; only subscriptions have wildcards, write the whole name here")]
    Wildcard(usize),
    /// The segment that begins here mixes `*` with other text, or has too many.
    #[error(
        "the segment at byte {0} has a `*` that does not stand alone; \
         use `*` for one whole segment or `**` for the rest"
    )]
    PartialWildcard(usize),
    /// Here is a `**` with segments behind it.
    #[error("`**` at byte {0} is not the last segment; end the pattern there or use `*`")]
    RestNotLast(usize),
}

/// Matches one segment.
pub(super) const ANY: &str = "*";
/// Matches what is left, nothing included.
pub(super) const REST: &str = "**";

const BUILTIN_PREFIX: &str = "macula.";

/// What a `*` means in the name at hand.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stars {
    Forbidden,
    Wildcards,
}

fn check(text: &str, stars: Stars) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    if text.len() > TOPIC_BYTES_MAX {
        return Err(NameError::TooLong(text.len()));
    }
    let (mut segments, mut segment_at) = (1, 0);
    let (mut star, mut ascii) = (None, true);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'.' if at == segment_at => return Err(NameError::EmptySegment(at)),
            b'.' => {
                segment_at = at + 1;
                segments += 1;
                if segments > TOPIC_SEGMENTS_MAX {
                    return Err(NameError::TooManySegments(segment_at));
                }
            }
            b'*' => star = star.or(Some(at)),
            b' ' | b'\t'..=b'\r' => return Err(NameError::Whitespace(at)),
            0..b' ' | 0x7f => return Err(NameError::Control(at)),
            0x80.. => ascii = false,
            _ => {}
        }
    }
    if segment_at == text.len() {
        return Err(NameError::EmptySegment(segment_at));
    }
    if !ascii {
        check_beyond_ascii(text)?;
    }
    match (star, stars) {
        (None, _) => Ok(()),
        (Some(at), Stars::Forbidden) => Err(NameError::Wildcard(at)),
        (Some(_), Stars::Wildcards) => check_wildcards(text),
    }
}

fn check_beyond_ascii(text: &str) -> Result<(), NameError> {
    for (at, character) in text.char_indices() {
        if character.is_whitespace() {
            return Err(NameError::Whitespace(at));
        }
        if character.is_control() {
            return Err(NameError::Control(at));
        }
    }
    Ok(())
}

fn check_wildcards(text: &str) -> Result<(), NameError> {
    let mut at = 0;
    for segment in text.split('.') {
        let end = at + segment.len();
        match segment {
            ANY => {}
            REST if end == text.len() => {}
            REST => return Err(NameError::RestNotLast(at)),
            _ if segment.contains('*') => return Err(NameError::PartialWildcard(at)),
            _ => {}
        }
        at = end + 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pattern_matches(pattern: &str, topic: &str) -> bool {
        Pattern::parse(pattern).unwrap().matches(&Topic::parse(topic).unwrap())
    }

    #[test]
    fn every_mistake_is_named_with_its_place() {
        use NameError::*;
        let long = "x".repeat(TOPIC_BYTES_MAX + 1);
        let deep = "x.".repeat(TOPIC_SEGMENTS_MAX) + "x";
        for (text, mistake) in [
            ("", Empty),
            (&long, TooLong(256)),
            (&deep, TooManySegments(64)),
            (".a", EmptySegment(0)),
            ("a..b", EmptySegment(2)),
            ("a.", EmptySegment(2)),
            (".", EmptySegment(0)),
            ("a b", Whitespace(1)),
            ("a\t", Whitespace(1)),
            ("\u{e9}\u{a0}", Whitespace(2)),
            ("a.\0", Control(2)),
            ("\u{7f}", Control(0)),
            ("\u{e9}\u{85}", Whitespace(2)),
            ("\u{e9}\u{9f}", Control(2)),
        ] {
            assert_eq!(Topic::parse(text), Err(mistake), "{text:?}");
            assert_eq!(Pattern::parse(text), Err(mistake), "{text:?}");
            assert_eq!(ProcedureName::parse(text), Err(mistake), "{text:?}");
        }
    }

    #[test]
    fn names_up_to_the_limits_are_good() {
        let long = "x".repeat(TOPIC_BYTES_MAX);
        let deep = "x.".repeat(TOPIC_SEGMENTS_MAX - 1) + "x";
        for text in ["a", "a.b", &long, &deep, "stra\u{df}e.\u{6e29}\u{5ea6}", "a-b_c/d:e"] {
            assert_eq!(Topic::parse(text).unwrap().as_str(), text);
        }
    }

    #[test]
    fn only_patterns_have_wildcards() {
        assert_eq!(Topic::parse("a.*"), Err(NameError::Wildcard(2)));
        assert_eq!(ProcedureName::parse("a*"), Err(NameError::Wildcard(1)));
        assert_eq!(Topic::from_bytes(b"**"), Err(NameError::Wildcard(0)));
        for good in ["*", "**", "*.*", "a.*.b", "a.**", "*.**"] {
            assert!(!Pattern::parse(good).unwrap().is_literal(), "{good}");
        }
        assert!(Pattern::parse("a.b").unwrap().is_literal());
    }

    #[test]
    fn wildcards_stand_alone_and_the_rest_comes_last() {
        assert_eq!(Pattern::parse("ab.c*"), Err(NameError::PartialWildcard(3)));
        assert_eq!(Pattern::parse("*a"), Err(NameError::PartialWildcard(0)));
        assert_eq!(Pattern::parse("a.***"), Err(NameError::PartialWildcard(2)));
        assert_eq!(Pattern::parse("a.**.z"), Err(NameError::RestNotLast(2)));
        assert_eq!(Pattern::parse("**.**"), Err(NameError::RestNotLast(0)));
    }

    #[test]
    fn bytes_that_are_not_utf8_are_refused_where_they_begin() {
        assert_eq!(Topic::from_bytes(b"ab\xff"), Err(NameError::NotUtf8(2)));
        assert_eq!(Topic::from_bytes(&[0xff; 300]), Err(NameError::TooLong(300)));
        assert_eq!(Topic::from_bytes(b"a.b"), Topic::parse("a.b"));
        assert_eq!(Topic::check_bytes(b"a.b"), Ok("a.b"));
    }

    #[test]
    fn a_star_is_one_segment_and_two_are_the_rest() {
        for (pattern, topic, expected) in [
            ("a.b", "a.b", true),
            ("a.b", "a.B", false),
            ("a.b", "a.b.c", false),
            ("a.b.c", "a.b", false),
            ("a.*", "a.b", true),
            ("a.*", "a", false),
            ("a.*", "a.b.c", false),
            ("*.b", "a.b", true),
            ("*.*", "a.b", true),
            ("a.**", "a", true),
            ("a.**", "a.b", true),
            ("a.**", "a.b.c", true),
            ("a.**", "ab", false),
            ("a.*.**", "a", false),
            ("a.*.**", "a.b", true),
            ("**", "a.b.c", true),
        ] {
            assert_eq!(pattern_matches(pattern, topic), expected, "{pattern} {topic}");
        }
    }

    #[test]
    fn a_pattern_covers_what_it_matches_all_of() {
        for (wide, narrow, expected) in [
            ("**", "a.b", true),
            ("**", "**", true),
            ("**", "a.**", true),
            ("a.**", "a", true),
            ("a.**", "a.*.c", true),
            ("a.**", "**", false),
            ("a.*", "a.b", true),
            ("a.*", "a.*", true),
            ("a.*", "a.**", false),
            ("a.b", "a.*", false),
            ("a.*", "a", false),
            ("a", "a.b", false),
            ("a.*.**", "a.**", false),
            ("a.*.**", "a.b.**", true),
        ] {
            let covers = Pattern::parse(wide).unwrap().covers(&Pattern::parse(narrow).unwrap());
            assert_eq!(covers, expected, "{wide} {narrow}");
        }
    }

    #[test]
    fn builtin_procedures_begin_with_macula_and_a_dot() {
        assert!(ProcedureName::parse("macula.ping").unwrap().is_builtin());
        assert!(!ProcedureName::parse("macula").unwrap().is_builtin());
        assert!(!ProcedureName::parse("maculate.x").unwrap().is_builtin());
    }

    #[test]
    fn names_show_as_their_text_and_are_found_by_it() {
        let topic = Topic::parse("a.b").unwrap();
        assert_eq!(format!("{topic} {topic:?} {topic:>5}"), "a.b \"a.b\"   a.b");
        let map = std::collections::BTreeMap::from([(topic.clone(), 1)]);
        assert_eq!(map.get("a.b"), Some(&1));
        assert!(Pattern::from(topic.clone()).matches(&topic));
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_keeps_the_text(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(topic) = Topic::from_bytes(&bytes) {
                prop_assert_eq!(topic.as_str().as_bytes(), &bytes[..]);
            }
        }

        #[test]
        fn covering_means_matching_whatever_the_other_matches(
            wide in "[ab*](\\.[ab*]){0,2}(\\.\\*\\*)?",
            narrow in "[ab*](\\.[ab*]){0,2}(\\.\\*\\*)?",
            topic in "[ab](\\.[ab]){0,3}",
        ) {
            let (wide, narrow) = (Pattern::parse(&wide).unwrap(), Pattern::parse(&narrow).unwrap());
            let topic = Topic::parse(&topic).unwrap();
            if wide.covers(&narrow) && narrow.matches(&topic) {
                prop_assert!(wide.matches(&topic));
            }
        }

        #[test]
        fn a_good_topic_follows_every_rule(text in "[a*. \u{e9}\u{85}\n]{0,70}") {
            let good = !text.is_empty()
                && text.len() <= TOPIC_BYTES_MAX
                && text.split('.').count() <= TOPIC_SEGMENTS_MAX
                && text.split('.').all(|segment| !segment.is_empty())
                && !text.contains(|c: char| c == '*' || c.is_whitespace() || c.is_control());
            prop_assert_eq!(Topic::parse(&text).is_ok(), good);
        }

        #[test]
        fn mistakes_point_into_the_name(text in "[a*. ]{1,70}") {
            use NameError::*;
            if let Err(EmptySegment(at) | Whitespace(at) | PartialWildcard(at) | RestNotLast(at)
                | TooManySegments(at)) = Pattern::parse(&text)
            {
                prop_assert!(text.get(at..).is_some());
            }
        }
    }
}
