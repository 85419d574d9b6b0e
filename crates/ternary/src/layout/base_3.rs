//! Five trits in a byte, as TQ1_0 and PTQ1_0 hold them: ⌈q·256/243⌉ for the number q of five base-3 digits.
//!
//! Source: ggml-org/llama.cpp:ggml/src/ggml-quants.c `quantize_row_tq1_0_ref`, `dequantize_row_tq1_0`.

/// Powers of three by which a byte is multiplied to bring digit 0..5 to the top.
const POWERS_OF_THREE: [u8; 5] = [1, 3, 9, 27, 81];

/// Neighbouring bytes of a block whose digit n holds the weights `first_weight + n · n_bytes + m`, m the byte in the run.
pub(super) struct Run {
    pub(super) first_byte: usize,
    pub(super) n_bytes: usize,
    pub(super) first_weight: usize,
    pub(super) n_digits: usize,
}

impl Run {
    /// Decodes the run from its block.
    pub(super) fn unpack(&self, block: &[u8], trits: &mut [i8]) {
        let packed = &block[self.first_byte..self.first_byte + self.n_bytes];
        for (digit, &power) in POWERS_OF_THREE[..self.n_digits].iter().enumerate() {
            let first = self.first_weight + digit * self.n_bytes;
            for (trit, &byte) in trits[first..first + self.n_bytes].iter_mut().zip(packed) {
                *trit = digit_of(byte, power);
            }
        }
    }

    /// Encodes the run into its block.
    pub(super) fn pack(&self, trits: &[i8], block: &mut [u8]) {
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
