//! Ternary GGUF tensors to and from [`TernaryMatrix`]: which layout, in which blocks, with which scales. The bits themselves are
//! `bitnet_ternary::layout`'s.

use bitnet_ternary::layout::i2_s::{self, I2sLayout};
use bitnet_ternary::layout::q2_0::{self, BlockWidth};
use bitnet_ternary::layout::{LayoutError, ptq1_0, q1_0, tq1_0, tq2_0};
use bitnet_ternary::{Scales, TernaryMatrix};
use half::f16;

use super::ggml_type::GgmlType;
use crate::error::CheckpointError;

/// Weights that are unpacked at a time, so that a large embedding needs little more memory than its codes.
const CHUNK_WEIGHTS: usize = 1 << 20;

/// A scale that a format rounded, found while encoding.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Rounding {
    /// How many scales were rounded.
    pub(super) n_rounded: usize,
    /// How many scales there are.
    pub(super) n_scales: usize,
    /// Largest |rounded − exact| / |exact|.
    pub(super) largest_relative_error: f32,
}

/// A tensor's identity for decoding.
#[derive(Debug, Clone, Copy)]
pub(super) struct TernaryForm<'a> {
    pub(super) name: &'a str,
    pub(super) ggml_type: GgmlType,
    pub(super) n_rows: usize,
    pub(super) n_cols: usize,
    pub(super) i2s_layout: I2sLayout,
}

/// Decodes a whole tensor, `bytes` being exactly its stored size, to the coarsest scales that say the same.
pub(super) fn decode(form: TernaryForm<'_>, bytes: &[u8]) -> Result<TernaryMatrix, CheckpointError> {
    let TernaryForm { name, ggml_type, n_rows, n_cols, i2s_layout } = form;
    let matrix = |source| CheckpointError::Matrix { name: name.into(), source };
    if ggml_type == GgmlType::I2S && n_cols.is_multiple_of(4) {
        let mut codes = vec![0; n_rows * n_cols / 4];
        let scale = i2_s::repack(i2s_layout, bytes, n_cols, &mut codes).map_err(|error| layout_error(name, error))?;
        return TernaryMatrix::from_codes(n_rows, n_cols, codes, Scales::Tensor(scale)).map_err(matrix);
    }
    if ggml_type == GgmlType::I2S {
        let mut trits = vec![0; n_rows * n_cols];
        let scale = i2_s::unpack(i2s_layout, bytes, n_cols, &mut trits).map_err(|error| layout_error(name, error))?;
        return TernaryMatrix::from_trits(n_rows, n_cols, &trits, Scales::Tensor(scale)).map_err(matrix);
    }
    let (block_weights, block_bytes) = block_sizes(name, ggml_type)?;
    let row_bytes = n_cols / block_weights * block_bytes;
    let chunk_rows = (CHUNK_WEIGHTS / n_cols).max(1);
    let mut codes = Vec::with_capacity(n_rows * TernaryMatrix::row_bytes(n_cols));
    let mut scales = vec![0.0; n_rows * n_cols / block_weights];
    let mut trits = vec![0; chunk_rows.min(n_rows) * n_cols];
    for (bytes, scales) in bytes.chunks(chunk_rows * row_bytes).zip(scales.chunks_mut(chunk_rows * (n_cols / block_weights))) {
        let trits = &mut trits[..scales.len() * block_weights];
        unpack(ggml_type, bytes, trits, scales).map_err(|error| layout_error(name, error))?;
        for row in trits.chunks_exact(n_cols) {
            TernaryMatrix::pack_row(row, &mut codes);
        }
    }
    let scales = Scales::Group { group_size: block_weights, scales };
    TernaryMatrix::from_codes(n_rows, n_cols, codes, scales).map(TernaryMatrix::with_coarsest_scales).map_err(matrix)
}

