//! The engine from outside.

mod batch_invariance;
mod constraint;
mod handle;
mod simulation;
mod support;
