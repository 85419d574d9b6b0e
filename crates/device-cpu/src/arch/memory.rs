//! `Memory`: zeroed arrays on 64-byte boundaries; large ones come straight from the kernel in 2 MiB pages where it has them,
//! which takes the page walks out of a linear stream of weights.
//!
//! Fresh pages are touched first by whoever fills them, so tiles that are built by the pool's threads also lie near them. It
//! deliberately holds plain numbers only, for which all-zero bytes are a value.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Alignment of every array: a cache line.
const LINE: usize = 64;
/// Arrays from this size on get their own pages; also the size of a huge page.
const HUGE_PAGE: usize = 2 << 20;

/// Numbers whose all-zero bytes are zero and that need no drop.
pub(crate) trait Plain: Copy + Send + Sync + 'static {}
impl Plain for u8 {}
impl Plain for i8 {}
impl Plain for u16 {}
impl Plain for i32 {}
impl Plain for f32 {}
impl<T: Plain, const N: usize> Plain for [T; N] {}

/// The system has no such amount of memory left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OutOfMemory {
    /// What was asked for.
    pub(crate) size_bytes: usize,
}

/// A zero-initialised array of fixed length, 64-byte aligned.
pub(crate) struct Memory<T: Plain> {
    start: NonNull<T>,
    len: usize,
    origin: Origin,
}

/// Where the bytes came from, so that they can go back.
enum Origin {
    Nothing,
    Heap(Layout),
    #[cfg(target_os = "linux")]
    Pages {
        base: NonNull<libc::c_void>,
        size_bytes: usize,
    },
}

// SAFETY: Memory owns its bytes alone, like Vec, and T is Send.
unsafe impl<T: Plain> Send for Memory<T> {}
// SAFETY: shared access only reads, and T is Sync.
unsafe impl<T: Plain> Sync for Memory<T> {}

impl<T: Plain> Memory<T> {
    /// `len` zeros.
    pub(crate) fn zeroed(len: usize) -> Result<Self, OutOfMemory> {
        let size_bytes = len.checked_mul(size_of::<T>()).ok_or(OutOfMemory { size_bytes: usize::MAX })?;
        if size_bytes == 0 {
            return Ok(Self { start: NonNull::dangling(), len, origin: Origin::Nothing });
        }
        #[cfg(target_os = "linux")]
        if size_bytes >= HUGE_PAGE {
            let (start, origin) = pages(size_bytes)?;
            return Ok(Self { start: start.cast(), len, origin });
        }
        let layout = Layout::from_size_align(size_bytes, LINE).map_err(|_| OutOfMemory { size_bytes })?;
        // SAFETY: the layout's size is not zero (checked above).
        let start = unsafe { alloc_zeroed(layout) };
        let start = NonNull::new(start).ok_or(OutOfMemory { size_bytes })?;
        Ok(Self { start: start.cast(), len, origin: Origin::Heap(layout) })
    }
}

impl<T: Plain> Memory<T> {
    /// Has the kernel give all pages now, if it can be asked to (Linux 5.14): they are cleared before anybody waits for them, and a system
    /// that has not so much says so.
    pub(crate) fn commit(&mut self) -> Result<(), OutOfMemory> {
        #[cfg(target_os = "linux")]
        if let Origin::Pages { .. } = self.origin {
            let size_bytes = self.len * size_of::<T>();
            // SAFETY: [start, start + size_bytes) lies in this array's own mapping, and populating changes no byte of it.
            let answer = unsafe { libc::madvise(self.start.as_ptr().cast(), size_bytes, libc::MADV_POPULATE_WRITE) };
            if answer != 0 && std::io::Error::last_os_error().raw_os_error() == Some(libc::ENOMEM) {
                return Err(OutOfMemory { size_bytes });
            }
        }
        Ok(())
    }
}

/// Anonymous pages for `size_bytes`, starting on a huge page and marked for huge pages as far as they fill them: what is left would
/// take a whole one, and a model has hundreds of arrays.
#[cfg(target_os = "linux")]
fn pages(size_bytes: usize) -> Result<(NonNull<u8>, Origin), OutOfMemory> {
    let mapped = size_bytes.checked_next_multiple_of(HUGE_PAGE).and_then(|size| size.checked_add(HUGE_PAGE));
    let mapped = mapped.ok_or(OutOfMemory { size_bytes })?;
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new anonymous mapping touches no existing memory.
    let base = unsafe { libc::mmap(std::ptr::null_mut(), mapped, protection, flags, -1, 0) };
    let base = NonNull::new(base).filter(|base| base.as_ptr() != libc::MAP_FAILED).ok_or(OutOfMemory { size_bytes })?;
    let offset = base.as_ptr().cast::<u8>().align_offset(HUGE_PAGE);
    assert!(offset < HUGE_PAGE, "a byte pointer can be aligned");
    let start = base.as_ptr().cast::<u8>().wrapping_add(offset);
    let filled = size_bytes / HUGE_PAGE * HUGE_PAGE;
    // SAFETY: [start, start + filled) lies in the mapping: offset < HUGE_PAGE and filled <= mapped − HUGE_PAGE. It is advice: failure is
    // harmless.
    unsafe { libc::madvise(start.cast(), filled, libc::MADV_HUGEPAGE) };
    let start = NonNull::new(start).ok_or(OutOfMemory { size_bytes })?;
    Ok((start, Origin::Pages { base, size_bytes: mapped }))
}

impl<T: Plain> Drop for Memory<T> {
    fn drop(&mut self) {
        match self.origin {
            Origin::Nothing => {}
            // SAFETY: `start` came from alloc_zeroed with this layout and is freed once.
            Origin::Heap(layout) => unsafe { dealloc(self.start.as_ptr().cast(), layout) },
            #[cfg(target_os = "linux")]
            Origin::Pages { base, size_bytes } => {
                // SAFETY: this is exactly the mapping made in `pages`, unmapped once.
                unsafe { libc::munmap(base.as_ptr(), size_bytes) };
            }
        }
    }
}

impl<T: Plain> Deref for Memory<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `start` is valid for `len` initialised (zeroed) elements of plain T, or dangling with len·size = 0.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T: Plain> DerefMut for Memory<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and `&mut self` is the only access.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

/// Asks for the cache line at an address, which may be any: nothing is read, so nothing can fault.
#[inline]
pub(crate) fn prefetch_line(address: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: every x86-64 processor has SSE; a prefetch reads no memory and does not fault.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(std::ptr::without_provenance(address)) };
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a prefetch reads no memory, writes no register and does not fault.
    unsafe {
        std::arch::asm!("prfm pldl2keep, [{address}]", address = in(reg) address, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = address;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_any_size_is_zeroed_aligned_and_writable() {
        for len in [0usize, 1, 63, 4096, HUGE_PAGE - 1, HUGE_PAGE, HUGE_PAGE + 1, 3 * HUGE_PAGE + 17] {
            let mut memory = Memory::<u8>::zeroed(len).expect("memory");
            assert_eq!(memory.len(), len);
            assert!(memory.iter().all(|&byte| byte == 0));
            if len > 0 {
                assert_eq!(memory.as_ptr().align_offset(LINE), 0);
                memory[len - 1] = 7;
                assert_eq!(memory[len - 1], 7);
            }
        }
    }

    #[test]
    fn memory_that_cannot_exist_is_refused() {
        assert_eq!(Memory::<f32>::zeroed(usize::MAX).err(), Some(OutOfMemory { size_bytes: usize::MAX }));
        assert!(Memory::<u8>::zeroed(usize::MAX / 2).is_err());
    }
}
