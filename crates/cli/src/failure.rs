//! How the command fails: `error:` with the cause chain, `help:` with what to do next, and the exit status.
//!
//! Exit status: 0 done (also when the reader of standard output left early), 1 failed, 2 misused (unknown flag or verb).

use std::io::{self, Write};
use std::process::ExitCode;

use thiserror::Error;

use crate::hub::HubError;
use crate::model_source::ModelSourceError;
use crate::terminal::{Style, Terminal, is_reader_left};

/// Something that only the command line can get wrong, with what to do about it.
#[derive(Debug, Error)]
#[error("{what}")]
pub(crate) struct Misuse {
    what: String,
    help: String,
}

impl Misuse {
    /// `what` is wrong; `help` sets it right.
    pub(crate) fn new(what: impl Into<String>, help: impl Into<String>) -> Self {
        Self { what: what.into(), help: help.into() }
    }
}

/// Ends the program.
pub(crate) fn exit_code(outcome: anyhow::Result<()>, terminal: &Terminal) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_reader_left(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // If standard error is gone too, there is nobody to tell.
            let _ = report(&error, terminal, &mut io::stderr().lock());
            ExitCode::FAILURE
        }
    }
}

fn report(error: &anyhow::Error, terminal: &Terminal, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{} {error}", terminal.on_stderr(Style::Error, "error:"))?;
    let mut said = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        // Many errors print their source's text as their own.
        if !said.contains(&cause) {
            writeln!(out, "  {} {cause}", terminal.on_stderr(Style::Dim, "cause:"))?;
        }
        said = cause;
    }
    match error.chain().find_map(help) {
        Some(help) => writeln!(out, "{} {help}", terminal.on_stderr(Style::Accent, "help:")),
        None => Ok(()),
    }
}

/// What to do about one error of the chain.
fn help(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    if let Some(misuse) = error.downcast_ref::<Misuse>() {
        return Some(misuse.help.clone());
    }
    if let Some(error) = error.downcast_ref::<ModelSourceError>() {
        return Some(error.help());
    }
    if let Some(error) = error.downcast_ref::<HubError>() {
        return Some(error.help());
    }
    None
}
