//! `/v1/responses`: answers that are kept, so that the next request can go on from them.

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::app::{App, Context, JobParams};
use crate::conversation::Turn;
use crate::converse::{Talk, converse};
use crate::error::ServerError;
use crate::extract::JsonBody;
use crate::ids::new_id;
use crate::listing::{Listing, PAGE_QUERY, Page, QueryPairs};
use crate::one_or_many::TextOrList;
use crate::openai::response_progress::Progress;
use crate::openai::response_store::Kept;
use crate::openai::response_wire::{DeletedResponse, InputItemList, ResponseObject, ResponseRequest};
use crate::openai::shared::{priority, service_tier};
use crate::rate_headers;
use crate::reply::ReplyEvent;
use crate::sampling::SamplingRequest;
use crate::sse::{self, Encoder, Frames};

/// Answers.
pub(crate) async fn create(
    State(app): State<App>,
    context: Context,
    JsonBody(request): JsonBody<ResponseRequest>,
) -> Result<Response, ServerError> {
    let model = app.models().get_text(&request.model)?;
    request.check()?;
    let sampling: SamplingRequest = request.sampling();
    let generate = sampling.generate(&model, "max_output_tokens", app.config().n_completion_tokens_max)?;
    let priority = priority(request.service_tier.as_deref(), &context)?;
    let before = match &request.previous_response_id {
        Some(id) => app.responses().turns_until(id, &context.caller.name)?,
        None => Vec::new(),
    };
    let new = request.turns()?;
    let conversation = request.conversation(before, new.clone())?;
    let (temperature, top_p) = (generate.sampling.temperature, generate.sampling.top_p);
    let talk = Talk { model, conversation, generate, priority, params: JobParams { prompt: "input", constraint: "text.format" } };
    let mut reply = converse(&app, &context, talk).await?;
    let object = empty_object(&app, &request, service_tier(priority), (temperature, top_p));
    let streams = request.stream == Some(true);
    let mut writer = Writer { app: app.clone(), owner: context.caller.name, request, new, progress: Progress::new(object) };
    if streams {
        return Ok(sse::stream(reply, Box::new(writer), app.config().heartbeat));
    }
    let rate_limits = reply.rate_limits();
    while let Some(event) = reply.next().await {
        writer.push(event, &mut |_, _| {})?;
    }
    Ok(rate_headers::json(writer.progress.object(), rate_limits))
}

/// A kept response.
pub(crate) async fn get(
    State(app): State<App>,
    context: Context,
    Path(id): Path<String>,
    Query(query): QueryPairs,
) -> Result<Response, ServerError> {
    for (name, value) in query {
        match (name.as_str(), value.as_str()) {
            ("stream" | "include_obfuscation", "false") => {}
            ("stream" | "starting_after" | "include_obfuscation", _) => {
                return Err(ServerError::unsupported(name, "a kept response is given whole"));
            }
            ("include" | "include[]", _) => return Err(ServerError::unsupported(name, "there is nothing to include")),
            _ => return Err(ServerError::UnknownParameter { param: name.chars().take(100).collect() }),
        }
    }
    Ok(kept_json(app.responses().get(&id, &context.caller.name)?.object.clone()))
}

fn kept_json(text: String) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

/// Forgets one.
pub(crate) async fn delete(State(app): State<App>, context: Context, Path(id): Path<String>) -> Result<Json<DeletedResponse>, ServerError> {
    app.responses().delete(&id, &context.caller.name)?;
    Ok(Json(DeletedResponse { id, object: "response", deleted: true }))
}

