//! Records of revocations on a router's disk: a revoked member must not come back with a restart.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use macula_grant::Record;
use macula_proto::RealmId;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::error::StartError;

/// How the files are called, after the realm's id in hexadecimal.
const SUFFIX: &str = "revocations";
/// Records that may wait to be written; only realms' roots can make new ones.
pub(crate) const WAITING_MAX: usize = 256;

/// A record that a router took.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) realm: RealmId,
    pub(crate) record: Bytes,
}

/// Reads all records in `folder`; makes it if need be.
pub(crate) fn load(folder: &Path) -> Result<Vec<Record>, StartError> {
    let failed = |path: &Path, error: &dyn std::fmt::Display| {
        StartError::Config(format!("revocations {}: {error}", path.display()))
    };
    std::fs::create_dir_all(folder).map_err(|error| failed(folder, &error))?;
    let entries = std::fs::read_dir(folder).map_err(|error| failed(folder, &error))?;
    let mut records = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| failed(folder, &error))?.path();
        if path.extension().is_none_or(|extension| extension != SUFFIX) {
            continue;
        }
        // One that cannot be read is an error: without it, whoever it revokes would get in.
        let text = std::fs::read_to_string(&path).map_err(|error| failed(&path, &error))?;
        records.push(Record::from_text(&text).map_err(|error| failed(&path, &error))?);
    }
    Ok(records)
}

/// Writes what comes, one at a time, until the endpoint has closed and all is written.
pub(crate) async fn keep(
    folder: PathBuf,
    mut records: mpsc::Receiver<Kept>,
    closed: CancellationToken,
) {
    loop {
        let next = tokio::select! {
            biased;
            next = records.recv() => next,
            () = closed.cancelled() => None,
        };
        let Some(Kept { realm, record }) = next else { return };
        let folder = folder.clone();
        let write = move || write(&folder, &realm, &record);
        match tokio::task::spawn_blocking(write).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::error!(%error, ?realm, "a record of revocations is not kept")
            }
            Err(_) => return,
        }
    }
}

fn write(folder: &Path, realm: &RealmId, record: &[u8]) -> io::Result<()> {
    let record = Record::from_bytes(record).map_err(io::Error::other)?;
    let name: String = realm.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    let path = folder.join(name).with_extension(SUFFIX);
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, record.to_text())?;
    std::fs::File::open(&fresh)?.sync_all()?;
    std::fs::rename(&fresh, &path)
}
