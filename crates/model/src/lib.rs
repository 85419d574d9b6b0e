//! What a ternary language model is and how one step of it computes.
#![forbid(unsafe_code)]
