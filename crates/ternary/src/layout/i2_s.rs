//! I2_S (ggml type 36 of Microsoft's fork): 2 bits a weight, one f32 scale for the whole tensor.
//!
//! A tensor of n weights is n/4 bytes of codes (trit + 1, most significant slot first), then a 32-byte tail that starts with the
//! scale. Value = trit × scale. Three orders of the codes exist under the same type id, see [`I2sLayout`]; which one a file uses
//! is not written anywhere, see [`super::i2_s_detect`].
//!
//! Sources: microsoft/BitNet:src/ggml-bitnet-mad.cpp `quantize_i2_s` (all three orders, chosen by the build's CPU flags) and
//! utils/convert-hf-to-gguf-bitnet.py `quantize_to_i2_s` (always blocks of 128; zeros after the scale).

use super::{LayoutError, check_length, check_trits, has_code_three};
use crate::matrix::join_codes;

/// Name of the layout, as ggml spells it.
pub const LAYOUT: &str = "I2_S";
/// Bytes after the codes: the f32 scale and 28 bytes that mean nothing.
pub const TAIL_BYTES: usize = 32;

const SCALE_BYTES: usize = 4;
const ROWS_PER_BYTE: usize = 4;

const _: () =
    assert!(SCALE_BYTES <= TAIL_BYTES && I2sLayout::Blocks128.run_bytes() * 4 == 128 && I2sLayout::Blocks64.run_bytes() * 4 == 64);

/// The order of the codes in an I2_S tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum I2sLayout {
    /// Blocks of 128 consecutive weights in 32 bytes: weight `slot·32 + m` in byte m. Every published file and the Python
    /// converter.
    Blocks128,
    /// Blocks of 64 consecutive weights in 16 bytes: weight `slot·16 + m` in byte m. Files quantised by an ARM build.
    Blocks64,
    /// One column of four neighbouring rows in a byte: byte `group·n_cols + column` holds row `group·4 + slot`. Files quantised
    /// by an x86 build without `ACT_PARALLEL`.
    Rows4,
}

impl I2sLayout {
    /// All layouts, the published one first.
    pub const ALL: [Self; 3] = [Self::Blocks128, Self::Blocks64, Self::Rows4];

    /// Bytes over which a slot runs before the next slot begins; unused for `Rows4`.
    const fn run_bytes(self) -> usize {
        match self {
            Self::Blocks128 => 32,
            Self::Blocks64 => 16,
            Self::Rows4 => 1,
        }
    }

    /// Whether a matrix `[n_rows, n_cols]` can be stored whole in this order.
    pub fn check_shape(self, n_rows: usize, n_cols: usize) -> Result<(), LayoutError> {
        let n_weights = n_rows.saturating_mul(n_cols);
        let block_weights = 4 * self.run_bytes();
        match self {
            Self::Rows4 if !n_rows.is_multiple_of(ROWS_PER_BYTE) => Err(LayoutError::RowGroup { layout: LAYOUT, n_rows }),
            Self::Blocks128 | Self::Blocks64 if !n_weights.is_multiple_of(block_weights) => {
                Err(LayoutError::PartialBlock { layout: LAYOUT, block_weights, n_weights })
            }
            _ => Ok(()),
        }
    }
}

/// Bytes of a tensor of `n_weights`, tail included. `None` if they do not fill whole bytes or the sum does not fit.
pub const fn size_bytes(n_weights: usize) -> Option<usize> {
    if !n_weights.is_multiple_of(4) { None } else { (n_weights / 4).checked_add(TAIL_BYTES) }
}

