//! What `POST /v1/messages` reads and writes, and how a request becomes a conversation.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::conversation::{CallCount, Continuation, Conversation, PastCall, Tool, ToolChoice, Turn};
use crate::error::ServerError;
use crate::extract::{Needs, RequestBody};
use crate::one_or_many::TextOrList;
use crate::sampling::{SamplingRequest, stop_strings};

/// Parameters of Anthropic's that are refused.
const REFUSED: &[(&str, &str)] = &[
    ("thinking", "the models served here have no thinking budget"),
    ("container", "there are no containers here"),
    ("mcp_servers", "this server does not call others"),
    ("context_management", "contexts are not edited here"),
    ("output_config", "use a tool whose schema is the output"),
    ("output_format", "use a tool whose schema is the output"),
    ("diagnostics", "the server's own metrics tell how it is"),
    ("speed", "there is one speed"),
    ("user_profile_id", "there are no profiles here"),
    ("workspace_id", "there are no workspaces here"),
    ("inference_geo", "everything runs where the server runs"),
    ("source", "this server reads text only"),
    ("citations", "texts are not cited here"),
    ("defer_loading", "all tools are there from the start"),
];

/// A request for a message.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct MessagesRequest {
    /// The model's name.
    pub model: String,
    #[schema(minimum = 1)]
    pub max_tokens: u32,
    pub messages: Vec<InputMessage>,
    pub system: Option<TextOrList<TextBlock>>,
    /// Whom the request is made for; it changes nothing.
    #[serde(rename = "metadata")]
    pub _metadata: Option<RequestMetadata>,
    /// `auto` or `standard_only`.
    pub service_tier: Option<String>,
    pub stop_sequences: Option<Vec<String>>,
    pub stream: Option<bool>,
    /// In 0..=1.
    pub temperature: Option<f32>,
    pub top_k: Option<i64>,
    pub top_p: Option<f32>,
    pub tools: Option<Vec<ToolDefinition>>,
    pub tool_choice: Option<Choice>,
    #[serde(rename = "cache_control")]
    pub _cache_control: Option<CacheControl>,
}

impl RequestBody for MessagesRequest {
    const REFUSED: &'static [(&'static str, &'static str)] = REFUSED;
}

/// A conversation to be counted.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CountTokensRequest {
    /// The model's name.
    pub model: String,
    pub messages: Vec<InputMessage>,
    pub system: Option<TextOrList<TextBlock>>,
    pub tools: Option<Vec<ToolDefinition>>,
    pub tool_choice: Option<Choice>,
    #[serde(rename = "cache_control")]
    pub _cache_control: Option<CacheControl>,
}

impl RequestBody for CountTokensRequest {
    const REFUSED: &'static [(&'static str, &'static str)] = REFUSED;
    const NEEDS: Needs = Needs::Server;
}

/// How many tokens it is.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CountedTokens {
    pub input_tokens: usize,
}

/// Whom a request is made for; it changes nothing.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RequestMetadata {
    #[serde(rename = "user_id")]
    pub _user_id: Option<String>,
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum InputRole {
    User,
    Assistant,
}

/// A message.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct InputMessage {
    pub role: InputRole,
    pub content: TextOrList<InputBlock>,
}

/// Text of a system prompt or a tool's result.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TextBlock {
    #[serde(rename = "type")]
    pub _kind: TextKind,
    pub text: String,
    #[serde(rename = "cache_control")]
    pub _cache_control: Option<CacheControl>,
}

/// The only kind of it.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum TextKind {
    Text,
}

/// Prefixes are remembered by themselves, so this asks for what happens anyway.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CacheControl {
    #[serde(rename = "type")]
    pub _kind: CacheKind,
    #[serde(rename = "ttl")]
    pub _ttl: Option<String>,
}

/// The only kind of it.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum CacheKind {
    Ephemeral,
}

/// What a block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum InputKind {
    Text,
    ToolUse,
    ToolResult,
}

