//! What all pages share: their frame, and what a failure looks like. Templates are checked when the program is built and escape what
//! they show; what a page may load is its own server's and nothing else.

use std::borrow::Borrow;
use std::fmt::Write as _;

use askama::Template;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};

use crate::error::PlatformError;
use crate::identity::Token;
use crate::money::Micros;
use crate::policy::Action;
use crate::portal::assets;
use crate::portal::guard::Visit;
use crate::time::Timestamp;

/// The frame around a page.
pub(super) struct Shell<'a> {
    pub(super) visit: &'a Visit,
    pub(super) title: String,
    /// Which entry of the menu this is.
    pub(super) here: &'static str,
    /// What was wrong with a form.
    pub(super) fault: Option<String>,
    once: String,
}

impl<'a> Shell<'a> {
    pub(super) fn new(visit: &'a Visit, title: impl Into<String>, here: &'static str) -> Result<Self, PortalError> {
        // A form that is shown can be sent once.
        Ok(Self { visit, title: title.into(), here, fault: None, once: Token::random()?.reveal()[..32].to_string() })
    }

    pub(super) fn with_fault(mut self, fault: Option<String>) -> Self {
        self.fault = fault;
        self
    }

    /// What every form holds: that it is from this page, and once.
    pub(super) fn form(&self) -> String {
        let mut fields = String::new();
        let _ = write!(fields, r#"<input type="hidden" name="csrf" value="{}">"#, self.visit.csrf);
        let _ = write!(fields, r#"<input type="hidden" name="once" value="{}">"#, self.once);
        fields
    }

    /// What was typed before, when a form comes back.
    pub(super) fn value(&self, name: &str) -> &str {
        self.visit.field(name)
    }

    /// This page, to come back to.
    pub(super) fn path_as_parameter(&self) -> String {
        as_parameter(&self.visit.path)
    }

    pub(super) fn may(&self, action: &str) -> bool {
        let action = Action::ALL.into_iter().find(|known| known.name() == action);
        self.visit.acting.as_ref().zip(action).is_some_and(|(acting, action)| acting.may(action))
    }

    pub(super) fn asset(&self, name: &str) -> &'static str {
        assets::url(name)
    }

    /// What has just been done, which the page before says by a word in the URL.
    pub(super) fn said(&self) -> Option<&'static str> {
        let sentence = match self.visit.asked("said") {
            "again" => "This form was sent already; it was done once.",
            "under-way" => "This form was sent already and is being done: look again in a moment.",
            "saved" => "Saved.",
            "signed-out" => "You have signed out.",
            "reset" => "Your new password is set. Sign in with it.",
            "confirmed" => "Your address is confirmed. Sign in to go on.",
            "password" => "Your new password is set, and you are signed out everywhere else.",
            "passkey" => "The passkey is added: it opens your account from now on.",
            "passkey-gone" => "The passkey is removed. Delete it on the device, too.",
            "factor-off" => "The second factor is off.",
            "revoked" => "The key is revoked. It stops working within a second.",
            "invited" => "The invitation is on its way.",
            "uninvited" => "The invitation is taken back.",
            "removed" => "They are no longer a member.",
            "role" => "The role is changed.",
            "joined" => "You are a member now.",
            "plan" => "The plan is changed.",
            "card" => "The card is stored, and open invoices are charged to it.",
            "paid" => "Thank you: the invoice is paid.",
            "carried" => "It is too little to be charged by itself: it is on the next invoice.",
            "noted" => "It is noted as paid.",
            "credited" => "It is taken off, by a credit note.",
            "refunded" => "The refund is on its way.",
            "paying" => "The payment is under way: look again in a moment.",
            "credit" => "The credit is given; it counts within a second.",
            "suspended" => "The account is suspended.",
            "resumed" => "The account works again.",
            "sent" => "If that address has signed up, a mail is on its way.",
            _ => return None,
        };
        Some(sentence)
    }
}

/// Renders a page.
pub(super) fn show(page: &impl Template) -> Result<Response, PortalError> {
    show_as(StatusCode::OK, page)
}

/// Renders a page with a status, such as that of a form that comes back.
pub(super) fn show_as(status: StatusCode, page: &impl Template) -> Result<Response, PortalError> {
    let html = page.render().map_err(|error| PlatformError::Corrupt { what: "a page", reason: error.to_string() })?;
    Ok((status, Html(html)).into_response())
}

/// Leads elsewhere, by GET.
pub(super) fn redirect(to: &str) -> Response {
    let to = HeaderValue::from_str(to).unwrap_or(HeaderValue::from_static("/"));
    (StatusCode::SEE_OTHER, [(header::LOCATION, to)]).into_response()
}

