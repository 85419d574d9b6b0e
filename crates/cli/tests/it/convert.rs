//! `bitnet convert`: every format from the same model, and back; what it refuses.

use std::path::Path;

use serde_json::Value;

use crate::command::run;
use crate::fixture::{golden, ids, model_argument};

fn logits(model: &str, ids: &str, out: &Path) -> Vec<u8> {
    let finished = run(&["logits", "-m", model, "--ids", ids, "--out", out.to_str().expect("UTF-8")]);
    assert_eq!(finished.status, Some(0), "{finished:?}");
    std::fs::read(out).expect("written")
}

/// Converts `input` to each format, and back from each: the logits never change a bit.
fn check_formats(input: &str, ids: &str, formats: &[&str]) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let expected = logits(input, ids, &folder.path().join("expected.npy"));
    for format in formats {
        let out = folder.path().join(format);
        let out = out.to_str().expect("UTF-8");
        let finished = run(&["convert", input, out, "--to", format]);
        assert_eq!(finished.status, Some(0), "{format}: {finished:?}");
        // MLX computes with unquantised activations, which is said; the weights are the same.
        assert_eq!(finished.stdout.contains("lossless"), *format != "mlx", "{format}: {finished:?}");
        assert_eq!(logits(out, ids, &folder.path().join("got.npy")), expected, "{format}");
    }
}

#[test]
fn model_converted_to_any_format_gives_the_same_logits() {
    let prompt = ids(&golden("tiny-llama-bitlinear")["prompts"][0]["ids"]);
    check_formats(&model_argument("tiny-llama-bitlinear"), &prompt, &["gguf-i2_s", "safetensors"]);
    check_formats("embedded", "0,4354,689,262", &["gguf-i2_s", "gguf-tq2_0", "gguf-tq1_0", "safetensors", "mlx"]);
}

#[test]
fn loss_of_a_conversion_is_told() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("a.gguf");
    let finished = run(&["convert", &model_argument("tiny-llama-bitlinear"), out.to_str().expect("UTF-8"), "--to", "gguf-tq2_0"]);
    assert_eq!(finished.status, Some(0), "{finished:?}");
    assert!(finished.stdout.contains("with losses") && finished.stdout.contains("scales rounded to f16"), "{finished:?}");
    assert_eq!(finished.stdout.lines().count(), 10, "one line for each of eight, and how many more there are");
}

#[test]
fn activations_that_a_file_leaves_open_are_noted_until_they_are_told() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("a.gguf");
    let path = out.to_str().expect("UTF-8");
    assert_eq!(run(&["convert", &model_argument("tiny-llama-bitlinear"), path, "--to", "gguf-tq2_0"]).status, Some(0));
    let activations = |flags: &[&str]| {
        let finished = run(&[&["inspect", "--json", path], flags].concat());
        let json: Value = serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error}: {finished:?}"));
        (json["config"]["activations"].as_str().expect("text").to_owned(), finished.stderr)
    };
    assert_eq!(activations(&[]), ("int8 per token".into(), String::new()), "we write what the public keys cannot say");
    // Other programs' files have no such key: rename it, keeping every length.
    let mut bytes = std::fs::read(&out).expect("written");
    let needle = b"bitnet.activation_policy";
    let at = bytes.windows(needle.len()).position(|window| window == needle).expect("written");
    bytes[at] = b'x';
    std::fs::write(&out, bytes).expect("written");
    let (policy, note) = activations(&[]);
    assert!(policy == "unquantised" && note.contains("--activations"), "{policy}: {note}");
    assert_eq!(activations(&["--quiet"]).1, "");
    assert_eq!(activations(&["--activations", "exact"]), ("unquantised".into(), String::new()));
    assert_eq!(activations(&["--activations", "int8"]), ("int8 per token".into(), String::new()));
}

#[test]
fn order_of_i2_s_codes_is_shown_and_can_be_told() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let order = |model: &str, flags: &[&str]| {
        let finished = run(&[&["inspect", model], flags].concat());
        assert_eq!(finished.status, Some(0), "{finished:?}");
        let line = finished.stdout.lines().find(|line| line.contains("I2_S order")).map(str::to_owned);
        (line.unwrap_or_default(), finished.stderr)
    };
    let convert = |input: &str, name: &str| {
        let out = folder.path().join(name).to_str().expect("UTF-8").to_owned();
        assert_eq!(run(&["convert", input, &out, "--to", "gguf-i2_s"]).status, Some(0));
        out
    };
    let trained = convert("embedded", "trained.gguf");
    let (line, note) = order(&trained, &[]);
    assert!(line.ends_with("blocks of 128, as the weights show") && note.is_empty(), "{line} {note}");
    let random = convert(&model_argument("tiny-llama-bitlinear"), "random.gguf");
    let (line, note) = order(&random, &[]);
    assert!(line.ends_with("blocks of 128, for lack of evidence in the weights") && note.contains("--i2s-layout"), "{line} {note}");
    let (line, note) = order(&random, &["--i2s-layout", "blocks-64"]);
    assert!(line.ends_with("blocks of 64, as told") && note.is_empty(), "{line} {note}");
    let ids = ["--ids", "1,2,3", "--out"];
    let logits = |flags: &[&str], name: &str| {
        let out = folder.path().join(name);
        let finished = run(&[&["logits", "-m", &random], &ids[..], &[out.to_str().expect("UTF-8")], flags].concat());
        assert_eq!(finished.status, Some(0), "{finished:?}");
        std::fs::read(out).expect("written")
    };
    let published = logits(&[], "a.npy");
    assert!(published == logits(&["--i2s-layout", "blocks-128"], "b.npy"));
    assert!(published != logits(&["--i2s-layout", "rows-4"], "c.npy"), "another order is another model");
}

#[test]
fn existing_output_is_replaced_only_when_asked() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("a.gguf");
    let out = out.to_str().expect("UTF-8");
    let input = model_argument("tiny-llama-bitlinear");
    let report: Value = serde_json::from_str(&run(&["convert", &input, out, "--to", "gguf-i2_s", "--json"]).stdout).expect("JSON");
    assert_eq!(report["losses"], serde_json::json!([]));
    let refused = run(&["convert", &input, out, "--to", "gguf-i2_s"]);
    assert_eq!(refused.status, Some(1), "{refused:?}");
    assert_eq!(run(&["convert", &input, out, "--to", "gguf-i2_s", "--overwrite"]).status, Some(0));
}

#[test]
fn format_that_cannot_hold_the_model_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("a.gguf");
    let finished = run(&["convert", &model_argument("tiny-qwen3-group128"), out.to_str().expect("UTF-8"), "--to", "gguf-i2_s"]);
    assert_eq!(finished.status, Some(1), "{finished:?}");
    assert!(!out.exists(), "nothing is left behind");
    assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 0);
}
