//! The order of query and key rows. Files of the `llama` architecture hold them for interleaved rotary embedding (pairs of
//! neighbours); canonical order is for rotated halves. Row `h·d + half·d/2 + i` of the one is row `h·d + 2i + half` of the other.
//!
//! Source: ggml-org/llama.cpp:convert_hf_to_gguf.py `LlamaModel.permute`.

/// For each canonical row the stored row. `None` for tensors that are not rotated, and for sizes that are not whole heads.
pub(super) fn canonical_from_stored(name: &str, n_rows: usize, head_dim: usize) -> Option<Vec<usize>> {
    let rotated = name.ends_with("self_attn.q_proj.weight") || name.ends_with("self_attn.k_proj.weight");
    if !rotated || head_dim < 2 || !n_rows.is_multiple_of(head_dim) {
        return None;
    }
    let half = head_dim / 2;
    let stored = |row: usize| (row / head_dim) * head_dim + 2 * (row % head_dim % half) + row % head_dim / half;
    Some((0..n_rows).map(stored).collect())
}

/// For each stored row the canonical row.
pub(super) fn stored_from_canonical(name: &str, n_rows: usize, head_dim: usize) -> Option<Vec<usize>> {
    let order = canonical_from_stored(name, n_rows, head_dim)?;
    let mut inverse = vec![0; n_rows];
    for (canonical, stored) in order.into_iter().enumerate() {
        inverse[stored] = canonical;
    }
    Some(inverse)
}

/// Rows of a dense matrix in another order: row i of the result is row `order[i]`.
pub(super) fn reordered(bytes: &[u8], order: &[usize]) -> Vec<u8> {
    let row_bytes = bytes.len() / order.len();
    order.iter().flat_map(|&row| bytes[row * row_bytes..(row + 1) * row_bytes].iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interleaved_rows_return_to_halves() {
        // Two heads of four: stored a0 b0 a1 b1 is a0 a1 b0 b1.
        let order = canonical_from_stored("x.self_attn.k_proj.weight", 8, 4).expect("rotated");
        assert_eq!(order, [0, 2, 1, 3, 4, 6, 5, 7]);
        assert_eq!(canonical_from_stored("x.self_attn.v_proj.weight", 8, 4), None);
        let order = canonical_from_stored("x.self_attn.q_proj.weight", 24, 12).expect("rotated");
        let inverse = stored_from_canonical("x.self_attn.q_proj.weight", 24, 12).expect("rotated");
        assert!((0..24).all(|row| inverse[order[row]] == row));
        assert_eq!(reordered(&[1, 2, 3, 4, 5, 6], &[2, 0, 1]), [5, 6, 1, 2, 3, 4]);
    }
}
