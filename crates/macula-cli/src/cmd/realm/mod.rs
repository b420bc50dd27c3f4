//! `macula realm`: keys, issuer tokens, grants and revocations of guarded realms. All of it works
//! offline, apart from handing a record to a gateway.

pub(crate) mod args;
mod file;
mod make;
mod revoke;
mod show;
mod words;

use std::time::{SystemTime, UNIX_EPOCH};

use args::RealmCommand;
use macula_grant::UnixTime;

use crate::failure::Failure;

/// Runs one of the commands.
pub(crate) async fn run(command: RealmCommand) -> Result<(), Failure> {
    match command {
        RealmCommand::New(args) => make::new(args),
        RealmCommand::Issuer(args) => make::issuer(args),
        RealmCommand::Grant(args) => make::grant(args),
        RealmCommand::Renew(args) => make::renew(&args),
        RealmCommand::Revoke(args) => revoke::revoke(args).await,
        RealmCommand::Rotate(args) => revoke::rotate(args).await,
        RealmCommand::Show(args) => show::run(&args),
    }
}

/// This machine's time.
fn now() -> UnixTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixTime(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
