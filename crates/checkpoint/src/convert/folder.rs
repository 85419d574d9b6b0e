//! Hugging Face and MLX folders: `config.json`, text files and one `model.safetensors`.
//!
//! A Hugging Face folder is packed (`quant_method: bitnet`, `autobitlinear`, scales that multiply) where that says what the model
//! is: one scale a projection and int8 activations. Group scales, row scales and models that do not quantise activations are
//! written as floating point that is trit × scale, which every reader computes right and this one packs again.

use std::collections::HashMap;
use std::path::Path;

use bitnet_ternary::layout::hf_u8::ROWS_PER_BYTE;
use bitnet_ternary::layout::mlx::{CODES_PER_WORD, GROUP_SIZES};

use super::encode::Piece;
use super::facts::{Content, Facts, TensorFacts};
use super::{ConvertProgress, ConvertStage, Loader, Loss};
use crate::config::{ActivationPolicy, TensorRole};
use crate::error::CheckpointError;
use crate::hf_config::{WrittenWeights, to_json};
use crate::open::Checkpoint;
use crate::safetensors::{SafetensorsWriter, TensorDeclaration};
use crate::tokenizer_files::{TokenizerFiles, Vocabulary};
use crate::{hf_tokenizer, quantise, tokenizer_json};

/// Written for a matrix of zeros, whose scale says nothing but must not look wrong.
const SCALE_OF_ZEROS: f32 = 1.0;

/// A stored tensor to be written, and the canonical tensor it is made of.
struct Planned {
    declaration: TensorDeclaration,
    index: usize,
    piece: Piece,
}

/// Writes a Hugging Face folder into the empty folder `into`.
pub(super) fn write_hugging_face(
    checkpoint: &Checkpoint,
    facts: &Facts,
    into: &Path,
    progress: &mut dyn FnMut(ConvertProgress),
) -> Result<Vec<Loss>, CheckpointError> {
    let int8 = checkpoint.config().activation_policy == ActivationPolicy::Int8PerToken;
    let packed = int8 && facts.tensors.iter().filter(|tensor| tensor.role == TensorRole::Linear).all(is_packable);
    let mut planned = Vec::new();
    for (index, tensor) in facts.tensors.iter().enumerate() {
        plan_hugging_face(&mut planned, index, tensor, facts, packed);
    }
    let weights = if packed { WrittenWeights::PackedAutobitlinear } else { WrittenWeights::FakeQuantised };
    write_folder(checkpoint, facts, into, weights)?;
    write_tensors(checkpoint, planned, &into.join("model.safetensors"), "pt", progress)?;
    let mut losses = Vec::new();
    if int8 && !packed {
        losses.push(Loss {
            tensor: None,
            what: "the projections are written as floating point; readers that do not know `bitnet_activation_policy` will not \
                     quantise activations to int8 as the model was trained"
                .into(),
        });
    }
    Ok(losses)
}

/// Writes an MLX folder into the empty folder `into`.
pub(super) fn write_mlx(
    checkpoint: &Checkpoint,
    facts: &Facts,
    into: &Path,
    progress: &mut dyn FnMut(ConvertProgress),
) -> Result<Vec<Loss>, CheckpointError> {
    let group_size = mlx_group_size(facts)?;
    let mut planned = Vec::new();
    for (index, tensor) in facts.tensors.iter().enumerate() {
        plan_mlx(&mut planned, index, tensor, facts, group_size);
    }
    write_folder(checkpoint, facts, into, WrittenWeights::Mlx { group_size })?;
    write_tensors(checkpoint, planned, &into.join("model.safetensors"), "mlx", progress)?;
    let mut losses = Vec::new();
    if checkpoint.config().activation_policy == ActivationPolicy::Int8PerToken {
        let what = "MLX multiplies unquantised activations; the model was trained with int8 activations".into();
        losses.push(Loss { tensor: None, what });
    }
    Ok(losses)
}

/// Whether the packed form says what this projection is.
fn is_packable(tensor: &TensorFacts) -> bool {
    let [n_rows, n_cols] = tensor.shape[..] else { return false };
    match tensor.content {
        Content::Ternary { tensor_scale: Some(scale), .. } => {
            let plausible = scale == 0.0 || quantise::check_plausible(&tensor.name, n_cols, scale).is_ok();
            n_rows.is_multiple_of(ROWS_PER_BYTE) && plausible
        }
        _ => false,
    }
}

fn plan_hugging_face(planned: &mut Vec<Planned>, index: usize, tensor: &TensorFacts, facts: &Facts, packed: bool) {
    let shape = tensor.shape.clone();
    let mut plan = |name: String, shape: Vec<usize>, piece: Piece| {
        planned.push(Planned { declaration: TensorDeclaration { name, dtype: piece.dtype(), shape }, index, piece });
    };
    match tensor.content {
        Content::Ternary { tensor_scale: Some(scale), exact, .. } if packed && tensor.role == TensorRole::Linear => {
            let packed_shape = vec![shape[0] / ROWS_PER_BYTE, shape[1]];
            plan(tensor.name.clone(), packed_shape, Piece::PackedCodes);
            let scale = if scale == 0.0 { SCALE_OF_ZEROS } else { scale };
            plan(format!("{}_scale", tensor.name), vec![1], Piece::PackedScale { scale, dtype: exact.narrowest(facts.dtype) });
        }
        Content::Ternary { exact, .. } => plan(tensor.name.clone(), shape, Piece::FakeQuantised(exact.narrowest(facts.dtype))),
        Content::Dense { dtype, exact } => {
            let dtype = if tensor.role == TensorRole::Vector { exact.narrowest(facts.dtype) } else { dtype };
            // `use_rms_norm` of the packed form has its own name for the norm inside a projection.
            let name = if packed { tensor.name.replace("_proj.norm.", "_proj.rms_norm.") } else { tensor.name.clone() };
            plan(name, shape, Piece::Dense(dtype));
        }
    }
}

