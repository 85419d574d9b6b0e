//! Answers the lines of a batch, in OpenAI's notation, by sending each through the router: a line means what the same request means.
//! Results are lines of a file, added whole and one at a time; what has a result is not asked again, so a batch that was killed goes
//! on where it was, with nothing lost and nothing repeated.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, header};
use http_body_util::BodyExt;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tower::ServiceExt;

use crate::admission::Caller;
use crate::app::InBatch;
use crate::ids::new_id;
use crate::limits;

/// URLs that a line may name.
pub const BATCH_URLS: [&str; 5] = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages"];

/// One line.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    custom_id: String,
    method: String,
    url: String,
    body: Box<RawValue>,
}

/// What became of one line.
#[derive(Debug)]
pub struct LineResult {
    /// Its name.
    pub custom_id: String,
    /// The result as JSON, without a line break.
    pub json: String,
    /// Whether it was answered.
    pub answered: bool,
}

/// Why a batch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchEnd {
    /// Every line has a result.
    Complete,
    /// It was told to stop, or the server ends: some lines have none yet.
    Stopped,
}

/// Answers lines.
pub struct BatchRunner {
    /// The server's router.
    pub service: Router,
    /// Whose batch it is.
    pub caller: Caller,
    /// The only URL that lines may name, if it is settled.
    pub url: Option<String>,
}

impl BatchRunner {
    /// Answers every line of `input` that is not in `done`, several at once, and hands each result to `keep`. Lines that fail have
    /// results, too; `keep` returning an error ends the batch.
    pub async fn run(
        &self,
        input: impl BufRead,
        done: &HashSet<String>,
        keep: &mut dyn FnMut(LineResult) -> io::Result<()>,
        stop: &dyn Fn() -> bool,
    ) -> io::Result<BatchEnd> {
        let mut at_work: JoinSet<Option<LineResult>> = JoinSet::new();
        let mut end = BatchEnd::Complete;
        for line in input.lines() {
            let line = line?;
            if line.trim().is_empty() || custom_id(&line).is_some_and(|id| done.contains(&id)) {
                continue;
            }
            while at_work.len() >= limits::N_BATCH_LINES_AT_ONCE {
                take(at_work.join_next().await, keep, &mut end)?;
            }
            if stop() || end == BatchEnd::Stopped {
                end = BatchEnd::Stopped;
                break;
            }
            at_work.spawn(answer(self.service.clone(), self.caller.clone(), self.url.clone(), line));
        }
        while !at_work.is_empty() {
            take(at_work.join_next().await, keep, &mut end)?;
        }
        Ok(end)
    }
}

fn take(
    joined: Option<Result<Option<LineResult>, tokio::task::JoinError>>,
    keep: &mut dyn FnMut(LineResult) -> io::Result<()>,
    end: &mut BatchEnd,
) -> io::Result<()> {
    match joined {
        Some(Ok(Some(result))) => keep(result),
        // The server ends before the line was answered.
        Some(Ok(None)) => {
            *end = BatchEnd::Stopped;
            Ok(())
        }
        Some(Err(error)) => Err(io::Error::other(error)),
        None => Ok(()),
    }
}

/// A line's name, if it is a line at all.
fn custom_id(line: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Named {
        custom_id: String,
    }
    serde_json::from_str::<Named>(line).ok().map(|named| named.custom_id)
}

/// The result of one line; none if the server is about to end.
async fn answer(service: Router, caller: Caller, url: Option<String>, text: String) -> Option<LineResult> {
    let line = match parse(&text, url.as_deref()) {
        Ok(line) => line,
        Err(reason) => return Some(refused(custom_id(&text).unwrap_or_default(), &reason)),
    };
    loop {
        let body = Body::from(line.body.get().to_string());
        let request = Request::post(&line.url).header(header::CONTENT_TYPE, "application/json").body(body);
        let Ok(mut request) = request else { return Some(refused(line.custom_id, "`url` is none")) };
        request.extensions_mut().insert(InBatch(caller.clone()));
        let response = service.clone().oneshot(request).await.unwrap_or_else(|never| match never {});
        let status = response.status().as_u16();
        let request_id = header_text(response.headers(), "x-request-id").unwrap_or_default();
        let retry_after = header_text(response.headers(), "retry-after").and_then(|seconds| seconds.parse().ok());
        let is_ending = response.extensions().get::<crate::error::Refused>().is_some_and(|refused| refused.0.is_ending());
        if is_ending {
            return None;
        }
        let bytes = response.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        if let (429 | 503 | 529, Some(seconds)) = (status, retry_after) {
            // Others are served first; a batch has time.
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            continue;
        }
        let body: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        let response = json!({ "status_code": status, "request_id": request_id, "body": body });
        let result = json!({ "id": new_id("batch_req_"), "custom_id": line.custom_id, "response": response, "error": null });
        return Some(LineResult { custom_id: line.custom_id, json: result.to_string(), answered: status == 200 });
    }
}

