//! A request while it lives: what of its prompt was reported, its choices, what it used. It decides nothing.

use std::sync::Arc;
use std::time::Instant;

use bitnet_model::TokenId;
use bitnet_model::sampler::{Sampler, SamplingParams};
use bitnet_model::text::Tokenizer;

use crate::choice::{Choice, Rules};
use crate::constraint::{CompiledConstraint, ConstraintState};
use crate::error::SubmitError;
use crate::logprobs::token_logprob;
use crate::request::{TokenLogprob, Usage, UsageSink};
use crate::text_stream::TextStream;

/// A live request.
pub(crate) struct Live {
    pub(crate) deadline: Option<Instant>,
    pub(crate) usage: Usage,
    pub(crate) usage_sink: Option<Box<dyn UsageSink>>,
    pub(crate) work: Work,
    pub(crate) turn: Turn,
}

/// Whether a request was ever computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// It waits for its first step.
    Awaited,
    Begun,
}

/// What it does.
pub(crate) enum Work {
    Embed,
    Generate(Writing),
}

/// A generation.
pub(crate) struct Writing {
    pub(crate) rules: Arc<Rules>,
    /// What choices are made of when the request's turn comes: until then it takes no more memory than that.
    pub(crate) plan: ChoicePlan,
    /// Empty before its turn; `None` once complete.
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

/// What choices are made of.
pub(crate) struct ChoicePlan {
    pub(crate) n_choices: u32,
    pub(crate) sampling: SamplingParams,
    pub(crate) stop_strings: Arc<[String]>,
    /// Compiled, and shared with all requests of the tenant that want the same.
    pub(crate) constraint: Option<Arc<CompiledConstraint>>,
}

impl Writing {
    /// Makes the choices. What this can fail at was tried when the request came.
    pub(crate) fn begin(&mut self, tokenizer: Option<&Arc<Tokenizer>>) -> Result<(), SubmitError> {
        let ChoicePlan { n_choices, sampling, stop_strings, constraint } = &self.plan;
        let mut state = constraint.as_ref().map(|compiled| compiled.begin());
        let mut choices = Vec::with_capacity(*n_choices as usize);
        for choice in 0..*n_choices {
            let seed = sampling.seed.wrapping_add(u64::from(choice));
            let sampler = Sampler::new(SamplingParams { seed, ..sampling.clone() })?.with_prompt(self.n_prompt_tokens);
            let is_last = choice + 1 == *n_choices;
            let own = if is_last { state.take() } else { state.as_ref().map(ConstraintState::fork) };
            let text = TextStream::new(tokenizer, stop_strings)?;
            choices.push(Some(Choice::new(Arc::clone(&self.rules), sampler, own, text)));
        }
        self.choices = choices;
        // The compiled constraint is the cache's and of those that still wait.
        self.plan.constraint = None;
        Ok(())
    }

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
