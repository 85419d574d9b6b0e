//! A Hugging Face or MLX folder as a model: configuration, text files and tensors under canonical names.
//!
//! Opening checks every stored tensor against what the configuration calls for: all there, of the right shape and type, none that
//! would be silently ignored. What remains for loading is arithmetic: codes, and whether numbers are ternary.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use ::safetensors::Dtype;
use bitnet_ternary::TernaryMatrix;
use bitnet_ternary::layout::hf_u8;

use super::{StoredTensor, TensorSet};
use crate::config::{ExpectedTensor, ModelConfig, TensorRole};
use crate::error::CheckpointError;
use crate::hf_config::{self, WeightForm};
use crate::hf_names::{self, Part};
use crate::json::{self, Fields, shown};
use crate::open::{StoredFormat, TensorInfo};
use crate::positioned::read_small_file;
use crate::rows::{FileRows, RowSource};
use crate::tensor::{DenseTensor, DenseType, Tensor};
use crate::tokenizer_files::TokenizerFiles;
use crate::{hf_tokenizer, limits, mlx, quantise};

const CONFIG: &str = "config.json";
/// Bytes compared at a time where a second copy of the embedding is stored.
const COMPARED_BYTES: u64 = 1 << 20;

/// An opened folder.
#[derive(Debug)]
pub(crate) struct HfSource {
    pub(crate) config: ModelConfig,
    pub(crate) text: TokenizerFiles,
    pub(crate) tensors: Vec<TensorInfo>,
    pub(crate) is_mlx: bool,
    set: TensorSet,
    /// In the order of `tensors`.
    places: Vec<Place>,
}

/// One canonical tensor in its files.
#[derive(Debug)]
struct Place {
    parts: Parts,
    encoding: Encoding,
    shape: Vec<usize>,
}

/// How a tensor's bytes become numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Encoding {
    /// As they are.
    Dense(DenseType),
    /// As they are, unless they are exactly ternary (embeddings and heads).
    DenseOrTernary(DenseType),
    /// trit × scale, exactly.
    FakeQuantised(DenseType),
    /// trit × scale if they are exactly that, else master weights.
    FakeQuantisedOrMaster(DenseType),
    /// Master weights, ternarised by absmean.
    Master(DenseType),
    /// Packed uint8 with one scale, which multiplies.
    PackedU8 { scale: f32 },
    /// MLX affine 2-bit.
    Mlx { group_size: usize },
}

/// What is stored for one canonical tensor.
#[derive(Debug, Default)]
struct Parts {
    weight: Option<StoredTensor>,
    scales: Option<StoredTensor>,
    biases: Option<StoredTensor>,
}

impl Parts {
    fn all(&self) -> impl Iterator<Item = &StoredTensor> {
        [&self.weight, &self.scales, &self.biases].into_iter().flatten()
    }
}

impl HfSource {
    /// Opens a folder. `None` if it has no `config.json` or no safetensors file.
    pub(crate) fn open(folder: &Path) -> Result<Option<Self>, CheckpointError> {
        let Some(bytes) = read_small_file(&folder.join(CONFIG), limits::CONFIG_JSON_BYTES_MAX)? else { return Ok(None) };
        let Some(set) = TensorSet::open(folder)? else { return Ok(None) };
        let map = json::parse_object(CONFIG, &bytes)?;
        let names = hf_names::seen(set.tensors().iter().map(|tensor| tensor.name.as_str()));
        let config = hf_config::read(&Fields::of_file(&map), names)?;
        let text = hf_tokenizer::read(folder, &config)?;
        let mut parts = parts_by_name(set.tensors())?;
        let (mut tensors, mut places) = (Vec::new(), Vec::new());
        for expected in config.model.expected_tensors() {
            let place = place(&expected, parts.remove(&expected.name), config.weights, &set)?;
            let stored = StoredFormat { type_name: place.type_name(), size_bytes: place.parts.all().map(|part| part.size_bytes).sum() };
            tensors.push(TensorInfo { name: expected.name, shape: expected.shape, stored });
            places.push(place);
        }
        if let Some(head) = parts.get("lm_head.weight").filter(|_| config.model.tied_head) {
            let embedding = places.first().expect("every model has an embedding, first in the list").parts.all();
            if !same_bytes(&set, head, embedding)? {
                return Err(CheckpointError::tensor("lm_head.weight", "tie_word_embeddings is true, but it differs from the embedding"));
            }
            parts.remove("lm_head.weight");
        }
        refuse_unexpected(&parts)?;
        let is_mlx = config.weights == WeightForm::Mlx;
        Ok(Some(Self { config: config.model, text, tensors, is_mlx, set, places }))
    }

