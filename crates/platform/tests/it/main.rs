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
mod notices;
mod passkeys;
mod payments;
mod portal;
mod portal_entry;
mod portal_pages;
mod portal_team;
mod postgres;
mod refunds;
mod served;
mod simulation;
mod store;
mod upgrade;
mod visitor;
mod webhooks;
