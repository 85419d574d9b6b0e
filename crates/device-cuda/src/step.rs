//! `StepOfOne`: the recorded launches of one token's layers become a list of operations for one kernel (step.cu), which does what they do. It
//! knows the launches by their kernels and reads from their arguments what to do; a launch that it does not know stays as it is.

use bitnet_model::device::DeviceError;

use crate::activations::BLOCK_COLUMNS;
use crate::driver::{Buffer, Kernel, Launch, Memory};
use crate::kernels::Kernels;
use crate::queue::Arguments;

/// Oldest compute capability with bulk copies.
pub(crate) const STEP_CAPABILITY_MIN: u32 = 9;
/// As step_list.cuh has them.
const THREADS: usize = 10 * 32;
/// Warps that keep house and stream weights.
const OTHER_THREADS: usize = 2 * 32;
const MAIL_COPIES: usize = 2;
const MAILBOXES: usize = 8;
const ROW_COLUMNS_MAX: usize = 4 * BLOCK_COLUMNS * THREADS / 32;
/// What the columns of a row are a multiple of, so that a thread has both of its fours of a chunk.
const ROW_COLUMNS: usize = 64;
const STAGES_MAX: usize = 32;
const OPERATION_WORDS: usize = 24;
/// Tiles of positions of a split.
const SPLIT_TILES: usize = 4;
/// Most blocks that attention has for itself.
const ATTENTION_BLOCKS_MAX: usize = 16;
/// Where a product has its first block and whether its row comes by mail; its tiles; its stages.
const FIRST_BLOCK_AND_RECEIVES: usize = 14;
const TILES: usize = 15;
const STAGES: usize = 16;
const TILE_ROWS: usize = 16;
/// Where a head has what its blocks have found, and its rounding with rows and number of stages behind.
const HEAD_FOUND: usize = 11;
const HEAD_ROUNDING: usize = 15;
/// Words of what blocks of a head have found.
const FOUND_WORDS: usize = 3;
/// Fewest stages that are worth it, and the fewest operations.
const STAGES_MIN: usize = 3;
const OPERATIONS_MIN: usize = 4;
/// Blocks of 256 columns of a stage.
const STAGE_BLOCKS: std::ops::RangeInclusive<usize> = 6..=16;

/// Makes lists of operations.
pub(crate) struct StepOfOne {
    kernel: Kernel,
    known: KnownKernels,
    n_multiprocessors: usize,
    shared_bytes_max: usize,
}

/// Kernels of single operations.
struct KnownKernels {
    one: [Kernel; 4],
    gate_one: [Kernel; 4],
    norm_quantize: Kernel,
    groups: Kernel,
    gate: Kernel,
    rope_append: Kernel,
    attention: [Kernel; 2],
    final_norm: Kernel,
    screen_quantize: Kernel,
    screen_one: Kernel,
    screen_exact: [Kernel; 3],
    argmax_begin: Kernel,
    argmax: Kernel,
}

/// An operation and what it needs of the kernel's shared memory.
struct Operation {
    words: [u64; OPERATION_WORDS],
    needs: Needs,
    /// Where it reads, and the place and number of its results.
    from: u64,
    results: (u64, usize),
}

enum Needs {
    Linear(Linear),
    Attention {
        head_dim: usize,
        n_blocks: usize,
    },
    /// The screen of a head, and the best of its rows: two operations.
    Screen(Head),
    Best(Head),
}

#[derive(Clone, Copy)]
struct Head {
    n: usize,
    screen_stride: usize,
    row_bytes: usize,
}

impl Head {
    /// Quantised row, normed row and norm weights, bounds and numbers of a block's rows.
    fn scratch_bytes(self, layout: &RingLayout, n_product_blocks: usize) -> usize {
        let n_rows = self.n_stages(layout).div_ceil(n_product_blocks) * self.rows_of_stage(layout);
        self.screen_stride * (1 + 2 * 4) + n_rows * 2 * 4
    }

    fn rows_of_stage(self, layout: &RingLayout) -> usize {
        layout.stage_bytes / self.screen_stride
    }

    fn n_stages(self, layout: &RingLayout) -> usize {
        self.n.div_ceil(self.rows_of_stage(layout))
    }

    /// Rows that are multiplied exactly at a time, two a warp: as many as there are warps, or as the ring holds.
    fn exact_rows(self, layout: &RingLayout, n_stages: usize) -> usize {
        (n_stages * layout.stage_bytes / self.row_bytes / 2 * 2).min(THREADS / 32 * 2)
    }
}

