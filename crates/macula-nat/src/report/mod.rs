//! What the network between here and the internet does with UDP: a report from STUN tests.
//!
//! [`Check`] runs the tests of RFC 5780 as far as the servers allow, and those around them, all at
//! once: mapping with every server and every second port, filtering from a socket that has talked to
//! nobody else, hairpinning between two sockets. [`Report`] says what was found.

mod check;
mod lifetime;
#[cfg(test)]
mod tests;
mod verdict;

pub use check::{Check, CheckConfig, Patience, Socket, StunServer, Transmit};
pub use lifetime::{LIFETIME_MAX, Lifetime, LifetimeReport};
pub use verdict::{Filtering, Mapping, Report, ServerReport};
