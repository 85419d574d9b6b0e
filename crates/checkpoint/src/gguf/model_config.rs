//! GGUF metadata to [`ModelConfig`]. The other direction is `metadata.rs`.
//!
//! What the public keys do not say, and how it is decided: whether a graph has sub-norms, query and key norms or norms inside
//! projections, by whether their tensors are there; the activation, by architecture (`bitnet-b1.58` and `bitnet-25` are ReLU²,
//! `bitnet`, `llama` and `qwen3` SiLU); whether activations are quantised, by architecture, type and norms (all `bitnet*`
//! architectures, all I2_S files and all models with norms inside projections are int8 per token; others are taken for weight-only,
//! which a [`crate::Note`] says). `bitnet.*` keys win over all of that.
//! Defaults are those that the format's specification gives a key when it is absent.

use std::collections::HashMap;

use super::keys;
use super::kv::Metadata;
use super::read::TensorEntry;
use crate::config::{Activation, ActivationPolicy, Architecture, ModelConfig, Rope, RopeScaling};
use crate::error::CheckpointError;

/// What the tensor table and tensor contents add to the metadata.
pub(super) struct TensorFacts<'a> {
    pub(super) by_name: HashMap<&'a str, &'a TensorEntry>,
    pub(super) any_i2s: bool,
    /// Contents of `rope_freqs.weight`.
    pub(super) rope_factors: Option<Vec<f32>>,
}

/// `general.architecture` of the graphs that are computed here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct GgufArchitecture {
    /// As spelt in the file; prefix of the other keys.
    pub(super) name: &'static str,
    pub(super) family: Architecture,
    activation: Activation,
    /// Query and key rows are stored in the order of interleaved rotary embedding.
    pub(super) interleaved_rows: bool,
}

const ARCHITECTURES: [GgufArchitecture; 5] = [
    GgufArchitecture { name: "bitnet-b1.58", family: Architecture::Bitnet, activation: Activation::Relu2, interleaved_rows: false },
    GgufArchitecture { name: "bitnet-25", family: Architecture::Bitnet, activation: Activation::Relu2, interleaved_rows: false },
    GgufArchitecture { name: "bitnet", family: Architecture::Bitnet, activation: Activation::Silu, interleaved_rows: false },
    GgufArchitecture { name: "llama", family: Architecture::Llama, activation: Activation::Silu, interleaved_rows: true },
    GgufArchitecture { name: "qwen3", family: Architecture::Qwen3, activation: Activation::Silu, interleaved_rows: false },
];

/// The architecture of a file.
pub(super) fn architecture(metadata: &Metadata) -> Result<GgufArchitecture, CheckpointError> {
    let name = metadata.string(keys::ARCHITECTURE)?.ok_or_else(|| missing(keys::ARCHITECTURE))?;
    let known = || ARCHITECTURES.map(|architecture| architecture.name).join(", ");
    ARCHITECTURES.into_iter().find(|architecture| architecture.name == name).ok_or_else(|| CheckpointError::Unsupported {
        feature: format!("architecture `{}`", name.chars().take(64).collect::<String>()),
        reason: format!("{} are computed", known()),
    })
}

/// The architecture that a configuration is written as.
pub(super) fn architecture_for(config: &ModelConfig) -> GgufArchitecture {
    let matches =
        |architecture: &&GgufArchitecture| architecture.family == config.architecture && architecture.activation == config.activation;
    let family = |architecture: &&GgufArchitecture| architecture.family == config.architecture;
    let found = ARCHITECTURES.iter().find(matches).or_else(|| ARCHITECTURES.iter().find(family));
    *found.expect("the table has every family")
}

/// Keys of one architecture.
struct Keys<'a> {
    metadata: &'a Metadata,
    architecture: &'static str,
}

impl Keys<'_> {
    fn key(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.architecture)
    }

    fn size(&self, suffix: &str) -> Result<Option<usize>, CheckpointError> {
        self.metadata.integer(&self.key(suffix))
    }

    fn required_size(&self, suffix: &str) -> Result<usize, CheckpointError> {
        self.size(suffix)?.ok_or_else(|| missing(&self.key(suffix)))
    }

    fn float(&self, suffix: &str) -> Result<Option<f64>, CheckpointError> {
        self.metadata.float(&self.key(suffix))
    }

    /// Refuses a feature that is switched on and not computed.
    fn refuse(&self, suffix: &str, what: &str) -> Result<(), CheckpointError> {
        match self.metadata.integer::<u64>(&self.key(suffix))? {
            None | Some(0) => Ok(()),
            Some(value) => Err(CheckpointError::Unsupported { feature: what.into(), reason: format!("`{}` is {value}", self.key(suffix)) }),
        }
    }
}

