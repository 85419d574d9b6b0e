//! Completion scripts, and a reader that leaves before the end.

use std::process::Stdio;

use crate::command::{bitnet, run};

#[test]
fn completions_of_every_shell_name_the_verbs() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let finished = run(&["completions", shell]);
        assert_eq!(finished.status, Some(0), "{finished:?}");
        assert!(["embed", "pull"].iter().all(|verb| finished.stdout.contains(verb)), "{shell}");
    }
}

#[test]
fn output_whose_reader_left_is_not_an_error() {
    let home = tempfile::tempdir().expect("a temporary folder");
    let mut command = bitnet(home.path());
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    command.args(["completions", "zsh"]).stdout(writer).stderr(Stdio::piped());
    let output = command.output().expect("the binary starts");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}
