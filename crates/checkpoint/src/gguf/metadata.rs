//! [`ModelConfig`] and [`TokenizerFiles`] to GGUF metadata: the public keys that llama.cpp and its forks read, and this project's
//! `bitnet.*` keys, which keep what the public ones cannot say.

use super::kv::ValueType;
use super::model_config::{self, GgufArchitecture};
use super::vocabulary_arrays::{self, VocabularyArrays};
use super::{keys, read};
use crate::config::{Activation, ModelConfig, RopeScaling};
use crate::error::CheckpointError;
use crate::tokenizer_files::{GenerationDefaults, GgufVocabulary, TokenizerFiles, Vocabulary};

/// Metadata entries in their file form.
#[derive(Debug, Default)]
pub(super) struct MetadataBytes {
    pub(super) bytes: Vec<u8>,
    pub(super) n_keys: u64,
}

/// A length-prefixed string.
pub(super) fn put_string(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend_from_slice(&(text.len() as u64).to_le_bytes());
    bytes.extend_from_slice(text.as_bytes());
}

impl MetadataBytes {
    fn entry(&mut self, key: &str, value_type: ValueType, value: &[u8]) {
        put_string(&mut self.bytes, key);
        self.bytes.extend_from_slice(&(value_type as u32).to_le_bytes());
        self.bytes.extend_from_slice(value);
        self.n_keys += 1;
    }

    fn array(&mut self, key: &str, element: ValueType, n_elements: usize, elements: &[u8]) {
        let mut value = (element as u32).to_le_bytes().to_vec();
        value.extend_from_slice(&(n_elements as u64).to_le_bytes());
        value.extend_from_slice(elements);
        self.entry(key, ValueType::Array, &value);
    }

    pub(super) fn string(&mut self, key: &str, text: &str) {
        let mut value = Vec::with_capacity(text.len() + 8);
        put_string(&mut value, text);
        self.entry(key, ValueType::String, &value);
    }

    pub(super) fn u32(&mut self, key: &str, value: u32) {
        self.entry(key, ValueType::U32, &value.to_le_bytes());
    }

    fn f32(&mut self, key: &str, value: f32) {
        self.entry(key, ValueType::F32, &value.to_le_bytes());
    }

    fn f64(&mut self, key: &str, value: f64) {
        self.entry(key, ValueType::F64, &value.to_le_bytes());
    }

    fn bool(&mut self, key: &str, value: bool) {
        self.entry(key, ValueType::Bool, &[u8::from(value)]);
    }

    fn strings(&mut self, key: &str, strings: &[String]) {
        let mut elements = Vec::new();
        strings.iter().for_each(|text| put_string(&mut elements, text));
        self.array(key, ValueType::String, strings.len(), &elements);
    }

    fn size(&mut self, key: &str, value: usize) -> Result<(), CheckpointError> {
        let value = u32::try_from(value).map_err(|_| CheckpointError::config(key, format!("{value} does not fit u32")))?;
        self.u32(key, value);
        Ok(())
    }
}

/// Writes all keys of the model.
pub(super) fn put_config(out: &mut MetadataBytes, architecture: GgufArchitecture, config: &ModelConfig) -> Result<(), CheckpointError> {
    let key = |suffix: &str| format!("{}.{suffix}", architecture.name);
    out.string(keys::ARCHITECTURE, architecture.name);
    out.u32(keys::QUANTIZATION_VERSION, 2);
    out.size(read::ALIGNMENT_KEY, read::ALIGNMENT_DEFAULT as usize)?;
    for (suffix, value) in [
        (keys::VOCAB_SIZE, config.n_vocab),
        (keys::CONTEXT_LENGTH, config.context_length),
        (keys::EMBEDDING_LENGTH, config.hidden_size),
        (keys::BLOCK_COUNT, config.n_layers),
        (keys::FEED_FORWARD_LENGTH, config.intermediate_size),
        (keys::HEAD_COUNT, config.n_heads),
        (keys::HEAD_COUNT_KV, config.n_kv_heads),
        (keys::KEY_LENGTH, config.head_dim),
        (keys::VALUE_LENGTH, config.head_dim),
        (keys::ROPE_DIMENSIONS, config.head_dim),
    ] {
        out.size(&key(suffix), value)?;
    }
    out.f32(&key(keys::RMS_EPSILON), config.rms_norm_eps);
    out.f32(&key(keys::ROPE_BASE), config.rope.theta as f32);
    if config.last_token_pooling {
        out.u32(&key(keys::POOLING_TYPE), 3);
    }
    put_public_rope_scaling(out, key, config.rope.scaling)?;
    put_own_config(out, config)
}

