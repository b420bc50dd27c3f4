//! The real program, as users run it: processes, sockets, files, signals.
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test that fails may panic")]

mod exit_codes;
mod faults;
mod gateway;
mod guarded;
mod harness;
mod hostile;
mod lab;
mod lines;
mod nat;
mod raw;
mod realm;
mod round_trips;
mod shows;
#[cfg(feature = "sim")]
mod sim;
mod trust;
