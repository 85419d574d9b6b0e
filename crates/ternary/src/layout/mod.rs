//! Packed layouts of ternary weights in public file formats, one file each: bytes to trits and scales, and back to the exact
//! bytes. Nothing here knows a container, a tensor name or a shape beyond what its packing needs.
//!
//! Every layout has the same two doors: `unpack(bytes, trits, scales)` and `pack(trits, scales, bytes)`. Buffers belong to the
//! caller and their lengths are checked; a code that no ternary weight has, a partial block or a scale that the format would
//! round is a typed [`LayoutError`].

mod base_3;
pub mod hf_u8;
pub mod i2_s;
pub mod i2_s_detect;
pub mod mlx;
pub mod ptq1_0;
pub mod q1_0;
pub mod q2_0;
pub mod tq1_0;
pub mod tq2_0;

use half::f16;
use thiserror::Error;

/// Why packed bytes are not ternary weights, or why weights cannot be packed without loss.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum LayoutError {
    #[error("{layout}: {n_weights} weights are not a whole number of blocks of {block_weights}")]
    PartialBlock { layout: &'static str, block_weights: usize, n_weights: usize },
    #[error("{layout}: {what}: expected {expected} elements, got {got}")]
    Length { layout: &'static str, what: &'static str, expected: usize, got: usize },
    #[error("{layout}: weight {weight} has the 2-bit code 3, which no ternary weight has")]
    CodeThree { layout: &'static str, weight: usize },
    #[error("{layout}: weight {weight} is {value}, which this layout cannot hold")]
    Value { layout: &'static str, weight: usize, value: i8 },
    #[error("{layout}: scale {index} is {value}, which its {holder} field would round")]
    InexactScale { layout: &'static str, index: usize, value: f32, holder: &'static str },
    #[error("{layout}: {n_rows} rows are not a multiple of 4, which one byte holds a column of")]
    RowGroup { layout: &'static str, n_rows: usize },
}

/// What the block layouts have in common: a fixed number of weights in a fixed number of bytes, with one f16 scale.
#[derive(Debug, Clone, Copy)]
struct BlockShape {
    layout: &'static str,
    weights: usize,
    size_bytes: usize,
}

impl BlockShape {
    /// Checks that trits, scales and bytes are all the same whole number of blocks.
    fn check(self, n_trits: usize, n_scales: usize, n_bytes: usize) -> Result<(), LayoutError> {
        let Self { layout, weights, size_bytes } = self;
        if !n_trits.is_multiple_of(weights) {
            return Err(LayoutError::PartialBlock { layout, block_weights: weights, n_weights: n_trits });
        }
        let n_blocks = n_trits / weights;
        check_length(layout, "scales", n_blocks, n_scales)?;
        // The product cannot wrap: a block has fewer bytes than weights.
        check_length(layout, "bytes", n_blocks * size_bytes, n_bytes)
    }
}

fn check_length(layout: &'static str, what: &'static str, expected: usize, got: usize) -> Result<(), LayoutError> {
    if expected != got {
        return Err(LayoutError::Length { layout, what, expected, got });
    }
    Ok(())
}

/// Checks that every value of a block layout's input is a trit.
fn check_trits(layout: &'static str, trits: &[i8]) -> Result<(), LayoutError> {
    match trits.iter().position(|trit| !(-1..=1).contains(trit)) {
        Some(weight) => Err(LayoutError::Value { layout, weight, value: trits[weight] }),
        None => Ok(()),
    }
}

fn read_f16(bytes: &[u8]) -> f32 {
    f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

/// The f16 of `scale`, refused if it is not exactly the same number.
fn exact_f16(layout: &'static str, index: usize, scale: f32) -> Result<[u8; 2], LayoutError> {
    let rounded = f16::from_f32(scale);
    if rounded.to_f32().to_bits() != scale.to_bits() || !scale.is_finite() {
        return Err(LayoutError::InexactScale { layout, index, value: scale, holder: "f16" });
    }
    Ok(rounded.to_le_bytes())
}

/// Whether a byte holds a 2-bit code 3 in any of its four slots.
fn has_code_three(byte: u8) -> bool {
    byte & (byte >> 1) & 0x55 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    type Unpack = fn(&[u8], &mut [i8], &mut [f32]) -> Result<(), LayoutError>;
    type Pack = fn(&[i8], &[f32], &mut [u8]) -> Result<(), LayoutError>;

    /// Every layout of fixed blocks, as plain functions, so that one set of tests covers them all.
    struct Codec {
        shape: BlockShape,
        unpack: Unpack,
        pack: Pack,
        binary: bool,
    }

    fn codecs() -> Vec<Codec> {
        let block = |layout, weights, size_bytes| BlockShape { layout, weights, size_bytes };
        vec![
            Codec { shape: block("TQ1_0", 256, 54), unpack: tq1_0::unpack, pack: tq1_0::pack, binary: false },
            Codec { shape: block("TQ2_0", 256, 66), unpack: tq2_0::unpack, pack: tq2_0::pack, binary: false },
            Codec { shape: block("PTQ1_0", 128, 28), unpack: ptq1_0::unpack, pack: ptq1_0::pack, binary: false },
            Codec { shape: block("Q1_0", 128, 18), unpack: q1_0::unpack, pack: q1_0::pack, binary: true },
            Codec {
                shape: block("Q2_0", 64, 18),
                unpack: |bytes, trits, scales| q2_0::unpack(q2_0::BlockWidth::Weights64, bytes, trits, scales),
                pack: |trits, scales, bytes| q2_0::pack(q2_0::BlockWidth::Weights64, trits, scales, bytes),
                binary: false,
            },
            Codec {
                shape: block("PQ2_0", 128, 34),
                unpack: |bytes, trits, scales| q2_0::unpack(q2_0::BlockWidth::Weights128, bytes, trits, scales),
                pack: |trits, scales, bytes| q2_0::pack(q2_0::BlockWidth::Weights128, trits, scales, bytes),
                binary: false,
            },
        ]
    }

    fn weights_for(codec: &Codec, n_blocks: usize, seed: usize) -> (Vec<i8>, Vec<f32>) {
        let trit = |i: usize| {
            let mixed = (i + seed).wrapping_mul(0x9E37_79B9_7F4A_7C15_u64 as usize) >> 40;
            if codec.binary { (mixed % 2) as i8 * 2 - 1 } else { (mixed % 3) as i8 - 1 }
        };
        let trits = (0..n_blocks * codec.shape.weights).map(trit).collect();
        let scales = (0..n_blocks).map(|block| f16::from_bits(0x2400 + (block * 37 + seed) as u16).to_f32()).collect();
        (trits, scales)
    }

    #[test]
    fn every_block_layout_round_trips_every_position() {
        for codec in codecs() {
            for (n_blocks, seed) in [(0, 0), (1, 1), (2, 5), (7, 123)] {
                let (trits, scales) = weights_for(&codec, n_blocks, seed);
                let mut bytes = vec![0xAA; n_blocks * codec.shape.size_bytes];
                (codec.pack)(&trits, &scales, &mut bytes).expect("packs");
                let (mut got_trits, mut got_scales) = (vec![9; trits.len()], vec![9.0; scales.len()]);
                (codec.unpack)(&bytes, &mut got_trits, &mut got_scales).expect("unpacks");
                assert_eq!((got_trits, got_scales), (trits.clone(), scales.clone()), "{}", codec.shape.layout);
                let mut again = vec![0; bytes.len()];
                (codec.pack)(&trits, &scales, &mut again).expect("packs");
                assert_eq!(again, bytes, "{}: packing writes every byte", codec.shape.layout);
            }
        }
    }

    #[test]
    fn base_3_layouts_decode_all_256_byte_values_in_every_place() {
        for codec in codecs().iter().filter(|codec| codec.shape.layout.ends_with("TQ1_0")) {
            for byte in 0..=255u8 {
                let mut trits = vec![9i8; codec.shape.weights];
                (codec.unpack)(&vec![byte; codec.shape.size_bytes], &mut trits, &mut [0.0]).expect("every byte is valid");
                assert!(trits.iter().all(|trit| (-1..=1).contains(trit)), "{}: byte {byte}", codec.shape.layout);
            }
        }
    }

    #[test]
    fn every_block_layout_puts_each_weight_in_one_place() {
        for codec in codecs() {
            let zeros = vec![if codec.binary { -1 } else { 0 }; codec.shape.weights];
            let mut plain = vec![0; codec.shape.size_bytes];
            (codec.pack)(&zeros, &[1.0], &mut plain).expect("packs");
            for weight in 0..codec.shape.weights {
                let mut trits = zeros.clone();
                trits[weight] = 1;
                let mut bytes = vec![0; codec.shape.size_bytes];
                (codec.pack)(&trits, &[1.0], &mut bytes).expect("packs");
                let changed = bytes.iter().zip(&plain).filter(|(a, b)| a != b).count();
                assert_eq!(changed, 1, "{} weight {weight}", codec.shape.layout);
                let mut got = vec![0; codec.shape.weights];
                (codec.unpack)(&bytes, &mut got, &mut [0.0]).expect("unpacks");
                assert_eq!(got, trits, "{} weight {weight}", codec.shape.layout);
            }
        }
    }

    #[test]
    fn every_block_layout_refuses_partial_blocks_and_wrong_lengths() {
        for codec in codecs() {
            let BlockShape { layout, weights, size_bytes } = codec.shape;
            for odd in 1..weights {
                let error = (codec.unpack)(&vec![0; size_bytes], &mut vec![0; odd], &mut [0.0]).unwrap_err();
                assert_eq!(error, LayoutError::PartialBlock { layout, block_weights: weights, n_weights: odd });
                let error = (codec.pack)(&vec![1; odd], &[1.0], &mut vec![0; size_bytes]).unwrap_err();
                assert_eq!(error, LayoutError::PartialBlock { layout, block_weights: weights, n_weights: odd });
            }
            for n_bytes in [0, size_bytes - 1, size_bytes + 1, 2 * size_bytes] {
                let error = (codec.unpack)(&vec![0; n_bytes], &mut vec![0; weights], &mut [0.0]).unwrap_err();
                assert_eq!(error, LayoutError::Length { layout, what: "bytes", expected: size_bytes, got: n_bytes });
            }
            let error = (codec.unpack)(&vec![0; size_bytes], &mut vec![0; weights], &mut [0.0; 2]).unwrap_err();
            assert_eq!(error, LayoutError::Length { layout, what: "scales", expected: 1, got: 2 });
        }
    }

    #[test]
    fn every_block_layout_refuses_what_it_cannot_hold() {
        for codec in codecs() {
            let layout = codec.shape.layout;
            let mut bytes = vec![0; codec.shape.size_bytes];
            let mut trits = vec![1; codec.shape.weights];
            for scale in [0.1f32, 1e-9, 1e6, f32::NAN, f32::INFINITY] {
                let error = (codec.pack)(&trits, &[scale], &mut bytes).unwrap_err();
                assert!(matches!(error, LayoutError::InexactScale { index: 0, .. }), "{layout}: {scale}: {error}");
            }
            for value in [i8::MIN, -2, 2, 3, i8::MAX] {
                trits[5] = value;
                let error = (codec.pack)(&trits, &[1.0], &mut bytes).unwrap_err();
                assert_eq!(error, LayoutError::Value { layout, weight: 5, value });
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn every_block_layout_round_trips_random_bytes(seed: u64, bytes in proptest::collection::vec(proptest::num::u8::ANY, 66)) {
            for codec in codecs() {
                let BlockShape { weights, size_bytes, .. } = codec.shape;
                let mut bytes = bytes[..size_bytes].to_vec();
                // A finite scale wherever it lies: both possible places hold a number below infinity.
                bytes[1] &= 0x7B;
                bytes[size_bytes - 1] &= 0x7B;
                let (mut trits, mut scales) = (vec![0; weights], vec![0.0]);
                if (codec.unpack)(&bytes, &mut trits, &mut scales).is_err() {
                    continue;
                }
                let mut packed = vec![0; size_bytes];
                (codec.pack)(&trits, &scales, &mut packed).expect("what was unpacked packs");
                let mut again = vec![0; weights];
                (codec.unpack)(&packed, &mut again, &mut [0.0]).expect("what was packed unpacks");
                proptest::prop_assert_eq!(&again, &trits);
                let exact = matches!(codec.shape.layout, "TQ2_0" | "Q2_0" | "PQ2_0" | "Q1_0");
                proptest::prop_assert!(!exact || packed == bytes, "{} is byte-stable, seed {}", codec.shape.layout, seed);
            }
        }
    }
}
