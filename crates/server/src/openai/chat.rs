//! `POST /v1/chat/completions`: the handler, and how a reply is written, whole or as chunks.

use axum::extract::State;
use axum::response::Response;
use bitnet_engine::Usage;
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::{App, Context, JobParams};
use crate::converse::{Talk, converse};
use crate::error::{Dialect, ServerError};
use crate::extract::JsonBody;
use crate::ids::new_id;
use crate::models::ServedModel;
use crate::openai::chat_request::{CalledFunction, ChatRequest, ChatToolCall, FunctionKind, StreamOptions};
use crate::openai::shared::{CompletionUsage, TokenText, finish_reason, priority, service_tier, top_tokens};
use crate::rate_headers;
use crate::reply::calls::ReplyPart;
use crate::reply::{Ending, ReplyEvent, Said, SaidChoice, SaidToken, collect};
use crate::sse::{self, Encoder, Frames};

/// Which build answered: with the same seed, another build may answer otherwise.
pub(crate) const SYSTEM_FINGERPRINT: &str = concat!("fp_bitnet_", env!("CARGO_PKG_VERSION"));

/// A whole reply.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChatCompletion {
    pub id: String,
    pub object: &'static str,
    pub created: i64,
    pub model: String,
    pub choices: Vec<ChatChoice>,
    pub usage: CompletionUsage,
    pub service_tier: &'static str,
    pub system_fingerprint: &'static str,
}

/// One of its texts.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChatChoice {
    pub index: usize,
    pub message: ReplyMessage,
    pub logprobs: Option<ChatLogprobs>,
    pub finish_reason: &'static str,
}

/// What the model said.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ReplyMessage {
    pub role: &'static str,
    pub content: Option<String>,
    pub refusal: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ChatToolCall>,
    pub annotations: Vec<String>,
}

/// Log-probabilities of a text's tokens.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChatLogprobs {
    pub content: Vec<ChatTokenLogprob>,
    pub refusal: Option<Vec<ChatTokenLogprob>>,
}

/// Of one token.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChatTokenLogprob {
    #[serde(flatten)]
    pub token: TokenText,
    pub top_logprobs: Vec<TokenText>,
}

/// A piece of a streamed reply.
#[derive(Serialize)]
struct ChatChunk<'a> {
    id: &'a str,
    object: &'static str,
    created: i64,
    model: &'a str,
    service_tier: &'static str,
    system_fingerprint: &'static str,
    choices: &'a [ChatChunkChoice<'a>],
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<CompletionUsage>>,
}

/// Of one choice.
#[derive(Serialize)]
struct ChatChunkChoice<'a> {
    index: usize,
    delta: ChatDelta<'a>,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
}

/// What is new.
#[derive(Default, Serialize)]
struct ChatDelta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<[CallDelta<'a>; 1]>,
}

/// What is new of a call.
#[derive(Serialize)]
struct CallDelta<'a> {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<FunctionKind>,
    function: FunctionDelta<'a>,
}

/// Its name at first, then its arguments.
#[derive(Serialize)]
struct FunctionDelta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    arguments: &'a str,
}

/// Answers a chat request.
pub(crate) async fn create(
    State(app): State<App>,
    context: Context,
    JsonBody(request): JsonBody<ChatRequest>,
) -> Result<Response, ServerError> {
    let model = app.models().get_text(&request.model)?;
    model.require_template()?;
    request.check()?;
    let include_usage = StreamOptions::include_usage(request.stream_options, request.stream)?;
    let max_param = if request.max_tokens.is_some() { "max_tokens" } else { "max_completion_tokens" };
    let generate = request.sampling()?.generate(&model, max_param, app.config().n_completion_tokens_max)?;
    let priority = priority(request.service_tier.as_deref(), &context)?;
    let has_logprobs = request.logprobs == Some(true);
    let streams = request.stream == Some(true);
    let constraint = if request.structured_outputs.is_some() { "structured_outputs" } else { "response_format" };
    let params = JobParams { prompt: "messages", constraint };
    let conversation = request.into_conversation()?;
    let talk = Talk { model: model.clone(), conversation, generate, priority, params };
    let reply = converse(&app, &context, talk).await?;
    let service_tier = service_tier(priority);
    let head = Head { id: new_id("chatcmpl-"), created: app.now_unix_seconds(), model, service_tier, has_logprobs };
    if streams {
        let encoder = ChatEncoder { head, include_usage, n_choices: reply.n_choices() };
        return Ok(sse::stream(reply, Box::new(encoder), app.config().heartbeat));
    }
    let rate_limits = reply.rate_limits();
    Ok(rate_headers::json(&head.completion(collect(reply).await?), rate_limits))
}

/// What all pieces of a reply repeat.
struct Head {
    id: String,
    created: i64,
    model: std::sync::Arc<ServedModel>,
    service_tier: &'static str,
    has_logprobs: bool,
}

