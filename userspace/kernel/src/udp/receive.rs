//! Receiving many datagrams with one call.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;

use super::address::RawAddress;
use super::cmsg::{Control, ControlBuffer};
use super::socket::UdpSocket;
use crate::sys::{self, socket as calls};

/// Bytes per message: more than any datagram, or what GRO puts together, can have.
pub const SLOT_SIZE: usize = 1 << 16;

/// How often an error left on the socket by an earlier send is read past.
const PENDING_ERRORS: usize = 2;

/// Messages asked for when the last call brought few: one more than it takes to see that there are
/// more.
const FEWEST: usize = 2;

/// Buffers for a batch, made once. Pages of the 64 KiB buffers that no datagram has touched take
/// no memory.
pub struct RecvBatch {
    data: Vec<u8>,
    addresses: Box<[RawAddress]>,
    controls: Box<[ControlBuffer]>,
    vectors: Box<[libc::iovec]>,
    headers: Box<[libc::mmsghdr]>,
    /// Messages to ask for: preparing room for many costs time when few come.
    asked: usize,
    received: usize,
    drained: bool,
}

// SAFETY: the raw pointers in `vectors` and `headers` point into the other fields, which move
// with the value as heap allocations; they are written anew before each use.
unsafe impl Send for RecvBatch {}

/// One message: a datagram, or several of the same length (the last may be shorter) that GRO has
/// put together, with the same addresses and the same ECN field.
#[derive(Debug)]
pub struct Received<'a> {
    /// Who sent it. Never a v4-mapped IPv6 address.
    pub from: SocketAddr,
    /// The address it was sent to and the index of the interface it came in by.
    pub local: Option<(IpAddr, u32)>,
    /// ECN field of the outer header: the low two bits of TOS or traffic class.
    pub ecn: u8,
    /// Length of each datagram but the last, in bytes. Zero only if there is no data.
    pub segment_size: usize,
    /// What it carried.
    pub data: &'a mut [u8],
    /// The datagram was longer than the buffer, and `data` is only its beginning.
    pub truncated: bool,
}

impl RecvBatch {
    /// Room for `slots` messages per call, at least one.
    #[must_use]
    pub fn new(slots: usize) -> Self {
        Self::with_slot_size(slots, SLOT_SIZE)
    }

    fn with_slot_size(slots: usize, size: usize) -> Self {
        let slots = slots.max(1);
        let vector = libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: size,
        };
        let header = libc::mmsghdr {
            msg_hdr: calls::empty_header(),
            msg_len: 0,
        };
        Self {
            // Zeroed by the allocator, that is, fresh pages of the kernel.
            data: vec![0; slots * size],
            addresses: vec![RawAddress::EMPTY; slots].into(),
            controls: vec![ControlBuffer::EMPTY; slots].into(),
            vectors: vec![vector; slots].into(),
            headers: vec![header; slots].into(),
            asked: slots.min(FEWEST),
            received: 0,
            drained: false,
        }
    }

    /// Receives what is there, without waiting, over what was received before. Returns the number
    /// of messages, at least one. Asks for twice as many as came the last time, so that a busy
    /// socket fills the whole batch and a quiet one costs little.
    ///
    /// # Errors
    /// `WouldBlock` when there is nothing; otherwise as `recvmmsg(2)`. After any error there are
    /// no messages.
    pub fn recv(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        self.recv_at_most(socket, usize::MAX)
    }

    /// As [`recv`](Self::recv), but no more than `limit` messages (at least one), for a batch that
    /// is to be small.
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    pub fn recv_at_most(&mut self, socket: &UdpSocket, limit: usize) -> io::Result<usize> {
        self.asked = self.asked.min(limit).max(1);
        self.received = 0;
        let mut errors = 0;
        let count = loop {
            self.reset();
            let headers = &mut self.headers[..self.asked];
            // SAFETY: `reset` has just pointed each of these headers at an address, a vector, a
            // buffer and a control buffer of its own inside `self`, with their true lengths.
            match unsafe { calls::receive_many(socket.as_fd(), headers) } {
                Ok(count) => break count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
                Err(error) if errors == PENDING_ERRORS => return Err(error),
                Err(_) => errors += 1,
            }
        };
        self.received = count.min(self.asked);
        self.drained = count < self.asked;
        self.asked = (2 * self.received).clamp(FEWEST.min(self.headers.len()), self.headers.len());
        Ok(self.received)
    }

    /// Whether the last [`recv`](Self::recv) left nothing behind.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.drained
    }

    /// Bytes in the messages of the last [`recv`](Self::recv).
    #[must_use]
    pub fn bytes(&self) -> usize {
        let received = self.headers[..self.received].iter();
        received.map(|header| header.msg_len as usize).sum()
    }

    /// The messages of the last [`recv`](Self::recv), all usable at the same time.
    pub fn messages(&mut self) -> impl Iterator<Item = Received<'_>> {
        let size = self.data.len() / self.headers.len();
        let slots = self.data.chunks_exact_mut(size);
        let names = self.addresses.iter_mut().zip(&mut self.controls);
        let filled = self.headers[..self.received].iter().zip(names.zip(slots));
        filled.filter_map(move |(header, ((address, control), data))| {
            address.set_length(header.msg_hdr.msg_namelen as usize);
            control.set_length(header.msg_hdr.msg_controllen);
            let data = &mut data[..(header.msg_len as usize).min(size)];
            let known = Control::read(control.as_bytes());
            Some(Received {
                // A UDP socket gives no other families, so nothing is ever left out here.
                from: address.to_socket_address()?,
                local: known.local,
                ecn: known.ecn,
                segment_size: match known.segment_size {
                    Some(size) if size > 0 && size < data.len() => size,
                    _ => data.len(),
                },
                data,
                truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
            })
        })
    }

    /// Points each header that is asked for at its buffers. The kernel overwrites lengths and flags
    /// with what it used, so all of them are set before each call.
    fn reset(&mut self) {
        let size = self.data.len() / self.headers.len();
        let slots = self.data.chunks_exact_mut(size);
        let names = self.addresses.iter_mut().zip(&mut self.controls);
        let buffers = self.vectors.iter_mut().zip(slots);
        for (header, ((address, control), (vector, data))) in self.headers[..self.asked]
            .iter_mut()
            .zip(names.zip(buffers))
        {
            vector.iov_base = data.as_mut_ptr().cast();
            vector.iov_len = data.len();
            let room = address.room();
            header.msg_hdr.msg_namelen = sys::length(room.len());
            header.msg_hdr.msg_name = room.as_mut_ptr().cast();
            header.msg_hdr.msg_iov = std::ptr::from_mut(vector);
            header.msg_hdr.msg_iovlen = 1;
            let room = control.room();
            header.msg_hdr.msg_controllen = room.len();
            header.msg_hdr.msg_control = room.as_mut_ptr().cast();
            header.msg_hdr.msg_flags = 0;
            header.msg_len = 0;
        }
    }
}

impl fmt::Debug for RecvBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecvBatch")
            .field("slots", &self.headers.len())
            .field("received", &self.received)
            .finish_non_exhaustive()
    }
}
