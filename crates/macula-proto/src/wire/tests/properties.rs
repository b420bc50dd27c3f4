//! Properties of encoding and decoding.

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;

use super::messages::{any_control, any_hot, any_message, publish};
use super::{CHANNELS, KINDS, bytes_of, decode_payload, home, raw};
use crate::id::StreamId;
use crate::limits;
use crate::wire::frame::HEADER_BYTES;
use crate::wire::message::*;
use crate::wire::{Channel, DecodeError, Writer, allowed, decode, encode, kind, lane_of};

/// Values that an unknown trailing field may have.
fn any_value() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(vec![0xc0]),
        any::<u64>().prop_map(|value| {
            let mut writer = Writer::default();
            writer.uint(value);
            writer.into_bytes()
        }),
        vec(any::<u8>(), 0..40).prop_map(|value| {
            let mut writer = Writer::default();
            writer.bin(&value);
            writer.into_bytes()
        }),
        Just(vec![0x81, 0xa1, b'k', 0x92, 0xcb, 0, 0, 0, 0, 0, 0, 0, 0, 0xd4, 1, 2]),
    ]
}

/// The payload's outer array with more elements than its writer knew.
fn extended(array: &[u8], extra: &[Vec<u8>]) -> Vec<u8> {
    let (first, rest) = array.split_first().expect("an array");
    assert!((0x90..0x9f).contains(first), "an array of few fields");
    let mut longer = vec![0xdc, 0, (first & 0x0f) + extra.len() as u8];
    longer.extend_from_slice(rest);
    longer.extend(extra.iter().flatten());
    longer
}

fn with_head(head: &[u8], body: &[u8]) -> Vec<u8> {
    let head_len = u16::try_from(head.len()).expect("a short head");
    [&head_len.to_be_bytes()[..], head, body].concat()
}

proptest! {
    #[test]
    fn every_message_round_trips(message in any_message()) {
        let frame = encode(&message);
        let bytes = bytes_of(&frame);
        prop_assert_eq!(frame.kind(), message.kind());
        prop_assert_eq!(frame.wire_bytes(), bytes.len());
        for channel in CHANNELS {
            let wanted = if allowed(message.kind(), channel) {
                Ok(message.clone())
            } else {
                Err(DecodeError::WrongChannel { kind: message.kind() })
            };
            prop_assert_eq!(decode(raw(&bytes, channel), channel), wanted);
        }
    }

    #[test]
    fn control_messages_cut_anywhere_are_refused(message in any_control()) {
        let bytes = bytes_of(&encode(&message));
        let payload = &bytes[HEADER_BYTES..];
        for cut in 0..payload.len() {
            prop_assert!(decode_payload(message.kind(), &payload[..cut], Channel::Control).is_err());
        }
    }

    #[test]
    fn hot_messages_cut_in_the_head_are_refused(message in any_hot()) {
        let frame = encode(&message);
        let head = &frame.head[HEADER_BYTES..];
        for cut in 0..head.len() {
            prop_assert!(decode_payload(message.kind(), &head[..cut], home(&message)).is_err());
        }
    }

    #[test]
    fn unknown_trailing_fields_of_control_messages_are_ignored(
        message in any_control(),
        extra in vec(any_value(), 1..5),
    ) {
        let bytes = bytes_of(&encode(&message));
        let payload = extended(&bytes[HEADER_BYTES..], &extra);
        let decoded = decode_payload(message.kind(), &payload, Channel::Control);
        prop_assert_eq!(decoded.as_ref(), Ok(&message));
        // They must be well-formed and all there, and nothing may follow the array.
        let cut = &payload[..payload.len() - 1];
        prop_assert!(decode_payload(message.kind(), cut, Channel::Control).is_err());
        let longer = [&payload[..], &[0]].concat();
        prop_assert_eq!(
            decode_payload(message.kind(), &longer, Channel::Control),
            Err(DecodeError::Trailing(payload.len()))
        );
    }

    #[test]
    fn unknown_trailing_fields_of_hot_heads_are_ignored(
        message in any_hot(),
        extra in vec(any_value(), 1..5),
    ) {
        let frame = encode(&message);
        let head = &frame.head[HEADER_BYTES + 2..];
        let head = match message.kind() {
            kind::PUBLISH | kind::RETAINED | kind::BULK_PUBLISH => {
                [head, &extra.concat()].concat()
            }
            _ => extended(head, &extra),
        };
        let payload = with_head(&head, &frame.body);
        prop_assert_eq!(decode_payload(message.kind(), &payload, home(&message)), Ok(message));
    }

    #[test]
    fn decoding_any_bytes_never_panics(bytes in vec(any::<u8>(), 0..600)) {
        for kind in KINDS {
            for channel in CHANNELS {
                // Twice: as they come, and with a head that fits.
                let head_len = (bytes.len() / 2) as u16;
                let with_head = [&head_len.to_be_bytes()[..], &bytes].concat();
                for payload in [&bytes, &with_head] {
                    let decoded = decode_payload(kind, payload, channel);
                    prop_assert!(allowed(kind, channel) || decoded.is_err());
                }
            }
        }
    }

    #[test]
    fn decoding_a_damaged_message_never_panics(
        message in any_message(),
        damage in vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut payload = bytes_of(&encode(&message))[HEADER_BYTES..].to_vec();
        for (index, byte) in damage {
            let at = index.index(payload.len());
            payload[at] = byte;
        }
        // What is still a message is one that has a normal form.
        if let Ok(other) = decode_payload(message.kind(), &payload, home(&message)) {
            let bytes = bytes_of(&encode(&other));
            let again = decode(raw(&bytes, home(&other)), home(&other));
            prop_assert_eq!(again.map(|message| bytes_of(&encode(&message))), Ok(bytes));
        }
    }

    #[test]
    fn unknown_kinds_are_ignored_on_any_channel(
        kind: u8,
        payload in vec(any::<u8>(), 0..20),
    ) {
        prop_assume!(!KINDS.contains(&kind));
        for channel in CHANNELS {
            prop_assert_eq!(
                decode_payload(kind, &payload, channel),
                Ok(Message::Unknown { kind })
            );
        }
    }

    #[test]
    fn bodies_and_topics_are_not_copied(publish in publish(1)) {
        let bytes = bytes_of(&encode(&Message::Publish(publish)));
        let Ok(Message::Publish(publish)) = decode(raw(&bytes, Channel::Lane(1)), Channel::Lane(1))
        else {
            panic!("a publish");
        };
        let inside = |part: &Bytes| part.is_empty() || bytes.as_ptr_range().contains(&part.as_ptr());
        prop_assert!(inside(&publish.body) && inside(&publish.topic));
        let again = encode(&Message::Publish(publish.clone()));
        prop_assert_eq!(again.body.as_ptr(), publish.body.as_ptr());
    }

    #[test]
    fn lanes_are_within_their_range(topic in vec(any::<u8>(), 0..300)) {
        prop_assert!((1..limits::LANE_COUNT).contains(&lane_of(&topic)));
    }
}

