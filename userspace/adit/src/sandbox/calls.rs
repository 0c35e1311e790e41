//! The system calls of each kind of thread.
//!
//! Calls whose arguments are looked at cost the kernel some instructions, all others are looked up
//! in a bit map. So data threads have conditions only on what is not done per packet.

use adit_kernel::sandbox::Call;
use libc::{
    SYS_accept4, SYS_bind, SYS_bpf, SYS_brk, SYS_clock_gettime, SYS_close, SYS_epoll_create1,
    SYS_epoll_ctl, SYS_epoll_pwait, SYS_exit, SYS_exit_group, SYS_fcntl, SYS_fstat, SYS_futex,
    SYS_getdents64, SYS_getpid, SYS_getrandom, SYS_getrusage, SYS_getsockname, SYS_getsockopt,
    SYS_gettid, SYS_ioctl, SYS_madvise, SYS_mmap, SYS_mprotect, SYS_mremap, SYS_munmap,
    SYS_newfstatat, SYS_openat, SYS_ppoll, SYS_pread64, SYS_prlimit64, SYS_read, SYS_recvfrom,
    SYS_recvmmsg, SYS_recvmsg, SYS_restart_syscall, SYS_rt_sigaction, SYS_rt_sigprocmask,
    SYS_rt_sigreturn, SYS_sched_getaffinity, SYS_sched_yield, SYS_sendmmsg, SYS_sendmsg,
    SYS_sendto, SYS_setsockopt, SYS_shutdown, SYS_sigaltstack, SYS_socket, SYS_statx, SYS_tgkill,
    SYS_unlinkat, SYS_write, SYS_writev,
};

use super::Role;

/// Those that a thread of this role may make.
pub(super) fn allowed(role: Role) -> impl Iterator<Item = Call> {
    let lists: [&[Call]; 3] = match role {
        Role::Data => [DATA, OLD_WAITS, &[]],
        Role::Helper => [&[], &[], &[]],
        Role::Events => [EVENTS, &[], &[]],
        Role::Control => [CONTROL, OLD_WAITS, OLD_FILES],
    };
    RUNTIME.iter().chain(lists.into_iter().flatten()).copied()
}

/// What the Rust and C libraries do in any thread: memory without code in it, locks, time, random
/// numbers, signals, log lines, closing what was shared, and the end: an orderly one, a panic, or
/// an access violation, whose handler must get out of the way (`rt_sigaction`).
const RUNTIME: &[Call] = &[
    Call::any(SYS_brk),
    Call::any(SYS_clock_gettime),
    Call::any(SYS_close),
    Call::any(SYS_exit),
    Call::any(SYS_exit_group),
    Call::any(SYS_futex),
    Call::any(SYS_getpid),
    Call::any(SYS_getrandom),
    Call::any(SYS_gettid),
    Call::any(SYS_madvise),
    Call::without(SYS_mmap, 2, EXECUTABLE),
    Call::without(SYS_mprotect, 2, EXECUTABLE),
    Call::any(SYS_mremap),
    Call::any(SYS_munmap),
    Call::any(SYS_read),
    Call::any(SYS_restart_syscall),
    Call::any(SYS_rt_sigaction),
    Call::any(SYS_rt_sigprocmask),
    Call::any(SYS_rt_sigreturn),
    Call::any(SYS_sched_getaffinity),
    Call::any(SYS_sched_yield),
    // How the handler of SIGTERM tells the control thread: it runs on any thread.
    Call::any(SYS_sendto),
    Call::any(SYS_sigaltstack),
    Call::with(SYS_tgkill, 2, &[libc::SIGABRT.unsigned_abs()]),
    Call::any(SYS_write),
];

/// Packets in and out, waiting for them, and what a failed send asks.
const DATA: &[Call] = &[
    Call::any(SYS_epoll_create1),
    Call::any(SYS_epoll_ctl),
    Call::any(SYS_epoll_pwait),
    Call::any(SYS_getsockopt),
    // Whether the device is still there, when nothing can be read from it.
    Call::with(SYS_ioctl, 1, &[request(libc::TUNGETIFF)]),
    Call::any(SYS_ppoll),
    // How idle the machine is, from a file that is open.
    Call::any(SYS_pread64),
    Call::any(SYS_recvfrom),
    Call::any(SYS_recvmmsg),
    Call::any(SYS_sendmmsg),
    // A probe of the path MTU; the number is nothing else's that matters on other levels.
    Call::with(SYS_setsockopt, 2, &[libc::IP_MTU_DISCOVER.unsigned_abs()]),
    Call::any(SYS_writev),
];

/// Netlink and inotify, and asking where the device is.
const EVENTS: &[Call] = &[
    Call::any(SYS_bind),
    Call::any(SYS_getsockname),
    Call::any(SYS_ppoll),
    Call::any(SYS_recvmsg),
    Call::any(SYS_statx),
    Call::with(SYS_fcntl, 1, DESCRIPTORS),
    Call::with(
        SYS_ioctl,
        1,
        &[request(libc::TUNGETIFF), request(libc::TUNGETDEVNETNS)],
    ),
    Call::with(
        SYS_setsockopt,
        1,
        &[
            libc::SOL_NETLINK.unsigned_abs(),
            libc::SOL_SOCKET.unsigned_abs(),
        ],
    ),
    Call::with(SYS_socket, 0, &[libc::AF_NETLINK.unsigned_abs()]),
];

