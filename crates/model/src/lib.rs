//! What a ternary language model is and how one step of it computes.
//!
//! Above the outer seam ([`Batch`](batch::Batch) in, logits out) nobody knows a tensor; below the inner seam
//! ([`Device`](device::Device)) nobody knows a request. Between them stands one readable walk of the transformer.
#![forbid(unsafe_code)]

pub mod batch;
pub mod conformance;
pub mod device;
pub mod limits;
pub mod numerics;
pub mod random;
pub mod reference;
pub mod rope;
mod runner;
pub mod sampler;
mod session;
pub mod text;
mod token;
mod transformer;
mod weights;

pub use runner::{Runner, RunnerError, RunnerOptions, StepOutput, TransformerRunner};
pub use session::{EmbeddingLength, Session};
pub use token::TokenId;
pub use weights::{Layer, LoadError, Projection, WeightSource, Weights};
