//! From a conversation to a running reply: what chat completions, responses and Anthropic's messages have in common.

use std::sync::Arc;

use bitnet_engine::{Generate, Priority};
use bitnet_model::TokenId;
use bitnet_model::text::AddSpecial;
use tracing::{Instrument, debug_span};

use crate::admission::Operation;
use crate::app::{App, Context, Job, JobParams};
use crate::conversation::Conversation;
use crate::error::ServerError;
use crate::limits;
use crate::models::ServedModel;
use crate::one_or_many::Prompt;
use crate::reply::Reply;
use crate::reply::calls::CallsExpected;
use crate::reply::grammar;

/// All that a reply depends on.
pub(crate) struct Talk {
    pub(crate) model: Arc<ServedModel>,
    pub(crate) conversation: Conversation,
    pub(crate) generate: Generate,
    pub(crate) priority: Priority,
    /// What the client calls the messages, and what says how the reply must look if there are no tools.
    pub(crate) params: JobParams,
}

/// Starts the reply.
pub(crate) async fn converse(app: &App, context: &Context, talk: Talk) -> Result<Reply, ServerError> {
    let Talk { model, conversation, mut generate, priority, mut params } = talk;
    app.check_room_of(&model, context)?;
    let expected = if conversation.callable().is_empty() { CallsExpected::No } else { CallsExpected::Yes };
    generate.constraint = grammar::constraint(&conversation);
    if expected == CallsExpected::Yes {
        params.constraint = "tools";
    }
    let prompt = conversation_tokens(app, &model, conversation, params.prompt).await?;
    let job = Job { model, operation: Operation::Chat, prompts: vec![prompt], generate: Some(generate), priority, params };
    Ok(Reply::new(app.start(context, job).await?, expected))
}

/// The conversation as the model reads it.
pub(crate) async fn conversation_tokens(
    app: &App,
    model: &Arc<ServedModel>,
    conversation: Conversation,
    param: &'static str,
) -> Result<Vec<TokenId>, ServerError> {
    model.require_template()?;
    let (of_model, now) = (model.clone(), app.now_unix_seconds());
    let tokens = app.text_pool().run(move || {
        let refused = |source| ServerError::Text { param, source };
        let prompt = conversation.render(of_model.require_template()?, now).map_err(refused)?;
        of_model.tokenizer.encode_chat(&prompt).map_err(refused)
    });
    check_length(tokens.instrument(debug_span!("prepare")).await?, model, param)
}

/// Bare prompts as the model reads them.
pub(crate) async fn prompt_tokens(
    app: &App,
    model: &Arc<ServedModel>,
    prompts: Vec<Prompt>,
    param: &'static str,
) -> Result<Vec<Vec<TokenId>>, ServerError> {
    let text_bytes: usize = prompts.iter().map(|prompt| if let Prompt::Text(text) = prompt { text.len() } else { 0 }).sum();
    let tokenizer = model.tokenizer.clone();
    let encode = move || -> Result<Vec<Vec<TokenId>>, ServerError> {
        let encode_one = |prompt| match prompt {
            Prompt::Tokens(tokens) => Ok(tokens.into_iter().map(TokenId).collect()),
            Prompt::Text(text) => tokenizer.encode(&text, AddSpecial::Yes).map_err(|source| ServerError::Text { param, source }),
        };
        prompts.into_iter().map(encode_one).collect()
    };
    // A short text is tokenised in less time than it takes to wake another thread.
    let is_short = text_bytes <= limits::TEXT_BYTES_AT_ONCE_MAX;
    let all = if is_short { encode()? } else { app.text_pool().run(encode).instrument(debug_span!("prepare")).await? };
    all.into_iter().map(|tokens| check_length(tokens, model, param)).collect()
}

fn check_length(tokens: Vec<TokenId>, model: &ServedModel, param: &'static str) -> Result<Vec<TokenId>, ServerError> {
    match tokens.len() {
        0 => Err(ServerError::invalid(param, "the prompt is empty")),
        got if got > model.context_length => Err(ServerError::PromptTooLong { got, limit: model.context_length, param }),
        _ => Ok(tokens),
    }
}
