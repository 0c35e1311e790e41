//! What a network card says about itself: driver, queues, offloads, hash, XDP. Asking disturbs no traffic.
//!
//! `SIOCETHTOOL` (`linux/ethtool.h`) and the generic netlink family `netdev` (`linux/netdev.h`, Linux 6.3). Interfaces are those
//! of the calling thread's network namespace.

use std::ffi::{c_char, c_int};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use crate::sys::ioctl::{InterfaceIoctl, InterfaceRequest};
use crate::sys::{self, check, invalid, socket};

/// `ETHTOOL_GDRVINFO` and its like.
const GET_DRIVER: u32 = 0x03;
const GET_FLAGS: u32 = 0x25;
const GET_HASH: u32 = 0x29;
const GET_GRO: u32 = 0x2b;
const GET_CHANNELS: u32 = 0x3c;
/// `ETH_FLAG_LRO`.
const FLAG_LRO: u32 = 1 << 15;
/// `RXH_L4_B_0_1 | RXH_L4_B_2_3`: the two ports.
const HASH_PORTS: u64 = 1 << 6 | 1 << 7;

/// Room for any answer to the commands above, in words; the longest (`ETHTOOL_GRXFH`, old and new form) has 192 bytes.
const WORDS: usize = 64;

/// The argument of a command: its number, then what it asks or answers.
#[repr(C, align(8))]
struct Argument([u32; WORDS]);

impl Argument {
    fn text(&self, word: usize, length: usize) -> String {
        let bytes: Vec<u8> = self.0[word..]
            .iter()
            .flat_map(|value| value.to_ne_bytes())
            .take(length)
            .take_while(|byte| *byte != 0)
            .collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// `struct ifreq` with a pointer in it, as `SIOCETHTOOL` takes it.
#[repr(C)]
struct PointerRequest {
    name: [c_char; libc::IFNAMSIZ],
    data: *mut Argument,
    rest: [u64; 2],
}

const _: () = assert!(size_of::<PointerRequest>() >= size_of::<libc::ifreq>());

/// Runs one command of those above, whose only side effect is the answer.
fn ask(interface: &str, command: u32, first: u32) -> io::Result<Argument> {
    // The request checks the length of the name.
    InterfaceRequest::new(interface)?;
    let mut argument = Argument([0; WORDS]);
    argument.0[0] = command;
    argument.0[1] = first;
    let mut request = PointerRequest {
        name: [0; libc::IFNAMSIZ],
        data: &raw mut argument,
        rest: [0; 2],
    };
    for (to, from) in request.name.iter_mut().zip(interface.bytes()) {
        *to = c_char::from_ne_bytes([from]);
    }
    let socket = any_socket()?;
    // SAFETY: the request has at least the size and the layout of `struct ifreq`; its pointer leads to `argument`, which outlives
    // the call and has room for the answer to every command this module knows.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) })?;
    Ok(argument)
}

fn any_socket() -> io::Result<OwnedFd> {
    socket::socket(libc::AF_INET, libc::SOCK_DGRAM, 0)
        .or_else(|_| socket::socket(libc::AF_INET6, libc::SOCK_DGRAM, 0))
}

/// Name of the driver (`veth`, `virtio_net`, `ixgbe`).
///
/// # Errors
/// `ENODEV` without such an interface; `EOPNOTSUPP` if the driver does not say.
pub fn driver(interface: &str) -> io::Result<String> {
    // struct ethtool_drvinfo: command, driver (32 bytes), ...
    ask(interface, GET_DRIVER, 0).map(|answer| answer.text(1, 32))
}

/// RX queues in use: those of their own and those combined with TX queues.
///
/// # Errors
/// As [`driver`].
pub fn receive_queues(interface: &str) -> io::Result<u32> {
    // struct ethtool_channels: command, four maxima, then the counts of RX, TX, other, combined.
    ask(interface, GET_CHANNELS, 0).map(|answer| answer.0[5].saturating_add(answer.0[8]))
}

/// Whether the kernel puts received packets together (`ethtool -k`: generic-receive-offload).
///
/// # Errors
/// As [`driver`].
pub fn generic_receive_offload(interface: &str) -> io::Result<bool> {
    ask(interface, GET_GRO, 0).map(|answer| answer.0[1] != 0)
}

/// Whether the card puts received packets together (`ethtool -k`: large-receive-offload), under which most drivers refuse XDP.
///
/// # Errors
/// As [`driver`].
pub fn large_receive_offload(interface: &str) -> io::Result<bool> {
    ask(interface, GET_FLAGS, 0).map(|answer| answer.0[1] & FLAG_LRO != 0)
}

/// Packets whose spreading over the RX queues can be asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashedFlow {
    /// UDP over IPv4 (`UDP_V4_FLOW`).
    Udp4,
    /// UDP over IPv6 (`UDP_V6_FLOW`).
    Udp6,
}

/// Whether the ports take part when the card picks an RX queue. If not, everything between two hosts is on one queue.
///
/// # Errors
/// As [`driver`]; many drivers do not say.
pub fn hashes_ports(interface: &str, flow: HashedFlow) -> io::Result<bool> {
    let flow = match flow {
        HashedFlow::Udp4 => 0x02,
        HashedFlow::Udp6 => 0x06,
    };
    let answer = ask(interface, GET_HASH, flow)?;
    // struct ethtool_rxnfc: command, flow type, then the fields as 64 bits.
    let (low, high) = (answer.0[2].to_ne_bytes(), answer.0[3].to_ne_bytes());
    let [a, b, c, d] = low;
    let [e, f, g, h] = high;
    let fields = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
    Ok(fields & HASH_PORTS == HASH_PORTS)
}

/// Sets an interface up; it has to be the caller's own.
///
/// # Errors
/// `ENODEV` without such an interface; `EPERM` without `CAP_NET_ADMIN`.
pub fn set_up(interface: &str) -> io::Result<()> {
    let socket = any_socket()?;
    let mut request = InterfaceRequest::new(interface)?;
    InterfaceIoctl::GET_FLAGS.call(socket.as_fd(), &mut request)?;
    request.set_flags(request.flags() | sys::narrow(libc::IFF_UP));
    InterfaceIoctl::SET_FLAGS.call(socket.as_fd(), &mut request)
}

/// What the driver of an interface can do for XDP programs (`enum netdev_xdp_act`, `linux/netdev.h`). With other settings it may
/// be able to do more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpFeatures {
    /// Runs programs in the driver.
    pub native: bool,
    /// Redirects packets, without which there is no AF_XDP.
    pub redirect: bool,
    /// Receives straight into the memory of AF_XDP sockets.
    pub zero_copy: bool,
}

