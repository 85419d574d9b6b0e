//! `Avx512Vnni`: `DotRows` in two 512-bit registers, two rows each; activations are broadcast to both halves by the load.

use std::arch::x86_64::*;

use super::super::Avx2;
use super::super::vector::{load_i8, prefetch_behind, prefetch_line, sums_array};
use super::DotRows;
use crate::tile::{BLOCK_BYTES, QUARTER_COLUMNS, TILE_ROWS};

/// Exists only on processors with AVX-512 F, BW, VL and VNNI and what `Avx2` needs.
#[derive(Clone, Copy)]
pub(crate) struct Avx512Vnni(Avx2);

impl Avx512Vnni {
    /// Asks the processor.
    pub(crate) fn new() -> Option<Self> {
        let foundation = std::is_x86_feature_detected!("avx512f") && std::is_x86_feature_detected!("avx512bw");
        let extensions = std::is_x86_feature_detected!("avx512vl") && std::is_x86_feature_detected!("avx512vnni");
        Avx2::new().filter(|_| foundation && extensions).map(Self)
    }

    /// What it implies.
    pub(in super::super) fn avx2(&self) -> &Avx2 {
        &self.0
    }
}

/// Rows 0 and 1, rows 2 and 3.
type Rows = [__m512i; 2];

impl DotRows for Avx512Vnni {
    type Rows = Rows;
    type Quarter = __m512i;

    #[inline(always)]
    fn prefetch_behind(self, block: &[u8; BLOCK_BYTES]) {
        // SAFETY: an Avx512Vnni exists only where the features were detected.
        unsafe { prefetch_behind(block) }
    }

    #[inline(always)]
    fn prefetch_line(self, out: &[f32]) {
        // SAFETY: an Avx512Vnni exists only where the features were detected.
        unsafe { prefetch_line(out) }
    }

    #[inline(always)]
    fn zero(self) -> Rows {
        // SAFETY: an Avx512Vnni exists only where the features were detected.
        unsafe { zero() }
    }

    #[inline(always)]
    fn load(self, bytes: &[u8; BLOCK_BYTES]) -> Rows {
        // SAFETY: an Avx512Vnni exists only where the features were detected.
        unsafe { load(bytes) }
    }

    #[inline(always)]
    fn store(self, bytes: &mut [u8; BLOCK_BYTES], codes: Rows) {
        // SAFETY: an Avx512Vnni exists only where the features were detected.
        unsafe { store(bytes, codes) }
    }

    #[inline(always)]
    fn load_quarter(self, x: &[i8; QUARTER_COLUMNS]) -> __m512i {
        // SAFETY: an Avx512Vnni exists only where the features were detected.
        unsafe { load_quarter(x) }
    }

    #[inline(always)]
    fn masked(self, codes: Rows, mask: u8) -> Rows {
        // SAFETY: an Avx512Vnni exists only where the features were detected.
        unsafe { masked(codes, mask) }
    }

    #[inline(always)]
    fn shifted<const BITS: u32>(self, codes: Rows) -> Rows {
        // SAFETY: an Avx512Vnni exists only where the features were detected.
        unsafe { shifted::<BITS>(codes) }
    }

    #[inline(always)]
    fn dot(self, sums: Rows, codes: Rows, x: __m512i) -> Rows {
        // SAFETY: an Avx512Vnni exists only where the features were detected.
        unsafe { dot(sums, codes, x) }
    }

    #[inline(always)]
    fn plus_fourth(self, sums: Rows, others: Rows) -> Rows {
        // SAFETY: an Avx512Vnni exists only where the features were detected.
        unsafe { plus_fourth(sums, others) }
    }

    #[inline(always)]
    fn totals(self, sums: Rows) -> [i32; TILE_ROWS] {
        // SAFETY: an Avx512Vnni exists only where the features were detected.
        unsafe { totals(sums) }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn zero() -> Rows {
    [_mm512_setzero_si512(); 2]
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(bytes: &[u8; BLOCK_BYTES]) -> Rows {
    let mut rows = zero();
    for (pair, units) in rows.iter_mut().zip(bytes.as_chunks::<64>().0) {
        // SAFETY: a reference to 64 bytes is readable for 64 bytes; the load is unaligned.
        *pair = unsafe { _mm512_loadu_si512(units.as_ptr().cast()) };
    }
    rows
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(bytes: &mut [u8; BLOCK_BYTES], codes: Rows) {
    for (units, pair) in bytes.as_chunks_mut::<64>().0.iter_mut().zip(codes) {
        // SAFETY: a reference to 64 bytes is writable for 64 bytes; the store is unaligned.
        unsafe { _mm512_storeu_si512(units.as_mut_ptr().cast(), pair) };
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_quarter(x: &[i8; QUARTER_COLUMNS]) -> __m512i {
    _mm512_broadcast_i64x4(load_i8(x))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn masked(mut codes: Rows, mask: u8) -> Rows {
    for pair in &mut codes {
        *pair = _mm512_and_si512(*pair, _mm512_set1_epi8(mask as i8));
    }
    codes
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn shifted<const BITS: u32>(mut codes: Rows) -> Rows {
    for pair in &mut codes {
        *pair = _mm512_srli_epi16::<BITS>(*pair);
    }
    codes
}

#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn dot(mut sums: Rows, codes: Rows, x: __m512i) -> Rows {
    for (sum, pair) in sums.iter_mut().zip(codes) {
        *sum = _mm512_dpbusd_epi32(*sum, pair, x);
    }
    sums
}

#[inline]
#[target_feature(enable = "avx512f")]
fn plus_fourth(mut sums: Rows, others: Rows) -> Rows {
    for (sum, other) in sums.iter_mut().zip(others) {
        *sum = _mm512_add_epi32(*sum, _mm512_srai_epi32::<2>(other));
    }
    sums
}

/// With a, b, c, d for the rows: rows (a | b) and (c | d) become (a c a c | b d b d), then (a c a c) and (b d b d), then a b c d.
#[inline]
#[target_feature(enable = "avx512f,avx512vl")]
fn totals([ab, cd]: Rows) -> [i32; TILE_ROWS] {
    let pairs = _mm512_add_epi32(_mm512_unpacklo_epi32(ab, cd), _mm512_unpackhi_epi32(ab, cd));
    let (ac, bd) = (_mm512_castsi512_si256(pairs), _mm512_extracti64x4_epi64::<1>(pairs));
    let ac = _mm_add_epi32(_mm256_castsi256_si128(ac), _mm256_extracti128_si256::<1>(ac));
    let bd = _mm_add_epi32(_mm256_castsi256_si128(bd), _mm256_extracti128_si256::<1>(bd));
    sums_array(_mm_add_epi32(_mm_unpacklo_epi32(ac, bd), _mm_unpackhi_epi32(ac, bd)))
}
