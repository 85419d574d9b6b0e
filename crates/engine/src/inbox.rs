//! What the engine's thread is told between steps: new requests, cancellations, and that it should end. Nobody waits here but that
//! thread.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::admission::Prepared;
use crate::error::SubmitError;
use crate::request::RequestId;
use crate::stream::StreamQueue;

/// An accepted request on its way to the engine.
pub(crate) struct Arrived {
    pub(crate) id: RequestId,
    pub(crate) prepared: Prepared,
    pub(crate) queue: Arc<StreamQueue>,
}

/// How far the engine's life is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) enum Phase {
    #[default]
    Open,
    /// It takes no new requests and finishes those it has.
    Draining,
    /// It gives up what it has and ends.
    Stopping,
    Stopped,
}

/// Messages since the engine last looked.
#[derive(Default)]
pub(crate) struct Mail {
    pub(crate) arrived: Vec<Arrived>,
    pub(crate) cancelled: Vec<RequestId>,
}

#[derive(Default)]
struct InboxState {
    mail: Mail,
    phase: Phase,
    is_awake: bool,
    /// Requests that wait in the engine, as it last said.
    n_waiting: usize,
    n_refused: u64,
    last_id: u64,
}

/// Letter box of one engine.
pub(crate) struct Inbox {
    state: Mutex<InboxState>,
    changed: Condvar,
    n_waiting_max: usize,
}

impl Inbox {
    pub(crate) fn new(n_waiting_max: usize) -> Self {
        Self { state: Mutex::default(), changed: Condvar::new(), n_waiting_max }
    }

    fn lock(&self) -> MutexGuard<'_, InboxState> {
        // No user code runs under the lock, so a poisoned one is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a request would be taken now. Asked before the work of preparing it is done.
    pub(crate) fn check(&self, retry_after: Duration) -> Result<(), SubmitError> {
        self.check_state(&mut self.lock(), retry_after)
    }

    fn check_state(&self, state: &mut InboxState, retry_after: Duration) -> Result<(), SubmitError> {
        if state.phase > Phase::Open {
            return Err(SubmitError::Draining);
        }
        if state.n_waiting + state.mail.arrived.len() >= self.n_waiting_max {
            state.n_refused += 1;
            return Err(SubmitError::QueueFull { retry_after });
        }
        Ok(())
    }

    /// Takes a request, if there is room.
    pub(crate) fn submit(&self, prepared: Prepared, retry_after: Duration) -> Result<(RequestId, Arc<StreamQueue>), SubmitError> {
        let mut state = self.lock();
        self.check_state(&mut state, retry_after)?;
        state.last_id += 1;
        let (id, queue) = (RequestId(state.last_id), Arc::new(StreamQueue::new()));
        state.mail.arrived.push(Arrived { id, prepared, queue: Arc::clone(&queue) });
        self.notify(state);
        Ok((id, queue))
    }

    /// The reader of a request is gone.
    pub(crate) fn cancel(&self, id: RequestId) {
        let mut state = self.lock();
        if state.phase < Phase::Stopped {
            state.mail.cancelled.push(id);
            self.notify(state);
        }
    }

    /// Makes the engine look again.
    pub(crate) fn wake(&self) {
        self.notify(self.lock());
    }

    /// Moves on to a later phase.
    pub(crate) fn advance(&self, phase: Phase) {
        let mut state = self.lock();
        state.phase = state.phase.max(phase);
        self.notify(state);
    }

    pub(crate) fn phase(&self) -> Phase {
        self.lock().phase
    }

    fn notify(&self, mut state: MutexGuard<'_, InboxState>) {
        state.is_awake = true;
        drop(state);
        self.changed.notify_one();
    }

    /// Takes what has come, without waiting.
    pub(crate) fn take(&self) -> (Mail, Phase) {
        let mut state = self.lock();
        state.is_awake = false;
        let mail = std::mem::take(&mut state.mail);
        state.n_waiting += mail.arrived.len();
        (mail, state.phase)
    }

    /// Takes down how many requests wait in the engine.
    pub(crate) fn report_waiting(&self, n_waiting: usize) {
        self.lock().n_waiting = n_waiting;
    }

    /// Waits until something has come since the last `take`, or for `timeout`.
    pub(crate) fn wait(&self, timeout: Option<Duration>) {
        let state = self.lock();
        let is_asleep = |state: &mut InboxState| !state.is_awake;
        match timeout {
            Some(timeout) => drop(self.changed.wait_timeout_while(state, timeout, is_asleep)),
            None => drop(self.changed.wait_while(state, is_asleep)),
        }
    }

    /// Requests that wait, and how many were refused for want of room.
    pub(crate) fn n_waiting_and_refused(&self) -> (usize, u64) {
        let state = self.lock();
        (state.n_waiting + state.mail.arrived.len(), state.n_refused)
    }
}
