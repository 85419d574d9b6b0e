//! `CpuLinear`: ternary weights in tiles, and the products `bit_linear` and `bit_linear_add`: every thread computes a
//! contiguous range of out features for all tokens.

use bitnet_checkpoint::config::ActivationPolicy;

use crate::activations::{ActivationRows, CpuActivations};
use crate::hidden::CpuHidden;
use crate::kernels::{Kernels, Scratch, Store};
use crate::pool::{ColumnTarget, Pool};
use crate::tile::{TILE_ROWS, Tiles};

/// Ternary weights `[n, k]` on the CPU.
pub struct CpuLinear {
    pub(crate) tiles: Tiles,
    pub(crate) policy: ActivationPolicy,
}

/// Writes `x · Wᵀ` to columns `first_column..first_column + n` of `out`, or adds it there.
pub(crate) fn bit_linear(
    x: &CpuActivations,
    weights: &CpuLinear,
    (out, first_column, store): (&mut CpuHidden, usize, Store),
    (pool, scratch): (&mut Pool, &mut [Scratch]),
    kernels: &dyn Kernels,
) {
    let tiles = &weights.tiles;
    assert_eq!(x.width(), tiles.k(), "activations are as wide as the weights");
    assert_eq!(x.n_rows(), out.n_rows(), "an output row for each token");
    let rows = x.view();
    let policy = match rows {
        ActivationRows::Int8(_) => ActivationPolicy::Int8PerToken,
        ActivationRows::F32(_) => ActivationPolicy::Unquantised,
    };
    assert_eq!(policy, weights.policy, "activations follow the weights' policy");
    let width = out.width();
    let columns = first_column..first_column + tiles.n();
    let target = ColumnTarget { values: out.values_mut(), width, columns, granule: TILE_ROWS };
    pool.run_columns(scratch, target, |scratch, columns| match rows {
        ActivationRows::Int8(rows) => kernels.linear_int8(rows, tiles, store, columns, scratch),
        ActivationRows::F32(rows) => kernels.linear_f32(rows, tiles, store, columns, scratch),
    });
}
