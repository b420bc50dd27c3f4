//! How far a reader may run ahead of the consumer.

use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use crate::sync::lock;

/// What the consumer may hold of one channel before its reader stops, bytes. One read, at most a
/// few dozen packets, may go beyond it.
pub const READ_AHEAD_BYTES_MAX: usize = 256 * 1024;

/// Says whether a channel may be read.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    held_bytes: usize,
    is_paused: bool,
    end: End,
    /// Every reader that looked at the gate; one, except on the bulk channel.
    readers: Vec<Waker>,
}

/// How final a gate is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum End {
    /// The channel lives.
    #[default]
    No,
    /// The link is gone: what has come is still handed out, unless the channel is paused.
    LastCall,
    /// Nothing more shall be read.
    Stopped,
}

/// What a gate says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Passage {
    /// Read.
    Open,
    /// Never read again.
    Ended,
}

impl Gate {
    /// Whether to read now. The task is woken whenever the answer may have changed, also after
    /// [`Passage::Open`].
    pub(crate) fn poll(&self, cx: &mut Context<'_>) -> Poll<Passage> {
        let mut state = lock(&self.state);
        match state.end {
            End::Stopped => return Poll::Ready(Passage::Ended),
            End::LastCall if state.is_paused => return Poll::Ready(Passage::Ended),
            End::LastCall | End::No => {}
        }
        if !state.readers.iter().any(|reader| reader.will_wake(cx.waker())) {
            state.readers.push(cx.waker().clone());
        }
        if state.is_paused || state.held_bytes >= READ_AHEAD_BYTES_MAX {
            return Poll::Pending;
        }
        Poll::Ready(Passage::Open)
    }

    /// Counts `bytes` as held by the consumer until the permit is dropped.
    pub(crate) fn hold(self: &Arc<Self>, bytes: usize) -> ReadPermit {
        lock(&self.state).held_bytes += bytes;
        ReadPermit { gate: Arc::clone(self), bytes }
    }

    /// Stops reading until [`Self::resume`].
    pub(crate) fn pause(&self) {
        lock(&self.state).is_paused = true;
    }

    /// Reads on.
    pub(crate) fn resume(&self) {
        self.change(|state| state.is_paused = false);
    }

    /// The link is gone: readers hand out what has come, then end.
    pub(crate) fn last_call(&self) {
        self.change(|state| {
            if state.end == End::No {
                state.end = End::LastCall;
            }
        });
    }

    /// Nothing more shall be read.
    pub(crate) fn stop(&self) {
        self.change(|state| state.end = End::Stopped);
    }

    /// Changes the state, then wakes all readers.
    fn change(&self, change: impl FnOnce(&mut State)) {
        let readers = {
            let mut state = lock(&self.state);
            change(&mut state);
            std::mem::take(&mut state.readers)
        };
        readers.into_iter().for_each(Waker::wake);
    }

    fn give_back(&self, bytes: usize) {
        let readers = {
            let mut state = lock(&self.state);
            let was_full = state.held_bytes >= READ_AHEAD_BYTES_MAX;
            state.held_bytes = state.held_bytes.saturating_sub(bytes);
            if !was_full || state.held_bytes >= READ_AHEAD_BYTES_MAX {
                return;
            }
            std::mem::take(&mut state.readers)
        };
        readers.into_iter().for_each(Waker::wake);
    }
}

/// Stands for frames that the consumer holds: dropping it lets the reader of their channel read as
/// many bytes more. Drop it when the frames have been dealt with, not when they were received.
#[derive(Debug)]
pub struct ReadPermit {
    gate: Arc<Gate>,
    bytes: usize,
}

impl ReadPermit {
    /// What the frames took on the wire, bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for ReadPermit {
    fn drop(&mut self) {
        self.gate.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(gate: &Gate) -> Poll<Passage> {
        gate.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_full_gate_opens_when_permits_are_dropped() {
        let gate = Arc::new(Gate::default());
        let first = gate.hold(READ_AHEAD_BYTES_MAX - 1);
        assert_eq!(look(&gate), Poll::Ready(Passage::Open));
        let second = gate.hold(10);
        assert_eq!(look(&gate), Poll::Pending);
        drop(second);
        assert_eq!(look(&gate), Poll::Ready(Passage::Open));
        drop(first);
        assert_eq!(lock(&gate.state).held_bytes, 0);
    }

    #[test]
    fn a_frame_larger_than_the_bound_passes_alone() {
        let gate = Arc::new(Gate::default());
        let permit = gate.hold(8 << 20);
        assert_eq!(look(&gate), Poll::Pending);
        drop(permit);
        assert_eq!(look(&gate), Poll::Ready(Passage::Open));
    }

    #[test]
    fn the_last_call_ends_paused_channels_only() {
        let (open, paused) = (Gate::default(), Gate::default());
        paused.pause();
        assert_eq!(look(&paused), Poll::Pending);
        open.last_call();
        paused.last_call();
        assert_eq!(look(&open), Poll::Ready(Passage::Open));
        assert_eq!(look(&paused), Poll::Ready(Passage::Ended));
        open.stop();
        open.last_call();
        assert_eq!(look(&open), Poll::Ready(Passage::Ended));
    }
}
