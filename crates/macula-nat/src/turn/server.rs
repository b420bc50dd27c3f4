//! The allocations of a TURN server and what clients and peers may do with them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use macula_proto::Time;
use stun_types::attribute::{
    Attribute, AttributeStaticType, AttributeType, ErrorCode, Fingerprint, MessageIntegrity, Nonce,
    Realm, UnknownAttributes, Username, XorMappedAddress,
};
use stun_types::message::{
    IntegrityAlgorithm, IntegrityKey, LongTermKeyCredentials, Message, MessageClass, MessageType,
    MessageWrite, MessageWriteExt, MessageWriteVec, TransactionId,
};
use stun_types::prelude::AttributeFromRaw;
use turn_types::AddressFamily;
use turn_types::attribute::{
    ChannelNumber, Data, EvenPort, Lifetime, RequestedAddressFamily, RequestedTransport,
    ReservationToken, XorPeerAddress, XorRelayedAddress,
};
use turn_types::message::{ALLOCATE, CHANNEL_BIND, CREATE_PERMISSION, DATA, REFRESH, SEND};

use super::api::{Client, Now, Output, Port, RelayId, ServerConfig, Stats};
use super::credentials;
use super::nonce::Nonces;
use crate::address;
use crate::rate::{Bucket, Rate, Sources};
use crate::stun::{CHANNEL_HEADER_BYTES, Kind, add, classify, finish, parse};

/// RFC 8656 §3.2: what an allocation lasts unless asked for more, and the least.
const LIFETIME_DEFAULT: Duration = Duration::from_secs(600);
/// RFC 8656 §9: fixed.
const PERMISSION_LIFETIME: Duration = Duration::from_secs(300);
/// RFC 8656 §12: fixed.
const CHANNEL_LIFETIME: Duration = Duration::from_secs(600);
/// Largest packet of a peer that still fits an indication with its attributes.
const PEER_DATA_BYTES_MAX: usize = 65_000;
/// Peers that one request may name; each costs a look-up.
const PEERS_PER_REQUEST_MAX: usize = 32;
/// Unknown attributes that a refusal names.
const UNKNOWN_MAX: usize = 8;
/// Sources that are told apart when answers to strangers are rationed.
const SOURCE_SLOTS: usize = 4096;

/// What may be in every request.
const KNOWN: [AttributeType; 5] =
    [Username::TYPE, Realm::TYPE, Nonce::TYPE, MessageIntegrity::TYPE, Fingerprint::TYPE];

/// Somebody whose credentials are right.
#[derive(Clone)]
struct Identity {
    username: Arc<str>,
    /// What quotas count.
    user: Arc<str>,
    key: Arc<IntegrityKey>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("username", &self.username).finish_non_exhaustive()
    }
}

/// An allocation whose socket is being opened.
#[derive(Debug)]
struct Pending {
    client: Client,
    identity: Identity,
    transaction: TransactionId,
    lifetime: Duration,
}

#[derive(Debug)]
struct Allocation {
    relay: RelayId,
    /// The relayed transport address that the client was told.
    relayed: SocketAddr,
    identity: Identity,
    expires: Time,
    permissions: BTreeMap<IpAddr, Time>,
    channels: BTreeMap<u16, (SocketAddr, Time)>,
    numbers: BTreeMap<SocketAddr, u16>,
    /// The request that made it and its answer, for when the answer is lost.
    made_by: TransactionId,
    answer: Vec<u8>,
}

#[derive(Debug)]
struct UserState {
    allocations: usize,
    bucket: Bucket,
}

/// A TURN server. One for all clients of a gateway; the driver moves packets and opens sockets.
///
/// After every call the driver does what is in `out`, in order.
#[derive(Debug)]
pub struct Server {
    config: ServerConfig,
    nonces: Nonces,
    sources: Sources,
    allocations: BTreeMap<Client, Allocation>,
    relays: BTreeMap<RelayId, Client>,
    by_relayed: BTreeMap<SocketAddr, RelayId>,
    pending: BTreeMap<RelayId, Pending>,
    expiries: BTreeSet<(Time, RelayId)>,
    users: BTreeMap<Arc<str>, UserState>,
    places: BTreeMap<IpAddr, usize>,
    total: Bucket,
    next_relay: u64,
    next_indication: u128,
    stats: Stats,
}

