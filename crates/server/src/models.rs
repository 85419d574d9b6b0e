//! The models that are served: name, engine, tokenizer, chat template. A model is listed once it can serve and no longer than that.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use bitnet_checkpoint::GenerationDefaults;
use bitnet_engine::EngineHandle;
use bitnet_model::text::{ChatTemplate, Tokenizer};

use crate::error::ServerError;

/// What a model yields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelTask {
    /// Text.
    Text,
    /// Vectors of this width.
    Embedding {
        /// Numbers in a vector.
        width: usize,
    },
}

/// A model with all that requests need of it.
pub struct ServedModel {
    /// As requests name it.
    pub name: String,
    /// When it was made or loaded, in seconds since 1970.
    pub created_unix_seconds: i64,
    /// Runs it.
    pub engine: EngineHandle,
    /// Its vocabulary.
    pub tokenizer: Arc<Tokenizer>,
    /// How conversations are written for it, if it was trained on any.
    pub template: Option<ChatTemplate>,
    /// What its authors recommend.
    pub defaults: GenerationDefaults,
    /// Tokens of prompt and reply together.
    pub context_length: usize,
    /// What it yields.
    pub task: ModelTask,
}

/// All of them, by name.
#[derive(Default)]
pub struct Models {
    by_name: RwLock<BTreeMap<String, Arc<ServedModel>>>,
}

impl Models {
    /// From now on `model` is served; another of its name is replaced.
    pub fn insert(&self, model: ServedModel) {
        let mut by_name = self.by_name.write().unwrap_or_else(PoisonError::into_inner);
        by_name.insert(model.name.clone(), Arc::new(model));
    }

    /// No new request reaches the model; those that run keep it until they are done.
    pub fn remove(&self, name: &str) -> Option<Arc<ServedModel>> {
        self.by_name.write().unwrap_or_else(PoisonError::into_inner).remove(name)
    }

    /// All, in the order of their names.
    pub fn all(&self) -> Vec<Arc<ServedModel>> {
        self.by_name.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// By name.
    pub(crate) fn get(&self, name: &str) -> Result<Arc<ServedModel>, ServerError> {
        let by_name = self.by_name.read().unwrap_or_else(PoisonError::into_inner);
        by_name.get(name).cloned().ok_or_else(|| ServerError::UnknownModel { model: name.chars().take(200).collect() })
    }

    /// A model that writes text.
    pub(crate) fn get_text(&self, name: &str) -> Result<Arc<ServedModel>, ServerError> {
        let model = self.get(name)?;
        match model.task {
            ModelTask::Text => Ok(model),
            ModelTask::Embedding { .. } => {
                Err(ServerError::ModelTask { model: model.name.clone(), reason: "it yields embeddings, not text" })
            }
        }
    }

    /// A model that yields vectors.
    pub(crate) fn get_embedding(&self, name: &str) -> Result<Arc<ServedModel>, ServerError> {
        let model = self.get(name)?;
        match model.task {
            ModelTask::Embedding { .. } => Ok(model),
            ModelTask::Text => Err(ServerError::ModelTask { model: model.name.clone(), reason: "it yields text, not embeddings" }),
        }
    }
}

impl ServedModel {
    /// The template, or a refusal that says what to do instead.
    pub(crate) fn require_template(&self) -> Result<&ChatTemplate, ServerError> {
        let reason = "it has no chat template and only continues texts: use /v1/completions, or start the server with --chat-template";
        self.template.as_ref().ok_or_else(|| ServerError::ModelTask { model: self.name.clone(), reason })
    }
}
