//! `/v1/batches`: all lines of a file, answered behind everybody who waits. A batch lives on disk; one that the server's end
//! interrupted goes on when the server starts again.

use std::collections::HashSet;
use std::fs::File;
use std::io::BufReader;

use axum::Json;
use axum::extract::{Path, State};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::admission::Caller;
use crate::app::{App, Context};
use crate::error::ServerError;
use crate::extract::{JsonBody, RequestBody};
use crate::files::{FileStore, Shelf, unknown};
use crate::limits;
use crate::openai::batch_runner::{BATCH_URLS, BatchEnd, BatchRunner, LineResult, ResultFile};
use crate::openai::file_routes::{FileObject, OwnedFile, own_file};
use crate::openai::shared::{Metadata, check_metadata};
use crate::router::router;

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
    if store.ids(Shelf::Batches)?.len() >= limits::N_BATCHES_MAX {
        return Err(ServerError::InsufficientQuota { reason: format!("{} batches are kept already", limits::N_BATCHES_MAX) });
    }
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
    let owned = OwnedBatch { owner: context.caller.name, tenant: context.caller.tenant.0, batch: batch.clone() };
    store.put(Shelf::Batches, &batch.id, &owned)?;
    spawn(app, owned);
    Ok(Json(batch))
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
        if ["in_progress", "finalizing", "cancelling"].contains(&owned.batch.status.as_str()) {
            spawn(app.clone(), owned);
        }
    }
}

/// Runs a batch on a thread of its own, since reading and writing its files blocks.
fn spawn(app: App, owned: OwnedBatch) {
    let runtime = tokio::runtime::Handle::current();
    let id = owned.batch.id.clone();
    let work = move || {
        if let Err(error) = runtime.block_on(Work { app, owned }.run()) {
            tracing::error!(%error, batch = id, "a batch stopped");
        }
    };
    tokio::task::spawn_blocking(work);
}

struct Work {
    app: App,
    owned: OwnedBatch,
}

impl Work {
    async fn run(mut self) -> Result<(), ServerError> {
        let store = self.app.files()?.clone();
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
        self.publish(&store, is_cancelled)
    }

    /// Turns the results into files, and says that the batch is done.
    fn publish(mut self, store: &FileStore, is_cancelled: bool) -> Result<(), ServerError> {
        let now = self.app.now_unix_seconds();
        let batch = &mut self.owned.batch;
        batch.finalizing_at = Some(now);
        batch.output_file_id = publish_file(store, &self.owned.owner, (&batch.id, "output"), now)?;
        batch.error_file_id = publish_file(store, &self.owned.owner, (&batch.id, "errors"), now)?;
        if is_cancelled {
            (batch.status, batch.cancelled_at) = ("cancelled".into(), Some(now));
        } else {
            (batch.status, batch.completed_at) = ("completed".into(), Some(now));
        }
        store.put(Shelf::Batches, &self.owned.batch.id, &self.owned)?;
        self.app.live_batches().forget(&self.owned.batch.id);
        Ok(())
    }
}

fn publish_file(store: &FileStore, owner: &str, (batch_id, name): (&str, &str), now: i64) -> Result<Option<String>, ServerError> {
    let results = store.content(Shelf::Batches, batch_id, name)?;
    let bytes = std::fs::metadata(&results)?.len();
    if bytes == 0 {
        std::fs::remove_file(&results)?;
        return Ok(None);
    }
    let id = FileStore::new_id(Shelf::Files);
    let file = FileObject {
        id: id.clone(),
        object: "file".into(),
        bytes,
        created_at: now,
        filename: format!("{batch_id}_{name}.jsonl"),
        purpose: "batch_output".into(),
        status: "processed".into(),
    };
    std::fs::rename(&results, store.content(Shelf::Files, &id, "jsonl")?)?;
    store.put(Shelf::Files, &id, &OwnedFile { owner: owner.to_string(), file })?;
    Ok(Some(id))
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

/// All of the caller's batches, newest first.
pub(crate) async fn list(State(app): State<App>, context: Context) -> Result<Json<BatchList>, ServerError> {
    let store = app.files()?.clone();
    let owner = context.caller.name;
    let listed = app.text_pool().run(move || {
        let kept = store.ids(Shelf::Batches)?.into_iter().filter_map(|id| store.get::<OwnedBatch>(Shelf::Batches, &id).ok());
        Ok(kept.filter(|owned| owned.owner == owner).map(|owned| owned.batch).collect::<Vec<_>>())
    });
    let mut data = listed.await?;
    data.sort_by(|a, b| (b.created_at, &b.id).cmp(&(a.created_at, &a.id)));
    let id_of = |batch: Option<&BatchObject>| batch.map(|batch| batch.id.clone());
    let (first_id, last_id) = (id_of(data.first()), id_of(data.last()));
    Ok(Json(BatchList { object: "list", data, first_id, last_id, has_more: false }))
}
