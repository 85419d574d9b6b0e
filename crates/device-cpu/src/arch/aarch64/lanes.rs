//! `Eight` by NEON: two registers are eight lanes. Kernels over it are in `arch/eight`; here they are compiled.

use std::arch::aarch64::*;
use std::arch::asm;

use super::Neon;
use super::vector::{load_f32, store_f32, to_array};
use crate::arch::eight::{Eight, WIDTH};
use crate::tile::TILE_ROWS;

/// Lanes 0..4 and 4..8.
type Pair = float32x4x2_t;

impl Eight for Neon {
    type Floats = Pair;

    #[inline(always)]
    fn splat(self, value: f32) -> Pair {
        // SAFETY: a Neon exists only where NEON was detected.
        let four = unsafe { vdupq_n_f32(value) };
        float32x4x2_t(four, four)
    }

    #[inline(always)]
    fn load(self, values: &[f32; WIDTH]) -> Pair {
        // SAFETY: a Neon exists only where NEON was detected.
        unsafe { load(values) }
    }

    #[inline(always)]
    fn store(self, values: &mut [f32; WIDTH], floats: Pair) {
        // SAFETY: a Neon exists only where NEON was detected.
        unsafe { store(values, floats) }
    }

    #[inline(always)]
    fn add(self, a: Pair, b: Pair) -> Pair {
        // SAFETY: a Neon exists only where NEON was detected.
        unsafe { add(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: Pair, b: Pair) -> Pair {
        // SAFETY: a Neon exists only where NEON was detected.
        unsafe { mul(a, b) }
    }

    #[inline(always)]
    fn larger(self, a: Pair, b: Pair) -> Pair {
        // SAFETY: a Neon exists only where NEON was detected.
        unsafe { larger(a, b) }
    }

    #[inline(always)]
    fn widen_f16(self, bytes: &[u8; 2 * WIDTH]) -> Pair {
        // SAFETY: a Neon exists only where NEON was detected.
        unsafe { widen_f16(bytes) }
    }

    #[inline(always)]
    fn widen_bf16(self, bytes: &[u8; 2 * WIDTH]) -> Pair {
        // SAFETY: a Neon exists only where NEON was detected.
        unsafe { widen_bf16(bytes) }
    }

    #[inline(always)]
    fn trits(self, codes: &[u8; WIDTH], shift: i32) -> Pair {
        // SAFETY: a Neon exists only where NEON was detected.
        unsafe { trits(codes, shift) }
    }

    /// Hardware follows a linear stream, and what a hint would add was not measured.
    #[inline(always)]
    fn prefetch_behind(self, _line: &[u8]) {}

    #[inline(always)]
    fn sum_lanes(self, low: [Pair; TILE_ROWS], high: [Pair; TILE_ROWS]) -> [f32; TILE_ROWS] {
        // SAFETY: a Neon exists only where NEON was detected.
        unsafe { sum_lanes(low, high) }
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn load(values: &[f32; WIDTH]) -> Pair {
    let fours = values.as_chunks().0;
    float32x4x2_t(load_f32(&fours[0]), load_f32(&fours[1]))
}

#[inline]
#[target_feature(enable = "neon")]
fn store(values: &mut [f32; WIDTH], floats: Pair) {
    let fours = values.as_chunks_mut().0;
    store_f32(&mut fours[0], floats.0);
    store_f32(&mut fours[1], floats.1);
}

#[inline]
#[target_feature(enable = "neon")]
fn add(a: Pair, b: Pair) -> Pair {
    float32x4x2_t(vaddq_f32(a.0, b.0), vaddq_f32(a.1, b.1))
}

#[inline]
#[target_feature(enable = "neon")]
fn mul(a: Pair, b: Pair) -> Pair {
    float32x4x2_t(vmulq_f32(a.0, b.0), vmulq_f32(a.1, b.1))
}

/// `fmax` would keep NaN.
#[inline]
#[target_feature(enable = "neon")]
fn larger(a: Pair, b: Pair) -> Pair {
    float32x4x2_t(vbslq_f32(vcgtq_f32(b.0, a.0), b.0, a.0), vbslq_f32(vcgtq_f32(b.1, a.1), b.1, a.1))
}

/// Every aarch64 processor has `fcvtl`; its intrinsic is not stable.
#[inline]
#[target_feature(enable = "neon")]
fn widen_f16(bytes: &[u8; 2 * WIDTH]) -> Pair {
    let halves = super::vector::load_u8(bytes);
    let (low, high): (float32x4_t, float32x4_t);
    // SAFETY: the instructions touch only the registers they are given.
    unsafe {
        asm!(
            "fcvtl {low:v}.4s, {halves:v}.4h",
            "fcvtl2 {high:v}.4s, {halves:v}.8h",
            low = out(vreg) low,
            high = lateout(vreg) high,
            halves = in(vreg) halves,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    float32x4x2_t(low, high)
}

/// A bfloat16 is the upper half of an f32.
#[inline]
#[target_feature(enable = "neon")]
fn widen_bf16(bytes: &[u8; 2 * WIDTH]) -> Pair {
    let (zero, halves) = (vdupq_n_u16(0), vreinterpretq_u16_u8(super::vector::load_u8(bytes)));
    float32x4x2_t(vreinterpretq_f32_u16(vzip1q_u16(zero, halves)), vreinterpretq_f32_u16(vzip2q_u16(zero, halves)))
}

#[inline]
#[target_feature(enable = "neon")]
fn trits(codes: &[u8; WIDTH], shift: i32) -> Pair {
    let bytes = vcreate_u8(u64::from_le_bytes(*codes) >> shift);
    let trits = vsub_s8(vreinterpret_s8_u8(vand_u8(bytes, vdup_n_u8(3))), vdup_n_s8(1));
    let wide = vmovl_s8(trits);
    float32x4x2_t(vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide))), vcvtq_f32_s32(vmovl_high_s16(wide)))
}

#[inline]
#[target_feature(enable = "neon")]
fn sum_lanes(low: [Pair; TILE_ROWS], high: [Pair; TILE_ROWS]) -> [f32; TILE_ROWS] {
    let mut fours = [vdupq_n_f64(0.0); TILE_ROWS];
    for (four, (low, high)) in fours.iter_mut().zip(low.into_iter().zip(high)) {
        let eight = add(low, high);
        *four = vreinterpretq_f64_f32(vaddq_f32(eight.0, eight.1));
    }
    to_array(vpaddq_f32(add_halves(fours[0], fours[1]), add_halves(fours[2], fours[3])))
}

/// Lanes 0 and 2, 1 and 3 of two sums of four.
#[inline]
#[target_feature(enable = "neon")]
fn add_halves(a: float64x2_t, b: float64x2_t) -> float32x4_t {
    vaddq_f32(vreinterpretq_f32_f64(vzip1q_f64(a, b)), vreinterpretq_f32_f64(vzip2q_f64(a, b)))
}
