//! Real QUIC on loopback.

#![allow(clippy::unwrap_used, reason = "tests")]

mod carriers;
mod connect;
mod flow;
mod frames;
mod peers;
mod support;
mod turn;
