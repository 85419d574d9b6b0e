//! `TokenStream`: the events of one request, from the engine's thread to whoever reads them, without a runtime. The queue is bounded in
//! that a request pauses when it is full; what the step at hand still has to say is always taken.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use crate::inbox::Inbox;
use crate::request::{Event, RequestId};

/// What both ends share.
pub(crate) struct StreamQueue {
    state: Mutex<QueueState>,
    changed: Condvar,
    /// Length of the queue, to be looked at without the lock.
    n_events: AtomicUsize,
    /// When the request's turn came.
    began: OnceLock<Instant>,
}

#[derive(Default)]
struct QueueState {
    events: VecDeque<Event>,
    waker: Option<Waker>,
    /// The last event is in the queue, or was.
    is_complete: bool,
    /// The reader is gone.
    is_abandoned: bool,
}

impl StreamQueue {
    pub(crate) fn new() -> Self {
        Self { state: Mutex::default(), changed: Condvar::new(), n_events: AtomicUsize::new(0), began: OnceLock::new() }
    }

    fn lock(&self) -> MutexGuard<'_, QueueState> {
        // No user code runs under the lock, so a poisoned one is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an event; the reader hears of it at the next `wake`.
    pub(crate) fn push(&self, event: Event) {
        let mut state = self.lock();
        state.is_complete |= matches!(event, Event::Finished(_));
        if !state.is_abandoned {
            state.events.push_back(event);
            self.n_events.store(state.events.len(), Ordering::Relaxed);
        }
    }

    /// Events that nobody read yet.
    pub(crate) fn n_events(&self) -> usize {
        self.n_events.load(Ordering::Relaxed)
    }

    /// The request's turn has come.
    pub(crate) fn begin(&self, now: Instant) {
        // It comes once; preempted, a request does not wait for its turn but for room.
        let _ = self.began.set(now);
    }

    /// Tells the reader that there are events.
    pub(crate) fn wake(&self) {
        let waker = self.lock().waker.take();
        self.changed.notify_one();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// The events of one request. The last is always `Finished`. Dropping the stream before that cancels the request within one step.
pub struct TokenStream {
    id: RequestId,
    queue: Arc<StreamQueue>,
    inbox: Arc<Inbox>,
    /// At this many unread events the engine pauses the request; when half of them are read it goes on.
    n_events_max: usize,
}

impl TokenStream {
    pub(crate) fn new(id: RequestId, queue: Arc<StreamQueue>, inbox: Arc<Inbox>, n_events_max: usize) -> Self {
        Self { id, queue, inbox, n_events_max }
    }

    /// The request.
    pub fn id(&self) -> RequestId {
        self.id
    }

    /// When the engine first computed a part of the request, if it has.
    pub fn began(&self) -> Option<Instant> {
        self.queue.began.get().copied()
    }

    /// The next event; `None` after the last.
    pub fn poll_next_event(&mut self, context: &mut Context<'_>) -> Poll<Option<Event>> {
        let mut state = self.queue.lock();
        match state.events.pop_front() {
            Some(event) => {
                let n_left = state.events.len();
                drop(state);
                self.taken(n_left);
                Poll::Ready(Some(event))
            }
            None if state.is_complete => Poll::Ready(None),
            None => {
                match &mut state.waker {
                    Some(waker) => waker.clone_from(context.waker()),
                    waker => *waker = Some(context.waker().clone()),
                }
                Poll::Pending
            }
        }
    }

    /// Waits for the next event; `None` after the last.
    pub fn next_blocking(&mut self) -> Option<Event> {
        let mut state = self.queue.lock();
        loop {
            if let Some(event) = state.events.pop_front() {
                let n_left = state.events.len();
                drop(state);
                self.taken(n_left);
                return Some(event);
            }
            if state.is_complete {
                return None;
            }
            state = self.queue.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn taken(&self, n_left: usize) {
        let n_before = self.queue.n_events.swap(n_left, Ordering::Relaxed);
        let half = self.n_events_max / 2;
        if n_before > half && n_left <= half {
            self.inbox.wake();
        }
    }
}

impl futures_core::Stream for TokenStream {
    type Item = Event;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        self.get_mut().poll_next_event(context)
    }
}

impl Drop for TokenStream {
    fn drop(&mut self) {
        let is_complete = {
            let mut state = self.queue.lock();
            state.is_abandoned = true;
            state.events.clear();
            state.is_complete
        };
        if !is_complete {
            self.inbox.cancel(self.id);
        }
    }
}
