//! The three ways in which NEON processors multiply int8: widening multiplies (`Widening`, every one has them), `sdot` (`Dot`,
//! ARMv8.2 FEAT_DotProd) and `smmla` (`Matrix`, ARMv8.6 FEAT_I8MM). A value of `Dot` or `Matrix` proves that the processor has it.
//!
//! There are no stable intrinsics for the two newer instructions, so they are named in assembly, each alone: registers and
//! order stay the compiler's. Codes 0..=2 are multiplied as they are, and may stay where they lie in their byte (times 4 or 16)
//! as long as they fit a signed byte. Nothing here knows tiles or tokens.

use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};

use crate::tile::{BLOCK_COLUMNS, QUARTER_COLUMNS};

/// Quarters in a block.
pub(super) const QUARTERS: usize = BLOCK_COLUMNS / QUARTER_COLUMNS;
/// Places where the codes of a quarter may lie in their bytes: place p holds code · 4^p.
pub(super) const PLACES: usize = 3;

/// Largest magnitude of code · activation.
const PRODUCT_MAX: usize = 2 * 127;

/// One way of multiplying a register of codes with a register of activations and adding to a register of sums.
pub(super) trait Products: Copy {
    /// Width of a sum.
    const SUM: Sum;
    /// Most columns of a row that go into one register of sums.
    const DEFERRED_COLUMNS: usize;
    /// Where the codes of each quarter of a block are left.
    const QUARTER_PLACES: [usize; QUARTERS];

    /// sum + codes · x.
    fn add(self, sum: int32x4_t, codes: int8x16_t, x: int8x16_t) -> int32x4_t;
}

/// What the lanes of a register of sums are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sum {
    /// Eight 16-bit numbers.
    Halves,
    /// Four 32-bit numbers.
    Words,
}

/// Whether no lane can overflow: `lane_products` products of a block go into a lane at each place.
const fn fits(deferred_columns: usize, lane_products: [usize; PLACES], lane_max: usize) -> bool {
    let n_blocks = deferred_columns / BLOCK_COLUMNS;
    let all = lane_products[0] + lane_products[1] + lane_products[2];
    let mut place = 0;
    while place < PLACES {
        if (n_blocks * lane_products[place] * PRODUCT_MAX) << (2 * place) > lane_max {
            return false;
        }
        place += 1;
    }
    n_blocks * all * PRODUCT_MAX <= lane_max && deferred_columns.is_multiple_of(BLOCK_COLUMNS)
}

/// `smlal`: 16-bit sums, widened now and then.
#[derive(Clone, Copy)]
pub(super) struct Widening;

const _: () = assert!(fits(Widening::DEFERRED_COLUMNS, [12, 4, 0], i16::MAX as usize));

impl Products for Widening {
    const SUM: Sum = Sum::Halves;
    const DEFERRED_COLUMNS: usize = 1024;
    const QUARTER_PLACES: [usize; QUARTERS] = [0, 1, 0, 0];