fn header_text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_string)
}

fn parse(text: &str, url: Option<&str>) -> Result<Line, String> {
    if text.len() > limits::BATCH_LINE_BYTES_MAX {
        return Err(format!("the line is longer than {} bytes", limits::BATCH_LINE_BYTES_MAX));
    }
    let line: Line = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if line.method != "POST" {
        return Err("`method` is not POST".into());
    }
    match url {
        Some(url) if line.url != url => return Err(format!("`url` is not the batch's {url}")),
        _ if !BATCH_URLS.contains(&line.url.as_str()) => return Err(format!("`url` is none of {}", BATCH_URLS.join(", "))),
        _ => {}
    }
    #[derive(Deserialize)]
    struct Streamed {
        stream: Option<bool>,
    }
    match serde_json::from_str::<Streamed>(line.body.get()) {
        Ok(Streamed { stream: Some(true) }) => Err("`stream` is of no use in a batch".into()),
        _ => Ok(line),
    }
}

fn refused(custom_id: String, reason: &str) -> LineResult {
    let error = json!({ "code": "invalid_request", "message": reason });
    let result = json!({ "id": new_id("batch_req_"), "custom_id": custom_id, "response": null, "error": error });
    LineResult { custom_id, json: result.to_string(), answered: false }
}

/// A file of results that can be gone on with.
pub struct ResultFile {
    file: File,
    /// Lines that have a result.
    pub done: HashSet<String>,
}

impl ResultFile {
    /// Opens or makes the file and reads what is done. A last line that was cut off by a crash is removed: it will be asked again.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut done = HashSet::new();
        let (mut whole_bytes, mut line) = (0, Vec::new());
        let mut reader = BufReader::new(&file);
        while reader.read_until(b'\n', &mut line)? > 0 {
            let id = std::str::from_utf8(&line).ok().filter(|text| text.ends_with('\n')).and_then(custom_id);
            let Some(id) = id else { break };
            done.insert(id);
            whole_bytes += line.len() as u64;
            line.clear();
        }
        // A whole line that is no result is somebody else's file, which must not be cut.
        if line.ends_with(b"\n") {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{}: a line is not a batch's result", path.display())));
        }
        file.set_len(whole_bytes)?;
        file.seek(SeekFrom::Start(whole_bytes))?;
        Ok(Self { file, done })
    }

    /// Adds a result.
    pub fn push(&mut self, result: &LineResult) -> io::Result<()> {
        let mut line = String::with_capacity(result.json.len() + 1);
        line.push_str(&result.json);
        line.push('\n');
        // The result is its own record: one write, of which a crash leaves all or a torn end that `open` removes.
        self.file.write_all(line.as_bytes())?;
        self.done.insert(result.custom_id.clone());
        Ok(())
    }

    /// All of it is on disk.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_that_cannot_be_asked_is_refused() {
        let refusal = |line: &str| parse(line, Some("/v1/completions")).err().unwrap_or_default();
        assert_eq!(refusal(r#"{"custom_id":"a","method":"POST","url":"/v1/completions","body":{}}"#), "");
        assert!(refusal(r#"{"custom_id":"a","method":"GET","url":"/v1/completions","body":{}}"#).contains("POST"));
        assert!(refusal(r#"{"custom_id":"a","method":"POST","url":"/v1/files","body":{}}"#).contains("/v1/completions"));
        assert!(refusal(r#"{"custom_id":"a","method":"POST","url":"/v1/completions","body":{"stream":true}}"#).contains("stream"));
        assert!(refusal("{}").contains("custom_id"));
    }

    #[test]
    fn torn_last_result_is_asked_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("out.jsonl");
        std::fs::write(&path, "{\"custom_id\":\"a\"}\n{\"custom_id\":\"b\"}\n{\"custom_id\":\"c\"").expect("written");
        let mut results = ResultFile::open(&path).expect("opens");
        assert_eq!(results.done, HashSet::from(["a".to_string(), "b".to_string()]));
        let json = "{\"custom_id\":\"c\"}".to_string();
        results.push(&LineResult { custom_id: "c".into(), json, answered: true }).expect("added");
        assert_eq!(std::fs::read_to_string(&path).expect("read").lines().count(), 3);
        std::fs::write(&path, "not a result\n").expect("written");
        assert!(ResultFile::open(&path).is_err(), "another file is not cut");
    }
}
