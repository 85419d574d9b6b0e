//! Every route of the portal and who may use it. A route is added with its [`Access`] or not at all, and whatever is behind it runs
//! after the guard has found out who asks, that the request comes from our own pages, and that the policies permit it. Forms are read
//! here too: bounded, once, and from nobody else's page.

use axum::Router;
use axum::extract::{DefaultBodyLimit, Form, FromRequest, FromRequestParts, RawPathParams, Request, State};
use axum::handler::Handler;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use bitnet_server::{PeerAddress, request_id};

use crate::audit::By;
use crate::directory::AccountRow;
use crate::error::PlatformError;
use crate::identity::{Stage, Submission, Visitor, Whence};
use crate::ids::AccountId;
use crate::limits::{FORM_BYTES_MAX, N_FORM_FIELDS_MAX};
use crate::policy::{Action, Principal, Role, Target};
use crate::portal::Portal;
use crate::portal::page::{Failed, PortalError, as_parameter, redirect};

/// Who may use a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Whoever comes.
    Anyone,
    /// Whoever has signed in.
    Person,
    /// Members of the account in the URL whose role permits it.
    Member(Action),
    /// Those who run the installation.
    Operator,
}

/// A route, for the table of who may use which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteRow {
    /// GET or POST.
    pub method: &'static str,
    /// With its parameters in braces.
    pub path: &'static str,
    /// Who may use it.
    pub access: Access,
}

/// Routes as they are added.
pub(super) struct Routes {
    portal: Portal,
    router: Router<Portal>,
    rows: Vec<RouteRow>,
}

impl Routes {
    pub(super) fn new(portal: Portal) -> Self {
        Self { portal, router: Router::new(), rows: Vec::new() }
    }

    pub(super) fn get<H: Handler<T, Portal>, T: 'static>(self, path: &'static str, access: Access, handler: H) -> Self {
        self.add(RouteRow { method: "GET", path, access }, get(handler))
    }

    pub(super) fn post<H: Handler<T, Portal>, T: 'static>(self, path: &'static str, access: Access, handler: H) -> Self {
        self.add(RouteRow { method: "POST", path, access }, post(handler))
    }

    fn add(mut self, row: RouteRow, handler: MethodRouter<Portal>) -> Self {
        let guarded = handler.route_layer(from_fn_with_state((self.portal.clone(), row.access), guard));
        self.router = self.router.route(row.path, guarded.route_layer(DefaultBodyLimit::max(FORM_BYTES_MAX)));
        self.rows.push(row);
        self
    }

    pub(super) fn finish(self) -> (Router<Portal>, Vec<RouteRow>) {
        (self.router, self.rows)
    }
}

/// A member at work.
#[derive(Debug, Clone)]
pub(super) struct Acting {
    pub(super) account: AccountRow,
    pub(super) role: Role,
    permitted: Vec<Action>,
}

impl Acting {
    pub(super) fn may(&self, action: Action) -> bool {
        self.permitted.contains(&action)
    }
}

/// A request, with all that is known of it.
#[derive(Debug, Clone)]
pub(super) struct Visit {
    /// Who has signed in.
    pub(super) visitor: Option<Visitor>,
    /// Whoever has a session, be it that a code or the confirmation of an address is still to come.
    pub(super) waiting: Option<Visitor>,
    pub(super) acting: Option<Acting>,
    pub(super) whence: Whence,
    pub(super) path: String,
    fields: Vec<(String, String)>,
    query: Vec<(String, String)>,
    pub(super) csrf: String,
}

fn find<'a>(pairs: &'a [(String, String)], name: &str) -> &'a str {
    pairs.iter().find(|(other, _)| other == name).map_or("", |(_, value)| value.as_str())
}

impl Visit {
    /// A field of the form, without space around it; nothing if it is not there.
    pub(super) fn field(&self, name: &str) -> &str {
        find(&self.fields, name).trim()
    }

    /// A field as it was typed: spaces belong to passwords.
    pub(super) fn secret(&self, name: &str) -> String {
        find(&self.fields, name).to_string()
    }

    /// All values of a field that may be there several times.
    pub(super) fn all(&self, name: &str) -> Vec<String> {
        self.fields.iter().filter(|(other, value)| other == name && !value.is_empty()).map(|(_, value)| value.clone()).collect()
    }

    /// A parameter of the URL.
    pub(super) fn asked(&self, name: &str) -> &str {
        find(&self.query, name)
    }

    pub(super) fn by(&self) -> &By {
        &self.whence.by
    }

