//! MLX affine 2-bit packing: uint32 words `[n_rows, n_cols / 16]`, sixteen codes a word, least significant bits first; for each
//! group of 32, 64 or 128 neighbouring columns a scale and a bias: value = code · scale + bias. A ternary group has
//! bias = −scale and the codes 0, 1, 2.
//!
//! Little-endian words are byte for byte the rows of [`TernaryMatrix`], so packing copies. General affine groups (four levels, or
//! another bias) are refused, not rounded. Source: ml-explore/mlx:mlx/backend/metal/kernels/quantized.h and
//! `mlx.core.quantize`, mode `affine`.

use thiserror::Error;

use crate::matrix::{MatrixError, Scales, TernaryMatrix};

/// Codes in one uint32.
pub const CODES_PER_WORD: usize = 16;
/// Group sizes that MLX computes with.
pub const GROUP_SIZES: [usize; 3] = [128, 64, 32];

const _: () = assert!(CODES_PER_WORD * 2 == u32::BITS as usize);

/// Why an affine group is not ternary.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum MlxError {
    #[error(transparent)]
    Matrix(#[from] MatrixError),
    #[error("group {group} has scale {scale} and bias {bias}; a ternary group has bias = -scale and scale at least 0")]
    Bias { group: usize, scale: f32, bias: f32 },
}

/// The words `[n_rows, n_cols / 16]` of `matrix`, little-endian. Error: columns that are not a multiple of 16.
pub fn pack(matrix: &TernaryMatrix) -> Result<Vec<u8>, MlxError> {
    check_columns(matrix.n_cols())?;
    Ok((0..matrix.n_rows()).flat_map(|row| matrix.row_codes(row).iter().copied()).collect())
}

/// The matrix of little-endian `words` `[n_rows, n_cols / 16]` with `scales` and `biases` `[n_rows, n_cols / group_size]`.
/// Errors: lengths that do not match, bias ≠ −scale, a negative scale, code 3.
pub fn unpack(shape: [usize; 2], group_size: usize, words: Vec<u8>, scales: Vec<f32>, biases: &[f32]) -> Result<TernaryMatrix, MlxError> {
    let [n_rows, n_cols] = shape;
    check_columns(n_cols)?;
    if biases.len() != scales.len() {
        return Err(MatrixError::Length { what: "biases", expected: scales.len(), got: biases.len() }.into());
    }
    // Written so that a NaN fails too.
    let ternary = |scale: f32, bias: f32| scale >= 0.0 && bias == -scale;
    if let Some(group) = scales.iter().zip(biases).position(|(&scale, &bias)| !ternary(scale, bias)) {
        return Err(MlxError::Bias { group, scale: scales[group], bias: biases[group] });
    }
    Ok(TernaryMatrix::from_codes(n_rows, n_cols, words, Scales::Group { group_size, scales })?)
}

fn check_columns(n_cols: usize) -> Result<(), MatrixError> {
    if n_cols.is_multiple_of(CODES_PER_WORD) {
        return Ok(());
    }
    let expected = n_cols.checked_next_multiple_of(CODES_PER_WORD).unwrap_or(n_cols);
    Err(MatrixError::Length { what: "columns of a 2-bit affine weight", expected, got: n_cols })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_code_is_in_the_lowest_bits_of_the_word() {
        let mut trits = [0i8; 16];
        trits[0] = 1;
        trits[15] = -1;
        let matrix = TernaryMatrix::from_trits(1, 16, &trits, Scales::Tensor(1.0)).expect("valid");
        let words = pack(&matrix).expect("one word");
        let word = u32::from_le_bytes(words.try_into().expect("four bytes"));
        assert_eq!((word & 3, word >> 30), (2, 0));
        assert_eq!((word >> 2) & 3, 1);
    }

    #[test]
    fn every_byte_of_a_word_round_trips_or_is_refused() {
        for byte in 0..=255u8 {
            for place in 0..4 {
                let mut words = vec![0x55u8; 8];
                words[place] = byte;
                let unpacked = unpack([1, 32], 32, words.clone(), vec![0.5], &[-0.5]);
                let has_three = (0..4).any(|slot| (byte >> (2 * slot)) & 3 == 3);
                assert_eq!(unpacked.is_err(), has_three, "byte {byte}");
                if let Ok(matrix) = unpacked {
                    assert_eq!(pack(&matrix).expect("valid"), words);
                }
            }
        }
    }

    #[test]
    fn groups_that_are_not_ternary_are_refused() {
        let words = || vec![0x55u8; 16];
        for (scale, bias) in [(0.5, -0.25), (0.5, 0.5), (-0.5, 0.5), (f32::NAN, f32::NAN), (f32::INFINITY, f32::NEG_INFINITY)] {
            assert!(unpack([1, 64], 32, words(), vec![1.0, scale], &[-1.0, bias]).is_err(), "scale {scale} bias {bias}");
        }
        assert!(unpack([1, 64], 32, words(), vec![1.0, 0.0], &[-1.0, 0.0]).is_ok(), "a group of zeros");
    }

    #[test]
    fn bad_shapes_and_lengths_are_refused() {
        assert!(unpack([1, 24], 8, vec![0; 6], vec![1.0; 3], &[-1.0; 3]).is_err());
        assert!(unpack([1, 32], 32, vec![0; 7], vec![1.0], &[-1.0]).is_err());
        assert!(unpack([1, 32], 32, vec![0; 8], vec![1.0], &[]).is_err());
        assert!(unpack([1, 32], 0, vec![0; 8], vec![1.0], &[-1.0]).is_err());
        assert!(unpack([1, 32], 32, vec![0; 8], vec![1.0; 2], &[-1.0; 2]).is_err());
        assert!(unpack([usize::MAX, 32], 32, vec![], vec![], &[]).is_err());
        let narrow = TernaryMatrix::from_trits(1, 8, &[0; 8], Scales::Tensor(1.0)).expect("valid");
        assert!(pack(&narrow).is_err());
    }
}
