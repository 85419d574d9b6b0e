//! int8 products of many tokens: the codes of two tiles are unpacked into L1 once and meet every token of a block there. One
//! scale group only.
//!
//! `Panel` is how the codes lie in it and what multiplies them; `RowPanel` keeps rows apart (`smlal`, `sdot`), `Matrix` pairs
//! them (in `matrix`). The register tile of `RowPanel` is four rows × four tokens: 16 sums, 4 codes, 4 activations of 32
//! registers. Not here: what one token does (`int8`), or grouped scales.

use std::arch::aarch64::*;
use std::ops::Range;

use super::int8::{Product, dequantised};
use super::products::{Products, QUARTERS, sum_rows, unpacked, widened};
use super::vector::*;
use crate::kernels::{DEFERRED_COLUMNS, Int8Rows, PANEL_TILES, Scratch};
use crate::pool::ColumnsMut;
use crate::tile::{BLOCK_BYTES, BLOCK_COLUMNS, QUARTER_COLUMNS, TILE_ROWS};

/// From this many tokens on a panel pays: by count of instructions (docs/kernels.md).
pub(super) const TOKENS_FROM: usize = 4;
/// Tokens that share the weights in registers.
const TOKENS: usize = 4;

/// Unpacked codes of one quarter of a tile: four rows, or what else its owner makes of eight registers.
pub(super) type PanelStep = [Halves<u8>; TILE_ROWS];
/// Sums of a tile for one token.
pub(super) type TileSums = [i32; TILE_ROWS];

/// How unpacked codes lie in a panel and meet activations.
pub(super) trait Panel: Copy {
    /// Most columns of a panel.
    const COLUMNS_MAX: usize;

    /// Codes of whole blocks, one byte each, `QUARTERS` steps a block.
    fn unpack(self, codes: &[[u8; BLOCK_BYTES]], panel: &mut [PanelStep]);

    /// Σ code·q of some tokens over the panel's blocks, through `keep` into `sums[tokens, PANEL_TILES]`.
    fn sum(self, panel: PanelCodes<'_>, x: Int8Rows<'_>, tokens: Range<usize>, sums: &mut [TileSums]);
}

/// The unpacked codes of one or two tiles over some blocks.
#[derive(Clone, Copy)]
pub(super) struct PanelCodes<'a> {
    /// `[n_tiles, blocks.len() · QUARTERS]`
    pub(super) steps: &'a [PanelStep],
    pub(super) blocks: (usize, usize),
}

impl<'a> PanelCodes<'a> {
    /// Steps of one tile.
    #[inline]
    pub(super) fn n_steps(&self) -> usize {
        (self.blocks.1 - self.blocks.0) * QUARTERS
    }

    /// Each tile's steps.
    #[inline]
    pub(super) fn tiles(&self) -> std::slice::ChunksExact<'a, PanelStep> {
        self.steps.chunks_exact(self.n_steps())
    }

    /// The activations that the panel's columns meet.
    #[inline]
    pub(super) fn activations(&self, x: Int8Rows<'a>, token: usize) -> &'a [Halves<i8>] {
        x.blocks(token)[self.blocks.0..self.blocks.1].as_flattened().as_chunks().0.as_chunks().0
    }

    /// Writes (first blocks) or adds products to where they wait.
    #[inline]
    #[target_feature(enable = "neon")]
    pub(super) fn keep(&self, products: int32x4_t, sums: &mut TileSums) {
        store_sums(sums, if self.blocks.0 == 0 { products } else { vaddq_s32(load_sums(sums), products) });
    }
}

/// Every tile for a block of tokens.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn linear<P: Panel>(panel: P, job: Product<'_>, tokens: Range<usize>, out: &mut ColumnsMut<'_>, scratch: &mut Scratch) {
    const { assert!(P::COLUMNS_MAX <= DEFERRED_COLUMNS, "scratch holds a panel") };
    let (columns, n_blocks) = (out.range(), job.weights.n_blocks());
    let n_chunks = n_blocks.div_ceil(P::COLUMNS_MAX / BLOCK_COLUMNS);
    let chunk_blocks = n_blocks.div_ceil(n_chunks);
    let end = columns.end.div_ceil(TILE_ROWS);
    for first_tile in (columns.start / TILE_ROWS..end).step_by(PANEL_TILES) {
        let tiles = first_tile..end.min(first_tile + PANEL_TILES);
        for first in (0..n_blocks).step_by(chunk_blocks) {
            let blocks = (first, n_blocks.min(first + chunk_blocks));
            let n_steps = (blocks.1 - blocks.0) * QUARTERS;
            let steps: &mut [PanelStep] = scratch.panel.as_chunks_mut().0.as_chunks_mut().0.as_chunks_mut().0;
            let steps = &mut steps[..tiles.len() * n_steps];
            for (tile, steps) in tiles.clone().zip(steps.chunks_exact_mut(n_steps)) {
                panel.unpack(&job.weights.tile(tile)[blocks.0..blocks.1], steps);
            }
            panel.sum(PanelCodes { steps, blocks }, job.x, tokens.clone(), scratch.sums.as_chunks_mut().0);
        }
        finish(job, (tokens.clone(), tiles), out, scratch.sums.as_chunks().0);
    }
}

/// The epilogue of a panel.
#[inline]
#[target_feature(enable = "neon")]
fn finish(job: Product<'_>, (tokens, tiles): (Range<usize>, Range<usize>), out: &mut ColumnsMut<'_>, sums: &[TileSums]) {
    let first_column = out.range().start;
    for (token, sums) in tokens.zip(sums.chunks_exact(PANEL_TILES)) {
        let row = job.x.scales[token];
        let out = out.row_mut(token);
        for (tile, sums) in tiles.clone().zip(sums) {
            let values = dequantised(load_sums(sums), row, job.weights.tile_inverse_scales(tile));
            job.store.store(&mut out[tile * TILE_ROWS - first_column..], to_array(values));
        }
    }
}

