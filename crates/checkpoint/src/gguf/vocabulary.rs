//! GGUF metadata to [`TokenizerFiles`]: `tokenizer.huggingface.json` when it is there, since it says everything; else the
//! `tokenizer.ggml.*` arrays as stored. Nothing is interpreted here, but for one chat template that is known to be wrong.

use std::collections::BTreeMap;

use super::keys;
use super::kv::Metadata;
use crate::error::CheckpointError;
use crate::limits;
use crate::tokenizer_files::{GenerationDefaults, GgufVocabulary, SPECIAL_TOKENS, TokenizerFiles, Vocabulary};

/// Control tokens that end a turn, by the names the published families give them. GGUF has one key for one end token; llama.cpp
/// ends at these as well (src/llama-vocab.cpp, "special_eog_ids").
const END_OF_TURN: [&str; 5] = ["<|eot_id|>", "<|im_end|>", "<|end|>", "<|endoftext|>", "<end_of_turn>"];
/// What bitnet-b1.58-2B-4T was trained on, by the tokenizer_config.json of its Hugging Face repository.
const BITNET_TEMPLATE: &str = "{% for message in messages %}{{ (bos_token if loop.first else '') + (message['role'] | capitalize) + ': ' + (message['content'] | trim) + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}";
const STALE_REMARK: &str =
    "the chat template in this file (`Human: … BITNETAssistant:`) is not the one that the model was trained on; that one is used";
/// ggml's type of control tokens.
const CONTROL: i32 = 3;

/// Reads everything about text. `n_vocab` is the number of rows of the embedding.
pub(super) fn read(metadata: &Metadata, n_vocab: usize) -> Result<TokenizerFiles, CheckpointError> {
    let n_tokens = metadata.n_strings(keys::TOKENS)?.unwrap_or(0);
    if n_tokens > n_vocab {
        return Err(CheckpointError::config(keys::TOKENS, format!("{n_tokens} tokens, but the embedding has {n_vocab} rows")));
    }
    let id = |key| token_id(metadata, key, n_vocab);
    let arrays = GgufVocabulary {
        model: metadata.string(keys::TOKENIZER_MODEL)?.unwrap_or_default().to_owned(),
        pre: metadata.string(keys::TOKENIZER_PRE)?.map(str::to_owned),
        tokens: metadata.strings(keys::TOKENS)?.unwrap_or_default(),
        scores: one_for_each_token(keys::SCORES, metadata.floats(keys::SCORES)?, n_tokens)?,
        token_types: one_for_each_token(keys::TOKEN_TYPES, metadata.integers(keys::TOKEN_TYPES)?, n_tokens)?,
        merges: metadata.strings(keys::MERGES)?.unwrap_or_default(),
        add_bos: metadata.bool(keys::ADD_BOS)?,
        add_eos: metadata.bool(keys::ADD_EOS)?,
        add_space_prefix: metadata.bool(keys::ADD_SPACE_PREFIX)?,
        bos_token_id: id(keys::BOS_ID)?,
        eos_token_id: id(keys::EOS_ID)?,
        unknown_token_id: id(keys::UNKNOWN_ID)?,
        padding_token_id: id(keys::PADDING_ID)?,
    };
    let text_of = |key: &str, id: Option<u32>| -> Result<Option<String>, CheckpointError> {
        let from_array = || id.and_then(|id| arrays.tokens.get(id as usize)).cloned();
        Ok(metadata.string(key)?.map(str::to_owned).or_else(from_array))
    };
    let bos_token = text_of(keys::BITNET_BOS_TOKEN, arrays.bos_token_id)?;
    let eos_token = text_of(keys::BITNET_EOS_TOKEN, arrays.eos_token_id)?;
    let mut special_tokens = BTreeMap::new();
    for name in SPECIAL_TOKENS {
        let id = match name {
            "unk_token" => arrays.unknown_token_id,
            "pad_token" => arrays.padding_token_id,
            _ => None,
        };
        let text = text_of(&format!("{}{name}", keys::BITNET_SPECIAL_TOKENS), id)?;
        special_tokens.extend(text.map(|text| (name.to_owned(), text)));
    }
    let bos_token_id = arrays.bos_token_id;
    let generation = generation(metadata, &arrays, n_vocab)?;
    let vocabulary = match metadata.string(keys::HUGGING_FACE_JSON)? {
        Some(json) if json.len() as u64 > limits::TOKENIZER_JSON_BYTES_MAX => {
            let reason = format!("{} bytes, more than {}", json.len(), limits::TOKENIZER_JSON_BYTES_MAX);
            return Err(CheckpointError::config(keys::HUGGING_FACE_JSON, reason));
        }
        Some(json) => Vocabulary::Json(json.as_bytes().to_vec()),
        None if arrays.tokens.is_empty() => Vocabulary::Absent,
        None if arrays.model.is_empty() => return Err(CheckpointError::config(keys::TOKENIZER_MODEL, "is missing")),
        None => Vocabulary::Gguf(arrays),
    };
    let (chat_template, chat_template_remark) = match metadata.string(keys::CHAT_TEMPLATE)? {
        Some(template) if is_stale(template, metadata.string(keys::ARCHITECTURE)?) => (Some(BITNET_TEMPLATE), Some(STALE_REMARK)),
        template => (template, None),
    };
    let owned = |text: Option<&str>| text.map(str::to_owned);
    let (chat_template, chat_template_remark) = (owned(chat_template), owned(chat_template_remark));
    Ok(TokenizerFiles { vocabulary, chat_template, chat_template_remark, bos_token, eos_token, special_tokens, bos_token_id, generation })
}

