//! `bitnet perplexity`: how well a model predicts a text. Disjoint chunks of fixed length, each scored from nothing, every token
//! but a chunk's first counted: what `transformers` users compute, and not llama.cpp's second halves.

use std::io::Write;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use bitnet_checkpoint::Checkpoint;
use bitnet_model::limits::TEXT_BYTES_MAX;
use bitnet_model::text::{AddSpecial, Tokenizer};
use bitnet_model::{RunnerError, Session, TokenId};
use clap::Args;
use serde_json::json;

use crate::arguments::{DeviceArguments, GlobalArguments, ModelArguments};
use crate::failure::Misuse;
use crate::open::{load_session, open_checkpoint, require_text_model};
use crate::terminal::{Output, Terminal};
use crate::token_input::read_ids_file;

/// Tokens of a chunk, where the model has room for them.
const DEFAULT_CONTEXT: usize = 2048;

/// Measure how well a model predicts a text
#[derive(Debug, Args)]
pub(crate) struct PerplexityArguments {
    #[command(flatten)]
    model: ModelArguments,
    /// The text to predict
    #[arg(value_name = "FILE", required_unless_present = "ids")]
    file: Option<PathBuf>,
    /// Token ids instead of text: a JSON file like [[1, 2, 3], [4, 5]], one chunk a list
    #[arg(long, value_name = "FILE", conflicts_with_all = ["file", "context"])]
    ids: Option<PathBuf>,
    /// Tokens of a chunk; by default 2048, or the model's context if that is shorter
    #[arg(short, long, value_name = "N")]
    context: Option<NonZeroUsize>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArguments,
}

/// What scoring adds up.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Score {
    /// Negative log-likelihood, in nats.
    nll: f64,
    /// Predicted tokens.
    n_tokens: usize,
}

impl Score {
    fn perplexity(self) -> f64 {
        (self.nll / self.n_tokens as f64).exp()
    }
}

/// Scores all chunks and prints the result.
pub(crate) fn perform(arguments: &PerplexityArguments, global: &GlobalArguments, terminal: &Terminal) -> anyhow::Result<()> {
    let checkpoint = open_checkpoint(&arguments.model, global, terminal)?;
    require_text_model(&checkpoint)?;
    let chunks = match (&arguments.ids, &arguments.file) {
        (Some(path), _) => read_ids_file(path)?,
        (None, Some(path)) => text_chunks(path, &checkpoint, arguments.context)?,
        // The parser asks for one of the two.
        (None, None) => Vec::new(),
    };
    let longest = chunks.iter().map(Vec::len).max().unwrap_or(0);
    if longest < 2 {
        return Err(Misuse::new("there is nothing to predict", "give a text of at least two tokens").into());
    }
    let n_vocab = checkpoint.config().n_vocab;
    if let Some(token) = chunks.iter().flatten().find(|token| token.index() >= n_vocab) {
        let what = format!("token id {token} is outside the vocabulary of {n_vocab}");
        return Err(Misuse::new(what, "the ids are another model's").into());
    }
    let mut session = load_session(&checkpoint, &arguments.device.for_any_sampling(), longest, terminal)?;
    let bar = terminal.steps_bar(chunks.len() as u64, "scoring");
    let start = Instant::now();
    let mut score = Score::default();
    for chunk in chunks.iter().filter(|chunk| chunk.len() > 1) {
        score_chunk(&mut session, chunk, &mut score)?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    let seconds = start.elapsed().as_secs_f64();
    if arguments.json {
        let result = json!({
            "model": arguments.model.name(), "perplexity": score.perplexity(), "nll": score.nll, "n_tokens": score.n_tokens,
            "n_chunks": chunks.len(), "seconds": seconds,
        });
        writeln!(Output, "{result}")?;
    } else {
        let (nll, n_tokens) = (score.nll, score.n_tokens);
        writeln!(Output, "perplexity {:.4}  ({:.5} nats a token, {n_tokens} tokens)", score.perplexity(), nll / n_tokens as f64)?;
    }
    Ok(())
}

/// The text's tokens in chunks of `context`, each after the token that begins a sequence, if the model uses one.
fn text_chunks(path: &Path, checkpoint: &Checkpoint, context: Option<NonZeroUsize>) -> anyhow::Result<Vec<Vec<TokenId>>> {
    let trained = checkpoint.config().context_length;
    let context = context.map_or(DEFAULT_CONTEXT.min(trained), usize::from);
    if context > trained {
        let what = format!("chunks of {context} tokens are longer than the model's context of {trained}");
        return Err(Misuse::new(what, "ask for a smaller --context").into());
    }
    let tokenizer = Tokenizer::load(checkpoint.tokenizer_files())?;
    let text = read_text(path)?;
    // What the tokenizer puts before an empty text belongs before every chunk.
    let beginning = tokenizer.encode("", AddSpecial::Yes)?;
    let beginning: Vec<TokenId> = beginning.into_iter().take_while(|&token| Some(token) == tokenizer.bos()).collect();
    let tokens = tokenizer.encode(&text, AddSpecial::No)?;
    let n_text_tokens = context.saturating_sub(beginning.len()).max(1);
    Ok(tokens.chunks(n_text_tokens).map(|chunk| [beginning.as_slice(), chunk].concat()).collect())
}

fn read_text(path: &Path) -> anyhow::Result<String> {
    let context = || format!("cannot read {}", path.display());
    let length = std::fs::metadata(path).with_context(context)?.len();
    if length > TEXT_BYTES_MAX as u64 {
        let what = format!("{} is {length} bytes long, more than {TEXT_BYTES_MAX}", path.display());
        return Err(Misuse::new(what, "split it into several files").into());
    }
    std::fs::read_to_string(path).with_context(context)
}

fn score_chunk(session: &mut Session, chunk: &[TokenId], score: &mut Score) -> Result<(), RunnerError> {
    session.truncate(0);
    // The last token's own prediction is of nothing in the text.
    let (predicting, predicted) = (&chunk[..chunk.len() - 1], &chunk[1..]);
    session.score(predicting, &mut |index, logits| {
        score.nll += negative_log_likelihood(logits, predicted[index]);
        score.n_tokens += 1;
    })
}

/// −ln softmax(logits)[token], in f64: sums over a vocabulary must not be the measurement's error.
fn negative_log_likelihood(logits: &[f32], token: TokenId) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - largest).exp()).sum();
    sum.ln() - f64::from(logits[token.index()] - largest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn likelihood_of_equal_logits_is_that_of_a_die() {
        let nll = negative_log_likelihood(&[3.0; 6], TokenId(2));
        assert!((nll - 6f64.ln()).abs() < 1e-12);
        let sure = negative_log_likelihood(&[0.0, 200.0], TokenId(1));
        assert!(sure.abs() < 1e-12);
        assert_eq!(negative_log_likelihood(&[0.0, 200.0], TokenId(0)), 200.0);
    }
}
