//! What waits for one stream of a client.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

/// Frames that one write takes.
const FRAMES_PER_WRITE: usize = 64;

/// A queue bounded by bytes: messages make room for newer ones, answers do not.
#[derive(Debug)]
pub(super) struct Queue {
    bytes_max: usize,
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
    /// It waits; so many messages were dropped for it.
    Queued(u64),
    /// The client asks and does not read the answers.
    Overflow,
}

impl Queue {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, state: Mutex::default(), changed: Notify::new() }
    }

    pub(super) fn push(&self, frame: Bytes, is_publish: bool) -> Pushed {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.is_finished {
            return Pushed::Queued(0);
        }
        state.bytes += frame.len();
        state.frames.push_back((frame, is_publish));
        let mut dropped = 0;
        while state.bytes > self.bytes_max && state.frames.len() > 1 {
            let newest = state.frames.len() - 1;
            let oldest = state.frames.iter().take(newest).position(|(_, is_publish)| *is_publish);
            let Some((gone, _)) = oldest.and_then(|index| state.frames.remove(index)) else {
                if is_publish && let Some((newest, _)) = state.frames.pop_back() {
                    state.bytes -= newest.len();
                    dropped += 1;
                    break;
                }
                if state.bytes > 2 * self.bytes_max {
                    return Pushed::Overflow;
                }
                break;
            };
            state.bytes -= gone.len();
            dropped += 1;
        }
        drop(state);
        self.changed.notify_one();
        Pushed::Queued(dropped)
    }

    /// Lets nothing more in; what waits still goes out.
    pub(super) fn finish(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).is_finished = true;
        self.changed.notify_one();
    }

    /// Waits for frames; none: the end. Cancel-safe.
    pub(super) async fn take(&self, frames: &mut Vec<Bytes>) {
        frames.clear();
        loop {
            let changed = self.changed.notified();
            {
                let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                while frames.len() < FRAMES_PER_WRITE
                    && let Some((frame, _)) = state.frames.pop_front()
                {
                    state.bytes -= frame.len();
                    frames.push(frame);
                }
                if !frames.is_empty() || state.is_finished {
                    return;
                }
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_make_room_and_answers_stay() {
        let queue = Queue::new(100);
        let frame = |byte| Bytes::from(vec![byte; 40]);
        assert_eq!(queue.push(frame(1), true), Pushed::Queued(0));
        assert_eq!(queue.push(frame(2), false), Pushed::Queued(0));
        assert_eq!(queue.push(frame(3), true), Pushed::Queued(1));
        assert_eq!(queue.push(frame(4), false), Pushed::Queued(1));
        assert_eq!(queue.push(frame(5), true), Pushed::Queued(1));
        let mut frames = Vec::new();
        queue.take(&mut frames).await;
        assert_eq!(frames.iter().map(|frame| frame[0]).collect::<Vec<_>>(), [2, 4]);
        let outcomes: Vec<Pushed> = (0..6).map(|_| queue.push(frame(6), false)).collect();
        assert_eq!(outcomes.last(), Some(&Pushed::Overflow), "{outcomes:?}");
    }

    #[tokio::test]
    async fn one_frame_always_fits_and_the_end_comes_behind_it() {
        let queue = Queue::new(10);
        assert_eq!(queue.push(Bytes::from(vec![0; 1_000]), true), Pushed::Queued(0));
        queue.finish();
        assert_eq!(queue.push(Bytes::from_static(b"late"), true), Pushed::Queued(0));
        let mut frames = Vec::new();
        queue.take(&mut frames).await;
        assert_eq!(frames.len(), 1);
        queue.take(&mut frames).await;
        assert!(frames.is_empty());
    }
}
