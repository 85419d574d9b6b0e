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
    assert_eq!((good.status, good.stderr.as_str()), (Some(0), ""));
    insta::assert_snapshot!(good.stdout);
    assert!(!good.stdout.contains("sk-1"), "keys are not told");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("serve.toml");
    std::fs::write(&file, "listen = \"127.0.0.1:0\"\ndrain_secs = 1\n").expect("written");
    let refused = run(&["serve", "--check-config", "--config", file.to_str().expect("text")]);
    assert_eq!(refused.status, Some(2));
    assert!(refused.stderr.contains("drain_secs"), "{}", refused.stderr);
    let open = run(&["serve", "--check-config", "--listen", "0.0.0.0:80"]);
    assert_eq!(open.status, Some(2));
    assert!(open.stderr.contains("there is no API key"), "{}", open.stderr);
}

#[test]
fn check_of_a_configuration_names_every_error() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let place = |name: &str| folder.path().join(name).display().to_string();
    let (file, certificate, model) = (place("serve.toml"), place("certificate.pem"), place("absent.gguf"));
    std::fs::write(&certificate, "not a certificate").expect("written");
    let toml = format!(
        "model = [\"story=embedded\", \"{model}\", \"other=embedded\"]\ndraft_model = [\"story={FOREIGN}\"]\n\
         listen = \"0.0.0.0:80\"\nheader_seconds = 0.0\ndrain_seconds = -1.0\notlp_endpoint = \"https://a\"\n\
         tls_certificate = \"{certificate}\"\ntls_key = \"{certificate}\"\ndata_folder = \"{file}/inside\"\n"
    );
    std::fs::write(&file, toml).expect("written");
    let checked = run(&["serve", "--check-config", "--config", &file]);
    assert_eq!(checked.status, Some(2), "{checked:?}");
    for named in [
        "drain-seconds",
        "header_timeout",
        "no API key",
        "otlp_endpoint",
        "certificate.pem",
        "data_folder",
        "absent.gguf",
        "cannot draft for it",
        "8 errors",
    ] {
        assert!(checked.stderr.contains(named), "{named} is not in\n{}", checked.stderr);
    }
    assert!(checked.stdout.contains("model `other` from embedded"), "what is sound is told: {}", checked.stdout);
    assert!(!checked.stdout.contains("is valid"));
}

/// A model without a vocabulary, which so cannot be the embedded one's. (The engine's tests hold those that differ.)
const FOREIGN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/tiny-qwen3-group128");

#[test]
fn draft_model_changes_no_text() {
    let home = tempfile::tempdir().expect("a temporary folder");
    let file = home.path().join("serve.toml");
    std::fs::write(&file, "model = [\"story=embedded\"]\ndraft_model = [\"embedded\"]\ndrafts = 3\nstep_tokens = 96\n").expect("written");
    let config = ["--config", file.to_str().expect("text"), "--cache-tokens", "2048"];
    let (plain, drafting) = (Serving::start(home.path(), &["-m", "story=embedded"]), Serving::start(home.path(), &config));
    let answer = |serving: &Serving, body: &Value| {
        let answer = serving.post("/v1/completions", body);
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
        let body: Value = serde_json::from_str(body).expect("JSON");
        body["choices"].clone()
    };
    for (prompt, temperature) in [("Once upon a time", 0.0), ("The little fox", 0.8), ("One day", 1.2)] {
        let body = json!({
            "model": "story", "prompt": prompt, "max_tokens": 40, "temperature": temperature, "seed": 7, "logprobs": 2, "n": 2,
        });
        assert_eq!(answer(&drafting, &body), answer(&plain, &body), "{prompt}");
    }
    let drafted = drafting.get("/metrics");
    let count = |name: &str| {
        let line = drafted.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {drafted}"));
        line.rsplit(' ').next().and_then(|count| count.parse::<f64>().ok()).expect("a number")
    };
    assert!(count("bitnet_drafted_tokens_total") > 50.0 && count("bitnet_accepted_tokens_total") > 20.0, "{drafted}");
}

#[test]
fn replicas_on_several_devices_change_no_text_and_share_the_requests() {
    let home = tempfile::tempdir().expect("a temporary folder");
    let flags = ["-m", "story=embedded", "--cache-tokens", "2048"];
    let alone = Serving::start(home.path(), &[&flags[..], &["--device", "cpu"]].concat());
    let both = Serving::start(home.path(), &[&flags[..], &["--device", "cpu,cpu"]].concat());
    let answer = |serving: &Serving, seed: u64| {
        let body = json!({ "model": "story", "prompt": "Once upon a time", "max_tokens": 12, "temperature": 1.0, "seed": seed });
        let answer = serving.post("/v1/completions", &body);
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
        serde_json::from_str::<Value>(body).expect("JSON")["choices"].clone()
    };
    for seed in 0..6 {
        assert_eq!(answer(&both, seed), answer(&alone, seed), "{seed}");
    }
    let metrics = both.get("/metrics");
    assert!(metrics.contains("bitnet_replicas{model_name=\"story\"} 2\n"), "{metrics}");
}

#[test]
fn device_that_is_not_there_or_is_one_too_many_is_refused() {
    let refused = |flags: &[&str]| {
        let said = run(flags);
        assert_ne!(said.status, Some(0), "{said:?}");
        said.stderr
    };
    assert!(refused(&["run", "-n", "1", "--device", "gpu", "x"]).contains("`gpu` is not auto, cpu, reference, cuda or cuda:NUMBER"));
    assert!(refused(&["run", "-n", "1", "--device", "cpu,cpu", "x"]).contains("2 devices, and this takes one"));
    assert!(refused(&["serve", "--listen", "127.0.0.1:0", "--device", "cuda:98,99"]).contains("cannot load the replica on cuda:98"));
    assert!(refused(&["serve", "--listen", "127.0.0.1:0", "--device", "cpu,cuda:0"]).contains("a GPU and the processor together"));
}

#[test]
fn draft_model_that_does_not_fit_is_refused() {
    let refused = |flags: &[&str]| {
        let said = run(&[&["serve", "--listen", "127.0.0.1:0"], flags].concat());
        assert_eq!(said.status, Some(1), "{said:?}");
        said.stderr
    };
    let foreign = refused(&["--draft-model", FOREIGN]);
    assert!(foreign.contains("cannot draft for it") && foreign.contains("has no tokenizer"), "{foreign}");
    assert!(refused(&["--draft-model", "other=embedded"]).contains("`other` has a draft model and is not served"));
    assert!(refused(&["--draft-model", "embedded", "--drafts", "0"]).contains("drafts 0 tokens"));
    assert!(refused(&["--draft-model", "embedded", "--draft-model", "embedded"]).contains("two models draft for `embedded`"));
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

    fn get(&self, url: &str) -> String {
        self.send(&format!("GET {url} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"), "")
    }

    fn post(&self, url: &str, body: &Value) -> String {
        let body = body.to_string();
        let head = format!("POST {url} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
        self.send(&head, &body)
    }

    fn send(&self, head: &str, body: &str) -> String {
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
    // A window that no machine's load exhausts: that none is cut within it is what counts here.
    let mut serving = Serving::start(home.path(), &["--cache-tokens", "16384", "--drain-seconds", "1800"]);
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
