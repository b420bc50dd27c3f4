//! The sockets of a search: runs [`Search`] on them.

use std::io::IoSliceMut;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use macula_nat::search::{Config, Output, Role, Search};
use macula_nat::stun::{Kind, classify};
use macula_proto::Time;
use noq::udp::{RecvMeta, Transmit, UdpSocketState};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until};

use super::Permit;
use super::tap::Packet;
use crate::quic::magic::detour::{Detour, Way};
use crate::quic::{Peers, canonical, paths};

/// Packets of all sockets that may wait; those beyond are lost, and sent again.
const INBOX_MAX: usize = 256;
/// Largest probe that is looked at.
const PROBE_BYTES_MAX: usize = 128;
/// What one call takes from a socket at most: a batch of one sender.
const BATCH_BYTES_MAX: usize = 64 * 1024;
/// Kernel buffers of a socket that has won, bytes each.
const SOCKET_BUFFER_BYTES: usize = 2 * 1024 * 1024;
/// After an error of a socket, which is news of a packet sent before.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

/// A way that a search has found; it lasts as long as this lives.
#[derive(Debug)]
pub(super) struct Won {
    /// The peer, as QUIC sees it.
    pub(super) remote: SocketAddr,
    _held: Option<Held>,
}

/// A socket of its own.
#[derive(Debug)]
struct Held {
    reader: AbortHandle,
    _detour: Arc<Detour>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// Searches until there is a way or the time is over. Dropping the future ends the search and closes
/// its sockets.
pub(super) async fn search(peers: &Arc<Peers>, config: Config, permit: &mut Permit) -> Option<Won> {
    let begin = Instant::now();
    let now = || Time::START + begin.elapsed();
    let (sender, mut inbox) = mpsc::channel::<Packet>(INBOX_MAX);
    let is_one = config.role == Role::One;
    let _ear =
        is_one.then(|| peers.searches.tap.listen((*config.peer.ip()).into(), sender.clone()));
    let mut sockets: Vec<Option<Arc<UdpSocket>>> = Vec::new();
    let mut readers = JoinSet::new();
    let mut search = Search::new(now(), config);
    loop {
        while let Some(output) = search.poll_output() {
            match output {
                Output::Open(number) => {
                    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await;
                    let socket = socket.ok().map(Arc::new);
                    if let Some(socket) = &socket {
                        readers.spawn(read(number, Arc::clone(socket), sender.clone()));
                    }
                    sockets.push(socket);
                }
                Output::Send { to, data, .. } if is_one => {
                    paths::send(peers, to, &Bytes::from(data)).await;
                }
                Output::Send { socket, to, data } => {
                    if let Some(Some(socket)) = sockets.get(usize::from(socket)) {
                        // What cannot be sent is as good as lost.
                        socket.send_to(&data, to).await.ok();
                    }
                }
                Output::Found { remote, .. } if is_one => {
                    permit.used = search.tuples();
                    return Some(Won { remote, _held: None });
                }
                Output::Found { socket: number, remote } => {
                    permit.used = search.tuples();
                    drop(readers);
                    let socket = sockets.get(usize::from(number)).cloned().flatten()?;
                    drop(sockets);
                    let held = hold(peers, socket, number, remote, search, begin)?;
                    return Some(Won { remote, _held: Some(held) });
                }
                Output::Failed => return None,
            }
        }
        permit.used = search.tuples();
        let due = begin + (search.poll_timeout()? - Time::START);
        tokio::select! {
            Some((socket, from, packet)) = inbox.recv() => {
                search.handle_packet(now(), socket, from, &packet);
            }
            () = sleep_until(due) => search.handle_timeout(now()),
        }
    }
}

/// Passes on what comes to one of many sockets.
async fn read(number: u16, socket: Arc<UdpSocket>, inbox: mpsc::Sender<Packet>) {
    let mut buffer = [0; PROBE_BYTES_MAX];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((length, from)) => {
                let packet = Bytes::copy_from_slice(buffer.get(..length).unwrap_or_default());
                if inbox.send((number, from, packet)).await.is_err() {
                    return;
                }
            }
            Err(_) => sleep(ERROR_PAUSE).await,
        }
    }
}

