//! `/v1/batches`: all lines of a file, answered behind everybody who waits. A batch lives on disk; one that the server's end
//! interrupted goes on when the server starts again.

use std::collections::HashSet;
use std::fs::File;
use std::io::BufReader;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Query, State};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

use crate::admission::Caller;
use crate::app::{App, Context};
use crate::error::ServerError;
use crate::extract::{JsonBody, Needs, RequestBody};
use crate::files::{FileStore, Shelf, unknown};
use crate::limits;
use crate::listing::{Listing, PAGE_QUERY, Page, QueryPairs};
use crate::openai::batch_runner::{BATCH_URLS, BatchEnd, BatchRunner, LineResult, ResultFile};
use crate::openai::file_routes::{FileObject, OwnedFile, own_file};
use crate::openai::shared::{Metadata, check_metadata};
use crate::router::router;

/// States of a batch that is not over.
const UNFINISHED: [&str; 3] = ["in_progress", "finalizing", "cancelling"];
/// When one of very many batches may have ended.
const CROWDED_RETRY_AFTER: Duration = Duration::from_secs(60);

/// A request for a batch.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct BatchRequest {
    pub input_file_id: String,
    /// The URL that all lines name.
    pub endpoint: String,
    /// Only `24h`, which is a word: a batch takes as long as it takes.
    pub completion_window: String,
    pub metadata: Option<Metadata>,
}

impl RequestBody for BatchRequest {
    const REFUSED: &'static [(&'static str, &'static str)] = &[("output_expires_after", "files stay until they are deleted")];
    const NEEDS: Needs = Needs::Server;
}

/// How many lines came to what.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, ToSchema)]
pub(crate) struct RequestCounts {
    pub total: usize,
    pub completed: usize,
    pub failed: usize,
}

/// A batch.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct BatchObject {
    pub id: String,
    pub object: String,
    pub endpoint: String,
    #[schema(value_type = Option<Object>)]
    pub errors: Option<serde_json::Value>,
    pub input_file_id: String,
    pub completion_window: String,
    /// `in_progress`, `finalizing`, `completed`, `failed`, `cancelling` or `cancelled`.
    pub status: String,
    pub output_file_id: Option<String>,
    pub error_file_id: Option<String>,
    pub created_at: i64,
    pub in_progress_at: Option<i64>,
    pub expires_at: Option<i64>,
    pub finalizing_at: Option<i64>,
    pub completed_at: Option<i64>,
    pub failed_at: Option<i64>,
    pub expired_at: Option<i64>,
    pub cancelling_at: Option<i64>,
    pub cancelled_at: Option<i64>,
    pub request_counts: RequestCounts,
    pub metadata: Option<Metadata>,
}

/// And as it is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct OwnedBatch {
    owner: String,
    /// Keeps the owner's cached prefixes apart, as for a request of its own.
    tenant: [u8; 32],
    /// The key that asked for it, whose limits and end are the batch's, too.
    #[serde(default)]
    api_key: Option<String>,
    batch: BatchObject,
}

/// All batches.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct BatchList {
    pub object: &'static str,
    pub data: Vec<BatchObject>,
    pub first_id: Option<String>,
    pub last_id: Option<String>,
    pub has_more: bool,
}

