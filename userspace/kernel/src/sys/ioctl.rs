//! The ioctls of network interfaces and of the TUN driver, each typed by what it takes.
//!
//! Layouts: `struct ifreq` in `include/uapi/linux/if.h`, requests in `include/uapi/linux/sockios.h`
//! and `include/uapi/linux/if_tun.h`.

use std::ffi::{c_int, c_uint};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use super::{check, invalid, owned};

/// `struct ifreq`: an interface name and a request-specific value.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug)]
pub(crate) struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    value: [u8; 24],
}

const _: () = assert!(size_of::<InterfaceRequest>() == size_of::<libc::ifreq>());

impl InterfaceRequest {
    /// A request about the interface `name`, 0 to 15 bytes.
    pub(crate) fn new(name: &str) -> io::Result<Self> {
        let mut request = Self {
            name: [0; libc::IFNAMSIZ],
            value: [0; 24],
        };
        if name.len() >= libc::IFNAMSIZ {
            return Err(invalid("interface name longer than 15 bytes"));
        }
        request.name[..name.len()].copy_from_slice(name.as_bytes());
        Ok(request)
    }

    pub(crate) fn name(&self) -> String {
        let end = self
            .name
            .iter()
            .position(|&byte| byte == 0)
            .unwrap_or(self.name.len());
        String::from_utf8_lossy(&self.name[..end]).into_owned()
    }

    /// `ifr_flags`.
    pub(crate) fn flags(&self) -> u16 {
        u16::from_ne_bytes([self.value[0], self.value[1]])
    }

    pub(crate) fn set_flags(&mut self, flags: u16) {
        self.value[..2].copy_from_slice(&flags.to_ne_bytes());
    }

    /// `ifr_mtu`, `ifr_qlen` and their like.
    pub(crate) fn integer(&self) -> c_int {
        c_int::from_ne_bytes([self.value[0], self.value[1], self.value[2], self.value[3]])
    }

    pub(crate) fn set_integer(&mut self, value: c_int) {
        self.value[..4].copy_from_slice(&value.to_ne_bytes());
    }
}

/// An ioctl that reads and writes one `struct ifreq` and nothing else.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InterfaceIoctl(libc::Ioctl);

impl InterfaceIoctl {
    pub(crate) const GET_FLAGS: Self = Self(libc::SIOCGIFFLAGS);
    pub(crate) const SET_FLAGS: Self = Self(libc::SIOCSIFFLAGS);
    pub(crate) const GET_MTU: Self = Self(libc::SIOCGIFMTU);
    pub(crate) const SET_MTU: Self = Self(libc::SIOCSIFMTU);
    pub(crate) const GET_INDEX: Self = Self(libc::SIOCGIFINDEX);
    pub(crate) const SET_QUEUE_LENGTH: Self = Self(libc::SIOCSIFTXQLEN);
    pub(crate) const TUN_SET: Self = Self(libc::TUNSETIFF);
    pub(crate) const TUN_GET: Self = Self(libc::TUNGETIFF);

    pub(crate) fn call(self, fd: BorrowedFd<'_>, request: &mut InterfaceRequest) -> io::Result<()> {
        // SAFETY: every constant of this type is a request whose argument is a `struct ifreq`,
        // the layout of `InterfaceRequest`, exclusively borrowed for the call.
        check(unsafe { libc::ioctl(fd.as_raw_fd(), self.0, std::ptr::from_mut(request)) })?;
        Ok(())
    }
}

/// `TUNGETFEATURES`: the `IFF_…` flags the driver knows.
pub(crate) fn tun_features(fd: BorrowedFd<'_>) -> io::Result<c_uint> {
    let mut features: c_uint = 0;
    // SAFETY: the request writes one `unsigned int`.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETFEATURES, &raw mut features) })?;
    Ok(features)
}

/// `TUNSETOFFLOAD`: `TUN_F_…`, for all queues of the device.
pub(crate) fn tun_set_offload(fd: BorrowedFd<'_>, offloads: c_uint) -> io::Result<()> {
    // SAFETY: the request takes its argument by value.
    check(unsafe {
        libc::ioctl(
            fd.as_raw_fd(),
            libc::TUNSETOFFLOAD,
            libc::c_ulong::from(offloads),
        )
    })?;
    Ok(())
}

/// `TUNSETVNETHDRSZ`, in bytes.
pub(crate) fn tun_set_vnet_header_size(fd: BorrowedFd<'_>, size: usize) -> io::Result<()> {
    let size = c_int::try_from(size).map_err(|_| invalid("header size"))?;
    // SAFETY: the request reads one `int`.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const size) })?;
    Ok(())
}

/// `TUNSETSTEERINGEBPF`: the program that chooses the queue for each packet, of all queues of the
/// device. Linux 4.16.
pub(crate) fn tun_set_steering(fd: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let program = program.as_raw_fd();
    // SAFETY: the request reads one `int`.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETSTEERINGEBPF, &raw const program) })?;
    Ok(())
}

/// `TUNGETDEVNETNS`: the namespace the device is in now. Linux 5.2, needs `CAP_NET_ADMIN` there.
pub(crate) fn tun_namespace(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: the request takes no argument.
    owned(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETDEVNETNS) })
}