impl Head {
    fn completion(self, said: Said) -> ChatCompletion {
        let choices = said.choices.into_iter().enumerate().map(|(index, choice)| self.choice(index, choice)).collect();
        ChatCompletion {
            choices,
            created: self.created,
            model: self.model.name.clone(),
            id: self.id,
            object: "chat.completion",
            usage: said.usage.into(),
            service_tier: self.service_tier,
            system_fingerprint: SYSTEM_FINGERPRINT,
        }
    }

    fn choice(&self, index: usize, choice: SaidChoice) -> ChatChoice {
        let calls = choice.calls.into_iter().map(|call| ChatToolCall {
            id: new_id("call_"),
            kind: FunctionKind::Function,
            function: CalledFunction { name: call.name, arguments: call.arguments },
        });
        let tool_calls: Vec<ChatToolCall> = calls.collect();
        // A reply that only calls has no content, as opposed to an empty one.
        let content = (!choice.text.is_empty() || tool_calls.is_empty()).then_some(choice.text);
        ChatChoice {
            index,
            message: ReplyMessage { role: "assistant", content, refusal: None, tool_calls, annotations: Vec::new() },
            logprobs: self.logprobs(&choice.tokens),
            finish_reason: choice.ending.as_ref().map_or("stop", chat_finish_reason),
        }
    }

    fn logprobs(&self, tokens: &[SaidToken]) -> Option<ChatLogprobs> {
        if !self.has_logprobs {
            return None;
        }
        let tokenizer = &self.model.tokenizer;
        let entry = |logprob: &bitnet_engine::TokenLogprob| ChatTokenLogprob {
            token: TokenText::new(tokenizer, logprob.token_id, logprob.logprob),
            top_logprobs: top_tokens(tokenizer, logprob),
        };
        let content = tokens.iter().filter_map(|token| token.logprob.as_ref()).map(entry).collect();
        Some(ChatLogprobs { content, refusal: None })
    }
}

/// Calls go before stops: a client looks for them by this word.
fn chat_finish_reason(ending: &Ending) -> &'static str {
    match finish_reason(&ending.reason) {
        "stop" if ending.n_calls > 0 => "tool_calls",
        reason => reason,
    }
}

struct ChatEncoder {
    head: Head,
    include_usage: bool,
    n_choices: usize,
}

impl ChatEncoder {
    fn chunk(&self, choices: &[ChatChunkChoice<'_>], usage: Option<Usage>, frames: &mut Frames) {
        let head = &self.head;
        frames.data(&ChatChunk {
            id: &head.id,
            object: "chat.completion.chunk",
            created: head.created,
            model: &head.model.name,
            service_tier: head.service_tier,
            system_fingerprint: SYSTEM_FINGERPRINT,
            choices,
            // With usage wanted, every chunk has the member, null but for the last.
            usage: self.include_usage.then(|| usage.map(CompletionUsage::from)),
        });
    }

    fn part(&self, choice: usize, part: &ReplyPart, tokens: &[SaidToken], frames: &mut Frames) {
        let delta = match part {
            ReplyPart::Text(text) => ChatDelta { content: Some(text), ..ChatDelta::default() },
            ReplyPart::CallStart { call, name } => {
                let function = FunctionDelta { name: Some(name), arguments: "" };
                call_delta(CallDelta { index: *call, id: Some(new_id("call_")), kind: Some(FunctionKind::Function), function })
            }
            ReplyPart::Arguments { call, json } => {
                call_delta(CallDelta { index: *call, id: None, kind: None, function: FunctionDelta { name: None, arguments: json } })
            }
            ReplyPart::CallEnd { .. } => return,
        };
        let logprobs = if tokens.is_empty() { None } else { self.head.logprobs(tokens) };
        self.chunk(&[ChatChunkChoice { index: choice, delta, logprobs, finish_reason: None }], None, frames);
    }
}

fn call_delta(call: CallDelta<'_>) -> ChatDelta<'_> {
    ChatDelta { tool_calls: Some([call]), ..ChatDelta::default() }
}

impl Encoder for ChatEncoder {
    fn begin(&mut self, frames: &mut Frames) {
        for index in 0..self.n_choices {
            let delta = ChatDelta { role: Some("assistant"), content: Some(""), tool_calls: None };
            self.chunk(&[ChatChunkChoice { index, delta, logprobs: None, finish_reason: None }], None, frames);
        }
    }

    fn encode(&mut self, event: ReplyEvent, frames: &mut Frames) {
        match event {
            ReplyEvent::Started { .. } => {}
            ReplyEvent::Part { choice, part, tokens } => self.part(choice, &part, &tokens, frames),
            ReplyEvent::ChoiceFinished { choice, ending } => {
                let finish_reason = Some(chat_finish_reason(&ending));
                let finished = ChatChunkChoice { index: choice, delta: ChatDelta::default(), logprobs: None, finish_reason };
                self.chunk(&[finished], None, frames);
            }
            ReplyEvent::Finished(usage) => {
                if self.include_usage {
                    self.chunk(&[], Some(usage), frames);
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
