//! OpenAI's API: a file or a few for each of its routes.

pub(crate) mod batch_runner;
pub(crate) mod batches;
pub(crate) mod chat;
pub(crate) mod chat_request;
pub(crate) mod completions;
pub(crate) mod embeddings;
pub(crate) mod file_routes;
pub(crate) mod live_batches;
pub(crate) mod model_list;
pub(crate) mod response_progress;
pub(crate) mod response_store;
pub(crate) mod response_wire;
pub(crate) mod responses;
pub(crate) mod shared;
