//! The hub's HTTP routes: the listing of a repository (`/api/models/{repository}/revision/{revision}?blobs=true`) and its files
//! (`/{repository}/resolve/{commit}/{file}`). Everything a server answers is untrusted: bounded, parsed, never a path.
//!
//! Routes and their escaping come from crate `hf-hub` ([`hf_hub::Repo`]); requests are our own, because `hf-hub` 0.5 gives no
//! access to status codes, lengths and hashes. The access token goes to the hub's host only, never along a redirect elsewhere.

use std::time::Duration;

use hf_hub::{Repo, RepoType};
use serde::Deserialize;
use ureq::http::{HeaderMap, Response, StatusCode};
use ureq::{Agent, Body};

use super::name::{Commit, Digest, RemotePath};
use super::select::RemoteFile;
use super::{HubError, HubName};

/// Longest listing of a repository, in bytes.
const LISTING_BYTES_MAX: u64 = 32 << 20;
/// Redirects followed within the hub while describing one file.
const REDIRECTS_MAX: usize = 5;
/// A connection that yields nothing for so long counts as broken.
const SILENCE_MAX: Duration = Duration::from_secs(60);
const CONNECT_MAX: Duration = Duration::from_secs(30);

/// A hub to ask.
pub(crate) struct Remote {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
}

/// What a repository holds at a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listing {
    /// The commit that the revision names now.
    pub(crate) commit: Commit,
    /// Files with names that stay in their folder; others are left out.
    pub(crate) files: Vec<RemoteFile>,
}

#[derive(Deserialize)]
struct ListingAnswer {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<LargeFile>,
}

#[derive(Deserialize)]
struct LargeFile {
    sha256: Option<String>,
    size: Option<u64>,
}

impl From<Sibling> for Option<RemoteFile> {
    fn from(sibling: Sibling) -> Self {
        let path: RemotePath = sibling.rfilename.parse().ok()?;
        let (size_bytes, digest) = match sibling.lfs {
            Some(large) => (large.size.or(sibling.size), large.sha256),
            None => (sibling.size, sibling.blob_id),
        };
        Some(RemoteFile { path, size_bytes, digest: digest.as_deref().and_then(Digest::parse) })
    }
}

impl Remote {
    /// `endpoint` without a slash at its end, as `https://huggingface.co`.
    pub(crate) fn new(endpoint: String, token: Option<String>) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT_MAX))
            .timeout_per_read(Some(SILENCE_MAX))
            .accept_encoding("identity")
            .user_agent(concat!("bitnet/", env!("CARGO_PKG_VERSION")))
            .redirect_auth_headers(ureq::config::RedirectAuthHeaders::SameHost)
            .build();
        Self { agent: config.into(), endpoint, token }
    }

    /// Where it is.
    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Lists a repository.
    pub(crate) fn list(&self, name: &HubName) -> Result<Listing, HubError> {
        let url = format!("{}/api/{}?blobs=true", self.endpoint, repo(name, name.revision_or_main()).api_url());
        let mut response = self.get(&url, 0)?;
        if !response.status().is_success() {
            return Err(self.refusal(name, None, &url, &response));
        }
        let not_a_hub = |reason: String| HubError::Answer { url: url.clone(), reason };
        let body = response.body_mut().with_config().limit(LISTING_BYTES_MAX).read_to_vec();
        let body = body.map_err(|error| not_a_hub(error.to_string()))?;
        let answer: ListingAnswer = serde_json::from_slice(&body).map_err(|error| not_a_hub(error.to_string()))?;
        let commit = Commit::parse(&answer.sha).ok_or_else(|| not_a_hub(format!("`{:.80}` is not a commit", answer.sha)))?;
        Ok(Listing { commit, files: answer.siblings.into_iter().filter_map(Into::into).collect() })
    }

    /// Where a file of a commit lies.
    pub(crate) fn url(&self, name: &HubName, commit: &Commit, path: &RemotePath) -> String {
        let repo = repo(name, commit.as_str());
        format!("{}/{}/resolve/{}/{}", self.endpoint, repo.url(), repo.url_revision(), path.url_encoded())
    }

    /// Asks for a file's size and hash, for hubs whose listing leaves them out.
    pub(crate) fn describe(&self, name: &HubName, commit: &Commit, path: &RemotePath) -> Result<RemoteFile, HubError> {
        let mut url = self.url(name, commit, path);
        for _ in 0..REDIRECTS_MAX {
            let request = self.authorised(self.agent.head(&url));
            let response = request.config().max_redirects(0).max_redirects_will_error(false).build().call();
            let response = response.map_err(|error| self.unreachable(error))?;
            let headers = response.headers();
            let status = response.status();
            // A renamed repository redirects within the hub; a large file redirects to a store and says here what it is.
            if status.is_redirection() && text(headers, "x-linked-size").is_none() {
                let location = text(headers, "location").unwrap_or_default();
                url = if location.starts_with('/') { format!("{}{location}", self.endpoint) } else { location.to_string() };
                continue;
            }
            if !status.is_success() && !status.is_redirection() {
                return Err(self.refusal(name, Some(path), &url, &response));
            }
            let size = text(headers, "x-linked-size").or(text(headers, "content-length")).and_then(|size| size.parse().ok());
            let etag = text(headers, "x-linked-etag").or(text(headers, "etag")).unwrap_or_default();
            let digest = Digest::parse(etag.trim_start_matches("W/").trim_matches('"'));
            return Ok(RemoteFile { path: path.clone(), size_bytes: size, digest });
        }
        Err(HubError::Answer { url, reason: "it redirects in a circle".into() })
    }

    /// Starts reading `url` at byte `first`. Statuses other than success are answers too.
    pub(crate) fn get(&self, url: &str, first: u64) -> Result<Response<Body>, HubError> {
        let mut request = self.authorised(self.agent.get(url));
        if first > 0 {
            request = request.header("Range", format!("bytes={first}-"));
        }
        request.call().map_err(|error| self.unreachable(error))
    }

    /// What an unsuccessful answer about `name` means.
    pub(crate) fn refusal(&self, name: &HubName, path: Option<&RemotePath>, url: &str, response: &Response<Body>) -> HubError {
        let repository = name.repository.clone();
        let code = text(response.headers(), "x-error-code").unwrap_or_default();
        match (response.status(), code, path) {
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, "GatedRepo", _) => {
                HubError::Gated { repository, endpoint: self.endpoint.clone() }
            }
            (StatusCode::NOT_FOUND, "RevisionNotFound", _) => {
                HubError::NoRevision { repository, revision: name.revision_or_main().to_string() }
            }
            (StatusCode::NOT_FOUND, _, Some(path)) => HubError::NoFile { repository, file: path.to_string(), similar: Vec::new() },
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND, _, _) => {
                HubError::NoRepository { repository, has_token: self.token.is_some() }
            }
            (status, _, _) => HubError::Status { url: url.to_string(), status: status.as_u16() },
        }
    }

    fn authorised<B>(&self, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        match &self.token {
            Some(token) => request.header("Authorization", format!("Bearer {token}")),
            None => request,
        }
    }

    fn unreachable(&self, error: ureq::Error) -> HubError {
        HubError::Unreachable { endpoint: self.endpoint.clone(), source: Box::new(error) }
    }
}

/// A repository at a revision, as `hf-hub` spells routes and folders.
pub(crate) fn repo(name: &HubName, revision: &str) -> Repo {
    Repo::with_revision(name.repository.clone(), RepoType::Model, revision.to_string())
}

/// A header's text, if it is ASCII.
pub(crate) fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}
