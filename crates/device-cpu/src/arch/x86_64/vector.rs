//! Loads, stores and sums of AVX2 registers: raw pointers end here, kernels see references to arrays.

use std::arch::x86_64::*;
use std::ops::Range;

use crate::tile::BLOCK_COLUMNS;

/// How far ahead of a linear stream of weights to prefetch: measured best of 4 to 16 KiB (docs/kernels.md).
pub(super) const PREFETCH_BYTES: usize = 7 << 10;

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn load_u8(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: a reference to 32 bytes is readable for 32 bytes; the load is unaligned.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn load_i8(bytes: &[i8; 32]) -> __m256i {
    // SAFETY: a reference to 32 bytes is readable for 32 bytes; the load is unaligned.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn load_f32(values: &[f32; 8]) -> __m256 {
    // SAFETY: a reference to 8 floats is readable for 32 bytes; the load is unaligned.
    unsafe { _mm256_loadu_ps(values.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn load_scales(values: &[f32; 4]) -> __m128 {
    // SAFETY: a reference to 4 floats is readable for 16 bytes; the load is unaligned.
    unsafe { _mm_loadu_ps(values.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn load_i32(values: &[i32; 8]) -> __m256i {
    // SAFETY: a reference to 8 integers is readable for 32 bytes; the load is unaligned.
    unsafe { _mm256_loadu_si256(values.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn store_i32(values: &mut [i32; 8], value: __m256i) {
    // SAFETY: a reference to 8 integers is writable for 32 bytes; the store is unaligned.
    unsafe { _mm256_storeu_si256(values.as_mut_ptr().cast(), value) };
}

/// Eight bytes, each in a 32-bit lane.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn load_widened(bytes: &[u8; 8]) -> __m256i {
    _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(i64::from_le_bytes(*bytes)))
}

/// Eight 16-bit numbers.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn load_halves(bytes: &[u8; 16]) -> __m128i {
    // SAFETY: a reference to 16 bytes is readable for 16 bytes; the load is unaligned.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn store_u8(bytes: &mut [u8; 32], value: __m256i) {
    // SAFETY: a reference to 32 bytes is writable for 32 bytes; the store is unaligned.
    unsafe { _mm256_storeu_si256(bytes.as_mut_ptr().cast(), value) };
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn store_i8(bytes: &mut [i8; 32], value: __m256i) {
    // SAFETY: a reference to 32 bytes is writable for 32 bytes; the store is unaligned.
    unsafe { _mm256_storeu_si256(bytes.as_mut_ptr().cast(), value) };
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn store_f32(values: &mut [f32; 8], value: __m256) {
    // SAFETY: a reference to 8 floats is writable for 32 bytes; the store is unaligned.
    unsafe { _mm256_storeu_ps(values.as_mut_ptr(), value) };
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn store_sums(values: &mut [i32; 4], value: __m128i) {
    // SAFETY: a reference to 4 integers is writable for 16 bytes; the store is unaligned.
    unsafe { _mm_storeu_si128(values.as_mut_ptr().cast(), value) };
}

/// Four floats as an array.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn to_array(value: __m128) -> [f32; 4] {
    let mut values = [0.0; 4];
    // SAFETY: the array is writable for 16 bytes; the store is unaligned.
    unsafe { _mm_storeu_ps(values.as_mut_ptr(), value) };
    values
}

/// Four integers as an array.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn sums_array(value: __m128i) -> [i32; 4] {
    let mut values = [0; 4];
    store_sums(&mut values, value);
    values
}

/// Asks for the two cache lines that lie `PREFETCH_BYTES` behind these 128 bytes.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn prefetch_behind(bytes: &[u8]) {
    let ahead = bytes.as_ptr().wrapping_add(PREFETCH_BYTES).cast::<i8>();
    _mm_prefetch::<_MM_HINT_T0>(ahead);
    _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(64));
}

/// Asks for the cache line of the first of these numbers.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn prefetch_line(values: &[f32]) {
    _mm_prefetch::<_MM_HINT_T0>(values.as_ptr().cast::<i8>());
}

/// Asks for the cache lines of these bytes.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn prefetch(bytes: &[u8]) {
    bytes.chunks(64).for_each(|line| _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast::<i8>()));
}

/// The sums of four registers of eight integers each.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn sum_rows(rows: [__m256i; 4]) -> __m128i {
    let pairs = _mm256_hadd_epi32(_mm256_hadd_epi32(rows[0], rows[1]), _mm256_hadd_epi32(rows[2], rows[3]));
    _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256::<1>(pairs))
}

/// `numerics::sum_lanes` of four rows, whose lanes 0..8 and 8..16 are in two registers each.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn sum_lanes(low: [__m256; 4], high: [__m256; 4]) -> __m128 {
    let mut quads = [_mm_setzero_ps(); 4];
    for (quad, (low, high)) in quads.iter_mut().zip(low.into_iter().zip(high)) {
        let eight = _mm256_add_ps(low, high);
        *quad = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
    }
    let pairs_01 = _mm_add_ps(_mm_movelh_ps(quads[0], quads[1]), _mm_movehl_ps(quads[1], quads[0]));
    let pairs_23 = _mm_add_ps(_mm_movelh_ps(quads[2], quads[3]), _mm_movehl_ps(quads[3], quads[2]));
    let even = _mm_shuffle_ps::<0b10_00_10_00>(pairs_01, pairs_23);
    let odd = _mm_shuffle_ps::<0b11_01_11_01>(pairs_01, pairs_23);
    _mm_add_ps(even, odd)
}

