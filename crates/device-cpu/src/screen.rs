//! The screen of a head: 6 bits of every weight, in two planes, from which the rows that could hold the best logits are found
//! without reading the head itself. Only those are multiplied in full precision.
//!
//! Weights of a row become w ≈ s·(q − 31.5), q in 0..64. The coarse plane holds q / 4 of all rows in one linear stream, the fine
//! plane q % 4 of each row by itself. For a token x and its int8 quantisation x̂, and ŵ what a plane says of w, the exact product
//! differs from ŵ·x̂ by
//!
//! ```text
//! |w·x − ŵ·x̂| = |ŵ·(x − x̂) + (w − ŵ)·x| ≤ ‖ŵ‖·‖x − x̂‖ + ‖w − ŵ‖·‖x‖        (Cauchy–Schwarz)
//! ```
//!
//! whose norms are measured, not estimated, and rounded upwards; the rounding of the f32 product (`numerics::dot`) is bounded by
//! γ·‖w‖·‖x‖. A row whose ŵ·x̂ plus this bound stays below the n-th best exact logit found so far cannot be among the n best:
//! what is left out is proved to be out. Trained heads need the fine plane and the head for a few rows in a thousand. A random head
//! needs it for half of its rows, but most of these fall when its first half of the columns is known, so it is read by halves.
//!
//! Idea: two-stage maximum inner product search with exact re-ranking; the bound is ours.

use std::ops::Range;

use bitnet_model::batch::BestLogits;
use bitnet_model::device::DeviceError;
use bitnet_model::numerics::LANES;

use crate::arch::{Memory, OutOfMemory};
use crate::candidates::{Candidate, Candidates};
use crate::hidden::CpuHidden;
use crate::kernels::{F32Rows, Int8RowMut, Kernels, RowScale, Scratch, first_failure};
use crate::pool::{ColumnTarget, ColumnsMut, Parts, Pool};
use crate::rows::DenseTable;
use crate::tile::{BLOCK_COLUMNS, QUARTER_COLUMNS, TILE_ROWS};

/// Columns of one unit of the coarse plane: 32 bytes of two 4-bit codes, columns j and j + 32.
pub(crate) const COARSE_COLUMNS: usize = 64;
/// Bytes of four rows' units.
pub(crate) const COARSE_BYTES: usize = TILE_ROWS * COARSE_COLUMNS / 2;
/// Bytes of one unit of the fine plane: 2-bit codes of columns j, j + 32, j + 64, j + 96 of a block.
pub(crate) const FINE_BYTES: usize = BLOCK_COLUMNS / 4;
/// How many survivors of the coarse plane ahead the fine plane is fetched: its rows are too far apart for the hardware to guess, and
/// one takes a tenth of the time that a busy memory needs to answer.
const FINE_ROWS_AHEAD: usize = 12;
/// Rows whose fine plane is kept in the L2 cache for all tokens.
const FINE_BLOCK_ROWS: usize = 256;
/// Tokens that share one reading of the coarse plane.
pub(crate) const SCREEN_TOKENS: usize = 4;
/// Tokens that share one reading of both planes.
pub(crate) const PLANE_TOKENS: usize = 8;
/// Blocks of the widest rows that are screened: their sums of both planes fit 32 bits.
const BLOCKS_MAX: usize = i32::MAX as usize / (BLOCK_COLUMNS * (LEVELS as usize - 1) * 127);
/// Of so many rows one is looked at to know how many the coarse plane leaves a chance.
const SAMPLE_STEP: usize = 61;
/// If more than one in so many of these has a chance, the fine plane is read for all rows at once the next time.
const FLAT_PART: usize = 4;
/// Levels of a weight.
pub(crate) const LEVELS: f32 = 64.0;

/// How many of a row's blocks are its first half.
pub(crate) fn first_half(n_blocks: usize) -> usize {
    n_blocks / 2
}

/// Upwards rounding of norms: their sums have fewer than 2¹³ additions in a lane, each off by at most 2⁻²⁴.
const NORM_SLACK: f32 = 1.0 + 1.0 / 1024.0;

/// What of the screen is read for every row.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Planes {
    /// The fine plane is read for rows that the coarse one leaves a chance.
    Coarse,
    /// Both, in one linear stream: for more tokens than share one reading of the coarse plane, and for heads that leave many rows a
    /// chance, such as random ones.
    Both,
}

