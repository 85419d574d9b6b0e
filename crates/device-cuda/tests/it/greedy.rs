//! Greedy decoding looks at no logits: the device repeats steps that it has seen and finds the best token itself. It finds the one that all logits show.

use bitnet_checkpoint::ModelConfig;
use bitnet_checkpoint::config::ActivationPolicy;
use bitnet_device_cuda::CudaDevice;
use bitnet_model::batch::{Batch, BatchSequence, BlockId, Rows};
use bitnet_model::device::KvType;
use bitnet_model::limits::BLOCK_TOKENS;
use bitnet_model::random::RandomWeights;
use bitnet_model::{Runner, RunnerOptions, TokenId, TransformerRunner};

use crate::gpu::device;
use crate::long;

/// Not a multiple of what blocks, warps and stages take of the head.
const N_VOCAB: usize = 5_003;
/// So many that block tables double a few times and a second split begins.
const N_STEPS: usize = 300;
const BLOCKS_EACH: usize = 32;
/// So many that a step is known and repeated.
const N_STEPS_OF_TURN: usize = 6;

fn config(head_dim: usize, activation_policy: ActivationPolicy) -> ModelConfig {
    ModelConfig { hidden_size: 768, intermediate_size: 1536, n_vocab: N_VOCAB, ..long::config(head_dim, activation_policy) }
}

/// The most likely next token of each sequence, whose token at `position` is in `tokens`.
fn step(runner: &mut dyn Runner, position: usize, tokens: &[TokenId], rows: Rows) -> Vec<TokenId> {
    let sequence = |index: usize| BatchSequence {
        n_tokens: 1,
        first_position: position,
        block_table: (0..=position / BLOCK_TOKENS).map(|block| BlockId((index * BLOCKS_EACH + block) as u32)).collect(),
        rows,
    };
    let batch = Batch { token_ids: tokens.to_vec(), sequences: (0..tokens.len()).map(sequence).collect() };
    runner.step(&batch).expect("the batch is valid").greedy.clone()
}

fn load(config: &ModelConfig) -> Option<TransformerRunner<CudaDevice>> {
    let options = RunnerOptions { n_tokens_max: 64, n_cached_tokens: 4 * BLOCKS_EACH * BLOCK_TOKENS, kv_type: KvType::F16 };
    let weights = match config.activation_policy {
        ActivationPolicy::Int8PerGroup => RandomWeights::grouped(config.clone(), 9, 128),
        _ => RandomWeights::new(config.clone(), 9),
    };
    device().map(|device| TransformerRunner::load(device, &weights, options, &mut |_| {}).expect("a random model loads"))
}

fn check(config: &ModelConfig, n_sequences: usize) {
    let (Some(mut greedy), Some(mut looking)) = (load(config), load(config)) else { return };
    let mut tokens: Vec<TokenId> = (1..=n_sequences as u32).map(TokenId).collect();
    for position in 0..N_STEPS {
        let expected = step(&mut looking, position, &tokens, Rows::Last);
        assert_eq!(step(&mut greedy, position, &tokens, Rows::LastGreedy), expected, "{n_sequences} sequences at {position}");
        tokens = expected;
    }
}

/// Rows of more sequences are elsewhere in memory: what was known of steps before is not repeated.
#[test]
fn greedy_tokens_after_steps_of_more_sequences_are_those_of_the_logits() {
    let (Some(mut greedy), Some(mut looking)) =
        (load(&config(64, ActivationPolicy::Int8PerToken)), load(&config(64, ActivationPolicy::Int8PerToken)))
    else {
        return;
    };
    let mut tokens = [TokenId(1), TokenId(2), TokenId(3)];
    for (turn, n_sequences) in [1, 3, 1, 3, 1].into_iter().enumerate() {
        for position in turn * N_STEPS_OF_TURN..(turn + 1) * N_STEPS_OF_TURN {
            let expected = step(&mut looking, position, &tokens[..n_sequences], Rows::Last);
            assert_eq!(
                step(&mut greedy, position, &tokens[..n_sequences], Rows::LastGreedy),
                expected,
                "{n_sequences} sequences at {position}"
            );
            tokens[..n_sequences].copy_from_slice(&expected);
        }
    }
}

#[test]
fn greedy_tokens_of_one_sequence_are_those_of_its_logits() {
    check(&config(64, ActivationPolicy::Int8PerToken), 1);
    check(&config(128, ActivationPolicy::Int8PerToken), 1);
}

#[test]
fn greedy_tokens_with_activations_in_groups_are_those_of_the_logits() {
    check(&config(128, ActivationPolicy::Int8PerGroup), 1);
}

#[test]
fn greedy_tokens_of_several_sequences_are_those_of_their_logits() {
    check(&config(64, ActivationPolicy::Int8PerToken), 3);
}
