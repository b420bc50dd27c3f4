//! Strategies for messages, and one example of each kind.

use std::time::Duration;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::id::{EndpointId, RealmId, RealmTag};
use crate::limits;
use crate::wire::message::*;

pub(super) fn any_message() -> impl Strategy<Value = Message> {
    prop_oneof![any_control(), any_hot()]
}

pub(super) fn any_control() -> impl Strategy<Value = Message> {
    prop_oneof![
        hello().prop_map(Message::Hello),
        vec((realm_id(), refusal(256)), 0..=limits::REALMS_PER_LINK_MAX).prop_map(|realms| {
            let status = |(realm, refusal)| RealmStatus { realm, refusal };
            Message::Realms(realms.into_iter().map(status).collect())
        }),
        realm_offers().prop_map(Message::Join),
        (close_code(), text(limits::REASON_BYTES_MAX), duration()).prop_map(
            |(code, reason, reconnect_in)| Message::Goodbye { code, reason, reconnect_in }
        ),
        any::<u64>().prop_map(|id| Message::Ping { id }),
        any::<u64>().prop_map(|id| Message::Pong { id }),
        any::<u64>().prop_map(|id| Message::BulkAck { id }),
        any::<u64>().prop_map(|id| Message::SyncDone { id }),
        (realm(), any::<u32>(), name(), slow_policy(), any::<bool>(), any::<bool>()).prop_map(
            |(realm, subscription, pattern, policy, resume, retained)| {
                Message::Subscribe(Subscribe {
                    realm,
                    subscription,
                    pattern,
                    policy,
                    resume,
                    retained,
                })
            }
        ),
        (realm(), any::<u32>(), refusal(limits::REASON_BYTES_MAX)).prop_map(
            |(realm, subscription, refusal)| Message::SubscribeResult {
                realm,
                subscription,
                refusal
            }
        ),
        (realm(), any::<u32>())
            .prop_map(|(realm, subscription)| Message::Unsubscribe { realm, subscription }),
        (realm(), any::<u64>()).prop_map(|(realm, messages)| Message::Dropped { realm, messages }),
        (realm(), name(), any::<u64>(), any::<u64>(), any::<u64>(), any::<u32>()).prop_map(
            |(realm, topic, epoch, accepted, delivered, receivers)| {
                Message::PublishAck(PublishAck {
                    realm,
                    topic,
                    epoch,
                    accepted,
                    delivered,
                    receivers,
                    is_complete: accepted == delivered,
                })
            }
        ),
        (
            realm(),
            name(),
            any::<u64>(),
            any::<u32>(),
            refusal_code(),
            text(limits::REASON_BYTES_MAX)
        )
            .prop_map(|(realm, topic, first, count, code, reason)| {
                Message::PublishRefused { realm, topic, first, count, code, reason }
            }),
        (1..limits::LANE_COUNT, any::<u64>())
            .prop_map(|(lane, frames)| Message::DeliverAck { lane, frames }),
        (realm(), any::<u32>(), name(), any::<u32>()).prop_map(
            |(realm, registration, procedure, concurrency)| {
                Message::Register(Register { realm, registration, procedure, concurrency })
            }
        ),
        (realm(), any::<u32>(), refusal(limits::REASON_BYTES_MAX)).prop_map(
            |(realm, registration, refusal)| Message::RegisterResult {
                realm,
                registration,
                refusal
            }
        ),
        (realm(), any::<u32>())
            .prop_map(|(realm, registration)| Message::Unregister { realm, registration }),
        (realm(), name(), any::<u32>()).prop_map(|(realm, topic, receivers)| Message::Expect {
            realm,
            topic,
            receivers
        }),
        (realm(), any::<[u8; 32]>(), name(), any::<[u64; 4]>()).prop_map(
            |(realm, publisher, topic, [epoch, id, from, taken])| {
                let publisher = EndpointId::from_bytes(publisher);
                Message::Prune(Prune { realm, publisher, epoch, topic, id, from, taken })
            }
        ),
        (realm(), name(), any::<u32>()).prop_map(|(realm, topic, receivers)| Message::Quiet {
            realm,
            topic,
            receivers
        }),
        (realm(), any::<[u8; 32]>(), any::<u64>(), name()).prop_map(
            |(realm, publisher, epoch, topic)| {
                let publisher = EndpointId::from_bytes(publisher);
                Message::Unprune { realm, publisher, epoch, topic }
            }
        ),
    ]
}

pub(super) fn any_hot() -> impl Strategy<Value = Message> {
    prop_oneof![
        publish(limits::BATCH_MESSAGES_MAX as u32).prop_map(Message::Publish),
        (any::<u64>(), publish(1)).prop_map(|(id, publish)| Message::BulkPublish { id, publish }),
        (any::<u32>(), publish(1))
            .prop_map(|(subscription, publish)| Message::Retained { subscription, publish }),
        any::<u64>().prop_map(|id| Message::Sync { id }),
        any::<u64>().prop_map(|id| Message::Pruned { id }),
        call().prop_map(Message::Call),
        (any::<u64>(), body()).prop_map(|(call, body)| Message::Reply { call, body }),
        (
            any::<u64>(),
            error_class(),
            any::<u16>(),
            text(limits::REASON_BYTES_MAX),
            duration(),
            any::<bool>()
        )
            .prop_map(|(call, class, code, message, retry_after, retry_safe)| {
                let failure = CallFailure { class, code, message, retry_after, retry_safe };
                Message::CallError { call, failure }
            }),
        any::<u64>().prop_map(|call| Message::Cancel { call }),
        (any::<u64>(), body()).prop_map(|(call, body)| Message::Item { call, body }),
        any::<u64>().prop_map(|call| Message::ItemsEnd { call }),
    ]
}

