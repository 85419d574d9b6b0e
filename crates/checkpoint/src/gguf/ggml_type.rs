//! What a tensor's type id means. Forks of ggml use the same ids for different types (36, 38 to 42), so an id is read together
//! with the file's architecture, its `general.file_type` and the room the tensor has in the file, never alone.
//!
//! Sources: ggml-org/llama.cpp:ggml/include/ggml.h; microsoft/BitNet's fork (36 I2_S, 38 TL1, 39 TL2); PrismML-Eng/llama.cpp (42
//! with blocks of 128, 142, 143); ggml-org/llama.cpp#24448.
#![deny(clippy::arithmetic_side_effects)]

use bitnet_ternary::layout::q2_0::BlockWidth;
use bitnet_ternary::layout::{i2_s, ptq1_0, q1_0, tq1_0, tq2_0};

use super::malformed;
use super::read::TensorEntry;
use crate::error::CheckpointError;

/// A tensor type that is read here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GgmlType {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
    Tq1_0,
    Tq2_0,
    I2S,
    Q1_0,
    /// Id 42, in either of its two widths.
    Q2_0(BlockWidth),
    Pq2_0,
    Ptq1_0,
}

const I2_S_ID: u32 = 36;
const Q2_0_ID: u32 = 42;
/// `general.file_type` of I2_S files.
pub(super) const I2_S_FILE_TYPE: u32 = 40;

impl GgmlType {
    /// The id in the file.
    pub(super) const fn id(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q8_0 => 8,
            Self::Q4K => 12,
            Self::Q5K => 13,
            Self::Q6K => 14,
            Self::Bf16 => 30,
            Self::Tq1_0 => 34,
            Self::Tq2_0 => 35,
            Self::I2S => I2_S_ID,
            Self::Q1_0 => 41,
            Self::Q2_0(_) => Q2_0_ID,
            Self::Pq2_0 => 142,
            Self::Ptq1_0 => 143,
        }
    }

    /// ggml's name, with the block width where two types share one.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Q4_0 => "Q4_0",
            Self::Q8_0 => "Q8_0",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
            Self::Bf16 => "BF16",
            Self::Tq1_0 => "TQ1_0",
            Self::Tq2_0 => "TQ2_0",
            Self::I2S => "I2_S",
            Self::Q1_0 => "Q1_0",
            Self::Q2_0(BlockWidth::Weights64) => "Q2_0",
            Self::Q2_0(BlockWidth::Weights128) => "Q2_0 (128)",
            Self::Pq2_0 => "PQ2_0",
            Self::Ptq1_0 => "PTQ1_0",
        }
    }

    /// `(weights, bytes)` of a block; I2_S has none (its scale is the tensor's).
    pub(super) const fn block(self) -> Option<(u64, u64)> {
        Some(match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q4_0 => (32, 18),
            Self::Q8_0 => (32, 34),
            Self::Q4K => (256, 144),
            Self::Q5K => (256, 176),
            Self::Q6K => (256, 210),
            Self::Tq1_0 => (tq1_0::BLOCK_WEIGHTS as u64, tq1_0::BLOCK_BYTES as u64),
            Self::Tq2_0 => (tq2_0::BLOCK_WEIGHTS as u64, tq2_0::BLOCK_BYTES as u64),
            Self::Q1_0 => (q1_0::BLOCK_WEIGHTS as u64, q1_0::BLOCK_BYTES as u64),
            Self::Q2_0(width) => (width.weights() as u64, width.size_bytes() as u64),
            Self::Pq2_0 => (BlockWidth::Weights128.weights() as u64, BlockWidth::Weights128.size_bytes() as u64),
            Self::Ptq1_0 => (ptq1_0::BLOCK_WEIGHTS as u64, ptq1_0::BLOCK_BYTES as u64),
            Self::I2S => return None,
        })
    }

    /// Bytes of a tensor with rows of `n_cols`. `None` if rows are not whole blocks, or the size wraps.
    pub(super) fn size_bytes(self, n_elements: u64, n_cols: u64) -> Option<u64> {
        match self.block() {
            Some((weights, bytes)) if n_cols.is_multiple_of(weights) => n_elements.checked_div(weights)?.checked_mul(bytes),
            Some(_) => None,
            None => i2_s::size_bytes(usize::try_from(n_elements).ok()?).map(|size| size as u64),
        }
    }

    /// Whether tensors of this type hold trits.
    pub(super) const fn is_ternary(self) -> bool {
        !matches!(self, Self::F32 | Self::F16 | Self::Bf16 | Self::Q4_0 | Self::Q8_0 | Self::Q4K | Self::Q5K | Self::Q6K)
    }

    /// Whether it is a type of PrismML's, all of whose models leave activations unquantised.
    pub(super) const fn is_weight_only(self) -> bool {
        matches!(self, Self::Q1_0 | Self::Q2_0(BlockWidth::Weights128) | Self::Pq2_0 | Self::Ptq1_0)
    }
}

/// What the file says that helps to read its type ids.
#[derive(Debug, Clone, Copy)]
pub(super) struct FileEvidence {
    /// The architecture or the file type is one that only Microsoft's fork writes.
    pub(super) microsoft: bool,
    pub(super) alignment: u64,
}

