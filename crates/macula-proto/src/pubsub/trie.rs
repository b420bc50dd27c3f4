//! Which subscriptions a topic concerns.

use std::collections::BTreeMap;
use std::fmt;

use super::topic::{ANY, Pattern, REST};

/// A set of (pattern, item) pairs that finds the items whose patterns match a topic.
///
/// Patterns without wildcards live in a sorted map: one look-up, one entry each. The others live
/// in a tree with a level per segment.
///
/// Cost of [`Trie::matches`] beside that look-up: a topic of `s` segments visits at most 2^d tree
/// nodes at depth `d` (one literal child and one `*` child each), no node twice, and so never more
/// than the tree has: the segments of all wildcard patterns together. Hostile patterns can reach
/// that bound (all combinations of `a` and `*`), so limit the patterns per peer and keep results
/// per topic where topics repeat. Recursion ends at
/// [`TOPIC_SEGMENTS_MAX`](crate::limits::TOPIC_SEGMENTS_MAX) levels.
pub struct Trie<T> {
    literal: BTreeMap<Pattern, Vec<T>>,
    wild: Node<T>,
    len: usize,
}

impl<T: Ord + Clone> Trie<T> {
    /// An empty set.
    pub const fn new() -> Self {
        Self { literal: BTreeMap::new(), wild: Node::new(), len: 0 }
    }

    /// Adds a pair; `false` when it was there already.
    pub fn insert(&mut self, pattern: &Pattern, item: T) -> bool {
        let items = if pattern.is_literal() {
            self.literal.entry(pattern.clone()).or_default()
        } else {
            self.wild.items(pattern)
        };
        let Err(index) = items.binary_search(&item) else { return false };
        // Most patterns have one item.
        if items.is_empty() {
            items.reserve_exact(1);
        }
        items.insert(index, item);
        self.len += 1;
        true
    }

    /// Takes a pair out, with every tree node that nobody needs any more; `false` when it was not
    /// there.
    pub fn remove(&mut self, pattern: &Pattern, item: &T) -> bool {
        let removed = if pattern.is_literal() {
            let Some(items) = self.literal.get_mut(pattern) else { return false };
            let removed = remove_sorted(items, item);
            if items.is_empty() {
                self.literal.remove(pattern);
            }
            removed
        } else {
            self.wild.remove(Some(pattern.as_str()), item)
        };
        self.len -= usize::from(removed);
        removed
    }

    /// Puts into `out`, in place of what it held, every item that has a pattern that matches
    /// `topic`: sorted, each once.
    ///
    /// `topic` must be a good topic name; it is a `&str` so that one from the wire needs no copy.
    pub fn matches(&self, topic: &str, out: &mut Vec<T>) {
        out.clear();
        let mut found = Found { out, runs: 0 };
        if let Some(items) = self.literal.get(topic) {
            found.add(items);
        }
        self.wild.collect(Some(topic), &mut found);
        // One run is sorted already; of several, the sort takes each as it is and merges.
        if found.runs > 1 {
            found.out.sort();
            found.out.dedup();
        }
    }

    /// Pairs in the set.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no pair.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Calls `visit` with every pair: literal patterns first, in an order that depends on nothing
    /// but the pairs.
    pub fn for_each(&self, mut visit: impl FnMut(&Pattern, &T)) {
        for (pattern, items) in &self.literal {
            items.iter().for_each(|item| visit(pattern, item));
        }
        self.wild.for_each(&mut visit);
    }
}

impl<T: Ord + Clone> Default for Trie<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Ord + Clone + fmt::Debug> fmt::Debug for Trie<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut list = f.debug_list();
        self.for_each(|pattern, item| {
            list.entry(&(pattern, item));
        });
        list.finish()
    }
}

/// What leads on from the patterns that begin alike.
struct Node<T> {
    children: Children<T>,
    /// Behind a `*`.
    any: Option<Box<Self>>,
    /// The pattern that ends here.
    end: Option<Box<Entry<T>>>,
    /// The pattern that ends here with a `**`.
    rest: Option<Box<Entry<T>>>,
}

/// A wildcard pattern and who has it; `items` is sorted and empty only during a change.
struct Entry<T> {
    pattern: Pattern,
    items: Vec<T>,
}

impl<T: Ord + Clone> Node<T> {
    const fn new() -> Self {
        Self { children: Children::Few(Vec::new()), any: None, end: None, rest: None }
    }