    /// Who has signed in; the guard has let in nobody else.
    pub(super) fn person(&self) -> Result<&Visitor, PortalError> {
        self.visitor.as_ref().ok_or(PortalError(PlatformError::Forbidden))
    }

    /// The account at work; the guard has let in nobody else.
    pub(super) fn acting(&self) -> Result<&Acting, PortalError> {
        self.acting.as_ref().ok_or(PortalError(PlatformError::Forbidden))
    }

    pub(super) fn account(&self) -> Result<AccountId, PortalError> {
        Ok(self.acting()?.account.id)
    }
}

impl FromRequestParts<Portal> for Visit {
    type Rejection = PortalError;

    async fn from_request_parts(parts: &mut Parts, _: &Portal) -> Result<Self, PortalError> {
        parts.extensions.get::<Self>().cloned().ok_or(PortalError(PlatformError::Forbidden))
    }
}

const CONTENT_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// What a part of a page becomes when its session has ended.
const SIGNED_OUT: &str = r#"<p class="note">You are not signed in any more. <a href="/log-in">Sign in</a></p>"#;

async fn guard(State((portal, access)): State<(Portal, Access)>, params: RawPathParams, request: Request, next: Next) -> Response {
    let account = params.iter().find(|(name, _)| *name == "account").map(|(_, value)| value.to_string());
    let is_part = request.method() == Method::GET && request.headers().contains_key("hx-request");
    let (parts, body) = request.into_parts();
    let mut visit = match arrive(&portal, &parts).await {
        Ok(visit) => visit,
        Err(error) => return dressed(&portal, access, error.into_response()),
    };
    let request = Request::from_parts(parts, body);
    let response = match pass(&portal, access, (&mut visit, account.as_deref()), (request, next)).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    };
    let failed = response.extensions().get::<Failed>().cloned();
    let response = match failed {
        // What a script puts into a page is no page: it stays as it is, and is asked for again.
        Some(_) if is_part => StatusCode::NO_CONTENT.into_response(),
        Some(failed) => super::page::failure(&visit, &failed),
        None if is_part && response.status().is_redirection() => Html(SIGNED_OUT).into_response(),
        None => response,
    };
    dressed(&portal, access, response)
}

/// Who asks, from where.
async fn arrive(portal: &Portal, parts: &Parts) -> Result<Visit, PortalError> {
    let now = portal.now();
    let peer = parts.extensions.get::<PeerAddress>().map(|peer| peer.0.ip().to_canonical());
    let text = |name: HeaderName| parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_string();
    let waiting = match cookie(&parts.headers, portal.cookie_name()) {
        Some(cookie) => portal.identity().visitor(cookie, now).await?,
        None => None,
    };
    let visitor = waiting.clone().filter(|visitor| visitor.session.stage == Stage::Open && visitor.person.verified_at.is_some());
    let by = By {
        actor: visitor.as_ref().map_or_else(|| "visitor".into(), |visitor| visitor.person.id.to_string()),
        address: peer.map_or_else(String::new, |peer| peer.to_string()),
        request_id: request_id(&parts.extensions).map_or_else(String::new, |id| id.to_string()),
        at: now,
    };
    let is_direct = ["x-forwarded-for", "forwarded", "x-real-ip"].into_iter().all(|name| !parts.headers.contains_key(name));
    let host = text(header::HOST);
    let is_local = portal.is_private() && peer.is_some_and(|peer| peer.is_loopback()) && is_direct && is_loopback_name(&host);
    let query = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(&parts.uri).map(|query| query.0).unwrap_or_default();
    let csrf = visitor.as_ref().map_or_else(String::new, |visitor| portal.csrf_of(visitor));
    let whence = Whence { by, agent: text(header::USER_AGENT), is_local };
    Ok(Visit { visitor, waiting, acting: None, whence, path: parts.uri.path().to_string(), fields: Vec::new(), query, csrf })
}

/// Whether a request calls the server by a name of this machine: a name of somebody else's that leads here does not count.
fn is_loopback_name(host: &str) -> bool {
    let name = host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit())).map_or(host, |(name, _)| name);
    name == "localhost" || name.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let all = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    all.flat_map(|value| value.split(';')).find_map(|pair| pair.trim().strip_prefix(name)?.strip_prefix('='))
}

