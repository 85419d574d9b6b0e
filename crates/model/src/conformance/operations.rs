//! Each operation over shapes with odd tails, extreme values, mixed batches and shuffled cache blocks.

use bitnet_checkpoint::config::{Activation, ActivationPolicy, Rope, RopeScaling};
use bitnet_checkpoint::{DenseTensor, DenseType, Tensor};
use bitnet_ternary::{Scales, TernaryMatrix};
use half::{bf16, f16};

use super::{assert_same, assert_within};
use crate::batch::{Batch, BatchSequence, BestLogits, BlockId, Rows, Step};
use crate::device::{Device, DeviceError, Heads, KvLayout, KvType, Norm, TableUse};
use crate::limits::BLOCK_TOKENS;
use crate::reference::ReferenceDevice;
use crate::rope::RopeTable;
use crate::token::TokenId;

/// Runs every operation's cases on devices made by `make`.
pub fn check_operations<D: Device>(mut make: impl FnMut() -> D) {
    check_linear(&mut make());
    check_norm_quantize(&mut make());
    check_attention(&mut make());
    check_gate(&mut make());
    check_outputs(&mut make());
    check_best_logits(&mut make());
}

/// A linear layer's case.
#[derive(Debug, Clone, Copy)]
struct LinearCase {
    m: usize,
    n: usize,
    k: usize,
    /// 0: one scale a tensor; 1: one a row; otherwise the group size.
    group_size: usize,
    policy: ActivationPolicy,
    extreme: bool,
}

/// `bit_linear` and `bit_linear_add`, through `norm_quantize` without norms.
pub fn check_linear<D: Device>(device: &mut D) {
    for policy in ActivationPolicy::ALL {
        for (n, k) in [(1, 1), (3, 5), (4, 127), (7, 128), (5, 129), (9, 300), (6, 2560), (5, 6912)] {
            for m in [1, 2, 3, 4, 5, 8, 33] {
                let case = |group_size, extreme| LinearCase { m, n, k, group_size, policy, extreme };
                [case(0, true), case(0, false), case(1, false)].into_iter().for_each(|case| check_linear_case(device, case));
            }
        }
        for group_size in [32, 64, 96, 128, 256] {
            let case = |m| LinearCase { m, n: 6, k: 768, group_size, policy, extreme: m == 3 };
            [case(1), case(3), case(9)].into_iter().for_each(|case| check_linear_case(device, case));
        }
    }
}

fn check_linear_case<D: Device>(device: &mut D, case: LinearCase) {
    let LinearCase { m, n, k, .. } = case;
    let weights = case_weights(case);
    let input = if case.extreme { vec![127.0; m * k] } else { random_values(m * k, 3) };
    let residual = random_values(m * (n + 3), 5);
    let expected = linear_outputs(&mut ReferenceDevice, case, &weights, (&input, &residual));
    let got = linear_outputs(device, case, &weights, (&input, &residual));
    assert_same(&format!("bit_linear {case:?}"), &expected.0, &got.0);
    assert_same(&format!("bit_linear_add {case:?}"), &expected.1, &got.1);
}

fn case_weights(case: LinearCase) -> TernaryMatrix {
    let LinearCase { n, k, group_size, extreme, .. } = case;
    let trits: Vec<i8> = if extreme {
        (0..n * k).map(|index| if (index / k) % 2 == 0 { 1 } else { -1 }).collect()
    } else {
        random_values(n * k, 7).iter().map(|value| (value * 1.5).round() as i8).collect()
    };
    // Devices may keep scales that are halves as halves.
    let scale = |index: usize| if extreme { 0.25 + index as f32 } else { 0.01 + index as f32 * 0.003 };
    let scales = match group_size {
        0 => Scales::Tensor(0.037),
        1 => Scales::Row((0..n).map(scale).collect()),
        _ => Scales::Group { group_size, scales: (0..n * (k / group_size)).map(scale).collect() },
    };
    TernaryMatrix::from_trits(n, k, &trits, scales).expect("the case is well formed")
}

