//! `norm_quantize`, `bit_linear` and `bit_linear_add` against the reference.

use bitnet_checkpoint::config::ActivationPolicy::{self, Int8PerGroup, Int8PerToken};
use bitnet_ternary::TernaryMatrix;
use proptest::prelude::*;

use crate::support::{Noise, PATTERNS, Pattern, assert_equal_on_all, devices, products, scales};

#[test]
fn linear_with_every_pattern_equals_reference() {
    let mut devices = devices(&[1, 2]);
    let mut noise = Noise(1);
    for k in [2048, 2049, 2176, 4096, 6912] {
        for weight_pattern in PATTERNS {
            let trits = weight_pattern.trits(5, k, &mut noise);
            let weights = TernaryMatrix::from_trits(5, k, &trits, scales(5, k, None, &mut noise)).expect("valid");
            let patterns = PATTERNS.map(|pattern| pattern.activations(1, k, &mut noise));
            for (x, label) in [(patterns[1].clone(), "all +127"), (patterns[2].clone(), "all -127"), (patterns.concat(), "all patterns")] {
                assert_equal_on_all!(
                    devices,
                    |device: &mut _| [Int8PerToken, Int8PerGroup].map(|policy| products(device, &x, &weights, policy, 1)).concat(),
                    "k {k} {weight_pattern:?} {label}"
                );
            }
        }
    }
}

#[test]
fn linear_of_every_width_equals_reference() {
    let mut devices = devices(&[1, 3]);
    let mut noise = Noise(2);
    let widths = (1..=40).chain([63, 64, 65, 96, 127, 128, 129, 130, 160, 191, 255, 256, 257, 300, 511, 513, 2560]);
    for k in widths {
        let n = 1 + k % 11;
        let trits = noise.trits(n * k);
        let group = [None, Some(k)][k % 2];
        let weights = TernaryMatrix::from_trits(n, k, &trits, scales(n, k, group, &mut noise)).expect("valid");
        let x = noise.floats((1 + k % 4) * k);
        for policy in ActivationPolicy::ALL {
            assert_equal_on_all!(devices, |device: &mut _| products(device, &x, &weights, policy, k % 3), "{n}x{k} {policy:?}");
        }
    }
}

#[test]
fn linear_of_every_number_of_tokens_equals_reference() {
    let mut devices = devices(&[1, 2, 3, 4]);
    let mut noise = Noise(3);
    for m in [1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 31, 33, 130, 550] {
        for (n, k) in [(29, 257), (8, 2304), (75, 384), (37, 1280)] {
            let weights = TernaryMatrix::from_trits(n, k, &noise.trits(n * k), scales(n, k, None, &mut noise)).expect("valid");
            let x = noise.floats(m * k);
            for policy in ActivationPolicy::ALL {
                assert_equal_on_all!(devices, |device: &mut _| products(device, &x, &weights, policy, 0), "m {m} {n}x{k} {policy:?}");
            }
        }
    }
}

#[test]
fn linear_with_every_group_size_equals_reference() {
    let mut devices = devices(&[1, 2]);
    let mut noise = Noise(4);
    let shapes =
        [(32, 96), (32, 640), (64, 192), (96, 288), (128, 128), (128, 2560), (256, 768), (4096, 8192), (48, 96), (5, 65), (1, 7), (17, 51)];
    for (group_size, k) in shapes {
        for (m, pattern) in [1, 2, 5].into_iter().flat_map(|m| [(m, Pattern::Random), (m, Pattern::AllPlus)]) {
            let trits = pattern.trits(6, k, &mut noise);
            let weights = TernaryMatrix::from_trits(6, k, &trits, scales(6, k, Some(group_size), &mut noise)).expect("valid");
            let x = pattern.activations(m, k, &mut noise);
            for policy in ActivationPolicy::ALL {
                assert_equal_on_all!(
                    devices,
                    |device: &mut _| products(device, &x, &weights, policy, 2),
                    "group {group_size} k {k} m {m} {pattern:?} {policy:?}"
                );
            }
        }
    }
}

#[test]
fn linear_with_zero_and_extreme_activations_equals_reference() {
    let mut devices = devices(&[2]);
    let k = 256;
    let mut noise = Noise(5);
    let weights = TernaryMatrix::from_trits(7, k, &noise.trits(7 * k), scales(7, k, Some(128), &mut noise)).expect("valid");
    for value in [0.0, -0.0, 1e-30, 1e30, f32::MAX, f32::MIN_POSITIVE, f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
        let mut x = noise.floats(3 * k);
        x[k..2 * k].fill(value);
        x[2 * k + 77] = value;
        for policy in ActivationPolicy::ALL {
            assert_equal_on_all!(devices, |device: &mut _| products(device, &x, &weights, policy, 0), "value {value} {policy:?}");
        }
    }
}

#[test]
fn quantisation_ties_round_to_even_as_in_the_reference() {
    let mut devices = devices(&[1]);
    // The largest value is 127, so halves stay halves.
    let x: Vec<f32> = (0..254).map(|i| i as f32 * 0.5 - 63.5).chain([127.0, -126.5]).collect();
    let identity: Vec<i8> = (0..256 * 256).map(|i| i8::from(i / 256 == i % 256)).collect();
    let weights = TernaryMatrix::from_trits(256, 256, &identity, bitnet_ternary::Scales::Tensor(1.0)).expect("valid");
    assert_equal_on_all!(devices, |device: &mut _| products(device, &x, &weights, Int8PerToken, 0), "ties");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn linear_of_any_shape_equals_reference(n in 1usize..40, k in 1usize..400, m in 1usize..10, seed: u64, grouping in 0usize..4, policy in 0usize..3) {
        let mut devices = devices(&[1, 2, 4]);
        let mut noise = Noise(seed);
        let divisors: Vec<usize> = (1..=k).filter(|size| k % size == 0).collect();
        let group = if grouping == 0 { None } else { Some(divisors[noise.next() as usize % divisors.len()]) };
        let weights = TernaryMatrix::from_trits(n, k, &noise.trits(n * k), scales(n, k, group, &mut noise)).expect("valid");
        let x = noise.floats(m * k);
        let policy = ActivationPolicy::ALL[policy];
        assert_equal_on_all!(devices, |device: &mut _| products(device, &x, &weights, policy, m % 3), "{n}x{k} m {m} group {group:?} {policy:?}");
    }
}
