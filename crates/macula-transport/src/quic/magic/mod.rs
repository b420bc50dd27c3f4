//! The socket of an endpoint that has peers: besides its UDP socket it sends to peers through the
//! relay of a gateway, as if they were at addresses of their own.
//!
//! QUIC sees a peer behind the relay at a *synthetic* address: a unique local one (RFC 4193) whose
//! prefix is drawn for each endpoint. Packets for such an address leave as datagrams of the link to
//! the gateway, and what comes that way seems to come from there. A packet from the wire that claims
//! such a source is dropped. Each peer has a /64 of its own, so that whatever counts by network
//! counts by peer here.
//!
//! To QUIC the socket is always an IPv6 one, as the synthetic addresses are; IPv4 appears as
//! mapped (RFC 4291 §2.5.5.2).

pub(super) mod detour;

use std::collections::HashMap;
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use macula_proto::id::EndpointId;
use macula_proto::limits;
use macula_proto::wire::relay::{Datagram, HEAD_BYTES, PART_HEAD_BYTES, Part, Unreachable};
use noq::udp::{RecvMeta, Transmit};
use noq::{AsyncUdpSocket, PathId, UdpSender, WeakConnectionHandle};
use tokio::sync::{mpsc, oneshot};

use super::canonical;
use super::sieve::is_plausible;
use crate::sync::lock;

/// Peers that have a synthetic address. When all are taken, one without a link makes room.
const PEERS_MAX: usize = 1024;
/// Relayed packets that may wait for QUIC; those beyond are dropped.
const INBOX_MAX: usize = 1024;
/// Packets that one gate may hold.
const GATED_MAX: usize = 64;
/// Gates at once; links beyond it do not hold their first packets.
const GATES_MAX: usize = 64;
/// Any will do: it never leaves this machine.
const PORT: u16 = 4433;

/// What the socket, its senders and the links of an endpoint share.
pub(crate) struct Magic {
    /// `fd` and 40 random bits.
    prefix: [u8; 6],
    table: Mutex<Table>,
    /// The link to the gateway.
    gateway: Mutex<Option<WeakConnectionHandle>>,
    inbox: mpsc::Sender<(SocketAddr, Bytes)>,
    /// Dials that want to hear when their peer cannot be reached.
    dials: Mutex<HashMap<EndpointId, Vec<oneshot::Sender<Unreachable>>>>,
    gates: Mutex<Vec<Gate>>,
    has_gates: AtomicBool,
    detours: detour::Detours,
    /// Packets of the wire that claimed a synthetic address.
    spoofed: AtomicU64,
    /// Relayed packets that were dropped here: no gateway, too large, or the inbox was full.
    dropped: AtomicU64,
}

impl fmt::Debug for Magic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Magic").finish_non_exhaustive()
    }
}

/// Holds packets for some addresses until it is opened.
struct Gate {
    id: u64,
    to: Vec<SocketAddr>,
    held: Vec<(SocketAddr, Bytes)>,
}

/// Peers and their synthetic addresses.
#[derive(Debug, Default)]
struct Table {
    slots: Vec<Slot>,
    by_id: HashMap<EndpointId, usize>,
    /// Counts uses.
    clock: u64,
}

#[derive(Debug)]
struct Slot {
    id: EndpointId,
    /// Differs whenever the slot goes to another peer.
    generation: u64,
    used: u64,
    /// Links that are bound to the address.
    pins: usize,
    /// The half of a packet whose other half is on its way.
    half: Option<(Part, Bytes)>,
    /// Number of the next packet that is sent in two.
    next_number: u16,
}

impl Table {
    /// The slot of a peer; makes one if there is room.
    fn slot(&mut self, id: EndpointId) -> Option<usize> {
        self.clock += 1;
        let clock = self.clock;
        if let Some(index) = self.by_id.get(&id).copied() {
            if let Some(slot) = self.slots.get_mut(index) {
                slot.used = clock;
            }
            return Some(index);
        }
        let index = if self.slots.len() < PEERS_MAX {
            self.slots.push(Slot {
                id,
                generation: clock,
                used: clock,
                pins: 0,
                half: None,
                next_number: 0,
            });
            self.slots.len() - 1
        } else {
            let free = self.slots.iter().enumerate().filter(|(_, slot)| slot.pins == 0);
            let (index, _) = free.min_by_key(|(_, slot)| slot.used)?;
            let slot = self.slots.get_mut(index)?;
            self.by_id.remove(&slot.id);
            (slot.id, slot.generation, slot.used, slot.half) = (id, clock, clock, None);
            index
        };
        self.by_id.insert(id, index);
        Some(index)
    }
}

