//! The screen of a ternary head: its weights times int8 activations in groups, from which the rows that could hold the best logits
//! are found in the time that reading the weights takes. Only those are multiplied with the activations themselves, which takes
//! four times as long.
//!
//! For a token x, its int8 quantisation x̂ and a row w of the head, what the screen says differs from the exact product by
//!
//! ```text
//! |w·x − w·x̂| = |w·(x − x̂)| ≤ ‖w‖·‖x − x̂‖        (Cauchy–Schwarz)
//! ```
//!
//! whose norms are measured, not estimated, and rounded upwards. Both products are rounded, too: each has at most k additions and two
//! multiplications for each term, so each is off by less than (k + 64) · ε · ‖w‖·(‖x‖ + ‖x − x̂‖). A row whose product plus this radius stays
//! below what the n-th best row has at least cannot be among the n best: what is left out is proved to be out. `screen` is the
//! same idea for dense heads.

use bitnet_model::batch::BestLogits;
use bitnet_ternary::TernaryMatrix;

use crate::arch::OutOfMemory;
use crate::hidden::CpuHidden;
use crate::kernels::{F32Rows, GroupRowMut, GroupRows, Kernels, RowScale, Scratch, Store};
use crate::lane_tile::{LANE_ROWS, LaneTiles};
use crate::pool::{ColumnTarget, Parts, Pool};
use crate::tile::{BLOCK_COLUMNS, Tiles};

/// Upwards rounding of what is computed of norms.
const SLACK: f32 = 1.0 + 1.0 / 1024.0;

/// A screen `[n, k]`.
pub(crate) struct TernaryScreen {
    tiles: LaneTiles,
    /// ‖w‖ of each row, rounded upwards, `[n]`.
    norms: Vec<f32>,
    /// int8 rows of the tokens, `[m, k padded]`.
    quantized: Vec<i8>,
    /// `[m, k padded / BLOCK_COLUMNS]`.
    scales: Vec<RowScale>,
    /// Radius of each token over ‖w‖, `[m]`.
    radii: Vec<f32>,
    /// What each row has at least, `[n]`.
    least: Vec<f32>,
    /// Rows that may be among the best, and their logits.
    survivors: Vec<(usize, f32)>,
}

impl TernaryScreen {
    pub(crate) fn new(head: &TernaryMatrix, pool: &mut Pool, scratch: &mut [Scratch]) -> Result<Self, OutOfMemory> {
        let tiles = LaneTiles::new(head, pool, scratch)?;
        let mut norms = vec![0.0; head.n_rows()];
        let mut rest = &mut norms[..];
        let parts = Parts::new(head.n_rows(), pool.n_threads(), |rows| {
            let part = rest.split_off_mut(..rows.len()).expect("rows sum up to all");
            (rows, part)
        });
        pool.run_parts(scratch, parts, |_, (rows, norms)| {
            let mut trits = vec![0; head.n_cols()];
            rows.zip(norms).for_each(|(row, norm)| *norm = row_norm(head, row, &mut trits));
        });
        let (quantized, scales, radii, least, survivors) = Default::default();
        Ok(Self { tiles, norms, quantized, scales, radii, least, survivors })
    }

    /// Bytes that finding the best logits reads at least.
    pub(crate) fn read_bytes(&self) -> u64 {
        self.tiles.size_bytes()
    }

    /// Quantises the tokens and bounds what that does to their products.
    fn prepare(&mut self, x: &CpuHidden, kernels: &dyn Kernels) {
        let (k, stride) = (x.width(), x.width().next_multiple_of(BLOCK_COLUMNS));
        self.quantized.resize(x.n_rows() * stride, 0);
        self.scales.resize(x.n_rows() * stride / BLOCK_COLUMNS, RowScale::default());
        self.radii.clear();
        let buffers = self.quantized.chunks_exact_mut(stride).zip(self.scales.chunks_exact_mut(stride / BLOCK_COLUMNS));
        for (row, (quantized, scales)) in x.values().chunks_exact(k).zip(buffers) {
            kernels.quantise_groups(row, GroupRowMut { quantized, scales });
            let (mut squares, mut error) = (0.0f64, 0.0f64);
            for ((values, integers), scale) in row.chunks(BLOCK_COLUMNS).zip(quantized.chunks(BLOCK_COLUMNS)).zip(scales) {
                for (&value, &integer) in values.iter().zip(integers) {
                    let difference = f64::from(value) - f64::from(integer) * f64::from(scale.scale.real);
                    squares += f64::from(value) * f64::from(value);
                    error += difference * difference;
                }
            }
            let (norm, error) = (squares.sqrt() as f32, error.sqrt() as f32);
            let rounding = 2.0 * (k + 64) as f32 * f32::EPSILON;
            self.radii.push((error + rounding * (norm + error)) * SLACK + f32::MIN_POSITIVE);
        }
    }

