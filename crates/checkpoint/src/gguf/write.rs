//! Writing GGUF: the header first, from a plan, then one tensor after another, so that a model is never in memory at once.
//!
//! The file is readable by llama.cpp and its forks as far as they know the types. Nothing is lost silently: what a type cannot
//! hold is an error, what it rounds is a [`Loss`].

use std::io::Write;
use std::path::{Path, PathBuf};

use bitnet_ternary::layout::q2_0::BlockWidth;
use half::{bf16, f16};

use super::ggml_type::{GgmlType, I2_S_FILE_TYPE};
use super::metadata::{self, MetadataBytes, put_string};
use super::model_config::{self, GgufArchitecture};
use super::{extent, keys, names, read, row_order, ternary};
use crate::config::{Activation, Architecture, ModelConfig};
use crate::error::CheckpointError;
use crate::tensor::{DenseTensor, DenseType, Tensor};
use crate::tokenizer_files::TokenizerFiles;

const FORMAT: &str = "GGUF";
/// Dense elements converted at a time.
const CHUNK_ELEMENTS: usize = 1 << 16;

/// A type that tensors can be written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GgufTensorType {
    /// Dense.
    F32,
    /// Dense.
    F16,
    /// Dense.
    Bf16,
    /// Ternary, one f32 scale for the tensor; blocks of 128.
    I2S,
    /// Ternary, 1.69 bits a weight, one f16 scale for 256.
    Tq1_0,
    /// Ternary, 2.06 bits a weight, one f16 scale for 256.
    Tq2_0,
    /// Ternary, one f16 scale for 64 (mainline llama.cpp).
    Q2_0,
    /// Ternary, one f16 scale for 128 (PrismML's fork).
    Pq2_0,
}

impl GgufTensorType {
    /// The type that keeps a dense tensor as it is.
    pub fn of_dense(dtype: DenseType) -> Self {
        match dtype {
            DenseType::F32 => Self::F32,
            DenseType::F16 => Self::F16,
            DenseType::Bf16 => Self::Bf16,
        }
    }

    fn ggml_type(self) -> GgmlType {
        match self {
            Self::F32 => GgmlType::F32,
            Self::F16 => GgmlType::F16,
            Self::Bf16 => GgmlType::Bf16,
            Self::I2S => GgmlType::I2S,
            Self::Tq1_0 => GgmlType::Tq1_0,
            Self::Tq2_0 => GgmlType::Tq2_0,
            Self::Q2_0 => GgmlType::Q2_0(BlockWidth::Weights64),
            Self::Pq2_0 => GgmlType::Pq2_0,
        }
    }

    /// `general.file_type` of a model whose weights are of this type, where llama.cpp has one.
    fn file_type(self) -> Option<u32> {
        match self {
            Self::F32 => Some(0),
            Self::F16 => Some(1),
            Self::Bf16 => Some(32),
            Self::Tq1_0 => Some(36),
            Self::Tq2_0 => Some(37),
            Self::I2S => Some(I2_S_FILE_TYPE),
            Self::Q2_0 => Some(41),
            Self::Pq2_0 => None,
        }
    }
}

/// A tensor that will be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedTensor {
    /// Canonical name.
    pub name: String,
    /// Outermost first.
    pub shape: Vec<usize>,
    /// How it will be stored.
    pub tensor_type: GgufTensorType,
}

/// Something that the file does not say as exactly as its source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// Canonical name; `None` if it concerns the model.
    pub tensor: Option<String>,
    /// What is lost.
    pub what: String,
}

/// A file being written.
#[derive(Debug)]
pub struct GgufWriter<W> {
    out: W,
    path: PathBuf,
    plan: Vec<PlannedTensor>,
    n_written: usize,
    head_dim: usize,
    architecture: GgufArchitecture,
    losses: Vec<Loss>,
}

impl<W: Write> GgufWriter<W> {
    /// Writes the header. `path` is for errors. Tensors follow in the order of `plan`.
    pub fn new(
        out: W,
        path: &Path,
        config: &ModelConfig,
        tokenizer_files: &TokenizerFiles,
        plan: &[PlannedTensor],
    ) -> Result<Self, CheckpointError> {
        config.validate()?;
        let architecture = model_config::architecture_for(config);
        let mut writer = Self {
            out,
            path: path.to_path_buf(),
            plan: plan.to_vec(),
            n_written: 0,
            head_dim: config.head_dim,
            architecture,
            losses: Vec::new(),
        };
        let mut metadata = MetadataBytes::default();
        metadata::put_config(&mut metadata, architecture, config)?;
        if let Some(file_type) = file_type(plan) {
            metadata.u32(keys::FILE_TYPE, file_type);
        }
        let missed = metadata::put_tokenizer(&mut metadata, tokenizer_files, config.n_vocab)?;
        writer.losses.extend(missed.into_iter().map(|what| Loss { tensor: None, what }));
        writer.note_what_others_compute(config);
        writer.put_header(config, &metadata)?;
        Ok(writer)
    }

