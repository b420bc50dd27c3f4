//! Frames out of the pieces in which a stream delivers them. Pure: no stream, no clock.

use bytes::{Buf, Bytes, BytesMut};
use macula_proto::wire::frame::{Channel, HEADER_BYTES, HeaderError, RawFrame, decode_header};

/// A frame that announces more than this gets its memory only as its bytes come.
const FIRST_ALLOCATION_BYTES_MAX: usize = 64 * 1024;

/// Cuts the byte stream of one channel into frames.
///
/// A frame that lies within one piece is a slice of it; any other is copied once into a buffer of
/// its own. Between frames it holds no memory.
#[derive(Debug)]
pub(crate) struct Assembler {
    channel: Channel,
    header: [u8; HEADER_BYTES],
    header_bytes: usize,
    partial: Option<Partial>,
}

/// A frame of which some payload is still to come.
#[derive(Debug)]
struct Partial {
    kind: u8,
    payload_bytes: usize,
    payload: BytesMut,
}

impl Assembler {
    /// An assembler at the start of a stream. `channel` decides how large frames may be.
    pub(crate) fn new(channel: Channel) -> Self {
        Self { channel, header: [0; HEADER_BYTES], header_bytes: 0, partial: None }
    }

    /// Whether the stream stands between two frames.
    pub(crate) fn is_empty(&self) -> bool {
        self.header_bytes == 0 && self.partial.is_none()
    }

    /// Memory of the frame that is still to be completed, bytes.
    #[cfg_attr(not(test), allow(dead_code, reason = "for tests, here and in macula-fuzz"))]
    pub(crate) fn held_bytes(&self) -> usize {
        self.partial.as_ref().map_or(0, |partial| partial.payload.capacity())
    }

    /// Takes the next piece of the stream; appends the frames that it completes to `frames`.
    ///
    /// # Errors
    /// When a frame is larger than the channel allows. Frames in front of it have been appended;
    /// the stream cannot be read any further.
    pub(crate) fn push(
        &mut self,
        mut piece: Bytes,
        frames: &mut Vec<RawFrame>,
    ) -> Result<(), HeaderError> {
        while !piece.is_empty() {
            if self.partial.is_some() {
                self.fill_partial(&mut piece, frames);
                continue;
            }
            let Some(header) = self.take_header(&mut piece) else { break };
            let (kind, payload_bytes) = decode_header(header, self.channel)?;
            if payload_bytes <= piece.len() {
                frames.push(RawFrame { kind, payload: piece.split_to(payload_bytes) });
            } else {
                let payload =
                    BytesMut::with_capacity(payload_bytes.min(FIRST_ALLOCATION_BYTES_MAX));
                self.partial = Some(Partial { kind, payload_bytes, payload });
            }
        }
        Ok(())
    }

    /// Completes a header from what was kept and from `piece`; `None` when it takes more.
    fn take_header(&mut self, piece: &mut Bytes) -> Option<[u8; HEADER_BYTES]> {
        let missing = self.header.get_mut(self.header_bytes..)?;
        let taken = missing.len().min(piece.len());
        missing.iter_mut().zip(piece.iter()).for_each(|(slot, byte)| *slot = *byte);
        piece.advance(taken);
        self.header_bytes += taken;
        if self.header_bytes < HEADER_BYTES {
            return None;
        }
        self.header_bytes = 0;
        Some(self.header)
    }

