//! `CudaLinear`: ternary weights as the products read them, and `bit_linear`: which kernel a shape and a number of tokens get.

use bitnet_checkpoint::config::{Activation, ActivationPolicy};
use bitnet_model::device::DeviceError;
use bitnet_ternary::quantise::{ACTIVATION_GROUP, weight_inverse_scale};
use bitnet_ternary::{Scales, TernaryMatrix};

use crate::activations::{BLOCK_COLUMNS, CudaActivations, Rows};
use crate::driver::{Buffer, Kernel, Launch};
use crate::hidden::CudaHidden;
use crate::kernels::Kernels;
use crate::limits::K_INT8_MAX;
use crate::queue::{Arguments, Queue};
use crate::tiles::{bit_linear_tiles, gate_behind_tiles};

/// Columns of a chunk: one for each lane of a sum.
const CHUNK: usize = 16;
/// Bytes of a block of 256 quantised activations in the shared memory of `bit_linear_one`.
const ONE_BLOCK_BYTES: usize = 320;
/// Most tokens of `bit_linear_few`.
const FEW_TOKENS_MAX: usize = 64;
/// Most tokens for which its narrow blocks are worth their second reading.
const NARROW_TOKENS_MAX: usize = 16;

/// Ternary weights `[n, k]` on the GPU.
pub struct CudaLinear {
    pub(crate) packed: Packed,
    pub(crate) policy: ActivationPolicy,
}

/// Packed weights (pack.cu) and their scales.
pub(crate) struct Packed {
    words: Buffer,
    /// Behind scales of rows or tensors, their inverses.
    scales: Buffer,
    n_scales: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) granularity: Granularity,
}

/// Which weights share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Granularity {
    Tensor,
    Row,
    /// Columns of a group, a multiple of [`CHUNK`] and less than a row.
    Group(usize),
}

impl Granularity {
    /// Scales of a row; 0 if the matrix has one.
    pub(crate) fn n_groups(self, k: usize) -> usize {
        match self {
            Self::Tensor => 0,
            Self::Row => 1,
            Self::Group(size) => k / size,
        }
    }

    /// Columns that share a scale.
    pub(crate) fn size(self, k: usize) -> usize {
        if let Self::Group(size) = self { size } else { k }
    }
}

/// What becomes of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Store {
    Write { first_column: usize },
    Add,
}

impl Packed {
    /// Packs for int8 or f32 rows.
    pub(crate) fn new(
        weights: &TernaryMatrix,
        policy: ActivationPolicy,
        (queue, kernels): (&mut Queue, &Kernels),
    ) -> Result<Self, DeviceError> {
        let (n, k) = (weights.n_rows(), weights.n_cols());
        let refused = |reason: String| DeviceError::Unsupported { what: "a linear layer", reason };
        let (scales, granularity) = match weights.scales() {
            Scales::Tensor(scale) => (std::slice::from_ref(scale), Granularity::Tensor),
            Scales::Row(scales) => (scales.as_slice(), Granularity::Row),
            Scales::Group { group_size, scales } if *group_size == k => (scales.as_slice(), Granularity::Row),
            Scales::Group { group_size, scales } if group_size.is_multiple_of(CHUNK) => {
                (scales.as_slice(), Granularity::Group(*group_size))
            }
            Scales::Group { group_size, .. } => {
                return Err(refused(format!("scales for groups of {group_size} columns; groups must be multiples of {CHUNK}")));
            }
        };
        if policy != ActivationPolicy::Unquantised && k > K_INT8_MAX {
            return Err(refused(format!("{k} in features; at most {K_INT8_MAX}")));
        }
        if u32::try_from(n.max(k)).is_err() {
            return Err(refused(format!("{n} x {k} weights")));
        }
        let row_bytes = TernaryMatrix::row_bytes(k);
        let codes = queue.uploaded("weights as they are stored", weights.codes())?;
        let n_blocks = k.div_ceil(BLOCK_COLUMNS);
        let n_words = n * n_blocks * 16;
        let words = queue.buffer("linear layer", n_words * size_of::<u32>())?;
        let n_scales = scales.len();
        let inverses: Vec<f32> = match granularity {
            Granularity::Group(_) => Vec::new(),
            _ => scales.iter().map(|&scale| weight_inverse_scale(scale)).collect(),
        };
        let scales = queue.uploaded("weight scales", &float_bytes(&[scales, inverses.as_slice()].concat()))?;
        let kernel = match policy {
            ActivationPolicy::Int8PerToken | ActivationPolicy::Int8PerGroup => kernels.pack_int8,
            ActivationPolicy::Unquantised => kernels.pack_f32,
        };
        let arguments = Arguments::new().address(codes.address()).address(words.address()).word(n).word(k).word(row_bytes).word(n_blocks);
        queue.record(arguments.launch(kernel, [n_words.div_ceil(256), 1], (256, 0)))?;
        // The codes are dropped here; waiting frees them before the next layer comes.
        drop(codes);
        queue.wait()?;
        Ok(Self { words, scales, n_scales, n, k, granularity })
    }

