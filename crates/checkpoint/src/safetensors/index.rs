//! All tensors of a folder: one `model.safetensors`, or the shards that `model.safetensors.index.json` names, looked for in this order
//! as transformers does (src/transformers/modeling_utils.py).
//!
//! The index is untrusted: a shard's name must be a plain file name, and index and headers must agree on every tensor. It is
//! not merged, repaired or guessed.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::read::{StoredTensor, base_name, read_header};
use crate::error::CheckpointError;
use crate::json::{self, shown};
use crate::limits;
use crate::positioned::{PositionedFile, read_small_file};

const SINGLE_FILE: &str = "model.safetensors";
const INDEX_FILE: &str = "model.safetensors.index.json";

/// The tensors of a folder, with the files open.
#[derive(Debug)]
pub(crate) struct TensorSet {
    shards: Vec<Arc<PositionedFile>>,
    tensors: Vec<StoredTensor>,
}

impl TensorSet {
    /// Opens a folder. `None` if it holds neither `model.safetensors` nor an index nor exactly one other safetensors file.
    pub(crate) fn open(folder: &Path) -> Result<Option<Self>, CheckpointError> {
        if let Some(file) = PositionedFile::open(&folder.join(SINGLE_FILE))? {
            return Self::open_single(file).map(Some);
        }
        if let Some(bytes) = read_small_file(&folder.join(INDEX_FILE), limits::SAFETENSORS_INDEX_BYTES_MAX)? {
            return Self::open_sharded(folder, &bytes).map(Some);
        }
        only_safetensors_file(folder)?.map(Self::open_single).transpose()
    }

    /// The names of the files.
    pub(crate) fn file_names(&self) -> impl Iterator<Item = String> {
        self.shards.iter().map(|shard| base_name(shard.path()))
    }

    /// All tensors.
    pub(crate) fn tensors(&self) -> &[StoredTensor] {
        &self.tensors
    }

    /// The file that holds one of them.
    pub(crate) fn file(&self, tensor: &StoredTensor) -> Arc<PositionedFile> {
        Arc::clone(&self.shards[tensor.shard])
    }

    /// The bytes of one of them.
    pub(crate) fn read(&self, tensor: &StoredTensor) -> Result<Vec<u8>, CheckpointError> {
        self.shards[tensor.shard].read_at(tensor.offset, tensor.size_bytes)
    }

    /// Bytes `from..from + size_bytes` of one of them.
    pub(crate) fn read_part(&self, tensor: &StoredTensor, from: u64, size_bytes: u64) -> Result<Vec<u8>, CheckpointError> {
        debug_assert!(from + size_bytes <= tensor.size_bytes, "a part lies inside its tensor");
        self.shards[tensor.shard].read_at(tensor.offset + from, size_bytes)
    }

    fn open_single(file: PositionedFile) -> Result<Self, CheckpointError> {
        let tensors = read_header(&file)?;
        Ok(Self { shards: vec![Arc::new(file)], tensors })
    }

    fn open_sharded(folder: &Path, bytes: &[u8]) -> Result<Self, CheckpointError> {
        let index = json::parse_object(INDEX_FILE, bytes)?;
        let mut shard_of = weight_map(&index)?;
        let names: BTreeSet<&str> = shard_of.values().copied().collect();
        if names.len() > limits::N_SHARDS_MAX {
            return Err(index_error("weight_map", format!("{} shards, at most {} are read", names.len(), limits::N_SHARDS_MAX)));
        }
        let mut set = Self { shards: Vec::new(), tensors: Vec::new() };
        for shard_name in names {
            check_plain_name(shard_name)?;
            let file = PositionedFile::open(&folder.join(shard_name))?;
            let file = file.ok_or_else(|| index_error("weight_map", format!("the shard {} is not there", shown(shard_name))))?;
            for mut tensor in read_header(&file)? {
                check_listed(shard_of.remove(tensor.name.as_str()), &tensor.name, &base_name(file.path()))?;
                tensor.shard = set.shards.len();
                set.tensors.push(tensor);
            }
            set.shards.push(Arc::new(file));
        }
        match shard_of.iter().min() {
            Some((name, shard)) => Err(index_error("weight_map", format!("tensor {} is not in {}", shown(name), shown(shard)))),
            None => Ok(set),
        }
    }
}

fn weight_map(index: &Map<String, Value>) -> Result<HashMap<&str, &str>, CheckpointError> {
    let map = index.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| index_error("weight_map", "expected an object of file names by tensor name"))?;
    if map.len() > limits::N_TENSORS_MAX {
        return Err(index_error("weight_map", format!("{} tensors, at most {} are read", map.len(), limits::N_TENSORS_MAX)));
    }
    let file_name = |(name, value): (&'_ String, &'_ Value)| match value.as_str() {
        Some(_) => Ok(()),
        None => Err(index_error("weight_map", format!("tensor {}: expected a file name, got {}", shown(name), json::kind(value)))),
    };
    map.iter().try_for_each(file_name)?;
    Ok(map.iter().filter_map(|(name, value)| Some((name.as_str(), value.as_str()?))).collect())
}

/// What the index says of a tensor found in a shard: `listed` is the shard it names, taken out of the index on first sight.
fn check_listed(listed: Option<&str>, name: &str, shard: &str) -> Result<(), CheckpointError> {
    match listed {
        Some(listed) if listed == shard => Ok(()),
        Some(listed) => Err(index_error("weight_map", format!("tensor {} is in {shard}, not in {}", shown(name), shown(listed)))),
        None => Err(index_error("weight_map", format!("tensor {} of {shard} is not listed, or in two shards", shown(name)))),
    }
}

/// A shard's name must stay in its folder on every operating system: no separator, no drive, no parent, no hidden file.
fn check_plain_name(name: &str) -> Result<(), CheckpointError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+' | ' ');
    if name.is_empty() || name.len() > 255 || name.starts_with('.') || !name.ends_with(".safetensors") || !name.chars().all(plain) {
        return Err(index_error("weight_map", format!("{} is not a plain name of a safetensors file", shown(name))));
    }
    Ok(())
}

/// The one `*.safetensors` file of a folder that has no `model.safetensors` (published adapters aside, some exports rename it).
fn only_safetensors_file(folder: &Path) -> Result<Option<PositionedFile>, CheckpointError> {
    let entries = std::fs::read_dir(folder).map_err(|source| CheckpointError::Io { path: folder.to_owned(), source })?;
    let mut paths = entries.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|end| end == "safetensors"));
    match (paths.next(), paths.next()) {
        (Some(only), None) => PositionedFile::open(&only),
        _ => Ok(None),
    }
}

fn index_error(field: &str, reason: impl Into<String>) -> CheckpointError {
    CheckpointError::malformed("safetensors", format!("{INDEX_FILE}: {field}"), reason)
}
