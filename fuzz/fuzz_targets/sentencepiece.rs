//! Fuzz target: a `tokenizer.model` and a text for it, separated by four zero bytes. What is read must be refused or run as a tokenizer
//! without a panic.
#![no_main]

use bitnet_checkpoint::{TokenizerFiles, Vocabulary, sentencepiece};
use bitnet_fuzz::{text, within_budget};
use bitnet_model::text::Tokenizer;
use libfuzzer_sys::fuzz_target;

/// A token of one byte takes its entries in a dozen tables.
const BYTES_PER_INPUT_BYTE: usize = 1 << 16;

fuzz_target!(|input: &[u8]| {
    let split = input.windows(4).position(|bytes| bytes == [0; 4]).unwrap_or(input.len());
    let (model, rest) = input.split_at(split);
    within_budget(input, BYTES_PER_INPUT_BYTE, || {
        let Ok(vocabulary) = sentencepiece::read(model) else { return };
        let files = TokenizerFiles { vocabulary: Vocabulary::Gguf(vocabulary), ..TokenizerFiles::default() };
        if let Ok(tokenizer) = Tokenizer::load(&files) {
            text::exercise(&tokenizer, &String::from_utf8_lossy(rest));
        }
    });
});
