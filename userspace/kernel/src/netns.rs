//! Network namespaces: naming one, making one, running code in one.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::thread;

use crate::sys::ioctl::{InterfaceIoctl, InterfaceRequest};
use crate::sys::{self, socket};

/// The calling thread's namespace. (`/proc/self` would be the main thread's.)
const OWN: &str = "/proc/thread-self/ns/net";

/// A network namespace, kept alive by an open descriptor.
#[derive(Debug)]
pub struct NetworkNamespace(OwnedFd);

/// Tells namespaces apart: device and inode of the namespace file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NamespaceId {
    device: u64,
    inode: u64,
}

impl NetworkNamespace {
    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// When `/proc` is not mounted.
    pub fn current() -> io::Result<Self> {
        File::open(OWN).map(|file| Self(file.into()))
    }

    /// A new namespace with nothing in it but the loopback device, which is up. It ends with its
    /// last user: this value, the threads and sockets in it.
    ///
    /// # Errors
    /// `EPERM` without `CAP_SYS_ADMIN`.
    pub fn new_private() -> io::Result<Self> {
        on_own_thread(|| {
            sys::unshare_network()?;
            raise_loopback()?;
            Self::current()
        })
    }

    /// Runs `work` on a thread of its own inside this namespace, and waits for it. Sockets, TUN
    /// devices and child processes it makes belong to the namespace.
    ///
    /// # Errors
    /// `EPERM` without `CAP_SYS_ADMIN`; an error to start the thread.
    pub fn run_in<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        on_own_thread(|| {
            sys::enter_network_namespace(self.0.as_fd())?;
            Ok(work())
        })
    }

    /// What tells this namespace from others.
    ///
    /// # Errors
    /// As `fstat(2)`.
    pub fn id(&self) -> io::Result<NamespaceId> {
        let metadata = File::from(self.0.try_clone()?).metadata()?;
        Ok(NamespaceId {
            device: metadata.dev(),
            inode: metadata.ino(),
        })
    }
}

impl From<OwnedFd> for NetworkNamespace {
    /// Wraps a descriptor of a namespace file, as `open` of `/run/netns/NAME` gives it.
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl AsFd for NetworkNamespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Namespaces belong to threads, so whoever enters one does it on a thread that ends thereafter.
fn on_own_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let worker = thread::Builder::new()
            .name("netns".into())
            .spawn_scoped(scope, work)?;
        match worker.join() {
            Ok(result) => result,
            // A panic is `work`'s own: it goes on where it would have gone without the thread.
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn raise_loopback() -> io::Result<()> {
    let socket = socket::socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
    let mut request = InterfaceRequest::new("lo")?;
    InterfaceIoctl::GET_FLAGS.call(socket.as_fd(), &mut request)?;
    let up = u16::try_from(libc::IFF_UP).unwrap_or(0);
    request.set_flags(request.flags() | up);
    InterfaceIoctl::SET_FLAGS.call(socket.as_fd(), &mut request)
}
