//! Behaviour of whole nodes, in virtual time, and tidiness of the crate.

#![allow(unreachable_pub, missing_docs, reason = "a test binary has no users")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a failing test may panic and print")]

mod digest;
mod direct;
mod faults;
mod grants;
mod guarded_hostile;
mod handshake;
mod overlay;
mod overlay_world;
mod peers;
mod pubsub;
mod qos1;
mod quota;
mod rpc;
mod scripts;
mod slow;
mod tidy;
mod world;
