//! Passing open files to another process: `SCM_RIGHTS`, `unix(7)`.

use std::ffi::c_int;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use crate::sys::{check_length, invalid, socket};

/// Files that one message may carry here. The kernel takes 253 (`SCM_MAX_FD`).
pub const MOST: usize = 64;

/// Bytes of their numbers.
const MOST_BYTES: u32 = 64 * 4;
const _: () = assert!(MOST_BYTES as usize == MOST * size_of::<RawFd>());

/// Bytes of a control buffer that holds one message with [`MOST`] files.
const CONTROL: usize = {
    // SAFETY: pure arithmetic.
    let space = unsafe { libc::CMSG_SPACE(MOST_BYTES) };
    space as usize
};

/// A control buffer, aligned as `struct cmsghdr` must be.
#[repr(C, align(8))]
struct Control([MaybeUninit<u8>; CONTROL]);
const _: () = assert!(align_of::<libc::cmsghdr>() <= 8);

/// Sends bytes, at least one, on a connected stream socket, and with the first of them copies of
/// `files`. Returns how many bytes went; the files go with the first.
///
/// # Errors
/// `WouldBlock` on a full non-blocking socket; `InvalidInput` for more than [`MOST`] files;
/// `ETOOMANYREFS` when too many are on their way; as `sendmsg(2)`.
pub fn send(stream: BorrowedFd<'_>, bytes: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<usize> {
    if files.len() > MOST || bytes.is_empty() {
        return Err(invalid("too many files for one message, or no bytes"));
    }
    let mut vector = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    let mut control = Control([MaybeUninit::zeroed(); CONTROL]);
    let mut header = socket::empty_header();
    header.msg_iov = &raw mut vector;
    header.msg_iovlen = 1;
    if !files.is_empty() {
        let numbers: Vec<RawFd> = files.iter().map(|file| file.as_raw_fd()).collect();
        let length = size_of_val(numbers.as_slice());
        let length_field = u32::try_from(length).map_err(|_| invalid("too many files"))?;
        header.msg_control = control.0.as_mut_ptr().cast();
        // SAFETY: pure arithmetic.
        let space = unsafe { libc::CMSG_SPACE(length_field) };
        header.msg_controllen = space as usize;
        // SAFETY: the control buffer is as long as the header says, which is room for one message.
        let message = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
        // SAFETY: pure arithmetic.
        let message_length = unsafe { libc::CMSG_LEN(length_field) };
        let fields = libc::cmsghdr {
            cmsg_len: message_length as usize,
            cmsg_level: libc::SOL_SOCKET,
            cmsg_type: libc::SCM_RIGHTS,
        };
        // SAFETY: the first message lies in the buffer, which is aligned for it.
        unsafe { message.write(fields) };
        // SAFETY: the message lies in the buffer, and so does what follows its header.
        let data = unsafe { libc::CMSG_DATA(message) };
        // SAFETY: `CMSG_SPACE` left room for that many bytes; the buffers are distinct.
        unsafe { data.copy_from_nonoverlapping(numbers.as_ptr().cast(), length) };
    }
    // SAFETY: the pointers in the header describe live buffers; the kernel only reads them.
    check_length(unsafe {
        libc::sendmsg(stream.as_raw_fd(), &raw const header, libc::MSG_NOSIGNAL)
    })
}

/// Receives bytes from a stream socket into `buffer`, and appends the files that came with them to
/// `files`; they are close-on-exec. Returns how many bytes came, 0 at the end.
///
/// # Errors
/// `InvalidData` if there were more files than [`MOST`] or the process is out of descriptors; as
/// `recvmsg(2)`.
pub fn receive(
    stream: BorrowedFd<'_>,
    buffer: &mut [u8],
    files: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut vector = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    let mut control = Control([MaybeUninit::zeroed(); CONTROL]);
    let mut header = socket::empty_header();
    header.msg_iov = &raw mut vector;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = CONTROL;
    // SAFETY: the pointers in the header describe buffers borrowed exclusively for the call.
    let length = check_length(unsafe {
        libc::recvmsg(stream.as_raw_fd(), &raw mut header, libc::MSG_CMSG_CLOEXEC)
    })?;
    take_files(&header, files);
    if header.msg_flags & libc::MSG_CTRUNC != 0 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "not all files arrived",
        ));
    }
    Ok(length)
}

/// Takes what the kernel wrote into the control buffer of `header`.
fn take_files(header: &libc::msghdr, files: &mut Vec<OwnedFd>) {
    // SAFETY: the kernel has set the length to what it wrote.
    let mut message = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !message.is_null() {
        // SAFETY: a message that is not null lies in the buffer, aligned, and was written.
        let fields = unsafe { message.read() };
        // SAFETY: pure arithmetic.
        let empty = unsafe { libc::CMSG_LEN(0) } as usize;
        let bytes = fields.cmsg_len.saturating_sub(empty);
        if (fields.cmsg_level, fields.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: the message lies in the buffer, and so does what follows its header.
            let data: *const c_int = unsafe { libc::CMSG_DATA(message) }.cast();
            for at in 0..bytes / size_of::<c_int>() {
                // SAFETY: within the length of the message.
                let place = unsafe { data.add(at) };
                // SAFETY: a live value; its alignment is not relied on.
                let number = unsafe { place.read_unaligned() };
                // SAFETY: the kernel has just made this descriptor for us.
                files.push(unsafe { OwnedFd::from_raw_fd(number) });
            }
        }
        // SAFETY: `message` lies in the buffer that the header describes.
        message = unsafe { libc::CMSG_NXTHDR(header, message) };
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read as _, Write as _};
    use std::os::fd::AsFd as _;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::sys;

    #[test]
    fn files_arrive_with_their_bytes_in_order_and_are_not_inherited() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let pipes: Vec<_> = (0..MOST).map(|_| io::pipe().unwrap()).collect();
        let files: Vec<_> = pipes.iter().map(|(_, writer)| writer.as_fd()).collect();
        assert_eq!(send(ours.as_fd(), b"all", &files).unwrap(), 3);
        assert_eq!(send(ours.as_fd(), b"none", &[]).unwrap(), 4);
        let mut buffer = [0; 16];
        let mut received = Vec::new();
        let length = receive(theirs.as_fd(), &mut buffer, &mut received).unwrap();
        // What came with files is not mixed with what came later.
        assert!((3..=7).contains(&length) && buffer.starts_with(b"all"));
        assert_eq!(received.len(), MOST);
        for (number, file) in received.into_iter().enumerate() {
            let flags = sys::descriptor_flags(file.as_raw_fd()).unwrap();
            assert_eq!(flags, libc::FD_CLOEXEC);
            File::from(file)
                .write_all(&[u8::try_from(number).unwrap()])
                .unwrap();
        }
        for (number, (mut reader, writer)) in pipes.into_iter().enumerate() {
            drop(writer);
            let mut text = Vec::new();
            reader.read_to_end(&mut text).unwrap();
            assert_eq!(text, [u8::try_from(number).unwrap()]);
        }
    }

    #[test]
    fn too_many_files_are_refused_before_any_goes() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let files = vec![ours.as_fd(); MOST + 1];
        assert!(send(ours.as_fd(), b"x", &files).is_err());
        assert!(send(ours.as_fd(), b"", &[]).is_err());
        drop(ours);
        assert_eq!(
            receive(theirs.as_fd(), &mut [0; 1], &mut Vec::new()).unwrap(),
            0
        );
    }
}
