//! `CudaActivations`: what a linear layer reads — int8 rows with their scales and sums, or f32 rows — and `norm_quantize`, which makes
//! them. Rows are filled with zeros to whole blocks of 256 columns, so that products have no tails.

use bitnet_checkpoint::config::ActivationPolicy;
use bitnet_model::device::{DeviceError, Norm};
use bitnet_ternary::quantise::ACTIVATION_GROUP;

use crate::device::CudaVector;
use crate::driver::{Buffer, Kernel, Launch};
use crate::hidden::CudaHidden;
use crate::kernels::Kernels;
use crate::queue::{Arguments, Queue};

/// Columns of a block of packed weights.
pub(crate) const BLOCK_COLUMNS: usize = 256;
/// Tokens of a tile of activations (mma.cuh).
pub(crate) const TILE_TOKENS: usize = 32;
/// Most tokens of a block of a product of tiles.
const TOKENS_AT_ONCE_MAX: usize = 160;
const THREADS: usize = 512;
const NARROW_THREADS: usize = 128;
/// Rows that occupy every multiprocessor with wide blocks.
const NARROW_ROWS_MIN: usize = 512;

/// From how many rows on products of tiles are faster than the others.
const fn tiled_rows_min(in_groups: bool) -> usize {
    if in_groups { 2 } else { 17 }
}

/// Activations `[m, k]`, at most as many and as wide as were asked for.
pub struct CudaActivations {
    pub(crate) rows: Rows,
    n_rows_max: usize,
    width_max: usize,
    n_rows: usize,
    width: usize,
    /// Whether int8 rows lie in tiles (mma.cuh), for products on Hopper's tensor cores.
    is_tiled: bool,
    /// How these rows were asked for: a product of one row does that itself if nothing has come between.
    recipe: Option<Recipe>,
}

/// Rows on the GPU.
pub(crate) enum Rows {
    /// int8 `[m, stride]` with sums of the integers: one sum and one inverse scale a row, or in groups of [`ACTIVATION_GROUP`] columns sums and
    /// scales `[m, n_groups]`.
    Int8 { quantized: Buffer, scales: Buffer, sums: Buffer, in_groups: bool },
    /// f32 `[m, stride]`.
    F32(Buffer),
}

/// The launch that makes the rows, and the arguments of it that say from what.
#[derive(Clone, Copy)]
struct Recipe {
    launch: Launch,
    source: Arguments,
}

impl CudaActivations {
    pub(crate) fn new(queue: &mut Queue, n_rows_max: usize, width_max: usize, policy: ActivationPolicy) -> Result<Self, DeviceError> {
        // Whole tiles, so that either way of laying rows out fits.
        let (n_rows, n_blocks) = (n_rows_max.next_multiple_of(TILE_TOKENS), width_max.div_ceil(BLOCK_COLUMNS));
        let n = n_rows.saturating_mul(n_blocks * BLOCK_COLUMNS);
        let rows = match policy {
            ActivationPolicy::Int8PerToken | ActivationPolicy::Int8PerGroup => {
                let in_groups = policy == ActivationPolicy::Int8PerGroup;
                // Products of many tokens read whole blocks of tokens, of which the last may reach beyond the end.
                let n_rows_read = n_rows.saturating_add(TOKENS_AT_ONCE_MAX);
                let n_scales = n_rows_read.saturating_mul(if in_groups { n_blocks * BLOCK_COLUMNS / ACTIVATION_GROUP } else { 1 });
                Rows::Int8 {
                    quantized: queue.zeroed("activations", n.saturating_add(TOKENS_AT_ONCE_MAX * BLOCK_COLUMNS))?,
                    scales: queue.zeroed("activation scales", n_scales.saturating_mul(size_of::<f32>()))?,
                    sums: queue.zeroed("activation sums", n_scales.saturating_mul(size_of::<i32>()))?,
                    in_groups,
                }
            }
            ActivationPolicy::Unquantised => Rows::F32(queue.zeroed("activations", n.saturating_mul(size_of::<f32>()))?),
        };
        Ok(Self { rows, n_rows_max, width_max, n_rows: 0, width: 0, is_tiled: false, recipe: None })
    }

    pub(crate) fn n_rows(&self) -> usize {
        self.n_rows
    }

    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// Whether int8 rows lie in tiles.
    pub(crate) fn is_tiled(&self) -> bool {
        self.is_tiled
    }

    /// Groups of a row that have their own scales; 0 where the row has one inverse scale.
    pub(crate) fn n_groups(&self) -> usize {
        match self.rows {
            Rows::Int8 { in_groups: true, .. } => self.width.div_ceil(ACTIVATION_GROUP),
            _ => 0,
        }
    }

