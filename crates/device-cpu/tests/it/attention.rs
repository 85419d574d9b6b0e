//! `rope_append` and `attention` over the paged cache against the reference.

use bitnet_checkpoint::config::{Rope, RopeScaling};
use bitnet_model::TokenId;
use bitnet_model::batch::{Batch, BatchSequence, BlockId, Rows, Step};
use bitnet_model::device::{Device, Heads, KvLayout, KvType};
use bitnet_model::rope::RopeTable;

use crate::support::{Noise, assert_equal_on_all, devices, upload};

const N_BLOCKS: usize = 16;
const N_LAYERS: usize = 2;

#[derive(Debug, Clone, Copy)]
struct Shape {
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    qk_norm: bool,
}

/// Steps of (sequence index, tokens): sequences grow from step to step, in blocks that are scattered over the cache.
fn steps(plan: &[&[(usize, usize)]], head_dim: usize) -> Vec<Step> {
    let rope = RopeTable::new(&Rope { theta: 10_000.0, scaling: RopeScaling::None }, head_dim);
    let mut lengths = [0usize; 3];
    let to_step = |parts: &&[(usize, usize)]| {
        let sequences: Vec<BatchSequence> = parts
            .iter()
            .map(|&(sequence, n_tokens)| {
                let first_position = lengths[sequence];
                lengths[sequence] += n_tokens;
                let block_table = (0..5).map(|block| BlockId(((block * 3 + sequence) * 7 % N_BLOCKS) as u32)).collect();
                BatchSequence { n_tokens, first_position, block_table, rows: Rows::Last }
            })
            .collect();
        let n_tokens = sequences.iter().map(|sequence| sequence.n_tokens).sum();
        let mut step = Step::default();
        step.fill(&Batch { token_ids: vec![TokenId(0); n_tokens], sequences }, &rope);
        step
    };
    plan.iter().map(to_step).collect()
}

/// Rotated rows and attention outputs of every step in both layers.
fn attended<D: Device>(device: &mut D, (shape, kv_type): (Shape, KvType), steps: &[Step]) -> Vec<f32> {
    let Shape { n_heads, n_kv_heads, head_dim, qk_norm } = shape;
    let mut noise = Noise(31);
    let layout = KvLayout { n_layers: N_LAYERS, n_kv_heads, head_dim, n_blocks: N_BLOCKS, kv_type };
    let mut cache = device.kv_cache(layout).expect("memory");
    let norms = [noise.floats(head_dim), noise.floats(head_dim)].map(|norm| device.vector(&norm).expect("memory"));
    let qk_norms = qk_norm.then_some((&norms[0], &norms[1]));
    let heads = Heads { n_heads, n_kv_heads, head_dim, qk_norms, epsilon: 1e-6 };
    let width = (n_heads + 2 * n_kv_heads) * head_dim;
    let mut all = Vec::new();
    for step in steps {
        for layer in 0..N_LAYERS {
            let rows: Vec<f32> = noise.floats(step.n_tokens() * width).into_iter().map(|value| value * 3.0).collect();
            let mut qkv = upload(device, &rows, width);
            let mut out = device.hidden(step.n_tokens(), n_heads * head_dim).expect("memory");
            device.rope_append(&mut qkv, &heads, step, (&mut cache, layer)).expect("rope_append");
            device.attention(&qkv, &heads, step, (&cache, layer), &mut out).expect("attention");
            all.extend_from_slice(device.finish(&qkv).expect("finish"));
            all.extend_from_slice(device.finish(&out).expect("finish"));
        }
    }
    all
}

#[test]
fn attention_of_every_shape_equals_reference() {
    let mut devices = devices(&[1, 2, 3, 4]);
    let shape = |n_heads, n_kv_heads, head_dim, qk_norm| Shape { n_heads, n_kv_heads, head_dim, qk_norm };
    let shapes = [
        shape(20, 5, 128, false),
        shape(4, 4, 64, true),
        shape(6, 2, 16, false),
        shape(3, 1, 6, true),
        shape(5, 5, 100, true),
        shape(8, 1, 96, false),
        shape(2, 2, 2, false),
    ];
    let plan: [&[(usize, usize)]; 8] = [
        &[(0, 1)],
        &[(0, 1)],
        &[(1, 17)],
        &[(0, 15), (1, 1)],
        &[(2, 31), (0, 2), (1, 5)],
        &[(2, 2)],
        &[(2, 30), (0, 14)],
        &[(0, 1), (1, 1), (2, 1)],
    ];
    for shape in shapes {
        let steps = steps(&plan, shape.head_dim);
        for kv_type in [KvType::F32, KvType::F16] {
            assert_equal_on_all!(devices, |device: &mut _| attended(device, (shape, kv_type), &steps), "{shape:?} {kv_type:?}");
        }
    }
}

#[test]
fn attention_does_not_depend_on_how_a_prompt_is_split() {
    let shape = Shape { n_heads: 4, n_kv_heads: 2, head_dim: 32, qk_norm: true };
    let mut devices = devices(&[2]);
    for plan in [&[&[(0, 40)][..]][..], &[&[(0, 13)], &[(0, 20)], &[(0, 7)]], &[&[(0, 39)], &[(0, 1)]]] {
        let steps = steps(plan, shape.head_dim);
        assert_equal_on_all!(devices, |device: &mut _| attended(device, (shape, KvType::F16), &steps), "{plan:?}");
    }
}
