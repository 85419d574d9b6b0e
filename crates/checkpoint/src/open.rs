//! `Checkpoint`: a model file or folder of any format, opened. Opening reads and validates headers, configuration and tokenizer;
//! tensors are read one by one with positioned reads, so nothing is mapped, a file that shrinks meanwhile is an error and not
//! a SIGBUS.
//!
//! What something is, its first bytes say, not the ending of its name.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::config::{ActivationPolicy, ModelConfig, TensorRole};
use crate::error::CheckpointError;
use crate::gguf::{GgufOptions, GgufSource};
use crate::json::shown;
use crate::note::Note;
use crate::positioned::PositionedFile;
use crate::quantise;
use crate::rows::StoredTable;
use crate::safetensors::source::HfSource;
use crate::tensor::Tensor;
use crate::tokenizer_files::TokenizerFiles;

pub(crate) const GGUF_MAGIC: [u8; 4] = *b"GGUF";
/// First bytes of files that people mistake for models, and what to do with them.
const OTHER_MAGIC: [(&[u8], &str); 4] = [
    (b"PK\x03\x04", "a zip archive, perhaps a PyTorch pickle; export it as safetensors"),
    (b"\x80\x02", "a Python pickle, which can run code when it is read; export it as safetensors"),
    (b"version https://git-lfs", "a Git LFS pointer; fetch the file itself with `git lfs pull`"),
    (b"ggml", "a GGML file from before GGUF; convert it with the tools of its time"),
];

/// How a tensor lies in its file; shown by `inspect`, decided on by `convert`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredFormat {
    /// The format's own name for the type: `BF16`, `I2_S`, `TQ2_0`, `U8 packed`, `MLX 2-bit`.
    pub type_name: String,
    /// Bytes in the file, scales included.
    pub size_bytes: u64,
}

/// A tensor of an opened checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Canonical (Hugging Face) name.
    pub name: String,
    /// Logical shape, outermost first.
    pub shape: Vec<usize>,
    /// How it is stored.
    pub stored: StoredFormat,
}

/// What the caller knows better than the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OpenOptions {
    /// What GGUF files leave open.
    pub gguf: GgufOptions,
    /// What linear layers read, whatever the files say.
    pub activations: Option<ActivationPolicy>,
}

/// A model of any format, opened.
#[derive(Debug)]
pub struct Checkpoint {
    source: Source,
    index: HashMap<String, usize>,
}

/// The formats.
#[derive(Debug)]
enum Source {
    /// Hugging Face and MLX folders.
    Folder(HfSource),
    /// A GGUF file, or one that is part of the program.
    Gguf(GgufSource),
}

impl Source {
    fn set_activation_policy(&mut self, policy: ActivationPolicy) {
        match self {
            Self::Folder(source) => source.config.activation_policy = policy,
            Self::Gguf(source) => source.set_activation_policy(policy),
        }
    }
}

