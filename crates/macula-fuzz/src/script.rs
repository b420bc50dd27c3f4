//! Reading decisions out of bytes.

use bytes::Bytes;
use macula_proto::id::StreamId;
use macula_proto::limits;
use macula_proto::wire::Channel;

/// Input that is read as decisions. Steps have a fixed width, so that whoever changes, inserts or
/// joins inputs keeps the steps behind.
#[derive(Debug)]
pub(crate) struct Script<'a> {
    rest: &'a [u8],
}

/// One step: what to do, and three arguments.
pub(crate) type Step = [u8; 4];

impl<'a> Script<'a> {
    pub(crate) const fn new(data: &'a [u8]) -> Self {
        Self { rest: data }
    }

    /// The next byte; 0 at the end.
    pub(crate) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.rest.split_first() else { return 0 };
        self.rest = rest;
        *first
    }

    /// The next step; `None` when less than a whole one is left.
    pub(crate) fn step(&mut self) -> Option<Step> {
        let (step, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(*step)
    }

    /// So many bytes, or what is left.
    pub(crate) fn take(&mut self, bytes: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(bytes.min(self.rest.len()));
        self.rest = rest;
        taken
    }

    /// Everything that is left.
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }
}

/// One of `choices`.
pub(crate) fn pick<T: Clone>(choices: &[T], choice: u8) -> T {
    choices[usize::from(choice) % choices.len()].clone()
}

/// A channel: any sort, a lane that does not exist included.
pub(crate) fn channel(choice: u8) -> Channel {
    match choice % 16 {
        0 => Channel::Control,
        1..=6 => Channel::Lane(choice % 16 - 1),
        7 | 8 => Channel::Bulk,
        stream => Channel::Stream(StreamId(u64::from(stream - 9))),
    }
}

const _: () = assert!(limits::LANE_COUNT == 5, "lane 5 is the one that does not exist");

/// A payload of so many bytes; no copy, however often.
pub(crate) fn filler(bytes: usize) -> Bytes {
    static FILLER: [u8; FILLER_BYTES_MAX] = [b'x'; FILLER_BYTES_MAX];
    Bytes::from_static(&FILLER[..bytes.min(FILLER_BYTES_MAX)])
}

/// More than a lane takes, so that messages on streams of their own occur.
const FILLER_BYTES_MAX: usize = limits::LANE_MESSAGE_BYTES_MAX + 16 * 1024;
