//! `Sixteen`: an instruction set seen as the sixteen f32 lanes of `numerics`, and the attention that is written once over it. A row is
//! one register with AVX-512, two with AVX2, four with NEON.
//!
//! A value of `Sixteen` is the proof that the processor has the instructions. Everything here is `inline(always)`, to be compiled
//! inside the target-feature functions of each instruction set.

mod attention;

pub(super) use attention::attention;

use bitnet_model::numerics::LANES;

use super::eight::{Eight, WIDTH};
use crate::attention::{HalfRow, KvRow};

/// Sixteen f32 lanes.
pub(super) trait Sixteen: Copy {
    /// The lanes.
    type Row: Copy;
    /// Whether registers hold twice as many sums as one tile of four query heads has, so that twice as many additions are under way.
    const HAS_ROOM: bool;

    /// All lanes the same.
    fn splat(self, value: f32) -> Self::Row;
    fn load(self, values: &[f32; LANES]) -> Self::Row;
    fn store(self, values: &mut [f32; LANES], row: Self::Row);
    fn add(self, a: Self::Row, b: Self::Row) -> Self::Row;
    fn mul(self, a: Self::Row, b: Self::Row) -> Self::Row;
    /// `a` unless `b` is larger: NaN in `b` is passed over.
    fn larger(self, a: Self::Row, b: Self::Row) -> Self::Row;
    /// Sixteen little-endian IEEE halves.
    fn widen_f16(self, bytes: &HalfRow) -> Self::Row;
}

/// A pair of eights.
impl<I: Eight> Sixteen for I {
    type Row = [I::Floats; 2];
    const HAS_ROOM: bool = false;

    #[inline(always)]
    fn splat(self, value: f32) -> Self::Row {
        [Eight::splat(self, value); 2]
    }

    #[inline(always)]
    fn load(self, values: &[f32; LANES]) -> Self::Row {
        let halves = values.as_chunks::<WIDTH>().0;
        [Eight::load(self, &halves[0]), Eight::load(self, &halves[1])]
    }

    #[inline(always)]
    fn store(self, values: &mut [f32; LANES], row: Self::Row) {
        let halves = values.as_chunks_mut::<WIDTH>().0;
        Eight::store(self, &mut halves[0], row[0]);
        Eight::store(self, &mut halves[1], row[1]);
    }

    #[inline(always)]
    fn add(self, a: Self::Row, b: Self::Row) -> Self::Row {
        [Eight::add(self, a[0], b[0]), Eight::add(self, a[1], b[1])]
    }

    #[inline(always)]
    fn mul(self, a: Self::Row, b: Self::Row) -> Self::Row {
        [Eight::mul(self, a[0], b[0]), Eight::mul(self, a[1], b[1])]
    }

    #[inline(always)]
    fn larger(self, a: Self::Row, b: Self::Row) -> Self::Row {
        [Eight::larger(self, a[0], b[0]), Eight::larger(self, a[1], b[1])]
    }

    #[inline(always)]
    fn widen_f16(self, bytes: &HalfRow) -> Self::Row {
        let halves = bytes.as_chunks::<{ 2 * WIDTH }>().0;
        [Eight::widen_f16(self, &halves[0]), Eight::widen_f16(self, &halves[1])]
    }
}

/// A row of the cache that goes into registers.
trait LoadRow: KvRow {
    fn load<I: Sixteen>(&self, isa: I) -> I::Row;
}

impl LoadRow for [f32; LANES] {
    #[inline(always)]
    fn load<I: Sixteen>(&self, isa: I) -> I::Row {
        isa.load(self)
    }
}

impl LoadRow for [i8; LANES] {
    #[inline(always)]
    fn load<I: Sixteen>(&self, isa: I) -> I::Row {
        isa.load(&self.widen())
    }
}

impl LoadRow for HalfRow {
    #[inline(always)]
    fn load<I: Sixteen>(&self, isa: I) -> I::Row {
        isa.widen_f16(self)
    }
}
