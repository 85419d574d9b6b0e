//! `LaneTiles`: ternary weights for products whose sums are scaled every 128 columns. Sixteen rows are interleaved in units of four
//! bytes, so that a 32-bit lane holds one row: the sums of a group come out of the products with rows in neighbouring lanes, and
//! are scaled where they stand, without adding up lanes (which in `Tiles` takes as long as a third of the products).
//!
//! A line of 64 bytes holds byte j..j + 4 of a `tile::unit` of each row: columns j.., j + 32.., j + 64.., j + 96.. of its block, four
//! columns a byte-wise mask. k is padded to 128 with code 1 and n to 16. Idea: the row-interleaved `_R8` and `_R16` layouts of
//! ikawrakow/ik_llama.cpp.

use std::ops::Range;

use bitnet_ternary::TernaryMatrix;
use bitnet_ternary::quantise::ACTIVATION_GROUP;
use half::f16;

use crate::arch::{Memory, OutOfMemory};
use crate::kernels::Scratch;
use crate::pool::{Parts, Pool};
use crate::tile::{BLOCK_COLUMNS, QUARTER_COLUMNS, UNIT_BYTES, unit};

/// Rows interleaved with each other.
pub(crate) const LANE_ROWS: usize = 16;
/// Neighbouring columns of a 32-bit lane of unpacked codes.
pub(crate) const LANE_COLUMNS: usize = 4;
/// Four bytes of each row.
pub(crate) const LINE_BYTES: usize = LANE_ROWS * LANE_COLUMNS;
/// Lines of a block.
pub(crate) const LINES: usize = UNIT_BYTES / LANE_COLUMNS;

const _: () = assert!(ACTIVATION_GROUP == BLOCK_COLUMNS && LINES * LANE_COLUMNS == QUARTER_COLUMNS && LINE_BYTES == 64);

/// Packed codes of sixteen rows of one block.
pub(crate) type LaneBlock = [[u8; LINE_BYTES]; LINES];

/// Ternary weights `[n, k]` with rows in lanes, with their scales.
pub(crate) struct LaneTiles {
    /// Out features.
    n: usize,
    /// In features.
    k: usize,
    /// Columns that share a scale.
    group_size: usize,
    /// Scale groups of a row.
    n_groups: usize,
    /// `[n_tiles, n_blocks, LINES, LANE_ROWS, LANE_COLUMNS]`.
    codes: Memory<u8>,
    /// `[n_tiles, n_groups, LANE_ROWS]`; padding rows have scale 0.
    scales: Scales,
}

/// Scales in two bytes where that loses none of their bits, which holds for all files that store f16 and most that store bfloat16: a
/// ninth of what a step would read of groups of 128 are scales of four bytes.
enum Scales {
    F16(Memory<u16>),
    F32(Memory<f32>),
}

/// Scales of one tile, `[n_groups]` of `[LANE_ROWS]`.
#[derive(Clone, Copy)]
pub(crate) enum TileScales<'a> {
    /// The bits of IEEE halves.
    F16(&'a [[u16; LANE_ROWS]]),
    F32(&'a [[f32; LANE_ROWS]]),
}

impl TileScales<'_> {
    /// Those of one group.
    #[inline(always)]
    pub(crate) fn group(self, group: usize) -> [f32; LANE_ROWS] {
        match self {
            Self::F16(scales) => scales[group].map(|bits| f16::from_bits(bits).to_f32()),
            Self::F32(scales) => scales[group],
        }
    }
}

impl LaneTiles {
    /// Re-tiles a matrix, all threads at once.
    pub(crate) fn new(weights: &TernaryMatrix, pool: &mut Pool, scratch: &mut [Scratch]) -> Result<Self, OutOfMemory> {
        let (n, k, group_size) = (weights.n_rows(), weights.n_cols(), weights.group_size());
        let (n_tiles, n_groups) = (n.div_ceil(LANE_ROWS), k / group_size);
        let tile_bytes = k.div_ceil(BLOCK_COLUMNS) * size_of::<LaneBlock>();
        let mut codes = Memory::zeroed(n_tiles * tile_bytes)?;
        let mut codes_left = &mut codes[..];
        let parts = Parts::new(n_tiles, pool.n_threads(), |tiles| {
            let codes = codes_left.split_off_mut(..tiles.len() * tile_bytes).expect("tiles sum up to n_tiles");
            (tiles, codes)
        });
        pool.run_parts(scratch, parts, |_, (tiles, codes)| {
            for (tile, codes) in tiles.zip(codes.chunks_exact_mut(tile_bytes)) {
                fill_codes(weights, tile * LANE_ROWS, codes);
            }
        });
        let scales = Scales::new(weights, n_tiles, n_groups)?;
        Ok(Self { n, k, group_size, n_groups, codes, scales })
    }

