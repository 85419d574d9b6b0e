//! Thousands of random lives of an engine: schedules, cancellations, deadlines, slow readers, full caches, faults. Every request's
//! tokens must be those that a plain loop over a runner of its own gives, whoever else was there; everything ends; nothing leaks.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bitnet_checkpoint::ModelConfig;
use bitnet_engine::{
    DraftPart, EngineCore, EngineModel, EngineOptions, EngineStats, Event, EventSink, Fault, FinishReason, Generate, PrefixCaching,
    Priority, Request, RequestEnd, RequestError, RequestId, SimulatedRunner, Speculation, StepOutcome, Task, TokenLogprob, Usage,
    UsageSink,
};
use bitnet_model::batch::{Batch, BatchLimits};
use bitnet_model::device::DeviceDescription;
use bitnet_model::random::small_config;
use bitnet_model::sampler::{Sampler, SamplingParams};
use bitnet_model::{Runner, RunnerError, Session, StepOutput, TokenId};

use crate::support::{Dice, quiet_planted_panics, silently, tenant};

const N_SEEDS: u64 = 10_000;
const N_VOCAB: usize = 24;
const POISON: TokenId = TokenId(23);

fn config() -> ModelConfig {
    ModelConfig { n_vocab: N_VOCAB, ..small_config() }
}

/// What a request asked for and what came of it.
struct Client {
    request_id: RequestId,
    prompt: Vec<TokenId>,
    generate: Generate,
    cancel_at: Option<u64>,
    /// Steps during which its reader reads nothing.
    asleep: std::ops::Range<u64>,
    tokens: BTreeMap<u32, Vec<(TokenId, Option<TokenLogprob>)>>,
    finishes: BTreeMap<u32, FinishReason>,
    error: Option<RequestError>,
    is_cancelled: bool,
    usage: Option<Usage>,
}

#[derive(Default)]
struct Clients {
    clients: BTreeMap<RequestId, Client>,
    step: u64,
}

impl EventSink for Clients {
    fn send(&mut self, id: RequestId, event: Event) {
        let client = self.clients.get_mut(&id).expect("it exists");
        assert!(client.usage.is_none(), "nothing comes after the last event");
        match event {
            Event::Started { .. } => assert!(client.tokens.is_empty()),
            Event::Token { choice, token_id, logprob, .. } => client.tokens.entry(choice).or_default().push((token_id, logprob)),
            Event::ChoiceFinished { choice, reason, .. } => {
                assert!(client.finishes.insert(choice, reason).is_none());
            }
            Event::Embedding(_) => panic!("nobody asked"),
            Event::Failed(error) => client.error = Some(error),
            Event::Finished(usage) => client.usage = Some(usage),
        }
    }

    fn has_room(&self, id: RequestId) -> bool {
        !self.clients[&id].asleep.contains(&self.step)
    }
}

#[derive(Clone, Default)]
struct Bills(Arc<Mutex<BTreeMap<RequestId, Usage>>>);

impl UsageSink for Bills {
    fn finished(self: Box<Self>, id: RequestId, usage: Usage, _: RequestEnd) {
        assert!(self.0.lock().expect("whole").insert(id, usage).is_none(), "billed once");
    }
}

struct World {
    limits: BatchLimits,
    fault: Fault,
    clients: Clients,
    bills: Bills,
    core: EngineCore,
    start: Instant,
}

/// A runner with a bug in it, or without.
type Planting = fn(SimulatedRunner) -> Box<dyn Runner>;

