//! Keeping what is in memory there, and privileges from growing.

use std::fs;
use std::io;

use super::{Capability, CapabilitySet};
use crate::sys::check;

/// Makes sure that no program this thread might start has more privileges than it (`no_new_privs`).
///
/// # Errors
/// Never on Linux 3.5 and later.
pub fn forbid_new_privileges() -> io::Result<()> {
    // SAFETY: takes integers only.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    Ok(())
}

/// Keeps memory out of core dumps, and other processes from reading it, unless they have
/// `CAP_SYS_PTRACE` or `CAP_PERFMON`.
///
/// # Errors
/// When the system refuses.
pub fn forbid_dumps() -> io::Result<()> {
    // What is mapped is left out even of a dump that root asks for (gcore, systemd-coredump).
    // First, because the file is root's from the next step on. Without /proc that step suffices.
    let _ = fs::write("/proc/self/coredump_filter", "0");
    // SAFETY: takes integers only.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) })?;
    let none = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the pointer is to a live `rlimit`.
    check(unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) })?;
    Ok(())
}

/// Keeps all memory that is touched from now on out of swap. Memory that is only reserved costs
/// nothing (`MCL_ONFAULT`, Linux 4.4).
///
/// # Errors
/// `EPERM` when the process may not lock memory without limit: with a limit, allocations would
/// begin to fail when it is reached.
pub fn lock_memory() -> io::Result<()> {
    if !CapabilitySet::current()?.has(Capability::IpcLock) && locked_memory_is_limited()? {
        return Err(io::Error::from_raw_os_error(libc::EPERM));
    }
    let everything = libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT;
    // SAFETY: takes an integer; no mapping changes its contents or place.
    check(unsafe { libc::mlockall(everything) })?;
    Ok(())
}

fn locked_memory_is_limited() -> io::Result<bool> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the pointer is to a live `rlimit`.
    check(unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) })?;
    Ok(limit.rlim_cur != libc::RLIM_INFINITY)
}
