//! One choice of a request: from a row of logits to a token, its text and whether that was the last. The choice's own generator,
//! penalties and constraint see its own tokens in order, so a token depends on nothing but the row and the choice's past: not on
//! the batch, not on whether the token was drafted.

use std::sync::Arc;

use bitnet_model::TokenId;
use bitnet_model::batch::BestLogits;
use bitnet_model::sampler::Sampler;

use crate::constraint::ConstraintState;
use crate::error::RequestError;
use crate::logprobs::token_logprob;
use crate::request::{EndOfSequence, FinishReason, TokenLogprob};
use crate::text_stream::{StopWatch, TextStream};

/// What all choices of a request have in common.
pub(crate) struct Rules {
    pub(crate) n_tokens_max: usize,
    pub(crate) n_tokens_min: usize,
    /// The model's end-of-sequence tokens.
    pub(crate) eos: Vec<TokenId>,
    pub(crate) end_of_sequence: EndOfSequence,
    pub(crate) stop_token_ids: Vec<TokenId>,
    /// Special tokens that are stop strings themselves: they have no text in which those could be found.
    pub(crate) stop_specials: Vec<(TokenId, String)>,
    pub(crate) logit_bias: Vec<(TokenId, f32)>,
    pub(crate) logprobs: Option<usize>,
    /// Positions of the model.
    pub(crate) context_length: usize,
}

/// Live state of one choice.
pub(crate) struct Choice {
    pub(crate) rules: Arc<Rules>,
    sampler: Sampler,
    constraint: Option<ConstraintState>,
    text: TextStream,
    pub(crate) n_generated: usize,
}

/// One position's output: `[n_vocab]` logits (none if only the largest's id was asked for), and the largest's id.
#[derive(Clone, Copy)]
pub(crate) struct LogitsRow<'a> {
    pub(crate) logits: &'a [f32],
    pub(crate) greedy: TokenId,
}

/// What a row led to.
pub(crate) struct Drawn {
    pub(crate) token_id: TokenId,
    /// Text and log-probability, unless the token itself ended the choice.
    pub(crate) shown: Option<(String, Option<TokenLogprob>)>,
    /// Why it was the last, and the text held back.
    pub(crate) finish: Option<(FinishReason, String)>,
}

impl Choice {
    pub(crate) fn new(rules: Arc<Rules>, sampler: Sampler, constraint: Option<ConstraintState>, text: TextStream) -> Self {
        Self { rules, sampler, constraint, text, n_generated: 0 }
    }

    /// Tokens that may still be drawn from a history of `n_history`.
    pub(crate) fn n_left(&self, n_history: usize) -> usize {
        let n_context = (self.rules.context_length + 1).saturating_sub(n_history);
        (self.rules.n_tokens_max - self.n_generated).min(n_context)
    }

    /// How much of the logits of the next `n_rows` rows can matter after a history of `n_history` tokens; all of them for `None`.
    pub(crate) fn reach(&self, n_history: usize, n_rows: usize) -> Option<BestLogits> {
        let rules = &*self.rules;
        if rules.logprobs.is_some() || self.constraint.is_some() || !rules.logit_bias.is_empty() {
            return None;
        }
        let best = self.sampler.reach(n_history + n_rows - 1)?;
        let n_banned = self.banned().count();
        match n_banned {
            0 => Some(best),
            // What is within reach of the largest is not what is within reach of the largest that may be drawn.
            _ if best.within > 0.0 => None,
            _ => Some(BestLogits { n: best.n.saturating_add(n_banned), ..best }),
        }
    }

    /// Whether the next token is just the likeliest, of which no logit is needed.
    pub(crate) fn is_greedy(&self) -> bool {
        let params = self.sampler.params();
        let is_penalised = params.repetition_penalty != 1.0 || params.presence_penalty != 0.0 || params.frequency_penalty != 0.0;
        let is_plain = params.temperature == 0.0 && !is_penalised && self.rules.logit_bias.is_empty();
        is_plain && self.constraint.is_none() && self.banned().next().is_none()
    }

