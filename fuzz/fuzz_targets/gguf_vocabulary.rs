//! Fuzz target: a vocabulary as GGUF metadata carries it, and a text. Four parts separated by zero bytes: settings, tokens one a
//! line, merges one a line, text. Reading the metadata itself is fuzzed in `gguf`.
#![no_main]

use bitnet_checkpoint::{GgufVocabulary, TokenizerFiles, Vocabulary};
use bitnet_fuzz::{Reader, text, within_budget};
use bitnet_model::text::Tokenizer;
use libfuzzer_sys::fuzz_target;

const PRE_TOKENIZERS: [&str; 6] = ["llama-bpe", "qwen2", "gpt-2", "default", "falcon_e", "unheard-of"];
/// A compiled pattern may take its own bound, whatever the length of its source.
const BYTES_PER_INPUT_BYTE: usize = 1 << 16;

fuzz_target!(|input: &[u8]| {
    let mut parts = input.splitn(4, |&byte| byte == 0);
    let mut part = || parts.next().unwrap_or_default();
    let (settings, tokens, merges, prompt) = (part(), part(), part(), part());
    let lines = |part: &[u8]| -> Vec<String> { String::from_utf8_lossy(part).split('\n').map(str::to_string).collect() };
    let tokens = lines(tokens);
    let mut reader = Reader::new(settings);
    let id = |reader: &mut Reader<'_>| Some(u32::from(reader.byte())).filter(|&id| id < 250);
    let is_sentence_piece = reader.byte() % 2 == 1;
    let pre = PRE_TOKENIZERS.get(usize::from(reader.byte())).map(|name| name.to_string());
    let flags = reader.byte();
    let flag = |bit: u8| (flags & (16 << bit) != 0).then_some(flags & (1 << bit) != 0);
    let vocabulary = GgufVocabulary {
        model: if is_sentence_piece { "llama" } else { "gpt2" }.into(),
        pre,
        scores: if is_sentence_piece { (0..tokens.len()).map(|rank| -(rank as f32)).collect() } else { vec![] },
        add_bos: flag(0),
        add_eos: flag(1),
        add_space_prefix: flag(2),
        bos_token_id: id(&mut reader),
        eos_token_id: id(&mut reader),
        unknown_token_id: id(&mut reader),
        padding_token_id: id(&mut reader),
        // What is left of the settings are token types; tokens without one are normal.
        token_types: (0..tokens.len()).map(|index| reader.rest().get(index).map_or(1, |&byte| i32::from(byte % 8))).collect(),
        merges: if is_sentence_piece { vec![] } else { lines(merges) },
        tokens,
    };
    let files = TokenizerFiles { vocabulary: Vocabulary::Gguf(vocabulary), ..TokenizerFiles::default() };
    within_budget(input, BYTES_PER_INPUT_BYTE, || {
        if let Ok(tokenizer) = Tokenizer::load(&files) {
            text::exercise(&tokenizer, &String::from_utf8_lossy(prompt));
        }
    });
});
