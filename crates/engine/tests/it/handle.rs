//! `EngineHandle` on its thread: streams, cancellation, refusal, drain.

use std::time::Duration;

use bitnet_engine::{
    EngineHandle, EngineOptions, Event, FinishReason, Request, RequestError, SimulatedPace, SubmitError, TenantSalt, Usage,
};

use crate::support::{bare, greedy, ids, request, simulated};

fn start(options: EngineOptions) -> EngineHandle {
    EngineHandle::start(bare(simulated(64, 64)), options).expect("valid options")
}

fn wait_until(condition: impl Fn() -> bool) {
    let start = std::time::Instant::now();
    while !condition() {
        assert!(start.elapsed().as_secs() < 20, "it never comes to that");
        std::thread::yield_now();
    }
}

#[test]
fn stream_of_a_request_begins_with_started_and_ends_with_usage() {
    let engine = start(EngineOptions::default());
    let mut stream = engine.submit(request(ids(0..20), greedy(5))).expect("accepted");
    let events: Vec<Event> = std::iter::from_fn(|| stream.next_blocking()).collect();
    assert_eq!(events[0], Event::Started { n_cached_tokens: 0, prompt_logprobs: None });
    assert_eq!(events.iter().filter(|event| matches!(event, Event::Token { .. })).count(), 5);
    assert_eq!(events[6], Event::ChoiceFinished { choice: 0, reason: FinishReason::Length, text: String::new() });
    assert_eq!(events[7], Event::Finished(Usage { n_prompt_tokens: 20, n_cached_tokens: 0, n_completion_tokens: 5 }));
    assert_eq!(events.len(), 8);
    assert_eq!(stream.next_blocking(), None);
}

#[test]
fn dropped_stream_frees_its_blocks() {
    let engine = start(EngineOptions { n_stream_events_max: 4, ..EngineOptions::default() });
    let stream = engine.submit(request(ids(0..20), greedy(100))).expect("accepted");
    wait_until(|| engine.stats().n_used_blocks > 0);
    drop(stream);
    wait_until(|| engine.is_idle());
    let stats = engine.stats();
    assert_eq!((stats.n_used_blocks, stats.n_cancelled, stats.n_running), (0, 1, 0));
}

#[test]
fn slow_reader_pauses_its_request_and_loses_nothing() {
    let engine = start(EngineOptions { n_stream_events_max: 4, ..EngineOptions::default() });
    let mut slow = engine.submit(request(ids(0..20), greedy(60))).expect("accepted");
    let mut fast = engine.submit(request(ids(0..20), greedy(60))).expect("accepted");
    let of = |events: Vec<Event>| events.into_iter().filter(|event| matches!(event, Event::Token { .. })).collect::<Vec<_>>();
    let fast = of(std::iter::from_fn(|| fast.next_blocking()).collect());
    assert!(engine.stats().n_completion_tokens < 80, "the slow one waits");
    assert_eq!(of(std::iter::from_fn(|| slow.next_blocking()).collect()), fast);
}

#[test]
fn drained_engine_refuses_new_requests_and_finishes_old_ones() {
    let engine = start(EngineOptions::default());
    let mut stream = engine.submit(request(ids(0..20), greedy(50))).expect("accepted");
    engine.drain();
    assert!(matches!(engine.submit(request(ids(0..3), greedy(1))), Err(SubmitError::Draining)));
    let last = std::iter::from_fn(|| stream.next_blocking()).last();
    assert!(matches!(last, Some(Event::Finished(Usage { n_completion_tokens: 50, .. }))));
    wait_until(|| engine.is_idle());
}

#[test]
fn shutdown_fails_what_is_left_and_says_so() {
    let engine = start(EngineOptions { n_stream_events_max: 1, ..EngineOptions::default() });
    let mut stream = engine.submit(request(ids(0..20), greedy(100))).expect("accepted");
    engine.shutdown();
    let events: Vec<Event> = std::iter::from_fn(|| stream.next_blocking()).collect();
    assert!(matches!(events[events.len() - 2..], [Event::Failed(RequestError::Shutdown), Event::Finished(_)]));
    assert!(matches!(engine.submit(request(ids(0..3), greedy(1))), Err(SubmitError::Draining)));
}