/// Keeps the synthetic address of a peer while it lives.
#[derive(Debug)]
pub(crate) struct Berth {
    magic: Arc<Magic>,
    slot: usize,
    pub(crate) addr: SocketAddr,
}

impl Drop for Berth {
    fn drop(&mut self) {
        if let Some(slot) = lock(&self.magic.table).slots.get_mut(self.slot) {
            slot.pins = slot.pins.saturating_sub(1);
        }
    }
}

impl Magic {
    /// The shared half, and where relayed packets come out.
    pub(super) fn new(random: [u8; 5]) -> (Arc<Self>, mpsc::Receiver<(SocketAddr, Bytes)>) {
        let (inbox, outbox) = mpsc::channel(INBOX_MAX);
        let [a, b, c, d, e] = random;
        let magic = Self {
            prefix: [0xfd, a, b, c, d, e],
            table: Mutex::default(),
            gateway: Mutex::default(),
            inbox,
            dials: Mutex::default(),
            gates: Mutex::default(),
            has_gates: AtomicBool::new(false),
            detours: detour::Detours::default(),
            spoofed: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        };
        (Arc::new(magic), outbox)
    }

    /// Whether an address is synthetic.
    pub(super) fn owns(&self, addr: &SocketAddr) -> bool {
        matches!(addr, SocketAddr::V6(v6) if v6.ip().octets().starts_with(&self.prefix))
    }

    /// Gives a peer its address for as long as the result lives; `None`: there are too many.
    pub(super) fn pin(self: &Arc<Self>, id: EndpointId) -> Option<Berth> {
        let mut table = lock(&self.table);
        let index = table.slot(id)?;
        let slot = table.slots.get_mut(index)?;
        slot.pins += 1;
        let addr = self.addr(index, slot.generation);
        Some(Berth { magic: Arc::clone(self), slot: index, addr })
    }

    /// The peer behind a synthetic address.
    pub(super) fn peer(&self, addr: &SocketAddr) -> Option<EndpointId> {
        let table = lock(&self.table);
        let (index, generation) = self.read_addr(addr)?;
        table.slots.get(index).filter(|slot| slot.generation == generation).map(|slot| slot.id)
    }

    fn addr(&self, index: usize, generation: u64) -> SocketAddr {
        let mut octets = [0; 16];
        let slot = u16::try_from(index).unwrap_or(u16::MAX);
        let parts =
            self.prefix.into_iter().chain(slot.to_be_bytes()).chain(generation.to_be_bytes());
        octets.iter_mut().zip(parts).for_each(|(to, from)| *to = from);
        SocketAddr::new(Ipv6Addr::from(octets).into(), PORT)
    }

    fn read_addr(&self, addr: &SocketAddr) -> Option<(usize, u64)> {
        let SocketAddr::V6(v6) = addr else { return None };
        let octets = v6.ip().octets();
        let rest = octets.strip_prefix(&self.prefix)?;
        let (slot, generation) = rest.split_first_chunk::<2>()?;
        let generation = u64::from_be_bytes(generation.try_into().ok()?);
        Some((usize::from(u16::from_be_bytes(*slot)), generation))
    }

    /// Packets for peers go out over this connection from now on.
    pub(super) fn relay_through(&self, gateway: &noq::Connection) {
        *lock(&self.gateway) = Some(gateway.weak_handle());
    }

    /// A connection has ended; returns whether it was the one that relays.
    pub(super) fn forget_relay(&self, ended: &WeakConnectionHandle) -> bool {
        let mut gateway = lock(&self.gateway);
        let is_same = gateway.as_ref().is_some_and(|it| it.is_same_connection(ended));
        if is_same {
            *gateway = None;
        }
        is_same
    }

    /// Whether there is a gateway to relay.
    pub(super) fn has_relay(&self) -> bool {
        lock(&self.gateway).as_ref().is_some_and(WeakConnectionHandle::is_alive)
    }

