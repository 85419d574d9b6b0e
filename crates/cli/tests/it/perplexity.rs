//! `bitnet perplexity`: of ids against the goldens, and of a text.

use serde_json::Value;

use crate::command::run;
use crate::fixture::{golden, model_argument};

fn measured(arguments: &[&str]) -> Value {
    let finished = run(&[&["perplexity", "--json"], arguments].concat());
    assert_eq!(finished.status, Some(0), "{finished:?}");
    serde_json::from_str(&finished.stdout).expect("JSON")
}

#[test]
fn perplexity_of_ids_is_that_of_their_likelihoods() {
    let name = "tiny-llama-bitlinear";
    let golden = golden(name);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("ids.json");
    let path = path.to_str().expect("UTF-8");
    let chunks: Vec<&Value> = golden["prompts"].as_array().expect("a list").iter().map(|prompt| &prompt["ids"]).collect();
    std::fs::write(path, serde_json::to_vec(&chunks).expect("JSON")).expect("written");
    let model = model_argument(name);
    let result = measured(&["-m", &model, "--ids", path]);
    let n_tokens: usize = chunks.iter().map(|chunk| chunk.as_array().expect("a list").len() - 1).sum();
    assert_eq!(result["n_tokens"], n_tokens);
    let (nll, perplexity) = (result["nll"].as_f64().expect("a number"), result["perplexity"].as_f64().expect("a number"));
    assert!((perplexity.ln() - nll / n_tokens as f64).abs() < 1e-12);
    std::fs::write(path, "[[1, 99999999]]").expect("written");
    let refused = run(&["perplexity", "-m", &model, "--ids", path]);
    insta::assert_snapshot!(refused.stderr);
}

#[test]
fn perplexity_of_a_text_depends_on_the_length_of_chunks() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("text.txt");
    std::fs::write(&path, "Once upon a time there was a king who had three sons, and the youngest was the wisest of all.")
        .expect("written");
    let path = path.to_str().expect("UTF-8");
    let (whole, chunked) = (measured(&[path]), measured(&[path, "--context", "8"]));
    let number = |value: &Value, key: &str| value[key].as_f64().expect("a number");
    assert!(number(&whole, "perplexity") < number(&chunked, "perplexity"), "less context predicts worse");
    assert!(number(&chunked, "n_chunks") > 2.0);
    let refused = run(&["perplexity", path, "--context", "1000000"]);
    assert_eq!(refused.status, Some(1));
    std::fs::write(path, "").expect("written");
    insta::assert_snapshot!(run(&["perplexity", path]).stderr);
}
