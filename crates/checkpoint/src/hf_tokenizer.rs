//! The text side of a Hugging Face folder: `tokenizer.json`, or `tokenizer.model` where that is absent, `tokenizer_config.json`, `special_tokens_map.json`,
//! `generation_config.json`, `chat_template.jinja` and `chat_template.json`, to [`TokenizerFiles`] and back.
//!
//! Contents are carried, not interpreted; only fixed names inside the folder are opened, each with a cap on its size.
//! Where `chat_template.jinja` is there, it wins, as in transformers, then `chat_template.json`. Special tokens are those of
//! `tokenizer_config.json`; of the map, which older folders have besides, what it leaves out, or all where it has no
//! `added_tokens_decoder`, which is how transformers tells the older ones.
//!
//! Not read: `add_bos_token` and `add_eos_token`. What is put around a text is what the post-processor in `tokenizer.json` says, as
//! in transformers 5, which takes that file as it is; version 4 rebuilt the post-processor from those flags for some classes only. Source: huggingface/transformers:
//! src/transformers/tokenization_utils_base.py, src/transformers/generation/configuration_utils.py.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::error::CheckpointError;
use crate::hf_config::{HfConfig, eos_value};
use crate::json::{self, Fields};
use crate::limits;
use crate::positioned::read_small_file;
use crate::sentencepiece;
use crate::tokenizer_files::{GenerationDefaults, SPECIAL_TOKENS, TokenizerFiles, Vocabulary};

const TOKENIZER: &str = "tokenizer.json";
const SENTENCEPIECE: &str = "tokenizer.model";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const GENERATION_CONFIG: &str = "generation_config.json";
const SPECIAL_TOKENS_MAP: &str = "special_tokens_map.json";
const CHAT_TEMPLATE: &str = "chat_template.jinja";
const CHAT_TEMPLATE_JSON: &str = "chat_template.json";

/// Reads the text side of `folder`; `config` gives the token ids that the other files leave out.
pub(crate) fn read(folder: &Path, config: &HfConfig) -> Result<TokenizerFiles, CheckpointError> {
    let vocabulary = match read_small_file(&folder.join(TOKENIZER), limits::TOKENIZER_JSON_BYTES_MAX)? {
        Some(bytes) => Vocabulary::Json(bytes),
        None => sentencepiece(folder, config.model.n_vocab)?,
    };
    let empty = Map::new();
    let tokenizer_config = read_object(folder, TOKENIZER_CONFIG)?;
    let fields = Fields::of_file(tokenizer_config.as_ref().unwrap_or(&empty));
    let generation_config = read_object(folder, GENERATION_CONFIG)?;
    let mut generation = generation(&Fields::of_file(generation_config.as_ref().unwrap_or(&empty)), config)?;
    // Configurations written from class defaults name tokens that a small vocabulary does not have; no text can contain them.
    let exists = |id: &u32| (*id as usize) < config.model.n_vocab;
    generation.eos_token_ids.retain(exists);
    let map = read_object(folder, SPECIAL_TOKENS_MAP)?;
    let map = Fields::of_file(map.as_ref().unwrap_or(&empty));
    let (first, second) = if fields.value("added_tokens_decoder").is_some() { (&fields, &map) } else { (&map, &fields) };
    let special_token = |key: &str| Ok::<_, CheckpointError>(special_token(first, key)?.or(special_token(second, key)?));
    let mut special_tokens = BTreeMap::new();
    for key in SPECIAL_TOKENS {
        special_tokens.extend(special_token(key)?.map(|text| (key.to_owned(), text)));
    }
    Ok(TokenizerFiles {
        vocabulary,
        chat_template: chat_template(folder, &fields)?,
        chat_template_remark: None,
        bos_token: special_token("bos_token")?,
        eos_token: special_token("eos_token")?,
        special_tokens,
        bos_token_id: config.bos_token_id.filter(exists),
        generation,
    })
}

/// The vocabulary of a folder without `tokenizer.json`.
fn sentencepiece(folder: &Path, n_vocab: usize) -> Result<Vocabulary, CheckpointError> {
    let Some(bytes) = read_small_file(&folder.join(SENTENCEPIECE), limits::SENTENCEPIECE_BYTES_MAX)? else {
        return Ok(Vocabulary::Absent);
    };
    let vocabulary = sentencepiece::read(&bytes)?;
    match vocabulary.tokens.len() {
        n_tokens if n_tokens > n_vocab => {
            Err(CheckpointError::config(SENTENCEPIECE, format!("{n_tokens} tokens, but the embedding has {n_vocab} rows")))
        }
        _ => Ok(Vocabulary::Gguf(vocabulary)),
    }
}