#[derive(Clone, Copy)]
struct Linear {
    n: usize,
    k: usize,
    n_blocks: usize,
    has_norms: bool,
    in_groups: bool,
    n_groups: usize,
    is_gate: bool,
    adds: bool,
}

impl Linear {
    fn n_tiles(self) -> usize {
        self.n / TILE_ROWS
    }

    fn has_scales(self) -> bool {
        self.n_groups > 1
    }

    /// Quantised row, norm weights, and of groups scales, sums and products.
    fn scratch_bytes(self, n_product_blocks: usize) -> usize {
        let filled = self.n_blocks * BLOCK_COLUMNS;
        let weights = if self.has_norms { filled * 4 } else { 0 };
        let products = self.n_tiles().div_ceil(n_product_blocks) * self.n_blocks * 2 * TILE_ROWS * 4;
        filled + weights + if self.in_groups { filled / 128 * 8 + products } else { 0 }
    }

    /// Sums of integers of a block's tiles.
    fn sums_bytes(self, n_product_blocks: usize) -> usize {
        if self.in_groups { 0 } else { (self.n_tiles().div_ceil(n_product_blocks) * TILE_ROWS * 4).next_multiple_of(128) }
    }
}

impl Operation {
    /// The operation as the kernel reads it, its first tile on block `next_block`.
    fn placed(
        &self,
        layout: &RingLayout,
        (n_stages, n_product_blocks): (usize, usize),
        next_block: &mut usize,
        found: u64,
    ) -> [u64; OPERATION_WORDS] {
        // Products that add to a row always begin here, so that a thread adds to what it has written itself.
        const FIRST_BLOCK_OF_ADDING: usize = 0;
        let mut words = self.words;
        if let Needs::Screen(head) | Needs::Best(head) = self.needs {
            words[HEAD_FOUND] = found;
            words[HEAD_ROUNDING] |= word(0, head.rows_of_stage(layout));
            words[HEAD_ROUNDING + 1] = word(head.n_stages(layout), head.exact_rows(layout, n_stages));
        }
        if let Needs::Linear(linear) = self.needs {
            let n_pieces = linear.n_blocks.div_ceil(layout.stage_blocks);
            let (n_tiles, n_over) = (linear.n_tiles() / n_product_blocks, linear.n_tiles() % n_product_blocks);
            let interleaves = (n_tiles + usize::from(n_over > 0)) * n_pieces > n_stages;
            let first_block = if linear.adds { FIRST_BLOCK_OF_ADDING } else { *next_block };
            *next_block = (first_block + linear.n_tiles()) % n_product_blocks;
            words[FIRST_BLOCK_AND_RECEIVES] |= word(first_block, 0);
            words[TILES] = word(n_tiles, n_over);
            words[STAGES] = word(n_pieces, usize::from(interleaves));
            words[STAGES + 1] = u64::from((1.0 / linear.n_blocks as f32).to_bits());
        }
        words
    }

    fn scratch_bytes(&self, layout: &RingLayout, n_product_blocks: usize, n_attention_tiles: usize) -> usize {
        match self.needs {
            Needs::Linear(linear) => linear.scratch_bytes(n_product_blocks),
            Needs::Screen(head) | Needs::Best(head) => head.scratch_bytes(layout, n_product_blocks),
            // Pairs of tiles, weights of a split, queries, largest scores, the last key and value, heads.
            Needs::Attention { head_dim, .. } => {
                n_attention_tiles * 2 * 64 * head_dim * 2 + 4 * 8 * 64 * 2 + 8 * 16 * 4 + (16 + 4 + 40) * head_dim
            }
        }
    }
}

/// Which blocks do what.
struct BlockShares {
    n_product: usize,
    first_attention: usize,
}

impl BlockShares {
    /// Where few blocks do attention, they do nothing else: its code is long, and beside that of products it would come from afar in each layer.
    fn new(operations: &[Operation], n_multiprocessors: usize) -> Self {
        let of_attention = operations.iter().map(|operation| match operation.needs {
            Needs::Attention { n_blocks, .. } => n_blocks,
            _ => 0,
        });
        let n_attention = of_attention.max().unwrap_or(0);
        if n_attention <= ATTENTION_BLOCKS_MAX && n_attention * 4 <= n_multiprocessors {
            let n_product = n_multiprocessors - n_attention;
            Self { n_product, first_attention: n_product }
        } else {
            Self { n_product: n_multiprocessors, first_attention: 0 }
        }
    }
}