/// Whether `template` is the one that Microsoft's converter puts into every file (microsoft/BitNet:utils/convert-ms-to-gguf-bitnet.py),
/// its published 2B-4T file among them. No model was trained on it.
fn is_stale(template: &str, architecture: Option<&str>) -> bool {
    architecture.is_some_and(|name| name.starts_with("bitnet")) && template.contains("BITNETAssistant")
}

fn generation(metadata: &Metadata, arrays: &GgufVocabulary, n_vocab: usize) -> Result<GenerationDefaults, CheckpointError> {
    let eos_token_ids = match metadata.integers::<u32>(keys::BITNET_EOS_IDS)? {
        Some(ids) => match ids.iter().find(|&&id| id as usize >= n_vocab) {
            Some(id) => return Err(CheckpointError::config(keys::BITNET_EOS_IDS, format!("token {id} does not exist"))),
            None => ids,
        },
        None => {
            let mut ids: Vec<u32> = arrays.eos_token_id.into_iter().chain(token_id(metadata, keys::EOT_ID, n_vocab)?).collect();
            let ends_turn = |id: usize| arrays.token_types.get(id) == Some(&CONTROL) && END_OF_TURN.contains(&arrays.tokens[id].as_str());
            ids.extend((0..arrays.tokens.len()).filter(|&id| ends_turn(id)).map(|id| id as u32));
            let mut seen = std::collections::HashSet::new();
            ids.retain(|&id| seen.insert(id));
            ids
        }
    };
    let number = |key| metadata.float(key).map(|value| value.map(|value| value as f32));
    Ok(GenerationDefaults {
        eos_token_ids,
        temperature: number(keys::BITNET_TEMPERATURE)?,
        top_p: number(keys::BITNET_TOP_P)?,
        min_p: number(keys::BITNET_MIN_P)?,
        repetition_penalty: number(keys::BITNET_REPETITION_PENALTY)?,
        top_k: metadata.integer(keys::BITNET_TOP_K)?,
        do_sample: metadata.bool(keys::BITNET_DO_SAMPLE)?,
    })
}

/// A token id. Writers use −1 and its unsigned twin for "none"; any other id outside the vocabulary is an error.
fn token_id(metadata: &Metadata, key: &str, n_vocab: usize) -> Result<Option<u32>, CheckpointError> {
    match metadata.integer::<i64>(key)? {
        None | Some(-1) => Ok(None),
        Some(id) if id == i64::from(u32::MAX) => Ok(None),
        Some(id) => match u32::try_from(id) {
            Ok(id) if (id as usize) < n_vocab => Ok(Some(id)),
            _ => Err(CheckpointError::config(key, format!("token {id} does not exist"))),
        },
    }
}

fn one_for_each_token<T>(key: &str, values: Option<Vec<T>>, n_tokens: usize) -> Result<Vec<T>, CheckpointError> {
    let values = values.unwrap_or_default();
    if !values.is_empty() && values.len() != n_tokens {
        return Err(CheckpointError::config(key, format!("{} entries for {n_tokens} tokens", values.len())));
    }
    Ok(values)
}
