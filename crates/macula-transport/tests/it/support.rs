//! Two endpoints on loopback, and patience.

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use macula_proto::id::{LinkId, StreamId};
use macula_proto::wire::frame::{Channel, Frame, RawFrame, encode_header};
use macula_transport::{
    Connected, DownReason, Endpoint, EndpointConfig, Link, LinkEvent, LinkEventKind, ReadPermit,
    SecretKey, Target,
};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Nothing on loopback takes longer, unless it never comes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    match timeout(PATIENCE, work).await {
        Ok(done) => done,
        Err(_elapsed) => panic!("{what} takes too long"),
    }
}

pub(crate) fn config(seed: u8) -> EndpointConfig {
    let mut config = EndpointConfig::new(SecretKey::from_seed([seed; 32]));
    config.listen = Some((Ipv4Addr::LOCALHOST, 0).into());
    config.accept = true;
    config
}

pub(crate) fn endpoint(seed: u8) -> Endpoint {
    Endpoint::bind(&config(seed)).unwrap()
}

pub(crate) fn target(endpoint: &Endpoint, seed: u8) -> Target {
    let expect = Some(SecretKey::from_seed([seed; 32]).id());
    Target { expect, addrs: vec![endpoint.local_addr()] }
}

pub(crate) fn frame(kind: u8, payload: impl Into<Bytes>) -> Frame {
    let body = payload.into();
    Frame { head: Bytes::copy_from_slice(&encode_header(kind, body.len())), body }
}

/// One side of a link with its events.
pub(crate) struct Side {
    pub(crate) link: Link,
    pub(crate) events: mpsc::Receiver<LinkEvent>,
    /// Events that were passed over while waiting for others.
    passed: Vec<LinkEventKind>,
}

impl Side {
    pub(crate) fn start(connected: Connected) -> Self {
        let (sender, events) = mpsc::channel(1024);
        Self { link: connected.start(LinkId(7), sender), events, passed: Vec::new() }
    }

    /// Takes what has happened, so that a link which reports much does not wait for this side.
    pub(crate) fn absorb(&mut self) {
        while let Ok(event) = self.events.try_recv() {
            self.passed.push(event.kind);
        }
    }

    pub(crate) async fn next(&mut self) -> LinkEventKind {
        let event = soon("an event", self.events.recv()).await.expect("the link still reports");
        assert_eq!(event.link, LinkId(7));
        event.kind
    }

    /// Waits for the first event that `pick` takes.
    pub(crate) async fn wait<T>(
        &mut self,
        mut pick: impl FnMut(LinkEventKind) -> Result<T, LinkEventKind>,
    ) -> T {
        let mut passed = std::mem::take(&mut self.passed).into_iter();
        while let Some(kind) = passed.next() {
            match pick(kind) {
                Ok(picked) => {
                    self.passed.extend(passed);
                    return picked;
                }
                Err(kind) => self.passed.push(kind),
            }
        }
        loop {
            match pick(self.next().await) {
                Ok(picked) => return picked,
                Err(kind @ LinkEventKind::Down { .. }) => panic!("unexpected end: {kind:?}"),
                Err(kind) => self.passed.push(kind),
            }
        }
    }

    /// The next batch of frames on `channel`, with its permit.
    pub(crate) async fn batch(&mut self, wanted: Channel) -> (Vec<RawFrame>, ReadPermit) {
        self.wait(|kind| match kind {
            LinkEventKind::Frames { channel, frames, permit } if channel == wanted => {
                Ok((frames, permit))
            }
            other => Err(other),
        })
        .await
    }

    /// The next `count` frames on `channel`.
    pub(crate) async fn frames(&mut self, channel: Channel, count: usize) -> Vec<RawFrame> {
        let mut all = Vec::new();
        while all.len() < count {
            all.extend(self.batch(channel).await.0);
        }
        assert_eq!(all.len(), count);
        all
    }

    pub(crate) async fn stream_closed(&mut self, wanted: StreamId) {
        self.wait(|kind| match kind {
            LinkEventKind::StreamClosed { stream } if stream == wanted => Ok(()),
            other => Err(other),
        })
        .await;
    }

    /// Waits for the end; anything else on the way is dropped. Nothing may follow.
    pub(crate) async fn down(&mut self) -> DownReason {
        loop {
            if let LinkEventKind::Down { reason } = self.next().await {
                tokio::task::yield_now().await;
                assert!(self.events.try_recv().is_err(), "something follows the end");
                return reason;
            }
        }
    }
}

/// A dialled link and its other end.
pub(crate) struct Pair {
    pub(crate) dialler: Side,
    pub(crate) acceptor: Side,
    pub(crate) endpoints: [Endpoint; 2],
}

impl Pair {
    pub(crate) async fn new() -> Self {
        Self::of(endpoint(1), endpoint(2)).await
    }

    pub(crate) async fn of(one: Endpoint, two: Endpoint) -> Self {
        let (dialled, accepted) = connect(&one, &two, 2).await;
        let (dialler, acceptor) = (Side::start(dialled), Side::start(accepted));
        Self { dialler, acceptor, endpoints: [one, two] }
    }

    pub(crate) async fn open() -> Self {
        let pair = Self::new().await;
        pair.dialler.link.open_lanes();
        pair.acceptor.link.open_lanes();
        pair
    }
}

pub(crate) async fn connect(one: &Endpoint, two: &Endpoint, seed: u8) -> (Connected, Connected) {
    let to = target(two, seed);
    let (dialled, accepted) =
        soon("a dial", async { tokio::join!(one.dial(&to), two.accept()) }).await;
    (dialled.unwrap(), accepted.unwrap())
}

/// A local UDP address where nobody answers.
pub(crate) fn silent_socket() -> (std::net::UdpSocket, SocketAddr) {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let addr = socket.local_addr().unwrap();
    (socket, addr)
}