/// Output of `bit_linear` at column 2 of a row of n + 3 (columns outside must stay), and of `bit_linear_add`.
fn linear_outputs<D: Device>(
    device: &mut D,
    case: LinearCase,
    weights: &TernaryMatrix,
    (input, residual): (&[f32], &[f32]),
) -> (Vec<f32>, Vec<f32>) {
    let LinearCase { m, n, k, policy, .. } = case;
    let run = |device: &mut D| {
        let x = filled(device, input, k)?;
        let mut activations = device.activations(m, k, policy)?;
        device.norm_quantize(&x, &[], &mut activations)?;
        let linear = device.linear(weights, policy)?;
        let mut out = filled(device, residual, n + 3)?;
        device.bit_linear(&activations, &linear, &mut out, 2)?;
        let mut sum = filled(device, &residual[..m * n], n)?;
        device.bit_linear_add(&activations, &linear, &mut sum)?;
        Ok::<_, crate::device::DeviceError>((device.finish(&out)?.to_vec(), device.finish(&sum)?.to_vec()))
    };
    run(device).expect("the case fits the device")
}

/// ε of a first and of a second norm. They differ, and so much that using one for the other shows in int8.
const EPSILONS: [f32; 2] = [1e-6, 0.5];

/// Norms and quantisation seen through an identity matrix.
pub fn check_norm_quantize<D: Device>(device: &mut D) {
    for policy in ActivationPolicy::ALL {
        for k in [1, 16, 17, 100, 256, 300] {
            for (what, input) in [
                ("random", random_values(3 * k, 11)),
                ("zeros", vec![0.0; 3 * k]),
                ("ties", (0..3 * k).map(|index| index as f32 + 0.5).collect()),
                ("tiny", random_values(3 * k, 12).iter().map(|value| value * 1e-30).collect()),
                ("huge", random_values(3 * k, 13).iter().map(|value| value * 1e15).collect()),
            ] {
                (0..3).for_each(|n_norms| check_norm_quantize_case(device, policy, (&input, k), (n_norms, what)));
            }
        }
    }
}

fn check_norm_quantize_case<D: Device>(device: &mut D, policy: ActivationPolicy, input: (&[f32], usize), (n_norms, what): (usize, &str)) {
    let expected = quantized_through_identity(&mut ReferenceDevice, policy, input, n_norms);
    let got = quantized_through_identity(device, policy, input, n_norms);
    assert_same(&format!("norm_quantize {policy:?} k {} norms {n_norms} {what}", input.1), &expected, &got);
}

fn quantized_through_identity<D: Device>(
    device: &mut D,
    policy: ActivationPolicy,
    (input, k): (&[f32], usize),
    n_norms: usize,
) -> Vec<f32> {
    let trits: Vec<i8> = (0..k * k).map(|index| i8::from(index / k == index % k)).collect();
    let identity = TernaryMatrix::from_trits(k, k, &trits, Scales::Tensor(1.0)).expect("an identity is ternary");
    let run = |device: &mut D| {
        let x = filled(device, input, k)?;
        let norm = |index| Ok(Norm { weight: device.vector(&random_values(k, 20 + index as u64))?, epsilon: EPSILONS[index] });
        let norms = (0..n_norms).map(norm).collect::<Result<Vec<_>, _>>()?;
        let mut activations = device.activations(3, k, policy)?;
        device.norm_quantize(&x, &norms, &mut activations)?;
        let linear = device.linear(&identity, policy)?;
        let mut out = device.hidden(3, k)?;
        device.bit_linear(&activations, &linear, &mut out, 0)?;
        Ok::<_, crate::device::DeviceError>(device.finish(&out)?.to_vec())
    };
    run(device).expect("the case fits the device")
}

/// Sequences of a batch: (first position, tokens).
type Lengths = &'static [(usize, usize)];

/// `rope_append` and `attention`.
pub fn check_attention<D: Device>(device: &mut D) {
    check_attention_within(device, 0.0);
}

/// The same for a device whose attention over a cache of halves has an order of its own: it may be wrong there by `tolerance` of the largest
/// value.
pub fn check_attention_within<D: Device>(device: &mut D, tolerance: f32) {
    let batches: [Lengths; 4] = [&[(0, 1)], &[(0, 37)], &[(5, 1), (40, 1), (0, 1)], &[(0, 5), (31, 3), (15, 2), (64, 1)]];
    for (n_heads, n_kv_heads, head_dim) in [(1, 1, 2), (4, 2, 64), (5, 1, 128), (6, 3, 100), (3, 3, 20)] {
        for (qk_norm, kv_type) in [(false, KvType::F32), (true, KvType::F32), (false, KvType::F16), (false, KvType::Int8)] {
            let shape = AttentionShape { n_heads, n_kv_heads, head_dim, qk_norm, kv_type };
            let layout = KvLayout { n_layers: 1, n_kv_heads, head_dim, n_blocks: 1, kv_type };
            if kv_type == KvType::Int8 && matches!(device.kv_cache(layout), Err(DeviceError::Unsupported { .. })) {
                continue;
            }
            batches.iter().for_each(|lengths| check_attention_case(device, shape, lengths, tolerance));
        }
    }
}

