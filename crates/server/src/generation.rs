//! A request's tokens as they come from the engine: several prompts' streams as one, with what the metrics want to know. Dropping
//! it, which is what becomes of it when a client leaves, cancels the work within one step.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bitnet_engine::{Event, FinishReason, RequestError, TokenLogprob, TokenStream, Usage};
use bitnet_model::TokenId;
use tracing::Span;

use crate::admission::{BoxFuture, Produced, RateLimits, Recorder};
use crate::error::ServerError;
use crate::lifecycle::InFlight;
use crate::limits;
use crate::metrics::ModelMetrics;
use crate::traces::{RequestTrace, Stage};

/// What comes, over all prompts and choices; choice `i` of prompt `p` is number `p · n + i`.
#[derive(Debug)]
pub(crate) enum GenerationEvent {
    /// A prompt is read.
    Started { prompt: usize, n_cached_tokens: usize, prompt_logprobs: Option<Vec<Option<TokenLogprob>>> },
    /// A token.
    Token { choice: usize, token_id: TokenId, text: String, logprob: Option<TokenLogprob> },
    /// A choice is complete.
    ChoiceFinished { choice: usize, reason: FinishReason, text: String },
    /// A prompt's vector.
    Embedding { prompt: usize, values: Vec<f32> },
    /// It came to nothing; the last event.
    Failed(ServerError),
    /// All is there; the last event.
    Finished(Usage),
}

struct Source {
    stream: TokenStream,
    is_done: bool,
    /// When its prompt was read, as far as the reader knows.
    started: Option<Instant>,
}

/// Whose a generation is.
pub(crate) struct Of {
    pub(crate) in_flight: Arc<InFlight>,
    pub(crate) metrics: Arc<ModelMetrics>,
    pub(crate) trace: RequestTrace,
    /// Before the engine had it.
    pub(crate) submitted: Instant,
}

/// See the module.
pub(crate) struct Generation {
    sources: Vec<Source>,
    n_choices: usize,
    /// Whose turn it is to be looked at first, so that no prompt starves another.
    next: usize,
    usage: Usage,
    is_over: bool,
    clock: Clock,
    n_prompt_tokens: usize,
    rate_limits: Option<RateLimits>,
    /// The request's, since its body is read outside of its handler.
    span: Span,
    metrics: Arc<ModelMetrics>,
    trace: RequestTrace,
    gate: Option<Gate>,
    _in_flight: Arc<InFlight>,
}

/// Through which everything goes that is recorded before it is shown: what came while the last was recorded is recorded as one.
struct Gate {
    recorder: Arc<dyn Recorder>,
    produced: Produced,
    /// Not yet recorded.
    held: VecDeque<GenerationEvent>,
    recording: Option<BoxFuture<'static, Result<(), ServerError>>>,
    /// Recorded.
    shown: VecDeque<GenerationEvent>,
}

/// When things happened, for the histograms.
struct Clock {
    began: Instant,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
}

impl Source {
    /// The stages that it has been through, now that it is over.
    fn tell(&self, trace: &RequestTrace, submitted: Instant, usage: Usage) {
        let end = Instant::now();
        let began = self.stream.began();
        trace.stage(Stage::Queue, (submitted, began.unwrap_or(end)), &[]);
        let Some(began) = began else { return };
        let read = [("bitnet.prompt_tokens", usage.n_prompt_tokens), ("bitnet.cached_tokens", usage.n_cached_tokens)];
        trace.stage(Stage::Prefill, (began, self.started.unwrap_or(end)), &read);
        if let Some(started) = self.started {
            trace.stage(Stage::Decode, (started, end), &[("bitnet.completion_tokens", usage.n_completion_tokens)]);
        }
    }
}

impl Generation {
    /// Of streams that were just submitted.
    pub(crate) fn new(
        streams: Vec<TokenStream>,
        n_choices: usize,
        Of { in_flight, metrics, trace, submitted }: Of,
        (n_prompt_tokens, rate_limits): (usize, Option<RateLimits>),
    ) -> Self {
        let sources = streams.into_iter().map(|stream| Source { stream, is_done: false, started: None }).collect();
        let clock = Clock { began: submitted, first_token: None, last_token: None };
        Self {
            sources,
            n_choices,
            next: 0,
            usage: Usage::default(),
            is_over: false,
            clock,
            n_prompt_tokens,
            rate_limits,
            span: Span::current(),
            metrics,
            trace,
            gate: None,
            _in_flight: in_flight,
        }
    }

    /// With a recorder, everything is recorded before it is shown.
    pub(crate) fn recorded_by(mut self, recorder: Option<Arc<dyn Recorder>>) -> Self {
        let gate =
            |recorder| Gate { recorder, produced: Produced::default(), held: VecDeque::new(), recording: None, shown: VecDeque::new() };
        self.gate = recorder.map(gate);
        self
    }

    /// What the caller has left of its rate.
    pub(crate) fn rate_limits(&self) -> Option<RateLimits> {
        self.rate_limits
    }

    /// Tokens of all prompts.
    pub(crate) fn n_prompt_tokens(&self) -> usize {
        self.n_prompt_tokens
    }

    /// Choices over all prompts.
    pub(crate) fn n_choices(&self) -> usize {
        self.n_choices * self.sources.len()
    }

