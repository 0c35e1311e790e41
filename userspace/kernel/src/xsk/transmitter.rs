//! One TX queue, as the data path uses it.

use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};

use super::mapped::MappedRing;
use super::outgoing::Outgoing;
use super::receiver::Receiver;
use super::ring::{Consumer, Producer};
use super::socket::{COMPLETION_ENTRIES, Transmitting, XskError, XskSocket};
use super::umem::Umem;
use crate::poll::{PollFd, poll};
use crate::sys::invalid;

/// Most frames a [`Transmitter`] may have: a millisecond of 10 Gbit/s.
pub const TRANSMIT_FRAMES: u32 = COMPLETION_ENTRIES;

/// Calls without progress after which [`Transmitter::submit`] leaves the rest for later.
const FRUITLESS_KICKS: u32 = 2;

/// Counters of a transmitter, from the kernel and our own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransmitStatistics {
    /// Packets given to the kernel.
    pub sent: u64,
    /// System calls made for them.
    pub kicks: u64,
    /// Packets that the device refused (`EBUSY`); in copy mode only.
    pub dropped: u64,
    /// Completions that named a wrong frame; anything but 0 is a kernel bug.
    pub bad_completions: u64,
    /// Descriptors the kernel refused; anything but 0 is a bug of ours.
    pub invalid: u64,
}

/// An AF_XDP socket that sends on one TX queue, with frames of its own.
#[derive(Debug)]
pub struct Transmitter {
    outgoing: Outgoing<MappedRing<libc::xdp_desc>, MappedRing<u64>>,
    socket: XskSocket,
    umem: Umem,
    ifindex: u32,
    zero_copy: bool,
    written: u64,
    statistics: TransmitStatistics,
}

impl Transmitter {
    /// Opens the transmitter beside `receiver`, on the same queue, with `frames` of the same UMEM: a power of two of them, no
    /// more than [`TRANSMIT_FRAMES`], and nobody else's. There can be one beside a receiver that registered the UMEM or has
    /// a queue of its own.
    ///
    /// The queue stays in use until both are dropped.
    ///
    /// # Errors
    /// See [`XskError`].
    pub fn open(receiver: &Receiver, frames: Range<u32>) -> Result<Self, XskError> {
        let (socket, umem) = receiver.parts();
        let options = receiver.options();
        let count = frames.end.saturating_sub(frames.start);
        let apart = frames.start >= options.frames.end || frames.end <= options.frames.start;
        if !count.is_power_of_two()
            || count > TRANSMIT_FRAMES
            || frames.end > umem.frames()
            || !apart
        {
            return Err(XskError::Io {
                call: "choosing frames",
                source: invalid("a transmitter needs a power of two of the UMEM's free frames"),
            });
        }
        let Transmitting {
            socket,
            transmit,
            completion,
        } = XskSocket::transmitting(socket, options.ifindex, options.queue, count)?;
        let zero_copy = socket.is_zero_copy().unwrap_or(false);
        Ok(Self {
            outgoing: Outgoing::new(
                Producer::new(transmit),
                Consumer::new(completion),
                umem.frame_size(),
                frames,
            ),
            socket,
            umem: umem.clone(),
            ifindex: options.ifindex,
            zero_copy,
            written: 0,
            statistics: TransmitStatistics::default(),
        })
    }

    /// Index of the interface.
    #[must_use]
    pub fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// Whether the driver reads packets straight from the UMEM; else the kernel copies each.
    #[must_use]
    pub fn is_zero_copy(&self) -> bool {
        self.zero_copy
    }

