//! What ends a command: an exit code, what happened, and what to do about it.

use std::fmt;
use std::io;

use macula::{
    CallError, DialPeerError, JoinError, PeerError, PublishError, RefusalCode, ServeError,
    StartError, SubscribeError, TryPublishError,
};

/// Exit codes of `macula`, part of its interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Done.
    Ok = 0,
    /// Anything that has no code of its own.
    Failure = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The gateway or the provider cannot be reached.
    Unreachable = 3,
    /// Not allowed here, or the gateway is not who it should be.
    Denied = 4,
    /// It took too long.
    Timeout = 5,
    /// No subscriber or no provider.
    Nobody = 6,
    /// The handler said no.
    Refused = 7,
    /// The other side asks to slow down.
    BackPressure = 8,
    /// This machine, or this user, lacks what the command needs.
    CannotRun = 9,
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command did not do what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// The program's exit code.
    pub(crate) exit: Exit,
    /// One sentence without full stop.
    pub(crate) what: String,
    /// One sentence without full stop; may be empty.
    pub(crate) advice: String,
}

impl Failure {
    /// A failure from its parts.
    pub(crate) fn new(exit: Exit, what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { exit, what: what.into(), advice: advice.into() }
    }

    /// Ends the program with success and without a word: its reader has seen enough.
    pub(crate) fn quiet() -> Self {
        Self::new(Exit::Ok, "", "")
    }

    /// The words of somebody else behind what this program tried.
    pub(crate) fn context(mut self, tried: impl fmt::Display) -> Self {
        self.what = format!("{tried}: {}", self.what);
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if self.advice.is_empty() { Ok(()) } else { write!(f, "\n{}", self.advice) }
    }
}

impl std::error::Error for Failure {}

/// What goes wrong in a command's own code: files, processes, JSON.
impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        match error.downcast::<Self>() {
            Ok(failure) => failure,
            Err(error) => Self::new(Exit::Failure, format!("{error:#}"), ""),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::new(Exit::Failure, error.to_string(), "")
    }
}

/// What to do when the gateway does not answer.
const START_ADVICE: &str =
    "check that a gateway runs there (`macula gateway`), the name, and that UDP gets through";
/// What to do when a name is malformed.
const NAME_ADVICE: &str = "write names as segments joined by dots, for example plant.hall1.temp";
/// What to do when the node ended on its own.
const CLOSED_ADVICE: &str = "try again; --log debug tells more";

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        let what = error.to_string();
        match error {
            StartError::Config(_) => {
                Self::new(Exit::Usage, what, "correct the argument; see --help")
            }
            StartError::Grant(_) => Self::new(
                Exit::Denied,
                what,
                "ask an issuer of the realm for a grant; `macula realm show FILE` tells what a file is",
            ),
            StartError::Key(_) => Self::new(
                Exit::Failure,
                what,
                "name another file with --key, or create one with `macula keygen --out FILE`",
            ),
            StartError::Bind(_) => Self::new(
                Exit::Failure,
                what,
                "check the address, and that this machine lets programs open UDP sockets",
            ),
            StartError::Unreachable { .. } => Self::new(Exit::Unreachable, what, START_ADVICE),
            StartError::WrongKey(_) => Self::new(
                Exit::Denied,
                what,
                "if the gateway was really given a new key, use its new id",
            ),
            StartError::Denied { .. } => Self::new(
                Exit::Denied,
                what,
                "ask the gateway's operator to admit the realm (`macula gateway --realm NAME`)",
            ),
            _ => Self::new(Exit::Failure, what, CLOSED_ADVICE),
        }
    }
}

impl From<JoinError> for Failure {
    fn from(error: JoinError) -> Self {
        StartError::from(error).into()
    }
}

/// Exit code and advice for a router's refusal.
fn refusal(code: RefusalCode) -> (Exit, &'static str) {
    match code {
        RefusalCode::UnknownRealm => {
            (Exit::Denied, "ask the gateway's operator to admit the realm")
        }
        RefusalCode::Denied => (Exit::Denied, "ask the realm's operator for a grant"),
        RefusalCode::BadName => (Exit::Usage, NAME_ADVICE),
        RefusalCode::Limit => (
            Exit::BackPressure,
            "a limit of the gateway is reached: use less, or raise it in the gateway's configuration",
        ),
        RefusalCode::TooLarge => (Exit::Failure, "send smaller messages"),
        RefusalCode::Draining => {
            (Exit::Unreachable, "the gateway is going down: try again in a moment")
        }
        _ => (Exit::Failure, "the gateway may be newer than this program: update it"),
    }
}

impl From<PublishError> for Failure {
    fn from(error: PublishError) -> Self {
        let what = error.to_string();
        match error {
            PublishError::BadTopic(_) => Self::new(Exit::Usage, what, NAME_ADVICE),
            PublishError::TooLarge { .. } => {
                Self::new(Exit::Failure, what, "split the payload into several messages")
            }
            PublishError::Refused { code, reason } => {
                let (exit, advice) = refusal(code);
                Self::new(exit, format!("the gateway did not take the message: {reason}"), advice)
            }
            _ => Self::new(Exit::Failure, what, CLOSED_ADVICE),
        }
    }
}

impl From<TryPublishError> for Failure {
    fn from(error: TryPublishError) -> Self {
        match error {
            TryPublishError::Failed(error) => error.into(),
            _ => Self::new(
                Exit::BackPressure,
                "there is no room to publish now: the network or a subscriber is slower",
                "try again later, or leave out --no-wait",
            ),
        }
    }
}