/// Code of a refusal.
type Code = u16;

impl Server {
    /// A server without allocations.
    pub fn new(now: Now, config: ServerConfig) -> Self {
        let rate = config.limits.answers_per_source;
        Self {
            nonces: Nonces::new(&config.seed),
            sources: Sources::new(
                &config.seed,
                SOURCE_SLOTS,
                Rate { per_second: rate, burst: rate.saturating_mul(2) },
            ),
            config,
            allocations: BTreeMap::new(),
            relays: BTreeMap::new(),
            by_relayed: BTreeMap::new(),
            pending: BTreeMap::new(),
            expiries: BTreeSet::new(),
            users: BTreeMap::new(),
            places: BTreeMap::new(),
            total: Bucket::new(now.time),
            next_relay: 0,
            next_indication: 0,
            stats: Stats::default(),
        }
    }

    /// Counters.
    pub fn stats(&self) -> Stats {
        let (allocations, users) = (self.allocations.len() as u64, self.users.len() as u64);
        Stats { allocations, users, ..self.stats }
    }

    /// Whether a stranger at `source` may be answered now; takes from its ration.
    pub fn may_answer(&mut self, now: Now, source: IpAddr) -> bool {
        let may = self.sources.take(now.time, source);
        if !may {
            self.stats.unanswered += 1;
        }
        may
    }

