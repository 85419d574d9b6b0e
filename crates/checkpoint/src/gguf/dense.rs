//! Dense GGUF tensors: F32, F16 and BF16 are kept as stored, block-quantised types are expanded to F32 exactly as ggml does.
//! They occur as embeddings, heads and norms of ternary models. Nothing is encoded to a quantised type here.
//!
//! Source of the block formats: ggml-org/llama.cpp:ggml/src/ggml-quants.c `dequantize_row_*`.

use half::f16;

use super::ggml_type::GgmlType;
use crate::tensor::DenseType;

/// The element type in memory of a dense GGUF type.
pub(super) fn dense_type(ggml_type: GgmlType) -> DenseType {
    match ggml_type {
        GgmlType::F16 => DenseType::F16,
        GgmlType::Bf16 => DenseType::Bf16,
        _ => DenseType::F32,
    }
}

/// Decodes whole blocks that stand at the end of `buffer` to fill it with their elements, little-endian in [`dense_type`].
pub(super) fn decode(ggml_type: GgmlType, buffer: &mut [u8]) {
    match ggml_type {
        GgmlType::Q4_0 => expand::<18, 32>(buffer, q4_0),
        GgmlType::Q8_0 => expand::<34, 32>(buffer, q8_0),
        GgmlType::Q4K => expand::<144, 256>(buffer, q4_k),
        GgmlType::Q5K => expand::<176, 256>(buffer, q5_k),
        GgmlType::Q6K => expand::<210, 256>(buffer, q6_k),
        // As long as its elements, which it is.
        _ => {}
    }
}

/// A block is shorter than its elements, so what block i becomes ends before block i + 1 begins.
fn expand<const BYTES: usize, const WEIGHTS: usize>(buffer: &mut [u8], decode: fn(&[u8; BYTES], &mut [f32; WEIGHTS])) {
    const { assert!(BYTES < WEIGHTS * size_of::<f32>()) };
    let out_bytes = WEIGHTS * size_of::<f32>();
    let n_blocks = buffer.len() / out_bytes;
    let first = buffer.len() - n_blocks * BYTES;
    let (mut block, mut values) = ([0; BYTES], [0.0; WEIGHTS]);
    for index in 0..n_blocks {
        block.copy_from_slice(&buffer[first + index * BYTES..][..BYTES]);
        decode(&block, &mut values);
        let out = buffer[index * out_bytes..][..out_bytes].as_chunks_mut().0;
        out.iter_mut().zip(values).for_each(|(out, value): (&mut [u8; 4], f32)| *out = value.to_le_bytes());
    }
}

fn read_f16(bytes: &[u8]) -> f32 {
    f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

/// f16 scale, 16 bytes of nibbles: low ones first. Value = (nibble − 8) · scale.
fn q4_0(block: &[u8; 18], values: &mut [f32; 32]) {
    let scale = read_f16(block);
    for (m, &byte) in block[2..].iter().enumerate() {
        values[m] = (f32::from(byte & 15) - 8.0) * scale;
        values[m + 16] = (f32::from(byte >> 4) - 8.0) * scale;
    }
}

/// f16 scale, 32 int8.
fn q8_0(block: &[u8; 34], values: &mut [f32; 32]) {
    let scale = read_f16(block);
    for (value, &byte) in values.iter_mut().zip(&block[2..]) {
        *value = f32::from(byte as i8) * scale;
    }
}

/// The 6-bit scale and minimum of sub-block `j`, from the 12 bytes that K types pack eight pairs in.
fn scale_and_minimum(packed: &[u8], j: usize) -> (f32, f32) {
    let (scale, minimum) = if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        ((packed[j + 4] & 15) | ((packed[j - 4] >> 6) << 4), (packed[j + 4] >> 4) | ((packed[j] >> 6) << 4))
    };
    (f32::from(scale), f32::from(minimum))
}

