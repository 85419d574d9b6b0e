//! `Eight` by AVX2 and F16C: a register is eight lanes. Kernels over it are in `arch/eight`; `float` compiles them.

use std::arch::x86_64::*;

use super::{Avx2, vector};
use crate::arch::eight::{Eight, WIDTH};
use crate::tile::TILE_ROWS;

impl Eight for Avx2 {
    type Floats = __m256;

    #[inline(always)]
    fn splat(self, value: f32) -> __m256 {
        // SAFETY: an Avx2 exists only where the features were detected.
        unsafe { _mm256_set1_ps(value) }
    }

    #[inline(always)]
    fn load(self, values: &[f32; WIDTH]) -> __m256 {
        // SAFETY: an Avx2 exists only where the features were detected.
        unsafe { vector::load_f32(values) }
    }

    #[inline(always)]
    fn store(self, values: &mut [f32; WIDTH], floats: __m256) {
        // SAFETY: an Avx2 exists only where the features were detected.
        unsafe { vector::store_f32(values, floats) }
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: an Avx2 exists only where the features were detected.
        unsafe { _mm256_add_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: an Avx2 exists only where the features were detected.
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    fn larger(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: an Avx2 exists only where the features were detected. maxps yields its second operand where either is NaN.
        unsafe { _mm256_max_ps(b, a) }
    }

    #[inline(always)]
    fn widen_f16(self, bytes: &[u8; 2 * WIDTH]) -> __m256 {
        // SAFETY: an Avx2 exists only where the features were detected.
        unsafe { vector::widen_f16(bytes) }
    }

    #[inline(always)]
    fn widen_bf16(self, bytes: &[u8; 2 * WIDTH]) -> __m256 {
        // SAFETY: an Avx2 exists only where the features were detected.
        unsafe { vector::widen_bf16(bytes) }
    }

    #[inline(always)]
    fn trits(self, codes: &[u8; WIDTH], shift: i32) -> __m256 {
        // SAFETY: an Avx2 exists only where the features were detected.
        unsafe { vector::trits(codes, shift) }
    }

    #[inline(always)]
    fn prefetch_behind(self, line: &[u8]) {
        // SAFETY: an Avx2 exists only where the features were detected.
        unsafe { vector::prefetch_line_behind(line) }
    }

    #[inline(always)]
    fn sum_lanes(self, low: [__m256; TILE_ROWS], high: [__m256; TILE_ROWS]) -> [f32; TILE_ROWS] {
        // SAFETY: an Avx2 exists only where the features were detected.
        unsafe { vector::sum_lanes_to_array(low, high) }
    }
}
