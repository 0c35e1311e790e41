//! System calls made by another process's thread, as somebody who has taken it over would make them.

use std::time::Duration;

use adit_tests::wait::wait_for;
use anyhow::{Result, ensure};
use nix::libc::{c_long, user_regs_struct};
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Below the stack pointer of a thread, beyond what a leaf function may use there.
const SCRATCH: u64 = 4096;

/// Has a thread make a system call, and returns what that returned: a negative number is an errno.
pub(crate) fn call(thread: Pid, number: c_long, arguments: [u64; 4]) -> Result<i64> {
    inside(thread, |_, before| make(thread, before, number, arguments))
}

/// [`call`] whose second argument is a path.
pub(crate) fn call_with_path(
    thread: Pid,
    number: c_long,
    first: u64,
    path: &str,
    third: u64,
) -> Result<i64> {
    inside(thread, |_, before| {
        let place = (before.rsp - SCRATCH) & !7;
        let mut bytes = path.as_bytes().to_vec();
        bytes.resize((path.len() + 1).next_multiple_of(8), 0);
        for (offset, word) in (0..).step_by(8).zip(bytes.chunks_exact(8)) {
            let word = i64::from_le_bytes(word.try_into()?);
            // The address is a number for `ptrace`, not a pointer of ours.
            ptrace::write(thread, (place + offset) as *mut _, word)?;
        }
        make(thread, before, number, [first, place, third, 0])
    })
}

/// Stops the thread where it waits in a system call, for `work`, and lets it go on as if nothing had happened.
fn inside<T>(thread: Pid, work: impl Fn(Pid, user_regs_struct) -> Result<T>) -> Result<T> {
    ptrace::seize(thread, ptrace::Options::empty())?;
    // Let go of whatever comes: a traced process would stay stopped.
    let done = wait_for(
        "thread inside a system call",
        Duration::from_secs(10),
        || stop_if_waiting(thread, &work).transpose(),
    );
    ptrace::detach(thread, None)?;
    done?
}

/// `None` if the thread did not wait in a system call, and was let go on.
fn stop_if_waiting<T>(
    thread: Pid,
    work: &impl Fn(Pid, user_regs_struct) -> Result<T>,
) -> Result<Option<T>> {
    ptrace::interrupt(thread)?;
    wait_stopped(thread)?;
    let before = ptrace::getregs(thread)?;
    // The address is a number for `ptrace`, not a pointer of ours.
    let instruction = before.rip.wrapping_sub(2);
    let bytes = ptrace::read(thread, instruction as *mut _)?.to_le_bytes();
    // `syscall`, which the thread has just executed and waits in.
    if bytes[..2] != [0x0f, 0x05] {
        ptrace::cont(thread, None)?;
        return Ok(None);
    }
    let done = work(thread, before);
    ptrace::setregs(thread, before)?;
    done.map(Some)
}

/// Executes the instruction that the thread has just executed once more, with other registers.
fn make(thread: Pid, before: user_regs_struct, number: c_long, arguments: [u64; 4]) -> Result<i64> {
    let mut call = before;
    call.rip = before.rip.wrapping_sub(2);
    call.rax = u64::try_from(number)?;
    [call.rdi, call.rsi, call.rdx, call.r10] = arguments;
    // Not a system call to be restarted.
    call.orig_rax = u64::MAX;
    ptrace::setregs(thread, call)?;
    ptrace::step(thread, None)?;
    wait_stopped(thread)?;
    Ok(ptrace::getregs(thread)?.rax.cast_signed())
}

fn wait_stopped(thread: Pid) -> Result<()> {
    let status = waitpid(thread, Some(WaitPidFlag::__WALL))?;
    let stopped = matches!(
        status,
        WaitStatus::Stopped(..) | WaitStatus::PtraceEvent(..)
    );
    ensure!(stopped, "{status:?}");
    Ok(())
}