    /// A packet from a client: a datagram, or a frame of a stream.
    pub fn client_packet<'a>(
        &mut self,
        now: Now,
        client: Client,
        packet: &'a [u8],
        out: &mut Vec<Output<'a>>,
    ) {
        match classify(packet) {
            Kind::Channel { number, length } => {
                let data = packet.get(CHANNEL_HEADER_BYTES..CHANNEL_HEADER_BYTES + length);
                self.channel_data(now, client, number, data.unwrap_or_default(), out);
            }
            Kind::Stun => match parse(packet) {
                Some(message) if message.has_class(MessageClass::Request) => {
                    self.request(now, client, &message, out);
                }
                Some(message)
                    if message.has_class(MessageClass::Indication) && message.has_method(SEND) =>
                {
                    self.send(now, client, &message, packet, out);
                }
                _ => self.stats.malformed += 1,
            },
            Kind::Other => self.stats.malformed += 1,
        }
    }

    /// A packet of a peer came in at a relay's socket; `peer` in canonical form.
    pub fn peer_packet(
        &mut self,
        now: Now,
        relay: RelayId,
        peer: SocketAddr,
        data: &[u8],
        out: &mut Vec<Output<'_>>,
    ) {
        let found = self.relays.get(&relay).and_then(|client| {
            let allocation = self.allocations.get(client)?;
            let is_permitted = allocation.is_permitted(now.time, peer.ip());
            (is_permitted && data.len() <= PEER_DATA_BYTES_MAX).then_some((*client, allocation))
        });
        let Some((client, allocation)) = found else {
            self.stats.dropped_unpermitted += 1;
            return;
        };
        let number = allocation.numbers.get(&peer).copied();
        let number = number.filter(|number| allocation.channel(now.time, *number).is_some());
        let user = allocation.identity.user.clone();
        if !self.spend(now, &user, data.len()) {
            return;
        }
        self.stats.packets_to_clients += 1;
        self.stats.bytes_to_clients += data.len() as u64;
        let data = match number {
            Some(number) => channel_packet(number, data),
            None => self.indication(peer, data),
        };
        out.push(Output::ToClient { client, data });
    }

    /// The answer to [`Output::Bind`]: the address that clients and peers see the socket at, or
    /// `None` if there is none to be had.
    pub fn bound(
        &mut self,
        now: Now,
        relay: RelayId,
        relayed: Option<SocketAddr>,
        out: &mut Vec<Output<'_>>,
    ) {
        let Some(Pending { client, identity, transaction, lifetime }) = self.pending.remove(&relay)
        else {
            out.push(Output::Close { relay });
            return;
        };
        let class = if relayed.is_some() { MessageClass::Success } else { MessageClass::Error };
        let kind = MessageType::from_class_method(class, ALLOCATE);
        let mut response = Message::builder(kind, transaction, MessageWriteVec::new());
        let Some(relayed) = relayed else {
            self.stats.refused_full += 1;
            self.release(&identity.user, client);
            add_error(&mut response, ErrorCode::INSUFFICIENT_CAPACITY);
            out.push(Output::ToClient { client, data: signed(response, &identity.key) });
            return;
        };
        add(&mut response, &XorRelayedAddress::new(relayed, transaction));
        add(&mut response, &Lifetime::new(seconds(lifetime)));
        add(&mut response, &XorMappedAddress::new(client.remote, transaction));
        let answer = signed(response, &identity.key);
        let allocation = Allocation {
            relay,
            relayed,
            identity,
            expires: now.time + lifetime,
            permissions: BTreeMap::new(),
            channels: BTreeMap::new(),
            numbers: BTreeMap::new(),
            made_by: transaction,
            answer: answer.clone(),
        };
        self.stats.allocated += 1;
        self.expiries.insert((allocation.expires, relay));
        self.relays.insert(relay, client);
        self.by_relayed.insert(relayed, relay);
        self.allocations.insert(client, allocation);
        out.push(Output::ToClient { client, data: answer });
    }

    /// The connection of a client that came by a stream has ended; its allocation ends with it.
    pub fn client_gone(&mut self, client: Client, out: &mut Vec<Output<'_>>) {
        let waiting = self.pending.iter().find(|(_, pending)| pending.client == client);
        if let Some(relay) = waiting.map(|(relay, _)| *relay)
            && let Some(pending) = self.pending.remove(&relay)
        {
            self.release(&pending.identity.user, client);
        }
        self.remove(client, out);
    }

    /// When [`Server::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.expiries.first().map(|(time, _)| *time)
    }

    /// Ends allocations that have expired.
    pub fn handle_timeout(&mut self, now: Now, out: &mut Vec<Output<'_>>) {
        while let Some((time, relay)) = self.expiries.first().copied() {
            if time > now.time {
                return;
            }
            self.expiries.pop_first();
            if let Some(client) = self.relays.get(&relay).copied() {
                self.stats.expired += 1;
                self.remove(client, out);
            }
        }
    }

    fn request(
        &mut self,
        now: Now,
        client: Client,
        request: &Message<'_>,
        out: &mut Vec<Output<'_>>,
    ) {
        let identity = match self.authenticate(now, client, request) {
            Ok(identity) => identity,
            Err(code) => {
                if self.may_answer(now, client.remote.ip()) {
                    let data = self.challenge(now, client, request, code);
                    out.push(Output::ToClient { client, data });
                }
                return;
            }
        };
        let result = match request.method() {
            ALLOCATE => self.allocate(now, client, &identity, request, out),
            REFRESH => self.refresh(now, client, &identity, request, out),
            CREATE_PERMISSION => self.create_permission(now, client, &identity, request),
            CHANNEL_BIND => self.channel_bind(now, client, &identity, request),
            _ => Err(ErrorCode::BAD_REQUEST),
        };
        let data = match result {
            Ok(None) => return,
            Ok(Some(response)) => signed(response, &identity.key),
            Err(code) => {
                let mut response = Message::builder_error(request, MessageWriteVec::new());
                add_error(&mut response, code);
                if code == ErrorCode::UNKNOWN_ATTRIBUTE {
                    add(&mut response, &UnknownAttributes::new(&unknown(request)));
                }
                signed(response, &identity.key)
            }
        };
        out.push(Output::ToClient { client, data });
    }

    /// Long-term credentials (RFC 8489 §9.2.4); the error is the code of the answer.
    fn authenticate(
        &mut self,
        now: Now,
        client: Client,
        request: &Message<'_>,
    ) -> Result<Identity, Code> {
        if !request.has_attribute(MessageIntegrity::TYPE) {
            self.stats.challenged += 1;
            return Err(ErrorCode::UNAUTHORIZED);
        }
        let attributes = (
            request.attribute::<Username>(),
            request.attribute::<Realm>(),
            request.attribute::<Nonce>(),
        );
        let (Ok(username), Ok(realm), Ok(nonce)) = attributes else {
            self.stats.unauthorized += 1;
            return Err(ErrorCode::BAD_REQUEST);
        };
        if !self.nonces.holds(now.time, &client, nonce.nonce()) {
            self.stats.challenged += 1;
            return Err(ErrorCode::STALE_NONCE);
        }
        let username = username.username();
        let user = credentials::user_of(username, now.unix).ok();
        let user = user.filter(|_| realm.realm() == self.config.realm);
        let identity = user.map(|user| self.identity(client, username, user));
        match identity {
            Some(identity) if request.validate_integrity_with_key(&identity.key).is_ok() => {
                Ok(identity)
            }
            _ => {
                self.stats.unauthorized += 1;
                Err(ErrorCode::UNAUTHORIZED)
            }
        }
    }

    fn identity(&self, client: Client, username: &str, user: &str) -> Identity {
        if let Some(allocation) = self.allocations.get(&client)
            && &*allocation.identity.username == username
        {
            return allocation.identity.clone();
        }
        let password = self.config.issuer.password(username);
        let realm = self.config.realm.clone();
        let key = LongTermKeyCredentials::new(username.to_owned(), password, realm)
            .make_key(IntegrityAlgorithm::Sha1);
        Identity { username: username.into(), user: user.into(), key: Arc::new(key) }
    }

    fn challenge(&self, now: Now, client: Client, request: &Message<'_>, code: Code) -> Vec<u8> {
        let mut response = Message::builder_error(request, MessageWriteVec::new());
        add_error(&mut response, code);
        if code != ErrorCode::BAD_REQUEST {
            let nonce = self.nonces.make(now.time, &client);
            if let (Ok(realm), Ok(nonce)) = (Realm::new(&self.config.realm), Nonce::new(&nonce)) {
                add(&mut response, &realm);
                add(&mut response, &nonce);
            }
        }
        finish(response)
    }

    fn allocate(
        &mut self,
        now: Now,
        client: Client,
        identity: &Identity,
        request: &Message<'_>,
        out: &mut Vec<Output<'_>>,
    ) -> Result<Option<MessageWriteVec>, Code> {
        if let Some(allocation) = self.allocations.get(&client) {
            let is_again = allocation.made_by == request.transaction_id()
                && allocation.identity.username == identity.username;
            if !is_again {
                return Err(ErrorCode::ALLOCATION_MISMATCH);
            }
            out.push(Output::ToClient { client, data: allocation.answer.clone() });
            return Ok(None);
        }
        if self.pending.values().any(|pending| pending.client == client) {
            return Ok(None);
        }
        let (is_ipv6, port) = self.wanted(request)?;
        self.reserve(now, &identity.user, client)?;
        let relay = RelayId(self.next_relay);
        self.next_relay += 1;
        let pending = Pending {
            client,
            identity: identity.clone(),
            transaction: request.transaction_id(),
            lifetime: self.lifetime(request),
        };
        self.pending.insert(relay, pending);
        out.push(Output::Bind { relay, client, is_ipv6, port });
        Ok(None)
    }

    /// Family and port that an Allocate request asks for (RFC 8656 §7.2).
    fn wanted(&self, request: &Message<'_>) -> Result<(bool, Port), Code> {
        let known = [
            RequestedTransport::TYPE,
            Lifetime::TYPE,
            EvenPort::TYPE,
            ReservationToken::TYPE,
            RequestedAddressFamily::TYPE,
        ];
        check_known(request, &known)?;
        let transport = required::<RequestedTransport>(request)?;
        if transport.protocol() != RequestedTransport::UDP {
            return Err(ErrorCode::UNSUPPORTED_TRANSPORT_PROTOCOL);
        }
        // Nothing is ever reserved, so every token is of an unknown port.
        if request.has_attribute(ReservationToken::TYPE) {
            return Err(ErrorCode::INSUFFICIENT_CAPACITY);
        }
        let port = match optional::<EvenPort>(request)? {
            None => Port::Any,
            Some(even) if even.requested() => return Err(ErrorCode::INSUFFICIENT_CAPACITY),
            Some(_) => Port::Even,
        };
        let is_ipv6 = match request.has_attribute(RequestedAddressFamily::TYPE) {
            false => false,
            true => match request.attribute::<RequestedAddressFamily>() {
                Ok(family) => family.family() == AddressFamily::IPV6,
                Err(_) => return Err(ErrorCode::ADDRESS_FAMILY_NOT_SUPPORTED),
            },
        };
        let is_there = if is_ipv6 { self.config.has_ipv6 } else { self.config.has_ipv4 };
        if is_there { Ok((is_ipv6, port)) } else { Err(ErrorCode::ADDRESS_FAMILY_NOT_SUPPORTED) }
    }

    /// Counts an allocation against the quotas.
    fn reserve(&mut self, now: Now, user: &Arc<str>, client: Client) -> Result<(), Code> {
        let limits = self.config.limits;
        if self.allocations.len() + self.pending.len() >= limits.allocations_max {
            self.stats.refused_full += 1;
            return Err(ErrorCode::INSUFFICIENT_CAPACITY);
        }
        let place = address::place(client.remote.ip());
        let at_place = self.places.get(&place).copied().unwrap_or(0);
        if at_place >= limits.allocations_per_address_max {
            self.stats.refused_address += 1;
            return Err(ErrorCode::ALLOCATION_QUOTA_REACHED);
        }
        let of_user = self.users.get(user).map_or(0, |state| state.allocations);
        if of_user >= limits.allocations_per_user_max {
            self.stats.refused_user += 1;
            return Err(ErrorCode::ALLOCATION_QUOTA_REACHED);
        }
        self.places.insert(place, at_place + 1);
        let new = || UserState { allocations: 0, bucket: Bucket::new(now.time) };
        self.users.entry(user.clone()).or_insert_with(new).allocations += 1;
        Ok(())
    }

    /// Takes back what [`Server::reserve`] counted.
    fn release(&mut self, user: &Arc<str>, client: Client) {
        if let Some(state) = self.users.get_mut(user) {
            state.allocations = state.allocations.saturating_sub(1);
            if state.allocations == 0 {
                self.users.remove(user);
            }
        }
        let place = address::place(client.remote.ip());
        if let Some(count) = self.places.get_mut(&place) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.places.remove(&place);
            }
        }
    }

    fn remove(&mut self, client: Client, out: &mut Vec<Output<'_>>) {
        let Some(allocation) = self.allocations.remove(&client) else { return };
        self.expiries.remove(&(allocation.expires, allocation.relay));
        self.relays.remove(&allocation.relay);
        self.by_relayed.remove(&allocation.relayed);
        self.release(&allocation.identity.user, client);
        out.push(Output::Close { relay: allocation.relay });
    }

    fn refresh(
        &mut self,
        now: Now,
        client: Client,
        identity: &Identity,
        request: &Message<'_>,
        out: &mut Vec<Output<'_>>,
    ) -> Result<Option<MessageWriteVec>, Code> {
        check_known(request, &[Lifetime::TYPE, RequestedAddressFamily::TYPE])?;
        let wanted = optional::<Lifetime>(request)?.map(|lifetime| lifetime.seconds());
        let family = optional::<RequestedAddressFamily>(request)?.map(|family| family.family());
        let lifetime = self.lifetime(request);
        let allocation = self.own_allocation(client, identity)?;
        let is_ipv6 = family.map(|family| family == AddressFamily::IPV6);
        if is_ipv6.is_some_and(|is_ipv6| is_ipv6 != allocation.relayed.is_ipv6()) {
            return Err(ErrorCode::PEER_ADDRESS_FAMILY_MISMATCH);
        }
        let mut response = Message::builder_success(request, MessageWriteVec::new());
        if wanted == Some(0) {
            add(&mut response, &Lifetime::new(0));
            self.remove(client, out);
            return Ok(Some(response));
        }
        let (before, relay) = (allocation.expires, allocation.relay);
        allocation.expires = now.time + lifetime;
        let after = allocation.expires;
        self.expiries.remove(&(before, relay));
        self.expiries.insert((after, relay));
        add(&mut response, &Lifetime::new(seconds(lifetime)));
        Ok(Some(response))
    }

    fn create_permission(
        &mut self,
        now: Now,
        client: Client,
        identity: &Identity,
        request: &Message<'_>,
    ) -> Result<Option<MessageWriteVec>, Code> {
        check_known(request, &[XorPeerAddress::TYPE])?;
        let mut peers = Vec::new();
        for number in 0..=PEERS_PER_REQUEST_MAX {
            if request.nth_raw_attribute(XorPeerAddress::TYPE, number).is_none() {
                break;
            }
            let peer = request.nth_attribute::<XorPeerAddress>(number);
            let peer = peer.map_err(|_| ErrorCode::BAD_REQUEST)?;
            peers.push(address::canonical(peer.addr(request.transaction_id())).ip());
        }
        if peers.is_empty() || peers.len() > PEERS_PER_REQUEST_MAX {
            return Err(ErrorCode::BAD_REQUEST);
        }
        self.own_allocation(client, identity)?;
        // All or none (RFC 8656 §10.2).
        for peer in &peers {
            self.check_peer(client, *peer)?;
        }
        let peers_max = self.config.limits.peers_per_allocation_max;
        let allocation = self.own_allocation(client, identity)?;
        if !allocation.permit(now.time, &peers, peers_max) {
            self.stats.refused_peers_max += 1;
            return Err(ErrorCode::INSUFFICIENT_CAPACITY);
        }
        Ok(Some(Message::builder_success(request, MessageWriteVec::new())))
    }

    fn channel_bind(
        &mut self,
        now: Now,
        client: Client,
        identity: &Identity,
        request: &Message<'_>,
    ) -> Result<Option<MessageWriteVec>, Code> {
        check_known(request, &[XorPeerAddress::TYPE, ChannelNumber::TYPE])?;
        let number = required::<ChannelNumber>(request)?.channel();
        let peer = required::<XorPeerAddress>(request)?.addr(request.transaction_id());
        let peer = address::canonical(peer);
        // RFC 8656 §12 gives clients 0x4000 to 0x4fff; those of RFC 5766 take up to 0x7ffe.
        if !(0x4000..=0x7ffe).contains(&number) {
            return Err(ErrorCode::BAD_REQUEST);
        }
        self.own_allocation(client, identity)?;
        self.check_peer(client, peer.ip())?;
        let peers_max = self.config.limits.peers_per_allocation_max;
        let allocation = self.own_allocation(client, identity)?;
        allocation.forget_channels(now.time);
        let is_other = |(bound, _): &(SocketAddr, Time)| *bound != peer;
        let is_taken = allocation.channels.get(&number).is_some_and(is_other)
            || allocation.numbers.get(&peer).is_some_and(|bound| *bound != number);
        if is_taken {
            return Err(ErrorCode::BAD_REQUEST);
        }
        let is_new = !allocation.channels.contains_key(&number);
        if is_new && allocation.channels.len() >= peers_max
            || !allocation.permit(now.time, &[peer.ip()], peers_max)
        {
            self.stats.refused_peers_max += 1;
            return Err(ErrorCode::INSUFFICIENT_CAPACITY);
        }
        allocation.channels.insert(number, (peer, now.time + CHANNEL_LIFETIME));
        allocation.numbers.insert(peer, number);
        Ok(Some(Message::builder_success(request, MessageWriteVec::new())))
    }

    fn send<'a>(
        &mut self,
        now: Now,
        client: Client,
        message: &Message<'_>,
        packet: &'a [u8],
        out: &mut Vec<Output<'a>>,
    ) {
        let known = [XorPeerAddress::TYPE, Data::TYPE];
        let peer = required::<XorPeerAddress>(message).ok().filter(|_| {
            // DONT-FRAGMENT among others: what cannot be honoured is dropped (RFC 8656 §11.2).
            check_known(message, &known).is_ok()
        });
        let data = message.raw_attribute_and_offset(Data::TYPE).and_then(|(offset, raw)| {
            let begin = offset.checked_add(4)?;
            packet.get(begin..begin.checked_add(raw.value.len())?)
        });
        let (Some(peer), Some(data)) = (peer, data) else {
            self.stats.malformed += 1;
            return;
        };
        let peer = address::canonical(peer.addr(message.transaction_id()));
        self.pass_to_peer(now, client, peer, data, out);
    }

    fn channel_data<'a>(
        &mut self,
        now: Now,
        client: Client,
        number: u16,
        data: &'a [u8],
        out: &mut Vec<Output<'a>>,
    ) {
        let allocation = self.allocations.get(&client);
        match allocation.and_then(|allocation| allocation.channel(now.time, number)) {
            Some(peer) => self.pass_to_peer(now, client, peer, data, out),
            None => self.stats.dropped_unpermitted += 1,
        }
    }

    fn pass_to_peer<'a>(
        &mut self,
        now: Now,
        client: Client,
        peer: SocketAddr,
        data: &'a [u8],
        out: &mut Vec<Output<'a>>,
    ) {
        let allocation = self.allocations.get(&client);
        let allocation = allocation.filter(|found| found.is_permitted(now.time, peer.ip()));
        let Some(allocation) = allocation else {
            self.stats.dropped_unpermitted += 1;
            return;
        };
        let (relay, relayed) = (allocation.relay, allocation.relayed);
        let user = allocation.identity.user.clone();
        let neighbour = self.by_relayed.get(&peer).copied();
        if neighbour.is_none() && self.config.policy.check(peer).is_err() {
            self.stats.refused_peer += 1;
            return;
        }
        if !self.spend(now, &user, data.len()) {
            return;
        }
        self.stats.packets_to_peers += 1;
        self.stats.bytes_to_peers += data.len() as u64;
        match neighbour {
            // From one allocation here to another: no need to go out, where a NAT in front of this
            // machine might not let it in again.
            Some(neighbour) => self.peer_packet(now, neighbour, relayed, data, out),
            None => out.push(Output::ToPeer { relay, peer, data }),
        }
    }

    /// Whether a permission for `peer` may be given: by policy, and of the allocation's family.
    fn check_peer(&mut self, client: Client, peer: IpAddr) -> Result<(), Code> {
        let is_ipv6 = self.allocations.get(&client).is_some_and(|it| it.relayed.is_ipv6());
        if peer.is_ipv6() != is_ipv6 {
            return Err(ErrorCode::PEER_ADDRESS_FAMILY_MISMATCH);
        }
        // Behind an address of ours are other allocations, whatever the network that it is in.
        let is_relay = !peer.is_loopback() && self.is_relay_ip(peer);
        if !is_relay && self.config.policy.check_ip(peer).is_err() {
            self.stats.refused_peer += 1;
            return Err(ErrorCode::FORBIDDEN);
        }
        Ok(())
    }

    fn is_relay_ip(&self, ip: IpAddr) -> bool {
        let from = SocketAddr::new(ip, 0);
        self.by_relayed.range(from..).next().is_some_and(|(relayed, _)| relayed.ip() == ip)
    }

    fn own_allocation(
        &mut self,
        client: Client,
        identity: &Identity,
    ) -> Result<&mut Allocation, Code> {
        let allocation = self.allocations.get_mut(&client);
        let allocation = allocation.ok_or(ErrorCode::ALLOCATION_MISMATCH)?;
        if allocation.identity.username != identity.username {
            return Err(ErrorCode::WRONG_CREDENTIALS);
        }
        Ok(allocation)
    }

    fn lifetime(&self, request: &Message<'_>) -> Duration {
        let wanted = request
            .attribute::<Lifetime>()
            .map_or(LIFETIME_DEFAULT, |lifetime| Duration::from_secs(lifetime.seconds().into()));
        wanted.max(LIFETIME_DEFAULT).min(self.config.limits.lifetime_max)
    }

    /// Takes `bytes` from the budgets of a user and of all.
    fn spend(&mut self, now: Now, user: &Arc<str>, bytes: usize) -> bool {
        let limits = self.config.limits;
        // A second's worth at once, but at least a large packet.
        let rate = |per_second: u64| Rate { per_second, burst: per_second.max(0x1_0000) };
        let Some(state) = self.users.get_mut(user) else { return false };
        let per_user = rate(limits.bytes_per_second_per_user);
        if !state.bucket.take(now.time, bytes as u64, per_user) {
            self.stats.dropped_user_rate += 1;
            return false;
        }
        if !self.total.take(now.time, bytes as u64, rate(limits.bytes_per_second)) {
            self.stats.dropped_total_rate += 1;
            return false;
        }
        true
    }

    fn indication(&mut self, peer: SocketAddr, data: &[u8]) -> Vec<u8> {
        self.next_indication += 1;
        let transaction = TransactionId::from(self.next_indication);
        let kind = MessageType::from_class_method(MessageClass::Indication, DATA);
        let size = MessageWriteVec::with_capacity(data.len() + 64);
        let mut message = Message::builder(kind, transaction, size);
        add(&mut message, &XorPeerAddress::new(peer, transaction));
        add(&mut message, &Data::new(data));
        message.finish()
    }
}

