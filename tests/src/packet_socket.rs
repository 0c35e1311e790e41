//! Packets as they are on an interface: looking at them, and putting arbitrary bytes there.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, send,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

use crate::Namespace;

/// A packet socket bound to one interface. It sees and sends what follows the link header.
#[derive(Debug)]
pub struct PacketSocket {
    fd: OwnedFd,
}

impl PacketSocket {
    /// Opens a socket on an interface. It sees what passes from now on, in both directions.
    ///
    /// # Errors
    /// No such interface.
    pub fn open(namespace: &Namespace, interface: &str) -> Result<Self> {
        namespace.enter(|| {
            // The cooked type cuts the link header off on reception; the raw type lets a sender write any bytes, and
            // a TUN device has no link header anyway.
            let kind = if has_link_header(interface)? {
                SockType::Datagram
            } else {
                SockType::Raw
            };
            let fd = socket(
                AddressFamily::Packet,
                kind,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::EthAll,
            )?;
            let link = link_address(interface)?;
            bind(fd.as_raw_fd(), &link)?;
            setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::milliseconds(50))?;
            Ok(Self { fd })
        })?
    }

    /// Puts bytes on the interface as they are.
    ///
    /// # Errors
    /// The kernel does not take them, for example because there are more than the MTU.
    pub fn send(&self, packet: &[u8]) -> Result<()> {
        send(self.fd.as_raw_fd(), packet, MsgFlags::empty())?;
        Ok(())
    }

    /// Waits for a packet that `wanted` accepts and returns its value.
    ///
    /// # Errors
    /// None came within `limit`.
    pub fn find<T>(
        &self,
        what: &str,
        limit: Duration,
        mut wanted: impl FnMut(&[u8]) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + limit;
        let mut buffer = vec![0; 1 << 17];
        while Instant::now() < deadline {
            crate::command::fail_if_interrupted()?;
            if let Ok(length) = recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty())
                && let Some(value) = wanted(&buffer[..length])
            {
                return Ok(value);
            }
        }
        bail!("not seen within {limit:?}: {what}")
    }
}

/// Ethernet interfaces have a link address of six bytes; a TUN device has none.
fn has_link_header(interface: &str) -> Result<bool> {
    Ok(link_address(interface)?.halen() == 6)
}

fn link_address(interface: &str) -> Result<LinkAddr> {
    getifaddrs()?
        .filter(|entry| entry.interface_name == interface)
        .find_map(|entry| entry.address?.as_link_addr().copied())
        .with_context(|| format!("{interface} has no link address"))
}

/// IP version and ECN field of a packet: the low two bits of the TOS byte or traffic class.
#[must_use]
pub fn ecn(packet: &[u8]) -> Option<u8> {
    match packet.first()? >> 4 {
        4 => Some(packet.get(1)? & 3),
        6 => Some((packet.get(1)? >> 4) & 3),
        _ => None,
    }
}

/// Payload of a UDP datagram in an unfragmented IPv4 or IPv6 packet without options, with source and destination port.
#[must_use]
pub fn udp_payload(packet: &[u8]) -> Option<(u16, u16, &[u8])> {
    let udp = match packet.first()? >> 4 {
        4 if packet.get(9)? == &17 => packet.get(20..)?,
        6 if packet.get(6)? == &17 => packet.get(40..)?,
        _ => return None,
    };
    let port = |at: usize| Some(u16::from_be_bytes([*udp.get(at)?, *udp.get(at + 1)?]));
    Some((port(0)?, port(2)?, udp.get(8..)?))
}
