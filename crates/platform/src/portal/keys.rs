//! API keys: which there are, new ones with what they may be used for, rotation and revocation. A key is shown once.

use std::time::Duration;

use askama::Template;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;

use crate::directory::{ApiKey, KeyAccess, KeyScope, NewApiKey, ProjectRow};
use crate::error::PlatformError;
use crate::ids::{AccountId, ApiKeyId};
use crate::ledger::scope::ScopeLimits;
use crate::policy::Action;
use crate::portal::Portal;
use crate::portal::guard::Visit;
use crate::portal::page::{Fault, PortalError, Shell, id_of, moment, redirect, show, show_as};
use crate::time::Timestamp;

type Answer = Result<Response, PortalError>;

/// Routes that a key may be for, as people think of them.
const ROUTE_GROUPS: &[(&str, &str, &[&str])] = &[
    (
        "chat",
        "Chat and responses",
        &[
            "/v1/chat/completions",
            "/v1/messages",
            "/v1/messages/count_tokens",
            "/v1/responses",
            "/v1/responses/{id}",
            "/v1/responses/{id}/input_items",
        ],
    ),
    ("completions", "Completions", &["/v1/completions"]),
    ("embeddings", "Embeddings", &["/v1/embeddings"]),
    (
        "batches",
        "Files and batches",
        &["/v1/files", "/v1/files/{id}", "/v1/files/{id}/content", "/v1/batches", "/v1/batches/{id}", "/v1/batches/{id}/cancel"],
    ),
];
/// Those that every key may use.
const COMMON_ROUTES: &[&str] = &["/v1/models", "/v1/models/{*model}", "/tokenize", "/detokenize"];

/// Hours for which an old key still works beside the one that replaces it.
const ROTATION_HOURS: u64 = 24;

struct KeyView {
    key: ApiKey,
    project: String,
    state: String,
    is_valid: bool,
    is_admin: bool,
    scope: String,
}

fn view(key: ApiKey, projects: &[ProjectRow], now: Timestamp) -> KeyView {
    let project = projects.iter().find(|project| project.id == key.owner.project).map_or_else(String::new, |project| project.name.clone());
    let state = match (key.revoked_at, key.expires_at) {
        (Some(at), _) => format!("revoked {}", moment(at)),
        (None, Some(at)) if at <= now => format!("ended {}", moment(at)),
        (None, Some(at)) => format!("until {}", moment(at)),
        (None, None) => "valid".into(),
    };
    let names: Vec<&str> = match &key.scope.routes {
        None => vec!["all routes"],
        Some(routes) => {
            let is_covered = |group: &&(&str, &'static str, &[&str])| group.2.iter().all(|route| routes.iter().any(|other| other == route));
            ROUTE_GROUPS.iter().filter(is_covered).map(|(_, name, _)| *name).collect()
        }
    };
    let models = key.scope.models.as_ref().map_or_else(|| "all models".to_string(), |models| models.join(", "));
    let is_admin = key.access == KeyAccess::Admin;
    let scope = if is_admin { "administration".into() } else { format!("{models}; {}", names.join(", ")) };
    KeyView { is_valid: key.is_valid_at(now), is_admin, project, state, scope, key }
}

#[derive(Template)]
#[template(path = "portal/keys.html")]
struct KeysPage<'a> {
    shell: Shell<'a>,
    account: AccountId,
    keys: Vec<KeyView>,
    projects: Vec<ProjectRow>,
    models: Vec<String>,
    groups: &'static [(&'static str, &'static str, &'static [&'static str])],
}

#[derive(Template)]
#[template(path = "portal/key_made.html")]
struct KeyMadePage<'a> {
    shell: Shell<'a>,
    account: AccountId,
    name: String,
    key: String,
    note: &'static str,
}

async fn list(portal: &Portal, visit: &Visit, fault: Option<Fault>) -> Answer {
    let (account, now) = (visit.account()?, portal.now());
    let store = portal.platform().store();
    let projects = store.projects(Some(account)).await?;
    let mut keys: Vec<KeyView> = store.api_keys(Some(account)).await?.into_iter().map(|key| view(key, &projects, now)).collect();
    keys.sort_by_key(|view| !view.is_valid);
    let models = portal.app().models().all().iter().map(|model| model.name.clone()).collect();
    let (status, text) = fault.map_or((StatusCode::OK, None), |fault| (fault.status, Some(fault.text)));
    let shell = Shell::new(visit, "API keys", "keys")?.with_fault(text);
    show_as(status, &KeysPage { shell, account, keys, projects, models, groups: ROUTE_GROUPS })
}

/// Which there are.
pub(super) async fn page(State(portal): State<Portal>, visit: Visit) -> Answer {
    list(&portal, &visit, None).await
}

