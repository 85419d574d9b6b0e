//! `/v1/files`: what batches read and what they leave. Uploads go to disk as they come and are never held in memory whole.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::multipart::{Field, MultipartError};
use axum::extract::{Multipart, Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;
use utoipa::ToSchema;

use crate::app::{App, Context};
use crate::error::ServerError;
use crate::files::{FileStore, Shelf, unknown};
use crate::limits;

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

/// Keeps a file.
pub(crate) async fn upload(State(app): State<App>, context: Context, mut form: Multipart) -> Result<Json<FileObject>, ServerError> {
    let store = app.files()?.clone();
    if store.ids(Shelf::Files)?.len() >= limits::N_FILES_MAX {
        return Err(ServerError::InsufficientQuota { reason: format!("{} files are kept already", limits::N_FILES_MAX) });
    }
    let id = FileStore::new_id(Shelf::Files);
    let path = store.content(Shelf::Files, &id, "jsonl")?;
    let (mut purpose, mut saved) = (None, None);
    while let Some(field) = form.next_field().await.map_err(wrong_form)? {
        match field.name().unwrap_or_default() {
            "purpose" => purpose = Some(field.text().await.map_err(wrong_form)?),
            "file" if saved.is_none() => {
                let filename = field.file_name().unwrap_or("upload.jsonl").chars().take(200).collect::<String>();
                let written = save(field, &path, app.config().body_timeout).await;
                if written.is_err() {
                    let _ = tokio::fs::remove_file(&path).await;
                }
                saved = Some((filename, written?));
            }
            other => return Err(ServerError::UnknownParameter { param: other.chars().take(100).collect() }),
        }
    }
    let (filename, bytes) = saved.ok_or_else(|| ServerError::MissingParameter { param: "file".into() })?;
    let purpose = match purpose.as_deref() {
        Some("batch") => "batch".to_string(),
        other => {
            let _ = tokio::fs::remove_file(&path).await;
            return Err(match other {
                None => ServerError::MissingParameter { param: "purpose".into() },
                Some(_) => ServerError::unsupported("purpose", "only `batch`"),
            });
        }
    };
    let created_at = app.now_unix_seconds();
    let file = FileObject { id: id.clone(), object: "file".into(), bytes, created_at, filename, purpose, status: "processed".into() };
    let kept = OwnedFile { owner: context.caller.name, file: file.clone() };
    app.text_pool().run(move || store.put(Shelf::Files, &id, &kept)).await?;
    Ok(Json(file))
}

async fn save(mut field: Field<'_>, path: &std::path::Path, patience: Duration) -> Result<u64, ServerError> {
    let mut file = tokio::fs::File::create(path).await?;
    let mut n_bytes = 0;
    let slow = |_| ServerError::BodyTooSlow { limit: patience };
    while let Some(bytes) = timeout(patience, field.chunk()).await.map_err(slow)?.map_err(wrong_form)? {
        n_bytes += bytes.len();
        if n_bytes > limits::FILE_BYTES_MAX {
            return Err(ServerError::BodyTooLarge { limit: limits::FILE_BYTES_MAX });
        }
        file.write_all(&bytes).await?;
    }
    file.sync_all().await?;
    Ok(n_bytes as u64)
}

fn wrong_form(error: MultipartError) -> ServerError {
    ServerError::invalid("file", error.body_text())
}

/// All of the caller's files, newest first.
pub(crate) async fn list(State(app): State<App>, context: Context) -> Result<Json<FileList>, ServerError> {
    let store = app.files()?.clone();
    let owner = context.caller.name;
    let listed = app.text_pool().run(move || {
        let kept = store.ids(Shelf::Files)?.into_iter().filter_map(|id| store.get::<OwnedFile>(Shelf::Files, &id).ok());
        Ok(kept.filter(|kept| kept.owner == owner).map(|kept| kept.file).collect::<Vec<_>>())
    });
    let mut data = listed.await?;
    data.sort_by(|a, b| (b.created_at, &b.id).cmp(&(a.created_at, &a.id)));
    let id_of = |file: Option<&FileObject>| file.map(|file| file.id.clone());
    let (first_id, last_id) = (id_of(data.first()), id_of(data.last()));
    Ok(Json(FileList { object: "list", data, first_id, last_id, has_more: false }))
}

/// Tells of a file.
pub(crate) async fn get(State(app): State<App>, context: Context, Path(id): Path<String>) -> Result<Json<FileObject>, ServerError> {
    Ok(Json(own_file(&app, &context.caller.name, &id).await?))
}

/// Gives it.
pub(crate) async fn content(State(app): State<App>, context: Context, Path(id): Path<String>) -> Result<Response, ServerError> {
    own_file(&app, &context.caller.name, &id).await?;
    let bytes = tokio::fs::read(app.files()?.content(Shelf::Files, &id, "jsonl")?).await?;
    Ok(([(header::CONTENT_TYPE, "application/jsonl")], Body::from(bytes)).into_response())
}

/// Forgets it.
pub(crate) async fn delete(State(app): State<App>, context: Context, Path(id): Path<String>) -> Result<Json<DeletedFile>, ServerError> {
    own_file(&app, &context.caller.name, &id).await?;
    let (store, gone) = (app.files()?.clone(), id.clone());
    app.text_pool().run(move || store.remove(Shelf::Files, &gone)).await?;
    Ok(Json(DeletedFile { id, object: "file", deleted: true }))
}
