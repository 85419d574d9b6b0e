//! The incremental detokeniser: text of a stream of tokens, as soon as it is whole characters. Each token costs its own bytes
//! only; nothing is decoded again, however long the stream.

use std::ops::Deref;

use crate::TokenId;
use crate::text::Tokenizer;
use crate::text::decoder::ArtificialSpaces;

/// What becomes of special tokens such as `<|eot_id|>` in decoded text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecialTokens {
    /// Written out.
    Keep,
    /// Left out.
    Skip,
}

/// Turns tokens into text one by one. `T` is `&Tokenizer` or `Arc<Tokenizer>`.
pub struct Detokenizer<T> {
    tokenizer: T,
    special: SpecialTokens,
    /// Bytes of a character whose rest is still to come: three at most once `push` returns.
    pending: Vec<u8>,
    /// What the last `push` completed.
    text: String,
    /// What is still to be dropped: `None` once there was text.
    artificial_spaces: ArtificialSpaces,
}

impl<T: Deref<Target = Tokenizer>> Detokenizer<T> {
    /// For tokens that are a whole text.
    pub fn new(tokenizer: T, special: SpecialTokens) -> Self {
        let artificial_spaces = tokenizer.artificial_spaces();
        Self { tokenizer, special, pending: vec![], text: String::new(), artificial_spaces }
    }

    /// For tokens that go on from a prompt: a space before the first word is then real.
    pub fn after_prompt(tokenizer: T, special: SpecialTokens) -> Self {
        Self { artificial_spaces: ArtificialSpaces::None, ..Self::new(tokenizer, special) }
    }

    /// Takes a token and gives the text that is now certain. An id that no token holds (models pad their vocabulary) has no text.
    pub fn push(&mut self, token: TokenId) -> &str {
        self.text.clear();
        if self.special == SpecialTokens::Skip && self.tokenizer.is_special(token) {
            return "";
        }
        let bytes = self.tokenizer.token_bytes(token).unwrap_or_default();
        if self.artificial_spaces == ArtificialSpaces::FirstToken && !bytes.is_empty() {
            self.artificial_spaces = ArtificialSpaces::None;
            // Only what stands for a space is dropped; a token with a space of its own (an added one) keeps it.
            let has_own = self.tokenizer.piece(token).is_some_and(|piece| piece.contains(' '));
            self.pending.extend(bytes.iter().filter(|&&byte| byte != b' ' || has_own));
        } else {
            self.pending.extend_from_slice(bytes);
        }
        let n_done = push_whole_characters(&self.pending, &mut self.text);
        self.pending.drain(..n_done);
        self.without_artificial_space()
    }

    /// Ends the stream: a character that was never completed becomes U+FFFD.
    pub fn finish(&mut self) -> &str {
        self.text.clear();
        if !self.pending.is_empty() {
            self.text.push(char::REPLACEMENT_CHARACTER);
            self.pending.clear();
        }
        &self.text
    }

    fn without_artificial_space(&mut self) -> &str {
        if self.artificial_spaces != ArtificialSpaces::One || self.text.is_empty() {
            return &self.text;
        }
        self.artificial_spaces = ArtificialSpaces::None;
        self.text.strip_prefix(' ').unwrap_or(&self.text)
    }
}

/// Appends the characters that `bytes` complete, U+FFFD for what cannot be one, and returns how many bytes that took.
fn push_whole_characters(bytes: &[u8], text: &mut String) -> usize {
    let mut done = 0;
    while let Err(error) = std::str::from_utf8(&bytes[done..]) {
        let valid_end = done + error.valid_up_to();
        text.push_str(&String::from_utf8_lossy(&bytes[done..valid_end]));
        let Some(n_wrong) = error.error_len() else { return valid_end };
        text.push(char::REPLACEMENT_CHARACTER);
        done = valid_end + n_wrong;
    }
    text.push_str(&String::from_utf8_lossy(&bytes[done..]));
    bytes.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn metaspace_of_the_first_token_is_dropped_and_of_later_ones_is_a_space() {
        let decoder = serde_json::json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
        let vocabulary = serde_json::json!({"▁▁▁hi": 0, "▁▁you": 1, "▁": 2});
        let file = serde_json::json!({"model": {"type": "BPE", "vocab": vocabulary, "merges": []}, "decoder": decoder});
        let tokenizer = Tokenizer::from_json(file.to_string().as_bytes()).expect("valid");
        let decode = |ids: &[u32]| tokenizer.decode(&ids.iter().copied().map(TokenId).collect::<Vec<_>>(), SpecialTokens::Keep);
        assert_eq!((decode(&[0, 1]).as_str(), decode(&[2, 0]).as_str()), ("hi  you", "   hi"));
    }

    proptest! {
        #[test]
        fn characters_in_chunks_equal_lossy_decoding_of_the_whole(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..5), 0..20)) {
            let (mut pending, mut text) = (vec![], String::new());
            for chunk in &chunks {
                pending.extend_from_slice(chunk);
                let n_done = push_whole_characters(&pending, &mut text);
                pending.drain(..n_done);
                prop_assert!(pending.len() <= 3);
            }
            text.push_str(&String::from_utf8_lossy(&pending));
            prop_assert_eq!(text, String::from_utf8_lossy(&chunks.concat()).into_owned());
        }
    }
}