prop_compose! {
    pub(super) fn publish(count_max: u32)(
        realm in realm(),
        publisher in any::<[u8; 32]>(),
        epoch in any::<u64>(),
        count in 1..=count_max,
    )(
        first in 1..=u64::MAX - u64::from(count),
        ttl in 0..=limits::TTL_HOPS,
        (qos1, retain, start) in any::<(bool, bool, bool)>(),
        topic in name(),
        body in vec(any::<u8>(), if count == 1 { 0..300 } else { count as usize..9000 }),
        (realm, publisher, epoch, count) in Just((realm, publisher, epoch, count)),
    ) -> Publish {
        Publish {
            realm,
            publisher: EndpointId::from_bytes(publisher),
            epoch,
            first,
            count,
            ttl,
            qos1,
            retain,
            start,
            topic: topic.into(),
            body: body.into(),
        }
    }
}

prop_compose! {
    fn hello()(
        versions in any::<(u16, u16)>(),
        capabilities in any::<u64>(),
        is_router in any::<bool>(),
        (instance, resumes) in any::<(u64, u64)>(),
        observed in text(limits::OBSERVED_BYTES_MAX),
        agent in text(limits::AGENT_BYTES_MAX),
        realms in realm_offers(),
    ) -> Hello {
        Hello {
            version_min: versions.0,
            version_max: versions.1,
            capabilities,
            is_router,
            instance,
            resumes,
            observed,
            agent,
            realms,
        }
    }
}

prop_compose! {
    fn call()(
        call in any::<u64>(),
        realm in realm(),
        procedure in name(),
        deadline in duration(),
        policy in prop_oneof![
            Just(ProviderPolicy::Nearest),
            Just(ProviderPolicy::RoundRobin),
            Just(ProviderPolicy::Random),
            Just(ProviderPolicy::First),
        ],
        (idempotent, streaming) in any::<(bool, bool)>(),
        (target, caller) in any::<(Option<[u8; 32]>, Option<[u8; 32]>)>(),
        traceparent in vec(any::<u8>(), 0..=limits::TRACEPARENT_BYTES_MAX),
        body in body(),
    ) -> Call {
        Call {
            call,
            realm,
            procedure,
            deadline,
            policy,
            idempotent,
            streaming,
            target: target.map(EndpointId::from_bytes),
            caller: caller.map(EndpointId::from_bytes),
            traceparent: traceparent.into(),
            body,
        }
    }
}

fn realm_offers() -> impl Strategy<Value = Vec<RealmOffer>> {
    let offer = (realm_id(), vec(any::<u8>(), 0..600))
        .prop_map(|(realm, grant)| RealmOffer { realm, grant: grant.into() });
    vec(offer, 0..=limits::REALMS_PER_LINK_MAX)
}

fn realm() -> impl Strategy<Value = RealmTag> {
    any::<u64>().prop_map(RealmTag)
}

fn realm_id() -> impl Strategy<Value = RealmId> {
    any::<[u8; 32]>().prop_map(RealmId::from_bytes)
}

fn body() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..300).prop_map(Bytes::from)
}

fn duration() -> impl Strategy<Value = Duration> {
    any::<u64>().prop_map(Duration::from_micros)
}

/// Any text of at most so many bytes.
fn text(bytes_max: usize) -> impl Strategy<Value = String> {
    ".{0,300}".prop_map(move |mut text| {
        text.truncate(text.floor_char_boundary(bytes_max));
        text
    })
}

fn name() -> impl Strategy<Value = String> {
    text(limits::TOPIC_BYTES_MAX)
        .prop_map(|name| if name.is_empty() { "a.b".to_owned() } else { name })
}

fn refusal(bytes_max: usize) -> impl Strategy<Value = Option<(RefusalCode, String)>> {
    proptest::option::of((refusal_code(), text(bytes_max)))
}

fn slow_policy() -> impl Strategy<Value = SlowPolicy> {
    prop_oneof![Just(SlowPolicy::DropOldest), Just(SlowPolicy::Block), Just(SlowPolicy::Disconnect)]
}

fn close_code() -> impl Strategy<Value = CloseCode> {
    proptest::sample::select(vec![
        CloseCode::Done,
        CloseCode::Protocol,
        CloseCode::Version,
        CloseCode::Duplicate,
        CloseCode::Unresponsive,
        CloseCode::Restarting,
        CloseCode::Limit,
        CloseCode::SlowConsumer,
        CloseCode::Denied,
        CloseCode::Unknown,
    ])
}

fn refusal_code() -> impl Strategy<Value = RefusalCode> {
    proptest::sample::select(vec![
        RefusalCode::UnknownRealm,
        RefusalCode::Denied,
        RefusalCode::BadName,
        RefusalCode::Limit,
        RefusalCode::TooLarge,
        RefusalCode::Draining,
        RefusalCode::Unknown,
    ])
}

fn error_class() -> impl Strategy<Value = ErrorClass> {
    proptest::sample::select(vec![
        ErrorClass::NoProvider,
        ErrorClass::Unreachable,
        ErrorClass::Deadline,
        ErrorClass::Cancelled,
        ErrorClass::Refused,
        ErrorClass::Busy,
        ErrorClass::Internal,
        ErrorClass::Denied,
        ErrorClass::Unknown,
    ])
}
