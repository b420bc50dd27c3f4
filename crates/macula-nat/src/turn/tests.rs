//! The server by script, and with a client of another hand.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use macula_proto::Time;
use proptest::prelude::*;
use stun_types::attribute::{AttributeStaticType, AttributeType, XorMappedAddress};
use stun_types::attribute::{ErrorCode, MessageIntegrity, Nonce, RawAttribute, Realm, Username};
use stun_types::message::{
    IntegrityAlgorithm, LongTermKeyCredentials, Message, MessageClass, MessageType, MessageWrite,
    MessageWriteExt, MessageWriteVec, Method, TransactionId,
};
use stun_types::prelude::AttributeWrite;
use turn_client_proto::api::{TurnClientApi, TurnConfig, TurnEvent, TurnRecvRet};
use turn_client_proto::udp::TurnClientUdp;
use turn_types::attribute::{
    ChannelNumber, Data, EvenPort, Lifetime, RequestedTransport, XorPeerAddress, XorRelayedAddress,
};
use turn_types::message::{ALLOCATE, CHANNEL_BIND, CREATE_PERMISSION, DATA, REFRESH, SEND};
use turn_types::{TransportType, TurnCredentials};

use super::*;

const REALM: &str = "macula";
const UNIX: u64 = 1_800_000_000;
const PEER: &str = "8.8.8.8:53";

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn client(number: u16) -> Client {
    let remote = SocketAddr::from(([11, 0, (number >> 8) as u8, number as u8], 5000));
    Client { listener: ListenerId(0), remote }
}

/// What came out, owned.
#[derive(Clone, Debug, PartialEq)]
enum Out {
    ToClient(Client, Vec<u8>),
    ToPeer(RelayId, SocketAddr, Vec<u8>),
    Close(RelayId),
}

/// A server whose sockets are had at once.
struct World {
    server: Server,
    issuer: Issuer,
    time: Duration,
    relay_ip: IpAddr,
    has_sockets: bool,
    transaction: u128,
}

impl World {
    fn new(change: impl FnOnce(&mut ServerConfig)) -> Self {
        let issuer = Issuer::new(b"secret", Duration::from_secs(3600 * 24));
        let mut config = ServerConfig {
            realm: REALM.to_owned(),
            issuer: issuer.clone(),
            policy: PeerPolicy::default(),
            limits: Limits::default(),
            has_ipv4: true,
            has_ipv6: false,
            seed: [3; 32],
        };
        change(&mut config);
        let now = Now { time: Time::START, unix: UNIX };
        Self {
            server: Server::new(now, config),
            issuer,
            time: Duration::ZERO,
            relay_ip: "9.9.9.9".parse().unwrap(),
            has_sockets: true,
            transaction: 0,
        }
    }

    fn now(&self) -> Now {
        Now { time: Time::START + self.time, unix: UNIX + self.time.as_secs() }
    }

    fn pass(&mut self, seconds: u64) -> Vec<Out> {
        self.time += Duration::from_secs(seconds);
        let mut out = Vec::new();
        self.server.handle_timeout(self.now(), &mut out);
        let out = out.into_iter().map(own).collect();
        self.check();
        out
    }

    fn packet(&mut self, client: Client, packet: &[u8]) -> Vec<Out> {
        let now = self.now();
        let mut out = Vec::new();
        self.server.client_packet(now, client, packet, &mut out);
        let mut all = Vec::new();
        for output in out {
            let Output::Bind { relay, port, .. } = output else {
                all.push(own(output));
                continue;
            };
            let number = 49_152 + 2 * relay.0 as u16 + u16::from(port == Port::Any);
            let relayed = self.has_sockets.then(|| SocketAddr::new(self.relay_ip, number));
            let mut more = Vec::new();
            self.server.bound(now, relay, relayed, &mut more);
            all.extend(more.into_iter().map(own));
        }
        self.check();
        all
    }

    fn peer(&mut self, relay: RelayId, peer: &str, data: &[u8]) -> Vec<Out> {
        let mut out = Vec::new();
        self.server.peer_packet(self.now(), relay, addr(peer), data, &mut out);
        out.into_iter().map(own).collect()
    }

    /// Sums that must agree whatever happens.
    fn check(&self) {
        let stats = self.server.stats();
        self.server.assert_consistent();
        assert!(stats.users <= stats.allocations || !self.has_sockets, "{stats:?}");
    }

    fn key(&self, username: &str) -> LongTermKeyCredentials {
        let password = self.issuer.password(username);
        LongTermKeyCredentials::new(username.to_owned(), password, REALM.to_owned())
    }

