//! Everything that can be said about a server, three ways with one meaning: a flag, an environment variable, a line of a TOML file.
//! A flag goes before a variable and a variable before the file; what nobody says is the server's default.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use bitnet_server::admission::{ApiKey, ApiKeyDigest};
use bitnet_server::{Config, LogFormat, OpenAccess, Presence, TlsFiles};
use clap::builder::FalseyValueParser;
use clap::{Args, ValueEnum};
use serde::Deserialize;

use crate::failure::Misuse;
use crate::verbs::serve::models::ServedFromFile;

/// Longest configuration file, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormatArgument {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

/// Settings that may or may not be given.
#[derive(Debug, Clone, Default, PartialEq, Args, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[command(next_help_heading = "Server")]
pub(crate) struct Settings {
    /// Where to listen; by default 127.0.0.1:8080
    #[arg(long, value_name = "ADDRESS:PORT", env = "BITNET_LISTEN", hide_env_values = true)]
    pub(crate) listen: Option<SocketAddr>,
    /// A key that clients must send; may be given several times. In a file, [[api_keys]] gives keys names and rates
    #[arg(long, value_name = "KEY", env = "BITNET_API_KEY", hide_env_values = true, value_delimiter = ',')]
    pub(crate) api_key: Vec<String>,
    /// Keys with names and rates, from a file only.
    #[arg(skip)]
    pub(crate) api_keys: Vec<KeySetting>,
    /// Serve other machines without any key: something in front of the server lets in who may
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_parser = FalseyValueParser::new(), env = "BITNET_ALLOW_UNAUTHENTICATED", hide_env_values = true, hide_short_help = true)]
    pub(crate) allow_unauthenticated: Option<bool>,
    /// Certificate chain, as a PEM file
    #[arg(long, value_name = "FILE", env = "BITNET_TLS_CERTIFICATE", hide_env_values = true, hide_short_help = true)]
    pub(crate) tls_certificate: Option<PathBuf>,
    /// Private key of the certificate, as a PEM file
    #[arg(long, value_name = "FILE", env = "BITNET_TLS_KEY", hide_env_values = true, hide_short_help = true)]
    pub(crate) tls_key: Option<PathBuf>,
    /// Origin whose pages may call, or *; may be given several times
    #[arg(long, value_name = "ORIGIN", env = "BITNET_CORS_ORIGINS", hide_env_values = true, value_delimiter = ',', hide_short_help = true)]
    pub(crate) cors_origins: Vec<String>,
    /// Where files and batches are kept; without it there are none
    #[arg(long, value_name = "FOLDER", env = "BITNET_DATA_FOLDER", hide_env_values = true)]
    pub(crate) data_folder: Option<PathBuf>,
    /// Most tokens that one reply may have
    #[arg(long, value_name = "N", env = "BITNET_MAX_TOKENS", hide_env_values = true)]
    pub(crate) max_tokens: Option<usize>,
    /// Leave out the chat page at /
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_parser = FalseyValueParser::new(), env = "BITNET_NO_CHAT_PAGE", hide_env_values = true, hide_short_help = true)]
    pub(crate) no_chat_page: Option<bool>,
    /// Longest request body, in bytes
    #[arg(long, value_name = "BYTES", env = "BITNET_BODY_BYTES", hide_env_values = true, hide_short_help = true)]
    pub(crate) body_bytes: Option<usize>,
    /// Most connections at once
    #[arg(long, value_name = "N", env = "BITNET_CONNECTIONS", hide_env_values = true, hide_short_help = true)]
    pub(crate) connections: Option<usize>,
    /// Time for a request's head, and for an idle connection
    #[arg(long, value_name = "SECONDS", env = "BITNET_HEADER_SECONDS", hide_env_values = true, hide_short_help = true)]
    pub(crate) header_seconds: Option<f64>,
    /// Time for a request's body
    #[arg(long, value_name = "SECONDS", env = "BITNET_BODY_SECONDS", hide_env_values = true, hide_short_help = true)]
    pub(crate) body_seconds: Option<f64>,
    /// Time for a client to take what was written to it
    #[arg(long, value_name = "SECONDS", env = "BITNET_WRITE_SECONDS", hide_env_values = true, hide_short_help = true)]
    pub(crate) write_seconds: Option<f64>,
    /// Longest silence of a stream
    #[arg(long, value_name = "SECONDS", env = "BITNET_HEARTBEAT_SECONDS", hide_env_values = true, hide_short_help = true)]
    pub(crate) heartbeat_seconds: Option<f64>,
    /// Longest time for one request; by default, any
    #[arg(long, value_name = "SECONDS", env = "BITNET_REQUEST_SECONDS", hide_env_values = true, hide_short_help = true)]
    pub(crate) request_seconds: Option<f64>,
    /// How long a server that is asked to end finishes what it has; by default 45
    #[arg(long, value_name = "SECONDS", env = "BITNET_DRAIN_SECONDS", hide_env_values = true)]
    pub(crate) drain_seconds: Option<f64>,
    /// Threads for connections
    #[arg(long, value_name = "N", env = "BITNET_IO_THREADS", hide_env_values = true, hide_short_help = true)]
    pub(crate) io_threads: Option<usize>,
    /// Threads for templates and tokenising
    #[arg(long, value_name = "N", env = "BITNET_TEXT_THREADS", hide_env_values = true, hide_short_help = true)]
    pub(crate) text_threads: Option<usize>,
    /// Where to send traces of requests (OTLP over HTTP), such as http://127.0.0.1:4318; without it there are none
    #[arg(long, value_name = "URL", env = "OTEL_EXPORTER_OTLP_ENDPOINT", hide_env_values = true, hide_short_help = true)]
    pub(crate) otlp_endpoint: Option<String>,
    /// Models from a file; on the command line they have flags of their own.
    #[arg(skip)]
    pub(crate) model: Vec<String>,
    #[arg(skip)]
    pub(crate) draft_model: Vec<String>,
    #[arg(skip)]
    pub(crate) chat_template: Option<PathBuf>,
    #[arg(skip)]
    pub(crate) sequences: Option<usize>,
    #[arg(skip)]
    pub(crate) queue: Option<usize>,
    #[arg(skip)]
    pub(crate) cache_tokens: Option<usize>,
    #[arg(skip)]
    pub(crate) step_tokens: Option<usize>,
    #[arg(skip)]
    pub(crate) drafts: Option<usize>,
    /// How logs are written
    #[arg(long, value_enum, env = "BITNET_LOG_FORMAT", hide_env_values = true)]
    pub(crate) log_format: Option<LogFormatArgument>,
    /// What is logged, such as warn or bitnet_server=debug; by default info
    #[arg(long, value_name = "FILTER", env = "BITNET_LOG", hide_env_values = true, hide_short_help = true)]
    pub(crate) log: Option<String>,
}

