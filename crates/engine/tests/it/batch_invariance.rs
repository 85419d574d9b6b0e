//! A request's tokens and log-probabilities are the same bits alone and in company, whatever the cache held, however prompts were
//! cut, whoever was preempted, whether tokens were drafted. On a real transformer and the device that specifies all others; that
//! devices equal it is `conformance`'s to show.

use std::num::NonZeroU32;

use bitnet_checkpoint::ModelConfig;
use bitnet_engine::{
    DraftPart, EngineCore, EngineModel, EngineOptions, Event, Generate, PrefixCaching, Priority, Request, RequestId, Speculation, Task,
};
use bitnet_model::device::KvType;
use bitnet_model::random::{RandomWeights, small_config};
use bitnet_model::reference::ReferenceDevice;
use bitnet_model::sampler::SamplingParams;
use bitnet_model::{Runner, RunnerOptions, TokenId, TransformerRunner};

use crate::support::{Dice, Recorder, finish_all, tenant};

const N_REQUESTS: usize = 32;
/// Blocks that hold all requests at once, and few enough that they must take turns.
const ROOMY: usize = 32 * 8;
const TIGHT: usize = 14;

fn runner(n_blocks: usize, seed: u64) -> Box<dyn Runner> {
    let config = ModelConfig { n_layers: 1 + (seed % 2) as usize, ..small_config() };
    let options = RunnerOptions { n_tokens_max: 96, n_cached_tokens: n_blocks * 16, kv_type: KvType::F16 };
    Box::new(TransformerRunner::load(ReferenceDevice, &RandomWeights::new(config, seed), options, &mut |_| {}).expect("it loads"))
}

fn core(n_blocks: usize, options: EngineOptions) -> EngineCore {
    // A draft model with weights of its own is wrong nearly always; the same model, nearly never.
    let draft = match options.speculation {
        Speculation::DraftModel { n_drafts_max } => Some(runner(ROOMY, if n_drafts_max % 2 == 0 { 3 } else { 5 })),
        _ => None,
    };
    let model = EngineModel {
        runner: runner(n_blocks, 3),
        draft: draft.map(|runner| DraftPart { runner, tokenizer: None }),
        tokenizer: None,
        eos: vec![TokenId(0)],
    };
    EngineCore::new(model, options).expect("valid options")
}

/// Requests of all kinds; half of them share a beginning.
fn requests() -> Vec<(Vec<TokenId>, Generate)> {
    let mut dice = Dice::new(7);
    let shared: Vec<TokenId> = (0..40).map(|_| TokenId(1 + dice.below(49) as u32)).collect();
    (0..N_REQUESTS as u64)
        .map(|number| {
            let n_own = 1 + dice.below(30) as usize;
            let own = (0..n_own).map(|_| TokenId(1 + dice.below(49) as u32));
            let prompt = if number % 2 == 0 { shared.iter().copied().chain(own).collect() } else { own.collect() };
            let mut sampling = SamplingParams { seed: number, ..SamplingParams::greedy() };
            if number % 3 != 0 {
                sampling = SamplingParams { temperature: 0.8, top_p: 0.9, seed: number, ..SamplingParams::default() };
            }
            if number % 5 == 0 {
                sampling.repetition_penalty = 1.2;
                sampling.presence_penalty = 0.3;
            }
            let generate = Generate {
                logprobs: (number % 4 != 3).then_some(3),
                prompt_logprobs: (number % 8 == 1).then_some(2),
                logit_bias: if number % 7 == 0 { vec![(TokenId(5), 2.0), (TokenId(9), -100.0)] } else { Vec::new() },
                n_tokens_min: if number % 6 == 0 { 6 } else { 0 },
                n_choices: NonZeroU32::new(if number % 10 == 4 { 3 } else { 1 }).expect("not 0"),
                ..Generate::plain(sampling, 12)
            };
            (prompt, generate)
        })
        .collect()
}

