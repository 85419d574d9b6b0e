//! Fuzz target: `tokenizer.json` and a text for it, separated by a zero byte. Accepted tokenizers must encode and decode without a
//! panic and in step with their detokeniser.
#![no_main]

use bitnet_fuzz::{text, within_budget};
use bitnet_model::text::Tokenizer;
use libfuzzer_sys::fuzz_target;

/// A compiled pattern may take its own bound, whatever the length of its source.
const BYTES_PER_INPUT_BYTE: usize = 1 << 16;

fuzz_target!(|input: &[u8]| {
    let split = input.iter().position(|&byte| byte == 0).unwrap_or(input.len());
    let (json, rest) = input.split_at(split);
    within_budget(input, BYTES_PER_INPUT_BYTE, || {
        if let Ok(tokenizer) = Tokenizer::from_json(json) {
            text::exercise(&tokenizer, &String::from_utf8_lossy(rest));
        }
    });
});