/// A key in a file; `key_blake3` is the hash of one that the file does not tell.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KeySetting {
    name: String,
    key: Option<String>,
    key_blake3: Option<String>,
    requests_per_minute: Option<u32>,
}

impl Settings {
    /// Reads a file.
    pub(crate) fn read(path: &std::path::Path) -> anyhow::Result<Self> {
        let what = || format!("cannot read {}", path.display());
        let length = std::fs::metadata(path).with_context(what)?.len();
        if length > FILE_BYTES_MAX {
            return Err(
                Misuse::new(format!("{} is longer than {FILE_BYTES_MAX} bytes", path.display()), "name a configuration file").into()
            );
        }
        let text = std::fs::read_to_string(path).with_context(what)?;
        toml::from_str(&text).with_context(|| format!("{} is not a valid configuration", path.display()))
    }

    /// These, and where they say nothing, `file`'s.
    pub(crate) fn over(self, file: Self) -> Self {
        let list = |own: Vec<String>, other| if own.is_empty() { other } else { own };
        Self {
            listen: self.listen.or(file.listen),
            api_key: list(self.api_key, file.api_key),
            api_keys: file.api_keys,
            allow_unauthenticated: self.allow_unauthenticated.or(file.allow_unauthenticated),
            tls_certificate: self.tls_certificate.or(file.tls_certificate),
            tls_key: self.tls_key.or(file.tls_key),
            cors_origins: list(self.cors_origins, file.cors_origins),
            data_folder: self.data_folder.or(file.data_folder),
            max_tokens: self.max_tokens.or(file.max_tokens),
            no_chat_page: self.no_chat_page.or(file.no_chat_page),
            body_bytes: self.body_bytes.or(file.body_bytes),
            connections: self.connections.or(file.connections),
            header_seconds: self.header_seconds.or(file.header_seconds),
            body_seconds: self.body_seconds.or(file.body_seconds),
            write_seconds: self.write_seconds.or(file.write_seconds),
            heartbeat_seconds: self.heartbeat_seconds.or(file.heartbeat_seconds),
            request_seconds: self.request_seconds.or(file.request_seconds),
            drain_seconds: self.drain_seconds.or(file.drain_seconds),
            io_threads: self.io_threads.or(file.io_threads),
            text_threads: self.text_threads.or(file.text_threads),
            otlp_endpoint: self.otlp_endpoint.or(file.otlp_endpoint),
            model: file.model,
            draft_model: file.draft_model,
            chat_template: file.chat_template,
            sequences: file.sequences,
            queue: file.queue,
            cache_tokens: file.cache_tokens,
            step_tokens: file.step_tokens,
            drafts: file.drafts,
            log_format: self.log_format.or(file.log_format),
            log: self.log.or(file.log),
        }
    }

