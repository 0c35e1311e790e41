//! TUN devices that exchange super-packets: `drivers/net/tun.c`, `Documentation/networking/tuntap.rst`.

mod error;
mod options;
mod probe;
mod steer;

use std::ffi::{c_int, c_uint};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

pub use error::TunError;
pub use options::{TunOffloads, TunOptions};

use crate::netlink;
use crate::netns::NetworkNamespace;
use crate::sys::ioctl::{self, InterfaceIoctl, InterfaceRequest};
use crate::sys::{self, is_errno, narrow, socket};

/// Length of the `virtio_net_hdr` in front of each packet when [`Tun::has_vnet_header`], in bytes.
pub const VNET_HEADER_LENGTH: usize = 10;

/// One queue of a TUN device, non-blocking. The device goes when its last queue is dropped.
///
/// Readable when there are packets. Once the device has been deleted it polls as failed, and
/// reads give `EBADFD`.
#[derive(Debug)]
pub struct Tun {
    queue: OwnedFd,
    name: String,
    /// `IFF_…` of the queue.
    flags: u16,
    /// `TUN_F_…` in force.
    offloads: AtomicU32,
}

impl Tun {
    /// Creates the device `name`, down and without addresses, in the namespace of the calling
    /// thread; a persistent TUN device of that name that nobody uses is taken over.
    ///
    /// Where the kernel refuses the virtio header or an offload the device does without;
    /// [`has_vnet_header`](Self::has_vnet_header) and [`offloads`](Self::offloads) tell.
    ///
    /// # Errors
    /// See [`TunError`].
    pub fn create(name: &str, options: &TunOptions) -> Result<Self, TunError> {
        check_name(name).map_err(|reason| TunError::InvalidName {
            name: name.into(),
            reason,
        })?;
        let queue = open_driver()?;
        let flags = attach(&queue, name, options)?;
        let tun = Self::configure(queue, name.into(), flags, options)?;
        // A shorter queue still works, so nothing is lost but some packets under load.
        let _ = tun.set_queue_length(options.queue_len);
        Ok(tun)
    }

    /// As [`create`](Self::create), with `count` queues, each a value of its own. All packets of one
    /// flow go to the same of them, chosen by addresses and ports. They are fewer
    /// where the device exists already and was made for one queue, or the kernel gives no more;
    /// there is always one.
    ///
    /// # Errors
    /// See [`TunError`].
    pub fn create_queues(
        name: &str,
        options: &TunOptions,
        count: usize,
    ) -> Result<Vec<Self>, TunError> {
        let wanted = TunOptions {
            multi_queue: count > 1,
            ..*options
        };
        let first = Self::create(name, &wanted).or_else(|error| {
            // Whoever made the device persistent has decided how many queues it takes.
            let other = TunOptions {
                multi_queue: !wanted.multi_queue,
                ..wanted
            };
            match &error {
                TunError::NameTaken { source, .. } if is_errno(source, libc::EINVAL) => {
                    Self::create(name, &other).map_err(|_| error)
                }
                _ => Err(error),
            }
        })?;
        let mut queues = vec![first];
        while queues.len() < count && queues[0].is_multi_queue() {
            match queues[0].open_queue() {
                Ok(queue) => queues.push(queue),
                Err(_) => break,
            }
        }
        // A device that outlives us keeps the kernel's own way, as does one on a kernel that takes no
        // program. A flow then follows the queue that its last answer was written to, and may be
        // reordered when that changes.
        if queues.len() > 1 && !queues[0].is_persistent() {
            let _ = steer::by_flow(queues[0].as_fd());
        }
        Ok(queues)
    }

    fn is_persistent(&self) -> bool {
        let persists = |request: InterfaceRequest| request.flags() & narrow(libc::IFF_PERSIST) != 0;
        get_interface(self.as_fd()).is_ok_and(persists)
    }

    /// Takes over a queue that somebody else attached (`WG_TUN_FD`). Its flags stay as they are,
    /// so there are offloads only if it has a virtio header.
    ///
    /// # Errors
    /// [`TunError::NotTun`] if it is anything but a TUN queue with `IFF_NO_PI`.
    pub fn from_fd(queue: OwnedFd, options: &TunOptions) -> Result<Self, TunError> {
        let request = get_interface(queue.as_fd()).map_err(|source| TunError::NotTun {
            reason: "no interface is attached to it",
            source: Some(source),
        })?;
        let flags = request.flags();
        if flags & narrow(libc::IFF_TUN) == 0 {
            return Err(TunError::NotTun {
                reason: "it carries frames (TAP)",
                source: None,
            });
        }
        if flags & narrow(libc::IFF_NO_PI) == 0 {
            return Err(TunError::NotTun {
                reason: "IFF_NO_PI is not set",
                source: None,
            });
        }
        sys::set_nonblocking(queue.as_fd())
            .map_err(|error| TunError::new("make the TUN queue non-blocking", error))?;
        Self::configure(queue, request.name(), flags, options)
    }

