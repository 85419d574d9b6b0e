//! `bitnet logits`: all logits of a sequence as a NumPy file, to check this implementation against any other.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use bitnet_model::text::{AddSpecial, Tokenizer};
use clap::Args;
use serde_json::json;

use crate::arguments::{DeviceArguments, GlobalArguments, ModelArguments};
use crate::npy::NpyWriter;
use crate::open::{load_session, open_checkpoint};
use crate::terminal::{Output, Terminal};
use crate::token_input::parse_ids;

/// Write the logits of every position of a sequence, float32 [n_tokens, n_vocab], as a NumPy file
#[derive(Debug, Args)]
pub(crate) struct LogitsArguments {
    #[command(flatten)]
    model: ModelArguments,
    /// Token ids, as 1,2,3
    #[arg(long, value_name = "IDS", required_unless_present = "text")]
    ids: Option<String>,
    /// A text instead of ids
    #[arg(long, conflicts_with = "ids")]
    text: Option<String>,
    /// The file to write
    #[arg(long, value_name = "F.npy")]
    out: PathBuf,
    /// Print what was written as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArguments,
}

/// Scores the sequence and writes the file.
pub(crate) fn perform(arguments: &LogitsArguments, global: &GlobalArguments, terminal: &Terminal) -> anyhow::Result<()> {
    let checkpoint = open_checkpoint(&arguments.model, global, terminal)?;
    let token_ids = match (&arguments.ids, &arguments.text) {
        (Some(ids), _) => parse_ids(ids)?,
        (None, text) => Tokenizer::load(checkpoint.tokenizer_files())?.encode(text.as_deref().unwrap_or_default(), AddSpecial::Yes)?,
    };
    let mut session = load_session(&checkpoint, &arguments.device.for_any_sampling(), token_ids.len(), terminal)?;
    let config = session.runner().config();
    let width = if config.last_token_pooling { config.hidden_size } else { config.n_vocab };
    let context = || arguments.out.display().to_string();
    let mut file = NpyWriter::create(&arguments.out, token_ids.len(), width).with_context(context)?;
    let mut written = Ok(());
    session.score(&token_ids, &mut |_, row| {
        if written.is_ok() {
            written = file.write(row);
        }
    })?;
    written.and_then(|()| file.finish()).with_context(context)?;
    let shape = [token_ids.len(), width];
    if arguments.json {
        writeln!(
            Output,
            "{}",
            json!({ "out": arguments.out, "shape": shape, "token_ids": token_ids.iter().map(|token| token.0).collect::<Vec<_>>() })
        )?;
    } else {
        terminal.note(&format!("{}: float32 {shape:?}", arguments.out.display()));
    }
    Ok(())
}
