//! Integration tests of crate `model` that need files or outside oracles.

mod chat_template;
mod tokenizer;
mod tokenizer_oracle;
mod tokenizer_untrusted;

use std::path::PathBuf;
use std::sync::LazyLock;

use bitnet_checkpoint::{GenerationDefaults, TokenizerFiles, Vocabulary};
use bitnet_model::text::Tokenizer;

fn fixture(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/tales-42m").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn tales_files() -> TokenizerFiles {
    let config: serde_json::Value = serde_json::from_slice(&fixture("tokenizer_config.json")).unwrap();
    let text = |key: &str| config[key].as_str().map(str::to_string);
    TokenizerFiles {
        vocabulary: Vocabulary::Json(fixture("tokenizer.json")),
        chat_template: text("chat_template"),
        bos_token: text("bos_token"),
        eos_token: text("eos_token"),
        bos_token_id: Some(0),
        generation: GenerationDefaults { eos_token_ids: vec![1, 2], ..GenerationDefaults::default() },
        ..TokenizerFiles::default()
    }
}

static TALES: LazyLock<Tokenizer> = LazyLock::new(|| Tokenizer::load(&tales_files()).unwrap());
