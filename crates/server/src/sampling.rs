//! Sampling parameters of a request, whichever API it came by, over what the model's authors recommend. Ranges are checked where
//! the engine checks them too; here the refusal names the client's parameter.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use bitnet_engine::{EndOfSequence, Generate};
use bitnet_model::TokenId;
use bitnet_model::sampler::SamplingParams;

use crate::error::ServerError;
use crate::ids;
use crate::limits;
use crate::models::ServedModel;
use crate::one_or_many::TextOrList;

/// What a request may say about sampling.
#[derive(Debug, Clone, Default)]
pub(crate) struct SamplingRequest {
    pub(crate) temperature: Option<f32>,
    pub(crate) top_p: Option<f32>,
    pub(crate) top_k: Option<i64>,
    pub(crate) min_p: Option<f32>,
    pub(crate) repetition_penalty: Option<f32>,
    pub(crate) presence_penalty: Option<f32>,
    pub(crate) frequency_penalty: Option<f32>,
    pub(crate) seed: Option<i64>,
    pub(crate) n: Option<u32>,
    pub(crate) n_tokens_max: Option<u32>,
    pub(crate) n_tokens_min: Option<u32>,
    pub(crate) stop: Option<TextOrList<String>>,
    pub(crate) stop_token_ids: Option<Vec<u32>>,
    pub(crate) ignore_eos: Option<bool>,
    pub(crate) logit_bias: Option<BTreeMap<String, f32>>,
    pub(crate) logprobs: Option<u32>,
}

impl SamplingRequest {
    /// What the engine is to do. `max_param` is the name of the parameter that bounds the reply.
    pub(crate) fn generate(self, model: &ServedModel, max_param: &'static str, n_tokens_cap: usize) -> Result<Generate, ServerError> {
        let sampling = self.params(model)?;
        let n_choices = match self.n.map(NonZeroU32::new) {
            None => NonZeroU32::MIN,
            Some(Some(n)) if n.get() <= limits::N_CHOICES_MAX => n,
            Some(_) => return Err(ServerError::invalid("n", format!("not in 1..={}", limits::N_CHOICES_MAX))),
        };
        let cap = n_tokens_cap.min(model.context_length);
        let n_tokens_max = match self.n_tokens_max {
            None => cap,
            Some(0) => return Err(ServerError::invalid(max_param, "at least 1")),
            Some(n) if n as usize > cap => return Err(ServerError::invalid(max_param, format!("{n} is more than {cap}"))),
            Some(n) => n as usize,
        };
        let n_tokens_min = self.n_tokens_min.unwrap_or(0) as usize;
        if n_tokens_min > n_tokens_max {
            return Err(ServerError::invalid("min_tokens", format!("more than the {n_tokens_max} tokens of the whole reply")));
        }
        let logit_bias = biases(&self.logit_bias.unwrap_or_default(), model.engine.n_vocab())?;
        let stop_token_ids = known_tokens(self.stop_token_ids.unwrap_or_default(), model.engine.n_vocab())?;
        Ok(Generate {
            n_choices,
            n_tokens_min,
            stop_strings: stop_strings("stop", self.stop)?,
            stop_token_ids,
            end_of_sequence: if self.ignore_eos == Some(true) { EndOfSequence::Ignore } else { EndOfSequence::Stop },
            logit_bias,
            logprobs: self.logprobs,
            ..Generate::plain(sampling, n_tokens_max)
        })
    }

