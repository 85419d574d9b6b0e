//! What `tokenizer.json` would say of a GGUF vocabulary, so that one tokenizer runs both: a GGUF file carries the tokens, merges and
//! scores but only the *name* of the pre-tokenizer, whose patterns every reader has to know. [`describe`] borrows from the metadata,
//! for a tokenizer that is to be run; [`from_gguf`] writes the file.
//!
//! Sources: names, patterns and defaults from ggml-org/llama.cpp:src/llama-vocab.cpp, in the form of the published
//! `tokenizer.json` files where the two differ in notation; SentencePiece as huggingface/transformers
//! `convert_slow_tokenizer.py` (`LlamaConverter`, `generate_merges`) converts it. Models of other kinds (WordPiece, Unigram, RWKV)
//! are refused.

mod merges;
mod patterns;

use std::collections::HashMap;

use serde::ser::Serializer;
use serde_json::{Value, json};

use crate::error::CheckpointError;
use crate::limits;
use crate::tokenizer_files::GgufVocabulary;
use patterns::PreTokenizer;

/// ggml token types that matter here.
mod token_type {
    pub(super) const NORMAL: i32 = 1;
    pub(super) const UNKNOWN: i32 = 2;
    pub(super) const CONTROL: i32 = 3;
    pub(super) const USER_DEFINED: i32 = 4;
    pub(super) const BYTE: i32 = 6;
}

/// SentencePiece's ids, for files that leave them out.
const SENTENCEPIECE_BOS: u32 = 1;
const SENTENCEPIECE_EOS: u32 = 2;

/// A tokenizer in the terms of `tokenizer.json`; serialises to that file.
#[derive(serde::Serialize)]
pub struct GgufTokenizer<'v> {
    version: &'static str,
    truncation: Option<()>,
    padding: Option<()>,
    pub added_tokens: Vec<GgufAddedToken<'v>>,
    pub normalizer: Value,
    pub pre_tokenizer: Value,
    pub post_processor: Value,
    pub decoder: Value,
    pub model: GgufBpe<'v>,
}

/// One of `added_tokens`.
#[derive(serde::Serialize)]
pub struct GgufAddedToken<'v> {
    pub id: u32,
    pub content: &'v str,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    normalized: bool,
    /// Control and unknown tokens are special; user-defined ones are found in text all the same but are text themselves.
    pub special: bool,
}

/// The `model` field: the large part of the file.
#[derive(serde::Serialize)]
pub struct GgufBpe<'v> {
    #[serde(rename = "type")]
    kind: &'static str,
    dropout: Option<f32>,
    pub unk_token: Option<&'v str>,
    continuing_subword_prefix: Option<&'v str>,
    end_of_word_suffix: Option<&'v str>,
    pub fuse_unk: bool,
    pub byte_fallback: bool,
    pub ignore_merges: bool,
    /// Token texts by id; an empty one is a hole.
    #[serde(serialize_with = "text_to_id")]
    pub vocab: &'v [String],
    /// Pairs, best first.
    pub merges: Vec<(&'v str, &'v str)>,
}

fn text_to_id<S: Serializer>(tokens: &[String], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(tokens.iter().enumerate().filter(|(_, token)| !token.is_empty()).map(|(id, token)| (token, id)))
}

/// Describes the tokenizer of a GGUF vocabulary. That tokens are unique, and that bytes and merges have tokens, is left to whoever
/// builds a tokenizer from it, who looks them up anyway.
///
/// # Errors
/// `Malformed` names the metadata key that is wrong, `Unsupported` a model or pre-tokenizer that we do not know.
pub fn describe(vocabulary: &GgufVocabulary) -> Result<GgufTokenizer<'_>, CheckpointError> {
    check_ranges(vocabulary)?;
    match vocabulary.model.as_str() {
        "gpt2" => byte_level(vocabulary),
        "llama" => sentencepiece(vocabulary),
        other => {
            let reason = format!("{other:?}; `gpt2` (byte-level BPE) and `llama` (SentencePiece BPE) are supported");
            Err(CheckpointError::Unsupported { feature: "tokenizer.ggml.model".into(), reason })
        }
    }
}