impl Planes {
    /// Tokens of `n` that share one reading.
    fn group_size(self, n: usize) -> usize {
        match self {
            Self::Coarse => SCREEN_TOKENS,
            Self::Both => n.div_ceil(n.div_ceil(PLANE_TOKENS)),
        }
    }

    /// 2·(ŵ/s)·x̂ is so many times the sum of codes, less so many times the sum of integers: ŵ = s·(4·q₄ + 1.5 − 31.5) or s·(q − 31.5).
    fn factors(self) -> (i64, i64) {
        match self {
            Self::Coarse => (8, 60),
            Self::Both => (2, 63),
        }
    }

    fn error(self, bound: &RowBound) -> f32 {
        match self {
            Self::Coarse => bound.coarse_error,
            Self::Both => bound.fine_error,
        }
    }
}

/// What is known of one row of the head.
#[derive(Clone, Copy, Default)]
pub(crate) struct RowBound {
    /// ‖w‖, rounded upwards.
    pub(crate) norm: f32,
    /// ‖w − ŵ‖ for the coarse plane alone, rounded upwards.
    pub(crate) coarse_error: f32,
    /// The same with the fine plane of the first half of the blocks (`first_half`).
    pub(crate) half_error: f32,
    /// The same with all of the fine plane.
    pub(crate) fine_error: f32,
}

impl RowBound {
    /// Bounds both.
    fn larger(self, other: Self) -> Self {
        Self {
            norm: self.norm.max(other.norm),
            coarse_error: self.coarse_error.max(other.coarse_error),
            half_error: self.half_error.max(other.half_error),
            fine_error: self.fine_error.max(other.fine_error),
        }
    }
}

/// Where the codes of one row go.
pub(crate) struct ScreenRowMut<'a> {
    /// The row's tile, `[k / COARSE_COLUMNS, TILE_ROWS, 32]`.
    pub(crate) coarse: &'a mut [u8],
    /// Its place in the tile.
    pub(crate) row_in_tile: usize,
    /// `[k / BLOCK_COLUMNS, FINE_BYTES]`.
    pub(crate) fine: &'a mut [u8],
    /// s.
    pub(crate) scale: &'a mut f32,
}

/// A screen `[n, k]`.
pub(crate) struct Screen {
    n_blocks: usize,
    coarse: Memory<u8>,
    fine: Memory<u8>,
    /// s of each row: read with its codes, unlike its bound.
    scales: Vec<f32>,
    bounds: Vec<RowBound>,
    /// The largest of each `FINE_BLOCK_ROWS` rows.
    block_bounds: Vec<RowBound>,
    tokens: Vec<TokenBound>,
    /// int8 rows of the tokens, `[m, k padded]`.
    quantized: Vec<i8>,
    quarter_sums: Vec<i32>,
    /// What a token's logit must reach to be wanted, as far as the coarse plane shows.
    thresholds: Vec<f32>,
    /// Whether the coarse plane left many rows a chance the last time.
    is_flat: bool,
    /// What was read for every row the last time.
    last_planes: Planes,
    /// Buffers of the refinement.
    best: Candidates,
    survivors: Candidates,
}

/// What is known of one token.
#[derive(Clone, Copy, Default)]
struct TokenBound {
    quantized: RowScale,
    /// Σ q over the first half of the blocks.
    first_sum: i32,
    /// ‖x‖, rounded upwards.
    norm: f32,
    /// ‖x − x̂‖, rounded upwards.
    error: f32,
}

impl TokenBound {
    /// How far an exact logit of a row may be from what a plane with this error says of it.
    #[inline]
    fn radius(&self, row: &RowBound, plane_error: f32, rounding: f32) -> f32 {
        ((row.norm + plane_error) * (self.error + rounding * self.norm) + plane_error * self.norm) * NORM_SLACK + f32::MIN_POSITIVE
    }
}

/// Bound of everything that rounding does to a product of k columns, relative to ‖w‖·‖x‖.
fn rounding(k: usize) -> f32 {
    (k / LANES + 64) as f32 * f32::EPSILON
}

/// What one thread fills of a screen: the codes of its tiles and the bounds of their rows.
struct PlanesMut<'a> {
    coarse: &'a mut [u8],
    fine: &'a mut [u8],
    scales: &'a mut [f32],
    bounds: &'a mut [RowBound],
}

