//! What `POST /v1/responses` reads and writes.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::conversation::{CallCount, Conversation, PastCall, ReplyFormat, Tool, ToolChoice, Turn};
use crate::error::ServerError;
use crate::extract::RequestBody;
use crate::one_or_many::TextOrList;
use crate::openai::chat_request::{ChoiceWord, FormatKind, FunctionKind};
use crate::openai::shared::{Metadata, check_format_name, check_metadata};
use crate::sampling::SamplingRequest;

/// A request for a response.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ResponseRequest {
    /// The model's name.
    pub model: String,
    pub input: TextOrList<InputItem>,
    /// What the model is told beforehand; not carried over from a previous response.
    pub instructions: Option<String>,
    pub previous_response_id: Option<String>,
    /// Whether the response is kept, by default yes.
    pub store: Option<bool>,
    pub stream: Option<bool>,
    pub stream_options: Option<ResponseStreamOptions>,
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    #[schema(minimum = 1)]
    pub max_output_tokens: Option<u32>,
    pub tools: Option<Vec<ResponseTool>>,
    pub tool_choice: Option<ResponseToolChoice>,
    pub parallel_tool_calls: Option<bool>,
    pub text: Option<TextOptions>,
    pub metadata: Option<Metadata>,
    /// Only `disabled`.
    pub truncation: Option<String>,
    /// Only empty.
    pub include: Option<Vec<String>>,
    /// Only `false`.
    pub background: Option<bool>,
    pub service_tier: Option<String>,
    pub user: Option<String>,
    #[serde(rename = "safety_identifier")]
    pub _safety_identifier: Option<String>,
    #[serde(rename = "prompt_cache_key")]
    pub _prompt_cache_key: Option<String>,
}

impl RequestBody for ResponseRequest {
    const REFUSED: &'static [(&'static str, &'static str)] = &[
        ("conversation", "use `previous_response_id`"),
        ("context_management", "contexts are not edited here"),
        ("max_tool_calls", "tools are called by the client"),
        ("moderation", "this server does not moderate"),
        ("prompt", "there are no stored prompts"),
        ("prompt_cache_options", "cached prefixes stay as long as there is room"),
        ("access_programs", "there are none here"),
        ("background_options", "use /v1/batches for work that nobody waits for"),
        ("image", "this server writes text only"),
        ("prompt_cache_retention", "cached prefixes stay as long as there is room"),
        ("reasoning", "the models served here do not reason apart"),
        ("top_logprobs", "use /v1/chat/completions for log-probabilities"),
        ("verbosity", "the models served here know no such thing"),
        ("image_url", "this server reads text only"),
        ("file_id", "this server reads text only"),
        ("file_data", "this server reads text only"),
    ];
}

/// What a stream holds besides.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ResponseStreamOptions {
    /// Only `false`.
    pub include_obfuscation: Option<bool>,
}

/// What an item of the input is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ItemKind {
    #[default]
    Message,
    FunctionCall,
    FunctionCallOutput,
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ItemRole {
    System,
    Developer,
    User,
    Assistant,
}

/// An item of the input; which members it has depends on its type.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct InputItem {
    #[serde(rename = "type", default)]
    #[schema(required = false)]
    pub kind: ItemKind,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<ItemRole>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<TextOrList<ItemPart>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub call_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arguments: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<TextOrList<ItemPart>>,
    /// As items of earlier responses carry it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
}

/// What a part is.
#[derive(Debug, Clone, Copy, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PartKind {
    InputText,
    OutputText,
    Refusal,
}

/// A part of a content.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ItemPart {
    #[serde(rename = "type")]
    pub kind: PartKind,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refusal: Option<String>,
    /// As items of earlier responses carry them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Object>>)]
    pub annotations: Option<Vec<Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Object>>)]
    pub logprobs: Option<Vec<Value>>,
}

/// A tool.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ResponseTool {
    #[serde(rename = "type")]
    pub kind: FunctionKind,
    pub name: String,
    pub description: Option<String>,
    /// JSON schema of the arguments, which every call follows, `strict` or not.
    #[schema(value_type = Option<Object>)]
    pub parameters: Option<Value>,
    pub strict: Option<bool>,
}

/// `none`, `auto`, `required`, or `{"type":"function","name":…}`.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(untagged, expecting = "not `none`, `auto`, `required` or a function's name as {\"type\":\"function\",\"name\":…}")]
pub(crate) enum ResponseToolChoice {
    Word(ChoiceWord),
    Named(ResponseNamedChoice),
}

/// One tool.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ResponseNamedChoice {
    #[serde(rename = "type")]
    pub kind: FunctionKind,
    pub name: String,
}

/// What the reply's text must be.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TextOptions {
    pub format: Option<TextFormat>,
}

/// Its form.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TextFormat {
    #[serde(rename = "type")]
    pub kind: FormatKind,
    pub name: Option<String>,
    pub description: Option<String>,
    #[schema(value_type = Option<Object>)]
    pub schema: Option<Value>,
    pub strict: Option<bool>,
}

