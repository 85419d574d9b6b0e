//! Names of stored tensors to canonical names: prefixes that some exports leave out, and other projects' names for the same thing.
//!
//! A table, not a guess: a name that matches nothing keeps itself and is refused at opening if the model has no such tensor.
//! Sources: huggingface/transformers (AutoBitLinear's `rms_norm`), 1bitLLM/bitnet_b1_58-3B:modeling_bitnet.py
//! (`inner_attn_ln`, `ffn_layernorm`), ml-explore/mlx-lm (`scales`, `biases`).

use crate::hf_config::NamesSeen;

/// Other names for a part of a canonical name.
const ALIASES: [(&str, &str); 3] = [
    (".self_attn.inner_attn_ln.", ".self_attn.attn_sub_norm."),
    (".mlp.ffn_layernorm.", ".mlp.ffn_sub_norm."),
    ("_proj.rms_norm.", "_proj.norm."),
];
/// Buffers that old exports saved and that configuration keys say as well.
const IGNORED_ENDINGS: [&str; 1] = ["rotary_emb.inv_freq"];

/// What a stored tensor is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    /// The tensor of that canonical name.
    Weight(String),
    /// The scale, or scales, of the tensor of that canonical name.
    Scales(String),
    /// MLX's biases of the tensor of that canonical name.
    Biases(String),
    /// Nothing the model needs.
    Ignored,
}

/// What the tensor stored under `name` is.
pub(crate) fn part(name: &str) -> Part {
    if IGNORED_ENDINGS.iter().any(|ending| name.ends_with(ending)) {
        return Part::Ignored;
    }
    let prefix = if name.starts_with("model.") || name.starts_with("lm_head.") { "" } else { "model." };
    let name = ALIASES.iter().fold(format!("{prefix}{name}"), |name, (other, ours)| name.replace(other, ours));
    let of_weight = |ending: &str| name.strip_suffix(ending).map(|module| format!("{module}.weight"));
    if let Some(weight) = of_weight(".weight_scale").or_else(|| of_weight(".scales")) {
        return Part::Scales(weight);
    }
    match of_weight(".biases") {
        Some(weight) => Part::Biases(weight),
        None => Part::Weight(name),
    }
}

/// What the names of all stored tensors tell of the architecture.
pub(crate) fn seen<'a>(names: impl Iterator<Item = &'a str>) -> NamesSeen {
    let mut seen = NamesSeen::default();
    for name in names {
        let Part::Weight(name) = part(name) else { continue };
        seen.sub_norms |= name.contains(".self_attn.attn_sub_norm.") || name.contains(".mlp.ffn_sub_norm.");
        seen.projection_norms |= name.ends_with("_proj.norm.weight");
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases_and_missing_prefixes_become_canonical() {
        let weight = |name: &str| Part::Weight(name.to_owned());
        let cases = [
            ("model.embed_tokens.weight", weight("model.embed_tokens.weight")),
            ("embed_tokens.weight", weight("model.embed_tokens.weight")),
            ("norm.weight", weight("model.norm.weight")),
            ("lm_head.weight", weight("lm_head.weight")),
            ("model.layers.3.self_attn.inner_attn_ln.weight", weight("model.layers.3.self_attn.attn_sub_norm.weight")),
            ("layers.3.mlp.ffn_layernorm.weight", weight("model.layers.3.mlp.ffn_sub_norm.weight")),
            ("layers.0.mlp.up_proj.rms_norm.weight", weight("model.layers.0.mlp.up_proj.norm.weight")),
            ("layers.0.mlp.up_proj.weight_scale", Part::Scales("model.layers.0.mlp.up_proj.weight".into())),
            ("lm_head.scales", Part::Scales("lm_head.weight".into())),
            ("lm_head.biases", Part::Biases("lm_head.weight".into())),
            ("model.layers.0.mlp.up_proj.bias", weight("model.layers.0.mlp.up_proj.bias")),
            ("model.layers.0.self_attn.rotary_emb.inv_freq", Part::Ignored),
        ];
        for (stored, expected) in cases {
            assert_eq!(part(stored), expected, "{stored}");
        }
    }

    #[test]
    fn names_tell_which_norms_there_are() {
        let none = ["model.layers.0.self_attn.q_norm.weight", "model.norm.weight"];
        assert_eq!(seen(none.into_iter()), NamesSeen::default());
        assert!(seen(["layers.0.self_attn.inner_attn_ln.weight"].into_iter()).sub_norms);
        assert!(seen(["layers.0.self_attn.q_proj.norm.weight"].into_iter()).projection_norms);
        assert!(seen(["layers.0.self_attn.q_proj.rms_norm.weight"].into_iter()).projection_norms);
    }
}
