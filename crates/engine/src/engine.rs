//! `EngineCore`: continuous batching as a pure state machine. Time comes in, events go out; there is no thread, clock or channel, so a
//! test can explore its schedules. One call of [`EngineCore::step`] is one step of the runner (more only if that failed, to find whose
//! fault it was).

use std::sync::Arc;
use std::time::{Duration, Instant};

use bitnet_model::batch::Batch;
use bitnet_model::text::Tokenizer;
use bitnet_model::{Runner, TokenId};

use crate::admission::{Admission, Output, Prepared};
use crate::block_pool::BlockPool;
use crate::constraint::ConstraintCompiler;
use crate::error::{RequestError, StartError, SubmitError};
use crate::limits;
use crate::options::{EngineOptions, PrefixCaching, Speculation};
use crate::quarantine::Quarantine;
use crate::request::{Event, Request, RequestId};
use crate::scheduler::{Scheduler, SchedulerLimits};
use crate::speculation::{DraftModel, DraftSource, Drafter, PromptLookup, check_draft_vocabulary};
use crate::state::EngineState;
use crate::stats::EngineStats;
use crate::step::RunEnd;

/// A model and what belongs to it.
pub struct EngineModel {
    pub runner: Box<dyn Runner>,
    /// For `Speculation::DraftModel`.
    pub draft: Option<DraftPart>,
    /// Absent for checkpoints without vocabulary: tokens then have no text.
    pub tokenizer: Option<Arc<Tokenizer>>,
    /// Tokens that end a text.
    pub eos: Vec<TokenId>,
}

/// A smaller model of the same vocabulary.
pub struct DraftPart {
    pub runner: Box<dyn Runner>,
    /// Compared with the model's, where both are there.
    pub tokenizer: Option<Arc<Tokenizer>>,
}

/// Where events go.
pub trait EventSink {
    /// Takes an event of a request.
    fn send(&mut self, id: RequestId, event: Event);
    /// Hears that a request waits no more: its first step is about to be computed.
    fn began(&mut self, _id: RequestId) {}
    /// Whether the request's reader keeps up. If not, its sequences pause.
    fn has_room(&self, id: RequestId) -> bool;
}

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepOutcome {
    /// It computed this many tokens.
    Computed { n_tokens: usize },
    /// There was nothing to compute: no request, or only such as wait for their readers.
    Idle,
    /// The device is gone: every request has failed, and every step would.
    Lost,
}

/// The engine without its thread.
pub struct EngineCore {
    pub(crate) runner: Box<dyn Runner>,
    /// Kept from step to step for its buffers.
    pub(crate) batch: Batch,
    pub(crate) state: EngineState,
    pub(crate) admission: Arc<Admission>,
    /// Requests at which the device failed since a step last succeeded.
    pub(crate) n_failed_in_turn: usize,
    options: EngineOptions,
}

impl EngineCore {
    /// An engine without requests.
    ///
    /// # Errors
    /// Options out of range; a draft model that does not fit.
    pub fn new(model: EngineModel, options: EngineOptions) -> Result<Self, StartError> {
        options.validate()?;
        let EngineModel { runner, draft, tokenizer, eos } = model;
        let constraints = tokenizer.as_ref().map(|tokenizer| ConstraintCompiler::new(tokenizer, &eos)).transpose()?;
        let batch_limits = runner.limits();
        let output = if runner.config().last_token_pooling { Output::Embedding } else { Output::Text };
        let admission = Admission {
            n_vocab: batch_limits.n_vocab,
            context_length: batch_limits.context_length.min(batch_limits.n_blocks * bitnet_model::limits::BLOCK_TOKENS),
            output,
            tokenizer,
            eos,
            constraints,
            quarantine: Quarantine::default(),
        };
        Self::with_admission(runner, draft, (options, Arc::new(admission)))
    }

    /// An engine of the same model, which takes what this one takes.
    ///
    /// # Errors
    /// Another vocabulary or room than this one's.
    pub(crate) fn replica(&self, model: EngineModel) -> Result<Self, StartError> {
        let EngineModel { runner, draft, .. } = model;
        let check = |name, expected: usize, got: usize| {
            if expected == got { Ok(()) } else { Err(StartError::ReplicaDiffers { name, expected, got }) }
        };
        let (own, other) = (self.runner.limits(), runner.limits());
        check("n_vocab", own.n_vocab, other.n_vocab)?;
        check("context_length", own.context_length, other.context_length)?;
        check("n_blocks", own.n_blocks, other.n_blocks)?;
        check("hidden_size", self.runner.config().hidden_size, runner.config().hidden_size)?;
        Self::with_admission(runner, draft, (self.options, Arc::clone(&self.admission)))
    }

