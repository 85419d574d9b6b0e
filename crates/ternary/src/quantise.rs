//! How real numbers become integers: weights by absmean, activations by absmax. Rounding is to nearest, ties to even, as
//! `torch.round` and ggml's `nearest_int` do; `f32::round` would differ on every tie.
//!
//! Source: BitNet b1.58 (arXiv 2402.17764 eq. 1–3); huggingface/transformers:src/transformers/integrations/bitnet.py.

use half::bf16;

use crate::matrix::{ACTIVATION_MAX, MatrixError, Scales, TernaryMatrix};

/// No scale is smaller than this, so that an all-zero row or matrix divides by something.
pub const SCALE_FLOOR: f32 = 1e-5;

/// Mean magnitude of `weights`, summed in f64 so that the result does not depend on the order of summation, then floored;
/// NaN if a weight is NaN.
pub fn absmean_scale(weights: &[f32]) -> f32 {
    if weights.is_empty() {
        return SCALE_FLOOR;
    }
    let sum: f64 = weights.iter().map(|&weight| f64::from(weight.abs())).sum();
    let mean = (sum / weights.len() as f64) as f32;
    // Not `max`: it would turn the NaN of damaged weights into a plausible scale.
    if mean < SCALE_FLOOR { SCALE_FLOOR } else { mean }
}

/// Ternarises master weights `[n_rows, n_cols]` with one scale: trit = clamp(round(w · (1/scale)), −1, 1), real = trit × 1/(1/scale).
///
/// The double reciprocal is what the training code does and is kept, since it moves the last bit.
/// Errors: a shape that does not match, or weights that are not finite.
pub fn absmean(n_rows: usize, n_cols: usize, weights: &[f32]) -> Result<TernaryMatrix, MatrixError> {
    let inverse_scale = 1.0 / absmean_scale(weights);
    let scale = 1.0 / inverse_scale;
    if !scale.is_finite() || scale == 0.0 {
        return Err(MatrixError::Scale { index: 0, value: scale });
    }
    let trits: Vec<i8> = weights.iter().map(|&weight| (weight * inverse_scale).round_ties_even().clamp(-1.0, 1.0) as i8).collect();
    TernaryMatrix::from_trits(n_rows, n_cols, &trits, Scales::Tensor(scale))
}

/// Quantises one token's activations `x[k]` to int8: `quantized[i] = clamp(round(x[i] · inverse_scale), −127, 127)` with
/// `inverse_scale = (1 / max(max|x|, 1e-5)) · 127`. Returns both scales.
///
/// The two roundings of `inverse_scale` are PyTorch's for `127 / tensor` (reciprocal, then product) and decide ties: embeddings of few
/// bits have many, and a quotient rounded once sends some of them the other way.
///
/// NaN quantises to 0 and infinities make every finite neighbour 0; the forward pass checks its logits for that.
pub fn absmax(x: &[f32], quantized: &mut [i8]) -> ActivationScale {
    assert_eq!(x.len(), quantized.len(), "absmax needs one integer for each activation");
    let scale = ActivationScale::of(x.iter().fold(0.0f32, |largest, value| largest.max(value.abs())));
    for (integer, value) in quantized.iter_mut().zip(x) {
        *integer = quantise_one(*value, scale.inverse);
    }
    scale
}

/// Columns that share a scale where activations are quantised in groups: those of one weight scale of Ternary-Bonsai.
pub const ACTIVATION_GROUP: usize = 128;

/// Quantises one token's activations `x[k]` in groups: [`absmax`] of each `ACTIVATION_GROUP` columns (the last group may be shorter),
/// scales into `scales[k / ACTIVATION_GROUP, rounded up]`.
///
/// Every activation comes back within half a scale of its group, |x − scale·int| ≤ scale · (1/2 + 2⁻¹⁵), where magnitudes are below 2¹²⁶:
/// rounding moves x · inverse_scale by at most 1/2, and the roundings of f32 (of both scales and of the product with x; at 127 the two of
/// `inverse_scale` may be cut off by the clamp) move it by at most 127 · 4.01 · 2⁻²⁴ < 2⁻¹⁵ more.
pub fn absmax_groups(x: &[f32], quantized: &mut [i8], scales: &mut [f32]) {
    assert_eq!(scales.len(), x.len().div_ceil(ACTIVATION_GROUP), "absmax_groups needs a scale for each group");
    let groups = x.chunks(ACTIVATION_GROUP).zip(quantized.chunks_mut(ACTIVATION_GROUP));
    for ((x, quantized), scale) in groups.zip(scales) {
        *scale = absmax(x, quantized).real;
    }
}

/// The runs of columns, ascending, that share a weight scale (`group_size` columns each) and an activation scale.
pub fn segments(n_cols: usize, group_size: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let next = move |start: usize| {
        let (weights, activations) = ((start / group_size + 1) * group_size, (start / ACTIVATION_GROUP + 1) * ACTIVATION_GROUP);
        start..weights.min(activations).min(n_cols)
    };
    std::iter::successors(Some(next(0)), move |segment| (segment.end < n_cols).then(|| next(segment.end)))
}

