//! Integration tests of crate `platform`.

mod postgres;
mod simulation;
mod store;
