//! How much memory this process holds.

/// Resident bytes of this process; `None` where the system does not tell (anything but Linux).
pub(crate) fn resident_bytes() -> Option<u64> {
    // pages are 4 KiB wherever this is likely to run; kB in `status` need no such guess
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
