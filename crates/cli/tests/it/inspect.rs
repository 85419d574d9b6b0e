//! `bitnet inspect`, for people and for programs.

use serde_json::Value;

use crate::command::run;
use crate::fixture::model_argument;

#[test]
fn inspection_of_a_model_is_as_printed() {
    for name in ["tiny-bitnet-online", "tiny-llama-bitlinear", "tiny-qwen3-group128"] {
        let model = model_argument(name);
        let finished = run(&["inspect", &model]);
        assert_eq!(finished.status, Some(0), "{finished:?}");
        insta::assert_snapshot!(format!("inspect_{name}"), finished.stdout.replace(&model, "MODEL"));
    }
}

#[test]
fn inspection_as_json_lists_every_tensor() {
    let finished = run(&["inspect", "--json"]);
    assert_eq!(finished.status, Some(0), "{finished:?}");
    let inspection: Value = serde_json::from_str(&finished.stdout).expect("JSON");
    assert_eq!(inspection["config"]["architecture"], "bitnet");
    let tensors = inspection["tensors"].as_array().expect("a list");
    let ternary = tensors.iter().filter(|tensor| !tensor["ternary"].is_null()).count();
    assert_eq!(ternary, 12 * 7, "seven projections in each of twelve layers");
    assert!(inspection["totals"]["share_of_zeros"].as_f64().is_some_and(|share| (0.3..0.45).contains(&share)));
    let all = run(&["inspect", "--all"]).stdout;
    assert_eq!(all.lines().filter(|line| line.contains("down_proj")).count(), 12);
}
