//! Why a model could not be had from a hub, and what the reader can do about it.

use std::path::PathBuf;

use thiserror::Error;

/// A model could not be had from a hub.
#[derive(Debug, Error)]
pub(crate) enum HubError {
    /// The text after `hf:` is not a name.
    #[error("`hf:{name}` does not name a model: {reason}")]
    Name { name: String, reason: String },
    /// The hub knows no such repository, or does not tell us.
    #[error("no such repository or no access: {repository}")]
    NoRepository { repository: String, has_token: bool },
    /// The owner wants terms accepted first.
    #[error("access to {repository} is restricted by its owner")]
    Gated { repository: String, endpoint: String },
    /// The repository exists, the branch, tag or commit does not.
    #[error("{repository} has no revision `{revision}`")]
    NoRevision { repository: String, revision: String },
    /// The repository exists, the file does not.
    #[error("{repository} has no file `{file}`")]
    NoFile { repository: String, file: String, similar: Vec<String> },
    /// Nothing in the repository is a model that can be read.
    #[error("{repository} holds neither safetensors nor GGUF files")]
    NoModel { repository: String },
    /// Several models, and no rule to choose between them.
    #[error("{repository} holds {} GGUF files", files.len())]
    Ambiguous { repository: String, files: Vec<String> },
    /// `--offline`, and it has not been downloaded before.
    #[error("{name} has not been downloaded")]
    NotDownloaded { name: String },
    /// The hub could not be reached.
    #[error("cannot reach {endpoint}")]
    Unreachable { endpoint: String, source: Box<ureq::Error> },
    /// The hub answered with a status that is not about the model.
    #[error("{url} answered with status {status}")]
    Status { url: String, status: u16 },
    /// The hub's answer does not read as a hub's answer.
    #[error("{url} did not answer as a model hub does: {reason}")]
    Answer { url: String, reason: String },
    /// Fewer or more bytes than the hub announced.
    #[error("{file}: expected {expected} bytes, got {got}")]
    Length { file: String, expected: u64, got: u64 },
    /// The bytes are not those that the hub announced.
    #[error("{file}: the download is damaged: its hash should be {expected} and is {got}")]
    Damaged { file: String, expected: String, got: String },
    /// The connection broke, again and again.
    #[error("{file}: the connection broke after {got} of {expected} bytes")]
    Interrupted { file: String, expected: u64, got: u64, source: Box<dyn std::error::Error + Send + Sync> },
    /// The local disk refused.
    #[error("{}", path.display())]
    Disk { path: PathBuf, source: std::io::Error },
}

impl HubError {
    /// The disk refused something at `path`.
    pub(crate) fn disk(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Disk { path, source }
    }

    /// Whether the hub could not be asked at all, so that an earlier download may stand in.
    pub(crate) fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. }) || matches!(self, Self::Status { status: 500.., .. })
    }

    /// What to do next.
    pub(crate) fn help(&self) -> String {
        let again = "run the same command again: the download goes on where it stopped";
        match self {
            Self::Name { .. } => "write hf:owner/name, hf:owner/name@revision or hf:owner/name:file.gguf".into(),
            Self::NoRepository { has_token: false, .. } => {
                "check the spelling; if the repository is private, set HF_TOKEN to an access token that may read it".into()
            }
            Self::NoRepository { has_token: true, .. } => "check the spelling, and that your access token may read the repository".into(),
            Self::Gated { repository, endpoint } => {
                format!("accept its terms at {endpoint}/{repository}, then set HF_TOKEN to an access token of that account")
            }
            Self::NoRevision { .. } => "leave `@revision` out for the main branch".into(),
            Self::NoFile { similar, .. } if !similar.is_empty() => format!("it has: {}", similar.join(", ")),
            Self::NoFile { .. } | Self::NoModel { .. } => "look for a repository with *.safetensors or *.gguf files".into(),
            Self::Ambiguous { repository, files } => format!("name one, as in hf:{repository}:{}; it has: {}", files[0], files.join(", ")),
            Self::NotDownloaded { .. } => "run once without --offline".into(),
            Self::Unreachable { .. } => {
                "check the network; HF_ENDPOINT names another hub, HTTPS_PROXY a proxy, --offline uses what was downloaded before".into()
            }
            Self::Status { status: 429, .. } => "the hub asks for fewer requests: wait a while, or set HF_TOKEN".into(),
            Self::Status { .. } | Self::Interrupted { .. } => again.into(),
            Self::Answer { .. } => "check HF_ENDPOINT, and that no proxy answers in the hub's place".into(),
            Self::Length { .. } | Self::Damaged { .. } => {
                "the damaged part was removed: run the same command again; if it happens again, a proxy or the hub alters the file".into()
            }
            Self::Disk { .. } => "check free space and permissions; HF_HOME names another place for downloads".into(),
        }
    }
}
