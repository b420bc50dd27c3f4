//! What a link tells its driver.

use std::time::Duration;

use bytes::Bytes;
use macula_proto::id::{LinkId, StreamId};
use macula_proto::wire::frame::{Channel, RawFrame};

use crate::gate::ReadPermit;

/// Something that happened on a link.
#[derive(Debug)]
pub struct LinkEvent {
    /// The driver's number of the link.
    pub link: LinkId,
    /// What.
    pub kind: LinkEventKind,
}

/// What happened on a link.
#[derive(Debug)]
#[non_exhaustive]
pub enum LinkEventKind {
    /// Frames arrived. Those of one channel come in order, except on [`Channel::Bulk`], where each
    /// frame has a stream of its own.
    Frames {
        /// Where.
        channel: Channel,
        /// At least one; checked against the channel's size limit only.
        frames: Vec<RawFrame>,
        /// Drop it when the frames have been dealt with; the channel's reader waits for that.
        permit: ReadPermit,
    },
    /// One batch of earlier sends was handed to QUIC.
    Sent {
        /// Where.
        channel: Channel,
        /// Sum of `Frame::wire_bytes`.
        bytes: usize,
    },
    /// A stream is over in both directions; nothing more comes from it and its id is dead. Frames
    /// that were queued on it and not reported as sent are lost: the peer reads no more.
    StreamClosed {
        /// Which.
        stream: StreamId,
    },
    /// Datagrams came, in this order, some perhaps lost: packets that a gateway is to relay. An endpoint
    /// that has peers tells only of those that it is to carry between them, if it
    /// [does](crate::EndpointConfig::carries).
    Datagrams(Vec<Bytes>),
    /// The path of a link between peers is of another sort now than [`PathKind::Relayed`], with which it
    /// began, or than was told.
    ///
    /// [`PathKind::Relayed`]: crate::PathKind::Relayed
    Path(crate::PathKind),
    /// Packets of other links go over this one, or may have to. Told once a minute while it is so.
    Carrying,
    /// The smoothed round-trip time: once at the start, then at most once a second while the link
    /// is in use, when it changed by more than a fifth.
    Rtt(Duration),
    /// The link is gone. Comes exactly once, as the last event.
    Down {
        /// Why.
        reason: DownReason,
    },
}

/// Why a link is gone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DownReason {
    /// This side closed it.
    #[error("closed here with code {code}: {reason}")]
    Local {
        /// As given.
        code: u16,
        /// As given.
        reason: String,
    },
    /// The peer closed it. Code 0 without a reason also means that its process ended in order.
    #[error("closed by the peer with code {code}: {reason}")]
    Peer {
        /// The peer's code; 65535 stands for larger ones.
        code: u16,
        /// The peer's words, at most 1 KiB.
        reason: String,
    },
    /// Nothing came from the peer for the idle timeout.
    #[error("the peer has been silent for too long")]
    TimedOut,
    /// The peer has forgotten the link: it was restarted.
    #[error("the peer was restarted")]
    Reset,
    /// The peer broke the protocol of this crate; it was told with code 1.
    #[error("the peer broke the protocol: {reason}")]
    Protocol {
        /// How.
        reason: String,
    },
    /// QUIC itself failed.
    #[error("transport error: {reason}")]
    Transport {
        /// How.
        reason: String,
    },
}
