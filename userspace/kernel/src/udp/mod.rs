//! UDP in batches: `recvmmsg` with GRO, `sendmmsg` with GSO, local addresses, ECN, fwmark.
//!
//! Kernel side: `net/ipv4/udp.c`, `net/ipv4/udp_offload.c`, `net/ipv4/ip_sockglue.c`,
//! `net/ipv6/datagram.c`.

mod address;
mod cmsg;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod group;
mod memory;
mod receive;
mod report;
mod send;
mod socket;
mod transmit;

use std::io;
use std::net::SocketAddr;

use thiserror::Error;

pub use address::canonical;
pub use group::UdpGroup;
pub use receive::{Received, RecvBatch, SLOT_SIZE};
pub use report::{DropCount, Outcome, SendReport};
pub use send::{Outgoing, SendBatch};
pub use socket::{Family, UdpSocket};

use crate::sys::is_errno;

/// As other implementations ask for: some 15 ms of 4 Gbit/s, and what a sender of 64 KB bursts
/// needs not to stall.
const DEFAULT_BUFFER: usize = 7 << 20;

/// How often to look for a port that is free in both families.
const PORT_ATTEMPTS: usize = 100;

/// How to set the sockets up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpOptions {
    /// Have the kernel cut up what is sent, where it can.
    pub gso: bool,
    /// Let the kernel put received datagrams together, where it can.
    pub gro: bool,
    /// Firewall mark of everything sent; 0 for none.
    pub fwmark: u32,
    /// Receive buffer in bytes; 0 leaves the system's default.
    pub receive_buffer: usize,
    /// Send buffer in bytes; 0 leaves the system's default.
    pub send_buffer: usize,
}

impl Default for UdpOptions {
    fn default() -> Self {
        Self {
            gso: true,
            gro: true,
            fwmark: 0,
            receive_buffer: DEFAULT_BUFFER,
            send_buffer: DEFAULT_BUFFER,
        }
    }
}

/// Why there are no sockets.
#[derive(Debug, Error)]
pub enum UdpError {
    /// Somebody else has the port.
    #[error("UDP port {port} is in use")]
    PortInUse {
        /// The port asked for; 0 if none was free in both families.
        port: u16,
        /// The system's answer.
        source: io::Error,
    },
    /// Not allowed to.
    #[error("not allowed to {action}")]
    Permission {
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// This host has neither IPv4 nor IPv6.
    #[error("neither IPv4 nor IPv6 is available")]
    NoFamily(#[source] io::Error),
    /// Anything else.
    #[error("cannot {action}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        source: io::Error,
    },
}

impl UdpError {
    fn new(action: &'static str, source: io::Error) -> Self {
        if source.kind() == io::ErrorKind::PermissionDenied {
            Self::Permission { action, source }
        } else {
            Self::Io { action, source }
        }
    }

    fn binding(port: u16, source: io::Error) -> Self {
        if source.kind() == io::ErrorKind::AddrInUse {
            Self::PortInUse { port, source }
        } else {
            Self::new("open a UDP socket", source)
        }
    }
}

/// A socket per family, on the same port. A host without one of the families has one socket.
#[derive(Debug)]
pub struct UdpSockets {
    /// For IPv4.
    pub v4: Option<UdpSocket>,
    /// For IPv6.
    pub v6: Option<UdpSocket>,
}

impl UdpSockets {
    /// Opens both sockets; `port` 0 picks one that is free in both families.
    ///
    /// # Errors
    /// See [`UdpError`].
    pub fn bind(port: u16, options: &UdpOptions) -> Result<Self, UdpError> {
        let mut last = io::Error::from_raw_os_error(libc::EADDRINUSE);
        // Ports that are free for IPv4 only are held, or the kernel might offer them again.
        let mut held = Vec::new();
        for _ in 0..PORT_ATTEMPTS {
            let v4 = if_available(UdpSocket::bind(Family::V4, port, options))
                .map_err(|error| UdpError::binding(port, error))?;
            let wanted = v4.as_ref().map_or(port, UdpSocket::port);
            match if_available(UdpSocket::bind(Family::V6, wanted, options)) {
                Ok(v6) => return Self::from_families(v4, v6),
                // Free in one family only: try another, if it is ours to choose.
                Err(error) if port == 0 && is_errno(&error, libc::EADDRINUSE) => {
                    last = error;
                    held.push(v4);
                }
                Err(error) => return Err(UdpError::binding(port, error)),
            }
        }
        Err(UdpError::binding(port, last))
    }

