//! `POST /v1/completions`: texts or token ids, continued. The route of base models, and the only one where prompts can be echoed
//! and scored.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use bitnet_engine::{TokenLogprob, Usage};
use bitnet_model::TokenId;
use bitnet_model::text::SpecialTokens;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::admission::Operation;
use crate::app::{App, Context, Job, JobParams};
use crate::converse::prompt_tokens;
use crate::error::{Dialect, ServerError};
use crate::extract::{JsonBody, RequestBody};
use crate::ids::new_id;
use crate::limits;
use crate::models::ServedModel;
use crate::one_or_many::{PromptInput, TextOrList};
use crate::openai::chat::SYSTEM_FINGERPRINT;
use crate::openai::chat_request::StreamOptions;
use crate::openai::shared::{CompletionUsage, StructuredOutputs, finish_reason, priority, shown_logprob};
use crate::rate_headers;
use crate::reply::calls::{CallsExpected, ReplyPart};
use crate::reply::{Reply, ReplyEvent, Said, SaidChoice, collect};
use crate::sampling::{SamplingRequest, top_logprobs};
use crate::sse::{self, Encoder, Frames};

/// A completion request.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CompletionRequest {
    /// The model's name.
    pub model: String,
    /// What to continue.
    pub prompt: PromptInput,
    /// Only as large as `n`.
    pub best_of: Option<u32>,
    /// Give the prompt back before the completion.
    pub echo: Option<bool>,
    pub frequency_penalty: Option<f32>,
    pub presence_penalty: Option<f32>,
    pub logit_bias: Option<BTreeMap<String, f32>>,
    /// Log-probabilities, with those of this many most likely tokens.
    #[schema(maximum = 20)]
    pub logprobs: Option<u32>,
    /// By default 16, as OpenAI has it. 0 only with `echo`.
    pub max_tokens: Option<u32>,
    #[schema(minimum = 1, maximum = 32)]
    pub n: Option<u32>,
    pub stop: Option<TextOrList<String>>,
    pub stream: Option<bool>,
    pub stream_options: Option<StreamOptions>,
    /// Only empty: text is written on, not filled in.
    pub suffix: Option<String>,
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    pub seed: Option<i64>,
    #[serde(rename = "user")]
    pub _user: Option<String>,
    pub service_tier: Option<String>,
    pub top_k: Option<i64>,
    pub min_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
    pub min_tokens: Option<u32>,
    pub ignore_eos: Option<bool>,
    pub stop_token_ids: Option<Vec<u32>>,
    pub structured_outputs: Option<StructuredOutputs>,
}

impl RequestBody for CompletionRequest {
    const REFUSED: &'static [(&'static str, &'static str)] = &[];
}

/// Tokens written where a request does not say how many.
const DEFAULT_MAX_TOKENS: u32 = 16;

/// A whole completion, or a piece of one.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Completion {
    pub id: String,
    pub object: &'static str,
    pub created: i64,
    pub model: String,
    pub choices: Vec<CompletionChoice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<CompletionUsage>>,
    pub system_fingerprint: &'static str,
}

/// One of its texts.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CompletionChoice {
    pub text: String,
    pub index: usize,
    pub logprobs: Option<CompletionLogprobs>,
    pub finish_reason: Option<&'static str>,
}

/// Log-probabilities as this older route writes them, each list as long as the others.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
pub(crate) struct CompletionLogprobs {
    pub tokens: Vec<String>,
    pub token_logprobs: Vec<Option<f32>>,
    #[schema(value_type = Vec<Option<Object>>)]
    pub top_logprobs: Vec<Option<Map<String, Value>>>,
    /// Where each token's text begins, in characters.
    pub text_offset: Vec<usize>,
}

