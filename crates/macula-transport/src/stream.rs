//! The streams of streaming calls: which exist, and how they end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use macula_proto::id::StreamId;
use macula_proto::limits;

use crate::gate::Gate;
use crate::queue::{End, Queue};

/// Ids that ended out of order and are remembered one by one.
const CLOSED_REMEMBERED_MAX: usize = 1024;

/// One stream, both directions.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) id: StreamId,
    pub(crate) queue: Queue,
    pub(crate) gate: Arc<Gate>,
    open_halves: AtomicU8,
}

impl Stream {
    fn new(id: StreamId) -> Arc<Self> {
        let stream = Self {
            id,
            queue: Queue::default(),
            gate: Arc::default(),
            open_halves: AtomicU8::new(2),
        };
        stream.queue.claim_writer();
        Arc::new(stream)
    }

    /// Sends what is queued, then ends both directions.
    pub(crate) fn finish(&self) {
        self.queue.end(End::Finish);
        self.gate.stop();
    }

    /// Ends both directions at once.
    pub(crate) fn reset(&self) {
        self.queue.end(End::Reset);
        self.gate.stop();
    }

    /// Notes that a direction is over; `true` when it was the last.
    pub(crate) fn end_half(&self) -> bool {
        self.open_halves.fetch_sub(1, Ordering::AcqRel) == 1
    }
}

/// The streams of one link.
///
/// Ids chosen here by the core are even, those that the transport gives to streams of the peer are
/// odd; none is used twice.
#[derive(Debug)]
pub(crate) struct Streams {
    live: BTreeMap<StreamId, Arc<Stream>>,
    next_accepted: u64,
    /// All even ids below it are dead.
    dead_below: u64,
    /// Dead even ids from there on.
    dead: BTreeSet<u64>,
    open_here: usize,
    is_closed: bool,
}

/// What a stream id stands for.
#[derive(Debug)]
pub(crate) enum Lookup {
    /// It lives.
    Live(Arc<Stream>),
    /// It was not known and now is; the caller must open it.
    New(Arc<Stream>),
    /// It is over, or never was.
    Dead,
    /// It was not known and there is no room for it.
    Full,
}

impl Default for Streams {
    fn default() -> Self {
        Self {
            live: BTreeMap::new(),
            next_accepted: 1,
            dead_below: 0,
            dead: BTreeSet::new(),
            open_here: 0,
            is_closed: false,
        }
    }
}

impl Streams {
    /// The stream to send on.
    pub(crate) fn for_sending(&mut self, id: StreamId) -> Lookup {
        if let Some(stream) = self.live.get(&id) {
            return Lookup::Live(Arc::clone(stream));
        }
        let is_ours = id.0.is_multiple_of(2);
        if self.is_closed || !is_ours || id.0 < self.dead_below || self.dead.contains(&id.0) {
            return Lookup::Dead;
        }
        if self.open_here >= limits::STREAMS_PER_LINK_MAX {
            self.bury(id);
            return Lookup::Full;
        }
        self.open_here += 1;
        let stream = Stream::new(id);
        self.live.insert(id, Arc::clone(&stream));
        Lookup::New(stream)
    }

    /// Gives a stream of the peer its id; `None` once the link is gone.
    pub(crate) fn accept(&mut self) -> Option<Arc<Stream>> {
        if self.is_closed {
            return None;
        }
        let id = StreamId(self.next_accepted);
        self.next_accepted += 2;
        let stream = Stream::new(id);
        self.live.insert(id, Arc::clone(&stream));
        Some(stream)
    }

    /// A live stream.
    pub(crate) fn find(&self, id: StreamId) -> Option<Arc<Stream>> {
        self.live.get(&id).cloned()
    }

    /// Forgets a stream that is over.
    pub(crate) fn remove(&mut self, id: StreamId) {
        if self.live.remove(&id).is_some() && id.0.is_multiple_of(2) {
            self.open_here -= 1;
            self.bury(id);
        }
    }

    /// Takes no more streams and hands out those that live.
    pub(crate) fn close(&mut self) -> Vec<Arc<Stream>> {
        self.is_closed = true;
        self.live.values().cloned().collect()
    }

    /// Remembers that an even id is dead, in constant memory.
    fn bury(&mut self, id: StreamId) {
        self.dead.insert(id.0);
        if self.dead.len() > CLOSED_REMEMBERED_MAX
            && let Some(lowest) = self.dead.first()
        {
            self.dead_below = *lowest;
        }
        while self.dead.remove(&self.dead_below) {
            self.dead_below += 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_id_is_not_opened_again() {
        let mut streams = Streams::default();
        for id in [2, 0, 6] {
            assert!(matches!(streams.for_sending(StreamId(id)), Lookup::New(_)));
            assert!(matches!(streams.for_sending(StreamId(id)), Lookup::Live(_)));
            streams.remove(StreamId(id));
            assert!(matches!(streams.for_sending(StreamId(id)), Lookup::Dead));
        }
        assert!(matches!(streams.for_sending(StreamId(4)), Lookup::New(_)));
        assert_eq!(streams.dead_below, 4);
    }

    #[test]
    fn memory_for_dead_ids_is_bounded() {
        let mut streams = Streams::default();
        for id in (2..20_000).step_by(4) {
            assert!(matches!(streams.for_sending(StreamId(id)), Lookup::New(_)));
            streams.remove(StreamId(id));
            assert!(matches!(streams.for_sending(StreamId(id)), Lookup::Dead));
        }
        assert!(streams.dead.len() <= CLOSED_REMEMBERED_MAX);
    }

    #[test]
    fn streams_of_both_sides_have_ids_of_their_own() {
        let mut streams = Streams::default();
        let ids: Vec<u64> = (0..3).filter_map(|_| Some(streams.accept()?.id.0)).collect();
        assert_eq!(ids, [1, 3, 5]);
        assert!(matches!(streams.for_sending(StreamId(7)), Lookup::Dead));
        assert!(matches!(streams.for_sending(StreamId(3)), Lookup::Live(_)));
        assert_eq!(streams.close().len(), 3);
        assert!(streams.accept().is_none());
    }

    #[test]
    fn too_many_streams_are_refused() {
        let mut streams = Streams::default();
        for id in 0..limits::STREAMS_PER_LINK_MAX as u64 {
            assert!(matches!(streams.for_sending(StreamId(2 * id)), Lookup::New(_)));
        }
        assert!(matches!(streams.for_sending(StreamId(1000)), Lookup::Full));
        streams.remove(StreamId(0));
        assert!(matches!(streams.for_sending(StreamId(1000)), Lookup::Dead));
        assert!(matches!(streams.for_sending(StreamId(1002)), Lookup::New(_)));
    }
}
