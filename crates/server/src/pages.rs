//! The two pages: one to try the models, one to read the API's description. Plain files in the binary; they call the same routes as
//! everybody, load nothing from elsewhere, and run no script but their own.

use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};

const CHAT_PAGE: &str = include_str!("../assets/chat.html");
const DOCS_PAGE: &str = include_str!("../assets/docs.html");
/// Scripts and styles stand in the page itself; nothing else may be loaded, and no other page may frame it.
const POLICY: &str = "default-src 'none'; connect-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// A page to try the models.
pub(crate) async fn chat() -> Response {
    page(CHAT_PAGE)
}

/// The description, to read.
pub(crate) async fn docs() -> Response {
    page(DOCS_PAGE)
}

fn page(html: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (HeaderName::from_static("referrer-policy"), HeaderValue::from_static("no-referrer")),
    ];
    (headers, html).into_response()
}