#[test]
fn the_kinds_are_those_of_the_specification() {
    let known = |kind: &u8| CHANNELS.iter().any(|channel| !allowed(*kind, *channel));
    assert_eq!((0..=255).filter(known).collect::<Vec<u8>>(), KINDS);
}

#[test]
fn lanes_that_do_not_exist_carry_nothing_known() {
    for kind in KINDS {
        assert!(!allowed(kind, Channel::Lane(limits::LANE_COUNT)), "{kind:#04x}");
    }
}

#[test]
fn lanes_of_topics_never_change() {
    let lanes = ["a", "b", "sensors.1.temperature", "alerts.fire", "übung"]
        .map(|topic| lane_of(topic.as_bytes()));
    assert_eq!(lanes, [4, 3, 4, 3, 3]);
    let mut topics_per_lane = [0u32; limits::LANE_COUNT as usize];
    for number in 0..4000 {
        topics_per_lane[usize::from(lane_of(format!("room.{number}.light").as_bytes()))] += 1;
    }
    let [calls, publishes @ ..] = topics_per_lane;
    assert_eq!(calls, 0);
    assert!(publishes.iter().all(|count| (900..1100).contains(count)), "{publishes:?}");
}

fn example() -> Publish {
    Publish {
        realm: crate::RealmTag(1),
        publisher: crate::EndpointId::from_bytes([7; 32]),
        epoch: 1,
        first: 1,
        count: 1,
        ttl: 1,
        qos1: false,
        retain: false,
        start: false,
        topic: Bytes::from_static(b"a"),
        body: Bytes::from_static(b"xyz"),
    }
}

fn check_publish(change: impl FnOnce(&mut Publish), wanted: Result<(), DecodeError>) {
    let mut publish = example();
    change(&mut publish);
    let bytes = bytes_of(&encode(&Message::Publish(publish)));
    assert_eq!(decode(raw(&bytes, Channel::Lane(1)), Channel::Lane(1)).map(drop), wanted);
}

