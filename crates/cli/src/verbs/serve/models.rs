//! Models for a server or a batch: opened, loaded with room for many sequences, and started as engines.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use bitnet_checkpoint::GenerationDefaults;
use bitnet_device_cuda::limits::STEP_TOKENS;
use bitnet_engine::limits::N_RUNNING_MAX;
use bitnet_engine::{DraftPart, EngineHandle, EngineModel, EngineOptions, PrefixCaching, Speculation, StartError, check_draft_vocabulary};
use bitnet_model::limits::STEP_TOKENS_MAX;
use bitnet_model::text::{ChatTemplate, Tokenizer};
use bitnet_model::{Runner, RunnerOptions, TokenId, WeightSource};
use bitnet_server::{ModelTask, ServedModel};
use clap::Args;

use crate::arguments::{DeviceArguments, GlobalArguments, OpenArguments};
use crate::clock;
use crate::failure::Misuse;
use crate::model_source::EMBEDDED;
use crate::open::{load_replicas, open_source_to_write};
use crate::terminal::Terminal;
use crate::verbs::serve::random_model;

/// Least tokens that the cache holds by default: room for a few conversations of a model with a short context.
const CACHE_TOKENS_MIN: usize = 8192;
/// Most tokens that the cache holds by default, where one context is not longer: more should be asked for.
const CACHE_TOKENS_MAX: usize = 16_384;

/// Tokens that a draft model guesses at a time, unless it is said.
const N_DRAFTS_OF_MODEL: usize = 4;

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
    /// A smaller model of the same vocabulary, which guesses tokens that the model then checks all at once: the same text, sooner.
    /// With NAME, for the model that requests call so; without, for all. May be given several times
    #[arg(long = "draft-model", value_name = "[NAME=]MODEL", env = "BITNET_DRAFT_MODEL", hide_env_values = true)]
    draft_models: Vec<String>,
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
    /// Most tokens of one step: with more of them prompts are read sooner, while those who are being written to wait longer
    #[arg(long, value_name = "N", env = "BITNET_STEP_TOKENS", hide_env_values = true, hide_short_help = true)]
    step_tokens: Option<usize>,
    /// Tokens to draft at a time: by the draft model if there is one, else from what was said before; 0 for none
    #[arg(long, value_name = "N", env = "BITNET_DRAFTS", hide_env_values = true, hide_short_help = true)]
    drafts: Option<usize>,
    /// Do not remember the beginnings of prompts
    #[arg(long, hide_short_help = true)]
    no_prefix_cache: bool,
}

impl EngineArguments {
    /// For a model with or without one that drafts, over what suits its device.
    fn options(&self, draft: Draft, default: EngineOptions) -> EngineOptions {
        EngineOptions {
            n_running_max: self.sequences.unwrap_or(default.n_running_max),
            n_waiting_max: self.queue.unwrap_or(default.n_waiting_max),
            n_step_tokens_max: self.step_tokens.unwrap_or(default.n_step_tokens_max),
            prefix_cache: if self.no_prefix_cache { PrefixCaching::Off } else { default.prefix_cache },
            speculation: match (draft, self.drafts) {
                (Draft::Model, n_drafts) => Speculation::DraftModel { n_drafts_max: n_drafts.unwrap_or(N_DRAFTS_OF_MODEL) },
                (Draft::None, None) => default.speculation,
                (Draft::None, Some(0)) => Speculation::Off,
                (Draft::None, Some(n_drafts_max)) => Speculation::PromptLookup { n_drafts_max },
            },
            ..default
        }
    }
}

/// Whether a model drafts for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Draft {
    Model,
    None,
}

/// Models as a configuration file names them; what each means, the flag of its name says.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct ServedFromFile {
    pub(crate) models: Vec<String>,
    pub(crate) draft_models: Vec<String>,
    pub(crate) chat_template: Option<PathBuf>,
    pub(crate) sequences: Option<usize>,
    pub(crate) queue: Option<usize>,
    pub(crate) cache_tokens: Option<usize>,
    pub(crate) step_tokens: Option<usize>,
    pub(crate) drafts: Option<usize>,
}

/// A model to serve: what requests call it, where it is, and where the one is that drafts for it.
struct Planned<'a> {
    name: String,
    model: &'a str,
    draft: Option<&'a str>,
}

