//! Fuzz target: every packed layout of `bitnet_ternary::layout` on arbitrary bytes and shapes. What unpacks must be trits and must
//! pack again to something that unpacks to the same; nothing may panic. Containers are fuzzed in `gguf` and `safetensors`.
#![no_main]

use bitnet_fuzz::{Reader, within_budget};
use bitnet_ternary::TernaryMatrix;
use bitnet_ternary::layout::i2_s::{self, I2sLayout};
use bitnet_ternary::layout::i2_s_detect::{self, FeaturePair, PackedMatrix};
use bitnet_ternary::layout::{LayoutError, hf_u8, mlx, ptq1_0, q1_0, q2_0, tq1_0, tq2_0};
use libfuzzer_sys::fuzz_target;

type Unpack = fn(&[u8], &mut [i8], &mut [f32]) -> Result<(), LayoutError>;
type Pack = fn(&[i8], &[f32], &mut [u8]) -> Result<(), LayoutError>;

/// Layouts of fixed blocks with one scale each: weights, bytes, and the two doors.
const BLOCKS: [(usize, usize, Unpack, Pack); 6] = [
    (tq1_0::BLOCK_WEIGHTS, tq1_0::BLOCK_BYTES, tq1_0::unpack, tq1_0::pack),
    (tq2_0::BLOCK_WEIGHTS, tq2_0::BLOCK_BYTES, tq2_0::unpack, tq2_0::pack),
    (ptq1_0::BLOCK_WEIGHTS, ptq1_0::BLOCK_BYTES, ptq1_0::unpack, ptq1_0::pack),
    (q1_0::BLOCK_WEIGHTS, q1_0::BLOCK_BYTES, q1_0::unpack, q1_0::pack),
    (
        64,
        18,
        |bytes, trits, scales| q2_0::unpack(q2_0::BlockWidth::Weights64, bytes, trits, scales),
        |trits, scales, bytes| q2_0::pack(q2_0::BlockWidth::Weights64, trits, scales, bytes),
    ),
    (
        128,
        34,
        |bytes, trits, scales| q2_0::unpack(q2_0::BlockWidth::Weights128, bytes, trits, scales),
        |trits, scales, bytes| q2_0::pack(q2_0::BlockWidth::Weights128, trits, scales, bytes),
    ),
];

fuzz_target!(|input: &[u8]| within_budget(input, 64, || {
    let mut reader = Reader::new(input);
    let choice = reader.byte() as usize;
    match choice % 10 {
        kind @ 0..6 => blocks(kind, &mut reader),
        6 => i2_s(&mut reader),
        7 => detect(&mut reader),
        8 => hugging_face(&mut reader),
        _ => mlx(&mut reader),
    }
}));

fn assert_trits(trits: &[i8]) {
    assert!(trits.iter().all(|trit| (-1..=1).contains(trit)));
}

fn blocks(kind: usize, reader: &mut Reader<'_>) {
    let (weights, size_bytes, unpack, pack) = BLOCKS[kind];
    // Up to two weights and one scale more or less than the bytes hold, too.
    let (extra_weights, extra_scales) = (reader.byte() % 3, reader.byte() % 2);
    let bytes = reader.rest();
    let n_blocks = bytes.len() / size_bytes;
    let mut trits = vec![0; n_blocks * weights + usize::from(extra_weights)];
    let mut scales = vec![0.0; n_blocks + usize::from(extra_scales)];
    if unpack(bytes, &mut trits, &mut scales).is_err() {
        return;
    }
    assert_trits(&trits);
    let mut packed = vec![0; bytes.len()];
    if pack(&trits, &scales, &mut packed).is_ok() {
        let (mut again, mut again_scales) = (vec![0; trits.len()], vec![0.0; scales.len()]);
        unpack(&packed, &mut again, &mut again_scales).expect("what was packed unpacks");
        assert_eq!((again, again_scales), (trits, scales));
    } else {
        assert!(scales.iter().any(|scale| !scale.is_finite()), "only a scale that is not finite may be refused");
    }
}

fn i2_s(reader: &mut Reader<'_>) {
    let layout = I2sLayout::ALL[usize::from(reader.byte()) % 3];
    let (n_rows, n_cols) = (usize::from(reader.byte()), usize::from(reader.byte()));
    let bytes = reader.rest();
    if n_rows * n_cols > 8 * bytes.len() {
        return;
    }
    let mut trits = vec![0; n_rows * n_cols];
    let Ok(scale) = i2_s::unpack(layout, bytes, n_cols, &mut trits) else { return };
    assert_trits(&trits);
    let mut packed = vec![0; bytes.len()];
    if scale.is_finite() {
        i2_s::pack(layout, &trits, n_cols, scale, &mut packed).expect("what was unpacked packs");
        assert_eq!(packed[..n_rows * n_cols / 4 + 4], bytes[..n_rows * n_cols / 4 + 4], "byte-stable");
    }
}

fn detect(reader: &mut Reader<'_>) {
    let (ffn, hidden) = (usize::from(reader.byte()), usize::from(reader.byte()));
    let bytes = reader.rest();
    let (first, second) = bytes.split_at(bytes.len() / 2);
    if ffn * hidden > 8 * bytes.len() {
        return;
    }
    let producer = PackedMatrix { bytes: first, n_rows: ffn, n_cols: hidden };
    let consumer = PackedMatrix { bytes: second, n_rows: hidden, n_cols: ffn };
    if let Ok(detection) = i2_s_detect::detect(&[FeaturePair { producer, consumer }]) {
        assert!(detection.evidence.iter().flatten().all(|evidence| !evidence.is_nan()));
    }
}

fn hugging_face(reader: &mut Reader<'_>) {
    let (n_rows, n_cols, scale) = (usize::from(reader.byte()), usize::from(reader.byte()), f32::from_bits(reader.u32()));
    if let Ok(matrix) = hf_u8::unpack(n_rows, n_cols, reader.rest(), scale) {
        assert_eq!(hf_u8::pack(&matrix).expect("what was unpacked packs"), reader.rest());
    }
}

fn mlx(reader: &mut Reader<'_>) {
    let shape = [usize::from(reader.byte()), 16 * usize::from(reader.byte())];
    let group_size = mlx::GROUP_SIZES[usize::from(reader.byte()) % 3];
    let (scale, bias) = (f32::from_bits(reader.u32()), f32::from_bits(reader.u32()));
    let n_groups = shape[0] * (shape[1] / group_size);
    let words = reader.rest();
    if words.len() != shape[0] * TernaryMatrix::row_bytes(shape[1]) {
        return;
    }
    if let Ok(matrix) = mlx::unpack(shape, group_size, words.to_vec(), vec![scale; n_groups], &vec![bias; n_groups]) {
        assert_eq!(mlx::pack(&matrix).expect("what was unpacked packs"), words);
    }
}
