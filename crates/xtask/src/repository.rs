//! Where the repository lies, what it tracks, and what cargo says of it. Read-only.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::command;

/// Folders that hold no source, for checkouts without git.
const BUILD_FOLDERS: &[&str] = &["target", ".git", "corpus", "artifacts"];

pub(crate) struct Repository {
    pub(crate) root: PathBuf,
}

impl Repository {
    /// The checkout that holds the current folder.
    pub(crate) fn find() -> Result<Self> {
        let here = std::env::current_dir().context("no current folder")?;
        let root = here.ancestors().find(|folder| folder.join("crates/xtask/Cargo.toml").is_file());
        let root = root.context("run this inside a checkout of the project")?.to_path_buf();
        Ok(Self { root })
    }

    /// Paths from the root, with forward slashes, sorted: what git tracks, or in a checkout without git every file there is.
    pub(crate) fn tracked_files(&self) -> Result<Vec<String>> {
        let mut paths = match command::output_text(Command::new("git").args(["ls-files", "-z"]).current_dir(&self.root)) {
            Ok(list) => list.split('\0').filter(|path| !path.is_empty()).map(str::to_string).collect(),
            Err(_) if !self.root.join(".git").exists() => {
                let mut paths = Vec::new();
                self.walk(&self.root, &mut paths)?;
                paths
            }
            Err(error) => return Err(error),
        };
        paths.sort();
        Ok(paths)
    }

    fn walk(&self, folder: &Path, paths: &mut Vec<String>) -> Result<()> {
        for entry in folder.read_dir().with_context(|| folder.display().to_string())? {
            let entry = entry?;
            let is_folder = entry.file_type()?.is_dir();
            if is_folder && !BUILD_FOLDERS.iter().any(|name| entry.file_name() == *name) {
                self.walk(&entry.path(), paths)?;
            } else if !is_folder {
                let path = entry.path();
                let path = path.strip_prefix(&self.root).context("walked out of the checkout")?;
                paths.push(path.to_string_lossy().replace('\\', "/"));
            }
        }
        Ok(())
    }

    /// The text of a tracked file; nothing if it is deleted, a folder (submodule), larger than `size_bytes_max`, or not text.
    pub(crate) fn read_text(&self, path: &str, size_bytes_max: usize) -> Result<Option<String>> {
        let file = self.root.join(path);
        match file.metadata() {
            Ok(metadata) if metadata.is_file() && metadata.len() <= size_bytes_max as u64 => {}
            _ => return Ok(None),
        }
        Ok(String::from_utf8(std::fs::read(&file).with_context(|| file.display().to_string())?).ok())
    }

    /// What `cargo metadata --no-deps` prints.
    pub(crate) fn metadata(&self) -> Result<Value> {
        let mut cargo = command::cargo();
        cargo.args(["metadata", "--no-deps", "--format-version", "1"]).current_dir(&self.root);
        serde_json::from_slice(&command::output(&mut cargo)?).context("cargo metadata printed no JSON")
    }

    /// Where cargo builds.
    pub(crate) fn target_folder(&self) -> Result<PathBuf> {
        let metadata = self.metadata()?;
        let folder = metadata["target_directory"].as_str().context("metadata without `target_directory`")?;
        Ok(PathBuf::from(folder))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkout_without_git_lists_its_files() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for path in ["crates/a/src/lib.rs", "target/debug/b.rs", "c.md"] {
            let file = folder.path().join(path);
            std::fs::create_dir_all(file.parent().expect("below the folder")).expect("created");
            std::fs::write(file, "text").expect("written");
        }
        let repository = Repository { root: folder.path().into() };
        assert_eq!(repository.tracked_files().expect("readable"), ["c.md", "crates/a/src/lib.rs"]);
        assert_eq!(repository.read_text("c.md", 4).expect("readable").as_deref(), Some("text"));
        assert_eq!(repository.read_text("c.md", 3).expect("readable"), None);
        assert_eq!(repository.read_text("gone.md", 3).expect("absence is no error"), None);
    }
}
