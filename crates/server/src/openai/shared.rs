//! What several of OpenAI's routes have in common: usage, formats, metadata, service tiers, ends of texts.

use std::collections::BTreeMap;

use bitnet_engine::{Constraint, FinishReason, Priority, TokenLogprob, Usage};
use bitnet_model::TokenId;
use bitnet_model::text::Tokenizer;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::app::{Context, Origin};
use crate::conversation::ReplyFormat;
use crate::error::ServerError;
use crate::limits;

/// What a request used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct CompletionUsage {
    pub prompt_tokens: usize,
    pub completion_tokens: usize,
    pub total_tokens: usize,
    pub prompt_tokens_details: PromptTokensDetails,
    pub completion_tokens_details: CompletionTokensDetails,
}

/// Of the prompt's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct PromptTokensDetails {
    pub cached_tokens: usize,
    pub audio_tokens: usize,
}

/// Of the completion's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct CompletionTokensDetails {
    pub reasoning_tokens: usize,
    pub audio_tokens: usize,
    pub accepted_prediction_tokens: usize,
    pub rejected_prediction_tokens: usize,
}

impl From<Usage> for CompletionUsage {
    fn from(usage: Usage) -> Self {
        let completion_tokens_details =
            CompletionTokensDetails { reasoning_tokens: 0, audio_tokens: 0, accepted_prediction_tokens: 0, rejected_prediction_tokens: 0 };
        Self {
            prompt_tokens: usage.n_prompt_tokens,
            completion_tokens: usage.n_completion_tokens,
            total_tokens: usage.n_prompt_tokens + usage.n_completion_tokens,
            prompt_tokens_details: PromptTokensDetails { cached_tokens: usage.n_cached_tokens, audio_tokens: 0 },
            completion_tokens_details,
        }
    }
}

/// A JSON schema for the reply.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct JsonSchemaFormat {
    pub name: String,
    #[serde(rename = "description")]
    pub _description: Option<String>,
    /// Every reply follows it, `strict` or not.
    #[schema(value_type = Option<Object>)]
    pub schema: Option<Value>,
    #[serde(rename = "strict")]
    pub _strict: Option<bool>,
}

impl JsonSchemaFormat {
    /// What it asks for; `at` is where it stands in the request.
    pub(crate) fn into_format(self, at: &str) -> Result<ReplyFormat, ServerError> {
        check_format_name(&self.name, at)?;
        match self.schema {
            None => Ok(ReplyFormat::JsonObject),
            Some(schema) if schema.is_object() => Ok(ReplyFormat::JsonSchema(schema)),
            Some(_) => Err(ServerError::invalid(format!("{at}.schema"), "a JSON schema is an object")),
        }
    }
}

pub(crate) fn check_format_name(name: &str, at: &str) -> Result<(), ServerError> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if (1..=limits::TOOL_NAME_BYTES_MAX).contains(&name.len()) && name.chars().all(is_name) {
        return Ok(());
    }
    let reason = format!("a name is 1 to {} of a-z, A-Z, 0-9, `_` and `-`", limits::TOOL_NAME_BYTES_MAX);
    Err(ServerError::invalid(format!("{at}.name"), reason))
}

/// Formal languages for the reply, by vLLM's names; exactly one.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct StructuredOutputs {
    /// A JSON schema.
    #[schema(value_type = Option<Object>)]
    pub json: Option<Value>,
    /// A regular expression that the whole reply matches.
    pub regex: Option<String>,
    /// One of these texts.
    pub choice: Option<Vec<String>>,
    /// A grammar in llguidance's Lark dialect.
    pub grammar: Option<String>,
    pub json_object: Option<bool>,
}

