//! What waits for one stream of a client.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

/// Frames that one write takes.
const FRAMES_PER_WRITE: usize = 64;

/// What several queues may hold together, bytes.
#[derive(Debug)]
pub(super) struct Budget {
    bytes_max: usize,
    used: AtomicUsize,
}

impl Budget {
    pub(super) fn new(bytes_max: usize) -> Arc<Self> {
        Arc::new(Self { bytes_max, used: AtomicUsize::new(0) })
    }

    /// Bytes that wait now.
    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether so many more fit; one frame always does.
    fn has_room(&self, bytes: usize) -> bool {
        let used = self.used();
        used == 0 || used + bytes <= self.bytes_max
    }
}

/// A queue bounded by bytes: messages make room for newer ones, answers do not.
#[derive(Debug)]
pub(super) struct Queue {
    bytes_max: usize,
    /// Of the connection, and of all.
    budgets: [Arc<Budget>; 2],
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    frames: VecDeque<(Bytes, bool)>,
    bytes: usize,
    is_finished: bool,
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pushed {
    /// It waits, or was dropped itself; so many messages were dropped.
    Queued(u64),
    /// The client asks and does not read the answers.
    Overflow,
}

impl Queue {
    /// A queue of a connection, of which `connection` is what all its queues may hold.
    pub(super) fn new(bytes_max: usize, connection: Arc<Budget>, all: Arc<Budget>) -> Self {
        let budgets = [connection, all];
        Self { bytes_max, budgets, state: Mutex::default(), changed: Notify::new() }
    }

    pub(super) fn push(&self, frame: Bytes, is_publish: bool) -> Pushed {
        let mut state = self.lock();
        if state.is_finished {
            return Pushed::Queued(0);
        }
        let mut dropped = 0;
        // The oldest message makes room, wherever it stands.
        while state.bytes > 0 && state.bytes + frame.len() > self.bytes_max {
            let oldest = state.frames.iter().position(|(_, is_publish)| *is_publish);
            let Some((gone, _)) = oldest.and_then(|index| state.frames.remove(index)) else {
                break;
            };
            self.leave(&mut state, gone.len());
            dropped += 1;
        }
        let fits = state.bytes == 0 || state.bytes + frame.len() <= self.bytes_max;
        if is_publish && !(fits && self.budgets.iter().all(|it| it.has_room(frame.len()))) {
            return Pushed::Queued(dropped + 1);
        }
        let is_over = |budget: &Arc<Budget>| !budget.has_room(frame.len() / 2);
        if !is_publish && (state.bytes > 2 * self.bytes_max || self.budgets.iter().any(is_over)) {
            return Pushed::Overflow;
        }
        state.bytes += frame.len();
        for budget in &self.budgets {
            budget.used.fetch_add(frame.len(), Ordering::Relaxed);
        }
        state.frames.push_back((frame, is_publish));
        drop(state);
        self.changed.notify_one();
        Pushed::Queued(dropped)
    }

    /// Lets nothing more in; what waits still goes out.
    pub(super) fn finish(&self) {
        self.lock().is_finished = true;
        self.changed.notify_one();
    }

    /// Waits for frames; none: the end. Cancel-safe.
    pub(super) async fn take(&self, frames: &mut Vec<Bytes>) {
        frames.clear();
        loop {
            let changed = self.changed.notified();
            {
                let mut state = self.lock();
                while frames.len() < FRAMES_PER_WRITE
                    && let Some((frame, _)) = state.frames.pop_front()
                {
                    self.leave(&mut state, frame.len());
                    frames.push(frame);
                }
                if !frames.is_empty() || state.is_finished {
                    return;
                }
            }
            changed.await;
        }
    }

    fn leave(&self, state: &mut State, bytes: usize) {
        state.bytes -= bytes;
        for budget in &self.budgets {
            budget.used.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let mut state = std::mem::take(&mut *self.lock());
        let bytes = state.bytes;
        self.leave(&mut state, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(byte: u8) -> Bytes {
        Bytes::from(vec![byte; 40])
    }

    async fn taken(queue: &Queue) -> Vec<u8> {
        let mut frames = Vec::new();
        queue.take(&mut frames).await;
        frames.iter().map(|frame| frame[0]).collect()
    }

    #[tokio::test]
    async fn messages_make_room_and_answers_stay() {
        let queue = Queue::new(100, Budget::new(200), Budget::new(1_000));
        assert_eq!(queue.push(frame(1), true), Pushed::Queued(0));
        assert_eq!(queue.push(frame(2), false), Pushed::Queued(0));
        assert_eq!(queue.push(frame(3), true), Pushed::Queued(1));
        assert_eq!(queue.push(frame(4), false), Pushed::Queued(1));
        assert_eq!(queue.push(frame(5), true), Pushed::Queued(1), "no room beside answers");
        assert_eq!(taken(&queue).await, [2, 4]);
        let outcomes: Vec<Pushed> = (0..8).map(|_| queue.push(frame(6), false)).collect();
        assert_eq!(outcomes.last(), Some(&Pushed::Overflow), "{outcomes:?}");
    }

    #[tokio::test]
    async fn one_frame_always_fits_and_the_end_comes_behind_it() {
        let queue = Queue::new(10, Budget::new(10), Budget::new(10));
        assert_eq!(queue.push(Bytes::from(vec![7; 1_000]), true), Pushed::Queued(0));
        queue.finish();
        assert_eq!(queue.push(Bytes::from_static(b"late"), true), Pushed::Queued(0));
        assert_eq!(taken(&queue).await, [7]);
        assert!(taken(&queue).await.is_empty());
    }

    #[test]
    fn queues_of_a_connection_and_of_all_share_what_there_is() {
        let (connection, all) = (Budget::new(100), Budget::new(150));
        let queue = |connection: &Arc<Budget>| Queue::new(100, connection.clone(), all.clone());
        let (one, two) = (queue(&connection), queue(&connection));
        assert_eq!(one.push(frame(1), true), Pushed::Queued(0));
        assert_eq!(two.push(frame(2), true), Pushed::Queued(0));
        assert_eq!(two.push(frame(3), true), Pushed::Queued(1), "the connection's are used up");
        let other = queue(&Budget::new(100));
        assert_eq!(other.push(frame(4), true), Pushed::Queued(0));
        assert_eq!(other.push(frame(5), true), Pushed::Queued(1), "those of all are used up");
        drop((one, two, other));
        assert_eq!((connection.used(), all.used()), (0, 0));
    }
}
