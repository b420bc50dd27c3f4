//! Which realm, and what is shown to get in.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use macula_grant::{Grant, Realm};
use macula_proto::auth::UnixTime;
use macula_proto::{EndpointId, RealmId};
use tokio::sync::oneshot;

use crate::clock::Clock;
use crate::error::{JoinError, StartError};
use crate::event::Event;
use crate::shared::{Command, Shared};

/// A file with a grant is looked at ten times within what is left of the grant, and this often at
/// least and at most.
const LOOK_MIN: Duration = Duration::from_secs(1);
const LOOK_MAX: Duration = Duration::from_secs(30);

/// A realm to take part in or to host.
#[derive(Clone, Debug)]
pub(crate) struct Membership {
    pub(crate) realm: RealmId,
    pub(crate) name: String,
    /// Empty in open realms, and for who hosts.
    pub(crate) grant: Bytes,
}

impl Membership {
    /// In an open realm.
    pub(crate) fn open(name: &str) -> Result<Self, JoinError> {
        crate::endpoint::check_realm_name(name)?;
        let realm = RealmId::of_name(name);
        Ok(Self { realm, name: name.to_owned(), grant: Bytes::new() })
    }

    /// In a guarded realm, of the endpoint that the grant is for.
    pub(crate) fn granted(grant: &Grant, endpoint: EndpointId) -> Result<Self, JoinError> {
        let name = grant.realm().name.as_str().to_owned();
        if grant.endpoint() != endpoint {
            let bound = grant.endpoint();
            let reason = format!(
                "the grant is for endpoint {bound}, and this one is {endpoint}; use the key file \
                 that the grant was made for, or ask an issuer for a grant for this endpoint"
            );
            return Err(JoinError::Denied { realm: name, reason });
        }
        let bytes = Bytes::copy_from_slice(grant.as_bytes());
        Ok(Self { realm: grant.realm().id(), name, grant: bytes })
    }

    /// As the host of a guarded realm.
    pub(crate) fn hosted(realm: &Realm) -> Self {
        let name = realm.name.as_str().to_owned();
        Self { realm: realm.id(), name, grant: Bytes::new() }
    }
}

/// Where a node's grant comes from.
#[derive(Clone, Debug, Default)]
pub(crate) enum GrantSource {
    #[default]
    None,
    Given(Box<Grant>),
    File(PathBuf),
}

impl GrantSource {
    pub(crate) fn load(&self) -> Result<Option<Grant>, StartError> {
        match self {
            Self::None => Ok(None),
            Self::Given(grant) => Ok(Some((**grant).clone())),
            Self::File(path) => read_grant(path).map(Some).map_err(StartError::Grant),
        }
    }
}

/// Reads the grant in a file.
fn read_grant(path: &Path) -> Result<Grant, String> {
    let place = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| format!("grant {place}: {error}"))?;
    Grant::from_text(&text).map_err(|error| format!("grant {place}: {error}"))
}

/// Shows the grant in a file again whenever it was replaced by another one; runs until the endpoint
/// closes.
pub(crate) async fn follow(shared: Arc<Shared>, path: PathBuf, mut known: Grant) {
    let stopping = shared.stopping.clone();
    let following = async {
        // The first look reads it whatever the time says: it may have changed since it was loaded.
        let mut changed_at = None;
        let mut complained = None;
        loop {
            tokio::time::sleep(look_interval(known.expires())).await;
            let now = modified(&path).await;
            if now == changed_at {
                continue;
            }
            changed_at = now;
            let file = path.clone();
            // A read of a small file; only the runtime's shutdown makes it fail.
            let Ok(read) = tokio::task::spawn_blocking(move || read_grant(&file)).await else {
                return;
            };
            let renewed = match read {
                Ok(grant) if grant == known => continue,
                Ok(grant) if grant.realm() == known.realm() => {
                    Membership::granted(&grant, shared.id).map(|membership| (grant, membership))
                }
                Ok(grant) => Err(JoinError::Denied {
                    realm: known.realm().name.to_string(),
                    reason: format!("the new grant is for another realm, {}", grant.realm()),
                }),
                Err(reason) => {
                    Err(JoinError::Denied { realm: known.realm().name.to_string(), reason })
                }
            };
            match renewed {
                Ok((grant, membership)) => {
                    known = grant;
                    let (answer, _) = oneshot::channel();
                    if shared.command(Command::Join { membership, answer }).await.is_err() {
                        return;
                    }
                }
                Err(error) if complained.as_ref() != Some(&error) => {
                    if let JoinError::Denied { realm, reason } = &error {
                        let (realm, reason) = (realm.clone(), reason.clone());
                        shared.emit(Event::RenewalRefused { realm, reason });
                    }
                    complained = Some(error);
                }
                Err(_) => {}
            }
        }
    };
    stopping.run_until_cancelled(following).await;
}

/// When a file was changed, as far as the system tells.
async fn modified(path: &Path) -> Option<(SystemTime, u64)> {
    let path = path.to_owned();
    let look = move || {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    };
    tokio::task::spawn_blocking(look).await.ok().flatten()
}

fn look_interval(expires: UnixTime) -> Duration {
    let left = expires.0.saturating_sub(Clock::unix_micros() / 1_000);
    Duration::from_millis(left / 10).clamp(LOOK_MIN, LOOK_MAX)
}
