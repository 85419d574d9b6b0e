//! The smallest valid models, one for each way in which a Hugging Face or MLX folder stores ternary weights, and a folder on disk
//! that a fuzz target fills with them and with its input. Files lie in `fuzz/models`; nothing here judges what is read.

use std::path::PathBuf;

use bitnet_checkpoint::{Checkpoint, CheckpointError, Tensor};

/// A model folder's two files.
pub struct Model {
    /// `config.json`.
    pub config: &'static [u8],
    /// `model.safetensors`.
    pub tensors: &'static [u8],
}

/// All of them. A fuzz target picks one by its input's first byte, so the order is part of the seeds.
pub const MODELS: [Model; 5] = [
    Model {
        config: include_bytes!("../models/bitnet-offline/config.json"),
        tensors: include_bytes!("../models/bitnet-offline/model.safetensors"),
    },
    Model {
        config: include_bytes!("../models/bitnet-online/config.json"),
        tensors: include_bytes!("../models/bitnet-online/model.safetensors"),
    },
    Model {
        config: include_bytes!("../models/llama-bitlinear/config.json"),
        tensors: include_bytes!("../models/llama-bitlinear/model.safetensors"),
    },
    Model {
        config: include_bytes!("../models/qwen3-fake-quantised/config.json"),
        tensors: include_bytes!("../models/qwen3-fake-quantised/model.safetensors"),
    },
    Model { config: include_bytes!("../models/qwen3-mlx/config.json"), tensors: include_bytes!("../models/qwen3-mlx/model.safetensors") },
];

/// This process's scratch folder, below the system's (`cargo xtask fuzz` sets and clears it).
pub fn scratch() -> PathBuf {
    let folder = std::env::temp_dir().join(format!("bitnet-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("the scratch folder can be made");
    folder
}

/// Writes files into the scratch folder, in place of those of the same name.
pub fn write(files: &[(&str, &[u8])]) -> PathBuf {
    let folder = scratch();
    for (name, bytes) in files {
        std::fs::write(folder.join(name), bytes).expect("the scratch folder is writable");
    }
    folder
}

/// Loads every tensor of an opened checkpoint; a loaded tensor must have the shape that the checkpoint declares.
pub fn load_all(checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
    for info in checkpoint.tensors() {
        let tensor = checkpoint.load(&info.name)?;
        assert_eq!(tensor.shape(), info.shape, "{}", info.name);
        if let Tensor::Ternary(matrix) = &tensor {
            assert!(matrix.n_zeros() <= matrix.n_rows() * matrix.n_cols());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gguf_seeds_as_they_are_load_whole() {
        let seeds = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds/gguf");
        for seed in seeds.read_dir().expect("seeds") {
            let path = seed.expect("a file").path();
            let checkpoint = Checkpoint::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            load_all(&checkpoint).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            bitnet_model::text::Tokenizer::load(checkpoint.tokenizer_files()).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
    }

    #[test]
    fn models_as_they_are_load_whole() {
        for (index, model) in MODELS.iter().enumerate() {
            let folder = write(&[("config.json", model.config), ("model.safetensors", model.tensors)]);
            let checkpoint = Checkpoint::open(&folder).unwrap_or_else(|error| panic!("model {index}: {error}"));
            load_all(&checkpoint).unwrap_or_else(|error| panic!("model {index}: {error}"));
        }
        std::fs::remove_dir_all(scratch()).expect("removable");
    }
}