#[cfg(test)]
impl Server {
    pub(super) fn config_mut(&mut self) -> &mut ServerConfig {
        &mut self.config
    }

    /// Checks that all tables tell of the same allocations.
    pub(super) fn assert_consistent(&self) {
        let count = self.allocations.len();
        assert_eq!(count, self.relays.len());
        assert_eq!(count, self.by_relayed.len());
        assert_eq!(count, self.expiries.len());
        let counted = count + self.pending.len();
        assert_eq!(counted, self.users.values().map(|state| state.allocations).sum::<usize>());
        assert_eq!(counted, self.places.values().sum::<usize>());
        assert!(self.users.values().all(|state| state.allocations > 0));
        for allocation in self.allocations.values() {
            assert_eq!(allocation.channels.len(), allocation.numbers.len());
        }
    }
}

impl Allocation {
    fn is_permitted(&self, now: Time, peer: IpAddr) -> bool {
        self.permissions.get(&peer).is_some_and(|expires| *expires > now)
    }

    /// Installs or renews permissions, if there is room for all.
    fn permit(&mut self, now: Time, peers: &[IpAddr], peers_max: usize) -> bool {
        self.permissions.retain(|_, expires| *expires > now);
        let new: BTreeSet<&IpAddr> =
            peers.iter().filter(|peer| !self.permissions.contains_key(peer)).collect();
        if self.permissions.len() + new.len() > peers_max {
            return false;
        }
        for peer in peers {
            self.permissions.insert(*peer, now + PERMISSION_LIFETIME);
        }
        true
    }

