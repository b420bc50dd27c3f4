//! STUN and TURN: whatever packets come, from clients and peers.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use macula_nat::report::{Check, CheckConfig, Patience, Socket, StunServer};
use macula_nat::stun::{Binding, Kind, Listener, classify, frame_length};
use macula_nat::turn::{
    Client, Issuer, Limits, ListenerId, Now, Output, PeerPolicy, RelayId, Server, ServerConfig,
};
use macula_proto::Time;
use stun_types::attribute::{Nonce, Realm, Username};
use stun_types::message::{
    IntegrityAlgorithm, LongTermKeyCredentials, Message, MessageClass, MessageType, MessageWrite,
    MessageWriteExt, MessageWriteVec, Method, TransactionId,
};

use crate::script::Script;

const UNIX: u64 = 1_800_000_000;
const REALM: &str = "fuzz";
const ALLOCATIONS_MAX: usize = 3;

/// The input is steps of four bytes, some with a packet behind.
///
/// Nothing panics. What a relay sends goes where it may, from a socket that is open; what clients
/// are sent is STUN or ChannelData; there are never more allocations than allowed, and after a
/// while without refreshing there are none, and no sockets.
pub fn stun(data: &[u8]) {
    let mut script = Script::new(data);
    let mut world = World::new();
    while let Some([action, number, length, extra]) = script.step() {
        let client = Client {
            listener: ListenerId(u32::from(number >> 4 & 1)),
            remote: SocketAddr::from(([11, 0, 0, number & 3], 5000)),
        };
        let bytes = script.take(usize::from(length));
        match action % 8 {
            0 => world.packet(client, bytes),
            1 => world.packet(client, &header(extra, bytes)),
            2..=4 => world.signed(client, u16::from(extra % 12), number & 0x20 != 0, bytes),
            5 => world.peer(RelayId(u64::from(number)), extra, bytes),
            6 => world.pass(Duration::from_secs(u64::from(length) * u64::from(extra))),
            _ => world.gone(client),
        }
    }
    world.pass(Duration::from_secs(10_000));
    assert_eq!(world.server.stats().allocations, 0);
    assert!(world.relays.is_empty(), "sockets are left: {:?}", world.relays);
}

/// A STUN header of any class and method before `bytes`.
fn header(kind: u8, bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).unwrap_or(0) & !3;
    let mut packet = vec![kind >> 7, kind & 0x1f];
    packet.extend(length.to_be_bytes());
    packet.extend([0x21, 0x12, 0xa4, 0x42]);
    packet.extend([7; 12]);
    packet.extend(bytes.iter().take(usize::from(length)));
    packet
}

struct World {
    server: Server,
    issuer: Issuer,
    policy: PeerPolicy,
    binding: Binding,
    time: Duration,
    relays: BTreeSet<RelayId>,
    transaction: u128,
}

impl World {
    fn new() -> Self {
        let issuer = Issuer::new(b"secret", Duration::from_secs(5_000));
        let policy = PeerPolicy::default();
        let config = ServerConfig {
            realm: REALM.to_owned(),
            issuer: issuer.clone(),
            policy: policy.clone(),
            limits: Limits {
                allocations_max: ALLOCATIONS_MAX,
                peers_per_allocation_max: 4,
                answers_per_source: 1_000_000,
                ..Limits::default()
            },
            has_ipv4: true,
            has_ipv6: true,
            seed: [3; 32],
        };
        let mut binding = Binding::default();
        for (index, port) in [3478, 3479].into_iter().enumerate() {
            binding.addresses[index] = Some(SocketAddr::from(([9, 9, 9, 9], port)));
        }
        let server = Server::new(Now { time: Time::START, unix: UNIX }, config);
        Self {
            server,
            issuer,
            policy,
            binding,
            time: Duration::ZERO,
            relays: BTreeSet::new(),
            transaction: 0,
        }
    }

    fn now(&self) -> Now {
        Now { time: Time::START + self.time, unix: UNIX + self.time.as_secs() }
    }

    fn packet(&mut self, client: Client, packet: &[u8]) {
        self.exchange(client, packet);
        if classify(packet) == Kind::Stun {
            assert_eq!(frame_length(packet), Ok(Some(packet.len())));
        }
        if let Some(answer) = self.binding.answer(packet, client.remote, Listener::PRIMARY) {
            assert_eq!(classify(&answer.data), Kind::Stun);
            assert!(answer.data.len() <= packet.len() + 128, "an amplifier");
        }
        check(client, packet);
    }

    /// Gives a packet to the server; returns what the client is sent last.
    fn exchange(&mut self, client: Client, packet: &[u8]) -> Option<Vec<u8>> {
        let now = self.now();
        let mut out = Vec::new();
        self.server.client_packet(now, client, packet, &mut out);
        let answer = self.perform(out);
        assert!(self.server.stats().allocations as usize <= ALLOCATIONS_MAX);
        assert_eq!(self.server.stats().allocations as usize, self.relays.len());
        answer
    }