    /// Writes the next tensor of the plan. Errors: another name, shape or kind than planned, or values the type cannot hold.
    pub fn write_tensor(&mut self, name: &str, tensor: &Tensor) -> Result<(), CheckpointError> {
        let Some(planned) = self.plan.get(self.n_written).cloned() else {
            return Err(CheckpointError::tensor(name, "all planned tensors have been written"));
        };
        if planned.name != name || planned.shape != tensor.shape() {
            let reason = format!("expected `{}` {:?}, got {:?}", planned.name, planned.shape, tensor.shape());
            return Err(CheckpointError::tensor(name, reason));
        }
        let stored_rows =
            self.architecture.interleaved_rows.then(|| row_order::stored_from_canonical(name, planned.shape[0], self.head_dim));
        let size_bytes = match (tensor, planned.tensor_type.ggml_type().is_ternary()) {
            (Tensor::Ternary(matrix), true) => {
                let reordered = stored_rows.flatten().map(|order| matrix.with_row_order(&order));
                let matrix = reordered.as_ref().unwrap_or(matrix);
                let (bytes, rounding) = ternary::encode(name, planned.tensor_type.ggml_type(), matrix)?;
                if rounding.n_rounded > 0 {
                    let ternary::Rounding { n_rounded, n_scales, largest_relative_error } = rounding;
                    let what =
                        format!("{n_rounded} of {n_scales} scales rounded to f16, by at most {largest_relative_error:.2e} of their value");
                    self.losses.push(Loss { tensor: Some(name.into()), what });
                }
                self.put(&bytes)?;
                bytes.len()
            }
            (Tensor::Dense(dense), false) => {
                let reordered = stored_rows.flatten().map(|order| {
                    let bytes = row_order::reordered(dense.bytes(), &order);
                    DenseTensor::from_bytes(dense.shape().to_vec(), dense.dtype(), bytes)
                        .expect("reordering rows keeps the number of bytes")
                });
                self.put_dense(name, planned.tensor_type, reordered.as_ref().unwrap_or(dense))?
            }
            (Tensor::Ternary(_), false) => return Err(mismatch(name, "ternary weights", planned.tensor_type)),
            (Tensor::Dense(_), true) => return Err(mismatch(name, "a dense tensor", planned.tensor_type)),
        };
        self.put_padding(size_bytes as u64)?;
        self.n_written += 1;
        Ok(())
    }

    /// Completes the file and says what was lost. Error: planned tensors that were not written.
    pub fn finish(mut self) -> Result<(W, Vec<Loss>), CheckpointError> {
        if let Some(planned) = self.plan.get(self.n_written) {
            return Err(CheckpointError::MissingTensor { name: planned.name.clone() });
        }
        self.out.flush().map_err(|source| CheckpointError::Io { path: self.path.clone(), source })?;
        Ok((self.out, self.losses))
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), CheckpointError> {
        self.out.write_all(bytes).map_err(|source| CheckpointError::Io { path: self.path.clone(), source })
    }

    fn put_padding(&mut self, size_bytes: u64) -> Result<(), CheckpointError> {
        let padding = size_bytes.next_multiple_of(read::ALIGNMENT_DEFAULT) - size_bytes;
        self.put(&[0; read::ALIGNMENT_DEFAULT as usize][..padding as usize])
    }

    /// Other programs compute the activation that the architecture's name implies, and all norms with one ε.
    fn note_what_others_compute(&mut self, config: &ModelConfig) {
        let implied = if self.architecture.name == "bitnet-b1.58" { Activation::Relu2 } else { Activation::Silu };
        if config.activation != implied {
            let what =
                format!("programs that do not read {} compute {implied:?} instead of {:?}", keys::BITNET_HIDDEN_ACT, config.activation);
            self.losses.push(Loss { tensor: None, what });
        }
        if config.projection_norms && config.projection_norm_eps != config.rms_norm_eps {
            let (key, model, own) = (keys::BITNET_PROJECTION_EPSILON, config.rms_norm_eps, config.projection_norm_eps);
            let what =
                format!("programs that do not read {key} compute the norms inside projections with epsilon {model:e} instead of {own:e}");
            self.losses.push(Loss { tensor: None, what });
        }
    }

