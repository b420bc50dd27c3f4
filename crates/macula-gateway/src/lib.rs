//! The Macula gateway: a router that others connect to, with an operator's needs around it.
//!
//! The entry type is [`Gateway`]. [`GatewayConfig`] is one commented TOML file, checked once;
//! [`Gateway::start`] brings the router of crate `macula` up with it; [`Gateway::run_until`] serves
//! until SIGINT or SIGTERM and then drains: peers are told when to come back, links are closed, the
//! caller may end. `docs/operate` is the guide for operators.
//!
//! What this crate does *not* do: parse arguments or print (crate `macula-cli`), decide anything
//! about the protocol (crate `macula-proto`).

pub mod compat07;
pub mod config;
pub mod gateway;
pub mod home;
pub mod human;
pub mod signal;
pub mod turn;

pub use config::GatewayConfig;
pub use gateway::{End, Gateway, GatewayError, Told};