impl PlanesMut<'_> {
    /// From `rows` of the head, the first of which begins a tile.
    fn fill(
        self,
        (head, rows, buffer): (&DenseTable, Range<usize>, &mut [u8]),
        scratch: &mut Scratch,
        kernels: &dyn Kernels,
    ) -> Result<(), DeviceError> {
        let n_blocks = head.k().div_ceil(BLOCK_COLUMNS);
        let (tile_bytes, fine_bytes) = (n_blocks * 2 * COARSE_BYTES, n_blocks * FINE_BYTES);
        scratch.row.resize(scratch.row.len().max(head.k()), 0.0);
        let values = &mut scratch.row[..head.k()];
        for block in head.blocks(rows.clone()) {
            let stored = head.read(block.clone(), buffer)?;
            for row in block {
                stored.read(row, values);
                let index = row - rows.start;
                let coarse = &mut self.coarse[index / TILE_ROWS * tile_bytes..][..tile_bytes];
                let fine = &mut self.fine[index * fine_bytes..][..fine_bytes];
                let out = ScreenRowMut { coarse, row_in_tile: index % TILE_ROWS, fine, scale: &mut self.scales[index] };
                self.bounds[index] = kernels.screen_row(values, out, &mut scratch.codes);
            }
        }
        Ok(())
    }
}

impl Screen {
    /// Reads a head once, all threads at once; nothing for a head with numbers that are not finite, or with rows too wide.
    pub(crate) fn new(
        head: &DenseTable,
        (pool, scratch): (&mut Pool, &mut [Scratch]),
        kernels: &dyn Kernels,
    ) -> Result<Option<Self>, DeviceError> {
        if head.k().div_ceil(BLOCK_COLUMNS) > BLOCKS_MAX {
            return Ok(None);
        }
        let refused = |memory: OutOfMemory| DeviceError::OutOfMemory { what: "screen of a head", size_bytes: memory.size_bytes };
        let (n_tiles, n_blocks) = (head.n().div_ceil(TILE_ROWS), head.k().div_ceil(BLOCK_COLUMNS));
        let (tile_bytes, fine_bytes) = (n_blocks * 2 * COARSE_BYTES, n_blocks * FINE_BYTES);
        let mut coarse = Memory::zeroed(n_tiles * tile_bytes).map_err(refused)?;
        let mut fine = Memory::zeroed(n_tiles * TILE_ROWS * fine_bytes).map_err(refused)?;
        let (mut scales, mut bounds) = (vec![0.0; n_tiles * TILE_ROWS], vec![RowBound::default(); n_tiles * TILE_ROWS]);
        let (mut coarse_left, mut fine_left) = (&mut coarse[..], &mut fine[..]);
        let (mut scales_left, mut bounds_left) = (&mut scales[..], &mut bounds[..]);
        let parts = Parts::new(n_tiles, pool.n_threads(), |tiles| {
            let coarse = coarse_left.split_off_mut(..tiles.len() * tile_bytes).expect("tiles sum up to n_tiles");
            let fine = fine_left.split_off_mut(..tiles.len() * TILE_ROWS * fine_bytes).expect("tiles sum up to n_tiles");
            let scales = scales_left.split_off_mut(..tiles.len() * TILE_ROWS).expect("tiles sum up to n_tiles");
            let bounds = bounds_left.split_off_mut(..tiles.len() * TILE_ROWS).expect("tiles sum up to n_tiles");
            (tiles, PlanesMut { coarse, fine, scales, bounds })
        });
        pool.run_parts(scratch, parts, |scratch, (tiles, planes)| {
            let rows = tiles.start * TILE_ROWS..head.n().min(tiles.end * TILE_ROWS);
            scratch.with_rows(|buffer, scratch| planes.fill((head, rows, buffer), scratch, kernels));
        });
        first_failure(scratch)?;
        scales.truncate(head.n());
        bounds.truncate(head.n());
        let is_finite = bounds
            .iter()
            .all(|bound| [bound.norm, bound.coarse_error, bound.half_error, bound.fine_error].iter().all(|norm| norm.is_finite()));
        let (tokens, quantized, quarter_sums, thresholds) = (vec![], vec![], vec![], vec![]);
        let block_bounds =
            bounds.chunks(FINE_BLOCK_ROWS).map(|rows| rows.iter().copied().fold(RowBound::default(), RowBound::larger)).collect();
        // Room for every row, so that no step allocates.
        let n_rows_of_part = head.n() / pool.n_threads() + 1;
        scratch.iter_mut().for_each(|scratch| scratch.candidates.0.reserve(n_rows_of_part));
        let (best, survivors) = (Candidates(Vec::with_capacity(head.n())), Candidates(Vec::with_capacity(head.n())));
        let screen = Self {
            n_blocks,
            coarse,
            fine,
            scales,
            bounds,
            block_bounds,
            tokens,
            quantized,
            quarter_sums,
            thresholds,
            is_flat: false,
            last_planes: Planes::Coarse,
            best,
            survivors,
        };
        Ok(is_finite.then_some(screen))
    }

