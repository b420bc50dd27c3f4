//! `macula call`.

use std::io::Write;

use bytes::Bytes;
use macula::{CallError, ProviderPolicy};
use macula_gateway::signal::StopSignal;
use serde_json::json;

use crate::args::{CallArgs, ChoiceArg};
use crate::connect;
use crate::failure::{Exit, Failure};
use crate::{input, out};

/// Calls a procedure and prints its result.
pub(crate) async fn run(args: CallArgs) -> Result<(), Failure> {
    let mut stop = StopSignal::listen()?;
    let argument = match args.argument.as_deref() {
        None => Bytes::new(),
        Some("-") => input::payload(macula::MESSAGE_BYTES_MAX).await?,
        Some(text) => Bytes::copy_from_slice(text.as_bytes()),
    };
    let connected =
        connect::node(&args.gateway.gateway, &args.gateway.connect, args.realm.membership());
    let (node, watch) = connected.await?;
    let call = node
        .call_with(&args.procedure)
        .arg(argument)
        .deadline(args.timeout)
        .idempotent(args.idempotent)
        .policy(args.choose.into());
    let result = tokio::select! {
        result = call.send() => result,
        signal = stop.received() => {
            connect::close(node, watch).await;
            return Err(Failure::new(Exit::Failure, format!("interrupted by {signal}"), ""));
        }
    };
    connect::close(node, watch).await;
    match result {
        Ok(result) => print(&args, &result),
        Err(error) => {
            if args.json {
                out::json(&error_json(&error))?;
            }
            Err(Failure::from(error).context(format_args!("call {}", args.procedure)))
        }
    }
}

/// Prints a result: its bytes, and a newline unless it ends with one.
fn print(args: &CallArgs, result: &Bytes) -> Result<(), Failure> {
    if args.json {
        let text = std::str::from_utf8(result);
        return out::json(&match text {
            Ok(text) => json!({ "ok": true, "result": text }),
            Err(_) => json!({ "ok": true, "result_base64": out::base64(result) }),
        });
    }
    let mut line = result.to_vec();
    if line.last() != Some(&b'\n') {
        line.push(b'\n');
    }
    let mut stdout = std::io::stdout();
    stdout.write_all(&line).and_then(|()| stdout.flush()).map_err(out::stdout_failure)
}

fn error_json(error: &CallError) -> serde_json::Value {
    let (class, code) = match error {
        CallError::NoProvider => ("no_provider", None),
        CallError::Unreachable { .. } => ("unreachable", None),
        CallError::Deadline { .. } => ("deadline", None),
        CallError::Cancelled { .. } => ("cancelled", None),
        CallError::Refused { code, .. } => ("refused", Some(*code)),
        CallError::Busy { .. } => ("busy", None),
        CallError::Internal { .. } => ("internal", None),
        CallError::Denied { .. } => ("denied", None),
        CallError::BadName(_) => ("bad_name", None),
        CallError::TooLarge { .. } => ("too_large", None),
        _ => ("other", None),
    };
    let message = match error {
        CallError::Refused { message, .. } => message.clone(),
        other => other.to_string(),
    };
    let mut object = json!({
        "ok": false, "class": class, "message": message, "retry_safe": error.retry_safe(),
    });
    if let (Some(code), Some(object)) = (code, object.as_object_mut()) {
        object.insert("code".to_owned(), json!(code));
    }
    object
}

impl From<ChoiceArg> for ProviderPolicy {
    fn from(choice: ChoiceArg) -> Self {
        match choice {
            ChoiceArg::Nearest => Self::Nearest,
            ChoiceArg::RoundRobin => Self::RoundRobin,
            ChoiceArg::Random => Self::Random,
            ChoiceArg::First => Self::First,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_keeps_code_and_words_in_json() {
        let error =
            CallError::Refused { code: 42, message: "too warm".to_owned(), retry_safe: false };
        let expected = json!({
            "ok": false, "class": "refused", "code": 42, "message": "too warm",
            "retry_safe": false,
        });
        assert_eq!(error_json(&error), expected);
    }
}