/// Builds the bytes of a complete `tokenizer.json`, all of it checked.
///
/// # Errors
/// Those of [`describe`]; `Malformed` also for tokens that appear twice, bytes without a token and merges of what is not a token.
pub fn from_gguf(vocabulary: &GgufVocabulary) -> Result<Vec<u8>, CheckpointError> {
    let file = describe(vocabulary)?;
    let ids = unique_ids(vocabulary)?;
    if vocabulary.model == "gpt2"
        && let Some(byte) = (0..=255u8).find(|&byte| !ids.contains_key(patterns::byte_character(byte).to_string().as_str()))
    {
        return Err(malformed("tokens", format!("no token for byte {byte:#04x}")));
    }
    merges::check(&file.model.merges, &ids)?;
    serde_json::to_vec(&file).map_err(|error| CheckpointError::CannotRepresent { format: "tokenizer.json", reason: error.to_string() })
}

type Ids<'v> = HashMap<&'v str, u32>;

fn malformed(key: &str, reason: String) -> CheckpointError {
    CheckpointError::malformed("GGUF", format!("tokenizer.ggml.{key}"), reason)
}

/// Checks lengths and the ids of special tokens.
fn check_ranges(vocabulary: &GgufVocabulary) -> Result<(), CheckpointError> {
    let n_tokens = vocabulary.tokens.len();
    if n_tokens == 0 || n_tokens > limits::N_VOCAB_MAX {
        return Err(malformed("tokens", format!("{n_tokens} tokens, not in 1..={}", limits::N_VOCAB_MAX)));
    }
    for (key, len) in [("scores", vocabulary.scores.len()), ("token_type", vocabulary.token_types.len())] {
        if len != 0 && len != n_tokens {
            return Err(malformed(key, format!("{len} entries for {n_tokens} tokens")));
        }
    }
    let special = [
        ("bos_token_id", vocabulary.bos_token_id),
        ("eos_token_id", vocabulary.eos_token_id),
        ("unknown_token_id", vocabulary.unknown_token_id),
        ("padding_token_id", vocabulary.padding_token_id),
    ];
    for (key, id) in special {
        if let Some(id) = id.filter(|&id| id as usize >= n_tokens) {
            return Err(malformed(key, format!("{id} is out of range for {n_tokens} tokens")));
        }
    }
    Ok(())
}

/// Tokens by text; none may be there twice. Empty tokens, which some files use for padding, are left out.
fn unique_ids(vocabulary: &GgufVocabulary) -> Result<Ids<'_>, CheckpointError> {
    let mut ids = HashMap::with_capacity(vocabulary.tokens.len());
    for (id, token) in vocabulary.tokens.iter().enumerate().filter(|(_, token)| !token.is_empty()) {
        if let Some(earlier) = ids.insert(token.as_str(), id as u32) {
            return Err(malformed("tokens", format!("token {token:?} is both {earlier} and {id}")));
        }
    }
    Ok(ids)
}

fn byte_level(vocabulary: &GgufVocabulary) -> Result<GgufTokenizer<'_>, CheckpointError> {
    let pre_tokenizer = PreTokenizer::named(vocabulary)?;
    let bos = vocabulary.bos_token_id;
    if vocabulary.add_bos == Some(true) && bos.is_none() {
        return Err(malformed("bos_token_id", "missing, although add_bos_token is set".into()));
    }
    let merges = merges::listed(vocabulary)?;
    let model = Model { merges, unknown: None, byte_fallback: false, ignore_merges: pre_tokenizer.ignore_merges };
    let components = Components {
        normalizer: pre_tokenizer.normalizer(),
        pre_tokenizer: pre_tokenizer.description(),
        decoder: json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}),
        before: bos.filter(|_| vocabulary.add_bos.unwrap_or(pre_tokenizer.adds_bos)),
        after: added_eos(vocabulary, vocabulary.eos_token_id)?,
    };
    Ok(assemble(vocabulary, model, components))
}

