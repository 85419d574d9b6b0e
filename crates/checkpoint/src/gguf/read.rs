//! The GGUF container: header, metadata, tensor table. Knows no model and decodes no weight.
//!
//! Untrusted bytes. A length is checked against the bytes that are left before anything is allocated for it, all sizes go through
//! [`super::extent`], and reading is buffered so that a vocabulary of hundreds of thousands of strings costs milliseconds.
//! Versions 2 and 3, little-endian. Source: ggml-org/ggml:docs/gguf.md.
#![deny(clippy::arithmetic_side_effects)]

use std::borrow::Cow;

use super::extent::{Extent, align_up, n_elements};
use super::kv::{Metadata, Value, ValueType};
use super::malformed;
use super::stored_bytes::StoredBytes;
use crate::error::CheckpointError;
use crate::limits;

/// First four bytes of every file.
pub(super) const MAGIC: [u8; 4] = *b"GGUF";
/// The version that is written.
pub(super) const VERSION: u32 = 3;
/// Alignment of tensors in files that do not say.
pub(super) const ALIGNMENT_DEFAULT: u64 = 32;
/// The key that says it.
pub(super) const ALIGNMENT_KEY: &str = "general.alignment";

/// Read ahead of the cursor; also the most that is read before a length in it has been seen to be honest.
const BUFFER_BYTES: u64 = 256 << 10;
/// Fewest bytes of a metadata entry (length, one letter, type, one byte) and of a tensor entry (length, one letter, count, one
/// dimension, type, offset).
const KEY_BYTES_MIN: u64 = 8 + 1 + 4 + 1;
const TENSOR_BYTES_MIN: u64 = 8 + 1 + 4 + 8 + 4 + 8;

/// A tensor as the table describes it; its type is decided later, since ids collide.
#[derive(Debug, Clone)]
pub(super) struct TensorEntry {
    pub(super) name: String,
    /// Innermost first, as stored.
    pub(super) dimensions: Vec<u64>,
    pub(super) n_elements: u64,
    pub(super) type_id: u32,
    /// In the file.
    pub(super) start: u64,
    /// Bytes until the next tensor or the end of the file.
    pub(super) room_bytes: u64,
    /// Whether no other tensor follows it in the file.
    pub(super) is_last: bool,
}

/// A parsed container.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) metadata: Metadata,
    pub(super) tensors: Vec<TensorEntry>,
    pub(super) alignment: u64,
}

/// Parses everything before the tensor data.
pub(super) fn read(bytes: &StoredBytes) -> Result<Container, CheckpointError> {
    let mut cursor = Cursor::new(bytes);
    if cursor.take("magic", 4)? != MAGIC {
        return Err(malformed("magic", "the file does not begin with GGUF"));
    }
    match cursor.u32("version")? {
        2 | 3 => {}
        version if matches!(version.swap_bytes(), 1..=3) => {
            return Err(CheckpointError::Unsupported {
                feature: "big-endian GGUF".into(),
                reason: "convert it on a little-endian machine".into(),
            });
        }
        version => {
            return Err(CheckpointError::Unsupported {
                feature: format!("GGUF version {version}"),
                reason: "versions 2 and 3 are read".into(),
            });
        }
    }
    let n_tensors = cursor.u64("tensor count")?;
    let n_keys = cursor.u64("metadata key count")?;
    cursor.check_count("metadata key count", n_keys, KEY_BYTES_MIN, limits::GGUF_N_KEYS_MAX)?;
    cursor.check_count("tensor count", n_tensors, TENSOR_BYTES_MIN, limits::N_TENSORS_MAX as u64)?;

    let mut metadata = Metadata::default();
    for _ in 0..n_keys {
        let key = cursor.name("metadata key")?;
        let value = read_value(&mut cursor, &key)?;
        if !metadata.insert(key.clone(), value) {
            return Err(malformed(format!("metadata key `{key}`"), "appears twice"));
        }
    }
    let alignment = alignment(&metadata)?;
    let mut tensors = Vec::new();
    let mut names = std::collections::HashSet::new();
    for _ in 0..n_tensors {
        let tensor = read_tensor_entry(&mut cursor)?;
        if !names.insert(tensor.name.clone()) {
            return Err(malformed(format!("tensor `{}`", tensor.name), "appears twice"));
        }
        tensors.push(tensor);
    }
    let data_start = align_up(cursor.position(), alignment).ok_or_else(|| malformed("tensor data", "its start wraps"))?;
    place(&mut tensors, data_start, alignment, bytes.size_bytes())?;
    Ok(Container { metadata, tensors, alignment })
}

