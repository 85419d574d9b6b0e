//! `bitnet logits`: the file's shape, and what it refuses.

use crate::command::run;
use crate::fixture::model_argument;

#[test]
fn logits_file_has_a_row_for_each_token() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("x.npy");
    let out_argument = out.to_str().expect("UTF-8");
    let finished = run(&["logits", "-m", &model_argument("tiny-bitnet-online"), "--ids", "1,2,3", "--out", out_argument, "--json"]);
    assert_eq!(finished.status, Some(0), "{finished:?}");
    let report: serde_json::Value = serde_json::from_str(&finished.stdout).expect("JSON");
    let n_vocab = report["shape"][1].as_u64().expect("a number") as usize;
    assert_eq!(report["shape"][0], 3);
    let bytes = std::fs::read(&out).expect("written");
    assert_eq!(bytes.len(), 128 + 3 * n_vocab * 4);
    let text = run(&["logits", "--text", "Once", "--out", out_argument]);
    assert_eq!(text.status, Some(0), "{text:?}");
}

#[test]
fn wrong_ids_are_named_and_leave_no_file() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("x.npy");
    let out = out.to_str().expect("UTF-8");
    let stderr = ["1,x", "1,99999999", ""].map(|ids| {
        let finished = run(&["logits", "-m", &model_argument("tiny-bitnet-online"), "--ids", ids, "--out", out]);
        assert_eq!(finished.status, Some(1));
        finished.stderr
    });
    insta::assert_snapshot!(stderr.join("\n"));
    assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 0);
}
