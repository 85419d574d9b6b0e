//! Several models at once, by name. Each has its engine and thread; loading one or unloading another delays none of them.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};

use crate::error::{PoolError, SubmitError};
use crate::handle::EngineHandle;
use crate::limits::{MODEL_NAME_BYTES_MAX, N_MODELS_MAX};

/// Loaded models.
#[derive(Default)]
pub struct ModelPool {
    models: RwLock<BTreeMap<String, EngineHandle>>,
}

impl ModelPool {
    /// Takes a started engine in. From now on its name is known.
    pub fn load(&self, name: &str, engine: EngineHandle) -> Result<(), PoolError> {
        if name.is_empty() || name.len() > MODEL_NAME_BYTES_MAX {
            return Err(PoolError::BadName { got: name.len(), limit: MODEL_NAME_BYTES_MAX });
        }
        let mut models = self.models.write().unwrap_or_else(PoisonError::into_inner);
        if models.contains_key(name) {
            return Err(PoolError::NameTaken { name: name.into() });
        }
        if models.len() >= N_MODELS_MAX {
            return Err(PoolError::TooManyModels { limit: N_MODELS_MAX });
        }
        models.insert(name.into(), engine);
        Ok(())
    }

    /// Forgets a model: from now on its name is unknown and the engine drains. What it has accepted is finished while the caller
    /// keeps the handle; `shutdown` on it ends the rest.
    pub fn unload(&self, name: &str) -> Result<EngineHandle, PoolError> {
        let removed = self.models.write().unwrap_or_else(PoisonError::into_inner).remove(name);
        let engine = removed.ok_or_else(|| PoolError::UnknownModel { name: name.into() })?;
        engine.drain();
        Ok(engine)
    }

    /// The engine of a model.
    pub fn get(&self, name: &str) -> Result<EngineHandle, SubmitError> {
        let models = self.models.read().unwrap_or_else(PoisonError::into_inner);
        models.get(name).cloned().ok_or_else(|| SubmitError::UnknownModel { name: name.into() })
    }

    /// Names of all models, in order.
    pub fn names(&self) -> Vec<String> {
        self.models.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }
}