impl ServedArguments {
    /// These, and where they say nothing, a file's.
    pub(crate) fn over(mut self, file: ServedFromFile) -> Self {
        if self.models.is_empty() && self.shape.is_none() {
            self.models = file.models;
        }
        if self.draft_models.is_empty() {
            self.draft_models = file.draft_models;
        }
        self.chat_template = self.chat_template.or(file.chat_template);
        let engine = &mut self.engine;
        engine.sequences = engine.sequences.or(file.sequences);
        engine.queue = engine.queue.or(file.queue);
        engine.cache_tokens = engine.cache_tokens.or(file.cache_tokens);
        engine.step_tokens = engine.step_tokens.or(file.step_tokens);
        engine.drafts = engine.drafts.or(file.drafts);
        self
    }

    /// Loads all of them.
    pub(crate) fn load(&self, global: &GlobalArguments, terminal: &Terminal) -> anyhow::Result<Vec<ServedModel>> {
        let template = self.chat_template.as_deref().map(read_template).transpose()?;
        let load = |planned: Planned<'_>| {
            let opened = self.open_planned(&planned, template.as_deref(), (global, terminal));
            let started = opened.and_then(|(opened, draft)| self.start(planned.name, opened, draft, terminal));
            started.with_context(|| format!("cannot serve {}", planned.model))
        };
        self.planned()?.into_iter().map(load).collect()
    }

    /// Opens all of them and loads no weights: what is wrong with each, and what there is to say of those that are sound.
    pub(crate) fn check(&self, global: &GlobalArguments, terminal: &Terminal) -> anyhow::Result<Vec<anyhow::Result<String>>> {
        let template = self.chat_template.as_deref().map(read_template).transpose()?;
        let check = |planned: Planned<'_>| {
            let opened = self.open_planned(&planned, template.as_deref(), (global, terminal));
            opened.map(|opened| self.describe(&planned, &opened)).with_context(|| format!("cannot serve {}", planned.model))
        };
        Ok(self.planned()?.into_iter().map(check).collect())
    }

    fn describe(&self, planned: &Planned<'_>, (opened, draft): &(Opened, Option<Opened>)) -> String {
        let config = opened.weights.config();
        let what = match (config.last_token_pooling, &opened.template) {
            (true, _) => "embeddings",
            (false, Some(_)) => "text and chat",
            (false, None) => "text, no chat template",
        };
        let n_cached = self.runner_options(config.context_length).n_cached_tokens;
        let mut said = format!(
            "model `{}` from {}: {what}, {} layers, {} tokens of vocabulary, context {}, cache {n_cached}",
            planned.name, planned.model, config.n_layers, config.n_vocab, config.context_length
        );
        if let (Some(draft), Some(model)) = (draft, planned.draft) {
            let n_drafts = self.engine.drafts.unwrap_or(N_DRAFTS_OF_MODEL);
            said.push_str(&format!("; {model} drafts {n_drafts} tokens ({} layers, same vocabulary)", draft.weights.config().n_layers));
        }
        said
    }

    /// Which models to serve.
    fn planned(&self) -> anyhow::Result<Vec<Planned<'_>>> {
        let mut planned: Vec<Planned<'_>> = match (&self.shape, self.models.is_empty()) {
            (Some(shape), _) => vec![Planned { name: shape.clone(), model: shape, draft: None }],
            (None, true) => vec![Planned { name: EMBEDDED.into(), model: EMBEDDED, draft: None }],
            (None, false) => {
                let named = self.models.iter().map(|source| name_of(source));
                named.map(|(name, model)| Planned { name, model, draft: None }).collect()
            }
        };
        for (index, one) in planned.iter().enumerate() {
            if planned[..index].iter().any(|other| other.name == one.name) {
                return Err(Misuse::new(format!("two models are called `{}`", one.name), "call one of them otherwise: NAME=MODEL").into());
            }
        }
        if !self.draft_models.is_empty() && self.engine.drafts == Some(0) {
            return Err(Misuse::new("a draft model that drafts 0 tokens", "leave out --draft-model, or ask for more --drafts").into());
        }
        for source in &self.draft_models {
            let (name, model) = named(source);
            let mut n_found = 0;
            for one in planned.iter_mut().filter(|one| name.is_none_or(|name| name == one.name)) {
                n_found += 1;
                if one.draft.replace(model).is_some() {
                    let what = format!("two models draft for `{}`", one.name);
                    return Err(Misuse::new(what, "say for whom: --draft-model NAME=MODEL").into());
                }
            }
            if n_found == 0 {
                let what = format!("`{}` has a draft model and is not served", name.unwrap_or_default());
                return Err(Misuse::new(what, "--draft-model NAME=MODEL takes the name of a --model").into());
            }
        }
        Ok(planned)
    }

    /// Opens a model and the one that drafts for it, and checks that they fit.
    fn open_planned(
        &self,
        planned: &Planned<'_>,
        template: Option<&str>,
        (global, terminal): (&GlobalArguments, &Terminal),
    ) -> anyhow::Result<(Opened, Option<Opened>)> {
        let opened = self.open_one(planned.model, template, (global, terminal))?;
        let Some(model) = planned.draft else { return Ok((opened, None)) };
        let draft = self.open_one(model, None, (global, terminal));
        let draft = draft.and_then(|draft| {
            fits(&opened, &draft)?;
            Ok(draft)
        });
        let draft = draft.with_context(|| format!("{model} cannot draft for it"))?;
        Ok((opened, Some(draft)))
    }

    fn open_one(&self, model: &str, template: Option<&str>, said: (&GlobalArguments, &Terminal)) -> anyhow::Result<Opened> {
        if self.shape.is_some() { random_model::open(model, self.open) } else { self.open_files(model, template, said) }
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
    fn start(&self, name: String, opened: Opened, draft: Option<Opened>, terminal: &Terminal) -> anyhow::Result<ServedModel> {
        let Opened { weights, tokenizer, template, defaults } = opened;
        let (config, tokenizer) = (weights.config(), Arc::new(tokenizer));
        let task = if config.last_token_pooling { ModelTask::Embedding { width: config.hidden_size } } else { ModelTask::Text };
        let load = |weights: &dyn WeightSource| {
            let options = self.runner_options(weights.config().context_length);
            let mut runners = load_replicas(weights, &self.device.for_any_sampling(), options, terminal)?;
            runners.iter_mut().try_for_each(|runner| runner.commit())?;
            anyhow::Ok(runners)
        };
        let runners = load(&*weights)?;
        let draft_parts = |draft: Opened| {
            let runners = load(&*draft.weights).context("cannot load the draft model")?;
            let tokenizer = Arc::new(draft.tokenizer);
            let part = |runner| Some(DraftPart { runner, tokenizer: Some(tokenizer.clone()) });
            anyhow::Ok(runners.into_iter().map(part).collect())
        };
        let is_drafted = if draft.is_some() { Draft::Model } else { Draft::None };
        let drafts: Vec<Option<DraftPart>> = match draft {
            Some(draft) => draft_parts(draft)?,
            None => runners.iter().map(|_| None).collect(),
        };
        let ids = defaults.eos_token_ids.iter().copied().map(TokenId);
        let eos: Vec<TokenId> = if tokenizer.eos().is_empty() { ids.collect() } else { tokenizer.eos().to_vec() };
        let options = self.engine.options(is_drafted, suited_to(&runners));
        let model = |(runner, draft)| EngineModel { runner, draft, tokenizer: Some(tokenizer.clone()), eos: eos.clone() };
        let engine = EngineHandle::start_replicas(runners.into_iter().zip(drafts).map(model).collect(), options)?;
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
            kv_type: self.device.choice.kv_type(),
        }
    }
}

