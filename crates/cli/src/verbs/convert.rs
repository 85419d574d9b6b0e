//! `bitnet convert`: the same model in another file format. What is written and what is lost is decided in
//! `bitnet_checkpoint::convert`; here it is asked for and reported.

use std::io::Write;
use std::path::PathBuf;

use bitnet_checkpoint::{ConvertProgress, ConvertReport, ConvertStage, ConvertTarget, ExistingOutput, convert};
use clap::{Args, ValueEnum};
use serde_json::json;

use crate::arguments::{GlobalArguments, OpenArguments};
use crate::model_source::ModelSource;
use crate::open::open_source;
use crate::size;
use crate::terminal::{Output, Style, Terminal};

/// Losses printed one by one: most say the same of another layer.
const LOSSES_SHOWN_MAX: usize = 8;

/// Write a model in another file format
#[derive(Debug, Args)]
#[command(after_help = "Example: bitnet convert hf:microsoft/bitnet-b1.58-2B-4T 2b4t.gguf --to gguf-i2_s")]
pub(crate) struct ConvertArguments {
    /// Folder, .gguf file, hf:owner/name[@revision][:file.gguf], or `embedded`
    #[arg(value_name = "IN")]
    input: String,
    /// The file (gguf-…) or folder (safetensors, mlx) to write
    #[arg(value_name = "OUT")]
    out: PathBuf,
    /// The format to write
    #[arg(long, value_enum)]
    to: Format,
    #[command(flatten)]
    open: OpenArguments,
    /// Replace what is at OUT
    #[arg(long)]
    overwrite: bool,
    /// Print what was written and lost as JSON
    #[arg(long)]
    json: bool,
}

/// Formats that can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// GGUF for bitnet.cpp: 2 bits a weight, one scale a tensor
    #[value(name = "gguf-i2_s")]
    GgufI2S,
    /// GGUF for llama.cpp: 2.06 bits a weight
    #[value(name = "gguf-tq2_0")]
    GgufTq2_0,
    /// GGUF for llama.cpp: 1.69 bits a weight
    #[value(name = "gguf-tq1_0")]
    GgufTq1_0,
    /// GGUF: 2.25 bits a weight, one scale for 64
    #[value(name = "gguf-q2_0")]
    GgufQ2_0,
    /// GGUF for PrismML's llama.cpp: 2.13 bits a weight, one scale for 128
    #[value(name = "gguf-pq2_0")]
    GgufPq2_0,
    /// A Hugging Face folder
    Safetensors,
    /// A folder for MLX
    Mlx,
}

impl From<Format> for ConvertTarget {
    fn from(format: Format) -> Self {
        match format {
            Format::GgufI2S => Self::GgufI2S,
            Format::GgufTq2_0 => Self::GgufTq2_0,
            Format::GgufTq1_0 => Self::GgufTq1_0,
            Format::GgufQ2_0 => Self::GgufQ2_0,
            Format::GgufPq2_0 => Self::GgufPq2_0,
            Format::Safetensors => Self::Safetensors,
            Format::Mlx => Self::Mlx,
        }
    }
}

/// Converts and reports.
pub(crate) fn perform(arguments: &ConvertArguments, global: &GlobalArguments, terminal: &Terminal) -> anyhow::Result<()> {
    let source: ModelSource = arguments.input.parse()?;
    let checkpoint = open_source(&source, arguments.open, global, terminal)?;
    let existing = if arguments.overwrite { ExistingOutput::Replace } else { ExistingOutput::Refuse };
    let bar = terminal.steps_bar(1, "");
    let mut progress = |progress: ConvertProgress| {
        bar.set_message(if progress.stage == ConvertStage::Examining { "examining" } else { "writing" });
        bar.set_length(progress.n_total as u64);
        bar.set_position(progress.n_done as u64);
    };
    let outcome = convert(&checkpoint, &arguments.out, arguments.to.into(), existing, &mut progress);
    bar.finish_and_clear();
    let report = outcome?;
    if arguments.json {
        writeln!(Output, "{}", to_json(arguments, &report))?;
    } else {
        print(arguments, &report, terminal)?;
    }
    Ok(())
}

fn to_json(arguments: &ConvertArguments, report: &ConvertReport) -> serde_json::Value {
    let losses: Vec<_> = report.losses.iter().map(|loss| json!({ "tensor": loss.tensor, "what": loss.what })).collect();
    json!({ "out": arguments.out, "n_tensors": report.n_tensors, "size_bytes": report.size_bytes, "losses": losses })
}

fn print(arguments: &ConvertArguments, report: &ConvertReport, terminal: &Terminal) -> std::io::Result<()> {
    let verdict = if report.losses.is_empty() { "lossless" } else { "with losses" };
    let (n_tensors, size) = (report.n_tensors, size::bytes(report.size_bytes));
    writeln!(Output, "{}: {n_tensors} tensors, {size}, {}", arguments.out.display(), terminal.on_stdout(Style::Bold, verdict))?;
    for loss in report.losses.iter().take(LOSSES_SHOWN_MAX) {
        match &loss.tensor {
            Some(tensor) => writeln!(Output, "  lost: {tensor}: {}", loss.what)?,
            None => writeln!(Output, "  lost: {}", loss.what)?,
        }
    }
    match report.losses.len().saturating_sub(LOSSES_SHOWN_MAX) {
        0 => Ok(()),
        n_more => writeln!(Output, "  and {n_more} more, which --json lists"),
    }
}
