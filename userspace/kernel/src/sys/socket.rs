//! Socket calls. Addresses are passed as bytes, so one set of wrappers serves all families.

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use super::{check, check_length, owned};

/// A non-blocking, close-on-exec socket.
pub(crate) fn socket(family: c_int, kind: c_int, protocol: c_int) -> io::Result<OwnedFd> {
    let kind = kind | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: takes integers only.
    owned(unsafe { libc::socket(family, kind, protocol) })
}

/// Binds to a `sockaddr_…` given as bytes.
pub(crate) fn bind(fd: BorrowedFd<'_>, address: &[u8]) -> io::Result<()> {
    let length = super::length(address.len());
    // SAFETY: the kernel copies `length` bytes from the slice and asks for no alignment.
    check(unsafe { libc::bind(fd.as_raw_fd(), address.as_ptr().cast(), length) })?;
    Ok(())
}

/// Writes the bound address into `address` and returns its length.
pub(crate) fn local_address(fd: BorrowedFd<'_>, address: &mut [u8]) -> io::Result<usize> {
    let mut length = super::length(address.len());
    // SAFETY: the kernel writes at most `length` bytes into the slice and asks for no alignment.
    check(unsafe {
        libc::getsockname(fd.as_raw_fd(), address.as_mut_ptr().cast(), &raw mut length)
    })?;
    Ok((length as usize).min(address.len()))
}

/// Sets an option whose value is an `int`.
pub(crate) fn set_option(
    fd: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
    value: c_int,
) -> io::Result<()> {
    let length = super::length(size_of::<c_int>());
    // SAFETY: the kernel reads `length` bytes from a live `int`; options that expect a larger
    // structure refuse the length.
    check(unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            length,
        )
    })?;
    Ok(())
}

/// Reads an option whose value is an `int`.
pub(crate) fn option(fd: BorrowedFd<'_>, level: c_int, name: c_int) -> io::Result<c_int> {
    let mut value: c_int = 0;
    let mut length = super::length(size_of::<c_int>());
    // SAFETY: the kernel writes at most `length` bytes into a live `int`.
    check(unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            level,
            name,
            (&raw mut value).cast(),
            &raw mut length,
        )
    })?;
    Ok(value)
}

/// Reads an option whose value is `N` words; those that an older kernel does not have are 0.
pub(crate) fn option_words<const N: usize>(
    fd: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
) -> io::Result<[u32; N]> {
    let mut values = [0_u32; N];
    let mut length = super::length(size_of_val(&values));
    // SAFETY: the kernel writes at most `length` bytes into the live array.
    check(unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            level,
            name,
            values.as_mut_ptr().cast(),
            &raw mut length,
        )
    })?;
    Ok(values)
}

/// Sends one message to the kernel (netlink) on an unconnected socket.
pub(crate) fn send(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: pointer and length describe the borrowed slice.
    check_length(unsafe { libc::send(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) })
}

/// What [`receive`] got: how much of each buffer was filled, and `msg_flags`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReceivedLengths {
    pub(crate) data: usize,
    pub(crate) control: usize,
    pub(crate) address: usize,
    pub(crate) flags: c_int,
}

/// One `recvmsg(2)` with sender and control data.
pub(crate) fn receive(
    fd: BorrowedFd<'_>,
    data: &mut [u8],
    control: &mut [u8],
    address: &mut [u8],
) -> io::Result<ReceivedLengths> {
    let mut vector = libc::iovec {
        iov_base: data.as_mut_ptr().cast(),
        iov_len: data.len(),
    };
    let mut header = empty_header();
    header.msg_name = address.as_mut_ptr().cast();
    header.msg_namelen = super::length(address.len());
    header.msg_iov = &raw mut vector;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = control.len();
    // SAFETY: all pointers in the header describe slices borrowed exclusively for the call.
    let length = check_length(unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut header, 0) })?;
    Ok(ReceivedLengths {
        data: length.min(data.len()),
        control: header.msg_controllen.min(control.len()),
        address: (header.msg_namelen as usize).min(address.len()),
        flags: header.msg_flags,
    })
}

/// A `msghdr` that points nowhere. (libc keeps private padding in it, so it has no literal.)
pub(crate) fn empty_header() -> libc::msghdr {
    // SAFETY: `msghdr` is plain integers and pointers, for which all zeroes is a valid value.
    unsafe { std::mem::zeroed() }
}

/// `recvmmsg(2)` without waiting; returns how many headers were filled.
///
/// # Safety
/// Every pointer in `headers` must be valid for writes of the length next to it, and nothing else
/// may use that memory during the call.
pub(crate) unsafe fn receive_many(
    fd: BorrowedFd<'_>,
    headers: &mut [libc::mmsghdr],
) -> io::Result<usize> {
    let count = libc::c_uint::try_from(headers.len()).unwrap_or(libc::c_uint::MAX);
    // SAFETY: the caller vouches for the pointers; a null timeout is allowed.
    let received = check(unsafe {
        libc::recvmmsg(
            fd.as_raw_fd(),
            headers.as_mut_ptr(),
            count,
            libc::MSG_DONTWAIT,
            std::ptr::null_mut(),
        )
    })?;
    Ok(received.unsigned_abs() as usize)
}

/// `sendmmsg(2)` without waiting; returns how many messages went out.
///
/// # Safety
/// Every pointer in `headers` must be valid for reads of the length next to it.
pub(crate) unsafe fn send_many(
    fd: BorrowedFd<'_>,
    headers: &mut [libc::mmsghdr],
) -> io::Result<usize> {
    let count = libc::c_uint::try_from(headers.len()).unwrap_or(libc::c_uint::MAX);
    // SAFETY: the caller vouches for the pointers; the kernel writes only `msg_len` of each header.
    let sent = check(unsafe {
        libc::sendmmsg(
            fd.as_raw_fd(),
            headers.as_mut_ptr(),
            count,
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    })?;
    Ok(sent.unsigned_abs() as usize)
}
