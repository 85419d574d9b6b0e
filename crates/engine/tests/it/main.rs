//! The engine from outside.

mod handle;
mod support;
