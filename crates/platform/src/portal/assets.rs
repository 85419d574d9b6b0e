//! Styles and scripts, in the binary. Their URLs hold their hash, so that browsers keep them for good and never an old one.

use std::sync::LazyLock;

use axum::extract::Path;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::error::PlatformError;
use crate::portal::page::PortalError;

struct Asset {
    name: &'static str,
    content_type: &'static str,
    text: &'static str,
}

macro_rules! asset {
    ($name:literal, $content_type:literal) => {
        Asset { name: $name, content_type: $content_type, text: include_str!(concat!("../../assets/", $name)) }
    };
}

const ASSETS: &[Asset] = &[
    asset!("portal.css", "text/css; charset=utf-8"),
    asset!("portal.js", "text/javascript; charset=utf-8"),
    asset!("playground.js", "text/javascript; charset=utf-8"),
    asset!("passkeys.js", "text/javascript; charset=utf-8"),
    asset!("payment.js", "text/javascript; charset=utf-8"),
    asset!("usage.js", "text/javascript; charset=utf-8"),
    asset!("htmx.min.js", "text/javascript; charset=utf-8"),
    asset!("htmx.LICENSE.txt", "text/plain; charset=utf-8"),
    asset!("uPlot.iife.min.js", "text/javascript; charset=utf-8"),
    asset!("uPlot.min.css", "text/css; charset=utf-8"),
    asset!("uPlot.LICENSE.txt", "text/plain; charset=utf-8"),
    asset!("icon.svg", "image/svg+xml"),
];

/// Where each of them is: they are part of the program, so their hashes are computed once.
static URLS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let url = |asset: &Asset| format!("/assets/{}?v={}", asset.name, &blake3::hash(asset.text.as_bytes()).to_hex().as_str()[..12]);
    ASSETS.iter().map(url).collect()
});

/// Where a file is.
pub(super) fn url(name: &str) -> &'static str {
    ASSETS.iter().position(|asset| asset.name == name).map_or("", |index| URLS[index].as_str())
}

/// A file.
pub(super) async fn get(Path(name): Path<String>) -> Result<Response, PortalError> {
    let asset = ASSETS.iter().find(|asset| asset.name == name).ok_or(PortalError(PlatformError::NotFound { what: "file" }))?;
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(asset.content_type)),
        (header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=31536000, immutable")),
    ];
    Ok((StatusCode::OK, headers, asset.text).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_is_where_its_hash_says() {
        assert!(ASSETS.iter().all(|asset| url(asset.name).starts_with(&format!("/assets/{}?v=", asset.name))));
        assert_ne!(url("portal.js").split_once('='), url("portal.css").split_once('='));
        assert_eq!(url("none.js"), "");
    }
}
