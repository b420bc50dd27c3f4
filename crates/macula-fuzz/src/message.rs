//! From bytes to messages and back.

use bytes::{Bytes, BytesMut};
use macula_proto::wire::frame::{Frame, HEADER_BYTES, RawFrame, decode_header};
use macula_proto::wire::message::Publish;
use macula_proto::wire::{
    BatchBuilder, BatchIter, Channel, Message, allowed, batch, decode, encode,
};

use crate::script::{self, Script};

/// The input is a channel, a kind, and the payload of a frame.
///
/// What decodes is encoded within the channel's limits, and that decodes to the same message, whose
/// bytes are the same again. Batches hold as many messages as they say, or are known not to.
pub fn message(data: &[u8]) {
    let mut script = Script::new(data);
    let channel = script::channel(script.byte());
    let kind = script.byte();
    let payload = Bytes::copy_from_slice(script.rest());
    if payload.len() > channel.frame_bytes_max() {
        return;
    }
    let Ok(message) = decode(RawFrame { kind, payload }, channel) else { return };
    assert!(allowed(kind, channel), "a message on the wrong channel");
    assert_eq!(message.kind(), kind);

    let frame = encode(&message);
    let again = decode(raw(&frame, channel), channel).expect("our own frames are good");
    assert_eq!(without_cut(&again), without_cut(&message));
    assert_eq!(encode(&again), frame, "the normal form");

    match &message {
        Message::Publish(publish)
        | Message::BulkPublish { publish, .. }
        | Message::Retained { publish, .. } => batch_of(publish),
        _ => {}
    }
}

/// The frame as it arrives; checks the header on the way.
fn raw(frame: &Frame, channel: Channel) -> RawFrame {
    let mut all = BytesMut::from(frame.head.as_ref());
    all.extend_from_slice(&frame.body);
    assert_eq!(all.len(), frame.wire_bytes());
    let all = all.freeze();
    let header = all.first_chunk::<HEADER_BYTES>().expect("a header");
    let (kind, bytes) = decode_header(*header, channel).expect("within the channel's limit");
    assert_eq!((kind, bytes), (frame.kind(), all.len() - HEADER_BYTES));
    RawFrame { kind, payload: all.slice(HEADER_BYTES..) }
}

/// Reasons in `Realms` share the frame, so that long ones come shorter out of the encoder.
fn without_cut(message: &Message) -> Message {
    let mut message = message.clone();
    if let Message::Realms(answers) = &mut message {
        for (_, reason) in answers.iter_mut().filter_map(|answer| answer.refusal.as_mut()) {
            reason.clear();
        }
    }
    message
}

fn batch_of(publish: &Publish) {
    let Publish { count, body, .. } = publish;
    let payloads: Vec<Bytes> = BatchIter::new(*count, body.clone()).collect();
    assert!(payloads.len() <= *count as usize);
    let bytes: usize = payloads.iter().map(Bytes::len).sum();
    assert!(bytes <= body.len(), "payloads lie within the body");

    if batch::validate(*count, body).is_err() {
        return;
    }
    assert_eq!(payloads.len(), *count as usize);
    for skipped in [0, 1, count / 2, count - 1, *count, u32::MAX] {
        let left = batch::skip(*count, body, skipped);
        let expected = payloads.get(skipped as usize..).filter(|left| !left.is_empty());
        let left = left.map(|(count, body)| BatchIter::new(count, body).collect::<Vec<_>>());
        assert_eq!(left.as_deref(), expected, "{skipped} of {count} skipped");
    }

    let mut builder = BatchBuilder::new();
    for payload in &payloads {
        builder.push_bytes(payload.clone());
    }
    assert_eq!((builder.count(), builder.payload_bytes()), (*count, bytes));
    let (count, body) = builder.finish();
    assert_eq!(BatchIter::new(count, body.clone()).collect::<Vec<_>>(), payloads);
    assert_eq!(batch::validate(count, &body), Ok(()));
}
