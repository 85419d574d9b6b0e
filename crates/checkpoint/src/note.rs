//! What a model's files leave open although it decides what is computed, and how it was decided here: for people, who may know
//! better. It is not for errors, and not for what a conversion loses.

use std::fmt;

use bitnet_ternary::layout::i2_s::I2sLayout;

/// One such thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Note {
    /// A GGUF file of ternary weights whose public keys do not say whether the model was trained with int8 activations, as Falcon-E
    /// and HF1BitLLM were, or without, as TriLM was. It is computed without.
    ActivationsUnstated,
    /// A GGUF file of I2_S tensors whose weights do not show in which order their codes are. They are decoded in this one.
    I2sOrderUndecided(I2sLayout),
}

impl fmt::Display for Note {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ActivationsUnstated => formatter.write_str(
                "the file does not say whether activations are quantised; they are not, as TriLM and Ternary-Bonsai want it, \
                 but BitNet, Falcon-E and HF1BitLLM were trained with int8",
            ),
            Self::I2sOrderUndecided(layout) => write!(
                formatter,
                "neither the file nor its weights tell the order of I2_S codes; {} is taken, and with the wrong one a model talks nonsense",
                match layout {
                    I2sLayout::Blocks128 => "the published one (blocks of 128)",
                    I2sLayout::Blocks64 => "that of ARM builds (blocks of 64)",
                    I2sLayout::Rows4 => "that of some x86 builds (four rows a byte)",
                }
            ),
        }
    }
}
