//! Port search: a direct path between a NAT whose mappings depend on the destination and one whose
//! mappings do not, where plain hole punching must fail.
//!
//! The side whose mappings depend on the destination ([`Role::Many`]) opens many sockets towards the
//! peer's one address, and so many mappings in its NAT. The other ([`Role::One`]) sends probes from
//! its one socket to ports of that NAT: first those that follow the last known one, if the NAT counts
//! (port prediction), then any. As in the birthday paradox, a hit comes soon: with 256 mappings a
//! thousand probes find one with 98 %.
//!
//! [`Facts`] says of an endpoint what the other side must know, [`Signal`] carries them over the
//! relayed link, [`Search`] runs one side, [`Budget`] bounds all searches of an endpoint. Spec:
//! docs/protocol §9.8.

mod budget;
mod facts;
mod machine;
mod probe;
mod signal;

pub use budget::{Budget, End, NotNow, Stats};
pub use facts::{Behaviour, Facts, Role, roles};
pub use machine::{Config, Output, Search, tuples_max};
pub use probe::TOKEN_BYTES;
pub use signal::{No, SIGNAL_BYTES_MAX, Signal};

/// Secret of one search, drawn by who proposes it.
pub type Token = [u8; TOKEN_BYTES];

/// Sockets that one search opens at most.
pub const SOCKETS_MAX: u16 = 256;
/// Probes to different ports that one search sends at most.
pub const PROBES_MAX: u16 = 2_000;
