//! Added tokens: the special and user-defined tokens that are found in the text before it is split into words, so that
//! `<|eot_id|>` is one token wherever it stands. Semantics (leftmost-longest, `lstrip`, `rstrip`, `single_word`, first the
//! tokens that match raw text and then those that match normalized text) as in huggingface/tokenizers `added_vocabulary.rs`.

use std::ops::Range;

use aho_corasick::{AhoCorasick, MatchKind};

use crate::TokenId;
use crate::limits;
use crate::text::TextError;
use crate::text::normalizer::Normalizer;

/// An added token, as the file describes it.
#[derive(Debug, Clone)]
pub(super) struct AddedToken {
    pub(super) token: TokenId,
    pub(super) content: String,
    pub(super) single_word: bool,
    pub(super) left_strip: bool,
    pub(super) right_strip: bool,
    pub(super) normalized: bool,
    pub(super) special: bool,
}

/// A piece of text: an added token, or text between added tokens.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Piece {
    Token(TokenId),
    Text(Range<usize>),
}

/// The automata that find added tokens.
pub(super) struct AddedTokens {
    raw: Finder,
    normalized: Finder,
}

struct Finder {
    automaton: Option<AhoCorasick>,
    tokens: Vec<AddedToken>,
}

impl AddedTokens {
    /// Compiles the automata. A token without text is never found.
    pub(super) fn new(tokens: &[AddedToken], normalizer: &Normalizer) -> Result<Self, TextError> {
        let n_bytes: usize = tokens.iter().map(|token| token.content.len()).sum();
        if tokens.len() > limits::N_ADDED_TOKENS_MAX || n_bytes > limits::ADDED_TOKENS_BYTES_MAX {
            return Err(TextError::malformed("added_tokens", format!("{} tokens of {n_bytes} bytes", tokens.len())));
        }
        let (normalized, raw): (Vec<_>, Vec<_>) =
            tokens.iter().filter(|token| !token.content.is_empty()).cloned().partition(|token| token.normalized);
        let contents =
            normalized.iter().map(|token| Ok(normalizer.apply(&token.content)?.into_owned())).collect::<Result<Vec<_>, TextError>>()?;
        Ok(Self { raw: Finder::new(raw, None)?, normalized: Finder::new(normalized, Some(contents))? })
    }

    /// Cuts raw text.
    pub(super) fn cut_raw(&self, text: &str) -> Vec<Piece> {
        self.raw.cut(text)
    }

    /// Cuts normalized text.
    pub(super) fn cut_normalized(&self, text: &str) -> Vec<Piece> {
        self.normalized.cut(text)
    }
}

impl Finder {
    fn new(tokens: Vec<AddedToken>, contents: Option<Vec<String>>) -> Result<Self, TextError> {
        let contents = contents.unwrap_or_else(|| tokens.iter().map(|token| token.content.clone()).collect());
        if tokens.is_empty() {
            return Ok(Self { automaton: None, tokens });
        }
        if contents.iter().any(String::is_empty) {
            return Err(TextError::malformed("added_tokens", "a token is empty once normalized"));
        }
        let automaton = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&contents);
        let automaton = automaton.map_err(|error| TextError::malformed("added_tokens", error.to_string()))?;
        Ok(Self { automaton: Some(automaton), tokens })
    }

    fn cut(&self, text: &str) -> Vec<Piece> {
        let mut pieces = vec![];
        let mut done = 0;
        let matches = self.automaton.iter().flat_map(|automaton| automaton.find_iter(text));
        for found in matches {
            let token = &self.tokens[found.pattern().as_usize()];
            let (mut start, mut end) = (found.start(), found.end());
            // An earlier token's `rstrip` may already have taken this one's first characters, if they are whitespace.
            if start < done || (token.single_word && !stands_alone(text, start..end)) {
                continue;
            }
            if token.left_strip {
                start = done + text[done..start].trim_end().len();
            }
            if token.right_strip {
                end = text.len() - text[end..].trim_start().len();
            }
            if start > done {
                pieces.push(Piece::Text(done..start));
            }
            pieces.push(Piece::Token(token.token));
            done = end;
        }
        if done < text.len() {
            pieces.push(Piece::Text(done..text.len()));
        }
        pieces
    }
}

/// Neither neighbour is a word character.
fn stands_alone(text: &str, range: Range<usize>) -> bool {
    let is_word = |character: char| character.is_alphanumeric() || character == '_';
    !text[..range.start].chars().next_back().is_some_and(is_word) && !text[range.end..].chars().next().is_some_and(is_word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(id: u32, content: &str) -> AddedToken {
        AddedToken {
            token: TokenId(id),
            content: content.into(),
            single_word: false,
            left_strip: false,
            right_strip: false,
            normalized: false,
            special: true,
        }
    }

    fn cut(tokens: &[AddedToken], text: &str) -> Vec<Piece> {
        AddedTokens::new(tokens, &Normalizer::new(None).unwrap()).unwrap().cut_raw(text)
    }

    #[test]
    fn added_tokens_are_cut_out_longest_first() {
        let pieces = cut(&[token(1, "<|a|>"), token(2, "<|a|><|b|>")], "x<|a|><|b|><|a|>");
        assert_eq!(pieces, [Piece::Text(0..1), Piece::Token(TokenId(2)), Piece::Token(TokenId(1))]);
    }

    #[test]
    fn added_token_with_strips_takes_the_whitespace_around() {
        let both = AddedToken { left_strip: true, right_strip: true, ..token(1, "<m>") };
        assert_eq!(
            cut(&[both], "a \n<m>  <m> b"),
            [Piece::Text(0..1), Piece::Token(TokenId(1)), Piece::Token(TokenId(1)), Piece::Text(12..13)]
        );
        let blank = AddedToken { ..token(2, "  ") };
        let right = AddedToken { right_strip: true, ..token(1, "<m>") };
        assert_eq!(cut(&[right, blank], "<m>   b"), [Piece::Token(TokenId(1)), Piece::Text(6..7)]);
    }

    #[test]
    fn added_token_of_a_single_word_ignores_parts_of_words() {
        let word = AddedToken { single_word: true, ..token(1, "cat") };
        assert_eq!(cut(&[word], "cat concat"), [Piece::Token(TokenId(1)), Piece::Text(3..10)]);
    }

    #[test]
    fn added_tokens_beyond_the_bounds_are_refused() {
        let large = vec![token(1, &"x".repeat(1 << 19)), token(2, &"y".repeat(1 << 19)), token(3, "z")];
        assert!(AddedTokens::new(&large, &Normalizer::new(None).unwrap()).is_err());
    }
}
