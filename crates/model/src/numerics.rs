//! Every float operation of the forward pass that could be done in more than one order, written once.
//!
//! Sums run in [`LANES`] interleaved lanes (element `i` goes to lane `i % LANES`) that are added up by a fixed tree; sums of squares, which
//! norms wait for, have a tree of their own with few steps one after another ([`sum_of_squares`]). Rust never
//! contracts a multiply and an add, so this source gives the same bits whether it is compiled for scalar, AVX2, AVX-512 or NEON:
//! devices call these functions from inside their own target-feature functions (everything is `inline(always)`) and are
//! bit-equal by construction. A device may write its own instructions only if it keeps this order.
//!
//! What it does not do: choose what is computed (that is the walk), or run in parallel (that is the device). No sum is ever
//! split across threads or tokens.

use bitnet_ternary::quantise::ActivationScale;
use half::f16;

/// Interleaved partial sums: two AVX2 registers, one AVX-512 register, four NEON registers.
pub const LANES: usize = 16;

/// Adds the lanes up: l + (l + 8), then 4, 2, 1.
#[inline(always)]
pub fn sum_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// Σ a[i]·b[i]. Panics if lengths differ.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "dot of unequal lengths");
    let (a_chunks, a_tail) = a.as_chunks::<LANES>();
    let (b_chunks, b_tail) = b.as_chunks::<LANES>();
    let mut lanes = [0.0f32; LANES];
    for (x, y) in a_chunks.iter().zip(b_chunks) {
        for lane in 0..LANES {
            lanes[lane] += x[lane] * y[lane];
        }
    }
    for (lane, (x, y)) in a_tail.iter().zip(b_tail).enumerate() {
        lanes[lane] += x * y;
    }
    sum_lanes(lanes)
}

/// Elements of a block of squares, sixteen sums of which are kept.
const SQUARES_BLOCK: usize = 64;
/// Blocks of a chunk, which is added up to one number.
const CHUNK_BLOCKS: usize = 4;
type ChunkSums = [[f32; SQUARES_BLOCK / 4]; CHUNK_BLOCKS];

/// Σ x[i]², the row filled up with zeros to chunks of four blocks of 64. Everything is added up by fours ((0 + 2) + (1 + 3)): in a block the four squares
/// that are 16 apart, then four neighbours of those sums, then the four blocks of a chunk, then the four sums that are left of it. Chunk `c` is
/// added to lane `c % 4`, in order, and at last the four lanes are.
///
/// Norms are what everything behind them waits for: of a row of 6,912, 17 additions wait for each other.
#[inline(always)]
pub fn sum_of_squares(x: &[f32]) -> f32 {
    let (blocks, tail) = x.as_chunks::<SQUARES_BLOCK>();
    let mut lanes = [0.0f32; 4];
    let mut sums = ChunkSums::default();
    for (index, block) in blocks.iter().enumerate() {
        add_squares(block, &mut sums[index % CHUNK_BLOCKS]);
        if index % CHUNK_BLOCKS == CHUNK_BLOCKS - 1 {
            lanes[index / CHUNK_BLOCKS % 4] += sum_chunk(&sums);
            sums = ChunkSums::default();
        }
    }
    let n_blocks = blocks.len();
    if !tail.is_empty() || n_blocks % CHUNK_BLOCKS != 0 {
        let mut last = [0.0f32; SQUARES_BLOCK];
        last[..tail.len()].copy_from_slice(tail);
        add_squares(&last, &mut sums[n_blocks % CHUNK_BLOCKS]);
        lanes[n_blocks / CHUNK_BLOCKS % 4] += sum_chunk(&sums);
    }
    (lanes[0] + lanes[2]) + (lanes[1] + lanes[3])
}

// Loops over single sums, which compilers turn into vectors; written with arrays of four they do not.
#[inline(always)]
fn add_squares(x: &[f32; SQUARES_BLOCK], sums: &mut [f32; SQUARES_BLOCK / 4]) {
    for (at, sum) in sums.iter_mut().enumerate() {
        *sum = (x[at] * x[at] + x[at + 32] * x[at + 32]) + (x[at + 16] * x[at + 16] + x[at + 48] * x[at + 48]);
    }
}

#[inline(always)]
fn sum_chunk(sums: &ChunkSums) -> f32 {
    let sums = sums.as_flattened();
    let mut fours = [0.0f32; SQUARES_BLOCK / 4];
    for (at, four) in fours.iter_mut().enumerate() {
        *four = (sums[at * 4] + sums[at * 4 + 2]) + (sums[at * 4 + 1] + sums[at * 4 + 3]);
    }
    // Four of each block: blocks first, then what is left.
    sum_lanes(fours)
}

