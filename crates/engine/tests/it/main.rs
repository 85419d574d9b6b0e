//! The engine from outside.

mod handle;
mod simulation;
mod support;
