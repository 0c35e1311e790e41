//! An allocator that counts, so that a running daemon can prove that its data threads allocate
//! nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    // `const` and without a destructor: access neither allocates nor registers anything.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The system allocator with a count of allocations per thread. Costs one thread-local increment
/// per allocation.
///
/// ```
/// #[global_allocator]
/// static ALLOCATOR: adit_kernel::alloc::CountingAllocator = adit_kernel::alloc::CountingAllocator;
///
/// let before = adit_kernel::alloc::allocations_on_this_thread();
/// let boxed = Box::new(1_u64);
/// assert_eq!(adit_kernel::alloc::allocations_on_this_thread(), before + *boxed);
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct CountingAllocator;

/// How often the calling thread has allocated or reallocated since it started. Stays 0 unless
/// [`CountingAllocator`] is the global allocator.
#[must_use]
pub fn allocations_on_this_thread() -> u64 {
    ALLOCATIONS.get()
}

fn count() {
    ALLOCATIONS.set(ALLOCATIONS.get().wrapping_add(1));
}

// SAFETY: every call goes to `System` unchanged; counting touches only a thread-local cell, and
// neither allocates nor unwinds.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(pointer, layout, new_size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_every_kind_of_allocation_but_not_the_release() {
        let layout = Layout::from_size_align(64, 8).unwrap();
        let larger = Layout::from_size_align(128, 8).unwrap();
        let before = allocations_on_this_thread();
        // SAFETY: the layout is not empty.
        let pointer = unsafe { CountingAllocator.alloc(layout) };
        // SAFETY: the pointer came from this allocator with this layout.
        let pointer = unsafe { CountingAllocator.realloc(pointer, layout, larger.size()) };
        // SAFETY: the pointer came from this allocator with this layout.
        unsafe { CountingAllocator.dealloc(pointer, larger) };
        // SAFETY: the layout is not empty.
        let pointer = unsafe { CountingAllocator.alloc_zeroed(layout) };
        // SAFETY: the pointer came from this allocator with this layout.
        unsafe { CountingAllocator.dealloc(pointer, layout) };
        assert_eq!(allocations_on_this_thread() - before, 3);
        assert_eq!(
            std::thread::spawn(allocations_on_this_thread)
                .join()
                .unwrap(),
            0
        );
    }
}
