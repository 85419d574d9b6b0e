//! What `vpdpbusd` can do: products of registers with registers.

use std::hint::black_box;

use super::DotRows;
use crate::tile::{BLOCK_BYTES, QUARTER_COLUMNS};

/// Does `n_rounds` rounds of N tiles, which must fit the registers; yields the multiply-adds done.
#[inline(always)]
pub(in super::super) fn products<V: DotRows, const N: usize>(v: V, n_rounds: usize) -> u64 {
    let mut sums = [v.zero(); N];
    let (codes, x) = (v.load(&black_box([1; BLOCK_BYTES])), v.load_quarter(&black_box([1; QUARTER_COLUMNS])));
    for _ in 0..n_rounds {
        for sums in &mut sums {
            *sums = v.dot(*sums, codes, x);
        }
    }
    for sums in sums {
        black_box(v.totals(sums));
    }
    (n_rounds * N * BLOCK_BYTES) as u64
}
