//! `POST /tokenize` and `POST /detokenize`, in vLLM's shapes: what a text or a conversation is to a model, and back.

use axum::Json;
use axum::extract::State;
use bitnet_model::TokenId;
use bitnet_model::text::{AddSpecial, SpecialTokens};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::app::{App, Context};
use crate::converse::conversation_tokens;
use crate::error::ServerError;
use crate::extract::{JsonBody, Needs, RequestBody};
use crate::limits;
use crate::openai::chat_request::{ChatMessage, ChatRequest, ChatTool};

/// A text or messages.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TokenizeRequest {
    /// The model's name.
    pub model: String,
    /// A text; or else `messages`.
    pub prompt: Option<String>,
    /// A conversation, through the model's chat template.
    pub messages: Option<Vec<ChatMessage>>,
    pub tools: Option<Vec<ChatTool>>,
    /// Whether to put the model's own tokens around a text.
    pub add_special_tokens: Option<bool>,
    /// Whether to give the tokens as text, too.
    pub return_token_strs: Option<bool>,
}

impl RequestBody for TokenizeRequest {
    const REFUSED: &'static [(&'static str, &'static str)] = &[
        ("add_generation_prompt", "a conversation always ends where the model's turn begins"),
        ("continue_final_message", "a conversation always ends where the model's turn begins"),
        ("chat_template", "the model's own template is used"),
    ];
    const NEEDS: Needs = Needs::Server;
}

/// Token ids of it.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Tokenized {
    pub count: usize,
    pub max_model_len: usize,
    pub tokens: Vec<u32>,
    pub token_strs: Option<Vec<String>>,
}

/// Token ids.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DetokenizeRequest {
    /// The model's name.
    pub model: String,
    pub tokens: Vec<u32>,
}

impl RequestBody for DetokenizeRequest {
    const REFUSED: &'static [(&'static str, &'static str)] = &[];
    const NEEDS: Needs = Needs::Server;
}

/// Their text.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Detokenized {
    pub prompt: String,
}

/// Text to tokens.
pub(crate) async fn tokenize(
    State(app): State<App>,
    _: Context,
    JsonBody(request): JsonBody<TokenizeRequest>,
) -> Result<Json<Tokenized>, ServerError> {
    let model = app.models().get(&request.model)?;
    let tokens = match (request.prompt, request.messages) {
        (Some(prompt), None) => {
            let add_special = if request.add_special_tokens == Some(false) { AddSpecial::No } else { AddSpecial::Yes };
            let tokenizer = model.tokenizer.clone();
            let refused = |source| ServerError::Text { param: "prompt", source };
            app.text_pool().run(move || tokenizer.encode(&prompt, add_special).map_err(refused)).await?
        }
        (None, Some(messages)) => {
            let conversation = ChatRequest::conversation_of(messages, request.tools)?;
            conversation_tokens(&app, &model, conversation, "messages").await?
        }
        _ => return Err(ServerError::invalid("prompt", "give either `prompt` or `messages`")),
    };
    let piece = |token: &TokenId| model.tokenizer.piece(*token).unwrap_or_default().to_string();
    let token_strs = (request.return_token_strs == Some(true)).then(|| tokens.iter().map(piece).collect());
    let tokens: Vec<u32> = tokens.into_iter().map(|token| token.0).collect();
    Ok(Json(Tokenized { count: tokens.len(), max_model_len: model.context_length, tokens, token_strs }))
}

/// Tokens to text.
pub(crate) async fn detokenize(
    State(app): State<App>,
    _: Context,
    JsonBody(request): JsonBody<DetokenizeRequest>,
) -> Result<Json<Detokenized>, ServerError> {
    let model = app.models().get(&request.model)?;
    let n_tokens = request.tokens.len();
    if n_tokens > limits::N_DETOKENIZE_TOKENS_MAX {
        let reason = format!("{n_tokens} of them, more than {}", limits::N_DETOKENIZE_TOKENS_MAX);
        return Err(ServerError::invalid("tokens", reason));
    }
    if let Some(&token) = request.tokens.iter().find(|&&token| token as usize >= model.tokenizer.n_vocab()) {
        return Err(ServerError::invalid("tokens", format!("{token} is not in the vocabulary of {}", model.tokenizer.n_vocab())));
    }
    let tokens: Vec<TokenId> = request.tokens.into_iter().map(TokenId).collect();
    let tokenizer = model.tokenizer.clone();
    let prompt = app.text_pool().run(move || Ok(tokenizer.decode(&tokens, SpecialTokens::Keep))).await?;
    Ok(Json(Detokenized { prompt }))
}
