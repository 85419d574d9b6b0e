//! A counting allocator: the system's, and how many bytes are held. It refuses any single allocation beyond a gibibyte, as a
//! machine short of memory would, so that an absurd size in a file ends in a typed error or a crash that the fuzzer sees.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes allocated and not yet freed.
pub(crate) static HELD_BYTES: AtomicUsize = AtomicUsize::new(0);
/// The most that was held at once since it was last set.
pub(crate) static HELD_BYTES_MAX: AtomicUsize = AtomicUsize::new(0);

const SINGLE_ALLOCATION_BYTES_MAX: usize = 1 << 30;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

struct Counting;

// SAFETY: every call is handed to the system allocator unchanged, or refused with null, which the contract allows; counting
// touches no memory that is handed out.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() > SINGLE_ALLOCATION_BYTES_MAX {
            return std::ptr::null_mut();
        }
        let held = HELD_BYTES.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        HELD_BYTES_MAX.fetch_max(held, Ordering::Relaxed);
        // SAFETY: the caller keeps `alloc`'s contract, which is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD_BYTES.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the pointer came from `alloc` above with this layout, hence from the system allocator.
        unsafe { System.dealloc(pointer, layout) }
    }
}
