//! `bitnet perplexity`: how well a model predicts a text. Disjoint chunks of fixed length, each scored from nothing, every token
//! but a chunk's first counted: what `transformers` users compute, and not llama.cpp's second halves.

use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use serde_json::json;

use bitnet_model::{RunnerError, Session, TokenId};

use crate::arguments::{DeviceArguments, GlobalArguments, ModelArguments};
use crate::failure::Misuse;
use crate::open::{load_session, open_checkpoint};
use crate::terminal::{Output, Terminal};
use crate::token_input::read_ids_file;

/// Measure how well a model predicts a text
#[derive(Debug, Args)]
pub(crate) struct PerplexityArguments {
    #[command(flatten)]
    model: ModelArguments,
    /// Token ids instead of text: a JSON file like [[1, 2, 3], [4, 5]], one chunk a list
    #[arg(long, value_name = "FILE")]
    ids: PathBuf,
    #[command(flatten)]
    device: DeviceArguments,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
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
    let chunks: Vec<Vec<TokenId>> = read_ids_file(&arguments.ids)?;
    let longest = chunks.iter().map(Vec::len).max().unwrap_or(0);
    if longest < 2 {
        return Err(Misuse::new("there is nothing to predict", "give a text of at least two tokens").into());
    }
    let n_vocab = checkpoint.config().n_vocab;
    if let Some(token) = chunks.iter().flatten().find(|token| token.index() >= n_vocab) {
        let what = format!("token id {token} is outside the vocabulary of {n_vocab}");
        return Err(Misuse::new(what, "the ids are another model's").into());
    }
    let mut session = load_session(&checkpoint, &arguments.device, longest, terminal)?;
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
