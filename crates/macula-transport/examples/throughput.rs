//! Frames per second over one link on loopback, both ends in one process.
//!
//! `cargo run --release -p macula-transport --example throughput -- <frame bytes> <MiB> <MTU> <peers>`
//! where `peers` makes both endpoints ready for links to peers

#![allow(clippy::print_stdout, reason = "it reports to a person")]

use std::error::Error;
use std::net::Ipv4Addr;
use std::time::Instant;

use bytes::Bytes;
use macula_proto::id::LinkId;
use macula_proto::limits;
use macula_proto::wire::frame::{Channel, Frame, encode_header};
use macula_transport::{Endpoint, EndpointConfig, LinkEvent, LinkEventKind, SecretKey, Target};
use tokio::sync::mpsc;

const LANE: Channel = Channel::Lane(1);

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let frame_bytes: usize = args.next().unwrap_or_else(|| "1024".into()).parse()?;
    let total: usize = args.next().unwrap_or_else(|| "512".into()).parse::<usize>()? << 20;
    let mut config = EndpointConfig::new(SecretKey::generate()?);
    if let Some(mtu) = args.next() {
        config.mtu_max = mtu.parse()?;
    }
    config.peers = args.next().as_deref() == Some("peers");
    config.listen = Some((Ipv4Addr::LOCALHOST, 0).into());
    config.accept = true;
    let server = Endpoint::bind(&config)?;
    config.key = SecretKey::generate()?;
    let client = Endpoint::bind(&config)?;
    let target = Target { expect: None, addrs: vec![server.local_addr()] };
    let (dialled, accepted) = tokio::join!(client.dial(&target), server.accept());
    let (sender, mut sent) = mpsc::channel(64);
    let link = dialled?.start(LinkId(1), sender);
    let (sender, received) = mpsc::channel(64);
    let other = accepted.ok_or("nobody came")?.start(LinkId(2), sender);
    other.open_lanes();

    let head = Bytes::copy_from_slice(&encode_header(1, frame_bytes));
    let frame = Frame { head, body: Bytes::from(vec![7; frame_bytes]) };
    let count = total / frame.wire_bytes();
    let started = Instant::now();
    let receiving = tokio::spawn(receive(received, count));
    let (mut left, mut outstanding) = (count, 0);
    while left > 0 {
        while left > 0 && outstanding < limits::TRANSPORT_WINDOW_BYTES {
            link.send(LANE, frame.clone());
            outstanding += frame.wire_bytes();
            left -= 1;
        }
        match sent.recv().await.ok_or("the link is gone")?.kind {
            LinkEventKind::Sent { bytes, .. } => outstanding -= bytes,
            LinkEventKind::Down { reason } => return Err(reason.into()),
            _ => {}
        }
    }
    let batches = receiving.await??;
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{frame_bytes} B: {:.0} frames/s, {:.0} MiB/s, {:.1} frames per event",
        count as f64 / seconds,
        total as f64 / seconds / f64::from(1 << 20),
        count as f64 / batches as f64,
    );
    Ok(())
}

async fn receive(
    mut events: mpsc::Receiver<LinkEvent>,
    mut count: usize,
) -> Result<usize, &'static str> {
    let mut batches = 0;
    while count > 0 {
        match events.recv().await.ok_or("the link is gone")?.kind {
            LinkEventKind::Frames { frames, .. } => {
                count -= frames.len();
                batches += 1;
            }
            LinkEventKind::Down { .. } => return Err("the link went down"),
            _ => {}
        }
    }
    Ok(batches)
}
