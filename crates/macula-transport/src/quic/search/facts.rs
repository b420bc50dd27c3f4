//! How this endpoint's NAT maps, asked of the gateway's STUN server.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use macula_nat::path::Kind;
use macula_nat::report::{Check, CheckConfig, Patience, Report, Socket, StunServer};
use macula_nat::search::{Behaviour, Facts};
use macula_proto::Time;
use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep_until, timeout};

use super::random;
use crate::quic::Peers;
use crate::sync::lock;

/// What was found out holds so long, unless an address of ours changes.
const HOLDS: Duration = Duration::from_secs(600);
/// Requests are sent at 0, 0.2, 0.6 and 1.4 s, and given up at 1.8 s.
const PATIENCE: Patience = Patience { rto: Duration::from_millis(200), requests: 4, last: 2 };
/// Who knows the STUN servers has so long to tell.
const SERVERS_TIMEOUT: Duration = Duration::from_secs(3);
/// Largest answer that is looked at.
const ANSWER_BYTES_MAX: usize = 1_024;

/// Facts, and when and at which addresses they were found.
#[derive(Debug)]
pub(super) struct Known {
    at: Instant,
    candidates: Vec<SocketAddr>,
    facts: Facts,
}

/// What a peer must know of us for a search; `None`: that is not to be found out.
pub(super) async fn facts(peers: &Arc<Peers>) -> Option<Facts> {
    let mut known = peers.searches.known.lock().await;
    let candidates: Vec<SocketAddr> = {
        let all = peers.candidates.borrow();
        // Allocations at TURN servers come and go without a change of the NAT.
        all.iter().filter(|it| it.kind != Kind::Relayed).map(|it| it.addr).collect()
    };
    if let Some(known) = &*known {
        // Where ports are counted the last one is of the moment.
        let lasts = !matches!(known.facts.behaviour, Behaviour::Sequential { .. });
        if lasts && known.at.elapsed() < HOLDS && known.candidates == candidates {
            return Some(known.facts);
        }
    }
    *known = None;
    if let Some(addr) = mapped(peers) {
        // What is mapped on request is the same for everybody.
        return Some(Facts { behaviour: Behaviour::Independent, addr });
    }
    let servers = timeout(SERVERS_TIMEOUT, servers(peers)).await.ok()??;
    let report = measure(servers).await?;
    let seen = lock(&peers.known).of(Kind::ServerReflexive).to_vec();
    let facts = Facts::new(&report, seen.into_iter().find(SocketAddr::is_ipv4));
    tracing::debug!(?facts, ports = ?report.mapped_ports, "how this NAT maps");
    *known = facts.map(|facts| Known { at: Instant::now(), candidates, facts });
    facts
}

/// A port that the router has mapped when asked.
fn mapped(peers: &Peers) -> Option<SocketAddrV4> {
    let known = lock(&peers.known);
    known.of(Kind::PortMapped).iter().find_map(|addr| match addr {
        SocketAddr::V4(v4) => Some(*v4),
        SocketAddr::V6(_) => None,
    })
}

/// The STUN servers, once somebody has told.
async fn servers(peers: &Arc<Peers>) -> Option<Vec<StunServer>> {
    let mut servers = peers.searches.servers.subscribe();
    if servers.borrow().is_none() {
        peers.searches.wanted.notify_one();
    }
    let known = servers.wait_for(Option::is_some).await.ok()?.clone();
    if known.as_ref().is_some_and(Vec::is_empty) {
        // To be asked again another time.
        peers.searches.servers.send_replace(None);
    }
    known.filter(|known| !known.is_empty())
}

async fn measure(servers: Vec<StunServer>) -> Option<Report> {
    let to = servers.iter().find(|server| server.address.is_ipv4())?.address;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await.ok()?;
    // Connecting sends nothing: it asks the routing table which address would be used.
    let route = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await.ok()?;
    route.connect(to).await.ok()?;
    let local = SocketAddr::new(route.local_addr().ok()?.ip(), socket.local_addr().ok()?.port());
    let config = CheckConfig {
        servers,
        main: Some(local),
        quiet: None,
        v6: None,
        patience: PATIENCE,
        seed: random()?,
    };
    let begin = Instant::now();
    let now = || Time::START + begin.elapsed();
    let mut check = Check::new(now(), config);
    let mut buffer = [0; ANSWER_BYTES_MAX];
    loop {
        while let Some(packet) = check.poll_transmit() {
            // What cannot be sent is as good as lost; it is tried again.
            socket.send_to(&packet.data, packet.to).await.ok();
        }
        let Some(due) = check.poll_timeout() else { return Some(check.report()) };
        tokio::select! {
            Ok((length, from)) = socket.recv_from(&mut buffer) => {
                let packet = buffer.get(..length).unwrap_or_default();
                check.handle_packet(now(), Socket::Main, from, packet);
            }
            () = sleep_until(begin + (due - Time::START)) => check.handle_timeout(now()),
        }
    }
}
