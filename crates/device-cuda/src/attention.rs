//! `CudaKvCache`, and the operations that read and write it: `rope_append` and `attention`. What they need of a step goes to the GPU
//! once for all layers.

use bitnet_model::batch::Step;
use bitnet_model::device::{DeviceError, Heads, KvLayout, KvType};
use bitnet_model::limits::BLOCK_TOKENS;

use crate::device::CudaVector;
use crate::driver::{Buffer, GpuDescription, Kernel, Launch};
use crate::hidden::CudaHidden;
use crate::kernels::Kernels;
use crate::limits::{ATTENTION_WINDOW, HEAD_DIM_MAX, SPLIT_ROWS_MAX};
use crate::queue::{Arguments, Queue};

/// Floats of a tile of values in shared memory.
const TILE_FLOATS: usize = 8192;

/// Keys and values of all layers, `[n_layers, n_blocks, n_kv_heads, BLOCK_TOKENS, head_dim]` each, f32 or f16.
pub struct CudaKvCache {
    keys: Buffer,
    values: Buffer,
    layout: KvLayout,
}

impl CudaKvCache {
    pub(crate) fn new(queue: &mut Queue, layout: KvLayout) -> Result<Self, DeviceError> {
        if layout.head_dim > HEAD_DIM_MAX {
            let reason = format!("heads of {}; at most {HEAD_DIM_MAX}", layout.head_dim);
            return Err(DeviceError::Unsupported { what: "a KV cache", reason });
        }
        if layout.kv_type == KvType::Int8 {
            let reason = "keys and values of type int8; f32 and f16 are known".to_owned();
            return Err(DeviceError::Unsupported { what: "a KV cache", reason });
        }
        let sizes = [layout.n_layers, layout.n_blocks, layout.n_kv_heads, BLOCK_TOKENS, layout.head_dim, number_bytes(layout.kv_type)];
        let size_bytes = sizes.into_iter().fold(1usize, usize::saturating_mul);
        if u32::try_from(layout.n_blocks.saturating_mul(BLOCK_TOKENS)).is_err() {
            return Err(DeviceError::OutOfMemory { what: "KV cache", size_bytes });
        }
        Ok(Self { keys: queue.zeroed("KV cache", size_bytes)?, values: queue.zeroed("KV cache", size_bytes)?, layout })
    }

    /// Bytes of keys and values.
    pub(crate) fn size_bytes(&self) -> u64 {
        (self.keys.size_bytes() + self.values.size_bytes()) as u64
    }

    /// Keys and values of a layer.
    fn of_layer(&self, layer: usize) -> [u64; 2] {
        let layout = self.layout;
        assert!(layer < layout.n_layers, "layer {layer} of {}", layout.n_layers);
        let offset = layer * layout.n_blocks * layout.n_kv_heads * BLOCK_TOKENS * layout.head_dim * number_bytes(layout.kv_type);
        [self.keys.address() + offset as u64, self.values.address() + offset as u64]
    }
}

fn number_bytes(kv_type: KvType) -> usize {
    match kv_type {
        KvType::F32 => 4,
        KvType::F16 => 2,
        KvType::Int8 => 1,
    }
}

/// A cache's type as the kernels number it.
fn type_number(kv_type: KvType) -> usize {
    match kv_type {
        KvType::F32 => 0,
        KvType::F16 => 1,
        KvType::Int8 => unreachable!("CudaKvCache::new refuses it"),
    }
}

/// Of a step all that launches depend on: steps of one shape are recorded as the same launches, whose data is staged at the same places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StepShape {
    n_tokens: usize,
    n_single: usize,
    by_wgmma: [bool; 3],
    n_runs: [usize; 3],
    n_mma_runs: [usize; 3],
    n_blocks: usize,
    n_positions_max: usize,
    n_rows: usize,
}

