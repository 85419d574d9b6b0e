//! Members and what they are, invitations, and accepting one.

use askama::Template;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;

use crate::error::PlatformError;
use crate::identity::{Invitation, Member, OwnersRight};
use crate::ids::{AccountId, InvitationId, PersonId};
use crate::policy::{Action, Role};
use crate::portal::Portal;
use crate::portal::guard::Visit;
use crate::portal::page::{Fault, PortalError, Shell, id_of, redirect, show, show_as};

type Answer = Result<Response, PortalError>;

#[derive(Template)]
#[template(path = "portal/members.html")]
struct MembersPage<'a> {
    shell: Shell<'a>,
    account: AccountId,
    members: Vec<Member>,
    invitations: Vec<Invitation>,
    own: PersonId,
    roles: Vec<Role>,
}

async fn list(portal: &Portal, visit: &Visit, fault: Option<Fault>) -> Answer {
    let (acting, account) = (visit.acting()?, visit.account()?);
    let store = portal.platform().store();
    let members = store.members(account).await?;
    let invitations = if acting.may(Action::ManageMembers) { store.invitations(account, portal.now()).await? } else { Vec::new() };
    let is_offered = |role: &Role| *role != Role::Owner || acting.may(Action::ManageOwners);
    let roles = Role::ALL.into_iter().filter(is_offered).collect();
    let (status, text) = fault.map_or((StatusCode::OK, None), |fault| (fault.status, Some(fault.text)));
    let shell = Shell::new(visit, "Members", "members")?.with_fault(text);
    show_as(status, &MembersPage { shell, account, members, invitations, own: visit.person()?.person.id, roles })
}

/// Who belongs to it.
pub(super) async fn page(State(portal): State<Portal>, visit: Visit) -> Answer {
    list(&portal, &visit, None).await
}

/// Who makes an owner must be permitted to.
fn check_owner(visit: &Visit, role: Role) -> Result<(), PortalError> {
    if role == Role::Owner && !visit.acting()?.may(Action::ManageOwners) { Err(PortalError(PlatformError::Forbidden)) } else { Ok(()) }
}

/// Invites somebody.
pub(super) async fn invite(State(portal): State<Portal>, visit: Visit) -> Answer {
    let account = visit.account()?;
    let invited = async {
        let role: Role = visit.field("role").parse()?;
        check_owner(&visit, role)?;
        let name = visit.acting()?.account.name.clone();
        portal.identity().invite((account, &name), (visit.field("email"), role), visit.by()).await?;
        Ok::<_, PortalError>(())
    };
    match invited.await {
        Ok(()) => Ok(redirect(&format!("/accounts/{account}/members?said=invited"))),
        Err(error) => list(&portal, &visit, Some(error.fault()?)).await,
    }
}

async fn change(portal: &Portal, visit: &Visit, (person, role): (&str, Option<Role>)) -> Result<(), PortalError> {
    let account = visit.account()?;
    let person: PersonId = id_of(person)?;
    let owners = if visit.acting()?.may(Action::ManageOwners) { OwnersRight::Granted } else { OwnersRight::Withheld };
    Ok(portal.platform().store().set_role(account, (person, role), (owners, visit.by())).await?)
}

/// Gives somebody another role.
pub(super) async fn set_role(State(portal): State<Portal>, visit: Visit, Path((_, person)): Path<(String, String)>) -> Answer {
    let changed = async { change(&portal, &visit, (&person, Some(visit.field("role").parse()?))).await };
    match changed.await {
        Ok(()) => Ok(redirect(&format!("/accounts/{}/members?said=role", visit.account()?))),
        Err(error) => list(&portal, &visit, Some(error.fault()?)).await,
    }
}

/// Ends somebody's membership.
pub(super) async fn remove(State(portal): State<Portal>, visit: Visit, Path((_, person)): Path<(String, String)>) -> Answer {
    match change(&portal, &visit, (&person, None)).await {
        Ok(()) => Ok(redirect(&format!("/accounts/{}/members?said=removed", visit.account()?))),
        Err(error) => list(&portal, &visit, Some(error.fault()?)).await,
    }
}

/// Takes an invitation back.
pub(super) async fn uninvite(State(portal): State<Portal>, visit: Visit, Path((_, invitation)): Path<(String, String)>) -> Answer {
    let account = visit.account()?;
    let invitation: InvitationId = id_of(&invitation)?;
    portal.platform().store().revoke_invitation(account, invitation, visit.by()).await?;
    Ok(redirect(&format!("/accounts/{account}/members?said=uninvited")))
}

#[derive(Template)]
#[template(path = "portal/invitation.html")]
struct InvitationPage<'a> {
    shell: Shell<'a>,
    invitation: Invitation,
    account_name: String,
    is_for_visitor: bool,
}

/// What an invitation is to.
pub(super) async fn invitation_page(State(portal): State<Portal>, visit: Visit, Path(link): Path<String>) -> Answer {
    let invitation = portal.identity().invitation(&link, portal.now()).await?;
    let account_name = portal.platform().store().account(invitation.account, portal.now()).await?.name;
    let is_for_visitor = visit.visitor.as_ref().is_some_and(|visitor| visitor.person.email == invitation.email);
    show(&InvitationPage { shell: Shell::new(&visit, "You are invited", "")?, invitation, account_name, is_for_visitor })
}

/// Accepts it.
pub(super) async fn accept(State(portal): State<Portal>, visit: Visit, Path(link): Path<String>) -> Answer {
    let account = portal.identity().accept(&link, &visit.person()?.person, visit.by()).await?;
    Ok(redirect(&format!("/accounts/{account}?said=joined")))
}
