//! PTQ1_0 (type 143 of the PrismML fork of ggml): 128 weights in 28 bytes, TQ1_0's base-3 digits, one f16 scale a block, last.
//!
//! Bytes 0–15 hold weights `n·16 + m` (n = digit 0..5), bytes 16–23 hold `80 + n·8 + m`, bytes 24–25 hold four digits each:
//! `120 + n·2 + m`. Source: PrismML-Eng/llama.cpp, ggml-quants.c (branch prism).

use super::base_3::{Base3Layout, Run};
use super::{BlockShape, LayoutError};

/// Name of the layout, as its fork spells it.
pub const LAYOUT: &str = "PTQ1_0";
/// Weights of a block.
pub const BLOCK_WEIGHTS: usize = 128;
/// Bytes of a block.
pub const BLOCK_BYTES: usize = 28;

const SHAPE: BlockShape = BlockShape { layout: LAYOUT, weights: BLOCK_WEIGHTS, size_bytes: BLOCK_BYTES };

const RUNS: [Run; 3] = [
    Run { first_byte: 0, n_bytes: 16, first_weight: 0, n_digits: 5 },
    Run { first_byte: 16, n_bytes: 8, first_weight: 80, n_digits: 5 },
    Run { first_byte: 24, n_bytes: 2, first_weight: 120, n_digits: 4 },
];

const BLOCKS: Base3Layout = Base3Layout::new(SHAPE, RUNS);

/// `bytes[n_blocks · 28]` → `trits[n_blocks · 128]`, `scales[n_blocks]`. Errors: lengths. Every byte value is valid.
pub fn unpack(bytes: &[u8], trits: &mut [i8], scales: &mut [f32]) -> Result<(), LayoutError> {
    BLOCKS.unpack(bytes, trits, scales)
}

/// The inverse of [`unpack`]. Errors: lengths, values that are not trits, scales that f16 would round.
pub fn pack(trits: &[i8], scales: &[f32], bytes: &mut [u8]) -> Result<(), LayoutError> {
    BLOCKS.pack(trits, scales, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_two_code_bytes_hold_the_last_eight_weights() {
        let mut trits = [0i8; BLOCK_WEIGHTS];
        trits[120..].copy_from_slice(&[1, -1, 1, -1, 1, -1, 1, -1]);
        let mut bytes = [0; BLOCK_BYTES];
        pack(&trits, &[1.0], &mut bytes).expect("packs");
        assert_eq!((bytes[24], bytes[25]), (253, 0));
        assert_eq!(bytes[26..], [0x00, 0x3C], "the scale is last");
    }
}
