//! GGUF files. Projections become the ternary type that was asked for; norms are f32, as llama.cpp requires; embeddings and heads
//! keep their precision, and where they are ternary they become that type too if it holds them exactly, else floating point that
//! is trit × scale.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use super::encode::Piece;
use super::facts::{Content, Facts, TensorFacts};
use super::{ConvertProgress, ConvertStage, Loader, Loss};
use crate::config::TensorRole;
use crate::error::CheckpointError;
use crate::gguf::write::{GgufTensorType, GgufWriter, PlannedTensor};
use crate::open::Checkpoint;
use crate::tensor::{DenseTensor, DenseType, Tensor};

/// Where and as what to write.
#[derive(Debug, Clone, Copy)]
pub(super) struct Output<'a> {
    pub(super) path: &'a Path,
    pub(super) tensor_type: GgufTensorType,
}

/// How a tensor is handed to the writer.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Form {
    /// As it was loaded.
    Loaded,
    /// Ternary, but as floating point of that precision.
    FakeQuantised(DenseType),
}

/// Writes the file.
pub(super) fn write(
    checkpoint: &Checkpoint,
    facts: &Facts,
    output: Output,
    progress: &mut dyn FnMut(ConvertProgress),
) -> Result<Vec<Loss>, CheckpointError> {
    let io = |source| CheckpointError::Io { path: output.path.to_owned(), source };
    let planned: Result<Vec<_>, _> = facts.tensors.iter().map(|tensor| plan(tensor, facts, output.tensor_type)).collect();
    let (plan, forms): (Vec<PlannedTensor>, Vec<Form>) = planned?.into_iter().unzip();
    let file = File::options().write(true).truncate(true).open(output.path).map_err(io)?;
    let out = BufWriter::with_capacity(1 << 20, file);
    let mut writer = GgufWriter::new(out, output.path, checkpoint.config(), checkpoint.tokenizer_files(), &plan)?;
    let mut loader = Loader::new(checkpoint);
    for (index, (planned, form)) in plan.iter().zip(&forms).enumerate() {
        progress(ConvertProgress { stage: ConvertStage::Writing, n_done: index, n_total: plan.len(), tensor: &planned.name });
        let tensor = loader.load(index)?;
        match form {
            Form::Loaded => writer.write_tensor(&planned.name, tensor)?,
            Form::FakeQuantised(dtype) => {
                let bytes = Piece::FakeQuantised(*dtype).encode(&planned.name, tensor)?;
                let dense = DenseTensor::from_bytes(planned.shape.clone(), *dtype, bytes);
                let dense = dense.expect("every weight of the shape was encoded in that precision");
                writer.write_tensor(&planned.name, &Tensor::Dense(dense))?;
            }
        }
    }
    let (_, losses) = writer.finish()?;
    Ok(losses)
}

fn plan(tensor: &TensorFacts, facts: &Facts, ternary: GgufTensorType) -> Result<(PlannedTensor, Form), CheckpointError> {
    let (tensor_type, form) = match (tensor.role, tensor.content) {
        (TensorRole::Vector, Content::Dense { .. }) => (GgufTensorType::F32, Form::Loaded),
        (_, Content::Dense { dtype, .. }) => (GgufTensorType::of_dense(dtype), Form::Loaded),
        (_, Content::Ternary { .. }) if holds(tensor, ternary) => (ternary, Form::Loaded),
        (TensorRole::Table, Content::Ternary { exact, .. }) => {
            let dtype = exact.narrowest(facts.dtype);
            (GgufTensorType::of_dense(dtype), Form::FakeQuantised(dtype))
        }
        _ => return Err(cannot_hold(tensor, ternary)),
    };
    Ok((PlannedTensor { name: tensor.name.clone(), shape: tensor.shape.clone(), tensor_type }, form))
}

/// Columns that share a scale in a type; `None` where the whole tensor shares one.
fn block_columns(ternary: GgufTensorType) -> Option<usize> {
    match ternary {
        GgufTensorType::Tq1_0 | GgufTensorType::Tq2_0 => Some(256),
        GgufTensorType::Pq2_0 => Some(128),
        GgufTensorType::Q2_0 => Some(64),
        _ => None,
    }
}

/// Whether a type's blocks and scales can be this tensor's.
fn holds(tensor: &TensorFacts, ternary: GgufTensorType) -> bool {
    let Content::Ternary { tensor_scale, group_size, exact } = tensor.content else { return false };
    match block_columns(ternary) {
        // Programs that read I2_S read embeddings as floating point only.
        None => tensor_scale.is_some() && tensor.role == TensorRole::Linear,
        Some(columns) => {
            let n_cols = tensor.shape.last().copied().unwrap_or(0);
            // A projection's scale may be rounded to f16, which is reported; an embedding has an exact form and keeps it.
            let exact_enough = tensor.role == TensorRole::Linear || exact.narrowest(DenseType::F16) == DenseType::F16;
            n_cols.is_multiple_of(columns) && group_size.is_multiple_of(columns) && exact_enough
        }
    }
}

fn cannot_hold(tensor: &TensorFacts, ternary: GgufTensorType) -> CheckpointError {
    let scales = match tensor.content {
        Content::Ternary { tensor_scale: Some(_), .. } => "one scale for the tensor".to_owned(),
        Content::Ternary { group_size, .. } => format!("one scale for {group_size} columns"),
        Content::Dense { .. } => "no scales".to_owned(),
    };
    let needed = match block_columns(ternary) {
        Some(columns) => format!("rows of whole blocks of {columns} columns with one scale each"),
        None => "one scale for the tensor".to_owned(),
    };
    let reason = format!("tensor `{}` {:?} has {scales}; {ternary:?} needs {needed}", tensor.name, tensor.shape);
    CheckpointError::CannotRepresent { format: "GGUF", reason }
}