impl World {
    fn new(dice: &mut Dice, plant: Planting) -> Self {
        let n_blocks = 3 + dice.below(14) as usize;
        let n_tokens_max = 3 + dice.below(40) as usize;
        let limits = BatchLimits { n_tokens_max, n_vocab: N_VOCAB, context_length: 96, n_blocks };
        let fault = [Fault::Panic, Fault::Error, Fault::NotFinite][dice.below(3) as usize];
        let prefix_cache = match dice.below(3) {
            0 => PrefixCaching::Off,
            _ => PrefixCaching::On { tenant_percent: 10 + dice.below(90) as u8 },
        };
        let n_drafts_max = 1 + dice.below(6) as usize;
        let speculation = match dice.below(3) {
            0 => Speculation::Off,
            1 => Speculation::PromptLookup { n_drafts_max },
            _ => Speculation::DraftModel { n_drafts_max },
        };
        let n_running_max = 1 + dice.below(8) as usize;
        let options = EngineOptions { n_running_max, prefix_cache, speculation, ..EngineOptions::default() };
        let runner = plant(SimulatedRunner::new(config(), limits).with_fault(POISON, fault));
        // The model drafts for itself: right for the greedy, often wrong for others.
        let draft_limits = BatchLimits { n_blocks: 1 + dice.below(12) as usize, n_tokens_max: 1 + dice.below(30) as usize, ..limits };
        let draft = Box::new(SimulatedRunner::new(config(), draft_limits).with_fault(TokenId(22), fault));
        let draft = Some(DraftPart { runner: draft, tokenizer: None });
        let model = EngineModel { runner, draft, tokenizer: None, eos: vec![TokenId(0)] };
        let core = EngineCore::new(model, options).expect("valid options");
        Self { limits, fault, clients: Clients::default(), bills: Bills::default(), core, start: Instant::now() }
    }

    fn now(&self) -> Instant {
        self.start + Duration::from_millis(self.clients.step)
    }

    fn submit(&mut self, number: u64, dice: &mut Dice) {
        let context_length = self.limits.context_length.min(self.limits.n_blocks * 16);
        let id = RequestId(number);
        let prompt = prompt(dice, context_length);
        let generate = generate(dice);
        let step = self.clients.step;
        let deadline = (dice.below(8) == 0).then(|| self.now() + Duration::from_millis(dice.below(40)));
        let asleep_from = step + dice.below(30);
        self.clients.clients.insert(
            id,
            Client {
                request_id: id,
                prompt: prompt.clone(),
                generate: generate.clone(),
                cancel_at: (dice.below(6) == 0).then(|| step + dice.below(30)),
                asleep: if dice.below(5) == 0 { asleep_from..asleep_from + dice.below(30) } else { 0..0 },
                tokens: BTreeMap::new(),
                finishes: BTreeMap::new(),
                error: None,
                is_cancelled: false,
                usage: None,
            },
        );
        let priority = [Priority::High, Priority::Normal, Priority::Low][dice.below(3) as usize];
        let task = Task::Generate(Box::new(generate));
        let usage_sink: Option<Box<dyn UsageSink>> = Some(Box::new(self.bills.clone()));
        let request = Request { prompt, task, tenant: tenant(dice.below(3) as u8), priority, deadline, usage_sink };
        self.core.submit(id, request).expect("sound");
    }

    fn cancel_due(&mut self) {
        let step = self.clients.step;
        let due = self.clients.clients.values_mut().filter(|client| client.usage.is_none() && client.cancel_at == Some(step));
        let ids: Vec<RequestId> = due
            .map(|client| {
                client.is_cancelled = true;
                client.request_id
            })
            .collect();
        ids.into_iter().for_each(|id| self.core.cancel(id, &mut self.clients));
    }

    fn live(&mut self, dice: &mut Dice) {
        let n_requests = 1 + dice.below(9);
        let mut n_submitted = 0;
        while n_submitted < n_requests || self.core.n_live() > 0 {
            while n_submitted < n_requests && dice.below(3) != 0 {
                n_submitted += 1;
                self.submit(n_submitted, dice);
            }
            self.cancel_due();
            let outcome = self.core.step(self.now(), &mut self.clients);
            let any_awake = self.clients.clients.values().any(|client| client.usage.is_none() && self.clients.has_room(client.request_id));
            assert!(outcome != StepOutcome::Idle || !any_awake, "whoever can go on does");
            self.clients.step += 1;
            assert!(self.clients.step < 3000, "everything comes to an end: {:?}", self.core.stats());
        }
    }

    fn check(&self) {
        let stats = self.core.stats();
        assert_eq!((stats.n_used_blocks, stats.n_running, stats.n_waiting), (0, 0, 0), "nothing leaks");
        let bills = self.bills.0.lock().expect("whole");
        for client in self.clients.clients.values() {
            let usage = client.usage.expect("it ended");
            assert_eq!(bills.get(&client.request_id), Some(&usage));
            self.check_tokens(client, usage);
        }
    }