    /// Bytes of codes and scales.
    pub(crate) fn size_bytes(&self) -> u64 {
        (self.words.size_bytes() + self.n_scales * size_of::<f32>()) as u64
    }

    pub(crate) fn words(&self) -> u64 {
        self.words.address()
    }

    pub(crate) fn scales(&self) -> u64 {
        self.scales.address()
    }

    fn n_blocks(&self) -> usize {
        self.k.div_ceil(BLOCK_COLUMNS)
    }
}

/// Little-endian bytes.
pub(crate) fn float_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Where a product goes: address of its first column, width of a row, whether it is added.
#[derive(Clone, Copy)]
pub(crate) struct Target {
    pub(crate) address: u64,
    pub(crate) width: usize,
    pub(crate) add: usize,
}

/// Records `x · Wᵀ` into `out`.
pub(crate) fn bit_linear(
    x: &CudaActivations,
    weights: &CudaLinear,
    (out, store): (&mut CudaHidden, Store),
    device: (&mut Queue, &Kernels, usize),
) -> Result<(), DeviceError> {
    let (queue, kernels, n_multiprocessors) = device;
    let packed = &weights.packed;
    assert_eq!(x.width(), packed.k, "activations are as wide as the weights");
    let width = out.width();
    let (first_column, add) = match store {
        Store::Write { first_column } => (first_column, 0),
        Store::Add => (0, 1),
    };
    assert!(first_column + packed.n <= width, "the product fits its columns");
    assert!(store != Store::Add || (packed.n == width && x.n_rows() == out.n_rows()), "the residual is shaped as the product");
    let address = out.address_for_rows(x.n_rows(), queue)? + first_column as u64 * 4;
    let target = Target { address, width, add };
    match (&x.rows, packed.granularity) {
        (Rows::F32(values), _) => {
            assert_eq!(weights.policy, ActivationPolicy::Unquantised, "activations follow the weights' policy");
            let rows = F32Rows { address: values.address(), m: x.n_rows(), stride: x.stride() };
            f32_rows(rows, packed, target, (queue, kernels))
        }
        (Rows::Int8 { quantized, scales, sums, in_groups }, granularity) => {
            let policy = if *in_groups { ActivationPolicy::Int8PerGroup } else { ActivationPolicy::Int8PerToken };
            assert_eq!(weights.policy, policy, "activations follow the weights' policy");
            let rows = [quantized.address(), scales.address(), sums.address()];
            let is_whole = granularity.size(packed.k).is_multiple_of(ACTIVATION_GROUP) || !matches!(granularity, Granularity::Group(_));
            match granularity {
                _ if x.is_tiled() && (is_whole || !*in_groups) && !matches!((granularity, *in_groups), (Granularity::Group(_), false)) => {
                    queue.record(bit_linear_tiles(rows, (x.n_rows(), *in_groups), packed, target, (kernels, n_multiprocessors)))
                }
                _ if *in_groups && is_whole => queue.record(groups(rows, x, packed, target, kernels)),
                Granularity::Group(_) => {
                    let n_activation_groups = if *in_groups { x.n_groups() } else { 0 };
                    queue.record(grouped(rows, (x, n_activation_groups), packed, target, kernels))
                }
                _ if x.n_rows() == 1 => {
                    let source = x.take_back(queue);
                    queue.record(one(source, rows, packed, target, (kernels, n_multiprocessors)))
                }
                _ => queue.record(several(rows, x.n_rows(), packed, target, (kernels, n_multiprocessors))),
            }
        }
    }
}

/// One int8 row.
fn one(source: Option<Arguments>, [quantized, scale, sum]: [u64; 3], packed: &Packed, target: Target, device: (&Kernels, usize)) -> Launch {
    let (kernels, n_multiprocessors) = device;
    let source = source.unwrap_or_else(|| (0..5).fold(Arguments::new(), |none, _| none.address(0)));
    let arguments = source.address(quantized).address(scale).address(sum).address(packed.words()).address(packed.scales());
    let arguments = arguments.address(target.address).address(0).word(packed.n).word(packed.k).word(packed.n_blocks());
    let arguments = arguments.word(usize::from(packed.granularity == Granularity::Row)).word(target.add).word(0);
    let (variant, n_blocks) = one_variant(packed.n, n_multiprocessors);
    arguments.launch(kernels.bit_linear_one[variant], [n_blocks, 1], (ONE_THREADS, one_shared_bytes(packed.k)))
}