/// `bytes[n/4 + 32]` → `trits[n]` row-major with rows of `n_cols`; returns the scale. Errors: lengths, shape, code 3.
/// A scale that is not finite is returned as stored: `TernaryMatrix` refuses it.
pub fn unpack(layout: I2sLayout, bytes: &[u8], n_cols: usize, trits: &mut [i8]) -> Result<f32, LayoutError> {
    let codes = check(layout, bytes.len(), n_cols, trits.len()).map(|n_codes| &bytes[..n_codes])?;
    match layout {
        I2sLayout::Blocks128 | I2sLayout::Blocks64 => {
            let run = layout.run_bytes();
            for (codes, trits) in codes.chunks_exact(run).zip(trits.chunks_exact_mut(4 * run)) {
                unpack_slots(codes, trits);
            }
        }
        I2sLayout::Rows4 => {
            for (codes, trits) in codes.chunks_exact(n_cols).zip(trits.chunks_exact_mut(4 * n_cols)) {
                unpack_slots(codes, trits);
            }
        }
    }
    if codes.iter().any(|&byte| has_code_three(byte)) {
        let weight = trits.iter().position(|&trit| trit == 2).unwrap_or(0);
        return Err(LayoutError::CodeThree { layout: LAYOUT, weight });
    }
    Ok(scale(&bytes[codes.len()..]))
}

fn scale(tail: &[u8]) -> f32 {
    f32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]])
}

/// `bytes[n/4 + 32]` → canonical codes `[n/4]` (four sequential codes a byte, least significant first) of rows of `n_cols`, which must
/// be whole bytes, without trits between; returns the scale. Errors: lengths, shape, code 3.
pub fn repack(layout: I2sLayout, bytes: &[u8], n_cols: usize, canonical: &mut [u8]) -> Result<f32, LayoutError> {
    if !n_cols.is_multiple_of(4) {
        return Err(LayoutError::PartialBlock { layout: LAYOUT, block_weights: 4, n_weights: n_cols });
    }
    let n_codes = check(layout, bytes.len(), n_cols, 4 * canonical.len())?;
    let run = if layout == I2sLayout::Rows4 { n_cols } else { layout.run_bytes() };
    for (codes, canonical) in bytes[..n_codes].chunks_exact(run).zip(canonical.chunks_exact_mut(run)) {
        for (slot, canonical) in canonical.chunks_exact_mut(run / 4).enumerate() {
            repack_slot(codes, slot, canonical);
        }
    }
    if bytes[..n_codes].iter().fold(false, |any, &byte| any | has_code_three(byte)) {
        let byte = canonical.iter().position(|&byte| has_code_three(byte)).unwrap_or(0);
        let slot = (0..4).find(|slot| (canonical[byte] >> (2 * slot)) & 3 == 3).unwrap_or(0);
        return Err(LayoutError::CodeThree { layout: LAYOUT, weight: 4 * byte + slot });
    }
    Ok(scale(&bytes[n_codes..]))
}

/// The inverse of [`unpack`]: the bytes the Python converter writes, zeros after the scale. Errors: lengths, shape, values that
/// are not trits.
pub fn pack(layout: I2sLayout, trits: &[i8], n_cols: usize, scale: f32, bytes: &mut [u8]) -> Result<(), LayoutError> {
    let n_codes = check(layout, bytes.len(), n_cols, trits.len())?;
    check_trits(LAYOUT, trits)?;
    let (codes, tail) = bytes.split_at_mut(n_codes);
    let run = if layout == I2sLayout::Rows4 { n_cols } else { layout.run_bytes() };
    for (codes, trits) in codes.chunks_exact_mut(run).zip(trits.chunks_exact(4 * run)) {
        for (m, byte) in codes.iter_mut().enumerate() {
            *byte = (0..4).fold(0, |byte, slot| byte | (((trits[slot * run + m] + 1) as u8) << (6 - 2 * slot)));
        }
    }
    tail.fill(0);
    tail[..SCALE_BYTES].copy_from_slice(&scale.to_le_bytes());
    Ok(())
}

