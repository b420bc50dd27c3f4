//! Moves frames between endpoints over authenticated QUIC links.
//!
//! An [`Endpoint`] is a UDP socket with an identity ([`SecretKey`]): it dials peers and accepts
//! them. Both yield a [`Connected`] peer, whose key has been checked; [`Connected::start`] turns it
//! into a [`Link`]. What happens on a link comes as [`LinkEvent`]s over one bounded channel, what
//! shall happen is said with the methods of [`Link`], none of which ever waits.
//!
//! A link has channels (`macula_proto::wire::frame::Channel`), each a QUIC stream or a set of
//! them, so that one that is blocked never holds up another:
//!
//! | stream | opened by | first byte | channel |
//! |---|---|---|---|
//! | bidirectional, the first | dialler, at once | `0x01` | control |
//! | bidirectional | either | `0x02` | one streaming call |
//! | unidirectional | either, at its first frame | `0x10` + lane | lane |
//! | unidirectional | either, one per frame | `0x20` | bulk |
//!
//! Before [`Link::open_lanes`] the peer can open no other stream than control: QUIC gives it no
//! credit for more. A side that finishes its control stream closes the link next.
//!
//! TLS 1.3 with raw Ed25519 keys on both sides, without resumption or 0-RTT. Keys of connection ids
//! and stateless resets derive from identity and port, so that peers of a killed endpoint notice at
//! once when it is back. Packets grow to [`MTU_MAX`] where the path has room.
//!
//! Receiving is bounded per channel by [`READ_AHEAD_BYTES_MAX`], sending by
//! [`SEND_QUEUE_BYTES_MAX`]; [`Backoff`] spaces the dials of the caller.
//!
//! [`AnonymousListener`] is another socket, for clients of another protocol that prove nothing.
//!
//! What this crate does *not* do: understand frames, decide who may connect, dial again, answer
//! application probes.

mod anonymous;
mod assemble;
mod backoff;
mod crew;
mod dial;
mod endpoint;
mod event;
mod gate;
mod guard;
mod key;
mod link;
mod loading;
mod queue;
mod quic;
mod socket;
mod stream;
mod sync;
mod tunnel;

pub use anonymous::{
    AnonymousConfig, AnonymousConnection, AnonymousListener, AnonymousReceiver, AnonymousSender,
};
pub use backoff::{Backoff, DEFAULT_BACKOFF_FIRST, DEFAULT_BACKOFF_MAX};
pub use dial::{AttemptError, DialError, PeerError, Target};
pub use endpoint::{Endpoint, EndpointConfig, MTU_MAX};
pub use event::{DownReason, LinkEvent, LinkEventKind};
pub use gate::{READ_AHEAD_BYTES_MAX, ReadPermit};
pub use guard::{HandshakeLimits, HandshakeStats};
pub use key::{RandomnessError, SecretKey};
pub use link::{Connected, Link, PathWatch, SEND_QUEUE_BYTES_MAX};
pub use macula_nat::path::Strategy;
pub use macula_nat::report::StunServer;
pub use macula_nat::search::Stats as SearchStats;
pub use macula_nat::uri::{StunUri, TurnUri, UriError};
pub use quic::{CarrierWanted, PathInfo, PathKind, Traffic, TurnServer, TurnStatus, TurnUse};
#[cfg(feature = "portmap")]
pub use quic::{MappedBy, probe_port_mapping};
pub use socket::BindError;
pub use tunnel::{TunnelConfig, TunnelError, TunnelStats};
