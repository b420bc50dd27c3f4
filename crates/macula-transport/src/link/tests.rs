//! Peers that break the protocol: they speak QUIC by hand.

use std::net::Ipv4Addr;
use std::time::Duration;

use bytes::Bytes;
use macula_proto::id::LinkId;
use macula_proto::wire::frame::{Channel, Class, encode_header};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{Connected, Link, TYPE_BULK, TYPE_CONTROL, TYPE_LANE, TYPE_STREAM};
use crate::dial::Target;
use crate::endpoint::{Endpoint, EndpointConfig};
use crate::event::{DownReason, LinkEvent, LinkEventKind};
use crate::key::SecretKey;
use crate::quic::{Connection, SendStream};

const PATIENCE: Duration = Duration::from_secs(20);

/// A good endpoint with a good link and one to a peer under the test's control.
struct Stage {
    bad: Connection,
    events: mpsc::Receiver<LinkEvent>,
    good: [(Link, mpsc::Receiver<LinkEvent>); 2],
    _link: Link,
    _endpoints: [Endpoint; 2],
}

fn endpoint(seed: u8) -> Endpoint {
    let mut config = EndpointConfig::new(SecretKey::from_seed([seed; 32]));
    config.listen = Some((Ipv4Addr::LOCALHOST, 0).into());
    config.accept = true;
    Endpoint::bind(&config).unwrap()
}

async fn connect(one: &Endpoint, two: &Endpoint) -> (Connected, Connected) {
    let target = Target { expect: None, addrs: vec![two.local_addr()] };
    let (dialled, accepted) = tokio::join!(one.dial(&target), two.accept());
    (dialled.unwrap(), accepted.unwrap())
}

fn start(connected: Connected) -> (Link, mpsc::Receiver<LinkEvent>) {
    let (sender, receiver) = mpsc::channel(64);
    let link = connected.start(LinkId(1), sender);
    link.open_lanes();
    (link, receiver)
}

impl Stage {
    async fn set() -> Self {
        let (one, two) = (endpoint(1), endpoint(2));
        let (dialled, accepted) = connect(&one, &two).await;
        let good = [start(dialled), start(accepted)];
        let (dialled, accepted) = connect(&one, &two).await;
        let (link, events) = start(accepted);
        Self { bad: dialled.connection, events, good, _link: link, _endpoints: [one, two] }
    }

    /// Opens the control stream as a good peer does.
    async fn control(&self) -> SendStream {
        let (mut send, _recv) = self.bad.open_bi(Class::Control).await.unwrap();
        write(&mut send, &[TYPE_CONTROL]).await;
        // Dropping the receiving half would be an error of its own.
        std::mem::forget(_recv);
        send
    }

    /// Opens a unidirectional stream that begins with `bytes`.
    async fn uni(&self, bytes: &[u8]) -> SendStream {
        let mut send = self.bad.open_uni(Class::Publish).await.unwrap();
        write(&mut send, bytes).await;
        send
    }

    /// Expects that the link is closed for a reason with `words` in it, that the peer is told, and
    /// that the good link goes on.
    async fn expect_refused(mut self, words: &str) {
        let down = timeout(PATIENCE, async {
            loop {
                if let LinkEventKind::Down { reason } = self.events.recv().await.unwrap().kind {
                    break reason;
                }
            }
        });
        match down.await.unwrap() {
            DownReason::Protocol { reason } if reason.contains(words) => {}
            other => panic!("{other:?}"),
        }
        let told = timeout(PATIENCE, self.bad.closed()).await.unwrap();
        match told {
            Some(DownReason::Peer { code: 1, reason }) if reason.contains(words) => {}
            other => panic!("the peer was told {other:?}"),
        }
        let [(link, _), (_, events)] = &mut self.good;
        let head = Bytes::copy_from_slice(&encode_header(1, 0));
        link.send(Channel::Lane(1), macula_proto::wire::frame::Frame { head, body: Bytes::new() });
        timeout(PATIENCE, async {
            while !matches!(events.recv().await.unwrap().kind, LinkEventKind::Frames { .. }) {}
        })
        .await
        .unwrap();
    }
}

async fn write(send: &mut SendStream, bytes: &[u8]) {
    send.write_all(&mut [Bytes::copy_from_slice(bytes)]).await.unwrap();
}

#[tokio::test]
async fn a_stream_of_unknown_type_is_refused() {
    let stage = Stage::set().await;
    let _control = stage.control().await;
    let _send = stage.uni(&[0x99]).await;
    stage.expect_refused("unknown type 0x99").await;
}

#[tokio::test]
async fn a_lane_beyond_the_last_is_refused() {
    let stage = Stage::set().await;
    let _control = stage.control().await;
    let _send = stage.uni(&[TYPE_LANE + macula_proto::limits::LANE_COUNT]).await;
    stage.expect_refused("unknown type 0x15").await;
}

#[tokio::test]
async fn a_first_stream_that_is_not_control_is_refused() {
    let stage = Stage::set().await;
    let (mut send, _recv) = stage.bad.open_bi(Class::Control).await.unwrap();
    write(&mut send, &[TYPE_STREAM]).await;
    stage.expect_refused("not control").await;
}

#[tokio::test]
async fn a_second_control_stream_is_refused() {
    let stage = Stage::set().await;
    let _first = stage.control().await;
    let _second = stage.control().await;
    stage.expect_refused("second control").await;
}

#[tokio::test]
async fn a_second_stream_for_a_lane_is_refused() {
    let stage = Stage::set().await;
    let _control = stage.control().await;
    let _first = stage.uni(&[TYPE_LANE + 1]).await;
    let _second = stage.uni(&[TYPE_LANE + 1]).await;
    stage.expect_refused("lane 1 was opened twice").await;
}

#[tokio::test]
async fn a_frame_over_the_limit_is_refused() {
    let stage = Stage::set().await;
    let mut control = stage.control().await;
    write(&mut control, &[1, 0xff, 0xff, 0xff]).await;
    stage.expect_refused("over the channel's limit").await;
}

#[tokio::test]
async fn a_bulk_stream_with_two_frames_is_refused() {
    let stage = Stage::set().await;
    let _control = stage.control().await;
    let _send = stage.uni(&[TYPE_BULK, 1, 0, 0, 0, 1, 0, 0, 0]).await;
    stage.expect_refused("more than one frame").await;
}

#[tokio::test]
async fn a_bulk_stream_that_ends_early_is_refused() {
    let stage = Stage::set().await;
    let _control = stage.control().await;
    let mut send = stage.uni(&[TYPE_BULK, 1, 0, 0, 9, 1]).await;
    send.finish();
    stage.expect_refused("not one frame").await;
}

#[tokio::test]
async fn a_lane_that_is_ended_is_refused() {
    let stage = Stage::set().await;
    let _control = stage.control().await;
    let mut send = stage.uni(&[TYPE_LANE, 1, 0, 0, 0]).await;
    send.finish();
    stage.expect_refused("lane 0 was ended").await;
}

#[tokio::test]
async fn a_peer_that_says_goodbye_must_go() {
    let stage = Stage::set().await;
    let mut control = stage.control().await;
    control.finish();
    stage.expect_refused("the link was not closed").await;
}
