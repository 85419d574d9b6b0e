//! Single rows: quantisation and argmax, which a compiler does not vectorise with the reference's treatment of NaN.

use std::arch::aarch64::*;

use bitnet_model::numerics;
use bitnet_ternary::ACTIVATION_MAX;
use bitnet_ternary::quantise::{self, ActivationScale};

use super::vector::*;
use crate::arch::portable;
use crate::kernels::{GroupRowMut, Int8RowMut, RowScale};
use crate::tile::{BLOCK_COLUMNS, QUARTER_COLUMNS};

/// `quantise::absmax` of one row, with its sums and zero padding.
#[target_feature(enable = "neon")]
pub(super) fn quantise(row: &[f32], out: Int8RowMut<'_>) {
    let scale = ActivationScale::of(numerics::largest_magnitude(row));
    let (quarters, tail) = row.as_chunks::<QUARTER_COLUMNS>();
    let quantized = out.quantized.as_chunks_mut::<QUARTER_COLUMNS>().0;
    for ((values, quantized), sum) in quarters.iter().zip(quantized.iter_mut()).zip(out.quarter_sums.iter_mut()) {
        *sum = 0;
        for (values, quantized) in values.as_chunks().0.iter().zip(quantized.as_chunks_mut().0) {
            let integers = quantise_register(values, scale.inverse);
            store_i8(quantized, integers);
            *sum += i32::from(vaddlvq_s8(integers));
        }
    }
    for (quantized, sum) in quantized.iter_mut().zip(out.quarter_sums.iter_mut()).skip(quarters.len()) {
        *quantized = [0; QUARTER_COLUMNS];
        *sum = 0;
    }
    if !tail.is_empty() {
        let last = &mut quantized[quarters.len()];
        last.iter_mut().zip(tail).for_each(|(integer, value)| *integer = quantise::quantise_one(*value, scale.inverse));
        out.quarter_sums[quarters.len()] = last.iter().map(|&integer| i32::from(integer)).sum();
    }
    *out.scale = RowScale { scale, sum: out.quarter_sums.iter().sum() };
}

/// `quantise::absmax_groups` of one row, with the sums of its groups and zero padding.
#[target_feature(enable = "neon")]
pub(super) fn quantise_groups(row: &[f32], out: GroupRowMut<'_>) {
    let (groups, tail) = row.as_chunks::<BLOCK_COLUMNS>();
    let (whole, rest) = out.quantized.split_at_mut(groups.len() * BLOCK_COLUMNS);
    let (scales, last_scale) = out.scales.split_at_mut(groups.len());
    for ((values, quantized), scale) in groups.iter().zip(whole.as_chunks_mut::<BLOCK_COLUMNS>().0).zip(scales) {
        let row_scale = ActivationScale::of(numerics::largest_magnitude(values));
        let mut sum = 0;
        for (values, quantized) in values.as_chunks().0.iter().zip(quantized.as_chunks_mut().0) {
            let integers = quantise_register(values, row_scale.inverse);
            store_i8(quantized, integers);
            sum += i32::from(vaddlvq_s8(integers));
        }
        *scale = RowScale { scale: row_scale, sum };
    }
    if !tail.is_empty() {
        portable::quantise_groups(tail, GroupRowMut { quantized: rest, scales: last_scale });
    }
}

/// `quantise::quantise_one` of 16 values: `fcvtns` rounds ties to even, makes 0 of NaN and saturates, as a Rust cast does.
#[inline]
#[target_feature(enable = "neon")]
fn quantise_register(values: &[f32; REGISTER], inverse_scale: f32) -> int8x16_t {
    let mut fours = [vdupq_n_s32(0); 4];
    for (four, values) in fours.iter_mut().zip(values.as_chunks().0) {
        *four = vcvtnq_s32_f32(vmulq_n_f32(load_f32(values), inverse_scale));
    }
    let low = vcombine_s16(vqmovn_s32(fours[0]), vqmovn_s32(fours[1]));
    let high = vcombine_s16(vqmovn_s32(fours[2]), vqmovn_s32(fours[3]));
    // Saturated to −128..=127, of which −128 is not used.
    const { assert!(ACTIVATION_MAX == i8::MAX) };
    vmaxq_s8(vcombine_s8(vqmovn_s16(low), vqmovn_s16(high)), vdupq_n_s8(-ACTIVATION_MAX))
}

/// `numerics::argmax`: the largest value first, then the first index that holds it.
#[target_feature(enable = "neon")]
pub(super) fn argmax(values: &[f32]) -> usize {
    let (chunks, tail) = values.as_chunks::<4>();
    let mut largest = vdupq_n_f32(f32::NEG_INFINITY);
    for chunk in chunks {
        // Nothing is greater than NaN, nor NaN than anything: it is passed over.
        let chunk = load_f32(chunk);
        largest = vbslq_f32(vcgtq_f32(chunk, largest), chunk, largest);
    }
    let larger = |a: f32, &b: &f32| if b > a { b } else { a };
    let largest = to_array(largest).iter().chain(tail).fold(f32::NEG_INFINITY, larger);
    if largest == f32::NEG_INFINITY {
        return 0;
    }
    let wanted = vdupq_n_f32(largest);
    for (index, chunk) in chunks.iter().enumerate() {
        if vmaxvq_u32(vceqq_f32(load_f32(chunk), wanted)) != 0 {
            let within = chunk.iter().position(|&value| value == largest);
            return index * 4 + within.expect("one of the four was equal");
        }
    }
    let in_tail = tail.iter().position(|&value| value == largest);
    chunks.len() * 4 + in_tail.expect("the largest value is one of the values")
}
