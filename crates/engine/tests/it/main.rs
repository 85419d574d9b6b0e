//! The engine from outside.

mod batch_invariance;
mod constraint;
mod faults;
mod handle;
mod requests;
mod simulation;
mod support;