    /// The names of the files that hold its tensors.
    pub(crate) fn file_names(&self) -> impl Iterator<Item = String> {
        self.set.file_names()
    }

    /// Loads the tensor at `index` of [`Self::tensors`].
    pub(crate) fn load(&self, index: usize) -> Result<Tensor, CheckpointError> {
        let (name, place) = (&self.tensors[index].name, &self.places[index]);
        match place.encoding {
            Encoding::Dense(dtype) => self.dense(name, place, dtype).map(Tensor::Dense),
            Encoding::DenseOrTernary(dtype) => quantise::pack_table(name, self.dense(name, place, dtype)?),
            Encoding::FakeQuantised(dtype) => Ok(Tensor::Ternary(quantise::pack_exact(name, &self.dense(name, place, dtype)?)?)),
            Encoding::FakeQuantisedOrMaster(dtype) => {
                // In this order: absmean of trit × scale has another scale, the mean, with the zeros in it.
                let dense = self.dense(name, place, dtype)?;
                match quantise::pack_exact(name, &dense) {
                    Err(CheckpointError::NotTernary { .. }) => canonical(quantise::absmean(name, &dense)),
                    other => other.map(Tensor::Ternary),
                }
            }
            Encoding::Master(dtype) => canonical(quantise::absmean(name, &self.dense(name, place, dtype)?)),
            Encoding::PackedU8 { scale } => {
                let [n_rows, n_cols] = matrix_shape(name, &place.shape)?;
                let bytes = self.bytes(name, &place.parts.weight)?;
                let matrix = hf_u8::unpack(n_rows, n_cols, &bytes, scale);
                canonical(matrix.map_err(|source| CheckpointError::Matrix { name: name.clone(), source }))
            }
            Encoding::Mlx { group_size } => {
                let shape = matrix_shape(name, &place.shape)?;
                let words = self.bytes(name, &place.parts.weight)?;
                let [scales, biases] = [&place.parts.scales, &place.parts.biases].map(|part| self.floats(name, part));
                canonical(mlx::unpack(name, shape, group_size, mlx::Groups { words, scales: scales?, biases: biases? }))
            }
        }
    }

    /// The rows of the tensor at `index` of [`Self::tensors`], where they are stored as numbers of a table.
    pub(crate) fn rows(&self, index: usize) -> Result<Option<Arc<dyn RowSource>>, CheckpointError> {
        let (name, place) = (&self.tensors[index].name, &self.places[index]);
        let (Encoding::DenseOrTernary(dtype), Some(weight)) = (place.encoding, &place.parts.weight) else { return Ok(None) };
        let shape = matrix_shape(name, &place.shape)?;
        Ok(Some(Arc::new(FileRows { file: self.set.file(weight), offset: weight.offset, shape, dtype })))
    }

    fn dense(&self, name: &str, place: &Place, dtype: DenseType) -> Result<DenseTensor, CheckpointError> {
        let bytes = self.bytes(name, &place.parts.weight)?;
        let dense = DenseTensor::from_bytes(place.shape.clone(), dtype, bytes);
        dense.ok_or_else(|| CheckpointError::tensor(name, "its bytes do not match its shape"))
    }

    fn bytes(&self, name: &str, part: &Option<StoredTensor>) -> Result<Vec<u8>, CheckpointError> {
        let part = part.as_ref().ok_or_else(|| CheckpointError::MissingTensor { name: name.to_owned() })?;
        self.set.read(part)
    }

    fn floats(&self, name: &str, part: &Option<StoredTensor>) -> Result<Vec<f32>, CheckpointError> {
        let part = part.as_ref().ok_or_else(|| CheckpointError::MissingTensor { name: name.to_owned() })?;
        read_floats(&self.set, part)
    }
}

fn canonical(matrix: Result<TernaryMatrix, CheckpointError>) -> Result<Tensor, CheckpointError> {
    matrix.map(|matrix| Tensor::Ternary(quantise::coarsen(matrix)))
}

impl Place {
    fn type_name(&self) -> String {
        match self.encoding {
            Encoding::PackedU8 { .. } => "U8 packed".into(),
            Encoding::Mlx { .. } => "MLX 2-bit".into(),
            Encoding::Dense(dtype)
            | Encoding::DenseOrTernary(dtype)
            | Encoding::FakeQuantised(dtype)
            | Encoding::FakeQuantisedOrMaster(dtype)
            | Encoding::Master(dtype) => match dtype {
                DenseType::F32 => "F32".into(),
                DenseType::F16 => "F16".into(),
                DenseType::Bf16 => "BF16".into(),
            },
        }
    }
}