/// A panel whose steps are four rows of 32 columns.
#[derive(Clone, Copy)]
pub(super) struct RowPanel<P>(pub(super) P);

impl<P: Products> Panel for RowPanel<P> {
    const COLUMNS_MAX: usize = if P::DEFERRED_COLUMNS < DEFERRED_COLUMNS { P::DEFERRED_COLUMNS } else { DEFERRED_COLUMNS };

    #[inline(always)]
    fn unpack(self, codes: &[[u8; BLOCK_BYTES]], panel: &mut [PanelStep]) {
        // SAFETY: a panel is used only by kernels of `Neon`, which exists only where NEON was detected.
        unsafe { unpack_rows(codes, panel) }
    }

    #[inline(always)]
    fn sum(self, panel: PanelCodes<'_>, x: Int8Rows<'_>, tokens: Range<usize>, sums: &mut [TileSums]) {
        // SAFETY: as in `unpack`.
        unsafe { sum_rows_of_panel(self.0, panel, x, tokens, sums) }
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn unpack_rows(codes: &[[u8; BLOCK_BYTES]], panel: &mut [PanelStep]) {
    for (block, steps) in codes.iter().zip(panel.as_chunks_mut::<QUARTERS>().0) {
        for (row, bytes) in rows_of(block).iter().enumerate() {
            store_unpacked(load_u8(&bytes[0]), steps, (row, 0));
            store_unpacked(load_u8(&bytes[1]), steps, (row, 1));
        }
    }
}

/// Unpacks 64 codes into one register of each step.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn store_unpacked(bytes: uint8x16_t, steps: &mut [PanelStep; QUARTERS], (a, b): (usize, usize)) {
    for (step, codes) in steps.iter_mut().zip(unpacked(bytes)) {
        store_codes(&mut step[a][b], codes);
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn sum_rows_of_panel<P: Products>(products: P, panel: PanelCodes<'_>, x: Int8Rows<'_>, tokens: Range<usize>, sums: &mut [TileSums]) {
    let mut token = tokens.start;
    while token < tokens.end {
        let sums = &mut sums[(token - tokens.start) * PANEL_TILES..];
        token += match tokens.end - token {
            1 => sum_tokens::<P, 1>(products, panel, (x, token), sums),
            2 | 3 => sum_tokens::<P, 2>(products, panel, (x, token), sums),
            _ => sum_tokens::<P, TOKENS>(products, panel, (x, token), sums),
        };
    }
}

/// T tokens from `token` on, all tiles; yields T.
#[inline]
#[target_feature(enable = "neon")]
fn sum_tokens<P: Products, const T: usize>(
    products: P,
    panel: PanelCodes<'_>,
    (x, token): (Int8Rows<'_>, usize),
    sums: &mut [TileSums],
) -> usize {
    let mut rows: [&[Halves<i8>]; T] = [&[]; T];
    for (index, row) in rows.iter_mut().enumerate() {
        *row = panel.activations(x, token + index);
    }
    for (tile, steps) in panel.tiles().enumerate() {
        for (index, products) in sum_steps(products, steps, rows).into_iter().enumerate() {
            panel.keep(products, &mut sums[index * PANEL_TILES + tile]);
        }
    }
    T
}

/// Σ code·q of four rows for each token: the register tile.
#[inline]
#[target_feature(enable = "neon")]
fn sum_steps<P: Products, const T: usize>(products: P, panel: &[PanelStep], mut rows: [&[Halves<i8>]; T]) -> [int32x4_t; T] {
    assert!(panel.len() * QUARTER_COLUMNS <= P::DEFERRED_COLUMNS, "sums would overflow");
    for row in &mut rows {
        *row = &row[..panel.len()];
    }
    let mut sums = [[vdupq_n_s32(0); TILE_ROWS]; T];
    for (index, step) in panel.iter().enumerate() {
        let mut x = [[vdupq_n_s8(0); T]; 2];
        for (token, row) in rows.into_iter().enumerate() {
            let [low, high] = &row[index];
            (x[0][token], x[1][token]) = (load_i8(low), load_i8(high));
        }
        let [a, b, c, d] = step;
        add_tile(products, &mut sums, [load_codes(&a[0]), load_codes(&b[0]), load_codes(&c[0]), load_codes(&d[0])], x[0]);
        add_tile(products, &mut sums, [load_codes(&a[1]), load_codes(&b[1]), load_codes(&c[1]), load_codes(&d[1])], x[1]);
    }
    let mut totals = [vdupq_n_s32(0); T];
    for (total, sums) in totals.iter_mut().zip(sums) {
        let mut wide = [vdupq_n_s32(0); TILE_ROWS];
        for (wide, sum) in wide.iter_mut().zip(sums) {
            *wide = widened::<P>(*wide, sum);
        }
        *total = sum_rows(wide);
    }
    totals
}

/// sums[token][row] += codes[row] · x[token].
#[inline]
#[target_feature(enable = "neon")]
fn add_tile<P: Products, const T: usize>(
    products: P,
    sums: &mut [[int32x4_t; TILE_ROWS]; T],
    [a, b, c, d]: [int8x16_t; TILE_ROWS],
    x: [int8x16_t; T],
) {
    for (sums, x) in sums.iter_mut().zip(x) {
        *sums = [products.add(sums[0], a, x), products.add(sums[1], b, x), products.add(sums[2], c, x), products.add(sums[3], d, x)];
    }
}