/// The largest group that every ternary tensor can be cut into.
fn mlx_group_size(facts: &Facts) -> Result<usize, CheckpointError> {
    let fits = |tensor: &&TensorFacts, size: usize| match tensor.content {
        Content::Ternary { group_size, .. } => {
            tensor.shape.last().is_some_and(|n_cols| n_cols.is_multiple_of(size)) && group_size.is_multiple_of(size)
        }
        Content::Dense { .. } => true,
    };
    let size = GROUP_SIZES.into_iter().find(|&size| facts.tensors.iter().all(|tensor| fits(&tensor, size)));
    size.ok_or_else(|| {
        let smallest = GROUP_SIZES[GROUP_SIZES.len() - 1];
        let culprit = facts.tensors.iter().find(|tensor| !fits(tensor, smallest)).map_or("", |tensor| tensor.name.as_str());
        let reason = format!("tensor `{culprit}` cannot be cut into groups of {smallest} columns with one scale each");
        CheckpointError::CannotRepresent { format: "MLX", reason }
    })
}

fn plan_mlx(planned: &mut Vec<Planned>, index: usize, tensor: &TensorFacts, facts: &Facts, group_size: usize) {
    let mut plan = |name: String, shape: Vec<usize>, piece: Piece| {
        planned.push(Planned { declaration: TensorDeclaration { name, dtype: piece.dtype(), shape }, index, piece });
    };
    match tensor.content {
        Content::Ternary { exact, .. } => {
            let (n_rows, n_cols) = (tensor.shape[0], tensor.shape[1]);
            let dtype = exact.narrowest(facts.dtype);
            let module = tensor.name.trim_end_matches(".weight");
            let groups = vec![n_rows, n_cols / group_size];
            plan(tensor.name.clone(), vec![n_rows, n_cols / CODES_PER_WORD], Piece::MlxWords { group_size });
            plan(format!("{module}.scales"), groups.clone(), Piece::MlxScales { group_size, dtype });
            plan(format!("{module}.biases"), groups, Piece::MlxBiases { group_size, dtype });
        }
        Content::Dense { dtype, exact } => {
            let dtype = if tensor.role == TensorRole::Vector { exact.narrowest(facts.dtype) } else { dtype };
            plan(tensor.name.clone(), tensor.shape.clone(), Piece::Dense(dtype));
        }
    }
}

/// `config.json` and the text files.
fn write_folder(checkpoint: &Checkpoint, facts: &Facts, into: &Path, weights: WrittenWeights) -> Result<(), CheckpointError> {
    let text = with_json_vocabulary(checkpoint.tokenizer_files())?;
    let config = hf_tokenizer::pretty(&to_json(checkpoint.config(), &text, weights, facts.dtype));
    let files = std::iter::once(("config.json", config)).chain(hf_tokenizer::write(&text));
    for (name, bytes) in files {
        let path = into.join(name);
        std::fs::write(&path, bytes).map_err(|source| CheckpointError::Io { path, source })?;
    }
    Ok(())
}

/// Folders hold `tokenizer.json`; a vocabulary that is GGUF metadata becomes one.
fn with_json_vocabulary(text: &TokenizerFiles) -> Result<TokenizerFiles, CheckpointError> {
    let mut text = text.clone();
    if let Vocabulary::Gguf(vocabulary) = &text.vocabulary {
        text.vocabulary = Vocabulary::Json(tokenizer_json::from_gguf(vocabulary)?);
    }
    Ok(text)
}

fn write_tensors(
    checkpoint: &Checkpoint,
    planned: Vec<Planned>,
    path: &Path,
    framework: &str,
    progress: &mut dyn FnMut(ConvertProgress),
) -> Result<(), CheckpointError> {
    let declarations = planned.iter().map(|planned| planned.declaration.clone()).collect();
    let by_name: HashMap<&str, &Planned> = planned.iter().map(|planned| (planned.declaration.name.as_str(), planned)).collect();
    let mut writer = SafetensorsWriter::create(path, framework, declarations)?;
    let order: Vec<String> = writer.order().iter().map(|declaration| declaration.name.clone()).collect();
    let mut loader = Loader::new(checkpoint);
    for (n_done, name) in order.iter().enumerate() {
        progress(ConvertProgress { stage: ConvertStage::Writing, n_done, n_total: order.len(), tensor: name });
        let planned = by_name[name.as_str()];
        let bytes = planned.piece.encode(name, loader.load(planned.index)?)?;
        writer.write(&bytes)?;
    }
    writer.finish()
}