    /// Takes over all queues of a device that another process has.
    ///
    /// # Errors
    /// As [`from_fd`](Self::from_fd).
    pub fn from_queues(queues: Vec<OwnedFd>, options: &TunOptions) -> Result<Vec<Self>, TunError> {
        let queues = queues
            .into_iter()
            .map(|queue| Self::from_fd(queue, options))
            .collect::<Result<Vec<_>, _>>()?;
        if queues.len() > 1 && !queues[0].is_persistent() {
            let _ = steer::by_flow(queues[0].as_fd());
        }
        Ok(queues)
    }

    /// Opens a further queue of the same device. Packets read from it are those the kernel hashes
    /// to it.
    ///
    /// # Errors
    /// As [`create`](Self::create); `EINVAL` for a device made without
    /// [`TunOptions::multi_queue`].
    pub fn open_queue(&self) -> Result<Self, TunError> {
        const ACTION: &str = "open another TUN queue";
        let failed = |error| TunError::new(ACTION, error);
        let queue = open_driver()?;
        let name = self.current_name().map_err(failed)?;
        let mut request = InterfaceRequest::new(&name).map_err(failed)?;
        request.set_flags(self.flags);
        self.in_namespace(|| InterfaceIoctl::TUN_SET.call(queue.as_fd(), &mut request))
            .map_err(failed)?;
        // Attaching a queue resets the offloads of the whole device.
        let offloads = self.offloads.load(Ordering::Relaxed);
        ioctl::tun_set_offload(queue.as_fd(), offloads).map_err(failed)?;
        Ok(Self {
            queue,
            name,
            flags: self.flags,
            offloads: AtomicU32::new(offloads),
        })
    }

    fn configure(
        queue: OwnedFd,
        name: String,
        flags: u16,
        options: &TunOptions,
    ) -> Result<Self, TunError> {
        let tun = Self {
            queue,
            name,
            flags,
            offloads: AtomicU32::new(0),
        };
        if tun.has_vnet_header() {
            ioctl::tun_set_vnet_header_size(tun.as_fd(), VNET_HEADER_LENGTH)
                .map_err(|error| TunError::new("set the size of the virtio header", error))?;
        }
        let wanted = if options.offload && tun.has_vnet_header() {
            TunOffloads::ALL
        } else {
            TunOffloads::NONE
        };
        // The larger set first: there is no other way to learn what the kernel knows.
        let _ = tun
            .set_offloads(wanted)
            .or_else(|_| tun.set_offloads(wanted.without_udp()))
            .or_else(|_| tun.set_offloads(TunOffloads::NONE));
        Ok(tun)
    }

    /// The name the device had when this value was made; see [`current_name`](Self::current_name).
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name the device has now.
    ///
    /// # Errors
    /// `EBADFD` once the device is deleted.
    pub fn current_name(&self) -> io::Result<String> {
        get_interface(self.as_fd()).map(|request| request.name())
    }

    /// False once the device was deleted.
    #[must_use]
    pub fn attached(&self) -> bool {
        !matches!(get_interface(self.as_fd()), Err(error) if is_errno(&error, libc::EBADFD))
    }

    /// Whether each packet read and written starts with [`VNET_HEADER_LENGTH`] bytes of
    /// `virtio_net_hdr`, in native byte order.
    #[must_use]
    pub fn has_vnet_header(&self) -> bool {
        self.flags & narrow(libc::IFF_VNET_HDR) != 0
    }

    /// Whether the device takes more than one queue.
    #[must_use]
    pub fn is_multi_queue(&self) -> bool {
        self.flags & narrow(libc::IFF_MULTI_QUEUE) != 0
    }

    /// What the kernel may hand over unfinished now.
    #[must_use]
    pub fn offloads(&self) -> TunOffloads {
        TunOffloads::from_flags(self.offloads.load(Ordering::Relaxed))
    }