/// Sockets of the kinds that the daemon has, maps and links of its programs, and the files that
/// Landlock leaves it, for reading.
const CONTROL: &[Call] = &[
    Call::any(SYS_accept4),
    Call::any(SYS_bind),
    Call::with(SYS_bpf, 0, BPF),
    Call::any(SYS_epoll_ctl),
    Call::any(SYS_epoll_pwait),
    Call::with(SYS_fcntl, 1, DESCRIPTORS),
    Call::any(SYS_fstat),
    Call::any(SYS_getdents64),
    // With the next, what the process uses, for whoever asks for metrics.
    Call::any(SYS_getrusage),
    Call::any(SYS_pread64),
    Call::any(SYS_getsockname),
    Call::any(SYS_getsockopt),
    Call::with(SYS_ioctl, 1, IOCTLS),
    Call::any(SYS_newfstatat),
    Call::without(SYS_openat, 2, WRITING),
    // Asked for the limit of locked memory, which is no limit any more.
    Call::with(SYS_prlimit64, 1, &[libc::RLIMIT_MEMLOCK]),
    Call::any(SYS_recvfrom),
    Call::any(SYS_recvmsg),
    Call::any(SYS_sendmmsg),
    // The device, to the process that takes it over.
    Call::any(SYS_sendmsg),
    Call::with(SYS_setsockopt, 1, OPTION_LEVELS),
    Call::any(SYS_shutdown),
    Call::with(SYS_socket, 0, FAMILIES),
    Call::any(SYS_statx),
    Call::any(SYS_unlinkat),
    Call::any(SYS_writev),
];

/// Calls that the C library makes on x86_64 where other architectures have only newer ones for the
/// same, which stand above.
#[cfg(target_arch = "x86_64")]
const OLD_WAITS: &[Call] = &[Call::any(libc::SYS_epoll_wait)];
#[cfg(target_arch = "x86_64")]
const OLD_FILES: &[Call] = &[Call::any(libc::SYS_rmdir), Call::any(libc::SYS_unlink)];
#[cfg(not(target_arch = "x86_64"))]
const OLD_WAITS: &[Call] = &[];
#[cfg(not(target_arch = "x86_64"))]
const OLD_FILES: &[Call] = &[];

const EXECUTABLE: u32 = libc::PROT_EXEC.unsigned_abs();
const WRITING: u32 = (libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC).unsigned_abs();

const FAMILIES: &[u32] = &[
    libc::AF_INET.unsigned_abs(),
    libc::AF_INET6.unsigned_abs(),
    libc::AF_NETLINK.unsigned_abs(),
    // The C library looks up names of interfaces on such a socket.
    libc::AF_UNIX.unsigned_abs(),
    libc::AF_XDP.unsigned_abs(),
];

const OPTION_LEVELS: &[u32] = &[
    libc::SOL_SOCKET.unsigned_abs(),
    libc::IPPROTO_IP.unsigned_abs(),
    libc::IPPROTO_IPV6.unsigned_abs(),
    libc::SOL_UDP.unsigned_abs(),
    libc::SOL_NETLINK.unsigned_abs(),
    libc::SOL_XDP.unsigned_abs(),
];

/// The name of an interface, which tc filters are attached by where there is no TCX, and its number.
const IOCTLS: &[u32] = &[request(libc::SIOCGIFNAME), request(libc::SIOCGIFINDEX)];

const DESCRIPTORS: &[u32] = &[
    libc::F_DUPFD_CLOEXEC.unsigned_abs(),
    libc::F_GETFD.unsigned_abs(),
    libc::F_GETFL.unsigned_abs(),
    libc::F_SETFD.unsigned_abs(),
    libc::F_SETFL.unsigned_abs(),
];

/// Commands of `bpf(2)`, `enum bpf_cmd` in `linux/bpf.h`: elements of maps, attaching programs that
/// are loaded, and what links say of themselves. No program is loaded and no map is made.
const BPF: &[u32] = &[
    1,  // MAP_LOOKUP_ELEM
    2,  // MAP_UPDATE_ELEM
    3,  // MAP_DELETE_ELEM
    4,  // MAP_GET_NEXT_KEY
    13, // PROG_GET_FD_BY_ID: the kernel refuses it without CAP_SYS_ADMIN, which need not be logged
    15, // OBJ_GET_INFO_BY_FD
    28, // LINK_CREATE
];

/// A request of `ioctl(2)`, whose type differs between C libraries.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the kernel takes an unsigned int"
)]
const fn request(number: libc::Ioctl) -> u32 {
    number as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Calls that would let whoever took a thread over do more than the tunnel.
    const NEVER: &[libc::c_long] = &[
        libc::SYS_clone,
        libc::SYS_clone3,
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_init_module,
        libc::SYS_kill,
        libc::SYS_memfd_create,
        libc::SYS_mount,
        libc::SYS_pidfd_open,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_ptrace,
        libc::SYS_setns,
        libc::SYS_setuid,
        libc::SYS_unshare,
    ];

    #[test]
    fn nobody_starts_programs_or_enters_namespaces() {
        for role in [Role::Data, Role::Helper, Role::Events, Role::Control] {
            for call in allowed(role) {
                assert!(!NEVER.contains(&call.number), "{role:?} {call:?}");
            }
        }
    }

    #[test]
    fn data_threads_open_nothing() {
        let opening = [libc::SYS_openat, libc::SYS_socket, libc::SYS_bpf];
        assert!(allowed(Role::Data).all(|call| !opening.contains(&call.number)));
    }
}
