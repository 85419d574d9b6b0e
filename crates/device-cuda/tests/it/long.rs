//! Attention on the tensor cores over several splits: a sequence's logits have the same bits however its prompt was cut and whoever is beside it,
//! and are close to the reference's.

use bitnet_checkpoint::ModelConfig;
use bitnet_checkpoint::config::{Activation, ActivationPolicy, Architecture, Rope, RopeScaling};
use bitnet_model::batch::{Batch, BatchSequence, BlockId, Rows};
use bitnet_model::device::{Device, KvType};
use bitnet_model::limits::BLOCK_TOKENS;
use bitnet_model::random::RandomWeights;
use bitnet_model::reference::ReferenceDevice;
use bitnet_model::{Runner, RunnerOptions, TokenId, TransformerRunner};

use crate::gpu::device;

const N_TOKENS: usize = 700;
/// So many that a block takes all splits of its token.
const N_NEIGHBOURS: usize = 150;

pub(crate) fn config(head_dim: usize, activation_policy: ActivationPolicy) -> ModelConfig {
    let in_groups = activation_policy == ActivationPolicy::Int8PerGroup;
    ModelConfig {
        architecture: if in_groups { Architecture::Qwen3 } else { Architecture::Bitnet },
        hidden_size: 512,
        intermediate_size: 1024,
        n_layers: 2,
        n_heads: 8,
        n_kv_heads: 2,
        head_dim,
        n_vocab: 97,
        context_length: 1024,
        rms_norm_eps: 1e-5,
        rope: Rope { theta: 10_000.0, scaling: RopeScaling::None },
        activation: if in_groups { Activation::Silu } else { Activation::Relu2 },
        sub_norms: !in_groups,
        qk_norm: in_groups,
        projection_norms: false,
        projection_norm_eps: 1e-5,
        tied_head: true,
        activation_policy,
        last_token_pooling: false,
    }
}

fn load<D: Device>(device: D, config: ModelConfig) -> TransformerRunner<D> {
    let options = RunnerOptions { n_tokens_max: 1024, n_cached_tokens: 16_384, kv_type: KvType::F16 };
    let weights = match config.activation_policy {
        ActivationPolicy::Int8PerGroup => RandomWeights::grouped(config, 9, 128),
        _ => RandomWeights::new(config, 9),
    };
    TransformerRunner::load(device, &weights, options, &mut |_| {}).expect("a random model loads")
}

fn token(position: usize) -> TokenId {
    TokenId(((position * 31 + position * position) % 97) as u32)
}

fn sequence(first_position: usize, n_tokens: usize, first_block: usize) -> BatchSequence {
    let n_blocks = (first_position + n_tokens).div_ceil(BLOCK_TOKENS);
    let block_table = (0..n_blocks).map(|block| BlockId((first_block + block) as u32)).collect();
    BatchSequence { n_tokens, first_position, block_table, rows: Rows::All }
}

/// Logits of the last token: the prompt in chunks, then `n_alone` tokens one by one, the last beside `n_neighbours` others.
fn last_logits<D: Device>(runner: &mut TransformerRunner<D>, chunk: usize, n_alone: usize, n_neighbours: usize) -> Vec<f32> {
    let mut position = 0;
    while position < N_TOKENS - 1 {
        let n_tokens = if position >= N_TOKENS - n_alone { 1 } else { chunk.min(N_TOKENS - n_alone.max(1) - position) };
        let token_ids = (position..position + n_tokens).map(token).collect();
        runner.step(&Batch { token_ids, sequences: vec![sequence(position, n_tokens, 0)] }).expect("the batch is valid");
        position += n_tokens;
    }
    let beside = (0..n_neighbours).map(|neighbour| sequence(0, 1, 64 + neighbour));
    let sequences: Vec<_> = std::iter::once(sequence(position, 1, 0)).chain(beside).collect();
    let token_ids = std::iter::once(token(position)).chain((0..n_neighbours).map(token)).collect();
    runner.step(&Batch { token_ids, sequences }).expect("the batch is valid").values[..97].to_vec()
}

/// Tokens alone are computed by one kernel for all layers from the second on (step.cu), prompts by a kernel for each operation.
fn check(config: &ModelConfig) {
    let Some(device) = device() else { return };
    let reference = last_logits(&mut load(ReferenceDevice, config.clone()), N_TOKENS, 1, 0);
    let mut runner = load(device, config.clone());
    let expected = last_logits(&mut runner, N_TOKENS, 1, 0);
    let largest = reference.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    assert!(reference.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= 0.05 * largest), "{reference:?} {expected:?}");
    for (chunk, n_alone, n_neighbours) in [(37, 1, 0), (256, 1, N_NEIGHBOURS), (300, 450, 3), (1, N_TOKENS, 0)] {
        let got = last_logits(&mut runner, chunk, n_alone, n_neighbours);
        let is_same = expected.iter().zip(&got).all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(is_same, "chunks of {chunk}, {n_alone} alone, {n_neighbours} neighbours: {expected:?} {got:?}");
    }
}

#[test]
fn long_sequences_with_heads_of_64_do_not_depend_on_chunks_and_company() {
    check(&config(64, ActivationPolicy::Int8PerToken));
}

#[test]
fn long_sequences_with_heads_of_128_do_not_depend_on_chunks_and_company() {
    check(&config(128, ActivationPolicy::Int8PerToken));
}

#[test]
fn long_sequences_with_groups_of_activations_do_not_depend_on_chunks_and_company() {
    check(&config(64, ActivationPolicy::Int8PerGroup));
}

/// More splits of heads than attention has blocks of its own for: it works beside products.
#[test]
fn long_sequences_with_many_heads_do_not_depend_on_chunks_and_company() {
    check(&ModelConfig { n_heads: 16, n_kv_heads: 8, ..config(64, ActivationPolicy::Int8PerToken) });
}
