//! One client of an OpenAI-compatible server: a streamed completion, and when each piece of it came.

use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};
use ureq::Agent;

/// A server, and what requests call its model.
pub(super) struct Endpoint {
    pub(super) name: String,
    url: String,
    model: String,
    agent: Agent,
}

/// What to continue.
#[derive(Debug, Clone)]
pub(super) enum Prompt {
    Tokens(Vec<u32>),
    Text(String),
}

/// One streamed completion.
#[derive(Debug, Clone)]
pub(super) struct Run {
    pub(super) start: Instant,
    /// From the start to the first text.
    pub(super) first_token: Duration,
    /// Between two pieces of text.
    pub(super) gaps: Vec<Duration>,
    pub(super) end: Instant,
    pub(super) n_tokens: usize,
    pub(super) text: String,
}

impl Endpoint {
    /// Asks a server which model it has.
    pub(super) fn find(name: &str, url: &str) -> anyhow::Result<Self> {
        // What stands between this machine and the network is not to be measured.
        let agent: Agent = Agent::config_builder().proxy(None).http_status_as_error(false).build().into();
        let url = url.trim_end_matches('/').to_string();
        let models = agent.get(format!("{url}/v1/models")).call().with_context(|| format!("{name} does not answer on {url}"))?;
        let models: Value = serde_json::from_reader(models.into_body().into_reader()).with_context(|| format!("{name} lists no models"))?;
        let Some(model) = models["data"][0]["id"].as_str() else { bail!("{name} has no model") };
        Ok(Self { name: name.into(), url, model: model.into(), agent })
    }

    /// Writes on greedily for `n_tokens`.
    pub(super) fn complete(&self, prompt: &Prompt, n_tokens: usize) -> anyhow::Result<Run> {
        let prompt = match prompt {
            Prompt::Tokens(ids) => json!(ids),
            Prompt::Text(text) => json!(text),
        };
        let body = json!({
            "model": self.model, "prompt": prompt, "max_tokens": n_tokens, "temperature": 0, "ignore_eos": true,
            "stream": true, "stream_options": { "include_usage": true },
        });
        let start = Instant::now();
        let request = self.agent.post(format!("{}/v1/completions", self.url)).header("content-type", "application/json");
        let response = request.send(body.to_string())?;
        let (status, reader) = (response.status(), BufReader::new(response.into_body().into_reader()));
        if status != 200 {
            bail!("status {status}: {}", reader.lines().map_while(Result::ok).take(5).collect::<Vec<_>>().join(" "));
        }
        read(reader, start)
    }
}

fn read(reader: impl BufRead, start: Instant) -> anyhow::Result<Run> {
    let (mut text, mut n_tokens, mut times) = (String::new(), None, Vec::new());
    for line in reader.lines() {
        let line = line?;
        let Some(data) = line.strip_prefix("data: ").filter(|data| *data != "[DONE]") else { continue };
        let event: Value = serde_json::from_str(data).context("an event is not JSON")?;
        if let Some(piece) = event["choices"][0]["text"].as_str().filter(|piece| !piece.is_empty()) {
            text.push_str(piece);
            times.push(Instant::now());
        }
        if let Some(n) = event["usage"]["completion_tokens"].as_u64() {
            n_tokens = Some(n as usize);
        }
    }
    let (Some(&first), Some(&end)) = (times.first(), times.last()) else { bail!("the stream had no text") };
    let gaps = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let Some(n_tokens) = n_tokens else { bail!("the stream did not say how many tokens it had") };
    Ok(Run { start, first_token: first - start, gaps, end, n_tokens, text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_is_read_to_its_usage() {
        let body = "data: {\"choices\":[{\"text\":\"a\"}]}\n\n: beat\n\ndata: {\"choices\":[{\"text\":\"\"}]}\n\n\
            data: {\"choices\":[{\"text\":\"bc\"}],\"usage\":null}\n\ndata: {\"choices\":[],\"usage\":{\"completion_tokens\":3}}\n\ndata: [DONE]\n\n";
        let run = read(body.as_bytes(), Instant::now()).expect("a whole stream");
        assert_eq!((run.text.as_str(), run.n_tokens, run.gaps.len()), ("abc", 3, 1));
        assert!(read(&b"data: [DONE]\n\n"[..], Instant::now()).is_err());
    }
}
