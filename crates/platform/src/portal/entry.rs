//! Ways in and out: signing up, confirming an address, signing in with one factor or two, setting a new password, signing out. What
//! a stranger sees is the same whether an address is known or not.

use askama::Template;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, header};
use axum::response::Response;

use crate::error::PlatformError;
use crate::identity::{Confirmed, NewPerson, SignedIn, Stage, Token};
use crate::limits::SESSION_AGE_MAX;
use crate::portal::Portal;
use crate::portal::guard::Visit;
use crate::portal::page::{PortalError, Shell, as_parameter, own_path, redirect, show, show_as};

type Answer = Result<Response, PortalError>;

/// Gives a browser a session, or takes it away.
fn with_cookie(portal: &Portal, mut response: Response, token: Option<&Token>) -> Response {
    let (value, age_s) = token.map_or(("", 0), |token| (token.reveal(), SESSION_AGE_MAX.as_secs()));
    let secure = if portal.is_secure() { "; Secure" } else { "" };
    let cookie = format!("{}={value}; Path=/; Max-Age={age_s}; HttpOnly; SameSite=Lax{secure}", portal.cookie_name());
    if let Ok(cookie) = HeaderValue::from_str(&cookie) {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
    response
}

pub(super) fn arrived(portal: &Portal, signed_in: &SignedIn, next: &str) -> Response {
    let (to, token) = match signed_in {
        SignedIn::Open(token) => (own_path(next).to_string(), token),
        SignedIn::SecondFactor(token) => (format!("/log-in/code?next={}", as_parameter(own_path(next))), token),
        SignedIn::Unconfirmed(token) => ("/check-mail".to_string(), token),
    };
    with_cookie(portal, redirect(&to), Some(token))
}

#[derive(Template)]
#[template(path = "portal/sign_up.html")]
struct SignUpPage<'a> {
    shell: Shell<'a>,
    is_first: bool,
    first: &'a str,
    next: &'a str,
}

async fn sign_up_form(portal: &Portal, visit: &Visit, fault: Option<crate::portal::page::Fault>) -> Answer {
    let first = if visit.asked("first").is_empty() { visit.field("first") } else { visit.asked("first") };
    let is_first = portal.identity().is_of_terminal(first, &visit.whence) && portal.platform().store().has_no_people().await?;
    let (status, text) = fault.map_or((axum::http::StatusCode::OK, None), |fault| (fault.status, Some(fault.text)));
    let next = if visit.asked("next").is_empty() { visit.field("next") } else { visit.asked("next") };
    let shell = Shell::new(visit, "Sign up", "sign-up")?.with_fault(text);
    show_as(status, &SignUpPage { shell, is_first, first, next })
}

/// The form.
pub(super) async fn sign_up_page(State(portal): State<Portal>, visit: Visit) -> Answer {
    if visit.visitor.is_some() {
        return Ok(redirect("/accounts"));
    }
    sign_up_form(&portal, &visit, None).await
}

/// Signs somebody up.
pub(super) async fn sign_up(State(portal): State<Portal>, visit: Visit) -> Answer {
    let [email, name, first] = ["email", "name", "first"].map(|field| visit.field(field).to_string());
    let new = NewPerson { email, name, password: visit.secret("password"), first };
    match portal.identity().sign_up(new, &visit.whence).await {
        Ok(signed_in) => {
            portal.know().await?;
            Ok(arrived(&portal, &signed_in, visit.field("next")))
        }
        Err(error) => sign_up_form(&portal, &visit, Some(PortalError(error).fault()?)).await,
    }
}

#[derive(Template)]
#[template(path = "portal/check_mail.html")]
struct CheckMailPage<'a> {
    shell: Shell<'a>,
    sends_mail: bool,
}

/// What to do next, after signing up.
pub(super) async fn check_mail(State(portal): State<Portal>, visit: Visit) -> Answer {
    show(&CheckMailPage { shell: Shell::new(&visit, "Check your mail", "")?, sends_mail: portal.sends_mail() })
}

