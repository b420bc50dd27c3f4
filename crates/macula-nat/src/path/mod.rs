//! Paths of a link between two peers: candidates, which path is used, when one is given up.
//!
//! The words are those of ICE (RFC 8445); the work of checks is QUIC's. A *candidate* is an address
//! at which this endpoint may be reached; [`Candidates`] holds what is offered to peers.
//! [`Selector`] decides for one link: which of its paths is used, which is dead, and when another
//! round of checks begins. Spec: docs/protocol §9.4.

mod candidate;
mod selector;

pub use candidate::{Candidate, Candidates, Kind, is_private};
pub use selector::{Action, Class, Input, PathKey, Sample, Selector, Side, Strategy};