fn put_public_rope_scaling(out: &mut MetadataBytes, key: impl Fn(&str) -> String, scaling: RopeScaling) -> Result<(), CheckpointError> {
    match scaling {
        // Llama 3 factors go into a tensor, see `write.rs`.
        RopeScaling::None | RopeScaling::Llama3 { .. } => {}
        RopeScaling::Linear { factor } => {
            out.string(&key(keys::ROPE_SCALING_TYPE), "linear");
            out.f32(&key(keys::ROPE_SCALING_FACTOR), factor as f32);
        }
        RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, attention_factor } => {
            out.string(&key(keys::ROPE_SCALING_TYPE), "yarn");
            out.f32(&key(keys::ROPE_SCALING_FACTOR), factor as f32);
            out.size(&key(keys::ROPE_SCALING_CONTEXT), original_context)?;
            out.f32(&key(keys::ROPE_SCALING_ATTENTION), (attention_factor / model_config::yarn_attention(factor)) as f32);
            out.f32(&key(keys::ROPE_SCALING_BETA_FAST), beta_fast as f32);
            out.f32(&key(keys::ROPE_SCALING_BETA_SLOW), beta_slow as f32);
        }
    }
    Ok(())
}

fn put_own_config(out: &mut MetadataBytes, config: &ModelConfig) -> Result<(), CheckpointError> {
    out.string(
        keys::BITNET_HIDDEN_ACT,
        match config.activation {
            Activation::Silu => "silu",
            Activation::Relu2 => "relu2",
        },
    );
    out.string(keys::BITNET_ACTIVATION_POLICY, config.activation_policy.name());
    if config.projection_norms {
        out.f32(keys::BITNET_PROJECTION_EPSILON, config.projection_norm_eps);
    }
    out.bool(keys::BITNET_TIED_HEAD, config.tied_head);
    out.f64(keys::BITNET_ROPE_BASE, config.rope.theta);
    match config.rope.scaling {
        RopeScaling::None => out.string(keys::BITNET_ROPE_SCALING, "none"),
        RopeScaling::Linear { factor } => {
            out.string(keys::BITNET_ROPE_SCALING, "linear");
            out.f64(keys::BITNET_ROPE_FACTOR, factor);
        }
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
            out.string(keys::BITNET_ROPE_SCALING, "llama3");
            out.f64(keys::BITNET_ROPE_FACTOR, factor);
            out.f64(keys::BITNET_ROPE_LOW, low_freq_factor);
            out.f64(keys::BITNET_ROPE_HIGH, high_freq_factor);
            out.size(keys::BITNET_ROPE_CONTEXT, original_context)?;
        }
        RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, attention_factor } => {
            out.string(keys::BITNET_ROPE_SCALING, "yarn");
            out.f64(keys::BITNET_ROPE_FACTOR, factor);
            out.f64(keys::BITNET_ROPE_BETA_FAST, beta_fast);
            out.f64(keys::BITNET_ROPE_BETA_SLOW, beta_slow);
            out.f64(keys::BITNET_ROPE_ATTENTION, attention_factor);
            out.size(keys::BITNET_ROPE_CONTEXT, original_context)?;
        }
    }
    Ok(())
}