impl StepShape {
    /// `has_wgmma`: whether `attention_wgmma` runs on this GPU.
    pub(crate) fn new(step: &Step, has_wgmma: bool) -> Self {
        let lengths = || step.sequences.chunk_by(|a, b| a == b).map(<[usize]>::len);
        let n_tokens_max = lengths().max().unwrap_or(0);
        let by_wgmma = [0, 1, 2].map(|variant| by_wgmma(has_wgmma, n_tokens_max, variant));
        let n_runs = |n_rows: &dyn Fn(usize) -> usize| {
            [0, 1, 2].map(|variant| lengths().filter(|n| *n > 1).map(|n| n.div_ceil(n_rows(variant) >> variant)).sum())
        };
        Self {
            n_tokens: step.n_tokens(),
            n_single: lengths().filter(|n| *n == 1).count(),
            by_wgmma,
            n_runs: n_runs(&|_| TILE_ROWS),
            n_mma_runs: n_runs(&|variant| mma_rows(by_wgmma[variant])),
            n_blocks: n_blocks_of_room(step),
            n_positions_max: n_positions_of_room(step),
            n_rows: step.output_tokens.len(),
        }
    }
}

/// Room for all block tables: a power of two, so that what is staged behind them moves seldom, and a step's launches stay the same from token to
/// token.
fn n_blocks_of_room(step: &Step) -> usize {
    step.block_tables.iter().map(Vec::len).sum::<usize>().next_power_of_two()
}

/// Positions that the longest reach sees, rounded up: to a power of two if all tokens stand alone, for the same reason, and otherwise as far
/// as no launch is larger for it.
fn n_positions_of_room(step: &Step) -> usize {
    const TILE: usize = 64;
    let n = step.positions.iter().max().map_or(0, |&position| position + 1);
    if step.sequences.windows(2).any(|pair| pair[0] == pair[1]) { n.next_multiple_of(TILE) } else { n.next_power_of_two() }
}

/// What the kernels need of a step, on the GPU.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StagedStep {
    n_tokens: usize,
    /// `[m, head_dim / 2]` each.
    cos: u64,
    sin: u64,
    /// `[m]`: block · BLOCK_TOKENS + row of the token's slot.
    slots: u64,
    /// `[m]`.
    positions: u64,
    /// `[m]`: where the token's block table begins in `blocks`.
    table_starts: u64,
    blocks: u64,
    n_positions_max: usize,
    /// Tokens that stand alone in their sequence, `[n_single]`.
    single: u64,
    n_single: usize,
    /// 0..n_tokens.
    all: u64,
    /// Runs of up to [`TILE_ROWS`] tokens of one sequence, `[n_runs, 2]`: first token, number of tokens. Of several lengths, by how many
    /// query heads share keys: 1, 2, 4.
    runs: [(u64, usize); 3],
    /// Likewise of up to [`MMA_ROWS`], or [`WGMMA_ROWS`] where the longest has more rows than the former.
    mma_runs: [(u64, usize); 3],
    /// Tokens of the longest run.
    n_tokens_max: usize,
    has_wgmma: bool,
}

/// Rows of `attention_tile`: query heads that share keys, times tokens.
const TILE_ROWS: usize = 16;
/// Rows of `attention_mma_prompt`.
const MMA_ROWS: usize = 64;
/// Rows of `attention_wgmma`.
const WGMMA_ROWS: usize = 128;

