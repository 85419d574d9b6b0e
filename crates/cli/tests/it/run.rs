//! `bitnet run` on the embedded model, through arguments and pipes.

use serde_json::Value;

use crate::command::{Finished, run, run_piped};
use crate::fixture::{golden, ids, model_argument};

fn json(finished: &Finished) -> Value {
    assert_eq!(finished.status, Some(0), "{finished:?}");
    serde_json::from_str(&finished.stdout).expect("one JSON object")
}

#[test]
fn run_without_a_model_continues_the_prompt_and_tells_rates() {
    let finished = run(&["run", "Once upon a time", "-n", "8", "--greedy"]);
    assert_eq!(finished.status, Some(0), "{finished:?}");
    assert!(finished.stdout.ends_with('\n') && finished.stdout.len() > 8, "{finished:?}");
    assert!(finished.stderr.starts_with("prefill ") && finished.stderr.contains("decode 7 tokens"), "{finished:?}");
    let quiet = run(&["run", "Once upon a time", "-n", "8", "--greedy", "-q"]);
    assert_eq!((quiet.stdout, quiet.stderr.as_str()), (finished.stdout, ""));
}

#[test]
fn run_reads_a_piped_prompt_and_gives_the_same() {
    let argument = json(&run(&["run", "Once upon a time", "-n", "6", "--seed", "5", "--json"]));
    for input in [&b"Once upon a time\n"[..], b"Once upon a time\r\n", b"Once upon a time"] {
        let mut piped = json(&run_piped(&["run", "-n", "6", "--seed", "5", "--json"], input));
        for timing in ["prefill", "decode"] {
            piped[timing] = argument[timing].clone();
        }
        assert_eq!(piped, argument);
    }
    assert_eq!(argument["token_ids"].as_array().map(Vec::len), Some(6));
    assert_eq!(argument["finish"], "length");
}

#[test]
fn run_on_any_device_thread_count_or_instruction_set_gives_the_same_text() {
    let tokens = |flags: &[&str]| {
        let arguments = [&["run", "The king said", "-n", "5", "--seed", "1", "--json"], flags].concat();
        json(&run(&arguments))["token_ids"].clone()
    };
    let expected = tokens(&["-t", "1"]);
    for flags in [&["-t", "2"][..], &["--isa", "scalar"], &["--device", "reference"]] {
        assert_eq!(tokens(flags), expected, "{flags:?}");
    }
}

#[test]
fn run_ends_before_a_stop_string() {
    let whole = json(&run(&["run", "Once upon a time", "-n", "20", "--greedy", "--json"]));
    let text = whole["text"].as_str().expect("a string");
    let stop: String = text.chars().skip(text.chars().count() / 2).take(6).collect();
    let stopped = json(&run(&["run", "Once upon a time", "-n", "20", "--greedy", "--json", "--stop", &stop]));
    assert_eq!(stopped["finish"], "stop_string");
    assert_eq!(stopped["text"].as_str(), text.split(&stop).next());
}

#[test]
fn run_in_chat_form_uses_the_template() {
    let finished = json(&run(&["run", "Hello!", "--chat", "-n", "3", "--greedy", "--json"]));
    let raw = json(&run(&["run", "Hello!", "-n", "3", "--greedy", "--json"]));
    let n_tokens = |value: &Value| value["prompt_token_ids"].as_array().map(Vec::len);
    assert!(n_tokens(&finished) > n_tokens(&raw));
}

#[test]
fn run_of_a_model_without_a_tokenizer_takes_ids() {
    let name = "tiny-llama-bitlinear";
    let prompt = &golden(name)["prompts"][0];
    let arguments = ["run", "-m", &model_argument(name), "--ids", &ids(&prompt["ids"]), "-n", "4", "--greedy"];
    let finished = run(&arguments);
    let expected: Vec<Value> = prompt["greedy_48"].as_array().expect("a list").iter().take(4).cloned().collect();
    assert_eq!(finished.stdout.trim_end(), ids(&Value::Array(expected)), "{finished:?}");
    let refused = run(&["run", "-m", &model_argument(name), "text"]);
    insta::assert_snapshot!(refused.stderr);
}

#[test]
fn run_without_a_prompt_says_how_to_give_one() {
    let finished = run(&["run"]);
    assert_eq!(finished.status, Some(1));
    insta::assert_snapshot!(finished.stderr);
    assert_eq!(run_piped(&["run"], b"\xff\xfe").status, Some(1), "not UTF-8");
}

#[test]
fn sampling_parameter_out_of_range_is_named() {
    insta::assert_snapshot!(run(&["run", "x", "--top-p", "2"]).stderr);
    for (flag, name) in [
        ("--temperature", "temperature"),
        ("--top-p", "top_p"),
        ("--min-p", "min_p"),
        ("--repetition-penalty", "repetition_penalty"),
        ("--presence-penalty", "presence_penalty"),
        ("--frequency-penalty", "frequency_penalty"),
    ] {
        let refused = run(&["run", "x", flag, "-3"]);
        assert_eq!(refused.status, Some(1), "{refused:?}");
        assert!(refused.stderr.starts_with(&format!("error: sampling parameter `{name}` is -3, not in ")), "{refused:?}");
    }
    for flag in ["--top-k", "--seed"] {
        let refused = run(&["run", "x", flag, "-3"]);
        assert!(refused.status == Some(2) && refused.stderr.contains(&format!("invalid value '-3' for '{flag} ")), "{refused:?}");
    }
    assert_eq!(run(&["run", "x", "--greedy", "--temperature", "1"]).status, Some(2));
    assert_eq!(run(&["run", "x", "-t", "0"]).status, Some(2));
}

#[test]
fn prompt_longer_than_the_context_is_refused_with_its_length() {
    let name = "tiny-bitnet-online";
    let long = vec!["1"; 5000].join(",");
    let finished = run(&["run", "-m", &model_argument(name), "--ids", &long]);
    assert_eq!(finished.status, Some(1));
    insta::assert_snapshot!(finished.stderr);
}
