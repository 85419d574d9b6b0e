//! Products by `vpdpbusd` (VNNI), which multiplies unsigned by signed bytes and adds four products to a 32-bit lane at once: no
//! 16-bit sums, so nothing to widen.
//!
//! `DotRows` is the register tile that differs between the widths; `int8` is the kernel, written once over it. A `DotRows` value
//! proves the processor's features, and the kernel is `inline(always)` throughout, so that it is compiled for the features of
//! the function that calls it. Idea of both: BurntSushi/memchr's `Vector` (`src/vector.rs`).

pub(super) mod int8;
mod narrow;
pub(super) mod roof;
pub(super) mod screen;
mod wide;

pub(crate) use narrow::AvxVnni;
pub(crate) use wide::Avx512Vnni;

use crate::tile::{BLOCK_BYTES, QUARTER_COLUMNS, TILE_ROWS};

/// The four rows of a tile × 32 columns in registers. Its value exists only where the processor has the instructions.
pub(super) trait DotRows: Copy {
    /// A byte for each of four rows × 32 columns (codes), or 32-bit sums of four neighbouring columns each.
    type Rows: Copy;
    /// Activations of 32 columns, the same for all rows.
    type Quarter: Copy;

    /// Asks for the memory behind this block of a linear stream.
    fn prefetch_behind(self, block: &[u8; BLOCK_BYTES]);

    /// Asks for the cache line of the first of these outputs.
    fn prefetch_line(self, out: &[f32]);

    /// Zeros.
    fn zero(self) -> Self::Rows;

    /// Four rows of 32 bytes.
    fn load(self, bytes: &[u8; BLOCK_BYTES]) -> Self::Rows;

    /// Four rows of 32 bytes.
    fn store(self, bytes: &mut [u8; BLOCK_BYTES], codes: Self::Rows);

    /// One quarter of a block of activations.
    fn load_quarter(self, x: &[i8; QUARTER_COLUMNS]) -> Self::Quarter;

    /// The bits of each byte that are in `mask`.
    fn masked(self, codes: Self::Rows, mask: u8) -> Self::Rows;

    /// 16-bit words shifted down: bits of a byte's upper neighbour come in from above.
    fn shifted<const BITS: u32>(self, codes: Self::Rows) -> Self::Rows;

    /// sums + codes · x, four columns to a lane.
    fn dot(self, sums: Self::Rows, codes: Self::Rows, x: Self::Quarter) -> Self::Rows;

    /// sums + others / 4, which is exact: `others` are multiples of 4.
    fn plus_fourth(self, sums: Self::Rows, others: Self::Rows) -> Self::Rows;

    /// The sum of each row's lanes.
    fn totals(self, sums: Self::Rows) -> [i32; TILE_ROWS];
}
