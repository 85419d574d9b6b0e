//! The GPU's roofs, measured: how fast it reads its memory and how many int8 products its tensor cores do through `mma.sync`. Benchmarks
//! report what fraction of them a step reaches; measure them in the same run.

use std::time::Instant;

use bitnet_model::device::DeviceError;

use crate::device::CudaDevice;
use crate::driver::Buffer;
use crate::queue::Arguments;

/// Bytes that are read for the bandwidth: well beyond any cache.
const READ_BYTES: usize = 2 << 30;
/// Rounds of the product loop, of 8 products of 16 × 8 × 32 for each warp; some milliseconds.
const PRODUCT_ROUNDS: usize = 20_000;
const MACS_OF_A_PRODUCT: usize = 16 * 8 * 32;
const THREADS: usize = 512;

/// What the memory and the tensor cores of a GPU can do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CudaRoofs {
    /// Bytes read a second.
    pub read_bytes_per_s: f64,
    /// int8 multiply-adds a second.
    pub int8_macs_per_s: f64,
}

/// A device and buffers for measuring its roofs.
pub struct CudaRoofMeter {
    device: CudaDevice,
    bytes: Buffer,
    out: Buffer,
}

impl CudaRoofMeter {
    /// Takes memory for the measurements.
    pub fn new(mut device: CudaDevice) -> Result<Self, DeviceError> {
        let n_threads = device.gpu().n_multiprocessors * 4 * THREADS;
        let (queue, _) = device.parts();
        let bytes = queue.zeroed("bytes to read", READ_BYTES)?;
        let out = queue.buffer("sums", n_threads * size_of::<u32>())?;
        Ok(Self { device, bytes, out })
    }

    /// Measures both roofs once.
    pub fn measure(&mut self) -> Result<CudaRoofs, DeviceError> {
        let n_multiprocessors = self.device.gpu().n_multiprocessors;
        let arguments = Arguments::new().address(self.bytes.address()).address(self.out.address()).address((READ_BYTES / 16) as u64);
        let arguments = arguments.word(PRODUCT_ROUNDS).word(0);
        let (queue, kernels) = self.device.parts();
        let mut seconds = |kernel, threads: usize| {
            queue.wait()?;
            let start = Instant::now();
            queue.record(arguments.launch(kernel, [n_multiprocessors * 4, 1], (threads, 0)))?;
            queue.wait()?;
            Ok::<f64, DeviceError>(start.elapsed().as_secs_f64())
        };
        let reading = seconds(kernels.roof_read, THREADS)?;
        let multiplying = seconds(kernels.roof_multiply, THREADS / 2)?;
        let n_products = (n_multiprocessors * 4 * (THREADS / 2 / 32) * 8 * PRODUCT_ROUNDS) as f64;
        Ok(CudaRoofs {
            read_bytes_per_s: READ_BYTES as f64 / reading,
            int8_macs_per_s: n_products * MACS_OF_A_PRODUCT as f64 / multiplying,
        })
    }
}