fn alignment(metadata: &Metadata) -> Result<u64, CheckpointError> {
    let alignment = metadata.integer::<u64>(ALIGNMENT_KEY)?.unwrap_or(ALIGNMENT_DEFAULT);
    if !alignment.is_power_of_two() || alignment > limits::GGUF_ALIGNMENT_MAX {
        let reason = format!("{alignment} is not a power of two up to {}", limits::GGUF_ALIGNMENT_MAX);
        return Err(CheckpointError::config(ALIGNMENT_KEY, reason));
    }
    Ok(alignment)
}

/// Turns offsets into places in the file, and finds out how much room each tensor has. Errors: unaligned, past the end, overlapping.
fn place(tensors: &mut [TensorEntry], data_start: u64, alignment: u64, file_bytes: u64) -> Result<(), CheckpointError> {
    for tensor in tensors.iter_mut() {
        let field = format!("tensor `{}` offset", tensor.name);
        if !tensor.start.is_multiple_of(alignment) {
            return Err(malformed(field, format!("{} is not a multiple of the alignment {alignment}", tensor.start)));
        }
        tensor.start = data_start.checked_add(tensor.start).ok_or_else(|| malformed(field, "wraps"))?;
    }
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|&index| tensors[index].start);
    for (position, &index) in order.iter().enumerate() {
        let next = position.checked_add(1).and_then(|next| order.get(next));
        let next_start = next.map(|&next| tensors[next].start);
        let tensor = &mut tensors[index];
        let field = || format!("tensor `{}` offset", tensor.name);
        let left = file_bytes.checked_sub(tensor.start).filter(|&left| left > 0);
        let left = left.ok_or_else(|| malformed(field(), "is past the end of the file"))?;
        let until_next = next_start.map_or(left, |next| next.saturating_sub(tensor.start));
        if until_next == 0 {
            return Err(malformed(field(), "overlaps another tensor"));
        }
        tensor.is_last = next_start.is_none();
        tensor.room_bytes = until_next.min(left);
    }
    Ok(())
}

fn read_tensor_entry(cursor: &mut Cursor<'_>) -> Result<TensorEntry, CheckpointError> {
    let name = cursor.name("tensor name")?;
    let field = format!("tensor `{name}`");
    let n_dimensions = cursor.u32(&field)?;
    if n_dimensions == 0 || u64::from(n_dimensions) > limits::N_DIMS_MAX as u64 {
        return Err(malformed(field, format!("{n_dimensions} dimensions, expected 1 to {}", limits::N_DIMS_MAX)));
    }
    let mut dimensions = Vec::with_capacity(limits::N_DIMS_MAX);
    for _ in 0..n_dimensions {
        dimensions.push(cursor.u64(&field)?);
    }
    let n_elements = n_elements(&dimensions);
    let n_elements = n_elements.ok_or_else(|| malformed(&field, format!("shape {dimensions:?} is empty or its product wraps")))?;
    let type_id = cursor.u32(&field)?;
    let start = cursor.u64(&field)?;
    Ok(TensorEntry { name, dimensions, n_elements, type_id, start, room_bytes: 0, is_last: false })
}

fn read_value(cursor: &mut Cursor<'_>, key: &str) -> Result<Value, CheckpointError> {
    let field = format!("metadata key `{key}`");
    let value_type = read_type(cursor, &field)?;
    match value_type {
        ValueType::String => {
            let n_bytes = cursor.u64(&field)?;
            let text = cursor.take(&field, n_bytes)?.to_vec();
            String::from_utf8(text).map(Value::String).map_err(|_| malformed(field, "the string is not UTF-8"))
        }
        ValueType::Array => read_array(cursor, &field),
        fixed => {
            let n_bytes = fixed.fixed_bytes().unwrap_or(0);
            let value = Value::from_fixed(fixed, cursor.take(&field, n_bytes)?);
            value.ok_or_else(|| malformed(field, format!("not a {}", fixed.name())))
        }
    }
}

fn read_type(cursor: &mut Cursor<'_>, field: &str) -> Result<ValueType, CheckpointError> {
    let id = cursor.u32(field)?;
    ValueType::from_id(id).ok_or_else(|| malformed(field, format!("value type {id} does not exist")))
}

