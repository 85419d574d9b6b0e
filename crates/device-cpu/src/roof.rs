//! The machine's roofs, measured: how fast all threads together read memory and how many int8 products of codes and
//! activations they can do from registers. Benchmarks report what fraction of them a kernel reaches.
//!
//! A roof is a rate of this machine at this moment, with whatever else runs on it; measure it in the same run as the kernel.

use std::time::Instant;

use crate::arch::{Memory, OutOfMemory};
use crate::device::CpuDevice;
use crate::pool::Parts;

/// Bytes that are read for the bandwidth: well beyond any cache.
const READ_BYTES: usize = 512 << 20;
/// Rounds of the register loop; some ten milliseconds.
const PRODUCT_ROUNDS: usize = 2_000_000;

/// What the memory and the arithmetic units of a device's threads can do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Roofs {
    /// Bytes read a second, one linear stream for each thread.
    pub read_bytes_per_s: f64,
    /// int8 multiply-adds a second with widening deferred; `None` where there is no vector instruction set.
    pub int8_macs_per_s: Option<f64>,
}

impl Roofs {
    /// The higher of each: what else the machine does only lowers them.
    pub fn best(self, other: Option<Self>) -> Self {
        let larger = |a: Option<f64>, b: Option<f64>| a.into_iter().chain(b).reduce(f64::max);
        Self {
            read_bytes_per_s: other.map_or(self.read_bytes_per_s, |other| self.read_bytes_per_s.max(other.read_bytes_per_s)),
            int8_macs_per_s: larger(self.int8_macs_per_s, other.and_then(|other| other.int8_macs_per_s)),
        }
    }
}

/// Buffers for measuring roofs; made once, since they are large.
pub struct RoofMeter {
    bytes: Memory<u8>,
}

impl RoofMeter {
    /// Takes 512 MiB.
    pub fn new() -> Result<Self, crate::CpuError> {
        let refused = |memory: OutOfMemory| crate::CpuError::OutOfMemory { what: "roof meter", size_bytes: memory.size_bytes };
        let mut bytes = Memory::zeroed(READ_BYTES).map_err(refused)?;
        // Untouched pages would all be the one zero page.
        bytes.chunks_mut(4096).for_each(|page| page[0] = 1);
        Ok(Self { bytes })
    }

    /// One measurement with the threads of `device`; take the best of several.
    pub fn measure(&self, device: &mut CpuDevice) -> Roofs {
        let (kernels, pool, scratch) = device.workers();
        let n_threads = pool.n_threads();
        let parts = Parts::new(READ_BYTES / 4096, n_threads, |pages| &self.bytes[pages.start * 4096..pages.end * 4096]);
        let start = Instant::now();
        pool.run_parts(scratch, parts, |_, part| {
            std::hint::black_box(kernels.read_all(part));
        });
        let read_bytes_per_s = READ_BYTES as f64 / start.elapsed().as_secs_f64();
        let start = Instant::now();
        pool.run_with(scratch, |_, _| {
            std::hint::black_box(kernels.products(PRODUCT_ROUNDS));
        });
        let seconds = start.elapsed().as_secs_f64();
        let macs = kernels.products(1) * (PRODUCT_ROUNDS * n_threads) as u64;
        Roofs { read_bytes_per_s, int8_macs_per_s: (macs > 0).then_some(macs as f64 / seconds) }
    }
}
