//! Everything that decides how the server behaves, in one value that is checked before anything starts. Where it comes from (flags,
//! environment, a file) is the command line's business.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

use crate::admission::ApiKey;
use crate::limits;

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
    /// Checks every setting, and names the one that is wrong.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let wrong = |name, reason: String| Err(ConfigError { name, reason });
        let is_open = self.api_keys.is_empty() && self.open_access == OpenAccess::LoopbackOnly;
        if is_open && !self.listen.ip().is_loopback() {
            let reason = format!("{} can be reached from other machines, and there is no API key", self.listen);
            return wrong("listen", reason);
        }
        if self.api_keys.len() > limits::N_API_KEYS_MAX {
            return wrong("api_keys", format!("{} keys, more than {}", self.api_keys.len(), limits::N_API_KEYS_MAX));
        }
        for (index, key) in self.api_keys.iter().enumerate() {
            if self.api_keys[..index].iter().any(|other| other.name == key.name || other.digest == key.digest) {
                return wrong("api_keys", format!("the name or key of `{}` is there twice", key.name));
            }
            if key.requests_per_minute == Some(0) {
                return wrong("api_keys", format!("`{}` may make 0 requests a minute", key.name));
            }
        }
        let counts = [
            ("body_bytes_max", self.body_bytes_max),
            ("n_connections_max", self.n_connections_max),
            ("n_completion_tokens_max", self.n_completion_tokens_max),
            ("n_io_threads", self.n_io_threads),
            ("n_text_threads", self.n_text_threads),
        ];
        if let Some((name, _)) = counts.into_iter().find(|&(_, value)| value == 0) {
            return wrong(name, "it is 0".into());
        }
        let times = [
            ("header_timeout", self.header_timeout),
            ("body_timeout", self.body_timeout),
            ("write_timeout", self.write_timeout),
            ("heartbeat", self.heartbeat),
        ];
        if let Some((name, _)) = times.into_iter().find(|(_, value)| value.is_zero()) {
            return wrong(name, "it is 0".into());
        }
        match self.cors_origins.iter().find(|origin| *origin != "*" && !origin.contains("://")) {
            Some(origin) => wrong("cors_origins", format!("`{origin}` is neither `*` nor an origin such as https://example.com")),
            None => Ok(()),
        }
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
