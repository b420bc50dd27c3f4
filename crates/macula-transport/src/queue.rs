//! What waits to be written on one channel.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use macula_proto::wire::frame::Frame;

use crate::sync::lock;

/// A writer takes about this much at once, bytes.
const BATCH_BYTES: usize = 64 * 1024;
/// Pieces up to this size are copied together: many small pieces cost more than a copy.
const COPIED_BYTES_MAX: usize = 1024;
/// What a head and a small body take, for sizing the buffer that they are copied into.
const SMALL_FRAME_BYTES: usize = 256;

/// The outgoing frames of one channel.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    frames: VecDeque<Frame>,
    bytes: usize,
    end: Option<End>,
    has_writer: bool,
    writer: Option<Waker>,
}

/// How a channel's sending direction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// After what is queued.
    Finish,
    /// At once.
    Reset,
}

/// What became of a pushed frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pushed {
    /// It waits for the writer.
    Queued,
    /// It is the first: the caller must start a writer.
    StartWriter,
    /// The direction has ended; the frame is dropped.
    Ended,
    /// It waits, but the queue is over its limit.
    Overfull,
}

/// What a writer does next.
#[derive(Debug)]
pub(crate) enum Next {
    /// Write.
    Write(Batch),
    /// Finish the stream.
    Finish,
    /// Reset the stream.
    Reset,
}

/// Frames as the pieces to write.
#[derive(Debug)]
pub(crate) struct Batch {
    /// In order.
    pub(crate) pieces: Vec<Bytes>,
    /// All of them, bytes.
    pub(crate) bytes: usize,
}

impl Queue {
    /// Appends a frame. `bytes_max` bounds what may wait, this frame included.
    pub(crate) fn push(&self, frame: Frame, bytes_max: usize) -> Pushed {
        let (pushed, writer) = {
            let mut state = lock(&self.state);
            if state.end.is_some() {
                return Pushed::Ended;
            }
            state.bytes += frame.wire_bytes();
            state.frames.push_back(frame);
            if state.bytes > bytes_max {
                (Pushed::Overfull, None)
            } else if !state.has_writer {
                state.has_writer = true;
                (Pushed::StartWriter, None)
            } else {
                (Pushed::Queued, state.writer.take())
            }
        };
        if let Some(writer) = writer {
            writer.wake();
        }
        pushed
    }

    /// Declares that a writer runs, so that [`Self::push`] asks for none.
    pub(crate) fn claim_writer(&self) {
        lock(&self.state).has_writer = true;
    }

    /// Ends the direction; a reset also drops what waits and overrides an earlier finish.
    pub(crate) fn end(&self, end: End) {
        let writer = {
            let mut state = lock(&self.state);
            if state.end != Some(End::Reset) {
                state.end = Some(end);
            }
            if end == End::Reset {
                state.frames = VecDeque::new();
                state.bytes = 0;
            }
            state.writer.take()
        };
        if let Some(writer) = writer {
            writer.wake();
        }
    }