    /// Bytes of the longest packet that fits, Ethernet header included.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.umem.frame_size().bytes() as usize
    }

    /// Frames to be had without waiting, `wanted` at least if there are as many.
    pub fn room(&mut self, wanted: usize) -> usize {
        if self.outgoing.room() < wanted {
            self.outgoing.reclaim();
        }
        self.outgoing.room()
    }

    /// Has `write` fill `length` bytes of a frame, a whole Ethernet packet without its checksum at the end. False if there
    /// is no frame or it is too small. The kernel does not know of the packet before [`submit`](Self::submit).
    ///
    /// The bytes are not cleared: they may hold an earlier packet until `write` has been there.
    pub fn push(&mut self, length: usize, write: impl FnOnce(&mut [u8])) -> bool {
        let Ok(short) = u32::try_from(length) else {
            return false;
        };
        if length == 0 || length > self.capacity() || self.room(1) == 0 {
            return false;
        }
        let Some(offset) = self.outgoing.next_frame() else {
            return false;
        };
        let start = self.umem.at(offset).as_ptr();
        // SAFETY: `Outgoing` says that the frame at `offset` is ours until it is committed, which happens after this borrow
        // has ended, and gives it to nobody else; `length` was checked against the size of a frame.
        let bytes = unsafe { std::slice::from_raw_parts_mut(start, length) };
        write(bytes);
        self.outgoing.commit(short);
        self.written += 1;
        true
    }

    /// Gives the kernel what was pushed, and has it sent. Returns how many packets it has not looked at yet: then it lacks
    /// memory or the device's queue is full (`EAGAIN`, `ENOBUFS`), and another call has to follow soon. Does not block.
    ///
    /// # Errors
    /// The device cannot send now (`ENETDOWN`) or any more (`ENXIO`). What was pushed stays in the ring, and leaves when a
    /// later call succeeds.
    pub fn submit(&mut self) -> io::Result<u32> {
        self.statistics.sent += std::mem::take(&mut self.written);
        let mut wakeup = self.outgoing.publish();
        let mut pending = self.outgoing.pending();
        let mut fruitless = 0;
        while wakeup && pending > 0 && fruitless < FRUITLESS_KICKS {
            self.statistics.kicks += 1;
            match self.socket.kick() {
                // A driver that does without copies goes on by itself.
                Ok(()) if self.zero_copy => return Ok(0),
                Ok(()) => {}
                Err(error) => match error.raw_os_error() {
                    // One was dropped, of which there is a completion; the others follow. A driver means that it is
                    // at work already, or cannot work just now.
                    Some(libc::EBUSY) => {
                        self.statistics.dropped += u64::from(!self.zero_copy);
                    }
                    // A share of them was sent, or there is no memory for more on the way.
                    Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM | libc::EINTR) => {}
                    _ => return Err(error),
                },
            }
            wakeup = self.outgoing.publish();
            let left = self.outgoing.pending();
            fruitless = if left == pending { fruitless + 1 } else { 0 };
            pending = left;
        }
        // A driver that is at work takes what is in the ring by itself.
        Ok(if wakeup { pending } else { 0 })
    }

    /// Waits until a frame is free and everything submitted has been looked at, `limit` at most; whether that is so now.
    ///
    /// # Errors
    /// As [`submit`](Self::submit).
    pub fn wait(&mut self, limit: Duration) -> io::Result<bool> {
        // Nothing tells of completions, so they are looked for at intervals that a device's queue takes to drain.
        const PAUSE: Duration = Duration::from_micros(100);
        let until = Instant::now() + limit;
        loop {
            let pending = self.submit()?;
            if pending == 0 && self.room(1) > 0 {
                return Ok(true);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let mut fds: [PollFd<'_>; 0] = [];
            poll(&mut fds, Some(left.min(PAUSE)))?;
        }
    }

    /// Packets that the kernel took and dropped, in copy mode, since the socket was opened.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.statistics.dropped
    }

    /// Counters since the socket was opened.
    ///
    /// # Errors
    /// As `getsockopt(2)`.
    pub fn statistics(&self) -> io::Result<TransmitStatistics> {
        Ok(TransmitStatistics {
            bad_completions: self.outgoing.bad_completions(),
            invalid: self.socket.statistics()?.tx_invalid_descs,
            ..self.statistics
        })
    }
}