/// Makes the socket that has won the way to the peer.
fn hold(
    peers: &Arc<Peers>,
    socket: Arc<UdpSocket>,
    number: u16,
    remote: SocketAddr,
    search: Search,
    begin: Instant,
) -> Option<Held> {
    let sizes = socket2::SockRef::from(&*socket);
    for set in [
        sizes.set_recv_buffer_size(SOCKET_BUFFER_BYTES),
        sizes.set_send_buffer_size(SOCKET_BUFFER_BYTES),
    ] {
        if let Err(error) = set {
            tracing::debug!(%error, "socket buffer left as it is");
        }
    }
    let state = UdpSocketState::new((&*socket).into());
    let state = state.inspect_err(|error| tracing::debug!(%error, "socket not used")).ok()?;
    let own = Arc::new(OwnSocket { socket, state });
    let detour = Arc::new(peers.magic.detour(Some(remote), Arc::clone(&own) as _)?);
    let reading = own.serve(Arc::downgrade(&detour), detour.addr(), (number, search, begin));
    Some(Held { reader: tokio::spawn(reading).abort_handle(), _detour: detour })
}

/// A socket that serves one address.
#[derive(Debug)]
struct OwnSocket {
    socket: Arc<UdpSocket>,
    state: UdpSocketState,
}

impl OwnSocket {
    /// Gives QUIC what comes from the peer, and answers probes that are still under way.
    async fn serve(
        self: Arc<Self>,
        detour: Weak<Detour>,
        remote: SocketAddr,
        (number, mut search, begin): (u16, Search, Instant),
    ) {
        let mut buffer = vec![0; BATCH_BYTES_MAX];
        loop {
            if self.socket.readable().await.is_err() {
                return;
            }
            let mut meta = [RecvMeta::default()];
            let received = self.socket.try_io(Interest::READABLE, || {
                let mut buffers = [IoSliceMut::new(&mut buffer)];
                self.state.recv((&*self.socket).into(), &mut buffers, &mut meta)
            });
            let [meta] = meta;
            match received {
                Ok(_) if canonical(meta.addr) != remote => continue,
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
                Err(_) => {
                    sleep(ERROR_PAUSE).await;
                    continue;
                }
            }
            let Some(detour) = detour.upgrade() else { return };
            let batch = buffer.get(..meta.len).unwrap_or_default();
            for packet in batch.chunks(meta.stride.max(1)) {
                if classify(packet) != Kind::Stun {
                    detour.receive(Bytes::copy_from_slice(packet));
                    continue;
                }
                search.handle_packet(Time::START + begin.elapsed(), number, remote, packet);
                while let Some(output) = search.poll_output() {
                    if let Output::Send { to, data, .. } = output {
                        self.socket.send_to(&data, to).await.ok();
                    }
                }
            }
        }
    }
}

