//! Text forms: comments for people, and one line `macula-KIND:BASE64` for programs.

use std::fmt;

use macula_proto::limits::REVOCATIONS_BYTES_MAX;

use crate::error::TextError;

/// A text form is not longer than this, bytes.
pub const TEXT_BYTES_MAX: usize = REVOCATIONS_BYTES_MAX.div_ceil(3) * 4 + 64 * 1024;

/// Base64 for URLs (RFC 4648 §5), without padding.
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// What a text or a byte string is. The number is its first byte, and stands for its version, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// [`Grant`](crate::Grant).
    Grant = 1,
    /// [`Record`](crate::Record).
    Revocations = 2,
    /// [`IssuerToken`](crate::IssuerToken).
    Issuer = 3,
    /// [`RealmKey`](crate::RealmKey).
    RealmKey = 4,
}

impl Kind {
    /// All of them.
    const ALL: [Self; 4] = [Self::Grant, Self::Revocations, Self::Issuer, Self::RealmKey];

    /// What `text` has in it.
    ///
    /// # Errors
    /// When it has none of these things, or is too long.
    pub fn of_text(text: &str) -> Result<Self, TextError> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(TextError::TooLong);
        }
        entries(text).next().map(|(kind, _)| kind).ok_or(TextError::Unknown)
    }

    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == byte)
    }

    /// How its line begins.
    pub(crate) const fn prefix(self) -> &'static str {
        match self {
            Self::Grant => "macula-grant:",
            Self::Revocations => "macula-revocations:",
            Self::Issuer => "macula-issuer:",
            Self::RealmKey => "macula-realm-key:",
        }
    }

    pub(crate) const fn article(self) -> &'static str {
        match self {
            Self::Grant => "a grant",
            Self::Revocations => "a record of revocations",
            Self::Issuer => "an issuer token",
            Self::RealmKey => "a realm's root key",
        }
    }

    /// What to do when this is there and `wanted` is needed.
    pub(crate) const fn advice(self, wanted: Self) -> &'static str {
        match (self, wanted) {
            (Self::Issuer, Self::Grant) => {
                "make a grant from it: macula realm grant --issuer FILE --for ENDPOINTID"
            }
            (Self::RealmKey, Self::Grant) => {
                "make a grant with it: macula realm grant --root FILE --for ENDPOINTID"
            }
            (Self::RealmKey, Self::Issuer) => "pass a root key with --root",
            (Self::Issuer, Self::RealmKey) => "pass an issuer token with --issuer",
            (Self::Grant, Self::Issuer | Self::RealmKey) => {
                "a grant makes no other grants; it can be narrowed: macula realm grant --from FILE"
            }
            _ => "pass the file that is",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Grant => "grant",
            Self::Revocations => "record of revocations",
            Self::Issuer => "issuer token",
            Self::RealmKey => "root key of a realm",
        })
    }
}

/// Writes `bytes` under `comments`.
pub(crate) fn write(kind: Kind, comments: &[String], bytes: &[u8]) -> String {
    let comment_bytes: usize = comments.iter().map(|line| line.len() + 3).sum();
    let room = comment_bytes + kind.prefix().len() + bytes.len().div_ceil(3) * 4 + 1;
    // At once, so that no copy of a secret is left behind by growing.
    let mut text = String::with_capacity(room);
    for comment in comments {
        text.push_str("# ");
        text.push_str(comment);
        text.push('\n');
    }
    text.push_str(kind.prefix());
    encode(bytes, &mut text);
    text.push('\n');
    text
}

/// Finds the one line of `kind` in `text` and decodes it.
pub(crate) fn read(kind: Kind, text: &str) -> Result<Vec<u8>, TextError> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(TextError::TooLong);
    }
    let mut own = entries(text).filter(|(found, _)| *found == kind);
    match (own.next(), own.next()) {
        (Some((_, encoded)), None) => decode(encoded).ok_or(TextError::Damaged(kind)),
        (Some(_), Some(_)) => Err(TextError::Several(kind)),
        (None, _) => Err(match entries(text).next() {
            Some((found, _)) => TextError::WrongKind { wanted: kind, found },
            None => TextError::Missing(kind),
        }),
    }
}

/// Lines that are one of these things.
fn entries(text: &str) -> impl Iterator<Item = (Kind, &str)> {
    text.lines().filter_map(|line| {
        let line = line.trim();
        let known = |kind: Kind| line.strip_prefix(kind.prefix()).map(|rest| (kind, rest));
        Kind::ALL.into_iter().find_map(known)
    })
}

fn encode(bytes: &[u8], text: &mut String) {
    for chunk in bytes.chunks(3) {
        let byte = |index: usize| u32::from(chunk.get(index).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for index in 0..=chunk.len() {
            text.push(char::from(ALPHABET[(bits >> (18 - 6 * index) & 63) as usize]));
        }
    }
}

fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 2);
    for chunk in text.as_bytes().chunks(4) {
        let mut bits = 0u32;
        for character in chunk {
            let value = ALPHABET.iter().position(|known| known == character)?;
            bits = bits << 6 | value as u32;
        }
        // Bits of the last byte that nobody needs must be zero: one text for one byte string.
        let (count, rest) = match chunk.len() {
            4 => (3, 0),
            3 => (2, 2),
            2 => (1, 4),
            _ => return None,
        };
        if bits & ((1 << rest) - 1) != 0 {
            return None;
        }
        let whole = (bits >> rest).to_be_bytes();
        bytes.extend_from_slice(whole.get(4 - count..)?);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn base64_as_in_rfc_4648() {
        for (plain, encoded) in
            [("", ""), ("f", "Zg"), ("fo", "Zm8"), ("foo", "Zm9v"), ("fooba", "Zm9vYmE")]
        {
            let mut text = String::new();
            encode(plain.as_bytes(), &mut text);
            assert_eq!(text, encoded);
            assert_eq!(decode(encoded).unwrap(), plain.as_bytes());
        }
        for wrong in ["Z", "Zh", "Zg==", "Zm8/", "Zm 8", "Zm9vY"] {
            assert_eq!(decode(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn bytes_round_trip(bytes: Vec<u8>) {
            let text = write(Kind::Grant, &["a comment".to_owned()], &bytes);
            prop_assert_eq!(read(Kind::Grant, &text), Ok(bytes));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "[a-z:# \\n-]{0,80}") {
            read(Kind::Grant, &text).ok();
            Kind::of_text(&text).ok();
        }
    }
}
