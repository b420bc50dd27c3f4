//! What can go wrong in the laboratory.

use std::fmt;

/// Something that the laboratory needs did not work.
#[derive(Debug, thiserror::Error)]
#[error("{tried}: {what}")]
pub struct LabError {
    tried: String,
    what: String,
    kind: LabErrorKind,
}

/// Whose fault it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LabErrorKind {
    /// This machine or user may not do what the laboratory needs.
    CannotRun,
    /// Somebody asked for the end.
    Stopped,
    /// Anything else.
    Failed,
}

impl LabError {
    pub(crate) fn new(tried: impl fmt::Display, what: impl fmt::Display) -> Self {
        Self { tried: tried.to_string(), what: what.to_string(), kind: LabErrorKind::Failed }
    }

    pub(crate) fn cannot_run(tried: impl fmt::Display, what: impl fmt::Display) -> Self {
        Self { kind: LabErrorKind::CannotRun, ..Self::new(tried, what) }
    }

    pub(crate) fn stopped() -> Self {
        Self { kind: LabErrorKind::Stopped, ..Self::new("the laboratory", "stopped") }
    }

    /// Whose fault it is.
    #[must_use]
    pub fn kind(&self) -> LabErrorKind {
        self.kind
    }
}
