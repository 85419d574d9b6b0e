//! The playground: a page that talks to models as any client does, with a key that is lent for some minutes and stands nowhere. What
//! is said there is metered and limited as all else.

use askama::Template;
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::directory::ProjectRow;
use crate::error::PlatformError;
use crate::ids::AccountId;
use crate::limits::LENT_KEY_AGE_MAX;
use crate::portal::Portal;
use crate::portal::account::{ModelView, model_views};
use crate::portal::guard::Visit;
use crate::portal::page::{PortalError, Shell, show};

type Answer = Result<Response, PortalError>;

#[derive(Template)]
#[template(path = "portal/playground.html")]
struct PlaygroundPage<'a> {
    shell: Shell<'a>,
    account: AccountId,
    models: Vec<ModelView>,
    projects: Vec<ProjectRow>,
}

/// The page.
pub(super) async fn page(State(portal): State<Portal>, visit: Visit) -> Answer {
    let account = visit.account()?;
    let models = model_views(&portal).await?.into_iter().filter(|model| model.is_text).collect();
    let projects = portal.platform().store().projects(Some(account)).await?;
    show(&PlaygroundPage { shell: Shell::new(&visit, "Playground", "playground")?, account, models, projects })
}

/// Lends a key, for one of the account's projects.
pub(super) async fn lend(State(portal): State<Portal>, visit: Visit) -> Answer {
    let account = visit.account()?;
    let unknown = || PortalError(PlatformError::NotFound { what: "project" });
    let wanted = visit.field("project");
    let projects = portal.platform().store().projects(Some(account)).await?;
    let mut candidates = projects.iter().filter(|project| wanted.is_empty() || project.id.to_string() == wanted);
    let project = candidates.next().ok_or_else(unknown)?;
    let key = portal.platform().directory().lend((account, project.id), portal.now())?;
    Ok(Json(json!({ "key": key.reveal(), "expires_in": LENT_KEY_AGE_MAX.as_secs() })).into_response())
}
