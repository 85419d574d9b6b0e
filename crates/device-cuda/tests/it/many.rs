//! Products of many tokens, with and without a gate behind, and the best of many rows of logits equal the reference bit for bit: shapes beyond the
//! model crate's suite, where the GPU chooses among its kernels by the number of tokens.

use bitnet_checkpoint::config::{Activation, ActivationPolicy};
use bitnet_checkpoint::{DenseTensor, DenseType, Tensor};
use bitnet_model::TokenId;
use bitnet_model::batch::BestLogits;
use bitnet_model::device::{Device, DeviceError, TableUse};
use bitnet_model::reference::ReferenceDevice;
use bitnet_ternary::{Scales, TernaryMatrix};

use crate::gpu::device;

/// Values in (−1, 1), the same for the same seed.
fn random_values(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn hidden<D: Device>(device: &mut D, values: &[f32], width: usize) -> Result<D::Hidden, DeviceError> {
    let n_rows = values.len() / width;
    let table = DenseTensor::from_f32(vec![n_rows, width], values).expect("whole rows");
    let table = device.table(Tensor::Dense(table).into(), TableUse::Embedding)?;
    let mut hidden = device.hidden(n_rows, width)?;
    let token_ids: Vec<TokenId> = (0..n_rows as u32).map(TokenId).collect();
    device.embed(&table, &token_ids, &mut hidden)?;
    Ok(hidden)
}

fn weights(n: usize, k: usize, group_size: usize) -> TernaryMatrix {
    let trits: Vec<i8> = random_values(n * k, 7).iter().map(|value| (value * 1.5).round() as i8).collect();
    let scale = |index: usize| 0.01 + (index % 91) as f32 * 0.003;
    let scales = match group_size {
        0 => Scales::Tensor(0.037),
        1 => Scales::Row((0..n).map(scale).collect()),
        _ => Scales::Group { group_size, scales: (0..n * (k / group_size)).map(scale).collect() },
    };
    TernaryMatrix::from_trits(n, k, &trits, scales).expect("well formed")
}

/// The product, the product added to what was there, and the product behind a gate.
fn outputs<D: Device>(device: &mut D, [m, n, k]: [usize; 3], group_size: usize, policy: ActivationPolicy) -> [Vec<f32>; 3] {
    let run = |device: &mut D| {
        let x = hidden(device, &random_values(m * k, 3), k)?;
        let linear = device.linear(&weights(n, k, group_size), policy)?;
        let mut activations = device.activations(m, k, policy)?;
        device.norm_quantize(&x, &[], &mut activations)?;
        let mut product = device.hidden(m, n + 3)?;
        device.bit_linear(&activations, &linear, &mut product, 2)?;
        let mut sum = hidden(device, &random_values(m * n, 5), n)?;
        device.bit_linear_add(&activations, &linear, &mut sum)?;
        let (mut gate_up, mut gated) = (device.hidden(m, n)?, device.hidden(m, n / 2)?);
        device.bit_linear(&activations, &linear, &mut gate_up, 0)?;
        device.gate(&gate_up, Activation::Relu2, &mut gated)?;
        Ok::<_, DeviceError>([device.finish(&product)?.to_vec(), device.finish(&sum)?.to_vec(), device.finish(&gated)?.to_vec()])
    };
    run(device).expect("the case fits the device")
}

fn check(policy: ActivationPolicy, group_sizes: &[usize], shapes: &[[usize; 3]]) {
    let Some(mut device) = device() else { return };
    for &shape in shapes {
        for &group_size in group_sizes.iter().filter(|&&size| size < 2 || shape[2].is_multiple_of(size)) {
            let expected = outputs(&mut ReferenceDevice, shape, group_size, policy);
            let got = outputs(&mut device, shape, group_size, policy);
            for (what, (expected, got)) in ["product", "sum", "gated"].iter().zip(expected.iter().zip(&got)) {
                let differs = expected.iter().zip(got).position(|(a, b)| a.to_bits() != b.to_bits());
                let pair = differs.map(|index| (index, expected[index], got[index]));
                assert_eq!((expected.len(), pair), (got.len(), None), "{what} {shape:?} group {group_size} {policy:?}");
            }
        }
    }
}

const SHAPES: [[usize; 3]; 6] = [[17, 200, 600], [33, 700, 2560], [64, 130, 512], [100, 520, 3000], [129, 256, 256], [300, 644, 768]];

#[test]
fn products_of_many_int8_tokens_equal_the_reference() {
    check(ActivationPolicy::Int8PerToken, &[0, 1, 64], &SHAPES);
}

#[test]
fn products_of_many_tokens_in_groups_equal_the_reference() {
    check(ActivationPolicy::Int8PerGroup, &[0, 1, 64, 128, 256], &SHAPES);
}

/// More tiles of results than a GPU has multiprocessors; the last rows do not fill theirs.
#[test]
fn products_of_more_tokens_than_the_gpu_takes_at_once_equal_the_reference() {
    check(ActivationPolicy::Int8PerToken, &[0, 1], &[[900, 3100, 768]]);
}

/// A head whose rows repeat, so that the best is met several times, in f32 and bfloat16.
fn heads(n: usize, k: usize) -> [DenseTensor; 2] {
    let values: Vec<f32> = (0..n).flat_map(|row| random_values(k, 50 + (row % 301) as u64)).collect();
    let bfloats = values.iter().flat_map(|value| ((value.to_bits() >> 16) as u16).to_le_bytes()).collect();
    let shape = vec![n, k];
    [
        DenseTensor::from_f32(shape.clone(), &values).expect("whole rows"),
        DenseTensor::from_bytes(shape, DenseType::Bf16, bfloats).expect("whole rows"),
    ]
}

/// The best token of each of `m` rows, and the first that is no number.
fn best<D: Device>(device: &mut D, head: &DenseTensor, x: &[f32], m: usize) -> (Vec<TokenId>, Option<usize>) {
    let run = |device: &mut D| {
        let x = hidden(device, x, x.len() / m)?;
        let mut table = device.table(Tensor::Dense(head.clone()).into(), TableUse::Head)?;
        let mut logits = device.hidden(m, head.shape()[0])?;
        device.logits(&x, &mut table, &vec![Some(BestLogits::GREATEST); m], &mut logits)?;
        let mut best = Vec::new();
        let damaged = device.argmax_checked(&logits, &mut best)?;
        Ok::<_, DeviceError>((best, damaged))
    };
    run(device).expect("the case fits the device")
}

#[test]
fn best_tokens_of_many_rows_are_those_of_the_reference() {
    let Some(mut device) = device() else { return };
    for [m, n, k] in [[2, 1000, 64], [17, 1003, 320], [40, 2048, 600], [100, 777, 256], [256, 1040, 128]] {
        for head in heads(n, k) {
            let mut x = random_values(m * k, 61);
            assert_eq!(best(&mut ReferenceDevice, &head, &x, m), best(&mut device, &head, &x, m), "{m} x {n} x {k} {:?}", head.dtype());
            x[(m - 1) * k + k / 2] = f32::NAN;
            assert_eq!(best(&mut device, &head, &x, m).1, Some(m - 1), "{m} x {n} x {k} {:?}", head.dtype());
        }
    }
}

/// All logits of `m` rows of a ternary head.
fn ternary_logits<D: Device>(device: &mut D, [m, n, k]: [usize; 3], group_size: usize) -> Vec<f32> {
    let run = |device: &mut D| {
        let x = hidden(device, &random_values(m * k, 71), k)?;
        let mut head = device.table(Tensor::Ternary(weights(n, k, group_size)).into(), TableUse::Head)?;
        let mut logits = device.hidden(m, n)?;
        device.logits(&x, &mut head, &vec![None; m], &mut logits)?;
        Ok::<_, DeviceError>(device.finish(&logits)?.to_vec())
    };
    run(device).expect("the case fits the device")
}

/// The last rows do not fill a block.
#[test]
fn logits_of_a_ternary_head_equal_the_reference() {
    let Some(mut device) = device() else { return };
    for shape in [[1, 1003, 512], [1, 20_000, 256], [1, 77, 4096], [1, 130, 640], [3, 500, 768]] {
        for group_size in [0, 64, 128] {
            let (expected, got) = (ternary_logits(&mut ReferenceDevice, shape, group_size), ternary_logits(&mut device, shape, group_size));
            let differs = expected.iter().zip(&got).position(|(a, b)| a.to_bits() != b.to_bits());
            assert_eq!((expected.len(), differs), (got.len(), None), "{shape:?} group {group_size}");
        }
    }
}