/// How the ring of weights is laid out.
struct RingLayout {
    stage_blocks: usize,
    row_bytes: usize,
    scale_bytes: usize,
    stage_bytes: usize,
}

impl RingLayout {
    fn new(stage_blocks: usize, has_scales: bool) -> Self {
        // Neighbouring rows lie in different halves of the banks.
        let row_bytes = stage_blocks * 64 + if stage_blocks.is_multiple_of(2) { 64 } else { 0 };
        let scale_bytes = if has_scales { stage_blocks * 8 + 16 } else { 0 };
        Self { stage_blocks, row_bytes, scale_bytes, stage_bytes: (TILE_ROWS * (row_bytes + scale_bytes)).next_multiple_of(128) }
    }

    /// The layout that fills its stages best.
    fn best(linears: &[Linear]) -> Self {
        let has_scales = linears.iter().any(|linear| linear.has_scales());
        let sizes = STAGE_BLOCKS.rev().filter(|size| !has_scales || size.is_multiple_of(2));
        let filled = |size: &usize| -> usize { linears.iter().map(|l| l.n_tiles() * l.n_blocks.next_multiple_of(*size)).sum() };
        let size = sizes.min_by_key(filled).expect("there are sizes");
        Self::new(size, has_scales)
    }
}

fn halves(word: u64) -> [usize; 2] {
    [word as u32 as usize, (word >> 32) as usize]
}

fn word(low: usize, high: usize) -> u64 {
    low as u64 | (high as u64) << 32
}

impl StepOfOne {
    pub(crate) fn new(kernels: &Kernels, (n_multiprocessors, shared_bytes_max): (usize, usize)) -> Self {
        let known = KnownKernels {
            one: kernels.bit_linear_one,
            gate_one: kernels.bit_linear_gate_one,
            norm_quantize: kernels.norm_quantize,
            groups: kernels.bit_linear_groups[0],
            gate: kernels.gate,
            rope_append: kernels.rope_append[1],
            attention: kernels.attention_mma_one,
            final_norm: kernels.final_norm,
            screen_quantize: kernels.screen_quantize,
            screen_one: kernels.screen_one,
            screen_exact: kernels.screen_exact,
            argmax_begin: kernels.argmax_begin,
            argmax: kernels.argmax,
        };
        Self { kernel: kernels.step_one, known, n_multiprocessors, shared_bytes_max }
    }

    /// The same work with fewer launches, and the lists that they read.
    pub(crate) fn put_together(&self, launches: &[Launch], memory: &Memory) -> Result<(Vec<Launch>, Vec<Buffer>), DeviceError> {
        let (mut together, mut lists) = (Vec::new(), Vec::new());
        let mut rest = launches;
        while let Some(first) = rest.first() {
            let (mut operations, mut n_launches) = self.operations(rest);
            let mut launched = None;
            if let Some((head, n)) = operations.last().and_then(|last| self.head(&rest[n_launches..], last)) {
                let n_before = operations.len();
                operations.extend(head);
                launched = self.launch(&operations, memory)?;
                match launched {
                    Some(_) => n_launches += n,
                    None => operations.truncate(n_before),
                }
            }
            if launched.is_none() {
                launched = self.launch(&operations, memory)?;
            }
            match launched {
                Some((launch, list)) => {
                    together.push(launch);
                    lists.push(list);
                    rest = &rest[n_launches..];
                }
                None => {
                    together.push(*first);
                    rest = &rest[1..];
                }
            }
        }
        Ok((together, lists))
    }

    /// As many operations as the first launches are, each of which reads what the one before gives, and how many launches those are.
    fn operations(&self, launches: &[Launch]) -> (Vec<Operation>, usize) {
        let (mut operations, mut n_launches): (Vec<Operation>, usize) = (Vec::new(), 0);
        while let Some((mut operation, n)) = self.operation(&launches[n_launches..]) {
            match (operations.last().map(|before| before.results), &operation.needs) {
                (None, Needs::Linear(_)) => {}
                (Some((address, n_before)), Needs::Linear(linear)) if address == operation.from && n_before == linear.k => {
                    operation.words[FIRST_BLOCK_AND_RECEIVES] |= word(0, 1);
                }
                (Some((address, _)), Needs::Attention { .. }) if address == operation.from => {}
                _ => break,
            }
            operations.push(operation);
            n_launches += n;
        }
        (operations, n_launches)
    }

