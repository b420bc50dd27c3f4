//! `macula keygen`.

use std::path::{Path, PathBuf};

use crate::args::KeygenArgs;
use crate::failure::{Exit, Failure};
use crate::{connect, out};

/// Name of the key file in the Macula directory unless told otherwise.
const FILE_NAME: &str = "client.key";

/// Creates a key file, or shows the id of one.
pub(crate) fn run(args: &KeygenArgs) -> Result<(), Failure> {
    if let Some(path) = &args.show {
        return out::line(connect::client_key(path)?.id());
    }
    let path = match &args.out {
        Some(path) => path.clone(),
        None => default_path()?,
    };
    let key = if args.force { replace(&path)? } else { create(&path)? };
    out::note(format_args!("wrote {}", path.display()));
    out::line(key.id())
}

fn default_path() -> Result<PathBuf, Failure> {
    let directory = macula_gateway::home::directory().ok_or_else(|| {
        Failure::new(
            Exit::Failure,
            "there is no directory for keys: MACULA_HOME and HOME are not set",
            "name a file with --out",
        )
    })?;
    macula_gateway::home::create(&directory)
        .map_err(|e| Failure::from(e).context(format_args!("create {}", directory.display())))?;
    Ok(directory.join(FILE_NAME))
}

fn create(path: &Path) -> Result<macula::SecretKey, Failure> {
    macula::create_key(path).map_err(|error| {
        let advice = if path.exists() {
            "name another file with --out, or give up the old identity with --force"
        } else {
            "name a file in a directory that exists and can be written with --out"
        };
        Failure::new(Exit::Failure, error.to_string(), advice)
    })
}

/// Writes a new key beside the old one and then takes its place, so that there always is one.
fn replace(path: &Path) -> Result<macula::SecretKey, Failure> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".new-{}", std::process::id()));
    let beside = PathBuf::from(beside);
    let key = create(&beside)?;
    std::fs::rename(&beside, path).map_err(|e| {
        std::fs::remove_file(&beside).ok();
        Failure::from(e).context(format_args!("replace {}", path.display()))
    })?;
    Ok(key)
}
