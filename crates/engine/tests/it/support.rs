//! Models, requests and readers for the tests.

use bitnet_engine::{EngineModel, Generate, Priority, Request, SimulatedRunner, Task, TenantSalt};
use bitnet_model::TokenId;
use bitnet_model::batch::BatchLimits;
use bitnet_model::random::small_config;
use bitnet_model::sampler::SamplingParams;

/// Tokens from numbers.
pub(crate) fn ids(ids: impl IntoIterator<Item = u32>) -> Vec<TokenId> {
    ids.into_iter().map(TokenId).collect()
}

/// Limits of a runner whose blocks bind before its context does.
pub(crate) fn limits(n_blocks: usize, n_tokens_max: usize) -> BatchLimits {
    let config = small_config();
    BatchLimits { n_tokens_max, n_vocab: config.n_vocab, context_length: config.context_length, n_blocks }
}

/// A simulated model without text.
pub(crate) fn simulated(n_blocks: usize, n_tokens_max: usize) -> SimulatedRunner {
    SimulatedRunner::new(small_config(), limits(n_blocks, n_tokens_max))
}

/// A runner and nothing else.
pub(crate) fn bare(runner: SimulatedRunner) -> EngineModel {
    EngineModel { runner: Box::new(runner), draft: None, tokenizer: None, eos: Vec::new() }
}

/// A tenant.
pub(crate) fn tenant(name: u8) -> TenantSalt {
    TenantSalt([name; 32])
}

/// A request of tenant 1.
pub(crate) fn request(prompt: Vec<TokenId>, generate: Generate) -> Request {
    Request {
        prompt,
        task: Task::Generate(Box::new(generate)),
        tenant: tenant(1),
        priority: Priority::Normal,
        deadline: None,
        usage_sink: None,
    }
}

/// Greedy, this many tokens.
pub(crate) fn greedy(n_tokens_max: usize) -> Generate {
    Generate::plain(SamplingParams::greedy(), n_tokens_max)
}

/// Seeded randomness (SplitMix64).
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x2545_f491_4f6c_dd1d))
    }

    /// A number below `end`; 0 if that is 0.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)).checked_rem(end).unwrap_or(0)
    }
}

/// Planted panics say nothing; others do as before.
pub(crate) fn quiet_planted_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if panic.payload().downcast_ref::<&str>() != Some(&"planted") {
                report(panic);
            }
        }));
    });
}
