//! A request while it lives: what of its prompt was reported, its choices, what it used. It decides nothing.

use std::sync::Arc;
use std::time::Instant;

use bitnet_model::TokenId;

use crate::choice::{Choice, Rules};
use crate::logprobs::token_logprob;
use crate::request::{TokenLogprob, Usage, UsageSink};

/// A live request.
pub(crate) struct Live {
    pub(crate) deadline: Option<Instant>,
    pub(crate) usage: Usage,
    pub(crate) usage_sink: Option<Box<dyn UsageSink>>,
    pub(crate) work: Work,
}

/// What it does.
pub(crate) enum Work {
    Embed,
    Generate(Writing),
}

/// A generation.
pub(crate) struct Writing {
    pub(crate) rules: Arc<Rules>,
    /// `None` once complete.
    pub(crate) choices: Vec<Option<Choice>>,
    pub(crate) progress: Progress,
    /// Absent if not asked for, and once reported.
    pub(crate) prompt_scores: Option<PromptScores>,
    pub(crate) n_prompt_tokens: usize,
}

/// How far a generation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// The first choice's sequence reads the prompt for all.
    Reading,
    /// Every choice has its own sequence.
    Writing,
}

impl Writing {
    pub(crate) fn is_complete(&self) -> bool {
        self.choices.iter().all(Option::is_none)
    }
}

/// Log-probabilities of the prompt's tokens, as far as it is computed.
pub(crate) struct PromptScores {
    n_top: usize,
    scores: Vec<Option<TokenLogprob>>,
}

impl PromptScores {
    pub(crate) fn new(n_top: usize) -> Self {
        // Nothing predicts the first token.
        Self { n_top, scores: vec![None] }
    }

    /// Takes the rows of positions `first..`, each of which predicts the next token of `prompt`. Positions that were taken before a
    /// preemption are passed over.
    pub(crate) fn take<'a>(&mut self, first: usize, rows: impl Iterator<Item = &'a [f32]>, prompt: &[TokenId]) {
        for (position, row) in (first..).zip(rows) {
            if position + 1 == self.scores.len() && position + 1 < prompt.len() {
                self.scores.push(Some(token_logprob(row, prompt[position + 1], self.n_top)));
            }
        }
    }

    pub(crate) fn into_scores(self) -> Vec<Option<TokenLogprob>> {
        self.scores
    }
}
