//! Remote procedure calls: choosing who runs a call.
//!
//! [`Providers`] holds those who serve one procedure and chooses among them by policy, distance,
//! load and recent failures. It knows neither links nor calls; the node puts the parts together.

pub mod providers;

pub use providers::{Choice, Providers};
