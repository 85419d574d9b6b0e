//! Projects and keys of an account in OpenAI's shapes: `/v1/organization/projects`, their keys, and `/v1/organization/admin_api_keys`.
//! A key's text is in the answer that makes it and nowhere else.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::Uri;
use bitnet_server::ServerError;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::directory::{ApiKey, KeyAccess, KeyScope, NewApiKey, ProjectRow};
use crate::ids::{ApiKeyId, ProjectId};
use crate::ledger::scope::ScopeLimits;
use crate::organization::body::Body;
use crate::organization::listed::ListQuery;
use crate::organization::{Administrator, as_server_error, known};
use crate::platform::Platform;
use crate::time::Timestamp;

type Answer = Result<Json<Value>, ServerError>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NameBody {
    name: String,
}

fn seconds(time: Timestamp) -> i64 {
    time.0.div_euclid(1_000_000)
}

fn project_shown(project: &ProjectRow) -> Value {
    json!({
        "object": "organization.project",
        "id": project.id.to_string(),
        "name": project.name,
        "created_at": seconds(project.created_at),
        "archived_at": null,
        "status": "active",
    })
}

/// A project of the account; another's is nobody's.
async fn own_project(platform: &Platform, by: &Administrator, id: &str) -> Result<ProjectRow, ServerError> {
    let project: ProjectId = known("project", id)?;
    let all = platform.store().projects(Some(by.account)).await.map_err(as_server_error)?;
    let missing = || ServerError::UnknownObject { kind: "project", id: id.to_string() };
    all.into_iter().find(|row| row.id == project).ok_or_else(missing)
}

/// All projects.
pub(super) async fn list(State(platform): State<Platform>, by: Administrator, uri: Uri) -> Answer {
    // None is ever archived.
    let query = ListQuery::read(&uri, &["include_archived"])?;
    let projects = platform.store().projects(Some(by.account)).await.map_err(as_server_error)?;
    Ok(Json(query.page(projects.iter().map(project_shown).collect())?))
}

/// One of them.
pub(super) async fn one(State(platform): State<Platform>, by: Administrator, Path(id): Path<String>) -> Answer {
    Ok(Json(project_shown(&own_project(&platform, &by, &id).await?)))
}

/// Makes one.
pub(super) async fn create(State(platform): State<Platform>, by: Administrator, Body(body): Body<NameBody>) -> Answer {
    by.check_active(&platform).await?;
    let made = platform.store().create_project(by.account, &body.name, ScopeLimits::default(), &by.acting(&platform)).await;
    let id = made.map_err(as_server_error)?;
    Ok(Json(project_shown(&own_project(&platform, &by, &id.to_string()).await?)))
}

/// Gives one another name.
pub(super) async fn rename(
    State(platform): State<Platform>,
    by: Administrator,
    Path(id): Path<String>,
    Body(body): Body<NameBody>,
) -> Answer {
    by.check_active(&platform).await?;
    let project = own_project(&platform, &by, &id).await?;
    platform.store().rename_project((by.account, project.id), &body.name, &by.acting(&platform)).await.map_err(as_server_error)?;
    Ok(Json(project_shown(&ProjectRow { name: body.name, ..project })))
}

fn key_shown(key: &ApiKey) -> Value {
    let object = match key.access {
        KeyAccess::Admin => "organization.admin_api_key",
        KeyAccess::Inference => "organization.project.api_key",
    };
    json!({
        "object": object,
        "id": key.id.to_string(),
        "name": key.name,
        "redacted_value": format!("{}…", key.prefix),
        "created_at": seconds(key.created_at),
        // It is not kept when a key was used.
        "last_used_at": null,
        "expires_at": key.expires_at.map(seconds),
        "owner": { "type": "service_account", "id": key.owner.account.to_string(), "project": key.owner.project.to_string() },
    })
}

