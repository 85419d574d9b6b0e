//! What the engine adds to a step of the runner: 64 sequences that decode, 1000 requests that wait, contexts of a thousand tokens.
//! The runner is simulated and costs next to nothing, so all of a step is overhead; it has to be little beside the tens of
//! milliseconds that a step of a real model takes.

use std::time::{Duration, Instant};

use bitnet_checkpoint::ModelConfig;
use bitnet_engine::{
    EngineCore, EngineModel, EngineOptions, Event, EventSink, Generate, PrefixCaching, Priority, Request, RequestId, SimulatedRunner,
    Speculation, Task, TenantSalt,
};
use bitnet_model::TokenId;
use bitnet_model::batch::BatchLimits;
use bitnet_model::random::small_config;
use bitnet_model::sampler::SamplingParams;

const N_RUNNING: usize = 64;
const N_WAITING: u64 = 1000;
const N_PROMPT: u32 = 1000;
const N_STEPS: u32 = 1000;

/// Counts and forgets.
#[derive(Default)]
struct Counter {
    n_events: u64,
}

impl EventSink for Counter {
    fn send(&mut self, _: RequestId, _: Event) {
        self.n_events += 1;
    }

    fn has_room(&self, _: RequestId) -> bool {
        true
    }
}

fn core(speculation: Speculation) -> EngineCore {
    let config = ModelConfig { n_vocab: 1000, context_length: 4096, ..small_config() };
    let limits = BatchLimits { n_tokens_max: 4096, n_vocab: 1000, context_length: 4096, n_blocks: N_RUNNING * 256 };
    let runner = Box::new(SimulatedRunner::new(config, limits));
    let options = EngineOptions {
        n_running_max: N_RUNNING,
        n_step_tokens_max: 4096,
        prefix_cache: PrefixCaching::On { tenant_percent: 50 },
        speculation,
        ..EngineOptions::default()
    };
    EngineCore::new(EngineModel { runner, draft: None, tokenizer: None, eos: Vec::new() }, options).expect("valid options")
}

fn time_per_step(speculation: Speculation) -> Duration {
    let (mut core, mut counter) = (core(speculation), Counter::default());
    for number in 0..N_RUNNING as u64 + N_WAITING {
        let prompt = (0..N_PROMPT).map(|index| TokenId((index * 31 + number as u32 * 7) % 1000)).collect();
        let task = Task::Generate(Box::new(Generate::plain(SamplingParams::greedy(), 3000)));
        let tenant = TenantSalt([(number % 20) as u8; 32]);
        let request = Request { prompt, task, tenant, priority: Priority::Normal, deadline: None, usage_sink: None };
        core.submit(RequestId(number), request).expect("sound");
    }
    let now = Instant::now();
    while core.stats().n_running < N_RUNNING || core.stats().n_completion_tokens < 2 * N_RUNNING as u64 {
        core.step(now, &mut counter);
    }
    let start = Instant::now();
    for _ in 0..N_STEPS {
        core.step(now, &mut counter);
    }
    start.elapsed() / N_STEPS
}

fn main() {
    for (name, speculation) in [("off", Speculation::Off), ("lookup", Speculation::PromptLookup { n_drafts_max: 8 })] {
        let best = (0..3).map(|_| time_per_step(speculation)).min().unwrap_or_default();
        println!("engine/step/simulated/{N_RUNNING}_sequences/speculation_{name}  {:8.1} µs a step", best.as_secs_f64() * 1e6);
    }
}
