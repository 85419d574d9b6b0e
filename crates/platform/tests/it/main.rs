//! Integration tests of crate `platform`.

mod audit;
mod away;
mod billing;
mod gateway;
mod postgres;
mod served;
mod simulation;
mod store;
mod upgrade;
