//! `Tiles`: ternary weights as the kernels read them. Rows are interleaved by four in units of 32 bytes, so that a thread's
//! rows are one linear stream and four rows share each load of activations.
//!
//! Byte j of a unit holds the 2-bit codes (trit + 1) of columns j, j + 32, j + 64, j + 96 of its block of 128, lowest bits
//! first: masking after a shift yields 32 neighbouring columns. k is padded to 128 with code 1 (trit 0) and activations with 0;
//! n is padded to 4. Idea: ggml-org/llama.cpp's repacked types and ikawrakow/ik_llama.cpp's `_R4` layouts; the 32-byte unit of
//! 128 codes is microsoft/BitNet's I2_S.

use std::ops::Range;

use bitnet_ternary::{Scales, TernaryMatrix, quantise};

use crate::arch::{Memory, OutOfMemory};
use crate::kernels::Scratch;
use crate::pool::{Parts, Pool};

/// Rows interleaved with each other.
pub(crate) const TILE_ROWS: usize = 4;
/// Columns of one block.
pub(crate) const BLOCK_COLUMNS: usize = 128;
/// Columns of one masked quarter of a unit: the finest group the fast kernels can scale.
pub(crate) const QUARTER_COLUMNS: usize = 32;
/// Bytes of one row of one block.
pub(crate) const UNIT_BYTES: usize = BLOCK_COLUMNS / 4;
/// Bytes of the four rows of one block.
pub(crate) const BLOCK_BYTES: usize = TILE_ROWS * UNIT_BYTES;

const _: () = assert!(UNIT_BYTES == QUARTER_COLUMNS && BLOCK_BYTES == 128);

/// Four times code 1.
const PADDING: u8 = 0b0101_0101;

/// Ternary weights `[n, k]` in tile order, with their scales.
pub(crate) struct Tiles {
    /// Out features.
    n: usize,
    /// In features.
    k: usize,
    /// Columns that share a scale.
    group_size: usize,
    /// Scale groups of a row.
    n_groups: usize,
    /// `[n_tiles, n_blocks, TILE_ROWS, UNIT_BYTES]`.
    codes: Memory<u8>,
    /// `[n_tiles, n_groups, TILE_ROWS]`; padding rows have scale 0.
    scales: Memory<f32>,
    /// `quantise::weight_inverse_scale` of scales of one group, `[n_tiles, TILE_ROWS]`; empty with more groups.
    inverse_scales: Memory<f32>,
}

impl Tiles {
    /// Re-tiles a matrix, all threads at once.
    pub(crate) fn new(weights: &TernaryMatrix, pool: &mut Pool, scratch: &mut [Scratch]) -> Result<Self, OutOfMemory> {
        let (n, k, group_size) = (weights.n_rows(), weights.n_cols(), weights.group_size());
        let n_tiles = n.div_ceil(TILE_ROWS);
        let tile_bytes = k.div_ceil(BLOCK_COLUMNS) * BLOCK_BYTES;
        let tile_scales = (k / group_size) * TILE_ROWS;
        let mut codes = Memory::zeroed(n_tiles * tile_bytes)?;
        let mut scales = Memory::zeroed(n_tiles * tile_scales)?;
        let mut inverse_scales = Memory::zeroed(if group_size == k { scales.len() } else { 0 })?;
        let (mut codes_left, mut scales_left) = (&mut codes[..], &mut scales[..]);
        let parts = Parts::new(n_tiles, pool.n_threads(), |tiles| {
            let codes = codes_left.split_off_mut(..tiles.len() * tile_bytes).expect("tiles sum up to n_tiles");
            let scales = scales_left.split_off_mut(..tiles.len() * tile_scales).expect("tiles sum up to n_tiles");
            (tiles, codes, scales)
        });
        pool.run_parts(scratch, parts, |_, (tiles, codes, scales)| {
            let buffers = codes.chunks_exact_mut(tile_bytes).zip(scales.chunks_exact_mut(tile_scales));
            for (tile, (codes, scales)) in tiles.zip(buffers) {
                fill_codes(weights, tile * TILE_ROWS, codes);
                fill_scales(weights, tile * TILE_ROWS, scales);
            }
        });
        for (inverse, &scale) in inverse_scales.iter_mut().zip(&scales[..]) {
            *inverse = quantise::weight_inverse_scale(scale);
        }
        Ok(Self { n, k, group_size, n_groups: k / group_size, codes, scales, inverse_scales })
    }

