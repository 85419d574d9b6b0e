//! `embed`, `logits` and `argmax` against the reference.

use std::sync::Arc;

use bitnet_checkpoint::{DenseTensor, DenseType, StoredTable, Tensor};
use bitnet_model::TokenId;
use bitnet_model::batch::BestLogits;
use bitnet_model::device::{Device, TableUse};
use bitnet_ternary::TernaryMatrix;
use half::{bf16, f16};

use crate::support::{Elsewhere, Noise, assert_bits, assert_equal_on_all, devices, reference, scales, upload};

/// Logits of `x` against `table`, then the embedding of its last and first row.
fn head<D: Device>(device: &mut D, table: &Tensor, x: &[f32]) -> Vec<f32> {
    let shape = table.shape();
    stored_head(device, table.clone().into(), (shape[0], shape[1]), x)
}

fn stored_head<D: Device>(device: &mut D, table: StoredTable, (n, k): (usize, usize), x: &[f32]) -> Vec<f32> {
    let mut table = device.table(table, TableUse::Head).expect("memory");
    let x = upload(device, x, k);
    let m = device.finish(&x).expect("finish").len() / k;
    let mut logits = device.hidden(m, n).expect("memory");
    device.logits(&x, &mut table, &vec![None; m], &mut logits).expect("logits");
    let mut best = Vec::new();
    device.argmax(&logits, &mut best).expect("argmax");
    let mut embedded = device.hidden(2, k).expect("memory");
    device.embed(&table, &[TokenId(n as u32 - 1), TokenId(0)], &mut embedded).expect("embed");
    let mut all = device.finish(&logits).expect("finish").to_vec();
    all.extend_from_slice(device.finish(&embedded).expect("finish"));
    all.extend(best.into_iter().map(|token_id| token_id.0 as f32));
    all
}

fn dense(n: usize, k: usize, dtype: DenseType, values: &[f32]) -> Tensor {
    let bytes = match dtype {
        DenseType::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        DenseType::F16 => values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect(),
        DenseType::Bf16 => values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect(),
    };
    Tensor::Dense(DenseTensor::from_bytes(vec![n, k], dtype, bytes).expect("shape"))
}

#[test]
fn logits_of_dense_tables_equal_reference() {
    let mut devices = devices(&[1, 2, 3, 4]);
    let mut noise = Noise(11);
    for dtype in [DenseType::F32, DenseType::F16, DenseType::Bf16] {
        for k in [1, 15, 16, 17, 31, 48, 100, 128, 520, 1040] {
            for m in [1, 2, 3, 5, 33] {
                let n = 3 + (k + m) % 9;
                let table = dense(n, k, dtype, &noise.floats(n * k));
                let x = noise.floats(m * k);
                assert_equal_on_all!(devices, |device: &mut _| head(device, &table, &x), "{dtype:?} {n}x{k} m {m}");
            }
        }
    }
}

#[test]
fn logits_of_tables_that_are_not_in_memory_equal_reference() {
    let mut devices = devices(&[1, 3]);
    let mut noise = Noise(14);
    // Rows of which a block holds many, some, and fewer than a tile.
    for (dtype, n, k) in [(DenseType::Bf16, 2000, 140), (DenseType::F16, 150, 1040), (DenseType::F32, 23, 20_000)] {
        for m in [1, 3] {
            let table = dense(n, k, dtype, &noise.floats(n * k));
            let x = noise.floats(m * k);
            let mut reference = reference();
            let expected = head(&mut reference, &table, &x);
            let best = BestLogits { n: n / 20, within: 0.0 };
            for device in &mut devices {
                let description = device.describe();
                let stored = || {
                    let Tensor::Dense(dense) = table.clone() else { panic!("dense") };
                    StoredTable::Dense(Arc::new(Elsewhere(dense)))
                };
                assert_bits(&stored_head(device, stored(), (n, k), &x), &expected, &format!("{description:?}: {dtype:?} {n}x{k} m {m}"));
                let resident = best_logits(device, table.clone().into(), (n, k), &x, best);
                let read = best_logits(device, stored(), (n, k), &x, best);
                assert_bits(&read, &resident, &format!("{description:?}: best of {dtype:?} {n}x{k} m {m}"));
            }
        }
    }
}

fn best_logits<D: Device>(device: &mut D, table: StoredTable, (n, k): (usize, usize), x: &[f32], best: BestLogits) -> Vec<f32> {
    let mut table = device.table(table, TableUse::Head).expect("memory");
    let x = upload(device, x, k);
    let m = device.finish(&x).expect("finish").len() / k;
    let mut logits = device.hidden(m, n).expect("memory");
    device.logits(&x, &mut table, &vec![Some(best); m], &mut logits).expect("logits");
    device.finish(&logits).expect("finish").to_vec()
}

#[test]
fn every_half_value_converts_as_in_the_reference() {
    let mut devices = devices(&[1, 2]);
    for dtype in [DenseType::F16, DenseType::Bf16] {
        let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let table = Tensor::Dense(DenseTensor::from_bytes(vec![4096, 16], dtype, bytes).expect("shape"));
        for column in 0..16 {
            let mut x = [0.0; 16];
            x[column] = 1.0;
            for m in [1, 4] {
                let x = x.repeat(m);
                assert_equal_on_all!(devices, |device: &mut _| head(device, &table, &x), "{dtype:?} column {column}");
            }
        }
    }
}

#[test]
fn logits_of_ternary_tables_equal_reference() {
    let mut devices = devices(&[1, 3]);
    let mut noise = Noise(12);
    for (n, k, group) in [(9, 100, None), (7, 256, Some(128)), (130, 64, Some(64)), (5, 33, Some(11)), (12, 1408, Some(1408))] {
        for m in [1, 2, 5] {
            let matrix = TernaryMatrix::from_trits(n, k, &noise.trits(n * k), scales(n, k, group, &mut noise)).expect("valid");
            let (table, x) = (Tensor::Ternary(matrix), noise.floats(m * k));
            assert_equal_on_all!(devices, |device: &mut _| head(device, &table, &x), "{n}x{k} group {group:?} m {m}");
        }
    }
}

#[test]
fn argmax_takes_the_lowest_of_equals_and_passes_over_nan() {
    let rows = [
        vec![1.0, 3.0, 3.0, 2.0, 3.0],
        vec![f32::NAN, -1.0, f32::NAN, -1.0, -2.0],
        vec![f32::NEG_INFINITY; 5],
        vec![f32::NAN; 5],
        vec![-0.0, 0.0, -0.0, 0.0, -1.0],
        vec![f32::INFINITY, 1.0, f32::INFINITY, f32::NAN, 0.0],
    ];
    let mut noise = Noise(13);
    let long: Vec<Vec<f32>> = (0..40).map(|i| (0..5 + i * 7).map(|_| (noise.next() % 9) as f32).collect()).collect();
    for row in rows.iter().chain(&long) {
        let expected = best(&mut reference(), row);
        for device in &mut devices(&[1]) {
            assert_eq!(best(device, row), expected, "{:?} {row:?}", device.describe());
        }
    }
}

fn best<D: Device>(device: &mut D, row: &[f32]) -> Vec<TokenId> {
    let logits = upload(device, row, row.len());
    let mut best = Vec::new();
    device.argmax(&logits, &mut best).expect("argmax");
    best
}
