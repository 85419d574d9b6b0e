//! An opened GGUF model. Opening parses and checks everything but the weights: container, architecture, configuration, vocabulary,
//! and that every tensor the model needs is there, of the right shape, and that none is there that would be ignored. Weights are
//! read one tensor at a time.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use bitnet_ternary::layout::i2_s::I2sLayout;
use bitnet_ternary::layout::i2_s_detect::{self, Detection, FeaturePair, PackedMatrix};
use bitnet_ternary::{Scales, TernaryMatrix};

use super::extent::Extent;
use super::ggml_type::{self, FileEvidence, GgmlType};
use super::model_config::{self, TensorFacts};
use super::read::{self, Container, TensorEntry};
use super::rows::GgufRows;
use super::stored_bytes::StoredBytes;
use super::ternary::{self, TernaryForm};
use super::{dense, keys, malformed, names, row_order, vocabulary};
use crate::config::{ActivationPolicy, Architecture, ModelConfig, TensorRole};
use crate::error::CheckpointError;
use crate::limits;
use crate::note::Note;
use crate::open::{StoredFormat, TensorInfo};
use crate::rows::{RowSource, read_all};
use crate::tensor::{DenseTensor, Tensor};
use crate::tokenizer_files::TokenizerFiles;

/// Which order I2_S codes are in. Files do not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum I2sChoice {
    /// The order that the weights give evidence for, and the published one (blocks of 128) where they give none. What the evidence
    /// can and cannot tell is said in `bitnet_ternary::layout::i2_s_detect`.
    #[default]
    Detect,
    /// This one.
    Is(I2sLayout),
}

/// How to open a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GgufOptions {
    /// Order of I2_S codes.
    pub i2s_layout: I2sChoice,
}

/// An opened GGUF model.
#[derive(Debug)]
pub struct GgufSource {
    bytes: Arc<StoredBytes>,
    options: GgufOptions,
    config: ModelConfig,
    tokenizer_files: TokenizerFiles,
    tensors: Vec<TensorInfo>,
    places: HashMap<String, Place>,
    interleaved_rows: bool,
    /// Nothing says whether activations are quantised.
    activations_unstated: bool,
    detection: OnceLock<Detection>,
}

/// Where a canonical tensor lies and what it is.
#[derive(Debug, Clone)]
struct Place {
    ggml_type: GgmlType,
    extent: Extent,
    shape: Vec<usize>,
    /// A factor that the file stores apart (`.scale`).
    scale: Option<Extent>,
}

impl GgufSource {
    /// Opens a file.
    pub fn open(path: &Path, options: GgufOptions) -> Result<Self, CheckpointError> {
        Self::new(StoredBytes::open(path)?, options)
    }

    /// Opens a model that is part of the program.
    pub fn from_bytes(bytes: &'static [u8], options: GgufOptions) -> Result<Self, CheckpointError> {
        Self::new(StoredBytes::Static(bytes), options)
    }

    fn new(bytes: StoredBytes, options: GgufOptions) -> Result<Self, CheckpointError> {
        let Container { metadata, tensors: entries, alignment } = read::read(&bytes)?;
        refuse_what_is_not_computed(&metadata)?;
        let architecture = model_config::architecture(&metadata)?;
        let file_type = metadata.integer::<u32>(keys::FILE_TYPE)?;
        let microsoft = architecture.family == Architecture::Bitnet || file_type == Some(ggml_type::I2_S_FILE_TYPE);
        let types = ggml_type::resolve(&entries, FileEvidence { microsoft, alignment })?;
        let table = Table::new(&entries, &types)?;
        let facts = TensorFacts {
            by_name: entries.iter().map(|entry| (entry.name.as_str(), entry)).collect(),
            any_i2s: types.iter().any(|(ggml_type, _)| *ggml_type == GgmlType::I2S),
            rope_factors: table.rope_factors(&bytes)?,
        };
        let config = model_config::read(&metadata, &facts)?;
        let (tensors, places) = table.into_places(&config)?;
        let tokenizer_files = vocabulary::read(&metadata, config.n_vocab)?;
        let interleaved_rows = architecture.interleaved_rows;
        let is_open = |(name, place): (&String, &Place)| TensorRole::of(name) == TensorRole::Linear && !place.ggml_type.is_weight_only();
        let activations_unstated = config.activation_policy == ActivationPolicy::Unquantised
            && metadata.string(keys::BITNET_ACTIVATION_POLICY)?.is_none()
            && places.iter().any(is_open);
        let (bytes, detection) = (Arc::new(bytes), OnceLock::new());
        Ok(Self { bytes, options, config, tokenizer_files, tensors, places, interleaved_rows, activations_unstated, detection })
    }

