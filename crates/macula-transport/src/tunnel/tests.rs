//! Tunnels on real sockets.

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use macula_proto::id::LinkId;
use macula_proto::wire::frame::{Channel, Frame, encode_header};
use macula_proto::wire::tunnel::{push, request};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::{TunnelConfig, TunnelError, TunnelStats, tls};
use crate::{
    Connected, DialError, Endpoint, EndpointConfig, HandshakeLimits, LinkEvent, LinkEventKind,
    SecretKey, Target,
};

const PATIENCE: Duration = Duration::from_secs(30);

async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    timeout(PATIENCE, work).await.unwrap_or_else(|_| panic!("{what} takes too long"))
}

fn config(seed: u8) -> EndpointConfig {
    let mut config = EndpointConfig::new(SecretKey::from_seed([seed; 32]));
    config.listen = Some((Ipv4Addr::LOCALHOST, 0).into());
    config.tunnels = true;
    config
}

/// A gateway and where it takes tunnels.
fn gateway(change: impl FnOnce(&mut EndpointConfig, &mut TunnelConfig)) -> (Endpoint, SocketAddr) {
    let (mut config, mut tunnels) =
        (config(1), TunnelConfig::new(vec![(Ipv4Addr::LOCALHOST, 0).into()]));
    config.accept = true;
    change(&mut config, &mut tunnels);
    let endpoint = Endpoint::bind(&config).unwrap();
    let addr = endpoint.listen_for_tunnels(&tunnels).unwrap()[0];
    (endpoint, addr)
}

async fn dial(client: &Endpoint, addr: SocketAddr) -> Result<Connected, DialError> {
    let expect = Some(SecretKey::from_seed([1; 32]).id());
    client.dial_tunnel(&Target { expect, addrs: vec![addr] }, "gw.example.com:443").await
}

async fn pair() -> (Endpoint, Endpoint, Connected, Connected) {
    let (server, addr) = gateway(|_, _| {});
    let client = Endpoint::bind(&config(2)).unwrap();
    let (dialled, accepted) =
        soon("a dial", async { tokio::join!(dial(&client, addr), server.accept()) }).await;
    (server, client, dialled.unwrap(), accepted.unwrap())
}

async fn until(what: &str, server: &Endpoint, holds: impl Fn(&TunnelStats) -> bool) -> TunnelStats {
    let looking = async {
        while !holds(&server.tunnels()) {
            sleep(Duration::from_millis(5)).await;
        }
    };
    if timeout(PATIENCE, looking).await.is_err() {
        panic!("not {what}: {:?}", server.tunnels());
    }
    server.tunnels()
}

fn frame(bytes: usize) -> Frame {
    let body = Bytes::from(vec![0x5a; bytes]);
    Frame { head: Bytes::copy_from_slice(&encode_header(0x7f, bytes)), body }
}

/// Counts what comes until it is `wanted` bytes.
async fn take(events: &mut mpsc::Receiver<LinkEvent>, wanted: usize) {
    let mut came = 0;
    while came < wanted {
        match soon("a frame", events.recv()).await.unwrap().kind {
            LinkEventKind::Frames { frames, .. } => {
                came += frames.iter().map(|frame| frame.payload.len()).sum::<usize>();
            }
            LinkEventKind::Down { reason } => panic!("{reason}"),
            _ => {}
        }
    }
    assert_eq!(came, wanted);
}

async fn down(events: &mut mpsc::Receiver<LinkEvent>) -> String {
    loop {
        if let LinkEventKind::Down { reason } = soon("the end", events.recv()).await.unwrap().kind {
            return reason.to_string();
        }
    }
}

