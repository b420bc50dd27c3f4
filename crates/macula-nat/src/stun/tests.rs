use std::net::SocketAddr;

use stun_types::attribute::{ErrorCode, RawAttribute, UnknownAttributes, XorMappedAddress};
use stun_types::message::{BINDING, Message, MessageWrite, MessageWriteExt, MessageWriteVec};

use super::*;

const CLIENT: &str = "192.0.2.9:1234";

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn server(listeners: &[(Listener, &str)]) -> Binding {
    let mut binding = Binding::default();
    for (listener, address) in listeners {
        binding.addresses[listener.index()] = Some(addr(address));
    }
    binding
}

fn four() -> Binding {
    server(&[
        (Listener::PRIMARY, "198.51.100.1:3478"),
        (Listener::OTHER_PORT, "198.51.100.1:3479"),
        (Listener::OTHER_IP, "198.51.100.2:3478"),
        (Listener::OTHER_BOTH, "198.51.100.2:3479"),
    ])
}

fn request(attributes: &[(AttributeType, &[u8])]) -> Vec<u8> {
    let mut message = Message::builder_request(BINDING, MessageWriteVec::new());
    for (kind, value) in attributes {
        message.add_attribute(&RawAttribute::new(*kind, value)).unwrap();
    }
    message.add_fingerprint().unwrap();
    message.finish()
}

fn change(flags: u32) -> Vec<u8> {
    request(&[(CHANGE_REQUEST, &flags.to_be_bytes())])
}

#[test]
fn packets_are_told_apart_by_their_first_bytes() {
    let stun = request(&[]);
    assert_eq!(classify(&stun), Kind::Stun);
    assert_eq!(classify(&stun[..stun.len() - 1]), Kind::Other, "cut");
    assert_eq!(classify(&[&stun[..], &[0]].concat()), Kind::Other, "more than it says");
    assert_eq!(classify(&[0x40, 0, 0, 2, 1, 2]), Kind::Channel { number: 0x4000, length: 2 });
    assert_eq!(classify(&[0x40, 0, 0, 3, 1, 2]), Kind::Other);
    for first in [0x80, 0xc0, 0xff] {
        assert_eq!(classify(&[first; 40]), Kind::Other);
    }
    assert_eq!(classify(&[0; 40]), Kind::Other, "no cookie");
    assert_eq!(classify(&[]), Kind::Other);
}

#[test]
fn frames_of_a_stream_are_found_as_soon_as_their_length_is_there() {
    let stun = request(&[]);
    assert_eq!(frame_length(&stun[..3]), Ok(None));
    assert_eq!(frame_length(&stun[..7]), Ok(None));
    assert_eq!(frame_length(&stun[..8]), Ok(Some(stun.len())));
    assert_eq!(frame_length(&[0x40, 0, 0, 5]), Ok(Some(12)));
    assert_eq!(frame_length(b"\x16\x03\x01\x02\x00\x01\x00\x01"), Err(NotStun));
    assert_eq!(frame_length(&[0, 1, 0, 0, 9, 9, 9, 9]), Err(NotStun));
}

#[test]
fn a_request_is_told_where_it_came_from() {
    let packet = request(&[]);
    let answer = four().answer(&packet, addr(CLIENT), Listener::PRIMARY).unwrap();
    assert_eq!((answer.from, answer.to), (Listener::PRIMARY, addr(CLIENT)));
    let response = parse(&answer.data).unwrap();
    let mapped = response.attribute::<XorMappedAddress>().unwrap();
    assert_eq!(mapped.addr(response.transaction_id()), addr(CLIENT));
    assert_eq!(response.transaction_id(), parse(&packet).unwrap().transaction_id());
    assert_eq!(read_address(&response, OTHER_ADDRESS), Some(addr("198.51.100.2:3479")));
    assert_eq!(read_address(&response, RESPONSE_ORIGIN), Some(addr("198.51.100.1:3478")));
}

#[test]
fn answers_come_from_where_they_were_asked_to() {
    let check = |at: Listener, flags, expected: Listener| {
        let answer = four().answer(&change(flags), addr(CLIENT), at).unwrap();
        assert_eq!(answer.from, expected, "{at:?} {flags}");
    };
    check(Listener::PRIMARY, 0, Listener::PRIMARY);
    check(Listener::PRIMARY, CHANGE_PORT, Listener::OTHER_PORT);
    check(Listener::PRIMARY, CHANGE_IP, Listener::OTHER_IP);
    check(Listener::PRIMARY, CHANGE_IP | CHANGE_PORT, Listener::OTHER_BOTH);
    check(Listener::OTHER_BOTH, CHANGE_IP | CHANGE_PORT, Listener::PRIMARY);
    let packet = request(&[(RESPONSE_PORT, &[0x10, 0, 0, 0])]);
    let answer = four().answer(&packet, addr(CLIENT), Listener::PRIMARY).unwrap();
    assert_eq!(answer.to, addr("192.0.2.9:4096"));
}

#[test]
fn with_one_ip_address_only_the_port_can_change_and_nothing_is_promised() {
    let server = server(&[
        (Listener::PRIMARY, "198.51.100.1:3478"),
        (Listener::OTHER_PORT, "198.51.100.1:3479"),
    ]);
    let answer = |packet: &[u8]| server.answer(packet, addr(CLIENT), Listener::PRIMARY).unwrap();
    assert_eq!(answer(&change(CHANGE_PORT)).from, Listener::OTHER_PORT);
    let plain = answer(&request(&[]));
    assert_eq!(read_address(&parse(&plain.data).unwrap(), OTHER_ADDRESS), None);
    let refused = answer(&change(CHANGE_IP));
    let response = parse(&refused.data).unwrap();
    assert_eq!(response.attribute::<ErrorCode>().unwrap().code(), 420);
    assert!(response.attribute::<UnknownAttributes>().unwrap().has_attribute(CHANGE_REQUEST));
}

#[test]
fn an_answer_is_padded_as_its_request_but_not_beyond() {
    let length = |padding: usize| {
        let packet = request(&[(PADDING, &vec![0; padding])]);
        let answer = four().answer(&packet, addr(CLIENT), Listener::PRIMARY).unwrap();
        parse(&answer.data).unwrap().raw_attribute(PADDING).unwrap().value.len()
    };
    assert_eq!((length(64), length(9_000)), (64, 1_500));
}

#[test]
fn only_requests_are_answered_and_unknown_ones_refused() {
    let unknown = request(&[(AttributeType::new(0x7001), &[]), (AttributeType::new(0x8fff), &[1])]);
    let answer = four().answer(&unknown, addr(CLIENT), Listener::PRIMARY).unwrap();
    let response = parse(&answer.data).unwrap();
    assert_eq!(response.attribute::<ErrorCode>().unwrap().code(), 420);
    let malformed = request(&[(CHANGE_REQUEST, &[0, 0])]);
    let answer = four().answer(&malformed, addr(CLIENT), Listener::PRIMARY).unwrap();
    assert_eq!(parse(&answer.data).unwrap().attribute::<ErrorCode>().unwrap().code(), 400);
    let own = four().answer(&request(&[]), addr(CLIENT), Listener::PRIMARY).unwrap();
    assert_eq!(four().answer(&own.data, addr(CLIENT), Listener::PRIMARY), None, "no loops");
    assert_eq!(four().answer(b"hello", addr(CLIENT), Listener::PRIMARY), None);
}
