//! The known-gateways file: which key each `HOST:PORT` had when it was first used.
//!
//! The library reads and writes it, one line `HOST:PORT ENDPOINTID` per gateway. This module says
//! where it is and, when a key has changed, which lines to remove.

use std::fs;
use std::path::{Path, PathBuf};

use macula::WrongKey;

use crate::failure::{Exit, Failure};

/// Name of the file in the Macula directory.
const FILE_NAME: &str = "known-gateways";

/// Where keys are pinned; its directory exists afterwards.
pub(crate) fn file_of_user() -> Result<PathBuf, Failure> {
    let directory = macula_gateway::home::directory().ok_or_else(|| {
        Failure::new(
            Exit::Failure,
            "there is no directory to remember gateways in: MACULA_HOME and HOME are not set",
            "set MACULA_HOME, or name the gateway as ENDPOINTID@HOST:PORT",
        )
    })?;
    macula_gateway::home::create(&directory).map_err(|e| {
        Failure::new(
            Exit::Failure,
            format!("cannot create {}: {e}", directory.display()),
            "set MACULA_HOME to a directory that can be written, or name the gateway as \
             ENDPOINTID@HOST:PORT",
        )
    })?;
    Ok(directory.join(FILE_NAME))
}

/// Explains a gateway that has another key than it should have.
pub(crate) fn wrong_key(wrong: &WrongKey) -> Failure {
    let found = match wrong.found {
        Some(found) => format!("it has {found}"),
        None => "it has another".to_owned(),
    };
    let (gateway, expected) = (&wrong.gateway, wrong.expected);
    let Some(file) = &wrong.pin_file else {
        return Failure::new(
            Exit::Denied,
            format!("gateway {gateway} is not the one asked for: {found}, not {expected}"),
            "check the id; if the gateway was really given a new key, use its new id",
        );
    };
    let lines = lines_of(file, gateway);
    let (noun, lines) = match lines.as_slice() {
        [] => ("the line of this gateway", String::new()),
        [line] => ("line", format!(" {line}")),
        lines => {
            let lines: Vec<String> = lines.iter().map(usize::to_string).collect();
            ("lines", format!(" {}", lines.join(", ")))
        }
    };
    Failure::new(
        Exit::Denied,
        format!(
            "the key of gateway {gateway} has changed: {found}, but at first use it had \
             {expected}; another machine may pose as it"
        ),
        format!(
            "if the gateway was really given a new key, remove {noun}{lines} of {} and try again",
            file.display()
        ),
    )
}

/// The lines that pin this gateway, from 1.
fn lines_of(file: &Path, host_port: &str) -> Vec<usize> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines()
        .enumerate()
        .filter(|(_, line)| line.split_whitespace().next() == Some(host_port))
        .map(|(index, _)| index + 1)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_lines_of_a_gateway_are_found() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join(FILE_NAME);
        assert!(lines_of(&file, "a:1").is_empty());
        fs::write(&file, "# mine\na:1 x\nb:1 y\n\na:1 x\n").unwrap();
        assert_eq!(lines_of(&file, "a:1"), [2, 5]);
        assert_eq!(lines_of(&file, "b:1"), [3]);
        assert!(lines_of(&file, "c:1").is_empty());
    }
}