impl XdpFeatures {
    const fn from_flags(flags: u64) -> Self {
        Self {
            native: flags & 1 != 0,
            redirect: flags & 1 << 1 != 0,
            zero_copy: flags & 1 << 3 != 0,
        }
    }
}

const MESSAGE_HEADER: usize = 16;
const GENERIC_HEADER: usize = 4;
const ATTRIBUTE_HEADER: usize = 4;
/// `GENL_ID_CTRL`, `CTRL_CMD_GETFAMILY`, `CTRL_ATTR_…` (`linux/genetlink.h`).
const CONTROLLER: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
/// `NETDEV_CMD_DEV_GET`, `NETDEV_A_DEV_…`.
const GET_DEVICE: u8 = 1;
const DEVICE_IFINDEX: u16 = 1;
const DEVICE_XDP_FEATURES: u16 = 3;

/// What the driver says it can do for XDP.
///
/// # Errors
/// `ENOENT` before Linux 6.3, which does not tell; `ENODEV` without such an interface.
pub fn xdp_features(ifindex: u32) -> io::Result<XdpFeatures> {
    let netlink = socket::socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_GENERIC)?;
    let family = query(
        &netlink,
        &message(CONTROLLER, GET_FAMILY, FAMILY_NAME, b"netdev\0"),
        FAMILY_ID,
    )?;
    let family = family.first_chunk().copied().ok_or_else(malformed)?;
    let features = query(
        &netlink,
        &message(
            u16::from_ne_bytes(family),
            GET_DEVICE,
            DEVICE_IFINDEX,
            &ifindex.to_ne_bytes(),
        ),
        DEVICE_XDP_FEATURES,
    )?;
    let features = features.first_chunk().copied().ok_or_else(malformed)?;
    Ok(XdpFeatures::from_flags(u64::from_ne_bytes(features)))
}