/// Σ x[i].
#[inline(always)]
pub fn sum(x: &[f32]) -> f32 {
    let (chunks, tail) = x.as_chunks::<LANES>();
    let mut lanes = [0.0f32; LANES];
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] += chunk[lane];
        }
    }
    for (lane, value) in tail.iter().enumerate() {
        lanes[lane] += value;
    }
    sum_lanes(lanes)
}

/// max |x[i]|; 0 if empty. NaN is passed over, as `f32::max` does.
#[inline(always)]
pub fn largest_magnitude(x: &[f32]) -> f32 {
    let (chunks, tail) = x.as_chunks::<LANES>();
    let mut lanes = [0.0f32; LANES];
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] = select_larger(lanes[lane], chunk[lane].abs());
        }
    }
    let largest = lanes.into_iter().fold(0.0f32, select_larger);
    tail.iter().fold(largest, |largest, value| select_larger(largest, value.abs()))
}

/// `a` unless `b` is larger: one instruction, and NaN in `b` is passed over.
#[inline(always)]
fn select_larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

/// 1 / √(mean(x²) + ε), the factor of an RMSNorm.
#[inline(always)]
pub fn inverse_rms(x: &[f32], epsilon: f32) -> f32 {
    1.0 / (sum_of_squares(x) / x.len() as f32 + epsilon).sqrt()
}

/// RMSNorm in place: x[i] ← (x[i] · inverse_rms) · weight[i].
#[inline(always)]
pub fn rms_norm(x: &mut [f32], weight: &[f32], epsilon: f32) {
    assert_eq!(x.len(), weight.len(), "one norm weight for each element");
    let factor = inverse_rms(x, epsilon);
    for (value, weight) in x.iter_mut().zip(weight) {
        *value = (*value * factor) * weight;
    }
}

const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// ln 2 in two parts, so that n·ln 2 loses nothing for |n| ≤ 128 (Cephes expf).
const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -2.121_944_4e-4;
/// Adding and subtracting 1.5·2²³ rounds to an integer, ties to even.
const ROUND_TO_INTEGER: f32 = 12_582_912.0;
/// Arguments are clamped to where the result is a normal number.
const EXP_MIN: f32 = -87.336_54;
const EXP_MAX: f32 = 88.376_26;

/// eˣ within 2 ULP for x in [−87.3, 88.3], clamped outside. The same bits everywhere: no libm is asked.
///
/// Method: x = n·ln 2 + r, a degree-6 polynomial for eʳ, n put into the exponent (Cephes `expf`).
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let x = if x < EXP_MIN { EXP_MIN } else { x };
    let x = if x > EXP_MAX { EXP_MAX } else { x };
    let rounded = x * LOG2_E + ROUND_TO_INTEGER;
    let n = rounded - ROUND_TO_INTEGER;
    let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 5.000_000_3e-1;
    let mantissa = (p * (r * r) + r) + 1.0;
    // The low bits of `rounded` are n (a conversion would keep compilers from using vectors), and |n| <= 127 by the clamps, so the
    // exponent field cannot wrap. NaN gives any power of two and stays NaN through the mantissa.
    let exponent = rounded.to_bits().wrapping_sub(ROUND_TO_INTEGER.to_bits()).wrapping_add(127);
    mantissa * f32::from_bits(exponent << 23)
}

/// x · sigmoid(x).
#[inline(always)]
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// max(x, 0)².
#[inline(always)]
pub fn relu2(x: f32) -> f32 {
    let positive = if x > 0.0 { x } else { 0.0 };
    positive * positive
}

/// Rotates one head in place, rotate-half convention: pairs (i, i + head_dim/2).
///
/// Shapes: `head[head_dim]`, `cos` and `sin` `[head_dim / 2]`.
#[inline(always)]
pub fn rotate_half(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let half = head.len() / 2;
    assert!(cos.len() == half && sin.len() == half, "one angle for each pair");
    let (low, high) = head.split_at_mut(half);
    for pair in 0..half {
        let (x, y) = (low[pair], high[pair]);
        low[pair] = x * cos[pair] - y * sin[pair];
        high[pair] = y * cos[pair] + x * sin[pair];
    }
}

