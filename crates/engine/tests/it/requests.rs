//! Requests one by one: what is refused, what they say of themselves, how their texts end.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use bitnet_checkpoint::ModelConfig;
use bitnet_engine::{
    DraftPart, EndOfSequence, EngineCore, EngineModel, EngineOptions, Event, FinishReason, Generate, Output, PrefixCaching, Priority,
    Request, RequestError, RequestId, SimulatedRunner, Speculation, StartError, SubmitError, Task, Usage,
};
use bitnet_model::TokenId;
use bitnet_model::random::small_config;
use bitnet_model::sampler::SamplingParams;

use crate::support::{
    BYTE_EOS, Recorder, bare, byte_tokenizer, finish_all, greedy, ids, limits, request, simulated, tenant, writing_model,
};

fn core() -> EngineCore {
    EngineCore::new(bare(simulated(64, 64)), EngineOptions::default()).expect("valid options")
}

fn writing() -> EngineCore {
    EngineCore::new(writing_model(256), EngineOptions::default()).expect("valid options")
}

/// Runs one request and gives its events.
fn run(core: &mut EngineCore, id: u64, request: Request) -> Vec<Event> {
    let mut recorder = Recorder::default();
    core.submit(RequestId(id), request).expect("sound");
    finish_all(core, &mut recorder);
    recorder.events.remove(&RequestId(id)).expect("it was heard of")
}

fn n_cached(events: &[Event]) -> usize {
    match events.last() {
        Some(Event::Finished(usage)) => usage.n_cached_tokens,
        other => panic!("{other:?} at the end"),
    }
}

fn token_ids(events: &[Event]) -> Vec<TokenId> {
    events.iter().filter_map(|event| if let Event::Token { token_id, .. } = event { Some(*token_id) } else { None }).collect()
}

#[test]
fn unsound_requests_are_refused_by_name() {
    let mut core = core();
    let mut refused = |prompt: Vec<TokenId>, generate: Generate| core.submit(RequestId(1), request(prompt, generate)).expect_err("unsound");
    assert!(matches!(refused(vec![], greedy(1)), SubmitError::EmptyPrompt));
    assert!(matches!(refused(ids(0..1).repeat(129), greedy(1)), SubmitError::TooLong { got: 129, limit: 128 }));
    assert!(matches!(refused(ids([50]), greedy(1)), SubmitError::UnknownToken { token_id: TokenId(50), n_vocab: 50 }));
    let too_many = Generate { n_choices: NonZeroU32::new(129).expect("not 0"), ..greedy(1) };
    assert!(matches!(refused(ids([1]), too_many), SubmitError::TooMany { name: "n_choices", .. }));
    assert!(matches!(refused(ids([1]), Generate { logprobs: Some(21), ..greedy(1) }), SubmitError::TooMany { name: "logprobs", .. }));
    assert!(matches!(refused(ids([1]), Generate { n_tokens_min: 2, ..greedy(1) }), SubmitError::TooMany { name: "n_tokens_min", .. }));
    let bias = |bias| Generate { logit_bias: vec![(TokenId(1), bias)], ..greedy(1) };
    assert!(matches!(refused(ids([1]), bias(f32::NAN)), SubmitError::OutOfRange { name: "logit_bias", .. }));
    assert!(matches!(refused(ids([1]), bias(100.5)), SubmitError::OutOfRange { name: "logit_bias", .. }));
    let stop = Generate { stop_token_ids: vec![TokenId(99)], ..greedy(1) };
    assert!(matches!(refused(ids([1]), stop), SubmitError::UnknownToken { .. }));
    let temperature = SamplingParams { temperature: -1.0, ..SamplingParams::default() };
    assert!(matches!(refused(ids([1]), Generate::plain(temperature, 1)), SubmitError::Sampling(_)));
    let texts = Generate { stop_strings: vec!["x".into()], ..greedy(1) };
    assert!(matches!(refused(ids([1]), texts), SubmitError::NoTokenizer { .. }));
    let empty_stop = Generate { stop_strings: vec![String::new()], ..greedy(1) };
    assert!(matches!(writing().submit(RequestId(1), request(ids([1]), empty_stop)), Err(SubmitError::Text(_))));
}

