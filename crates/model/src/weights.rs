//! From named tensors to a device's handles: which tensors stack into one projection, which norms stand before it. Tensors are
//! loaded by as many threads as the device has, uploaded and dropped a few layers at a time, so memory never holds a model twice.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use bitnet_checkpoint::config::ActivationPolicy;
use bitnet_checkpoint::{Checkpoint, CheckpointError, ModelConfig, StoredTable, Tensor};
use bitnet_ternary::TernaryMatrix;
use thiserror::Error;

use crate::device::{Device, DeviceError, Norm, TableUse};

/// Matrices of a layer, the largest first: they are handed out to threads in this order.
const MATRICES: [&str; 7] =
    ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "self_attn.q_proj", "self_attn.o_proj", "self_attn.k_proj", "self_attn.v_proj"];
/// Threads that the matrices of one layer keep busy: three of them are most of it.
const THREADS_PER_LAYER: usize = 4;

/// Where weights come from: an opened checkpoint, or random numbers of a published shape. Several threads load at once.
pub trait WeightSource: Sync {
    /// What the weights belong to; validated.
    fn config(&self) -> &ModelConfig;
    /// A tensor by canonical name, in the shape that `ModelConfig::expected_tensors` gives.
    fn load(&self, name: &str) -> Result<Tensor, CheckpointError>;
    /// An embedding or head by canonical name; dense rows are read when they are needed.
    fn table(&self, name: &str) -> Result<StoredTable, CheckpointError>;
}

impl WeightSource for Checkpoint {
    fn config(&self) -> &ModelConfig {
        Checkpoint::config(self)
    }

    fn load(&self, name: &str) -> Result<Tensor, CheckpointError> {
        Checkpoint::load(self, name)
    }

    fn table(&self, name: &str) -> Result<StoredTable, CheckpointError> {
        Checkpoint::table(self, name)
    }
}

