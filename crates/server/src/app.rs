//! What all handlers share: configuration, models, admission, metrics, the stores of responses and files. And the way every
//! generation is started: admitted for the most it can cost, submitted, and from then on settled whatever happens.

use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use axum::extract::{FromRequestParts, MatchedPath};
use axum::http::request::Parts;
use bitnet_engine::{Generate, Priority, Request, Task, TenantSalt, TokenStream};
use bitnet_model::TokenId;
use tracing::{Instrument, debug_span};

use crate::admission::{Admission, Caller, Ceiling, Operation, RateLimits, Recorder, Settlement, Voided};
use crate::config::{Config, ConfigError};
use crate::error::ServerError;
use crate::files::FileStore;
use crate::generation::{Generation, Of};
use crate::lifecycle::{InFlight, Lifecycle};
use crate::metrics::Metrics;
use crate::models::{Models, ServedModel};
use crate::openai::batches;
use crate::openai::live_batches::LiveBatches;
use crate::openai::response_store::ResponseStore;
use crate::text_pool::TextPool;
use crate::traces::{RequestTrace, Stage, Traces};

/// The state of a server; cheap to clone.
#[derive(Clone)]
pub struct App(Arc<Inner>);

struct Inner {
    config: Config,
    models: Models,
    admission: Box<dyn Admission>,
    lifecycle: Lifecycle,
    metrics: Metrics,
    text_pool: TextPool,
    responses: ResponseStore,
    files: Option<FileStore>,
    live_batches: LiveBatches,
    /// Set once, if at all, when the server's runtime is there.
    traces: OnceLock<Traces>,
    now: fn() -> SystemTime,
}

/// A request's identity, put there by the outermost layer.
#[derive(Debug, Clone)]
pub(crate) struct RequestIdentity {
    pub(crate) id: Arc<str>,
    pub(crate) chosen_by: ChosenBy,
    pub(crate) trace: RequestTrace,
}

/// Where a connection comes from, put there by whoever accepted it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerAddress(pub std::net::SocketAddr);

/// The id of a request, for logs of whoever mounts routes.
pub fn request_id(extensions: &axum::http::Extensions) -> Option<Arc<str>> {
    extensions.get::<RequestIdentity>().map(|identity| identity.id.clone())
}

/// Who chose a request's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChosenBy {
    /// The server: it is the only one of its kind.
    Server,
    /// The client, which may send it again and again.
    Client,
}

/// A line of a batch, whose caller is known. Extensions cannot come from outside.
#[derive(Debug, Clone)]
pub(crate) struct InBatch(pub(crate) Caller);

/// Whose a request is, for the extractor of its body, which comes after that of its caller.
#[derive(Debug, Clone)]
pub(crate) struct Whose(pub(crate) Caller);

/// How urgent a request is by where it came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Somebody waits.
    Connection,
    /// Nobody does.
    Batch,
}

/// Who calls, and under which id.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    pub(crate) caller: Caller,
    /// What its usage is booked under: never an id that the client chose, since one that is sent twice is booked once.
    pub(crate) request_id: Arc<str>,
    pub(crate) origin: Origin,
    pub(crate) trace: RequestTrace,
    pub(crate) route: Arc<str>,
}

impl FromRequestParts<App> for Context {
    type Rejection = ServerError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ServerError> {
        let route: Arc<str> = parts.extensions.get::<MatchedPath>().map_or(parts.uri.path(), MatchedPath::as_str).into();
        let (caller, origin) = match parts.extensions.get::<InBatch>() {
            Some(InBatch(caller)) => (caller.clone(), Origin::Batch),
            None => (app.0.admission.authenticate(&parts.headers, &route).await?, Origin::Connection),
        };
        let identity = parts.extensions.get::<RequestIdentity>();
        let trace = identity.map(|identity| identity.trace.clone()).unwrap_or_default();
        let identity = identity.filter(|identity| identity.chosen_by == ChosenBy::Server);
        let request_id = identity.map_or_else(|| crate::ids::new_id("req_").into(), |identity| identity.id.clone());
        parts.extensions.insert(Whose(caller.clone()));
        let span = tracing::Span::current();
        span.record("caller", caller.name.as_str()).record("booked_as", &*request_id);
        Ok(Self { caller, request_id, origin, trace, route })
    }
}

/// A generation, ready to be started.
pub(crate) struct Job {
    pub(crate) model: Arc<ServedModel>,
    pub(crate) operation: Operation,
    pub(crate) prompts: Vec<Vec<TokenId>>,
    /// Without it, the prompts are embedded.
    pub(crate) generate: Option<Generate>,
    pub(crate) priority: Priority,
    pub(crate) params: JobParams,
}