/// What an IEEE half keeps of a key or value: nearest, ties to even; what is too large becomes the largest half, NaN stays.
#[inline(always)]
pub fn round_to_f16(x: f32) -> f16 {
    f16::from_f32(clamp_to_f16(x))
}

/// The scale of a key or value of one head in an int8 cache, which keeps `quantise_one(number)` × scale of each number.
#[inline(always)]
pub fn kv_scale(numbers: &[f32]) -> ActivationScale {
    ActivationScale::of(largest_magnitude(numbers))
}

/// What is too large for a half becomes the largest; NaN stays.
#[inline(always)]
pub fn clamp_to_f16(x: f32) -> f32 {
    let x = if x > F16_MAX { F16_MAX } else { x };
    if x < -F16_MAX { -F16_MAX } else { x }
}

/// Largest finite IEEE half.
const F16_MAX: f32 = 65_504.0;

/// scores[j] = (query · keys[j]) · scale for the rows of one KV block: `keys[n, head_dim]`, `scores[n]`.
#[inline(always)]
pub fn score_block(query: &[f32], keys: &[f32], scale: f32, scores: &mut [f32]) {
    for (score, key) in scores.iter_mut().zip(keys.chunks_exact(query.len())) {
        *score = dot(query, key) * scale;
    }
}

/// scores[j] ← exp(scores[j] − max). Returns 1 / Σ.
#[inline(always)]
pub fn softmax_numerators(scores: &mut [f32]) -> f32 {
    let largest = scores.iter().fold(f32::NEG_INFINITY, |largest, &score| select_larger(largest, score));
    for score in scores.iter_mut() {
        *score = exp(*score - largest);
    }
    1.0 / sum(scores)
}

/// out[d] += weights[j] · values[j, d], j ascending: `values[n, head_dim]`, `weights[n]`, `out[head_dim]`.
#[inline(always)]
pub fn accumulate_block(weights: &[f32], values: &[f32], out: &mut [f32]) {
    for (weight, value) in weights.iter().zip(values.chunks_exact(out.len())) {
        for (sum, x) in out.iter_mut().zip(value) {
            *sum += weight * x;
        }
    }
}

/// Σ x[i]·trit[i] of one scale group, in the lane order of [`dot`]. Trits are given as f32 −1, 0, 1.
///
/// A kernel may add, skip or subtract instead of multiplying: x·1, x·−1 and +0 are exact, and a lane that starts at +0 never
/// becomes −0, so the bits are the same.
#[inline(always)]
pub fn dot_trits(x: &[f32], trits: &[f32]) -> f32 {
    dot(x, trits)
}

/// The fixed epilogue of an int8 product with one scale a row (`quantise::weight_inverse_scale`) and one a token. It has the roundings of
/// transformers' `BitLinear`, so that integers that are equal stay equal through all layers.
#[inline(always)]
pub fn dequantise(accumulator: i32, weight_inverse_scale: f32, activation_inverse_scale: f32) -> f32 {
    accumulator as f32 / (activation_inverse_scale * weight_inverse_scale)
}

/// The fixed epilogue of an int8 product whose weights have groups: Σ over groups of (accumulator · weight scale), groups ascending, divided
/// by the token's inverse scale.
#[inline(always)]
pub fn dequantise_groups(accumulators: impl Iterator<Item = (i32, f32)>, activation_inverse_scale: f32) -> f32 {
    let mut y = 0.0f32;
    for (accumulator, weight_scale) in accumulators {
        y += accumulator as f32 * weight_scale;
    }
    y / activation_inverse_scale
}

/// The fixed epilogue of an int8 product whose activations have groups, too: Σ over segments of (accumulator · (weight scale · activation
/// scale)), segments ascending.
#[inline(always)]
pub fn dequantise_segments(accumulators: impl Iterator<Item = (i32, f32, f32)>) -> f32 {
    let mut y = 0.0f32;
    for (accumulator, weight_scale, activation_scale) in accumulators {
        y += accumulator as f32 * (weight_scale * activation_scale);
    }
    y
}

