//! Ring memory shared with the kernel.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use super::ring::Memory;
use crate::sys::invalid;

/// Which ring of a socket.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ring {
    Fill,
    Receive,
    Transmit,
    Completion,
}

impl Ring {
    /// Offset to give to `mmap` (`XDP_PGOFF_RX_RING` and its like).
    fn page_offset(self) -> io::Result<libc::off_t> {
        let of_umem = |offset| {
            libc::off_t::try_from(offset).map_err(|_| invalid("AF_XDP needs 64-bit file offsets"))
        };
        match self {
            Self::Receive => Ok(libc::XDP_PGOFF_RX_RING),
            Self::Transmit => Ok(libc::XDP_PGOFF_TX_RING),
            Self::Fill => of_umem(libc::XDP_UMEM_PGOFF_FILL_RING),
            Self::Completion => of_umem(libc::XDP_UMEM_PGOFF_COMPLETION_RING),
        }
    }

    /// Where in the mapping things are.
    fn layout(self, offsets: &libc::xdp_mmap_offsets) -> &libc::xdp_ring_offset {
        match self {
            Self::Receive => &offsets.rx,
            Self::Fill => &offsets.fr,
            Self::Transmit => &offsets.tx,
            Self::Completion => &offsets.cr,
        }
    }
}

/// A ring mapped from a socket. `T` is `u64` (fill, completion) or `xdp_desc` (RX, TX).
#[derive(Debug)]
pub(super) struct MappedRing<T> {
    mapping: NonNull<u8>,
    length: usize,
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    entries: NonNull<T>,
    capacity: u32,
    entry: PhantomData<T>,
}

// SAFETY: the mapping belongs to this value alone, and what is shared with the kernel is reached by atomics or by the cursor
// protocol.
unsafe impl<T: Send> Send for MappedRing<T> {}

impl<T: Copy> MappedRing<T> {
    /// Maps a ring of `capacity` entries that the socket has been given by `setsockopt`.
    pub(super) fn map(
        socket: BorrowedFd<'_>,
        ring: Ring,
        offsets: &libc::xdp_mmap_offsets,
        capacity: u32,
    ) -> io::Result<Self> {
        let layout = ring.layout(offsets);
        let place = |offset: u64| usize::try_from(offset).map_err(|_| invalid("ring offset"));
        let entries = place(layout.desc)?;
        let length = entries + capacity as usize * size_of::<T>();
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                socket.as_raw_fd(),
                ring.page_offset()?,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let mapping: NonNull<u8> =
            NonNull::new(start.cast()).ok_or_else(|| invalid("mapping at address zero"))?;
        // SAFETY: the kernel's offsets lie within the mapping, whose length was computed from the largest of them.
        let at = |offset: usize| unsafe { mapping.add(offset) };
        Ok(Self {
            mapping,
            length,
            producer: at(place(layout.producer)?).cast(),
            consumer: at(place(layout.consumer)?).cast(),
            flags: at(place(layout.flags)?).cast(),
            entries: at(entries).cast(),
            capacity,
            entry: PhantomData,
        })
    }
}

impl<T> Drop for MappedRing<T> {
    fn drop(&mut self) {
        // SAFETY: the range is our mapping, and every pointer into it goes with this value.
        unsafe { libc::munmap(self.mapping.as_ptr().cast(), self.length) };
    }
}

impl<T: Copy> Memory for MappedRing<T> {
    type Entry = T;
    type Cursor = AtomicU32;

    fn capacity(&self) -> u32 {
        self.capacity
    }

    fn producer(&self) -> &AtomicU32 {
        // SAFETY: lies in the mapping, which lives as long as `self`; aligned, since the kernel lays it out by cache line.
        unsafe { self.producer.as_ref() }
    }

    fn consumer(&self) -> &AtomicU32 {
        // SAFETY: as for `producer`.
        unsafe { self.consumer.as_ref() }
    }

    fn flags(&self) -> u32 {
        // SAFETY: as for `producer`.
        unsafe { self.flags.as_ref() }.load(Ordering::Relaxed)
    }

    unsafe fn read(&self, slot: u32) -> T {
        // SAFETY: `slot < capacity` (contract of the trait), so the entry lies in the mapping.
        let entry = unsafe { self.entries.add(slot as usize) };
        // SAFETY: the slot is the consumer's, that is the caller's; any bytes are a valid `T`, an integer or a struct of them.
        unsafe { entry.read() }
    }

    unsafe fn write(&self, slot: u32, value: T) {
        // SAFETY: `slot < capacity` (contract of the trait), so the entry lies in the mapping.
        let entry = unsafe { self.entries.add(slot as usize) };
        // SAFETY: the slot is the producer's, that is the caller's.
        unsafe { entry.write(value) };
    }
}
