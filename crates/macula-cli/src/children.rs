//! Other processes of this program: a gateway and its peers, for the demo and the benchmarks.
//!
//! Children are driven by JSON lines on stdin and answer with JSON lines on stdout. They end when
//! their stdin closes, so none outlives its parent, however that ended.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::address::GatewayAddress;

/// Lines of one child that may wait for the parent; beyond that the child waits.
const LINES_MAX: usize = 256;
/// What is kept of a child's stderr, bytes.
const STDERR_KEPT_BYTES: usize = 4 * 1024;
/// A child is ready within this.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// A gateway that was asked to end does so within this.
const END_TIMEOUT: Duration = Duration::from_secs(8);

/// A process of this program.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: mpsc::Receiver<String>,
    stderr: tokio::task::JoinHandle<String>,
}

impl Process {
    /// Starts `macula ARGUMENTS` with its own Macula directory.
    pub(crate) fn start(name: &str, arguments: &[String], home: &Path) -> Result<Self> {
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env("MACULA_HOME", home)
            .env_remove("MACULA_KEY")
            .env_remove("MACULA_REALM")
            .env_remove("MACULA_GATEWAY")
            .env_remove("MACULA_LISTEN")
            .env_remove("MACULA_CONFIG")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        // Ctrl-C on the terminal goes to the parent alone, which then ends its children.
        #[cfg(unix)]
        command.process_group(0);
        let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("no stdout")?;
        let mut errors = child.stderr.take().context("no stderr")?;
        let (sender, lines) = mpsc::channel(LINES_MAX);
        tokio::spawn(async move {
            let mut reader = BufReader::new(stdout).lines();
            while let Ok(Some(line)) = reader.next_line().await {
                if sender.send(line).await.is_err() {
                    break;
                }
            }
        });
        // The beginning of what it says, for the report when it fails; the rest is read and dropped.
        let stderr = tokio::spawn(async move {
            let (mut kept, mut chunk) = (Vec::new(), [0u8; 1024]);
            while let Ok(count @ 1..) = errors.read(&mut chunk).await {
                let room = STDERR_KEPT_BYTES.saturating_sub(kept.len()).min(count);
                kept.extend_from_slice(&chunk[..room]);
            }
            String::from_utf8_lossy(&kept).into_owned()
        });
        Ok(Self { name: name.to_owned(), child, stdin, lines, stderr })
    }

    /// Process id, while it runs.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Sends one line.
    pub(crate) async fn tell(&mut self, message: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        let stdin = self.stdin.as_mut().context("its stdin is closed")?;
        stdin.write_all(&line).await.with_context(|| format!("{} does not listen", self.name))
    }

    /// The next line; `None` when it has ended.
    ///
    /// # Cancel safety
    /// Dropping the future loses no line.
    pub(crate) async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>> {
        let Some(line) = self.lines.recv().await else { return Ok(None) };
        let told = serde_json::from_str(&line)
            .with_context(|| format!("{} says what nobody understands: {line}", self.name))?;
        Ok(Some(told))
    }

    /// Waits for a line; the process must not have ended.
    pub(crate) async fn expect<T: DeserializeOwned>(&mut self, within: Duration) -> Result<T> {
        match timeout(within, self.next()).await {
            Ok(Ok(Some(told))) => Ok(told),
            Ok(Ok(None)) => Err(self.ended().await),
            Ok(Err(error)) => Err(error),
            Err(_) => bail!("{} said nothing for {within:?}", self.name),
        }
    }

    /// Hands over what it says; [`Process::next`] then says nothing any more.
    pub(crate) fn take_lines(&mut self) -> mpsc::Receiver<String> {
        std::mem::replace(&mut self.lines, mpsc::channel(1).1)
    }

    /// How it ended and what it said then, if it has.
    pub(crate) async fn has_ended(&mut self) -> Option<String> {
        match self.child.try_wait() {
            Ok(None) => None,
            Ok(Some(_)) | Err(_) => Some(self.ended().await.to_string()),
        }
    }

    /// Kills it at once (SIGKILL) and waits until it is gone.
    pub(crate) async fn kill(&mut self) -> Result<()> {
        self.child.kill().await.with_context(|| format!("cannot kill {}", self.name))
    }

    /// Closes its stdin, which asks it to end, and waits; kills it when that takes too long.
    pub(crate) async fn end(mut self) -> Result<()> {
        self.stop().await
    }

    /// As [`Process::end`].
    async fn stop(&mut self) -> Result<()> {
        drop(self.stdin.take());
        match timeout(END_TIMEOUT, self.child.wait()).await {
            Ok(status) => {
                let status = status?;
                if status.success() {
                    return Ok(());
                }
                let stderr = (&mut self.stderr).await.unwrap_or_default();
                bail!("{} ended with {status}: {}", self.name, stderr.trim())
            }
            Err(_) => {
                self.kill().await?;
                bail!("{} did not end within {END_TIMEOUT:?} and was killed", self.name)
            }
        }
    }

