//! Several replicas of a model behind one handle: who gets what, what a lost device does, and that no token depends on it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bitnet_checkpoint::ModelConfig;
use bitnet_engine::limits::N_FAILED_IN_TURN_MAX;
use bitnet_engine::{
    EngineCore, EngineHandle, EngineOptions, Event, Fault, Generate, RequestEnd, RequestError, RequestId, SimulatedPace, SimulatedRunner,
    StartError, StepOutcome, SubmitError, TokenStream, Usage, UsageSink,
};
use bitnet_model::batch::BatchLimits;
use bitnet_model::device::DeviceError;
use bitnet_model::random::small_config;
use bitnet_model::sampler::SamplingParams;
use bitnet_model::{RunnerError, TokenId};

use crate::support::{Recorder, bare, finish_all, greedy, ids, limits, request, simulated};

/// What ends a device that computes it; no healthy request of these tests draws it ([`healthy`]).
const POISON: TokenId = TokenId(49);

fn start(runners: impl IntoIterator<Item = SimulatedRunner>) -> EngineHandle {
    EngineHandle::start_replicas(runners.into_iter().map(bare).collect(), EngineOptions::default()).expect("valid options")
}

fn paced(per_step: Duration) -> SimulatedRunner {
    simulated(256, 64).with_pace(SimulatedPace { per_step, ..SimulatedPace::default() })
}

fn all(mut stream: TokenStream) -> Vec<Event> {
    std::iter::from_fn(|| stream.next_blocking()).collect()
}

fn tokens(events: &[Event]) -> Vec<TokenId> {
    let token = |event: &Event| if let Event::Token { token_id, .. } = event { Some(*token_id) } else { None };
    events.iter().filter_map(token).collect()
}

/// Greedy, but for what ends the device.
fn healthy(n_tokens_max: usize) -> Generate {
    Generate { logit_bias: vec![(POISON, -100.0)], ..greedy(n_tokens_max) }
}

fn sampled(seed: u64) -> Generate {
    Generate::plain(SamplingParams { temperature: 1.0, seed, ..SamplingParams::default() }, 20)
}

#[test]
fn tokens_of_a_request_do_not_depend_on_the_number_of_replicas() {
    let of = |n_replicas: usize| -> Vec<Vec<TokenId>> {
        let engine = start((0..n_replicas).map(|_| paced(Duration::from_micros(100))));
        let submit = |number: u32| engine.submit(request(ids((0..20 + number).map(|id| id % 40)), sampled(u64::from(number))));
        let streams: Vec<TokenStream> = (0..24).map(|number| submit(number).expect("accepted")).collect();
        streams.into_iter().map(|stream| tokens(&all(stream))).collect()
    };
    let alone = of(1);
    assert!(alone.iter().all(|tokens| tokens.len() == 20));
    assert_eq!(of(2), alone);
    assert_eq!(of(5), alone);
}

#[test]
fn requests_are_spread_over_replicas_and_counted_together() {
    let gate = Arc::new(Mutex::new(()));
    let engine = start((0..3).map(|_| simulated(256, 64).with_gate(Arc::clone(&gate))));
    let submit = |number: u32| engine.submit(request(ids([number, number + 1]), greedy(30))).expect("accepted");
    // None ends before all are there.
    let held = gate.lock().expect("free");
    let streams: Vec<TokenStream> = (0..12).map(submit).collect();
    drop(held);
    let mut request_ids: Vec<RequestId> = streams.iter().map(TokenStream::id).collect();
    request_ids.sort_unstable();
    request_ids.dedup();
    assert_eq!(request_ids.len(), 12, "no id is given twice");
    streams.into_iter().for_each(|stream| drop(all(stream)));
    while !engine.is_idle() {
        std::thread::yield_now();
    }
    let of_each: Vec<u64> = engine.stats_of_replicas().iter().map(|stats| stats.n_finished).collect();
    assert_eq!(of_each, [4, 4, 4]);
    assert_eq!((engine.stats().n_finished, engine.stats().n_completion_tokens), (12, 360));
}

