//! Where downloads lie: the layout that Hugging Face's own tools share (`models--owner--name/{blobs,refs,snapshots}`), so that a
//! model fetched by one is found by the other. A file is a blob named by its hash; a snapshot links names to blobs; a ref says
//! which commit a branch was at, and is written last, when everything it stands for is there.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use hf_hub::{Cache, CacheRepo};
use sha2::{Digest as _, Sha256};

use super::name::{Commit, RemotePath};
use super::remote::repo;
use super::transfer::AnnouncedFile;
use super::{HubError, HubName};

/// The downloads of one repository.
pub(crate) struct RepositoryCache {
    repo: CacheRepo,
    revision: String,
}

impl RepositoryCache {
    /// The part of `cache` that belongs to `name`.
    pub(crate) fn new(cache: &Cache, name: &HubName) -> Self {
        let revision = name.revision_or_main().to_string();
        Self { repo: cache.repo(repo(name, &revision)), revision }
    }

    /// The folder of a commit.
    pub(crate) fn snapshot(&self, commit: &Commit) -> PathBuf {
        self.repo.pointer_path(commit.as_str())
    }

    /// The commit that the revision named when it was last downloaded in full; or the revision itself, if that commit is there.
    pub(crate) fn known_commit(&self) -> Option<Commit> {
        let refs = self.repo.pointer_path("x").parent()?.parent()?.join("refs");
        let named = fs::read_to_string(refs.join(&self.revision)).ok().and_then(|commit| Commit::parse(commit.trim()));
        let itself = || Commit::parse(&self.revision).filter(|commit| self.snapshot(commit).is_dir());
        named.or_else(itself).filter(|commit| self.snapshot(commit).is_dir())
    }

    /// Remembers that the revision names `commit`. A revision that is a commit needs no remembering.
    pub(crate) fn remember(&self, commit: &Commit) -> Result<(), HubError> {
        if self.revision == commit.as_str() {
            return Ok(());
        }
        self.repo.create_ref(commit.as_str()).map_err(HubError::disk(self.snapshot(commit)))
    }

    /// Where the finished bytes of `file` lie. Without a hash from the hub, the name is made from commit and path.
    pub(crate) fn blob(&self, commit: &Commit, file: &AnnouncedFile) -> PathBuf {
        let name = match file.digest {
            Some(digest) => digest.to_string(),
            None => {
                let hashed = Sha256::digest(format!("{}/{}", commit.as_str(), file.path));
                hashed.iter().map(|byte| format!("{byte:02x}")).collect()
            }
        };
        self.repo.blob_path(&name)
    }

    /// Gives `blob` its name in the snapshot of `commit`, and returns that path.
    pub(crate) fn link(&self, commit: &Commit, path: &RemotePath, blob: &Path) -> Result<PathBuf, HubError> {
        let link = self.snapshot(commit).join(path.as_str());
        if link.exists() {
            return Ok(link);
        }
        create_parent(&link)?;
        // A link to a blob that was deleted exists without existing.
        let _ = fs::remove_file(&link);
        link_file(blob, &link, path.n_folders()).map_err(HubError::disk(&link))?;
        Ok(link)
    }
}

/// Opens the unfinished bytes of `blob`, alone: waits, after telling through `waiting`, while another process has them.
pub(crate) fn open_part(blob: &Path, waiting: &dyn Fn()) -> Result<(File, PathBuf), HubError> {
    create_parent(blob)?;
    let path = blob.with_extension("part");
    let file = File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(HubError::disk(&path))?;
    if let Err(fs::TryLockError::WouldBlock) = file.try_lock() {
        waiting();
        file.lock().map_err(HubError::disk(&path))?;
    }
    // Any other error: a file system without locks. One process at a time works there too.
    Ok((file, path))
}

/// Makes the finished `part` the blob.
pub(crate) fn finish_part(part: &File, part_path: &Path, blob: &Path) -> Result<(), HubError> {
    part.sync_all().and_then(|()| fs::rename(part_path, blob)).map_err(HubError::disk(blob))
}

fn create_parent(path: &Path) -> Result<(), HubError> {
    match path.parent() {
        Some(parent) => fs::create_dir_all(parent).map_err(HubError::disk(parent)),
        None => Ok(()),
    }
}

/// `snapshots/<commit>/[folders/]name` → `../../[../]blobs/<hash>`.
#[cfg(unix)]
fn link_file(blob: &Path, link: &Path, n_folders: usize) -> std::io::Result<()> {
    let up: PathBuf = std::iter::repeat_n("..", n_folders + 2).collect();
    std::os::unix::fs::symlink(up.join("blobs").join(blob.file_name().unwrap_or_default()), link)
}

/// Symbolic links need a privilege on some systems; hard links do not, and copies work everywhere.
#[cfg(not(unix))]
fn link_file(blob: &Path, link: &Path, _n_folders: usize) -> std::io::Result<()> {
    fs::hard_link(blob, link).or_else(|_| fs::copy(blob, link).map(|_| ()))
}
