//! Behaviour of nodes and routers over real QUIC on loopback.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod examples;
mod grants;
mod identity;
mod lifecycle;
mod peers;
mod pubsub;
mod restart;
mod rpc;
mod streaming;
mod support;
mod tunnel;