impl Checkpoint {
    /// Opens a folder with `config.json` and safetensors (Hugging Face or MLX), one of its safetensors files, a GGUF file, or a
    /// folder with one GGUF file.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        Self::open_with(path, OpenOptions::default())
    }

    /// [`Self::open`], with a say in what files leave open.
    pub fn open_with(path: &Path, options: OpenOptions) -> Result<Self, CheckpointError> {
        let io = |source| CheckpointError::Io { path: path.to_owned(), source };
        let metadata = match std::fs::metadata(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(not_a_model(path, "there is nothing at that path")),
            other => other.map_err(io)?,
        };
        if metadata.is_dir() { Self::open_folder(path, options) } else { Self::open_file(path, options) }
    }

    /// Opens a GGUF model that is part of the program.
    pub fn from_gguf_bytes(bytes: &'static [u8]) -> Result<Self, CheckpointError> {
        Self::from_gguf_bytes_with(bytes, OpenOptions::default())
    }

    /// [`Self::from_gguf_bytes`], with a say in what files leave open.
    pub fn from_gguf_bytes_with(bytes: &'static [u8], options: OpenOptions) -> Result<Self, CheckpointError> {
        GgufSource::from_bytes(bytes, options.gguf).map(|source| Self::new(Source::Gguf(source), options))
    }

    /// The GGUF file behind it, for questions that only GGUF raises (the order of I2_S codes).
    pub fn gguf(&self) -> Option<&GgufSource> {
        match &self.source {
            Source::Gguf(source) => Some(source),
            Source::Folder(_) => None,
        }
    }

    /// What the files leave open, and how it was decided. May read a few tensors.
    pub fn notes(&self) -> Result<Vec<Note>, CheckpointError> {
        match &self.source {
            Source::Folder(_) => Ok(Vec::new()),
            Source::Gguf(source) => source.notes(),
        }
    }

    /// What the model computes.
    pub fn config(&self) -> &ModelConfig {
        match &self.source {
            Source::Folder(source) => &source.config,
            Source::Gguf(source) => source.config(),
        }
    }

    /// Computes with activations as the caller says, whatever the files say.
    pub fn set_activation_policy(&mut self, policy: ActivationPolicy) {
        self.source.set_activation_policy(policy);
    }

    /// Vocabulary, chat template and generation defaults.
    pub fn tokenizer_files(&self) -> &TokenizerFiles {
        match &self.source {
            Source::Folder(source) => &source.text,
            Source::Gguf(source) => source.tokenizer_files(),
        }
    }

    /// All tensors, in the order in which the model is walked.
    pub fn tensors(&self) -> &[TensorInfo] {
        match &self.source {
            Source::Folder(source) => &source.tensors,
            Source::Gguf(source) => source.tensors(),
        }
    }

    /// Loads a tensor by its canonical name. Packing, the meaning of scales and the order of rows are undone; ternary matrices come
    /// with the coarsest scales that give their weights.
    pub fn load(&self, name: &str) -> Result<Tensor, CheckpointError> {
        let index = self.index.get(name).ok_or_else(|| CheckpointError::MissingTensor { name: name.to_owned() })?;
        match &self.source {
            Source::Folder(source) => source.load(*index),
            Source::Gguf(source) => canonical(name, source.load(name)?),
        }
    }

    /// An embedding or head by its canonical name. Dense ones stay where they are; only as many rows are read as it takes to see that
    /// they are not ternary.
    pub fn table(&self, name: &str) -> Result<StoredTable, CheckpointError> {
        let index = self.index.get(name).ok_or_else(|| CheckpointError::MissingTensor { name: name.to_owned() })?;
        let rows = match &self.source {
            Source::Folder(source) => source.rows(*index)?,
            Source::Gguf(source) => source.rows(name)?,
        };
        let Some(rows) = rows else { return self.load(name).map(StoredTable::from) };
        Ok(match quantise::pack_if_ternary(name, &*rows)? {
            Some(matrix) => StoredTable::Ternary(matrix),
            None => StoredTable::Dense(rows),
        })
    }

    /// The name of the format, for people.
    pub fn format_name(&self) -> &'static str {
        match &self.source {
            Source::Folder(source) if source.is_mlx => "MLX",
            Source::Folder(_) => "safetensors",
            Source::Gguf(_) => "GGUF",
        }
    }

    fn new(mut source: Source, options: OpenOptions) -> Self {
        if let Some(policy) = options.activations {
            source.set_activation_policy(policy);
        }
        let mut checkpoint = Self { source, index: HashMap::new() };
        checkpoint.index = checkpoint.tensors().iter().enumerate().map(|(index, tensor)| (tensor.name.clone(), index)).collect();
        checkpoint
    }

    fn open_folder(folder: &Path, options: OpenOptions) -> Result<Self, CheckpointError> {
        if let Some(source) = HfSource::open(folder)? {
            return Ok(Self::new(Source::Folder(source), options));
        }
        let ggufs = files_with_magic(folder, &GGUF_MAGIC)?;
        match ggufs.as_slice() {
            [only] => Self::open_file(only, options),
            [] if folder.join("config.json").is_file() => {
                let advice = "config.json is there, but neither model.safetensors nor model.safetensors.index.json";
                Err(not_a_model(folder, advice))
            }
            [] => Err(not_a_model(folder, "expected config.json with safetensors files, or one GGUF file")),
            several => Err(not_a_model(folder, format!("it holds {} GGUF files; name one of them", several.len()))),
        }
    }

    /// Opens the model that a safetensors file belongs to.
    fn open_folder_of(path: &Path, options: OpenOptions) -> Result<Self, CheckpointError> {
        let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let missing = || not_a_model(path, "a safetensors file needs config.json beside it, and a folder that holds one model");
        let source = HfSource::open(folder)?.ok_or_else(missing)?;
        let is_named = |name: &String| path.file_name().is_some_and(|named| named.to_string_lossy() == name.as_str());
        if !source.file_names().any(|name| is_named(&name)) {
            let first = source.file_names().next().unwrap_or_default();
            return Err(not_a_model(path, format!("the model of its folder is in {}, which this file is no part of", shown(&first))));
        }
        Ok(Self::new(Source::Folder(source), options))
    }

    fn open_file(path: &Path, options: OpenOptions) -> Result<Self, CheckpointError> {
        let file = PositionedFile::open(path)?.ok_or_else(|| not_a_model(path, "there is nothing at that path"))?;
        let first = file.read_at(0, file.size_bytes().min(32))?;
        if first.starts_with(&GGUF_MAGIC) {
            return GgufSource::open(path, options.gguf).map(|source| Self::new(Source::Gguf(source), options));
        }
        // A safetensors file begins with the length of its header, and the header with a brace. A length may look like another magic.
        let has_brace = first.get(8) == Some(&b'{');
        let fits = first.first_chunk().is_some_and(|length| u64::from_le_bytes(*length) < file.size_bytes());
        let other = OTHER_MAGIC.iter().find(|(magic, _)| first.starts_with(magic) && !(has_brace && fits));
        if let Some((_, advice)) = other {
            return Err(not_a_model(path, *advice));
        }
        if has_brace {
            return Self::open_folder_of(path, options);
        }
        Err(not_a_model(path, "neither GGUF nor safetensors; name a GGUF file or a folder with config.json and safetensors files"))
    }
}