/// f16 scale, f16 minimum, 12 bytes of sub-scales, 128 bytes of nibbles in runs of 32: low ones first.
fn q4_k(block: &[u8; 144], values: &mut [f32; 256]) {
    let (scale, minimum) = (read_f16(block), read_f16(&block[2..]));
    for (pair, nibbles) in block[16..].chunks_exact(32).enumerate() {
        for half in 0..2 {
            let (sub_scale, sub_minimum) = scale_and_minimum(&block[4..16], 2 * pair + half);
            let (factor, offset) = (scale * sub_scale, minimum * sub_minimum);
            for (m, &byte) in nibbles.iter().enumerate() {
                values[64 * pair + 32 * half + m] = factor * f32::from((byte >> (4 * half)) & 15) - offset;
            }
        }
    }
}

/// As Q4_K, with 32 bytes of fifth bits before the nibbles: bit j of byte m belongs to weight m of sub-block j.
fn q5_k(block: &[u8; 176], values: &mut [f32; 256]) {
    let (scale, minimum) = (read_f16(block), read_f16(&block[2..]));
    let high = &block[16..48];
    for (pair, nibbles) in block[48..].chunks_exact(32).enumerate() {
        for half in 0..2 {
            let sub_block = 2 * pair + half;
            let (sub_scale, sub_minimum) = scale_and_minimum(&block[4..16], sub_block);
            let (factor, offset) = (scale * sub_scale, minimum * sub_minimum);
            for (m, &byte) in nibbles.iter().enumerate() {
                let quantum = ((byte >> (4 * half)) & 15) + (((high[m] >> sub_block) & 1) << 4);
                values[64 * pair + 32 * half + m] = factor * f32::from(quantum) - offset;
            }
        }
    }
}

