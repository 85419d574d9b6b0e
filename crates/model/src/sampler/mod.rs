//! The sampler: logits of one position into one token.
//!
//! Order: penalties → temperature → top-k → top-p → min-p → draw. Top-p measures the mass of what top-k left, and min-p the
//! probability relative to the most likely token. Temperature 0 means greedy: the largest logit after penalties, the lowest id
//! among equals.
//!
//! The same seed gives the same tokens on every machine: ChaCha8, one draw for each token, `exp` from `libm`, sums in f64 in a fixed
//! order. A sampler belongs to one sequence, so nothing that other sequences do can change its draws.

mod candidates;
mod error;
mod params;
mod penalties;

pub use error::SamplerError;
pub use params::SamplingParams;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::TokenId;
use crate::batch::BestLogits;
use candidates::Candidates;
use penalties::Penalties;

/// Draws the tokens of one sequence.
pub struct Sampler {
    params: SamplingParams,
    penalties: Penalties,
    candidates: Candidates,
    random: ChaCha8Rng,
    n_prompt_tokens: usize,
}

impl Sampler {
    /// Checks the parameters and seeds the generator.
    pub fn new(params: SamplingParams) -> Result<Self, SamplerError> {
        params.validate()?;
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&params.seed.to_le_bytes());
        let random = ChaCha8Rng::from_seed(seed);
        Ok(Self { params, penalties: Penalties::default(), candidates: Candidates::default(), random, n_prompt_tokens: 0 })
    }

    /// How many tokens at the start of every history are the prompt. Presence and frequency penalties do not count those;
    /// the repetition penalty does.
    pub fn with_prompt(self, n_prompt_tokens: usize) -> Self {
        Self { n_prompt_tokens, ..self }
    }

    /// The parameters.
    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// How much of the next logits [`Self::sample`] can reach after a history of `n_history` tokens; `None` if it is all of them.
    /// What lies outside may be given as −∞ without changing any draw.
    pub fn reach(&self, n_history: usize) -> Option<BestLogits> {
        let params = &self.params;
        if params.repetition_penalty < 1.0 || params.presence_penalty < 0.0 || params.frequency_penalty < 0.0 {
            return None;
        }
        let is_plain = params.repetition_penalty == 1.0 && params.presence_penalty == 0.0 && params.frequency_penalty == 0.0;
        // Penalties only lower logits, and only of tokens of the history: that many of the best may drop out.
        let n_lowered = if is_plain { 0 } else { n_history };
        let n_kept = if params.temperature == 0.0 { Some(1) } else { params.top_k };
        match n_kept {
            Some(n_kept) => Some(BestLogits { n: n_kept.saturating_add(n_lowered), within: 0.0 }),
            None if is_plain && params.min_p > 0.0 && params.top_p >= 1.0 => {
                // exp(−within / temperature) = min_p, and a little more for the rounding of exp.
                Some(BestLogits { n: 1, within: params.temperature * (1e-4 - params.min_p.ln()) })
            }
            None => None,
        }
    }

    /// Draws the next token. `logits` (`[n_vocab]`) is changed by the penalties; −∞ marks tokens that must not be drawn. `history` is
    /// the sequence so far, prompt first; ids beyond the logits are ignored.
    ///
    /// # Errors
    /// `NoLogits`, `NotFinite` (NaN or +∞), `NoCandidate` (all −∞).
    pub fn sample(&mut self, logits: &mut [f32], history: &[TokenId]) -> Result<TokenId, SamplerError> {
        self.penalties.apply(&self.params, history, self.n_prompt_tokens, logits);
        let greedy = largest(logits)?;
        if self.params.temperature == 0.0 {
            return Ok(greedy);
        }
        let largest_logit = logits[greedy.index()];
        self.candidates.select(&self.params, logits, largest_logit);
        // 53 random bits: every double in [0, 1) that is a multiple of 2⁻⁵³.
        let fraction = (self.random.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64);
        Ok(self.candidates.at(fraction).unwrap_or(greedy))
    }
}

/// Id of the largest logit, the lowest among equals.
fn largest(logits: &[f32]) -> Result<TokenId, SamplerError> {
    let mut largest: Option<(usize, f32)> = None;
    for (index, &logit) in logits.iter().enumerate() {
        if logit.is_nan() || logit == f32::INFINITY {
            return Err(SamplerError::NotFinite { token: TokenId(index as u32), logit });
        }
        if logit > largest.map_or(f32::NEG_INFINITY, |(_, largest)| largest) {
            largest = Some((index, logit));
        }
    }
    match largest {
        Some((index, _)) => Ok(TokenId(index as u32)),
        None if logits.is_empty() => Err(SamplerError::NoLogits),
        None => Err(SamplerError::NoCandidate),
    }
}

#[cfg(test)]
mod tests;