    fn nonce(&mut self, client: Client) -> String {
        let request = self.bare(ALLOCATE, &[]).finish();
        let out = self.packet(client, &request);
        let [Out::ToClient(_, answer)] = &out[..] else { panic!("no challenge: {out:?}") };
        let answer = Message::from_bytes(answer).unwrap();
        assert_eq!(answer.attribute::<ErrorCode>().unwrap().code(), 401);
        assert_eq!(answer.attribute::<Realm>().unwrap().realm(), REALM);
        answer.attribute::<Nonce>().unwrap().nonce().to_owned()
    }

    fn bare(&mut self, method: Method, attributes: &[&dyn AttributeWrite]) -> MessageWriteVec {
        self.transaction += 1;
        let kind = MessageType::from_class_method(MessageClass::Request, method);
        let transaction = TransactionId::from(self.transaction);
        let mut request = Message::builder(kind, transaction, MessageWriteVec::new());
        for attribute in attributes {
            request.add_attribute(*attribute).unwrap();
        }
        request
    }

    fn signed(
        &mut self,
        (client, username): (Client, &str),
        method: Method,
        attributes: &[&dyn AttributeWrite],
    ) -> Vec<u8> {
        let nonce = self.nonce(client);
        let key = self.key(username);
        let mut request = self.bare(method, attributes);
        request.add_attribute(&Username::new(username).unwrap()).unwrap();
        request.add_attribute(&Realm::new(REALM).unwrap()).unwrap();
        request.add_attribute(&Nonce::new(&nonce).unwrap()).unwrap();
        request.add_message_integrity(&key.into(), IntegrityAlgorithm::Sha1).unwrap();
        request.finish()
    }

    /// The code of the answer, 0 for success; its integrity is checked when it has one.
    fn ask(
        &mut self,
        who: (Client, &str),
        method: Method,
        attributes: &[&dyn AttributeWrite],
    ) -> (u16, Vec<Out>) {
        let request = self.signed(who, method, attributes);
        let out = self.packet(who.0, &request);
        let mut answers = out.iter().filter_map(|out| match out {
            Out::ToClient(to, data) if *to == who.0 => Some(data),
            _ => None,
        });
        let answer = answers.next_back().unwrap_or_else(|| panic!("no answer: {out:?}"));
        let answer = Message::from_bytes(answer).unwrap();
        if answer.has_attribute(MessageIntegrity::TYPE) {
            answer.validate_integrity(&self.key(who.1).into()).unwrap();
        }
        let code = match answer.class() {
            MessageClass::Success => 0,
            _ => answer.attribute::<ErrorCode>().unwrap().code(),
        };
        (code, out)
    }

    fn allocate(&mut self, client: Client, username: &str) -> u16 {
        self.ask((client, username), ALLOCATE, &[&udp()]).0
    }

    fn permit(&mut self, who: (Client, &str), peer: &str) -> u16 {
        let peer = XorPeerAddress::new(addr(peer), TransactionId::from(self.transaction + 2));
        self.ask(who, CREATE_PERMISSION, &[&peer]).0
    }

    fn bind(&mut self, who: (Client, &str), number: u16, peer: &str) -> u16 {
        let peer = XorPeerAddress::new(addr(peer), TransactionId::from(self.transaction + 2));
        self.ask(who, CHANNEL_BIND, &[&ChannelNumber::new(number), &peer]).0
    }

    fn send(&mut self, client: Client, peer: &str, data: &[u8]) -> Vec<Out> {
        let transaction = TransactionId::from(77);
        let kind = MessageType::from_class_method(MessageClass::Indication, SEND);
        let mut message = Message::builder(kind, transaction, MessageWriteVec::new());
        message.add_attribute(&XorPeerAddress::new(addr(peer), transaction)).unwrap();
        message.add_attribute(&Data::new(data)).unwrap();
        self.packet(client, &message.finish())
    }
}

fn own(output: Output<'_>) -> Out {
    match output {
        Output::ToClient { client, data } => Out::ToClient(client, data),
        Output::ToPeer { relay, peer, data } => Out::ToPeer(relay, peer, data.to_vec()),
        Output::Close { relay } => Out::Close(relay),
        Output::Bind { .. } => panic!("a socket at an odd moment"),
    }
}

fn udp() -> RequestedTransport {
    RequestedTransport::new(RequestedTransport::UDP)
}

fn alice() -> String {
    format!("{}:alice", UNIX + 3600 * 24)
}