    fn perform(&mut self, out: Vec<Output<'_>>) -> Option<Vec<u8>> {
        let mut answer = None;
        for output in out {
            match output {
                Output::ToClient { data, .. } => {
                    assert_ne!(classify(&data), Kind::Other);
                    answer = Some(data);
                }
                Output::ToPeer { relay, peer, .. } => {
                    assert!(self.relays.contains(&relay), "a relay without a socket");
                    assert_eq!(self.policy.check(peer), Ok(()), "{peer}");
                }
                Output::Bind { relay, is_ipv6, .. } => {
                    assert!(self.relays.insert(relay));
                    let port = 49_152 + u16::try_from(relay.0 % 10_000).unwrap_or(0);
                    let relayed: SocketAddr = match is_ipv6 {
                        false => ([9, 9, 9, 9], port).into(),
                        true => ([0x2606u16, 0, 0, 0, 0, 0, 0, 9], port).into(),
                    };
                    let mut more = Vec::new();
                    self.server.bound(self.now(), relay, Some(relayed), &mut more);
                    answer = self.perform(more);
                }
                Output::Close { relay } => assert!(self.relays.remove(&relay), "closed twice"),
                _ => {}
            }
        }
        answer
    }

    /// A request with right credentials around whatever attributes.
    fn signed(&mut self, client: Client, method: u16, is_bob: bool, attributes: &[u8]) {
        let challenge = self.exchange(client, &header(3, &[]));
        let nonce = challenge.as_deref().and_then(|data| {
            let message = Message::from_bytes(data).ok()?;
            message.attribute::<Nonce>().ok().map(|nonce| nonce.nonce().to_owned())
        });
        let Some(nonce) = nonce else { return };
        let user = if is_bob { "bob" } else { "alice" };
        let username = format!("{}:{user}", UNIX + 5_000);
        let password = self.issuer.password(&username);
        self.transaction += 1;
        let transaction = TransactionId::from(self.transaction);
        let kind = MessageType::from_class_method(MessageClass::Request, Method::new(method));
        let mut request = Message::builder(kind, transaction, MessageWriteVec::new());
        let mut packet = attributes.chunks(8);
        // Attributes as type, length and up to four bytes of value.
        for chunk in packet.by_ref() {
            let Some((head, value)) = chunk.split_first_chunk::<4>() else { break };
            let kind = stun_types::attribute::AttributeType::new(u16::from_be_bytes([
                head[0] & 0x80,
                head[1],
            ]));
            let bytes: Vec<u8> =
                value.iter().copied().cycle().take(usize::from(head[3] % 24)).collect();
            let bytes = if value.is_empty() { Vec::new() } else { bytes };
            if !matches!(kind.value(), 0x0006 | 0x0008 | 0x0014 | 0x0015 | 0x001c | 0x8028) {
                let raw = stun_types::attribute::RawAttribute::new(kind, &bytes);
                drop(request.add_attribute(&raw));
            }
        }
        let credentials = LongTermKeyCredentials::new(username.clone(), password, REALM.to_owned());
        let (Ok(name), Ok(realm), Ok(nonce)) =
            (Username::new(&username), Realm::new(REALM), Nonce::new(&nonce))
        else {
            return;
        };
        drop(request.add_attribute(&name));
        drop(request.add_attribute(&realm));
        drop(request.add_attribute(&nonce));
        drop(request.add_message_integrity(&credentials.into(), IntegrityAlgorithm::Sha1));
        let packet = request.finish();
        self.exchange(client, &packet);
        self.exchange(client, &packet);
    }

    fn peer(&mut self, relay: RelayId, peer: u8, data: &[u8]) {
        let mut out = Vec::new();
        let from = SocketAddr::from(([8, 8, 8, peer], 53));
        self.server.peer_packet(self.now(), relay, from, data, &mut out);
        self.perform(out);
    }

    fn pass(&mut self, time: Duration) {
        self.time += time;
        let mut out = Vec::new();
        self.server.handle_timeout(self.now(), &mut out);
        self.perform(out);
    }

    fn gone(&mut self, client: Client) {
        let mut out = Vec::new();
        self.server.client_gone(client, &mut out);
        self.perform(out);
    }
}

/// A NAT check that gets the packet as an answer.
fn check(client: Client, packet: &[u8]) {
    let server = StunServer { name: String::new(), address: client.remote, other_port: Some(1) };
    let config = CheckConfig {
        servers: vec![server],
        main: Some(SocketAddr::from(([10, 0, 0, 1], 1))),
        quiet: Some(SocketAddr::from(([10, 0, 0, 1], 2))),
        v6: None,
        patience: Patience::default(),
        seed: [5; 32],
    };
    let mut check = Check::new(Time::START, config);
    check.handle_packet(Time::START, Socket::Main, client.remote, packet);
    assert_eq!((check.ignored(), check.report().mapped), (1, None), "nobody can guess an id");
}
