//! Q1_0 (ggml type 41): binary weights, 128 in 18 bytes, f16 scale first. Bit 1 is +scale, bit 0 is −scale; no weight is zero.
//!
//! Weight j lies in byte j/8, bit j mod 8. Source: ggml-org/llama.cpp:ggml/src/ggml-quants.c `quantize_row_q1_0_ref`.

use super::{BlockShape, LayoutError, exact_f16, read_f16};

/// Name of the layout, as ggml spells it.
pub const LAYOUT: &str = "Q1_0";
/// Weights of a block.
pub const BLOCK_WEIGHTS: usize = 128;
/// Bytes of a block.
pub const BLOCK_BYTES: usize = 18;

const SHAPE: BlockShape = BlockShape { layout: LAYOUT, weights: BLOCK_WEIGHTS, size_bytes: BLOCK_BYTES };

const _: () = assert!(BLOCK_WEIGHTS / 8 + 2 == BLOCK_BYTES);

/// `bytes[n_blocks · 18]` → `trits[n_blocks · 128]` of ±1, `scales[n_blocks]`. Errors: lengths. Every byte value is valid.
pub fn unpack(bytes: &[u8], trits: &mut [i8], scales: &mut [f32]) -> Result<(), LayoutError> {
    SHAPE.check(trits.len(), scales.len(), bytes.len())?;
    for ((block, trits), scale) in bytes.chunks_exact(BLOCK_BYTES).zip(trits.chunks_exact_mut(BLOCK_WEIGHTS)).zip(scales) {
        *scale = read_f16(block);
        for (trits, &byte) in trits.chunks_exact_mut(8).zip(&block[2..]) {
            for (bit, trit) in trits.iter_mut().enumerate() {
                *trit = ((byte >> bit) & 1) as i8 * 2 - 1;
            }
        }
    }
    Ok(())
}

/// The inverse of [`unpack`], byte for byte. Errors: lengths, any value but −1 and 1, scales that f16 would round.
pub fn pack(trits: &[i8], scales: &[f32], bytes: &mut [u8]) -> Result<(), LayoutError> {
    SHAPE.check(trits.len(), scales.len(), bytes.len())?;
    if let Some(weight) = trits.iter().position(|&trit| trit != -1 && trit != 1) {
        return Err(LayoutError::Value { layout: LAYOUT, weight, value: trits[weight] });
    }
    let blocks = bytes.chunks_exact_mut(BLOCK_BYTES).zip(trits.chunks_exact(BLOCK_WEIGHTS)).zip(scales);
    for (index, ((block, trits), &scale)) in blocks.enumerate() {
        block[..2].copy_from_slice(&exact_f16(LAYOUT, index, scale)?);
        for (byte, trits) in block[2..].iter_mut().zip(trits.chunks_exact(8)) {
            *byte = trits.iter().enumerate().fold(0, |byte, (bit, &trit)| byte | (u8::from(trit == 1) << bit));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_256_byte_values_are_eight_signs() {
        for byte in 0..=255u8 {
            let mut block = [byte; BLOCK_BYTES];
            block[..2].copy_from_slice(&[0x00, 0x3C]);
            let mut trits = [0i8; BLOCK_WEIGHTS];
            unpack(&block, &mut trits, &mut [0.0]).expect("every byte is valid");
            for (weight, trit) in trits.into_iter().enumerate() {
                assert_eq!(trit, if byte & (1 << (weight % 8)) != 0 { 1 } else { -1 });
            }
        }
    }

    #[test]
    fn zero_is_refused_since_binary_weights_have_none() {
        let mut trits = [1i8; BLOCK_WEIGHTS];
        trits[77] = 0;
        let error = pack(&trits, &[1.0], &mut [0; BLOCK_BYTES]).unwrap_err();
        assert_eq!(error, LayoutError::Value { layout: LAYOUT, weight: 77, value: 0 });
    }
}