/// Reads and validates the configuration.
pub(super) fn read(metadata: &Metadata, tensors: &TensorFacts<'_>) -> Result<ModelConfig, CheckpointError> {
    let architecture = architecture(metadata)?;
    let keys = Keys { metadata, architecture: architecture.name };
    keys.refuse(keys::EXPERT_COUNT, "mixture of experts")?;
    keys.refuse(keys::SLIDING_WINDOW, "sliding-window attention")?;
    let hidden_size = keys.required_size(keys::EMBEDDING_LENGTH)?;
    let n_heads = keys.required_size(keys::HEAD_COUNT)?;
    let head_dim = head_dim(&keys, hidden_size, n_heads)?;
    let is_there = |name: &str| tensors.by_name.contains_key(name);
    let last_token_pooling = pools_last_token(&keys)?;
    // A graph of the bitnet family without them does not exist: if they are missing, the file is incomplete. A llama graph with them
    // is of that family.
    let sub_norms = architecture.family == Architecture::Bitnet || is_there("blk.0.attn_sub_norm.weight");
    let is_bitnet = sub_norms && architecture.family == Architecture::Llama;
    let projection_norms = is_there("blk.0.attn_q_norm_in.weight");
    let rms_norm_eps = keys.float(keys::RMS_EPSILON)?.ok_or_else(|| missing(&keys.key(keys::RMS_EPSILON)))? as f32;
    let own_eps = metadata.float(keys::BITNET_PROJECTION_EPSILON)?;
    // The key is only checked to be a number: files pad vocabularies, and the embedding's rows are what exists.
    keys.size(keys::VOCAB_SIZE)?;
    let config = ModelConfig {
        architecture: if is_bitnet { Architecture::Bitnet } else { architecture.family },
        hidden_size,
        intermediate_size: keys.required_size(keys::FEED_FORWARD_LENGTH)?,
        n_layers: keys.required_size(keys::BLOCK_COUNT)?,
        n_heads,
        n_kv_heads: keys.size(keys::HEAD_COUNT_KV)?.unwrap_or(n_heads),
        head_dim,
        n_vocab: embedding_rows(tensors)?,
        context_length: keys.required_size(keys::CONTEXT_LENGTH)?,
        rms_norm_eps,
        rope: Rope { theta: rope_theta(&keys)?, scaling: RopeScaling::None },
        activation: activation(metadata, architecture)?,
        sub_norms,
        qk_norm: is_there("blk.0.attn_q_norm.weight"),
        projection_norms,
        // Programs that do not write our key have one ε for all norms.
        projection_norm_eps: own_eps.filter(|_| projection_norms).map_or(rms_norm_eps, |eps| eps as f32),
        tied_head: metadata.bool(keys::BITNET_TIED_HEAD)?.unwrap_or_else(|| !is_there("output.weight")),
        activation_policy: activation_policy(metadata, architecture, tensors.any_i2s || projection_norms || is_bitnet)?,
        last_token_pooling,
    };
    config.validate()?;
    let scaling = rope_scaling(&keys, &config, tensors.rope_factors.as_deref())?;
    let config = ModelConfig { rope: Rope { scaling, ..config.rope }, ..config };
    config.validate()?;
    Ok(config)
}

fn missing(key: &str) -> CheckpointError {
    CheckpointError::config(key, "is missing")
}

fn embedding_rows(tensors: &TensorFacts<'_>) -> Result<usize, CheckpointError> {
    let name = "token_embd.weight";
    let entry = tensors.by_name.get(name).ok_or_else(|| CheckpointError::MissingTensor { name: name.into() })?;
    match entry.dimensions[..] {
        [_, rows] => usize::try_from(rows).map_err(|_| CheckpointError::tensor(name, format!("{rows} rows"))),
        _ => Err(CheckpointError::tensor(name, format!("expected 2 dimensions, got {}", entry.dimensions.len()))),
    }
}

