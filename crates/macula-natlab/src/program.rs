//! Programs under test: gateway, responder, initiator, each a process in a namespace that tells what happens
//! in JSON lines.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde::Deserialize;

use crate::error::LabError;
use crate::lab::Stop;
use crate::netns::Netns;

/// Lines that may wait; beyond that the program waits.
const LINES_MAX: usize = 4096;
/// What is kept of stderr, bytes.
const STDERR_KEPT: u64 = 2048;
/// A program that was asked to end does so within this, or is killed.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// The program under test and the realm that it works in.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The executable.
    pub program: PathBuf,
    /// Arguments before `gateway` or `lab`; for stand-ins of tests.
    pub leading: Vec<String>,
    /// Realm of all pairs.
    pub realm: String,
}

/// One line of a program; what it does not tell stays empty.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub(crate) struct Told {
    pub(crate) event: String,
    pub(crate) id: String,
    pub(crate) path: String,
    pub(crate) ms: f64,
    pub(crate) rtt_ms: Option<f64>,
    pub(crate) sent: u64,
    pub(crate) received: u64,
    pub(crate) lost: u64,
    pub(crate) duplicated: u64,
    pub(crate) reordered: u64,
    pub(crate) longest_silence_ms: f64,
}

/// A process; killed when dropped.
#[derive(Debug)]
pub(crate) struct Program {
    name: &'static str,
    child: Child,
    lines: Receiver<Told>,
    errors: Option<JoinHandle<String>>,
}

impl Program {
    pub(crate) fn start(
        subject: &Subject,
        name: &'static str,
        netns: &Netns,
        home: &Path,
        arguments: &[&str],
    ) -> Result<Self, LabError> {
        let failed = |error: std::io::Error| LabError::new(format_args!("start {name}"), error);
        std::fs::create_dir_all(home).map_err(failed)?;
        let mut command = netns.spawner(&subject.program);
        command.args(&subject.leading).args(arguments).env("MACULA_HOME", home);
        for variable in [
            "KEY",
            "REALM",
            "GATEWAY",
            "LISTEN",
            "CONFIG",
            "GRANT",
            "VIA",
            "TUNNEL_LISTEN",
            "CARRY",
            "BIND",
        ] {
            command.env_remove(format!("MACULA_{variable}"));
        }
        // Ctrl-C on the terminal is for the laboratory, which then ends its programs.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(failed)?;
        let (sender, lines) = sync_channel(LINES_MAX);
        if let Some(stdout) = child.stdout.take() {
            std::thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    // What is no event is of no interest.
                    let told = serde_json::from_str::<Told>(&line);
                    if told.is_ok_and(|told| sender.send(told).is_err()) {
                        break;
                    }
                }
            });
        }
        let errors = child.stderr.take().map(|mut stderr| {
            std::thread::spawn(move || {
                let mut kept = Vec::new();
                stderr.by_ref().take(STDERR_KEPT).read_to_end(&mut kept).ok();
                std::io::copy(&mut stderr, &mut std::io::sink()).ok();
                String::from_utf8_lossy(&kept).trim().to_owned()
            })
        });
        Ok(Self { name, child, lines, errors })
    }

    /// The next event; `None` when nothing came in time.
    pub(crate) fn next(&mut self, within: Duration) -> Result<Option<Told>, LabError> {
        match self.lines.recv_timeout(within) {
            Ok(told) => Ok(Some(told)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(self.ended()),
        }
    }

    /// Waits for an event, others are skipped.
    pub(crate) fn expect(
        &mut self,
        event: &str,
        within: Duration,
        stop: &Stop,
    ) -> Result<Told, LabError> {
        let until = Instant::now() + within;
        loop {
            stop.check()?;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(LabError::new(
                    self.name,
                    format_args!("not {event} within {within:?}"),
                ));
            }
            if let Some(told) = self.next(left.min(Duration::from_millis(100)))?
                && told.event == event
            {
                return Ok(told);
            }
        }
    }

    /// Asks it to end and kills it when it does not.
    pub(crate) fn end(mut self) {
        self.stop();
    }

    /// Asks it to end; what it still has to say can be heard.
    pub(crate) fn ask_to_end(&mut self) {
        drop(self.child.stdin.take());
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
            && matches!(self.child.try_wait(), Ok(None))
        {
            rustix::process::kill_process(pid, Signal::TERM).ok();
        }
    }

    fn stop(&mut self) {
        self.ask_to_end();
        let until = Instant::now() + END_TIMEOUT;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() >= until {
                self.child.kill().ok();
                self.child.wait().ok();
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn ended(&mut self) -> LabError {
        self.stop();
        let status = self.child.wait().map_or_else(|e| e.to_string(), |status| status.to_string());
        let said = self.errors.take().and_then(|thread| thread.join().ok()).unwrap_or_default();
        LabError::new(self.name, format_args!("ended ({status}): {said}"))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_whatever_else_they_tell() {
        let told: Told = serde_json::from_str(
            r#"{"event":"path","path":"direct","remote":"1.2.3.4:5","ms":646}"#,
        )
        .unwrap();
        assert_eq!((told.event.as_str(), told.path.as_str(), told.ms), ("path", "direct", 646.0));
        let done: Told =
            serde_json::from_str(r#"{"event":"done","sent":9,"lost":1,"longest_silence_ms":12.5}"#)
                .unwrap();
        assert_eq!((done.sent, done.lost, done.longest_silence_ms), (9, 1, 12.5));
        assert!(serde_json::from_str::<Told>("hello").is_err());
    }
}
