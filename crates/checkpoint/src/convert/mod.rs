//! One model, another file: any opened checkpoint to GGUF, a Hugging Face folder or an MLX folder.
//!
//! Two passes, one tensor in memory at a time: the first finds what every tensor needs (which scales, which precision holds them
//! exactly), the second writes. Conversion is lossless where the target has the words; where it has not, it is refused, and what
//! another reader would lose is reported. The output appears whole or not at all (`pending`).
//!
//! The same model gives the same bytes whatever file it came from, so converting there and back ends where it began.

mod encode;
mod facts;
mod folder;
mod gguf;
mod pending;

use std::path::Path;

use crate::gguf::write::GgufTensorType;
pub use crate::gguf::write::Loss;

use self::gguf::Output;
use self::pending::{OutputForm, PendingOutput};
use crate::error::CheckpointError;
use crate::open::Checkpoint;
use crate::tensor::Tensor;

/// What to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConvertTarget {
    /// GGUF for bitnet.cpp: one f32 scale a projection.
    GgufI2S,
    /// GGUF, 2.06 bits a weight, one f16 scale for 256.
    GgufTq2_0,
    /// GGUF, 1.69 bits a weight, one f16 scale for 256.
    GgufTq1_0,
    /// GGUF, 2.25 bits a weight, one f16 scale for 64.
    GgufQ2_0,
    /// GGUF for PrismML's fork, 2.13 bits a weight, one f16 scale for 128.
    GgufPq2_0,
    /// A Hugging Face folder: packed uint8 where every projection has one scale, else floating point that is trit × scale.
    Safetensors,
    /// An MLX folder: affine 2-bit.
    Mlx,
}

impl ConvertTarget {
    /// How ternary tensors are stored, if the target is a GGUF file.
    fn gguf_type(self) -> Option<GgufTensorType> {
        match self {
            Self::GgufI2S => Some(GgufTensorType::I2S),
            Self::GgufTq2_0 => Some(GgufTensorType::Tq2_0),
            Self::GgufTq1_0 => Some(GgufTensorType::Tq1_0),
            Self::GgufQ2_0 => Some(GgufTensorType::Q2_0),
            Self::GgufPq2_0 => Some(GgufTensorType::Pq2_0),
            Self::Safetensors | Self::Mlx => None,
        }
    }
}

/// What to do where the output exists already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExistingOutput {
    /// Refuse.
    Refuse,
    /// Replace it, if it is a model.
    Replace,
}

/// Which pass a conversion is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConvertStage {
    /// Finding what every tensor needs.
    Examining,
    /// Writing.
    Writing,
}

/// How far a conversion has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvertProgress<'a> {
    /// The pass.
    pub stage: ConvertStage,
    /// Tensors done in this pass.
    pub n_done: usize,
    /// Tensors of this pass.
    pub n_total: usize,
    /// The tensor that comes next.
    pub tensor: &'a str,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConvertReport {
    /// Tensors of the model.
    pub n_tensors: usize,
    /// Bytes of all files written.
    pub size_bytes: u64,
    /// What was lost.
    pub losses: Vec<Loss>,
}

/// Converts `checkpoint` to `out`: a folder for [`ConvertTarget::Safetensors`] and [`ConvertTarget::Mlx`], else a file.
/// `progress` is called before every tensor of both passes.
pub fn convert(
    checkpoint: &Checkpoint,
    out: &Path,
    target: ConvertTarget,
    existing: ExistingOutput,
    progress: &mut dyn FnMut(ConvertProgress),
) -> Result<ConvertReport, CheckpointError> {
    let tensor_type = target.gguf_type();
    let form = if tensor_type.is_some() { OutputForm::GgufFile } else { OutputForm::Folder };
    let pending = PendingOutput::create(out, form, existing)?;
    let facts = facts::examine(checkpoint, progress)?;
    let losses = match tensor_type {
        Some(tensor_type) => gguf::write(checkpoint, &facts, Output { path: pending.path(), tensor_type }, progress)?,
        None if target == ConvertTarget::Mlx => folder::write_mlx(checkpoint, &facts, pending.path(), progress)?,
        None => folder::write_hugging_face(checkpoint, &facts, pending.path(), progress)?,
    };
    let size_bytes = pending.commit()?;
    Ok(ConvertReport { n_tensors: facts.tensors.len(), size_bytes, losses })
}

/// Loads tensors by index and keeps the last one: the parts of one tensor are often written one after the other.
struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    last: Option<(usize, Tensor)>,
}

impl<'a> Loader<'a> {
    fn new(checkpoint: &'a Checkpoint) -> Self {
        Self { checkpoint, last: None }
    }

    fn load(&mut self, index: usize) -> Result<&Tensor, CheckpointError> {
        if self.last.as_ref().is_none_or(|(last, _)| *last != index) {
            // The old tensor goes before the new one comes: one in memory at a time.
            self.last = None;
            self.last = Some((index, self.checkpoint.load(&self.checkpoint.tensors()[index].name)?));
        }
        Ok(&self.last.as_ref().expect("it was loaded above").1)
    }
}