impl StagedStep {
    /// `has_wgmma`: whether `attention_wgmma` runs on this GPU.
    pub(crate) fn new(step: &Step, has_wgmma: bool, queue: &mut Queue) -> Result<Self, DeviceError> {
        let n_tokens = step.n_tokens();
        let (cos, sin) = step.rope.all();
        let slot = |token| {
            let (block, row) = step.slot(token);
            block.0 * BLOCK_TOKENS as u32 + row as u32
        };
        let n_blocks_of_room = n_blocks_of_room(step);
        let mut n_blocks = 0;
        let starts = step.block_tables.iter().map(|table| {
            let start = n_blocks as u32;
            n_blocks += table.len();
            start
        });
        let starts: Vec<u32> = starts.collect();
        let lengths: Vec<usize> = step.sequences.chunk_by(|a, b| a == b).map(<[usize]>::len).collect();
        let firsts = lengths.iter().scan(0, |next, length| {
            *next += length;
            Some(*next - length)
        });
        let sequences: Vec<(usize, usize)> = firsts.zip(lengths.iter().copied()).collect();
        let single: Vec<u32> = sequences.iter().filter(|(_, n)| *n == 1).map(|&(first, _)| first as u32).collect();
        let n_single = single.len();
        let n_tokens_max = lengths.iter().copied().max().unwrap_or(0);
        let mut stage_runs = |n_rows: &dyn Fn(usize) -> usize| -> Result<[(u64, usize); 3], DeviceError> {
            let mut runs = [(0, 0); 3];
            for (variant, runs) in runs.iter_mut().enumerate() {
                let cut = cut_runs(&sequences, n_rows(variant) >> variant);
                *runs = (queue.stage(cut.iter().copied())?, cut.len() / 2);
            }
            Ok(runs)
        };
        let runs = stage_runs(&|_| TILE_ROWS)?;
        let mma_runs = stage_runs(&|variant| mma_rows(by_wgmma(has_wgmma, n_tokens_max, variant)))?;
        Ok(Self {
            single: queue.stage(single.into_iter())?,
            n_single,
            all: queue.stage((0..n_tokens).map(|token| token as u32))?,
            runs,
            mma_runs,
            n_tokens_max,
            has_wgmma,
            n_tokens,
            cos: queue.stage(cos.iter().map(|value| value.to_bits()))?,
            sin: queue.stage(sin.iter().map(|value| value.to_bits()))?,
            slots: queue.stage((0..n_tokens).map(slot))?,
            positions: queue.stage(step.positions.iter().map(|&position| position as u32))?,
            table_starts: queue.stage(step.sequences.iter().map(|&sequence| starts[sequence]))?,
            blocks: queue.stage(Tables { tables: &step.block_tables, n: n_blocks_of_room }.into_vec().into_iter())?,
            n_positions_max: n_positions_of_room(step),
        })
    }
}

/// Whether runs of up to `n_tokens_max` tokens go to `attention_wgmma`, where a run's heads that share keys are `1 << variant` rows a token: two warpgroups
/// for the rows of one are slower.
const fn by_wgmma(has_wgmma: bool, n_tokens_max: usize, variant: usize) -> bool {
    has_wgmma && n_tokens_max << variant > MMA_ROWS
}

const fn mma_rows(by_wgmma: bool) -> usize {
    if by_wgmma { WGMMA_ROWS } else { MMA_ROWS }
}

/// Runs of at most `n_max` tokens of sequences (first token, number) that have more than one, the longest reach first: it takes longest.
fn cut_runs(sequences: &[(usize, usize)], n_max: usize) -> Vec<u32> {
    let several = sequences.iter().filter(|(_, n)| *n > 1);
    let cut = several.flat_map(|&(first, n)| (0..n).step_by(n_max).map(move |start| [(first + start) as u32, n_max.min(n - start) as u32]));
    let mut runs: Vec<[u32; 2]> = cut.collect();
    runs.reverse();
    runs.into_flattened()
}

/// Block tables one after another, filled up to `n`.
struct Tables<'a> {
    tables: &'a [Vec<bitnet_model::batch::BlockId>],
    n: usize,
}

impl Tables<'_> {
    fn into_vec(self) -> Vec<u32> {
        let mut blocks: Vec<u32> = self.tables.iter().flatten().map(|block| block.0).collect();
        blocks.resize(self.n, 0);
        blocks
    }
}

/// Records `rope_append`.
pub(crate) fn rope_append(
    qkv: &mut CudaHidden,
    heads: &Heads<'_, CudaVector>,
    step: &StagedStep,
    (cache, layer): (&CudaKvCache, usize),
    (queue, kernels): (&mut Queue, &Kernels),
) -> Result<(), DeviceError> {
    check_heads(qkv, heads, step, cache);
    let n_heads = heads.n_heads + 2 * heads.n_kv_heads;
    let [keys, values] = cache.of_layer(layer);
    let (q_norm, k_norm) = heads.qk_norms.unzip();
    let norm = |norm: Option<&CudaVector>| norm.map_or(0, CudaVector::address);
    let arguments = Arguments::new().address(qkv.address_for_rows(step.n_tokens, queue)?).address(norm(q_norm)).address(norm(k_norm));
    let arguments = arguments.address(keys).address(values).address(step.cos).address(step.sin).address(step.slots);
    let arguments = arguments.word(heads.n_heads).word(heads.n_kv_heads).word(heads.head_dim).float(heads.epsilon).word(0).word(0);
    queue.record(arguments.launch(
        kernels.rope_append[type_number(cache.layout.kv_type)],
        [step.n_tokens, n_heads.div_ceil(ROPE_WARPS)],
        (ROPE_WARPS * 32, 0),
    ))
}

