//! Cutting a byte stream into frames.

use bytes::Bytes;
use macula_proto::wire::frame::{HEADER_BYTES, HeaderError, RawFrame, decode_header};
use macula_proto::wire::{Channel, decode};

use crate::assemble::Assembler;
use crate::script::{self, Script};

/// The input is a channel, four distances between cuts, and a stream.
///
/// However the stream is cut, the same frames come out of it, and then the same error; these are
/// what the specification says (docs/protocol §4.1). Nothing holds much more memory than came.
/// Reading what the frames mean does not panic.
pub fn frame(data: &[u8]) {
    let mut script = Script::new(data);
    let channel = script::channel(script.byte());
    let cuts = [(); 4].map(|()| usize::from(script.byte()) + 1);
    let stream = script.rest();

    let expected = naive(stream, channel);
    let whole = assemble(stream, channel, [stream.len().max(1)].into_iter());
    assert_eq!(whole, expected, "in one piece");
    let pieces = assemble(stream, channel, cuts.into_iter().cycle());
    assert_eq!(pieces, expected, "cut every {cuts:?}");

    for frame in whole.0 {
        drop(decode(frame, channel));
    }
}

type Cut = (Vec<RawFrame>, Result<(), HeaderError>);

fn assemble(stream: &[u8], channel: Channel, cuts: impl Iterator<Item = usize>) -> Cut {
    let mut assembler = Assembler::new(channel);
    let mut frames = Vec::new();
    let mut rest = Bytes::copy_from_slice(stream);
    for cut in cuts {
        if rest.is_empty() {
            break;
        }
        let piece = rest.split_to(cut.min(rest.len()));
        if let Err(error) = assembler.push(piece, &mut frames) {
            return (frames, Err(error));
        }
        let came = stream.len() - rest.len();
        assert!(assembler.held_bytes() <= HELD_BYTES_MIN.max(2 * came), "{came} bytes came");
    }
    let complete: usize = frames.iter().map(|frame| HEADER_BYTES + frame.payload.len()).sum();
    assert_eq!(assembler.is_empty(), complete == stream.len(), "between two frames");
    (frames, Ok(()))
}

/// What an announced frame may cost before its bytes come.
const HELD_BYTES_MIN: usize = 64 * 1024;

fn naive(mut stream: &[u8], channel: Channel) -> Cut {
    let mut frames = Vec::new();
    while let Some((header, rest)) = stream.split_first_chunk::<HEADER_BYTES>() {
        let (kind, bytes) = match decode_header(*header, channel) {
            Ok(header) => header,
            Err(error) => return (frames, Err(error)),
        };
        let announced = [0, header[1], header[2], header[3]];
        assert_eq!((kind, bytes), (header[0], u32::from_be_bytes(announced) as usize));
        assert!(bytes <= channel.frame_bytes_max());
        let Some((payload, rest)) = rest.split_at_checked(bytes) else { break };
        frames.push(RawFrame { kind, payload: Bytes::copy_from_slice(payload) });
        stream = rest;
    }
    (frames, Ok(()))
}