    /// Models and how requests share them, as the file has them.
    pub(crate) fn served(&mut self) -> ServedFromFile {
        ServedFromFile {
            models: std::mem::take(&mut self.model),
            draft_models: std::mem::take(&mut self.draft_model),
            chat_template: self.chat_template.take(),
            sequences: self.sequences,
            queue: self.queue,
            cache_tokens: self.cache_tokens,
            step_tokens: self.step_tokens,
            drafts: self.drafts,
        }
    }

    /// How logs are written, and which.
    pub(crate) fn log(&self) -> (LogFormat, &str) {
        let format = match self.log_format {
            None | Some(LogFormatArgument::Text) => LogFormat::Text,
            Some(LogFormatArgument::Json) => LogFormat::Json,
        };
        (format, self.log.as_deref().unwrap_or("info"))
    }

    /// The server's configuration, checked.
    pub(crate) fn config(self) -> anyhow::Result<Config> {
        let (config, faults) = self.checked();
        faults.into_iter().next().map_or(Ok(config), Err)
    }

    /// The server's configuration and all that is wrong with it; what could not be read is as by default.
    pub(crate) fn checked(self) -> (Config, Vec<anyhow::Error>) {
        let default = Config::default();
        let mut faults = Vec::new();
        let tls = match (self.tls_certificate, self.tls_key) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some(TlsFiles { certificate, key }),
            _ => {
                faults.push(Misuse::new("TLS takes a certificate and its key", "give --tls-certificate and --tls-key").into());
                None
            }
        };
        let api_keys = api_keys(&self.api_key, self.api_keys, &mut faults);
        let mut time = |flag: &str, value: Option<f64>| {
            seconds(flag, value).unwrap_or_else(|fault| {
                faults.push(fault);
                None
            })
        };
        let (header, body) = (time("header-seconds", self.header_seconds), time("body-seconds", self.body_seconds));
        let (write, heartbeat) = (time("write-seconds", self.write_seconds), time("heartbeat-seconds", self.heartbeat_seconds));
        let (request_timeout, drain) = (time("request-seconds", self.request_seconds), time("drain-seconds", self.drain_seconds));
        let is_open = self.allow_unauthenticated == Some(true);
        let has_page = self.no_chat_page != Some(true);
        let config = Config {
            listen: self.listen.unwrap_or(default.listen),
            open_access: if is_open { OpenAccess::Anywhere } else { OpenAccess::LoopbackOnly },
            api_keys,
            tls,
            cors_origins: self.cors_origins,
            body_bytes_max: self.body_bytes.unwrap_or(default.body_bytes_max),
            n_connections_max: self.connections.unwrap_or(default.n_connections_max),
            header_timeout: header.unwrap_or(default.header_timeout),
            body_timeout: body.unwrap_or(default.body_timeout),
            write_timeout: write.unwrap_or(default.write_timeout),
            heartbeat: heartbeat.unwrap_or(default.heartbeat),
            request_timeout,
            drain: drain.unwrap_or(default.drain),
            n_completion_tokens_max: self.max_tokens.unwrap_or(default.n_completion_tokens_max),
            chat_page: if has_page { Presence::On } else { Presence::Off },
            data_folder: self.data_folder,
            n_io_threads: self.io_threads.unwrap_or(default.n_io_threads),
            n_text_threads: self.text_threads.unwrap_or(default.n_text_threads),
            otlp_endpoint: self.otlp_endpoint.filter(|endpoint| !endpoint.is_empty()),
        };
        faults.extend(config.faults().into_iter().map(anyhow::Error::from));
        (config, faults)
    }
}