#[test]
fn cached_prefix_is_read_by_its_tenant_and_never_by_another() {
    let mut core = core();
    let of = |name: u8, n_tokens: u32| Request { tenant: tenant(name), ..request(ids((0..n_tokens).map(|id| id % 50)), greedy(4)) };
    let first = run(&mut core, 1, of(1, 70));
    assert_eq!(n_cached(&first), 0);
    let again = run(&mut core, 2, of(1, 70));
    assert_eq!((n_cached(&again), token_ids(&again)), (64, token_ids(&first)), "the same tenant finds it");
    let foreign = run(&mut core, 3, of(2, 70));
    assert_eq!((n_cached(&foreign), token_ids(&foreign)), (0, token_ids(&first)), "another does not");
    assert_eq!(n_cached(&run(&mut core, 4, of(1, 64))), 48, "the last token is always computed");
    let prompt_logprobs = Generate { prompt_logprobs: Some(0), ..greedy(4) };
    let scored = run(&mut core, 5, Request { ..request(ids((0..70).map(|id| id % 50)), prompt_logprobs) });
    assert_eq!(n_cached(&scored), 0, "each of its tokens is wanted");
    let Event::Started { prompt_logprobs: Some(scores), .. } = &scored[0] else { panic!("{:?}", scored[0]) };
    assert!(scores.len() == 70 && scores[0].is_none() && scores[1..].iter().all(Option::is_some));
}

#[test]
fn generated_tokens_are_cached_for_the_next_turn() {
    let mut core = core();
    let first = run(&mut core, 1, request(ids(0..20), greedy(30)));
    let next: Vec<TokenId> = ids(0..20).into_iter().chain(token_ids(&first)).chain(ids([1, 2, 3])).collect();
    assert_eq!(n_cached(&run(&mut core, 2, request(next, greedy(1)))), 48);
}

#[test]
fn flood_of_unique_prefixes_leaves_another_tenants_cache_alone() {
    let options = EngineOptions { prefix_cache: PrefixCaching::On { tenant_percent: 50 }, ..EngineOptions::default() };
    let mut core = EngineCore::new(bare(simulated(32, 64)), options).expect("valid options");
    let quiet = || Request { tenant: tenant(2), ..request(ids((0..50).map(|id| id % 50)), greedy(2)) };
    run(&mut core, 0, quiet());
    for number in 1..500u32 {
        let prompt = ids((0..60).map(|index| (index * number + number / 50) % 50));
        run(&mut core, u64::from(number), request(prompt, greedy(2)));
    }
    assert_eq!(n_cached(&run(&mut core, 1000, quiet())), 48);
}

#[test]
fn deadline_ends_a_request_wherever_it_is() {
    let (mut core, mut recorder) = (core(), Recorder::default());
    let start = Instant::now();
    let after = |steps: u64| Some(start + Duration::from_millis(steps));
    for (id, steps) in [(1, 0), (2, 1), (3, 5)] {
        core.submit(RequestId(id), Request { deadline: after(steps), ..request(ids(0..20), greedy(50)) }).expect("sound");
    }
    for step in 0..10 {
        core.step(start + Duration::from_millis(step), &mut recorder);
    }
    assert_eq!((core.n_live(), core.stats().n_used_blocks, core.stats().n_expired), (0, 0, 3));
    for (id, n_tokens) in [(1, 0), (2, 1), (3, 5)] {
        let events = &recorder.events[&RequestId(id)];
        let [.., Event::Failed(RequestError::DeadlineExceeded), Event::Finished(usage)] = events.as_slice() else { panic!("{events:?}") };
        // The first never had its turn.
        let n_prompt_tokens = if n_tokens == 0 { 0 } else { 20 };
        assert_eq!(*usage, Usage { n_prompt_tokens, n_cached_tokens: 0, n_completion_tokens: n_tokens });
    }
}

#[test]
fn stop_string_ends_a_text_before_it_shows() {
    let mut core = writing();
    let free = run(&mut core, 1, request(ids([3, 9]), Generate { end_of_sequence: EndOfSequence::Ignore, ..greedy(60) }));
    let mut recorder = Recorder::default();
    recorder.events.insert(RequestId(1), free);
    let (whole, finish) = recorder.text(RequestId(1), 0);
    assert_eq!(finish, Some(FinishReason::Length));
    let start = whole.char_indices().nth(20).expect("long enough").0;
    let stop: String = whole[start..].chars().take(3).collect();
    let stop_strings = vec!["never there".to_string(), stop.clone()];
    let stopping = Generate { stop_strings, end_of_sequence: EndOfSequence::Ignore, ..greedy(60) };
    recorder.events.insert(RequestId(2), run(&mut core, 2, request(ids([3, 9]), stopping.clone())));
    let expected = &whole[..whole.find(&stop).expect("it is there")];
    assert_eq!(recorder.text(RequestId(2), 0), (expected.to_string(), Some(FinishReason::StopString(stop))));
    recorder.events.insert(RequestId(3), run(&mut core, 3, request(ids([3, 9]), Generate { n_tokens_min: 60, ..stopping })));
    assert_eq!(recorder.text(RequestId(3), 0), (whole, Some(FinishReason::Length)), "not before the least number of tokens");
}

