//! Runs the real binary as a user would.

mod bench;
mod chat;
mod command;
mod completions;
mod convert;
mod embed;
mod embedding_model;
mod engine;
mod errors;
mod fixture;
mod help;
mod hub_server;
mod inspect;
mod logits;
mod perplexity;
#[cfg(unix)]
mod platform;
mod pull;
mod run;
mod serve;