    /// Columns from one row to the next.
    pub(crate) fn stride(&self) -> usize {
        self.width.next_multiple_of(BLOCK_COLUMNS)
    }

    /// Records norms and quantisation of the rows of `x` into this.
    pub(crate) fn fill(
        &mut self,
        x: &CudaHidden,
        norms: &[Norm<CudaVector>],
        (queue, kernels): (&mut Queue, &Kernels),
    ) -> Result<(), DeviceError> {
        let (n_rows, width) = (x.n_rows(), x.width());
        let (rows_max, width_max) = (self.n_rows_max, self.width_max);
        assert!(n_rows <= rows_max && width <= width_max, "{n_rows} x {width} activations in room for {rows_max} x {width_max}");
        (self.n_rows, self.width) = (n_rows, width);
        let layout = match &self.rows {
            Rows::Int8 { in_groups, .. } if kernels.has_tiles && n_rows >= tiled_rows_min(*in_groups) => 1,
            _ => 0,
        };
        self.is_tiled = layout != 0;
        let source = norm_arguments(Arguments::new().address(x.address()), norms, width);
        let arguments = match &self.rows {
            Rows::Int8 { quantized, scales, sums, .. } => {
                source.address(quantized.address()).address(0).address(scales.address()).address(sums.address())
            }
            Rows::F32(values) => source.address(0).address(values.address()).address(0).address(0),
        };
        let arguments = arguments.word(width).word(self.stride()).word(self.n_groups()).word(layout).word(n_rows).word(0);
        let in_rows = matches!(self.rows, Rows::Int8 { in_groups: false, .. });
        let launch = match by_pieces(n_rows, width, kernels).filter(|_| in_rows) {
            Some((kernel, grid, threads)) => arguments.launch(kernel, [grid, 1], (threads, 0)),
            None => {
                let is_wide = n_rows < NARROW_ROWS_MIN;
                let (kernel, threads) =
                    if is_wide { (kernels.norm_quantize, THREADS) } else { (kernels.norm_quantize_narrow, NARROW_THREADS) };
                arguments.launch(kernel, [n_rows, 1], (threads, width * size_of::<f32>()))
            }
        };
        self.recipe = Some(Recipe { launch, source });
        queue.record(launch)
    }

    /// If making these rows is the last thing recorded, takes that back: the arguments that say from what they are made.
    pub(crate) fn take_back(&self, queue: &mut Queue) -> Option<Arguments> {
        let recipe = self.recipe?;
        if queue.last() != Some(&recipe.launch) {
            return None;
        }
        queue.take_back();
        Some(recipe.source)
    }
}

/// The kernel that keeps rows in registers, its blocks and their threads, for `n_rows` rows of `width`, if one does: where there are many rows, several are
/// to share a multiprocessor.
fn by_pieces(n_rows: usize, width: usize, kernels: &Kernels) -> Option<(Kernel, usize, usize)> {
    const COLUMNS: usize = 16;
    const ROWS_OF_WARPS: usize = 4;
    if n_rows < 2 || !width.is_multiple_of(64) {
        return None;
    }
    let n_pieces = width.next_multiple_of(BLOCK_COLUMNS) / COLUMNS;
    let [warps, four_warps, sixteen_warps] = kernels.norm_quantize_many;
    if n_rows >= NARROW_ROWS_MIN {
        return match n_pieces {
            ..=160 => Some((warps, n_rows.div_ceil(ROWS_OF_WARPS), ROWS_OF_WARPS * 32)),
            161..=512 => Some((four_warps, n_rows, 128)),
            513..=1024 => Some((sixteen_warps, n_rows, 512)),
            _ => None,
        };
    }
    (n_pieces <= 1024).then_some((kernels.norm_quantize_pieces, n_rows, n_pieces.next_multiple_of(32)))
}

/// The kernels' `Norms`.
pub(crate) fn norm_arguments(arguments: Arguments, norms: &[Norm<CudaVector>], width: usize) -> Arguments {
    assert!(norms.len() <= 2, "one or two norms before a projection, got {}", norms.len());
    assert!(norms.iter().all(|norm| norm.weight.len() == width), "norms are as wide as the rows");
    let address = |index: usize| norms.get(index).map_or(0, |norm| norm.weight.address());
    let epsilon = |index: usize| norms.get(index).map_or(0.0, |norm| norm.epsilon);
    arguments.address(address(0)).address(address(1)).float(epsilon(0)).float(epsilon(1)).word(norms.len()).word(0)
}
