//! A laboratory of NATs: the real program in Linux network namespaces, behind routers whose nftables rules
//! make each kind of NAT, with links that have a delay. `macula lab nat` runs it; `docs/nat.md` is about it.
//!
//! [`Lab`] is the laboratory, [`check`] compares each NAT with what it should be, [`matrix`] runs pairs of
//! programs and takes the verdict from the kernel's byte counters, [`scenario`] disturbs a running pair,
//! [`audit`] moves pairs to and fro and looks for messages that suffered.
//!
//! Threads and child processes, no async: what it does is wait. It needs root, or a user namespace.

#![cfg(target_os = "linux")]

mod counters;
mod error;
mod kind;
mod lab;
mod mapper;
mod mix;
mod netns;
mod probe;
mod program;
mod rules;
mod tap;
mod wire;

pub mod audit;
pub mod check;
pub mod matrix;
pub mod scenario;

pub use error::{LabError, LabErrorKind};
pub use kind::{Behaviour, Filtering, Mapping, NatKind, Shared, UnknownKind};
pub use lab::{Lab, RELAYS_V4, RELAYS_V6, Settings, Stop, check_ability};
pub use mix::{MAPPED_HOMES, MIXES, Mix, MixShare};
pub use probe::Seen;
pub use wire::Weather;
