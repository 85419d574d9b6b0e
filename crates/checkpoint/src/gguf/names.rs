//! Tensor names of GGUF and their canonical (Hugging Face) counterparts, as one table read in both directions.
//!
//! Sources: ggml-org/llama.cpp:gguf-py/gguf/tensor_mapping.py; for the norms inside projections
//! microsoft/BitNet:docs/bitnet-embeddings-i2s-guide.md.

const SUFFIX: &str = ".weight";

/// `(canonical, GGUF)` outside the layers, without `.weight`.
const GLOBAL: [(&str, &str); 3] = [("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output")];

/// `(canonical, GGUF)` inside a layer, without prefix and `.weight`.
const LAYER: [(&str, &str); 20] = [
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("self_attn.attn_sub_norm", "attn_sub_norm"),
    ("mlp.ffn_sub_norm", "ffn_sub_norm"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("self_attn.q_proj.norm", "attn_q_norm_in"),
    ("self_attn.k_proj.norm", "attn_k_norm_in"),
    ("self_attn.v_proj.norm", "attn_v_norm_in"),
    ("self_attn.o_proj.norm", "attn_output_norm_in"),
    ("mlp.gate_proj.norm", "ffn_gate_norm_in"),
    ("mlp.up_proj.norm", "ffn_up_norm_in"),
    ("mlp.down_proj.norm", "ffn_down_norm_in"),
];

/// The factors by which llama.cpp stretches rotary frequencies: metadata in the shape of a tensor.
pub(super) const ROPE_FACTORS: &str = "rope_freqs.weight";

/// `model.layers.3.mlp.up_proj.weight` → `blk.3.ffn_up.weight`.
pub(super) fn to_gguf(canonical: &str) -> Option<String> {
    translate(canonical, ("model.layers.", "blk."), |pair| (pair.0, pair.1))
}

/// `blk.3.ffn_up.weight` → `model.layers.3.mlp.up_proj.weight`.
pub(super) fn to_canonical(gguf: &str) -> Option<String> {
    translate(gguf, ("blk.", "model.layers."), |pair| (pair.1, pair.0))
}

/// The name of a projection's scale where a file stores it apart (`blk.3.ffn_up.scale`), from the GGUF name of its weight.
pub(super) fn scale_of(gguf_weight: &str) -> Option<String> {
    gguf_weight.strip_suffix(SUFFIX).map(|stem| format!("{stem}.scale"))
}

type Pair = (&'static str, &'static str);

fn translate(name: &str, prefixes: Pair, direction: fn(&Pair) -> Pair) -> Option<String> {
    let stem = name.strip_suffix(SUFFIX)?;
    let find = |table: &[Pair], part: &str| table.iter().map(direction).find(|pair| pair.0 == part).map(|pair| pair.1);
    let Some(rest) = stem.strip_prefix(prefixes.0) else {
        return find(&GLOBAL, stem).map(|translated| format!("{translated}{SUFFIX}"));
    };
    let (layer, part) = rest.split_once('.')?;
    // Only the canonical spelling of a number: no sign, no leading zero.
    let index: u32 = layer.parse().ok().filter(|index: &u32| index.to_string() == layer)?;
    find(&LAYER, part).map(|translated| format!("{}{index}.{translated}{SUFFIX}", prefixes.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_translates_there_and_back() {
        let layer = LAYER.iter().map(|pair| format!("model.layers.17.{}.weight", pair.0));
        for canonical in layer.chain(GLOBAL.iter().map(|pair| format!("{}.weight", pair.0))) {
            let gguf = to_gguf(&canonical).expect("known");
            assert_eq!(to_canonical(&gguf).as_deref(), Some(canonical.as_str()));
        }
        assert_eq!(to_gguf("model.layers.3.self_attn.o_proj.norm.weight").as_deref(), Some("blk.3.attn_output_norm_in.weight"));
    }

    #[test]
    fn names_that_are_not_in_the_table_do_not_translate() {
        for name in ["blk.1.attn_q.bias", "blk.01.attn_q.weight", "blk.-1.attn_q.weight", "blk.x.attn_q.weight", "blk.1", "output", ""] {
            assert_eq!(to_canonical(name), None, "{name}");
        }
    }
}
