//! What is held back, and what that must not hold up.

use std::time::Duration;

use bytes::Bytes;
use macula_proto::limits;
use macula_proto::wire::frame::Channel;
use macula_transport::{DownReason, LinkEventKind, READ_AHEAD_BYTES_MAX};
use tokio::time::timeout;

use crate::support::*;

/// One read may go beyond the bound.
const SLACK_BYTES: usize = 512 * 1024;

#[tokio::test]
async fn lanes_are_not_read_before_they_are_opened() {
    let mut pair = Pair::new().await;
    pair.dialler.link.open_lanes();
    pair.dialler.link.send(Channel::Lane(1), frame(1, "early"));
    pair.dialler.link.send(Channel::Control, frame(1, "hello"));
    // The lane was sent first, yet only control comes.
    match pair.acceptor.wait(frames_only).await {
        (Channel::Control, _) => {}
        (other, _) => panic!("{other:?} was read"),
    }
    pair.acceptor.link.send(Channel::Control, frame(1, "echo"));
    pair.dialler.frames(Channel::Control, 1).await;
    assert!(pair.acceptor.events.try_recv().map_or(true, |event| {
        !matches!(event.kind, LinkEventKind::Frames { channel: Channel::Lane(_), .. })
    }));
    pair.acceptor.link.open_lanes();
    assert_eq!(pair.acceptor.frames(Channel::Lane(1), 1).await[0].payload, "early");
}

fn frames_only(kind: LinkEventKind) -> Result<(Channel, usize), LinkEventKind> {
    match kind {
        LinkEventKind::Frames { channel, frames, .. } => Ok((channel, frames.len())),
        other => Err(other),
    }
}

/// Sends on `channel` as the core does: never more than the window without a report.
async fn fill(side: &mut Side, channel: Channel, frame_bytes: usize, quiet: Duration) -> usize {
    let (mut total, mut outstanding) = (0, 0);
    let body = Bytes::from(vec![0; frame_bytes]);
    loop {
        while outstanding < limits::TRANSPORT_WINDOW_BYTES {
            let frame = frame(1, body.clone());
            outstanding += frame.wire_bytes();
            total += frame.wire_bytes();
            side.link.send(channel, frame);
        }
        match timeout(quiet, side.events.recv()).await {
            Ok(Some(event)) => match event.kind {
                LinkEventKind::Sent { channel: sent, bytes } if sent == channel => {
                    outstanding -= bytes;
                }
                LinkEventKind::Down { reason } => panic!("{reason}"),
                _ => {}
            },
            Ok(None) => panic!("the link is gone"),
            Err(_quiet) => return total - outstanding,
        }
    }
}

#[tokio::test]
async fn a_lane_that_is_not_read_blocks_no_other() {
    let mut pair = Pair::open().await;
    pair.acceptor.link.pause(Channel::Lane(1));
    let sent = fill(&mut pair.dialler, Channel::Lane(1), 30_000, Duration::from_millis(500)).await;
    assert!(sent < 8 << 20, "a paused lane takes {sent} bytes");
    let others = [Channel::Control, Channel::CALLS, Channel::Lane(2), Channel::Bulk];
    for channel in others {
        pair.dialler.link.send(channel, frame(1, "through"));
        assert_eq!(pair.acceptor.frames(channel, 1).await[0].payload, "through");
    }
}

#[tokio::test]
async fn a_paused_lane_delivers_nothing_until_it_is_resumed() {
    let mut pair = Pair::open().await;
    pair.dialler.link.send(Channel::Lane(1), frame(1, "one"));
    pair.acceptor.frames(Channel::Lane(1), 1).await;
    pair.acceptor.link.pause(Channel::Lane(1));
    pair.dialler.link.send(Channel::Lane(1), frame(1, "two"));
    // Lane 2 is sent later and comes first.
    pair.dialler.link.send(Channel::Lane(2), frame(1, "three"));
    assert_eq!(pair.acceptor.wait(frames_only).await, (Channel::Lane(2), 1));
    pair.acceptor.link.resume(Channel::Lane(1));
    assert_eq!(pair.acceptor.frames(Channel::Lane(1), 1).await[0].payload, "two");
}

#[tokio::test]
async fn a_consumer_that_keeps_its_permits_holds_a_bounded_number_of_bytes() {
    let mut pair = Pair::open().await;
    let channel = Channel::Lane(1);
    let (mut held_bytes, mut permits) = (0, Vec::new());
    let Pair { dialler, acceptor, .. } = &mut pair;
    let taking = async {
        loop {
            let (_, permit) = acceptor.batch(channel).await;
            held_bytes += permit.bytes();
            permits.push(permit);
        }
    };
    let sent = tokio::select! {
        sent = fill(dialler, channel, 1000, Duration::from_millis(500)) => sent,
        () = taking => unreachable!(),
    };
    let bound = READ_AHEAD_BYTES_MAX..READ_AHEAD_BYTES_MAX + SLACK_BYTES;
    assert!(bound.contains(&held_bytes), "{held_bytes} bytes are held");
    assert!(sent > held_bytes);
    // Giving them back lets everything else come.
    permits.clear();
    while held_bytes < sent {
        held_bytes += acceptor.batch(channel).await.1.bytes();
    }
}

#[tokio::test]
async fn a_queue_beyond_its_limit_closes_the_link() {
    let mut pair = Pair::open().await;
    pair.acceptor.link.pause(Channel::Lane(1));
    for _ in 0..300 {
        pair.dialler.link.send(Channel::Lane(1), frame(1, vec![0; 60_000]));
    }
    assert!(matches!(pair.dialler.down().await, DownReason::Local { code: 6, .. }));
    assert!(matches!(pair.acceptor.down().await, DownReason::Peer { code: 6, .. }));
}

#[tokio::test]
async fn a_lost_link_is_reported_although_the_consumer_keeps_its_permits() {
    let mut pair = Pair::open().await;
    let channel = Channel::Lane(1);
    for _ in 0..14 {
        pair.dialler.link.send(channel, frame(1, vec![0; 60_000]));
    }
    let (_, permit) = pair.acceptor.batch(channel).await;
    pair.dialler.link.close(0, "");
    assert!(matches!(pair.acceptor.down().await, DownReason::Peer { .. }));
    drop(permit);
}
