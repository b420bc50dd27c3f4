//! A TURN client (RFC 8656) for one allocation: the crate `turn-client-proto` with limits, and the
//! choice between indications and channels.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use macula_proto::Time;
use stun_proto::Instant;
use stun_proto::agent::Transmit;
use stun_types::attribute::ErrorCode;
use stun_types::message::MessageClass;
use turn_client_proto::api::{TurnClientApi, TurnConfig, TurnEvent, TurnPollRet, TurnRecvRet};
use turn_client_proto::client::TurnClient;
use turn_client_proto::tcp::TurnClientTcp;
use turn_client_proto::udp::TurnClientUdp;
use turn_types::{AddressFamily, TransportType, TurnCredentials};

use crate::address::canonical;
use crate::stun::{CHANNEL_HEADER_BYTES, Kind, NotStun, classify, frame_length, parse};

/// IP addresses that one allocation lets in at most; permissions for more are not asked for.
pub const PERMISSIONS_MAX: usize = 64;
/// Peers that have a channel (RFC 8656 §12) at most; to others indications go.
pub const CHANNELS_MAX: usize = 64;
/// A channel is bound for a peer to which so many packets went: checks are fewer.
const CHANNEL_AFTER: u32 = 16;
/// Packets of peers that may wait for [`Allocation::poll_event`]; a driver takes them at once.
const EVENTS_MAX: usize = 1024;
/// Retransmissions (RFC 8489 §6.2.1) with less patience than its 39.5 s: Rc and what follows the last.
const RTO: Duration = Duration::from_millis(500);
const RTO_MAX: Duration = Duration::from_secs(4);
const REQUESTS: u32 = 5;
const LAST: Duration = Duration::from_secs(4);

/// What to allocate, and where.
#[derive(Clone)]
pub struct AllocationConfig {
    /// Whether the server is talked to over a stream (TCP, TLS).
    pub is_stream: bool,
    /// Own end of the socket or stream.
    pub local: SocketAddr,
    /// The server's.
    pub server: SocketAddr,
    /// Username of the long-term credentials (RFC 8489 §9.2).
    pub username: String,
    /// Their password.
    pub password: String,
    /// Whether the relayed address shall be an IPv6 one.
    pub is_ipv6: bool,
}

impl std::fmt::Debug for AllocationConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = f.debug_struct("AllocationConfig");
        text.field("server", &self.server).field("username", &self.username);
        text.finish_non_exhaustive()
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The server relays what comes to this address.
    Allocated(SocketAddr),
    /// There is no allocation, or not any more.
    Failed,
    /// The server lets packets of this IP address in.
    Permitted(IpAddr),
    /// It does not.
    Forbidden(IpAddr),
    /// A peer sent a packet.
    Data {
        /// Where from, as the server sees it.
        peer: SocketAddr,
        /// The packet.
        packet: Vec<u8>,
    },
}

/// One allocation at a server, from its request to its end.
#[derive(Debug)]
pub struct Allocation {
    client: TurnClient,
    config: AllocationConfig,
    relayed: Option<SocketAddr>,
    is_failed: bool,
    /// Asked for.
    permissions: BTreeSet<IpAddr>,
    /// How many packets went to each peer without a channel.
    sent: BTreeMap<SocketAddr, u32>,
    channels: BTreeSet<SocketAddr>,
    events: VecDeque<Event>,
    wake: Option<Time>,
    /// Of a stream: the beginning of the next message, shorter than the longest there is.
    stream: Vec<u8>,
    /// The server's last error, by its code.
    refusal: Option<u16>,
    /// How often it wanted (other) credentials.
    challenges: u32,
}

impl Allocation {
    /// Begins to allocate.
    pub fn new(now: Time, config: AllocationConfig) -> Self {
        let credentials = TurnCredentials::new(&config.username, &config.password);
        let mut turn = TurnConfig::new(credentials);
        turn.set_request_retransmits(RTO, RTO_MAX, REQUESTS, LAST);
        if config.is_ipv6 {
            turn.set_address_family(AddressFamily::IPV6);
        }
        let (local, server) = (config.local, config.server);
        let client = if config.is_stream {
            TurnClientTcp::allocate(local, server, turn).into()
        } else {
            TurnClientUdp::allocate(local, server, turn).into()
        };
        let mut allocation = Self {
            client,
            config,
            relayed: None,
            is_failed: false,
            permissions: BTreeSet::new(),
            sent: BTreeMap::new(),
            channels: BTreeSet::new(),
            events: VecDeque::new(),
            wake: None,
            stream: Vec::new(),
            refusal: None,
            challenges: 0,
        };
        allocation.advance(now);
        allocation
    }