fn head_dim(keys: &Keys<'_>, hidden_size: usize, n_heads: usize) -> Result<usize, CheckpointError> {
    let key_length = match keys.size(keys::KEY_LENGTH)? {
        Some(length) => length,
        None => hidden_size.checked_div(n_heads).ok_or_else(|| CheckpointError::config(keys.key(keys::HEAD_COUNT), "is 0"))?,
    };
    for (suffix, what) in [(keys::VALUE_LENGTH, "values as wide as keys"), (keys::ROPE_DIMENSIONS, "rotary embedding of whole heads")] {
        if let Some(other) = keys.size(suffix)?
            && other != key_length
        {
            return Err(CheckpointError::Unsupported {
                feature: format!("{} = {other}", keys.key(suffix)),
                reason: format!("only {what} ({key_length}) is computed"),
            });
        }
    }
    Ok(key_length)
}

fn pools_last_token(keys: &Keys<'_>) -> Result<bool, CheckpointError> {
    match keys.metadata.integer::<u64>(&keys.key(keys::POOLING_TYPE))? {
        None | Some(0) => Ok(false),
        Some(3) => Ok(true),
        Some(other) => Err(CheckpointError::Unsupported {
            feature: format!("{} = {other}", keys.key(keys::POOLING_TYPE)),
            reason: "only pooling of the last token (3) is computed".into(),
        }),
    }
}

fn activation(metadata: &Metadata, architecture: GgufArchitecture) -> Result<Activation, CheckpointError> {
    match metadata.string(keys::BITNET_HIDDEN_ACT)? {
        None => Ok(architecture.activation),
        Some("silu") => Ok(Activation::Silu),
        Some("relu2") => Ok(Activation::Relu2),
        Some(other) => Err(CheckpointError::config(keys::BITNET_HIDDEN_ACT, format!("expected silu or relu2, got {other}"))),
    }
}

fn activation_policy(metadata: &Metadata, architecture: GgufArchitecture, trained_int8: bool) -> Result<ActivationPolicy, CheckpointError> {
    match metadata.string(keys::BITNET_ACTIVATION_POLICY)? {
        None if architecture.family == Architecture::Bitnet || trained_int8 => Ok(ActivationPolicy::Int8PerToken),
        None => Ok(ActivationPolicy::Unquantised),
        Some(name) => ActivationPolicy::named(name).map_err(|reason| CheckpointError::config(keys::BITNET_ACTIVATION_POLICY, reason)),
    }
}

/// 10000 when absent, as the format's specification says.
fn rope_theta(keys: &Keys<'_>) -> Result<f64, CheckpointError> {
    let public = keys.float(keys::ROPE_BASE)?;
    Ok(keys.metadata.float(keys::BITNET_ROPE_BASE)?.or(public).unwrap_or(10_000.0))
}

fn rope_scaling(keys: &Keys<'_>, config: &ModelConfig, factors: Option<&[f32]>) -> Result<RopeScaling, CheckpointError> {
    if let Some(name) = keys.metadata.string(keys::BITNET_ROPE_SCALING)? {
        return own_rope_scaling(keys.metadata, name);
    }
    let required = |suffix| keys.float(suffix)?.ok_or_else(|| missing(&keys.key(suffix)));
    let type_key = keys.key(keys::ROPE_SCALING_TYPE);
    match (keys.metadata.string(&type_key)?, factors) {
        (None | Some("none"), Some(factors)) => llama3_from_factors(config, factors),
        (Some(other), Some(_)) => Err(CheckpointError::Unsupported {
            feature: format!("{type_key} = {other} together with rotary factors"),
            reason: "only one of the two is computed".into(),
        }),
        (None | Some("none"), None) => match keys.float(keys::ROPE_SCALE_LINEAR)? {
            Some(factor) if factor != 1.0 => Ok(RopeScaling::Linear { factor }),
            _ => Ok(RopeScaling::None),
        },
        (Some("linear"), None) => Ok(RopeScaling::Linear { factor: required(keys::ROPE_SCALING_FACTOR)? }),
        (Some("yarn"), None) => {
            let factor = required(keys::ROPE_SCALING_FACTOR)?;
            if keys.float(keys::ROPE_SCALING_LOG)?.is_some_and(|log| log != 0.0) {
                return Err(CheckpointError::Unsupported {
                    feature: keys.key(keys::ROPE_SCALING_LOG),
                    reason: "attention scaling of DeepSeek's YaRN is not computed".into(),
                });
            }
            Ok(RopeScaling::Yarn {
                factor,
                original_context: keys.required_size(keys::ROPE_SCALING_CONTEXT)?,
                beta_fast: keys.float(keys::ROPE_SCALING_BETA_FAST)?.unwrap_or(32.0),
                beta_slow: keys.float(keys::ROPE_SCALING_BETA_SLOW)?.unwrap_or(1.0),
                attention_factor: keys.float(keys::ROPE_SCALING_ATTENTION)?.unwrap_or(1.0) * yarn_attention(factor),
            })
        }
        (Some(other), None) => Err(CheckpointError::Unsupported {
            feature: format!("{type_key} = {other}"),
            reason: "none, linear and yarn are computed".into(),
        }),
    }
}

