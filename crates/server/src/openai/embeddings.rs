//! `POST /v1/embeddings`: texts to vectors, by models made for that. A long list goes to the engine a few at a time, so that one
//! request does not fill the queue for everybody.

use axum::extract::State;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use std::future::poll_fn;
use utoipa::ToSchema;

use crate::admission::Operation;
use crate::app::{App, Context, Job, JobParams};
use crate::converse::prompt_tokens;
use crate::error::ServerError;
use crate::extract::{JsonBody, RequestBody};
use crate::generation::{Generation, GenerationEvent};
use crate::limits;
use crate::models::{ModelTask, ServedModel};
use crate::one_or_many::PromptInput;
use crate::rate_headers;

/// An embedding request.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct EmbeddingRequest {
    /// The model's name.
    pub model: String,
    /// What to embed.
    pub input: PromptInput,
    pub encoding_format: Option<EncodingFormat>,
    /// Only the model's own number: its vectors cannot be cut.
    pub dimensions: Option<usize>,
    #[serde(rename = "user")]
    pub _user: Option<String>,
}

impl RequestBody for EmbeddingRequest {
    const REFUSED: &'static [(&'static str, &'static str)] = &[];
}

/// How vectors are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum EncodingFormat {
    /// A list of numbers.
    #[default]
    Float,
    /// Their bytes as little-endian float32, in Base64.
    Base64,
}

/// The vectors.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct EmbeddingList {
    pub object: &'static str,
    pub data: Vec<Embedding>,
    pub model: String,
    pub usage: EmbeddingUsage,
}

/// One of them.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Embedding {
    pub object: &'static str,
    pub index: usize,
    pub embedding: Vector,
}

/// As it was asked for.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Vector {
    Numbers(Vec<f32>),
    Base64(String),
}

/// What it took.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct EmbeddingUsage {
    pub prompt_tokens: usize,
    pub total_tokens: usize,
}

/// Answers an embedding request.
pub(crate) async fn create(
    State(app): State<App>,
    context: Context,
    JsonBody(request): JsonBody<EmbeddingRequest>,
) -> Result<Response, ServerError> {
    let model = app.models().get_embedding(&request.model)?;
    check_dimensions(request.dimensions, &model)?;
    let inputs = request.input.into_prompts();
    match inputs.len() {
        0 => return Err(ServerError::invalid("input", "there is none")),
        n if n > limits::N_EMBEDDING_INPUTS_MAX => {
            return Err(ServerError::invalid("input", format!("{n} of them, more than {}", limits::N_EMBEDDING_INPUTS_MAX)));
        }
        _ => {}
    }
    app.check_room_of(&model, &context)?;
    let prompts = prompt_tokens(&app, &model, inputs, "input").await?;
    let encoding = request.encoding_format.unwrap_or_default();
    let (mut data, mut prompt_tokens, mut rate_limits) = (Vec::with_capacity(prompts.len()), 0, None);
    let job = |prompts| Job {
        model: model.clone(),
        operation: Operation::Embedding,
        prompts,
        generate: None,
        priority: context.caller.priority_best,
        // Vectors are not constrained.
        params: JobParams { prompt: "input", constraint: "input" },
    };
    // One request, however many parts it has: admitted, counted and settled once.
    let whole = job(prompts);
    let admitted = app.admit(&context, &whole).await?;
    for some in whole.prompts.chunks(limits::N_EMBEDDINGS_AT_ONCE) {
        let generation = app.submit(&context, &admitted, job(some.to_vec())).await?;
        rate_limits = generation.rate_limits();
        let (vectors, n_tokens) = collect(generation, some.len()).await?;
        prompt_tokens += n_tokens;
        for values in vectors {
            data.push(Embedding { object: "embedding", index: data.len(), embedding: encoding.write(values) });
        }
    }
    let usage = EmbeddingUsage { prompt_tokens, total_tokens: prompt_tokens };
    let list = EmbeddingList { object: "list", data, model: model.name.clone(), usage };
    Ok(rate_headers::json(&list, rate_limits))
}

fn check_dimensions(asked: Option<usize>, model: &ServedModel) -> Result<(), ServerError> {
    match (asked, model.task) {
        (Some(asked), ModelTask::Embedding { width }) if asked != width => {
            let reason = format!("this model's vectors have {width} numbers and cannot be cut");
            Err(ServerError::invalid("dimensions", reason))
        }
        _ => Ok(()),
    }
}

async fn collect(mut generation: Generation, n: usize) -> Result<(Vec<Vec<f32>>, usize), ServerError> {
    let mut vectors = vec![Vec::new(); n];
    let mut n_tokens = 0;
    while let Some(event) = poll_fn(|cx| generation.poll_next(cx)).await {
        match event {
            GenerationEvent::Embedding { prompt, values } => vectors[prompt] = values,
            GenerationEvent::Finished(usage) => n_tokens = usage.n_prompt_tokens,
            GenerationEvent::Failed(error) => return Err(error),
            _ => {}
        }
    }
    Ok((vectors, n_tokens))
}

impl EncodingFormat {
    fn write(self, values: Vec<f32>) -> Vector {
        match self {
            Self::Float => Vector::Numbers(values),
            Self::Base64 => {
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                Vector::Base64(STANDARD.encode(bytes))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vector_in_base64_is_little_endian_float32() {
        let Vector::Base64(text) = EncodingFormat::Base64.write(vec![1.0, -2.5]) else { panic!("base64 was asked for") };
        assert_eq!(text, "AACAPwAAIMA=");
    }
}
