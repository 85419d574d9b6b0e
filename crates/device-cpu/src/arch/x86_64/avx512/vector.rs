//! Loads, stores and sums of 512-bit registers of floats: the 16 lanes of `numerics` in one register. Raw pointers end here.

use std::arch::x86_64::*;

use bitnet_model::numerics::LANES;

use super::super::vector::sum_lanes as sum_halves;

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load_f32(values: &[f32; LANES]) -> __m512 {
    // SAFETY: a reference to 16 floats is readable for 64 bytes; the load is unaligned.
    unsafe { _mm512_loadu_ps(values.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn store_f32(values: &mut [f32; LANES], value: __m512) {
    // SAFETY: a reference to 16 floats is writable for 64 bytes; the store is unaligned.
    unsafe { _mm512_storeu_ps(values.as_mut_ptr(), value) };
}

/// sums[i][j] += a[i] · b[j]: a register tile.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn add_outer<const A: usize, const B: usize>(sums: &mut [[__m512; B]; A], a: [__m512; A], b: [__m512; B]) {
    for (sums, a) in sums.iter_mut().zip(a) {
        for (sum, b) in sums.iter_mut().zip(b) {
            *sum = _mm512_add_ps(*sum, _mm512_mul_ps(a, b));
        }
    }
}

/// `numerics::sum_lanes` of four rows.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn sum_lanes(rows: [__m512; 4]) -> __m128 {
    let (mut low, mut high) = ([_mm256_setzero_ps(); 4], [_mm256_setzero_ps(); 4]);
    for ((low, high), row) in low.iter_mut().zip(&mut high).zip(rows) {
        *low = _mm512_castps512_ps256(row);
        *high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(row)));
    }
    sum_halves(low, high)
}

/// 16 little-endian floats.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load_f32_bytes(bytes: &[u8; 64]) -> __m512 {
    // SAFETY: a reference to 64 bytes is readable for 64 bytes; the load is unaligned.
    unsafe { _mm512_loadu_ps(bytes.as_ptr().cast()) }
}

/// 16 little-endian IEEE halves as f32.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn widen_f16(bytes: &[u8; 32]) -> __m512 {
    // SAFETY: a reference to 32 bytes is readable for 32 bytes; the load is unaligned.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) })
}

/// Asks for the cache line that lies `distance` bytes behind the first of these, as far as the L2 cache.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn prefetch_line(bytes: &[u8], distance: usize) {
    _mm_prefetch::<_MM_HINT_T1>(bytes.as_ptr().wrapping_add(distance).cast::<i8>());
}
