//! Integration tests of the checkpoint crate: files of every format, honest and hostile, through the public interface.

mod gguf_bad_files;
mod gguf_files;
mod gguf_fixture;
mod gguf_round_trip;