/// A response, whole or so far.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct ResponseObject {
    pub id: String,
    pub object: &'static str,
    pub created_at: i64,
    pub status: &'static str,
    pub background: bool,
    #[schema(value_type = Option<Object>)]
    pub error: Option<Value>,
    #[schema(value_type = Option<Object>)]
    pub incomplete_details: Option<Value>,
    pub instructions: Option<String>,
    pub max_output_tokens: Option<u32>,
    pub model: String,
    #[schema(value_type = Vec<Object>)]
    pub output: Vec<Value>,
    pub parallel_tool_calls: bool,
    pub previous_response_id: Option<String>,
    #[schema(value_type = Object)]
    pub reasoning: Value,
    pub service_tier: &'static str,
    pub store: bool,
    pub temperature: f64,
    #[schema(value_type = Object)]
    pub text: Value,
    #[schema(value_type = ResponseToolChoice)]
    pub tool_choice: Value,
    #[schema(value_type = Vec<Object>)]
    pub tools: Vec<Value>,
    pub top_p: f64,
    pub truncation: &'static str,
    pub usage: Option<ResponseUsage>,
    pub user: Option<String>,
    pub metadata: Metadata,
}

/// What it used.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub(crate) struct ResponseUsage {
    pub input_tokens: usize,
    pub input_tokens_details: CachedTokens,
    pub output_tokens: usize,
    pub output_tokens_details: ReasoningTokens,
    pub total_tokens: usize,
}

/// Of the input.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub(crate) struct CachedTokens {
    pub cached_tokens: usize,
    /// Prefixes are remembered without being asked, and cost nothing.
    pub cache_write_tokens: usize,
}

/// Of the output.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub(crate) struct ReasoningTokens {
    pub reasoning_tokens: usize,
}

impl From<bitnet_engine::Usage> for ResponseUsage {
    fn from(usage: bitnet_engine::Usage) -> Self {
        Self {
            input_tokens: usage.n_prompt_tokens,
            input_tokens_details: CachedTokens { cached_tokens: usage.n_cached_tokens, cache_write_tokens: 0 },
            output_tokens: usage.n_completion_tokens,
            output_tokens_details: ReasoningTokens { reasoning_tokens: 0 },
            total_tokens: usage.n_prompt_tokens + usage.n_completion_tokens,
        }
    }
}

/// What a response answered.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct InputItemList {
    pub object: &'static str,
    #[schema(value_type = Vec<Object>)]
    pub data: Vec<Value>,
    pub first_id: Option<String>,
    pub last_id: Option<String>,
    pub has_more: bool,
}

/// What is said of a response that is gone.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeletedResponse {
    pub id: String,
    pub object: &'static str,
    pub deleted: bool,
}

impl ResponseRequest {
    /// Refuses values that types cannot.
    pub(crate) fn check(&self) -> Result<(), ServerError> {
        if self.background == Some(true) {
            return Err(ServerError::unsupported("background", "use /v1/batches for work that nobody waits for"));
        }
        if self.truncation.as_deref().is_some_and(|truncation| truncation != "disabled") {
            return Err(ServerError::unsupported("truncation", "only `disabled`: conversations are not shortened"));
        }
        if self.include.as_ref().is_some_and(|include| !include.is_empty()) {
            return Err(ServerError::unsupported("include", "there is nothing to include"));
        }
        if self.stream_options.and_then(|options| options.include_obfuscation) == Some(true) {
            return Err(ServerError::unsupported("stream_options.include_obfuscation", "events are not padded"));
        }
        check_metadata(self.metadata.as_ref())
    }

    /// The sampling part.
    pub(crate) fn sampling(&self) -> SamplingRequest {
        SamplingRequest {
            temperature: self.temperature,
            top_p: self.top_p,
            n_tokens_max: self.max_output_tokens,
            ..SamplingRequest::default()
        }
    }

    /// What this request adds to the conversation.
    pub(crate) fn turns(&self) -> Result<Vec<Turn>, ServerError> {
        match &self.input {
            TextOrList::Text(text) => Ok(vec![Turn::User(text.clone())]),
            TextOrList::List(items) => items.iter().enumerate().map(|(index, item)| item.turn(index)).collect(),
        }
    }

    /// The whole conversation, after what came before.
    pub(crate) fn conversation(&self, before: Vec<Turn>, new: Vec<Turn>) -> Result<Conversation, ServerError> {
        let system = self.instructions.clone().map(Turn::System);
        let turns = merge_calls(system.into_iter().chain(before).chain(new));
        let tools = self.tools.clone().unwrap_or_default().into_iter().map(ResponseTool::into_tool).collect();
        let tool_choice = match &self.tool_choice {
            None | Some(ResponseToolChoice::Word(ChoiceWord::Auto)) => ToolChoice::Auto,
            Some(ResponseToolChoice::Word(ChoiceWord::None)) => ToolChoice::Forbidden,
            Some(ResponseToolChoice::Word(ChoiceWord::Required)) => ToolChoice::Required,
            Some(ResponseToolChoice::Named(named)) => ToolChoice::Named(named.name.clone()),
        };
        let call_count = if self.parallel_tool_calls == Some(false) { CallCount::One } else { CallCount::Many };
        let format = self.text.as_ref().and_then(|text| text.format.as_ref());
        let format = format.map(TextFormat::reply_format).transpose()?.unwrap_or_default();
        let conversation = Conversation { turns, tools, tool_choice, call_count, format, ..Conversation::default() };
        conversation.check("input")?;
        Ok(conversation)
    }

