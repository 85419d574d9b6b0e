//! Integration tests of crate `platform`.

mod audit;
mod away;
mod billing;
mod events;
mod gateway;
mod invoices;
mod payments;
mod postgres;
mod served;
mod simulation;
mod store;
mod upgrade;
mod webhooks;
