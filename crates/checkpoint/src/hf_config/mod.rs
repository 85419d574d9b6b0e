//! `config.json` of Hugging Face and MLX folders to [`ModelConfig`] and back (`write`).
//!
//! Keys that decide the arithmetic are read, never guessed; a feature that would change the arithmetic and is not computed
//! (biases, sliding windows, partial rotary embedding) is refused by name. No remote code: `auto_map` is ignored. Defaults that
//! are taken are those of the configuration classes, each named where it is taken: `tie_word_embeddings` is false for bitnet,
//! llama and qwen3; llama's `num_key_value_heads` is `num_attention_heads`; `head_dim` is 128 for qwen3, else hidden size over heads.
//! Source: huggingface/transformers:src/transformers/models/{bitnet,llama,qwen3}/configuration_*.py,
//! src/transformers/utils/quantization_config.py (BitNetQuantConfig).

mod rope;
mod write;

pub(crate) use write::{WrittenWeights, eos_value, shortest, to_json};

use crate::config::{Activation, ActivationPolicy, Architecture, ModelConfig};
use crate::error::CheckpointError;
use crate::json::{Fields, parse_object, shown};

/// Our own optional key: what linear layers read, where the file's other keys cannot say it.
const POLICY_KEY: &str = "bitnet_activation_policy";
/// Our own optional key: ε of the norms inside projections, where no `quantization_config` says it.
const PROJECTION_EPS_KEY: &str = "bitnet_projection_norm_eps";
/// Qwen3Config's `head_dim` where a file has none, whatever the hidden size.
const QWEN3_HEAD_DIM: usize = 128;
/// Linear layers of a transformer layer; none may be left out of quantisation.
const PROJECTIONS: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// How a folder stores its projections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WeightForm {
    /// Packed uint8; `weight_scale` divides (`linear_class: bitlinear`).
    PackedBitlinear,
    /// Packed uint8; `weight_scale` multiplies (`linear_class: autobitlinear`).
    PackedAutobitlinear,
    /// Floating-point master weights that the reader ternarises (`quantization_mode: online`; 1bitLLM's `weight_bits: 1`).
    Master,
    /// Floating-point numbers that are already trit × scale.
    FakeQuantised,
    /// Floating-point numbers of which nothing says whether they are trit × scale or master weights: the norms inside projections
    /// say that they are ternary, and their values which of the two. BitNet-embedding publishes masters
    /// (microsoft/BitNet:utils/convert-bitnet-embedding-to-gguf.py), `convert` writes trit × scale.
    FakeQuantisedOrMaster,
    /// MLX affine 2-bit.
    Mlx,
}

/// What only the names of the stored tensors tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct NamesSeen {
    /// There are norms before o_proj and down_proj.
    pub(crate) sub_norms: bool,
    /// There are norms inside projections.
    pub(crate) projection_norms: bool,
}

/// A configuration file, read.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct HfConfig {
    /// The model.
    pub(crate) model: ModelConfig,
    /// How the projections are stored.
    pub(crate) weights: WeightForm,
    /// Beginning-of-sequence token.
    pub(crate) bos_token_id: Option<u32>,
    /// End-of-sequence tokens, where `generation_config.json` names none.
    pub(crate) eos_token_ids: Vec<u32>,
}

/// The shape that a `config.json` describes, when there are no tensors beside it.
pub fn read_config_json(bytes: &[u8]) -> Result<ModelConfig, CheckpointError> {
    let map = parse_object("config.json", bytes)?;
    Ok(read(&Fields::of_file(&map), NamesSeen::default())?.model)
}

/// Reads a configuration and checks it.
pub(crate) fn read(fields: &Fields, names: NamesSeen) -> Result<HfConfig, CheckpointError> {
    let stated = architecture(fields)?;
    // 1bitLLM's exports may say llama. To other readers that is a graph without sub-norms, so it is not written as one.
    let architecture = if stated == Architecture::Llama && names.sub_norms { Architecture::Bitnet } else { stated };
    refuse_uncomputed(fields)?;
    let weights = weight_form(fields, names)?;
    let count = |key: &str| fields.count(key).and_then(|value| fields.required(key, value));
    let n_heads = count("num_attention_heads")?;
    let hidden_size = count("hidden_size")?;
    let rms_norm_eps = fields.required("rms_norm_eps", fields.number("rms_norm_eps")?)? as f32;
    let projection_norms = names.projection_norms || uses_rms_norm(fields)?;
    let projection_norm_eps = if projection_norms { projection_norm_eps(fields, rms_norm_eps)? } else { rms_norm_eps };
    let model = ModelConfig {
        architecture,
        hidden_size,
        intermediate_size: count("intermediate_size")?,
        n_layers: count("num_hidden_layers")?,
        n_heads,
        n_kv_heads: n_kv_heads(fields, stated, n_heads)?,
        head_dim: head_dim(fields, architecture, (hidden_size, n_heads))?,
        n_vocab: count("vocab_size")?,
        context_length: count("max_position_embeddings")?,
        rms_norm_eps,
        rope: rope::read(fields)?,
        activation: activation(fields)?,
        sub_norms: architecture == Architecture::Bitnet || names.sub_norms,
        qk_norm: architecture == Architecture::Qwen3,
        projection_norms,
        projection_norm_eps,
        tied_head: fields.flag("tie_word_embeddings")?.unwrap_or(false),
        activation_policy: activation_policy(fields, architecture, projection_norms)?,
        last_token_pooling: last_token_pooling(fields)?,
    };
    model.validate()?;
    Ok(HfConfig { model, weights, bos_token_id: fields.id("bos_token_id")?, eos_token_ids: fields.ids("eos_token_id")? })
}

