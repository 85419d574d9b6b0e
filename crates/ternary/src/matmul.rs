//! The exact scalar product that every kernel must equal, integer for integer.

use crate::matrix::TernaryMatrix;

/// `accumulators[n] = Σ_k quantized[k] · trit[n, k]` for one token over columns `columns` of every row.
///
/// Shapes: `quantized[k]`, `accumulators[n]`. Exact for `k <= K_MAX`. Panics if a length does not match the matrix.
pub fn dot_rows(quantized: &[i8], weights: &TernaryMatrix, columns: std::ops::Range<usize>, accumulators: &mut [i32]) {
    assert_eq!(quantized.len(), weights.n_cols(), "one activation for each column");
    assert_eq!(accumulators.len(), weights.n_rows(), "one accumulator for each row");
    let mut trits = vec![0i8; weights.n_cols()];
    for (row, accumulator) in accumulators.iter_mut().enumerate() {
        weights.unpack_row(row, &mut trits);
        let products = quantized[columns.clone()].iter().zip(&trits[columns.clone()]);
        *accumulator = products.map(|(&x, &trit)| i32::from(x) * i32::from(trit)).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Scales;

    #[test]
    fn dot_rows_over_extremes_is_exact() {
        let k = 6912;
        let weights = TernaryMatrix::from_trits(2, k, &[vec![1i8; k], vec![-1; k]].concat(), Scales::Tensor(1.0)).expect("valid");
        let mut accumulators = [0; 2];
        dot_rows(&vec![127; k], &weights, 0..k, &mut accumulators);
        assert_eq!(accumulators, [127 * 6912, -127 * 6912]);
        dot_rows(&vec![-127; k], &weights, 10..11, &mut accumulators);
        assert_eq!(accumulators, [-127, 127]);
    }
}
