//! The engine from outside: what its readers see, whatever happens inside.

mod batch_invariance;
mod constraint;
mod faults;
mod handle;
mod replicas;
mod requests;
mod simulation;
mod support;