    /// The relayed address, once there is one.
    pub fn relayed(&self) -> Option<SocketAddr> {
        self.relayed
    }

    /// The code of the last error that the server answered with (RFC 8656 §19, RFC 8489 §14.8),
    /// except the first, with which every server asks for credentials. Not proved to be the server's.
    pub fn refusal(&self) -> Option<u16> {
        self.refusal
    }

    /// Asks the server to let packets of an IP address in, and keeps asking while the allocation
    /// lasts. `false`: there is no allocation, the address is of the other family, or too many are
    /// let in already.
    pub fn permit(&mut self, now: Time, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        let fits = self.relayed.is_some_and(|relayed| relayed.is_ipv6() == ip.is_ipv6());
        if !fits || self.is_failed {
            return false;
        }
        if self.permissions.contains(&ip) {
            return true;
        }
        if self.permissions.len() >= PERMISSIONS_MAX {
            return false;
        }
        let asked = self.client.create_permission(TransportType::Udp, ip, instant(now)).is_ok();
        if asked {
            self.permissions.insert(ip);
        }
        self.advance(now);
        asked
    }

    /// What to send to the server so that `packet` gets to `peer`; `None`: nothing is permitted
    /// there.
    pub fn send(&mut self, now: Time, peer: SocketAddr, packet: &[u8]) -> Option<Vec<u8>> {
        let peer = canonical(peer);
        let built = self.client.send_to(TransportType::Udp, peer, packet, instant(now)).ok()??;
        let mut bytes = built.build().data;
        if self.config.is_stream {
            // ChannelData is padded on streams (RFC 8656 §12.5), which the library leaves out.
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        self.count(now, peer);
        Some(bytes)
    }

    /// Binds a channel for those who get much: 4 bytes in front of a packet instead of 36.
    fn count(&mut self, now: Time, peer: SocketAddr) {
        if self.channels.contains(&peer) || self.channels.len() >= CHANNELS_MAX {
            return;
        }
        if self.sent.len() >= CHANNELS_MAX && !self.sent.contains_key(&peer) {
            self.sent.clear();
        }
        let sent = self.sent.entry(peer).or_default();
        *sent += 1;
        if *sent >= CHANNEL_AFTER {
            self.sent.remove(&peer);
            self.channels.insert(peer);
            // If the server has none to give, indications do as well.
            let bound = self.client.bind_channel(TransportType::Udp, peer, instant(now));
            if bound.is_ok() {
                self.advance(now);
            }
        }
    }

    /// Bytes came from the server: a datagram, or the next piece of the stream. What comes from
    /// elsewhere, or is not TURN, is ignored.
    pub fn handle_input(&mut self, now: Time, from: SocketAddr, bytes: &[u8]) {
        // Empty input would mean the end of a stream.
        if canonical(from) != canonical(self.config.server) || bytes.is_empty() {
            return;
        }
        if !self.config.is_stream {
            return self.take(now, bytes);
        }
        // Cut here, as the library takes the padding of ChannelData for the next message.
        let mut stream = std::mem::take(&mut self.stream);
        stream.extend_from_slice(bytes);
        let mut rest = stream.as_slice();
        while let Some((frame, behind)) = match frame_length(rest) {
            Ok(length) => length.and_then(|length| rest.split_at_checked(length)),
            Err(NotStun) => return self.fail(),
        } {
            let length = match classify(frame) {
                Kind::Channel { length, .. } => CHANNEL_HEADER_BYTES + length,
                Kind::Stun | Kind::Other => frame.len(),
            };
            self.take(now, frame.get(..length).unwrap_or(frame));
            rest = behind;
        }
        self.stream = rest.to_vec();
    }

    /// Takes one message or ChannelData.
    fn take(&mut self, now: Time, bytes: &[u8]) {
        if self.relayed.is_none() {
            self.note_refusal(bytes);
        }
        let transport = if self.config.is_stream { TransportType::Tcp } else { TransportType::Udp };
        let transmit = Transmit::new(bytes, transport, self.config.server, self.config.local);
        if let TurnRecvRet::PeerData(data) = self.client.recv(transmit, instant(now)) {
            let (peer, packet) = (data.peer, data.data().to_vec());
            self.push(Event::Data { peer: canonical(peer), packet });
        }
        while let Some(data) = self.client.poll_recv(instant(now)) {
            let (peer, packet) = (data.peer, data.data().to_vec());
            self.push(Event::Data { peer: canonical(peer), packet });
        }
        self.advance(now);
    }

    /// While allocating: a second 401 means that the credentials are wrong. Its answer has no
    /// integrity, so that the library waits for a better one.
    fn note_refusal(&mut self, bytes: &[u8]) {
        let code = parse(bytes).filter(|message| message.has_class(MessageClass::Error));
        let code = code.and_then(|message| Some(message.attribute::<ErrorCode>().ok()?.code()));
        match code {
            Some(ErrorCode::UNAUTHORIZED) if self.challenges == 0 => self.challenges = 1,
            Some(ErrorCode::UNAUTHORIZED) => {
                self.refusal = Some(ErrorCode::UNAUTHORIZED);
                self.fail();
            }
            Some(ErrorCode::STALE_NONCE) | None => {}
            Some(code) => self.refusal = Some(code),
        }
    }

    /// Does what is due; safe to call early or late.
    pub fn handle_timeout(&mut self, now: Time) {
        self.advance(now);
    }

    /// Gives the allocation back. [`Event::Failed`] tells when the server has heard of it; until then
    /// send what [`Self::poll_transmit`] has.
    pub fn close(&mut self, now: Time) {
        // Not lost, but given back.
        self.relayed = None;
        // Fails when there is none.
        if self.client.delete(instant(now)).is_ok() {
            self.advance(now);
        }
    }

    /// The next bytes for the server.
    pub fn poll_transmit(&mut self, now: Time) -> Option<Vec<u8>> {
        let transmit = self.client.poll_transmit(instant(now))?;
        let bytes = transmit.data.to_vec();
        self.advance(now);
        Some(bytes)
    }

    /// What happened next.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`Self::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.wake
    }

