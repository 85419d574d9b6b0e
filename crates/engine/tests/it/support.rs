//! Models, requests and readers for the tests.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use bitnet_checkpoint::ModelConfig;
use bitnet_engine::{
    EngineCore, EngineModel, Event, EventSink, FinishReason, Generate, Priority, Request, RequestId, SimulatedRunner, Task, TenantSalt,
};
use bitnet_model::TokenId;
use bitnet_model::batch::BatchLimits;
use bitnet_model::random::small_config;
use bitnet_model::sampler::SamplingParams;
use bitnet_model::text::Tokenizer;

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

/// A byte-level tokenizer: one token for each byte, some pairs, and `</s>` last.
pub(crate) fn byte_tokenizer() -> Arc<Tokenizer> {
    let character = |byte: u8| byte_character(byte).to_string();
    let mut vocabulary: serde_json::Map<String, serde_json::Value> = (0..=255u8).map(|byte| (character(byte), byte.into())).collect();
    for (index, pair) in BYTE_PAIRS.iter().enumerate() {
        vocabulary.insert(pair.bytes().map(character).collect(), (256 + index).into());
    }
    let eos = 256 + BYTE_PAIRS.len();
    let byte_level = serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let file = serde_json::json!({
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
        "added_tokens": [{"id": eos, "content": "</s>", "special": true}],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
    });
    Arc::new(Tokenizer::from_json(file.to_string().as_bytes()).expect("valid"))
}

/// Tokens of more than one byte.
const BYTE_PAIRS: [&str; 6] = ["\":", "\",", "{\"", "\"}", "true", "ab"];
/// Ids of the byte tokenizer.
pub(crate) const BYTE_VOCABULARY: usize = 256 + BYTE_PAIRS.len() + 1;
/// Its last id.
pub(crate) const BYTE_EOS: TokenId = TokenId(BYTE_VOCABULARY as u32 - 1);

/// GPT-2's printable stand-in for a byte.
fn byte_character(byte: u8) -> char {
    let is_itself = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if is_itself(byte) {
        return char::from(byte);
    }
    let n_before = (0..byte).filter(|&other| !is_itself(other)).count() as u32;
    char::from_u32(256 + n_before).expect("a character")
}

/// A simulated model of the byte vocabulary, with text.
pub(crate) fn writing_model(n_blocks: usize) -> EngineModel {
    let config = ModelConfig { n_vocab: BYTE_VOCABULARY, context_length: 1024, ..small_config() };
    let limits = BatchLimits { n_tokens_max: 64, n_vocab: BYTE_VOCABULARY, context_length: 1024, n_blocks };
    let runner = Box::new(SimulatedRunner::new(config, limits));
    EngineModel { runner, draft: None, tokenizer: Some(byte_tokenizer()), eos: vec![BYTE_EOS] }
}

/// Takes everything down, by request.
#[derive(Default)]
pub(crate) struct Recorder {
    pub(crate) events: BTreeMap<RequestId, Vec<Event>>,
}

impl EventSink for Recorder {
    fn send(&mut self, id: RequestId, event: Event) {
        self.events.entry(id).or_default().push(event);
    }

    fn has_room(&self, _: RequestId) -> bool {
        true
    }
}

impl Recorder {
    /// The text of a choice, and why it ended.
    pub(crate) fn text(&self, id: RequestId, wanted: u32) -> (String, Option<FinishReason>) {
        let (mut whole, mut finish) = (String::new(), None);
        for event in self.events.get(&id).into_iter().flatten() {
            match event {
                Event::Token { choice, text, .. } if *choice == wanted => whole.push_str(text),
                Event::ChoiceFinished { choice, text, reason } if *choice == wanted => {
                    whole.push_str(text);
                    finish = Some(reason.clone());
                }
                _ => {}
            }
        }
        (whole, finish)
    }
}

/// Steps until nothing is left to do.
pub(crate) fn finish_all(core: &mut EngineCore, recorder: &mut Recorder) {
    let now = Instant::now();
    for _ in 0..100_000 {
        if core.n_live() == 0 {
            return;
        }
        core.step(now, recorder);
    }
    panic!("it does not end: {:?}", core.stats());
}