    fn from_families(v4: Availability, v6: Availability) -> Result<Self, UdpError> {
        match (v4, v6) {
            (Err(error), Err(_)) => Err(UdpError::NoFamily(error)),
            (v4, v6) => Ok(Self {
                v4: v4.ok(),
                v6: v6.ok(),
            }),
        }
    }

    /// The port of both.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.iter().next().map_or(0, UdpSocket::port)
    }

    /// Changes the firewall mark of both; 0 removes it.
    ///
    /// # Errors
    /// [`UdpError::Permission`] without `CAP_NET_ADMIN`.
    pub fn set_fwmark(&self, mark: u32) -> Result<(), UdpError> {
        self.iter()
            .try_for_each(|socket| socket.set_fwmark(mark))
            .map_err(|error| UdpError::new("set a firewall mark", error))
    }

    /// The socket that reaches `address`, if its family is available.
    #[must_use]
    pub fn for_address(&self, address: &SocketAddr) -> Option<&UdpSocket> {
        match canonical(*address) {
            SocketAddr::V4(_) => self.v4.as_ref(),
            SocketAddr::V6(_) => self.v6.as_ref(),
        }
    }

    /// The sockets there are.
    pub fn iter(&self) -> impl Iterator<Item = &UdpSocket> {
        self.v4.iter().chain(&self.v6)
    }
}

/// A socket, or why the host has none of this family.
type Availability = Result<UdpSocket, io::Error>;

/// Sets errors that mean "no such family here" apart from the others.
fn if_available(result: io::Result<UdpSocket>) -> io::Result<Availability> {
    match result {
        Ok(socket) => Ok(Ok(socket)),
        Err(error) => match error.raw_os_error() {
            Some(libc::EAFNOSUPPORT | libc::EPFNOSUPPORT | libc::EADDRNOTAVAIL) => Ok(Err(error)),
            _ => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a socket call gives where IPv6 (or IPv4) is switched off.
    fn missing() -> Availability {
        Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT))
    }

    #[test]
    fn one_family_is_enough() {
        let options = UdpOptions::default();
        let v4 = UdpSocket::bind(Family::V4, 0, &options).unwrap();
        let port = v4.port();
        let sockets = UdpSockets::from_families(Ok(v4), missing()).unwrap();
        assert_eq!((sockets.port(), sockets.iter().count()), (port, 1));
        assert!(sockets.for_address(&"[::1]:9".parse().unwrap()).is_none());

        let v6 = UdpSocket::bind(Family::V6, 0, &options).unwrap();
        let sockets = UdpSockets::from_families(missing(), Ok(v6)).unwrap();
        assert!(sockets.v4.is_none() && sockets.port() != 0);
        let error = UdpSockets::from_families(missing(), missing()).unwrap_err();
        assert!(matches!(error, UdpError::NoFamily(_)), "{error:?}");
    }

    #[test]
    fn only_a_missing_family_is_passed_over() {
        for (errno, passed_over) in [
            (libc::EAFNOSUPPORT, true),
            (libc::EADDRNOTAVAIL, true),
            (libc::EADDRINUSE, false),
            (libc::EACCES, false),
            (libc::EMFILE, false),
        ] {
            let result = if_available(Err(io::Error::from_raw_os_error(errno)));
            assert_eq!(matches!(result, Ok(Err(_))), passed_over, "{errno}");
        }
    }
}
