//! The bodies of the fuzz targets without a fuzzer: on what is committed, and on random inputs.

#![allow(unreachable_pub, missing_docs, reason = "a test binary has no users")]
#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

mod random;
mod replay;
mod seeds;
