//! Kinds of frames: their numbers and the channels that they may travel on.
//!
//! Numbers are never reused for another meaning. Spec: docs/protocol §4.4.

use super::frame::Channel;
use super::message::Message;
use crate::limits;

macro_rules! kinds {
    ($($name:ident = $value:literal, $variant:ident;)*) => {
        $(
            #[doc = concat!("The kind of [`Message::", stringify!($variant), "`].")]
            pub const $name: u8 = $value;
        )*
    };
}

kinds! {
    HELLO = 0x01, Hello;
    REALMS = 0x02, Realms;
    GOODBYE = 0x03, Goodbye;
    PING = 0x04, Ping;
    PONG = 0x05, Pong;
    JOIN = 0x06, Join;
    SUBSCRIBE = 0x10, Subscribe;
    SUBSCRIBE_RESULT = 0x11, SubscribeResult;
    UNSUBSCRIBE = 0x12, Unsubscribe;
    DROPPED = 0x13, Dropped;
    PUBLISH_ACK = 0x14, PublishAck;
    PUBLISH_REFUSED = 0x15, PublishRefused;
    DELIVER_ACK = 0x16, DeliverAck;
    BULK_ACK = 0x17, BulkAck;
    SYNC_DONE = 0x18, SyncDone;
    EXPECT = 0x19, Expect;
    PRUNE = 0x1a, Prune;
    UNPRUNE = 0x1b, Unprune;
    QUIET = 0x1c, Quiet;
    REGISTER = 0x20, Register;
    REGISTER_RESULT = 0x21, RegisterResult;
    UNREGISTER = 0x22, Unregister;
    PUBLISH = 0x40, Publish;
    RETAINED = 0x41, Retained;
    SYNC = 0x42, Sync;
    BULK_PUBLISH = 0x43, BulkPublish;
    PRUNED = 0x44, Pruned;
    CALL = 0x50, Call;
    REPLY = 0x51, Reply;
    CALL_ERROR = 0x52, CallError;
    CANCEL = 0x53, Cancel;
    ITEM = 0x54, Item;
    ITEMS_END = 0x55, ItemsEnd;
}

/// Whether a frame of `kind` may come on `channel`.
///
/// Kinds that this version does not know are allowed anywhere: they are ignored, not refused.
pub const fn allowed(kind: u8, channel: Channel) -> bool {
    let publish_lane = matches!(channel, Channel::Lane(1..limits::LANE_COUNT));
    match kind {
        HELLO | REALMS | GOODBYE | PING | PONG | JOIN | SUBSCRIBE | SUBSCRIBE_RESULT
        | UNSUBSCRIBE | DROPPED | PUBLISH_ACK | PUBLISH_REFUSED | DELIVER_ACK | BULK_ACK
        | SYNC_DONE | EXPECT | PRUNE | UNPRUNE | QUIET | REGISTER | REGISTER_RESULT
        | UNREGISTER => {
            matches!(channel, Channel::Control)
        }
        PUBLISH | PRUNED => publish_lane,
        RETAINED => publish_lane || matches!(channel, Channel::Bulk),
        SYNC => publish_lane || matches!(channel, Channel::CALLS),
        BULK_PUBLISH => matches!(channel, Channel::Bulk),
        CALL | REPLY | CALL_ERROR => {
            matches!(channel, Channel::CALLS | Channel::Bulk | Channel::Stream(_))
        }
        CANCEL => matches!(channel, Channel::CALLS),
        ITEM | ITEMS_END => matches!(channel, Channel::Stream(_)),
        _ => true,
    }
}

impl Message {
    /// The kind of the frame that carries this message.
    pub const fn kind(&self) -> u8 {
        match self {
            Self::Hello(_) => HELLO,
            Self::Realms(_) => REALMS,
            Self::Goodbye { .. } => GOODBYE,
            Self::Ping { .. } => PING,
            Self::Pong { .. } => PONG,
            Self::Join(_) => JOIN,
            Self::Subscribe(_) => SUBSCRIBE,
            Self::SubscribeResult { .. } => SUBSCRIBE_RESULT,
            Self::Unsubscribe { .. } => UNSUBSCRIBE,
            Self::Dropped { .. } => DROPPED,
            Self::PublishAck(_) => PUBLISH_ACK,
            Self::PublishRefused { .. } => PUBLISH_REFUSED,
            Self::DeliverAck { .. } => DELIVER_ACK,
            Self::BulkAck { .. } => BULK_ACK,
            Self::SyncDone { .. } => SYNC_DONE,
            Self::Expect { .. } => EXPECT,
            Self::Prune(_) => PRUNE,
            Self::Unprune { .. } => UNPRUNE,
            Self::Quiet { .. } => QUIET,
            Self::Register(_) => REGISTER,
            Self::RegisterResult { .. } => REGISTER_RESULT,
            Self::Unregister { .. } => UNREGISTER,
            Self::Publish(_) => PUBLISH,
            Self::BulkPublish { .. } => BULK_PUBLISH,
            Self::Pruned { .. } => PRUNED,
            Self::Retained { .. } => RETAINED,
            Self::Sync { .. } => SYNC,
            Self::Call(_) => CALL,
            Self::Reply { .. } => REPLY,
            Self::CallError { .. } => CALL_ERROR,
            Self::Cancel { .. } => CANCEL,
            Self::Item { .. } => ITEM,
            Self::ItemsEnd { .. } => ITEMS_END,
            Self::Unknown { kind } => *kind,
        }
    }
}
