//! The system call `bpf(2)` itself.

use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};

/// Makes the call; the attribute's type is the command's.
///
/// # Safety
/// `T` must be laid out as the command's part of `union bpf_attr`, and every address in it must be good for what the kernel
/// reads or writes there.
pub(crate) unsafe fn bpf<T>(command: libc::c_int, attribute: &T) -> io::Result<libc::c_int> {
    // SAFETY: pointer and length describe `attribute`, which outlives the call; the caller vouches for what it leads to.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attribute),
            size_of::<T>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    libc::c_int::try_from(result).map_err(io::Error::other)
}

/// [`bpf`] for commands that return a descriptor.
///
/// # Safety
/// That of [`bpf`], and the command must return a new descriptor.
pub(crate) unsafe fn bpf_fd<T>(command: libc::c_int, attribute: &T) -> io::Result<OwnedFd> {
    // SAFETY: the caller keeps the same promise.
    let number = unsafe { bpf(command, attribute)? };
    // SAFETY: the command has just created the descriptor, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