    /// The format as the response repeats it.
    pub(crate) fn format_json(&self) -> Value {
        match self.text.as_ref().and_then(|text| text.format.as_ref()) {
            None => json!({ "format": { "type": "text" } }),
            Some(format) => match format.kind {
                FormatKind::Text => json!({ "format": { "type": "text" } }),
                FormatKind::JsonObject => json!({ "format": { "type": "json_object" } }),
                FormatKind::JsonSchema => json!({ "format": {
                    "type": "json_schema",
                    "name": format.name,
                    "description": format.description,
                    "schema": format.schema,
                    "strict": format.strict.unwrap_or(true),
                } }),
            },
        }
    }
}

/// Calls are items of their own here; to a model they belong to one turn.
fn merge_calls(turns: impl Iterator<Item = Turn>) -> Vec<Turn> {
    let mut merged: Vec<Turn> = Vec::new();
    for turn in turns {
        match (merged.last_mut(), turn) {
            (Some(Turn::Assistant { calls, .. }), Turn::Assistant { text, calls: more }) if text.is_empty() && !more.is_empty() => {
                calls.extend(more);
            }
            (_, turn) => merged.push(turn),
        }
    }
    merged
}

impl TextFormat {
    fn reply_format(&self) -> Result<ReplyFormat, ServerError> {
        let has = |name: &str, is_there: bool| is_there.then(|| format!("text.format.{name}"));
        let of_schema = has("schema", self.schema.is_some()).or_else(|| has("name", self.name.is_some()));
        let of_schema =
            of_schema.or_else(|| has("description", self.description.is_some())).or_else(|| has("strict", self.strict.is_some()));
        if let Some(param) = of_schema.filter(|_| self.kind != FormatKind::JsonSchema) {
            return Err(ServerError::invalid(param, "only with `type`: \"json_schema\""));
        }
        match self.kind {
            FormatKind::Text => Ok(ReplyFormat::Text),
            FormatKind::JsonObject => Ok(ReplyFormat::JsonObject),
            FormatKind::JsonSchema => {
                let missing = |name: &str| ServerError::MissingParameter { param: format!("text.format.{name}") };
                check_format_name(self.name.as_deref().ok_or_else(|| missing("name"))?, "text.format")?;
                let schema = self.schema.clone().ok_or_else(|| missing("schema"))?;
                if !schema.is_object() {
                    return Err(ServerError::invalid("text.format.schema", "a JSON schema is an object"));
                }
                Ok(ReplyFormat::JsonSchema(schema))
            }
        }
    }
}

impl ResponseTool {
    fn into_tool(self) -> Tool {
        let parameters = self.parameters.unwrap_or_else(|| json!({ "type": "object", "properties": {} }));
        Tool { name: self.name, description: self.description, parameters }
    }
}

impl InputItem {
    fn turn(&self, index: usize) -> Result<Turn, ServerError> {
        let at = |field: &str| format!("input[{index}].{field}");
        let missing = |field: &str| ServerError::MissingParameter { param: at(field) };
        let call_id = || self.call_id.clone().ok_or_else(|| missing("call_id"));
        match self.kind {
            ItemKind::FunctionCall => {
                let name = self.name.clone().ok_or_else(|| missing("name"))?;
                let arguments = self.arguments.clone().ok_or_else(|| missing("arguments"))?;
                Ok(Turn::Assistant { text: String::new(), calls: vec![PastCall { id: call_id()?, name, arguments }] })
            }
            ItemKind::FunctionCallOutput => {
                let output = self.output.as_ref().ok_or_else(|| missing("output"))?;
                Ok(Turn::ToolResult { call_id: call_id()?, text: parts_text(output, &at("output"))? })
            }
            ItemKind::Message => {
                let text = parts_text(self.content.as_ref().ok_or_else(|| missing("content"))?, &at("content"))?;
                match self.role.ok_or_else(|| missing("role"))? {
                    ItemRole::System | ItemRole::Developer => Ok(Turn::System(text)),
                    ItemRole::User => Ok(Turn::User(text)),
                    ItemRole::Assistant => Ok(Turn::Assistant { text, calls: Vec::new() }),
                }
            }
        }
    }
}

fn parts_text(content: &TextOrList<ItemPart>, at: &str) -> Result<String, ServerError> {
    let parts = match content {
        TextOrList::Text(text) => return Ok(text.clone()),
        TextOrList::List(parts) => parts,
    };
    let text_of = |(place, part): (usize, &ItemPart)| {
        let (field, text) = match part.kind {
            PartKind::InputText | PartKind::OutputText => ("text", &part.text),
            PartKind::Refusal => ("refusal", &part.refusal),
        };
        text.clone().ok_or_else(|| ServerError::MissingParameter { param: format!("{at}[{place}].{field}") })
    };
    parts.iter().enumerate().map(text_of).collect()
}