/// What a client calls the parameters that the engine may find fault with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct JobParams {
    pub(crate) prompt: &'static str,
    /// What the reply must look like.
    pub(crate) constraint: &'static str,
}

impl App {
    /// Puts a server's state together. `now` tells the time that objects and prompts are dated with.
    pub fn new(config: Config, admission: Box<dyn Admission>, now: fn() -> SystemTime) -> Result<Self, ServerError> {
        let files = config.data_folder.as_deref().map(FileStore::open).transpose()?;
        let text_pool = TextPool::new(config.n_text_threads);
        let (models, lifecycle, metrics) = (Models::default(), Lifecycle::default(), Metrics::default());
        let responses = ResponseStore::default();
        Ok(Self(Arc::new(Inner {
            config,
            models,
            admission,
            lifecycle,
            metrics,
            text_pool,
            responses,
            files,
            live_batches: LiveBatches::default(),
            traces: OnceLock::new(),
            now,
        })))
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.0.config
    }

    /// The models.
    pub fn models(&self) -> &Models {
        &self.0.models
    }

    /// Whether it takes work.
    pub fn lifecycle(&self) -> &Lifecycle {
        &self.0.lifecycle
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// Where traces go, if anywhere.
    pub(crate) fn traces(&self) -> Option<&Traces> {
        self.0.traces.get()
    }

    /// Begins to send traces where the configuration says so. Runs inside a Tokio runtime.
    pub(crate) fn start_traces(&self) -> Result<(), ConfigError> {
        if let Some(endpoint) = &self.config().otlp_endpoint {
            let traces = Traces::start(endpoint)?;
            // Whoever came first goes on.
            drop(self.0.traces.set(traces));
        }
        Ok(())
    }

    pub(crate) fn text_pool(&self) -> &TextPool {
        &self.0.text_pool
    }

    pub(crate) fn responses(&self) -> &ResponseStore {
        &self.0.responses
    }

    pub(crate) fn live_batches(&self) -> &LiveBatches {
        &self.0.live_batches
    }

    /// Files and batches, where they are kept at all.
    pub(crate) fn files(&self) -> Result<&FileStore, ServerError> {
        let reason = "this server keeps no files: start it with --data-folder";
        self.0.files.as_ref().ok_or_else(|| ServerError::Forbidden { reason: reason.into() })
    }

    /// Seconds since 1970.
    pub(crate) fn now_unix_seconds(&self) -> i64 {
        (self.0.now)().duration_since(UNIX_EPOCH).map_or(0, |duration| duration.as_secs() as i64)
    }

    /// Goes on with the batches that an earlier run left unfinished. Runs inside a Tokio runtime, once models are there.
    pub fn resume_batches(&self) {
        batches::resume(self);
    }

    /// Ready to serve: not draining, there is a model, and no engine has broken down.
    pub(crate) fn is_ready(&self) -> bool {
        let models = self.models().all();
        !self.lifecycle().is_draining() && !models.is_empty() && !models.iter().any(|model| model.engine.is_broken())
    }

    /// Whether an engine has broken down: only a new process helps.
    pub(crate) fn is_broken(&self) -> bool {
        self.models().all().iter().any(|model| model.engine.is_broken())
    }

    /// Whether a replica of a model has broken down.
    pub(crate) fn is_degraded(&self) -> bool {
        self.models().all().iter().any(|model| model.engine.n_broken_replicas() > 0)
    }

    /// Refuses a caller for whom no engine has room, before there is any work with the request.
    pub(crate) fn check_room(&self, caller: &Caller) -> Result<(), ServerError> {
        let models = self.models().all();
        let mut refused = None;
        for model in &models {
            match model.engine.check_room(caller.tenant) {
                Ok(()) => return Ok(()),
                Err(error) => refused = Some(error),
            }
        }
        refused.map_or(Ok(()), |error| Err(self.turn_away(caller, ServerError::of_room(error))))
    }

    /// Refuses a caller for whom a model has no room, before its text becomes tokens.
    pub(crate) fn check_room_of(&self, model: &ServedModel, context: &Context) -> Result<(), ServerError> {
        let refused = |error| self.turn_away(&context.caller, ServerError::of_room(error));
        model.engine.check_room(context.caller.tenant).map_err(refused)
    }

    /// Lets admission know of a caller who is turned away before anything was reserved.
    fn turn_away(&self, caller: &Caller, error: ServerError) -> ServerError {
        if error.fault() == Voided::ByServer {
            self.0.admission.turned_away(caller);
        }
        error
    }

    /// Admits and submits a job.
    pub(crate) async fn start(&self, context: &Context, job: Job) -> Result<Generation, ServerError> {
        let admitted = self.admit(context, &job).await?;
        self.submit(context, &admitted, job).await
    }

    /// Reserves the most that a job can cost.
    pub(crate) async fn admit(&self, context: &Context, job: &Job) -> Result<Admitted, ServerError> {
        let in_flight = Arc::new(self.lifecycle().begin().map_err(|error| self.turn_away(&context.caller, error))?);
        let start = Instant::now();
        let reservation = self.0.admission.admit(&context.caller, ceiling(context, job)).instrument(debug_span!("admit")).await?;
        context.trace.stage(Stage::Admission, (start, Instant::now()), &[]);
        let (rate_limits, recorder) = (reservation.rate_limits(), reservation.recorder());
        Ok(Admitted { in_flight, settlement: Settlement::new(reservation, context.trace.clone()), rate_limits, recorder })
    }

    /// Submits an admitted job, or a part of one.
    pub(crate) async fn submit(&self, context: &Context, admitted: &Admitted, mut job: Job) -> Result<Generation, ServerError> {
        if context.origin == Origin::Batch {
            job.priority = Priority::Low;
        }
        let n_prompt_tokens = job.prompts.iter().map(Vec::len).sum();
        let n_choices = job.generate.as_ref().map_or(1, |generate| generate.n_choices.get() as usize);
        let model_name = job.model.name.clone();
        let submission = Submission {
            job,
            tenant: context.caller.tenant,
            deadline: self.config().request_timeout.map(|timeout| Instant::now() + timeout),
            settlement: admitted.settlement.clone(),
        };
        let submitted = Instant::now();
        // Compiling a constraint takes some milliseconds: not on the reactor.
        let is_constrained = submission.job.generate.as_ref().is_some_and(|generate| generate.constraint.is_some());
        let submitting = debug_span!("submit", is_constrained);
        let streams = if is_constrained {
            self.text_pool().run(|| submission.submit()).instrument(submitting).await
        } else {
            submitting.in_scope(|| submission.submit())
        };
        let streams = streams.inspect_err(|error| admitted.settlement.refuse(error.fault()))?;
        let metrics = self.metrics().model(&model_name);
        let of = Of { in_flight: admitted.in_flight.clone(), metrics, trace: context.trace.clone(), submitted };
        let generation = Generation::new(streams, n_choices, of, (n_prompt_tokens, admitted.rate_limits));
        Ok(generation.recorded_by(admitted.recorder.clone()))
    }
}

/// What was reserved for a job, settled when the last that was submitted for it has ended.
pub(crate) struct Admitted {
    in_flight: Arc<InFlight>,
    settlement: Arc<Settlement>,
    rate_limits: Option<RateLimits>,
    recorder: Option<Arc<dyn Recorder>>,
}

/// A job on its way to the engine.
struct Submission {
    job: Job,
    tenant: TenantSalt,
    deadline: Option<Instant>,
    settlement: Arc<Settlement>,
}

impl Submission {
    fn submit(self) -> Result<Vec<TokenStream>, ServerError> {
        let Self { job, tenant, deadline, settlement } = self;
        let submit = |prompt| {
            let task = job.generate.clone().map_or(Task::Embed, |generate| Task::Generate(Box::new(generate)));
            let usage_sink = Some(settlement.share());
            let request = Request { prompt, task, tenant, priority: job.priority, deadline, usage_sink };
            job.model.engine.submit(request).map_err(|error| ServerError::of_submit(error, job.params))
        };
        // A refusal drops the streams before it, which cancels them.
        job.prompts.into_iter().map(submit).collect()
    }
}

fn ceiling(context: &Context, job: &Job) -> Ceiling {
    let n_prompt_tokens = job.prompts.iter().map(Vec::len).sum();
    let n_completion_tokens_max = job.generate.as_ref().map_or(0, |generate| {
        // The last token of a text needs no place in the context.
        let room = |prompt: &Vec<TokenId>| generate.n_tokens_max.min((job.model.context_length + 1).saturating_sub(prompt.len()));
        job.prompts.iter().map(room).sum::<usize>() * generate.n_choices.get() as usize
    });
    Ceiling {
        request_id: context.request_id.to_string(),
        operation: job.operation,
        route: context.route.clone(),
        model: job.model.name.clone(),
        n_prompt_tokens,
        n_completion_tokens_max,
        n_items: job.prompts.len(),
    }
}