    fn is_empty(&self) -> bool {
        self.any.is_none() && self.end.is_none() && self.rest.is_none() && self.children.is_empty()
    }

    /// The items of `pattern`; makes the way there.
    fn items(&mut self, pattern: &Pattern) -> &mut Vec<T> {
        let mut node = self;
        for segment in pattern.as_str().split('.') {
            node = match segment {
                REST => return Entry::items(&mut node.rest, pattern),
                ANY => node.any.get_or_insert_with(|| Box::new(Self::new())),
                _ => node.children.get_or_insert(segment),
            };
        }
        Entry::items(&mut node.end, pattern)
    }

    fn remove(&mut self, pattern: Option<&str>, item: &T) -> bool {
        let Some(pattern) = pattern else { return Entry::remove(&mut self.end, item) };
        let (segment, tail) = split_first(pattern);
        match segment {
            REST => Entry::remove(&mut self.rest, item),
            ANY => {
                let Some(any) = &mut self.any else { return false };
                let removed = any.remove(tail, item);
                if any.is_empty() {
                    self.any = None;
                }
                removed
            }
            _ => {
                let Some(child) = self.children.get_mut(segment) else { return false };
                let removed = child.remove(tail, item);
                if child.is_empty() {
                    self.children.remove(segment);
                }
                removed
            }
        }
    }

    fn collect(&self, topic: Option<&str>, found: &mut Found<'_, T>) {
        if let Some(entry) = &self.rest {
            found.add(&entry.items);
        }
        let Some(topic) = topic else {
            if let Some(entry) = &self.end {
                found.add(&entry.items);
            }
            return;
        };
        let (segment, tail) = split_first(topic);
        if let Some(child) = self.children.get(segment) {
            child.collect(tail, found);
        }
        if let Some(any) = &self.any {
            any.collect(tail, found);
        }
    }

    fn for_each(&self, visit: &mut impl FnMut(&Pattern, &T)) {
        for entry in self.end.iter().chain(&self.rest) {
            entry.items.iter().for_each(|item| visit(&entry.pattern, item));
        }
        if let Some(any) = &self.any {
            any.for_each(visit);
        }
        self.children.for_each(&mut |child| child.for_each(visit));
    }
}

impl<T: Ord> Entry<T> {
    fn items<'a>(slot: &'a mut Option<Box<Self>>, pattern: &Pattern) -> &'a mut Vec<T> {
        let entry = slot
            .get_or_insert_with(|| Box::new(Self { pattern: pattern.clone(), items: Vec::new() }));
        &mut entry.items
    }

    fn remove(slot: &mut Option<Box<Self>>, item: &T) -> bool {
        let Some(entry) = slot else { return false };
        let removed = remove_sorted(&mut entry.items, item);
        if entry.items.is_empty() {
            *slot = None;
        }
        removed
    }
}

/// Children by segment: most nodes have one or two, some have very many.
enum Children<T> {
    /// Sorted, at most [`FEW_MAX`].
    Few(Vec<(Box<str>, Node<T>)>),
    Many(BTreeMap<Box<str>, Node<T>>),
}

const FEW_MAX: usize = 16;

impl<T: Ord + Clone> Children<T> {
    fn is_empty(&self) -> bool {
        match self {
            Self::Few(few) => few.is_empty(),
            Self::Many(many) => many.is_empty(),
        }
    }

    fn get(&self, segment: &str) -> Option<&Node<T>> {
        match self {
            Self::Few(few) => {
                let index = few.binary_search_by(|(name, _)| (**name).cmp(segment)).ok()?;
                few.get(index).map(|(_, node)| node)
            }
            Self::Many(many) => many.get(segment),
        }
    }

    fn get_mut(&mut self, segment: &str) -> Option<&mut Node<T>> {
        match self {
            Self::Few(few) => {
                let index = few.binary_search_by(|(name, _)| (**name).cmp(segment)).ok()?;
                few.get_mut(index).map(|(_, node)| node)
            }
            Self::Many(many) => many.get_mut(segment),
        }
    }

