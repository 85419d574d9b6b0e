//! Single rows: quantisation and argmax, which a compiler does not vectorise with the reference's treatment of NaN.

use std::arch::x86_64::*;

use bitnet_model::numerics;
use bitnet_ternary::ACTIVATION_MAX;
use bitnet_ternary::quantise::{self, ActivationScale};

use super::vector::*;
use crate::arch::portable;
use crate::kernels::{GroupRowMut, Int8RowMut, RowScale};
use crate::tile::{BLOCK_COLUMNS, QUARTER_COLUMNS};

/// `quantise::absmax` of one row, with its sums and zero padding.
#[target_feature(enable = "avx2")]
pub(super) fn quantise(row: &[f32], out: Int8RowMut<'_>) {
    let scale = ActivationScale::of(numerics::largest_magnitude(row));
    let (quarters, tail) = row.as_chunks::<QUARTER_COLUMNS>();
    let quantized = out.quantized.as_chunks_mut::<QUARTER_COLUMNS>().0;
    for ((values, quantized), sum) in quarters.iter().zip(quantized.iter_mut()).zip(out.quarter_sums.iter_mut()) {
        let integers = quantise_quarter(values, scale.inverse);
        store_i8(quantized, integers);
        *sum = sum_i8(integers);
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
#[target_feature(enable = "avx2")]
pub(super) fn quantise_groups(row: &[f32], out: GroupRowMut<'_>) {
    let (groups, tail) = row.as_chunks::<BLOCK_COLUMNS>();
    let (whole, rest) = out.quantized.split_at_mut(groups.len() * BLOCK_COLUMNS);
    let (scales, last_scale) = out.scales.split_at_mut(groups.len());
    for ((values, quantized), scale) in groups.iter().zip(whole.as_chunks_mut::<BLOCK_COLUMNS>().0).zip(scales) {
        let row_scale = ActivationScale::of(numerics::largest_magnitude(values));
        let mut sum = 0;
        for (values, quantized) in values.as_chunks().0.iter().zip(quantized.as_chunks_mut().0) {
            let integers = quantise_quarter(values, row_scale.inverse);
            store_i8(quantized, integers);
            sum += sum_i8(integers);
        }
        *scale = RowScale { scale: row_scale, sum };
    }
    if !tail.is_empty() {
        portable::quantise_groups(tail, GroupRowMut { quantized: rest, scales: last_scale });
    }
}

/// `quantise::quantise_one` of 32 values.
#[inline]
#[target_feature(enable = "avx2")]
fn quantise_quarter(values: &[f32; QUARTER_COLUMNS], inverse_scale: f32) -> __m256i {
    let limit = _mm256_set1_ps(f32::from(ACTIVATION_MAX));
    let negative_limit = _mm256_set1_ps(-f32::from(ACTIVATION_MAX));
    let mut eights = [_mm256_setzero_si256(); 4];
    for (eight, values) in eights.iter_mut().zip(values.as_chunks().0) {
        let scaled = _mm256_mul_ps(load_f32(values), _mm256_set1_ps(inverse_scale));
        let rounded = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(scaled);
        let clamped = _mm256_min_ps(_mm256_max_ps(rounded, negative_limit), limit);
        // NaN becomes 0, as in a Rust cast.
        *eight = _mm256_cvtps_epi32(_mm256_and_ps(clamped, _mm256_cmp_ps::<_CMP_ORD_Q>(scaled, scaled)));
    }
    let (low, high) = (_mm256_packs_epi32(eights[0], eights[1]), _mm256_packs_epi32(eights[2], eights[3]));
    // The packs work in 128-bit halves: put the groups of four back in order.
    _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7))
}

/// Sum of 32 bytes.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn sum_i8(integers: __m256i) -> i32 {
    let pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), integers);
    let quads = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    let four = _mm_add_epi32(_mm256_castsi256_si128(quads), _mm256_extracti128_si256::<1>(quads));
    let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b01_00_11_10>(four));
    _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<0b10_11_00_01>(two)))
}

/// `numerics::argmax`: the largest value first, then the first index that holds it.
#[target_feature(enable = "avx2")]
pub(super) fn argmax(values: &[f32]) -> usize {
    let (chunks, tail) = values.as_chunks::<8>();
    let mut largest = _mm256_set1_ps(f32::NEG_INFINITY);
    for chunk in chunks {
        // maxps yields its second operand where either is NaN: NaN is passed over.
        largest = _mm256_max_ps(load_f32(chunk), largest);
    }
    let mut lanes = [0.0; 8];
    store_f32(&mut lanes, largest);
    let larger = |a: f32, &b: &f32| if b > a { b } else { a };
    let largest = lanes.iter().chain(tail).fold(f32::NEG_INFINITY, larger);
    if largest == f32::NEG_INFINITY {
        return 0;
    }
    let wanted = _mm256_set1_ps(largest);
    for (index, chunk) in chunks.iter().enumerate() {
        let equal = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_EQ_OQ>(load_f32(chunk), wanted));
        if equal != 0 {
            return index * 8 + equal.trailing_zeros() as usize;
        }
    }
    let in_tail = tail.iter().position(|&value| value == largest);
    chunks.len() * 8 + in_tail.expect("the largest value is one of the values")
}