#[test]
fn full_queue_refuses_with_a_time_to_wait() {
    let options = EngineOptions { n_waiting_max: 2, n_running_max: 1, n_stream_events_max: 1, ..EngineOptions::default() };
    let engine = start(options);
    let mut streams = Vec::new();
    let refused = loop {
        match engine.submit(request(ids(0..20), greedy(100))) {
            Ok(stream) => streams.push(stream),
            Err(error) => break error,
        }
        assert!(streams.len() < 10_000, "nobody reads, so the queue fills");
    };
    assert!(matches!(refused, SubmitError::QueueFull { retry_after } if !retry_after.is_zero()));
    assert!(engine.stats().n_refused >= 1);
}

#[test]
fn tenant_that_fills_the_waiting_room_keeps_nobody_out() {
    let pace = SimulatedPace { per_step: Duration::from_millis(5), ..SimulatedPace::default() };
    let options = EngineOptions { n_running_max: 1, n_waiting_max: 8, ..EngineOptions::default() };
    let engine = EngineHandle::start(bare(simulated(64, 64).with_pace(pace)), options).expect("valid options");
    let of = |name: u8| Request { tenant: TenantSalt([name; 32]), ..request(ids(0..20), greedy(100)) };
    let mut streams = vec![engine.submit(of(1)).expect("the first")];
    wait_until(|| engine.stats().n_running == 1);
    // Alone, it may fill the room.
    streams.extend((0..8).map(|_| engine.submit(of(1)).expect("there is room")));
    assert!(matches!(engine.submit(of(1)), Err(SubmitError::QueueFull { .. })));
    // Another has its share all the same, and no more than that.
    streams.extend((0..4).map(|_| engine.submit(of(2)).expect("its share")));
    assert!(matches!(engine.submit(of(2)), Err(SubmitError::TenantShare { n_waiting: 4, n_tenants: 2, .. })));
    assert!(matches!(engine.check_room(TenantSalt([1; 32])), Err(SubmitError::TenantShare { n_waiting: 8, n_tenants: 2, .. })));
    assert!(engine.check_room(TenantSalt([3; 32])).is_ok());
    drop(streams);
    wait_until(|| engine.is_idle());
    engine.check_room(TenantSalt([1; 32])).expect("the room is empty");
}

struct Breaking;

impl std::task::Wake for Breaking {
    fn wake(self: std::sync::Arc<Self>) {
        std::panic::panic_any("planted");
    }
}

#[test]
fn engine_that_breaks_down_says_so_and_leaves_no_stream_without_an_end() {
    let pace = SimulatedPace { per_step: Duration::from_millis(2), ..SimulatedPace::default() };
    let engine = EngineHandle::start(bare(simulated(64, 64).with_pace(pace)), EngineOptions::default()).expect("valid options");
    let mut neighbour = engine.submit(request(ids(0..20), greedy(1000))).expect("accepted");
    let mut breaking = engine.submit(request(ids(0..20), greedy(1000))).expect("accepted");
    assert!(!engine.is_broken());
    let waker = std::task::Waker::from(std::sync::Arc::new(Breaking));
    // Nothing that a request does ends the engine; a waker is not a request's.
    while breaking.poll_next_event(&mut std::task::Context::from_waker(&waker)).is_ready() {}
    let events: Vec<Event> = std::iter::from_fn(|| neighbour.next_blocking()).collect();
    let [.., Event::Failed(RequestError::Broken), Event::Finished(usage)] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!(usage.n_prompt_tokens, 20, "what it used is told");
    assert!(engine.is_broken());
    assert!(matches!(engine.submit(request(ids(0..3), greedy(1))), Err(SubmitError::Broken)));
    assert!(engine.is_idle());
}
