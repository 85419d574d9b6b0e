//! What a ternary language model is and how one step of it computes.
//!
//! Above the outer seam ([`batch::Batch`] in, logits out) nobody knows a tensor; below the inner seam ([`device::Device`])
//! nobody knows a request. Between them stands one readable walk of the transformer.
#![forbid(unsafe_code)]

pub mod batch;
pub mod device;
pub mod limits;
pub mod numerics;
pub mod reference;
pub mod rope;
mod token;

pub use token::TokenId;