    fn fill_partial(&mut self, piece: &mut Bytes, frames: &mut Vec<RawFrame>) {
        let Some(partial) = &mut self.partial else { return };
        let missing = partial.payload_bytes - partial.payload.len();
        let taken = missing.min(piece.len());
        let room = partial.payload.capacity() - partial.payload.len();
        if room < taken {
            // Doubling keeps copying linear; the last step is exact.
            let wanted = taken.max(partial.payload.len()).min(missing);
            partial.payload.reserve(wanted);
        }
        partial.payload.extend_from_slice(&piece.split_to(taken));
        if taken == missing
            && let Some(Partial { kind, payload, .. }) = self.partial.take()
        {
            frames.push(RawFrame { kind, payload: payload.freeze() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use macula_proto::limits;
    use macula_proto::wire::frame::encode_header;
    use proptest::prelude::*;

    fn encode(frames: &[(u8, Vec<u8>)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (kind, payload) in frames {
            bytes.extend(encode_header(*kind, payload.len()));
            bytes.extend(payload);
        }
        bytes
    }

    /// Cuts `bytes` into pieces whose lengths are taken in turn from `cuts`.
    fn assemble(bytes: &[u8], cuts: &[usize]) -> Result<(Vec<RawFrame>, Assembler), HeaderError> {
        let mut assembler = Assembler::new(Channel::Lane(1));
        let mut frames = Vec::new();
        let mut rest = Bytes::copy_from_slice(bytes);
        let mut cuts = cuts.iter().cycle();
        while !rest.is_empty() {
            let cut = cuts.next().copied().unwrap_or(1).clamp(1, rest.len());
            assembler.push(rest.split_to(cut), &mut frames)?;
        }
        Ok((frames, assembler))
    }

    proptest! {
        #[test]
        fn any_cut_of_any_frames_yields_the_same_frames(
            sent in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..300)), 0..20),
            cuts in prop::collection::vec(1usize..400, 1..10),
        ) {
            let (got, assembler) = assemble(&encode(&sent), &cuts).unwrap();
            let got: Vec<(u8, Vec<u8>)> =
                got.into_iter().map(|frame| (frame.kind, frame.payload.to_vec())).collect();
            prop_assert_eq!(got, sent);
            prop_assert!(assembler.is_empty());
        }

        #[test]
        fn garbage_never_panics_and_never_takes_more_memory_than_came(
            bytes in prop::collection::vec(any::<u8>(), 0..2000),
            cuts in prop::collection::vec(1usize..100, 1..10),
        ) {
            if let Ok((frames, assembler)) = assemble(&bytes, &cuts) {
                let payload: usize = frames.iter().map(|frame| frame.payload.len()).sum();
                prop_assert!(payload <= bytes.len());
                prop_assert!(assembler.held_bytes() <= FIRST_ALLOCATION_BYTES_MAX);
            }
        }
    }

    #[test]
    fn an_announced_giant_gets_memory_only_as_its_bytes_come() {
        let mut assembler = Assembler::new(Channel::Bulk);
        let mut frames = Vec::new();
        let header = encode_header(1, limits::MESSAGE_BYTES_MAX);
        assembler.push(Bytes::copy_from_slice(&header), &mut frames).unwrap();
        assembler.push(Bytes::from_static(b"x"), &mut frames).unwrap();
        assert!(assembler.held_bytes() <= FIRST_ALLOCATION_BYTES_MAX);
        assembler.push(Bytes::from(vec![0; 100_000]), &mut frames).unwrap();
        assert!(assembler.held_bytes() <= 400_000, "{}", assembler.held_bytes());
        let rest = limits::MESSAGE_BYTES_MAX - 100_001;
        assembler.push(Bytes::from(vec![0; rest]), &mut frames).unwrap();
        assert_eq!(frames.len(), 1);
        assert_eq!(frames[0].payload.len(), limits::MESSAGE_BYTES_MAX);
        assert!(assembler.is_empty());
    }

    #[test]
    fn a_frame_over_the_limit_is_refused_at_its_header() {
        let mut assembler = Assembler::new(Channel::Control);
        let header = encode_header(1, limits::CONTROL_FRAME_BYTES_MAX + 1);
        let pushed = assembler.push(Bytes::copy_from_slice(&header), &mut Vec::new());
        assert!(matches!(pushed, Err(HeaderError::TooLong { .. })));
    }

    #[test]
    fn a_frame_within_one_piece_is_not_copied() {
        let piece = Bytes::from(encode(&[(1, vec![7; 100]), (2, vec![8; 50])]));
        let mut frames = Vec::new();
        Assembler::new(Channel::Lane(1)).push(piece.clone(), &mut frames).unwrap();
        assert_eq!(frames[0].payload.as_ptr(), piece[HEADER_BYTES..].as_ptr());
        assert_eq!(frames[1].payload.len(), 50);
    }
}
