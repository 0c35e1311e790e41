//! Thin wrappers over libc: each makes one call and returns `io::Result`.

pub(crate) mod bpf;
pub(crate) mod ioctl;
pub(crate) mod socket;

use std::ffi::{CStr, c_int, c_ulong};
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// Turns the `-1` convention of system calls into an error.
pub(crate) fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// [`check`] for calls that return a length.
pub(crate) fn check_length(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Takes ownership of a descriptor a system call has just returned.
pub(crate) fn owned(result: c_int) -> io::Result<OwnedFd> {
    let number = check(result)?;
    // SAFETY: callers pass the result of a call that creates a descriptor, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

pub(crate) fn open_read_write_nonblocking(path: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: the path is NUL-terminated; the call keeps no reference to it.
    owned(unsafe {
        libc::open(
            path.as_ptr(),
            libc::O_RDWR | libc::O_CLOEXEC | libc::O_NONBLOCK,
        )
    })
}

pub(crate) fn read(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: pointer and length describe the exclusively borrowed slice.
    check_length(unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) })
}

pub(crate) fn write(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: pointer and length describe the borrowed slice.
    check_length(unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) })
}

pub(crate) fn write_vectored(fd: BorrowedFd<'_>, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
    let count = c_int::try_from(buffers.len()).map_err(|_| invalid("too many buffers"))?;
    // SAFETY: `IoSlice` is guaranteed to have the layout of `iovec` on Unix, each describing a
    // slice that outlives the call.
    check_length(unsafe { libc::writev(fd.as_raw_fd(), buffers.as_ptr().cast(), count) })
}

pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: F_GETFL takes no pointer.
    let flags = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) })?;
    // SAFETY: F_SETFL takes an integer.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) })?;
    Ok(())
}

/// The descriptor flags (`FD_CLOEXEC`); `EBADF` for a number that is not open.
pub(crate) fn descriptor_flags(number: RawFd) -> io::Result<c_int> {
    // SAFETY: F_GETFD takes no pointer and changes nothing.
    check(unsafe { libc::fcntl(number, libc::F_GETFD) })
}

pub(crate) fn set_close_on_exec(number: RawFd, on: bool) -> io::Result<()> {
    let flags = if on { libc::FD_CLOEXEC } else { 0 };
    // SAFETY: F_SETFD takes an integer.
    check(unsafe { libc::fcntl(number, libc::F_SETFD, flags) })?;
    Ok(())
}

/// `ppoll(2)`; `None` waits without limit.
pub(crate) fn ppoll(fds: &mut [libc::pollfd], timeout: Option<Duration>) -> io::Result<usize> {
    let timeout = timeout.map(|limit| libc::timespec {
        tv_sec: limit.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_nsec: limit.subsec_nanos().into(),
    });
    let timeout = timeout
        .as_ref()
        .map_or(std::ptr::null(), std::ptr::from_ref);
    let count = fds.len() as libc::nfds_t;
    // SAFETY: pointer and count describe the slice; the timeout is null or outlives the call; a
    // null signal mask leaves the mask alone.
    let ready = check(unsafe { libc::ppoll(fds.as_mut_ptr(), count, timeout, std::ptr::null()) })?;
    Ok(ready.unsigned_abs() as usize)
}

pub(crate) fn epoll() -> io::Result<OwnedFd> {
    // SAFETY: takes an integer.
    owned(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })
}

pub(crate) fn epoll_add(
    epoll: &OwnedFd,
    fd: BorrowedFd<'_>,
    mut event: libc::epoll_event,
) -> io::Result<()> {
    let (set, fd) = (epoll.as_raw_fd(), fd.as_raw_fd());
    // SAFETY: the pointer is to a live event, which the call copies.
    check(unsafe { libc::epoll_ctl(set, libc::EPOLL_CTL_ADD, fd, &raw mut event) })?;
    Ok(())
}

/// Waits for `timeout` milliseconds; without limit if it is negative.
pub(crate) fn epoll_wait(
    epoll: &OwnedFd,
    events: &mut [libc::epoll_event],
    timeout: c_int,
) -> io::Result<usize> {
    let room = c_int::try_from(events.len()).unwrap_or(c_int::MAX);
    let (set, events) = (epoll.as_raw_fd(), events.as_mut_ptr());
    // SAFETY: pointer and count describe the exclusively borrowed slice.
    let ready = check(unsafe { libc::epoll_wait(set, events, room, timeout) })?;
    Ok(ready.unsigned_abs() as usize)
}

pub(crate) fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: takes integers only.
    owned(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })
}

pub(crate) fn clock_gettime(clock: libc::clockid_t) -> io::Result<Duration> {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is to a live `timespec`.
    check(unsafe { libc::clock_gettime(clock, &raw mut time) })?;
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanoseconds = u32::try_from(time.tv_nsec).unwrap_or(0);
    Ok(Duration::new(seconds, nanoseconds))
}

pub(crate) fn inotify() -> io::Result<OwnedFd> {
    // SAFETY: takes integers only.
    owned(unsafe { libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK) })
}

pub(crate) fn inotify_watch(fd: BorrowedFd<'_>, path: &CStr, mask: u32) -> io::Result<()> {
    // SAFETY: the path is NUL-terminated; the call keeps no reference to it.
    check(unsafe { libc::inotify_add_watch(fd.as_raw_fd(), path.as_ptr(), mask) })?;
    Ok(())
}

pub(crate) fn unshare_network() -> io::Result<()> {
    // SAFETY: takes an integer; affects only the calling thread.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
    Ok(())
}

pub(crate) fn enter_network_namespace(namespace: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes integers; affects only the calling thread.
    check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) })?;
    Ok(())
}

pub(crate) fn setsid() -> io::Result<()> {
    // SAFETY: takes nothing, and is async-signal-safe.
    check(unsafe { libc::setsid() })?;
    Ok(())
}

pub(crate) fn replace_standard_error(file: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: both are open; standard error has no owner whose number could be taken away.
    check(unsafe { libc::dup2(file.as_raw_fd(), libc::STDERR_FILENO) })?;
    Ok(())
}

pub(crate) fn umask(mask: libc::mode_t) -> libc::mode_t {
    // SAFETY: takes an integer and cannot fail.
    unsafe { libc::umask(mask) }
}

pub(crate) fn effective_user() -> libc::uid_t {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::geteuid() }
}

pub(crate) fn set_thread_name(name: &CStr) -> io::Result<()> {
    // SAFETY: PR_SET_NAME reads a NUL-terminated string, of which it copies at most 16 bytes.
    check(unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr() as c_ulong, 0, 0, 0) })?;
    Ok(())
}

/// A constant that libc has as an `int`, in the 16 bits the kernel's structure gives it.
pub(crate) const fn narrow(value: c_int) -> u16 {
    assert!(value >= 0 && value <= 0xffff);
    #[allow(clippy::cast_possible_truncation, reason = "checked above")]
    #[allow(clippy::cast_sign_loss, reason = "checked above")]
    let value = value as u16;
    value
}

/// A buffer length as socket calls take it.
pub(crate) fn length(bytes: usize) -> libc::socklen_t {
    libc::socklen_t::try_from(bytes).unwrap_or(libc::socklen_t::MAX)
}

/// An `InvalidInput` error with a reason.
pub(crate) fn invalid(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, reason)
}

/// Whether `error` carries this errno.
pub(crate) fn is_errno(error: &io::Error, errno: c_int) -> bool {
    error.raw_os_error() == Some(errno)
}
