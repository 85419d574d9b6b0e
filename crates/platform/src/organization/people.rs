//! Members and invitations of an account in OpenAI's shapes: `/v1/organization/users` and `/v1/organization/invites`. Roles are ours. A
//! key for administration may do what an admin may: it makes no owner and changes none.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::Uri;
use bitnet_server::ServerError;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::PlatformError;
use crate::identity::{Invitation, Member, OwnersRight};
use crate::ids::{InvitationId, PersonId};
use crate::organization::body::Body;
use crate::organization::listed::ListQuery;
use crate::organization::{Administrator, as_server_error, known};
use crate::platform::Platform;
use crate::policy::Role;
use crate::portal::Portal;

type Answer = Result<Json<Value>, ServerError>;

fn user_shown(member: &Member) -> Value {
    json!({
        "object": "organization.user",
        "id": member.person.to_string(),
        "name": member.name,
        "email": member.email,
        "role": member.role.name(),
        "added_at": member.created_at.0.div_euclid(1_000_000),
    })
}

fn forbidden(error: PlatformError) -> ServerError {
    match error {
        PlatformError::Forbidden => ServerError::Forbidden { reason: "owners are made and changed by owners, in the portal".into() },
        error => as_server_error(error),
    }
}

async fn member(platform: &Platform, by: &Administrator, id: &str) -> Result<Member, ServerError> {
    let person: PersonId = known("user", id)?;
    let members = platform.store().members(by.account).await.map_err(as_server_error)?;
    let missing = || ServerError::UnknownObject { kind: "user", id: id.to_string() };
    members.into_iter().find(|member| member.person == person).ok_or_else(missing)
}

/// All members.
pub(super) async fn users(State(platform): State<Platform>, by: Administrator, uri: Uri) -> Answer {
    let query = ListQuery::read(&uri, &["emails"])?;
    let emails: Vec<&str> = query.rest.iter().flat_map(|(_, emails)| emails.split(',')).collect();
    let members = platform.store().members(by.account).await.map_err(as_server_error)?;
    let is_wanted = |member: &&Member| emails.is_empty() || emails.contains(&member.email.as_str());
    Ok(Json(query.page(members.iter().filter(is_wanted).map(user_shown).collect())?))
}

/// One of them.
pub(super) async fn user(State(platform): State<Platform>, by: Administrator, Path(id): Path<String>) -> Answer {
    Ok(Json(user_shown(&member(&platform, &by, &id).await?)))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RoleBody {
    role: String,
}

fn role(text: &str) -> Result<Role, ServerError> {
    let roles = Role::ALL.map(Role::name).join(", ");
    text.parse().map_err(|_| ServerError::InvalidParameter { param: "role".into(), reason: format!("one of {roles}") })
}

/// Gives one another role.
pub(super) async fn set_role(
    State(platform): State<Platform>,
    by: Administrator,
    Path(id): Path<String>,
    Body(body): Body<RoleBody>,
) -> Answer {
    by.check_active(&platform).await?;
    let (member, role) = (member(&platform, &by, &id).await?, role(&body.role)?);
    let rights = (OwnersRight::Withheld, &by.acting(&platform));
    platform.store().set_role(by.account, (member.person, Some(role)), rights).await.map_err(forbidden)?;
    Ok(Json(user_shown(&Member { role, ..member })))
}

/// Ends a membership.
pub(super) async fn remove(State(platform): State<Platform>, by: Administrator, Path(id): Path<String>) -> Answer {
    by.check_active(&platform).await?;
    let person = member(&platform, &by, &id).await?.person;
    let rights = (OwnersRight::Withheld, &by.acting(&platform));
    platform.store().set_role(by.account, (person, None), rights).await.map_err(forbidden)?;
    Ok(Json(json!({ "object": "organization.user.deleted", "id": id, "deleted": true })))
}

fn invite_shown(invitation: &Invitation) -> Value {
    json!({
        "object": "organization.invite",
        "id": invitation.id.to_string(),
        "email": invitation.email,
        "role": invitation.role.name(),
        // One that was accepted is a member, and one that has expired is gone.
        "status": "pending",
        "invited_at": invitation.created_at.0.div_euclid(1_000_000),
        "expires_at": invitation.expires_at.0.div_euclid(1_000_000),
        "accepted_at": null,
    })
}

async fn open_invites(platform: &Platform, by: &Administrator) -> Result<Vec<Invitation>, ServerError> {
    platform.store().invitations(by.account, platform.now()).await.map_err(as_server_error)
}

async fn own_invite(platform: &Platform, by: &Administrator, id: &str) -> Result<Invitation, ServerError> {
    let invitation: InvitationId = known("invite", id)?;
    let missing = || ServerError::UnknownObject { kind: "invite", id: id.to_string() };
    open_invites(platform, by).await?.into_iter().find(|invite| invite.id == invitation).ok_or_else(missing)
}

/// Invitations that are open.
pub(super) async fn invites(State(platform): State<Platform>, by: Administrator, uri: Uri) -> Answer {
    let query = ListQuery::read(&uri, &[])?;
    Ok(Json(query.page(open_invites(&platform, &by).await?.iter().map(invite_shown).collect())?))
}

/// One of them.
pub(super) async fn invite(State(platform): State<Platform>, by: Administrator, Path(id): Path<String>) -> Answer {
    Ok(Json(invite_shown(&own_invite(&platform, &by, &id).await?)))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct InviteBody {
    email: String,
    role: String,
}

/// Invites somebody, by a mail of the portal's.
pub(super) async fn create_invite(State(portal): State<Portal>, by: Administrator, Body(body): Body<InviteBody>) -> Answer {
    let platform = portal.platform();
    by.check_active(platform).await?;
    let role = role(&body.role)?;
    if role == Role::Owner {
        return Err(forbidden(PlatformError::Forbidden));
    }
    let name = platform.store().account(by.account, platform.now()).await.map_err(as_server_error)?.name;
    let invited = portal.identity().invite((by.account, &name), (&body.email, role), &by.acting(platform)).await;
    let id = invited.map_err(as_server_error)?;
    Ok(Json(invite_shown(&own_invite(platform, &by, &id.to_string()).await?)))
}

/// Takes an invitation back.
pub(super) async fn delete_invite(State(platform): State<Platform>, by: Administrator, Path(id): Path<String>) -> Answer {
    let invitation = own_invite(&platform, &by, &id).await?;
    platform.store().revoke_invitation(by.account, invitation.id, &by.acting(&platform)).await.map_err(as_server_error)?;
    Ok(Json(json!({ "object": "organization.invite.deleted", "id": id, "deleted": true })))
}