/// Heads of a block of `rope_append`.
const ROPE_WARPS: usize = 8;

/// If the last thing recorded rotates the heads of `qkv` and they have no norms, takes that back: attention is to do it.
fn take_back_rope(qkv: &CudaHidden, heads: &Heads<'_, CudaVector>, (queue, kernels): (&mut Queue, &Kernels)) -> Option<Launch> {
    let last = *queue.last()?;
    let is_rope = kernels.rope_append.contains(&last.kernel) && last.arguments[0] == qkv.address() && heads.qk_norms.is_none();
    if is_rope {
        queue.take_back();
    }
    is_rope.then_some(last)
}

/// `rope_append` for keys and values alone.
fn without_queries(rope: Launch, heads: &Heads<'_, CudaVector>) -> Launch {
    /// Where its arguments have the first head.
    const FIRST_HEAD: usize = 10;
    let mut arguments = rope.arguments;
    arguments[FIRST_HEAD] = heads.n_heads as u64;
    Launch { arguments, grid: [rope.grid[0], (2 * heads.n_kv_heads).div_ceil(ROPE_WARPS) as u32], ..rope }
}

/// Records `attention`: on the tensor cores where the cache holds halves and heads are of 64 or 128, and otherwise in the reference's order,
/// prompts by tiles, tokens that stand alone one by one.
pub(crate) fn attention(
    (qkv, out): (&CudaHidden, &mut CudaHidden),
    heads: &Heads<'_, CudaVector>,
    step: &StagedStep,
    cache: (&CudaKvCache, usize),
    device: (&mut Queue, &Kernels, &GpuDescription, &mut Option<SplitRoom>),
) -> Result<(), DeviceError> {
    check_heads(qkv, heads, step, cache.0);
    let (queue, kernels, gpu, split_room) = device;
    let dim = heads.head_dim;
    assert_eq!(out.width(), heads.n_heads * dim, "a row of all query heads");
    let [keys, values] = cache.0.of_layer(cache.1);
    let out = out.address_for_rows(step.n_tokens, queue)?;
    let arguments = Arguments::new().address(qkv.address()).address(keys).address(values).address(out);
    let arguments = arguments.address(step.positions).address(step.table_starts).address(step.blocks);
    let tile = match dim {
        64 => Some(0),
        128 => Some(1),
        _ => None,
    };
    let (sharing, kv_type) = (heads.n_heads / heads.n_kv_heads, cache.0.layout.kv_type);
    match tile {
        Some(tile) if kv_type == KvType::F16 => {
            let room = match split_room {
                Some(room) => room,
                None => split_room.insert(SplitRoom::new(queue)?),
            };
            on_tensor_cores(arguments, (qkv, heads), (step, room), (queue, kernels, gpu.n_multiprocessors), tile)
        }
        Some(tile) => {
            let variant = (0..3).rev().find(|variant| sharing.is_multiple_of(1 << variant)).expect("one head a block always fits");
            let (runs, n_runs) = step.runs[variant];
            if n_runs > 0 {
                let arguments = arguments.address(runs);
                let grid = [heads.n_heads >> variant, n_runs];
                queue.record(by_tiles(
                    arguments,
                    heads,
                    (step, gpu.shared_bytes_max, kv_type),
                    (kernels.attention_tile[tile][type_number(kv_type)][variant], grid),
                ))?;
            }
            match step.n_single {
                0 => Ok(()),
                n => queue.record(one_by_one(arguments.address(step.single), heads, (step, n, kv_type), (kernels, gpu.n_multiprocessors))),
            }
        }
        None => {
            let all = step.all;
            queue.record(one_by_one(arguments.address(all), heads, (step, step.n_tokens, kv_type), (kernels, gpu.n_multiprocessors)))
        }
    }
}