/// Slot s of `codes[run]` to `trits[s·run ..][..run]`, most significant slot first.
fn unpack_slots(codes: &[u8], trits: &mut [i8]) {
    for (slot, trits) in trits.chunks_exact_mut(codes.len()).enumerate() {
        for (trit, &byte) in trits.iter_mut().zip(codes) {
            *trit = ((byte >> (6 - 2 * slot)) & 3) as i8 - 1;
        }
    }
}

/// Slot s of `codes[run]` to `canonical[run / 4]`.
fn repack_slot(codes: &[u8], slot: usize, canonical: &mut [u8]) {
    for (canonical, codes) in canonical.iter_mut().zip(codes.as_chunks::<4>().0) {
        *canonical = join_codes((u32::from_le_bytes(*codes) >> (6 - 2 * slot)) & 0x0303_0303);
    }
}

/// Number of code bytes, after checking that everything has the length it must have.
fn check(layout: I2sLayout, n_bytes: usize, n_cols: usize, n_trits: usize) -> Result<usize, LayoutError> {
    if n_cols == 0 || !n_trits.is_multiple_of(n_cols) {
        return Err(LayoutError::PartialBlock { layout: LAYOUT, block_weights: n_cols, n_weights: n_trits });
    }
    layout.check_shape(n_trits / n_cols, n_cols)?;
    let expected = size_bytes(n_trits).ok_or(LayoutError::PartialBlock { layout: LAYOUT, block_weights: 4, n_weights: n_trits })?;
    check_length(LAYOUT, "bytes", expected, n_bytes)?;
    Ok(n_trits / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trits(n: usize) -> Vec<i8> {
        (0..n).map(|i| ((i.wrapping_mul(0x9E37_79B9) >> 7) % 3) as i8 - 1).collect()
    }

    #[test]
    fn repacked_codes_are_those_of_the_trits() {
        for layout in I2sLayout::ALL {
            let (n_rows, n_cols) = (8, 96);
            let trits = trits(n_rows * n_cols);
            let mut bytes = vec![0; size_bytes(trits.len()).expect("whole bytes")];
            pack(layout, &trits, n_cols, 0.25, &mut bytes).expect("packs");
            let mut canonical = vec![0; trits.len() / 4];
            assert_eq!(repack(layout, &bytes, n_cols, &mut canonical), Ok(0.25));
            let unpacked: Vec<i8> = canonical.iter().flat_map(|byte| [0, 2, 4, 6].map(|shift| ((byte >> shift) & 3) as i8 - 1)).collect();
            assert_eq!(unpacked, trits, "{layout:?}");
        }
        let mut bytes = [0; 32 + TAIL_BYTES];
        bytes[5] = 0b00_00_11_00;
        let mut trits = [0; 128];
        let expected = unpack(I2sLayout::Blocks128, &bytes, 128, &mut trits);
        assert!(matches!(expected, Err(LayoutError::CodeThree { weight: 69, .. })), "{expected:?}");
        assert_eq!(repack(I2sLayout::Blocks128, &bytes, 128, &mut [0; 32]), expected);
        assert!(repack(I2sLayout::Blocks64, &[0; 16 + TAIL_BYTES], 2, &mut [0; 16]).is_err(), "rows are not whole bytes");
    }

    #[test]
    fn every_layout_round_trips_and_is_byte_stable() {
        for layout in I2sLayout::ALL {
            for (n_rows, n_cols) in [(4, 128), (8, 192), (12, 256), (4, 32)] {
                if layout.check_shape(n_rows, n_cols).is_err() {
                    continue;
                }
                let weights = trits(n_rows * n_cols);
                let mut bytes = vec![0xFF; size_bytes(weights.len()).expect("whole bytes")];
                pack(layout, &weights, n_cols, 0.0173, &mut bytes).expect("packs");
                let mut got = vec![9; weights.len()];
                assert_eq!(unpack(layout, &bytes, n_cols, &mut got), Ok(0.0173), "{layout:?}");
                assert_eq!(got, weights, "{layout:?} [{n_rows}, {n_cols}]");
                let mut again = vec![0; bytes.len()];
                pack(layout, &got, n_cols, 0.0173, &mut again).expect("packs");
                assert_eq!(again, bytes);
            }
        }
    }

    #[test]
    fn each_layout_puts_a_weight_where_its_source_says() {
        // One +1 among zeros; expected byte and shift from the reference formulas, computed independently.
        let (n_rows, n_cols) = (8, 128);
        for weight in 0..n_rows * n_cols {
            let (row, column) = (weight / n_cols, weight % n_cols);
            let expected = [
                (I2sLayout::Blocks128, weight / 128 * 32 + weight % 32, 6 - 2 * (weight % 128 / 32)),
                (I2sLayout::Blocks64, weight / 64 * 16 + weight % 16, 6 - 2 * (weight % 64 / 16)),
                (I2sLayout::Rows4, row / 4 * n_cols + column, 6 - 2 * (row % 4)),
            ];
            for (layout, byte, shift) in expected {
                let mut weights = vec![0; n_rows * n_cols];
                weights[weight] = 1;
                let mut bytes = vec![0; n_rows * n_cols / 4 + TAIL_BYTES];
                pack(layout, &weights, n_cols, 1.0, &mut bytes).expect("packs");
                let mut plain = vec![0x55; n_rows * n_cols / 4];
                plain[byte] += 1 << shift;
                assert_eq!(bytes[..plain.len()], plain, "{layout:?} weight {weight}");
            }
        }
    }

    #[test]
    fn all_256_byte_values_decode_or_are_refused() {
        for layout in I2sLayout::ALL {
            for byte in 0..=255u8 {
                let mut bytes = vec![0x55u8; 128 + TAIL_BYTES];
                bytes[17] = byte;
                let mut weights = vec![0; 512];
                let three = [0, 2, 4, 6].iter().any(|shift| (byte >> shift) & 3 == 3);
                let result = unpack(layout, &bytes, 128, &mut weights);
                assert_eq!(matches!(result, Err(LayoutError::CodeThree { .. })), three, "{layout:?} byte {byte}");
                assert_eq!(result.is_ok(), !three);
            }
        }
    }

    #[test]
    fn odd_tails_and_wrong_lengths_are_refused() {
        let blocks = |weights| LayoutError::PartialBlock { layout: LAYOUT, block_weights: weights, n_weights: 4 * 33 };
        assert_eq!(unpack(I2sLayout::Blocks128, &[0; 33 + 32], 33, &mut [0; 4 * 33]), Err(blocks(128)));
        assert_eq!(unpack(I2sLayout::Blocks64, &[0; 33 + 32], 33, &mut [0; 4 * 33]), Err(blocks(64)));
        assert_eq!(unpack(I2sLayout::Rows4, &[0x55; 33 + 32], 33, &mut [0; 4 * 33]), Ok(f32::from_bits(0x5555_5555)));
        assert_eq!(unpack(I2sLayout::Rows4, &[0; 64 + 32], 128, &mut [0; 256]), Err(LayoutError::RowGroup { layout: LAYOUT, n_rows: 2 }));
        for n_bytes in [0, 31, 32, 63, 64 + 31, 64 + 33] {
            let error = unpack(I2sLayout::Blocks128, &vec![0x55; n_bytes], 128, &mut [0; 256]).unwrap_err();
            assert_eq!(error, LayoutError::Length { layout: LAYOUT, what: "bytes", expected: 96, got: n_bytes });
        }
        assert!(unpack(I2sLayout::Blocks128, &[], 0, &mut []).is_err());
    }

    #[test]
    fn values_that_are_not_trits_are_refused() {
        let mut weights = vec![0i8; 128];
        weights[100] = 2;
        let error = pack(I2sLayout::Blocks128, &weights, 128, 1.0, &mut [0; 64]).unwrap_err();
        assert_eq!(error, LayoutError::Value { layout: LAYOUT, weight: 100, value: 2 });
    }
}
