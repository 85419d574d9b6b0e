//! `POST /v1/chat/completions`: what a request may say, and what it means. Every parameter of OpenAI's is here or in the table of
//! those refused; beside them those of vLLM that open models need.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::conversation::{CallCount, Conversation, PastCall, ReplyFormat, Tool, ToolChoice, Turn};
use crate::error::ServerError;
use crate::extract::RequestBody;
use crate::one_or_many::TextOrList;
use crate::openai::shared::{self, JsonSchemaFormat, Metadata, StructuredOutputs};
use crate::sampling::{SamplingRequest, top_logprobs};

/// A chat request.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ChatRequest {
    /// The model's name.
    pub model: String,
    /// The conversation so far.
    pub messages: Vec<ChatMessage>,
    pub frequency_penalty: Option<f32>,
    pub presence_penalty: Option<f32>,
    /// Token ids and what is added to their logits.
    pub logit_bias: Option<BTreeMap<String, f32>>,
    pub logprobs: Option<bool>,
    #[schema(maximum = 20)]
    pub top_logprobs: Option<u32>,
    /// The older name of `max_completion_tokens`.
    #[schema(minimum = 1)]
    pub max_tokens: Option<u32>,
    #[schema(minimum = 1)]
    pub max_completion_tokens: Option<u32>,
    #[schema(minimum = 1, maximum = 32)]
    pub n: Option<u32>,
    pub stop: Option<TextOrList<String>>,
    pub stream: Option<bool>,
    pub stream_options: Option<StreamOptions>,
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    pub seed: Option<i64>,
    pub tools: Option<Vec<ChatTool>>,
    pub tool_choice: Option<ChatToolChoice>,
    pub parallel_tool_calls: Option<bool>,
    pub response_format: Option<ResponseFormat>,
    /// `auto`, `default` or `flex`, which waits for others.
    pub service_tier: Option<String>,
    /// Only `false`: completions are not kept.
    pub store: Option<bool>,
    pub metadata: Option<Metadata>,
    /// Only `["text"]`.
    pub modalities: Option<Vec<String>>,
    /// Whom the request is made for, here and in the next two; they change nothing.
    #[serde(rename = "user")]
    pub _user: Option<String>,
    #[serde(rename = "safety_identifier")]
    pub _safety_identifier: Option<String>,
    #[serde(rename = "prompt_cache_key")]
    pub _prompt_cache_key: Option<String>,
    pub top_k: Option<i64>,
    pub min_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
    pub min_tokens: Option<u32>,
    pub ignore_eos: Option<bool>,
    pub stop_token_ids: Option<Vec<u32>>,
    /// Further arguments of the model's chat template.
    #[schema(value_type = Option<Object>)]
    pub chat_template_kwargs: Option<Map<String, Value>>,
    pub structured_outputs: Option<StructuredOutputs>,
}

impl RequestBody for ChatRequest {
    const REFUSED: &'static [(&'static str, &'static str)] = &[
        ("audio", "this server speaks text only"),
        ("image_url", "this server reads text only"),
        ("input_audio", "this server reads text only"),
        ("file", "this server reads text only"),
        ("function_call", "use `tool_choice`"),
        ("functions", "use `tools`"),
        ("prediction", "the server drafts by itself"),
        ("prompt_cache_options", "cached prefixes stay as long as there is room"),
        ("prompt_cache_retention", "cached prefixes stay as long as there is room"),
        ("reasoning_effort", "use `chat_template_kwargs` where the model's template knows such a thing"),
        ("verbosity", "the models served here know no such thing"),
        ("web_search_options", "this server does not search the web"),
        ("moderation", "this server does not moderate"),
        ("custom", "tools are functions"),
    ];
}

/// What a stream holds besides.
#[derive(Debug, Clone, Copy, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct StreamOptions {
    /// A last chunk with the usage.
    pub include_usage: Option<bool>,
    /// Only `false`.
    pub include_obfuscation: Option<bool>,
}

impl StreamOptions {
    /// Whether a last chunk tells the usage; refuses what is not done.
    pub(crate) fn include_usage(options: Option<Self>, stream: Option<bool>) -> Result<bool, ServerError> {
        let Some(options) = options else { return Ok(false) };
        if stream != Some(true) {
            return Err(ServerError::invalid("stream_options", "only with `stream`: true"));
        }
        if options.include_obfuscation == Some(true) {
            return Err(ServerError::unsupported("stream_options.include_obfuscation", "chunks are not padded"));
        }
        Ok(options.include_usage == Some(true))
    }
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ChatRole {
    System,
    Developer,
    User,
    Assistant,
    Tool,
}

/// A message.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ChatMessage {
    pub role: ChatRole,
    /// What is said; an assistant that calls may say nothing.
    pub content: Option<TextOrList<ContentPart>>,
    pub name: Option<String>,
    /// Of an assistant that declined; read as its content.
    pub refusal: Option<String>,
    /// Calls that the assistant made.
    pub tool_calls: Option<Vec<ChatToolCall>>,
    /// Which call a tool's message answers.
    pub tool_call_id: Option<String>,
    /// As replies carry it; only empty.
    pub annotations: Option<Vec<Value>>,
}