/// A tensor of a GGUF file in the form in which every format loads: numbers that are exactly ternary are packed (files of F16 or BF16
/// projections), and scales are the coarsest that give the weights.
fn canonical(name: &str, tensor: Tensor) -> Result<Tensor, CheckpointError> {
    match (TensorRole::of(name), tensor) {
        (_, Tensor::Ternary(matrix)) => Ok(Tensor::Ternary(quantise::coarsen(matrix))),
        (TensorRole::Vector, dense) => Ok(dense),
        (TensorRole::Linear, Tensor::Dense(dense)) => quantise::pack_exact(name, &dense).map(Tensor::Ternary),
        (TensorRole::Table, Tensor::Dense(dense)) => quantise::pack_table(name, dense),
    }
}

/// The regular files of a folder, not of its subfolders, that begin with `magic`; sorted.
fn files_with_magic(folder: &Path, magic: &[u8]) -> Result<Vec<PathBuf>, CheckpointError> {
    let entries = std::fs::read_dir(folder).map_err(|source| CheckpointError::Io { path: folder.to_owned(), source })?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    paths.retain(|path| {
        let file = PositionedFile::open(path).ok().flatten();
        file.and_then(|file| file.read_at(0, magic.len() as u64).ok()).is_some_and(|first| first == magic)
    });
    paths.sort();
    Ok(paths)
}

fn not_a_model(path: &Path, reason: impl Into<String>) -> CheckpointError {
    CheckpointError::NotAModel { path: path.to_owned(), reason: reason.into() }
}