const ONE_THREADS: usize = 256;

/// How many threads share a row, as the index of the kernel, and the number of blocks: the fewest threads that occupy the GPU.
fn one_variant(n_rows: usize, n_multiprocessors: usize) -> (usize, usize) {
    let n_blocks = |variant: usize| n_rows.div_ceil((8 >> variant) * (ONE_THREADS / 32));
    let variant = (0..3).find(|&variant| n_blocks(variant) >= n_multiprocessors).unwrap_or(3);
    (variant, n_blocks(variant))
}

fn one_shared_bytes(k: usize) -> usize {
    k.next_multiple_of(4) * size_of::<f32>() + k.div_ceil(BLOCK_COLUMNS) * ONE_BLOCK_BYTES
}

/// If the last thing recorded is the product that `gate` reads whole, records both as one.
pub(crate) fn gate_behind_product(
    gate_up: &CudaHidden,
    (activation, gated): (Activation, u64),
    (queue, kernels, n_multiprocessors): (&mut Queue, &Kernels, usize),
) -> Result<bool, DeviceError> {
    if gate_up.n_rows() > 1 {
        return gate_behind_tiles(gate_up, (activation, gated), (queue, kernels, n_multiprocessors));
    }
    let Some(last) = queue.last().copied() else { return Ok(false) };
    let is_product = kernels.bit_linear_one.contains(&last.kernel);
    let [out, n] = [last.arguments[10], last.arguments[12] & u64::from(u32::MAX)];
    if !is_product || out != gate_up.address() || n != gate_up.width() as u64 || gate_up.n_rows() != 1 {
        return Ok(false);
    }
    queue.take_back();
    let mut arguments = last.arguments;
    arguments[11] = gated;
    arguments[14] |= (activation_number(activation) as u64) << 32;
    let (variant, n_blocks) = one_variant(gate_up.width() / 2, n_multiprocessors);
    queue.record(Launch { kernel: kernels.bit_linear_gate_one[variant], grid: [n_blocks as u32, 1], arguments, ..last })?;
    Ok(true)
}

/// An activation as the kernels number it.
pub(crate) fn activation_number(activation: Activation) -> usize {
    match activation {
        Activation::Relu2 => 0,
        Activation::Silu => 1,
    }
}

/// Two or more int8 rows.
fn several([quantized, scales, sums]: [u64; 3], m: usize, packed: &Packed, target: Target, device: (&Kernels, usize)) -> Launch {
    let (kernels, n_multiprocessors) = device;
    let arguments = Arguments::new().address(quantized).address(scales).address(sums).address(packed.words()).address(packed.scales());
    let arguments = arguments.address(target.address).word(m).word(packed.n).word(packed.n_blocks()).word(target.width);
    let arguments = arguments.word(usize::from(packed.granularity == Granularity::Row)).word(target.add);
    if m > FEW_TOKENS_MAX {
        const TILE: usize = 128;
        const SHARED_BYTES: usize = 2 * (TILE * BLOCK_COLUMNS + TILE * 64);
        return arguments.launch(kernels.bit_linear_many, [packed.n.div_ceil(TILE), m.div_ceil(TILE)], (128, SHARED_BYTES));
    }
    let variant = m.div_ceil(8).next_power_of_two().ilog2() as usize;
    // Wide blocks read activations half as often; narrow ones occupy the GPU where there are few out features and few tokens.
    let is_narrow = m <= NARROW_TOKENS_MAX && packed.n < 64 * n_multiprocessors;
    let (kernel, rows) = if is_narrow { (kernels.bit_linear_few_narrow[variant], 16) } else { (kernels.bit_linear_few[variant], 32) };
    arguments.launch(kernel, [packed.n.div_ceil(rows), 1], (256, 0))
}

/// int8 rows with a scale for each 128 columns, where weight scales are for whole 128s.
fn groups([quantized, scales, sums]: [u64; 3], x: &CudaActivations, packed: &Packed, target: Target, kernels: &Kernels) -> Launch {
    const ROWS: usize = 8;
    let (variant, tokens) = if x.n_rows() == 1 { (0, 1) } else { (1, 8) };
    let n_segments = x.n_groups();
    let n_groups = packed.granularity.n_groups(packed.k);
    let arguments = Arguments::new().address(quantized).address(scales).address(sums).address(packed.words()).address(packed.scales());
    let arguments = arguments.address(target.address).word(x.n_rows()).word(packed.n).word(packed.n_blocks()).word(n_segments);
    let arguments = arguments.word(n_groups).word(packed.granularity.size(packed.k).div_ceil(ACTIVATION_GROUP));
    let arguments = arguments.word(target.width).word(target.add);
    let grid = [packed.n.div_ceil(ROWS), x.n_rows().div_ceil(tokens)];
    arguments.launch(kernels.bit_linear_groups[variant], grid, (256, ROWS * tokens * n_segments * size_of::<f32>()))
}