/// The factor on cos and sin that the YaRN paper derives, which llama.cpp applies on top of `attn_factor`.
pub(super) fn yarn_attention(factor: f64) -> f64 {
    if factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 }
}

fn own_rope_scaling(metadata: &Metadata, name: &str) -> Result<RopeScaling, CheckpointError> {
    let float = |key: &str| metadata.float(key)?.ok_or_else(|| missing(key));
    let context = || metadata.integer(keys::BITNET_ROPE_CONTEXT)?.ok_or_else(|| missing(keys::BITNET_ROPE_CONTEXT));
    match name {
        "none" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: float(keys::BITNET_ROPE_FACTOR)? }),
        "llama3" => Ok(RopeScaling::Llama3 {
            factor: float(keys::BITNET_ROPE_FACTOR)?,
            low_freq_factor: float(keys::BITNET_ROPE_LOW)?,
            high_freq_factor: float(keys::BITNET_ROPE_HIGH)?,
            original_context: context()?,
        }),
        "yarn" => Ok(RopeScaling::Yarn {
            factor: float(keys::BITNET_ROPE_FACTOR)?,
            original_context: context()?,
            beta_fast: float(keys::BITNET_ROPE_BETA_FAST)?,
            beta_slow: float(keys::BITNET_ROPE_BETA_SLOW)?,
            attention_factor: float(keys::BITNET_ROPE_ATTENTION)?,
        }),
        other => Err(CheckpointError::config(keys::BITNET_ROPE_SCALING, format!("expected none, linear, llama3 or yarn, got {other}"))),
    }
}

/// Low and high frequency factors and original contexts of the published Llama 3 models.
const LLAMA3_PUBLISHED: [(f64, f64, usize); 2] = [(1.0, 4.0, 8192), (1.0, 4.0, 4096)];

/// llama.cpp keeps Llama 3 scaling only as the finished factor of each frequency. The parameters are those published ones that
/// reproduce the factors; other factors are refused, since no rule here would compute them.
fn llama3_from_factors(config: &ModelConfig, factors: &[f32]) -> Result<RopeScaling, CheckpointError> {
    if factors.iter().all(|&factor| factor == 1.0) {
        return Ok(RopeScaling::None);
    }
    let factor = f64::from(factors.iter().copied().fold(1.0, f32::max));
    for (low_freq_factor, high_freq_factor, original_context) in LLAMA3_PUBLISHED {
        let scaling = RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context };
        let expected = llama3_factors(config, scaling);
        let agrees = expected.is_some_and(|expected| {
            expected.len() == factors.len() && expected.iter().zip(factors).all(|(a, b)| (a - b).abs() <= 1e-4 * a.abs())
        });
        if agrees {
            return Ok(scaling);
        }
    }
    let reason = "they are not those of a published Llama 3 scaling".into();
    Err(CheckpointError::Unsupported { feature: "rotary factors in `rope_freqs.weight`".into(), reason })
}

/// The factor by which each of the `head_dim / 2` frequencies is divided. `None` for other scalings.
pub(super) fn llama3_factors(config: &ModelConfig, scaling: RopeScaling) -> Option<Vec<f32>> {
    let RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } = scaling else { return None };
    let context = original_context as f64;
    let of_pair = |pair: usize| {
        let frequency = config.rope.theta.powf(-2.0 * pair as f64 / config.head_dim as f64);
        let wavelength = 2.0 * std::f64::consts::PI / frequency;
        let smooth = (context / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
        let divisor = if wavelength < context / high_freq_factor {
            1.0
        } else if wavelength > context / low_freq_factor {
            factor
        } else {
            1.0 / ((1.0 - smooth) / factor + smooth)
        };
        divisor as f32
    };
    Some((0..config.head_dim / 2).map(of_pair).collect())
}
