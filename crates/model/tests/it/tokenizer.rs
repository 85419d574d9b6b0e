//! The tokenizer on the tales model: golden prompts, round trips, streaming.

use bitnet_checkpoint::{GgufVocabulary, TokenizerFiles, Vocabulary};
use bitnet_model::TokenId;
use bitnet_model::text::{AddSpecial, Detokenizer, SpecialTokens, TextError, Tokenizer};
use proptest::prelude::*;
use serde_json::Value;

use crate::{TALES, fixture, tales_files};

fn ids(value: &Value) -> Vec<TokenId> {
    value.as_array().unwrap().iter().map(|id| TokenId(id.as_u64().unwrap() as u32)).collect()
}

#[test]
fn golden_prompts_encode_and_their_continuations_decode() {
    let golden: Value = serde_json::from_slice(&fixture("golden.json")).unwrap();
    let prompts = golden["prompts"].as_array().unwrap();
    assert_eq!(prompts.len(), 5);
    for prompt in prompts {
        let text = prompt["prompt"].as_str().unwrap();
        assert_eq!(TALES.encode(text, AddSpecial::Yes).unwrap(), ids(&prompt["ids"]), "{text}");
        assert_eq!(TALES.decode(&ids(&prompt["greedy_48"]), SpecialTokens::Keep), prompt["greedy_text"].as_str().unwrap());
    }
}

#[test]
fn special_tokens_are_known_and_not_added_twice() {
    assert_eq!(TALES.n_vocab(), 8192);
    assert_eq!(TALES.bos(), Some(TokenId(0)));
    assert_eq!(TALES.eos(), [TokenId(1), TokenId(2)]);
    assert_eq!(TALES.special_token("<|eot_id|>"), Some(TokenId(2)));
    assert!(TALES.is_special(TokenId(2)) && !TALES.is_special(TokenId(300)));
    let prompt = "<|begin_of_text|>User: hi<|eot_id|>Assistant:";
    let tokens = TALES.encode_chat(prompt).unwrap();
    assert_eq!(tokens.iter().filter(|token| **token == TokenId(0)).count(), 1);
    assert_eq!(TALES.decode(&tokens, SpecialTokens::Keep), prompt);
    assert_eq!(TALES.decode(&tokens, SpecialTokens::Skip), "User: hiAssistant:");
}

#[test]
fn tokens_outside_the_vocabulary_have_no_bytes_and_no_text() {
    assert_eq!(TALES.token_bytes(TokenId(8192)), None);
    assert_eq!(TALES.piece(TokenId(u32::MAX)), None);
    assert_eq!(TALES.decode(&[TokenId(u32::MAX)], SpecialTokens::Keep), "");
    assert_eq!(TALES.token_bytes(TokenId(639)), Some(&b" old"[..]));
}

#[test]
fn checkpoint_without_a_tokenizer_is_an_error() {
    let files = TokenizerFiles { vocabulary: Vocabulary::Absent, ..tales_files() };
    assert!(matches!(Tokenizer::load(&files), Err(TextError::NoTokenizer)));
}

#[test]
fn text_beyond_the_bound_is_an_error() {
    let text = " ".repeat(bitnet_model::limits::TEXT_BYTES_MAX + 1);
    assert!(matches!(TALES.encode(&text, AddSpecial::No), Err(TextError::TextTooLong { .. })));
}

#[test]
fn emoji_of_several_tokens_appears_whole() {
    let tokens = TALES.encode("a😀é", AddSpecial::No).unwrap();
    let mut detokenizer = Detokenizer::new(&*TALES, SpecialTokens::Keep);
    let pieces: Vec<String> = tokens.iter().map(|&token| detokenizer.push(token).to_string()).filter(|piece| !piece.is_empty()).collect();
    assert_eq!(pieces.concat(), "a😀é");
    assert!(pieces.iter().any(|piece| piece.starts_with('😀')));
    let emoji = TALES.encode("😀", AddSpecial::No).unwrap();
    assert!(emoji.len() > 1);
    let mut cut = Detokenizer::new(&*TALES, SpecialTokens::Keep);
    assert_eq!(cut.push(emoji[0]), "");
    assert_eq!(cut.finish(), "\u{FFFD}");
    assert_eq!(cut.finish(), "");
}

/// SentencePiece: unk, bos, eos, bytes, pieces.
pub(crate) fn sentencepiece() -> GgufVocabulary {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).to_vec();
    tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    let pieces =
        ["▁t", "he", "▁the", "in", "▁a", "re", "on", "▁th", "er", "▁", "e", "t", "a", "o", "n", "i", "s", "r", "h", "d", "l", "▁▁"];
    tokens.extend(pieces.map(String::from));
    let scores = (0..tokens.len()).map(|id| if id < 259 { 0.0 } else { 259.0 - id as f32 }).collect();
    let token_types = [vec![2, 3, 3], vec![6; 256], vec![1; pieces.len()]].concat();
    GgufVocabulary { model: "llama".into(), tokens, scores, token_types, ..GgufVocabulary::default() }
}

#[test]
fn sentencepiece_vocabulary_encodes_and_decodes() {
    let files = TokenizerFiles { vocabulary: Vocabulary::Gguf(sentencepiece()), ..tales_files() };
    let tokenizer = Tokenizer::load(&files).unwrap();
    let tokens = tokenizer.encode("the inn é", AddSpecial::Yes).unwrap();
    assert_eq!(tokens[0], TokenId(1));
    assert_eq!(tokenizer.piece(tokens[1]), Some("▁the"));
    assert_eq!(tokenizer.piece(*tokens.last().unwrap()), Some("<0xA9>"));
    assert_eq!(tokenizer.decode(&tokens, SpecialTokens::Skip), "the inn é");
    let mut continued = Detokenizer::after_prompt(&tokenizer, SpecialTokens::Skip);
    assert_eq!(continued.push(tokens[1]), " the");
}

proptest! {
    #[test]
    fn decode_of_encode_is_the_text(text in "(\\PC|[ \\n\\t]){0,80}") {
        let tokens = TALES.encode(&text, AddSpecial::No).unwrap();
        prop_assert_eq!(TALES.decode(&tokens, SpecialTokens::Keep), text);
    }

    #[test]
    fn streamed_text_of_any_tokens_equals_their_bytes(ids in prop::collection::vec(0u32..8192, 0..60)) {
        let tokens: Vec<TokenId> = ids.into_iter().map(TokenId).collect();
        let bytes: Vec<u8> = tokens.iter().flat_map(|&token| TALES.token_bytes(token).unwrap().to_vec()).collect();
        let mut detokenizer = Detokenizer::new(&*TALES, SpecialTokens::Keep);
        let mut text: String = tokens.iter().map(|&token| detokenizer.push(token).to_string()).collect();
        text.push_str(detokenizer.finish());
        prop_assert_eq!(text, String::from_utf8_lossy(&bytes).into_owned());
    }
}