/// 128 bytes of low nibbles, 64 bytes of high bit pairs, 16 int8 sub-scales, f16 scale last. Value = scale · sub · (q − 32).
fn q6_k(block: &[u8; 210], values: &mut [f32; 256]) {
    let scale = read_f16(&block[208..]);
    for half in 0..2 {
        let low = &block[64 * half..64 * half + 64];
        let high = &block[128 + 32 * half..128 + 32 * half + 32];
        let sub_scales = &block[192 + 8 * half..192 + 8 * half + 8];
        for quarter in 0..4 {
            for m in 0..32 {
                let nibble = (low[32 * (quarter % 2) + m] >> (4 * (quarter / 2))) & 15;
                let quantum = (nibble | (((high[m] >> (2 * quarter)) & 3) << 4)) as i8 - 32;
                let sub_scale = f32::from(sub_scales[2 * quarter + m / 16] as i8);
                values[128 * half + 32 * quarter + m] = scale * sub_scale * f32::from(quantum);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(ggml_type: GgmlType, block: &[u8]) -> Vec<f32> {
        let (n_weights, _) = ggml_type.block().expect("a block type");
        let mut out = vec![0; n_weights as usize * 4 - block.len()];
        out.extend_from_slice(block);
        decode(ggml_type, &mut out);
        out.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
    }

    #[test]
    fn blocks_decode_in_place_as_each_does_alone() {
        for ggml_type in [GgmlType::Q4_0, GgmlType::Q8_0, GgmlType::Q4K, GgmlType::Q5K, GgmlType::Q6K] {
            let (_, block_bytes) = ggml_type.block().expect("a block type");
            // Every f16 in them is finite: no byte has the five bits of the exponent set.
            let blocks: Vec<u8> = (0..5 * block_bytes as usize).map(|i| (i * 37 % 120) as u8).collect();
            let alone: Vec<f32> = blocks.chunks(block_bytes as usize).flat_map(|block| decoded(ggml_type, block)).collect();
            let (n_weights, _) = ggml_type.block().expect("a block type");
            let mut buffer = vec![0xff; 5 * n_weights as usize * 4 - blocks.len()];
            buffer.extend_from_slice(&blocks);
            decode(ggml_type, &mut buffer);
            let together: Vec<f32> = buffer.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
            assert_eq!(together, alone, "{ggml_type:?}");
        }
    }

    #[test]
    fn q4_0_and_q8_0_blocks_decode() {
        let mut block = vec![0x00, 0x38]; // 0.5
        block.extend((0..16).map(|m| m | ((15 - m) << 4)));
        let values = decoded(GgmlType::Q4_0, &block);
        assert_eq!((values[0], values[15], values[16], values[31]), (-4.0, 3.5, 3.5, -4.0));
        let mut block = vec![0x00, 0x38];
        block.extend((0..32u8).map(|m| m.wrapping_sub(16)));
        let values = decoded(GgmlType::Q8_0, &block);
        assert_eq!((values[0], values[16], values[31]), (-8.0, 0.0, 7.5));
    }

    #[test]
    fn k_blocks_decode_each_sub_block_with_its_own_scale() {
        // Sub-scale j = j + 1 and sub-minimum j = 2j: the first four in the low six bits, the last four split.
        let mut packed = [0u8; 12];
        for j in 0..8u8 {
            let (scale, minimum) = (j + 1 + 16 * (j / 4), 2 * j + 16 * (j / 4));
            let j = usize::from(j);
            if j < 4 {
                packed[j] |= scale;
                packed[j + 4] |= minimum;
            } else {
                packed[j + 4] |= (scale & 15) | ((minimum & 15) << 4);
                packed[j - 4] |= (scale >> 4) << 6;
                packed[j] |= (minimum >> 4) << 6;
            }
        }
        let head: Vec<u8> = [0x00, 0x3C, 0x00, 0x38].into_iter().chain(packed).collect(); // 1.0 and 0.5
        let sub = |j: usize| ((j + 1 + 16 * (j / 4)) as f32, (2 * j + 16 * (j / 4)) as f32);
        let mut q4 = head.clone();
        q4.extend((0..128).map(|i| (i % 16) as u8 | (((i + 3) % 16) as u8) << 4));
        for (i, value) in decoded(GgmlType::Q4K, &q4).into_iter().enumerate() {
            let (pair, half, m) = (i / 64, i % 64 / 32, i % 32);
            let quantum = ((32 * pair + m + 3 * half) % 16) as f32;
            assert_eq!(value, sub(2 * pair + half).0 * quantum - 0.5 * sub(2 * pair + half).1, "Q4_K weight {i}");
        }
        let mut q5 = head;
        q5.extend([0b1010_0101u8; 32]);
        q5.extend([0x21u8; 128]);
        for (i, value) in decoded(GgmlType::Q5K, &q5).into_iter().enumerate() {
            let j = i / 32;
            let quantum = [1.0, 2.0][j % 2] + [16.0, 0.0, 16.0, 0.0, 0.0, 16.0, 0.0, 16.0][j];
            assert_eq!(value, sub(j).0 * quantum - 0.5 * sub(j).1, "Q5_K weight {i}");
        }
    }

    #[test]
    fn q6_k_blocks_decode() {
        let mut block = vec![0u8; 210];
        block[208..].copy_from_slice(&[0x00, 0x38]);
        for j in 0..16 {
            block[192 + j] = (j as i8 - 8) as u8;
        }
        for weight in 0..256usize {
            let quantum = (weight * 37 % 64) as u8;
            let (half, quarter, m) = (weight / 128, weight % 128 / 32, weight % 32);
            block[64 * half + 32 * (quarter % 2) + m] |= (quantum & 15) << (4 * (quarter / 2));
            block[128 + 32 * half + m] |= (quantum >> 4) << (2 * quarter);
        }
        for (weight, value) in decoded(GgmlType::Q6K, &block).into_iter().enumerate() {
            let sub_scale = (weight / 16) as f32 - 8.0;
            assert_eq!(value, 0.5 * sub_scale * ((weight * 37 % 64) as f32 - 32.0), "weight {weight}");
        }
    }
}
