//! The socket: rings, binding, statistics.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use thiserror::Error;

use super::mapped::{MappedRing, Ring};
use super::umem::Umem;
use crate::bpf::raise_locked_memory_limit;
use crate::sys::{self, check, check_length, owned};

/// Why an AF_XDP socket cannot be had.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum XskError {
    /// The kernel was built without AF_XDP, or a security module forbids it.
    #[error("this kernel has no AF_XDP sockets")]
    Unsupported(#[source] io::Error),
    /// No permission.
    #[error("AF_XDP needs CAP_NET_RAW")]
    Permission(#[source] io::Error),
    /// `RLIMIT_MEMLOCK` does not allow this much UMEM.
    #[error(
        "the limit on locked memory (ulimit -l) is too small for {bytes} bytes of packet memory"
    )]
    LockedMemory {
        /// Bytes of UMEM asked for.
        bytes: u64,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The interface has no such queue, is gone, or cannot do what was asked of it.
    #[error("interface {ifindex} has no usable RX queue {queue}")]
    NoQueue {
        /// Index of the interface.
        ifindex: u32,
        /// Number of the queue.
        queue: u32,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Somebody else's AF_XDP socket is bound to the queue.
    #[error("RX queue {queue} of interface {ifindex} is in use by another AF_XDP socket")]
    QueueBusy {
        /// Index of the interface.
        ifindex: u32,
        /// Number of the queue.
        queue: u32,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Anything else.
    #[error("{call} failed for an AF_XDP socket")]
    Io {
        /// The call that failed.
        call: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// How a socket gets its UMEM.
#[derive(Clone, Copy, Debug)]
pub(super) enum Registration<'a> {
    /// It registers the memory.
    Own,
    /// It joins the socket that did.
    Shared(BorrowedFd<'a>),
}

/// An AF_XDP socket that either receives or transmits.
#[derive(Debug)]
pub(super) struct XskSocket {
    fd: OwnedFd,
}

/// A socket with its rings, not yet bound.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) socket: XskSocket,
    pub(super) fill: MappedRing<u64>,
    pub(super) receive: MappedRing<libc::xdp_desc>,
}

/// A socket that transmits, with its rings and bound.
#[derive(Debug)]
pub(super) struct Transmitting {
    pub(super) socket: XskSocket,
    pub(super) transmit: MappedRing<libc::xdp_desc>,
    pub(super) completion: MappedRing<u64>,
}

/// Entries of the completion ring that the kernel wants with every queue; room for all frames of a [`Transmitter`].
///
/// [`Transmitter`]: super::Transmitter
pub(super) const COMPLETION_ENTRIES: u32 = 1024;

/// `XDP_MAX_TX_SKB_BUDGET` (Linux 6.17): packets that one call sends in copy mode, 32 otherwise.
const MAX_TX_SKB_BUDGET: i32 = 9;

/// Bytes of packets on their way in copy mode, as for the UDP socket.
const SEND_BUFFER: i32 = 7 << 20;

/// `AF_XDP` as `sockaddr_xdp` wants it.
const FAMILY: u16 = 44;
const _: () = assert!(libc::AF_XDP == FAMILY as i32);

impl XskSocket {
    /// Opens a socket and its rings: `fill` and `receive` entries, powers of two.
    pub(super) fn prepare(
        umem: &Umem,
        registration: Registration<'_>,
        fill: u32,
        receive: u32,
    ) -> Result<Prepared, XskError> {
        let socket = Self::open()?;
        if let Registration::Own = registration {
            socket.register(umem)?;
        }
        socket.set("XDP_UMEM_FILL_RING", libc::XDP_UMEM_FILL_RING, &fill)?;
        socket.set(
            "XDP_UMEM_COMPLETION_RING",
            libc::XDP_UMEM_COMPLETION_RING,
            &COMPLETION_ENTRIES,
        )?;
        socket.set("XDP_RX_RING", libc::XDP_RX_RING, &receive)?;
        Ok(Prepared {
            fill: socket.map(Ring::Fill, fill)?,
            receive: socket.map(Ring::Receive, receive)?,
            socket,
        })
    }

    /// Opens a socket that transmits `entries` packets at a time, a power of two, and binds it to the queue of
    /// `receiving`, whose UMEM and completion ring it uses. Nobody else may use the completion ring.
    pub(super) fn transmitting(
        receiving: &Self,
        ifindex: u32,
        queue: u32,
        entries: u32,
    ) -> Result<Transmitting, XskError> {
        let socket = Self::open()?;
        socket.set("XDP_TX_RING", libc::XDP_TX_RING, &entries)?;
        // Not known to older kernels, which are asked more often then.
        let _ = socket.set("XDP_MAX_TX_SKB_BUDGET", MAX_TX_SKB_BUDGET, &entries);
        // The default holds some 90 packets; without CAP_NET_ADMIN it stays.
        let _ = sys::socket::set_option(
            socket.as_fd(),
            libc::SOL_SOCKET,
            libc::SO_SNDBUFFORCE,
            SEND_BUFFER,
        );
        let transmit = socket.map(Ring::Transmit, entries)?;
        socket.bind(ifindex, queue, Registration::Shared(receiving.as_fd()))?;
        Ok(Transmitting {
            transmit,
            completion: receiving.map(Ring::Completion, COMPLETION_ENTRIES)?,
            socket,
        })
    }

    fn open() -> Result<Self, XskError> {
        // SAFETY: takes integers only.
        owned(unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) })
            .map(|fd| Self { fd })
            .map_err(|source| match source.raw_os_error() {
                Some(libc::EAFNOSUPPORT) => XskError::Unsupported(source),
                Some(libc::EPERM | libc::EACCES) => XskError::Permission(source),
                _ => XskError::Io {
                    call: "socket",
                    source,
                },
            })
    }

    /// Maps a ring that the socket has been given.
    fn map<T: Copy>(&self, ring: Ring, entries: u32) -> Result<MappedRing<T>, XskError> {
        let offsets = self
            .get(libc::XDP_MMAP_OFFSETS)
            .map_err(|source| XskError::Io {
                call: "XDP_MMAP_OFFSETS",
                source,
            })?;
        MappedRing::map(self.as_fd(), ring, &offsets, entries).map_err(|source| XskError::Io {
            call: "mmap of a ring",
            source,
        })
    }

    fn register(&self, umem: &Umem) -> Result<(), XskError> {
        let registration = libc::xdp_umem_reg {
            addr: umem.address(),
            len: umem.length(),
            chunk_size: umem.frame_size().bytes(),
            headroom: 0,
            flags: 0,
            tx_metadata_len: 0,
        };
        raise_locked_memory_limit();
        self.set("XDP_UMEM_REG", libc::XDP_UMEM_REG, &registration)
            .map_err(|error| match error {
                XskError::Io { source, .. } if source.raw_os_error() == Some(libc::ENOBUFS) => {
                    XskError::LockedMemory {
                        bytes: umem.length(),
                        source,
                    }
                }
                other => other,
            })
    }

    /// Binds to a queue. The driver does without copying if it can; the kernel copies otherwise.
    pub(super) fn bind(
        &self,
        ifindex: u32,
        queue: u32,
        registration: Registration<'_>,
    ) -> Result<(), XskError> {
        let (flags, shared) = match registration {
            Registration::Own => (libc::XDP_USE_NEED_WAKEUP, 0),
            // Everything else is inherited and must not be said again: xsk_bind(), net/xdp/xsk.c.
            Registration::Shared(fd) => (libc::XDP_SHARED_UMEM, fd.as_raw_fd().unsigned_abs()),
        };
        let address = libc::sockaddr_xdp {
            sxdp_family: FAMILY,
            sxdp_flags: flags,
            sxdp_ifindex: ifindex,
            sxdp_queue_id: queue,
            sxdp_shared_umem_fd: shared,
        };
        let length = length_of::<libc::sockaddr_xdp>();
        // SAFETY: pointer and length describe `address`, which outlives the call.
        check(unsafe { libc::bind(self.fd.as_raw_fd(), (&raw const address).cast(), length) })
            .map(drop)
            .map_err(|source| match source.raw_os_error() {
                Some(libc::EBUSY) => XskError::QueueBusy {
                    ifindex,
                    queue,
                    source,
                },
                Some(libc::EINVAL | libc::ENODEV | libc::EOPNOTSUPP | libc::ENETDOWN) => {
                    XskError::NoQueue {
                        ifindex,
                        queue,
                        source,
                    }
                }
                _ => XskError::Io {
                    call: "bind",
                    source,
                },
            })
    }

    /// Whether the driver reads and writes packets straight in the UMEM.
    pub(super) fn is_zero_copy(&self) -> io::Result<bool> {
        let options: libc::xdp_options = self.get(libc::XDP_OPTIONS)?;
        Ok(options.flags & libc::XDP_OPTIONS_ZEROCOPY != 0)
    }

    pub(super) fn statistics(&self) -> io::Result<libc::xdp_statistics> {
        self.get(libc::XDP_STATISTICS)
    }

    /// Tells the kernel that the fill ring has entries again.
    pub(super) fn wake(&self) {
        // SAFETY: no buffer is passed. The call drives the driver's poll function; its errors (EAGAIN, ENETDOWN, EBUSY) mean
        // that there is nothing to drive now.
        unsafe {
            libc::recvfrom(
                self.fd.as_raw_fd(),
                std::ptr::null_mut(),
                0,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
                std::ptr::null_mut(),
            )
        };
    }

    /// Has the kernel look at the TX ring.
    pub(super) fn kick(&self) -> io::Result<()> {
        // SAFETY: no buffer and no address is passed.
        let sent = unsafe {
            libc::sendto(
                self.fd.as_raw_fd(),
                std::ptr::null(),
                0,
                libc::MSG_DONTWAIT,
                std::ptr::null(),
                0,
            )
        };
        check_length(sent).map(drop)
    }

    fn set<T>(&self, call: &'static str, option: i32, value: &T) -> Result<(), XskError> {
        // SAFETY: pointer and length describe `value`, a plain integer or ABI struct.
        check(unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_XDP,
                option,
                std::ptr::from_ref(value).cast(),
                length_of::<T>(),
            )
        })
        .map(drop)
        .map_err(|source| XskError::Io { call, source })
    }

    /// Reads an ABI struct of integers; older kernels fill it only in part, the rest is zero.
    fn get<T: Copy>(&self, option: i32) -> io::Result<T> {
        let mut value = MaybeUninit::<T>::zeroed();
        let mut length = length_of::<T>();
        // SAFETY: pointer and length describe `value`, and the kernel writes no more than that.
        check(unsafe {
            libc::getsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_XDP,
                option,
                value.as_mut_ptr().cast(),
                &raw mut length,
            )
        })?;
        // SAFETY: every byte is initialised (zero, or written by the kernel), and the callers' types are structs of integers.
        Ok(unsafe { value.assume_init() })
    }
}

impl AsFd for XskSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn length_of<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).expect("ABI structs are a few dozen bytes long")
}