/// What it answered.
pub(crate) async fn input_items(
    State(app): State<App>,
    context: Context,
    Path(id): Path<String>,
    Query(query): QueryPairs,
) -> Result<Json<InputItemList>, ServerError> {
    let listing = Listing::read(query, &[PAGE_QUERY, &["include", "include[]"]].concat())?;
    let kept = app.responses().get(&id, &context.caller.name)?;
    let items: Vec<Value> = serde_json::from_str(&kept.input_items).map_err(|error| ServerError::internal(error.to_string()))?;
    let Page { data, first_id, last_id, has_more } = listing.page(items, |item| item["id"].as_str().unwrap_or_default().into())?;
    Ok(Json(InputItemList { object: "list", data, first_id, last_id, has_more }))
}

fn empty_object(app: &App, request: &ResponseRequest, service_tier: &'static str, (temperature, top_p): (f32, f32)) -> ResponseObject {
    ResponseObject {
        id: new_id("resp_"),
        object: "response",
        created_at: app.now_unix_seconds(),
        status: "in_progress",
        background: false,
        error: None,
        incomplete_details: None,
        instructions: request.instructions.clone(),
        max_output_tokens: request.max_output_tokens,
        model: request.model.clone(),
        output: Vec::new(),
        parallel_tool_calls: request.parallel_tool_calls.unwrap_or(true),
        previous_response_id: request.previous_response_id.clone(),
        reasoning: json!({ "effort": null, "summary": null }),
        service_tier,
        store: request.store != Some(false),
        temperature: shortest(temperature),
        text: request.format_json(),
        tool_choice: request.tool_choice.as_ref().map_or_else(|| "auto".into(), |choice| json!(choice)),
        tools: request.tools.iter().flatten().map(|tool| json!(tool)).collect(),
        top_p: shortest(top_p),
        truncation: "disabled",
        usage: None,
        user: request.user.clone(),
        metadata: request.metadata.clone().unwrap_or_default(),
    }
}

/// The number that a client wrote: 0.3, not the nearest f32's 0.30000001192092896.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or_else(|_| f64::from(value))
}

/// Writes a response and keeps it when it is whole.
struct Writer {
    app: App,
    owner: String,
    request: ResponseRequest,
    new: Vec<Turn>,
    progress: Progress,
}

impl Writer {
    fn push(&mut self, event: ReplyEvent, listener: &mut dyn FnMut(&'static str, Value)) -> Result<(), ServerError> {
        match self.progress.push(event, listener) {
            None => Ok(()),
            Some(Ok(())) => {
                self.keep();
                Ok(())
            }
            Some(Err(error)) => Err(error),
        }
    }

    fn keep(&mut self) {
        let object = self.progress.object();
        if !object.store {
            return;
        }
        let mut turns = std::mem::take(&mut self.new);
        turns.push(self.progress.turn());
        let kept = Kept {
            owner: self.owner.clone(),
            previous: self.request.previous_response_id.clone(),
            object: json!(object).to_string(),
            input_items: json!(input_items_of(&self.request)).to_string(),
            turns,
        };
        self.app.responses().insert(object.id.clone(), kept);
    }
}

/// The input as items with ids, newest first, as OpenAI lists them.
fn input_items_of(request: &ResponseRequest) -> Vec<Value> {
    let mut items = match &request.input {
        TextOrList::Text(text) => {
            let content = json!([{ "type": "input_text", "text": text }]);
            vec![json!({ "type": "message", "role": "user", "content": content })]
        }
        TextOrList::List(items) => items.iter().map(|item| json!(item)).collect(),
    };
    for item in &mut items {
        if let Some(members) = item.as_object_mut() {
            members.entry("id").or_insert_with(|| new_id("msg_").into());
            members.entry("status").or_insert_with(|| "completed".into());
        }
    }
    items.reverse();
    items
}

impl Encoder for Writer {
    fn begin(&mut self, frames: &mut Frames) {
        self.progress.begin(&mut |name, event| frames.event(name, &event));
    }

    fn encode(&mut self, event: ReplyEvent, frames: &mut Frames) {
        // A failure has gone out as an event by now.
        let _ = self.push(event, &mut |name, event| frames.event(name, &event));
    }
}
