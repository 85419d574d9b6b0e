//! What handlers take from a request: a bounded, timed, strictly parsed JSON body. Parsing names the parameter that is wrong,
//! refuses those that are unknown, and never recurses deeper than serde_json's 128 levels, so that a million brackets are a 400.

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout_at};

use crate::app::{App, Whose};
use crate::error::ServerError;
use crate::limits;

/// A request body.
pub(crate) trait RequestBody: DeserializeOwned + Send + 'static {
    /// Parameters of the upstream API that are refused by name, and why.
    const REFUSED: &'static [(&'static str, &'static str)];
    /// What answers it.
    const NEEDS: Needs = Needs::Engine;
}

/// What a request needs beside the server itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    /// An engine: where none has room, the body is not even parsed.
    Engine,
    /// Nothing that could be full.
    Server,
}

/// The body of a request, parsed.
pub(crate) struct JsonBody<T>(pub(crate) T);

impl<T: RequestBody> FromRequest<App> for JsonBody<T> {
    type Rejection = ServerError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ServerError> {
        expect_json(request.headers())?;
        let whose = request.extensions().get::<Whose>().filter(|_| T::NEEDS == Needs::Engine);
        let refused = whose.and_then(|Whose(caller)| app.check_room(caller).err());
        // Taken off the connection all the same: a client that is still sending would hear of a broken connection and not of the refusal.
        let bytes = read_body(request, app, app.config().body_bytes_max).await?;
        if let Some(refused) = refused {
            return Err(refused);
        }
        if bytes.len() <= limits::INLINE_JSON_BYTES_MAX {
            return parse(&bytes).map(Self);
        }
        app.text_pool().run(move || parse(&bytes)).await.map(Self)
    }
}

fn expect_json(headers: &HeaderMap) -> Result<(), ServerError> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let text = value.to_str().unwrap_or_default();
    let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if essence == "application/json" || essence.ends_with("+json") {
        return Ok(());
    }
    Err(ServerError::MediaType { got: text.chars().take(100).collect(), expected: "application/json" })
}

/// Reads a body of at most `limit` bytes within the configured time.
pub(crate) async fn read_body(request: Request, app: &App, limit: usize) -> Result<Bytes, ServerError> {
    let declared = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if declared.is_some_and(|declared| declared > limit) {
        return Err(ServerError::BodyTooLarge { limit });
    }
    let body_timeout = app.config().body_timeout;
    let deadline = Instant::now() + body_timeout;
    let slow = |_| ServerError::BodyTooSlow { limit: body_timeout };
    collect(request.into_body(), limit, deadline).await.unwrap_or_else(|elapsed| Err(slow(elapsed)))
}

async fn collect(mut body: Body, limit: usize, deadline: Instant) -> Result<Result<Bytes, ServerError>, tokio::time::error::Elapsed> {
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    while let Some(frame) = timeout_at(deadline, body.frame()).await? {
        let Ok(frame) = frame else { return Ok(Err(ServerError::BodyBroken)) };
        let Ok(data) = frame.into_data() else { continue };
        if first.len() + all.len() + data.len() > limit {
            return Ok(Err(ServerError::BodyTooLarge { limit }));
        }
        // Nearly every body is one frame and is not copied.
        if first.is_empty() && all.is_empty() {
            first = data;
            continue;
        }
        if all.is_empty() {
            all.extend_from_slice(&std::mem::take(&mut first));
        }
        all.extend_from_slice(&data);
    }
    Ok(Ok(if all.is_empty() { first } else { all.freeze() }))
}

/// Parses a body, naming what is wrong with it.
pub(crate) fn parse<T: RequestBody>(bytes: &[u8]) -> Result<T, ServerError> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let parsed = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        describe::<T>(&path, &error.into_inner())
    })?;
    deserializer.end().map_err(|error| ServerError::MalformedJson { reason: error.to_string() })?;
    Ok(parsed)
}

fn describe<T: RequestBody>(path: &str, error: &serde_json::Error) -> ServerError {
    // A number that no float holds is JSON all the same, and belongs to its parameter.
    let is_number = error.to_string().starts_with("number out of range") && path != ".";
    if !error.is_data() && !is_number {
        return ServerError::MalformedJson { reason: error.to_string() };
    }
    let text = error.to_string();
    // serde_json ends its messages with a position, which is of no use beside a name.
    let reason = text.rsplit_once(" at line ").map_or(text.as_str(), |(reason, _)| reason);
    let quoted = |prefix: &str| reason.strip_prefix(prefix).and_then(|rest| rest.split('`').next());
    if let Some(name) = quoted("unknown field `") {
        let refusal = T::REFUSED.iter().find(|(refused, _)| *refused == name);
        let param = within(path, name);
        return match refusal {
            Some(&(_, reason)) => ServerError::UnsupportedParameter { param, reason },
            None => ServerError::UnknownParameter { param },
        };
    }
    if let Some(name) = quoted("missing field `") {
        return ServerError::MissingParameter { param: within(path, name) };
    }
    if path == "." {
        return ServerError::MalformedJson { reason: reason.to_string() };
    }
    ServerError::invalid(path, reason)
}

/// `messages[0].nmae` from `messages[0]`, or from a path that has the name already.
fn within(path: &str, name: &str) -> String {
    let is_there = path == name || path.strip_suffix(name).is_some_and(|before| before.ends_with('.'));
    match path {
        "." | "" => name.to_string(),
        _ if is_there => path.to_string(),
        _ => format!("{path}.{name}"),
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(unused)]
    struct Sample {
        messages: Vec<Inner>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(unused)]
    struct Inner {
        count: u32,
    }

    impl RequestBody for Sample {
        const REFUSED: &'static [(&'static str, &'static str)] = &[("audio", "this server speaks text")];
    }

    fn refusal(json: &str) -> String {
        match parse::<Sample>(json.as_bytes()) {
            Ok(_) => "accepted".into(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn wrong_body_is_refused_by_name() {
        assert_eq!(refusal(r#"{"messages":[{"count":1}]}"#), "accepted");
        assert_eq!(refusal(r#"{"messages":[{"count":-1}]}"#), "`messages[0].count`: invalid value: integer `-1`, expected u32");
        assert_eq!(refusal(r#"{"messages":[{"count":1,"x":2}]}"#), "unknown parameter: `messages[0].x`");
        assert_eq!(refusal(r#"{"messages":[{}]}"#), "missing required parameter: `messages[0].count`");
        assert_eq!(refusal(r#"{}"#), "missing required parameter: `messages`");
        assert_eq!(refusal(r#"{"messages":[],"audio":{}}"#), "unsupported parameter: `audio`: this server speaks text");
        assert_eq!(refusal(r#"{"messages":[],"other":[[1]]}"#), "unknown parameter: `other`");
        assert!(refusal(r#"{"messages":"#).starts_with("the body is not valid JSON"));
        assert!(refusal(r#"{"messages":[]} x"#).starts_with("the body is not valid JSON"));
        assert!(refusal("[]").contains("invalid length 0") || refusal("[]").contains("missing"), "{}", refusal("[]"));
    }

    #[test]
    fn deep_nesting_anywhere_is_refused() {
        for depth in [200, 1_000_000] {
            let deep = format!(r#"{{"messages":{}"#, "[".repeat(depth));
            assert!(parse::<Sample>(deep.as_bytes()).is_err());
            let ignored = format!(r#"{{"other":{}{}}}"#, "[".repeat(depth), "]".repeat(depth));
            assert!(parse::<Sample>(ignored.as_bytes()).is_err());
        }
    }
}
