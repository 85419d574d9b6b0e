//! The server as its clients see it, over a simulated model.

mod anthropic;
mod batches;
mod chat;
mod completions;
mod connections;
mod disconnects;
mod embeddings;
mod endurance;
mod hostile;
mod operations;
mod refusals;
mod responses;
mod sockets;
mod traces;
mod world;
