//! Which XDP program is on an interface (`IFLA_XDP` of `RTM_GETLINK`, `linux/if_link.h`).

use std::fmt;
use std::io;
use std::os::fd::AsFd;

use super::sys::program_name;
use crate::sys::{self, socket};

/// An XDP program on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignProgram {
    /// The kernel's number of it, as `bpftool prog show id` takes it.
    pub id: u32,
    /// Its name, empty if it has none or we may not know it.
    pub name: String,
}

impl fmt::Display for ForeignProgram {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.name.is_empty() {
            write!(formatter, "program {}", self.id)
        } else {
            write!(formatter, "{} (program {})", self.name, self.id)
        }
    }
}

const MESSAGE_HEADER: usize = 16;
const LINK_HEADER: usize = 16;
const ATTRIBUTE_HEADER: usize = 4;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_PROG_ID: u16 = 4;
/// Attributes are flagged as nested or in network order in the upper bits.
const TYPE_MASK: u16 = 0x3fff;

/// The XDP program on an interface of the calling thread's namespace, whoever attached it; `None` if there is none.
///
/// # Errors
/// `ENODEV` if there is no such interface; otherwise when netlink cannot be used.
pub fn attached_program(ifindex: u32) -> io::Result<Option<ForeignProgram>> {
    let netlink = socket::socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE)?;
    socket::send(netlink.as_fd(), &request(ifindex))?;
    let mut answer = vec![0; 32 * 1024];
    // The kernel answers before `send` returns, so this cannot block.
    let length = sys::read(netlink.as_fd(), &mut answer)?;
    let id = program_of(&answer[..length])?;
    Ok(id.map(|id| ForeignProgram {
        id,
        name: program_name(id).unwrap_or_default(),
    }))
}

/// `RTM_GETLINK` for one interface: `nlmsghdr`, `ifinfomsg`.
fn request(ifindex: u32) -> [u8; MESSAGE_HEADER + LINK_HEADER] {
    let mut bytes = [0; MESSAGE_HEADER + LINK_HEADER];
    bytes[0] = 32;
    bytes[4..6].copy_from_slice(&libc::RTM_GETLINK.to_ne_bytes());
    // NLM_F_REQUEST.
    bytes[6] = 1;
    bytes[20..24].copy_from_slice(&ifindex.to_ne_bytes());
    bytes
}

/// The program's number in an answer.
fn program_of(answer: &[u8]) -> io::Result<Option<u32>> {
    let malformed = || io::Error::from(io::ErrorKind::InvalidData);
    let header = answer
        .first_chunk::<MESSAGE_HEADER>()
        .ok_or_else(malformed)?;
    let kind = u16::from_ne_bytes([header[4], header[5]]);
    let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
    let payload = answer.get(MESSAGE_HEADER..length).ok_or_else(malformed)?;
    if i32::from(kind) == libc::NLMSG_ERROR {
        let errno = payload.first_chunk().copied().map_or(0, i32::from_ne_bytes);
        return Err(io::Error::from_raw_os_error(errno.saturating_neg()));
    }
    if kind != libc::RTM_NEWLINK {
        return Err(malformed());
    }
    let attributes = payload.get(LINK_HEADER..).ok_or_else(malformed)?;
    let id = find(attributes, IFLA_XDP)
        .and_then(|xdp| find(xdp, IFLA_XDP_PROG_ID))
        .and_then(|value| value.first_chunk().copied())
        .map(u32::from_ne_bytes);
    Ok(id.filter(|id| *id != 0))
}

/// The first attribute of a type.
fn find(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let header = attributes.first_chunk::<ATTRIBUTE_HEADER>()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let value = attributes.get(ATTRIBUTE_HEADER..length)?;
        if u16::from_ne_bytes([header[2], header[3]]) & TYPE_MASK == wanted {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_interface_that_does_not_exist_is_an_error() {
        let error = attached_program(i32::MAX as u32).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
    }

    proptest! {
        #[test]
        fn garbage_does_not_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), length in 0_u32..220) {
            if let Some(start) = bytes.first_chunk_mut() {
                *start = length.to_ne_bytes();
            }
            let _ = program_of(&bytes);
            let _ = find(&bytes, IFLA_XDP);
        }
    }
}
