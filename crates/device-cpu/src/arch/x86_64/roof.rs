//! Loops that show what the machine can do: reading a stream, and `maddubs` + 16-bit adds on registers.

use std::arch::x86_64::*;
use std::hint::black_box;

use super::vector::{load_u8, prefetch_behind};

/// Independent sums, enough to hide the latency of an add.
const N_SUMS: usize = 12;

/// Reads all bytes; the result only keeps the loads alive.
#[target_feature(enable = "avx2")]
pub(super) fn read_all(bytes: &[u8]) -> i32 {
    let mut sums = [_mm256_setzero_si256(); 4];
    for block in bytes.as_chunks::<128>().0 {
        prefetch_behind(block);
        for (sum, unit) in sums.iter_mut().zip(block.as_chunks().0) {
            *sum = _mm256_xor_si256(*sum, load_u8(unit));
        }
    }
    let sum = _mm256_xor_si256(_mm256_xor_si256(sums[0], sums[1]), _mm256_xor_si256(sums[2], sums[3]));
    _mm256_extract_epi32::<0>(sum) ^ _mm256_extract_epi32::<7>(sum)
}

/// Does `n_rounds` rounds; yields the multiply-adds done.
#[target_feature(enable = "avx2")]
pub(super) fn products(n_rounds: usize) -> u64 {
    let mut sums = [_mm256_setzero_si256(); N_SUMS];
    let mut codes = _mm256_set1_epi8(black_box(1));
    let x = _mm256_set1_epi8(black_box(1));
    for _ in 0..n_rounds {
        for sum in &mut sums {
            // Opaque, so that no product is hoisted out of the loop.
            *sum = _mm256_add_epi16(*sum, _mm256_maddubs_epi16(codes, x));
            codes = opaque(codes);
        }
    }
    black_box(sums);
    (n_rounds * N_SUMS * 32) as u64
}

/// The same register, but the compiler does not know.
#[inline]
#[target_feature(enable = "avx2")]
fn opaque(mut register: __m256i) -> __m256i {
    // SAFETY: the assembly is empty: it reads and writes nothing but the register it is given.
    unsafe { std::arch::asm!("/* {0} */", inout(ymm_reg) register, options(pure, nomem, nostack, preserves_flags)) };
    register
}