/// Writes all keys about text. Returns what other programs will miss.
pub(super) fn put_tokenizer(out: &mut MetadataBytes, files: &TokenizerFiles, n_vocab: usize) -> Result<Vec<String>, CheckpointError> {
    let mut missed = Vec::new();
    let arrays = match &files.vocabulary {
        Vocabulary::Absent => None,
        Vocabulary::Gguf(vocabulary) => Some(vocabulary.clone()),
        Vocabulary::Json(json) => {
            let text = std::str::from_utf8(json).map_err(|_| CheckpointError::config(keys::HUGGING_FACE_JSON, "is not UTF-8"))?;
            out.string(keys::HUGGING_FACE_JSON, text);
            match vocabulary_arrays::from_json(text, n_vocab) {
                Ok(VocabularyArrays { vocabulary, remark }) => {
                    missed.extend(remark);
                    Some(vocabulary)
                }
                Err(reason) => {
                    missed.push(format!(
                        "no tokenizer.ggml.* arrays, so programs that do not read {} have no tokenizer: {reason}",
                        keys::HUGGING_FACE_JSON
                    ));
                    None
                }
            }
        }
    };
    let arrays = arrays.map(|vocabulary| with_special_ids(vocabulary, files));
    if let Some(vocabulary) = &arrays {
        put_arrays(out, vocabulary);
    }
    let bos = arrays.as_ref().and_then(|vocabulary| vocabulary.bos_token_id).or(files.bos_token_id);
    let eos = arrays.as_ref().and_then(|vocabulary| vocabulary.eos_token_id).or(files.generation.eos_token_ids.first().copied());
    bos.into_iter().for_each(|id| out.u32(keys::BOS_ID, id));
    eos.into_iter().for_each(|id| out.u32(keys::EOS_ID, id));
    for (key, text) in [
        (keys::CHAT_TEMPLATE, &files.chat_template),
        (keys::BITNET_BOS_TOKEN, &files.bos_token),
        (keys::BITNET_EOS_TOKEN, &files.eos_token),
    ] {
        text.iter().for_each(|text| out.string(key, text));
    }
    for (name, text) in &files.special_tokens {
        out.string(&format!("{}{name}", keys::BITNET_SPECIAL_TOKENS), text);
    }
    put_generation(out, &files.generation);
    Ok(missed)
}

fn with_special_ids(mut vocabulary: GgufVocabulary, files: &TokenizerFiles) -> GgufVocabulary {
    let id_of = |text: &Option<String>| {
        let text = text.as_ref()?;
        vocabulary.tokens.iter().position(|token| token == text).map(|id| id as u32)
    };
    let bos = files.bos_token_id.or_else(|| id_of(&files.bos_token));
    let eos = id_of(&files.eos_token).or(files.generation.eos_token_ids.first().copied());
    vocabulary.bos_token_id = vocabulary.bos_token_id.or(bos);
    vocabulary.eos_token_id = vocabulary.eos_token_id.or(eos);
    vocabulary
}

fn put_arrays(out: &mut MetadataBytes, vocabulary: &GgufVocabulary) {
    out.string(keys::TOKENIZER_MODEL, &vocabulary.model);
    vocabulary.pre.iter().for_each(|pre| out.string(keys::TOKENIZER_PRE, pre));
    out.strings(keys::TOKENS, &vocabulary.tokens);
    if !vocabulary.scores.is_empty() {
        let elements: Vec<u8> = vocabulary.scores.iter().flat_map(|score| score.to_le_bytes()).collect();
        out.array(keys::SCORES, ValueType::F32, vocabulary.scores.len(), &elements);
    }
    if !vocabulary.token_types.is_empty() {
        let elements: Vec<u8> = vocabulary.token_types.iter().flat_map(|kind| kind.to_le_bytes()).collect();
        out.array(keys::TOKEN_TYPES, ValueType::I32, vocabulary.token_types.len(), &elements);
    }
    if !vocabulary.merges.is_empty() {
        out.strings(keys::MERGES, &vocabulary.merges);
    }
    for (key, flag) in
        [(keys::ADD_BOS, vocabulary.add_bos), (keys::ADD_EOS, vocabulary.add_eos), (keys::ADD_SPACE_PREFIX, vocabulary.add_space_prefix)]
    {
        flag.into_iter().for_each(|flag| out.bool(key, flag));
    }
    for (key, id) in [(keys::UNKNOWN_ID, vocabulary.unknown_token_id), (keys::PADDING_ID, vocabulary.padding_token_id)] {
        id.into_iter().for_each(|id| out.u32(key, id));
    }
}

fn put_generation(out: &mut MetadataBytes, generation: &GenerationDefaults) {
    let elements: Vec<u8> = generation.eos_token_ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    out.array(keys::BITNET_EOS_IDS, ValueType::U32, generation.eos_token_ids.len(), &elements);
    for (key, value) in [
        (keys::BITNET_TEMPERATURE, generation.temperature),
        (keys::BITNET_TOP_P, generation.top_p),
        (keys::BITNET_MIN_P, generation.min_p),
        (keys::BITNET_REPETITION_PENALTY, generation.repetition_penalty),
    ] {
        value.into_iter().for_each(|value| out.f32(key, value));
    }
    generation.top_k.into_iter().for_each(|value| out.u32(keys::BITNET_TOP_K, value));
    generation.do_sample.into_iter().for_each(|value| out.bool(keys::BITNET_DO_SAMPLE, value));
}
