//! `bpf(2)`, as far as aya does not offer it. Layouts: `union bpf_attr` and the `bpf_*_info` structs of `linux/bpf.h`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::sys::bpf::{bpf, bpf_fd};

const PROG_GET_FD_BY_ID: libc::c_int = 13;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const LINK_CREATE: libc::c_int = 28;

/// Where a program is attached: `enum bpf_attach_type`.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub(super) enum AttachType {
    Xdp = 37,
    TcxIngress = 46,
    TcxEgress = 47,
}

/// `bpf_attr.link_create`, as long as its tcx part.
#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative_fd: u32,
    padding: u32,
    expected_revision: u64,
}

/// `bpf_attr.info`.
#[repr(C)]
struct GetInfo {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// The start of `struct bpf_link_info`; XDP and TCX both begin their part with the interface.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LinkInfo {
    kind: u32,
    id: u32,
    /// The program it runs; another one if somebody has replaced it.
    pub(super) program_id: u32,
    padding: u32,
    /// 0 once the link is detached or the interface is gone.
    pub(super) ifindex: u32,
    rest: [u32; 7],
}

/// The start of `struct bpf_prog_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct ProgramInfo {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    instructions: [u64; 3],
    load_time: u64,
    created_by: u32,
    map_count: u32,
    map_ids: u64,
    name: [u8; 16],
}

/// Attaches a program to an interface of the calling thread's namespace. The link ends with the last descriptor of it.
pub(super) fn link_create(
    program: BorrowedFd<'_>,
    ifindex: u32,
    place: AttachType,
    flags: u32,
) -> io::Result<OwnedFd> {
    let attribute = LinkCreate {
        prog_fd: program.as_raw_fd().unsigned_abs(),
        target_ifindex: ifindex,
        attach_type: place as u32,
        flags,
        relative_fd: 0,
        padding: 0,
        expected_revision: 0,
    };
    // SAFETY: the attribute is the command's, without an address in it.
    unsafe { bpf_fd(LINK_CREATE, &attribute) }
}

/// The kernel's description of a link.
pub(super) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let mut info = LinkInfo::default();
    get_info(link, &mut info)?;
    Ok(info)
}

/// The name of a loaded program.
pub(super) fn program_name(id: u32) -> io::Result<String> {
    // SAFETY: the attribute is `bpf_attr.prog_id`, a number.
    let program = unsafe { bpf_fd(PROG_GET_FD_BY_ID, &id)? };
    let mut info = ProgramInfo::default();
    get_info(program.as_fd(), &mut info)?;
    let name = info.name.split(|byte| *byte == 0).next();
    Ok(String::from_utf8_lossy(name.unwrap_or_default()).into_owned())
}

/// The id of a loaded program.
pub(super) fn program_id(program: BorrowedFd<'_>) -> io::Result<u32> {
    let mut info = ProgramInfo::default();
    get_info(program, &mut info)?;
    Ok(info.id)
}

fn get_info<T: Copy>(fd: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    let attribute = GetInfo {
        bpf_fd: fd.as_raw_fd().unsigned_abs(),
        info_len: u32::try_from(size_of::<T>()).map_err(io::Error::other)?,
        info: std::ptr::from_mut(info) as u64,
    };
    // SAFETY: the kernel writes at most `info_len` bytes to `info`, a struct of integers that is borrowed exclusively until then.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &attribute) }.map(drop)
}

/// Lets the process lock as much memory as it likes: before Linux 5.11 maps, and to this day UMEM, count against the limit.
/// Without permission the limit stays, and what exceeds it fails by name.
pub(crate) fn raise_locked_memory_limit() {
    let limit = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: the pointer is to a live `rlimit`.
    unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) };
}
