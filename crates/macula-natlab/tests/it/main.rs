//! Tests in real namespaces; where they cannot run they say so.
#![cfg(target_os = "linux")]

mod check;
