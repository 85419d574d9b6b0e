//! What one request does to others: nothing. Panics, failed devices, damaged rows, dropped readers, models that come and go.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bitnet_engine::{
    EngineCore, EngineHandle, EngineOptions, Event, Fault, ModelPool, PoolError, RequestEnd, RequestError, RequestId, SubmitError, Usage,
    UsageSink,
};
use bitnet_model::{RunnerError, TokenId};

use crate::support::{Recorder, bare, finish_all, greedy, ids, quiet_planted_panics, request, simulated};

fn neighbours(core: &mut EngineCore, recorder: &mut Recorder) {
    for number in 0..7u32 {
        core.submit(RequestId(u64::from(number)), request(ids((0..20 + number).map(|id| id % 40)), greedy(20))).expect("sound");
    }
    finish_all(core, recorder);
}

#[test]
fn fault_of_one_request_leaves_its_neighbours_bit_equal() {
    quiet_planted_panics();
    let mut undisturbed = Recorder::default();
    let core = |runner| EngineCore::new(bare(runner), EngineOptions::default()).expect("valid options");
    neighbours(&mut core(simulated(64, 64)), &mut undisturbed);
    for fault in [Fault::Panic, Fault::Error, Fault::NotFinite] {
        // Token 49 is in no neighbour's prompt; a neighbour that draws it by itself fails in its own right.
        let mut core = core(simulated(64, 64).with_fault(TokenId(49), fault));
        let mut recorder = Recorder::default();
        core.submit(RequestId(100), request(ids([1, 2, 49]), greedy(20))).expect("sound");
        core.submit(RequestId(101), request(ids([1, 49, 49]), greedy(20))).expect("sound");
        neighbours(&mut core, &mut recorder);
        for culprit in [100, 101] {
            let [Event::Failed(error), Event::Finished(_)] = &recorder.events[&RequestId(culprit)][..] else { panic!("{fault:?}") };
            match fault {
                Fault::Panic => assert_eq!(error, &RequestError::Panicked),
                Fault::Error => assert!(matches!(error, RequestError::Runner(RunnerError::Device(_)))),
                Fault::NotFinite => assert!(matches!(error, RequestError::Runner(RunnerError::NotFinite { .. }))),
                Fault::Lost => unreachable!("it is nobody's alone: tests of replicas plant it"),
            }
        }
        let draws_poison = |events: &[Event]| events.iter().any(|event| matches!(event, Event::Token { token_id: TokenId(49), .. }));
        let healthy: Vec<u64> = (0..7).filter(|&id| !draws_poison(&undisturbed.events[&RequestId(id)])).collect();
        assert!(healthy.len() >= 3);
        for id in healthy {
            assert_eq!(recorder.events[&RequestId(id)], undisturbed.events[&RequestId(id)], "{fault:?}");
        }
        assert_eq!((core.n_live(), core.stats().n_used_blocks), (0, 0));
    }
}

#[test]
fn prompt_that_panicked_twice_is_refused() {
    quiet_planted_panics();
    let runner = simulated(64, 64).with_fault(TokenId(49), Fault::Panic);
    let mut core = EngineCore::new(bare(runner), EngineOptions::default()).expect("valid options");
    let mut recorder = Recorder::default();
    for id in 0..2 {
        core.submit(RequestId(id), request(ids([1, 49]), greedy(5))).expect("it gets a second try");
        finish_all(&mut core, &mut recorder);
    }
    let refused = core.submit(RequestId(2), request(ids([1, 49]), greedy(5)));
    assert!(matches!(refused, Err(SubmitError::Quarantined { n_panics: 2 })));
    core.submit(RequestId(3), request(ids([1, 48]), greedy(5))).expect("others are not");
}

