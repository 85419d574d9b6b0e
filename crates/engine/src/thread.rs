//! The engine's thread: takes the mail, steps, passes events on, publishes counts. The only place of the crate that looks at a clock.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::engine::{EngineCore, EventSink, StepOutcome};
use crate::error::RequestError;
use crate::inbox::{Inbox, Mail, Phase};
use crate::request::{Event, RequestId, TenantSalt, Usage};
use crate::stats::EngineStats;
use crate::stream::StreamQueue;

/// Shortest and longest time that a refused client is told to wait.
const RETRY_AFTER: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// What the thread tells of itself.
#[derive(Default)]
pub(crate) struct Published {
    stats: Mutex<EngineStats>,
    n_live: AtomicUsize,
    /// Smoothed time between two ends of requests.
    request_time_us: AtomicU64,
}

impl Published {
    pub(crate) fn stats(&self) -> EngineStats {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn n_live(&self) -> usize {
        self.n_live.load(Ordering::Acquire)
    }

    /// A few ends of requests from now.
    pub(crate) fn retry_after(&self) -> Duration {
        Duration::from_micros(4 * self.request_time_us.load(Ordering::Relaxed)).clamp(RETRY_AFTER.0, RETRY_AFTER.1)
    }
}

/// Streams of live requests.
struct Streams {
    queues: HashMap<RequestId, Reader>,
    /// Tenants of requests that wait no more, once for each.
    served: Vec<TenantSalt>,
    /// Requests that ended since the inbox was told.
    n_ended: usize,
    /// Those that were sent something since the last flush.
    touched: Vec<(RequestId, Arc<StreamQueue>)>,
    n_events_max: usize,
}

/// Who hears of a request.
struct Reader {
    queue: Arc<StreamQueue>,
    /// Whose it is, while it waits for its turn.
    waits_for: Option<TenantSalt>,
}

impl EventSink for Streams {
    fn send(&mut self, id: RequestId, event: Event) {
        let is_last = matches!(event, Event::Finished(_));
        if let Some(Reader { queue, .. }) = self.queues.get(&id) {
            queue.push(event);
            if self.touched.last().is_none_or(|(last, _)| *last != id) {
                self.touched.push((id, Arc::clone(queue)));
            }
        }
        if is_last {
            let reader = self.queues.remove(&id);
            self.n_ended += usize::from(reader.is_some());
            self.served.extend(reader.and_then(|reader| reader.waits_for));
        }
    }

    fn began(&mut self, id: RequestId) {
        if let Some(reader) = self.queues.get_mut(&id) {
            reader.queue.begin(Instant::now());
            self.served.extend(reader.waits_for.take());
        }
    }

    fn has_room(&self, id: RequestId) -> bool {
        self.queues.get(&id).is_none_or(|reader| reader.queue.n_events() < self.n_events_max)
    }
}

impl Streams {
    fn flush(&mut self) {
        self.touched.drain(..).for_each(|(_, queue)| queue.wake());
    }
}

/// An engine and its correspondence.
pub(crate) struct EngineThread {
    core: EngineCore,
    inbox: Arc<Inbox>,
    published: Arc<Published>,
    streams: Streams,
    /// When a request last ended, and how many had by then.
    last_end: Instant,
    n_ended: u64,
}

impl EngineThread {
    pub(crate) fn new(core: EngineCore, inbox: Arc<Inbox>, published: Arc<Published>, n_events_max: usize) -> Self {
        let streams = Streams { queues: HashMap::new(), served: Vec::new(), n_ended: 0, touched: Vec::new(), n_events_max };
        Self { core, inbox, published, streams, last_end: Instant::now(), n_ended: 0 }
    }

    /// Serves until told to stop, or until the device is lost. Whatever breaks here that belongs to no request is the end of the engine, and everybody hears of it.
    pub(crate) fn run(mut self) {
        if catch_unwind(AssertUnwindSafe(|| self.serve())).is_err() {
            self.break_down();
        }
    }

