//! The Macula mesh as pure state machines.
//!
//! Everything that the protocol decides lives here and sees only `(now, input)`: no sockets, no
//! clock, no async, no global randomness. The entry type is [`Node`]: feed it [`Input`]s with the
//! [`Time`] at which they happen, then drain [`Node::poll_transmit`], [`Node::poll_action`] and
//! [`Node::poll_event`]. The same code runs under QUIC (crate `macula`) and in virtual time.
//!
//! What this crate does *not* do: reach peers (crate `macula-transport`), hold private keys, read
//! configuration files, or know what time it is.

pub mod auth;
pub mod id;
pub mod limits;
pub mod node;
pub mod overlay;
pub mod pubsub;
pub mod rpc;
pub mod seeded;
pub mod time;
pub mod wire;

pub use id::{Distance, EndpointId, Key, KeyKind, LinkId, RealmId, RealmTag};
pub use node::{Action, Command, Config, Event, Input, Node, Role, Transmit};
pub use seeded::SeededMap;
pub use time::Time;
