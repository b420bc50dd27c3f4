//! `macula config`.

use std::path::Path;

use macula_gateway::config::{ConfigError, GatewayConfig};

use crate::args::ConfigCommand;
use crate::failure::{Exit, Failure};
use crate::out;

/// Checks a configuration file and prints what is in force.
pub(crate) fn run(command: &ConfigCommand) -> Result<(), Failure> {
    let ConfigCommand::Check { file } = command;
    out::line(load(file)?.to_toml().trim_end())
}

/// Reads a configuration file.
pub(crate) fn load(file: &Path) -> Result<GatewayConfig, Failure> {
    GatewayConfig::load(file).map_err(|error| match error {
        ConfigError::Read { .. } => {
            Failure::new(Exit::Failure, error.to_string(), "name a file that can be read")
        }
        error => bad_config(&error).context(file.display()),
    })
}

/// A configuration that cannot be used.
pub(crate) fn bad_config(error: &ConfigError) -> Failure {
    let advice = "`macula gateway --print-config` shows every key with its range";
    Failure::new(Exit::Failure, error.to_string(), advice)
}
