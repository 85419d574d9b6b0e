//! safetensors: reading with every declared size checked against the bytes, writing in one pass. `source` makes a model of a
//! folder of them.
//!
//! The header's types come from the `safetensors` crate; its reader is not used, because it wants the whole file in memory or
//! mapped and does not see duplicate names. Format: huggingface/safetensors:README.md, "Format".

mod index;
mod read;
pub(crate) mod source;
mod write;

pub(crate) use index::TensorSet;
pub(crate) use read::StoredTensor;
pub(crate) use write::{SafetensorsWriter, TensorDeclaration};

/// Bytes of one element. `None` for types narrower than a byte.
pub(crate) fn element_size_bytes(dtype: ::safetensors::Dtype) -> Option<u64> {
    let bits = dtype.bitsize();
    bits.is_multiple_of(8).then_some(bits as u64 / 8)
}
