//! Tests in real namespaces; where they cannot run they say so.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test that fails may panic")]

mod check;
mod pairs;
