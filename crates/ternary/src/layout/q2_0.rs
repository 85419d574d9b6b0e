//! Q2_0: a 2-bit layout whose codes 0, 1, 2 are trits and whose code 3 means +2; only tensors without code 3 are ternary.
//!
//! Two widths share ggml type 42: mainline has 64 weights in 18 bytes, the PrismML fork 128 weights in 34 bytes (also its type
//! 142, PQ2_0). Nothing in a block tells them apart, the tensor's size does. The f16 scale comes first; weight j lies in byte
//! j/4, bits 2·(j mod 4). Source: ggml-org/llama.cpp:ggml/src/ggml-quants.c; PrismML-Eng/llama.cpp; ggml-org/llama.cpp#24448.

use super::{BlockShape, LayoutError, check_trits, exact_f16, has_code_three, read_f16};

/// How many weights share a block and its scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockWidth {
    /// Mainline `Q2_0`: 64 weights, 18 bytes.
    Weights64,
    /// The fork's `Q2_0` and `PQ2_0`: 128 weights, 34 bytes.
    Weights128,
}

impl BlockWidth {
    /// Weights of a block.
    pub const fn weights(self) -> usize {
        match self {
            Self::Weights64 => 64,
            Self::Weights128 => 128,
        }
    }

    /// Bytes of a block.
    pub const fn size_bytes(self) -> usize {
        self.weights() / 4 + 2
    }

    /// Name of the layout.
    pub const fn layout(self) -> &'static str {
        match self {
            Self::Weights64 => "Q2_0",
            Self::Weights128 => "PQ2_0",
        }
    }

    const fn shape(self) -> BlockShape {
        BlockShape { layout: self.layout(), weights: self.weights(), size_bytes: self.size_bytes() }
    }
}

const _: () = assert!(BlockWidth::Weights64.size_bytes() == 18 && BlockWidth::Weights128.size_bytes() == 34);

/// `bytes[n_blocks · size]` → `trits[n_blocks · weights]`, `scales[n_blocks]`. Errors: lengths, code 3 (+2: not ternary).
pub fn unpack(width: BlockWidth, bytes: &[u8], trits: &mut [i8], scales: &mut [f32]) -> Result<(), LayoutError> {
    width.shape().check(trits.len(), scales.len(), bytes.len())?;
    let blocks = bytes.chunks_exact(width.size_bytes()).zip(trits.chunks_exact_mut(width.weights())).zip(scales);
    for (index, ((block, trits), scale)) in blocks.enumerate() {
        *scale = read_f16(block);
        let codes = &block[2..];
        if let Some(byte) = codes.iter().position(|&byte| has_code_three(byte)) {
            let slot = (codes[byte] & (codes[byte] >> 1) & 0x55).trailing_zeros() as usize / 2;
            return Err(LayoutError::CodeThree { layout: width.layout(), weight: index * width.weights() + byte * 4 + slot });
        }
        for (trits, &byte) in trits.chunks_exact_mut(4).zip(codes) {
            for (slot, trit) in trits.iter_mut().enumerate() {
                *trit = ((byte >> (2 * slot)) & 3) as i8 - 1;
            }
        }
    }
    Ok(())
}

/// The inverse of [`unpack`], byte for byte. Errors: lengths, values that are not trits, scales that f16 would round.
pub fn pack(width: BlockWidth, trits: &[i8], scales: &[f32], bytes: &mut [u8]) -> Result<(), LayoutError> {
    width.shape().check(trits.len(), scales.len(), bytes.len())?;
    check_trits(width.layout(), trits)?;
    let blocks = bytes.chunks_exact_mut(width.size_bytes()).zip(trits.chunks_exact(width.weights())).zip(scales);
    for (index, ((block, trits), &scale)) in blocks.enumerate() {
        block[..2].copy_from_slice(&exact_f16(width.layout(), index, scale)?);
        for (byte, trits) in block[2..].iter_mut().zip(trits.chunks_exact(4)) {
            *byte = trits.iter().enumerate().fold(0, |byte, (slot, &trit)| byte | (((trit + 1) as u8) << (2 * slot)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_256_byte_values_decode_or_are_refused_with_their_place() {
        for width in [BlockWidth::Weights64, BlockWidth::Weights128] {
            for byte in 0..=255u8 {
                let mut block = vec![0x55u8; width.size_bytes()];
                block[..2].copy_from_slice(&[0x00, 0x38]);
                block[2 + 7] = byte;
                let (mut trits, mut scales) = (vec![9i8; width.weights()], [0.0]);
                let codes = [0, 2, 4, 6].map(|shift| (byte >> shift) & 3);
                match (unpack(width, &block, &mut trits, &mut scales), codes.iter().position(|&code| code == 3)) {
                    (Ok(()), None) => {
                        assert_eq!(scales, [0.5]);
                        assert_eq!(trits[28..32], codes.map(|code| code as i8 - 1));
                    }
                    (Err(error), Some(slot)) => {
                        assert_eq!(error, LayoutError::CodeThree { layout: width.layout(), weight: 28 + slot });
                    }
                    (result, three) => panic!("byte {byte}: {result:?}, code 3 in {three:?}"),
                }
            }
        }
    }
}