fn check_attention_case<D: Device>(device: &mut D, shape: AttentionShape, lengths: Lengths, tolerance: f32) {
    let expected = attention_outputs(&mut ReferenceDevice, shape, lengths);
    let got = attention_outputs(device, shape, lengths);
    for (what, (expected, got)) in ["rope_append", "attention"].iter().zip(expected.iter().zip(&got)) {
        let tolerance = if *what == "attention" && shape.kv_type == KvType::F16 { tolerance } else { 0.0 };
        assert_within(&format!("{what} {shape:?} {lengths:?}"), expected, got, tolerance);
    }
}

#[derive(Debug, Clone, Copy)]
struct AttentionShape {
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    qk_norm: bool,
    kv_type: KvType,
}

/// Fills each sequence's past in an earlier step, then runs the batch: rows after `rope_append`, and of another run, in which nobody looks at those, after
/// `attention`, in layer 1 of 2.
fn attention_outputs<D: Device>(device: &mut D, shape: AttentionShape, lengths: Lengths) -> [Vec<f32>; 2] {
    let AttentionShape { n_heads, n_kv_heads, head_dim, qk_norm, kv_type } = shape;
    let width = (n_heads + 2 * n_kv_heads) * head_dim;
    let rope = RopeTable::new(&ROPE, head_dim);
    let past = attention_batch(lengths, true);
    let present = attention_batch(lengths, false);
    let run = |device: &mut D, is_rope_alone: bool| {
        let layout = KvLayout { n_layers: 2, n_kv_heads, head_dim, n_blocks: N_BLOCKS, kv_type };
        let mut cache = device.kv_cache(layout)?;
        let norms = [device.vector(&random_values(head_dim, 31))?, device.vector(&random_values(head_dim, 32))?];
        let qk_norms = qk_norm.then_some((&norms[0], &norms[1]));
        let heads = Heads { n_heads, n_kv_heads, head_dim, qk_norms, epsilon: 1e-6 };
        let mut step = Step::default();
        for batch in [&past, &present] {
            if batch.token_ids.is_empty() {
                continue;
            }
            step.fill(batch, &rope);
            let mut qkv = filled(device, &random_values(step.n_tokens() * width, 30 + step.n_tokens() as u64), width)?;
            device.rope_append(&mut qkv, &heads, &step, (&mut cache, 1))?;
            if is_rope_alone && std::ptr::eq(batch, &present) {
                return Ok(device.finish(&qkv)?.to_vec());
            }
            let mut out = device.hidden(step.n_tokens(), n_heads * head_dim)?;
            device.attention(&qkv, &heads, &step, (&cache, 1), &mut out)?;
            if std::ptr::eq(batch, &present) {
                return Ok(device.finish(&out)?.to_vec());
            }
        }
        Ok::<_, crate::device::DeviceError>(Default::default())
    };
    [true, false].map(|is_rope_alone| run(device, is_rope_alone).expect("the case fits the device"))
}

const N_BLOCKS: usize = 32;
pub(crate) const ROPE: Rope = Rope { theta: 10_000.0, scaling: RopeScaling::None };

/// The batch of `lengths`, or of everything before it; blocks dealt out in a scattered order.
fn attention_batch(lengths: Lengths, past: bool) -> Batch {
    let mut batch = Batch::default();
    let mut next_block = 0;
    for &(first_position, n_tokens) in lengths {
        let n_blocks = (first_position + n_tokens).div_ceil(BLOCK_TOKENS);
        let block_table = (next_block..next_block + n_blocks).map(|block| BlockId((block * 13 % N_BLOCKS) as u32)).collect();
        next_block += n_blocks;
        let (first_position, n_tokens) = if past { (0, first_position) } else { (first_position, n_tokens) };
        if n_tokens > 0 {
            batch.token_ids.extend(std::iter::repeat_n(TokenId(0), n_tokens));
            batch.sequences.push(BatchSequence { n_tokens, first_position, block_table, rows: Rows::None });
        }
    }
    assert!(next_block <= N_BLOCKS, "the case fits its cache");
    batch
}