/// The type of every tensor, in order, and its size in bytes. Errors: types that are not read, sizes that do not fit the file.
pub(super) fn resolve(tensors: &[TensorEntry], evidence: FileEvidence) -> Result<Vec<(GgmlType, u64)>, CheckpointError> {
    let width = q2_0_width(tensors, evidence)?;
    tensors.iter().map(|tensor| resolve_one(tensor, width, evidence)).collect()
}

fn resolve_one(tensor: &TensorEntry, width: BlockWidth, evidence: FileEvidence) -> Result<(GgmlType, u64), CheckpointError> {
    let ggml_type = match tensor.type_id {
        0 => GgmlType::F32,
        1 => GgmlType::F16,
        2 => GgmlType::Q4_0,
        8 => GgmlType::Q8_0,
        12 => GgmlType::Q4K,
        13 => GgmlType::Q5K,
        14 => GgmlType::Q6K,
        30 => GgmlType::Bf16,
        34 => GgmlType::Tq1_0,
        35 => GgmlType::Tq2_0,
        I2_S_ID if evidence.microsoft || fits(tensor, GgmlType::I2S, evidence.alignment) => GgmlType::I2S,
        41 => GgmlType::Q1_0,
        Q2_0_ID => GgmlType::Q2_0(width),
        142 => GgmlType::Pq2_0,
        143 => GgmlType::Ptq1_0,
        other => return Err(unread(tensor, other, evidence)),
    };
    let name = ggml_type.name();
    let field = || format!("tensor `{}`", tensor.name);
    let size = ggml_type.size_bytes(tensor.n_elements, tensor.dimensions[0]);
    let size = size.ok_or_else(|| malformed(field(), format!("rows of {} are not whole {name} blocks", tensor.dimensions[0])))?;
    if size > tensor.room_bytes {
        let end = if tensor.is_last { "the end of the file" } else { "the next tensor" };
        return Err(malformed(field(), format!("{name} needs {size} bytes, but {end} is after {}", tensor.room_bytes)));
    }
    Ok((ggml_type, size))
}

/// Whether the tensor's room is what this type needs, padding included.
fn fits(tensor: &TensorEntry, ggml_type: GgmlType, alignment: u64) -> bool {
    let size = ggml_type.size_bytes(tensor.n_elements, tensor.dimensions[0]);
    let spare = size.and_then(|size| tensor.room_bytes.checked_sub(size));
    spare.is_some_and(|spare| spare < alignment || tensor.is_last)
}

/// Which of the two types with id 42 the file uses: the one that fits where only one does. Mainline's if nothing tells.
fn q2_0_width(tensors: &[TensorEntry], evidence: FileEvidence) -> Result<BlockWidth, CheckpointError> {
    let mut seen: Option<(BlockWidth, &str)> = None;
    for tensor in tensors.iter().filter(|tensor| tensor.type_id == Q2_0_ID && !tensor.is_last) {
        let [narrow, wide] =
            [BlockWidth::Weights64, BlockWidth::Weights128].map(|width| fits(tensor, GgmlType::Q2_0(width), evidence.alignment));
        let width = match (narrow, wide) {
            (true, false) => BlockWidth::Weights64,
            (false, true) => BlockWidth::Weights128,
            (true, true) => continue,
            (false, false) => return Err(malformed(format!("tensor `{}`", tensor.name), "its size fits neither Q2_0 block width")),
        };
        match seen {
            Some((other, first)) if other != width => {
                return Err(malformed(format!("tensor `{}`", tensor.name), format!("its Q2_0 block width differs from that of `{first}`")));
            }
            _ => seen = Some((width, &tensor.name)),
        }
    }
    Ok(seen.map_or(BlockWidth::Weights64, |(width, _)| width))
}

fn unread(tensor: &TensorEntry, id: u32, evidence: FileEvidence) -> CheckpointError {
    let (name, advice) = match id {
        38 if evidence.microsoft => ("TL1", "it is packed for one CPU's lookup tables; use the I2_S or TQ2_0 file of this model"),
        39 if evidence.microsoft => ("TL2", "it is packed for one CPU's lookup tables; use the I2_S or TQ2_0 file of this model"),
        37 => ("I8_S", "it holds activations of a running program, not weights"),
        36 => ("type 36", "its size is not that of I2_S, so it is another fork's type"),
        3 => ("Q4_1", "it is not ternary and not read for embeddings"),
        6 => ("Q5_0", "it is not ternary and not read for embeddings"),
        7 => ("Q5_1", "it is not ternary and not read for embeddings"),
        10 => ("Q2_K", "it is not ternary and not read for embeddings"),
        11 => ("Q3_K", "it is not ternary and not read for embeddings"),
        39 => ("MXFP4", "it is not ternary"),
        40 => ("NVFP4", "it is not ternary"),
        16..=23 | 29 => ("an IQ type", "it is not ternary"),
        134 | 135 => ("IQ1_BN or IQ2_BN", "it belongs to ik_llama.cpp; use the I2_S or TQ2_0 file of this model"),
        _ => ("an unknown type", "no version of ggml known here has it"),
    };
    CheckpointError::Unsupported { feature: format!("ggml type {id} ({name}) of tensor `{}`", tensor.name), reason: advice.into() }
}
