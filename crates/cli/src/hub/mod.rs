//! Models from a hub that speaks Hugging Face's routes: `hf:owner/name[@revision][:file.gguf]` becomes a local path.
//!
//! The steps: list the repository ([`remote`]), choose the files that make a model ([`select`]), bring each to the disk, continued
//! and verified ([`transfer`]), and name it in the shared cache layout ([`cache`]). Names are checked in [`name`] before any of it.
//! A hub that cannot be reached is no obstacle to a model that was downloaded before. Uploading is not done here.

mod cache;
mod error;
mod name;
mod remote;
mod select;
mod transfer;

use std::path::PathBuf;
use std::time::Duration;

use hf_hub::Cache;

pub(crate) use self::error::HubError;
pub(crate) use self::name::HubName;

use self::cache::{RepositoryCache, finish_part, open_part};
use self::name::Commit;
use self::remote::Remote;
use self::select::{RemoteFile, SHARD_INDEX, Selection};
use self::transfer::{AnnouncedFile, Retries, Transfer};
use crate::terminal::Terminal;

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
/// Longest shard index read, in bytes.
const SHARD_INDEX_BYTES_MAX: u64 = 64 << 20;

/// Which hub, where downloads go, and whether the network may be used.
#[derive(Debug, Clone)]
pub(crate) struct HubOptions {
    endpoint: String,
    cache: Cache,
    token: Option<String>,
    offline: bool,
    retries: Retries,
}

impl HubOptions {
    /// From HF_ENDPOINT, HF_HUB_CACHE or HF_HOME, HF_TOKEN or the token file in HF_HOME.
    pub(crate) fn from_environment(offline: bool) -> Self {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        let shared = Cache::from_env();
        let cache = variable("HF_HUB_CACHE").map_or_else(|| shared.clone(), |path| Cache::new(PathBuf::from(path)));
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.to_string());
        let n_fruitless_max = variable("BITNET_DOWNLOAD_RETRIES").and_then(|retries| retries.parse().ok()).unwrap_or(6);
        Self {
            endpoint: endpoint.trim_end_matches('/').to_string(),
            token: variable("HF_TOKEN").map(|token| token.trim().to_string()).or_else(|| shared.token()),
            cache,
            offline,
            retries: Retries { n_fruitless_max, first_wait: Duration::from_millis(500) },
        }
    }
}

/// The local path of `name`: a folder, or a GGUF file. Downloads what is missing.
pub(crate) fn resolve(name: &HubName, options: &HubOptions, terminal: &Terminal) -> Result<PathBuf, HubError> {
    let cache = RepositoryCache::new(&options.cache, name);
    let local = || cache.known_commit().and_then(|commit| downloaded(name, &cache, &commit));
    if options.offline {
        return local().ok_or_else(|| HubError::NotDownloaded { name: name.to_string() });
    }
    let download =
        Download { name, options, terminal, remote: Remote::new(options.endpoint.clone(), options.token.clone()), cache: &cache };
    match download.run() {
        Err(error) if error.is_unreachable() => {
            let path = local().ok_or(error)?;
            terminal.note(&format!("cannot reach {}: using what was downloaded before", options.endpoint));
            Ok(path)
        }
        outcome => outcome,
    }
}

/// What a finished download of `commit` left.
fn downloaded(name: &HubName, cache: &RepositoryCache, commit: &Commit) -> Option<PathBuf> {
    let snapshot = cache.snapshot(commit);
    if let Some(file) = &name.file {
        return Some(snapshot.join(file.as_str())).filter(|path| path.exists());
    }
    if snapshot.join("config.json").exists() {
        return Some(snapshot);
    }
    let files = std::fs::read_dir(&snapshot).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let mut gguf: Vec<PathBuf> =
        files.filter(|path| path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))).collect();
    if gguf.len() == 1 { gguf.pop() } else { None }
}

