//! Sampling parameters and their ranges, which are those of the OpenAI API where it has the parameter and else of vLLM.

use crate::sampler::SamplerError;

/// How tokens are drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0 is greedy. In 0..=100.
    pub temperature: f32,
    /// Only this many of the most likely tokens.
    pub top_k: Option<usize>,
    /// Only the most likely tokens that together have this probability. In (0, 1]; 1 keeps all.
    pub top_p: f32,
    /// Only tokens with at least this share of the most likely token's probability. In 0..=1; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens that occurred, prompt included. In (0, 10]; 1 changes nothing.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of generated tokens. In −2..=2.
    pub presence_penalty: f32,
    /// Subtracted from the logits of generated tokens, once for each time. In −2..=2.
    pub frequency_penalty: f32,
    /// Decides all draws.
    pub seed: u64,
}

impl Default for SamplingParams {
    /// Plain sampling from the model's distribution.
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: None,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: 0,
        }
    }
}

impl SamplingParams {
    /// The most likely token, always.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Checks every parameter and names the one that is out of range. NaN is in no range.
    pub fn validate(&self) -> Result<(), SamplerError> {
        let check = |name, is_valid: bool, expected, got: f32| {
            if is_valid { Ok(()) } else { Err(SamplerError::Parameter { name, expected, got: got.to_string() }) }
        };
        check("temperature", (0.0..=100.0).contains(&self.temperature), "in 0..=100", self.temperature)?;
        check("top_p", self.top_p > 0.0 && self.top_p <= 1.0, "in (0, 1]", self.top_p)?;
        check("min_p", (0.0..=1.0).contains(&self.min_p), "in 0..=1", self.min_p)?;
        let is_valid = self.repetition_penalty > 0.0 && self.repetition_penalty <= 10.0;
        check("repetition_penalty", is_valid, "in (0, 10]", self.repetition_penalty)?;
        check("presence_penalty", (-2.0..=2.0).contains(&self.presence_penalty), "in -2..=2", self.presence_penalty)?;
        check("frequency_penalty", (-2.0..=2.0).contains(&self.frequency_penalty), "in -2..=2", self.frequency_penalty)?;
        if self.top_k == Some(0) {
            return Err(SamplerError::Parameter { name: "top_k", expected: "at least 1", got: "0".into() });
        }
        Ok(())
    }
}