    /// The kernel that does `operations`, if it can and if it is worth it.
    fn launch(&self, operations: &[Operation], memory: &Memory) -> Result<Option<(Launch, Buffer)>, DeviceError> {
        let linears = operations.iter().filter_map(|operation| match operation.needs {
            Needs::Linear(linear) => Some(linear),
            _ => None,
        });
        let linears: Vec<Linear> = linears.collect();
        if operations.len() < OPERATIONS_MIN || linears.is_empty() {
            return Ok(None);
        }
        let layout = RingLayout::best(&linears);
        if operations.iter().any(|operation| matches!(operation.needs, Needs::Screen(head) if head.rows_of_stage(&layout) == 0)) {
            return Ok(None);
        }
        let blocks = BlockShares::new(operations, self.n_multiprocessors);
        // Blocks of attention have no weights: it works where others have the ring, on a whole split at a time.
        let is_apart = blocks.first_attention > 0;
        let n_attention_tiles = if is_apart { SPLIT_TILES } else { SPLIT_TILES / 2 };
        let scratch_of = |is_attention: bool| {
            let of_kind = operations.iter().filter(|operation| matches!(operation.needs, Needs::Attention { .. }) == is_attention);
            of_kind.map(|operation| operation.scratch_bytes(&layout, blocks.n_product, n_attention_tiles)).max().unwrap_or(0)
        };
        let sums_bytes = linears.iter().map(|linear| linear.sums_bytes(blocks.n_product)).max().unwrap_or(0);
        let (of_products, of_attention) = (2 * sums_bytes + scratch_of(false), scratch_of(true));
        let scratch = if is_apart { of_products } else { of_products.max(2 * sums_bytes + of_attention) };
        let n_stages = (self.shared_bytes_max.saturating_sub(scratch) / layout.stage_bytes).min(STAGES_MAX);
        let fits = |operation: &Operation| match operation.needs {
            Needs::Screen(head) => head.exact_rows(&layout, n_stages) > 0,
            _ => true,
        };
        if n_stages < STAGES_MIN || !operations.iter().all(fits) {
            return Ok(None);
        }
        let most = operations.iter().map(|operation| operation.results.1).max().unwrap_or(0);
        let n_results = most.next_multiple_of(4);
        let mailbox_words = (MAIL_COPIES * n_results + self.n_multiprocessors).next_multiple_of(4);
        // The list, the mailboxes with the pattern that nothing has come, how many operations have sent, and what blocks have found of the head.
        let list_bytes = operations.len() * OPERATION_WORDS * size_of::<u64>();
        let mail_bytes = MAILBOXES * mailbox_words * size_of::<u32>();
        let memory_of_step = memory.buffer("operations of a step", list_bytes + mail_bytes + (1 + FOUND_WORDS) * size_of::<u64>())?;
        let mail = memory_of_step.address() + list_bytes as u64;
        let found = mail + mail_bytes as u64 + size_of::<u64>() as u64;
        let mut next_block = 0;
        let placed = operations.iter().map(|operation| operation.placed(&layout, (n_stages, blocks.n_product), &mut next_block, found));
        let list: Vec<u8> = placed.flatten().flat_map(u64::to_le_bytes).collect();
        memory.write(&[list.as_slice(), &vec![0xff; mail_bytes], &[0; (1 + FOUND_WORDS) * size_of::<u64>()]].concat(), &memory_of_step)?;
        let arguments = Arguments::new().address(memory_of_step.address()).address(mail).address(mail + mail_bytes as u64);
        let arguments = arguments.word(operations.len()).word(n_stages).word(layout.stage_blocks).word(layout.row_bytes);
        let arguments = arguments.word(layout.scale_bytes).word(layout.stage_bytes).word(mailbox_words).word(n_results);
        let arguments = arguments.word(blocks.n_product).word(blocks.first_attention).float(1.0 / layout.stage_blocks as f32);
        let ring_bytes = n_stages * layout.stage_bytes;
        let arguments = arguments.word(if is_apart { 0 } else { ring_bytes + 2 * sums_bytes }).word(n_attention_tiles).word(sums_bytes);
        let shared_bytes = (ring_bytes + scratch).max(of_attention);
        let launch = arguments.launch(self.kernel, [self.n_multiprocessors, 1], (THREADS + OTHER_THREADS, shared_bytes));
        Ok(Some((Launch { is_cooperative: true, ..launch }, memory_of_step)))
    }

