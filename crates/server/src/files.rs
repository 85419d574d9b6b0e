//! Kept files and batches: each object is a JSON file beside its content in one folder, written beside its place and renamed, so
//! that a crash leaves the old or the new one and never half of either. An id becomes a path only after it has been checked to be
//! one that we made (CVE-2024-37032: a digest was used as a path unchecked).

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::ServerError;
use crate::ids::new_id;

/// What is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shelf {
    /// Uploads and results.
    Files,
    /// Batches.
    Batches,
}

impl Shelf {
    fn folder(self) -> &'static str {
        match self {
            Self::Files => "files",
            Self::Batches => "batches",
        }
    }

    /// How its ids begin.
    pub(crate) fn prefix(self) -> &'static str {
        match self {
            Self::Files => "file-",
            Self::Batches => "batch_",
        }
    }

    fn kind(self) -> &'static str {
        match self {
            Self::Files => "file",
            Self::Batches => "batch",
        }
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct FileStore {
    folder: PathBuf,
}

impl FileStore {
    /// Uses `folder`, and makes it where it is not there.
    pub(crate) fn open(folder: &Path) -> io::Result<Self> {
        for shelf in [Shelf::Files, Shelf::Batches] {
            fs::create_dir_all(folder.join(shelf.folder()))?;
        }
        Ok(Self { folder: folder.to_path_buf() })
    }

    /// Whether `open` would find or make its folder. Nothing is written.
    pub(crate) fn check(folder: &Path) -> io::Result<()> {
        let there = folder.ancestors().find(|ancestor| ancestor.exists() || ancestor.as_os_str().is_empty());
        let there = there.filter(|there| !there.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let refuse = |what: &str| Err(io::Error::other(format!("{} {what}", there.display())));
        match fs::metadata(there)? {
            metadata if !metadata.is_dir() => refuse("is no folder"),
            metadata if metadata.permissions().readonly() => refuse("may not be written to"),
            _ => Ok(()),
        }
    }

    /// Where the content of an object is, or a side file of a batch.
    pub(crate) fn content(&self, shelf: Shelf, id: &str, extension: &str) -> Result<PathBuf, ServerError> {
        let digits = id.strip_prefix(shelf.prefix()).unwrap_or_default();
        let is_ours = digits.len() == 24 && digits.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        if !is_ours {
            return Err(unknown(shelf, id));
        }
        Ok(self.folder.join(shelf.folder()).join(format!("{id}.{extension}")))
    }

    /// Writes an object.
    pub(crate) fn put(&self, shelf: Shelf, id: &str, object: &impl Serialize) -> Result<(), ServerError> {
        let (path, beside) = (self.content(shelf, id, "json")?, self.content(shelf, id, "new")?);
        let json = serde_json::to_vec(object).map_err(io::Error::other)?;
        let mut file = fs::File::create(&beside)?;
        file.write_all(&json)?;
        file.sync_all()?;
        Ok(fs::rename(&beside, &path)?)
    }

    /// Reads an object.
    pub(crate) fn get<T: DeserializeOwned>(&self, shelf: Shelf, id: &str) -> Result<T, ServerError> {
        let json = match fs::read(self.content(shelf, id, "json")?) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(unknown(shelf, id)),
            other => other?,
        };
        Ok(serde_json::from_slice(&json).map_err(io::Error::other)?)
    }

    /// Removes an object and its content.
    pub(crate) fn remove(&self, shelf: Shelf, id: &str) -> Result<(), ServerError> {
        match fs::remove_file(self.content(shelf, id, "json")?) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(unknown(shelf, id)),
            other => other?,
        }
        match fs::remove_file(self.content(shelf, id, "jsonl")?) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Ids of all objects.
    pub(crate) fn ids(&self, shelf: Shelf) -> Result<Vec<String>, ServerError> {
        let mut ids = Vec::new();
        for entry in fs::read_dir(self.folder.join(shelf.folder()))? {
            let name = entry?.file_name();
            ids.extend(name.to_str().and_then(|name| name.strip_suffix(".json")).map(str::to_string));
        }
        Ok(ids)
    }

    /// A new id.
    pub(crate) fn new_id(shelf: Shelf) -> String {
        new_id(shelf.prefix())
    }
}

/// Somebody else's object is as unknown as one that never was.
pub(crate) fn unknown(shelf: Shelf, id: &str) -> ServerError {
    ServerError::UnknownObject { kind: shelf.kind(), id: id.chars().take(100).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn object_is_kept_and_removed_by_its_id() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = FileStore::open(folder.path()).expect("opens");
        let id = FileStore::new_id(Shelf::Files);
        store.put(Shelf::Files, &id, &vec![1, 2]).expect("written");
        assert_eq!(store.get::<Vec<u32>>(Shelf::Files, &id).expect("read"), [1, 2]);
        assert_eq!(store.ids(Shelf::Files).expect("listed"), std::slice::from_ref(&id));
        store.remove(Shelf::Files, &id).expect("removed");
        assert!(matches!(store.get::<Vec<u32>>(Shelf::Files, &id), Err(ServerError::UnknownObject { .. })));
    }

    #[test]
    fn id_that_is_a_path_is_unknown() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = FileStore::open(folder.path()).expect("opens");
        for id in ["../x", "file-../../etc/passwd", "file-", "file-ABCDEFABCDEFABCDEFABCDEF", "batch_0123456789abcdef01234567", "file-\0"] {
            assert!(matches!(store.content(Shelf::Files, id, "json"), Err(ServerError::UnknownObject { .. })), "{id}");
        }
    }
}