/// Index of the largest value, the lowest where several are equal; 0 if none is larger than −∞ (NaN is passed over).
#[inline(always)]
pub fn argmax(values: &[f32]) -> usize {
    let mut best = (0, f32::NEG_INFINITY);
    for (index, &value) in values.iter().enumerate() {
        if value > best.1 {
            best = (index, value);
        }
    }
    best.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        (0..n)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect()
    }

    #[test]
    fn dot_of_every_length_is_close_to_f64() {
        for n in 0..70 {
            let (a, b) = (values(n, 1), values(n, 2));
            let exact: f64 = a.iter().zip(&b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum();
            assert!((f64::from(dot(&a, &b)) - exact).abs() < 1e-5, "n {n}");
        }
    }

    #[test]
    fn sum_of_squares_of_every_length_is_in_its_order() {
        let sum_four = |x: [f32; 4]| (x[0] + x[2]) + (x[1] + x[3]);
        for n in (0..600).chain([2560, 6912]) {
            let mut x = values(n, 3);
            let exact: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
            x.resize(n.next_multiple_of(256), 0.0);
            let square = |index: usize| x[index] * x[index];
            let of_sixteens = |index: usize| sum_four([0, 16, 32, 48].map(|apart| square(index + apart)));
            let of_neighbours = |index: usize| sum_four([0, 1, 2, 3].map(|apart| of_sixteens(index + apart)));
            let of_blocks = |index: usize| sum_four([0, 64, 128, 192].map(|apart| of_neighbours(index + apart)));
            let of_chunk = |first: usize| sum_four([0, 4, 8, 12].map(|apart| of_blocks(first + apart)));
            let mut lanes = [0.0f32; 4];
            for first in (0..x.len()).step_by(256) {
                lanes[first / 256 % 4] += of_chunk(first);
            }
            let sum = sum_of_squares(&x[..n]);
            assert_eq!(sum.to_bits(), sum_four(lanes).to_bits(), "n {n}");
            assert!((f64::from(sum) - exact).abs() <= 1e-6 * exact, "n {n}");
        }
    }

    #[test]
    fn exp_is_within_two_ulp_of_f64() {
        let mut worst = 0.0f64;
        for step in -87_300..88_300 {
            let x = step as f32 / 1000.0;
            let exact = f64::from(x).exp();
            let ulp = f64::from(f32::from_bits((exact as f32).to_bits() + 1)) - f64::from(exact as f32);
            worst = worst.max((f64::from(exp(x)) - exact).abs() / ulp);
        }
        assert!(worst <= 2.0, "worst error {worst} ULP");
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(-1e9) > 0.0 && exp(-1e9) < 1.2e-38);
        assert!(exp(1e9).is_finite());
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn rms_norm_of_ones_is_the_weight() {
        let mut x = vec![1.0; 33];
        let weight = values(33, 3);
        rms_norm(&mut x, &weight, 0.0);
        assert_eq!(x, weight);
    }

    #[test]
    fn silu_and_relu2_differ_where_it_matters() {
        assert_eq!(relu2(-3.0), 0.0);
        assert_eq!(relu2(3.0), 9.0);
        assert!((silu(3.0) - 2.857_722_3).abs() < 1e-6);
        assert!((silu(-3.0) + 0.142_277_6).abs() < 1e-6);
        assert!(silu(-500.0).abs() < 1e-30);
    }

    #[test]
    fn softmax_numerators_sum_to_one() {
        let mut scores = values(37, 4);
        let inverse_sum = softmax_numerators(&mut scores);
        let total: f32 = scores.iter().map(|score| score * inverse_sum).sum();
        assert!((total - 1.0).abs() < 1e-5);
    }

    #[test]
    fn halves_are_nearest_and_never_infinite() {
        assert_eq!(round_to_f16(1.0 + 1.0 / 2048.0).to_f32(), 1.0, "a tie goes to the even");
        assert_eq!(round_to_f16(1.0 + 3.0 / 2048.0).to_f32(), 1.0 + 2.0 / 1024.0);
        assert_eq!(round_to_f16(1e9).to_f32(), F16_MAX);
        assert_eq!(round_to_f16(f32::NEG_INFINITY).to_f32(), -F16_MAX);
        assert!(round_to_f16(f32::NAN).is_nan());
    }

    #[test]
    fn rotation_keeps_length_and_turns_by_the_angle() {
        let mut head = [1.0, 0.0];
        rotate_half(&mut head, &[0.5f32.cos()], &[0.5f32.sin()]);
        assert_eq!(head, [0.5f32.cos(), 0.5f32.sin()]);
    }

    #[test]
    fn largest_magnitude_passes_over_nan() {
        assert_eq!(largest_magnitude(&[]), 0.0);
        let mut x = values(40, 5);
        x[17] = f32::NAN;
        x[39] = -7.0;
        assert_eq!(largest_magnitude(&x), 7.0);
    }
}