/// Answers a completion request.
pub(crate) async fn create(
    State(app): State<App>,
    context: Context,
    JsonBody(request): JsonBody<CompletionRequest>,
) -> Result<Response, ServerError> {
    let model = app.models().get_text(&request.model)?;
    request.check()?;
    let include_usage = StreamOptions::include_usage(request.stream_options, request.stream)?;
    let priority = priority(request.service_tier.as_deref(), &context)?;
    let (echo, streams) = (request.echo == Some(true), request.stream == Some(true));
    let is_echo_alone = request.max_tokens == Some(0);
    let logprobs = request.logprobs.map(|n| top_logprobs("logprobs", Some(n))).transpose()?;
    let mut generate = request.sampling(logprobs).generate(&model, "max_tokens", app.config().n_completion_tokens_max)?;
    generate.prompt_logprobs = if echo { logprobs } else { None };
    if is_echo_alone {
        generate.n_tokens_max = 0;
    }
    if generate.n_tokens_min > generate.n_tokens_max {
        return Err(ServerError::invalid("min_tokens", "more than the 0 tokens of `max_tokens`"));
    }
    let format = request.structured_outputs.map(StructuredOutputs::into_format).transpose()?;
    generate.constraint = format.and_then(|format| {
        let conversation = crate::conversation::Conversation { format, ..Default::default() };
        crate::reply::grammar::constraint(&conversation)
    });
    app.check_room_of(&model, &context)?;
    let prompts = prompt_tokens(&app, &model, request.prompt.into_prompts(), "prompt").await?;
    let n_choices = generate.n_choices.get() as usize;
    let echoed = if echo { prompts.clone() } else { Vec::new() };
    let params = JobParams { prompt: "prompt", constraint: "structured_outputs" };
    let job = Job { model: model.clone(), operation: Operation::Completion, prompts, generate: Some(generate), priority, params };
    let reply = Reply::new(app.start(&context, job).await?, CallsExpected::No);
    let head = Head { id: new_id("cmpl-"), created: app.now_unix_seconds(), model, logprobs: logprobs.is_some() };
    let writer = Writer { head, echoed, n_choices };
    if streams {
        let n_all = reply.n_choices();
        let encoder = CompletionEncoder { writer, include_usage, offsets: vec![0; n_all] };
        return Ok(sse::stream(reply, Box::new(encoder), app.config().heartbeat));
    }
    let rate_limits = reply.rate_limits();
    Ok(rate_headers::json(&writer.completion(collect(reply).await?), rate_limits))
}

impl CompletionRequest {
    fn check(&self) -> Result<(), ServerError> {
        if self.suffix.as_ref().is_some_and(|suffix| !suffix.is_empty()) {
            return Err(ServerError::unsupported("suffix", "the models served here write on and do not fill in"));
        }
        let n = self.n.unwrap_or(1);
        if self.best_of.is_some_and(|best_of| best_of != n) {
            return Err(ServerError::unsupported("best_of", "completions are not ranked: it must equal `n`"));
        }
        if self.max_tokens == Some(0) && self.echo != Some(true) {
            return Err(ServerError::invalid("max_tokens", "0 only with `echo`"));
        }
        let n_prompts = match &self.prompt {
            PromptInput::Texts(texts) => texts.len(),
            PromptInput::TokenLists(lists) => lists.len(),
            PromptInput::Text(_) | PromptInput::Tokens(_) => 1,
        };
        match n_prompts {
            0 => Err(ServerError::invalid("prompt", "there is none")),
            n if n > limits::N_PROMPTS_MAX => {
                Err(ServerError::invalid("prompt", format!("{n} of them, more than {}", limits::N_PROMPTS_MAX)))
            }
            _ => Ok(()),
        }
    }

    fn sampling(&self, logprobs: Option<u32>) -> SamplingRequest {
        SamplingRequest {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            seed: self.seed,
            n: self.n,
            // 0, which other routes refuse, is put in place afterwards.
            n_tokens_max: Some(self.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS).max(1)),
            n_tokens_min: self.min_tokens,
            stop: self.stop.clone(),
            stop_token_ids: self.stop_token_ids.clone(),
            ignore_eos: self.ignore_eos,
            logit_bias: self.logit_bias.clone(),
            logprobs,
        }
    }
}

struct Head {
    id: String,
    created: i64,
    model: Arc<ServedModel>,
    logprobs: bool,
}

/// Writes completions, whole or in pieces.
struct Writer {
    head: Head,
    /// The prompts, if they are to be given back.
    echoed: Vec<Vec<TokenId>>,
    n_choices: usize,
}

impl Writer {
    fn completion(&self, said: Said) -> Completion {
        let choices = said.choices.into_iter().enumerate().map(|(index, choice)| {
            let prompt = index / self.n_choices;
            let scored = said.prompt_logprobs.get(prompt).and_then(Option::as_deref);
            let mut logprobs = self.head.logprobs.then(CompletionLogprobs::default);
            let mut text = self.echo(prompt, scored, logprobs.as_mut());
            self.say(&choice, &mut text, logprobs.as_mut());
            let finish_reason = choice.ending.as_ref().map(|ending| finish_reason(&ending.reason));
            CompletionChoice { text, index, logprobs, finish_reason }
        });
        let choices = choices.collect();
        self.envelope(choices, Some(Some(said.usage)))
    }

    fn say(&self, choice: &SaidChoice, text: &mut String, logprobs: Option<&mut CompletionLogprobs>) {
        if let Some(logprobs) = logprobs {
            let mut offset = text.chars().count();
            for logprob in choice.tokens.iter().filter_map(|token| token.logprob.as_ref()) {
                logprobs.push(&self.head.model, Some(logprob), (logprob.token_id, &mut offset));
            }
        }
        text.push_str(&choice.text);
    }