fn seconds(flag: &str, value: Option<f64>) -> anyhow::Result<Option<Duration>> {
    let wrong = |value: f64| Misuse::new(format!("--{flag} is {value}"), "give a number of seconds, such as 0.5 or 45");
    value.map(|value| Duration::try_from_secs_f64(value).map_err(|_| wrong(value).into())).transpose()
}

fn api_keys(plain: &[String], named: Vec<KeySetting>, faults: &mut Vec<anyhow::Error>) -> Vec<ApiKey> {
    let of_plain = plain.iter().filter(|key| !key.is_empty()).enumerate();
    let of_plain = of_plain.map(|(index, key)| {
        anyhow::Ok(ApiKey { name: format!("key {}", index + 1), digest: ApiKeyDigest::of_key(key), requests_per_minute: None })
    });
    let of_named = named.into_iter().map(|setting| {
        let wrong = |what| Misuse::new(format!("the API key `{}` {what}", setting.name), "give `key`, or its BLAKE3 hash as `key_blake3`");
        let digest = match (&setting.key, &setting.key_blake3) {
            (Some(key), None) => ApiKeyDigest::of_key(key),
            (None, Some(hex)) => ApiKeyDigest::from_hex(hex).ok_or_else(|| wrong("has a hash that is not 64 hexadecimal digits"))?,
            _ => return Err(wrong("has not exactly one of `key` and `key_blake3`").into()),
        };
        Ok(ApiKey { name: setting.name, digest, requests_per_minute: setting.requests_per_minute })
    });
    of_plain.chain(of_named).filter_map(|key| key.map_err(|fault| faults.push(fault)).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(toml: &str) -> Settings {
        toml::from_str(toml).expect("valid")
    }

    #[test]
    fn flag_goes_before_the_file() {
        let file = settings("listen = \"127.0.0.1:1\"\ndrain_seconds = 2.5\ncors_origins = [\"https://a.example\"]\n");
        let flags = Settings { listen: Some("127.0.0.1:2".parse().expect("an address")), ..Settings::default() };
        let config = flags.over(file).config().expect("valid");
        assert_eq!((config.listen.port(), config.drain), (2, Duration::from_millis(2500)));
        assert_eq!(config.cors_origins, ["https://a.example"]);
    }

    #[test]
    fn setting_that_is_wrong_is_refused_with_its_name() {
        assert!(toml::from_str::<Settings>("lissten = 1").is_err());
        let refused = |toml: &str| settings(toml).config().expect_err("refused").to_string();
        assert!(refused("drain_seconds = -1.0").contains("drain-seconds"));
        assert!(refused("listen = \"0.0.0.0:80\"").contains("listen"));
        assert!(refused("tls_key = \"a\"").contains("certificate"));
        assert!(refused("[[api_keys]]\nname = \"ann\"").contains("ann"));
        assert!(refused("[[api_keys]]\nname = \"ann\"\nkey_blake3 = \"12\"").contains("hexadecimal"));
    }

    #[test]
    fn keys_come_from_every_place() {
        let file = settings("[[api_keys]]\nname = \"ann\"\nkey = \"sk-1\"\nrequests_per_minute = 5\n");
        let flags = Settings { api_key: vec!["sk-2".into()], ..Settings::default() };
        let keys = flags.over(file).config().expect("valid").api_keys;
        assert_eq!(keys.iter().map(|key| key.name.as_str()).collect::<Vec<_>>(), ["key 1", "ann"]);
        assert_eq!((keys[1].digest, keys[1].requests_per_minute), (ApiKeyDigest::of_key("sk-1"), Some(5)));
    }
}
