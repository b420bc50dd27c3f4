//! `macula serve`.

use std::process::Stdio;
use std::sync::Arc;

use bytes::Bytes;
use macula::{Refusal, Request};
use macula_gateway::signal::StopSignal;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use crate::args::ServeArgs;
use crate::connect;
use crate::failure::Failure;
use crate::out;

/// What is kept of a command's stderr for its caller: the end, bytes.
const STDERR_TAIL_BYTES: usize = 900;
/// Code of a refusal when the command was killed or could not run: as shells say it.
const CODE_NOT_RUN: u16 = 126;
const CODE_SIGNAL_BASE: u16 = 128;

/// Answers calls until told to stop.
pub(crate) async fn run(args: ServeArgs) -> Result<(), Failure> {
    let mut stop = StopSignal::listen()?;
    let opened = async {
        let (node, watch) =
            connect::node(&args.gateway.gateway, &args.gateway.connect, args.realm.membership())
                .await?;
        let builder = node.service(&args.procedure).concurrency(args.concurrency);
        let service = match &args.answer.command {
            None => builder.serve(|request: Request| async move { Ok(request.payload) }).await?,
            Some(command) => {
                let command: Arc<str> = command.as_str().into();
                builder.serve(move |request| answer(command.clone(), request)).await?
            }
        };
        Ok::<_, Failure>((node, watch, service))
    };
    let (node, watch, service) = tokio::select! {
        opened = opened => opened?,
        _ = stop.received() => return Ok(()),
    };
    out::note("ready");
    let result = tokio::select! {
        failure = watch.fatal() => Err(failure),
        refused = watch.refusal() => Err(refused),
        _ = stop.received() => Ok(()),
    };
    if result.is_ok() {
        // Calls already begun are answered; a second signal or their deadlines end that.
        tokio::select! {
            () = service.close() => {}
            _ = stop.received() => {}
        }
    }
    connect::close(node, watch).await;
    result
}

/// Runs the command for one request; when the caller gives up, it is killed with its children.
async fn answer(command: Arc<str>, request: Request) -> Result<Bytes, Refusal> {
    let mut group = Group::start(&command)
        .map_err(|e| Refusal::new(CODE_NOT_RUN, format!("the command cannot be run: {e}")))?;
    tokio::select! {
        biased;
        () = request.cancelled() => Err(Refusal::new(CODE_NOT_RUN, "the caller has given up")),
        result = group.run(request.payload.clone()) => result,
    }
    // Dropping `group` kills whatever is left.
}

/// A shell and everything that it starts.
struct Group {
    child: Child,
    is_done: bool,
}

impl Group {
    fn start(command: &str) -> std::io::Result<Self> {
        let mut shell = Command::new("sh");
        shell
            .args(["-c", command])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        #[cfg(unix)]
        shell.process_group(0);
        Ok(Self { child: shell.spawn()?, is_done: false })
    }

    async fn run(&mut self, argument: Bytes) -> Result<Bytes, Refusal> {
        let failed = |e: std::io::Error| Refusal::new(CODE_NOT_RUN, format!("the command: {e}"));
        let stdin = self.child.stdin.take();
        let stdout = self.child.stdout.take();
        let stderr = self.child.stderr.take();
        let feed = async {
            if let Some(mut stdin) = stdin {
                // A command that does not read its argument is no failure.
                stdin.write_all(&argument).await.ok();
                stdin.shutdown().await.ok();
            }
        };
        let ((), output, tail) =
            tokio::join!(feed, read_at_most(stdout, macula::MESSAGE_BYTES_MAX), read_tail(stderr));
        let status = match &output {
            Ok(Some(_)) => self.child.wait().await.map_err(failed)?,
            Ok(None) => {
                let what = format!("its output is over {} bytes", macula::MESSAGE_BYTES_MAX);
                return Err(Refusal::new(CODE_NOT_RUN, what));
            }
            Err(_) => self.child.wait().await.map_err(failed)?,
        };
        self.is_done = true;
        let output = output.map_err(failed)?.unwrap_or_default();
        if status.success() {
            return Ok(output);
        }
        let message = String::from_utf8_lossy(&tail).trim().to_owned();
        let code = exit_code(status);
        let message = if message.is_empty() { status.to_string() } else { message };
        Err(Refusal::new(code, message))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // What a finished command left in the background is its own business.
        if self.is_done {
            return;
        }
        #[cfg(unix)]
        if let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok())
            && let Some(pid) = rustix::process::Pid::from_raw(pid)
        {
            rustix::process::kill_process_group(pid, rustix::process::Signal::KILL).ok();
        }
    }
}

fn exit_code(status: std::process::ExitStatus) -> u16 {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        return CODE_SIGNAL_BASE + u16::try_from(signal).unwrap_or(0);
    }
    status.code().and_then(|code| u16::try_from(code).ok()).unwrap_or(CODE_NOT_RUN)
}

/// Reads to the end; `None` when there is more than `bytes_max`.
async fn read_at_most(
    source: Option<impl AsyncRead + Unpin>,
    bytes_max: usize,
) -> std::io::Result<Option<Bytes>> {
    let mut output = Vec::new();
    if let Some(source) = source {
        source.take(bytes_max as u64 + 1).read_to_end(&mut output).await?;
    }
    Ok((output.len() <= bytes_max).then(|| output.into()))
}

/// Reads to the end and keeps the last bytes.
async fn read_tail(source: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let (mut tail, mut chunk) = (Vec::new(), [0u8; 1024]);
    let Some(mut source) = source else { return tail };
    while let Ok(count @ 1..) = source.read(&mut chunk).await {
        tail.extend_from_slice(&chunk[..count]);
        let excess = tail.len().saturating_sub(STDERR_TAIL_BYTES);
        tail.drain(..excess);
    }
    tail
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use super::*;

    async fn run(command: &str, argument: &str) -> Result<Bytes, Refusal> {
        let mut group = Group::start(command).expect("there is a shell");
        group.run(Bytes::copy_from_slice(argument.as_bytes())).await
    }

    #[tokio::test]
    async fn stdout_is_the_answer() {
        assert_eq!(run("tr a-z A-Z", "hello").await.unwrap(), "HELLO");
        assert_eq!(run("true", "not read").await.unwrap(), "");
    }

    #[tokio::test]
    async fn a_failed_command_refuses_with_its_status_and_words() {
        let refusal = run("echo too warm >&2; exit 42", "").await.unwrap_err();
        assert_eq!(refusal, Refusal::new(42, "too warm"));
        let refusal = run("kill -9 $$", "").await.unwrap_err();
        assert_eq!(refusal.code, 137);
    }

    #[tokio::test]
    async fn only_the_end_of_stderr_is_told() {
        let refusal = run("seq 1 100000 >&2; exit 1", "").await.unwrap_err();
        assert!(refusal.message.len() <= STDERR_TAIL_BYTES);
        assert!(refusal.message.ends_with("100000"), "{}", refusal.message);
    }

    #[tokio::test]
    async fn a_dropped_command_is_killed_with_its_children() {
        let directory = tempfile::tempdir().unwrap();
        let mark = directory.path().join("mark");
        let command = format!("(sleep 0.6; touch {}) & wait", mark.display());
        let mut group = Group::start(&command).unwrap();
        let run =
            tokio::time::timeout(std::time::Duration::from_millis(200), group.run(Bytes::new()));
        assert!(run.await.is_err());
        drop(group);
        tokio::time::sleep(std::time::Duration::from_millis(800)).await;
        assert!(!mark.exists());
    }
}
