//! Memory of the GPU and pinned memory of the host.
//!
//! Work is queued and runs later, so a buffer that is dropped is only set aside; `collect`, called when the stream has run dry, frees
//! it. So no queued kernel or copy ever meets freed memory.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bitnet_model::device::DeviceError;
use cudarc::driver::{result, sys};

use super::failed;
use super::stream::Context;

/// Gives memory of one GPU and takes it back.
#[derive(Clone)]
pub(crate) struct Memory(Arc<Room>);

struct Room {
    context: Arc<Context>,
    set_aside: Mutex<Vec<SetAside>>,
    /// How often memory of the GPU was given or dropped.
    n_changes: AtomicUsize,
    /// Bytes of all buffers, of the GPU and of the host, those set aside among them.
    gpu_bytes: AtomicUsize,
    host_bytes: AtomicUsize,
}

enum SetAside {
    Gpu(sys::CUdeviceptr, usize),
    Host(HostPointer, usize),
}

struct HostPointer(*mut u8);

// SAFETY: a pointer to memory that only its owner uses; pinned memory belongs to no thread.
unsafe impl Send for HostPointer {}
// SAFETY: shared readers only read what a finished copy wrote (HostBuffer's contract).
unsafe impl Sync for HostPointer {}

impl Memory {
    pub(super) fn new(context: Arc<Context>) -> Self {
        let [n_changes, gpu_bytes, host_bytes] = [(); 3].map(|()| AtomicUsize::new(0));
        Self(Arc::new(Room { context, set_aside: Mutex::default(), n_changes, gpu_bytes, host_bytes }))
    }

    /// As long as this number stays, every buffer is where it was.
    pub(crate) fn n_changes(&self) -> usize {
        self.0.n_changes.load(Ordering::Relaxed)
    }

    /// Bytes in use, of the GPU and pinned on the host.
    pub(crate) fn used_bytes(&self) -> (usize, usize) {
        (self.0.gpu_bytes.load(Ordering::Relaxed), self.0.host_bytes.load(Ordering::Relaxed))
    }

    /// Memory of the GPU, undefined until written.
    pub(crate) fn buffer(&self, what: &'static str, size_bytes: usize) -> Result<Buffer, DeviceError> {
        self.0.context.make_current().map_err(failed("cuCtxSetCurrent"))?;
        // SAFETY: the result is a fresh address, used through Buffer only.
        let address = unsafe { result::malloc_sync(size_bytes.max(1)) };
        let address = address.map_err(|error| match error.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => DeviceError::OutOfMemory { what, size_bytes },
            _ => failed("cuMemAlloc")(error),
        })?;
        self.0.gpu_bytes.fetch_add(size_bytes, Ordering::Relaxed);
        self.0.n_changes.fetch_add(1, Ordering::Relaxed);
        Ok(Buffer { address, size_bytes, memory: self.clone() })
    }

    /// Pinned memory of the host, zeroed, which kernels can read.
    pub(crate) fn host_buffer(&self, what: &'static str, size_bytes: usize) -> Result<HostBuffer, DeviceError> {
        self.0.context.make_current().map_err(failed("cuCtxSetCurrent"))?;
        // SAFETY: the result is a fresh address, used through HostBuffer only.
        let pointer = unsafe { result::malloc_host(size_bytes.max(1), sys::CU_MEMHOSTALLOC_DEVICEMAP) };
        let pointer = pointer.map_err(|error| match error.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => DeviceError::OutOfMemory { what, size_bytes },
            _ => failed("cuMemHostAlloc")(error),
        })?;
        let pointer: *mut u8 = pointer.cast();
        // SAFETY: size_bytes were allocated just now.
        unsafe { pointer.write_bytes(0, size_bytes) };
        self.0.host_bytes.fetch_add(size_bytes, Ordering::Relaxed);
        Ok(HostBuffer { pointer: HostPointer(pointer), size_bytes, memory: self.clone() })
    }

    /// Copies `bytes` to the start of `to`, at once. For loading, when nothing that uses `to` is queued.
    pub(crate) fn write(&self, bytes: &[u8], to: &Buffer) -> Result<(), DeviceError> {
        assert!(bytes.len() <= to.size_bytes, "{} bytes in room for {}", bytes.len(), to.size_bytes);
        self.0.context.make_current().map_err(failed("cuCtxSetCurrent"))?;
        // SAFETY: `to` holds that many bytes (asserted).
        unsafe { result::memcpy_htod_sync(to.address, bytes) }.map_err(failed("cuMemcpyHtoD"))?;
        // The call returns when the bytes have left where they were, which is before they have arrived; our stream does not wait for the
        // default one, on which they travel (CUDA driver API, "API synchronization behavior").
        // SAFETY: null is the default stream of the current context.
        unsafe { result::stream::synchronize(std::ptr::null_mut()) }.map_err(failed("cuStreamSynchronize"))
    }

    /// Frees what was dropped. Call when everything queued is done.
    pub(crate) fn collect(&self) {
        self.0.collect();
    }

    fn set_aside(&self, memory: SetAside) {
        self.0.set_aside.lock().unwrap_or_else(PoisonError::into_inner).push(memory);
    }
}