    fn get_or_insert(&mut self, segment: &str) -> &mut Node<T> {
        if self.get(segment).is_none()
            && let Self::Few(few) = self
            && few.len() >= FEW_MAX
        {
            *self = Self::Many(std::mem::take(few).into_iter().collect());
        }
        match self {
            Self::Few(few) => {
                let index = match few.binary_search_by(|(name, _)| (**name).cmp(segment)) {
                    Ok(index) => index,
                    Err(index) => {
                        if few.is_empty() {
                            few.reserve_exact(1);
                        }
                        few.insert(index, (segment.into(), Node::new()));
                        index
                    }
                };
                &mut few.get_mut(index).expect("found or inserted at this index").1
            }
            Self::Many(many) => many.entry(segment.into()).or_insert_with(Node::new),
        }
    }

    fn remove(&mut self, segment: &str) {
        match self {
            Self::Few(few) => {
                if let Ok(index) = few.binary_search_by(|(name, _)| (**name).cmp(segment)) {
                    few.remove(index);
                }
            }
            Self::Many(many) => {
                many.remove(segment);
            }
        }
    }

    fn for_each(&self, visit: &mut impl FnMut(&Node<T>)) {
        match self {
            Self::Few(few) => few.iter().for_each(|(_, node)| visit(node)),
            Self::Many(many) => many.values().for_each(visit),
        }
    }
}

/// Where matches go; counts the sorted runs that they come in.
struct Found<'a, T> {
    out: &'a mut Vec<T>,
    runs: usize,
}

impl<T: Clone> Found<'_, T> {
    fn add(&mut self, items: &[T]) {
        self.out.extend_from_slice(items);
        self.runs += 1;
    }
}

fn split_first(name: &str) -> (&str, Option<&str>) {
    match name.split_once('.') {
        Some((segment, tail)) => (segment, Some(tail)),
        None => (name, None),
    }
}

