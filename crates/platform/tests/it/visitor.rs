//! Somebody with a browser, for tests of the portal: keeps cookies, follows what pages say, sends forms as they are.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode, header};
use bitnet_engine::SimulatedPace;
use bitnet_platform::identity::mail::{Mail, MailRoute};
use bitnet_platform::portal::{CardForm, Portal, PortalConfig, Reach};
use bitnet_platform::{InstallationSecret, Platform};
use http_body_util::BodyExt;
use tower::ServiceExt;

use super::served::{Answer, Served, answer};

/// Mails of all tests; each looks for its own addresses.
static MAILS: Mutex<Vec<Mail>> = Mutex::new(Vec::new());

fn keep(mail: &Mail) {
    MAILS.lock().unwrap_or_else(PoisonError::into_inner).push(mail.clone());
}

/// A server with a portal.
pub(crate) struct Site {
    pub(crate) served: Served,
    pub(crate) portal: Portal,
    router: Router,
    sending: tokio::task::JoinHandle<()>,
    /// Mails that are older are of another site.
    n_older_mails: usize,
}

impl Site {
    /// On a database that may be empty, reachable as told. Runs inside a runtime.
    pub(crate) async fn start(url: &str, reach: Reach) -> Self {
        Self::start_with(url, reach, (|platform| platform, None)).await
    }

    /// The same, with a platform set up as a test wants it, and a form for cards.
    pub(crate) async fn start_with(
        url: &str,
        reach: Reach,
        (set_up, cards): (impl FnOnce(Platform) -> Platform, Option<CardForm>),
    ) -> Self {
        let served = Served::start_with(url, SimulatedPace::default(), set_up).await;
        let config = PortalConfig { public_url: "http://127.0.0.1:8080".into(), reach, mail: MailRoute::Terminal, show_mail: keep, cards };
        let secret = InstallationSecret::new([5; 32]);
        let (portal, post) = Portal::new(served.platform.clone(), served.app.clone(), &secret, config).expect("a portal");
        let router = bitnet_server::router_with(served.app.clone(), served.platform.routes().merge(portal.routes()));
        Self {
            served,
            portal,
            router,
            sending: tokio::spawn(post.run()),
            n_older_mails: MAILS.lock().unwrap_or_else(PoisonError::into_inner).len(),
        }
    }

    pub(crate) async fn end(self) {
        self.sending.abort();
        self.served.end().await;
    }

    /// Sends a program's request.
    pub(crate) async fn send(&self, request: Request<Body>) -> Answer {
        answer(&self.router, request).await
    }

    /// A browser without any cookie, on this machine.
    pub(crate) fn visitor(&self) -> Visitor {
        Visitor { router: self.router.clone(), cookie: Arc::default(), address: "127.0.0.1:4000".parse().expect("an address") }
    }

    /// What the link of the terminal proves.
    pub(crate) fn first(&self) -> String {
        self.portal.first_url().split_once("?first=").map_or_else(String::new, |(_, first)| first.to_string())
    }

    fn mails_to(&self, email: &str) -> Vec<Mail> {
        let mails = MAILS.lock().unwrap_or_else(PoisonError::into_inner);
        mails[self.n_older_mails..].iter().filter(|mail| mail.to == email).cloned().collect()
    }

