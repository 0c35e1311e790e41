//! One RX queue, as the data path uses it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};

use arrayvec::ArrayVec;

use super::frame;
use super::mapped::MappedRing;
use super::queue::{Packet, Queue};
use super::ring::{Consumer, Producer};
use super::socket::{Registration, XskError, XskSocket};
use super::umem::Umem;
use crate::sys::invalid;

/// Most packets [`Receiver::receive`] hands out at once.
pub const BATCH: usize = LIMIT as usize;
pub(super) const LIMIT: u32 = 256;

/// What a receiver is to be.
#[derive(Clone, Debug)]
pub struct ReceiverOptions {
    /// Index of the interface.
    pub ifindex: u32,
    /// RX queue of the interface.
    pub queue: u32,
    /// Frames of the UMEM that are this receiver's: a power of two of them, and no other receiver's.
    pub frames: Range<u32>,
    /// The XDP program runs in generic mode, where small GSO super-packets arrive as one datagram; look for them.
    pub generic: bool,
}

/// A received datagram. Its bytes lie in the UMEM and may be changed in place.
#[derive(Debug)]
pub struct Frame<'a> {
    /// Where it comes from.
    pub from: SocketAddr,
    /// The address of ours it was sent to.
    pub local: IpAddr,
    /// The interface it came in on.
    pub ifindex: u32,
    /// The two ECN bits of the outer header.
    pub ecn: u8,
    /// Bytes of each datagram but the last in `data`; the length of `data` unless several are glued together.
    pub segment_size: usize,
    /// The UDP payload.
    pub data: &'a mut [u8],
}

/// Counters of a receiver, from the kernel and our own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Packets taken.
    pub received: u64,
    /// Packets that were not a datagram although XDP had steered them.
    pub unreadable: u64,
    /// Descriptors that named a wrong frame; anything but 0 is a kernel bug.
    pub bad_descriptors: u64,
    /// Packets the kernel dropped because they did not fit a frame, or for want of memory.
    pub dropped: u64,
    /// Packets the kernel dropped because we did not keep up: the RX ring was full.
    pub ring_full: u64,
    /// Times the kernel found no empty frame.
    pub fill_empty: u64,
}

/// An AF_XDP socket on one RX queue, with frames of its own.
#[derive(Debug)]
pub struct Receiver {
    // Before the socket: unmapped first, though the order does not matter to the kernel.
    queue: Queue<MappedRing<u64>, MappedRing<libc::xdp_desc>>,
    socket: XskSocket,
    umem: Umem,
    options: ReceiverOptions,
    received: u64,
    unreadable: u64,
}

impl Receiver {
    /// Opens the first receiver of a UMEM, which registers the memory with the kernel.
    ///
    /// # Errors
    /// See [`XskError`].
    pub fn open(umem: &Umem, options: ReceiverOptions) -> Result<Self, XskError> {
        Self::with(umem, options, Registration::Own)
    }

    /// Opens a further receiver of the same UMEM, on another queue. Where the kernel cannot share the registration
    /// (before Linux 5.10, or the driver is of two minds about zero-copy), the memory is registered again.
    ///
    /// # Errors
    /// See [`XskError`].
    pub fn open_shared(&self, options: ReceiverOptions) -> Result<Self, XskError> {
        let first = Registration::Shared(self.socket.as_fd());
        Self::with(&self.umem, options.clone(), first).or_else(|error| match error {
            XskError::QueueBusy { .. } => Err(error),
            _ => Self::with(&self.umem, options, Registration::Own),
        })
    }

    fn with(
        umem: &Umem,
        options: ReceiverOptions,
        registration: Registration<'_>,
    ) -> Result<Self, XskError> {
        let count = options.frames.end.saturating_sub(options.frames.start);
        if !count.is_power_of_two() || options.frames.end > umem.frames() {
            return Err(XskError::Io {
                call: "choosing frames",
                source: invalid("a receiver needs a power of two of the UMEM's frames"),
            });
        }
        // Every frame fits the fill ring, so that giving one back never waits.
        let prepared = XskSocket::prepare(umem, registration, count, count)?;
        let mut queue = Queue::new(
            Producer::new(prepared.fill),
            Consumer::new(prepared.receive),
            umem.frame_size(),
            options.frames.clone(),
        );
        // A zero-copy driver takes its first frames while binding.
        queue.refill();
        prepared
            .socket
            .bind(options.ifindex, options.queue, registration)?;
        Ok(Self {
            queue,
            socket: prepared.socket,
            umem: umem.clone(),
            options,
            received: 0,
            unreadable: 0,
        })
    }

