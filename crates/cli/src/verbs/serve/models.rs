//! Models for a server or a batch: opened, loaded with room for many sequences, and started as engines.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use bitnet_checkpoint::GenerationDefaults;
use bitnet_engine::{EngineHandle, EngineModel, EngineOptions, PrefixCaching, Speculation};
use bitnet_model::limits::STEP_TOKENS_MAX;
use bitnet_model::text::{ChatTemplate, Tokenizer};
use bitnet_model::{RunnerOptions, TokenId, WeightSource};
use bitnet_server::{ModelTask, ServedModel};
use clap::Args;

use crate::arguments::{DeviceArguments, GlobalArguments, OpenArguments};
use crate::clock;
use crate::failure::Misuse;
use crate::model_source::EMBEDDED;
use crate::open::{load_runner, open_source_to_write};
use crate::terminal::Terminal;
use crate::verbs::serve::random_model;

/// Least tokens that the cache holds by default: room for a few conversations of a model with a short context.
const CACHE_TOKENS_MIN: usize = 8192;
/// Most tokens that the cache holds by default, where one context is not longer: more should be asked for.
const CACHE_TOKENS_MAX: usize = 16_384;

/// A model before it is loaded: its weights, and what their tokens mean.
pub(super) struct Opened {
    pub(super) weights: Box<dyn WeightSource>,
    pub(super) tokenizer: Tokenizer,
    pub(super) template: Option<ChatTemplate>,
    pub(super) defaults: GenerationDefaults,
}

/// Which models, and how much they get.
#[derive(Debug, Clone, Args)]
pub(crate) struct ServedArguments {
    /// [NAME=]MODEL: a folder, .gguf file or hf:owner/name, and what requests call it; may be given several times. Without it, the embedded model
    #[arg(short, long = "model", value_name = "[NAME=]MODEL", env = "BITNET_MODEL", hide_env_values = true)]
    models: Vec<String>,
    /// A random model of a published shape instead, to measure with: 0.7b, 2b4t, 3b or 8b. It writes nonsense, as fast as the real one
    #[arg(long, conflicts_with = "models", hide_short_help = true)]
    shape: Option<String>,
    #[command(flatten)]
    open: OpenArguments,
    /// A chat template to use instead of the models' own
    #[arg(long, value_name = "FILE", env = "BITNET_CHAT_TEMPLATE", hide_env_values = true)]
    chat_template: Option<PathBuf>,
    #[command(flatten)]
    engine: EngineArguments,
    #[command(flatten)]
    device: DeviceArguments,
}

/// How requests share a model.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Engine")]
struct EngineArguments {
    /// Most sequences that are computed at once
    #[arg(long, value_name = "N", env = "BITNET_SEQUENCES", hide_env_values = true)]
    sequences: Option<usize>,
    /// Most requests that wait; more are refused
    #[arg(long, value_name = "N", env = "BITNET_QUEUE", hide_env_values = true)]
    queue: Option<usize>,
    /// Tokens of all sequences that the model's memory holds
    #[arg(long, value_name = "N", env = "BITNET_CACHE_TOKENS", hide_env_values = true)]
    cache_tokens: Option<usize>,
    /// Tokens to draft from what was said before; 0 for none
    #[arg(long, value_name = "N", env = "BITNET_DRAFTS", hide_env_values = true, hide_short_help = true)]
    drafts: Option<usize>,
    /// Do not remember the beginnings of prompts
    #[arg(long, hide_short_help = true)]
    no_prefix_cache: bool,
}

impl EngineArguments {
    fn options(&self) -> EngineOptions {
        let default = EngineOptions::default();
        EngineOptions {
            n_running_max: self.sequences.unwrap_or(default.n_running_max),
            n_waiting_max: self.queue.unwrap_or(default.n_waiting_max),
            prefix_cache: if self.no_prefix_cache { PrefixCaching::Off } else { default.prefix_cache },
            speculation: match self.drafts {
                None => default.speculation,
                Some(0) => Speculation::Off,
                Some(n_drafts_max) => Speculation::PromptLookup { n_drafts_max },
            },
            ..default
        }
    }
}