    /// All tiles, one after another.
    pub(crate) fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// Bytes of codes and scales.
    pub(crate) fn size_bytes(&self) -> u64 {
        let scales = match &self.scales {
            Scales::F16(scales) => size_of_val(&scales[..]),
            Scales::F32(scales) => size_of_val(&scales[..]),
        };
        (self.codes.len() + scales) as u64
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

    /// Blocks that share a scale, if groups are whole blocks as the fast kernels need; a single group always is, by its padding.
    #[inline]
    pub(crate) fn group_blocks(&self) -> Option<usize> {
        if self.n_groups == 1 {
            return Some(self.n_blocks());
        }
        self.group_size.is_multiple_of(BLOCK_COLUMNS).then_some(self.group_size / BLOCK_COLUMNS)
    }

    /// Blocks of a row.
    #[inline]
    pub(crate) fn n_blocks(&self) -> usize {
        self.k.div_ceil(BLOCK_COLUMNS)
    }

    /// Tiles of which `columns` of an output row hold a part.
    pub(crate) fn tiles_of(columns: &Range<usize>) -> Range<usize> {
        columns.start / LANE_ROWS..columns.end.div_ceil(LANE_ROWS)
    }

    /// Blocks of one tile, `[n_blocks]`.
    #[inline]
    pub(crate) fn tile(&self, tile: usize) -> &[LaneBlock] {
        let lines = self.codes.as_chunks::<LINE_BYTES>().0.as_chunks::<LINES>().0;
        &lines[tile * self.n_blocks()..(tile + 1) * self.n_blocks()]
    }

    /// Scales of one tile.
    #[inline]
    pub(crate) fn tile_scales(&self, tile: usize) -> TileScales<'_> {
        let groups = tile * self.n_groups..(tile + 1) * self.n_groups;
        match &self.scales {
            Scales::F16(scales) => TileScales::F16(&scales.as_chunks().0[groups]),
            Scales::F32(scales) => TileScales::F32(&scales.as_chunks().0[groups]),
        }
    }

    /// One weight of a tile, −1, 0 or 1.
    #[inline]
    pub(crate) fn trit(&self, tile: usize, row: usize, column: usize) -> i8 {
        let (block, within) = (&self.tile(tile)[column / BLOCK_COLUMNS], column % BLOCK_COLUMNS);
        let byte = within % QUARTER_COLUMNS;
        let line = &block[byte / LANE_COLUMNS];
        ((line[row * LANE_COLUMNS + byte % LANE_COLUMNS] >> (2 * (within / QUARTER_COLUMNS))) & 3) as i8 - 1
    }
}

/// Codes of rows `first_row..first_row + 16`.
fn fill_codes(weights: &TernaryMatrix, first_row: usize, codes: &mut [u8]) {
    let blocks = codes.as_chunks_mut::<LINE_BYTES>().0.as_chunks_mut::<LINES>().0;
    for (block, lines) in blocks.iter_mut().enumerate() {
        for row in 0..LANE_ROWS {
            let unit = unit(weights, first_row + row, block);
            for (line, bytes) in lines.iter_mut().zip(unit.as_chunks::<LANE_COLUMNS>().0) {
                line[row * LANE_COLUMNS..(row + 1) * LANE_COLUMNS].copy_from_slice(bytes);
            }
        }
    }
}

impl Scales {
    fn new(weights: &TernaryMatrix, n_tiles: usize, n_groups: usize) -> Result<Self, OutOfMemory> {
        let n_scales = n_tiles * n_groups * LANE_ROWS;
        let all = (0..n_scales).map(|index| {
            let (tile, group, row) = (index / LANE_ROWS / n_groups, index / LANE_ROWS % n_groups, index % LANE_ROWS);
            let row = tile * LANE_ROWS + row;
            if row < weights.n_rows() { weights.scale_at(row, group * weights.group_size()) } else { 0.0 }
        });
        if all.clone().all(|scale| f16::from_f32(scale).to_f32().to_bits() == scale.to_bits()) {
            let mut scales = Memory::zeroed(n_scales)?;
            scales.iter_mut().zip(all).for_each(|(bits, scale)| *bits = f16::from_f32(scale).to_bits());
            return Ok(Self::F16(scales));
        }
        let mut scales = Memory::zeroed(n_scales)?;
        scales.iter_mut().zip(all).for_each(|(value, scale)| *value = scale);
        Ok(Self::F32(scales))
    }
}

#[cfg(test)]
mod tests {
    use bitnet_ternary::Scales;

    use super::*;

    fn lane_tiles(matrix: &TernaryMatrix) -> LaneTiles {
        let mut pool = Pool::new(2).expect("threads");
        let mut scratch = [Scratch::new().expect("memory"), Scratch::new().expect("memory")];
        LaneTiles::new(matrix, &mut pool, &mut scratch).expect("memory")
    }

    #[test]
    fn lane_tiles_hold_every_weight_and_scale_and_padding_is_zero() {
        // 0.1 is no half.
        for ((n, k), first_scale) in [(1, 1), (3, 5), (16, 128), (17, 129), (33, 300), (48, 256)].into_iter().zip([0.5, 0.1].repeat(3)) {
            let trits: Vec<i8> = (0..n * k).map(|i| ((i * 7 + i / 3) % 3) as i8 - 1).collect();
            let scale = |row: usize| row as f32 + first_scale;
            let matrix = TernaryMatrix::from_trits(n, k, &trits, Scales::Row((0..n).map(scale).collect())).expect("valid");
            let tiles = lane_tiles(&matrix);
            assert_eq!(matches!(tiles.scales, super::Scales::F16(_)), first_scale == 0.5);
            let columns = k.next_multiple_of(BLOCK_COLUMNS);
            for row in 0..n.next_multiple_of(LANE_ROWS) {
                let (tile, lane) = (row / LANE_ROWS, row % LANE_ROWS);
                let got: Vec<i8> = (0..columns).map(|column| tiles.trit(tile, lane, column)).collect();
                let expected = |column| if row < n && column < k { trits[row * k + column] } else { 0 };
                assert_eq!(got, (0..columns).map(expected).collect::<Vec<i8>>(), "{n}x{k}: {row}");
                assert_eq!(tiles.tile_scales(tile).group(0)[lane], if row < n { scale(row) } else { 0.0 });
            }
        }
    }
}
