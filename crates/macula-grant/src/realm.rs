//! Which guarded realm.

use std::fmt;
use std::str::FromStr;

use macula_proto::id::ParseIdError;
use macula_proto::limits::REALM_NAME_BYTES_MAX;
use macula_proto::{EndpointId, RealmId};

/// The name of a realm: 1 to 128 ASCII letters, digits, `.`, `-` and `_`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RealmName(String);

impl RealmName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RealmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for RealmName {
    type Err = ParseRealmError;

    fn from_str(text: &str) -> Result<Self, ParseRealmError> {
        let is_known = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        match text.len() {
            0 => Err(ParseRealmError::NoName),
            length if length > REALM_NAME_BYTES_MAX => Err(ParseRealmError::NameLength(length)),
            _ if !text.bytes().all(is_known) => Err(ParseRealmError::NameCharacter),
            _ => Ok(Self(text.to_owned())),
        }
    }
}

/// A guarded realm, self-certified: its name, and the key that rules it.
///
/// Printed as `NAME@ROOT`, the root in z-base-32 like an endpoint's id.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Realm {
    /// What people call it; unique only together with the root.
    pub name: RealmName,
    /// The Ed25519 public key.
    pub root: [u8; 32],
}

impl Realm {
    /// Its id, which commits to both.
    pub fn id(&self) -> RealmId {
        RealmId::guarded(&self.root, self.name.as_str())
    }
}

impl fmt::Display for Realm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The text form of keys is that of endpoint ids.
        write!(f, "{}@{}", self.name, EndpointId::from_bytes(self.root))
    }
}

impl fmt::Debug for Realm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Realm({}@{})", self.name, EndpointId::from_bytes(self.root).short())
    }
}

impl FromStr for Realm {
    type Err = ParseRealmError;

    fn from_str(text: &str) -> Result<Self, ParseRealmError> {
        let (name, root) = text.split_once('@').ok_or(ParseRealmError::NoRoot)?;
        let root: EndpointId = root.parse().map_err(ParseRealmError::Root)?;
        Ok(Self { name: name.parse()?, root: *root.as_bytes() })
    }
}

/// A text is not a [`Realm`] or a [`RealmName`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseRealmError {
    /// There is no name.
    #[error("the realm's name is empty; write one, for example com.example.energy")]
    NoName,
    /// The name has this many bytes.
    #[error("the realm's name has {0} bytes; at most {max} are allowed", max = REALM_NAME_BYTES_MAX)]
    NameLength(usize),
    /// The name has other characters.
    #[error("the realm's name may have ASCII letters, digits, `.`, `-` and `_` only")]
    NameCharacter,
    /// There is no `@`.
    #[error("a guarded realm is written NAME@ROOTKEY; the key is missing")]
    NoRoot,
    /// What follows the `@` is no key.
    #[error("the realm's root key: {0}")]
    Root(#[source] ParseIdError),
}