    /// Computes with activations as the caller says.
    pub(crate) fn set_activation_policy(&mut self, policy: ActivationPolicy) {
        self.config.activation_policy = policy;
        self.activations_unstated = false;
    }

    /// What the file leaves open. Reads three tensors, which loading would, where there is I2_S of an order that was not told.
    pub fn notes(&self) -> Result<Vec<Note>, CheckpointError> {
        let mut notes: Vec<Note> = self.activations_unstated.then_some(Note::ActivationsUnstated).into_iter().collect();
        if self.options.i2s_layout == I2sChoice::Detect {
            let undecided = self.i2s_detection()?.filter(|detection| !detection.decided);
            notes.extend(undecided.map(|detection| Note::I2sOrderUndecided(detection.layout)));
        }
        Ok(notes)
    }

    /// The model's configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Vocabulary, template, special tokens, generation defaults.
    pub fn tokenizer_files(&self) -> &TokenizerFiles {
        &self.tokenizer_files
    }

    /// Every tensor of the model, in walk order, under its canonical name.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// Reads a tensor by its canonical name: rows in canonical order, scales as coarse as they can be, dense tensors as stored.
    pub fn load(&self, name: &str) -> Result<Tensor, CheckpointError> {
        let place = self.places.get(name).ok_or_else(|| CheckpointError::MissingTensor { name: name.into() })?;
        let order = self.interleaved_rows.then(|| row_order::canonical_from_stored(name, place.shape[0], self.config.head_dim)).flatten();
        if place.ggml_type.is_ternary() {
            let matrix = self.load_ternary(name, place)?;
            return Ok(Tensor::Ternary(match order {
                Some(order) => matrix.with_row_order(&order),
                None => matrix,
            }));
        }
        let stored = read_all(&self.dense_rows(name, place)?)?;
        let bytes = match order {
            Some(order) => row_order::reordered(stored.bytes(), &order),
            None => stored.into_bytes(),
        };
        let dense = DenseTensor::from_bytes(place.shape.clone(), dense::dense_type(place.ggml_type), bytes);
        dense.map(Tensor::Dense).ok_or_else(|| CheckpointError::tensor(name, "its bytes do not match its shape"))
    }

    /// The rows of a dense tensor that no order of rows is undone for: an embedding or head. `None` if it is ternary.
    pub(crate) fn rows(&self, name: &str) -> Result<Option<Arc<dyn RowSource>>, CheckpointError> {
        let place = self.places.get(name).ok_or_else(|| CheckpointError::MissingTensor { name: name.into() })?;
        if place.ggml_type.is_ternary() || TensorRole::of(name) != TensorRole::Table {
            return Ok(None);
        }
        Ok(Some(Arc::new(self.dense_rows(name, place)?)))
    }

    fn dense_rows(&self, name: &str, place: &Place) -> Result<GgufRows, CheckpointError> {
        GgufRows::new(name, (&self.bytes, place.extent), &place.shape, place.ggml_type)
    }

    /// What is known of the order of I2_S codes; `None` if no tensor is I2_S. Reads three tensors the first time.
    pub fn i2s_detection(&self) -> Result<Option<&Detection>, CheckpointError> {
        if !self.places.values().any(|place| place.ggml_type == GgmlType::I2S) {
            return Ok(None);
        }
        if self.detection.get().is_none() {
            let detection = self.detect_i2s()?;
            // Another thread may have been first; it found the same.
            let _ = self.detection.set(detection);
        }
        Ok(self.detection.get())
    }

    /// The order in which I2_S codes are decoded.
    pub fn i2s_layout(&self) -> Result<I2sLayout, CheckpointError> {
        match self.options.i2s_layout {
            I2sChoice::Is(layout) => Ok(layout),
            I2sChoice::Detect => Ok(self.i2s_detection()?.map_or(I2sLayout::Blocks128, |detection| detection.layout)),
        }
    }

