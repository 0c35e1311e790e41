//! Links: what ties a program to an interface.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use aya::programs::links::Link as _;
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle};
use aya::programs::{SchedClassifier, TcAttachType};
use thiserror::Error;

use super::foreign::{ForeignProgram, attached_program};
use super::sys::{self, AttachType};

/// Where in the receive path the XDP program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver, before the kernel has made an skb of the packet.
    Native,
    /// In the network stack; works on every interface, and saves little.
    Generic,
}

impl XdpMode {
    /// `XDP_FLAGS_DRV_MODE`, `XDP_FLAGS_SKB_MODE` (`linux/if_link.h`).
    const fn flags(self) -> u32 {
        match self {
            Self::Native => 1 << 2,
            Self::Generic => 1 << 1,
        }
    }
}

/// How the tc programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcMode {
    /// By links (Linux 6.6), which end with the process.
    Tcx,
    /// As filters of a clsact qdisc. A killed process leaves them behind; the next one of the same tunnel replaces them.
    Clsact,
}

/// Why a program cannot be attached.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AttachError {
    /// Somebody else's XDP program is there.
    #[error("another XDP program is on the interface: {0}")]
    Foreign(ForeignProgram),
    /// The driver has no XDP.
    #[error(
        "the driver does not support native XDP, or not with its present settings (LRO, checksum offload, MTU)"
    )]
    NoNativeSupport(#[source] io::Error),
    /// The peer of a veth sends on more queues than this side receives on.
    #[error(
        "not enough queues for XDP: the interface needs as many RX queues as its peer has TX queues"
    )]
    Queues(#[source] io::Error),
    /// The MTU is too large for the driver.
    #[error("the MTU is too large for XDP in this driver")]
    Mtu(#[source] io::Error),
    /// There is no such interface.
    #[error("no such interface")]
    NoInterface(#[source] io::Error),
    /// No permission.
    #[error("attaching needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN")]
    Permission(#[source] io::Error),
    /// Anything else.
    #[error("attaching failed")]
    Io(#[source] io::Error),
}

impl AttachError {
    /// Says what an errno of attaching XDP means.
    fn from_xdp(error: io::Error, ifindex: u32) -> Self {
        match error.raw_os_error() {
            // EBUSY: the same mode is taken; EEXIST: the other mode is.
            Some(libc::EBUSY | libc::EEXIST) => match attached_program(ifindex) {
                Ok(Some(program)) => Self::Foreign(program),
                _ => Self::Io(error),
            },
            // EINVAL has many reasons; that there is no interface is one of them.
            Some(libc::EINVAL) => match attached_program(ifindex) {
                Err(gone) if gone.raw_os_error() == Some(libc::ENODEV) => Self::NoInterface(gone),
                _ => Self::Io(error),
            },
            Some(libc::EOPNOTSUPP) => Self::NoNativeSupport(error),
            Some(libc::ENOSPC) => Self::Queues(error),
            Some(libc::ERANGE) => Self::Mtu(error),
            _ => Self::from_any(error),
        }
    }

    fn from_any(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENODEV) => Self::NoInterface(error),
            Some(libc::EPERM | libc::EACCES) => Self::Permission(error),
            _ => Self::Io(error),
        }
    }
}

/// Whether a program is still where it was put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// It is.
    Attached,
    /// The interface is gone, or somebody detached the link.
    Detached,
    /// Somebody put another program in its place; its number.
    Replaced(u32),
}

/// A link of ours, which ends when this is dropped.
#[derive(Debug)]
pub(super) struct Link {
    fd: OwnedFd,
    program: u32,
    pub(super) ifindex: u32,
}

impl Link {
    pub(super) fn xdp(
        program: BorrowedFd<'_>,
        ifindex: u32,
        mode: XdpMode,
    ) -> Result<Self, AttachError> {
        Self::create(program, ifindex, AttachType::Xdp, mode.flags())
            .map_err(|error| AttachError::from_xdp(error, ifindex))
    }

    fn create(
        program: BorrowedFd<'_>,
        ifindex: u32,
        place: AttachType,
        flags: u32,
    ) -> io::Result<Self> {
        let fd = sys::link_create(program, ifindex, place, flags)?;
        Ok(Self {
            fd,
            program: sys::program_id(program)?,
            ifindex,
        })
    }

    pub(super) fn state(&self) -> io::Result<LinkState> {
        let info = sys::link_info(self.fd.as_fd())?;
        Ok(if info.ifindex == 0 {
            LinkState::Detached
        } else if info.program_id != self.program {
            LinkState::Replaced(info.program_id)
        } else {
            LinkState::Attached
        })
    }
}

/// The two directions of tc on one interface.
#[derive(Debug)]
pub(super) struct TcAttachment {
    pub(super) ifindex: u32,
    pub(super) mode: TcMode,
    /// Ingress and egress with TCX; empty with clsact, where aya keeps what is to be removed.
    links: Vec<Link>,
    /// With clsact, removed by [`detach`](Self::detach) and on drop.
    filters: Vec<SchedClassifierLink>,
}

/// Filters of ours have this priority, so that they can be found again.
const PRIORITY: u16 = 0xad17;

impl TcAttachment {
    /// Attaches by TCX where the kernel has it, else by clsact. `tag` tells the filters of one tunnel from another's.
    pub(super) fn new(
        ingress: &mut SchedClassifier,
        egress: &mut SchedClassifier,
        ifindex: u32,
        wanted: Option<TcMode>,
        tag: u16,
    ) -> Result<Self, AttachError> {
        if wanted != Some(TcMode::Clsact) {
            match Self::tcx(ingress, egress, ifindex) {
                // The kernel does not know the attach type.
                Err(AttachError::Io(error))
                    if wanted.is_none() && error.raw_os_error() == Some(libc::EINVAL) => {}
                other => return other,
            }
        }
        Self::clsact(ingress, egress, ifindex, tag)
    }

    fn tcx(
        ingress: &SchedClassifier,
        egress: &SchedClassifier,
        ifindex: u32,
    ) -> Result<Self, AttachError> {
        let attach = |program: &SchedClassifier, place| {
            let fd = program
                .fd()
                .map_err(|error| AttachError::Io(io::Error::other(error)))?;
            Link::create(fd.as_fd(), ifindex, place, 0).map_err(AttachError::from_any)
        };
        Ok(Self {
            ifindex,
            mode: TcMode::Tcx,
            links: vec![
                attach(ingress, AttachType::TcxIngress)?,
                attach(egress, AttachType::TcxEgress)?,
            ],
            filters: Vec::new(),
        })
    }

    fn clsact(
        ingress: &mut SchedClassifier,
        egress: &mut SchedClassifier,
        ifindex: u32,
        tag: u16,
    ) -> Result<Self, AttachError> {
        let name = interface_name(ifindex).map_err(AttachError::from_any)?;
        // Fails when the qdisc is there already, which is as good; anything worse shows when the filter is added.
        let _ = aya::programs::tc::qdisc_add_clsact(&name);
        let mut attachment = Self {
            ifindex,
            mode: TcMode::Clsact,
            links: Vec::new(),
            filters: Vec::new(),
        };
        let handle = TcHandle::new(0, tag);
        for (program, direction) in [
            (ingress, TcAttachType::Ingress),
            (egress, TcAttachType::Egress),
        ] {
            // What a killed process of the same tunnel has left behind.
            if let Ok(stale) =
                SchedClassifierLink::attached(&name, direction, PRIORITY, handle, None)
            {
                let _ = stale.detach();
            }
            let options = TcAttachOptions::Netlink(NlOptions {
                priority: PRIORITY,
                handle,
                classid: None,
            });
            let filter = program
                .attach_with_options(&name, direction, options)
                .and_then(|id| program.take_link(id))
                .map_err(|error| AttachError::from_any(io_error(&error)))?;
            attachment.filters.push(filter);
        }
        Ok(attachment)
    }

    pub(super) fn state(&self) -> io::Result<LinkState> {
        for link in &self.links {
            let state = link.state()?;
            if state != LinkState::Attached {
                return Ok(state);
            }
        }
        Ok(LinkState::Attached)
    }
}

/// The errno somewhere below an error of aya's.
pub(super) fn io_error(error: &(dyn std::error::Error + 'static)) -> io::Error {
    let mut cause = Some(error);
    while let Some(current) = cause {
        if let Some(errno) = current
            .downcast_ref::<io::Error>()
            .and_then(io::Error::raw_os_error)
        {
            return io::Error::from_raw_os_error(errno);
        }
        cause = current.source();
    }
    io::Error::other(error.to_string())
}

fn interface_name(ifindex: u32) -> io::Result<String> {
    let mut name = [0_u8; libc::IF_NAMESIZE];
    // SAFETY: the buffer has the IF_NAMESIZE bytes the call may write.
    let result = unsafe { libc::if_indextoname(ifindex, name.as_mut_ptr().cast()) };
    if result.is_null() {
        // ENXIO in the library's words.
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(name).into_owned())
}