#[test]
fn numbers_of_a_publish_are_checked() {
    let first_at = 2 + 8 + 32 + 8;
    let (count_at, ttl_at, topic_at) = (first_at + 8, first_at + 12, first_at + 14);
    let batch = Bytes::from(vec![0; limits::BATCH_MESSAGES_MAX + 1]);
    check_publish(|_| {}, Ok(()));
    check_publish(|p| p.first = 0, Err(DecodeError::Range(first_at)));
    check_publish(|p| p.first = u64::MAX - 1, Ok(()));
    check_publish(|p| p.first = u64::MAX, Err(DecodeError::Range(first_at)));
    check_publish(|p| p.count = 0, Err(DecodeError::Range(count_at)));
    check_publish(|p| (p.count, p.body) = (8192, batch.clone()), Ok(()));
    check_publish(|p| (p.count, p.body) = (8193, batch.clone()), Err(DecodeError::Range(count_at)));
    check_publish(|p| p.count = 4, Err(DecodeError::Truncated(2 + 64 + 3)));
    check_publish(|p| p.ttl = limits::TTL_HOPS, Ok(()));
    check_publish(|p| p.ttl = limits::TTL_HOPS + 1, Err(DecodeError::Range(ttl_at)));
    check_publish(|p| p.topic = Bytes::new(), Err(DecodeError::Empty(topic_at)));
    check_publish(|p| p.topic = Bytes::from_static(&[0xff]), Err(DecodeError::Utf8(topic_at)));
    check_publish(|p| p.topic = vec![b'a'; 255].into(), Ok(()));
}

#[test]
fn retained_and_bulk_messages_stand_alone() {
    let publish = Publish { count: 2, ..example() };
    let bulk = encode(&Message::BulkPublish { id: 1, publish: publish.clone() });
    let retained = encode(&Message::Retained { subscription: 1, publish });
    for (frame, prefix_bytes) in [(bulk, 8), (retained, 4)] {
        assert_eq!(
            decode(raw(&bytes_of(&frame), Channel::Bulk), Channel::Bulk),
            Err(DecodeError::Range(2 + prefix_bytes + 56))
        );
    }
}

#[test]
fn heads_and_bodies_have_limits_of_their_own() {
    let item = |head: &[u8], body_bytes: usize, channel: Channel| {
        decode_payload(kind::REPLY, &with_head(head, &vec![0; body_bytes]), channel).map(drop)
    };
    let head = [0x91, 0x01];
    let (lane, large) = (limits::LANE_MESSAGE_BYTES_MAX, limits::MESSAGE_BYTES_MAX);
    assert_eq!(item(&head, lane, Channel::CALLS), Ok(()));
    assert_eq!(item(&head, lane + 1, Channel::CALLS), Err(DecodeError::TooLong(4)));
    assert_eq!(item(&head, lane + 1, Channel::Stream(StreamId(1))), Err(DecodeError::TooLong(4)));
    assert_eq!(item(&head, large, Channel::Bulk), Ok(()));
    assert_eq!(item(&head, large + 1, Channel::Bulk), Err(DecodeError::TooLong(4)));

    // An unknown field makes the head as long as it may be, and one byte longer.
    let mut padded = vec![0x92, 0x01, 0xc5, 0x07, 0xf9];
    padded.resize(limits::FRAME_HEAD_BYTES_MAX - 2, 0);
    assert_eq!(item(&padded, 0, Channel::CALLS), Ok(()));
    padded[4] += 1;
    padded.push(0);
    assert_eq!(item(&padded, 0, Channel::CALLS), Err(DecodeError::TooLong(0)));
}

fn check_control(kind: u8, write: impl FnOnce(&mut Writer), wanted: Result<(), DecodeError>) {
    let mut writer = Writer::default();
    write(&mut writer);
    assert_eq!(decode_payload(kind, &writer.into_bytes(), Channel::Control).map(drop), wanted);
}