/// Why a model could not be put on a device.
#[derive(Debug, Error)]
pub enum LoadError {
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// A linear layer and the norms before it. `first_column` is where its output goes in the row it shares with its neighbours.
pub struct Projection<D: Device> {
    /// RMSNorms applied to the input, in order: none, the layer's, the projection's own.
    pub norms: Vec<Norm<D::Vector>>,
    /// Weights `[n, k]`.
    pub weights: D::Linear,
    /// First output column.
    pub first_column: usize,
}

/// One transformer layer.
pub struct Layer<D: Device> {
    /// q, k and v: one stacked projection, or three where each has its own norm. Output `[q | k | v]`.
    pub qkv: Vec<Projection<D>>,
    /// Norms on query heads and key heads.
    pub qk_norms: Option<(D::Vector, D::Vector)>,
    /// Back to the residual stream.
    pub o: Projection<D>,
    /// gate and up: one stacked projection, or two where each has its own norm. Output `[gate | up]`.
    pub gate_up: Vec<Projection<D>>,
    /// Back to the residual stream.
    pub down: Projection<D>,
}

/// A model on a device.
pub struct Weights<D: Device> {
    /// Token embedding.
    pub embedding: D::Table,
    /// Layers, in order.
    pub layers: Vec<Layer<D>>,
    /// The last norm, `[hidden]`.
    pub final_norm: Norm<D::Vector>,
    /// The head, unless it is the embedding or the model has none.
    pub head: Option<D::Table>,
}

impl<D: Device> Weights<D> {
    /// Loads every tensor of `source` onto `device`; `progress` hears of each loaded layer, out of `n_layers`.
    pub fn load(device: &mut D, source: &dyn WeightSource, progress: &mut dyn FnMut(usize)) -> Result<Self, LoadError> {
        let config = source.config();
        let is_head = config.tied_head && !config.last_token_pooling;
        let table_use = if is_head { TableUse::Head } else { TableUse::Embedding };
        let embedding = device.table(source.table("model.embed_tokens.weight")?, table_use)?;
        let n_threads = device.describe().n_threads;
        let mut layers = Vec::with_capacity(config.n_layers);
        let mut matrices = HashMap::new();
        for layer in 0..config.n_layers {
            if matrices.is_empty() {
                let ahead = layer..config.n_layers.min(layer + n_threads.div_ceil(THREADS_PER_LAYER));
                matrices = load_matrices(source, ahead.map(prefix), n_threads)?;
            }
            layers.push(Loader { device, source, prefix: prefix(layer), matrices: &mut matrices }.layer()?);
            progress(layer + 1);
        }
        let mut loader = Loader { device, source, prefix: String::new(), matrices: &mut matrices };
        let final_norm = Norm { weight: loader.vector("model.norm")?, epsilon: config.rms_norm_eps };
        let has_head = !config.tied_head && !config.last_token_pooling;
        let head = if has_head { Some(device.table(source.table("lm_head.weight")?, TableUse::Head)?) } else { None };
        Ok(Self { embedding, layers, final_norm, head })
    }
}

fn prefix(layer: usize) -> String {
    format!("model.layers.{layer}.")
}

/// The matrices of some layers by name, loaded by several threads. An error is that of the first that has one.
fn load_matrices(
    source: &dyn WeightSource,
    prefixes: impl Iterator<Item = String>,
    n_threads: usize,
) -> Result<HashMap<String, TernaryMatrix>, CheckpointError> {
    let names: Vec<String> = prefixes.flat_map(|prefix| MATRICES.map(|name| format!("{prefix}{name}.weight"))).collect();
    let (next, loaded) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(names.len())));
    let work = || {
        while let Some((index, name)) = next_of(&names, &next) {
            let matrix = load_matrix(source, name);
            loaded.lock().unwrap_or_else(PoisonError::into_inner).push((index, matrix));
        }
    };
    std::thread::scope(|scope| {
        // A system that has no more threads has this one.
        let spawn = |_| std::thread::Builder::new().name("load".into()).spawn_scoped(scope, work).ok();
        let _helpers: Vec<_> = (1..n_threads.min(names.len())).map(spawn).collect();
        work();
    });
    let mut loaded = loaded.into_inner().unwrap_or_else(PoisonError::into_inner);
    loaded.sort_unstable_by_key(|(index, _)| *index);
    loaded.into_iter().map(|(index, matrix)| Ok((names[index].clone(), matrix?))).collect()
}

fn next_of<'a>(names: &'a [String], next: &AtomicUsize) -> Option<(usize, &'a str)> {
    let index = next.fetch_add(1, Ordering::Relaxed);
    names.get(index).map(|name| (index, name.as_str()))
}

fn load_matrix(source: &dyn WeightSource, name: &str) -> Result<TernaryMatrix, CheckpointError> {
    match source.load(name)? {
        Tensor::Ternary(matrix) => Ok(matrix),
        Tensor::Dense(dense) => {
            let reason = format!("stored as {:?} numbers; quantise the model first", dense.dtype());
            Err(CheckpointError::NotTernary { name: name.into(), reason })
        }
    }
}

struct Loader<'a, D: Device> {
    device: &'a mut D,
    source: &'a dyn WeightSource,
    prefix: String,
    /// Matrices that were loaded ahead.
    matrices: &'a mut HashMap<String, TernaryMatrix>,
}