    /// Changes the offloads of the device, at any time. Packets queued already keep their form.
    /// Other [`Tun`] values of the same device do not learn of it.
    ///
    /// # Errors
    /// `EINVAL` for one the kernel does not know (nothing is changed then) or without a virtio
    /// header; `EBADFD` once the device is deleted.
    pub fn set_offloads(&self, offloads: TunOffloads) -> io::Result<()> {
        if offloads != TunOffloads::NONE && !self.has_vnet_header() {
            return Err(sys::invalid("offloads need the virtio header"));
        }
        let flags = offloads.to_flags();
        ioctl::tun_set_offload(self.as_fd(), flags)?;
        self.offloads.store(flags, Ordering::Relaxed);
        Ok(())
    }

    /// Reads one packet, virtio header included. A packet longer than `buffer` is cut, so that
    /// should hold [`VNET_HEADER_LENGTH`] + 65,535 bytes.
    ///
    /// # Errors
    /// `WouldBlock` when there is none; `EBADFD` once the device is deleted.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        sys::read(self.as_fd(), buffer)
    }

    /// Writes one packet, virtio header included, gathered from `buffers` (at most 1,024).
    ///
    /// # Errors
    /// `EIO` while the device is down; `EINVAL` for a header the kernel does not believe; `EBADFD`
    /// once the device is deleted.
    pub fn write_vectored(&self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        sys::write_vectored(self.as_fd(), buffers)
    }

    /// The device's MTU in bytes.
    ///
    /// # Errors
    /// `EBADFD` once the device is deleted; `EPERM` without `CAP_SYS_ADMIN` if it was moved to
    /// another namespace.
    pub fn mtu(&self) -> io::Result<u32> {
        let request = self.interface_ioctl(InterfaceIoctl::GET_MTU, |_| ())?;
        Ok(request.integer().unsigned_abs())
    }

    /// Sets the device's MTU, 68 to 65,535 bytes.
    ///
    /// # Errors
    /// As [`mtu`](Self::mtu); `EINVAL` out of range; `EPERM` without `CAP_NET_ADMIN`.
    pub fn set_mtu(&self, mtu: u32) -> io::Result<()> {
        let mtu = c_int::try_from(mtu).map_err(|_| sys::invalid("MTU out of range"))?;
        self.interface_ioctl(InterfaceIoctl::SET_MTU, |request| request.set_integer(mtu))?;
        Ok(())
    }

    /// Whether the device is up (`IFF_UP`).
    ///
    /// # Errors
    /// As [`mtu`](Self::mtu).
    pub fn is_up(&self) -> io::Result<bool> {
        let request = self.interface_ioctl(InterfaceIoctl::GET_FLAGS, |_| ())?;
        Ok(request.flags() & narrow(libc::IFF_UP) != 0)
    }

    /// The device's interface index in the namespace it is in.
    ///
    /// # Errors
    /// As [`mtu`](Self::mtu).
    pub fn index(&self) -> io::Result<u32> {
        let request = self.interface_ioctl(InterfaceIoctl::GET_INDEX, |_| ())?;
        Ok(request.integer().unsigned_abs())
    }

    /// The namespace the device is in now.
    ///
    /// # Errors
    /// `EBADFD` once the device is deleted; `EPERM` without `CAP_NET_ADMIN` over it; `EINVAL` or
    /// `ENOTTY` before Linux 5.2.
    pub fn namespace(&self) -> io::Result<NetworkNamespace> {
        ioctl::tun_namespace(self.as_fd()).map(NetworkNamespace::from)
    }

    fn set_queue_length(&self, length: u32) -> io::Result<()> {
        let length = c_int::try_from(length).map_err(|_| sys::invalid("queue length"))?;
        self.interface_ioctl(InterfaceIoctl::SET_QUEUE_LENGTH, |r| r.set_integer(length))?;
        Ok(())
    }

    /// Asks about the device by its current name in its current namespace. A rename between the
    /// two steps shows as `ENODEV` and is answered by asking again.
    fn interface_ioctl(
        &self,
        call: InterfaceIoctl,
        fill: impl Fn(&mut InterfaceRequest) + Sync,
    ) -> io::Result<InterfaceRequest> {
        const ATTEMPTS: usize = 3;
        let mut last = Err(io::Error::from_raw_os_error(libc::ENODEV));
        for _ in 0..ATTEMPTS {
            let name = self.current_name()?;
            last = self.in_namespace(|| {
                let socket = socket::socket(libc::AF_INET, libc::SOCK_DGRAM, 0)
                    .or_else(|_| socket::socket(libc::AF_INET6, libc::SOCK_DGRAM, 0))?;
                let mut request = InterfaceRequest::new(&name)?;
                fill(&mut request);
                call.call(socket.as_fd(), &mut request)?;
                Ok(request)
            });
            if !matches!(&last, Err(error) if is_errno(error, libc::ENODEV)) {
                return last;
            }
        }
        last
    }

    /// Runs `work` in the namespace of the device: right here if that is the thread's own.
    fn in_namespace<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        match self.namespace() {
            Ok(namespace) if namespace.id()? != NetworkNamespace::current()?.id()? => {
                namespace.run_in(work)?
            }
            Err(error) if is_errno(&error, libc::EBADFD) => Err(error),
            // Here, or unknown: then here is the best guess.
            _ => work(),
        }
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }
}

