//! The error of int8 activations in groups: proved to be bounded (`docs/decisions/0010`), tested against the bound over random inputs
//! and the worst ones.

use bitnet_checkpoint::config::ActivationPolicy::Int8PerGroup;
use bitnet_ternary::quantise::{self, ACTIVATION_GROUP};
use bitnet_ternary::{ACTIVATION_MAX, Scales, TernaryMatrix};
use proptest::prelude::*;

use crate::support::{Noise, Pattern, devices, products, scales};

/// One output row: the exact Σ x·w, and how far from it int8 in groups can be.
///
/// An activation moves by at most scale · (1/2 + 2⁻¹⁵) (`quantise::absmax_groups`), which counts once for each weight that is not 0. The
/// product itself rounds each of J segments twice and adds J times in f32, from |sum| ≤ 127 · (weights that are not 0):
/// |ŷ − y| ≤ Σ over segments of |weight scale| · activation scale · n_nonzero · (1/2 + 2⁻¹⁵ + 127 · (J + 1) · 2⁻²⁴ · 1.01).
fn exact_and_bound(x: &[f32], weights: &TernaryMatrix, row: usize) -> (f64, f64) {
    let k = weights.n_cols();
    let (mut trits, mut quantized, mut activation_scales) = (vec![0; k], vec![0; k], vec![0.0; k.div_ceil(ACTIVATION_GROUP)]);
    weights.unpack_row(row, &mut trits);
    quantise::absmax_groups(x, &mut quantized, &mut activation_scales);
    let segments: Vec<_> = quantise::segments(k, weights.group_size()).collect();
    let of_floats = f64::from(ACTIVATION_MAX) * (segments.len() + 1) as f64 * 2f64.powi(-24) * 1.01;
    let (mut exact, mut bound) = (0.0, 0.0);
    for columns in segments {
        let weight_scale = f64::from(weights.scale_at(row, columns.start));
        let step = f64::from(activation_scales[columns.start / ACTIVATION_GROUP]);
        let pairs = x[columns.clone()].iter().zip(&trits[columns.clone()]);
        exact += weight_scale * pairs.map(|(&x, &trit)| f64::from(x) * f64::from(trit)).sum::<f64>();
        let n_nonzero = trits[columns].iter().filter(|&&trit| trit != 0).count() as f64;
        bound += weight_scale.abs() * step * n_nonzero * (0.5 + 2f64.powi(-15) + of_floats);
    }
    (exact, bound)
}

/// Largest error of any output, as a share of its bound.
fn worst_share(x: &[f32], weights: &TernaryMatrix) -> f64 {
    let (n, k) = (weights.n_rows(), weights.n_cols());
    let mut device = devices(&[1]).remove(0);
    let outputs = products(&mut device, x, weights, Int8PerGroup, 0);
    let mut worst = 0.0f64;
    for (token, x) in x.chunks_exact(k).enumerate() {
        for row in 0..n {
            let (exact, bound) = exact_and_bound(x, weights, row);
            let error = (f64::from(outputs[token * (n + 1) + row]) - exact).abs();
            assert!(error <= bound, "token {token}, row {row}: {error:e} exceeds the bound {bound:e}");
            worst = worst.max(error / bound.max(f64::MIN_POSITIVE));
        }
    }
    worst
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn error_of_activations_in_groups_is_within_its_bound(k in 1usize..900, m in 1usize..4, seed: u64, group in 0usize..3, spread in -20i32..20) {
        let mut noise = Noise(seed);
        let k = if group == 2 { k.next_multiple_of(128) } else { k };
        let scales = scales(5, k, [None, Some(k), Some(128)][group], &mut noise);
        let weights = TernaryMatrix::from_trits(5, k, &noise.trits(5 * k), scales).expect("valid");
        // Outliers, as trained models have them: one value in sixteen is up to a million times as large.
        let mut x = noise.floats(m * k);
        x.iter_mut().step_by(16).for_each(|value| *value *= 2f32.powi(spread));
        worst_share(&x, &weights);
    }
}

#[test]
fn error_of_the_worst_activations_attains_its_bound() {
    let (n, k) = (4, 1024);
    let mut noise = Noise(31);
    for pattern in [Pattern::Random, Pattern::AllPlus, Pattern::AllMinus, Pattern::Alternating] {
        let trits = pattern.trits(1, k, &mut noise).repeat(n);
        let group = Scales::Group { group_size: 128, scales: vec![0.5; n * k / 128] };
        let weights = TernaryMatrix::from_trits(n, k, &trits, group).expect("valid");
        // Each group has a 127, so that its scale is 1; all others lie a hair's breadth short of 1/2, go to 0, and err in one direction.
        let x: Vec<f32> =
            trits[..k].iter().enumerate().map(|(i, &trit)| if i % 128 == 0 { 127.0 } else { 0.4999 * f32::from(trit) }).collect();
        let share = worst_share(&x, &weights);
        assert!((0.97..=1.0).contains(&share), "{pattern:?}: the worst error is {share} of its bound");
    }
}

#[test]
fn error_of_random_activations_is_far_below_its_bound() {
    let (n, k) = (64, 4096);
    let mut noise = Noise(37);
    let weights = TernaryMatrix::from_trits(n, k, &noise.trits(n * k), scales(n, k, Some(128), &mut noise)).expect("valid");
    let share = worst_share(&noise.floats(4 * k), &weights);
    println!("the largest error of {} random outputs of {k} columns is {:.1}% of its bound", 4 * n, 100.0 * share);
    assert!(share < 0.1);
}