impl<D: Device> Loader<'_, D> {
    fn layer(&mut self) -> Result<Layer<D>, LoadError> {
        let config = self.source.config();
        let attention = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"];
        let qk_norms = if config.qk_norm { Some((self.vector("self_attn.q_norm")?, self.vector("self_attn.k_norm")?)) } else { None };
        let sub_norm = |name| if config.sub_norms { Some(name) } else { None };
        Ok(Layer {
            qkv: self.projections(Some("input_layernorm"), &attention)?,
            qk_norms,
            o: self.projection(sub_norm("self_attn.attn_sub_norm"), "self_attn.o_proj")?,
            gate_up: self.projections(Some("post_attention_layernorm"), &["mlp.gate_proj", "mlp.up_proj"])?,
            down: self.projection(sub_norm("mlp.ffn_sub_norm"), "mlp.down_proj")?,
        })
    }

    /// Projections that read the same input: stacked into one, unless each has a norm of its own.
    fn projections(&mut self, norm: Option<&str>, names: &[&str]) -> Result<Vec<Projection<D>>, LoadError> {
        if !self.source.config().projection_norms {
            let parts = names.iter().map(|name| self.matrix(name)).collect::<Result<Vec<_>, _>>()?;
            let stacked = TernaryMatrix::stack(&parts).map_err(|source| self.matrix_error(names[0], source))?;
            return Ok(vec![Projection { norms: self.norms(norm, None)?, weights: self.upload(&stacked)?, first_column: 0 }]);
        }
        let mut first_column = 0;
        let mut projections = Vec::with_capacity(names.len());
        for name in names {
            let matrix = self.matrix(name)?;
            projections.push(Projection { norms: self.norms(norm, Some(name))?, weights: self.upload(&matrix)?, first_column });
            first_column += matrix.n_rows();
        }
        Ok(projections)
    }

    fn projection(&mut self, norm: Option<&str>, name: &str) -> Result<Projection<D>, LoadError> {
        let matrix = self.matrix(name)?;
        let own_norm = self.source.config().projection_norms.then_some(name);
        Ok(Projection { norms: self.norms(norm, own_norm)?, weights: self.upload(&matrix)?, first_column: 0 })
    }

    /// The norm before a projection, and the norm inside it, each with its own ε.
    fn norms(&mut self, norm: Option<&str>, projection: Option<&str>) -> Result<Vec<Norm<D::Vector>>, LoadError> {
        let config = self.source.config();
        let own = projection.map(|name| format!("{name}.norm"));
        let named = norm.map(|name| (name, config.rms_norm_eps)).into_iter();
        let named = named.chain(own.as_deref().map(|name| (name, config.projection_norm_eps)));
        named.map(|(name, epsilon)| Ok(Norm { weight: self.vector(name)?, epsilon })).collect()
    }

    fn vector(&mut self, name: &str) -> Result<D::Vector, LoadError> {
        let name = format!("{}{name}.weight", self.prefix);
        match self.source.load(&name)? {
            Tensor::Dense(dense) => Ok(self.device.vector(&dense.to_f32())?),
            Tensor::Ternary(_) => Err(CheckpointError::tensor(name, "a norm weight must be dense, found ternary").into()),
        }
    }

    fn matrix(&mut self, name: &str) -> Result<TernaryMatrix, LoadError> {
        let name = format!("{}{name}.weight", self.prefix);
        Ok(self.matrices.remove(&name).ok_or(CheckpointError::MissingTensor { name })?)
    }

    fn upload(&mut self, matrix: &TernaryMatrix) -> Result<D::Linear, LoadError> {
        let policy: ActivationPolicy = self.source.config().activation_policy;
        Ok(self.device.linear(matrix, policy)?)
    }

    fn matrix_error(&self, name: &str, source: bitnet_ternary::MatrixError) -> CheckpointError {
        CheckpointError::Matrix { name: format!("{}{name}.weight", self.prefix), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{RandomWeights, small_config};
    use crate::reference::ReferenceDevice;

    #[test]
    fn norms_before_and_inside_a_projection_keep_their_own_epsilon() {
        let config = ModelConfig { rms_norm_eps: 1e-5, projection_norms: true, projection_norm_eps: 1e-3, ..small_config() };
        let weights = Weights::load(&mut ReferenceDevice, &RandomWeights::new(config, 1), &mut |_| {}).expect("loads");
        let layer = &weights.layers[1];
        for projection in layer.qkv.iter().chain(&layer.gate_up).chain([&layer.o, &layer.down]) {
            let epsilons: Vec<f32> = projection.norms.iter().map(|norm| norm.epsilon).collect();
            assert_eq!(epsilons, [1e-5, 1e-3]);
        }
        assert_eq!(weights.final_norm.epsilon, 1e-5);
    }
}