#[derive(Template)]
#[template(path = "portal/confirm.html")]
struct ConfirmPage<'a> {
    shell: Shell<'a>,
    needs_password: bool,
}

async fn confirm_form(portal: &Portal, visit: &Visit, (link, fault): (&str, Option<crate::portal::page::Fault>)) -> Answer {
    let needs_password = !portal.identity().is_browser_of_link(link, visit.waiting.as_ref(), &visit.whence).await?;
    let (status, text) = fault.map_or((axum::http::StatusCode::OK, None), |fault| (fault.status, Some(fault.text)));
    show_as(status, &ConfirmPage { shell: Shell::new(visit, "Confirm your address", "")?.with_fault(text), needs_password })
}

/// A button: programs that read mail follow links, and press nothing.
pub(super) async fn confirm_page(State(portal): State<Portal>, visit: Visit, Path(link): Path<String>) -> Answer {
    confirm_form(&portal, &visit, (&link, None)).await
}

/// Confirms an address.
pub(super) async fn confirm(State(portal): State<Portal>, visit: Visit, Path(link): Path<String>) -> Answer {
    let shown = (visit.waiting.as_ref(), visit.secret("password"));
    let confirmed = match portal.identity().confirm(&link, shown, &visit.whence).await {
        Ok(confirmed) => confirmed,
        Err(PlatformError::Credentials) => return Err(PortalError(PlatformError::Credentials)),
        Err(error) => return confirm_form(&portal, &visit, (&link, Some(PortalError(error).fault()?))).await,
    };
    portal.know().await?;
    Ok(redirect(if confirmed == Confirmed::SameBrowser { "/accounts" } else { "/log-in?said=confirmed" }))
}

#[derive(Template)]
#[template(path = "portal/log_in.html")]
struct LogInPage<'a> {
    shell: Shell<'a>,
    next: &'a str,
    origin: Option<&'a str>,
}

pub(super) fn log_in_form(portal: &Portal, visit: &Visit, fault: Option<crate::portal::page::Fault>) -> Answer {
    let (status, text) = fault.map_or((axum::http::StatusCode::OK, None), |fault| (fault.status, Some(fault.text)));
    let next = if visit.asked("next").is_empty() { visit.field("next") } else { visit.asked("next") };
    let origin = portal.identity().passkey_origin();
    show_as(status, &LogInPage { shell: Shell::new(visit, "Sign in", "log-in")?.with_fault(text), next, origin })
}

/// The form.
pub(super) async fn log_in_page(State(portal): State<Portal>, visit: Visit) -> Answer {
    if visit.visitor.is_some() {
        return Ok(redirect(own_path(visit.asked("next"))));
    }
    log_in_form(&portal, &visit, None)
}

/// Signs somebody in.
pub(super) async fn log_in(State(portal): State<Portal>, visit: Visit) -> Answer {
    match portal.identity().log_in(visit.field("email"), visit.secret("password"), &visit.whence).await {
        Ok(signed_in) => Ok(arrived(&portal, &signed_in, visit.field("next"))),
        Err(PlatformError::Credentials) => {
            let text = "The address or the password is wrong, or the address is still to be confirmed: look whether there is a mail.";
            let text = text.to_string();
            log_in_form(&portal, &visit, Some(crate::portal::page::Fault { status: axum::http::StatusCode::UNAUTHORIZED, text }))
        }
        Err(error) => log_in_form(&portal, &visit, Some(PortalError(error).fault()?)),
    }
}

#[derive(Template)]
#[template(path = "portal/code.html")]
struct CodePage<'a> {
    shell: Shell<'a>,
    next: &'a str,
}

/// The form of the second factor.
pub(super) async fn code_page(visit: Visit) -> Answer {
    if visit.waiting.as_ref().is_none_or(|visitor| visitor.session.stage != Stage::SecondFactor) {
        return Ok(redirect("/log-in"));
    }
    show(&CodePage { shell: Shell::new(&visit, "Second factor", "log-in")?, next: visit.asked("next") })
}

