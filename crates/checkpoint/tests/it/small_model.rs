//! A model of about two kilobytes, written by the test itself, so that every byte of it can be broken.

use std::path::Path;

use serde_json::{Map, Value, json};

/// A tensor to be written: name, dtype, shape, bytes.
#[derive(Debug, Clone)]
pub(crate) struct StoredTensor {
    pub(crate) name: String,
    pub(crate) dtype: &'static str,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

/// A folder to be written.
#[derive(Debug, Clone)]
pub(crate) struct SmallModel {
    pub(crate) config: Value,
    pub(crate) tensors: Vec<StoredTensor>,
}

pub(crate) const HIDDEN: usize = 32;
pub(crate) const N_VOCAB: usize = 4;
const LAYER: [(&str, usize, usize); 7] = [
    ("self_attn.q_proj", 8, HIDDEN),
    ("self_attn.k_proj", 4, HIDDEN),
    ("self_attn.v_proj", 4, HIDDEN),
    ("self_attn.o_proj", HIDDEN, 8),
    ("mlp.gate_proj", 4, HIDDEN),
    ("mlp.up_proj", 4, HIDDEN),
    ("mlp.down_proj", HIDDEN, 4),
];

pub(crate) fn bf16(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    // Every value of these tests is exact in bfloat16: the low half of the f32 is zero.
    values.into_iter().flat_map(|value| ((value.to_bits() >> 16) as u16).to_le_bytes()).collect()
}

pub(crate) fn trit(index: usize) -> i8 {
    ((index * 7 + index / 3) % 3) as i8 - 1
}

impl SmallModel {
    /// Llama graph, one layer, tied head, packed with `weight_scale` 4 and the given `linear_class`.
    pub(crate) fn packed(linear_class: Option<&str>) -> Self {
        let mut model = Self::fake_quantised();
        model.config["quantization_config"] = match linear_class {
            Some(class) => json!({ "quant_method": "bitnet", "linear_class": class }),
            None => json!({ "quant_method": "bitnet" }),
        };
        for (name, n_rows, n_cols) in LAYER {
            let weight = model.tensor(&format!("model.layers.0.{name}.weight"));
            let stride = n_rows / 4;
            let code = |row: usize, column: usize| (trit(row * n_cols + column) + 1) as u8;
            let byte = |at: usize| (0..4).fold(0, |byte, i| byte | (code(i * stride + at / n_cols, at % n_cols) << (2 * i)));
            (weight.dtype, weight.shape, weight.bytes) = ("U8", vec![stride, n_cols], (0..stride * n_cols).map(byte).collect());
            model.push(&format!("model.layers.0.{name}.weight_scale"), "BF16", vec![1], bf16([4.0]));
        }
        model
    }

    /// Llama graph, one layer, tied head, projections stored as bf16 numbers that are trit × 0.25.
    pub(crate) fn fake_quantised() -> Self {
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": 4,
            "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "vocab_size": N_VOCAB,
            "hidden_act": "silu", "max_position_embeddings": 16, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
            "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2,
        });
        let mut model = Self { config, tensors: Vec::new() };
        model.push("model.embed_tokens.weight", "BF16", vec![N_VOCAB, HIDDEN], bf16((0..N_VOCAB * HIDDEN).map(|i| (i % 100) as f32)));
        for norm in ["model.layers.0.input_layernorm.weight", "model.layers.0.post_attention_layernorm.weight", "model.norm.weight"] {
            model.push(norm, "BF16", vec![HIDDEN], bf16([1.0; HIDDEN]));
        }
        for (name, n_rows, n_cols) in LAYER {
            let values = (0..n_rows * n_cols).map(|i| f32::from(trit(i)) * 0.25);
            model.push(&format!("model.layers.0.{name}.weight"), "BF16", vec![n_rows, n_cols], bf16(values));
        }
        model
    }

    /// Puts a norm before every projection, named as given: `norm`, `rms_norm`.
    pub(crate) fn push_projection_norms(&mut self, name: &str) {
        for (projection, _, n_cols) in LAYER {
            self.push(&format!("model.layers.0.{projection}.{name}.weight"), "BF16", vec![n_cols], bf16(vec![2.0; n_cols]));
        }
    }

    pub(crate) fn push(&mut self, name: &str, dtype: &'static str, shape: Vec<usize>, bytes: Vec<u8>) {
        self.tensors.push(StoredTensor { name: name.to_owned(), dtype, shape, bytes });
    }

    pub(crate) fn tensor(&mut self, name: &str) -> &mut StoredTensor {
        self.tensors.iter_mut().find(|tensor| tensor.name == name).expect("the model has that tensor")
    }

    pub(crate) fn remove(&mut self, name: &str) -> StoredTensor {
        let index = self.tensors.iter().position(|tensor| tensor.name == name).expect("the model has that tensor");
        self.tensors.remove(index)
    }

    /// The header's object and the data.
    pub(crate) fn header_and_data(&self) -> (Map<String, Value>, Vec<u8>) {
        let (mut header, mut data) = (Map::new(), Vec::new());
        for tensor in &self.tensors {
            let begin = data.len();
            data.extend_from_slice(&tensor.bytes);
            let entry = json!({ "dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [begin, data.len()] });
            header.insert(tensor.name.clone(), entry);
        }
        (header, data)
    }

    pub(crate) fn safetensors(&self) -> Vec<u8> {
        let (header, data) = self.header_and_data();
        file(&serde_json::to_vec(&header).expect("serialises"), &data)
    }

    pub(crate) fn write(&self, folder: &Path) {
        std::fs::write(folder.join("config.json"), self.config.to_string()).expect("written");
        std::fs::write(folder.join("model.safetensors"), self.safetensors()).expect("written");
    }
}

/// A safetensors file of a header and data.
pub(crate) fn file(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}