    /// What the first launches are together, and how many they are.
    fn operation(&self, launches: &[Launch]) -> Option<(Operation, usize)> {
        let first = launches.first()?;
        if self.known.one.contains(&first.kernel) || self.known.gate_one.contains(&first.kernel) {
            return Some((self.per_token(first)?, 1));
        }
        if first.kernel == self.known.norm_quantize {
            return self.per_group(launches);
        }
        if first.kernel == self.known.rope_append {
            return Some((self.attention(first, launches.get(1)?)?, 2));
        }
        None
    }

    /// `final_norm` to `argmax` of a token of whose logits only the largest is looked at, behind `last`: two operations, and how many launches they are.
    fn head(&self, launches: &[Launch], last: &Operation) -> Option<([Operation; 2], usize)> {
        let [norm, quantize, screen, exact, begin, argmax] = launches.first_chunk()?;
        let known = &self.known;
        let dtype = known.screen_exact.iter().position(|kernel| *kernel == exact.kernel)?;
        let kernels = [norm, quantize, screen, begin, argmax].map(|launch| launch.kernel);
        let [n, k] = halves(exact.arguments[6]);
        let ([_, screen_stride], [stride, _]) = (halves(quantize.arguments[4]), halves(exact.arguments[7]));
        let is_one_token = norm.grid == [1, 1] && exact.grid[1] == 1 && argmax.grid[1] == 1 && exact.arguments[8] == 0;
        let is_chain = norm.arguments[2] == quantize.arguments[0]
            && quantize.arguments[0] == exact.arguments[0]
            && quantize.arguments[1] == screen.arguments[0]
            && screen.arguments[6] == exact.arguments[5]
            && exact.arguments[5] == argmax.arguments[0]
            && begin.arguments[1] == argmax.arguments[1];
        let is_known = kernels == [known.final_norm, known.screen_quantize, known.screen_one, known.argmax_begin, known.argmax];
        let [_, forgets] = halves(argmax.arguments[2]);
        let has_row = last.results == (norm.arguments[0], k) && matches!(last.needs, Needs::Linear(_));
        let n_norms = halves(norm.arguments[6])[0];
        if !is_known
            || !is_chain
            || !is_one_token
            || forgets == 0
            || !has_row
            || n_norms == 0
            || !k.is_multiple_of(ROW_COLUMNS)
            || k > ROW_COLUMNS_MAX
        {
            return None;
        }
        let element_bytes = if dtype == 0 { 4 } else { 2 };
        let head = Head { n, screen_stride, row_bytes: stride * element_bytes };
        let mut words = [0; OPERATION_WORDS];
        words[2..6].copy_from_slice(&norm.arguments[3..7]);
        words[6..9].copy_from_slice(&screen.arguments[1..4]);
        words[9..11].copy_from_slice(&[exact.arguments[1], argmax.arguments[1]]);
        words[12] = word(n, k);
        words[13] = word(screen_stride / BLOCK_COLUMNS, screen_stride);
        words[14] = word(head.row_bytes, dtype);
        words[HEAD_ROUNDING] = exact.arguments[7] >> 32;
        let operation = |kind: u64, needs, n_results| {
            let mut words = words;
            words[0] = kind;
            Operation { words, needs, from: norm.arguments[0], results: (0, n_results) }
        };
        let screened = operation(2, Needs::Screen(head), self.n_multiprocessors);
        Some(([screened, operation(3, Needs::Best(head), 0)], 6))
    }

    /// `bit_linear_one` or `bit_linear_gate_one`.
    fn per_token(&self, launch: &Launch) -> Option<Operation> {
        let from = &launch.arguments;
        let ([n, k], [n_blocks, n_groups], [add, activation]) = (halves(from[12]), halves(from[13]), halves(from[14]));
        let is_gate = self.known.gate_one.contains(&launch.kernel);
        let linear = Linear { n, k, n_blocks, has_norms: halves(from[4])[0] > 0, in_groups: false, n_groups, is_gate, adds: add != 0 };
        let out = if is_gate { from[11] } else { from[10] };
        if from[0] == 0 {
            return None;
        }
        // Inverse scales stand behind the scales.
        let n_scales = if n_groups == 0 { 1 } else { n };
        let inverse_scales = from[9] + (n_scales * size_of::<f32>()) as u64;
        linear_operation(&from[..5], [from[8], inverse_scales, out], linear, activation)
    }