fn architecture(fields: &Fields) -> Result<Architecture, CheckpointError> {
    match fields.required("model_type", fields.text("model_type")?)? {
        "bitnet" => Ok(Architecture::Bitnet),
        "llama" => Ok(Architecture::Llama),
        "qwen3" => Ok(Architecture::Qwen3),
        other => Err(unsupported(format!("model_type {}", shown(other)), "bitnet, llama and qwen3 are computed")),
    }
}

fn n_kv_heads(fields: &Fields, architecture: Architecture, n_heads: usize) -> Result<usize, CheckpointError> {
    let key = "num_key_value_heads";
    match fields.count(key)? {
        // LlamaConfig: "if None, will default to num_attention_heads".
        None if architecture == Architecture::Llama => Ok(n_heads),
        stated => fields.required(key, stated),
    }
}

fn head_dim(fields: &Fields, architecture: Architecture, (hidden_size, n_heads): (usize, usize)) -> Result<usize, CheckpointError> {
    if let Some(head_dim) = fields.count("head_dim")? {
        return Ok(head_dim);
    }
    if architecture == Architecture::Qwen3 {
        return Ok(QWEN3_HEAD_DIM);
    }
    if n_heads == 0 || !hidden_size.is_multiple_of(n_heads) {
        let reason = format!("absent, and {n_heads} heads do not divide the hidden size {hidden_size}");
        return Err(CheckpointError::config("head_dim", reason));
    }
    Ok(hidden_size / n_heads)
}

fn activation(fields: &Fields) -> Result<Activation, CheckpointError> {
    match fields.required("hidden_act", fields.text("hidden_act")?)? {
        "silu" => Ok(Activation::Silu),
        "relu2" => Ok(Activation::Relu2),
        other => Err(unsupported(format!("hidden_act {}", shown(other)), "silu and relu2 are computed")),
    }
}

/// Refuses what would change the arithmetic and is not computed.
fn refuse_uncomputed(fields: &Fields) -> Result<(), CheckpointError> {
    for key in ["attention_bias", "mlp_bias", "qkv_bias"] {
        if fields.flag(key)? == Some(true) {
            return Err(unsupported(format!("{key} true"), "linear layers have no bias"));
        }
    }
    if fields.number("partial_rotary_factor")?.is_some_and(|factor| factor != 1.0) {
        return Err(unsupported("partial_rotary_factor", "rotary embedding turns whole heads"));
    }
    let uses_window = fields.flag("use_sliding_window")?;
    let window = fields.count("sliding_window")?;
    if uses_window == Some(true) || (uses_window.is_none() && window.is_some()) {
        return Err(unsupported("sliding_window", "every layer attends to the whole context"));
    }
    let layer_types = fields.texts("layer_types")?.unwrap_or_default();
    match layer_types.iter().find(|&&layer_type| layer_type != "full_attention") {
        Some(other) => Err(unsupported(format!("layer_types {}", shown(other)), "every layer is full_attention")),
        None => Ok(()),
    }
}

fn weight_form(fields: &Fields, names: NamesSeen) -> Result<WeightForm, CheckpointError> {
    if let Some(quantization) = fields.object("quantization")? {
        check_mlx(&quantization)?;
        return Ok(WeightForm::Mlx);
    }
    let Some(quantization) = fields.object("quantization_config")? else {
        return Ok(match is_one_bit_llm(fields)? {
            true => WeightForm::Master,
            false if names.projection_norms => WeightForm::FakeQuantisedOrMaster,
            false => WeightForm::FakeQuantised,
        });
    };
    let method = quantization.required("quant_method", quantization.text("quant_method")?)?;
    if method != "bitnet" {
        return Err(unsupported(format!("quant_method {}", shown(method)), "bitnet is read"));
    }
    refuse_dense_projections(&quantization)?;
    let class = quantization.text("linear_class")?.unwrap_or("bitlinear");
    let mode = quantization.text("quantization_mode")?.unwrap_or("offline");
    match (class, mode) {
        ("bitlinear", "offline") => Ok(WeightForm::PackedBitlinear),
        ("autobitlinear", "offline") => Ok(WeightForm::PackedAutobitlinear),
        ("autobitlinear", "online") => Ok(WeightForm::Master),
        ("bitlinear", "online") => {
            Err(unsupported("quantization_config.quantization_mode online", "only linear_class autobitlinear has it"))
        }
        ("bitlinear" | "autobitlinear", other) => {
            let reason = format!("{} is neither offline nor online", shown(other));
            Err(CheckpointError::config("quantization_config.quantization_mode", reason))
        }
        (other, _) => {
            let reason = format!("{} is neither bitlinear nor autobitlinear", shown(other));
            Err(CheckpointError::config("quantization_config.linear_class", reason))
        }
    }
}