    /// Bytes that the last step read at least: the bounds and the planes of which it read every row.
    pub(crate) fn read_bytes(&self) -> u64 {
        let fine = match self.last_planes {
            Planes::Coarse => 0,
            Planes::Both => self.fine.len(),
        };
        (self.coarse.len() + fine + size_of_val(&self.scales[..]) + size_of_val(&self.bounds[..])) as u64
    }

    /// One tile of the coarse plane.
    #[inline]
    fn tile(&self, tile: usize) -> &[[u8; COARSE_BYTES]] {
        let tile_bytes = self.n_blocks * 2 * COARSE_BYTES;
        self.coarse[tile * tile_bytes..(tile + 1) * tile_bytes].as_chunks().0
    }

    /// One row of the fine plane.
    #[inline]
    fn fine_row(&self, row: usize) -> &[[u8; FINE_BYTES]] {
        let row_bytes = self.n_blocks * FINE_BYTES;
        self.fine[row * row_bytes..(row + 1) * row_bytes].as_chunks().0
    }

    /// The fine plane of one tile's rows.
    #[inline]
    fn fine_rows(&self, tile: usize) -> [&[[u8; FINE_BYTES]]; TILE_ROWS] {
        std::array::from_fn(|row| self.fine_row(tile * TILE_ROWS + row))
    }

    /// One token's int8 row, `[n_blocks]` of `[BLOCK_COLUMNS]`.
    #[inline]
    fn activations(&self, token: usize) -> &[[i8; BLOCK_COLUMNS]] {
        let stride = self.n_blocks * BLOCK_COLUMNS;
        self.quantized[token * stride..(token + 1) * stride].as_chunks().0
    }

    /// Quantises the tokens and measures what that loses. Whether all of it is finite.
    fn prepare(&mut self, x: &CpuHidden, kernels: &dyn Kernels) -> bool {
        let stride = self.n_blocks * BLOCK_COLUMNS;
        self.quantized.resize(x.n_rows() * stride, 0);
        self.quarter_sums.resize(stride / QUARTER_COLUMNS, 0);
        self.tokens.clear();
        for (row, quantized) in x.values().chunks_exact(x.width()).zip(self.quantized.chunks_exact_mut(stride)) {
            let mut scale = RowScale::default();
            kernels.quantise(row, Int8RowMut { quantized, quarter_sums: &mut self.quarter_sums, scale: &mut scale });
            let square = |value: f32| value * value;
            let norm: f32 = row.iter().map(|&value| f64::from(square(value))).sum::<f64>().sqrt() as f32;
            let pairs = row.iter().zip(&*quantized);
            let error =
                pairs.map(|(&value, &integer)| f64::from(square(value - f32::from(integer) * scale.scale.real))).sum::<f64>().sqrt();
            let n_first = first_half(self.n_blocks) * BLOCK_COLUMNS / QUARTER_COLUMNS;
            let first_sum = self.quarter_sums[..n_first].iter().sum();
            // A difference of two floats may lose half a unit of the larger.
            let error = error as f32 + norm * f32::EPSILON;
            self.tokens.push(TokenBound { quantized: scale, first_sum, norm: norm * NORM_SLACK, error: error * NORM_SLACK });
        }
        self.tokens.iter().all(|token| token.norm.is_finite() && token.error.is_finite())
    }

    /// Which planes to read for so many tokens.
    fn planes(&self, n_tokens: usize, kernels: &dyn Kernels) -> Planes {
        if kernels.wants_both_planes(n_tokens, self.is_flat) { Planes::Both } else { Planes::Coarse }
    }

