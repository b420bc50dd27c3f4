//! One error per operation, saying what the caller can do about it.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use macula_proto::EndpointId;
use macula_proto::pubsub::NameError;
use macula_proto::wire::message::{CallFailure, ErrorClass, RefusalCode};

/// A gateway showed another key than the one expected; nothing was said to it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WrongKey {
    /// The gateway as configured.
    pub gateway: String,
    /// The key that it should have: from the configuration or pinned at first use.
    pub expected: EndpointId,
    /// The key that it has, where the handshake got far enough to show it.
    pub found: Option<EndpointId>,
    /// The pin file that `expected` comes from; `None` when it was configured or pinned in memory.
    pub pin_file: Option<PathBuf>,
}

impl fmt::Display for WrongKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gateway {} should have the key {}", self.gateway, self.expected)?;
        match self.found {
            Some(found) => write!(f, " but has {found}")?,
            None => f.write_str(" but has another")?,
        }
        match &self.pin_file {
            Some(path) => write!(
                f,
                "; if the change is intended, remove its line from {} and start again",
                path.display()
            ),
            None => f.write_str("; if the change is intended, configure the new key"),
        }
    }
}

impl std::error::Error for WrongKey {}

/// Why a key file cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[error("key file {}: {reason}", path.display())]
pub struct KeyFileError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong and what to do.
    pub reason: String,
}

/// Why a node or router did not start. Nothing of it is left behind.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A setting is missing or malformed; the text says which.
    #[error("{0}")]
    Config(String),
    /// The key file cannot be used.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// The grant cannot be used; the text says which and why.
    #[error("{0}")]
    Grant(String),
    /// The local UDP socket could not be set up.
    #[error("cannot open the local socket: {0}")]
    Bind(String),
    /// No gateway answered in time.
    #[error("no gateway reached within {after:?}: {reason}")]
    Unreachable {
        /// How long it was tried.
        after: Duration,
        /// What the last attempt said.
        reason: String,
    },
    /// Every gateway showed a wrong key.
    #[error(transparent)]
    WrongKey(#[from] WrongKey),
    /// The gateway does not admit this node to a realm.
    #[error("realm {realm}: {reason}")]
    Denied {
        /// The realm.
        realm: String,
        /// The gateway's reason.
        reason: String,
    },
    /// The node ended while it started.
    #[error("the node ended while starting")]
    Closed,
}

/// Why a realm was not joined.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// The name is empty, too long or holds other characters than letters, digits, `.`, `-`, `_`.
    #[error("{0:?} is not a realm name")]
    BadName(String),
    /// The gateway does not admit this node.
    #[error("realm {realm}: {reason}")]
    Denied {
        /// The realm.
        realm: String,
        /// The gateway's reason.
        reason: String,
    },
    /// No gateway answered in time; the wish stays and is repeated at the next connection.
    #[error("no gateway answered in time")]
    Timeout,
    /// The node is closed.
    #[error("the node is closed")]
    Closed,
}

/// Why a message was not published.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The topic is malformed.
    #[error("bad topic: {0}")]
    BadTopic(#[from] NameError),
    /// The payload is larger than a message may be; use a streaming call.
    #[error("a payload of {bytes} bytes is over the limit of {max}")]
    TooLarge {
        /// Size of the payload, bytes.
        bytes: usize,
        /// What a message may have, bytes.
        max: usize,
    },
    /// The router did not take it.
    #[error("refused ({code:?}): {reason}")]
    Refused {
        /// Why.
        code: RefusalCode,
        /// Why, in the router's words.
        reason: String,
    },
    /// The node is closed.
    #[error("the node is closed")]
    Closed,
}

/// Why a message was not published at once.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TryPublishError {
    /// No room now: subscribers or the network are slower than the publisher.
    #[error("no room to publish now")]
    WouldBlock,
    /// It will not work later either.
    #[error(transparent)]
    Failed(#[from] PublishError),
}

/// Why a subscription was not made or has ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubscribeError {
    /// The pattern is malformed.
    #[error("bad pattern: {0}")]
    BadPattern(#[from] NameError),
    /// The router does not allow it.
    #[error("refused ({code:?}): {reason}")]
    Refused {
        /// Why.
        code: RefusalCode,
        /// Why, in the router's words.
        reason: String,
    },
    /// The node is closed.
    #[error("the node is closed")]
    Closed,
}

/// Why a procedure is not served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The procedure's name is malformed.
    #[error("bad procedure name: {0}")]
    BadName(#[from] NameError),
    /// The router does not allow it.
    #[error("refused ({code:?}): {reason}")]
    Refused {
        /// Why.
        code: RefusalCode,
        /// Why, in the router's words.
        reason: String,
    },
    /// The node is closed.
    #[error("the node is closed")]
    Closed,
}