async fn pass(
    portal: &Portal,
    access: Access,
    (visit, account): (&mut Visit, Option<&str>),
    (request, next): (Request, Next),
) -> Result<Response, PortalError> {
    let is_post = request.method() == Method::POST;
    if is_post && !is_from_our_pages(portal, request.headers()) {
        return Err(PortalError::cross_site());
    }
    if access != Access::Anyone && visit.visitor.is_none() {
        let to = if is_post { "/log-in".to_string() } else { format!("/log-in?next={}", as_parameter(&visit.path)) };
        return Ok(redirect(&to));
    }
    permit(portal, access, visit, account).await?;
    if !is_post {
        return Ok(proceed(visit, request, next).await);
    }
    let is_script = header_is(request.headers(), "x-csrf-token", &visit.csrf);
    let request = read_form(portal, visit, request).await?;
    let needs_proof = access != Access::Anyone && !is_script;
    if !needs_proof {
        return Ok(proceed(visit, request, next).await);
    }
    if visit.csrf.is_empty() || !is_same(visit.field("csrf"), &visit.csrf) || visit.field("once").is_empty() {
        return Err(PortalError::cross_site());
    }
    once(portal, visit, (request, next)).await
}

async fn proceed(visit: &Visit, mut request: Request, next: Next) -> Response {
    request.extensions_mut().insert(visit.clone());
    next.run(request).await
}

/// Runs what is behind a form the first time that it is sent; then it leads where it led. What has begun is done to its end, whether
/// or not somebody still waits for it.
async fn once(portal: &Portal, visit: &Visit, (request, next): (Request, Next)) -> Result<Response, PortalError> {
    let hash = portal.identity().hash_of("form", &format!("{} {}", visit.csrf, visit.field("once")));
    match portal.platform().store().submit(&hash, visit.by().at).await? {
        Submission::First => {}
        Submission::Again(Some(location)) => return Ok(redirect(&saying(&location, "again"))),
        Submission::Again(None) => return Ok(redirect(&saying(&page_of(portal, &visit.path), "under-way"))),
    }
    let (portal, visit) = (portal.clone(), visit.clone());
    let doing = tokio::spawn(async move {
        let response = proceed(&visit, request, next).await;
        let led = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok()).map(str::to_string);
        let is_done = response.status().is_success() || response.status().is_redirection();
        let location = is_done.then(|| led.unwrap_or_else(|| page_of(&portal, &visit.path)));
        if let Err(error) = portal.platform().store().submitted(&hash, location).await {
            // What was done is shown all the same: a key is shown once.
            tracing::error!(%error, "where a form led could not be kept");
        }
        response
    });
    doing.await.map_err(|error| PortalError(PlatformError::Corrupt { what: "a form", reason: error.to_string() }))
}

fn saying(location: &str, word: &str) -> String {
    let separator = if location.contains('?') { '&' } else { '?' };
    format!("{location}{separator}said={word}")
}

/// The page that a path belongs to: itself or, where it takes forms only, the nearest one above it.
fn page_of(portal: &Portal, path: &str) -> String {
    let rows = portal.rows();
    let is_page = |path: &str| rows.iter().any(|row| row.method == "GET" && is_of_pattern(path, row.path));
    let mut path = path;
    while !path.is_empty() && !is_page(path) {
        path = path.rsplit_once('/').map_or("", |(above, _)| above);
    }
    if path.is_empty() { "/".into() } else { path.into() }
}

/// Whether a path is of a route, whose parameters stand in braces.
fn is_of_pattern(path: &str, pattern: &str) -> bool {
    let is_same = |(part, of_pattern): (&str, &str)| of_pattern.starts_with('{') || part == of_pattern;
    path.split('/').count() == pattern.split('/').count() && path.split('/').zip(pattern.split('/')).all(is_same)
}

async fn read_form(portal: &Portal, visit: &mut Visit, request: Request) -> Result<Request, PortalError> {
    let (parts, body) = request.into_parts();
    let reading = Form::<Vec<(String, String)>>::from_request(Request::from_parts(parts.clone(), body), &());
    let read = tokio::time::timeout(portal.body_timeout(), reading).await.map_err(|_| PortalError::unreadable())?;
    let Form(fields) = match read {
        Ok(form) => form,
        Err(rejection) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => return Err(PortalError::too_large()),
        Err(_) => return Err(PortalError::unreadable()),
    };
    if fields.len() > N_FORM_FIELDS_MAX {
        return Err(PortalError::too_large());
    }
    visit.fields = fields;
    Ok(Request::from_parts(parts, axum::body::Body::empty()))
}