    fn with_admission(
        runner: Box<dyn Runner>,
        draft: Option<DraftPart>,
        (options, admission): (EngineOptions, Arc<Admission>),
    ) -> Result<Self, StartError> {
        let drafter = drafter(&*runner, admission.tokenizer.as_deref(), draft, options.speculation)?;
        let state = EngineState::new(scheduler(&*runner, options), drafter, Arc::clone(&admission));
        Ok(Self { runner, batch: Batch::default(), state, admission, n_failed_in_turn: 0, options })
    }

    /// What the model yields.
    pub fn output(&self) -> Output {
        self.admission.output
    }

    /// Checks a request and lets it wait.
    pub fn submit(&mut self, id: RequestId, request: Request) -> Result<(), SubmitError> {
        let prepared = self.admission.prepare(request)?;
        self.enqueue(id, prepared);
        Ok(())
    }

    /// Lets a request wait that was found sound. Ids are never used twice.
    pub(crate) fn enqueue(&mut self, id: RequestId, prepared: Prepared) {
        self.state.enqueue(id, prepared);
    }

    /// Ends a request whose stream nobody reads. Its blocks are free at once.
    pub fn cancel(&mut self, id: RequestId, sink: &mut dyn EventSink) {
        self.state.cancel(id, sink);
    }

    /// Ends every request, and forgets whatever state they left. For a shutdown, and after a panic between two requests' work.
    pub fn fail_all(&mut self, error: &RequestError, sink: &mut dyn EventSink) {
        let counts = self.state.scheduler.counts();
        self.state.scheduler = scheduler(&*self.runner, self.options).with_counts(counts);
        self.state.fail_all(error, sink);
    }

    /// Requests that are not finished.
    pub fn n_live(&self) -> usize {
        self.state.n_live()
    }

    /// When the next request expires.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.state.next_deadline()
    }

    /// Expires requests, then computes one step.
    pub fn step(&mut self, now: Instant, sink: &mut dyn EventSink) -> StepOutcome {
        self.state.expire(now, sink);
        self.state.draft(sink);
        let plan = self.state.plan(sink);
        let n_tokens = plan.iter().map(|share| share.n_tokens + share.n_drafts).sum();
        if n_tokens == 0 {
            return StepOutcome::Idle;
        }
        match self.run(plan, sink) {
            RunEnd::Computed => StepOutcome::Computed { n_tokens },
            RunEnd::Lost => StepOutcome::Lost,
        }
    }

    /// Counts how long a step took.
    pub(crate) fn record_step(&mut self, duration: Duration) {
        self.state.stats.record_step(duration);
    }

    /// Counts and levels.
    pub fn stats(&self) -> EngineStats {
        self.state.stats()
    }
}

fn scheduler(runner: &dyn Runner, options: EngineOptions) -> Scheduler {
    let batch_limits = runner.limits();
    let n_tokens = options.n_step_tokens_max.min(batch_limits.n_tokens_max);
    let n_running = options.n_running_max.min(n_tokens);
    let n_idle_per_tenant = match options.prefix_cache {
        PrefixCaching::Off => None,
        PrefixCaching::On { tenant_percent } => Some((batch_limits.n_blocks * usize::from(tenant_percent)).div_ceil(100)),
    };
    let scheduler_limits = SchedulerLimits { n_running, n_tokens, n_draft_tokens: limits::N_DRAFT_TOKENS_PER_STEP };
    Scheduler::new(scheduler_limits, BlockPool::new(batch_limits.n_blocks, n_idle_per_tenant))
}

fn drafter(
    runner: &dyn Runner,
    tokenizer: Option<&Tokenizer>,
    draft: Option<DraftPart>,
    speculation: Speculation,
) -> Result<Drafter, StartError> {
    let check_pooling = |runner: &dyn Runner| if runner.config().last_token_pooling { Err(StartError::DraftPooling) } else { Ok(()) };
    match speculation {
        Speculation::Off => Ok(Drafter::new(DraftSource::None, 0)),
        Speculation::PromptLookup { n_drafts_max } => {
            check_pooling(runner)?;
            Ok(Drafter::new(DraftSource::Lookup(PromptLookup::default()), n_drafts_max))
        }
        Speculation::DraftModel { n_drafts_max } => {
            let draft = draft.ok_or(StartError::NoDraftModel)?;
            check_pooling(runner)?;
            check_pooling(&*draft.runner)?;
            let (expected, got) = (runner.limits().n_vocab, draft.runner.limits().n_vocab);
            if expected != got {
                return Err(StartError::DraftVocabulary { expected, got });
            }
            if let (Some(own), Some(drafts)) = (tokenizer, &draft.tokenizer) {
                check_draft_vocabulary(own, drafts)?;
            }
            Ok(Drafter::new(DraftSource::Model(Box::new(DraftModel::new(draft.runner))), n_drafts_max))
        }
    }
}