/// The files to write beside the tensors: name and contents.
pub(crate) fn write(text: &TokenizerFiles) -> Vec<(&'static str, Vec<u8>)> {
    let mut files = Vec::new();
    if let Vocabulary::Json(bytes) = &text.vocabulary {
        files.push((TOKENIZER, bytes.clone()));
    }
    let mut tokenizer = Map::new();
    let strings = [("bos_token", &text.bos_token), ("eos_token", &text.eos_token), ("chat_template", &text.chat_template)];
    for (key, value) in strings {
        if let Some(value) = value {
            tokenizer.insert(key.into(), json!(value));
        }
    }
    tokenizer.extend(text.special_tokens.iter().map(|(key, value)| (key.clone(), json!(value))));
    if !tokenizer.is_empty() {
        tokenizer.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
        files.push((TOKENIZER_CONFIG, pretty(&tokenizer)));
    }
    files.push((GENERATION_CONFIG, pretty(&generation_json(text))));
    files
}

/// JSON with two spaces of indent and a line feed at the end.
pub(crate) fn pretty(map: &Map<String, Value>) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(map).expect("a map with string keys serialises");
    bytes.push(b'\n');
    bytes
}

fn generation_json(text: &TokenizerFiles) -> Map<String, Value> {
    let generation = &text.generation;
    let mut keys = Map::new();
    keys.insert("bos_token_id".into(), json!(text.bos_token_id));
    keys.insert("eos_token_id".into(), eos_value(&generation.eos_token_ids));
    if let Some(do_sample) = generation.do_sample {
        keys.insert("do_sample".into(), json!(do_sample));
    }
    if let Some(top_k) = generation.top_k {
        keys.insert("top_k".into(), json!(top_k));
    }
    for (key, value) in [
        ("temperature", generation.temperature),
        ("top_p", generation.top_p),
        ("min_p", generation.min_p),
        ("repetition_penalty", generation.repetition_penalty),
    ] {
        if let Some(value) = value {
            keys.insert(key.into(), crate::hf_config::shortest(value));
        }
    }
    keys
}

fn generation(fields: &Fields, config: &HfConfig) -> Result<GenerationDefaults, CheckpointError> {
    let own = fields.ids("eos_token_id")?;
    let number = |key: &str| fields.number(key).map(|number| number.map(|number| number as f32).filter(|number| number.is_finite()));
    Ok(GenerationDefaults {
        eos_token_ids: if own.is_empty() { config.eos_token_ids.clone() } else { own },
        temperature: number("temperature")?,
        top_p: number("top_p")?,
        top_k: fields.id("top_k")?,
        min_p: number("min_p")?,
        repetition_penalty: number("repetition_penalty")?,
        do_sample: fields.flag("do_sample")?,
    })
}

fn chat_template(folder: &Path, fields: &Fields) -> Result<Option<String>, CheckpointError> {
    let file = read_small_file(&folder.join(CHAT_TEMPLATE), limits::CHAT_TEMPLATE_BYTES_MAX)?;
    if let Some(bytes) = file {
        let text = String::from_utf8(bytes);
        return text.map(Some).map_err(|_| CheckpointError::malformed("Jinja", CHAT_TEMPLATE, "not UTF-8"));
    }
    let key = "chat_template";
    let file = read_object(folder, CHAT_TEMPLATE_JSON)?;
    let file = file.as_ref().map(Fields::of_file);
    let fields = file.as_ref().unwrap_or(fields);
    let wrong = |reason: String| CheckpointError::config(key, reason);
    match fields.value(key) {
        None => Ok(None),
        Some(Value::String(template)) => Ok(Some(template.clone())),
        Some(Value::Array(named)) => named_template(named).map_err(wrong),
        Some(other) => Err(wrong(format!("expected a string or a list of named templates, got {}", json::kind(other)))),
    }
}

/// `[{"name": "default", "template": "…"}, …]`: the one called `default`, or the only one.
fn named_template(named: &[Value]) -> Result<Option<String>, String> {
    let text = |entry: &Value, key: &str| entry.get(key).and_then(Value::as_str).map(str::to_owned);
    let pairs: Option<Vec<_>> = named.iter().map(|entry| Some((text(entry, "name")?, text(entry, "template")?))).collect();
    let mut pairs = pairs.ok_or("expected objects with `name` and `template`")?;
    if let Some(default) = pairs.iter().position(|(name, _)| name == "default") {
        return Ok(Some(pairs.swap_remove(default).1));
    }
    match pairs.len() {
        0 | 1 => Ok(pairs.pop().map(|(_, template)| template)),
        n => Err(format!("{n} templates and none is called default")),
    }
}

/// A token's text: a string, or an object with `content`.
fn special_token(fields: &Fields, key: &str) -> Result<Option<String>, CheckpointError> {
    let text = match fields.value(key) {
        None => return Ok(None),
        Some(Value::Object(token)) => token.get("content").and_then(Value::as_str),
        Some(value) => value.as_str(),
    };
    let wrong = || CheckpointError::config(key, "expected a string or an object with `content`");
    text.map(|text| Some(text.to_owned())).ok_or_else(wrong)
}

fn read_object(folder: &Path, name: &'static str) -> Result<Option<Map<String, Value>>, CheckpointError> {
    let bytes = read_small_file(&folder.join(name), limits::CONFIG_JSON_BYTES_MAX)?;
    bytes.map(|bytes| json::parse_object(name, &bytes)).transpose()
}