    fn channel(&self, now: Time, number: u16) -> Option<SocketAddr> {
        let (peer, expires) = self.channels.get(&number)?;
        (*expires > now).then_some(*peer)
    }

    fn forget_channels(&mut self, now: Time) {
        let numbers = &mut self.numbers;
        self.channels.retain(|_, (peer, expires)| {
            let is_alive = *expires > now;
            if !is_alive {
                numbers.remove(peer);
            }
            is_alive
        });
    }
}

fn channel_packet(number: u16, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(data.len()).unwrap_or(0);
    // Room for padding on streams.
    let mut packet = Vec::with_capacity(CHANNEL_HEADER_BYTES + data.len() + 3);
    packet.extend(number.to_be_bytes());
    packet.extend(length.to_be_bytes());
    packet.extend_from_slice(data);
    packet
}

fn seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
}

fn signed(mut message: MessageWriteVec, key: &IntegrityKey) -> Vec<u8> {
    let written = message.add_message_integrity_with_key(key, IntegrityAlgorithm::Sha1);
    debug_assert!(written.is_ok(), "{written:?}");
    finish(message)
}

fn add_error(message: &mut MessageWriteVec, code: Code) {
    if let Ok(error) = ErrorCode::builder(code).build() {
        add(message, &error);
    }
}