    /// Tokens that would end the text too early.
    fn banned(&self) -> impl Iterator<Item = TokenId> {
        let rules = &*self.rules;
        let is_early = self.n_generated < rules.n_tokens_min;
        let eos = if rules.end_of_sequence == EndOfSequence::Stop { rules.eos.as_slice() } else { &[] };
        let stops = rules.stop_token_ids.iter().chain(rules.stop_specials.iter().map(|(token_id, _)| token_id));
        eos.iter().chain(stops).copied().filter(move |_| is_early)
    }

    /// Draws the token after `history` (prompt first) from its row. `scratch` is a buffer kept between calls.
    pub(crate) fn draw(&mut self, row: LogitsRow<'_>, history: &[TokenId], scratch: &mut Vec<f32>) -> Result<Drawn, RequestError> {
        let token_id = self.draw_token(row, history, scratch)?;
        let logprob = self.rules.logprobs.map(|n_top| token_logprob(row.logits, token_id, n_top));
        self.n_generated += 1;
        if let Some(reason) = self.ended_by(token_id) {
            return Ok(Drawn { token_id, shown: None, finish: Some((reason, self.text.finish().text)) });
        }
        if let Some(constraint) = &mut self.constraint {
            constraint.accept(token_id)?;
        }
        let watch = if self.n_generated < self.rules.n_tokens_min { StopWatch::Off } else { StopWatch::On };
        let piece = self.text.push(token_id, watch);
        let finish = match piece.stop {
            Some(stop) => Some((FinishReason::StopString(stop), String::new())),
            None => self.exhausted(history.len() + 1).map(|reason| self.finish(reason)),
        };
        Ok(Drawn { token_id, shown: Some((piece.text, logprob)), finish })
    }

    /// Ends the choice without another token.
    pub(crate) fn finish(&mut self, reason: FinishReason) -> (FinishReason, String) {
        let last = self.text.finish();
        match last.stop {
            Some(stop) => (FinishReason::StopString(stop), last.text),
            None => (reason, last.text),
        }
    }

    fn draw_token(&mut self, row: LogitsRow<'_>, history: &[TokenId], scratch: &mut Vec<f32>) -> Result<TokenId, RequestError> {
        if self.is_greedy() {
            return Ok(row.greedy);
        }
        scratch.clear();
        scratch.extend_from_slice(row.logits);
        for &(token_id, bias) in &self.rules.logit_bias {
            scratch[token_id.index()] += bias;
        }
        if let Some(constraint) = &mut self.constraint {
            constraint.mask(scratch)?;
        }
        for token_id in self.banned() {
            if let Some(logit) = scratch.get_mut(token_id.index()) {
                *logit = f32::NEG_INFINITY;
            }
        }
        Ok(self.sampler.sample(scratch, history)?)
    }

    /// Whether a token is one that ends the text and is not part of it.
    fn ended_by(&self, token_id: TokenId) -> Option<FinishReason> {
        let rules = &*self.rules;
        // A constraint allows an end only where the text is complete, and nothing after it.
        if rules.eos.contains(&token_id) && (rules.end_of_sequence == EndOfSequence::Stop || self.constraint.is_some()) {
            return Some(FinishReason::EndOfSequence);
        }
        if rules.stop_token_ids.contains(&token_id) {
            return Some(FinishReason::StopToken(token_id));
        }
        let special = rules.stop_specials.iter().find(|(special, _)| *special == token_id);
        special.map(|(_, stop)| FinishReason::StopString(stop.clone()))
    }

    /// Why nothing can follow a history of `n_history` tokens.
    fn exhausted(&self, n_history: usize) -> Option<FinishReason> {
        if self.constraint.as_ref().is_some_and(ConstraintState::is_complete) {
            return Some(FinishReason::EndOfSequence);
        }
        if self.n_generated >= self.rules.n_tokens_max {
            return Some(FinishReason::Length);
        }
        (n_history > self.rules.context_length).then_some(FinishReason::ContextFull)
    }
}
