//! A flood of junk for a UDP port from forged sources, as fast as one thread can put it on the wire.

use std::net::SocketAddrV4;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, sendto, socket};

use crate::Namespace;
use crate::command::fail_if_interrupted;

/// Forged senders, in the block that RFC 2544 sets aside for tests of this kind.
pub const SOURCES: u16 = 1000;

/// What the frames of a flood hold. [`Junk::ALL`] has every kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Junk {
    /// No message of WireGuard.
    Random,
    /// A data message for an index that is not live.
    DeadIndex,
    /// A data message that is a byte too short.
    Short,
    /// A data message whose reserved bytes are not zero.
    Reserved,
    /// An initiation of the right length, whose MAC is wrong: nothing less than computing that tells.
    Initiation,
}

impl Junk {
    /// Every kind, in the order that [`Flood`] sends them.
    pub const ALL: [Self; 5] = [
        Self::Random,
        Self::DeadIndex,
        Self::Short,
        Self::Reserved,
        Self::Initiation,
    ];

    /// The UDP payload.
    #[must_use]
    pub fn payload(self) -> Vec<u8> {
        let (head, length): (&[u8], usize) = match self {
            Self::Random => (&[0x5a, 0x17], 333),
            // Live once in four thousand million times.
            Self::DeadIndex => (&[4, 0, 0, 0, 0xde, 0xad, 0xbe, 0xef], 160),
            Self::Short => (&[4, 0, 0, 0], 31),
            Self::Reserved => (&[4, 0, 1, 0], 160),
            Self::Initiation => (&[1, 0, 0, 0], 148),
        };
        let mut bytes: Vec<u8> = (0..=255).cycle().take(length).collect();
        bytes[..head.len()].copy_from_slice(head);
        bytes
    }
}

/// Frames ready to be sent: each kind of junk from each source.
#[derive(Debug)]
pub struct Flood {
    socket: OwnedFd,
    to: LinkAddr,
    frames: Vec<Vec<u8>>,
}

impl Flood {
    /// Prepares a flood that leaves `from` by `device`, for an address and port of the interface of the same name in
    /// `at`, which is the other end of the wire.
    ///
    /// # Errors
    /// No such interface, or it has no link address.
    pub fn new(
        from: &Namespace,
        at: &Namespace,
        device: &str,
        target: SocketAddrV4,
    ) -> Result<Self> {
        Self::of(&Junk::ALL.map(Junk::payload), from, at, device, target)
    }

    /// As [`Flood::new`], of these payloads: each source sends each of them in a round.
    ///
    /// # Errors
    /// As [`Flood::new`].
    pub fn of(
        payloads: &[Vec<u8>],
        from: &Namespace,
        at: &Namespace,
        device: &str,
        target: SocketAddrV4,
    ) -> Result<Self> {
        let to = link_address(from, device)?;
        let mac = |address: LinkAddr| address.addr().context("no link address");
        let (source, destination) = (mac(to)?, mac(link_address(at, device)?)?);
        let socket = from.enter(|| {
            // No protocol: it sends only, and receives nothing.
            socket(
                AddressFamily::Packet,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                None,
            )
        })??;
        let frames = (0..SOURCES).flat_map(|number| {
            payloads.iter().map(move |payload| {
                let mut frame = [destination, source].concat();
                frame.extend([8, 0]);
                frame.extend(datagram(number, target, payload));
                frame
            })
        });
        Ok(Self {
            socket,
            to,
            frames: frames.collect(),
        })
    }

    /// Sends until `running` is false, or each kind was sent from each source `rounds` times; returns the rounds that
    /// were completed. The wire may lose frames: it counts them as dropped on the way out.
    ///
    /// # Errors
    /// The device is gone, or the process was told to stop.
    pub fn run(&self, running: &AtomicBool, rounds: u64) -> Result<u64> {
        let mut done = 0;
        // A round is completed even when it is to be the last: the number of frames stays known.
        while done < rounds && running.load(Ordering::Relaxed) {
            fail_if_interrupted()?;
            for frame in &self.frames {
                self.send(frame)?;
            }
            done += 1;
        }
        Ok(done)
    }

    fn send(&self, frame: &[u8]) -> Result<()> {
        loop {
            match sendto(self.socket.as_raw_fd(), frame, &self.to, MsgFlags::empty()) {
                Ok(_) => return Ok(()),
                // The queue is full.
                Err(Errno::ENOBUFS | Errno::EAGAIN | Errno::EINTR) => {}
                Err(error) => return Err(error).context("sending a frame"),
            }
        }
    }
}

/// Link address of an interface, with its index.
fn link_address(namespace: &Namespace, device: &str) -> Result<LinkAddr> {
    let found = namespace.enter(|| {
        let mut addresses = getifaddrs()?.filter(|entry| entry.interface_name == device);
        Ok::<_, Errno>(addresses.find_map(|entry| entry.address?.as_link_addr().copied()))
    })??;
    found.with_context(|| format!("{device} has no link address"))
}

/// An IPv4 packet with a UDP datagram from forged source `number`.
fn datagram(number: u16, target: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let [high, low] = number.to_be_bytes();
    let length = |more: usize| {
        let length = payload.len() + more;
        [length >> 8 & 0xff, length & 0xff].map(|byte| u8::try_from(byte).unwrap_or(0))
    };
    let mut packet = vec![0x45, 0];
    packet.extend(length(28));
    packet.extend([0, 0, 0, 0, 64, 17, 0, 0, 198, 18, high, low]);
    packet.extend(target.ip().octets());
    let sum = packet.chunks_exact(2).fold(0_u32, |sum, word| {
        sum + u32::from(u16::from_be_bytes([word[0], word[1]]))
    });
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or(0);
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet.extend((1024 + number).to_be_bytes());
    packet.extend(target.port().to_be_bytes());
    packet.extend(length(8));
    // Over IPv4 a UDP checksum of zero means that there is none.
    packet.extend([0, 0]);
    packet.extend(payload);
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_is_what_it_says() {
        let target = "192.0.2.2:51820".parse().unwrap();
        let packet = datagram(999, target, &Junk::Short.payload());
        assert_eq!(packet.len(), 20 + 8 + 31);
        let sum: u32 = packet[..20]
            .chunks_exact(2)
            .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
            .sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
        let (from, to, payload) = crate::packet_socket::udp_payload(&packet).unwrap();
        assert_eq!((from, to, payload.len()), (2023, 51820, 31));
        assert_eq!(packet[12..16], [198, 18, 3, 231]);
    }
}