fn check_known(request: &Message<'_>, known: &[AttributeType]) -> Result<(), Code> {
    let is_unknown = |kind: AttributeType| {
        kind.comprehension_required() && !KNOWN.contains(&kind) && !known.contains(&kind)
    };
    let has_unknown = request.iter_attributes().any(|(_, it)| is_unknown(it.get_type()));
    if has_unknown { Err(ErrorCode::UNKNOWN_ATTRIBUTE) } else { Ok(()) }
}

/// What [`check_known`] found, for the answer.
fn unknown(request: &Message<'_>) -> Vec<AttributeType> {
    let known = [
        RequestedTransport::TYPE,
        Lifetime::TYPE,
        EvenPort::TYPE,
        ReservationToken::TYPE,
        RequestedAddressFamily::TYPE,
        XorPeerAddress::TYPE,
        ChannelNumber::TYPE,
    ];
    let kinds = request.iter_attributes().map(|(_, attribute)| attribute.get_type());
    let is_unknown = |kind: &AttributeType| {
        kind.comprehension_required() && !KNOWN.contains(kind) && !known.contains(kind)
    };
    kinds.filter(is_unknown).take(UNKNOWN_MAX).collect()
}

fn required<'a, A: AttributeFromRaw<'a> + AttributeStaticType>(
    message: &'a Message<'a>,
) -> Result<A, Code> {
    message.attribute::<A>().map_err(|_| ErrorCode::BAD_REQUEST)
}

fn optional<'a, A: AttributeFromRaw<'a> + AttributeStaticType>(
    message: &'a Message<'a>,
) -> Result<Option<A>, Code> {
    if message.has_attribute(A::TYPE) { required(message).map(Some) } else { Ok(None) }
}