#[test]
fn end_of_sequence_ends_a_text_unless_ignored_or_too_early() {
    let mut core = writing();
    let likely =
        |n_tokens_min, end_of_sequence| Generate { logit_bias: vec![(BYTE_EOS, 100.0)], n_tokens_min, end_of_sequence, ..greedy(9) };
    let ended = run(&mut core, 1, request(ids([1]), likely(0, EndOfSequence::Stop)));
    assert_eq!(token_ids(&ended), []);
    assert!(matches!(
        ended[1..],
        [Event::ChoiceFinished { reason: FinishReason::EndOfSequence, .. }, Event::Finished(Usage { n_completion_tokens: 1, .. })]
    ));
    assert_eq!(token_ids(&run(&mut core, 2, request(ids([1]), likely(4, EndOfSequence::Stop)))).len(), 4);
    assert_eq!(token_ids(&run(&mut core, 3, request(ids([1]), likely(0, EndOfSequence::Ignore)))), vec![BYTE_EOS; 9]);
    let special = Generate { stop_strings: vec!["</s>".into()], ..likely(0, EndOfSequence::Ignore) };
    let events = run(&mut core, 4, request(ids([1]), special));
    assert!(matches!(&events[1], Event::ChoiceFinished { reason: FinishReason::StopString(stop), .. } if stop == "</s>"));
    let token = Generate { stop_token_ids: vec![BYTE_EOS], ..likely(0, EndOfSequence::Ignore) };
    let events = run(&mut core, 5, request(ids([1]), token));
    assert!(matches!(events[1], Event::ChoiceFinished { reason: FinishReason::StopToken(BYTE_EOS), .. }));
}

#[test]
fn request_for_no_tokens_reads_the_prompt_and_ends() {
    let events = run(&mut core(), 1, request(ids(0..20), Generate { prompt_logprobs: Some(1), ..greedy(0) }));
    assert!(matches!(&events[0], Event::Started { prompt_logprobs: Some(scores), .. } if scores.len() == 20));
    assert!(matches!(events[1..], [Event::ChoiceFinished { reason: FinishReason::Length, .. }, Event::Finished(_)]));
}

#[test]
fn forks_share_the_blocks_of_their_prompt() {
    let (mut core, mut recorder) = (core(), Recorder::default());
    let generate = Generate { n_choices: NonZeroU32::new(8).expect("not 0"), ..Generate::plain(SamplingParams::default(), 10) };
    core.submit(RequestId(1), request(ids((0..65).map(|id| id % 50)), generate)).expect("sound");
    let now = Instant::now();
    for _ in 0..4 {
        core.step(now, &mut recorder);
    }
    let stats = core.stats();
    assert_eq!(stats.n_running, 8);
    assert_eq!(stats.n_used_blocks, 4 + 8, "four full blocks for all, and one for each");
    finish_all(&mut core, &mut recorder);
    let events = &recorder.events[&RequestId(1)];
    assert!(matches!(events.last(), Some(Event::Finished(Usage { n_prompt_tokens: 65, n_completion_tokens: 80, .. }))));
}

#[test]
fn embedding_model_embeds_and_writes_nothing() {
    let config = ModelConfig { last_token_pooling: true, ..small_config() };
    let model = EngineModel {
        runner: Box::new(SimulatedRunner::new(config, limits(64, 16))),
        draft: None,
        tokenizer: Some(byte_tokenizer()),
        eos: vec![],
    };
    let mut core = EngineCore::new(model, EngineOptions::default()).expect("valid options");
    assert_eq!(core.output(), Output::Embedding);
    assert!(matches!(core.submit(RequestId(1), request(ids([1]), greedy(1))), Err(SubmitError::NotGenerative)));
    let embed = || Request { task: Task::Embed, priority: Priority::High, ..request(ids(0..40), greedy(0)) };
    let events = run(&mut core, 2, embed());
    let [Event::Embedding(embedding), Event::Finished(_)] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!(embedding.len(), small_config().hidden_size);
    assert!((embedding.iter().map(|value| value * value).sum::<f32>() - 1.0).abs() < 1e-4);
    assert_eq!(run(&mut core, 3, embed())[0], events[0], "from the cache the same");
    let mut text = EngineCore::new(bare(simulated(8, 16)), EngineOptions::default()).expect("valid options");
    assert!(matches!(text.submit(RequestId(1), embed()), Err(SubmitError::NoEmbeddings)));
}