impl ServedArguments {
    /// Loads all of them.
    pub(crate) fn load(&self, global: &GlobalArguments, terminal: &Terminal) -> anyhow::Result<Vec<ServedModel>> {
        let template = self.chat_template.as_deref().map(read_template).transpose()?;
        if let Some(shape) = &self.shape {
            return Ok(vec![self.start(shape.clone(), random_model::open(shape, self.open)?, terminal)?]);
        }
        let embedded = [EMBEDDED.to_string()];
        let sources = if self.models.is_empty() { &embedded[..] } else { &self.models };
        let load = |source: &String| {
            let (name, model) = name_of(source);
            let opened = self.open_files(model, template.as_deref(), (global, terminal));
            opened.and_then(|opened| self.start(name, opened, terminal)).with_context(|| format!("cannot serve {model}"))
        };
        sources.iter().map(load).collect()
    }

    fn open_files(&self, model: &str, template: Option<&str>, (global, terminal): (&GlobalArguments, &Terminal)) -> anyhow::Result<Opened> {
        let checkpoint = open_source_to_write(&model.parse()?, self.open, global, terminal)?;
        let files = checkpoint.tokenizer_files();
        let tokenizer = Tokenizer::load(files)?;
        let template = match template {
            Some(source) => Some(ChatTemplate::compile(source, files.bos_token.as_deref(), files.eos_token.as_deref())?),
            None => ChatTemplate::load(files)?,
        };
        let defaults = files.generation.clone();
        Ok(Opened { weights: Box::new(checkpoint), tokenizer, template, defaults })
    }

    /// Loads an opened model and starts its engine.
    fn start(&self, name: String, opened: Opened, terminal: &Terminal) -> anyhow::Result<ServedModel> {
        let Opened { weights, tokenizer, template, defaults } = opened;
        let (config, tokenizer) = (weights.config(), Arc::new(tokenizer));
        let task = if config.last_token_pooling { ModelTask::Embedding { width: config.hidden_size } } else { ModelTask::Text };
        let runner = load_runner(&*weights, &self.device.for_any_sampling(), self.runner_options(config.context_length), terminal)?;
        let ids = defaults.eos_token_ids.iter().copied().map(TokenId);
        let eos: Vec<TokenId> = if tokenizer.eos().is_empty() { ids.collect() } else { tokenizer.eos().to_vec() };
        let model = EngineModel { runner, draft: None, tokenizer: Some(tokenizer.clone()), eos };
        let engine = EngineHandle::start(model, self.engine.options())?;
        Ok(ServedModel {
            name,
            created_unix_seconds: clock::now_unix_seconds().unwrap_or(0),
            context_length: engine.context_length(),
            engine,
            tokenizer,
            template,
            defaults,
            task,
        })
    }

    fn runner_options(&self, context_length: usize) -> RunnerOptions {
        let n_default = (4 * context_length).clamp(CACHE_TOKENS_MIN, CACHE_TOKENS_MAX.max(context_length));
        RunnerOptions {
            n_tokens_max: STEP_TOKENS_MAX,
            n_cached_tokens: self.engine.cache_tokens.unwrap_or(n_default).max(1),
            kv_type: self.device.choice.kv_cache.into(),
        }
    }
}

fn read_template(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display())).and_then(|source| {
        if source.is_empty() {
            return Err(Misuse::new(format!("{} is empty", path.display()), "name a file with a Jinja chat template").into());
        }
        Ok(source)
    })
}

/// What requests call a model, and where it is: `mine=hf:owner/name`, or else its own name without place and ending.
fn name_of(source: &str) -> (String, &str) {
    let is_name = |name: &str| !name.is_empty() && !name.contains(['/', '\\', ':']);
    if let Some((name, model)) = source.split_once('=').filter(|(name, _)| is_name(name)) {
        return (name.to_string(), model);
    }
    if let Some(name) = source.strip_prefix("hf:") {
        return (name.to_string(), source);
    }
    let last = Path::new(source).file_name().and_then(|name| name.to_str()).unwrap_or(source);
    (last.strip_suffix(".gguf").unwrap_or(last).to_string(), source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn model_is_called_by_its_own_name_or_by_a_given_one() {
        let name = |source| name_of(source).0;
        assert_eq!(name("embedded"), "embedded");
        assert_eq!(name("hf:microsoft/bitnet-b1.58-2B-4T"), "microsoft/bitnet-b1.58-2B-4T");
        assert_eq!(name("/models/falcon-e.gguf"), "falcon-e");
        assert_eq!(name_of("mine=/models/a=b.gguf"), ("mine".into(), "/models/a=b.gguf"));
        assert_eq!(name_of("/models/a=b.gguf").0, "a=b", "a path is no name");
    }
}
