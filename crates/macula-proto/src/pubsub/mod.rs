//! Publish and subscribe: names, matching, deduplication, rings.
//!
//! - [`Topic`], [`Pattern`], [`ProcedureName`]: names that were checked once.
//! - [`Trie`]: which subscriptions a topic concerns.
//! - [`Seen`] and [`SeenTable`]: which messages of a stream are new.
//! - [`ring::Ring`]: QoS 1 messages until everybody known has them.
//! - [`retained::Retained`]: the last message of a topic.
//!
//! A *stream* here is what one publisher sends in one epoch on one topic: its sequence numbers
//! belong together ([`StreamKey`]). These are parts without any I/O or knowledge of links; the
//! node puts them together.

pub mod retained;
pub mod ring;
pub mod seen;
pub mod topic;
pub mod trie;

pub use seen::{Accepted, NewMessages, NewRange, Seen, SeenTable, StreamKey};
pub use topic::{NameError, Pattern, ProcedureName, Topic};
pub use trie::Trie;
