//! What belongs to a person and not to an account: name and address, password, second factor, sessions.

use askama::Template;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;

use crate::error::PlatformError;
use crate::identity::{Passkey, Session, Visitor};
use crate::notices::Topic;
use crate::portal::Portal;
use crate::portal::guard::Visit;
use crate::portal::page::{PortalError, Shell, redirect, show, show_as};

type Answer = Result<Response, PortalError>;

#[derive(Template)]
#[template(path = "portal/profile.html")]
struct ProfilePage<'a> {
    shell: Shell<'a>,
    visitor: &'a Visitor,
    sessions: Vec<Session>,
    n_recovery_codes: i64,
    topics: Vec<(Topic, bool)>,
    passkeys: Vec<Passkey>,
    origin: Option<&'a str>,
}

pub(super) async fn profile(portal: &Portal, visit: &Visit, fault: Option<crate::portal::page::Fault>) -> Answer {
    let visitor = visit.person()?;
    let store = portal.platform().store();
    let sessions = store.sessions(visitor.person.id, portal.now()).await?;
    let n_recovery_codes = store.n_recovery_codes(visitor.person.id).await?;
    let refused = store.refused_topics(visitor.person.id).await?;
    let topics = Topic::ALL.map(|topic| (topic, !refused.iter().any(|name| name == topic.name()))).to_vec();
    let (status, text) = fault.map_or((StatusCode::OK, None), |fault| (fault.status, Some(fault.text)));
    let shell = Shell::new(visit, "Your profile", "profile")?.with_fault(text);
    let (passkeys, origin) = (store.passkeys(visitor.person.id).await?, portal.identity().passkey_origin());
    show_as(status, &ProfilePage { shell, visitor, sessions, n_recovery_codes, topics, passkeys, origin })
}

/// All of it.
pub(super) async fn page(State(portal): State<Portal>, visit: Visit) -> Answer {
    profile(&portal, &visit, None).await
}

/// Sets a new password.
pub(super) async fn password(State(portal): State<Portal>, visit: Visit) -> Answer {
    let passwords = (visit.secret("password"), visit.secret("new_password"));
    match portal.identity().change_password(visit.person()?, passwords, &visit.whence).await {
        Ok(()) => Ok(redirect("/profile?said=password")),
        Err(error) => profile(&portal, &visit, Some(PortalError(error).fault()?)).await,
    }
}

/// Chooses what to hear of by mail.
pub(super) async fn notices(State(portal): State<Portal>, visit: Visit) -> Answer {
    let ticked = visit.all("topics");
    let wanted: Vec<Topic> = Topic::ALL.into_iter().filter(|topic| ticked.iter().any(|name| name == topic.name())).collect();
    portal.platform().store().choose_topics(visit.person()?.person.id, &wanted, visit.by()).await?;
    Ok(redirect("/profile?said=saved"))
}

#[derive(Template)]
#[template(path = "portal/second_factor.html")]
struct SecondFactorPage<'a> {
    shell: Shell<'a>,
    path: String,
    side: i32,
    secret: String,
}

#[derive(Template)]
#[template(path = "portal/recovery_codes.html")]
struct RecoveryCodesPage<'a> {
    shell: Shell<'a>,
    codes: Vec<String>,
}

async fn second_factor_form(portal: &Portal, visit: &Visit, fault: Option<crate::portal::page::Fault>) -> Answer {
    let Some(prepared) = portal.identity().prepare_second_factor(&visit.person()?.person).await? else {
        return Ok(redirect("/profile"));
    };
    let (status, text) = fault.map_or((StatusCode::OK, None), |fault| (fault.status, Some(fault.text)));
    let shell = Shell::new(visit, "Turn on the second factor", "profile")?.with_fault(text);
    show_as(status, &SecondFactorPage { shell, path: prepared.path, side: prepared.side, secret: prepared.secret })
}

/// What an app needs to show codes.
pub(super) async fn second_factor_page(State(portal): State<Portal>, visit: Visit) -> Answer {
    second_factor_form(&portal, &visit, None).await
}

/// Turns it on.
pub(super) async fn second_factor(State(portal): State<Portal>, visit: Visit) -> Answer {
    match portal.identity().enable_second_factor(&visit.person()?.person, visit.field("code"), &visit.whence).await {
        Ok(codes) => show(&RecoveryCodesPage { shell: Shell::new(&visit, "Recovery codes", "profile")?, codes }),
        Err(PlatformError::Credentials) => Ok(redirect("/profile")),
        Err(error) => second_factor_form(&portal, &visit, Some(PortalError(error).fault()?)).await,
    }
}

/// Turns it off.
pub(super) async fn second_factor_off(State(portal): State<Portal>, visit: Visit) -> Answer {
    match portal.identity().disable_second_factor(&visit.person()?.person, visit.secret("password"), &visit.whence).await {
        Ok(()) => Ok(redirect("/profile?said=factor-off")),
        Err(error) => profile(&portal, &visit, Some(PortalError(error).fault()?)).await,
    }
}
