//! Running other programs: echoed, checked, and with errors that say which command failed. Nothing goes through a shell.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The cargo that runs us, so that nested calls use the same toolchain.
pub(crate) fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// The command as a person would type it.
pub(crate) fn shown(command: &Command) -> String {
    let program = PathBuf::from(command.get_program());
    let name = program.file_stem().unwrap_or(command.get_program()).to_string_lossy().into_owned();
    command.get_args().map(OsStr::to_string_lossy).fold(name, |line, argument| line + " " + &argument)
}

/// Runs to the end with the terminal's own streams; a failure is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    println!("$ {}", shown(command));
    let status = command.status().with_context(|| format!("cannot start `{}`", shown(command)))?;
    if !status.success() {
        bail!("`{}` failed ({status})", shown(command));
    }
    Ok(())
}

/// Runs silently and returns what it printed on standard output; a failure is an error that carries its standard error.
pub(crate) fn output(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start `{}`", shown(command)))?;
    if !output.status.success() {
        bail!("`{}` failed ({}): {}", shown(command), output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output.stdout)
}

/// Same, as text.
pub(crate) fn output_text(command: &mut Command) -> Result<String> {
    String::from_utf8(output(command)?).with_context(|| format!("`{}` printed something other than text", shown(command)))
}

/// Runs with standard output read line by line. The result says whether the command succeeded.
pub(crate) fn run_lines(command: &mut Command, mut on_line: impl FnMut(&str)) -> Result<bool> {
    println!("$ {}", shown(command));
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start `{}`", shown(command)))?;
    let stdout = child.stdout.take().context("standard output was asked for and not given")?;
    for line in BufReader::new(stdout).lines() {
        on_line(&line.context("cannot read what the command prints")?);
    }
    Ok(child.wait().context("cannot wait for the command")?.success())
}

/// Whether the command starts and succeeds; prints nothing.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failing_command_is_an_error_that_names_it() {
        let error = output(cargo().arg("no-such-verb")).expect_err("unknown verb");
        assert!(error.to_string().starts_with("`cargo no-such-verb` failed"), "{error}");
        let error = run(&mut Command::new("no-such-program")).expect_err("no such program");
        assert_eq!(error.to_string(), "cannot start `no-such-program`");
    }

    #[test]
    fn lines_of_a_command_are_read_one_by_one() {
        let mut lines = Vec::new();
        let succeeded = run_lines(cargo().arg("--version"), |line| lines.push(line.to_string())).expect("runs");
        assert!(succeeded && lines.len() == 1 && lines[0].starts_with("cargo "), "{lines:?}");
    }
}
