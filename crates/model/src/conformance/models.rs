//! Whole random models of every kind of architecture: the same logits, bit for bit, on every device, however a prompt is cut
//! into chunks and whoever else is in the batch.

use bitnet_checkpoint::ModelConfig;
use bitnet_checkpoint::config::{Activation, ActivationPolicy, Architecture, Rope, RopeScaling};

use super::{assert_same, assert_within};
use crate::batch::{Batch, BatchSequence, BlockId, Rows};
use crate::device::{Device, KvType};
use crate::limits::BLOCK_TOKENS;
use crate::random::RandomWeights;
use crate::reference::ReferenceDevice;
use crate::runner::{Runner, RunnerOptions, TransformerRunner};
use crate::token::TokenId;

const OPTIONS: RunnerOptions = RunnerOptions { n_tokens_max: 64, n_cached_tokens: 512, kv_type: KvType::F16 };
const N_TOKENS: usize = 41;

/// Runs whole models on devices made by `make` and compares every output row with the reference.
pub fn check_models<D: Device>(make: impl FnMut() -> D) {
    check_models_within(make, 0.0);
}

/// The same for a device whose attention has an order of its own: logits may differ from the reference's by `tolerance` of the largest, but not a
/// bit between chunks and companies.
pub fn check_models_within<D: Device>(mut make: impl FnMut() -> D, tolerance: f32) {
    for (what, weights) in models() {
        let prompt = token_ids(N_TOKENS, 1);
        let reference = run_alone(&mut load(ReferenceDevice, &weights), &prompt, N_TOKENS);
        let mut runner = load(make(), &weights);
        let expected = run_alone(&mut runner, &prompt, N_TOKENS);
        assert_within(&format!("{what} in chunks of {N_TOKENS}"), &reference, &expected, tolerance);
        for chunk in [1, 7, 16] {
            let got = run_alone(&mut runner, &prompt, chunk);
            assert_same(&format!("{what} in chunks of {chunk}"), &expected, &got);
        }
        let got = run_among_neighbours(&mut runner, &prompt);
        assert_same(&format!("{what} among neighbours"), &expected, &got);
    }
}

/// One model of each kind of architecture.
fn models() -> Vec<(&'static str, RandomWeights)> {
    let llama = ModelConfig { architecture: Architecture::Llama, tied_head: false, activation: Activation::Silu, ..base() };
    let bitnet = ModelConfig { sub_norms: true, activation: Activation::Relu2, ..base() };
    let qwen3 = ModelConfig {
        architecture: Architecture::Qwen3,
        qk_norm: true,
        head_dim: 64,
        activation_policy: ActivationPolicy::Unquantised,
        rope: Rope {
            theta: 1_000_000.0,
            scaling: RopeScaling::Yarn { factor: 4.0, original_context: 64, beta_fast: 32.0, beta_slow: 1.0, attention_factor: 1.1 },
        },
        ..base()
    };
    let in_groups = ModelConfig { activation_policy: ActivationPolicy::Int8PerGroup, ..qwen3.clone() };
    let embedding = ModelConfig {
        architecture: Architecture::Qwen3,
        qk_norm: true,
        projection_norms: true,
        projection_norm_eps: 1e-2,
        last_token_pooling: true,
        ..base()
    };
    vec![
        ("bitnet", RandomWeights::new(bitnet, 1)),
        ("llama", RandomWeights::new(llama, 2)),
        ("qwen3 in groups of 128", RandomWeights::grouped(qwen3, 3, 128)),
        ("qwen3 with activations in groups", RandomWeights::grouped(in_groups, 3, 128)),
        ("int8 in groups of 64", RandomWeights::grouped(base(), 4, 64)),
        ("embedding", RandomWeights::new(embedding, 5)),
    ]
}

fn base() -> ModelConfig {
    ModelConfig {
        architecture: Architecture::Bitnet,
        hidden_size: 128,
        intermediate_size: 320,
        n_layers: 2,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 32,
        n_vocab: 97,
        context_length: 256,
        rms_norm_eps: 1e-5,
        rope: Rope { theta: 10_000.0, scaling: RopeScaling::None },
        activation: Activation::Silu,
        sub_norms: false,
        qk_norm: false,
        projection_norms: false,
        projection_norm_eps: 1e-5,
        tied_head: true,
        activation_policy: ActivationPolicy::Int8PerToken,
        last_token_pooling: false,
    }
}

fn load<D: Device>(device: D, weights: &RandomWeights) -> TransformerRunner<D> {
    TransformerRunner::load(device, weights, OPTIONS, &mut |_| {}).expect("a random model loads")
}

fn token_ids(n: usize, seed: usize) -> Vec<TokenId> {
    (0..n).map(|index| TokenId(((index * 31 + seed * 17 + index * index) % 97) as u32)).collect()
}

fn sequence(first_position: usize, n_tokens: usize, first_block: u32) -> BatchSequence {
    let n_blocks = (first_position + n_tokens).div_ceil(BLOCK_TOKENS) as u32;
    let block_table = (0..n_blocks).map(|block| BlockId(first_block + block)).collect();
    BatchSequence { n_tokens, first_position, block_table, rows: Rows::All }
}

/// Every output row of `prompt`, run alone in chunks.
fn run_alone<D: Device>(runner: &mut TransformerRunner<D>, prompt: &[TokenId], chunk: usize) -> Vec<f32> {
    let mut rows = Vec::new();
    let mut position = 0;
    for tokens in prompt.chunks(chunk) {
        let batch = Batch { token_ids: tokens.to_vec(), sequences: vec![sequence(position, tokens.len(), 0)] };
        rows.extend_from_slice(&runner.step(&batch).expect("the batch is valid").values);
        position += tokens.len();
    }
    rows
}

/// The same with two other sequences in each step, one before and one behind, of other lengths.
fn run_among_neighbours<D: Device>(runner: &mut TransformerRunner<D>, prompt: &[TokenId]) -> Vec<f32> {
    let width = if runner.config().last_token_pooling { runner.config().hidden_size } else { runner.config().n_vocab };
    let mut rows = Vec::new();
    for (step, tokens) in prompt.chunks(9).enumerate() {
        let (before, behind) = (token_ids(3, 5 + step), token_ids(1, 9 + step));
        let batch = Batch {
            token_ids: [&before, tokens, &behind].concat(),
            sequences: vec![sequence(step * 3, 3, 20), sequence(step * 9, tokens.len(), 10), sequence(step, 1, 4)],
        };
        let output = runner.step(&batch).expect("the batch is valid");
        rows.extend_from_slice(&output.values[3 * width..(3 + tokens.len()) * width]);
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reference_gives_the_same_logits_in_any_chunks_and_company() {
        check_models(|| ReferenceDevice);
    }
}