#[test]
fn an_allocation_is_made_told_again_and_refused_a_second_time() {
    let mut world = World::new(|_| {});
    let (client, alice) = (client(1), alice());
    let request = world.signed((client, &alice), ALLOCATE, &[&udp()]);
    let made = world.packet(client, &request);
    let [Out::ToClient(_, answer)] = &made[..] else { panic!("{made:?}") };
    let answer = Message::from_bytes(answer).unwrap();
    let relayed = answer.attribute::<XorRelayedAddress>().unwrap();
    assert_eq!(relayed.addr(answer.transaction_id()), addr("9.9.9.9:49153"));
    let mapped = answer.attribute::<XorMappedAddress>().unwrap();
    assert_eq!(mapped.addr(answer.transaction_id()), client.remote);
    assert_eq!(answer.attribute::<Lifetime>().unwrap().seconds(), 600);
    assert_eq!(world.packet(client, &request), made, "the answer may have been lost");
    assert_eq!(world.allocate(client, &alice), 437);
    assert_eq!(world.server.stats().allocated, 1);
}

#[test]
fn wrong_stale_and_expired_credentials_are_refused_with_reason() {
    let mut world = World::new(|_| {});
    let (client, other, alice) = (client(1), client(2), alice());
    let mut request = world.signed((client, &alice), ALLOCATE, &[&udp()]);
    *request.last_mut().unwrap() ^= 1;
    let code = |out: &[Out]| match out {
        [Out::ToClient(_, data)] => {
            Message::from_bytes(data).unwrap().attribute::<ErrorCode>().unwrap().code()
        }
        _ => panic!("{out:?}"),
    };
    assert_eq!(code(&world.packet(client, &request)), 401);
    let old = format!("{UNIX}:alice");
    assert_eq!(world.allocate(client, &old), 401, "expired");
    assert_eq!(world.allocate(client, "alice"), 401, "no expiry");
    let request = world.signed((client, &alice), ALLOCATE, &[&udp()]);
    assert_eq!(code(&world.packet(other, &request)), 438, "of another client");
    world.pass(3_602);
    assert_eq!(code(&world.packet(client, &request)), 438, "too old");
    let stats = world.server.stats();
    assert_eq!((stats.allocated, stats.unauthorized), (0, 3), "{stats:?}");
}

#[test]
fn credentials_that_expire_end_the_allocation_when_it_needs_them() {
    let mut world = World::new(|_| {});
    let (client, name) = (client(1), format!("{}:alice", UNIX + 100));
    assert_eq!(world.allocate(client, &name), 0);
    world.pass(101);
    assert_eq!(world.ask((client, &name), REFRESH, &[]).0, 401);
    assert_eq!(world.pass(500), [Out::Close(RelayId(0))]);
}

#[test]
fn what_is_not_supported_is_said() {
    let mut world = World::new(|_| {});
    let (client, alice) = (client(1), alice());
    let who = (client, alice.as_str());
    assert_eq!(world.ask(who, ALLOCATE, &[]).0, 400);
    let tcp = RequestedTransport::new(RequestedTransport::TCP);
    assert_eq!(world.ask(who, ALLOCATE, &[&tcp]).0, 442);
    let even = |reserve| EvenPort::new(reserve);
    assert_eq!(world.ask(who, ALLOCATE, &[&udp(), &even(true)]).0, 508);
    let fragment = RawAttribute::new(AttributeType::new(0x001a), &[]);
    assert_eq!(world.ask(who, ALLOCATE, &[&udp(), &fragment]).0, 420);
    let v6 = RawAttribute::new(AttributeType::new(0x0017), &[2, 0, 0, 0]);
    assert_eq!(world.ask(who, ALLOCATE, &[&udp(), &v6]).0, 440);
    assert_eq!(world.ask(who, Method::new(0x00a), &[]).0, 400);
    assert_eq!(world.ask(who, REFRESH, &[]).0, 437, "nothing to refresh");
    assert_eq!(world.ask(who, CREATE_PERMISSION, &[]).0, 400);
    world.has_sockets = false;
    assert_eq!(world.allocate(client, &alice), 508);
    assert_eq!(world.server.stats().users, 0);
    world.has_sockets = true;
    assert_eq!(world.ask(who, ALLOCATE, &[&udp(), &even(false)]).0, 0);
}

