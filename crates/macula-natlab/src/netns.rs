//! Network namespaces by name, and doing things in them.
//!
//! `ip` and `nft` are children: what they do is rare, and their errors are in words. A thread that enters
//! a namespace ends there; a socket that it made stays in the namespace and may be used from anywhere.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};
use rustix::thread::LinkNameSpaceType;

use crate::error::LabError;

/// Where `ip netns` keeps names.
const DIRECTORY: &str = "/run/netns";
/// Names of all namespaces of laboratories begin like this.
const PREFIX: &str = "mlab-";

/// A namespace that this laboratory made; gone when dropped, with every process in it.
#[derive(Debug)]
pub(crate) struct Netns {
    name: String,
}

impl Netns {
    /// Makes one. A number before `name` makes it unique among all laboratories of this process.
    pub(crate) fn make(name: &str) -> Result<Self, LabError> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let full = format!("{}{number}-{name}", own_prefix());
        run("ip", &["netns", "add", &full], None)?;
        let made = Self { name: full };
        made.ip("link set lo up")?;
        // A carrier's NAT that hairpins must not tell its customers of a shorter way, nor may its
        // bridge (with br_netfilter, where there is that) take one.
        made.command(
            "sysctl",
            &[
                "-eqw",
                "net.ipv4.ip_forward=1",
                "net.ipv6.conf.all.forwarding=1",
                "net.ipv4.conf.all.send_redirects=0",
                "net.ipv4.conf.default.send_redirects=0",
                "net.bridge.bridge-nf-call-iptables=0",
                "net.bridge.bridge-nf-call-ip6tables=0",
            ],
        )?;
        Ok(made)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Lines for `ip -batch`, without the leading `ip`.
    pub(crate) fn ip(&self, lines: &str) -> Result<(), LabError> {
        run("ip", &["-n", &self.name, "-batch", "-"], Some(lines)).map(drop)
    }

    /// Loads rules.
    pub(crate) fn nft(&self, rules: &str) -> Result<(), LabError> {
        let arguments = ["netns", "exec", &self.name, "nft", "-f", "-"];
        run("ip", &arguments, Some(rules)).map(drop)
    }

    /// Runs a program in the namespace; gives its stdout.
    pub(crate) fn command(&self, program: &str, arguments: &[&str]) -> Result<String, LabError> {
        let mut all = vec!["netns", "exec", &self.name, program];
        all.extend_from_slice(arguments);
        run("ip", &all, None)
    }

