//! What /proc tells about a process and the machine: processor time, memory, threads, descriptors.

use std::collections::HashSet;
use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// Clock ticks per second in /proc: `USER_HZ`, 100 on every Linux architecture that has Rust's standard library.
const TICKS_PER_SECOND: u32 = 100;

/// Processor time (user and system) a process and its threads have used.
///
/// # Errors
/// No such process.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The command name, in parentheses, may hold blanks: the numbered fields start after it, with field 3.
    let (_, fields) = stat.rsplit_once(')').context("malformed stat")?;
    let mut fields = fields.split_whitespace().skip(14 - 3);
    let mut ticks = || fields.next()?.parse::<u32>().ok();
    let total = ticks().zip(ticks()).context("malformed stat")?;
    Ok(Duration::from_secs(1) * (total.0 + total.1) / TICKS_PER_SECOND)
}

/// Busy time of all processors together since boot: everything but idle and waiting for I/O.
///
/// # Errors
/// /proc/stat cannot be read.
pub fn host_cpu_time() -> Result<Duration> {
    let stat = fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().context("empty /proc/stat")?;
    let ticks: Vec<u64> = line
        .split_whitespace()
        .skip(1)
        .filter_map(|field| field.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq steal: the guest fields after these are part of user already.
    let busy: u64 = [0, 1, 2, 5, 6].iter().filter_map(|&i| ticks.get(i)).sum();
    Ok(Duration::from_millis(
        busy * 1000 / u64::from(TICKS_PER_SECOND),
    ))
}

/// Number of processors that [`host_cpu_time`] is the sum of, whether this process may use them or not.
///
/// # Errors
/// /proc/stat cannot be read.
pub fn host_processors() -> Result<u32> {
    let stat = fs::read_to_string("/proc/stat")?;
    let lines = stat.lines().skip(1);
    Ok(u32::try_from(
        lines.take_while(|line| line.starts_with("cpu")).count(),
    )?)
}

/// Resident memory of a process in bytes.
///
/// # Errors
/// No such process.
pub fn resident_bytes(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kilobytes = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .context("no VmRSS")?;
    Ok(kilobytes * 1024)
}

/// Number of open file descriptors of a process.
///
/// # Errors
/// No such process.
pub fn open_files(pid: u32) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// Number of Unix sockets, listening or connected, that a process holds.
///
/// # Errors
/// No such process.
pub fn unix_sockets(pid: u32) -> Result<usize> {
    let table = fs::read_to_string(format!("/proc/{pid}/net/unix"))?;
    // Num RefCount Protocol Flags Type St Inode Path
    let inodes: HashSet<&str> = table
        .lines()
        .filter_map(|line| line.split_whitespace().nth(6))
        .collect();
    let held = |link: &str| {
        link.strip_prefix("socket:[")
            .and_then(|rest| rest.strip_suffix(']'))
            .is_some_and(|inode| inodes.contains(inode))
    };
    let entries = fs::read_dir(format!("/proc/{pid}/fd"))?.flatten();
    // A descriptor may be closed while we look.
    Ok(entries
        .filter(|entry| fs::read_link(entry.path()).is_ok_and(|link| held(&link.to_string_lossy())))
        .count())
}

/// Is the process there, and not merely waiting to be reaped?
#[must_use]
pub fn alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        stat.rsplit_once(')')
            .is_some_and(|(_, fields)| !matches!(fields.split_whitespace().next(), Some("Z" | "X")))
    })
}

/// Is a process of this namespace listening for TCP connections on `port`?
#[must_use]
pub fn listens_on_tcp(pid: u32, port: u16) -> bool {
    ["tcp", "tcp6"].iter().any(|table| {
        fs::read_to_string(format!("/proc/{pid}/net/{table}")).is_ok_and(|text| {
            text.lines().skip(1).any(|line| {
                let fields: Vec<_> = line.split_whitespace().collect();
                let local = fields.get(1).and_then(|address| address.rsplit_once(':'));
                // State 0A is LISTEN.
                local.is_some_and(|(_, p)| u16::from_str_radix(p, 16) == Ok(port))
                    && fields.get(3) == Some(&"0A")
            })
        })
    })
}