fn read_array(cursor: &mut Cursor<'_>, field: &str) -> Result<Value, CheckpointError> {
    let element = read_type(cursor, field)?;
    let n_elements = cursor.u64(field)?;
    if let Some(size) = element.fixed_bytes() {
        let n_bytes = n_elements.checked_mul(size).ok_or_else(|| malformed(field, format!("{n_elements} elements wrap")))?;
        return Ok(Value::Numbers { element, bytes: cursor.take(field, n_bytes)?.to_vec() });
    }
    if element == ValueType::Array {
        return Err(malformed(field, "an array of arrays, which no known key has"));
    }
    cursor.check_count(field, n_elements, 8, u64::MAX)?;
    // At least eight bytes each are left in the file, so this is no larger than the file.
    let mut ends = Vec::with_capacity(usize::try_from(n_elements).map_err(|_| malformed(field, "too many elements"))?);
    let mut bytes = Vec::new();
    for _ in 0..n_elements {
        let n_bytes = cursor.u64(field)?;
        bytes.extend_from_slice(cursor.take(field, n_bytes)?);
        ends.push(bytes.len());
    }
    Ok(Value::Strings { bytes, ends })
}

/// Reads forward through a source.
struct Cursor<'a> {
    bytes: &'a StoredBytes,
    /// End of what may be metadata.
    limit: u64,
    buffer: Cow<'static, [u8]>,
    /// Where the buffer lies in the file.
    buffer_start: u64,
    /// Next byte of the buffer.
    next: usize,
}

impl<'a> Cursor<'a> {
    fn new(bytes: &'a StoredBytes) -> Self {
        let limit = bytes.size_bytes().min(limits::GGUF_METADATA_BYTES_MAX);
        Self { bytes, limit, buffer: Cow::Borrowed(&[]), buffer_start: 0, next: 0 }
    }

    fn position(&self) -> u64 {
        // `next` is within the buffer, which lies within the file, whose length is a u64.
        self.buffer_start.saturating_add(self.next as u64)
    }

    fn left(&self) -> u64 {
        self.limit.saturating_sub(self.position())
    }

    /// Refuses a count whose elements, of at least `bytes_each`, are more than is left.
    fn check_count(&self, field: &str, count: u64, bytes_each: u64, count_max: u64) -> Result<(), CheckpointError> {
        let fits = count.checked_mul(bytes_each).is_some_and(|total| total <= self.left());
        if !fits {
            return Err(malformed(field, format!("{count} entries do not fit the {} bytes that are left", self.left())));
        }
        if count > count_max {
            return Err(malformed(field, format!("{count} is more than {count_max}")));
        }
        Ok(())
    }

    /// The next `n_bytes`.
    fn take(&mut self, field: &str, n_bytes: u64) -> Result<&[u8], CheckpointError> {
        if n_bytes > self.left() {
            return Err(malformed(field, format!("{n_bytes} bytes, but only {} are left", self.left())));
        }
        let n = usize::try_from(n_bytes).map_err(|_| malformed(field, "too long for this machine"))?;
        if self.buffer.len().saturating_sub(self.next) < n {
            let start = self.position();
            let ahead = n_bytes.max(BUFFER_BYTES).min(self.left());
            let extent = Extent::new(start, ahead).ok_or_else(|| malformed(field, "wraps"))?;
            self.buffer = self.bytes.read(field, extent)?;
            self.buffer_start = start;
            self.next = 0;
        }
        let start = self.next;
        self.next = start.saturating_add(n);
        self.buffer.get(start..self.next).ok_or_else(|| malformed(field, "the file ends early"))
    }

    fn u32(&mut self, field: &str) -> Result<u32, CheckpointError> {
        let bytes = self.take(field, 4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn u64(&mut self, field: &str) -> Result<u64, CheckpointError> {
        let bytes = self.take(field, 8)?;
        Ok(u64::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5], bytes[6], bytes[7]]))
    }

    /// A key or a tensor name.
    fn name(&mut self, field: &str) -> Result<String, CheckpointError> {
        let n_bytes = self.u64(field)?;
        if n_bytes == 0 || n_bytes > limits::GGUF_NAME_BYTES_MAX {
            return Err(malformed(field, format!("{n_bytes} bytes long, expected 1 to {}", limits::GGUF_NAME_BYTES_MAX)));
        }
        let bytes = self.take(field, n_bytes)?.to_vec();
        String::from_utf8(bytes).map_err(|_| malformed(field, "is not UTF-8"))
    }
}
