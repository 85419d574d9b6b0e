//! Negative controls of the conformance suite: devices with one known bug each, all of which it must catch. A suite that
//! passes everything is worth nothing, and these bugs have shipped in other runtimes.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bitnet_checkpoint::config::{Activation, ActivationPolicy};
use bitnet_checkpoint::{StoredTable, Tensor};
use bitnet_ternary::TernaryMatrix;

use crate::batch::{BestLogits, Step};
use crate::device::{Device, DeviceDescription, DeviceError, Heads, KvLayout, Norm, TableUse};
use crate::reference::{ReferenceActivations, ReferenceDevice, ReferenceKvCache, Rows};
use crate::token::TokenId;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Bug {
    None,
    SwappedCodes,
    SiluForRelu2,
    RopeOffByOne,
    SixteenBitOverflow,
    DroppedLastBlock,
    LostLastPosition,
    RoundHalfAway,
    OneEpsilon,
    FirstScaleForAll,
}

struct Planted {
    inner: ReferenceDevice,
    bug: Bug,
}

impl Planted {
    /// The weights as a kernel with the bug would see them.
    fn misread(&self, weights: &TernaryMatrix) -> TernaryMatrix {
        let (n, k) = (weights.n_rows(), weights.n_cols());
        let mut trits = weights.to_trits();
        match self.bug {
            Bug::SwappedCodes => trits.iter_mut().for_each(|trit| *trit = -*trit),
            Bug::DroppedLastBlock => {
                let whole = k / 128 * 128;
                trits.chunks_mut(k).for_each(|row| row[whole..].fill(0));
            }
            _ => {}
        }
        TernaryMatrix::from_trits(n, k, &trits, weights.scales().clone()).expect("still ternary")
    }

    /// What a kernel whose 16-bit lanes overflow makes of a product: the sum wraps at 2¹⁵ · 16 lanes.
    fn overflow(&self, values: &mut Rows) {
        if self.bug == Bug::SixteenBitOverflow {
            for value in values.values_mut() {
                let wrapped = (*value as i64).rem_euclid(1 << 19);
                if wrapped as f32 != *value && value.abs() > 10_000.0 {
                    *value = wrapped as f32;
                }
            }
        }
    }
}

impl Device for Planted {
    type Vector = Vec<f32>;
    type Linear = TernaryMatrix;
    type Table = Tensor;
    type Hidden = Rows;
    type Activations = ReferenceActivations;
    type KvCache = ReferenceKvCache;

    fn describe(&self) -> DeviceDescription {
        self.inner.describe()
    }

    fn vector(&mut self, values: &[f32]) -> Result<Vec<f32>, DeviceError> {
        self.inner.vector(values)
    }

    fn linear(&mut self, weights: &TernaryMatrix, policy: ActivationPolicy) -> Result<TernaryMatrix, DeviceError> {
        self.inner.linear(&self.misread(weights), policy)
    }

    fn table(&mut self, rows: StoredTable, table_use: TableUse) -> Result<Tensor, DeviceError> {
        self.inner.table(rows, table_use)
    }

    fn hidden(&mut self, n_rows_max: usize, width: usize) -> Result<Rows, DeviceError> {
        self.inner.hidden(n_rows_max, width)
    }

    fn activations(&mut self, n_rows_max: usize, width_max: usize, policy: ActivationPolicy) -> Result<ReferenceActivations, DeviceError> {
        self.inner.activations(n_rows_max, width_max, policy)
    }

    fn kv_cache(&mut self, layout: KvLayout) -> Result<ReferenceKvCache, DeviceError> {
        self.inner.kv_cache(layout)
    }

    fn embed(&mut self, table: &Tensor, token_ids: &[TokenId], x: &mut Rows) -> Result<(), DeviceError> {
        self.inner.embed(table, token_ids, x)
    }

    fn norm_quantize(&mut self, x: &Rows, norms: &[Norm<Vec<f32>>], out: &mut ReferenceActivations) -> Result<(), DeviceError> {
        let first = norms.first().filter(|_| self.bug == Bug::OneEpsilon).map(|norm| norm.epsilon);
        let seen = norms.iter().map(|norm| Norm { weight: norm.weight.clone(), epsilon: first.unwrap_or(norm.epsilon) });
        self.inner.norm_quantize(x, &seen.collect::<Vec<_>>(), out)?;
        if self.bug == Bug::RoundHalfAway {
            out.round_half_away(x);
        }
        if self.bug == Bug::FirstScaleForAll {
            out.repeat_first_scale();
        }
        Ok(())
    }