/// A block of a message; which members it has depends on its type.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct InputBlock {
    #[serde(rename = "type")]
    pub kind: InputKind,
    pub text: Option<String>,
    pub id: Option<String>,
    pub name: Option<String>,
    #[schema(value_type = Option<Object>)]
    pub input: Option<Value>,
    pub tool_use_id: Option<String>,
    pub content: Option<TextOrList<TextBlock>>,
    pub is_error: Option<bool>,
    #[serde(rename = "cache_control")]
    pub _cache_control: Option<CacheControl>,
}

/// A tool.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ToolDefinition {
    /// Only `custom`: the server runs no tools of its own.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub name: String,
    pub description: Option<String>,
    /// Every call follows it.
    #[schema(value_type = Object)]
    pub input_schema: Value,
    #[serde(rename = "cache_control")]
    pub _cache_control: Option<CacheControl>,
    #[serde(rename = "strict")]
    pub _strict: Option<bool>,
}

/// Whether tools are called.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Choice {
    #[serde(rename = "type")]
    pub kind: ChoiceKind,
    pub name: Option<String>,
    pub disable_parallel_tool_use: Option<bool>,
}

/// The kinds of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ChoiceKind {
    Auto,
    Any,
    Tool,
    None,
}

/// A whole reply.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct MessageReply {
    pub id: String,
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub role: &'static str,
    pub model: String,
    pub content: Vec<ReplyBlock>,
    pub stop_reason: Option<&'static str>,
    pub stop_sequence: Option<String>,
    pub usage: MessageUsage,
}

/// A block of it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum ReplyBlock {
    Text {
        text: String,
    },
    ToolUse {
        id: String,
        name: String,
        #[schema(value_type = Object)]
        input: Value,
    },
}

/// What it used. Cached tokens are counted apart from the others, as Anthropic does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct MessageUsage {
    pub input_tokens: usize,
    pub cache_creation_input_tokens: usize,
    pub cache_read_input_tokens: usize,
    pub output_tokens: usize,
    pub service_tier: &'static str,
}

impl From<bitnet_engine::Usage> for MessageUsage {
    fn from(usage: bitnet_engine::Usage) -> Self {
        Self {
            input_tokens: usage.n_prompt_tokens - usage.n_cached_tokens.min(usage.n_prompt_tokens),
            cache_creation_input_tokens: 0,
            cache_read_input_tokens: usage.n_cached_tokens,
            output_tokens: usage.n_completion_tokens,
            service_tier: "standard",
        }
    }
}

impl MessagesRequest {
    /// The sampling part.
    pub(crate) fn sampling(&self) -> Result<SamplingRequest, ServerError> {
        if self.temperature.is_some_and(|temperature| !(0.0..=1.0).contains(&temperature)) {
            return Err(ServerError::invalid("temperature", "not in 0..=1"));
        }
        if !matches!(self.service_tier.as_deref(), None | Some("auto" | "standard_only")) {
            return Err(ServerError::invalid("service_tier", "`auto` or `standard_only`"));
        }
        Ok(SamplingRequest {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            n_tokens_max: Some(self.max_tokens),
            stop: Some(TextOrList::List(stop_strings("stop_sequences", self.stop_sequences.clone().map(TextOrList::List))?)),
            ..SamplingRequest::default()
        })
    }
}

/// The conversation of a request.
pub(crate) fn conversation(request: CountTokensRequest) -> Result<Conversation, ServerError> {
    let mut turns = Vec::new();
    if let Some(system) = request.system {
        turns.push(Turn::System(joined(system)));
    }
    for (index, message) in request.messages.into_iter().enumerate() {
        push_turns(message, index, &mut turns)?;
    }
    let tools = request.tools.unwrap_or_default().into_iter().enumerate().map(|(index, tool)| tool.into_tool(index));
    let tools = tools.collect::<Result<Vec<_>, _>>()?;
    let one_call = request.tool_choice.as_ref().and_then(|choice| choice.disable_parallel_tool_use) == Some(true);
    let is_prefill = matches!(turns.last(), Some(Turn::Assistant { calls, .. }) if calls.is_empty());
    let conversation = Conversation {
        turns,
        tools,
        tool_choice: request.tool_choice.map(Choice::into_choice).transpose()?.unwrap_or_default(),
        call_count: if one_call { CallCount::One } else { CallCount::Many },
        continues: if is_prefill { Continuation::LastTurn } else { Continuation::NewTurn },
        ..Conversation::default()
    };
    conversation.check("messages")?;
    Ok(conversation)
}