/// A stream with TLS to a gateway, and nothing said in it.
async fn raw(addr: SocketAddr) -> tokio_rustls::client::TlsStream<TcpStream> {
    let stream = TcpStream::connect(addr).await.unwrap();
    let name = ServerName::try_from("gw.example.com").unwrap();
    tls::connector().unwrap().connect(name, stream).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_in_a_tunnel_is_a_link() {
    let (server, client, dialled, accepted) = pair().await;
    assert!(dialled.is_tunnelled() && accepted.is_tunnelled());
    assert_eq!(
        (dialled.peer(), accepted.peer()),
        (SecretKey::from_seed([1; 32]).id(), SecretKey::from_seed([2; 32]).id(),)
    );
    // Not the address that QUIC sees: limits and logs are about the real one.
    assert!(accepted.remote().ip().is_loopback() && accepted.remote().is_ipv4());
    let (sender, mut at_client) = mpsc::channel(1024);
    let one = dialled.start(LinkId(1), sender);
    let (sender, mut at_server) = mpsc::channel(1024);
    let two = accepted.start(LinkId(2), sender);
    assert!(one.is_tunnelled() && two.is_tunnelled() && two.remote().ip().is_loopback());
    one.open_lanes();
    two.open_lanes();
    // More than the queue of a tunnel holds: QUIC must find its pace.
    let (bytes, count) = (60_000, 15);
    for _ in 0..count {
        one.send(Channel::Lane(1), frame(bytes));
        two.send(Channel::Lane(1), frame(bytes));
    }
    tokio::join!(take(&mut at_client, bytes * count), take(&mut at_server, bytes * count));
    one.close(0, "enough");
    assert!(down(&mut at_server).await.contains("enough"));
    let stats = until("closed", &server, |stats| stats.open == 0).await;
    assert_eq!((stats.opened, stats.failed, stats.malformed), (1, 0, 0));
    drop(client);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_key_is_found_out_inside() {
    let (server, addr) = gateway(|_, _| {});
    let client = Endpoint::bind(&config(2)).unwrap();
    let expect = Some(SecretKey::from_seed([9; 32]).id());
    let dialled = client.dial_tunnel(&Target { expect, addrs: vec![addr] }, "gw").await;
    assert!(matches!(dialled, Err(DialError::WrongKey { .. })), "{dialled:?}");
    until("given up", &server, |stats| stats.open == 0 && stats.opened == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_loses_the_stream_loses_the_link_at_once() {
    let (server, addr) = gateway(|config, _| config.idle_timeout = Duration::from_secs(600));
    let mut far = config(2);
    far.idle_timeout = Duration::from_secs(600);
    let client = Endpoint::bind(&far).unwrap();
    // Something in between that can be cut.
    let between = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let via = between.local_addr().unwrap();
    let carrying = tokio::spawn(async move {
        let (mut from, _) = between.accept().await.unwrap();
        let mut to = TcpStream::connect(addr).await.unwrap();
        tokio::io::copy_bidirectional(&mut from, &mut to).await.ok();
    });
    let (dialled, accepted) =
        soon("a dial", async { tokio::join!(dial(&client, via), server.accept()) }).await;
    let (sender, mut at_client) = mpsc::channel(1024);
    let _one = dialled.unwrap().start(LinkId(1), sender);
    let (sender, mut at_server) = mpsc::channel(1024);
    let _two = accepted.unwrap().start(LinkId(2), sender);
    carrying.abort();
    assert!(down(&mut at_client).await.contains("tunnel"));
    assert!(down(&mut at_server).await.contains("tunnel"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_is_shown_a_page() {
    let (server, addr) = gateway(|_, _| {});
    for (asked, answer) in [("GET / HTTP/1.1", "HTTP/1.1 200"), ("PUT / HTTP/1.1", "HTTP/1.1 405")]
    {
        let mut stream = raw(addr).await;
        stream.write_all(format!("{asked}\r\nHost: gw\r\n\r\n").as_bytes()).await.unwrap();
        let mut page = String::new();
        soon("a page", stream.read_to_string(&mut page)).await.unwrap();
        assert!(page.starts_with(answer), "{page}");
        assert_eq!(page.contains("Macula gateway"), answer.ends_with("200"));
    }
    until("shown", &server, |stats| stats.pages == 2 && stats.opening == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_frame_ends_a_tunnel() {
    let (server, addr) = gateway(|_, _| {});
    let mut frames = BytesMut::new();
    push(&mut frames, b"no packet of QUIC");
    for (said, number) in [(&[0xff, 0xff, 1][..], 1), (&[0, 0], 2)] {
        let mut stream = raw(addr).await;
        stream.write_all(request("gw").as_bytes()).await.unwrap();
        stream.write_all(&frames).await.unwrap();
        stream.write_all(said).await.unwrap();
        let mut answer = Vec::new();
        soon("the end", stream.read_to_end(&mut answer)).await.ok();
        assert!(answer.starts_with(b"HTTP/1.1 101"));
        until("malformed", &server, |it| it.malformed == number && it.open == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_says_nothing_is_put_out() {
    let (server, addr) = gateway(|config, _| config.handshake_timeout = Duration::from_millis(300));
    let silent = TcpStream::connect(addr).await.unwrap();
    let half = raw(addr).await;
    let mut unused = raw(addr).await;
    unused.write_all(request("gw").as_bytes()).await.unwrap();
    let mut junk = TcpStream::connect(addr).await.unwrap();
    junk.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let stats = until("put out", &server, |stats| {
        (stats.timed_out, stats.unused, stats.failed) == (2, 1, 1)
    });
    let stats = stats.await;
    assert_eq!((stats.open, stats.opening), (0, 0));
    drop((silent, half, unused, junk));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_half_open_streams_is_bounded_and_passes() {
    let (server, addr) = gateway(|config, _| config.handshake_timeout = Duration::from_secs(2));
    let mut flood = Vec::new();
    for _ in 0..200 {
        flood.push(TcpStream::connect(addr).await.unwrap());
    }
    let stats = until("refused", &server, |stats| stats.refused_source > 100).await;
    assert!(stats.opening <= 32, "{stats:?}");
    // By UDP the gateway is as it was.
    let client = Endpoint::bind(&config(2)).unwrap();
    let expect = Some(SecretKey::from_seed([1; 32]).id());
    let target = Target { expect, addrs: vec![server.local_addr()] };
    let (dialled, _accepted) = tokio::join!(client.dial(&target), server.accept());
    assert!(!dialled.unwrap().is_tunnelled());
    drop(flood);
    until("over", &server, |stats| stats.opening == 0).await;
    let (dialled, _accepted) = tokio::join!(dial(&client, addr), server.accept());
    dialled.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_has_only_so_many_tunnels() {
    let (server, addr) = gateway(|_, tunnels| tunnels.per_source_max = 2);
    let mut held = Vec::new();
    for seed in 2..4 {
        let client = Endpoint::bind(&config(seed)).unwrap();
        let (dialled, accepted) = tokio::join!(dial(&client, addr), server.accept());
        held.push((client, dialled.unwrap(), accepted.unwrap()));
    }
    let client = Endpoint::bind(&config(4)).unwrap();
    assert!(dial(&client, addr).await.is_err());
    assert_eq!(server.tunnels().refused_source, 1);
    assert_eq!(server.tunnels().open, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshakes_in_tunnels_are_counted_by_the_real_address() {
    let (server, addr) = gateway(|config, _| {
        config.handshakes =
            HandshakeLimits { per_source_max: 1, per_second_max: 4, ..Default::default() };
        config.handshake_timeout = Duration::from_millis(500);
    });
    let accepting = async { while server.accept().await.is_some() {} };
    let flooding = async {
        let mut dials = tokio::task::JoinSet::new();
        for seed in 10..26 {
            dials.spawn(async move {
                let client = Endpoint::bind(&config(seed)).unwrap();
                dial(&client, addr).await.ok();
            });
        }
        while dials.join_next().await.is_some() {}
    };
    tokio::select! {
        () = accepting => {}
        () = soon("the flood", flooding) => {}
    }
    let stats = server.handshakes();
    assert_eq!(stats.retried, 0, "their address is proved by TCP: {stats:?}");
    assert!(stats.ignored_source > 0, "{stats:?}");
}

#[tokio::test]
async fn tunnels_must_be_asked_for() {
    let mut plain = config(1);
    plain.tunnels = false;
    let endpoint = Endpoint::bind(&plain).unwrap();
    let listen = TunnelConfig::new(vec![(Ipv4Addr::LOCALHOST, 0).into()]);
    assert!(matches!(endpoint.listen_for_tunnels(&listen), Err(TunnelError::Unusable)));
    let (server, addr) = gateway(|_, _| {});
    assert!(matches!(server.listen_for_tunnels(&listen), Err(TunnelError::Unusable)));
    assert!(dial(&endpoint, addr).await.is_err());
    let other = Endpoint::bind(&config(3)).unwrap();
    let taken = other.listen_for_tunnels(&TunnelConfig::new(vec![addr]));
    assert!(matches!(taken, Err(TunnelError::Listen { address, .. }) if address == addr));
    let mut absent = listen;
    absent.certificate = Some(("/nonexistent/cert.pem".into(), "/nonexistent/key.pem".into()));
    let refused = other.listen_for_tunnels(&absent).unwrap_err().to_string();
    assert!(refused.contains("/nonexistent/cert.pem"), "{refused}");
}
