//! Runs the real binary as a user would.

mod command;
mod completions;
mod errors;
mod hub_server;
mod pull;
