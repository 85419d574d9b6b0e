//! Which files of a repository make a model: configuration, tokenizer and weights of a safetensors checkpoint, or one GGUF file.
//! Never anything that would be executed (pickles, Python).

use std::collections::BTreeSet;

use super::name::{Digest, RemotePath};
use super::{HubError, HubName};

/// A file as the hub lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RemoteFile {
    /// Name within the repository.
    pub(crate) path: RemotePath,
    /// Bytes, if the listing says.
    pub(crate) size_bytes: Option<u64>,
    /// Hash, if the listing says.
    pub(crate) digest: Option<Digest>,
}

/// The list of shards, `{"weight_map": {tensor: file}}`.
pub(crate) const SHARD_INDEX: &str = "model.safetensors.index.json";
const SINGLE_FILE: &str = "model.safetensors";

/// Small files, all optional but the first; whatever is there is taken.
const TEXT_FILES: [&str; 9] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    SHARD_INDEX,
];

/// What to download first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Selection {
    /// One file, which is the model.
    File(RemoteFile),
    /// A folder: these files; with a shard index among them, its shards too ([`shards`]).
    Folder { files: Vec<RemoteFile>, has_index: bool },
}

/// Chooses among `files`.
pub(crate) fn select(name: &HubName, files: &[RemoteFile]) -> Result<Selection, HubError> {
    let repository = || name.repository.clone();
    if let Some(wanted) = &name.file {
        return match files.iter().find(|file| file.path == *wanted) {
            Some(file) => Ok(Selection::File(file.clone())),
            None => Err(HubError::NoFile { repository: repository(), file: wanted.to_string(), similar: similar(files, wanted) }),
        };
    }
    let in_root = |file: &&RemoteFile| file.path.n_folders() == 0;
    let is = |name: &'static str| move |file: &&RemoteFile| file.path.as_str() == name;
    let safetensors: Vec<_> = files.iter().filter(in_root).filter(|file| file.path.as_str().ends_with(".safetensors")).collect();
    if !safetensors.is_empty() && files.iter().any(|file| is("config.json")(&file)) {
        let single: Vec<_> = safetensors.iter().copied().filter(is(SINGLE_FILE)).collect();
        // The single file goes first, as where folders are opened.
        let has_index = single.is_empty() && files.iter().any(|file| is(SHARD_INDEX)(&file));
        let text = files.iter().filter(|file| TEXT_FILES.contains(&file.path.as_str()) && (has_index || !is(SHARD_INDEX)(file)));
        let weights = match (has_index, single.is_empty()) {
            (true, _) => Vec::new(),
            (false, false) => single,
            (false, true) => safetensors,
        };
        return Ok(Selection::Folder { files: text.chain(weights).cloned().collect(), has_index });
    }
    let gguf: Vec<_> = files.iter().filter(|file| is_gguf(&file.path)).collect();
    match gguf.as_slice() {
        [] => Err(HubError::NoModel { repository: repository() }),
        [file] => Ok(Selection::File((*file).clone())),
        several => Err(HubError::Ambiguous { repository: repository(), files: several.iter().map(|file| file.path.to_string()).collect() }),
    }
}

/// The shards that an index names, found among `files`.
pub(crate) fn shards(repository: &str, index: &[u8], files: &[RemoteFile]) -> Result<Vec<RemoteFile>, HubError> {
    let malformed = |reason: &str| HubError::Answer { url: format!("{repository}/{SHARD_INDEX}"), reason: reason.to_string() };
    let index: serde_json::Value = serde_json::from_slice(index).map_err(|error| malformed(&error.to_string()))?;
    let map = index.get("weight_map").and_then(serde_json::Value::as_object).ok_or_else(|| malformed("it has no weight_map"))?;
    let names: BTreeSet<&str> = map.values().filter_map(serde_json::Value::as_str).collect();
    let find = |name: &str| {
        let found = files.iter().find(|file| file.path.as_str() == name && file.path.n_folders() == 0);
        found.cloned().ok_or_else(|| HubError::NoFile { repository: repository.to_string(), file: name.to_string(), similar: Vec::new() })
    };
    names.into_iter().map(find).collect()
}

