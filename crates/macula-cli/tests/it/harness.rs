//! Starting programs and waiting for what they do; everything ends with the test.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// No test waits longer for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// `macula` with a Macula directory and nothing else from the environment.
pub(crate) fn macula(home: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_macula"));
    command.args(arguments).env("MACULA_HOME", home);
    for name in [
        "MACULA_REALM",
        "MACULA_GATEWAY",
        "MACULA_KEY",
        "MACULA_GRANT",
        "MACULA_LISTEN",
        "MACULA_CONFIG",
        "MACULA_LOG",
    ] {
        command.env_remove(name);
    }
    command
}

/// What a finished program left.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Done {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    #[track_caller]
    pub(crate) fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stdout: {}\nstderr: {}", self.text(), self.stderr);
        self
    }
}

/// Runs a program to its end.
pub(crate) fn run(home: &Path, arguments: &[&str]) -> Done {
    run_with(home, arguments, b"")
}

/// Runs a program with this input to its end.
pub(crate) fn run_with(home: &Path, arguments: &[&str], input: &[u8]) -> Done {
    let mut child = macula(home, arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    std::thread::spawn(move || {
        // A program that does not read its input is no failure of the test.
        stdin.write_all(&input).ok();
    });
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&stderr).into_owned();
    Done { code: status.code(), stdout, stderr }
}

/// A program in the background; killed when dropped.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    stdout: Arc<Mutex<Vec<u8>>>,
    stderr: Arc<Mutex<Vec<u8>>>,
    readers: Vec<std::thread::JoinHandle<()>>,
}

impl Running {
    pub(crate) fn start(home: &Path, arguments: &[&str]) -> Self {
        Self::spawn(macula(home, arguments).stdin(Stdio::null()))
    }

    pub(crate) fn spawn(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (stdout, out) = collect(child.stdout.take().unwrap());
        let (stderr, err) = collect(child.stderr.take().unwrap());
        Self { child, stdout, stderr, readers: vec![out, err] }
    }

    /// Waits for `ready` on stderr.
    #[track_caller]
    pub(crate) fn ready(self) -> Self {
        wait_for("ready", || self.stderr().lines().any(|line| line == "ready"));
        self
    }

    pub(crate) fn stdin(&mut self) -> std::process::ChildStdin {
        self.child.stdin.take().unwrap()
    }

    pub(crate) fn stdout_bytes(&self) -> usize {
        self.stdout.lock().unwrap().len()
    }

    pub(crate) fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout.lock().unwrap()).into_owned()
    }

    pub(crate) fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr.lock().unwrap()).into_owned()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn finish(mut self) -> Done {
        wait_for("the end of a program", || !self.is_running());
        let code = self.child.wait().unwrap().code();
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
        let stdout = std::mem::take(&mut *self.stdout.lock().unwrap());
        Done { code, stdout, stderr: self.stderr() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

type Collected = (Arc<Mutex<Vec<u8>>>, std::thread::JoinHandle<()>);

fn collect(mut source: impl Read + Send + 'static) -> Collected {
    let all = Arc::new(Mutex::new(Vec::new()));
    let into = all.clone();
    let reader = std::thread::spawn(move || {
        let mut chunk = [0u8; 64 * 1024];
        while let Ok(count @ 1..) = source.read(&mut chunk) {
            into.lock().unwrap().extend_from_slice(&chunk[..count]);
        }
    });
    (all, reader)
}

/// Waits until something holds.
#[track_caller]
pub(crate) fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A gateway process with a Macula directory of its own, which clients may share.
#[derive(Debug)]
pub(crate) struct Gateway {
    pub(crate) home: TempDir,
    pub(crate) id: String,
    pub(crate) addr: String,
    child: Child,
    events: Arc<Mutex<Vec<u8>>>,
}

impl Gateway {
    /// One that admits any open realm.
    pub(crate) fn start() -> Self {
        Self::with(&[])
    }

    pub(crate) fn with(arguments: &[&str]) -> Self {
        let home = tempfile::tempdir().unwrap();
        let (child, id, addr, events) = launch(home.path(), "127.0.0.1:0", arguments);
        Self { home, id, addr, child, events }
    }

    /// One with this configuration file.
    pub(crate) fn configured(text: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("gateway.toml");
        std::fs::write(&file, text).unwrap();
        let arguments = ["--config", file.to_str().unwrap()];
        let (child, id, addr, events) = launch(home.path(), "127.0.0.1:0", &arguments);
        Self { home, id, addr, child, events }
    }

    /// The most memory that it has used so far, bytes.
    #[cfg(target_os = "linux")]
    pub(crate) fn peak_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
    }

    /// `ID@HOST:PORT`.
    pub(crate) fn pinned(&self) -> String {
        format!("{}@{}", self.id, self.addr)
    }

    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    pub(crate) fn events(&self) -> String {
        String::from_utf8_lossy(&self.events.lock().unwrap()).into_owned()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again at the same address, after [`Gateway::kill`].
    pub(crate) fn restart(&mut self) {
        let (child, id, addr, events) = launch(self.home.path(), &self.addr, &[]);
        assert_eq!((&id, &addr), (&self.id, &self.addr));
        (self.child, self.events) = (child, events);
    }

    /// Waits for its end; the exit code.
    #[track_caller]
    pub(crate) fn wait(&mut self) -> Option<i32> {
        let mut status = None;
        wait_for("the end of the gateway", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.and_then(|status| status.code())
    }

    /// Runs a client in `realm` to its end: `run("lab", "pub", &["topic", "payload"])`.
    pub(crate) fn run(&self, realm: &str, command: &str, arguments: &[&str]) -> Done {
        let gateway = self.pinned();
        let mut all = vec![command, "-g", &gateway, "-r", realm];
        all.extend(arguments);
        run(self.home(), &all)
    }

    /// Starts a client that says `ready`, and waits for that.
    #[track_caller]
    pub(crate) fn ready(&self, realm: &str, command: &str, arguments: &[&str]) -> Running {
        let gateway = self.pinned();
        let mut all = vec![command, "-g", &gateway, "-r", realm];
        all.extend(arguments);
        Running::start(self.home(), &all).ready()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn launch(
    home: &Path,
    listen: &str,
    arguments: &[&str],
) -> (Child, String, String, Arc<Mutex<Vec<u8>>>) {
    let mut child = macula(home, &["gateway", "--json", "--listen", listen])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let mut reader = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let told: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(told["event"], "listening");
    let text = |name: &str| told[name].as_str().unwrap().to_owned();
    let (events, _) = collect(reader);
    (child, text("id"), text("addr"), events)
}