    /// What planes say of one thread's rows for all tokens, into their logits.
    fn read(&self, planes: Planes, columns: &mut ColumnsMut<'_>, kernels: &dyn Kernels, scratch: &mut Scratch) {
        let range = columns.range();
        let mut sums = [[0i32; TILE_ROWS]; PLANE_TOKENS];
        let group_size = planes.group_size(columns.n_rows());
        for first in (0..columns.n_rows()).step_by(group_size) {
            let n_tokens = group_size.min(columns.n_rows() - first);
            let mut activations: [&[[i8; BLOCK_COLUMNS]]; PLANE_TOKENS] = [&[]; PLANE_TOKENS];
            for (token, activations) in activations.iter_mut().take(n_tokens).enumerate() {
                *activations = self.activations(first + token);
            }
            let (activations, sums) = (&activations[..n_tokens], &mut sums[..n_tokens]);
            for tile in range.start / TILE_ROWS..range.end.div_ceil(TILE_ROWS) {
                match planes {
                    Planes::Coarse => kernels.coarse_sums(self.tile(tile), activations, sums),
                    Planes::Both => kernels.plane_sums(self.tile(tile), self.fine_rows(tile), activations, sums, scratch),
                }
                let rows = tile * TILE_ROWS..range.end.min((tile + 1) * TILE_ROWS);
                for (token, sums) in (first..).zip(&*sums) {
                    let logits = &mut columns.row_mut(token)[rows.start - range.start..rows.end - range.start];
                    self.write(planes, self.tokens[token].quantized, (rows.clone(), sums), logits);
                }
            }
        }
    }

    /// ŵ·x̂ from the sums of the planes.
    #[inline]
    fn write(&self, planes: Planes, quantized: RowScale, (rows, sums): (Range<usize>, &[i32; TILE_ROWS]), logits: &mut [f32]) {
        let (of_codes, of_integers) = planes.factors();
        for ((logit, &sum), scale) in logits.iter_mut().zip(sums).zip(&self.scales[rows]) {
            let products = of_codes * i64::from(sum) - of_integers * i64::from(quantized.sum);
            *logit = scaled(products, 0.5 * scale, quantized.scale.real);
        }
    }

    /// What the fine plane of some of a row's blocks adds to ŵ·x̂; `sum` is Σ q over these blocks.
    #[inline]
    fn fine_part(&self, (token, row): (usize, usize), blocks: Range<usize>, sum: i32, kernels: &dyn Kernels) -> f32 {
        let quantized = self.tokens[token].quantized;
        let products = kernels.fine_sum(&self.fine_row(row)[blocks.clone()], &self.activations(token)[blocks]);
        // 4·q₄ − 30 + q₂ − 1.5 = q − 31.5
        scaled(2 * i64::from(products) - 3 * i64::from(sum), 0.5 * self.scales[row], quantized.scale.real)
    }
}

#[inline]
fn scaled(sum: i64, weight_scale: f32, activation_scale: f32) -> f32 {
    sum as f32 * (weight_scale * activation_scale)
}

/// Logits of one head for some tokens, the best of each exact.
pub(crate) struct Screening<'a> {
    pub(crate) head: &'a DenseTable,
    pub(crate) x: F32Rows<'a>,
    pub(crate) kernels: &'a dyn Kernels,
}