fn is_gguf(path: &RemotePath) -> bool {
    path.as_str().to_ascii_lowercase().ends_with(".gguf")
}

/// Files that the reader may have meant: those with the same extension.
fn similar(files: &[RemoteFile], wanted: &RemotePath) -> Vec<String> {
    const SHOWN_MAX: usize = 12;
    let extension = |path: &RemotePath| path.as_str().rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase());
    let same = files.iter().filter(|file| extension(&file.path) == extension(wanted));
    same.map(|file| file.path.to_string()).take(SHOWN_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(names: &[&str]) -> Vec<RemoteFile> {
        names.iter().map(|name| RemoteFile { path: name.parse().expect("valid"), size_bytes: None, digest: None }).collect()
    }

    fn chosen(name: &str, names: &[&str]) -> Result<Vec<String>, HubError> {
        let text = |files: Vec<RemoteFile>| files.into_iter().map(|file| file.path.to_string()).collect();
        Ok(match select(&name.parse().expect("valid"), &files(names))? {
            Selection::File(file) => text(vec![file]),
            Selection::Folder { files, .. } => text(files),
        })
    }

    #[test]
    fn select_takes_a_checkpoint_without_its_pickles() {
        let names = [
            "README.md",
            "config.json",
            "model.safetensors",
            "pytorch_model.bin",
            "modeling.py",
            "tokenizer.json",
            "tokenizer.model",
            "x.gguf",
        ];
        assert_eq!(chosen("a/b", &names).expect("chosen"), ["config.json", "tokenizer.json", "tokenizer.model", "model.safetensors"]);
        let sharded = ["config.json", SHARD_INDEX, "model-1.safetensors", "model-2.safetensors", "other.safetensors"];
        assert_eq!(chosen("a/b", &sharded).expect("chosen"), ["config.json", SHARD_INDEX]);
        let both = ["config.json", SHARD_INDEX, "model-1.safetensors", SINGLE_FILE];
        assert_eq!(chosen("a/b", &both).expect("chosen"), ["config.json", SINGLE_FILE]);
        let index = br#"{"weight_map":{"x":"model-2.safetensors","y":"model-1.safetensors","z":"model-1.safetensors"}}"#;
        let found = shards("a/b", index, &files(&sharded)).expect("shards");
        assert_eq!(found.iter().map(|file| file.path.as_str()).collect::<Vec<_>>(), ["model-1.safetensors", "model-2.safetensors"]);
    }

    #[test]
    fn select_takes_one_gguf_and_asks_among_several() {
        assert_eq!(chosen("a/b", &["README.md", "m.GGUF"]).expect("chosen"), ["m.GGUF"]);
        assert_eq!(chosen("a/b:y.gguf", &["x.gguf", "y.gguf"]).expect("chosen"), ["y.gguf"]);
        assert!(matches!(chosen("a/b", &["x.gguf", "y.gguf"]), Err(HubError::Ambiguous { files, .. }) if files.len() == 2));
        assert!(matches!(chosen("a/b:z.gguf", &["x.gguf", "y.bin"]), Err(HubError::NoFile { similar, .. }) if similar == ["x.gguf"]));
        assert!(matches!(chosen("a/b", &["README.md"]), Err(HubError::NoModel { .. })));
    }

    #[test]
    fn shards_outside_the_repository_are_refused() {
        let listed = files(&["model-1.safetensors"]);
        for index in [&b"[]"[..], b"{", br#"{"weight_map":{"x":"../model-1.safetensors"}}"#, br#"{"weight_map":{"x":"gone.safetensors"}}"#]
        {
            assert!(shards("a/b", index, &listed).is_err());
        }
    }
}
