//! The tokenizer: text into token ids and ids into bytes, as huggingface/tokenizers does it for byte-pair vocabularies. Text is cut
//! at added tokens, normalized, split into words, and each word is merged; there are no offsets, pairs, padding or truncation.
//!
//! Encoding is linear in the text but for the logarithm inside very long words. There is no `catch_unwind`: nothing here may panic
//! on any file or text, and the tests hold it to that.

use std::borrow::Cow;

use bitnet_checkpoint::{GgufVocabulary, TokenizerFiles, Vocabulary as StoredVocabulary, tokenizer_json};

use crate::TokenId;
use crate::limits;
use crate::text::TextError;
use crate::text::added_tokens::{AddedToken, AddedTokens, Piece};
use crate::text::byte_level;
use crate::text::decoder::{ArtificialSpaces, Decoder};
use crate::text::detokenizer::{Detokenizer, SpecialTokens};
use crate::text::merges::{MergeScratch, Merges};
use crate::text::normalizer::Normalizer;
use crate::text::post_processor::Surroundings;
use crate::text::pre_tokenizer::{Place, PreTokenizer, Word};
use crate::text::split_pattern::Steps;
use crate::text::tokenizer_file::{self, AddedTokenEntry, Components, MergeEntry, ModelEntry};
use crate::text::vocabulary::Vocabulary;

/// Whether to put the model's own tokens (usually the beginning of sequence) around a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddSpecial {
    /// As the model expects of a bare text.
    Yes,
    /// Only what the text says: for prompts from a chat template, which writes those tokens itself.
    No,
}

/// A model's tokenizer. Shared by all requests; nothing in it changes.
pub struct Tokenizer {
    normalizer: Normalizer,
    pre_tokenizer: PreTokenizer,
    added_tokens: AddedTokens,
    words: WordEncoder,
    surroundings: Surroundings,
    /// Bytes that each token decodes to, end to end.
    bytes: Vec<u8>,
    /// Where each token's bytes end.
    byte_ends: Vec<u32>,
    /// Sorted ids of special tokens.
    special: Vec<TokenId>,
    artificial_spaces: ArtificialSpaces,
    bos: Option<TokenId>,
    eos: Vec<TokenId>,
}

/// Words into tokens.
struct WordEncoder {
    vocabulary: Vocabulary,
    merges: Merges,
    /// A word that is a token needs no merging, even if no merges lead to it.
    ignore_merges: bool,
    byte_level: bool,
    /// Byte-level: the token of each byte. Otherwise: the `<0x..>` tokens, if characters fall back on bytes.
    byte_tokens: Option<Box<[u32; 256]>>,
    unknown: Option<u32>,
    fuse_unknown: bool,
}

/// Buffers of one encoding.
#[derive(Default)]
struct Scratch {
    encoded: String,
    symbols: Vec<u32>,
    merge: MergeScratch,
}

impl Tokenizer {
    /// Builds the tokenizer of a checkpoint.
    ///
    /// # Errors
    /// `NoTokenizer` if there is none, `Malformed`, `Unsupported` or `Checkpoint` if it cannot be run.
    pub fn load(files: &TokenizerFiles) -> Result<Self, TextError> {
        let mut tokenizer = match &files.vocabulary {
            StoredVocabulary::Absent => return Err(TextError::NoTokenizer),
            StoredVocabulary::Json(json) => Self::from_json(json)?,
            StoredVocabulary::Gguf(vocabulary) => Self::from_gguf(vocabulary)?,
        };
        let stored_bos = files.bos_token_id.map(TokenId).filter(|&token| tokenizer.token_bytes(token).is_some());
        tokenizer.bos = files.bos_token.as_deref().and_then(|text| tokenizer.special_token(text)).or(stored_bos);
        let named_eos = files.eos_token.as_deref().and_then(|text| tokenizer.special_token(text));
        tokenizer.eos = files.generation.eos_token_ids.iter().copied().map(TokenId).chain(named_eos).collect();
        tokenizer.eos.sort_unstable();
        tokenizer.eos.dedup();
        Ok(tokenizer)
    }

    /// Builds a tokenizer from the bytes of a `tokenizer.json`.
    pub fn from_json(json: &[u8]) -> Result<Self, TextError> {
        let file = tokenizer_file::parse(json)?;
        let components = file.components()?;
        Self::build(&file.added_tokens, &file.model, &components)
    }

