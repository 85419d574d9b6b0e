//! `Screen`: an int8 copy of a dense head that says which rows can be the largest logit; only those are multiplied exactly
//! (screen.cu has the bound); or, where nobody looks at logits, which row is the largest. Decision 0008 has the idea; what differs is one plane of 8 bits, which a GPU reads at once.

use bitnet_checkpoint::DenseType;
use bitnet_model::device::DeviceError;

use crate::activations::{BLOCK_COLUMNS, TILE_TOKENS};
use crate::driver::{Buffer, Launch};
use crate::kernels::Kernels;
use crate::queue::{Arguments, Queue};

/// Tokens that one screening may take.
const TOKENS_MAX: usize = 256;
const WARPS: usize = 8;
/// Rows of the head that share an upper bound (screen_tiles.cu).
const GROUP_ROWS: usize = 16;

/// Bytes of a row of the head that half a warp multiplies exactly at a time.
const EXACT_BYTES: usize = 2560;

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
    /// int8 tokens, `[TOKENS_MAX, stride]`, or tiles of them and what a block reads beyond the last.
    x: Buffer,
    /// `[TOKENS_MAX, n / GROUP_ROWS]`, where tokens are screened by tiles.
    uppers: Option<Buffer>,
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
            x: queue.zeroed("tokens to screen", TOKENS_MAX * (stride + BLOCK_COLUMNS))?,
            uppers: match kernels.has_tiles {
                true => Some(queue.buffer("tokens to screen", TOKENS_MAX * head.n.div_ceil(GROUP_ROWS) * size_of::<f32>())?),
                false => None,
            },
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
        let tiles = self.uppers.as_ref().filter(|_| m > 1);
        // Twice what the exact sum rounds at most, which covers the rounding of the screened logit.
        let rounding = (head.k as f32 / 16.0 + 32.0) * f32::EPSILON;
        let arguments = Arguments::new().address(x).address(self.x.address()).address(self.tokens.address());
        let arguments = arguments.address(self.thresholds.address()).word(head.k).word(self.stride);
        let arguments = arguments.word(usize::from(tiles.is_some())).word(0);
        queue.record(arguments.launch(kernels.screen_quantize, [m, 1], (WARPS * 32, 0)))?;

        let arguments = Arguments::new().address(self.x.address()).address(self.quantized.address()).address(self.scales.address());
        let arguments = arguments.address(self.norms.address()).address(self.tokens.address()).address(self.thresholds.address());
        let arguments = arguments.address(out).word(m).word(head.n).word(self.stride).float(rounding);
        let uppers = tiles.map_or(0, Buffer::address);
        queue.record(if tiles.is_some() {
            by_tiles(arguments.address(uppers), (m, head.n), kernels)
        } else if m == 1 {
            const ROWS: usize = 4;
            arguments.launch(kernels.screen_one, [head.n.div_ceil(WARPS * ROWS), 1], (WARPS * 32, self.stride))
        } else {
            let variant = (m.min(64).div_ceil(8).next_power_of_two().ilog2()) as usize;
            let grid = [head.n.div_ceil(WARPS * 32), m.div_ceil(8 << variant)];
            arguments.launch(kernels.screen_few[variant], grid, (WARPS * 32, 0))
        })?;

        let arguments = Arguments::new().address(x).address(head.address).address(self.norms.address()).address(self.tokens.address());
        let arguments = arguments.address(self.thresholds.address()).address(out);
        let arguments = arguments.word(head.n).word(head.k).word(head.stride).float(rounding).address(uppers).address(0);
        queue.record(arguments.launch(
            kernels.screen_exact[dtype_number(head.dtype)],
            [head.n.div_ceil(WARPS * 32), m],
            (WARPS * 32, 2 * WARPS * EXACT_BYTES),
        ))
    }
}

/// `screen_tiles` for the fewest tokens a block that take all at once.
fn by_tiles(arguments: Arguments, (m, n): (usize, usize), kernels: &Kernels) -> Launch {
    const ROWS: usize = 128;
    const THREADS: usize = 256;
    /// Tokens of a block and stages of its ring.
    const SHAPES: [(usize, usize); 5] = [(16, 8), (32, 8), (64, 6), (128, 6), (TOKENS_MAX, 3)];
    let variant = SHAPES.iter().position(|(tokens, _)| m <= *tokens).expect("at most TOKENS_MAX are screened");
    let (tokens, n_stages) = SHAPES[variant];
    let shared_bytes = n_stages * tokens.next_multiple_of(TILE_TOKENS) * BLOCK_COLUMNS;
    arguments.word(n_stages).word(0).launch(kernels.screen_tiles[variant], [n.div_ceil(ROWS), 1], (THREADS, shared_bytes))
}

/// If the last thing recorded makes `logits` exact where they may be the largest, takes that back: the launch that finds the largest itself, its key and
/// whether it is damaged at `best`, and leaves no logits.
pub(crate) fn best_behind_screen((logits, n_rows, best): (u64, usize, u64), (queue, kernels): (&mut Queue, &Kernels)) -> Option<Launch> {
    /// Where the exact product has its places in its arguments.
    const OUT: usize = 5;
    const ROWS_AND_COLUMNS: usize = 6;
    const UPPERS: usize = 8;
    const BEST: usize = 9;
    /// Groups that a block looks at, at most, and blocks that are worth it.
    const GROUPS_MAX: usize = 1024;
    const BLOCKS_MIN: usize = 8;
    let mut launch = *queue.last()?;
    let dtype = kernels.screen_exact.iter().position(|kernel| *kernel == launch.kernel)?;
    if launch.arguments[OUT] != logits || launch.arguments[UPPERS] == 0 || launch.grid[1] as usize != n_rows {
        return None;
    }
    queue.take_back();
    let n_groups = (launch.arguments[ROWS_AND_COLUMNS] as u32 as usize).div_ceil(GROUP_ROWS);
    launch.arguments[BEST] = best;
    Some(Launch {
        kernel: kernels.screen_best[dtype],
        grid: [n_groups.div_ceil(GROUPS_MAX).max(BLOCKS_MIN) as u32, n_rows as u32],
        ..launch
    })
}

/// An element type as the kernels number it.
pub(crate) fn dtype_number(dtype: DenseType) -> usize {
    match dtype {
        DenseType::F32 => 0,
        DenseType::F16 => 1,
        DenseType::Bf16 => 2,
    }
}
