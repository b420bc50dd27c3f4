//! Why not.

use std::fmt;

use super::{BlockId, UnixTime, Verb};
use crate::id::EndpointId;

/// Patterns named in the text of a denial; more are counted.
const PATTERNS_SHOWN_MAX: usize = 4;

/// Why somebody may not do something in a guarded realm. The text says what is missing and who can
/// give it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Denial {
    /// No grant was shown.
    #[error(
        "the realm is guarded and no grant was shown; ask an issuer of the realm for a grant for \
         this endpoint, and pass it with --grant"
    )]
    NoGrant,
    /// The bytes are no grant, or say something that this version does not know.
    #[error("the grant cannot be read: {0}; ask its issuer for a new one")]
    Malformed(String),
    /// A signature does not hold, or another realm's root signed it.
    #[error("the grant is not from this realm: {0}; ask an issuer of this realm for one")]
    Forged(String),
    /// It was given to another endpoint.
    #[error(
        "the grant is bound to the key of endpoint {bound} and was shown by another; use that key, \
         or ask an issuer for a grant for this endpoint"
    )]
    OtherEndpoint {
        /// To whom it was given.
        bound: EndpointId,
    },
    /// Its time is over.
    #[error("the grant expired at {}; renew it with {}", Moment(*at), Contact(contact))]
    Expired {
        /// Since when.
        at: UnixTime,
        /// Whom to ask.
        contact: String,
    },
    /// Its time has not begun.
    #[error(
        "the grant holds only from {} on, and here it is {}; check both clocks",
        Moment(*from),
        Moment(*now)
    )]
    NotYet {
        /// From when.
        from: UnixTime,
        /// The time at the one who decides.
        now: UnixTime,
    },
    /// The realm began a new epoch.
    #[error(
        "the grant is of epoch {epoch} and the realm is in epoch {epoch_min}; ask an issuer for a \
         new one"
    )]
    OldEpoch {
        /// The grant's.
        epoch: u64,
        /// The oldest that counts.
        epoch_min: u64,
    },
    /// The realm's root excluded the endpoint.
    #[error("the realm's owner has revoked this endpoint")]
    EndpointRevoked,
    /// The realm's root took the grant, or what it was derived from, back.
    #[error(
        "the realm's owner has revoked this grant (block {block}); ask an issuer for a new one"
    )]
    GrantRevoked {
        /// Which of its blocks.
        block: BlockId,
    },
    /// It does not cover what was asked for.
    #[error(
        "the grant does not allow {verb} on `{target}`: {}; ask {} for a grant that does",
        Allowed { verb: *verb, denied_by: denied_by.as_deref(), patterns: allowed },
        Contact(contact)
    )]
    NotAllowed {
        /// To do what.
        verb: Verb,
        /// With what: a name or a pattern.
        target: String,
        /// The pattern that denies it; `None`: nothing allows it.
        denied_by: Option<String>,
        /// Patterns that are allowed for this verb.
        allowed: Vec<String>,
        /// Whom to ask.
        contact: String,
    },
    /// So many grants were shown that checking them costs too much.
    #[error("too many grants were shown on this link; try again in {seconds} s")]
    TooOften {
        /// When the next one will be looked at.
        seconds: u64,
    },
    /// The one who decides does not know what time it is, or cannot check signatures.
    #[error("this endpoint cannot check grants: {0}")]
    CannotCheck(&'static str),
}

/// Whom to ask.
struct Contact<'a>(&'a str);

impl fmt::Display for Contact<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            "" => f.write_str("an issuer of the realm"),
            contact => f.write_str(contact),
        }
    }
}

/// What the grant does allow.
struct Allowed<'a> {
    verb: Verb,
    denied_by: Option<&'a str>,
    patterns: &'a [String],
}

impl fmt::Display for Allowed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(pattern) = self.denied_by {
            return write!(f, "it denies {} on `{pattern}`", self.verb);
        }
        if self.patterns.is_empty() {
            return write!(f, "it allows no {} at all", self.verb);
        }
        write!(f, "it allows {} on ", self.verb)?;
        for (index, pattern) in self.patterns.iter().take(PATTERNS_SHOWN_MAX).enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            write!(f, "{comma}`{pattern}`")?;
        }
        match self.patterns.len().saturating_sub(PATTERNS_SHOWN_MAX) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// A moment as `2026-11-22T20:15:00Z` (RFC 3339, whole seconds).
struct Moment(UnixTime);

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let (days, second) = (seconds / 86_400, seconds % 86_400);
        // Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", civil_from_days
        let shifted = days + 719_468;
        let era = shifted / 146_097;
        let day_of_era = shifted % 146_097;
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_index = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_index + 2) / 5 + 1;
        let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

impl UnixTime {
    /// As `2026-11-22T20:15:00Z` (RFC 3339, UTC, whole seconds).
    pub fn to_rfc3339(self) -> String {
        Moment(self).to_string()
    }
}
