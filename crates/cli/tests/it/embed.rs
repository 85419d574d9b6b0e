//! `bitnet embed` on a small random embedding model: which vectors, in which form, and what is refused.

use serde_json::Value;

use crate::command::{run, run_piped};
use crate::embedding_model::{self, END_OF_TEXT, WIDTH};

/// The model's folder.
fn model() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    embedding_model::write(folder.path(), &crate::fixture::model("tales-42m").join("tokenizer.json"));
    folder
}

fn argument(folder: &tempfile::TempDir) -> &str {
    folder.path().to_str().expect("UTF-8")
}

fn succeed(arguments: &[&str]) -> String {
    let finished = run(arguments);
    assert_eq!(finished.status, Some(0), "{finished:?}");
    finished.stdout
}

fn vectors(lines: &str) -> Vec<Vec<f32>> {
    lines.lines().map(|line| serde_json::from_str(line).expect("a JSON list of numbers")).collect()
}

fn dot(left: &[f32], right: &[f32]) -> f32 {
    left.iter().zip(right).map(|(left, right)| left * right).sum()
}

/// Rows of the file that `bitnet logits` writes: of an embedding model, the hidden state of every token.
fn hidden_states(model: &str, text: &str) -> Vec<Vec<f32>> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("hidden.npy");
    succeed(&["logits", "-m", model, "--text", text, "--out", out.to_str().expect("UTF-8")]);
    let bytes = std::fs::read(&out).expect("written");
    let values: Vec<f32> = bytes[128..].chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().expect("four"))).collect();
    values.chunks(WIDTH).map(<[f32]>::to_vec).collect()
}

#[test]
fn embedding_is_the_last_hidden_state_at_length_one() {
    let folder = model();
    let model = argument(&folder);
    let last = hidden_states(model, "an old king").pop().expect("rows");
    assert_eq!(vectors(&succeed(&["embed", "-m", model, "an old king", "--no-normalize"])), std::slice::from_ref(&last), "the same bits");
    let embedding = vectors(&succeed(&["embed", "-m", model, "an old king"])).pop().expect("a line");
    let length = dot(&last, &last).sqrt();
    assert!((length - 1.0).abs() > 0.1, "a length of {length} would show nothing");
    assert!(embedding.iter().zip(&last).all(|(scaled, value)| (scaled - value / length).abs() < 1e-6), "{embedding:?} {last:?}");
}

#[test]
fn texts_are_embedded_one_a_line_whatever_stands_beside_them() {
    let folder = model();
    let model = argument(&folder);
    let together = succeed(&["embed", "-m", model, "an old king", "the fox said", "an old king"]);
    let lines: Vec<&str> = together.lines().collect();
    assert!(lines.len() == 3 && lines[0] == lines[2] && lines[0] != lines[1], "{together}");
    assert_eq!(succeed(&["embed", "-m", model, "the fox said"]), format!("{}\n", lines[1]));
    for arguments in [&["embed", "-m", model][..], &["embed", "-m", model, "-"]] {
        let piped = run_piped(arguments, b"an old king\r\nthe fox said\nan old king\n");
        assert_eq!((piped.status, piped.stdout.as_str()), (Some(0), together.as_str()), "{piped:?}");
    }
    for flags in [["-t", "1"], ["--isa", "scalar"], ["--device", "reference"]] {
        let arguments = [&["embed", "-m", model, "the fox said"][..], &flags].concat();
        assert_eq!(succeed(&arguments), format!("{}\n", lines[1]), "{flags:?}");
    }
}

#[test]
fn embeddings_as_json_hold_the_same_vectors() {
    let folder = model();
    let model = argument(&folder);
    let lines = vectors(&succeed(&["embed", "-m", model, "the fox", ""]));
    let report: Value = serde_json::from_str(&succeed(&["embed", "-m", model, "the fox", "", "--json"])).expect("one JSON object");
    let got: Vec<Vec<f32>> = report["embeddings"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|embedding| serde_json::from_value(embedding["values"].clone()).expect("numbers"))
        .collect();
    assert_eq!(got, lines);
    assert_eq!((&report["width"], &report["normalized"]), (&Value::from(WIDTH), &Value::Bool(true)));
    assert_eq!(report["embeddings"][1]["n_tokens"], 1, "an empty text is its end alone");
    assert_eq!(vectors(&succeed(&["embed", "-m", model, "--ids", &END_OF_TEXT.to_string()])), [lines[1].clone()]);
}

#[test]
fn generative_model_is_refused_since_it_has_no_pooling() {
    let finished = run(&["embed", "a text"]);
    assert_eq!((finished.status, finished.stdout.as_str()), (Some(1), ""));
    insta::assert_snapshot!(finished.stderr, @r"
    error: this model has no pooling: it yields logits of the next token, not embeddings
    help: embeddings come from models made for them, such as hf:microsoft/BitNet-embedding-0.6B
    ");
}

#[test]
fn embedding_model_is_refused_where_text_is_wanted() {
    let folder = model();
    let finished = run(&["run", "-m", argument(&folder), "a text"]);
    assert_eq!(finished.status, Some(1));
    insta::assert_snapshot!(finished.stderr, @r"
    error: this model yields embeddings, not text
    help: `bitnet embed` prints them
    ");
}

#[test]
fn text_longer_than_the_context_is_named_by_its_place() {
    let folder = model();
    let finished = run(&["embed", "-m", argument(&folder), "short", &"fox ".repeat(100)]);
    assert_eq!((finished.status, finished.stdout.lines().count()), (Some(1), 1));
    insta::assert_snapshot!(finished.stderr, @r"
    error: cannot embed text 2
      cause: sequence 0 reaches position 102; the model's context is 64 tokens
    help: shorten the prompt; `bitnet inspect` shows how long the model's context is
    ");
    let empty = run_piped(&["embed", "-m", argument(&folder)], b"");
    assert_eq!(empty.status, Some(1));
    insta::assert_snapshot!(empty.stderr, @r#"
    error: there is no text
    help: write bitnet embed -m MODEL "a text", or pipe texts into it, one a line
    "#);
}