    fn params(&self, model: &ServedModel) -> Result<SamplingParams, ServerError> {
        let defaults = &model.defaults;
        let asked = self.temperature.is_some() || self.top_k.is_some() || self.top_p.is_some() || self.min_p.is_some();
        let is_greedy = defaults.do_sample == Some(false) && !asked;
        let temperature = if is_greedy { 0.0 } else { self.temperature.or(defaults.temperature).unwrap_or(1.0) };
        let params = SamplingParams {
            temperature,
            top_k: top_k(self.top_k, defaults.top_k)?,
            top_p: self.top_p.or(defaults.top_p).unwrap_or(1.0),
            min_p: self.min_p.or(defaults.min_p).unwrap_or(0.0),
            repetition_penalty: self.repetition_penalty.or(defaults.repetition_penalty).unwrap_or(1.0),
            presence_penalty: self.presence_penalty.unwrap_or(0.0),
            frequency_penalty: self.frequency_penalty.unwrap_or(0.0),
            // Any 64 bits are a seed.
            seed: self.seed.map_or_else(ids::new_seed, i64::cast_unsigned),
        };
        params.validate()?;
        Ok(params)
    }
}

/// -1 and 0 keep all, as vLLM has it.
fn top_k(asked: Option<i64>, default: Option<u32>) -> Result<Option<usize>, ServerError> {
    match asked {
        None => Ok(default.filter(|&k| k > 0).map(|k| k as usize)),
        Some(-1 | 0) => Ok(None),
        Some(k) if k > 0 => Ok(Some(usize::try_from(k).unwrap_or(usize::MAX))),
        Some(k) => Err(ServerError::invalid("top_k", format!("{k} is neither -1, 0 nor more"))),
    }
}

/// Checks the stop strings that a request has under the name `param`.
pub(crate) fn stop_strings(param: &'static str, stop: Option<TextOrList<String>>) -> Result<Vec<String>, ServerError> {
    let stops = stop.map(TextOrList::into_vec).unwrap_or_default();
    if stops.len() > limits::N_STOP_STRINGS_MAX {
        return Err(ServerError::invalid(param, format!("{} of them, more than {}", stops.len(), limits::N_STOP_STRINGS_MAX)));
    }
    let bytes_max = bitnet_model::limits::STOP_STRING_BYTES_MAX;
    match stops.iter().find(|stop| stop.is_empty() || stop.len() > bytes_max) {
        Some(stop) => Err(ServerError::invalid(param, format!("one is {} bytes long, not in 1..={bytes_max}", stop.len()))),
        None => Ok(stops),
    }
}

fn biases(biases: &BTreeMap<String, f32>, n_vocab: usize) -> Result<Vec<(TokenId, f32)>, ServerError> {
    if biases.len() > limits::N_LOGIT_BIAS_MAX {
        return Err(ServerError::invalid("logit_bias", format!("{} tokens, more than {}", biases.len(), limits::N_LOGIT_BIAS_MAX)));
    }
    let bias = |(token, &bias): (&String, &f32)| {
        let token = token.parse().ok().filter(|&token: &u32| (token as usize) < n_vocab);
        let token = token.ok_or_else(|| ServerError::invalid("logit_bias", format!("its keys are token ids below {n_vocab}")))?;
        if !(-100.0..=100.0).contains(&bias) {
            return Err(ServerError::invalid("logit_bias", format!("{bias} is not in -100..=100")));
        }
        Ok((TokenId(token), bias))
    };
    biases.iter().map(bias).collect()
}

fn known_tokens(tokens: Vec<u32>, n_vocab: usize) -> Result<Vec<TokenId>, ServerError> {
    match tokens.iter().find(|&&token| token as usize >= n_vocab) {
        Some(token) => Err(ServerError::invalid("stop_token_ids", format!("{token} is not below {n_vocab}"))),
        None => Ok(tokens.into_iter().map(TokenId).collect()),
    }
}

/// The number of alternatives that a request may ask for.
pub(crate) fn top_logprobs(param: &'static str, n: Option<u32>) -> Result<u32, ServerError> {
    match n {
        Some(n) if n > limits::N_TOP_LOGPROBS_MAX => {
            Err(ServerError::invalid(param, format!("{n} is more than {}", limits::N_TOP_LOGPROBS_MAX)))
        }
        n => Ok(n.unwrap_or(0)),
    }
}