/// Asks for the cache line that lies `PREFETCH_BYTES` behind the first of these bytes.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn prefetch_line_behind(bytes: &[u8]) {
    let ahead = bytes.as_ptr().wrapping_add(PREFETCH_BYTES).cast::<i8>();
    _mm_prefetch::<_MM_HINT_T0>(ahead);
}

/// The same as an array.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn sum_lanes_to_array(low: [__m256; 4], high: [__m256; 4]) -> [f32; 4] {
    to_array(sum_lanes(low, high))
}

/// Eight IEEE halves, given by their bits, as f32.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn widen_half_bits(bits: &[u16; 8]) -> __m256 {
    // SAFETY: a reference to 8 halves is readable for 16 bytes; the load is unaligned.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(bits.as_ptr().cast()) })
}

/// Eight IEEE halves as f32.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn widen_f16(bytes: &[u8; 16]) -> __m256 {
    _mm256_cvtph_ps(load_halves(bytes))
}

/// Eight bfloat16 as f32.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn widen_bf16(bytes: &[u8; 16]) -> __m256 {
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(load_halves(bytes))))
}

/// Eight trits as f32, whose codes lie `shift` bits up. The lookup reads the two low bits of each lane only.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn trits(codes: &[u8; 8], shift: i32) -> __m256 {
    let values = _mm256_setr_ps(-1.0, 0.0, 1.0, 0.0, -1.0, 0.0, 1.0, 0.0);
    _mm256_permutevar_ps(values, _mm256_srl_epi32(load_widened(codes), _mm_cvtsi32_si128(shift)))
}

/// The same range of each token's row. (Closures do not inherit target features in time to be inlined: kernels have none.)
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn within<const T: usize, E>(mut rows: [&[E]; T], range: Range<usize>) -> [&[E]; T] {
    for row in &mut rows {
        *row = &row[range.clone()];
    }
    rows
}

/// One quarter of one block of each token.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn load_quarters<const T: usize>(rows: [&[[i8; BLOCK_COLUMNS]]; T], block: usize, quarter: usize) -> [__m256i; T] {
    let mut x = [_mm256_setzero_si256(); T];
    for (x, row) in x.iter_mut().zip(rows) {
        *x = load_i8(&row[block].as_chunks().0[quarter]);
    }
    x
}