    /// Takes what there is to write, up to about 64 KiB.
    pub(crate) fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Next> {
        let mut state = lock(&self.state);
        if state.end == Some(End::Reset) {
            return Poll::Ready(Next::Reset);
        }
        if !state.frames.is_empty() {
            return Poll::Ready(Next::Write(state.take_batch()));
        }
        if state.end == Some(End::Finish) {
            return Poll::Ready(Next::Finish);
        }
        // An idle channel keeps no memory of its last burst.
        state.frames = VecDeque::new();
        state.writer = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Ready once the direction was reset; for a writer that waits for something else meanwhile.
    pub(crate) fn poll_reset(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = lock(&self.state);
        if state.end == Some(End::Reset) {
            return Poll::Ready(());
        }
        state.writer = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Takes one frame, for one of several writers. When none is left, calls `retire` before
    /// anybody can push another.
    pub(crate) fn pop_or_retire(&self, retire: impl FnOnce()) -> Option<Frame> {
        let mut state = lock(&self.state);
        let Some(frame) = state.frames.pop_front() else {
            retire();
            return None;
        };
        state.bytes -= frame.wire_bytes();
        Some(frame)
    }
}

impl State {
    fn take_batch(&mut self) -> Batch {
        let mut batch = Batch { pieces: Vec::new(), bytes: 0 };
        let small_bytes = self.bytes.min(self.frames.len() * SMALL_FRAME_BYTES).min(BATCH_BYTES);
        let mut small = BytesMut::new();
        while batch.bytes < BATCH_BYTES
            && let Some(frame) = self.frames.pop_front()
        {
            batch.bytes += frame.wire_bytes();
            for piece in [frame.head, frame.body] {
                if piece.len() > COPIED_BYTES_MAX {
                    if !small.is_empty() {
                        batch.pieces.push(small.split().freeze());
                    }
                    batch.pieces.push(piece);
                } else if !piece.is_empty() {
                    if small.capacity() == 0 {
                        small.reserve(small_bytes.max(piece.len()));
                    }
                    small.extend_from_slice(&piece);
                }
            }
        }
        if !small.is_empty() {
            batch.pieces.push(small.freeze());
        }
        self.bytes -= batch.bytes;
        batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(head: usize, body: usize) -> Frame {
        Frame { head: Bytes::from(vec![1; head]), body: Bytes::from(vec![2; body]) }
    }

    fn next(queue: &Queue) -> Poll<Next> {
        queue.poll_next(&mut Context::from_waker(Waker::noop()))
    }

    #[track_caller]
    fn batch(queue: &Queue) -> Batch {
        match next(queue) {
            Poll::Ready(Next::Write(batch)) => batch,
            other => panic!("no batch but {other:?}"),
        }
    }

    #[test]
    fn small_frames_are_written_as_one_piece() {
        let queue = Queue::default();
        for _ in 0..100 {
            queue.push(frame(20, 100), usize::MAX);
        }
        let batch = batch(&queue);
        assert_eq!((batch.pieces.len(), batch.bytes), (1, 12_000));
        assert!(next(&queue).is_pending());
    }

    #[test]
    fn large_bodies_are_not_copied() {
        let queue = Queue::default();
        let large = frame(20, 30_000);
        queue.push(large.clone(), usize::MAX);
        queue.push(frame(20, 10), usize::MAX);
        let batch = batch(&queue);
        assert_eq!(batch.pieces.iter().map(Bytes::len).collect::<Vec<_>>(), [20, 30_000, 30]);
        assert_eq!(batch.pieces[1].as_ptr(), large.body.as_ptr());
    }

    #[test]
    fn a_batch_is_bounded() {
        let queue = Queue::default();
        for _ in 0..10 {
            queue.push(frame(20, 30_000), usize::MAX);
        }
        assert!(batch(&queue).bytes < BATCH_BYTES + 30_020);
    }

    #[test]
    fn finish_comes_after_what_is_queued_and_reset_before() {
        let queue = Queue::default();
        queue.push(frame(20, 10), usize::MAX);
        queue.end(End::Finish);
        assert_eq!(queue.push(frame(20, 10), usize::MAX), Pushed::Ended);
        assert_eq!(batch(&queue).bytes, 30);
        assert!(matches!(next(&queue), Poll::Ready(Next::Finish)));
        queue.end(End::Reset);
        queue.end(End::Finish);
        assert!(matches!(next(&queue), Poll::Ready(Next::Reset)));
    }

    #[test]
    fn the_first_push_asks_for_a_writer_and_too_much_is_noticed() {
        let queue = Queue::default();
        assert_eq!(queue.push(frame(20, 0), 50), Pushed::StartWriter);
        assert_eq!(queue.push(frame(20, 0), 50), Pushed::Queued);
        assert_eq!(queue.push(frame(20, 0), 50), Pushed::Overfull);
    }
}