    fn check_tokens(&self, client: &Client, usage: Usage) {
        let mut n_drawn = 0;
        let mut any_fails = false;
        for choice in 0..client.generate.n_choices.get() {
            let expected = alone(self.limits, self.fault, &client.prompt, &client.generate, choice);
            any_fails |= expected.finish.is_none();
            let got = client.tokens.get(&choice).map_or(&[][..], Vec::as_slice);
            let n = got.len();
            assert!(n <= expected.tokens.len() && got == &expected.tokens[..n], "the tokens of a request alone");
            n_drawn += n;
            if let Some(reason) = client.finishes.get(&choice) {
                assert_eq!((Some(reason), n), (expected.finish.as_ref(), expected.tokens.len()));
                n_drawn += usize::from(matches!(reason, FinishReason::EndOfSequence | FinishReason::StopToken(_)));
            }
        }
        assert_eq!(usage.n_completion_tokens, n_drawn, "what was drawn is billed");
        let is_complete = client.finishes.len() == client.generate.n_choices.get() as usize;
        let stopped_early = client.is_cancelled || client.error.is_some();
        let is_blamed = client.error.as_ref().is_some_and(|error| *error != RequestError::DeadlineExceeded);
        assert!(!is_blamed || any_fails, "whoever fails would fail alone: {:?}", client.error);
        assert!(is_complete || stopped_early, "complete, cancelled or failed");
        // Of those that fail by themselves, none comes through.
        assert!(!(any_fails && is_complete));
    }
}

fn prompt(dice: &mut Dice, context_length: usize) -> Vec<TokenId> {
    // Few beginnings, so that prompts share blocks.
    let n_tokens = 1 + dice.below(context_length.min(60) as u64) as usize;
    let (family, n_shared) = (dice.below(3) as u32, dice.below(n_tokens as u64 + 1) as u32);
    let mut token_at =
        |index: u32| if index < n_shared { 1 + (index * 7 + family * 5 + index * index) % 21 } else { 1 + dice.below(21) as u32 };
    let mut prompt: Vec<TokenId> = (0..n_tokens as u32).map(|index| TokenId(token_at(index))).collect();
    if dice.below(12) == 0 {
        let place = dice.below(n_tokens as u64) as usize;
        prompt[place] = POISON;
    }
    prompt
}

fn generate(dice: &mut Dice) -> Generate {
    let mut sampling = SamplingParams { seed: dice.below(1000), ..SamplingParams::greedy() };
    if dice.below(2) == 0 {
        sampling.temperature = 0.5 + dice.below(10) as f32 / 10.0;
        sampling.top_k = (dice.below(2) == 0).then_some(5);
    }
    if dice.below(4) == 0 {
        sampling.repetition_penalty = 1.3;
        sampling.frequency_penalty = 0.2;
    }
    let n_choices = std::num::NonZeroU32::new(1 + dice.below(4).saturating_sub(1) as u32).expect("at least one");
    let stop_token_ids = if dice.below(4) == 0 { vec![TokenId(3)] } else { Vec::new() };
    let logprobs = (dice.below(4) == 0).then_some(2);
    let prompt_logprobs = (dice.below(10) == 0).then_some(1);
    Generate { n_choices, stop_token_ids, logprobs, prompt_logprobs, ..Generate::plain(sampling, dice.below(40) as usize) }
}

struct Alone {
    tokens: Vec<(TokenId, Option<TokenLogprob>)>,
    /// `None`: it fails.
    finish: Option<FinishReason>,
}

