//! `/v1/files`: what batches read and what they leave. Uploads go to disk as they come, downloads come
//! from there: no file is ever held in memory whole.

use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Poll, ready};
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::multipart::{Field, MultipartError};
use axum::extract::{Multipart, Path, Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body::Frame;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, timeout};
use utoipa::ToSchema;

use crate::app::{App, Context};
use crate::error::ServerError;
use crate::files::{FileStore, Shelf, unknown};
use crate::limits;
use crate::listing::{Listing, Page, QueryPairs};

/// A file, as it is told of.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct FileObject {
    pub id: String,
    pub object: String,
    pub bytes: u64,
    pub created_at: i64,
    pub filename: String,
    pub purpose: String,
    pub status: String,
}

/// And as it is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct OwnedFile {
    pub(crate) owner: String,
    pub(crate) file: FileObject,
}

/// All files.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct FileList {
    pub object: &'static str,
    pub data: Vec<FileObject>,
    pub first_id: Option<String>,
    pub last_id: Option<String>,
    pub has_more: bool,
}

/// A file that is gone.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeletedFile {
    pub id: String,
    pub object: &'static str,
    pub deleted: bool,
}

/// One of the caller's own files.
pub(crate) async fn own_file(app: &App, owner: &str, id: &str) -> Result<FileObject, ServerError> {
    let (store, wanted) = (app.files()?.clone(), id.to_string());
    let kept: OwnedFile = app.text_pool().run(move || store.get(Shelf::Files, &wanted)).await?;
    if kept.owner == owner { Ok(kept.file) } else { Err(unknown(Shelf::Files, id)) }
}

/// An upload that is removed again unless it is kept: refused, too long, or broken off by its client.
struct Unfinished(Option<PathBuf>);

