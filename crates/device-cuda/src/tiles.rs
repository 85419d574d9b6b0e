//! Products of tiles of int8 rows (bit_linear_tiles.cu): which kernel and how many blocks a shape gets. The choice is by an estimate of the
//! clock cycles that the fullest multiprocessor works.

use bitnet_checkpoint::config::Activation;
use bitnet_model::device::DeviceError;
use bitnet_ternary::quantise::ACTIVATION_GROUP;

use crate::activations::{BLOCK_COLUMNS, TILE_TOKENS};
use crate::driver::{Kernel, Launch};
use crate::hidden::CudaHidden;
use crate::kernels::Kernels;
use crate::linear::{Packed, Target, activation_number};
use crate::queue::{Arguments, Queue};

const THREADS: usize = 256;
/// Most blocks of a cluster that every Hopper GPU takes, and so the most that share the columns of a product.
const SPLITS_MAX: u32 = 8;
/// Cycles that a tensor core takes for 64 rows × 64 tokens × 256 columns.
const UNIT_CYCLES: usize = 256;
/// Cycles of a block besides its products: start, first loads, stores.
const BLOCK_CYCLES: usize = 2500;
/// Cycles of adding up through a cluster.
const CLUSTER_CYCLES: usize = 3000;
/// Cycles of a stage that is waited for rather than worked on.
const STAGE_CYCLES: usize = 500;
/// The same where no other block works meanwhile.
const ALONE_STAGE_CYCLES: usize = 700;

/// What a kernel takes at a time.
#[derive(Clone, Copy)]
struct Shape {
    kernel: Kernel,
    tokens: usize,
    /// Rows of weights.
    rows: usize,
    /// Blocks that a multiprocessor has at once.
    n_resident: usize,
    /// As the kernel has it.
    n_stages: usize,
    stage_bytes: usize,
}

/// Shared memory that leaves no room for a second block.
const ALONE_BYTES: usize = 120 << 10;

/// What wgmma's swizzle asks for.
const STAGE_ALIGNMENT: usize = 1024;

/// Where a product of tiles stands in its arguments; the gate behind it reads them there.
const OUT: usize = 5;
const ROWS_AND_OUT_FEATURES: usize = 6;
const BLOCKS_AND_WIDTH: usize = 7;
const ADD_AND_ACTIVATION: usize = 9;
const SPLITS: usize = 10;

/// `tokens` tokens a block of a plain product: fewer rows and stages where two blocks share a multiprocessor.
fn plain(kernels: &Kernels, index: usize) -> Shape {
    let (tokens, rows, n_resident, n_stages) =
        [(16, 128, 2, 8), (32, 128, 2, 8), (64, 128, 2, 6), (128, 256, 1, 6), (160, 128, 1, 5)][index];
    Shape { kernel: kernels.bit_linear_tiles[index], tokens, rows, n_resident, n_stages, stage_bytes: stage_bytes(tokens) }
}

fn gated(kernels: &Kernels, index: usize) -> Shape {
    let (tokens, rows, n_stages) = [(16, 128, 8), (32, 128, 8), (64, 128, 8), (128, 256, 6)][index];
    Shape { kernel: kernels.bit_linear_tiles_gate[index], tokens, rows, n_resident: 1, n_stages, stage_bytes: stage_bytes(tokens) }
}

fn grouped(kernels: &Kernels, index: usize) -> Shape {
    let tokens = [16, 32, 64][index];
    let stage_bytes = stage_bytes(tokens) + tokens.div_ceil(TILE_TOKENS) * TILE_TOKENS * 2 * 2 * size_of::<f32>();
    let stage_bytes = stage_bytes.next_multiple_of(STAGE_ALIGNMENT);
    Shape { kernel: kernels.bit_linear_tiles_groups[index], tokens, rows: 128, n_resident: 2, n_stages: 6, stage_bytes }
}

fn stage_bytes(tokens: usize) -> usize {
    tokens.next_multiple_of(TILE_TOKENS) * BLOCK_COLUMNS
}

/// A kernel, the blocks for rows of weights and for tokens, and the blocks that share columns.
#[derive(Clone, Copy)]
struct Plan {
    shape: Shape,
    grid: [usize; 2],
    n_splits: u32,
}

impl Plan {
    fn n_blocks(&self) -> usize {
        self.grid[0] * self.grid[1] * self.n_splits as usize
    }

    /// Whether each block gets a multiprocessor.
    fn fits_alone(&self, n_multiprocessors: usize) -> bool {
        self.n_blocks() <= n_multiprocessors
    }

    fn cycles(&self, n_blocks: usize, n_multiprocessors: usize) -> usize {
        // Quarters of what all multiprocessors take at once. Blocks that share columns are short: one ends where the next begins.
        let (n_resident, waited_for) =
            if self.fits_alone(n_multiprocessors) { (1, ALONE_STAGE_CYCLES) } else { (self.shape.n_resident, STAGE_CYCLES) };
        let n_quarters = (4 * self.n_blocks()).div_ceil(n_multiprocessors * n_resident);
        let n_quarters = if self.n_splits > 1 { n_quarters.max(4) } else { n_quarters.next_multiple_of(4) };
        let units = (self.shape.rows / 64) * self.shape.tokens.div_ceil(8) * n_resident;
        let of_stage = (units * UNIT_CYCLES / 8).max(waited_for);
        let clustering = if self.n_splits > 1 { CLUSTER_CYCLES } else { 0 };
        n_quarters * (n_blocks.div_ceil(self.n_splits as usize) * of_stage + BLOCK_CYCLES + clustering) / 4
    }