    /// `norm_quantize` and `bit_linear_groups`, and `gate` if it is next.
    fn per_group(&self, launches: &[Launch]) -> Option<(Operation, usize)> {
        let (row, product) = (&launches[0], launches.get(1)?);
        let (source, from) = (&row.arguments, &product.arguments);
        let ([k, _], [n_activation_groups, layout]) = (halves(source[9]), halves(source[10]));
        let ([_, n], [n_blocks, _], [n_groups, group_segments]) = (halves(from[6]), halves(from[7]), halves(from[8]));
        let [_, add] = halves(from[9]);
        let is_of_row = product.kernel == self.known.groups && source[5] == from[0] && row.grid == [1, 1] && layout == 0;
        if !is_of_row || n_activation_groups == 0 || product.grid[1] != 1 {
            return None;
        }
        // A scale for each segment, whole stages of them by copies of 16 bytes, or one a row.
        if n_groups > 1 && (group_segments != 1 || n_groups != n_blocks * 2 || !n_groups.is_multiple_of(4)) {
            return None;
        }
        let gate = launches.get(2).filter(|gate| gate.kernel == self.known.gate && gate.arguments[0] == from[5] && gate.grid[1] == 1);
        let gate = gate.map(|gate| (gate.arguments[1], halves(gate.arguments[2]))).filter(|(_, [width, _])| width * 2 == n && add == 0);
        let (out, activation) = gate.map_or((from[5], 0), |(out, [_, activation])| (out, activation));
        let has_norms = halves(source[4])[0] > 0;
        let linear = Linear { n, k, n_blocks, has_norms, in_groups: true, n_groups, is_gate: gate.is_some(), adds: add != 0 };
        let operation = linear_operation(&source[..5], [from[3], from[4], out], linear, activation)?;
        Some((operation, if gate.is_some() { 3 } else { 2 }))
    }

    /// `rope_append` and `attention` of a token over halves.
    fn attention(&self, rope: &Launch, attention: &Launch) -> Option<Operation> {
        let (rotated, from) = (&rope.arguments, &attention.arguments);
        let [head_dim, epsilon] = halves(rotated[9]);
        let is_known = self.known.attention.contains(&attention.kernel) && matches!(head_dim, 64 | 128);
        let is_same = rotated[0] == from[0] && rotated[3..5] == from[1..3] && rope.grid[0] == 1 && attention.grid[1] == 1;
        let ([n_heads, _], [log_sharing, n_splits]) = (halves(from[10]), halves(from[11]));
        // A block for each split of heads that share keys.
        let n_blocks = (n_heads >> log_sharing) * n_splits;
        if !is_known || !is_same || n_blocks > self.n_multiprocessors {
            return None;
        }
        let mut words = [0; OPERATION_WORDS];
        words[0] = 1;
        words[2..15].copy_from_slice(&from[..13]);
        words[15..20].copy_from_slice(&[rotated[1], rotated[2], rotated[5], rotated[6], rotated[7]]);
        words[20] = word(epsilon, head_dim);
        Some(Operation { words, needs: Needs::Attention { head_dim, n_blocks }, from: from[0], results: (from[3], n_heads * head_dim) })
    }
}

/// A product from where its row comes (address, norms), where its weights, scales and results are, and how it is stored.
fn linear_operation(source: &[u64], places: [u64; 3], linear: Linear, activation: usize) -> Option<Operation> {
    let is_whole = linear.n.is_multiple_of(TILE_ROWS) && linear.k.is_multiple_of(ROW_COLUMNS) && linear.n > 0;
    let is_in_parts = linear.n_blocks * BLOCK_COLUMNS > ROW_COLUMNS_MAX;
    if !is_whole || (is_in_parts && (linear.has_norms || !linear.in_groups)) {
        return None;
    }
    let mut words = [0; OPERATION_WORDS];
    words[2..7].copy_from_slice(source);
    words[7..10].copy_from_slice(&places);
    words[10] = word(linear.n, linear.k);
    words[11] = word(linear.n_blocks, linear.n_groups);
    words[12] = word(usize::from(linear.in_groups), usize::from(linear.adds));
    words[13] = word(usize::from(linear.is_gate), activation);
    let n_results = if linear.is_gate { linear.n / 2 } else { linear.n };
    Some(Operation { words, needs: Needs::Linear(linear), from: source[0], results: (places[2], n_results) })
}