#[test]
fn engine_of_parts_that_do_not_fit_is_refused() {
    let start = |model: EngineModel, options: EngineOptions| EngineCore::new(model, options).err();
    let drafting = EngineOptions { speculation: Speculation::DraftModel { n_drafts_max: 4 }, ..EngineOptions::default() };
    assert_eq!(start(bare(simulated(8, 16)), drafting), Some(StartError::NoDraftModel));
    let other = SimulatedRunner::new(
        ModelConfig { n_vocab: 60, ..small_config() },
        bitnet_model::batch::BatchLimits { n_vocab: 60, ..limits(8, 16) },
    );
    let mismatched = EngineModel { draft: Some(DraftPart { runner: Box::new(other), tokenizer: None }), ..bare(simulated(8, 16)) };
    assert_eq!(start(mismatched, drafting), Some(StartError::DraftVocabulary { expected: 50, got: 60 }));
    for options in [
        EngineOptions { n_running_max: 0, ..EngineOptions::default() },
        EngineOptions { n_waiting_max: 0, ..EngineOptions::default() },
        EngineOptions { speculation: Speculation::PromptLookup { n_drafts_max: 17 }, ..EngineOptions::default() },
        EngineOptions { prefix_cache: PrefixCaching::On { tenant_percent: 101 }, ..EngineOptions::default() },
    ] {
        assert!(matches!(start(bare(simulated(8, 16)), options), Some(StartError::Option { .. })), "{options:?}");
    }
}

#[test]
fn simulated_runner_notices_a_block_that_is_not_the_sequences_own() {
    use bitnet_model::Runner;
    use bitnet_model::batch::{Batch, BatchSequence, BlockId, Rows};
    let batch = |token_ids: Vec<TokenId>, first_position: usize, blocks: [u32; 3]| Batch {
        sequences: vec![BatchSequence {
            n_tokens: token_ids.len(),
            first_position,
            block_table: blocks.map(BlockId).to_vec(),
            rows: Rows::Last,
        }],
        token_ids,
    };
    let mut runner = simulated(16, 64);
    runner.step(&batch(ids(0..40), 0, [0, 1, 2])).expect("valid");
    runner.step(&batch(ids(5..45), 0, [3, 4, 5])).expect("valid");
    let right = runner.step(&batch(ids([7]), 40, [0, 1, 2])).expect("valid").clone();
    for wrong in [[3, 1, 2], [0, 4, 2], [0, 1, 5]] {
        assert_ne!(runner.step(&batch(ids([7]), 40, wrong)).expect("valid"), &right, "{wrong:?}");
        runner.step(&batch(ids(0..40), 0, [0, 1, 2])).expect("valid");
        runner.step(&batch(ids(5..45), 0, [3, 4, 5])).expect("valid");
    }
    assert_eq!(runner.step(&batch(ids([7]), 40, [0, 1, 2])).expect("valid"), &right);
}

#[test]
fn low_priority_ends_under_an_endless_stream_of_high_ones_that_take_its_blocks() {
    // Room for two of them at their full length; whoever waits sees new ones come in every step.
    let options = EngineOptions { n_running_max: 6, ..EngineOptions::default() };
    let mut core = EngineCore::new(bare(simulated(12, 64)), options).expect("valid options");
    let mut recorder = Recorder::default();
    core.submit(RequestId(0), Request { priority: Priority::Low, tenant: tenant(9), ..request(ids(0..40), greedy(80)) }).expect("sound");
    let now = Instant::now();
    let mut next = 1;
    for step in 0.. {
        while core.stats().n_waiting < 8 {
            let prompt = ids((0..20).map(|index| (index * 7 + next as u32) % 50));
            let tenant = tenant((next % 5) as u8);
            core.submit(RequestId(next), Request { priority: Priority::High, tenant, ..request(prompt, greedy(60)) }).expect("sound");
            next += 1;
        }
        core.step(now, &mut recorder);
        if let Some(Event::Finished(usage)) = recorder.events.get(&RequestId(0)).and_then(|events| events.last()) {
            assert_eq!(usage.n_completion_tokens, 80);
            assert!(core.stats().n_preemptions > 0);
            break;
        }
        assert!(step < 20_000, "it starves: {:?}", core.stats());
    }
}
