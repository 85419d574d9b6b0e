//! An output that appears whole or not at all: written under a temporary name beside its place, synced, then renamed. A
//! conversion that fails or is dropped leaves nothing behind.
//!
//! Replacing asks what is being replaced: a folder must look like a model (a `config.json` and no folders inside) and a file must
//! be GGUF, so that a mistyped path does not cost somebody their home.

use std::fs::File;
use std::io::{Error, ErrorKind, Read};
use std::path::{Path, PathBuf};

use super::ExistingOutput;
use crate::error::CheckpointError;
use crate::open::GGUF_MAGIC;

/// What kind of thing the output is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OutputForm {
    /// A folder.
    Folder,
    /// One GGUF file.
    GgufFile,
}

/// An output under its temporary name.
#[derive(Debug)]
pub(super) struct PendingOutput {
    temporary: PathBuf,
    out: PathBuf,
    form: OutputForm,
    existing: ExistingOutput,
    committed: bool,
}

impl PendingOutput {
    /// An empty folder, or an empty file, that will become `out`.
    pub(super) fn create(out: &Path, form: OutputForm, existing: ExistingOutput) -> Result<Self, CheckpointError> {
        check_existing(out, form, existing)?;
        let temporary = sibling(out, "partial")?;
        let created = match form {
            OutputForm::Folder => std::fs::create_dir(&temporary),
            OutputForm::GgufFile => File::options().write(true).create_new(true).open(&temporary).map(drop),
        };
        created.map_err(|source| io(&temporary, source))?;
        Ok(Self { temporary, out: out.to_owned(), form, existing, committed: false })
    }

    /// Where to write.
    pub(super) fn path(&self) -> &Path {
        &self.temporary
    }

    /// Syncs what was written and puts it in its place. Returns its size in bytes.
    pub(super) fn commit(mut self) -> Result<u64, CheckpointError> {
        let size_bytes = match self.form {
            OutputForm::Folder => sync_files(&self.temporary)?,
            OutputForm::GgufFile => sync_file(&self.temporary)?,
        };
        check_existing(&self.out, self.form, self.existing)?;
        if self.out.is_dir() {
            let replaced = sibling(&self.out, "replaced")?;
            std::fs::rename(&self.out, &replaced).map_err(|source| io(&self.out, source))?;
            if let Err(source) = std::fs::rename(&self.temporary, &self.out) {
                // The old model goes back; if even that fails, it is still there under its other name.
                let _ = std::fs::rename(&replaced, &self.out);
                return Err(io(&self.out, source));
            }
            std::fs::remove_dir_all(&replaced).map_err(|source| io(&replaced, source))?;
        } else {
            std::fs::rename(&self.temporary, &self.out).map_err(|source| io(&self.out, source))?;
        }
        self.committed = true;
        sync_folder(parent(&self.out))?;
        Ok(size_bytes)
    }
}

impl Drop for PendingOutput {
    fn drop(&mut self) {
        if !self.committed {
            // Nothing can be done about a failure here, and the cause of the drop is the error worth reporting.
            let _ = if self.temporary.is_dir() { std::fs::remove_dir_all(&self.temporary) } else { std::fs::remove_file(&self.temporary) };
        }
    }
}

fn check_existing(out: &Path, form: OutputForm, existing: ExistingOutput) -> Result<(), CheckpointError> {
    let refuse = |reason: &str| Err(io(out, Error::new(ErrorKind::AlreadyExists, reason)));
    match std::fs::symlink_metadata(out) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io(out, error)),
        Ok(_) if existing == ExistingOutput::Refuse => refuse("it exists already and was not asked to be replaced"),
        Ok(metadata) if form == OutputForm::Folder && metadata.is_dir() && is_model_folder(out) => Ok(()),
        Ok(metadata) if form == OutputForm::GgufFile && metadata.is_file() && is_gguf_file(out) => Ok(()),
        Ok(_) => refuse("it exists already and is not a model of that format, so it is not replaced"),
    }
}

fn is_model_folder(folder: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(folder) else { return false };
    let mut entries = entries.flatten().peekable();
    if entries.peek().is_none() {
        return true;
    }
    entries.all(|entry| !entry.path().is_dir()) && folder.join("config.json").is_file()
}

fn is_gguf_file(path: &Path) -> bool {
    let mut first = [0; 4];
    File::open(path).and_then(|mut file| file.read_exact(&mut first)).is_ok() && first == GGUF_MAGIC
}

/// A hidden name beside `out`, this process's own.
fn sibling(out: &Path, what: &str) -> Result<PathBuf, CheckpointError> {
    let name = out.file_name().ok_or_else(|| io(out, Error::new(ErrorKind::InvalidInput, "not a name that can be written")))?;
    Ok(parent(out).join(format!(".{}.{what}-{}", name.to_string_lossy(), std::process::id())))
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Waits until a folder's files are on the disk. Returns their size.
fn sync_files(folder: &Path) -> Result<u64, CheckpointError> {
    let mut size_bytes = 0;
    for entry in std::fs::read_dir(folder).map_err(|source| io(folder, source))? {
        size_bytes += sync_file(&entry.map_err(|source| io(folder, source))?.path())?;
    }
    sync_folder(folder)?;
    Ok(size_bytes)
}

fn sync_file(path: &Path) -> Result<u64, CheckpointError> {
    let synced = File::options().write(true).open(path).and_then(|file| file.sync_all().and_then(|()| file.metadata()));
    synced.map(|metadata| metadata.len()).map_err(|source| io(path, source))
}

/// Makes a folder's names durable, where the system has a way.
fn sync_folder(folder: &Path) -> Result<(), CheckpointError> {
    if cfg!(unix) {
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(|source| io(folder, source))?;
    }
    Ok(())
}

fn io(path: &Path, source: Error) -> CheckpointError {
    CheckpointError::Io { path: path.to_owned(), source }
}
