//! `Sixteen` by AVX-512: a register is sixteen lanes. Kernels over it are in `arch/sixteen`.

use std::arch::x86_64::*;

use bitnet_model::numerics::LANES;

use super::super::vnni::Avx512Vnni;
use super::vector;
use crate::arch::sixteen::Sixteen;
use crate::attention::HalfRow;

impl Sixteen for Avx512Vnni {
    type Row = __m512;
    const HAS_ROOM: bool = true;

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        // SAFETY: an Avx512Vnni exists only where the features were detected.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    fn load(self, values: &[f32; LANES]) -> __m512 {
        // SAFETY: an Avx512Vnni exists only where the features were detected.
        unsafe { vector::load_f32(values) }
    }

    #[inline(always)]
    fn store(self, values: &mut [f32; LANES], row: __m512) {
        // SAFETY: an Avx512Vnni exists only where the features were detected.
        unsafe { vector::store_f32(values, row) }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: an Avx512Vnni exists only where the features were detected.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: an Avx512Vnni exists only where the features were detected.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn larger(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: an Avx512Vnni exists only where the features were detected. maxps yields its second operand where either is NaN.
        unsafe { _mm512_max_ps(b, a) }
    }

    #[inline(always)]
    fn widen_f16(self, bytes: &HalfRow) -> __m512 {
        // SAFETY: an Avx512Vnni exists only where the features were detected.
        unsafe { vector::widen_f16(bytes) }
    }
}