/// `gate`.
pub fn check_gate<D: Device>(device: &mut D) {
    for width in [1, 16, 33, 640] {
        for activation in [Activation::Silu, Activation::Relu2] {
            let mut input = random_values(3 * 2 * width, 41).iter().map(|value| value * 30.0).collect::<Vec<_>>();
            input[0] = -200.0;
            let expected = gate_output(&mut ReferenceDevice, activation, (&input, width));
            let got = gate_output(device, activation, (&input, width));
            assert_same(&format!("gate {activation:?} width {width}"), &expected, &got);
        }
    }
}

fn gate_output<D: Device>(device: &mut D, activation: Activation, (input, width): (&[f32], usize)) -> Vec<f32> {
    let run = |device: &mut D| {
        let gate_up = filled(device, input, 2 * width)?;
        let mut out = device.hidden(3, width)?;
        device.gate(&gate_up, activation, &mut out)?;
        Ok::<_, crate::device::DeviceError>(device.finish(&out)?.to_vec())
    };
    run(device).expect("the case fits the device")
}

/// `final_norm`, `logits`, `argmax` and `embed` over every kind of table.
pub fn check_outputs<D: Device>(device: &mut D) {
    for (n_vocab, k) in [(1, 1), (5, 33), (17, 128), (67, 256), (9, 2560)] {
        for (what, head) in head_tables(n_vocab, k) {
            for rows in [&[0usize][..], &[4, 1, 2], &[0, 1, 2, 3, 4]] {
                let expected = head_outputs(&mut ReferenceDevice, &head, k, rows);
                let got = head_outputs(device, &head, k, rows);
                assert_same(&format!("final_norm {what} [{n_vocab}, {k}] rows {rows:?}"), &expected.0, &got.0);
                assert_same(&format!("logits {what} [{n_vocab}, {k}] rows {rows:?}"), &expected.1, &got.1);
                assert_eq!(expected.2, got.2, "argmax {what} [{n_vocab}, {k}] rows {rows:?}");
                assert_same(&format!("embed {what} [{n_vocab}, {k}]"), &expected.3, &got.3);
            }
        }
    }
}

/// Logits of which only the best are wanted: those are the reference's, and each other is the reference's or −∞.
pub fn check_best_logits<D: Device>(device: &mut D) {
    for (n_vocab, k) in [(67, 256), (301, 33), (1000, 128), (515, 2560)] {
        let wanted = [(1, 0.0), (4, 0.0), (1, 0.7), (n_vocab / 16, 0.0), (n_vocab, 0.0)];
        for (what, head) in head_tables(n_vocab, k) {
            for best in wanted.map(|(n, within)| BestLogits { n, within }) {
                let expected = best_logits(&mut ReferenceDevice, &head, (k, N_BEST_TOKENS), best);
                check_best_of(device, &format!("best logits {what} [{n_vocab}, {k}]"), (&head, k), (&expected, best));
            }
        }
    }
}

/// For few tokens and for more than a device may take together.
fn check_best_of<D: Device>(device: &mut D, what: &str, (head, k): (&Tensor, usize), (expected, best): (&[f32], BestLogits)) {
    let n_vocab = head.shape()[0];
    for n_tokens in [3, N_BEST_TOKENS] {
        let got = best_logits(device, head, (k, n_tokens), best);
        let rows = expected.chunks_exact(n_vocab).zip(got.chunks_exact(n_vocab));
        rows.for_each(|(expected, got)| assert_best(&format!("{what} of {n_tokens} {best:?}"), expected, got, best));
    }
}

fn assert_best(what: &str, expected: &[f32], got: &[f32], wanted: BestLogits) {
    let mut sorted = expected.to_vec();
    sorted.sort_unstable_by(|a, b| b.total_cmp(a));
    let least = sorted[wanted.n - 1].min(sorted[0] - wanted.within);
    for (row, (expected, got)) in expected.iter().zip(got).enumerate() {
        let is_left_out = *got == f32::NEG_INFINITY && *expected < least;
        assert!(is_left_out || got.to_bits() == expected.to_bits(), "{what}: row {row} is {got:e}, the reference has {expected:e}");
    }
}

