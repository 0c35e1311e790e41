//! Packets as they are on an interface: looking at them, and putting arbitrary bytes there.

use std::cell::Cell;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, recvfrom, sendto,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

use crate::Namespace;

/// A packet socket that looks at one interface. It sees and sends what follows the link header.
#[derive(Debug)]
pub struct PacketSocket {
    fd: OwnedFd,
    index: usize,
    /// Address of the interface, learnt from the first packet seen there.
    link: Cell<Option<LinkAddr>>,
}

impl PacketSocket {
    /// Opens a socket on an interface. It sees what passes from now on, in both directions.
    ///
    /// # Errors
    /// No such interface.
    pub fn open(namespace: &Namespace, interface: &str) -> Result<Self> {
        namespace.enter(|| {
            let kind = SockType::Datagram;
            let fd = socket(
                AddressFamily::Packet,
                kind,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::EthAll,
            )?;
            setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::milliseconds(50))?;
            let index = if_nametoindex(interface).with_context(|| interface.to_owned())?;
            Ok(Self {
                fd,
                index: usize::try_from(index)?,
                link: Cell::new(None),
            })
        })?
    }

    /// Puts bytes on the interface as they are. A packet must have been seen there before ([`PacketSocket::find`]).
    ///
    /// # Errors
    /// The kernel does not take them, for example because there are more than the MTU.
    pub fn send(&self, packet: &[u8]) -> Result<()> {
        let link = self
            .link
            .get()
            .context("no packet was seen on the interface yet")?;
        sendto(self.fd.as_raw_fd(), packet, &link, MsgFlags::empty())?;
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
            let Ok((length, Some(link))) = recvfrom::<LinkAddr>(self.fd.as_raw_fd(), &mut buffer)
            else {
                continue;
            };
            if link.ifindex() != self.index {
                continue;
            }
            self.link.set(Some(link));
            if let Some(value) = wanted(&buffer[..length]) {
                return Ok(value);
            }
        }
        bail!("not seen within {limit:?}: {what}")
    }
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