/// The oracle: one choice, one session, one loop.
fn alone(limits: BatchLimits, fault: Fault, prompt: &[TokenId], generate: &Generate, choice: u32) -> Alone {
    let limits = BatchLimits { n_tokens_max: 1, context_length: limits.context_length.min(limits.n_blocks * 16), ..limits };
    let mut session = Session::new(Box::new(SimulatedRunner::new(config(), limits).with_fault(POISON, fault)));
    let params = SamplingParams { seed: generate.sampling.seed + u64::from(choice), ..generate.sampling.clone() };
    let mut sampler = Sampler::new(params).expect("valid").with_prompt(prompt.len());
    let mut history = prompt.to_vec();
    let mut tokens = Vec::new();
    // With scores wanted of every prompt token, every row of the prompt must be finite, not only the last.
    if generate.prompt_logprobs.is_some() && prompt.contains(&POISON) {
        return Alone { tokens, finish: None };
    }
    let mut next = prompt.to_vec();
    loop {
        let computed = catch_unwind(AssertUnwindSafe(|| session.prefill(&next).map(<[f32]>::to_vec)));
        let Ok(Ok(mut logits)) = computed else { return Alone { tokens, finish: None } };
        let finish = if tokens.len() == generate.n_tokens_max {
            Some(FinishReason::Length)
        } else if history.len() > limits.context_length {
            Some(FinishReason::ContextFull)
        } else {
            None
        };
        if finish.is_some() {
            return Alone { tokens, finish };
        }
        let raw = logits.clone();
        let token_id = sampler.sample(&mut logits, &history).expect("finite");
        if token_id == TokenId(0) {
            return Alone { tokens, finish: Some(FinishReason::EndOfSequence) };
        }
        if generate.stop_token_ids.contains(&token_id) {
            return Alone { tokens, finish: Some(FinishReason::StopToken(token_id)) };
        }
        history.push(token_id);
        tokens.push((token_id, generate.logprobs.map(|n_top| logprob(&raw, token_id, n_top as usize))));
        if tokens.len() == generate.n_tokens_max {
            return Alone { tokens, finish: Some(FinishReason::Length) };
        }
        if history.len() > limits.context_length {
            return Alone { tokens, finish: Some(FinishReason::ContextFull) };
        }
        next = vec![token_id];
    }
}

/// Log-probabilities by sorting.
fn logprob(logits: &[f32], token_id: TokenId, n_top: usize) -> TokenLogprob {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| libm::exp(f64::from(logit) - f64::from(largest))).sum();
    let of = |logit: f32| (f64::from(logit) - (f64::from(largest) + libm::log(sum))) as f32;
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    let top = order.into_iter().take(n_top).map(|index| (TokenId(index as u32), of(logits[index]))).collect();
    TokenLogprob { token_id, logprob: of(logits[token_id.index()]), top }
}

/// Lives one life. `None` if it went wrong.
fn live(seed: u64, plant: Planting) -> Option<EngineStats> {
    let mut dice = Dice::new(seed);
    let mut world = World::new(&mut dice, plant);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        world.live(&mut dice);
        world.check();
    }));
    outcome.ok().map(|()| world.core.stats())
}

#[test]
fn random_lives_of_an_engine_leak_nothing_starve_nobody_and_change_no_token() {
    quiet_planted_panics();
    // For a night: `ENGINE_SIMULATION_SEEDS=1000000`.
    let n_seeds = std::env::var("ENGINE_SIMULATION_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(N_SEEDS);
    let mut seen = [0u64; 7];
    for seed in 0..n_seeds {
        let stats = live(seed, |runner| Box::new(runner)).unwrap_or_else(|| panic!("seed {seed}"));
        let counts = [
            stats.n_preemptions,
            stats.n_prefix_hit_tokens,
            stats.n_accepted_tokens,
            stats.n_drafted_tokens - stats.n_accepted_tokens,
            stats.n_failed,
            stats.n_expired,
            stats.n_cancelled,
        ];
        seen.iter_mut().zip(counts).for_each(|(seen, count)| *seen += count);
    }
    assert!(seen.iter().all(|&count| count > n_seeds / 100), "the simulation reaches everything: {seen:?}");
}

/// A runner that writes the keys of a batch's last sequence where those of its first belong.
struct MixedUp(SimulatedRunner);

impl Runner for MixedUp {
    fn config(&self) -> &ModelConfig {
        self.0.config()
    }

    fn device(&self) -> DeviceDescription {
        self.0.device()
    }

    fn limits(&self) -> BatchLimits {
        self.0.limits()
    }

    fn decode_bytes(&self) -> u64 {
        0
    }

    fn step(&mut self, batch: &Batch) -> Result<&StepOutput, RunnerError> {
        let mut batch = batch.clone();
        if let [first, .., last] = batch.sequences.as_mut_slice()
            && let (Some(from), Some(to)) = (first.block_table.first(), last.block_table.first_mut())
        {
            *to = *from;
        }
        self.0.step(&batch)
    }
}

#[test]
fn simulation_notices_a_runner_that_mixes_up_blocks() {
    quiet_planted_panics();
    let n_noticed = silently(|| (0..50).filter(|&seed| live(seed, |runner| Box::new(MixedUp(runner))).is_none()).count());
    assert!(n_noticed > 25, "{n_noticed} of 50");
}