    fn serve(&mut self) {
        loop {
            let (mail, phase) = self.inbox.take();
            self.sort(mail);
            if phase >= Phase::Stopping {
                break;
            }
            let now = Instant::now();
            let outcome = catch_unwind(AssertUnwindSafe(|| self.core.step(now, &mut self.streams)));
            let outcome = outcome.unwrap_or_else(|_| {
                // Not one request's work but the engine's own failed. Its state may be wrong: everybody starts anew.
                self.core.fail_all(&RequestError::Panicked, &mut self.streams);
                StepOutcome::Idle
            });
            if outcome == StepOutcome::Lost {
                // Before anybody hears of it: who tries again at once is not sent here.
                self.inbox.advance(Phase::Broken);
            }
            self.publish(now, outcome);
            self.streams.flush();
            if outcome == StepOutcome::Lost {
                return self.break_down();
            }
            if outcome == StepOutcome::Idle {
                let timeout = self.core.next_deadline().map(|deadline| deadline.saturating_duration_since(now));
                self.inbox.wait(timeout);
                // A pause without work says nothing of how long requests take.
                self.last_end = Instant::now();
            }
        }
        self.stop();
    }

    fn sort(&mut self, mail: Mail) {
        for arrived in mail.arrived {
            let reader = Reader { queue: arrived.queue, waits_for: Some(arrived.prepared.request.tenant) };
            self.streams.queues.insert(arrived.id, reader);
            self.core.enqueue(arrived.id, arrived.prepared);
        }
        for id in mail.cancelled {
            self.core.cancel(id, &mut self.streams);
        }
    }

    fn publish(&mut self, start: Instant, outcome: StepOutcome) {
        let end = Instant::now();
        if matches!(outcome, StepOutcome::Computed { .. }) {
            self.core.record_step(end - start);
        }
        let stats = self.core.stats();
        let n_ended = stats.n_finished + stats.n_failed + stats.n_expired + stats.n_cancelled;
        let since = u64::try_from((end - self.last_end).as_micros()).unwrap_or(u64::MAX);
        if let Some(each) = since.checked_div(n_ended - self.n_ended) {
            let smoothed = self.published.request_time_us.load(Ordering::Relaxed).saturating_mul(7).saturating_add(each) / 8;
            self.published.request_time_us.store(smoothed, Ordering::Relaxed);
            (self.last_end, self.n_ended) = (end, n_ended);
        }
        self.publish_stats(stats);
    }

    fn publish_stats(&mut self, stats: EngineStats) {
        // Live before it waits no more, so that no request is ever neither (`EngineHandle::is_idle`).
        self.published.n_live.store(self.core.n_live(), Ordering::Release);
        self.inbox.report_waiting(stats.n_waiting, self.streams.served.drain(..));
        self.inbox.report_ended(std::mem::take(&mut self.streams.n_ended));
        *self.published.stats.lock().unwrap_or_else(PoisonError::into_inner) = stats;
    }

    /// Nothing is computed any more. Usage is reported as far as the engine still can, and no stream is left without an end.
    fn break_down(&mut self) {
        self.inbox.advance(Phase::Broken);
        let (mail, _) = self.inbox.take();
        let told = catch_unwind(AssertUnwindSafe(|| {
            self.sort(mail);
            self.core.fail_all(&RequestError::Broken, &mut self.streams);
            self.publish_stats(self.core.stats());
        }));
        let left: Vec<RequestId> = self.streams.queues.keys().copied().collect();
        for id in left {
            self.streams.send(id, Event::Failed(RequestError::Broken));
            self.streams.send(id, Event::Finished(Usage::default()));
        }
        self.inbox.report_ended(std::mem::take(&mut self.streams.n_ended));
        if told.is_err() {
            self.published.n_live.store(0, Ordering::Release);
            self.inbox.report_waiting(0, self.streams.served.drain(..));
        }
        for (_, queue) in self.streams.touched.drain(..) {
            // It may be a reader's own waker that broke the engine.
            drop(catch_unwind(AssertUnwindSafe(|| queue.wake())));
        }
    }

    /// Takes leave of everybody, those who came last among them.
    fn stop(&mut self) {
        self.core.fail_all(&RequestError::Shutdown, &mut self.streams);
        self.inbox.advance(Phase::Stopped);
        let (mail, _) = self.inbox.take();
        self.sort(mail);
        self.core.fail_all(&RequestError::Shutdown, &mut self.streams);
        self.publish_stats(self.core.stats());
        self.streams.flush();
    }
}