/// A download of one repository.
struct Download<'a> {
    name: &'a HubName,
    options: &'a HubOptions,
    terminal: &'a Terminal,
    remote: Remote,
    cache: &'a RepositoryCache,
}

impl Download<'_> {
    fn run(&self) -> Result<PathBuf, HubError> {
        let listing = self.remote.list(self.name)?;
        let commit = &listing.commit;
        let path = match select::select(self.name, &listing.files)? {
            Selection::File(file) => self.fetch_all(commit, &[file])?,
            Selection::Folder { mut files, has_index } => {
                if has_index {
                    let index = files.iter().filter(|file| file.path.as_str() == SHARD_INDEX).cloned().collect::<Vec<_>>();
                    let index = read_bounded(&self.fetch_all(commit, &index)?)?;
                    files.extend(select::shards(&self.name.repository, &index, &listing.files)?);
                }
                self.fetch_all(commit, &files)?;
                self.cache.snapshot(commit)
            }
        };
        self.cache.remember(commit)?;
        Ok(path)
    }

    /// Downloads `files` and returns the path of the last.
    fn fetch_all(&self, commit: &Commit, files: &[RemoteFile]) -> Result<PathBuf, HubError> {
        let mut missing = Vec::new();
        let mut path = self.cache.snapshot(commit);
        for file in files {
            let file = self.announced(commit, file)?;
            path = self.cache.snapshot(commit).join(file.path.as_str());
            if !path.exists() {
                missing.push(file);
            }
        }
        let total = missing.iter().fold(0u64, |total, file| total.saturating_add(file.size_bytes));
        if total > 0 {
            self.terminal.note(&format!(
                "downloading {} ({} {}, {}) from {}",
                self.name,
                missing.len(),
                if missing.len() == 1 { "file" } else { "files" },
                indicatif::HumanBytes(total),
                self.remote.endpoint()
            ));
        }
        missing.iter().try_for_each(|file| self.fetch(commit, file))?;
        Ok(path)
    }

    fn fetch(&self, commit: &Commit, file: &AnnouncedFile) -> Result<(), HubError> {
        let blob = self.cache.blob(commit, file);
        if !blob.exists() {
            let waiting = || self.terminal.note(&format!("another process is downloading {}: waiting for it", file.path));
            let (mut part, part_path) = open_part(&blob, &waiting)?;
            if !blob.exists() {
                let bar = self.terminal.bytes_bar(file.size_bytes, file.path.as_str());
                let url = self.remote.url(self.name, commit, &file.path);
                let transfer = Transfer { remote: &self.remote, name: self.name, file, url, retries: self.options.retries, bar: &bar };
                let outcome = transfer.complete(&mut part, &part_path);
                bar.finish_and_clear();
                outcome?;
                finish_part(&part, &part_path, &blob)?;
            }
        }
        self.cache.link(commit, &file.path, &blob)?;
        Ok(())
    }

    /// A file with its length, asked for where the listing leaves it out.
    fn announced(&self, commit: &Commit, file: &RemoteFile) -> Result<AnnouncedFile, HubError> {
        let described = match file.size_bytes {
            Some(_) => file.clone(),
            None => self.remote.describe(self.name, commit, &file.path)?,
        };
        match described.size_bytes {
            Some(size_bytes) => Ok(AnnouncedFile { path: described.path, size_bytes, digest: described.digest }),
            None => {
                let url = self.remote.url(self.name, commit, &file.path);
                Err(HubError::Answer { url, reason: "it does not say how long the file is".into() })
            }
        }
    }
}

fn read_bounded(path: &std::path::Path) -> Result<Vec<u8>, HubError> {
    let length = std::fs::metadata(path).map_err(HubError::disk(path))?.len();
    if length > SHARD_INDEX_BYTES_MAX {
        return Err(HubError::Length { file: SHARD_INDEX.to_string(), expected: SHARD_INDEX_BYTES_MAX, got: length });
    }
    std::fs::read(path).map_err(HubError::disk(path))
}
