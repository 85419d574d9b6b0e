//! MLX 2-bit tensors of a safetensors folder: `weight` (uint32 words), `scales` and `biases`, to and from ternary matrices.
//!
//! Only ternary groups are read: bias = −scale and codes 0 to 2. Four-level groups are another model and are refused.
//! Source: ml-explore/mlx:python/mlx/nn/layers/quantized.py; ml-explore/mlx-lm:mlx_lm/utils.py (`quantization` in config.json).

use bitnet_ternary::TernaryMatrix;
use bitnet_ternary::layout::mlx::{CODES_PER_WORD, GROUP_SIZES, MlxError, pack, unpack as unpack_groups};

use crate::error::CheckpointError;
use crate::quantise::scales_by_group;

/// The contents of one quantised tensor.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Groups {
    /// `[n_rows, n_cols / 16]` little-endian uint32.
    pub(crate) words: Vec<u8>,
    /// `[n_rows, n_cols / group_size]`.
    pub(crate) scales: Vec<f32>,
    /// As many.
    pub(crate) biases: Vec<f32>,
}

/// Checks the shapes of weight, scales and biases for a tensor of `shape`, and gives the group size they imply.
pub(crate) fn check_shapes(name: &str, shape: [usize; 2], stored: [&[usize]; 3]) -> Result<usize, CheckpointError> {
    let wrong = |reason: String| CheckpointError::tensor(name, reason);
    let [n_rows, n_cols] = shape;
    let [weight, scales, biases] = stored;
    let (&[weight_rows, n_words], &[scale_rows, n_groups]) = (weight, scales) else {
        return Err(wrong(format!("weight {weight:?} and scales {scales:?} are not matrices")));
    };
    if weight_rows != n_rows || scale_rows != n_rows || scales != biases {
        return Err(wrong(format!("expected {n_rows} rows, got weight {weight:?}, scales {scales:?}, biases {biases:?}")));
    }
    if !n_cols.is_multiple_of(CODES_PER_WORD) || n_words != n_cols / CODES_PER_WORD {
        let bits = n_words.saturating_mul(32) / n_cols.max(1);
        let feature = format!("tensor `{name}` of about {bits} bits");
        return Err(CheckpointError::Unsupported { feature, reason: format!("{n_words} words for {n_cols} columns; 2-bit is read") });
    }
    GROUP_SIZES
        .into_iter()
        .find(|&size| n_cols.is_multiple_of(size) && n_cols / size == n_groups)
        .ok_or_else(|| wrong(format!("{n_groups} groups for {n_cols} columns; MLX has groups of 32, 64 and 128")))
}

/// The matrix of `groups`. A group that is not ternary is an error.
pub(crate) fn unpack(name: &str, shape: [usize; 2], group_size: usize, groups: Groups) -> Result<TernaryMatrix, CheckpointError> {
    unpack_groups(shape, group_size, groups.words, groups.scales, &groups.biases).map_err(|error| match error {
        MlxError::Matrix(source) => CheckpointError::Matrix { name: name.to_owned(), source },
        bias @ MlxError::Bias { .. } => CheckpointError::NotTernary { name: name.to_owned(), reason: bias.to_string() },
    })
}

/// The stored form of a matrix in canonical form.
pub(crate) fn groups(name: &str, matrix: &TernaryMatrix, group_size: usize) -> Result<Groups, CheckpointError> {
    let cannot = |reason: String| CheckpointError::CannotRepresent { format: "MLX", reason: format!("tensor `{name}`: {reason}") };
    let scales = scales_by_group(matrix, group_size);
    let scales = scales.ok_or_else(|| cannot(format!("{} columns do not make groups of {group_size}", matrix.n_cols())))?;
    let words = pack(matrix).map_err(|error| cannot(error.to_string()))?;
    // 0 − 0 is +0 and not −0, so a group of zeros has two equal numbers.
    let biases = scales.iter().map(|&scale| 0.0 - scale).collect();
    Ok(Groups { words, scales, biases })
}