impl From<PeerError> for Failure {
    fn from(error: PeerError) -> Self {
        let what = error.to_string();
        match error {
            PeerError::Itself => Self::new(Exit::Usage, what, "name another endpoint"),
            PeerError::Closed => Self::new(Exit::Failure, what, CLOSED_ADVICE),
            PeerError::Dial(DialPeerError::Denied) => Self::new(Exit::Denied, what, ""),
            PeerError::Dial(DialPeerError::NoDirectPath { .. }) => Self::new(
                Exit::Timeout,
                what,
                "without `direct_only` the link works through the gateway",
            ),
            _ => Self::new(
                Exit::Unreachable,
                what,
                "check that the peer runs, at the same gateway and in the same realm",
            ),
        }
    }
}

impl From<SubscribeError> for Failure {
    fn from(error: SubscribeError) -> Self {
        let what = error.to_string();
        match error {
            SubscribeError::BadPattern(_) => {
                let advice = "`*` stands for one segment, a trailing `**` for all the rest";
                Self::new(Exit::Usage, what, advice)
            }
            SubscribeError::Refused { code, reason } => {
                let (exit, advice) = refusal(code);
                Self::new(exit, format!("the gateway refuses the subscription: {reason}"), advice)
            }
            _ => Self::new(Exit::Failure, what, CLOSED_ADVICE),
        }
    }
}

impl From<ServeError> for Failure {
    fn from(error: ServeError) -> Self {
        let what = error.to_string();
        match error {
            ServeError::BadName(_) => Self::new(Exit::Usage, what, NAME_ADVICE),
            ServeError::Refused { code, reason } => {
                let (exit, advice) = refusal(code);
                Self::new(exit, format!("the gateway refuses the procedure: {reason}"), advice)
            }
            _ => Self::new(Exit::Failure, what, CLOSED_ADVICE),
        }
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        let what = error.to_string();
        let (exit, advice) = match error {
            CallError::BadName(_) => (Exit::Usage, NAME_ADVICE),
            CallError::TooLarge { .. } => (Exit::Failure, "send a smaller argument"),
            CallError::NoProvider => {
                (Exit::Nobody, "check realm and name, and that a provider runs (`macula serve`)")
            }
            CallError::Unreachable { .. } => (
                Exit::Unreachable,
                "the call may or may not have run; --idempotent lets it move to another provider",
            ),
            CallError::Deadline { .. } => (Exit::Timeout, "give it more time with --timeout"),
            CallError::Cancelled { .. } => (Exit::Failure, ""),
            CallError::Refused { .. } => (Exit::Refused, ""),
            CallError::Busy { .. } => {
                (Exit::BackPressure, "try again later, or run more providers")
            }
            CallError::Internal { .. } => (Exit::Failure, "look at the provider's log"),
            CallError::Denied { .. } => (Exit::Denied, "ask the realm's operator for a grant"),
            _ => (Exit::Failure, CLOSED_ADVICE),
        };
        Self::new(exit, what, advice)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn check(failure: impl Into<Failure>, exit: Exit) {
        let failure = failure.into();
        assert_eq!(failure.exit, exit, "{failure}");
        assert!(!failure.what.is_empty());
    }

    #[test]
    fn each_call_error_has_its_exit_code() {
        let (message, retry_safe) = (|| "m".to_owned(), false);
        check(CallError::NoProvider, Exit::Nobody);
        check(CallError::Unreachable { message: message(), retry_safe }, Exit::Unreachable);
        check(CallError::Deadline { retry_safe }, Exit::Timeout);
        check(CallError::Refused { code: 9, message: message(), retry_safe }, Exit::Refused);
        check(
            CallError::Busy { retry_after: Duration::from_secs(1), retry_safe },
            Exit::BackPressure,
        );
        check(CallError::Internal { message: message(), retry_safe }, Exit::Failure);
        check(CallError::Denied { message: message() }, Exit::Denied);
        check(CallError::TooLarge { bytes: 2, max: 1 }, Exit::Failure);
        check(CallError::Closed, Exit::Failure);
    }

    #[test]
    fn each_start_error_has_its_exit_code() {
        let reason = || "r".to_owned();
        check(StartError::Config(reason()), Exit::Usage);
        check(StartError::Bind(reason()), Exit::Failure);
        let after = Duration::from_secs(1);
        check(StartError::Unreachable { after, reason: reason() }, Exit::Unreachable);
        check(StartError::Denied { realm: "r".to_owned(), reason: reason() }, Exit::Denied);
        check(StartError::Closed, Exit::Failure);
    }

    #[test]
    fn each_refusal_has_its_exit_code() {
        for (code, exit) in [
            (RefusalCode::UnknownRealm, Exit::Denied),
            (RefusalCode::Denied, Exit::Denied),
            (RefusalCode::BadName, Exit::Usage),
            (RefusalCode::Limit, Exit::BackPressure),
            (RefusalCode::TooLarge, Exit::Failure),
            (RefusalCode::Draining, Exit::Unreachable),
            (RefusalCode::Unknown, Exit::Failure),
        ] {
            check(PublishError::Refused { code, reason: "r".to_owned() }, exit);
            check(SubscribeError::Refused { code, reason: "r".to_owned() }, exit);
            check(ServeError::Refused { code, reason: "r".to_owned() }, exit);
        }
    }

    #[test]
    fn would_block_is_back_pressure() {
        check(TryPublishError::WouldBlock, Exit::BackPressure);
    }

    #[test]
    fn a_failure_survives_anyhow() {
        let failure = Failure::new(Exit::Nobody, "what", "advice");
        assert_eq!(Failure::from(anyhow::Error::from(failure.clone())), failure);
        check(anyhow::anyhow!("other"), Exit::Failure);
    }
}