    fn bit_linear(
        &mut self,
        x: &ReferenceActivations,
        weights: &TernaryMatrix,
        out: &mut Rows,
        first_column: usize,
    ) -> Result<(), DeviceError> {
        self.inner.bit_linear(x, weights, out, first_column)?;
        self.overflow(out);
        Ok(())
    }

    fn bit_linear_add(&mut self, x: &ReferenceActivations, weights: &TernaryMatrix, residual: &mut Rows) -> Result<(), DeviceError> {
        self.inner.bit_linear_add(x, weights, residual)
    }

    fn rope_append(
        &mut self,
        qkv: &mut Rows,
        heads: &Heads<'_, Vec<f32>>,
        step: &Step,
        cache: (&mut ReferenceKvCache, usize),
    ) -> Result<(), DeviceError> {
        if self.bug != Bug::RopeOffByOne {
            return self.inner.rope_append(qkv, heads, step, cache);
        }
        let rope = crate::rope::RopeTable::new(&super::operations::ROPE, heads.head_dim);
        let mut late = step.clone();
        late.positions.iter_mut().for_each(|position| *position += 1);
        rope.fill(&late.positions, &mut late.rope);
        late.positions.clone_from(&step.positions);
        self.inner.rope_append(qkv, heads, &late, cache)
    }

    fn attention(
        &mut self,
        qkv: &Rows,
        heads: &Heads<'_, Vec<f32>>,
        step: &Step,
        cache: (&ReferenceKvCache, usize),
        out: &mut Rows,
    ) -> Result<(), DeviceError> {
        let mut seen = step.clone();
        if self.bug == Bug::LostLastPosition {
            seen.positions.iter_mut().for_each(|position| *position = position.saturating_sub(1));
        }
        self.inner.attention(qkv, heads, &seen, cache, out)
    }

    fn gate(&mut self, gate_up: &Rows, activation: Activation, out: &mut Rows) -> Result<(), DeviceError> {
        let activation = if self.bug == Bug::SiluForRelu2 { Activation::Silu } else { activation };
        self.inner.gate(gate_up, activation, out)
    }

    fn linear_bytes(&self, weights: &TernaryMatrix) -> u64 {
        self.inner.linear_bytes(weights)
    }

    fn head_bytes(&self, head: &Tensor) -> u64 {
        self.inner.head_bytes(head)
    }

    fn final_norm(&mut self, x: &Rows, norm: &Norm<Vec<f32>>, rows: &[usize], out: &mut Rows) -> Result<(), DeviceError> {
        self.inner.final_norm(x, norm, rows, out)
    }

    fn logits(&mut self, x: &Rows, head: &mut Tensor, wanted: &[Option<BestLogits>], out: &mut Rows) -> Result<(), DeviceError> {
        self.inner.logits(x, head, wanted, out)
    }

    fn argmax(&mut self, logits: &Rows, out: &mut Vec<TokenId>) -> Result<(), DeviceError> {
        self.inner.argmax(logits, out)
    }

    fn finish<'a>(&mut self, x: &'a Rows) -> Result<&'a [f32], DeviceError> {
        self.inner.finish(x)
    }
}

/// What the suite says of a device with `bug`: nothing, or the message it fails with.
fn verdict(bug: Bug) -> Result<(), String> {
    let run = || super::check_operations(|| Planted { inner: ReferenceDevice, bug });
    catch_unwind(AssertUnwindSafe(run)).map_err(|payload| payload.downcast_ref::<String>().cloned().unwrap_or_default())
}

#[test]
fn conformance_passes_a_device_without_a_bug() {
    assert_eq!(verdict(Bug::None), Ok(()));
}

#[test]
fn conformance_catches_each_planted_bug_in_its_operation() {
    for (bug, operation) in [
        (Bug::SwappedCodes, "bit_linear"),
        (Bug::SiluForRelu2, "gate Relu2"),
        (Bug::RopeOffByOne, "rope_append"),
        (Bug::SixteenBitOverflow, "bit_linear"),
        (Bug::DroppedLastBlock, "bit_linear"),
        (Bug::LostLastPosition, "attention"),
        (Bug::RoundHalfAway, "norm_quantize"),
        (Bug::OneEpsilon, "norm_quantize"),
        (Bug::FirstScaleForAll, "bit_linear"),
    ] {
        let message = verdict(bug).expect_err("the suite must fail on this device");
        assert!(message.starts_with(operation), "{bug:?} was caught by: {message}");
    }
}
