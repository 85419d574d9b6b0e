//! Integration tests of crate `platform`.

mod access;
mod audit;
mod away;
mod billing;
mod events;
mod fake_stripe;
mod forget;
mod gateway;
mod ingest;
mod invoices;
mod mail;
mod payments;
mod portal;
mod postgres;
mod refunds;
mod served;
mod simulation;
mod store;
mod upgrade;
mod visitor;
mod webhooks;