/// The scale of quantised activations.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ActivationScale {
    /// real = int × `real`: the reciprocal of `inverse`.
    pub real: f32,
    /// int = round(real × `inverse`).
    pub inverse: f32,
}

impl ActivationScale {
    /// That of a token whose largest magnitude is `largest`.
    #[inline(always)]
    pub fn of(largest: f32) -> Self {
        let inverse = (1.0 / largest.max(SCALE_FLOOR)) * f32::from(ACTIVATION_MAX);
        Self { real: 1.0 / inverse, inverse }
    }
}

/// What `scale` of weights is the reciprocal of, for products that are dequantised by a quotient: out = accumulator / (inverse scale of the
/// activations · inverse scale of the weights), as transformers' `BitLinear` does.
///
/// Published inverse scales are bfloat16, and the reciprocal of a rounded reciprocal misses some of them by one unit in the last place:
/// where a bfloat16 is that near, it is meant.
#[inline]
pub fn weight_inverse_scale(scale: f32) -> f32 {
    let inverse = 1.0 / scale;
    let published = bf16::from_f32(inverse).to_f32();
    if published.to_bits().abs_diff(inverse.to_bits()) <= 1 { published } else { inverse }
}

/// One activation to int8, ties to even, never −128.
#[inline(always)]
pub fn quantise_one(value: f32, inverse_scale: f32) -> i8 {
    let limit = f32::from(ACTIVATION_MAX);
    (value * inverse_scale).round_ties_even().clamp(-limit, limit) as i8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absmean_rounds_ties_to_even_and_clamps() {
        // mean |w| = 1, so 0.5 is a tie and goes to 0, 1.5 would be 2 and is clamped.
        let matrix = absmean(1, 4, &[0.5, -0.5, 1.5, -1.5]).expect("finite");
        assert_eq!(matrix.to_trits(), [0, 0, 1, -1]);
        assert_eq!(matrix.scales(), &Scales::Tensor(1.0));
    }

    #[test]
    fn absmean_of_zeros_uses_the_floor() {
        let matrix = absmean(1, 3, &[0.0; 3]).expect("finite");
        assert_eq!(matrix.to_trits(), [0, 0, 0]);
        assert!(absmean(1, 2, &[f32::NAN, 1.0]).is_err());
        assert!(absmean(1, 2, &[f32::INFINITY, 1.0]).is_err());
    }

    #[test]
    fn absmax_rounds_ties_to_even() {
        let mut quantized = [0i8; 5];
        let scale = absmax(&[127.0, 0.5, 1.5, 2.5, -0.5], &mut quantized);
        assert_eq!(scale, ActivationScale { real: 1.0, inverse: 1.0 });
        assert_eq!(quantized, [127, 0, 2, 2, 0]);
    }

    #[test]
    fn weight_inverse_scale_finds_every_bfloat16_through_its_reciprocal() {
        let mut moved = 0;
        for bits in 0x3c00..0x4600u16 {
            let published = bf16::from_bits(bits).to_f32();
            let scale = 1.0 / published;
            assert_eq!(weight_inverse_scale(scale), published);
            moved += usize::from(1.0 / scale != published);
        }
        assert!(moved > 100, "a reciprocal alone misses {moved}");
        assert_eq!(weight_inverse_scale(0.3), 1.0 / 0.3f32, "other scales keep their reciprocal");
    }

    #[test]
    fn absmax_never_gives_minus_128() {
        for bits in 0..20_000u32 {
            let x = [f32::from_bits(0x3f00_0000 + bits * 977), -f32::from_bits(0x3f00_0000 + bits * 977)];
            let mut quantized = [0i8; 2];
            absmax(&x, &mut quantized);
            assert_eq!(quantized, [127, -127]);
        }
        assert_eq!(quantise_one(-1e9, 1.0), -127, "the clamp exists");
    }

    #[test]
    fn absmax_groups_gives_each_group_its_own_scale() {
        let x: Vec<f32> = (0..300).map(|i| if i < 128 { 127.0 } else { 1.0 }).collect();
        let (mut quantized, mut scales) = ([0i8; 300], [0.0f32; 3]);
        absmax_groups(&x, &mut quantized, &mut scales);
        assert_eq!(quantized, [127; 300]);
        assert_eq!(scales, [1.0, 1.0 / 127.0, 1.0 / 127.0]);
    }

    #[test]
    fn segments_end_where_either_group_ends() {
        let all = |n_cols, group_size| segments(n_cols, group_size).collect::<Vec<_>>();
        assert_eq!(all(300, 300), [0..128, 128..256, 256..300]);
        assert_eq!(all(256, 64), [0..64, 64..128, 128..192, 192..256]);
        assert_eq!(all(192, 96), [0..96, 96..128, 128..192]);
        assert_eq!(all(512, 256), [0..128, 128..256, 256..384, 384..512]);
        assert_eq!(all(1, 1), vec![0..1]);
    }

    #[test]
    fn absmax_of_zeros_uses_the_floor() {
        let mut quantized = [1i8; 4];
        let scale = absmax(&[0.0; 4], &mut quantized);
        assert_eq!(quantized, [0; 4]);
        assert_eq!(scale, ActivationScale { real: 1.0 / 1.27e7, inverse: 1.27e7 });
    }
}
