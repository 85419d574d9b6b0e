//! `bitnet inspect`: what is in a model, for people and (`--json`) for programs. What is counted is decided in
//! `bitnet_checkpoint::inspect`; here it is grouped and printed.

use std::io::Write;

use bitnet_checkpoint::config::{Activation, ActivationPolicy, Architecture, RopeScaling};
use bitnet_checkpoint::gguf::I2sLayout;
use bitnet_checkpoint::{Checkpoint, CheckpointError, Inspection, ModelConfig, TensorInspection, Vocabulary, inspect};
use clap::Args;
use serde_json::json;

use crate::arguments::{GlobalArguments, OpenArguments};
use crate::model_source::{EMBEDDED, ModelSource};
use crate::open::open_source;
use crate::size::{bytes, count, kv_bytes_per_token};
use crate::table::Table;
use crate::terminal::{Output, Style, Terminal};

/// Show what is in a model: architecture, tensors, types, bits per weight, memory
#[derive(Debug, Args)]
pub(crate) struct InspectArguments {
    /// Folder, .gguf file, or hf:owner/name[@revision][:file.gguf]; without it, the embedded model
    #[arg(value_name = "MODEL", default_value = EMBEDDED, hide_default_value = true)]
    model: String,
    #[command(flatten)]
    open: OpenArguments,
    /// List every tensor instead of grouping layers
    #[arg(long)]
    all: bool,
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
}

/// Looks at every tensor and prints.
pub(crate) fn perform(arguments: &InspectArguments, global: &GlobalArguments, terminal: &Terminal) -> anyhow::Result<()> {
    let source: ModelSource = arguments.model.parse()?;
    let checkpoint = open_source(&source, arguments.open, global, terminal)?;
    let inspection = inspect(&checkpoint)?;
    let i2s_order = i2s_order(&checkpoint, arguments.open)?;
    if arguments.json {
        writeln!(Output, "{}", serde_json::to_string_pretty(&to_json(&arguments.model, &checkpoint, (&inspection, i2s_order))?)?)?;
        return Ok(());
    }
    let mut lines = summary(&arguments.model, &checkpoint, &inspection);
    lines.extend(i2s_order.map(|(layout, basis)| ("I2_S order", format!("{}, {basis}", layout_name(layout)))));
    let width = lines.iter().map(|(what, _)| what.len()).max().unwrap_or(0);
    for (what, value) in lines {
        writeln!(Output, "{}  {value}", terminal.on_stdout(Style::Bold, format!("{what:width$}")))?;
    }
    writeln!(Output)?;
    tensor_table(&inspection, arguments.all).write(&mut Output, terminal)?;
    Ok(())
}

/// The order in which I2_S codes are decoded, and why in that one; `None` if there are none.
fn i2s_order(checkpoint: &Checkpoint, arguments: OpenArguments) -> Result<Option<(I2sLayout, &'static str)>, CheckpointError> {
    let Some(source) = checkpoint.gguf() else { return Ok(None) };
    let Some(detection) = source.i2s_detection()? else { return Ok(None) };
    let basis = match (arguments.i2s_layout, detection.decided) {
        (Some(_), _) => "as told",
        (None, true) => "as the weights show",
        (None, false) => "for lack of evidence in the weights",
    };
    Ok(Some((source.i2s_layout()?, basis)))
}

fn layout_name(layout: I2sLayout) -> &'static str {
    match layout {
        I2sLayout::Blocks128 => "blocks of 128",
        I2sLayout::Blocks64 => "blocks of 64",
        I2sLayout::Rows4 => "four rows a byte",
    }
}

fn to_json(
    model: &str,
    checkpoint: &Checkpoint,
    (inspection, i2s_order): (&Inspection, Option<(I2sLayout, &str)>),
) -> serde_json::Result<serde_json::Value> {
    let config = checkpoint.config();
    let files = checkpoint.tokenizer_files();
    Ok(json!({
        "model": model,
        "format": inspection.format,
        "config": {
            "architecture": architecture(config),
            "hidden_size": config.hidden_size,
            "intermediate_size": config.intermediate_size,
            "n_layers": config.n_layers,
            "n_heads": config.n_heads,
            "n_kv_heads": config.n_kv_heads,
            "head_dim": config.head_dim,
            "n_vocab": config.n_vocab,
            "context_length": config.context_length,
            "rms_norm_eps": config.rms_norm_eps,
            "rope_theta": config.rope.theta,
            "rope_scaling": rope_scaling(config),
            "activation": activation(config),
            "activations": activations(config),
            "sub_norms": config.sub_norms,
            "qk_norm": config.qk_norm,
            "projection_norms": config.projection_norms,
            "projection_norm_eps": config.projection_norm_eps,
            "tied_head": config.tied_head,
            "last_token_pooling": config.last_token_pooling,
        },
        "i2s_order": i2s_order.map(|(layout, basis)| json!({ "layout": layout_name(layout), "basis": basis })),
        "kv_bytes_per_token": kv_bytes_per_token(config),
        "has_tokenizer": files.vocabulary != Vocabulary::Absent,
        "has_chat_template": files.chat_template.is_some(),
        "eos_token_ids": files.generation.eos_token_ids,
        "totals": serde_json::to_value(&inspection.totals)?,
        "tensors": serde_json::to_value(&inspection.tensors)?,
    }))
}

