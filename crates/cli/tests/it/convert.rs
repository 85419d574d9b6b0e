//! `bitnet convert`: every format from the same model, and back; what it refuses.

use std::path::Path;

use serde_json::Value;

use crate::command::run;
use crate::fixture::{golden, ids, model_argument};

fn logits(model: &str, out: &Path) -> Vec<u8> {
    let prompt = &golden("tiny-llama-bitlinear")["prompts"][0];
    let finished = run(&["logits", "-m", model, "--ids", &ids(&prompt["ids"]), "--out", out.to_str().expect("UTF-8")]);
    assert_eq!(finished.status, Some(0), "{finished:?}");
    std::fs::read(out).expect("written")
}

#[test]
fn model_converted_to_any_format_gives_the_same_logits() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let input = model_argument("tiny-llama-bitlinear");
    let expected = logits(&input, &folder.path().join("expected.npy"));
    for (format, name) in [("gguf-i2_s", "a.gguf"), ("gguf-tq2_0", "b.gguf"), ("safetensors", "c"), ("mlx", "d")] {
        let out = folder.path().join(name);
        let out = out.to_str().expect("UTF-8");
        let finished = run(&["convert", &input, out, "--to", format]);
        assert_eq!(finished.status, Some(0), "{format}: {finished:?}");
        assert!(finished.stdout.contains("lossless"), "{format}: {finished:?}");
        assert_eq!(logits(out, &folder.path().join(format!("{name}.npy"))), expected, "{format}");
    }
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
