//! `Screen`: an int8 copy of a dense head that says which rows can be the largest logit; only those are multiplied exactly
//! (screen.cu has the bound). Decision 0008 has the idea; what differs is one plane of 8 bits, which a GPU reads at once.

use bitnet_checkpoint::DenseType;
use bitnet_model::device::DeviceError;

use crate::activations::BLOCK_COLUMNS;
use crate::driver::Buffer;
use crate::kernels::Kernels;
use crate::queue::{Arguments, Queue};

/// Tokens that one screening may take.
const TOKENS_MAX: usize = 256;
const WARPS: usize = 8;

/// A dense head in its stored precision, `[n, stride]`.
#[derive(Clone, Copy)]
pub(crate) struct DenseHead {
    pub(crate) address: u64,
    pub(crate) dtype: DenseType,
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) stride: usize,
}

/// The int8 copy and what is measured of it.
pub(crate) struct Screen {
    /// `[n, stride]`.
    quantized: Buffer,
    /// `[n]`.
    scales: Buffer,
    /// `[n, 2]`.
    norms: Buffer,
    /// int8 tokens, `[TOKENS_MAX, stride]`.
    x: Buffer,
    /// `[TOKENS_MAX, 4]`.
    tokens: Buffer,
    /// `[TOKENS_MAX]`.
    thresholds: Buffer,
    stride: usize,
}

impl Screen {
    /// Records the making of the copy.
    pub(crate) fn new(head: DenseHead, (queue, kernels): (&mut Queue, &Kernels)) -> Result<Self, DeviceError> {
        let stride = head.k.next_multiple_of(BLOCK_COLUMNS);
        let screen = Self {
            quantized: queue.buffer("screen of the head", head.n * stride)?,
            scales: queue.buffer("screen of the head", head.n * size_of::<f32>())?,
            norms: queue.buffer("screen of the head", head.n * 2 * size_of::<f32>())?,
            x: queue.buffer("tokens to screen", TOKENS_MAX * stride)?,
            tokens: queue.buffer("tokens to screen", TOKENS_MAX * 4 * size_of::<f32>())?,
            thresholds: queue.buffer("tokens to screen", TOKENS_MAX * size_of::<i32>())?,
            stride,
        };
        let arguments = Arguments::new().address(head.address).address(screen.quantized.address());
        let arguments = arguments.address(screen.scales.address()).address(screen.norms.address());
        let arguments = arguments.word(head.n).word(head.k).word(head.stride).word(stride);
        let kernel = kernels.screen_pack[dtype_number(head.dtype)];
        queue.record(arguments.launch(kernel, [head.n, 1], (WARPS * 32, 0)))?;
        Ok(screen)
    }

    /// Bytes that a step reads of it.
    pub(crate) fn size_bytes(&self) -> u64 {
        (self.quantized.size_bytes() + self.scales.size_bytes() + self.norms.size_bytes()) as u64
    }

    /// Most tokens at once.
    pub(crate) const fn n_tokens_max() -> usize {
        TOKENS_MAX
    }

    /// Records logits of `x[m, k]` into `out[m, n]`: exact where they may be a row's largest, −∞ elsewhere.
    pub(crate) fn logits(
        &self,
        head: DenseHead,
        (x, out, m): (u64, u64, usize),
        (queue, kernels): (&mut Queue, &Kernels),
    ) -> Result<(), DeviceError> {
        assert!(m <= TOKENS_MAX, "{m} tokens to screen");
        // Twice what the exact sum rounds at most, which covers the rounding of the screened logit.
        let rounding = (head.k as f32 / 16.0 + 32.0) * f32::EPSILON;
        let arguments = Arguments::new().address(x).address(self.x.address()).address(self.tokens.address());
        let arguments = arguments.address(self.thresholds.address()).word(head.k).word(self.stride);
        queue.record(arguments.launch(kernels.screen_quantize, [m, 1], (WARPS * 32, 0)))?;

        let arguments = Arguments::new().address(self.x.address()).address(self.quantized.address()).address(self.scales.address());
        let arguments = arguments.address(self.norms.address()).address(self.tokens.address()).address(self.thresholds.address());
        let arguments = arguments.address(out).word(m).word(head.n).word(self.stride).float(rounding);
        queue.record(if m == 1 {
            const ROWS: usize = 4;
            arguments.launch(kernels.screen_one, [head.n.div_ceil(WARPS * ROWS), 1], (WARPS * 32, self.stride))
        } else {
            let variant = (m.min(64).div_ceil(8).next_power_of_two().ilog2()) as usize;
            let grid = [head.n.div_ceil(WARPS * 32), m.div_ceil(8 << variant)];
            arguments.launch(kernels.screen_few[variant], grid, (WARPS * 32, 0))
        })?;

        let arguments = Arguments::new().address(x).address(head.address).address(self.norms.address()).address(self.tokens.address());
        let arguments = arguments.address(self.thresholds.address()).address(out);
        let arguments = arguments.word(head.n).word(head.k).word(head.stride).float(rounding);
        queue.record(arguments.launch(kernels.screen_exact[dtype_number(head.dtype)], [head.n.div_ceil(WARPS * 32), m], (WARPS * 32, 0)))
    }
}

/// An element type as the kernels number it.
pub(crate) fn dtype_number(dtype: DenseType) -> usize {
    match dtype {
        DenseType::F32 => 0,
        DenseType::F16 => 1,
        DenseType::Bf16 => 2,
    }
}
