//! Penalties on tokens that already occurred. Repetition: CTRL, arXiv 1909.05858 §4.1, in the form of
//! huggingface/transformers `RepetitionPenaltyLogitsProcessor`; presence and frequency: the OpenAI API's formula. As in vLLM, the
//! repetition penalty counts the prompt, the others only what was generated, and it comes first.

use crate::TokenId;
use crate::sampler::SamplingParams;

/// Counters, kept from step to step so that a step allocates nothing.
#[derive(Default)]
pub(super) struct Penalties {
    /// Times each token was generated, plus one for "occurred at all"; all zero between calls.
    marks: Vec<u32>,
}

impl Penalties {
    pub(super) fn apply(&mut self, params: &SamplingParams, history: &[TokenId], n_prompt_tokens: usize, logits: &mut [f32]) {
        let is_neutral = params.repetition_penalty == 1.0 && params.presence_penalty == 0.0 && params.frequency_penalty == 0.0;
        if is_neutral || history.is_empty() {
            return;
        }
        self.marks.resize(logits.len(), 0);
        for (position, token) in history.iter().enumerate() {
            if let Some(mark) = self.marks.get_mut(token.index()) {
                *mark = (*mark).max(1) + u32::from(position >= n_prompt_tokens);
            }
        }
        for token in history {
            let Some(mark) = self.marks.get_mut(token.index()) else { continue };
            // Zero marks a token whose penalty is already applied.
            if let Some(n_generated) = std::mem::take(mark).checked_sub(1) {
                logits[token.index()] = penalised(logits[token.index()], n_generated, params);
            }
        }
    }
}

fn penalised(logit: f32, n_generated: u32, params: &SamplingParams) -> f32 {
    let repeated = if logit > 0.0 { logit / params.repetition_penalty } else { logit * params.repetition_penalty };
    let presence = if n_generated > 0 { params.presence_penalty } else { 0.0 };
    repeated - params.frequency_penalty * n_generated as f32 - presence
}