impl Screening<'_> {
    /// Fills `out[m, n]`: in each row the logits that are wanted exactly, and −∞ where a smaller one was proved. Nothing if a bound
    /// is not finite.
    pub(crate) fn run(
        &self,
        screen: &mut Screen,
        (hidden, wanted): (&CpuHidden, &[Option<BestLogits>]),
        out: &mut CpuHidden,
        (pool, scratch): (&mut Pool, &mut [Scratch]),
    ) -> Result<bool, DeviceError> {
        if !screen.prepare(hidden, self.kernels) {
            return Ok(false);
        }
        let n = self.head.n();
        let target = ColumnTarget { values: out.values_mut(), width: n, columns: 0..n, granule: TILE_ROWS };
        let planes = screen.planes(hidden.n_rows(), self.kernels);
        screen.last_planes = planes;
        pool.run_columns(scratch, target, |scratch, columns| screen.read(planes, columns, self.kernels, scratch));
        let limit = |wanted: &BestLogits| BestLogits { n: wanted.n.clamp(1, n), ..*wanted };
        let wanted = || wanted.iter().flatten().map(limit).enumerate();
        let (mut best, mut survivors) = (std::mem::take(&mut screen.best), std::mem::take(&mut screen.survivors));
        // What looks best, made exact, bounds from below what is wanted.
        screen.thresholds.clear();
        for ((token, wanted), logits) in wanted().zip(out.values().chunks_exact(n)) {
            self.find_best(&mut best, (token, logits, wanted.n), (pool, scratch));
            self.make_exact(&mut best.0, (pool, scratch))?;
            screen.thresholds.push(best.threshold(wanted));
        }
        screen.is_flat = self.is_flat(screen, out.values());
        self.find_survivors(&mut survivors, (screen, planes), out, (pool, scratch));
        for ((token, wanted), logits) in wanted().zip(out.values_mut().chunks_exact_mut(n)) {
            let own = survivors.0.iter().filter(|survivor| survivor.token as usize == token);
            self.refine(&mut best, (screen, token, wanted), own.copied(), (pool, scratch))?;
            best.0.iter().for_each(|survivor| logits[survivor.row as usize] = survivor.logit);
        }
        (screen.best, screen.survivors) = (best, survivors);
        Ok(true)
    }

    /// Whether the coarse plane leaves many rows a chance, going by a sample of them; what both planes say of a row is as good for that.
    fn is_flat(&self, screen: &Screen, logits: &[f32]) -> bool {
        let (n, rounding) = (self.head.n(), rounding(self.head.k()));
        let (mut n_seen, mut n_passed) = (0, 0);
        for ((logits, token), threshold) in logits.chunks_exact(n).zip(&screen.tokens).zip(&screen.thresholds) {
            for (logit, bound) in logits.iter().zip(&screen.bounds).step_by(SAMPLE_STEP) {
                n_seen += 1;
                n_passed += usize::from(logit + token.radius(bound, bound.coarse_error, rounding) >= *threshold);
            }
        }
        n_passed * FLAT_PART > n_seen
    }

    /// Leaves in `best` those of one token's survivors that may be wanted, exact.
    fn refine(
        &self,
        best: &mut Candidates,
        (screen, token, wanted): (&Screen, usize, BestLogits),
        survivors: impl Iterator<Item = Candidate> + Clone,
        (pool, scratch): (&mut Pool, &mut [Scratch]),
    ) -> Result<(), DeviceError> {
        best.0.clear();
        best.0.extend(survivors.clone());
        best.keep_best(wanted.n);
        // The best of both planes, made exact, raise the bound.
        self.make_exact(&mut best.0, (pool, scratch))?;
        let threshold = best.threshold(wanted).max(screen.thresholds[token]);
        let (token_bound, rounding) = (&screen.tokens[token], rounding(self.head.k()));
        best.0.clear();
        best.0.extend(survivors.filter(|survivor| {
            let bound = &screen.bounds[survivor.row as usize];
            survivor.logit + token_bound.radius(bound, bound.fine_error, rounding) >= threshold
        }));
        self.make_exact(&mut best.0, (pool, scratch))
    }

    /// The `n` largest of all logits of a token.
    fn find_best(&self, best: &mut Candidates, (token, logits, n): (usize, &[f32], usize), (pool, scratch): (&mut Pool, &mut [Scratch])) {
        let parts = Parts::new(logits.len(), pool.n_threads(), |rows| rows);
        scratch.iter_mut().for_each(|scratch| scratch.candidates.0.clear());
        pool.run_parts(scratch, parts, |scratch, rows: Range<usize>| {
            scratch.candidates.best_of(&logits[rows.clone()], (token, rows.start), n);
        });
        best.gather(scratch);
        best.keep_best(n);
    }

    /// Rows that both planes leave a chance for each token, with what they say; −∞ in all of `out`.
    fn find_survivors(
        &self,
        survivors: &mut Candidates,
        (screen, planes): (&Screen, Planes),
        out: &mut CpuHidden,
        (pool, scratch): (&mut Pool, &mut [Scratch]),
    ) {
        let n = self.head.n();
        let target = ColumnTarget { values: out.values_mut(), width: n, columns: 0..n, granule: TILE_ROWS };
        scratch.iter_mut().for_each(|scratch| scratch.candidates.0.clear());
        pool.run_columns(scratch, target, |scratch, columns| {
            let range = columns.range();
            for block in range.start / FINE_BLOCK_ROWS..range.end.div_ceil(FINE_BLOCK_ROWS) {
                let rows = block * FINE_BLOCK_ROWS..(block + 1) * FINE_BLOCK_ROWS;
                let mut block = columns.part(rows.start.max(range.start)..rows.end.min(range.end));
                for token in 0..block.n_rows() {
                    self.survivors_of_block((screen, planes, token), &mut block, &mut scratch.candidates.0);
                }
            }
        });
        survivors.gather(scratch);
    }

    /// Appends one token's survivors among the rows of a block.
    fn survivors_of_block(
        &self,
        (screen, planes, token): (&Screen, Planes, usize),
        block: &mut ColumnsMut<'_>,
        candidates: &mut Vec<Candidate>,
    ) {
        let (token_bound, rounding, threshold) = (&screen.tokens[token], rounding(self.head.k()), screen.thresholds[token]);
        let mut passed = [Candidate { token: token as u32, row: 0, logit: 0.0 }; FINE_BLOCK_ROWS];
        let mut n_passed = 0;
        let range = block.range();
        let radius = |bound: &RowBound| token_bound.radius(bound, planes.error(bound), rounding);
        let largest_radius = radius(&screen.block_bounds[range.start / FINE_BLOCK_ROWS]);
        let logits = block.row_mut(token);
        for ((rows, logits), bounds) in range.clone().step_by(LANES).zip(logits.chunks_mut(LANES)).zip(screen.bounds[range].chunks(LANES)) {
            let largest = logits.iter().fold(f32::NEG_INFINITY, |largest, &logit| if logit > largest { logit } else { largest });
            if largest + largest_radius < threshold {
                logits.fill(f32::NEG_INFINITY);
                continue;
            }
            // Every row is written and counted if it passes: with a random head half of them do, which no branch predicts.
            for ((row, logit), bound) in (rows as u32..).zip(logits).zip(bounds) {
                let known = std::mem::replace(logit, f32::NEG_INFINITY);
                (passed[n_passed].row, passed[n_passed].logit) = (row, known);
                n_passed += usize::from(known + radius(bound) >= threshold);
            }
        }
        let passed = &passed[..n_passed];
        if planes == Planes::Both {
            return candidates.extend_from_slice(passed);
        }
        let n_first = first_half(screen.n_blocks);
        for (index, candidate) in passed.iter().enumerate() {
            if let Some(ahead) = passed.get(index + FINE_ROWS_AHEAD) {
                self.kernels.prefetch(screen.fine_row(ahead.row as usize)[..n_first].as_flattened());
            }
            let (row, bound) = (candidate.row as usize, &screen.bounds[candidate.row as usize]);
            let half = candidate.logit + screen.fine_part((token, row), 0..n_first, token_bound.first_sum, self.kernels);
            if half + token_bound.radius(bound, bound.half_error, rounding) < threshold {
                continue;
            }
            let rest = token_bound.quantized.sum - token_bound.first_sum;
            let fine = half + screen.fine_part((token, row), n_first..screen.n_blocks, rest, self.kernels);
            if fine + token_bound.radius(bound, bound.fine_error, rounding) >= threshold {
                candidates.push(Candidate { logit: fine, ..*candidate });
            }
        }
    }

    /// Replaces what the planes say by the exact logit.
    fn make_exact(&self, candidates: &mut [Candidate], (pool, scratch): (&mut Pool, &mut [Scratch])) -> Result<(), DeviceError> {
        let mut rest = candidates;
        let parts = Parts::new(rest.len(), pool.n_threads(), |range| rest.split_off_mut(..range.len()).expect("they sum up"));
        pool.run_parts(scratch, parts, |scratch, candidates| {
            scratch.with_rows(|buffer, scratch| {
                for index in 0..candidates.len() {
                    // Rows are far apart: the next one comes while this one is multiplied.
                    if let Some(ahead) = candidates.get(index + 1).and_then(|next| self.head.resident_row(next.row as usize)) {
                        self.kernels.prefetch(ahead);
                    }
                    let candidate = &mut candidates[index];
                    let row = candidate.row as usize;
                    let stored = self.head.read(row..row + 1, buffer)?;
                    candidate.logit = self.kernels.dot_row(self.x.row(candidate.token as usize), &stored, row, scratch);
                }
                Ok(())
            });
        });
        first_failure(scratch)
    }
}
