//! Floating-point tensors to ternary matrices: master weights by absmean, and numbers that are already trit × scale exactly, as
//! published "fake-quantised" checkpoints hold them. Also scales from one grouping to another without changing a weight.
//!
//! Nothing here rounds a weight that is not ternary: a dense tensor is refused with what was seen in it.
//! Source: BitNet b1.58 (arXiv 2402.17764 eq. 1–3); groupings: TriLM (arXiv 2407.12327), PrismML's groups of 128.

use std::collections::HashSet;

use bitnet_ternary::{Scales, TernaryMatrix, quantise};

use crate::error::CheckpointError;
use crate::rows::RowSource;
use crate::tensor::{DenseTensor, Tensor, widen};

/// Groupings along a row that detection and conversion know, coarse to fine.
const GROUP_SIZES: [usize; 4] = [256, 128, 64, 32];
/// Columns of a dense row that an error describes.
const SHOWN_COLUMNS: usize = 128;
/// How far a weight may be from 1/√fan-in, either way, before its scale is taken to mean the reciprocal. Generous: sub-norms let
/// trained scales drift by two orders of magnitude, and a reciprocal is off by 1/w², usually three or more.
const PLAUSIBLE_FACTOR: f32 = 1000.0;

/// Ternarises master weights `[n_rows, n_cols]` as quantisation-aware training did: one absmean scale for the tensor.
pub(crate) fn absmean(name: &str, dense: &DenseTensor) -> Result<TernaryMatrix, CheckpointError> {
    let [n_rows, n_cols] = matrix_shape(name, dense)?;
    let weights = dense.to_f32();
    // Checked here because one NaN among millions would otherwise become one quiet zero.
    if let Some(index) = weights.iter().position(|weight| !weight.is_finite()) {
        let reason = format!("row {} column {} is {}", index / n_cols, index % n_cols, weights[index]);
        return Err(CheckpointError::NotTernary { name: name.into(), reason });
    }
    quantise::absmean(n_rows, n_cols, &weights).map_err(|source| CheckpointError::Matrix { name: name.into(), source })
}

/// Packs a tensor whose every weight is −s, 0 or +s, s shared by the tensor, a row, or 256 to 32 neighbouring columns: the
/// coarsest of these that holds. Exact: s is the stored magnitude. Error `NotTernary` says what was seen instead.
pub(crate) fn pack_exact(name: &str, dense: &DenseTensor) -> Result<TernaryMatrix, CheckpointError> {
    matrix_shape(name, dense)?;
    pack_rows(name, dense)
}

/// [`pack_exact`] of rows that are read one after the other, no further than the first that is not ternary.
fn pack_rows(name: &str, rows: &dyn RowSource) -> Result<TernaryMatrix, CheckpointError> {
    let (n_rows, n_cols) = (rows.n_rows(), rows.n_cols());
    let group_size = GROUP_SIZES.into_iter().rev().find(|&size| n_cols.is_multiple_of(size)).unwrap_or(n_cols);
    let (mut scales, mut codes) = (Vec::new(), Vec::new());
    let (mut bytes, mut values) = (vec![0u8; rows.row_bytes()], vec![0.0f32; n_cols]);
    for row in 0..n_rows {
        rows.read_rows(row..row + 1, &mut bytes)?;
        widen(rows.dtype(), &bytes, &mut values);
        for group in values.chunks(group_size) {
            let scale = group_scale(group).ok_or_else(|| not_ternary(name, row, &values, group_size))?;
            scales.push(scale);
        }
        codes.extend(values.chunks(4).map(pack_signs));
    }
    let scales = Scales::Group { group_size, scales };
    let matrix = TernaryMatrix::from_codes(n_rows, n_cols, codes, scales);
    Ok(coarsen(matrix.map_err(|source| CheckpointError::Matrix { name: name.into(), source })?))
}

/// An embedding or a head: packed if it is exactly ternary, else as it is.
pub(crate) fn pack_table(name: &str, dense: DenseTensor) -> Result<Tensor, CheckpointError> {
    Ok(match pack_if_ternary(name, &dense)? {
        Some(matrix) => Tensor::Ternary(matrix),
        None => Tensor::Dense(dense),
    })
}