    #[inline(always)]
    fn add(self, sum: int32x4_t, codes: int8x16_t, x: int8x16_t) -> int32x4_t {
        // SAFETY: Rust's aarch64 targets with a floating-point unit have NEON, and `Neon::new` asks for it.
        unsafe { add_widening(sum, codes, x) }
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn add_widening(sum: int32x4_t, codes: int8x16_t, x: int8x16_t) -> int32x4_t {
    let low = vmlal_s8(vreinterpretq_s16_s32(sum), vget_low_s8(codes), vget_low_s8(x));
    vreinterpretq_s32_s16(vmlal_high_s8(low, codes, x))
}

/// `sdot`: 32-bit sums of four products. Exists only on processors that have it.
#[derive(Clone, Copy)]
pub(super) struct Dot(());

impl Dot {
    /// Asks the processor.
    pub(super) fn new() -> Option<Self> {
        is_aarch64_feature_detected!("dotprod").then_some(Self(()))
    }
}

const _: () = assert!(fits(Dot::DEFERRED_COLUMNS, [16, 8, 8], i32::MAX as usize));

impl Products for Dot {
    const SUM: Sum = Sum::Words;
    const DEFERRED_COLUMNS: usize = 1 << 20;
    const QUARTER_PLACES: [usize; QUARTERS] = [0, 1, 2, 0];

    #[inline(always)]
    fn add(self, mut sum: int32x4_t, codes: int8x16_t, x: int8x16_t) -> int32x4_t {
        // SAFETY: a Dot exists only where the instruction was detected; it touches only the registers it is given.
        unsafe {
            asm!(
                ".arch_extension dotprod",
                "sdot {sum:v}.4s, {codes:v}.16b, {x:v}.16b",
                sum = inout(vreg) sum,
                codes = in(vreg) codes,
                x = in(vreg) x,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        sum
    }
}

/// `smmla`: 32-bit sums of eight products of two rows × two tokens. Exists only on processors that have it.
#[derive(Clone, Copy)]
pub(super) struct Matrix(());

// Used with the places and widths of `Dot`; a lane takes all columns of a row.
const _: () = assert!(fits(Dot::DEFERRED_COLUMNS, [64, 32, 32], i32::MAX as usize));

impl Matrix {
    /// Asks the processor.
    pub(super) fn new() -> Option<Self> {
        is_aarch64_feature_detected!("i8mm").then_some(Self(()))
    }

    /// sums\[2·i + j\] += Σ tokens\[8·i ..\] · rows\[8·j ..\] for two tokens and two rows of eight columns.
    #[inline(always)]
    pub(super) fn add(self, mut sums: int32x4_t, tokens: int8x16_t, rows: int8x16_t) -> int32x4_t {
        // SAFETY: a Matrix exists only where the instruction was detected; it touches only the registers it is given.
        unsafe {
            asm!(
                ".arch_extension i8mm",
                "smmla {sums:v}.4s, {tokens:v}.16b, {rows:v}.16b",
                sums = inout(vreg) sums,
                tokens = in(vreg) tokens,
                rows = in(vreg) rows,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        sums
    }
}

/// The codes of the 64 columns in 16 bytes, each quarter at its place.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn quarters<P: Products>(bytes: uint8x16_t) -> [int8x16_t; QUARTERS] {
    const { assert!(P::QUARTER_PLACES[0] == 0 && P::QUARTER_PLACES[1] == 1 && P::QUARTER_PLACES[2] != 1 && P::QUARTER_PLACES[3] == 0) };
    let third = if P::QUARTER_PLACES[2] == 2 { vandq_u8(bytes, vdupq_n_u8(0x30)) } else { vandq_u8(vshrq_n_u8::<4>(bytes), vdupq_n_u8(3)) };
    [
        vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(0x03))),
        vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(0x0c))),
        vreinterpretq_s8_u8(third),
        vreinterpretq_s8_u8(vshrq_n_u8::<6>(bytes)),
    ]
}

/// The codes of the 64 columns in 16 bytes, as they are.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn unpacked(bytes: uint8x16_t) -> [int8x16_t; QUARTERS] {
    let mask = vdupq_n_u8(3);
    [
        vreinterpretq_s8_u8(vandq_u8(bytes, mask)),
        vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8::<2>(bytes), mask)),
        vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8::<4>(bytes), mask)),
        vreinterpretq_s8_u8(vshrq_n_u8::<6>(bytes)),
    ]
}

/// The codes of one quarter of the 64 columns in 16 bytes, as they are.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn quarter_codes(bytes: uint8x16_t, quarter: usize) -> int8x16_t {
    // A negative shift is one to the right.
    let shifted = vshlq_u8(bytes, vdupq_n_s8(-2 * quarter as i8));
    vreinterpretq_s8_u8(vandq_u8(shifted, vdupq_n_u8(3)))
}

/// The sum of a row from its places; each is divided exactly.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn joined<P: Products>(sums: [int32x4_t; PLACES]) -> int32x4_t {
    match P::SUM {
        Sum::Words => vsraq_n_s32::<4>(vsraq_n_s32::<2>(sums[0], sums[1]), sums[2]),
        Sum::Halves => vreinterpretq_s32_s16(vsraq_n_s16::<2>(vreinterpretq_s16_s32(sums[0]), vreinterpretq_s16_s32(sums[1]))),
    }
}

/// wide + sums, 32-bit.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn widened<P: Products>(wide: int32x4_t, sums: int32x4_t) -> int32x4_t {
    match P::SUM {
        Sum::Words => vaddq_s32(wide, sums),
        Sum::Halves => vpadalq_s16(wide, vreinterpretq_s16_s32(sums)),
    }
}

/// The sums of four registers of four integers each.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn sum_rows(rows: [int32x4_t; 4]) -> int32x4_t {
    vpaddq_s32(vpaddq_s32(rows[0], rows[1]), vpaddq_s32(rows[2], rows[3]))
}