    /// All tiles, one after another.
    pub(crate) fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// Bytes of codes and scales.
    pub(crate) fn size_bytes(&self) -> u64 {
        (self.codes.len() + (self.scales.len() + self.inverse_scales.len()) * size_of::<f32>()) as u64
    }

    /// Out features.
    pub(crate) fn n(&self) -> usize {
        self.n
    }

    /// In features.
    pub(crate) fn k(&self) -> usize {
        self.k
    }

    /// Columns that share a scale.
    pub(crate) fn group_size(&self) -> usize {
        self.group_size
    }

    /// Scale groups of a row.
    pub(crate) fn n_groups(&self) -> usize {
        self.n_groups
    }

    /// Whether every group is whole quarters, as the fast kernels need; a single group always is, by its padding.
    pub(crate) fn has_whole_quarters(&self) -> bool {
        self.n_groups() == 1 || self.group_size.is_multiple_of(QUARTER_COLUMNS)
    }

    /// Quarters of a group: all of the row if there is one group, padding included.
    #[inline]
    pub(crate) fn group_quarters(&self) -> usize {
        if self.n_groups == 1 { self.n_blocks() * (BLOCK_COLUMNS / QUARTER_COLUMNS) } else { self.group_size / QUARTER_COLUMNS }
    }

    /// Blocks of a row.
    pub(crate) fn n_blocks(&self) -> usize {
        self.k.div_ceil(BLOCK_COLUMNS)
    }

    /// Blocks of one tile, `[n_blocks]` of `[TILE_ROWS, UNIT_BYTES]`.
    #[inline]
    pub(crate) fn tile(&self, tile: usize) -> &[[u8; BLOCK_BYTES]] {
        let tile_bytes = self.n_blocks() * BLOCK_BYTES;
        self.codes[tile * tile_bytes..(tile + 1) * tile_bytes].as_chunks().0
    }

    /// Scales of one tile, `[n_groups]` of `[TILE_ROWS]`.
    #[inline]
    pub(crate) fn tile_scales(&self, tile: usize) -> &[[f32; TILE_ROWS]] {
        let tile_scales = self.n_groups() * TILE_ROWS;
        self.scales[tile * tile_scales..(tile + 1) * tile_scales].as_chunks().0
    }

    /// Inverse scales of one tile. Panics with more than one group.
    #[inline]
    pub(crate) fn tile_inverse_scales(&self, tile: usize) -> &[f32; TILE_ROWS] {
        &self.inverse_scales.as_chunks().0[tile]
    }

    /// The same of some neighbouring tiles, `[tiles, TILE_ROWS]`.
    #[inline]
    pub(crate) fn inverse_scales(&self, tiles: Range<usize>) -> &[f32] {
        &self.inverse_scales[tiles.start * TILE_ROWS..tiles.end * TILE_ROWS]
    }

    /// One weight, −1, 0 or 1.
    #[inline]
    pub(crate) fn trit(&self, row: usize, column: usize) -> i8 {
        let block = &self.tile(row / TILE_ROWS)[column / BLOCK_COLUMNS];
        let within = column % BLOCK_COLUMNS;
        let byte = block[(row % TILE_ROWS) * UNIT_BYTES + within % QUARTER_COLUMNS];
        ((byte >> (2 * (within / QUARTER_COLUMNS))) & 3) as i8 - 1
    }

    /// The scale of one weight.
    #[inline]
    pub(crate) fn scale(&self, row: usize, column: usize) -> f32 {
        self.tile_scales(row / TILE_ROWS)[column / self.group_size][row % TILE_ROWS]
    }
}