/// A path of our own to go on with; anything else leads home.
pub(super) fn own_path(text: &str) -> &str {
    // Browsers drop tabs and line ends from an address, and take a backslash for a slash: none of them is in a path of ours.
    let is_plain = text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\');
    let is_own = is_plain && text.starts_with('/') && !text.starts_with("//");
    if is_own { text } else { "/accounts" }
}

/// A path as the value of a parameter in a URL.
pub(super) fn as_parameter(path: &str) -> String {
    let mut text = String::with_capacity(path.len());
    for byte in path.bytes() {
        let is_kept = byte.is_ascii_alphanumeric() || b"/-_.~".contains(&byte);
        let _ = if is_kept { write!(text, "{}", char::from(byte)) } else { write!(text, "%{byte:02X}") };
    }
    text
}

/// An error that becomes a page.
#[derive(Debug)]
pub(super) struct PortalError(pub(super) PlatformError);

impl From<PlatformError> for PortalError {
    fn from(error: PlatformError) -> Self {
        Self(error)
    }
}

const CROSS_SITE: &str = "csrf";
const TOO_LARGE: &str = "size";
const UNREADABLE: &str = "form";

impl PortalError {
    fn form(field: &'static str, reason: &str) -> Self {
        Self(PlatformError::Invalid { field, reason: reason.into() })
    }

    /// Not from one of our pages.
    pub(super) fn cross_site() -> Self {
        Self::form(CROSS_SITE, "this form is not from this site, or it is too old: go back, load the page anew, and send it again")
    }

    pub(super) fn too_large() -> Self {
        Self::form(TOO_LARGE, "this form is larger than any of ours")
    }

    pub(super) fn unreadable() -> Self {
        Self::form(UNREADABLE, "this is no form, or it came too slowly")
    }

    /// What whoever sent a form can mend, as a sentence for the page that shows it again; anything else stays an error.
    pub(super) fn fault(self) -> Result<Fault, Self> {
        let status = self.status();
        match &self.0 {
            PlatformError::Invalid { field, reason } if ![CROSS_SITE, TOO_LARGE, UNREADABLE].contains(field) => {
                Ok(Fault { status, text: sentence(reason) })
            }
            PlatformError::PlanLimit { what, limit } => {
                let text = format!("Your plan allows {}. A larger plan allows more.", counted(*limit, what.trim_end_matches('s')));
                Ok(Fault { status, text })
            }
            PlatformError::Credentials
            | PlatformError::Throttled { .. }
            | PlatformError::Unconfirmed
            | PlatformError::Mail { .. }
            | PlatformError::ReadOnly { .. } => Ok(Fault { status, text: sentence(&self.0.to_string()) }),
            _ => Err(self),
        }
    }

    fn status(&self) -> StatusCode {
        match &self.0 {
            PlatformError::Invalid { field: CROSS_SITE, .. } | PlatformError::Forbidden | PlatformError::ReadOnly { .. } => {
                StatusCode::FORBIDDEN
            }
            PlatformError::Invalid { field: TOO_LARGE, .. } => StatusCode::PAYLOAD_TOO_LARGE,
            PlatformError::Invalid { .. } | PlatformError::PlanLimit { .. } | PlatformError::MalformedId { .. } => {
                StatusCode::UNPROCESSABLE_ENTITY
            }
            PlatformError::Credentials | PlatformError::Unconfirmed => StatusCode::UNAUTHORIZED,
            PlatformError::Throttled { .. } => StatusCode::TOO_MANY_REQUESTS,
            PlatformError::NotFound { .. } => StatusCode::NOT_FOUND,
            error if error.is_transient() => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// An id in a URL: what is none names nothing.
pub(super) fn id_of<T: std::str::FromStr>(text: &str) -> Result<T, PortalError> {
    text.parse().map_err(|_| PortalError(PlatformError::NotFound { what: "page" }))
}

/// What was wrong with a form.
pub(super) struct Fault {
    pub(super) status: StatusCode,
    pub(super) text: String,
}

/// With a capital and a full stop.
fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|c| c.to_uppercase().to_string()).unwrap_or_default();
    format!("{first}{}.", letters.as_str().trim_end_matches('.'))
}

/// A failure, for the guard that knows whose page it becomes.
#[derive(Debug, Clone)]
pub(super) struct Failed {
    status: StatusCode,
    title: &'static str,
    text: String,
    retry_after_s: Option<u64>,
}

impl IntoResponse for PortalError {
    fn into_response(self) -> Response {
        let status = self.status();
        let (title, text) = match status {
            StatusCode::FORBIDDEN | StatusCode::PAYLOAD_TOO_LARGE | StatusCode::UNPROCESSABLE_ENTITY => match &self.0 {
                PlatformError::Invalid { reason, .. } => ("That did not work", sentence(reason)),
                PlatformError::Forbidden => {
                    ("You may not see this", "Your role does not permit it. An owner or admin of the account can change that.".into())
                }
                other => ("That did not work", sentence(&other.to_string())),
            },
            StatusCode::UNAUTHORIZED => ("This link is not good any more", "It was used, or it is too old. Ask for a new one.".into()),
            StatusCode::TOO_MANY_REQUESTS => ("Too many attempts", sentence(&self.0.to_string())),
            StatusCode::NOT_FOUND => ("There is nothing here", "The page does not exist, or it is not yours to see.".into()),
            StatusCode::SERVICE_UNAVAILABLE => {
                tracing::warn!(error = %self.0, "the database is away");
                ("The database is away", "Nothing is lost. This usually passes by itself: try again in a moment.".into())
            }
            _ => {
                tracing::error!(error = %self.0, "a page failed");
                ("Something broke", "It is our fault, and it is in the log. Try again, and tell the operator if it stays.".into())
            }
        };
        let retry_after_s = match (&self.0, status) {
            (PlatformError::Throttled { retry_after_s }, _) => Some(*retry_after_s),
            (_, StatusCode::SERVICE_UNAVAILABLE) => Some(2),
            _ => None,
        };
        let mut response = (status, Html(format!("<!DOCTYPE html><title>{title}</title><h1>{title}</h1>"))).into_response();
        response.extensions_mut().insert(Failed { status, title, text, retry_after_s });
        response
    }
}

#[derive(Template)]
#[template(path = "portal/failure.html")]
struct FailurePage<'a> {
    shell: Shell<'a>,
    text: &'a str,
}

