//! Integration tests of crate `platform`.

mod access;
mod audit;
mod away;
mod billing;
mod events;
mod gateway;
mod invoices;
mod mail;
mod notices;
mod passkeys;
mod payments;
mod portal;
mod portal_entry;
mod portal_pages;
mod portal_payment;
mod portal_team;
mod postgres;
mod served;
mod simulation;
mod store;
mod upgrade;
mod visitor;
mod webhooks;
