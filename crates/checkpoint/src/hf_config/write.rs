//! [`ModelConfig`] to `config.json`, for Hugging Face and MLX folders. Deterministic: equal models give equal bytes.
//!
//! Rotary embedding is written with the keys of transformers 4, which version 5 and mlx-lm read too.

use serde_json::{Map, Value, json};

use super::{POLICY_KEY, PROJECTION_EPS_KEY};
use crate::config::{Activation, Architecture, ModelConfig, RopeScaling};
use crate::tensor::DenseType;
use crate::tokenizer_files::TokenizerFiles;

/// How the folder that this configuration belongs to stores its projections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WrittenWeights {
    /// Packed uint8 with scales that multiply.
    PackedAutobitlinear,
    /// Floating-point numbers that are trit × scale.
    FakeQuantised,
    /// MLX affine 2-bit.
    Mlx { group_size: usize },
}

/// The whole of `config.json`.
pub(crate) fn to_json(config: &ModelConfig, text: &TokenizerFiles, weights: WrittenWeights, dtype: DenseType) -> Map<String, Value> {
    let (model_type, class) = match config.architecture {
        Architecture::Bitnet => ("bitnet", "BitNet"),
        Architecture::Llama => ("llama", "Llama"),
        Architecture::Qwen3 => ("qwen3", "Qwen3"),
    };
    let head = if config.last_token_pooling { "Model" } else { "ForCausalLM" };
    let mut keys = Map::new();
    let mut put = |key: &str, value: Value| {
        keys.insert(key.to_owned(), value);
    };
    put("architectures", json!([format!("{class}{head}")]));
    put("model_type", json!(model_type));
    put("vocab_size", json!(config.n_vocab));
    put("hidden_size", json!(config.hidden_size));
    put("intermediate_size", json!(config.intermediate_size));
    put("num_hidden_layers", json!(config.n_layers));
    put("num_attention_heads", json!(config.n_heads));
    put("num_key_value_heads", json!(config.n_kv_heads));
    put("head_dim", json!(config.head_dim));
    put("hidden_act", json!(activation_name(config.activation)));
    put("max_position_embeddings", json!(config.context_length));
    put("rms_norm_eps", shortest(config.rms_norm_eps));
    put("rope_theta", json!(config.rope.theta));
    if let Some(scaling) = rope_scaling(config.rope.scaling) {
        put("rope_scaling", scaling);
    }
    put("tie_word_embeddings", json!(config.tied_head));
    put("attention_bias", json!(false));
    put("bos_token_id", json!(text.bos_token_id));
    put("eos_token_id", eos_value(&text.generation.eos_token_ids));
    put("torch_dtype", json!(dtype_name(dtype)));
    put(POLICY_KEY, json!(config.activation_policy.name()));
    match weights {
        WrittenWeights::PackedAutobitlinear => put("quantization_config", packed_quantization(config)),
        WrittenWeights::Mlx { group_size } => put("quantization", json!({ "group_size": group_size, "bits": 2, "mode": "affine" })),
        WrittenWeights::FakeQuantised => {}
    }
    if config.projection_norms && weights != WrittenWeights::PackedAutobitlinear {
        put(PROJECTION_EPS_KEY, shortest(config.projection_norm_eps));
    }
    keys
}

fn packed_quantization(config: &ModelConfig) -> Value {
    let mut keys = Map::new();
    keys.insert("quant_method".into(), json!("bitnet"));
    keys.insert("linear_class".into(), json!("autobitlinear"));
    keys.insert("quantization_mode".into(), json!("offline"));
    if config.projection_norms {
        keys.insert("use_rms_norm".into(), json!(true));
        keys.insert("rms_norm_eps".into(), shortest(config.projection_norm_eps));
    }
    Value::Object(keys)
}

fn rope_scaling(scaling: RopeScaling) -> Option<Value> {
    match scaling {
        RopeScaling::None => None,
        RopeScaling::Linear { factor } => Some(json!({ "rope_type": "linear", "factor": factor })),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => Some(json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_context,
        })),
        RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, attention_factor } => Some(json!({
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": original_context,
            "beta_fast": beta_fast,
            "beta_slow": beta_slow,
            "attention_factor": attention_factor,
        })),
    }
}

/// The decimal that reads back as the same f32, not the f64 that happens to equal it: `1e-6`, not `9.999999974752427e-7`.
pub(crate) fn shortest(value: f32) -> Value {
    json!(value.to_string().parse::<f64>().unwrap_or(f64::from(value)))
}

/// One id as a number, several as a list, none as `null`.
pub(crate) fn eos_value(ids: &[u32]) -> Value {
    match ids {
        [] => Value::Null,
        [id] => json!(id),
        ids => json!(ids),
    }
}

fn activation_name(activation: Activation) -> &'static str {
    match activation {
        Activation::Silu => "silu",
        Activation::Relu2 => "relu2",
    }
}

fn dtype_name(dtype: DenseType) -> &'static str {
    match dtype {
        DenseType::F32 => "float32",
        DenseType::F16 => "float16",
        DenseType::Bf16 => "bfloat16",
    }
}