/// 1bitLLM's files say `weight_bits: 1, input_bits: 8` and hold master weights (1bitLLM/bitnet_b1_58-3B:config.json).
fn is_one_bit_llm(fields: &Fields) -> Result<bool, CheckpointError> {
    let (weight_bits, input_bits) = (fields.count("weight_bits")?, fields.count("input_bits")?);
    match (weight_bits, input_bits) {
        (None, _) => Ok(false),
        (Some(1), Some(8)) => Ok(true),
        (weights, inputs) => {
            let inputs = inputs.map_or("no".to_owned(), |bits| bits.to_string());
            Err(unsupported("weight_bits", format!("{} weight bits with {inputs} input bits; 1 with 8 is read", weights.unwrap_or(0))))
        }
    }
}

/// MLX's own key: `{"group_size": 128, "bits": 2}`, perhaps with exceptions by module, which the tensors' shapes show anyway.
fn check_mlx(quantization: &Fields) -> Result<(), CheckpointError> {
    let bits = quantization.required("bits", quantization.count("bits")?)?;
    if bits != 2 {
        return Err(unsupported(format!("quantization.bits {bits}"), "a ternary MLX model has 2 bits"));
    }
    let group_size = quantization.required("group_size", quantization.count("group_size")?)?;
    if !bitnet_ternary::layout::mlx::GROUP_SIZES.contains(&group_size) {
        return Err(unsupported(format!("quantization.group_size {group_size}"), "MLX has groups of 32, 64 and 128"));
    }
    match quantization.text("mode")? {
        None | Some("affine") => Ok(()),
        Some(other) => Err(unsupported(format!("quantization.mode {}", shown(other)), "affine is read")),
    }
}

/// `modules_to_not_convert` may name the head or the embedding; a projection left dense would not be ternary.
fn refuse_dense_projections(quantization: &Fields) -> Result<(), CheckpointError> {
    let kept = quantization.texts("modules_to_not_convert")?.unwrap_or_default();
    match kept.iter().find(|name| PROJECTIONS.iter().any(|projection| name.contains(projection))) {
        Some(name) => Err(unsupported(format!("modules_to_not_convert {}", shown(name)), "every projection is ternary")),
        None => Ok(()),
    }
}

/// `use_rms_norm`: a norm inside every linear.
fn uses_rms_norm(fields: &Fields) -> Result<bool, CheckpointError> {
    match fields.object("quantization_config")? {
        Some(quantization) => Ok(quantization.flag("use_rms_norm")? == Some(true)),
        None => Ok(false),
    }
}

/// The ε of those norms: `quantization_config.rms_norm_eps` (1e-6 if absent, as in BitNetQuantConfig), or our own key. Models whose
/// norms no quantisation mentions (BitNet-embedding) have one ε for all.
fn projection_norm_eps(fields: &Fields, rms_norm_eps: f32) -> Result<f32, CheckpointError> {
    if let Some(eps) = fields.number(PROJECTION_EPS_KEY)? {
        return Ok(eps as f32);
    }
    match fields.object("quantization_config")? {
        Some(quantization) => Ok(quantization.number("rms_norm_eps")?.unwrap_or(1e-6) as f32),
        None => Ok(rms_norm_eps),
    }
}

fn activation_policy(fields: &Fields, architecture: Architecture, projection_norms: bool) -> Result<ActivationPolicy, CheckpointError> {
    if let Some(name) = fields.text(POLICY_KEY)? {
        return ActivationPolicy::named(name).map_err(|reason| CheckpointError::config(POLICY_KEY, reason));
    }
    let bitnet_quantised = match fields.object("quantization_config")? {
        Some(quantization) => quantization.text("quant_method")? == Some("bitnet"),
        None => false,
    };
    let quantised = bitnet_quantised || architecture == Architecture::Bitnet || projection_norms || is_one_bit_llm(fields)?;
    Ok(if quantised { ActivationPolicy::Int8PerToken } else { ActivationPolicy::Unquantised })
}

/// `architectures: ["Qwen3Model"]`: a model without a head yields an embedding.
fn last_token_pooling(fields: &Fields) -> Result<bool, CheckpointError> {
    let architectures = fields.texts("architectures")?.unwrap_or_default();
    match architectures.first() {
        None => Ok(false),
        Some(name) if name.ends_with("ForCausalLM") => Ok(false),
        Some(name) if name.ends_with("Model") => Ok(true),
        Some(other) => {
            Err(unsupported(format!("architectures {}", shown(other)), "causal language models and models without a head are read"))
        }
    }
}

pub(super) fn unsupported(feature: impl Into<String>, reason: impl Into<String>) -> CheckpointError {
    CheckpointError::Unsupported { feature: feature.into(), reason: reason.into() }
}
