//! Frames on every kind of channel.

use bytes::Bytes;
use macula_proto::id::StreamId;
use macula_proto::limits;
use macula_proto::wire::frame::{Channel, RawFrame};
use macula_transport::LinkEventKind;

use crate::support::*;

fn numbered(count: u32, bytes: usize) -> Vec<Bytes> {
    let payload = |number: u32| {
        let mut payload = number.to_be_bytes().to_vec();
        payload.resize(bytes.max(4), number as u8);
        Bytes::from(payload)
    };
    (0..count).map(payload).collect()
}

#[track_caller]
fn assert_carried(frames: &[RawFrame], payloads: &[Bytes]) {
    assert_eq!(frames.len(), payloads.len());
    for (frame, payload) in frames.iter().zip(payloads) {
        assert_eq!((frame.kind, &frame.payload), (5, payload));
    }
}

#[tokio::test]
async fn frames_arrive_in_order_on_every_ordered_channel_in_both_directions() {
    let mut pair = Pair::open().await;
    let channels =
        [Channel::Control, Channel::CALLS, Channel::Lane(4), Channel::Stream(StreamId(2))];
    for channel in channels {
        for bytes in [4, 100, 3000, 60_000] {
            let payloads = numbered(500_000 / (bytes as u32 + 1000), bytes);
            for payload in &payloads {
                pair.dialler.link.send(channel, frame(5, payload.clone()));
            }
            let arrives = match channel {
                Channel::Stream(_) => Channel::Stream(StreamId(1)),
                other => other,
            };
            assert_carried(&pair.acceptor.frames(arrives, payloads.len()).await, &payloads);
            for payload in &payloads {
                pair.acceptor.link.send(arrives, frame(5, payload.clone()));
            }
            assert_carried(&pair.dialler.frames(channel, payloads.len()).await, &payloads);
        }
    }
}

#[tokio::test]
async fn bulk_frames_of_every_size_arrive_whole() {
    let mut pair = Pair::open().await;
    let sizes = [4, 70_000, 1 << 20, limits::STREAM_FRAME_BYTES_MAX];
    for size in sizes {
        let payload = numbered(1, size).remove(0);
        pair.acceptor.link.send(Channel::Bulk, frame(5, payload.clone()));
        assert_carried(&pair.dialler.frames(Channel::Bulk, 1).await, &[payload]);
    }
    // Many at once, beyond what may be in flight, and lanes still open beside them.
    let payloads = numbered(40, 100_000);
    for payload in &payloads {
        pair.acceptor.link.send(Channel::Bulk, frame(5, payload.clone()));
    }
    pair.acceptor.link.send(Channel::Lane(3), frame(5, "beside"));
    assert_eq!(pair.dialler.frames(Channel::Lane(3), 1).await[0].payload, "beside");
    let mut frames = pair.dialler.frames(Channel::Bulk, payloads.len()).await;
    frames.sort_by(|one, other| one.payload.cmp(&other.payload));
    assert_carried(&frames, &payloads);
}

#[tokio::test]
async fn what_was_sent_is_reported_to_the_byte() {
    let mut pair = Pair::open().await;
    let mut acceptor = pair.acceptor;
    // The peer takes everything as it comes.
    let taking = tokio::spawn(async move { while acceptor.events.recv().await.is_some() {} });
    for channel in [Channel::Control, Channel::Lane(1), Channel::Bulk, Channel::Stream(StreamId(0))]
    {
        let mut outstanding = 0;
        for payload in numbered(100, 500) {
            let frame = frame(5, payload);
            outstanding += frame.wire_bytes();
            pair.dialler.link.send(channel, frame);
        }
        while outstanding > 0 {
            outstanding -= pair
                .dialler
                .wait(|kind| match kind {
                    LinkEventKind::Sent { channel: sent, bytes } if sent == channel => Ok(bytes),
                    other => Err(other),
                })
                .await;
        }
    }
    taking.abort();
}

#[tokio::test]
async fn a_finished_stream_delivers_everything_and_closes_on_both_sides() {
    let mut pair = Pair::open().await;
    for round in 0..20u64 {
        let (ours, theirs) = (StreamId(2 * round), StreamId(2 * round + 1));
        let payloads = numbered(200, 1000);
        pair.dialler.link.send(Channel::Stream(ours), frame(5, "open"));
        pair.acceptor.frames(Channel::Stream(theirs), 1).await;
        for payload in &payloads {
            pair.acceptor.link.send(Channel::Stream(theirs), frame(5, payload.clone()));
        }
        pair.acceptor.link.finish_stream(theirs);
        assert_carried(&pair.dialler.frames(Channel::Stream(ours), 200).await, &payloads);
        pair.dialler.stream_closed(ours).await;
        pair.acceptor.stream_closed(theirs).await;
        // The id is dead.
        pair.dialler.link.send(Channel::Stream(ours), frame(5, "late"));
    }
    // More streams than may be open at once have come and gone; another one works.
    pair.dialler.link.send(Channel::Stream(StreamId(100)), frame(5, "last"));
    assert_eq!(pair.acceptor.frames(Channel::Stream(StreamId(41)), 1).await[0].payload, "last");
}

#[tokio::test]
async fn a_reset_stream_closes_on_both_sides_at_once() {
    let mut pair = Pair::open().await;
    let (ours, theirs) = (StreamId(0), StreamId(1));
    pair.acceptor.link.pause(Channel::Lane(1));
    pair.dialler.link.send(Channel::Stream(ours), frame(5, "open"));
    pair.acceptor.frames(Channel::Stream(theirs), 1).await;
    // More than the peer takes while it does not read: the writer is blocked in the stream.
    pair.acceptor.link.pause(Channel::Stream(theirs));
    for payload in numbered(15, 60_000) {
        pair.dialler.link.send(Channel::Stream(ours), frame(5, payload));
    }
    pair.dialler.link.reset_stream(ours);
    pair.dialler.stream_closed(ours).await;
    pair.acceptor.link.resume(Channel::Stream(theirs));
    pair.acceptor.stream_closed(theirs).await;
}

#[tokio::test]
async fn a_stream_beyond_the_limit_is_refused_and_the_link_goes_on() {
    let mut pair = Pair::open().await;
    let max = limits::STREAMS_PER_LINK_MAX as u64;
    for stream in 0..=max {
        pair.dialler.link.send(Channel::Stream(StreamId(2 * stream)), frame(5, "x"));
    }
    pair.dialler.stream_closed(StreamId(2 * max)).await;
    for stream in 0..max {
        pair.dialler.link.reset_stream(StreamId(2 * stream));
    }
    for stream in 0..max {
        pair.dialler.stream_closed(StreamId(2 * stream)).await;
    }
    pair.dialler.link.send(Channel::Lane(1), frame(5, "on"));
    assert_eq!(pair.acceptor.frames(Channel::Lane(1), 1).await[0].payload, "on");
}
