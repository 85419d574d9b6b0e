//! What the engine's thread is told between steps: new requests, cancellations, and that it should end. Nobody waits here but that
//! thread.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::admission::Prepared;
use crate::error::SubmitError;
use crate::request::{RequestId, TenantSalt};
use crate::stream::StreamQueue;

/// An accepted request on its way to the engine.
pub(crate) struct Arrived {
    pub(crate) id: RequestId,
    pub(crate) prepared: Prepared,
    pub(crate) queue: Arc<StreamQueue>,
}

/// A request that was not taken, which another engine may take.
pub(crate) struct Refused {
    pub(crate) prepared: Box<Prepared>,
    pub(crate) error: SubmitError,
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
    /// Its thread ended by a panic, or its device is lost.
    Broken,
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
    /// Of each tenant, those that came and whose turn has not come yet.
    waiting_of: HashMap<TenantSalt, usize>,
    n_refused: u64,
    /// Requests taken that have not ended.
    n_unfinished: usize,
    next_id: u64,
}

/// Letter box of one engine.
pub(crate) struct Inbox {
    state: Mutex<InboxState>,
    changed: Condvar,
    n_waiting_max: usize,
    ids: IdSeries,
}

/// Which ids requests get: those of a model's replicas are all different.
#[derive(Debug, Clone, Copy)]
pub(crate) struct IdSeries {
    pub(crate) first: u64,
    pub(crate) step: u64,
}

impl Inbox {
    pub(crate) fn new(n_waiting_max: usize, ids: IdSeries) -> Self {
        let state = InboxState { next_id: ids.first, ..InboxState::default() };
        Self { state: Mutex::new(state), changed: Condvar::new(), n_waiting_max, ids }
    }

    fn lock(&self) -> MutexGuard<'_, InboxState> {
        // No user code runs under the lock, so a poisoned one is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a request would be taken now. Asked before the work of preparing it is done.
    pub(crate) fn check(&self, tenant: TenantSalt, retry_after: Duration) -> Result<(), SubmitError> {
        self.check_state(&mut self.lock(), tenant, retry_after)
    }

    /// The same, and nothing is counted: another replica may take the request.
    pub(crate) fn has_room(&self, tenant: TenantSalt, retry_after: Duration) -> Result<(), SubmitError> {
        self.room(&self.lock(), tenant, retry_after)
    }

    fn check_state(&self, state: &mut InboxState, tenant: TenantSalt, retry_after: Duration) -> Result<(), SubmitError> {
        let room = self.room(state, tenant, retry_after);
        state.n_refused += u64::from(matches!(room, Err(SubmitError::QueueFull { .. } | SubmitError::TenantShare { .. })));
        room
    }

    /// There is room for `n_waiting_max`, whoever they are. Beyond it, and never beyond twice as many, those are let in whose tenant has
    /// less than its share waiting: a tenant alone may fill the room, and yet does not keep out another.
    fn room(&self, state: &InboxState, tenant: TenantSalt, retry_after: Duration) -> Result<(), SubmitError> {
        match state.phase {
            Phase::Open => {}
            Phase::Broken => return Err(SubmitError::Broken),
            Phase::Draining | Phase::Stopping | Phase::Stopped => return Err(SubmitError::Draining),
        }
        let n_all = state.n_waiting + state.mail.arrived.len();
        if n_all < self.n_waiting_max {
            return Ok(());
        }
        let n_own = state.waiting_of.get(&tenant).copied().unwrap_or(0);
        let n_tenants = state.waiting_of.len() + usize::from(n_own == 0);
        let is_below_share = n_own * n_tenants < self.n_waiting_max;
        if n_tenants > 1 && is_below_share && n_all < 2 * self.n_waiting_max {
            return Ok(());
        }
        if n_tenants > 1 && !is_below_share {
            return Err(SubmitError::TenantShare { n_waiting: n_own, n_tenants, retry_after });
        }
        Err(SubmitError::QueueFull { retry_after })
    }

    /// Takes a request, if there is room.
    pub(crate) fn submit(&self, prepared: Box<Prepared>, retry_after: Duration) -> Result<(RequestId, Arc<StreamQueue>), Refused> {
        let mut state = self.lock();
        let tenant = prepared.request.tenant;
        if let Err(error) = self.check_state(&mut state, tenant, retry_after) {
            return Err(Refused { prepared, error });
        }
        *state.waiting_of.entry(tenant).or_default() += 1;
        state.n_unfinished += 1;
        let (id, queue) = (RequestId(state.next_id), Arc::new(StreamQueue::new()));
        state.next_id += self.ids.step;
        state.mail.arrived.push(Arrived { id, prepared: *prepared, queue: Arc::clone(&queue) });
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

    /// Takes down how many requests wait in the engine, and whose do not any more.
    pub(crate) fn report_waiting(&self, n_waiting: usize, served: impl Iterator<Item = TenantSalt>) {
        let mut state = self.lock();
        state.n_waiting = n_waiting;
        for tenant in served {
            if let Some(n) = state.waiting_of.get_mut(&tenant) {
                *n -= 1;
                if *n == 0 {
                    state.waiting_of.remove(&tenant);
                }
            }
        }
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

    /// Takes down that requests have ended.
    pub(crate) fn report_ended(&self, n_ended: usize) {
        self.lock().n_unfinished -= n_ended;
    }

    /// Requests taken that have not ended.
    pub(crate) fn n_unfinished(&self) -> usize {
        self.lock().n_unfinished
    }

    /// Requests that wait, and how many were refused for want of room.
    pub(crate) fn n_waiting_and_refused(&self) -> (usize, u64) {
        let state = self.lock();
        (state.n_waiting + state.mail.arrived.len(), state.n_refused)
    }
}