/// Whether the policies permit it; who is no member does not learn that the account exists.
async fn permit(portal: &Portal, access: Access, visit: &mut Visit, account: Option<&str>) -> Result<(), PortalError> {
    let Some(visitor) = &visit.visitor else { return Ok(()) };
    let (person, is_operator) = (visitor.person.id, visitor.person.operator_since.is_some());
    let policy = portal.policy();
    match access {
        Access::Anyone | Access::Person => Ok(()),
        Access::Operator => {
            let principal = Principal { person, membership: None, is_operator };
            let is_permitted = policy.permits(&principal, Action::Operate, Target::Installation);
            if is_permitted { Ok(()) } else { Err(PortalError(PlatformError::Forbidden)) }
        }
        Access::Member(action) => {
            let unknown = || PortalError(PlatformError::NotFound { what: "account" });
            let id: AccountId = account.and_then(|text| text.parse().ok()).ok_or_else(unknown)?;
            let role = portal.platform().store().role_in(id, person).await?.ok_or_else(unknown)?;
            let row = portal.platform().store().account(id, visit.whence.by.at).await?;
            let principal = Principal { person, membership: Some((id, role)), is_operator };
            let target = Target::Account(id, row.status);
            let permitted = policy.permitted(&principal, &Action::ALL, target);
            if !permitted.contains(&action) {
                return Err(PortalError(PlatformError::Forbidden));
            }
            visit.acting = Some(Acting { account: row, role, permitted });
            Ok(())
        }
    }
}

/// Whether a browser sends this from one of our pages. A program that is no browser says nothing, and has no cookies to be misused.
fn is_from_our_pages(portal: &Portal, headers: &HeaderMap) -> bool {
    let text = |name: HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or("unreadable"));
    if let Some(site) = text(HeaderName::from_static("sec-fetch-site")) {
        return site == "same-origin" || site == "none";
    }
    let Some(origin) = text(header::ORIGIN) else { return true };
    let host = origin.split_once("://").map(|(_, host)| host);
    origin == portal.public_origin() || (host.is_some() && host == text(header::HOST))
}

fn header_is(headers: &HeaderMap, name: &'static str, expected: &str) -> bool {
    let got = headers.get(name).and_then(|value| value.to_str().ok());
    !expected.is_empty() && got.is_some_and(|got| is_same(got, expected))
}

/// Compares by hash, whose comparison takes the same time whatever differs.
fn is_same(got: &str, expected: &str) -> bool {
    blake3::hash(got.as_bytes()) == blake3::hash(expected.as_bytes())
}

/// What every answer of the portal carries.
fn dressed(portal: &Portal, access: Access, mut response: Response) -> Response {
    let headers = response.headers_mut();
    let mut set = |name: HeaderName, value: &'static str| {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    };
    set(header::CONTENT_SECURITY_POLICY, CONTENT_POLICY);
    set(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(header::REFERRER_POLICY, "same-origin");
    set(HeaderName::from_static("cross-origin-opener-policy"), "same-origin");
    set(HeaderName::from_static("permissions-policy"), "camera=(), geolocation=(), microphone=()");
    set(header::CACHE_CONTROL, if access == Access::Anyone { "no-cache" } else { "no-store" });
    if portal.is_secure() {
        set(header::STRICT_TRANSPORT_SECURITY, "max-age=31536000");
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_is_itself_only_by_its_own_names() {
        for own in ["localhost", "localhost:8080", "127.0.0.1:8080", "127.0.0.1", "[::1]:8080", "[::1]"] {
            assert!(is_loopback_name(own), "{own}");
        }
        for foreign in ["", "evil.example", "localhost.evil.example:80", "10.0.0.1:8080", "127.0.0.1.evil.example"] {
            assert!(!is_loopback_name(foreign), "{foreign}");
        }
    }

    #[test]
    fn path_is_of_a_route_whatever_its_parameters_are() {
        assert!(is_of_pattern("/accounts/acct_1/keys", "/accounts/{account}/keys"));
        for (path, pattern) in [("/accounts/acct_1/keys/key_1", "/accounts/{account}/keys"), ("/accounts/acct_1", "/accounts/other")] {
            assert!(!is_of_pattern(path, pattern), "{path} {pattern}");
        }
    }

    #[test]
    fn cookie_is_found_by_its_whole_name() {
        let mut headers = HeaderMap::new();
        headers.append(header::COOKIE, HeaderValue::from_static("xbitnet=1; bitnet=two; other=3"));
        assert_eq!((cookie(&headers, "bitnet"), cookie(&headers, "bit")), (Some("two"), None));
    }
}
