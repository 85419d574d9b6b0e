//! The engine on the model in the binary and the processor it runs on: the same bits alone and in a batch of 32, with and without cache,
//! drafts and preemption. (`engine`'s own tests show it on small models and the reference; here meet the real parts.)

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use bitnet_checkpoint::Checkpoint;
use bitnet_device_cpu::{CpuDevice, CpuOptions};
use bitnet_engine::{
    Constraint, DraftPart, EngineCore, EngineModel, EngineOptions, Event, EventSink, Generate, PrefixCaching, Priority, Request, RequestId,
    Speculation, Task, TenantSalt,
};
use bitnet_model::device::KvType;
use bitnet_model::sampler::SamplingParams;
use bitnet_model::text::{AddSpecial, Tokenizer};
use bitnet_model::{Runner, RunnerOptions, TransformerRunner};

const N_REQUESTS: u64 = 32;
const N_TOKENS: usize = 8;

#[derive(Default)]
struct Recorder(BTreeMap<RequestId, Vec<Event>>);

impl EventSink for Recorder {
    fn send(&mut self, id: RequestId, event: Event) {
        // How much was cached is not part of the answer.
        if !matches!(event, Event::Started { .. } | Event::Finished(_)) {
            self.0.entry(id).or_default().push(event);
        }
    }

    fn has_room(&self, _: RequestId) -> bool {
        true
    }
}

fn core(checkpoint: &Checkpoint, n_cached_tokens: usize, options: EngineOptions) -> EngineCore {
    let runner = || -> Box<dyn Runner> {
        // One thread: tests run beside each other, and the bits are the same for any number.
        let device = CpuDevice::new(CpuOptions { n_threads: Some(1), ..CpuOptions::default() }).expect("a device");
        let options = RunnerOptions { n_tokens_max: 128, n_cached_tokens, kv_type: KvType::F16 };
        Box::new(TransformerRunner::load(device, checkpoint, options, &mut |_| {}).expect("it loads"))
    };
    let tokenizer = Arc::new(Tokenizer::load(checkpoint.tokenizer_files()).expect("it has one"));
    let draft = matches!(options.speculation, Speculation::DraftModel { .. });
    let draft = draft.then(|| DraftPart { runner: runner(), tokenizer: Some(tokenizer.clone()) });
    EngineCore::new(EngineModel { runner: runner(), draft, eos: tokenizer.eos().to_vec(), tokenizer: Some(tokenizer) }, options)
        .expect("valid")
}

fn request(tokenizer: &Tokenizer, number: u64) -> Request {
    let beginning = "Once upon a time there was a little girl who lived in a small house near the forest. ";
    let text = format!("{beginning}Her number was {number} and she liked {}", ["cats", "the sea", "old books"][number as usize % 3]);
    let mut sampling = SamplingParams { seed: number, ..SamplingParams::greedy() };
    if number % 2 == 1 {
        sampling = SamplingParams { temperature: 0.9, top_p: 0.95, repetition_penalty: 1.1, seed: number, ..SamplingParams::default() };
    }
    let generate = Generate {
        logprobs: (number % 4 < 2).then_some(2),
        constraint: (number % 8 == 5).then(|| Constraint::Regex("[a-z ]{30,60}\\.".into())),
        ..Generate::plain(sampling, N_TOKENS)
    };
    Request {
        prompt: tokenizer.encode(&text, AddSpecial::Yes).expect("text"),
        task: Task::Generate(Box::new(generate)),
        tenant: TenantSalt([1; 32]),
        priority: Priority::Normal,
        deadline: None,
        usage_sink: None,
    }
}

fn finish_all(core: &mut EngineCore, recorder: &mut Recorder) {
    while core.n_live() > 0 {
        core.step(Instant::now(), recorder);
    }
}

#[test]
fn embedded_model_gives_the_same_bits_alone_and_in_a_batch_of_32() {
    let model = include_bytes!("../../assets/tales-42m.gguf");
    let checkpoint = Checkpoint::from_gguf_bytes(model).expect("the embedded model");
    let tokenizer = Tokenizer::load(checkpoint.tokenizer_files()).expect("it has one");
    let plain = EngineOptions { prefix_cache: PrefixCaching::Off, ..EngineOptions::default() };
    let mut alone = Recorder::default();
    let mut one = core(&checkpoint, 512, plain);
    for number in 0..N_REQUESTS {
        one.submit(RequestId(number), request(&tokenizer, number)).expect("sound");
        finish_all(&mut one, &mut alone);
    }
    let lookup =
        EngineOptions { speculation: Speculation::PromptLookup { n_drafts_max: 6 }, n_step_tokens_max: 70, ..EngineOptions::default() };
    let drafting = EngineOptions { speculation: Speculation::DraftModel { n_drafts_max: 3 }, ..EngineOptions::default() };
    let mut n_preemptions = 0;
    let pairs = EngineOptions { n_running_max: 2, n_step_tokens_max: 33, ..EngineOptions::default() };
    for (n_cached_tokens, options) in [(4096, plain), (2048, pairs), (512, lookup), (2048, drafting)] {
        let (mut many, mut company) = (core(&checkpoint, n_cached_tokens, options), Recorder::default());
        for number in 0..N_REQUESTS {
            many.submit(RequestId(number), request(&tokenizer, number)).expect("sound");
        }
        finish_all(&mut many, &mut company);
        assert_eq!(company.0, alone.0, "{options:?}");
        n_preemptions += many.stats().n_preemptions;
    }
    assert!(n_preemptions > 0, "some were preempted");
}