    fn put_header(&mut self, config: &ModelConfig, metadata: &MetadataBytes) -> Result<(), CheckpointError> {
        // llama.cpp looks for these factors in files of the llama architecture only, and refuses tensors it does not look for.
        let factors = model_config::llama3_factors(config, config.rope.scaling).filter(|_| config.architecture == Architecture::Llama);
        let mut table = Vec::new();
        let mut offset = 0u64;
        let mut entry = |name: &str, shape: &[usize], ggml_type: GgmlType| -> Result<(), CheckpointError> {
            put_string(&mut table, name);
            table.extend_from_slice(&(shape.len() as u32).to_le_bytes());
            let dimensions: Vec<u64> = shape.iter().rev().map(|&dimension| dimension as u64).collect();
            table.extend(dimensions.iter().flat_map(|dimension| dimension.to_le_bytes()));
            table.extend_from_slice(&ggml_type.id().to_le_bytes());
            table.extend_from_slice(&offset.to_le_bytes());
            let size = extent::n_elements(&dimensions).and_then(|n_elements| ggml_type.size_bytes(n_elements, dimensions[0]));
            let end = size.and_then(|size| offset.checked_add(size)).and_then(|end| extent::align_up(end, read::ALIGNMENT_DEFAULT));
            offset = end.ok_or_else(|| {
                let reason = format!("tensor `{name}` of shape {shape:?} is not whole {} blocks", ggml_type.name());
                CheckpointError::CannotRepresent { format: FORMAT, reason }
            })?;
            Ok(())
        };
        if let Some(factors) = &factors {
            entry(names::ROPE_FACTORS, &[factors.len()], GgmlType::F32)?;
        }
        for planned in &self.plan {
            let name = names::to_gguf(&planned.name).ok_or_else(|| CheckpointError::CannotRepresent {
                format: FORMAT,
                reason: format!("no GGUF name is known for tensor `{}`", planned.name),
            })?;
            entry(&name, &planned.shape, planned.tensor_type.ggml_type())?;
        }
        let mut header = read::MAGIC.to_vec();
        header.extend_from_slice(&read::VERSION.to_le_bytes());
        header.extend_from_slice(&(self.plan.len() as u64 + u64::from(factors.is_some())).to_le_bytes());
        header.extend_from_slice(&metadata.n_keys.to_le_bytes());
        let size_bytes = header.len() + metadata.bytes.len() + table.len();
        self.put(&header)?;
        self.put(&metadata.bytes)?;
        self.put(&table)?;
        self.put_padding(size_bytes as u64)?;
        let Some(factors) = factors else { return Ok(()) };
        let bytes: Vec<u8> = factors.iter().flat_map(|factor| factor.to_le_bytes()).collect();
        self.put(&bytes)?;
        self.put_padding(bytes.len() as u64)
    }

    /// Writes a dense tensor, converted if it is of another type, and returns its size.
    fn put_dense(&mut self, name: &str, tensor_type: GgufTensorType, dense: &DenseTensor) -> Result<usize, CheckpointError> {
        if GgufTensorType::of_dense(dense.dtype()) == tensor_type {
            self.put(dense.bytes())?;
            return Ok(dense.bytes().len());
        }
        let (mut n_rounded, mut size_bytes) = (0usize, 0usize);
        let mut values = vec![0.0; CHUNK_ELEMENTS.min(dense.n_elements())];
        for start in (0..dense.n_elements()).step_by(CHUNK_ELEMENTS) {
            let end = dense.n_elements().min(start + CHUNK_ELEMENTS);
            let values = &mut values[..end - start];
            dense.read_f32(start..end, values);
            let mut bytes = Vec::with_capacity(values.len() * 4);
            for &value in values.iter() {
                let stored = put_as(tensor_type, value, &mut bytes);
                if stored.is_infinite() && value.is_finite() {
                    let reason = format!("tensor `{name}`: {value} is out of the range of {}", tensor_type.ggml_type().name());
                    return Err(CheckpointError::CannotRepresent { format: FORMAT, reason });
                }
                n_rounded += usize::from(stored != value && !value.is_nan());
            }
            self.put(&bytes)?;
            size_bytes += bytes.len();
        }
        if n_rounded > 0 {
            let what = format!("{n_rounded} of {} values rounded to {}", dense.n_elements(), tensor_type.ggml_type().name());
            self.losses.push(Loss { tensor: Some(name.into()), what });
        }
        Ok(size_bytes)
    }
}

/// Appends a value and returns what was stored.
fn put_as(tensor_type: GgufTensorType, value: f32, bytes: &mut Vec<u8>) -> f32 {
    match tensor_type {
        GgufTensorType::F16 => {
            let stored = f16::from_f32(value);
            bytes.extend_from_slice(&stored.to_le_bytes());
            stored.to_f32()
        }
        GgufTensorType::Bf16 => {
            let stored = bf16::from_f32(value);
            bytes.extend_from_slice(&stored.to_le_bytes());
            stored.to_f32()
        }
        _ => {
            bytes.extend_from_slice(&value.to_le_bytes());
            value
        }
    }
}

/// The file type of the first ternary tensor, or of the first matrix if none is ternary.
fn file_type(plan: &[PlannedTensor]) -> Option<u32> {
    let ternary = plan.iter().find(|planned| planned.tensor_type.ggml_type().is_ternary());
    let matrix = || plan.iter().find(|planned| planned.shape.len() == 2);
    ternary.or_else(matrix).and_then(|planned| planned.tensor_type.file_type())
}

fn mismatch(name: &str, what: &str, tensor_type: GgufTensorType) -> CheckpointError {
    let reason = format!("tensor `{name}`: {what} cannot be written as {}", tensor_type.ggml_type().name());
    CheckpointError::CannotRepresent { format: FORMAT, reason }
}