/// A part of a content.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ContentPart {
    #[serde(rename = "type")]
    pub kind: ContentKind,
    pub text: Option<String>,
    pub refusal: Option<String>,
}

/// What a part is.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ContentKind {
    Text,
    Refusal,
}

/// A call that was made.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ChatToolCall {
    pub id: String,
    #[serde(rename = "type")]
    pub kind: FunctionKind,
    pub function: CalledFunction,
}

/// The only kind of tool.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FunctionKind {
    #[default]
    Function,
}

/// What was called.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CalledFunction {
    pub name: String,
    /// JSON text.
    pub arguments: String,
}

/// A tool.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ChatTool {
    #[serde(rename = "type")]
    pub _kind: FunctionKind,
    pub function: FunctionDefinition,
}

/// A function that may be called.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct FunctionDefinition {
    pub name: String,
    pub description: Option<String>,
    /// JSON schema of the arguments, which every call follows, `strict` or not.
    #[schema(value_type = Option<Object>)]
    pub parameters: Option<Value>,
    #[serde(rename = "strict")]
    pub _strict: Option<bool>,
}

/// `none`, `auto`, `required`, or `{"type":"function","function":{"name":…}}`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(untagged, expecting = "not `none`, `auto`, `required` or a function's name as {\"type\":\"function\",\"function\":{\"name\":…}}")]
pub(crate) enum ChatToolChoice {
    Word(ChoiceWord),
    Named(NamedChoice),
}

/// A choice in one word.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ChoiceWord {
    None,
    Auto,
    Required,
}

/// One tool.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NamedChoice {
    #[serde(rename = "type")]
    pub kind: FunctionKind,
    pub function: FunctionName,
}

/// Its name.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct FunctionName {
    pub name: String,
}

/// What the reply's text must be.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ResponseFormat {
    #[serde(rename = "type")]
    pub kind: FormatKind,
    pub json_schema: Option<JsonSchemaFormat>,
}

/// The kinds of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FormatKind {
    Text,
    JsonObject,
    JsonSchema,
}

impl ChatRequest {
    /// Refuses values that types cannot.
    pub(crate) fn check(&self) -> Result<(), ServerError> {
        if self.store == Some(true) {
            return Err(ServerError::unsupported("store", "chat completions are not kept; /v1/responses are"));
        }
        if self.modalities.as_ref().is_some_and(|modalities| modalities.iter().any(|modality| modality != "text")) {
            return Err(ServerError::unsupported("modalities", "this server speaks text only"));
        }
        if self.max_tokens.is_some() && self.max_completion_tokens.is_some() {
            return Err(ServerError::invalid("max_tokens", "not beside `max_completion_tokens`"));
        }
        if self.top_logprobs.is_some() && self.logprobs != Some(true) {
            return Err(ServerError::invalid("top_logprobs", "only with `logprobs`: true"));
        }
        shared::check_metadata(self.metadata.as_ref())
    }

    /// The sampling part.
    pub(crate) fn sampling(&self) -> Result<SamplingRequest, ServerError> {
        let logprobs = (self.logprobs == Some(true)).then(|| top_logprobs("top_logprobs", self.top_logprobs)).transpose()?;
        Ok(SamplingRequest {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            seed: self.seed,
            n: self.n,
            n_tokens_max: self.max_completion_tokens.or(self.max_tokens),
            n_tokens_min: self.min_tokens,
            stop: self.stop.clone(),
            stop_token_ids: self.stop_token_ids.clone(),
            ignore_eos: self.ignore_eos,
            logit_bias: self.logit_bias.clone(),
            logprobs,
        })
    }

    /// Messages and tools alone, as a conversation.
    pub(crate) fn conversation_of(messages: Vec<ChatMessage>, tools: Option<Vec<ChatTool>>) -> Result<Conversation, ServerError> {
        let names = messages.iter().map(|message| message.name.clone()).collect();
        let turns = messages.into_iter().enumerate().map(|(index, message)| message.into_turn(index)).collect::<Result<_, _>>()?;
        let tools = tools.unwrap_or_default().into_iter().map(|tool| tool.function.into_tool()).collect();
        let conversation = Conversation { turns, names, tools, ..Conversation::default() };
        conversation.check("messages")?;
        Ok(conversation)
    }