    /// Has the gateway acknowledge something at once: QUIC's own probes come ever more rarely while there is
    /// no network.
    pub(super) fn probe_gateway(&self) {
        let gateway = lock(&self.gateway).as_ref().and_then(WeakConnectionHandle::upgrade);
        if let Some(path) = gateway.and_then(|gateway| gateway.path(PathId::ZERO)) {
            // An error means that the link has ended.
            path.ping().ok();
        }
    }

    /// Whether `connection` is the one that relays.
    pub(super) fn is_relay(&self, connection: &noq::Connection) -> bool {
        let gateway = lock(&self.gateway);
        gateway.as_ref().is_some_and(|it| it.is_same_connection(&connection.weak_handle()))
    }

    /// So many packets were dropped here on their way from or to peers, and so many from the wire
    /// because they claimed to be of a peer.
    pub(super) fn drops(&self) -> (u64, u64) {
        (self.dropped.load(Ordering::Relaxed), self.spoofed.load(Ordering::Relaxed))
    }

    /// Hears when the gateway cannot reach a peer.
    pub(super) fn on_unreachable(&self, peer: EndpointId) -> oneshot::Receiver<Unreachable> {
        let (sender, receiver) = oneshot::channel();
        let mut dials = lock(&self.dials);
        dials.retain(|_, waiting| {
            waiting.retain(|waiting| !waiting.is_closed());
            !waiting.is_empty()
        });
        dials.entry(peer).or_default().push(sender);
        receiver
    }

    /// A datagram came from the gateway.
    pub(super) fn on_datagram(&self, datagram: Datagram) {
        match datagram {
            Datagram::Relayed { from, part, packet } => self.on_relayed(from, part, packet),
            Datagram::Unreachable { to, reason } => {
                for waiting in lock(&self.dials).remove(&to).unwrap_or_default() {
                    // Fails when the dial has ended otherwise.
                    waiting.send(reason).ok();
                }
            }
            Datagram::Relay { .. } => {}
        }
    }

