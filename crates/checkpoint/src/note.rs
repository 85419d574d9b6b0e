//! What a model's files leave open although it decides what is computed, and how it was decided here: for people, who may know
//! better. It is not for errors, and not for what a conversion loses.

use std::fmt;

/// One such thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Note {
    /// A GGUF file of ternary weights whose public keys do not say whether the model was trained with int8 activations, as Falcon-E
    /// and HF1BitLLM were, or without, as TriLM was. It is computed without.
    ActivationsUnstated,
}

impl fmt::Display for Note {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ActivationsUnstated => formatter.write_str(
                "the file does not say whether activations are quantised; they are not, as TriLM and Ternary-Bonsai want it, \
                 but BitNet, Falcon-E and HF1BitLLM were trained with int8",
            ),
        }
    }
}