#[test]
fn long_texts_names_and_lists_are_refused() {
    let subscribe = |pattern: String| {
        move |w: &mut Writer| {
            w.array(6);
            w.uint(1u8);
            w.uint(2u8);
            w.str(&pattern);
            w.uint(0u8);
            w.bool(false);
            w.bool(false);
        }
    };
    check_control(kind::SUBSCRIBE, subscribe("a".repeat(255)), Ok(()));
    check_control(kind::SUBSCRIBE, subscribe("a".repeat(256)), Err(DecodeError::TooLong(3)));
    check_control(kind::SUBSCRIBE, subscribe(String::new()), Err(DecodeError::Empty(3)));

    let goodbye = |reason: String| {
        move |w: &mut Writer| {
            w.array(3);
            w.uint(0u8);
            w.str(&reason);
            w.uint(0u8);
        }
    };
    check_control(kind::GOODBYE, goodbye("a".repeat(1024)), Ok(()));
    check_control(kind::GOODBYE, goodbye("a".repeat(1025)), Err(DecodeError::TooLong(2)));

    let realms = |count: u32| {
        move |w: &mut Writer| {
            w.array(1);
            w.array(count);
            for _ in 0..count {
                w.array(2);
                w.bin(&[0; 32]);
                w.nil();
            }
        }
    };
    check_control(kind::REALMS, realms(64), Ok(()));
    check_control(kind::REALMS, realms(65), Err(DecodeError::TooLong(1)));

    let hello = |observed: usize, agent: usize, grant: usize| {
        move |w: &mut Writer| {
            w.array(9);
            w.uint(1u8);
            w.uint(1u8);
            w.uint(0u8);
            w.bool(true);
            w.uint(9u8);
            w.uint(0u8);
            w.str(&"o".repeat(observed));
            w.str(&"a".repeat(agent));
            w.array(1);
            w.array(2);
            w.bin(&[0; 32]);
            w.bin(&vec![0; grant]);
        }
    };
    check_control(kind::HELLO, hello(64, 128, 8192), Ok(()));
    check_control(kind::HELLO, hello(65, 128, 8192), Err(DecodeError::TooLong(7)));
    check_control(kind::HELLO, hello(64, 129, 8192), Err(DecodeError::TooLong(73)));
    check_control(kind::HELLO, hello(64, 128, 8193), Err(DecodeError::TooLong(239)));
}

#[test]
fn enumerations_have_an_unknown_value_or_none() {
    for (kind, at) in [(kind::SUBSCRIBE, 4), (kind::DELIVER_ACK, 1)] {
        let write = |w: &mut Writer| match kind {
            kind::SUBSCRIBE => w.raw(&[0x96, 1, 2, 0xa1, b'a', 3, 0xc2, 0xc2]),
            _ => w.raw(&[0x92, limits::LANE_COUNT, 1]),
        };
        let at = if kind == kind::SUBSCRIBE { at + 1 } else { at };
        check_control(kind, write, Err(DecodeError::Range(at)));
    }
    let goodbye = [0x93, 0xcf, 1, 2, 3, 4, 5, 6, 7, 8, 0xa0, 0x00];
    assert_eq!(
        decode_payload(kind::GOODBYE, &goodbye, Channel::Control),
        Ok(Message::Goodbye {
            code: CloseCode::Unknown,
            reason: String::new(),
            reconnect_in: std::time::Duration::ZERO,
        })
    );
}

#[test]
fn missing_fields_are_refused() {
    for kind in KINDS.into_iter().filter(|kind| allowed(*kind, Channel::Control)) {
        assert_eq!(decode_payload(kind, &[0x90], Channel::Control), Err(DecodeError::Missing(1)));
        assert_eq!(decode_payload(kind, &[0x80], Channel::Control), Err(DecodeError::Type(0)));
        assert_eq!(decode_payload(kind, &[], Channel::Control), Err(DecodeError::Truncated(0)));
    }
}

#[test]
fn long_texts_are_cut_between_characters() {
    let goodbye = Message::Goodbye {
        code: CloseCode::Done,
        reason: format!("{}ß", "a".repeat(limits::REASON_BYTES_MAX - 1)),
        reconnect_in: std::time::Duration::MAX,
    };
    let bytes = bytes_of(&encode(&goodbye));
    assert_eq!(
        decode(raw(&bytes, Channel::Control), Channel::Control),
        Ok(Message::Goodbye {
            code: CloseCode::Done,
            reason: "a".repeat(limits::REASON_BYTES_MAX - 1),
            reconnect_in: std::time::Duration::from_micros(u64::MAX),
        })
    );
}

#[test]
fn refusals_of_all_realms_fit_one_frame() {
    let refusal = Some((RefusalCode::Limit, "€".repeat(1000)));
    let status = RealmStatus { realm: crate::RealmId::from_bytes([0xff; 32]), refusal };
    let bytes = bytes_of(&encode(&Message::Realms(vec![status; limits::REALMS_PER_LINK_MAX])));
    let Ok(Message::Realms(realms)) = decode(raw(&bytes, Channel::Control), Channel::Control)
    else {
        panic!("realms");
    };
    assert_eq!(realms.len(), limits::REALMS_PER_LINK_MAX);
    assert!(realms.iter().all(|s| s.refusal.as_ref().is_some_and(|(_, why)| why.len() == 510)));
}