/// The rules of the kernel's `dev_valid_name`, and no `%`, which it takes for a template.
fn check_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("it is empty");
    }
    if name.len() >= libc::IFNAMSIZ {
        return Err("it is longer than 15 bytes");
    }
    if name == "." || name == ".." {
        return Err("it is a directory");
    }
    let forbidden = |c: char| matches!(c, '/' | ':' | '%' | '\0') || c.is_ascii_whitespace();
    // The kernel's isspace() knows two spaces that ASCII whitespace here does not.
    if name.contains(forbidden) || name.bytes().any(|byte| matches!(byte, 0x0b | 0xa0)) {
        return Err("it has a '/', ':', '%' or a space");
    }
    Ok(())
}

fn open_driver() -> Result<OwnedFd, TunError> {
    sys::open_read_write_nonblocking(c"/dev/net/tun").map_err(|error| match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO | libc::ENOTDIR) => {
            TunError::NoDriver(error)
        }
        _ => TunError::new("open /dev/net/tun", error),
    })
}

fn get_interface(queue: BorrowedFd<'_>) -> io::Result<InterfaceRequest> {
    let mut request = InterfaceRequest::new("")?;
    InterfaceIoctl::TUN_GET.call(queue, &mut request)?;
    Ok(request)
}

/// Attaches `queue` to the interface `name` and returns the flags that were granted.
fn attach(queue: &OwnedFd, name: &str, options: &TunOptions) -> Result<u16, TunError> {
    const ACTION: &str = "create a TUN device";
    let mut flags = narrow(libc::IFF_TUN) | narrow(libc::IFF_NO_PI);
    if options.multi_queue {
        flags |= narrow(libc::IFF_MULTI_QUEUE);
    }
    let features = ioctl::tun_features(queue.as_fd()).unwrap_or(0);
    let vnet_header = narrow(libc::IFF_VNET_HDR);
    let with_header = options.offload && features & c_uint::from(vnet_header) != 0;

    let set = |flags: u16| {
        let mut request = InterfaceRequest::new(name)?;
        request.set_flags(flags);
        InterfaceIoctl::TUN_SET.call(queue.as_fd(), &mut request)
    };
    let (error, flags) = match set(flags | if with_header { vnet_header } else { 0 }) {
        Ok(()) => return Ok(flags | if with_header { vnet_header } else { 0 }),
        Err(error) => (error, flags),
    };
    // EBUSY: a TUN in use. EINVAL: an interface of another kind, or other flags.
    if let Some(libc::EBUSY | libc::EINVAL) = error.raw_os_error() {
        if let Ok(Some(link)) = netlink::link_by_name(name) {
            let by = link.kind.unwrap_or_else(|| "a network interface".into());
            return Err(TunError::NameTaken {
                name: name.into(),
                by,
                source: error,
            });
        }
        if with_header && set(flags).is_ok() {
            return Ok(flags);
        }
    }
    Err(TunError::new(ACTION, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_kernels_rules() {
        for good in ["a", "wg0", "fifteen-bytes-x", "tun.1", "ünï", "..."] {
            assert!(check_name(good).is_ok(), "{good:?}");
        }
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "a b",
            "a\tb",
            "wg%d",
            "a:b",
            "a\0",
            "sixteen-bytes-xx",
        ] {
            assert!(check_name(bad).is_err(), "{bad:?}");
            let error = Tun::create(bad, &TunOptions::default()).unwrap_err();
            assert!(matches!(error, TunError::InvalidName { .. }), "{error:?}");
        }
    }

    #[test]
    fn a_descriptor_of_something_else_is_refused() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let error = Tun::from_fd(file.into(), &TunOptions::default()).unwrap_err();
        assert!(matches!(error, TunError::NotTun { .. }), "{error:?}");
    }
}
