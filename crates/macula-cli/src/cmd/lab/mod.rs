//! `macula lab`: the real program in laboratories.

#[cfg(all(feature = "lab", target_os = "linux"))]
mod nat;
mod pair;

use clap::Subcommand;
pub(crate) use pair::start_clock;

use crate::args::LabArgs;
use crate::failure::Failure;

#[derive(Debug, Subcommand)]
pub(crate) enum LabCommand {
    /// Answer an initiator; the first line tells the endpoint id
    Responder(LabArgs),
    /// Link to a responder and send it numbered beats
    Initiator(LabArgs),
    /// Pairs of programs behind NATs of all kinds, in network namespaces: who gets a direct path, and when
    #[cfg(all(feature = "lab", target_os = "linux"))]
    Nat(nat::LabNatArgs),
}

/// Runs the command.
pub(crate) async fn run(command: LabCommand) -> Result<(), Failure> {
    match command {
        LabCommand::Responder(args) => pair::run(args, false).await,
        LabCommand::Initiator(args) => pair::run(args, true).await,
        #[cfg(all(feature = "lab", target_os = "linux"))]
        LabCommand::Nat(args) => nat::run(args).await,
    }
}
