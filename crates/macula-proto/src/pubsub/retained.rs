//! Retained messages: the last message of a topic, for those who come later.

use std::collections::BTreeMap;

use super::Topic;
use crate::wire::message::Publish;

/// The retained messages of one realm.
#[derive(Debug, Default)]
pub struct Retained {
    messages: BTreeMap<Topic, Publish>,
    bytes: usize,
}

/// There is no room for another retained message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetainedFull;

impl Retained {
    /// Keeps `publish` (one message) as the topic's retained one; an empty body removes it.
    pub fn set(
        &mut self,
        topic: &Topic,
        publish: Publish,
        bytes_max: usize,
    ) -> Result<(), RetainedFull> {
        let old = self.messages.get(topic).map_or(0, |old| cost(topic, old.body.len()));
        if publish.body.is_empty() {
            self.messages.remove(topic);
            self.bytes -= old;
            return Ok(());
        }
        let bytes = self.bytes - old + cost(topic, publish.body.len());
        if bytes > bytes_max {
            return Err(RetainedFull);
        }
        self.bytes = bytes;
        self.messages.insert(topic.clone(), publish);
        Ok(())
    }

    /// Whether a message with so long a body may become the topic's retained one. With the body of
    /// a whole batch the answer is on the safe side.
    pub fn fits(&self, topic: &Topic, body_bytes: usize, bytes_max: usize) -> bool {
        let old = self.messages.get(topic).map_or(0, |old| cost(topic, old.body.len()));
        body_bytes == 0 || self.bytes - old + cost(topic, body_bytes) <= bytes_max
    }

    /// The retained messages of the topics that satisfy `matches`.
    pub fn matching<'a>(
        &'a self,
        matches: impl Fn(&Topic) -> bool + 'a,
    ) -> impl Iterator<Item = (&'a Topic, &'a Publish)> {
        self.messages.iter().filter(move |(topic, _)| matches(topic))
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
