//! Checkpoints through their public door: whole files and folders, good and bad.

mod convert_folders;
mod convert_gguf;
mod gguf_bad_files;
mod gguf_files;
mod gguf_fixture;
mod gguf_round_trip;
mod hf_config;
mod hf_models;
mod mlx_bad;
mod safetensors_bad;
mod small_model;