/// Begins a batch.
pub(crate) async fn create(
    State(app): State<App>,
    context: Context,
    JsonBody(request): JsonBody<BatchRequest>,
) -> Result<Json<BatchObject>, ServerError> {
    check_metadata(request.metadata.as_ref())?;
    if !BATCH_URLS.contains(&request.endpoint.as_str()) {
        return Err(ServerError::invalid("endpoint", format!("none of {}", BATCH_URLS.join(", "))));
    }
    if request.completion_window != "24h" {
        return Err(ServerError::invalid("completion_window", "only `24h`"));
    }
    let input = own_file(&app, &context.caller.name, &request.input_file_id).await?;
    let store = app.files()?.clone();
    let path = store.content(Shelf::Files, &input.id, "jsonl")?;
    let total = app.text_pool().run(move || count_lines(&path)).await?;
    let now = app.now_unix_seconds();
    let batch = BatchObject {
        id: FileStore::new_id(Shelf::Batches),
        object: "batch".into(),
        endpoint: request.endpoint,
        errors: None,
        input_file_id: input.id,
        completion_window: request.completion_window,
        status: "in_progress".into(),
        output_file_id: None,
        error_file_id: None,
        created_at: now,
        in_progress_at: Some(now),
        expires_at: None,
        finalizing_at: None,
        completed_at: None,
        failed_at: None,
        expired_at: None,
        cancelling_at: None,
        cancelled_at: None,
        request_counts: RequestCounts { total, completed: 0, failed: 0 },
        metadata: request.metadata,
    };
    let Caller { name: owner, tenant, api_key, .. } = context.caller;
    let api_key = api_key.map(|key| key.to_string());
    let owned = OwnedBatch { owner, tenant: tenant.0, api_key, batch: batch.clone() };
    let put = owned.clone();
    let written = move || {
        make_room(&store)?;
        store.put(Shelf::Batches, &put.batch.id, &put)
    };
    app.text_pool().run(written).await?;
    spawn(app, owned);
    Ok(Json(batch))
}

/// Forgets the oldest batch that has ended, if as many are kept as may be. Its results stay.
fn make_room(store: &FileStore) -> Result<(), ServerError> {
    let ids = store.ids(Shelf::Batches)?;
    if ids.len() < limits::N_BATCHES_MAX {
        return Ok(());
    }
    let kept = ids.iter().filter_map(|id| store.get::<OwnedBatch>(Shelf::Batches, id).ok()).map(|owned| owned.batch);
    let oldest = kept.filter(|batch| !UNFINISHED.contains(&batch.status.as_str())).min_by_key(|batch| batch.created_at);
    match oldest {
        Some(oldest) => store.remove(Shelf::Batches, &oldest.id),
        None => {
            let reason = format!("{} batches are not finished", limits::N_BATCHES_MAX);
            Err(ServerError::SlowDown { reason, retry_after: CROWDED_RETRY_AFTER })
        }
    }
}

fn count_lines(path: &std::path::Path) -> Result<usize, ServerError> {
    use std::io::BufRead;
    let mut total = 0;
    for line in BufReader::new(File::open(path)?).lines() {
        total += usize::from(!line?.trim().is_empty());
        if total > limits::N_BATCH_LINES_MAX {
            return Err(ServerError::invalid("input_file_id", format!("the file has more than {} lines", limits::N_BATCH_LINES_MAX)));
        }
    }
    if total == 0 { Err(ServerError::invalid("input_file_id", "the file is empty")) } else { Ok(total) }
}

/// Goes on with what an earlier run of the server left.
pub(crate) fn resume(app: &App) {
    let Ok(store) = app.files() else { return };
    for id in store.ids(Shelf::Batches).unwrap_or_default() {
        let Ok(owned) = store.get::<OwnedBatch>(Shelf::Batches, &id) else { continue };
        if UNFINISHED.contains(&owned.batch.status.as_str()) {
            spawn(app.clone(), owned);
        }
    }
}

/// Runs a batch when one of the places for batches is free, on a thread of its own, since reading and writing its files blocks.
fn spawn(app: App, owned: OwnedBatch) {
    tokio::spawn(async move {
        let Some(_place) = app.live_batches().place().await else { return };
        let runtime = tokio::runtime::Handle::current();
        let work = Work { app: app.clone(), owned: owned.clone() };
        let error = match tokio::task::spawn_blocking(move || runtime.block_on(work.run())).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error,
            Err(panic) => ServerError::internal(panic.to_string()),
        };
        tracing::error!(%error, batch = owned.batch.id, "a batch failed");
        fail(&app, owned, &error).await;
    });
}

