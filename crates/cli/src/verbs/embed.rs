//! `bitnet embed`: texts to vectors, by models made for that. A text's vector is the last token's hidden state after the final norm,
//! at length 1, so that a dot product is the cosine. It puts no instruction before a text: what a model wants there is its card's to say.

use std::io::{IsTerminal, Write};

use anyhow::Context;
use bitnet_checkpoint::Checkpoint;
use bitnet_model::text::{AddSpecial, Tokenizer};
use bitnet_model::{EmbeddingLength, TokenId};
use clap::Args;
use serde::Serialize;

use crate::arguments::{DeviceArguments, GlobalArguments, ModelArguments};
use crate::failure::Misuse;
use crate::open::{load_session, open_checkpoint, require_embedding_model};
use crate::standard_input;
use crate::terminal::{Output, Terminal};
use crate::token_input::parse_ids;

/// Turn texts into vectors: one line a text, a JSON list of numbers
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  bitnet embed -m hf:microsoft/BitNet-embedding-0.6B \"a fox\" \"an old king\"")]
pub(crate) struct EmbedArguments {
    /// The texts; without any, or as -, standard input, a text a line
    #[arg(value_name = "TEXT", conflicts_with = "ids")]
    texts: Vec<String>,
    #[command(flatten)]
    model: ModelArguments,
    /// Token ids instead of texts, as 1,2,3; may be given several times
    #[arg(long, value_name = "IDS")]
    ids: Vec<String>,
    /// Leave the vectors as the model computed them, not scaled to length 1
    #[arg(long, alias = "no-normalise")]
    no_normalize: bool,
    /// Print one JSON object when done, instead of a line for each text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArguments,
}

/// What `--json` prints. Numbers stay float32, so that each is printed as short as it can be and read back as the same bits.
#[derive(Serialize)]
struct Report<'a> {
    model: &'a str,
    width: usize,
    normalized: bool,
    embeddings: Vec<Embedding>,
}

#[derive(Serialize)]
struct Embedding {
    n_tokens: usize,
    values: Vec<f32>,
}

/// Embeds every text and prints its vector.
pub(crate) fn perform(arguments: &EmbedArguments, global: &GlobalArguments, terminal: &Terminal) -> anyhow::Result<()> {
    // Before the model is opened, which may take a download.
    let texts = if arguments.ids.is_empty() { texts(&arguments.texts)? } else { Vec::new() };
    let checkpoint = open_checkpoint(&arguments.model, global, terminal)?;
    require_embedding_model(&checkpoint)?;
    let sequences = if arguments.ids.is_empty() {
        encode(&checkpoint, &texts)?
    } else {
        arguments.ids.iter().map(|ids| parse_ids(ids)).collect::<anyhow::Result<_>>()?
    };
    let longest = sequences.iter().map(Vec::len).max().unwrap_or(0);
    let mut session = load_session(&checkpoint, &arguments.device, longest, terminal)?;
    let length = if arguments.no_normalize { EmbeddingLength::AsComputed } else { EmbeddingLength::One };
    let mut embeddings = Vec::new();
    for (index, token_ids) in sequences.iter().enumerate() {
        let values = session.embed(token_ids, length).with_context(|| format!("cannot embed text {}", index + 1))?;
        if arguments.json {
            embeddings.push(Embedding { n_tokens: token_ids.len(), values });
        } else {
            writeln!(Output, "{}", serde_json::to_string(&values)?)?;
        }
    }
    if arguments.json {
        let width = checkpoint.config().hidden_size;
        let report = Report { model: arguments.model.name(), width, normalized: !arguments.no_normalize, embeddings };
        writeln!(Output, "{}", serde_json::to_string(&report)?)?;
    }
    Ok(())
}

/// The arguments, or the lines of standard input.
fn texts(arguments: &[String]) -> anyhow::Result<Vec<String>> {
    let is_piped = matches!(arguments, [only] if only == "-");
    if !arguments.is_empty() && !is_piped {
        return Ok(arguments.to_vec());
    }
    let nothing = || Misuse::new("there is no text", "write bitnet embed -m MODEL \"a text\", or pipe texts into it, one a line");
    if !is_piped && std::io::stdin().is_terminal() {
        return Err(nothing().into());
    }
    let lines: Vec<String> = standard_input::read_text()?.lines().map(str::to_string).collect();
    if lines.is_empty() { Err(nothing().into()) } else { Ok(lines) }
}

fn encode(checkpoint: &Checkpoint, texts: &[String]) -> anyhow::Result<Vec<Vec<TokenId>>> {
    let tokenizer = Tokenizer::load(checkpoint.tokenizer_files())?;
    Ok(texts.iter().map(|text| tokenizer.encode(text, AddSpecial::Yes)).collect::<Result<_, _>>()?)
}