    /// Weighs the gate, up and down projections of the middle layer, where features differ most.
    fn detect_i2s(&self) -> Result<Detection, CheckpointError> {
        let name = |part: &str| format!("model.layers.{}.mlp.{part}_proj.weight", self.config.n_layers / 2);
        let read = |part: &str| match self.places.get(&name(part)) {
            Some(place) if place.ggml_type == GgmlType::I2S => self.bytes.read(&name(part), place.extent).map(Some),
            _ => Ok(None),
        };
        let (gate, up, down) = (read("gate")?, read("up")?, read("down")?);
        let (ffn, hidden) = (self.config.intermediate_size, self.config.hidden_size);
        let mut pairs = Vec::new();
        if let Some(down) = &down {
            let consumer = PackedMatrix { bytes: down, n_rows: hidden, n_cols: ffn };
            for producer in [&gate, &up].into_iter().flatten() {
                pairs.push(FeaturePair { producer: PackedMatrix { bytes: producer, n_rows: ffn, n_cols: hidden }, consumer });
            }
        }
        i2_s_detect::detect(&pairs).map_err(|error| ternary::layout_error(&name("down"), error))
    }

    fn load_ternary(&self, name: &str, place: &Place) -> Result<TernaryMatrix, CheckpointError> {
        let [n_rows, n_cols] = place.shape[..] else {
            return Err(CheckpointError::tensor(name, format!("a ternary tensor has 2 dimensions, got {}", place.shape.len())));
        };
        let i2s_layout = if place.ggml_type == GgmlType::I2S { self.i2s_layout()? } else { I2sLayout::Blocks128 };
        let stored = self.bytes.read(name, place.extent)?;
        let matrix = ternary::decode(TernaryForm { name, ggml_type: place.ggml_type, n_rows, n_cols, i2s_layout }, &stored)?;
        let Some(scale) = place.scale else { return Ok(matrix) };
        let bytes = self.bytes.read(name, scale)?;
        let factor = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        scaled(&matrix, factor).map_err(|source| CheckpointError::Matrix { name: name.into(), source })
    }
}

fn refuse_what_is_not_computed(metadata: &super::kv::Metadata) -> Result<(), CheckpointError> {
    if let Some(n_files) = metadata.integer::<u64>(keys::SPLIT_COUNT)?.filter(|&n_files| n_files > 1) {
        return Err(CheckpointError::Unsupported {
            feature: format!("a GGUF file split in {n_files}"),
            reason: "merge the parts first (llama-gguf-split --merge)".into(),
        });
    }
    let Some(key) = metadata.key_with_prefix(keys::PRISM_PREFIX) else { return Ok(()) };
    let transform = metadata.string(keys::PRISM_TRANSFORM)?.unwrap_or("unnamed");
    let n_weights = metadata.n_strings(keys::PRISM_WEIGHT_NAMES)?.unwrap_or(0);
    Err(CheckpointError::Unsupported {
        feature: format!("rotated weights (`{key}`, transform `{}`, {n_weights} weights)", transform.chars().take(64).collect::<String>()),
        reason: "their inputs must be rotated too, which is not computed; without it the output would be garbage".into(),
    })
}

/// The tensors of a file under canonical names, before the configuration is known.
struct Table<'a> {
    by_canonical: HashMap<String, (&'a TensorEntry, GgmlType, Extent)>,
    by_gguf: HashMap<&'a str, (&'a TensorEntry, GgmlType, Extent)>,
}

impl<'a> Table<'a> {
    fn new(entries: &'a [TensorEntry], types: &[(GgmlType, u64)]) -> Result<Self, CheckpointError> {
        let mut table = Self { by_canonical: HashMap::new(), by_gguf: HashMap::new() };
        for (entry, &(ggml_type, size_bytes)) in entries.iter().zip(types) {
            let extent = Extent::new(entry.start, size_bytes).ok_or_else(|| malformed(format!("tensor `{}`", entry.name), "wraps"))?;
            table.by_gguf.insert(&entry.name, (entry, ggml_type, extent));
            if let Some(canonical) = names::to_canonical(&entry.name) {
                table.by_canonical.insert(canonical, (entry, ggml_type, extent));
            }
        }
        Ok(table)
    }