/// Keys that open something, of a project or those for administration.
async fn keys(platform: &Platform, by: &Administrator, of: Option<ProjectId>) -> Result<Vec<ApiKey>, ServerError> {
    let all = platform.store().api_keys(Some(by.account)).await.map_err(as_server_error)?;
    let access = if of.is_some() { KeyAccess::Inference } else { KeyAccess::Admin };
    let is_wanted =
        |key: &ApiKey| key.access == access && of.is_none_or(|project| key.owner.project == project) && key.is_valid_at(platform.now());
    Ok(all.into_iter().filter(is_wanted).collect())
}

async fn own_key(platform: &Platform, by: &Administrator, (of, id): (Option<ProjectId>, &str)) -> Result<ApiKey, ServerError> {
    let key: ApiKeyId = known("API key", id)?;
    let missing = || ServerError::UnknownObject { kind: "API key", id: id.to_string() };
    keys(platform, by, of).await?.into_iter().find(|other| other.id == key).ok_or_else(missing)
}

/// A project's keys.
pub(super) async fn project_keys(State(platform): State<Platform>, by: Administrator, Path(id): Path<String>, uri: Uri) -> Answer {
    let query = ListQuery::read(&uri, &[])?;
    let project = own_project(&platform, &by, &id).await?;
    Ok(Json(query.page(keys(&platform, &by, Some(project.id)).await?.iter().map(key_shown).collect())?))
}

/// One of them.
pub(super) async fn project_key(State(platform): State<Platform>, by: Administrator, Path((id, key)): Path<(String, String)>) -> Answer {
    let project = own_project(&platform, &by, &id).await?;
    Ok(Json(key_shown(&own_key(&platform, &by, (Some(project.id), &key)).await?)))
}

async fn revoke(platform: &Platform, by: &Administrator, key: &ApiKey) -> Answer {
    platform.store().revoke_api_key(by.account, key.id, &by.acting(platform)).await.map_err(as_server_error)?;
    let object = format!("{}.deleted", key_shown(key)["object"].as_str().unwrap_or_default());
    Ok(Json(json!({ "object": object, "id": key.id.to_string(), "deleted": true })))
}

/// Ends one.
pub(super) async fn delete_project_key(
    State(platform): State<Platform>,
    by: Administrator,
    Path((id, key)): Path<(String, String)>,
) -> Answer {
    let project = own_project(&platform, &by, &id).await?;
    let key = own_key(&platform, &by, (Some(project.id), &key)).await?;
    revoke(&platform, &by, &key).await
}

/// Keys for administration.
pub(super) async fn admin_keys(State(platform): State<Platform>, by: Administrator, uri: Uri) -> Answer {
    let query = ListQuery::read(&uri, &[])?;
    Ok(Json(query.page(keys(&platform, &by, None).await?.iter().map(key_shown).collect())?))
}

/// One of them.
pub(super) async fn admin_key(State(platform): State<Platform>, by: Administrator, Path(id): Path<String>) -> Answer {
    Ok(Json(key_shown(&own_key(&platform, &by, (None, &id)).await?)))
}

/// Makes one, in the account's first project.
pub(super) async fn create_admin_key(State(platform): State<Platform>, by: Administrator, Body(body): Body<NameBody>) -> Answer {
    by.check_active(&platform).await?;
    let projects = platform.store().projects(Some(by.account)).await.map_err(as_server_error)?;
    let missing = || ServerError::UnknownObject { kind: "project", id: String::new() };
    let project = projects.first().ok_or_else(missing)?.id;
    let new = NewApiKey {
        account: by.account,
        project,
        name: body.name,
        access: KeyAccess::Admin,
        scope: KeyScope::default(),
        limits: ScopeLimits::default(),
        expires_at: None,
    };
    let made = platform.store().create_api_key(new, platform.hasher(), &by.acting(&platform)).await;
    let (id, text) = made.map_err(as_server_error)?;
    let mut shown = key_shown(&own_key(&platform, &by, (None, &id.to_string())).await?);
    shown["value"] = text.reveal().into();
    Ok(Json(shown))
}

/// Ends one, be it the one that asks.
pub(super) async fn delete_admin_key(State(platform): State<Platform>, by: Administrator, Path(id): Path<String>) -> Answer {
    let key = own_key(&platform, &by, (None, &id)).await?;
    revoke(&platform, &by, &key).await
}
