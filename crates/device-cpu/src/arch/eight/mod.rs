//! `Eight`: an instruction set seen as eight f32 lanes, and the float kernels that are written once over it. Eight lanes are half of
//! the sixteen of `numerics`: a register with AVX2, a pair of registers with NEON.
//!
//! A value of `Eight` is the proof that the processor has the instructions. Everything here is `inline(always)`, to be compiled
//! inside the target-feature functions of each instruction set; the idea of generic kernels over a vector trait is BurntSushi/memchr's
//! (`src/vector.rs`). Not here: integers, whose instructions differ too much to be named alike.

mod float;

pub(super) use float::{dot_row, linear, logits};

use crate::tile::TILE_ROWS;

/// Lanes of a register.
pub(super) const WIDTH: usize = 8;

/// Eight f32 lanes.
pub(super) trait Eight: Copy {
    /// The lanes.
    type Floats: Copy;

    /// All lanes the same.
    fn splat(self, value: f32) -> Self::Floats;
    fn load(self, values: &[f32; WIDTH]) -> Self::Floats;
    fn store(self, values: &mut [f32; WIDTH], floats: Self::Floats);
    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a` unless `b` is larger: NaN in `b` is passed over.
    fn larger(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// Eight little-endian IEEE halves.
    fn widen_f16(self, bytes: &[u8; 2 * WIDTH]) -> Self::Floats;
    /// Eight little-endian bfloat16.
    fn widen_bf16(self, bytes: &[u8; 2 * WIDTH]) -> Self::Floats;
    /// The trits whose codes lie `shift` bits up in each byte.
    fn trits(self, codes: &[u8; WIDTH], shift: i32) -> Self::Floats;
    /// Asks for what lies behind a cache line in a linear stream, where that is known to pay.
    fn prefetch_behind(self, line: &[u8]);
    /// `numerics::sum_lanes` of four rows, whose lanes 0..8 and 8..16 are given apart.
    fn sum_lanes(self, low: [Self::Floats; TILE_ROWS], high: [Self::Floats; TILE_ROWS]) -> [f32; TILE_ROWS];
}

/// sums[i][j] += a[i] · b[j]: a register tile.
#[inline(always)]
fn add_outer<I: Eight, const A: usize, const B: usize>(isa: I, sums: &mut [[I::Floats; B]; A], a: [I::Floats; A], b: [I::Floats; B]) {
    for (sums, a) in sums.iter_mut().zip(a) {
        for (sum, b) in sums.iter_mut().zip(b) {
            *sum = isa.add(*sum, isa.mul(a, b));
        }
    }
}
