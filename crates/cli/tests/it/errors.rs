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