fn malformed() -> io::Error {
    io::ErrorKind::InvalidData.into()
}

/// `nlmsghdr`, `genlmsghdr`, one attribute.
fn message(family: u16, command: u8, attribute: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(ATTRIBUTE_HEADER + value.len()).unwrap_or(u16::MAX);
    let mut bytes = vec![0; MESSAGE_HEADER];
    bytes.extend_from_slice(&[command, 1, 0, 0]);
    bytes.extend_from_slice(&length.to_ne_bytes());
    bytes.extend_from_slice(&attribute.to_ne_bytes());
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    let total = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    bytes[..4].copy_from_slice(&total.to_ne_bytes());
    bytes[4..6].copy_from_slice(&family.to_ne_bytes());
    // NLM_F_REQUEST.
    bytes[6] = 1;
    bytes
}

/// Sends a request and returns one attribute of the answer.
fn query(netlink: &OwnedFd, request: &[u8], wanted: u16) -> io::Result<Vec<u8>> {
    socket::send(netlink.as_fd(), request)?;
    let mut answer = vec![0; 32 * 1024];
    // The kernel answers before `send` returns, so the non-blocking socket has it.
    let length = sys::read(netlink.as_fd(), &mut answer)?;
    attribute_of(&answer[..length], wanted)
}

fn attribute_of(answer: &[u8], wanted: u16) -> io::Result<Vec<u8>> {
    let header = answer
        .first_chunk::<MESSAGE_HEADER>()
        .ok_or_else(malformed)?;
    let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
    let kind = u16::from_ne_bytes([header[4], header[5]]);
    let payload = answer.get(MESSAGE_HEADER..length).ok_or_else(malformed)?;
    if c_int::from(kind) == libc::NLMSG_ERROR {
        let errno = payload.first_chunk().copied().map_or(0, i32::from_ne_bytes);
        return Err(io::Error::from_raw_os_error(errno.saturating_neg()));
    }
    let mut attributes = payload.get(GENERIC_HEADER..).ok_or_else(malformed)?;
    while let Some(header) = attributes.first_chunk::<ATTRIBUTE_HEADER>() {
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let value = attributes
            .get(ATTRIBUTE_HEADER..length)
            .ok_or_else(malformed)?;
        if u16::from_ne_bytes([header[2], header[3]]) == wanted {
            return Ok(value.to_vec());
        }
        attributes = attributes
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
    }
    Err(invalid("the kernel does not say"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn loopback_answers_what_it_can() {
        assert!(!large_receive_offload("lo").unwrap());
        assert!(generic_receive_offload("lo").is_ok());
        assert!(hashes_ports("lo", HashedFlow::Udp4).is_err());
    }

    #[test]
    fn interfaces_that_do_not_exist_are_errors() {
        for name in ["no-such-device", "", "a name longer than the kernel takes"] {
            assert!(driver(name).is_err(), "{name}");
            assert!(receive_queues(name).is_err(), "{name}");
            assert!(set_up(name).is_err(), "{name}");
        }
        assert!(xdp_features(i32::MAX as u32).is_err());
    }

    #[test]
    fn loopback_has_no_native_xdp() {
        // Where the kernel does not tell, there is nothing to test.
        if let Ok(features) = xdp_features(1) {
            assert_eq!(features, XdpFeatures::from_flags(0));
        }
    }

    #[test]
    fn features_are_told_apart() {
        let all = XdpFeatures::from_flags(0b1011);
        assert!(all.native && all.redirect && all.zero_copy);
        let some = XdpFeatures::from_flags(0b0011);
        assert!(some.native && some.redirect && !some.zero_copy);
    }

    #[test]
    fn text_ends_at_the_first_zero_and_at_its_length() {
        let mut argument = Argument([0; WORDS]);
        argument.0[1] = u32::from_ne_bytes(*b"veth");
        assert_eq!(argument.text(1, 32), "veth");
        assert_eq!(argument.text(1, 2), "ve");
    }

    proptest! {
        #[test]
        fn garbage_does_not_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), length in 0_u32..220) {
            if let Some(start) = bytes.first_chunk_mut() {
                *start = length.to_ne_bytes();
            }
            let _ = attribute_of(&bytes, DEVICE_XDP_FEATURES);
        }
    }
}
