//! `AvxVnni`: `DotRows` in four 256-bit registers, a row each (AVX-VNNI, the VEX encoding of processors without AVX-512).

use std::arch::x86_64::*;

use super::super::Avx2;
use super::super::vector::{load_i8, load_u8, prefetch_behind, prefetch_line, store_u8, sum_rows, sums_array};
use super::DotRows;
use crate::tile::{BLOCK_BYTES, QUARTER_COLUMNS, TILE_ROWS};

/// Exists only on processors with AVX-VNNI and what `Avx2` needs.
#[derive(Clone, Copy)]
pub(crate) struct AvxVnni(Avx2);

impl AvxVnni {
    /// Asks the processor.
    pub(crate) fn new() -> Option<Self> {
        Avx2::new().filter(|_| std::is_x86_feature_detected!("avxvnni")).map(Self)
    }

    /// What it implies.
    pub(in super::super) fn avx2(&self) -> &Avx2 {
        &self.0
    }
}

type Rows = [__m256i; TILE_ROWS];

impl DotRows for AvxVnni {
    type Rows = Rows;
    type Quarter = __m256i;

    #[inline(always)]
    fn prefetch_behind(self, block: &[u8; BLOCK_BYTES]) {
        // SAFETY: an AvxVnni exists only where the features were detected.
        unsafe { prefetch_behind(block) }
    }

    #[inline(always)]
    fn prefetch_line(self, out: &[f32]) {
        // SAFETY: an AvxVnni exists only where the features were detected.
        unsafe { prefetch_line(out) }
    }

    #[inline(always)]
    fn zero(self) -> Rows {
        // SAFETY: an AvxVnni exists only where the features were detected.
        unsafe { zero() }
    }

    #[inline(always)]
    fn load(self, bytes: &[u8; BLOCK_BYTES]) -> Rows {
        // SAFETY: an AvxVnni exists only where the features were detected.
        unsafe { load(bytes) }
    }

    #[inline(always)]
    fn store(self, bytes: &mut [u8; BLOCK_BYTES], codes: Rows) {
        // SAFETY: an AvxVnni exists only where the features were detected.
        unsafe { store(bytes, codes) }
    }

    #[inline(always)]
    fn load_quarter(self, x: &[i8; QUARTER_COLUMNS]) -> __m256i {
        // SAFETY: an AvxVnni exists only where the features were detected.
        unsafe { load_i8(x) }
    }

    #[inline(always)]
    fn masked(self, codes: Rows, mask: u8) -> Rows {
        // SAFETY: an AvxVnni exists only where the features were detected.
        unsafe { masked(codes, mask) }
    }

    #[inline(always)]
    fn shifted<const BITS: u32>(self, codes: Rows) -> Rows {
        // SAFETY: an AvxVnni exists only where the features were detected.
        unsafe { shifted(codes, BITS) }
    }

    #[inline(always)]
    fn dot(self, sums: Rows, codes: Rows, x: __m256i) -> Rows {
        // SAFETY: an AvxVnni exists only where the features were detected.
        unsafe { dot(sums, codes, x) }
    }

    #[inline(always)]
    fn plus_fourth(self, sums: Rows, others: Rows) -> Rows {
        // SAFETY: an AvxVnni exists only where the features were detected.
        unsafe { plus_fourth(sums, others) }
    }

    #[inline(always)]
    fn totals(self, sums: Rows) -> [i32; TILE_ROWS] {
        // SAFETY: an AvxVnni exists only where the features were detected.
        unsafe { totals(sums) }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn zero() -> Rows {
    [_mm256_setzero_si256(); TILE_ROWS]
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(bytes: &[u8; BLOCK_BYTES]) -> Rows {
    let mut rows = zero();
    for (row, unit) in rows.iter_mut().zip(bytes.as_chunks().0) {
        *row = load_u8(unit);
    }
    rows
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(bytes: &mut [u8; BLOCK_BYTES], codes: Rows) {
    for (unit, row) in bytes.as_chunks_mut().0.iter_mut().zip(codes) {
        store_u8(unit, row);
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn masked(mut codes: Rows, mask: u8) -> Rows {
    for row in &mut codes {
        *row = _mm256_and_si256(*row, _mm256_set1_epi8(mask as i8));
    }
    codes
}

#[inline]
#[target_feature(enable = "avx2")]
fn shifted(mut codes: Rows, bits: u32) -> Rows {
    for row in &mut codes {
        *row = _mm256_srl_epi16(*row, _mm_cvtsi32_si128(bits as i32));
    }
    codes
}

#[inline]
#[target_feature(enable = "avx2,avxvnni")]
fn dot(mut sums: Rows, codes: Rows, x: __m256i) -> Rows {
    for (sum, row) in sums.iter_mut().zip(codes) {
        *sum = _mm256_dpbusd_avx_epi32(*sum, row, x);
    }
    sums
}

#[inline]
#[target_feature(enable = "avx2")]
fn plus_fourth(mut sums: Rows, others: Rows) -> Rows {
    for (sum, other) in sums.iter_mut().zip(others) {
        *sum = _mm256_add_epi32(*sum, _mm256_srai_epi32::<2>(other));
    }
    sums
}

#[inline]
#[target_feature(enable = "avx2")]
fn totals(sums: Rows) -> [i32; TILE_ROWS] {
    sums_array(sum_rows(sums))
}