fn architecture(config: &ModelConfig) -> &'static str {
    match config.architecture {
        Architecture::Bitnet => "bitnet",
        Architecture::Llama => "llama",
        Architecture::Qwen3 => "qwen3",
    }
}

fn activation(config: &ModelConfig) -> &'static str {
    match config.activation {
        Activation::Silu => "SiLU",
        Activation::Relu2 => "ReLU²",
    }
}

fn activations(config: &ModelConfig) -> &'static str {
    match config.activation_policy {
        ActivationPolicy::Int8PerToken => "int8 per token",
        ActivationPolicy::Int8PerGroup => "int8 per group of 128",
        ActivationPolicy::Unquantised => "unquantised",
    }
}

fn rope_scaling(config: &ModelConfig) -> String {
    match config.rope.scaling {
        RopeScaling::None => "none".to_string(),
        RopeScaling::Linear { factor } => format!("linear × {factor}"),
        RopeScaling::Llama3 { factor, .. } => format!("llama3 × {factor}"),
        RopeScaling::Yarn { factor, .. } => format!("yarn × {factor}"),
    }
}

fn summary(model: &str, checkpoint: &Checkpoint, inspection: &Inspection) -> Vec<(&'static str, String)> {
    let (config, totals) = (checkpoint.config(), &inspection.totals);
    let times = |larger: u64| larger as f64 / totals.ternary_bytes.max(1) as f64;
    let kv = kv_bytes_per_token(config);
    let mut lines = vec![
        ("model", format!("{model} ({})", inspection.format)),
        ("architecture", shape(config)),
        ("", arithmetic(config)),
        (
            "parameters",
            format!(
                "{}, of which {} are ternary ({:.1}% zeros)",
                count(totals.n_parameters),
                count(totals.n_ternary_parameters),
                totals.share_of_zeros * 100.0
            ),
        ),
        ("stored", format!("{}, {:.2} bits per weight", bytes(totals.stored_bytes), totals.stored_bits_per_weight)),
        (
            "memory",
            format!(
                "{} (with 16 bits {}, {:.1}×; with 32 bits {}, {:.1}×)",
                bytes(totals.ternary_bytes),
                bytes(totals.bytes_at_16_bits),
                times(totals.bytes_at_16_bits),
                bytes(totals.bytes_at_32_bits),
                times(totals.bytes_at_32_bits)
            ),
        ),
        ("KV cache", format!("{} per token, {} for the whole context", bytes(kv), bytes(kv.saturating_mul(config.context_length as u64)))),
    ];
    lines.push(("text", text(checkpoint)));
    lines
}

fn shape(config: &ModelConfig) -> String {
    format!(
        "{}: {} layers, hidden {}, FFN {}, {} heads of {} ({} for keys and values), vocabulary {}, context {}",
        architecture(config),
        config.n_layers,
        config.hidden_size,
        config.intermediate_size,
        config.n_heads,
        config.head_dim,
        config.n_kv_heads,
        config.n_vocab,
        config.context_length
    )
}

fn arithmetic(config: &ModelConfig) -> String {
    let mut parts = vec![
        format!("{} activations", if config.activation_policy == ActivationPolicy::Unquantised { "unquantised" } else { "int8" }),
        activation(config).to_string(),
    ];
    let flags = [
        (config.sub_norms, "sub-norms"),
        (config.qk_norm, "QK-norm"),
        (config.projection_norms, "projection norms"),
        (config.tied_head, "tied head"),
        (config.last_token_pooling, "yields embeddings"),
    ];
    parts.extend(flags.into_iter().filter(|(is_set, _)| *is_set).map(|(_, name)| name.to_string()));
    parts.push(match config.rope.scaling {
        RopeScaling::None => format!("RoPE θ {}", config.rope.theta),
        _ => format!("RoPE θ {}, {}", config.rope.theta, rope_scaling(config)),
    });
    parts.join(", ")
}