#[test]
fn second_turn_of_a_conversation_finds_its_keys_and_values() {
    let config = ModelConfig { context_length: 1024, ..small_config() };
    let limits = BatchLimits { context_length: 1024, ..limits(256, 64) };
    let engine = start((0..4).map(|_| SimulatedRunner::new(config.clone(), limits)));
    let mut cached = Vec::new();
    // Between the turns of one, others come: without affinity, all four replicas would be asked in turn.
    for length in [256, 384, 512] {
        for first in [1, 2, 3] {
            let events = all(engine.submit(request(ids((0..length).map(|id| (id * first) % 40)), greedy(2))).expect("accepted"));
            if let Event::Started { n_cached_tokens, .. } = events[0] {
                cached.push(n_cached_tokens);
            }
        }
    }
    assert_eq!(cached[..3], [0; 3]);
    assert!(cached[3..6].iter().all(|&n| n >= 240) && cached[6..].iter().all(|&n| n >= 368), "{cached:?}");
}

#[test]
fn step_that_loses_the_device_fails_everybody_once_and_tells_one_why() {
    let mut core = EngineCore::new(bare(simulated(64, 64).with_fault(POISON, Fault::Lost)), EngineOptions::default()).expect("valid");
    let mut recorder = Recorder::default();
    for id in 0..3 {
        core.submit(RequestId(id), request(ids([1, 2]), greedy(50))).expect("sound");
    }
    core.submit(RequestId(3), request(vec![TokenId(1), POISON], greedy(5))).expect("sound");
    assert_eq!(core.step(Instant::now(), &mut recorder), StepOutcome::Lost);
    assert_eq!((core.n_live(), core.stats().n_used_blocks), (0, 0));
    for id in 0..4 {
        let [.., Event::Failed(error), Event::Finished(_)] = &recorder.events[&RequestId(id)][..] else { panic!("{id} has no end") };
        let hears_why = matches!(error, RequestError::Runner(RunnerError::Device(DeviceError::Lost { .. })));
        assert!(if id == 0 { hears_why } else { *error == RequestError::Broken }, "{id}: {error:?}");
    }
    core.submit(RequestId(4), request(ids([1]), greedy(5))).expect("sound");
    finish_all(&mut core, &mut recorder);
    assert!(matches!(recorder.events[&RequestId(4)][..], [Event::Failed(_), Event::Finished(_)]), "and so does every later step");
}

#[test]
fn who_waited_when_the_device_was_lost_has_used_nothing() {
    let options = EngineOptions { n_running_max: 1, ..EngineOptions::default() };
    let mut core = EngineCore::new(bare(simulated(64, 64).with_fault(POISON, Fault::Lost)), options).expect("valid");
    let mut recorder = Recorder::default();
    core.submit(RequestId(0), request(vec![TokenId(1), POISON], greedy(5))).expect("sound");
    for id in 1..4 {
        core.submit(RequestId(id), request(ids(0..30), greedy(5))).expect("sound");
    }
    assert_eq!(core.step(Instant::now(), &mut recorder), StepOutcome::Lost);
    for id in 1..4 {
        let [Event::Failed(_), Event::Finished(usage)] = recorder.events[&RequestId(id)][..] else { panic!("{id} has no end") };
        assert_eq!(usage, Usage::default());
    }
}

#[test]
fn device_that_fails_whatever_it_is_given_is_taken_for_lost() {
    let mut core = EngineCore::new(bare(simulated(64, 64).with_fault(POISON, Fault::Error)), EngineOptions::default()).expect("valid");
    let mut recorder = Recorder::default();
    let n_failing = N_FAILED_IN_TURN_MAX as u64;
    for id in 0..=n_failing {
        core.submit(RequestId(id), request(vec![TokenId(1), POISON], greedy(5))).expect("sound");
        let outcome = core.step(Instant::now(), &mut recorder);
        assert_eq!(outcome == StepOutcome::Lost, id == n_failing, "{id}: {outcome:?}");
    }
    assert_eq!(core.n_live(), 0);
}

struct Bill(Arc<AtomicU64>);

