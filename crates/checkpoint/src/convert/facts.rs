//! The first pass of a conversion: what every tensor is and which precisions hold it exactly. Small: a few words a tensor.

use super::{ConvertProgress, ConvertStage, Loader};
use crate::config::TensorRole;
use crate::convert::encode::holds;
use crate::error::CheckpointError;
use crate::open::Checkpoint;
use crate::tensor::{DenseTensor, DenseType, Tensor};
use bitnet_ternary::{Scales, TernaryMatrix};

/// What the first pass found.
#[derive(Debug)]
pub(super) struct Facts {
    /// In the order of [`Checkpoint::tensors`].
    pub(super) tensors: Vec<TensorFacts>,
    /// The precision of the model's dense weights: that of its embedding.
    pub(super) dtype: DenseType,
}

/// One tensor.
#[derive(Debug)]
pub(super) struct TensorFacts {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) role: TensorRole,
    pub(super) content: Content,
}

/// What a tensor holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Content {
    /// Numbers of a stored precision.
    Dense { dtype: DenseType, exact: ExactIn },
    /// Trits; `tensor_scale` where there is one for all, `group_size` columns share one.
    Ternary { tensor_scale: Option<f32>, group_size: usize, exact: ExactIn },
}

/// Which 16-bit precisions hold every number (of a norm) or every scale exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ExactIn {
    f16: bool,
    bf16: bool,
}

impl ExactIn {
    fn of(values: &[f32]) -> Self {
        let all = |dtype| values.iter().all(|&value| holds(dtype, value));
        Self { f16: all(DenseType::F16), bf16: all(DenseType::Bf16) }
    }

    /// `preferred` if it is exact, else the narrowest that is.
    pub(super) fn narrowest(self, preferred: DenseType) -> DenseType {
        match preferred {
            DenseType::F32 => DenseType::F32,
            DenseType::F16 if self.f16 => DenseType::F16,
            _ if self.bf16 => DenseType::Bf16,
            _ if self.f16 => DenseType::F16,
            _ => DenseType::F32,
        }
    }
}

/// Looks at every tensor.
pub(super) fn examine(checkpoint: &Checkpoint, progress: &mut dyn FnMut(ConvertProgress)) -> Result<Facts, CheckpointError> {
    let mut loader = Loader::new(checkpoint);
    let mut tensors = Vec::with_capacity(checkpoint.tensors().len());
    for (index, stored) in checkpoint.tensors().iter().enumerate() {
        let (n_done, n_total) = (index, checkpoint.tensors().len());
        progress(ConvertProgress { stage: ConvertStage::Examining, n_done, n_total, tensor: &stored.name });
        let role = TensorRole::of(&stored.name);
        let content = match loader.load(index)? {
            Tensor::Dense(dense) => dense_facts(role, dense),
            Tensor::Ternary(matrix) => ternary_facts(matrix),
        };
        tensors.push(TensorFacts { name: stored.name.clone(), shape: stored.shape.clone(), role, content });
    }
    let embedding = tensors.iter().find(|tensor| tensor.role == TensorRole::Table).map(|tensor| tensor.content);
    let dtype = match embedding {
        Some(Content::Dense { dtype, .. }) => dtype,
        Some(Content::Ternary { exact, .. }) => exact.narrowest(DenseType::Bf16),
        None => DenseType::F32,
    };
    Ok(Facts { tensors, dtype })
}

/// Norms are small, and GGUF holds them in f32: their numbers are looked at, so that 16-bit norms come back as 16-bit norms.
/// Embeddings keep the precision that they have.
fn dense_facts(role: TensorRole, dense: &DenseTensor) -> Content {
    let dtype = dense.dtype();
    let exact = match role {
        TensorRole::Vector => ExactIn::of(&dense.to_f32()),
        TensorRole::Linear | TensorRole::Table => ExactIn { f16: dtype == DenseType::F16, bf16: dtype == DenseType::Bf16 },
    };
    Content::Dense { dtype, exact }
}

fn ternary_facts(matrix: &TernaryMatrix) -> Content {
    let (tensor_scale, exact) = match matrix.scales() {
        Scales::Tensor(scale) => (Some(*scale), ExactIn::of(&[*scale])),
        Scales::Row(scales) | Scales::Group { scales, .. } => (None, ExactIn::of(scales)),
    };
    Content::Ternary { tensor_scale, group_size: matrix.group_size(), exact }
}