    /// The mail of that number to an address, counted from 1, once it is there.
    pub(crate) async fn mail_to(&self, email: &str, number: usize) -> Mail {
        loop {
            if let Some(mail) = self.mails_to(email).into_iter().nth(number - 1) {
                return mail;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Somebody who has signed up and confirmed the address.
    pub(crate) async fn person(&self, email: &str) -> Visitor {
        let visitor = self.visitor();
        let fields = [("name", email), ("email", email), ("password", PASSWORD), ("first", &self.first())];
        let page = visitor.send_form("/sign-up", &fields).await;
        assert_eq!(page.status, StatusCode::SEE_OTHER, "{}", page.body);
        if page.location() == "/check-mail" {
            let link = link_in(&self.mail_to(email, 1).await, "/confirm/");
            let confirmed = visitor.send_form(&link, &[]).await;
            assert_eq!(confirmed.location(), "/accounts", "{}", confirmed.body);
        }
        visitor
    }
}

/// What all who are made here have.
pub(crate) const PASSWORD: &str = "four words are long";

/// The path of the link in a mail.
pub(crate) fn link_in(mail: &Mail, path: &str) -> String {
    let at = mail.text.find(path).unwrap_or_else(|| panic!("no {path} in {}", mail.text));
    mail.text[at..].split_whitespace().next().expect("a link").to_string()
}

/// See the module.
#[derive(Clone)]
pub(crate) struct Visitor {
    router: Router,
    cookie: Arc<Mutex<String>>,
    address: SocketAddr,
}

/// A page that came back.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Page {
    /// Where it leads.
    pub(crate) fn location(&self) -> &str {
        self.headers.get(header::LOCATION).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The value of the first hidden field of that name.
    pub(crate) fn hidden(&self, name: &str) -> String {
        let pattern = format!(r#"name="{name}" value=""#);
        let at = self.body.find(&pattern).map(|at| at + pattern.len());
        at.map(|at| self.body[at..].chars().take_while(|c| *c != '"').collect()).unwrap_or_default()
    }
}

fn encoded(text: &str) -> String {
    text.bytes().map(|byte| if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

impl Visitor {
    /// Sends a request with the cookie, and keeps the one that comes back.
    pub(crate) async fn send(&self, mut request: Request<Body>) -> Page {
        request.extensions_mut().insert(bitnet_server::PeerAddress(self.address));
        let cookie = self.cookie.lock().expect("a cookie").clone();
        if !cookie.is_empty() {
            request.headers_mut().insert(header::COOKIE, cookie.parse().expect("a cookie"));
        }
        request.headers_mut().entry(header::HOST).or_insert(header::HeaderValue::from_static("127.0.0.1:8080"));
        let response = self.router.clone().oneshot(request).await.expect("infallible");
        let (parts, body) = response.into_parts();
        for cookie in parts.headers.get_all(header::SET_COOKIE) {
            let pair = cookie.to_str().expect("text").split(';').next().unwrap_or_default();
            *self.cookie.lock().expect("a cookie") = pair.to_string();
        }
        let body = body.collect().await.expect("a body").to_bytes();
        Page { status: parts.status, headers: parts.headers, body: String::from_utf8_lossy(&body).into_owned() }
    }

    pub(crate) async fn get(&self, path: &str) -> Page {
        self.send(Request::get(path).body(Body::empty()).expect("a request")).await
    }

    /// Follows where it leads, to the end.
    pub(crate) async fn follow(&self, path: &str) -> Page {
        let mut page = self.get(path).await;
        for _ in 0..5 {
            if !page.status.is_redirection() {
                break;
            }
            page = self.get(page.location()).await;
        }
        page
    }

    /// Sends fields as they are.
    pub(crate) async fn post(&self, path: &str, fields: &[(&str, &str)]) -> Page {
        let body: Vec<String> = fields.iter().map(|(name, value)| format!("{}={}", encoded(name), encoded(value))).collect();
        let request =
            Request::post(path).header("content-type", "application/x-www-form-urlencoded").header("origin", "http://127.0.0.1:8080");
        self.send(request.body(Body::from(body.join("&"))).expect("a request")).await
    }

    /// What every form of whoever has signed in holds: that it is from our page, and once.
    pub(crate) async fn proof(&self) -> (String, String) {
        let page = self.get("/accounts?all=1").await;
        (page.hidden("csrf"), page.hidden("once"))
    }

    /// Sends a form from a page that was just loaded.
    pub(crate) async fn send_form(&self, path: &str, fields: &[(&str, &str)]) -> Page {
        let (csrf, once) = self.proof().await;
        let mut all = vec![("csrf", csrf.as_str()), ("once", once.as_str())];
        all.extend_from_slice(fields);
        self.post(path, &all).await
    }

    /// The account that somebody has.
    pub(crate) async fn account(&self) -> String {
        let page = self.get("/accounts").await;
        let location = page.location().to_string();
        location.split('/').nth(2).unwrap_or_else(|| panic!("no account in {location:?}: {}", page.body)).to_string()
    }

    /// The same browser at another place.
    pub(crate) fn at(&self, address: &str) -> Self {
        Self { address: address.parse().expect("an address"), ..self.clone() }
    }

    /// The cookie that it has.
    pub(crate) fn cookie(&self) -> String {
        self.cookie.lock().expect("a cookie").clone()
    }

    /// The same browser with a cookie of another.
    pub(crate) fn with_cookie(&self, cookie: String) -> Self {
        Self { cookie: Arc::new(Mutex::new(cookie)), ..self.clone() }
    }
}