    /// The fastest of `shapes` for `m` tokens, by the estimate.
    fn best(shapes: &[Shape], [m, n, n_blocks]: [usize; 3], (n_splits_max, n_multiprocessors): (u32, usize)) -> Self {
        let splits = || (0..=n_splits_max.ilog2()).map(|power| 1 << power);
        let fits =
            |n_splits: &u32| *n_splits as usize <= n_blocks && n_blocks.div_ceil(*n_splits as usize) * (*n_splits as usize - 1) < n_blocks;
        let plan = |&shape: &Shape, n_splits| Plan { shape, grid: [n.div_ceil(shape.rows), m.div_ceil(shape.tokens)], n_splits };
        let plans = shapes.iter().flat_map(|shape| splits().filter(fits).map(move |n_splits| plan(shape, n_splits)));
        plans.min_by_key(|plan| plan.cycles(n_blocks, n_multiprocessors)).expect("there is a shape")
    }

    fn launch(&self, arguments: Arguments, n_multiprocessors: usize) -> Launch {
        let shared_bytes = self.shape.n_stages * self.shape.stage_bytes;
        let [rows, tokens] = self.grid;
        // Blocks of a cluster would share a multiprocessor while others have nothing to do.
        let shared_bytes = if self.fits_alone(n_multiprocessors) { shared_bytes.max(ALONE_BYTES) } else { shared_bytes };
        let launch = arguments.launch(self.shape.kernel, [rows, tokens * self.n_splits as usize], (THREADS, shared_bytes));
        Launch { cluster: self.n_splits, ..launch }
    }
}

/// The shapes worth a look for `m` tokens: the smallest that takes all at once, or those from `first_large` on.
fn candidates(all: &[Shape], m: usize, first_large: usize) -> &[Shape] {
    match all.iter().position(|shape| m <= shape.tokens) {
        Some(index) if m <= 64 => &all[index..=index],
        _ => &all[first_large..],
    }
}

/// A product whose activations and weights have scales for rows or tensors, `in_groups`: for 128 columns.
pub(crate) fn bit_linear_tiles(
    [quantized, scales, sums]: [u64; 3],
    (m, in_groups): (usize, bool),
    packed: &Packed,
    target: Target,
    (kernels, n_multiprocessors): (&Kernels, usize),
) -> Launch {
    let n_blocks = packed.k.div_ceil(BLOCK_COLUMNS);
    let plan = if in_groups {
        let shapes = [0, 1, 2].map(|index| grouped(kernels, index));
        Plan::best(candidates(&shapes, m, 2), [m, packed.n, n_blocks], (1, n_multiprocessors))
    } else {
        let shapes = [0, 1, 2, 3, 4].map(|index| plain(kernels, index));
        Plan::best(candidates(&shapes, m, 2), [m, packed.n, n_blocks], (SPLITS_MAX, n_multiprocessors))
    };
    let arguments = Arguments::new().address(quantized).address(scales).address(sums).address(packed.words()).address(packed.scales());
    let arguments = arguments.address(target.address).word(m).word(packed.n).word(n_blocks).word(target.width);
    let arguments =
        arguments.word(packed.granularity.n_groups(packed.k)).word(packed.granularity.size(packed.k).div_ceil(ACTIVATION_GROUP));
    let arguments = arguments.word(target.add).word(0).word(plan.n_splits as usize).word(0);
    plan.launch(arguments, n_multiprocessors)
}

/// If the last thing recorded is the product that `gate` reads whole, records both as one; the product itself is then not stored.
pub(crate) fn gate_behind_tiles(
    gate_up: &CudaHidden,
    (activation, gated_address): (Activation, u64),
    (queue, kernels, n_multiprocessors): (&mut Queue, &Kernels, usize),
) -> Result<bool, DeviceError> {
    let Some(last) = queue.last().copied() else { return Ok(false) };
    let halves = |index: usize| [last.arguments[index] as u32 as usize, (last.arguments[index] >> 32) as usize];
    let ([m, n], [n_blocks, width]) = (halves(ROWS_AND_OUT_FEATURES), halves(BLOCKS_AND_WIDTH));
    let is_product = kernels.bit_linear_tiles.contains(&last.kernel);
    if !is_product || last.arguments[OUT] != gate_up.address() || n != width || width != gate_up.width() || m != gate_up.n_rows() {
        return Ok(false);
    }
    queue.take_back();
    let shapes = [0, 1, 2, 3].map(|index| gated(kernels, index));
    let plan = Plan::best(candidates(&shapes, m, 3), [m, n, n_blocks], (SPLITS_MAX, n_multiprocessors));
    let launch = plan.launch(Arguments::new(), n_multiprocessors);
    let mut arguments = last.arguments;
    arguments[OUT] = gated_address;
    arguments[BLOCKS_AND_WIDTH] = n_blocks as u64 | ((n / 2) as u64) << 32;
    arguments[ADD_AND_ACTIVATION] = (activation_number(activation) as u64) << 32;
    arguments[SPLITS] = u64::from(plan.n_splits);
    queue.record(Launch { arguments, ..launch })?;
    Ok(true)
}