/// Most tokens whose best logits are asked for at once.
const N_BEST_TOKENS: usize = 11;

fn best_logits<D: Device>(device: &mut D, head: &Tensor, (k, n_tokens): (usize, usize), best: BestLogits) -> Vec<f32> {
    let run = |device: &mut D| {
        let x = filled(device, &random_values(n_tokens * k, 63), k)?;
        let mut table = device.table(head.clone().into(), TableUse::Head)?;
        let mut logits = device.hidden(n_tokens, head.shape()[0])?;
        device.logits(&x, &mut table, &vec![Some(best); n_tokens], &mut logits)?;
        Ok::<_, crate::device::DeviceError>(device.finish(&logits)?.to_vec())
    };
    run(device).expect("the case fits the device")
}

fn head_tables(n_vocab: usize, k: usize) -> Vec<(&'static str, Tensor)> {
    // Rows repeat, so that argmax meets ties.
    let values: Vec<f32> = (0..n_vocab).flat_map(|row| random_values(k, 50 + (row % 7) as u64)).collect();
    let dense = |dtype, bytes| Tensor::Dense(DenseTensor::from_bytes(vec![n_vocab, k], dtype, bytes).expect("whole rows"));
    let trits: Vec<i8> = values.iter().map(|value| (value * 1.5).round() as i8).collect();
    let group_size = if k.is_multiple_of(128) { 128 } else { k };
    let scales = (0..n_vocab * (k / group_size)).map(|index| 0.02 + (index % 3) as f32 * 0.01).collect();
    let ternary = TernaryMatrix::from_trits(n_vocab, k, &trits, Scales::Group { group_size, scales }).expect("well formed");
    vec![
        ("f32", dense(DenseType::F32, values.iter().flat_map(|value| value.to_le_bytes()).collect())),
        ("f16", dense(DenseType::F16, values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect())),
        ("bf16", dense(DenseType::Bf16, values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect())),
        ("ternary", Tensor::Ternary(ternary)),
    ]
}

type HeadOutputs = (Vec<f32>, Vec<f32>, Vec<TokenId>, Vec<f32>);

fn head_outputs<D: Device>(device: &mut D, head: &Tensor, k: usize, rows: &[usize]) -> HeadOutputs {
    let n_vocab = head.shape()[0];
    let run = |device: &mut D| {
        let x = filled(device, &random_values(5 * k, 61), k)?;
        let norm = Norm { weight: device.vector(&random_values(k, 62))?, epsilon: 1e-5 };
        let mut table = device.table(head.clone().into(), TableUse::Head)?;
        let mut normed = device.hidden(5, k)?;
        device.final_norm(&x, &norm, rows, &mut normed)?;
        let mut logits = device.hidden(5, n_vocab)?;
        device.logits(&normed, &mut table, &vec![None; rows.len()], &mut logits)?;
        let mut greedy = Vec::new();
        device.argmax(&logits, &mut greedy)?;
        let mut embedded = device.hidden(5, k)?;
        device.embed(&table, &[TokenId(n_vocab as u32 - 1), TokenId(0)], &mut embedded)?;
        let (normed, logits) = (device.finish(&normed)?.to_vec(), device.finish(&logits)?.to_vec());
        Ok::<_, crate::device::DeviceError>((normed, logits, greedy, device.finish(&embedded)?.to_vec()))
    };
    run(device).expect("the case fits the device")
}

/// Device rows holding `values`: an f32 table, embedded row by row.
fn filled<D: Device>(device: &mut D, values: &[f32], width: usize) -> Result<D::Hidden, crate::device::DeviceError> {
    let n_rows = values.len() / width;
    let table = DenseTensor::from_f32(vec![n_rows, width], &values[..n_rows * width]).expect("whole rows");
    let table = device.table(Tensor::Dense(table).into(), TableUse::Embedding)?;
    let mut hidden = device.hidden(n_rows, width)?;
    let token_ids: Vec<TokenId> = (0..n_rows as u32).map(TokenId).collect();
    device.embed(&table, &token_ids, &mut hidden)?;
    Ok(hidden)
}

/// Values in (−1, 1), the same for the same seed.
fn random_values(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..n)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reference_conforms_to_itself() {
        check_operations(|| ReferenceDevice);
    }
}