    fn tokens(&self) -> GroupRows<'_> {
        GroupRows { quantized: &self.quantized, stride: self.tiles.k().next_multiple_of(BLOCK_COLUMNS), scales: &self.scales }
    }

    /// Fills `out[m, n]`: in each row the logits that are wanted exactly, and −∞ where a smaller one was proved. Nothing if a radius is
    /// not finite.
    pub(crate) fn run(
        &mut self,
        (head, hidden, x): (&Tiles, &CpuHidden, F32Rows<'_>),
        wanted: &[Option<BestLogits>],
        out: &mut CpuHidden,
        (pool, scratch): (&mut Pool, &mut [Scratch]),
        kernels: &dyn Kernels,
    ) -> bool {
        self.prepare(hidden, kernels);
        if !self.radii.iter().chain(&self.norms).all(|radius| radius.is_finite()) {
            return false;
        }
        let n = self.tiles.n();
        let target = ColumnTarget { values: out.values_mut(), width: n, columns: 0..n, granule: LANE_ROWS };
        let (tokens, tiles) = (self.tokens(), &self.tiles);
        pool.run_columns(scratch, target, |scratch, columns| kernels.linear_groups(tokens, tiles, Store::Write, columns, scratch));
        for (token, (logits, &wanted)) in out.values_mut().chunks_exact_mut(n).zip(wanted.iter().flatten()).enumerate() {
            self.find_survivors(token, wanted, logits);
            let mut rest = &mut self.survivors[..];
            let parts = Parts::new(rest.len(), pool.n_threads(), |range| rest.split_off_mut(..range.len()).expect("they sum up"));
            pool.run_parts(scratch, parts, |scratch, survivors| {
                survivors.iter_mut().for_each(|(row, logit)| *logit = kernels.ternary_dot_row(x.row(token), head, *row, scratch));
            });
            logits.fill(f32::NEG_INFINITY);
            self.survivors.iter().for_each(|&(row, logit)| logits[row] = logit);
        }
        true
    }

    /// Rows that reach what is wanted at most, given what all rows have at least.
    fn find_survivors(&mut self, token: usize, wanted: BestLogits, logits: &[f32]) {
        let radius = self.radii[token];
        self.least.clear();
        self.least.extend(logits.iter().zip(&self.norms).map(|(logit, norm)| logit - norm * radius));
        let largest = self.least.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let last = wanted.n.clamp(1, logits.len()) - 1;
        let (_, &mut nth, _) = self.least.select_nth_unstable_by(last, |a, b| b.total_cmp(a));
        let threshold = nth.min(largest - wanted.within);
        let reaches = |(row, logit): (usize, &f32)| (logit + self.norms[row] * radius >= threshold).then_some((row, 0.0));
        self.survivors.clear();
        self.survivors.extend(logits.iter().enumerate().filter_map(reaches));
    }
}

/// ‖w‖ of one row, rounded upwards.
fn row_norm(head: &TernaryMatrix, row: usize, trits: &mut [i8]) -> f32 {
    head.unpack_row(row, trits);
    let groups = trits.chunks(head.group_size()).enumerate().map(|(group, trits)| {
        let scale = f64::from(head.scale_at(row, group * head.group_size()));
        scale * scale * trits.iter().filter(|&&trit| trit != 0).count() as f64
    });
    groups.sum::<f64>().sqrt() as f32 * SLACK
}