    /// A command whose process will live in the namespace. It is the program itself that the child's
    /// process id then names, as `ip netns exec` replaces itself.
    pub(crate) fn spawner(&self, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Does something on a thread of its own that is in the namespace.
    pub(crate) fn within<T: Send>(&self, what: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        let path = Path::new(DIRECTORY).join(&self.name);
        let failed = |error: &dyn std::fmt::Display| LabError::new(path.display(), error);
        let file = File::open(&path).map_err(|error| failed(&error))?;
        std::thread::scope(|scope| {
            let entered = scope.spawn(|| {
                let kind = Some(LinkNameSpaceType::Network);
                rustix::thread::move_into_link_name_space(file.as_fd(), kind)?;
                Ok::<T, rustix::io::Errno>(what())
            });
            let done = entered.join().map_err(|_| failed(&"a thread in it panicked"))?;
            done.map_err(|error| failed(&error))
        })
    }

    /// Forgets all connections, as a router does when it loses power.
    pub(crate) fn flush_conntrack(&self) -> Result<(), LabError> {
        self.within(flush_conntrack)?
            .map_err(|error| LabError::new(format_args!("flush conntrack of {}", self.name), error))
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE` without attributes: all entries.
fn flush_conntrack() -> rustix::io::Result<()> {
    const DELETE: u16 = 1 << 8 | 2;
    const REQUEST_ACK: u16 = 1 | 4;
    const LENGTH: u32 = 20;
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(netlink::NETFILTER),
    )?;
    let mut message = Vec::with_capacity(LENGTH as usize);
    message.extend_from_slice(&LENGTH.to_ne_bytes());
    message.extend_from_slice(&DELETE.to_ne_bytes());
    message.extend_from_slice(&REQUEST_ACK.to_ne_bytes());
    // Sequence, port, and a header of nfnetlink for any family.
    message.extend_from_slice(&[0; 12]);
    rustix::net::send(&socket, &message, SendFlags::empty())?;
    let mut answer = [0u8; 64];
    let (_, length) = rustix::net::recv(&socket, &mut answer[..], RecvFlags::empty())?;
    // After the header of an NLMSG_ERROR comes minus errno, or 0.
    match answer[..length]
        .get(16..20)
        .map(|code| i32::from_ne_bytes([code[0], code[1], code[2], code[3]]))
    {
        Some(0) => Ok(()),
        Some(code) => Err(rustix::io::Errno::from_raw_os_error(code.saturating_neg())),
        None => Err(rustix::io::Errno::BADMSG),
    }
}

/// `mlab-PID-START-`: which process, surely that one and none that has its number now.
fn own_prefix() -> String {
    let pid = std::process::id();
    format!("{PREFIX}{pid}-{}-", started(pid).unwrap_or(0))
}

/// When a process began, in the unit of `/proc/PID/stat`.
fn started(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// Whether the laboratory that made a namespace of this name is gone.
fn is_stale(name: &str) -> bool {
    let Some(rest) = name.strip_prefix(PREFIX) else { return false };
    let mut parts = rest.split('-');
    let mut next = || parts.next()?.parse::<u64>().ok();
    match (next(), next()) {
        (Some(pid), Some(start)) => {
            u32::try_from(pid).ok().and_then(started).is_none_or(|now| now != start)
        }
        _ => false,
    }
}

/// Removes what laboratories left that crashed; gives the number of namespaces.
pub(crate) fn remove_stale() -> usize {
    let entries = std::fs::read_dir(DIRECTORY).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| is_stale(name)).map(|name| remove(&name)).count()
}

/// Ends all processes in a namespace and removes it. What does not work is left to the next laboratory.
fn remove(name: &str) {
    let pids = run("ip", &["netns", "pids", name], None).unwrap_or_default();
    for pid in pids.lines().filter_map(|line| line.trim().parse::<i32>().ok()) {
        if let Some(pid) = rustix::process::Pid::from_raw(pid) {
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
        }
    }
    run("ip", &["netns", "delete", name], None).ok();
}

/// Whether a program is in PATH.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(|file| file.is_file())
}

/// Runs a program; gives its stdout. What it says on stderr is the error.
pub(crate) fn run(
    program: &str,
    arguments: &[&str],
    input: Option<&str>,
) -> Result<String, LabError> {
    let tried = || {
        let shown: Vec<&str> = arguments.iter().copied().take(8).collect();
        format!("{program} {}", shown.join(" "))
    };
    let failed = |error: &dyn std::fmt::Display| LabError::new(tried(), error);
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(&error))?;
    // None of these programs writes much before it has read its input.
    if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
        stdin.write_all(input.as_bytes()).map_err(|error| failed(&error))?;
    }
    let output = child.wait_with_output().map_err(|error| failed(&error))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        let line = input.map(|text| text.lines().take(3).collect::<Vec<_>>().join("; "));
        let complaint = complaint.trim();
        return Err(failed(&format_args!("{complaint} [{}]", line.unwrap_or_default())));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_namespaces_of_laboratories_that_are_gone_are_stale() {
        assert!(!is_stale(&format!("{}net", own_prefix())), "this one runs");
        let me = std::process::id();
        assert!(is_stale(&format!("{PREFIX}{me}-1-net")), "another process had the number");
        assert!(is_stale("mlab-4294967295-1-net"));
        assert!(!is_stale("somebody-1-2"));
        assert!(!is_stale("mlab-abc"));
    }
}
