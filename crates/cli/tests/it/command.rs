//! Starts `bitnet` in an environment of its own, and holds what came of it.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// What a run of the binary left.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) status: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// The binary, with nothing of the tester's own configuration.
pub(crate) fn bitnet(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bitnet"));
    command.env_clear().env("HOME", home).env("HF_HOME", home.join("hf")).env("XDG_STATE_HOME", home.join("state"));
    command.env("BITNET_DOWNLOAD_RETRIES", "1").stdin(Stdio::null());
    command
}

/// Runs `command` to its end.
pub(crate) fn finish(mut command: Command) -> Finished {
    finished(command.output().expect("the binary starts"))
}

fn finished(Output { status, stdout, stderr }: Output) -> Finished {
    let text = |bytes| String::from_utf8(bytes).expect("output is UTF-8");
    Finished { status: status.code(), stdout: text(stdout), stderr: text(stderr) }
}

/// Runs `bitnet arguments…` in an empty home.
pub(crate) fn run(arguments: &[&str]) -> Finished {
    let home = tempfile::tempdir().expect("a temporary folder");
    let mut command = bitnet(home.path());
    command.args(arguments);
    finish(command)
}

/// The same with `input` on standard input.
pub(crate) fn run_piped(arguments: &[&str], input: &[u8]) -> Finished {
    let home = tempfile::tempdir().expect("a temporary folder");
    let mut command = bitnet(home.path());
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary starts");
    child.stdin.take().expect("piped").write_all(input).expect("the binary reads");
    finished(child.wait_with_output().expect("the binary ends"))
}
