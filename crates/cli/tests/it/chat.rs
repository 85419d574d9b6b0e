//! `bitnet chat` through a pipe. The terminal's editor is not tested here.

use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;

use crate::command::{Finished, bitnet, run};
use crate::fixture::model_argument;

fn chat(home: &Path, arguments: &[&str], input: &str) -> Finished {
    let mut command = bitnet(home);
    command.arg("chat").args(arguments).current_dir(home);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary starts");
    // A binary that ends early, as /exit makes it, closes the pipe.
    let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
    let output = child.wait_with_output().expect("the binary ends");
    let text = |bytes| String::from_utf8(bytes).expect("output is UTF-8");
    Finished { status: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

fn replies(finished: &Finished) -> Vec<Value> {
    assert_eq!(finished.status, Some(0), "{finished:?}");
    finished.stdout.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

#[test]
fn chat_through_a_pipe_answers_each_line_and_saves() {
    let home = tempfile::tempdir().expect("a temporary folder");
    let flags = ["--json", "-n", "6", "--greedy", "--system", "Be brief."];
    let finished = chat(home.path(), &flags, "Hello!\n\nHow are you?\n/save talk.json\n/exit\nnever\n");
    let replies = replies(&finished);
    assert_eq!(replies.len(), 2, "an empty line is no turn, and nothing is read after /exit");
    let saved: Value = serde_json::from_slice(&std::fs::read(home.path().join("talk.json")).expect("saved")).expect("JSON");
    let roles: Vec<_> = saved.as_array().expect("a list").iter().filter_map(|message| message["role"].as_str()).collect();
    assert_eq!(roles, ["system", "user", "assistant", "user", "assistant"]);
    assert_eq!(saved[2]["content"], replies[0]["content"]);
    let text = chat(home.path(), &["-n", "6", "--greedy", "--system", "Be brief."], "Hello!\n");
    assert_eq!(Some(text.stdout.trim_end()), replies[0]["content"].as_str(), "the same without its leading space");
    assert!(!text.stdout.starts_with(' '), "{text:?}");
}

#[test]
fn second_turn_reads_only_what_is_new() {
    let home = tempfile::tempdir().expect("a temporary folder");
    let flags = ["--json", "-n", "6", "--greedy"];
    let question = "Tell me of the old fisherman who lived with his wife by the sea and went out every day.\n";
    let together = replies(&chat(home.path(), &flags, &format!("{question}And then?\n")));
    let n_read = |reply: &Value| reply["prefill"]["n_tokens"].as_u64().expect("a number");
    assert!(n_read(&together[1]) < n_read(&together[0]), "{together:?}");
    let reset = replies(&chat(home.path(), &flags, &format!("Something else.\n/reset\n{question}")));
    assert_eq!(reset[1]["content"], together[0]["content"], "/reset leaves nothing behind");
}

#[test]
fn conversation_longer_than_the_context_forgets_its_oldest_turns() {
    let home = tempfile::tempdir().expect("a temporary folder");
    let flags = ["--json", "-n", "8", "--greedy", "--context", "48"];
    let finished = chat(home.path(), &flags, &"Tell me a story about a fox and a king.\n".repeat(4));
    assert_eq!(replies(&finished).len(), 4);
    assert!(finished.stderr.contains("oldest turns are left out"), "{finished:?}");
    let too_long = chat(home.path(), &flags, &"word ".repeat(200));
    assert_eq!(too_long.status, Some(1));
    insta::assert_snapshot!(too_long.stderr);
}

#[test]
fn line_of_a_pipe_is_a_command_only_if_there_is_such_a_command() {
    let home = tempfile::tempdir().expect("a temporary folder");
    let flags = ["--json", "-n", "2", "--greedy"];
    assert_eq!(replies(&chat(home.path(), &flags, "/usr/bin is a folder\n/help me\n/exit now\n")).len(), 3);
    let finished = chat(home.path(), &[], "/save\n");
    assert_eq!((finished.status, finished.stderr.as_str()), (Some(1), "error: /save needs the name of a file\n"));
    assert_eq!(chat(home.path(), &[], "/help\n").stdout.lines().count(), 5);
}

#[test]
fn chat_with_a_model_that_cannot_says_why() {
    let finished = run(&["chat", "-m", &model_argument("tiny-llama-bitlinear")]);
    assert_eq!(finished.status, Some(1));
    assert!(finished.stderr.contains("no tokenizer"), "{finished:?}");
}