fn text(checkpoint: &Checkpoint) -> String {
    let files = checkpoint.tokenizer_files();
    let vocabulary = match &files.vocabulary {
        Vocabulary::Absent => "no tokenizer",
        Vocabulary::Json(_) => "tokenizer.json",
        Vocabulary::Gguf(_) => "tokenizer in GGUF metadata",
    };
    let template = if files.chat_template.is_some() { "chat template" } else { "no chat template" };
    let generation = &files.generation;
    let setting = |name: &str, value: Option<f32>| value.map(|value| format!(", {name} {value}")).unwrap_or_default();
    format!("{vocabulary}, {template}{}{}", setting("temperature", generation.temperature), setting("top-p", generation.top_p))
}

/// Tensors that differ in their layer's number only.
struct Group<'a> {
    name: String,
    layers: Vec<usize>,
    first: &'a TensorInspection,
    n_zeros: u64,
    stored_bytes: u64,
}

fn tensor_table(inspection: &Inspection, all: bool) -> Table {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for tensor in &inspection.tensors {
        let (name, layer) = if all { (tensor.name.clone(), None) } else { without_layer(&tensor.name) };
        let n_zeros = tensor.ternary.as_ref().map_or(0, |ternary| ternary.n_zeros);
        match groups.iter_mut().find(|group| group.name == name && is_alike(group.first, tensor)) {
            Some(group) => {
                group.layers.extend(layer);
                group.n_zeros += n_zeros;
                group.stored_bytes += tensor.stored_bytes;
            }
            None => {
                let layers = layer.into_iter().collect();
                groups.push(Group { name, layers, first: tensor, n_zeros, stored_bytes: tensor.stored_bytes });
            }
        }
    }
    let mut table = Table::new(&["tensor", "layers", "shape", "stored as", "scales", "zeros", "size"]);
    groups.iter().for_each(|group| table.row(row(group)));
    table.align_right(&[5, 6]);
    table
}

fn row(group: &Group<'_>) -> Vec<String> {
    let n_tensors = group.layers.len().max(1) as u64;
    let n_weights = n_tensors * group.first.shape.iter().map(|&dim| dim as u64).product::<u64>();
    let shape: Vec<String> = group.first.shape.iter().map(ToString::to_string).collect();
    let ternary = group.first.ternary.as_ref();
    vec![
        group.name.clone(),
        ranges(&group.layers),
        shape.join(" × "),
        group.first.stored_type.clone(),
        ternary.map(|ternary| ternary.scales.clone()).unwrap_or_default(),
        ternary.map(|_| format!("{:.1}%", 100.0 * group.n_zeros as f64 / n_weights.max(1) as f64)).unwrap_or_default(),
        bytes(group.stored_bytes),
    ]
}

fn is_alike(one: &TensorInspection, other: &TensorInspection) -> bool {
    let scales = |tensor: &TensorInspection| tensor.ternary.as_ref().map(|ternary| ternary.scales.clone());
    one.shape == other.shape && one.stored_type == other.stored_type && scales(one) == scales(other)
}

/// `model.layers.7.mlp.up_proj.weight` → (`layers.*.mlp.up_proj`, 7).
fn without_layer(name: &str) -> (String, Option<usize>) {
    let short = name.strip_suffix(".weight").unwrap_or(name);
    let short = short.strip_prefix("model.").unwrap_or(short);
    let Some((number, rest)) = short.strip_prefix("layers.").and_then(|rest| rest.split_once('.')) else {
        return (short.to_string(), None);
    };
    match number.parse() {
        Ok(layer) => (format!("layers.*.{rest}"), Some(layer)),
        Err(_) => (short.to_string(), None),
    }
}

/// `[0, 1, 2, 5]` → `0–2, 5`.
fn ranges(layers: &[usize]) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for &layer in layers {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == layer => *last = layer,
            _ => ranges.push((layer, layer)),
        }
    }
    let text = |&(first, last): &(usize, usize)| if first == last { first.to_string() } else { format!("{first}–{last}") };
    ranges.iter().map(text).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_in_a_row_are_written_as_ranges() {
        assert_eq!(ranges(&[0, 1, 2, 5, 7, 8]), "0–2, 5, 7–8");
        assert_eq!(ranges(&[]), "");
    }

    #[test]
    fn layer_number_is_taken_out_of_names() {
        assert_eq!(without_layer("model.layers.12.mlp.up_proj.weight"), ("layers.*.mlp.up_proj".into(), Some(12)));
        assert_eq!(without_layer("model.norm.weight"), ("norm".into(), None));
        assert_eq!(without_layer("lm_head.weight"), ("lm_head".into(), None));
    }
}
