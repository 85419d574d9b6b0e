//! `serve` and `batch` as a user starts them: configurations that are refused, a server that ends in order, batches that go on.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Stdio};

use serde_json::{Value, json};

use crate::command::{bitnet, finish, run};

#[test]
fn configuration_is_checked_without_serving() {
    let good = run(&["serve", "--check-config", "--api-key", "sk-1", "--listen", "0.0.0.0:80"]);
    assert_eq!((good.status, good.stdout.as_str()), (Some(0), ""));
    assert_eq!(good.stderr, "the configuration is valid: with 1 key on 0.0.0.0:80\n");
    assert!(!good.stderr.contains("sk-1"), "keys are not told");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("serve.toml");
    std::fs::write(&file, "listen = \"127.0.0.1:0\"\ndrain_secs = 1\n").expect("written");
    let refused = run(&["serve", "--check-config", "--config", file.to_str().expect("text")]);
    assert_eq!(refused.status, Some(1));
    assert!(refused.stderr.contains("drain_secs"), "{}", refused.stderr);
    let open = run(&["serve", "--check-config", "--listen", "0.0.0.0:80"]);
    assert_eq!(open.status, Some(1));
    assert!(open.stderr.contains("there is no API key"), "{}", open.stderr);
}

/// A server that is killed when its test ends, however that is.
struct Serving {
    child: Child,
    address: String,
}

impl Serving {
    fn start(home: &Path, arguments: &[&str]) -> Self {
        let mut command = bitnet(home);
        command.args(["serve", "--listen", "127.0.0.1:0", "--log", "error"]).args(arguments).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary starts");
        let mut line = String::new();
        BufReader::new(child.stderr.take().expect("piped")).read_line(&mut line).expect("it speaks");
        let address = line.trim().rsplit_once("http://").unwrap_or_else(|| panic!("no address in {line}")).1.to_string();
        Self { child, address }
    }

    fn post(&self, url: &str, body: &Value) -> String {
        let body = body.to_string();
        let head = format!("POST {url} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
        let mut stream = TcpStream::connect(&self.address).expect("it listens");
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes())).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answered");
        answer
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
#[cfg(unix)]
fn server_with_the_embedded_model_answers_and_ends_in_order() {
    let home = tempfile::tempdir().expect("a temporary folder");
    let mut serving = Serving::start(home.path(), &[]);
    let answer =
        serving.post("/v1/completions", &json!({ "model": "embedded", "prompt": "Once upon a time", "max_tokens": 3, "temperature": 0 }));
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"finish_reason\":\"length\""), "{answer}");
    let ended = std::process::Command::new("kill").args(["-TERM", &serving.child.id().to_string()]).status();
    assert!(ended.expect("kill starts").success());
    assert_eq!(serving.child.wait().expect("it ends").code(), Some(0));
}

#[test]
#[cfg(unix)]
fn two_hundred_streams_outlive_the_signal_that_ends_the_server() {
    let home = tempfile::tempdir().expect("a temporary folder");
    let mut serving = Serving::start(home.path(), &["--cache-tokens", "16384"]);
    let body = json!({
        "model": "embedded", "prompt": "Once upon a time", "max_tokens": 24, "temperature": 0, "ignore_eos": true, "stream": true,
    });
    let body = body.to_string();
    let head = format!("POST /v1/completions HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    let open = |_| {
        let mut stream = TcpStream::connect(&serving.address).expect("it listens");
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes())).expect("sent");
        let mut status = [0; 12];
        stream.read_exact(&mut status).expect("answered");
        assert_eq!(&status, b"HTTP/1.1 200");
        stream
    };
    let streams: Vec<TcpStream> = (0..200).map(open).collect();
    let ended = std::process::Command::new("kill").args(["-TERM", &serving.child.id().to_string()]).status();
    assert!(ended.expect("kill starts").success());
    for mut stream in streams {
        let mut rest = String::new();
        stream.read_to_string(&mut rest).expect("not reset");
        assert!(rest.contains("\"finish_reason\":\"length\"") && rest.contains("data: [DONE]"), "cut: {rest}");
    }
    assert_eq!(serving.child.wait().expect("it ends").code(), Some(0));
}

#[test]
fn batch_that_was_ended_goes_on_where_it_was() {
    let home = tempfile::tempdir().expect("a temporary folder");
    let (input, output) = (home.path().join("in.jsonl"), home.path().join("out.jsonl"));
    let line = |index: usize| {
        let body = json!({ "model": "embedded", "prompt": "Once", "max_tokens": 2, "temperature": 0 });
        json!({ "custom_id": format!("r{index}"), "method": "POST", "url": "/v1/completions", "body": body }).to_string()
    };
    let lines: Vec<String> = (0..4).map(line).collect();
    std::fs::write(&input, lines.join("\n")).expect("written");
    // As a kill leaves it: one answer whole, one torn.
    std::fs::write(&output, "{\"custom_id\":\"r1\",\"mine\":true}\n{\"custom_id\":\"r2\",\"resp").expect("written");
    let batch = || {
        let mut command = bitnet(home.path());
        command.arg("batch").args([&input, &output]);
        finish(command)
    };
    let finished = batch();
    assert_eq!(finished.status, Some(0), "{finished:?}");
    assert_eq!(finished.stderr, "1 of 4 lines are answered already\n3 answered, 0 failed\n");
    let results = std::fs::read_to_string(&output).expect("read");
    let mut ids: Vec<String> =
        results.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")["custom_id"].to_string()).collect();
    ids.sort();
    assert_eq!(ids, ["\"r0\"", "\"r1\"", "\"r2\"", "\"r3\""]);
    assert!(results.starts_with("{\"custom_id\":\"r1\",\"mine\":true}\n"), "what was there is not touched");
    assert_eq!(batch().stderr, "4 of 4 lines are answered already\n0 answered, 0 failed\n");
}