/// Says of a batch that it came to nothing: its input is gone, or its files cannot be written.
async fn fail(app: &App, mut owned: OwnedBatch, error: &ServerError) {
    let Ok(store) = app.files().cloned() else { return };
    let error = json!({ "code": error.code(), "message": "the batch's files could not be read or written" });
    let batch = &mut owned.batch;
    batch.request_counts = app.live_batches().counts(&batch.id).unwrap_or(batch.request_counts);
    (batch.status, batch.failed_at) = ("failed".into(), Some(app.now_unix_seconds()));
    batch.errors = Some(json!({ "object": "list", "data": [error] }));
    let id = batch.id.clone();
    if let Err(error) = app.text_pool().run(move || store.put(Shelf::Batches, &owned.batch.id, &owned)).await {
        tracing::error!(%error, batch = id, "a batch's failure could not be written");
    }
    app.live_batches().forget(&id);
}

struct Work {
    app: App,
    owned: OwnedBatch,
}

impl Work {
    async fn run(mut self) -> Result<(), ServerError> {
        let store = self.app.files()?.clone();
        if self.owned.batch.status == "finalizing" {
            return self.publish(&store);
        }
        let id = self.owned.batch.id.clone();
        let input = store.content(Shelf::Files, &self.owned.batch.input_file_id, "jsonl")?;
        let mut output = ResultFile::open(&store.content(Shelf::Batches, &id, "output")?)?;
        let mut errors = ResultFile::open(&store.content(Shelf::Batches, &id, "errors")?)?;
        let counts = &mut self.owned.batch.request_counts;
        (counts.completed, counts.failed) = (output.done.len(), errors.done.len());
        let caller = Caller {
            name: self.owned.owner.clone(),
            tenant: bitnet_engine::TenantSalt(self.owned.tenant),
            priority_best: bitnet_engine::Priority::Low,
            api_key: self.owned.api_key.as_deref().map(Into::into),
        };
        let runner = BatchRunner { service: router(self.app.clone()), caller, url: Some(self.owned.batch.endpoint.clone()) };
        let done: HashSet<String> = output.done.union(&errors.done).cloned().collect();
        let (app, owned) = (self.app.clone(), &mut self.owned);
        let mut keep = |result: LineResult| {
            let counts = &mut owned.batch.request_counts;
            let (file, count) = if result.answered { (&mut output, &mut counts.completed) } else { (&mut errors, &mut counts.failed) };
            file.push(&result)?;
            *count += 1;
            app.live_batches().note(&id, *counts);
            Ok(())
        };
        let stop = || app.lifecycle().is_draining() || app.live_batches().is_cancelled(&id);
        let end = runner.run(BufReader::new(File::open(input)?), &done, &mut keep, &stop).await?;
        let is_cancelled = self.app.live_batches().is_cancelled(&id);
        if end == BatchEnd::Stopped && !is_cancelled {
            return Ok(());
        }
        output.sync()?;
        errors.sync()?;
        let new_file = |results: &ResultFile| (!results.done.is_empty()).then(|| FileStore::new_id(Shelf::Files));
        let batch = &mut self.owned.batch;
        (batch.output_file_id, batch.error_file_id) = (new_file(&output), new_file(&errors));
        if is_cancelled {
            batch.cancelling_at = batch.cancelling_at.or(Some(self.app.now_unix_seconds()));
        }
        (batch.status, batch.finalizing_at) = ("finalizing".into(), Some(self.app.now_unix_seconds()));
        // From here on no line is ever asked again: what is left is to be repeated until it is done.
        store.put(Shelf::Batches, &id, &self.owned)?;
        self.publish(&store)
    }

    /// Turns the results into files, and says that the batch is done. Whatever of it was done before a crash is found done.
    fn publish(mut self, store: &FileStore) -> Result<(), ServerError> {
        let now = self.app.now_unix_seconds();
        let batch = &mut self.owned.batch;
        for (name, file_id) in [("output", &batch.output_file_id), ("errors", &batch.error_file_id)] {
            publish_file(store, &self.owned.owner, (&batch.id, name), (file_id.as_deref(), now))?;
        }
        if batch.cancelling_at.is_some() {
            (batch.status, batch.cancelled_at) = ("cancelled".into(), Some(now));
        } else {
            (batch.status, batch.completed_at) = ("completed".into(), Some(now));
        }
        store.put(Shelf::Batches, &self.owned.batch.id, &self.owned)?;
        self.app.live_batches().forget(&self.owned.batch.id);
        Ok(())
    }
}

