//! The coarse plane of a head's screen × int8 tokens, by `vpdpbusd`.

use super::DotRows;
use crate::screen::{COARSE_BYTES, SCREEN_TOKENS};
use crate::tile::{BLOCK_COLUMNS, QUARTER_COLUMNS, TILE_ROWS};

/// The lower code of a byte.
const LOW: u8 = 15;

/// Σ code·q of four rows of the coarse plane, for each token. Registers must hold the sums of `SCREEN_TOKENS` tokens.
#[inline(always)]
pub(in super::super) fn coarse_sums<V: DotRows>(
    v: V,
    tile: &[[u8; COARSE_BYTES]],
    tokens: &[&[[i8; BLOCK_COLUMNS]]],
    sums: &mut [[i32; TILE_ROWS]],
) {
    const { assert!(SCREEN_TOKENS == 4) };
    match *tokens {
        [a] => sums_of::<V, 1>(v, tile, [a], sums),
        [a, b] => sums_of::<V, 2>(v, tile, [a, b], sums),
        [a, b, c] => sums_of::<V, 3>(v, tile, [a, b, c], sums),
        [a, b, c, d] => sums_of::<V, 4>(v, tile, [a, b, c, d], sums),
        _ => unreachable!("1..=SCREEN_TOKENS tokens share a tile"),
    }
}

/// T tokens share what is unpacked.
#[inline(always)]
fn sums_of<V: DotRows, const T: usize>(
    v: V,
    tile: &[[u8; COARSE_BYTES]],
    tokens: [&[[i8; BLOCK_COLUMNS]]; T],
    sums: &mut [[i32; TILE_ROWS]],
) {
    let quarters = tokens.map(|token| &token.as_flattened().as_chunks::<QUARTER_COLUMNS>().0[..2 * tile.len()]);
    let mut products = [[v.zero(); 2]; T];
    for (index, unit) in tile.iter().enumerate() {
        v.prefetch_behind(unit);
        let codes = v.load(unit);
        let (low, high) = (v.masked(codes, LOW), v.masked(v.shifted::<4>(codes), LOW));
        for (products, quarters) in products.iter_mut().zip(quarters) {
            products[0] = v.dot(products[0], low, v.load_quarter(&quarters[2 * index]));
            products[1] = v.dot(products[1], high, v.load_quarter(&quarters[2 * index + 1]));
        }
    }
    for (sums, [low, high]) in sums.iter_mut().zip(products) {
        let (low, high) = (v.totals(low), v.totals(high));
        *sums = std::array::from_fn(|row| low[row] + high[row]);
    }
}
