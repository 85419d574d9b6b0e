//! TQ2_0 (ggml type 35): 256 weights in 66 bytes, 2 bits a weight, one f16 scale a block, last.
//!
//! Two halves of 32 bytes; weight `half·128 + lane·32 + m` lies in byte `half·32 + m`, bits `2·lane`, code = trit + 1.
//! Source: ggml-org/llama.cpp:ggml/src/ggml-quants.c `quantize_row_tq2_0_ref`, `dequantize_row_tq2_0`.

use super::{BlockShape, LayoutError, check_trits, exact_f16, has_code_three, read_f16};

/// Name of the layout, as ggml spells it.
pub const LAYOUT: &str = "TQ2_0";
/// Weights of a block.
pub const BLOCK_WEIGHTS: usize = 256;
/// Bytes of a block.
pub const BLOCK_BYTES: usize = 66;

const HALF_BYTES: usize = 32;
const CODE_BYTES: usize = 2 * HALF_BYTES;
const SHAPE: BlockShape = BlockShape { layout: LAYOUT, weights: BLOCK_WEIGHTS, size_bytes: BLOCK_BYTES };

const _: () = assert!(CODE_BYTES * 4 == BLOCK_WEIGHTS && CODE_BYTES + 2 == BLOCK_BYTES);

/// `bytes[n_blocks · 66]` → `trits[n_blocks · 256]`, `scales[n_blocks]`. Errors: lengths, code 3.
pub fn unpack(bytes: &[u8], trits: &mut [i8], scales: &mut [f32]) -> Result<(), LayoutError> {
    SHAPE.check(trits.len(), scales.len(), bytes.len())?;
    let blocks = bytes.chunks_exact(BLOCK_BYTES).zip(trits.chunks_exact_mut(BLOCK_WEIGHTS)).zip(scales);
    for (index, ((block, trits), scale)) in blocks.enumerate() {
        *scale = read_f16(&block[CODE_BYTES..]);
        for (half, (codes, trits)) in block[..CODE_BYTES].chunks_exact(HALF_BYTES).zip(trits.chunks_exact_mut(128)).enumerate() {
            if let Some(m) = codes.iter().position(|&byte| has_code_three(byte)) {
                let lane = (codes[m] & (codes[m] >> 1) & 0x55).trailing_zeros() as usize / 2;
                return Err(LayoutError::CodeThree { layout: LAYOUT, weight: index * BLOCK_WEIGHTS + half * 128 + lane * HALF_BYTES + m });
            }
            unpack_half(codes, trits);
        }
    }
    Ok(())
}

/// `codes[32]` → `trits[128]`.
fn unpack_half(codes: &[u8], trits: &mut [i8]) {
    for (lane, trits) in trits.chunks_exact_mut(HALF_BYTES).enumerate() {
        for (trit, &byte) in trits.iter_mut().zip(codes) {
            *trit = ((byte >> (2 * lane)) & 3) as i8 - 1;
        }
    }
}

/// The inverse of [`unpack`], byte for byte. Errors: lengths, values that are not trits, scales that f16 would round.
pub fn pack(trits: &[i8], scales: &[f32], bytes: &mut [u8]) -> Result<(), LayoutError> {
    SHAPE.check(trits.len(), scales.len(), bytes.len())?;
    check_trits(LAYOUT, trits)?;
    let blocks = bytes.chunks_exact_mut(BLOCK_BYTES).zip(trits.chunks_exact(BLOCK_WEIGHTS)).zip(scales);
    for (index, ((block, trits), &scale)) in blocks.enumerate() {
        block[CODE_BYTES..].copy_from_slice(&exact_f16(LAYOUT, index, scale)?);
        for (codes, trits) in block[..CODE_BYTES].chunks_exact_mut(HALF_BYTES).zip(trits.chunks_exact(128)) {
            for (m, byte) in codes.iter_mut().enumerate() {
                *byte = (0..4).fold(0, |byte, lane| byte | (((trits[lane * HALF_BYTES + m] + 1) as u8) << (2 * lane)));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_256_byte_values_decode_or_are_refused_with_their_place() {
        for byte in 0..=255u8 {
            let mut block = [0x55u8; BLOCK_BYTES];
            block[33] = byte;
            block[64..].copy_from_slice(&[0x00, 0x3C]);
            let (mut trits, mut scales) = ([9i8; BLOCK_WEIGHTS], [0.0]);
            let codes = [0, 2, 4, 6].map(|shift| (byte >> shift) & 3);
            match (unpack(&block, &mut trits, &mut scales), codes.iter().position(|&code| code == 3)) {
                (Ok(()), None) => {
                    assert_eq!(scales, [1.0]);
                    for (lane, code) in codes.into_iter().enumerate() {
                        assert_eq!(trits[128 + lane * 32 + 1], code as i8 - 1);
                    }
                }
                (Err(error), Some(lane)) => assert_eq!(error, LayoutError::CodeThree { layout: LAYOUT, weight: 128 + lane * 32 + 1 }),
                (result, three) => panic!("byte {byte}: {result:?}, code 3 in {three:?}"),
            }
        }
    }
}