/// Encodes a matrix, the inverse of [`decode`]. Scales that an f16 field cannot hold exactly are rounded and reported; scales that
/// the layout cannot hold at all are an error.
pub(super) fn encode(name: &str, ggml_type: GgmlType, matrix: &TernaryMatrix) -> Result<(Vec<u8>, Rounding), CheckpointError> {
    let cannot =
        |reason: String| CheckpointError::CannotRepresent { format: ggml_type.name(), reason: format!("tensor `{name}`: {reason}") };
    let (n_rows, n_cols) = (matrix.n_rows(), matrix.n_cols());
    if ggml_type == GgmlType::I2S {
        let Scales::Tensor(scale) = matrix.scales() else {
            return Err(cannot("it has one scale for the tensor, the weights have more".into()));
        };
        let n_bytes = i2_s::size_bytes(n_rows * n_cols).ok_or_else(|| cannot("the weights do not fill whole bytes".into()))?;
        let mut bytes = vec![0; n_bytes];
        let packed = i2_s::pack(I2sLayout::Blocks128, &matrix.to_trits(), n_cols, *scale, &mut bytes);
        packed.map_err(|error| cannot(error.to_string()))?;
        return Ok((bytes, Rounding { n_scales: 1, ..Rounding::default() }));
    }
    let (block_weights, block_bytes) = block_sizes(name, ggml_type)?;
    if !n_cols.is_multiple_of(block_weights) {
        return Err(cannot(format!("rows of {n_cols} are not whole blocks of {block_weights}")));
    }
    let blocks = n_cols / block_weights;
    let mut rounding = Rounding { n_scales: n_rows * blocks, ..Rounding::default() };
    let mut bytes = vec![0; n_rows * blocks * block_bytes];
    let (mut trits, mut scales) = (vec![0; n_cols], vec![0.0; blocks]);
    for (row, packed) in bytes.chunks_exact_mut(blocks * block_bytes).enumerate() {
        matrix.unpack_row(row, &mut trits);
        for (block, scale) in scales.iter_mut().enumerate() {
            let first = block * block_weights;
            let exact = matrix.scale_at(row, first);
            let step = matrix.group_size().min(block_weights);
            let one_scale =
                (first..first + block_weights).step_by(step).all(|column| matrix.scale_at(row, column).to_bits() == exact.to_bits());
            let last = matrix.scale_at(row, first + block_weights - 1);
            if !one_scale || last.to_bits() != exact.to_bits() {
                return Err(cannot(format!("row {row} has several scales in one block of {block_weights}")));
            }
            *scale = rounding.round(exact).ok_or_else(|| cannot(format!("scale {exact} is out of the range of f16")))?;
        }
        pack(ggml_type, &trits, &scales, packed).map_err(|error| cannot(error.to_string()))?;
    }
    Ok((bytes, rounding))
}

impl Rounding {
    /// The nearest f16 of a scale. `None` if it overflows, or if a scale that is not zero becomes zero.
    fn round(&mut self, exact: f32) -> Option<f32> {
        let rounded = f16::from_f32(exact).to_f32();
        if !rounded.is_finite() || (rounded == 0.0 && exact != 0.0) {
            return None;
        }
        if rounded != exact {
            self.n_rounded += 1;
            self.largest_relative_error = self.largest_relative_error.max(((rounded - exact) / exact).abs());
        }
        Some(rounded)
    }
}

fn block_sizes(name: &str, ggml_type: GgmlType) -> Result<(usize, usize), CheckpointError> {
    let sizes = ggml_type.block().filter(|_| ggml_type.is_ternary()).map(|(weights, bytes)| (weights as usize, bytes as usize));
    sizes.ok_or_else(|| CheckpointError::tensor(name, format!("{} does not hold ternary blocks", ggml_type.name())))
}

fn unpack(ggml_type: GgmlType, bytes: &[u8], trits: &mut [i8], scales: &mut [f32]) -> Result<(), LayoutError> {
    match ggml_type {
        GgmlType::Tq1_0 => tq1_0::unpack(bytes, trits, scales),
        GgmlType::Tq2_0 => tq2_0::unpack(bytes, trits, scales),
        GgmlType::Q1_0 => q1_0::unpack(bytes, trits, scales),
        GgmlType::Q2_0(width) => q2_0::unpack(width, bytes, trits, scales),
        GgmlType::Ptq1_0 => ptq1_0::unpack(bytes, trits, scales),
        // The only type left of those that `block_sizes` lets through.
        _ => q2_0::unpack(BlockWidth::Weights128, bytes, trits, scales),
    }
}

fn pack(ggml_type: GgmlType, trits: &[i8], scales: &[f32], bytes: &mut [u8]) -> Result<(), LayoutError> {
    match ggml_type {
        GgmlType::Tq1_0 => tq1_0::pack(trits, scales, bytes),
        GgmlType::Tq2_0 => tq2_0::pack(trits, scales, bytes),
        GgmlType::Q1_0 => q1_0::pack(trits, scales, bytes),
        GgmlType::Q2_0(width) => q2_0::pack(width, trits, scales, bytes),
        GgmlType::Ptq1_0 => ptq1_0::pack(trits, scales, bytes),
        _ => q2_0::pack(BlockWidth::Weights128, trits, scales, bytes),
    }
}

pub(super) fn layout_error(name: &str, error: LayoutError) -> CheckpointError {
    match error {
        LayoutError::CodeThree { .. } => CheckpointError::NotTernary { name: name.into(), reason: error.to_string() },
        _ => CheckpointError::tensor(name, error.to_string()),
    }
}
