//! Which buffer belongs to which topic.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use macula_proto::RealmId;
use macula_proto::pubsub::{NameError, Topic};

use super::buffer::TopicBuffer;
use crate::lock;

/// Buffers that may be kept without anybody using them.
const IDLE_BUFFERS_MAX: usize = 1024;
/// Topics that a node handle remembers by name.
const CACHED_TOPICS_MAX: usize = 1024;

/// All topics that this endpoint publishes on.
#[derive(Debug, Default)]
pub(crate) struct Topics {
    slots: Mutex<Slots>,
}

#[derive(Debug, Default)]
struct Slots {
    by_name: HashMap<(RealmId, Topic), Slot>,
    /// Live buffers above which the next new one looks for idle ones.
    sweep_at: usize,
    live: usize,
    /// The endpoint closes: no message is taken any more.
    are_sealed: bool,
}

#[derive(Debug)]
enum Slot {
    Live(Arc<TopicBuffer>),
    /// Nobody uses it; sequence numbers go on after this one.
    Idle(u64),
}

impl Topics {
    /// The one buffer of a topic.
    pub(crate) fn open(&self, realm: RealmId, topic: Topic) -> Arc<TopicBuffer> {
        let mut slots = lock(&self.slots);
        let published = match slots.by_name.get(&(realm, topic.clone())) {
            Some(Slot::Live(buffer)) => return buffer.clone(),
            Some(Slot::Idle(published)) => *published,
            None => 0,
        };
        if slots.live >= slots.sweep_at {
            slots.sweep();
        }
        let buffer = Arc::new(TopicBuffer::new(realm, topic.clone(), published));
        if slots.are_sealed {
            buffer.refuse_appends();
        }
        slots.by_name.insert((realm, topic), Slot::Live(buffer.clone()));
        slots.live += 1;
        buffer
    }

    /// The buffer of a topic, if anybody uses it.
    pub(crate) fn find(&self, realm: RealmId, topic: &Topic) -> Option<Arc<TopicBuffer>> {
        match lock(&self.slots).by_name.get(&(realm, topic.clone())) {
            Some(Slot::Live(buffer)) => Some(buffer.clone()),
            Some(Slot::Idle(_)) | None => None,
        }
    }

    /// Whether everything published anywhere was handed over and, with QoS 1, accepted.
    pub(crate) fn are_settled(&self) -> bool {
        lock(&self.slots).by_name.values().all(|slot| match slot {
            Slot::Live(buffer) => buffer.is_settled(),
            Slot::Idle(_) => true,
        })
    }

    /// Takes no more messages on any topic; what was published goes its way.
    pub(crate) fn refuse_appends(&self) {
        let mut slots = lock(&self.slots);
        slots.are_sealed = true;
        slots.live().for_each(|buffer| buffer.refuse_appends());
    }

    /// Ends all buffers.
    pub(crate) fn close(&self) {
        let mut slots = lock(&self.slots);
        slots.are_sealed = true;
        slots.live().for_each(|buffer| buffer.close());
    }
}

impl Slots {
    fn live(&self) -> impl Iterator<Item = &Arc<TopicBuffer>> {
        self.by_name.values().filter_map(|slot| match slot {
            Slot::Live(buffer) => Some(buffer),
            Slot::Idle(_) => None,
        })
    }

    /// Forgets the buffers that nobody uses, but not how far they had counted.
    fn sweep(&mut self) {
        for slot in self.by_name.values_mut() {
            if let Slot::Live(buffer) = slot
                && Arc::strong_count(buffer) == 1
                && buffer.is_settled()
            {
                *slot = Slot::Idle(buffer.marks().published);
                self.live -= 1;
            }
        }
        self.sweep_at = self.live * 2 + IDLE_BUFFERS_MAX;
    }
}

/// Saves `node.publish(topic, ..)` the parsing and the look-up.
#[derive(Debug, Default)]
pub(crate) struct PublisherCache {
    cached: Mutex<Cached>,
}

#[derive(Debug, Default)]
struct Cached {
    by_name: HashMap<Topic, Arc<TopicBuffer>>,
    /// Names in the order in which they came.
    order: VecDeque<Topic>,
}

impl PublisherCache {
    /// The buffer of a topic given as text.
    pub(crate) fn open(
        &self,
        topics: &Topics,
        realm: RealmId,
        text: &str,
    ) -> Result<Arc<TopicBuffer>, NameError> {
        let mut cached = lock(&self.cached);
        if let Some(buffer) = cached.by_name.get(text) {
            return Ok(buffer.clone());
        }
        let topic = Topic::parse(text)?;
        let buffer = topics.open(realm, topic.clone());
        if cached.order.len() >= CACHED_TOPICS_MAX
            && let Some(oldest) = cached.order.pop_front()
        {
            cached.by_name.remove(&oldest);
        }
        cached.order.push_back(topic.clone());
        cached.by_name.insert(topic, buffer.clone());
        Ok(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_has_one_buffer_and_counts_on_after_a_pause() {
        let (topics, realm) = (Topics::default(), RealmId::of_name("r"));
        let name = |index: usize| Topic::parse(&format!("t{index}")).unwrap();
        let first = topics.open(realm, name(0));
        assert!(Arc::ptr_eq(&first, &topics.open(realm, name(0))));
        let kind = crate::publish::Kind::default();
        first.append(kind, &bytes::Bytes::from_static(b"x")).unwrap();
        first.take(|_| true);
        drop(first);
        for index in 1..3 * IDLE_BUFFERS_MAX {
            topics.open(realm, name(index));
        }
        assert!(topics.find(realm, &name(0)).is_none(), "idle buffers are given up");
        assert_eq!(topics.open(realm, name(0)).marks().published, 1);
    }
}