/// Why a call failed. [`CallError::retry_safe`] says whether another try does no harm.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The procedure's name is malformed.
    #[error("bad procedure name: {0}")]
    BadName(#[from] NameError),
    /// The argument is larger than allowed; send it in items of a streaming call.
    #[error("an argument of {bytes} bytes is over the limit of {max}")]
    TooLarge {
        /// Size of the argument, bytes.
        bytes: usize,
        /// What a call may carry, bytes.
        max: usize,
    },
    /// Nobody serves the procedure.
    #[error("nobody serves this procedure")]
    NoProvider,
    /// The provider, or the way to it, was lost.
    #[error("provider unreachable: {message}")]
    Unreachable {
        /// What the node or router knows.
        message: String,
        /// See [`CallError::retry_safe`].
        retry_safe: bool,
    },
    /// No answer came before the deadline.
    #[error("no answer before the deadline")]
    Deadline {
        /// See [`CallError::retry_safe`].
        retry_safe: bool,
    },
    /// The call was given up.
    #[error("the call was cancelled")]
    Cancelled {
        /// See [`CallError::retry_safe`].
        retry_safe: bool,
    },
    /// The handler said no; code and message are its own.
    #[error("refused with code {code}: {message}")]
    Refused {
        /// The handler's code.
        code: u16,
        /// The handler's words.
        message: String,
        /// See [`CallError::retry_safe`].
        retry_safe: bool,
    },
    /// The provider has no room.
    #[error("the provider is busy, retry after {retry_after:?}")]
    Busy {
        /// When to try again.
        retry_after: Duration,
        /// See [`CallError::retry_safe`].
        retry_safe: bool,
    },
    /// The handler failed.
    #[error("the provider failed: {message}")]
    Internal {
        /// What is known.
        message: String,
        /// See [`CallError::retry_safe`].
        retry_safe: bool,
    },
    /// This node may not call the procedure.
    #[error("not allowed: {message}")]
    Denied {
        /// Why.
        message: String,
    },
    /// A failure of a class that this version does not know.
    #[error("the call failed: {message}")]
    Other {
        /// What the other side says.
        message: String,
        /// See [`CallError::retry_safe`].
        retry_safe: bool,
    },
    /// The node is closed; whether the call ran is unknown.
    #[error("the node is closed")]
    Closed,
}

impl CallError {
    /// Whether another try does no harm: the call surely did not run, or it was declared
    /// idempotent and its provider was lost. Repeating helps only where the cause goes away
    /// (`Busy`, `Unreachable`, ...).
    pub fn retry_safe(&self) -> bool {
        match self {
            Self::NoProvider | Self::Denied { .. } | Self::BadName(_) | Self::TooLarge { .. } => {
                true
            }
            Self::Unreachable { retry_safe, .. }
            | Self::Deadline { retry_safe }
            | Self::Cancelled { retry_safe }
            | Self::Refused { retry_safe, .. }
            | Self::Busy { retry_safe, .. }
            | Self::Internal { retry_safe, .. }
            | Self::Other { retry_safe, .. } => *retry_safe,
            Self::Closed => false,
        }
    }
}

impl From<CallFailure> for CallError {
    fn from(failure: CallFailure) -> Self {
        let CallFailure { class, code, message, retry_after, retry_safe } = failure;
        match class {
            ErrorClass::NoProvider => Self::NoProvider,
            ErrorClass::Unreachable => Self::Unreachable { message, retry_safe },
            ErrorClass::Deadline => Self::Deadline { retry_safe },
            ErrorClass::Cancelled => Self::Cancelled { retry_safe },
            ErrorClass::Refused => Self::Refused { code, message, retry_safe },
            ErrorClass::Busy => Self::Busy { retry_after, retry_safe },
            ErrorClass::Internal => Self::Internal { message, retry_safe },
            ErrorClass::Denied => Self::Denied { message },
            _ => Self::Other { message, retry_safe },
        }
    }
}

/// Why an item was not sent on a streaming call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The item is larger than an item may be.
    #[error("an item of {bytes} bytes is over the limit of {max}")]
    TooLarge {
        /// Size of the item, bytes.
        bytes: usize,
        /// What an item may have, bytes.
        max: usize,
    },
    /// The call has ended, or this side has said that it sends no more.
    #[error("the stream has ended")]
    Ended,
}

/// The node is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the node is closed")]
pub struct Closed;

macro_rules! from_closed {
    ($($error:ident),*) => {$(
        impl From<Closed> for $error {
            fn from(_: Closed) -> Self {
                Self::Closed
            }
        }
    )*};
}

from_closed!(StartError, JoinError, PublishError, SubscribeError, ServeError, CallError);

impl From<JoinError> for StartError {
    fn from(error: JoinError) -> Self {
        match error {
            JoinError::BadName(name) => Self::Config(format!("{name:?} is not a realm name")),
            JoinError::Denied { realm, reason } => Self::Denied { realm, reason },
            JoinError::Timeout => {
                Self::Unreachable { after: Duration::ZERO, reason: "no answer".to_owned() }
            }
            JoinError::Closed => Self::Closed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_keep_the_handlers_words() {
        let failure = CallFailure {
            class: ErrorClass::Refused,
            code: 42,
            message: "too warm".to_owned(),
            retry_after: Duration::ZERO,
            retry_safe: false,
        };
        let error = CallError::from(failure);
        assert_eq!(error.to_string(), "refused with code 42: too warm");
        assert!(!error.retry_safe());
    }

    #[test]
    fn a_wrong_key_names_both_ids_and_the_file_to_edit() {
        let (one, other) = (EndpointId::from_bytes([1; 32]), EndpointId::from_bytes([2; 32]));
        let text = WrongKey {
            gateway: "gw:4433".to_owned(),
            expected: one,
            found: Some(other),
            pin_file: Some("/etc/pins".into()),
        }
        .to_string();
        for part in ["gw:4433", &one.to_string(), &other.to_string(), "/etc/pins"] {
            assert!(text.contains(part), "{part} is missing in: {text}");
        }
    }
}