fn parts_by_name(tensors: &[StoredTensor]) -> Result<HashMap<String, Parts>, CheckpointError> {
    let mut parts: HashMap<String, Parts> = HashMap::new();
    for tensor in tensors {
        let (name, slot): (_, fn(&mut Parts) -> &mut Option<StoredTensor>) = match hf_names::part(&tensor.name) {
            Part::Ignored => continue,
            Part::Weight(name) => (name, |parts| &mut parts.weight),
            Part::Scales(name) => (name, |parts| &mut parts.scales),
            Part::Biases(name) => (name, |parts| &mut parts.biases),
        };
        let slot = slot(parts.entry(name).or_default());
        if let Some(other) = slot.replace(tensor.clone()) {
            let reason = format!("{} and {} are both it", shown(&other.name), shown(&tensor.name));
            return Err(CheckpointError::tensor(tensor.name.clone(), reason));
        }
    }
    Ok(parts)
}

/// Checks what is stored for an expected tensor and decides how it is read.
fn place(expected: &ExpectedTensor, parts: Option<Parts>, form: WeightForm, set: &TensorSet) -> Result<Place, CheckpointError> {
    let name = &expected.name;
    let parts = parts.unwrap_or_default();
    let weight = parts.weight.as_ref().ok_or_else(|| CheckpointError::MissingTensor { name: name.clone() })?;
    let packed = matches!(form, WeightForm::PackedBitlinear | WeightForm::PackedAutobitlinear);
    let encoding = match (expected.role, form) {
        (TensorRole::Linear, _) if packed => packed_u8(expected, &parts, form, set)?,
        (TensorRole::Linear | TensorRole::Table, WeightForm::Mlx) if weight.dtype == Dtype::U32 => mlx_groups(expected, &parts)?,
        (role, form) => {
            let dtype = plain(expected, &parts)?;
            match (role, form) {
                (TensorRole::Vector, _) => Encoding::Dense(dtype),
                (TensorRole::Table, _) => Encoding::DenseOrTernary(dtype),
                (TensorRole::Linear, WeightForm::Master) => Encoding::Master(dtype),
                (TensorRole::Linear, WeightForm::FakeQuantisedOrMaster) => Encoding::FakeQuantisedOrMaster(dtype),
                (TensorRole::Linear, _) => Encoding::FakeQuantised(dtype),
            }
        }
    };
    Ok(Place { parts, encoding, shape: expected.shape.clone() })
}

/// A tensor that is stored as floating-point numbers and nothing else.
fn plain(expected: &ExpectedTensor, parts: &Parts) -> Result<DenseType, CheckpointError> {
    let wrong = |reason: String| CheckpointError::tensor(&expected.name, reason);
    let weight = parts.weight.as_ref().ok_or_else(|| CheckpointError::MissingTensor { name: expected.name.clone() })?;
    if let Some(extra) = parts.scales.as_ref().or(parts.biases.as_ref()) {
        return Err(wrong(format!("stored with {}, which this configuration gives no meaning", shown(&extra.name))));
    }
    let dtype = float_type(weight.dtype).ok_or_else(|| wrong(format!("expected F32, F16 or BF16, got {:?}", weight.dtype)))?;
    if weight.shape != expected.shape {
        return Err(wrong(format!("expected shape {:?}, got {:?}", expected.shape, weight.shape)));
    }
    Ok(dtype)
}

