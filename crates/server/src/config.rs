//! Everything that decides how the server behaves, in one value that is checked before anything starts. Where it comes from (flags,
//! environment, a file) is the command line's business.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

use crate::admission::ApiKey;
use crate::files::FileStore;
use crate::{limits, tls, traces};

/// Certificate and key of the server, as PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The chain, the server's own certificate first.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Whether whoever reaches the server may use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OpenAccess {
    /// Only on this machine; elsewhere a key is needed.
    #[default]
    LoopbackOnly,
    /// Anywhere: something in front of the server lets in who may.
    Anywhere,
}

/// Whether a part of the server is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// It is.
    On,
    /// Its URLs are unknown.
    Off,
}

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The configuration of a server.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Who may use a server without keys.
    pub open_access: OpenAccess,
    /// Keys; with none, there is one caller.
    pub api_keys: Vec<ApiKey>,
    /// TLS, if the server does it itself.
    pub tls: Option<TlsFiles>,
    /// Origins whose pages may call, or `*`.
    pub cors_origins: Vec<String>,
    /// Longest request body, in bytes.
    pub body_bytes_max: usize,
    /// Connections at once.
    pub n_connections_max: usize,
    /// Time for the head of a request, and for which an idle connection is kept.
    pub header_timeout: Duration,
    /// Time for the body of a request.
    pub body_timeout: Duration,
    /// Longest time in which a client takes nothing of what was written to it.
    pub write_timeout: Duration,
    /// How often a silent stream says that it is alive.
    pub heartbeat: Duration,
    /// Longest time for one request; without it, any.
    pub request_timeout: Option<Duration>,
    /// How long a server that was asked to end finishes what it has.
    pub drain: Duration,
    /// Tokens written where a request does not say how many, and the most that one may ask for.
    pub n_completion_tokens_max: usize,
    /// The chat page at `/`.
    pub chat_page: Presence,
    /// Where files and batches are kept; without it there are none.
    pub data_folder: Option<PathBuf>,
    /// Threads that serve connections.
    pub n_io_threads: usize,
    /// Threads that tokenise and render.
    pub n_text_threads: usize,
    /// Where traces go: an OTLP receiver's URL, to which `/v1/traces` is added. Without it there are none.
    pub otlp_endpoint: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            open_access: OpenAccess::LoopbackOnly,
            api_keys: Vec::new(),
            tls: None,
            cors_origins: Vec::new(),
            body_bytes_max: limits::BODY_BYTES_MAX,
            n_connections_max: limits::N_CONNECTIONS_MAX,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(60),
            heartbeat: Duration::from_secs(15),
            request_timeout: None,
            drain: Duration::from_secs(45),
            n_completion_tokens_max: 16_384,
            chat_page: Presence::On,
            data_folder: None,
            n_io_threads: 2,
            n_text_threads: 2,
            otlp_endpoint: None,
        }
    }
}

/// A configuration that cannot be served.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{name}`: {reason}")]
pub struct ConfigError {
    /// The setting.
    pub name: &'static str,
    /// What is wrong with it.
    pub reason: String,
}

impl Config {
    /// Checks every setting, and names the first that is wrong.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.faults().into_iter().next().map_or(Ok(()), Err)
    }

    /// All that is wrong, each with the setting's name.
    pub fn faults(&self) -> Vec<ConfigError> {
        let mut faults = Vec::new();
        let mut wrong = |name, reason: String| faults.push(ConfigError { name, reason });
        let is_open = self.api_keys.is_empty() && self.open_access == OpenAccess::LoopbackOnly;
        if is_open && !self.listen.ip().is_loopback() {
            wrong("listen", format!("{} can be reached from other machines, and there is no API key", self.listen));
        }
        if self.api_keys.len() > limits::N_API_KEYS_MAX {
            wrong("api_keys", format!("{} keys, more than {}", self.api_keys.len(), limits::N_API_KEYS_MAX));
        }
        let (mut names, mut digests) = (HashSet::new(), HashSet::new());
        for key in &self.api_keys {
            let (is_new_name, is_new_key) = (names.insert(&key.name), digests.insert(key.digest));
            if !is_new_name || !is_new_key {
                wrong("api_keys", format!("the name or key of `{}` is there twice", key.name));
            }
            if key.requests_per_minute == Some(0) {
                wrong("api_keys", format!("`{}` may make 0 requests a minute", key.name));
            }
        }
        let settings = [
            ("body_bytes_max", self.body_bytes_max == 0),
            ("n_connections_max", self.n_connections_max == 0),
            ("n_completion_tokens_max", self.n_completion_tokens_max == 0),
            ("n_io_threads", self.n_io_threads == 0),
            ("n_text_threads", self.n_text_threads == 0),
            ("header_timeout", self.header_timeout.is_zero()),
            ("body_timeout", self.body_timeout.is_zero()),
            ("write_timeout", self.write_timeout.is_zero()),
            ("heartbeat", self.heartbeat.is_zero()),
        ];
        settings.into_iter().filter(|(_, is_zero)| *is_zero).for_each(|(name, _)| wrong(name, "it is 0".into()));
        for origin in self.cors_origins.iter().filter(|origin| *origin != "*" && !origin.contains("://")) {
            wrong("cors_origins", format!("`{origin}` is neither `*` nor an origin such as https://example.com"));
        }
        if let Some(reason) = self.otlp_endpoint.as_deref().and_then(|endpoint| traces::address_of(endpoint).err()) {
            wrong("otlp_endpoint", reason);
        }
        faults
    }

    /// Reads what a start reads from disk, and changes nothing: the certificate and its key, the place for files.
    pub fn file_faults(&self) -> Vec<ConfigError> {
        let wrong = |name, error: std::io::Error| ConfigError { name, reason: error.to_string() };
        let tls = self.tls.as_ref().and_then(|files| tls::acceptor(files).err()).map(|error| wrong("tls", error));
        let folder = self.data_folder.as_deref().and_then(|folder| FileStore::check(folder).err()).map(|error| wrong("data_folder", error));
        tls.into_iter().chain(folder).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::ApiKeyDigest;

    fn refused(change: impl FnOnce(&mut Config)) -> &'static str {
        let mut config = Config::default();
        change(&mut config);
        config.validate().expect_err("refused").name
    }

    #[test]
    fn open_server_off_loopback_is_refused() {
        Config::default().validate().expect("valid");
        let everywhere: SocketAddr = "0.0.0.0:80".parse().expect("an address");
        assert_eq!(refused(|config| config.listen = everywhere), "listen");
        let key = ApiKey { name: "a".into(), digest: ApiKeyDigest::of_key("k"), requests_per_minute: None };
        Config { listen: everywhere, api_keys: vec![key], ..Config::default() }.validate().expect("it has a key");
        Config { listen: everywhere, open_access: OpenAccess::Anywhere, ..Config::default() }.validate().expect("asked for");
    }

    #[test]
    fn wrong_setting_is_named_by_its_error() {
        assert_eq!(refused(|config| config.body_bytes_max = 0), "body_bytes_max");
        assert_eq!(refused(|config| config.heartbeat = Duration::ZERO), "heartbeat");
        assert_eq!(refused(|config| config.cors_origins = vec!["example".into()]), "cors_origins");
        let key = ApiKey { name: "a".into(), digest: ApiKeyDigest::of_key("k"), requests_per_minute: Some(0) };
        assert_eq!(refused(|config| config.api_keys = vec![key.clone()]), "api_keys");
        assert_eq!(refused(|config| config.api_keys = vec![ApiKey { requests_per_minute: None, ..key.clone() }; 2]), "api_keys");
    }
}