    fn on_relayed(&self, from: EndpointId, part: Part, packet: Bytes) {
        let mut table = lock(&self.table);
        let Some(index) = table.slot(from) else {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let Some(slot) = table.slots.get_mut(index) else { return };
        let packet = match part {
            Part::Whole => packet,
            Part::First(_) | Part::Second(_) => match join(&mut slot.half, part, packet) {
                Some(whole) => whole,
                None => return,
            },
        };
        let addr = self.addr(index, slot.generation);
        drop(table);
        self.deliver(addr, packet);
    }

    /// Gives QUIC a packet that came another way than by the UDP socket.
    fn deliver(&self, from: SocketAddr, packet: Bytes) {
        if !is_plausible(&packet) || self.inbox.try_send((from, packet)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Sends packets to a synthetic address.
    fn relay(&self, to: &SocketAddr, contents: &[u8], segment: usize) {
        let gateway = lock(&self.gateway).as_ref().and_then(WeakConnectionHandle::upgrade);
        let packets = contents.chunks(segment.max(1));
        let (Some(gateway), Some((to, mut number))) = (gateway, self.sender_of(to)) else {
            self.dropped.fetch_add(packets.len() as u64, Ordering::Relaxed);
            return;
        };
        for packet in packets {
            number = number.wrapping_add(1);
            let packet = Bytes::copy_from_slice(packet);
            let datagram = Datagram::Relay { to, part: Part::Whole, packet };
            if send(&gateway, datagram, number) == Sent::Dropped {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// The peer behind an address, and a number for what is sent to it in two.
    fn sender_of(&self, addr: &SocketAddr) -> Option<(EndpointId, u16)> {
        let mut table = lock(&self.table);
        let (index, generation) = self.read_addr(addr)?;
        let slot = table.slots.get_mut(index).filter(|slot| slot.generation == generation)?;
        // a send has at most so many packets
        slot.next_number = slot.next_number.wrapping_add(64);
        Some((slot.id, slot.next_number))
    }

    /// Holds what is sent to these addresses until [`Self::open_gate`].
    pub(super) fn close_gate(&self, to: Vec<SocketAddr>) -> Option<u64> {
        let mut gates = lock(&self.gates);
        if to.is_empty() || gates.len() >= GATES_MAX {
            return None;
        }
        let id = gates.iter().map(|gate| gate.id + 1).max().unwrap_or(0);
        let to = to.into_iter().map(canonical).collect();
        gates.push(Gate { id, to, held: Vec::new() });
        self.has_gates.store(true, Ordering::Release);
        Some(id)
    }

    /// Ends a gate and returns what it held.
    pub(super) fn open_gate(&self, id: u64) -> Vec<(SocketAddr, Bytes)> {
        let mut gates = lock(&self.gates);
        let found = gates.iter().position(|gate| gate.id == id);
        let held = found.map(|index| gates.swap_remove(index).held).unwrap_or_default();
        self.has_gates.store(!gates.is_empty(), Ordering::Release);
        held
    }

    /// Whether a packet is held back by a gate.
    fn is_gated(&self, transmit: &Transmit<'_>) -> bool {
        let to = canonical(transmit.destination);
        let mut gates = lock(&self.gates);
        let Some(gate) = gates.iter_mut().find(|gate| gate.to.contains(&to)) else { return false };
        if gate.held.len() < GATED_MAX {
            let segment = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
            let packets = transmit.contents.chunks(segment);
            gate.held.extend(packets.map(|packet| (to, Bytes::copy_from_slice(packet))));
        }
        true
    }
}

/// What became of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// It is in the link's queue.
    Queued,
    /// It is, and an older one had to go for it.
    Displaced,
    /// It does not fit, or the link is gone.
    Dropped,
}

/// Queues a datagram; a packet that must pass and does not fit goes in two, under `number`.
pub(super) fn send(gateway: &noq::Connection, datagram: Datagram, number: u16) -> Sent {
    let Some(room) = gateway.max_datagram_size() else { return Sent::Dropped };
    let (packet, rebuild): (_, Box<dyn Fn(Part, Bytes) -> Datagram>) = match &datagram {
        Datagram::Relay { to, part: Part::Whole, packet } => {
            let to = *to;
            (packet, Box::new(move |part, packet| Datagram::Relay { to, part, packet }))
        }
        Datagram::Relayed { from, part: Part::Whole, packet } => {
            let from = *from;
            (packet, Box::new(move |part, packet| Datagram::Relayed { from, part, packet }))
        }
        other => return send_one(gateway, other),
    };
    if packet.len() + HEAD_BYTES <= room {
        return send_one(gateway, &datagram);
    }
    let half = packet.len().div_ceil(2);
    if packet.len() > limits::SPLIT_PACKET_BYTES_MAX || half + PART_HEAD_BYTES > room {
        return Sent::Dropped;
    }
    let first = send_one(gateway, &rebuild(Part::First(number), packet.slice(..half)));
    let second = send_one(gateway, &rebuild(Part::Second(number), packet.slice(half..)));
    if first == Sent::Queued { second } else { first }
}

fn send_one(gateway: &noq::Connection, datagram: &Datagram) -> Sent {
    let bytes = datagram.encode();
    let has_room = gateway.datagram_send_buffer_space() >= bytes.len();
    match gateway.send_datagram(bytes) {
        Ok(()) if has_room => Sent::Queued,
        Ok(()) => Sent::Displaced,
        Err(_) => Sent::Dropped,
    }
}

/// Joins two halves of a packet; one whose other half did not come is forgotten.
pub(super) fn join(half: &mut Option<(Part, Bytes)>, part: Part, packet: Bytes) -> Option<Bytes> {
    match (half.take(), part) {
        (Some((Part::First(one), first)), Part::Second(two)) if one == two => {
            Some([first, packet].concat().into())
        }
        (Some((Part::Second(two), second)), Part::First(one)) if one == two => {
            Some([packet, second].concat().into())
        }
        _ => {
            *half = Some((part, packet));
            None
        }
    }
}

/// The socket that QUIC uses.
#[derive(Debug)]
pub(super) struct MagicSocket {
    udp: Box<dyn AsyncUdpSocket>,
    is_ipv4: bool,
    relayed: mpsc::Receiver<(SocketAddr, Bytes)>,
    magic: Arc<Magic>,
    /// QUIC may tie paths to local addresses.
    keeps_local: bool,
    /// Whose turn it is.
    relay_first: bool,
}

impl MagicSocket {
    pub(super) fn around(
        udp: Box<dyn AsyncUdpSocket>,
        magic: Arc<Magic>,
        relayed: mpsc::Receiver<(SocketAddr, Bytes)>,
    ) -> io::Result<Self> {
        let is_ipv4 = udp.local_addr()?.is_ipv4();
        Ok(Self { udp, is_ipv4, relayed, magic, keeps_local: false, relay_first: false })
    }

    /// Answers go out from the address that was asked, which matters to who has several. For
    /// endpoints without links to peers.
    pub(super) fn keeping_local(self) -> Self {
        Self { keeps_local: true, ..self }
    }

    /// Sends beside QUIC.
    pub(super) fn sender(&self) -> Pin<Box<dyn UdpSender>> {
        Box::pin(MagicSender {
            udp: self.udp.create_sender(),
            is_ipv4: self.is_ipv4,
            magic: Arc::clone(&self.magic),
        })
    }

    fn take_relayed(
        &mut self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> usize {
        let mut taken = 0;
        for (buffer, meta) in buffers.iter_mut().zip(metas) {
            let Poll::Ready(Some((addr, packet))) = self.relayed.poll_recv(cx) else { break };
            // Too large for the buffer: longer than this endpoint takes.
            let len = buffer.get_mut(..packet.len()).map_or(0, |buffer| {
                buffer.copy_from_slice(&packet);
                packet.len()
            });
            *meta = RecvMeta::default();
            (meta.addr, meta.len, meta.stride) = (addr, len, len.max(1));
            taken += 1;
        }
        taken
    }

    fn take_udp(
        &mut self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let received = std::task::ready!(self.udp.poll_recv(cx, buffers, metas))?;
        for meta in metas.iter_mut().take(received) {
            if !self.keeps_local {
                // QUIC shall not tie paths to local addresses: it cannot open paths from one.
                meta.dst_ip = None;
            }
            if self.is_ipv4 {
                meta.addr = mapped(meta.addr);
            } else if self.magic.owns(&meta.addr) {
                meta.len = 0;
                self.magic.spoofed.fetch_add(1, Ordering::Relaxed);
            }
        }
        Poll::Ready(Ok(received))
    }
}

impl AsyncUdpSocket for MagicSocket {
    fn create_sender(&self) -> Pin<Box<dyn UdpSender>> {
        self.sender()
    }

    fn poll_recv(
        &mut self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.relay_first = !self.relay_first;
        if self.relay_first {
            let taken = self.take_relayed(cx, buffers, metas);
            if taken > 0 {
                return Poll::Ready(Ok(taken));
            }
            return self.take_udp(cx, buffers, metas);
        }
        let received = self.take_udp(cx, buffers, metas);
        if received.is_ready() {
            return received;
        }
        match self.take_relayed(cx, buffers, metas) {
            0 => Poll::Pending,
            taken => Poll::Ready(Ok(taken)),
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.udp.local_addr().map(mapped)
    }

    fn max_receive_segments(&self) -> NonZeroUsize {
        self.udp.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.udp.may_fragment()
    }
}

/// Sends for one connection.
#[derive(Debug)]
struct MagicSender {
    udp: Pin<Box<dyn UdpSender>>,
    is_ipv4: bool,
    magic: Arc<Magic>,
}

impl UdpSender for MagicSender {
    fn poll_send(
        mut self: Pin<&mut Self>,
        transmit: &Transmit<'_>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let segment = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        if let Some(way) = self.magic.detours.way(&transmit.destination) {
            let dropped = way.send(transmit.destination, transmit.contents, segment);
            self.magic.dropped.fetch_add(dropped, Ordering::Relaxed);
            return Poll::Ready(Ok(()));
        }
        if self.magic.owns(&transmit.destination) {
            self.magic.relay(&transmit.destination, transmit.contents, segment);
            return Poll::Ready(Ok(()));
        }
        if self.magic.has_gates.load(Ordering::Acquire) && self.magic.is_gated(transmit) {
            return Poll::Ready(Ok(()));
        }
        if !self.is_ipv4 {
            return self.udp.as_mut().poll_send(transmit, cx);
        }
        let destination = canonical(transmit.destination);
        if destination.is_ipv6() {
            // For QUIC a packet lost on the way.
            return Poll::Ready(Ok(()));
        }
        let Transmit { ecn, contents, segment_size, src_ip, .. } = *transmit;
        let src_ip = src_ip.map(|ip| ip.to_canonical());
        let transmit = Transmit { destination, ecn, contents, segment_size, src_ip };
        self.udp.as_mut().poll_send(&transmit, cx)
    }

    fn max_transmit_segments(&self) -> NonZeroUsize {
        self.udp.max_transmit_segments()
    }
}

/// IPv4 in its IPv6 clothes.
pub(super) fn mapped(addr: SocketAddr) -> SocketAddr {
    match addr {
        SocketAddr::V4(v4) => {
            SocketAddr::V6(SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0))
        }
        SocketAddr::V6(_) => addr,
    }
}

/// Whether an address may be that of a peer: no synthetic one of anybody's, as such are seen by
/// those who observe us through the relay.
pub(super) fn is_real(addr: &SocketAddr) -> bool {
    match canonical(*addr).ip() {
        IpAddr::V4(_) => true,
        IpAddr::V6(ip) => ip.octets().first() != Some(&0xfd),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u32) -> EndpointId {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        EndpointId::from_bytes(bytes)
    }

    fn packet(byte: u8) -> Bytes {
        Bytes::from(vec![0x40 | byte; 60])
    }

    #[test]
    fn addresses_stand_for_peers_and_each_has_a_network_of_its_own() {
        let (magic, _) = Magic::new([1, 2, 3, 4, 5]);
        let (one, two) = (magic.pin(id(1)).unwrap(), magic.pin(id(2)).unwrap());
        assert_eq!(magic.peer(&one.addr), Some(id(1)));
        assert_eq!(magic.peer(&two.addr), Some(id(2)));
        assert_eq!(magic.pin(id(1)).unwrap().addr, one.addr);
        let network = |addr: SocketAddr| match addr {
            SocketAddr::V6(v6) => v6.ip().octets()[..8].to_vec(),
            SocketAddr::V4(_) => panic!("not IPv6"),
        };
        assert_ne!(network(one.addr), network(two.addr));
        assert!(magic.owns(&one.addr) && !is_real(&one.addr));
        assert!(!magic.owns(&"[fd00::1]:1".parse().unwrap()));
    }

    #[test]
    fn strangers_make_room_for_each_other_but_not_those_with_a_link() {
        let (magic, mut inbox) = Magic::new([1; 5]);
        let kept = magic.pin(id(0)).unwrap();
        let mut first = None;
        for number in 1..=10_000 {
            magic.on_relayed(id(number), Part::Whole, packet(1));
            if let Ok((addr, _)) = inbox.try_recv() {
                first.get_or_insert(addr);
            }
        }
        assert!(lock(&magic.table).slots.len() <= PEERS_MAX);
        assert_eq!(lock(&magic.table).by_id.len(), PEERS_MAX);
        assert_eq!(magic.peer(&kept.addr), Some(id(0)));
        assert_eq!(magic.peer(&first.unwrap()), None, "its slot is another's");
        let pins: Vec<_> = (1..PEERS_MAX as u32).map(|number| magic.pin(id(number))).collect();
        assert!(pins.iter().all(Option::is_some));
        assert!(magic.pin(id(99_999)).is_none());
        drop(pins);
        assert!(magic.pin(id(99_999)).is_some());
    }

    #[test]
    fn halves_are_joined_in_either_order_and_lost_ones_forgotten() {
        let (magic, mut inbox) = Magic::new([1; 5]);
        let mut give = |part, byte| {
            magic.on_relayed(id(1), part, packet(byte));
            inbox.try_recv().ok().map(|(_, packet)| packet)
        };
        let whole = Some(Bytes::from([packet(1), packet(2)].concat()));
        assert_eq!(give(Part::First(7), 1), None);
        assert_eq!(give(Part::Second(7), 2), whole);
        assert_eq!(give(Part::Second(8), 2), None);
        assert_eq!(give(Part::First(8), 1), whole);
        assert_eq!(give(Part::First(9), 3), None);
        assert_eq!(give(Part::Second(10), 3), None);
        assert_eq!(give(Part::First(11), 1), None);
        assert_eq!(give(Part::Whole, 3), Some(packet(3)));
        assert_eq!(give(Part::Second(11), 2), whole);
    }

    #[test]
    fn what_comes_faster_than_it_is_read_is_dropped_and_counted() {
        let (magic, inbox) = Magic::new([1; 5]);
        for _ in 0..INBOX_MAX + 10 {
            magic.on_relayed(id(1), Part::Whole, packet(1));
        }
        magic.on_relayed(id(1), Part::Whole, Bytes::from_static(b"junk"));
        assert_eq!((inbox.len(), magic.drops()), (INBOX_MAX, (11, 0)));
    }

    /// A socket on which one datagram from each address comes.
    #[derive(Debug)]
    struct Wire(Vec<SocketAddr>);

    impl AsyncUdpSocket for Wire {
        fn create_sender(&self) -> Pin<Box<dyn UdpSender>> {
            Box::pin(Nowhere)
        }

        fn poll_recv(
            &mut self,
            _: &mut Context<'_>,
            buffers: &mut [IoSliceMut<'_>],
            metas: &mut [RecvMeta],
        ) -> Poll<io::Result<usize>> {
            let mut count = 0;
            for (addr, (buffer, meta)) in self.0.drain(..).zip(buffers.iter_mut().zip(metas)) {
                buffer[..60].fill(0x41);
                (meta.addr, meta.len, meta.stride) = (addr, 60, 60);
                count += 1;
            }
            if count > 0 { Poll::Ready(Ok(count)) } else { Poll::Pending }
        }

        fn local_addr(&self) -> io::Result<SocketAddr> {
            Ok((Ipv6Addr::UNSPECIFIED, 1).into())
        }

        fn max_receive_segments(&self) -> NonZeroUsize {
            NonZeroUsize::MIN
        }

        fn may_fragment(&self) -> bool {
            false
        }
    }

    #[derive(Debug)]
    struct Nowhere;

    impl UdpSender for Nowhere {
        fn poll_send(
            self: Pin<&mut Self>,
            _: &Transmit<'_>,
            _: &mut Context<'_>,
        ) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn max_transmit_segments(&self) -> NonZeroUsize {
            NonZeroUsize::MIN
        }
    }

    #[test]
    fn what_claims_to_come_from_a_peer_must_come_from_the_gateway() {
        let (magic, relayed) = Magic::new([1; 5]);
        let peer = magic.pin(id(1)).unwrap();
        let other: SocketAddr = "[2001:db8::1]:1".parse().unwrap();
        let wire = Wire(vec![peer.addr, other]);
        let mut socket = MagicSocket::around(Box::new(wire), Arc::clone(&magic), relayed).unwrap();
        magic.on_relayed(id(1), Part::Whole, packet(2));
        let mut came = Vec::new();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        for _ in 0..4 {
            let (mut one, mut two) = ([0; 100], [0; 100]);
            let mut buffers = [IoSliceMut::new(&mut one), IoSliceMut::new(&mut two)];
            let mut metas = [RecvMeta::default(); 2];
            let polled = socket.poll_recv(&mut cx, &mut buffers, &mut metas);
            let Poll::Ready(count) = polled else { continue };
            for (meta, buffer) in metas[..count.unwrap()].iter().zip(&buffers) {
                came.push((meta.addr, buffer[..meta.len].to_vec()));
            }
        }
        came.retain(|(_, packet)| !packet.is_empty());
        came.sort_by_key(|(addr, _)| *addr != other);
        let relayed = packet(2).to_vec();
        assert_eq!(came, [(other, vec![0x41; 60]), (peer.addr, relayed)]);
        assert_eq!(magic.drops(), (0, 1));
    }

    #[test]
    fn a_gate_holds_only_what_is_for_its_addresses() {
        let (magic, _) = Magic::new([1; 5]);
        let to: SocketAddr = "192.0.2.1:1".parse().unwrap();
        let gate = magic.close_gate(vec![mapped(to)]).unwrap();
        let contents = [1, 2, 3, 4, 5];
        let transmit = |destination| Transmit {
            destination,
            ecn: None,
            contents: &contents,
            segment_size: Some(4),
            src_ip: None,
        };
        assert!(magic.is_gated(&transmit(mapped(to))));
        assert!(!magic.is_gated(&transmit("192.0.2.2:1".parse().unwrap())));
        let held = magic.open_gate(gate);
        assert_eq!(held, [(to, Bytes::from(vec![1, 2, 3, 4])), (to, Bytes::from(vec![5]))]);
        assert!(!magic.is_gated(&transmit(to)));
        assert!(!magic.has_gates.load(Ordering::Acquire));
    }
}