fn remove_sorted<T: Ord>(items: &mut Vec<T>, item: &T) -> bool {
    let Ok(index) = items.binary_search(item) else { return false };
    items.remove(index);
    true
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::limits::TOPIC_SEGMENTS_MAX;

    fn pattern(text: &str) -> Pattern {
        Pattern::parse(text).unwrap()
    }

    fn trie(pairs: &[(&str, u32)]) -> Trie<u32> {
        let mut trie = Trie::new();
        for (text, item) in pairs {
            trie.insert(&pattern(text), *item);
        }
        trie
    }

    fn matches(trie: &Trie<u32>, topic: &str) -> Vec<u32> {
        let mut out = vec![99];
        trie.matches(topic, &mut out);
        out
    }

    /// The rules again, as directly as they can be written.
    fn naive(pattern: &[&str], topic: &[&str]) -> bool {
        match (pattern, topic) {
            (["**"], _) | ([], []) => true,
            (["*", pattern @ ..], [_, topic @ ..]) => naive(pattern, topic),
            ([wanted, pattern @ ..], [segment, topic @ ..]) => {
                wanted == segment && naive(pattern, topic)
            }
            _ => false,
        }
    }

    #[test]
    fn items_come_sorted_and_once_however_many_patterns_match() {
        let trie = trie(&[("a.b", 3), ("a.*", 1), ("a.*", 3), ("**", 2), ("a.**", 3), ("x", 9)]);
        assert_eq!(matches(&trie, "a.b"), [1, 2, 3]);
        assert_eq!(matches(&trie, "a"), [2, 3]);
        assert_eq!(matches(&trie, "x"), [2, 9]);
        assert_eq!(matches(&trie, "y.z"), [2]);
    }

    #[test]
    fn a_pair_counts_once() {
        let mut trie = trie(&[("a.*", 1)]);
        assert!(!trie.insert(&pattern("a.*"), 1));
        assert!(trie.insert(&pattern("a.b"), 1));
        assert_eq!(trie.len(), 2);
        assert!(!trie.remove(&pattern("a.*"), &2));
        assert!(!trie.remove(&pattern("a.c"), &1));
        assert!(!trie.remove(&pattern("b.**"), &1));
        assert!(trie.remove(&pattern("a.*"), &1));
        assert!(trie.remove(&pattern("a.b"), &1));
        assert!(trie.is_empty());
    }

    #[test]
    fn removing_everything_leaves_no_node_behind() {
        let patterns = ["a.b.*.d", "a.b.*.**", "a.*", "**", "a.b", "*.*.*.x"];
        let mut trie = Trie::new();
        for text in patterns {
            trie.insert(&pattern(text), 1);
            // More children than fit the small form.
            for child in 0..2 * FEW_MAX {
                trie.insert(&pattern(&format!("{child}.*")), 1);
            }
        }
        let mut all = Vec::new();
        trie.for_each(|pattern, item| all.push((pattern.clone(), *item)));
        assert_eq!(all.len(), trie.len());
        for (pattern, item) in all {
            assert!(trie.remove(&pattern, &item));
        }
        assert!(trie.wild.is_empty() && trie.literal.is_empty() && trie.is_empty());
    }

    #[test]
    fn nodes_with_very_many_children_find_each() {
        let mut trie = Trie::new();
        for child in 0..1000u32 {
            trie.insert(&pattern(&format!("s.{child}.*")), child);
        }
        for child in 0..1000u32 {
            assert_eq!(matches(&trie, &format!("s.{child}.t")), [child]);
        }
        assert!(matches(&trie, "s.1000.t").is_empty());
    }

    #[test]
    fn the_deepest_names_match() {
        let deep = vec!["a"; TOPIC_SEGMENTS_MAX].join(".");
        let stars = vec!["*"; TOPIC_SEGMENTS_MAX].join(".");
        let trie = trie(&[(&deep, 1), (&stars, 2), ("**", 3)]);
        assert_eq!(matches(&trie, &deep), [1, 2, 3]);
    }

    #[test]
    fn matching_visits_no_tree_node_twice() {
        // All combinations of `a` and `*` before an end that never matches.
        let mut trie = Trie::new();
        for combination in 0..1u32 << 12 {
            let mut text: String =
                (0..12).map(|bit| if combination >> bit & 1 == 0 { "a." } else { "*." }).collect();
            text.push_str("x.*");
            trie.insert(&pattern(&text), combination);
        }
        // Without the bound this would not end: 2^31 ways.
        let topic = vec!["a"; TOPIC_SEGMENTS_MAX].join(".");
        assert!(matches(&trie, &topic).is_empty());
    }

    #[test]
    fn for_each_names_the_pairs_in_a_fixed_order() {
        let pairs = [("b", 1), ("a.*", 2), ("**", 3), ("a", 5), ("a.**", 4), ("*.c", 6)];
        let mut reversed = pairs;
        reversed.reverse();
        let expected = r#"[("a", 5), ("b", 1), ("**", 3), ("*.c", 6), ("a.**", 4), ("a.*", 2)]"#;
        assert_eq!(format!("{:?}", trie(&pairs)), expected);
        assert_eq!(format!("{:?}", trie(&reversed)), expected);
    }

    fn topics() -> impl Strategy<Value = String> {
        prop::collection::vec("[abc]", 1..6).prop_map(|segments| segments.join("."))
    }

    fn patterns() -> impl Strategy<Value = String> {
        (prop::collection::vec("[abc*]", 0..5), any::<bool>()).prop_map(|(mut segments, rest)| {
            if rest || segments.is_empty() {
                segments.push("**".to_owned());
            }
            segments.join(".")
        })
    }

    proptest! {
        #[test]
        fn matches_what_a_naive_matcher_matches(
            ops in prop::collection::vec((patterns(), 0u32..5, any::<bool>()), 0..60),
            topics in prop::collection::vec(topics(), 1..20),
        ) {
            let mut trie = Trie::new();
            let mut model = BTreeSet::new();
            for (text, item, add) in ops {
                let parsed = pattern(&text);
                if add {
                    prop_assert_eq!(trie.insert(&parsed, item), model.insert((text, item)));
                } else {
                    prop_assert_eq!(trie.remove(&parsed, &item), model.remove(&(text, item)));
                }
            }
            prop_assert_eq!(trie.len(), model.len());
            let mut listed = BTreeSet::new();
            trie.for_each(|pattern, item| {
                listed.insert((pattern.as_str().to_owned(), *item));
            });
            prop_assert_eq!(&listed, &model);
            for topic in topics {
                let segments: Vec<&str> = topic.split('.').collect();
                let expected: BTreeSet<u32> = model
                    .iter()
                    .filter(|(text, _)| {
                        naive(&text.split('.').collect::<Vec<_>>(), &segments)
                    })
                    .map(|(_, item)| *item)
                    .collect();
                prop_assert_eq!(
                    matches(&trie, &topic),
                    expected.into_iter().collect::<Vec<_>>()
                );
                let parsed = crate::pubsub::Topic::parse(&topic).unwrap();
                for (text, _) in &model {
                    prop_assert_eq!(
                        pattern(text).matches(&parsed),
                        naive(&text.split('.').collect::<Vec<_>>(), &segments)
                    );
                }
            }
        }
    }
}