    fn from_gguf(vocabulary: &GgufVocabulary) -> Result<Self, TextError> {
        let gguf = tokenizer_json::describe(vocabulary)?;
        let (added_tokens, model, components) = tokenizer_file::from_gguf(&gguf);
        Self::build(&added_tokens, &model, &components)
    }

    fn build(added_tokens: &[AddedTokenEntry<'_>], model: &ModelEntry<'_>, components: &Components) -> Result<Self, TextError> {
        let normalizer = Normalizer::new(components.normalizer.as_ref())?;
        let pre_tokenizer = PreTokenizer::new(components.pre_tokenizer.as_ref())?;
        let added: Vec<AddedToken> = added_tokens
            .iter()
            .map(|entry| AddedToken {
                token: TokenId(entry.id),
                content: entry.content.to_string(),
                single_word: entry.single_word,
                left_strip: entry.lstrip,
                right_strip: entry.rstrip,
                normalized: entry.normalized,
                special: entry.special,
            })
            .collect();
        let words = WordEncoder::new(model, &added, pre_tokenizer.byte_level)?;
        let decoder = Decoder::new(components.decoder.as_ref())?;
        let (bytes, byte_ends) = token_bytes(&words.vocabulary, &decoder)?;
        let surroundings = Surroundings::new(components.post_processor.as_ref())?;
        if let Some(&token) = surroundings.before.iter().chain(&surroundings.after).find(|token| words.vocabulary.text(token.0).is_none()) {
            return Err(TextError::UnknownToken { token, n_vocab: words.vocabulary.n_ids() });
        }
        let mut special: Vec<TokenId> = added.iter().filter(|token| token.special).map(|token| token.token).collect();
        special.sort_unstable();
        let added_tokens = AddedTokens::new(&added, &normalizer)?;
        let artificial_spaces = decoder.artificial_spaces;
        let (bos, eos) = (None, vec![]);
        Ok(Self { normalizer, pre_tokenizer, added_tokens, words, surroundings, bytes, byte_ends, special, artificial_spaces, bos, eos })
    }

    /// Token ids of a text. Special tokens written out in the text are recognised.
    ///
    /// # Errors
    /// `TextTooLong`, `PatternTooSlow`, `NoTokenFor`.
    pub fn encode(&self, text: &str, add_special: AddSpecial) -> Result<Vec<TokenId>, TextError> {
        if text.len() > limits::TEXT_BYTES_MAX {
            return Err(TextError::TextTooLong { got: text.len(), limit: limits::TEXT_BYTES_MAX });
        }
        let mut tokens = Vec::with_capacity(text.len() / 3 + 8);
        let mut scratch = Scratch::default();
        let mut steps = Steps::for_text(text.len());
        if add_special == AddSpecial::Yes {
            tokens.extend(&self.surroundings.before);
        }
        for piece in self.added_tokens.cut_raw(text) {
            match piece {
                Piece::Token(token) => tokens.push(token),
                Piece::Text(range) => {
                    let place = if range.start == 0 { Place::Start } else { Place::Later };
                    self.encode_piece(&text[range], place, (&mut steps, &mut scratch), &mut tokens)?;
                }
            }
        }
        if add_special == AddSpecial::Yes {
            tokens.extend(&self.surroundings.after);
        }
        Ok(tokens)
    }

    /// Token ids of a prompt that a chat template wrote: its special tokens are in the text, so none are added.
    pub fn encode_chat(&self, prompt: &str) -> Result<Vec<TokenId>, TextError> {
        self.encode(prompt, AddSpecial::No)
    }

    fn encode_piece(
        &self,
        text: &str,
        place: Place,
        buffers: (&mut Steps, &mut Scratch),
        tokens: &mut Vec<TokenId>,
    ) -> Result<(), TextError> {
        let (steps, scratch) = buffers;
        let normalized = self.normalizer.apply(text)?;
        for piece in self.added_tokens.cut_normalized(&normalized) {
            match piece {
                Piece::Token(token) => tokens.push(token),
                Piece::Text(range) => {
                    let place = if range.start == 0 { place } else { Place::Later };
                    let mut encode_word = |word: Word<'_>| self.words.encode(word, scratch, tokens);
                    self.pre_tokenizer.words(&normalized[range], place, steps, &mut encode_word)?;
                }
            }
        }
        Ok(())
    }

    /// One more than the largest token id. Models may have more rows of logits than this.
    pub fn n_vocab(&self) -> usize {
        self.words.vocabulary.n_ids()
    }

    /// Bytes that a token decodes to; nothing for an id that no token holds.
    pub fn token_bytes(&self, token: TokenId) -> Option<&[u8]> {
        self.words.vocabulary.text(token.0)?;
        let start = token.index().checked_sub(1).and_then(|before| self.byte_ends.get(before)).map_or(0, |&end| end as usize);
        self.bytes.get(start..*self.byte_ends.get(token.index())? as usize)
    }

    /// A token as the vocabulary file writes it, such as `Ġonce`.
    pub fn piece(&self, token: TokenId) -> Option<&str> {
        self.words.vocabulary.text(token.0)
    }

    /// Text of a sequence of tokens; bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, tokens: &[TokenId], special: SpecialTokens) -> String {
        let mut detokenizer = Detokenizer::new(self, special);
        let mut text = String::new();
        for &token in tokens {
            text.push_str(detokenizer.push(token));
        }
        text.push_str(detokenizer.finish());
        text
    }

