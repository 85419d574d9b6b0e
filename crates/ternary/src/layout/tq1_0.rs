//! TQ1_0 (ggml type 34): 256 weights in 54 bytes, five base-3 digits a byte, one f16 scale a block, last.
//!
//! Bytes 0–31 hold weights `n·32 + m` (n = digit 0..5), bytes 32–47 hold `160 + n·16 + m`, bytes 48–51 hold four digits each:
//! `240 + n·4 + m`. Source: ggml-org/llama.cpp:ggml/src/ggml-quants.c `quantize_row_tq1_0_ref`, `dequantize_row_tq1_0`.

use super::base_3::{Base3Layout, Run};
use super::{BlockShape, LayoutError};

/// Name of the layout, as ggml spells it.
pub const LAYOUT: &str = "TQ1_0";
/// Weights of a block.
pub const BLOCK_WEIGHTS: usize = 256;
/// Bytes of a block.
pub const BLOCK_BYTES: usize = 54;

const SHAPE: BlockShape = BlockShape { layout: LAYOUT, weights: BLOCK_WEIGHTS, size_bytes: BLOCK_BYTES };

const RUNS: [Run; 3] = [
    Run { first_byte: 0, n_bytes: 32, first_weight: 0, n_digits: 5 },
    Run { first_byte: 32, n_bytes: 16, first_weight: 160, n_digits: 5 },
    Run { first_byte: 48, n_bytes: 4, first_weight: 240, n_digits: 4 },
];

const BLOCKS: Base3Layout = Base3Layout::new(SHAPE, RUNS);

/// `bytes[n_blocks · 54]` → `trits[n_blocks · 256]`, `scales[n_blocks]`. Errors: lengths. Every byte value is valid.
pub fn unpack(bytes: &[u8], trits: &mut [i8], scales: &mut [f32]) -> Result<(), LayoutError> {
    BLOCKS.unpack(bytes, trits, scales)
}

/// The inverse of [`unpack`], to the bytes that ggml writes. Errors: lengths, values that are not trits, scales that f16 would round.
pub fn pack(trits: &[i8], scales: &[f32], bytes: &mut [u8]) -> Result<(), LayoutError> {
    BLOCKS.pack(trits, scales, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_ggml_bytes_are_the_ones_ggml_writes() {
        // All trits −1 is the number 0; all zero is 121 of 243 (four digits: 40 of 81 = 120 of 243); all +1 is 242 (240).
        for (trit, five, four) in [(-1, 0, 0), (0, 128, 127), (1, 255, 253)] {
            let mut bytes = [0; BLOCK_BYTES];
            pack(&[trit; BLOCK_WEIGHTS], &[1.0], &mut bytes).expect("packs");
            assert_eq!((bytes[0], bytes[47], bytes[48], bytes[51]), (five, five, four, four), "trit {trit}");
            assert_eq!(bytes[52..], [0x00, 0x3C], "the scale is last");
        }
    }
}
