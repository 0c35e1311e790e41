//! UMEM: the memory packets are received into.

use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::sys::invalid;

/// Bytes the kernel keeps free in front of a packet (`XDP_PACKET_HEADROOM`, `linux/bpf.h`).
const HEADROOM: u32 = 256;
/// Size of a huge page on the architectures that matter; the region is rounded up to it.
const HUGE_PAGE: usize = 2 << 20;

/// Bytes of a cache line. The headers of IPv6, UDP and a data message take less than two.
const LINE: usize = 64;

/// Size of a frame. The kernel wants a power of two between 2048 and the page size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameSize {
    /// For an MTU of 1500 and a bit more.
    Bytes2048,
    /// For larger MTUs, up to 3,800 or so.
    Bytes4096,
}

impl FrameSize {
    /// The smallest that holds packets of an interface's `mtu` (in bytes, without the Ethernet header), or the largest.
    #[must_use]
    pub fn for_mtu(mtu: u32) -> Self {
        // 14 bytes of Ethernet and room for two VLAN tags.
        if mtu.saturating_add(22) <= Self::Bytes2048.capacity() {
            Self::Bytes2048
        } else {
            Self::Bytes4096
        }
    }

    /// In bytes.
    #[must_use]
    pub const fn bytes(self) -> u32 {
        match self {
            Self::Bytes2048 => 2048,
            Self::Bytes4096 => 4096,
        }
    }

    /// Bytes of the longest packet, Ethernet header included, that fits.
    #[must_use]
    pub const fn capacity(self) -> u32 {
        self.bytes() - HEADROOM
    }
}

/// Memory for frames, shared by the receivers of one interface.
#[derive(Clone, Debug)]
pub struct Umem {
    region: Arc<Region>,
    frame_size: FrameSize,
    frames: u32,
}

impl Umem {
    /// Allocates `frames` frames, in huge pages if the system has some left.
    ///
    /// # Errors
    /// `ENOMEM`; `InvalidInput` for no frames or too many.
    pub fn new(frames: u32, frame_size: FrameSize) -> io::Result<Self> {
        let length = (frames as usize)
            .checked_mul(frame_size.bytes() as usize)
            .filter(|length| (1..=1 << 32).contains(length))
            .ok_or_else(|| invalid("number of frames"))?;
        Ok(Self {
            region: Arc::new(Region::new(length)?),
            frame_size,
            frames,
        })
    }

    /// Number of frames.
    #[must_use]
    pub fn frames(&self) -> u32 {
        self.frames
    }

    /// Size of each.
    #[must_use]
    pub fn frame_size(&self) -> FrameSize {
        self.frame_size
    }

    /// Whether the memory is in huge pages, which saves the CPU page-table walks.
    #[must_use]
    pub fn is_huge(&self) -> bool {
        self.region.huge
    }

    /// Start of the memory, for registering it.
    pub(super) fn address(&self) -> u64 {
        self.region.start.as_ptr() as u64
    }

    /// Bytes of frames.
    pub(super) fn length(&self) -> u64 {
        u64::from(self.frames) * u64::from(self.frame_size.bytes())
    }

    /// Has the CPU fetch the headers of a packet at `offset`, which another core may have written.
    pub(super) fn prefetch_headers(&self, offset: usize) {
        let start = self.at(offset).as_ptr().cast::<i8>();
        prefetch(start);
        // A short packet may end with its frame, and the region with that.
        prefetch(start.wrapping_add(LINE));
    }

    /// Pointer to the byte at `offset`.
    pub(super) fn at(&self, offset: usize) -> NonNull<u8> {
        debug_assert!(offset < self.region.length, "offset within the region");
        // SAFETY: callers pass offsets of frames, which lie within the region (`Queue` checks what the kernel says).
        unsafe { self.region.start.add(offset) }
    }
}

/// Has the CPU fetch the line at `pointer` into its caches.
#[cfg(target_arch = "x86_64")]
fn prefetch(pointer: *const i8) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: a hint, which faults on no address.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(pointer) };
}

#[cfg(not(target_arch = "x86_64"))]
fn prefetch(_pointer: *const i8) {}

/// An anonymous mapping.
#[derive(Debug)]
struct Region {
    start: NonNull<u8>,
    length: usize,
    huge: bool,
}

// SAFETY: the region is plain memory; who may touch which byte is the business of `Queue`, which gives each frame to one
// owner.
unsafe impl Send for Region {}
// SAFETY: as above; through a shared reference only addresses are computed.
unsafe impl Sync for Region {}

impl Region {
    fn new(length: usize) -> io::Result<Self> {
        let length = length.next_multiple_of(HUGE_PAGE);
        let huge = map(length, libc::MAP_HUGETLB);
        let (start, huge) = match huge {
            Ok(start) => (start, true),
            Err(_) => (map(length, 0)?, false),
        };
        if !huge {
            // SAFETY: the range is the mapping just made. The advice may be refused, which changes nothing.
            unsafe { libc::madvise(start.as_ptr().cast(), length, libc::MADV_HUGEPAGE) };
        }
        Ok(Self {
            start,
            length,
            huge,
        })
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the range is our mapping, and whoever had pointers into it held the `Arc`. The kernel pins the pages of
        // a registered UMEM by itself.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

fn map(length: usize, flags: i32) -> io::Result<NonNull<u8>> {
    // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no memory of ours.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags,
            -1,
            0,
        )
    };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(start.cast()).ok_or_else(|| invalid("mapping at address zero"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frame_size_follows_the_mtu() {
        assert_eq!(FrameSize::for_mtu(1500), FrameSize::Bytes2048);
        assert_eq!(FrameSize::for_mtu(1770), FrameSize::Bytes2048);
        assert_eq!(FrameSize::for_mtu(1771), FrameSize::Bytes4096);
        assert_eq!(FrameSize::for_mtu(u32::MAX), FrameSize::Bytes4096);
    }

    #[test]
    fn memory_is_there_to_the_last_byte() {
        let umem = Umem::new(3, FrameSize::Bytes4096).unwrap();
        assert_eq!(umem.length(), 3 * 4096);
        let last = umem.at(3 * 4096 - 1);
        // SAFETY: the byte lies within the region and nobody else has it.
        unsafe { last.write(7) };
        // SAFETY: as above.
        assert_eq!(unsafe { last.read() }, 7);
        assert!(Umem::new(0, FrameSize::Bytes2048).is_err());
        assert!(Umem::new(u32::MAX, FrameSize::Bytes4096).is_err());
    }
}