/// The page of a failure.
pub(super) fn failure(visit: &Visit, failed: &Failed) -> Response {
    let page = Shell::new(visit, failed.title, "").and_then(|shell| show_as(failed.status, &FailurePage { shell, text: &failed.text }));
    let mut response = page.unwrap_or_else(IntoResponse::into_response);
    if let Some(seconds) = failed.retry_after_s {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// An amount as people write it: two digits behind the point, or as many as it takes.
pub(crate) fn dollars(amount: impl Borrow<Micros>) -> String {
    let amount = *amount.borrow();
    let sign = if amount.0 < 0 { "−" } else { "" };
    let whole = amount.0.unsigned_abs();
    let (units, micros) = (whole / 1_000_000, whole % 1_000_000);
    let digits = format!("{micros:06}");
    let kept = digits.trim_end_matches('0').len().max(2);
    format!("{sign}${}.{}", grouped(units), &digits[..kept])
}

/// A number with its thousands apart.
pub(super) fn grouped(number: impl Borrow<u64>) -> String {
    let digits = number.borrow().to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// So many of something, whose name has an `s` for more than one.
pub(super) fn counted(number: impl std::fmt::Display, one: &str) -> String {
    // Of whatever type counts have, and of references to them, which templates pass.
    let number = number.to_string().parse::<u64>().unwrap_or(0);
    format!("{} {one}{}", grouped(number), if number == 1 { "" } else { "s" })
}

/// A time as people read it: `2026-01-31 23:59 UTC`.
pub(super) fn moment(time: impl Borrow<Timestamp>) -> String {
    let text = time.borrow().to_rfc3339();
    format!("{} {} UTC", &text[..10], &text[11..16])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_and_numbers_are_written_for_people() {
        let shown: Vec<String> = [0, 1, 29, 1_500_000, -2_345_670_000, 99_000_000].map(|micros| dollars(Micros(micros))).to_vec();
        assert_eq!(shown, ["$0.00", "$0.000001", "$0.000029", "$1.50", "−$2,345.67", "$99.00"]);
        assert_eq!([0_u64, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([counted(0_u64, "key"), counted(1_u32, "key"), counted(1234_usize, "key")], ["0 keys", "1 key", "1,234 keys"]);
        assert_eq!(moment(Timestamp(0)), "1970-01-01 00:00 UTC");
    }

    #[test]
    fn path_to_go_on_with_is_our_own() {
        assert_eq!(own_path("/accounts/acct_1/keys"), "/accounts/acct_1/keys");
        for foreign in [
            "",
            "//evil.example",
            "https://evil.example",
            "/\\evil.example",
            "/\t/evil.example",
            "/\n/evil.example",
            "/a b",
            "/a\r\nset-cookie: b",
        ] {
            assert_eq!(own_path(foreign), "/accounts", "{foreign}");
        }
        assert_eq!(as_parameter("/a/b?c=1&d=%2F#e"), "/a/b%3Fc%3D1%26d%3D%252F%23e");
    }
}