fn joined(text: TextOrList<TextBlock>) -> String {
    match text {
        TextOrList::Text(text) => text,
        TextOrList::List(blocks) => blocks.into_iter().map(|block| block.text).collect::<Vec<_>>().join("\n"),
    }
}

/// One message is one turn, but that each tool's result is a turn of its own.
fn push_turns(message: InputMessage, index: usize, turns: &mut Vec<Turn>) -> Result<(), ServerError> {
    let blocks = match message.content {
        TextOrList::Text(text) => {
            turns.push(match message.role {
                InputRole::User => Turn::User(text),
                InputRole::Assistant => Turn::Assistant { text, calls: Vec::new() },
            });
            return Ok(());
        }
        TextOrList::List(blocks) => blocks,
    };
    let (mut text, mut calls) = (String::new(), Vec::new());
    for (place, block) in blocks.into_iter().enumerate() {
        let at = |field: &str| format!("messages[{index}].content[{place}].{field}");
        let required = |field: &str| ServerError::MissingParameter { param: at(field) };
        match (block.kind, message.role) {
            (InputKind::Text, _) => text.push_str(&block.text.ok_or_else(|| required("text"))?),
            (InputKind::ToolUse, InputRole::Assistant) => calls.push(PastCall {
                id: block.id.ok_or_else(|| required("id"))?,
                name: block.name.ok_or_else(|| required("name"))?,
                arguments: block.input.ok_or_else(|| required("input"))?.to_string(),
            }),
            (InputKind::ToolResult, InputRole::User) => {
                let call_id = block.tool_use_id.ok_or_else(|| required("tool_use_id"))?;
                let result = block.content.map(joined).unwrap_or_default();
                let text = if block.is_error == Some(true) { format!("error: {result}") } else { result };
                turns.push(Turn::ToolResult { call_id, text });
            }
            (InputKind::ToolUse | InputKind::ToolResult, _) => {
                return Err(ServerError::invalid(at("type"), "tools are used by the assistant and answered by the user"));
            }
        }
    }
    match message.role {
        InputRole::User if text.is_empty() => {}
        InputRole::User => turns.push(Turn::User(text)),
        InputRole::Assistant => turns.push(Turn::Assistant { text, calls }),
    }
    Ok(())
}

impl ToolDefinition {
    fn into_tool(self, index: usize) -> Result<Tool, ServerError> {
        if self.kind.as_deref().is_some_and(|kind| kind != "custom") {
            return Err(ServerError::unsupported(format!("tools[{index}].type"), "this server runs no tools of its own"));
        }
        Ok(Tool { name: self.name, description: self.description, parameters: self.input_schema })
    }
}

impl Choice {
    fn into_choice(self) -> Result<ToolChoice, ServerError> {
        match (self.kind, self.name) {
            (ChoiceKind::Auto, None) => Ok(ToolChoice::Auto),
            (ChoiceKind::Any, None) => Ok(ToolChoice::Required),
            (ChoiceKind::None, None) => Ok(ToolChoice::Forbidden),
            (ChoiceKind::Tool, Some(name)) => Ok(ToolChoice::Named(name)),
            (ChoiceKind::Tool, None) => Err(ServerError::MissingParameter { param: "tool_choice.name".into() }),
            (_, Some(_)) => Err(ServerError::invalid("tool_choice.name", "only with `type`: \"tool\"")),
        }
    }
}
