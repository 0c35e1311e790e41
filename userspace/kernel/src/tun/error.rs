//! Why a device cannot be had.

use std::io;

use thiserror::Error;

/// Why there is no device.
#[derive(Debug, Error)]
pub enum TunError {
    /// Not a name the kernel would take.
    #[error("{name:?} is not an interface name: {reason}")]
    InvalidName {
        /// What was asked for.
        name: String,
        /// Which rule it breaks.
        reason: &'static str,
    },
    /// `/dev/net/tun` is not there.
    #[error("no /dev/net/tun: load the kernel module `tun`, or give the container the device")]
    NoDriver(#[source] io::Error),
    /// Not allowed to.
    #[error("not allowed to {action}: needs root or CAP_NET_ADMIN")]
    Permission {
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// There is an interface of that name.
    #[error("interface {name} exists already ({by})")]
    NameTaken {
        /// What was asked for.
        name: String,
        /// What kind of interface has it.
        by: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The descriptor given is not one of a layer-3 TUN queue without packet information.
    #[error("not the descriptor of a TUN device: {reason}")]
    NotTun {
        /// What it lacks.
        reason: &'static str,
        /// The system's answer, if one was needed to see it.
        source: Option<io::Error>,
    },
    /// Anything else.
    #[error("cannot {action}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        source: io::Error,
    },
}

impl TunError {
    pub(super) fn new(action: &'static str, source: io::Error) -> Self {
        if source.kind() == io::ErrorKind::PermissionDenied {
            Self::Permission { action, source }
        } else {
            Self::Io { action, source }
        }
    }
}
