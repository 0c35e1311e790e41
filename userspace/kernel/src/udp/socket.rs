//! One UDP socket of one family, set up for a tunnel.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use super::UdpOptions;
use super::address::RawAddress;
use crate::sys::socket;

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6, and nothing but.
    V6,
}

/// asm-generic/socket.h.
const SO_MEMINFO: i32 = 55;

/// A non-blocking UDP socket bound to one port on all addresses of one family.
#[derive(Debug)]
pub struct UdpSocket {
    fd: OwnedFd,
    family: Family,
    port: u16,
    gro: bool,
    /// Whether fragments may be forbidden now and then, to find out the path MTU.
    probes: bool,
    /// Cleared for good when the kernel cannot segment on the way out.
    gso: AtomicBool,
    equal_tail: bool,
}

impl UdpSocket {
    /// Opens and binds; `port` 0 lets the kernel pick one. Nobody else has the port then.
    pub(super) fn bind(family: Family, port: u16, options: &UdpOptions) -> io::Result<Self> {
        Self::open(family, port, options, false)
    }

    /// Takes over a bound socket that another process had.
    pub(super) fn inherited(fd: OwnedFd, options: &UdpOptions) -> io::Result<Self> {
        let family = match socket::option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_DOMAIN)? {
            libc::AF_INET => Family::V4,
            libc::AF_INET6 => Family::V6,
            _ => return Err(crate::sys::invalid("not a socket of IPv4 or IPv6")),
        };
        Self::set_up(fd, family, 0, options, None)
    }

    /// Lets [`join`](Self::join) open further sockets on the same port. Only once it is bound: a
    /// socket that is willing to share from the start would share with any other process of the
    /// same user, and never learn that the port is in use.
    pub(super) fn share(&self) -> io::Result<()> {
        socket::set_option(self.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)
    }

    /// Opens another socket on the port of one that shares it. The kernel then gives each of them
    /// the datagrams of some senders, by a hash of addresses and ports.
    pub(super) fn join(&self, options: &UdpOptions) -> io::Result<Self> {
        Self::open(self.family, self.port, options, true)
    }

    fn open(family: Family, port: u16, options: &UdpOptions, join: bool) -> io::Result<Self> {
        let (domain, any) = match family {
            Family::V4 => (libc::AF_INET, IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
            Family::V6 => (libc::AF_INET6, IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        };
        let fd = socket::socket(domain, libc::SOCK_DGRAM, libc::IPPROTO_UDP)?;
        if join {
            socket::set_option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
        }
        Self::set_up(fd, family, port, options, Some(any))
    }

    /// Sets all options, and binds the socket to `address` unless it is bound.
    fn set_up(
        fd: OwnedFd,
        family: Family,
        port: u16,
        options: &UdpOptions,
        address: Option<IpAddr>,
    ) -> io::Result<Self> {
        let set = |level, name, value| socket::set_option(fd.as_fd(), level, name, value);
        match family {
            // Where they are refused, answers leave from the address that the kernel chooses, and no
            // congestion mark comes in.
            Family::V4 => {
                let _ = set(libc::IPPROTO_IP, libc::IP_PKTINFO, 1);
                let _ = set(libc::IPPROTO_IP, libc::IP_RECVTOS, 1);
            }
            Family::V6 => {
                if address.is_some() {
                    set(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
                }
                let _ = set(libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1);
                let _ = set(libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1);
            }
        }
        let probes = family == Family::V4 && allow_fragments(&fd, address.is_none());
        set_buffer(
            &fd,
            libc::SO_RCVBUFFORCE,
            libc::SO_RCVBUF,
            options.receive_buffer,
        );
        set_buffer(
            &fd,
            libc::SO_SNDBUFFORCE,
            libc::SO_SNDBUF,
            options.send_buffer,
        );
        if options.fwmark != 0 {
            set_mark(&fd, options.fwmark)?;
        }
        // The answer to the setting tells; reading the option back fails before Linux 5.12.
        let gro = set(libc::SOL_UDP, libc::UDP_GRO, options.gro.into()).is_ok() && options.gro;
        // Readable since it exists (Linux 4.18).
        let gso =
            options.gso && socket::option(fd.as_fd(), libc::SOL_UDP, libc::UDP_SEGMENT).is_ok();
        if let Some(any) = address {
            socket::bind(
                fd.as_fd(),
                RawAddress::new(&SocketAddr::new(any, port)).as_bytes(),
            )?;
        }
        let mut bound = RawAddress::EMPTY;
        let length = socket::local_address(fd.as_fd(), bound.room())?;
        bound.set_length(length);
        let port = bound
            .to_socket_address()
            .map_or(port, |address| address.port());
        Ok(Self {
            fd,
            family,
            port,
            gro,
            probes,
            gso: AtomicBool::new(gso),
            equal_tail: !corrupts_equal_tails(&kernel_release()),
        })
    }

    /// The family of its addresses.
    #[must_use]
    pub fn family(&self) -> Family {
        self.family
    }

    /// The local port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether the kernel may put received datagrams together (UDP GRO).
    #[must_use]
    pub fn gro(&self) -> bool {
        self.gro
    }

    /// Whether the kernel cuts up what is sent (UDP GSO): asked for, known, and not switched off
    /// by an `EIO` since.
    #[must_use]
    pub fn gso(&self) -> bool {
        self.gso.load(Ordering::Relaxed)
    }

    /// False on kernels that corrupt segmented messages whose last datagram is as long as the
    /// others (Linux 7.0 to 7.1.4, depending on the device): those are sent one by one.
    #[must_use]
    pub fn equal_tail(&self) -> bool {
        self.equal_tail
    }

    /// Gives up GSO for as long as the socket lives.
    pub fn disable_gso(&self) {
        self.gso.store(false, Ordering::Relaxed);
    }

    /// Whether [`forbid_fragments`](Self::forbid_fragments) has an effect.
    #[must_use]
    pub fn can_probe(&self) -> bool {
        self.probes
    }

    /// Has routers drop datagrams that are too large for them, and say so (true), or fragment them
    /// (false, as it is from the start). The kernel keeps what they say per destination, for ten
    /// minutes, and fragments by itself what is larger. Returns whether anything was changed: there
    /// is nothing to change for IPv6, whose routers never fragment, nor where path MTU discovery is
    /// switched off (`net.ipv4.ip_no_pmtu_disc`).
    pub fn forbid_fragments(&self, forbid: bool) -> bool {
        let mode = if forbid {
            libc::IP_PMTUDISC_WANT
        } else {
            libc::IP_PMTUDISC_DONT
        };
        self.probes && set_discovery(&self.fd, mode).is_ok()
    }

    /// Size of the receive buffer in bytes as the kernel counts, which is twice what was granted.
    ///
    /// # Errors
    /// As `getsockopt(2)`.
    pub fn receive_buffer(&self) -> io::Result<usize> {
        let size = socket::option(self.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF)?;
        Ok(usize::try_from(size).unwrap_or(0))
    }

    /// Datagrams that the kernel dropped for want of room in the receive buffer, since the socket was opened; modulo
    /// 2^32. Also those with a wrong checksum.
    ///
    /// # Errors
    /// `ENOPROTOOPT` before Linux 4.12.
    pub fn receive_drops(&self) -> io::Result<u32> {
        // SK_MEMINFO_DROPS of linux/sock_diag.h, the last of nine.
        let values: [u32; 9] = socket::option_words(self.as_fd(), libc::SOL_SOCKET, SO_MEMINFO)?;
        Ok(values[8])
    }

    /// Marks everything sent from now on (`SO_MARK`); 0 removes the mark.
    ///
    /// # Errors
    /// `EPERM` without `CAP_NET_ADMIN`.
    pub fn set_fwmark(&self, mark: u32) -> io::Result<()> {
        set_mark(&self.fd, mark)
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn set_mark(fd: &OwnedFd, mark: u32) -> io::Result<()> {
    socket::set_option(
        fd.as_fd(),
        libc::SOL_SOCKET,
        libc::SO_MARK,
        mark.cast_signed(),
    )
}

fn set_discovery(fd: &OwnedFd, mode: i32) -> io::Result<()> {
    socket::set_option(fd.as_fd(), libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, mode)
}

/// Leaves out "don't fragment" for IPv4, as the kernel's own WireGuard does (`df` is 0 in
/// drivers/net/wireguard/socket.c), so that a router which drops without a word does not make a
/// black hole. The kernel still goes by what it knows of the path. True if it would have looked for
/// that itself; of a socket that was set up before, that is not to be seen any more.
fn allow_fragments(fd: &OwnedFd, set_up_before: bool) -> bool {
    let mode = socket::option(fd.as_fd(), libc::IPPROTO_IP, libc::IP_MTU_DISCOVER);
    let wanted = set_up_before || mode.is_ok_and(|mode| mode == libc::IP_PMTUDISC_WANT);
    set_discovery(fd, libc::IP_PMTUDISC_DONT).is_ok() && wanted
}

/// A smaller buffer still works, so failing to enlarge it is not an error. Forcing passes the
/// sysctl limit, and needs `CAP_NET_ADMIN`.
fn set_buffer(fd: &OwnedFd, force: i32, plain: i32, size: usize) {
    let Ok(size @ 1..) = i32::try_from(size) else {
        return;
    };
    let _ = socket::set_option(fd.as_fd(), libc::SOL_SOCKET, force, size)
        .or_else(|_| socket::set_option(fd.as_fd(), libc::SOL_SOCKET, plain, size));
}

/// As `uname -r` prints it; empty without `/proc`.
fn kernel_release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default()
}

/// Linux b10b446 (7.0-rc1) broke them; 78effd8 and 5f17ae0 mended them, in 7.1.5 at the latest.
/// See tailscale/tailscale#19777 and #19918. It shows on some devices only, so there is no telling
/// by trying.
fn corrupts_equal_tails(release: &str) -> bool {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|part| part.parse().ok());
    let mut next = || numbers.next().flatten().unwrap_or(0_u32);
    let version = (next(), next(), next());
    ((7, 0, 0)..(7, 1, 5)).contains(&version)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Linux fragments for us unless the option is `DO` or `PROBE`.
    #[test]
    fn oversized_datagrams_may_be_fragmented() {
        let options = UdpOptions::default();
        let v4 = UdpSocket::bind(Family::V4, 0, &options).unwrap();
        let mode = || socket::option(v4.as_fd(), libc::IPPROTO_IP, libc::IP_MTU_DISCOVER).unwrap();
        assert_eq!(mode(), libc::IP_PMTUDISC_DONT);
        assert!(v4.forbid_fragments(true));
        assert_eq!(mode(), libc::IP_PMTUDISC_WANT);
        assert!(v4.forbid_fragments(false));
        assert_eq!(mode(), libc::IP_PMTUDISC_DONT);
        let v6 = UdpSocket::bind(Family::V6, 0, &options).unwrap();
        let mode = socket::option(v6.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER).unwrap();
        assert_eq!(mode, libc::IPV6_PMTUDISC_WANT);
        assert!(!v6.forbid_fragments(true));
    }

    #[test]
    fn kernels_that_corrupt_equal_tails_are_known() {
        for release in ["7.0.0", "7.0.2-6-pve", "7.0-rc3", "7.1.4", "7.1.0+"] {
            assert!(corrupts_equal_tails(release), "{release}");
        }
        for release in ["6.18.44-fc", "7.1.5", "7.2.0", "8.0.1", "70.0.1", ""] {
            assert!(!corrupts_equal_tails(release), "{release}");
        }
        assert!(!kernel_release().is_empty());
    }

    #[test]
    fn offloads_have_a_switch_each() {
        let on = UdpSocket::bind(Family::V4, 0, &UdpOptions::default()).unwrap();
        assert!(on.gso() && on.gro());
        on.disable_gso();
        assert!(!on.gso() && on.gro());
        let options = UdpOptions {
            gso: false,
            gro: false,
            ..UdpOptions::default()
        };
        let off = UdpSocket::bind(Family::V6, 0, &options).unwrap();
        assert!(!off.gso() && !off.gro());
    }

    #[test]
    fn buffers_are_enlarged() {
        let plain = UdpOptions {
            receive_buffer: 0,
            send_buffer: 0,
            ..UdpOptions::default()
        };
        let plain = UdpSocket::bind(Family::V4, 0, &plain).unwrap();
        let large = UdpSocket::bind(Family::V4, 0, &UdpOptions::default()).unwrap();
        assert!(large.receive_buffer().unwrap() >= plain.receive_buffer().unwrap());
    }
}
