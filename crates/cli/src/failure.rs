//! How the command fails: `error:` with the cause chain, `help:` with what to do next, and the exit status.
//!
//! Exit status: 0 done (also when the reader of standard output left early), 1 failed, 2 misused (unknown flag or verb, an invalid
//! configuration that was to be checked).

use std::io::{self, Write};
use std::process::ExitCode;

use bitnet_checkpoint::CheckpointError;
use bitnet_model::batch::BatchError;
use bitnet_model::device::DeviceError;
use bitnet_model::text::TextError;
use bitnet_model::{LoadError, RunnerError};
use thiserror::Error;

use crate::hub::HubError;
use crate::model_source::ModelSourceError;
use crate::terminal::{Style, Terminal, is_reader_left};

/// Exit status of a command that cannot be carried out as it was given.
const MISUSED: u8 = 2;

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

/// A check that found something, all of which has been told.
#[derive(Debug, Error)]
#[error("the configuration is not valid: {n_faults} {}", if *n_faults == 1 { "error" } else { "errors" })]
pub(crate) struct Invalid {
    pub(crate) n_faults: usize,
}

/// Ends the program.
pub(crate) fn exit_code(outcome: anyhow::Result<()>, terminal: &Terminal) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_reader_left(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // If standard error is gone too, there is nobody to tell.
            let _ = report(&error, terminal, &mut io::stderr().lock());
            if error.is::<Invalid>() { ExitCode::from(MISUSED) } else { ExitCode::FAILURE }
        }
    }
}

/// Says what went wrong, why, and what to do.
pub(crate) fn report(error: &anyhow::Error, terminal: &Terminal, out: &mut dyn Write) -> io::Result<()> {
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
    // Errors that are another error's text reach the chain as themselves only here.
    let checkpoint = error.downcast_ref::<CheckpointError>().or(match error.downcast_ref::<LoadError>() {
        Some(LoadError::Checkpoint(error)) => Some(error),
        _ => None,
    });
    let device = error.downcast_ref::<DeviceError>().or(match (error.downcast_ref::<LoadError>(), error.downcast_ref::<RunnerError>()) {
        (Some(LoadError::Device(error)), _) | (_, Some(RunnerError::Device(error))) => Some(error),
        _ => None,
    });
    let runner = error.downcast_ref::<RunnerError>();
    let help = checkpoint.and_then(checkpoint_help).or(device.and_then(device_help)).or(runner.and_then(runner_help));
    help.or(error.downcast_ref::<TextError>().and_then(text_help)).map(str::to_string)
}

fn checkpoint_help(error: &CheckpointError) -> Option<&'static str> {
    match error {
        CheckpointError::NotAModel { .. } => {
            Some("MODEL is a folder with config.json and *.safetensors, a .gguf file, or hf:owner/name[@revision][:file.gguf]")
        }
        CheckpointError::NotTernary { .. } => Some(
            "bitnet runs models that were trained with ternary weights, such as hf:microsoft/bitnet-b1.58-2B-4T, \
             hf:tiiuae/Falcon-E-1B-Base or hf:prism-ml/Ternary-Bonsai-1.7B",
        ),
        CheckpointError::MissingTensor { .. } => Some("the file is not complete, or not of the architecture that it names: fetch it again"),
        CheckpointError::CannotRepresent { .. } => Some("`bitnet convert --help` lists other formats"),
        _ => None,
    }
}

fn device_help(error: &DeviceError) -> Option<&'static str> {
    match error {
        DeviceError::OutOfMemory { .. } => {
            Some("ask for fewer tokens (-n, -p, --context), or take a smaller model; `bitnet inspect` shows what one needs")
        }
        DeviceError::TableUnreadable { .. } => {
            Some("the model's file was changed, cut or became unreachable while it was in use: start again")
        }
        _ => None,
    }
}

fn runner_help(error: &RunnerError) -> Option<&'static str> {
    match error {
        RunnerError::Batch(error) => batch_help(error),
        RunnerError::NoPooling => Some("embeddings come from models made for them, such as hf:microsoft/BitNet-embedding-0.6B"),
        RunnerError::Device(_) | RunnerError::NotFinite { .. } => None,
    }
}

fn batch_help(error: &BatchError) -> Option<&'static str> {
    match error {
        BatchError::ContextExceeded { .. } => Some("shorten the prompt; `bitnet inspect` shows how long the model's context is"),
        BatchError::TokenOutsideVocabulary { .. } => Some("the ids are another model's"),
        BatchError::Empty => Some("give at least one token"),
        _ => None,
    }
}

fn text_help(error: &TextError) -> Option<&'static str> {
    match error {
        TextError::NoTokenizer => Some("give token ids with --ids, or put the model's tokenizer.json beside its config.json"),
        _ => None,
    }
}
