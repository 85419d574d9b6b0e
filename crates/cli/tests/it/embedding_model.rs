//! A small random embedding model on disk, of the form that microsoft/BitNet-embedding has: the Qwen3 graph with a norm inside every
//! projection, no head, names without prefix, and a tokenizer that ends every text with a special token.

use std::path::Path;

use serde_json::{Map, Value, json};

/// Width of the vectors.
pub(crate) const WIDTH: usize = 32;
/// The token that ends every text.
pub(crate) const END_OF_TEXT: u32 = 1;

const N_VOCAB: usize = 8192;
const N_LAYERS: usize = 2;
const HEAD_DIM: usize = 16;
const PROJECTIONS: [(&str, usize, usize); 7] = [
    ("self_attn.q_proj", 2 * HEAD_DIM, WIDTH),
    ("self_attn.k_proj", HEAD_DIM, WIDTH),
    ("self_attn.v_proj", HEAD_DIM, WIDTH),
    ("self_attn.o_proj", WIDTH, 2 * HEAD_DIM),
    ("mlp.gate_proj", 64, WIDTH),
    ("mlp.up_proj", 64, WIDTH),
    ("mlp.down_proj", WIDTH, 64),
];

/// Writes the model's files into `folder`; `tokenizer` is that of the tales model.
pub(crate) fn write(folder: &Path, tokenizer: &Path) {
    let config = json!({
        "architectures": ["Qwen3Model"], "model_type": "qwen3", "hidden_size": WIDTH, "intermediate_size": 64,
        "num_hidden_layers": N_LAYERS, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": HEAD_DIM, "vocab_size": N_VOCAB,
        "hidden_act": "silu", "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0,
        "tie_word_embeddings": false, "eos_token_id": END_OF_TEXT,
    });
    std::fs::write(folder.join("config.json"), config.to_string()).expect("written");
    std::fs::write(folder.join("tokenizer.json"), ending_tokenizer(tokenizer).to_string()).expect("written");
    std::fs::write(folder.join("model.safetensors"), tensors()).expect("written");
}

/// That of the tales model, but for what it puts around a text.
fn ending_tokenizer(tokenizer: &Path) -> Value {
    let bytes = std::fs::read(tokenizer).expect("a fixture");
    let mut tokenizer: Value = serde_json::from_slice(&bytes).expect("JSON");
    tokenizer["post_processor"] = json!({
        "type": "TemplateProcessing",
        "single": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "SpecialToken": { "id": "end", "type_id": 0 } }],
        "pair": [],
        "special_tokens": { "end": { "id": "end", "ids": [END_OF_TEXT], "tokens": ["end"] } },
    });
    tokenizer
}

fn tensors() -> Vec<u8> {
    let (mut header, mut data) = (Map::new(), Vec::new());
    let mut push = |name: String, shape: &[usize], value: &dyn Fn(u64) -> f32| {
        let begin = data.len();
        // Every value is a small multiple of a power of two, so its bfloat16 is the upper half of its float32.
        (0..shape.iter().product::<usize>()).for_each(|index| {
            let random = mixed(begin as u64 + index as u64);
            data.extend_from_slice(&((value(random).to_bits() >> 16) as u16).to_le_bytes());
        });
        header.insert(name, json!({ "dtype": "BF16", "shape": shape, "data_offsets": [begin, data.len()] }));
    };
    let near_one = |random: u64| 1.0 + (random % 8) as f32 / 16.0;
    push("embed_tokens.weight".into(), &[N_VOCAB, WIDTH], &|random| (random % 17) as f32 / 8.0 - 1.0);
    push("norm.weight".into(), &[WIDTH], &near_one);
    for layer in 0..N_LAYERS {
        for (norm, width) in [
            ("input_layernorm", WIDTH),
            ("post_attention_layernorm", WIDTH),
            ("self_attn.q_norm", HEAD_DIM),
            ("self_attn.k_norm", HEAD_DIM),
        ] {
            push(format!("layers.{layer}.{norm}.weight"), &[width], &near_one);
        }
        for (projection, n_rows, n_cols) in PROJECTIONS {
            push(format!("layers.{layer}.{projection}.weight"), &[n_rows, n_cols], &|random| (random % 3) as f32 / 8.0 - 0.125);
            push(format!("layers.{layer}.{projection}.norm.weight"), &[n_cols], &near_one);
        }
    }
    let header = Value::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()
}

/// The finaliser of SplitMix64, upper bits only.
fn mixed(index: u64) -> u64 {
    let mut value = index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value >> 33
}