#[test]
fn quotas_hold_and_what_is_given_back_can_be_had_again() {
    let mut world = World::new(|config| {
        config.limits.allocations_max = 4;
        config.limits.allocations_per_user_max = 2;
        config.limits.allocations_per_address_max = 3;
    });
    let (alice, bob, carol) = (alice(), alice() + "b", alice() + "c");
    let at = |port| Client { remote: SocketAddr::new(client(1).remote.ip(), port), ..client(1) };
    assert_eq!(world.allocate(at(1), &alice), 0);
    assert_eq!(world.allocate(at(2), &alice), 0);
    assert_eq!(world.allocate(at(3), &alice), 486, "of the user");
    assert_eq!(world.allocate(at(3), &bob), 0);
    assert_eq!(world.allocate(at(4), &bob), 486, "of the address");
    assert_eq!(world.allocate(client(9), &bob), 0);
    assert_eq!(world.allocate(client(10), &carol), 508, "of all");
    let stats = world.server.stats();
    assert_eq!((stats.refused_user, stats.refused_address, stats.refused_full), (1, 1, 1));
    assert_eq!(world.ask((at(1), &alice), REFRESH, &[&Lifetime::new(0)]).0, 0);
    assert_eq!(world.allocate(client(10), &carol), 0);
    world.pass(601);
    let stats = world.server.stats();
    assert_eq!((stats.allocations, stats.users, stats.expired), (0, 0, 4), "{stats:?}");
    assert_eq!(world.server.poll_timeout(), None);
}