/// What suits the devices that a model is on: GPUs want many sequences and long steps.
fn suited_to(runners: &[Box<dyn Runner>]) -> EngineOptions {
    let default = EngineOptions::default();
    if runners.iter().any(|runner| runner.device().name != "cuda") {
        return default;
    }
    EngineOptions { n_running_max: N_RUNNING_MAX, n_step_tokens_max: STEP_TOKENS, ..default }
}

/// Whether one can draft for the other, as far as their files tell: what the engine would refuse once both are loaded.
fn fits(model: &Opened, draft: &Opened) -> Result<(), StartError> {
    let (own, other) = (model.weights.config(), draft.weights.config());
    if own.last_token_pooling || other.last_token_pooling {
        return Err(StartError::DraftPooling);
    }
    if own.n_vocab != other.n_vocab {
        return Err(StartError::DraftVocabulary { expected: own.n_vocab, got: other.n_vocab });
    }
    check_draft_vocabulary(&model.tokenizer, &draft.tokenizer)
}

fn read_template(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display())).and_then(|source| {
        if source.is_empty() {
            return Err(Misuse::new(format!("{} is empty", path.display()), "name a file with a Jinja chat template").into());
        }
        Ok(source)
    })
}

/// `NAME=MODEL`, or a model alone.
fn named(source: &str) -> (Option<&str>, &str) {
    let is_name = |name: &str| !name.is_empty() && !name.contains(['/', '\\', ':']);
    match source.split_once('=').filter(|(name, _)| is_name(name)) {
        Some((name, model)) => (Some(name), model),
        None => (None, source),
    }
}

/// What requests call a model, and where it is: `mine=hf:owner/name`, or else its own name without place and ending.
fn name_of(source: &str) -> (String, &str) {
    if let (Some(name), model) = named(source) {
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
