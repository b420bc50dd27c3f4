//! A TURN server (RFC 8656) without I/O.
//!
//! [`Server`] keeps the allocations; [`credentials`] says who may have one, [`PeerPolicy`] whom a
//! relay may reach, [`Limits`] how much. Relays are UDP; clients come by UDP, TCP or TLS.

mod api;
mod client;
pub mod credentials;
mod nonce;
mod policy;
mod server;
#[cfg(test)]
mod tests;

pub use api::{Client, Limits, ListenerId, Now, Output, Port, RelayId, ServerConfig, Stats};
pub use client::{Allocation, AllocationConfig, CHANNELS_MAX, Event, PERMISSIONS_MAX};
pub use credentials::{Credentials, Issuer};
pub use policy::{Forbidden, PeerPolicy};
pub use server::Server;