fn sentencepiece(vocabulary: &GgufVocabulary) -> Result<GgufTokenizer<'_>, CheckpointError> {
    let ids = unique_ids(vocabulary)?;
    let n_byte_tokens = (0..=255u8).filter(|byte| ids.contains_key(format!("<0x{byte:02X}>").as_str())).count();
    let unknown = vocabulary
        .unknown_token_id
        .or_else(|| vocabulary.token_types.iter().position(|&kind| kind == token_type::UNKNOWN).map(|id| id as u32));
    if n_byte_tokens != 256 && (n_byte_tokens != 0 || unknown.is_none()) {
        return Err(malformed("tokens", format!("{n_byte_tokens} of the 256 byte tokens")));
    }
    let merges = if vocabulary.scores.is_empty() { merges::listed(vocabulary)? } else { merges::from_scores(vocabulary, &ids)? };
    let unknown = unknown.map(|id| vocabulary.tokens[id as usize].as_str());
    let model = Model { merges, unknown, byte_fallback: n_byte_tokens == 256, ignore_merges: false };
    let adds_space = vocabulary.add_space_prefix.unwrap_or(true);
    let mut normalizers = vec![json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"})];
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if adds_space {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let or_default = |id: Option<u32>, default: u32| id.or(((default as usize) < vocabulary.tokens.len()).then_some(default));
    let components = Components {
        normalizer: json!({"type": "Sequence", "normalizers": normalizers}),
        pre_tokenizer: Value::Null,
        decoder: json!({"type": "Sequence", "decoders": decoders}),
        before: or_default(vocabulary.bos_token_id, SENTENCEPIECE_BOS).filter(|_| vocabulary.add_bos.unwrap_or(true)),
        after: added_eos(vocabulary, or_default(vocabulary.eos_token_id, SENTENCEPIECE_EOS))?,
    };
    Ok(assemble(vocabulary, model, components))
}

fn added_eos(vocabulary: &GgufVocabulary, eos: Option<u32>) -> Result<Option<u32>, CheckpointError> {
    match (vocabulary.add_eos, eos) {
        (Some(true), None) => Err(malformed("eos_token_id", "missing, although add_eos_token is set".into())),
        (Some(true), eos) => Ok(eos),
        _ => Ok(None),
    }
}

struct Components {
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    /// Token put before every text.
    before: Option<u32>,
    /// Token put after every text.
    after: Option<u32>,
}

/// What differs between the kinds of model.
struct Model<'v> {
    merges: Vec<(&'v str, &'v str)>,
    unknown: Option<&'v str>,
    byte_fallback: bool,
    ignore_merges: bool,
}

fn assemble<'v>(vocabulary: &'v GgufVocabulary, model: Model<'v>, components: Components) -> GgufTokenizer<'v> {
    GgufTokenizer {
        version: "1.0",
        truncation: None,
        padding: None,
        added_tokens: added_tokens(vocabulary),
        normalizer: components.normalizer,
        pre_tokenizer: components.pre_tokenizer,
        post_processor: post_processor(vocabulary, components.before, components.after),
        decoder: components.decoder,
        model: GgufBpe {
            kind: "BPE",
            dropout: None,
            unk_token: model.unknown,
            continuing_subword_prefix: None,
            end_of_word_suffix: None,
            fuse_unk: model.unknown.is_some(),
            byte_fallback: model.byte_fallback,
            ignore_merges: model.ignore_merges,
            vocab: &vocabulary.tokens,
            merges: model.merges,
        },
    }
}

fn added_tokens(vocabulary: &GgufVocabulary) -> Vec<GgufAddedToken<'_>> {
    let by_id = [vocabulary.bos_token_id, vocabulary.eos_token_id, vocabulary.unknown_token_id, vocabulary.padding_token_id];
    let tokens = vocabulary.tokens.iter().enumerate().filter(|(_, token)| !token.is_empty());
    let added = tokens.filter_map(|(id, token)| {
        let kind = vocabulary.token_types.get(id).copied().unwrap_or(token_type::NORMAL);
        let is_named = by_id.contains(&Some(id as u32));
        let special = match kind {
            token_type::UNKNOWN | token_type::CONTROL => true,
            token_type::USER_DEFINED => is_named,
            _ if is_named && vocabulary.token_types.is_empty() => true,
            _ => return None,
        };
        let (single_word, lstrip, rstrip, normalized) = (false, false, false, false);
        Some(GgufAddedToken { id: id as u32, content: token, single_word, lstrip, rstrip, normalized, special })
    });
    added.collect()
}

fn post_processor(vocabulary: &GgufVocabulary, before: Option<u32>, after: Option<u32>) -> Value {
    if before.is_none() && after.is_none() {
        return Value::Null;
    }
    let mut special_tokens = serde_json::Map::new();
    let mut piece = |id: u32| {
        let token = vocabulary.tokens[id as usize].as_str();
        special_tokens.insert(token.to_string(), json!({"id": token, "ids": [id], "tokens": [token]}));
        json!({"SpecialToken": {"id": token, "type_id": 0}})
    };
    let (before, after) = (before.map(&mut piece), after.map(&mut piece));
    let sequence = |name: &str| json!({"Sequence": {"id": name, "type_id": 0}});
    let around = |name: &str| before.iter().cloned().chain([sequence(name)]).chain(after.iter().cloned()).collect::<Vec<_>>();
    let (single, second) = (around("A"), around("B"));
    let pair: Vec<Value> = single.iter().cloned().chain(second).collect();
    json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special_tokens})
}

#[cfg(test)]
mod tests;
