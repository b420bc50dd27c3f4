//! What surrounds a token: kind, root key, name.

use macula_proto::auth::Denial;
use macula_proto::limits::REALM_NAME_BYTES_MAX;

use crate::realm::Realm;
use crate::text::Kind;

/// Bytes before the name.
const FIXED_BYTES: usize = 1 + 32 + 1;

/// One of this crate's things as bytes: kind, root key, length of the name, name, body (§7.2).
#[derive(Debug)]
pub(crate) struct Envelope<'a> {
    pub(crate) realm: Realm,
    pub(crate) body: &'a [u8],
}

impl<'a> Envelope<'a> {
    /// Takes `bytes` apart; costs nothing that grows with them.
    pub(crate) fn read(kind: Kind, bytes: &'a [u8], bytes_max: usize) -> Result<Self, Denial> {
        if bytes.len() > bytes_max {
            let length = bytes.len();
            return Err(malformed(format!("{length} bytes, and {bytes_max} are allowed")));
        }
        let (&first, rest) = bytes.split_first().ok_or_else(|| malformed("it is empty"))?;
        if first != kind as u8 {
            return Err(malformed(match Kind::from_byte(first) {
                Some(found) => format!("it is {}", found.article()),
                None => format!("version {first} is not known here"),
            }));
        }
        let cut_off = || malformed("it is cut off");
        let (root, rest) = rest.split_first_chunk::<32>().ok_or_else(cut_off)?;
        let (&length, rest) = rest.split_first().ok_or_else(cut_off)?;
        let (name, body) = rest.split_at_checked(usize::from(length)).ok_or_else(cut_off)?;
        let name = std::str::from_utf8(name).ok().and_then(|name| name.parse().ok());
        let name = name.ok_or_else(|| malformed("the realm's name is no name"))?;
        Ok(Self { realm: Realm { name, root: *root }, body })
    }

    /// Puts it together.
    pub(crate) fn write(kind: Kind, realm: &Realm, body: &[u8]) -> Vec<u8> {
        const { assert!(REALM_NAME_BYTES_MAX <= u8::MAX as usize) };
        let name = realm.name.as_str().as_bytes();
        let mut bytes = Vec::with_capacity(FIXED_BYTES + name.len() + body.len());
        bytes.push(kind as u8);
        bytes.extend_from_slice(&realm.root);
        bytes.push(name.len() as u8);
        bytes.extend_from_slice(name);
        bytes.extend_from_slice(body);
        bytes
    }
}

/// Shorthand.
pub(crate) fn malformed(what: impl Into<String>) -> Denial {
    Denial::Malformed(what.into())
}
