//! What a user reads when something is wrong.

use crate::command::run;

#[test]
fn misuse_exits_with_two() {
    assert_eq!(run(&["frobnicate"]).status, Some(2));
    assert_eq!(run(&["pull"]).status, Some(2));
    assert_eq!(run(&[]).status, Some(2));
}

#[test]
fn hub_name_that_is_none_says_how_to_write_one() {
    let finished = run(&["pull", "hf:../etc"]);
    assert_eq!((finished.status, finished.stdout.as_str()), (Some(1), ""));
    insta::assert_snapshot!(finished.stderr, @r"
    error: `hf:../etc` does not name a model: a repository is `owner/name`, of letters, digits, `-`, `_` and `.`
    help: write hf:owner/name, hf:owner/name@revision or hf:owner/name:file.gguf
    ");
}

#[test]
fn model_that_is_not_there_says_what_models_may_be() {
    let stderr = ["no/such", "a/b/c", "hf:a"].map(|model| {
        let finished = run(&["inspect", model]);
        assert_eq!((finished.status, finished.stdout.as_str()), (Some(1), ""));
        finished.stderr
    });
    insta::assert_snapshot!(stderr.join("\n"));
}

#[test]
fn file_that_is_no_model_is_told_apart() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("x");
    let argument = path.to_str().expect("UTF-8");
    for bytes in [&b""[..], b"GGUF", b"PK\x03\x04", b"hello, world"] {
        std::fs::write(&path, bytes).expect("written");
        let finished = run(&["run", "-m", argument, "text"]);
        assert_eq!(finished.status, Some(1), "{finished:?}");
        assert!(finished.stderr.starts_with("error: cannot open "), "{finished:?}");
    }
}
