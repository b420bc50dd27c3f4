//! Retained messages: the last message of a topic, for those who come later.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::{Pattern, Topic};
use crate::id::EndpointId;
use crate::wire::message::Publish;

/// The retained messages of one realm.
#[derive(Debug, Default)]
pub struct Retained {
    messages: BTreeMap<Topic, Publish>,
    bytes: usize,
    by_author: BTreeMap<EndpointId, usize>,
}

/// How much may be retained, bytes.
#[derive(Clone, Copy, Debug)]
pub struct RetainedRoom {
    /// In the realm.
    pub bytes_max: usize,
    /// Of one publisher in the realm.
    pub bytes_per_author_max: usize,
}

/// There is no room for another retained message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RetainedFull {
    /// The realm has as much as it may.
    #[error("the realm's retained messages use all the room they may")]
    Realm,
    /// The publisher has as much as it may.
    #[error("this publisher's retained messages use all the room they may in the realm")]
    Author,
}

impl Retained {
    /// Keeps `publish` (one message) as the topic's retained one; an empty body removes it. Whether
    /// there is room was asked before.
    pub fn set(&mut self, topic: &Topic, publish: Publish) {
        if let Some(old) = self.messages.remove(topic) {
            let bytes = cost(topic, old.body.len());
            self.bytes -= bytes;
            if let Some(of_author) = self.by_author.get_mut(&old.publisher) {
                *of_author -= bytes;
                if *of_author == 0 {
                    self.by_author.remove(&old.publisher);
                }
            }
        }
        if publish.body.is_empty() {
            return;
        }
        let bytes = cost(topic, publish.body.len());
        self.bytes += bytes;
        *self.by_author.entry(publish.publisher).or_default() += bytes;
        self.messages.insert(topic.clone(), publish);
    }

    /// Whether `publish` may become the topic's retained message. For a batch the answer is on the
    /// safe side.
    ///
    /// # Errors
    /// Which room is used up.
    pub fn fits(
        &self,
        topic: &Topic,
        publish: &Publish,
        room: RetainedRoom,
    ) -> Result<(), RetainedFull> {
        if publish.body.is_empty() {
            return Ok(());
        }
        let new = cost(topic, publish.body.len());
        let old = self.messages.get(topic);
        let replaced = old.map_or(0, |old| cost(topic, old.body.len()));
        if self.bytes - replaced + new > room.bytes_max {
            return Err(RetainedFull::Realm);
        }
        let author = &publish.publisher;
        let own = old.filter(|old| old.publisher == *author).map_or(0, |_| replaced);
        let of_author = self.by_author.get(author).copied().unwrap_or_default();
        if of_author - own + new > room.bytes_per_author_max {
            return Err(RetainedFull::Author);
        }
        Ok(())
    }

    /// The retained messages of the topics that a pattern matches.
    pub fn matching<'a>(
        &'a self,
        pattern: &'a Pattern,
    ) -> impl Iterator<Item = (&'a Topic, &'a Publish)> {
        self.candidates(pattern).filter(move |(topic, _)| pattern.matches(topic))
    }

    /// What must be looked at to find what a pattern matches.
    pub fn candidates<'a>(
        &'a self,
        pattern: &'a Pattern,
    ) -> impl Iterator<Item = (&'a Topic, &'a Publish)> {
        let prefix = pattern.literal_prefix();
        // `a.b.**` also matches `a.b`, and `a.b` may stand before its children
        let end = match pattern.is_literal() {
            true => Bound::Included(prefix),
            false => Bound::Unbounded,
        };
        self.messages
            .range::<str, _>((Bound::Included(prefix), end))
            .take_while(move |(topic, _)| topic.as_str().starts_with(prefix))
    }

    /// What all of them take, bytes, with what it costs to keep them.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many topics have one.
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }
}

fn cost(topic: &Topic, body_bytes: usize) -> usize {
    body_bytes + 2 * topic.as_str().len() + 192
}
