//! Five trits in a byte, as TQ1_0 and PTQ1_0 hold them: ⌈q·256/243⌉ for the number q of five base-3 digits. A block is three runs of
//! such bytes and an f16 scale at its end; the two layouts differ in the lengths of the runs only, and those are theirs to say.
//!
//! Source: ggml-org/llama.cpp:ggml/src/ggml-quants.c `quantize_row_tq1_0_ref`, `dequantize_row_tq1_0`.

use super::{BlockShape, LayoutError, check_trits, exact_f16, read_f16};

/// Bytes of the scale that ends a block.
const SCALE_BYTES: usize = 2;

/// Powers of three by which a byte is multiplied to bring digit 0..5 to the top.
const POWERS_OF_THREE: [u8; 5] = [1, 3, 9, 27, 81];

/// Neighbouring bytes of a block whose digit n holds the weights `first_weight + n · n_bytes + m`, m the byte in the run.
pub(super) struct Run {
    pub(super) first_byte: usize,
    pub(super) n_bytes: usize,
    pub(super) first_weight: usize,
    pub(super) n_digits: usize,
}

/// A block: its size, and the runs that fill all of it but the scale.
pub(super) struct Base3Layout {
    shape: BlockShape,
    runs: [Run; 3],
}

impl Base3Layout {
    /// The layout, if `runs` follow one another and cover all weights and all bytes of a block but the scale's; else the build fails.
    pub(super) const fn new(shape: BlockShape, runs: [Run; 3]) -> Self {
        let (mut n_bytes, mut n_weights, mut index) = (0, 0, 0);
        while index < runs.len() {
            let run = &runs[index];
            assert!(run.first_byte == n_bytes && run.first_weight == n_weights, "runs follow one another");
            n_bytes += run.n_bytes;
            n_weights += run.n_bytes * run.n_digits;
            index += 1;
        }
        assert!(n_bytes + SCALE_BYTES == shape.size_bytes && n_weights == shape.weights, "runs fill the block");
        Self { shape, runs }
    }

    /// `bytes[n_blocks · size_bytes]` → `trits[n_blocks · weights]`, `scales[n_blocks]`. Errors: lengths. Every byte value is valid.
    pub(super) fn unpack(&self, bytes: &[u8], trits: &mut [i8], scales: &mut [f32]) -> Result<(), LayoutError> {
        let BlockShape { weights, size_bytes, .. } = self.shape;
        self.shape.check(trits.len(), scales.len(), bytes.len())?;
        for ((block, trits), scale) in bytes.chunks_exact(size_bytes).zip(trits.chunks_exact_mut(weights)).zip(scales) {
            *scale = read_f16(&block[size_bytes - SCALE_BYTES..]);
            self.runs.iter().for_each(|run| run.unpack(block, trits));
        }
        Ok(())
    }

    /// The inverse of [`Self::unpack`]. Errors: lengths, values that are not trits, scales that f16 would round.
    pub(super) fn pack(&self, trits: &[i8], scales: &[f32], bytes: &mut [u8]) -> Result<(), LayoutError> {
        let BlockShape { layout, weights, size_bytes } = self.shape;
        self.shape.check(trits.len(), scales.len(), bytes.len())?;
        check_trits(layout, trits)?;
        let blocks = bytes.chunks_exact_mut(size_bytes).zip(trits.chunks_exact(weights)).zip(scales);
        for (index, ((block, trits), &scale)) in blocks.enumerate() {
            block[size_bytes - SCALE_BYTES..].copy_from_slice(&exact_f16(layout, index, scale)?);
            self.runs.iter().for_each(|run| run.pack(trits, block));
        }
        Ok(())
    }
}

impl Run {
    /// Decodes the run from its block.
    fn unpack(&self, block: &[u8], trits: &mut [i8]) {
        let packed = &block[self.first_byte..self.first_byte + self.n_bytes];
        for (digit, &power) in POWERS_OF_THREE[..self.n_digits].iter().enumerate() {
            let first = self.first_weight + digit * self.n_bytes;
            for (trit, &byte) in trits[first..first + self.n_bytes].iter_mut().zip(packed) {
                *trit = digit_of(byte, power);
            }
        }
    }

    /// Encodes the run into its block.
    fn pack(&self, trits: &[i8], block: &mut [u8]) {
        for m in 0..self.n_bytes {
            block[self.first_byte + m] = byte_of((0..self.n_digits).map(|digit| trits[self.first_weight + digit * self.n_bytes + m]));
        }
    }
}

/// Digit n (0 is the most significant) as a trit, `power_of_three` being 3ⁿ.
///
/// Multiplying by 3ⁿ modulo 256 moves the fraction past the first n digits; times 3, the carry is the digit. Every one of the
/// 256 byte values yields digits 0..=2, so nothing is refused.
#[inline(always)]
fn digit_of(byte: u8, power_of_three: u8) -> i8 {
    ((u16::from(byte.wrapping_mul(power_of_three)) * 3) >> 8) as i8 - 1
}

/// The byte of up to five trits, the first as the most significant digit; missing digits are zero.
fn byte_of(trits: impl ExactSizeIterator<Item = i8>) -> u8 {
    let missing = 5 - trits.len();
    let number = trits.fold(0u16, |number, trit| number * 3 + (trit + 1) as u16) * u16::from(POWERS_OF_THREE[missing]);
    (number * 256).div_ceil(243) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_3_of_all_256_bytes_gives_trits_and_all_243_numbers_round_trip() {
        let mut seen = std::collections::BTreeSet::new();
        for byte in 0..=255u8 {
            let trits = POWERS_OF_THREE.map(|power| digit_of(byte, power));
            assert!(trits.iter().all(|trit| (-1..=1).contains(trit)), "byte {byte}: {trits:?}");
            seen.insert(trits);
        }
        assert_eq!(seen.len(), 243);
        for trits in seen {
            let byte = byte_of(trits.into_iter());
            assert_eq!(POWERS_OF_THREE.map(|power| digit_of(byte, power)), trits);
            let four = byte_of(trits[..4].iter().copied());
            assert_eq!([1, 3, 9, 27].map(|power| digit_of(four, power)), trits[..4]);
        }
    }
}
