//! `POST /v1/messages` and `POST /v1/messages/count_tokens`: the handlers.

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use bitnet_engine::FinishReason;
use serde_json::Value;

use crate::anthropic::encoder::MessageEncoder;
use crate::anthropic::wire::{CountTokensRequest, CountedTokens, MessageReply, MessagesRequest, ReplyBlock, conversation};
use crate::app::{App, Context, JobParams};
use crate::converse::{Talk, conversation_tokens, converse};
use crate::error::ServerError;
use crate::extract::JsonBody;
use crate::ids::new_id;
use crate::rate_headers;
use crate::reply::{Ending, Said, SaidCall, collect};
use crate::sse;

/// Answers.
pub(crate) async fn create(
    State(app): State<App>,
    context: Context,
    JsonBody(request): JsonBody<MessagesRequest>,
) -> Result<Response, ServerError> {
    let model = app.models().get_text(&request.model)?;
    let generate = request.sampling()?.generate(&model, "max_tokens", app.config().n_completion_tokens_max)?;
    let streams = request.stream == Some(true);
    let MessagesRequest { model: name, messages, system, tools, tool_choice, .. } = request;
    let counted = CountTokensRequest { model: name, messages, system, tools, tool_choice, _cache_control: None };
    let conversation = conversation(counted)?;
    let name = model.name.clone();
    let params = JobParams { prompt: "messages", constraint: "tools" };
    let talk = Talk { model, conversation, generate, priority: context.caller.priority_best, params };
    let reply = converse(&app, &context, talk).await?;
    if streams {
        let encoder = MessageEncoder::new(new_id("msg_"), name, reply.n_prompt_tokens());
        return Ok(sse::stream(reply, Box::new(encoder), app.config().heartbeat));
    }
    let rate_limits = reply.rate_limits();
    Ok(rate_headers::json(&message(name, collect(reply).await?), rate_limits))
}

/// Counts.
pub(crate) async fn count_tokens(
    State(app): State<App>,
    _: Context,
    JsonBody(request): JsonBody<CountTokensRequest>,
) -> Result<Json<CountedTokens>, ServerError> {
    let model = app.models().get_text(&request.model)?;
    let conversation = conversation(request)?;
    let tokens = conversation_tokens(&app, &model, conversation, "messages").await?;
    Ok(Json(CountedTokens { input_tokens: tokens.len() }))
}

fn message(model: String, said: Said) -> MessageReply {
    let usage = said.usage.into();
    let choice = said.choices.into_iter().next().unwrap_or_default();
    let (stop_reason, stop_sequence) = choice.ending.as_ref().map_or((None, None), |ending| {
        let (reason, sequence) = stop(ending);
        (Some(reason), sequence)
    });
    let text = (!choice.text.is_empty()).then_some(ReplyBlock::Text { text: choice.text });
    let content = text.into_iter().chain(choice.calls.into_iter().map(tool_use)).collect();
    MessageReply { id: new_id("msg_"), kind: "message", role: "assistant", model, content, stop_reason, stop_sequence, usage }
}

fn tool_use(call: SaidCall) -> ReplyBlock {
    // A call that was cut off by `max_tokens` is not JSON; what there is of it is given as text.
    let input = serde_json::from_str(&call.arguments).unwrap_or(Value::String(call.arguments));
    ReplyBlock::ToolUse { id: new_id("toolu_"), name: call.name, input }
}

/// Anthropic's words for why a message ended, and the stop sequence that did it.
pub(super) fn stop(ending: &Ending) -> (&'static str, Option<String>) {
    match &ending.reason {
        FinishReason::Length => ("max_tokens", None),
        FinishReason::ContextFull => ("model_context_window_exceeded", None),
        _ if ending.n_calls > 0 => ("tool_use", None),
        FinishReason::StopString(text) => ("stop_sequence", Some(text.clone())),
        FinishReason::EndOfSequence | FinishReason::StopToken(_) => ("end_turn", None),
    }
}