fn submit(core: &mut EngineCore, number: usize, (prompt, generate): &(Vec<TokenId>, Generate)) {
    let priority = [Priority::Low, Priority::Normal, Priority::High][number % 3];
    let task = Task::Generate(Box::new(generate.clone()));
    let request = Request { prompt: prompt.clone(), task, tenant: tenant((number % 2) as u8), priority, deadline: None, usage_sink: None };
    core.submit(RequestId(number as u64), request).expect("sound");
}

/// What a request's reader sees, by choice, but for how much of the prompt was cached.
fn seen(recorder: &Recorder, number: usize) -> Vec<Event> {
    let mut events = recorder.events[&RequestId(number as u64)].clone();
    for event in &mut events {
        match event {
            Event::Started { n_cached_tokens, .. } => *n_cached_tokens = 0,
            Event::Finished(usage) => usage.n_cached_tokens = 0,
            _ => {}
        }
    }
    events.sort_by_key(|event| match event {
        Event::Token { choice, .. } | Event::ChoiceFinished { choice, .. } => 1 + choice,
        Event::Started { .. } => 0,
        _ => u32::MAX,
    });
    events
}

fn all_alone(requests: &[(Vec<TokenId>, Generate)]) -> Vec<Vec<Event>> {
    let options = EngineOptions { prefix_cache: PrefixCaching::Off, ..EngineOptions::default() };
    let mut core = core(ROOMY, options);
    let alone = |(number, request)| {
        let mut recorder = Recorder::default();
        submit(&mut core, number, request);
        finish_all(&mut core, &mut recorder);
        seen(&recorder, number)
    };
    requests.iter().enumerate().map(alone).collect()
}

#[test]
fn request_gives_the_same_bits_alone_and_in_any_company() {
    let requests = requests();
    let alone = all_alone(&requests);
    let cached = PrefixCaching::On { tenant_percent: 50 };
    let cases = [
        (ROOMY, 2, 96, PrefixCaching::Off, Speculation::Off),
        (ROOMY, 4, 7, PrefixCaching::Off, Speculation::Off),
        (ROOMY, 8, 96, cached, Speculation::Off),
        (ROOMY, 16, 19, cached, Speculation::PromptLookup { n_drafts_max: 5 }),
        (ROOMY, 32, 96, PrefixCaching::Off, Speculation::Off),
        (ROOMY, 32, 40, cached, Speculation::DraftModel { n_drafts_max: 4 }),
        (TIGHT, 32, 33, cached, Speculation::DraftModel { n_drafts_max: 3 }),
        (TIGHT, 16, 96, PrefixCaching::Off, Speculation::Off),
        (TIGHT, 8, 64, cached, Speculation::PromptLookup { n_drafts_max: 8 }),
    ];
    let [mut n_preemptions, mut n_hits, mut n_accepted, mut n_rejected] = [0; 4];
    for (n_blocks, n_running_max, n_step_tokens_max, prefix_cache, speculation) in cases {
        let options = EngineOptions { n_running_max, n_step_tokens_max, prefix_cache, speculation, ..EngineOptions::default() };
        let mut core = core(n_blocks, options);
        let mut recorder = Recorder::default();
        requests.iter().enumerate().for_each(|(number, request)| submit(&mut core, number, request));
        finish_all(&mut core, &mut recorder);
        for (number, expected) in alone.iter().enumerate() {
            assert_eq!(&seen(&recorder, number), expected, "request {number}, {n_blocks} blocks, {options:?}");
        }
        let stats = core.stats();
        assert_eq!(stats.n_used_blocks, 0);
        n_preemptions += stats.n_preemptions;
        n_hits += stats.n_prefix_hit_tokens;
        n_accepted += stats.n_accepted_tokens;
        n_rejected += stats.n_drafted_tokens - stats.n_accepted_tokens;
    }
    assert!(n_preemptions > 10 && n_hits > 500 && n_accepted > 50 && n_rejected > 50, "all of it happened");
}
