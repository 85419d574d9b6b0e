//! `bitnet bench`: its table, its JSON, and shapes.

use serde_json::Value;

use crate::command::run;
use crate::fixture::{model, model_argument};

#[test]
fn bench_prints_a_row_for_each_test_and_thread_count() {
    let finished = run(&["bench", "-m", &model_argument("tiny-bitnet-online"), "-p", "8", "-n", "4", "-t", "1,2", "-r", "2"]);
    assert_eq!(finished.status, Some(0), "{finished:?}");
    let lines: Vec<&str> = finished.stdout.lines().collect();
    assert_eq!(lines.len(), 2 + 4 + 1 + 3, "a row for each test, an empty line, roofs for each number of threads, memory: {finished:?}");
    assert!(lines[7].starts_with("roofs at 1 threads: ") && lines[9].starts_with("peak memory "), "{finished:?}");
    assert!(lines[2].contains("| pp8 |") || lines[2].contains("|  pp8 |"), "{finished:?}");
    let json = run(&["bench", "-m", &model_argument("tiny-bitnet-online"), "-p", "0", "-n", "4", "-t", "1", "--json"]);
    let rows: Value = serde_json::from_str(&json.stdout).expect("JSON");
    assert_eq!(rows.as_array().map(Vec::len), Some(1), "-p 0 leaves the test out");
    assert_eq!((&rows[0]["test"], &rows[0]["n_threads"]), (&Value::from("tg4"), &Value::from(1)));
    assert_eq!(rows[0]["tokens_per_second"].as_array().map(Vec::len), Some(3));
}

#[test]
fn bench_makes_a_model_of_the_shape_in_a_configuration() {
    let config = model("tiny-qwen3-group128").join("config.json");
    let finished = run(&["bench", "--shape", config.to_str().expect("UTF-8"), "-p", "4", "-n", "0", "-r", "1", "-t", "1"]);
    assert_eq!(finished.status, Some(0), "{finished:?}");
    assert!(finished.stdout.contains("tiny-qwen3-group128/config.json"), "{finished:?}");
}

#[test]
fn unknown_shape_lists_those_that_are_known() {
    let finished = run(&["bench", "--shape", "70b"]);
    assert_eq!(finished.status, Some(1));
    insta::assert_snapshot!(finished.stderr);
    assert_eq!(run(&["bench", "--shape", "2b4t", "-m", "x"]).status, Some(2));
    let long = run(&["bench", "--shape", "0.7b", "-p", "100000"]);
    assert!(long.stderr.contains("longer than the model's context"), "{long:?}");
}

#[test]
fn bench_of_several_sequences_shares_the_weights() {
    let finished =
        run(&["bench", "-m", &model_argument("tiny-bitnet-online"), "-p", "0", "-n", "4", "-t", "1", "-b", "1,4", "--format", "csv"]);
    assert_eq!(finished.status, Some(0), "{finished:?}");
    let rows: Vec<Vec<&str>> = finished.stdout.lines().map(|line| line.split(',').collect()).collect();
    let column = |name: &str| rows[0].iter().position(|heading| *heading == name).expect("a column");
    assert_eq!(rows.iter().skip(1).map(|row| row[column("test")]).collect::<Vec<_>>(), ["tg4", "tg4 b4"]);
    let bytes: Vec<f64> = rows.iter().skip(1).map(|row| row[column("weight_bytes_per_token")].parse().expect("a number")).collect();
    assert!(bytes[0] > 0.0 && bytes[1] == bytes[0] / 4.0, "{finished:?}");
}
