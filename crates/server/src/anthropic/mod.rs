//! Anthropic's messages API over the same engine: other names, other events, the same conversation underneath.

pub(crate) mod encoder;
pub(crate) mod messages;
pub(crate) mod wire;
