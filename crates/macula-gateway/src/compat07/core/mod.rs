//! The v0.7 door without I/O: bytes of streams in, bytes of streams and wishes towards the realm out.
//!
//! It knows nothing of QUIC, runtimes or clocks, and of the native protocol only that there are topics,
//! procedures and realms by name. `docs/protocol/11-v07-door.md` says what is on the wire.

pub mod dialect;
pub mod door;
pub mod realm;
pub mod topics;
pub mod wire;
