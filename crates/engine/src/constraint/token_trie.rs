//! Our tokenizer as llguidance sees one: the bytes of every token in a trie, special tokens apart, so that free text never contains
//! a control token.

use std::sync::Arc;

use bitnet_model::TokenId;
use bitnet_model::text::{AddSpecial, Tokenizer};
use toktrie::{TokEnv, TokRxInfo, TokTrie, TokenizerEnv};

struct TokenTrie {
    trie: TokTrie,
    tokenizer: Arc<Tokenizer>,
}

/// The trie of a vocabulary, with the tokens that end a text.
pub(super) fn token_trie(tokenizer: &Arc<Tokenizer>, eos: &[TokenId]) -> TokEnv {
    let n_vocab = tokenizer.n_vocab() as u32;
    // A token that ends a text is no part of one, even where the vocabulary does not call it special.
    let word = |id| if eos.contains(&TokenId(id)) { special_word(tokenizer, TokenId(id)) } else { word(tokenizer, TokenId(id)) };
    let mut words: Vec<Vec<u8>> = (0..n_vocab).map(word).collect();
    let mut eos_ids: Vec<u32> = eos.iter().map(|token_id| token_id.0).filter(|&id| id < n_vocab).collect();
    if eos_ids.is_empty() {
        // The trie wants one. Nothing can draw this id, so such a text ends only where its constraint leaves no other way.
        words.push(special_bytes("<|end|>"));
        eos_ids.push(n_vocab);
    }
    let info = TokRxInfo::new(words.len() as u32, eos_ids[0]);
    let trie = TokTrie::from(&info, &words).with_eos_tokens(&eos_ids);
    Arc::new(TokenTrie { trie, tokenizer: Arc::clone(tokenizer) })
}

fn special_bytes(text: &str) -> Vec<u8> {
    [&[TokTrie::SPECIAL_TOKEN_MARKER], text.as_bytes()].concat()
}

fn special_word(tokenizer: &Tokenizer, token_id: TokenId) -> Vec<u8> {
    special_bytes(tokenizer.piece(token_id).unwrap_or_default())
}

fn word(tokenizer: &Tokenizer, token_id: TokenId) -> Vec<u8> {
    if tokenizer.is_special(token_id) {
        return special_word(tokenizer, token_id);
    }
    let bytes = tokenizer.token_bytes(token_id).unwrap_or_default();
    // The marker is a byte that no text contains; a token that begins with it cannot be part of a text.
    if bytes.first() == Some(&TokTrie::SPECIAL_TOKEN_MARKER) { Vec::new() } else { bytes.to_vec() }
}

impl TokenizerEnv for TokenTrie {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        let encoded = std::str::from_utf8(bytes).ok().and_then(|text| self.tokenizer.encode(text, AddSpecial::No).ok());
        match encoded {
            Some(tokens) => tokens.into_iter().map(|token_id| token_id.0).collect(),
            None => self.trie.greedy_tokenize(bytes),
        }
    }

    /// Tokens are drawn, not forced: how a text would be encoded does not matter.
    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}
