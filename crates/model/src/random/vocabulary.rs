//! A made-up vocabulary for random models: a token for each byte, then words, so that every text has tokens, every token has text of
//! its own, and none ends it.

use serde_json::{Map, Value, json};

use crate::text::{TextError, Tokenizer};

const N_BYTES: u32 = 256;

/// A tokenizer of `n_vocab` tokens, at least 256.
///
/// # Errors
/// A vocabulary beyond the limits of any tokenizer.
pub fn vocabulary(n_vocab: u32) -> Result<Tokenizer, TextError> {
    byte_level(n_vocab, json!([]))
}

/// A token for each byte and one, number 256, that ends a text: what a simulated model writes in tests.
///
/// # Errors
/// None that is known.
pub fn bytes_and_end() -> Result<Tokenizer, TextError> {
    byte_level(N_BYTES, json!([{ "id": N_BYTES, "content": "<|end|>", "special": true }]))
}

fn byte_level(n_vocab: u32, added_tokens: Value) -> Result<Tokenizer, TextError> {
    let bytes = (0..=u8::MAX).map(|byte| (letter(byte).to_string(), u32::from(byte).into()));
    let words = (N_BYTES..n_vocab).map(|id| (word(id), id.into()));
    let vocabulary: Map<String, Value> = bytes.chain(words).collect();
    let level = json!({ "type": "ByteLevel", "add_prefix_space": false, "use_regex": false, "trim_offsets": false });
    let file = json!({
        "model": { "type": "BPE", "vocab": vocabulary, "merges": [] },
        "pre_tokenizer": level,
        "decoder": level,
        "added_tokens": added_tokens,
    });
    Tokenizer::from_json(file.to_string().as_bytes())
}

/// How the byte-level alphabet writes a byte (openai/gpt-2 `encoder.py`, `bytes_to_unicode`): printable ones as themselves, the others
/// in their order from U+0100.
fn letter(byte: u8) -> char {
    let is_plain = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let n_before = (0..byte).filter(|&other| !is_plain(other)).count() as u32;
    if is_plain(byte) { char::from(byte) } else { char::from_u32(0x100 + n_before).unwrap_or(char::REPLACEMENT_CHARACTER) }
}

/// A space and a number in letters.
fn word(mut id: u32) -> String {
    let mut word = String::from(letter(b' '));
    while id > 0 {
        word.push(char::from(b'a' + (id % 26) as u8));
        id /= 26;
    }
    word
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TokenId;
    use crate::text::{AddSpecial, SpecialTokens};

    #[test]
    fn every_token_has_text_and_every_text_tokens() {
        let tokenizer = vocabulary(1000).expect("a valid tokenizer");
        assert_eq!(tokenizer.n_vocab(), 1000);
        assert!((0..1000).all(|id| tokenizer.token_bytes(TokenId(id)).is_some_and(|bytes| !bytes.is_empty())));
        let ids = tokenizer.encode("a ü", AddSpecial::Yes).expect("text");
        assert_eq!(ids.iter().map(|id| id.0).collect::<Vec<_>>(), [97, 32, 0xC3, 0xBC]);
        assert_eq!(tokenizer.decode(&[TokenId(999)], SpecialTokens::Skip), " lmb");
    }
}
