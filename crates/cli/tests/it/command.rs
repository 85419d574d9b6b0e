//! Starts `bitnet` in an environment of its own, and holds what came of it.

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
    let Output { status, stdout, stderr } = command.output().expect("the binary starts");
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