/// Where blocks that share a token's positions leave what they found.
pub(crate) struct SplitRoom {
    /// `[SPLIT_ROWS_MAX, HEAD_DIM_OF_SPLITS + 2]`.
    partials: Buffer,
    /// `[SPLIT_ROWS_MAX]`, zero between launches.
    n_arrived: Buffer,
}

impl SplitRoom {
    fn new(queue: &mut Queue) -> Result<Self, DeviceError> {
        const HEAD_DIM_OF_SPLITS: usize = 128;
        let partials = queue.buffer("splits of attention", SPLIT_ROWS_MAX * (HEAD_DIM_OF_SPLITS + 2) * size_of::<f32>())?;
        Ok(Self { partials, n_arrived: queue.zeroed("splits of attention", SPLIT_ROWS_MAX * size_of::<u32>())? })
    }
}

/// Heads of 64 (`tile` 0) or 128 (1) over halves.
fn on_tensor_cores(
    arguments: Arguments,
    (qkv, heads): (&CudaHidden, &Heads<'_, CudaVector>),
    (step, room): (&StagedStep, &SplitRoom),
    (queue, kernels, n_multiprocessors): (&mut Queue, &Kernels, usize),
    tile: usize,
) -> Result<(), DeviceError> {
    const THREADS: usize = 128;
    const TILE: usize = 64;
    const SPLIT: usize = 256;
    const RING: usize = 2;
    let dim = heads.head_dim;
    let tile_bytes = TILE * dim * size_of::<u16>();
    let variant = (0..3).rev().find(|variant| (heads.n_heads / heads.n_kv_heads).is_multiple_of(1 << variant)).expect("one head fits");
    let n_groups = heads.n_heads >> variant;
    let scale = std::f32::consts::LOG2_E / (dim as f32).sqrt();
    let arguments = |tokens, n_splits| {
        let arguments = arguments.address(tokens).address(room.partials.address()).address(room.n_arrived.address());
        arguments.word(heads.n_heads).word(heads.n_kv_heads).word(variant).word(n_splits).float(scale).word(0)
    };
    let (runs, n_runs) = step.mma_runs[variant];
    if n_runs > 0 {
        let launch = if by_wgmma(step.has_wgmma, step.n_tokens_max, variant) {
            const THREADS: usize = 3 * 128;
            const N_TILES: usize = 8;
            // Tokens alone beside them have their queries rotated.
            let rope = if step.n_single == 0 { take_back_rope(qkv, heads, (queue, kernels)) } else { None };
            let [cos, sin] = if rope.is_some() { [step.cos, step.sin] } else { [0, 0] };
            rope.map_or(Ok(()), |rope| queue.record(without_queries(rope, heads)))?;
            let shared_bytes = N_TILES * tile_bytes + WGMMA_ROWS * 2 * (dim / 2 + 4) * size_of::<f32>();
            arguments(runs, 1).address(cos).address(sin).launch(kernels.attention_wgmma[tile], [n_groups, n_runs], (THREADS, shared_bytes))
        } else {
            let shared_bytes = 4 * tile_bytes + THREADS * (dim / 2 + 4) * size_of::<f32>();
            arguments(runs, 1).launch(kernels.attention_mma_prompt[tile], [n_groups, n_runs], (THREADS, shared_bytes))
        };
        queue.record(launch)?;
    }
    if step.n_single > 0 {
        // By powers of two, so that a step's launches stay the same from token to token.
        let n_splits = step.n_positions_max.div_ceil(SPLIT).next_power_of_two();
        let is_split = step.n_single * n_groups < 2 * n_multiprocessors && step.n_single * heads.n_heads * n_splits <= SPLIT_ROWS_MAX;
        let n_splits = if is_split { n_splits } else { 1 };
        let shared_bytes = RING * 2 * tile_bytes + 16 * TILE * size_of::<u16>();
        let grid = [n_groups * n_splits, step.n_single];
        // One token's launches become the step of one token as they are.
        let rotates = n_runs == 0 && step.n_single > 1 && take_back_rope(qkv, heads, (queue, kernels)).is_some();
        let [cos, sin] = if rotates { [step.cos, step.sin] } else { [0, 0] };
        let arguments = arguments(step.single, n_splits).address(cos).address(sin);
        queue.record(arguments.launch(kernels.attention_mma_one[tile], grid, (THREADS, shared_bytes)))?;
    }
    Ok(())
}

/// Runs of tokens of heads of 64 or 128.
fn by_tiles(
    arguments: Arguments,
    heads: &Heads<'_, CudaVector>,
    (step, shared_bytes_max, kv_type): (&StagedStep, usize, KvType),
    (kernel, grid): (Kernel, [usize; 2]),
) -> Launch {
    const TILE: usize = 64;
    const LANES: usize = 16;
    let dim = heads.head_dim;
    let tile_floats = 2 * TILE * (dim + LANES) * number_bytes(kv_type) / size_of::<f32>();
    let n_fixed = TILE_ROWS * dim + tile_floats + TILE_ROWS * 4;
    // As many scores as fit beside the rest; a GPU keeps 1 KiB of each block's shared memory for itself.
    let window_max = ((shared_bytes_max - (10 << 10)) / size_of::<f32>() - n_fixed) / TILE_ROWS / TILE * TILE;
    let window = step.n_positions_max.next_multiple_of(TILE).min(window_max);
    let arguments = arguments.word(heads.n_heads).word(heads.n_kv_heads).word(window).float(1.0 / (dim as f32).sqrt());
    arguments.launch(kernel, grid, (256, (n_fixed + TILE_ROWS * window) * size_of::<f32>()))
}

/// `n` tokens, each by itself.
fn one_by_one(
    arguments: Arguments,
    heads: &Heads<'_, CudaVector>,
    (step, n, kv_type): (&StagedStep, usize, KvType),
    (kernels, n_multiprocessors): (&Kernels, usize),
) -> Launch {
    let (dim, sharing) = (heads.head_dim, heads.n_heads / heads.n_kv_heads);
    // Heads that share keys read them once, as long as there are blocks for all processors.
    let fits =
        |variant: &usize| sharing.is_multiple_of(1 << variant) && (*variant == 0 || (n * heads.n_heads) >> variant >= n_multiprocessors);
    let variant = (0..3).rev().find(fits).expect("one head a block always fits");
    let n_heads = 1 << variant;
    let tile = (TILE_FLOATS / dim / BLOCK_TOKENS * BLOCK_TOKENS).clamp(BLOCK_TOKENS, 128);
    // By powers of two, so that a step's launches stay the same from token to token.
    let window = step.n_positions_max.next_power_of_two().next_multiple_of(tile).min(ATTENTION_WINDOW.next_multiple_of(tile));
    let arguments = arguments.word(heads.n_heads).word(heads.n_kv_heads).word(dim).word(window).word(tile);
    let arguments = arguments.float(1.0 / (dim as f32).sqrt());
    let n_floats = n_heads * (dim.next_multiple_of(16) + window) + 2 * tile * dim * number_bytes(kv_type) / size_of::<f32>();
    const THREADS: usize = 256;
    arguments.launch(kernels.attention[type_number(kv_type)][variant], [heads.n_heads / n_heads, n], (THREADS, n_floats * size_of::<f32>()))
}

fn check_heads(qkv: &CudaHidden, heads: &Heads<'_, CudaVector>, step: &StagedStep, cache: &CudaKvCache) {
    assert_eq!(qkv.width(), (heads.n_heads + 2 * heads.n_kv_heads) * heads.head_dim, "a row of query, key and value heads");
    assert_eq!(qkv.n_rows(), step.n_tokens, "a row for each token");
    assert_eq!((cache.layout.n_kv_heads, cache.layout.head_dim), (heads.n_kv_heads, heads.head_dim), "the cache's heads");
}