    /// The next event; `None` after the last one.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<GenerationEvent>> {
        let Some(mut gate) = self.gate.take() else { return self.poll_sources(cx) };
        let polled = gate.poll_next(self, cx);
        self.gate = Some(gate);
        polled
    }

    /// The next event, recorded or not.
    fn poll_sources(&mut self, cx: &mut Context<'_>) -> Poll<Option<GenerationEvent>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        let n = self.sources.len();
        let mut offset = 0;
        while offset < n {
            let prompt = (self.next + offset) % n;
            if self.sources[prompt].is_done {
                offset += 1;
                continue;
            }
            match self.sources[prompt].stream.poll_next_event(cx) {
                Poll::Pending => offset += 1,
                Poll::Ready(event) => {
                    if let Some(event) = self.take(prompt, event) {
                        self.next = prompt;
                        return Poll::Ready(Some(event));
                    }
                }
            }
        }
        if self.sources.iter().all(|source| source.is_done) {
            self.is_over = true;
            self.metrics.succeeded(self.clock.began.elapsed(), self.usage);
            self.log();
            return Poll::Ready(Some(GenerationEvent::Finished(self.usage)));
        }
        Poll::Pending
    }

    fn take(&mut self, prompt: usize, event: Option<Event>) -> Option<GenerationEvent> {
        let first_choice = prompt * self.n_choices;
        match event {
            Some(Event::Started { prompt_logprobs, n_cached_tokens }) => {
                self.sources[prompt].started = Some(Instant::now());
                Some(GenerationEvent::Started { prompt, n_cached_tokens, prompt_logprobs })
            }
            Some(Event::Token { choice, token_id, text, logprob }) => {
                self.note_token();
                Some(GenerationEvent::Token { choice: first_choice + choice as usize, token_id, text, logprob })
            }
            Some(Event::ChoiceFinished { choice, reason, text }) => {
                self.metrics.choice_finished(&reason);
                Some(GenerationEvent::ChoiceFinished { choice: first_choice + choice as usize, reason, text })
            }
            Some(Event::Embedding(values)) => Some(GenerationEvent::Embedding { prompt, values }),
            Some(Event::Finished(usage)) => {
                self.sources[prompt].is_done = true;
                self.sources[prompt].tell(&self.trace, self.clock.began, usage);
                self.usage.n_prompt_tokens += usage.n_prompt_tokens;
                self.usage.n_cached_tokens += usage.n_cached_tokens;
                self.usage.n_completion_tokens += usage.n_completion_tokens;
                None
            }
            Some(Event::Failed(error)) => Some(self.fail(error)),
            None => Some(self.fail(RequestError::Shutdown)),
        }
    }

    fn fail(&mut self, error: RequestError) -> GenerationEvent {
        self.is_over = true;
        self.tell_unfinished();
        self.sources.clear();
        self.metrics.failed(&error);
        GenerationEvent::Failed(ServerError::of_request(error))
    }

    /// The stages of what did not come to its end.
    fn tell_unfinished(&self) {
        let unfinished = self.sources.iter().filter(|source| !source.is_done);
        unfinished.for_each(|source| source.tell(&self.trace, self.clock.began, Usage::default()));
    }

    /// What it took: numbers only.
    fn log(&self) {
        let _in_request = self.span.enter();
        let ms_since = |later: Instant| (later - self.clock.began).as_secs_f64() * 1e3;
        tracing::info!(
            prompt_tokens = self.usage.n_prompt_tokens,
            cached_tokens = self.usage.n_cached_tokens,
            completion_tokens = self.usage.n_completion_tokens,
            first_token_ms = self.clock.first_token.map(ms_since),
            total_ms = ms_since(Instant::now()),
            "generated"
        );
    }

    fn note_token(&mut self) {
        let now = Instant::now();
        match self.clock.last_token.replace(now) {
            None => {
                self.clock.first_token = Some(now);
                self.metrics.first_token(now - self.clock.began);
            }
            Some(before) => self.metrics.next_token(now - before),
        }
    }
}

impl Gate {
    fn poll_next(&mut self, generation: &mut Generation, cx: &mut Context<'_>) -> Poll<Option<GenerationEvent>> {
        loop {
            if let Some(event) = self.shown.pop_front() {
                return Poll::Ready(Some(event));
            }
            if let Some(recording) = &mut self.recording {
                let Poll::Ready(recorded) = recording.as_mut().poll(cx) else { return Poll::Pending };
                self.recording = None;
                match recorded {
                    Ok(()) => std::mem::swap(&mut self.shown, &mut self.held),
                    Err(error) => return Poll::Ready(Some(self.give_up(generation, error))),
                }
                continue;
            }
            match self.fill(generation, cx) {
                _ if !self.held.is_empty() => self.recording = Some(self.recorder.record(self.produced)),
                Poll::Ready(()) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Takes what there is; `Ready` if nothing more will come.
    fn fill(&mut self, generation: &mut Generation, cx: &mut Context<'_>) -> Poll<()> {
        while self.held.len() < limits::N_EVENTS_RECORDED_AT_ONCE {
            let Poll::Ready(event) = generation.poll_sources(cx) else { return Poll::Pending };
            let Some(event) = event else { return Poll::Ready(()) };
            match &event {
                GenerationEvent::Token { .. } => self.produced.n_completion_tokens += 1,
                GenerationEvent::Started { n_cached_tokens, .. } => self.produced.n_cached_tokens += n_cached_tokens,
                _ => {}
            }
            self.held.push_back(event);
        }
        Poll::Pending
    }

    /// What was not recorded is not shown, and nothing more is computed.
    fn give_up(&mut self, generation: &mut Generation, error: ServerError) -> GenerationEvent {
        self.held.clear();
        if !generation.is_over {
            generation.is_over = true;
            generation.sources.clear();
            generation.metrics.cancelled();
        }
        GenerationEvent::Failed(error)
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        if !self.is_over {
            self.tell_unfinished();
            self.metrics.cancelled();
        }
    }
}