impl StructuredOutputs {
    /// What it asks for.
    pub(crate) fn into_format(self) -> Result<ReplyFormat, ServerError> {
        let mut formats = Vec::new();
        formats.extend(self.json.map(ReplyFormat::JsonSchema));
        formats.extend((self.json_object == Some(true)).then_some(ReplyFormat::JsonObject));
        formats.extend(self.regex.map(|regex| ReplyFormat::Constrained(Constraint::Regex(regex))));
        formats.extend(self.choice.map(|texts| ReplyFormat::Constrained(Constraint::Choice(texts))));
        formats.extend(self.grammar.map(|grammar| ReplyFormat::Constrained(Constraint::Grammar(grammar))));
        match (formats.pop(), formats.is_empty()) {
            (Some(format), true) => Ok(format),
            _ => Err(ServerError::invalid("structured_outputs", "exactly one of `json`, `json_object`, `regex`, `choice`, `grammar`")),
        }
    }
}

/// Up to 16 pairs of short texts.
pub(crate) type Metadata = BTreeMap<String, String>;

/// Checks the bounds of `metadata`.
pub(crate) fn check_metadata(metadata: Option<&Metadata>) -> Result<(), ServerError> {
    let Some(metadata) = metadata else { return Ok(()) };
    if metadata.len() > limits::N_METADATA_PAIRS_MAX {
        return Err(ServerError::invalid("metadata", format!("{} pairs, more than {}", metadata.len(), limits::N_METADATA_PAIRS_MAX)));
    }
    let is_long = |(key, value): &(&String, &String)| {
        key.chars().count() > limits::METADATA_KEY_CHARACTERS_MAX || value.chars().count() > limits::METADATA_VALUE_CHARACTERS_MAX
    };
    match metadata.iter().find(is_long) {
        Some(_) => Err(ServerError::invalid("metadata", "keys have at most 64 characters, values 512")),
        None => Ok(()),
    }
}

/// What a service tier means here.
pub(crate) fn priority(service_tier: Option<&str>, context: &Context) -> Result<Priority, ServerError> {
    match service_tier {
        Some("priority") if context.origin == Origin::Batch => {
            Err(ServerError::unsupported("service_tier", "the lines of a batch are answered behind everybody who waits"))
        }
        None | Some("auto") => Ok(context.caller.priority_best),
        Some("default") => Ok(Priority::Normal.max(context.caller.priority_best)),
        Some("flex") => Ok(Priority::Low),
        Some("priority") if context.caller.priority_best == Priority::High => Ok(Priority::High),
        Some("priority") => Err(ServerError::unsupported("service_tier", "this key has no priority class")),
        Some(_) => Err(ServerError::invalid("service_tier", "`auto`, `default`, `flex` or `priority`")),
    }
}

/// The service tier that a request was answered in.
pub(crate) fn service_tier(priority: Priority) -> &'static str {
    match priority {
        Priority::High => "priority",
        Priority::Normal => "default",
        Priority::Low => "flex",
    }
}

/// OpenAI's word for why a text ended.
pub(crate) fn finish_reason(reason: &FinishReason) -> &'static str {
    match reason {
        FinishReason::EndOfSequence | FinishReason::StopString(_) | FinishReason::StopToken(_) => "stop",
        FinishReason::Length | FinishReason::ContextFull => "length",
    }
}

/// A token as log-probabilities show it.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub(crate) struct TokenText {
    pub token: String,
    pub logprob: f32,
    pub bytes: Option<Vec<u8>>,
}

impl TokenText {
    /// Of a token.
    pub(crate) fn new(tokenizer: &Tokenizer, token_id: TokenId, logprob: f32) -> Self {
        let bytes = tokenizer.token_bytes(token_id).unwrap_or_default();
        Self { token: String::from_utf8_lossy(bytes).into_owned(), logprob: shown_logprob(logprob), bytes: Some(bytes.to_vec()) }
    }
}

/// JSON has no infinity; OpenAI writes -9999 for what cannot be.
pub(crate) fn shown_logprob(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { -9999.0 }
}

/// The most likely tokens beside one, as text.
pub(crate) fn top_tokens(tokenizer: &Tokenizer, logprob: &TokenLogprob) -> Vec<TokenText> {
    logprob.top.iter().map(|&(token_id, value)| TokenText::new(tokenizer, token_id, value)).collect()
}
