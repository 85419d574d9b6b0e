//! Loops that show what the machine can do: reading a stream, and products with their adds on registers.

use std::arch::aarch64::*;
use std::arch::asm;
use std::hint::black_box;

use super::products::{Matrix, Products};
use super::vector::{REGISTER, load_u8};

/// Independent sums, enough to hide the latency of an add.
const N_SUMS: usize = 16;

/// Reads all bytes; the result only keeps the loads alive.
#[target_feature(enable = "neon")]
pub(super) fn read_all(bytes: &[u8]) -> i32 {
    let mut sums = [vdupq_n_u8(0); 8];
    for block in bytes.as_chunks::<{ 8 * REGISTER }>().0 {
        for (sum, unit) in sums.iter_mut().zip(block.as_chunks().0) {
            *sum = veorq_u8(*sum, load_u8(unit));
        }
    }
    let sum = sums.into_iter().fold(vdupq_n_u8(0), |a, b| veorq_u8(a, b));
    i32::from(vmaxvq_u8(sum))
}

/// Does `n_rounds` rounds; yields the multiply-adds done.
#[target_feature(enable = "neon")]
pub(super) fn products<P: Products>(products: P, n_rounds: usize) -> u64 {
    let mut sums = [vdupq_n_s32(0); N_SUMS];
    let mut codes = vdupq_n_s8(black_box(1));
    let x = vdupq_n_s8(black_box(1));
    for _ in 0..n_rounds {
        for sum in &mut sums {
            // Opaque, so that no product is hoisted out of the loop.
            *sum = products.add(*sum, codes, x);
            codes = opaque(codes);
        }
    }
    black_box(sums);
    (n_rounds * N_SUMS * REGISTER) as u64
}

/// The same by `smmla`, which does twice as many at a time.
#[target_feature(enable = "neon")]
pub(super) fn matrix_products(matrix: Matrix, n_rounds: usize) -> u64 {
    let mut sums = [vdupq_n_s32(0); N_SUMS];
    let (tokens, rows) = (vdupq_n_s8(black_box(1)), vdupq_n_s8(black_box(1)));
    for _ in 0..n_rounds {
        for sum in &mut sums {
            *sum = matrix.add(*sum, tokens, rows);
        }
    }
    black_box(sums);
    (n_rounds * N_SUMS * 2 * REGISTER) as u64
}

/// The same register, but the compiler does not know.
#[inline]
#[target_feature(enable = "neon")]
fn opaque(mut register: int8x16_t) -> int8x16_t {
    // SAFETY: the assembly is empty: it reads and writes nothing but the register it is given.
    unsafe { asm!("/* {0:v} */", inout(vreg) register, options(pure, nomem, nostack, preserves_flags)) };
    register
}