impl Way for OwnSocket {
    fn send(&self, to: SocketAddr, contents: &[u8], segment: usize) -> u64 {
        let transmit = Transmit {
            destination: canonical(to),
            ecn: None,
            contents,
            segment_size: (contents.len() > segment).then_some(segment),
            src_ip: None,
        };
        let send = || self.state.try_send((&*self.socket).into(), &transmit);
        match self.socket.try_io(Interest::WRITABLE, send) {
            Ok(()) => 0,
            // For QUIC packets lost on the way; probes for larger ones end so.
            Err(_) => contents.len().div_ceil(segment.max(1)) as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddrV4;

    use macula_nat::search::{Behaviour, End};
    use tokio::runtime::Handle;

    use super::*;
    use crate::crew::Crew;
    use crate::endpoint::EndpointConfig;
    use crate::key::SecretKey;
    use crate::quic::Endpoint;

    fn endpoint(seed: u8) -> (Endpoint, SocketAddrV4) {
        let mut settings = EndpointConfig::new(SecretKey::from_seed([seed; 32]));
        settings.peers = true;
        let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.set_nonblocking(true).unwrap();
        let SocketAddr::V4(addr) = socket.local_addr().unwrap() else { panic!("not IPv4") };
        let endpoint = Endpoint::new(&settings, socket, &Crew::new(Handle::current(), 1));
        (endpoint.unwrap(), addr)
    }

    fn permit(peers: &Arc<Peers>) -> Permit {
        Permit { peers: Arc::clone(peers), used: 0, end: End::Failed }
    }

    fn config(role: Role, peer: SocketAddrV4) -> Config {
        let (behaviour, wait) = (Behaviour::Random, Duration::ZERO);
        Config { role, token: [7; 16], behaviour, peer, wait, seed: [role as u8; 32] }
    }

    /// No NAT is needed: the side with one socket hears the other's first probe.
    #[tokio::test]
    async fn both_sides_find_each_other_and_use_little() {
        let ((one, one_at), (many, many_at)) = (endpoint(1), endpoint(2));
        let (one, many) = (one.peers().unwrap(), many.peers().unwrap());
        let (mut here, mut there) = (permit(one), permit(many));
        let (found, won) = tokio::join!(
            search(one, config(Role::One, many_at), &mut here),
            search(many, config(Role::Many, one_at), &mut there),
        );
        assert_eq!(won.unwrap().remote, one_at.into());
        let found = found.unwrap().remote;
        assert!(found != many_at.into() && found.ip() == Ipv4Addr::LOCALHOST);
        assert!((1..=256).contains(&there.used), "{}", there.used);
    }

    #[tokio::test]
    async fn the_socket_that_wins_carries_what_is_for_the_peer_as_long_as_it_is_kept() {
        let (endpoint, _) = endpoint(3);
        let peers = endpoint.peers().unwrap();
        let raw = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let SocketAddr::V4(raw_at) = raw.local_addr().unwrap() else { panic!("not IPv4") };
        let mut used = permit(peers);
        let playing = async {
            let begin = Instant::now();
            let mut one = Search::new(Time::START, config(Role::One, raw_at));
            let mut buffer = [0; 2_000];
            loop {
                let (length, from) = raw.recv_from(&mut buffer).await.unwrap();
                let now = Time::START + begin.elapsed();
                one.handle_packet(now, 0, from, &buffer[..length]);
                while let Some(output) = one.poll_output() {
                    match output {
                        Output::Send { to, data, .. } => {
                            raw.send_to(&data, to).await.unwrap();
                        }
                        Output::Found { remote, .. } => return remote,
                        Output::Open(_) | Output::Failed => panic!("{output:?}"),
                    }
                }
            }
        };
        let searching = search(peers, config(Role::Many, raw_at), &mut used);
        let (found, won) = tokio::join!(playing, searching);
        let won = won.unwrap();
        // What is for the peer leaves by the socket that won, in its pieces.
        let packets = Bytes::from(vec![0x41; 100]);
        let way = peers.magic.way(&won.remote).unwrap();
        assert_eq!(way.send(won.remote, &packets, 60), 0);
        let mut lengths = Vec::new();
        while lengths.len() < 2 {
            let mut buffer = [0; 200];
            let (length, from) = raw.recv_from(&mut buffer).await.unwrap();
            assert_eq!(from, found);
            // Probes that were under way are no such packets.
            lengths.extend((buffer[0] == 0x41).then_some(length));
        }
        assert_eq!(lengths, [60, 40]);
        drop((way, won));
        assert!(peers.magic.way(&raw_at.into()).is_none());
        // Its socket closes, and with it all others have.
        while UdpSocket::bind(found).await.is_err() {
            sleep(ERROR_PAUSE).await;
        }
    }
}
