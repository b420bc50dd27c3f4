//! Key files.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;

use macula_transport::SecretKey;

use crate::error::KeyFileError;

/// Hexadecimal digits of a key.
const KEY_DIGITS: usize = 64;
/// A key file is not longer than this, bytes.
const KEY_FILE_BYTES_MAX: u64 = 1024;

/// Reads the key in `path`, or makes one and writes it there, readable by its owner only.
///
/// The file holds the 32-byte seed as 64 hexadecimal digits. Folders are not created.
///
/// # Errors
/// When the file can be neither read nor created, does not hold a key, or (on Unix) is open to
/// others than its owner. A file that exists is never changed.
pub fn load_or_create_key(path: impl AsRef<Path>) -> Result<SecretKey, KeyFileError> {
    let path = path.as_ref();
    match load_key(path) {
        Err(LoadError::Missing) => create_key(path),
        Err(LoadError::Failed(error)) => Err(error),
        Ok(key) => Ok(key),
    }
}

/// Makes a new key and writes it to `path`, which must not exist yet.
///
/// # Errors
/// When the file exists already or cannot be created.
pub fn create_key(path: impl AsRef<Path>) -> Result<SecretKey, KeyFileError> {
    let path = path.as_ref();
    let key = SecretKey::generate().map_err(|error| fault(path, error.to_string()))?;
    write_key(path, &key).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => fault(path, "exists already; it is not overwritten"),
        _ => fault(path, format!("cannot be created: {error}")),
    })?;
    Ok(key)
}

enum LoadError {
    Missing,
    Failed(KeyFileError),
}

fn load_key(path: &Path) -> Result<SecretKey, LoadError> {
    let failed = |reason: String| LoadError::Failed(fault(path, reason));
    let mut text = String::new();
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Err(LoadError::Missing),
        Err(error) => return Err(failed(format!("cannot be opened: {error}"))),
    };
    if is_open_to_others(&file).map_err(|error| failed(error.to_string()))? {
        return Err(failed("others may read it; run `chmod 600` on it".to_owned()));
    }
    file.take(KEY_FILE_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(|error| failed(format!("cannot be read: {error}")))?;
    let seed = parse_seed(text.trim())
        .ok_or_else(|| failed(format!("does not hold a key of {KEY_DIGITS} hex digits")))?;
    Ok(SecretKey::from_seed(seed))
}

fn write_key(path: &Path, key: &SecretKey) -> io::Result<()> {
    let digits: String = key.seed().iter().map(|byte| format!("{byte:02x}")).collect();
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    writeln!(file, "{digits}")?;
    file.sync_all()
}

fn parse_seed(digits: &str) -> Option<[u8; 32]> {
    if digits.len() != KEY_DIGITS || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let mut seed = [0u8; 32];
    for (index, slot) in seed.iter_mut().enumerate() {
        *slot = u8::from_str_radix(digits.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    Some(seed)
}

#[cfg(unix)]
fn is_open_to_others(file: &File) -> io::Result<bool> {
    use std::os::unix::fs::PermissionsExt;
    Ok(file.metadata()?.permissions().mode() & 0o077 != 0)
}

#[cfg(not(unix))]
fn is_open_to_others(_file: &File) -> io::Result<bool> {
    Ok(false)
}

fn fault(path: &Path, reason: impl Into<String>) -> KeyFileError {
    KeyFileError { path: path.to_owned(), reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_dir::TestDir;

    #[test]
    fn a_key_is_made_once_and_then_read() {
        let dir = TestDir::new("key");
        let made = load_or_create_key(dir.file("key")).unwrap();
        assert_eq!(load_or_create_key(dir.file("key")).unwrap().id(), made.id());
        assert!(create_key(dir.file("key")).unwrap_err().to_string().contains("not overwritten"));
    }

    #[cfg(unix)]
    #[test]
    fn the_file_is_for_its_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let dir = TestDir::new("key-mode");
        load_or_create_key(dir.file("key")).unwrap();
        let mut permissions = std::fs::metadata(dir.file("key")).unwrap().permissions();
        assert_eq!(permissions.mode() & 0o777, 0o600);
        permissions.set_mode(0o644);
        std::fs::set_permissions(dir.file("key"), permissions).unwrap();
        let error = load_or_create_key(dir.file("key")).unwrap_err().to_string();
        assert!(error.contains("chmod 600"), "{error}");
    }

    #[test]
    fn garbage_is_not_a_key_and_is_not_overwritten() {
        let dir = TestDir::new("key-garbage");
        dir.write("key", "hello\n");
        let error = load_or_create_key(dir.file("key")).unwrap_err().to_string();
        assert!(error.contains("64 hex digits"), "{error}");
        assert_eq!(std::fs::read_to_string(dir.file("key")).unwrap(), "hello\n");
    }
}
