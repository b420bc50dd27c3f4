//! How handles reach the driver without waiting and without a channel hop per message.
//!
//! A handle pushes a short note and rings; the driver takes all notes at once. Nothing here is
//! unbounded: each live handle, request or buffer has at most one note of a kind waiting.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use macula_proto::id::{CallId, RegistrationId, RequestId, SubscriptionId};
use macula_proto::node::StreamEnd;
use macula_proto::wire::message::CallFailure;
use tokio::sync::Notify;

use crate::error::Closed;
use crate::lock;
use crate::publish::TopicBuffer;
use crate::streaming::Pipe;

/// What handles leave for the driver.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    /// Buffers that went from empty to not empty.
    pub(crate) topics: Vec<Arc<TopicBuffer>>,
    /// Streaming calls whose outgoing side has something new.
    pub(crate) pipes: Vec<Arc<Pipe>>,
    /// Streaming calls whose incoming side has room again.
    pub(crate) pipes_ready: Vec<StreamEnd>,
    /// Subscriptions whose queue has room again.
    pub(crate) subscriptions_ready: Vec<SubscriptionId>,
    /// Requests that were answered.
    pub(crate) replies: Vec<(RequestId, Result<Bytes, CallFailure>)>,
    /// Handles that were dropped.
    pub(crate) dropped: Vec<Dropped>,
    closed: bool,
}

/// A handle that is gone.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Dropped {
    Subscription(SubscriptionId),
    Registration(RegistrationId),
    Call(CallId),
}

impl Notes {
    fn is_empty(&self) -> bool {
        self.topics.is_empty()
            && self.pipes.is_empty()
            && self.pipes_ready.is_empty()
            && self.subscriptions_ready.is_empty()
            && self.replies.is_empty()
            && self.dropped.is_empty()
    }
}

/// The notes and the bell.
#[derive(Debug, Default)]
pub(crate) struct Doorbell {
    notes: Mutex<Notes>,
    bell: Notify,
}

impl Doorbell {
    /// Leaves a note; rings only for the first one, as the driver takes all at once.
    pub(crate) fn leave(&self, write: impl FnOnce(&mut Notes)) -> Result<(), Closed> {
        let mut notes = lock(&self.notes);
        if notes.closed {
            return Err(Closed);
        }
        let was_empty = notes.is_empty();
        write(&mut notes);
        drop(notes);
        if was_empty {
            self.bell.notify_one();
        }
        Ok(())
    }

    /// Leaves the note that a handle is gone; of no interest to a driver that is gone itself.
    pub(crate) fn leave_dropped(&self, dropped: Dropped) {
        self.leave(|notes| notes.dropped.push(dropped)).ok();
    }

    /// Swaps the notes for the empty `spare`, so that their allocations are used again.
    pub(crate) fn take(&self, spare: &mut Notes) {
        let mut notes = lock(&self.notes);
        if !notes.is_empty() {
            spare.closed = notes.closed;
            std::mem::swap(&mut *notes, spare);
        }
    }

    /// Whether a handler has left an answer.
    pub(crate) fn has_replies(&self) -> bool {
        !lock(&self.notes).replies.is_empty()
    }

    /// Completes when there is, or was, something to take.
    ///
    /// # Cancel safety
    /// Dropping the future loses no ring.
    pub(crate) async fn rung(&self) {
        self.bell.notified().await;
    }

    /// Takes no more notes and hands out the last ones.
    pub(crate) fn close(&self) -> Notes {
        let mut notes = lock(&self.notes);
        let last = std::mem::take(&mut *notes);
        notes.closed = true;
        last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_ring_covers_all_notes_until_they_are_taken() {
        let doorbell = Doorbell::default();
        doorbell.leave_dropped(Dropped::Call(CallId(1)));
        doorbell.leave_dropped(Dropped::Call(CallId(2)));
        doorbell.rung().await;
        let mut notes = Notes::default();
        doorbell.take(&mut notes);
        assert_eq!(notes.dropped.len(), 2);
        notes.dropped.clear();
        doorbell.leave_dropped(Dropped::Call(CallId(3)));
        doorbell.rung().await;
        doorbell.take(&mut notes);
        assert_eq!(notes.dropped.len(), 1);
    }

    #[test]
    fn a_closed_doorbell_takes_nothing() {
        let doorbell = Doorbell::default();
        drop(doorbell.close());
        assert_eq!(doorbell.leave(|notes| notes.pipes.clear()), Err(Closed));
    }
}