    fn rope_factors(&self, bytes: &StoredBytes) -> Result<Option<Vec<f32>>, CheckpointError> {
        let Some((entry, ggml_type, extent)) = self.by_gguf.get(names::ROPE_FACTORS) else { return Ok(None) };
        if *ggml_type != GgmlType::F32 || entry.n_elements > limits::HEAD_DIM_MAX as u64 {
            let reason = format!("expected at most {} F32, got {} {}", limits::HEAD_DIM_MAX, entry.n_elements, ggml_type.name());
            return Err(CheckpointError::tensor(names::ROPE_FACTORS, reason));
        }
        let stored = bytes.read(names::ROPE_FACTORS, *extent)?;
        Ok(Some(stored.as_chunks::<4>().0.iter().map(|&chunk| f32::from_le_bytes(chunk)).collect()))
    }

    /// The tensors that the configuration calls for. Errors: one that is missing or has another shape, one that is left over.
    fn into_places(mut self, config: &ModelConfig) -> Result<(Vec<TensorInfo>, HashMap<String, Place>), CheckpointError> {
        let mut infos = Vec::new();
        let mut places = HashMap::new();
        let mut used: Vec<String> = vec![names::ROPE_FACTORS.into()];
        if config.last_token_pooling {
            // A head that no embedding model uses.
            used.push("output.weight".into());
        }
        for expected in config.expected_tensors() {
            let missing = || CheckpointError::MissingTensor { name: expected.name.clone() };
            let (entry, ggml_type, extent) = self.by_canonical.remove(&expected.name).ok_or_else(missing)?;
            check_shape(&expected.name, entry, &expected.shape)?;
            if expected.role == TensorRole::Vector && ggml_type.is_ternary() {
                return Err(CheckpointError::tensor(&expected.name, format!("a norm cannot be {}", ggml_type.name())));
            }
            used.push(entry.name.clone());
            let scale_name = names::scale_of(&entry.name).filter(|name| ggml_type.is_ternary() && self.by_gguf.contains_key(name.as_str()));
            let scale = scale_name.as_ref().map(|name| self.scale(name)).transpose()?;
            used.extend(scale_name);
            let stored = StoredFormat { type_name: ggml_type.name().into(), size_bytes: extent.size_bytes() };
            infos.push(TensorInfo { name: expected.name.clone(), shape: expected.shape.clone(), stored });
            places.insert(expected.name, Place { ggml_type, extent, shape: expected.shape, scale });
        }
        for name in used {
            self.by_gguf.remove(name.as_str());
        }
        match self.by_gguf.keys().min() {
            Some(name) => Err(CheckpointError::Unsupported {
                feature: format!("tensor `{name}`"),
                reason: "the graph of this architecture, as computed here, does not use it".into(),
            }),
            None => Ok((infos, places)),
        }
    }

    fn scale(&self, name: &str) -> Result<Extent, CheckpointError> {
        match self.by_gguf.get(name) {
            Some((entry, GgmlType::F32, extent)) if entry.n_elements == 1 => Ok(*extent),
            _ => Err(CheckpointError::tensor(name, "expected one F32")),
        }
    }
}

fn check_shape(name: &str, entry: &TensorEntry, expected: &[usize]) -> Result<(), CheckpointError> {
    let stored: Vec<u64> = entry.dimensions.iter().rev().copied().collect();
    if stored.len() != expected.len() || stored.iter().zip(expected).any(|(&stored, &expected)| stored != expected as u64) {
        return Err(CheckpointError::tensor(name, format!("shape: expected {expected:?}, got {stored:?}")));
    }
    Ok(())
}

fn scaled(matrix: &TernaryMatrix, factor: f32) -> Result<TernaryMatrix, bitnet_ternary::MatrixError> {
    let times = |scales: &[f32]| scales.iter().map(|scale| scale * factor).collect();
    let scales = match matrix.scales() {
        Scales::Tensor(scale) => Scales::Tensor(scale * factor),
        Scales::Row(scales) => Scales::Row(times(scales)),
        Scales::Group { group_size, scales } => Scales::Group { group_size: *group_size, scales: times(scales) },
    };
    let codes = (0..matrix.n_rows()).flat_map(|row| matrix.row_codes(row).iter().copied()).collect();
    TernaryMatrix::from_codes(matrix.n_rows(), matrix.n_cols(), codes, scales)
}