    /// The beginning-of-sequence token.
    pub fn bos(&self) -> Option<TokenId> {
        self.bos
    }

    /// Tokens that end a generation, by id.
    pub fn eos(&self) -> &[TokenId] {
        &self.eos
    }

    /// Whether a token is a control token rather than text.
    pub fn is_special(&self, token: TokenId) -> bool {
        self.special.binary_search(&token).is_ok()
    }

    /// The token with exactly this text, such as `<|eot_id|>`.
    pub fn special_token(&self, text: &str) -> Option<TokenId> {
        self.words.vocabulary.id(text).map(TokenId)
    }

    /// Which spaces at the start of a decoded text were put there by encoding.
    pub(super) fn artificial_spaces(&self) -> ArtificialSpaces {
        self.artificial_spaces
    }
}

fn token_bytes(vocabulary: &Vocabulary, decoder: &Decoder) -> Result<(Vec<u8>, Vec<u32>), TextError> {
    let (mut bytes, mut ends) = (vec![], Vec::with_capacity(vocabulary.n_ids()));
    for id in 0..vocabulary.n_ids() as u32 {
        decoder.push_bytes(vocabulary.text(id).unwrap_or_default(), &mut bytes);
        ends.push(u32::try_from(bytes.len()).map_err(|_| TextError::malformed("decoder", "more than 4 GiB of token bytes"))?);
    }
    Ok((bytes, ends))
}

impl WordEncoder {
    fn new(model: &ModelEntry<'_>, added: &[AddedToken], byte_level: bool) -> Result<Self, TextError> {
        let has_text = |text: &Option<Cow<'_, str>>| text.as_ref().is_some_and(|text| !text.is_empty());
        if has_text(&model.continuing_subword_prefix) || has_text(&model.end_of_word_suffix) {
            return Err(TextError::unsupported("model", "continuing_subword_prefix or end_of_word_suffix"));
        }
        if model.dropout.is_some_and(|dropout| dropout != 0.0) {
            return Err(TextError::unsupported("model.dropout", "merging would be random"));
        }
        let model_tokens = model.vocab.0.iter().map(|(text, id)| (text.as_ref(), *id));
        let added_tokens = added.iter().filter(|token| !token.content.is_empty()).map(|token| (token.content.as_str(), token.token.0));
        let vocabulary = Vocabulary::new(model_tokens, added_tokens)?;
        let merges = ranked_merges(&vocabulary, &model.merges)?;
        let unknown = match model.unk_token.as_deref() {
            Some(text) => Some(
                vocabulary.id(text).ok_or_else(|| TextError::malformed("model.unk_token", format!("{text:?} is not in the vocabulary")))?,
            ),
            None => None,
        };
        let byte_tokens = if byte_level {
            byte_tokens(&vocabulary, |byte| byte_level::CHARACTERS[usize::from(byte)].to_string())
        } else if model.byte_fallback == Some(true) {
            byte_tokens(&vocabulary, |byte| format!("<0x{byte:02X}>"))
        } else {
            None
        };
        if byte_tokens.is_none() && unknown.is_none() && (byte_level || model.byte_fallback == Some(true)) {
            return Err(TextError::malformed("model.vocab", "some bytes have no token, and there is no unknown token"));
        }
        let (ignore_merges, fuse_unknown) = (model.ignore_merges == Some(true), model.fuse_unk == Some(true));
        Ok(Self { vocabulary, merges, ignore_merges, byte_level, byte_tokens, unknown, fuse_unknown })
    }