impl UsageSink for Bill {
    fn finished(self: Box<Self>, _: RequestId, _: Usage, _: RequestEnd) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn lost_replica_ends_its_requests_and_no_others() {
    let gate = Arc::new(Mutex::new(()));
    let gated = || simulated(256, 64).with_gate(Arc::clone(&gate));
    let whole = start([gated()]);
    let undisturbed = tokens(&all(whole.submit(request(ids([3, 4]), healthy(120))).expect("accepted")));
    let engine = start([gated().with_fault(POISON, Fault::Lost), gated()]);
    let n_billed = Arc::new(AtomicU64::new(0));
    let billed = |prompt: Vec<TokenId>, n_tokens: usize| {
        let mut new = request(prompt, healthy(n_tokens));
        new.usage_sink = Some(Box::new(Bill(Arc::clone(&n_billed))));
        engine.submit(new).expect("accepted")
    };
    // They take turns, and none ends before all are there: the first, third and fifth go to replica 0.
    let held = gate.lock().expect("free");
    let [first, healthy, third, other] = [0, 1, 2, 3].map(|_| billed(ids([3, 4]), 120));
    let poisoned = billed(vec![TokenId(1), POISON], 5);
    drop(held);
    let poisoned = all(poisoned);
    assert!(matches!(poisoned[..], [Event::Failed(_), Event::Finished(_)]), "{poisoned:?}");
    for affected in [first, third] {
        let events = all(affected);
        let [.., Event::Failed(_), Event::Finished(usage)] = &events[..] else { panic!("{events:?}") };
        assert_eq!(usage.n_completion_tokens, tokens(&events).len(), "what it got is told");
    }
    assert_eq!(tokens(&all(healthy)), undisturbed);
    assert_eq!(tokens(&all(other)), undisturbed);
    assert_eq!((engine.n_replicas(), engine.n_broken_replicas(), engine.is_broken()), (2, 1, false));
    for _ in 0..4 {
        assert_eq!(tokens(&all(billed(ids([3, 4]), 20))), undisturbed[..20], "the other answers for both");
    }
    assert_eq!(n_billed.load(Ordering::Relaxed), 9, "everybody is settled once");
    engine.shutdown();
}

#[test]
fn engine_whose_every_replica_is_lost_is_broken() {
    let engine = start((0..2).map(|_| simulated(64, 64).with_fault(POISON, Fault::Lost)));
    for n_broken in 1..=2 {
        assert!(!engine.is_broken());
        let events = all(engine.submit(request(vec![TokenId(1), POISON], greedy(5))).expect("one is left"));
        assert!(matches!(events[..], [Event::Failed(_), Event::Finished(_)]), "{events:?}");
        assert_eq!(engine.n_broken_replicas(), n_broken, "known before anybody hears of it");
    }
    assert!(engine.is_broken());
    assert!(matches!(engine.submit(request(ids([1]), greedy(5))), Err(SubmitError::Broken)));
    assert!(matches!(engine.check_room(crate::support::tenant(1)), Err(SubmitError::Broken)));
}

#[test]
fn request_goes_where_there_is_room() {
    let options = EngineOptions { n_waiting_max: 4, n_running_max: 1, ..EngineOptions::default() };
    let slow = || bare(paced(Duration::from_millis(20)));
    let engine = EngineHandle::start_replicas(vec![slow(), slow()], options).expect("valid options");
    let mut streams = Vec::new();
    // One prompt, which would go where it was read before: two wait there at most, and then it goes elsewhere.
    let refused = loop {
        match engine.submit(request(ids((0..40).cycle().take(100)), greedy(500))) {
            Ok(stream) => streams.push(stream),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, SubmitError::QueueFull { .. }), "{refused:?}");
    assert!((4..=6).contains(&streams.len()), "{} taken", streams.len());
    assert_eq!(engine.stats().n_refused, 1);
}

#[test]
fn replicas_that_differ_are_refused() {
    let start = |models| EngineHandle::start_replicas(models, EngineOptions::default()).err();
    assert!(matches!(start(Vec::new()), Some(StartError::Replicas { got: 0, .. })));
    let differing = start(vec![bare(simulated(64, 64)), bare(simulated(32, 64))]);
    assert_eq!(differing, Some(StartError::ReplicaDiffers { name: "n_blocks", expected: 64, got: 32 }));
}
