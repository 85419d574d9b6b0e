//! What is checked before a request is accepted: everything that can be known without computing. Runs on the thread that submits.

use std::sync::Arc;

use bitnet_model::TokenId;
use bitnet_model::sampler::Sampler;
use bitnet_model::text::Tokenizer;

use crate::choice::Rules;
use crate::constraint::{CompiledConstraint, ConstraintCompiler};
use crate::error::SubmitError;
use crate::limits;
use crate::live::{ChoicePlan, Progress, PromptScores, Work, Writing};
use crate::quarantine::Quarantine;
use crate::request::{Generate, Request, Task, TenantSalt};
use crate::text_stream::TextStream;

/// What an engine's model can do.
pub(crate) struct Admission {
    pub(crate) n_vocab: usize,
    /// Tokens that fit: positions of the model, or the cache if that is smaller.
    pub(crate) context_length: usize,
    pub(crate) output: Output,
    pub(crate) tokenizer: Option<Arc<Tokenizer>>,
    pub(crate) eos: Vec<TokenId>,
    /// Absent without a tokenizer.
    pub(crate) constraints: Option<ConstraintCompiler>,
    pub(crate) quarantine: Quarantine,
}

/// What a model yields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    Text,
    Embedding,
}

/// A request that was found sound.
pub(crate) struct Prepared {
    pub(crate) request: Request,
    pub(crate) work: Work,
}

impl Admission {
    /// Checks a request, and makes of it what can be made without the model.
    pub(crate) fn prepare(&self, request: Request) -> Result<Prepared, SubmitError> {
        if request.prompt.is_empty() {
            return Err(SubmitError::EmptyPrompt);
        }
        if request.prompt.len() > self.context_length {
            return Err(SubmitError::TooLong { got: request.prompt.len(), limit: self.context_length });
        }
        request.prompt.iter().try_for_each(|&token_id| self.check_token(token_id))?;
        if self.quarantine.holds(request.tenant, &request.prompt) {
            return Err(SubmitError::Quarantined { n_panics: limits::N_PANICS_MAX });
        }
        let work = match (&request.task, self.output) {
            (Task::Embed, Output::Embedding) => Work::Embed,
            (Task::Embed, Output::Text) => return Err(SubmitError::NoEmbeddings),
            (Task::Generate(_), Output::Embedding) => return Err(SubmitError::NotGenerative),
            (Task::Generate(generate), Output::Text) => Work::Generate(self.writing(generate, request.tenant, request.prompt.len())?),
        };
        Ok(Prepared { request, work })
    }

    fn check_token(&self, token_id: TokenId) -> Result<(), SubmitError> {
        if token_id.index() < self.n_vocab { Ok(()) } else { Err(SubmitError::UnknownToken { token_id, n_vocab: self.n_vocab }) }
    }

    fn writing(&self, generate: &Generate, tenant: TenantSalt, n_prompt_tokens: usize) -> Result<Writing, SubmitError> {
        self.check_bounds(generate)?;
        if !generate.stop_strings.is_empty() && self.tokenizer.is_none() {
            return Err(SubmitError::NoTokenizer { what: "a stop string" });
        }
        let constraint = self.constraint(generate, tenant)?;
        let rules = Arc::new(self.rules(generate));
        let stop_strings: Arc<[String]> = generate.stop_strings.clone().into();
        // Choices are made when their turn comes; what would fail then is refused now.
        Sampler::new(generate.sampling.clone())?;
        TextStream::new(self.tokenizer.as_ref(), &stop_strings)?;
        let plan = ChoicePlan { n_choices: generate.n_choices.get(), sampling: generate.sampling.clone(), stop_strings, constraint };
        let prompt_scores = generate.prompt_logprobs.map(|n_top| PromptScores::new(n_top as usize));
        Ok(Writing { rules, plan, choices: Vec::new(), progress: Progress::Reading, prompt_scores, n_prompt_tokens })
    }

    fn check_bounds(&self, generate: &Generate) -> Result<(), SubmitError> {
        let check = |name, got: usize, limit: usize| if got <= limit { Ok(()) } else { Err(SubmitError::TooMany { name, got, limit }) };
        check("n_choices", generate.n_choices.get() as usize, limits::N_CHOICES_MAX as usize)?;
        check("logprobs", generate.logprobs.unwrap_or(0) as usize, limits::N_LOGPROBS_MAX as usize)?;
        check("prompt_logprobs", generate.prompt_logprobs.unwrap_or(0) as usize, limits::N_LOGPROBS_MAX as usize)?;
        check("stop_token_ids", generate.stop_token_ids.len(), limits::N_STOP_TOKENS_MAX)?;
        check("logit_bias", generate.logit_bias.len(), limits::N_LOGIT_BIAS_MAX)?;
        check("n_tokens_min", generate.n_tokens_min, generate.n_tokens_max)?;
        for &(token_id, bias) in &generate.logit_bias {
            self.check_token(token_id)?;
            if !(-limits::LOGIT_BIAS_MAX..=limits::LOGIT_BIAS_MAX).contains(&bias) {
                return Err(SubmitError::OutOfRange { name: "logit_bias", got: bias.to_string(), expected: "in -100..=100" });
            }
        }
        generate.stop_token_ids.iter().try_for_each(|&token_id| self.check_token(token_id))
    }

    fn constraint(&self, generate: &Generate, tenant: TenantSalt) -> Result<Option<Arc<CompiledConstraint>>, SubmitError> {
        let Some(constraint) = &generate.constraint else { return Ok(None) };
        let compiler = self.constraints.as_ref().ok_or(SubmitError::NoTokenizer { what: "a constraint" })?;
        compiler.compile(tenant, constraint).map(Some)
    }

    fn rules(&self, generate: &Generate) -> Rules {
        let special = |stop: &String| {
            let tokenizer = self.tokenizer.as_ref()?;
            let token_id = tokenizer.special_token(stop).filter(|&token_id| tokenizer.is_special(token_id))?;
            Some((token_id, stop.clone()))
        };
        Rules {
            n_tokens_max: generate.n_tokens_max,
            n_tokens_min: generate.n_tokens_min,
            eos: self.eos.clone(),
            end_of_sequence: generate.end_of_sequence,
            stop_token_ids: generate.stop_token_ids.clone(),
            stop_specials: generate.stop_strings.iter().filter_map(special).collect(),
            logit_bias: generate.logit_bias.clone(),
            logprobs: generate.logprobs.map(|n_top| n_top as usize),
            context_length: self.context_length,
        }
    }
}