/// Codes of rows `first_row..first_row + 4` in tile order.
fn fill_codes(weights: &TernaryMatrix, first_row: usize, tile: &mut [u8]) {
    for row in 0..TILE_ROWS {
        for (block, bytes) in tile.as_chunks_mut::<BLOCK_BYTES>().0.iter_mut().enumerate() {
            bytes[row * UNIT_BYTES..(row + 1) * UNIT_BYTES].copy_from_slice(&unit(weights, first_row + row, block));
        }
    }
}

/// Codes of one block of a row: byte j = columns j, j + 32, j + 64, j + 96. Rows and columns past the last have code 1.
pub(crate) fn unit(weights: &TernaryMatrix, row: usize, block: usize) -> [u8; UNIT_BYTES] {
    let canonical = if row < weights.n_rows() { weights.row_codes(row) } else { &[] };
    let mut packed = [PADDING; UNIT_BYTES];
    let source = canonical.get(block * UNIT_BYTES..).unwrap_or_default();
    let len = source.len().min(UNIT_BYTES);
    packed[..len].copy_from_slice(&source[..len]);
    let n_columns = weights.n_cols() - (block * BLOCK_COLUMNS).min(weights.n_cols());
    if len > 0 && n_columns < len * 4 {
        // The canonical row ends inside a byte, whose spare bits are 0: make them code 1.
        packed[len - 1] |= PADDING << (2 * (n_columns % 4));
    }
    interleave(&packed)
}

/// From sequential codes (byte i = columns 4i..4i + 4) to a unit (byte j = columns j, j + 32, j + 64, j + 96).
fn interleave(packed: &[u8; UNIT_BYTES]) -> [u8; UNIT_BYTES] {
    const EVERY_BYTE: u64 = 0x0303_0303_0303_0303;
    let (words, _) = packed.as_chunks::<8>();
    let mut unit = [0u8; UNIT_BYTES];
    for slot in 0..4 {
        let quarters = words.iter().enumerate().map(|(quarter, word)| {
            let codes = (u64::from_le_bytes(*word) >> (2 * slot)) & EVERY_BYTE;
            codes << (2 * quarter)
        });
        let bytes = quarters.fold(0, |merged, codes| merged | codes).to_le_bytes();
        for (index, byte) in bytes.into_iter().enumerate() {
            unit[4 * index + slot] = byte;
        }
    }
    unit
}

fn fill_scales(weights: &TernaryMatrix, first_row: usize, tile: &mut [f32]) {
    let n_groups = tile.len() / TILE_ROWS;
    for row in first_row..(first_row + TILE_ROWS).min(weights.n_rows()) {
        for group in 0..n_groups {
            tile[group * TILE_ROWS + row - first_row] = match weights.scales() {
                Scales::Tensor(scale) => *scale,
                Scales::Row(scales) => scales[row],
                Scales::Group { scales, .. } => scales[row * n_groups + group],
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_hold_every_weight_and_scale_and_padding_is_zero() {
        let mut pool = Pool::new(2).expect("threads");
        let mut scratch = [Scratch::new().expect("memory"), Scratch::new().expect("memory")];
        for (n, k) in [(1, 1), (3, 5), (4, 128), (5, 129), (7, 127), (9, 300), (6, 256)] {
            let trits: Vec<i8> = (0..n * k).map(|i| ((i * 7 + i / 3) % 3) as i8 - 1).collect();
            let scales = Scales::Row((0..n).map(|row| row as f32 + 0.5).collect());
            let matrix = TernaryMatrix::from_trits(n, k, &trits, scales).expect("valid");
            let tiles = Tiles::new(&matrix, &mut pool, &mut scratch).expect("memory");
            let columns = k.next_multiple_of(BLOCK_COLUMNS);
            for row in 0..n.next_multiple_of(TILE_ROWS) {
                let got: Vec<i8> = (0..columns).map(|column| tiles.trit(row, column)).collect();
                let expected = |column| if row < n && column < k { trits[row * k + column] } else { 0 };
                assert_eq!(got, (0..columns).map(expected).collect::<Vec<i8>>(), "{n}x{k}: {row}");
                assert_eq!(tiles.scale(row, 0), if row < n { row as f32 + 0.5 } else { 0.0 });
            }
        }
    }
}