#[test]
fn prompt_that_panicked_many_times_at_once_is_refused() {
    quiet_planted_panics();
    let runner = simulated(64, 64).with_fault(TokenId(49), Fault::Panic);
    let mut core = EngineCore::new(bare(runner), EngineOptions::default()).expect("valid options");
    for id in 0..5 {
        core.submit(RequestId(id), request(ids([1, 49]), greedy(5))).expect("none has panicked yet");
    }
    finish_all(&mut core, &mut Recorder::default());
    let refused = core.submit(RequestId(5), request(ids([1, 49]), greedy(5)));
    assert!(matches!(refused, Err(SubmitError::Quarantined { .. })), "{refused:?}");
}

struct Bill(Arc<AtomicU64>);

impl UsageSink for Bill {
    fn finished(self: Box<Self>, _: RequestId, _: Usage, _: RequestEnd) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn hundred_thousand_dropped_streams_leave_nothing_behind_and_are_all_billed() {
    let options = EngineOptions { n_stream_events_max: 8, n_waiting_max: 4096, ..EngineOptions::default() };
    let engine = EngineHandle::start(bare(simulated(64, 128)), options).expect("valid options");
    let n_billed = Arc::new(AtomicU64::new(0));
    let mut n_accepted = 0u64;
    let mut kept = Vec::new();
    while n_accepted < 100_000 {
        let mut new = request(ids((0..1 + n_accepted as u32 % 40).map(|id| id % 50)), greedy(30));
        new.usage_sink = Some(Box::new(Bill(Arc::clone(&n_billed))));
        match engine.submit(new) {
            Ok(mut stream) => {
                n_accepted += 1;
                // Some are dropped at once, some after their first words, some at the end.
                match n_accepted % 64 {
                    0 => drop(std::iter::from_fn(|| stream.next_blocking()).last()),
                    1..8 => drop(stream.next_blocking()),
                    8..12 => kept.push(stream),
                    _ => {}
                }
                if kept.len() > 32 {
                    kept.clear();
                }
            }
            Err(SubmitError::QueueFull { .. }) => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
    kept.clear();
    engine.drain();
    while !engine.is_idle() {
        std::thread::yield_now();
    }
    let stats = engine.stats();
    assert_eq!((stats.n_used_blocks, stats.n_running, stats.n_waiting), (0, 0, 0));
    assert_eq!(n_billed.load(Ordering::Relaxed), n_accepted);
    assert_eq!(stats.n_finished + stats.n_cancelled, n_accepted);
}

#[test]
fn models_come_and_go_under_load() {
    let engine = || EngineHandle::start(bare(simulated(32, 64)), EngineOptions::default()).expect("valid options");
    let pool = Arc::new(ModelPool::default());
    pool.load("steady", engine()).expect("room");
    let is_over = Arc::new(AtomicBool::new(false));
    let load = {
        let (pool, is_over) = (Arc::clone(&pool), Arc::clone(&is_over));
        std::thread::spawn(move || {
            let mut n_served = 0;
            while !is_over.load(Ordering::Relaxed) {
                for name in ["steady", "guest"] {
                    let Ok(engine) = pool.get(name) else { continue };
                    let Ok(mut stream) = engine.submit(request(ids(0..10), greedy(5))) else { continue };
                    let last = std::iter::from_fn(|| stream.next_blocking()).last();
                    assert!(matches!(last, Some(Event::Finished(Usage { n_completion_tokens: 5, .. }))), "{name}: {last:?}");
                    n_served += 1;
                }
            }
            n_served
        })
    };
    for _ in 0..50 {
        pool.load("guest", engine()).expect("room");
        assert_eq!(pool.load("guest", engine()), Err(PoolError::NameTaken { name: "guest".into() }));
        assert_eq!(pool.names(), ["guest", "steady"]);
        let guest = pool.unload("guest").expect("it is there");
        while !guest.is_idle() {
            std::thread::yield_now();
        }
        guest.shutdown();
    }
    is_over.store(true, Ordering::Relaxed);
    assert!(load.join().expect("no panic") > 0);
    assert!(matches!(pool.get("guest"), Err(SubmitError::UnknownModel { .. })));
    assert_eq!(pool.unload("guest").err(), Some(PoolError::UnknownModel { name: "guest".into() }));
    assert!(matches!(pool.load("", engine()), Err(PoolError::BadName { .. })));
}
