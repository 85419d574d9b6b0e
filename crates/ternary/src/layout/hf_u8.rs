//! Hugging Face `quant_method: bitnet` packing: uint8 `[n_rows / 4, n_cols]`, four *rows* a byte, strided: with R = n_rows / 4,
//! bits 2i and 2i+1 of byte (r, c) hold the code (trit + 1) of weight [i·R + r, c].
//!
//! It knows nothing of `weight_scale`, whose meaning depends on the configuration (`linear_class`): the scale comes in and goes
//! out as a real = trit × scale. Source: huggingface/transformers:src/transformers/integrations/bitnet.py (pack_weights,
//! unpack_weights).

use crate::matrix::{MatrixError, Scales, TernaryMatrix, join_codes};

/// Rows that share a byte.
pub const ROWS_PER_BYTE: usize = 4;

/// Packs the codes of `matrix` as `[n_rows / 4, n_cols]`. The scales are the caller's. Error: rows that are not a multiple of 4.
pub fn pack(matrix: &TernaryMatrix) -> Result<Vec<u8>, MatrixError> {
    let (n_rows, n_cols) = (matrix.n_rows(), matrix.n_cols());
    let stride = row_stride(n_rows, n_cols)?;
    let mut packed = vec![0u8; stride * n_cols];
    for row in 0..n_rows {
        let shift = 2 * (row / stride);
        let codes = matrix.row_codes(row);
        let line = &mut packed[(row % stride) * n_cols..][..n_cols];
        for (column, byte) in line.iter_mut().enumerate() {
            *byte |= ((codes[column / 4] >> (2 * (column % 4))) & 3) << shift;
        }
    }
    Ok(packed)
}

/// Unpacks `packed` `[n_rows / 4, n_cols]` into a matrix of `n_rows` rows with one scale.
/// Errors: a length that does not match the shape, the unused code 3, a scale that is not finite.
pub fn unpack(n_rows: usize, n_cols: usize, packed: &[u8], scale: f32) -> Result<TernaryMatrix, MatrixError> {
    let stride = row_stride(n_rows, n_cols)?;
    let expected = stride.checked_mul(n_cols).ok_or(MatrixError::Shape { n_rows, n_cols })?;
    if packed.len() != expected {
        return Err(MatrixError::Length { what: "packed uint8 weight", expected, got: packed.len() });
    }
    let row_bytes = TernaryMatrix::row_bytes(n_cols);
    let mut codes = vec![0u8; n_rows * row_bytes];
    for (row, line) in codes.chunks_exact_mut(row_bytes).enumerate() {
        let shift = 2 * (row / stride);
        let source = &packed[(row % stride) * n_cols..][..n_cols];
        let (fours, rest) = source.as_chunks::<4>();
        for (byte, columns) in line.iter_mut().zip(fours) {
            *byte = join_codes((u32::from_le_bytes(*columns) >> shift) & 0x0303_0303);
        }
        if let Some(byte) = line.get_mut(fours.len()) {
            *byte = rest.iter().enumerate().fold(0, |byte, (slot, &rows)| byte | (((rows >> shift) & 3) << (2 * slot)));
        }
    }
    TernaryMatrix::from_codes(n_rows, n_cols, codes, Scales::Tensor(scale))
}

fn row_stride(n_rows: usize, n_cols: usize) -> Result<usize, MatrixError> {
    if n_rows == 0 || n_cols == 0 {
        return Err(MatrixError::Shape { n_rows, n_cols });
    }
    if !n_rows.is_multiple_of(ROWS_PER_BYTE) {
        let expected = n_rows.next_multiple_of(ROWS_PER_BYTE);
        return Err(MatrixError::Length { what: "rows of a packed uint8 weight", expected, got: n_rows });
    }
    Ok(n_rows / ROWS_PER_BYTE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_unpacks_to_its_four_rows_or_is_refused() {
        for byte in 0..=255u8 {
            let rows = [byte & 3, (byte >> 2) & 3, (byte >> 4) & 3, byte >> 6];
            let unpacked = unpack(4, 1, &[byte], 0.5);
            match rows.iter().position(|&code| code == 3) {
                Some(row) => assert_eq!(unpacked, Err(MatrixError::CodeThree { row, column: 0 })),
                None => {
                    let matrix = unpacked.expect("codes 0 to 2");
                    assert_eq!(matrix.to_trits(), rows.map(|code| code as i8 - 1));
                    assert_eq!(pack(&matrix).expect("four rows"), [byte]);
                }
            }
        }
    }

    #[test]
    fn rows_are_strided_not_neighbouring() {
        // Eight rows, R = 2: byte (1, 0) holds rows 1, 3, 5, 7.
        let matrix = unpack(8, 1, &[0b01_01_01_01, 0b00_10_01_00], 1.0).expect("valid");
        assert_eq!(matrix.to_trits(), [0, -1, 0, 0, 0, 1, 0, -1]);
    }

    #[test]
    fn every_width_packed_and_unpacked_is_the_same() {
        for n_cols in 1..=1025 {
            let trits: Vec<i8> = (0..8 * n_cols).map(|i| ((i * 7 + i / 5) % 3) as i8 - 1).collect();
            let matrix = TernaryMatrix::from_trits(8, n_cols, &trits, Scales::Tensor(2.0)).expect("valid");
            let packed = pack(&matrix).expect("eight rows");
            assert_eq!(unpack(8, n_cols, &packed, 2.0).expect("valid"), matrix, "n_cols {n_cols}");
        }
    }

    #[test]
    fn bad_shapes_lengths_and_scales_are_refused() {
        assert!(matches!(unpack(6, 2, &[0; 2], 1.0), Err(MatrixError::Length { expected: 8, got: 6, .. })));
        assert!(matches!(unpack(0, 2, &[], 1.0), Err(MatrixError::Shape { .. })));
        assert!(matches!(unpack(4, usize::MAX, &[], 1.0), Err(MatrixError::Length { .. })));
        assert!(matches!(unpack(8, usize::MAX, &[], 1.0), Err(MatrixError::Shape { .. })));
        assert!(matches!(unpack(4, 3, &[0; 2], 1.0), Err(MatrixError::Length { expected: 3, got: 2, .. })));
        assert!(matches!(unpack(4, 1, &[0], f32::INFINITY), Err(MatrixError::Scale { .. })));
        let odd = TernaryMatrix::from_trits(3, 1, &[0, 0, 0], Scales::Tensor(1.0)).expect("valid");
        assert!(pack(&odd).is_err());
    }
}
