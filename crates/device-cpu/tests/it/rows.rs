//! Norms, gate and final norm against the reference.

use bitnet_checkpoint::config::Activation;
use bitnet_checkpoint::config::ActivationPolicy::{self, Int8PerToken};
use bitnet_model::device::{Device, Norm};
use bitnet_ternary::{Scales, TernaryMatrix};

use crate::support::{Noise, assert_equal_on_all, devices, upload};

/// Norms, quantises and reads back through an identity matrix.
fn normed<D: Device>(device: &mut D, x: &[f32], norms: &[Vec<f32>], policy: ActivationPolicy) -> Vec<f32> {
    let width = norms[0].len();
    let m = x.len() / width;
    let identity: Vec<i8> = (0..width * width).map(|i| i8::from(i / width == i % width)).collect();
    let identity = TernaryMatrix::from_trits(width, width, &identity, Scales::Tensor(1.0)).expect("valid");
    let identity = device.linear(&identity, policy).expect("memory");
    let norms = norms.iter().zip([1e-5, 0.3]);
    let norms: Vec<_> = norms.map(|(norm, epsilon)| Norm { weight: device.vector(norm).expect("memory"), epsilon }).collect();
    let hidden = upload(device, x, width);
    let mut activations = device.activations(m, width + 3, policy).expect("memory");
    let mut out = device.hidden(m, width).expect("memory");
    device.norm_quantize(&hidden, &norms, &mut activations).expect("norm_quantize");
    device.bit_linear(&activations, &identity, &mut out, 0).expect("bit_linear");
    let mut all = device.finish(&out).expect("finish").to_vec();
    let rows: Vec<usize> = (0..m).rev().collect();
    device.final_norm(&hidden, &norms[0], &rows, &mut out).expect("final_norm");
    all.extend_from_slice(device.finish(&out).expect("finish"));
    all
}

#[test]
fn norms_equal_reference() {
    let mut devices = devices(&[1, 2, 4]);
    let mut noise = Noise(21);
    for width in [1, 7, 16, 31, 100, 128, 255, 320] {
        for (m, n_norms) in [(1, 1), (1, 2), (3, 1), (3, 2), (8, 1), (8, 2)] {
            let x: Vec<f32> = noise.floats(m * width).into_iter().map(|value| value * 30.0).collect();
            let norms: Vec<Vec<f32>> = (0..n_norms).map(|_| noise.floats(width)).collect();
            for policy in ActivationPolicy::ALL {
                assert_equal_on_all!(devices, |device: &mut _| normed(device, &x, &norms, policy), "width {width} m {m} {policy:?}");
            }
        }
    }
}

#[test]
fn activations_reused_for_a_narrower_width_are_padded_anew() {
    fn wide_then_narrow<D: Device>(device: &mut D) -> Vec<f32> {
        let mut noise = Noise(22);
        let mut activations = device.activations(2, 300, Int8PerToken).expect("memory");
        let mut all = Vec::new();
        for width in [300, 130, 3, 257] {
            let ones = TernaryMatrix::from_trits(3, width, &vec![1; 3 * width], Scales::Tensor(1.0)).expect("valid");
            let ones = device.linear(&ones, Int8PerToken).expect("memory");
            let hidden = upload(device, &noise.floats(2 * width), width);
            let mut out = device.hidden(2, 3).expect("memory");
            device.norm_quantize(&hidden, &[], &mut activations).expect("norm_quantize");
            device.bit_linear(&activations, &ones, &mut out, 0).expect("bit_linear");
            all.extend_from_slice(device.finish(&out).expect("finish"));
        }
        all
    }
    let mut devices = devices(&[1, 2]);
    assert_equal_on_all!(devices, wide_then_narrow, "narrowing");
}

#[test]
fn gate_equals_reference() {
    fn gated<D: Device>(device: &mut D, x: &[f32], width: usize, activation: Activation) -> Vec<f32> {
        let gate_up = upload(device, x, 2 * width);
        let mut out = device.hidden(x.len() / (2 * width), width).expect("memory");
        device.gate(&gate_up, activation, &mut out).expect("gate");
        device.finish(&out).expect("finish").to_vec()
    }
    let mut devices = devices(&[1, 3]);
    let mut noise = Noise(23);
    for width in [1, 5, 8, 33, 1000] {
        for m in [1, 2, 7] {
            let mut x: Vec<f32> = noise.floats(m * 2 * width).into_iter().map(|value| value * 120.0).collect();
            let special = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, 1e-40];
            x.iter_mut().step_by(37).zip(special).for_each(|(value, special)| *value = special);
            for activation in [Activation::Silu, Activation::Relu2] {
                assert_equal_on_all!(devices, |device: &mut _| gated(device, &x, width, activation), "width {width} m {m} {activation:?}");
            }
        }
    }
}

#[test]
#[should_panic(expected = "3 rows in room for 2")]
fn rows_over_the_capacity_are_a_bug_that_panics() {
    let mut device = devices(&[1]).remove(0);
    let hidden = upload(&mut device, &[0.0; 3], 1);
    let mut activations = device.activations(3, 1, Int8PerToken).expect("memory");
    device.norm_quantize(&hidden, &[], &mut activations).expect("norm_quantize");
    let one = TernaryMatrix::from_trits(1, 1, &[1], Scales::Tensor(1.0)).expect("valid");
    let one = device.linear(&one, Int8PerToken).expect("memory");
    let mut out = device.hidden(2, 1).expect("memory");
    let _ = device.bit_linear(&activations, &one, &mut out, 0);
}