/// Rows of an embedding or a head, packed. `None` if they are not exactly ternary.
pub(crate) fn pack_if_ternary(name: &str, rows: &dyn RowSource) -> Result<Option<TernaryMatrix>, CheckpointError> {
    match pack_rows(name, rows) {
        Ok(matrix) => Ok(Some(matrix)),
        Err(CheckpointError::NotTernary { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The one magnitude of a group (0 if all are zero). `None` if there are two, or one is not finite.
fn group_scale(group: &[f32]) -> Option<f32> {
    let mut scale = 0.0f32;
    for magnitude in group.iter().map(|value| value.abs()) {
        if magnitude != scale && magnitude != 0.0 {
            if scale != 0.0 || !magnitude.is_finite() {
                return None;
            }
            scale = magnitude;
        }
    }
    Some(scale)
}

fn pack_signs(values: &[f32]) -> u8 {
    let code = |value: f32| if value == 0.0 { 1 } else { 2 * u8::from(value > 0.0) };
    values.iter().enumerate().fold(0, |byte, (slot, &value)| byte | (code(value) << (2 * slot)))
}

fn not_ternary(name: &str, row: usize, values: &[f32], group_size: usize) -> CheckpointError {
    let culprit = values.chunks(group_size).position(|group| group_scale(group).is_none()).unwrap_or(0);
    let begin = culprit * group_size / SHOWN_COLUMNS * SHOWN_COLUMNS;
    let window = &values[begin..(begin + SHOWN_COLUMNS).min(values.len())];
    let end = begin + window.len();
    let reason = match window.iter().position(|value| !value.is_finite()) {
        Some(column) => format!("row {row} column {} is {}", begin + column, window[column]),
        None => {
            let magnitudes: HashSet<u32> = window.iter().map(|value| value.abs().to_bits()).filter(|&bits| bits != 0).collect();
            let groups = "a ternary weight has one for each tensor, row or group of 256 to 32";
            format!("row {row} columns {begin}..{end} holds {} distinct magnitudes; {groups}", magnitudes.len())
        }
    };
    CheckpointError::NotTernary { name: name.into(), reason }
}

fn matrix_shape(name: &str, dense: &DenseTensor) -> Result<[usize; 2], CheckpointError> {
    dense.shape().try_into().map_err(|_| CheckpointError::tensor(name, format!("shape {:?} is not a matrix", dense.shape())))
}

/// Checks that a scale read from a packed file makes weights of a size that a layer of `n_cols` inputs can have: formats that
/// divide and formats that multiply by the stored number look alike, and the wrong one gives a model that only talks nonsense.
pub(crate) fn check_plausible(name: &str, n_cols: usize, scale: f32) -> Result<(), CheckpointError> {
    let typical = 1.0 / (n_cols as f32).sqrt();
    let plausible = typical / PLAUSIBLE_FACTOR..=typical * PLAUSIBLE_FACTOR;
    if plausible.contains(&scale) {
        return Ok(());
    }
    let reason = format!(
        "its weights would be ±{scale:e}, but a layer of {n_cols} inputs has weights near {typical:e}: \
         `linear_class` (bitlinear divides by weight_scale, autobitlinear multiplies) is probably wrong"
    );
    Err(CheckpointError::tensor(name, reason))
}

/// The same weights with the coarsest scales that give them. Unlike [`TernaryMatrix::with_coarsest_scales`] it knows that the scale
/// of a group of zeros says nothing: such a group joins any neighbour, and where it stands alone its scale becomes 0.
/// This is the canonical form: two files that hold equal weights load as equal matrices.
pub(crate) fn coarsen(matrix: TernaryMatrix) -> TernaryMatrix {
    if matches!(matrix.scales(), Scales::Tensor(_)) {
        return matrix;
    }
    let (n_rows, n_cols, base) = (matrix.n_rows(), matrix.n_cols(), matrix.group_size());
    let found = group_scales(&matrix);
    let per_row = n_cols / base;
    let scales = if let Some(tensor) = merge(&found, found.len()) {
        Scales::Tensor(tensor[0].unwrap_or(0.0))
    } else if let Some(rows) = merge(&found, per_row) {
        Scales::Row(plain(&rows))
    } else {
        let coarser = |size: &usize| *size > base && size.is_multiple_of(base) && n_cols.is_multiple_of(*size);
        let merged = GROUP_SIZES.into_iter().filter(coarser).find_map(|size| Some((size, merge(&found, size / base)?)));
        let (group_size, groups) = merged.unwrap_or((base, found));
        Scales::Group { group_size, scales: plain(&groups) }
    };
    let zeroed = with_zero_scale_groups_zeroed(&matrix);
    TernaryMatrix::from_codes(n_rows, n_cols, zeroed, scales).expect("codes and shape come from a valid matrix, scales are its own")
}

/// Scales of a matrix in canonical form for groups of exactly `group_size` columns, `[n_rows, n_cols / group_size]`.
/// `None` if the columns do not divide, or one group would need two scales.
pub(crate) fn scales_by_group(matrix: &TernaryMatrix, group_size: usize) -> Option<Vec<f32>> {
    if group_size == 0 || !matrix.n_cols().is_multiple_of(group_size) || !matrix.group_size().is_multiple_of(group_size) {
        return None;
    }
    let mut scales = Vec::with_capacity(matrix.n_rows() * (matrix.n_cols() / group_size));
    for row in 0..matrix.n_rows() {
        for begin in (0..matrix.n_cols()).step_by(group_size) {
            let zero = is_zero_group(matrix, row, begin..begin + group_size);
            scales.push(if zero { 0.0 } else { matrix.scale_at(row, begin) });
        }
    }
    Some(scales)
}

/// The scale of each group as the matrix has them; `None` where it says nothing.
fn group_scales(matrix: &TernaryMatrix) -> Vec<Option<f32>> {
    let group_size = matrix.group_size();
    let mut found = Vec::with_capacity(matrix.n_rows() * (matrix.n_cols() / group_size));
    for row in 0..matrix.n_rows() {
        for begin in (0..matrix.n_cols()).step_by(group_size) {
            let scale = matrix.scale_at(row, begin);
            let silent = scale == 0.0 || is_zero_group(matrix, row, begin..begin + group_size);
            found.push((!silent).then_some(scale));
        }
    }
    found
}

/// Joins runs of `n` groups if within each run those that say something agree.
fn merge(found: &[Option<f32>], n: usize) -> Option<Vec<Option<f32>>> {
    let join = |run: &[Option<f32>]| {
        let first = run.iter().copied().flatten().next();
        run.iter().flatten().all(|scale| Some(scale.to_bits()) == first.map(f32::to_bits)).then_some(first)
    };
    found.chunks(n).map(join).collect()
}

fn plain(scales: &[Option<f32>]) -> Vec<f32> {
    scales.iter().map(|scale| scale.unwrap_or(0.0)).collect()
}

/// Whether every trit of `columns` is 0.
fn is_zero_group(matrix: &TernaryMatrix, row: usize, columns: std::ops::Range<usize>) -> bool {
    /// Four zeros: code 1 in each place.
    const ZEROS: u8 = 0x55;
    let codes = matrix.row_codes(row);
    if columns.start.is_multiple_of(4) && columns.end.is_multiple_of(4) {
        return codes[columns.start / 4..columns.end / 4].iter().all(|&byte| byte == ZEROS);
    }
    columns.into_iter().all(|column| (codes[column / 4] >> (2 * (column % 4))) & 3 == 1)
}

/// All codes; trits under a scale of 0 are 0, so that a coarser scale cannot wake them.
fn with_zero_scale_groups_zeroed(matrix: &TernaryMatrix) -> Vec<u8> {
    let (n_cols, group_size) = (matrix.n_cols(), matrix.group_size());
    let mut codes = Vec::with_capacity(matrix.n_rows() * TernaryMatrix::row_bytes(n_cols));
    for row in 0..matrix.n_rows() {
        let begin = codes.len();
        codes.extend_from_slice(matrix.row_codes(row));
        let line = &mut codes[begin..];
        for group in (0..n_cols).step_by(group_size).filter(|&group| matrix.scale_at(row, group) == 0.0) {
            for column in group..group + group_size {
                let shift = 2 * (column % 4);
                line[column / 4] = (line[column / 4] & !(3 << shift)) | (1 << shift);
            }
        }
    }
    codes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A matrix of trits times scales as dense bf16-exact numbers.
    fn dense(n_rows: usize, n_cols: usize, value: impl Fn(usize, usize) -> f32) -> DenseTensor {
        let values: Vec<f32> = (0..n_rows * n_cols).map(|i| value(i / n_cols, i % n_cols)).collect();
        DenseTensor::from_f32(vec![n_rows, n_cols], &values).expect("as many values as the shape says")
    }

    fn trit(row: usize, column: usize) -> f32 {
        ((row * 7 + column * 5 + column / 3) % 3) as f32 - 1.0
    }

    #[test]
    fn exact_packing_finds_the_coarsest_grouping() {
        let tensor = pack_exact("t", &dense(4, 512, |r, c| trit(r, c) * 0.25)).expect("ternary");
        assert_eq!(tensor.scales(), &Scales::Tensor(0.25));
        let rows = pack_exact("t", &dense(2, 100, |r, c| trit(r, c) * (r + 1) as f32)).expect("ternary");
        assert_eq!(rows.scales(), &Scales::Row(vec![1.0, 2.0]));
        for group_size in GROUP_SIZES {
            let scale = |column: usize| (column / group_size % 2 + 1) as f32;
            let packed = pack_exact("t", &dense(3, 512, |r, c| trit(r, c) * scale(c))).expect("ternary");
            assert_eq!(packed.group_size(), group_size);
        }
    }

    #[test]
    fn dense_weights_are_refused_with_what_was_seen() {
        let error = pack_exact("layer", &dense(2, 256, |_, c| 1.0 + c as f32)).unwrap_err().to_string();
        assert!(error.contains("`layer` is not ternary: row 0 columns 0..128 holds 128 distinct magnitudes"), "{error}");
        // One weight of one row is enough.
        let error = pack_exact("t", &dense(9, 256, |r, c| if (r, c) == (8, 255) { 0.3 } else { trit(r, c) })).unwrap_err().to_string();
        assert!(error.contains("row 8 columns 128..256 holds 2 distinct"), "{error}");
        // Groups of 16 are not a grouping that any format has.
        assert!(pack_exact("t", &dense(1, 64, |r, c| trit(r, c) * (c / 16 + 1) as f32)).is_err());
    }

    #[test]
    fn numbers_that_are_not_finite_are_refused() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let tensor = dense(1, 32, |_, c| if c == 5 { bad } else { 0.0 });
            assert!(matches!(pack_exact("t", &tensor), Err(CheckpointError::NotTernary { .. })), "{bad}");
            assert!(absmean("t", &tensor).is_err(), "{bad}");
        }
    }

    #[test]
    fn zeros_say_nothing_about_a_scale() {
        let zeros = pack_exact("t", &dense(2, 64, |_, _| -0.0)).expect("ternary");
        assert_eq!((zeros.scales(), zeros.n_zeros()), (&Scales::Tensor(0.0), 128));
        let mostly = pack_exact("t", &dense(3, 64, |r, c| if r == 1 { 0.0 } else { trit(r, c) })).expect("ternary");
        assert_eq!(mostly.scales(), &Scales::Tensor(1.0));
        let rows = pack_exact("t", &dense(3, 64, |r, c| trit(r, c) * r as f32)).expect("ternary");
        assert_eq!(rows.scales(), &Scales::Row(vec![0.0, 1.0, 2.0]));
    }

    #[test]
    fn trits_under_a_zero_scale_become_zero() {
        let scales = Scales::Group { group_size: 2, scales: vec![0.0, 3.0] };
        let matrix = TernaryMatrix::from_trits(1, 4, &[1, -1, 1, 0], scales).expect("valid");
        let coarse = coarsen(matrix);
        assert_eq!((coarse.to_trits(), coarse.scales()), (vec![0, 0, 1, 0], &Scales::Tensor(3.0)));
    }

    #[test]
    fn implausible_scales_are_refused() {
        assert!(check_plausible("t", 2560, 1.2).is_ok(), "a trained scale far from 1/sqrt(k), as sub-norms allow");
        assert!(check_plausible("t", 2560, 0.01).is_ok());
        let error = check_plausible("t", 2560, 50.0).unwrap_err().to_string();
        assert!(error.contains("linear_class"), "{error}");
        for bad in [0.0, -0.02, f32::NAN, f32::INFINITY, 1e-9] {
            assert!(check_plausible("t", 2560, bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn exact_packing_matches_the_dense_weights(
            trits in proptest::collection::vec(-1i8..=1, 3 * 128),
            scales in proptest::collection::vec(prop_oneof![Just(0.5f32), Just(0.75), Just(2.0)], 12),
        ) {
            let weight = |r: usize, c: usize| f32::from(trits[r * 128 + c]) * scales[r * 4 + c / 32];
            let packed = pack_exact("t", &dense(3, 128, weight)).expect("ternary");
            let mut row_values = vec![0.0; 128];
            for row in 0..3 {
                packed.dequantise_row(row, &mut row_values);
                for (column, &value) in row_values.iter().enumerate() {
                    prop_assert_eq!(value, weight(row, column));
                }
            }
            let by_group = scales_by_group(&packed, 32).expect("groups of 32 are the finest");
            let again = TernaryMatrix::from_trits(3, 128, &packed.to_trits(), Scales::Group { group_size: 32, scales: by_group });
            prop_assert_eq!(coarsen(again.expect("valid")), packed);
        }
    }
}
