//! After warm-up an operation allocates nothing, in any thread. A test binary of its own, because it counts through the
//! global allocator and other tests would count too.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use bitnet_checkpoint::Checkpoint;
use bitnet_checkpoint::config::{Activation, ActivationPolicy, Rope, RopeScaling};
use bitnet_device_cpu::{CpuDevice, CpuOptions};
use bitnet_model::TokenId;
use bitnet_model::batch::{Batch, BatchSequence, BestLogits, BlockId, Rows, Step};
use bitnet_model::device::{Device, Heads, KvLayout, KvType, Norm, TableUse};
use bitnet_model::rope::RopeTable;
use bitnet_ternary::{Scales, TernaryMatrix};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps GlobalAlloc's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps GlobalAlloc's contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const HEADS: (usize, usize, usize) = (8, 2, 32);
const WIDTH: usize = 256;
const HIDDEN: usize = 300;
const VOCABULARY: usize = 512;
/// A model whose head is of this width and vocabulary.
const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/tiny-llama-bitlinear");

/// Everything one layer and the head need.
struct Fixture {
    device: CpuDevice,
    table: <CpuDevice as Device>::Table,
    norm: [Norm<<CpuDevice as Device>::Vector>; 1],
    qkv_weights: <CpuDevice as Device>::Linear,
    up_weights: <CpuDevice as Device>::Linear,
    down_weights: <CpuDevice as Device>::Linear,
    rows: [<CpuDevice as Device>::Hidden; 6],
    activations: <CpuDevice as Device>::Activations,
    cache: <CpuDevice as Device>::KvCache,
}

fn weights(n: usize, k: usize, group_size: usize) -> TernaryMatrix {
    let trits: Vec<i8> = (0..n * k).map(|i| (i * 7 % 3) as i8 - 1).collect();
    let scales = Scales::Group { group_size, scales: vec![0.5; n * (k / group_size)] };
    TernaryMatrix::from_trits(n, k, &trits, scales).expect("valid").with_coarsest_scales()
}

impl Fixture {
    fn new(policy: ActivationPolicy, resident_table_bytes_max: usize) -> Self {
        let options = CpuOptions { n_threads: Some(3), resident_table_bytes_max, ..CpuOptions::default() };
        let mut device = CpuDevice::new(options).expect("a device");
        let checkpoint = Checkpoint::open(Path::new(MODEL)).expect("the model opens");
        let table = checkpoint.table("lm_head.weight").expect("a head");
        let layout = KvLayout { n_layers: 1, n_kv_heads: HEADS.1, head_dim: HEADS.2, n_blocks: 4, kv_type: KvType::F16 };
        let hidden = |device: &mut CpuDevice, width| device.hidden(8, width).expect("memory");
        Self {
            table: device.table(table, TableUse::Head).expect("memory"),
            norm: [Norm { weight: device.vector(&[1.0; WIDTH]).expect("memory"), epsilon: 1e-5 }],
            qkv_weights: device.linear(&weights((HEADS.0 + 2 * HEADS.1) * HEADS.2, WIDTH, 32), policy).expect("memory"),
            up_weights: device.linear(&weights(2 * HIDDEN, WIDTH, WIDTH), policy).expect("memory"),
            down_weights: device.linear(&weights(WIDTH, HIDDEN, 50), policy).expect("memory"),
            rows: [WIDTH, (HEADS.0 + 2 * HEADS.1) * HEADS.2, WIDTH, 2 * HIDDEN, HIDDEN, VOCABULARY].map(|width| hidden(&mut device, width)),
            activations: device.activations(8, HIDDEN, policy).expect("memory"),
            cache: device.kv_cache(layout).expect("memory"),
            device,
        }
    }

    fn step(&mut self, step: &Step, best: &mut Vec<TokenId>) {
        let Self { device, rows: [x, qkv, attended, gate_up, gated, logits], activations, cache, .. } = self;
        let heads = Heads { n_heads: HEADS.0, n_kv_heads: HEADS.1, head_dim: HEADS.2, qk_norms: None, epsilon: 1e-5 };
        let ran = device
            .embed(&self.table, &step.token_ids, x)
            .and_then(|()| device.norm_quantize(x, &self.norm, activations))
            .and_then(|()| device.bit_linear(activations, &self.qkv_weights, qkv, 0))
            .and_then(|()| device.rope_append(qkv, &heads, step, (cache, 0)))
            .and_then(|()| device.attention(qkv, &heads, step, (cache, 0), attended))
            .and_then(|()| device.norm_quantize(attended, &self.norm, activations))
            .and_then(|()| device.bit_linear(activations, &self.up_weights, gate_up, 0))
            .and_then(|()| device.gate(gate_up, Activation::Silu, gated))
            .and_then(|()| device.norm_quantize(gated, &[], activations))
            .and_then(|()| device.bit_linear_add(activations, &self.down_weights, x))
            .and_then(|()| device.final_norm(x, &self.norm[0], &[0], attended))
            .and_then(|()| device.logits(attended, &mut self.table, &[None], logits))
            .and_then(|()| device.logits(attended, &mut self.table, &[Some(BestLogits { n: 3, within: 0.5 })], logits))
            .and_then(|()| device.argmax(logits, best));
        assert_eq!(ran, Ok(()));
    }
}

#[test]
fn step_after_warm_up_allocates_nothing() {
    let rope = RopeTable::new(&Rope { theta: 10_000.0, scaling: RopeScaling::None }, HEADS.2);
    // Heads in memory, and one on file.
    for (policy, resident_table_bytes_max) in ActivationPolicy::ALL.into_iter().zip([usize::MAX, usize::MAX, 0]) {
        let mut fixture = Fixture::new(policy, resident_table_bytes_max);
        let mut best = Vec::with_capacity(8);
        for n_tokens in [8, 1, 3] {
            let steps = [0, 20].map(|first_position| {
                let sequence = BatchSequence { n_tokens, first_position, block_table: vec![BlockId(1), BlockId(0)], rows: Rows::All };
                let mut step = Step::default();
                step.fill(&Batch { token_ids: vec![TokenId(5); n_tokens], sequences: vec![sequence] }, &rope);
                step
            });
            fixture.step(&steps[0], &mut best);
            let before = ALLOCATIONS.load(Ordering::Relaxed);
            fixture.step(&steps[1], &mut best);
            assert_eq!(ALLOCATIONS.load(Ordering::Relaxed) - before, 0, "{policy:?}, {n_tokens} tokens");
        }
    }
}