    /// The conversation part.
    pub(crate) fn into_conversation(self) -> Result<Conversation, ServerError> {
        let base = Self::conversation_of(self.messages, self.tools)?;
        let format = reply_format(self.response_format, self.structured_outputs, !base.tools.is_empty())?;
        let conversation = Conversation {
            tool_choice: self.tool_choice.map(ToolChoice::from).unwrap_or_default(),
            call_count: if self.parallel_tool_calls == Some(false) { CallCount::One } else { CallCount::Many },
            format,
            template_arguments: self.chat_template_kwargs.unwrap_or_default(),
            ..base
        };
        conversation.check("messages")?;
        Ok(conversation)
    }
}

fn reply_format(
    format: Option<ResponseFormat>,
    structured: Option<StructuredOutputs>,
    has_tools: bool,
) -> Result<ReplyFormat, ServerError> {
    if let Some(structured) = structured {
        if format.is_some() || has_tools {
            return Err(ServerError::invalid("structured_outputs", "not beside `response_format` or `tools`"));
        }
        return structured.into_format();
    }
    let Some(format) = format else { return Ok(ReplyFormat::Text) };
    match (format.kind, format.json_schema) {
        (FormatKind::Text, None) => Ok(ReplyFormat::Text),
        (FormatKind::JsonObject, None) => Ok(ReplyFormat::JsonObject),
        (FormatKind::JsonSchema, Some(schema)) => schema.into_format("response_format.json_schema"),
        (FormatKind::JsonSchema, None) => Err(ServerError::MissingParameter { param: "response_format.json_schema".into() }),
        _ => Err(ServerError::invalid("response_format.json_schema", "only with `type`: \"json_schema\"")),
    }
}

impl FunctionDefinition {
    /// As the server knows tools.
    pub(crate) fn into_tool(self) -> Tool {
        let parameters = self.parameters.unwrap_or_else(|| serde_json::json!({ "type": "object", "properties": {} }));
        Tool { name: self.name, description: self.description, parameters }
    }
}

impl From<ChatToolChoice> for ToolChoice {
    fn from(choice: ChatToolChoice) -> Self {
        match choice {
            ChatToolChoice::Word(ChoiceWord::None) => Self::Forbidden,
            ChatToolChoice::Word(ChoiceWord::Auto) => Self::Auto,
            ChatToolChoice::Word(ChoiceWord::Required) => Self::Required,
            ChatToolChoice::Named(named) => Self::Named(named.function.name),
        }
    }
}

impl ChatMessage {
    fn into_turn(self, index: usize) -> Result<Turn, ServerError> {
        let at = |field: &str| format!("messages[{index}].{field}");
        if self.tool_calls.is_some() && self.role != ChatRole::Assistant {
            return Err(ServerError::invalid(at("tool_calls"), "only an assistant calls"));
        }
        if self.tool_call_id.is_some() && self.role != ChatRole::Tool {
            return Err(ServerError::invalid(at("tool_call_id"), "only a tool answers a call"));
        }
        if self.annotations.as_ref().is_some_and(|annotations| !annotations.is_empty()) {
            return Err(ServerError::unsupported(at("annotations"), "texts have no annotations here"));
        }
        let content = self.content.map(|content| content_text(content, &at("content"))).transpose()?;
        let required = |content: Option<String>| content.ok_or_else(|| ServerError::MissingParameter { param: at("content") });
        match self.role {
            ChatRole::System | ChatRole::Developer => Ok(Turn::System(required(content)?)),
            ChatRole::User => Ok(Turn::User(required(content)?)),
            ChatRole::Assistant => {
                let calls: Vec<PastCall> = self.tool_calls.unwrap_or_default().into_iter().map(PastCall::from).collect();
                let content = content.or(self.refusal);
                let text = if calls.is_empty() { required(content)? } else { content.unwrap_or_default() };
                Ok(Turn::Assistant { text, calls })
            }
            ChatRole::Tool => {
                let call_id = self.tool_call_id.ok_or_else(|| ServerError::MissingParameter { param: at("tool_call_id") })?;
                Ok(Turn::ToolResult { call_id, text: required(content)? })
            }
        }
    }
}

impl From<ChatToolCall> for PastCall {
    fn from(call: ChatToolCall) -> Self {
        Self { id: call.id, name: call.function.name, arguments: call.function.arguments }
    }
}

fn content_text(content: TextOrList<ContentPart>, at: &str) -> Result<String, ServerError> {
    let parts = match content {
        TextOrList::Text(text) => return Ok(text),
        TextOrList::List(parts) => parts,
    };
    let mut all = String::new();
    for (index, part) in parts.into_iter().enumerate() {
        let (field, text) = match part.kind {
            ContentKind::Text => ("text", part.text),
            ContentKind::Refusal => ("refusal", part.refusal),
        };
        all.push_str(&text.ok_or_else(|| ServerError::MissingParameter { param: format!("{at}[{index}].{field}") })?);
    }
    Ok(all)
}