    /// Hands the packets that have arrived, at most [`BATCH`], to `work`, and gives their frames back to the kernel
    /// afterwards, also if `work` panics. `None` if there are none. Does not block; poll the descriptor for reading.
    pub fn receive<T>(&mut self, work: impl FnOnce(&mut [Frame<'_>]) -> T) -> Option<T> {
        let mut packets = ArrayVec::<Packet, BATCH>::new();
        let umem = &self.umem;
        // All of them at once: one after the other, each would be waited for.
        self.queue.take(LIMIT, |packet| {
            umem.prefetch_headers(packet.offset);
            packets.push(packet);
        });
        if packets.is_empty() {
            // Frames may be waiting for room in the fill ring.
            self.refill();
            return None;
        }
        self.received += packets.len() as u64;
        let batch = Batch {
            receiver: self,
            packets,
        };
        let mut frames = ArrayVec::<Frame<'_>, BATCH>::new();
        let mut unreadable = 0;
        for packet in &batch.packets {
            // SAFETY: `Queue` has checked that the packet lies within one frame of ours, and says of each frame only once
            // that it is ours until it is given back, which `batch` does after `frames` is gone. So nobody else, neither
            // the kernel nor another `Frame`, has these bytes.
            let bytes = unsafe {
                std::slice::from_raw_parts_mut(
                    batch.receiver.umem.at(packet.offset).as_ptr(),
                    packet.length,
                )
            };
            let Some(outer) = frame::parse(bytes, batch.receiver.options.ifindex) else {
                unreadable += 1;
                continue;
            };
            let data = &mut bytes[outer.payload];
            let segment_size = if batch.receiver.options.generic {
                frame::segment_size(data)
            } else {
                data.len()
            };
            frames.push(Frame {
                from: outer.from,
                local: outer.local,
                ifindex: batch.receiver.options.ifindex,
                ecn: outer.ecn,
                segment_size,
                data,
            });
        }
        let result = work(&mut frames);
        drop(frames);
        batch.receiver.unreadable += unreadable;
        Some(result)
    }

    fn refill(&mut self) {
        if self.queue.refill() {
            self.socket.wake();
        }
    }

    /// What a transmitter shares with it.
    pub(super) fn parts(&self) -> (&XskSocket, &Umem) {
        (&self.socket, &self.umem)
    }

    /// What it was opened with.
    #[must_use]
    pub fn options(&self) -> &ReceiverOptions {
        &self.options
    }

    /// Whether the driver writes packets straight into the UMEM.
    ///
    /// # Errors
    /// As `getsockopt(2)`.
    pub fn is_zero_copy(&self) -> io::Result<bool> {
        self.socket.is_zero_copy()
    }

    /// Counters since the socket was opened.
    ///
    /// # Errors
    /// As `getsockopt(2)`.
    pub fn statistics(&self) -> io::Result<Statistics> {
        let kernel = self.socket.statistics()?;
        Ok(Statistics {
            received: self.received,
            unreadable: self.unreadable,
            bad_descriptors: self.queue.bad_descriptors(),
            dropped: kernel.rx_dropped,
            ring_full: kernel.rx_ring_full,
            fill_empty: kernel.rx_fill_ring_empty_descs,
        })
    }
}

impl AsFd for Receiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Packets that are ours; dropping it gives them back.
struct Batch<'a> {
    receiver: &'a mut Receiver,
    packets: ArrayVec<Packet, BATCH>,
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        for packet in self.packets.drain(..) {
            self.receiver.queue.give_back(packet);
        }
        self.receiver.refill();
    }
}