/// int8 rows with other groups of weights; no activation groups: one scale a row.
fn grouped(
    [quantized, scales, _]: [u64; 3],
    (x, n_activation_groups): (&CudaActivations, usize),
    packed: &Packed,
    target: Target,
    kernels: &Kernels,
) -> Launch {
    const THREADS: usize = 128;
    let size = packed.granularity.size(packed.k);
    let arguments = Arguments::new().address(quantized).address(scales).address(packed.words()).address(packed.scales());
    let arguments = arguments.address(target.address).word(x.n_rows()).word(packed.n).word(packed.n_blocks()).word(packed.k / size);
    let arguments = arguments.word(size / CHUNK).word(n_activation_groups).word(target.width).word(target.add);
    let arguments = arguments.word(usize::from(x.is_tiled())).word(0);
    arguments.launch(kernels.bit_linear_grouped, [packed.n.div_ceil(THREADS), x.n_rows()], (THREADS, 0))
}

/// f32 rows `[m, stride]` at an address.
#[derive(Clone, Copy)]
pub(crate) struct F32Rows {
    pub(crate) address: u64,
    pub(crate) m: usize,
    pub(crate) stride: usize,
}

/// Records f32 rows × packed weights into rows of width `n` at `out`.
pub(crate) fn f32_logits(rows: F32Rows, packed: &Packed, out: u64, device: (&mut Queue, &Kernels)) -> Result<(), DeviceError> {
    f32_rows(rows, packed, Target { address: out, width: packed.n, add: 0 }, device)
}

fn f32_rows(rows: F32Rows, packed: &Packed, target: Target, (queue, kernels): (&mut Queue, &Kernels)) -> Result<(), DeviceError> {
    const WARPS: usize = 8;
    const WARP_ROWS: usize = 16;
    let n_groups = packed.granularity.n_groups(packed.k).max(1);
    let is_split = n_groups >= WARPS;
    let block_rows = if is_split { WARP_ROWS } else { WARP_ROWS * WARPS };
    let (variant, tokens) = if rows.m == 1 { (0, 1) } else { (1, 4) };
    let arguments = Arguments::new().address(rows.address).address(packed.words()).address(packed.scales()).address(target.address);
    let arguments = arguments.word(rows.m).word(packed.n).word(packed.k).word(rows.stride).word(n_groups);
    let arguments = arguments.word(packed.granularity.size(packed.k).div_ceil(CHUNK));
    let arguments = arguments.word(usize::from(packed.granularity == Granularity::Tensor)).word(target.width).word(target.add);
    let arguments = arguments.word(usize::from(is_split));
    let shared_bytes = block_rows * tokens * n_groups * size_of::<f32>();
    if rows.m == 1
        && packed.granularity == Granularity::Group(ACTIVATION_GROUP)
        && packed.k.is_multiple_of(BLOCK_COLUMNS)
        && packed.k <= ONE_F32_COLUMNS_MAX
    {
        return queue.record(one_f32(arguments, packed, n_groups, kernels));
    }
    let kernel: Kernel = kernels.bit_linear_f32[variant];
    queue.record(arguments.launch(kernel, [packed.n.div_ceil(block_rows), rows.m.div_ceil(tokens)], (WARPS * 32, shared_bytes)))
}

/// Widest row of `bit_linear_f32_one`: it lies in shared memory.
const ONE_F32_COLUMNS_MAX: usize = 8192;

/// One f32 row, and groups of 128 columns.
fn one_f32(arguments: Arguments, packed: &Packed, n_groups: usize, kernels: &Kernels) -> Launch {
    const THREADS: usize = 256;
    const BLOCK_ROWS: usize = 32;
    /// About as many as a GPU has at once.
    const BLOCKS: usize = 528;
    let n_turns = packed.n.div_ceil(BLOCK_ROWS).div_ceil(BLOCKS);
    let n_blocks = packed.n.div_ceil(BLOCK_ROWS).div_ceil(n_turns);
    let shared_bytes = (packed.k + BLOCK_ROWS * (n_groups + 1)) * size_of::<f32>();
    arguments.launch(kernels.bit_linear_f32_one, [n_blocks, 1], (THREADS, shared_bytes))
}
