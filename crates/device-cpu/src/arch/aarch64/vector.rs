//! Loads and stores of NEON registers: raw pointers end here, kernels see references to arrays.
//!
//! No prefetches: the weights are one linear stream, which hardware follows, and what a hint would give was not measured.

use std::arch::aarch64::*;

use super::products::QUARTERS;
use crate::tile::{BLOCK_BYTES, BLOCK_COLUMNS, TILE_ROWS};

/// Bytes of a register.
pub(super) const REGISTER: usize = 16;
/// Registers of 32 bytes, a quarter of a block or the packed codes of one of its rows.
pub(super) type Halves<T> = [[T; REGISTER]; 2];

/// The packed codes of the four rows of a block.
#[inline(always)]
pub(super) fn rows_of(block: &[u8; BLOCK_BYTES]) -> &[Halves<u8>; TILE_ROWS] {
    block.as_chunks().0.as_chunks().0.first_chunk().expect("a block is four rows of two registers")
}

/// The activations of the four quarters of a block.
#[inline(always)]
pub(super) fn quarters_of(block: &[i8; BLOCK_COLUMNS]) -> &[Halves<i8>; QUARTERS] {
    block.as_chunks().0.as_chunks().0.first_chunk().expect("a block is four quarters of two registers")
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn load_u8(bytes: &[u8; REGISTER]) -> uint8x16_t {
    // SAFETY: a reference to 16 bytes is readable for 16 bytes; the load is unaligned.
    unsafe { vld1q_u8(bytes.as_ptr()) }
}

/// Unpacked codes, which are small enough to be signed.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn load_codes(codes: &[u8; REGISTER]) -> int8x16_t {
    vreinterpretq_s8_u8(load_u8(codes))
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn load_i8(bytes: &[i8; REGISTER]) -> int8x16_t {
    // SAFETY: a reference to 16 bytes is readable for 16 bytes; the load is unaligned.
    unsafe { vld1q_s8(bytes.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn load_f32(values: &[f32; 4]) -> float32x4_t {
    // SAFETY: a reference to 4 floats is readable for 16 bytes; the load is unaligned.
    unsafe { vld1q_f32(values.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn load_sums(values: &[i32; 4]) -> int32x4_t {
    // SAFETY: a reference to 4 integers is readable for 16 bytes; the load is unaligned.
    unsafe { vld1q_s32(values.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn store_codes(bytes: &mut [u8; REGISTER], value: int8x16_t) {
    // SAFETY: a reference to 16 bytes is writable for 16 bytes; the store is unaligned.
    unsafe { vst1q_u8(bytes.as_mut_ptr(), vreinterpretq_u8_s8(value)) };
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn store_i8(bytes: &mut [i8; REGISTER], value: int8x16_t) {
    // SAFETY: a reference to 16 bytes is writable for 16 bytes; the store is unaligned.
    unsafe { vst1q_s8(bytes.as_mut_ptr(), value) };
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn store_sums(values: &mut [i32; 4], value: int32x4_t) {
    // SAFETY: a reference to 4 integers is writable for 16 bytes; the store is unaligned.
    unsafe { vst1q_s32(values.as_mut_ptr(), value) };
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn store_f32(values: &mut [f32; 4], value: float32x4_t) {
    // SAFETY: a reference to 4 floats is writable for 16 bytes; the store is unaligned.
    unsafe { vst1q_f32(values.as_mut_ptr(), value) };
}

/// Four floats as an array.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn to_array(value: float32x4_t) -> [f32; 4] {
    let mut values = [0.0; 4];
    store_f32(&mut values, value);
    values
}
