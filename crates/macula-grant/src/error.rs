//! What can go wrong in making tokens and in reading their text forms.

use macula_proto::auth::Denial;
use macula_proto::limits::{GRANT_BYTES_MAX, REVOCATIONS_BYTES_MAX};

use crate::terms::{BLOCKS_MAX, CONTACT_BYTES_MAX, RULES_PER_BLOCK_MAX};
use crate::text::{Kind, TEXT_BYTES_MAX};

/// A token cannot be made as asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MakeError {
    /// The root's own block must say what it allows.
    #[error("the root must say what it allows; give at least one rule, or an empty list")]
    NoAllow,
    /// The root's own block must say when it ends.
    #[error("the root must say when this expires")]
    NoExpiry,
    /// It would expire before it begins to hold.
    #[error("it would expire before it begins to hold")]
    NeverValid,
    /// More rules than a block may have.
    #[error("{0} rules are too many; a block holds at most {max}", max = RULES_PER_BLOCK_MAX)]
    TooManyRules(usize),
    /// The chain is at its end.
    #[error("it was narrowed {max} times already; ask an issuer nearer to the root", max = BLOCKS_MAX - 1)]
    TooManyBlocks,
    /// Too many bytes for the handshake.
    #[error(
        "it would have {0} bytes, and {max} are allowed; give fewer or wider rules",
        max = GRANT_BYTES_MAX
    )]
    TooLarge(usize),
    /// Too many bytes for a record.
    #[error(
        "the record would have {0} bytes, and {max} are allowed; begin a new epoch, which voids \
         all earlier grants at once",
        max = REVOCATIONS_BYTES_MAX
    )]
    RecordTooLarge(usize),
    /// The contact is empty, too long, or has characters that cannot be seen.
    #[error("a contact has 1 to {max} bytes without control characters", max = CONTACT_BYTES_MAX)]
    Contact,
    /// The signing library refused.
    #[error("cannot sign: {0}")]
    Sign(String),
}

/// A text is not what was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// Nothing in it looks like it.
    #[error("this is no {0}: there is no line that begins with `{prefix}`", prefix = .0.prefix())]
    Missing(Kind),
    /// Nothing in it looks like anything of this crate.
    #[error(
        "this is no file of a realm: no line begins with `macula-grant:`, `macula-issuer:`, \
         `macula-realm-key:` or `macula-revocations:`"
    )]
    Unknown,
    /// It is something else.
    #[error("this is {}, and {} is needed; {}", found.article(), wanted.article(), found.advice(*wanted))]
    WrongKind {
        /// What was asked for.
        wanted: Kind,
        /// What came.
        found: Kind,
    },
    /// More than one line looks like it.
    #[error("there is more than one {0} in it; keep one to a file")]
    Several(Kind),
    /// More than any of them can have.
    #[error("it has more than {max} bytes", max = TEXT_BYTES_MAX)]
    TooLong,
    /// The line is damaged.
    #[error("the line `{prefix}…` is damaged or cut off; copy it again", prefix = .0.prefix())]
    Damaged(Kind),
    /// The line can be read and what it says does not hold.
    #[error(transparent)]
    Content(Denial),
}