#[test]
fn data_flows_with_permission_only() {
    let mut world = World::new(|_| {});
    let (client, alice) = (client(1), alice());
    let who = (client, alice.as_str());
    assert_eq!(world.allocate(client, &alice), 0);
    assert_eq!(world.send(client, PEER, b"early"), []);
    assert_eq!(world.peer(RelayId(0), PEER, b"early"), []);
    assert_eq!(world.permit(who, PEER), 0);
    let sent = world.send(client, PEER, b"hello");
    assert_eq!(sent, [Out::ToPeer(RelayId(0), addr(PEER), b"hello".to_vec())]);
    let back = world.peer(RelayId(0), "8.8.8.8:99", b"world");
    let [Out::ToClient(_, packet)] = &back[..] else { panic!("{back:?}") };
    let message = Message::from_bytes(packet).unwrap();
    assert!(message.has_method(DATA) && message.has_class(MessageClass::Indication));
    assert_eq!(message.attribute::<Data<'_>>().unwrap().data(), b"world");
    let peer = message.attribute::<XorPeerAddress>().unwrap();
    assert_eq!(peer.addr(message.transaction_id()), addr("8.8.8.8:99"));
    assert_eq!(world.peer(RelayId(0), "8.8.4.4:53", b"stranger"), []);
    let dropped = world.server.stats().dropped_unpermitted;
    assert_eq!(dropped, 3);
    world.pass(300);
    assert_eq!(world.send(client, PEER, b"late"), []);
    assert_eq!(world.peer(RelayId(0), PEER, b"late"), []);
}

#[test]
fn channels_are_bound_to_one_peer_each_and_spare_headers() {
    let mut world = World::new(|_| {});
    let (client, alice) = (client(1), alice());
    let who = (client, alice.as_str());
    assert_eq!(world.allocate(client, &alice), 0);
    assert_eq!(world.bind(who, 0x3fff, PEER), 400);
    assert_eq!(world.bind(who, 0x4000, PEER), 0);
    assert_eq!(world.bind(who, 0x4000, PEER), 0, "again, to renew it");
    assert_eq!(world.bind(who, 0x4001, PEER), 400, "the peer has one");
    assert_eq!(world.bind(who, 0x4000, "8.8.8.8:54"), 400, "the channel has a peer");
    let packet = [0x40, 0, 0, 2, 7, 8, 0, 0];
    let sent = world.packet(client, &packet);
    assert_eq!(sent, [Out::ToPeer(RelayId(0), addr(PEER), vec![7, 8])]);
    let back = world.peer(RelayId(0), PEER, &[9]);
    assert_eq!(back, [Out::ToClient(client, vec![0x40, 0, 0, 1, 9])]);
    assert_eq!(world.packet(client, &[0x40, 1, 0, 0]), []);
    // The channel lives longer than its permission, which must be renewed.
    world.pass(301);
    assert_eq!(world.packet(client, &packet), []);
    assert_eq!(world.permit(who, PEER), 0);
    assert_eq!(world.packet(client, &packet).len(), 1);
    assert_eq!(world.ask(who, REFRESH, &[]).0, 0);
    world.pass(299);
    assert_eq!(world.packet(client, &packet), [], "the channel has expired");
    assert_eq!(world.bind(who, 0x4001, PEER), 0, "and its peer may have another");
}

#[test]
fn forbidden_peers_are_refused_in_every_form() {
    let mut world = World::new(|_| {});
    let (client, alice) = (client(1), alice());
    let who = (client, alice.as_str());
    assert_eq!(world.allocate(client, &alice), 0);
    for peer in ["127.0.0.1:80", "10.0.0.1:80", "169.254.169.254:80", "[::ffff:127.0.0.1]:80"] {
        assert_eq!(world.permit(who, peer), 403, "{peer}");
        assert_eq!(world.bind(who, 0x4000, peer), 403, "{peer}");
        assert_eq!(world.send(client, peer, b"x"), [], "{peer}");
    }
    assert_eq!(world.permit(who, "[2606:4700::1]:80"), 443, "other family");
    assert_eq!(world.server.stats().refused_peer, 8);
    // Own services are not reached although other allocations at the same address are.
    assert_eq!(world.permit(who, "9.9.9.9:22"), 0);
    world.server.config_mut().policy.own = vec!["9.9.9.9".parse().unwrap()];
    assert_eq!(world.send(client, "9.9.9.9:22", b"x"), []);
}

#[test]
fn two_allocations_of_one_server_reach_each_other() {
    let mut world = World::new(|_| {});
    world.relay_ip = "10.0.0.7".parse().unwrap();
    let (alice, bob) = (alice(), alice() + "b");
    assert_eq!(world.allocate(client(1), &alice), 0);
    assert_eq!(world.allocate(client(2), &bob), 0);
    assert_eq!(world.permit((client(1), &alice), "10.0.0.7:49155"), 0);
    assert_eq!(world.send(client(1), "10.0.0.7:49155", b"x"), [], "not permitted by the other");
    assert_eq!(world.bind((client(2), &bob), 0x4001, "10.0.0.7:49153"), 0);
    let sent = world.send(client(1), "10.0.0.7:49155", b"x");
    assert_eq!(sent, [Out::ToClient(client(2), vec![0x40, 1, 0, 1, b'x'])]);
    assert_eq!(world.send(client(1), "10.0.0.7:22", b"x"), [], "no allocation there");
}

#[test]
fn peers_of_an_allocation_are_bounded() {
    let mut world = World::new(|config| config.limits.peers_per_allocation_max = 3);
    let (client, alice) = (client(1), alice());
    let who = (client, alice.as_str());
    assert_eq!(world.allocate(client, &alice), 0);
    for host in 1..=3 {
        assert_eq!(world.permit(who, &format!("8.8.8.{host}:1")), 0);
    }
    assert_eq!(world.permit(who, "8.8.8.4:1"), 508);
    assert_eq!(world.permit(who, "8.8.8.3:1"), 0, "renewed");
    for port in 1..=3 {
        assert_eq!(world.bind(who, 0x4000 + port, &format!("8.8.8.1:{port}")), 0);
    }
    assert_eq!(world.bind(who, 0x4004, "8.8.8.1:4"), 508);
    assert_eq!(world.server.stats().refused_peers_max, 2);
    world.pass(301);
    assert_eq!(world.permit(who, "8.8.8.4:1"), 0);
}

#[test]
fn bandwidth_is_limited_by_user_and_in_all() {
    let mut world = World::new(|config| {
        config.limits.bytes_per_second_per_user = 100_000;
        config.limits.bytes_per_second = 150_000;
    });
    let (alice, bob) = (alice(), alice() + "b");
    for (number, name) in [(1, &alice), (2, &bob)] {
        assert_eq!(world.allocate(client(number), name), 0);
        assert_eq!(world.bind((client(number), name), 0x4000, PEER), 0);
    }
    let mut packet = vec![0x40, 0, 0x27, 0x10];
    packet.resize(4 + 10_000, 0);
    let passed = |world: &mut World, number| {
        (0..50).map(|_| world.packet(client(number), &packet).len()).sum::<usize>()
    };
    assert_eq!(passed(&mut world, 1), 10);
    assert_eq!(passed(&mut world, 2), 5, "what is left of the total");
    let stats = world.server.stats();
    assert_eq!((stats.dropped_user_rate, stats.dropped_total_rate), (40 + 40, 5), "{stats:?}");
    world.pass(1);
    assert_eq!(world.peer(RelayId(0), PEER, &[0; 50_000]).len(), 1, "both directions count");
    assert_eq!(passed(&mut world, 1), 5);
}

#[test]
fn strangers_are_answered_at_a_limited_rate() {
    let mut world = World::new(|config| config.limits.answers_per_source = 10);
    let request = world.bare(ALLOCATE, &[]).finish();
    let answers = (0..1000).filter(|_| !world.packet(client(1), &request).is_empty()).count();
    assert_eq!(answers, 20);
    assert_eq!(world.packet(client(2), &request).len(), 1);
    assert_eq!(world.server.stats().unanswered, 980);
}

#[test]
fn a_flood_of_allocations_is_bounded_and_harmless() {
    let mut world = World::new(|config| config.limits.allocations_max = 50);
    let request = world.bare(ALLOCATE, &[&udp()]).finish();
    for number in 0..20_000 {
        world.packet(client(number), &request);
    }
    assert_eq!(world.server.stats().allocations, 0, "without credentials nothing is kept");
    for number in 0..200 {
        let user = format!("{}:user{number}", UNIX + 10);
        world.allocate(client(20_000 + number), &user);
    }
    let stats = world.server.stats();
    assert_eq!((stats.allocations, stats.refused_full), (50, 150), "{stats:?}");
}

#[test]
fn the_end_of_a_stream_ends_its_allocation() {
    let mut world = World::new(|_| {});
    assert_eq!(world.allocate(client(1), &alice()), 0);
    let mut out = Vec::new();
    world.server.client_gone(client(1), &mut out);
    world.server.client_gone(client(2), &mut out);
    assert_eq!(out, [Output::Close { relay: RelayId(0) }]);
    assert_eq!(world.server.stats().allocations, 0);
    assert_eq!(world.allocate(client(1), &alice()), 0, "the quotas were given back");
}

/// `turn-client-proto` against this server, in virtual time.
#[test]
fn a_client_of_another_hand_is_served() {
    let mut world = World::new(|_| {});
    let (who, listen, alice) = (client(1), addr("9.9.9.9:3478"), alice());
    let credentials = TurnCredentials::new(&alice, &world.issuer.password(&alice));
    let mut turn = TurnClientUdp::allocate(who.remote, listen, TurnConfig::new(credentials));
    let (mut events, mut received) = (Vec::new(), Vec::new());
    for _ in 0..500 {
        let now = stun_proto::Instant::from_nanos(world.time.as_nanos() as i64);
        let _ = turn.poll(now);
        let mut packets = Vec::new();
        while let Some(transmit) = turn.poll_transmit(now) {
            packets.push(transmit.data.as_ref().to_vec());
        }
        while let Some(event) = turn.poll_event() {
            match &event {
                TurnEvent::AllocationCreated(_, relayed) => {
                    assert_eq!(*relayed, addr("9.9.9.9:49153"));
                    turn.create_permission(TransportType::Udp, addr(PEER).ip(), now).unwrap();
                }
                TurnEvent::PermissionCreated(..) if !events.contains(&"permission") => {
                    events.push("permission");
                    let sent = turn.send_to(TransportType::Udp, addr(PEER), b"one".to_vec(), now);
                    packets.push(sent.unwrap().unwrap().build().data);
                    turn.bind_channel(TransportType::Udp, addr(PEER), now).unwrap();
                }
                TurnEvent::ChannelCreated(..) => {
                    let sent = turn.send_to(TransportType::Udp, addr(PEER), b"two".to_vec(), now);
                    let packet = sent.unwrap().unwrap().build().data;
                    assert_eq!(packet[0] & 0xc0, 0x40);
                    packets.push(packet);
                }
                TurnEvent::PermissionCreated(..) => {}
                other => panic!("{other:?}"),
            }
        }
        for packet in packets {
            for out in world.packet(who, &packet) {
                let back = match out {
                    Out::ToPeer(relay, peer, data) => {
                        assert_eq!(peer, addr(PEER));
                        world.peer(relay, PEER, &data)
                    }
                    other => vec![other],
                };
                for out in back {
                    let Out::ToClient(to, data) = out else { panic!("{out:?}") };
                    let transmit = turn_client_proto::api::Transmit::new(
                        data,
                        TransportType::Udp,
                        listen,
                        to.remote,
                    );
                    if let TurnRecvRet::PeerData(data) = turn.recv(transmit, now) {
                        received.push(data.data().to_vec());
                    }
                }
            }
        }
        if received.len() == 2 {
            break;
        }
        world.time += Duration::from_millis(10);
    }
    assert_eq!(received, [b"one".to_vec(), b"two".to_vec()]);
}

/// Our client against our server, in virtual time; the peer sends back what it gets.
struct Ours {
    world: World,
    allocation: Allocation,
    events: Vec<Event>,
    /// First bytes of what went to the server.
    sent: Vec<u8>,
    is_stream: bool,
}

impl Ours {
    const SERVER: &str = "9.9.9.9:3478";

    fn new(password: Option<&str>) -> Self {
        Self::over(false, password)
    }

    fn over(is_stream: bool, password: Option<&str>) -> Self {
        let world = World::new(|_| {});
        let alice = alice();
        let password = password.map_or_else(|| world.issuer.password(&alice), str::to_owned);
        let config = AllocationConfig {
            is_stream,
            local: client(1).remote,
            server: addr(Self::SERVER),
            username: alice,
            password,
            is_ipv6: false,
        };
        let allocation = Allocation::new(world.now().time, config);
        Self { world, allocation, events: Vec::new(), sent: Vec::new(), is_stream }
    }

    fn now(&self) -> Time {
        self.world.now().time
    }

    fn give(&mut self, packet: &[u8]) {
        self.sent.extend(packet.first());
        assert!(!self.is_stream || packet.len().is_multiple_of(4), "padded");
        for out in self.world.packet(client(1), packet) {
            let back = match out {
                Out::ToPeer(relay, peer, data) => self.world.peer(relay, &peer.to_string(), &data),
                other => vec![other],
            };
            for out in back {
                let Out::ToClient(_, mut data) = out else { continue };
                // A stream pads ChannelData, and cuts where it likes.
                let piece = if self.is_stream { 7 } else { data.len() };
                if self.is_stream {
                    data.resize(data.len().next_multiple_of(4), 0);
                }
                for piece in data.chunks(piece) {
                    self.allocation.handle_input(self.now(), addr(Self::SERVER), piece);
                }
            }
        }
    }

    /// Lets time pass by the client's own timers.
    fn run(&mut self, seconds: u64) {
        let end = self.now() + Duration::from_secs(seconds);
        while self.now() < end {
            while let Some(packet) = self.allocation.poll_transmit(self.now()) {
                self.give(&packet);
            }
            self.events.extend(std::iter::from_fn(|| self.allocation.poll_event()));
            let due = self.allocation.poll_timeout().unwrap_or(end).min(end);
            let step = (due - self.now()).max(Duration::from_millis(1));
            self.world.time += step;
            self.allocation.handle_timeout(self.now());
            self.world.pass(0);
        }
    }

    fn send(&mut self, peer: &str, packet: &[u8]) -> bool {
        let bytes = self.allocation.send(self.now(), addr(peer), packet);
        if let Some(bytes) = &bytes {
            self.give(bytes);
        }
        self.events.extend(std::iter::from_fn(|| self.allocation.poll_event()));
        bytes.is_some()
    }
}

#[test]
fn our_client_allocates_and_keeps_what_it_has_for_hours() {
    let mut ours = Ours::new(None);
    assert!(!ours.allocation.permit(ours.now(), addr(PEER).ip()), "nothing is allocated yet");
    ours.run(2);
    assert_eq!(ours.events, [Event::Allocated(addr("9.9.9.9:49153"))]);
    assert!(!ours.send(PEER, b"early"), "not permitted yet");
    assert!(ours.allocation.permit(ours.now(), addr(PEER).ip()));
    ours.run(1);
    assert_eq!(ours.events.pop(), Some(Event::Permitted(addr(PEER).ip())));
    for hour in 0..3 {
        ours.events.clear();
        assert!(ours.send(PEER, b"there and back"), "hour {hour}");
        let expected = Event::Data { peer: addr(PEER), packet: b"there and back".to_vec() };
        assert!(ours.events.contains(&expected), "hour {hour}: {:?}", ours.events);
        ours.run(3_600);
        assert!(!ours.events.contains(&Event::Failed));
    }
    ours.events.clear();
    ours.allocation.close(ours.now());
    assert_eq!(ours.allocation.poll_event(), None, "the server has not heard of it yet");
    ours.run(1);
    assert_eq!(ours.events, [Event::Failed]);
    assert_eq!(ours.world.server.stats().allocations, 0);
}

#[test]
fn who_gets_much_gets_a_channel() {
    for is_stream in [false, true] {
        gets_a_channel(Ours::over(is_stream, None));
    }
}

fn gets_a_channel(mut ours: Ours) {
    ours.run(2);
    ours.allocation.permit(ours.now(), addr(PEER).ip());
    ours.run(1);
    for _ in 0..40 {
        assert!(ours.send(PEER, b"much"));
        ours.run(1);
    }
    ours.sent.clear();
    ours.events.clear();
    assert!(ours.send(PEER, b"more more"));
    assert_eq!(ours.sent[0] & 0xc0, 0x40, "ChannelData");
    assert_eq!(ours.events, [Event::Data { peer: addr(PEER), packet: b"more more".to_vec() }]);
    // Channels last 10 minutes, permissions 5.
    ours.run(4_000);
    ours.events.clear();
    assert!(ours.send(PEER, b"more more"));
    assert_eq!(ours.events, [Event::Data { peer: addr(PEER), packet: b"more more".to_vec() }]);
}

#[test]
fn our_client_notices_that_it_is_refused_or_that_the_server_is_gone() {
    let mut refused = Ours::new(Some("wrong"));
    refused.run(1);
    assert_eq!(
        (refused.events.as_slice(), refused.allocation.refusal()),
        (&[Event::Failed][..], Some(401))
    );
    let now = Time::START;
    let config = refused.allocation_config();
    let mut silent = Allocation::new(now, config);
    let mut due = Some(now);
    let mut sent = 0;
    while let Some(now) = due.filter(|at| *at < Time::from_micros(60_000_000)) {
        silent.handle_timeout(now + Duration::from_micros(1));
        sent += std::iter::from_fn(|| silent.poll_transmit(now + Duration::from_micros(1))).count();
        due = silent.poll_timeout().map(|at| at.max(now + Duration::from_millis(1)));
    }
    assert_eq!((silent.poll_event(), sent), (Some(Event::Failed), 5));
}

#[test]
fn forbidden_peers_are_told_and_permissions_have_a_limit() {
    let mut ours = Ours::new(None);
    ours.run(2);
    assert!(ours.allocation.permit(ours.now(), addr("127.0.0.1:1").ip()));
    assert!(!ours.allocation.permit(ours.now(), addr("[2001:db8::1]:1").ip()));
    ours.run(1);
    assert_eq!(ours.events.last(), Some(&Event::Forbidden(addr("127.0.0.1:1").ip())));
    let asked = (1..=200u8).filter(|host| {
        let ip = IpAddr::from([8, 8, 4, *host]);
        ours.allocation.permit(Time::START + ours.world.time, ip)
    });
    assert_eq!(asked.count(), PERMISSIONS_MAX);
}

impl Ours {
    fn allocation_config(&self) -> AllocationConfig {
        AllocationConfig {
            is_stream: false,
            local: client(1).remote,
            server: addr(Self::SERVER),
            username: alice(),
            password: String::new(),
            is_ipv6: false,
        }
    }
}

proptest! {
    #[test]
    fn nothing_that_a_server_sends_makes_our_client_fall_over(
        packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..20),
        is_stream in any::<bool>(),
    ) {
        let config = AllocationConfig { is_stream, ..Ours::new(None).allocation_config() };
        let mut allocation = Allocation::new(Time::START, config);
        for packet in packets {
            allocation.handle_input(Time::START, addr(Ours::SERVER), &packet);
            while allocation.poll_transmit(Time::START).is_some() {}
            while allocation.poll_event().is_some() {}
        }
    }

    #[test]
    fn no_packet_makes_it_fall_over(
        packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..20)
    ) {
        let mut world = World::new(|_| {});
        prop_assert_eq!(world.allocate(client(1), &alice()), 0);
        for packet in packets {
            world.packet(client(1), &packet);
            world.peer(RelayId(0), PEER, &packet);
        }
    }

    /// Requests in any order, by several clients and users: sums agree, limits hold.
    #[test]
    fn any_script_keeps_the_books(
        script in prop::collection::vec((0u16..4, 0usize..3, 0u8..7, 0u64..200), 0..60)
    ) {
        let mut world = World::new(|config| {
            config.limits.allocations_max = 3;
            config.limits.allocations_per_user_max = 2;
            config.limits.answers_per_source = 1_000_000;
        });
        let names = [alice(), alice() + "b", format!("{}:carol", UNIX + 300)];
        for (number, name, action, seconds) in script {
            let who = (client(number), names[name].as_str());
            match action {
                0 | 1 => { world.allocate(who.0, who.1); }
                2 => { world.ask(who, REFRESH, &[&Lifetime::new(seconds as u32 % 3 * 700)]); }
                3 => { world.permit(who, &format!("8.8.8.{}:1", seconds % 8)); }
                4 => { world.bind(who, 0x4000 + seconds as u16 % 4, &format!("8.8.8.{}:1", seconds % 8)); }
                5 => { world.send(who.0, "8.8.8.1:1", b"x"); }
                _ => { world.pass(seconds); }
            }
            prop_assert!(world.server.stats().allocations <= 3);
        }
        world.pass(4_000);
        prop_assert_eq!(world.server.stats().users, 0);
    }
}