fn publish_file(
    store: &FileStore,
    owner: &str,
    (batch_id, name): (&str, &str),
    (file_id, now): (Option<&str>, i64),
) -> Result<(), ServerError> {
    let results = store.content(Shelf::Batches, batch_id, name)?;
    let Some(id) = file_id else {
        // No line came to this.
        return if results.exists() { Ok(std::fs::remove_file(&results)?) } else { Ok(()) };
    };
    let published = store.content(Shelf::Files, id, "jsonl")?;
    if results.exists() {
        std::fs::rename(&results, &published)?;
    }
    let bytes = std::fs::metadata(&published)?.len();
    let file = FileObject {
        id: id.to_string(),
        object: "file".into(),
        bytes,
        created_at: now,
        filename: format!("{batch_id}_{name}.jsonl"),
        purpose: "batch_output".into(),
        status: "processed".into(),
    };
    store.put(Shelf::Files, id, &OwnedFile { owner: owner.to_string(), file })
}

async fn own_batch(app: &App, context: &Context, id: &str) -> Result<OwnedBatch, ServerError> {
    let (store, wanted) = (app.files()?.clone(), id.to_string());
    let mut owned: OwnedBatch = app.text_pool().run(move || store.get(Shelf::Batches, &wanted)).await?;
    if owned.owner != context.caller.name {
        return Err(unknown(Shelf::Batches, id));
    }
    if let Some(counts) = app.live_batches().counts(id) {
        owned.batch.request_counts = counts;
    }
    if owned.batch.status == "in_progress" && app.live_batches().is_cancelled(id) {
        owned.batch.status = "cancelling".into();
    }
    Ok(owned)
}

/// Tells of a batch.
pub(crate) async fn get(State(app): State<App>, context: Context, Path(id): Path<String>) -> Result<Json<BatchObject>, ServerError> {
    Ok(Json(own_batch(&app, &context, &id).await?.batch))
}

/// Stops a batch: what is at work is finished, the rest is not begun.
pub(crate) async fn cancel(State(app): State<App>, context: Context, Path(id): Path<String>) -> Result<Json<BatchObject>, ServerError> {
    let mut batch = own_batch(&app, &context, &id).await?.batch;
    if !["in_progress", "cancelling"].contains(&batch.status.as_str()) {
        return Err(ServerError::ObjectState { kind: "batch", id, reason: format!("it is {}", batch.status) });
    }
    app.live_batches().cancel(&id);
    (batch.status, batch.cancelling_at) = ("cancelling".into(), Some(app.now_unix_seconds()));
    Ok(Json(batch))
}

/// The caller's batches.
pub(crate) async fn list(State(app): State<App>, context: Context, Query(query): QueryPairs) -> Result<Json<BatchList>, ServerError> {
    let listing = Listing::read(query, PAGE_QUERY)?;
    let store = app.files()?.clone();
    let owner = context.caller.name;
    let listed = app.text_pool().run(move || {
        let kept = store.ids(Shelf::Batches)?.into_iter().filter_map(|id| store.get::<OwnedBatch>(Shelf::Batches, &id).ok());
        Ok(kept.filter(|owned| owned.owner == owner).map(|owned| owned.batch).collect::<Vec<_>>())
    });
    let mut data = listed.await?;
    data.sort_by(|a, b| (b.created_at, &b.id).cmp(&(a.created_at, &a.id)));
    let Page { data, first_id, last_id, has_more } = listing.page(data, |batch| batch.id.clone())?;
    Ok(Json(BatchList { object: "list", data, first_id, last_id, has_more }))
}