    async fn ended(&mut self) -> anyhow::Error {
        let status = self.child.wait().await;
        let stderr = (&mut self.stderr).await.unwrap_or_default();
        let status = status.map_or_else(|e| e.to_string(), |status| status.to_string());
        anyhow!("{} ended ({status}): {}", self.name, stderr.trim())
    }
}

/// A gateway process on loopback.
#[derive(Debug)]
pub(crate) struct GatewayProcess {
    process: Process,
    address: GatewayAddress,
    home: PathBuf,
}

/// What a gateway tells when it listens; the other fields are of no interest here.
#[derive(Debug, serde::Deserialize)]
struct Listening {
    event: String,
    id: String,
    addr: String,
}

impl GatewayProcess {
    /// Starts a gateway on a free port of loopback and waits until it listens.
    pub(crate) async fn start(home: &Path) -> Result<Self> {
        let (process, address) = Self::spawn(home, "127.0.0.1:0").await?;
        Ok(Self { process, address, home: home.to_owned() })
    }

    /// Where it is and who it is.
    pub(crate) fn address(&self) -> &GatewayAddress {
        &self.address
    }

    /// Process id, while it runs.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.process.pid()
    }

    /// Hands over what it tells from now on.
    pub(crate) fn take_lines(&mut self) -> mpsc::Receiver<String> {
        self.process.take_lines()
    }

    /// Kills it (SIGKILL).
    pub(crate) async fn kill(&mut self) -> Result<()> {
        self.process.kill().await
    }

    /// Lets it drain; it can be started again.
    pub(crate) async fn stop(&mut self) -> Result<()> {
        self.process.stop().await
    }

    /// Starts it again after [`GatewayProcess::kill`] or [`GatewayProcess::stop`], with the same key and port.
    pub(crate) async fn restart(&mut self) -> Result<()> {
        let listen = self.address.host_port();
        let (process, address) = Self::spawn(&self.home, &listen).await?;
        if address != self.address {
            bail!("the gateway came back as {address} instead of {}", self.address);
        }
        self.process = process;
        Ok(())
    }

    /// Lets it drain and end.
    pub(crate) async fn end(self) -> Result<()> {
        self.process.end().await
    }

    async fn spawn(home: &Path, listen: &str) -> Result<(Process, GatewayAddress)> {
        let arguments = ["gateway", "--json", "--until-stdin-closes", "--listen", listen];
        let arguments = arguments.map(str::to_owned);
        let mut process = Process::start("the gateway", &arguments, home)?;
        let told: Listening = process.expect(START_TIMEOUT).await?;
        if told.event != "listening" {
            bail!("the gateway said {} instead of listening", told.event);
        }
        let address = format!("{}@{}", told.id, told.addr);
        let address = address.parse().map_err(|e| anyhow!("gateway address {address}: {e}"))?;
        Ok((process, address))
    }
}

/// What processes have used so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// CPU time in user and system mode.
    pub(crate) cpu: Duration,
    /// Resident memory, bytes.
    pub(crate) resident_bytes: u64,
}

impl Usage {
    /// Reads `/proc`; `None` where there is none or the process is gone.
    pub(crate) fn of_process(pid: u32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        Self::from_proc(&stat, &status)
    }

    fn from_proc(stat: &str, status: &str) -> Option<Self> {
        // The second field is the program's name in brackets and may hold anything.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
        let mut ticks = || fields.next()?.parse::<u64>().ok();
        let ticks = ticks()? + ticks()?;
        let fields: BTreeMap<&str, &str> =
            status.lines().filter_map(|line| line.split_once(':')).collect();
        let resident_kib = fields.get("VmRSS")?.trim().strip_suffix(" kB")?.parse::<u64>().ok()?;
        Some(Self {
            cpu: Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND),
            resident_bytes: resident_kib * 1024,
        })
    }
}

/// Unit of `/proc/PID/stat`: `USER_HZ`, 100 on every Linux that Rust runs on.
const TICKS_PER_SECOND: u64 = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_read_even_from_a_program_with_an_odd_name() {
        let stat = "42 (a ) b) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0 4 0 100 200 300";
        let status = "Name:\tx\nVmPeak:\t  9 kB\nVmRSS:\t    1024 kB\n";
        let usage = Usage::from_proc(stat, status).unwrap();
        assert_eq!(usage.cpu, Duration::from_secs(2));
        assert_eq!(usage.resident_bytes, 1 << 20);
        assert_eq!(Usage::from_proc("", ""), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_uses_memory() {
        assert!(Usage::of_process(std::process::id()).unwrap().resident_bytes > 0);
    }
}