/// A number that may be left out.
pub(super) fn optional<T: std::str::FromStr>(visit: &Visit, field: &'static str) -> Result<Option<T>, PlatformError> {
    let text = visit.field(field);
    let wrong =
        || PlatformError::Invalid { field, reason: format!("expected a number in “{}”, got {text:?}", field.replace('_', " ")) };
    if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(|_| wrong()) }
}

/// Limits of a form.
pub(super) fn limits_of(visit: &Visit) -> Result<ScopeLimits, PlatformError> {
    Ok(ScopeLimits {
        spending_cap: optional(visit, "spending_cap")?,
        requests_per_minute: optional(visit, "requests_per_minute")?,
        tokens_per_minute: optional(visit, "tokens_per_minute")?,
        n_concurrent_max: optional(visit, "n_concurrent_max")?,
    })
}

fn wanted(visit: &Visit, account: AccountId, now: Timestamp) -> Result<NewApiKey, PlatformError> {
    let days: Option<u32> = optional(visit, "days")?;
    let groups = visit.all("routes");
    let routes: Vec<String> = ROUTE_GROUPS
        .iter()
        .filter(|(id, ..)| groups.iter().any(|wanted| wanted == id))
        .flat_map(|(.., routes)| *routes)
        .map(ToString::to_string)
        .collect();
    let models = visit.all("models");
    let is_admin = visit.field("access") == "admin";
    let common = COMMON_ROUTES.iter().map(ToString::to_string);
    Ok(NewApiKey {
        account,
        project: visit.field("project").parse()?,
        name: visit.field("name").into(),
        access: if is_admin { KeyAccess::Admin } else { KeyAccess::Inference },
        scope: KeyScope {
            models: (!models.is_empty()).then_some(models),
            routes: (!routes.is_empty()).then(|| routes.into_iter().chain(common).collect()),
        },
        limits: limits_of(visit)?,
        expires_at: days.map(|days| now.plus(Duration::from_secs(u64::from(days) * 86_400))),
    })
}

/// A key for administration opens what an admin may: whoever makes, rotates or revokes one must be permitted to.
fn check_administration(visit: &Visit, access: KeyAccess) -> Result<(), PortalError> {
    let is_permitted = access != KeyAccess::Admin || visit.acting()?.may(Action::ManageAdminKeys);
    if is_permitted { Ok(()) } else { Err(PortalError(PlatformError::Forbidden)) }
}

/// A key of the account that whoever asks may rotate and revoke.
async fn manageable(portal: &Portal, visit: &Visit, key: &str) -> Result<(AccountId, ApiKeyId), PortalError> {
    let (account, id): (AccountId, ApiKeyId) = (visit.account()?, id_of(key)?);
    let key = portal.platform().store().api_key(id).await?.filter(|key| key.owner.account == account);
    check_administration(visit, key.ok_or(PlatformError::NotFound { what: "API key" })?.access)?;
    Ok((account, id))
}

/// Makes one.
pub(super) async fn create(State(portal): State<Portal>, visit: Visit) -> Answer {
    let account = visit.account()?;
    let platform = portal.platform();
    let made = async {
        let key = wanted(&visit, account, portal.now())?;
        check_administration(&visit, key.access)?;
        let name = key.name.clone();
        let (_, text) = platform.store().create_api_key(key, platform.hasher(), visit.by()).await?;
        portal.know().await?;
        Ok::<_, PortalError>((name, text))
    };
    match made.await {
        Ok((name, text)) => {
            let key = text.reveal().to_string();
            show(&KeyMadePage { shell: Shell::new(&visit, "Your new key", "keys")?, account, name, key, note: "" })
        }
        Err(error) => list(&portal, &visit, Some(error.fault()?)).await,
    }
}

/// Makes one that may do the same as another, which ends in a day.
pub(super) async fn rotate(State(portal): State<Portal>, visit: Visit, Path((_, key)): Path<(String, String)>) -> Answer {
    let (account, key) = manageable(&portal, &visit, &key).await?;
    let platform = portal.platform();
    let old_until = portal.now().plus(Duration::from_secs(ROTATION_HOURS * 3600));
    match platform.store().rotate_api_key((account, key), old_until, platform.hasher(), visit.by()).await {
        Ok((_, text)) => {
            portal.know().await?;
            let (name, key) = ("rotated key".to_string(), text.reveal().to_string());
            let note = "The old key works for another 24 hours.";
            show(&KeyMadePage { shell: Shell::new(&visit, "Your new key", "keys")?, account, name, key, note })
        }
        Err(error) => list(&portal, &visit, Some(PortalError(error).fault()?)).await,
    }
}

/// Ends one.
pub(super) async fn revoke(State(portal): State<Portal>, visit: Visit, Path((_, key)): Path<(String, String)>) -> Answer {
    let (account, key) = manageable(&portal, &visit, &key).await?;
    portal.platform().store().revoke_api_key(account, key, visit.by()).await?;
    portal.know().await?;
    Ok(redirect(&format!("/accounts/{account}/keys?said=revoked")))
}