impl Unfinished {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(path) = self.0.take() {
            // If it was never begun, there is nothing to remove.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Keeps a file.
pub(crate) async fn upload(State(app): State<App>, context: Context, mut form: Multipart) -> Result<Json<FileObject>, ServerError> {
    let store = app.files()?.clone();
    let counted = store.clone();
    if app.text_pool().run(move || Ok(counted.ids(Shelf::Files)?.len())).await? >= limits::N_FILES_MAX {
        return Err(ServerError::InsufficientQuota { reason: format!("{} files are kept already", limits::N_FILES_MAX) });
    }
    let id = FileStore::new_id(Shelf::Files);
    let path = store.content(Shelf::Files, &id, "jsonl")?;
    let patience = app.config().body_timeout;
    let (mut purpose, mut saved) = (None, None);
    while let Some(field) = in_time(patience, form.next_field()).await? {
        match field.name().unwrap_or_default() {
            "purpose" if purpose.is_none() => purpose = Some(read_purpose(field, patience).await?),
            "file" if saved.is_none() => {
                let filename = field.file_name().unwrap_or("upload.jsonl").chars().take(200).collect::<String>();
                let unfinished = Unfinished(Some(path.clone()));
                saved = Some((filename, save(field, &path, patience).await?, unfinished));
            }
            other => return Err(ServerError::UnknownParameter { param: other.chars().take(100).collect() }),
        }
    }
    let (filename, bytes, unfinished) = saved.ok_or_else(|| ServerError::MissingParameter { param: "file".into() })?;
    let purpose = purpose.ok_or_else(|| ServerError::MissingParameter { param: "purpose".into() })?;
    let created_at = app.now_unix_seconds();
    let file = FileObject { id: id.clone(), object: "file".into(), bytes, created_at, filename, purpose, status: "processed".into() };
    let kept = OwnedFile { owner: context.caller.name, file: file.clone() };
    app.text_pool().run(move || store.put(Shelf::Files, &id, &kept)).await?;
    unfinished.keep();
    Ok(Json(file))
}

/// What the form's next piece is, if it comes in time.
async fn in_time<T>(patience: Duration, next: impl Future<Output = Result<T, MultipartError>>) -> Result<T, ServerError> {
    timeout(patience, next).await.map_err(|_| ServerError::BodyTooSlow { limit: patience })?.map_err(wrong_form)
}

async fn read_purpose(mut field: Field<'_>, patience: Duration) -> Result<String, ServerError> {
    const ONLY: &str = "batch";
    let mut purpose = Vec::new();
    while let Some(bytes) = in_time(patience, field.chunk()).await? {
        purpose.extend_from_slice(&bytes);
        // No longer than it takes to see that it is another.
        if purpose.len() > ONLY.len() {
            break;
        }
    }
    if purpose == ONLY.as_bytes() { Ok(ONLY.into()) } else { Err(ServerError::unsupported("purpose", "only `batch`")) }
}

async fn save(mut field: Field<'_>, path: &std::path::Path, patience: Duration) -> Result<u64, ServerError> {
    let mut file = tokio::fs::File::create(path).await?;
    let mut n_bytes = 0;
    // A client that sends a byte now and then holds its connection for nothing.
    let (mut due, mut n_bytes_due) = (Instant::now() + patience, limits::UPLOAD_BYTES_IN_TIME_MIN);
    while let Some(bytes) = in_time(patience, field.chunk()).await? {
        n_bytes += bytes.len();
        if n_bytes > limits::FILE_BYTES_MAX {
            return Err(ServerError::BodyTooLarge { limit: limits::FILE_BYTES_MAX });
        }
        file.write_all(&bytes).await?;
        if Instant::now() < due {
            continue;
        }
        if n_bytes < n_bytes_due {
            return Err(ServerError::BodyTooSlow { limit: patience });
        }
        (due, n_bytes_due) = (Instant::now() + patience, n_bytes + limits::UPLOAD_BYTES_IN_TIME_MIN);
    }
    file.sync_all().await?;
    Ok(n_bytes as u64)
}

fn wrong_form(error: MultipartError) -> ServerError {
    match error.status() {
        StatusCode::PAYLOAD_TOO_LARGE => ServerError::BodyTooLarge { limit: limits::FILE_BYTES_MAX },
        _ => ServerError::invalid("file", error.body_text()),
    }
}

/// The caller's files.
pub(crate) async fn list(State(app): State<App>, context: Context, Query(query): QueryPairs) -> Result<Json<FileList>, ServerError> {
    let listing = Listing::read(query, &["after", "limit", "order", "purpose"])?;
    let store = app.files()?.clone();
    let owner = context.caller.name;
    let listed = app.text_pool().run(move || {
        let kept = store.ids(Shelf::Files)?.into_iter().filter_map(|id| store.get::<OwnedFile>(Shelf::Files, &id).ok());
        Ok(kept.filter(|kept| kept.owner == owner).map(|kept| kept.file).collect::<Vec<_>>())
    });
    let mut data = listed.await?;
    data.sort_by(|a, b| (b.created_at, &b.id).cmp(&(a.created_at, &a.id)));
    if let Some(purpose) = &listing.purpose {
        data.retain(|file| file.purpose == *purpose);
    }
    let Page { data, first_id, last_id, has_more } = listing.page(data, |file| file.id.clone())?;
    Ok(Json(FileList { object: "list", data, first_id, last_id, has_more }))
}

/// Tells of a file.
pub(crate) async fn get(State(app): State<App>, context: Context, Path(id): Path<String>) -> Result<Json<FileObject>, ServerError> {
    Ok(Json(own_file(&app, &context.caller.name, &id).await?))
}

/// Gives it.
pub(crate) async fn content(State(app): State<App>, context: Context, Path(id): Path<String>) -> Result<Response, ServerError> {
    own_file(&app, &context.caller.name, &id).await?;
    let file = tokio::fs::File::open(app.files()?.content(Shelf::Files, &id, "jsonl")?).await?;
    let length = file.metadata().await?.len();
    let headers = [(header::CONTENT_TYPE, HeaderValue::from_static("application/jsonl")), (header::CONTENT_LENGTH, length.into())];
    Ok((headers, Body::new(FileBody { file, room: vec![0; limits::FILE_CHUNK_BYTES].into() })).into_response())
}

/// A file as a body, read as the client takes it.
struct FileBody {
    file: tokio::fs::File,
    room: Box<[u8]>,
}

impl http_body::Body for FileBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<Option<std::io::Result<Frame<Bytes>>>> {
        let this = &mut *self;
        let mut buffer = ReadBuf::new(&mut this.room);
        if let Err(error) = ready!(Pin::new(&mut this.file).poll_read(cx, &mut buffer)) {
            return Poll::Ready(Some(Err(error)));
        }
        let read = buffer.filled();
        Poll::Ready((!read.is_empty()).then(|| Ok(Frame::data(Bytes::copy_from_slice(read)))))
    }
}

/// Forgets it.
pub(crate) async fn delete(State(app): State<App>, context: Context, Path(id): Path<String>) -> Result<Json<DeletedFile>, ServerError> {
    own_file(&app, &context.caller.name, &id).await?;
    let (store, gone) = (app.files()?.clone(), id.clone());
    app.text_pool().run(move || store.remove(Shelf::Files, &gone)).await?;
    Ok(Json(DeletedFile { id, object: "file", deleted: true }))
}
