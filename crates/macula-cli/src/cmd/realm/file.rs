//! Files of a realm: secrets, grants, records.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use macula_grant::{Denial, Grant, IssuerToken, RealmKey, Record, TEXT_BYTES_MAX, TextError};

use crate::failure::{Exit, Failure};

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Readers {
    /// Its owner only.
    Owner,
    /// Whoever the user's settings let.
    Others,
}

/// Reads a root key.
pub(super) fn root(path: &Path) -> Result<RealmKey, Failure> {
    RealmKey::from_text(&secret(path)?).map_err(|error| wrong(path, error))
}

/// Reads an issuer token.
pub(super) fn issuer(path: &Path) -> Result<IssuerToken, Failure> {
    IssuerToken::from_text(&secret(path)?).map_err(|error| wrong(path, error))
}

/// Reads a grant.
pub(super) fn grant(path: &Path) -> Result<Grant, Failure> {
    Grant::from_text(&text(path)?).map_err(|error| wrong(path, error))
}

/// Reads a record of revocations; `None`: there is no such file.
pub(super) fn record(path: &Path) -> Result<Option<Record>, Failure> {
    if !path.try_exists().map_err(|error| cannot(path, "looked for", &error))? {
        return Ok(None);
    }
    Record::from_text(&text(path)?).map(Some).map_err(|error| wrong(path, error))
}

/// Reads a file with a secret in it, of whichever kind.
fn secret(path: &Path) -> Result<String, Failure> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let metadata = fs::metadata(path).map_err(|error| cannot(path, "opened", &error))?;
        let is_secret = text(path).is_ok_and(|text| holds_secret(&text));
        if is_secret && metadata.permissions().mode() & 0o077 != 0 {
            let path = path.display();
            return Err(Failure::new(
                Exit::Failure,
                format!("{path}: others may read this secret"),
                format!("run `chmod 600 {path}`; if others had access, revoke it"),
            ));
        }
    }
    text(path)
}

/// Whether there is something in it that only its owner may know.
pub(super) fn holds_secret(text: &str) -> bool {
    use macula_grant::Kind;
    matches!(Kind::of_text(text), Ok(Kind::Issuer | Kind::RealmKey))
}

/// Reads a text of bounded size.
pub(super) fn text(path: &Path) -> Result<String, Failure> {
    let file = File::open(path).map_err(|error| cannot(path, "opened", &error))?;
    let mut text = String::new();
    let limit = TEXT_BYTES_MAX as u64 + 1;
    match file.take(limit).read_to_string(&mut text) {
        Ok(_) => Ok(text),
        Err(error) if error.kind() == ErrorKind::InvalidData => Err(Failure::new(
            Exit::Usage,
            format!("{}: this is no file of a realm: it is not text", path.display()),
            "check which file you passed",
        )),
        Err(error) => Err(cannot(path, "read", &error)),
    }
}

/// Writes a file that must not exist yet.
pub(super) fn create(path: &Path, text: &str, readers: Readers) -> Result<(), Failure> {
    write_new(path, text, readers).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => Failure::new(
            Exit::Failure,
            format!("{}: exists already; it is not overwritten", path.display()),
            "name another file with --out",
        ),
        _ => cannot(path, "created", &error),
    })
}

/// Writes a file beside the old one and then takes its place: there is always a whole one.
pub(super) fn replace(path: &Path, text: &str, readers: Readers) -> Result<(), Failure> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".new-{}", std::process::id()));
    let beside = PathBuf::from(beside);
    write_new(&beside, text, readers).map_err(|error| cannot(&beside, "created", &error))?;
    fs::rename(&beside, path).map_err(|error| {
        fs::remove_file(&beside).ok();
        cannot(path, "replaced", &error)
    })
}

fn write_new(path: &Path, text: &str, readers: Readers) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    if readers == Readers::Owner {
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    }
    #[cfg(not(unix))]
    let _ = readers;
    let mut file = options.open(path)?;
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    if written.is_err() {
        fs::remove_file(path).ok();
    }
    written
}

fn cannot(path: &Path, tried: &str, error: &io::Error) -> Failure {
    let what = format!("{}: cannot be {tried}: {error}", path.display());
    Failure::new(Exit::Failure, what, "")
}

/// A file is not what it should be.
pub(super) fn wrong(path: &Path, error: TextError) -> Failure {
    let what = format!("{}: {error}", path.display());
    let (exit, advice) = match error {
        TextError::WrongKind { .. } => (Exit::Usage, ""),
        TextError::Missing(_) | TextError::Unknown => (Exit::Usage, "check which file you passed"),
        TextError::Content(Denial::Forged(_) | Denial::Malformed(_)) => (Exit::Denied, ""),
        _ => (Exit::Failure, ""),
    };
    Failure::new(exit, what, advice)
}