fn packed_u8(expected: &ExpectedTensor, parts: &Parts, form: WeightForm, set: &TensorSet) -> Result<Encoding, CheckpointError> {
    let name = &expected.name;
    let wrong = |reason: String| CheckpointError::tensor(name, reason);
    let weight = parts.weight.as_ref().ok_or_else(|| CheckpointError::MissingTensor { name: name.clone() })?;
    let [n_rows, n_cols] = matrix_shape(name, &expected.shape)?;
    if weight.dtype != Dtype::U8 {
        return Err(wrong(format!("expected packed U8 (quantization_mode offline), got {:?}", weight.dtype)));
    }
    if !n_rows.is_multiple_of(hf_u8::ROWS_PER_BYTE) || weight.shape != [n_rows / hf_u8::ROWS_PER_BYTE, n_cols] {
        return Err(wrong(format!("expected {:?} packed four rows a byte, got {:?}", expected.shape, weight.shape)));
    }
    if let Some(biases) = &parts.biases {
        return Err(wrong(format!("stored with {}, which this configuration gives no meaning", shown(&biases.name))));
    }
    let scales = parts.scales.as_ref().ok_or_else(|| CheckpointError::MissingTensor { name: format!("{name}_scale") })?;
    let n_scales: usize = scales.shape.iter().product();
    if n_scales != 1 || float_type(scales.dtype).is_none() {
        return Err(wrong(format!("expected one floating-point weight_scale, got {:?} {:?}", scales.dtype, scales.shape)));
    }
    let stored = read_floats(set, scales)?[0];
    let scale = if form == WeightForm::PackedBitlinear { 1.0 / stored } else { stored };
    quantise::check_plausible(name, n_cols, scale)?;
    Ok(Encoding::PackedU8 { scale })
}

fn mlx_groups(expected: &ExpectedTensor, parts: &Parts) -> Result<Encoding, CheckpointError> {
    let missing = |part: &str| CheckpointError::MissingTensor { name: expected.name.replace(".weight", part) };
    let weight = parts.weight.as_ref().ok_or_else(|| missing(".weight"))?;
    let scales = parts.scales.as_ref().ok_or_else(|| missing(".scales"))?;
    let biases = parts.biases.as_ref().ok_or_else(|| missing(".biases"))?;
    if [scales, biases].iter().any(|part| float_type(part.dtype).is_none()) {
        let reason = format!("scales are {:?} and biases {:?}; expected F32, F16 or BF16", scales.dtype, biases.dtype);
        return Err(CheckpointError::tensor(&expected.name, reason));
    }
    let shape = matrix_shape(&expected.name, &expected.shape)?;
    let group_size = mlx::check_shapes(&expected.name, shape, [&weight.shape, &scales.shape, &biases.shape])?;
    Ok(Encoding::Mlx { group_size })
}

fn matrix_shape(name: &str, shape: &[usize]) -> Result<[usize; 2], CheckpointError> {
    shape.try_into().map_err(|_| CheckpointError::tensor(name, format!("shape {shape:?} is not a matrix")))
}

fn float_type(dtype: Dtype) -> Option<DenseType> {
    match dtype {
        Dtype::F32 => Some(DenseType::F32),
        Dtype::F16 => Some(DenseType::F16),
        Dtype::BF16 => Some(DenseType::Bf16),
        _ => None,
    }
}

fn read_floats(set: &TensorSet, tensor: &StoredTensor) -> Result<Vec<f32>, CheckpointError> {
    let dtype =
        float_type(tensor.dtype).ok_or_else(|| CheckpointError::tensor(&tensor.name, format!("{:?} is not a number", tensor.dtype)))?;
    let dense = DenseTensor::from_bytes(tensor.shape.clone(), dtype, set.read(tensor)?);
    let dense = dense.ok_or_else(|| CheckpointError::tensor(&tensor.name, "its bytes do not match its shape"))?;
    Ok(dense.to_f32())
}

/// Whether two tensors are stored as the same bytes: some exports save a tied head a second time.
fn same_bytes<'a>(set: &TensorSet, left: &Parts, right: impl Iterator<Item = &'a StoredTensor>) -> Result<bool, CheckpointError> {
    let right: Vec<_> = right.collect();
    if left.all().count() != right.len() {
        return Ok(false);
    }
    for (left, right) in left.all().zip(right) {
        if (left.dtype, &left.shape) != (right.dtype, &right.shape) {
            return Ok(false);
        }
        for from in (0..left.size_bytes).step_by(COMPARED_BYTES as usize) {
            let size = COMPARED_BYTES.min(left.size_bytes - from);
            if set.read_part(left, from, size)? != set.read_part(right, from, size)? {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// A tensor that the model has no place for changes what the authors' own code computes, so ignoring it would be wrong.
fn refuse_unexpected(parts: &HashMap<String, Parts>) -> Result<(), CheckpointError> {
    let first = parts.values().flat_map(Parts::all).map(|part| part.name.as_str()).min();
    match first {
        None => Ok(()),
        Some(name) => {
            let n = parts.values().flat_map(Parts::all).count();
            let reason = format!("the configuration has no place for it ({n} such tensors); its weights would be silently ignored");
            Err(CheckpointError::tensor(name, reason))
        }
    }
}
