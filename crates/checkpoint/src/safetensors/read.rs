//! One safetensors file: its header, parsed and validated so that every tensor is exactly its declared bytes and every byte of
//! the file belongs to exactly one tensor. No hole, overlap or tail in which a second file could hide (polyglots).
//!
//! Memory is bounded by the header's own length, which is bounded by the file's. Rules: huggingface/safetensors:README.md,
//! "Format"; the failures they prevent: Trail of Bits' review of safetensors (2023).

use std::collections::HashSet;
use std::fmt;
use std::path::Path;

use ::safetensors::Dtype;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::element_size_bytes;
use crate::error::CheckpointError;
use crate::json::shown;
use crate::limits;
use crate::positioned::PositionedFile;

const FORMAT: &str = "safetensors";
const LENGTH_BYTES: u64 = 8;
const METADATA_KEY: &str = "__metadata__";

/// Where a tensor lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredTensor {
    /// Name as stored.
    pub(crate) name: String,
    /// Element type as stored.
    pub(crate) dtype: Dtype,
    /// Shape as stored.
    pub(crate) shape: Vec<usize>,
    /// Which file of the set.
    pub(crate) shard: usize,
    /// First byte in that file.
    pub(crate) offset: u64,
    /// Number of bytes.
    pub(crate) size_bytes: u64,
}

/// Reads and validates a file's header. Tensors come in the order of their bytes, with `shard` 0.
pub(crate) fn read_header(file: &PositionedFile) -> Result<Vec<StoredTensor>, CheckpointError> {
    let malformed =
        |field: &str, reason: String| CheckpointError::malformed(FORMAT, format!("{}: {field}", base_name(file.path())), reason);
    if file.size_bytes() < LENGTH_BYTES {
        return Err(malformed("header length", format!("the file has {} bytes, at least 8 are needed", file.size_bytes())));
    }
    let length = file.read_at(0, LENGTH_BYTES)?.try_into().map(u64::from_le_bytes).expect("eight bytes were asked for");
    let header_max = limits::SAFETENSORS_HEADER_BYTES_MAX.min(file.size_bytes() - LENGTH_BYTES);
    if length > header_max {
        let reason = format!("{length} bytes; the file is {} bytes long and a header at most {}", file.size_bytes(), header_max);
        return Err(malformed("header length", reason));
    }
    let bytes = file.read_at(LENGTH_BYTES, length)?;
    if bytes.first() != Some(&b'{') {
        return Err(malformed("header", "does not begin with `{`".into()));
    }
    let Header(mut entries) = serde_json::from_slice(&bytes).map_err(|error| malformed("header", error.to_string()))?;
    entries.sort_by_key(|(_, entry)| entry.data_offsets);
    let data_start = LENGTH_BYTES + length;
    let data_size = file.size_bytes() - data_start;
    place(entries, data_start, data_size).map_err(|(field, reason)| malformed(&field, reason))
}

/// Checks that the entries, sorted by offset, tile the data and are as long as their shapes say.
fn place(entries: Vec<(String, Entry)>, data_start: u64, data_size: u64) -> Result<Vec<StoredTensor>, (String, String)> {
    let mut tensors = Vec::with_capacity(entries.len());
    let mut next = 0;
    for (name, entry) in entries {
        let (begin, end) = entry.data_offsets;
        let wrong = |reason: String| (format!("tensor {}", shown(&name)), reason);
        if begin != next {
            let what = if begin < next { "overlaps its neighbour" } else { "leaves a hole" };
            return Err(wrong(format!("data_offsets {begin}..{end}: {what}, the bytes before end at {next}")));
        }
        if end < begin || end > data_size {
            return Err(wrong(format!("data_offsets {begin}..{end} are outside the {data_size} bytes of data")));
        }
        let expected = shape_size_bytes(&entry.shape.0, entry.dtype)
            .ok_or_else(|| wrong(format!("shape {:?} of {:?} is not a whole number of bytes", entry.shape.0, entry.dtype)))?;
        if expected != end - begin {
            let reason = format!("shape {:?} of {:?} is {expected} bytes, data_offsets give {}", entry.shape.0, entry.dtype, end - begin);
            return Err(wrong(reason));
        }
        next = end;
        let (offset, size_bytes) = (data_start + begin, end - begin);
        tensors.push(StoredTensor { name, dtype: entry.dtype, shape: entry.shape.0, shard: 0, offset, size_bytes });
    }
    if next != data_size {
        return Err(("data".into(), format!("{} bytes after the last tensor", data_size - next)));
    }
    Ok(tensors)
}

fn shape_size_bytes(shape: &[usize], dtype: Dtype) -> Option<u64> {
    let element = element_size_bytes(dtype)?;
    shape.iter().try_fold(element, |size, &dim| size.checked_mul(u64::try_from(dim).ok()?))
}

/// File name without its folder.
pub(super) fn base_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

#[derive(Deserialize)]
struct Entry {
    dtype: Dtype,
    shape: Shape,
    data_offsets: (u64, u64),
}

/// A shape of at most [`limits::N_DIMS_MAX`] dimensions, so that a header cannot unfold into many times its own size.
struct Shape(Vec<usize>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ShapeVisitor)
    }
}

struct ShapeVisitor;

impl<'de> Visitor<'de> for ShapeVisitor {
    type Value = Shape;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        write!(formatter, "at most {} dimensions", limits::N_DIMS_MAX)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Shape, A::Error> {
        let mut dims = Vec::new();
        while let Some(dim) = sequence.next_element()? {
            if dims.len() == limits::N_DIMS_MAX {
                return Err(A::Error::custom(format!("a shape of more than {} dimensions", limits::N_DIMS_MAX)));
            }
            dims.push(dim);
        }
        Ok(Shape(dims))
    }
}

/// The header's entries, without `__metadata__`, which is checked and dropped: nothing in it decides anything.
struct Header(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut names = HashSet::new();
        let mut entries = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if entries.len() == limits::N_TENSORS_MAX {
                return Err(A::Error::custom(format!("more than {} tensors", limits::N_TENSORS_MAX)));
            }
            if !names.insert(name.clone()) {
                return Err(A::Error::custom(format!("the name {} occurs twice", shown(&name))));
            }
            if name == METADATA_KEY {
                map.next_value::<DroppedMetadata>()?;
            } else {
                entries.push((name, map.next_value()?));
            }
        }
        Ok(Header(entries))
    }
}

/// `__metadata__`: strings by name.
struct DroppedMetadata;

impl<'de> Deserialize<'de> for DroppedMetadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MetadataVisitor)
    }
}

struct MetadataVisitor;

impl<'de> Visitor<'de> for MetadataVisitor {
    type Value = DroppedMetadata;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("an object of strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<DroppedMetadata, A::Error> {
        while map.next_entry::<String, String>()?.is_some() {}
        Ok(DroppedMetadata)
    }
}