/// Signs somebody in who has the second factor, too.
pub(super) async fn code(State(portal): State<Portal>, visit: Visit) -> Answer {
    let waiting = visit.waiting.as_ref().filter(|visitor| visitor.session.stage == Stage::SecondFactor);
    let Some(waiting) = waiting else { return Ok(redirect("/log-in")) };
    match portal.identity().second_factor(waiting, visit.field("code"), &visit.whence).await {
        Ok(token) => Ok(with_cookie(&portal, redirect(own_path(visit.field("next"))), Some(&token))),
        Err(error) => {
            let fault = PortalError(error).fault()?;
            let text = if fault.status == axum::http::StatusCode::UNAUTHORIZED {
                "This is not the code of now, and no recovery code that is left.".to_string()
            } else {
                fault.text
            };
            let shell = Shell::new(&visit, "Second factor", "log-in")?.with_fault(Some(text));
            show_as(fault.status, &CodePage { shell, next: visit.field("next") })
        }
    }
}

#[derive(Template)]
#[template(path = "portal/forgot.html")]
struct ForgotPage<'a> {
    shell: Shell<'a>,
    sends_mail: bool,
}

/// The form.
pub(super) async fn forgot_page(State(portal): State<Portal>, visit: Visit) -> Answer {
    show(&ForgotPage { shell: Shell::new(&visit, "Set a new password", "log-in")?, sends_mail: portal.sends_mail() })
}

/// Sends a link.
pub(super) async fn forgot(State(portal): State<Portal>, visit: Visit) -> Answer {
    match portal.identity().forgot(visit.field("email"), &visit.whence).await {
        Ok(()) => Ok(redirect("/forgot?said=sent")),
        Err(error) => {
            let fault = PortalError(error).fault()?;
            let shell = Shell::new(&visit, "Set a new password", "log-in")?.with_fault(Some(fault.text));
            show_as(fault.status, &ForgotPage { shell, sends_mail: portal.sends_mail() })
        }
    }
}

#[derive(Template)]
#[template(path = "portal/reset.html")]
struct ResetPage<'a> {
    shell: Shell<'a>,
}

/// The form behind a link.
pub(super) async fn reset_page(State(portal): State<Portal>, visit: Visit, Path(link): Path<String>) -> Answer {
    if !portal.identity().is_reset_link(&link, portal.now()).await? {
        return Err(PortalError(PlatformError::Credentials));
    }
    show(&ResetPage { shell: Shell::new(&visit, "Set a new password", "log-in")? })
}

/// Sets a new password.
pub(super) async fn reset(State(portal): State<Portal>, visit: Visit, Path(link): Path<String>) -> Answer {
    match portal.identity().reset(&link, visit.secret("password"), &visit.whence).await {
        Ok(()) => Ok(with_cookie(&portal, redirect("/log-in?said=reset"), None)),
        Err(PlatformError::Credentials) => Err(PortalError(PlatformError::Credentials)),
        Err(error) => {
            let fault = PortalError(error).fault()?;
            let shell = Shell::new(&visit, "Set a new password", "log-in")?.with_fault(Some(fault.text));
            show_as(fault.status, &ResetPage { shell })
        }
    }
}

/// Ends this session.
pub(super) async fn log_out(State(portal): State<Portal>, visit: Visit) -> Answer {
    let visitor = visit.person()?;
    portal.platform().store().end_session((visitor.person.id, &visitor.session.hash), visit.by()).await?;
    Ok(with_cookie(&portal, redirect("/log-in?said=signed-out"), None))
}

/// Ends all of somebody's sessions.
pub(super) async fn log_out_everywhere(State(portal): State<Portal>, visit: Visit) -> Answer {
    portal.platform().store().end_all_sessions(visit.person()?.person.id, visit.by()).await?;
    Ok(with_cookie(&portal, redirect("/log-in?said=signed-out"), None))
}
