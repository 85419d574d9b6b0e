//! `EngineHandle`: an engine on its own thread, as a server sees it. Nothing here blocks but what says so.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::admission::{Admission, Output};
use crate::engine::{EngineCore, EngineModel};
use crate::error::{StartError, SubmitError};
use crate::inbox::{Inbox, Phase};
use crate::options::EngineOptions;
use crate::request::{Request, TenantSalt};
use crate::stats::EngineStats;
use crate::stream::TokenStream;
use crate::thread::{EngineThread, Published};

/// Where requests go in. Cheap to clone; the engine ends when the last handle is gone.
#[derive(Clone)]
pub struct EngineHandle {
    inbox: Arc<Inbox>,
    admission: Arc<Admission>,
    published: Arc<Published>,
    n_events_max: usize,
    thread: Arc<OwnedThread>,
}

/// Ends the engine when the last handle goes.
struct OwnedThread {
    inbox: Arc<Inbox>,
    join: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for OwnedThread {
    fn drop(&mut self) {
        self.inbox.advance(Phase::Stopping);
    }
}

impl EngineHandle {
    /// Starts an engine on a thread of its own.
    ///
    /// # Errors
    /// Options out of range; a draft model that does not fit; no thread to be had.
    pub fn start(model: EngineModel, options: EngineOptions) -> Result<Self, StartError> {
        let core = EngineCore::new(model, options)?;
        let inbox = Arc::new(Inbox::new(options.n_waiting_max));
        let published = Arc::new(Published::default());
        let admission = Arc::clone(&core.admission);
        let engine = EngineThread::new(core, Arc::clone(&inbox), Arc::clone(&published), options.n_stream_events_max);
        let join = std::thread::Builder::new().name("engine".into()).spawn(move || engine.run());
        let join = join.map_err(|error| StartError::Thread { reason: error.to_string() })?;
        let thread = Arc::new(OwnedThread { inbox: Arc::clone(&inbox), join: Mutex::new(Some(join)) });
        Ok(Self { inbox, admission, published, n_events_max: options.n_stream_events_max, thread })
    }

    /// Checks a request and queues it. Never waits for the engine; a constraint that was not seen before is compiled here, which may
    /// take some ten milliseconds.
    pub fn submit(&self, request: Request) -> Result<TokenStream, SubmitError> {
        let retry_after = self.published.retry_after();
        self.inbox.check(request.tenant, retry_after)?;
        let prepared = self.admission.prepare(request)?;
        let (id, queue) = self.inbox.submit(prepared, retry_after)?;
        Ok(TokenStream::new(id, queue, Arc::clone(&self.inbox), self.n_events_max))
    }

    /// Whether a request of this tenant would be let in now, so that it can be refused before there is any work with it.
    pub fn check_room(&self, tenant: TenantSalt) -> Result<(), SubmitError> {
        self.inbox.check(tenant, self.published.retry_after())
    }

    /// Whether the engine has broken down. It takes no requests then and never will.
    pub fn is_broken(&self) -> bool {
        self.inbox.phase() == Phase::Broken
    }

    /// What the model yields.
    pub fn output(&self) -> Output {
        self.admission.output
    }

    /// Most tokens that a prompt and its text can have together, less the last.
    pub fn context_length(&self) -> usize {
        self.admission.context_length
    }

    /// One more than the largest token id that a prompt may hold.
    pub fn n_vocab(&self) -> usize {
        self.admission.n_vocab
    }

    /// Counts and levels, as of the last step.
    pub fn stats(&self) -> EngineStats {
        let (n_waiting, n_refused) = self.inbox.n_waiting_and_refused();
        EngineStats { n_waiting, n_refused, ..self.published.stats() }
    }

    /// Takes no new requests from now on; those accepted are finished.
    pub fn drain(&self) {
        self.inbox.advance(Phase::Draining);
    }

    /// Whether requests are refused.
    pub fn is_draining(&self) -> bool {
        self.inbox.phase() > Phase::Open
    }

    /// Whether everything accepted is finished. Meant for polling after `drain`.
    pub fn is_idle(&self) -> bool {
        // In this order: a request that does not wait any more is counted as live before (`EngineThread::publish_stats`).
        self.inbox.n_waiting_and_refused().0 == 0 && self.published.n_live() == 0
    }

    /// Fails what is not finished and waits until the engine's thread has ended and its memory is free, as long as the step at hand
    /// takes. A second caller does not wait.
    pub fn shutdown(&self) {
        self.inbox.advance(Phase::Stopping);
        let join = self.thread.join.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(join) = join {
            // A panic of the thread was reported when it happened; there is nothing left to do about it.
            drop(join.join());
        }
    }

    /// How long a refused client had better wait.
    pub fn retry_after(&self) -> Duration {
        self.published.retry_after()
    }
}
