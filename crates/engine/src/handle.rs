//! `EngineHandle`: a model's engines on their threads, as a server sees them: one, or several replicas that share the requests. Nothing
//! here blocks but what says so.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::admission::{Admission, Output};
use crate::dispatch::{Dispatcher, PromptStart};
use crate::engine::{EngineCore, EngineModel};
use crate::error::{StartError, SubmitError};
use crate::inbox::{IdSeries, Phase, Refused};
use crate::limits::N_REPLICAS_MAX;
use crate::options::EngineOptions;
use crate::replica::{Replica, ReplicaBounds};
use crate::request::{Request, TenantSalt};
use crate::stats::EngineStats;
use crate::stream::TokenStream;

/// Where requests go in. Cheap to clone; the engines end when the last handle is gone.
#[derive(Clone)]
pub struct EngineHandle {
    admission: Arc<Admission>,
    /// At least one.
    replicas: Arc<[Replica]>,
    dispatcher: Arc<Mutex<Dispatcher>>,
    n_events_max: usize,
}

impl EngineHandle {
    /// Starts an engine on a thread of its own.
    ///
    /// # Errors
    /// Options out of range; a draft model that does not fit; no thread to be had.
    pub fn start(model: EngineModel, options: EngineOptions) -> Result<Self, StartError> {
        Self::start_replicas(vec![model], options)
    }

    /// Starts an engine for each of `models`, which are one model several times, each on a device of its own. A request goes to the
    /// replica that will be done with it first (`dispatch`); its tokens do not depend on which that is. Where one breaks down, its
    /// requests fail and the others go on. All of them together let `n_waiting_max` requests wait.
    ///
    /// # Errors
    /// None or too many of them, or such as differ; options out of range; a draft model that does not fit; no thread to be had.
    pub fn start_replicas(models: Vec<EngineModel>, options: EngineOptions) -> Result<Self, StartError> {
        let n_replicas = models.len();
        let mut models = models.into_iter();
        let first = models.next().filter(|_| n_replicas <= N_REPLICAS_MAX);
        let first = first.ok_or(StartError::Replicas { got: n_replicas, limit: N_REPLICAS_MAX })?;
        let mut cores = vec![EngineCore::new(first, options)?];
        for model in models {
            cores.push(cores[0].replica(model)?);
        }
        let admission = Arc::clone(&cores[0].admission);
        let n_waiting_max = options.n_waiting_max.div_ceil(n_replicas);
        let bounds = ReplicaBounds { n_waiting_max, n_events_max: options.n_stream_events_max };
        let ids = |index: usize| IdSeries { first: index as u64 + 1, step: n_replicas as u64 };
        let start = |(index, core)| Replica::start(core, bounds, ids(index));
        let replicas = cores.into_iter().enumerate().map(start).collect::<Result<Arc<[Replica]>, StartError>>()?;
        Ok(Self { admission, replicas, dispatcher: Arc::default(), n_events_max: options.n_stream_events_max })
    }

    /// Checks a request and queues it. Never waits for the engine; a constraint that was not seen before is compiled here, which may
    /// take some ten milliseconds.
    pub fn submit(&self, request: Request) -> Result<TokenStream, SubmitError> {
        let tenant = request.tenant;
        self.check_room(tenant)?;
        let start = (self.replicas.len() > 1).then(|| PromptStart::new(tenant, &request.prompt));
        let mut prepared = Box::new(self.admission.prepare(request)?);
        // Held from the choice to the submission, so that whoever comes next sees this one.
        let mut dispatcher = self.dispatcher();
        loop {
            let index = start.as_ref().and_then(|start| dispatcher.first(start, &self.loads(tenant)));
            let index = index.unwrap_or_else(|| self.first_with_room(tenant));
            let replica = &self.replicas[index];
            match replica.inbox.submit(prepared, replica.published.retry_after()) {
                Ok((id, queue)) => {
                    if let Some(start) = &start {
                        dispatcher.sent(start, index);
                    }
                    return Ok(TokenStream::new(id, queue, Arc::clone(&replica.inbox), self.n_events_max));
                }
                // It broke down meanwhile, which each does once; another may work.
                Err(Refused { prepared: back, error: SubmitError::Broken }) if !self.is_broken() => prepared = back,
                Err(Refused { error, .. }) => return Err(error),
            }
        }
    }

    /// Requests that each replica has, `None` where it takes no more of this tenant.
    fn loads(&self, tenant: TenantSalt) -> Vec<Option<usize>> {
        let load = |replica: &Replica| replica.has_room(tenant).then(|| replica.inbox.n_unfinished());
        self.replicas.iter().map(load).collect()
    }

    /// A replica that has room; where none has, one that works, which says why it takes nothing: that another is broken says less.
    fn first_with_room(&self, tenant: TenantSalt) -> usize {
        let has_room = self.replicas.iter().position(|replica| replica.has_room(tenant));
        has_room.or_else(|| self.replicas.iter().position(|replica| !replica.is_broken())).unwrap_or(0)
    }

    fn dispatcher(&self) -> std::sync::MutexGuard<'_, Dispatcher> {
        // No user code runs under the lock, so a poisoned one is whole.
        self.dispatcher.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a request of this tenant would be let in now, so that it can be refused before there is any work with it.
    pub fn check_room(&self, tenant: TenantSalt) -> Result<(), SubmitError> {
        let replica = &self.replicas[self.first_with_room(tenant)];
        replica.inbox.check(tenant, replica.published.retry_after())
    }

    /// Whether no replica is left that has not broken down. It takes no requests then and never will.
    pub fn is_broken(&self) -> bool {
        self.replicas.iter().all(Replica::is_broken)
    }

    /// Replicas that were started.
    pub fn n_replicas(&self) -> usize {
        self.replicas.len()
    }

    /// Replicas that have broken down.
    pub fn n_broken_replicas(&self) -> usize {
        self.replicas.iter().filter(|replica| replica.is_broken()).count()
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

    /// Counts and levels of all replicas together, as of the last step.
    pub fn stats(&self) -> EngineStats {
        self.replicas.iter().fold(EngineStats::default(), |sum, replica| sum.plus(&replica.stats()))
    }

    /// The same of each replica.
    pub fn stats_of_replicas(&self) -> Vec<EngineStats> {
        self.replicas.iter().map(Replica::stats).collect()
    }

    /// Takes no new requests from now on; those accepted are finished.
    pub fn drain(&self) {
        self.replicas.iter().for_each(|replica| replica.inbox.advance(Phase::Draining));
    }

    /// Whether requests are refused.
    pub fn is_draining(&self) -> bool {
        self.replicas.iter().all(|replica| replica.inbox.phase() > Phase::Open)
    }

    /// Whether everything accepted is finished. Meant for polling after `drain`.
    pub fn is_idle(&self) -> bool {
        self.replicas.iter().all(Replica::is_idle)
    }

    /// Fails what is not finished and waits until the engines' threads have ended and their memory is free, as long as the steps at hand
    /// take. A second caller does not wait.
    pub fn shutdown(&self) {
        self.replicas.iter().for_each(|replica| replica.inbox.advance(Phase::Stopping));
        self.replicas.iter().for_each(Replica::join);
    }

    /// How long a refused client had better wait.
    pub fn retry_after(&self) -> Duration {
        let working = self.replicas.iter().filter(|replica| !replica.is_broken());
        working.map(|replica| replica.published.retry_after()).min().unwrap_or_else(|| self.replicas[0].published.retry_after())
    }
}
