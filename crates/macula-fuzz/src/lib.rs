//! What must hold for any bytes and any script.
//!
//! Each function of this crate takes bytes, makes something of them, and panics when a property is
//! violated. It is the *body* of one fuzz target: `fuzz/` runs it under libFuzzer, this crate's
//! tests run it on the committed corpus and on random inputs, with an ordinary compiler.
//!
//! To add one: a module with the function, its line in [`TARGETS`], a program in
//! `fuzz/fuzz_targets/` with its entry in `fuzz/Cargo.toml`, and seeds in `tests/it/seeds.rs`. A
//! test says what was forgotten.
//!
//! What this crate does *not* do: depend on a fuzzer, or on anything that reaches a network.

// Private to its crate, which would bring all of QUIC into every fuzz build.
#[path = "../../macula-transport/src/assemble.rs"]
mod assemble;
// Without the sockets and nodes around it.
#[allow(dead_code, unreachable_pub, missing_docs, reason = "public in another crate")]
#[path = "../../macula-gateway/src/compat07/core/mod.rs"]
mod compat07;
mod control;
mod datagram;
mod door;
mod frame;
mod grant;
mod message;
mod node;
mod overlay;
mod pattern;
mod script;
mod stun;
mod tunnel;
// Worlds of nodes in virtual time, as the tests of macula-proto know them.
#[allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "written for tests, in another crate"
)]
#[path = "../../macula-proto/tests/it/world.rs"]
mod world;

pub use control::control;
pub use datagram::datagram;
pub use door::door;
pub use frame::frame;
pub use grant::grant;
pub use message::message;
pub use node::node;
pub use overlay::overlay;
pub use pattern::pattern;
pub use stun::stun;
pub use tunnel::tunnel;

/// The body of a fuzz target: panics when `data` violates a property.
pub type Body = fn(data: &[u8]);

/// Every body, by the name of its target.
pub const TARGETS: [(&str, Body); 11] = [
    ("frame", frame),
    ("message", message),
    ("control", control),
    ("pattern", pattern),
    ("node", node),
    ("overlay", overlay),
    ("grant", grant),
    ("stun", stun),
    ("door", door),
    ("tunnel", tunnel),
    ("datagram", datagram),
];
