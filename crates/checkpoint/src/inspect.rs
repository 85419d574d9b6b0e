//! What is inside a checkpoint, tensor by tensor and in total. Loads every tensor once, one at a time; computes nothing else.

use bitnet_ternary::{Scales, TernaryMatrix};
use serde::Serialize;

use crate::error::CheckpointError;
use crate::open::Checkpoint;
use crate::tensor::Tensor;

/// A whole checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inspection {
    /// The file format.
    pub format: String,
    /// Every tensor.
    pub tensors: Vec<TensorInspection>,
    /// Sums over all tensors.
    pub totals: Totals,
}

/// One tensor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorInspection {
    /// Canonical name.
    pub name: String,
    /// Logical shape.
    pub shape: Vec<usize>,
    /// Type as stored.
    pub stored_type: String,
    /// Bytes as stored.
    pub stored_bytes: u64,
    /// What its trits are like; absent for dense tensors.
    pub ternary: Option<TernaryInspection>,
}

/// The trits of one tensor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TernaryInspection {
    /// `tensor`, `row` or `group 128`: the coarsest scales that give the weights.
    pub scales: String,
    /// Zeros among the trits.
    pub n_zeros: u64,
    /// `n_zeros` as a share of all.
    pub share_of_zeros: f64,
}

/// Sums.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Totals {
    /// Parameters.
    pub n_parameters: u64,
    /// Parameters that are trits.
    pub n_ternary_parameters: u64,
    /// Zeros as a share of the trits.
    pub share_of_zeros: f64,
    /// Bytes of all tensors in the file.
    pub stored_bytes: u64,
    /// Bits of the file for each parameter.
    pub stored_bits_per_weight: f64,
    /// Bytes with trits in 2 bits, f32 scales and dense tensors as they are.
    pub ternary_bytes: u64,
    /// Bytes if every parameter had 16 bits.
    pub bytes_at_16_bits: u64,
    /// Bytes if every parameter had 32 bits.
    pub bytes_at_32_bits: u64,
}

/// Looks at every tensor.
pub fn inspect(checkpoint: &Checkpoint) -> Result<Inspection, CheckpointError> {
    let (mut tensors, mut totals, mut n_zeros) = (Vec::new(), Totals::default(), 0);
    for info in checkpoint.tensors() {
        let n_parameters = info.shape.iter().map(|&dim| dim as u64).product::<u64>();
        totals.n_parameters += n_parameters;
        totals.stored_bytes += info.stored.size_bytes;
        let ternary = match checkpoint.load(&info.name)? {
            Tensor::Dense(dense) => {
                totals.ternary_bytes += dense.bytes().len() as u64;
                None
            }
            Tensor::Ternary(matrix) => {
                let found = inspect_matrix(&matrix);
                totals.n_ternary_parameters += n_parameters;
                totals.ternary_bytes += matrix_bytes(&matrix);
                n_zeros += found.n_zeros;
                Some(found)
            }
        };
        tensors.push(TensorInspection {
            name: info.name.clone(),
            shape: info.shape.clone(),
            stored_type: info.stored.type_name.clone(),
            stored_bytes: info.stored.size_bytes,
            ternary,
        });
    }
    totals.share_of_zeros = share(n_zeros, totals.n_ternary_parameters);
    totals.stored_bits_per_weight = 8.0 * share(totals.stored_bytes, totals.n_parameters);
    totals.bytes_at_16_bits = 2 * totals.n_parameters;
    totals.bytes_at_32_bits = 4 * totals.n_parameters;
    Ok(Inspection { format: checkpoint.format_name().into(), tensors, totals })
}

fn inspect_matrix(matrix: &TernaryMatrix) -> TernaryInspection {
    let scales = match matrix.scales() {
        Scales::Tensor(_) => "tensor".into(),
        Scales::Row(_) => "row".into(),
        Scales::Group { group_size, .. } => format!("group {group_size}"),
    };
    let n_zeros = matrix.n_zeros() as u64;
    let n_weights = matrix.n_rows() as u64 * matrix.n_cols() as u64;
    TernaryInspection { scales, n_zeros, share_of_zeros: share(n_zeros, n_weights) }
}

/// Packed codes and f32 scales.
fn matrix_bytes(matrix: &TernaryMatrix) -> u64 {
    let n_scales = match matrix.scales() {
        Scales::Tensor(_) => 1,
        Scales::Row(scales) | Scales::Group { scales, .. } => scales.len(),
    };
    (matrix.n_rows() * TernaryMatrix::row_bytes(matrix.n_cols()) + n_scales * size_of::<f32>()) as u64
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}