    fn encode(&self, word: Word<'_>, scratch: &mut Scratch, tokens: &mut Vec<TokenId>) -> Result<(), TextError> {
        let Scratch { encoded, symbols, merge } = scratch;
        let written = match word {
            Word::Plain(word) if self.byte_level && (self.ignore_merges || self.byte_tokens.is_none()) => {
                encoded.clear();
                byte_level::push_encoded(word, encoded);
                encoded.as_str()
            }
            Word::Plain(word) | Word::Encoded(word) => word,
        };
        if self.ignore_merges
            && let Some(id) = self.vocabulary.id(written)
        {
            tokens.push(TokenId(id));
            return Ok(());
        }
        symbols.clear();
        match (&self.byte_tokens, word) {
            (Some(byte_tokens), Word::Plain(word)) if self.byte_level => {
                symbols.extend(word.bytes().map(|byte| byte_tokens[usize::from(byte)]));
            }
            (Some(byte_tokens), Word::Encoded(word)) => {
                symbols.extend(word.chars().filter_map(byte_level::byte_of).map(|byte| byte_tokens[usize::from(byte)]));
            }
            _ => self.push_characters(written, symbols)?,
        }
        self.merges.apply(symbols, merge);
        tokens.extend(symbols.iter().copied().map(TokenId));
        Ok(())
    }

    /// One symbol for each character, or its bytes, or the unknown token.
    fn push_characters(&self, word: &str, symbols: &mut Vec<u32>) -> Result<(), TextError> {
        let mut after_unknown = false;
        for (start, character) in word.char_indices() {
            let text = &word[start..start + character.len_utf8()];
            let known = self.vocabulary.id(text);
            if let Some(id) = known {
                symbols.push(id);
            } else if let Some(byte_tokens) = &self.byte_tokens {
                symbols.extend(text.bytes().map(|byte| byte_tokens[usize::from(byte)]));
            } else {
                let unknown = self.unknown.ok_or(TextError::NoTokenFor { character })?;
                if !(after_unknown && self.fuse_unknown) {
                    symbols.push(unknown);
                }
                after_unknown = true;
                continue;
            }
            after_unknown = false;
        }
        Ok(())
    }
}

fn ranked_merges(vocabulary: &Vocabulary, entries: &[MergeEntry<'_>]) -> Result<Merges, TextError> {
    let mut merges = Merges::with_capacity(entries.len());
    let mut joined = String::new();
    let mut expected = 0;
    for (index, entries) in entries.chunks(MERGES_AT_ONCE).enumerate() {
        let lefts: [&str; MERGES_AT_ONCE] = std::array::from_fn(|index| entries.get(index).map_or("", |entry| &*entry.left));
        let rights: [&str; MERGES_AT_ONCE] = std::array::from_fn(|index| entries.get(index).map_or("", |entry| &*entry.right));
        let (lefts, rights) = (vocabulary.ids(lefts), vocabulary.ids(rights));
        for (within, ((MergeEntry { left, right }, left_id), right_id)) in entries.iter().zip(lefts).zip(rights).enumerate() {
            joined.clear();
            joined.push_str(left);
            joined.push_str(right);
            let known = |id: Option<u32>, text: &str| {
                let rank = index * MERGES_AT_ONCE + within;
                id.ok_or_else(|| TextError::malformed("model.merges", format!("merge {rank} names {text:?}, which is not a token")))
            };
            // Vocabularies list tokens in the order in which they were merged: looking at the next one saves most look-ups.
            let is_expected = vocabulary.text(expected) == Some(&joined);
            let merged = known(if is_expected { Some(expected) } else { vocabulary.id(&joined) }, &joined)?;
            merges.push(known(left_id, left)?, known(right_id, right)?, merged)?;
            expected = merged + 1;
        }
    }
    Ok(merges)
}

/// Merges whose tokens are looked up together.
const MERGES_AT_ONCE: usize = 16;

/// The token of each byte, if all 256 are there.
fn byte_tokens(vocabulary: &Vocabulary, text_of: impl Fn(u8) -> String) -> Option<Box<[u32; 256]>> {
    let mut tokens = Box::new([0u32; 256]);
    for byte in 0..=255u8 {
        tokens[usize::from(byte)] = vocabulary.id(&text_of(byte))?;
    }
    Some(tokens)
}