    /// The prompt's text, and its tokens' log-probabilities.
    fn echo(&self, prompt: usize, scored: Option<&[Option<TokenLogprob>]>, logprobs: Option<&mut CompletionLogprobs>) -> String {
        let Some(tokens) = self.echoed.get(prompt) else { return String::new() };
        if let (Some(logprobs), Some(scored)) = (logprobs, scored) {
            let mut offset = 0;
            for (&token_id, logprob) in tokens.iter().zip(scored) {
                logprobs.push(&self.head.model, logprob.as_ref(), (token_id, &mut offset));
            }
        }
        self.head.model.tokenizer.decode(tokens, SpecialTokens::Skip)
    }

    fn envelope(&self, choices: Vec<CompletionChoice>, usage: Option<Option<Usage>>) -> Completion {
        Completion {
            id: self.head.id.clone(),
            object: "text_completion",
            created: self.head.created,
            model: self.head.model.name.clone(),
            choices,
            usage: usage.map(|usage| usage.map(CompletionUsage::from)),
            system_fingerprint: SYSTEM_FINGERPRINT,
        }
    }
}

impl CompletionLogprobs {
    /// Adds a token; `at` is its id and where its text begins.
    fn push(&mut self, model: &ServedModel, logprob: Option<&TokenLogprob>, at: (TokenId, &mut usize)) {
        let text_of = |token_id: TokenId| {
            let bytes = model.tokenizer.token_bytes(token_id).unwrap_or_default();
            String::from_utf8_lossy(bytes).into_owned()
        };
        let text = text_of(at.0);
        self.text_offset.push(*at.1);
        *at.1 += text.chars().count();
        self.tokens.push(text);
        self.token_logprobs.push(logprob.map(|logprob| shown_logprob(logprob.logprob)));
        let top = |logprob: &TokenLogprob| {
            // The token itself is always there, likely or not.
            let own = (logprob.token_id, logprob.logprob);
            logprob.top.iter().chain([&own]).map(|&(id, value)| (text_of(id), shown_logprob(value).into())).collect()
        };
        self.top_logprobs.push(logprob.map(top));
    }
}

struct CompletionEncoder {
    writer: Writer,
    include_usage: bool,
    /// Where the next token of each choice begins, in characters of its tokens' texts.
    offsets: Vec<usize>,
}

impl CompletionEncoder {
    fn chunk(&self, choices: Vec<CompletionChoice>, usage: Option<Usage>, frames: &mut Frames) {
        frames.data(&self.writer.envelope(choices, self.include_usage.then_some(usage)));
    }

    fn piece(&self, index: usize, text: String, logprobs: Option<CompletionLogprobs>, frames: &mut Frames) {
        self.chunk(vec![CompletionChoice { text, index, logprobs, finish_reason: None }], None, frames);
    }

    fn started(&mut self, prompt: usize, scored: Option<&[Option<TokenLogprob>]>, frames: &mut Frames) {
        if self.writer.echoed.is_empty() {
            return;
        }
        for index in prompt * self.writer.n_choices..(prompt + 1) * self.writer.n_choices {
            let mut logprobs = self.writer.head.logprobs.then(CompletionLogprobs::default);
            let text = self.writer.echo(prompt, scored, logprobs.as_mut());
            self.offsets[index] = text.chars().count();
            self.piece(index, text, logprobs, frames);
        }
    }
}

impl Encoder for CompletionEncoder {
    fn begin(&mut self, _frames: &mut Frames) {}

    fn encode(&mut self, event: ReplyEvent, frames: &mut Frames) {
        match event {
            ReplyEvent::Started { prompt, prompt_logprobs } => self.started(prompt, prompt_logprobs.as_deref(), frames),
            ReplyEvent::Part { choice, part: ReplyPart::Text(text), tokens } => {
                let logprobs = self.writer.head.logprobs.then(|| {
                    let mut logprobs = CompletionLogprobs::default();
                    let offset = &mut self.offsets[choice];
                    for logprob in tokens.iter().filter_map(|token| token.logprob.as_ref()) {
                        logprobs.push(&self.writer.head.model, Some(logprob), (logprob.token_id, offset));
                    }
                    logprobs
                });
                self.piece(choice, text, logprobs, frames);
            }
            ReplyEvent::Part { .. } => {}
            ReplyEvent::ChoiceFinished { choice, ending } => {
                let finish_reason = Some(finish_reason(&ending.reason));
                let finished = CompletionChoice { text: String::new(), index: choice, logprobs: None, finish_reason };
                self.chunk(vec![finished], None, frames);
            }
            ReplyEvent::Finished(usage) => {
                if self.include_usage {
                    self.chunk(Vec::new(), Some(usage), frames);
                }
                frames.line("data: [DONE]");
            }
            ReplyEvent::Failed(error) => {
                frames.data(&error.body(Dialect::OpenAi, None));
                frames.line("data: [DONE]");
            }
        }
    }
}
