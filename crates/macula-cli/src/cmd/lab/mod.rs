//! `macula lab`: the real program in laboratories.

mod nat;

use clap::Subcommand;

use crate::failure::Failure;

#[derive(Debug, Subcommand)]
pub(crate) enum LabCommand {
    /// Pairs of programs behind NATs of all kinds, in network namespaces: who gets a direct path, and when
    Nat(nat::LabNatArgs),
}

/// Runs the command.
pub(crate) async fn run(command: LabCommand) -> Result<(), Failure> {
    match command {
        LabCommand::Nat(args) => nat::run(args).await,
    }
}