    fn push(&mut self, event: Event) {
        if self.events.len() < EVENTS_MAX {
            self.events.push_back(event);
        }
    }

    fn advance(&mut self, now: Time) {
        self.wake = match self.client.poll(instant(now)) {
            TurnPollRet::WaitUntil(at) => Some(time(at).max(now)),
            TurnPollRet::Closed => {
                self.fail();
                None
            }
            TurnPollRet::AllocateTcpSocket { .. } | TurnPollRet::TcpClose { .. } => Some(now),
        };
        while let Some(event) = self.client.poll_event() {
            match event {
                TurnEvent::AllocationCreated(_, relayed) => {
                    let relayed = canonical(relayed);
                    self.relayed = Some(relayed);
                    self.push(Event::Allocated(relayed));
                }
                TurnEvent::AllocationCreateFailed(_) => self.fail(),
                TurnEvent::PermissionCreated(_, ip) => self.push(Event::Permitted(ip)),
                TurnEvent::PermissionCreateFailed(_, ip) => {
                    self.permissions.remove(&ip);
                    self.push(Event::Forbidden(ip));
                }
                // Without a channel indications go on.
                TurnEvent::ChannelCreateFailed(..)
                | TurnEvent::ChannelCreated(..)
                | TurnEvent::TcpConnected(_)
                | TurnEvent::TcpConnectFailed(_) => {}
            }
        }
        let is_lost = self.relayed.is_some() && self.client.relayed_addresses().next().is_none();
        if is_lost {
            self.fail();
        }
    }

    fn fail(&mut self) {
        if !self.is_failed {
            self.is_failed = true;
            self.relayed = None;
            self.events.push_back(Event::Failed);
        }
    }
}

fn instant(time: Time) -> Instant {
    Instant::ZERO + Duration::from_micros(time.as_micros())
}

fn time(instant: Instant) -> Time {
    Time::from_micros(u64::try_from(instant.as_nanos().max(0) / 1_000).unwrap_or(u64::MAX))
}
