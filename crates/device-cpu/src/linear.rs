//! `CpuLinear`: ternary weights in tiles, and the products `bit_linear` and `bit_linear_add`: every thread computes a
//! contiguous range of out features for all tokens.

use bitnet_checkpoint::config::ActivationPolicy;
use bitnet_ternary::TernaryMatrix;

use crate::activations::{ActivationRows, CpuActivations};
use crate::ahead::{Followers, Stretch};
use crate::arch::OutOfMemory;
use crate::hidden::CpuHidden;
use crate::kernels::{Kernels, Scratch, Store};
use crate::lane_tile::{LANE_ROWS, LaneTiles};
use crate::pool::{ColumnTarget, Pool};
use crate::tile::{TILE_ROWS, Tiles};

/// Products of more rows are bound by arithmetic: nothing is fetched ahead of them.
const AHEAD_ROWS: usize = 4;

/// Ternary weights `[n, k]` on the CPU.
pub struct CpuLinear(Weights);

/// In the order that suits the activations they meet.
enum Weights {
    /// For int8 activations with one scale a token.
    Int8(Tiles),
    /// For int8 activations with a scale a group.
    Groups(LaneTiles),
    /// For f32 activations.
    F32(Tiles),
}

impl CpuLinear {
    pub(crate) fn new(
        weights: &TernaryMatrix,
        policy: ActivationPolicy,
        (pool, scratch): (&mut Pool, &mut [Scratch]),
    ) -> Result<Self, OutOfMemory> {
        Ok(Self(match policy {
            ActivationPolicy::Int8PerToken => Weights::Int8(Tiles::new(weights, pool, scratch)?),
            ActivationPolicy::Int8PerGroup => Weights::Groups(LaneTiles::new(weights, pool, scratch)?),
            ActivationPolicy::Unquantised => Weights::F32(Tiles::new(weights, pool, scratch)?),
        }))
    }

    /// Out features.
    pub(crate) fn n(&self) -> usize {
        match &self.0 {
            Weights::Int8(tiles) | Weights::F32(tiles) => tiles.n(),
            Weights::Groups(tiles) => tiles.n(),
        }
    }

    /// In features.
    fn k(&self) -> usize {
        match &self.0 {
            Weights::Int8(tiles) | Weights::F32(tiles) => tiles.k(),
            Weights::Groups(tiles) => tiles.k(),
        }
    }

    /// Bytes of codes and scales.
    pub(crate) fn size_bytes(&self) -> u64 {
        match &self.0 {
            Weights::Int8(tiles) | Weights::F32(tiles) => tiles.size_bytes(),
            Weights::Groups(tiles) => tiles.size_bytes(),
        }
    }

    /// Where the codes lie.
    fn stretch(&self) -> Stretch {
        let codes = match &self.0 {
            Weights::Int8(tiles) | Weights::F32(tiles) => tiles.codes(),
            Weights::Groups(tiles) => tiles.codes(),
        };
        Stretch::new(codes, self.n().div_ceil(self.granule()))
    }

    /// Rows that threads do not share.
    fn granule(&self) -> usize {
        match &self.0 {
            Weights::Int8(_) | Weights::F32(_) => TILE_ROWS,
            Weights::Groups(_) => LANE_ROWS,
        }
    }
}

/// Writes `x · Wᵀ` to columns `first_column..first_column + n` of `out`, or adds it there.
pub(crate) fn bit_linear(
    x: &CpuActivations,
    weights: &CpuLinear,
    (out, first_column, store): (&mut CpuHidden, usize, Store),
    (pool, scratch, followers): (&mut Pool, &mut [Scratch], &mut Followers),
    kernels: &dyn Kernels,
) {
    assert_eq!(x.width(), weights.k(), "activations are as wide as the weights");
    assert_eq!(x.n_rows(), out.n_rows(), "an output row for each token");
    let rows = x.view();
    let width = out.width();
    let columns = first_column..first_column + weights.n();
    pool.fetch_ahead(if x.n_rows() <= AHEAD_ROWS { followers.after(weights.stretch()) } else { None });
    let target = ColumnTarget { values: out.values_mut(), width, columns, granule: weights.granule() };
    pool.run_columns(scratch, target, |scratch, columns| match (rows, &weights.0) {
        (ActivationRows::Int8(rows), Weights::Int8(tiles)) => kernels.linear_int8(rows, tiles, store, columns, scratch),
        (ActivationRows::Groups(rows), Weights::Groups(tiles)) => kernels.linear_groups(rows, tiles, store, columns, scratch),
        (ActivationRows::F32(rows), Weights::F32(tiles)) => kernels.linear_f32(rows, tiles, store, columns, scratch),
        _ => panic!("activations follow the weights' policy"),
    });
}
