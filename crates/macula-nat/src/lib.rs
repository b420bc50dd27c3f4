//! NAT traversal of Macula as pure state machines: no sockets, no clock, no randomness of its own.
//!
//! [`stun`] answers and asks STUN Binding requests (RFC 8489, RFC 5780), [`turn`] is a TURN server
//! with its credentials, limits and rules about peers (RFC 8656), [`report`] finds out what NATs do,
//! [`path`] chooses among the paths of a link, [`search`] looks for one behind hard NATs. STUN and TURN messages are read and written by the
//! crates `stun-types` and `turn-types`.
//!
//! What this crate does *not* do: open sockets, resolve names, read clocks. Crate `macula-gateway`
//! drives the servers, `macula-transport` the paths.

pub mod address;
pub mod path;
pub mod rate;
pub mod report;
pub mod search;
pub mod stun;
pub mod turn;
pub mod uri;