impl Room {
    fn collect(&self) {
        let mut set_aside = self.set_aside.lock().unwrap_or_else(PoisonError::into_inner);
        if set_aside.is_empty() || self.context.make_current().is_err() {
            return;
        }
        for memory in set_aside.drain(..) {
            // A lost GPU has no memory left to free.
            let _ = match memory {
                SetAside::Gpu(address, size_bytes) => {
                    self.gpu_bytes.fetch_sub(size_bytes, Ordering::Relaxed);
                    // SAFETY: given by cuMemAlloc, dropped by its only owner, and no queued work is left that names it (the caller's duty).
                    unsafe { result::free_sync(address) }
                }
                SetAside::Host(pointer, size_bytes) => {
                    self.host_bytes.fetch_sub(size_bytes, Ordering::Relaxed);
                    // SAFETY: likewise, given by cuMemHostAlloc.
                    unsafe { result::free_host(pointer.0.cast()) }
                }
            };
        }
    }
}

impl Drop for Room {
    /// The last buffer is gone, and so is the queue, which waits when it is dropped.
    fn drop(&mut self) {
        self.collect();
    }
}

/// Memory of the GPU.
pub(crate) struct Buffer {
    address: sys::CUdeviceptr,
    size_bytes: usize,
    memory: Memory,
}

impl Buffer {
    /// Where it begins; a kernel's argument.
    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    pub(crate) fn size_bytes(&self) -> usize {
        self.size_bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.memory.0.n_changes.fetch_add(1, Ordering::Relaxed);
        self.memory.set_aside(SetAside::Gpu(self.address, self.size_bytes));
    }
}

/// Pinned memory of the host, which copies reach without a detour.
pub(crate) struct HostBuffer {
    pointer: HostPointer,
    size_bytes: usize,
    memory: Memory,
}

impl HostBuffer {
    pub(super) fn pointer(&self) -> *mut u8 {
        self.pointer.0
    }

    pub(crate) fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    /// Where kernels read it: over the bus, at each reading anew.
    pub(crate) fn address(&self) -> Result<u64, DeviceError> {
        self.memory.0.context.make_current().map_err(failed("cuCtxSetCurrent"))?;
        let mut address = 0;
        // SAFETY: the pointer is of memory that was allocated to be mapped (Memory::host_buffer); the result is a live integer.
        let status = unsafe { sys::cuMemHostGetDevicePointer_v2(&raw mut address, self.pointer.0.cast(), 0) };
        status.result().map_err(failed("cuMemHostGetDevicePointer"))?;
        Ok(address)
    }

    /// The first `n` words. Only while no copy to or from this buffer is queued: that is, after `Stream::wait`.
    pub(crate) fn words(&self, n: usize) -> &[u32] {
        assert!(n * 4 <= self.size_bytes, "{n} words in {} bytes", self.size_bytes);
        // SAFETY: inside the allocation (asserted), which is aligned to a page and was zeroed; every word is a valid u32.
        unsafe { std::slice::from_raw_parts(self.pointer.0.cast(), n) }
    }

    /// The first `n` floats, under the same condition.
    pub(crate) fn floats(&self, n: usize) -> &[f32] {
        assert!(n * 4 <= self.size_bytes, "{n} floats in {} bytes", self.size_bytes);
        // SAFETY: as for `words`; every pattern is a valid f32.
        unsafe { std::slice::from_raw_parts(self.pointer.0.cast(), n) }
    }

    /// All bytes, to be written. Only while nothing that reads or copies this buffer is queued.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `words`, and borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.0, self.size_bytes) }
    }

    /// All words, to be written. Only while no copy of this buffer is queued.
    pub(crate) fn words_mut(&mut self) -> &mut [u32] {
        // SAFETY: as for `words`, and borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.0.cast(), self.size_bytes / 4) }
    }
}

impl Drop for HostBuffer {
    fn drop(&mut self) {
        self.memory.set_aside(SetAside::Host(HostPointer(self.pointer.0), self.size_bytes));
    }
}
