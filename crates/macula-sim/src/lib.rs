//! Worlds of Macula's overlay in virtual time.
//!
//! Thousands of nodes run the production code of `macula_proto::overlay`; what is around them is
//! modelled: places and latencies, NATs, uplinks, loss, faults, hostile nodes. A [`Scenario`] says
//! what happens, [`run`] makes it happen and returns a [`Summary`] with figures and with whatever did
//! not hold. The same scenario, size and seed give the same run, on one thread or several.
//!
//! What this crate does *not* do: sockets, QUIC, congestion control, or any protocol decision. What
//! the model leaves out is said in docs/simulation.md.

mod bytes;
mod dice;
mod director;
mod geo;
mod histogram;
mod hosts;
mod memory;
#[cfg(test)]
mod model;
mod nat;
mod notary;
mod oracle;
mod plot;
mod queue;
mod scenario;
mod shard;
mod summary;
mod truth;
mod world;

pub use self::bytes::wire_bytes;
pub use director::{Progress, Run, run};
pub use geo::Region;
pub use histogram::Histogram;
pub use nat::{Nat, NatMix};
pub use notary::SimNotary;
pub use oracle::TrafficFigures;
pub use plot::{PlotError, plot, plot_sweep};
pub use scenario::{BUILT_IN, Byzantine, Join, Network, Scenario, ScenarioError, Step, Tuning};
pub use summary::{LookupFigures, Second, Share, Summary, Target};
